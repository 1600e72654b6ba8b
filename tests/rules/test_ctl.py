"""The command line on an embedded store: what YAML may say, what apply changes, what get shows, exit codes."""

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actors.manifest import KINDS, ManifestError, difference, read
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import ObjectMeta
from ctl.demo.echo import checksum
from ctl.get import render
from ctl.main import main
from runtime.store.merge import merge_patch

POOL = """\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan}
spec:
  subnet: 10.6.0.0/16
  ips: [10.6.0.10-10.6.0.20]
  gateway: 10.6.0.1
  podAffinity: {matchLabels: {app: web}}
"""


def test_a_pool_is_read() -> None:
    (manifest,) = read(POOL, source="p.yaml")
    assert isinstance(manifest.item, SpiderIPPool)
    assert str(manifest) == "SpiderIPPool lan"
    assert (manifest.item.spec.gateway, manifest.where) == ("10.6.0.1", "p.yaml")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("gateway:", "gatway:", "p.yaml: spec.gatway: '10.6.0.1': no such field (did you mean gateway?)"),
        ("matchLabels", "matchLabel", "p.yaml: spec.podAffinity.matchLabel: {'app': 'web'}: no such field (did you"),
        ("SpiderIPPool", "Spiderippool", "p.yaml: kind: 'Spiderippool' is none that can be applied (did you mean"),
        ("SpiderIPPool", "Pod", "p.yaml: kind: 'Pod' is none that can be applied (one of SpiderIPPool,"),
        ("v2beta1", "v1", "p.yaml: apiVersion: 'spiderpool.spidernet.io/v1': expected spiderpool.spidernet.io/v2beta1"),
        ("{name: lan}", "{}", "p.yaml: metadata.name: missing"),
        ("{name: lan}", "{name: lan, namespace: x}", "p.yaml: metadata.namespace: 'x': a SpiderIPPool lives in no"),
        ("10.6.0.0/16", "10.6.0.0", 'p.yaml: spec.subnet: Invalid value: "10.6.0.0": expected a CIDR'),
        ("10.6.0.0/16", "fd00::/64", 'p.yaml: spec.ips[0]: Invalid value: "10.6.0.10-10.6.0.20": '),
        (
            "10.6.0.20",
            "10.7.0.20",
            'p.yaml: spec.ips[0]: Invalid value: "10.6.0.10-10.7.0.20": 10.7.0.0-10.7.0.20 is outside of',
        ),
        (
            "10.6.0.1\n",
            "10.5.0.1\n",
            'p.yaml: spec.gateway: Invalid value: "10.5.0.1": outside of spec.subnet 10.6.0.0/16',
        ),
        (
            "  gateway",
            "  ipVersion: 6\n  gateway",
            "p.yaml: spec.ipVersion: Invalid value: 6: spec.subnet 10.6.0.0/16 is IPv4",
        ),
        ("  gateway", "  disable: 3\n  gateway", "p.yaml: spec.disable: 3: expected bool, got int"),
        ("  gateway", "\tgateway", "p.yaml: not YAML: "),
        (POOL, "- 1\n", "p.yaml: [1] is no object"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, error: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read(POOL.replace(old, new), source="p.yaml")
    assert str(caught.value).startswith(error)


def test_a_document_is_named_by_its_number() -> None:
    with pytest.raises(ManifestError, match=r"^p\.yaml document 2: kind: None is none"):
        read(f"{POOL}---\n{{}}\n", source="p.yaml")


def test_the_kinds_are_those_of_the_group() -> None:
    assert {kind.group for kind in KINDS.values()} == {"spiderpool.spidernet.io"}
    assert len(KINDS) == 6


plain = st.recursive(st.integers() | st.text(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner))


@given(before=st.dictionaries(st.sampled_from("abc"), plain), after=st.dictionaries(st.sampled_from("abc"), plain))
def test_the_spec_becomes_what_the_file_says(before: dict[str, Any], after: dict[str, Any]) -> None:
    stored = {"metadata": {"labels": {"kept": "1"}}, "spec": before, "status": {"x": 1}}
    change = difference(stored, {"metadata": {"labels": {"new": "2"}}, "spec": after})
    result: Any = merge_patch(stored, change)
    assert result["spec"] == after
    assert result["metadata"]["labels"] == {"kept": "1", "new": "2"}
    assert result["status"] == {"x": 1}


def test_apply_and_get(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file, state = tmp_path / "p.yaml", ["--state-dir", str(tmp_path)]
    file.write_text(POOL)
    assert main(["apply", "-f", str(file), *state]) == 0
    assert main(["apply", "-f", str(file), *state]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(POOL.replace("  gateway: 10.6.0.1\n", "")))
    assert main(["apply", "-f", "-", *state]) == 0
    assert capsys.readouterr().out == "".join(
        f"SpiderIPPool lan {did}\n" for did in ("created", "unchanged", "changed")
    )
    assert main(["get", "pools", "nil", *state]) == 1
    assert capsys.readouterr().err == "spiderpoolctl get: no SpiderIPPool is named nil\n"
    assert main(["get", "pools", *state]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   VERSION   SUBNET        ALLOCATED   TOTAL   DEFAULT   DISABLE",
        "lan    4         10.6.0.0/16   0           11      false     false",
    ]


def test_a_pool_keeps_what_is_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, state = tmp_path / "p.yaml", ["--state-dir", str(tmp_path)]
    file.write_text(POOL)
    assert main(["apply", "-f", str(file), *state]) == 0
    assert main(["ip", "set", "10.6.0.15", "--pod", "a/b", "--node", "n", "--yes", *state]) == 0
    for old, new, error in (
        (
            "10.6.0.10-10.6.0.20",
            "10.6.0.10-10.6.0.14",
            "spec.ips: Forbidden: would leave out what is in use: 10.6.0.15 of a/b",
        ),
        (
            "10.6.0.0/16",
            "10.6.0.0/24",
            'spec.subnet: Invalid value: "10.6.0.0/24": it is 10.6.0.0/16 and never changes',
        ),
    ):
        file.write_text(POOL.replace(old, new))
        capsys.readouterr()
        assert main(["apply", "-f", str(file), *state]) == 1
        assert capsys.readouterr().err == f"spiderpoolctl apply: {file}: SpiderIPPool lan: {error}\n"
    file.write_text(POOL.replace("10.6.0.10-10.6.0.20", "10.6.0.15"))
    assert main(["apply", "-f", str(file), *state]) == 0


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_objects_are_printed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    file, state = tmp_path / "p.yaml", ["--state-dir", str(tmp_path)]
    file.write_text(POOL)
    assert main(["apply", "-f", str(file), *state]) == 0
    capsys.readouterr()
    assert main(["get", "pools", "-o", form, *state]) == 0
    (item,) = yaml.safe_load(capsys.readouterr().out)["items"]
    assert (item["kind"], item["metadata"]["name"]) == ("SpiderIPPool", "lan")
    assert item["spec"]["podAffinity"] == {"matchLabels": {"app": "web"}}
    for kind in ("endpoints", "reservedips", "subnets", "coordinators", "multusconfigs"):
        assert main(["get", kind, *state]) == 0
        assert capsys.readouterr().out.startswith("no ")


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["get", "pools", "--state-dir", "nowhere"], 2, "spiderpoolctl get: --state-dir: nowhere: no such folder"),
        (["get", "pools"], 2, "spiderpoolctl get: no store is named: give --state-dir DIR, or set KUBECONFIG"),
        (["apply", "-f", "nil.yaml"], 2, "spiderpoolctl apply: --filename: nil.yaml: No such file or directory"),
        (["demo", "--shim", "nil"], 2, "spiderpoolctl demo: --shim: nil: no such executable"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    argv: list[str], code: int, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert main(argv) == code
    written = capsys.readouterr().err
    assert written.startswith(error) and written.count("\n") == 1


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nil"])
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("spiderpool ")


def test_the_table_shows_who_holds_what() -> None:
    record = AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="n1", cid="0123456789ab")
    pool = SpiderIPPool(
        metadata=ObjectMeta(name="lan"),
        spec=IPPoolSpec(subnet="10.6.0.0/16", ips=["10.6.0.10-10.6.0.20"], default=True),
        status=IPPoolStatus(allocated_ips=encode_records({"10.6.0.12": record})),
    )
    broken = msgspec.structs.replace(
        pool, metadata=ObjectMeta(name="odd"), status=IPPoolStatus(allocated_ips='{"10.6.0.012":{}}')
    )
    lines = render([pool, broken]).splitlines()
    assert lines[1].split() == ["lan", "4", "10.6.0.0/16", "1", "11", "true", "false"]
    assert lines[2].split() == ["odd", "4", "10.6.0.0/16", "?", "?", "true", "false"]
    assert lines[5].split() == ["lan", "10.6.0.12", "default/web", "eth0", "n1", "0123456789ab", "u1"]
    assert lines[6].startswith("SpiderIPPool odd: status.allocatedIPs: ")
    assert render([]) == "no pools\n"


def test_the_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"\x01") == 0xFEFF
