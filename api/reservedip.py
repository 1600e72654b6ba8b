"""SpiderReservedIP: addresses that no pool gives to any pod."""

from msgspec import Struct, field

from api.ippool import IPVersion
from api.meta import API_VERSION, ObjectMeta


class ReservedIPSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The addresses."""

    ip_version: IPVersion | None = None
    """IP family, 4 or 6. Taken from the addresses when absent."""
    ips: list[str] = []
    """Addresses of one family, single or as ranges: 10.6.0.5 or 10.6.0.10-10.6.0.20."""


class SpiderReservedIP(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Addresses that no pool gives to any pod, for example because other machines of the LAN have them."""

    api_version: str = API_VERSION
    kind: str = "SpiderReservedIP"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ReservedIPSpec = field(default_factory=ReservedIPSpec)
