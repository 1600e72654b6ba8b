"""Server-side apply of whole documents, for objects whose fields are not ours to model.

A CustomResourceDefinition may hold fields of a newer release or of another program; a Struct would drop them. Not part
of the store port: actors do not need it, and no fake of it would be worth having.
"""

from collections import Counter
from typing import Any

import msgspec

from api.kinds import Kind
from runtime.store.apiserver import ApiServer, Call
from runtime.store.document import Document
from runtime.store.observe import observed
from runtime.store.port import Invalid, NotFound

_APPLY_PATCH = "application/apply-patch+yaml"


async def read(server: ApiServer, kind: Kind[Any], name: str) -> Document | None:
    """Read one object of a kind without namespaces, whole; None when there is none. Raises the `StoreError` tree."""
    call = Call(method="GET", path=kind.path(name=name), what=f"get {kind.kind} {name}")
    try:
        return await _request(server, call, verb="get", kind=kind)
    except NotFound:
        return None


async def apply(server: ApiServer, kind: Kind[Any], document: Document, *, manager: str) -> Document:
    """Make the object hold what the document says, taking fields over from other managers; returns it as stored.

    Fields that the manager applied before and that the document lacks are removed. A `metadata.resourceVersion` in the
    document is demanded. Raises the `StoreError` tree, `Conflict` among it.
    """
    name = document["metadata"]["name"]
    call = Call(
        method="PATCH",
        path=kind.path(name=name),
        query={"fieldManager": manager, "force": "true"},
        body=msgspec.json.encode(document),
        content_type=_APPLY_PATCH,
        what=f"apply {kind.kind} {name}",
        is_write=True,
    )
    return await _request(server, call, verb="patch", kind=kind)


async def _request(server: ApiServer, call: Call, *, verb: str, kind: Kind[Any]) -> Document:
    host, port = server.credentials.address
    attributes: dict[str, str | int] = {"server.address": host, "server.port": port, "spiderpool.store.kind": kind.kind}
    with observed(verb, kind.plural, requests=Counter(), attributes=attributes) as outcome:
        body = await server.request(call, outcome)
    try:
        document: Document = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        msg = f"{call.what}: {error}"
        raise Invalid(msg) from error
    return document
