"""Uninstalling: agents are asked, answers are waited for, and whatever is left is named."""

import asyncio
from typing import Any

import pytest

from actors.errands import clean
from actors.errands.clean import Task
from api import kinds
from api.core import Event, Node, ObjectReference, Pod, PodSpec, PodStatus
from api.endpoint import SpiderEndpoint
from api.extensions import CustomResourceDefinition, ValidatingWebhookConfiguration
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import FINALIZER, ObjectMeta
from api.retirement import LEFT, RETIRE, WITHDRAWN
from runtime.store.memory import MemoryStore
from runtime.store.port import Denied, NotFound
from runtime.testing.loop import run

TASK = Task(namespace="net", agent="spiderpool-agent", controller="spiderpool-controller")


async def cluster(*nodes: str, pods: dict[str, str] | None = None) -> MemoryStore:
    """Nodes, each with an agent in this phase; by default all run."""
    store = MemoryStore()
    for name in nodes:
        await store.create(kinds.NODE, Node(metadata=ObjectMeta(name=name)))
    for name, phase in (dict.fromkeys(nodes, "Running") if pods is None else pods).items():
        labels = {"app.kubernetes.io/component": "spiderpool-agent"}
        pod = Pod(
            metadata=ObjectMeta(name=f"agent-{name}", namespace="net", labels=labels), spec=PodSpec(node_name=name)
        )
        await store.create(kinds.POD, pod)
        await store.patch(
            kinds.POD, f"agent-{name}", {"status": {"phase": phase}}, namespace="net", subresource="status"
        )
    other = Pod(metadata=ObjectMeta(name="other", namespace="net"), spec=PodSpec(node_name="n1"), status=PodStatus())
    await store.create(kinds.POD, other)
    return store


async def agent(store: MemoryStore, name: str, reason: str, message: str) -> None:
    """Answers as an agent does, once it is asked."""
    while True:
        pod = await store.get(kinds.POD, f"agent-{name}", namespace="net")
        if pod.metadata.annotations.get(RETIRE) == "true":
            break
        await asyncio.sleep(0.3)
    await asyncio.sleep(2)
    about = ObjectReference(kind="Pod", namespace="net", name=pod.metadata.name, uid=pod.metadata.uid)
    event = Event(
        metadata=ObjectMeta(name=f"e-{name}", namespace="net"), involved_object=about, reason=reason, message=message
    )
    await store.create(kinds.EVENT, event)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_agents_withdraw_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await cluster("n1", "n2")
        stale = Event(
            metadata=ObjectMeta(name="old", namespace="net"),
            involved_object=ObjectReference(kind="Pod", uid="another pod's"),
            reason=WITHDRAWN,
            message="long ago",
        )
        await store.create(kinds.EVENT, stale)
        async with asyncio.TaskGroup() as group:
            group.create_task(agent(store, "n1", WITHDRAWN, "removed the conflist and the shim"))
            group.create_task(agent(store, "n2", LEFT, "shim stays: no other CNI"))
            group.create_task(clean.clean(store, TASK))
        assert asyncio.get_running_loop().time() < 10, "nobody is waited for after the last answer"
        other = await store.get(kinds.POD, "other", namespace="net")
        assert RETIRE not in other.metadata.annotations

    run(main, seed=1)
    lines = said(capsys)
    assert sorted(lines[:2]) == [
        "node n1: withdrawn: removed the conflist and the shim",
        "node n2: something is left: shim stays: no other CNI",
    ]
    assert lines[2].startswith("left in the cluster: 0 spiderendpoints, 0 spiderippools")


