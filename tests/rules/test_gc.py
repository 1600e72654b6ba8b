"""GC: what goes, and in which order."""

import pytest

from actors.node.gc import stale
from api.wire import PodRef
from cni.config import Attachment
from cni.errors import InvalidConfig
from cni.journal import COORDINATOR, NETWORKS, JournalEntry, State
from cni.protocol import Role, Verb
from tests.rules.test_cni_protocol import CONF, invoke


def entry(container_id: str, ifname: str = "eth0", **fields: object) -> JournalEntry:
    pod = PodRef("default", "web-0", "u")
    return JournalEntry(
        **{"container_id": container_id, "ifname": ifname, "network": "lan", "pod": pod, "state": State.ADDED} | fields  # type: ignore[arg-type]
    )


def gone(*entries: JournalEntry, valid: tuple[Attachment, ...] = ()) -> list[tuple[str, str, str]]:
    call = invoke(
        {**CONF, "cni.dev/valid-attachments": [{"containerID": a.container_id, "ifname": a.ifname} for a in valid]},
        command="GC",
    )
    return [(one.container_id, one.ifname, one.part) for one, _ in stale(entries, call)]


def test_what_the_runtime_lists_stays_with_all_that_its_add_made() -> None:
    kept = (entry("a"), entry("a", "net1", head="eth0"), entry("a", part=NETWORKS))
    assert gone(*kept, valid=(Attachment(container_id="a", ifname="eth0"),)) == []
    assert len(gone(*kept)) == 3


def test_other_networks_and_what_is_released_already_stay() -> None:
    assert gone(entry("a", network="other"), entry("b", state=State.RELEASING)) == []


def test_the_last_of_a_list_goes_first() -> None:
    entries = (entry("a"), entry("a", "net1", part=COORDINATOR, role=Role.COORDINATOR), entry("a", part=NETWORKS))
    assert [part for _, _, part in gone(*entries)] == [NETWORKS, COORDINATOR, ""]


def test_each_goes_by_a_del_of_its_own() -> None:
    call = invoke({**CONF, "cni.dev/valid-attachments": []}, command="GC")
    ((_, made),) = stale([entry("a", netns="/run/netns/a", role=Role.IPAM)], call)
    assert (made.verb, made.container_id, made.netns, made.role) == (Verb.DEL, "a", "/run/netns/a", Role.IPAM)
    assert made.args.name == "web-0"


def test_without_the_list_nothing_goes() -> None:
    with pytest.raises(InvalidConfig, match="valid-attachments"):
        stale([entry("a")], invoke(CONF, command="GC"))
