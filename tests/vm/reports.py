"""A plugin of the pytest inside a guest: runs the tests that it is told to, and passes each report on as it comes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

WANTED_VARIABLE: Final = "SPIDERPOOL_GUEST_TESTS"
"""Names a file with the ids of the tests to run, one a line."""

REPORTS_VARIABLE: Final = "SPIDERPOOL_GUEST_REPORTS"
"""Names the file that gets the reports, one a line."""


class Reporter:
    """Writes reports that `tests.vm.remote` reads."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = path.open("a", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send(report)

    def _send(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        data: dict[str, Any] = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        data.pop("result", None)
        self._file.write(json.dumps(data, default=str) + "\n")

    def pytest_unconfigure(self) -> None:
        self._file.close()


def pytest_configure(config: pytest.Config) -> None:
    """Starts to report."""
    config.pluginmanager.register(Reporter(config, Path(os.environ[REPORTS_VARIABLE])), "guest-reporter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what was left out outside."""
    wanted = frozenset(Path(os.environ[WANTED_VARIABLE]).read_text().split("\n"))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
    items[:] = [item for item in items if item.nodeid in wanted]
