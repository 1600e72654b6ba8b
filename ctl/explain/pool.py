"""`spiderpoolctl explain pool`: whom a pool serves, where its addresses are, and why it would refuse now. Pure."""

from msgspec import Struct, structs

from api import annotations
from api.ippool import SpiderIPPool
from api.reasons import Reason
from ctl import addresses
from ctl.errors import Failure
from ctl.explain.scene import Scene
from ctl.output import table
from ipam.ledger import Ledger
from ipam.operations import Claim, Refused
from ipam.ranges import Ranges
from ipam.territory import PoolError, territory

_RANGES = 5
"""Of a kind of address, that are shown as text."""
_PROBE = Claim(pod="default/example", uid="00000000-0000-0000-0000-000000000000", nic="eth0", node="node", cid="0" * 12)
"""A pod that there is not: what it is answered, any new pod would be."""


class Rule(Struct, frozen=True):
    """One condition of the pool's on who may have its addresses."""

    field: str
    wanted: str


class Part(Struct, frozen=True):
    """Some of the pool's addresses."""

    state: str
    """`used`, `kept`, `cool-down`, `quarantine`, `reserved`, `overlapping`, `free`; `outside` of the pool's ranges."""
    count: int
    ranges: tuple[str, ...]


class PoolExplained(Struct, frozen=True, kw_only=True):
    """All of it. With `--output json` this is what is printed."""

    name: str
    version: int
    subnet: str
    gateway: str
    default: bool
    """Whether pods that name no pool may use it."""
    serves: tuple[Rule, ...]
    """All of them have to hold; none: it serves everybody."""
    total: int
    parts: tuple[Part, ...]
    """Together they are `total`, but for those outside."""
    records: int
    max_records: int
    bytes: int
    """Of the pool's object, rounded up."""
    refuses: Reason | None
    """What a pod that it serves would be told; None: it would get an address."""
    next_address: str
    """Which one."""
    overlaps: str = ""
    error: str = ""
    """The object cannot be read."""
    notes: tuple[str, ...] = ()


def explain(scene: Scene, name: str) -> PoolExplained:
    """What there is to say of a pool. Raises `Failure`: there is none of this name."""
    pool = scene.pools.get(name)
    if pool is None:
        msg = f"no SpiderIPPool is named {name}"
        raise Failure(msg)
    shown = _bare(scene, pool)
    try:
        book = scene.book(name)
    except PoolError as error:
        reason = Reason(predicate="status", pool=name, wanted="readable", seen=str(error))
        return structs.replace(shown, refuses=reason, error=str(error))
    book.apply([], now=scene.now)
    outcome = book.apply([_PROBE], now=scene.now)
    (answer,) = outcome.answers
    book.revert(outcome)
    overlap = scene.atlas.overlap(name)
    return structs.replace(
        shown,
        total=territory(pool).addresses.size,
        parts=_parts(scene, book, overlap.addresses if overlap is not None else Ranges(book.version)),
        records=len(book.records),
        bytes=book.object_bytes,
        refuses=answer.reason if isinstance(answer, Refused) else None,
        next_address="" if isinstance(answer, Refused) else getattr(answer, "address", ""),
        overlaps=str(overlap) if overlap is not None else "",
    )


def _bare(scene: Scene, pool: SpiderIPPool) -> PoolExplained:
    """What the spec says."""
    spec = pool.spec
    return PoolExplained(
        name=pool.metadata.name,
        version=addresses.version_of(pool),
        subnet=spec.subnet,
        gateway=spec.gateway or "",
        default=spec.default,
        serves=tuple(_rules(pool, scene.installation.namespace)),
        total=0,
        parts=(),
        records=0,
        max_records=scene.installation.max_records,
        bytes=0,
        refuses=None,
        next_address="",
        notes=scene.installation.notes,
    )


