"""Events on a real API server, with the rights of the chart: what `kubectl describe` says of a pod and of a pool."""

from typing import Any

import pytest

from tests.processes.lab import CniError, Lab, Pod, call

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]


def events(lab: Lab, reason: str, namespace: str = "") -> list[dict[str, Any]]:
    path = f"/api/v1/namespaces/{namespace or lab.namespace}/events?fieldSelector=reason={reason}"
    return list(lab.control_plane.request("GET", path).body["items"])


@pytest.fixture
def pool(lab: Lab) -> str:
    """One with a single address."""
    name = f"{lab.namespace}-one"
    lab.create_pool(name, subnet="10.8.0.0/16", ips=["10.8.0.10"])
    return name


def fail(pod: Pod) -> str:
    pod.new_sandbox()
    with pytest.raises(CniError) as caught:
        pod.add()
    pod.stop()
    return str(caught.value)


def test_a_pod_that_gets_no_address_and_the_pool_that_is_full(lab: Lab, pool: str) -> None:
    first, second = (lab.pod(name, pools={"ipv4": [pool]}) for name in ("has-it", "wants-it"))
    first.start()
    for _ in range(2):
        assert pool in fail(second)
    lab.wait_for(lambda: events(lab, "FailedAllocate") and events(lab, "PoolExhausted", "default"))
    (failed,) = events(lab, "FailedAllocate")
    assert failed["involvedObject"]["name"] == "wants-it"
    assert failed["involvedObject"]["uid"] == second.uid
    assert failed["type"] == "Warning"
    assert f"{pool}: rejected by full: wanted a free address, found all 1 taken" in failed["message"]
    assert failed["source"]["component"] == "spiderpool-controller"
    # Two tries, one event: the next write says how many there were.
    lab.wait_for(lambda: [event["count"] for event in events(lab, "FailedAllocate")] == [2])
    (exhausted,) = [e for e in events(lab, "PoolExhausted", "default") if e["involvedObject"]["name"] == pool]
    assert exhausted["involvedObject"]["kind"] == "SpiderIPPool"
    described = lab.control_plane.kubectl("-n", lab.namespace, "describe", "pod", "wants-it")
    assert "FailedAllocate" in described
    assert "rejected by full" in described
    assert pool in lab.control_plane.kubectl("describe", "spiderippool", pool)
    first.stop()


def test_pools_that_overlap_are_told_on_both(lab: Lab) -> None:
    names = [f"{lab.namespace}-{word}" for word in ("this", "that")]
    for name in names:
        lab.create_pool(name, subnet="10.9.0.0/16", ips=["10.9.0.10-10.9.0.12"])
    pod = lab.pod("in-two", pools={"ipv4": [names[0]]})
    assert "overlap" in fail(pod)

    def told() -> set[str]:
        return {event["involvedObject"]["name"] for event in events(lab, "PoolOverlap", "default")}

    lab.wait_for(lambda: told() >= set(names))


def test_controllers_that_are_gone_are_told_and_are_no_reason_to_take_no_pods(lab: Lab) -> None:
    node = lab.nodes[1]
    assert events(lab, "NoController") == []
    lab.kill("controller")
    try:
        lab.wait_for(lambda: events(lab, "NoController"))
        (told,) = events(lab, "NoController")
        assert told["involvedObject"]["name"] == f"agent-{node}"
        # A runtime that hears that an ADD is not possible makes the node NotReady.
        environment = {"SPIDERPOOL_SOCKET": str(lab.socket(node))}
        assert call(lab.plugins / "macvlan", "STATUS", lab.config(node), environment) == {}
    finally:
        lab.start_controller()
        lab.wait_ready()


def test_what_makes_every_add_fail_is_said_to_the_runtime(lab: Lab) -> None:
    node = lab.nodes[0]
    environment = {"SPIDERPOOL_SOCKET": str(lab.socket(node))}
    assert call(lab.plugins / "macvlan", "STATUS", lab.config(node), environment) == {}
    journal = lab.folder / node / "journal"
    journal.rename(journal.with_name("aside"))
    try:
        with pytest.raises(CniError, match=r'"code": 50.*journal.* cannot be written'):
            call(lab.plugins / "macvlan", "STATUS", lab.config(node), environment)
    finally:
        journal.with_name("aside").rename(journal)
    assert call(lab.plugins / "macvlan", "STATUS", lab.config(node), environment) == {}
