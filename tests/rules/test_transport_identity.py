"""Who is accepted, who is refused and with which words, and how often the API server is asked."""

import asyncio
from collections.abc import Mapping, Sequence

import anyio
import pytest
from msgspec import Struct

from runtime.testing import VirtualClock, run
from runtime.transport.identity import NODE_NAME, POD_NAME, POD_UID, NodeOfPod, TokenAuthenticator
from runtime.transport.port import Peer, Refused

AGENT = "system:serviceaccount:kube-system:spiderpool-agent"
BOUND = {POD_NAME: ["agent-x"], POD_UID: ["u1"], NODE_NAME: ["n1"]}


class Answer(Struct, frozen=True):
    authenticated: bool = True
    username: str = AGENT
    extra: Mapping[str, Sequence[str]] = {}
    error: str = ""


class ApiServer:
    """Answers reviews, slowly."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.fails: Exception | None = None
        self.asked: list[str] = []
        self.open = 0
        self.most_open = 0

    async def review(self, token: str) -> Answer:
        self.asked.append(token)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await asyncio.sleep(0.01)
        finally:
            self.open -= 1
        if self.fails is not None:
            raise self.fails
        return self.answer


def authenticator(
    server: ApiServer, *, node_of_pod: NodeOfPod | None = None, concurrent: int = 32
) -> TokenAuthenticator:
    return TokenAuthenticator(
        server.review,
        accounts={AGENT: "agent"},
        clock=VirtualClock(),
        node_of_pod=node_of_pod,
        concurrent=concurrent,
    )


def without(field: str) -> dict[str, list[str]]:
    return {key: value for key, value in BOUND.items() if key != field}


def test_the_agent_is_its_pod_on_its_node() -> None:
    async def main() -> None:
        peer = await authenticator(ApiServer(Answer(extra=BOUND)))("t")
        assert peer == Peer(account=AGENT, node="n1", pod="kube-system/agent-x", pod_uid="u1")

    run(main, seed=1)


REFUSALS = {
    "invalid": (
        Answer(authenticated=False, error="token audiences [x] is invalid"),
        r"API server does not accept the token: token audiences \[x\] is invalid",
    ),
    "invalid without a word": (Answer(authenticated=False), "does not accept the token: it gives no reason"),
    "another account": (
        Answer(username="system:serviceaccount:default:default", extra=BOUND),
        r"account system:serviceaccount:default:default has no business here: accepted are .*-agent \(agent\)",
    ),
    "a person": (Answer(username="kubernetes-admin", extra=BOUND), "account kubernetes-admin has no business here"),
    "same name in another namespace": (
        Answer(username="system:serviceaccount:evil:spiderpool-agent", extra=BOUND),
        "has no business here",
    ),
    "unbound": (Answer(), f"{AGENT} is not bound to a pod: {POD_NAME} is missing"),
    "no pod name": (Answer(extra=without(POD_NAME)), f"{POD_NAME} is missing"),
    "no pod uid": (Answer(extra=without(POD_UID)), f"{POD_UID} is missing"),
    "two pod names": (Answer(extra={**BOUND, POD_NAME: ["a", "b"]}), f"{POD_NAME} is missing"),
    "no node": (
        Answer(extra=without(NODE_NAME)),
        f"pod kube-system/agent-x, does not say the node: {NODE_NAME} is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_refusal_says_what_is_at_fault(name: str) -> None:
    answer, text = REFUSALS[name]

    async def main() -> None:
        with pytest.raises(Refused, match=text):
            await authenticator(ApiServer(answer))("t")

    run(main, seed=1)


def test_refusals_have_different_words() -> None:
    assert len({text for _, text in REFUSALS.values()}) >= len(REFUSALS) - 2


def test_an_empty_token_is_refused_without_asking() -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        with pytest.raises(Refused, match="empty token"):
            await authenticator(server)("")
        assert server.asked == []

    run(main, seed=1)


def test_an_older_cluster_is_asked_for_the_node_of_the_bound_pod() -> None:
    async def main() -> None:
        async def node_of_pod(namespace: str, name: str, uid: str) -> str:
            return {("kube-system", "agent-x", "u1"): "n7"}.get((namespace, name, uid), "")

        server = ApiServer(Answer(extra=without(NODE_NAME)))
        assert (await authenticator(server, node_of_pod=node_of_pod)("t")).node == "n7"
        server.answer = Answer(extra={**without(NODE_NAME), POD_UID: ["u2"]})
        with pytest.raises(Refused, match=r"bound to pod kube-system/agent-x \(uid u2\), which is on no node"):
            await authenticator(server, node_of_pod=node_of_pod)("t")

    run(main, seed=1)


def test_answers_are_remembered_for_a_minute_and_refusals_for_seconds() -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        who = authenticator(server)
        await who("t")
        await asyncio.sleep(59)
        await who("t")
        assert server.asked == ["t"]
        server.answer = Answer(authenticated=False, error="pod deleted")
        await asyncio.sleep(1.1)
        for _ in range(3):
            with pytest.raises(Refused, match="pod deleted"):
                await who("t")
        assert server.asked == ["t", "t"]
        server.answer = Answer(extra=BOUND)
        await asyncio.sleep(5.1)
        await who("t")
        assert server.asked == ["t", "t", "t"]

    run(main, seed=1)


def test_one_tokens_answer_is_not_anothers() -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        who = authenticator(server)
        await who("good")
        server.answer = Answer(authenticated=False)
        with pytest.raises(Refused):
            await who("bad")

    run(main, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_many_at_once_are_one_question_and_a_storm_is_held_back(seed: int) -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        who = authenticator(server, concurrent=4)
        peers = await asyncio.gather(*(who("t") for _ in range(20)))
        assert server.asked == ["t"]
        assert len(set(map(repr, peers))) == 1
        await asyncio.gather(*(who(f"t{number}") for number in range(40)))
        assert server.most_open == 4

    run(main, seed=seed)


def test_no_answer_is_not_a_refusal_and_is_not_remembered() -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        who = authenticator(server)
        server.fails = OSError("down")
        with pytest.raises(OSError, match="down"):
            await who("t")
        server.fails = None
        assert (await who("t")).node == "n1"

    run(main, seed=1)


def test_a_cancelled_asker_leaves_the_others_their_answer() -> None:
    async def main() -> None:
        server = ApiServer(Answer(extra=BOUND))
        who = authenticator(server)
        with anyio.move_on_after(0.005):
            await who("t")
        assert (await who("t")).node == "n1"
        assert server.asked == ["t", "t"]

    run(main, seed=1)


def test_old_tokens_are_forgotten() -> None:
    async def main() -> None:
        who = authenticator(ApiServer(Answer(extra=BOUND)))
        for number in range(10):
            await who(f"t{number}")
        assert "10 tokens remembered" in repr(who)
        await asyncio.sleep(200)
        await who("new")
        assert "1 tokens remembered" in repr(who)
        assert "'t" not in repr(who)

    run(main, seed=1)
