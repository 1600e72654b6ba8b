"""One pool, written by our owner and by the original's agents at the same time, on a real API server."""

import asyncio
import json
import random
import secrets
import sys
from typing import Any

import anyio

from actors.pools.claims import Claim, Disown, Granted, Surrender, Surrendered
from actors.pools.governor import Governor
from actors.pools.ippools import IPPools
from actors.pools.terms import Terms
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from ipam.ranges import Ranges
from runtime.actor import System
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.snapshot import Snapshot
from tests.servers import ControlPlane

SECONDS = 30.0


_PODS = 180
"""Ours at most; with those of the other side they fit into the pool, though none is given back."""


async def test_nothing_is_lost_on_either_side(control_plane: ControlPlane) -> None:
    name = f"shared-{secrets.token_hex(4)}"
    store = KubernetesStore(await asyncio.to_thread(from_kubeconfig, control_plane.admin_kubeconfig))
    try:
        await share(store, name, str(control_plane.admin_kubeconfig))
    finally:
        await store.aclose()


async def share(store: KubernetesStore, name: str, kubeconfig: str) -> None:
    spec = IPPoolSpec(ip_version=4, subnet="10.1.0.0/16", ips=["10.1.0.1-10.1.0.250"])
    await store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name), spec=spec))
    system = System.real()
    pools = IPPools(
        "owner",
        system,
        store,
        terms=Terms(reserved=Ranges, max_records=5000, cooldown=300.0),
        governor=Governor(system.clock, rate=0.0, replicas=lambda: 1),
        snapshot=Snapshot(),
    )
    owner = pools(name)
    rng = random.Random(7)
    ours: dict[str, str] = {}

    async def pod(at: int) -> None:
        await anyio.sleep(rng.uniform(0, 0.2))
        uid, cid = f"ours-{at}", f"{at:012x}"
        granted = await owner.ask(Claim(f"ns/{uid}", uid, "eth0", "n1", cid), timeout=SECONDS)
        assert isinstance(granted, Granted)
        ours[uid] = granted.address.partition("/")[0]
        if at % 3 == 0:
            await anyio.sleep(rng.uniform(0, 0.5))
            stale = await owner.ask(Surrender(uid, "eth0", "f" * 12, "n1"), timeout=SECONDS)
            assert stale == Surrendered(held=True), "a late DEL of another sandbox"
            freed = await owner.ask(Surrender(uid, "eth0", cid, "n1"), timeout=SECONDS)
            assert freed == Surrendered(addresses=(ours.pop(uid),))

    async with anyio.create_task_group() as group:
        group.start_soon(pools.supervisor.run)
        strange = await owner.ask(Claim("ns/odd", "odd", "eth0", "n1", "0" * 12), timeout=SECONDS)
        assert isinstance(strange, Granted)
        gone = await owner.ask(
            Disown("odd", "eth0", "0" * 12, "n1", ("10.1.0.1",), "02:00:00:00:00:99", 600.0), timeout=SECONDS
        )
        assert gone == Surrendered(addresses=("10.1.0.1",))
        command = (sys.executable, "-m", "tests.contract.original", kubeconfig, name, "25")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with anyio.create_task_group() as pods:

            async def meanwhile() -> None:
                """Pods for as long as the other one is at work, however long it takes to start."""
                for at in range(_PODS):
                    if process.returncode is not None:
                        break
                    pods.start_soon(pod, at)
                    await anyio.sleep(0.05)

            pods.start_soon(meanwhile)
            output, _ = await process.communicate()
        assert process.returncode == 0
        last = await owner.ask(Claim("ns/last", "last", "eth0", "n1", "e" * 12), timeout=SECONDS)
        assert isinstance(last, Granted)
        ours["last"] = last.address.partition("/")[0]
        await pools.supervisor.stop()
        group.cancel_scope.cancel()
    theirs: dict[str, Any] = json.loads(output)
    status = (await store.get(IPPOOL, name)).status
    records: dict[str, dict[str, Any]] = json.loads(status.allocated_ips or "{}")
    by_uid = {record["podUid"]: ip for ip, record in records.items()}
    assert by_uid == ours | theirs["held"]
    for uid, ip in ours.items():
        assert records[ip]["cid"] == ("e" * 12 if uid == "last" else f"{int(uid.removeprefix('ours-')):012x}")
        assert (records[ip]["nic"], records[ip]["node"]) == ("eth0", "n1")
    withheld = json.loads(status.withheld_ips or "{}")
    assert withheld["10.1.0.1"]["reason"] == "conflict: 02:00:00:00:00:99"
    assert theirs["conflicts"], "both wrote at the same time"
    await store.delete(IPPOOL, name)
