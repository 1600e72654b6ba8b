"""`spiderpoolctl history`: who had an address and when, or which addresses a pod had, as the pools' owners noted it.

What an owner has not noted yet, or never did because it died, is filled in from the pools' records as they are now, and
marked: it happened before the time that is shown.
"""

import argparse
import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from msgspec import Struct, field

from actors.pools.history import KEY, LABELS
from api.configfile import shown as quoted
from api.core import ConfigMap
from api.ippool import AllocationRecord, SpiderIPPool, decode_records
from api.kinds import CONFIGMAP, IPPOOL
from ctl import addresses, output, stores
from ctl.errors import Failure, Misuse
from ctl.output import table
from ipam.history import Book, DamagedPage, Stay, decoded, folded, missed, stays

_EARLIER = "<"
"""Before a time that is only known to be later than the truth."""


class Line(Struct, frozen=True, omit_defaults=True):
    """One holder of one address, from when to when."""

    address: str
    pool: str
    pod: str = ""
    """``namespace/name``; empty where it is not known any more."""
    uid: str = ""
    nic: str = ""
    node: str = ""
    container: str = ""
    """First 12 hex digits of the sandbox's id."""
    began: str = field(default="", name="from")
    """RFC 3339; empty where it is older than the history."""
    how: str = ""
    """``granted``, ``taken over`` (by a newer sandbox, or the next pod of the name) or ``kept`` (for that one)."""
    until: str = ""
    """Empty: it has it still."""
    end: str = ""
    noticed: tuple[str, ...] = ()
    """``from``, ``until``: the time at which it was noticed; it happened before."""


class Shown(Struct, frozen=True):
    """What `-o json` prints."""

    holders: tuple[Line, ...]
    since: Mapping[str, str] = {}
    """By pool: before then not everything is known."""
    problems: tuple[str, ...] = ()


def run(argv: Sequence[str]) -> int:
    """The verb: 1 when nothing is known. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(prog="spiderpoolctl history", description="Show who had which address when.")
    parser.add_argument("of", choices=("ip", "pod"), metavar="ip|pod", help="what the next word is")
    parser.add_argument("what", metavar="ADDRESS|NAMESPACE/NAME", help="of this address, or this pod")
    parser.add_argument("--at", metavar="TIME", help="only who had it then, for example 2026-01-31T14:03:00Z")
    parser.add_argument("-n", "--namespace", default="spiderpool", help="of the release (default %(default)s)")
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    if given.of == "pod":
        namespace, _, name = given.what.partition("/")
        if not (namespace and name) or "/" in name:
            msg = f"{quoted(given.what)}: expected NAMESPACE/NAME"
            raise Misuse(msg)
    wanted = given.what if given.of == "pod" else addresses.parse(given.what, field="ADDRESS")[2]
    at = _moment(given.at) if given.at else None
    found = asyncio.run(_found(given.state_dir, given.namespace, wanted, at))
    print(output.shown(found, given.output, lambda wide: render(found, wide=wide)), end="")
    return 0


async def _found(state_dir: str, namespace: str, wanted: str, at: float | None) -> Shown:
    async with stores.opened(state_dir) as store:
        # The histories first: what happens in between is then found by the records.
        kept = (await store.list(CONFIGMAP, namespace=namespace, labels=LABELS)).items
        pools = (await store.list(IPPOOL)).items
    found = gathered(kept, pools, wanted, at=at, now=datetime.now(UTC).timestamp())
    if not found.holders:
        when = f" at {_stamp(at)}" if at is not None else ""
        problems = f" ({'; '.join(found.problems)})" if found.problems else ""
        msg = f"nothing is known of {wanted}{when}, of {len(kept)} histories in namespace {namespace}{problems}"
        raise Failure(msg)
    return found


def gathered(
    kept: Iterable[ConfigMap], pools: Iterable[SpiderIPPool], wanted: str, *, at: float | None, now: float
) -> Shown:
    """All that is known of an address or a pod. Pure; `now` and `at` are in unix seconds."""
    by_uid = {owner.uid: item for item in kept for owner in item.metadata.owner_references}
    lines: list[tuple[Stay, str]] = []
    since: dict[str, str] = {}
    problems: list[str] = []
    for pool in sorted(pools, key=lambda pool: pool.metadata.name):
        name, item = pool.metadata.name, by_uid.get(pool.metadata.uid)
        book, records = Book(), dict[str, AllocationRecord]()
        try:
            book = decoded(item.binary_data.get(KEY, b"")) if item is not None else book
        except DamagedPage as error:
            problems.append(f"pool {name}: its history cannot be read: {error}")
        try:
            records = decode_records(pool.status.allocated_ips)
            book = folded(book, missed(book, records, at=now))
        except ValueError as error:
            problems.append(f"pool {name}: status.allocatedIPs cannot be read: {error}")
        mine = [stay for stay in stays(book, records) if wanted in (stay.ip, stay.pod) and _covers(stay, at)]
        lines += [(stay, name) for stay in mine]
        if mine and book.since:
            since[name] = _stamp(book.since)
    lines.sort(key=lambda line: (line[0].began or 0.0, line[0].ended or now))
    return Shown(tuple(_line(stay, name) for stay, name in lines), since, tuple(problems))


def _covers(stay: Stay, at: float | None) -> bool:
    if at is None:
        return True
    return (stay.began is None or "began" in stay.noticed or stay.began <= at) and (
        stay.ended is None or at <= stay.ended
    )


def _line(stay: Stay, pool: str) -> Line:
    return Line(
        address=stay.ip,
        pool=pool,
        pod=stay.pod,
        uid=stay.uid,
        nic=stay.nic,
        node=stay.node,
        container=stay.cid,
        began=_stamp(stay.began) if stay.began is not None else "",
        how=stay.how,
        until=_stamp(stay.ended) if stay.ended is not None else "",
        end=stay.end,
        noticed=tuple({"began": "from", "ended": "until"}[word] for word in stay.noticed),
    )


def render(found: Shown, *, wide: bool) -> str:
    """As text."""
    heads = ("ADDRESS", "POOL", "POD", "NIC", "NODE", "HOW", "FROM", "UNTIL", "END")
    rows = [
        (
            *(it.address, it.pool, it.pod, it.nic, it.node, it.how),
            f"{_EARLIER if 'from' in it.noticed else ''}{it.began}",
            f"{_EARLIER if 'until' in it.noticed else ''}{it.until}",
            it.end,
            *((it.container, it.uid) if wide else ()),
        )
        for it in found.holders
    ]
    notes = [f"pool {pool}: not everything is known from before {since}" for pool, since in found.since.items()]
    notes += found.problems
    return "\n".join([table([(*heads, *(("CONTAINER", "POD-UID") if wide else ())), *rows]), *notes, ""])


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        msg = f"--at: {quoted(text)}: expected a time with its zone, as 2026-01-31T14:03:00Z"
        raise Misuse(msg)
    return moment.timestamp()


def _stamp(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"
