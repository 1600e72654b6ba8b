"""The folder of CNI configurations of the node that a controller runs on: read at once, and again when it changes.

A port with its adapter. It may be missing, or hold files that only root may read: then that is what is known of it.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from actors.coordination.configurations import MOST_BYTES, ConfigurationFile, Folder, candidates
from cni.inotify import CLOSE_WRITE, DELETE, DELETE_SELF, IGNORED, MOVE_SELF, MOVED_FROM, MOVED_TO, ONLYDIR, Inotify

_log = logging.getLogger(__name__)

_MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR
_AGAIN_SECONDS = 30.0
"""A folder that cannot be watched, or was not there, is looked at so often."""


class Configurations(Protocol):
    """Where the files are."""

    async def read(self) -> Folder:
        """What is there now. Raises nothing."""
        ...

    async def changed(self) -> None:
        """Return when it may be otherwise than at the last `read`."""
        ...


class DiskConfigurations:
    """A folder of this machine; files are read on worker threads."""

    def __init__(self, path: str) -> None:
        """Nothing is looked at yet."""
        self._path = Path(path)
        self._inotify: Inotify | None = None
        self._watch = 0
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"<DiskConfigurations {self._path}{'' if self._watch else ', not watched'}>"

    async def read(self) -> Folder:
        """See the port. The watch begins before the look, so that nothing falls between them."""
        self._news.clear()
        self._cover()
        return await anyio.to_thread.run_sync(self._look)

    async def changed(self) -> None:
        """See the port."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self._watch else _AGAIN_SECONDS):
                await self._news.wait()

    def close(self) -> None:
        """Watch it no more."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._watch = None, 0

    def _cover(self) -> None:
        if self._watch:
            return
        try:
            if self._inotify is None:
                self._inotify = Inotify(self._take)
            self._watch = self._inotify.add(str(self._path), _MASK)
        except OSError as error:
            _log.info("%s cannot be watched, and is looked at every %.0f s: %s", self._path, _AGAIN_SECONDS, error)

    def _take(self, watch: int, mask: int, name: str) -> None:
        del watch, name
        if mask & (DELETE_SELF | MOVE_SELF | IGNORED):
            if mask & MOVE_SELF and self._inotify is not None:
                self._inotify.remove(self._watch)
            self._watch = 0
        self._news.set()

    def _look(self) -> Folder:
        try:
            names = [path.name for path in self._path.iterdir()]
        except OSError as error:
            return Folder(str(self._path), error=error.strerror or str(error))
        return Folder(str(self._path), files=tuple(self._read(name) for name in candidates(names)))

    def _read(self, name: str) -> ConfigurationFile:
        path = self._path / name
        try:
            if path.stat().st_size > MOST_BYTES:
                return ConfigurationFile(name, error=f"it is bigger than {MOST_BYTES} bytes")
            return ConfigurationFile(name, text=path.read_bytes())
        except OSError as error:
            return ConfigurationFile(name, error=error.strerror or str(error))
