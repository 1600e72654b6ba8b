"""Tells when links of this process's network namespace come, go or change their names: rtnetlink's announcements.

A hint, no list: whoever is told looks. What the kernel could not announce (a full buffer) is told as well.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from cni.netlink import message

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_GROUP_LINK = 1
"""RTNLGRP_LINK of linux/rtnetlink.h."""
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=BxHiII")
_IFLA_IFNAME = 3
_BUFFER = 1 << 17


class LinkWatch:
    """Made, used and closed on the event loop."""

    def __init__(self, told: Callable[[], None], *, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """`told` is called for every change of a link whose name, old or new, is `wanted`; neither must raise.

        Raises `OSError` when the kernel gives no socket.
        """
        self._told = told
        self._wanted = wanted
        self._names: dict[int, str] = {}
        """Of links that were announced, by index: one that is announced for anything else is no news."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, 0))  # without an address of its own it is told nothing
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_LINK)
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def __repr__(self) -> str:
        return f"<LinkWatch {len(self._names)} links seen>"

    def close(self) -> None:
        """Tell nothing any more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        try:
            datagram = self._socket.recv(_BUFFER)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: announcements were lost
            self._names.clear()
            self._told()
            return
        news = [self._is_news(kind, body) for kind, _, _, body in message.messages(memoryview(datagram))]
        if any(news):
            self._told()

    def _is_news(self, kind: int, body: memoryview) -> bool:
        if kind not in (_RTM_NEWLINK, _RTM_DELLINK):
            return False
        index = _HEADER.unpack_from(body)[2]
        name = message.read_text(message.attributes(body[_HEADER.size :]).get(_IFLA_IFNAME))
        known = self._names.get(index)
        if kind == _RTM_NEWLINK:
            self._names[index] = name
            return name != known and (self._wanted(name) or (known is not None and self._wanted(known)))
        self._names.pop(index, None)
        return self._wanted(name)
