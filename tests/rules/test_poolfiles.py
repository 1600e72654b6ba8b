"""Pools from files: what is applied, what stays, what goes, and what is said of a file that makes no sense."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
import yaml

from actors.poolfiles import LOOK_SECONDS, SOURCE, DiskFolder, File, PoolFiles, PoolFilesActor, Stamp, plan
from api.ippool import AllocationRecord, SpiderIPPool, encode_records
from api.kinds import IPPOOL, RESERVEDIP
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import Unavailable
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from telemetry.health import HealthTree, State


def pool(name: str, *ips: str, **spec: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderIPPool",
            "metadata": {"name": name},
            "spec": {"subnet": "10.6.0.0/16", "ips": list(ips), **spec},
        }
    )


RESERVED = """\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: printers}
spec: {ips: [10.6.0.99]}
"""


class Memory:
    """A folder in memory. Every write is another stamp."""

    def __init__(self, **files: str) -> None:
        self.texts: dict[str, str] = {}
        self._stamps: dict[str, Stamp] = {}
        self._writes = 0
        self.gone = False
        self.reads = 0
        for name, text in files.items():
            self.write(f"{name}.yaml", text)

    def write(self, name: str, text: str) -> None:
        self._writes += 1
        self.texts[name], self._stamps[name] = text, Stamp(inode=1, size=len(text), mtime_ns=self._writes)

    def remove(self, name: str) -> None:
        del self.texts[name], self._stamps[name]

    async def stamps(self) -> Mapping[str, Stamp]:
        if self.gone:
            raise FileNotFoundError(2, "No such file or directory")
        return dict(self._stamps)

    async def read(self, names: Iterable[str]) -> list[File]:
        self.reads += 1
        return [File(name, text=self.texts[name]) for name in names]


async def rounds(files: PoolFiles, count: int = 2) -> Mapping[str, str]:
    for _ in range(count):
        await files.round()
    return files.errors


async def names(store: MemoryStore) -> set[str]:
    return {item.metadata.name for item in (await store.list(IPPOOL)).items}


async def use(store: MemoryStore, name: str, address: str | None) -> None:
    record = AllocationRecord(pod="default/web", pod_uid="u", nic="eth0", node="n1", cid="0123456789ab")
    text = encode_records({address: record} if address else {})
    status = {"allocatedIPs": text, "allocatedIPCount": 1 if address else 0}
    await store.patch(IPPOOL, name, {"status": status}, subresource="status")


async def test_the_store_holds_what_the_files_say() -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10") + "---\n" + RESERVED)
    files = PoolFiles(folder, store)
    assert await rounds(files, 1) == {}, "the first look applies: whoever is served finds the pools"
    assert (await store.get(IPPOOL, "lan")).metadata.annotations == {SOURCE: "lan.yaml"}
    folder.write("lan.yaml", pool("lan", "10.6.0.10", "10.6.0.20"))
    assert await rounds(files) == {}
    assert (await store.get(IPPOOL, "lan")).spec.ips == ["10.6.0.10", "10.6.0.20"]
    assert not (await store.list(RESERVEDIP)).items


async def test_a_file_is_not_applied_while_it_is_written() -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10") + "---\n" + pool("spare", "10.6.1.10"))
    files = PoolFiles(folder, store)
    await rounds(files, 1)
    folder.write("lan.yaml", pool("lan", "10.6.0.10"))  # half of it
    await rounds(files, 1)
    folder.write("lan.yaml", pool("lan", "10.6.0.10") + "---\n" + pool("spare", "10.6.1.10", "10.6.1.11"))
    await rounds(files)
    assert (await store.get(IPPOOL, "spare")).spec.ips == ["10.6.1.10", "10.6.1.11"]
    assert (await store.get(IPPOOL, "spare")).metadata.generation == 2, "it was never deleted"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (pool("lan", "10.6.0.10", gatway="10.6.0.1"), "lan.yaml: spec.gatway: '10.6.0.1': no such field (did you mean"),
        (
            pool("lan", "10.7.0.10"),
            'lan.yaml: spec.ips[0]: Invalid value: "10.7.0.10": outside of spec.subnet 10.6.0.0/16',
        ),
        ("kind: [", "lan.yaml: not YAML"),
        (
            RESERVED.replace("SpiderReservedIP", "SpiderEndpoint")
            .replace("name: printers", "name: x, namespace: y")
            # an endpoint has no spec
            .replace("spec: {ips: [10.6.0.99]}", "status: {}"),
            "lan.yaml: kind: 'SpiderEndpoint' has no place in this folder (one of SpiderIPPool,",
        ),
        (pool("a", "10.6.0.10") + "---\n" + pool("a", "10.6.0.11"), "SpiderIPPool a is in lan.yaml already"),
    ],
)
async def test_a_file_that_makes_no_sense_changes_nothing(text: str, error: str) -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10"), other=pool("other", "10.6.2.10"))
    files = PoolFiles(folder, store)
    await rounds(files, 1)
    before = await store.get(IPPOOL, "lan")
    folder.write("lan.yaml", text)
    folder.write("other.yaml", pool("other", "10.6.2.11"))
    errors = await rounds(files)
    assert list(errors) == ["lan.yaml"] and error in errors["lan.yaml"]
    assert await store.get(IPPOOL, "lan") == before
    assert (await store.get(IPPOOL, "other")).spec.ips == ["10.6.2.11"], "other files are applied all the same"
    folder.write("lan.yaml", pool("lan", "10.6.0.11"))
    assert await rounds(files) == {}


async def test_of_two_files_with_one_pool_the_first_counts() -> None:
    found = plan([File("b.yaml", pool("lan", "10.6.0.2")), File("a.yaml", pool("lan", "10.6.0.1"))])
    assert found.owner == {("SpiderIPPool", "lan"): "a.yaml"}
    assert "b.yaml: metadata.name: 'lan': SpiderIPPool lan is in a.yaml already" in found.errors["b.yaml"]


async def test_a_pool_whose_file_went_goes_when_nobody_has_an_address_of_it() -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10"))
    files = PoolFiles(folder, store)
    await rounds(files, 1)
    await use(store, "lan", "10.6.0.10")
    folder.remove("lan.yaml")
    errors = await rounds(files)
    assert errors == {"lan.yaml": "lan.yaml has no SpiderIPPool lan any more, it stays: 1 addresses are in use"}
    await use(store, "lan", None)
    assert await rounds(files, 25) == {}
    assert await names(store) == set()


async def test_a_file_that_went_while_the_program_was_down_is_noticed() -> None:
    store = MemoryStore()
    await rounds(PoolFiles(Memory(lan=pool("lan", "10.6.0.10"), other=pool("other", "10.6.1.1")), store), 1)
    await rounds(PoolFiles(Memory(other=pool("other", "10.6.1.1")), store), 1)
    assert await names(store) == {"other"}


async def test_what_came_from_no_file_is_left_alone() -> None:
    store = MemoryStore()
    await store.create(IPPOOL, msgspec.convert(yaml.safe_load(pool("hand", "10.6.5.1")), SpiderIPPool))
    await rounds(PoolFiles(Memory(lan=pool("lan", "10.6.0.10")), store))
    assert await names(store) == {"hand", "lan"}


async def test_a_folder_that_cannot_be_listed_is_no_empty_folder() -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10"))
    files = PoolFiles(folder, store)
    await rounds(files, 1)
    folder.gone = True
    assert await rounds(files, 3) == {"the folder": "it cannot be listed: No such file or directory"}
    assert await names(store) == {"lan"}
    folder.gone = False
    assert await rounds(files) == {}


async def test_a_pool_keeps_its_network_and_what_is_in_use() -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10-10.6.0.12"))
    files = PoolFiles(folder, store)
    await rounds(files, 1)
    await use(store, "lan", "10.6.0.11")
    folder.write("lan.yaml", pool("lan", "10.6.0.10-10.6.0.12", excludeIPs=["10.6.0.11"]))
    errors = await rounds(files)
    assert errors["lan.yaml"].endswith(
        "spec.excludeIPs: Forbidden: would leave out what is in use: 10.6.0.11 of default/web"
    )
    folder.write("lan.yaml", pool("lan", "10.6.0.10-10.6.0.12").replace("/16", "/24"))
    errors = await rounds(files)
    assert errors["lan.yaml"].endswith('spec.subnet: Invalid value: "10.6.0.0/24": it is 10.6.0.0/16 and never changes')
    folder.write("lan.yaml", pool("lan", "10.6.0.11"))
    assert await rounds(files) == {}


async def test_what_the_store_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = MemoryStore(), Memory(lan=pool("lan", "10.6.0.10"))
    files = PoolFiles(folder, store)
    real = store.create

    async def down(*_: object) -> Any:
        raise Unavailable("not now")

    monkeypatch.setattr(store, "create", down)
    assert await rounds(files, 1) == {"lan.yaml": "lan.yaml: not now"}
    monkeypatch.setattr(store, "create", real)
    assert await rounds(files, 25) == {}
    assert await names(store) == {"lan"}


async def test_nothing_is_read_while_nothing_changes() -> None:
    folder = Memory(lan=pool("lan", "10.6.0.10"))
    await rounds(PoolFiles(folder, MemoryStore()), 50)
    assert folder.reads == 1


async def test_a_folder_of_this_machine(tmp_path: Path) -> None:
    folder = DiskFolder(tmp_path / "pools")
    with pytest.raises(FileNotFoundError):
        await folder.stamps()
    (tmp_path / "pools").mkdir()
    for name, content in {"b.yml": b"x", "a.yaml": b"\xff", ".c.yaml": b"x", "d.txt": b"x", "e.json": b"{}"}.items():
        (tmp_path / "pools" / name).write_bytes(content)
    stamps = await folder.stamps()
    assert list(stamps) == ["a.yaml", "b.yml", "e.json"]
    bad, good, _ = await folder.read(stamps)
    assert bad.error.startswith("a.yaml: not UTF-8") and good == File("b.yml", text="x")
    assert (await folder.read(["nil.yaml"]))[0].error == "nil.yaml: No such file or directory"
    (tmp_path / "pools" / "b.yml").write_text("xy")
    assert (await folder.stamps())["b.yml"] != stamps["b.yml"]


def test_what_is_wrong_shows_in_health_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    health = HealthTree("standalone")

    async def main() -> None:
        system = System(clock=VirtualClock(), random=Random(1), health=health)
        supervisor = Supervisor("standalone", system)
        folder = Memory(lan="kind: nil")
        files = PoolFiles(folder, MemoryStore())
        await files.round()
        supervisor.add_actor("poolfiles", lambda: PoolFilesActor(files))
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            await anyio.sleep(60 * LOOK_SECONDS)
            report = health.get("standalone/poolfiles/files")
            assert report is not None and report.state is State.DEGRADED
            assert report.detail.startswith("lan.yaml: kind: 'nil' is none that can be applied")
            folder.write("lan.yaml", pool("lan", "10.6.0.10"))
            await anyio.sleep(5 * LOOK_SECONDS)
            report = health.get("standalone/poolfiles/files")
            assert report is not None and report.state is State.OK
            await supervisor.stop()

    run(main, seed=1)
    assert len([r for r in caplog.records if "kind: 'nil'" in r.getMessage()]) == 1, "it is said once"
