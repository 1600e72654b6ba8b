"""What is wrong with an object, field by field, said as the API server itself says it.

`kubectl` users know these texts: ``spec.ips[0]: Invalid value: "10.6.0.9-10.6.0.1": the range ends before it begins``.
All that is wrong is said at once, so that a manifest is mended in one go.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

type Kind = Literal["Required", "Invalid", "NotSupported", "Forbidden", "Duplicate"]
"""Words of `metav1.CauseType`, without their prefix."""

_SAID: dict[Kind, str] = {
    "Required": "Required value",
    "Invalid": "Invalid value",
    "NotSupported": "Unsupported value",
    "Forbidden": "Forbidden",
    "Duplicate": "Duplicate value",
}

_SHOWN = 200
"""Characters of a value that a message has."""


class FieldError(Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        field: path in the object, e.g. `spec.ips[0]`.
        text: the rule, and what it was measured by.
        kind: which sort of mistake it is.
        value: what the field has; not said of what is missing or forbidden.
    """

    field: str
    text: str
    kind: Kind = "Invalid"
    value: object = None

    def __str__(self) -> str:
        said = _SAID[self.kind]
        if self.kind not in {"Required", "Forbidden"}:
            said = f"{said}: {shown(self.value)}"
        return f"{self.field}: {said}: {self.text}" if self.text else f"{self.field}: {said}"


def required(field: str, text: str = "") -> FieldError:
    """A field that has to be there."""
    return FieldError(field, text, kind="Required")


def forbidden(field: str, text: str) -> FieldError:
    """A field that must not be there, or must not change."""
    return FieldError(field, text, kind="Forbidden")


def unsupported(field: str, value: object, known: Sequence[str]) -> FieldError:
    """A value that is none of those that exist."""
    text = "supported values: " + ", ".join(f'"{one}"' for one in known)
    return FieldError(field, text, kind="NotSupported", value=value)


def duplicate(field: str, value: object, text: str = "") -> FieldError:
    """A value that somebody else has, or that is listed twice."""
    return FieldError(field, text, kind="Duplicate", value=value)


def invalid(field: str, value: object, text: str) -> FieldError:
    """Any other value that cannot be."""
    return FieldError(field, text, value=value)


def summary(kind: str, name: str, errors: Iterable[FieldError]) -> str:
    """The sentence that `kubectl` prints: which object, and all that is wrong with it.

    `kind` is `api.kinds.Kind.qualified`.
    """
    said = [str(one) for one in errors]
    return f'{kind} "{name}" is invalid: {said[0] if len(said) == 1 else "[" + ", ".join(said) + "]"}'


def shown(value: object) -> str:
    """A value as a message has it: JSON on one line, not longer than that."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
