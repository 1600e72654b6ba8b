"""A NIC with virtual functions on a kernel that has none: veth links play them, a file plays the settings at their PF.

What is moved, renamed, marked, set up and given back is real. A function is known by its MAC address, where a real one
is known by the PCI address of its device, and one in a namespace that dies goes with it, where a real one comes back.
"""

import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from pyroute2 import IPRoute

from cni.errors import KernelRefused
from cni.netlink import sriov, vfinfo
from cni.netlink.pci import PciBus
from cni.netlink.socket import RouteSocket
from cni.sriov import VfSettings, VfVlan

PF = "0000:01:00.0"
PLAIN = VfSettings(vlan=VfVlan(), mac="00:00:00:00:00:00", rates=(0, 0), spoofchk=True, trust=False)


class _State(Struct):
    macs: dict[str, str] = {}
    """PCI addresses by MAC address."""
    settings: list[VfSettings] = []
    """By number of the VF."""


class PlayedNic(PciBus):
    """A bus with one PF, whose interface is `pf`, and the VFs that were plugged in. Processes may share its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self._file = folder / "nic.json"
        self.refused: set[str] = set()
        self.told: list[str] = []

    def play(self, put: Callable[[object, str, Any], object]) -> None:
        """Put it where the code asks the kernel; `put` is setattr, or pytest's."""
        put(sriov, "bus_info", self.bus_info)
        put(sriov, "PHYSICAL", "veth")
        put(vfinfo, "read", self.read)
        put(vfinfo, "write", self.write)

    # -- for tests -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> _State:
        """All that is not in the kernel."""
        return msgspec.json.decode(self._file.read_bytes(), type=_State) if self._file.exists() else _State()

    @property
    def settings(self) -> list[VfSettings]:
        """Of the VFs, by number."""
        return self.state.settings

    def set(self, number: int, **settings: object) -> None:
        """Change one behind everybody's back."""
        with self._changing() as state:
            state.settings[number] = replace(state.settings[number], **settings)

    def know(self, mac: str, pci: str) -> None:
        """A function may have this MAC address, too."""
        with self._changing() as state:
            state.macs[mac] = pci

    def forget(self) -> None:
        """All functions are gone."""
        with self._changing() as state:
            state.macs.clear()

    def plug(self, ifname: str) -> str:
        """One function more; its PCI address."""
        with IPRoute() as route:
            route.link("add", ifname=ifname, kind="veth", peer={"ifname": f"{ifname}-x"})
            (made,) = route.get_links(ifname=ifname)
        with self._changing() as state:
            pci = f"0000:01:10.{len(state.settings)}"
            state.macs[made.get_attr("IFLA_ADDRESS")] = pci
            state.settings.append(PLAIN)
        return pci

    # -- for the code --------------------------------------------------------------------------------------------------

    def has(self, pci: str) -> bool:
        """See `PciBus`."""
        return pci in self.state.macs.values()

    def physical_function(self, pci: str) -> str:
        """See `PciBus`."""
        return PF if self.has(pci) else ""

    def virtual_functions(self, pf: str) -> dict[int, str]:
        """See `PciBus`."""
        return {int(pci[-1]): pci for pci in sorted(self.state.macs.values())}

    def driver(self, pci: str) -> str:
        """See `PciBus`."""
        return "igbvf"

    def interface(self, pci: str) -> str:
        """See `PciBus`."""
        if pci == PF:
            return "pf"
        macs = self.state.macs
        with IPRoute() as route:
            names = [
                one.get_attr("IFLA_IFNAME")
                for one in route.get_links()
                if macs.get(one.get_attr("IFLA_ADDRESS")) == pci
            ]
        return names[0] if names else ""

    def device(self, ifname: str) -> str:
        """See `PciBus`."""
        return PF if ifname == "pf" else ""

    def uppers(self, ifname: str) -> tuple[str, ...]:
        """See `PciBus`."""
        return ()

    def bus_info(self, ifname: str) -> str:
        """As ethtool says it."""
        with IPRoute() as route:
            (found,) = route.get_links(ifname=ifname)
        return self.state.macs.get(found.get_attr("IFLA_ADDRESS"), "")

    def read(self, sockets: RouteSocket, index: int) -> dict[int, VfSettings]:
        """See `vfinfo`."""
        return dict(enumerate(self.settings))

    def write(
        self,
        sockets: RouteSocket,
        index: int,
        number: int,
        settings: VfSettings,
        *,
        who: str,
        order: Sequence[str] = vfinfo.IN_ORDER,
    ) -> None:
        """See `vfinfo`."""
        for name in order:
            if name in settings.said:
                if name in self.refused:
                    raise KernelRefused(f"the kernel refused to set {name} of {who}", "in its own words")
                self.told.append(name)
                self.tell(number, name, settings.said[name])

    def tell(self, number: int, name: str, value: object) -> None:
        """One request to the PF."""
        self.set(number, **{name: value})

    def _changing(self) -> "_Changing":
        return _Changing(self._file)


class _Changing:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _State:
        self._opened = self._path.open("a+b")
        fcntl.flock(self._opened, fcntl.LOCK_EX)
        self._opened.seek(0)
        text = self._opened.read()
        self._state = msgspec.json.decode(text, type=_State) if text else _State()
        return self._state

    def __exit__(self, *_: object) -> None:
        self._opened.truncate(0)
        self._opened.write(msgspec.json.encode(self._state))
        self._opened.close()
