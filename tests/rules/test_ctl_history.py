"""`spiderpoolctl history`: from pages and records, on an embedded store, with what is wrong said by name."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from actors.pools.history import KEY, LABELS, name_of
from api.core import ConfigMap
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.kinds import CONFIGMAP, IPPOOL
from api.meta import ObjectMeta, OwnerReference
from ctl.history import gathered, render
from ctl.main import main
from ipam.history import Book, Change, What, encoded, folded
from runtime.store.sqlite import FILE_NAME, SQLiteStore

NOW = 1_780_000_000.0
IP = "10.6.0.9"
Ctl = Callable[..., tuple[int, str, str]]


def change(at: float, what: What, pod: str, *, ip: str = IP, late: bool = False) -> Change:
    return Change(NOW + at, ip, what, f"shop/{pod}", f"uid-{pod}", "eth0", "n1", f"cid-{pod}", late=late)


def record(pod: str) -> AllocationRecord:
    return AllocationRecord(pod=f"shop/{pod}", pod_uid=f"uid-{pod}", nic="eth0", node="n1", cid=f"cid-{pod}")


def pool(name: str = "v4", **held: str) -> SpiderIPPool:
    records = {f"10.6.0.{number.removeprefix('_')}": record(pod) for number, pod in held.items()}
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, uid=f"uid-{name}"),
        spec=IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.99"]),
        status=IPPoolStatus(allocated_ips=encode_records(records)),
    )


def page(data: bytes, name: str = "v4", uid: str = "") -> ConfigMap:
    owner = OwnerReference(api_version=IPPOOL.api_version, kind=IPPOOL.kind, name=name, uid=uid or f"uid-{name}")
    meta = ObjectMeta(name=name_of(name), namespace="spiderpool", labels=LABELS, owner_references=[owner])
    return ConfigMap(metadata=meta, binary_data={KEY: data})


STORY = folded(
    Book(),
    [
        change(0, "granted", "a"),
        change(5, "granted", "z", ip="10.6.0.10"),
        change(60, "released", "a"),
        change(90, "granted", "b", late=True),
        change(120, "kept", "b"),
        change(180, "taken over", "b2"),
    ],
)


def test_an_address_has_one_line_for_each_holder() -> None:
    found = gathered([page(encoded(STORY))], [pool(_9="b2", _10="z")], IP, at=None, now=NOW + 999)
    assert [(it.pod, it.how, it.end, it.noticed) for it in found.holders] == [
        ("shop/a", "granted", "released", ()),
        ("shop/b", "granted", "kept", ("from",)),
        ("shop/b", "kept", "taken over", ()),
        ("shop/b2", "taken over", "", ()),
    ]
    text = render(found, wide=False)
    assert text.splitlines()[1].split()[-3:] == ["2026-05-28T20:26:40Z", "2026-05-28T20:27:40Z", "released"]
    assert "<2026-05-28T20:28:10Z" in text
    assert "cid-b2" not in text
    assert "cid-b2" in render(found, wide=True)


def test_a_pod_has_one_line_for_each_address() -> None:
    found = gathered([page(encoded(STORY))], [pool(_9="b2", _10="z")], "shop/z", at=None, now=NOW + 999)
    assert [(it.address, it.pool, it.until) for it in found.holders] == [("10.6.0.10", "v4", "")]


@pytest.mark.parametrize(
    ("at", "pods"), [(-1, []), (30, ["shop/a"]), (60, ["shop/a", "shop/b"]), (130, ["shop/b"]), (10_000, ["shop/b2"])]
)
def test_who_had_it_then(at: float, pods: list[str]) -> None:
    """What was found late may have been there for longer than is known."""
    found = gathered([page(encoded(STORY))], [pool(_9="b2", _10="z")], IP, at=NOW + at, now=NOW + 999)
    assert [it.pod for it in found.holders if it.pod != "shop/b" or at >= 60] == pods


def test_what_is_not_noted_yet_is_found_by_the_records() -> None:
    found = gathered([], [pool(_9="new")], IP, at=None, now=NOW)
    assert [(it.pod, it.began, it.noticed) for it in found.holders] == [("shop/new", "2026-05-28T20:26:40Z", ("from",))]
    found = gathered([page(encoded(STORY))], [pool(_10="z")], IP, at=None, now=NOW + 999)
    assert (found.holders[-1].pod, found.holders[-1].end, found.holders[-1].noticed) == (
        "shop/b2",
        "released",
        ("until",),
    )


def test_a_forgotten_beginning_is_said_and_a_page_that_cannot_be_read_too() -> None:
    cut = folded(STORY, [], most=2)
    found = gathered([page(encoded(cut))], [pool(_9="b2", _10="z")], "shop/z", at=None, now=NOW + 999)
    assert [(it.pod, it.began) for it in found.holders] == [("shop/z", "2026-05-28T20:26:45Z")]
    assert "pool v4: not everything is known from before 2026-05-28T20:28:10Z" in render(found, wide=False)
    found = gathered([page(b"nonsense")], [pool(_9="b2")], IP, at=None, now=NOW)
    assert [it.pod for it in found.holders] == ["shop/b2"]
    assert found.problems[0].startswith("pool v4: ")


def test_the_page_of_an_earlier_pool_of_the_name_is_not_this_pools() -> None:
    assert gathered([page(encoded(STORY), uid="old")], [pool()], IP, at=None, now=NOW).holders == ()


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """The program on a store with one pool and its history."""

    async def fill() -> None:
        store = SQLiteStore(tmp_path / FILE_NAME)
        made = await store.create(IPPOOL, pool())
        status = {"status": {"allocatedIPs": pool(_9="b2", _10="z").status.allocated_ips}}
        await store.patch(IPPOOL, "v4", status, subresource="status")
        await store.create(CONFIGMAP, page(encoded(STORY), uid=made.metadata.uid))
        await store.aclose()

    asyncio.run(fill())

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["history", *argv, "--state-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_on_an_embedded_store(ctl: Ctl) -> None:
    code, out, _ = ctl("ip", IP, "-o", "json")
    assert code == 0
    assert [it["pod"] for it in json.loads(out)["holders"]] == ["shop/a", "shop/b", "shop/b", "shop/b2"]
    assert json.loads(out)["holders"][0]["from"] == "2026-05-28T20:26:40Z"
    code, out, _ = ctl("pod", "shop/a", "-o", "yaml")
    assert [it["address"] for it in yaml.safe_load(out)["holders"]] == [IP]
    code, out, _ = ctl("ip", IP, "--at", "2026-05-28T22:27:00+02:00")
    assert code == 0
    assert "shop/a" in out
    assert "shop/b2" not in out


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (("ip", "10.6.0.300"), 2, "10.6.0.300"),
        (("pod", "web"), 2, "expected NAMESPACE/NAME"),
        (("ip", IP, "--at", "yesterday"), 2, "--at: 'yesterday': expected a time with its zone"),
        (("ip", IP, "--at", "2026-05-28T22:27:00"), 2, "with its zone"),
        (("ip", "10.6.0.50"), 1, "nothing is known of 10.6.0.50, of 1 histories in namespace spiderpool"),
        (("pod", "shop/nobody"), 1, "nothing is known of shop/nobody"),
        (("ip", "10.6.0.50", "-n", "elsewhere"), 1, "of 0 histories in namespace elsewhere"),
    ],
)
def test_what_cannot_be_answered_is_said(ctl: Ctl, argv: tuple[str, ...], code: int, error: str) -> None:
    found, out, err = ctl(*argv)
    assert (found, out) == (code, "")
    assert error in err
    assert "Traceback" not in err
