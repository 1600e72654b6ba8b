"""The entry point of `spiderpoolctl`: finds the verb's module and turns its errors into one line and an exit code.

Exit codes: 0 done, 1 it could not be done, 2 it was asked for in a wrong way. A verb is a module of this package with a
function `run`; only the one that is asked for is imported.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ctl.errors import Failure

VERBS = {
    "version": "what this is",
    "apply": "create objects from YAML, or change them to what it says",
    "get": "what is in the pools, and other objects",
    "ip": "single addresses: show, release, set",
    "explain": "why a pod gets its addresses where it does, and why a pool gives none",
    "history": "who had which address when",
    "gc": "have the records looked at that nobody may need any more",
    "doctor": "whether pools, endpoints, pods and journal agree",
    "status": "whether an installation works: components, owners of pools, nodes, errors of the last hour",
    "simulate": "what a cluster of some size would write, and how long its pods would wait",
    "demo": "two pods on a LAN of their own, on this machine",
}
_MODULES = {
    "apply": "ctl.apply",
    "get": "ctl.get",
    "ip": "ctl.ip.verb",
    "explain": "ctl.explain.verb",
    "history": "ctl.history",
    "gc": "ctl.gc",
    "doctor": "ctl.doctor",
    "status": "ctl.status",
    "simulate": "ctl.simulate",
    "demo": "ctl.demo.verb",
    "version": "ctl.version",
}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv`, by default the process's; returns the exit code."""
    verbs = "\n".join(f"  {verb:<10}{summary}" for verb, summary in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl",
        description="Works with Spiderpool's objects and shows what Spiderpool does.",
        epilog=f"verbs:\n{verbs}\n\nspiderpoolctl VERB --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the verb's own")
    given = parser.parse_args(argv)
    verb = import_module(_MODULES[given.verb])
    try:
        code: int = verb.run(given.arguments)
    except Failure as error:
        sys.stderr.write(f"spiderpoolctl {given.verb}: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; nobody is left to be told
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
