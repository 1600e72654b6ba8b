"""What the actors want done to virtual functions, each as one blocking call on one thread.

A VF's interface moves to the pod and gets its name there by one request: the kernel moves first and renames then, so
neither end of the way has to have both names free. The way back is the same.

Drivers take their time (a VF asks its PF through a mailbox), so what was set is read back, for up to two seconds.
"""

import errno
import logging
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

from msgspec.structs import replace

from cni.boot import boot_id
from cni.config import shown
from cni.errors import CniError, InterfaceExists, InvalidConfig, InvalidNetns, KernelRefused, TryAgainLater
from cni.netlink import address, link, vfinfo
from cni.netlink.link import RTM_SETLINK
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.pci import PciBus
from cni.netlink.socket import Netns, Refusal, RouteSocket, route_socket
from cni.netlink.vf import bus_info
from cni.plan import LinkState
from cni.sriov import (
    USERSPACE_DRIVERS,
    PfView,
    Returned,
    VfHeld,
    VfPlan,
    VfSeen,
    VfSettings,
    is_mark,
    limited,
    settings_differences,
)
from telemetry import traces
from telemetry.attributes import LINK_KIND, LINK_PARENT, NETLINK_STEP, NETWORK_INTERFACE_NAME

_log = logging.getLogger(__name__)

PHYSICAL = ""
"""The kind of link that a VF's interface is."""
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_IFALIAS, _IFLA_NET_NS_FD = 1, 3, 4, 13, 20, 28
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_RTM_DELLINKPROP = 109
_LINK = struct.Struct("=BxHiII")
_UP, _PROMISC, _ALLMULTI = 0x1, 0x100, 0x200
_OWN = "/proc/thread-self/ns/net"
_TRIES, _PAUSE_SECONDS = 20, 0.1
"""As sriov-cni tries a MAC address."""
_QUEUE_SECONDS = 0.005
"""The queue of a link opens a moment after its carrier comes."""


def physical_function(plan: VfPlan, *, bus: PciBus) -> str:
    """See `cni.vfs.Vfs.physical_function`."""
    if not plan.pci:
        with route_socket() as node:
            there = link.get(node, plan.pf)
        pf = bus.device(there.ifname) if there is not None else ""
        if not pf:
            problem = "is not on this node" if there is None else "is no PCI device"
            raise InvalidConfig(f"master: {shown(plan.pf)} {problem}", "an SR-IOV NIC was expected")
        return pf
    if not bus.has(plan.pci):
        raise InvalidConfig(f"deviceID: there is no PCI device {shown(plan.pci)} on this node")
    pf = bus.physical_function(plan.pci)
    if not pf:
        raise InvalidConfig(f"deviceID: {shown(plan.pci)} is no virtual function")
    return pf


def view_pf(pf: str, *, bus: PciBus) -> PfView:
    """See `cni.vfs.Vfs.view_pf`."""
    seen = []
    with route_socket() as node:
        for number, pci in bus.virtual_functions(pf).items():
            ifname = bus.interface(pci)
            there = link.get(node, ifname) if ifname else None
            seen.append(
                VfSeen(
                    number=number,
                    pci=pci,
                    driver=bus.driver(pci),
                    ifname=ifname,
                    addresses=() if there is None else tuple(address.listed(node, index=there.index)),
                    uppers=bus.uppers(ifname) if ifname else (),
                    mark=there.alias if there is not None and is_mark(there.alias) else "",
                )
            )
    return PfView(pci=pf, ifname=bus.interface(pf), vfs=tuple(seen))


