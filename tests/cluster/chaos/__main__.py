"""``make chaos``: prints the seed, the faults as they come, and what the audit found; exit code 1 if anything."""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.cluster.audit import settled
from tests.cluster.carriers import Conflicts
from tests.cluster.chaos.faults import FAILURES, Faults, Say, quietly
from tests.cluster.chaos.load import Load
from tests.cluster.chaos.schedule import Step, schedule
from tests.cluster.lab import Cluster
from tests.cluster.product import Product, image, pools
from tests.cluster.workload import sandbox_failures
from tests.servers.provide import CHECKOUT

NAME: Final = "chaos"
REPORTS: Final = CHECKOUT / "build" / "reports" / "chaos"
_CLEAN_SECONDS: Final = 180.0
_NODES: Final = ("n1", "n2")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults come (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the faults of an earlier run")
    parser.add_argument("--plan", action="store_true", help="only say which faults the seed makes")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 when something was found."""
    chosen = options()
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    print(f"chaos: seed {seed}, {chosen.seconds:.0f} s; again: make chaos SEED={seed} SECONDS={chosen.seconds:.0f}")
    steps = schedule(seed, chosen.seconds, _NODES)
    if chosen.plan:
        print("\n".join(f"{step.at:7.1f}  {step}" for step in steps))
        return 0
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {what}", flush=True)

    made = image()
    with Cluster.up(name=NAME, progress=say) as cluster:
        product = Product(cluster, made).load()
        product.install()
        cluster.apply(*pools())
        found = _run(product, seed, steps, say)
        if found:
            logs = REPORTS / str(seed)
            cluster.logs_to(logs)
            _programs_logs(cluster, logs)
            say(f"logs in {logs}")
    for line in found:
        print(f"FOUND: {line}")
    print(f"chaos: seed {seed}: {len(found) or 'nothing'} found")
    return 1 if found else 0


def _run(product: Product, seed: int, steps: list[Step], say: Say) -> list[str]:
    cluster = product.cluster
    load = Load(cluster, seed)
    faults = Faults(product, load, say)
    load.start()
    say("all pods are Ready; the faults begin")
    found: list[str] = []
    with Conflicts(cluster) as conflicts:
        _carry_out(faults, steps, say)
        say("the faults are over")
        try:
            faults.mend()
            say("nodes and programs are well")
            count = load.finish()
            say(f"{count} pods are Ready, {load.ready} of {load.made} of the stream came and went")
            settled(cluster, expect=count, timeout=_CLEAN_SECONDS, progress=say)
            say("the audit finds nothing with pods")
            load.remove()
            settled(cluster, expect=0, timeout=_CLEAN_SECONDS, progress=say)
            say("the audit finds nothing without pods")
        except (*FAILURES, AssertionError) as problem:
            say(f"it does not end well: {problem}")
            found.append(str(problem))
    found += conflicts.found
    found += _tracebacks(cluster)
    say(f"{conflicts.looks} looks for an address with two holders")
    quietly(lambda: _say_failures(cluster, say))
    return found


def _carry_out(faults: Faults, steps: list[Step], say: Say) -> None:
    began = time.monotonic()
    for step in steps:
        time.sleep(max(0.0, began + step.at - time.monotonic()))
        say(f"[{step.at:5.1f}] {step}")
        try:
            detail = faults.carry_out(step)
        except FAILURES as problem:
            detail = f"could not: {str(problem)[:200]}"
        if detail:
            say(f"        {detail}")


def _say_failures(cluster: Cluster, say: Say) -> None:
    counts: Counter[str] = Counter()
    for message, count in sandbox_failures(cluster).items():
        # The part of a message that is not of its pod alone.
        text = message.partition(": ")[2].partition("rpc error: ")[2] or message
        counts[re.sub(r"(sandbox |pod |container )?\"?[0-9a-f]{12,64}\"?", "...", text)[:220]] += count
    for message, count in counts.most_common(12):
        say(f"sandbox failures, {count} x {message}")


def _tracebacks(cluster: Cluster) -> list[str]:
    """Exceptions in the logs of our programs that nobody foresaw."""
    found: Counter[str] = Counter()
    for node in cluster.nodes.values():
        for log in _logs(node.logs):
            for line in log.read_text(errors="replace").splitlines():
                if "Traceback (most recent call last)" in line:
                    found[f"{log.parts[-3].split('_')[1]}: {line[-700:]}"] += 1
    return [f"{count} x {text}" for text, count in found.most_common(20)]


def _logs(folder: Path) -> list[Path]:
    return sorted((folder / "pods").glob("spiderpool_*/*/*.log*"))


def _programs_logs(cluster: Cluster, target: Path) -> None:
    """Of all that ran, the killed ones included."""
    for node in cluster.nodes.values():
        for log in _logs(node.logs):
            name = "-".join((node.name, log.parts[-3].split("_")[1], log.name))
            (target / name).write_text(log.read_text(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
