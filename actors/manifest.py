"""Objects of Spiderpool's API as people write them: YAML to Structs, strictly, and from there into a store.

An API server drops a field that it does not know, in silence. Here it is refused by name, as is a value that does not
fit, so that a misspelt `gatway` is found before a pod is without a gateway. `read` is pure: the caller reads the file.

`apply` creates an object that is not there. Of one that is there, the spec becomes what the file says: a field that the
file does not have is taken out. Labels and annotations are added or changed, never taken out, and a status is not
written: that belongs to its owner.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import yaml
from msgspec import Struct
from msgspec import inspect as shapes

from admission.ippool import IPPoolRules
from admission.reservedip import ReservedIPRules
from admission.review import Review
from admission.rulebook import Rulebook
from admission.subnet import SubnetRules
from api.configfile import did_you_mean, shown
from api.kinds import COORDINATOR, ENDPOINT, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET, Kind
from api.meta import API_VERSION, ObjectMeta
from runtime.store.port import AlreadyExists, Conflict, NotFound, Store

_ATTEMPTS = 5

KINDS = {kind.kind: kind for kind in (IPPOOL, SUBNET, RESERVEDIP, COORDINATOR, MULTUSCONFIG, ENDPOINT)}
"""What can be written, by the word that stands in `kind`."""


_RULES = Rulebook()
_RULES.add(IPPOOL, IPPoolRules())
_RULES.add(RESERVEDIP, ReservedIPRules())
_RULES.add(SUBNET, SubnetRules())


class ManifestError(ValueError):
    """What is written cannot be, or cannot become of what is there. One line that names file, field and value."""


class Contended(Exception):
    """Others changed the object each time we were about to; nothing was written."""


class Manifest(Struct, frozen=True):
    """One object of a file."""

    kind: Kind[Any]
    item: Any
    """A Struct of `kind.type`."""
    where: str
    """File and number of the document, for errors."""

    @property
    def metadata(self) -> ObjectMeta:
        """The object's name and namespace."""
        metadata: ObjectMeta = self.item.metadata
        return metadata

    def __str__(self) -> str:
        name = f"{self.metadata.namespace}/{self.metadata.name}" if self.metadata.namespace else self.metadata.name
        return f"{self.kind.kind} {name}"


def read(text: str, *, source: str) -> list[Manifest]:
    """The objects of a YAML text, one or more documents; empty documents are passed over.

    Raises `ManifestError`: not YAML, an unknown kind or field, a value of a wrong type or that makes no sense, no name.
    """
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        msg = f"{source}: not YAML: {error}"
        raise ManifestError(msg) from None
    numbered = [(number, document) for number, document in enumerate(documents, start=1) if document is not None]
    return [
        _manifest(document, f"{source} document {number}" if len(documents) > 1 else source)
        for number, document in numbered
    ]


def _manifest(document: object, where: str) -> Manifest:
    if not isinstance(document, dict):
        msg = f"{where}: {shown(document)} is no object"
        raise ManifestError(msg)
    kind = KINDS.get(str(document.get("kind", "")))
    if kind is None:
        known = tuple(KINDS)
        hint = did_you_mean(str(document.get("kind", "")), known) or f" (one of {', '.join(known)})"
        msg = f"{where}: kind: {shown(document.get('kind'))} is none that can be applied{hint}"
        raise ManifestError(msg)
    if document.get("apiVersion") != API_VERSION:
        msg = f"{where}: apiVersion: {shown(document.get('apiVersion'))}: expected {API_VERSION}"
        raise ManifestError(msg)
    unknown = next(unknown_fields(document, kind.type), None)
    if unknown is not None:
        path, value, hint = unknown
        msg = f"{where}: {path}: {shown(value)}: no such field{hint}"
        raise ManifestError(msg)
    try:
        item = msgspec.convert(document, kind.type)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{where}: {_explained(error, document)}") from None
    made = Manifest(kind=kind, item=item, where=where)
    if not made.metadata.name:
        msg = f"{where}: metadata.name: missing"
        raise ManifestError(msg)
    if kind.namespaced and not made.metadata.namespace:
        msg = f"{where}: metadata.namespace: missing, a {kind.kind} lives in a namespace"
        raise ManifestError(msg)
    if made.metadata.namespace and not kind.namespaced:
        msg = f"{where}: metadata.namespace: {shown(made.metadata.namespace)}: a {kind.kind} lives in no namespace"
        raise ManifestError(msg)
    _judge(made, Review("CREATE", item))
    return made


