"""`spiderpoolctl ip set`: give a free address to a pod by hand.

For a pod that is about to start and has to get this address, and for one that carries an address whose record was lost.
The record is made by the rules of every grant; the pod's next ADD finds it as its own, if the pool is among the pod's.
"""

import argparse
import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio.to_thread
import msgspec
from msgspec import Struct

from api.configfile import shown
from api.core import Pod
from api.kinds import IPPOOL, POD, RESERVEDIP
from api.status import ReplicaStatus
from cni.journal import JournalEntry
from ctl import addresses, confirm, journal, programs, stores
from ctl.addresses import Address
from ctl.errors import Failure, Misuse
from ctl.ip import change
from ipam.book import Book
from ipam.operations import Claim
from runtime.store.port import NotFound, Store

_CONTAINER_PREFIX = 12
NO_CONTAINER = "0" * _CONTAINER_PREFIX
"""Stands in the record until the pod's first sandbox takes it over."""
_CONTAINER = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.\-]{11,254}")


class Wanted(Struct, frozen=True):
    """Who is to have it, as far as the user has said it."""

    namespace: str
    name: str
    nic: str
    node: str
    container: str
    uid: str

    @property
    def pod(self) -> str:
        """As records have it."""
        return f"{self.namespace}/{self.name}"


def run(argv: Sequence[str]) -> int:
    """The word. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(prog="spiderpoolctl ip set", description="Give a free address to a pod by hand.")
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--pod", metavar="NAMESPACE/NAME", required=True, help="who gets it")
    parser.add_argument("--nic", default="eth0", help="its interface (default %(default)s)")
    parser.add_argument("--node", default="", help="where it runs (default: where it is scheduled)")
    parser.add_argument(
        "--container-id", default="", metavar="ID", help="of its sandbox, needed when it runs (crictl pods --no-trunc)"
    )
    parser.add_argument("--uid", default="", help="of the pod (default: that of the pod of this name)")
    parser.add_argument("--pool", metavar="NAME", help="of this pool, where several contain the address")
    parser.add_argument("--force", action="store_true", help="also when it is in quarantine")
    confirm.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    version, number, text = addresses.parse(given.address, field="ADDRESS")
    wanted = _wanted(given)
    pool, claim, plan = asyncio.run(_look(given.state_dir, wanted, version, number, pool=given.pool))
    confirm.confirm(plan, yes=given.yes)
    asyncio.run(_set(given.state_dir, pool, number, claim, force=given.force))
    print(f"{text} of pool {pool} belongs to {claim.nic} of pod {claim.pod}")
    return 0


def _wanted(given: argparse.Namespace) -> Wanted:
    namespace, _, name = given.pod.partition("/")
    if not (namespace and name) or "/" in name:
        msg = f"--pod: {shown(given.pod)}: expected NAMESPACE/NAME"
        raise Misuse(msg)
    if not re.fullmatch(r"[^\s/:]{1,15}", given.nic) or given.nic in {".", ".."}:
        msg = f"--nic: {shown(given.nic)}: no name of an interface"
        raise Misuse(msg)
    if given.container_id and not _CONTAINER.fullmatch(given.container_id):
        wish = f"expected the id of a sandbox, {_CONTAINER_PREFIX} characters or more"
        msg = f"--container-id: {shown(given.container_id)}: {wish}"
        raise Misuse(msg)
    return Wanted(namespace, name, given.nic, given.node, given.container_id[:_CONTAINER_PREFIX], given.uid)


async def _look(
    state_dir: str, wanted: Wanted, version: int, number: int, *, pool: str | None
) -> tuple[str, Claim, str]:
    async with stores.opened(state_dir) as store:
        books, problems = addresses.books((await store.list(IPPOOL)).items)
        reserved = (await store.list(RESERVEDIP)).items
        found = choose(addresses.find(books.values(), reserved, version, number), pool, problems)
        if state_dir:
            entries, _ = await anyio.to_thread.run_sync(journal.read, Path(state_dir))
            claim = from_journal(wanted, entries, node=wanted.node or await _node(store, state_dir, books.values()))
        else:
            try:
                claim = from_pod(wanted, await store.get(POD, wanted.name, namespace=wanted.namespace))
            except NotFound:
                msg = f"--pod: there is no pod {wanted.pod}: an address is given to one that exists"
                raise Failure(msg) from None
        check_alone(claim, version, books.values())
        return found.pool, claim, _plan(found, claim)


def choose(found: Sequence[Address], pool: str | None, problems: Iterable[str]) -> Address:
    """The pool that gives the address. Raises `Misuse`, `Failure`."""
    mine = [address for address in found if pool in {None, address.pool}]
    mine = [address for address in mine if address.state != "excluded"] or mine[:1]
    if not mine:
        unreadable = f" (unreadable: {', '.join(problems)})" if problems else ""
        msg = f"{'no pool' if pool is None else f'pool {pool} does not'} contain{'s' if pool is None else ''} it"
        raise Failure(f"ADDRESS: {msg}{unreadable}")
    contained = [address.pool for address in found if address.state != "excluded"]
    if len(contained) > 1:
        names = ", ".join(contained)
        msg = f"{found[0].address} is in pools {names}: what lies in two pools is granted by neither, mend that first"
        raise Failure(msg)
    one = mine[0]
    match one.state:
        case "free" | "withheld":
            return one
        case "used" | "kept":
            whose = f"pod {one.pod} ({one.nic or 'any interface'})"
            msg = f"{one.address} of pool {one.pool} belongs to {whose}: release it first"
        case _:
            msg = f"{one.address} of pool {one.pool} is {one.state}: {one.reason}"
    raise Failure(msg)


def from_pod(wanted: Wanted, pod: Pod) -> Claim:
    """What the Pod object adds to what the user has said. Raises `Misuse`, `Failure`."""
    uid, node = pod.metadata.uid, pod.spec.node_name
    if wanted.uid and wanted.uid != uid:
        msg = f"--uid: {wanted.uid}: pod {wanted.pod} has uid {uid}"
        raise Misuse(msg)
    if wanted.node and node and wanted.node != node:
        msg = f"--node: {wanted.node}: pod {wanted.pod} is on node {node}"
        raise Misuse(msg)
    if not pod.alive:
        msg = f"--pod: pod {wanted.pod} is {pod.phase_text}: it needs no address"
        raise Failure(msg)
    if not (wanted.node or node):
        msg = f"--node: missing: pod {wanted.pod} is on no node yet"
        raise Misuse(msg)
    if pod.status.pod_ips and not wanted.container:
        msg = f"--container-id: missing: pod {wanted.pod} runs, and only its sandbox may give the address back"
        raise Misuse(msg)
    return _claim(wanted, uid=uid, node=wanted.node or node, container=wanted.container)


def from_journal(wanted: Wanted, entries: Iterable[JournalEntry], *, node: str) -> Claim:
    """What the node's journal adds. Raises `Misuse`."""
    if not node:
        msg = "--node: missing: what SPIDERPOOL_NODE_NAME says, localhost where it says nothing"
        raise Misuse(msg)
    there = next(
        (
            entry
            for entry in entries
            if (entry.pod.namespace, entry.pod.name, entry.ifname) == (wanted.namespace, wanted.name, wanted.nic)
            and entry.container_id.startswith(wanted.container)
        ),
        None,
    )
    uid = wanted.uid or (there.pod.uid if there is not None else "") or wanted.pod
    container = wanted.container or (there.container_id[:_CONTAINER_PREFIX] if there is not None else "")
    return _claim(wanted, uid=uid, node=node, container=container)


