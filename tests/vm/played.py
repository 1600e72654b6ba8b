"""A plugin that plays the guest, so that what goes between two runs of pytest can be tested without a machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.isolation import GUEST_VARIABLE
from tests.servers.provide import CHECKOUT, ServersUnavailable
from tests.vm import bytecode, guest, parts
from tests.vm.guest import Guest
from tests.vm.parts import Parts

REFUSAL_VARIABLE: Final = "SPIDERPOOL_PLAYED_REFUSAL"
"""Why there is no guest."""


class PlayedGuest(Guest):
    """Runs the command here."""

    def __init__(self, parts: Parts, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = {**(environment or {}), GUEST_VARIABLE: "1"}
        super().__init__(parts, command, environment=environment)

    def _argv(self) -> list[str]:
        settings = [
            f"{name}={value.replace(str(Guest.JOB), str(self.job))}" for name, value in self._environment.items()
        ]
        line = f"{shlex.join(['env', *settings, *self._command])} > {self.output} 2>&1; echo $? > {self.job}/code"
        return ["sh", "-c", f"cd {shlex.quote(str(CHECKOUT))}; {line}"]


def played_parts() -> Parts:
    """Nothing is looked at."""
    if os.environ.get(REFUSAL_VARIABLE):
        raise ServersUnavailable(os.environ[REFUSAL_VARIABLE])
    return Parts(tools=Path(), system=Path(), node=Path(), release="played")


def pytest_configure() -> None:
    """Where this is a plugin, and not where a test imports a name of it."""
    guest.Guest = PlayedGuest  # type: ignore[misc]
    parts.cached = played_parts
    bytecode.compile_for_guests = lambda tests: None  # noqa: ARG005 - its name is part of the signature
