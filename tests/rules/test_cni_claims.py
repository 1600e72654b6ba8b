"""Claims of containers: between processes they exclude, within one they do not, and they die with their process."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.node.disk import open_journal
from cni.claims import Claims
from cni.errors import IoFailure, TryAgainLater


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Claims]:
    yield from _opened(tmp_path)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Claims]:
    """Of another open file, which is all that a lock sees of a process."""
    yield from _opened(tmp_path)


def _opened(folder: Path) -> Iterator[Claims]:
    claims = Claims(folder / "locks")
    claims.open()
    yield claims
    claims.close()


def test_a_container_has_one_claimant(mine: Claims, others: Claims) -> None:
    assert mine.take("c1")
    assert mine.take("c1")
    assert not others.take("c1")
    assert others.take("c2")
    assert not mine.take("c2")
    mine.drop("c1")
    mine.drop("never had")
    assert others.take("c1")


def test_many_containers_do_not_meet_and_nothing_piles_up(mine: Claims, others: Claims, tmp_path: Path) -> None:
    names = [f"{number:064x}" for number in range(2000)]
    assert all(mine.take(name) for name in names[::2])
    assert all(others.take(name) for name in names[1::2])
    assert not any(others.take(name) for name in names[::2])
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("locks", 0)]


def test_a_process_that_is_killed_has_no_claims(mine: Claims, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from cni.claims import Claims
claims = Claims(Path({str(tmp_path / "locks")!r}))
claims.open()
print(claims.take("c1"), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not mine.take("c1")
        process.kill()
        process.wait()
    assert mine.take("c1")


def test_failures_name_the_file(tmp_path: Path) -> None:
    closed = Claims(tmp_path / "locks")
    with pytest.raises(IoFailure, match="locks"):
        closed.take("c1")
    closed.drop("c1")
    (tmp_path / "file").write_text("")
    with pytest.raises(IoFailure, match="file/locks"):
        Claims(tmp_path / "file" / "locks").open()


async def test_a_claim_is_waited_for_and_one_process_may_have_it_twice(tmp_path: Path) -> None:
    old, new = open_journal(tmp_path), open_journal(tmp_path)
    await old.load()
    await new.load()
    entered = asyncio.Event()

    async def newcomer() -> None:
        async with new.claim("c1", seconds=20):
            entered.set()

    async with old.claim("c1", seconds=1):
        async with old.claim("c1", seconds=1):
            task = asyncio.create_task(newcomer())
            with pytest.raises(TryAgainLater, match="another agent"):
                async with new.claim("c1", seconds=0.05):
                    pass
        await asyncio.sleep(0.05)
        assert not entered.is_set(), "the outer claim holds"
    await asyncio.wait_for(task, 20)
