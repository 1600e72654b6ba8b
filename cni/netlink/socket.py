"""Network namespaces and netlink sockets in one of them.

A namespace is entered by `setns` on the calling thread, for as long as it takes to open a socket there (about 15 us);
the socket stays in it, the thread goes back. pyroute2's own `netns=` forks instead, 10 ms and a deadlock with threads.
No descriptor into a container's namespace may outlive the call that opened it: it would keep a dead pod's interfaces,
and so its addresses, alive. Hence the context managers.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from msgspec import Struct

from cni.config import shown
from cni.errors import InvalidNetns, IoFailure, KernelRefused
from cni.netlink import message

_GET_NSTYPE = 0xB703
_OWN = "/proc/thread-self/ns/net"
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_CAP_ACK, _EXT_ACK, _STRICT_CHECK = 10, 11, 12
_ERROR, _DONE = 2, 3
_F_CAPPED, _F_ACK_TLVS = 0x100, 0x200
_EXT_ACK_WORDS = 1
_TYPE = struct.Struct("=H")
_TIMEOUT_S = 30.0
"""A request runs inside `sendmsg` under the kernel's rtnl lock, so its answer is there at once or never."""
_ATTEMPTS = 20
"""At reading a list. While a hundred pods start, that of the node's addresses changes during two readings of three."""
_LOOK_S = 1.0
_senders = ThreadPoolExecutor(16, thread_name_prefix="netlink-sender")
"""For requests that are over long before the kernel returns from them."""
_TOGETHER = 64
"""Requests in one datagram: their answers fit into the socket's buffer."""


class _Sent(threading.local):
    """How many requests a thread has sent."""

    count = 0


_sent = _Sent()


def requests_sent() -> int:
    """How many requests the calling thread has sent to the kernel so far: a difference says what something cost."""
    return _sent.count


def _count(requests: int) -> None:
    _sent.count += requests


class Netns:
    """An open network namespace. Close it, best with `with`."""

    def __init__(self, path: str, descriptor: int) -> None:
        """`descriptor` is owned from now on."""
        self.path = path
        self.descriptor = descriptor

    def __repr__(self) -> str:
        return f"<Netns {self.path}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the namespace at `path`.

        Raises:
            InvalidNetns: there is none.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InvalidNetns(f"CNI_NETNS: {shown(path)} cannot be opened", words) from error
        if not _is_network(descriptor):
            os.close(descriptor)
            raise InvalidNetns(f"CNI_NETNS: {shown(path)} is not a network namespace")
        return cls(path, descriptor)

    @property
    def is_own(self) -> bool:
        """Whether it is the one this process runs in."""
        return os.fstat(self.descriptor).st_ino == Path(_OWN).stat().st_ino

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the body on this thread inside the namespace. The body must not switch threads or await.

        Raises:
            InvalidNetns: it is a namespace of another type, or closed to us.
        """
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                os.setns(self.descriptor, os.CLONE_NEWNET)
            except OSError as error:
                raise InvalidNetns(f"CNI_NETNS: {shown(self.path)} cannot be entered", str(error)) from error
            try:
                yield
            finally:
                try:
                    os.setns(home, os.CLONE_NEWNET)
                except OSError as error:
                    # This thread would do the next container's work in this one's namespace.
                    print(f"cannot leave {self.path}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                    os.abort()
        finally:
            os.close(home)


def _is_network(descriptor: int) -> bool:
    # After its last unmount a namespace's file is an ordinary, empty one.
    if os.fstat(descriptor).st_dev != Path(_OWN).stat().st_dev:
        return False
    try:
        return fcntl.ioctl(descriptor, _GET_NSTYPE) == os.CLONE_NEWNET
    except OSError:
        return False


class Refusal(Exception):
    """The kernel's answer to one request: an error number and, most of the time, words."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"{words} ({errno.errorcode.get(number, number)})")
        self.number = number

    def explain(self, doing: str) -> KernelRefused:
        """The CNI error; `doing` is what was asked for, "add 10.0.0.5/16 to eth0"."""
        return KernelRefused(f"the kernel refused to {doing}", str(self), errno=self.number)


class Request(Struct, frozen=True):
    """One change among several that are sent together."""

    kind: int
    flags: int
    body: bytes
    doing: str
    """For an error: "add 10.0.0.5/16 to eth0"."""
    fine: tuple[int, ...] = ()
    """Error numbers that mean that there was nothing to do."""


