"""`spiderpool-controller clean`: take Spiderpool off the nodes before its programs go. The chart's pre-delete hook.

Each agent is asked to withdraw by an annotation on its own pod, and says by an event on that pod what it removed, what
it left and why. Running pods keep their links and addresses. SpiderIPPools and all the other objects say who has which
address: they, and the kinds themselves, go only with ``--remove-objects``.

It never holds an uninstall up for ever: what has not been done in time is printed as what is left, and that is still
exit code 0. Code 1 says that the API server could not be asked at all.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from msgspec import Struct

from actors import program
from actors.errands import errand
from actors.errands.errand import say
from api import kinds
from api.configfile import SettingsError
from api.core import Event, Pod
from api.kinds import Kind
from api.meta import FINALIZER, ObjectMeta
from api.retirement import LEFT, RETIRE, WITHDRAWN
from ipam.departure import others
from runtime.store.port import Conflict, NotFound, Store, StoreError

NAME = "spiderpool-controller clean"
_COMPONENT = "app.kubernetes.io/component"
_OBJECTS: tuple[Kind[Any], ...] = (
    kinds.ENDPOINT,
    kinds.IPPOOL,
    kinds.SUBNET,
    kinds.RESERVEDIP,
    kinds.MULTUSCONFIG,
    kinds.COORDINATOR,
)
"""In the order they go: whoever depends before that on which it depends."""

_WEBHOOKS: tuple[Kind[Any], ...] = (kinds.VALIDATINGWEBHOOK, kinds.MUTATINGWEBHOOK)


class Task(Struct, frozen=True, kw_only=True):
    """What is asked for."""

    namespace: str
    """Of the release."""
    agent: str
    """Name of the DaemonSet, the component label of its pods."""
    controller: str
    """Name of the webhook configurations."""
    remove_objects: bool = False
    finalizers: bool = False
    """Only take the finalizers off."""
    dry_run: bool = False
    seconds: float = 60.0
    """For the agents to answer; and again for objects to go."""


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """The command."""
    given = program.environment() if environ is None else environ
    parser = argparse.ArgumentParser(prog=NAME, description="Take Spiderpool off the nodes before its programs go.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--remove-objects", action="store_true", help="also pools, endpoints ... and their kinds")
    what.add_argument("--finalizers", action="store_true", help="only let go of pools, endpoints ..., which stay")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for the agents to answer")
    flags = parser.parse_args(argv)
    namespace = given.get("SPIDERPOOL_POD_NAMESPACE", "")
    if not namespace:
        program.refuse(NAME, SettingsError("SPIDERPOOL_POD_NAMESPACE is missing: the namespace of the release"))
    task = Task(
        namespace=namespace,
        agent=given.get("SPIDERPOOL_AGENT_NAME") or "spiderpool-agent",
        controller=given.get("SPIDERPOOL_CONTROLLER_NAME") or "spiderpool-controller",
        remove_objects=flags.remove_objects,
        finalizers=flags.finalizers,
        dry_run=flags.dry_run,
        seconds=flags.timeout,
    )
    return errand.run(NAME, lambda store: clean(store, task), kubeconfig=given.get("KUBECONFIG", ""))


async def clean(store: Store, task: Task) -> None:
    """Do it, and say a line about everything. Raises `StoreError` when not even the pods can be listed."""
    if task.finalizers:
        await _let_go(store, task)
        return
    for kind in _WEBHOOKS:  # first: who answers for them is about to go, and nothing could be written any more
        await _remove(store, kind, task.controller, dry_run=task.dry_run)
    await retire_agents(store, task)
    if task.remove_objects:
        await _remove_objects(store, task)
    else:
        await _say_what_stays(store)


# ---------------------------------------------------------------- nodes


async def retire_agents(store: Store, task: Task) -> None:
    """Ask every agent to withdraw and wait for its answer. Raises `StoreError` when pods cannot be listed."""
    until = anyio.current_time() + task.seconds
    listed = await errand.persistently(
        lambda: store.list(kinds.POD, namespace=task.namespace, labels={_COMPONENT: task.agent}), until=until
    )
    asked: dict[str, Pod] = {}
    silent: dict[str, str] = {}
    for pod in sorted(listed.items, key=lambda pod: pod.spec.node_name):
        if pod.status.phase != "Running":
            silent[pod.spec.node_name] = f"its agent {pod.metadata.name} is {pod.phase_text}"
        elif task.dry_run:
            say(f"node {pod.spec.node_name}: would ask {pod.metadata.name} to withdraw")
        else:
            problem = await _ask(store, pod, until)
            if problem:
                silent[pod.spec.node_name] = problem
            else:
                asked[pod.metadata.uid] = pod
    for uid, answer in (await _answers(store, task.namespace, set(asked), until=until)).items():
        pod = asked.pop(uid)
        silent.pop(pod.spec.node_name, None)
        word = "withdrawn" if answer.reason == WITHDRAWN else "something is left"
        say(f"node {pod.spec.node_name}: {word}: {answer.message}")
    for pod in asked.values():
        silent[pod.spec.node_name] = f"its agent {pod.metadata.name} has not answered within {task.seconds:g} s"
    seen = {pod.spec.node_name for pod in listed.items}
    for name in await _nodes(store, until=until):
        if name not in seen:
            silent[name] = "no agent runs there"
    for node, reason in sorted(silent.items()):
        say(
            f"node {node or '(none yet)'}: left as it is: {reason}. Where Spiderpool was at work, remove by hand "
            "00-spiderpool.conflist from its CNI configuration folder and spiderpool from its CNI program folder"
        )


async def _ask(store: Store, pod: Pod, until: float) -> str:
    """Set the annotation; returns why that was not possible, or nothing."""
    change = {"metadata": {"annotations": {RETIRE: "true"}}}
    request = partial(
        store.patch, kinds.POD, pod.metadata.name, change, namespace=pod.metadata.namespace, uid=pod.metadata.uid
    )
    try:
        await errand.persistently(request, until=until)
    except StoreError as error:
        return f"its agent {pod.metadata.name} could not be asked: {error}"
    return ""


async def _answers(store: Store, namespace: str, uids: set[str], *, until: float) -> dict[str, Event]:
    """The events by which agents answer, by their pod's uid, until all have or the time is over."""
    answers: dict[str, Event] = {}
    while uids - answers.keys():
        try:
            events = await store.list(kinds.EVENT, namespace=namespace)
        except StoreError as error:
            say(f"events cannot be read: {error}")
        else:
            for event in events.items:
                if event.reason in {WITHDRAWN, LEFT} and event.involved_object.uid in uids:
                    answers[event.involved_object.uid] = event
        if anyio.current_time() + errand.PAUSE > until:
            break
        if uids - answers.keys():
            await anyio.sleep(errand.PAUSE)
    return answers


