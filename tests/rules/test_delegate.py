"""Other people's plugins are executed as a runtime would: small scripts say what they were given."""

import json
from pathlib import Path

import pytest

from cni.delegate import DelegateFailed, ExecutedDelegates, Target, find_program
from cni.errors import InvalidConfig
from cni.install import SET_ASIDE
from cni.protocol import Verb
from cni.result import IpConfig, Result

CONF = {"cniVersion": "0.4.0", "name": "n", "type": "theirs"}
TARGET = Target(container_id="c1", netns="/run/netns/x", ifname="net1", args="A=1", path="/nowhere")


def plugin(folder: Path, script: str, name: str = "theirs") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def test_what_it_is_given_and_what_it_answers(tmp_path: Path) -> None:
    answer = json.dumps({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.9/24"}]})
    plugin(tmp_path, f"cat > {tmp_path}/stdin\nenv > {tmp_path}/env\necho '{answer}'")
    before = Result(ips=(IpConfig(address="10.0.0.2/24"),))
    result = await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, TARGET, CONF, previous=before)
    assert result == Result(ips=(IpConfig(address="10.0.0.9/24"),))
    stdin = json.loads((tmp_path / "stdin").read_text())
    assert stdin["prevResult"]["ips"][0] == {"version": "4", "address": "10.0.0.2/24"}
    assert {key: stdin[key] for key in CONF} == CONF
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    said = {key: value for key, value in environment.items() if key.startswith("CNI_")}
    assert said == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "A=1",
        "CNI_PATH": f"{tmp_path}:/nowhere",
    }


async def test_its_own_error(tmp_path: Path) -> None:
    delegates = ExecutedDelegates(str(tmp_path))
    plugin(tmp_path, """echo '{"code": 7, "msg": "no bridge", "details": "br9"}'; exit 1""")
    with pytest.raises(DelegateFailed, match="plugin theirs: no bridge: br9") as caught:
        await delegates.run(Verb.ADD, TARGET, CONF)
    assert caught.value.code == 7
    plugin(tmp_path, "echo boom >&2; exit 3")
    with pytest.raises(DelegateFailed, match="plugin theirs: DEL ended with code 3: boom") as caught:
        await delegates.run(Verb.DEL, TARGET, CONF)
    assert caught.value.code == 999
    plugin(tmp_path, "echo '[7'; exit 4")
    with pytest.raises(DelegateFailed, match="ended with code 4"):
        await delegates.run(Verb.ADD, TARGET, CONF)


async def test_a_result_that_is_none(tmp_path: Path) -> None:
    delegates = ExecutedDelegates(str(tmp_path))
    plugin(tmp_path, "echo nonsense")
    with pytest.raises(DelegateFailed, match="its result is no JSON"):
        await delegates.run(Verb.ADD, TARGET, CONF)
    plugin(tmp_path, """echo '{"ips": 7}'""")
    with pytest.raises(InvalidConfig, match="the result of plugin theirs"):
        await delegates.run(Verb.ADD, TARGET, CONF)
    assert await delegates.run(Verb.DEL, TARGET, CONF) == Result()


async def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=f'no plugin "theirs".*{tmp_path}'):
        await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, TARGET, CONF)
    plugin(tmp_path, "").write_bytes(b"\x7fELF nothing")
    with pytest.raises(InvalidConfig, match="cannot be executed"):
        await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, TARGET, CONF)


def test_what_was_set_aside_is_what_is_meant(tmp_path: Path) -> None:
    plugin(tmp_path, "", "macvlan")
    assert find_program("macvlan", [str(tmp_path)]) == tmp_path / "macvlan"
    aside = plugin(tmp_path, "", f"macvlan{SET_ASIDE}")
    assert find_program("macvlan", [str(tmp_path)]) == aside
    assert find_program("macvlan", []) is None
