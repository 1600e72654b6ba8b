"""`spiderpoolctl get`: the objects of a store as tables. Of pools also who holds which address.

With `-o json` or `-o yaml` the objects themselves, as far as this program knows their fields.
"""

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from api.coordinator import SpiderCoordinator
from api.endpoint import SpiderEndpoint
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import COORDINATOR, ENDPOINT, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET, Kind
from api.meta import LabelSelector
from api.multusconfig import SpiderMultusConfig
from api.reservedip import SpiderReservedIP
from api.subnet import SpiderSubnet
from ctl import addresses, output, stores
from ctl.errors import Failure
from ctl.output import table
from ipam.book import Book
from runtime.store.port import Store


class Rendering(Protocol):
    """How the objects of a kind look as text."""

    def __call__(self, items: Sequence[Any], /, *, wide: bool) -> str:
        """The text, which ends with a newline."""
        ...


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl get", description="Show objects; of pools also their counts and the addresses in use."
    )
    parser.add_argument("what", choices=_KINDS, metavar="KIND", help=f"one of {', '.join(_KINDS)}")
    parser.add_argument("name", nargs="*", metavar="NAME", help="only these; NAMESPACE/NAME where there are any")
    parser.add_argument("-n", "--namespace", default="", help="only of this namespace (default: of all)")
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    kind, text = _KINDS[given.what]
    found = asyncio.run(_objects(given.state_dir, kind, given.namespace if kind.namespaced else "", given.name))
    print(output.shown(_list(kind, found), given.output, lambda wide: text(found, wide=wide)), end="")
    return 0


def _list(kind: Kind[Any], items: Sequence[Any]) -> dict[str, Any]:
    """As kubectl prints several objects."""
    head = {"apiVersion": kind.api_version, "kind": kind.kind}
    return {"apiVersion": "v1", "kind": "List", "items": [head | msgspec.to_builtins(item) for item in items]}


async def _objects(state_dir: str, kind: Kind[Any], namespace: str, names: Sequence[str]) -> list[Any]:
    async with stores.opened(state_dir) as store:
        found = await _listed(store, kind, namespace)
    missing = sorted(name for name in names if not any(name in _names(item) for item in found.values()))
    if missing:
        msg = f"no {kind.kind} is named {', '.join(missing)}"
        raise Failure(msg)
    return [item for _, item in sorted(found.items()) if not names or _names(item) & set(names)]


async def _listed(store: Store, kind: Kind[Any], namespace: str) -> dict[tuple[str, str], Any]:
    items = (await store.list(kind, namespace=namespace)).items
    return {(item.metadata.namespace, item.metadata.name): item for item in items}


def _names(item: Any) -> set[str]:
    name, namespace = item.metadata.name, item.metadata.namespace
    return {name, f"{namespace}/{name}"} if namespace else {name}


def render(pools: Sequence[SpiderIPPool], *, wide: bool = False) -> str:
    """Pools as text. One whose object cannot be read shows what is wrong with it instead of its counts."""
    if not pools:
        return "no pools\n"
    more = ("WITHHELD", "GATEWAY", "RANGES", "NAMESPACES", "NODES", "PODS") if wide else ()
    rows = [("NAME", "VERSION", "SUBNET", "ALLOCATED", "TOTAL", "DEFAULT", "DISABLE", *more)]
    books, problems = addresses.books(pools)
    records = [("POOL", "ADDRESS", "POD", "NIC", "NODE", "CONTAINER", "POD-UID", *(("STATE",) if wide else ()))]
    for pool in pools:
        name, spec = pool.metadata.name, pool.spec
        book = books.get(name)
        rows.append(
            (
                *(name, str(addresses.version_of(pool)), spec.subnet, *_counts(book)),
                *(str(spec.default).lower(), str(spec.disable).lower()),
                *(_wide(spec, book) if wide else ()),
            )
        )
        records += [
            (name, a.address, a.pod, a.nic, a.node, a.container, a.uid, *((a.state,) if wide else ()))
            for a in (addresses.held(book) if book else ())
        ]
    parts = [table(rows), *(["", table(records)] if len(records) > 1 else []), *problems.values()]
    return "\n".join(parts) + "\n"


