"""What the API server does to one object, as pure functions on its JSON document.

The memory and the SQLite adapter keep objects as documents and share these rules, so that they differ in where the
bytes lie and in nothing else. A document is never changed in place: every function returns a new one (sharing what did
not change) or, when there is nothing to do, the very same.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from api.kinds import Kind
from api.meta import ObjectMeta
from runtime.store.merge import merge_patch
from runtime.store.port import Conflict, EventType, Invalid

type Document = dict[str, Any]

OWNED_METADATA = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
"""Metadata that is the store's: a change may not name it."""

SELECTABLE = {
    "pods": frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        }
    ),
    "nodes": frozenset({"spec.unschedulable"}),
}
"""By core resource: the fields that the API server can select by, besides `metadata.name` and `metadata.namespace`."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Key(Struct, frozen=True, order=True):
    """Where an object lives. `resource` is the group and the plural, so that every served version is one object."""

    resource: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource} {self.namespace}/{self.name}" if self.namespace else f"{self.resource} {self.name}"


class Selector(Struct, frozen=True):
    """Which objects a list or a watch wants. `fields` and `labels` are equalities, joined by AND."""

    resource: str
    namespace: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def matches(self, document: Document) -> bool:
        """Tell whether the document, which is of this resource, is wanted."""
        if self.namespace and document["metadata"].get("namespace", "") != self.namespace:
            return False
        if any(field(document, path) != value for path, value in self.fields):
            return False
        labels = document["metadata"].get("labels") or {}
        return all(labels.get(name) == value for name, value in self.labels)

    def sees(self, before: Document | None, after: Document | None) -> EventType | None:
        """Say what a watch of this selector shows for a change, None when it shows nothing.

        An object that comes to match is added and one that ceases to match is deleted, whatever happened to it.
        """
        was = before is not None and self.matches(before)
        is_now = after is not None and self.matches(after)
        if is_now:
            return EventType.MODIFIED if was else EventType.ADDED
        return EventType.DELETED if was else None


def resource_of(kind: Kind[Any]) -> str:
    """Name the resource of a kind, for example ``spiderpool.spidernet.io/spiderippools`` or ``pods``."""
    return f"{kind.group}/{kind.plural}" if kind.group else kind.plural


def key_of(kind: Kind[Any], namespace: str, name: str) -> Key:
    """Say where the object lives. Raises `Invalid` for a missing name and for a missing or needless namespace."""
    if not name:
        msg = f"{kind.kind}: metadata.name is empty"
        raise Invalid(msg)
    check_namespace(kind, namespace, name)
    return Key(resource_of(kind), namespace, name)


def check_namespace(kind: Kind[Any], namespace: str, name: str) -> None:
    """Raise `Invalid` unless one object of the kind can be addressed with this namespace."""
    if kind.namespaced and not namespace:
        msg = f"{kind.kind} {name}: the kind lives in a namespace and none is given"
        raise Invalid(msg)
    if namespace and not kind.namespaced:
        msg = f"{kind.kind} {name}: the kind lives in no namespace and {namespace!r} is given"
        raise Invalid(msg)


def selector_of(
    kind: Kind[Any],
    *,
    namespace: str = "",
    fields: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Selector:
    """Make a selector. Raises `Invalid` for a field that the API server cannot select this kind by."""
    resource = resource_of(kind)
    known = SELECTABLE.get(resource, frozenset())
    for path in fields or {}:
        if path not in known and path != "metadata.name" and not (path == "metadata.namespace" and kind.namespaced):
            msg = f"{kind.kind}: field label not supported: {path}"
            raise Invalid(msg)
    return Selector(
        resource=resource,
        namespace=namespace,
        fields=tuple(sorted((fields or {}).items())),
        labels=tuple(sorted((labels or {}).items())),
    )


def field(document: Document, path: str) -> str:
    """Read a dotted path as field selectors see it: absent is the empty string, a truth value is a word."""
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def created[T](kind: Kind[T], item: T, *, uid: str, wall: float) -> Document:
    """Make the document of a new object, without a resourceVersion. `wall` is in seconds since the epoch.

    A kind with a status subresource starts without a status, as on the API server. Raises `Invalid` for a bad name and
    for an item that is not of the kind's type.
    """
    if not isinstance(item, kind.type):
        msg = f"{kind.kind}: got an object of type {type(item).__name__}"
        raise Invalid(msg)
    document = request_document(kind, item)
    metadata = document["metadata"]
    if not _NAME.fullmatch(metadata.get("name", "")):
        msg = f"{kind.kind}: metadata.name {metadata.get('name', '')!r} is not a DNS subdomain name"
        raise Invalid(msg)
    check_namespace(kind, metadata.get("namespace", ""), metadata["name"])
    if kind.status:
        document.pop("status", None)
    document["metadata"] = {**metadata, "uid": uid, "generation": 1, "creationTimestamp": timestamp(wall)}
    return document


def request_document[T](kind: Kind[T], item: T) -> Document:
    """Encode an item for its creation: with apiVersion and kind, without the metadata that the store fills."""
    document = whole_document(kind, item)
    given = document.get("metadata", {})
    keep = {"name", "namespace"}
    metadata = {name: value for name, value in given.items() if name in keep or name not in OWNED_METADATA}
    return {**document, "metadata": metadata}


def whole_document[T](kind: Kind[T], item: T) -> Document:
    """Encode an item as it is, with apiVersion and kind."""
    document: Document = msgspec.to_builtins(item, str_keys=True)
    return {**document, "apiVersion": kind.api_version, "kind": kind.kind}


def scoped(kind: Kind[Any], change: Mapping[str, Any], subresource: str) -> Document:
    """Reduce a change to what it may touch: the status alone, or everything but the status of a kind that has one.

    Structs inside the change become plain JSON values. Raises `Invalid` for an unknown subresource and for metadata
    that is the store's.
    """
    if subresource not in ("", "status"):
        msg = f"{kind.kind}: no subresource {subresource!r}"
        raise Invalid(msg)
    if subresource == "status" and not kind.status:
        msg = f"{kind.kind}: the kind has no status subresource"
        raise Invalid(msg)
    plain: Document = msgspec.to_builtins(dict(change), str_keys=True)
    if subresource == "status":
        return {name: value for name, value in plain.items() if name == "status"}
    owned = OWNED_METADATA & set(plain.get("metadata") or {})
    if owned or plain.get("metadata", {}) is None:
        msg = f"{kind.kind}: a change may not name metadata.{', metadata.'.join(sorted(owned)) or '*'}"
        raise Invalid(msg)
    return {name: value for name, value in plain.items() if not (kind.status and name == "status")}


def check(key: Key, document: Document, *, resource_version: str, uid: str) -> None:
    """Raise `Conflict` unless the stored document has the demanded resourceVersion and uid (empty demands nothing)."""
    metadata = document["metadata"]
    if uid and metadata["uid"] != uid:
        msg = f"{key}: the uid is {metadata['uid']}, not {uid}"
        raise Conflict(msg)
    if resource_version and metadata["resourceVersion"] != resource_version:
        msg = f"{key}: the resourceVersion is {metadata['resourceVersion']}, not {resource_version}"
        raise Conflict(msg)


def patched(kind: Kind[Any], key: Key, document: Document, change: Document) -> Document:
    """Apply a `scoped` change; the same document comes back when nothing changes. Keeps the old resourceVersion.

    Whether the outcome is still of the kind's type is for `decode` to find. Raises `Invalid` when a dying object would
    get a new finalizer.
    """
    after = merge_patch(document, change)
    assert isinstance(after, dict)
    if after is document:
        return document
    metadata = after["metadata"]
    if metadata.get("deletionTimestamp"):
        more = set(metadata.get("finalizers") or ()) - set(document["metadata"].get("finalizers") or ())
        if more:
            msg = f"{key}: no new finalizers can be added if the object is being deleted: {sorted(more)}"
            raise Invalid(msg)
    ignored = {"metadata", "status"} if kind.status else {"metadata"}
    if any(after.get(name) != document.get(name) for name in (after.keys() | document.keys()) - ignored):
        after = {**after, "metadata": {**metadata, "generation": metadata.get("generation", 0) + 1}}
    return after


def replaced(document: Document, status: Document) -> Document:
    """Put a `whole_status` in the place of the one that is there; the same document comes back when it is the same."""
    if status == document.get("status", {}):
        return document
    rest = {name: value for name, value in document.items() if name != "status"}
    return {**rest, "status": status} if status else rest


class Whole(Struct, frozen=True):
    """A status that is to be written whole, as a JSON value, and over what."""

    key: Key
    resource_version: str
    status: Document


def whole_status[T](kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> Whole:
    """Say what is to be written. As in a patch, None means that a field is not there.

    Raises `Invalid` where a status cannot be written like this: the API server's own rules.
    """
    metadata: ObjectMeta = item.metadata  # type: ignore[attr-defined]
    key = key_of(kind, metadata.namespace, metadata.name)
    if not kind.status or not metadata.resource_version:
        msg = f"{kind.kind} {metadata.name}: only a status can be written whole, and only over a known resourceVersion"
        raise Invalid(msg)
    plain: Document = msgspec.to_builtins(status, str_keys=True)
    named = {name: value for name, value in plain.items() if value is not None}
    return Whole(key, metadata.resource_version, named)


def marked(document: Document, *, wall: float) -> Document:
    """Mark a document with finalizers as being deleted; the same document comes back when it is already."""
    metadata = document["metadata"]
    if metadata.get("deletionTimestamp"):
        return document
    mark = {
        "deletionTimestamp": timestamp(wall),
        "deletionGracePeriodSeconds": 0,
        "generation": metadata.get("generation", 0) + 1,
    }
    return {**document, "metadata": {**metadata, **mark}}


def is_final(document: Document) -> bool:
    """Tell whether the object is marked and nothing holds it any more, so that it goes."""
    metadata = document["metadata"]
    return bool(metadata.get("deletionTimestamp")) and not metadata.get("finalizers")


def stamped(document: Document, revision: int) -> Document:
    """Give the document the resourceVersion of a revision."""
    return {**document, "metadata": {**document["metadata"], "resourceVersion": str(revision)}}


def decode[T](kind: Kind[T], data: bytes) -> T:
    """Decode a JSON document to the kind's type. Raises `Invalid` that names the kind and the field."""
    try:
        return msgspec.json.decode(data, type=kind.type)
    except msgspec.MsgspecError as error:
        msg = f"{kind.kind}: {error}"
        raise Invalid(msg) from error


