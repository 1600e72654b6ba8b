"""STATUS and GC of an overlay that makes the first interface: small scripts are its plugins, and note what they get."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.node.cluster import collect
from actors.node.meta import Meta
from actors.node.readiness import check_node
from cni.delegate import ExecutedDelegates
from cni.errors import LimitedConnectivity, NotReady
from cni.protocol import Invocation
from tests.rules.test_cni_protocol import invoke
from tests.simulation.node import MemoryDisk, MemoryJournal, MemoryKernel

OURS = {"type": "spiderpool", "ipam": {"type": "spiderpool"}}
VALID = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]
WELL = "exit 0"
DOWN = 'echo \'{"code": 50, "msg": "the overlay is down"}\'; exit 1'
LIMITED = DOWN.replace("50", "51")


async def point(_: str) -> None:
    """Nothing dies here."""


class OldKernel(MemoryKernel):
    """Knows links of one kind."""

    async def knows(self, kind: str) -> bool:
        return kind == "ipvlan"


class Node:
    """Folders of configurations and plugins, and what the plugins were called for."""

    def __init__(self, folder: Path) -> None:
        self.conf = folder / "net.d"
        self.bin = folder / "bin"
        self.log = folder / "log"
        for made in (self.conf, self.bin):
            made.mkdir()
        self.meta = Meta(delegates=ExecutedDelegates(str(self.bin)), conf_dir=self.conf)
        self.kernel = MemoryKernel({}, point)

    def plugin(self, name: str, script: str = WELL) -> dict[str, Any]:
        path = self.bin / name
        noted = '"$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$CNI_NETNS" "$(cat)"'
        path.write_text(f"#!/bin/sh\nprintf '{name} %s<%s%s%s> %s\\n' {noted} >> {self.log}\n{script}\n")
        path.chmod(0o755)
        return {"type": name}

    def overlay(self, *plugins: dict[str, Any], **fields: Any) -> None:
        written = {"cniVersion": "1.1.0", "name": "pods", "plugins": plugins, **fields}
        (self.conf / "10-pods.conflist").write_text(json.dumps(written))

    def called(self) -> list[str]:
        """By name and verb, the environment of a container between."""
        return [line.split(" {")[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def told(self) -> list[dict[str, Any]]:
        return [json.loads("{" + line.split(" {", 1)[1]) for line in self.log.read_text().splitlines()]

    async def status(self, **conf: Any) -> None:
        journal = MemoryJournal(MemoryDisk(point))
        await check_node(self.kernel, journal, self.meta, call("STATUS", **conf))

    async def collect(self, **conf: Any) -> list[str]:
        return await collect(self.meta, call("GC", **{"cni.dev/valid-attachments": VALID}, **conf))


def call(verb: str, **conf: Any) -> Invocation:
    """Of our list."""
    given = {"cniVersion": "1.1.0", "name": "spiderpool", **OURS, "networks": True, "clusterNetwork": "pods", **conf}
    return invoke(given, command=verb, type=str(given["type"]))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# -- STATUS ------------------------------------------------------------------------------------------------------------


async def test_without_the_overlays_file_no_pod_comes(node: Node) -> None:
    with pytest.raises(NotReady, match=r'clusterNetwork: .*"pods": .*/net\.d has none$') as caught:
        await node.status()
    assert caught.value.code == 50
    (node.conf / "00-spiderpool.conflist").write_text(json.dumps({"name": "spiderpool", "plugins": [OURS]}))
    (node.conf / "10-pods.conflist").write_text('{"name": "po')
    (node.conf / "20-folder.conf").mkdir()
    with pytest.raises(NotReady) as caught:
        await node.status()
    assert caught.value.details.endswith(
        '/net.d has 00-spiderpool.conflist of the name "spiderpool", 10-pods.conflist: it is not JSON, '
        "20-folder.conf: it cannot be read: Is a directory"
    )
    node.overlay(node.plugin("theirs"))
    await node.status()


async def test_without_a_folder(node: Node) -> None:
    node.conf.rmdir()
    with pytest.raises(NotReady, match=r"the CNI configurations of this node in .*net\.d cannot be read: .*No such"):
        await node.status()
    node.meta = Meta(delegates=ExecutedDelegates())
    with pytest.raises(NotReady, match=r'clusterNetwork: .*"pods": the agent has no folder'):
        await node.status()


@pytest.mark.parametrize("conf", [{"clusterNetwork": ""}, {"networks": False}, {"type": "bridge"}])
async def test_who_needs_no_overlay_does_not_wait_for_it(node: Node, conf: dict[str, Any]) -> None:
    """Nor is it told of a GC. A bridge calls us for addresses alone."""
    given = {"cniVersion": "1.1.0", "name": "spiderpool", **OURS, "networks": True, "clusterNetwork": "pods", **conf}
    for _ in range(2):
        await check_node(
            node.kernel,
            MemoryJournal(MemoryDisk(point)),
            node.meta,
            invoke(given, command="STATUS", type="spiderpool"),
        )
        told = invoke({**given, "cni.dev/valid-attachments": VALID}, command="GC", type="spiderpool")
        assert await collect(node.meta, told) == []
        node.overlay(node.plugin("theirs", DOWN))
    assert node.called() == []


async def test_below_a_multus_the_overlay_is_that_ones(node: Node) -> None:
    node.overlay(node.plugin("theirs", DOWN))
    (node.conf / "00-multus.conf").write_text(json.dumps({"name": "m", "type": "multus-shim"}))
    await node.status()
    assert await node.collect() == []
    assert node.called() == []
    (node.conf / "00-multus.conf").unlink()
    with pytest.raises(NotReady):
        await node.status()


async def test_the_overlays_plugins_are_asked_as_libcni_asks_them(node: Node) -> None:
    first = {**node.plugin("first"), "mtu": 1400, "ipam": {"type": "host-local"}}
    node.overlay(first, {"type": "coordinator"}, node.plugin("last"), cniVersion="0.4.0", cniVersions=["1.1.0"])
    await node.status(runtimeConfig={"mac": "02:00:00:00:00:01"})
    assert node.called() == ["first STATUS<>", "last STATUS<>"]
    assert node.told() == [
        {"cniVersion": "1.1.0", "name": "pods", **first},
        {"cniVersion": "1.1.0", "name": "pods", "type": "last"},
    ]


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        (DOWN, NotReady, "the overlay is down"),
        (LIMITED, LimitedConnectivity, "the overlay is down"),
        ('echo \'{"code": 4, "msg": "unknown CNI_COMMAND: STATUS"}\'; exit 1', NotReady, "unknown CNI_COMMAND"),
        ("exit 3", NotReady, "STATUS ended with code 3"),
    ],
)
async def test_what_one_says_is_passed_on(node: Node, script: str, kind: type[Exception], words: str) -> None:
    """The first that fails is the answer. One that does not know the verb fails, too, as with libcni."""
    node.overlay(node.plugin("well"), node.plugin("theirs", script), node.plugin("never", LIMITED))
    with pytest.raises(kind, match=f'^clusterNetwork "pods": plugin theirs: {words}') as caught:
        await node.status()
    assert type(caught.value) is kind
    assert node.called() == ["well STATUS<>", "theirs STATUS<>"]


async def test_one_that_is_not_there(node: Node) -> None:
    node.overlay({"type": "absent"})
    with pytest.raises(NotReady, match='clusterNetwork "pods": type: there is no plugin "absent"'):
        await node.status()


@pytest.mark.parametrize("version", ["", "0.3.1", "1.0.0"])
async def test_lists_of_older_versions_are_not_asked(node: Node, version: str) -> None:
    node.overlay(node.plugin("theirs", DOWN), cniVersion=version)
    await node.status()
    assert await node.collect() == []
    assert node.called() == []


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_ours_in_the_overlays_list_are_looked_at_here(node: Node, version: str) -> None:
    """With their own configurations, whatever the version; the kind of the calling one is nothing to go by."""
    node.plugin("macvlan", DOWN)
    node.plugin("ipvlan", DOWN)
    node.kernel = OldKernel({}, point)
    node.overlay({**OURS, "type": "ipvlan"}, {"type": "coordinator"}, cniVersion=version)
    await node.status()
    with pytest.raises(NotReady, match="type: this node's kernel has no links of kind macvlan"):
        await node.status(clusterNetwork="")
    node.overlay({**OURS, "type": "macvlan"}, cniVersion=version)
    with pytest.raises(NotReady, match='clusterNetwork "pods": type: this node\'s kernel has no links of kind macvlan'):
        await node.status()
    node.overlay({**OURS, "type": "ipvlan", "mtu": "x"}, cniVersion=version)
    with pytest.raises(NotReady, match='clusterNetwork "pods": mtu: "x"'):
        await node.status()
    assert node.called() == []


async def test_a_list_that_names_our_own_is_no_circle(node: Node) -> None:
    node.overlay({**OURS, "networks": True, "clusterNetwork": "pods"})
    await node.status()


# -- GC ----------------------------------------------------------------------------------------------------------------


async def test_the_overlays_plugins_are_told_what_is_valid(node: Node) -> None:
    node.plugin("coordinator", DOWN)
    node.overlay(node.plugin("first"), {"type": "coordinator"}, {**node.plugin("last"), "mtu": 1400})
    assert await node.collect() == []
    assert node.called() == ["first GC<>", "last GC<>"]
    valid = {"cni.dev/valid-attachments": VALID, "cni.dev/attachments": VALID}
    assert node.told() == [
        {"cniVersion": "1.1.0", "name": "pods", "type": "first", **valid},
        {"cniVersion": "1.1.0", "name": "pods", "type": "last", "mtu": 1400, **valid},
    ]


async def test_each_is_told_whatever_the_others_say(node: Node) -> None:
    node.overlay(node.plugin("first", DOWN), {"type": "absent"}, node.plugin("well"), node.plugin("last", "exit 2"))
    assert await node.collect() == [
        'clusterNetwork "pods": plugin first: the overlay is down',
        f'clusterNetwork "pods": type: there is no plugin "absent": looked in {node.bin}, /opt/cni/bin',
        'clusterNetwork "pods": plugin last: GC ended with code 2',
    ]
    assert node.called() == ["first GC<>", "well GC<>", "last GC<>"]


@pytest.mark.parametrize(("said", "told"), [(True, 0), ("true", 0), (False, 1), (None, 1)])
async def test_a_list_may_say_that_others_share_it(node: Node, said: object, told: int) -> None:
    node.overlay(node.plugin("theirs"), disableGC=said)
    assert await node.collect() == []
    assert len(node.called()) == told


async def test_an_overlay_that_is_not_there_cannot_be_told(node: Node) -> None:
    (failure,) = await node.collect()
    assert failure.startswith('clusterNetwork: this node has no CNI configuration of the name "pods": ')
