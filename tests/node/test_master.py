"""The physical NIC behind an interface: the way from a pod's namespace to the node's sysfs, and its addresses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from cni.errors import InvalidNetns, KernelRefused
from cni.netlink import vf
from tests.netns import Netns

pytestmark = pytest.mark.node


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Netns]:
    """A namespace with one end of a veth pair as `eth0`; the other, `pf0`, is here and has addresses."""
    with IPRoute() as route, Netns(tmp_path, "pod") as namespace:
        with namespace.path.open() as inside:
            route.link("add", ifname="pf0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": inside.fileno()})
        index = route.link_lookup(ifname="pf0")[0]
        route.addr("add", index=index, address="10.78.0.1", prefixlen=16)
        route.addr("add", index=index, address="fd78::1", prefixlen=64)
        yield namespace
        route.link("del", index=index)


def sysfs(folder: Path, bus: str, master: str) -> Path:
    """What sysfs shows of a virtual function: this kernel has none."""
    (folder / "sys/bus/pci/devices" / bus / "physfn/net" / master).mkdir(parents=True)
    return folder / "sys"


def test_an_interface_that_is_no_virtual_function_has_no_master(pod: Netns) -> None:
    assert pod.run(lambda: vf.bus_info("eth0")) == ""
    assert vf.master_networks(str(pod.path), "eth0") == ()


def test_a_virtual_functions_master_is_found_on_the_node(
    pod: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vf, "bus_info", lambda ifname: {"eth0": "0000:01:10.0"}[ifname])
    found = vf.master_networks(str(pod.path), "eth0", sysfs=sysfs(tmp_path, "0000:01:10.0", "pf0"))
    assert found == ("10.78.0.1/16", "fd78::1/64")


def test_a_master_that_is_not_here_has_no_addresses(
    pod: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vf, "bus_info", lambda _: "0000:01:10.0")
    assert vf.master_networks(str(pod.path), "eth0", sysfs=sysfs(tmp_path, "0000:01:10.0", "elsewhere")) == ()


def test_what_is_missing_is_named(pod: Netns, tmp_path: Path) -> None:
    with pytest.raises(KernelRefused, match="net7"):
        vf.master_networks(str(pod.path), "net7")
    with pytest.raises(InvalidNetns, match="nothing"):
        vf.master_networks(str(tmp_path / "nothing"), "eth0")
