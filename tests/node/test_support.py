"""What the kernel can do is asked of the kernel, and asking leaves nothing behind."""

from pathlib import Path

import anyio.to_thread
import pytest

from actors.node.installer import NodeFiles, Report
from api.settings import load_agent
from cni import install
from cni.coordination import RULE_PROTOCOL, RoutePlan, RulePlan
from cni.netlink import route, rule
from cni.netlink.socket import Request, route_socket
from cni.netlink.support import knows_link_kind
from cni.plan import LinkState

pytestmark = pytest.mark.node


def links() -> set[str]:
    return {line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]}


@pytest.mark.parametrize(("kind", "known"), [("macvlan", True), ("veth", True), ("nonsense", False)])
def test_kinds_of_links(kind: str, known: bool) -> None:
    before = links()
    assert knows_link_kind(kind) is known
    assert links() == before


async def test_without_macvlan_the_shim_is_installed_and_the_configuration_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bin", "net.d", "image/amd64", "image/arm64"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("amd64", "arm64"):
        (tmp_path / "image" / name / "spiderpool").write_bytes(install._OURS)
    settings = load_agent(
        {
            "SPIDERPOOL_POD_NAMESPACE": "spiderpool",
            "SPIDERPOOL_POD_NAME": "agent-x",
            "SPIDERPOOL_NODE_NAME": "n1",
            "SPIDERPOOL_CNI_BIN_DIR": str(tmp_path / "bin"),
            "SPIDERPOOL_CNI_CONF_DIR": str(tmp_path / "net.d"),
            "SPIDERPOOL_CNI_SHIM_DIR": str(tmp_path / "image"),
        }
    )
    files = NodeFiles(settings, current=lambda: True)
    monkeypatch.setattr(install, "LINK_KIND", "nonsense")
    report = await files.install()
    assert not report.kernel
    assert (tmp_path / "bin" / "spiderpool").exists()
    assert list((tmp_path / "net.d").iterdir()) == []
    monkeypatch.setattr(install, "LINK_KIND", "macvlan")
    report = await files.install()
    assert report.kernel
    assert (tmp_path / "net.d" / install.CONFLIST).exists()


async def test_an_agent_that_was_replaced_touches_nothing() -> None:
    settings = load_agent(
        {
            "SPIDERPOOL_POD_NAMESPACE": "spiderpool",
            "SPIDERPOOL_POD_NAME": "agent-x",
            "SPIDERPOOL_NODE_NAME": "n1",
            "SPIDERPOOL_CNI_BIN_DIR": "/nowhere",
        }
    )
    assert await NodeFiles(settings, current=lambda: False).install() == Report(current=False)


async def test_the_nodes_rules_go_with_the_files(tmp_path: Path) -> None:
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "net.d" / "10-bridge.conflist").write_text('{"name": "b", "plugins": [{"type": "bridge"}]}')
    settings = load_agent(
        {
            "SPIDERPOOL_POD_NAMESPACE": "spiderpool",
            "SPIDERPOOL_POD_NAME": "agent-x",
            "SPIDERPOOL_NODE_NAME": "n1",
            "SPIDERPOOL_CNI_BIN_DIR": str(tmp_path / "bin"),
            "SPIDERPOOL_CNI_CONF_DIR": str(tmp_path / "net.d"),
        }
    )
    files = NodeFiles(settings, current=lambda: True)
    route_to_a_pod = RoutePlan(destination="10.6.0.5/32", table=600)

    def change(*requests: Request) -> None:
        with route_socket() as sockets:
            sockets.pipeline(requests)

    lo = LinkState(ifname="lo", index=1)
    rules = [RulePlan(version=4, table=table, priority=1000) for table in (500, 600)]
    await anyio.to_thread.run_sync(change, *(rule.add(one, protocol=RULE_PROTOCOL) for one in rules))
    await anyio.to_thread.run_sync(change, route.request(lo, route_to_a_pod))
    withdrawn = await files.withdraw()
    # Other tests' agents may have left the rule of the other family, which goes as well.
    assert "IPv4 rule 1000 lookup 500" in withdrawn.removed
    assert not any("600" in one for one in withdrawn.removed)
    assert "10-bridge.conflist takes over; pods that run need IPv4 rule 1000 lookup 600" in str(withdrawn)
    await anyio.to_thread.run_sync(change, route.remove(lo, route_to_a_pod))
    assert (await files.withdraw()).removed == ("IPv4 rule 1000 lookup 600",)
    assert (await files.withdraw()).removed == ()
