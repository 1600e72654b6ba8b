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

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"

_LONGEST_NAME: Final = 253

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


class Asked[T](Struct, frozen=True):
    """A request that has been read.

    Attributes:
        kind: of the path that it came to.
        request: the request.
        document: the object as it came, with all that our Structs do not know.
        review: what is asked; None where the object has not the kind's shape.
        misshapen: where it has not.
    """

    kind: Kind[T]
    request: AdmissionRequest
    document: Any = None
    review: Review[T] | None = None
    misshapen: FieldError | None = None

    @property
    def name(self) -> str:
        """The object's; the beginning of it where the API server is to make one."""
        meta = self.document.get("metadata") if isinstance(self.document, dict) else None
        prefix = meta.get("generateName") if isinstance(meta, dict) else None
        name = self.request.name or (f"{prefix}*" if isinstance(prefix, str) and prefix else "")
        # Nobody has looked at a new object's name yet: it may be anything.
        return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])

    @property
    def path(self) -> str:
        """``namespace/name`` of the object."""
        return f"{self.request.namespace}/{self.name}" if self.request.namespace else self.name


class Outcome(Struct, frozen=True):
    """What came of a request.

    Attributes:
        body: of the HTTP answer.
        word: admitted, completed, refused, malformed for what has not the kind's shape, or unanswered.
        kind, name, operation: what it was about, for log and trace.
        errors: why it was refused.
        problem: why it was not answered.
    """

    body: bytes
    word: str
    kind: str
    name: str
    operation: str
    errors: tuple[FieldError, ...] = ()
    problem: str = ""


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
    asked = read(kind, body)
    if asked.review is None:
        return malformed(asked, way)
    if way == MUTATE:
        return completed(asked, book.complete(kind, asked.review))
    return completed(asked, asked.review.new, book.judge(kind, asked.review))


def read[T](kind: Kind[T], body: bytes) -> Asked[T]:
    """A request that came to the path of a kind. Raises `NoReview`, and nothing else."""
    request = _request(kind, body)
    subject = request.old_object if request.operation == "DELETE" else request.object
    document = None
    try:
        document = msgspec.json.decode(subject)
        new = msgspec.json.decode(subject, type=kind.type)
        old = msgspec.json.decode(request.old_object, type=kind.type) if request.operation == "UPDATE" else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Asked(kind, request, document, misshapen=_misshapen(error))
    return Asked(kind, request, document, Review(request.operation, new, old))


def malformed(asked: Asked[Any], way: str) -> Outcome:
    """The answer where the object has not the kind's shape."""
    errors = (asked.misshapen,) if way == VALIDATE and asked.misshapen is not None else ()
    return _outcome(asked, "malformed", Judgement(errors), [])


def completed[T](asked: Asked[T], after: T, judgement: Judgement = Judgement()) -> Outcome:  # noqa: B008 - frozen
    """The answer that makes `after` of the object, or refuses it."""
    if judgement.errors:
        return _outcome(asked, "refused", judgement, [])
    before = asked.review.new if asked.review is not None else after
    steps = [] if after is before else patch(asked.document, msgspec.to_builtins(before), msgspec.to_builtins(after))
    return _outcome(asked, "completed" if steps else "admitted", judgement, steps)


def unanswered(asked: Asked[Any], reason: str) -> Outcome:
    """The answer where it cannot be told now: the object is not taken, and may be later."""
    status = {
        "status": "Failure",
        "message": f'{asked.kind.qualified} "{asked.name}" cannot be judged now: {reason}',
        "reason": "ServiceUnavailable",
        "code": int(HTTPStatus.SERVICE_UNAVAILABLE),
    }
    body = _envelope({"uid": asked.request.uid, "allowed": False, "status": status})
    return Outcome(body, "unanswered", asked.kind.kind, asked.path, asked.request.operation, problem=reason)


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


def _outcome(asked: Asked[Any], word: str, judgement: Judgement, steps: list[dict[str, Any]]) -> Outcome:
    errors = judgement.errors
    response: dict[str, Any] = {"uid": asked.request.uid, "allowed": not errors}
    if errors:
        response["status"] = _status(asked.kind, asked.name, errors)
    if judgement.warnings:
        response["warnings"] = judgement.warnings
    if steps:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(msgspec.json.encode(steps)).decode()}
    return Outcome(_envelope(response), word, asked.kind.kind, asked.path, asked.request.operation, errors)


def _envelope(response: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def _status(kind: Kind[Any], name: str, errors: tuple[FieldError, ...]) -> dict[str, Any]:
    """As the API server itself answers what its own validation refuses."""
    causes = [Cause(f"FieldValue{one.kind}", str(one).removeprefix(f"{one.field}: "), one.field) for one in errors]
    return {
        "status": "Failure",
        "message": summary(kind.qualified, name, errors),
        "reason": "Invalid",
        "code": int(HTTPStatus.UNPROCESSABLE_ENTITY),
        "details": {"name": name, "group": kind.group, "kind": kind.kind, "causes": causes},
    }
