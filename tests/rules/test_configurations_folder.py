"""The folder of CNI configurations: seen at once when it changes, and no error when it is not there."""

import asyncio
from pathlib import Path

import pytest

from actors.coordination.configurations import Folder, pod_network
from actors.coordination.folder import DiskConfigurations

pytestmark = pytest.mark.blocking


async def changed(folder: DiskConfigurations) -> bool:
    """Whether there is news, without waiting long for it."""
    try:
        async with asyncio.timeout(0.2):
            await folder.changed()
    except TimeoutError:
        return False
    return True


async def test_each_change_is_told_and_nothing_else(tmp_path: Path) -> None:
    configurations = DiskConfigurations(str(tmp_path))
    assert await configurations.read() == Folder(str(tmp_path))
    assert not await changed(configurations)
    (tmp_path / "10-calico.conflist").write_text('{"name": "calico"}')
    assert await changed(configurations)
    assert pod_network(await configurations.read())[0] == "calico"
    (tmp_path / "05-new").write_text('{"name": "cilium"}')
    (tmp_path / "05-new").rename(tmp_path / "05-cilium.conflist")
    assert await changed(configurations)
    assert pod_network(await configurations.read())[0] == "cilium"
    (tmp_path / "05-cilium.conflist").unlink()
    assert await changed(configurations)
    assert pod_network(await configurations.read())[0] == "calico"
    assert not await changed(configurations)
    configurations.close()


async def test_a_folder_that_goes_and_comes(tmp_path: Path) -> None:
    path = tmp_path / "net.d"
    configurations = DiskConfigurations(str(path))
    gone = await configurations.read()
    assert "No such file" in gone.error
    assert pod_network(gone)[0] is None
    path.mkdir()
    (path / "10-calico.conf").write_text('{"name": "calico"}')
    assert pod_network(await configurations.read())[0] == "calico"
    (path / "10-calico.conf").unlink()
    path.rmdir()
    assert await changed(configurations)
    assert (await configurations.read()).error
    path.mkdir()
    assert not (await configurations.read()).error
    configurations.close()


async def test_a_file_that_is_too_big_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "10-big.conf").open("wb") as file:
        file.truncate((1 << 20) + 1)
    configurations = DiskConfigurations(str(tmp_path))
    network, why = pod_network(await configurations.read())
    assert network is None
    assert "bigger than" in why
    configurations.close()
