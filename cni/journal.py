"""What this node built for each sandbox, on disk before the runtime is told.

So DEL is local and idempotent, and an agent that starts again knows what it owes.
One file per (container id, interface, part), and in it a line for each state that it came through; the last one
counts. A file appears whole, by a rename, and grows by whole lines. (With a new file for every state, ext4 spends a
fifth of what an agent needs for an ADD on looking for inodes that were not just deleted.) Functions block: actors call
them on a worker thread.

A process that dies loses nothing. A power cut may lose what was not synced, and that is left out where nothing hangs on
it: with "adding" nobody was answered, and a removed entry that is back is released again, which finds nothing. (Other
people's plugins may keep things where a power cut leaves them: what was begun with those is synced.)

While one agent replaces another both write here: an entry is written, removed or read for a decision only by who has
claimed its container (`cni.claims`).
"""

import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from api.wire import Fixed, NicGrant, PodRef
from cni.bandwidth import LimitPlan
from cni.boot import boot_id
from cni.coordination import CoordinationPlan
from cni.errors import IoFailure
from cni.plan import Assigned
from cni.protocol import Role
from cni.result import Result
from cni.sriov import VfHeld
from telemetry import metrics

_log = logging.getLogger(__name__)
_SUFFIX = ".json"
_UNSAFE = re.compile(r"[^a-zA-Z0-9_\-]")
_END = b"\n"
_LONG = 1 << 16
"""A file of so many bytes is written anew: it has a line or two for each time that its sandbox was tried again."""
_TEMPORARY_SECONDS = 60.0
"""A writer takes milliseconds from temp file to rename; what is older has no writer any more."""


class State(StrEnum):
    """How far a sandbox has come."""

    ADDING = "adding"
    """Something may exist already; no answer was given."""
    ADDED = "added"
    """The runtime has, or will have, the result."""
    RELEASING = "releasing"
    """The addresses are still owed to the controller."""


class Key(Struct, frozen=True, order=True):
    """What an entry is filed under."""

    container_id: str
    ifname: str
    part: str = ""
    """Empty for the interface with its addresses; `COORDINATOR` or `NETWORKS` for what goes beside them."""


COORDINATOR, NETWORKS = "coordinator", "networks"
"""Parts of an attachment: what the chained plugin `coordinator` made, and what the meta plugin attached."""


class Attached(Struct, frozen=True, kw_only=True):
    """One network that a meta plugin attached a sandbox to: all that it takes to detach it again."""

    ifname: str
    network: str = ""
    """``namespace/name`` of its NetworkAttachmentDefinition; empty: none made it."""
    name: str
    """Of its configuration."""
    plugins: tuple[str, ...]
    """Their configurations as they were called, as JSON and without prevResult."""
    gateways: tuple[str, ...] | None = None
    """As `cni.protocol.Invocation` has them."""
    unchecked: bool = False
    """Whether its configuration says that its plugins are not to be asked to CHECK."""
    result: Result | None = None
    """What the last plugin said."""


class JournalEntry(Struct, frozen=True, kw_only=True):
    """One attachment, or one part of it that comes and goes by calls of its own."""

    container_id: str
    ifname: str
    part: str = ""
    """See `Key`."""
    netns: str = ""
    network: str = ""
    """The configuration's name, by which GC asks."""
    head: str = ""
    """The interface whose ADD made this one along with itself; empty: its own, by which GC asks."""
    role: Role = Role.MAIN
    pod: PodRef
    state: State = State.ADDING
    kind: str = ""
    """The link's kind, empty while there is none (and always for an IPAM call)."""
    bare: bool = False
    """Whether it goes without addresses of ours: nothing was asked of the controller."""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    """With prefix lengths."""
    pools: tuple[str, ...] = ()
    """The pool of each address, in the same order."""
    provided: bool = False
    """Whether a request for its addresses may take as long as a network provider does."""
    assigned: Assigned | None = None
    """What the cluster's network provider says of the interface; None: nobody asked it."""
    others: tuple[NicGrant, ...] = ()
    """What the pod's other NICs were given along with this one, whether or not they were attached since."""
    fixed: Fixed | None = None
    """Set where the addresses stay when the pod goes."""
    moving: bool = False
    """Whether a live migration ran to it: then somebody else had the addresses rightly, too."""
    doubtful: bool = True
    """Whether a copy of the request for addresses may be under way that nobody answered."""
    vf: VfHeld | None = None
    """The virtual function that was lent to the container, as it was before; None once it is given back."""
    host_veth: str = ""
    """The node's end of the pair beside the link; empty when none was wanted."""
    coordination: CoordinationPlan | None = None
    """What was built around that pair."""
    networks: tuple[Attached, ...] = ()
    """Of the part `NETWORKS`: all interfaces, the first one included, in the order of their making."""
    limits: LimitPlan | None = None
    """How much it may carry; None: as much as there is."""
    path: str = ""
    """Of the part `NETWORKS`: CNI_PATH and CNI_ARGS, for plugins that are called when no runtime calls."""
    arguments: str = ""
    result: Result | None = None
    """What ADD answers, the same each time it is asked again."""
    changed_ns: int = 0
    """When this entry was written, nanoseconds since the epoch."""
    boot: str = ""
    """In a file only: the life of the kernel in which it was written, see `decode`."""

    @property
    def key(self) -> Key:
        """What it is filed under."""
        return Key(self.container_id, self.ifname, self.part)


