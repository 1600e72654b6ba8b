"""``python -m tests.simulation --seeds 10000``: random worlds, on every core; ``--plan '{"seed":7}'`` replays one."""

import argparse
import multiprocessing
import os
import sys
import time

import msgspec

from tests.simulation.swarm import Plan, attempt, play


def main() -> int:
    """Run the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many worlds")
    parser.add_argument("--first", type=int, default=1, help="the first one's number")
    parser.add_argument("--plan", help="play this one only, with its log")
    given = parser.parse_args()
    if given.plan:
        play(msgspec.json.decode(given.plan, type=Plan))
        print("nothing goes wrong in it")
        return 0
    begun, failed, last = time.monotonic(), 0, 0.0
    numbers = range(given.first, given.first + given.seeds)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for done, (seed, why) in enumerate(pool.imap_unordered(attempt, numbers, chunksize=4), start=1):
            if why:
                failed += 1
                print(f"seed {seed}: {why}", flush=True)
            if time.monotonic() - last > 10.0 or done == given.seeds:
                last = time.monotonic()
                print(f"{done} of {given.seeds} worlds, {failed} failed, {last - begun:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
