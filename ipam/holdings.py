"""Whose records are where in all pools, for whoever looks at them again and again.

The collector looks at every record of the cluster now and then, and in between at those of one pod or one node. Tens of
thousands of decoded ones would be the most that its program holds; so what is kept is the text of each pool, which is
the snapshot's own as long as that shows the same version, and for each record where in the text it begins.
"""

from array import array
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from api.ippool import SpiderIPPool, decode_records
from ipam.garbage import Held
from ipam.index import Index

_texts: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Sheet:
    """The records of one version of a pool, by number in the order of the text."""

    __slots__ = ("_pods", "_starts", "_text", "kept", "nodes", "pool", "version")

    def __init__(self, pool: SpiderIPPool) -> None:
        """One whose status cannot be read has no records for us."""
        self.pool = pool.metadata.name
        self.version = pool.metadata.resource_version
        text = pool.status.allocated_ips or "{}"
        try:
            records = decode_records(text)
        except msgspec.DecodeError:
            text, records = "{}", {}
        entries = [f"{_quoted(key)}:{bytes(raw).decode()}" for key, raw in _texts.decode(text).items()]
        packed = f"{{{','.join(entries)}}}"
        self._text = text if text == packed else packed
        self._starts = array("I", [1])
        self._pods = Index()
        self.nodes: dict[str, array[int]] = {}
        """The records that name a node; those that name none under the empty one."""
        self.kept = array("I")
        for number, (entry, record) in enumerate(zip(entries, records.values(), strict=True)):
            self._starts.append(self._starts[-1] + len(entry) + 1)
            self._pods.add(record.pod, number)
            self.nodes.setdefault(record.node, array("I")).append(number)
            if record.kept:
                self.kept.append(number)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, numbers: Iterable[int]) -> list[Held]:
        """Decode some records, in the order of the text."""
        starts = self._starts
        entries = [self._text[starts[number] : starts[number + 1] - 1] for number in sorted(set(numbers))]
        records = decode_records(f"{{{','.join(entries)}}}")
        return [Held(self.pool, address, record) for address, record in records.items()]

    def of_pods(self, pods: Collection[str]) -> list[Held]:
        """The records of pods, by `namespace/name`."""
        numbers = [number for pod in pods for number in self._pods.of(pod)]
        return [held for held in self.read(numbers) if held.record.pod in pods] if numbers else []


class Holdings:
    """The records of all pools, as last looked at. A pool is read again only when it has changed."""

    def __init__(self) -> None:
        self._pools: dict[str, _Sheet] = {}

    def __repr__(self) -> str:
        return f"<Holdings {sum(map(len, self._pools.values()))} records>"

    def outdated(self, pools: Mapping[str, SpiderIPPool]) -> list[SpiderIPPool]:
        """Let go of pools that are not there any more; returns those to `take`."""
        self._pools = {name: known for name, known in self._pools.items() if name in pools}
        return [
            pool
            for name, pool in pools.items()
            if name not in self._pools or self._pools[name].version != pool.metadata.resource_version
        ]

    def take(self, pool: SpiderIPPool) -> None:
        """Read a pool."""
        self._pools[pool.metadata.name] = _Sheet(pool)

    def of_pods(self, pods: Collection[str]) -> list[Held]:
        """The records of pods, by `namespace/name`. Costs what they are, and a look at each pool."""
        return [held for sheet in self._pools.values() for held in sheet.of_pods(pods)] if pods else []

    def on_nodes(self, nodes: Collection[str]) -> list[Held]:
        """The records that name one of these nodes."""
        return [
            held
            for sheet in self._pools.values()
            for held in sheet.read(number for node in nodes for number in sheet.nodes.get(node, ()))
        ]

    def kept(self) -> list[Held]:
        """The records that wait for the next pod of their name."""
        return [held for sheet in self._pools.values() for held in sheet.read(sheet.kept)]

    def of(self, pool: str) -> list[Held]:
        """All records of a pool."""
        sheet = self._pools.get(pool)
        return sheet.read(range(len(sheet))) if sheet is not None else []

    def pools(self) -> list[str]:
        """The pools that were taken."""
        return list(self._pools)

    def has(self, held: Held) -> bool:
        """Whether a record is still as it was."""
        sheet = self._pools.get(held.pool)
        return sheet is not None and held in sheet.of_pods({held.record.pod})

    def nodes(self) -> set[str]:
        """All nodes that have records."""
        return {node for sheet in self._pools.values() for node in sheet.nodes} - {""}

    def clear(self) -> None:
        """Know nothing."""
        self._pools.clear()


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
