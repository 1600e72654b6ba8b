"""The images of the lab, made here: there is no registry.

`PAUSE` is every pod's sandbox; `BUSYBOX` has a shell, httpd, wget, ping and nc. Pods must say
`imagePullPolicy: IfNotPresent`.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Final

from tests.servers.debian import node_packages
from tests.servers.provide import Progress, c_compiler, cache_folder, made_once, silent
from tools.image.oci import write_archive

PAUSE: Final = "lab.local/pause:1"
BUSYBOX: Final = "lab.local/busybox:1"
SOURCE: Final = Path(__file__).with_name("pause.c")


def lab_images(*, progress: Progress = silent) -> list[Path]:
    """OCI archives of `PAUSE` and `BUSYBOX`, from the cache. Raises ServersUnavailable."""
    busybox = node_packages(progress=progress) / "usr" / "bin" / "busybox"
    key = hashlib.sha256(Path(__file__).read_bytes() + SOURCE.read_bytes() + busybox.read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "images" / f"lab-{key}"
    with made_once(folder) as scratch:
        if scratch is not None:
            _make_pause(scratch, progress)
            _make_busybox(scratch, busybox)
    return [folder / "pause.tar", folder / "busybox.tar"]


def _make_pause(folder: Path, progress: Progress) -> None:
    root = folder / "pause"
    root.mkdir()
    argv = [c_compiler(progress), "-Os", "-static", "-s", "-o", str(root / "pause"), str(SOURCE)]
    subprocess.run(argv, check=True)
    write_archive(folder / "pause.tar", rootfs=root, name=PAUSE, entrypoint=["/pause"])


def _make_busybox(folder: Path, busybox: Path) -> None:
    root = folder / "busybox"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "var", "www"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in set(applets) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    (root / "www" / "index.html").write_text("ok\n")
    write_archive(
        folder / "busybox.tar", rootfs=root, name=BUSYBOX, cmd=["sh"], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    )
