"""Which pools a pod's NICs ask for, before anybody looks at whether those pools will serve them. Pure.

The first of these sources that says anything is the only one that counts:

1. the pod's annotations `ipam.spidernet.io/subnets` and `/subnet`, where SpiderSubnets are switched on: the automatic
   pools of the pod's application (`ipam.autopool`), which its owner has made before anybody looks here;
2. the pod's annotation `/ippools`, for all of its NICs at once;
3. the pod's annotation `/ippool`, for whichever NIC asks; even one that names no pool (``{}``);
4. the namespace's annotations `/default-ipv4-ippool` and `/default-ipv6-ippool`;
5. the plugin configuration's `default_ipv4_ippool` and `default_ipv6_ippool`;
6. the pools with `spec.default`.

In 2 to 5 a name may be a pattern (`ipam.wildcards`). It stands for the pools of its family that fit, by name; a pool
that stands there already is not repeated. A family that is switched off is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from api import annotations
from api.annotations import IPPoolAnnotation, NICPools
from api.core import Namespace, Node, Pod
from api.ippool import SpiderIPPool
from api.networks import FIRST_NIC, networks
from api.reasons import Explanation, Reason, Verdict
from ipam import autopool
from ipam.identity import Workload
from ipam.wildcards import PatternError, expand, is_pattern

DEFAULT_POOLS: Final = "the cluster's default pools (spec.default)"
VERSIONS: Final = (4, 6)


class SelectionRequest(Struct, frozen=True, kw_only=True):
    """Who asks, and what is known of it."""

    pod: Pod
    namespace: Namespace | None
    node: Node | None
    nic: str
    """The interface that asks, by its name inside the pod."""
    default_ipv4: tuple[str, ...] = ()
    """Pool names of the plugin configuration."""
    default_ipv6: tuple[str, ...] = ()
    clean_gateway: bool = False
    """The plugin configuration's; an item of the annotation for all NICs has its own."""
    enable_ipv4: bool = True
    enable_ipv6: bool = True
    enable_subnets: bool = False
    """Whether annotations that ask for automatic pools mean anything (`enableSpiderSubnet`)."""
    automatic_pools: bool = True
    """Whether applications get them (`enableAutoPoolForApplication`)."""
    master_subnets: tuple[str, ...] | None = None
    """The addresses, with prefix length, of the physical NIC behind the interface that asks; None where its pools need
    not match them (`match_master_subnet`)."""
    multus: str = ""
    """The network that makes the interface, ``namespace/name``; empty: the pod's annotations say it."""
    ips: tuple[str, ...] = ()
    """Addresses that the interface is to have, with or without prefix length, one a family at most."""
    beside: bool = False
    """Whether other NICs of the pod ask at the same time, so that it has to be said which one is meant."""
    cluster_network: str = ""
    """The network of the first NIC of pods that name none (MULTUS_CLUSTER_NETWORK)."""
    agent_namespace: str = ""
    """For names of networks without one, in pools and in the pod's default network."""
    workload: Workload | None = None
    """What the pod belongs to in the end; None where that is not known."""
    holds: frozenset[tuple[str, str]] = frozenset()
    """NICs and pools, of a pod with fixed addresses: what they have there they keep, whatever the pool has come to ask
    for, as long as the pool is named."""

    def enabled(self, version: int) -> bool:
        """Whether an IP family is switched on."""
        return self.enable_ipv4 if version == 4 else self.enable_ipv6


class NicCandidates(Struct, frozen=True):
    """What one NIC asks for."""

    nic: str
    by_version: Mapping[int, tuple[str, ...]]
    """Pool names, in order of preference and each once; a family without any is absent."""
    clean_gateway: bool


class Candidates(Struct, frozen=True):
    """What a source asks for."""

    source: str
    """In words."""
    nics: tuple[NicCandidates, ...]
    """Those that ask for anything, that of the request among them."""
    unmet: tuple[Verdict, ...] = ()
    """What was written and stands for no pool or for no NIC."""
    whole: bool = False
    """Whether these are all NICs of the pod."""


