"""The journal: what was put is there after a restart, whatever else lies in the folder."""

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from api.wire import PodRef
from cni.coordination import CoordinationPlan
from cni.errors import IoFailure
from cni.journal import COORDINATOR, NETWORKS, Journal, JournalEntry, Key, State
from cni.protocol import Role
from cni.result import IpConfig, Result
from ctl.journal import read


def entry(container_id: str = "c1", ifname: str = "eth0", **changes: object) -> JournalEntry:
    return JournalEntry(
        container_id=container_id,
        ifname=ifname,
        netns="/run/netns/pod",
        pod=PodRef(namespace="default", name="web-0", uid="u-1"),
        **changes,  # type: ignore[arg-type]
    )


def test_put_load_remove(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.load_all() == []
    first, second = entry(), entry(ifname="net1", role=Role.IPAM)
    journal.put(first)
    journal.put(second)
    added = entry(
        state=State.ADDED,
        pools=("p",),
        addresses=("10.0.0.5/16",),
        mac="02:00:00:00:00:01",
        kind="macvlan",
        result=Result(ips=(IpConfig(address="10.0.0.5/16"),)),
        changed_ns=5,
    )
    journal.put(added)
    assert {one.key: one for one in Journal(tmp_path / "journal").load_all()} == {added.key: added, second.key: second}
    journal.remove(added.key)
    journal.remove(added.key)
    assert Journal(tmp_path / "journal").load_all() == [second]
    journal.remove(second.key)
    assert list((tmp_path / "journal").iterdir()) == []


@pytest.mark.parametrize(
    ("state", "part", "syncs"),
    [
        (State.ADDING, "", 0),
        (State.ADDED, "", 2),
        (State.RELEASING, "", 2),
        (State.ADDED, COORDINATOR, 0),
        (State.ADDING, NETWORKS, 2),
        (State.ADDED, NETWORKS, 2),
    ],
)
def test_what_an_answer_hangs_on_is_synced_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, part: str, syncs: int
) -> None:
    synced: list[int] = []
    journal = Journal(tmp_path / "journal")
    journal.load_all()
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal.put(entry(state=state, part=part))
    assert len(synced) == syncs
    journal.put(entry(state=state, part=part, mac="02:00:00:00:00:01"))
    assert len(synced) == 2 * syncs
    journal.remove(Key("c1", "eth0", part))
    assert len(synced) == 2 * syncs, "one that is back is released again, which finds nothing"


def test_entries_that_are_put_together_wait_for_the_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[int] = []
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", folders.append)
    entries = [entry(f"c{number}", state=State.ADDED) for number in range(20)]
    assert journal.put_all(entries) == [None] * 20
    assert len(folders) == 1
    assert sorted(one.container_id for one in journal.load_all()) == sorted(one.container_id for one in entries)


def test_a_state_is_a_line_and_no_new_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put(entry())
    (path,) = tmp_path.iterdir()
    inode = path.stat().st_ino
    journal.put(entry(state=State.ADDED))
    journal.put(entry(state=State.RELEASING))
    assert path.stat().st_ino == inode
    assert path.read_bytes().count(b"\n") == 3
    assert journal.load_all() == [entry(state=State.RELEASING)]


def test_spiderpoolctl_reads_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.load_all()
    journal.put(entry())
    journal.put(entry(state=State.ADDED))
    (path,) = journal.directory.iterdir()
    assert read(tmp_path) == (journal.load_all(), [])
    path.write_bytes(b"{}\n")
    entries, (problem,) = read(tmp_path)
    assert not entries
    assert path.name in problem


def test_what_another_life_of_the_kernel_noted_has_no_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = CoordinationPlan(
        netns="/run/netns/pod",
        ifname="eth0",
        container_id="c1",
        host_veth="veth1",
        mtu=1500,
        host_table=500,
        rp_filter=0,
        pod_mac="02:00:00:00:00:01",
        host_mac="02:00:00:00:00:02",
    )
    noted = entry(state=State.ADDED, coordination=plan, addresses=("10.0.0.5/16",))
    Journal(tmp_path).put(noted)
    assert Journal(tmp_path).load_all() == [noted]
    monkeypatch.setattr("cni.journal.boot_id", lambda: "another")
    (left,) = Journal(tmp_path).load_all()
    assert left == replace(noted, netns="", coordination=replace(plan, netns=""))
    # From here on it is this life's: what it has to give back is kept.
    Journal(tmp_path).put(replace(left, state=State.RELEASING))
    assert Journal(tmp_path).load_all() == [replace(left, state=State.RELEASING)]


