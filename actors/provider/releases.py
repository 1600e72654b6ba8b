"""The actor that tells the network provider which addresses are released, until it has heard.

Messages: `Owing` from whoever follows the pools (`actors.provider.following`); `Tried` and `Again` from its own work
and timers. State: which debts are in hand, how often each was tried. Persists: nothing itself; a debt stands in the
status of its pool, by the same write that ended the record, and leaves it when the provider has answered with 2xx.
Answers: nothing, it is told.

One attempt, and what a crash leaves at each of its three waits:

- The pool's owner writes down until when the request may be under way (`actors.pools.claims.Chase`). It does not where
  the debt is not as it was seen: somebody else is at it, or it is settled. Left: a debt that nobody touches till then.
- The provider is asked. Left: the same; a release is asked for again, of what may be released already.
- The owner settles the debt. Left: the same.

A release counts only if it began when no other request about the address could be under way, since a provider may
carry out in any order what it has at the same time. The last one may be the very request by which the address was had:
of a pod that did not live long, or whose ADD failed. Then the provider is told at once, for the cloud's sake, and again
when that cannot be under way any more. So no address is granted anew while anything of its last holder may still reach
the provider, whichever replica has sent it.

A provider that does not do it is asked again, after a second and then after twice the pause each time, up to a minute.
"""

import logging
from collections.abc import Callable
from typing import Final, assert_never

from msgspec import Struct

from actors.pools.claims import Chase, Refused, Settle, Surrendered
from actors.pools.peers import Pool
from actors.provider.provider import SKEW_SECONDS, Provider, ProviderError
from ipam.withheld import Owed
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.errors import ActorError
from telemetry import metrics

_log = logging.getLogger(__name__)

_IN_HAND: Final = 16
"""Requests at a time."""
_POOL_SECONDS: Final = 60.0
_PAUSES_SECONDS: Final = (1.0, 60.0)
_EARLY_SECONDS: Final = 0.5
"""A release ahead is not worth it where less time is left."""


class Debt(Struct, frozen=True):
    """An address that the provider has to be told of."""

    pool: str
    address: str
    subnet: str
    owed: Owed

    @property
    def key(self) -> str:
        """What it is known by."""
        return f"{self.pool}/{self.address}"


class Owing(Struct, frozen=True, tag=True):
    """What pools owe, as it was seen; what is in hand already is no news."""

    debts: tuple[Debt, ...]


class Tried(Struct, frozen=True, tag=True):
    """An attempt has ended."""

    key: str
    debt: Debt
    pause: float | None
    """Seconds until the next one; None: it is over, here at least."""
    problem: str = ""


class Again(Struct, frozen=True, tag=True):
    """A pause is over."""

    key: str


Message = Owing | Tried | Again


class _Entry(Struct):
    """A debt in hand."""

    debt: Debt
    failures: int = 0
    seen: Debt | None = None
    """Seen while an attempt was under way."""
    free: bool = False
    """Whether all that `by` stands for is known here to be over, though its time is not."""
    ahead: bool = False
    """Whether a release that does not count was tried."""


