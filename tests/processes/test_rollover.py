"""Agents that come and go on one node: they replace each other under load, are killed, boot, are asked to leave.

Real programs, the real shim, one state folder and one socket.
"""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.wire import PodRef
from cni.install import CONFLIST, MARK
from cni.journal import Journal, JournalEntry, State
from tests.processes.lab import CniError, Lab, Pod, shim
from tests.servers import ServerProcess

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]
NODE = "n2"
"""The one whose agent reads the API server, as in a cluster."""


class Rollout:
    """The agents of one node, one after the other."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.number = 0
        self.bin_dir, self.conf_dir = lab.folder / "cni-bin", lab.folder / "net.d-of-node"
        for folder in (self.bin_dir, self.conf_dir):
            folder.mkdir(exist_ok=True)

    @property
    def current(self) -> ServerProcess:
        return self.lab.processes[NODE]

    def start(self) -> ServerProcess:
        """The next agent, beside those that run; returns the one before. Health and metrics ports are the same."""
        before = self.current
        self.number += 1
        environment = {
            **(before._env or {}),
            "SPIDERPOOL_PROBE_SOCKET": str(self.probe_socket),
            "SPIDERPOOL_CNI_BIN_DIR": str(self.bin_dir),
            "SPIDERPOOL_CNI_CONF_DIR": str(self.conf_dir),
            "SPIDERPOOL_CNI_SHIM_DIR": str(shim().parents[1]),
        }
        name = f"{NODE}-{self.number}"
        made = ServerProcess(name, before._argv[4:], folder=self.lab.folder, env=environment)
        self.lab.processes[f"before-{name}"], self.lab.processes[NODE] = before, made
        made.start()
        return before

    @property
    def probe_socket(self) -> Path:
        return self.lab.folder / f"probe-{self.number}.sock"

    def probe(self, what: str = "readiness") -> tuple[int, str]:
        """As kubelet does it."""
        done = subprocess.run(
            [str(shim()), "probe", str(self.probe_socket), f"/v1/runtime/{what}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def wait_ready(self) -> None:
        self.current.wait_until(lambda: self.probe() == (0, ""), seconds=60)

    def events(self, reason: str) -> list[str]:
        """What the node's agents said, by the events on their pod."""
        path = f"/api/v1/namespaces/{self.lab.namespace}/events"
        items = self.lab.control_plane.request("GET", path).body["items"]
        return [item["message"] for item in items if item["reason"] == reason and self.is_about_agent(item)]

    @staticmethod
    def is_about_agent(item: dict[str, dict[str, str]]) -> bool:
        return item["involvedObject"]["name"] == f"agent-{NODE}"


@pytest.fixture
def rollout(lab: Lab) -> Iterator[Rollout]:
    made = Rollout(lab)
    made.number = len(lab.processes) * 100
    yield made
    for process in list(lab.processes.values()):
        if process is not lab.processes[NODE] and process.name.startswith(NODE):
            process.stop()


