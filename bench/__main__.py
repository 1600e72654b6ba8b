"""All figures of this machine, one after the other: ``make bench``."""

import sys

from bench.cluster import main

sys.exit(main())
