"""What all Kubernetes objects share: metadata, references to owners, and label selectors."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct, structs

GROUP = "spiderpool.spidernet.io"
VERSION = "v2beta1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = "spiderpool.spidernet.io"
"""Put on IPPools, Subnets and Endpoints, so that none goes while addresses depend on it."""


class OwnerReference(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The object that owns this one; in the same namespace, or cluster-wide."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    """Whether the owner manages this object; at most one owner does."""
    block_owner_deletion: bool | None = None


class ObjectMeta(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The metadata that we read. Timestamps are RFC 3339 text as the server wrote it."""

    name: str = ""
    namespace: str = ""
    """Empty for objects of the whole cluster."""
    uid: str = ""
    resource_version: str = ""
    """Opaque; the fence of every write that must not be based on an old read."""
    generation: int = 0
    """Counts changes of the spec."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[OwnerReference] = []
    deletion_timestamp: str | None = None
    """When the object has to be gone; set means it is being deleted."""
    deletion_grace_period_seconds: int | None = None
    creation_timestamp: str | None = None

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that manages this object."""
        return next((owner for owner in self.owner_references if owner.controller), None)


MESSAGE_LENGTH: Final = 32768
"""Characters that a condition's message has at most."""
_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_CAMEL = r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"

# What the API server asks of a condition, as of those of its own kinds. What is stored is read whatever it says.
type _Type = Annotated[str, Meta(extra_json_schema={"maxLength": 316, "pattern": rf"^({_DOMAIN}/)?({_NAME})$"})]
type _Status = Annotated[str, Meta(extra_json_schema={"enum": ["True", "False", "Unknown"]})]
type _Reason = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": 1024, "pattern": rf"^{_CAMEL}$"})]
type _Message = Annotated[str, Meta(extra_json_schema={"maxLength": MESSAGE_LENGTH})]
type _Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
type _Generation = Annotated[int, Meta(extra_json_schema={"format": "int64", "minimum": 0})]


class Condition(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Something that is or is not so about an object, in the form that kubectl and controllers know."""

    type: _Type
    """What it is about; one condition of each type."""
    status: _Status
    """True, False or Unknown."""
    reason: _Reason
    """Why, in one word."""
    message: _Message
    """Why, for people."""
    last_transition_time: _Time
    """When the status became what it is, in UTC."""
    observed_generation: _Generation | None = None
    """The metadata.generation that was looked at; kubectl wait waits for the newest."""


def with_condition(conditions: Sequence[Condition], mine: Condition) -> list[Condition]:
    """The conditions with this one in its place; it keeps the time since when its status is what it is."""
    found = list(conditions)
    at = next((at for at, one in enumerate(found) if one.type == mine.type), len(found))
    if at < len(found) and found[at].status == mine.status:
        mine = structs.replace(mine, last_transition_time=found[at].last_transition_time)
    return [*found[:at], mine, *found[at + 1 :]]


class SelectorError(ValueError):
    """A label selector that Kubernetes would refuse."""


class LabelSelectorRequirement(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A condition on one label."""

    key: str
    """The label that is looked at."""
    operator: str
    """What must hold of the label: In, NotIn, Exists or DoesNotExist."""
    values: list[str] = []
    """The values for In and NotIn; empty for Exists and DoesNotExist."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether the labels fulfil this requirement. A label that is absent is "not in" anything.

        Raises `SelectorError` for an unknown operator, and for values that are missing or too many.
        """
        match self.operator:
            case "In" | "NotIn":
                if not self.values:
                    msg = f"matchExpressions key {self.key!r}: operator {self.operator} needs at least one value"
                    raise SelectorError(msg)
                return (self.key in labels and labels[self.key] in self.values) == (self.operator == "In")
            case "Exists" | "DoesNotExist":
                if self.values:
                    msg = f"matchExpressions key {self.key!r}: operator {self.operator} takes no values"
                    raise SelectorError(msg)
                return (self.key in labels) == (self.operator == "Exists")
            case _:
                msg = (
                    f"matchExpressions key {self.key!r}: unknown operator {self.operator!r}, "
                    "want In, NotIn, Exists or DoesNotExist"
                )
                raise SelectorError(msg)


class LabelSelector(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A query over labels. All parts must hold; an empty selector matches everything."""

    match_labels: dict[str, str] = {}
    """Labels that must be there with exactly this value."""
    match_expressions: list[LabelSelectorRequirement] = []
    """Further requirements on labels."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether the labels fulfil the selector. Raises `SelectorError`."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(requirement.matches(labels) for requirement in self.match_expressions)

    def __str__(self) -> str:
        parts = [f"{key}={value}" for key, value in sorted(self.match_labels.items())]
        for requirement in self.match_expressions:
            values = f" ({','.join(requirement.values)})" if requirement.values else ""
            parts.append(f"{requirement.key} {requirement.operator}{values}")
        return ", ".join(parts) or "everything"
