"""Who had which address when: the changes that a pool's owner has committed, kept for a while and in little room.

A `Book` is the log of the latest changes and, for every address that was held where the log begins, since when and by
whom, the latter as a mark. So a record that nobody noted, because the owner died between its commit and the next page,
is told from one that is older than the log. Everything here is pure; `actors.pools.history` keeps the books.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, structs

from api.ippool import AllocationRecord

type What = Literal["granted", "taken over", "released", "kept", "quarantined"]

CHANGES: Final = 2000
"""That a log holds."""
PAGE_BYTES: Final = 300_000
"""Of a book as it is stored, in base64. Fewer changes are kept where they take more."""
_FEWEST: Final = 16
_MOST_DECODED: Final = 16 << 20
"""Bytes that a page may unfold to. What is more was not written by us."""
_WHATS: Final[tuple[What, ...]] = ("granted", "taken over", "released", "kept", "quarantined")
_LEVEL: Final = 1
"""Of compression. A big pool has 480 kB to write, which take 5 ms; the next levels save little and take longer."""
_FORMAT: Final = 1


class Change(Struct, frozen=True):
    """One address that is held otherwise than before.

    Attributes:
        at: unix seconds.
        ip: canonical text without prefix length.
        what: `taken over` by a newer sandbox, or by the next pod of the same name; `kept` for that one.
        pod: `namespace/name`, of who has it now, or had it until now where it was released or quarantined. So the rest.
        uid: the pod's.
        nic: name of the interface inside the pod.
        node: where the sandbox is, or was.
        cid: first 12 hex digits of the sandbox's container id.
        late: nobody noted it when it happened. It was found later, at `at`.
    """

    at: float
    ip: str
    what: What
    pod: str
    uid: str
    nic: str
    node: str
    cid: str
    late: bool = False

    @property
    def holds(self) -> bool:
        """Whether somebody has the address after that."""
        return self.what not in ("released", "quarantined")


class Held(Struct, frozen=True, array_like=True):
    """What is known of an address that was held before the log begins: since when, and the `mark` of its holder."""

    at: float
    mark: int


class Book(Struct, frozen=True):
    """The history of one pool.

    Attributes:
        log: the changes, by time.
        held: by address; as of the moment before the first of the log.
        since: unix seconds from which on the log is whole; 0: nothing was dropped.
    """

    log: tuple[Change, ...] = ()
    held: Mapping[str, Held] = {}
    since: float = 0.0


class Stay(Struct, frozen=True, omit_defaults=True):
    """One holder of one address, from when to when. Times are unix seconds.

    Attributes:
        ip: canonical text without prefix length.
        pod: `namespace/name`; this and the rest empty where it is not known any more.
        began: None where it is not known, because it is older than the log.
        how: how it came to it, as in `Change.what`; empty where that is not known.
        ended: None where it has not.
        end: how it lost it, as in `Change.what`.
        noticed: `began`, `ended` or both are when it was found, and the truth is earlier.
    """

    ip: str
    pod: str = ""
    uid: str = ""
    nic: str = ""
    node: str = ""
    cid: str = ""
    began: float | None = None
    how: str = ""
    ended: float | None = None
    end: str = ""
    noticed: tuple[Literal["began", "ended"], ...] = ()


class DamagedPage(ValueError):
    """What is stored is not a book."""


# -- keeping -----------------------------------------------------------------------------------------------------------


def folded(book: Book, changes: Iterable[Change], *, most: int = CHANGES) -> Book:
    """The book with more changes. Whichever way they come, once or twice, by time; the oldest give way.

    What was found late, and is then told by who did it, or found twice, is in it once.
    """
    known = set(book.log)
    new = [change for change in map(_whole, changes) if change not in known]
    if not new:
        return book if len(book.log) <= most else _cut(book.log, book.held, book.since, most)
    merged = sorted((*book.log, *dict.fromkeys(new)), key=lambda change: change.at)
    return _cut(_without_echoes(merged, book.held), book.held, book.since, most)


def missed(
    book: Book, records: Mapping[str, AllocationRecord], *, at: float, but: Iterable[str] = ()
) -> tuple[Change, ...]:
    """What must have happened that is not in the book, so that the pool has these records now.

    Args:
        book: what was noted.
        records: by address, canonical text.
        at: when this was found.
        but: addresses of which more is to be told.
    """
    last = {change.ip: change for change in book.log}
    state = _state(book)
    found: list[Change] = []
    for ip in sorted((records.keys() | state.keys()) - set(but)):
        record, mark = records.get(ip), state.get(ip)
        if record is None:
            was = last.get(ip)
            who = (was.pod, was.uid, was.nic, was.node, was.cid) if was is not None else ("",) * 5
            found.append(Change(at, ip, "released", *who, late=True))
        elif mark != _mark_of(record):
            what: What = "kept" if record.kept else "granted" if mark is None else "taken over"
            whose = (record.pod, record.pod_uid, record.nic, record.node, record.cid)
            found.append(Change(at, ip, what, *whose, late=True))
    return tuple(found)


def _whole(change: Change) -> Change:
    """In the resolution in which it is stored, so that it is equal to itself read back."""
    at = round(change.at * 1000) / 1000
    return change if at == change.at else structs.replace(change, at=at)


def _mark(uid: str, *, kept: bool) -> int:
    return zlib.crc32(uid.encode()) & ~1 | kept


def _mark_of(record: AllocationRecord) -> int:
    return _mark(record.pod_uid, kept=record.kept)


def _after(change: Change) -> int | None:
    """The mark of the holder after a change; None where nobody has the address then."""
    return _mark(change.uid, kept=change.what == "kept") if change.holds else None


def _state(book: Book) -> dict[str, int]:
    """The holders' marks by address, after all of it."""
    state = {ip: held.mark for ip, held in book.held.items()}
    for change in book.log:
        mark = _after(change)
        if mark is None:
            state.pop(change.ip, None)
        else:
            state[change.ip] = mark
    return state


