"""What happened inside is told outside, to the letter; what did not is told, too."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.servers.provide import CHECKOUT
from tests.vm.played import REFUSAL_VARIABLE

pytestmark = pytest.mark.slow

INSIDE = """
import os
import pytest

@pytest.fixture
def broken():
    raise LookupError("no such thing")

@pytest.fixture
def late():
    yield
    raise LookupError("too late")

@pytest.mark.parametrize("number", [1, 2])
def test_number(number):
    assert "SPIDERPOOL_GUEST" in os.environ
    assert number == 1, "the number is another"

def test_skipped():
    pytest.skip("not here")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_broken(broken):
    pass

def test_late(late):
    pass

def test_says():
    print("heard outside")
    assert False
"""
DEATH = """
import os

def test_before():
    pass

def test_death():
    os._exit(9)

def test_after():
    pass
"""


def run(folder: Path, text: str, *options: str, **environment: str) -> tuple[dict[str, list[str]], str]:
    """The outcomes by test, and what pytest printed."""
    (folder / "test_it.py").write_text(text)
    report = folder / "report.xml"
    arguments = ["-p", "tests.vm.remote", "-p", "tests.vm.played", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *options, str(folder / "test_it.py")],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    cases = ET.parse(report).getroot().iter("testcase")
    return {case.get("name", ""): [part.tag for part in case] for case in cases}, done.stdout


def test_every_outcome(tmp_path: Path) -> None:
    outcomes, said = run(tmp_path, INSIDE)
    assert outcomes == {
        "test_number[1]": [],
        "test_number[2]": ["failure"],
        "test_skipped": ["skipped"],
        "test_known": ["skipped"],
        "test_broken": ["error"],
        "test_late": ["error"],
        "test_says": ["failure"],
    }
    for words in ("the number is another", "assert 2 == 1", "no such thing", "too late", "heard outside"):
        assert words in said


def test_what_is_left_out_here_is_left_out_there(tmp_path: Path) -> None:
    outcomes, _ = run(tmp_path, INSIDE, "-k", "number and 1")
    assert outcomes == {"test_number[1]": []}


def test_a_death_fails_what_had_not_ended(tmp_path: Path) -> None:
    outcomes, said = run(tmp_path, DEATH)
    assert outcomes == {"test_before": [], "test_death": ["failure"], "test_after": ["failure"]}
    assert "exited 9" in said


def test_without_a_guest_all_is_skipped_with_the_reason(tmp_path: Path) -> None:
    outcomes, said = run(tmp_path, INSIDE, "-rs", **{REFUSAL_VARIABLE: "no QEMU on a Sunday"})
    assert set(map(tuple, outcomes.values())) == {("skipped",)}
    assert "no QEMU on a Sunday" in said
