"""Who is accepted, who is refused and with which words, and how often the API server is asked."""

import asyncio
from collections.abc import Mapping

import anyio
import pytest

from runtime.store.tokens import NODE_NAME, POD_NAME, POD_UID, Review, UserInfo
from runtime.testing import VirtualClock, run
from runtime.transport.identity import NodeOfPod, TokenAuthenticator
from runtime.transport.port import Peer, Refused

AGENT = "system:serviceaccount:kube-system:spiderpool-agent"
BOUND = {POD_NAME: ["agent-x"], POD_UID: ["u1"], NODE_NAME: ["n1"]}


def bound(
    username: str = AGENT, *, extra: Mapping[str, list[str]] = BOUND, audiences: tuple[str, ...] = ("us",)
) -> Review:
    """What the API server says of a valid token."""
    user = UserInfo(username=username, extra=extra)
    return Review(authenticated=True, user=user, audiences=list(audiences))


def invalid(error: str = "") -> Review:
    return Review(authenticated=False, error=error)


class ApiServer:
    """Reviews reviews, slowly."""

    def __init__(self, answer: Review) -> None:
        self.answer = answer
        self.fails: Exception | None = None
        self.asked: list[str] = []
        self.open = 0
        self.most_open = 0

    async def review(self, token: str) -> Review:
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
        peer = await authenticator(ApiServer(bound()))("t")
        assert peer == Peer(account=AGENT, node="n1", pod="kube-system/agent-x", pod_uid="u1", role="agent")

    run(main, seed=1)


REFUSALS = {
    "invalid": (
        invalid(error="token audiences [x] is invalid"),
        r"API server does not accept the token: token audiences \[x\] is invalid",
    ),
    "invalid without a word": (invalid(), "does not accept the token: it gives no reason"),
    "another account": (
        bound("system:serviceaccount:default:default"),
        r"account system:serviceaccount:default:default has no business here: accepted are .*-agent \(agent\)",
    ),
    "a person": (bound("kubernetes-admin"), "account kubernetes-admin has no business here"),
    "same name in another namespace": (
        bound("system:serviceaccount:evil:spiderpool-agent"),
        "has no business here",
    ),
    "no audience": (bound(audiences=()), f"does not confirm that the token of account {AGENT} is for this server"),
    "unbound": (bound(extra={}), f"{AGENT} is not bound to a pod: {POD_NAME} is missing"),
    "no pod name": (bound(extra=without(POD_NAME)), f"{POD_NAME} is missing"),
    "no pod uid": (bound(extra=without(POD_UID)), f"{POD_UID} is missing"),
    "two pod names": (bound(extra={**BOUND, POD_NAME: ["a", "b"]}), f"{POD_NAME} is missing"),
    "no node": (
        bound(extra=without(NODE_NAME)),
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
        server = ApiServer(bound())
        with pytest.raises(Refused, match="empty token"):
            await authenticator(server)("")
        assert server.asked == []

    run(main, seed=1)


def test_an_older_cluster_is_asked_for_the_node_of_the_bound_pod() -> None:
    async def main() -> None:
        async def node_of_pod(namespace: str, name: str, uid: str) -> str:
            return {("kube-system", "agent-x", "u1"): "n7"}.get((namespace, name, uid), "")

        server = ApiServer(bound(extra=without(NODE_NAME)))
        assert (await authenticator(server, node_of_pod=node_of_pod)("t")).node == "n7"
        server.answer = bound(extra={**without(NODE_NAME), POD_UID: ["u2"]})
        with pytest.raises(Refused, match=r"bound to pod kube-system/agent-x \(uid u2\), which is on no node"):
            await authenticator(server, node_of_pod=node_of_pod)("t")

    run(main, seed=1)


def test_answers_are_remembered_for_a_minute_and_refusals_for_seconds() -> None:
    async def main() -> None:
        server = ApiServer(bound())
        who = authenticator(server)
        await who("t")
        await asyncio.sleep(59)
        await who("t")
        assert server.asked == ["t"]
        server.answer = invalid(error="pod deleted")
        await asyncio.sleep(1.1)
        for _ in range(3):
            with pytest.raises(Refused, match="pod deleted"):
                await who("t")
        assert server.asked == ["t", "t"]
        server.answer = bound()
        await asyncio.sleep(5.1)
        await who("t")
        assert server.asked == ["t", "t", "t"]

    run(main, seed=1)


def test_one_tokens_answer_is_not_anothers() -> None:
    async def main() -> None:
        server = ApiServer(bound())
        who = authenticator(server)
        await who("good")
        server.answer = invalid()
        with pytest.raises(Refused):
            await who("bad")

    run(main, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_many_at_once_are_one_question_and_a_storm_is_held_back(seed: int) -> None:
    async def main() -> None:
        server = ApiServer(bound())
        who = authenticator(server, concurrent=4)
        peers = await asyncio.gather(*(who("t") for _ in range(20)))
        assert server.asked == ["t"]
        assert len(set(map(repr, peers))) == 1
        await asyncio.gather(*(who(f"t{number}") for number in range(40)))
        assert server.most_open == 4

    run(main, seed=seed)


def test_no_answer_is_not_a_refusal_and_is_not_remembered() -> None:
    async def main() -> None:
        server = ApiServer(bound())
        who = authenticator(server)
        server.fails = OSError("down")
        with pytest.raises(OSError, match="down"):
            await who("t")
        server.fails = None
        assert (await who("t")).node == "n1"

    run(main, seed=1)


def test_a_cancelled_asker_leaves_the_others_their_answer() -> None:
    async def main() -> None:
        server = ApiServer(bound())
        who = authenticator(server)
        with anyio.move_on_after(0.005):
            await who("t")
        assert (await who("t")).node == "n1"
        assert server.asked == ["t", "t"]

    run(main, seed=1)


def test_old_tokens_are_forgotten() -> None:
    async def main() -> None:
        who = authenticator(ApiServer(bound()))
        for number in range(10):
            await who(f"t{number}")
        assert "10 tokens remembered" in repr(who)
        await asyncio.sleep(200)
        await who("new")
        assert "1 tokens remembered" in repr(who)
        assert "'t" not in repr(who)

    run(main, seed=1)
