"""Between the kernel's watch for namespaces that go and those who look then.

No actor: it decides nothing. Without a watch (a node may run out of them) the looks that come anyway are all there is.
"""

import logging
from collections.abc import Callable
from pathlib import PurePosixPath

import anyio

from cni.kernel import Departures, Kernel

_log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.25
"""The kernel takes a dead namespace down in its own time, some tens of milliseconds: a link may answer until then."""
_AGAIN_SECONDS = 60.0


class NetnsDepartures:
    """The folders of the sandboxes of this node."""

    def __init__(self, kernel: Kernel, tell: Callable[[str], None]) -> None:
        """`tell` gets the path of each namespace that went; it must not raise."""
        self._kernel = kernel
        self._tell = tell
        self._wanted: dict[str, str] = {}
        """By folder, a namespace in it."""
        self._watch: Departures | None = None

    def __repr__(self) -> str:
        return f"<NetnsDepartures {self._watch or 'not watched'}>"

    def cover(self, path: str) -> None:
        """A sandbox's namespace is at `path`; may be called for each one."""
        if path and not path.startswith("/proc/"):
            self._wanted[str(PurePosixPath(path).parent)] = path
            if self._watch is not None:
                self._watch.cover(path)

    async def run(self) -> None:
        """Watch, for ever."""
        while True:
            try:
                self._watch = self._kernel.departures()
            except OSError as error:
                _log.warning("namespaces that go are noticed late: they cannot be watched: %s", error)
                await anyio.sleep(_AGAIN_SECONDS)
            else:
                break
        try:
            for path in self._wanted.values():
                self._watch.cover(path)
            async for path in self._watch:
                self._tell(path)
        finally:
            self._watch.close()
            self._watch = None
