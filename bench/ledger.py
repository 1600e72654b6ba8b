"""What the rules cost without any I/O: an address, a claim, a release, reading and writing a pool's table.

    python -m bench.ledger
    python -m bench.ledger --records 1000

Figures, no verdicts. Every row is the best of several runs: the rules do not wait for anything, so what is above the
best is the machine's other work. The machine's cores and the date stand beside the table.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from msgspec import structs

from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from ipam.addresses import FreeAddresses, format_address
from ipam.ledger import Ledger
from ipam.operations import Claim, Surrender
from ipam.ranges import Ranges, parse_ranges

RUNS = 5
HOLES = 10_000
"""Excluded addresses of the pool with holes, every other one, so that none of them merge."""


def main() -> int:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000, help="records in the pool (default 4000)")
    records = parser.parse_args().records
    stamp = f"{os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(f"rules of one pool, {records} records, best of {RUNS} runs ({stamp})")
    print(f"{'':34}{'us/address':>12}{'us/claim':>10}{'us/release':>12}{'load ms':>9}{'status ms':>11}{'table kB':>10}")
    base = 10 << 24
    holes = [format_address(base + 2 * at + 1, 4) for at in range(HOLES)]
    for name, pool in (
        ("10.0.0.0/16", _pool("10.0.0.0/16", "10.0.0.0-10.0.255.255")),
        ("10.0.0.0/8", _pool("10.0.0.0/8", "10.0.0.0-10.255.255.255")),
        (f"10.0.0.0/8, {HOLES} exclusions", _pool("10.0.0.0/8", "10.0.0.0-10.255.255.255", exclude=holes)),
        ("fd00::/64", _pool("fd00::/64", "fd00::-fd00::ffff:ffff:ffff:ffff")),
    ):
        _row(name, pool, records)
    _sizes()
    return 0


def _sizes() -> None:
    """How big a pool of 5,000 records is, by how long the names in it are; goal: below 1,200 kB."""
    print(f"\n{'5,000 records':34}{'pod':>12}{'node':>10}{'granted':>12}{'object kB':>11}")
    for name, pod, node in (
        ("short names", "shop/web-12345", "n1"),
        ("long names", "payments-production/checkout-frontend-6d4cf56db6-x7k2p", "worker-17.rack-3.example.internal"),
        ("as long as a label may be", f"{'n' * 63}/{'p' * 63}", "w" * 63),
    ):
        ledger = Ledger(_pool("10.0.0.0/16", "10.0.0.0-10.0.255.255"), Ranges(4), max_records=5000, cooldown=30)
        ledger.apply(
            [Claim(pod=pod, uid=f"{at:036}", nic="eth0", node=node, cid=f"{at:012x}") for at in range(5000)], now=1.8e9
        )
        encoded = len(msgspec.json.encode(structs.replace(ledger.pool, status=ledger.status())))
        print(f"{name:34}{len(pod):12}{len(node):10}{len(ledger.records):12}{encoded / 1e3:11.0f}")


def _pool(subnet: str, ips: str, *, exclude: list[str] | None = None) -> SpiderIPPool:
    return SpiderIPPool(
        metadata=ObjectMeta(name="bench"), spec=IPPoolSpec(subnet=subnet, ips=[ips], exclude_ips=exclude or [])
    )


def _row(name: str, pool: SpiderIPPool, records: int) -> None:
    reserved = Ranges(6 if ":" in pool.spec.subnet else 4)
    claims = [
        Claim(
            pod=f"shop/web-{at}", uid=f"{at:08x}-1111-2222-3333-444455556666", nic="eth0", node="n1", cid=f"{at:012x}"
        )
        for at in range(records)
    ]
    surrenders = [Surrender(uid=claim.uid, nic=claim.nic, cid=claim.cid) for claim in claims]
    version = reserved.version
    spans = (
        parse_ranges(pool.spec.ips or (), version).difference(parse_ranges(pool.spec.exclude_ips or (), version)).spans
    )

    def addresses() -> float:
        taken: set[int] = set()
        free = FreeAddresses(spans, taken)

        def fill() -> None:
            for _ in range(records):
                address = free.lowest()
                assert address is not None
                taken.add(address)

        return _seconds(fill)

    def operations(batch: list[Claim] | list[Surrender], status: SpiderIPPool) -> float:
        ledger = _load(status, reserved)
        return _seconds(lambda: ledger.apply(batch, now=1.8e9))

    full = _load(pool, reserved)
    full.apply(claims)
    table = full.status()
    written = structs.replace(pool, status=table)
    print(
        f"{name:34}"
        f"{_best(addresses) / records * 1e6:12.2f}"
        f"{_best(lambda: operations(claims, pool)) / records * 1e6:10.2f}"
        f"{_best(lambda: operations(surrenders, written)) / records * 1e6:12.2f}"
        f"{_best(lambda: _seconds(lambda: _load(written, reserved))) * 1e3:9.1f}"
        f"{_best(lambda: _seconds(full.status)) * 1e3:11.1f}"
        f"{len(table.allocated_ips or '') / 1e3:10.0f}"
    )


def _load(pool: SpiderIPPool, reserved: Ranges) -> Ledger:
    return Ledger(pool, reserved, max_records=1_000_000, cooldown=30)


def _best(run: Callable[[], float]) -> float:
    return min(run() for _ in range(RUNS))


def _seconds(work: Callable[[], object]) -> float:
    gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
