"""Tests that run in a guest and count here: a plugin of pytest.

The tests are collected here as any others are, with their parameters, marks and selections. Then one guest is started
for all of them; a pytest in it runs them and passes its reports on, and they are told here as if the tests had run
here. With ``-p tests.vm.remote`` all tests of a run go into the guest; without, those in ``tests/vm/inside`` do.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from tests.isolation import GUEST_VARIABLE
from tests.servers.process import ServerProcess
from tests.servers.provide import CHECKOUT, ServersUnavailable
from tests.vm import beside, bytecode, guest, parts
from tests.vm.guest import Guest, GuestFailed
from tests.vm.reports import REPORTS_VARIABLE, WANTED_VARIABLE

INSIDE: Final = Path(__file__).parent / "inside"
KEPT: Final = CHECKOUT / "build" / "reports" / "vm"
SILENCE_SECONDS: Final = 300.0
"""A guest that reports nothing for so long has hung."""

TIMEOUT_SECONDS: Final = 180
"""Of one test inside: an emulated processor is slow."""

_PLUGIN: Final = "tests.vm.remote"
_STASH: Final = pytest.StashKey["Remote"]()


class Remote:
    """The guest of one run of pytest, started when the first report is asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._guest: Guest | None = None
        self._beside: Sequence[ServerProcess] = ()
        self._unavailable = ""
        self._ended = ""
        self._reports: defaultdict[str, list[pytest.TestReport]] = defaultdict(list)
        self._read = 0
        config.add_cleanup(self.stop)

    def run(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of one test, waited for."""
        if self._guest is None and not self._unavailable:
            self._start([one for one in item.session.items if runs_inside(one)])
        if self._guest is None:
            return [_skipped(item, self._unavailable)]
        self._wait_for(item.nodeid)
        reports = self._reports.pop(item.nodeid, [])
        if not reports or reports[-1].when != "teardown":
            reports.append(_failed(item, self._ended))
        if any(report.failed for report in reports):
            self._guest.keep(KEPT)
            reports[-1].sections.append(("guest", f"console and output in {KEPT}\n{self._guest.console[-2000:]}"))
        return reports

    def stop(self) -> None:
        """Ends the guest, and what runs for it."""
        for process in self._beside:
            process.stop()
        if self._guest is not None:
            self._guest.stop()

    def _start(self, items: Sequence[pytest.Item]) -> None:
        shutil.rmtree(KEPT, ignore_errors=True)
        try:
            found = parts.cached()
        except ServersUnavailable as problem:
            self._unavailable = str(problem)
            return
        files = list(dict.fromkeys(str(item.path) for item in items))
        bytecode.compile_for_guests(files)
        options = ["-p", "tests.vm.reports", "-p", "no:cacheprovider", "-p", f"no:{_PLUGIN}", "-q"]
        self._guest = guest.Guest(
            found,
            [sys.executable, "-m", "pytest", *options, f"--timeout={TIMEOUT_SECONDS}", *files],
            environment={
                WANTED_VARIABLE: str(Guest.JOB / "wanted"),
                REPORTS_VARIABLE: str(Guest.JOB / "reports"),
                beside.VARIABLE: str(Guest.JOB),
            },
        )
        (self._guest.job / "wanted").write_text("\n".join(item.nodeid for item in items))
        self._guest.start()
        self._beside = beside.begin(items, self._guest.job)

    def _wait_for(self, nodeid: str) -> None:
        """Until the test's last report is there, or none can come any more."""
        running = self._guest
        assert running is not None

        def complete() -> bool:
            self._receive()
            reports = self._reports.get(nodeid, [])
            return bool(reports) and reports[-1].when == "teardown"

        if self._ended:
            return
        try:
            code = running.wait(seconds=SILENCE_SECONDS, until=complete)
        except GuestFailed as problem:
            self._ended = f"{problem}\n{_end_of(running.output)}"
        else:
            if code is not None:
                self._ended = f"pytest in the guest exited {code} without it\n{_end_of(running.output)}"

    def _receive(self) -> None:
        assert self._guest is not None
        path = self._guest.job / "reports"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            data: dict[str, Any] = json.loads(line)
            for name in ("location", "longrepr"):  # pytest insists on tuples, which JSON has not
                if isinstance(data.get(name), list):
                    data[name] = tuple(data[name])
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            if isinstance(report, pytest.TestReport):
                self._reports[report.nodeid].append(report)


def run_in_guest(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """The test's whole protocol, if it runs inside; to be called by a hook `pytest_runtest_protocol`."""
    if not runs_inside(item):
        return None
    stash = item.config.stash
    if _STASH not in stash:
        stash[_STASH] = Remote(item.config)
    remote = stash[_STASH]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in remote.run(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def runs_inside(item: pytest.Item) -> bool:
    """Whether a test is not run by this process."""
    if GUEST_VARIABLE in os.environ:
        return False
    return INSIDE in item.path.parents or item.config.pluginmanager.has_plugin(_PLUGIN)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Where this module is a plugin, all tests run in the guest."""
    return run_in_guest(item, nextitem)


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-4000:] if path.exists() else ""


def _failed(item: pytest.Item, words: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, _keywords(item), "failed", words, "call")


def _keywords(item: pytest.Item) -> dict[str, Literal[1]]:
    return dict.fromkeys(item.keywords, 1)


def _skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    where = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {reason}")
    return pytest.TestReport(item.nodeid, item.location, _keywords(item), "skipped", where, "setup")
