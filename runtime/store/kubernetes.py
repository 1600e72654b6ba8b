"""The store on a Kubernetes API server: own list, watch and writes, with msgspec and aiohttp.

The official models cost a hundred times a msgspec decode and their watch hangs on a half-open connection, so neither is
used. Objects are decoded to the fields we need; writes are merge patches, so the fields that we do not know stay.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from random import Random
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from api.kinds import Kind
from runtime.store import document as rules
from runtime.store.apiserver import ApiServer, Call
from runtime.store.credentials import Credentials
from runtime.store.document import Document, Key
from runtime.store.observe import Outcome, count, observed
from runtime.store.port import Conflict, Event, EventType, Expired, Invalid, Listing, StoreError, Unavailable
from runtime.store.status import error_of, parse_status

PAGE = 500
"""Objects in one page of a list: 5 ms of decoding, the longest that the loop is held."""

WATCH_SECONDS = (300.0, 600.0)
"""The API server ends a watch after a time between these: a random one, so that they do not all come back at once."""

WATCH_SILENCE = 90.0
"""Seconds without a byte after which a watch is taken for dead. Bookmarks come every minute."""

MERGE_PATCH = "application/merge-patch+json"

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json"
"""What an answer may be: without spec and status, or the object as a whole where a server does not know the first."""

_ATTEMPTS = 5
"""Of a status patch that demands a uid and no resourceVersion: as often as the API server itself tries a patch."""


class _ListMeta(Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page[T](Struct):
    metadata: _ListMeta
    items: list[T] | None = None


class _Line(Struct):
    type: str
    object: msgspec.Raw


class _StoredMeta(Struct, rename="camel"):
    resource_version: str = ""
    uid: str = ""


class _Stored(Struct):
    """Of any object, a bookmark included, what preconditions and watches need."""

    metadata: _StoredMeta


class KubernetesStore:
    """`Store` on an API server. Not thread safe: one loop uses it."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        deadline: float = 10.0,
        connections: int = 100,
        agent: str = "spiderpool",
        random: Random | None = None,
        watch_seconds: tuple[float, float] = WATCH_SECONDS,
        watch_silence: float = WATCH_SILENCE,
    ) -> None:
        """Connect to nothing yet.

        Args:
            credentials: where the API server is and as whom we come.
            deadline: seconds for one request (one page of a list).
            connections: how many at a time, one for each watch included; further requests wait.
            agent: the User-Agent, which audit logs show.
            random: spreads the ends of watches.
            watch_seconds: the shortest and longest time that the API server keeps a watch open.
            watch_silence: seconds without a byte that end a watch with `Unavailable`.
        """
        self.server = ApiServer(credentials, deadline=deadline, connections=connections, agent=agent)
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """How many requests there were, by verb, resource (with ``/status``) and HTTP status or name of the error."""
        self._random = random or Random()  # noqa: S311 - spreads load, keeps no secret
        self._watch_seconds = watch_seconds
        self._watch_silence = watch_silence
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

    def __repr__(self) -> str:
        return f"<KubernetesStore {self.server!r}>"

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """Read one object, a quorum read. Raises `NotFound`, `Denied`, `Busy`, `Invalid`, `Unavailable`."""
        rules.key_of(kind, namespace, name)
        call = Call(method="GET", path=kind.path(namespace, name), what=_words("get", kind, namespace, name))
        with self._observed("get", kind, namespace, name) as outcome:
            return rules.decode(kind, await self.server.request(call, outcome))

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """Read all objects that match, consistently, in pages of 500.

        Raises `Denied`, `Busy`, `Invalid`, `Unavailable`; `Expired` when the pages took so long, twice, that the
        revision of the first was gone.
        """
        query = {"limit": str(PAGE), **_selectors(kind, namespace, fields, labels)}
        try:
            return await self._pages(kind, namespace, query)
        except Expired:
            return await self._pages(kind, namespace, query)

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """Store a new object. Raises `AlreadyExists`, `Denied`, `Busy`, `Invalid`, `Unavailable`, `Ambiguous`."""
        if not isinstance(item, kind.type):
            msg = f"{kind.kind}: got an object of type {type(item).__name__}"
            raise Invalid(msg)
        document = rules.request_document(kind, item)
        name, namespace = document["metadata"].get("name", ""), document["metadata"].get("namespace", "")
        rules.key_of(kind, namespace, name)
        call = Call(
            method="POST",
            path=kind.path(namespace),
            query=self._patience(),
            body=msgspec.json.encode(document),
            what=_words("create", kind, namespace, name),
            is_write=True,
        )
        with self._observed("create", kind, namespace, name) as outcome:
            return rules.decode(kind, await self.server.request(call, outcome))

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
        """Apply a JSON merge patch.

        The API server ignores a uid that comes with a status (it takes all metadata from the stored object). So a
        status patch that demands a uid costs a read before it, whose resourceVersion the write then demands; one that
        demands only a resourceVersion does not, and says the same.

        Raises `NotFound`, `Conflict`, `Denied`, `Busy`, `Invalid`, `Unavailable`, `Ambiguous`.
        """
        key = rules.key_of(kind, namespace, name)
        body = rules.scoped(kind, change, subresource)
        if not (uid and subresource):
            return await self._patch(kind, key, body, subresource, {"resourceVersion": resource_version, "uid": uid})
        for attempt in range(_ATTEMPTS):
            found = await self.get(_stored(kind), name, namespace=namespace)
            document = {"metadata": {"uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version}}
            rules.check(key, document, resource_version=resource_version, uid=uid)
            try:
                demanded = {"resourceVersion": found.metadata.resource_version}
                return await self._patch(kind, key, body, subresource, demanded)
            except Conflict:
                if resource_version or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _patch[T](
        self, kind: Kind[T], key: Key, body: Document, subresource: str, demanded: Mapping[str, str]
    ) -> T:
        metadata = {**body.get("metadata", {}), **{name: value for name, value in demanded.items() if value}}
        call = Call(
            method="PATCH",
            path=kind.path(key.namespace, key.name, subresource),
            query=self._patience(),
            body=msgspec.json.encode({**body, "metadata": metadata} if metadata else body),
            content_type=MERGE_PATCH,
            what=_words("patch", kind, key.namespace, key.name, subresource),
            is_write=True,
            demanded_uid="uid" in metadata,
        )
        with self._observed("patch", kind, key.namespace, key.name, subresource) as outcome:
            return rules.decode(kind, await self.server.request(call, outcome))

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """Write all of the status of an object that still is as `item` was read, and return the object as stored.

        A PUT, of which the API server takes nothing but the status: merging a status of 150 kB into the stored object
        costs it 42 ms of a processor, replacing it 19 (1.36), and 15 where its answer is the object's metadata alone.
        What it says no more is what was sent, and what the item was: the resourceVersion was the same.

        Raises `NotFound`, `Conflict`, `Denied`, `Busy`, `Invalid`, `Unavailable`, `Ambiguous`.
        """
        whole = rules.whole_status(kind, item, status)
        key = whole.key
        metadata = {"name": key.name, **({"namespace": key.namespace} if key.namespace else {})}
        metadata["resourceVersion"] = whole.resource_version
        document = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": whole.status}
        call = Call(
            method="PUT",
            path=kind.path(key.namespace, key.name, "status"),
            query=self._patience(),
            body=msgspec.json.encode(document),
            accept=METADATA_ONLY,
            what=_words("update", kind, key.namespace, key.name, "status"),
            is_write=True,
        )
        with self._observed("update", kind, key.namespace, key.name, "status") as outcome:
            return rules.with_status(kind, item, await self.server.request(call, outcome), whole.status)

    async def delete[T](
        self,
        kind: Kind[T],
        name: str,
        *,
        namespace: str = "",
        resource_version: str = "",
        uid: str = "",
        grace: int | None = None,
    ) -> None:
        """Delete an object, or have it marked while it has finalizers.

        `grace`, which the port does not have, is in seconds: 0 removes a Pod at once, that else waits for its kubelet.
        Raises `NotFound`, `Conflict`, `Denied`, `Busy`, `Invalid`, `Unavailable`, `Ambiguous`.
        """
        rules.key_of(kind, namespace, name)
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        demanded = {"resourceVersion": resource_version, "uid": uid}
        if preconditions := {key: value for key, value in demanded.items() if value}:
            options["preconditions"] = preconditions
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        call = Call(
            method="DELETE",
            path=kind.path(namespace, name),
            query=self._patience(),
            body=msgspec.json.encode(options),
            what=_words("delete", kind, namespace, name),
            is_write=True,
        )
        with self._observed("delete", kind, namespace, name) as outcome:
            await self.server.request(call, outcome)

    @asynccontextmanager
    async def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """Follow the changes after `since`, for 5 to 10 minutes at a time.

        Raises `Expired` (on entry or while iterating), `Denied`, `Busy`, `Invalid`, `Unavailable`.
        """
        what = _words("watch", kind, namespace, "")
        if not since:
            msg = f"{what}: '' is not the revision of a list"
            raise Invalid(msg)
        seconds = self._random.uniform(*self._watch_seconds)
        query = {
            "watch": "1",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
            **_selectors(kind, namespace, fields, None),
        }
        call = Call(method="GET", path=kind.path(namespace), query=query, what=what)
        code = "OK"
        try:
            async with self.server.stream(call, silence=self._watch_silence) as lines:
                yield _Stream(kind, lines, what)
        except StoreError as error:
            code = type(error).__name__
            raise
        finally:
            count("watch", kind.plural, code, requests=self.requests)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self.server.aclose()

    async def _pages[T](self, kind: Kind[T], namespace: str, query: dict[str, str]) -> Listing[T]:
        items: list[T] = []
        call = Call(method="GET", path=kind.path(namespace), query=query, what=_words("list", kind, namespace, ""))
        while True:
            with self._observed("list", kind, namespace, "") as outcome:
                page = self._decode_page(kind, await self.server.request(call, outcome))
            items.extend(page.items or ())
            if not page.metadata.continue_:
                return Listing(items=items, revision=page.metadata.resource_version)
            further = {**query, "continue": page.metadata.continue_}
            call = Call(method="GET", path=call.path, query=further, what=call.what)

    def _decode_page[T](self, kind: Kind[T], body: bytes) -> _Page[T]:
        """Decode one page. Raises `Invalid` that names the object which does not fit, if one does not."""
        decoder = self._decoders.get(kind.type)
        if decoder is None:
            decoder = self._decoders[kind.type] = msgspec.json.Decoder(_Page[kind.type])  # type: ignore[name-defined]
        try:
            page: _Page[T] = decoder.decode(body)
        except msgspec.MsgspecError as error:
            msg = f"{kind.kind}: {error}{_culprit(kind, body)}"
            raise Invalid(msg) from error
        return page

    def _patience(self) -> dict[str, str]:
        """Ask the API server to give a write up no later than we do: it bounds how late one can still land."""
        return {"timeout": f"{max(1, int(self.server.deadline))}s"}

    def _observed(
        self, verb: str, kind: Kind[Any], namespace: str, name: str, subresource: str = ""
    ) -> AbstractContextManager[Outcome]:
        host, port = self.server.credentials.address
        attributes: dict[str, str | int] = {
            "server.address": host,
            "server.port": port,
            "spiderpool.store.kind": kind.kind,
        }
        if name:
            attributes["spiderpool.store.name"] = name
        if namespace:
            attributes["k8s.namespace.name"] = namespace
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        return observed(verb, resource, requests=self.requests, attributes=attributes)


class _Stream[T]:
    """The events of one open watch."""

    def __init__(self, kind: Kind[T], lines: aiohttp.StreamReader, what: str) -> None:
        self._kind = kind
        self._lines = lines
        self._what = what

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self

    async def __anext__(self) -> Event[T]:
        line = await self._read()
        try:
            event = msgspec.json.decode(line, type=_Line)
            match event.type:
                case "ADDED" | "MODIFIED" | "DELETED":
                    revision = msgspec.json.decode(event.object, type=_Stored).metadata.resource_version
                    item = rules.decode(self._kind, bytes(event.object))
                    return Event(type=EventType(event.type), revision=revision, object=item)
                case "BOOKMARK":
                    mark = msgspec.json.decode(event.object, type=_Stored)
                    return Event(type=EventType.BOOKMARK, revision=mark.metadata.resource_version)
        except msgspec.MsgspecError as error:
            msg = f"{self._what}: not a watch event: {error}"
            raise Unavailable(msg) from error
        body = bytes(event.object)
        raise error_of(parse_status(body).code, body, what=self._what)

    async def _read(self) -> bytes:
        """Read one line. A stream that ends between two lines has ended well."""
        try:
            line = await self._lines.readline()
        except ValueError as error:  # aiohttp's name for a line that does not fit its buffer
            msg = f"{self._what}: an event is bigger than etcd's objects can be: {error}"
            raise Expired(msg) from error
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError too
            msg = f"{self._what}: the stream broke: {str(error) or type(error).__name__}"
            raise Unavailable(msg) from error
        if not line:
            raise StopAsyncIteration
        if not line.endswith(b"\n"):
            msg = f"{self._what}: the stream ended within a line"
            raise Unavailable(msg)
        return line


def _selectors(
    kind: Kind[Any], namespace: str, fields: Mapping[str, str] | None, labels: Mapping[str, str] | None
) -> dict[str, str]:
    selector = rules.selector_of(kind, namespace=namespace, fields=fields, labels=labels)
    query = {}
    if selector.fields:
        query["fieldSelector"] = ",".join(f"{name}={value}" for name, value in selector.fields)
    if selector.labels:
        query["labelSelector"] = ",".join(f"{name}={value}" for name, value in selector.labels)
    return query


def _stored(kind: Kind[Any]) -> Kind[_Stored]:
    """Address the same objects, to decode of them only what preconditions need."""
    return Kind(
        group=kind.group,
        version=kind.version,
        plural=kind.plural,
        kind=kind.kind,
        namespaced=kind.namespaced,
        status=kind.status,
        type=_Stored,
    )


def _culprit(kind: Kind[Any], body: bytes) -> str:
    """Name the object in a page that does not fit the kind's type; empty when it is the page itself."""
    try:
        raws = msgspec.json.decode(body, type=_Page[msgspec.Raw]).items or ()
    except msgspec.MsgspecError:
        return ""
    for raw in raws:
        try:
            msgspec.json.decode(raw, type=kind.type)
        except msgspec.MsgspecError:
            metadata = msgspec.json.decode(raw).get("metadata", {})
            return f" in {metadata.get('namespace', '')}/{metadata.get('name', '')}"
    return ""


def _words(verb: str, kind: Kind[Any], namespace: str, name: str, subresource: str = "") -> str:
    """Say in words what is asked for."""
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    return f"{verb} {resource} {namespace}{'/' if namespace and name else ''}{name}".rstrip()
