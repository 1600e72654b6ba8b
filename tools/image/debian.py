"""The lowest layer: Python 3.13 and the libraries under it, from packages that ``debian.lock`` pins.

There is no package manager's run and no maintainer script: files are unpacked, and what nobody reads is left out. What
remains says of itself which packages it is made of, in the way that scanners for vulnerabilities look for.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tools.image.apt import SUITE, Apt, AptError, Package

LOCK: Final = Path(__file__).with_name("debian.lock")
NAMES: Final = (
    "gcc-14-base",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libsqlite3-0",
    "libssl3t64",
    "libstdc++6",
    "libzstd1",
    "python3.13-minimal",
    "zlib1g",
)
"""gcc-14-base holds the licence of libgcc, which glibc loads when a daemon thread ends with the process."""

TRIPLETS: Final = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
LOADERS: Final = {"amd64": "usr/lib64/ld-linux-x86-64.so.2", "arm64": "usr/lib/ld-linux-aarch64.so.1"}
STDLIB: Final = "usr/lib/python3.13"
USER: Final = 65532
"""uid and gid that the programs run as unless told otherwise."""

_UNUSED: Final = (
    # documentation for people and build systems; licences stay
    "usr/share/binfmts",
    "usr/share/lintian",
    "usr/share/man",
    "usr/share/gcc*",
    "usr/share/gdb",
    "usr/lib/binfmt.d",
    "etc/ld.so.conf.d",
    "etc/python3.13",
    # glibc: converters, tracing, NIS
    "usr/lib/*/gconv",
    "usr/lib/*/audit",
    "usr/lib/*/engines-3",
    "usr/lib/*/libBrokenLocale.so.*",
    "usr/lib/*/libc_malloc_debug.so.*",
    "usr/lib/*/libmemusage.so",
    "usr/lib/*/libnsl.so.*",
    "usr/lib/*/libnss_compat.so.*",
    "usr/lib/*/libnss_hesiod.so.*",
    "usr/lib/*/libpcprofile.so",
    "usr/lib/*/libthread_db.so.*",
    # Python: what is for a terminal, a window, a lesson or its own tests
    *(f"{STDLIB}/{name}" for name in ("curses", "dbm", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test")),
    *(f"{STDLIB}/{name}" for name in ("tkinter", "turtle.py", "turtledemo", "venv", "sitecustomize.py")),
    *(f"{STDLIB}/{name}" for name in ("__phello__", "__hello__.py", "antigravity.py", "this.py", "EXTERNALLY-MANAGED")),
    *(f"{STDLIB}/lib-dynload/{name}.*.so" for name in ("_bz2", "_curses*", "_dbm", "_lzma", "_uuid", "readline")),
    *(f"{STDLIB}/lib-dynload/{name}.*.so" for name in ("_test*", "_ctypes_test", "_xxtestfuzz", "xx*")),
)

_FILES: Final = {
    "etc/passwd": f"root:x:0:0:root:/:/nonexistent\nspiderpool:x:{USER}:{USER}:spiderpool:/:/nonexistent\n",
    "etc/group": f"root:x:0:\nspiderpool:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": f'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME={SUITE}\nPRETTY_NAME="Debian 13, part of it"\n',
}


def read_lock(architecture: str, path: Path = LOCK) -> list[Package]:
    """The pinned packages of an architecture. Raises `AptError` when there are none."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    locked = [Package(*row) for row in rows if row[2] == architecture]
    if {package.name for package in locked} != set(NAMES):
        message = f"{path.name} does not list what the image needs for {architecture}: run make image-lock"
        raise AptError(message)
    return locked


def write_lock(architectures: Sequence[str], cache: Path, path: Path = LOCK) -> list[Package]:
    """Pin the newest packages of the suite. Raises `AptError`."""
    packages = [package for each in architectures for package in _apt(cache, each).candidates(NAMES)]
    rows = [f"{it.name} {it.version} {it.architecture} {it.sha256}" for it in packages]
    path.write_text(f"# name version architecture sha256, of Debian {SUITE}; make image-lock writes it\n")
    with path.open("a") as file:
        file.write("\n".join(rows) + "\n")
    return packages


def _apt(cache: Path, architecture: str) -> Apt:
    return Apt(cache / f"apt-{SUITE}-{architecture}", architecture)


def fetch(architecture: str, cache: Path, warn: Callable[[str], None]) -> list[tuple[Package, Path]]:
    """The locked packages, or the newest where the mirror has dropped a locked one, each with its file.

    Raises `AptError`.
    """
    folder = cache / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    apt: Apt | None = None
    fetched = []
    for locked in read_lock(architecture):
        package, path = locked, folder / f"{locked.sha256}.deb"
        if not path.exists():
            apt = apt or _apt(cache, architecture)
            had = apt.fetch(package, folder)
            if had is None:
                (package,) = apt.candidates([locked.name])
                path = folder / f"{package.sha256}.deb"
                warn(
                    f"the mirror no longer has {locked.name} {locked.version}: taking {package.version}, which its "
                    "signed index vouches for; the image's digest will differ (make image-lock pins the new one)"
                )
                if not path.exists() and apt.fetch(package, folder) is None:
                    message = f"{package.name} {package.version} is in the index and cannot be fetched"
                    raise AptError(message)
        fetched.append((package, path))
    return fetched


def unpack(packages: Sequence[tuple[Package, Path]], rootfs: Path, architecture: str) -> None:
    """Make the root file system. Raises `subprocess.CalledProcessError` when a package cannot be unpacked."""
    rootfs.mkdir(parents=True)
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin", "var/lib/dpkg/status.d"):
        (rootfs / name).mkdir(parents=True, exist_ok=True)
    (rootfs / "tmp").chmod(0o1777)
    (rootfs / "var/run").symlink_to("/run")
    for name in ("bin", "lib", "sbin", *(["lib64"] if architecture == "amd64" else [])):
        (rootfs / name).symlink_to(f"usr/{name}")
    for package, path in packages:
        subprocess.run(["dpkg-deb", "--extract", path, rootfs], check=True)
        control = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, check=True).stdout
        (rootfs / "var/lib/dpkg/status.d" / package.name).write_bytes(control)
    for pattern in _UNUSED:
        for path in rootfs.glob(pattern):
            remove(path)
    for path in (rootfs / "usr/share/doc").glob("*/*"):
        if path.name != "copyright" and not path.is_symlink():
            remove(path)
    for path in rootfs.rglob("__pycache__"):
        remove(path)
    (rootfs / "usr/bin/python3").symlink_to("python3.13")
    for name, content in _FILES.items():
        (rootfs / name).write_text(content)
    # OpenSSL looks here for the authorities of the public internet; certifi's list is one layer up.
    (rootfs / "usr/lib/ssl").mkdir(parents=True, exist_ok=True)
    (rootfs / "usr/lib/ssl/cert.pem").unlink(missing_ok=True)
    (rootfs / "usr/lib/ssl/cert.pem").symlink_to("/usr/local/lib/python3.13/dist-packages/certifi/cacert.pem")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all below it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
