"""A CustomResourceDefinition that a cluster has and the one that we bring: what is applied. Pure.

The kinds may be there already: of the original, of an older release of ours, or of a newer one after a downgrade. Then
objects are stored with the fields of that schema, and a field that is dropped from a schema is dropped from the objects
with their next write. So nothing goes:

* a property, a version, a short name or a category that only the cluster has stays as it is;
* a value of an enum that only the cluster knows stays allowed;
* which version is stored stays;
* for the rest (descriptions, defaults, limits, required fields, columns) ours holds.

Where both cannot be had at once, the merge is refused and the cluster is left as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

type Document = dict[str, Any]

_STAY = (
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "nullable",
)
"""What makes a schema take more than without it: it stays when the cluster has it."""


class Refusal(ValueError):
    """Both definitions cannot be had at once. The text names definition, field, what was seen and what was wanted."""

    def __init__(self, name: str, field: str, *, seen: object, wanted: object, advice: str = "") -> None:
        advice = advice and f"; {advice}"
        super().__init__(f"CustomResourceDefinition {name}: {field}: found {seen}, wanted {wanted}{advice}")


class Merged(Struct, frozen=True):
    """What to apply."""

    document: Document
    added: tuple[str, ...] = ()
    """Properties that the cluster's definition lacks, with their version: ``v2beta1 status.withheldIPs``."""
    kept: tuple[str, ...] = ()
    """Properties and versions that only the cluster's definition has."""


def merge(stored: Document | None, ours: Document) -> Merged:
    """What to apply so that the cluster has ours and loses nothing. `stored` is None where the kind is new.

    The document demands the resourceVersion of `stored`. Raises `Refusal`.
    """
    if stored is None:
        return Merged(document=ours)
    name = ours["metadata"]["name"]
    there, spec = stored["spec"], ours["spec"]
    if stored["metadata"].get("deletionTimestamp"):
        raise Refusal(
            name,
            "metadata.deletionTimestamp",
            seen=stored["metadata"]["deletionTimestamp"],
            wanted="none",
            advice="it is being deleted: wait until it is gone, or take the finalizers off its objects",
        )
    for path in (("group",), ("scope",), ("names", "kind"), ("names", "plural")):
        seen, wanted = _at(there, path), _at(spec, path)
        if seen != wanted:
            raise Refusal(
                name,
                ".".join(("spec", *path)),
                seen=seen,
                wanted=wanted,
                advice="it is another program's; remove it, and its objects with it, before Spiderpool is installed",
            )
    added: list[str] = []
    kept: list[str] = []
    versions = _versions(name, there["versions"], spec["versions"], added, kept)
    names = {**spec["names"], **_united(there["names"], spec["names"], ("shortNames", "categories"))}
    document = {
        **ours,
        "metadata": {**ours["metadata"], "resourceVersion": stored["metadata"]["resourceVersion"]},
        "spec": {**spec, "names": names, "versions": versions},
    }
    return Merged(document=document, added=tuple(added), kept=tuple(kept))


def _at(document: Mapping[str, Any], path: Sequence[str]) -> object:
    value: Any = document
    for key in path:
        value = value.get(key, "") if isinstance(value, Mapping) else ""
    return value


def _united(there: Mapping[str, Any], ours: Mapping[str, Any], keys: Sequence[str]) -> Document:
    """Lists of words: ours first, then what only the cluster has."""
    united = {key: list(dict.fromkeys([*ours.get(key, ()), *there.get(key, ())])) for key in keys}
    return {key: words for key, words in united.items() if words}


def _versions(
    name: str, there: Sequence[Document], ours: Sequence[Document], added: list[str], kept: list[str]
) -> list[Document]:
    by_name = {version["name"]: version for version in ours}
    missing = [version for version in by_name if version not in {each["name"] for each in there}]
    if missing:
        raise Refusal(
            name,
            "spec.versions",
            seen=", ".join(version["name"] for version in there),
            wanted=", ".join(missing),
            advice="it belongs to another release, whose objects have to be carried over to this version first",
        )
    made: list[Document] = []
    for version in there:
        wanted = by_name.get(version["name"])
        if wanted is None:
            kept.append(f"version {version['name']}")
            made.append(version)
        else:
            made.append(_version(name, version, wanted, added, kept))
    return made


