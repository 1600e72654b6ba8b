"""Pools from a folder of YAML files: the store of a spiderpool-standalone holds what the files say.

Messages: `Look` from its timer, `Looked` and `LookFailed` from its own work. State: what the files were when they were
last applied, and what is wrong with them. Persists: the objects, each with an annotation that names its file, so that
one whose file went while the program was down is known. Answers: nothing; what is wrong is in the log once, and in
`/healthz` as long as it is.

A file that cannot be read or makes no sense changes nothing: what it said before stays. An object that no file has any
more goes; a pool only when none of its addresses is in use, until then it stays and that is said. A file counts once it
has stayed the same from one look to the next, so none is applied while it is being written. A folder that cannot be
listed is no empty folder.

What a crash leaves: some files applied and others not; the next life applies all of them again.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, assert_never

import anyio
import anyio.to_thread
from msgspec import Struct, structs

from actors.manifest import Contended, Manifest, ManifestError, apply, read
from api.ippool import SpiderIPPool
from api.kinds import COORDINATOR, IPPOOL, RESERVEDIP, Kind
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import Conflict, NotFound, Store, StoreError
from telemetry.health import State

_log = logging.getLogger(__name__)

SOURCE = "spiderpool.spidernet.io/source-file"
"""Annotation of what came from a file: the file's name."""
KINDS = (IPPOOL, RESERVEDIP, COORDINATOR)
"""What a file may hold."""
LOOK_SECONDS = 0.5
_AGAIN_LOOKS = 6
"""Looks until what could not be done is tried again, though no file has changed."""
_SUFFIXES = (".yaml", ".yml", ".json")
_MOST_BYTES = 4 << 20


class Stamp(Struct, frozen=True):
    """By which a changed file is known without reading it."""

    inode: int
    size: int
    mtime_ns: int


class File(Struct, frozen=True):
    """What a file said."""

    name: str
    text: str = ""
    error: str = ""
    """Why it could not be read."""


class Folder(Protocol):
    """Where the files are."""

    async def stamps(self) -> Mapping[str, Stamp]:
        """The files by name. Raises OSError when the folder cannot be listed."""
        ...

    async def read(self, names: Iterable[str]) -> list[File]:
        """What some of them say."""
        ...


class DiskFolder:
    """A folder of this machine; the work happens on worker threads."""

    def __init__(self, path: Path) -> None:
        """Nothing is looked at yet."""
        self._path = path

    def __repr__(self) -> str:
        return f"<DiskFolder {self._path}>"

    async def stamps(self) -> Mapping[str, Stamp]:
        """See `Folder`."""
        return await anyio.to_thread.run_sync(self._stamps)

    async def read(self, names: Iterable[str]) -> list[File]:
        """See `Folder`."""
        return await anyio.to_thread.run_sync(lambda: [self._read(name) for name in names])

    def _stamps(self) -> Mapping[str, Stamp]:
        found = {}
        for path in sorted(self._path.iterdir()):
            if path.suffix in _SUFFIXES and not path.name.startswith("."):
                try:
                    seen = path.stat()
                except FileNotFoundError:
                    continue  # it has just gone
                found[path.name] = Stamp(inode=seen.st_ino, size=seen.st_size, mtime_ns=seen.st_mtime_ns)
        return found

    def _read(self, name: str) -> File:
        path = self._path / name
        try:
            if path.stat().st_size > _MOST_BYTES:
                return File(name, error=f"{name}: it is bigger than {_MOST_BYTES} bytes")
            return File(name, text=path.read_text(encoding="utf-8"))
        except OSError as error:
            return File(name, error=f"{name}: {error.strerror}")
        except UnicodeError as error:
            return File(name, error=f"{name}: not UTF-8: {error}")


class Plan(Struct, frozen=True):
    """What the files together want."""

    wanted: Mapping[tuple[str, str], Manifest]
    """By kind and name."""
    owner: Mapping[tuple[str, str], str]
    """The file of each."""
    errors: Mapping[str, str]
    """By file: nothing of such a file is applied."""


def plan(files: Iterable[File]) -> Plan:
    """Read the files in the order of their names. Of two that have the same object the first one counts."""
    wanted: dict[tuple[str, str], Manifest] = {}
    owner: dict[tuple[str, str], str] = {}
    errors: dict[str, str] = {}
    for file in sorted(files, key=lambda file: file.name):
        try:
            for key, manifest in _objects(file, owner):
                wanted[key], owner[key] = manifest, file.name
        except ManifestError as error:
            errors[file.name] = str(error)
    return Plan(wanted=wanted, owner=owner, errors=errors)


def _objects(file: File, owner: Mapping[tuple[str, str], str]) -> list[tuple[tuple[str, str], Manifest]]:
    if file.error:
        raise ManifestError(file.error)
    found: dict[tuple[str, str], Manifest] = {}
    for manifest in read(file.text, source=file.name):
        key = (manifest.kind.kind, manifest.metadata.name)
        if manifest.kind not in KINDS:
            known = ", ".join(kind.kind for kind in KINDS)
            msg = f"{manifest.where}: kind: {manifest.kind.kind!r} has no place in this folder (one of {known})"
            raise ManifestError(msg)
        other = owner.get(key) or (file.name if key in found else "")
        if other:
            msg = f"{manifest.where}: metadata.name: {manifest.metadata.name!r}: {manifest} is in {other} already"
            raise ManifestError(msg)
        found[key] = manifest
    return list(found.items())