def survey_vf(pci: str, *, bus: PciBus) -> VfHeld:
    """See `cni.vfs.Vfs.survey_vf`."""
    pf = bus.physical_function(pci)
    number = next((number for number, one in bus.virtual_functions(pf).items() if one == pci), -1)
    if number < 0:
        raise InvalidConfig(f"deviceID: {shown(pci)} is no virtual function")
    held = VfHeld(pci=pci, pf=pf, number=number, boot=boot_id())
    ifname, driver = bus.interface(pci), bus.driver(pci)
    if not ifname and driver not in USERSPACE_DRIVERS:
        msg = f"deviceID: {held.label} is in use: its interface is not on the node"
        raise TryAgainLater(msg, f"its driver is {driver}" if driver else "it has no driver")
    with route_socket() as node:
        master = _master(node, pf, bus)
        settings = _settings(node, master, held)
        there = link.get(node, ifname) if ifname else None
    if ifname and there is None:
        raise TryAgainLater(f"deviceID: {held.label} is in use: {ifname} has just left the node")
    held = replace(held, settings=settings)
    if there is None:
        return held
    return replace(
        held,
        ifname=there.ifname,
        mac=there.mac,
        mtu=there.mtu,
        up=there.up,
        alias=there.alias,
        tx_queue_len=there.tx_queue_len,
        promisc=there.promisc,
        allmulti=there.allmulti,
    )


