"""The owners of pools, without allocators and agents: what they are asked is asked of them directly.

Every replica has its own connection to one store in memory, its own snapshot of the pools and its own actors, and
believes that all pools are its own.
"""

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from actors.pools.claims import Claim, Disown, Granted, Refused, Surrender, Surrendered
from actors.pools.governor import Governor
from actors.pools.ippools import IPPools
from actors.pools.terms import Terms, Witnesses
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import FINALIZER, ObjectMeta
from ipam.history import Change
from ipam.ranges import Ranges
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import Conflict
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore, Policy

SECONDS = 30.0


class Replica:
    """One of them."""

    def __init__(self, name: str, store: MemoryStore, world: "Owners") -> None:
        self.system = System(clock=VirtualClock(), random=world.random)
        self.store = FaultyStore(store, policy=world.chances, random=world.random)
        self.reflector: Reflector[SpiderIPPool] = Reflector(self.store, IPPOOL, random=world.random)
        self.supervisor = Supervisor(name, self.system)
        self.supervisor.add_service("pools", self.reflector.run)
        self.pools = IPPools(
            f"{name}/ippools",
            self.system,
            self.store,
            terms=Terms(reserved=Ranges, max_records=world.max_records, cooldown=world.cooldown),
            governor=Governor(self.system.clock, rate=world.rate, replicas=lambda: 1),
            snapshot=self.reflector.snapshot,
            witnesses=Witnesses(
                noted=lambda pool, changes: world.noted.extend((pool, it) for it in changes),
                exhausted=lambda pool, reason: world.told.append(("exhausted", pool, str(reason))),
                overlapping=lambda pool, overlap: world.told.append(("overlapping", pool, str(overlap))),
            ),
        )
        self.supervisor.add_supervisor(self.pools.supervisor)
        self.pools.supervise(self.supervisor, lambda _name: True)
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.supervisor.run()

    async def claim(self, uid: str, pool: str = "lan", **options: Any) -> Granted | Refused:
        message = Claim(
            pod=options.pop("pod", f"ns/{uid}"),
            uid=uid,
            nic=options.pop("nic", "eth0"),
            node=options.pop("node", "n1"),
            cid=options.pop("cid", "c1"),
            **options,
        )
        return await self.pools(pool).ask(message, timeout=SECONDS)

    async def surrender(self, uid: str, pool: str = "lan", **options: Any) -> Surrendered | Refused:
        message = Surrender(uid=uid, nic=options.pop("nic", "eth0"), cid=options.pop("cid", "c1"), **options)
        return await self.pools(pool).ask(message, timeout=SECONDS)

    async def disown(self, uid: str, *addresses: str, pool: str = "lan") -> Surrendered | Refused:
        message = Disown(uid, "eth0", "c1", "n1", addresses, "02:00:00:00:00:99", 600.0)
        return await self.pools(pool).ask(message, timeout=SECONDS)


class Owners:
    """The replicas and their store."""

    def __init__(
        self,
        *,
        seed: int = 1,
        cooldown: float = 30.0,
        rate: float = 0.0,
        chances: Policy | None = None,
        max_records: int = 5000,
    ) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.cooldown, self.rate, self.max_records = cooldown, rate, max_records
        self.chances: Policy = chances or Chances()
        self.noted: list[tuple[str, Change]] = []
        self.told: list[tuple[str, str, str]] = []
        self.group: anyio.abc.TaskGroup

    async def replica(self, name: str) -> Replica:
        made = Replica(name, self.store, self)
        self.group.start_soon(made.run)
        return made

    async def pool(self, name: str, *ips: str) -> None:
        spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=list(ips))
        await self.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name, finalizers=[FINALIZER]), spec=spec))

    async def status(self, name: str = "lan") -> dict[str, Any]:
        """The status as it is stored, its texts decoded."""
        for document in self.store.documents(IPPOOL):
            if document["metadata"]["name"] == name:
                status = dict(document.get("status", {}))
                for key in ("allocatedIPs", "withheldIPs"):
                    if key in status:
                        status[key] = json.loads(status[key])
                return status
        raise LookupError(name)


def act(scene: Callable[[Owners], Awaitable[None]], **options: Any) -> Owners:
    """Play a scene in virtual time."""
    seed = options.get("seed", 1)

    async def main() -> Owners:
        owners = Owners(**options)
        async with anyio.create_task_group() as group:
            owners.group = group
            with anyio.fail_after(3600):
                await scene(owners)
            group.cancel_scope.cancel()
        return owners

    return run(main, seed=seed)


class Original:
    """An agent of the original, as far as pools see it: it writes them itself, and knows only what it knew then.

    A read that no cache answers, records decoded into pod and podUid, one added or taken away, and the whole status
    written with the resourceVersion that was read; five tries.
    """

    def __init__(self, store: Any, *, pause: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._pause = pause
        """Between reading and writing."""
        self.tries = 0

    async def add(self, pool: str, ip: str, pod: str, uid: str) -> bool:
        return await self._change(pool, lambda records: records.setdefault(ip, {"pod": pod, "podUid": uid}))

    async def remove(self, pool: str, uid: str) -> bool:
        def change(records: dict[str, dict[str, str]]) -> None:
            for ip in [ip for ip, record in records.items() if record["podUid"] == uid]:
                del records[ip]

        return await self._change(pool, change)

    async def _change(self, pool: str, change: Callable[[dict[str, dict[str, str]]], object]) -> bool:
        for _ in range(5):
            self.tries += 1
            item = await self._store.get(IPPOOL, pool)
            known = json.loads(item.status.allocated_ips or "{}")
            records = {ip: {"pod": it["pod"], "podUid": it["podUid"]} for ip, it in known.items()}
            change(records)
            await self._pause()
            try:
                await self.put(item, records)
            except Conflict:
                continue
            return True
        return False

    async def put(self, item: SpiderIPPool, records: dict[str, dict[str, str]]) -> None:
        """A PUT of the status: what its type has no field for goes."""
        text = json.dumps(dict(sorted(records.items()))) if records else None
        status = {
            "allocatedIPs": text,
            "allocatedIPCount": len(records),
            "totalIPCount": item.status.total_ip_count,
            "withheldIPs": None,
            "conditions": None,
        }
        await self._store.patch(
            IPPOOL,
            item.metadata.name,
            {"status": status},
            subresource="status",
            resource_version=item.metadata.resource_version,
        )
