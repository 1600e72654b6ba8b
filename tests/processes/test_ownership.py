"""Two controller processes that share the pools, on the real API server: killed, hung, not knowing of each other."""

import asyncio
import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import anyio
import pytest

from actors.pools.claims import Claim
from actors.pools.peers import Forward, Unserved
from actors.pools.peers import _answers as peer_answers
from actors.pools.peers import _encoder as peer_encoder
from api import wire
from runtime.transport.credentials import token_file
from runtime.transport.tls import TlsChannel
from tests.processes.lab import NODES, Lab, Pod
from tests.servers import ControlPlane

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def pair(control_plane: ControlPlane) -> Iterator[Lab]:
    with Lab(control_plane, controllers=2) as lab:
        lab.create_pools(200)
        yield lab


def views(lab: Lab) -> list[dict[str, str]]:
    """Every replica's opinion on who owns what; of one that does not serve yet, nothing."""
    found: list[dict[str, str]] = []
    for name in lab.controllers:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{lab.health_ports[name]}/debug/status", timeout=5) as answer:
                found.append(json.load(answer)["pools"])
        except OSError:
            found.append({})
    return found


def owner(lab: Lab, pool: str) -> str:
    """The process that owns a pool; all agree on it in the end."""

    def agreed() -> bool:
        return len({view.get(pool) for view in views(lab)}) == 1 and pool in views(lab)[0]

    lab.wait_for(agreed)
    return lab.controllers[int(views(lab)[0][pool].rpartition("-")[2])]


def add(pod: Pod) -> None:
    """One ADD, once: what kubelet would try again is a failure here."""
    pod.new_sandbox()
    pod.add()


def run_pods(lab: Lab, stem: str, disturb: Callable[[], None], count: int = 30) -> None:
    """Start pods on both nodes, have something happen in the middle, and see that all have addresses of their own."""
    pods = [lab.pod(f"{stem}-{number}", NODES[number % 2]) for number in range(count)]
    with ThreadPoolExecutor(8) as kubelets:
        running = [kubelets.submit(add, pod) for pod in pods]
        while sum(done.done() for done in running) < count // 4:
            time.sleep(0.01)
        disturb()
        for done in running:
            done.result(timeout=120)
    told = [address for pod in pods for address in pod.addresses]
    assert len(told) == len(set(told)) == 2 * count
    records = lab.records()
    for pod in pods:
        assert all(records[address]["podUid"] == pod.uid for address in pod.addresses)
    with ThreadPoolExecutor(8) as kubelets:
        for done in [kubelets.submit(pod.stop) for pod in pods]:
            done.result(timeout=120)
    lab.wait_for(lambda: not lab.records(), seconds=90)
    lab.wait_for(lambda: not lab.endpoints())


def test_everybody_agrees_on_the_owner(pair: Lab) -> None:
    for pool in (f"{pair.namespace}-v4", f"{pair.namespace}-v6"):
        assert owner(pair, pool) in pair.controllers


def test_the_owner_is_killed_in_the_middle(pair: Lab) -> None:
    victim = owner(pair, f"{pair.namespace}-v4")
    run_pods(pair, "killed", lambda: pair.kill(victim))
    pair.start_controller(victim)
    assert owner(pair, f"{pair.namespace}-v4") == victim


def test_the_owner_hangs_in_the_middle_and_wakes_up(pair: Lab) -> None:
    victim = pair.processes[owner(pair, f"{pair.namespace}-v4")]

    def hang() -> None:
        victim.send_signal(signal.SIGSTOP)

    try:
        run_pods(pair, "hung", hang)
    finally:
        victim.send_signal(signal.SIGCONT)
    assert pair.processes[owner(pair, f"{pair.namespace}-v4")] is victim
    run_pods(pair, "woken", lambda: None, count=10)


def test_each_account_may_say_only_what_is_its_own(pair: Lab) -> None:
    claim = Claim(pod=f"{pair.namespace}/x", uid="u", nic="eth0", node="n1", cid="0" * 12)
    as_peer = peer_encoder.encode(Forward(f"{pair.namespace}-v4", claim))
    as_agent = wire.encode(wire.Inquire())

    async def ask(name: str, payload: bytes) -> bytes:
        channel = TlsChannel(
            "127.0.0.1",
            pair.rpc_ports["controller"],
            server_name=f"spiderpool-controller.{pair.namespace}.svc",
            ca_file=pair.control_plane.ca_file,
            token=token_file(pair.token(name)),
            random=Random(1),
        )
        async with anyio.create_task_group() as group:
            group.start_soon(channel.run)
            answer = await channel.request(payload, deadline=asyncio.get_running_loop().time() + 10)
            group.cancel_scope.cancel()
        return answer

    before = pair.records()
    refused = wire.decode_response(asyncio.run(ask("n1", as_peer)))
    assert isinstance(refused, wire.Rejected) and refused.cause == "wrong_input"
    assert isinstance(peer_answers.decode(asyncio.run(ask("controller-1", as_agent))), Unserved)
    assert pair.records() == before
    assert wire.decode_response(asyncio.run(ask("n1", as_agent))) == wire.Ready()


def test_two_owners_at_once_cost_conflicts_and_nothing_else(control_plane: ControlPlane, pair: Lab) -> None:
    pair.__exit__(None, None, None)  # the labs share the names of their links
    with Lab(control_plane, controllers=2, apart=True) as lab:
        lab.create_pools(100)
        lab.wait_for(lambda: len({view.get(f"{lab.namespace}-v4") for view in views(lab)}) == 2)
        run_pods(lab, "both", lambda: None)