def test_a_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(1000):
        journal.put(entry(changed_ns=number))
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 1 << 17
    assert journal.get(Key("c1", "eth0")) == entry(changed_ns=999)


@given(cut=st.integers(0, 400))
def test_a_line_that_was_cut_short_says_nothing(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    journal.put(entry())
    (path,) = folder.iterdir()
    whole = path.stat().st_size
    journal.put(entry(state=State.ADDED))
    os.truncate(path, max(whole, path.stat().st_size - 1 - cut))
    assert journal.get(Key("c1", "eth0")) == entry()
    journal.put(entry(state=State.RELEASING))
    assert journal.load_all() == [entry(state=State.RELEASING)]
    assert b"added" not in path.read_bytes(), "what was cut short is not continued"


@pytest.mark.parametrize("step", ["write", "fdatasync"])
@pytest.mark.parametrize("before", [False, True])
def test_what_cannot_be_written_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, step: str, before: bool
) -> None:
    journal = Journal(tmp_path)
    if before:
        journal.put(entry())
    had = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full = {"left": 2}
    real = getattr(os, step)

    def fails(descriptor: int, *text: bytes) -> int:
        """The second one of three, with half of it written."""
        full["left"] -= 1
        if full["left"]:
            return int(real(descriptor, *text) or 0)
        if text:
            return int(real(descriptor, text[0][:10]))
        raise OSError(errno.EIO, "worn out")

    monkeypatch.setattr(os, step, fails)
    entries = [entry(name, state=State.ADDED) for name in ("c0", "c1", "c2")]
    first, second, third = journal.put_all(entries)
    assert first is None
    assert third is None
    assert isinstance(second, IoFailure)
    assert "c1-eth0" in str(second)
    assert {name: text for name, text in contents(tmp_path).items() if name.startswith("c1")} == had
    assert {one.container_id for one in journal.load_all()} == {"c0", "c2", *(["c1"] if before else [])}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_get_sees_what_another_process_wrote(tmp_path: Path) -> None:
    mine, others = Journal(tmp_path), Journal(tmp_path)
    assert mine.get(Key("c1", "eth0")) is None
    others.put(entry())
    assert mine.get(Key("c1", "eth0")) == entry()
    assert mine.get(Key("c1", "eth1")) is None
    others.remove(Key("c1", "eth0"))
    assert mine.get(Key("c1", "eth0")) is None


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").load_all()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b'{"container_id":', b"\xff\xfe", b"{}", b"[]", b"\0" * 4096])
def test_a_damaged_entry_is_set_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.put(entry("c1"))
    journal.put(entry("c2"))
    path = next(path for path in tmp_path.iterdir() if path.name.startswith("c1"))
    path.write_bytes(damage)
    assert [one.container_id for one in journal.load_all()] == ["c2"]
    assert path.with_suffix(".corrupt").read_bytes() == damage
    assert str(path) in caplog.text
    assert [one.container_id for one in journal.load_all()] == ["c2"]
    journal.put(entry("c1"))
    assert len(journal.load_all()) == 2


def test_an_entry_under_another_name_is_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put(entry("c1"))
    path = next(tmp_path.iterdir())
    path.rename(tmp_path / "copied.json")
    assert journal.load_all() == []


def test_what_a_dying_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "c1-eth0-x.tmp").write_bytes(b'{"half')
    (tmp_path / "README").write_text("not ours")
    assert Journal(tmp_path).load_all() == []
    assert {path.name for path in tmp_path.iterdir()} == {"README", "c1-eth0-x.tmp"}, "another agent may be writing it"
    os.utime(tmp_path / "c1-eth0-x.tmp", (0, time.time() - 120))
    assert Journal(tmp_path).load_all() == []
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


def test_failures_say_which_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file")
    for act in (journal.load_all, lambda: journal.put(entry()), lambda: journal.remove(Key("c1", "eth0"))):
        with pytest.raises(IoFailure, match="file"):
            act()


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=255), st.text(min_size=1, max_size=15)), unique=True, max_size=20)
)
def test_no_key_leaves_the_folder_or_meets_another(keys: list[tuple[str, str]]) -> None:
    journal = Journal(Path("/journal"))
    paths = [
        journal._path(Key(*key)) for key in keys if not any("\ud800" <= c <= "\udfff" for part in key for c in part)
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == Path("/journal") and len(path.name.encode()) < 100 for path in paths)
