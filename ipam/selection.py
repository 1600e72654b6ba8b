"""Which pools may serve a pod's NICs, in which order, and why the others may not. Pure.

`ipam.candidates` says which pools are asked for, `ipam.predicates` judges each; what is left is ordered by how
specifically a pool is meant for the pod, and equal ones keep the order in which they were written. Everything that was
considered is in the explanation, with the reason.

A pod that names pools for all of its NICs gets them for all at once, or none: the first NIC that asks asks for all.
Where several NICs ask at once each is judged by what it says of itself.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from api.annotations import MULTUS_NETWORKS, AnnotationError
from api.ippool import SpiderIPPool
from api.reasons import Explanation, Verdict
from ipam.candidates import Candidates, NicCandidates, SelectionError, SelectionRequest, candidates, pool_version
from ipam.predicates import Judge
from ipam.wishes import Wish, WishError, unfit, wishes

__all__ = ["NicSelection", "Selection", "SelectionError", "SelectionRequest", "select", "select_together"]


class NicSelection(Struct, frozen=True, kw_only=True):
    """The pools to try for one NIC, best first, by family. A family without any was not asked for."""

    nic: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    clean_gateway: bool
    """Whether the NIC gets no default route."""
    named_ipv4: tuple[str, ...] = ()
    """All that were asked for, in that order: those, too, that a predicate rejected, if they have what is wished."""
    named_ipv6: tuple[str, ...] = ()
    wished_ipv4: str = ""
    """The address that the NIC is to have, without prefix length; empty: any."""
    wished_ipv6: str = ""


class Selection(Struct, frozen=True, kw_only=True):
    """What may serve the pod."""

    nic: str
    """The one that asked."""
    nics: tuple[NicSelection, ...]
    """In the order in which they were written, that of the request among them."""
    explanation: Explanation
    source: str
    """Where the candidates came from, in words."""
    whole: bool = False
    """Whether these are all NICs of the pod, not only the one that asked."""

    @property
    def asked(self) -> NicSelection:
        """The pools of the NIC that asked."""
        return next(item for item in self.nics if item.nic == self.nic)


def select(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> Selection:
    """Choose pools for the NIC that asks, and for those that are served along with it. Raises `SelectionError`."""
    try:
        found = candidates(request, pools)
        return _judged(request, found, pools)
    except AnnotationError as error:
        raise SelectionError(str(error), cause="wrong_input") from error


def select_together(requests: Sequence[SelectionRequest], pools: Mapping[str, SpiderIPPool]) -> Selection:
    """Choose pools for NICs of one pod that ask at the same time, and for those that are served along with them.

    The first request is the one that `Selection.nic` and `source` are of. Raises `SelectionError` of the first NIC that
    nothing may serve.
    """
    if len(requests) == 1:
        return select(requests[0], pools)
    found = [select(structs.replace(request, beside=True), pools) for request in requests]
    nics = {selection.nic: selection.asked for selection in found}
    verdicts = list(found[0].explanation.considered)
    for selection in found:
        nics |= {item.nic: item for item in selection.nics if item.nic not in nics}
        mine = [verdict for verdict in selection.explanation.considered if verdict.nic == selection.nic]
        verdicts = [verdict for verdict in verdicts if verdict.nic != selection.nic] + mine
    return Selection(
        nic=found[0].nic,
        nics=tuple(nics.values()),
        explanation=Explanation(considered=tuple(verdicts)),
        source=found[0].source,
        whole=found[0].whole,
    )


def _judged(request: SelectionRequest, found: Candidates, pools: Mapping[str, SpiderIPPool]) -> Selection:
    judge = Judge(request)
    wished = _wished(request, found)
    verdicts: list[Verdict] = list(found.unmet)
    chosen: list[tuple[NicCandidates, dict[int, tuple[str, ...]]]] = []
    for item in found.nics:
        accepted: dict[int, tuple[str, ...]] = {}
        for version, names in item.by_version.items():
            left = []
            for name in names:
                pool = pools.get(name)
                held = (item.nic, name) in request.holds and pool is not None and pool_version(pool) == version
                reason = None if held else judge.reject(item.nic, name, pool, version)
                if reason is None and pool is not None and item.nic == request.nic and version in wished:
                    reason = unfit(wished[version], pool)
                verdicts.append(Verdict(pool=name, accepted=reason is None, reason=reason, nic=item.nic))
                if reason is None:
                    left.append(name)
            accepted[version] = tuple(sorted(left, key=lambda name: _rank(pools[name])))
        chosen.append((item, accepted))
    explanation = Explanation(considered=tuple(verdicts))
    for item, _ in chosen:
        missing = [name for names in item.by_version.values() for name in names if name not in pools]
        if missing:
            raise SelectionError(
                f"{found.source} names pool {missing[0]!r}, which does not exist",
                cause="wrong_input",
                explanation=explanation,
                named=found.nics,
            )
    for item, accepted in chosen:
        empty = next((version for version, left in accepted.items() if not left), None)
        if empty is not None:
            nic = f" for {item.nic}" if request.beside or len(found.nics) > 1 else ""
            raise SelectionError(
                f"no IPv{empty} pool of {found.source}{nic} may serve it: {explanation}",
                cause="no_available_pool",
                explanation=explanation,
                named=found.nics,
            )
    return Selection(
        nic=request.nic,
        nics=tuple(
            _selection(item, accepted, wished if item.nic == request.nic else {}, pools) for item, accepted in chosen
        ),
        explanation=explanation,
        source=found.source,
        whole=found.whole,
    )


def _wished(request: SelectionRequest, found: Candidates) -> Mapping[int, Wish]:
    """What the NIC of the request asks for by name. Raises `SelectionError`."""
    try:
        wished = wishes(request.ips)
    except WishError as error:
        text = f"annotation {MULTUS_NETWORKS} for {request.nic}: {error}"
        raise SelectionError(text, cause="wrong_input", named=found.nics) from error
    for version, wish in wished.items():
        if all(version not in item.by_version for item in found.nics if item.nic == request.nic):
            text = f"ips: {wish}: {found.source} names no IPv{version} pool for {request.nic}"
            text = f"annotation {MULTUS_NETWORKS} for {request.nic}: {text}"
            raise SelectionError(text, cause="wrong_input", named=found.nics)
    return wished


def _selection(
    item: NicCandidates,
    accepted: Mapping[int, tuple[str, ...]],
    wished: Mapping[int, Wish],
    pools: Mapping[str, SpiderIPPool],
) -> NicSelection:
    named = {
        version: tuple(n for n in names if version not in wished or unfit(wished[version], pools[n]) is None)
        for version, names in item.by_version.items()
    }
    return NicSelection(
        nic=item.nic,
        ipv4=accepted.get(4, ()),
        ipv6=accepted.get(6, ()),
        clean_gateway=item.clean_gateway,
        named_ipv4=named.get(4, ()),
        named_ipv6=named.get(6, ()),
        wished_ipv4=wished[4].address if 4 in wished else "",
        wished_ipv6=wished[6].address if 6 in wished else "",
    )


def _rank(pool: SpiderIPPool) -> tuple[bool, ...]:
    """Sorts a pool before another that is meant for the pod less specifically."""
    spec = pool.spec
    return (
        spec.pod_affinity is None,
        not spec.node_name,
        spec.node_affinity is None,
        not spec.namespace_name,
        spec.namespace_affinity is None,
        not spec.multus_name,
    )
