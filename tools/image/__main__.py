"""The container image: ``python -m tools.image [build|lock]``, or ``make image`` and ``make image-lock``.

Three layers, so that a new version of the project is a small download: Debian's Python, the locked dependencies, the
project. Trees and layers of the lower two are kept in the cache under a hash of all that goes into them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tools.image import bytecode, debian, oci, project, wheels
from tools.image.apt import AptError, Package

CHECKOUT: Final = Path(__file__).resolve().parents[2]
REPOSITORY: Final = "ghcr.io/spidernet-io/spiderpool/spiderpool"
KEPT_SECONDS: Final = 30 * 24 * 3600
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class Image(msgspec.Struct, frozen=True):
    """What was built.

    Attributes:
        path: of the archive.
        name: of the image with its tag.
        digest: of its manifest.
        size: of the archive in bytes.
        inputs: hash of everything that went into it.
    """

    path: str
    name: str
    digest: str
    size: int
    inputs: str

    def __str__(self) -> str:
        return f"{self.path}\n{self.name}\n{self.digest}\n{self.size / 1e6:.1f} MB"


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"image: {text}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where packages and layers are kept between builds."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiderpool"
    return Path(os.environ.get("SPIDERPOOL_CACHE") or default) / "image"


def machine() -> str:
    """This machine's architecture in Debian's word. Raises `ValueError` when there is no image for it."""
    name = platform.machine()
    if name not in _MACHINES:
        message = f"an image cannot be built on {name}: its Python has to run here; that is {', '.join(_MACHINES)}"
        raise ValueError(message)
    return _MACHINES[name]


def _hash(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()


def _sources(*modules: str) -> list[bytes]:
    return [Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("oci", "debian", "bytecode", *modules)]


def _inputs_of(architecture: str, name: str) -> str:
    parts = [architecture.encode(), name.encode(), str(oci.epoch()).encode()]
    for path in project.inputs(CHECKOUT):
        parts += [str(path.relative_to(CHECKOUT)).encode(), path.read_bytes()]
    return _hash(*parts)


@contextlib.contextmanager
def _turn(cache: Path) -> Iterator[None]:
    """One build at a time in a cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Builder:
    """Builds layers in a cache."""

    def __init__(self, cache: Path) -> None:
        """`cache` also holds the packages that were fetched."""
        self._cache = cache
        self._packages: dict[str, list[tuple[Package, Path]]] = {}

    def packages(self, architecture: str) -> list[tuple[Package, Path]]:
        """Debian's packages, fetched once."""
        if architecture not in self._packages:
            self._packages[architecture] = debian.fetch(architecture, self._cache, say)
        return self._packages[architecture]

    def _kept(self, key: str, comment: str, make: Callable[[Path], None]) -> tuple[Path, oci.Layer]:
        """The root and the layer of a key, made when they are not there."""
        folder = self._cache / "layers" / key[:32]
        if not (folder / "layer.json").exists():
            say(comment)
            shutil.rmtree(folder, ignore_errors=True)
            make(folder / "root")
            layer = oci.write_layer(folder / "root", folder, comment=comment)
            (folder / "layer.json").write_bytes(msgspec.json.encode(layer, enc_hook=str))
        os.utime(folder / "layer.json")
        layer = msgspec.json.decode((folder / "layer.json").read_bytes(), type=oci.Layer, dec_hook=lambda t, v: t(v))
        return folder / "root", msgspec.structs.replace(layer, path=folder / layer.path.name)

    def forget(self) -> None:
        """Remove the layers that no build has used for a month."""
        for path in (self._cache / "layers").glob("*/layer.json"):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path.parent)

    def python(self, architecture: str) -> tuple[Path, oci.Layer]:
        """Debian's Python."""
        packages = self.packages(architecture)

        def make(root: Path) -> None:
            debian.unpack(packages, root, architecture)
            self.compile(root, debian.STDLIB, python=root if architecture == machine() else None)

        rows = msgspec.json.encode([package for package, _ in packages])
        epoch = str(oci.epoch()).encode()
        return self._kept(_hash(rows, epoch, self._compiler(), *_sources()), f"Python 3.13 for {architecture}", make)

    def _compiler(self) -> bytes:
        """What the bytecode depends on besides its source."""
        return msgspec.json.encode([package for package, _ in self.packages(machine())])

    def compile(self, root: Path, folder: str, *, python: Path | None = None) -> None:
        """Compile the modules in a folder of a layer."""
        bytecode.compile_modules(root, folder, python=python or self.python(machine())[0], architecture=machine())

    def dependencies(self, architecture: str) -> tuple[Path, oci.Layer]:
        """The locked packages from the package index."""
        locked = CHECKOUT / "requirements" / "runtime.txt"

        def make(root: Path) -> None:
            wheels.install(locked, root, architecture, checkout=CHECKOUT, python=Path(sys.executable))
            self.compile(root, wheels.SITE)

        parts = [locked.read_bytes(), architecture.encode(), str(oci.epoch()).encode(), self._compiler()]
        return self._kept(_hash(*parts, *_sources("wheels")), f"dependencies for {architecture}", make)

    def build(self, architecture: str, out: Path, name: str, inputs: str) -> Image:
        """Write the archive."""
        lower = [self.python(architecture)[1], self.dependencies(architecture)[1]]
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".project-") as scratch:
            root = Path(scratch) / "root"
            comment = f"Spiderpool {project.version(CHECKOUT)}"
            say(f"{comment} for {architecture}")
            project.install(root, architecture, checkout=CHECKOUT, python=Path(sys.executable))
            self.compile(root, wheels.SITE)
            layer = oci.write_layer(root, Path(scratch), comment=comment)
            digest = oci.write_layers(
                out, layers=[*lower, layer], name=name, settings=project.settings(architecture, CHECKOUT)
            )
        return Image(path=str(out), name=name, digest=digest, size=out.stat().st_size, inputs=inputs)


