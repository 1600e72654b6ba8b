"""Has the C library give big blocks back to the system when they are freed, and takes none where a small one does.

glibc takes a block of this size from the system by itself at first, but no longer once one was freed: from then on they
come from its heap, which only shrinks from the end. A controller decodes and encodes texts of a megabyte all the time,
and small objects between them keep the holes. In blocks of their own each costs 0.1 ms of page faults.
"""

import ctypes
from asyncio import sslproto
from typing import Final

BIG: Final = 256 << 10
"""Bytes. Smaller blocks stay in the heap, where they are cheaper."""
_M_MMAP_THRESHOLD: Final = -3
_RECORDS: Final = 64 << 10
"""Four TLS records, and far from `BIG`."""


def give_back_big_blocks() -> bool:
    """From now on; returns whether the C library can do that. Where it cannot, nothing is different."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, BIG))


def read_tls_in_small_blocks() -> None:
    """From now on. asyncio asks for 256 KiB whenever it reads what a peer has sent, most of the time for some hundreds.

    In blocks of their own, which `give_back_big_blocks` makes of them, those cost a tenth of a controller's CPU.
    """
    sslproto.SSLProtocol.max_size = _RECORDS
