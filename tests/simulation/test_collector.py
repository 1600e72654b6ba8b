"""What is left over is given up, and nothing else: every cause, and next to it what stays.

Free means that no link carries the address. Everywhere here the proof comes from an agent that was asked, or from a
node that is dead.
"""

from typing import Any

import anyio
import pytest

from actors.collection.reclaim import Reclaimer
from api.configfile import ConfigFile
from api.ippool import AllocationRecord
from api.kinds import ENDPOINT, NAMESPACE, NODE, POD, STATEFULSET, VIRTUALMACHINE, Kind
from api.kubevirt import VirtualMachine
from api.meta import ObjectMeta
from api.wire import Look
from tests.simulation.stage import CID, Stage, act, holding, legacy, nic

SETTLE = 8.0
"""Until a collector has begun and agents have reported."""

# ---------------------------------------------------------------- pods


def test_a_pod_that_vanishes_gives_its_address_back_within_a_second() -> None:
    """Its agent knows nothing of it (a journal that was lost), and no link carries the address."""

    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web")
        await stage.record(a1=holding("web", uid), a2=holding("other", await stage.pod("other"), "b" * 12))
        await stage.endpoint("web", uid, nic("eth0", "10.6.0.1"))
        await anyio.sleep(SETTLE)
        assert await stage.left() == {"1", "2"}
        await stage.delete("web")
        assert await stage.freed_within("10.6.0.1", 5.0) < 1.0
        assert await stage.left() == {"2"}
        assert await stage.shown() == {}

    act(scene)


@pytest.mark.parametrize("why", ["carried", "known", "unseen", "no agent"])
def test_an_address_stays_as_long_as_nobody_can_say_that_no_link_carries_it(why: str) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web")
        await stage.record(a1=holding("web", uid))
        match why:
            case "carried":
                stage.agent.carried.add("10.6.0.1")
            case "known":
                stage.agent.known.add((uid, "eth0", CID))
            case "unseen":
                stage.agent.blind.add("10.6.0.1")
            case _:
                stage.silence("n1")
        await anyio.sleep(SETTLE)
        await stage.delete("web")
        assert await stage.left(after=400.0) == {"1"}
        stage.agent.carried.clear()
        stage.agent.known.clear()
        stage.agent.blind.clear()
        if why == "no agent":
            stage.start_agent("n1")
        assert await stage.left(after=70.0) == set()

    act(scene)


@pytest.mark.parametrize("how", ["gone", "replaced", "succeeded", "failed", "evicted", "terminating"])
@pytest.mark.parametrize("switch", [True, False])
def test_every_end_of_a_pod(how: str, switch: bool) -> None:
    """The switch keeps what has an object still; on a pod that is gone it has no bearing."""

    async def scene(stage: Stage) -> None:
        finalizers = ["test/keep"] if how == "terminating" else []
        uid = await stage.pod("job", restart="Never", finalizers=finalizers)
        await stage.record(a1=holding("job", uid))
        await stage.is_now("job", "Running", "10.6.0.1")
        await anyio.sleep(SETTLE)
        assert await stage.left() == {"1"}
        match how:
            case "succeeded":
                await stage.is_now("job", "Succeeded", "10.6.0.1")
            case "failed":
                await stage.is_now("job", "Failed", "10.6.0.1")
            case "evicted":
                await stage.is_now("job", "Failed", reason="Evicted")
            case "replaced":
                await stage.delete("job")
                await stage.pod("job", "n2")
            case _:
                await stage.delete("job")
        if switch or how in {"gone", "replaced"}:
            assert await stage.freed_within("10.6.0.1", 5.0) < 1.0
        else:
            assert await stage.left(after=400.0) == {"1"}

    act(scene, gc_terminating_pod_on_ready_node=switch)


def test_a_grace_period_is_added_once() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", finalizers=["test/keep"])
        await stage.record(a1=holding("web", uid))
        await anyio.sleep(SETTLE)
        await stage.delete("web")
        assert await stage.left(after=28.0) == {"1"}
        assert await stage.freed_within("10.6.0.1", 5.0) < 3.0

    act(scene, gc_additional_grace=30.0)


