"""Random faults under pods that come and go, and an audit at the end: ``make chaos``.

    make chaos                             # ten minutes, a seed of its own
    make chaos SECONDS=120 SEED=7          # the faults of seed 7 again

The seed decides which faults come, when, where and for how long, before anything starts; a longer run begins as a
shorter one of the same seed does. What the cluster makes of them is not repeatable, so every step is logged with its
time.
"""
