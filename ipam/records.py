"""The stored text of a pool's records: read without losing anything, written in the documented form.

`api.ippool` knows the fields that are ours. Other programs, later versions of this one among them, may note more in a
record; that survives here, so that whoever shares the pool with us does not lose it by our writing.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, KeysView, Mapping
from typing import Any, Final

import msgspec

from api.ippool import AllocationRecord, decode_records
from ipam.addresses import format_address, parse_address

_KNOWN: Final = frozenset(field.encode_name for field in msgspec.structs.fields(AllocationRecord))
_texts = msgspec.json.Decoder(dict[str, msgspec.Raw])
_record = msgspec.json.Decoder(AllocationRecord)
_everything = msgspec.json.Decoder(dict[str, Any])

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
    if version == 6 and format_address(ip, version) != key:  # IPv4 has one spelling only
        raise RecordError(content=key, problem=f"this key is not written as {format_address(ip, version)}")
    return ip


class Records(Mapping[int, AllocationRecord]):
    """The records of a pool by address, kept as the text that is written.

    A record is twice as big when it is decoded, and tens of thousands are held that nobody asks for: so one is decoded
    when somebody does, in half a microsecond, and the latest stays decoded for whoever asks twice.

    The whole is written with each batch, and a batch changes little of it. A change costs a search and the moving of
    references behind it, two microseconds among thousands; the text costs a join, a thirtieth of encoding it anew.
    """

    __slots__ = ("_entries", "_foreign", "_latest", "_sorted", "_version", "bytes")

    def __init__(self, version: int, read: Iterable[tuple[str, str, bool]] = ()) -> None:
        """`read` are the first records: address, text, and whether there are keys in it that we do not know.

        Raises `RecordError` for an address that is none, see `canonical`.
        """
        self._version = version
        self._entries: dict[int, str] = {}
        """`"<ip>":{...}` by address. The quote behind an address is less than what addresses are written with, so
        entries sort as their addresses do."""
        self._foreign: set[int] = set()
        """Addresses whose records have keys that we do not know."""
        self._latest: tuple[str, AllocationRecord] | None = None
        for key, text, foreign in read:
            ip = canonical(key, version)
            self._entries[ip] = f'"{key}":{text}'
            if foreign:
                self._foreign.add(ip)
        self._sorted = sorted(self._entries.values())
        self.bytes = sum(map(self._size, self._sorted))
        """Bytes of all records inside the encoded pool object, keys counted as long as the family allows."""

    def __repr__(self) -> str:
        return f"Records({len(self._entries)}, {self.bytes} bytes)"

    def __getitem__(self, ip: int) -> AllocationRecord:
        entry = self._entries[ip]
        if self._latest is not None and self._latest[0] is entry:
            return self._latest[1]
        text = entry[_value_at(entry) :]
        record = _record.decode(text)
        if ip in self._foreign:
            record = _extended(record, _unknown(text))
        self._latest = entry, record
        return record

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, ip: object) -> bool:
        return ip in self._entries

    def get[T](self, ip: int, default: T | None = None) -> AllocationRecord | T | None:  # type: ignore[override]
        """The record of an address. Most that are asked for have none, which costs an exception otherwise."""
        return self[ip] if ip in self._entries else default

    def addresses(self) -> KeysView[int]:
        """Those that have a record, a live view."""
        return self._entries.keys()

    def other_than(self, others: "Records") -> list[int]:
        """The addresses that have a record in both, and not the same. Decodes nothing."""
        return [ip for ip, entry in self._entries.items() if others.entry(ip) not in (entry, None)]

    def entry(self, ip: int) -> str | None:
        """Address and record as they are written; None where there is none."""
        return self._entries.get(ip)

    def put(self, ip: int, record: AllocationRecord) -> None:
        """Add the record of an address that has none."""
        entry = f'"{format_address(ip, self._version)}":{_encoded(record)}'
        self._entries[ip] = entry
        insort(self._sorted, entry)
        if isinstance(record, ExtendedRecord):
            self._foreign.add(ip)
        self._latest = entry, record
        self.bytes += self._size(entry)

    def remove(self, ip: int) -> None:
        """Take away the record of an address that has one."""
        entry = self._entries.pop(ip)
        del self._sorted[bisect_left(self._sorted, entry)]
        self._foreign.discard(ip)
        self.bytes -= self._size(entry)

    def text(self) -> str | None:
        """`status.allocatedIPs`: keys sorted as text; None, hence absent, when there is no record."""
        return f"{{{','.join(self._sorted)}}}" if self._sorted else None

    def _size(self, entry: str) -> int:
        """It is JSON within a JSON string, so a quote or a backslash becomes two bytes."""
        length = len(entry) if entry.isascii() else len(entry.encode())
        return KEY_BYTES[self._version] + length - _value_at(entry) + entry.count('"') - 2 + entry.count("\\")


def read_records(text: str | None, version: int) -> Records:
    """Records by address, from `status.allocatedIPs`.

    Raises:
        RecordError: not JSON, or of another shape; a key that is no address, not one of the family, or not spelled
            canonically (a second spelling could be a second holder of the same address).
    """
    try:
        read = [(key, *_normal(bytes(raw))) for key, raw in _texts.decode(text or "{}").items()]
    except ValueError as error:
        raise RecordError(content=text or "", problem=f"not decodable ({_complaint(text) or error})") from None
    return Records(version, read)


def same_record(one: AllocationRecord, other: AllocationRecord) -> bool:
    """Whether two records agree in everything that we know of."""
    return all(getattr(one, name) == getattr(other, name) for name in AllocationRecord.__struct_fields__)


def stripped(record: AllocationRecord, before: AllocationRecord) -> bool:
    """Whether a record is what the original's programs leave of another: its pod and uid, and nothing else."""
    return type(record) is AllocationRecord and record == AllocationRecord(pod=before.pod, pod_uid=before.pod_uid)


def _normal(raw: bytes) -> tuple[str, bool]:
    """The text of a record as we write it, and whether it has keys that we do not know. Raises `DecodeError`."""
    record = _record.decode(raw)
    written = msgspec.json.encode(record)
    if written == raw:  # we wrote it ourselves
        return written.decode(), False
    unknown = _unknown(raw)
    return (_encoded(_extended(record, unknown)), True) if unknown else (written.decode(), False)


def _unknown(text: str | bytes) -> dict[str, Any]:
    """The keys of a record that are not ours."""
    return {name: value for name, value in _everything.decode(text).items() if name not in _KNOWN}


def _complaint(text: str | None) -> str:
    """What is wrong in a text of records, said with the place in all of it."""
    try:
        decode_records(text)
    except ValueError as error:
        return str(error)
    return ""


def _value_at(entry: str) -> int:
    """Where the record begins, behind its key."""
    return entry.index('":') + 2


def _extended(record: AllocationRecord, unknown: dict[str, Any]) -> ExtendedRecord:
    return ExtendedRecord(
        pod=record.pod,
        pod_uid=record.pod_uid,
        nic=record.nic,
        node=record.node,
        cid=record.cid,
        kept=record.kept,
        begun=record.begun,
        parent_mac=record.parent_mac,
        provider_by=record.provider_by,
        unknown=unknown,
    )


def _encoded(record: AllocationRecord) -> str:
    """The JSON of a record: our keys first, then the others."""
    if not isinstance(record, ExtendedRecord):
        return msgspec.json.encode(record).decode()
    known: dict[str, Any] = msgspec.to_builtins(record)
    del known["unknown"]
    return msgspec.json.encode(known | record.unknown).decode()
