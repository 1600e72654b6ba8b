"""The look for addresses with two holders, as audits and chaos take it: what a kernel carries, what two carry."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.cluster.carriers import doubles, lan_addresses
from tests.netns import Netns

pytestmark = pytest.mark.node


def carried_by(space: Netns, *addresses: str) -> set[str]:
    """What is read in a namespace whose loopback has these addresses."""

    def inside() -> list[str]:
        for address in addresses:
            subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)
        return lan_addresses(Path(f"/proc/self/task/{threading.get_native_id()}"))

    return set(space.run(inside))


def test_the_lan_addresses_of_two_namespaces_and_those_in_both(tmp_path: Path) -> None:
    with Netns(tmp_path) as one, Netns(tmp_path) as two:
        first = carried_by(one, "10.89.10.5/32", "fd00:89::10:5/128", "192.0.2.1/32")
        second = carried_by(two, "10.89.10.5/32", "fd00:89::10:6/128")
    held: dict[str, set[str]] = {}
    for name, addresses in (("one", first), ("two", second)):
        for address in addresses:
            held.setdefault(address, set()).add(name)
    assert len(first) == len(second) == 2
    assert doubles(held) == {"10.89.10.5": {"one", "two"}}


def test_nothing_is_double_where_everybody_has_an_address_of_its_own() -> None:
    assert doubles({"10.89.10.5": {"one"}, "10.89.10.6": {"two"}}) == {}
