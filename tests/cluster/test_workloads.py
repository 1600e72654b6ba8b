"""Whose address is whose over the lives of pods: names keep theirs, what nobody needs comes back, a full pool waits.

Every test ends with the audit of pools, SpiderEndpoints, journals and links, and none of them finds a leak or a double.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pytest

from tests.cluster.audit import Record, addresses, pool_records, settled
from tests.cluster.carriers import Conflicts
from tests.cluster.lab.cluster import CORE
from tests.cluster.product import Product, is_ready, pools
from tests.cluster.workload import Deployment, StatefulSet, fetch, sandbox_failures

pytestmark = pytest.mark.timeout(500)

SCALE: Final = int(os.environ.get("SPIDERPOOL_TEST_ROLL", "30"))
ROLLS: Final = 3
ROOM: Final = SCALE * 11 // 10
"""Addresses of the pool that the rolled Deployment has. Its surge, by default a quarter, does not find room."""

AT_ONCE: Final[list[dict[str, Any]]] = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
    for key in ("not-ready", "unreachable")
]
"""Kubernetes waits five minutes before it gives up the pods of a node."""

OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"


# ------------------------------------------------------------------ a pool with hardly any room


@pytest.fixture
def rolled(product: Product) -> Iterator[Deployment]:
    cluster, tight = product.cluster, pools(name="tight", block=20, first=1, last=ROOM, default=False)
    cluster.apply(*tight)
    annotation = {"ipam.spidernet.io/ippool": '{"ipv4":["tight-v4"],"ipv6":["tight-v6"]}'}
    made = Deployment(cluster, "rolled", grace=0, bare=True, annotations=annotation)
    yield made
    made.remove()
    settled(cluster, expect=0)
    cluster.delete(*tight)


@pytest.mark.timeout(500 + 10 * SCALE)
@pytest.mark.usefixtures("steady_nodes")
def test_a_deployment_is_rolled_three_times_on_a_pool_with_hardly_any_room(
    product: Product, rolled: Deployment, terminal: Callable[[str], None]
) -> None:
    """Old pods still hold addresses when new ones want them: these find it full, and start a little later."""
    cluster = product.cluster
    failed = sandbox_failures(cluster)
    seconds = [_timed(lambda: rolled.scale(SCALE))]
    assert sandbox_failures(cluster) == failed
    settled(cluster, expect=SCALE)
    for _ in range(ROLLS):
        uids = {item["metadata"]["uid"] for item in rolled.pods()}
        with Conflicts(cluster) as conflicts:
            seconds.append(_timed(lambda: rolled.roll(timeout=200 + SCALE)))
        assert conflicts.looks > 1 and not conflicts.found
        settled(cluster, expect=SCALE)
        assert not uids & {item["metadata"]["uid"] for item in rolled.pods()}
    seconds.append(_timed(lambda: rolled.scale(0)))
    settled(cluster, expect=0)
    refused = {message: times for message, times in sandbox_failures(cluster).items() if message not in failed}
    assert [message for message in refused if "rejected by full" not in message] == []
    up, *rolls, down = (f"{it:.0f}" for it in seconds)
    terminal(f"{SCALE} pods up in {up} s, rolled in {', '.join(rolls)} s, down in {down} s")
    terminal(f"{sum(refused.values())} sandboxes found the pool full and were made later")


def _timed(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


# ------------------------------------------------------------------ names


@pytest.fixture
def plain(product: Product) -> Iterator[Deployment]:
    """Pods without names of their own."""
    made = Deployment(product.cluster, "plain", tolerations=AT_ONCE)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def named(product: Product) -> Iterator[StatefulSet]:
    """Three pods with names, which live through everything that happens to them here."""
    made = StatefulSet(product.cluster, "named", tolerations=AT_ONCE)
    made.scale(3)
    yield made
    made.remove()
    settled(product.cluster, expect=0)


def _held(named: StatefulSet) -> dict[str, list[str]]:
    return {item["metadata"]["name"]: addresses(item) for item in named.pods()}


def _uids(named: StatefulSet) -> set[str]:
    return {item["metadata"]["uid"] for item in named.pods()}


def _nodes(named: StatefulSet) -> set[str]:
    return {item["spec"]["nodeName"] for item in named.pods()}


def _delete(named: StatefulSet, *flags: str, away_from: str) -> None:
    """Delete all pods, while none may start on a node, and wait for their successors elsewhere."""
    cluster, before = named.cluster, _uids(named)
    cluster.kubectl("cordon", away_from)
    try:
        cluster.kubectl("delete", "pod", f"--selector=app={named.name}", "--wait=false", *flags)
        cluster.wait(lambda: not before & _uids(named), 60, "other pods of the same names")
        named.settle(3)
    finally:
        cluster.kubectl("uncordon", away_from)


def _reach_each_other(named: StatefulSet) -> None:
    held = _held(named)
    names = list(held)
    for source, target in zip(names, names[1:] + names[:1], strict=True):
        for address in held[target]:
            assert fetch(named.cluster, source, address) == "ok\n"


@pytest.mark.parametrize(
    ("away_from", "flags"), [("n2", ()), ("n1", ("--force", "--grace-period=0"))], ids=["with-grace", "by-force"]
)
def test_deleted_pods_of_a_statefulset_have_their_addresses_on_another_node(
    named: StatefulSet, away_from: str, flags: tuple[str, ...]
) -> None:
    """By force, the name is free before the sandbox is gone: its successor has to wait for that."""
    before = _held(named)
    with Conflicts(named.cluster) as conflicts:
        _delete(named, *flags, away_from=away_from)
    assert not conflicts.found
    assert _held(named) == before
    assert away_from not in _nodes(named)
    settled(named.cluster, expect=3)
    _reach_each_other(named)


def test_a_statefulset_keeps_its_addresses_over_a_drain(product: Product, named: StatefulSet) -> None:
    cluster, before, uids = named.cluster, _held(named), _uids(named)
    assert "n2" in _nodes(named)
    try:
        cluster.kubectl("drain", "n2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s", timeout=70)
        named.settle(3)
        assert (_held(named), _nodes(named)) == (before, {"n1"})
        assert not uids <= _uids(named)
        settled(cluster, expect=3)
    finally:
        cluster.kubectl("uncordon", "n2")
    _reach_each_other(named)
    product.rolled_out()


def test_of_a_dead_node_names_keep_their_addresses_and_all_others_come_back(
    product: Product, named: StatefulSet, plain: Deployment, terminal: Callable[[str], None]
) -> None:
    """First by the grace for silent nodes, while the pods are still there; then an administrator says it is dead."""
    cluster, node = product.cluster, product.cluster.node("n2")
    plain.scale(4)
    _delete(named, away_from="n1")
    before, began = _held(named), time.monotonic()
    mine = {Record(f"default/{name}", ip) for name, held in before.items() for ip in held}
    dead = _records_of(item for item in plain.pods() if item["spec"]["nodeName"] == "n2")
    assert dead and _nodes(named) == {"n2"}

    def told(what: str) -> None:
        terminal(f"{time.monotonic() - began:.0f} s after the power was cut: {what}")

    node.power_off()
    try:
        cluster.wait(lambda: not dead & set(pool_records(cluster)), 120, "the dead pods' addresses are free")
        told("stateless addresses are free")
        assert mine <= set(pool_records(cluster))
        cluster.kubectl("taint", "node", "n2", f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute")
        named.settle(3)
        plain.settle(4)
        told("all pods run on the other node")
        assert (_held(named), _nodes(named)) == (before, {"n1"})
        settled(cluster, expect=7)
        _reach_each_other(named)
    finally:
        node.power_on()
        cluster.kubectl("taint", "node", "n2", f"{OUT_OF_SERVICE}-")
    cluster.wait(lambda: is_ready(cluster.get(f"{CORE}/nodes/n2")), 60, "n2 is Ready again")
    product.rolled_out()
    told("the node is back")
    # Its journal knows addresses that others have by now: they stay with those.
    settled(cluster, expect=7)
    assert _held(named) == before


def _records_of(pods: Iterable[dict[str, Any]]) -> set[Record]:
    return {Record(f"default/{item['metadata']['name']}", ip) for item in pods for ip in addresses(item)}
