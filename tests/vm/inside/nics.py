"""A physical NIC with virtual functions as the kernel shows it: in sysfs by PCI address, over netlink by index.

An interface is looked for by its PCI address each time, for its name is not its own: a virtual function that comes back
from a namespace where another had its name is called ``devN``.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tests.netns import Netns

DEVICES = Path("/sys/bus/pci/devices")
PROBE_SECONDS = 30.0
UP = 1


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


class FunctionState(msgspec.Struct, frozen=True):
    """All that a test may change of a virtual function.

    Attributes:
        settings: mac, vlan, qos, max_tx_rate, min_tx_rate, spoofchk and trust, as its NIC says them.
        ifname: of its interface, empty while that is in another namespace.
        mac: of the interface, from inside.
        mtu: of the interface.
        up: whether the interface is.
    """

    settings: dict[str, Any]
    ifname: str
    mac: str = ""
    mtu: int = 0
    up: bool = False


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
        return ask(self._settings)[function.index]

    def state(self) -> list[FunctionState]:
        """Of all its functions."""
        settings = ask(self._settings)
        return [_state(settings[one.index], one.ifname) for one in self.functions]

    def restore(self, before: list[FunctionState]) -> None:
        """Makes its functions what they were, wherever they are: anew, which takes seconds, where nothing less does it.

        That is where a MAC was set: nothing takes it back.
        """
        with suppress(NetlinkError, TimeoutError):
            self._mend(before)
        if self.state() != before:
            self.set_functions(0)
            self.set_functions(len(before))

    def _mend(self, before: list[FunctionState]) -> None:
        changed = [(one, was) for one, was, now in zip(self.functions, before, self.state(), strict=True) if was != now]
        for one, _ in changed:
            wait_until(lambda one=one: one.ifname, PROBE_SECONDS)

        def work(route: IPRoute) -> None:
            for one, was in changed:
                index = route.link_lookup(ifname=one.ifname)[0]
                route.link("set", index=index, state="down")
                route.link("set", index=index, ifname=was.ifname, mtu=was.mtu, state="up" if was.up else "down")
                said = was.settings
                for part in (
                    {"vlan": {"vlan": said["vlan"], "qos": said["qos"]}},
                    {"rate": {"max_tx_rate": said["max_tx_rate"], "min_tx_rate": said["min_tx_rate"]}},
                    {"spoofchk": said["spoofchk"]},
                    {"trust": said["trust"]},
                ):
                    route.link("set", index=self._index(route), vf={"vf": one.index, **part})

        ask(work)

    def _settings(self, route: IPRoute) -> dict[int, dict[str, Any]]:
        (nic,) = route.get_links(self._index(route), ext_mask=1)
        found = {}
        for info in nic.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO"):
            mac, vlan, rate = (info.get_attr(f"IFLA_VF_{name}") for name in ("MAC", "VLAN", "RATE"))
            found[mac["vf"]] = {
                "mac": mac["mac"],
                "vlan": vlan["vlan"],
                "qos": vlan["qos"],
                "max_tx_rate": rate["max_tx_rate"],
                "min_tx_rate": rate["min_tx_rate"],
                "spoofchk": info.get_attr("IFLA_VF_SPOOFCHK")["spoofchk"],
                "trust": info.get_attr("IFLA_VF_TRUST")["trust"],
            }
        return found

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


def _state(settings: dict[str, Any], ifname: str) -> FunctionState:
    if not ifname:
        return FunctionState(settings=settings, ifname="")
    mac, mtu, flags = (Path("/sys/class/net", ifname, name).read_text().strip() for name in ("address", "mtu", "flags"))
    return FunctionState(settings=settings, ifname=ifname, mac=mac, mtu=int(mtu), up=bool(int(flags, 16) & UP))


def wait_until(condition: Any, seconds: float) -> None:
    """Returns when the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds:.0f} s: {condition}")
        time.sleep(0.1)
