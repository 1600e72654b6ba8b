"""CNI through the shim against the real agent, controller and API server."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.processes.lab import CniError, Lab, Pod, call
from tests.servers import CniBinaries, ServersUnavailable, debian_plugins

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]


@pytest.fixture
def pod(lab: Lab, request: pytest.FixtureRequest) -> Pod:
    made = lab.pod(request.node.name.replace("_", "-").replace("[", "-").replace("]", "").lower()[:60])
    made.new_sandbox()
    return made


def gone(lab: Lab, *pods: Pod) -> None:
    """Nothing of these pods is left: no record, no endpoint, no journal entry, no link."""
    uids = {pod.uid for pod in pods}
    lab.wait_for(lambda: not uids & {record["podUid"] for record in lab.records().values()})
    lab.wait_for(lambda: not {pod.name for pod in pods} & set(lab.endpoints()))
    for pod in pods:
        assert pod.netns is not None
        assert pod.netns.run(interfaces) == ["lo"]


def interfaces() -> list[str]:
    return sorted(line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:])


def test_add_check_del(lab: Lab, pod: Pod) -> None:
    result = pod.add()
    assert result["cniVersion"] == "1.1.0"
    assert result["interfaces"][0]["name"] == "eth0"
    assert result["interfaces"][0]["sandbox"] == str(pod.netns.path)  # type: ignore[union-attr]
    assert {ip["address"].partition("/")[2] for ip in result["ips"]} == {"16", "64"}
    assert {route["dst"] for route in result["routes"]} == {"0.0.0.0/0", "::/0"}
    config = {**lab.config(pod.node), "prevResult": result}
    assert call(lab.plugins / "macvlan", "CHECK", config, pod.environment()) == {}
    pod.delete()
    gone(lab, pod)
    with pytest.raises(CniError, match="no interface eth0 was added"):
        call(lab.plugins / "macvlan", "CHECK", config, pod.environment())


def test_add_again_gives_the_same_result(lab: Lab, pod: Pod) -> None:
    first = pod.add()
    assert pod.add() == first
    pod.delete()
    gone(lab, pod)


def test_del_twice_and_del_of_the_unknown(lab: Lab, pod: Pod) -> None:
    pod.delete()
    pod.add()
    pod.delete()
    pod.delete()
    gone(lab, pod)


def test_a_new_sandbox_takes_the_addresses_over_and_a_late_del_of_the_old_one_takes_nothing(lab: Lab, pod: Pod) -> None:
    first = pod.add()
    old = pod.environment()
    pod.new_sandbox()
    second = pod.add()
    assert [ip["address"] for ip in second["ips"]] == [ip["address"] for ip in first["ips"]]
    call(lab.plugins / "macvlan", "DEL", lab.config(pod.node), old)
    lab.wait_for(lambda: len(lab.journal(pod.node)) == 1)
    assert [record["cid"] for record in lab.records().values()] == [pod.cid[:12]] * 2
    assert pod.name in lab.endpoints()
    pod.delete()
    gone(lab, pod)


def test_an_interface_of_somebody_else_is_refused_and_stays(lab: Lab, pod: Pod) -> None:
    def make() -> None:
        with IPRoute() as route:
            route.link("add", ifname="eth0", kind="bridge")

    assert pod.netns is not None
    pod.netns.run(make)
    with pytest.raises(CniError, match="eth0 exists already"):
        pod.add()
    pod.delete()
    assert pod.netns.run(interfaces) == ["eth0", "lo"]
    assert pod.uid not in {record["podUid"] for record in lab.records().values()}


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version(lab: Lab, pod: Pod, version: str) -> None:
    result = pod.add(config=lab.config(pod.node, cniVersion=version))
    assert result["cniVersion"] == version
    assert all(("version" in ip) == version.startswith("0.") for ip in result["ips"])
    pod.delete(config=lab.config(pod.node, cniVersion=version))
    gone(lab, pod)


def test_version_and_status_and_gc(lab: Lab, pod: Pod) -> None:
    versions = call(lab.plugins / "macvlan", "VERSION", {"cniVersion": "1.1.0"}, {"SPIDERPOOL_SOCKET": "/nonexistent"})
    assert versions["supportedVersions"] == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    other = lab.pod("gc-keeps-this-one")
    other.new_sandbox()
    pod.add()
    other.add()
    keep = [{"containerID": other.cid, "ifname": "eth0"}]
    config = {**lab.config(pod.node), "cni.dev/valid-attachments": keep}
    assert call(lab.plugins / "macvlan", "GC", config, {"SPIDERPOOL_SOCKET": str(lab.socket(pod.node))}) == {}
    gone(lab, pod)
    assert other.uid in {record["podUid"] for record in lab.records().values()}
    other.delete()
    gone(lab, other)


def test_cnitool_with_our_main_plugin(lab: Lab, pod: Pod, cni_binaries: CniBinaries) -> None:
    network = {"cniVersion": "1.1.0", "name": "lan", "plugins": [lab.config(pod.node)]}
    cnitool(lab, pod, cni_binaries, network, "add")
    addresses = {a for a, r in lab.records().items() if r["podUid"] == pod.uid}
    assert len(addresses) == 2
    cnitool(lab, pod, cni_binaries, network, "check")
    cnitool(lab, pod, cni_binaries, network, "del")
    gone(lab, pod)


@pytest.mark.parametrize("origin", ["upstream", "debian"])
def test_our_ipam_under_the_reference_macvlan(lab: Lab, pod: Pod, cni_binaries: CniBinaries, origin: str) -> None:
    macvlan = cni_binaries.macvlan
    if origin == "debian":
        try:
            macvlan = debian_plugins() / "macvlan"
        except ServersUnavailable as problem:
            pytest.skip(str(problem))
    folder = lab.folder / f"foreign-{origin}"
    folder.mkdir()
    (folder / "spiderpool").write_bytes((lab.plugins / "spiderpool").read_bytes())
    (folder / "spiderpool").chmod(0o755)
    (folder / "macvlan").symlink_to(macvlan)
    network = {"cniVersion": "1.0.0", "name": "foreign", "plugins": [lab.config(pod.node, name="foreign")]}
    result = json.loads(cnitool(lab, pod, cni_binaries, network, "add", path=folder))
    told = {ip["address"].partition("/")[0] for ip in result["ips"]}
    assert told == {a for a, r in lab.records().items() if r["podUid"] == pod.uid}
    assert len(told) == 2
    cnitool(lab, pod, cni_binaries, network, "del", path=folder)
    gone(lab, pod)


def cnitool(
    lab: Lab, pod: Pod, binaries: CniBinaries, network: Mapping[str, object], verb: str, *, path: Path | None = None
) -> str:
    """Run cnitool on a network configuration list. It makes up the container id itself."""
    folder = lab.folder / "net.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{network['name']}.conflist").write_text(json.dumps(network))
    environment = {
        **pod.environment(),
        "NETCONFPATH": str(folder),
        "CNI_PATH": str(path or lab.plugins),
    }
    done = subprocess.run(
        [str(binaries.cnitool), verb, str(network["name"]), environment["CNI_NETNS"]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
