"""The frames between an agent and a controller, and the decoder that takes them out of a stream of bytes.

A frame is a 4-byte big-endian length and that many bytes of msgpack: an array whose first element is the frame's number
and whose others are its fields in order. A later version may add fields at the end: an older reader skips them.

Nothing here does I/O. A connection begins with `Hello` from the client and `Welcome` or `RefusedFrame` from the server;
after that requests and replies pass in any order, and either side may send `Ping`, which is answered by `Pong`.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from runtime.transport.port import TransportError

PROTOCOL = 1
"""The version that this code speaks. It goes up only when an older peer could misunderstand."""

MAX_FRAME = 16 * 2**20
"""Bytes of msgpack in one frame. A pool's status is 1.2 MB at most; whatever is larger than this is not ours."""

MAX_HELLO = 64 * 2**10
"""The same bound before the peer has proved who it is: a token is about 1.5 KB."""

_HEADER = 4


class FrameError(TransportError):
    """The bytes are not a frame of ours. The connection is of no more use."""


class FrameTooLarge(FrameError):
    """A frame is larger than both sides accept. On the sending side nothing was sent."""

    def __init__(self, size: int, limit: int) -> None:
        """`size` and `limit` are bytes of msgpack."""
        super().__init__(f"a frame of {size} bytes is larger than the limit of {limit} bytes")
        self.size = size
        self.limit = limit


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First frame of a client."""

    protocol: int
    token: str
    """Kubernetes service account token with the server's audience."""


class Welcome(Struct, frozen=True, array_like=True, tag=2):
    """The server accepts the client's identity."""

    server: str
    """Name of the server, for logs: in a cluster the pod's."""


class RefusedFrame(Struct, frozen=True, array_like=True, tag=3):
    """The server does not accept the client's identity, and closes the connection."""

    reason: str


class Request(Struct, frozen=True, array_like=True, tag=4):
    """One call. Ids are the client's, and unique for the life of the connection."""

    id: int
    remaining_ms: int
    """Until the caller gives up: a duration, for the clocks of two machines differ."""
    traceparent: str
    payload: bytes


class ReplyFrame(Struct, frozen=True, array_like=True, tag=5):
    """The handler's answer."""

    id: int
    payload: bytes


class InterimFrame(Struct, frozen=True, array_like=True, tag=11):
    """What the handler says ahead of its answer, to clients whose request asks for that."""

    id: int
    payload: bytes


class Failure(Struct, frozen=True, array_like=True, tag=6):
    """A request without an answer; with id 0 the whole connection, before `Welcome`."""

    id: int
    kind: Literal["overloaded", "deadline", "internal"]
    """`overloaded`: not begun; `deadline`: stopped when its time was up; `internal`: the handler raised."""
    text: str


class Cancel(Struct, frozen=True, array_like=True, tag=7):
    """Nobody waits for the reply any more. It is not answered."""

    id: int


class Ping(Struct, frozen=True, array_like=True, tag=8):
    """Are you there?"""


class Pong(Struct, frozen=True, array_like=True, tag=9):
    """Yes."""


class Token(Struct, frozen=True, array_like=True, tag=10):
    """The client's credential was renewed; the server looks at the newest when it next asks who the client is."""

    token: str


Frame = Hello | Welcome | RefusedFrame | Request | ReplyFrame | InterimFrame | Failure | Cancel | Ping | Pong | Token

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
_NAMES = ", ".join(kind.__name__ for kind in get_args(Frame))


def encode(frame: Frame) -> bytearray:
    """The bytes of one frame, header included. Raises `FrameTooLarge`."""
    buffer = bytearray(64)
    _encoder.encode_into(frame, buffer, _HEADER)
    size = len(buffer) - _HEADER
    if size > MAX_FRAME:
        raise FrameTooLarge(size, MAX_FRAME)
    buffer[:_HEADER] = size.to_bytes(_HEADER, "big")
    return buffer


class Decoder:
    """Takes frames out of bytes that arrive in pieces of any size.

    `feed` what was read, then take all of `frames()`. After a `FrameError` the position in the stream is lost: every
    further call raises it again.
    """

    def __init__(self, *, limit: int = MAX_FRAME) -> None:
        """`limit` is the largest frame to accept, in bytes of msgpack; it may be changed between frames."""
        self.limit = limit
        self._buffer = bytearray()
        self._broken: FrameError | None = None

    def __repr__(self) -> str:
        state = "broken" if self._broken else f"{len(self._buffer)} bytes"
        return f"<Decoder {state}>"

    @property
    def buffered(self) -> int:
        """Bytes of a frame that has not wholly arrived. More than 0 at the end of the stream: it was cut."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """Every whole frame, in order.

        Raises:
            FrameTooLarge: The header announces more than `limit` bytes, which are then not waited for.
            FrameError: The bytes of a frame are not one of ours.
        """
        buffer = self._buffer
        start = 0
        try:
            while len(buffer) - start >= _HEADER:
                size = int.from_bytes(buffer[start : start + _HEADER], "big")
                frame = self._decode(buffer, start + _HEADER, size)
                if frame is None:
                    return
                start += _HEADER + size
                yield frame
        finally:
            del buffer[:start]

    def _decode(self, buffer: bytearray, start: int, size: int) -> Frame | None:
        """The frame in `size` bytes from `start`; None when they have not all arrived."""
        if self._broken is not None:
            raise self._broken
        if size > self.limit:
            self._broken = FrameTooLarge(size, self.limit)
            raise self._broken
        if len(buffer) - start < size:
            return None
        with memoryview(buffer) as view, view[start : start + size] as part:
            try:
                return _decoder.decode(part)
            except msgspec.DecodeError as error:
                self._broken = FrameError(f"{size} bytes are none of the frames {_NAMES}: {error}")
                raise self._broken from error
