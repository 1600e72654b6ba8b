"""Clusters for tests; the logs of one are kept in build/reports/cluster when a test that uses it fails."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.lab import Cluster
from tests.cluster.lab.cluster import CORE
from tests.cluster.lab.requirements import is_root
from tests.cluster.lab.state import Identity, StateFolder
from tests.cluster.networks import lay_networks
from tests.cluster.product import Product, image, is_ready, pools
from tests.servers.provide import CHECKOUT

HERE: Final = Path(__file__).parent
REPORTS: Final = CHECKOUT / "build" / "reports" / "cluster"
WAIT_SECONDS: Final = 900.0
"""Another run of the tests on this machine may have a cluster of the same name."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is no lab; with root, what else is missing fails the tests that need it."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.node)
            if not is_root():
                item.add_marker(pytest.mark.skip(reason="the cluster lab needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Collects the logs of every cluster that a failed test asked for."""
    report = yield
    if report.failed and report.when != "teardown" and HERE in item.path.parents:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Product):
                value = value.cluster  # noqa: PLW2901 - a product is seen by its cluster
            if isinstance(value, Cluster):
                target = REPORTS / re.sub(r"[^\w.-]+", "-", item.name) / name
                with_suppressed_errors(value.logs_to, target)
                report.sections.append(("cluster", f"logs in {target}"))
    return report


def with_suppressed_errors(collect: Callable[[Path], None], target: Path) -> None:
    """A failure to collect logs must not hide the failure of the test."""
    try:
        collect(target)
    except Exception as problem:  # noqa: BLE001 - see above
        target.mkdir(parents=True, exist_ok=True)
        (target / "collecting.txt").write_text(repr(problem))


@pytest.fixture(scope="session")
def cluster(_progress: Callable[[str], None]) -> Iterator[Cluster]:
    """Two nodes that are not Ready, as nothing has installed a CNI configuration yet. The session shares it."""
    with Cluster.up(name="test", wait=WAIT_SECONDS, progress=_progress) as made:
        yield made


@pytest.fixture(scope="module")
def bridge_cluster(_progress: Callable[[str], None]) -> Iterator[Cluster]:
    """Two nodes with an ordinary bridge CNI. A test may take it down."""
    owner = Identity.of(os.getpid())
    made = Cluster.start(
        name="test-bridge",
        cni="bridge",
        owner=owner,
        prepare={"n2": [["rm", "/opt/cni/bin/macvlan"]]},
        wait=WAIT_SECONDS,
        progress=_progress,
    )
    try:
        yield made
    finally:
        if StateFolder("test-bridge").exists:
            made.down()


@pytest.fixture(scope="module")
def reference_cluster(_progress: Callable[[str], None]) -> Iterator[Cluster]:
    """Two nodes with the reference macvlan and host-local on the LAN."""
    with Cluster.up(name="test-reference", cni="ref", wait=WAIT_SECONDS, progress=_progress) as made:
        yield made


@pytest.fixture(scope="session")
def product(cluster: Cluster) -> Product:
    """Our chart on `cluster`, installed while its nodes were NotReady, pools of both families, traces to Jaeger."""
    nodes = cluster.items(f"{CORE}/nodes")
    assert not any(is_ready(node) for node in nodes), "a node is Ready before anything gave it a network"
    # A dead node is dead soon: nobody waits two minutes here.
    values = {"otlpEndpoint": cluster.jaeger().otlp_endpoint, "ipam": {"gc": {"nodeGrace": 10}}}
    installed = Product(cluster, image(), values=values).load()
    installed.install()
    cluster.apply(*pools())
    return installed


@pytest.fixture(scope="session")
def networked(product: Product) -> Product:
    """`product`, with a second LAN and definitions of further networks."""
    lay_networks(product.cluster)
    return product


@pytest.fixture
def steady_nodes(product: Product) -> Iterator[None]:
    """The nodes are Ready all the time."""
    before = _ready_transitions(product.cluster)
    yield
    changed = {name: at for name, at in _ready_transitions(product.cluster).items() if before.get(name) != at}
    assert not changed, f"nodes whose Ready condition changed: {changed}"


def _ready_transitions(cluster: Cluster) -> dict[str, str]:
    return {
        node["metadata"]["name"]: next(
            it["lastTransitionTime"] for it in node["status"]["conditions"] if it["type"] == "Ready"
        )
        for node in cluster.items(f"{CORE}/nodes")
    }
