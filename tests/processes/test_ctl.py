"""spiderpoolctl against a real API server, with real controllers, agents and sandboxes behind it."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from ctl.main import main
from tests.processes.lab import CONTROLLER_ADDRESS, Lab, Pod

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

NONE = "no pool has a record of it: there is nothing to collect"
Ctl = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def proxied(lab: Lab) -> Lab:
    """A lab whose controller can be reached through the API server's proxy to its pod."""
    pods = f"/api/v1/namespaces/{lab.namespace}/pods"
    lab.control_plane.request(
        "PATCH",
        f"{pods}/controller-0/status",
        {"status": {"phase": "Running", "podIP": CONTROLLER_ADDRESS, "podIPs": [{"ip": CONTROLLER_ADDRESS}]}},
    )
    lab.control_plane.request(
        "POST",
        f"/apis/discovery.k8s.io/v1/namespaces/{lab.namespace}/endpointslices",
        {
            "metadata": {"name": "http", "labels": {"kubernetes.io/service-name": "spiderpool-controller"}},
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [CONTROLLER_ADDRESS],
                    "conditions": {"ready": False},
                    "targetRef": {"kind": "Pod", "namespace": lab.namespace, "name": "controller-0"},
                }
            ],
            "ports": [{"name": "http", "port": lab.health_ports["controller"], "protocol": "TCP"}],
        },
    )
    return lab


