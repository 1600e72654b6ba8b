"""What a SpiderEndpoint costs, and that somebody else's hand in it is noticed."""

from collections.abc import Awaitable, Callable
from random import Random

import pytest

from actors.allocation.endpoint import Endpoints, Holder
from actors.allocation.workloads import Workloads
from api.core import Pod, ReplicaSet
from api.endpoint import SpiderEndpoint
from api.kinds import ENDPOINT, POD, REPLICASET, Kind
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.wire import Address, Fixed, NicGrant
from ipam import identity
from runtime.store.memory import MemoryStore
from runtime.store.port import Conflict
from runtime.testing import run
from runtime.testing.store import Call, Decision, FaultyStore


def nic(name: str = "eth0", address: str = "10.0.0.2/24") -> NicGrant:
    return NicGrant(nic=name, addresses=(Address(version=4, address=address, pool="v4", gateway="10.0.0.1"),))


def holder(pod: Pod, fixed: Fixed | None = None) -> Holder:
    return Holder(pod=pod, workload=identity.own(pod), fixed=fixed)


def every(_: str) -> bool:
    return True


class Recorder:
    """Lets everything pass, and notes the verbs."""

    def __init__(self) -> None:
        self.verbs: list[str] = []

    def decide(self, call: Call, random: Random) -> Decision:
        self.verbs.append(call.verb)
        return Decision()


def play(scene: Callable[[FaultyStore, Endpoints, Pod], Awaitable[None]]) -> list[str]:
    """The calls of a scene that begins with an endpoint of one NIC."""
    recorder = Recorder()

    async def main() -> None:
        truth = MemoryStore()
        pod = await truth.create(POD, Pod(metadata=ObjectMeta(name="web", namespace="default")))
        store = FaultyStore(truth, policy=recorder, random=Random(1))
        endpoints = Endpoints(store)
        await endpoints.write(holder(pod), node="n1", nics=[nic()])
        await scene(store, endpoints, pod)

    run(main, seed=1)
    return recorder.verbs


async def _gone(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
    await endpoints.drop("default", "web", uid=pod.metadata.uid, gone="eth0".__eq__)
    assert (await store.list(ENDPOINT)).items == []


def test_one_write_when_a_pod_comes_and_two_when_it_goes() -> None:
    assert play(_gone) == ["create", "patch", "delete", "list"]


def test_a_replica_that_did_not_write_it_reads_it() -> None:
    async def scene(store: FaultyStore, _: Endpoints, pod: Pod) -> None:
        await _gone(store, Endpoints(store), pod)

    assert play(scene) == ["create", "get", "patch", "delete", "list"]


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"metadata": {"labels": {"seen": "yes"}}}, []),
        ({"metadata": {"finalizers": [FINALIZER, "example.org/audit"]}}, [["example.org/audit"]]),
    ],
)
def test_what_others_wrote_since_is_read(change: dict[str, object], stays: list[list[str]]) -> None:
    left: list[list[str]] = []

    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await store.patch(ENDPOINT, "web", change, namespace="default")
        await endpoints.drop("default", "web", uid=pod.metadata.uid, gone="eth0".__eq__)
        left.extend(item.metadata.finalizers or [] for item in (await store.list(ENDPOINT)).items)

    assert play(scene) == ["create", "patch", "patch", "get", "patch", "delete", "list"]
    assert left == stays, "a finalizer that is not ours stays"


def test_a_finalizer_that_admission_added_stays() -> None:
    class Admitting(FaultyStore):
        async def create[T](self, kind: Kind[T], item: T) -> T:
            await super().create(kind, item)
            change = {"metadata": {"finalizers": [FINALIZER, "example.org/audit"]}}
            return await super().patch(kind, "db", change, namespace="default")

    async def main() -> None:
        store = Admitting(MemoryStore(), policy=Recorder(), random=Random(1))
        endpoints, pod = Endpoints(store), Pod(metadata=ObjectMeta(name="db", namespace="default", uid="u"))
        await endpoints.write(holder(pod), node="n1", nics=[nic()])
        await endpoints.drop("default", "db", uid="u", gone=every)
        (found,) = (await store.list(ENDPOINT)).items
        assert found.metadata.deletion_timestamp is not None
        assert found.metadata.finalizers == ["example.org/audit"]

    run(main, seed=1)


