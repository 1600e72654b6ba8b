"""What is asked of a network, its addresses, its gateway and its routes, wherever an object names them."""

from collections.abc import Sequence

from msgspec import Struct

from admission.errors import FieldError, duplicate, forbidden, invalid, required
from api.route import Route
from ipam.addresses import BITS, format_address, network_span, parse_address, parse_cidr
from ipam.ranges import RangeError, Ranges, parse_range


class Network(Struct, frozen=True):
    """A network as it is written.

    Attributes:
        version: 4 or 6.
        span: first and last address.
    """

    version: int
    span: tuple[int, int]

    def __str__(self) -> str:
        first, last = self.span
        return f"{format_address(first, self.version)}/{BITS[self.version] - (last - first).bit_length()}"

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.span[0] <= address <= self.span[1]

    @property
    def addresses(self) -> Ranges:
        """All of them."""
        return Ranges(self.version, (self.span,))


def network(text: str) -> Network | None:
    """The network of a CIDR, None where it is none."""
    try:
        version, number, prefix = parse_cidr(text)
    except ValueError:
        return None
    return Network(version, network_span(version, number, prefix))


def network_errors(field: str, text: str) -> list[FieldError]:
    """A CIDR is written in one way only: pools of one network are known by its text."""
    if not text:
        return [required(field, "a CIDR such as 10.6.0.0/16")]
    found = network(text)
    if found is None:
        return [invalid(field, text, "expected a CIDR such as 10.6.0.0/16")]
    return [invalid(field, text, f"write the network as {found}")] if str(found) != text else []


def canonical(entries: list[str], version: int | None) -> list[str]:
    """The same addresses merged and in order; as they are where one of them cannot be read."""
    found, errors = ranges("", entries, version)
    return found.format() if found is not None and not errors else entries


def ranges(field: str, entries: Sequence[str], version: int | None) -> tuple[Ranges | None, list[FieldError]]:
    """The addresses of the entries that can be read, and an error for each of the others.

    Without a version the first entry that can be read says which it is; None when none can.
    """
    spans: list[tuple[int, int]] = []
    errors: list[FieldError] = []
    for at, entry in enumerate(entries):
        try:
            spans.append(parse_range(entry, version=version))
        except RangeError as error:
            errors.append(invalid(f"{field}[{at}]", entry, error.problem))
        else:
            version = version or version_of(entry)
    return (Ranges.of(version, spans) if version is not None else None), errors


def version_of(entry: str) -> int | None:
    """The IP version of an entry of a list of addresses; None where it cannot be read."""
    try:
        return parse_address(entry.partition("-")[0])[0]
    except ValueError:
        return None


def outside_errors(field: str, entries: Sequence[str], within: Network) -> list[FieldError]:
    """Every entry that is not altogether inside. Those that cannot be read are passed over."""
    errors = []
    for at, entry in enumerate(entries):
        try:
            span = parse_range(entry, version=within.version)
        except RangeError:
            continue
        outside = Ranges(within.version, (span,)).difference(within.addresses)
        if outside:
            whose = "" if outside.spans == (span,) else f"{outside} is "
            errors.append(invalid(f"{field}[{at}]", entry, f"{whose}outside of spec.subnet {within}"))
    return errors


def gateway_errors(gateway: str, within: Network, given: Ranges) -> list[FieldError]:
    """A gateway is reached without a gateway, and no pod may get its address. `given`: what pods get."""
    field = "spec.gateway"
    try:
        version, number = parse_address(gateway)
    except ValueError as error:
        return [invalid(field, gateway, str(error))]
    if version != within.version or number not in within:
        return [invalid(field, gateway, f"outside of spec.subnet {within}")]
    if number in given:
        return [invalid(field, gateway, "a pod would get it: take it out of spec.ips or put it into spec.excludeIPs")]
    return []


def route_errors(routes: Sequence[Route], within: Network) -> list[FieldError]:
    """Destinations are networks of the family, each there once, none everything; gateways are in the subnet."""
    errors = []
    seen: set[tuple[int, int]] = set()
    for at, route in enumerate(routes):
        field = f"spec.routes[{at}]"
        found = network(route.dst)
        if found is None:
            errors.append(invalid(f"{field}.dst", route.dst, "expected a CIDR such as 10.0.0.0/8"))
        elif found.version != within.version:
            errors.append(invalid(f"{field}.dst", route.dst, f"expected IPv{within.version} as spec.subnet {within}"))
        elif found.span == (0, (1 << BITS[found.version]) - 1):
            errors.append(forbidden(f"{field}.dst", f"{route.dst} is the default route, which spec.gateway makes"))
        elif found.span in seen:
            errors.append(duplicate(f"{field}.dst", route.dst))
        else:
            seen.add(found.span)
        errors += _hop_errors(f"{field}.gw", route.gw, within)
    return errors


def _hop_errors(field: str, hop: str, within: Network) -> list[FieldError]:
    try:
        version, number = parse_address(hop)
    except ValueError as error:
        return [invalid(field, hop, str(error))]
    if version != within.version or number not in within:
        return [invalid(field, hop, f"outside of spec.subnet {within}")]
    return []
