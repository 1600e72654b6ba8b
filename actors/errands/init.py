"""The program `spiderpool-init`: creates the objects that a new cluster starts with, once, and ends.

The chart runs it after every install and upgrade. It waits until a controller replica is ready, and creates what is not
there. What is there is the user's: it stays as it is, and the log says where it differs from the chart's values.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from actors import program
from actors.errands import errand
from actors.errands.errand import CannotBeDone, say
from actors.errands.initial import Initial, Wanted, load
from api.configfile import SettingsError
from api.core import SERVICE_LABEL, EndpointSlice
from api.kinds import ENDPOINTSLICE, Kind
from runtime.store.port import AlreadyExists, NotFound, Store

NAME = "spiderpool-init"


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """The program."""
    given = program.environment() if environ is None else environ
    parser = argparse.ArgumentParser(prog=NAME, description="Create the objects that a new cluster starts with.")
    parser.add_argument("--version", action="version", version=f"{NAME} {program.VERSION}")
    parser.add_argument(
        "--timeout", type=float, default=240.0, metavar="SECONDS", help="for a controller replica to be ready"
    )
    flags = parser.parse_args(argv)
    try:
        initial = load(given)
    except SettingsError as error:
        program.refuse(NAME, error)
    return errand.run(
        NAME, lambda store: create(store, initial, seconds=flags.timeout), kubeconfig=given.get("KUBECONFIG", "")
    )


async def create(store: Store, initial: Initial, *, seconds: float) -> None:
    """Wait for the controller, then create what is not there. Raises `CannotBeDone`, `StoreError`."""
    until = anyio.current_time() + seconds
    await _controller_ready(store, initial, until=until)
    for wanted in initial.objects:
        say(f"{wanted}: {await errand.persistently(partial(_created, store, wanted), until=until)}")
    if not initial.objects:
        say("nothing to create")


async def _controller_ready(store: Store, initial: Initial, *, until: float) -> None:
    """Wait for a ready replica. Raises `CannotBeDone`, which says what was seen last."""
    told = ""
    while True:
        listing = await errand.persistently(
            lambda: store.list(ENDPOINTSLICE, namespace=initial.namespace, labels={SERVICE_LABEL: initial.controller}),
            until=until,
        )
        seen = readiness(listing.items)
        if not seen:
            return
        text = f"no replica of {initial.controller} in namespace {initial.namespace} is ready: {seen}"
        if anyio.current_time() + errand.PAUSE > until:
            raise CannotBeDone(text)
        if text != told:
            say(f"waiting: {text}")
            told = text
        await anyio.sleep(errand.PAUSE)


def readiness(slices: Sequence[EndpointSlice]) -> str:
    """Why nobody is behind a Service, in words; empty when somebody is."""
    endpoints = [endpoint for item in slices for endpoint in item.endpoints or ()]
    if any(endpoint.conditions.ready is not False for endpoint in endpoints):
        return ""
    if endpoints:
        return f"its Service has {len(endpoints)} endpoint(s), none of them ready"
    return "its Service has no endpoints" if slices else "its Service has no EndpointSlice"


async def _created(store: Store, wanted: Wanted) -> str:
    """Create one object; says what happened. An answer that was lost on the way counts as somebody else's creation."""
    if wanted.unless is not None and await _is_there(store, wanted.unless, wanted):
        return f"there is a {wanted.unless.kind} of this name already; {wanted.kind.kind} is not needed"
    try:
        await store.create(wanted.kind, wanted.item)
    except AlreadyExists:
        try:
            found = await store.get(wanted.kind, wanted.name, namespace=wanted.namespace)
        except NotFound:
            return await _created(store, wanted)
        other = differing(found.spec, wanted.item.spec)
        return f"already there, left as it is{'; not as the values say: ' + ', '.join(other) if other else ''}"
    return "created"


async def _is_there(store: Store, kind: Kind[Any], wanted: Wanted) -> bool:
    try:
        await store.get(kind, wanted.name, namespace=wanted.namespace)
    except NotFound:
        return False
    return True


def differing(found: Struct, wanted: Struct) -> list[str]:
    """The fields of a spec that are wanted and have another value, as ``spec.gateway (10.6.0.1, values 10.6.0.2)``."""
    return [
        f"spec.{field.encode_name} ({_shown(seen)}, values {_shown(value)})"
        for field in msgspec.structs.fields(wanted)
        if (value := getattr(wanted, field.name)) not in (None, []) and (seen := getattr(found, field.name)) != value
    ]


def _shown(value: object) -> str:
    return "absent" if value in (None, []) else msgspec.json.encode(value).decode()
