"""What an agent sets on its node, on a folder that looks like /proc/sys/net."""

from pathlib import Path

import pytest

from cni.netlink.sysctl import tune_node

FRESH = {
    "ipv4/neigh/default/gc_thresh3": "1024",
    "ipv6/neigh/default/gc_thresh3": "1024",
    "ipv4/conf/all/forwarding": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv4/conf/all/rp_filter": "2",
    "ipv4/conf/all/arp_notify": "0",
    "ipv6/conf/all/accept_ra": "1",
    "ipv6/conf/default/accept_ra": "1",
    "ipv6/conf/eth0/accept_ra": "1",
    "ipv6/conf/eth1/accept_ra": "0",
    "ipv6/conf/lo/accept_ra": "1",
}
TUNED = {
    **FRESH,
    "ipv4/neigh/default/gc_thresh3": "28160",
    "ipv6/neigh/default/gc_thresh3": "28160",
    "ipv4/conf/all/forwarding": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/all/arp_notify": "1",
    "ipv6/conf/default/accept_ra": "2",
    "ipv6/conf/eth0/accept_ra": "2",
}


def write(root: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")


def read(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text().strip() for path in root.rglob("*") if path.is_file()}


def test_a_fresh_node(tmp_path: Path) -> None:
    write(tmp_path, FRESH)
    assert tune_node(tmp_path) == []
    assert read(tmp_path) == TUNED
    assert tune_node(tmp_path) == []
    assert read(tmp_path) == TUNED


def test_what_an_operator_made_larger_stays(tmp_path: Path) -> None:
    write(tmp_path, {**FRESH, "ipv4/neigh/default/gc_thresh3": "80000"})
    tune_node(tmp_path)
    assert read(tmp_path)["ipv4/neigh/default/gc_thresh3"] == "80000"


def test_a_router_keeps_its_view_of_routers(tmp_path: Path) -> None:
    write(tmp_path, {**FRESH, "ipv6/conf/all/forwarding": "1"})
    tune_node(tmp_path)
    assert read(tmp_path)["ipv6/conf/eth0/accept_ra"] == "1"


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    write(tmp_path, {name: value for name, value in FRESH.items() if name.startswith("ipv4")})
    assert tune_node(tmp_path) == []
    assert set(read(tmp_path)) == {name for name in FRESH if name.startswith("ipv4")}


def test_a_refusal_is_said_and_the_rest_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FRESH)
    real = Path.write_text

    def refuse(self: Path, text: str) -> int:
        if self.name == "rp_filter":
            raise OSError(30, "Read-only file system")
        return real(self, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    problem = f"{tmp_path}/ipv4/conf/all/rp_filter cannot be set to 0: Read-only file system"
    assert tune_node(tmp_path) == [problem]
    assert read(tmp_path) == {**TUNED, "ipv4/conf/all/rp_filter": "2"}
