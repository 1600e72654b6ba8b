"""apt with folders of its own: packages of another Debian release, checked by apt, without a change to this machine.

The mirror is the one that the machine itself uses, with its proxy and its keys; only the suite is ours. Every package
is checked twice: by apt against the signed index, and against a SHA-256 that we know or were told by that index.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

SUITE: Final = "trixie"
BACKPORTS: Final = f"{SUITE}-backports"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_FOLDER: Final = Path("/etc/apt")
MIRROR_VARIABLE: Final = "SPIDERPOOL_DEBIAN_MIRROR"
SECURITY_VARIABLE: Final = "SPIDERPOOL_DEBIAN_SECURITY_MIRROR"

_RELEASE: Final = re.compile(r"^(oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky)$")
_SECURITY: Final = re.compile(r"^(oldstable|stable|testing|bullseye|bookworm|trixie|forky)-security$")
_KEPT: Final = re.compile(r"^Acquire::(http|https|Retries|Check-Valid-Until|Check-Date)\b.* \".+\";$")
"""What we take over of the machine's apt configuration: how to reach a mirror, and how to judge its dates."""


class AptError(RuntimeError):
    """A package cannot be had; the message says what to install or set."""


class Package(msgspec.Struct, frozen=True, order=True):
    """One version of a Debian package.

    Attributes:
        name: of the package.
        version: with epoch and revision.
        architecture: that we asked for, also where the package says ``all``.
        sha256: of the .deb file, in hex.
    """

    name: str
    version: str
    architecture: str
    sha256: str


class Source(msgspec.Struct, frozen=True):
    """A mirror of the machine.

    Attributes:
        uri: as apt writes it.
        suites: that the machine takes from there.
        keyring: path of the keys that sign it; empty when it does not say.
    """

    uri: str
    suites: Sequence[str]
    keyring: str = ""


def read_sources(folder: Path = APT_FOLDER) -> list[Source]:
    """The machine's sources, of both formats."""
    found: list[Source] = []
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            found += _stanzas(text)
        elif path.suffix == ".list":
            found += _lines(text)
    return found


def _lines(text: str) -> Iterable[Source]:
    """Parse ``deb [options] uri suite component...``."""
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
        if match:
            keyring = re.search(r"signed-by=(/\S+)", match["options"] or "")
            yield Source(match["uri"], [match["suite"]], keyring[1] if keyring else "")