@pytest.mark.parametrize("switch", [True, False])
def test_a_running_pod_without_addresses(switch: bool) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("odd")
        await stage.is_now("odd", "Running")
        await stage.record(a1=holding("odd", uid))
        assert await stage.left(after=100.0) == (set() if switch else {"1"})

    act(scene, gc_running_pod_without_addresses=switch)


def test_a_pod_that_lives_keeps_its_address_though_its_agent_has_lost_the_journal() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("alive")
        await stage.record(a1=holding("alive", uid))
        assert await stage.left(after=700.0) == {"1"}
        assert stage.agent.asked == []

    act(scene)


def test_an_older_sandbox_of_a_pod_that_lives_gives_way() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("alive")
        stage.agent.known.add((uid, "eth0", "b" * 12))
        await stage.record(a1=holding("alive", uid), a2=holding("alive", uid, "b" * 12))
        stage.agent.carried.add("10.6.0.2")
        assert await stage.left(after=70.0) == {"2"}

    act(scene)


def test_both_families_and_all_interfaces_of_a_pod_go() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web")
        await stage.record(a1=holding("web", uid), b1=holding("web", uid), a2=holding("web", uid, nic="net1"))
        await stage.endpoint("web", uid, nic("eth0", "10.6.0.1", "fd00:6::1"), nic("net1", "10.6.0.2"))
        stage.agent.carried.add("10.6.0.2")
        await anyio.sleep(SETTLE)
        await stage.delete("web")
        assert await stage.left() == {"2"}
        assert await stage.records("v6") == {}
        assert await stage.shown() == {"web": ["net1 10.6.0.2/16"]}

    act(scene)


def test_with_the_switch_off_nothing_is_collected() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"), a2=holding("db-0", "u2", kept=True), a3=legacy("old", "u3"))
        await stage.node("n1", ready=False, out=True)
        assert stage.controller.collecting.scan().status == 409
        assert await stage.left(after=700.0) == {"1", "2", "3"}
        assert stage.agent.asked == []

    act(scene, gc_ip_enabled=False)


# ---------------------------------------------------------------- nodes


@pytest.mark.parametrize("how", ["deleted", "out of service", "not ready"])
def test_a_dead_node_gives_up_what_pods_had_that_are_gone_and_nothing_else(how: str) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("still-there")
        await stage.record(a1=holding("gone", "u1"), a2=holding("still-there", uid))
        stage.agent.known |= {("u1", "eth0", CID), (uid, "eth0", CID)}
        await anyio.sleep(SETTLE)
        stage.silence("n1")
        if how == "deleted":
            await stage.store.delete(NODE, "n1")
        else:
            await stage.node("n1", ready=False, out=how == "out of service")
        if how == "out of service":
            assert await stage.freed_within("10.6.0.1", 5.0) < 1.0
        else:
            assert await stage.left(after=110.0) == {"1", "2"}
        assert await stage.left(after=20.0) == {"2"}
        await stage.delete("still-there")
        assert await stage.left(after=2.0) == set()

    act(scene)


def test_a_node_that_reboots_keeps_everything() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        stage.agent.known.add(("u1", "eth0", CID))
        for _ in range(4):
            stage.silence("n1")
            await stage.node("n1", ready=False)
            await anyio.sleep(100)
            await stage.node("n1", ready=True)
            stage.start_agent("n1")
            await anyio.sleep(70)
        assert await stage.left() == {"1"}

    act(scene)


def test_an_agent_that_speaks_outweighs_a_node_that_is_not_ready() -> None:
    """kubelet is stopped and the pod hangs: the link carries its address, whatever the API says."""

    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", finalizers=["test/keep"])
        await stage.record(a1=holding("web", uid))
        stage.agent.carried.add("10.6.0.1")
        await stage.node("n1", ready=False)
        await stage.delete("web")
        assert await stage.left(after=500.0) == {"1"}
        stage.silence("n1")
        assert await stage.left(after=200.0) == set()

    act(scene)


