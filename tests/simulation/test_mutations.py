"""What the protocol would be without one of its rules: the simulation has to notice each that is taken away."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest

from actors.allocation.callers import Refusal
from actors.allocation.grants import Grants
from actors.pools.ippool import IPPoolActor
from api.ippool import IPPoolStatus, SpiderIPPool
from ipam.ledger import Ledger
from ipam.operations import Claim, Disown, Refused, Surrender
from runtime.testing import run
from runtime.testing.loop import Deadlock
from runtime.testing.transport import Weather
from tests.simulation.node import Violation
from tests.simulation.stories import closing, conflict, joined, statefulset, two_nics
from tests.simulation.world import ROUGH_NETWORK, ROUGH_STORE, World, crashes, hangs

type Patch = Callable[[pytest.MonkeyPatch], None]

THREE = ("c1", "c2", "c3")


def caught(make: Callable[[int], World], disturb: Any, *, seeds: Iterable[int] = range(1, 241)) -> bool:
    """Whether one of the seeds breaks an invariant."""
    for seed in seeds:
        world = make(seed)
        try:
            run(lambda world=world: world.run(disturb), seed=seed)  # type: ignore[misc]
        except Violation:
            return True
        except BaseExceptionGroup as group:
            if group.subgroup(Violation) is not None:
                return True
            raise
        except (TimeoutError, Deadlock):
            return True  # liveness is an invariant, too
    return False


def rough(seed: int, **options: Any) -> World:
    return World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK, **options)


def names(seed: int) -> World:
    return rough(seed, pods=2, stories=[statefulset("web", replicas=3, lives=4)])


def duos(seed: int) -> World:
    return rough(seed, pods=2, stories=[two_nics(number) for number in range(4)])


def an_answer_from_memory(patch: pytest.MonkeyPatch) -> None:
    """What needs no write is answered at once."""
    real = IPPoolActor._try

    def hasty(self: IPPoolActor) -> None:
        if self._attempt is not None:
            self._attempt.verified = self._ledger is not None
        real(self)

    patch.setattr(IPPoolActor, "_try", hasty)


def no_uid_check(patch: pytest.MonkeyPatch) -> None:
    """A release takes whatever the NIC's sandbox has, whichever pod it is."""

    def going(self: Ledger, wanted: Surrender) -> list[int]:
        return [ip for ip, record in self._records.items() if record.node == wanted.node]

    def any_sandbox(_: Ledger, __: Surrender | Disown, ips: Iterable[int]) -> list[int] | Refused:
        return list(ips)[:1]

    patch.setattr(Ledger, "_going", going)
    patch.setattr(Ledger, "_sandboxes", any_sandbox)


def no_cid_check(patch: pytest.MonkeyPatch) -> None:
    """A release of an old sandbox takes what a newer one of the pod has."""
    real = Ledger._sandboxes

    def any_cid(self: Ledger, wanted: Any, ips: Iterable[int]) -> list[int] | Refused:
        return real(self, msgspec.structs.replace(wanted, cid=""), ips)

    patch.setattr(Ledger, "_sandboxes", any_cid)


def no_nic_in_the_key(patch: pytest.MonkeyPatch) -> None:
    """A claim is answered with whatever the pod has."""

    def matching(self: Ledger, uid: str, _: str) -> list[int]:
        return sorted(self._table.of_uid(uid))

    patch.setattr(Ledger, "_matching", matching)


def reply_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Who asked is answered when the write begins."""
    real = IPPoolActor._write

    def eager(self: IPPoolActor, attempt: Any) -> None:
        assert self._pool is not None and self._ledger is not None
        for ask, answer in zip(attempt.asks, attempt.outcome.answers, strict=True):
            if ask.reply is not None:
                ask.reply.resolve(self._translate(ask.message, answer))
        real(self, attempt)

    patch.setattr(IPPoolActor, "_write", eager)


def a_replay_that_trusts_the_old_spec(patch: pytest.MonkeyPatch) -> None:
    """After a conflict the records are read anew, and the spec is not."""
    real = Ledger.__init__
    known: dict[str, SpiderIPPool] = {}

    def read(self: Ledger, pool: SpiderIPPool, *args: Any, **options: Any) -> None:
        first = known.setdefault(pool.metadata.uid, pool)
        real(self, msgspec.structs.replace(pool, spec=first.spec), *args, **options)

    patch.setattr(Ledger, "__init__", read)


def rest_and_quarantine_in_memory_only(patch: pytest.MonkeyPatch) -> None:
    """What is withheld is not written down."""
    real = Ledger.status

    def status(self: Ledger) -> IPPoolStatus:
        return msgspec.structs.replace(real(self), withheld_ips=None)

    patch.setattr(Ledger, "status", status)


def a_name_gets_its_address_at_once(patch: pytest.MonkeyPatch) -> None:
    """Whether a link still carries a fixed address is not asked."""
    real = Ledger._claim

    def claim(self: Ledger, claim: Claim) -> Any:
        return real(self, msgspec.structs.replace(claim, moving=True))

    patch.setattr(Ledger, "_claim", claim)


def everything_is_freed(patch: pytest.MonkeyPatch) -> None:
    """A name's addresses go with its pod."""
    real = Ledger._release

    def release(self: Ledger, ips: Iterable[int], *, retain: bool) -> Any:
        del retain
        return real(self, ips, retain=False)

    patch.setattr(Ledger, "_release", release)


