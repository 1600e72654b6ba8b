"""All figures of this machine, one after the other: ``make bench``."""

import sys

from bench import cluster, ledger

ledger.main()
sys.exit(cluster.main())
