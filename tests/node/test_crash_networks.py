"""kill -9 of the agent before every single change of one call that has all that a call can have at once.

Two interfaces by the pod's networks: the first one limited, and connected with its node; the second one with the
chained coordinator. A stranger has what would be given first, so others are asked for in the same ADD.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from actors.node.detection import Terms
from api.wire import NetworkDefinition, Networked
from tests.node.conftest import Segment
from tests.node.crashing import Life, Outcome
from tests.node.lan import assign, lan_on
from tests.node.picture import picture
from tests.node.test_crash import Box

pytestmark = [
    pytest.mark.node,
    pytest.mark.blocking,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root"),
]

TAKEN = ("172.100.0.50/16", "fd00:100::50/64", "172.200.0.50/16")
"""By the router, who does not know that they are the pools' first."""
BANDWIDTH = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 4_000_000, "egressBurst": 80_000}
LOOKING, PATIENT = Terms(conflicts=True), Terms(conflicts=True, gateways=True, budget=1.0)
"""Where a step is to be died before, a machine that is too busy to hear the stranger costs that step and no more."""


class NetworksBox(Box):
    """A node with one pod that names a network."""

    terms, refuse_at, names = LOOKING, 0, True

    def verbs(self, verb: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        conf = {"coordinator": {"mode": "auto"}, "networks": True, "runtimeConfig": {"bandwidth": BANDWIDTH}}
        return [self.call(verb, "macvlan", "eth0", master="ens0", ipam={"type": "spiderpool"}, **conf)]

    def live(self, *verbs: str, die_at: int = 0, count_from: int = 0) -> Outcome:
        ipam = {"type": "spiderpool", "default_ipv4_ippool": ["b-v4"]}
        plugins = [{"type": "macvlan", "master": "ens0", "ipam": ipam}, {"type": "coordinator", "mode": "auto"}]
        conf = msgspec.json.encode({"cniVersion": "1.0.0", "name": "second", "plugins": plugins}).decode()
        second = NetworkDefinition(namespace="default", name="second", interface="net1", config=conf)
        life = Life(
            str(self.state),
            str(self.folder / "pools"),
            [call for verb in verbs for call in self.verbs(verb)],
            die_at=die_at,
            count_from=count_from,
            refuse_at=self.refuse_at,
            changes_only=True,
            networks=Networked(pod_uid=f"u{self.lives}", networks=(second,)) if self.names else None,
            terms=self.terms,
        )
        return self.carry_out(life)


@pytest.fixture
def box(segment: Segment, tmp_path: Path) -> Iterator[NetworksBox]:
    with lan_on(segment) as lan:
        assign(lan.router, "host", *TAKEN)
        made = NetworksBox(lan, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_without_a_crash(box: NetworksBox) -> None:
    box.terms = PATIENT
    added = box.live("ADD")
    assert added.error == ""
    assert sorted(added.records) == ["172.100.0.51", "172.200.0.51", "fd00:100::51"]
    assert sorted(added.entries) == [
        "eth0  added",
        "eth0 networks added",
        "net1  added",
        "net1 coordinator added",
    ]
    assert {"link eth0", "link ifb-eth0", "link net1", "link veth0"} <= picture(box.netns)
    deleted = box.live("DEL")
    assert box.nothing_left(deleted) == []


def test_add(box: NetworksBox) -> None:
    """A crash at every step; by turns the runtime asks again and takes the pod down later, or gives it up."""
    for step in range(1, 500):
        if not box.live("ADD", die_at=step).died:
            break
        verbs = ("ADD", "DEL") if step % 2 else ("DEL",)
        assert box.nothing_left(box.live(*verbs)) == [], f"died before step {step}, then {verbs}"
        box.pod()
    assert step > 30
    assert box.nothing_left(box.live("DEL")) == []


def test_del(box: NetworksBox) -> None:
    """A crash at every step; the runtime asks again."""
    for step in range(1, 500):
        if not box.live("ADD", "DEL", die_at=step, count_from=1).died:
            break
        assert box.nothing_left(box.live("DEL")) == [], f"died before step {step}"
        box.pod()
    assert step > 5


@pytest.mark.parametrize("names", [False, True])
def test_an_add_that_fails_at_any_step_leaves_nothing(box: NetworksBox, names: bool) -> None:
    """The kernel refuses one step after the other. Nobody calls DEL; the controller has had its addresses back.

    Of a pod that names networks the list of these is undone as well, which would hide what one interface leaves.
    """
    box.names = names
    failed = set()
    for step in itertools.count(1):
        box.refuse_at = step
        added = box.live("ADD")
        if added.steps < step:
            break
        if added.error:
            failed.add(added.error.split("/")[0])
            assert box.nothing_left(structs.replace(added, error="")) == [], f"step {step}: {added.error}"
        else:  # a journal's, or one that an ADD can do without
            box.refuse_at = 0
            assert box.nothing_left(box.live("DEL")) == []
        box.pod()
    assert len(failed) > 10
