"""Addresses that nobody has and nobody gets yet: freed a moment ago, or met on the network with somebody else.

An address that was just freed rests for a while, because neighbours still know it by the old hardware address, and
because a link may outlive its record by a moment. When nothing else is free it is used all the same, the one that has
rested longest first. An address that was found in use by a stranger is in quarantine: nobody gets it before its time.

`status.withheldIPs` holds both, `{"<ip>": {"reason": "cool-down", "until": "2026-01-01T00:00:00Z"}}`, so that they
survive the owner. Keys of an entry that we do not know are kept.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from api.ippool import SpiderIPPool
from ipam.addresses import format_address
from ipam.records import KEY_BYTES, RecordError, canonical

COOL_DOWN: Final = "cool-down"
"""The reason of what may be used when nothing else is free. Any other is a quarantine's."""
CONFLICT: Final = "conflict: "
"""How the reason of a quarantine begins; what was met follows."""

_decoder = msgspec.json.Decoder(dict[str, dict[str, Any]])


class Withheld(Struct, frozen=True, gc=False):
    """Until when an address is withheld, and why.

    Attributes:
        until: unix seconds; whole ones where we wrote it.
        reason: `cool-down`, or `conflict: <what was met>`.
        text: the entry's JSON, as it is stored.
    """

    until: float
    reason: str
    text: str

    @property
    def resting(self) -> bool:
        """Whether it may be used when nothing else is free."""
        return self.reason == COOL_DOWN


@lru_cache(maxsize=256)
def withhold(until: float, reason: str) -> Withheld:
    """An entry that ends with the second that `until` lies in; all addresses of a batch share one."""
    end = math.ceil(until)
    return Withheld(float(end), reason, msgspec.json.encode({"reason": reason, "until": rfc3339(end)}).decode())


def rfc3339(seconds: float) -> str:
    """Unix seconds as the API server writes them, whole ones."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_withheld(text: str | None, version: int) -> dict[int, Withheld]:
    """Entries by address, from `status.withheldIPs`.

    Raises:
        RecordError: not JSON, or of another shape; a key that is not the canonical text of an address of the family;
            an `until` that is no RFC 3339 time.
    """
    if not text:
        return {}
    try:
        decoded = _decoder.decode(text)
    except ValueError as error:
        raise RecordError(content=text, problem=f"not decodable ({error})") from None
    found: dict[int, Withheld] = {}
    for key, entry in decoded.items():
        ip = canonical(key, version)
        until, reason = entry.get("until"), entry.get("reason")
        if not isinstance(reason, str):
            raise RecordError(content=key, problem="the entry of this key has no reason")
        found[ip] = Withheld(_seconds(key, until), reason, msgspec.json.encode(entry).decode())
    return found


def withheld_now(pool: SpiderIPPool, *, now: float) -> list[Withheld]:
    """What a pool withholds at a time, in unix seconds; nothing where that cannot be read."""
    version = pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)
    try:
        return [entry for entry in read_withheld(pool.status.withheld_ips, version).values() if entry.until > now]
    except RecordError:
        return []


def write_withheld(entries: Mapping[int, Withheld], version: int) -> str | None:
    """`status.withheldIPs` for the entries: keys sorted as text; None, hence absent, when there are none."""
    if not entries:
        return None
    by_text = sorted((format_address(ip, version), entry.text) for ip, entry in entries.items())
    return "{" + ",".join(f'"{text}":{entry}' for text, entry in by_text) + "}"


def withheld_bytes(entry: Withheld, version: int) -> int:
    """Bytes of an entry inside the encoded pool object, its key counted as long as the family allows."""
    return KEY_BYTES[version] + len(entry.text) + entry.text.count('"') + entry.text.count("\\")


def _seconds(key: str, until: object) -> float:
    try:
        moment = datetime.fromisoformat(until) if isinstance(until, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise RecordError(content=key, problem=f"the entry of this key has no time it ends at, but {until!r}")
    return moment.timestamp()