def _stanzas(text: str) -> Iterable[Source]:
    """Parse deb822 stanzas."""
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", bare):
        fields = {key.lower(): value for key, value in re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {"no", "false"}:
            continue
        keyring = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            yield Source(uri, fields.get("suites", "").split(), keyring if keyring.startswith("/") else "")


def choose_sources(sources: Sequence[Source], *, backports: bool = False) -> list[Source]:
    """Where the suite, its security updates and, if wanted, its backports are.

    The mirrors are the machine's, or those that the environment names.

    Raises `AptError` when the machine knows no Debian mirror.
    """
    main = [source for source in sources if any(_RELEASE.match(suite) for suite in source.suites)][:1]
    security = [source for source in sources if any(_SECURITY.match(suite) for suite in source.suites)][:1]
    if os.environ.get(MIRROR_VARIABLE):
        main, security = [Source(os.environ[MIRROR_VARIABLE], [])], []
    if os.environ.get(SECURITY_VARIABLE):
        security = [Source(os.environ[SECURITY_VARIABLE], [])]
    if not main:
        message = f"{APT_FOLDER}/sources.list* names no Debian mirror; set {MIRROR_VARIABLE} to the URI of one"
        raise AptError(message)
    suites = [SUITE, f"{SUITE}-updates", *([BACKPORTS] if backports else [])]
    chosen = [Source(main[0].uri, suites, main[0].keyring)]
    return chosen + [Source(source.uri, [f"{SUITE}-security"], source.keyring) for source in security]


class Apt:
    """apt for one architecture, with all its state in one folder."""

    def __init__(self, folder: Path, architecture: str, *, backports: bool = False) -> None:
        """With `backports`, that suite is there to be asked for; nothing else comes from it.

        Raises `AptError` where there is no apt, no Debian key or no Debian mirror.
        """
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            message = "Debian's packages are wanted: this needs a Debian or Ubuntu with apt and dpkg"
            raise AptError(message)
        self._folder = folder.resolve()
        self._architecture = architecture
        self._backports = backports
        self._updated = False
        for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "state" / "status").touch()
        (self._folder / "etc" / "debian.sources").write_text(self._sources())
        (self._folder / "apt.conf").write_text(self._configuration())

    def _sources(self) -> str:
        stanzas = []
        for source in choose_sources(read_sources(), backports=self._backports):
            keyring = Path(source.keyring) if source.keyring else KEYRING
            if not keyring.exists():
                message = f"{keyring} is missing; install it (apt-get install debian-archive-keyring)"
                raise AptError(message)
            suites = " ".join(source.suites)
            stanzas.append(
                f"Types: deb\nURIs: {source.uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
            )
        return "\n".join(stanzas)

    def _configuration(self) -> str:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        kept = [line for line in dump.splitlines() if _KEPT.match(line)]
        folder = self._folder
        ours = [
            f'Dir "{folder}";',
            f'Dir::State "{folder}/state";',
            f'Dir::State::status "{folder}/state/status";',
            f'Dir::Cache "{folder}/cache";',
            f'Dir::Etc "{folder}/etc";',
            f'Dir::Etc::sourcelist "{folder}/etc/debian.sources";',
            'Dir::Etc::sourceparts "-";',
            f'APT::Architecture "{self._architecture}";',
            f'APT::Architectures {{ "{self._architecture}"; }};',
            'APT::Sandbox::User "";',
            'Acquire::Languages "none";',
        ]
        return "\n".join(kept + ours) + "\n"

    def _run(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def update(self) -> None:
        """Fetch the signed indexes, once. Raises `AptError`."""
        if self._updated:
            return
        done = self._run("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
        if done.returncode:
            message = f"apt-get update for {SUITE} {self._architecture} failed:\n{done.stderr.strip()}"
            raise AptError(message)
        self._updated = True

    def candidates(self, names: Sequence[str]) -> list[Package]:
        """The newest version of each that the index has. Raises `AptError`."""
        self.update()
        done = self._run("apt-cache", "show", "--no-all-versions", *names)
        found: dict[str, Package] = {}
        for stanza in done.stdout.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", stanza, re.MULTILINE))
            if {"Package", "Version", "SHA256"} <= fields.keys():
                package = Package(fields["Package"], fields["Version"], self._architecture, fields["SHA256"])
                found.setdefault(package.name, package)
        missing = sorted(set(names) - found.keys())
        if missing:
            message = f"{SUITE} has no {', '.join(missing)} for {self._architecture}: {done.stderr.strip()}"
            raise AptError(message)
        return [found[name] for name in names]

    def depends(self, name: str, *, suite: str = "") -> list[str]:
        """The names of what the newest version of a package depends on.

        Args:
            name: of the package.
            suite: to take it from; the release when empty.

        Raises:
            AptError: there is no such package.
        """
        self.update()
        done = self._run("apt-cache", *_prefer(suite), "show", "--no-all-versions", name)
        found = re.search(r"^Depends: (.+)$", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            message = f"{suite or SUITE} has no {name} for {self._architecture}: {done.stderr.strip()}"
            raise AptError(message)
        return re.findall(r"(?:^|, )([a-z0-9][a-z0-9.+-]+)", found[1])

    def download(self, names: Sequence[str], folder: Path, *, suite: str = "", alone: bool = False) -> list[Path]:
        """Put the newest version of packages into a folder, with all that they need, down to the C library.

        Args:
            names: of the packages.
            folder: that exists.
            suite: to take them from; the release when empty.
            alone: leave out what they need.

        Raises:
            AptError: one of them cannot be had.
        """
        self.update()
        if alone:
            done = self._run("apt-get", *_prefer(suite), "download", "-q", *names, cwd=folder)
        else:
            install = ("install", "-q", "-y", "--no-install-recommends", "--download-only")
            (folder / "partial").mkdir(exist_ok=True)
            done = self._run("apt-get", *_prefer(suite), "-o", f"Dir::Cache::archives={folder}", *install, *names)
        found = sorted(folder.glob("*.deb"))
        if done.returncode or len(found) < len(names):
            message = f"{', '.join(names)} cannot be had from {suite or SUITE}:\n{done.stderr.strip()}"
            raise AptError(message)
        return found

    def fetch(self, package: Package, folder: Path) -> Path | None:
        """Put a package into a folder as ``<sha256>.deb``; None when the index does not have that version or file.

        Raises `AptError` when it is there and cannot be fetched.
        """
        self.update()
        known = self._run("apt-cache", "show", f"{package.name}={package.version}")
        if package.sha256 not in re.findall(r"^SHA256: (\S+)$", known.stdout, re.MULTILINE):
            return None
        scratch = folder / f".new-{package.sha256}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            done = self._run("apt-get", "download", "-q", f"{package.name}={package.version}", cwd=scratch)
            files = list(scratch.glob("*.deb"))
            if done.returncode or not files:
                message = f"apt-get download {package.name}={package.version} failed:\n{done.stderr.strip()}"
                raise AptError(message)
            if hashlib.sha256(files[0].read_bytes()).hexdigest() != package.sha256:
                message = f"{files[0].name} is not the file that was locked: its SHA-256 is not {package.sha256}"
                raise AptError(message)
            return files[0].rename(folder / f"{package.sha256}.deb")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _prefer(suite: str) -> tuple[str, ...]:
    return ("-o", f"APT::Default-Release={suite}") if suite else ()
