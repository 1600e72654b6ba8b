"""How long `spiderpoolctl simulate` takes for its usual cluster, 5,000 nodes with 20 pods each, and where that goes.

    python -m bench simulate                 # make bench BENCH=simulate
    python -m bench simulate --nodes 500 --profile

The program runs as users run it, in a process of its own, start of Python included. Nothing is asserted. Wall-clock
figures mean something on a machine that does nothing else; CPU seconds always do.
"""

import argparse
import gc
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from bench.figures import row, title
from simulation.plan import Plan
from simulation.report import Report
from simulation.world import simulate

_GOAL_SECONDS = 10.0
_USUAL = Plan()
_ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 40


def main(argv: Sequence[str]) -> int:
    """The figures of one run."""
    parser = argparse.ArgumentParser(prog="python -m bench simulate", description=__doc__)
    parser.add_argument("--nodes", type=int, default=_USUAL.nodes)
    parser.add_argument("--pods-per-node", type=int, default=_USUAL.pods_per_node)
    parser.add_argument("--profile", action="store_true", help="where the time goes, by samples, instead of figures")
    given = parser.parse_args(argv)
    if given.profile:
        _profile(Plan(nodes=given.nodes, pods_per_node=given.pods_per_node).completed())
        return 0
    title(f"spiderpoolctl simulate, {given.nodes} nodes x {given.pods_per_node} pods")
    command = [sys.executable, "-m", "ctl.main", "simulate", "-o", "json"]
    command += ["--nodes", str(given.nodes), "--pods-per-node", str(given.pods_per_node)]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - begun
    report = msgspec.json.decode(done.stdout, type=Report)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    usual = report.pods == _USUAL.pods
    row("real time", f"{seconds:.1f} s", f"<= {_GOAL_SECONDS:g} s" if usual else "")
    row("CPU", f"{spent.ru_utime + spent.ru_stime:.1f} s")
    row("for a pod", f"{seconds / report.pods * 1e6:.0f} us", f"<= {_GOAL_SECONDS / _USUAL.pods * 1e6:.0f} us")
    row("memory", f"{spent.ru_maxrss / 1024:.0f} MiB")
    row("pods served", f"{report.served}", f"{report.pods}")
    row("API writes for a pod", f"{report.writes.per_pod:.3f}")
    row("found by the audit", f"{len(report.findings)}", "0")
    return done.returncode


def _profile(plan: Plan) -> None:
    """Where the stack is every few milliseconds of CPU time: a tracer would triple what it looks at."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()

    def sample(number: int, frame: FrameType | None) -> None:
        del number
        seen: set[str] = set()
        while frame is not None:
            file = frame.f_code.co_filename.removeprefix(f"{_ROOT}/").rpartition("site-packages/")[2]
            where = f"{file}:{frame.f_code.co_qualname}"
            if not seen:
                own[where] += 1
            if where not in seen:
                seen.add(where)
                below[where] += 1
            frame = frame.f_back

    gc.disable()  # as the program does
    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
    report = simulate(plan, real=time.process_time)
    signal.setitimer(signal.ITIMER_PROF, 0)
    total = own.total()
    microseconds = report.real / report.pods * 1e6
    for heading, counted in (("in the function itself", own), ("with all that it calls", below)):
        print(f"\n{microseconds:.0f} us a pod, {heading}")
        for where, count in counted.most_common(_SHOWN):
            print(f"  {count / total:6.1%} {count / total * microseconds:7.1f} us  {where}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