def _claim(wanted: Wanted, *, uid: str, node: str, container: str) -> Claim:
    return Claim(pod=wanted.pod, uid=uid, nic=wanted.nic, node=node, cid=container or NO_CONTAINER)


def check_alone(claim: Claim, version: int, books: Iterable[Book]) -> None:
    """An interface has one address of a family. Raises `Failure`."""
    for book in books:
        if book.version == version and (has := book.find(claim.uid, claim.nic)) is not None:
            msg = f"{claim.nic} of pod {claim.pod} has {has.address} of pool {book.pool.metadata.name} already"
            raise Failure(msg)


def _plan(found: Address, claim: Claim) -> str:
    sandbox = "its next sandbox" if claim.cid == NO_CONTAINER else f"container {claim.cid}"
    rests = f" It is withheld until {found.until} ({found.reason}), which ends." if found.state == "withheld" else ""
    return (
        f"{found.address} of pool {found.pool} goes to {claim.nic} of pod {claim.pod} (uid {claim.uid}), node "
        f"{claim.node}, {sandbox}.{rests}\nNo link is changed: the pod gets it with its next ADD, if the pool is among "
        "those that it may use."
    )


async def _node(store: Store, state_dir: str, books: Iterable[Book]) -> str:
    """The node of a spiderpool-standalone: as it says itself, else as all its records say; empty when neither does."""
    try:
        (program,) = await programs.replicas(store, state_dir, namespace="", controller="")
        said = msgspec.json.decode(await program.ask("GET", "/debug/status"), type=ReplicaStatus)
        names = {activity.node for activity in said.nodes}
    except (programs.Silent, msgspec.DecodeError):
        names = {record.node for book in books for record in book.records.values()}
    names.discard("")
    return names.pop() if len(names) == 1 else ""


async def _set(state_dir: str, pool: str, number: int, claim: Claim, *, force: bool) -> None:
    async with stores.opened(state_dir) as store:
        await change.commit(
            store, pool, lambda found: change.granted(found, number, claim, now=time.time(), force=force)
        )
