"""What sysfs tells of PCI devices: which are virtual functions of which, their drivers and their interfaces.

Interfaces are those of the network namespace that sysfs was mounted in, the node's: a VF in a container has none here.
"""

import re
from pathlib import Path

SYSFS = Path("/sys")
_VIRTUAL = re.compile(r"virtfn(\d+)")
_UPLINK = re.compile(r"p\d+|")
"""Physical port names of a PF's own interface: those of the representors of its VFs are like "pf0vf3"."""


class PciBus:
    """The devices of this node. Every call looks anew; what is not there is empty."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._devices = sysfs / "bus/pci/devices"
        self._interfaces = sysfs / "class/net"

    def __repr__(self) -> str:
        return f"<PciBus {self._devices}>"

    def has(self, pci: str) -> bool:
        """Whether there is such a device."""
        return bool(pci) and (self._devices / pci).exists()

    def physical_function(self, pci: str) -> str:
        """The PF of a VF."""
        return _target(self._devices / pci / "physfn")

    def virtual_functions(self, pf: str) -> dict[int, str]:
        """The VFs of a PF by number, in their order."""
        links = (self._devices / pf).glob("virtfn*")
        found = {int(match[1]): _target(link) for link in links if (match := _VIRTUAL.fullmatch(link.name))}
        return dict(sorted(found.items()))

    def driver(self, pci: str) -> str:
        """The name of a device's driver."""
        return _target(self._devices / pci / "driver")

    def interface(self, pci: str) -> str:
        """A device's interface on the node; of a PF in switchdev mode its own, not one that stands for a VF."""
        names = sorted(path.name for path in (self._devices / pci / "net").glob("*"))
        return next((name for name in names if _UPLINK.fullmatch(self._port(name))), "")

    def device(self, ifname: str) -> str:
        """The PCI address of an interface of the node."""
        pci = _target(self._interfaces / ifname / "device")
        return pci if self.has(pci) else ""

    def uppers(self, ifname: str) -> tuple[str, ...]:
        """The interfaces that are built on one."""
        links = (self._interfaces / ifname).glob("upper_*")
        return tuple(sorted(link.name.removeprefix("upper_") for link in links))

    def _port(self, ifname: str) -> str:
        try:
            return (self._interfaces / ifname / "phys_port_name").read_text().strip()
        except OSError:
            return ""


def _target(link: Path) -> str:
    try:
        return link.readlink().name
    except OSError:
        return ""
