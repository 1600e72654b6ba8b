"""kill -9 of the agent before every single step that an ADD or a DEL of a virtual function takes: it is what it was."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.node.conftest import Segment
from tests.node.crashing import Life, Outcome
from tests.node.lan import Lan, lan_on
from tests.node.picture import picture
from tests.node.played import PlayedNic
from tests.node.test_crash import Box

pytestmark = [
    pytest.mark.node,
    pytest.mark.blocking,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root"),
]


class FunctionBox(Box):
    """A node whose NIC has two virtual functions."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        (folder / "nic").mkdir()
        self.nic = PlayedNic(folder / "nic")
        lan.node.run(self._plug)
        self.functions = lan.node.run(self._look)
        super().__init__(lan, folder)

    def _plug(self) -> None:
        with IPRoute() as route:
            route.link("add", ifname="pf", kind="veth", peer={"ifname": "pf-x"})
        for name in ("vf0", "vf1"):
            self.nic.plug(name)

    def _look(self) -> Any:
        with IPRoute() as route:
            links = [
                [one.get_attr(f"IFLA_{name}") for name in ("IFNAME", "ADDRESS", "MTU", "IFALIAS")] + [one["flags"] & 1]
                for one in route.get_links()
                if one.get_attr("IFLA_IFNAME").startswith(("vf", "dev", "net"))
            ]
        return sorted(links), self.nic.settings

    def verbs(self, verb: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        conf = {"master": "pf", "vlan": 100, "max_tx_rate": 200, "trust": "on", "spoofchk": "off", "mtu": 1400}
        return [self.call(verb, "sriov", "net1", ipam={"type": "spiderpool"}, **conf)]

    def live(self, *verbs: str, die_at: int = 0, count_from: int = 0) -> Outcome:
        calls = [call for verb in verbs for call in self.verbs(verb)]
        pools, played = str(self.folder / "pools"), str(self.folder / "nic")
        life = Life(str(self.state), pools, calls, die_at=die_at, count_from=count_from, played=played)
        return self.carry_out(life)

    def nothing_left(self, outcome: Outcome) -> list[str]:
        found = super().nothing_left(outcome)
        now = self.lan.node.run(self._look)
        return found if now == self.functions else [*found, f"functions are {now}, not {self.functions}"]


@pytest.fixture
def box(segment: Segment, tmp_path: Path) -> Iterator[FunctionBox]:
    with lan_on(segment) as lan:
        made = FunctionBox(lan, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_without_a_crash(box: FunctionBox) -> None:
    added = box.live("ADD")
    assert added.error == "" and len(added.records) == 2
    seen = picture(box.netns)
    assert {"link net1", "address 172.100.0.50/16 dev net1"} <= seen
    assert box.nic.settings[0].trust is True and "link vf0" not in picture(box.lan.node)
    deleted = box.live("DEL")
    assert box.nothing_left(deleted) == []
    assert deleted.steps > 5


def test_add_then_again(box: FunctionBox) -> None:
    for step in range(1, 500):
        if not box.live("ADD", die_at=step).died:
            break
        assert box.nothing_left(box.live("ADD", "DEL")) == [], f"died before step {step}"
        box.pod()
    assert step > 20
    assert box.nothing_left(box.live("DEL")) == []


def test_add_then_del(box: FunctionBox) -> None:
    for step in range(1, 500):
        if not box.live("ADD", die_at=step).died:
            break
        assert box.nothing_left(box.live("DEL")) == [], f"died before step {step}"
        box.pod()
    assert box.nothing_left(box.live("DEL")) == []


def test_del(box: FunctionBox) -> None:
    for step in range(1, 500):
        if not box.live("ADD", "DEL", die_at=step, count_from=1).died:
            break
        assert box.nothing_left(box.live("DEL")) == [], f"died before step {step}"
        box.pod()
    assert step > 5


def test_a_function_that_is_not_as_it_was_is_seen(box: FunctionBox) -> None:
    """Negative control: with the journal gone nobody knows what it was."""
    assert box.live("ADD").error == ""
    for path in (box.state / "journal").glob("*"):
        path.unlink()
    assert any("functions are" in one for one in box.nothing_left(box.live()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mtu": 9000}, "mtu: 9000 is not possible"),
        ({"master": "nobody"}, 'master: "nobody" is not on this node'),
        ({"deviceID": "0000:02:00.0"}, 'deviceID: there is no PCI device "0000:02:00.0"'),
        ({"trust": "yes"}, 'trust: "yes"'),
    ],
)
def test_bad_input_leaves_nothing(box: FunctionBox, wrong: dict[str, Any], said: str) -> None:
    headers, conf = box.verbs("ADD")[0]
    life = Life(str(box.state), str(box.folder / "pools"), [(headers, {**conf, **wrong})], played=str(box.nic.folder))
    outcome = box.carry_out(life)
    assert said in outcome.error
    assert box.nothing_left(box.live("DEL")) == []