class Stream:
    """Pods that come and go on the node as fast as they can, each with one sandbox and no second try."""

    def __init__(self, lab: Lab, label: str, *, kubelets: int = 4) -> None:
        self.lab = lab
        self.failures: list[str] = []
        self.done = 0
        self._label = label
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(kubelets)
        self._running = [self._pool.submit(self._kubelet, number) for number in range(kubelets)]

    def _kubelet(self, kubelet: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            pod = self.lab.pod(f"{self._label}-{kubelet}-{number}", NODE)
            pod.new_sandbox()
            try:
                pod.add()
                pod.delete()
            except CniError as error:
                self.failures.append(f"{pod.name}: {error}")
                pod.stop()
            else:
                assert pod.netns is not None
                pod.netns.__exit__(None, None, None)
            self.done += 1

    def wait_for(self, more: int) -> None:
        wanted = self.done + more
        self.lab.wait_for(lambda: self.done >= wanted, seconds=120)

    def stop(self) -> None:
        self._stop.set()
        for running in self._running:
            running.result(timeout=120)
        self._pool.shutdown()


def nothing_left(lab: Lab) -> None:
    lab.wait_for(lambda: not {r["podUid"] for r in lab.records().values() if r.get("node") == NODE}, seconds=90)
    lab.wait_for(lambda: not lab.journal(NODE), seconds=90)  # a doubtful release is repeated after 40 s


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_agents_replace_each_other_under_load_and_no_call_fails(lab: Lab, rollout: Rollout) -> None:
    stream = Stream(lab, "rolled")
    for _ in range(3):
        stream.wait_for(8)
        before = rollout.start()
        rollout.wait_ready()
        stream.wait_for(4)
        process = before._process
        assert process is not None
        before.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    stream.wait_for(8)
    stream.stop()
    assert stream.failures == []
    nothing_left(lab)


def test_an_agent_is_killed_over_its_calls_and_the_next_one_carries_them_through(lab: Lab, rollout: Rollout) -> None:
    stream = Stream(lab, "killed", kubelets=6)
    for _ in range(3):
        stream.wait_for(6)
        inode = lab.socket(NODE).stat().st_ino
        before = rollout.start()
        rollout.current.wait_until(lambda inode=inode: lab.socket(NODE).stat().st_ino != inode, interval=0.001)  # type: ignore[misc]
        before.stop(kill=True)  # over the calls that it accepted just before
    stream.wait_for(12)
    stream.stop()
    assert stream.failures == [], "the shim calls once more, at the agent that comes next"
    nothing_left(lab)


def test_sigterm_waits_for_the_call_under_way(lab: Lab, rollout: Rollout) -> None:
    pod = lab.pod("slow", NODE)
    pod.new_sandbox()
    controller = lab.processes["controller"]
    controller.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as kubelet:
            call = kubelet.submit(pod.add)
            lab.wait_for(lambda: lab.journal(NODE))
            before = rollout.start()
            process = before._process
            assert process is not None
            before.send_signal(signal.SIGTERM)
            time.sleep(2)
            assert process.poll() is None, "it ended over a call"
            controller.send_signal(signal.SIGCONT)
            assert len(call.result(timeout=60)["ips"]) == 2
            assert process.wait(30) == 0
    finally:
        controller.send_signal(signal.SIGCONT)
    rollout.wait_ready()
    pod.stop()
    nothing_left(lab)


def test_a_newcomer_that_dies_gives_the_socket_back(lab: Lab, rollout: Rollout) -> None:
    before = rollout.start()
    rollout.wait_ready()
    rollout.current.stop(kill=True)
    pod = lab.pod("given-back", NODE)
    pod.new_sandbox()
    pod.add()
    lab.socket(NODE).unlink()
    pod.delete()
    lab.processes[NODE] = before
    nothing_left(lab)


def test_negative_control_without_a_successor_the_stream_sees_failures(lab: Lab) -> None:
    lab.kill(NODE)
    pod = lab.pod("nobody", NODE)
    pod.new_sandbox()
    with pytest.raises(CniError, match="the agent does not answer"):
        pod.add()
    lab.processes[NODE].start()
    pod.add()
    pod.stop()
    nothing_left(lab)


def test_a_node_that_boots_owes_what_its_kernel_forgot(lab: Lab, rollout: Rollout) -> None:
    pods = [lab.pod(f"booted-{number}", NODE) for number in range(12)]
    with ThreadPoolExecutor(4) as kubelets:
        list(kubelets.map(Pod.start, pods))
    lab.kill(NODE)
    for pod in pods:
        assert pod.netns is not None
        pod.netns.__exit__(None, None, None)
    journal = Journal(lab.folder / NODE / "journal")
    for number in range(300):
        journal.put(
            JournalEntry(
                container_id=f"{number:064x}",
                ifname="eth0",
                netns=f"/var/run/netns/cni-gone-{number}",
                pod=PodRef(namespace=lab.namespace, name=f"never-{number}", uid="u"),
                kind="macvlan",
                state=State.ADDED if number % 3 else State.ADDING,
                doubtful=False,
            )
        )
    assert {r["podUid"] for r in lab.records().values()} >= {pod.uid for pod in pods}
    rollout.start()
    rollout.wait_ready()
    late = lab.pod("after-boot", NODE)
    late.start()
    uids = {pod.uid for pod in pods}
    lab.wait_for(lambda: not uids & {record["podUid"] for record in lab.records().values()}, seconds=120)
    lab.wait_for(lambda: len(lab.journal(NODE)) == 1, seconds=120)
    late.stop()
    nothing_left(lab)


def test_installed_shadowed_and_withdrawn(lab: Lab, rollout: Rollout) -> None:
    (rollout.conf_dir / "10-bridge.conflist").write_text(json.dumps({"name": "b", "plugins": [{"type": "bridge"}]}))
    (rollout.conf_dir / "00-aaa.conf").write_text('{"type": "bridge"}')
    rollout.start().stop()
    rollout.wait_ready()
    lab.wait_for(lambda: rollout.events("CNIShadowed"))
    assert str(rollout.conf_dir / "00-aaa.conf") in rollout.events("CNIShadowed")[0]
    assert (rollout.bin_dir / "spiderpool").read_bytes() == shim().read_bytes()
    assert json.loads((rollout.conf_dir / CONFLIST).read_text())["name"] == "spiderpool"
    pod = lab.pod("before-withdrawal", NODE)
    pod.start()

    path = f"/api/v1/namespaces/{lab.namespace}/pods/agent-{NODE}"
    ask = {"metadata": {"annotations": {"spiderpool.spidernet.io/retire": "true"}}}
    lab.control_plane.request("PATCH", path, ask)
    lab.wait_for(lambda: rollout.events("CNIWithdrawn"))
    assert "00-aaa.conf takes over" in rollout.events("CNIWithdrawn")[0]
    assert names(rollout.conf_dir) == ["00-aaa.conf", "10-bridge.conflist"]
    assert names(rollout.bin_dir) == []
    pod.stop()  # an agent that has withdrawn still serves

    (rollout.conf_dir / "00-aaa.conf").unlink()
    (rollout.conf_dir / "10-bridge.conflist").unlink()
    rollout.start().stop()
    lab.wait_for(lambda: rollout.events("CNILeft"))
    rollout.wait_ready()
    assert names(rollout.conf_dir) == [], "a restart installs nothing while the pod is asked to go"
    assert names(rollout.bin_dir) == [MARK]

    lab.control_plane.request("PATCH", path, {"metadata": {"annotations": {"spiderpool.spidernet.io/retire": None}}})
    rollout.start().stop()
    lab.wait_for((rollout.conf_dir / CONFLIST).exists)
    ours = ["coordinator", "ifacer", "spiderpool"]
    assert names(rollout.bin_dir) == ours, "a new installation takes the mark away"
