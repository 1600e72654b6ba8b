"""Tells the actor of definitions which SpiderMultusConfigs to look at: those that changed, or whose definition did.

Follows the snapshots of both kinds and the replicas that are there; what is this replica's own comes from the
rendezvous hash over the object's name. What the snapshots show to be as it should be costs no request.
"""

import logging
from collections.abc import Callable
from typing import Any

import anyio

from actors.attachments.attachments import Look, Message
from actors.attachments.steps import Leave, is_multusconfig, step
from admission.multusconfig import completed_spec, problems
from api.attachments import attachment, attachment_name
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from runtime.actor import Ref
from runtime.errors import ActorError
from runtime.store.port import Expired
from runtime.store.reflector import Reflector
from runtime.store.snapshot import Snapshot, key_of

_log = logging.getLogger(__name__)

_OWNERSHIP_SECONDS = 2.0
"""Between two looks at who owns what."""


def config_key(key: str) -> str:
    """What the owner of a SpiderMultusConfig ``namespace/name`` is found by."""
    return f"multusconfig/{key}"


class Following:
    """See the module. `run` does the work, in whatever task the owner gives it."""

    def __init__(
        self,
        configs: Reflector[SpiderMultusConfig],
        attachments: Reflector[NetworkAttachmentDefinition],
        *,
        mine: Callable[[str], bool],
    ) -> None:
        """`mine` tells whether a key, as `config_key` makes them, is this replica's."""
        self._configs = configs
        self._attachments = attachments
        self._mine = mine
        self._owned: set[str] = set()
        self._revisions = (0, 0)
        self._left: set[str] = set()
        """Keys that could not be told."""

    def __repr__(self) -> str:
        return f"<Following {len(self._owned)} SpiderMultusConfigs>"

    def former(self, namespace: str, uid: str) -> tuple[str, ...]:
        """The names of the definitions in a namespace that an object owns, as last seen."""
        return tuple(
            one.metadata.name
            for one in self._attachments.snapshot.values()
            if one.metadata.namespace == namespace and _owner_uid(one) == uid
        )

    def owns(self, key: str) -> bool:
        """Whether an object is this replica's now."""
        return self._mine(config_key(key))

    def begin(self) -> None:
        """The actor knows of nothing: everything that is not as it should be is told again."""
        self._owned = set()

    async def run(self, ref: Ref[Message]) -> None:
        """Follow until cancelled."""
        await self._configs.synced()
        await self._attachments.answered()
        while True:
            keys = tuple(sorted(self._due()))
            if keys:
                try:
                    ref.tell(Look(keys))
                except ActorError as error:
                    _log.warning("%d SpiderMultusConfigs are looked at later: %s", len(keys), error)
                    self._left |= set(keys)
            with anyio.move_on_after(_OWNERSHIP_SECONDS):
                await self._changed()

    def _due(self) -> set[str]:
        """Those of ours that may not be as they should."""
        configs = self._configs.snapshot
        owned = {key for key in configs.objects if self._mine(config_key(key))}
        asked = self._left | (owned - self._owned)
        self._left, self._owned = set(), owned
        asked |= self._concerned()
        found: dict[str, list[NetworkAttachmentDefinition]] = {}
        if asked:
            for one in self._attachments.snapshot.values():
                found.setdefault(_owner_uid(one), []).append(one)
        return {key for key in asked & owned if not self._settled(configs.objects[key], found)}

    def _settled(self, config: SpiderMultusConfig, found: dict[str, list[NetworkAttachmentDefinition]]) -> bool:
        """Whether it is as it should be, by what was last seen."""
        if not self._attachments.is_synced or problems(config):
            return False
        wanted = attachment(SpiderMultusConfig(metadata=config.metadata, spec=completed_spec(config.spec)))
        meta = wanted.metadata
        seen = self._attachments.snapshot.get(meta.name, namespace=meta.namespace)
        own = found.get(config.metadata.uid, ())
        return isinstance(step(wanted, seen), Leave) and [one.metadata.name for one in own] == [meta.name]

    def _concerned(self) -> set[str]:
        """Keys of objects that what has changed since the last time is about."""
        configs, attachments = self._configs.snapshot, self._attachments.snapshot
        since, self._revisions = self._revisions, (configs.revision, attachments.revision)
        try:
            changed, _ = configs.changes(since[0])
            definitions, _ = attachments.changes(since[1])
        except Expired:
            return set(configs.objects)
        keys = {change.key for change in changed}
        names = {change.key for change in definitions}
        # A name that somebody has given up may be what another one waits for.
        gone = (change.last for change in changed if change.object is None)
        names |= {_definition_key(config) for config in gone if config is not None}
        for definition in (change.object or change.last for change in definitions):
            owner = definition.metadata.controller if definition is not None else None
            if definition is not None and owner is not None and is_multusconfig(owner):
                keys.add(key_of(owner.name, definition.metadata.namespace))
        if names:
            keys |= {key for key, config in configs.objects.items() if _definition_key(config) in names}
        return keys

    async def _changed(self) -> None:
        async def wait(snapshot: Snapshot[Any], since: int) -> None:
            await snapshot.wait(since)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(wait, self._configs.snapshot, self._revisions[0])
            group.start_soon(wait, self._attachments.snapshot, self._revisions[1])


def _owner_uid(item: NetworkAttachmentDefinition) -> str:
    owner = item.metadata.controller
    return owner.uid if owner is not None else ""


def _definition_key(config: SpiderMultusConfig) -> str:
    return key_of(attachment_name(config), config.metadata.namespace)
