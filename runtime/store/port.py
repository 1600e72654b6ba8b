"""The store port: what actors may ask of the place where Kubernetes-shaped objects live.

Three adapters implement it: the API server (`kubernetes`), one SQLite file (`sqlite`, the embedded default) and memory
(`memory`, for simulation). `tests/contract` runs one suite on all three, so a fake is never more forgiving than the
real thing. The port speaks the API server's language because that is the strictest of the three:

* every object carries an opaque `metadata.resourceVersion`; a write may demand one and fails with `Conflict` if the
  stored object has moved on. That precondition is the only fence of the allocation protocol;
* a write never drops a field that our Structs do not know: the port offers JSON merge patches (RFC 7396), to the object
  or to its status subresource, creation, and a whole status for those who own all of it;
* a read through `get` and `list` is current (never served from a cache), a `watch` may lag.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from api.kinds import Kind


class StoreError(Exception):
    """A request to the store did not succeed. The subclass says what that leaves behind."""


class NotFound(StoreError):
    """No object of that kind, namespace and name (or not with the demanded uid). Nothing was written."""


class AlreadyExists(StoreError):
    """`create` of a name that is taken. Nothing was written."""


class Conflict(StoreError):
    """The stored object has another resourceVersion or uid than the write demanded. Nothing was written."""


class Invalid(StoreError):
    """The store refuses the object: schema, admission or an unknown kind. Nothing was written, a retry is useless."""


class Denied(StoreError):
    """The credentials do not allow this (HTTP 401 and 403). Nothing was written."""


class Expired(StoreError):
    """The revision of a `watch`, or the continuation of a `list`, is too old (HTTP 410): list again."""


class Busy(StoreError):
    """The store asks to come back later (HTTP 429, 503 with Retry-After). Nothing was written."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        """`retry_after` is in seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(StoreError):
    """The store could not be reached at all. Nothing was written."""


class Ambiguous(StoreError):
    """The request went out and no answer came back: a write may or may not have happened. Read before deciding."""


class EventType(StrEnum):
    """What happened to an object. The values are those of the API server's watch."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    """Nothing changed; `Event.revision` is a newer point to resume from and `Event.object` is None."""


class Event[T](Struct, frozen=True):
    """One change seen by a watch. `revision` is where to resume behind it."""

    type: EventType
    revision: str
    object: T | None = None


class Listing[T](Struct, frozen=True):
    """A consistent list and the revision at which it was true: watch from there and nothing is missed."""

    items: Sequence[T]
    revision: str


class Store(Protocol):
    """Kubernetes-shaped storage. Methods raise the `StoreError` tree and nothing else.

    Cancelling a call leaves a write in the same state as `Ambiguous` does. `fields` is a field selector of equalities,
    for example ``{"spec.nodeName": "n1"}``, joined by AND; `labels` likewise for labels.
    """

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """Read one object, current. Raises `NotFound`."""
        ...

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """Read all objects of a kind, current, in one namespace or (empty) in all. An adapter that pages takes 500."""
        ...

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """Store a new object under its `metadata.name`. The store fills in uid, resourceVersion, creationTimestamp.

        A kind that has a status subresource starts without a status. Raises `AlreadyExists`, `Invalid`.
        """
        ...

    async def patch[T](
        self,
        kind: Kind[T],
        name: str,
        change: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        resource_version: str = "",
        uid: str = "",
    ) -> T:
        """Apply a JSON merge patch and return the object as stored.

        `subresource` is ``""`` or ``"status"``: with ``""`` a kind that has a status subresource keeps its status, with
        ``"status"`` only `status` changes. `resource_version` and `uid`, when given, must match or `Conflict` is
        raised. A patch that changes nothing still checks both and leaves the resourceVersion as it was.
        """
        ...

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """Write all of the status of an object that still is as `item` was read, and return the object as stored.

        What `status` does not name, or names as None, goes. For a big status that costs the API server a third of what
        merging into it costs. A status that is the same leaves the resourceVersion as it was.

        Raises `Conflict` where the stored object has another resourceVersion than the item, `Invalid` for an item
        without one and for a kind without a status subresource.
        """
        ...

    async def delete[T](
        self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
    ) -> None:
        """Delete an object, or mark it with a deletionTimestamp while it has finalizers. Raises `NotFound`, `Conflict`.

        An object that is already marked goes when a patch takes its last finalizer off.
        """
        ...

    def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event[T]]]:
        """Follow the changes after the revision `since`. The iterator ends when the store closes the stream.

        Raises `Expired` (on entry or while iterating) when `since` is no longer held.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections and files. Idempotent."""
        ...
