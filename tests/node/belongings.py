"""What the segment's uplinks have that a link loses when it is set down: given to them, and read, by pyroute2."""

import asyncio
import socket
from typing import Any

from pyroute2 import IPRoute

SLAVES = ("up0", "up1")
_ADDRESS = ("IFA_ADDRESS", "IFA_LOCAL", "IFA_LABEL", "IFA_PROTO", "IFA_RT_PRIORITY")
_ROUTE = ("RTA_DST", "RTA_GATEWAY", "RTA_TABLE", "RTA_PRIORITY", "RTA_PREFSRC", "RTA_METRICS", "RTA_MULTIPATH")
_PARTS = ("dst_len", "table", "type", "proto", "scope", "flags")


async def belongings() -> set[tuple[object, ...]]:
    """Addresses in their order, routes and neighbours, as pyroute2 reads them; what the kernel counts left out."""

    def look() -> set[tuple[object, ...]]:
        with IPRoute() as route:
            names = {route.link_lookup(ifname=one)[0]: one for one in SLAVES}
            addresses = [one for one in route.get_addr() if one["index"] in names]
            neighbours = [one for one in route.get_neighbours() if one["ifindex"] in names and one["state"] & 0x80]
            routes = [one for family in (socket.AF_INET, socket.AF_INET6) for one in route.get_routes(family=family)]
        return {
            *(("address", names[one["index"]], at, *_told(one, *_ADDRESS)) for at, one in enumerate(addresses)),
            *(("neighbour", names[one["ifindex"]], *_told(one, "NDA_DST", "NDA_LLADDR")) for one in neighbours),
            *(
                ("route", names[index], *_told(one, *_ROUTE), *(one[part] for part in _PARTS))
                for one in routes
                for index in _through(one) & names.keys()
                if one["table"] != 255  # the kernel's own, where link-local addresses come a second later
            ),
        }

    return await asyncio.to_thread(look)


def _told(one: Any, *names: str) -> tuple[str, ...]:
    flags = one.get_attr("IFA_FLAGS")  # whether a link-local address has been looked for yet is left out
    return (*(str(one.get_attr(name)) for name in names), str(flags and flags & ~0x40), str(one.get("prefixlen")))


def _through(one: Any) -> set[int]:
    hops = one.get_attr("RTA_MULTIPATH") or ()
    return {one.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)}


def settle() -> None:
    """Give the slaves-to-be what somebody may have given them: up0 half of it, which is in use, and up1 the rest."""
    with IPRoute() as route:
        up0, up1 = (route.link_lookup(ifname=name)[0] for name in ("up0", "up1"))
        for index, number in ((up0, 77), (up1, 78)):
            route.addr("replace", index=index, address=f"10.{number}.0.9", prefixlen=24)
            for flags in (2, 0):  # in use at once, though it is an address that is looked for on the segment
                route.addr("replace", index=index, address=f"fd{number}::9", prefixlen=64, flags=flags)
        route.addr("replace", index=up0, address="fd79::9", prefixlen=64, flags=2, preferred=3000, valid=6000)
        route.neigh("replace", dst="10.77.0.8", lladdr="02:00:00:00:00:08", ifindex=up0, state="permanent")
    add_routes(
        "up0",
        {"dst": "10.60.0.0/16", "scope": "link"},
        {"dst": "10.61.0.0/16", "gateway": "10.60.0.1", "metrics": {"mtu": 1400}},
        {"dst": "10.62.0.0/16", "gateway": "10.77.0.7", "table": 300, "priority": 50, "prefsrc": "10.77.0.9"},
        {"dst": "fd60::/64"},
        {"dst": "fd61::/64", "gateway": "fd60::1", "priority": 70},
        {"dst": "fd62::/64", "gateway": "fe80::7", "prefsrc": "fd77::9"},
    )
    hops = [{"gateway": "10.77.0.6"}, {"gateway": "10.78.0.6", "hops": 4}]
    add_routes("up1", {"dst": "10.63.0.0/16", "multipath": hops})


def add_routes(ifname: str, *routes: dict[str, Any]) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        for one in routes:
            route.route("replace", **({} if "multipath" in one else {"oif": index}), **one)
