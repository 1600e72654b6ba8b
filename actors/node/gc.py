"""The CNI verb GC: which interfaces of a network the runtime does not list any more, as DELs. Pure."""

from collections.abc import Iterable

import msgspec

from cni.errors import InvalidConfig
from cni.journal import COORDINATOR, NETWORKS, JournalEntry, State
from cni.protocol import Invocation, PodArgs, Verb

_ORDER = (NETWORKS, COORDINATOR)
"""What a meta plugin attached goes as a whole, so that goes first; then as in a list of plugins, the last one first."""


def stale(entries: Iterable[JournalEntry], invocation: Invocation) -> list[tuple[JournalEntry, Invocation]]:
    """What is to go, in an order in which it can, each with the DEL that takes it away.

    Raises:
        InvalidConfig: the call does not say which attachments are valid.
    """
    valid = invocation.conf.valid_attachments
    if valid is None:
        msg = "cni.dev/valid-attachments: missing from the network configuration, GC needs it"
        raise InvalidConfig(msg)
    keep = {(attachment.container_id, attachment.ifname) for attachment in valid}
    found = [
        entry
        for entry in entries
        if entry.network == invocation.conf.name
        and entry.state is not State.RELEASING
        and (entry.container_id, entry.head or entry.ifname) not in keep
    ]
    found.sort(key=lambda entry: _ORDER.index(entry.part) if entry.part in _ORDER else len(_ORDER))
    return [(entry, _del(entry, invocation)) for entry in found]


def _del(entry: JournalEntry, invocation: Invocation) -> Invocation:
    return msgspec.structs.replace(
        invocation,
        verb=Verb.DEL,
        container_id=entry.container_id,
        ifname=entry.ifname,
        netns=entry.netns,
        role=entry.role,
        args=PodArgs(namespace=entry.pod.namespace, name=entry.pod.name, uid=entry.pod.uid),
    )
