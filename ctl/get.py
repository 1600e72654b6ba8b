"""`spiderpoolctl get pools`: the pools of a store as a table, and who holds which address."""

import argparse
import asyncio
from collections.abc import Iterable, Sequence

from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from ctl import stores
from ctl.errors import Failure
from ipam.addresses import format_address
from ipam.ledger import Ledger, LedgerError
from ipam.ranges import Ranges
from runtime.store.port import Store

_MAX_RECORDS = 1 << 20
"""More than any pool has: nothing is granted here."""


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl get", description="Show pools with their counts, and the addresses in use."
    )
    parser.add_argument("what", choices=["pools"], help="pools: the SpiderIPPools")
    parser.add_argument("name", nargs="*", metavar="NAME", help="only these")
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    print(render(asyncio.run(_pools(given.state_dir, given.name))), end="")
    return 0


async def _pools(state_dir: str, names: Sequence[str]) -> list[SpiderIPPool]:
    async with stores.opened(state_dir) as store:
        pools = await _listed(store)
    missing = sorted(set(names) - set(pools))
    if missing:
        msg = f"no SpiderIPPool is named {', '.join(missing)}"
        raise Failure(msg)
    return [pool for name, pool in sorted(pools.items()) if not names or name in names]


async def _listed(store: Store) -> dict[str, SpiderIPPool]:
    return {pool.metadata.name: pool for pool in (await store.list(IPPOOL)).items}


def render(pools: Sequence[SpiderIPPool]) -> str:
    """The tables as text. A pool whose object cannot be read shows what is wrong with it instead of its counts."""
    if not pools:
        return "no pools\n"
    rows = [("NAME", "VERSION", "SUBNET", "ALLOCATED", "TOTAL", "DEFAULT", "DISABLE")]
    records = [("POOL", "ADDRESS", "POD", "NIC", "NODE", "CONTAINER", "POD-UID")]
    problems: list[str] = []
    for pool in pools:
        name, spec = pool.metadata.name, pool.spec
        flags = (str(spec.default).lower(), str(spec.disable).lower())
        version = spec.ip_version or (6 if ":" in spec.subnet else 4)
        try:
            ledger = Ledger.load(pool, Ranges(version), _MAX_RECORDS)
        except LedgerError as error:
            rows.append((name, str(version), spec.subnet, "?", "?", *flags))
            problems.append(str(error))
            continue
        status = ledger.status()
        counts = (str(status.allocated_ip_count or 0), str(status.total_ip_count or 0))
        rows.append((name, str(version), spec.subnet, *counts, *flags))
        records += [
            (name, format_address(ip, ledger.version), held.pod, held.nic, held.node, held.cid, held.pod_uid)
            for ip, held in sorted(ledger.records.items())
        ]
    parts = [table(rows), *(["", table(records)] if len(records) > 1 else []), *problems]
    return "\n".join(parts) + "\n"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as columns, the first row their heads; an empty cell is a dash."""
    cells = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)
