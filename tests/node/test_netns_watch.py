"""The watch on the folders of namespaces: what goes is told, by every name of its folder, and nothing else is."""

import asyncio
from pathlib import Path

import pytest

from cni.kernel import LinuxKernel
from cni.netns_watch import NetnsWatch
from tests.netns import Netns

pytestmark = [pytest.mark.node]


async def told(watch: NetnsWatch, number: int = 1) -> list[str]:
    async with asyncio.timeout(5):
        return [await anext(watch) for _ in range(number)]


async def nothing(watch: NetnsWatch) -> bool:
    """Whether the watch is silent about all that was done before; a file of our own marks the end."""
    mark = Path(min(watch.folders)) / "mark"
    mark.touch()
    mark.unlink()
    return await told(watch) == [str(mark)]


async def unwatched(watch: NetnsWatch) -> None:
    async with asyncio.timeout(5):
        while watch.folders:  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.005)


async def test_a_namespace_that_goes_is_told(tmp_path: Path) -> None:
    watch = NetnsWatch()
    try:
        first, second = Netns(tmp_path, "first").__enter__(), Netns(tmp_path, "second").__enter__()
        watch.cover(str(first.path))
        watch.cover(str(second.path))
        assert watch.folders == {str(tmp_path)}
        first.__exit__(None, None, None)
        assert await told(watch) == [str(first.path)]
        assert await nothing(watch), "the other one stays"
        second.__exit__(None, None, None)
        assert await told(watch) == [str(second.path)]
    finally:
        watch.close()


async def test_what_nobody_covered_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    watch = NetnsWatch()
    try:
        with Netns(tmp_path, "elsewhere"):
            watch.cover(str(tmp_path / "watched" / "x"))
        assert await nothing(watch)
    finally:
        watch.close()


async def test_two_names_of_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("../run")
    watch = NetnsWatch()
    try:
        for name in ("run", "var/run"):
            watch.cover(str(tmp_path / name / "x"))
        Netns(tmp_path / "run", "x").__enter__().__exit__(None, None, None)
        assert await told(watch, 2) == [str(tmp_path / "run" / "x"), str(tmp_path / "var/run" / "x")]
    finally:
        watch.close()


async def test_a_folder_that_is_made_anew_is_covered_anew(tmp_path: Path) -> None:
    folder = tmp_path / "netns"
    watch = NetnsWatch()
    try:
        watch.cover(str(folder / "x"))
        assert not watch.folders, "it is not there"
        for _ in range(2):
            folder.mkdir()
            watch.cover(str(folder / "x"))
            assert watch.folders == {str(folder)}
            Netns(folder, "x").__enter__().__exit__(None, None, None)
            assert await told(watch) == [str(folder / "x")]
            folder.rmdir()
            await unwatched(watch)
        folder.mkdir()
        watch.cover(str(folder / "x"))
        folder.rename(tmp_path / "moved")
        await unwatched(watch)
    finally:
        watch.close()


async def test_paths_that_cannot_be_watched_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    watch = NetnsWatch()
    try:
        for path in ("/proc/1/ns/net", "", "relative/x", str(tmp_path / "file" / "x"), "/nowhere/x"):
            watch.cover(path)
        assert not watch.folders
    finally:
        watch.close()


async def test_many_at_once(tmp_path: Path) -> None:
    watch = LinuxKernel().departures()
    try:
        watch.cover(str(tmp_path / "x"))
        for number in range(2000):
            (tmp_path / f"n{number}").touch()
        for number in range(2000):
            (tmp_path / f"n{number}").unlink()
        async with asyncio.timeout(20):
            seen = [await anext(watch) for _ in range(2000)]
        assert seen == [str(tmp_path / f"n{number}") for number in range(2000)]
    finally:
        watch.close()
