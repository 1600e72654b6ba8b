"""From what the API server answers to the store port's errors. Pure: it decides, the caller raises.

What matters is whether a write can have happened. An answer that the API server itself gives before it touches etcd
says no; a 5xx may come from a proxy or from an etcd that timed out after it had committed, and says nothing.
"""

import msgspec
from msgspec import Struct

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

_MAX_TEXT = 1000


class Cause(Struct, rename="camel", frozen=True):
    """One entry of `details.causes`."""

    reason: str = ""
    message: str = ""
    field: str = ""


class Details(Struct, rename="camel", frozen=True):
    """The `details` of a Status."""

    name: str = ""
    causes: list[Cause] | None = None
    retry_after_seconds: int = 0


class Status(Struct, rename="camel", frozen=True):
    """A `Status` object of the API server, the fields that decide something."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    details: Details | None = None
    code: int = 0


def parse_status(body: bytes) -> Status:
    """Decode a Status; whatever else came (a proxy's HTML) becomes the message of an empty one."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        status = Status(message=body.decode(errors="replace"))
    return status if status.kind == "Status" else Status(message=body.decode(errors="replace"))


def error_of(
    code: int, body: bytes, *, what: str, is_write: bool = False, retry_after: str = "", demanded_uid: bool = False
) -> StoreError:
    """Choose the error for an answer.

    Args:
        code: the HTTP status, or `Status.code` of an ERROR event, 300 or more.
        body: as received.
        what: the request, for the text.
        is_write: whether it could have changed something.
        retry_after: the header of that name, in seconds.
        demanded_uid: whether the write had a uid as its precondition.
    """
    status = parse_status(body)
    text = f"{what}: {status.message[:_MAX_TEXT] or 'no message'} ({code}{' ' if status.reason else ''}{status.reason})"
    match code:
        case 404:
            return NotFound(text)
        case 409:
            return AlreadyExists(text) if status.reason == "AlreadyExists" else Conflict(text)
        case 410:
            return Expired(text)
        case 422 if demanded_uid and _names_uid(status):
            return Conflict(text)
        case 401:
            return Denied(text)
        case 403:
            return Invalid(text) if _is_admission(status) else Denied(text)
        case 400 | 405 | 406 | 413 | 415 | 422:
            return Invalid(text)
        case 429:
            return Busy(text, retry_after=_seconds(retry_after, status))
        case 503 if retry_after:
            return Busy(text, retry_after=_seconds(retry_after, status))
        case 500 if "request is too large" in status.message:  # etcd's limit, where the API server's own is higher
            return Invalid(text)
        case 500 if "failed calling webhook" in status.message:
            return Unavailable(text)
        case _:
            return Ambiguous(text) if is_write else Unavailable(text)


def _names_uid(status: Status) -> bool:
    """Tell whether an update is refused for its uid: to the server that is an immutable field, not a conflict."""
    causes = status.details.causes if status.details else None
    return any(cause.field == "metadata.uid" for cause in causes or ())


def _is_admission(status: Status) -> bool:
    """Tell a refusal of the object (webhook, quota, dying namespace) from one of the user: both are 403."""
    return status.kind == "Status" and not ('User "' in status.message and '" cannot ' in status.message)


def _seconds(retry_after: str, status: Status) -> float:
    """Read how long to wait, in seconds; the header may hold a date, then it is one second."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    return float(status.details.retry_after_seconds or 1) if status.details else 1.0
