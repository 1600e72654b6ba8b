"""Automatic pools: which an application asks for, what they are called and marked with, and which are its own. Pure.

An application is whatever a pod belongs to in the end (`ipam.identity.Workload`). It has one pool for each NIC and
family that its pods' annotations name a SpiderSubnet for. Names, labels and affinity are the original's, so that it
finds our pools and we find its pools. A pool is found by its labels, never by its name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from msgspec import Struct, structs

from api import annotations as keys
from api.annotations import AnnotationMeaningError, NICSubnets, PoolSize
from api.core import (
    CronJob,
    CronJobSpec,
    DaemonSet,
    DaemonSetSpec,
    Deployment,
    Job,
    JobSpec,
    JobTemplate,
    PodTemplate,
    ReplicaSet,
    ReplicatedSpec,
    StatefulSet,
)
from api.ippool import SpiderIPPool
from api.meta import ObjectMeta
from ipam.identity import Workload
from ipam.ranges import Ranges
from ipam.territory import PoolError, territory

type BuiltIn = Deployment | ReplicaSet | StatefulSet | DaemonSet | Job | CronJob

KINDS: Final = frozenset(
    {
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
    }
)
"""Kubernetes' own workloads: their pools are there before their pods."""

_ASKING: Final = (keys.POD_SUBNET, keys.POD_SUBNETS, keys.IPPOOL_IP_NUMBER, keys.IPPOOL_RECLAIM)
_LABEL: Final = 63
"""Characters of a label's value."""
_NAME: Final = 253
"""Characters of an object's name."""
_NIC: Final = 15
"""Characters of an interface's name, on Linux."""
_UID: Final = 5
"""Characters of the application's uid that its pools' names end in."""
_DIGEST: Final = 16
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FULL: Final = {keys.OWNER_APPLICATION_NAME: keys.APP_NAME, keys.OWNER_APPLICATION_GV: keys.APP_API_GROUP}
"""Annotations of a pool with what did not fit into a label: the name, the API version."""


class Application(Struct, frozen=True):
    """A workload that asks for automatic pools.

    Attributes:
        workload: which it is.
        annotations: those of its pods that say what it asks for.
        replicas: how many pods it is to have.
    """

    workload: Workload
    annotations: dict[str, str]
    replicas: int


class Wanted(Struct, frozen=True):
    """One pool that an application asks for."""

    nic: str
    version: int
    subnet: str
    size: int


class Plan(Struct, frozen=True):
    """All that it asks for.

    Attributes:
        pools: one for each NIC and family.
        number: as the pools' annotation says it, ``5`` or ``+2``.
        reclaim: whether they go with the application.
    """

    pools: tuple[Wanted, ...]
    number: str
    reclaim: bool


# -- what an application asks for --------------------------------------------------------------------------------------


def asks(annotations: Mapping[str, str]) -> bool:
    """Whether pods with these annotations want addresses of automatic pools."""
    return keys.POD_SUBNET in annotations or keys.POD_SUBNETS in annotations


