"""The image as `make image` leaves it, unpacked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

CHECKOUT: Final = Path(__file__).resolve().parents[2]


class Archive(msgspec.Struct, frozen=True):
    """An archive that was built, with its documents read.

    Attributes:
        members: of all layers, from the lowest.
        rootfs: the layers unpacked over one another.
    """

    path: Path
    architecture: str
    said: list[str]
    index: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    legacy: list[dict[str, Any]]
    members: list[tarfile.TarInfo]
    rootfs: Path


def make(
    architecture: str, *, checkout: Path = CHECKOUT, output: Path, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs what `make image` runs."""
    argv = [sys.executable, "-m", "tools.image", "build", "--arch", architecture, "--output", str(output)]
    argv += ["--cache", str(cache)] if cache else []
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(argv, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def blob(archive: tarfile.TarFile, digest: str) -> bytes:
    """A blob of an archive."""
    file = archive.extractfile("blobs/" + digest.replace(":", "/"))
    assert file
    return file.read()


def unpack(path: Path, architecture: str, said: list[str], rootfs: Path) -> Archive:
    """Reads an archive and unpacks its layers."""
    members: list[tarfile.TarInfo] = []
    with tarfile.open(path) as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
        legacy = json.loads(archive.extractfile("manifest.json").read())  # type: ignore[union-attr]
        manifest = json.loads(blob(archive, index["manifests"][0]["digest"]))
        config = json.loads(blob(archive, manifest["config"]["digest"]))
        for layer in manifest["layers"]:
            file = archive.extractfile("blobs/" + layer["digest"].replace(":", "/"))
            with tarfile.open(fileobj=file, mode="r:gz") as content:
                members += content.getmembers()
                content.extractall(rootfs, filter="tar")
    return Archive(
        path=path,
        architecture=architecture,
        said=said,
        index=index,
        manifest=manifest,
        config=config,
        legacy=legacy,
        members=members,
        rootfs=rootfs,
    )


@pytest.fixture(scope="session")
def _archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Archive]:
    made: dict[str, Archive] = {}

    def get(architecture: str) -> Archive:
        if architecture not in made:
            done = make(architecture, output=CHECKOUT / "build")
            if done.returncode:
                pytest.fail(
                    f"no image; the tests have no network, so run make image ARCH={architecture}: {done.stderr}"
                )
            said = done.stdout.splitlines()
            root = tmp_path_factory.mktemp(architecture)
            root.chmod(0o755)
            made[architecture] = unpack(Path(said[0]), architecture, said, root)
        return made[architecture]

    return get


@pytest.fixture(scope="session", params=["amd64", "arm64"])
def image(request: pytest.FixtureRequest, _archives: Callable[[str], Archive]) -> Archive:
    """The image of each architecture."""
    return _archives(request.param)


type Run = "Callable[[Sequence[str]], subprocess.CompletedProcess[str]]"

_ENTER: Final = 'mount --bind "$0" "$0" && cd "$0" && mount -o remount,bind,ro "$0" && exec chroot "$@"'


@pytest.fixture(scope="session")
def run(_archives: Callable[[str], Archive]) -> Run:
    """Starts a program in this machine's image: its read-only root, user and environment."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
    image = _archives(machine)
    environment = dict(line.split("=", 1) for line in image.config["config"]["Env"])
    root = os.geteuid() == 0
    namespaces = ["unshare", "--mount"] if root else ["unshare", "--mount", "--map-root-user"]
    user = [f"--userspec={image.config['config']['User']}"] if root else []

    def start(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        whole = [*namespaces, "sh", "-c", _ENTER, str(image.rootfs), *user, str(image.rootfs), *argv]
        environment_here = {**environment, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(whole, env=environment_here, capture_output=True, text=True, check=False, timeout=50)

    return start
