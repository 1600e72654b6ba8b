"""A pod deleted by force whose agent has lost its journal: the real agent looks at the real kernel, and is believed."""

import time
import urllib.error
import urllib.request

import pytest

from tests.processes.lab import Lab, Pod

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(120)]


def delete_by_force(lab: Lab, pod: Pod) -> None:
    path = f"/api/v1/namespaces/{lab.namespace}/pods/{pod.name}?gracePeriodSeconds=0"
    lab.control_plane.request("DELETE", path)


def look_at_everything(lab: Lab) -> None:
    url = f"http://127.0.0.1:{lab.health_ports['controller']}/v1/ipam/gc_ips"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5) as answer:
        assert answer.status == 200


def lose_journal(lab: Lab, node: str) -> None:
    lab.kill(node)
    for entry in lab.journal(node):
        entry.unlink()
    lab.start_agent(node)
    lab.wait_ready()


def test_what_a_link_carries_stays_and_goes_with_the_link(lab: Lab) -> None:
    pod, bystander = lab.pod("forced"), lab.pod("bystander")
    pod.start()
    bystander.start()
    kept, others = set(pod.addresses), set(bystander.addresses)
    lose_journal(lab, pod.node)
    delete_by_force(lab, pod)
    for _ in range(3):
        look_at_everything(lab)
        time.sleep(1.0)
        assert set(lab.records()) == kept | others
    assert pod.netns is not None
    pod.netns.__exit__(None, None, None)
    look_at_everything(lab)
    lab.wait_for(lambda: set(lab.records()) == others, seconds=20)
    lab.wait_for(lambda: set(lab.endpoints()) == {"bystander"})
    bystander.stop()
    lab.wait_for(lambda: not lab.records())


def test_a_get_sets_nothing_off(lab: Lab) -> None:
    url = f"http://127.0.0.1:{lab.health_ports['controller']}/v1/ipam/gc_ips"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=5)
    with refused.value as answer:
        assert answer.code == 405
