"""What a link that is set down gets back: what the kernel does not make by itself, in an order in which it takes it."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.belongings import NODAD, TENTATIVE, AddressBack, HeldAddress, HeldRoute, addresses_back, routes_back
from cni.netlink.belongings import Belongings, decode_route, requests
from cni.netlink.message import attribute, attributes, u32
from cni.plan import LinkState

PERMANENT, TEMPORARY, DEPRECATED = 0x80, 0x01, 0x20
ETH1, ETH2, OTHER = 2, 3, 9


def held(address: str, flags: int = PERMANENT, **more: Any) -> HeldAddress:
    return HeldAddress(index=ETH1, address=address, flags=flags, **more)


def to(destination: str, *indices: int, **more: Any) -> HeldRoute:
    return HeldRoute(indices=frozenset(indices), **{"version": 4, "destination": destination, "table": 254, **more})


def test_addresses_come_back_the_oldest_first_and_in_use_at_once() -> None:
    newer, older = held("fd00::2/64"), held("fd00::1/64", PERMANENT | DEPRECATED)
    assert addresses_back([newer, older]) == [
        AddressBack(older, (PERMANENT | DEPRECATED | NODAD, PERMANENT | DEPRECATED)),
        AddressBack(newer, (PERMANENT | NODAD, PERMANENT)),
    ]
    # It was so anyway; it was still looked for, or somebody else's.
    for flags in (PERMANENT | NODAD, PERMANENT | TENTATIVE, TENTATIVE | 0x08):
        assert addresses_back([held("fd00::1/64", flags)])[0].flags == (flags,)


def test_addresses_that_the_kernel_makes_anew() -> None:
    advertised, link_local = held("2001:db8::1/64", 0, origin=2), held("fe80::1/64", origin=3)
    assert addresses_back([held("2001:db8::2/64", TEMPORARY), advertised, link_local]) == []
    by_hand = held("fe80::2/64")
    assert [one.held for one in addresses_back([by_hand])] == [by_hand]


def test_routes_come_back_behind_those_that_they_need() -> None:
    default = to("default", ETH1, via=True)
    sourced = to("10.1.0.0/16", ETH1, sourced=True)
    both = to("10.2.0.0/16", ETH1, via=True, sourced=True)
    connected = to("10.0.0.0/16", ETH1)
    several = to("10.3.0.0/16", ETH2, OTHER, via=True)
    foreign = to("10.9.0.0/16", OTHER)
    advertised = to("default", ETH1, version=6, via=True, protocol=9)
    listed = [default, advertised, both, foreign, sourced, connected, several]
    back = routes_back(listed, frozenset({ETH1, ETH2}))
    assert [one.held for one in back] == [connected, sourced, default, several, both]
    assert not any(one.last for one in back)


@given(st.lists(st.sampled_from([ETH1, ETH2, OTHER]), max_size=6, unique=True))
def test_of_routes_to_one_place_the_first_is_the_first_again(order: list[int]) -> None:
    listed = [to("default", one, via=True) for one in order]
    now = [one for one in listed if OTHER in one.indices]
    for back in routes_back(listed, frozenset({ETH1, ETH2})):
        now.insert(len(now) if back.last else 0, back.held)
    assert sorted(map(repr, now)) == sorted(map(repr, listed))
    assert now[:1] == listed[:1]


def route_body(family: int, *parts: bytes, flags: int = 0, table: int = 254, length: int = 16) -> memoryview:
    return memoryview(struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 3, 0, 1, flags) + b"".join(parts))


def hop(index: int, flags: int, gateway: str) -> bytes:
    inner = attribute(5, socket.inet_aton(gateway))
    return struct.pack("=HBBi", 8 + len(inner), flags, 4, index) + inner


def test_a_route_is_said_as_it_was_listed_but_for_how_it_fares() -> None:
    destination, metrics = attribute(1, socket.inet_aton("10.1.0.0")), attribute(8, attribute(2, u32(1400)))
    oif, gateway = attribute(4, u32(ETH1)), attribute(5, socket.inet_aton("10.0.0.1"))
    number, unknown = attribute(30, u32(7)), attribute(99, b"abc")
    # Dead, with its link down and no carrier; on the link.
    listed = route_body(socket.AF_INET, destination, oif, gateway, metrics, number, unknown, flags=0x1 | 0x10 | 0x4)
    found = decode_route(listed)
    assert found is not None
    assert found.body == bytes(route_body(socket.AF_INET, destination, oif, gateway, metrics, unknown, flags=0x4))
    assert (found.indices, found.via, found.destination) == (frozenset({ETH1}), True, "10.1.0.0/16")

    hops = hop(ETH1, 0x1 | 0x10, "10.0.0.1") + hop(OTHER, 0x4, "10.9.0.1")
    found = decode_route(route_body(socket.AF_INET, destination, attribute(9, hops)))
    assert found is not None
    said = hop(ETH1, 0, "10.0.0.1") + hop(OTHER, 0x4, "10.9.0.1")
    assert (found.indices, bytes(attributes(memoryview(found.body)[12:])[9])) == (frozenset({ETH1, OTHER}), said)


def test_a_route_that_ends() -> None:
    body = route_body(socket.AF_INET6, attribute(12, struct.pack("=IIi", 0, 0, 12_345)), length=0)
    found = decode_route(body)
    assert found is not None
    assert attributes(memoryview(found.body)[12:]) == {23: memoryview(u32(124))}
    assert decode_route(route_body(socket.AF_INET, table=255)) is None


@given(st.binary(min_size=12, max_size=80))
def test_whatever_is_listed(body: bytes) -> None:
    decode_route(memoryview(body))


@pytest.mark.parametrize(("last", "flags"), [(False, 0x400), (True, 0xC00)])
def test_what_is_asked_for(*, last: bool, flags: int) -> None:
    routes = ((to("default", OTHER, via=True),) if last else ()) + (to("default", ETH1, via=True, body=b"route"),)
    address = held("fd00::1/64", body=b"body")
    links = (LinkState(ifname="eth1", index=ETH1),)
    asked = requests(Belongings(links, (address,), routes, ((ETH1, "10.0.0.9", "02:00:00:00:00:09"),)))
    assert [(one.kind, one.flags) for one in asked] == [(20, 0x600), (20, 0x500), (24, flags), (28, 0x500)]
    assert asked[0].body == b"body" + attribute(8, u32(PERMANENT | NODAD))
    assert asked[1].body == b"body" + attribute(8, u32(PERMANENT))
    assert asked[0].doing == "give address fd00::1/64 back to eth1"
