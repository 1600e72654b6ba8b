"""The run: a cluster, both subjects in turns, the table."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from bench.kubelet import faults
from bench.kubelet.contest import SUBJECTS, Contest, Subject, without_own_configuration
from bench.kubelet.scale import Flow, Wave, one_at_a_time, stream, wave
from bench.kubelet.table import Row, stamp, text
from tests.cluster.audit import settled
from tests.cluster.lab import Cluster
from tests.cluster.product import AGENT, CONTROLLER, Image, Product, image, pools
from tests.servers.provide import Progress

NAME: Final = "bench"
_FORCED: Final = 20
"""Pods that are deleted by force."""


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench cluster", description=__doc__)
    parser.add_argument("--pods", type=int, default=100, help="of a wave (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each subject (default %(default)s)")
    parser.add_argument("--single", type=int, default=5, help="pods one at a time in a turn (default %(default)s)")
    parser.add_argument("--stream", type=float, default=40, help="seconds of a stream (default %(default)s)")
    parser.add_argument("--rest", type=float, default=30, help="seconds at rest (default %(default)s)")
    return parser.parse_args(arguments)


class Measured(msgspec.Struct):
    """Everything that both subjects did, by subject."""

    single: dict[Subject, list[float]] = msgspec.field(default_factory=lambda: defaultdict(list))
    dual: dict[Subject, list[float]] = msgspec.field(default_factory=lambda: defaultdict(list))
    waves: dict[Subject, list[Wave]] = msgspec.field(default_factory=lambda: defaultdict(list))
    forced: dict[Subject, list[Wave]] = msgspec.field(default_factory=lambda: defaultdict(list))
    flows: dict[Subject, Flow] = msgspec.field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Prints one table. Raises what the lab raises when it does not come up."""
    chosen = options(arguments)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"bench: {time.monotonic() - began:5.0f} s  {what}", flush=True)

    made = image()
    rows: list[Row] = []
    try:
        _measure(made, chosen, say, rows)
    finally:
        # What was measured before something went wrong took minutes.
        print(f"\n{chosen.pods} pods, 2 nodes; {stamp()}\n{text(rows)}")
    return 0


def _measure(made: Image, chosen: argparse.Namespace, say: Progress, rows: list[Row]) -> None:
    with Cluster.up(name=NAME, cni="ref", durable=True, progress=say) as cluster:
        without_own_configuration(cluster)
        product = Product(cluster, made).load()
        say("helm install")
        start = time.monotonic()
        product.install()
        installed = time.monotonic() - start
        cluster.apply(*pools())
        contest = Contest(product)
        rows.append(Row(work="helm install --wait, images there", ours=installed, unit="s", goal=15))
        rows += both(contest, chosen, say)
        rows.extend(ours_alone(contest, chosen, say))


def both(contest: Contest, chosen: argparse.Namespace, say: Progress) -> list[Row]:
    """What the reference can do as well, in turns."""
    seen = Measured()
    for number in range(chosen.rounds):
        # Who comes first changes, so that what grows with time falls on both.
        for subject in SUBJECTS if number % 2 == 0 else reversed(SUBJECTS):
            say(f"round {number + 1} of {chosen.rounds}, {subject}: one pod at a time")
            contest.turn(subject)
            seen.single[subject] += one_at_a_time(contest, chosen.single)
            say(f"round {number + 1} of {chosen.rounds}, {subject}: 0 -> {chosen.pods} -> 0")
            seen.waves[subject].append(wave(contest, chosen.pods))
            seen.forced[subject].append(wave(contest, _FORCED, force=True))
            if number == 0:
                say(f"{subject}: stream of 2 pods/s")
                seen.flows[subject] = stream(contest, chosen.stream)
            contest.turn(subject, dual=True)
            seen.dual[subject] += one_at_a_time(contest, chosen.single)
    contest.turn("ours")
    return [*_single_rows(seen), *_wave_rows(seen, chosen.pods), *_flow_rows(seen)]


