"""Whatever is wrong with a call is one CNI error object that names it; exit code 1; nothing is left behind."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.processes.lab import Lab, Pod

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]


def refused(
    pod: Pod, *, config: Mapping[str, Any] | bytes | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The error object of an ADD, after checks that hold for every error."""
    body = config if isinstance(config, bytes) else json.dumps(config or pod.lab.config(pod.node)).encode()
    full = {"CNI_COMMAND": "ADD", "CNI_PATH": str(pod.lab.plugins), **pod.environment(), **(environment or {})}
    done = subprocess.run(
        [str(pod.lab.plugins / "macvlan")],
        input=body,
        capture_output=True,
        timeout=60,
        check=False,
        env={key: value for key, value in full.items() if value},
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    assert {"cniVersion", "code", "msg"} <= set(document)
    assert document["code"] > 0
    return document


@pytest.fixture
def pod(lab: Lab, request: pytest.FixtureRequest) -> Pod:
    made = lab.pod(request.node.name.replace("_", "-").lower()[:60])
    made.new_sandbox()
    return made


@pytest.fixture(autouse=True)
def _nothing_left(lab: Lab) -> Any:
    before = lab.records()
    yield
    lab.wait_for(lambda: lab.records() == before)
    lab.wait_for(lambda: not lab.endpoints())


def test_truncated_json(pod: Pod) -> None:
    body = json.dumps(pod.lab.config(pod.node)).encode()[:-7]
    document = refused(pod, config=body)
    assert document["code"] == 6
    assert "stdin" in document["msg"]


def test_wrong_version(pod: Pod) -> None:
    document = refused(pod, config=pod.lab.config(pod.node, cniVersion="9.9.9"))
    assert document["code"] == 1
    assert "9.9.9" in document["msg"]
    assert "1.1.0" in json.dumps(document)


def test_missing_pod_name(pod: Pod) -> None:
    document = refused(pod, environment={"CNI_ARGS": "K8S_POD_NAMESPACE=default"})
    assert document["code"] == 4
    assert "K8S_POD_NAME" in document["msg"]


def test_five_megabytes_of_stdin(pod: Pod) -> None:
    config = pod.lab.config(pod.node, padding="x" * 5_000_000)
    document = refused(pod, config=config)
    assert "stdin" in document["msg"]


def test_annotation_that_is_no_json(lab: Lab) -> None:
    pod = Pod(lab, "bad-annotation", "n1", annotations={"ipam.spidernet.io/ippool": "{ipv4: ["})
    pod.new_sandbox()
    document = refused(pod)
    assert "ipam.spidernet.io/ippool" in document["msg"]
    assert "{ipv4: [" in json.dumps(document["msg"])


def test_pool_that_does_not_exist(lab: Lab) -> None:
    pod = lab.pod("no-such-pool", pools={"ipv4": ["nowhere"]})
    pod.new_sandbox()
    document = refused(pod)
    assert "nowhere" in document["msg"] + document.get("details", "")


def test_full_pool_leaves_nothing_of_the_other_family(lab: Lab) -> None:
    small, large = f"small-{lab.namespace}", f"large-{lab.namespace}"
    lab.create_pool(small, ipVersion=4, subnet="10.7.0.0/24", ips=["10.7.0.5"])
    lab.create_pool(large, ipVersion=6, subnet="fd00:7::/64", ips=["fd00:7::5-fd00:7::50"])
    pools = {"ipv4": [small], "ipv6": [large]}
    first = lab.pod("takes-the-last", pools=pools)
    first.new_sandbox()
    first.add()
    second = lab.pod("comes-too-late", pools=pools)
    second.new_sandbox()
    document = refused(second)
    assert small in document["msg"]
    lab.wait_for(lambda: not any(record["podUid"] == second.uid for record in lab.records().values()))
    first.delete()


def test_parent_interface_that_does_not_exist(pod: Pod) -> None:
    document = refused(pod, config=pod.lab.config(pod.node, master="nope0"))
    assert "master" in document["msg"]
    assert "nope0" in document["msg"]


def test_pod_of_another_node(lab: Lab) -> None:
    pod = lab.pod("elsewhere", node="n2")
    pod.new_sandbox()
    pod.node = "n1"  # the runtime of n1 asks for a pod that is bound to n2
    document = refused(pod)
    assert "n2" in document["msg"]


def test_unreachable_api_server(lab: Lab, pod: Pod) -> None:
    lab.control_plane.stop_apiserver()
    try:
        document = refused(pod)
    finally:
        lab.control_plane.start_apiserver()
    assert document["code"] == 11


def test_agent_that_does_not_run(pod: Pod) -> None:
    document = refused(pod, environment={"SPIDERPOOL_SOCKET": "/nonexistent/spiderpool.sock"})
    assert document["code"] == 11
    assert "/nonexistent/spiderpool.sock" in document["msg"]


def test_negative_control_a_good_call_is_not_refused(lab: Lab) -> None:
    good = lab.pod("good")
    good.start()
    assert set(lab.endpoints()) == {"good"}
    good.stop()