def converted[T](kind: Kind[T], document: Document) -> T:
    """As `decode`, from the document itself."""
    try:
        return msgspec.convert(document, kind.type)
    except msgspec.MsgspecError as error:
        msg = f"{kind.kind}: {error}"
        raise Invalid(msg) from error


class _Bare(Struct):
    metadata: ObjectMeta


def with_status[T](kind: Kind[T], item: T, answer: bytes, status: Document) -> T:
    """The item with the metadata of an answer, and a status. Raises `Invalid` that names the kind and the field."""
    try:
        metadata = msgspec.json.decode(answer, type=_Bare).metadata
        fields = {"metadata": metadata, "status": msgspec.convert(status, type(item.status))}  # type: ignore[attr-defined]
        return msgspec.structs.replace(item, **fields)  # type: ignore[type-var]
    except msgspec.MsgspecError as error:
        msg = f"{kind.kind}: {error}"
        raise Invalid(msg) from error


def selectable(resource: str, document: Document) -> Document:
    """Keep of a document what field selectors can ask for: what it was like before a change, in few bytes."""
    metadata = document["metadata"]
    part: Document = {"metadata": {name: metadata[name] for name in ("name", "namespace") if name in metadata}}
    for path in sorted(SELECTABLE.get(resource, ())):
        *parents, leaf = path.split(".")
        value: Any = document
        for name in (*parents, leaf):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            inner = part
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[leaf] = value
    return part


def timestamp(wall: float) -> str:
    """Format seconds since the epoch as the API server does, in whole seconds of UTC."""
    return _timestamp(int(wall))


@lru_cache(maxsize=64)
def _timestamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