def _single_rows(seen: Measured) -> list[Row]:
    single = {subject: statistics.median(waits) for subject, waits in seen.single.items()}
    dual = {subject: statistics.median(waits) for subject, waits in seen.dual.items()}
    spread = "; ".join(
        f"{subject} {what} min {min(waits):.2f}, max {max(waits):.2f}, n={len(waits)}"
        for what, of in (("IPv4", seen.single), ("dual", seen.dual))
        for subject, waits in of.items()
    )
    return [
        Row(
            work="one pod, bind to Ready, p50, IPv4",
            ours=single["ours"],
            reference=single["REF"],
            unit="s",
            ratio_goal=1.0,
            note=f"seconds: {spread}",
        ),
        Row(
            work="the same, dual stack, against REF's IPv4",
            ours=dual["ours"],
            reference=single["REF"],
            unit="s",
            ratio_goal=1.1,
            note=f"REF itself needs {dual['REF']:.2f} s for both families",
        ),
    ]


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _wave_rows(seen: Measured, count: int) -> list[Row]:
    ours, reference = seen.waves["ours"], seen.waves["REF"]

    def of(work: str, field: str, unit: str) -> Row:
        mine, theirs = ([float(getattr(it, field)) for it in waves] for waves in (ours, reference))
        return Row(
            work=work,
            ours=_median(mine),
            reference=_median(theirs),
            unit=unit,
            ratio_goal=1.0,
            note=f"ours {_each(mine)}; REF {_each(theirs)}",
        )

    def failures(waves: list[Wave]) -> float:
        return sum(it.failures for it in waves)

    return [
        of(f"0 -> {count} all Ready", "up", "s"),
        of(f"0 -> {count}, CPU of the whole cluster", "up_cpu", "CPU s"),
        of(f"{count} -> 0, namespaces gone", "down", "s"),
        of(f"{count} -> 0, CPU of the whole cluster", "down_cpu", "CPU s"),
        Row(
            work=f"{count} -> 0, pools empty",
            ours=_median(it.freed for it in ours),
            unit="s",
            note="free when no link carries the address any more, which is before the namespace itself is gone",
        ),
        Row(
            work=f"sandbox failures in 0 -> {count} -> 0",
            ours=failures(ours),
            reference=failures(reference),
            goal=0,
            note=f"in {len(ours)} rounds",
        ),
        Row(
            work=f"sandbox failures, {_FORCED} pods deleted by force",
            ours=failures(seen.forced["ours"]),
            reference=failures(seen.forced["REF"]),
            goal=0,
        ),
        _write_row(ours, reference, count),
    ]


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _write_row(ours: list[Wave], reference: list[Wave], count: int) -> Row:
    def per_pod(waves: list[Wave], *resources: str) -> float:
        wanted = [
            number
            for it in waves
            for (_, resource), number in it.writes.items()
            if not resources or resource in resources
        ]
        return sum(wanted) / count / len(waves)

    parts = {"events": ("events",), "leases": ("leases",), "tokens": ("serviceaccounts/token", "tokenreviews")}
    parts["ours alone"] = ("spiderippools/status", "spiderippools", "spiderendpoints", "spiderendpoints/status")
    note = "of which " + "; ".join(
        f"{part}: ours {per_pod(ours, *resources):.1f}, REF {per_pod(reference, *resources):.1f}"
        for part, resources in parts.items()
    )
    return Row(
        work="API writes per pod up, whole cluster",
        ours=per_pod(ours),
        reference=per_pod(reference),
        goal=13,
        note=note,
    )


def _flow_rows(seen: Measured) -> list[Row]:
    ours, reference = seen.flows["ours"], seen.flows["REF"]
    return [
        Row(work="stream of 2 pods/s, p50 to Ready", ours=ours.p50, reference=reference.p50, unit="s"),
        Row(work="stream of 2 pods/s, p95 to Ready", ours=ours.p95, reference=reference.p95, unit="s"),
        Row(work="stream of 2 pods/s, longest gap", ours=ours.gap, reference=reference.gap, unit="s"),
    ]


def ours_alone(contest: Contest, chosen: argparse.Namespace, say: Progress) -> Iterator[Row]:
    """What the reference has not: programs that are replaced, die and rest."""
    nodes = len(contest.cluster.nodes)
    say("at rest")
    yield from _rest_rows(contest, chosen.rest)
    say("stream with a roll-out of the agents")
    flow = faults.roll_out_under_a_stream(contest, chosen.stream)
    yield Row(
        work="stream with an agent roll-out, longest gap",
        ours=flow.gap,
        unit="s",
        goal=2,
        note=f"{len(flow.waits)} pods, p50 {flow.p50:.2f} s, p95 {flow.p95:.2f} s to Ready",
    )
    yield Row(work="stream with an agent roll-out, sandbox failures", ours=flow.failures, goal=nodes)
    count = chosen.pods // 2
    say(f"agent killed in 0 -> {count}")
    killed = faults.agent_killed(contest, count)
    yield Row(
        work=f"agent killed in 0 -> {count}, sandbox failures",
        ours=killed.failures,
        goal=2,
        note=f"up in {killed.up:.1f} s; {_leaks(contest)}",
    )
    say("controllers away")
    left = faults.one_controller_away(contest, _FORCED)
    yield Row(
        work=f"one controller left, {_FORCED} deleted by force: freed after the last namespace is gone",
        ours=left,
        unit="s",
        goal=1,
    )
    stayed, freed = faults.all_controllers_away(contest, _FORCED)
    yield Row(
        work=f"no controller, {_FORCED} pods deleted by force: freed after one is Ready",
        ours=freed,
        unit="s",
        goal=1,
        note=f"{stayed} addresses waited for it; {_leaks(contest)}",
    )


def _leaks(contest: Contest) -> str:
    try:
        settled(contest.cluster, expect=0)
    except AssertionError as problem:
        return f"LEFT OVER: {problem}"
    return "nothing left over"


def _rest_rows(contest: Contest, seconds: float) -> list[Row]:
    rows = []
    for component, memory_goal in ((AGENT, 90.0), (CONTROLLER, 110.0)):
        memory, own, whole = faults.at_rest(contest, component, seconds)
        name = component.removeprefix("spiderpool-")
        rows += [
            Row(work=f"{name} at rest, memory", ours=memory, unit="MiB", goal=memory_goal),
            Row(
                work=f"{name} at rest, CPU",
                ours=own,
                unit="%",
                goal=0.2,
                note=f"of a core, the program itself; its pod with the probes {whole:.2f} %",
            ),
        ]
    return rows
