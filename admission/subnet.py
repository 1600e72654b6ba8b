"""What may be written of a SpiderSubnet, and of a SpiderIPPool because there is a SpiderSubnet.

What pools have of a subnet is read from the old object's own status: the API server asks again when that has changed
meanwhile, so no entry is ever left outside. What other subnets and pools there are comes from snapshots, which may lag.
The owner of a subnet sees what slips through (`actors.subnets`).
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

from msgspec import structs

from admission.addressed import completed, family_errors, fixed_errors
from admission.errors import FieldError, forbidden, invalid
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
from api.annotations import SUBNET_CIDR, SUBNET_SEEN
from api.ippool import SpiderIPPool
from api.subnet import SpiderSubnet, SubnetSpec
from ipam.adoption import adopted
from ipam.ranges import Ranges
from ipam.subnetbook import Entry, ground, is_automatic, read_entries

type Subnets = Callable[[], Iterable[SpiderSubnet]]
type Pools = Callable[[], Iterable[SpiderIPPool]]

_NAMED: Final = 5
"""Other objects that are named."""


class SubnetRules:
    """`admission.review.Rules` of subnets."""

    def __init__(
        self,
        subnets: Subnets = tuple,
        pools: Pools = tuple,
        *,
        families: Collection[int] = (4, 6),
        guard_deletion: bool = False,
        finalizer: bool = True,
    ) -> None:
        """Say by what subnets are judged.

        Args:
            subnets: those that there are.
            pools: likewise.
            families: IP versions that new subnets may have.
            guard_deletion: refuse to delete a subnet that has pools, which otherwise goes with the last of them.
            finalizer: whether subnets get the finalizer: where somebody takes it off again.
        """
        self._subnets = subnets
        self._pools = pools
        self._families = families
        self._guard_deletion = guard_deletion
        self._finalizer = finalizer

    def complete(self, review: Review[SpiderSubnet]) -> SpiderSubnet:
        """Family, label, finalizer, and the lists of addresses in their one form."""
        subnet = review.new
        if review.operation == "DELETE" or subnet.metadata.deletion_timestamp is not None:
            return subnet
        meta, spec = completed(subnet.metadata, subnet.spec, label=SUBNET_CIDR, finalizer=self._finalizer)
        return structs.replace(subnet, metadata=meta, spec=spec)

    def judge(self, review: Review[SpiderSubnet]) -> Judgement:
        """Whether it may be written."""
        new, old = review.new, review.old
        if review.operation == "DELETE":
            return Judgement(self._deletion_errors(new))
        if old is not None and new.spec == old.spec:
            return Judgement()
        if old is not None and old.metadata.deletion_timestamp is not None:
            return Judgement((forbidden("spec", "the subnet is being deleted"),))
        errors = network_errors("spec.subnet", new.spec.subnet)
        within = network(new.spec.subnet)
        version = within.version if within is not None else new.spec.ip_version
        errors += family_errors(new.spec, within, families=self._families, created=old is None)
        listed, wrong = ranges("spec.ips", new.spec.ips, version)
        excluded, also_wrong = ranges("spec.excludeIPs", new.spec.exclude_ips, version)
        errors += [*wrong, *also_wrong]
        if within is None:
            return Judgement(tuple(errors))
        given = (listed or Ranges(within.version)).difference(excluded or Ranges(within.version))
        errors += outside_errors("spec.ips", new.spec.ips, within)
        errors += outside_errors("spec.excludeIPs", new.spec.exclude_ips, within)
        if new.spec.gateway is not None:
            errors += gateway_errors(new.spec.gateway, within, given)
        errors += route_errors(new.spec.routes, within)
        errors += self._neighbour_errors(new, within, given) if old is None else _change_errors(old, new.spec, given)
        return Judgement(tuple(errors))

    def _neighbour_errors(self, subnet: SpiderSubnet, within: Network, given: Ranges) -> list[FieldError]:
        """No two subnets share an address; pools that are there already fit into the new one, or are elsewhere."""
        cidr = subnet.spec.subnet
        errors = [
            invalid("spec.subnet", cidr, f"overlaps {other.spec.subnet} of SpiderSubnet {other.metadata.name}")
            for other in self._subnets()
            if other.metadata.name != subnet.metadata.name and _meet(within, other.spec.subnet)
        ][:_NAMED]
        for pool in self._pools():
            if len(errors) >= _NAMED:
                break
            name = pool.metadata.name
            if pool.spec.subnet != cidr and _meet(within, pool.spec.subnet):
                errors.append(invalid("spec.subnet", cidr, f"overlaps {pool.spec.subnet} of SpiderIPPool {name}"))
            elif pool.spec.subnet == cidr and (missing := _given(pool, within.version).difference(given)):
                errors.append(invalid("spec.ips", subnet.spec.ips, f"lacks {missing}, which SpiderIPPool {name} has"))
        return errors

    def _deletion_errors(self, subnet: SpiderSubnet) -> tuple[FieldError, ...]:
        count = subnet.status.allocated_ip_count or 0
        if not self._guard_deletion or not count:
            return ()
        return (forbidden("status.allocatedIPCount", f"{count} addresses are pools'"),)


class PoolInSubnetRules:
    """`admission.review.Rules` of pools whose subnet is a SpiderSubnet; beside those of all pools."""

    def __init__(self, subnets: Subnets) -> None:
        """`subnets` are those that there are."""
        self._subnets = subnets

    def complete(self, review: Review[SpiderIPPool]) -> SpiderIPPool:
        """Owner, label, finalizer; gateway and routes where the pool names none."""
        pool = review.new
        subnet = self._owner(pool)
        gone = review.operation == "DELETE" or pool.metadata.deletion_timestamp is not None
        if gone or subnet is None or subnet.metadata.deletion_timestamp is not None:
            return pool
        return adopted(pool, subnet)

    def judge(self, review: Review[SpiderIPPool]) -> Judgement:
        """Whether it may be written."""
        new, old = review.new, review.old
        within = network(new.spec.subnet)
        if review.operation == "DELETE" or within is None or (old is not None and new.spec == old.spec):
            return Judgement()
        subnet = self._owner(new)
        if subnet is None:
            return Judgement(tuple(self._crossing(new, within)) if old is None else ())
        if old is None and subnet.metadata.deletion_timestamp is not None:
            text = f"SpiderSubnet {subnet.metadata.name} is being deleted"
            return Judgement((forbidden("spec.subnet", text),))
        if is_automatic(new):
            return Judgement(_automatic_errors(new, old, within.version))
        return Judgement(_manual_errors(new, old, subnet, within.version))

    def _owner(self, pool: SpiderIPPool) -> SpiderSubnet | None:
        return next((one for one in self._subnets() if one.spec.subnet == pool.spec.subnet), None)

    def _crossing(self, pool: SpiderIPPool, within: Network) -> list[FieldError]:
        return [
            invalid("spec.subnet", pool.spec.subnet, f"overlaps {one.spec.subnet} of SpiderSubnet {one.metadata.name}")
            for one in self._subnets()
            if _meet(within, one.spec.subnet)
        ][:_NAMED]


def _automatic_errors(new: SpiderIPPool, old: SpiderIPPool | None, version: int) -> tuple[FieldError, ...]:
    """The addresses of an automatic pool are its subnet's owner's business, who says under which subnet it writes."""
    before = _given(old, version) if old is not None else Ranges(version)
    seen = old.metadata.annotations.get(SUBNET_SEEN) if old is not None else None
    if _given(new, version) == before or new.metadata.annotations.get(SUBNET_SEEN) != seen:
        return ()
    text = "the pool was made for an application, whose annotation ipam.spidernet.io/ippool-ip-number sizes it"
    return (forbidden("spec.ips", text),)


def _manual_errors(
    new: SpiderIPPool, old: SpiderIPPool | None, subnet: SpiderSubnet, version: int
) -> tuple[FieldError, ...]:
    """What is added lies in the subnet, and is no automatic pool's."""
    added = _given(new, version)
    if old is not None:
        added = added.difference(_given(old, version))
    try:
        whole = ground(subnet.spec)
    except ValueError:
        return ()
    name = subnet.metadata.name
    errors = []
    if outside := added.difference(whole):
        errors.append(invalid("spec.ips", new.spec.ips, f"SpiderSubnet {name} does not have {outside}"))
    for other, entry in _entries(subnet, version).items():
        if other != new.metadata.name and entry.application and (shared := entry.addresses.intersection(added)):
            text = f"SpiderSubnet {name} has given {shared} to SpiderIPPool {other}"
            errors.append(invalid("spec.ips", new.spec.ips, text))
    return tuple(errors[:_NAMED])