def test_an_agent_that_speaks_once_a_minute_is_not_silent_for_a_short_grace() -> None:
    """It is asked, and what answers is alive."""

    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        stage.agent.carried.add("10.6.0.1")
        await anyio.sleep(SETTLE)
        await stage.node("n1", ready=False)
        assert await stage.left(after=100.0) == {"1"}
        stage.silence("n1")
        assert await stage.left(after=5.0) == set()

    act(scene, gc_node_grace=2.0)


@pytest.mark.parametrize("switch", [True, False])
def test_a_pod_on_a_dead_node_past_its_grace(switch: bool) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("stuck", finalizers=["test/keep"])
        await stage.delete("stuck")
        await stage.record(a1=holding("stuck", uid))
        stage.silence("n1")
        await stage.node("n1", ready=False)
        assert await stage.left(after=300.0) == (set() if switch else {"1"})

    act(scene, gc_terminating_pod_on_not_ready_node=switch)


def test_records_of_a_node_that_never_existed_are_found() -> None:
    async def scene(stage: Stage) -> None:
        await anyio.sleep(SETTLE)
        await stage.record(a1=holding("gone", "u1", node="n9"))
        assert await stage.left(after=500.0) == {"1"}
        assert await stage.left(after=400.0) == set()

    act(scene)


def test_a_replica_that_does_not_hear_another_one_takes_no_agent_for_silent() -> None:
    """The agent may speak to that one. An operator's word is enough all the same."""

    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        stage.controller.peers.members(["c1", "c2"])
        stage.controller.peers.mine = lambda key: bool(key)  # type: ignore[method-assign]  # noqa: PLW0108
        stage.silence("n1")
        await stage.node("n1", ready=False)
        assert await stage.left(after=500.0) == {"1"}
        await stage.node("n1", ready=False, out=True)
        assert await stage.left() == set()

    act(scene)


def test_a_namespace_goes_with_its_pods_and_endpoints() -> None:
    async def scene(stage: Stage) -> None:
        uid, old = await stage.pod("web"), await stage.pod("old")
        await stage.record(a1=holding("web", uid), b1=holding("web", uid), a2=legacy("old", old))
        await stage.endpoint("web", uid, nic("eth0", "10.6.0.1", "fd00:6::1"))
        await stage.endpoint("old", old, nic("eth0", "10.6.0.2"))
        await anyio.sleep(SETTLE)
        for name in ("web", "old"):
            await stage.store.delete(ENDPOINT, name, namespace="default")
            await stage.delete(name)
        await stage.store.delete(NAMESPACE, "default")
        assert await stage.left(after=5.0) == set()
        assert await stage.records("v6") == {}
        assert await stage.shown() == {}

    act(scene)


# ---------------------------------------------------------------- records of other makers


def test_a_record_without_a_node_goes_when_all_agents_have_denied_it() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=legacy("old", "u1"), a2=legacy("lives", await stage.pod("lives")))
        await stage.endpoint("old", "u1", nic("", "10.6.0.1"))
        stage.agents["n2"].carried.add("10.6.0.1")
        assert await stage.left(after=200.0) == {"1", "2"}
        stage.agents["n2"].carried.clear()
        assert await stage.left(after=700.0) == {"2"}
        assert await stage.shown() == {}
        assert all(("10.6.0.1",) in agent.asked for agent in stage.agents.values())

    act(scene, nodes=("n1", "n2"))


def test_a_node_that_says_nothing_may_carry_a_record_without_a_node_until_it_is_dead() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=legacy("old", "u1"))
        stage.silence("n2")
        assert await stage.left(after=650.0) == {"1"}
        await stage.node("n2", ready=False)
        assert await stage.left(after=100.0) == {"1"}
        assert await stage.left(after=650.0) == set()

    act(scene, nodes=("n1", "n2"))


