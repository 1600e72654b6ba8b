"""What happens beside the plain pods of a simulated world: StatefulSets, pods with two NICs, pools that change."""

import json
from functools import partial

import anyio

from api import annotations
from api.core import Pod, PodSpec, StatefulSet, StatefulSetSpec
from api.kinds import IPPOOL, POD, STATEFULSET
from api.meta import ObjectMeta, OwnerReference
from api.wire import Disown, PodRef, Released, decode_response, encode
from cni.protocol import Verb
from cni.result import Result
from runtime.store.port import Conflict
from runtime.transport.port import Peer, TransportError
from tests.simulation.node import Violation
from tests.simulation.world import NETWORKS, NODES, Story, World

NAMESPACE = "default"


def two_nics(number: int, *, lives: int = 1) -> Story:
    """A pod that names the pools of both its NICs; its sandboxes fail and come again until all is there."""

    async def story(world: World) -> None:
        for life in range(lives):
            await anyio.sleep(world.random.uniform(0, world.arrival + 1.0))
            await _two_nics(world, f"duo-{number}-{life}", f"d{number:x}{life:x}")

    return story


async def _two_nics(world: World, name: str, mark: str) -> None:
    node = world.random.choice(NODES)
    pools = [{"interface": nic, "ipv4": ["v4"], "ipv6": ["v6"]} for nic in ("eth0", "net1")]
    meta = ObjectMeta(name=name, namespace=NAMESPACE, annotations={annotations.POD_IPPOOLS: json.dumps(pools)})
    pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
    sandbox = 0
    while True:
        sandbox += 1
        cid = f"{mark}a{sandbox:x}".ljust(64, "e")
        first = await world.call(node, world.invocation(Verb.ADD, pod, cid))
        second = None
        if first is not None and world.random.random() < 0.9:
            second = await world.call(node, world.invocation(Verb.ADD, pod, cid, ifname="net1"))
        if first is not None and second is not None:
            break
        if first is not None and world.random.random() < 0.5:
            await world.delete(node, pod, cid, ifname="net1")
        await world.delete(node, pod, cid)
        if world.random.random() < 0.2:
            await world.truth.delete(POD, name, namespace=NAMESPACE)  # it will never be
            return
        await anyio.sleep(1.0)
    addresses = _addresses(first) + _addresses(second)
    if len(set(addresses)) != 4:
        msg = f"{name}: {', '.join(addresses)}: four addresses were due"
        raise Violation(msg)
    world.held[cid] = (pod.metadata.uid, addresses)
    world.check()
    await anyio.sleep(world.random.uniform(*world.lifetime))
    world.check()
    world.held.pop(cid, None)
    nics = ["eth0", "net1"]
    world.random.shuffle(nics)
    for nic in nics:
        await world.delete(node, pod, cid, ifname=nic)
        await anyio.sleep(world.random.uniform(0, 0.2))
    await world.truth.delete(POD, name, namespace=NAMESPACE)


def joined(number: int, *, lives: int = 1) -> Story:
    """A pod that its annotation attaches to further networks: one call makes all its NICs, one takes them away."""

    async def story(world: World) -> None:
        for life in range(lives):
            await anyio.sleep(world.random.uniform(0, world.arrival + 1.0))
            await _joined(world, f"trio-{number}-{life}", f"7{number:x}{life:x}")

    return story


async def _joined(world: World, name: str, mark: str) -> None:
    node = world.random.choice(NODES)
    meta = ObjectMeta(name=name, namespace=NAMESPACE, annotations={annotations.MULTUS_NETWORKS: ",".join(NETWORKS)})
    pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
    sandbox = 0
    while True:
        sandbox += 1
        cid = f"{mark}a{sandbox:x}".ljust(64, "e")
        if await world.call(node, world.invocation(Verb.ADD, pod, cid, networks=True)) is not None:
            break
        await world.delete(node, pod, cid, networks=True)
        if world.random.random() < 0.1:
            await world.truth.delete(POD, name, namespace=NAMESPACE)  # it will never be
            return
        await anyio.sleep(1.0)
    addresses = _of_all(world, cid)
    if len(set(addresses)) != 2 * (1 + len(NETWORKS)):
        msg = f"{name}: {', '.join(addresses)}: two addresses were due for each of its NICs"
        raise Violation(msg)
    world.held[cid] = (pod.metadata.uid, addresses)
    world.check()
    await anyio.sleep(world.random.uniform(*world.lifetime))
    world.check()
    if world.patient:
        await _shown(world, name)
    world.held.pop(cid, None)
    await world.delete(node, pod, cid, networks=True)
    if world.random.random() < 0.3:
        await world.delete(node, pod, cid, networks=True)
    await world.truth.delete(POD, name, namespace=NAMESPACE)


async def _shown(world: World, name: str) -> None:
    for _ in range(50):
        pod = await world.truth.get(POD, name, namespace=NAMESPACE)
        if annotations.NETWORK_STATUS in pod.metadata.annotations:
            return
        await anyio.sleep(0.1)
    msg = f"{name}: no annotation shows its networks"
    raise Violation(msg)


def statefulset(name: str, *, replicas: int, lives: int, networks: bool = False) -> Story:
    """Pods of one name each, one after the other, wherever; some come while the last one's sandbox still lives.

    With `networks` each has three NICs, all of which keep what they have.
    """

    async def story(world: World) -> None:
        made = await world.truth.create(
            STATEFULSET,
            StatefulSet(metadata=ObjectMeta(name=name, namespace=NAMESPACE), spec=StatefulSetSpec(replicas=replicas)),
        )
        owner = OwnerReference(
            api_version="apps/v1", kind="StatefulSet", name=name, uid=made.metadata.uid, controller=True
        )
        async with anyio.create_task_group() as group:
            for ordinal in range(replicas):
                group.start_soon(_ordinal, world, owner, ordinal, lives, networks)
        await world.truth.delete(STATEFULSET, name, namespace=NAMESPACE)

    return story


