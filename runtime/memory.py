"""Has the C library give big blocks back to the system when they are freed.

glibc takes a block of this size from the system by itself at first, but no longer once one was freed: from then on they
come from its heap, which only shrinks from the end. A controller decodes and encodes texts of a megabyte all the time,
and small objects between them keep the holes. In blocks of their own each costs 0.1 ms of page faults.
"""

import ctypes
from typing import Final

BIG: Final = 256 << 10
"""Bytes. Smaller blocks stay in the heap, where they are cheaper."""
_M_MMAP_THRESHOLD: Final = -3


def give_back_big_blocks() -> bool:
    """From now on; returns whether the C library can do that. Where it cannot, nothing is different."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, BIG))
