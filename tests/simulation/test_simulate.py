"""The modelled cluster of `spiderpoolctl simulate`: real controllers in it, the same outcome every time, and an audit
that sees what goes wrong.
"""

from typing import Any

import pytest
from msgspec import structs

from api.kinds import IPPOOL
from runtime.store.memory import MemoryStore
from simulation.audit import counts
from simulation.node import Node
from simulation.plan import Plan
from simulation.report import Report
from simulation.world import simulate

SMALL = Plan(nodes=20, pods_per_node=10, over=5.0)


def played(**changes: Any) -> Report:
    plan = structs.replace(SMALL, **changes).completed()
    return simulate(plan, real=lambda: 0.0)


def test_every_pod_has_its_address_and_requests_share_writes() -> None:
    report = played(over=0.5)
    assert report.findings == ()
    assert report.served == report.pods == 200
    assert report.unserved == {} and report.failed_adds == {}
    assert report.writes.by_kind["spiderendpoints"] == 200
    assert report.writes.by_kind["spiderippools"] < 200
    assert report.writes.conflicts == 0
    assert report.batch.longest > 1
    assert 0 < report.add.p50 <= report.add.p99 <= report.add.longest
    assert report.writes.largest_pool < 1_200_000


def test_the_same_plan_has_the_same_outcome_and_another_seed_another() -> None:
    one, again, other = played(), played(), played(seed=2)
    assert one == again
    assert one.add != other.add


def test_dual_stack_over_several_controllers_with_pods_that_go() -> None:
    report = played(dual_stack=True, controllers=3, churn=0.3, pools=4)
    assert report.findings == ()
    assert report.served == 200
    assert report.deleted > 0


def test_pods_with_three_nics_cost_as_many_endpoints_as_those_with_one() -> None:
    report = played(dual_stack=True, nics=3, controllers=3, churn=0.3, pools=4, kill_owner_at=2.0)
    assert report.findings == ()
    assert report.served == 200
    three, one = played(nics=3), played()
    assert three.writes.by_kind["spiderendpoints"] == one.writes.by_kind["spiderendpoints"] == 200
    assert three.writes.by_kind["spiderippools"] < 1.5 * one.writes.by_kind["spiderippools"]


def test_pods_with_three_nics_for_which_there_is_no_room_have_none() -> None:
    report = played(nics=3, pools=2, pool_size=100)
    assert report.findings == ()
    assert report.served <= 66
    assert report.unserved == {"ip_used_out": 200 - report.served}


def test_the_death_of_an_owner_costs_no_pod_its_addresses() -> None:
    report = played(dual_stack=True, controllers=3, churn=0.2, pools=4, kill_owner_at=2.0)
    assert report.findings == ()
    assert report.served == 200
    assert report.add.longest < 10


def test_a_slow_api_server_and_a_small_budget_make_pods_wait_and_batches_grow() -> None:
    usual, slow = played(), played(api_latency=0.1, write_budget=20_000.0)
    assert slow.findings == ()
    assert slow.add.p50 > 10 * usual.add.p50
    assert slow.batch.p90 > usual.batch.p90
    assert slow.writes.by_kind["spiderippools"] < usual.writes.by_kind["spiderippools"]


def test_pods_for_which_there_is_no_room_are_told_and_leave_nothing() -> None:
    report = played(pools=2, pool_size=90)
    assert report.findings == ()
    assert report.served == 180
    assert report.unserved == {"ip_used_out": 20}


def test_a_store_that_forgets_what_it_acknowledged_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every tenth write of a pool is answered with what it would have been, and not kept."""
    replace, written = MemoryStore.replace_status, 0

    async def forgetful(self: MemoryStore, kind: Any, item: Any, status: Any) -> Any:
        nonlocal written
        written += kind is IPPOOL
        if kind is not IPPOOL or written != 10:
            return await replace(self, kind, item, status)
        kept = self._records[IPPOOL.group + "/" + IPPOOL.plural].copy()
        answer = await replace(self, kind, item, status)
        self._records[IPPOOL.group + "/" + IPPOOL.plural] = kept
        return answer

    monkeypatch.setattr(MemoryStore, "replace_status", forgetful)
    assert {"lost", "duplicate"} & counts(played().findings).keys()


def test_writes_without_their_fence_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: two owners of a pool that both write over each other's records."""
    replace = MemoryStore.replace_status

    async def unfenced(self: MemoryStore, kind: Any, item: Any, status: Any) -> Any:
        current = await self.get(kind, item.metadata.name) if kind is IPPOOL else item
        return await replace(self, kind, current, status)

    monkeypatch.setattr(MemoryStore, "replace_status", unfenced)
    monkeypatch.setattr("actors.pools.peers.Peers._choose", lambda self, _key, _passed: self.me)
    found = counts(played(controllers=2).findings)
    assert found["duplicate"] > 0 and found["lost"] > 0


def test_two_owners_of_every_pool_cost_conflicts_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pools.peers.Peers._choose", lambda self, _key, _passed: self.me)
    report = played(controllers=2)
    assert report.findings == ()
    assert report.writes.conflicts > 0


def test_addresses_that_are_never_given_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: agents that keep to themselves what they no longer need."""

    async def silent(self: Node, *args: Any, **options: Any) -> None:
        return None

    monkeypatch.setattr(Node, "_give_back", silent)
    report = played(churn=0.3)
    assert counts(report.findings) == {"endpoint": report.deleted, "leak": report.deleted}
