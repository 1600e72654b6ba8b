"""Which error an answer of the API server becomes, with answers as it really gives them."""

import msgspec
import pytest

from runtime.store.port import (
    AlreadyExists,
    Ambiguous,
    Busy,
    Conflict,
    Denied,
    Expired,
    Invalid,
    NotFound,
    StoreError,
    Unavailable,
)
from runtime.store.status import error_of

RBAC = 'spiderippools.x "p" is forbidden: User "system:serviceaccount:a:b" cannot patch resource "spiderippools"'


def status(code: int, reason: str = "", message: str = "", **details: object) -> bytes:
    document = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return msgspec.json.encode({**document, **({"details": details} if details else {})})


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (404, status(404, "NotFound"), NotFound),
        (404, b"404 page not found\n", NotFound),
        (409, status(409, "AlreadyExists"), AlreadyExists),
        (409, status(409, "Conflict", "the object has been modified"), Conflict),
        (410, status(410, "Expired"), Expired),
        (401, status(401, "Unauthorized"), Denied),
        (403, status(403, "Forbidden", RBAC), Denied),
        (403, b"<html>go away</html>", Denied),
        (403, status(403, "Forbidden", 'admission webhook "v.x" denied the request: overlap'), Invalid),
        (400, status(400, "BadRequest"), Invalid),
        (413, b"", Invalid),
        (415, status(415, "UnsupportedMediaType"), Invalid),
        (422, status(422, "Invalid", causes=[{"field": "spec.ips", "reason": "x"}]), Invalid),
        (429, status(429, "TooManyRequests"), Busy),
        (500, status(500, "InternalError", "etcdserver: request is too large"), Invalid),
        (500, status(500, "InternalError", 'failed calling webhook "v.x": connection refused'), Unavailable),
    ],
)
@pytest.mark.parametrize("is_write", [False, True])
def test_the_api_servers_own_answers_say_that_nothing_was_written(
    code: int, body: bytes, expected: type[StoreError], is_write: bool
) -> None:
    error = error_of(code, body, what="patch spiderippools p", is_write=is_write)
    assert type(error) is expected
    assert str(error).startswith("patch spiderippools p: ")
    assert str(code) in str(error)


@pytest.mark.parametrize(("code", "body"), [(500, status(500, "InternalError", "etcdserver: request timed out")),
                                            (502, b"<html>Bad Gateway</html>"), (503, b""),
                                            (504, status(504, "Timeout")), (307, b"")])  # fmt: skip
def test_an_answer_from_behind_or_before_the_api_server_says_nothing_about_a_write(code: int, body: bytes) -> None:
    assert type(error_of(code, body, what="patch", is_write=True)) is Ambiguous
    assert type(error_of(code, body, what="get", is_write=False)) is Unavailable


@pytest.mark.parametrize(
    ("code", "header", "body", "seconds"),
    [
        (429, "7", b"", 7.0),
        (503, "2", status(503, "ServiceUnavailable"), 2.0),
        (429, "", status(429, "TooManyRequests", retryAfterSeconds=3), 3.0),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", b"", 1.0),
        (429, "", b"", 1.0),
    ],
)
def test_busy_says_when_to_come_back(code: int, header: str, body: bytes, seconds: float) -> None:
    error = error_of(code, body, what="list", is_write=True, retry_after=header)
    assert isinstance(error, Busy)
    assert error.retry_after == seconds


def test_a_uid_that_is_not_the_objects_is_a_conflict_only_where_one_was_demanded() -> None:
    body = status(422, "Invalid", "metadata.uid: Invalid value", causes=[{"field": "metadata.uid", "message": "x"}])
    assert type(error_of(422, body, what="patch", is_write=True, demanded_uid=True)) is Conflict
    assert type(error_of(422, body, what="patch", is_write=True)) is Invalid


def test_a_long_message_is_cut() -> None:
    assert len(str(error_of(500, b"x" * 100_000, what="get"))) < 1200
