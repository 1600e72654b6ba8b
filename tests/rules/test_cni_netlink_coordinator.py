"""The messages that connect a pod with its node, against pyroute2's encoder and, for nf_tables, its decoder."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni.coordination import RoutePlan, RulePlan
from cni.netlink import link, message, neighbour, nftables, route, rule, veth
from cni.netlink.veth import End
from cni.plan import LinkState
from tests.rules.test_cni_netlink import INDEX, NAMES, encoded, plain

MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
TABLES = st.integers(1, 2**32 - 1)
AT = LinkState(ifname="veth0", index=7)


@given(
    near=NAMES, far=NAMES, macs=st.tuples(MACS, MACS), mtu=st.integers(68, 65535), descriptor=st.integers(0, 1 << 20)
)
def test_new_pair(near: str, far: str, macs: tuple[str, str], mtu: int, descriptor: int) -> None:
    peer = [
        ("IFLA_IFNAME", far),
        ("IFLA_ADDRESS", macs[1]),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", descriptor),
    ]
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}
    attributes: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", near),
        ("IFLA_ADDRESS", macs[0]),
        ("IFLA_MTU", mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}),
    ]
    theirs = encoded(ifinfmsg, {"flags": 1, "change": 1}, attributes)
    ours = veth.create_body(End(near, macs[0]), End(far, macs[1]), mtu=mtu, descriptor=descriptor)
    # Behind the peer's header its attributes are not nested in the ordinary way: whole bodies are compared as they are.
    assert _flagless(ours) == _flagless(theirs)


def _flagless(body: bytes) -> bytes:
    """Without the flag for nested attributes, on the four levels above the peer's own."""
    out = bytearray(body)

    def walk(at: int, end: int, depth: int) -> None:
        while at < end:
            length = int.from_bytes(out[at : at + 2], "little")
            kind = int.from_bytes(out[at + 2 : at + 4], "little") & 0x7FFF
            out[at + 2 : at + 4] = kind.to_bytes(2, "little")
            inside = {0: kind == 18, 1: kind == 2}.get(depth, False)
            if inside:
                walk(at + 4, at + length, depth + 1)
            at += length + (-length % 4)

    walk(16, len(out), 0)
    return bytes(out)


@given(index=INDEX, alias=st.text("abc 0123", max_size=200), queue=st.integers(0, 10**6), rp_filter=st.integers(-1, 2))
def test_settings_of_a_link(index: int, alias: str, queue: int, rp_filter: int) -> None:
    attributes: list[tuple[str, Any]] = [("IFLA_TXQLEN", queue)] if queue else []
    if alias:
        attributes.append(("IFLA_IFALIAS", alias))
    theirs = encoded(ifinfmsg, {"index": index, "flags": 1, "change": 1}, attributes)
    ours = link.settings_body(index, up=True, alias=alias, tx_queue_len=queue, rp_filter=rp_filter)
    assert ours.startswith(theirs)
    tail = plain(bytes(16) + ours[len(theirs) :], 16)[16:]
    # pyroute2 cannot write IFLA_INET_CONF; tests/node shows what the kernel makes of it.
    assert tail == (bytes.fromhex(f"14001a00100002000c000100080008000{rp_filter}000000") if rp_filter >= 0 else b"")


def test_nothing_asked_for_is_nothing_changed() -> None:
    assert link.settings_body(3) == encoded(ifinfmsg, {"index": 3}, [])


