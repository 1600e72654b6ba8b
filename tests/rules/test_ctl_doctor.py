"""`spiderpoolctl doctor`: each invariant has a finding of its own when it is broken, and none when it holds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from api.core import Pod, PodSpec, PodStatus
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import ObjectMeta
from api.reservedip import ReservedIPSpec, SpiderReservedIP
from api.wire import PodRef
from cni.journal import JournalEntry, State
from ctl.diagnosis import Facts, Finding, diagnose, lasting
from ctl.doctor import Report, render
from ctl.ip.set import NO_CONTAINER
from ctl.main import main
from ctl.programs import Silent
from ipam.ledger import MAX_OBJECT_BYTES

CID = "0123456789ab"
RECORD = AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="n1", cid=CID)
RECORDS = {"10.6.0.12": RECORD}


def pool(name: str = "lan", records: dict[str, AllocationRecord] | None = None, **spec: Any) -> SpiderIPPool:
    held = RECORDS if records is None else records
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, uid=name),
        spec=IPPoolSpec(**{"subnet": "10.6.0.0/16", "ips": ["10.6.0.10-10.6.0.14"], **spec}),
        status=IPPoolStatus(allocated_ips=encode_records(held), allocated_ip_count=len(held)),
    )


def pod(uid: str = "u1", **status: str) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="web", namespace="default", uid=uid),
        spec=PodSpec(node_name="n1", restart_policy="Never"),
        status=structs.replace(PodStatus(phase="Running"), **status),
    )


def endpoint(uid: str = "u1", address: str = "10.6.0.12/16") -> SpiderEndpoint:
    detail = IPAllocationDetail(interface="eth0", ipv4=address, ipv4_pool="lan")
    current = EndpointCurrent(uid=uid, node="n1", ips=[detail])
    return SpiderEndpoint(metadata=ObjectMeta(name="web", namespace="default"), status=EndpointStatus(current=current))


def entry(**changes: Any) -> JournalEntry:
    made = JournalEntry(
        container_id=f"{CID}cdef",
        ifname="eth0",
        pod=PodRef("default", "web", "u1"),
        state=State.ADDED,
        addresses=("10.6.0.12/16",),
        pools=("lan",),
    )
    return structs.replace(made, **changes)


CLUSTER = Facts(pools=[pool()], reserved=[], endpoints=[endpoint()], pods=[pod()])
HOST = Facts(pools=[pool()], reserved=[], endpoints=[endpoint()], journal=[entry()])


def wrong(facts: Facts) -> list[tuple[str, str]]:
    return [(finding.check, finding.subject) for finding in diagnose(facts) if finding.wrong]


@pytest.mark.parametrize("facts", [CLUSTER, HOST])
def test_a_sound_store_has_no_finding(facts: Facts) -> None:
    assert diagnose(facts) == ()


V6 = pool("six", {"fd00::12": RECORD}, subnet="fd00::/64", ips=["fd00::10-fd00::20"])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"pools": [pool(), pool("twin", {})]}, [("overlap", "lan")]),
        (
            {"pools": [pool(), pool("twin")]},
            [("duplicate", "10.6.0.12"), ("duplicate", "default/web"), ("overlap", "lan")],
        ),
        (
            {"pools": [pool(records={**RECORDS, "10.6.0.13": RECORD})]},
            [("duplicate", "default/web"), ("endpoint", "default/web")],
        ),
        ({"pools": [pool(), V6]}, [("endpoint", "default/web")]),
        ({"pods": []}, [("orphan", "10.6.0.12")]),
        ({"pods": [pod("u2")]}, [("orphan", "10.6.0.12")]),
        ({"pods": [pod(phase="Failed", reason="Evicted")]}, [("orphan", "10.6.0.12")]),
        ({"endpoints": []}, [("endpoint", "default/web")]),
        ({"endpoints": [endpoint(uid="u2")]}, [("endpoint", "default/web")] * 2),
        ({"endpoints": [endpoint(), endpoint(address="10.6.0.13/16")]}, [("endpoint", "default/web")]),
        ({"pools": [pool(gateway="10.6.0.10")]}, [("gateway", "lan")]),
        ({"pools": [pool(gateway="router")]}, [("gateway", "lan")]),
        ({"pools": [pool(subnet="10.6.0.0")]}, [("endpoint", "default/web"), ("unreadable", "lan")]),
        (
            {"pools": [structs.replace(pool(), status=structs.replace(pool().status, allocated_ip_count=7))]},
            [("count", "lan")],
        ),
    ],
)
def test_each_broken_invariant_is_found(changes: dict[str, Sequence[Any]], found: list[tuple[str, str]]) -> None:
    assert wrong(structs.replace(CLUSTER, **changes)) == found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"journal": []}, [("orphan", "10.6.0.12")]),
        ({"journal": [entry(container_id="ffffffffffff")]}, [("journal", "10.6.0.12"), ("orphan", "10.6.0.12")]),
        ({"pools": [pool(records={})]}, [("journal", "10.6.0.12")]),
        (
            {"journal": [entry(), entry(container_id="ffffffffffff")]},
            [("duplicate", "10.6.0.12"), ("journal", "10.6.0.12")],
        ),
        ({"problems": ["journal: x.json: not JSON"]}, [("unreadable", "journal")]),
        ({"journal": [entry(state=State.ADDING, addresses=())]}, []),
    ],
)
def test_a_host_is_measured_by_its_journal(changes: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert wrong(structs.replace(HOST, **changes)) == found


def test_an_object_near_the_limit_is_found() -> None:
    long = {f"10.6.{n >> 8}.{n & 255}": structs.replace(RECORD, pod=f"d/{'x' * 200}-{n}") for n in range(4500)}
    (finding,) = [f for f in diagnose(structs.replace(CLUSTER, pools=[pool(records=long)])) if f.check == "size"]
    assert str(MAX_OBJECT_BYTES) in finding.text and finding.wrong


def test_what_is_as_it_should_be_is_no_error() -> None:
    kept = {
        "10.6.0.12": structs.replace(RECORD, kept=True),
        "10.6.0.13": structs.replace(RECORD, kept=True, nic="net1"),
    }
    withheld = json.dumps({"10.6.0.11": {"reason": "conflict: 02::1", "until": "2999-01-01T00:00:00Z"}})
    made = pool(records=kept)
    made = structs.replace(made, status=structs.replace(made.status, withheld_ips=withheld))
    reserved = SpiderReservedIP(metadata=ObjectMeta(name="r"), spec=ReservedIPSpec(ips=["10.6.0.13"]))
    findings = diagnose(Facts(pools=[made], reserved=[reserved], endpoints=[], pods=[]))
    assert sorted({finding.check for finding in findings}) == ["kept", "reserved", "withheld"]
    assert not any(finding.wrong for finding in findings)
    outside = diagnose(structs.replace(CLUSTER, pools=[pool(ips=["10.6.0.14"])]))
    assert [(finding.check, finding.wrong) for finding in outside] == [("outside", False)]


def test_what_waits_for_its_first_sandbox_has_no_endpoint_and_no_journal_yet() -> None:
    held = {"10.6.0.12": structs.replace(RECORD, cid=NO_CONTAINER)}
    assert diagnose(Facts(pools=[pool(records=held)], reserved=[], endpoints=[], pods=[pod()])) == ()
    assert diagnose(Facts(pools=[pool(records=held)], reserved=[], endpoints=[], journal=[])) == ()


def test_a_virtual_machines_address_is_its_launchers() -> None:
    held = {"10.6.0.12": structs.replace(RECORD, pod="default/vm")}
    assert diagnose(structs.replace(CLUSTER, pools=[pool(records=held)])) == ()


def test_what_is_under_way_is_no_finding() -> None:
    passing = diagnose(structs.replace(CLUSTER, pods=[]))
    assert lasting(passing, diagnose(CLUSTER)) == ()
    assert lasting(diagnose(CLUSTER), passing) == ()
    assert lasting(passing, passing) == passing


def test_the_report_says_what_is_wrong_first() -> None:
    findings = (Finding("orphan", "10.6.0.12", "x"), Finding("kept", "10.6.0.13", "y", wrong=False))
    text = render(Report(pools=1, records=2, findings=findings), wide=False)
    assert "orphan" in text and "10.6.0.13" not in text
    assert "worth to know: 1 kept (-o wide shows them)" in text and text.endswith("WRONG: 1 findings\n")
    assert "(kept)" in render(Report(pools=1, records=2, findings=findings), wide=True)
    assert render(Report(pools=0, records=0, findings=()), wide=False) == "0 pools, 0 records\nAll is well.\n"


def test_the_program_reads_a_state_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {name: lan}\n"
        "spec: {subnet: 10.6.0.0/16, ips: [10.6.0.10]}\n"
    )
    state = ["--state-dir", str(tmp_path)]
    assert main(["apply", "-f", str(file), *state]) == 0
    assert main(["doctor", *state]) == 0
    assert capsys.readouterr().out.endswith("1 pools, 0 records\nAll is well.\n")
    assert main(["ip", "set", "10.6.0.10", "--pod", "a/b", "--node", "n", "--container-id", CID, "--yes", *state]) == 0
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "x.json").write_text("{")
    capsys.readouterr()
    assert main(["doctor", "--settle", "0", "-o", "json", *state]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(f["check"], f["subject"]) for f in found] == [("orphan", "10.6.0.10"), ("unreadable", "journal")]
    assert (tmp_path / "journal" / "x.json").exists(), "looking changes nothing"


# -- gc ----------------------------------------------------------------------------------------------------------------


class Fake:
    """A program that answers, or does not."""

    def __init__(self, name: str, error: str = "") -> None:
        self.name = name
        self.error = error
        self.asked: list[tuple[str, str]] = []

    async def ask(self, method: str, path: str, query: object = None) -> bytes:
        self.asked.append((method, path))
        if self.error:
            raise Silent(self.error)
        return b""


@pytest.fixture
def gc(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    file = tmp_path / "p.yaml"
    file.write_text(
        "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {name: lan}\n"
        "spec: {subnet: 10.6.0.0/16, ips: [10.6.0.10]}\n"
    )
    state = ["--state-dir", str(tmp_path)]
    assert main(["apply", "-f", str(file), *state]) == 0
    assert main(["ip", "set", "10.6.0.10", "--pod", "a/b", "--node", "n", "--container-id", CID, "--yes", *state]) == 0

    def run(*argv: str, programs: Sequence[Fake]) -> tuple[int, dict[str, Any]]:
        async def replicas(*_: object, **__: object) -> Sequence[Fake]:
            return programs

        monkeypatch.setattr("ctl.programs.replicas", replicas)
        capsys.readouterr()
        code = main(["gc", *argv, "-o", "json", *state])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else {}

    return run


def test_every_replica_is_told(gc: Callable[..., Any]) -> None:
    fakes = [Fake("a"), Fake("b", "connection refused")]
    code, said = gc(programs=fakes)
    assert code == 0
    assert [(told["program"], told["answer"]) for told in said["told"]] == [("a", "ok"), ("b", "connection refused")]
    assert fakes[0].asked == fakes[1].asked == [("POST", "/v1/ipam/gc_ips")]


def test_nobody_told_is_an_error(gc: Callable[..., Any]) -> None:
    assert gc(programs=[Fake("a", "x")])[0] == 1
    assert gc(programs=[]) == (1, {})


def test_of_one_address_it_says_what_became(gc: Callable[..., Any]) -> None:
    code, said = gc("--address", "10.6.0.10", "--wait", "0", programs=[Fake("a")])
    assert (code, said["released"]) == (1, False)
    assert said["why"].startswith("the journal knows no such container; as far as is known a link on node n still")
    assert gc("--address", "10.6.0.11", programs=[Fake("a")]) == (1, {})
    assert gc("--address", "x", programs=[Fake("a")]) == (2, {})