def only_the_nic_that_was_deleted(patch: pytest.MonkeyPatch) -> None:
    """What was granted along with it, and never fetched, is forgotten."""

    def going(self: Ledger, wanted: Surrender) -> list[int]:
        return self._matching(wanted.uid, wanted.nic)

    patch.setattr(Ledger, "_going", going)


def one_nic_is_enough(patch: pytest.MonkeyPatch) -> None:
    """Where there is not enough for all NICs of a pod the first one has its addresses all the same."""
    real = Grants._claim

    async def claim(self: Grants, claim: Any, selection: Any, *rest: Any) -> Any:
        try:
            return await real(self, claim, selection, *rest)
        except Refusal:
            return await real(self, claim, msgspec.structs.replace(selection, nics=selection.nics[:1]), *rest)

    patch.setattr(Grants, "_claim", claim)


def a_late_claim_of_an_old_sandbox_counts(patch: pytest.MonkeyPatch) -> None:
    """Of two sandboxes of a pod the one whose claim comes last has the address."""
    real = Ledger._claim

    def claim(self: Ledger, claim: Claim) -> Any:
        return real(self, msgspec.structs.replace(claim, begun=0, disputed=False))

    patch.setattr(Ledger, "_claim", claim)


def spread(seed: int) -> World:
    world = rough(seed, replicas=THREE, spread=True)
    world.arrival = 6.0
    return world


def closed(seed: int) -> World:
    world = rough(seed, pods=16, stories=[closing])
    world.arrival = 4.0
    return world


def rested(seed: int) -> World:
    world = rough(seed, pods=10, addresses=60, stories=[conflict(number) for number in range(2)])
    world.arrival, world.ages.rest = 10.0, 28.0
    return world


def late(seed: int) -> World:
    """Half of all requests come twice, and a third of all messages comes when nobody waits any more."""
    weather = Weather(delay=(0.0002, 0.01), double_request=0.5, late=0.3, late_by=(0.5, 12.0))
    world = World(seed, chances=ROUGH_STORE, weather=weather, pods=8, replicas=THREE, spread=True)
    world.settle_seconds = 400.0
    return world


def trios(seed: int) -> World:
    """Pods with three NICs that ask for all addresses at once, and hardly find them."""
    return rough(seed, pods=4, addresses=8, stories=[joined(number) for number in range(4)])


def hoarded_trios(seed: int) -> World:
    world = trios(seed)
    world.collecting = False
    return world


def hoarded(seed: int) -> World:
    world = duos(seed)
    world.collecting = False  # it would find it
    return world


MUTATIONS: Sequence[tuple[Patch, Callable[[int], World], Any]] = (
    (an_answer_from_memory, spread, hangs),
    (no_uid_check, rough, crashes),
    (no_cid_check, rough, crashes),
    (no_nic_in_the_key, duos, None),
    (reply_before_commit, rough, crashes),
    (a_replay_that_trusts_the_old_spec, closed, None),
    (rest_and_quarantine_in_memory_only, rested, crashes),
    (a_name_gets_its_address_at_once, names, None),
    (everything_is_freed, names, None),
    (only_the_nic_that_was_deleted, hoarded, None),
    (only_the_nic_that_was_deleted, hoarded_trios, None),
    (one_nic_is_enough, trios, None),
    (a_late_claim_of_an_old_sandbox_counts, late, hangs),
)


@pytest.mark.parametrize(("mutation", "make", "disturb"), MUTATIONS, ids=lambda it: getattr(it, "__name__", ""))
@pytest.mark.timeout(300)
def test_a_rule_that_is_taken_away_is_missed(
    monkeypatch: pytest.MonkeyPatch, mutation: Patch, make: Callable[[int], World], disturb: Any
) -> None:
    mutation(monkeypatch)
    assert caught(make, disturb), f"nothing happens without it: {mutation.__doc__}"


def test_negative_control_with_all_its_rules_pods_with_three_nics_have_all_or_nothing() -> None:
    assert not caught(trios, None, seeds=range(1, 9))
    assert not caught(hoarded_trios, None, seeds=range(1, 9))


def test_negative_control_with_all_its_rules_it_stands_the_worst_weather() -> None:
    assert not caught(late, hangs, seeds=range(1, 13))