def _judge(manifest: Manifest, review: Review[Any]) -> None:
    """What a webhook would say of it that knows no other object. Raises `ManifestError`."""
    errors = _RULES.judge(manifest.kind, review).errors
    if errors:
        whose = f"{manifest.where}: {manifest}" if review.old is not None else manifest.where
        raise ManifestError(f"{whose}: {'; '.join(str(error) for error in errors)}")


def unknown_fields(data: object, cls: type[Struct]) -> Iterator[tuple[str, object, str]]:
    """Every field of `data` that the Struct has not: path, value and a hint. Metadata is the API server's business."""
    return _unknown(data, shapes.type_info(cls), ())


def _unknown(data: object, shape: shapes.Type, at: tuple[str, ...]) -> Iterator[tuple[str, object, str]]:
    match shape:
        case shapes.Metadata(inner):
            yield from _unknown(data, inner, at)
        case shapes.UnionType(types):
            for one in types:
                yield from _unknown(data, one, at)
        case shapes.ListType(item) if isinstance(data, list):
            for index, value in enumerate(data):
                yield from _unknown(value, item, (*at[:-1], f"{at[-1]}[{index}]"))
        case shapes.StructType(cls, fields) if isinstance(data, dict) and cls is not ObjectMeta:
            known = {field.encode_name: field.type for field in fields}
            for key, value in data.items():
                path = (*at, str(key))
                if key in known:
                    yield from _unknown(value, known[key], path)
                else:
                    yield ".".join(path), value, did_you_mean(str(key), tuple(known))
        case _:
            return


def _explained(error: msgspec.ValidationError, document: object) -> str:
    """msgspec's words, with the field in front and the value that stands there."""
    reason, _, where = str(error).partition(" - at ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    value: Any = document
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
    text = reason.replace("`", "")
    return f"{path or 'the object'}: {shown(value)}: {text[:1].lower()}{text[1:]}"


async def apply(store: Store, manifest: Manifest) -> str:
    """Create or change one object; returns "created", "changed" or "unchanged".

    Raises `ManifestError` for a change that would take something from somebody, `Contended`, `StoreError`.
    """
    kind, metadata = manifest.kind, manifest.metadata
    for _ in range(_ATTEMPTS):
        try:
            await store.create(kind, manifest.item)
        except AlreadyExists:
            pass
        else:
            return "created"
        try:
            found = await store.get(kind, metadata.name, namespace=metadata.namespace)
            _judge(manifest, Review("UPDATE", manifest.item, found))
            after = await store.patch(
                kind,
                metadata.name,
                difference(msgspec.to_builtins(found), msgspec.to_builtins(manifest.item)),
                namespace=metadata.namespace,
                resource_version=found.metadata.resource_version,
            )
        except (Conflict, NotFound):
            continue
        same = after.metadata.resource_version == found.metadata.resource_version
        return "unchanged" if same else "changed"
    msg = f"{manifest}: others changed it {_ATTEMPTS} times in a row"
    raise Contended(msg)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch from one object to another: the spec replaced, labels and annotations added."""
    metadata = {key: after["metadata"][key] for key in ("labels", "annotations") if key in after.get("metadata", {})}
    change: dict[str, Any] = {"metadata": metadata} if metadata else {}
    return change | {"spec": _replaced(before.get("spec", {}), after["spec"])} if "spec" in after else change


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        there = before.get(key)
        patch[key] = _replaced(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return patch
