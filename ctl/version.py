"""`spiderpoolctl version`: which version this is, and on which Python."""

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import version


def run(argv: Sequence[str]) -> int:
    """Print it on one line."""
    argparse.ArgumentParser(prog="spiderpoolctl version", description="Print the version.").parse_args(argv)
    print(f"spiderpool {version('spiderpool')} (Python {platform.python_version()})")
    return 0