class ReleasesActor(Actor[Message]):
    """See the module."""

    capacity = 1024

    def __init__(
        self,
        provider: Provider,
        *,
        pools: Callable[[str], Pool],
        say: Callable[[str, str], None] = lambda _pool, _text: None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """`pools` gives the way to a pool's owner.

        `say` is told of a pool whose address is not released, and why. `begin` is called when nothing is known any
        more: all debts are to be told of again.
        """
        self._provider = provider
        self._pool = pools
        self._say = say
        self._tell_all = begin
        self._entries: dict[str, _Entry] = {}
        self._queue: dict[str, None] = {}
        self._busy: set[str] = set()

    def __repr__(self) -> str:
        return f"<ReleasesActor {len(self._busy)} under way, {len(self._entries)} owed>"

    def started(self) -> None:
        """What was in hand in an earlier life is told again."""
        self._tell_all()

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - nobody asks
        """Take in what is owed, and begin as many attempts as may be under way."""
        match message:
            case Owing(debts):
                for debt in debts:
                    self._note(debt)
            case Tried():
                self._busy.discard(message.key)
                self._tried(message)
            case Again(key):
                self._queue[key] = None
            case _:
                assert_never(message)
        for key in [key for key in self._queue if key not in self._busy][: _IN_HAND - len(self._busy)]:
            del self._queue[key]
            self._begin(key)
        metrics.PROVIDER_RELEASES_FAILING.set(sum(entry.failures > 0 for entry in self._entries.values()))
        return None

    def _note(self, debt: Debt) -> None:
        entry = self._entries.get(debt.key)
        if entry is None:
            self._entries[debt.key] = _Entry(debt)
            self._queue[debt.key] = None
        elif debt != entry.debt:
            entry.seen = debt

    def _begin(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        self._busy.add(key)
        self.pipe(
            self._attempt(entry),
            lambda tried: tried,
            failed=lambda error: Tried(key, entry.debt, 0.0, f"{type(error).__name__}: {error}"),
        )

    def _tried(self, tried: Tried) -> None:
        entry = self._entries[tried.key]
        seen, entry.seen, entry.debt = entry.seen, None, tried.debt
        if tried.pause is None:
            del self._entries[tried.key]
            if seen is not None and seen != tried.debt:
                self._note(seen)  # it is owed anew, or another replica has left it
            return
        pause = tried.pause
        if tried.problem:
            entry.failures += 1
            pause = max(pause, min(_PAUSES_SECONDS[1], _PAUSES_SECONDS[0] * 2.0 ** min(entry.failures - 1, 16)))
            _log.warning("pool %s: %s is not released: %s", entry.debt.pool, entry.debt.address, tried.problem)
            self._say(entry.debt.pool, f"{entry.debt.address} is withheld until it is released: {tried.problem}")
        self.timers.start(tried.key, pause, Again(tried.key))

    async def _attempt(self, entry: _Entry) -> Tried:
        """Once. Raises `ActorError` where the pool's owner cannot be asked."""
        debt = entry.debt
        left = debt.owed.by / 1000 - self.system.clock.wall()
        if left > 0 and not entry.free:
            if not debt.owed.tried and not entry.ahead and left - SKEW_SECONDS > _EARLY_SECONDS:
                entry.ahead = True
                return await self._ahead(debt)
            return Tried(debt.key, debt, left)
        return await self._settle(entry)

    async def _ahead(self, debt: Debt) -> Tried:
        if not await self._owed(Chase(address=debt.address, by=debt.owed.by, until=debt.owed.by), debt.pool):
            return Tried(debt.key, debt, None)
        problem = ""
        try:
            # It ends before anything else about the address can begin.
            seconds = debt.owed.by / 1000 - self.system.clock.wall() - SKEW_SECONDS
            await self._provider.release(debt.owed, subnet=debt.subnet, address=debt.address, seconds=seconds)
        except ProviderError as error:
            problem = str(error)
        _log.debug("pool %s: %s is released ahead: %s", debt.pool, debt.address, problem or "done")
        return Tried(debt.key, debt, max(0.0, debt.owed.by / 1000 - self.system.clock.wall()))

    async def _settle(self, entry: _Entry) -> Tried:
        debt, seconds = entry.debt, self._provider.timeout
        until, expires = self._provider.until(seconds), self.system.clock.now() + seconds
        if until <= debt.owed.by:
            until = debt.owed.by + 1
        if not await self._owed(Chase(address=debt.address, by=debt.owed.by, until=until), debt.pool):
            return Tried(debt.key, debt, None)
        owed = Owed(
            pod=debt.owed.pod,
            pod_uid=debt.owed.pod_uid,
            node=debt.owed.node,
            parent_nic_mac=debt.owed.parent_nic_mac,
            by=until,
            tried=True,
            until=debt.owed.until,
        )
        now = Debt(debt.pool, debt.address, debt.subnet, owed)
        entry.free = False
        try:
            left = expires - self.system.clock.now()
            await self._provider.release(owed, subnet=debt.subnet, address=debt.address, seconds=left)
        except ProviderError as error:
            entry.free = error.over
            return Tried(now.key, now, 0.0, str(error))
        if not await self._owed(Settle(address=debt.address, by=until), debt.pool):
            _log.warning("pool %s: %s was settled by somebody else", debt.pool, debt.address)
        return Tried(now.key, now, None)

    async def _owed(self, message: Chase | Settle, pool: str) -> bool:
        """Whether the owner has found the debt as it is said to be. Raises `ActorError`."""
        answer = await self._pool(pool).ask(message, timeout=_POOL_SECONDS)
        match answer:
            case Surrendered(addresses):
                return bool(addresses)
            case Refused(reason):
                if reason.predicate == "exists":
                    return False  # the pool is gone, by force: nobody can be given the address
                raise ActorError(str(reason))
            case _:
                assert_never(answer)