def _counts(book: Book | None) -> tuple[str, str]:
    if book is None:
        return "?", "?"
    return str(len(book.records)), str(book.status().total_ip_count or 0)


def _wide(spec: IPPoolSpec, book: Book | None) -> tuple[str, ...]:
    return (
        str(len(addresses.waiting(book))) if book else "?",
        spec.gateway or "",
        _few(spec.ips),
        ",".join(spec.namespace_name) or _selector(spec.namespace_affinity),
        ",".join(spec.node_name) or _selector(spec.node_affinity),
        _selector(spec.pod_affinity),
    )


def _selector(selector: LabelSelector | None) -> str:
    return "" if selector is None else str(selector).replace(" ", "")


def _few(texts: Sequence[str]) -> str:
    return ",".join(texts[:3]) + (f",... ({len(texts)})" if len(texts) > 3 else "")


def _endpoints(items: Sequence[SpiderEndpoint], *, wide: bool) -> str:
    more = ("POOL4", "POOL6", "POD-UID") if wide else ()
    rows = [("NAMESPACE", "NAME", "NIC", "IPV4", "IPV6", "NODE", "OWNER", *more)]
    for item in items:
        status = item.status
        rows += [
            (
                *(item.metadata.namespace, item.metadata.name, detail.interface, detail.ipv4 or "", detail.ipv6 or ""),
                *(status.current.node, f"{status.owner_controller_type}/{status.owner_controller_name}"),
                *((detail.ipv4_pool or "", detail.ipv6_pool or "", status.current.uid) if wide else ()),
            )
            for detail in status.current.ips
        ]
    return _or_none(rows, "endpoints")


def _reserved(items: Sequence[SpiderReservedIP], *, wide: bool) -> str:
    rows = [("NAME", "VERSION", "ADDRESSES")]
    rows += [
        (
            item.metadata.name,
            str(item.spec.ip_version or ""),
            ",".join(item.spec.ips) if wide else _few(item.spec.ips),
        )
        for item in items
    ]
    return _or_none(rows, "reserved addresses")


def _subnets(items: Sequence[SpiderSubnet], *, wide: bool) -> str:
    more = ("GATEWAY", "RANGES") if wide else ()
    rows = [("NAME", "VERSION", "SUBNET", "ALLOCATED", "TOTAL", *more)]
    rows += [
        (
            *(item.metadata.name, str(item.spec.ip_version or ""), item.spec.subnet),
            *(str(item.status.allocated_ip_count or 0), str(item.status.total_ip_count or 0)),
            *((item.spec.gateway or "", _few(item.spec.ips)) if wide else ()),
        )
        for item in items
    ]
    return _or_none(rows, "subnets")


def _coordinators(items: Sequence[SpiderCoordinator], *, wide: bool) -> str:  # noqa: ARG001 - has no more columns
    rows = [("NAME", "MODE", "POD-CIDR-TYPE", "PHASE")]
    rows += [
        (item.metadata.name, item.spec.mode or "", item.spec.pod_cidr_type or "", item.status.phase or "")
        for item in items
    ]
    return _or_none(rows, "coordinators")


def _multus(items: Sequence[SpiderMultusConfig], *, wide: bool) -> str:  # noqa: ARG001 - has no more columns
    rows = [("NAMESPACE", "NAME", "TYPE")]
    rows += [(item.metadata.namespace, item.metadata.name, item.spec.cni_type or "") for item in items]
    return _or_none(rows, "network attachments")


def _or_none(rows: Sequence[Sequence[str]], what: str) -> str:
    return f"{table(rows)}\n" if len(rows) > 1 else f"no {what}\n"


_KINDS: dict[str, tuple[Kind[Any], Rendering]] = {
    "pools": (IPPOOL, render),
    "endpoints": (ENDPOINT, _endpoints),
    "reservedips": (RESERVEDIP, _reserved),
    "subnets": (SUBNET, _subnets),
    "coordinators": (COORDINATOR, _coordinators),
    "multusconfigs": (MULTUSCONFIG, _multus),
}
