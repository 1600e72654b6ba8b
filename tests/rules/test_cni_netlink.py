"""The hand-written netlink messages against pyroute2's encoder, byte for byte, and the decoders against its output."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni.bond import BondPlan, bond_options
from cni.coordination import RoutePlan
from cni.netlink import address, announce, bond, link, message, route
from cni.plan import IPVLAN_MODES, MACVLAN_MODES, VLAN_PROTOCOLS, LinkPlan

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=15)
INDEX = st.integers(1, 2**31 - 1)
MACS = st.just("") | st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))


def encoded(kind: type, fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> bytes:
    """The body that pyroute2 makes: without the netlink header, with the flag for nested attributes cleared."""
    made = kind()
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = attributes
    made.encode()
    return bytes(made.data[16:])


def plain(body: bytes, header: int) -> bytes:
    """The same message without the flag for nested attributes, which pyroute2 sets on some only."""

    def walk(buffer: memoryview) -> bytes:
        out = b""
        while buffer:
            length = int.from_bytes(buffer[:2], "little")
            kind = int.from_bytes(buffer[2:4], "little")
            value = bytes(buffer[4:length])
            if kind & 0x8000:
                kind &= 0x7FFF
                value = walk(memoryview(value))
            out += message.attribute(kind, value)
            buffer = buffer[length + (-length % 4) :]
        return out

    return body[:header] + walk(memoryview(body)[header:])


@given(
    ifname=NAMES,
    mac=MACS,
    mtu=st.integers(0, 65535),
    mode=st.sampled_from(MACVLAN_MODES),
    parent=INDEX,
    descriptor=st.integers(0, 1 << 20),
)
def test_new_macvlan(*, ifname: str, mac: str, mtu: int, mode: str, parent: int, descriptor: int) -> None:
    plan = LinkPlan(netns="", ifname=ifname, mac=mac, mtu=mtu, mode=mode)
    attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", ifname)]
    if mac:
        attributes.append(("IFLA_ADDRESS", mac))
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
    data = {"attrs": [("IFLA_MACVLAN_MODE", mode)]}
    info = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", data)]}
    attributes += [("IFLA_LINK", parent), ("IFLA_NET_NS_FD", descriptor), ("IFLA_LINKINFO", info)]
    ours = link.create_body(plan, parent_index=parent, descriptor=descriptor)
    assert plain(ours, 16) == plain(encoded(ifinfmsg, {}, attributes), 16)


@given(mode=st.sampled_from(IPVLAN_MODES), parent=INDEX, descriptor=st.integers(0, 1 << 20))
def test_new_ipvlan(mode: str, parent: int, descriptor: int) -> None:
    plan = LinkPlan(netns="", ifname="eth0", kind="ipvlan", mode=mode)
    info = {
        "attrs": [
            ("IFLA_INFO_KIND", "ipvlan"),
            ("IFLA_INFO_DATA", {"attrs": [("IFLA_IPVLAN_MODE", IPVLAN_MODES.index(mode))]}),
        ]
    }
    attributes = [("IFLA_IFNAME", "eth0"), ("IFLA_LINK", parent), ("IFLA_NET_NS_FD", descriptor)]
    theirs = encoded(ifinfmsg, {}, [*attributes, ("IFLA_LINKINFO", info)])
    assert plain(link.create_body(plan, parent_index=parent, descriptor=descriptor), 16) == plain(theirs, 16)
    assert link.decode(memoryview(theirs)).mode == mode


@given(number=st.integers(0, 4094), protocol=st.sampled_from(VLAN_PROTOCOLS), parent=INDEX)
def test_new_vlan(number: int, protocol: str, parent: int) -> None:
    plan = LinkPlan(netns="", ifname="eth0", kind="vlan", mode="", vlan_id=number, vlan_protocol=protocol)
    data = [("IFLA_VLAN_ID", number), ("IFLA_VLAN_PROTOCOL", {"802.1q": 0x8100, "802.1ad": 0x88A8}[protocol])]
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", {"attrs": data})]}
    attributes = [("IFLA_IFNAME", "eth0"), ("IFLA_LINK", parent), ("IFLA_NET_NS_FD", 9)]
    theirs = encoded(ifinfmsg, {}, [*attributes, ("IFLA_LINKINFO", info)])
    assert plain(link.create_body(plan, parent_index=parent, descriptor=9), 16) == plain(theirs, 16)
    seen = link.decode(memoryview(theirs))
    assert (seen.vlan_id, seen.vlan_protocol, seen.mode) == (number, protocol, "")


def bonds(fields: dict[str, Any], attributes: list[tuple[str, Any]], *data: tuple[str, Any]) -> bytes:
    info = {"attrs": [("IFLA_INFO_KIND", "bond"), ("IFLA_INFO_DATA", {"attrs": list(data)})]}
    return plain(encoded(ifinfmsg, fields, [*attributes, ("IFLA_LINKINFO", info)]), 16)


def test_new_bond() -> None:
    text = "updelay=200;miimon=100;primary=eth2;active_slave=eth1;arp_validate=3;lacp_rate=1;ad_actor_sys_prio=7"
    plan = BondPlan(name="sp_bond0", mode=4, options=bond_options(text, slaves=("eth1", "eth2")))
    made = bonds({}, [("IFLA_IFNAME", "sp_bond0")], ("IFLA_BOND_MODE", 4))
    assert plain(bond.create_body(plan), 16) == made
    requests = bond.settings(5, plan, slaves={"eth1": 8, "eth2": 9})
    assert [plain(one.body, 16) for one in requests] == [
        bonds({"index": 5}, [], one)
        for one in (
            ("IFLA_BOND_MODE", 4),
            ("IFLA_BOND_MIIMON", 100),
            ("IFLA_BOND_AD_ACTOR_SYS_PRIO", 7),
            ("IFLA_BOND_ARP_VALIDATE", 3),
            ("IFLA_BOND_AD_LACP_RATE", 1),
            ("IFLA_BOND_PRIMARY", 9),
            ("IFLA_BOND_UPDELAY", 200),
        )
    ]
    assert {one.kind for one in requests} == {16}, "RTM_SETLINK changes no options, and says nothing of it"
    assert requests[0].doing == "set mode=802.3ad of bond sp_bond0"
    assert requests[1].doing == "set miimon=100 of bond sp_bond0"
    active = bond.activate(5, slave=8, doing="x")
    assert (active.kind, plain(active.body, 16)) == (16, bonds({"index": 5}, [], ("IFLA_BOND_ACTIVE_SLAVE", 8)))


def test_zeros_of_a_bond() -> None:
    def names(text: str) -> list[str]:
        plan = BondPlan(name="b", mode=1, options=bond_options(text, slaves=()))
        return [one.doing.split()[1] for one in bond.settings(5, plan, slaves={})]

    assert names("arp_interval=0;miimon=0") == ["mode=active-backup", "miimon=0", "arp_interval=0"]
    assert names("miimon=100;updelay=0") == ["mode=active-backup", "miimon=100", "updelay=0"]
    # The kernel refuses that one, 0 as it is.
    assert names("updelay=0") == ["mode=active-backup"]


def test_a_bond_read_back() -> None:
    text = "arp_ip_target=10.0.0.1,10.0.0.2;ad_actor_system=02:00:00:00:00:0a;arp_interval=0;primary=eth2"
    plan = BondPlan(name="sp_bond0", mode=4, options=bond_options(text, slaves=("eth1", "eth2")))
    data = b""
    for one in bond.settings(5, plan, slaves={"eth1": 8, "eth2": 9}):
        info = message.attributes(message.attributes(memoryview(one.body)[16:])[18])
        assert bytes(info[1]) == b"bond\0"
        data += bytes(info[2])
    seen = bond.decode(memoryview(data), names={8: "eth1", 9: "eth2"})
    assert (seen.mode, dict(seen.options)) == (4, dict(plan.options))
    assert "primary" not in bond.decode(memoryview(data), names={}).options


def test_slaves_are_taken_down_first() -> None:
    down, take = bond.enslave(7, bond=9, doing="x")
    assert down.body == encoded(ifinfmsg, {"index": 7, "flags": 0, "change": 1}, [])
    assert take.body == encoded(ifinfmsg, {"index": 7}, [("IFLA_MASTER", 9)])
    assert [one.body for one in bond.enslave(7, bond=0, doing="x")] == [
        encoded(ifinfmsg, {"index": 7}, [("IFLA_MASTER", 0)])
    ]


def test_where_a_parent_is() -> None:
    for attributes, netns, master in (([], None, 0), ([("IFLA_LINK_NETNSID", 3), ("IFLA_MASTER", 8)], 3, 8)):
        seen = link.decode(memoryview(encoded(ifinfmsg, {"index": 5}, attributes)))
        assert (seen.parent_netns, seen.master_index) == (netns, master)


def test_a_temporary_name_is_one() -> None:
    names = {link.temporary_name(name) for name in ("eth0", "eth1", "net1", "a" * 15)}
    assert len(names) == 4
    assert all(len(name) == 15 for name in names)


def test_a_queue_length_is_the_only_thing_that_it_adds() -> None:
    plan = LinkPlan(netns="", ifname="eth0", broadcast_queue_length=5)
    body = plain(link.create_body(plan, parent_index=1, descriptor=1), 16)
    # pyroute2 does not know IFLA_MACVLAN_BC_QUEUE_LEN, attribute 7 of linux/if_link.h.
    assert body.endswith(bytes.fromhex("08000100040000000800070005000000"))


@given(index=INDEX)
def test_changes_of_a_link(index: int) -> None:
    assert link.set_up_body(index) == encoded(ifinfmsg, {"index": index, "flags": 1, "change": 1}, [])
    # pyroute2 cannot write IFLA_INET_CONF; tests/node shows what the kernel makes of it.
    assert plain(link.announce_on_up_body(index), 16)[16:] == bytes.fromhex("14001a00100002000c0001000800160001000000")


@given(packed=st.binary(min_size=4, max_size=4), length=st.integers(0, 32), index=INDEX)
def test_new_ipv4_address(packed: bytes, length: int, index: int) -> None:
    interface = IPv4Interface((packed, length))
    attributes = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if length < 31:
        attributes.append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    theirs = encoded(ifaddrmsg, {"family": 2, "prefixlen": length, "index": index}, attributes)
    ours = address.add_body(interface, index=index)
    assert ours == theirs
    assert address._decode(memoryview(theirs)) == (index, str(interface))


@given(packed=st.binary(min_size=16, max_size=16), length=st.integers(0, 128), index=INDEX)
def test_new_ipv6_address(packed: bytes, length: int, index: int) -> None:
    interface = IPv6Interface((packed, length))
    attributes = [("IFA_ADDRESS", str(interface.ip)), ("IFA_FLAGS", 2)]
    theirs = encoded(ifaddrmsg, {"family": 10, "prefixlen": length, "index": index}, attributes)
    assert address.add_body(interface, index=index) == theirs
    assert address._decode(memoryview(theirs)) == (index, f"{IPv6Address(packed)}/{length}")


@given(data=st.data(), six=st.booleans(), index=INDEX)
def test_new_route(data: st.DataObject, six: bool, index: int) -> None:
    bits = 128 if six else 32
    length = data.draw(st.integers(0, bits))
    packed = data.draw(st.binary(min_size=bits // 8, max_size=bits // 8))
    hop = data.draw(st.none() | st.binary(min_size=bits // 8, max_size=bits // 8))
    network: IPv4Network | IPv6Network = (
        IPv6Network((packed, length), strict=False) if six else IPv4Network((packed, length), strict=False)
    )
    gateway = None if hop is None else IPv6Address(hop) if six else IPv4Address(hop)
    attributes: list[tuple[str, Any]] = [("RTA_DST", str(network.network_address))] if length else []
    if gateway is not None:
        attributes.append(("RTA_GATEWAY", str(gateway)))
    attributes.append(("RTA_OIF", index))
    scope = 253 if gateway is None and not six else 0
    family = 10 if six else 2
    fields = {"family": family, "dst_len": length, "table": 254, "proto": 3, "scope": scope, "type": 1}
    theirs = encoded(rtmsg, fields, attributes)
    assert route.add_body(network, gateway, index=index) == theirs
    local = network.network_address.is_link_local or network.network_address.is_multicast
    assert route._decode_all(memoryview(theirs)) == (
        [] if six and local else [(index, RoutePlan(destination=str(network), gateway=str(gateway or "")))]
    )


@given(ifname=NAMES, mac=MACS.filter(bool), mtu=st.integers(68, 65535), index=INDEX, up=st.booleans())
def test_a_link_read_back(ifname: str, mac: str, mtu: int, index: int, up: bool) -> None:
    info = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_MACVLAN_MODE", "vepa")]})]}
    attributes = [("IFLA_IFNAME", ifname), ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu), ("IFLA_LINK", 7)]
    body = encoded(ifinfmsg, {"index": index, "flags": int(up)}, [*attributes, ("IFLA_LINKINFO", info)])
    seen = link.decode(memoryview(body))
    assert (seen.ifname, seen.mac, seen.mtu, seen.index, seen.up) == (ifname, mac, mtu, index, up)
    assert (seen.kind, seen.mode, seen.parent_index) == ("macvlan", "vepa", 7)


@given(st.binary(max_size=300))
def test_no_bytes_whatever_upset_the_decoders(noise: bytes) -> None:
    message.attributes(memoryview(noise))
    list(message.messages(memoryview(noise)))


def test_the_parts_of_a_datagram() -> None:
    first = message.message(2, 0x100, 7, body=b"abcde")
    padded = first + bytes(-len(first) % 4)
    second = message.message(3, 0, 8, body=b"")
    seen = list(message.messages(memoryview(padded + second + second[:9])))
    assert [(kind, flags, sequence, bytes(body)) for kind, flags, sequence, body in seen] == [
        (2, 0x100, 7, b"abcde"),
        (3, 0, 8, b""),
    ]


def test_advertisement() -> None:
    # RFC 4861, section 4.4: type 136, override set and solicited not, target, target link-layer address option.
    seen = announce.advertisement(IPv6Address("fd00::5"), "02:00:00:00:00:01")
    target = "fd000000000000000000000000000005"
    assert seen == bytes.fromhex("8800000020000000" + target + "0201020000000001")


@given(packed=st.binary(min_size=16, max_size=16) | st.binary(min_size=4, max_size=4))
@example(packed=bytes(10) + b"\xff\xff\x0a\x00\x00\x01")
@example(packed=bytes(12) + b"\x0a\x00\x00\x01")
@example(packed=bytes(16))
@example(packed=b"\x00\x64\xff\x9b" + bytes(8) + b"\x0a\x00\x00\x01")
def test_addresses_are_written_as_python_does(packed: bytes) -> None:
    assert message.read_ip(memoryview(packed)) == str(ip_address(packed))