def take_vf(plan: VfPlan, held: VfHeld, *, bus: PciBus) -> LinkState | None:
    """See `cni.vfs.Vfs.take_vf`."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(plan.netns))
        if netns.is_own:
            raise InvalidNetns(f"CNI_NETNS: {plan.netns} is the node's own network namespace")
        node = stack.enter_context(route_socket())
        inside = stack.enter_context(route_socket(netns))
        master = _master(node, held.pf, bus)
        if plan.mtu > master.mtu:
            problem = f"it is larger than {master.mtu}, the MTU of {master.ifname}"
            raise InvalidConfig(f"mtu: {plan.mtu} is not possible", problem)
        if plan.mtu and not held.ifname:
            raise InvalidConfig(f"mtu: {plan.mtu} is not possible", f"{held.label} has no interface")
        if held.ifname and link.get(inside, plan.ifname) is not None:
            raise InterfaceExists(f"CNI_IFNAME: {plan.ifname} exists already in {plan.netns}")
        attributes = {
            NETLINK_STEP: "vf",
            NETWORK_INTERFACE_NAME: plan.ifname,
            LINK_KIND: "sriov",
            LINK_PARENT: master.ifname,
        }
        with traces.span("netlink take vf", attributes=attributes):
            try:
                _mark(node, held)
                _tell(node, master, held, _changes(plan.settings, held.settings))
                return _bring_in(node, inside, netns, plan, held) if held.ifname else None
            except BaseException:
                try:
                    _give(node, inside, netns, held, bus=bus, sure=True)
                except CniError as error:
                    _log.warning("%s of %s could not be given back yet: %s", held.label, master.ifname, error)
                raise


def give_vf(netns_path: str, held: VfHeld, *, settle: bool, sure: bool, bus: PciBus) -> Returned:
    """See `cni.vfs.Vfs.give_vf`."""
    if held.boot != boot_id() or not bus.has(held.pci):
        return Returned.GONE
    with ExitStack() as stack:
        node = stack.enter_context(route_socket())
        netns: Netns | None = None
        inside: RouteSocket | None = None
        try:
            netns = stack.enter_context(Netns.open(netns_path))
            inside = stack.enter_context(route_socket(netns))
        except InvalidNetns:
            netns = inside = None
        with traces.span("netlink give vf", attributes={NETLINK_STEP: "vf", LINK_KIND: "sriov"}):
            return _give(node, inside, netns, held, bus=bus, settle=settle, sure=sure)


def limit_vf(held: VfHeld, mbps: int, *, bus: PciBus) -> None:
    """See `cni.vfs.Vfs.limit_vf`."""
    with route_socket() as node:
        master = _master(node, held.pf, bus)
        seen = _settings(node, master, held)
        _tell(node, master, held, VfSettings(rates=limited(seen.rates, mbps)).but(seen))


def vf_differences(plan: VfPlan, held: VfHeld, *, bus: PciBus) -> list[str]:
    """See `cni.vfs.Vfs.differences`."""
    with ExitStack() as stack:
        node = stack.enter_context(route_socket())
        found = settings_differences(plan.settings, _settings(node, _master(node, held.pf, bus), held))
        if not held.ifname:
            return found
        netns = stack.enter_context(Netns.open(plan.netns))
        inside = stack.enter_context(route_socket(netns))
        there = _find(inside, netns, held.pci)
        if there is None:
            return [*found, f"its interface is not in {plan.netns}"]
        if there.ifname != plan.ifname:
            found.append(f"its name is {there.ifname}, not {plan.ifname}")
        if plan.mtu and there.mtu != plan.mtu:
            found.append(f"its MTU is {there.mtu}, not {plan.mtu}")
        if not there.up:
            found.append("it is down")
        return found


def pf_networks(pf: str, *, bus: PciBus) -> tuple[str, ...]:
    """See `cni.vfs.Vfs.pf_networks`."""
    ifname = bus.interface(pf)
    with route_socket() as node:
        found = link.get(node, ifname) if ifname else None
        return () if found is None else tuple(address.listed(node, index=found.index))


def announce_vf(netns_path: str, ifname: str) -> bool:
    """See `cni.vfs.Vfs.announce_vf`."""
    with ExitStack() as stack:
        try:
            inside = stack.enter_context(route_socket(stack.enter_context(Netns.open(netns_path))))
        except InvalidNetns:
            return True
        found = link.get(inside, ifname)
        if found is None or not found.up:
            return True
        if found.carrier:
            time.sleep(_QUEUE_SECONDS)
            # The kernel tells the neighbours as if the address had changed: arp_notify and ndisc_notify are on.
            _set(inside, found.index, _mac(found.mac), f"announce {ifname}")
        return found.carrier


def _mark(node: RouteSocket, held: VfHeld) -> None:
    """Before anything else: from here on it is not what it was."""
    there = link.get(node, held.ifname) if held.ifname else None
    if there is not None:
        _set(node, there.index, attribute(_IFLA_IFALIAS, held.mark.encode()), f"write on {held.ifname}")


def _bring_in(node: RouteSocket, inside: RouteSocket, netns: Netns, plan: VfPlan, held: VfHeld) -> LinkState:
    there = link.get(node, held.ifname)
    if there is None:
        raise TryAgainLater(f"deviceID: {held.label} is in use: {held.ifname} has just left the node")
    doing = f"move {held.ifname} to {plan.netns} as {plan.ifname}"
    _set(node, there.index, attribute(_IFLA_NET_NS_FD, u32(netns.descriptor)) + text(_IFLA_IFNAME, plan.ifname), doing)
    moved = link.get(inside, plan.ifname)
    if moved is None:
        raise KernelRefused(f"{held.ifname} was moved to {plan.netns} and is not there")
    if plan.mtu:
        _set(inside, moved.index, attribute(_IFLA_MTU, u32(plan.mtu)), f"set the MTU of {plan.ifname} to {plan.mtu}")
    if plan.settings.mac:
        _set_mac(inside, moved, plan.settings.mac)
    return link.get_index(inside, moved.index) or moved


def _give(
    node: RouteSocket,
    inside: RouteSocket | None,
    netns: Netns | None,
    held: VfHeld,
    *,
    bus: PciBus,
    settle: bool = False,
    sure: bool = False,
) -> Returned:
    """From wherever it is back to what it was. The interface goes first: nothing of the pod gets out with it."""
    there: LinkState | None = None
    if held.ifname:
        there = _bring_back(node, inside, netns, held, bus=bus)
        if there is None and not settle:
            return Returned.LOST
        if there is not None and is_mark(there.alias) and there.alias != held.mark and not sure:
            return Returned.ANOTHERS
    pf = bus.interface(held.pf)
    master = link.get(node, pf) if pf else None
    if master is not None:
        _restore(node, master, held)
    if there is None:
        return Returned.BACK if not held.ifname else Returned.LOST
    named = _rename(node, there, held.ifname)
    if held.mtu and there.mtu != held.mtu:
        _set(node, there.index, attribute(_IFLA_MTU, u32(held.mtu)), f"set the MTU of {held.ifname} to {held.mtu}")
    if held.tx_queue_len is not None:
        _restore_more(node, there, held, held.tx_queue_len)
    if held.mac and there.mac != held.mac:
        _set_mac(node, there, held.mac)
        if master is not None:
            _restore(node, master, held)  # some PFs call the address that a VF has chosen the one that they have set
    now = link.get_index(node, there.index)
    if now is not None and now.up != held.up:
        _set_flags(node, there.index, held.ifname, up=held.up)
    if there.alias != held.alias:
        _set(node, there.index, attribute(_IFLA_IFALIAS, held.alias.encode()), f"write on {held.ifname}")
    return Returned.BACK if named else Returned.MISNAMED


def _restore_more(node: RouteSocket, there: LinkState, held: VfHeld, tx_queue_len: int) -> None:
    if there.tx_queue_len != tx_queue_len:
        doing = f"set the transmit queue of {held.ifname} to {tx_queue_len}"
        _set(node, there.index, attribute(_IFLA_TXQLEN, u32(tx_queue_len)), doing)
    if (there.promisc, there.allmulti) != (held.promisc, held.allmulti):
        flags = held.promisc * _PROMISC | held.allmulti * _ALLMULTI
        header = _LINK.pack(0, 0, there.index, flags, _PROMISC | _ALLMULTI)
        _ask(node, RTM_SETLINK, header, f"set promisc and allmulti of {held.ifname} back")


def _bring_back(
    node: RouteSocket, inside: RouteSocket | None, netns: Netns | None, held: VfHeld, *, bus: PciBus
) -> LinkState | None:
    """The interface on the node; None when it is neither there nor in the container."""
    there = _find(inside, netns, held.pci) if inside is not None and netns is not None else None
    if inside is not None and there is not None:
        with Netns.open(_OWN) as home:
            request = attribute(_IFLA_NET_NS_FD, u32(home.descriptor)) + text(_IFLA_IFNAME, held.ifname)
            try:
                inside.request(RTM_SETLINK, 0, _LINK.pack(0, 0, there.index, 0, 0) + request)
            except Refusal as refusal:
                # Another interface of the node has the name: then this one is there under the pod's, or does not come.
                if refusal.number not in {errno.EEXIST, errno.ENODEV} or not bus.interface(held.pci):
                    raise refusal.explain(f"move {there.ifname} back to the node as {held.ifname}") from None
    ifname = bus.interface(held.pci)
    return link.get(node, ifname) if ifname else None


def _find(inside: RouteSocket, netns: Netns, pci: str) -> LinkState | None:
    """A device's interface in a namespace, whatever its name is."""
    with netns.entered():
        for found in link.listed(inside):
            if found.kind == PHYSICAL and _bus_info(found.ifname) == pci:
                return found
    return None


