"""A network of the test run's own: nothing that a test sends can reach the machine's network.

As root the whole run moves into a new network namespace before the first server starts. Servers, programs, parent
interfaces and bridges of the tests are all made in there, and go with the process.
"""

import fcntl
import os
import socket
import struct

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def isolate() -> bool:
    """Move this process into a network namespace of its own with loopback up. Returns whether it could (root only).

    Threads that run already stay where they are: call it first.
    """
    if os.geteuid() != 0:
        return False
    os.unshare(os.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    return True
