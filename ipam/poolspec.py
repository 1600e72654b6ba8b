"""What the types cannot say of a pool or a subnet as people write it."""

from collections.abc import Sequence
from ipaddress import ip_interface

from api.configfile import shown
from api.ippool import IPPoolSpec, SpiderIPPool
from api.subnet import SubnetSpec
from ipam.addresses import format_address
from ipam.ranges import Ranges, parse_ranges
from ipam.records import read_records

_NAMED = 3
"""Addresses in use that an error names."""


class SpecError(ValueError):
    """A field whose value makes no sense. Its text names both.

    Attributes:
        field: as in the object, e.g. `spec.ips`.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.field = field
        self.text = text


def check(spec: IPPoolSpec | SubnetSpec) -> None:
    """Check subnet, family, addresses and gateway. Raises `SpecError`, or `RangeError` for an entry of a list."""
    try:
        subnet = ip_interface(spec.subnet).network
    except ValueError:
        subnet = None
    if subnet is None or "/" not in spec.subnet:
        raise SpecError("spec.subnet", f"{shown(spec.subnet)}: expected a CIDR such as 10.6.0.0/16")
    if spec.ip_version not in {None, subnet.version}:
        raise SpecError("spec.ipVersion", f"{spec.ip_version}: spec.subnet is {spec.subnet}")
    whole = Ranges.of(subnet.version, [(int(subnet.network_address), int(subnet.broadcast_address))])
    gateway = [] if spec.gateway is None else [spec.gateway]
    lists: tuple[tuple[str, Sequence[str]], ...] = (
        ("spec.ips", spec.ips),
        ("spec.excludeIPs", spec.exclude_ips),
        ("spec.gateway", gateway),
    )
    for field, entries in lists:
        outside = parse_ranges(entries, subnet.version, field=field).difference(whole)
        if outside:
            raise SpecError(field, f"{outside}: outside of spec.subnet {spec.subnet}")


def check_change(found: SpiderIPPool, spec: IPPoolSpec) -> None:
    """Check what a pool that is there is to become: its network never changes, and what is in use stays in it.

    Both specs have been checked for themselves. Raises `SpecError`, or `RecordError` where the records cannot be read.
    """
    before = ip_interface(found.spec.subnet).network
    if ip_interface(spec.subnet).network != before:
        raise SpecError("spec.subnet", f"{shown(spec.subnet)}: it is {before} and never changes")
    left = parse_ranges(spec.ips, before.version, field="spec.ips").difference(
        parse_ranges(spec.exclude_ips, before.version, field="spec.excludeIPs")
    )
    records = read_records(found.status.allocated_ips, before.version)
    lost = [(ip, record) for ip, record in sorted(records.items()) if ip not in left]
    if lost:
        named = ", ".join(f"{format_address(ip, before.version)} of {record.pod}" for ip, record in lost[:_NAMED])
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise SpecError("spec.ips", f"would leave out what is in use: {named}{more}")
