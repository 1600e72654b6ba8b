"""A physical NIC with virtual functions as the kernel shows it: in sysfs by PCI address, over netlink by index.

An interface is looked for by its PCI address each time, for its name is not its own: a virtual function that comes back
from a namespace where another had its name is called ``devN``.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute

from tests.netns import Netns

DEVICES = Path("/sys/bus/pci/devices")
PROBE_SECONDS = 30.0


class VirtualFunction(msgspec.Struct, frozen=True):
    """One virtual function.

    Attributes:
        index: within its physical NIC.
        address: on the PCI bus, as ``0000:01:10.0``.
    """

    index: int
    address: str

    @property
    def ifname(self) -> str:
        """Its interface, empty while that is in another namespace."""
        return next((path.name for path in (DEVICES / self.address / "net").glob("*")), "")

    def move(self, target: Netns, ifname: str) -> None:
        """Moves its interface into a namespace, under another name."""

        def work(route: IPRoute) -> None:
            with target.path.open() as namespace:
                index = route.link_lookup(ifname=self.ifname)[0]
                route.link("set", index=index, ifname=ifname, net_ns_fd=namespace.fileno())

        ask(work)


class PhysicalNic:
    """A NIC that can have virtual functions."""

    def __init__(self, ifname: str) -> None:
        self.ifname = ifname
        self.address = Path(f"/sys/class/net/{ifname}/device").resolve().name

    def __repr__(self) -> str:
        return f"<PhysicalNic {self.ifname} {self.address}>"

    @property
    def functions(self) -> list[VirtualFunction]:
        """Its virtual functions."""
        links = sorted((DEVICES / self.address).glob("virtfn*"), key=lambda path: int(path.name.removeprefix("virtfn")))
        return [VirtualFunction(index, path.resolve().name) for index, path in enumerate(links)]

    def set_functions(self, count: int) -> None:
        """As many virtual functions, each with an interface.

        The NIC is up before: functions that are found while it is down never get a carrier.
        """
        ask(lambda route: route.link("set", index=self._index(route), state="up"))
        (DEVICES / self.address / "sriov_numvfs").write_text(str(count))
        wait_until(lambda: all(one.ifname for one in self.functions) and len(self.functions) == count, PROBE_SECONDS)

    def set(self, function: VirtualFunction, **settings: Any) -> None:
        """Settings of a virtual function that are made on the NIC, in pyroute2's words."""
        ask(lambda route: route.link("set", index=self._index(route), vf={"vf": function.index, **settings}))

    def settings(self, function: VirtualFunction) -> dict[str, Any]:
        """What the NIC says about one: mac, vlan, qos, max_tx_rate, min_tx_rate, spoofchk, trust."""
        nic = ask(lambda route: next(iter(route.get_links(self._index(route), ext_mask=1))))
        for info in nic.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO"):
            mac, vlan, rate = (info.get_attr(f"IFLA_VF_{name}") for name in ("MAC", "VLAN", "RATE"))
            if mac["vf"] == function.index:
                return {
                    "mac": mac["mac"],
                    "vlan": vlan["vlan"],
                    "qos": vlan["qos"],
                    "max_tx_rate": rate["max_tx_rate"],
                    "min_tx_rate": rate["min_tx_rate"],
                    "spoofchk": info.get_attr("IFLA_VF_SPOOFCHK")["spoofchk"],
                    "trust": info.get_attr("IFLA_VF_TRUST")["trust"],
                }
        raise LookupError(f"{self} has no function {function.index}")

    def state(self) -> list[Any]:
        """All that a test may change of its functions: settings, and each interface that is here."""
        return [(self.settings(one), one.ifname, _files(one.ifname)) for one in self.functions]

    def _index(self, route: IPRoute) -> int:
        index: int = route.link_lookup(ifname=self.ifname)[0]
        return index


def ask[T](work: Callable[[IPRoute], T]) -> T:
    """What `work` returns, on a thread: pyroute2 refuses to work where a test's loop runs."""

    def inside() -> T:
        with IPRoute() as route:
            return work(route)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(inside).result()


def _files(ifname: str) -> list[str]:
    folder = Path("/sys/class/net", ifname)
    return [(folder / name).read_text() for name in ("address", "mtu", "flags")] if ifname else []


def wait_until(condition: Any, seconds: float) -> None:
    """Returns when the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds:.0f} s: {condition}")
        time.sleep(0.1)
