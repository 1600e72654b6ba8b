"""The same input makes the same image, wherever and whenever; and a second run has nothing to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.image.conftest import CHECKOUT, make
from tools.image import project
from tools.image.__main__ import cache_folder, machine


def copy_of_the_checkout(target: Path) -> Path:
    paths = [*project.inputs(CHECKOUT), CHECKOUT / "tools/__init__.py", CHECKOUT / "tools/bootstrap"]
    for path in [*paths, *(path for path in (CHECKOUT / "build/cni").rglob("*") if path.is_file())]:
        copy = target / path.relative_to(CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return target


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_machines_make_the_same_bytes(tmp_path: Path) -> None:
    architecture = machine()
    one = copy_of_the_checkout(tmp_path / "one")
    two = tmp_path / "elsewhere" / "two"
    shutil.copytree(one, two)
    cold = tmp_path / "cache"
    shutil.copytree(
        cache_folder() / "debs", cold / "debs", copy_function=os.link if same_disk(tmp_path) else shutil.copy2
    )

    warm = make(architecture, checkout=one, output=tmp_path / "out one")
    umask = os.umask(0o077)
    try:
        afresh = make(architecture, checkout=two, output=tmp_path / "out two", cache=cold)
    finally:
        os.umask(umask)

    assert (warm.returncode, afresh.returncode) == (0, 0), warm.stderr + afresh.stderr
    assert "Python 3.13" in afresh.stderr, "the second build used the first one's layers"
    assert warm.stdout.splitlines()[1:] == afresh.stdout.splitlines()[1:]
    name = f"spiderpool-{architecture}.oci.tar"
    assert (tmp_path / "out one" / name).read_bytes() == (tmp_path / "out two" / name).read_bytes()

    again = make(architecture, checkout=one, output=tmp_path / "out one")
    assert again.stdout == warm.stdout
    assert again.stderr == "", "a second run built something"


def same_disk(folder: Path) -> bool:
    return folder.stat().st_dev == cache_folder().stat().st_dev
