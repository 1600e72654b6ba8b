"""The text of a pool's records, kept as they change, is what encoding all of them anew would give."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from api.ippool import AllocationRecord, encode_records
from ipam.addresses import format_address
from ipam.records import KEY_BYTES, ExtendedRecord, Records, read_records

BASE = {4: 10 << 24, 6: 0xFD << 120}

names = st.text(alphabet='abz"\\é/', max_size=4)
records = st.builds(AllocationRecord, pod=names, pod_uid=names, nic=names, kept=st.booleans())
foreign = st.builds(ExtendedRecord, pod=names, pod_uid=names, unknown=st.dictionaries(st.just("x"), names, min_size=1))
steps = st.lists(st.tuples(st.integers(0, 300), st.none() | records | foreign), max_size=30)


def plain(text: str | None) -> dict[str, object]:
    return json.loads(text) if text else {}


@given(version=st.sampled_from([4, 6]), begun=steps, then=steps, read=st.booleans())
def test_it_is_the_text_of_all_of_them(
    version: int,
    begun: list[tuple[int, AllocationRecord | None]],
    then: list[tuple[int, AllocationRecord | None]],
    *,
    read: bool,
) -> None:
    known = {BASE[version] + at: record for at, record in begun if record is not None}
    written = Records(version)
    for ip, it in known.items():
        written.put(ip, it)
    written = read_records(written.text(), version) if read else written
    for at, record in then:
        ip = BASE[version] + at
        if ip in known:
            written.remove(ip)
            del known[ip]
        if record is not None:
            known[ip] = record
            written.put(ip, record)
    text = written.text()
    assert read_records(text, version) == known
    assert list(plain(text)) == sorted(format_address(ip, version) for ip in known)
    if not any(isinstance(record, ExtendedRecord) for record in known.values()):
        assert text == encode_records({format_address(ip, version): record for ip, record in known.items()})
    inside = len(msgspec.json.encode(text)) - len('"{}"') if text else 0
    assert inside <= written.bytes
    keys = sum(len(format_address(ip, version)) for ip in known)
    # Counted with the longest key of the family, and with one comma too many.
    assert written.bytes == inside + len(known) * (KEY_BYTES[version] - 6) - keys + bool(known)


def test_without_records_there_is_no_text() -> None:
    assert Records(4).text() is None
