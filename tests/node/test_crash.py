"""kill -9 of the agent before every single step that an ADD or a DEL takes: what was built is taken down, all of it.

A pod with two NICs, the first connected with its node, the second by the chained coordinator. The dumps of the node's
and the pod's namespace are what they were before, the pools have every address back.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.netns import Netns
from tests.node.conftest import Segment
from tests.node.crashing import Life, Outcome
from tests.node.lan import Lan, lan_on
from tests.node.picture import picture

pytestmark = [
    pytest.mark.node,
    pytest.mark.blocking,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root"),
]

POOLS = """\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a-v4}
spec: {subnet: 172.100.0.0/16, gateway: 172.100.0.1, ips: [172.100.0.50-172.100.0.60], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a-v6}
spec: {subnet: "fd00:100::/64", gateway: "fd00:100::1", ips: ["fd00:100::50-fd00:100::60"], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: b-v4}
spec: {subnet: 172.200.0.0/16, gateway: 172.200.0.1, ips: [172.200.0.50-172.200.0.60]}
"""
DYING = ("nft", "rule4 1000 fwmark 1 ", "rule6 1000 fwmark 1 ")
"""How replies find their way back, in the pod: it does nothing without the pair, and goes with the namespace. What a
crash leaves of it is not looked for."""
LASTING = {"rule4 1000 lookup 500", "rule6 1000 lookup 500"}
"""The node's rules stay while there is an agent."""


class Box:
    """A node with the forks of an agent, and one pod."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        self.lan = lan
        self.folder = folder
        self.lives = 0
        (folder / "pools").mkdir()
        (folder / "pools" / "pools.yaml").write_text(POOLS)
        self.process = lan.node.run(
            lambda: subprocess.Popen(
                [sys.executable, "-m", "tests.node.crashing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
        )
        self.before = picture(lan.node) - LASTING
        self.pod()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        if self.process.stdout is not None:
            self.process.stdout.close()

    def pod(self) -> Netns:
        """A new one, with a journal and a store of its own."""
        self.lives += 1
        self.state = self.folder / f"state-{self.lives}"
        self.state.mkdir()
        self.netns = self.lan.segment.container()
        self.cid = f"{self.lives:04x}" * 16
        return self.netns

    def call(self, verb: str, kind: str, ifname: str, **conf: Any) -> tuple[dict[str, str], dict[str, Any]]:
        headers = {
            "cni-type": kind,
            "cni-command": verb,
            "cni-containerid": self.cid,
            "cni-netns": str(self.netns.path),
            "cni-ifname": ifname,
            "cni-path": "/opt/cni/bin",
            "cni-args": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{self.lives};K8S_POD_UID=u{self.lives}",
        }
        return headers, {"cniVersion": "1.0.0", "name": "lan", "type": kind, **conf}

    def verbs(self, verb: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """The calls of a runtime, in its order for the verb."""
        ipam = {"type": "spiderpool"}
        second = {**ipam, "default_ipv4_ippool": ["b-v4"]}
        link = {"name": "net1", "sandbox": str(self.netns.path)}
        previous = {
            "cniVersion": "1.0.0",
            "interfaces": [link],
            "ips": [{"address": "172.200.0.50/16", "interface": 0}],
        }
        calls = [
            self.call(verb, "macvlan", "eth0", master="ens0", ipam=ipam, coordinator={"mode": "auto"}),
            self.call(verb, "macvlan", "net1", master="ens0", ipam=second),
            self.call(verb, "coordinator", "net1", mode="auto", prevResult=previous),
        ]
        return calls if verb == "ADD" else calls[::-1]

    def live(self, *verbs: str, die_at: int = 0, count_from: int = 0) -> Outcome:
        calls = [call for verb in verbs for call in self.verbs(verb)]
        return self.carry_out(
            Life(str(self.state), str(self.folder / "pools"), calls, die_at=die_at, count_from=count_from)
        )

    def carry_out(self, life: Life) -> Outcome:
        """One life."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(life) + b"\n")
        self.process.stdin.flush()
        return msgspec.json.decode(self.process.stdout.readline(), type=Outcome)

    def nothing_left(self, outcome: Outcome) -> list[str]:
        """What is there that should not be."""
        found = [f"error {outcome.error}"] if outcome.error else []
        found += [f"record {one}" for one in outcome.records] + [f"journal {one}" for one in outcome.entries]
        found += [f"{outcome.endpoints} endpoints"] if outcome.endpoints else []
        found += sorted(picture(self.lan.node) - LASTING ^ self.before)
        return found + sorted(f"pod: {one}" for one in picture(self.netns) if not one.startswith(DYING))