_decoder = msgspec.json.Decoder(JournalEntry)
"""Made here, before there are threads: see `api.kinds.Kind`."""


def decode(text: bytes) -> JournalEntry:
    """What a file of the journal says: its last whole line. What a writer was at when it died says nothing.

    An entry from before a reboot has no namespace any more. One may be at its path again: some runtimes name it by a
    process, whose number another container's may have by now.

    Raises `msgspec.DecodeError`, and `UnicodeDecodeError` where it is not UTF-8.
    """
    end = text.rfind(_END)
    entry = _decoder.decode(text[text.rfind(_END, 0, end) + 1 : end] if end > 0 else text)
    if not entry.boot:
        return entry
    if entry.boot == boot_id():
        return replace(entry, boot="")
    plan = entry.coordination
    return replace(entry, boot="", netns="", coordination=None if plan is None else replace(plan, netns=""))


def _encode(entry: JournalEntry) -> bytes:
    return msgspec.json.encode(replace(entry, boot=boot_id())) + _END


def _is_durable(entry: JournalEntry) -> bool:
    """Whether an entry has to survive a power cut, after which no namespace is there any more.

    It does where it says what has to be given back then: addresses, or what other plugins have noted elsewhere.
    """
    return entry.part == NETWORKS or (entry.state is not State.ADDING and entry.part != COORDINATOR)


