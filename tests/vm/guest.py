"""One guest: a small machine with the newest kernel and real SR-IOV NICs, that runs one command and is gone.

It sees this machine's file system as it is and writes to none of it, the job folder excepted: there it finds the
command, and leaves what that printed and its exit code.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.isolation import GUEST_VARIABLE
from tests.servers.process import ServerProcess
from tests.servers.provide import CHECKOUT, cache_folder
from tests.vm import bytecode, initramfs
from tests.vm.parts import LINK_MODULES, NIC_MODULES, ROOT_MODULES, Parts

MEMORY_MB: Final = 2048
NICS: Final = 2
"""igb NICs, each with up to seven virtual functions, all on one wire."""

KVM: Final = Path("/dev/kvm")
KVM_SECONDS: Final = 20.0
KERNEL_ARGUMENTS: Final = (
    *("console=ttyS0", "quiet", "panic=-1", "oops=panic"),
    # What costs an emulated machine time and proves nothing here.
    *("mitigations=off", "nokaslr", "audit=0", "apparmor=0", "selinux=0", "no_timer_check", "cryptomgr.notests"),
)
LOOK_SECONDS: Final = 0.1
_END: Final = "code"
_OUTPUT: Final = "output"
_CONSOLE: Final = "console.log"


class GuestFailed(RuntimeError):
    """The guest ended without the command's exit code; the message has the end of what it said."""


class Guest:
    """A guest, from its start to its end; a context manager that ends it.

    Attributes:
        job: folder that both sides write. In the guest it is `JOB`.
    """

    JOB: Final = Path("/run/job")

    def __init__(self, parts: Parts, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """`command` runs in the checkout, with `environment` over a plain one."""
        self._parts = parts
        self._temporary = tempfile.TemporaryDirectory(prefix="spiderpool-vm-", ignore_cleanup_errors=True)
        self.job = Path(self._temporary.name, "job")
        self.job.mkdir()
        self._begun = time.monotonic()
        (self.job / "start").write_text(_start_script(command, environment or {}))
        self._qemu = ServerProcess("qemu", self._argv(), folder=self.job)

    def __repr__(self) -> str:
        return f"<Guest {self._parts.release} {'runs' if self._qemu.alive else 'stopped'}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, and waits for nothing."""
        self._qemu.start()

    def stop(self) -> None:
        """Ends it at once. Its folder goes with it."""
        self._qemu.stop(kill=True)
        self._temporary.cleanup()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._qemu.alive

    @property
    def output(self) -> Path:
        """File with what the command printed so far."""
        return self.job / _OUTPUT

    @property
    def console(self) -> str:
        """What its kernel and QEMU said so far."""
        path = self.job / _CONSOLE
        said = path.read_text(errors="replace") if path.exists() else ""
        return (self._qemu.tail() + "\n" + said).strip()

    def wait(self, *, seconds: float, until: Callable[[], bool] = lambda: False) -> int | None:
        """The command's exit code when it has ended, or None as soon as `until` holds, which is asked now and then.

        Raises:
            GuestFailed: the guest ended without, or `seconds` have passed.
        """
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            if until():
                return None
            time.sleep(LOOK_SECONDS)
        if until():
            return None
        code = self.job / _END
        if not code.exists():
            what = "ran out of time" if self.alive else "ended by itself"
            raise GuestFailed(f"the guest {what} after {time.monotonic() - self._begun:.0f} s\n{self.console[-4000:]}")
        return int(code.read_text())

    def keep(self, folder: Path) -> None:
        """Copies what it said and what the command printed."""
        shutil.copytree(self.job, folder, dirs_exist_ok=True)

    def _argv(self) -> list[str]:
        initrd = Path(self._temporary.name, "initramfs")
        modules = self._parts.module_files(ROOT_MODULES)
        initrd.write_bytes(initramfs.archive(busybox=self._parts.busybox, modules=modules))
        shares = {"host": Path("/"), "node": self._parts.node, "system": self._parts.system}
        kvm = uses_kvm(self._parts)
        return [
            *self._parts.qemu(),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-cpu", "max"),
            *("-accel", "kvm" if kvm else "tcg,thread=multi", "-m", str(MEMORY_MB), "-smp", "2"),
            *("-kernel", str(self._parts.kernel), "-initrd", str(initrd), "-append", " ".join(KERNEL_ARGUMENTS)),
            *("-serial", f"file:{self.job / _CONSOLE}"),
            *(part for tag, path in shares.items() for part in _share(tag, path, readonly=True)),
            *_share("job", self.job, readonly=False),
            *(part for number in range(NICS) for part in _nic(number)),
        ]


def _share(tag: str, path: Path, *, readonly: bool) -> tuple[str, str]:
    options = f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap"
    return "-virtfs", options + (",readonly=on" if readonly else "")


def _nic(number: int) -> tuple[str, ...]:
    """An igb behind a port of its own: that is where QEMU's virtual functions work."""
    return (
        *("-device", f"pcie-root-port,id=port{number},chassis={number + 1}"),
        *("-netdev", f"hubport,id=wire{number},hubid=0"),
        *("-device", f"igb,bus=port{number},netdev=wire{number},mac=52:54:00:00:00:{number + 1:02x}"),
    )


def _start_script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What the guest runs once it has a root file system. An end of its first program ends the guest."""
    variables = {
        "HOME": os.environ.get("HOME", "/root"),
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **bytecode.reading(),
        "PYTHONUNBUFFERED": "1",
        # The machine's own may hold the checkout, and much besides that pytest would tidy up.
        "TMPDIR": "/run/tmp",
        GUEST_VARIABLE: "1",
        **environment,
    }
    job = Guest.JOB
    return "\n".join(
        (
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"modprobe -a {' '.join(NIC_MODULES)} > /dev/console 2>&1",
            # The rest would come when it is asked for, in the time of a test.
            f"modprobe -a {' '.join(LINK_MODULES)} > /dev/console 2>&1 &",
            f"cd {shlex.quote(str(CHECKOUT))}",
            f"{shlex.join(command)} > {job / _OUTPUT} 2>&1 < /dev/null",
            f"echo $? > {job / _END}",
            "echo o > /proc/sysrq-trigger",
            "sleep 60\n",
        )
    )


def uses_kvm(parts: Parts) -> bool:
    """Whether a guest runs on KVM: a kernel is started without a root file system, and has to get as far as to panic.

    That /dev/kvm is there says little: a processor inside a virtual machine may lack what QEMU wants. The answer holds
    until the machine is started again.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache_folder() / "vm" / f"kvm-{boot}"
    if not known.exists():
        for old in known.parent.glob("kvm-*"):
            old.unlink()
        known.write_text("works" if os.access(KVM, os.R_OK | os.W_OK) and _reaches_panic(parts) else "does not work")
    return known.read_text() == "works"


def _reaches_panic(parts: Parts) -> bool:
    argv = [
        *parts.qemu(),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-cpu", "max"),
        *("-accel", "kvm", "-m", "512", "-serial", "stdio"),
        *("-kernel", str(parts.kernel), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and b"Kernel panic" in done.stdout
