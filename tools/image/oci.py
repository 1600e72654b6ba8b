"""An OCI archive from folders: layers, configuration, manifest and index in one tar file.

The same folders make the same bytes on every machine with the same zlib: names are sorted, owners are root, times are
`SOURCE_DATE_EPOCH` (or a constant), and of a file's mode only "may be executed" counts, so that neither the builder's
umask nor the builder's uid shows. Beside the OCI layout the archive holds the `manifest.json` that ``docker load`` of
engines before 25 looks for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, cast

import msgspec

ARCHITECTURES: Final = ("amd64", "arm64")
DEFAULT_EPOCH: Final = 1_735_689_600
"""2025-01-01: the time of every file when SOURCE_DATE_EPOCH does not say otherwise."""

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


class Layer(msgspec.Struct, frozen=True):
    """A compressed layer on disk.

    Attributes:
        path: of the gzip-compressed tar file.
        digest: of that file, ``sha256:<hex>``.
        diff_id: digest of what it decompresses to.
        size: of that file in bytes.
        comment: what it holds, for ``docker history``.
    """

    path: Path
    digest: str
    diff_id: str
    size: int
    comment: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a container of the image runs; the fields are those of the image configuration."""

    architecture: str = "amd64"
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Mapping[str, str] = {}
    user: str = ""
    workdir: str = "/"
    labels: Mapping[str, str] = {}


class _Sink(io.RawIOBase):
    """Passes writes on and hashes them on the way."""

    def __init__(self, target: IO[bytes]) -> None:
        self.target = target
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview | bytearray) -> int:  # type: ignore[override]
        self.hash.update(data)
        self.size += len(data)
        self.target.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self.hash.hexdigest()


def epoch() -> int:
    """The time of everything in the image, in seconds since 1970."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or DEFAULT_EPOCH)


def write_archive(
    out: Path,
    *,
    rootfs: Path,
    name: str,
    architecture: str = "amd64",
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Mapping[str, str] = {},
    user: str = "",
    workdir: str = "/",
    labels: Mapping[str, str] = {},
) -> str:
    """Write an archive of one layer; returns the manifest's digest.

    Raises `ValueError` for an unknown architecture, a name without a tag, or a file that an image should not hold.
    """
    settings = Settings(
        architecture=architecture,
        entrypoint=entrypoint,
        cmd=cmd,
        env=env,
        user=user,
        workdir=workdir,
        labels=labels,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".layers-") as scratch:
        return write_layers(out, layers=[write_layer(rootfs, Path(scratch))], name=name, settings=settings)


def write_layer(rootfs: Path, folder: Path, *, comment: str = "", level: int = 7) -> Layer:
    """Pack a folder as a layer ``<hex>.tar.gz`` in another folder.

    Raises `ValueError` when it holds a device, a socket or a FIFO.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=folder, prefix=".layer-")
    with os.fdopen(handle, "wb") as file:
        packed = _Sink(file)
        with gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=packed, mtime=0) as compressed:
            plain = _Sink(cast("IO[bytes]", compressed))
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for path in sorted(rootfs.rglob("*"), key=lambda path: path.relative_to(rootfs).parts):
                    _add(tar, path, str(path.relative_to(rootfs)))
    Path(scratch).chmod(0o644)
    path = Path(scratch).rename(folder / f"{packed.hash.hexdigest()}.tar.gz")
    return Layer(path=path, digest=packed.digest, diff_id=plain.digest, size=packed.size, comment=comment)


def write_layers(out: Path, *, layers: Sequence[Layer], name: str, settings: Settings) -> str:
    """Write an archive of layers that are there already, the lowest first; returns the manifest's digest.

    Raises `ValueError` for an unknown architecture or a name without a tag.
    """
    if settings.architecture not in ARCHITECTURES:
        message = f"architecture {settings.architecture!r} is none of {', '.join(ARCHITECTURES)}"
        raise ValueError(message)
    _, _, tag = name.rpartition("/")[2].partition(":")
    if not tag:
        message = f"the image's name {name!r} has no tag"
        raise ValueError(message)
    config = _encode(_config(layers, settings))
    described = [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers]
    manifest = _encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
            "layers": described,
        }
    )
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": _digest(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
                "platform": {"architecture": settings.architecture, "os": "linux"},
            }
        ],
    }
    legacy = [{"Config": _blob(_digest(config)), "RepoTags": [name], "Layers": [_blob(it.digest) for it in layers]}]
    members: dict[str, bytes | Path] = {
        "oci-layout": _encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": _encode(index),
        "manifest.json": _encode(legacy),
        _blob(_digest(manifest)): manifest,
        _blob(_digest(config)): config,
        **{_blob(layer.digest): layer.path for layer in layers},
    }
    _write_members(out, members)
    return _digest(manifest)


def _write_members(out: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write the archive's own tar file, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-")
    try:
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for folder in ("blobs", "blobs/sha256"):
                entry = _entry(folder, 0o755)
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            for member, content in members.items():
                entry = _entry(member, 0o644)
                with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
                    entry.size = len(content) if isinstance(content, bytes) else content.stat().st_size
                    tar.addfile(entry, source)
        Path(scratch).chmod(0o644)
        Path(scratch).rename(out)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _config(layers: Sequence[Layer], settings: Settings) -> dict[str, object]:
    """The image configuration."""
    created = datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    run: dict[str, object] = {
        "User": settings.user,
        "Env": [f"{key}={value}" for key, value in sorted(settings.env.items())],
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.cmd),
        "WorkingDir": settings.workdir,
        "Labels": dict(sorted(settings.labels.items())),
    }
    return {
        "created": created,
        "architecture": settings.architecture,
        "os": "linux",
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": layer.comment or "tools/image"} for layer in layers],
    }


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file, folder or link."""
    status = path.lstat()
    entry = _entry(name, 0o755 if status.st_mode & 0o111 else 0o644)
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, str(path.readlink())
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if status.st_mode & stat.S_ISVTX else 0o755
        tar.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        entry.size = status.st_size
        with path.open("rb") as source:
            tar.addfile(entry, source)
    else:
        message = f"{path} is neither a file, a folder nor a link"
        raise ValueError(message)


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    """A member of a tar file that says nothing of the machine it was made on."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, epoch()
    return entry


def _encode(value: object) -> bytes:
    """JSON as it is hashed."""
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _blob(digest: str) -> str:
    """Where a blob lies in the archive."""
    return "blobs/" + digest.replace(":", "/")