class Journal:
    """The entries of one node, in one folder that only its agents write."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when missing, readable by its owner only."""
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Journal {self.directory}>"

    def load_all(self) -> list[JournalEntry]:
        """Every entry, in no particular order. A file that cannot be read is set aside under the suffix `.corrupt`.

        Raises:
            IoFailure: the folder cannot be made or listed.
        """
        entries = []
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(self.directory.iterdir())
        except OSError as error:
            raise IoFailure(f"journal {self.directory} cannot be read", str(error)) from error
        for path in paths:
            if path.suffix == ".tmp":
                _clear(path)
            elif path.suffix == _SUFFIX:
                entry = self._read(path)
                if entry is not None:
                    entries.append(entry)
        return entries

    def of(self, container_id: str) -> list[JournalEntry]:
        """The entries of one container.

        Raises:
            IoFailure: the folder cannot be listed.
        """
        prefix = f"{_UNSAFE.sub('_', container_id[:12])}-"
        try:
            # As text: each DEL looks through the names of all entries, and a Path for every one would cost it 2 ms.
            names = sorted(n for n in os.listdir(self.directory) if n.startswith(prefix) and n.endswith(_SUFFIX))  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            raise IoFailure(f"journal {self.directory} cannot be read", str(error)) from error
        entries = [entry for entry in (self._read(self.directory / name) for name in names) if entry is not None]
        return [entry for entry in entries if entry.container_id == container_id]

    def get(self, key: Key) -> JournalEntry | None:
        """One entry as it is on disk, None when there is none that can be read."""
        return self._read(self._path(key))

    def get_all(self, keys: Sequence[Key]) -> list[JournalEntry | None]:
        """See `get`."""
        return [self.get(key) for key in keys]

    def put(self, entry: JournalEntry) -> None:
        """Write an entry; when this returns it survives this process and, where that matters, a power cut.

        Raises:
            IoFailure: it could not be written; what was there before still is.
        """
        (failure,) = self.put_all([entry])
        if failure is not None:
            raise failure

    def put_all(self, entries: Sequence[JournalEntry]) -> list[IoFailure | None]:
        """Write entries of different keys, and wait for the disk once for all of them; how it went, one by one.

        What is said of `put` holds for each.
        """
        begun = time.perf_counter()
        failures: dict[Key, OSError] = {}
        synced = []
        with ExitStack() as stack:
            lines: list[tuple[JournalEntry, _Line]] = []
            for entry in entries:
                line = stack.enter_context(_Line(self._path(entry.key)))
                try:
                    line.write(_encode(entry))
                except OSError as error:
                    failures[entry.key] = error
                else:
                    lines.append((entry, line))
            for entry, line in lines:
                durable = _is_durable(entry)
                try:
                    line.keep(durable=durable)
                except OSError as error:
                    failures[entry.key] = error
                else:
                    synced += [entry.key] * durable
        if synced:
            try:
                self._sync_directory()
            except OSError as error:
                failures.update(dict.fromkeys(synced, error))
            metrics.JOURNAL_FSYNC_SECONDS.observe(time.perf_counter() - begun)
        return [
            IoFailure(f"journal entry {self._path(entry.key)} cannot be written", str(failures[entry.key]))
            if entry.key in failures
            else None
            for entry in entries
        ]

    def check(self) -> None:
        """Write something and take it away again.

        Raises:
            IoFailure: no entry could be written now.
        """
        path = self.directory / f".check-{os.getpid()}.tmp"
        try:
            path.write_bytes(_END)
            path.unlink()
        except OSError as error:
            raise IoFailure(f"journal {self.directory} cannot be written", str(error)) from error

    def remove(self, key: Key) -> None:
        """Forget an entry; one that is not there is fine. After a power cut it may be back.

        Raises:
            IoFailure: the file could not be removed.
        """
        path = self._path(key)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise IoFailure(f"journal entry {path} cannot be removed", str(error)) from error

    def _path(self, key: Key) -> Path:
        # Container ids and interface names come from outside: the digest makes the name unique, the rest is for eyes.
        names = [key.container_id, key.ifname] + ([key.part] if key.part else [])
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:24]
        shown = _UNSAFE.sub("_", f"{key.container_id[:12]}-{'-'.join(names[1:])}")
        return self.directory / f"{shown}-{digest}{_SUFFIX}"

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> JournalEntry | None:
        try:
            entry = decode(path.read_bytes())
            if self._path(entry.key) == path:
                return entry
            problem = f"it belongs to {entry.container_id}/{entry.ifname}"
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            problem = str(error)
        aside = path.with_suffix(".corrupt")
        _log.error("journal entry %s is unreadable and set aside as %s: %s", path, aside.name, problem)
        try:
            path.rename(aside)
        except OSError as error:
            _log.error("journal entry %s cannot be set aside: %s", path, error)
        return None


class _Line:
    """One line that is put behind the others of a file, or into a new file that appears whole. To be used with `with`.

    What was not kept at the end is taken back.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._size = 0
        """Of the file without this line."""
        self._temporary: Path | None = None
        self._kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor < 0:
            return
        with suppress(OSError):
            if not self._kept and self._temporary is not None:
                self._temporary.unlink()
            elif not self._kept:
                os.ftruncate(self._descriptor, self._size)
        os.close(self._descriptor)

    def write(self, line: bytes) -> None:
        """Raises `OSError`."""
        if not self._open():
            self._temporary = self._path.with_suffix(".tmp")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o600)
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> bool:
        """Whether there is a file that a line can be put to: not too long, and its last line is whole."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(descriptor).st_size
            whole = 0 < size < _LONG and os.pread(descriptor, 1, size - 1) == _END
        except OSError:
            os.close(descriptor)
            raise
        if whole:
            self._descriptor, self._size = descriptor, size
        else:
            os.close(descriptor)
        return whole

    def keep(self, *, durable: bool) -> None:
        """Let it stand, and if `durable` wait for the disk. Raises `OSError`."""
        if durable:
            os.fdatasync(self._descriptor)
        if self._temporary is not None:
            self._temporary.rename(self._path)
        self._kept = True


def _clear(path: Path) -> None:
    """Remove the temp file of a writer that died before its rename: nobody was told."""
    try:
        if time.time() - path.stat().st_mtime > _TEMPORARY_SECONDS:
            path.unlink()
    except FileNotFoundError:
        pass  # another agent has renamed or cleared it
