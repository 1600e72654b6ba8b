"""The stored text of a pool's records: read without losing anything, written in the documented form.

`api.ippool` knows the fields that are ours. Other programs, later versions of this one among them, may note more in a
record; that survives here, so that whoever shares the pool with us does not lose it by our writing.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from api.ippool import AllocationRecord, decode_records, encode_records
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


def write_records(records: Mapping[int, AllocationRecord], version: int) -> str | None:
    """`status.allocatedIPs` for the records: keys sorted as text; None, hence absent, when there are none."""
    by_text = {format_address(ip, version): record for ip, record in records.items()}
    if not any(isinstance(record, ExtendedRecord) for record in by_text.values()):
        return encode_records(by_text)
    return msgspec.json.encode({text: _flat(record) for text, record in sorted(by_text.items())}).decode()


def record_bytes(record: AllocationRecord, version: int) -> int:
    """Bytes of a record inside the encoded pool object, its key counted as long as the family allows.

    It is JSON within a JSON string, so a quote or a backslash becomes two bytes.
    """
    text = msgspec.json.encode(_flat(record))
    return KEY_BYTES[version] + len(text) + text.count(b'"') + text.count(b"\\")


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


def _flat(record: AllocationRecord) -> AllocationRecord | dict[str, Any]:
    """What to encode: our keys first, then the others."""
    if not isinstance(record, ExtendedRecord):
        return record
    known: dict[str, Any] = msgspec.to_builtins(record)
    del known["unknown"]
    return known | record.unknown
