"""What is made beside a guest is found there, or why it could not be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.process import ServerFailed
from tests.vm import beside

MODULE = "some.module"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(beside.VARIABLE, str(tmp_path))
    folder = tmp_path / "module"
    folder.mkdir()
    return folder


def test_what_is_made_is_found(folder: Path) -> None:
    (folder / beside.DONE).touch()
    assert beside.made(MODULE) == folder


def test_why_it_could_not_be_made_is_told(folder: Path) -> None:
    (folder / beside.FAILED).write_text("no compiler")
    with pytest.raises(RuntimeError, match=r"some\.module failed outside:\nno compiler"):
        beside.made(MODULE)


def test_what_runs_beside_is_named_by_marks_and_runs_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.node.add_marker(pytest.mark.beside("nowhere.module"))
    (process,) = beside.begin([request.node, request.node], tmp_path)
    try:
        with pytest.raises(ServerFailed, match="No module named 'nowhere'"):
            process.wait_until(lambda: False)
    finally:
        process.stop()
