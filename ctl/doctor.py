"""`spiderpoolctl doctor`: whether pools, SpiderEndpoints, pods and the node's journal agree.

What is wrong is looked at twice, a few seconds apart: a pod that comes or goes between two reads is no finding.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from api.kinds import ENDPOINT, IPPOOL, POD, RESERVEDIP
from ctl import diagnosis, journal, output, stores
from ctl.diagnosis import Facts, Finding
from ctl.errors import Misuse
from ctl.output import table
from runtime.store.port import Store

_SETTLE_SECONDS = 5.0
_ROWS = 50


class Report(Struct, frozen=True):
    """What `-o json` prints."""

    pools: int
    records: int
    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.wrong for finding in self.findings)


def run(argv: Sequence[str]) -> int:
    """The verb: 0 when nothing is wrong, 1 when something is. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl doctor",
        description="Check that pools, endpoints, pods and journal agree. Exit code 0: they do; 1: something is wrong.",
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=_SETTLE_SECONDS,
        metavar="SECONDS",
        help="between two looks at what seems wrong; 0: look once (default %(default)g)",
    )
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    if given.settle < 0:
        msg = f"--settle: {given.settle:g}: expected a number of seconds, 0 or more"
        raise Misuse(msg)
    report = asyncio.run(_examine(given.state_dir, given.settle))
    print(output.shown(report, given.output, lambda wide: render(report, wide=wide)), end="")
    return 0 if report.well else 1


async def _examine(state_dir: str, settle: float) -> Report:
    async with stores.opened(state_dir) as store:
        facts = await _facts(store, state_dir)
        findings = diagnosis.diagnose(facts)
        if settle and any(finding.wrong for finding in findings):
            await asyncio.sleep(settle)
            facts = await _facts(store, state_dir)
            findings = diagnosis.lasting(findings, diagnosis.diagnose(facts))
    records = sum(pool.status.allocated_ip_count or 0 for pool in facts.pools)
    return Report(pools=len(facts.pools), records=records, findings=findings)


async def _facts(store: Store, state_dir: str) -> Facts:
    """Records before what explains them: what comes meanwhile has its explanation first."""
    pools = (await store.list(IPPOOL)).items
    reserved = (await store.list(RESERVEDIP)).items
    endpoints = (await store.list(ENDPOINT)).items
    if not state_dir:
        pods = (await store.list(POD)).items
        return Facts(pools=pools, reserved=reserved, endpoints=endpoints, pods=pods)
    entries, problems = await anyio.to_thread.run_sync(journal.read, Path(state_dir))
    return Facts(pools=pools, reserved=reserved, endpoints=endpoints, journal=entries, problems=problems)


def render(report: Report, *, wide: bool) -> str:
    """As text. With `wide` everything that is worth to know, else only how much of it there is."""
    wrong = [finding for finding in report.findings if finding.wrong]
    fine = [finding for finding in report.findings if not finding.wrong]
    shown = report.findings if wide else wrong[:_ROWS]
    parts = [f"{report.pools} pools, {report.records} records"]
    if shown:
        rows = [(f.check if f.wrong else f"({f.check})", f.subject, f.text) for f in shown]
        parts.append(table([("CHECK", "SUBJECT", "FINDING"), *rows]))
    if not wide and len(wrong) > _ROWS:
        parts.append(f"and {len(wrong) - _ROWS} more")
    if fine and not wide:
        counted = ", ".join(f"{count} {check}" for check, count in diagnosis.counts(fine).items())
        parts.append(f"worth to know: {counted} (-o wide shows them)")
    parts.append(f"WRONG: {len(wrong)} findings" if wrong else "All is well.")
    return "\n".join(parts) + "\n"