@pytest.fixture
def ctl(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """The program as the administrator: exit code, and what it printed as JSON, or its error."""
    monkeypatch.setenv("KUBECONFIG", str(lab.control_plane.admin_kubeconfig))

    def run(*argv: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(argv)
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out.startswith("{") else captured.out + captured.err

    return run


@pytest.fixture
def pod(lab: Lab, request: pytest.FixtureRequest) -> Pod:
    return lab.pod(request.node.name.replace("_", "-").lower()[:50])


def state(ctl: Ctl, address: str) -> dict[str, Any]:
    _, said = ctl("ip", "show", address, "-o", "json")
    (found,) = said["addresses"]
    return dict(found)


def test_who_has_what(lab: Lab, ctl: Ctl, pod: Pod) -> None:
    pod.start()
    for address in pod.addresses:
        seen = state(ctl, address)
        assert (seen["state"], seen["pod"], seen["uid"]) == ("used", f"{lab.namespace}/{pod.name}", pod.uid)
        assert (seen["node"], seen["container"]) == (pod.node, pod.cid[:12])
    _, said = ctl("ip", "show", "--pod", f"{lab.namespace}/{pod.name}", "-o", "json")
    assert sorted(a["address"] for a in said["addresses"]) == sorted(pod.addresses)
    _, said = ctl("get", "endpoints", "-n", lab.namespace, "-o", "json")
    assert pod.name in {item["metadata"]["name"] for item in said["items"]}
    assert ctl("doctor")[0] == 0
    pod.stop()


def test_a_live_pod_keeps_its_address_and_a_forced_release_is_noticed_by_the_owner(
    lab: Lab, ctl: Ctl, pod: Pod
) -> None:
    pod.start()
    address = pod.addresses[0]
    code, said = ctl("ip", "release", address, "--yes")
    assert code == 1 and "Deleting the pod releases it" in said
    assert state(ctl, address)["state"] == "used"
    code, said = ctl("ip", "release", address, "--yes", "--force")
    assert code == 0, said
    assert state(ctl, address)["state"] == "withheld"
    _, said = ctl("get", "endpoints", "-n", lab.namespace, "-o", "json")
    assert f'"{address}/' not in json.dumps(said) and f'"{pod.addresses[1]}/' in json.dumps(said)
    other = lab.pod(f"{pod.name[:40]}-other")
    other.start()  # the owner meets a conflict, reads again, and goes on
    assert address not in other.addresses
    assert state(ctl, other.addresses[0])["pod"] == f"{lab.namespace}/{other.name}"
    for one in (pod, other):
        one.stop()
    lab.wait_for(lambda: not {pod.uid, other.uid} & {record["podUid"] for record in lab.records().values()})


def test_a_pod_gets_the_address_that_was_set_for_it(lab: Lab, ctl: Ctl, pod: Pod) -> None:
    code, said = ctl("ip", "set", "10.6.0.200", "--pod", f"{lab.namespace}/{pod.name}", "--yes")
    assert code == 0, said
    pod.start()
    assert "10.6.0.200" in pod.addresses
    assert state(ctl, "10.6.0.200")["container"] == pod.cid[:12]
    code, said = ctl("ip", "set", "10.6.0.201", "--pod", f"{lab.namespace}/{pod.name}", "--yes")
    assert code == 1 and "has 10.6.0.200/16 of pool" in said
    code, said = ctl("ip", "set", "10.6.0.201", "--pod", f"{lab.namespace}/nil", "--yes")
    assert code == 1 and "there is no pod" in said
    pod.stop()
    lab.wait_for(lambda: "10.6.0.200" not in lab.records())


def test_what_was_set_counts_though_another_pool_comes_first(lab: Lab, ctl: Ctl) -> None:
    names = [f"{lab.namespace}-{word}" for word in ("first", "second")]
    for number, name in enumerate(names):
        lab.create_pool(name, subnet="10.7.0.0/16", ips=[f"10.7.{number}.10-10.7.{number}.19"])
    for name in names:
        used = lab.pod(f"uses-{name[-6:].strip('-')}", pools={"ipv4": [name]})
        used.start()  # the owner has read the pool
        used.stop()
    pod = lab.pod("gets-what-was-set", pools={"ipv4": names})
    code, said = ctl("ip", "set", "10.7.1.15", "--pod", f"{lab.namespace}/{pod.name}", "--yes")
    assert code == 0, said
    time.sleep(0.5)  # for the replica's watch to see it: people are slower
    pod.start()
    assert "10.7.1.15" in pod.addresses
    pod.stop()


def test_what_a_link_carries_is_not_collected_and_then_it_is(proxied: Lab, ctl: Ctl, pod: Pod) -> None:
    pod.start()
    address = pod.addresses[0]
    gc = ("gc", "-n", proxied.namespace, "--address", address, "-o", "json")
    code, said = ctl(*gc, "--wait", "2")
    assert [told["answer"] for told in said["told"]] == ["ok"]
    assert (code, said["released"]) == (1, False), "the pod lives"
    proxied.control_plane.kubectl(
        "delete", "pod", pod.name, "-n", proxied.namespace, "--force", "--grace-period=0", "--wait=false"
    )
    code, said = ctl(*gc, "--wait", "4")
    assert (code, said["released"]) == (1, False), "its sandbox still carries it"
    assert "still carries it" in said["why"]
    assert pod.netns is not None
    pod.netns.__exit__(None, None, None)  # the sandbox dies without a DEL
    proxied.wait_for(lambda: ctl(*gc, "--wait", "1")[1] == f"spiderpoolctl gc: --address: {address}: {NONE}\n")


def test_what_is_explained_is_what_happens(lab: Lab, ctl: Ctl, pod: Pod) -> None:
    name = f"{lab.namespace}/{pod.name}"
    _, before = ctl("explain", "pod", name, "-n", lab.namespace, "-o", "json")
    (nic,) = before["nics"]
    foretold = [it["address"].partition("/")[0] for it in nic["candidates"] if it["address"]]
    assert foretold and before["holds"] == []
    pod.start()
    assert sorted(pod.addresses) == sorted(foretold)
    _, after = ctl("explain", "pod", name, "-n", lab.namespace, "-o", "json")
    assert sorted(it["address"] for it in after["holds"]) == sorted(foretold)
    assert {it["why"] for it in after["holds"]} == {f"the first of {nic['source']}"}
    pool = next(it["pool"] for it in after["holds"])
    _, said = ctl("explain", "pool", pool, "-n", lab.namespace, "-o", "json")
    used = next(part for part in said["parts"] if part["state"] == "used")
    assert used["count"] >= 1 and said["refuses"] is None
    assert said["next_address"].partition("/")[0] not in pod.addresses
    pod.stop()


def test_who_had_an_address_is_known_after_the_owner_is_gone(lab: Lab, ctl: Ctl, pod: Pod) -> None:
    pod.start()
    address, name = pod.addresses[0], f"{lab.namespace}/{pod.name}"
    _, said = ctl("history", "ip", address, "-n", lab.namespace, "-o", "json")
    assert (said["holders"][-1]["pod"], said["holders"][-1].get("until")) == (name, None)
    pod.stop()
    lab.wait_for(lambda: pod.uid not in {record["podUid"] for record in lab.records().values()})
    lab.processes["controller"].stop()  # it writes down what it has noted
    _, said = ctl("history", "ip", address, "-n", lab.namespace, "-o", "json")
    (mine,) = [line for line in said["holders"] if line["uid"] == pod.uid]
    assert (mine["pod"], mine["how"], mine["end"], mine["container"]) == (name, "granted", "released", pod.cid[:12])
    assert (mine["node"], mine.get("noticed")) == (pod.node, None), "both ends were noted when they happened"
    assert mine["from"] <= mine["until"]
    lab.start_controller()
    lab.wait_ready()