def _without_echoes(changes: Sequence[Change], held: Mapping[str, Held]) -> list[Change]:
    """Without what was found late and is told as well by a change before it, or by the next one after it."""
    state: dict[str, int | None] = {ip: it.mark for ip, it in held.items()}
    found: dict[str, int] = {}
    kept: list[Change | None] = []
    for change in changes:
        mark = _after(change)
        if change.late and state.get(change.ip) == mark:
            continue
        echo = found.pop(change.ip, None)
        if echo is not None and not change.late and state.get(change.ip) == mark:
            kept[echo] = None
        if change.late:
            found[change.ip] = len(kept)
        state[change.ip] = mark
        kept.append(change)
    return [change for change in kept if change is not None]


def _cut(log: Sequence[Change], held: Mapping[str, Held], since: float, most: int) -> Book:
    """The latest `most` changes; what the others came to is in `held`."""
    excess = max(0, len(log) - most)
    if not excess:
        return Book(tuple(log), held, since)
    before = dict(held)
    for change in log[:excess]:
        mark = _after(change)
        if mark is None:
            before.pop(change.ip, None)
        else:
            before[change.ip] = Held(change.at, mark)
    return Book(tuple(log[excess:]), before, max(since, log[excess - 1].at))


# -- storing -----------------------------------------------------------------------------------------------------------


type _Number = Annotated[int, Meta(ge=0)]


class _Holder(Struct, frozen=True, array_like=True):
    pod: str
    uid: str
    nic: str
    node: str
    cid: str


class _Entry(Struct, frozen=True, array_like=True):
    """A change, with the time in milliseconds since the one before it, and its holder by number."""

    after: int
    ip: str
    what: _Number
    holder: _Number
    late: bool = False


class _Since(Struct, frozen=True, array_like=True):
    ip: str
    at: int
    mark: int


class _Page(Struct, frozen=True):
    format: int
    since: int
    holders: list[_Holder]
    log: list[_Entry]
    held: list[_Since]


_pages = msgspec.json.Decoder(_Page)


