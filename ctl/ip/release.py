"""`spiderpoolctl ip release`: take an address from who has it, or give one back to the pool that is withheld.

For what nothing else frees: usually the pool's owner does that by itself when the pod is gone, and `spiderpoolctl gc`
makes it look at once, with the node's word that nothing carries the address any more. Here nobody looks at the node.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from msgspec import Struct

from actors.allocation.endpoint import EndpointContended, Endpoints
from api.ippool import AllocationRecord
from api.kinds import IPPOOL
from ctl import addresses, confirm, stores
from ctl.errors import Failure, Misuse
from ctl.ip import change
from ctl.ip.holder import Holder, holder
from ipam.addresses import format_address
from ipam.book import Book
from ipam.withheld import Withheld
from runtime.store.port import Store, StoreError

_REST_SECONDS = 30.0


class Found(Struct, frozen=True):
    """What there is to release."""

    pool: str
    text: str
    """The address, canonical."""
    number: int
    record: AllocationRecord | None
    entry: Withheld | None
    holder: Holder | None
    """Of a record."""
    """Whether this pod and NIC have nothing else."""


def run(argv: Sequence[str]) -> int:
    """The word. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl ip release",
        description="Take an address from who has it, or end the time for which it is withheld.",
        epilog="It is refused while the pod lives. Where a link may be left, spiderpoolctl gc --address is the better "
        "verb, for it asks the node.",
    )
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--pool", metavar="NAME", help="of this pool, where several have a record of it")
    parser.add_argument(
        "--force", action="store_true", help="also from a pod that lives: somebody else may get it then"
    )
    parser.add_argument(
        "--rest", type=float, default=_REST_SECONDS, metavar="SECONDS", help="until others get it (default %(default)g)"
    )
    confirm.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    if given.rest < 0:
        msg = f"--rest: {given.rest:g}: expected a number of seconds, 0 or more"
        raise Misuse(msg)
    found = asyncio.run(_look(given.state_dir, given.address, given.pool))
    confirm.confirm(plan(found, force=given.force, rest=given.rest), yes=given.yes)
    asyncio.run(_release(given.state_dir, found, given.rest))
    print(f"{found.text} of pool {found.pool} released")
    return 0


async def _look(state_dir: str, address: str, pool: str | None) -> Found:
    version, number, text = addresses.parse(address, field="ADDRESS")
    async with stores.opened(state_dir) as store:
        books, problems = addresses.books((await store.list(IPPOOL)).items)
        if pool is not None and pool not in books:
            raise Failure(problems.get(pool, f"--pool: no SpiderIPPool is named {pool}"))
        having = [
            book
            for name, book in books.items()
            if book.version == version
            and pool in {None, name}
            and (number in book.records or (number in book.withheld))
        ]
        if not having:
            unreadable = f" ({'; '.join(problems.values())})" if problems else ""
            msg = f"{text}: nobody has it and nothing withholds it: there is nothing to release{unreadable}"
            raise Failure(msg)
        recorded = [book for book in having if number in book.records] or having
        if len(recorded) > 1:
            msg = f"{text} is in pools {', '.join(book.pool.metadata.name for book in recorded)}: choose with --pool"
            raise Misuse(msg)
        return await _found(store, state_dir, recorded[0], number)


async def _found(store: Store, state_dir: str, book: Book, number: int) -> Found:
    record = book.records.get(number)
    return Found(
        pool=book.pool.metadata.name,
        text=format_address(number, book.version),
        number=number,
        record=record,
        entry=book.withheld.get(number),
        holder=await holder(store, state_dir, record) if record is not None else None,
    )


def plan(found: Found, *, force: bool, rest: float) -> str:
    """What will be done, in words. Raises `Failure` when it must not be."""
    what = f"{found.text} of pool {found.pool}"
    if found.record is None or found.holder is None:
        assert found.entry is not None
        if found.entry.owed is not None:
            return (
                f"{what} is not released by the network provider yet. After this anybody may get it, and nobody asks "
                "the provider any more: it must not have the address."
            )
        return f"{what} is withheld ({found.entry.reason}). After this anybody may get it."
    record = found.record
    place = ", ".join(f"{word} {value}" for word, value in (("node", record.node), ("container", record.cid)) if value)
    has = f"{record.pod} (uid {record.pod_uid}{f', {record.nic}' if record.nic else ''}{f', {place}' if place else ''})"
    if record.kept:
        has = f"nobody; it is kept for the next pod {record.pod}"
    lines = [f"{what} belongs to {has}: {found.holder.text}."]
    if found.holder.live:
        if not force:
            msg = (
                f"{' '.join(lines)} Deleting the pod releases it. --force takes it away all the same: the pod goes on "
                "using it, and somebody else may get it"
            )
            raise Failure(msg)
        lines.append("It lives and goes on using the address; somebody else may get it: two hosts with one address.")
    then = f", when it has rested for {rest:g} s" if rest else ""
    where = f" on node {record.node}" if record.node else ""
    lines.append(f"After this anybody may get it{then}. Nobody looks whether a link{where} still carries it.")
    return "\n".join(lines)


async def _release(state_dir: str, found: Found, rest: float) -> None:
    async with stores.opened(state_dir) as store:
        await change.commit(
            store,
            found.pool,
            lambda pool: change.released(pool, found.number, found.record, found.entry, now=time.time(), rest=rest),
        )
        record = found.record
        if record is None:
            return
        namespace, _, name = record.pod.partition("/")
        try:
            # A projection of the records: nothing depends on it, and the cluster's audit would do the same later.
            await Endpoints(store).withdraw(namespace, name, uid=record.pod_uid, addresses=(found.text,))
        except (StoreError, EndpointContended) as error:
            sys.stderr.write(f"SpiderEndpoint {record.pod} still shows it: {' '.join(str(error).split())}\n")