class SelectionError(Exception):
    """No pool may serve the pod. Nothing else was tried.

    Attributes:
        cause: `wrong_input` when the user has to change something that was written, else `no_available_pool`.
        explanation: the verdicts so far.
        named: by NIC, the pools that were asked for, as far as they were found out: what a pod holds in one of them it
            may keep though the pool gives nothing new.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str,
        explanation: Explanation | None = None,
        named: tuple[NicCandidates, ...] = (),
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.explanation = explanation or Explanation()
        self.named = named


class _Written(Struct, frozen=True):
    """A source's NICs, names as they were written."""

    source: str
    nics: tuple[NICPools, ...]
    several: bool = False
    """Whether it speaks of several NICs."""
    beside: bool = False
    """As in the request."""
    unplaced: tuple[Verdict, ...] = ()

    def where(self, nic: str) -> str:
        """The source, for an error about one NIC."""
        return f"{self.source} for {nic}" if self.several or self.beside else self.source


def candidates(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> Candidates:
    """What the first source that says anything asks for, with at least one pool for the NIC of the request.

    Raises:
        AnnotationError: an annotation that cannot be read.
        SelectionError: it asks for automatic pools, leaves out the NIC of the request, names a pool twice, has a
            malformed pattern, or asks for nothing of a family that is switched on.
    """
    written = _written(request, pools)
    unmet = list(written.unplaced)
    nics: list[NicCandidates] = []
    for item in written.nics:
        by_version: dict[int, tuple[str, ...]] = {}
        for version, names in ((4, item.ipv4 or ()), (6, item.ipv6 or ())):
            if names and request.enabled(version):
                found, missed = _resolved(written, item.interface, version, names, pools)
                unmet += missed
                if found:
                    by_version[version] = found
        if by_version:
            nics.append(NicCandidates(nic=item.interface, by_version=by_version, clean_gateway=item.cleangateway))
    if not any(item.nic == request.nic for item in nics):
        raise _nothing(request, written, unmet)
    return Candidates(source=written.source, nics=tuple(nics), unmet=tuple(unmet), whole=written.several)


def pool_version(pool: SpiderIPPool) -> int:
    """The family of a pool, though nobody may have filled it in."""
    return pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)


