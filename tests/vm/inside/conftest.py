"""What tests in a guest can ask for: namespaces, a segment of veth pairs on a bridge, NICs with virtual functions."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.netns import Netns
from tests.node.conftest import Segment, segment
from tests.vm.inside.nics import PhysicalNic, wait_until

__all__ = ["namespaces", "nic", "segment", "uplink", "wire"]

FUNCTIONS = 7
"""As many as an igb has."""

SECONDS = 30.0


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Callable[[], Netns]]:
    """Makes empty network namespaces, which go with the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Netns(tmp_path))


@pytest.fixture(scope="session")
def _nic_with_functions() -> PhysicalNic:
    nic = PhysicalNic("eth0")
    nic.set_functions(FUNCTIONS)
    return nic


@pytest.fixture
def nic(_nic_with_functions: PhysicalNic) -> Iterator[PhysicalNic]:
    """The NIC eth0, up, with seven virtual functions, all with their interfaces here.

    What a test changes of them is taken back, if need be by making all anew.
    """
    before = _nic_with_functions.state()
    yield _nic_with_functions
    _nic_with_functions.restore(before)


@pytest.fixture
def wire() -> Iterator[str]:
    """The name of a NIC on the same wire as `nic`: what it hears has left the machine."""
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="eth1")[0], state="up")
    yield "eth1"
    # It may come home from a namespace that the test leaves to die.
    wait_until(lambda: "eth1" in (name for _, name in socket.if_nameindex()), SECONDS)
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="eth1")[0], state="down")


@pytest.fixture
def uplink(nic: PhysicalNic, segment: Segment, wire: str) -> Iterator[PhysicalNic]:
    """The same as `nic`, with the other end of its wire in the segment's bridge: its functions are on the segment."""
    del segment
    with IPRoute() as route:
        index = route.link_lookup(ifname=wire)[0]
        route.link("set", index=index, master=route.link_lookup(ifname="lan")[0])
        yield nic
        route.link("set", index=index, master=0)
