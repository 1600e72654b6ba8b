"""What stands behind an SR-IOV virtual function: its physical NIC, by way of the PCI address.

A virtual function's interface is in the pod's namespace, where only ethtool still tells its PCI address; its physical
NIC is on the node, where sysfs shows it (sysfs shows interfaces of the namespace that mounted it only).
"""

import array
import fcntl
import socket
import struct
from pathlib import Path

from cni.config import shown
from cni.errors import KernelRefused
from cni.netlink import address, link
from cni.netlink.socket import Netns, route_socket

SYSFS = Path("/sys")

_SIOCETHTOOL = 0x8946
_GDRVINFO = 3
_DRVINFO = struct.Struct("=I32s32s32s32s32s12sIIIII")
"""struct ethtool_drvinfo of linux/ethtool.h: command, driver, version, firmware, bus, ..."""
_BUS_INFO = 4
_IFREQ = struct.Struct("16sP16x")


def master_networks(netns: str, ifname: str, *, sysfs: Path = SYSFS) -> tuple[str, ...]:
    """The addresses, with prefix lengths, of the physical NIC behind an interface in a namespace.

    None where the interface is no virtual function, or its physical NIC is not on the node or has no address.

    Raises:
        InvalidNetns: there is no such namespace.
        KernelRefused: the interface is missing, or the kernel does not say.
    """
    with Netns.open(netns) as namespace, namespace.entered():
        bus = bus_info(ifname)
    masters = sorted(path.name for path in (sysfs / "bus/pci/devices" / bus / "physfn/net").glob("*")) if bus else []
    found: list[str] = []
    with route_socket() as sockets:
        for master in masters:
            state = link.get(sockets, master)
            if state is not None:
                found += address.listed(sockets, index=state.index)
    return tuple(found)


def bus_info(ifname: str) -> str:
    """The bus address of an interface's device, as ``0000:01:10.0``; empty for one without. In the thread's namespace.

    Raises:
        KernelRefused: the kernel does not say.
    """
    info = array.array("B", _DRVINFO.pack(_GDRVINFO, *[b""] * 6, *[0] * 5))
    place, _ = info.buffer_info()
    request = _IFREQ.pack(ifname.encode(), place)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as error:
            raise KernelRefused(
                f"the kernel refused to tell the device of {shown(ifname)}", str(error), errno=error.errno or 0
            ) from error
    text: bytes = _DRVINFO.unpack(info)[_BUS_INFO]
    bus = text.partition(b"\0")[0].decode(errors="replace")
    return "" if "/" in bus or bus in {".", "..", "N/A"} else bus
