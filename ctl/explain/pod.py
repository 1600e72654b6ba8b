"""`spiderpoolctl explain pod`: for each NIC where its pools are named, which may serve it in which order, and why.

What selection accepts is then claimed in copies of the pools' books, as their owners would: so it is known, too, which
pool is full and which address would come out. Pure.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from api.reasons import Reason, Verdict
from ctl.explain.scene import Plugin, Scene, Subject
from ctl.output import table
from ipam.candidates import VERSIONS, SelectionRequest, pool_version
from ipam.ledger import Ledger
from ipam.operations import Claim, Granted, Refused
from ipam.selection import Selection, SelectionError, select
from ipam.territory import PoolError

_UNKNOWN = "unknown"
"""Node or container of a claim that nobody makes: a book takes none that is empty."""


class Candidate(Struct, frozen=True, kw_only=True):
    """What would become of one pool."""

    version: int
    """IP version; 0 where the pool is of no family that was asked for."""
    pool: str
    order: int = 0
    """Its turn, from 1; 0: it is not tried."""
    accepted: bool = False
    address: str = ""
    """What the NIC gets or has, from the first pool that has one."""
    reason: Reason | None = None


class Holding(Struct, frozen=True, kw_only=True):
    """An address that the pod has."""

    address: str
    pool: str
    nic: str
    node: str
    container: str
    kept: bool
    """Nothing carries it; it waits for the next pod of this name."""
    uid: str
    why: str
    """What selection says of its pool now."""


class NicExplained(Struct, frozen=True, kw_only=True):
    """One NIC."""

    nic: str
    network: str = ""
    source: str = ""
    candidates: tuple[Candidate, ...] = ()
    error: str = ""
    whole: bool = False
    """Whether it gets its addresses together with the pod's other NICs, or none of them does."""
    cause: str = ""
    """As in the answer to an ADD: `wrong_input`, `no_available_pool`, `ip_used_out`."""
    notes: tuple[str, ...] = ()


class PodExplained(Struct, frozen=True, kw_only=True):
    """All of it. With `--output json` this is what is printed."""

    pod: str
    uid: str
    node: str
    state: str
    workload: str
    fixed: bool
    nics: tuple[NicExplained, ...]
    holds: tuple[Holding, ...]
    notes: tuple[str, ...] = ()


def explain(scene: Scene, subject: Subject, plugins: Sequence[Plugin]) -> PodExplained:
    """What allocation would decide now for each of the NICs."""
    books = Books(scene)
    nics = tuple(_nic(scene, subject, plugin, books) for plugin in plugins)
    meta, pod = subject.pod.metadata, subject.pod
    without = [nic.nic for nic in nics if nic.whole and nic.error]
    together = (
        (f"its NICs get addresses together or not at all, and {', '.join(without)} gets none",) if without else ()
    )
    return PodExplained(
        pod=f"{meta.namespace}/{meta.name}",
        uid=meta.uid,
        node=pod.spec.node_name,
        state=pod.phase_text,
        workload=str(subject.workload or ""),
        fixed=subject.fixed is not None,
        nics=nics,
        holds=tuple(_holdings(subject, nics)),
        notes=(*subject.notes, *scene.installation.notes, *together),
    )