def _bus_info(ifname: str) -> str:
    try:
        return bus_info(ifname)
    except KernelRefused:  # it has gone meanwhile, or has no device, like loopback
        return ""


def _rename(node: RouteSocket, there: LinkState, ifname: str) -> bool:
    """Give an interface its name again; False when another one has it."""
    if there.ifname == ifname:
        return True
    owner = link.get(node, ifname)
    if owner is not None and owner.index != there.index:
        _log.warning("%s should be called %s again, which is the name of another interface", there.ifname, ifname)
        return False
    if owner is not None:
        # udev has made it an alternative name of this one.
        names = nested(_IFLA_PROP_LIST, text(_IFLA_ALT_IFNAME, ifname))
        body = _LINK.pack(0, 0, there.index, 0, 0) + names
        _ask(node, _RTM_DELLINKPROP, body, f"drop the alternative name {ifname} of {there.ifname}")
    if there.up:
        _set_flags(node, there.index, there.ifname, up=False)  # older kernels rename only what is down
    _set(node, there.index, text(_IFLA_IFNAME, ifname), f"rename {there.ifname} to {ifname}")
    return True


def _set_mac(sockets: RouteSocket, there: LinkState, mac: str) -> None:
    """Give a VF's interface its MAC address and see that it has it.

    Some drivers have to be told, some take what the PF was told and refuse anything, some do so when they are opened.
    """

    def set_it() -> bool:
        now = link.get_index(sockets, there.index)
        if now is not None and now.mac == mac:
            return True
        try:
            _set(sockets, there.index, _mac(mac), f"set the MAC address of {there.ifname} to {mac}")
        except KernelRefused as error:
            refused.append(error)
            _set_flags(sockets, there.index, there.ifname, up=True)
            _set_flags(sockets, there.index, there.ifname, up=False)
        now = link.get_index(sockets, there.index)
        return now is not None and now.mac == mac

    refused: list[KernelRefused] = []
    if not _insist(set_it):
        if refused:
            raise refused[-1]
        raise KernelRefused(f"the driver of {there.ifname} did not take the MAC address {mac}")


