"""`spiderpoolctl gc`: have the records looked at that nobody may need any more, now instead of when their time comes.

Every replica of the controller is told, the one that collects looks at everything, and asks the nodes whether a link
still carries what it would give up. With `--address` this waits for what becomes of that one.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence

from msgspec import Struct

from api.kinds import IPPOOL
from ctl import addresses, output, programs, stores
from ctl.addresses import Address
from ctl.errors import Failure, Misuse
from ctl.ip.holder import holder
from ctl.output import table
from ctl.programs import Program, Silent
from runtime.store.port import Store

PATH = "/v1/ipam/gc_ips"
_WAIT_SECONDS = 15.0
_LOOK_SECONDS = 0.25


class Told(Struct, frozen=True):
    """A program that was told."""

    program: str
    answer: str = "ok"
    """Or why it did not take it."""


class Outcome(Struct, frozen=True):
    """What `-o json` prints."""

    told: tuple[Told, ...]
    released: bool | None = None
    """Of one address."""
    address: Address | None = None
    """As it was before."""
    why: str = ""
    """It is not released."""


def run(argv: Sequence[str]) -> int:
    """The verb: 1 when no program took it, or the address is still held. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl gc", description="Have the records looked at that nobody may need any more."
    )
    parser.add_argument("--address", metavar="ADDRESS", help="and wait for what becomes of this one")
    parser.add_argument(
        "--wait", type=float, default=_WAIT_SECONDS, metavar="SECONDS", help="for it (default %(default)g)"
    )
    programs.add_arguments(parser)
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    if given.wait < 0:
        msg = f"--wait: {given.wait:g}: expected a number of seconds, 0 or more"
        raise Misuse(msg)
    outcome = asyncio.run(_collect(given))
    print(output.shown(outcome, given.output, lambda _wide: render(outcome)), end="")
    return 1 if outcome.released is False or all(told.answer != "ok" for told in outcome.told) else 0


async def _collect(given: argparse.Namespace) -> Outcome:
    async with stores.opened(given.state_dir) as store:
        before = await _held(store, given.address) if given.address else None
        asked = await programs.replicas(store, given.state_dir, namespace=given.namespace, controller=given.controller)
        if not asked:
            msg = f"no replica of {given.controller} runs in namespace {given.namespace}: name another one with -n"
            raise Failure(msg)
        told = tuple(await asyncio.gather(*(_tell(program) for program in asked)))
        if before is None or all(one.answer != "ok" for one in told):
            return Outcome(told, released=None if before is None else False, address=before, why="nobody was told")
        until = time.monotonic() + given.wait
        now = await _held(store, given.address, gone=True)
        while now == before and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            now = await _held(store, given.address, gone=True)
        if now != before:
            return Outcome(told, released=True, address=before)
        return Outcome(told, released=False, address=before, why=await _why(store, given.state_dir, before))


async def _tell(program: Program) -> Told:
    try:
        await program.ask("POST", PATH)
    except Silent as error:
        return Told(program.name, str(error))
    return Told(program.name)


async def _held(store: Store, address: str, *, gone: bool = False) -> Address | None:
    """Who has it now. Raises `Misuse`, and `Failure` when nobody has and it is not to be `gone`."""
    version, number, text = addresses.parse(address, field="--address")
    books, _ = addresses.books((await store.list(IPPOOL)).items)
    found = [a for a in addresses.find(books.values(), (), version, number) if a.state in {"used", "kept"}]
    if not found and not gone:
        msg = f"--address: {text}: no pool has a record of it: there is nothing to collect"
        raise Failure(msg)
    return found[0] if found else None


async def _why(store: Store, state_dir: str, address: Address) -> str:
    books, _ = addresses.books((await store.list(IPPOOL)).items)
    book = books.get(address.pool)
    _, number, _ = addresses.parse(address.address, field="--address")
    record = book.records.get(number) if book is not None else None
    if record is None:
        return ""
    known = await holder(store, state_dir, record)
    if known.live or record.kept:
        return known.text
    where = f"node {record.node}" if record.node else "a node"
    return f"{known.text}; as far as is known a link on {where} still carries it, or its agent has not answered yet"


def render(outcome: Outcome) -> str:
    """As text."""
    parts = [table([("PROGRAM", "ANSWER"), *((told.program, told.answer) for told in outcome.told)])]
    address = outcome.address
    if address is not None:
        whose = f"{address.address} of pool {address.pool} (pod {address.pod}, {address.nic or 'any interface'})"
        parts.append(f"{whose} is released" if outcome.released else f"{whose} is still held: {outcome.why}")
    return "\n".join(parts) + "\n"