def test_what_a_new_sandbox_is_given_while_the_old_ones_addresses_are_freed_stays() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        mine = Endpoints(store)
        found = await mine.known("default", "web", uid=pod.metadata.uid, gone=every)
        assert found is not None
        await endpoints.write(holder(pod), node="n1", nics=[nic(address="10.0.0.3/24")])
        with pytest.raises(Conflict):
            await mine.forget(found, gone=every)
        found = await mine.known("default", "web", uid=pod.metadata.uid, gone=every)
        assert found is not None and [detail.ipv4 for detail in found.status.current.ips] == ["10.0.0.3/24"]
        await mine.forget(found, gone=every)
        assert (await store.list(ENDPOINT)).items == []

    play(scene)


@pytest.mark.parametrize("remembered", [True, False])
def test_what_a_newer_sandbox_was_given_is_not_overwritten_by_an_older_one(remembered: bool) -> None:
    class Overtaken(Exception):
        pass

    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        async def confirm() -> None:
            asked.append(pod.metadata.name)
            if len(asked) > 1:
                raise Overtaken

        asked: list[str] = []
        older = endpoints
        newer, again = (endpoints, endpoints) if remembered else (Endpoints(store), Endpoints(store))
        await older.write(holder(pod), node="n1", nics=[nic()], confirm=confirm)
        assert not asked, "it says so already"
        await newer.write(holder(pod), node="n1", nics=[nic(address="10.0.0.3/24")], confirm=confirm)
        with pytest.raises(Overtaken):
            await again.write(holder(pod), node="n1", nics=[nic()], confirm=confirm)
        (found,) = (await store.list(ENDPOINT)).items
        assert [detail.ipv4 for detail in found.status.current.ips] == ["10.0.0.3/24"]

    play(scene)


def test_what_is_written_while_its_removal_is_under_way_stays_and_has_the_finalizer_again() -> None:
    class Overtaken(FaultyStore):
        async def delete[T](
            self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
        ) -> None:
            if not overtaken:
                overtaken.append(name)
                await Endpoints(truth).write(holder(pod), node="n1", nics=[nic(address="10.0.0.3/24")])
            await super().delete(kind, name, namespace=namespace, resource_version=resource_version, uid=uid)

    truth, overtaken = MemoryStore(), list[str]()
    pod = Pod(metadata=ObjectMeta(name="web", namespace="default", uid="u"))

    async def main() -> None:
        endpoints = Endpoints(Overtaken(truth, policy=Recorder(), random=Random(1)))
        await endpoints.write(holder(pod), node="n1", nics=[nic()])
        found = await endpoints.known("default", "web", uid=pod.metadata.uid, gone=every)
        assert found is not None
        with pytest.raises(Conflict):
            await endpoints.forget(found, gone=every)
        (left,) = (await truth.list(ENDPOINT)).items
        assert left.metadata.finalizers == [FINALIZER]
        assert [detail.ipv4 for detail in left.status.current.ips] == ["10.0.0.3/24"]

    run(main, seed=1)


def test_a_memory_that_others_have_overtaken_is_not_believed() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await Endpoints(store).write(holder(pod), node="n1", nics=[nic(address="10.0.0.9/24")])
        await endpoints.withdraw("default", "web", uid=pod.metadata.uid, addresses=("10.0.0.9",))
        assert (await store.list(ENDPOINT)).items == []

    play(scene)


@pytest.mark.parametrize("uid", ["of the last pod", "of this pod"])
def test_a_memory_of_another_pod_or_nic_is_not_believed(uid: str) -> None:
    """A replica wrote it once; another one has put the next pod of the name, or another NIC, into it since."""

    async def main() -> None:
        store = MemoryStore()
        endpoints, others = Endpoints(store), Endpoints(store)
        last, this = (
            Pod(metadata=ObjectMeta(name="web-0", namespace="default", uid=it)) for it in (uid, "of this pod")
        )
        await endpoints.write(holder(last, SET), node="n1", nics=[nic("net1")])
        await others.write(holder(this, SET), node="n1", nics=[nic("eth0")])
        found = await endpoints.known("default", "web-0", uid="of this pod", gone="eth0".__eq__)
        assert found is not None
        await endpoints.forget(found, gone="eth0".__eq__)
        (left,) = (await store.list(ENDPOINT)).items
        assert [detail.interface for detail in left.status.current.ips] == ["net1"]
        assert await endpoints.known("default", "web-0", uid="of this pod", gone="eth0".__eq__) is None

    run(main, seed=1)


