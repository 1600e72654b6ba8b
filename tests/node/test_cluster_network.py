"""STATUS and GC of an overlay by a whole agent that executes its plugins: the CNI project's bridge, small scripts."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.agent import Agent
from actors.node import cluster
from actors.node.meta import Meta
from api import wire
from cni.delegate import ExecutedDelegates
from cni.errors import NotReady, TryAgainLater
from cni.journal import NETWORKS, Journal, State
from cni.protocol import parse_invocation
from tests.node.agents import serving
from tests.node.conftest import Segment
from tests.node.test_doors import Played
from tests.servers import CniBinaries, ServersUnavailable, debian_plugins

pytestmark = [
    pytest.mark.node,
    pytest.mark.blocking,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root"),
]

VALID = "cni.dev/valid-attachments"


class Controller(Played):
    """None of its pods names networks."""

    def answer(self, request: wire.Request) -> wire.Response:
        return wire.Networked(pod_uid="u") if isinstance(request, wire.FindNetworks) else super().answer(request)


class Node:
    """A node's folders, and calls to its agent."""

    def __init__(self, folder: Path, segment: Segment) -> None:
        self.state, self.conf, self.bin, self.log = (folder / name for name in ("state", "net.d", "bin", "log"))
        for made in (self.state, self.conf, self.bin):
            made.mkdir()
        self.netns = segment.container()
        self.meta = Meta(delegates=ExecutedDelegates(), conf_dir=self.conf)

    def plugin(self, name: str, script: str = "") -> dict[str, Any]:
        """One that notes what it is called for."""
        path = self.bin / name
        noted = f'cat > /dev/null; echo "{name} $CNI_COMMAND $CNI_CONTAINERID" >> {self.log}'
        path.write_text(f'#!/bin/sh\n{noted}\n{script}\n[ "$CNI_COMMAND" != ADD ] || echo "{{}}"\n')
        path.chmod(0o755)
        return {"type": name}

    def overlay(self, *plugins: dict[str, Any], **fields: Any) -> None:
        written = {"cniVersion": "1.1.0", "name": "pods", "plugins": plugins, **fields}
        (self.conf / "10-pods.conflist").write_text(json.dumps(written))

    def called(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    async def begun(self) -> None:
        """Wait until a plugin is at work."""
        for _ in range(2000):
            if self.called():
                return
            await asyncio.sleep(0.005)
        raise TimeoutError

    def attached(self) -> set[str]:
        entries = Journal(self.state / "journal").load_all()
        return {one.container_id for one in entries if one.part == NETWORKS and one.state is State.ADDED}

    async def call(self, agent: Agent, verb: str, cid: str = "", conf: Mapping[str, Any] = {}) -> bytes:
        ours: dict[str, Any] = {"type": "macvlan", "ipam": {"type": "spiderpool"}, "networks": True}
        given = {"cniVersion": "1.1.0", "name": "spiderpool", **ours, "clusterNetwork": "pods", **conf}
        headers = {"cni-type": "macvlan", "cni-command": verb, "cni-path": str(self.bin)}
        if cid:
            headers |= {
                "cni-containerid": cid,
                "cni-ifname": "eth0",
                "cni-netns": str(self.netns.path),
                "cni-args": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={cid};K8S_POD_UID={cid}",
            }
        return await agent.invoke(parse_invocation(headers, json.dumps(given).encode()))


@pytest.fixture
def node(segment: Segment, tmp_path: Path) -> Node:
    return Node(tmp_path, segment)


async def test_the_cni_projects_bridge_asks_its_ipam(node: Node, cni_binaries: CniBinaries) -> None:
    for program in (cni_binaries.bridge, cni_binaries.host_local):
        (node.bin / program.name).symlink_to(program)
    bridge = {"type": "bridge", "bridge": "br-pods", "ipam": {"type": "host-local"}}
    async with serving(node.state, Controller(), meta=node.meta) as agent:
        with pytest.raises(NotReady, match=r'clusterNetwork: .*"pods"'):
            await node.call(agent, "STATUS")
        node.overlay(bridge)
        assert await node.call(agent, "STATUS") == b""
        node.overlay({**bridge, "ipam": {"type": "absent"}})
        with pytest.raises(NotReady, match=r'clusterNetwork "pods": plugin bridge: .*"absent"') as caught:
            await node.call(agent, "STATUS")
        assert caught.value.code == 50
        assert await node.call(agent, "GC", conf={VALID: []}) == b""


async def test_debians_bridge_does_not_know_the_verb(node: Node) -> None:
    """Nor the version that has it, so an ADD fails as well."""
    try:
        (node.bin / "bridge").symlink_to(debian_plugins() / "bridge")
    except ServersUnavailable as problem:
        pytest.skip(str(problem))
    async with serving(node.state, Controller(), meta=node.meta) as agent:
        node.overlay({"type": "bridge", "bridge": "br-pods"})
        with pytest.raises(NotReady, match='clusterNetwork "pods": plugin bridge: '):
            await node.call(agent, "STATUS")
        with pytest.raises(Exception, match="plugin bridge: incompatible CNI versions"):
            await node.call(agent, "ADD", "c1")
        node.overlay({"type": "bridge", "bridge": "br-pods"}, cniVersion="1.0.0")
        assert await node.call(agent, "STATUS") == b""


async def test_one_that_hangs_holds_nobody_up_and_is_killed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    go = node.bin / "go"
    node.overlay(node.plugin("slow", f'while [ "$CNI_COMMAND" = STATUS ] && [ ! -e {go} ]; do sleep 0.02; done'))
    async with serving(node.state, Controller(), meta=node.meta) as agent:
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(node.call(agent, "STATUS"))
            await node.begun()
            await node.call(agent, "ADD", "c1")
            await node.call(agent, "DEL", "c1")
            assert not asked.done()
            go.touch()
        assert asked.result() == b""
        go.unlink()
        monkeypatch.setattr(cluster, "_STATUS_SECONDS", 0.2)
        with pytest.raises(NotReady, match=r'clusterNetwork "pods": plugin slow did not end within 0\.2 s'):
            await node.call(agent, "STATUS")


async def test_the_overlay_is_told_when_what_is_stale_has_gone(node: Node) -> None:
    node.overlay(node.plugin("first"), node.plugin("last"))
    valid = {VALID: [{"containerID": "c1", "ifname": "eth0"}]}
    async with serving(node.state, Controller(), meta=node.meta) as agent:
        for cid in ("c1", "c2"):
            await node.call(agent, "ADD", cid)
        assert node.attached() == {"c1", "c2"}
        node.log.unlink()
        await node.call(agent, "GC", conf=valid)
        assert node.called() == ["last DEL c2", "first DEL c2", "first GC ", "last GC "]
        assert node.attached() == {"c1"}
        node.log.unlink()
        node.overlay(node.plugin("first"), node.plugin("last"), disableGC=True)
        await node.call(agent, "ADD", "c2")
        await node.call(agent, "GC", conf=valid)
        assert [one for one in node.called() if "GC" in one] == []
        assert node.attached() == {"c1"}, "our own go all the same"
        await node.call(agent, "DEL", "c1")


async def test_whatever_fails_is_told_and_keeps_nobody_from_the_rest(node: Node) -> None:
    node.overlay(node.plugin("first"), node.plugin("last"))
    async with serving(node.state, Controller(), meta=node.meta) as agent:
        await node.call(agent, "ADD", "c1")
        node.plugin("first", 'case "$CNI_COMMAND" in DEL|GC) exit 1;; esac')
        with pytest.raises(
            TryAgainLater, match=r"GC of network spiderpool failed 2 times: c1 eth0: .*; cluster"
        ) as told:
            await node.call(agent, "GC", conf={VALID: []})
        assert 'clusterNetwork "pods": plugin first: GC ended with code 1' in told.value.details
        assert node.called()[-2:] == ["first GC ", "last GC "]
        node.plugin("first")
        await node.call(agent, "GC", conf={VALID: []})
        assert node.attached() == set()
