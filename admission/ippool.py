"""What may be written of a SpiderIPPool.

What is in use is read from the old object's own status, so it is as old as the request. What other pools have comes
from an atlas of all pools, which may lag: two pools that are admitted at the same moment may overlap, and then neither
owner grants what they share (`ipam.overlap`).

Of an object whose spec stays as it is nothing is asked: labels and finalizers of a pool that was there before any rule
can always be written.
"""

from collections.abc import Callable, Collection
from typing import Final

from msgspec import structs

from admission.addressed import completed, family_errors, fixed_errors
from admission.errors import FieldError, forbidden, invalid, required
from admission.network import (
    Network,
    gateway_errors,
    network,
    network_errors,
    outside_errors,
    ranges,
    route_errors,
)
from admission.review import Judgement, Review
from admission.selector import selector_errors
from api.annotations import (
    APP_API_GROUP,
    APP_API_VERSION,
    APP_KIND,
    APP_NAME,
    APP_NAMESPACE,
    OWNER_APPLICATION_NAME,
    POOL_CIDR,
)
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import LabelSelector, ObjectMeta
from ipam.addresses import format_address
from ipam.overlap import Atlas
from ipam.ranges import Ranges
from ipam.records import RecordError, read_records
from ipam.withheld import owed_in

_NAMED: Final = 3
"""Addresses in use that an error names."""
_SHARED: Final = 5
"""Other pools that are named."""
_APPLICATION: Final = frozenset({APP_API_GROUP, APP_API_VERSION, APP_KIND, APP_NAMESPACE, APP_NAME})


class IPPoolRules:
    """`admission.review.Rules` of pools."""

    def __init__(
        self,
        atlas: Callable[[], Atlas] = Atlas,
        *,
        families: Collection[int] = (4, 6),
        guard_deletion: bool = False,
        finalizer: bool = True,
    ) -> None:
        """Say by what pools are judged.

        Args:
            atlas: the pools that there are; without one nothing is said of overlaps.
            families: IP versions that new pools may have.
            guard_deletion: refuse to delete a pool in use, which otherwise goes when its last address is free.
            finalizer: whether pools get the finalizer, for stores where somebody takes it off again.
        """
        self._atlas = atlas
        self._families = families
        self._guard_deletion = guard_deletion
        self._finalizer = finalizer

    def complete(self, review: Review[SpiderIPPool]) -> SpiderIPPool:
        """Family, label, finalizer, and the lists of addresses in their one form."""
        pool = review.new
        if review.operation == "DELETE" or pool.metadata.deletion_timestamp is not None:
            return pool
        meta, spec = completed(pool.metadata, pool.spec, label=POOL_CIDR, finalizer=self._finalizer)
        return structs.replace(pool, metadata=meta, spec=spec)

    def judge(self, review: Review[SpiderIPPool]) -> Judgement:
        """Whether it may be written."""
        new, old = review.new, review.old
        if review.operation == "DELETE":
            return Judgement(self._deletion_errors(new))
        if old is not None and new.spec == old.spec:
            return Judgement()
        if old is not None and old.metadata.deletion_timestamp is not None:
            return Judgement((forbidden("spec", "the pool is being deleted"),))
        errors = [*network_errors("spec.subnet", new.spec.subnet)]
        within = network(new.spec.subnet)
        errors += family_errors(new.spec, within, families=self._families, created=old is None)
        version = within.version if within is not None else new.spec.ip_version
        listed, wrong = ranges("spec.ips", new.spec.ips, version)
        excluded, also_wrong = ranges("spec.excludeIPs", new.spec.exclude_ips, version)
        errors += [*wrong, *also_wrong]
        if within is not None:
            given = (listed or Ranges(within.version)).difference(excluded or Ranges(within.version))
            errors += outside_errors("spec.ips", new.spec.ips, within)
            errors += outside_errors("spec.excludeIPs", new.spec.exclude_ips, within)
            if new.spec.gateway is not None:
                errors += gateway_errors(new.spec.gateway, within, given)
            errors += route_errors(new.spec.routes or (), within)
            errors += self._overlap_errors(new, within, given, old)
        errors += affinity_errors(new.metadata, new.spec)
        if old is not None:
            errors += _change_errors(old, new.spec)
        return Judgement(tuple(errors))

    def _overlap_errors(
        self, pool: SpiderIPPool, within: Network, given: Ranges, old: SpiderIPPool | None
    ) -> list[FieldError]:
        """Of what the pool would have that it has not yet."""
        atlas = self._atlas()
        errors = []
        if old is None:
            errors += [
                invalid("spec.subnet", pool.spec.subnet, f"overlaps {cidr}, the subnet of SpiderIPPool {other}")
                for cidr, other in atlas.crossing(within.version, within.span)[:_SHARED]
            ]
        added = given.difference(_given(old.spec, within.version)) if old is not None else given
        shared = atlas.shared(added, but=pool.metadata.name, most=_SHARED)
        if shared is not None:
            errors += [
                invalid("spec.ips", ",".join(addresses.format()), f"SpiderIPPool {other} has these addresses")
                for other, addresses in shared.shares
            ]
        return errors

    def _deletion_errors(self, pool: SpiderIPPool) -> tuple[FieldError, ...]:
        count = pool.status.allocated_ip_count or 0
        if not self._guard_deletion or (not count and pool.status.allocated_ips is None):
            return ()
        return (forbidden("status.allocatedIPCount", f"{count} addresses are in use"),)


