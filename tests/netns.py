"""Network namespaces for tests, without any program:

made on a thread, kept by a bind mount, gone when the test is over.
"""

import ctypes
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Netns:
    """One network namespace with loopback up, reachable by `path` as container runtimes do it."""

    def __init__(self, folder: Path, name: str = "") -> None:
        """`folder` gets the file that the namespace is mounted on."""
        self.name = name or f"ns-{secrets.token_hex(4)}"
        self.path = folder / self.name

    def __repr__(self) -> str:
        return f"<Netns {self.path}>"

    def __enter__(self) -> Self:
        self.path.touch()

        def make() -> None:
            os.unshare(os.CLONE_NEWNET)
            source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
            if _libc.mount(source.encode(), os.fsencode(self.path), b"none", _MS_BIND, None):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), str(self.path))

        _on_a_thread(make)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path.exists():
            _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
            self.path.unlink()

    def run[T](self, work: Callable[[], T]) -> T:
        """What `work` returns, called on a thread inside the namespace."""

        def inside() -> T:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.setns(descriptor, os.CLONE_NEWNET)
            finally:
                os.close(descriptor)
            return work()

        return _on_a_thread(inside)


def _on_a_thread[T](work: Callable[[], T]) -> T:
    """Namespaces belong to threads: a thread that changed its own is not used again."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]
