"""Tests below ``inside`` run in a guest."""

from __future__ import annotations

import pytest

from tests.vm.remote import run_in_guest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """See `tests.vm.remote`."""
    return run_in_guest(item, nextitem)