def _rules(pool: SpiderIPPool, namespace: str) -> list[Rule]:
    """In the order of the predicates. A list of names makes the selector of the same object void."""
    spec = pool.spec
    found: list[Rule] = []
    if spec.node_name:
        found.append(Rule("nodeName", ", ".join(spec.node_name)))
    elif spec.node_affinity is not None:
        found.append(Rule("nodeAffinity", str(spec.node_affinity)))
    if spec.namespace_name:
        found.append(Rule("namespaceName", ", ".join(spec.namespace_name)))
    elif spec.namespace_affinity is not None:
        found.append(Rule("namespaceAffinity", str(spec.namespace_affinity)))
    if annotations.OWNER_APPLICATION_NAME in pool.metadata.labels:
        keys = spec.pod_affinity.match_labels if spec.pod_affinity is not None else {}
        kind, name = keys.get(annotations.APP_KIND, "?"), keys.get(annotations.APP_NAME, "?")
        found.append(Rule("workload", f"{kind} {keys.get(annotations.APP_NAMESPACE, '?')}/{name}"))
        return found
    if spec.pod_affinity is not None:
        found.append(Rule("podAffinity", str(spec.pod_affinity)))
    if spec.multus_name:
        full = [name if "/" in name else f"{namespace}/{name}" for name in spec.multus_name]
        found.append(Rule("multusName", ", ".join(full)))
    return found


def _parts(scene: Scene, book: Ledger, shared: Ranges) -> tuple[Part, ...]:
    """Each address of the pool in the first part that it fits."""
    version, land = book.version, territory(book.pool).addresses

    def those(numbers: list[int]) -> Ranges:
        return Ranges.of(version, [(number, number) for number in numbers])

    records, withheld = book.records, book.withheld
    waiting = [ip for ip, entry in withheld.items() if entry.until > scene.now]
    owed = [ip for ip in waiting if withheld[ip].owed is not None]
    kinds = (
        ("used", those([ip for ip, record in records.items() if not record.kept])),
        ("kept", those([ip for ip, record in records.items() if record.kept])),
        *((("provider", those(owed)),) if owed else ()),
        ("quarantine", those([ip for ip in waiting if ip not in owed and not withheld[ip].resting])),
        ("reserved", addresses.ranges_of(scene.reserved, version)),
        ("overlapping", shared),
        ("cool-down", those([ip for ip in waiting if withheld[ip].resting])),
    )
    left = land
    found: list[Part] = []
    for state, ranges in kinds:
        mine = left.intersection(ranges)
        left = left.difference(mine)
        found.append(_part(state, mine))
    found.append(_part("free", left))
    outside = those(list(records)).difference(land)
    return (*found, *((_part("outside", outside),) if outside else ()))


def _part(state: str, ranges: Ranges) -> Part:
    return Part(state=state, count=ranges.size, ranges=tuple(ranges.format()))


# ---------------------------------------------------------------- as text


def render(found: PoolExplained, *, wide: bool) -> str:
    """As text: whom it serves, where its addresses are, what a new pod would be told."""
    gateway = f", gateway {found.gateway}" if found.gateway else ""
    default = "pods that name no pool may use it" if found.default else "only pods that name it may use it"
    head = [
        f"pool {found.name}: IPv{found.version}, {found.subnet}{gateway}; {default}",
        *(f"note: {note}" for note in found.notes),
    ]
    parts = ["\n".join(head)]
    if found.serves:
        rows = [("SERVES-ONLY", "WANTED"), *((rule.field, rule.wanted) for rule in found.serves)]
        parts.append(table(rows))
    else:
        parts.append("it serves every pod and network")
    if not found.error:
        counts = [(part.state, str(part.count), _which(part, wide=wide)) for part in found.parts if part.count or wide]
        parts.append(table([("STATE", "ADDRESSES", "WHICH"), *counts, ("total", str(found.total), "")]))
        parts.append(f"{found.records} of at most {found.max_records} records, object of {found.bytes} bytes")
    if found.overlaps:
        parts.append(f"in two pools, granted by neither: {found.overlaps}")
    if found.refuses is None:
        parts.append(f"a new pod would get {found.next_address}")
    else:
        parts.append(f"a new pod would be refused: {found.refuses}")
    return "\n\n".join(parts) + "\n"


def _which(part: Part, *, wide: bool) -> str:
    cut = part.ranges if wide else part.ranges[:_RANGES]
    return ", ".join(cut) + (", ..." if len(cut) < len(part.ranges) else "")
