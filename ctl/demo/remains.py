"""What there is of a pod in all the places where there may be something: kernel, pools, endpoints, journal."""

from pathlib import Path

from msgspec import Struct

from api.ippool import decode_records
from api.kinds import ENDPOINT, IPPOOL
from ctl.demo.segment import Segment
from runtime.store.sqlite import FILE_NAME, SQLiteStore


class Remains(Struct, frozen=True):
    """Counts."""

    links: int
    """In the namespaces of node and pods, besides those that were there before."""
    records: int
    """In the pools' status."""
    endpoints: int
    """SpiderEndpoints."""
    journal: int
    """Entries of the node's journal."""

    def __bool__(self) -> bool:
        return any((self.links, self.records, self.endpoints, self.journal))

    def __str__(self) -> str:
        return (
            f"links {self.links}, records in the pools {self.records}, "
            f"SpiderEndpoints {self.endpoints}, journal entries {self.journal}"
        )


async def look(segment: Segment, state: Path, before: dict[str, set[str]]) -> Remains:
    """Count now. `before` has the links of each namespace from before the pods."""
    store = SQLiteStore(state / FILE_NAME)
    try:
        pools = (await store.list(IPPOOL)).items
        endpoints = (await store.list(ENDPOINT)).items
    finally:
        await store.aclose()
    return Remains(
        links=sum(len(segment.links(name) - known) for name, known in before.items()),
        records=sum(len(decode_records(pool.status.allocated_ips)) for pool in pools),
        endpoints=len(endpoints),
        journal=sum(1 for _ in (state / "journal").glob("*.json")),
    )
