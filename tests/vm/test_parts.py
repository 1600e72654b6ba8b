"""What a guest is made of, without a guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.servers.provide import ServersUnavailable
from tests.vm import initramfs, parts
from tests.vm.parts import Parts, in_order, read_dependencies
from tools.image.apt import AptError

MODULES_DEP = """\
kernel/net/9p/9pnet.ko: kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko.xz
kernel/drivers/net/dummy-x.ko.xz:
"""


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(MODULES_DEP)
    found = in_order(read_dependencies(tmp_path), ("dummy_x", "9pnet_virtio", "built-in", "9pnet"))
    assert [Path(path).name for path in found] == ["dummy-x.ko.xz", "netfs.ko.xz", "9pnet.ko", "9pnet_virtio.ko"]


def test_another_program_reads_the_archive(tmp_path: Path) -> None:
    try:
        busybox = parts.cached().busybox
    except ServersUnavailable as problem:
        pytest.skip(str(problem))
    module = tmp_path / "odd.ko"
    module.write_bytes(b"12345")
    data = initramfs.archive(busybox=busybox, modules=[module])
    subprocess.run([busybox, "cpio", "-i"], input=data, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "init").read_bytes() == initramfs.INIT.read_bytes()
    assert (tmp_path / "modules" / "000-odd.ko").read_bytes() == b"12345"
    assert (tmp_path / "bin/busybox").stat().st_mode & 0o777 == 0o755


def test_an_empty_cache_says_what_fills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIDERPOOL_CACHE", str(tmp_path))
    with pytest.raises(ServersUnavailable, match="make servers"):
        parts.cached()


def test_another_architecture_has_no_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ServersUnavailable, match="aarch64"):
        parts.provide()


def test_without_a_mirror_the_last_kernel_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AptError("no mirror")

    monkeypatch.setenv("SPIDERPOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(parts, "node_packages", lambda **_: tmp_path)
    monkeypatch.setattr(parts, "Apt", unreachable)
    with pytest.raises(ServersUnavailable, match="no mirror"):
        parts.provide()
    (tmp_path / "vm" / parts._tools_name()).mkdir()
    (tmp_path / "vm" / "kernel").write_text("7.0-test\n")
    monkeypatch.setattr(parts, "ASK_SECONDS", 0.0)
    said: list[str] = []
    found = parts.provide(progress=said.append)
    assert found == Parts(
        tools=tmp_path / "vm" / parts._tools_name(),
        system=tmp_path / "vm" / "kernel-7.0-test",
        node=tmp_path,
        release="7.0-test",
    )
    assert len(said) == 1 and "7.0-test" in said[0]
