"""Verbs that take something from somebody say what they are about to do, and ask."""

import argparse
import sys

from ctl.errors import Failure, Misuse


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag that answers beforehand."""
    parser.add_argument("-y", "--yes", action="store_true", help="do it without asking")


def confirm(plan: str, *, yes: bool) -> None:
    """Print the plan and go on if the user wants it so. Blocks.

    Raises `Misuse` where nobody can be asked, `Failure` when the answer is no.
    """
    print(plan)
    if yes:
        return
    if not sys.stdin.isatty():
        msg = "this asks before it does that, and stdin is no terminal: give --yes to have it done. Nothing was done"
        raise Misuse(msg)
    try:
        answer = input("Do that? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        msg = "nothing was done"
        raise Failure(msg)
