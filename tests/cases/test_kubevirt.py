"""Area kubevirt, as far as addresses go: a virtual machine keeps its own, over restarts and moves."""

import pytest

from tests.cases.kubevirt import Machine
from tests.cases.workloads import ippool, ippools, networks
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def holder(world: World, *pods: str, machine: str = "vm") -> None:
    """The addresses of these pods are kept under the machine's name."""
    world.holders |= {f"{world.namespace}/{pod}": f"{world.namespace}/{machine}" for pod in pods}


def test_F00001_restart_keeps_the_addresses(world: World) -> None:
    pools = world.pair()
    machine = Machine(world, "vm", ippool(**pools))
    machine.start()
    first = machine.launcher()
    holder(world, first)
    before = world.pod(first)
    assert list(world.endpoints()) == ["vm"]
    world.settled()

    machine.stop()
    world.gone(first)
    world.kept.add(f"{world.namespace}/vm")
    machine.start()
    second = machine.launcher()
    holder(world, second)
    after = world.pod(second)
    assert after.addresses == before.addresses
    assert world.endpoints()["vm"]["status"]["current"]["uid"] == after.uid
    world.kept.clear()
    world.settled()

    # The machine itself goes, and its instance with it: now the addresses are free.
    world.delete("VirtualMachine", "vm")
    world.gone(second)
    world.wait(lambda: not any(world.records(pool) for names in pools.values() for pool in names), "they are free")
    world.wait(lambda: not world.endpoints(), "the endpoint goes")


def moving(world: World, pools: dict[str, list[str]]) -> tuple[Machine, str, str]:
    """A machine in the middle of a move called "move"; the pods that it leaves and goes to."""
    machine = Machine(world, "vm", ippool(**pools))
    machine.start()
    source = machine.launcher(node="n1")
    holder(world, source)
    world.pod(source)
    machine.migrate("move")
    target = machine.launcher(migration="move", node="n2")
    holder(world, target)
    return machine, source, target


def test_F00002_live_migration_keeps_the_addresses(world: World) -> None:
    pools = world.pair()
    machine, source, target = moving(world, pools)
    before = world.pod(source)
    after = world.pod(target)
    assert after.addresses == before.addresses
    assert world.pod(source).addresses == before.addresses
    uids = {r["podUid"] for names in pools.values() for pool in names for r in world.records(pool).values()}
    assert uids == {after.uid}

    machine.migrated("move")
    world.delete("Pod", source)
    world.gone(source)
    world.settled()
    assert world.pod(target).addresses == before.addresses
    assert not world.kubelets.failures.get(f"{world.namespace}/{target}")


def test_F00002_without_a_migration_two_launchers_do_not_share(world: World) -> None:
    pools = world.pair()
    machine = Machine(world, "vm", ippool(**pools))
    machine.start()
    source = machine.launcher(node="n1")
    holder(world, source)
    before = world.pod(source)
    second = machine.launcher(node="n2")
    world.refusal(second, match="node n1")
    world.settled()
    holder(world, second)
    world.delete("Pod", source)
    assert world.pod(second).addresses == before.addresses


def test_F00003_several_nics(world: World) -> None:
    pools = [world.pair(lan=0), world.pair(lan=1)]
    nics = [{"interface": nic, **pair} for nic, pair in zip(("eth0", "net1"), pools, strict=True)]
    machine = Machine(world, "vm", {**ippools(*nics), **networks(world.network("second"))})
    machine.start()
    first = machine.launcher()
    holder(world, first)
    before = world.pod(first)
    for nic, pair in zip(("eth0", "net1"), pools, strict=True):
        world.assert_from(before, *pair["ipv4"], *pair["ipv6"], nic=nic)
    machine.stop()
    world.gone(first)
    machine.start()
    second = machine.launcher()
    holder(world, second)
    assert world.pod(second).addresses == before.addresses