class Books:
    """Copies of pools' books. What a NIC was granted in one is gone for the next NIC."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._books: dict[str, Ledger | Reason] = {}

    def claim(self, name: str, claim: Claim, *, keep: bool) -> Granted | Reason:
        """What a pool would answer. With `keep` what it grants stays granted."""
        book = self._book(name)
        if isinstance(book, Reason):
            return book
        outcome = book.apply([claim], now=self._scene.now)
        (answer,) = outcome.answers
        if isinstance(answer, Granted) and keep:
            return answer
        book.revert(outcome)
        assert isinstance(answer, Granted | Refused)
        return answer.reason if isinstance(answer, Refused) else answer

    def holds(self, name: str, claim: Claim) -> bool:
        """Whether a pool has an address of the NIC, or of its name, already."""
        book = self._book(name)
        return not isinstance(book, Reason) and (
            book.find(claim.uid, claim.nic) is not None or (claim.fixed and book.knows(claim.pod))
        )

    def _book(self, name: str) -> Ledger | Reason:
        if name not in self._books:
            try:
                self._books[name] = self._scene.book(name)
            except PoolError as error:
                self._books[name] = Reason(predicate="status", pool=name, wanted="readable", seen=str(error))
        return self._books[name]


def _nic(scene: Scene, subject: Subject, plugin: Plugin, books: Books) -> NicExplained:
    installation = scene.installation
    request = SelectionRequest(
        pod=subject.pod,
        namespace=subject.namespace,
        node=subject.node,
        nic=plugin.nic,
        default_ipv4=plugin.default_ipv4,
        default_ipv6=plugin.default_ipv6,
        clean_gateway=plugin.clean_gateway,
        ips=plugin.ips,
        enable_ipv4=installation.config.enable_ipv4,
        enable_ipv6=installation.config.enable_ipv6,
        enable_subnets=installation.config.enable_spider_subnet,
        automatic_pools=installation.config.enable_auto_pool_for_application,
        cluster_network=installation.cluster_network,
        agent_namespace=installation.namespace,
        workload=subject.workload,
        holds=_kept(subject),
    )
    shown = NicExplained(nic=plugin.nic, network=plugin.network, notes=plugin.notes)
    try:
        selection = select(request, scene.pools)
    except SelectionError as error:
        return structs.replace(
            shown,
            error=str(error).partition(": ")[0] if error.explanation.considered else str(error),
            cause=error.cause,
            candidates=tuple(_judged(error.explanation.considered, plugin.nic, scene)),
        )
    candidates = _tried(subject, selection, books, scene)
    missing = [
        f"IPv{version}"
        for version in VERSIONS
        if any(each.version == version for each in candidates)
        and not any(each.version == version and each.address for each in candidates)
    ]
    return structs.replace(
        shown,
        source=selection.source,
        whole=selection.whole,
        candidates=tuple(candidates),
        error=f"no {' and '.join(missing)} address" if missing else "",
        cause="ip_used_out" if missing else "",
    )


def _kept(subject: Subject) -> frozenset[tuple[str, str]]:
    """As allocation has it from the SpiderEndpoint, which follows the records."""
    if subject.fixed is None:
        return frozenset()
    return frozenset((record.nic, pool) for pool, mine in subject.records.items() for _, record in mine)


def _tried(subject: Subject, selection: Selection, books: Books, scene: Scene) -> list[Candidate]:
    """The pools that selection accepts, in the order in which they are asked; behind them those that it rejects."""
    nic = selection.asked
    claim = Claim(
        pod=subject.key,
        uid=subject.pod.metadata.uid or subject.key,
        nic=nic.nic,
        node=subject.pod.spec.node_name or _UNKNOWN,
        cid=_container(subject, nic.nic),
        fixed=subject.fixed is not None,
        moving=subject.moving,
    )
    found: list[Candidate] = []
    for version, names, wished in ((4, nic.ipv4, nic.wished_ipv4), (6, nic.ipv6, nic.wished_ipv6)):
        found += _asked(version, names, structs.replace(claim, address=wished), books)
    tried = {(each.version, each.pool) for each in found}
    rejected = [each for each in _judged(selection.explanation.considered, nic.nic, scene) if not each.accepted]
    return [*found, *(each for each in rejected if (each.version, each.pool) not in tried)]


def _asked(version: int, names: Sequence[str], claim: Claim, books: Books) -> list[Candidate]:
    """Claims in a family's pools; one that serves the NIC already goes first."""
    found: list[Candidate] = []
    had = False
    for order, name in enumerate(sorted(names, key=lambda name: not books.holds(name, claim)), start=1):
        answer = books.claim(name, claim, keep=not had)
        if isinstance(answer, Reason):
            found.append(Candidate(version=version, pool=name, order=order, reason=answer))
            # An address that it has, and that is not free yet: it is not to get a second one.
            had = had or answer.predicate == "held"
            continue
        found.append(
            Candidate(version=version, pool=name, order=order, accepted=True, address="" if had else answer.address)
        )
        had = True
    return found