async def _nodes(store: Store, *, until: float) -> list[str]:
    try:
        listed = await errand.persistently(lambda: store.list(kinds.NODE), until=until)
    except StoreError as error:
        say(f"nodes cannot be listed, those without an agent are not known: {error}")
        return []
    return sorted(node.metadata.name for node in listed.items)


# ---------------------------------------------------------------- objects


async def _remove(store: Store, kind: Kind[Any], name: str, *, dry_run: bool) -> None:
    """Delete one object if it is there, and say so."""
    try:
        if dry_run:
            await store.get(kind, name)
        else:
            await store.delete(kind, name)
    except NotFound:
        return
    except StoreError as error:
        say(f"{kind.kind} {name}: left: {error}")
        return
    say(f"{kind.kind} {name}: {'would be removed' if dry_run else 'removed'}")


async def _remove_objects(store: Store, task: Task) -> None:
    """Delete every object of ours, then the kinds; finalizers first, for nobody is left who would take them off."""
    if task.dry_run:
        for line in [line for kind in _OBJECTS for line in await _would_go(store, kind)]:
            say(line)
        return
    until = anyio.current_time() + task.seconds
    for kind in _OBJECTS:
        say(f"{kind.kind}: {await _remove_all(store, kind, until=until)} removed")
    for kind in _OBJECTS:
        await _remove(store, kinds.CUSTOMRESOURCEDEFINITION, f"{kind.plural}.{kind.group}", dry_run=False)
    for kind in _OBJECTS:
        await _kind_gone(store, kind, until=until)


