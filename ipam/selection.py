"""Which pools may serve a pod's NICs, in which order, and why the others may not. Pure.

`ipam.candidates` says which pools are asked for, `ipam.predicates` judges each; what is left is ordered by how
specifically a pool is meant for the pod, and equal ones keep the order in which they were written. Everything that was
considered is in the explanation, with the reason.

A pod that names pools for all of its NICs gets them for all at once, or none: the first NIC that asks asks for all.
"""

from collections.abc import Mapping

from msgspec import Struct

from api.annotations import AnnotationError
from api.ippool import SpiderIPPool
from api.reasons import Explanation, Verdict
from ipam.candidates import Candidates, NicCandidates, SelectionError, SelectionRequest, candidates, pool_version
from ipam.predicates import Judge

__all__ = ["NicSelection", "Selection", "SelectionError", "SelectionRequest", "select"]


class NicSelection(Struct, frozen=True, kw_only=True):
    """The pools to try for one NIC, best first, by family. A family without any was not asked for."""

    nic: str
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    clean_gateway: bool
    """Whether the NIC gets no default route."""
    named_ipv4: tuple[str, ...] = ()
    """All that were asked for, in that order: those, too, that a predicate rejected."""
    named_ipv6: tuple[str, ...] = ()


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


def _judged(request: SelectionRequest, found: Candidates, pools: Mapping[str, SpiderIPPool]) -> Selection:
    judge = Judge(request)
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
            nic = f" for {item.nic}" if len(found.nics) > 1 else ""
            raise SelectionError(
                f"no IPv{empty} pool of {found.source}{nic} may serve it: {explanation}",
                cause="no_available_pool",
                explanation=explanation,
                named=found.nics,
            )
    return Selection(
        nic=request.nic,
        nics=tuple(_selection(item, accepted) for item, accepted in chosen),
        explanation=explanation,
        source=found.source,
        whole=found.whole,
    )


def _selection(item: NicCandidates, accepted: Mapping[int, tuple[str, ...]]) -> NicSelection:
    return NicSelection(
        nic=item.nic,
        ipv4=accepted.get(4, ()),
        ipv6=accepted.get(6, ()),
        clean_gateway=item.clean_gateway,
        named_ipv4=item.by_version.get(4, ()),
        named_ipv6=item.by_version.get(6, ()),
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
