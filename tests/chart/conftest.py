"""A cluster into which nobody has installed anything, so that the chart has to bring it all."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ControlPlane, executable
from tests.servers.process import run_command

CHART = Path(__file__).parents[2] / "helm" / "spiderpool"

HOOK = "helm.sh/hook"

type Objects = dict[tuple[str, str], dict[str, Any]]
"""Rendered objects by kind and name."""
type Render = Callable[..., Objects]


@pytest.fixture(scope="session")
def empty_cluster(_progress: Callable[[str], None]) -> Iterator[ControlPlane]:
    with ControlPlane(progress=_progress) as server:
        yield server


@pytest.fixture(scope="session")
def helm(_progress: Callable[[str], None]) -> Path:
    return executable("helm", progress=_progress)


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Render:
    """Renders the chart without a cluster; arguments are those of ``--set``. With `hooks` these alone, else none."""

    def rendered(*settings: str, version: str = "1.36.0", hooks: bool = False) -> Objects:
        sets = [word for setting in settings for word in ("--set", setting)]
        argv = [str(helm), "template", "sp", str(CHART), "--namespace", "net", "--kube-version", version, *sets]
        text = run_command(argv, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
        every = [document for document in yaml.safe_load_all(text) if document]
        documents = [document for document in every if (HOOK in document["metadata"].get("annotations", {})) == hooks]
        objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
        assert len(objects) == len(documents), "an object is rendered twice"
        return objects

    return rendered


def ready_controller(cluster: ControlPlane, namespace: str, *, ready: bool = True) -> None:
    """What the controller manager would say of a replica that runs: the init hook waits for it."""
    cluster.request(
        "POST",
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        {
            "metadata": {
                "name": "spiderpool-controller-1",
                "labels": {"kubernetes.io/service-name": "spiderpool-controller"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.255.255.1"], "conditions": {"ready": ready}}],
            "ports": [{"name": "rpc", "port": 5723, "protocol": "TCP"}],
        },
    )