def _container(subject: Subject, nic: str) -> str:
    """The one that the record has, so that the claim changes nothing; else any."""
    mine = [record for records in subject.records.values() for _, record in records if record.nic == nic]
    return next((record.cid for record in mine if record.cid), _UNKNOWN)


def _judged(verdicts: Sequence[Verdict], nic: str, scene: Scene) -> list[Candidate]:
    """Selection's verdicts for a NIC. A verdict does not say for which family it was asked, a pool has only one."""
    found = []
    for verdict in verdicts:
        if verdict.nic and verdict.nic != nic and not verdict.nic.isdigit():
            continue
        pool = scene.pools.get(verdict.pool)
        version = pool_version(pool) if pool is not None else 0
        found.append(Candidate(version=version, pool=verdict.pool, accepted=verdict.accepted, reason=verdict.reason))
    return found


def _holdings(subject: Subject, nics: Sequence[NicExplained]) -> list[Holding]:
    by_nic: Mapping[str, NicExplained] = {nic.nic: nic for nic in nics}
    return [
        Holding(
            address=address,
            pool=pool,
            nic=record.nic,
            node=record.node,
            container=record.cid,
            kept=record.kept,
            uid=record.pod_uid,
            why=_why(pool, by_nic.get(record.nic)),
        )
        for pool, mine in sorted(subject.records.items())
        for address, record in mine
    ]


def _why(pool: str, nic: NicExplained | None) -> str:
    if nic is None:
        return "which NIC it is for was not looked at"
    mine = next((each for each in nic.candidates if each.pool == pool), None)
    if mine is None:
        return f"{nic.source} does not name it now" if nic.source else "it is not named now"
    if mine.order:
        return f"{_ordinal(mine.order)} of {nic.source}"
    if mine.reason is not None:
        return f"it would not be chosen now: {mine.reason}"
    return "it is among those that may serve it"


def _ordinal(number: int) -> str:
    return {1: "the first", 2: "the second", 3: "the third"}.get(number, f"number {number}")


# ---------------------------------------------------------------- as text


def render(found: PodExplained, *, wide: bool) -> str:
    """As text: the pod, each NIC with its pools in the order in which they are tried, what the pod has."""
    head = [
        f"pod {found.pod}: {found.state or 'state unknown'}, on {found.node or 'no node yet'}"
        + (f", of {found.workload}" if found.workload else "")
        + (", addresses are fixed" if found.fixed else ""),
        *((f"uid {found.uid}",) if wide else ()),
        *(f"note: {note}" for note in found.notes),
    ]
    parts = ["\n".join(head), *(_rendered(nic, wide=wide) for nic in found.nics)]
    if found.holds:
        rows = [("ADDRESS", "POOL", "NIC", "NODE", "STATE", *(("CONTAINER", "POD-UID") if wide else ()), "POOL-NOW")]
        rows += [
            (
                *(each.address, each.pool, each.nic, each.node, "kept" if each.kept else "used"),
                *((each.container, each.uid) if wide else ()),
                each.why,
            )
            for each in found.holds
        ]
        parts.append(f"it has\n{table(rows)}")
    else:
        parts.append("it has no address")
    return "\n\n".join(parts) + "\n"


def _rendered(nic: NicExplained, *, wide: bool) -> str:
    lines = [f"{nic.nic}{f' (network {nic.network})' if nic.network else ''}: {nic.source or 'no pool may serve it'}"]
    lines += [f"note: {note}" for note in nic.notes]
    if nic.error:
        lines.append(f"refused ({nic.cause}): {nic.error}")
    if nic.candidates:
        rows = [("FAMILY", "ORDER", "POOL", "VERDICT", *(("PREDICATE", "WANTED", "FOUND") if wide else ("WHY",)))]
        for each in nic.candidates:
            reason = each.reason
            why = ("", "", "") if reason is None else (reason.predicate, reason.wanted, reason.seen)
            rows.append(
                (
                    f"IPv{each.version}" if each.version else "",
                    str(each.order) if each.order else "",
                    each.pool,
                    each.address or ("accepted" if each.accepted else "refused" if each.order else "rejected"),
                    *(why if wide else (str(reason) if reason is not None else "",)),
                )
            )
        lines.append(table(rows))
    return "\n".join(lines)