def went(item: Any, kind: Kind[Any], the_plan: Plan) -> bool:
    """Whether an object came from a file that does not have it any more.

    A file that makes no sense may still have it.
    """
    source = item.metadata.annotations.get(SOURCE, "")
    return bool(source) and (kind.kind, item.metadata.name) not in the_plan.wanted and source not in the_plan.errors


class PoolFiles:
    """Carries a folder's files over into a store, one round after another."""

    def __init__(self, folder: Folder, store: Store) -> None:
        """Nothing is read yet."""
        self._folder = folder
        self._store = store
        self._seen: Mapping[str, Stamp] | None = None
        self._applied: Mapping[str, Stamp] | None = None
        self._looks = 0
        self.errors: Mapping[str, str] = {}
        """What is wrong now, by file."""

    def __repr__(self) -> str:
        return f"<PoolFiles {self._folder!r} {len(self._applied or ())} files, {len(self.errors)} errors>"

    async def round(self) -> None:
        """Look once, and apply what has changed; what goes wrong is in `errors`."""
        try:
            stamps = await self._folder.stamps()
        except OSError as error:
            self.errors = {"the folder": f"it cannot be listed: {error.strerror}"}
            self._applied = None
            return
        first, settled = self._seen is None, self._seen == stamps
        self._seen = stamps
        self._looks += 1
        due = bool(self.errors) and self._looks >= _AGAIN_LOOKS
        if (stamps != self._applied or due) and (settled or first):
            self._looks = 0
            self.errors = await self._carry_over(stamps)
            self._applied = stamps

    async def _carry_over(self, stamps: Mapping[str, Stamp]) -> Mapping[str, str]:
        the_plan = plan(await self._folder.read(stamps))
        errors = dict(the_plan.errors)
        for key, manifest in the_plan.wanted.items():
            name = the_plan.owner[key]
            try:
                done = await apply(self._store, _marked(manifest, name))
            except ManifestError as error:
                errors[name] = str(error)
            except (Contended, StoreError) as error:
                errors[name] = f"{name}: {error}"
            else:
                if done != "unchanged":
                    _log.info("%s: %s %s", name, manifest, done)
        for kind in KINDS:
            errors |= await self._remove(kind, the_plan)
        return errors

    async def _remove(self, kind: Kind[Any], the_plan: Plan) -> Mapping[str, str]:
        """Delete what no file has any more; returns what has to stay, and why."""
        left = {}
        try:
            items = (await self._store.list(kind)).items
        except StoreError as error:
            return {"the folder": str(error)}
        for item in items:
            if not went(item, kind, the_plan):
                continue
            source, name = item.metadata.annotations[SOURCE], item.metadata.name
            if isinstance(item, SpiderIPPool) and item.status.allocated_ips:
                count = item.status.allocated_ip_count or "some"
                left[source] = f"{source} has no {kind.kind} {name} any more, it stays: {count} addresses are in use"
                continue
            try:
                await self._store.delete(kind, name, resource_version=item.metadata.resource_version)
            except NotFound:
                continue
            except Conflict:
                left[source] = f"{source}: {kind.kind} {name} has just changed and is looked at again"
            except StoreError as error:
                left[source] = f"{source}: {kind.kind} {name} could not be deleted: {error}"
            else:
                _log.info("%s: %s %s deleted", source, kind.kind, name)
        return left


def _marked(manifest: Manifest, name: str) -> Manifest:
    metadata = manifest.metadata
    marked = structs.replace(metadata, annotations={**metadata.annotations, SOURCE: name})
    return structs.replace(manifest, item=structs.replace(manifest.item, metadata=marked))


class Look(Struct, frozen=True, tag=True):
    """Time to look at the folder."""


class Looked(Struct, frozen=True, tag=True):
    """A round is over."""


class LookFailed(Struct, frozen=True, tag=True):
    """It could not be ended; the next one begins anew."""

    error: Exception


Message = Look | Looked | LookFailed


class PoolFilesActor(Actor[Message]):
    """See the module."""

    capacity = 16

    def __init__(self, files: PoolFiles) -> None:
        """`files` may have been through its first round."""
        self._files = files
        self._said: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"<PoolFilesActor {self._files!r}>"

    def started(self) -> None:
        """Say what is known, and begin to look."""
        self._say()
        self.timers.start("look", LOOK_SECONDS, Look())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Look, and wait for the next time."""
        match message:
            case Look():
                self.pipe(self._files.round(), lambda _: Looked(), failed=LookFailed)
            case Looked():
                self._say()
                self.timers.start("look", LOOK_SECONDS, Look())
            case LookFailed(error):
                _log.error("the folder could not be looked at", exc_info=error)
                self.timers.start("look", LOOK_SECONDS, Look())
            case _:
                assert_never(message)
        return None

    def _say(self) -> None:
        errors = self._files.errors
        for name, error in errors.items():
            if self._said.get(name) != error:
                _log.error("%s", error)
        self._said = errors
        if self.system.health is not None:
            detail = "; ".join(errors.values())
            self.system.health.report(f"{self.ref.name}/files", State.DEGRADED if errors else State.OK, detail)
