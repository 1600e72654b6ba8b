"""Addresses that nobody has and nobody gets yet: freed a moment ago, or met on the network with somebody else.

An address that was just freed rests for a while, because neighbours still know it by the old hardware address, and
because a link may outlive its record by a moment. When nothing else is free it is used all the same, the one that has
rested longest first. An address that was found in use by a stranger is in quarantine: nobody gets it before its time.

An address that a network provider was asked for is owed to it when its record goes: nobody gets it, however long that
takes, before the provider has said that it is released there.

`status.withheldIPs` holds them all, `{"<ip>": {"reason": "cool-down", "until": "2026-01-01T00:00:00Z"}}`, so that they
survive the owner. Keys of an entry that we do not know are kept.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from api.ippool import AllocationRecord, SpiderIPPool
from ipam.addresses import format_address
from ipam.records import KEY_BYTES, RecordError, canonical

COOL_DOWN: Final = "cool-down"
"""The reason of what may be used when nothing else is free. Any other is a quarantine's."""
CONFLICT: Final = "conflict: "
"""How the reason of a quarantine begins; what was met follows."""
PROVIDER: Final = "provider"
"""The reason of what is owed to a network provider."""
_NEVER: Final = 253402300799.0
"""The end of the year 9999: what is owed ends when it is settled, for programs that know no debts too."""

_decoder = msgspec.json.Decoder(dict[str, dict[str, Any]])


class Owed(Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A release that a network provider has still to be told of.

    Attributes:
        pod: `namespace/name`, of who had the address.
        pod_uid: the pod's uid.
        node: where it was.
        parent_nic_mac: of the NIC below the pod's.
        by: until when a request about the address may be under way at the provider, milliseconds since the epoch: a
            release counts only if it began later.
        tried: that request is a release; else it is the one by which the address was had.
        until: unix seconds until which the address is in quarantine in any case; 0: it is not.
    """

    pod: str
    pod_uid: str
    node: str
    parent_nic_mac: str
    by: int
    tried: bool = False
    until: int = 0


class Withheld(Struct, frozen=True, gc=False):
    """Until when an address is withheld, and why.

    Attributes:
        until: unix seconds; whole ones where we wrote it.
        reason: `cool-down`, `provider`, or `conflict: <what was met>`.
        text: the entry's JSON, as it is stored.
        owed: what a network provider has still to be told; then `until` says nothing.
    """

    until: float
    reason: str
    text: str
    owed: Owed | None = None

    @property
    def resting(self) -> bool:
        """Whether it may be used when nothing else is free."""
        return self.reason == COOL_DOWN and self.owed is None


@lru_cache(maxsize=256)
def withhold(until: float, reason: str) -> Withheld:
    """An entry that ends with the second that `until` lies in; all addresses of a batch share one."""
    end = math.ceil(until)
    return Withheld(float(end), reason, msgspec.json.encode({"reason": reason, "until": rfc3339(end)}).decode())


def owing(owed: Owed, reason: str) -> Withheld:
    """An entry that ends when the debt is settled."""
    entry = {"owed": owed, "reason": reason, "until": rfc3339(_NEVER)}
    return Withheld(_NEVER, reason, msgspec.json.encode(entry).decode(), owed)


def freed(record: AllocationRecord, rest: Withheld | None) -> Withheld | None:
    """How the address of a record that goes is withheld: `rest`, unless a network provider has to be told first."""
    if not record.parent_mac:
        return rest
    if rest is not None and rest.owed is not None:
        rest = settled(rest, now=0.0, cooldown=0.0)  # the older debt is part of this one
    owed = Owed(
        pod=record.pod,
        pod_uid=record.pod_uid,
        node=record.node,
        parent_nic_mac=record.parent_mac,
        by=record.provider_by,
    )
    if rest is None or rest.resting:
        return owing(owed, PROVIDER)
    return owing(structs.replace(owed, until=int(rest.until)), rest.reason)


def settled(entry: Withheld, *, now: float, cooldown: float) -> Withheld | None:
    """What is left of an entry when the provider has released the address: the rest of a quarantine, or a rest."""
    until = 0 if entry.owed is None else entry.owed.until
    if until > now:
        return withhold(until, entry.reason)
    return withhold(now + cooldown, COOL_DOWN) if cooldown > 0 else None


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
        found[ip] = Withheld(_seconds(key, until), reason, msgspec.json.encode(entry).decode(), _owed(key, entry))
    return found


def owed_in(pool: SpiderIPPool, version: int) -> dict[int, Owed]:
    """The addresses of a pool that a network provider has not released yet. Raises `RecordError`."""
    text = pool.status.withheld_ips or ""
    if '"owed"' not in text:
        return {}
    return {ip: entry.owed for ip, entry in read_withheld(text, version).items() if entry.owed is not None}


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


def _owed(key: str, entry: Mapping[str, Any]) -> Owed | None:
    if entry.get("owed") is None:
        return None
    try:
        return msgspec.convert(entry["owed"], Owed)
    except msgspec.ValidationError as error:
        raise RecordError(content=key, problem=f"the entry of this key owes what cannot be read ({error})") from None


def _seconds(key: str, until: object) -> float:
    try:
        moment = datetime.fromisoformat(until) if isinstance(until, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise RecordError(content=key, problem=f"the entry of this key has no time it ends at, but {until!r}")
    return moment.timestamp()