@pytest.fixture
def box(segment: Segment, tmp_path: Path) -> Iterator[Box]:
    with lan_on(segment) as lan:
        made = Box(lan, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_without_a_crash(box: Box) -> None:
    added = box.live("ADD")
    assert added.error == ""
    assert len(added.records) == 3
    assert added.steps > 20
    assert "link eth0" in picture(box.netns)
    deleted = box.live("DEL")
    assert box.nothing_left(deleted) == []
    assert deleted.steps > 5


def test_add_then_again(box: Box) -> None:
    """A crash at every step of ADD; the runtime asks again, and later takes the pod down."""
    for step in range(1, 500):
        first = box.live("ADD", die_at=step)
        if not first.died:
            break
        again = box.live("ADD", "DEL")
        assert box.nothing_left(again) == [], f"died before step {step}"
        box.pod()
    else:
        pytest.fail("an ADD of more than 500 steps")
    assert step > 20
    assert box.nothing_left(box.live("DEL")) == []


def test_add_then_del(box: Box) -> None:
    """A crash at every step of ADD; the runtime gives the sandbox up."""
    for step in range(1, 500):
        if not box.live("ADD", die_at=step).died:
            break
        assert box.nothing_left(box.live("DEL")) == [], f"died before step {step}"
        box.pod()
    assert step > 20
    assert box.nothing_left(box.live("DEL")) == []


def test_del(box: Box) -> None:
    """A crash at every step of DEL; the runtime asks again."""
    for step in range(1, 500):
        if not box.live("ADD", "DEL", die_at=step, count_from=3).died:
            break
        assert box.nothing_left(box.live("DEL")) == [], f"died before step {step}"
        box.pod()
    assert step > 5


def test_a_dump_that_differs_is_seen(box: Box) -> None:
    """Negative control: with the journal gone too, nobody knows of the second interface."""
    assert box.live("ADD", die_at=40).died
    for path in (box.state / "journal").glob("*"):
        path.unlink()
    left = box.nothing_left(box.live())
    assert any("eth0" in one for one in left), json.dumps(left)


@pytest.mark.parametrize("rebooted", [True, False])
def test_after_a_reboot_the_path_of_a_namespace_may_be_anothers(box: Box, rebooted: bool) -> None:
    """Some runtimes name a namespace by a process, and after a reboot that number is soon another container's.

    Within one life of the kernel the path is all that says which namespace it is: the control.
    """
    assert box.live("ADD").error == ""
    old = [(headers | {"cni-netns": ""}, conf) for headers, conf in box.verbs("DEL")[1:]]
    box.netns.__exit__(None, None, None)
    if rebooted:
        for path in (box.state / "journal").iterdir():
            path.write_text(re.sub(r'"boot":"[^"]+"', '"boot":"another"', path.read_text()))
    state = box.state
    with Netns(box.netns.path.parent, box.netns.name) as newer:
        box.pod()
        box.state, box.netns = state, newer
        calls = [*box.verbs("ADD"), *old]
        assert box.carry_out(Life(str(state), str(box.folder / "pools"), calls)).error == ""
        assert ({"link eth0", "link net1", "link veth0"} <= picture(newer)) is rebooted
