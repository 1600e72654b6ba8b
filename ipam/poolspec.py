"""What the types cannot say of a pool or a subnet as people write it."""

from collections.abc import Sequence
from ipaddress import ip_interface

from api.configfile import shown
from api.ippool import IPPoolSpec
from api.subnet import SubnetSpec
from ipam.ranges import Ranges, parse_ranges


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
