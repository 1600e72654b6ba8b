"""What may be written, asked of the real API server with the webhooks registered as the chart does it, over TLS."""

from typing import Any

import pytest

from tests.cases.world import World
from tests.processes.lab import IPPOOLS, POOL_TYPE

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def tried(world: World, spec: dict[str, Any], name: str = "tried") -> Any:
    """What the API server answers to a pool that it is not to store."""
    body = {**POOL_TYPE, "metadata": {"name": f"{world.name}-{name}"}, "spec": spec}
    return world.control_plane.request("POST", f"{IPPOOLS}?dryRun=All", body, check=False)


def test_a_pool_is_completed(world: World) -> None:
    network = world.subnet()
    first = network.network_address + 0x20
    ips = [f"{first + 2}-{first + 3}", str(first + 1), str(first)]
    answer = tried(world, {"subnet": str(network), "ips": ips})
    assert answer.status == 201, answer
    assert answer.body["metadata"]["finalizers"] == ["spiderpool.spidernet.io"]
    label = str(network).replace(".", "-").replace("/", "-")
    assert answer.body["metadata"]["labels"] == {"ipam.spidernet.io/ippool-cidr": label}
    assert answer.body["spec"]["ipVersion"] == 4
    assert answer.body["spec"]["ips"] == [f"{first}-{first + 3}"]


def test_all_that_is_wrong_is_said_at_once(world: World) -> None:
    network = world.subnet()
    spec = {
        "subnet": str(network),
        "gateway": "10.0.0.1",
        "ips": ["nonsense"],
        "routes": [{"dst": "0.0.0.0/0", "gw": "x"}],
    }
    answer = tried(world, spec)
    assert answer.status == 422, answer
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == [
        "spec.ips[0]",
        "spec.gateway",
        "spec.routes[0].dst",
        "spec.routes[0].gw",
    ]
    assert "is invalid" in answer.body["message"]
