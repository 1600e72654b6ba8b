"""What an object of a subnet has to have besides its addresses: owner, labels, finalizer, what pools inherit. Pure."""

from typing import Any

import msgspec
from msgspec import structs

from actors.subnets.messages import AutoPool
from api.annotations import OWNER_SUBNET, POOL_CIDR, SUBNET_CIDR, cidr_label
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import SUBNET
from api.meta import FINALIZER, LabelSelector, ObjectMeta, OwnerReference
from api.subnet import SpiderSubnet


def owner(subnet: SpiderSubnet) -> OwnerReference:
    """How its pools name it."""
    return OwnerReference(
        api_version=SUBNET.api_version,
        kind=SUBNET.kind,
        name=subnet.metadata.name,
        uid=subnet.metadata.uid,
        controller=True,
        block_owner_deletion=True,
    )


def owners(found: list[OwnerReference], subnet: SpiderSubnet) -> list[OwnerReference]:
    """The owners of a pool, the subnet among them. What another subnet left goes; who controls it, does so still."""
    ours = owner(subnet)
    others = [one for one in found if (one.api_version, one.kind) != (ours.api_version, ours.kind)]
    if any(one.controller for one in others):
        ours = structs.replace(ours, controller=None)
    return [*others, ours]


def new_pool(subnet: SpiderSubnet, wanted: AutoPool) -> SpiderIPPool:
    """An automatic pool as it is made: without any address."""
    return SpiderIPPool(
        metadata=ObjectMeta(
            name=wanted.name,
            labels={**wanted.labels, **labels(subnet)},
            annotations=wanted.annotations,
            finalizers=[FINALIZER],
            owner_references=[owner(subnet)],
        ),
        spec=IPPoolSpec(
            ip_version=subnet.spec.ip_version or (6 if ":" in subnet.spec.subnet else 4),
            subnet=subnet.spec.subnet,
            gateway=subnet.spec.gateway,
            routes=subnet.spec.routes,
            pod_affinity=LabelSelector(match_labels=wanted.affinity),
        ),
    )


def labels(subnet: SpiderSubnet) -> dict[str, str]:
    """Of every pool of the subnet."""
    return {OWNER_SUBNET: subnet.metadata.name, POOL_CIDR: cidr_label(subnet.spec.subnet)}


def refreshed(pool: SpiderIPPool, wanted: AutoPool) -> dict[str, Any]:
    """What an automatic pool lacks of what its application wants, as a merge patch; empty when it lacks nothing."""
    change: dict[str, Any] = {}
    meta = {
        field: missing
        for field, want, have in (
            ("labels", wanted.labels, pool.metadata.labels),
            ("annotations", wanted.annotations, pool.metadata.annotations),
        )
        if (missing := {key: value for key, value in want.items() if have.get(key) != value})
    }
    if meta:
        change["metadata"] = meta
    if pool.spec.pod_affinity is None or pool.spec.pod_affinity.match_labels != wanted.affinity:
        before = pool.spec.pod_affinity.match_labels if pool.spec.pod_affinity is not None else {}
        change["spec"] = {"podAffinity": {"matchLabels": {**dict.fromkeys(before), **wanted.affinity}}}
    return change


def adoption(pool: SpiderIPPool, subnet: SpiderSubnet) -> dict[str, Any]:
    """What a pool of the subnet lacks, as a merge patch; empty when it lacks nothing.

    Gateway and routes are inherited once, by a pool that had another owner or none: what somebody takes out of a pool
    later stays out.
    """
    meta: dict[str, Any] = {}
    lacking = {key: value for key, value in labels(subnet).items() if pool.metadata.labels.get(key) != value}
    if lacking:
        meta["labels"] = lacking
    wanted = owners(pool.metadata.owner_references, subnet)
    adopted = any(one.uid == subnet.metadata.uid for one in pool.metadata.owner_references)
    if not adopted:
        meta["ownerReferences"] = msgspec.to_builtins(wanted)
    if FINALIZER not in pool.metadata.finalizers:
        meta["finalizers"] = [*pool.metadata.finalizers, FINALIZER]
    change: dict[str, Any] = {"metadata": meta} if meta else {}
    spec: dict[str, Any] = {}
    if not adopted and pool.spec.gateway is None and subnet.spec.gateway is not None:
        spec["gateway"] = subnet.spec.gateway
    if not adopted and pool.spec.routes is None and subnet.spec.routes:
        spec["routes"] = msgspec.to_builtins(subnet.spec.routes)
    if spec:
        change["spec"] = spec
    return change


def own_lacks(subnet: SpiderSubnet) -> dict[str, Any]:
    """What the subnet itself lacks, as a merge patch."""
    meta: dict[str, Any] = {}
    if FINALIZER not in subnet.metadata.finalizers:
        meta["finalizers"] = [*subnet.metadata.finalizers, FINALIZER]
    label = cidr_label(subnet.spec.subnet)
    if subnet.metadata.labels.get(SUBNET_CIDR) != label:
        meta["labels"] = {SUBNET_CIDR: label}
    return {"metadata": meta} if meta else {}
