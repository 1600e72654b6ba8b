"""The lab that the tests of a module share."""

import os
from collections.abc import Iterator

import pytest

from tests.processes import networks
from tests.processes.lab import Lab
from tests.servers import ControlPlane


@pytest.fixture(scope="module")
def lab(control_plane: ControlPlane) -> Iterator[Lab]:
    """Controller and two agents on the real API server, and pools of 300 addresses."""
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    with Lab(control_plane) as running:
        running.create_pools(300)
        yield running


@pytest.fixture(scope="module")
def all_kinds(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A controller that has all kinds, asked by the API server as the chart says it, and an agent."""
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    networks.install_kind(control_plane)
    settings = {
        "SPIDERPOOL_COORDINATOR_ENABLED": "true",
        "SPIDERPOOL_MULTUS_CONFIG_ENABLED": "true",
        "SPIDERPOOL_CNI_CONFIG_DIR": str(tmp_path_factory.mktemp("net.d")),
    }
    with Lab(control_plane, nodes=("n1",), environment=settings, webhooks=True) as running:
        yield running