def _change_errors(old: SpiderSubnet, spec: SubnetSpec, given: Ranges) -> list[FieldError]:
    """The network never changes, and what pools have stays in the subnet."""
    errors = fixed_errors(old.spec, spec)
    before = network(old.spec.subnet)
    if before is None or before != network(spec.subnet):
        return errors
    try:
        gone = ground(old.spec).difference(given)
    except ValueError:
        return errors
    lost = [
        forbidden("spec.ips", f"would leave out {share}, which SpiderIPPool {name} has")
        for name, entry in sorted(_entries(old, before.version).items())
        if (share := entry.addresses.intersection(gone))
    ]
    return [*errors, *lost[:_NAMED]]


def _entries(subnet: SpiderSubnet, version: int) -> dict[str, Entry]:
    return read_entries(subnet.status.controlled_ippools, version)[0]


def _given(pool: SpiderIPPool, version: int) -> Ranges:
    """What pods may get of a pool, as far as it can be read."""
    listed, _ = ranges("", pool.spec.ips, version)
    excluded, _ = ranges("", pool.spec.exclude_ips, version)
    assert listed is not None and excluded is not None  # they have a version
    return listed.difference(excluded)


def _meet(within: Network, cidr: str) -> bool:
    other = network(cidr)
    return (
        other is not None
        and other.version == within.version
        and other.span[0] <= within.span[1]
        and within.span[0] <= other.span[1]
    )
