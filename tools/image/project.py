"""The uppermost layer: the project's packages, its programs, the executable for nodes and the CRDs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Final

from tools.image import oci
from tools.image.wheels import SITE, trim

HOME: Final = "usr/lib/spiderpool"
DOCUMENTS: Final = "usr/share/doc/spiderpool"

_PROGRAM: Final = """\
#!/usr/bin/python3 -IB
import sys

from {module} import {function}

sys.exit({function}())
"""
"""-I: neither environment nor working directory can put other code in place of ours. -B: the root is read-only."""


def read_pyproject(checkout: Path) -> dict[str, Any]:
    """The project's own description of itself."""
    return tomllib.loads((checkout / "pyproject.toml").read_text())


def version(checkout: Path) -> str:
    """The project's version."""
    return str(read_pyproject(checkout)["project"]["version"])


def programs(checkout: Path) -> dict[str, str]:
    """The programs by name, each with its function as ``module:function``."""
    return dict(read_pyproject(checkout)["project"]["scripts"])


def inputs(checkout: Path) -> list[Path]:
    """Every file of the checkout that decides what is in the image."""
    packages = read_pyproject(checkout)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    names = ["pyproject.toml", "README.md", "LICENSE", "requirements/runtime.txt", "requirements/uv.txt"]
    paths = [checkout / name for name in names]
    for folder in (*packages, "helm/spiderpool/crds", "tools/image"):
        paths += [path for path in (checkout / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(paths)


def install(root: Path, architecture: str, *, checkout: Path, python: Path) -> None:
    """Put everything in place below a root.

    Raises `subprocess.CalledProcessError` when the wheel or the shim cannot be built.
    """
    _packages(root / SITE, checkout, python)
    (root / "usr/bin").mkdir(parents=True)
    for name, target in programs(checkout).items():
        module, _, function = target.partition(":")
        path = root / "usr/bin" / name
        path.write_text(_PROGRAM.format(module=module, function=function))
        path.chmod(0o755)
    shim = checkout / "build" / "cni"
    subprocess.run([python, "-m", "cni.shim.build", "--output", shim], cwd=checkout, capture_output=True, check=True)
    shutil.copytree(shim, root / HOME / "cni", ignore=shutil.ignore_patterns("*.new"))
    (root / HOME / "shim").symlink_to(f"cni/{architecture}/spiderpool")
    (root / HOME / "crds").mkdir()
    for path in sorted((checkout / "helm/spiderpool/crds").glob("*.yaml")):
        shutil.copyfile(path, root / HOME / "crds" / path.name)
    (root / DOCUMENTS).mkdir(parents=True)
    shutil.copyfile(checkout / "LICENSE", root / DOCUMENTS / "copyright")


def _packages(site: Path, checkout: Path, python: Path) -> None:
    """The project's wheel, unpacked."""
    site.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        argv: list[str | Path] = [python, "-m", "hatchling", "build", "--target", "wheel", "--directory", scratch]
        subprocess.run(argv, cwd=checkout, capture_output=True, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(site / "cni" / "shim")  # its executables are in the image, its source and compiler are not
    trim(site)


def settings(architecture: str, checkout: Path) -> oci.Settings:
    """How the image's programs run."""
    project = read_pyproject(checkout)["project"]
    return oci.Settings(
        architecture=architecture,
        cmd=["/usr/bin/spiderpoolctl", "version"],
        env={
            "PATH": "/usr/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
        },
        user="65532:65532",
        labels={
            "org.opencontainers.image.title": "Spiderpool",
            "org.opencontainers.image.description": project["description"],
            "org.opencontainers.image.licenses": project["license"],
            "org.opencontainers.image.version": project["version"],
        },
    )