@given(data=st.data(), six=st.booleans(), table=TABLES)
def test_routes_of_other_tables(data: st.DataObject, six: bool, table: int) -> None:
    bits, kind = (128, IPv6Address) if six else (32, IPv4Address)
    addresses = st.integers(0, 2**bits - 1).map(kind)
    length = data.draw(st.integers(0, bits))
    network = ip_network(f"{data.draw(addresses)}/{length}", strict=False)
    hop, source = (data.draw(st.none() | addresses) for _ in range(2))
    attributes: list[tuple[str, Any]] = [("RTA_DST", str(network.network_address))] if length else []
    if hop is not None:
        attributes.append(("RTA_GATEWAY", str(hop)))
    attributes.append(("RTA_OIF", 7))
    if source is not None:
        attributes.append(("RTA_PREFSRC", str(source)))
    if table > 255:
        attributes.append(("RTA_TABLE", table))
    fields = {
        "family": 10 if six else 2,
        "dst_len": length,
        "table": table if table < 256 else 0,
        "proto": 3,
        "scope": 253 if hop is None and not six else 0,
        "type": 1,
    }
    wanted = RoutePlan(destination=str(network), gateway=str(hop or ""), source=str(source or ""), table=table)
    made = route.request(AT, wanted)
    assert made.body == encoded(rtmsg, fields, attributes)
    assert (made.kind, made.flags) == (24, message.F_CREATE | message.F_EXCL)
    assert route.request(AT, wanted, replace=True).flags == message.F_CREATE | message.F_REPLACE
    assert route.remove(AT, wanted).body == encoded(
        rtmsg,
        {**fields, "proto": 0, "scope": 255, "type": 0},
        [one for one in attributes if one[0] != "RTA_PREFSRC"],
    )


@given(six=st.booleans(), table=st.integers(1, 252), metric=st.integers(1, 2**31), onlink=st.booleans(), data=st.data())
def test_a_route_that_is_read_is_written_as_it_was(
    six: bool, table: int, metric: int, onlink: bool, data: st.DataObject
) -> None:
    addresses = st.integers(1, 2**32 - 1).map(lambda number: ip_address(number + (0xFD << 120 if six else 0)))
    hop = str(data.draw(addresses))
    wanted = RoutePlan(
        destination=str(ip_network(data.draw(addresses))),
        gateway=hop,
        table=table,
        onlink=onlink,
        metric=metric,
        protocol=data.draw(st.integers(3, 255)),
        metrics=bytes((8, 0, 2, 0, 120, 5, 0, 0)),
    )
    body = route.request(AT, wanted).body
    assert route._decode_all(memoryview(body)) == [(7, wanted)]


def test_each_next_hop_is_a_route_of_its_own() -> None:
    hops = [{"oif": index, "flags": 4 * (index == 3), "attrs": [["RTA_GATEWAY", f"fd06::{index}"]]} for index in (2, 3)]
    fields = {"family": 10, "table": 254, "proto": 3, "type": 1}
    body = encoded(rtmsg, fields, [("RTA_PRIORITY", 1024), ("RTA_MULTIPATH", hops)])
    assert [
        (index, one.destination, one.gateway, one.onlink, one.metric)
        for index, one in route._decode_all(memoryview(body))
    ] == [(2, "::/0", "fd06::2", False, 1024), (3, "::/0", "fd06::3", True, 1024)]


@pytest.mark.parametrize(
    ("destination", "length", "table", "kind"),
    [("fe80::", 64, 254, 1), ("ff00::", 8, 254, 1), ("fd00::", 64, 255, 1), ("fd00::", 64, 254, 7)],
)
def test_routes_that_nobody_moves(destination: str, length: int, table: int, kind: int) -> None:
    fields = {"family": 10, "dst_len": length, "table": table, "type": kind}
    body = encoded(rtmsg, fields, [("RTA_DST", destination), ("RTA_OIF", 2)])
    assert route._decode_all(memoryview(body)) == []


