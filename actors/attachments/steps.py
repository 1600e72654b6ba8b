"""What is to be done about one definition, from what is wanted and what was found. Pure.

A definition that another SpiderMultusConfig owns is never taken, nor one that anything else manages. One that nobody
owns is adopted, with whatever labels it has.
"""

from typing import Any

import msgspec
from msgspec import Struct

from api.attachments import CLIENTS_NOTES
from api.kinds import MULTUSCONFIG
from api.meta import ObjectMeta, OwnerReference
from api.networkattachment import NetworkAttachmentDefinition


class Create(Struct, frozen=True):
    """There is none."""

    item: NetworkAttachmentDefinition


class Rewrite(Struct, frozen=True):
    """It is there and different."""

    change: dict[str, Any]
    """A JSON merge patch."""
    resource_version: str


class Leave(Struct, frozen=True):
    """It is as it should be."""


class Wait(Struct, frozen=True):
    """It is being deleted."""


class Taken(Struct, frozen=True):
    """It is somebody else's."""

    owner: OwnerReference

    def __str__(self) -> str:
        return f"{self.owner.kind} {self.owner.name}"


type Step = Create | Rewrite | Leave | Wait | Taken


def is_multusconfig(owner: OwnerReference) -> bool:
    """Whether it is of our kind, in whichever version."""
    return owner.kind == MULTUSCONFIG.kind and owner.api_version.partition("/")[0] == MULTUSCONFIG.group


def step(
    wanted: NetworkAttachmentDefinition, found: NetworkAttachmentDefinition | None, *, orphaned: bool = False
) -> Step:
    """What is to be done.

    Args:
        wanted: as `api.attachments.attachment` makes it.
        found: what has its name.
        orphaned: the SpiderMultusConfig that manages `found` is no more.
    """
    if found is None:
        return Create(wanted)
    if found.metadata.deletion_timestamp is not None:
        return Wait()
    (ours,) = wanted.metadata.owner_references
    owner = found.metadata.controller
    if owner is not None and owner.uid != ours.uid and not (orphaned and is_multusconfig(owner)):
        return Taken(owner)
    change: dict[str, Any] = {}
    if metadata := _metadata(wanted.metadata, found.metadata, ours):
        change["metadata"] = metadata
    if found.spec.config != wanted.spec.config:
        change["spec"] = {"config": wanted.spec.config or None}
    return Rewrite(change, found.metadata.resource_version) if change else Leave()


def _metadata(wanted: ObjectMeta, found: ObjectMeta, ours: OwnerReference) -> dict[str, Any]:
    change: dict[str, Any] = {}
    notes: dict[str, str | None] = {
        key: None for key in found.annotations if key not in wanted.annotations and not key.startswith(CLIENTS_NOTES)
    }
    notes |= {key: value for key, value in wanted.annotations.items() if found.annotations.get(key) != value}
    if notes:
        change["annotations"] = notes
    if ours not in found.owner_references:
        others = [one for one in found.owner_references if one.uid != ours.uid and not one.controller]
        change["ownerReferences"] = msgspec.to_builtins([*others, ours])
    return change