def encoded(book: Book) -> bytes:
    """The book as it is stored: JSON in which every holder is written once, compressed."""
    holders: dict[_Holder, int] = {}
    log: list[_Entry] = []
    before = 0
    for change in book.log:
        at = _millis(change.at)
        holder = _Holder(change.pod, change.uid, change.nic, change.node, change.cid)
        number = holders.setdefault(holder, len(holders))
        log.append(_Entry(at - before, change.ip, _WHATS.index(change.what), number, change.late))
        before = at
    held = [_Since(ip, _millis(it.at), it.mark) for ip, it in sorted(book.held.items())]
    page = _Page(_FORMAT, _millis(book.since), list(holders), log, held)
    return zlib.compress(msgspec.json.encode(page), _LEVEL)


def decoded(data: bytes) -> Book:
    """What `encoded` has written. Raises `DamagedPage`."""
    try:
        unfold = zlib.decompressobj()
        text = unfold.decompress(data, _MOST_DECODED)
        if not unfold.eof:
            msg = f"it ends too early, or unfolds to more than {_MOST_DECODED} bytes"
            raise DamagedPage(msg)
        page = _pages.decode(text)
        if page.format != _FORMAT:
            msg = f"its format is {page.format}, not {_FORMAT}"
            raise DamagedPage(msg)
        log: list[Change] = []
        at = 0
        for entry in page.log:
            at += entry.after
            who = page.holders[entry.holder]
            what = _WHATS[entry.what]
            log.append(Change(at / 1000, entry.ip, what, who.pod, who.uid, who.nic, who.node, who.cid, late=entry.late))
    except (zlib.error, msgspec.DecodeError, IndexError) as error:
        msg = f"{type(error).__name__}: {error}"
        raise DamagedPage(msg) from error
    held = {it.ip: Held(it.at / 1000, it.mark) for it in page.held}
    return Book(tuple(log), held, page.since / 1000)


def fitted(book: Book, *, most: int = PAGE_BYTES) -> bytes:
    """The book as it is stored, with as many of its latest changes as fit into `most` bytes of base64."""
    data = encoded(book)
    while len(data) * 4 // 3 > most and len(book.log) > _FEWEST:
        book = _cut(book.log, book.held, book.since, max(_FEWEST, len(book.log) * 3 // 4))
        data = encoded(book)
    return data


def _millis(seconds: float) -> int:
    return round(seconds * 1000)


# -- asking ------------------------------------------------------------------------------------------------------------


def stays(book: Book, records: Mapping[str, AllocationRecord] | None = None) -> list[Stay]:
    """Who had which address from when to when, by the beginning, those first whose beginning is not known.

    Of who has one since before the log begins only the mark is known; `records` say who that is.
    """
    known = records or {}
    state = _state(book)
    open_: dict[str, Stay] = {ip: Stay(ip, began=it.at) for ip, it in book.held.items()}
    closed: list[Stay] = []
    for change in book.log:
        stay = open_.pop(change.ip, None)
        who = (change.pod, change.uid, change.nic, change.node, change.cid)
        if stay is None and not change.holds:
            stay = Stay(change.ip)
        if stay is not None:
            if not stay.uid and not change.holds:
                stay = Stay(stay.ip, *who, began=stay.began, noticed=stay.noticed)
            noticed = (*stay.noticed, "ended") if change.late else stay.noticed
            closed.append(structs.replace(stay, ended=change.at, end=change.what, noticed=noticed))
        if change.holds:
            open_[change.ip] = Stay(
                change.ip, *who, began=change.at, how=change.what, noticed=("began",) if change.late else ()
            )
    for ip, stay in open_.items():
        record = known.get(ip)
        if not stay.uid and record is not None and _mark_of(record) == state[ip]:
            who = (record.pod, record.pod_uid, record.nic, record.node, record.cid)
            closed.append(Stay(ip, *who, began=stay.began))
        else:
            closed.append(stay)
    return sorted(closed, key=lambda stay: (stay.began or 0.0, stay.ended or float("inf")))
