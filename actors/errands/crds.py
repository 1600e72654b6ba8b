"""`spiderpool-controller crds`: make the cluster serve Spiderpool's kinds, and take nothing away.

Helm installs the files of a chart's `crds` folder once and never looks at them again, so the chart runs this before
every install and upgrade. It adopts kinds that are there, the original's for example (`api.definitions` says how), by
server-side apply. All definitions are read and merged before the first is written: where one cannot be adopted, none is
touched. NetworkAttachmentDefinition is another group's kind: with `--networks` it is created where it is missing, and
never changed.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import yaml

from actors import program
from actors.errands import errand, networkkind
from actors.errands.errand import CannotBeDone, say
from api.definitions import Document, Merged, Refusal, merge
from api.kinds import CUSTOMRESOURCEDEFINITION as DEFINITION
from api.settings import SettingsError
from runtime.store.apply import apply, read
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import Conflict, StoreError

NAME = "spiderpool-controller crds"
FOLDER = "/usr/lib/spiderpool/crds"
MANAGER = "spiderpool"
"""Who owns the fields, in `metadata.managedFields`."""

_ATTEMPTS = 5
"""At a definition that others write meanwhile."""


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog=NAME, description="Make the cluster serve Spiderpool's kinds.")
    parser.add_argument("--from", dest="folder", type=Path, default=Path(FOLDER), metavar="DIR", help="of YAML files")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="until they must be served")
    parser.add_argument("--networks", action="store_true", help="create the kind NetworkAttachmentDefinition, too")
    given = parser.parse_args(argv)
    try:
        ours = load(given.folder)
    except SettingsError as error:
        program.refuse(NAME, error)
    kubeconfig = program.environment().get("KUBECONFIG", "")

    async def work(store: KubernetesStore) -> None:
        await bring(store, ours, seconds=given.timeout)
        if given.networks:
            await bring_networks(store, seconds=given.timeout)

    return errand.run(NAME, work, kubeconfig=kubeconfig)


def load(folder: Path) -> list[Document]:
    """The definitions of a folder's YAML files. Raises `SettingsError`."""
    try:
        documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        message = f"--from: {folder}: {error}"
        raise SettingsError(message) from None
    ours = [each for each in documents if isinstance(each, dict) and each.get("kind") == DEFINITION.kind]
    if not ours:
        message = f"--from: {folder}: no CustomResourceDefinition in it"
        raise SettingsError(message)
    return ours


async def bring(store: KubernetesStore, ours: Sequence[Document], *, seconds: float) -> None:
    """Apply all and wait until they are served; says a line about each. Raises `CannotBeDone`, `StoreError`."""
    until = anyio.current_time() + seconds
    refusals = []
    for document in ours:
        try:
            await errand.persistently(partial(_merged, store, document), until=until)
        except Refusal as refusal:
            refusals.append(str(refusal))
    if refusals:
        raise CannotBeDone("\n".join([*refusals, "nothing was changed"]))
    for document in ours:
        await errand.persistently(partial(_apply, store, document), until=until)
    for document in ours:
        await _established(store, document["metadata"]["name"], until=until)
    say(f"{len(ours)} kinds are served")


async def bring_networks(store: KubernetesStore, *, seconds: float) -> None:
    """Create the kind of networks where there is none. Raises `CannotBeDone`, `StoreError`."""
    until = anyio.current_time() + seconds
    ours = networkkind.document()
    name = ours["metadata"]["name"]
    there = await errand.persistently(lambda: read(store.server, DEFINITION, name), until=until)
    if there is None:
        await errand.persistently(lambda: apply(store.server, DEFINITION, ours, manager=MANAGER), until=until)
    say(f"{name}: {'created' if there is None else 'already there, left as it is'}")
    await _established(store, name, until=until)


async def _merged(store: KubernetesStore, ours: Document) -> tuple[Document | None, Merged]:
    stored = await read(store.server, DEFINITION, ours["metadata"]["name"])
    return stored, merge(stored, ours)


async def _apply(store: KubernetesStore, ours: Document) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            stored, merged = await _merged(store, ours)
            after = await apply(store.server, DEFINITION, merged.document, manager=MANAGER)
        except Conflict:
            if attempt == _ATTEMPTS:
                raise
        except Refusal as refusal:
            raise CannotBeDone(str(refusal)) from None
        else:
            say(f"{ours['metadata']['name']}: {_outcome(stored, after, merged)}")
            return


def _outcome(stored: Document | None, after: Document, merged: Merged) -> str:
    """What happened, in words."""
    if stored is None:
        return "created"
    parts = ["unchanged" if stored["metadata"].get("generation") == after["metadata"].get("generation") else "changed"]
    fields = stored["metadata"].get("managedFields", ())
    managers = {each.get("manager", "") for each in fields if not each.get("subresource")}
    if MANAGER not in managers and managers:
        parts.append(f"taken over from {', '.join(sorted(managers))}")
    if merged.added:
        parts.append(f"new: {', '.join(merged.added)}")
    if merged.kept:
        parts.append(f"kept, though not of this release: {', '.join(merged.kept)}")
    return "; ".join(parts)


async def _established(store: KubernetesStore, name: str, *, until: float) -> None:
    """Wait until the API server serves the kind. Raises `CannotBeDone` with the server's own words."""
    problem = "no answer"
    while anyio.current_time() < until:
        try:
            found = await store.get(DEFINITION, name)
        except StoreError as error:
            if not isinstance(error, errand.TRANSIENT):
                raise
            problem = str(error)
        else:
            established, names = found.condition("Established"), found.condition("NamesAccepted")
            if established.status == "True" and names.status == "True":
                return
            bad = names if names.status == "False" else established
            problem = f"{bad.type or 'Established'} is {bad.status or 'not known'}: {bad.message or bad.reason}"
        await anyio.sleep(errand.PAUSE / 5)
    msg = f"CustomResourceDefinition {name} is not served in time: {problem}"
    raise CannotBeDone(msg)
