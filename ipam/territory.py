"""Which addresses a pool is about: family, prefix length, and what its spec lists without what it excludes."""

from msgspec import Struct

from api.ippool import SpiderIPPool
from ipam.addresses import network_span, parse_cidr
from ipam.ranges import RangeError, Ranges, parse_ranges


class PoolError(Exception):
    """A pool object that cannot be trusted: nothing was granted or released, and nothing of it may be overwritten.

    Attributes:
        pool: name of the pool.
        field: where the problem is, e.g. `status.allocatedIPs`.
        content: what stands there, at most 200 characters of it.
    """

    def __init__(self, *, pool: str, field: str, content: str, problem: str) -> None:
        shown = content if len(content) <= 200 else f"{content[:200]}..."
        super().__init__(f"SpiderIPPool {pool}: {field}: {problem}: {shown!r}")
        self.pool = pool
        self.field = field
        self.content = shown


class Territory(Struct, frozen=True):
    """The addresses of a pool.

    Attributes:
        version: 4 or 6.
        prefix: length of the subnet's.
        network: first and last address of the subnet.
        addresses: `spec.ips` without `spec.excludeIPs`.
    """

    version: int
    prefix: int
    network: tuple[int, int]
    addresses: Ranges


def territory(pool: SpiderIPPool) -> Territory:
    """Read a pool's spec.

    Raises:
        PoolError: the subnet is no CIDR, `spec.ipVersion` is another family, or a range is malformed.
    """
    name, subnet = pool.metadata.name, pool.spec.subnet
    try:
        version, number, prefix = parse_cidr(subnet)
    except ValueError as error:
        raise PoolError(pool=name, field="spec.subnet", content=subnet, problem=str(error)) from None
    if pool.spec.ip_version not in (None, version):
        raise PoolError(
            pool=name, field="spec.ipVersion", content=str(pool.spec.ip_version), problem=f"spec.subnet is {subnet}"
        )
    try:
        addresses = parse_ranges(pool.spec.ips or (), version, field="spec.ips").difference(
            parse_ranges(pool.spec.exclude_ips or (), version, field="spec.excludeIPs")
        )
    except RangeError as error:
        raise PoolError(pool=name, field=error.field, content=error.value, problem=error.problem) from None
    return Territory(version, prefix, network_span(version, number, prefix), addresses)
