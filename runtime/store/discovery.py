"""Kinds that we know nothing of when we are built: whether the API server serves them, where, and how they scale.

No part of the store port: what is asked here are no objects.
"""

from collections import Counter
from typing import Protocol

import msgspec
from msgspec import Struct

from api.core import Bare, Scale
from api.kinds import Kind
from runtime.store.apiserver import ApiServer, Call
from runtime.store.observe import observed
from runtime.store.port import NotFound


class Foreign(Struct, frozen=True):
    """A kind, and whether its objects say by a scale subresource how many pods they are to have."""

    kind: Kind[Bare]
    scales: bool


class Discovery(Protocol):
    """What there is to ask. Methods raise `StoreError`."""

    async def find(self, api_version: str, kind: str) -> Foreign | None:
        """A kind, None where it is not served."""
        ...

    async def replicas(self, foreign: Foreign, name: str, *, namespace: str) -> int:
        """How many pods an object is to have, by its scale subresource. Raises `NotFound`."""
        ...


class _Resource(Struct):
    name: str
    kind: str = ""
    namespaced: bool = False


class _Resources(Struct):
    resources: list[_Resource] | None = None


class ServerDiscovery:
    """`Discovery` at an API server."""

    def __init__(self, server: ApiServer) -> None:
        """Nothing is asked yet."""
        self._server = server

    def __repr__(self) -> str:
        return f"<ServerDiscovery of {self._server!r}>"

    async def find(self, api_version: str, kind: str) -> Foreign | None:
        """See `Discovery`. One small request."""
        group, slash, version = api_version.rpartition("/")
        path = f"/apis/{api_version}" if slash else f"/api/{api_version}"
        try:
            body = await self._get(path, f"discover {api_version}")
        except NotFound:
            return None
        served = msgspec.json.decode(body, type=_Resources).resources or ()
        found = next((one for one in served if one.kind == kind and "/" not in one.name), None)
        if found is None:
            return None
        return Foreign(
            kind=Kind(
                group=group,
                version=version,
                plural=found.name,
                kind=kind,
                namespaced=found.namespaced,
                status=False,
                type=Bare,
            ),
            scales=any(one.name == f"{found.name}/scale" for one in served),
        )

    async def replicas(self, foreign: Foreign, name: str, *, namespace: str) -> int:
        """See `Discovery`."""
        path = foreign.kind.path(namespace, name, "scale")
        body = await self._get(path, f"get scale of {foreign.kind.plural} {namespace}/{name}")
        return msgspec.json.decode(body, type=Scale).spec.replicas

    async def _get(self, path: str, what: str) -> bytes:
        call = Call(method="GET", path=path, what=what)
        with observed("get", "discovery", requests=Counter(), attributes={}) as outcome:
            return await self._server.request(call, outcome)