async def _ordinal(world: World, owner: OwnerReference, ordinal: int, lives: int, networks: bool) -> None:
    name = f"{owner.name}-{ordinal}"
    named = {annotations.MULTUS_NETWORKS: ",".join(NETWORKS)} if networks else {}
    expected: tuple[str, ...] = ()
    async with anyio.create_task_group() as group:
        for life in range(lives):
            node = world.random.choice(NODES)
            meta = ObjectMeta(name=name, namespace=NAMESPACE, owner_references=[owner], annotations=named)
            pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
            mark = f"5{sum(map(ord, owner.name)) % 16:x}{ordinal:x}{life:x}"
            cid, result = await _started(world, node, pod, mark, networks=networks)
            addresses = _of_all(world, cid) if networks else _addresses(result)
            if expected and addresses != expected:
                msg = f"{name} had {', '.join(expected)} and has {', '.join(addresses)} now"
                raise Violation(msg)
            expected = addresses
            world.held[cid] = (pod.metadata.uid, addresses)
            world.check()
            await anyio.sleep(world.random.uniform(*world.lifetime))
            world.check()
            if world.random.random() < 0.5:
                await _ended(world, node, pod, cid, 0.0, networks=networks)
                await world.truth.delete(POD, name, namespace=NAMESPACE)
            else:
                # By force: the next pod comes at once, and the sandbox of this one goes when its kubelet gets to it.
                await world.truth.delete(POD, name, namespace=NAMESPACE)
                later = partial(_ended, world, node, pod, cid, world.random.uniform(0.1, 3.0), networks=networks)
                group.start_soon(later)


async def _started(world: World, node: str, pod: Pod, mark: str, *, networks: bool = False) -> tuple[str, Result]:
    sandbox = 0
    while True:
        sandbox += 1
        cid = f"{mark}b{sandbox:x}".ljust(64, "d")
        result = await world.call(node, world.invocation(Verb.ADD, pod, cid, networks=networks))
        if result is not None:
            return cid, result
        await world.delete(node, pod, cid, networks=networks)
        await anyio.sleep(0.5)


async def _ended(world: World, node: str, pod: Pod, cid: str, seconds: float, *, networks: bool) -> None:
    await anyio.sleep(seconds)
    world.held.pop(cid, None)
    await world.delete(node, pod, cid, networks=networks)


async def closing(world: World) -> None:
    """A pool is disabled now and then, and gives out nothing meanwhile."""
    for _ in range(6):
        await anyio.sleep(world.random.uniform(0.05, 1.0))
        pool = world.random.choice(("v4", "v6"))
        await world.truth.patch(IPPOOL, pool, {"spec": {"disable": True}})
        world.ages.look()
        world.ages.frozen.add(pool)
        await anyio.sleep(world.random.uniform(0.1, 1.0))
        world.ages.frozen.discard(pool)
        await world.truth.patch(IPPOOL, pool, {"spec": {"disable": False}})


def conflict(number: int, *, seconds: float = 600.0) -> Story:
    """A pod whose IPv4 address somebody else turns out to have."""

    async def story(world: World) -> None:
        await anyio.sleep(world.random.uniform(0, world.arrival))
        node = world.random.choice(NODES)
        meta = ObjectMeta(name=f"clash-{number}", namespace=NAMESPACE)
        pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
        cid, result = await _started(world, node, pod, f"c{number:x}")
        address = _addresses(result)[0].partition("/")[0]
        ref = PodRef(namespace=NAMESPACE, name=meta.name, uid=pod.metadata.uid)
        disown = Disown(pod=ref, nic="eth0", container_id=cid, addresses=(address,), pools=("v4",), seen="02::1")
        world.ages.closed[address] = anyio.current_time() + seconds - 2.0
        while not await _disowned(world, node, disown):  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.2)
        await world.delete(node, pod, cid)
        await world.truth.delete(POD, meta.name, namespace=NAMESPACE)

    return story


async def _disowned(world: World, node: str, disown: Disown) -> bool:
    peer = Peer(account="system:serviceaccount:spiderpool:spiderpool-agent", node=node, role="agent")
    channel = world.network.channel(node, world.random.choice(world.replicas), peer=peer)
    try:
        reply = await channel.request(encode(disown), deadline=anyio.current_time() + 5.0)
    except TransportError:
        return False
    return isinstance(decode_response(reply), Released)


async def rewriting(world: World) -> None:
    """The original's agents on the same pools: they rewrite whole statuses and know no NIC, node or container."""
    for _ in range(20):
        await anyio.sleep(world.random.uniform(0.05, 0.5))
        pool = await world.truth.get(IPPOOL, world.random.choice(("v4", "v6")))
        text = pool.status.allocated_ips
        if not text:
            continue
        bare = {ip: {"pod": one["pod"], "podUid": one["podUid"]} for ip, one in json.loads(text).items()}
        status = {"allocatedIPs": json.dumps(bare), "withheldIPs": None}
        try:
            await world.truth.patch(
                IPPOOL,
                pool.metadata.name,
                {"status": status},
                subresource="status",
                resource_version=pool.metadata.resource_version,
            )
        except Conflict:
            continue


def _of_all(world: World, cid: str) -> tuple[str, ...]:
    """Addresses of all NICs of a sandbox, as the journal has them."""
    mine = sorted((one for one in world.entries() if one.container_id == cid), key=lambda one: one.ifname)
    return tuple(ip for one in mine for ip in one.addresses)


def _addresses(result: Result | None) -> tuple[str, ...]:
    return () if result is None else tuple(ip.address for ip in result.ips)