class NetlinkSocket:
    """A blocking netlink socket, one request at a time. Close it, best with `with`."""

    def __init__(self, protocol: int) -> None:
        """It lives in the namespace that the calling thread is in now."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.settimeout(_TIMEOUT_S)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Ask for a change and wait until it is made.

        Raises:
            Refusal: the kernel's answer is an error.
            IoFailure: no answer.
        """
        sequence = self._send(kind, flags | message.F_REQUEST | message.F_ACK, body)
        for _ in self._replies(sequence):
            pass

    def request_until(
        self, kind: int, flags: int, body: bytes, *, group: int, made: Callable[[int, memoryview], bool]
    ) -> None:
        """Ask for a change that the kernel announces long before it acknowledges it; wait for either.

        Another thread stays in `sendmsg` until then, and this socket's namespace stays as long: milliseconds.

        Args:
            kind: as with all requests.
            flags: as well.
            body: as well.
            group: the multicast group of the announcement.
            made: is given each announcement's type and body, and says whether that was it.

        Raises:
            Refusal: the kernel's answer is an error.
            IoFailure: neither came.
        """
        self._sequence += 1
        sequence = self._sequence
        asked = message.message(kind, flags | message.F_REQUEST | message.F_ACK, sequence, body=body)
        _count(1)
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._socket.settimeout(_LOOK_S)
        # A descriptor of its own: this one may be closed, and its number be another socket's, while that one sends.
        own = self._socket.dup()
        sending = _senders.submit(_send, own, asked)
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while not self._heard(sequence, made):
                if sending.done():
                    sending.result()
                if time.monotonic() > deadline:
                    raise IoFailure(f"the kernel did not answer within {_TIMEOUT_S:g} s")
        except OSError as error:
            raise IoFailure("a request could not be sent to the kernel", str(error)) from error
        finally:
            if sending.cancel():
                own.close()
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def _heard(self, sequence: int, made: Callable[[int, memoryview], bool]) -> bool:
        """Take one datagram, if one comes; whether it has the answer, or the announcement."""
        try:
            datagram = self._socket.recv(1 << 17)
        except TimeoutError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return False  # announcements were lost: the answer comes
        for kind, flags, answers, body in message.messages(memoryview(datagram)):
            if kind == _ERROR:
                if answers == sequence:
                    _raise_refusal(kind, flags, body)
                    return True
            elif made(kind, body):
                return True
        return False

    def pipeline(self, requests: Sequence[Request]) -> None:
        """Ask for several changes in one datagram and wait until all are made.

        The kernel goes on behind one that it refuses, so after an error any of the others may have been made.

        Raises:
            KernelRefused: it refused one; the first.
            IoFailure: no answer.
        """
        flags = message.F_REQUEST | message.F_ACK
        for begin in range(0, len(requests), _TOGETHER):
            part = requests[begin : begin + _TOGETHER]
            first = self._sequence + 1
            self._sequence += len(part)
            parts = [
                message.padded(one.kind, one.flags | flags, first + at, body=one.body) for at, one in enumerate(part)
            ]
            _count(len(parts))
            self._socket.sendto(b"".join(parts), (0, 0))
            failure: KernelRefused | None = None
            for at, one in enumerate(part):
                try:
                    for _ in self._replies(first + at):
                        pass
                except Refusal as refusal:
                    if refusal.number not in one.fine and failure is None:
                        failure = refusal.explain(one.doing)
            if failure is not None:
                raise failure

    def transaction(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Send (type, flags, body) messages as one, the last but one of which stands for all of them.

        Raises:
            Refusal: the kernel refused one of them, and has done nothing.
            IoFailure: no answer.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        last = len(messages) - 2
        parts = [
            message.padded(
                kind, flags | message.F_REQUEST | (message.F_ACK if at == last else 0), first + at, body=body
            )
            for at, (kind, flags, body) in enumerate(messages)
        ]
        _count(len(parts))
        self._socket.sendto(b"".join(parts), (0, 0))
        for _ in self._replies(first + last, first=first):
            pass

    def query(self, kind: int, body: bytes, *, flags: int = 0) -> bytes:
        """Ask for one object; the body of the answer. Some kinds of objects are only told with `message.F_ECHO`.

        Raises:
            Refusal: the kernel's answer is an error, ENODEV for a link that is not there.
            IoFailure: no answer.
        """
        sequence = self._send(kind, flags | message.F_REQUEST | message.F_ACK, body)
        found = [bytes(reply) for reply in self._replies(sequence)]
        if not found:
            raise IoFailure("the kernel answered a query with nothing", f"rtnetlink message type {kind}")
        return found[0]

    def dump[T](self, kind: int, body: bytes, decode: Callable[[memoryview], T]) -> list[T]:
        """Ask for all objects that match `body`, each as `decode` reads it from an answer's body.

        Raises:
            Refusal: the kernel's answer is an error.
            IoFailure: no answer, or the objects kept changing while they were read.
        """
        for _ in range(_ATTEMPTS):
            sequence = self._send(kind, message.F_REQUEST | message.F_DUMP, body)
            try:
                return [decode(reply) for reply in self._replies(sequence)]
            except InterruptedError:
                continue
        raise IoFailure(f"the kernel's list changed {_ATTEMPTS} times while it was read", f"message type {kind}")

    def search[T](self, kind: int, body: bytes, needles: Sequence[bytes], decode: Callable[[memoryview], T]) -> list[T]:
        """A dump of which only those datagrams are decoded that have one of the needles in them: look again.

        For long lists of which hardly anything is asked for: this way a thousand objects cost half a millisecond.

        Raises:
            Refusal: the kernel's answer is an error.
            IoFailure: no answer, or the objects kept changing while they were read.
        """
        for _ in range(_ATTEMPTS):
            sequence = self._send(kind, message.F_REQUEST | message.F_DUMP, body)
            ends = [struct.pack("=HHI", _DONE, flags | _F_ACK_TLVS, sequence) for flags in (0x02, 0x12)]

            def dull(datagram: bytes, marks: Sequence[bytes] = (*needles, *ends)) -> bool:
                # The answer's end is a message of 20 bytes, or has the kernel's words behind it.
                begin, end = _TYPE.unpack_from(datagram, 4)[0], _TYPE.unpack_from(datagram, len(datagram) - 16)[0]
                return _DONE not in {begin, end} and begin != _ERROR and not any(one in datagram for one in marks)

            try:
                return [decode(reply) for reply in self._replies(sequence, dull=dull)]
            except InterruptedError:
                continue
        raise IoFailure(f"the kernel's list changed {_ATTEMPTS} times while it was read", f"message type {kind}")

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence += 1
        _count(1)
        self._socket.sendto(message.message(kind, flags, self._sequence, body=body), (0, 0))
        return self._sequence

    def _replies(
        self, sequence: int, *, first: int = 0, dull: Callable[[bytes], bool] = lambda _: False
    ) -> Iterator[memoryview]:
        """The objects in the answer to a request; with `first`, errors of that one and all after it count as well.

        A datagram that is `dull` is passed over.
        """
        first = first or sequence
        interrupted = False
        while True:
            try:
                datagram = self._socket.recv(1 << 17)
            except TimeoutError:
                raise IoFailure(f"the kernel did not answer within {_TIMEOUT_S:g} s") from None
            if dull(datagram):
                continue
            for kind, flags, answers, body in message.messages(memoryview(datagram)):
                if not first <= answers <= sequence:
                    continue
                interrupted |= bool(flags & 0x10)
                if kind in (_ERROR, _DONE):
                    _raise_refusal(kind, flags, body)
                    if answers != sequence:
                        continue
                    if interrupted:
                        raise InterruptedError
                    return
                yield body


def _send(own: socket.socket, asked: bytes) -> None:
    with own:
        own.sendto(asked, (0, 0))


class RouteSocket(NetlinkSocket):
    """Links, addresses, routes, rules and neighbours."""

    def __init__(self) -> None:
        """It lives in the namespace that the calling thread is in now."""
        super().__init__(socket.NETLINK_ROUTE)


@contextmanager
def route_socket(netns: Netns | None = None) -> Iterator[RouteSocket]:
    """A socket in `netns`, or in the namespace of this process.

    Raises:
        InvalidNetns: the namespace cannot be entered.
    """
    if netns is None:
        opened = RouteSocket()
    else:
        with netns.entered():
            opened = RouteSocket()
    with opened:
        yield opened


def _raise_refusal(kind: int, flags: int, body: memoryview) -> None:
    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if number <= 0:
        return
    words = ""
    if flags & _F_ACK_TLVS:
        # The request's header is repeated, and all of it unless the answer is capped; a dump's end repeats nothing.
        skip = 4
        if kind == _ERROR:
            length = struct.unpack_from("=I", body, 4)[0]
            skip += 16 if flags & _F_CAPPED else length + (-length % 4)
        words = message.read_text(message.attributes(body[skip:]).get(_EXT_ACK_WORDS))
    raise Refusal(number, words or os.strerror(number))
