"""What the demonstration prints: headings, lines and marks, in colours where somebody looks at a terminal."""

import io
import os
import sys
from typing import TextIO

_BOLD, _DIM, _GREEN, _RED = "1", "2", "32", "31"


class Report:
    """Lines on a stream, and a count of what went wrong."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is stdout by default. NO_COLOR (no-color.org) is honoured."""
        self._stream = sys.stdout if stream is None else stream
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="replace")  # bars and lines are not in every terminal's alphabet
        self._colours = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self.failures: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.line()
        self.line(self._painted(text, _BOLD))

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        print(text, file=self._stream, flush=True)

    def block(self, text: str) -> None:
        """Print lines that are read only by those who want to, indented."""
        for line in text.splitlines():
            self.line(self._painted(f"  {line}", _DIM) if line.startswith("trace ") else f"  {line}")

    def verdict(self, text: str, *, good: bool) -> None:
        """Print a line with a mark, and remember it when it is not good."""
        self.line(f"  {self._painted('ok  ', _GREEN) if good else self._painted('FAIL', _RED)} {text}")
        if not good:
            self.failures.append(text)

    def _painted(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text
