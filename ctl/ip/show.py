"""`spiderpoolctl ip show`: who has an address, or what a pool or a pod has, as the pools' objects say."""

import argparse
import asyncio
from collections.abc import Iterable, Sequence

from msgspec import Struct

from api.configfile import shown as quoted
from api.kinds import IPPOOL, RESERVEDIP
from ctl import addresses, output, stores
from ctl.addresses import Address
from ctl.errors import Failure, Misuse
from ctl.output import table
from ipam.book import Book
from ipam.ranges import Ranges
from ipam.territory import territory
from runtime.store.port import NotFound

_RANGES = 10
"""Of free addresses, that are shown as text."""


class Shown(Struct, frozen=True):
    """What `-o json` prints."""

    addresses: tuple[Address, ...]
    free: tuple[str, ...] = ()
    """Of a pool: the addresses that anybody may get, as ranges; those that rest are not among them."""


def run(argv: Sequence[str]) -> int:
    """The word: 1 when there is nothing to show. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(prog="spiderpoolctl ip show", description="Show who has an address.")
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="this one, in every pool that contains it")
    parser.add_argument("--pool", metavar="NAME", help="all that this pool has given or withholds")
    parser.add_argument("--pod", metavar="NAMESPACE/NAME", help="all that pods of this name have")
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    if sum(one is not None for one in (given.address, given.pool, given.pod)) != 1:
        msg = "one of ADDRESS, --pool and --pod is needed, and no more"
        raise Misuse(msg)
    found = asyncio.run(_found(given.state_dir, given.address, given.pool, given.pod))
    print(output.shown(found, given.output, lambda wide: render(found, wide=wide)), end="")
    return 0


async def _found(state_dir: str, address: str | None, pool: str | None, pod: str | None) -> Shown:
    async with stores.opened(state_dir) as store:
        reserved = (await store.list(RESERVEDIP)).items
        if pool is not None:
            try:
                books, problems = addresses.books([await store.get(IPPOOL, pool)])
            except NotFound:
                msg = f"--pool: no SpiderIPPool is named {pool}"
                raise Failure(msg) from None
            if problems:
                raise Failure(problems[pool])
            return of_pool(books[pool], addresses.ranges_of(reserved, books[pool].version))
        books, problems = addresses.books((await store.list(IPPOOL)).items)
    if pod is not None:
        namespace, _, name = pod.partition("/")
        if not (namespace and name) or "/" in name:
            msg = f"--pod: {quoted(pod)}: expected NAMESPACE/NAME"
            raise Misuse(msg)
        mine = tuple(a for book in books.values() for a in addresses.held(book) if a.pod == pod)
        return _some(mine, f"no pool has an address for pod {pod}", problems.values())
    assert address is not None
    version, number, text = addresses.parse(address, field="ADDRESS")
    everywhere = addresses.find(books.values(), reserved, version, number)
    return _some(everywhere, f"{text} is in no pool", problems.values())


def _some(found: tuple[Address, ...], none: str, problems: Iterable[str]) -> Shown:
    if not found:
        unreadable = "; ".join(problems)
        raise Failure(f"{none} ({unreadable})" if unreadable else none)
    return Shown(found)


def of_pool(book: Book, reserved: Ranges) -> Shown:
    """All that one pool has to say."""
    taken = Ranges.of(book.version, [(ip, ip) for ip in (*book.records, *book.withheld)])
    free = territory(book.pool).addresses.difference(reserved).difference(taken)
    return Shown((*addresses.held(book), *addresses.waiting(book)), tuple(free.format()))


def render(found: Shown, *, wide: bool) -> str:
    """As text. The columns of the withheld are there when there is something in them."""
    reasons = any(a.reason for a in found.addresses)
    heads = ("ADDRESS", "POOL", "STATE", "POD", "NIC", "NODE", "CONTAINER")
    more = (*(("POD-UID",) if wide else ()), *(("UNTIL", "REASON") if wide or reasons else ()))
    rows = [
        (
            *(a.address, a.pool, a.state, a.pod, a.nic, a.node, a.container),
            *((a.uid,) if wide else ()),
            *((a.until, a.reason) if wide or reasons else ()),
        )
        for a in found.addresses
    ]
    parts = [table([(*heads, *more), *rows])] if rows else []
    if found.free or not rows:
        cut = found.free if wide else found.free[:_RANGES]
        dots = ", ..." if len(cut) < len(found.free) else ""
        parts.append(f"free: {', '.join(cut) or 'none'}{dots}")
    return "\n".join(parts) + "\n"
