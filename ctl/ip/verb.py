"""`spiderpoolctl ip`: finds the module of the word that follows."""

import argparse
from collections.abc import Sequence
from importlib import import_module

WORDS = {
    "show": "who has an address, what a pool or a pod has",
    "release": "take an address from who has it, or end its quarantine",
    "set": "give a free address to a pod",
}


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    words = "\n".join(f"  {word:<10}{summary}" for word, summary in WORDS.items())
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl ip",
        description="Single addresses.",
        epilog=f"words:\n{words}\n\nspiderpoolctl ip WORD --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("word", choices=WORDS, metavar="WORD", help="what to do")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the word's own")
    given = parser.parse_args(argv)
    code: int = import_module(f"ctl.ip.{given.word}").run(given.arguments)
    return code
