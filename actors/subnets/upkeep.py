"""What an object of a subnet has to have besides its addresses: owner, labels, finalizer, what pools inherit. Pure."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from actors.subnets.messages import AutoPool
from api.annotations import SUBNET_CIDR, SUBNET_SEEN, cidr_label
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import FINALIZER, Condition, LabelSelector, ObjectMeta, with_condition
from api.subnet import SpiderSubnet
from ipam.adoption import adopted, labels, owner
from ipam.withheld import rfc3339

READY: Final = "Ready"
"""Type of the condition in a subnet's status."""


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


def served(
    conditions: Sequence[Condition], meta: ObjectMeta, *, unready: tuple[str, str] | None, now: float
) -> list[Condition]:
    """The conditions with whether pools get addresses of the subnet; `unready`: why not, in one word and for people."""
    reason, message = unready or ("Served", "pools get addresses of the subnet")
    mine = Condition(
        type=READY,
        status="False" if unready else "True",
        reason=reason,
        message=message,
        last_transition_time=rfc3339(now),
        observed_generation=meta.generation,
    )
    return with_condition(conditions, mine)


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
    """What a pool of the subnet lacks, as a merge patch; empty when it lacks nothing."""
    after = adopted(pool, subnet)
    meta: dict[str, Any] = {}
    if after.metadata.labels != pool.metadata.labels:
        meta["labels"] = labels(subnet)
    if after.metadata.owner_references != pool.metadata.owner_references:
        meta["ownerReferences"] = msgspec.to_builtins(after.metadata.owner_references)
    if after.metadata.finalizers != pool.metadata.finalizers:
        meta["finalizers"] = after.metadata.finalizers
    spec: dict[str, Any] = {}
    if after.spec.gateway != pool.spec.gateway:
        spec["gateway"] = after.spec.gateway
    if after.spec.routes != pool.spec.routes:
        spec["routes"] = msgspec.to_builtins(after.spec.routes)
    return {**({"metadata": meta} if meta else {}), **({"spec": spec} if spec else {})}


def own_lacks(subnet: SpiderSubnet) -> dict[str, Any]:
    """What the subnet itself lacks, as a merge patch."""
    meta: dict[str, Any] = {}
    if FINALIZER not in subnet.metadata.finalizers:
        meta["finalizers"] = [*subnet.metadata.finalizers, FINALIZER]
    label = cidr_label(subnet.spec.subnet)
    if subnet.metadata.labels.get(SUBNET_CIDR) != label:
        meta["labels"] = {SUBNET_CIDR: label}
    return {"metadata": meta} if meta else {}


def same(pool: SpiderIPPool, begun: SpiderIPPool) -> bool:
    """Whether nothing that matters here has been written since."""
    return (
        pool.metadata.uid == begun.metadata.uid
        and pool.metadata.generation == begun.metadata.generation
        and pool.metadata.annotations.get(SUBNET_SEEN) == begun.metadata.annotations.get(SUBNET_SEEN)
    )
