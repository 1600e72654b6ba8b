"""What a SpiderEndpoint costs, and that somebody else's hand in it is noticed."""

from collections.abc import Awaitable, Callable
from random import Random

import pytest

from actors.endpoint import Endpoints
from api.core import Pod, ReplicaSet
from api.kinds import ENDPOINT, POD, REPLICASET, Kind
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.reasons import Explanation
from api.wire import Address, Allocated, PodRef
from runtime.store.memory import MemoryStore
from runtime.testing import run
from runtime.testing.store import Call, Decision, FaultyStore

GRANTED = Allocated(
    addresses=(Address(version=4, address="10.0.0.2/24", pool="v4", gateway="10.0.0.1"),),
    routes=(),
    explanation=Explanation(considered=()),
    pod_uid="",
)


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
        await endpoints.write(pod=pod, node="n1", nic="eth0", granted=GRANTED, clean_gateway=False)
        await scene(store, endpoints, pod)

    run(main, seed=1)
    return recorder.verbs


async def _gone(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
    await endpoints.forget(PodRef(namespace="default", name="web", uid=pod.metadata.uid), "eth0")
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
        await endpoints.forget(PodRef(namespace="default", name="web", uid=pod.metadata.uid), "eth0")
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
        await endpoints.write(pod=pod, node="n1", nic="eth0", granted=GRANTED, clean_gateway=False)
        await endpoints.forget(PodRef(namespace="default", name="db", uid="u"), "eth0")
        (found,) = (await store.list(ENDPOINT)).items
        assert found.metadata.deletion_timestamp is not None
        assert found.metadata.finalizers == ["example.org/audit"]

    run(main, seed=1)


def test_a_second_nic_is_not_forgotten_with_the_first() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await endpoints.write(pod=pod, node="n1", nic="net1", granted=GRANTED, clean_gateway=False)
        await endpoints.forget(PodRef(namespace="default", name="web", uid=pod.metadata.uid), "eth0")
        (found,) = (await store.list(ENDPOINT)).items
        assert [detail.interface for detail in found.status.current.ips] == ["net1"]

    play(scene)


def test_a_pod_of_the_same_name_keeps_its_own() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, pod: Pod) -> None:
        await endpoints.forget(PodRef(namespace="default", name="web", uid="another"), "eth0")
        assert len((await store.list(ENDPOINT)).items) == 1

    play(scene)


def test_the_workload_is_looked_up_once_for_all_of_its_pods() -> None:
    async def scene(store: FaultyStore, endpoints: Endpoints, _: Pod) -> None:
        above = OwnerReference(api_version="apps/v1", kind="Deployment", name="web", uid="d", controller=True)
        replicas = await store.create(
            REPLICASET, ReplicaSet(metadata=ObjectMeta(name="web-1", namespace="default", owner_references=[above]))
        )
        uid = replicas.metadata.uid
        for name in ("a", "b"):
            owner = OwnerReference(api_version="apps/v1", kind="ReplicaSet", name="web-1", uid=uid, controller=True)
            meta = ObjectMeta(name=name, namespace="default", uid=name, owner_references=[owner])
            await endpoints.write(pod=Pod(metadata=meta), node="n1", nic="eth0", granted=GRANTED, clean_gateway=False)
        found = (await store.list(ENDPOINT)).items
        owners = {item.status.owner_controller_name for item in found if item.metadata.name in ("a", "b")}
        assert owners == {"web"}

    assert play(scene).count("get") == 1
