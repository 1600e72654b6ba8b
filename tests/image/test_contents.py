"""What is in the image, and what an attacker would look for in vain."""

from __future__ import annotations

from pathlib import Path

from tests.image import elf
from tests.image.conftest import CHECKOUT, Archive
from tools.image import debian, project, wheels

UNWANTED = (
    *("sh", "bash", "dash", "busybox", "env", "apt", "apt-get", "dpkg", "pip", "pip3", "uv", "cc", "gcc", "ld", "as"),
    *("make", "perl", "curl", "wget", "su", "sudo", "mount", "ldconfig"),
)


def executables(image: Archive) -> set[str]:
    return {member.name for member in image.members if member.isfile() and member.mode & 0o111}


def test_nothing_can_be_executed_but_python_and_our_programs(image: Archive) -> None:
    names = {Path(name).name for name in executables(image)}
    assert not names & set(UNWANTED)
    ours = {f"usr/bin/{name}" for name in project.programs(CHECKOUT)}
    shims = {f"usr/lib/spiderpool/cni/{architecture}/spiderpool" for architecture in ("amd64", "arm64")}
    in_path = {path.relative_to(image.rootfs).as_posix() for path in (image.rootfs / "usr/bin").iterdir()}
    assert in_path == ours | {"usr/bin/python3", "usr/bin/python3.13"}
    assert ours | shims | {"usr/bin/python3.13"} <= executables(image)
    assert not list((image.rootfs / "usr/sbin").iterdir())


def test_no_installer_no_compiler_no_tests(image: Archive) -> None:
    site = image.rootfs / wheels.SITE
    for name in (
        "pip",
        "setuptools",
        "wheel",
        "uv",
        "ziglang",
        "pytest",
        "hatchling",
        "tests",
        "bench",
        "tools",
        "bin",
    ):
        assert not (site / name).exists(), name
    stdlib = image.rootfs / debian.STDLIB
    for name in ("test", "idlelib", "tkinter", "ensurepip", "turtledemo", "pydoc_data", "lib2to3"):
        assert not (stdlib / name).exists(), name
    suffixes = {path.suffix for path in image.rootfs.rglob("*") if path.is_file()}
    assert not suffixes & {".pyi", ".h", ".c", ".pyx", ".a", ".whl", ".deb"}


def test_every_library_is_of_the_architecture_and_has_what_it_needs(image: Archive) -> None:
    foreign = image.rootfs / project.HOME / "cni"
    read = {path: elf.read(path) for path in image.rootfs.rglob("*") if foreign not in path.parents}
    found = {path: it for path, it in read.items() if it}
    assert image.rootfs / "usr/bin/python3.13" in found
    assert sum(path.is_relative_to(image.rootfs / wheels.SITE) for path in found) > 5
    assert {it.machine for it in found.values()} == {image.architecture}
    libraries = image.rootfs / "usr/lib" / debian.TRIPLETS[image.architecture]
    present = {path.name for path in libraries.iterdir() if path.exists()} | {
        Path(debian.LOADERS[image.architecture]).name
    }
    missing = {path.name: set(it.needed) - present for path, it in found.items()}
    assert not {name: needs for name, needs in missing.items() if needs}


def test_the_shims_are_for_both_architectures_and_want_nothing(image: Archive) -> None:
    for architecture in ("amd64", "arm64"):
        shim = elf.read(image.rootfs / project.HOME / "cni" / architecture / "spiderpool")
        assert shim == elf.Elf(machine=architecture, needed=[])
    own = image.rootfs / project.HOME / "shim"
    assert own.readlink() == Path("cni", image.architecture, "spiderpool")


def test_the_crds_are_the_charts(image: Archive) -> None:
    chart = {path.name: path.read_bytes() for path in (CHECKOUT / "helm/spiderpool/crds").glob("*.yaml")}
    assert chart
    assert {path.name: path.read_bytes() for path in (image.rootfs / project.HOME / "crds").iterdir()} == chart


def test_every_module_is_compiled_and_never_checked_against_its_source(image: Archive) -> None:
    modules = [path for path in image.rootfs.rglob("*.py") if path.name != "spiderpool.py"]
    compiled = set(image.rootfs.rglob("*.pyc"))
    assert len(modules) == len(compiled) > 1000
    for path in compiled:
        head = path.read_bytes()[:8]
        assert int.from_bytes(head[4:8], "little") == 1, path
    own = image.rootfs / wheels.SITE / "api/__pycache__/__init__.cpython-313.pyc"
    assert str(image.rootfs).encode() not in own.read_bytes()
    assert own.read_bytes()[:2] == (3571).to_bytes(2, "little")


def test_licences_are_there(image: Archive) -> None:
    assert (image.rootfs / project.DOCUMENTS / "copyright").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()
    for name in debian.NAMES:
        assert (image.rootfs / "usr/share/doc" / name / "copyright").exists(), name
        assert (image.rootfs / "var/lib/dpkg/status.d" / name).read_text().startswith(f"Package: {name}\n")
    locked = [line.split("==") for line in (CHECKOUT / "requirements/runtime.txt").read_text().splitlines()]
    wanted = {row[0].replace("-", "_") for row in locked if len(row) == 2 and "win32" not in row[1]}
    present = {path.name.split("-")[0] for path in (image.rootfs / wheels.SITE).glob("*.dist-info")}
    assert present == wanted | {"spiderpool"}


def test_the_debian_packages_are_the_locked_ones(image: Archive) -> None:
    for package in debian.read_lock(image.architecture):
        status = (image.rootfs / "var/lib/dpkg/status.d" / package.name).read_text()
        assert f"\nVersion: {package.version}\n" in status
