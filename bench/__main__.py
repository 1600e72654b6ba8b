"""Figures of this machine: ``make bench`` (an ADD and the rules).

``make bench BENCH=core``: what is promised of allocation, a thousand pods on ten agents first of all. ``make bench
BENCH=node``: links, several NICs and detection, against the reference plugins. ``make bench BENCH=cluster``: a real
cluster. ``make bench BENCH=control``: applications' pools, admission. ``make bench BENCH=simulate``: how long
`spiderpoolctl simulate` takes.
"""

import sys

from bench import add, control, core, ledger, node, simulate
from bench.kubelet import program


def main() -> int:
    """What the first argument names; without one, what needs no cluster."""
    match sys.argv[1:]:
        case []:
            ledger.main()
            return add.main()
        case ["cluster", *rest]:
            return program.main(rest)
        case ["control", *rest]:
            return control.main(rest)
        case ["core", *rest]:
            return core.main(rest)
        case ["node", *rest]:
            return node.main(rest)
        case ["simulate", *rest]:
            return simulate.main(rest)
        case _:
            sys.stderr.write("usage: python -m bench [control | core | node | cluster | simulate, each with --help]\n")
            return 2


sys.exit(main())