def test_a_second_nic_is_not_forgotten_with_the_first() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await endpoints.write(holder(pod), node="n1", nics=[nic("net1")])
        await endpoints.drop("default", "web", uid=pod.metadata.uid, gone="eth0".__eq__)
        (found,) = (await store.list(ENDPOINT)).items
        assert [detail.interface for detail in found.status.current.ips] == ["net1"]

    play(scene)


def test_a_pod_of_the_same_name_keeps_its_own() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await endpoints.drop("default", "web", uid="another", gone=every)
        assert len((await store.list(ENDPOINT)).items) == 1

    play(scene)


def test_the_workload_is_looked_up_once_for_all_of_its_pods() -> None:
    async def scene(store: FaultyStore, _: Endpoints, __: Pod) -> None:
        workloads = Workloads(store, statefulset=True, kubevirt=True)
        above = OwnerReference(api_version="apps/v1", kind="Deployment", name="web", uid="d", controller=True)
        replicas = await store.create(
            REPLICASET, ReplicaSet(metadata=ObjectMeta(name="web-1", namespace="default", owner_references=[above]))
        )
        uid = replicas.metadata.uid
        for name in ("a", "b"):
            owner = OwnerReference(api_version="apps/v1", kind="ReplicaSet", name="web-1", uid=uid, controller=True)
            meta = ObjectMeta(name=name, namespace="default", uid=name, owner_references=[owner])
            found.append(await workloads.top(Pod(metadata=meta)))

    found: list[identity.Workload] = []
    assert play(scene).count("get") == 1
    assert {(workload.kind, workload.name) for workload in found} == {("Deployment", "web")}


SET = Fixed(kind=identity.STATEFULSET, name="web", holder="web-0")


def test_with_fixed_addresses_the_next_pod_is_written_into_the_object_of_the_last() -> None:
    async def main() -> None:
        store = MemoryStore()
        endpoints = Endpoints(store)
        first, second = (Pod(metadata=ObjectMeta(name="web-0", namespace="default", uid=uid)) for uid in ("u1", "u2"))
        await endpoints.write(holder(first, SET), node="n1", nics=[nic(), nic("net1", "10.0.0.3/24")])
        made = await endpoints.read("default", "web-0")
        await Endpoints(store).write(holder(second, SET), node="n2", nics=[nic()])
        found = await endpoints.read("default", "web-0")
        assert isinstance(made, SpiderEndpoint) and isinstance(found, SpiderEndpoint)
        assert found.metadata.uid == made.metadata.uid and not found.metadata.owner_references
        assert (found.status.current.uid, found.status.current.node) == ("u2", "n2")
        assert {(ip.interface, ip.ipv4) for ip in found.status.current.ips} == {
            ("eth0", "10.0.0.2/24"),
            ("net1", "10.0.0.3/24"),
        }

    run(main, seed=1)


def test_without_them_the_object_of_another_pod_gives_way() -> None:
    async def main() -> None:
        store = MemoryStore()
        first, second = (Pod(metadata=ObjectMeta(name="web", namespace="default", uid=uid)) for uid in ("u1", "u2"))
        for endpoints, pod in ((Endpoints(store), first), (Endpoints(store), second)):
            await endpoints.write(holder(pod), node="n1", nics=[nic()])
        (found,) = (await store.list(ENDPOINT)).items
        assert found.status.current.uid == "u2"
        assert [owner.uid for owner in found.metadata.owner_references] == ["u2"]

    run(main, seed=1)


def test_a_second_nic_costs_one_write() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await endpoints.write(holder(pod), node="n1", nics=[nic("net1")])
        await endpoints.write(holder(pod), node="n1", nics=[nic("net1")])

    assert play(scene) == ["create", "patch"]
