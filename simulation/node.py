"""A node as controllers see it: the agent's end of the protocol, with a kubelet that has pods to start.

Real is how a replica is found, asked and given up (`actors.node.controllers`), and every message as it goes over the
wire. Modelled is what a real agent does beside that: its journal, its kernel and its actors for sandboxes and releases
are left out, and what they would ask a controller for is asked from here. As they do it gives back what an ADD that
failed may have been granted, and where a copy of a request may still be under way it does so twice.
"""

from collections import Counter
from random import Random

import anyio

from actors.node.addressing import ALLOCATE_SECONDS
from actors.node.controllers import Controllers
from actors.node.outbox import ECHO_SECONDS
from api.core import Pod
from api.wire import Address, Allocate, Allocated, NicRequest, PodRef, Rejected, Release
from runtime.clock import Clock
from runtime.transport.port import TransportError, Unreachable

_NIC = "eth0"
_TRIES = 6
_FIRST_PAUSE = 1.0
"""Seconds until kubelet tries again with a new sandbox; each pause is twice the one before."""
_RELEASE_SECONDS = 10.0
_RELEASE_PAUSE = 0.25


class Tally:
    """What the pods of all nodes have come to."""

    def __init__(self) -> None:
        """Nobody has come."""
        self.held: dict[str, tuple[str, ...]] = {}
        """By the uid of a pod, the addresses that it was told to have, with prefix length, until it gives them back."""
        self.latencies: list[float] = []
        """Seconds from a pod's first ADD to its addresses."""
        self.failures: Counter[str] = Counter()
        """ADDs that failed, by cause."""
        self.unserved: Counter[str] = Counter()
        """Pods that were given up, by the last cause."""
        self.ended = 0.0
        """When the last pod had its addresses, on the clock port."""
        self.deleted = 0

    @property
    def done(self) -> int:
        """Pods that have addresses, had them, or were given up."""
        return len(self.latencies) + self.unserved.total()


class Node:
    """See the module."""

    def __init__(
        self, name: str, *, controllers: Controllers, clock: Clock, random: Random, tally: Tally, nics: int = 1
    ) -> None:
        """`controllers` are the channels of this node's agent, `nics` those of each of its pods."""
        self.name = name
        self._more = tuple(NicRequest(nic=f"net{at}") for at in range(1, nics))
        self._controllers = controllers
        self._clock = clock
        self._random = random
        self._tally = tally

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    async def start(self, pod: Pod, number: int) -> tuple[str, Allocated] | None:
        """Have a pod get its addresses, with as many sandboxes as it takes; `number` is the pod's.

        Returns the sandbox and what it got, or None when the pod was given up.
        """
        ref = PodRef(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
        begun = self._clock.now()
        doubtful: list[str] = []
        pause, cause = _FIRST_PAUSE, ""
        for attempt in range(_TRIES):
            cid = f"{number:08x}{attempt:04x}".ljust(64, "0")
            answer, copies, cause = await self._add(ref, cid, disputed=bool(doubtful))
            if answer is not None:
                now = self._clock.now()
                self._tally.latencies.append(now - begun)
                self._tally.held[ref.uid] = tuple(address.address for address in _addresses(answer))
                self._tally.ended = now
                for old in doubtful:
                    await self._give_back(ref, old, again=True, successor=cid)
                return cid, answer
            self._tally.failures[cause] += 1
            if copies is not None:
                await self._give_back(ref, cid)
                if copies:
                    doubtful.append(cid)
            await anyio.sleep(pause)
            pause *= 2
        for old in doubtful:
            await self._give_back(ref, old, again=True)
        self._tally.unserved[cause] += 1
        return None

    async def stop(self, pod: Pod, cid: str, granted: Allocated) -> None:
        """A pod is deleted: its links are gone, and its addresses go back."""
        ref = PodRef(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
        del self._tally.held[ref.uid]
        pools = tuple(dict.fromkeys(address.pool for address in _addresses(granted)))
        await self._give_back(ref, cid, pools=pools)
        if granted.doubtful:
            await self._give_back(ref, cid, pools=pools, again=True)
        self._tally.deleted += 1

    async def _add(self, ref: PodRef, cid: str, *, disputed: bool) -> tuple[Allocated | None, bool | None, str]:
        """One ADD: what it got; or whether copies of it may be under way, None where nothing can have been granted."""
        request = Allocate(
            pod=ref,
            nic=_NIC,
            container_id=cid,
            begun=int(self._clock.wall() * 1000),
            disputed=disputed,
            more=self._more,
        )
        try:
            answered = await self._controllers.ask(request, deadline=self._clock.now() + ALLOCATE_SECONDS)
        except Unreachable:
            return None, None, "unreachable"
        except TransportError as error:
            return None, True, type(error).__name__
        match answered.response:
            case Allocated() as allocated:
                return allocated, False, ""
            case Rejected(cause=cause, held=held):
                return None, answered.doubtful if held or answered.doubtful else None, cause
            case other:
                return None, True, type(other).__name__

    async def _give_back(
        self, ref: PodRef, cid: str, *, pools: tuple[str, ...] = (), again: bool = False, successor: str = ""
    ) -> None:
        """Release until that is acknowledged; `again`: for the second time, when no copy can land any more."""
        if again:
            await anyio.sleep(ECHO_SECONDS)
        while True:
            request = Release(pod=ref, nic=_NIC, container_id=cid, pools=pools, successor=successor)
            try:
                answered = await self._controllers.ask(request, deadline=self._clock.now() + _RELEASE_SECONDS)
            except TransportError:
                pass
            else:
                if not isinstance(answered.response, Rejected) or not answered.response.retry:
                    return
            await anyio.sleep(_RELEASE_PAUSE * self._random.uniform(1.0, 2.0))


def _addresses(granted: Allocated) -> list[Address]:
    """Of all NICs."""
    return [*granted.addresses, *(address for grant in granted.others for address in grant.addresses)]
