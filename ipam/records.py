"""The stored text of a pool's records: read without losing anything, written in the documented form.

`api.ippool` knows the fields that are ours. Other programs, later versions of this one among them, may note more in a
record; that survives here, so that whoever shares the pool with us does not lose it by our writing.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from api.ippool import AllocationRecord, decode_records
from ipam.addresses import format_address, parse_address

_KNOWN: Final = frozenset(field.encode_name for field in msgspec.structs.fields(AllocationRecord))
_everything = msgspec.json.Decoder(dict[str, dict[str, Any]])

KEY_BYTES: Final = {4: 15 + 6, 6: 39 + 6}
"""Of a record's key: the longest text of an address, two escaped quotes, a colon and a comma."""


class RecordError(ValueError):
    """`status.allocatedIPs` is not what the documentation says.

    Attributes:
        content: the text, or the one key that is wrong.
        problem: what is wrong with it.
    """

    def __init__(self, *, content: str, problem: str) -> None:
        super().__init__(f"{problem}: {content!r}")
        self.content = content
        self.problem = problem


class ExtendedRecord(AllocationRecord, frozen=True, omit_defaults=True, rename="camel"):
    """A record with keys that we do not know.

    Attributes:
        unknown: those keys and their values, as decoded from JSON.
    """

    unknown: dict[str, Any] = msgspec.field(default_factory=dict)


def read_records(text: str | None, version: int) -> dict[int, AllocationRecord]:
    """Records by address, from `status.allocatedIPs`.

    Raises:
        RecordError: not JSON, or of another shape; a key that is no address, not one of the family, or not spelled
            canonically (a second spelling could be a second holder of the same address).
    """
    try:
        decoded = decode_records(text)
        everything = _everything.decode(text) if text else {}
    except ValueError as error:
        raise RecordError(content=text or "", problem=f"not decodable ({error})") from None
    records: dict[int, AllocationRecord] = {}
    for key, record in decoded.items():
        ip = canonical(key, version)
        unknown = everything[key].keys() - _KNOWN
        records[ip] = _extended(record, {name: everything[key][name] for name in unknown}) if unknown else record
    return records


def canonical(key: str, version: int) -> int:
    """The address that a key names.

    Raises:
        RecordError: it is no address, not one of the family, or spelled otherwise than we would.
    """
    try:
        family, ip = parse_address(key)
    except ValueError as error:
        raise RecordError(content=key, problem=f"this key {error}") from None
    if family != version:
        raise RecordError(content=key, problem=f"this key is not an IPv{version} address")
    if format_address(ip, version) != key:
        raise RecordError(content=key, problem=f"this key is not written as {format_address(ip, version)}")
    return ip


class WrittenRecords:
    """The text of a pool's records, kept as they change.

    The whole is written with each batch, and a batch changes little of it. A change costs a search and the moving of
    references behind it, two microseconds among thousands; the text costs a join, a thirtieth of encoding it anew.
    """

    __slots__ = ("_keys", "_parts", "_version", "bytes")

    def __init__(self, records: Mapping[int, AllocationRecord], version: int) -> None:
        self._version = version
        pairs = sorted((format_address(ip, version), _encoded(record)) for ip, record in records.items())
        self._keys = [key for key, _ in pairs]
        self._parts = [f'"{key}":{text}' for key, text in pairs]
        self.bytes = sum(self._size(text) for _, text in pairs)
        """Bytes of all records inside the encoded pool object, keys counted as long as the family allows."""

    def __repr__(self) -> str:
        return f"WrittenRecords({len(self._keys)}, {self.bytes} bytes)"

    def put(self, ip: int, record: AllocationRecord) -> None:
        """Add the record of an address that has none."""
        key, text = format_address(ip, self._version), _encoded(record)
        at = bisect_left(self._keys, key)
        self._keys.insert(at, key)
        self._parts.insert(at, f'"{key}":{text}')
        self.bytes += self._size(text)

    def remove(self, ip: int) -> None:
        """Take away the record of an address that has one."""
        key = format_address(ip, self._version)
        at = bisect_left(self._keys, key)
        self.bytes -= self._size(self._parts[at][len(key) + 3 :])
        del self._keys[at], self._parts[at]

    def text(self) -> str | None:
        """`status.allocatedIPs`: keys sorted as text; None, hence absent, when there is no record."""
        return f"{{{','.join(self._parts)}}}" if self._parts else None

    def _size(self, text: str) -> int:
        """It is JSON within a JSON string, so a quote or a backslash becomes two bytes."""
        length = len(text) if text.isascii() else len(text.encode())
        return KEY_BYTES[self._version] + length + text.count('"') + text.count("\\")


def same_record(one: AllocationRecord, other: AllocationRecord) -> bool:
    """Whether two records agree in everything that we know of."""
    return all(getattr(one, name) == getattr(other, name) for name in AllocationRecord.__struct_fields__)


def stripped(record: AllocationRecord, before: AllocationRecord) -> bool:
    """Whether a record is what the original's programs leave of another: its pod and uid, and nothing else."""
    return type(record) is AllocationRecord and record == AllocationRecord(pod=before.pod, pod_uid=before.pod_uid)


def _extended(record: AllocationRecord, unknown: dict[str, Any]) -> ExtendedRecord:
    return ExtendedRecord(
        pod=record.pod,
        pod_uid=record.pod_uid,
        nic=record.nic,
        node=record.node,
        cid=record.cid,
        kept=record.kept,
        begun=record.begun,
        unknown=unknown,
    )


def _encoded(record: AllocationRecord) -> str:
    """The JSON of a record: our keys first, then the others."""
    if not isinstance(record, ExtendedRecord):
        return msgspec.json.encode(record).decode()
    known: dict[str, Any] = msgspec.to_builtins(record)
    del known["unknown"]
    return msgspec.json.encode(known | record.unknown).decode()
