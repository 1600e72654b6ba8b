"""A route, as pools, annotations and answers spell it."""

from msgspec import Struct


class Route(Struct, frozen=True, rename="camel"):
    """Packets to `dst` go by way of `gw`; both are of one IP family."""

    dst: str
    """Destination as a CIDR, for example 10.0.0.0/8."""
    gw: str
    """IP address of the next hop."""