def affinity_errors(meta: ObjectMeta, spec: IPPoolSpec) -> list[FieldError]:
    """A pool that was made for an application is found by the five labels that name it, any other by pods' labels."""
    errors = []
    pods = spec.pod_affinity
    if pods is not None and OWNER_APPLICATION_NAME in meta.labels:
        strange = sorted(pods.match_labels.keys() - _APPLICATION)
        errors += [forbidden("spec.podAffinity.matchLabels", f"{key}: the pool is an application's") for key in strange]
        if pods.match_expressions:
            errors.append(forbidden("spec.podAffinity.matchExpressions", "the pool is an application's"))
    elif pods is not None:
        errors += selector_errors("spec.podAffinity", pods)
        if pods == LabelSelector():
            errors.append(required("spec.podAffinity", "at least one label; leave it out for all pods"))
    for field, selector in (
        ("spec.namespaceAffinity", spec.namespace_affinity),
        ("spec.nodeAffinity", spec.node_affinity),
    ):
        errors += selector_errors(field, selector) if selector is not None else []
    return errors


def _change_errors(old: SpiderIPPool, spec: IPPoolSpec) -> list[FieldError]:
    """The network never changes, and what is in use stays in the pool."""
    errors = fixed_errors(old.spec, spec)
    before = network(old.spec.subnet)
    if before is None or before != network(spec.subnet):
        return errors
    listed, _ = ranges("", spec.ips, before.version)
    excluded, _ = ranges("", spec.exclude_ips, before.version)
    assert listed is not None and excluded is not None  # they have a version
    gone = _given(old.spec, before.version).difference(listed.difference(excluded))
    if not gone:
        return errors
    try:
        records = read_records(old.status.allocated_ips, before.version)
        owed = owed_in(old, before.version)
    except RecordError as error:
        return [*errors, forbidden("spec.ips", f"nothing can be taken out, status.allocatedIPs: {error}")]
    lost = [(ip, records[ip].pod) for ip in sorted(records) if ip in gone]
    # Another pool could have them, and grant them, while the network provider still has them elsewhere.
    lost += [(ip, f"{owed[ip].pod}, which the network provider has to release") for ip in sorted(owed) if ip in gone]
    for field, those in (
        ("spec.ips", [one for one in lost if one[0] not in listed]),
        ("spec.excludeIPs", [one for one in lost if one[0] in listed]),
    ):
        if those:
            errors.append(forbidden(field, f"would leave out what is in use: {_held(those, before.version)}"))
    return errors


def _held(lost: list[tuple[int, str]], version: int) -> str:
    named = ", ".join(f"{format_address(ip, version)} of {pod}" for ip, pod in lost[:_NAMED])
    return f"{named} and {len(lost) - _NAMED} more" if len(lost) > _NAMED else named


def _given(spec: IPPoolSpec, version: int) -> Ranges:
    """What pods may get, as far as it can be read."""
    listed, _ = ranges("", spec.ips, version)
    excluded, _ = ranges("", spec.exclude_ips, version)
    assert listed is not None and excluded is not None  # they have a version
    return listed.difference(excluded)
