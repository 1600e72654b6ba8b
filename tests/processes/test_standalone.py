"""spiderpool-standalone for those without Kubernetes: the real program, cnitool, files of pools, spiderpoolctl."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyroute2 import IPRoute

from ctl.main import main
from tests.netns import Netns
from tests.processes.lab import PROGRAMS, shim
from tests.servers import CniBinaries, ServerProcess, free_port

pytestmark = [pytest.mark.node, pytest.mark.blocking, pytest.mark.timeout(120)]


def pool(name: str, *ips: str, subnet: str = "10.9.0.0/16", **spec: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderIPPool",
            "metadata": {"name": name},
            "spec": {"subnet": subnet, "ips": list(ips), "default": True, **spec},
        }
    )


class Host:
    """A host with the program, a parent interface, and the folders of a CNI user."""

    def __init__(self, folder: Path, binaries: CniBinaries) -> None:
        self.folder = folder
        self.binaries = binaries
        self.state, self.pools = folder / "state", folder / "pools"
        self.socket = folder / "cni.sock"
        for name in ("pools", "net.d", "netns", "bin"):
            (folder / name).mkdir()
        for name in ("macvlan", "spiderpool"):
            (folder / "bin" / name).symlink_to(shim())
        plugin = {"type": "macvlan", "master": "alone-up", "ipam": {"type": "spiderpool"}}
        conflist = {"cniVersion": "1.1.0", "name": "lan", "plugins": [plugin]}
        (folder / "net.d" / "10-lan.conflist").write_text(json.dumps(conflist))
        bridge = {"type": "bridge", "bridge": "alone-br", "ipam": {"type": "spiderpool"}}
        conflist = {"cniVersion": "1.0.0", "name": "bridged", "plugins": [bridge]}
        (folder / "net.d" / "20-bridged.conflist").write_text(json.dumps(conflist))
        config = folder / "conf.yml"
        config.write_text(f"ipamUnixSocketPath: {self.socket}\ntuneSysctlConfig: false\n")
        self.port = free_port()
        self.process = ServerProcess(
            "standalone",
            [PROGRAMS / "spiderpool-standalone", "daemon", f"--config-path={config}"],
            folder=folder,
            env={
                "PATH": os.environ["PATH"],
                "SPIDERPOOL_STATE_DIR": str(self.state),
                "SPIDERPOOL_STANDALONE_POOL_DIR": str(self.pools),
                "SPIDERPOOL_HEALTH_PORT": str(self.port),
            },
        )

    def start(self) -> None:
        self.process.start()
        self.wait_for(lambda: self.state.exists() and self.ctl("status")[0] == 0)

    def container(self, name: str) -> Netns:
        return Netns(self.folder / "netns", name)

    def cnitool(self, verb: str, netns: Netns, *, network: str = "lan", args: str = "") -> dict[str, Any]:
        """As a user without Kubernetes: nobody names a pod unless `args` does."""
        done = subprocess.run(
            [self.binaries.cnitool, verb, network, netns.path],
            env={
                "PATH": os.environ["PATH"],
                "CNI_PATH": f"{self.folder / 'bin'}{os.pathsep}{self.binaries.bridge.parent}",
                "NETCONFPATH": str(self.folder / "net.d"),
                "SPIDERPOOL_SOCKET": str(self.socket),
                **({"CNI_ARGS": args} if args else {}),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
        return answer

    def ctl(self, *arguments: str) -> tuple[int, str]:
        """spiderpoolctl in this process, which saves its start: exit code, and what it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([*arguments, "--state-dir", str(self.state)])
        return code, out.getvalue()

    def shown(self, *arguments: str) -> Any:
        return json.loads(self.ctl(*arguments, "-o", "json")[1])

    def records(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for item in self.shown("get", "pools")["items"]:
            found |= json.loads(item.get("status", {}).get("allocatedIPs") or "{}")
        return found

    def pool_names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.shown("get", "pools")["items"]}

    def wait_for(self, what: Callable[[], bool], *, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.alive, self.process.tail(40)
            assert time.monotonic() < deadline, f"still not: {what}\n{self.process.tail(40)}"
            time.sleep(0.1)


@pytest.fixture
def host(tmp_path: Path, cni_binaries: CniBinaries) -> Iterator[Host]:
    with IPRoute() as route:
        route.link("add", ifname="alone-up", kind="veth", peer={"ifname": "alone-port"})
        for name in ("alone-up", "alone-port"):
            route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        made = Host(tmp_path, cni_binaries)
        try:
            yield made
        finally:
            made.process.stop()
            for name in ("alone-up", "alone-br"):
                for index in route.link_lookup(ifname=name):
                    route.link("del", index=index)


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"] for ip in result["ips"]]


def test_cnitool_and_a_folder_of_pools(host: Host) -> None:
    (host.pools / "lan.yaml").write_text(pool("lan", "10.9.0.10-10.9.0.12"))
    host.start()
    with host.container("one") as one, host.container("two") as two:
        assert addresses(host.cnitool("add", one)) == ["10.9.0.10/16"]
        host.cnitool("check", one)
        assert addresses(host.cnitool("add", two, args="IgnoreUnknown=1;K8S_POD_NAME=My_App")) == ["10.9.0.11/16"]
        records = host.records()
        assert records["10.9.0.10"]["pod"].startswith("default/cnitool-")
        assert records["10.9.0.10"]["podUid"].startswith("cnitool-")
        assert (records["10.9.0.11"]["pod"], records["10.9.0.11"]["podUid"]) == ("default/my-app", "default/My_App")
        host.cnitool("del", one)
        host.cnitool("del", two, args="IgnoreUnknown=1;K8S_POD_NAME=My_App")
        # The records go first: a SpiderEndpoint says what its pod may still hold.
        host.wait_for(lambda: not host.records() and host.shown("get", "endpoints")["items"] == [])


def test_addresses_for_somebody_elses_link(host: Host) -> None:
    (host.pools / "lan.yaml").write_text(pool("lan", "10.9.0.10-10.9.0.12"))
    host.start()
    with host.container("one") as one:
        assert addresses(host.cnitool("add", one, network="bridged")) == ["10.9.0.10/16"]
        assert host.shown("ip", "show", "10.9.0.10")["addresses"][0]["pod"].startswith("default/cnitool-")
        host.cnitool("del", one, network="bridged")
        host.wait_for(lambda: not host.records())


def test_files_come_change_and_go(host: Host) -> None:
    file = host.pools / "lan.yaml"
    file.write_text(pool("lan", "10.9.0.10") + "---\n" + pool("spare", "10.9.1.10"))
    host.start()
    assert host.pool_names() == {"lan", "spare"}
    with host.container("one") as one:
        host.cnitool("add", one)
        held = next(iter(host.records()))
        file.write_text(pool("lan", "10.9.0.10", "10.9.0.20").replace("subnet:", "subnett:"))
        host.wait_for(lambda: "lan.yaml: spec.subnett" in " ".join(host.shown("status")["wrong"]))
        assert host.pool_names() == {"lan", "spare"}, "a file that makes no sense changes nothing"
        file.write_text(pool("lan", "10.9.0.20"))
        host.wait_for(lambda: f"would leave out what is in use: {held}" in " ".join(host.shown("status")["wrong"]))
        file.write_text(pool("lan", "10.9.0.10", "10.9.0.20"))
        host.wait_for(lambda: host.pool_names() == {"lan"})
        host.wait_for(lambda: host.shown("status")["wrong"] == [])
        file.unlink()
        host.wait_for(lambda: "SpiderIPPool lan any more, it stays" in " ".join(host.shown("status")["wrong"]))
        assert held in host.records()
        host.cnitool("del", one)
    host.wait_for(lambda: host.pool_names() == set())


def test_what_neither_journal_nor_kernel_knows_is_collected(host: Host) -> None:
    (host.pools / "lan.yaml").write_text(pool("lan", "10.9.0.10-10.9.0.12"))
    host.start()
    with host.container("one") as one:
        host.cnitool("add", one)
        assert host.ctl("doctor", "--settle", "0")[0] == 0
        host.process.stop(kill=True)
        shutil.rmtree(host.state / "journal")
        host.start()
        assert [f["check"] for f in host.shown("doctor", "--settle", "0")["findings"]] == ["orphan"]
        gc = host.shown("gc", "--address", "10.9.0.10", "--wait", "3")
        assert (gc["told"][0]["answer"], gc["released"]) == ("ok", False), "a link carries it"
        assert "10.9.0.10" in host.records()
    gc = host.shown("gc", "--address", "10.9.0.10", "--wait", "20")
    assert gc["released"], gc
    assert host.shown("get", "endpoints")["items"] == []
    assert host.ctl("doctor", "--settle", "0")[0] == 0


def test_a_container_whose_namespace_is_gone_is_released(host: Host) -> None:
    (host.pools / "lan.yaml").write_text(pool("lan", "10.9.0.10-10.9.0.12"))
    host.start()
    with host.container("one") as one:
        host.cnitool("add", one)
        assert host.ctl("ip", "release", "10.9.0.10", "--yes")[0] == 1, "it lives"
    host.wait_for(lambda: not host.records(), seconds=60)


def test_an_address_set_by_hand_waits_for_its_container(host: Host) -> None:
    (host.pools / "lan.yaml").write_text(pool("lan", "10.9.0.10-10.9.0.12"))
    host.start()
    code, said = host.ctl("ip", "set", "10.9.0.12", "--pod", "default/web", "--yes")
    assert code == 0, said
    host.shown("gc")
    with host.container("one") as one:
        assert addresses(host.cnitool("add", one, args="K8S_POD_NAME=web")) == ["10.9.0.12/16"]
        seen = host.shown("status")["agents"][0]
        assert (seen["node"], seen["last_pod"], seen["adds"]) == ("localhost", "default/web", 1)
        host.cnitool("del", one, args="K8S_POD_NAME=web")
        host.wait_for(lambda: not host.records())


def test_who_had_an_address_is_known_after_the_program_has_ended(host: Host) -> None:
    host.pools.joinpath("lan.yaml").write_text(pool("lan", "10.9.0.10"))
    host.start()
    with host.container("one") as netns:
        (address,) = addresses(host.cnitool("add", netns))
        (record,) = host.records().values()
        host.cnitool("del", netns)
    host.wait_for(lambda: not host.records())
    host.process.stop()
    (line,) = host.shown("history", "ip", address.partition("/")[0])["holders"]
    assert (line["pod"], line["how"], line["end"], line.get("noticed")) == (record["pod"], "granted", "released", None)
