"""What a namespace holds, as lines of text in the words of `ip` and `nft`: two pictures are compared as sets.

The kernel's own (table local, rules that every namespace has, link-local and multicast) is left out.
"""

import socket
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from tests.netns import Netns

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_KINDS = {2: "kernel", 3: "", 4: "static", 9: "ra"}
_NFPROTO = {2: "ip", 10: "ip6"}


def picture(netns: Netns) -> set[str]:
    """All of it."""
    return netns.run(_picture)


def _picture() -> set[str]:
    with IPRoute() as route:
        names = {one["index"]: one.get_attr("IFLA_IFNAME") for one in route.get_links()}
        found = {f"link {name}" for name in names.values() if name != "lo"}
        for one in route.get_addr():
            if one["scope"] != 253 and names[one["index"]] != "lo":
                found.add(f"address {one.get_attr('IFA_ADDRESS')}/{one['prefixlen']} dev {names[one['index']]}")
        for version, family in _FAMILIES.items():
            for one in route.get_routes(family=family):
                found.update(_routes(one, version, names))
            found.update(
                f"neigh {one.get_attr('NDA_DST')} dev {names[one['ifindex']]} lladdr {one.get_attr('NDA_LLADDR')}"
                for one in route.get_neighbours(family=family)
                if one["state"] & 0x80
            )
            found.update(filter(None, (_rule(one, version) for one in route.get_rules(family=family))))
    return found | _filters()


def _routes(one: Any, version: int, names: dict[int, str]) -> set[str]:
    table, to = one.get_attr("RTA_TABLE"), one.get_attr("RTA_DST")
    if table == 255 or str(to).startswith(("fe80", "ff")):
        return set()
    text = f"{table}: " + (f"{to}/{one['dst_len']}" if one["dst_len"] else "default" if version == 4 else "default6")
    hops = one.get_attr("RTA_MULTIPATH") or [one]
    tail = ""
    if version == 4 and one["scope"] == 253:
        tail += " scope link"
    if one.get_attr("RTA_PREFSRC"):
        tail += f" src {one.get_attr('RTA_PREFSRC')}"
    if _KINDS.get(one["proto"], str(one["proto"])):
        tail += f" proto {_KINDS.get(one['proto'], one['proto'])}"
    lines = set()
    for hop in hops:
        via = hop.get_attr("RTA_GATEWAY")
        index = hop.get_attr("RTA_OIF") or hop["oif"]
        lines.add(text + (f" via {via}" if via else "") + f" dev {names[index]}" + tail)
    return lines


def _rule(one: Any, version: int) -> str:
    priority, table = one.get_attr("FRA_PRIORITY") or 0, one.get_attr("FRA_TABLE")
    if table in {253, 254, 255}:
        return ""
    source, mark = one.get_attr("FRA_SRC"), one.get_attr("FRA_FWMARK")
    return (
        f"rule{version} {priority}"
        + (f" from {source}" if source else "")
        + (f" fwmark {mark}" if mark else "")
        + f" lookup {table}"
    )


def _filters() -> set[str]:
    if not Path("/proc/net/netfilter").exists():
        return set()
    found = set()
    for number, family in _NFPROTO.items():
        with NFTables(nfgen_family=number) as tables:
            found |= {f"nft {family} {one.get_attr('NFTA_TABLE_NAME')}" for one in tables.get_tables()}
            for one in tables.get_chains():
                table, chain, kind = (one.get_attr(f"NFTA_CHAIN_{name}") for name in ("TABLE", "NAME", "TYPE"))
                found.add(f"nft {family} {table} {chain} type {kind}")
    return found
