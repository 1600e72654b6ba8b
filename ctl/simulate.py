"""`spiderpoolctl simulate`: what an installation of some size would write, and how long its pods would wait.

Needs no cluster and touches none. Exit code 1 when the audit at the end finds anything.
"""

import argparse
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self, TextIO

from ctl import output
from ctl.errors import Misuse
from ctl.output import table
from simulation.audit import counts
from simulation.plan import Plan, PlanError
from simulation.report import Percentiles, Report
from simulation.world import simulate

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SIZES: Final = {"k": 1e3, "M": 1e6, "G": 1e9}
_ROWS: Final = 20
"""Findings that the table shows."""
_BAR: Final = 30


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`."""
    given = _parser().parse_args(argv)
    plan = _plan(given)
    with _in_quiet(), Bar(plan.pods, sys.stderr) as bar:
        report = simulate(plan, progress=bar.show, real=time.perf_counter)
    print(output.shown(report, given.output, lambda wide: render(report, wide=wide)), end="")
    return 0 if report.well else 1


@contextmanager
def _in_quiet() -> Iterator[None]:
    """Without the controllers' logs, for what they say is counted in the report; and without looks for cycles.

    They find nothing here, and each walks over all pods: a sixth of the time of a big world.
    """
    collecting, level = gc.isenabled(), logging.root.manager.disable
    logging.disable(logging.ERROR)
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        logging.disable(level)


class Bar:
    """How many pods are done, on one line of a terminal; nothing where there is none."""

    def __init__(self, total: int, stream: TextIO) -> None:
        """`stream` is written to only if it is a terminal."""
        self._total = total
        self._stream = stream if stream.isatty() else None
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        self.show(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def show(self, done: int) -> None:
        """Draw it anew."""
        if self._stream is not None:
            filled = _BAR * done // self._total
            seconds = time.perf_counter() - self._began
            bar = "#" * filled + "." * (_BAR - filled)
            self._stream.write(f"\r\x1b[K[{bar}] {done:,} of {self._total:,} pods, {seconds:.0f} s")
            self._stream.flush()


def render(report: Report, *, wide: bool) -> str:
    """As text. With `wide` the causes of failed ADDs and all findings."""
    plan, writes = report.plan, report.writes
    families = "IPv4 and IPv6" if plan.dual_stack else "IPv4"
    nics = f" of {plan.nics} NICs" if plan.nics > 1 else ""
    world = (
        f"{plan.nodes:,} nodes x {plan.pods_per_node} pods{nics} in {plan.over:g} s, {_several(plan.pools, 'pool')} of "
        f"{plan.pool_size:,} addresses ({families}), {_several(plan.controllers, 'controller')}, API server "
        f"{plan.api_latency * 1e3:g} ms, seed {plan.seed}"
    )
    failed = sum(report.failed_adds.values())
    rows = [
        ("pods", f"{report.served:,} of {report.pods:,} have their addresses"),
        ("deleted again", f"{report.deleted:,}" if report.deleted else ""),
        ("ADDs that failed and were tried again", f"{failed:,}" if failed else ""),
        ("time simulated", f"{report.simulated:.1f} s"),
        ("real time", f"{report.real:.1f} s ({report.real / report.pods * 1e6:.0f} us a pod)"),
        ("ADD", _row(report.add, lambda seconds: f"{seconds:.3f} s")),
        ("addresses in one write of a pool", _row(report.batch, lambda size: f"{size:.0f}")),
        ("API writes for a pod", f"{writes.per_pod:.3f} ({_kinds(writes.by_kind)})"),
        ("conflicts", f"{writes.conflicts:,}"),
        ("bytes of pools written", f"{writes.pool_bytes / 1e6:,.1f} MB, {writes.pool_bytes_per_second / 1e6:.2f} MB/s"),
        ("largest pool", f"{writes.largest_pool / 1e3:,.1f} kB (a pool grants below 1,200 kB)"),
    ]
    parts = [world, table([row for row in rows if row[1]])]
    if report.unserved:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in report.unserved.items())
        parts.append(f"without addresses when they were given up: {causes}")
    if wide and failed:
        parts.append("failed ADDs: " + ", ".join(f"{n:,} {cause}" for cause, n in report.failed_adds.items()))
    if report.findings:
        shown = report.findings if wide else report.findings[:_ROWS]
        parts.append(table([("CHECK", "SUBJECT", "FINDING"), *((f.check, f.subject, f.text) for f in shown)]))
        found = ", ".join(f"{count:,} {check}" for check, count in counts(report.findings).items())
        parts.append(f"WRONG: {found}")
    else:
        parts.append("audit: 0 duplicates, 0 leaks, pools and SpiderEndpoints say what the pods were told")
    return "\n".join(parts) + "\n"


def _row(it: Percentiles, text: Callable[[float], str]) -> str:
    return f"p50 {text(it.p50)}, p90 {text(it.p90)}, p99 {text(it.p99)}, longest {text(it.longest)}"


def _kinds(by_kind: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in by_kind.items())


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _plan(given: argparse.Namespace) -> Plan:
    plan = Plan(
        nodes=given.nodes,
        pods_per_node=given.pods_per_node,
        pools=given.pools,
        pool_size=given.pool_size,
        controllers=given.controllers,
        seed=given.seed,
        dual_stack=given.dual_stack,
        nics=given.nics,
        over=_seconds("--over", given.over),
        churn=given.churn,
        api_latency=_seconds("--api-latency", given.api_latency),
        network_latency=_seconds("--network-latency", given.network_latency),
        write_budget=_bytes("--write-budget", given.write_budget),
        kill_owner_at=None if given.kill_owner_at is None else _seconds("--kill-owner-at", given.kill_owner_at),
    )
    try:
        return plan.completed()
    except PlanError as error:
        msg = f"--{error.field.replace('_', '-')}: {error.problem}"
        raise Misuse(msg) from error


def _seconds(flag: str, text: str) -> float:
    """A time with its unit. Raises `Misuse`."""
    return _number(flag, text, _UNITS, "a time, for example 3ms or 1.5s", bare=False)


def _bytes(flag: str, text: str) -> float:
    """Bytes, with k, M or G or without. Raises `Misuse`."""
    return _number(flag, text, _SIZES, "bytes a second, for example 2.5M, or 0 for no limit", bare=True)


def _number(flag: str, text: str, units: dict[str, float], wanted: str, *, bare: bool) -> float:
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        value = -1.0
    if (not unit and not bare and value != 0) or not 0 <= value < float("inf"):
        msg = f"{flag}: {text!r}: expected {wanted}"
        raise Misuse(msg)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl simulate",
        description="Let real controllers serve the pods of a cluster that is modelled, in this process and on a "
        "virtual clock, and report what that took. Touches no cluster. The same flags give the same report, but for "
        "the real time. Exit code 1: the audit found something.",
    )
    usual = Plan()
    numbers = (
        ("nodes", usual.nodes, "nodes"),
        ("pods-per-node", usual.pods_per_node, "pods that each starts"),
        ("pools", 0, "pools in each family; 0: one for every thousand pods"),
        ("pool-size", 0, "addresses in each pool; 0: a tenth more than its pods' NICs"),
        ("nics", usual.nics, "NICs of each pod"),
        ("controllers", usual.controllers, "controller replicas"),
        ("seed", usual.seed, "what chance begins with"),
    )
    for name, default, text in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default %(default)s)")
    parser.add_argument("--dual-stack", action="store_true", help="an IPv4 and an IPv6 address for each NIC")
    texts = (
        ("over", f"{usual.over:g}s", "TIME", "in which all pods come"),
        ("api-latency", f"{usual.api_latency * 1e3:g}ms", "TIME", "the API server's, for a request, on average"),
        ("network-latency", f"{usual.network_latency * 1e3:g}ms", "TIME", "between two machines, on average"),
        ("write-budget", f"{usual.write_budget / 1e6:g}M", "BYTES", "of pools a second, 0: no limit"),
        ("kill-owner-at", None, "TIME", "when the controller dies that owns the most pools"),
    )
    for name, shown, unit, text in texts:
        parser.add_argument(
            f"--{name}", default=shown, metavar=unit, help=text + ("" if shown is None else " (default %(default)s)")
        )
    parser.add_argument(
        "--churn", type=float, default=usual.churn, metavar="SHARE", help="of pods that go again (default %(default)s)"
    )
    output.add_argument(parser)
    return parser