def build(architecture: str, output: Path, cache: Path) -> Image:
    """Build the image, or say what the last build made when nothing has changed since.

    Raises `AptError`, `ValueError` and `subprocess.CalledProcessError`, each when something cannot be had or made.
    """
    if architecture not in oci.ARCHITECTURES:
        message = f"no image for {architecture!r}: ARCH is one of {', '.join(oci.ARCHITECTURES)}"
        raise ValueError(message)
    out, stamp = output / f"spiderpool-{architecture}.oci.tar", output / f"spiderpool-{architecture}.json"
    name = f"{REPOSITORY}:v{project.version(CHECKOUT)}"
    inputs = _inputs_of(architecture, name)
    if out.exists() and stamp.exists():
        last = msgspec.json.decode(stamp.read_bytes(), type=Image)
        if last.inputs == inputs and last.size == out.stat().st_size and last.path == str(out):
            return last
    with _turn(cache):
        builder = Builder(cache)
        image = builder.build(architecture, out, name, inputs)
        builder.forget()
    stamp.write_bytes(msgspec.json.encode(image))
    return image


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools.image", description="The container image, without a container engine.")
    parser.add_argument("verb", nargs="?", choices=("build", "lock"), default="build")
    parser.add_argument("--arch", default="", help=f"{' or '.join(oci.ARCHITECTURES)}; this machine's when left out")
    parser.add_argument("--output", type=Path, default=Path("build"), help="folder of the archive")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of packages and lower layers")
    args = parser.parse_args(argv)
    try:
        if args.verb == "lock":
            for package in debian.write_lock(oci.ARCHITECTURES, args.cache):
                print(f"{package.name} {package.version} {package.architecture}")
        else:
            print(build(args.arch or machine(), args.output, args.cache))
    except (AptError, ValueError) as error:
        say(str(error))
        return 2
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        say(f"{' '.join(map(str, error.cmd))} exited {error.returncode}\n{said}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
