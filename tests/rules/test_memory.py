"""Big blocks that are freed go back to the system, whatever lies behind them."""

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, sys
from runtime.memory import BIG, give_back_big_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "on":
    assert give_back_big_blocks()
for _ in range(2):
    blocks = [bytes(2 * BIG) for _ in range(8)]
    inside = libc.mallinfo2().hblkhd >= 8 * 2 * BIG
    del blocks
print(inside)
"""


@pytest.mark.parametrize("switch", ["on", "off"])
def test_they_are_blocks_of_their_own(switch: str) -> None:
    """Without it the second round comes from the heap: freeing the first has raised glibc's threshold."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, switch], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(switch == "on")