@given(
    source=st.none() | st.ip_addresses(),
    six=st.booleans(),
    priority=st.none() | st.integers(1, 32765),
    numbers=st.tuples(TABLES, st.integers(0, 2**32 - 1), st.integers(0, 255)),
)
def test_rules(
    source: IPv4Address | IPv6Address | None, six: bool, priority: int | None, numbers: tuple[int, int, int]
) -> None:
    table, mark, protocol = numbers
    version = source.version if source is not None else 6 if six else 4
    attributes: list[tuple[str, Any]] = []
    if source is not None:
        attributes.append(("FRA_SRC", str(source)))
    if priority is not None:
        attributes.append(("FRA_PRIORITY", priority))
    if mark:
        attributes.append(("FRA_FWMARK", mark))
    attributes.append(("FRA_TABLE", table))
    if protocol:
        attributes.append(("FRA_PROTOCOL", protocol))
    fields = {
        "family": 2 if version == 4 else 10,
        "src_len": 0 if source is None else source.max_prefixlen,
        "table": table if table < 256 else 0,
        "action": 1,
    }
    theirs = encoded(fibmsg, fields, attributes)
    wanted = RulePlan(
        version=version,
        table=table,
        source="" if source is None else f"{source}/{source.max_prefixlen}",
        mark=mark,
        priority=priority,
    )
    assert rule.add(wanted, protocol=protocol).body == rule.remove(wanted, protocol=protocol).body == theirs
    seen = rule._decode(memoryview(theirs))
    if table in {253, 254, 255}:
        assert seen is None, "every namespace has it"
    else:
        assert seen == rule.Listed(
            plan=msgspec.structs.replace(wanted, priority=priority or 0),
            protocol=protocol,
            everything=source is None and not mark,
        )


@given(address=st.ip_addresses(), mac=MACS)
def test_neighbours(address: IPv4Address | IPv6Address, mac: str) -> None:
    fields = {"family": 2 if address.version == 4 else 10, "ifindex": 7, "state": 0x80}
    theirs = encoded(ndmsg, fields, [("NDA_DST", str(address)), ("NDA_LLADDR", mac)])
    assert neighbour.put(AT, str(address), mac).body == theirs
    assert neighbour._decode(memoryview(theirs)) == (7, 0x80, str(address), mac)
    theirs = encoded(ndmsg, {**fields, "state": 0}, [("NDA_DST", str(address))])
    assert neighbour.remove(7, str(address), where="x").body == theirs


@pytest.mark.parametrize("version", [4, 6])
def test_marking_as_it_is_read(version: int) -> None:
    messages = nftables.marking(version, ifname="veth0", mark=1)
    assert [kind for kind, _, _ in messages] == [0xA00, 0xA03, 0xA03, 0xA06, 0xA06]
    table, before, after, incoming, outgoing = (
        _decoded(kind, body)
        for kind, (_, _, body) in zip(
            (nft_table_msg, nft_chain_msg, nft_chain_msg, nft_rule_msg, nft_rule_msg), messages, strict=True
        )
    )
    assert {one["nfgen_family"] for one in (table, before, after, incoming, outgoing)} == {2 if version == 4 else 10}
    assert table.get_attr("NFTA_TABLE_NAME") == "spiderpool"
    chains = []
    for one in (before, after):
        hook = one.get_attr("NFTA_CHAIN_HOOK")
        number, priority = hook.get_attr("NFTA_HOOK_HOOKNUM"), hook.get_attr("NFTA_HOOK_PRIORITY")
        chains.append((one.get_attr("NFTA_CHAIN_NAME"), one.get_attr("NFTA_CHAIN_TYPE"), number, priority))
    assert chains == [("prerouting", "filter", 0, -150), ("output", "route", 3, -150)]
    assert [one.get_attr("NFTA_RULE_CHAIN") for one in (incoming, outgoing)] == ["prerouting", "output"]
    assert _expressions(incoming) == ["meta", "cmp", "ct", "bitwise", "cmp", "immediate", "meta", "ct"]
    assert _expressions(outgoing) == ["ct", "cmp", "meta"]


def _decoded(kind: Any, body: bytes) -> Any:
    found = kind(message.message(0, 0, 1, body=body))
    found.decode()
    return found


def _expressions(one: Any) -> list[str]:
    return [each.get_attr("NFTA_EXPR_NAME") for each in one.get_attr("NFTA_RULE_EXPRESSIONS")]