def test_nodes_that_cannot_answer_are_named_and_not_waited_for_longer(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await cluster("n1", "n2", "n3", pods={"n1": "Running", "n2": "Pending"})
        await clean.clean(store, TASK)
        assert asyncio.get_running_loop().time() <= 61

    run(main, seed=1)
    n1, n2, n3, *_ = said(capsys)
    assert n1.startswith("node n1: left as it is: its agent agent-n1 has not answered within 60 s. ")
    assert n2.startswith("node n2: left as it is: its agent agent-n2 is Pending")
    assert n3.startswith("node n3: left as it is: no agent runs there")
    assert "00-spiderpool.conflist" in n1


def test_without_agents_there_is_nothing_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        await clean.clean(await cluster(), TASK)
        assert asyncio.get_running_loop().time() < 2

    run(main, seed=1)
    assert len(said(capsys)) == 1


async def with_objects() -> MemoryStore:
    store = await cluster()
    held = [FINALIZER]
    for name in ("lan", "lan2"):
        pool = SpiderIPPool(metadata=ObjectMeta(name=name, finalizers=held), spec=IPPoolSpec(subnet="10.0.0.0/8"))
        await store.create(kinds.IPPOOL, pool)
    await store.create(
        kinds.ENDPOINT, SpiderEndpoint(metadata=ObjectMeta(name="web", namespace="default", finalizers=held))
    )
    hook = ValidatingWebhookConfiguration(metadata=ObjectMeta(name="spiderpool-controller"))
    await store.create(kinds.VALIDATINGWEBHOOK, hook)
    for kind in (kinds.IPPOOL, kinds.ENDPOINT):
        name = f"{kind.plural}.{kind.group}"
        await store.create(kinds.CUSTOMRESOURCEDEFINITION, CustomResourceDefinition(metadata=ObjectMeta(name=name)))
    return store


def counts(store: MemoryStore) -> Any:
    async def counted() -> list[int]:
        every = (kinds.IPPOOL, kinds.ENDPOINT, kinds.CUSTOMRESOURCEDEFINITION, kinds.VALIDATINGWEBHOOK)
        return [len((await store.list(kind)).items) for kind in every]

    return counted()


def test_objects_stay_unless_they_are_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await with_objects()
        await clean.clean(store, TASK)
        assert await counts(store) == [2, 1, 2, 0]

    run(main, seed=1)
    lines = said(capsys)
    assert lines[0] == "ValidatingWebhookConfiguration spiderpool-controller: removed"
    assert "1 spiderendpoints, 2 spiderippools" in lines[1]


def test_objects_go_with_their_kinds_whatever_holds_them(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await with_objects()
        task = Task(namespace="net", agent="a", controller="spiderpool-controller", remove_objects=True)
        await clean.clean(store, task)
        assert await counts(store) == [0, 0, 0, 0]

    run(main, seed=1)
    assert {"SpiderIPPool: 2 removed", "SpiderEndpoint: 1 removed", "SpiderSubnet: 0 removed"} <= set(said(capsys))


def test_a_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await with_objects()
        await store.patch(kinds.IPPOOL, "lan", {"status": {"allocatedIPCount": 3}}, subresource="status")
        await store.create(
            kinds.POD,
            Pod(
                metadata=ObjectMeta(name="a-1", namespace="net", labels={"app.kubernetes.io/component": "a"}),
                spec=PodSpec(node_name="n1"),
            ),
        )
        await store.patch(kinds.POD, "a-1", {"status": {"phase": "Running"}}, namespace="net", subresource="status")
        task = Task(namespace="net", agent="a", controller="spiderpool-controller", remove_objects=True, dry_run=True)
        await clean.clean(store, task)
        assert await counts(store) == [2, 1, 2, 1]
        assert not (await store.get(kinds.POD, "a-1", namespace="net")).metadata.annotations

    run(main, seed=1)
    lines = said(capsys)
    assert lines[0] == "ValidatingWebhookConfiguration spiderpool-controller: would be removed"
    assert lines[1] == "node n1: would ask a-1 to withdraw"
    assert "SpiderIPPool lan: would be removed, with 3 addresses in use" in lines
    assert "SpiderIPPool lan2: would be removed" in lines
    assert "SpiderEndpoint default/web: would be removed" in lines
    assert "CustomResourceDefinition spiderippools.spiderpool.spidernet.io: would be removed" in lines


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_stays_is_let_go_when_the_programs_are_gone(*, dry_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = await with_objects()
        theirs = ["example.org/theirs", FINALIZER]
        await store.patch(kinds.IPPOOL, "lan2", {"metadata": {"finalizers": theirs}})
        task = Task(namespace="net", agent="a", controller="spiderpool-controller", finalizers=True, dry_run=dry_run)
        await clean.clean(store, task)
        assert await counts(store) == [2, 1, 2, 1]
        held = {it.metadata.name: it.metadata.finalizers for it in (await store.list(kinds.IPPOOL)).items}
        assert held == (
            {"lan": [FINALIZER], "lan2": theirs} if dry_run else {"lan": [], "lan2": ["example.org/theirs"]}
        )
        if not dry_run:
            await store.delete(kinds.ENDPOINT, "web", namespace="default")
            assert await counts(store) == [2, 0, 2, 1], "a namespace that is deleted can end"

    run(main, seed=1)
    word = "would be let go" if dry_run else "let go"
    assert said(capsys) == [f"SpiderEndpoint: 1 {word}", f"SpiderIPPool: 2 {word}"]


class Refusing(MemoryStore):
    """Lets nobody patch or delete."""

    async def patch(self, *_: Any, **__: Any) -> Any:
        raise Denied("not yours")

    async def delete(self, *_: Any, **__: Any) -> None:
        raise Denied("not yours")


def test_what_is_not_allowed_is_said_and_holds_nothing_up(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = Refusing()
        labels = {"app.kubernetes.io/component": "spiderpool-agent"}
        pod = Pod(metadata=ObjectMeta(name="a", namespace="net", labels=labels), spec=PodSpec(node_name="n1"))
        await store.create(kinds.POD, pod)
        await MemoryStore.patch(
            store, kinds.POD, "a", {"status": {"phase": "Running"}}, namespace="net", subresource="status"
        )
        await store.create(
            kinds.VALIDATINGWEBHOOK, ValidatingWebhookConfiguration(metadata=ObjectMeta(name="spiderpool-controller"))
        )
        await clean.clean(store, TASK)

    run(main, seed=1)
    lines = said(capsys)
    assert lines[0] == "ValidatingWebhookConfiguration spiderpool-controller: left: not yours"
    assert lines[2].startswith("node n1: left as it is: its agent a could not be asked: not yours")


def test_a_finalizer_that_comes_meanwhile_stays() -> None:
    class Late(MemoryStore):
        """Somebody adds one between what is listed and what is written."""

        async def list(self, kind: Any, **more: Any) -> Any:
            listed = await super().list(kind, **more)
            if kind is kinds.IPPOOL:
                both = [FINALIZER, "example.org/late"]
                await MemoryStore.patch(self, kind, "lan", {"metadata": {"finalizers": both}})
            return listed

    async def main() -> None:
        store = Late()
        await store.create(kinds.IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="lan", finalizers=[FINALIZER])))
        await clean.clean(store, Task(namespace="net", agent="a", controller="c", finalizers=True))
        assert (await store.get(kinds.IPPOOL, "lan")).metadata.finalizers == ["example.org/late"]

    run(main, seed=1)


def test_what_cannot_be_let_go_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = Refusing()
        await store.create(kinds.IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="lan", finalizers=[FINALIZER])))
        await clean.clean(store, Task(namespace="net", agent="a", controller="c", finalizers=True))

    run(main, seed=1)
    assert said(capsys)[0].startswith(
        "SpiderIPPool lan: has our finalizer still, and deleting it never ends: not yours"
    )


def test_the_namespace_has_to_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        clean.main([], {})
    assert "SPIDERPOOL_POD_NAMESPACE is missing" in capsys.readouterr().err


def test_nothing_there_at_all() -> None:
    class Bare(MemoryStore):
        async def list(self, kind: Any, **more: Any) -> Any:
            if kind.group == "spiderpool.spidernet.io":
                raise NotFound("no such kind")
            return await super().list(kind, **more)

    async def main() -> None:
        await clean.clean(Bare(), Task(namespace="net", agent="a", controller="c", remove_objects=True))

    run(main, seed=1)
