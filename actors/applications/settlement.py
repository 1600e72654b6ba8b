"""One attempt at having the pools of an application as they are to be: look, ask the owners of its subnets, done.

Nothing is deleted on the word of a snapshot: the application is read before, and only pools go that were there before
that read. A pool that is as it is to be is not asked about. What a crash leaves, await by await: pools that are not all
made or not all changed yet; the next attempt, of whoever owns the application then, finds them by their labels.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import anyio
from msgspec import Struct, field

from actors.subnets.messages import AutoPool, Discard, Discarded, NotProvided, Provide, Provided
from api.annotations import OWNER_SUBNET, AnnotationError
from api.ippool import SpiderIPPool
from ipam import autopool
from ipam.autopool import Application, Plan, Wanted
from ipam.identity import Workload
from ipam.ranges import Ranges
from runtime.errors import ActorError

SUBNET_SECONDS: Final = 30.0
"""The longest wait for the owner of a subnet."""

type Place = tuple[str, int]
"""NIC and IP version."""


class Terms(Struct, frozen=True):
    """What the owner of an application has besides its mailbox.

    Attributes:
        find: reads an application; None where there is none, or it asks for nothing. The annotations are those of its
            latest pod, which say what an application of a foreign kind asks for. Raises `StoreError`.
        pools: the automatic pools of applications of that name, as last seen.
        named: the pool of a name, as last seen.
        ask: has the owner of a subnet do it. Raises `ActorError`.
        reserved: what no pod gets, by IP version.
        said: is told what an application has to know: reason, text.
        hungry: is told for which subnets an application waits to have more, or less.
        redundant: addresses on top of the replicas where the application does not say how many.
        patience: seconds for which an ADD waits where a subnet has no addresses left.
    """

    find: Callable[[Workload, Mapping[str, str]], Awaitable[Application | None]]
    pools: Callable[[Workload], Sequence[SpiderIPPool]]
    named: Callable[[str], SpiderIPPool | None]
    ask: Callable[[Provide | Discard], Awaitable[Provided | Discarded | NotProvided]]
    reserved: Callable[[int], Ranges]
    said: Callable[[Workload, str, str], None]
    hungry: Callable[[Workload, frozenset[str]], None] = lambda _workload, _subnets: None
    redundant: int = 1
    enable_ipv4: bool = True
    enable_ipv6: bool = True
    patience: float = 4.0


class Trouble(Struct, frozen=True):
    """Why a pool is not as it is to be."""

    subnet: str
    reason: str
    lasting: bool
    changed: bool = False
    """Whether somebody wants another subnet for it."""
    growing: bool = True
    """Whether the application is short of addresses, rather than not rid of some."""


class Settled(Struct, frozen=True, tag=True):
    """How an attempt has ended.

    Attributes:
        application: as it was dealt with; None where there is none that asks for pools.
        problem: its annotations cannot be read: then nothing was done.
        have: the pool by NIC and family.
        subnets: what it is of.
        sizes: that were asked for and had.
        troubles: why one is not there, or not as it is to be.
    """

    application: Application | None
    problem: str = ""
    have: Mapping[Place, str] = field(default_factory=dict)
    subnets: Mapping[Place, str] = field(default_factory=dict)
    sizes: Mapping[Place, int] = field(default_factory=dict)
    troubles: Mapping[Place, Trouble] = field(default_factory=dict)


class Settlement:
    """See the module. `run` once."""

    def __init__(
        self,
        workload: Workload,
        terms: Terms,
        *,
        seen: Application | None,
        notes: Mapping[str, str],
        sizes: Mapping[Place, int],
    ) -> None:
        """`seen` is the application as a watch shows it; None: it is to be read. `sizes` are those last had."""
        self._workload = workload
        self._terms = terms
        self._seen = seen
        self._notes = notes
        self._sizes = sizes
        self._have: dict[Place, str] = {}
        self._of: dict[Place, str] = {}
        self._had: dict[Place, int] = {}
        self._troubles: dict[Place, Trouble] = {}

    async def run(self) -> Settled:
        """Do it. Raises `StoreError` where the application cannot be read."""
        before = list(self._terms.pools(self._workload))
        application = self._seen
        plan: Plan | None = None
        try:
            if application is not None:
                plan = self._plan(application)
            if application is None or autopool.surplus(application.workload, before, plan):
                application = await self._terms.find(self._workload, self._notes)
                plan = self._plan(application) if application is not None else None
        except AnnotationError as error:
            return Settled(application, problem=str(error))
        workload = application.workload if application is not None else self._workload
        async with anyio.create_task_group() as group:
            if plan is not None:
                for wanted in plan.pools:
                    group.start_soon(self._provide, workload, wanted, plan)
            for pool in autopool.surplus(workload, before, plan):
                group.start_soon(self._discard, pool)
        return Settled(application, have=self._have, subnets=self._of, sizes=self._had, troubles=self._troubles)

    def _plan(self, application: Application) -> Plan:
        terms = self._terms
        return autopool.plan(
            application, redundant=terms.redundant, enable_ipv4=terms.enable_ipv4, enable_ipv6=terms.enable_ipv6
        )

    async def _provide(self, workload: Workload, wanted: Wanted, plan: Plan) -> None:
        place = wanted.nic, wanted.version
        pool = autopool.find(workload, wanted.nic, wanted.version, self._terms.pools(workload))
        if pool is not None:
            of = pool.metadata.labels.get(OWNER_SUBNET, wanted.subnet)
            self._have[place], self._of[place] = pool.metadata.name, of
            if of != wanted.subnet:
                text = f"{pool.metadata.name}, its pool for {wanted.nic}, is of SpiderSubnet {of}, not {wanted.subnet}"
                text = f"{text}: the subnet of an application does not change while it lives"
                self._troubles[place] = Trouble(wanted.subnet, text, lasting=True, changed=True)
                return
        if (
            pool is not None
            and self._sizes.get(place, wanted.size) == wanted.size
            and autopool.settled(pool, workload, wanted, plan, self._terms.reserved(wanted.version))
        ):
            self._had[place] = wanted.size
            return
        name = pool.metadata.name if pool is not None else self._name(workload, wanted)
        ask = Provide(
            wanted.subnet,
            AutoPool(
                name=name,
                size=wanted.size,
                labels=autopool.labels(workload, wanted, reclaim=plan.reclaim),
                annotations=autopool.notes(workload, plan.number),
                affinity=autopool.affinity(workload),
            ),
        )
        try:
            answer = await self._terms.ask(ask)
        except ActorError as error:
            answer = NotProvided(name, f"SpiderSubnet {wanted.subnet}: {error}", lasting=False)
        if isinstance(answer, NotProvided):
            growing = pool is None or autopool.size(pool, self._terms.reserved(wanted.version)) < wanted.size
            self._troubles[place] = Trouble(wanted.subnet, answer.reason, answer.lasting, growing=growing)
        else:
            self._have[place], self._of[place], self._had[place] = name, wanted.subnet, wanted.size

    def _name(self, workload: Workload, wanted: Wanted) -> str:
        def taken(name: str) -> bool:
            there = self._terms.named(name)
            return there is not None and autopool.owner_of(there) != workload

        return autopool.pool_name(workload, wanted.nic, wanted.version, taken=taken)

    async def _discard(self, pool: SpiderIPPool) -> None:
        name, subnet = pool.metadata.name, pool.metadata.labels.get(OWNER_SUBNET, "")
        try:
            answer = await self._terms.ask(Discard(subnet, name))
        except ActorError as error:
            answer = NotProvided(name, f"SpiderSubnet {subnet}: {error}", lasting=False)
        if isinstance(answer, NotProvided):
            place = name, 0
            self._troubles[place] = Trouble(subnet, answer.reason, answer.lasting, growing=False)