def asking(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations that say what is asked for, without the others."""
    return {key: annotations[key] for key in _ASKING if key in annotations}


def application(item: BuiltIn) -> Application | None:
    """What one of Kubernetes' workloads asks for; None where it, or what stands above it, asks for nothing.

    A ReplicaSet or Job that something controls is not an application, its controller is.
    """
    meta = item.metadata
    if isinstance(item, ReplicaSet | Job) and meta.controller is not None:
        return None
    template = _template(item)
    if template.spec.host_network or not asks(template.metadata.annotations):
        return None
    workload = Workload(
        api_version=item.api_version, kind=item.kind, namespace=meta.namespace, name=meta.name, uid=meta.uid
    )
    return Application(workload, asking(template.metadata.annotations), replicas(item))


def replicas(item: BuiltIn) -> int:
    """How many pods a workload is to have at a time; of a Job, in all."""
    match item:
        case Deployment() | ReplicaSet() | StatefulSet():
            return 1 if item.spec.replicas is None else item.spec.replicas
        case DaemonSet():
            return item.status.desired_number_scheduled
        case Job():
            return _of_job(item.spec)
        case CronJob():
            return _of_job(item.spec.job_template.spec)


def plan(application: Application, *, redundant: int, enable_ipv4: bool = True, enable_ipv6: bool = True) -> Plan:
    """The pools of an application. `redundant` addresses are added where it says nothing of their number.

    Raises `AnnotationError`: one of its annotations is not what it should be.
    """
    said = application.annotations
    number = keys.ippool_ip_number(said) or PoolSize(number=redundant, flexible=True)
    reclaim = keys.ippool_reclaim(said)
    found: list[Wanted] = []
    for item in subnets(said):
        for version, names, enabled in ((4, item.ipv4, enable_ipv4), (6, item.ipv6, enable_ipv6)):
            if names and enabled:
                found.append(Wanted(item.interface, version, names[0], desired(number, application.replicas)))
    return Plan(tuple(found), f"{'+' if number.flexible else ''}{number.number}", reclaim)


def subnets(annotations: Mapping[str, str]) -> tuple[NICSubnets, ...]:
    """The subnets by NIC. Raises `AnnotationError`."""
    items = keys.pod_subnets(annotations) or ()
    key = keys.POD_SUBNETS if keys.POD_SUBNETS in annotations else keys.POD_SUBNET
    for item in items:
        if len(item.interface) > _NIC or not _LABEL_VALUE.fullmatch(item.interface):
            problem = f"interface {item.interface!r} is no name of a NIC: at most {_NIC} letters, digits or '-_.'"
            raise AnnotationMeaningError(key, annotations[key], problem)
    return items


def desired(number: PoolSize, replicas: int) -> int:
    """How many addresses a pool is to have."""
    return number.number + (replicas if number.flexible else 0)


def trimmed[T: BuiltIn](item: T) -> T:
    """A workload without what is not looked at; a controller replica has all of them in memory."""
    template = _template(item)
    notes = asking(template.metadata.annotations)
    kept = PodTemplate(metadata=ObjectMeta(annotations=notes), spec=template.spec) if asks(notes) else PodTemplate()
    spec: Any
    match item:
        case Deployment() | ReplicaSet():
            spec = ReplicatedSpec(replicas=item.spec.replicas, template=kept)
        case StatefulSet():
            spec = structs.replace(item.spec, template=kept)
        case DaemonSet():
            spec = DaemonSetSpec(template=kept)
        case Job():
            spec = structs.replace(item.spec, template=kept)
        case CronJob():
            job = structs.replace(item.spec.job_template.spec, template=kept)
            spec = CronJobSpec(job_template=JobTemplate(spec=job))
    return structs.replace(item, metadata=_bare(item.metadata), spec=spec)


# -- how pools are called and marked -----------------------------------------------------------------------------------


def application_key(workload: Workload) -> str:
    """What the owner of an application is found by. The same for the next application of that name."""
    return f"application/{workload.api_version}/{workload.kind}/{workload.namespace}/{workload.name}"


def pool_name(workload: Workload, nic: str, version: int, *, taken: Callable[[str], bool]) -> str:
    """The name for a new pool: ``auto4-web-eth0-1f2e3``. A longer piece of the uid where somebody has that name.

    Two applications of one name, in two namespaces, may well have the same five digits.
    """
    short = pieced(workload, nic, version, workload.uid.rpartition("-")[2][:_UID])
    return pieced(workload, nic, version, workload.uid) if taken(short) else short


def pieced(workload: Workload, nic: str, version: int, uid: str) -> str:
    """A pool's name with this piece of the application's uid."""
    interface = re.sub(r"[^a-z0-9.-]", "-", nic.lower())
    interface = ".".join(part.strip("-") for part in interface.split(".") if part.strip("-")) or "nic"
    if interface != nic:
        # Two NICs that differ in what a name cannot have are two.
        interface = f"{interface}-{_digest(nic)[:4]}"
    ending = f"-{interface}-{re.sub(r'[^a-z0-9-]', '', uid.lower()).strip('-') or 'x'}"
    beginning = f"auto{version}-{workload.name.lower()}"[: _NAME - len(ending)]
    return beginning.rstrip("-.") + ending


def label_value(text: str) -> str:
    """A name as the value of a label: itself, or when it is too long for one its beginning and a digest."""
    if len(text) <= _LABEL:
        return text
    return f"{text[: _LABEL - _DIGEST - 1].rstrip('-._')}-{_digest(text)}"


def labels(workload: Workload, wanted: Wanted, *, reclaim: bool) -> dict[str, str]:
    """Of an automatic pool."""
    return {
        keys.OWNER_SUBNET: wanted.subnet,
        **_owner(workload),
        keys.OWNER_APPLICATION_UID: workload.uid,
        keys.POOL_INTERFACE: wanted.nic,
        keys.POOL_IP_VERSION: f"IPv{wanted.version}",
        keys.IPPOOL_RECLAIM: "true" if reclaim else "false",
    }


def notes(workload: Workload, number: str) -> dict[str, str]:
    """Annotations of an automatic pool."""
    found = {keys.IPPOOL_IP_NUMBER: number}
    for key, text in ((keys.OWNER_APPLICATION_NAME, workload.name), (keys.OWNER_APPLICATION_GV, workload.api_version)):
        if len(text) > _LABEL:
            found[_FULL[key]] = text
    return found


def affinity(workload: Workload) -> dict[str, str]:
    """Labels of an automatic pool's podAffinity. They are compared with the application, not with pods."""
    return {
        keys.APP_API_GROUP: label_value(workload.group),
        keys.APP_API_VERSION: workload.version,
        keys.APP_KIND: workload.kind,
        keys.APP_NAMESPACE: workload.namespace,
        keys.APP_NAME: label_value(workload.name),
    }


# -- which pools are whose ---------------------------------------------------------------------------------------------


def owner_of(pool: SpiderIPPool) -> Workload | None:
    """The application that a pool was made for; None where it was not made for one."""
    found, notes = pool.metadata.labels, pool.metadata.annotations
    if keys.OWNER_APPLICATION_NAME not in found:
        return None
    group, _, version = found.get(keys.OWNER_APPLICATION_GV, "").rpartition("_")
    written = f"{group}/{version}" if group else version
    return Workload(
        api_version=notes.get(_FULL[keys.OWNER_APPLICATION_GV], written),
        kind=found.get(keys.OWNER_APPLICATION_KIND, ""),
        namespace=found.get(keys.OWNER_APPLICATION_NAMESPACE, ""),
        name=notes.get(_FULL[keys.OWNER_APPLICATION_NAME], found[keys.OWNER_APPLICATION_NAME]),
        uid=found.get(keys.OWNER_APPLICATION_UID, ""),
    )


def pools_of(workload: Workload, pools: Iterable[SpiderIPPool]) -> list[SpiderIPPool]:
    """The automatic pools of an application's name, those of an earlier one among them."""
    mine = _owner(workload).items()
    return [pool for pool in pools if mine <= pool.metadata.labels.items()]


def find(workload: Workload, nic: str, version: int, pools: Iterable[SpiderIPPool]) -> SpiderIPPool | None:
    """The pool that an application has for a NIC and family; one of an earlier application, where it was to be kept."""
    fitting = [
        pool
        for pool in pools_of(workload, pools)
        if serves(pool) == (nic, version)
        and pool.metadata.deletion_timestamp is None
        and (pool.metadata.labels.get(keys.OWNER_APPLICATION_UID) == workload.uid or not reclaimed(pool))
    ]

    def rank(pool: SpiderIPPool) -> tuple[bool, str]:
        return pool.metadata.labels.get(keys.OWNER_APPLICATION_UID) != workload.uid, pool.metadata.name

    return min(fitting, key=rank, default=None)


def surplus(workload: Workload, pools: Iterable[SpiderIPPool], plan: Plan | None) -> list[SpiderIPPool]:
    """Pools of an application's name that go: nobody is to use them any more. None for a plan: it is gone.

    Those that were to outlive their application stay until a user deletes them.
    """
    kept: set[str] = set()
    for wanted in plan.pools if plan is not None else ():
        pool = find(workload, wanted.nic, wanted.version, pools := list(pools))
        if pool is not None:
            kept.add(pool.metadata.name)
    return [
        pool
        for pool in pools_of(workload, pools)
        if pool.metadata.name not in kept and reclaimed(pool) and pool.metadata.deletion_timestamp is None
    ]


def remembered(workload: Workload, pools: Iterable[SpiderIPPool]) -> dict[str, str]:
    """The annotations of an application of whatever kind when its pods came, by the pools that it has; empty: none.

    Kubernetes' own workloads show their pods' annotations in their templates, others say them where only they know.
    """
    items: dict[str, dict[str, list[str]]] = {}
    found: dict[str, str] = {}
    for pool in pools_of(workload, pools):
        labels, number = pool.metadata.labels, pool.metadata.annotations.get(keys.IPPOOL_IP_NUMBER)
        if labels.get(keys.OWNER_APPLICATION_UID) != workload.uid or pool.metadata.deletion_timestamp is not None:
            continue
        nic, version = serves(pool)
        items.setdefault(nic, {})[f"ipv{version}"] = [labels.get(keys.OWNER_SUBNET, "")]
        found[keys.IPPOOL_RECLAIM] = "true" if reclaimed(pool) else "false"
        if number is not None:
            found[keys.IPPOOL_IP_NUMBER] = number
    if items:
        said = [{"interface": nic, **names} for nic, names in items.items()]
        found[keys.POD_SUBNETS] = json.dumps(said)
    return found


def serves(pool: SpiderIPPool) -> tuple[str, int]:
    """NIC and IP version that an automatic pool is for."""
    labels = pool.metadata.labels
    return labels.get(keys.POOL_INTERFACE, ""), 6 if labels.get(keys.POOL_IP_VERSION) == "IPv6" else 4


def reclaimed(pool: SpiderIPPool) -> bool:
    """Whether an automatic pool goes with its application."""
    return pool.metadata.labels.get(keys.IPPOOL_RECLAIM) != "false"


def size(pool: SpiderIPPool, reserved: Ranges) -> int:
    """How many addresses a pool has to give, those in use among them; 0 where its ranges cannot be read."""
    try:
        return territory(pool).addresses.difference(reserved).size
    except PoolError:
        return 0


def settled(pool: SpiderIPPool, workload: Workload, wanted: Wanted, plan: Plan, reserved: Ranges) -> bool:
    """Whether a pool is as its application wants it."""
    meta = pool.metadata
    return (
        size(pool, reserved) == wanted.size
        and labels(workload, wanted, reclaim=plan.reclaim).items() <= meta.labels.items()
        and notes(workload, plan.number).items() <= meta.annotations.items()
    )


def built_in(workload: Workload) -> bool:
    """Whether it is one of Kubernetes' own kinds."""
    return (workload.api_version, workload.kind) in KINDS


def _owner(workload: Workload) -> dict[str, str]:
    return {
        keys.OWNER_APPLICATION_GV: label_value(workload.api_version.replace("/", "_")),
        keys.OWNER_APPLICATION_KIND: workload.kind,
        keys.OWNER_APPLICATION_NAMESPACE: workload.namespace,
        keys.OWNER_APPLICATION_NAME: label_value(workload.name),
    }


def _template(item: BuiltIn) -> PodTemplate:
    return item.spec.job_template.spec.template if isinstance(item, CronJob) else item.spec.template


def _of_job(spec: JobSpec) -> int:
    number = spec.parallelism if spec.completions is None else spec.completions
    return number or 1


def _bare(meta: ObjectMeta) -> ObjectMeta:
    return ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        resource_version=meta.resource_version,
        owner_references=[owner for owner in meta.owner_references if owner.controller],
        deletion_timestamp=meta.deletion_timestamp,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST // 2).hexdigest()