def test_dirty_records_are_cleaned_and_the_real_ones_stay() -> None:
    """A wrong pod name, a wrong uid, none at all, a name that is none: each beside the pod's own record."""

    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web")
        await stage.is_now("web", "Running", "10.6.0.1")
        stage.agent.known.add((uid, "eth0", CID))
        stage.agent.carried.add("10.6.0.1")
        await stage.record(
            a1=holding("web", uid),
            a2=legacy("web-wrong", uid),
            a3=legacy("web", "another-uid"),
            a4=legacy("web", ""),
            a5=AllocationRecord(pod="nonsense", pod_uid="u5"),
            a6=AllocationRecord(pod="default/odd", pod_uid="u6", nic="eth0", node="n1"),
        )
        assert await stage.left(after=100.0) == {"1"}

    act(scene)


def test_a_dirty_record_under_a_statefulset_pods_name_is_cleaned_though_the_name_is_wanted() -> None:
    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("db", 1)
        uid = await stage.pod("db-0", owner=owner)
        await stage.is_now("db-0", "Running", "10.6.0.1")
        stage.agent.known.add((uid, "eth0", CID))
        await stage.record(a1=holding("db-0", uid), a2=legacy("db-0", "another-uid"))
        assert await stage.left(after=100.0) == {"1"}

    act(scene)


# ---------------------------------------------------------------- fixed addresses


def test_what_a_statefulsets_pod_leaves_is_kept_for_the_next_of_its_name() -> None:
    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("db", 2)
        uid = await stage.pod("db-0", owner=owner)
        await stage.record(a1=holding("db-0", uid), a2=holding("db-7", "u7"), a3=legacy("db-1", "u1"))
        await stage.endpoint("db-0", uid, nic("eth0", "10.6.0.1"), owner="StatefulSet")
        await anyio.sleep(SETTLE)
        await stage.delete("db-0")
        await anyio.sleep(2.0)
        await stage.pod("db-0", owner=owner)
        assert await stage.left(after=100.0) == {"1", "3"}
        records = await stage.records()
        assert records["10.6.0.1"] == holding("db-0", uid, kept=True)
        assert records["10.6.0.3"].kept
        assert await stage.shown() == {"db-0": ["eth0 10.6.0.1/16"]}

    act(scene)


@pytest.mark.parametrize("how", ["carried", "known"])
def test_a_fixed_address_stays_the_old_sandboxs_as_long_as_that_may_live(how: str) -> None:
    """Negative control of the one before: the new pod has to wait."""

    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("db", 1)
        uid = await stage.pod("db-0", owner=owner)
        await stage.record(a1=holding("db-0", uid))
        if how == "carried":
            stage.agent.carried.add("10.6.0.1")
        else:
            stage.agent.known.add((uid, "eth0", CID))
        await anyio.sleep(SETTLE)
        await stage.delete("db-0")
        await anyio.sleep(2.0)
        await stage.pod("db-0", "n2", owner=owner)
        await anyio.sleep(300.0)
        assert await stage.records() == {"10.6.0.1": holding("db-0", uid)}

    act(scene, nodes=("n1", "n2"))


def test_a_dead_nodes_fixed_addresses_are_kept_and_its_others_freed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.statefulset("db", 1)
        await stage.record(a1=holding("db-0", "u1"), a2=holding("web", "u2"))
        stage.agent.known |= {("u1", "eth0", CID), ("u2", "eth0", CID)}
        await anyio.sleep(SETTLE)
        await stage.node("n1", ready=False, out=True)
        assert await stage.left() == {"1"}
        assert (await stage.records())["10.6.0.1"].kept

    act(scene)


def test_a_terminating_fixed_pod_keeps_its_address_whatever_its_status_shows() -> None:
    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("db", 1)
        uid = await stage.pod("db-0", owner=owner, finalizers=["test/keep"])
        await stage.record(a1=holding("db-0", uid))
        await stage.delete("db-0")
        assert await stage.left(after=200.0) == {"1"}
        assert not (await stage.records())["10.6.0.1"].kept

    act(scene)


