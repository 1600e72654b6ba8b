"""`spiderpoolctl ip` on an embedded store: what it shows, what it refuses, what it leaves."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from actors.collection import hostcollector
from api.core import Pod, PodIP, PodSpec, PodStatus
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.kinds import IPPOOL, RESERVEDIP
from api.meta import ObjectMeta
from api.reservedip import ReservedIPSpec, SpiderReservedIP
from api.wire import PodRef
from cni.journal import Journal, JournalEntry, State
from ctl.errors import Failure, Misuse
from ctl.ip import change
from ctl.ip.holder import by_pod
from ctl.ip.set import NO_CONTAINER, Wanted, from_pod
from ctl.main import main
from ipam.operations import Claim
from ipam.withheld import COOL_DOWN, read_withheld
from runtime.store.port import Store
from runtime.store.sqlite import FILE_NAME, SQLiteStore

CID = "0123456789ab"
RECORD = AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="n1", cid=CID)
Ctl = Callable[..., tuple[int, str, str]]


def pool(name: str = "lan", records: dict[str, AllocationRecord] | None = None, **spec: Any) -> SpiderIPPool:
    wanted = {"subnet": "10.6.0.0/16", "ips": ["10.6.0.10-10.6.0.14"], **spec}
    return SpiderIPPool(
        metadata=ObjectMeta(name=name),
        spec=IPPoolSpec(**wanted),
        status=IPPoolStatus(allocated_ips=encode_records(records or {}), allocated_ip_count=len(records or {})),
    )


async def fill(store: Store, *pools: SpiderIPPool) -> None:
    for item in pools:
        await store.create(IPPOOL, item)
        status: dict[str, Any] = msgspec.to_builtins(item.status)
        await store.patch(IPPOOL, item.metadata.name, {"status": status}, subresource="status")


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Runs the program on the store of the test: exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, "--state-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def give(tmp_path: Path) -> Callable[..., None]:
    """Puts pools and other objects into that store."""

    def put(*pools: SpiderIPPool, reserved: tuple[str, ...] = ()) -> None:
        async def work() -> None:
            store = SQLiteStore(tmp_path / FILE_NAME)
            await fill(store, *pools)
            for ip in reserved:
                item = SpiderReservedIP(metadata=ObjectMeta(name=f"r-{ip}"), spec=ReservedIPSpec(ips=[ip]))
                await store.create(RESERVEDIP, item)
            await store.aclose()

        asyncio.run(work())

    return put


def state(ctl: Ctl, address: str) -> dict[str, Any]:
    code, out, err = ctl("ip", "show", address, "-o", "json")
    assert code == 0, err
    (found,) = json.loads(out)["addresses"]
    return dict(found)


def journal(tmp_path: Path, **changes: Any) -> None:
    entry = JournalEntry(
        container_id=f"{CID}cdef", ifname="eth0", pod=PodRef("default", "web", "u1"), state=State.ADDED
    )
    (tmp_path / "journal").mkdir()
    Journal(tmp_path / "journal").put(structs.replace(entry, **changes))


# -- show --------------------------------------------------------------------------------------------------------------


def test_an_address_is_shown_with_who_has_it(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    code, out, _ = ctl("ip", "show", "10.6.0.12")
    assert code == 0
    assert out.splitlines()[1].split() == ["10.6.0.12", "lan", "used", "default/web", "eth0", "n1", CID]
    assert "u1" in ctl("ip", "show", "10.6.0.12", "-o", "wide")[1]
    assert "state: used" in ctl("ip", "show", "10.6.0.12", "-o", "yaml")[1]


def test_every_state_has_its_word(ctl: Ctl, give: Callable[..., None]) -> None:
    kept = structs.replace(RECORD, kept=True)
    full = pool(records={"10.6.0.10": RECORD, "10.6.0.11": kept}, exclude_ips=["10.6.0.14"])
    withheld = json.dumps({"10.6.0.12": {"reason": "conflict: 02:00:00:00:00:01", "until": "2999-01-01T00:00:00Z"}})
    give(structs.replace(full, status=structs.replace(full.status, withheld_ips=withheld)), reserved=("10.6.0.13",))
    states = [state(ctl, f"10.6.0.{last}")["state"] for last in range(10, 15)]
    assert states == ["used", "kept", "withheld", "reserved", "excluded"]
    seen = state(ctl, "10.6.0.12")
    assert (seen["until"], seen["reason"]) == ("2999-01-01T00:00:00Z", "conflict: 02:00:00:00:00:01")
    assert state(ctl, "10.6.0.13")["reason"] == "SpiderReservedIP r-10.6.0.13"


def test_a_pool_and_a_pod_are_shown(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(records={"10.6.0.11": RECORD}), pool("other", ips=["10.6.9.9"]))
    found = json.loads(ctl("ip", "show", "--pool", "lan", "-o", "json")[1])
    assert found["free"] == ["10.6.0.10", "10.6.0.12-10.6.0.14"]
    assert [a["address"] for a in found["addresses"]] == ["10.6.0.11"]
    assert "free: 10.6.9.9" in ctl("ip", "show", "--pool", "other")[1]
    assert "10.6.0.11" in ctl("ip", "show", "--pod", "default/web")[1]


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["10.6.7.7"], 1, "10.6.7.7 is in no pool"),
        (["--pool", "nil"], 1, "--pool: no SpiderIPPool is named nil"),
        (["--pod", "default/nil"], 1, "no pool has an address for pod default/nil"),
        (["--pod", "web"], 2, "--pod: 'web': expected NAMESPACE/NAME"),
        (["10.6.0.300"], 2, "ADDRESS: '10.6.0.300' is not an IP address"),
        ([], 2, "one of ADDRESS, --pool and --pod is needed, and no more"),
        (["10.6.0.10", "--pool", "lan"], 2, "one of ADDRESS, --pool and --pod is needed, and no more"),
    ],
)
def test_what_cannot_be_shown_is_said(
    ctl: Ctl, give: Callable[..., None], argv: list[str], code: int, error: str
) -> None:
    give(pool())
    assert ctl("ip", "show", *argv) == (code, "", f"spiderpoolctl ip: {error}\n")


# -- release -----------------------------------------------------------------------------------------------------------


def test_what_nobody_uses_is_released_and_rests(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    code, out, _ = ctl("ip", "release", "10.6.0.12", "--yes")
    assert code == 0
    assert "belongs to default/web (uid u1, eth0, node n1, container 0123456789ab)" in out
    assert "the journal knows no such container" in out
    seen = state(ctl, "10.6.0.12")
    assert (seen["state"], seen["reason"], seen["pod"]) == ("withheld", COOL_DOWN, "")
    assert ctl("ip", "release", "10.6.0.12", "--yes")[0] == 0, "and the rest can be ended as well"
    assert state(ctl, "10.6.0.12")["state"] == "free"
    assert ctl("ip", "release", "10.6.0.12", "--yes")[2].startswith("spiderpoolctl ip: 10.6.0.12: nobody has it")


def test_without_a_terminal_nobody_can_be_asked(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    code, out, err = ctl("ip", "release", "10.6.0.12")
    assert (code, "10.6.0.12 of pool lan belongs to" in out) == (2, True), "what would be done is said"
    assert "give --yes to have it done. Nothing was done" in err
    assert state(ctl, "10.6.0.12")["state"] == "used"


@pytest.mark.parametrize(("answer", "released"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_on_a_terminal_it_asks(
    ctl: Ctl, give: Callable[..., None], monkeypatch: pytest.MonkeyPatch, answer: str, released: bool
) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    code, _, err = ctl("ip", "release", "10.6.0.12", "--rest", "0")
    assert (code, err) == ((0, "") if released else (1, "spiderpoolctl ip: nothing was done\n"))
    assert state(ctl, "10.6.0.12")["state"] == ("free" if released else "used")


def test_who_lives_keeps_it_unless_it_is_forced(ctl: Ctl, give: Callable[..., None], tmp_path: Path) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    journal(tmp_path)
    code, _, err = ctl("ip", "release", "10.6.0.12", "--yes")
    assert code == 1 and "container 0123456789ab is in the journal as added" in err and "--force" in err
    assert state(ctl, "10.6.0.12")["state"] == "used"
    code, out, _ = ctl("ip", "release", "10.6.0.12", "--yes", "--force")
    assert code == 0 and "two hosts with one address" in out
    assert state(ctl, "10.6.0.12")["state"] == "withheld"


def test_who_is_on_the_way_out_does_not_live(ctl: Ctl, give: Callable[..., None], tmp_path: Path) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    journal(tmp_path, state=State.RELEASING)
    assert ctl("ip", "release", "10.6.0.12", "--yes")[0] == 0


def test_another_containers_entry_speaks_for_nobody_else(ctl: Ctl, give: Callable[..., None], tmp_path: Path) -> None:
    give(pool(records={"10.6.0.12": RECORD}))
    journal(tmp_path, container_id="ffffffffffffffff")
    assert ctl("ip", "release", "10.6.0.12", "--yes")[0] == 0


def test_in_two_pools_one_has_to_be_chosen(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(records={"10.6.0.12": RECORD}), pool("twin", records={"10.6.0.12": RECORD}))
    assert "is in pools lan, twin: choose with --pool" in ctl("ip", "release", "10.6.0.12", "--yes")[2]
    assert ctl("ip", "release", "10.6.0.12", "--yes", "--pool", "twin")[0] == 0
    found = json.loads(ctl("ip", "show", "10.6.0.12", "-o", "json")[1])["addresses"]
    assert [(a["pool"], a["state"]) for a in found] == [("lan", "used"), ("twin", "withheld")]


# -- the rules of a change ---------------------------------------------------------------------------------------------

NOW = 1_800_000_000.0
records = st.dictionaries(
    st.integers(10, 14).map(lambda last: f"10.6.0.{last}"),
    st.builds(
        AllocationRecord,
        pod=st.sampled_from(["default/a", "default/b"]),
        pod_uid=st.sampled_from(["u1", "u2", ""]),
        nic=st.sampled_from(["", "eth0", "net1"]),
        node=st.sampled_from(["", "n1"]),
        cid=st.sampled_from(["", CID]),
    ),
)


@given(records, st.integers(10, 14))
def test_a_release_takes_exactly_one_record(before: dict[str, AllocationRecord], last: int) -> None:
    text, number = f"10.6.0.{last}", 0x0A060000 + last
    if text not in before:
        return
    status = change.released(pool(records=before), number, before[text], None, now=NOW, rest=30)
    left = {key: record for key, record in before.items() if key != text}
    assert status.allocated_ips == encode_records(left)
    assert status.allocated_ip_count == len(left)
    resting = read_withheld(status.withheld_ips, 4)
    assert list(resting) == [number] and resting[number].until == NOW + 30


def test_what_has_changed_meanwhile_is_not_released() -> None:
    other = structs.replace(RECORD, pod="default/db", pod_uid="u9")
    with pytest.raises(Failure, match=r"has changed meanwhile, nothing was done: now pod default/db \(uid u9\) has it"):
        change.released(pool(records={"10.6.0.12": other}), 0x0A06000C, RECORD, None, now=NOW, rest=0)


def claim(**changes: Any) -> Claim:
    return structs.replace(Claim(pod="default/web", uid="u1", nic="eth0", node="n1", cid=CID), **changes)


def test_the_address_that_is_asked_for_is_the_one_that_is_given() -> None:
    for last in range(10, 15):
        status = change.granted(pool(), 0x0A060000 + last, claim(), now=NOW, force=False)
        assert json.loads(status.allocated_ips or "") == {
            f"10.6.0.{last}": {"pod": "default/web", "podUid": "u1", "nic": "eth0", "node": "n1", "cid": CID}
        }
        assert status.allocated_ip_count == 1


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (pool(records={"10.6.0.12": structs.replace(RECORD, pod="default/db")}), "belongs to pod default/db"),
        (pool(records={"10.6.0.13": RECORD}), "eth0 of pod default/web has 10.6.0.13/16 of pool lan already"),
        (pool(disable=True), "disable"),
        (pool(ips=["10.6.0.11"]), "full"),
    ],
)
def test_the_rules_of_every_grant_hold(made: SpiderIPPool, error: str) -> None:
    with pytest.raises(Failure, match=error):
        change.granted(made, 0x0A06000C, claim(), now=NOW, force=False)


def test_a_quarantine_is_ended_by_force_only() -> None:
    quarantined = json.dumps({"10.6.0.12": {"reason": "conflict: x", "until": "2999-01-01T00:00:00Z"}})
    made = structs.replace(pool(), status=IPPoolStatus(withheld_ips=quarantined))
    with pytest.raises(Failure, match=r"in quarantine \(conflict: x\): --force ends that"):
        change.granted(made, 0x0A06000C, claim(), now=NOW, force=False)
    status = change.granted(made, 0x0A06000C, claim(), now=NOW, force=True)
    assert "10.6.0.12" in (status.allocated_ips or "") and status.withheld_ips is None
    resting = quarantined.replace("conflict: x", COOL_DOWN)
    status = change.granted(
        structs.replace(made, status=IPPoolStatus(withheld_ips=resting)), 0x0A06000C, claim(), now=NOW, force=False
    )
    assert "10.6.0.12" in (status.allocated_ips or ""), "what only rests is given"


# -- set ---------------------------------------------------------------------------------------------------------------


def test_an_address_is_set_for_a_container_to_come(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool())
    code, out, err = ctl("ip", "set", "10.6.0.13", "--pod", "default/web", "--node", "n1", "--yes")
    assert code == 0, err
    assert "goes to eth0 of pod default/web (uid default/web), node n1, its next sandbox" in out
    seen = state(ctl, "10.6.0.13")
    assert (seen["pod"], seen["uid"], seen["container"]) == ("default/web", "default/web", NO_CONTAINER)
    code, _, err = ctl("ip", "set", "10.6.0.14", "--pod", "default/web", "--node", "n1", "--yes")
    assert (code, err) == (1, "spiderpoolctl ip: eth0 of pod default/web has 10.6.0.13/16 of pool lan already\n")


def test_the_journal_says_which_container_runs(ctl: Ctl, give: Callable[..., None], tmp_path: Path) -> None:
    give(pool())
    journal(tmp_path)
    assert ctl("ip", "set", "10.6.0.13", "--pod", "default/web", "--node", "n1", "--yes")[0] == 0
    seen = state(ctl, "10.6.0.13")
    assert (seen["uid"], seen["container"], seen["node"]) == ("u1", CID, "n1")


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["10.6.0.12"], 1, "10.6.0.12 of pool lan belongs to pod default/web (eth0): release it first"),
        (["10.6.9.9"], 1, "ADDRESS: no pool contains it"),
        (["10.6.0.14"], 1, "10.6.0.14 of pool lan is excluded: spec.excludeIPs"),
        (["10.6.0.13"], 1, "10.6.0.13 of pool lan is reserved: SpiderReservedIP r-10.6.0.13"),
        (["10.6.0.10", "--nic", "a b"], 2, "--nic: 'a b': no name of an interface"),
        (["10.6.0.10", "--container-id", "xyz"], 2, "--container-id: 'xyz': expected the id of a sandbox, 12"),
    ],
)
def test_what_cannot_be_set_is_said(
    ctl: Ctl, give: Callable[..., None], argv: list[str], code: int, error: str
) -> None:
    give(pool(records={"10.6.0.12": RECORD}, exclude_ips=["10.6.0.14"]), reserved=("10.6.0.13",))
    got, _, err = ctl("ip", "set", *argv, "--pod", "default/db", "--node", "n1", "--yes")
    assert got == code and err.startswith(f"spiderpoolctl ip: {error}")


def test_what_lies_in_two_pools_is_set_in_neither(ctl: Ctl, give: Callable[..., None]) -> None:
    give(pool(), pool("twin"))
    code, _, err = ctl("ip", "set", "10.6.0.12", "--pod", "a/b", "--node", "n1", "--pool", "lan", "--yes")
    assert code == 1 and "is in pools lan, twin: what lies in two pools is granted by neither" in err


WANTED = Wanted("default", "web", "eth0", "", "", "")


def pod(**changes: Any) -> Pod:
    made = Pod(
        metadata=ObjectMeta(name="web", namespace="default", uid="u1"),
        spec=PodSpec(node_name="n1"),
        status=PodStatus(phase="Pending"),
    )
    return structs.replace(made, **changes)


def test_a_pod_object_says_the_rest() -> None:
    assert from_pod(WANTED, pod()) == claim(cid=NO_CONTAINER)
    running = pod(status=PodStatus(phase="Running", pod_ips=[PodIP("10.6.0.9")]))
    with pytest.raises(Misuse, match="--container-id: missing: pod default/web runs"):
        from_pod(WANTED, running)
    assert from_pod(structs.replace(WANTED, container=CID), running) == claim()


@pytest.mark.parametrize(
    ("wanted", "made", "error"),
    [
        ({"uid": "u2"}, pod(), "--uid: u2: pod default/web has uid u1"),
        ({"node": "n2"}, pod(), "--node: n2: pod default/web is on node n1"),
        ({}, pod(spec=PodSpec()), "--node: missing: pod default/web is on no node yet"),
        ({}, pod(status=PodStatus(phase="Failed", reason="Evicted")), r"is Failed \(Evicted\): it needs no address"),
    ],
)
def test_a_pod_that_does_not_fit_is_said(wanted: dict[str, str], made: Pod, error: str) -> None:
    with pytest.raises(Failure, match=error):
        from_pod(structs.replace(WANTED, **wanted), made)


def test_whom_a_pod_object_speaks_for() -> None:
    assert by_pod(RECORD, pod()).live
    assert by_pod(RECORD, pod(metadata=ObjectMeta(uid="u1", deletion_timestamp="2026-01-01T00:00:00Z"))).live
    assert not by_pod(RECORD, None).live
    assert not by_pod(RECORD, pod(metadata=ObjectMeta(uid="u2"))).live
    assert not by_pod(structs.replace(RECORD, kept=True), pod()).live


def test_what_is_set_by_hand_is_not_collected() -> None:
    assert hostcollector.NO_CONTAINER == NO_CONTAINER


# -- the write ---------------------------------------------------------------------------------------------------------


async def test_another_writer_is_waited_for_and_seen(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / FILE_NAME)
    await fill(store, pool(records={"10.6.0.12": RECORD}))
    other = structs.replace(RECORD, pod="default/db", pod_uid="u2")
    calls = 0

    def decide(found: SpiderIPPool) -> IPPoolStatus:
        nonlocal calls
        calls += 1
        return change.released(found, 0x0A06000C, RECORD, None, now=time.time(), rest=0)

    real = store.get

    async def raced(*args: Any, **kwargs: Any) -> Any:
        found = await real(*args, **kwargs)
        if not calls:
            text = encode_records({"10.6.0.12": RECORD, "10.6.0.13": other})
            await store.patch(IPPOOL, "lan", {"status": {"allocatedIPs": text}}, subresource="status")
        return found

    store.get = raced  # type: ignore[method-assign]
    await change.commit(store, "lan", decide)
    assert calls == 2
    assert (await real(IPPOOL, "lan")).status.allocated_ips == encode_records({"10.6.0.13": other})
    await store.aclose()
