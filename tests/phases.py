"""Runs everything that proves the project, phase by phase: ``python -m tests.phases [PHASE...]``.

A phase prints a line when it starts and one with its seconds when it ends; some run side by side. A phase that the
later ones cannot do without ends the run when it fails; after any other the run goes on, so that one run shows all that
is wrong. The last line counts tests: ``N passed, N failed, N skipped``. A lint check counts as a test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

CHECKOUT: Final = Path(__file__).resolve().parents[1]
REPORTS: Final = CHECKOUT / "build" / "reports"
BIN: Final = Path(sys.executable).parent
FOLDERS: Final = (
    "processes",
    "cases",
    "simulation",
    "node",
    "rules",
    "chart",
    "image",
    "contract",
    "servers",
    "vm",
    "cluster",
)
"""Folders of tests/ in the order they begin; others that hold tests follow."""

SIDE_BY_SIDE: Final = frozenset(f"tests/{folder}" for folder in FOLDERS if folder not in {"vm", "cluster"})
"""Phases that run at the same time: each has network and mounts of its own, and ports and servers in there. The longest
begin first, so that all end together; of those two wait most of the time, and one fills the cores. A guest and a
cluster fill them alone."""

AT_ONCE: Final = 3
"""So many of them: more would only wait for two cores, and for the limits of the tests' patience."""

LONGEST: Final = 300
"""Characters of a reason in the summary."""

NO_TESTS: Final = 5
"""pytest's exit code where it found nothing to run."""


class Count(msgspec.Struct):
    """How many tests went which way."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Count) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


class Outcome(msgspec.Struct):
    """How one phase went.

    Attributes:
        name: of the phase.
        seconds: it took.
        count: its tests.
        failures: one line each; empty when it passed.
        tests: those that failed, one line each with the reason, for who sees no more than the end of a log.
    """

    name: str
    seconds: float
    count: Count
    failures: list[str]
    tests: list[str]


def run(*argv: str | Path) -> int:
    """Runs a command in the checkout with our terminal and no input; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run(argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, check=False).returncode


