"""Frames: whatever pieces they come in they come out whole, and whatever is not a frame is told apart."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.transport.frames import (
    MAX_FRAME,
    Cancel,
    Decoder,
    Failure,
    Frame,
    FrameError,
    FrameTooLarge,
    Hello,
    Ping,
    Pong,
    RefusedFrame,
    ReplyFrame,
    Request,
    Token,
    Welcome,
    encode,
)

ids = st.integers(0, 2**63 - 1)
texts = st.text(max_size=80)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, st.integers(0, 9), texts),
    st.builds(Welcome, texts),
    st.builds(RefusedFrame, texts),
    st.builds(Request, ids, st.integers(0, 2**31 - 1), texts, st.binary(max_size=300)),
    st.builds(ReplyFrame, ids, st.binary(max_size=300)),
    st.builds(Failure, ids, st.sampled_from(["overloaded", "deadline", "internal"]), texts),
    st.builds(Cancel, ids),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(Token, texts),
)


def drain(decoder: Decoder, *pieces: bytes) -> list[Frame]:
    found: list[Frame] = []
    for piece in pieces:
        decoder.feed(piece)
        found += decoder.frames()
    return found


@given(st.lists(frames, max_size=8), st.data())
def test_frames_survive_any_split(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    decoder = Decoder()
    assert drain(decoder, *(stream[a:b] for a, b in itertools.pairwise(edges))) == sent
    assert decoder.buffered == 0


@given(st.lists(frames, min_size=1, max_size=3))
def test_frames_survive_byte_by_byte(sent: list[Frame]) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    assert drain(Decoder(), *(stream[i : i + 1] for i in range(len(stream)))) == sent


@given(frames, st.data())
def test_an_unfinished_frame_shows(frame: Frame, data: st.DataObject) -> None:
    stream = encode(frame)
    decoder = Decoder()
    assert drain(decoder, bytes(stream[: data.draw(st.integers(1, len(stream) - 1))])) == []
    assert decoder.buffered > 0


@given(st.binary(max_size=400))
def test_rubbish_is_frames_or_an_error_and_nothing_else(rubbish: bytes) -> None:
    decoder = Decoder(limit=300)
    try:
        drain(decoder, rubbish)
    except FrameError as error:
        with pytest.raises(type(error)):
            drain(decoder, bytes(encode(Ping())))


def test_frames_before_the_rubbish_are_delivered() -> None:
    decoder = Decoder()
    decoder.feed(bytes(encode(Cancel(7))) + b"\x00\x00\x00\x01\xc1")
    found = decoder.frames()
    assert next(found) == Cancel(7)
    with pytest.raises(FrameError, match="1 bytes are none of the frames Hello, Welcome"):
        next(found)


def test_a_header_that_promises_too_much_is_refused_before_its_bytes_come() -> None:
    decoder = Decoder(limit=1000)
    decoder.feed((1001).to_bytes(4, "big"))
    with pytest.raises(FrameTooLarge, match="1001 bytes is larger than the limit of 1000 bytes"):
        list(decoder.frames())


def test_an_http_client_on_our_port_is_told_apart_at_once() -> None:
    decoder = Decoder()
    decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(FrameTooLarge):
        list(decoder.frames())


def test_what_is_too_large_is_not_encoded() -> None:
    assert len(encode(ReplyFrame(1, bytes(MAX_FRAME - 100)))) > MAX_FRAME - 100
    with pytest.raises(FrameTooLarge):
        encode(ReplyFrame(1, bytes(MAX_FRAME)))


def test_a_later_version_may_add_fields() -> None:
    body = msgspec.msgpack.encode([2, "controller-0", "something new"])
    assert drain(Decoder(), len(body).to_bytes(4, "big") + body) == [Welcome("controller-0")]


def test_the_bytes_of_the_protocol_stay_what_they_are() -> None:
    assert encode(Request(1, 250, "", b"x")).hex() == "00000009" + "9504" + "01" + "ccfa" + "a0" + "c40178"
    assert encode(Ping()).hex() == "000000029108"
