"""One request of the API server and its answer: AdmissionReview v1, from bytes to bytes.

Nothing that a client of the API server can write makes this raise. An object that is not of the kind's shape is let
through unchanged where it would be completed: the API server looks at the shape after that, and says what is wrong.
"""

import base64
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, field

from admission.errors import FieldError, invalid, summary
from admission.patch import patch
from admission.review import Judgement, Operation, Review
from admission.rulebook import Rulebook
from api.kinds import Kind
from api.meta import GROUP

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"

MUTATE: Final = "mutate"
VALIDATE: Final = "validate"


class NoReview(ValueError):
    """What came is no AdmissionReview of a kind that is reviewed here. The text says why."""


class GroupVersionKind(Struct, frozen=True):
    """A kind of object."""

    kind: str
    group: str = ""
    version: str = ""


class AdmissionRequest(Struct, frozen=True, rename="camel"):
    """What the API server asks."""

    uid: str
    kind: GroupVersionKind
    operation: Operation
    name: str = ""
    namespace: str = ""
    object: Raw = field(default_factory=lambda: Raw(b"null"))
    old_object: Raw = field(default_factory=lambda: Raw(b"null"))


class AdmissionReview(Struct, frozen=True, rename="camel"):
    """The envelope of a request."""

    api_version: str
    kind: str
    request: AdmissionRequest


class Cause(Struct, frozen=True):
    """One field that is wrong, for programs."""

    reason: str
    message: str
    field: str


class Outcome(Struct, frozen=True):
    """What came of a request.

    Attributes:
        body: of the HTTP answer.
        word: admitted, completed, refused, or malformed for what has not the kind's shape.
        kind, name, operation: what it was about, for log and trace.
        errors: why it was refused.
    """

    body: bytes
    word: str
    kind: str
    name: str
    operation: str
    errors: tuple[FieldError, ...] = ()


_reviews = msgspec.json.Decoder(AdmissionReview)


def answer(book: Rulebook, way: str, kind: Kind[Any], body: bytes) -> Outcome:
    """Answer one request that came to the path of a kind.

    Args:
        book: the rules.
        way: `MUTATE` or `VALIDATE`.
        kind: the path's.
        body: what came.

    Raises:
        NoReview: the only thing that it raises.
    """
    request = _request(kind, body)
    subject = request.old_object if request.operation == "DELETE" else request.object
    name = f"{request.namespace}/{request.name}" if request.namespace else request.name
    try:
        document = msgspec.json.decode(subject)
        new = msgspec.json.decode(subject, type=kind.type)
        old = msgspec.json.decode(request.old_object, type=kind.type) if request.operation == "UPDATE" else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        errors = () if way == MUTATE else (_misshapen(error),)
        said = _said(request, kind, Judgement(errors), [])
        return Outcome(said, "malformed", kind.kind, name, request.operation, errors)
    review = Review(request.operation, new, old)
    if way == MUTATE:
        completed = book.complete(kind, review)
        steps = patch(document, msgspec.to_builtins(new), msgspec.to_builtins(completed))
        said = _said(request, kind, Judgement(), steps)
        return Outcome(said, "completed" if steps else "admitted", kind.kind, name, request.operation)
    judgement = book.judge(kind, review)
    word = "refused" if judgement.errors else "admitted"
    return Outcome(_said(request, kind, judgement, []), word, kind.kind, name, request.operation, judgement.errors)


def _request(kind: Kind[Any], body: bytes) -> AdmissionRequest:
    try:
        review = _reviews.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"not an {KIND}: {error}"
        raise NoReview(message) from None
    if (review.api_version, review.kind) != (API_VERSION, KIND):
        message = f"{review.api_version[:100]} {review.kind[:100]}: expected {API_VERSION} {KIND}"
        raise NoReview(message)
    asked = review.request.kind
    if (asked.group, asked.version, asked.kind) != (kind.group, kind.version, kind.kind):
        message = f"request.kind: {asked.group[:100]}/{asked.version[:100]} {asked.kind[:100]}: expected {kind!r} here"
        raise NoReview(message)
    return review.request


def _misshapen(error: Exception) -> FieldError:
    reason, _, where = str(error).partition(" - at ")
    return invalid(where.strip("`").removeprefix("$").lstrip(".") or "object", None, reason.replace("`", ""))


def _said(request: AdmissionRequest, kind: Kind[Any], judgement: Judgement, steps: list[dict[str, Any]]) -> bytes:
    response: dict[str, Any] = {"uid": request.uid, "allowed": not judgement.errors}
    if judgement.errors:
        response["status"] = _status(kind, request.name, judgement.errors)
    if judgement.warnings:
        response["warnings"] = judgement.warnings
    if steps:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(steps)).decode()}
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def _status(kind: Kind[Any], name: str, errors: tuple[FieldError, ...]) -> dict[str, Any]:
    """As the API server itself answers what its own validation refuses."""
    causes = [Cause(f"FieldValue{one.kind}", str(one).removeprefix(f"{one.field}: "), one.field) for one in errors]
    return {
        "status": "Failure",
        "message": summary(kind.kind, name, errors),
        "reason": "Invalid",
        "code": int(HTTPStatus.UNPROCESSABLE_ENTITY),
        "details": {"name": name, "group": GROUP, "kind": kind.kind, "causes": causes},
    }