def _version(name: str, there: Document, ours: Document, added: list[str], kept: list[str]) -> Document:
    version = ours["name"]
    subresources, wanted = there.get("subresources") or {}, ours.get("subresources") or {}
    if "status" in subresources and "status" not in wanted:
        raise Refusal(
            name,
            f"spec.versions[{version}].subresources.status",
            seen="there",
            wanted="none",
            advice="what is written to the objects' status would be lost",
        )
    schema = _Merge(name, version, added, kept).schema(
        _at(there, ("schema", "openAPIV3Schema")) or {}, ours["schema"]["openAPIV3Schema"], ""
    )
    return {
        **there,
        **ours,
        "storage": there["storage"],
        "subresources": {**subresources, **wanted},
        "schema": {"openAPIV3Schema": schema},
    }


class _Merge:
    """Of one version's schema; notes on its way what is added and what stays."""

    def __init__(self, name: str, version: str, added: list[str], kept: list[str]) -> None:
        self._name = name
        self._version = version
        self._added = added
        self._kept = kept

    def schema(self, there: Any, ours: Document, path: str) -> Document:
        """Both schemas of one field in one. Raises `Refusal` when a value cannot be of both types."""
        if there.get("type", "") not in {"", ours.get("type")}:
            raise Refusal(
                self._name,
                f"spec.versions[{self._version}] {path or 'the object'}: type",
                seen=there["type"],
                wanted=ours.get("type"),
                advice="objects that are stored would become unreadable",
            )
        made = {**ours, **{key: there[key] for key in _STAY if key in there}}
        if "enum" in ours and "enum" in there:
            made["enum"] = list(dict.fromkeys([*ours["enum"], *there["enum"]]))
        if "properties" in there or "properties" in ours:
            made["properties"] = self._properties(there.get("properties") or {}, ours.get("properties") or {}, path)
        for key, mark in (("items", "[]"), ("additionalProperties", "[*]")):
            seen, wanted = there.get(key), ours.get(key)
            if isinstance(seen, dict) and isinstance(wanted, dict):
                made[key] = self.schema(seen, wanted, f"{path}{mark}")
            elif seen is not None and wanted is None:
                made[key] = seen
        if "properties" in made and "additionalProperties" in made:
            raise Refusal(
                self._name,
                f"spec.versions[{self._version}] {path or 'the object'}",
                seen="a map of any keys" if "additionalProperties" in there else "fields by name",
                wanted="fields by name" if "additionalProperties" in there else "a map of any keys",
                advice="a schema cannot be both",
            )
        return made

    def _properties(self, there: Document, ours: Document, path: str) -> Document:
        made: Document = {}
        for key in sorted({*there, *ours}):
            where = f"{path}.{key}" if path else key
            if key not in ours:
                self._kept.append(f"{self._version} {where}")
                made[key] = there[key]
            elif key not in there:
                self._added.append(f"{self._version} {where}")
                made[key] = ours[key]
            else:
                made[key] = self.schema(there[key], ours[key], where)
        return made


def properties(document: Document) -> Iterator[str]:
    """Every property of every version, as `Merged` names them: for whoever checks that none has gone."""
    for version in document["spec"]["versions"]:
        yield from (f"{version['name']} {path}" for path in _paths(version["schema"]["openAPIV3Schema"], ""))


def _paths(schema: Document, path: str) -> Iterator[str]:
    for key, inner in (schema.get("properties") or {}).items():
        where = f"{path}.{key}" if path else key
        yield where
        yield from _paths(inner, where)
    for key, mark in (("items", "[]"), ("additionalProperties", "[*]")):
        if isinstance(schema.get(key), dict):
            yield from _paths(schema[key], f"{path}{mark}")