@pytest.mark.parametrize(
    ("how", "gone"),
    [
        ("deleted", {"1", "2", "3"}),
        ("smaller", {"3"}),
        ("ordinals", {"1"}),
        ("none", set()),
    ],
)
def test_kept_addresses_go_within_a_second_when_their_workload_wants_them_no_more(how: str, gone: set[str]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.statefulset("db", 3)
        await stage.record(**{f"a{n + 1}": holding(f"db-{n}", f"u{n}", kept=True) for n in range(3)})
        await stage.endpoint("db-2", "u2", nic("eth0", "10.6.0.3"), owner="StatefulSet")
        await anyio.sleep(SETTLE)
        assert await stage.left() == {"1", "2", "3"}
        match how:
            case "deleted":
                await stage.store.delete(STATEFULSET, "db", namespace="default")
            case "smaller":
                await stage.store.patch(STATEFULSET, "db", {"spec": {"replicas": 2}}, namespace="default")
            case "ordinals":
                await stage.store.patch(STATEFULSET, "db", {"spec": {"ordinals": {"start": 1}}}, namespace="default")
        assert await stage.left(after=0.99) == {"1", "2", "3"} - gone
        assert ("db-2" in await stage.shown()) is ("3" not in gone)
        assert await stage.left(after=700.0) == {"1", "2", "3"} - gone

    act(scene)


def test_a_pod_that_no_longer_uses_its_kept_address_sets_it_free() -> None:
    """The StatefulSet has gone over to another network, or to another pool."""

    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("db", 1)
        await stage.record(a1=holding("db-0", "u1", kept=True))
        await stage.pod("db-0", owner=owner)
        assert await stage.left(after=100.0) == {"1"}
        await stage.is_now("db-0", "Running", "192.168.0.7")
        assert await stage.left() == set()

    act(scene)


def test_a_virtual_machines_address_goes_with_the_machine() -> None:
    async def scene(stage: Stage) -> None:
        await stage.store.create(VIRTUALMACHINE, VirtualMachine(metadata=ObjectMeta(name="vm", namespace="default")))
        await stage.record(a1=holding("vm", "u1", kept=True), a2=holding("other", "u2", kept=True))
        assert await stage.left(after=20.0) == {"1"}
        assert await stage.left(after=700.0) == {"1"}
        await stage.store.delete(VIRTUALMACHINE, "vm", namespace="default")
        assert await stage.left(after=0.99) == set()

    act(scene)


def test_without_fixed_addresses_nothing_is_kept() -> None:
    async def scene(stage: Stage) -> None:
        await stage.statefulset("db", 1)
        await stage.record(a1=holding("db-0", "u1", kept=True))
        assert await stage.left(after=700.0) == set()

    act(scene, config=ConfigFile(enable_stateful_set=False))


# ---------------------------------------------------------------- on demand


def test_everything_is_looked_at_when_somebody_asks_and_not_more_often_than_the_gap() -> None:
    async def scene(stage: Stage) -> None:
        await anyio.sleep(SETTLE)
        await stage.record(a1=holding("gone", "u1"))
        lists = stage.store.requests["list spiderendpoints"]
        for _ in range(20):
            assert stage.controller.collecting.scan().status == 200
            await anyio.sleep(0.05)
        assert await stage.freed_within("10.6.0.1", 5.0) < 1.0
        await anyio.sleep(30.0)
        assert stage.store.requests["list spiderendpoints"] - lists <= 2

    act(scene)


# ---------------------------------------------------------------- SpiderEndpoints


def test_an_audit_writes_what_a_pod_lacks() -> None:
    async def scene(stage: Stage) -> None:
        one, two, three = [await stage.pod(name) for name in ("one", "two", "three")]
        await stage.record(
            a1=holding("one", one), b1=holding("one", one), a2=holding("two", two), a3=holding("two", two, nic="net1"),
            a4=holding("three", three),
        )  # fmt: skip
        stage.agent.known |= {(uid, nic, CID) for uid in (one, two, three) for nic in ("eth0", "net1")}
        await stage.endpoint("two", two, nic("eth0", "10.6.0.2"))
        await stage.endpoint("three", "older-uid", nic("eth0", "10.6.0.9"))
        await anyio.sleep(30.0)
        assert await stage.shown() == {
            "one": ["eth0 10.6.0.1/16", "eth0 fd00:6::1/64"],
            "two": ["eth0 10.6.0.2/16", "net1 10.6.0.3/16"],
            "three": ["eth0 10.6.0.4/16"],
        }

    act(scene)


@pytest.mark.parametrize("switch", [True, False])
def test_an_audit_removes_what_no_pool_knows_if_it_may(switch: bool) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("lives")
        await stage.endpoint("lives", uid, nic("eth0", "10.6.0.1"))
        await stage.endpoint("gone", "u1", nic("eth0", "10.6.0.2"))
        await stage.endpoint("going", "u2", nic("eth0", "10.6.0.3"))
        await stage.store.delete(ENDPOINT, "going", namespace="default")
        await anyio.sleep(30.0)
        assert set(await stage.shown()) == ({"lives"} if switch else {"lives", "gone"})

    act(scene, config=ConfigFile(enable_clean_outdated_endpoint=switch))


def test_an_audit_leaves_alone_what_comes_right_by_itself() -> None:
    async def scene(stage: Stage) -> None:
        await anyio.sleep(SETTLE)
        uid = await stage.pod("web")
        stage.agent.known.add((uid, "eth0", CID))
        await stage.record(a1=holding("web", uid))
        assert stage.controller.collecting.scan().status == 200
        await anyio.sleep(5.0)
        await stage.endpoint("web", uid, nic("eth0", "10.6.0.1"))
        before = stage.store.requests.copy()
        await anyio.sleep(30.0)
        changed = {what for what in stage.store.requests if stage.store.requests[what] != before[what]}
        assert not {what for what in changed if what.split()[0] in {"patch", "update", "create", "delete"}}

    act(scene)


# ---------------------------------------------------------------- nothing is decided from a cache


def test_a_list_that_lags_frees_nothing() -> None:
    """The reflector has lost a pod that is there, on a node that is dead: perhaps it only reboots."""

    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web")
        await stage.record(a1=holding("web", uid))
        await anyio.sleep(SETTLE)
        stage.silence("n1")
        await stage.node("n1", ready=False, out=True)
        stage.controller.cluster.pods.snapshot.remove("default/web")
        assert await stage.left(after=60.0) == {"1"}
        await stage.store.delete(POD, "web", namespace="default")
        assert await stage.left(after=700.0) == set()

    act(scene)


def test_negative_control_a_collector_that_decides_from_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        cluster = stage.controller.cluster
        snapshots: dict[Kind[Any], Any] = {POD: cluster.pods.snapshot, NODE: cluster.nodes.snapshot}

        async def cached(_self: Reclaimer, kind: Kind[Any], name: str, *, namespace: str = "") -> Any:
            return snapshots[kind].get(name, namespace=namespace)

        monkeypatch.setattr(Reclaimer, "_read", cached)
        uid = await stage.pod("web")
        await stage.record(a1=holding("web", uid))
        await anyio.sleep(SETTLE)
        stage.silence("n1")
        await stage.node("n1", ready=False, out=True)
        stage.controller.cluster.pods.snapshot.remove("default/web")
        assert await stage.left(after=60.0) == set(), "the mutation does nothing"

    act(scene)


@pytest.mark.parametrize("current", [False, True])
def test_the_late_copy_of_an_answer_frees_nothing(current: bool) -> None:
    """With the number of the question that is open now, the negative control, it would."""

    async def scene(stage: Stage) -> None:
        stage.silence("n1")
        await anyio.sleep(SETTLE)
        look = (Look("10.6.0.1", carried=False),)
        await stage.record(a1=holding("one", "u1"))
        await stage.agent.send()
        await anyio.sleep(5.0)
        first = await stage.agent.send()
        assert first.look == ("10.6.0.1",)
        await stage.agent.send(looked=look, round=first.round)
        assert await stage.left() == set()
        await stage.record(a1=holding("two", "u2", "b" * 12))
        await stage.agent.send()
        await anyio.sleep(5.0)
        second = await stage.agent.send()
        assert second.look == ("10.6.0.1",) and second.round != first.round
        await stage.agent.send(looked=look, round=second.round if current else first.round)
        assert await stage.left() == (set() if current else {"1"})

    act(scene)
