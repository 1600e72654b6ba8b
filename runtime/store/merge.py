"""JSON merge patch (RFC 7396), the only kind of change that the store port offers.

Why this one: it needs no schema, a custom resource accepts it (a strategic merge patch is refused there), and what it
does not name it does not touch, so fields that our Structs do not know survive our writes.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

type Json = Mapping[str, Any] | list[Any] | str | int | float | bool | None
"""A plain JSON value."""


def merge_patch(target: Json, patch: Json) -> Json:
    """Return `target` with `patch` applied; both are plain JSON values.

    Nothing is changed in place: the result shares what did not change. When nothing changes at all the result **is**
    `target`, so callers test for a no-op with `is`.
    """
    if not isinstance(patch, Mapping):
        return target if _same(target, patch) else patch
    merged: dict[str, Any] = dict(target) if isinstance(target, Mapping) else {}
    changed = not isinstance(target, Mapping)
    for name, value in patch.items():
        if value is None:
            if name in merged:
                del merged[name]
                changed = True
            continue
        before = merged.get(name)
        after = merge_patch(before, value)
        if name not in merged or after is not before:
            merged[name] = after
            changed = True
    return merged if changed else target


def _same(one: Json, other: Json) -> bool:
    """Tell whether two JSON values are equal, as JSON sees it: unlike Python it keeps 1, 1.0 and true apart."""
    if isinstance(one, list) or isinstance(other, list):
        return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(other, order="sorted")
    return type(one) is type(other) and bool(one == other)
