"""The JSON patch (RFC 6902) that makes one object of another, and touches nothing that our Structs do not know.

Structs leave out what has its default, and drop fields that are not theirs. So the difference is taken between the
object as it was decoded and as it has been completed, and each step is written for the document as it really is.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def patch(document: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps.

    Args:
        document: the object as it came.
        before: what its Struct made of it, as plain values.
        after: what it is to be, as plain values.
    """
    return list(_steps(document, before, after, ""))


def _steps(
    document: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], at: str
) -> Iterator[dict[str, Any]]:
    for key in before.keys() - after.keys():
        if key in document:
            yield {"op": "remove", "path": f"{at}/{_escaped(key)}"}
    for key, value in after.items():
        was, there, path = before.get(key), document.get(key), f"{at}/{_escaped(key)}"
        if key in before and was == value:
            continue
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            yield from _steps(there, was if isinstance(was, Mapping) else {}, value, path)
        elif (items := _paired(there, was, value)) is not None:
            for number, (there_item, was_item, item) in enumerate(items):
                yield from _steps(there_item, was_item, item, f"{path}/{number}")
        else:
            yield {"op": "add", "path": path, "value": value}


def _paired(*lists: Any) -> list[tuple[Mapping[str, Any], ...]] | None:
    """The objects of lists that have as many of them, side by side; None of anything else: that is written whole."""
    if not all(isinstance(one, list) and all(isinstance(item, Mapping) for item in one) for one in lists):
        return None
    return list(zip(*lists, strict=True)) if len({len(one) for one in lists}) == 1 else None


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
