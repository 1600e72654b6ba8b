"""What the kernel can do is asked of the kernel, and asking leaves nothing behind."""

from pathlib import Path

import pytest

from actors.node.installer import NodeFiles, Report
from api.settings import load_agent
from cni import install
from cni.netlink.support import knows_link_kind

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
