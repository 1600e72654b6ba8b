"""The stores under test: each test that takes `backend` runs once on every adapter."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.memory import MemoryStore
from runtime.store.port import Store
from runtime.store.sqlite import SQLiteStore
from simulation.apiserver import ModelledApiServer, Traffic
from tests.servers import ControlPlane


class Backend:
    """One adapter with what a test needs beside the port.

    Attributes:
        name: memory, modelled, sqlite or kubernetes.
        store: the store.
        other: a second client of the same storage (the same object where there can be no second).
        namespace: one that no other test uses.
        prefix: for the names of cluster-wide objects, used by no other test.
    """

    def __init__(
        self, name: str, store: Store, other: Store, namespace: str, expired: Callable[[], Awaitable[str]]
    ) -> None:
        self.name = name
        self.store = store
        self.other = other
        self.namespace = namespace
        self.prefix = f"t{secrets.token_hex(4)}"
        self.expired = expired

    def pool(self, name: str = "pool", *, finalizers: tuple[str, ...] = ()) -> SpiderIPPool:
        """A pool with a name of this test's own."""
        return SpiderIPPool(
            metadata=ObjectMeta(name=f"{self.prefix}-{name}", finalizers=list(finalizers)),
            spec=IPPoolSpec(subnet="10.1.0.0/16", ips=["10.1.0.1-10.1.0.9"]),
        )


@pytest.fixture(params=["memory", "modelled", "sqlite", "kubernetes"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """Each adapter in turn."""
    match request.param:
        case "memory":
            memory = MemoryStore()

            async def compact_memory() -> str:
                memory.compact()
                return str(memory.revision - 1)

            yield Backend("memory", memory, memory, "contract", compact_memory)
            await memory.aclose()
        case "modelled":
            truth = MemoryStore()
            modelled = ModelledApiServer(truth, Traffic(), latency=0.0002, random=Random(1))

            async def compact_truth() -> str:
                truth.compact()
                return str(truth.revision - 1)

            yield Backend("modelled", modelled, modelled, "contract", compact_truth)
            await modelled.aclose()
        case "sqlite":
            # A busy disk may starve one of two writers for seconds, and these tests are not about its patience.
            sqlite, twin = (SQLiteStore(tmp_path / "store.db", patience=60) for _ in range(2))

            async def compact_sqlite() -> str:
                await sqlite.compact()
                return "1"

            yield Backend("sqlite", sqlite, twin, "contract", compact_sqlite)
            await sqlite.aclose()
            await twin.aclose()
        case _:
            control_plane: ControlPlane = request.getfixturevalue("control_plane")
            namespace: str = await asyncio.to_thread(control_plane.create_namespace)
            credentials = await asyncio.to_thread(from_kubeconfig, control_plane.admin_kubeconfig)
            real, second = KubernetesStore(credentials), KubernetesStore(credentials)

            async def long_ago() -> str:
                return "1"

            yield Backend("kubernetes", real, second, namespace, long_ago)
            await real.aclose()
            await second.aclose()


@pytest.fixture
async def real_credentials(control_plane: ControlPlane) -> object:
    """The administrator's way to the real API server."""
    return await asyncio.to_thread(from_kubeconfig, control_plane.admin_kubeconfig)
