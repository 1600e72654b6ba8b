"""Where Debian's packages come from, and what happens when a locked one is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.image import apt, debian
from tools.image.apt import Apt, AptError, Package, Source

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian
# another
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/mirror.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://off.test/debian
Suites: trixie
Enabled: no
"""
ONE_LINE = """\
# deb http://commented.test/debian bookworm main
deb http://vendor.test/apt stable-x main
deb-src http://sources.test/debian bookworm main
deb [arch=amd64 signed-by=/etc/keys/own.gpg] http://lines.test/debian bookworm main contrib
deb http://lines.test/security bookworm-security main
"""


def folder_with(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_mirror_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(apt.MIRROR_VARIABLE, raising=False)
    monkeypatch.delenv(apt.SECURITY_VARIABLE, raising=False)


def test_mirrors_of_deb822_sources(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "sources.list.d/debian.sources", DEB822)
    assert apt.choose_sources(apt.read_sources(folder)) == [
        Source("http://mirror.test/debian", ["trixie", "trixie-updates"], "/usr/share/keyrings/mirror.gpg"),
        Source("http://mirror.test/debian-security", ["trixie-security"]),
    ]


def test_mirrors_of_one_line_sources(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "sources.list", ONE_LINE)
    assert apt.choose_sources(apt.read_sources(folder)) == [
        Source("http://lines.test/debian", ["trixie", "trixie-updates"], "/etc/keys/own.gpg"),
        Source("http://lines.test/security", ["trixie-security"]),
    ]


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://own.test/debian")
    assert apt.choose_sources([Source("http://mirror.test/debian", ["bookworm"])]) == [
        Source("http://own.test/debian", ["trixie", "trixie-updates"])
    ]


def test_a_machine_without_a_debian_mirror_is_told_what_to_set() -> None:
    with pytest.raises(AptError, match=apt.MIRROR_VARIABLE):
        apt.choose_sources([Source("http://ubuntu.test/ubuntu", ["noble"])])


class Mirror(Apt):
    """A mirror that has one version of everything."""

    def __init__(self, version: str) -> None:
        self.version = version

    def candidates(self, names: object) -> list[Package]:
        assert isinstance(names, list)
        return [Package(name, self.version, "amd64", "b" * 64) for name in names]

    def fetch(self, package: Package, folder: Path) -> Path | None:
        if package.version != self.version:
            return None
        path = folder / f"{package.sha256}.deb"
        path.touch()
        return path


def test_a_locked_version_that_is_gone_is_replaced_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = Package("libc6", "1", "amd64", "a" * 64)
    monkeypatch.setattr(debian, "read_lock", lambda _architecture: [locked])
    monkeypatch.setattr(debian, "_apt", lambda _cache, _architecture: Mirror("2"))
    said: list[str] = []
    ((package, path),) = debian.fetch("amd64", tmp_path, said.append)
    assert (package.version, path.name) == ("2", f"{'b' * 64}.deb")
    assert len(said) == 1 and "libc6 1" in said[0] and "digest will differ" in said[0] and "image-lock" in said[0]


def test_a_locked_version_that_is_there_is_taken_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = Package("libc6", "1", "amd64", "a" * 64)
    monkeypatch.setattr(debian, "read_lock", lambda _architecture: [locked])
    monkeypatch.setattr(debian, "_apt", lambda _cache, _architecture: Mirror("1"))
    said: list[str] = []
    assert debian.fetch("amd64", tmp_path, said.append) == [(locked, tmp_path / "debs" / f"{'a' * 64}.deb")]
    assert not said


def test_a_lock_that_lacks_a_package_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "debian.lock"
    lock.write_text("libc6 1 amd64 " + "a" * 64 + "\n")
    with pytest.raises(AptError, match="make image-lock"):
        debian.read_lock("amd64", lock)


def test_the_lock_names_no_mirror() -> None:
    assert "://" not in debian.LOCK.read_text()
