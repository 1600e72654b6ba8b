"""One attempt at changing a subnet and its pools together: two kinds of object, no transaction, and a crash anywhere.

What must hold at every moment, whoever writes: what an automatic pool lists lies inside its entry in the subnet's
status, and no two entries share an address. So an entry grows before its pool and shrinks after it. That alone is not
enough where two replicas believe to own the subnet, and one of them takes back what the other is about to use. Hence:

* who grows has read the pool, then **changes** the subnet, over the resourceVersion that it has read, then changes the
  pool, over what it has read before. An entry that is big enough already gets the pool's resourceVersion noted
  (`confirmed`), for only a write that changes something fences;
* who takes back has read the subnet, then **changes** the pool, over the resourceVersion at which its records were
  read, and then the subnet, over what it has read before. A pool that is small enough already gets the subnet's
  resourceVersion noted (`SUBNET_SEEN`).

Of two such pairs that cross each other, one write fails. A pool that is not there cannot be changed: so an automatic
pool is made without addresses, before it has an entry, and whoever finds an entry without a pool may drop it at once.

A pool's status is written by every grant, which moves its resourceVersion and means nothing here; so a growth that
fails for that is sent again, while nothing else has changed (`upkeep.same`).

What a crash leaves, await by await: a pool without addresses; then an entry without a pool's addresses; after that,
nothing. The next attempt, of whoever owns the subnet then, gives the surplus to whoever asks for that pool again, and
takes it back where nobody does. After a pool has shrunk: an entry that is too big, the same.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio

from actors.subnets.messages import AutoPool, Discard, Discarded, NotProvided, Provide, Provided
from actors.subnets.sight import Ask, Outcome, Sight
from actors.subnets.upkeep import adoption, new_pool, own_lacks, refreshed, same, served
from api.annotations import SUBNET_SEEN
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL, SUBNET
from api.meta import FINALIZER
from api.subnet import SpiderSubnet, SubnetStatus
from ipam import subnetbook as book
from ipam.departure import blocked, has_pools, others, waiting
from ipam.ranges import MAX_INT64, Ranges
from ipam.records import RecordError, read_records
from ipam.withheld import owed_in
from runtime.store.port import AlreadyExists, Ambiguous, Busy, Conflict, Denied, Invalid, NotFound, Store, Unavailable
from runtime.together import Step

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
"""Requests to the store at a time."""
_RESENT: Final = 10
"""Growths of one pool that its records overtake, before all is read again."""


class Change:
    """See the module. `run` once."""

    def __init__(self, name: str, store: Store, sight: Sight, asks: Sequence[Ask]) -> None:
        """`asks` are of the subnet `name`; none: only what is not as it should be is put right."""
        self._name = name
        self._store = store
        self._sight = sight
        self._asks = asks
        self._outcome = Outcome({})
        self._pools: dict[str, SpiderIPPool] = {}
        self._fresh: set[str] = set()
        """Pools that were read or written after the subnet was read; of others their entry is taken for the truth."""
        self._absent: set[str] = set()
        """Names of which there is no pool in the subnet, by such a read."""
        self._trimmed: set[str] = set()
        """Pools whose entry may be made as small as they are."""
        self._made: set[str] = set()
        self._ready: dict[int, tuple[AutoPool, SpiderIPPool]] = {}
        self._subnet: SpiderSubnet
        self._whole: Ranges
        self._reserved: Ranges
        self._entries: dict[str, book.Entry] = {}

    async def run(self) -> Outcome:
        """Do it. Raises `StoreError` where nothing was answered."""
        try:
            self._subnet = await self._store.get(SUBNET, self._name)
        except NotFound:
            self._refuse_all(f"there is no SpiderSubnet {self._name}")
            return self._outcome
        try:
            self._whole = book.ground(self._subnet.spec)
        except ValueError as error:
            self._refuse_all(f"SpiderSubnet {self._name}: {error}")
            return self._outcome
        version = self._whole.version
        self._reserved = self._sight.reserved(version)
        self._entries, problems = book.read_entries(self._subnet.status.controlled_ippools, version)
        for problem in problems:
            _log.warning("subnet %s: what its status says of a pool is dropped: %s", self._name, problem)
        self._pools = dict(self._sight.pools(self._subnet.spec.subnet))
        leaving = self._subnet.metadata.deletion_timestamp is not None
        if first := self._sight.first(self._subnet):
            await self._give_way(first, leaving=leaving)
            return self._outcome
        provided, discarded = self._sorted()
        if leaving:
            for at, _ in provided:
                self._refuse(at, f"SpiderSubnet {self._name} is being deleted", lasting=True)
            provided = []
            await self._each([partial(self._delete, pool) for pool in self._pools.values()])
        await self._each([partial(self._discard, at, ask.pool) for at, ask in discarded])
        await self._look_closer(frozenset(ask.pool.name for _, ask in provided))
        new = self._affordable(provided)
        await self._each([partial(self._prepare, at, ask.pool, new=ask.pool.name in new) for at, ask in provided])
        provided = [(at, ask) for at, ask in provided if at not in self._outcome.answers and at in self._ready]
        growing = await self._settle(provided, leaving=leaving)
        await self._each([partial(self._grow, at, pool, target) for at, pool, target in growing])
        if not leaving:
            await self._keep_up()
        return self._outcome

    async def _give_way(self, first: str, *, leaving: bool) -> None:
        """Another subnet has the same CIDR, and was there before: this one has no pools."""
        text = f"SpiderSubnet {first} has {self._subnet.spec.subnet} as well, and was there before"
        self._refuse_all(text)
        _log.warning("subnet %s: %s has the same CIDR and was there before: it has no pools", self._name, first)
        self._pools = {}
        if leaving:
            await self._let_go()
        else:
            await self._write_status({}, leaving=False, unready=("SameSubnet", text))

    # -- what is asked -------------------------------------------------------------------------------------------------

    def _sorted(self) -> tuple[list[tuple[int, Provide]], list[tuple[int, Discard]]]:
        """The first ask about each pool; who asks about the same one comes to a later attempt."""
        provided: list[tuple[int, Provide]] = []
        discarded: list[tuple[int, Discard]] = []
        names: set[str] = set()
        for at, ask in enumerate(self._asks):
            name = ask.pool.name if isinstance(ask, Provide) else ask.pool
            if name in names:
                continue
            names.add(name)
            if isinstance(ask, Provide):
                provided.append((at, ask))
            else:
                discarded.append((at, ask))
        return provided, discarded

    def _affordable(self, provided: Sequence[tuple[int, Provide]]) -> frozenset[str]:
        """Pools that may be made: those that are not there, as long as there are addresses for them."""
        left = book.free(self._whole, self._entries, self._reserved).size
        new: list[str] = []
        for at, ask in provided:
            if ask.pool.name in self._pools:
                continue
            if ask.pool.size > left:
                self._too_few(at, ask.pool, ask.pool.size, left)
                continue
            left -= ask.pool.size
            new.append(ask.pool.name)
        return frozenset(new)

    async def _prepare(self, at: int, wanted: AutoPool, *, new: bool) -> None:
        """Have the pool, no bigger than it is to be."""
        if at in self._outcome.answers:
            return
        name = wanted.name
        try:
            if new:
                try:
                    pool = await self._store.create(IPPOOL, new_pool(self._subnet, wanted))
                    self._made.add(name)
                except AlreadyExists:
                    pool = await self._store.get(IPPOOL, name)
            else:
                pool = await self._store.get(IPPOOL, name)
        except NotFound:
            self._lost(name)
            self._outcome.overtaken = True
            return
        self._took(pool)
        unfit = self._unfit(pool, wanted)
        if unfit is not None:
            self._refuse(at, unfit[0], lasting=unfit[1])
            return
        try:
            pool = await self._trim(at, wanted, pool)
        except (ValueError, RecordError) as error:
            self._refuse(at, f"SpiderIPPool {name}: {error}", lasting=True)
            return
        if at not in self._outcome.answers:
            self._ready[at] = wanted, pool

    def _unfit(self, pool: SpiderIPPool, wanted: AutoPool) -> tuple[str, bool] | None:
        """Why a pool cannot be an application's, and whether that stays so; None when it can."""
        name, mine = pool.metadata.name, self._subnet.spec.subnet
        if pool.metadata.deletion_timestamp is not None:
            return f"a SpiderIPPool {name} that was there before is being deleted", False
        if not book.is_automatic(pool):
            return f"SpiderIPPool {name} is there, and was not made for an application", True
        if (other := book.application(pool.metadata.labels)) != book.application(wanted.labels):
            # Both chose it at the same time; who asks again has seen it, and chooses another name.
            return f"SpiderIPPool {name} is that of {other}", False
        if pool.spec.subnet != mine:
            text = f"SpiderIPPool {name} is of {pool.spec.subnet}, not of {mine}: a pool never changes its subnet"
            return f"{text}; delete it first", True
        return None

    async def _trim(self, at: int, wanted: AutoPool, pool: SpiderIPPool) -> SpiderIPPool:
        """Have the pool no bigger than it is to be, nor its entry when it is as big as that."""
        have = book.ground(pool.spec)
        lacking = book.missing(have, wanted.size, self._reserved)
        if lacking > 0:
            return pool
        if lacking < 0:
            return await self._shrink(at, wanted, pool, have, -lacking)
        if change := refreshed(pool, wanted):
            pool = await self._write_pool(pool, change)
        if wanted.name in self._entries and self._entries[wanted.name].addresses.difference(have):
            pool = await self._touch(pool)
        return pool

    async def _shrink(self, at: int, wanted: AutoPool, pool: SpiderIPPool, have: Ranges, count: int) -> SpiderIPPool:
        """Take so many addresses that nobody has out of a pool, demanding the version at which nobody had them."""
        used = {*read_records(pool.status.allocated_ips, have.version), *owed_in(pool, have.version)}
        smaller = book.shrunk(have, count, used=used, reserved=self._reserved)
        if smaller is None:
            text = f"SpiderIPPool {wanted.name} is to have {wanted.size} addresses, and {len(used)} are in use"
            self._refuse(at, text)
            return pool
        pool = await self._write_pool(pool, self._noted(pool, refreshed(pool, wanted), smaller))
        self._trimmed.add(wanted.name)
        return pool

    async def _touch(self, pool: SpiderIPPool) -> SpiderIPPool:
        """Before what was put aside for a pool is taken back: who was about to use it cannot any more."""
        pool = await self._write_pool(pool, self._noted(pool, {}))
        self._trimmed.add(pool.metadata.name)
        return pool

    def _noted(self, pool: SpiderIPPool, change: dict[str, Any], addresses: Ranges | None = None) -> dict[str, Any]:
        """A change of a pool that says under which subnet it is made, and never what the pool says already."""
        meta = change.get("metadata", {})
        seen = self._subnet.metadata.resource_version
        if pool.metadata.annotations.get(SUBNET_SEEN) == seen:
            seen = f"{seen}+"
        notes = {**meta.get("annotations", {}), SUBNET_SEEN: seen}
        change["metadata"] = {**meta, "annotations": notes}
        if addresses is not None:
            change["spec"] = {**change.get("spec", {}), "ips": addresses.format()}
        return change

    async def _discard(self, at: int, name: str) -> None:
        try:
            pool = await self._store.get(IPPOOL, name)
        except NotFound:
            self._lost(name)
            self._outcome.answers[at] = Discarded(name)
            return
        if not book.is_automatic(pool) or pool.spec.subnet != self._subnet.spec.subnet:
            text = f"SpiderIPPool {name} is no automatic pool of SpiderSubnet {self._name}"
            self._refuse(at, text, lasting=True)
            return
        await self._delete(pool)
        self._outcome.answers[at] = Discarded(name)

    async def _delete(self, pool: SpiderIPPool) -> None:
        if pool.metadata.deletion_timestamp is not None:
            return
        with contextlib.suppress(NotFound):
            await self._store.delete(IPPOOL, pool.metadata.name, uid=pool.metadata.uid)

    # -- the book ------------------------------------------------------------------------------------------------------

    async def _look_closer(self, asked: frozenset[str]) -> None:
        """Read the pools about which snapshot and status differ, now that the status has been read."""
        doubtful: list[str] = []
        for name in {*self._entries, *self._pools} - asked:
            pool, entry = self._pools.get(name), self._entries.get(name)
            if pool is None or (book.is_automatic(pool) and not self._agree(pool, entry)):
                doubtful.append(name)
        await self._each([partial(self._read, name) for name in doubtful])

    def _agree(self, pool: SpiderIPPool, entry: book.Entry | None) -> bool:
        try:
            return entry is not None and entry.addresses == book.ground(pool.spec)
        except ValueError:
            return True  # nothing more can be found out

    async def _read(self, name: str) -> None:
        try:
            pool = await self._store.get(IPPOOL, name)
        except NotFound:
            self._lost(name)
            return
        if pool.spec.subnet != self._subnet.spec.subnet:
            self._lost(name)
            return
        self._took(pool)
        entry = self._entries.get(name)
        if entry is None or not book.is_automatic(pool):
            return
        try:
            surplus = entry.addresses.difference(book.ground(pool.spec))
        except ValueError:
            return
        if surplus and pool.metadata.deletion_timestamp is None:
            await self._touch(pool)

    async def _settle(
        self, provided: Sequence[tuple[int, Provide]], *, leaving: bool
    ) -> list[tuple[int, SpiderIPPool, Ranges]]:
        """Write the subnet's status: what everybody has, and will have. Returns the pools that may grow now."""
        pools = self._controlled()
        kept = {name: entry for name, entry in self._entries.items() if name not in self._trimmed}
        entries = book.rebuilt(self._whole, kept, pools)
        growing: list[tuple[int, SpiderIPPool, Ranges]] = []
        for at, ask in provided:
            wanted, pool = self._ready[at]
            have = pools[wanted.name].addresses
            lacking = book.missing(have, wanted.size, self._reserved)
            if lacking <= 0:
                continue
            entry = entries[wanted.name]
            barred = self._reserved.union(book.excluded(pool.spec))
            left = book.free(self._whole, entries, barred)
            own = entry.addresses.difference(have).difference(barred)
            target = book.grown(have, lacking, own=own, left=left)
            if target is None:
                self._too_few(at, ask.pool, lacking, left.size + own.size)
                await self._unmake(wanted.name)
                continue
            bigger = book.Entry(entry.addresses.union(target), entry.application)
            if bigger.addresses == (kept[wanted.name].addresses if wanted.name in kept else None):
                bigger = book.Entry(bigger.addresses, entry.application, pool.metadata.resource_version)
            entries[wanted.name] = bigger
            growing.append((at, pool, target))
        await self._write_status(entries, leaving=leaving)
        waiting = {at for at, _, _ in growing}
        for at, ask in provided:
            if at not in waiting and at not in self._outcome.answers:
                self._outcome.answers[at] = Provided(ask.pool.name)
        return growing

    def _controlled(self) -> dict[str, book.Controlled]:
        """The pools that the subnet has, as far as that is known."""
        found: dict[str, book.Controlled] = {}
        for name, entry in self._entries.items():
            if name not in self._absent and name not in self._pools:
                found[name] = book.Controlled(entry.addresses, automatic=True, application=entry.application)
        for name, pool in self._pools.items():
            known = self._entries.get(name)
            try:
                one = book.controlled(pool)
            except ValueError as error:
                _log.warning("subnet %s: pool %s cannot be read: %s", self._name, name, error)
                one = None
            if one is None or (one.automatic and name not in self._fresh):
                if known is None:
                    continue
                said = one.application if one is not None else known.application
                one = book.Controlled(known.addresses, book.is_automatic(pool), said)
            found[name] = one
        return found

    async def _unmake(self, name: str) -> None:
        """A pool that was made for nothing goes again."""
        if name in self._made:
            await self._each([partial(self._delete, self._pools[name])])

    async def _write_status(
        self, entries: Mapping[str, book.Entry], *, leaving: bool, unready: tuple[str, str] | None = None
    ) -> None:
        """`unready`: why no pool gets an address of it, in one word and for people."""
        subnet, before = self._subnet, self._subnet.status
        if leaving:
            if not self._pools and not entries and await self._none_left():
                await self._let_go()
                return
            unready = ("BeingDeleted", "the subnet is being deleted")
        conditions = served(before.conditions, subnet.metadata, unready=unready, now=self._sight.wall())
        if leaving:
            message = has_pools(list(self._pools) or list(entries))
            conditions = blocked(
                conditions, subnet.metadata, reason="PoolsLeft", message=message, now=self._sight.wall()
            )
        after = SubnetStatus(
            controlled_ippools=book.write_entries(entries),
            total_ip_count=min(self._whole.size, MAX_INT64),
            allocated_ip_count=min(book.held(self._whole.version, entries.values()).size, MAX_INT64),
            conditions=conditions,
        )
        if after == before:
            return
        self._subnet = await self._store.replace_status(SUBNET, subnet, after)
        if leaving and waiting(conditions) != waiting(before.conditions):
            self._outcome.waits = waiting(conditions)

    async def _none_left(self) -> bool:
        listed = await self._store.list(IPPOOL)
        return all(pool.spec.subnet != self._subnet.spec.subnet for pool in listed.items)

    async def _let_go(self) -> None:
        meta = self._subnet.metadata
        if FINALIZER in meta.finalizers:
            change = {"metadata": {"finalizers": others(meta)}}
            await self._store.patch(SUBNET, self._name, change, resource_version=meta.resource_version)

    async def _grow(self, at: int, pool: SpiderIPPool, target: Ranges) -> None:
        """Give the pool what has been put aside for it."""
        wanted, name = self._ready[at][0], pool.metadata.name
        begun = pool
        change = self._noted(pool, refreshed(pool, wanted), target)
        for _ in range(_RESENT):
            try:
                await self._write_pool(pool, change)
            except Conflict:
                pool = await self._store.get(IPPOOL, name)
                if not same(pool, begun):
                    break
            else:
                self._outcome.answers[at] = Provided(name)
                return
        self._outcome.overtaken = True

    # -- upkeep --------------------------------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        """Labels, owners and finalizers."""
        lacking = own_lacks(self._subnet)
        if lacking:
            await self._each([partial(self._patch_subnet, lacking)])
        adopted = [
            (pool, change)
            for pool in self._pools.values()
            if pool.metadata.deletion_timestamp is None and (change := adoption(pool, self._subnet))
        ]
        await self._each([partial(self._adopt, pool, change) for pool, change in adopted])

    async def _patch_subnet(self, change: Mapping[str, Any]) -> None:
        version = self._subnet.metadata.resource_version
        self._subnet = await self._store.patch(SUBNET, self._name, change, resource_version=version)

    async def _adopt(self, pool: SpiderIPPool, change: Mapping[str, Any]) -> None:
        try:
            await self._write_pool(pool, change)
        except (Invalid, Denied) as error:
            _log.warning("subnet %s: pool %s cannot be adopted: %s", self._name, pool.metadata.name, error)

    # -- the store -----------------------------------------------------------------------------------------------------

    async def _write_pool(self, pool: SpiderIPPool, change: Mapping[str, Any]) -> SpiderIPPool:
        written = await self._store.patch(
            IPPOOL, pool.metadata.name, change, resource_version=pool.metadata.resource_version
        )
        self._took(written)
        return written

    def _took(self, pool: SpiderIPPool) -> None:
        if pool.spec.subnet == self._subnet.spec.subnet:
            self._pools[pool.metadata.name] = pool
            self._fresh.add(pool.metadata.name)
        self._sight.wrote(pool)

    def _lost(self, name: str) -> None:
        self._pools.pop(name, None)
        self._absent.add(name)
        self._sight.gone(name)

    async def _each(self, jobs: Sequence[Step]) -> None:
        """Do these, some at a time. What fails for one leaves that one unanswered."""
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def one(job: Step) -> None:
            async with limit:
                try:
                    await job()
                except (Conflict, NotFound):
                    self._outcome.overtaken = True
                except (Unavailable, Ambiguous, Busy, Invalid, Denied) as error:
                    self._outcome.trouble = error

        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(one, job)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _too_few(self, at: int, wanted: AutoPool, need: int, left: int) -> None:
        text = f"SpiderSubnet {self._name} has {left} addresses left that no pool has and nobody reserves"
        self._refuse(at, f"{text}; SpiderIPPool {wanted.name} needs {need} more to have {wanted.size}")

    def _refuse(self, at: int, reason: str, *, lasting: bool = False) -> None:
        ask = self._asks[at]
        name = ask.pool.name if isinstance(ask, Provide) else ask.pool
        self._outcome.answers[at] = NotProvided(name, reason, lasting)

    def _refuse_all(self, reason: str) -> None:
        for at in range(len(self._asks)):
            self._refuse(at, reason, lasting=True)