async def _would_go(store: Store, kind: Kind[Any]) -> list[str]:
    """A line for each object, with how much of it is in use, and one for the kind."""
    try:
        listed = await store.list(kind)
    except NotFound:
        return []
    except StoreError as error:
        return [f"{kind.kind}: cannot be listed: {error}"]
    lines = []
    for item in sorted(listed.items, key=lambda item: (item.metadata.namespace, item.metadata.name)):
        meta = item.metadata
        where = f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
        in_use = getattr(getattr(item, "status", None), "allocated_ip_count", None)
        lines.append(f"{kind.kind} {where}: would be removed" + (f", with {in_use} addresses in use" if in_use else ""))
    # Seen by its objects: whoever may list these need not have the right to read the definition.
    return [*lines, f"CustomResourceDefinition {kind.plural}.{kind.group}: would be removed"]


async def _remove_all(store: Store, kind: Kind[Any], *, until: float) -> int:
    """Delete all objects of a kind, again while others make new ones; returns how many."""
    removed: set[str] = set()
    while True:
        try:
            listed = await store.list(kind)
            if not listed.items:
                return len(removed)
            for item in listed.items:
                removed.add(item.metadata.uid)
                await _remove_one(store, kind, item.metadata.name, item.metadata.namespace, item.metadata.finalizers)
        except NotFound:
            return len(removed)
        except StoreError as error:
            if anyio.current_time() > until:
                say(f"{kind.kind}: some are left: {error}")
                return len(removed)
        if anyio.current_time() > until:
            say(f"{kind.kind}: some are left: others make them as fast as they go")
            return len(removed)
        await anyio.sleep(errand.PAUSE / 10)


async def _remove_one(store: Store, kind: Kind[Any], name: str, namespace: str, finalizers: Sequence[str]) -> None:
    try:
        if finalizers:
            await store.patch(kind, name, {"metadata": {"finalizers": None}}, namespace=namespace)
        await store.delete(kind, name, namespace=namespace)
    except NotFound:
        pass


async def _kind_gone(store: Store, kind: Kind[Any], *, until: float) -> None:
    """Wait until the API server has forgotten the kind; objects that got a finalizer meanwhile lose it."""
    name = f"{kind.plural}.{kind.group}"
    problem = "its objects are still being removed"
    while anyio.current_time() < until:
        try:
            await store.get(kinds.CUSTOMRESOURCEDEFINITION, name)
            for item in (await store.list(kind)).items:
                await _remove_one(store, kind, item.metadata.name, item.metadata.namespace, item.metadata.finalizers)
        except NotFound:
            return
        except StoreError as error:
            problem = str(error)
        await anyio.sleep(errand.PAUSE / 5)
    say(f"CustomResourceDefinition {name}: not gone yet: {problem}")


async def _say_what_stays(store: Store) -> None:
    counts = []
    for kind in _OBJECTS:
        try:
            counts.append(f"{len((await store.list(kind)).items)} {kind.plural}")
        except NotFound:
            counts.append(f"no {kind.plural}")
        except StoreError as error:
            counts.append(f"{kind.plural} (not counted: {error})")
    say(f"left in the cluster: {', '.join(counts)}. A new installation goes on with them")


async def _let_go(store: Store, task: Task) -> None:
    """Take our finalizer off everything that has it."""
    until = anyio.current_time() + task.seconds
    for kind in _OBJECTS:
        try:
            listed = await errand.persistently(partial(store.list, kind), until=until)
        except NotFound:
            continue
        except StoreError as error:
            say(f"{kind.kind}: cannot be listed, deleting them may never end: {error}")
            continue
        held = [item.metadata for item in listed.items if FINALIZER in item.metadata.finalizers]
        for meta in () if task.dry_run else held:
            await _release(store, kind, meta, until=until)
        if held:
            say(f"{kind.kind}: {len(held)} {'would be let go' if task.dry_run else 'let go'}")


async def _release(store: Store, kind: Kind[Any], meta: ObjectMeta, *, until: float) -> None:
    """Take our finalizer off one object; others' stay, those that come meanwhile too."""

    async def attempt() -> None:
        seen = meta
        while FINALIZER in seen.finalizers and seen.uid == meta.uid:
            change = {"metadata": {"finalizers": others(seen)}}
            version = seen.resource_version
            try:
                await store.patch(kind, seen.name, change, namespace=seen.namespace, resource_version=version)
            except Conflict:
                if anyio.current_time() > until:
                    raise
                seen = (await store.get(kind, seen.name, namespace=seen.namespace)).metadata
            else:
                return

    try:
        await errand.persistently(attempt, until=until)
    except NotFound:
        pass
    except StoreError as error:
        say(f"{kind.kind} {meta.name}: has our finalizer still, and deleting it never ends: {error}")