def _written(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> _Written:
    of_pod = request.pod.metadata.annotations
    if request.enable_subnets and autopool.asks(of_pod):
        return _automatic(request, pools)
    several = annotations.pod_ippools(of_pod)
    if several is not None:
        return _several(request, several)

    def one(source: str, names: IPPoolAnnotation) -> _Written:
        item = NICPools(interface=request.nic, ipv4=names.ipv4, ipv6=names.ipv6, cleangateway=request.clean_gateway)
        return _Written(source=source, nics=(item,), beside=request.beside)

    asked = annotations.pod_ippool(of_pod)
    if asked is not None:
        return one(f"annotation {annotations.POD_IPPOOL}", asked)
    if request.namespace is not None:
        asked = annotations.namespace_default_pools(request.namespace.metadata.annotations)
        if asked is not None:
            return one(f"namespace {request.namespace.metadata.name}'s default pools", asked)
    if request.default_ipv4 or request.default_ipv6:
        return one("the plugin configuration's ipam", IPPoolAnnotation(request.default_ipv4, request.default_ipv6))
    defaults = {name: pool for name, pool in pools.items() if pool.spec.default}
    return one(DEFAULT_POOLS, IPPoolAnnotation(*(tuple(_names(defaults, version)) for version in VERSIONS)))


def no_automatic_pools(workload: Workload | None, *, enabled: bool) -> str:
    """Why a pod gets no automatic pool, whatever its application says; empty where nothing speaks against it."""
    if not enabled:
        return "automatic pools are switched off: enableAutoPoolForApplication in conf.yml"
    if workload is None or (workload.api_version, workload.kind) == ("v1", "Pod"):
        return f"no workload controls the pod, and automatic pools are those of workloads: use {annotations.POD_IPPOOL}"
    return ""


def _automatic(request: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> _Written:
    """The pools that the pod's application has for the NIC of the request."""
    of_pod, workload = request.pod.metadata.annotations, request.workload
    key = annotations.POD_SUBNETS if annotations.POD_SUBNETS in of_pod else annotations.POD_SUBNET
    source = f"annotation {key}"
    problem = no_automatic_pools(workload, enabled=request.automatic_pools)
    if workload is None or problem:
        raise SelectionError(f"{source}: {problem}; the value is {of_pod[key]!r}", cause="wrong_input")
    items = autopool.subnets(of_pod)
    item = next((one for one in items if one.interface == request.nic), None)
    if item is None:
        meant = ", ".join(one.interface for one in items)
        text = f"{source} is for {meant} and says nothing of {request.nic}; the value is {of_pod[key]!r}"
        raise SelectionError(text, cause="wrong_input")
    found: dict[int, tuple[str, ...]] = {}
    for version, names in ((4, item.ipv4), (6, item.ipv6)):
        if not names or not request.enabled(version):
            continue
        pool = autopool.find(workload, request.nic, version, pools.values())
        if pool is None or pool.metadata.labels.get(annotations.OWNER_SUBNET, names[0]) != names[0]:
            text = f"{workload} has no automatic IPv{version} pool for {request.nic} of SpiderSubnet {names[0]}"
            raise SelectionError(f"{source}: {text}", cause="no_available_pool")
        found[version] = (pool.metadata.name,)
    nic = NICPools(interface=request.nic, ipv4=found.get(4), ipv6=found.get(6), cleangateway=request.clean_gateway)
    return _Written(source=source, nics=(nic,), beside=request.beside)


def _several(request: SelectionRequest, items: tuple[NICPools, ...]) -> _Written:
    """The annotation for all NICs: by their names, or else in the order in which Multus makes them."""
    source = f"annotation {annotations.POD_IPPOOLS}"
    unplaced: tuple[Verdict, ...] = ()
    if not items[0].interface:
        made = networks(request.pod.metadata.annotations, namespace=request.pod.metadata.namespace)
        names = (FIRST_NIC, *(network.interface for network in made))
        unplaced = tuple(_unplaced(source, names, items))
        items = tuple(structs.replace(item, interface=name) for item, name in zip(items, names, strict=False))
    if all(item.interface != request.nic for item in items):
        meant = ", ".join(item.interface for item in items)
        value = request.pod.metadata.annotations[annotations.POD_IPPOOLS]
        raise SelectionError(
            f"{source} is for {meant} and says nothing of {request.nic}; the value is {value!r}", cause="wrong_input"
        )
    return _Written(source=source, nics=items, several=True, unplaced=unplaced)


def _unplaced(source: str, names: Sequence[str], items: Sequence[NICPools]) -> Iterator[Verdict]:
    """Items behind the last NIC. The pod can do without them: no ADD will ever come for one."""
    for index, item in enumerate(items[len(names) :], start=len(names)):
        for pool in (*(item.ipv4 or ()), *(item.ipv6 or ())):
            reason = Reason(
                predicate="interface",
                pool=pool,
                wanted=f"a NIC for item {index} of {source}",
                seen=f"{', '.join(names)}, by annotation {annotations.MULTUS_NETWORKS}",
            )
            yield Verdict(pool=pool, accepted=False, reason=reason, nic=str(index))


def _resolved(
    written: _Written, nic: str, version: int, names: Sequence[str], pools: Mapping[str, SpiderIPPool]
) -> tuple[tuple[str, ...], list[Verdict]]:
    """Patterns replaced by the pools that fit, and a verdict on each pattern that fits none."""
    literal: set[str] = set()
    found: dict[str, None] = {}
    unmet: list[Verdict] = []
    for name in names:
        if not is_pattern(name):
            if name in literal:
                raise SelectionError(
                    f"{written.where(nic)} names IPv{version} pool {name!r} twice", cause="wrong_input"
                )
            literal.add(name)
            found[name] = None
            continue
        try:
            fitting = expand(name, _names(pools, version))
        except PatternError as error:
            raise SelectionError(f"{written.where(nic)}: IPv{version} pool {error}", cause="wrong_input") from error
        found |= dict.fromkeys(fitting)
        if not fitting:
            reason = Reason(
                predicate="exists", pool=name, wanted=f"an IPv{version} pool whose name fits {name}", seen="none"
            )
            unmet.append(Verdict(pool=name, accepted=False, reason=reason, nic=nic))
    return tuple(found), unmet


def _names(pools: Mapping[str, SpiderIPPool], version: int) -> list[str]:
    return sorted(name for name, pool in pools.items() if pool_version(pool) == version)


def _nothing(request: SelectionRequest, written: _Written, unmet: Sequence[Verdict]) -> SelectionError:
    """The NIC of the request asks for no pool at all."""
    item = next(item for item in written.nics if item.interface == request.nic)
    off = [version for version, names in ((4, item.ipv4), (6, item.ipv6)) if names and not request.enabled(version)]
    said = [f"IPv{version} is switched off" for version in off]
    said += [f"nothing fits {verdict.pool!r}" for verdict in unmet if verdict.nic == request.nic]
    return SelectionError(
        f"{written.where(request.nic)} names no pool of an enabled family{f' ({", ".join(said)})' if said else ''}",
        cause="no_available_pool" if written.source == DEFAULT_POOLS and not off else "wrong_input",
        explanation=Explanation(considered=tuple(unmet)),
    )
