"""Which pools may serve a pod's NIC, in which order, and why the others may not. Pure.

Candidates come from the first of these sources that says anything, and from that one alone:

1. the pod's annotation `ipam.spidernet.io/ippool`;
2. the namespace's annotations `ipam.spidernet.io/default-ipv4-ippool` and `-ipv6-`;
3. the plugin configuration's `default_ipv4_ippool` and `default_ipv6_ippool`;
4. the pools with `spec.default`.

A family that is switched off is left out. Every candidate is then judged by the predicates below in their order, the
first one that fails is the reason for its rejection. What is left is ordered by how specifically a pool is meant for
the pod; equal ones keep the order in which they were written.

Pool names are literal. The annotation for several NICs, `ipam.spidernet.io/ippools`, would come first; it is refused
rather than passed over, which would give the pod addresses of a network it did not ask for. `spec.multusName` counts
for the order only: which network a NIC belongs to is not known here.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from api import annotations
from api.annotations import AnnotationError
from api.core import Namespace, Node, Pod
from api.ippool import SpiderIPPool
from api.meta import LabelSelector, SelectorError
from api.reasons import Explanation, Reason, Verdict


class SelectionRequest(Struct, frozen=True, kw_only=True):
    """Who asks, and what is known of it."""

    pod: Pod
    namespace: Namespace | None
    node: Node | None
    nic: str
    default_ipv4: tuple[str, ...] = ()
    """Pool names of the plugin configuration."""
    default_ipv6: tuple[str, ...] = ()
    enable_ipv4: bool = True
    enable_ipv6: bool = True


class Selection(Struct, frozen=True, kw_only=True):
    """The pools to try, best first, by family. A family without any was not asked for."""

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    explanation: Explanation
    source: str
    """Where the candidates came from, in words."""


class SelectionError(Exception):
    """No pool may serve the pod. Nothing else was tried.

    Attributes:
        cause: `wrong_input` when the user has to change something that was written, else `no_available_pool`.
        explanation: the verdicts so far.
    """

    def __init__(self, message: str, *, cause: str, explanation: Explanation | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.explanation = explanation or Explanation()


class _Candidates(Struct, frozen=True):
    source: str
    by_version: Mapping[int, tuple[str, ...]]


def select(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> Selection:
    """Choose pools for one NIC. Raises `SelectionError`."""
    candidates = _candidates(request, pools)
    enabled = {4: request.enable_ipv4, 6: request.enable_ipv6}
    wanted = {version: names for version, names in candidates.by_version.items() if names and enabled[version]}
    if not wanted:
        said = [f"IPv{version} is switched off" for version, names in candidates.by_version.items() if names]
        raise SelectionError(
            f"{candidates.source} names no pool of an enabled family{f' ({said[0]})' if said else ''}",
            cause="wrong_input" if said or candidates.source != _DEFAULTS else "no_available_pool",
        )
    verdicts: list[Verdict] = []
    chosen: dict[int, tuple[str, ...]] = {4: (), 6: ()}
    for version, names in sorted(wanted.items()):
        _refuse_repetition(candidates.source, version, names)
        accepted = []
        for name in names:
            reason = _reject(request, name, pools.get(name), version)
            verdicts.append(Verdict(pool=name, accepted=reason is None, reason=reason))
            if reason is None:
                accepted.append(name)
        chosen[version] = tuple(sorted(accepted, key=lambda name: _rank(pools[name])))
    explanation = Explanation(considered=tuple(verdicts))
    missing = [v.pool for v in verdicts if v.reason is not None and v.reason.predicate == _EXISTS]
    if missing:
        raise SelectionError(
            f"{candidates.source} names pool {missing[0]!r}, which does not exist",
            cause="wrong_input",
            explanation=explanation,
        )
    for version in sorted(wanted):
        if not chosen[version]:
            raise SelectionError(
                f"no IPv{version} pool of {candidates.source} may serve it: {explanation}",
                cause="no_available_pool",
                explanation=explanation,
            )
    return Selection(ipv4=chosen[4], ipv6=chosen[6], explanation=explanation, source=candidates.source)


_DEFAULTS = "the cluster's default pools (spec.default)"
_EXISTS = "exists"


def _candidates(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> _Candidates:
    """What the first source that says anything names.

    Raises:
        SelectionError: an annotation that cannot be read or is not served.
    """
    several = request.pod.metadata.annotations.get(annotations.POD_IPPOOLS)
    if several is not None:
        raise SelectionError(
            f"annotation {annotations.POD_IPPOOLS} is not served: use {annotations.POD_IPPOOL}; it is {several!r}",
            cause="wrong_input",
        )
    try:
        asked = annotations.pod_ippool(request.pod.metadata.annotations)
        if asked is not None:
            source = f"annotation {annotations.POD_IPPOOL}"
            return _Candidates(source, {4: tuple(asked.ipv4 or ()), 6: tuple(asked.ipv6 or ())})
        if request.namespace is not None:
            asked = annotations.namespace_default_pools(request.namespace.metadata.annotations)
            if asked is not None:
                source = f"namespace {request.namespace.metadata.name}'s default pools"
                return _Candidates(source, {4: tuple(asked.ipv4 or ()), 6: tuple(asked.ipv6 or ())})
    except AnnotationError as error:
        raise SelectionError(str(error), cause="wrong_input") from error
    if request.default_ipv4 or request.default_ipv6:
        return _Candidates("the plugin configuration's ipam", {4: request.default_ipv4, 6: request.default_ipv6})
    defaults = sorted(name for name, pool in pools.items() if pool.spec.default)
    by_version: dict[int, list[str]] = {4: [], 6: []}
    for name in defaults:
        by_version[_version(pools[name])].append(name)
    return _Candidates(_DEFAULTS, {version: tuple(names) for version, names in by_version.items()})


def _refuse_repetition(source: str, version: int, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SelectionError(f"{source} names IPv{version} pool {name!r} twice", cause="wrong_input")


def _version(pool: SpiderIPPool) -> int:
    return pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)


def _reject(request: SelectionRequest, name: str, pool: SpiderIPPool | None, version: int) -> Reason | None:
    """The first predicate that a pool does not fulfil."""
    if pool is None:
        return Reason(predicate=_EXISTS, pool=name, wanted="a SpiderIPPool of this name", seen="none")
    return next(_failures(request, name, pool, version), None)


def _failures(request: SelectionRequest, name: str, pool: SpiderIPPool, version: int) -> Iterator[Reason]:
    spec = pool.spec

    def reason(predicate: str, wanted: str, seen: str) -> Reason:
        return Reason(predicate=predicate, pool=name, wanted=wanted, seen=seen)

    if pool.metadata.deletion_timestamp is not None:
        yield reason("terminating", "a pool that stays", f"deleted at {pool.metadata.deletion_timestamp}")
    if spec.disable:
        yield reason("disable", "false", "true")
    if _version(pool) != version:
        yield reason("ipVersion", str(version), str(_version(pool)))
    node = request.pod.spec.node_name or (request.node.metadata.name if request.node is not None else "")
    if spec.node_name:
        if node not in spec.node_name:
            yield reason("nodeName", f"one of {', '.join(spec.node_name)}", node)
    elif spec.node_affinity is not None:
        labels = None if request.node is None else request.node.metadata.labels
        yield from _affinity(name, "nodeAffinity", spec.node_affinity, labels)
    namespace = request.pod.metadata.namespace
    if spec.namespace_name:
        if namespace not in spec.namespace_name:
            yield reason("namespaceName", f"one of {', '.join(spec.namespace_name)}", namespace)
    elif spec.namespace_affinity is not None:
        labels = None if request.namespace is None else request.namespace.metadata.labels
        yield from _affinity(name, "namespaceAffinity", spec.namespace_affinity, labels)
    if spec.pod_affinity is not None:
        yield from _affinity(name, "podAffinity", spec.pod_affinity, request.pod.metadata.labels)


def _affinity(pool: str, predicate: str, selector: LabelSelector, labels: Mapping[str, str] | None) -> Iterator[Reason]:
    """`labels` is None where the object is not known: that fulfils nothing, not even "has no such label"."""
    if labels is None:
        yield Reason(predicate=predicate, pool=pool, wanted=str(selector), seen="an unknown object")
        return
    seen = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
    try:
        if not selector.matches(labels):
            yield Reason(predicate=predicate, pool=pool, wanted=str(selector), seen=seen)
    except SelectorError as error:
        yield Reason(predicate=predicate, pool=pool, wanted="a valid selector", seen=str(error))


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