def run_beside(name: str, *argv: str | Path) -> int:
    """As `run`, for what does not have the terminal alone: its lines bear its name."""
    with subprocess.Popen(
        argv,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            sys.stdout.write(f"{name:>10} | {line}")
            sys.stdout.flush()
    return process.returncode


def lint() -> tuple[Count, list[str]]:
    """Style, types, layers, and whether generated files are what their source makes."""
    checks: dict[str, list[str | Path]] = {
        "ruff check": [BIN / "ruff", "check", "--quiet", "--output-format=concise", "."],
        "ruff format": [BIN / "ruff", "format", "--quiet", "--check", "--output-format=concise", "."],
        "mypy": [BIN / "mypy", "--no-error-summary"],
        "import-linter": [BIN / "lint-imports", "--no-logo"],
    }
    if (CHECKOUT / "api" / "crd.py").exists():
        checks["generated CRDs"] = [sys.executable, "-m", "api.crd", "--output", REPORTS / "crds"]
    count, failures = Count(), []
    for name, argv in checks.items():
        code = run(*argv)
        if name == "generated CRDs" and code == 0:
            code = run("diff", "-r", "-u", CHECKOUT / "helm" / "spiderpool" / "crds", REPORTS / "crds")
        count.add(Count(failed=1) if code else Count(passed=1))
        if code:
            failures.append(f"{name} exited {code}")
    return count, failures


def shim() -> tuple[Count, list[str]]:
    """The executable that kubelet starts, for both architectures."""
    if not (CHECKOUT / "cni" / "shim" / "build.py").exists():
        return Count(), []
    code = run(sys.executable, "-m", "cni.shim.build", "--output", "build/cni")
    return Count(), [f"exited {code}"] if code else []


def images() -> tuple[Count, list[str]]:
    """The container image of both architectures, while there is a network."""
    codes = {arch: run(sys.executable, "-m", "tools.image", "build", "--arch", arch) for arch in ("amd64", "arm64")}
    return Count(), [f"{arch} exited {code}" for arch, code in codes.items() if code]


def servers() -> tuple[Count, list[str]]:
    """The executables of the real servers, so that no test waits for a compiler."""
    code = run(sys.executable, "-m", "tests.servers")
    return Count(), [f"exited {code}"] if code else []


def pytest_folder(folder: str, *, alone: bool) -> tuple[Count, list[str]]:
    """One folder of tests in a pytest of its own."""
    report = REPORTS / f"{folder}.xml"
    report.unlink(missing_ok=True)
    start = run if alone else partial(run_beside, folder)
    code = start(sys.executable, "-m", "pytest", f"tests/{folder}", "--quiet", "--durations=3", f"--junit-xml={report}")
    if code == NO_TESTS:
        return Count(), []
    count = counted(report)
    if code and not count.failed:
        count.failed = 1
    return count, [f"pytest exited {code}: {count}"] if code else []


def counted(report: Path) -> Count:
    """Reads the counts of a JUnit report; nothing when pytest died before it wrote one."""
    if not report.exists():
        return Count()
    total = Count()
    for suite in ET.parse(report).getroot().iter("testsuite"):
        tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        total.add(Count(passed=max(0, tests - failed - skipped), failed=failed, skipped=skipped))
    return total


def failed(report: Path) -> list[str]:
    """Reads from a JUnit report which tests failed, each with the first line of the reason."""
    if not report.exists():
        return []
    lines = []
    for case in ET.parse(report).getroot().iter("testcase"):
        for problem in (*case.iterfind("failure"), *case.iterfind("error")):
            reason = (problem.get("message") or "").partition("\n")[0][:LONGEST]
            lines.append(f"{case.get('classname', '')}::{case.get('name', '')}: {reason}")
    return lines


def test_folders() -> list[str]:
    """The folders that hold tests, in the order they run."""
    present = {path.relative_to(CHECKOUT / "tests").parts[0] for path in (CHECKOUT / "tests").glob("*/**/test_*.py")}
    return [folder for folder in FOLDERS if folder in present] + sorted(present - set(FOLDERS))


def perform(name: str, *, alone: bool = True) -> Outcome:
    """Runs one phase with its two lines."""
    print(f"=== {name}", flush=True)
    start = time.monotonic()
    tests: list[str] = []
    match name:
        case "lint":
            count, failures = lint()
        case "shim":
            count, failures = shim()
        case "images":
            count, failures = images()
        case "servers":
            count, failures = servers()
        case _:
            folder = name.removeprefix("tests/")
            count, failures = pytest_folder(folder, alone=alone)
            tests = failed(REPORTS / f"{folder}.xml")
    seconds = time.monotonic() - start
    print(f"=== {name}: {'FAILED' if failures else 'ok'} in {seconds:.1f} s", flush=True)
    return Outcome(name=name, seconds=seconds, count=count, failures=failures, tests=tests)


def main() -> int:
    """Runs the named phases, or all; exit code 1 when any failed."""
    phases = ["lint", "shim", "images", "servers", *(f"tests/{folder}" for folder in test_folders())]
    parser = argparse.ArgumentParser(prog="tests.phases", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("phase", nargs="*", help=f"one of {', '.join(phases)}; all when none is named")
    wanted = [name if name in phases else f"tests/{name}" for name in parser.parse_args().phase]
    unknown = set(wanted) - set(phases)
    if unknown:
        parser.error(f"no phase {', '.join(sorted(unknown))}; there are {', '.join(phases)}")
    REPORTS.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    # Images of containers like to set it. A dozen pytests would each compile and rewrite all that they import.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    begun = time.monotonic()
    outcomes: list[Outcome] = []
    for group in groups([name for name in phases if name in wanted or not wanted]):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes += pool.map(partial(perform, alone=len(group) == 1), group)
        if outcomes[-1].failures and group[-1] in {"shim", "servers"}:
            break
    summarise(outcomes, seconds=time.monotonic() - begun)
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def groups(phases: list[str]) -> list[list[str]]:
    """The phases in their order, those that run side by side together."""
    return [list(group) for _, group in groupby(phases, lambda name: "" if name in SIDE_BY_SIDE else name)]


def summarise(outcomes: list[Outcome], *, seconds: float) -> None:
    """Prints what failed and the total."""
    total = Count()
    print()
    for outcome in outcomes:
        for test in outcome.tests:
            print(f"FAILED {test}")
    for outcome in outcomes:
        total.add(outcome.count)
        if outcome.failures and not outcome.count.failed:
            total.failed += 1
        verdict = "; ".join(outcome.failures) or "ok"
        print(f"{outcome.seconds:8.1f} s  {outcome.name:<18} {verdict}")
    print(f"{seconds:8.1f} s  in all")
    print(total, flush=True)


if __name__ == "__main__":
    sys.exit(main())
