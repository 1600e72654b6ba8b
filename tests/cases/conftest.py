"""One lab for all cases, and a world for each, which is audited when the case has ended."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import kubevirt
from tests.cases.kubelet import Kubelets
from tests.cases.world import World
from tests.conftest import kept_logs
from tests.processes import networks
from tests.processes.lab import Lab
from tests.servers import ControllerManager, ControlPlane

NODES = ("n1", "n2", "n3")
CONTROLLERS = 2
SETTINGS = {
    # A dead node is dead soon: nobody waits two minutes here.
    "SPIDERPOOL_GC_NODE_GRACE": "2",
    # Nor ten for an address that somebody had.
    "SPIDERPOOL_IP_QUARANTINE_DURATION": "5",
    "SPIDERPOOL_MULTUS_CONFIG_ENABLED": "true",
}
INJECTED = "podwebhook-included"
"""The one namespace whose pods are shown to the controllers: others' cases do without them for a while."""
VALUES = tuple(
    f"spiderpoolController.podResourceInject.{value}" for value in ("enabled=true", f"namespacesInclude={{{INJECTED}}}")
)
COORDINATOR = {
    "apiVersion": "spiderpool.spidernet.io/v2beta1",
    "kind": "SpiderCoordinator",
    "metadata": {"name": "default"},
    "spec": {"podCIDRType": "none", "hijackCIDR": ["169.254.0.0/16"]},
}
"""As the chart's hook makes it, for pods that have no other network."""
COORDINATORS = "/apis/spiderpool.spidernet.io/v2beta1/spidercoordinators"


@pytest.fixture(scope="session")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of CNI configurations of the node that the controllers run on, empty."""
    return tmp_path_factory.mktemp("net.d")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, control_plane: ControlPlane, configurations: Path) -> Iterator[Lab]:
    """Controllers and agents as processes, with the rights that the chart gives them."""
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    kubevirt.install(control_plane)
    networks.install_kind(control_plane)
    settings = {
        **SETTINGS,
        "SPIDERPOOL_COORDINATOR_ENABLED": "true",
        "SPIDERPOOL_CNI_CONFIG_DIR": str(configurations),
    }
    control_plane.request("POST", COORDINATORS, COORDINATOR)
    request.addfinalizer(lambda: control_plane.request("DELETE", f"{COORDINATORS}/default", check=False))  # noqa: PT021
    with Lab(
        control_plane, controllers=CONTROLLERS, nodes=NODES, environment=settings, webhooks=True, values=VALUES
    ) as running:
        for node in NODES:
            # Admission taints a new node; who takes that off again does not run here.
            change = {"metadata": {"labels": {"kubernetes.io/hostname": node}}, "spec": {"taints": None}}
            control_plane.request("PATCH", f"/api/v1/nodes/{node}", change)
            set_ready(control_plane, node, ready=True)
        yield running
        if target := kept_logs(request):
            for log in running.folder.glob("*.log"):
                shutil.copy(log, target / log.name)


@pytest.fixture(scope="session")
def kubelets(control_plane: ControlPlane, lab: Lab) -> Iterator[Kubelets]:
    """The controllers of Kubernetes, really; its scheduler and kubelets, played."""
    with ControllerManager(control_plane), Kubelets(lab) as running:
        yield running


@pytest.fixture
def world(lab: Lab, kubelets: Kubelets, request: pytest.FixtureRequest) -> Iterator[World]:
    """Namespace and pools of one case. In the end pools, pods and endpoints agree; then all goes, and nothing stays."""
    area = request.node.path.stem.removeprefix("test_").replace("_", "-")
    number = request.node.name.split("_")[1].lower()
    case = World(lab, kubelets, f"{area}-{number}")
    failed_before = request.session.testsfailed
    try:
        yield case
        if request.session.testsfailed == failed_before:
            case.settled()
    finally:
        case.close()


def set_ready(control_plane: ControlPlane, node: str, *, ready: bool) -> None:
    """What kubelet, or the node controller, says of a node."""
    condition = {"type": "Ready", "status": "True" if ready else "Unknown", "reason": "Played"}
    control_plane.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}})
