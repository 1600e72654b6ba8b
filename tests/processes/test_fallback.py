"""A node allocates by itself while no controller answers, with the rights that the chart gives it for that."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.processes.lab import NODES, PROGRAMS, Lab
from tests.servers import ControlPlane

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

USUAL, ALONE = NODES


@pytest.fixture(scope="module")
def lab(control_plane: ControlPlane) -> Iterator[Lab]:
    with Lab(control_plane, fallback=[ALONE]) as running:
        running.create_pools(20, prefix="alone-")
        yield running


def said(lab: Lab, node: str, text: str) -> bool:
    return text in lab.processes[node].tail(400)


def test_pods_come_and_go_without_a_controller_and_a_controller_takes_over_again(lab: Lab) -> None:
    before, meanwhile, after = (lab.pod(name, ALONE) for name in ("before", "meanwhile", "after"))
    before.start()
    assert not said(lab, ALONE, "allocates by itself")
    lab.kill("controller")
    meanwhile.start()
    assert len(meanwhile.addresses) == 2
    assert said(lab, ALONE, "this node allocates by itself")
    assert not said(lab, USUAL, "allocates by itself"), "the control: nobody switched it on there"
    records = lab.records()
    assert {records[address]["podUid"] for address in meanwhile.addresses} == {meanwhile.uid}
    assert {records[address]["node"] for address in meanwhile.addresses} == {ALONE}
    assert "meanwhile" in lab.endpoints()
    assert not set(before.addresses) & set(meanwhile.addresses)

    before.stop()
    lab.wait_for(lambda: before.uid not in {record["podUid"] for record in lab.records().values()})

    lab.start_controller()
    lab.wait_for(lambda: said(lab, ALONE, "a controller answers again"))
    after.start()
    meanwhile.stop()
    after.stop()
    lab.wait_for(lambda: not lab.records())
    lab.wait_for(lambda: not lab.endpoints())


def test_an_agent_that_cannot_allocate_says_so_instead_of_starting() -> None:
    environment = {
        "SPIDERPOOL_POD_NAMESPACE": "spiderpool",
        "SPIDERPOOL_POD_NAME": "agent",
        "SPIDERPOOL_NODE_NAME": "n1",
        "SPIDERPOOL_CONTROLLER_ADDRESSES": "127.0.0.1:1",
        "SPIDERPOOL_AGENT_FALLBACK_ENABLED": "true",
    }
    done = subprocess.run(
        [str(PROGRAMS / "spiderpool-agent")], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "SPIDERPOOL_AGENT_FALLBACK_ENABLED=true: there are no credentials for the API server" in line
