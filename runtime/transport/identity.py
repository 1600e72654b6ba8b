"""Who a client is: its service account token, as the API server sees it.

A token is a proof only together with what it is bound to. Any pod can have a token of its own account projected with
our audience, so the account must be one that we expect; and a token that a person made for that account says nothing of
where it is used, so it must be bound to a pod, whose node is then the node that speaks.

Refusals are raised, not logged: the server writes the line for the auditor, for it also knows the client's address.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping

import anyio

from runtime.clock import Clock
from runtime.store.tokens import NODE_NAME, POD_NAME, POD_UID, Review
from runtime.transport.port import Peer, Refused

_SERVICE_ACCOUNT = "system:serviceaccount:"


AskApiServer = Callable[[str], Awaitable[Review]]
"""Asks the API server about a token, for the audience of this server (`review_token`). Raises whatever it likes when
there is no answer."""

NodeOfPod = Callable[[str, str, str], Awaitable[str]]
"""The node of a pod by namespace, name and uid; empty when there is no such pod, or it has no node."""


class _Remembered:
    """What was found out about one token. The lock lets one of many callers ask and the others wait for it."""

    __slots__ = ("expires", "lock", "peer", "refusal")

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.expires = 0.0
        self.peer: Peer | None = None
        self.refusal = ""


class TokenAuthenticator:
    """Turns tokens into peers. It is a server's `authenticate`."""

    def __init__(
        self,
        review: AskApiServer,
        *,
        accounts: Mapping[str, str],
        clock: Clock,
        node_of_pod: NodeOfPod | None = None,
        keep: float = 60.0,
        keep_refusal: float = 5.0,
        concurrent: int = 32,
    ) -> None:
        """Say whom to accept.

        Args:
            review: Asks the API server.
            accounts: The user names that are accepted, each with what it is in a word (`agent`): the peer's role.
            clock: Its monotonic seconds age what is remembered.
            node_of_pod: Asked where the token itself does not name the node; without it such a token is refused.
            keep: Seconds for which an answer is remembered.
            keep_refusal: The same for a refusal, whose cause may soon be mended.
            concurrent: How many questions to the API server may be open at once: after a restart all agents come
                together.
        """
        self._review = review
        self._accounts = dict(accounts)
        self._clock = clock
        self._node_of_pod = node_of_pod
        self._keep = keep
        self._keep_refusal = keep_refusal
        self._limiter = anyio.Semaphore(concurrent)
        self._remembered: dict[bytes, _Remembered] = {}
        self._forget_at = 0.0

    def __repr__(self) -> str:
        return f"<TokenAuthenticator of {sorted(self._accounts)}, {len(self._remembered)} tokens remembered>"

    async def __call__(self, token: str) -> Peer:
        """Whose token it is.

        Raises:
            Refused: It is nobody's whom we expect. The text names the account and the field that is at fault.
            Exception: What `review` or `node_of_pod` raised: it cannot be said now, and nothing is remembered.
        """
        if not token:
            raise Refused("the client sent an empty token")
        self._forget()
        key = hashlib.sha256(token.encode()).digest()  # a dump of our memory shows no tokens
        known = self._remembered.setdefault(key, _Remembered())
        async with known.lock:
            if self._clock.now() >= known.expires:
                await self._ask(token, known)
        if known.peer is None:
            raise Refused(known.refusal)
        return known.peer

    async def _ask(self, token: str, known: _Remembered) -> None:
        async with self._limiter:
            try:
                peer = await self._peer(await self._review(token))
            except Refused as error:
                known.peer, known.refusal = None, str(error)
                known.expires = self._clock.now() + self._keep_refusal
            else:
                known.peer, known.refusal = peer, ""
                known.expires = self._clock.now() + self._keep

    async def _peer(self, result: Review) -> Peer:
        if not result.authenticated:
            why = result.error or "it gives no reason"
            msg = f"the API server does not accept the token: {why}"
            raise Refused(msg)
        account = result.user.username
        if not result.audiences:  # an API server that knows no audiences takes a token for itself as one for us
            msg = f"the API server does not confirm that the token of account {account} is for this server"
            raise Refused(msg)
        if account not in self._accounts:
            wanted = ", ".join(f"{name} ({role})" for name, role in sorted(self._accounts.items()))
            msg = f"account {account} has no business here: accepted are {wanted or 'none'}"
            raise Refused(msg)
        name, uid = result.user.one(POD_NAME), result.user.one(POD_UID)
        if not name or not uid:
            missing = POD_UID if name else POD_NAME
            msg = f"the token of account {account} is not bound to a pod: {missing} is missing"
            raise Refused(msg)
        if not account.startswith(_SERVICE_ACCOUNT):
            msg = f"account {account} is not a service account, and yet its token is bound to pod {name}"
            raise Refused(msg)
        namespace = account.removeprefix(_SERVICE_ACCOUNT).partition(":")[0]
        pod = f"{namespace}/{name}"  # a token can only be bound to a pod of its account's namespace
        node = result.user.one(NODE_NAME)
        if not node:
            if self._node_of_pod is None:
                msg = f"the token of account {account}, pod {pod}, does not say the node: {NODE_NAME} is missing"
                raise Refused(msg)
            node = await self._node_of_pod(namespace, name, uid)
        if not node:
            msg = f"the token of account {account} is bound to pod {pod} (uid {uid}), which is on no node"
            raise Refused(msg)
        return Peer(account=account, node=node, pod=pod, pod_uid=uid, role=self._accounts[account])

    def _forget(self) -> None:
        """Drop what is out of date, now and then: renewed tokens leave their old ones behind."""
        now = self._clock.now()
        if now < self._forget_at:
            return
        self._forget_at = now + self._keep
        for key, known in list(self._remembered.items()):
            if now >= known.expires and not known.lock.locked():
                del self._remembered[key]
