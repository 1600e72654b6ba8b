"""What the programs say of themselves over HTTP, after real calls."""

import json
from urllib.request import urlopen

import pytest

from tests.processes.lab import Lab


def get(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return str(answer.read().decode())


def value(exposition: str, series: str) -> float:
    """The value of one series, by its name and labels as exposed."""
    return next(float(line.rpartition(" ")[2]) for line in exposition.splitlines() if line.rpartition(" ")[0] == series)


@pytest.mark.blocking
@pytest.mark.timeout(120)
def test_metrics_and_health_after_one_pod(lab: Lab) -> None:
    pod = lab.pod("measured")
    synced = value(get(lab.metric_ports["n1"], "/metrics"), "spiderpool_journal_fsync_seconds_count")
    pod.start()
    agent = get(lab.metric_ports["n1"], "/metrics")
    assert value(agent, "spiderpool_ipam_allocation_counts") >= 1
    assert value(agent, "spiderpool_sandboxes") == 1
    assert value(agent, 'spiderpool_actors{actor="sandbox"}') == 1
    assert value(agent, 'spiderpool_rpc_connections{side="client"}') == 1
    assert value(agent, 'spiderpool_netlink_step_seconds_count{step="make_link"}') >= 1
    assert pod.sandboxes == 1
    assert value(agent, "spiderpool_journal_fsync_seconds_count") == synced + 1, "an ADD syncs its answer, and no more"
    controller = get(lab.metric_ports["controller"], "/metrics")
    assert value(controller, 'spiderpool_actors{actor="ippool"}') == 2
    assert value(controller, 'spiderpool_rpc_connections{side="server"}') == 2
    assert value(controller, 'spiderpool_pool_commits_total{outcome="committed"}') >= 2
    assert value(controller, "spiderpool_total_ippool_counts") >= 2

    tree = json.loads(get(lab.health_ports["controller"], "/healthz"))
    assert tree["status"] == "ok"
    assert {"controller"} <= {child["name"] for child in tree["children"]}
    assert "ippools" in get(lab.health_ports["controller"], "/healthz?text")
    pod.stop()
    lab.wait_for(lambda: value(get(lab.metric_ports["n1"], "/metrics"), "spiderpool_sandboxes") == 0)


@pytest.mark.blocking
@pytest.mark.timeout(120)
def test_a_repeated_del_asks_nobody_unless_the_agent_has_forgotten(lab: Lab) -> None:
    def asked() -> float:
        return value(get(lab.metric_ports["n1"], "/metrics"), "spiderpool_ipam_release_counts")

    before = asked()
    pod = lab.pod("repeated", "n1")
    pod.new_sandbox()
    pod.add()
    pod.delete()
    lab.wait_for(lambda: not lab.journal("n1"))
    once = asked()  # or more often, where the controller did not answer at once
    assert once > before
    pod.delete()
    pod.delete()
    assert asked() == once
    lab.kill("n1")
    lab.processes["n1"].start()
    lab.wait_ready()
    assert asked() == 0
    pod.delete()
    lab.wait_for(lambda: asked() == 1)
