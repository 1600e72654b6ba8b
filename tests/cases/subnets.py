"""SpiderSubnets of a case, and an owner of them beside those of the lab: it makes automatic pools as they would."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from random import Random
from typing import Any, Final

import anyio

from actors.subnets.messages import AutoPool, Discard, Discarded, NotProvided, Provide, Provided
from actors.subnets.subnets import Subnets
from api.annotations import (
    APP_NAME,
    IPPOOL_RECLAIM,
    OWNER_APPLICATION_GV,
    OWNER_APPLICATION_KIND,
    OWNER_APPLICATION_NAME,
    OWNER_APPLICATION_NAMESPACE,
)
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL, RESERVEDIP, SUBNET
from api.reservedip import SpiderReservedIP
from api.subnet import SpiderSubnet
from ipam.ranges import Ranges, parse_ranges
from runtime.actor import System
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.reflector import Reflector
from tests.cases.world import World
from tests.processes.webhooks import IPPOOLS, POOL_TYPE

SUBNETS: Final = "/apis/spiderpool.spidernet.io/v2beta1/spidersubnets"
SUBNET_TYPE: Final = {**POOL_TYPE, "kind": "SpiderSubnet"}


class Subnet:
    """One SpiderSubnet of the addresses .16 to .79 of a case's network."""

    def __init__(self, world: World, *, lan: int = 0, **spec: Any) -> None:
        """It is made at once."""
        self.world = world
        self.name = f"{world.name}-s{lan}"
        self.network = world.subnet(4, lan)
        self.gateway = world.gateway(4, lan)
        body = {"subnet": str(self.network), "ips": [self.range(16, 79)], "gateway": self.gateway, **spec}
        world.request("POST", SUBNETS, {**SUBNET_TYPE, "metadata": {"name": self.name}, "spec": body})

    def at(self, number: int) -> str:
        """The address with that last byte."""
        return str(self.network.network_address + number)

    def range(self, first: int, last: int) -> str:
        """From one to the other."""
        return f"{self.at(first)}-{self.at(last)}"

    @property
    def found(self) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = self.world.request("GET", f"{SUBNETS}/{self.name}")
        return found

    @property
    def entries(self) -> dict[str, Any]:
        """What pools have."""
        return dict(json.loads(self.found.get("status", {}).get("controlledIPPools") or "{}"))

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Addresses: all, and pools'."""
        status = self.found.get("status", {})
        return status.get("totalIPCount"), status.get("allocatedIPCount")

    def counted(self, total: int, given: int) -> None:
        """Wait until the status says so."""
        self.world.wait(lambda: self.counts == (total, given), f"{self.name} has {total}, of which {given} are pools'")

    def change(self, *, check: bool = True, **spec: Any) -> Any:
        """Merge into its spec."""
        return self.world.control_plane.request("PATCH", f"{SUBNETS}/{self.name}", {"spec": spec}, check=check)

    def pool(self, name: str, first: int, last: int, *, check: bool = True, **spec: Any) -> Any:
        """A pool made by hand in it."""
        body = {"subnet": str(self.network), "ips": [self.range(first, last)], **spec}
        meta = {"name": f"{self.name}-{name}"}
        return self.world.control_plane.request(
            "POST", IPPOOLS, {**POOL_TYPE, "metadata": meta, "spec": body}, check=check
        )

    def drop(self, name: str) -> None:
        """Delete one of them."""
        self.world.request("DELETE", f"{IPPOOLS}/{self.name}-{name}")

    def spec(self, name: str) -> dict[str, Any]:
        """A pool's."""
        return dict(self.world.request("GET", f"{IPPOOLS}/{self.name}-{name}")["spec"])

    def gone(self) -> bool:
        """Whether neither subnet nor pool is left of it."""
        answer = self.world.control_plane.request("GET", f"{SUBNETS}/{self.name}", check=False)
        pools = [it for it in self.world.request("GET", IPPOOLS)["items"] if it["spec"]["subnet"] == str(self.network)]
        return answer.status == HTTPStatus.NOT_FOUND and not pools

    # -- automatic pools -----------------------------------------------------------------------------------------------

    def provide(self, **sizes: int) -> dict[str, Provided | NotProvided]:
        """Have automatic pools of these sizes, asked for at the same time, by names without the subnet's."""
        answers = self._ask([Provide(self.name, self._wanted(name, size)) for name, size in sizes.items()])
        return dict(zip(sizes, answers, strict=True))

    def discard(self, *names: str) -> list[Discarded]:
        """Have them go."""
        return self._ask([Discard(self.name, f"{self.name}-{name}") for name in names])

    def _wanted(self, name: str, size: int) -> AutoPool:
        app = {
            OWNER_APPLICATION_GV: "apps_v1",
            OWNER_APPLICATION_KIND: "Deployment",
            OWNER_APPLICATION_NAMESPACE: self.world.namespace,
            OWNER_APPLICATION_NAME: name,
            # There is no such application: the controllers would have its pools go.
            IPPOOL_RECLAIM: "false",
        }
        return AutoPool(f"{self.name}-{name}", size, app, {}, {APP_NAME: name})

    def _ask(self, asks: Sequence[Provide | Discard]) -> list[Any]:
        kubeconfig = self.world.control_plane.admin_kubeconfig

        async def replica() -> list[Any]:
            store = KubernetesStore(await asyncio.to_thread(from_kubeconfig, kubeconfig))
            try:
                return await _owner(store, asks)
            finally:
                await store.aclose()

        return asyncio.run(replica())


async def _owner(store: KubernetesStore, asks: Sequence[Provide | Discard]) -> list[Any]:
    """A replica that believes that every subnet is its own, for as long as it takes."""
    system = System.real()
    pools: Reflector[SpiderIPPool] = Reflector(store, IPPOOL, random=Random(1))
    seen: Reflector[SpiderSubnet] = Reflector(store, SUBNET, random=Random(2))
    kept: Reflector[SpiderReservedIP] = Reflector(store, RESERVEDIP, random=Random(3))

    def reserved(version: int) -> Ranges:
        texts = [text for item in kept.snapshot.values() for text in item.spec.ips if (":" in text) == (version == 6)]
        return parse_ranges(texts, version)

    subnets = Subnets("beside/subnets", system, store, subnets=seen.snapshot, pools=pools.snapshot, reserved=reserved)
    answers: list[Any] = [None] * len(asks)

    async def ask(at: int, message: Provide | Discard) -> None:
        ref = subnets(message.subnet)
        if isinstance(message, Provide):
            answers[at] = await ref.ask(message, timeout=30)
        else:
            answers[at] = await ref.ask(message, timeout=30)

    async with anyio.create_task_group() as group:
        for reflector in (pools, seen, kept):
            group.start_soon(reflector.run)
        group.start_soon(subnets.supervisor.run)
        for reflector in (pools, seen, kept):
            await reflector.synced()
        async with anyio.create_task_group() as asking:
            for at, message in enumerate(asks):
                asking.start_soon(ask, at, message)
        group.cancel_scope.cancel()
    return answers


@contextmanager
def subnet(world: World, **spec: Any) -> Iterator[Subnet]:
    """A subnet that goes with all its pools in the end."""
    made = Subnet(world, **spec)
    try:
        yield made
    finally:
        world.control_plane.request("DELETE", f"{SUBNETS}/{made.name}", check=False)
        world.wait(made.gone, f"{made.name} goes, and its pools")