def _tell(node: RouteSocket, master: LinkState, held: VfHeld, settings: VfSettings) -> None:
    """Change settings at the PF; a MAC address is read back."""
    who = f"{held.label} of {master.ifname}"
    if not settings.mac:
        vfinfo.write(node, master.index, held.number, settings, who=who)
        return

    def set_it() -> bool:
        try:
            vfinfo.write(node, master.index, held.number, VfSettings(mac=settings.mac), who=who)
        except KernelRefused as error:
            if error.errno != errno.EBUSY:
                raise
            refused.append(error)
            return False
        return _settings(node, master, held).mac == settings.mac

    refused: list[KernelRefused] = []
    first = VfSettings(vlan=settings.vlan)
    vfinfo.write(node, master.index, held.number, first, who=who)
    if not _insist(set_it):
        if refused:
            raise refused[-1]
        raise KernelRefused(f"the driver of {master.ifname} did not take the MAC address {settings.mac} for {who}")
    rest = settings.but(VfSettings(vlan=settings.vlan, mac=settings.mac))
    vfinfo.write(node, master.index, held.number, rest, who=who)


def _restore(node: RouteSocket, master: LinkState, held: VfHeld) -> None:
    seen = vfinfo.read(node, master.index).get(held.number)
    if seen is None:
        return  # the PF has fewer of them by now
    settings, who = held.settings.but(seen), f"{held.label} of {master.ifname}"
    vfinfo.write(node, master.index, held.number, settings, who=who, order=vfinfo.BACK_IN_ORDER)


def _changes(wanted: VfSettings, seen: VfSettings) -> VfSettings:
    """What has to be sent: not what is so already, which spares drivers that know no rates. A MAC address always.

    To a PF an address that the VF has chosen may look like one that was set, and only one that was set stays.
    """
    return replace(wanted.but(seen), mac=wanted.mac)


def _settings(node: RouteSocket, master: LinkState, held: VfHeld) -> VfSettings:
    found = vfinfo.read(node, master.index).get(held.number)
    if found is None:
        raise InvalidConfig(f"deviceID: {master.ifname} has no VF {held.number}", f"{held.pci} was to be it")
    return found


def _master(node: RouteSocket, pf: str, bus: PciBus) -> LinkState:
    ifname = bus.interface(pf)
    found = link.get(node, ifname) if ifname else None
    if found is None:
        raise InvalidConfig(f"deviceID: the interface of its physical function {pf} is not on this node")
    return found


def _insist(attempt: Callable[[], bool]) -> bool:
    for _ in range(_TRIES):
        if attempt():
            return True
        time.sleep(_PAUSE_SECONDS)
    return False


def _set_flags(sockets: RouteSocket, index: int, ifname: str, *, up: bool) -> None:
    header = _LINK.pack(0, 0, index, _UP if up else 0, _UP)
    _ask(sockets, RTM_SETLINK, header, f"set {ifname} {'up' if up else 'down'}")


def _set(sockets: RouteSocket, index: int, attributes: bytes, doing: str) -> None:
    _ask(sockets, RTM_SETLINK, _LINK.pack(0, 0, index, 0, 0) + attributes, doing)


def _ask(sockets: RouteSocket, kind: int, body: bytes, doing: str) -> None:
    try:
        sockets.request(kind, 0, body)
    except Refusal as refusal:
        raise refusal.explain(doing) from None


def _mac(mac: str) -> bytes:
    return attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
