"""The API server as a model: a store in memory that takes its time, and counts.

What it does with objects is `runtime.store.memory`, which the contract suite holds to the real API server. What is
modelled is only the time: half of a request's before the store sees it, half on the way back, so whoever dies in
between does not know whether it was carried out. Where nobody is to die all of it lies before: that is one timer less
for each pod. It never fails, is never busy, and serves any number at once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from api.kinds import IPPOOL, Kind
from runtime.store.memory import MemoryStore
from runtime.store.port import Conflict, Event, Listing

_SECONDS_PER_BYTE = 1e-8
"""A megabyte takes ten milliseconds more, to decode, check, encode and sync to disk."""


class Traffic:
    """What all controllers together did to the API server."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.writes: Counter[str] = Counter()
        """That succeeded, by the plural of the kind."""
        self.conflicts = 0
        self.pool_bytes = 0
        """Of pools' statuses that were written."""
        self.largest = 0
        """Bytes of the largest of them."""


class ModelledApiServer:
    """`Store` of one controller, over the cluster's one `MemoryStore`."""

    def __init__(
        self, truth: MemoryStore, traffic: Traffic, *, latency: float, random: Random, mortal: bool = False
    ) -> None:
        """`latency` is the mean, in seconds: half of it is the least that a request takes, the rest is by chance.

        `mortal`: whoever asks may die over it.
        """
        self._mortal = mortal
        self._truth = truth
        self._traffic = traffic
        self._half = latency / 2
        self._random = random

    def __repr__(self) -> str:
        return f"<ModelledApiServer {2 * self._half * 1e3:g} ms over {self._truth!r}>"

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """See the port."""
        half = await self._outward()
        item = await self._truth.get(kind, name, namespace=namespace)
        await self._homeward(half)
        return item

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """See the port."""
        half = await self._outward()
        listing = await self._truth.list(kind, namespace=namespace, fields=fields, labels=labels)
        await self._homeward(half)
        return listing

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """See the port."""
        half = await self._outward()
        made = await self._truth.create(kind, item)
        self._traffic.writes[kind.plural] += 1
        await self._homeward(half)
        return made

    async def patch[T](
        self,
        kind: Kind[T],
        name: str,
        change: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        resource_version: str = "",
        uid: str = "",
    ) -> T:
        """See the port."""

        def send() -> Awaitable[T]:
            return self._truth.patch(
                kind,
                name,
                change,
                namespace=namespace,
                subresource=subresource,
                resource_version=resource_version,
                uid=uid,
            )

        return await self._write(kind, send)

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """See the port."""
        size = _status_bytes(status) if kind is IPPOOL else 0
        return await self._write(kind, lambda: self._truth.replace_status(kind, item, status), size=size)

    async def delete[T](
        self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
    ) -> None:
        """See the port."""

        def send() -> Awaitable[None]:
            return self._truth.delete(kind, name, namespace=namespace, resource_version=resource_version, uid=uid)

        await self._write(kind, send)

    def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event[T]]]:
        """See the port. Events come at once."""
        return self._truth.watch(kind, since=since, namespace=namespace, fields=fields)

    async def aclose(self) -> None:
        """See the port. All watches end, those of other controllers too, as with an API server that restarts."""
        await self._truth.aclose()

    async def _write[R](self, kind: Kind[Any], send: Callable[[], Awaitable[R]], *, size: int = 0) -> R:
        """Send a write; `size` in bytes where it is the status of a pool."""
        half = await self._outward(size)
        try:
            answer = await send()
        except Conflict:
            self._traffic.conflicts += 1
            await self._homeward(half)
            raise
        self._traffic.writes[kind.plural] += 1
        self._traffic.pool_bytes += size
        self._traffic.largest = max(self._traffic.largest, size)
        await self._homeward(half)
        return answer

    async def _outward(self, size: int = 0) -> float:
        """The way there; returns the seconds of the way back."""
        if not self._half:
            return 0.0
        half = self._half * (0.5 + 0.5 * self._random.expovariate(1.0)) + size * _SECONDS_PER_BYTE / 2
        await asyncio.sleep(half if self._mortal else 2 * half)
        return half if self._mortal else 0.0

    async def _homeward(self, half: float) -> None:
        if half:
            await asyncio.sleep(half)


def _status_bytes(status: Mapping[str, Any] | Struct) -> int:
    """Of a pool's status as it goes over the wire: records are JSON inside a string, so each quote is two bytes."""
    named = msgspec.to_builtins(status)
    texts = [named.get("allocatedIPs") or "", named.get("withheldIPs") or ""]
    return sum(len(text) + text.count('"') for text in texts) + 200
