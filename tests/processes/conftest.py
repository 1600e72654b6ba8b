"""The lab that the tests of a module share."""

import os
from collections.abc import Iterator

import pytest

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
