"""What the webhook of pods asks of the API server, and what it says when that does not answer."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from msgspec import structs

from actors.webhooks.pods import PodWebhook
from admission.exchange import NoReview, Outcome
from admission.injection import Policy
from api.annotations import MULTUS_NETWORKS, RDMA_RESOURCE_INJECT
from api.configfile import MasterNicRule
from api.core import Namespace
from api.kinds import MULTUSCONFIG, NAMESPACE
from api.meta import ObjectMeta, OwnerReference
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from runtime.store.memory import MemoryStore
from runtime.store.port import Unavailable
from runtime.testing import run
from tests.rules.test_admission_injection import macvlan

NS = "team"
RDMA = {RDMA_RESOURCE_INJECT: "gpu"}
OFFERED = Policy(namespace="kube-system", master_nics=(MasterNicRule(),))
SMC = OwnerReference(api_version="v", kind=MULTUSCONFIG.kind, name="m", uid="u", controller=True)


class Counting(MemoryStore):
    """Notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.fails: Callable[[], Any] | None = None

    async def list(self, kind: Any, **given: Any) -> Any:
        self.reads.append(f"list {kind.plural} {given}")
        if self.fails is not None:
            await self.fails()
        return await super().list(kind, **given)

    async def get(self, kind: Any, name: str, **given: Any) -> Any:
        self.reads.append(f"get {kind.plural} {name}")
        return await super().get(kind, name, **given)


def review(notes: dict[str, str], **changed: Any) -> bytes:
    item = {"metadata": {"generateName": "web-", "annotations": notes}, "spec": {"containers": [{"name": "c"}]}}
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    request = {"uid": "u", "kind": kind, "operation": "CREATE", "namespace": NS, "object": item, **changed}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def labelled(config: SpiderMultusConfig) -> SpiderMultusConfig:
    return structs.replace(config, metadata=structs.replace(config.metadata, labels=RDMA))


class Asked:
    """A webhook whose watches have seen what is given; the store has that, and `late`."""

    def __init__(
        self,
        *,
        late: Sequence[SpiderMultusConfig] = (),
        seen: Sequence[SpiderMultusConfig] = (),
        definition: NetworkAttachmentDefinition | None = None,
        namespace: Namespace | None = Namespace(metadata=ObjectMeta(name=NS)),  # noqa: B008 - frozen
        policy: Policy = Policy(namespace="kube-system"),  # noqa: B008 - frozen
    ) -> None:
        by_hand = NetworkAttachmentDefinition() if definition is not None else None
        self.store = Counting()
        self._late = [*late, *seen]
        self.webhook = PodWebhook(
            self.store,
            namespace=lambda name: namespace if namespace is not None and name == NS else None,
            configs=lambda: seen,
            attachment=lambda _namespace, name: definition if name == "m" else by_hand,
            policy=policy,
        )

    def answer(self, notes: dict[str, str], **changed: Any) -> Outcome:
        async def story() -> Outcome:
            for config in self._late:
                await self.store.create(MULTUSCONFIG, config)
            await self.store.create(NAMESPACE, Namespace(metadata=ObjectMeta(name="new", annotations=RDMA)))
            self.store.reads.clear()
            return await self.webhook.answer(review(notes, **changed))

        return run(story, seed=1)


BY_LABEL = f"list spidermultusconfigs {{'labels': {{'{RDMA_RESOURCE_INJECT}': 'gpu'}}}}"


def test_only_pods_that_ask_cost_a_read() -> None:
    asked = Asked(late=[labelled(macvlan("m", "eth1"))])
    assert asked.answer({}).word == "admitted"
    assert asked.store.reads == []
    asked = Asked(late=[labelled(macvlan("m", "eth1"))])
    assert asked.answer(RDMA).word == "completed"
    assert asked.store.reads == [BY_LABEL]


@pytest.mark.parametrize("value", ["a,b=c", "", "x" * 64])
def test_no_selector_is_made_of_what_can_be_no_label(value: str) -> None:
    asked = Asked()
    asked.answer({RDMA_RESOURCE_INJECT: value})
    assert asked.store.reads == []


def test_a_namespace_that_has_not_been_seen_is_read() -> None:
    asked = Asked(late=[labelled(macvlan("m", "eth1"))])
    assert asked.answer({}, namespace="new").word == "completed"
    assert asked.store.reads == ["get namespaces new", BY_LABEL]
    assert Asked().answer({}, namespace="none").word == "admitted", "the API server refuses it"


OURS = NetworkAttachmentDefinition(metadata=ObjectMeta(owner_references=[SMC]))


@pytest.mark.parametrize(
    ("definition", "seen", "reads", "word"),
    [
        (None, False, 1, "completed"),
        (OURS, False, 1, "completed"),
        (NetworkAttachmentDefinition(), False, 0, "admitted"),
        (OURS, True, 0, "completed"),
    ],
)
def test_a_network_that_has_not_been_seen_is_looked_for_once(
    definition: NetworkAttachmentDefinition | None, seen: bool, reads: int, word: str
) -> None:
    config = [macvlan("m", "eth1")]
    asked = Asked(late=() if seen else config, seen=config if seen else (), definition=definition, policy=OFFERED)
    outcome = asked.answer({MULTUS_NETWORKS: "nets/m,nets/other"})
    listed = "list spidermultusconfigs {'namespace': 'nets'}"
    assert (outcome.word, asked.store.reads.count(listed), len(asked.store.reads)) == (word, reads, reads)
    assert Asked(late=config).answer({MULTUS_NETWORKS: "nets/m"}).word == "admitted", "nothing is offered"


def test_an_api_server_that_does_not_answer_refuses_the_pod_for_now() -> None:
    async def away() -> None:
        raise Unavailable("connection refused")

    for fails, said in ((away, "connection refused"), (anyio.sleep_forever, "has not answered in 5 s")):
        asked = Asked()
        asked.store.fails = fails
        outcome = asked.answer(RDMA)
        response = json.loads(outcome.body)["response"]
        assert (outcome.word, response["allowed"], response["status"]["code"]) == ("unanswered", False, 503)
        assert response["status"]["message"].startswith('Pod "web-*" cannot be judged now: ')
        assert said in response["status"]["message"]
        assert said in outcome.problem


def test_what_is_no_new_pod_is_let_through() -> None:
    assert Asked().answer(RDMA, operation="UPDATE", oldObject={}).word == "admitted"
    assert Asked().answer(RDMA, namespace="kube-system").word == "admitted", "the release's own"
    assert Asked().answer({}, object={"spec": 7}).word == "malformed"
    with pytest.raises(NoReview):
        Asked().answer({}, kind={"group": "", "version": "v1", "kind": "Node"})
