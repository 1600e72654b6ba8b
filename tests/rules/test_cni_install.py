"""The agent's files on a node: what goes where and when, and what stays behind."""

import json
import os
import platform
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import install
from cni.config import decode_config, decode_json
from cni.conflist import read_conflist
from cni.install import CONFLIST, MARK, Configuration, InstallFailed, Places, plan_withdrawal, read_configuration

BRIDGE = json.dumps({"name": "b", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]})
SHIM = b"\x7fELF" + install._OURS + b"of some version"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("bin", "net.d", "image/amd64", "image/arm64"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("amd64", "arm64"):
        (tmp_path / "image" / name / "spiderpool").write_bytes(SHIM + name.encode())
    return Places(
        bin_dir=tmp_path / "bin",
        conf_dir=tmp_path / "net.d",
        shim_dir=tmp_path / "image",
        conflist=install.conflist(master="eth0"),
    )


def names(folder: Path | None) -> list[str]:
    assert folder is not None
    return sorted(path.name for path in folder.iterdir())


def seen(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


# -- decisions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], ""),
        ([CONFLIST], ""),
        (["10-bridge.conflist", CONFLIST], ""),
        (["00-aaa.conf", "00-bbb.conflist", CONFLIST], "00-aaa.conf"),
        (["00-multus.conf"], "00-multus.conf"),
        (["00-spiderpool.conf"], "00-spiderpool.conf"),
        (["00-spiderpool.json", "00-aaa.txt", "00-aaa", ".00-spiderpool.conflist.new", "README"], ""),
        ([".hidden.conflist"], ".hidden.conflist"),
        (["Z.conf"], ""),
    ],
)
def test_who_comes_before_us(present: list[str], expected: str) -> None:
    assert install.shadow_of(present) == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), unique=True))
def test_the_order_is_that_of_the_bytes_as_runtimes_sort(present: list[str]) -> None:
    ordered = install.in_order(present)
    assert ordered == sorted(ordered, key=str.encode)
    shadow = install.shadow_of(present)
    assert not shadow or shadow.encode() < CONFLIST.encode()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.conflist", BRIDGE, ""),
        ("a.conf", '{"type": "bridge"}', ""),
        ("a.conf", BRIDGE, "type"),
        ("a.conflist", '{"type": "bridge"}', "plugins"),
        ("a.conflist", '{"plugins": []}', "plugins"),
        ("a.conflist", '{"plugins": [{}]}', "type"),
        ("a.conflist", '{"plugins": ["x"]}', "type"),
        ("a.conflist", '{"plugins": {"type": "x"}}', "plugins"),
        ("a.json", "[]", "object"),
        ("a.conf", "{", "JSON"),
        ("a.conf", "", "JSON"),
        ("a.conf", "\0\0", "JSON"),
    ],
)
def test_what_a_runtime_can_use(name: str, text: str, problem: str) -> None:
    found = read_configuration(name, text.encode())
    assert bool(found.problem) == bool(problem)
    assert problem in found.problem


def one(name: str, *types: str, problem: str = "") -> Configuration:
    return Configuration(name, problem, frozenset(types))


@pytest.mark.parametrize(
    ("others", "conflist", "shims", "why"),
    [
        (None, False, False, "other plugins may call"),
        ([], False, False, "no other CNI configuration"),
        ([one("10-bridge.conflist", "bridge", "host-local")], True, True, "10-bridge.conflist takes over"),
        ([one("10-x.conf", problem="it is no JSON"), one("20-y.conf", "bridge")], False, False, "10-x.conf"),
        ([one("20-y.conf", "bridge"), one("30-x.conf", problem="it is no JSON")], True, True, "20-y.conf"),
        ([one("00-multus.conf", "multus"), one("20-y.conf", "bridge")], True, False, "00-multus.conf calls multus"),
        ([one("20-y.conf", "bridge"), one("30-z.conf", "ipvlan", "spiderpool")], True, False, "30-z.conf calls spid"),
    ],
)
def test_what_goes_and_what_stays(others: list[Configuration] | None, conflist: bool, shims: bool, why: str) -> None:
    plan = plan_withdrawal(others, ["spiderpool"])
    assert (plan.conflist, plan.shims) == (conflist, shims)
    assert why in plan.why


def test_the_configuration_says_what_the_settings_say() -> None:
    plain = json.loads(install.conflist(networks=False))
    assert plain["plugins"][0] == {
        "type": "spiderpool", "mode": "bridge", "ipam": {"type": "spiderpool"}, "coordinator": {"mode": "auto"}
    }  # fmt: skip
    full = json.loads(install.conflist(master="bond0", mtu=9000, cluster_network="k8s-pod-network"))
    assert (full["name"], full["plugins"][0]["master"], full["plugins"][0]["mtu"]) == ("spiderpool", "bond0", 9000)
    # A runtime puts name and version into the element and gives it to the shim.
    element = {"cniVersion": full["cniVersion"], "name": full["name"], **full["plugins"][0]}
    conf = decode_config(decode_json(json.dumps(element).encode()))
    assert (conf.master, conf.networks, conf.cluster_network) == ("bond0", True, "k8s-pod-network")
    # A runtime tells of host ports and rates only those who declare it.
    assert full["plugins"][0]["capabilities"] == {"portMappings": True, "bandwidth": True}
    assert not read_configuration(CONFLIST, install.conflist()).problem
    assert "cniVersions" not in full
    asked = install.conflist(status=True)
    assert read_conflist(asked, where=CONFLIST).cni_version == "1.1.0"
    assert json.loads(asked)["cniVersion"] == "1.0.0", "what a runtime reads that does not know the other key"


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_shim_of_this_machine_and_the_configuration(places: Places) -> None:
    done = install.install(places)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert (places.bin_dir / "spiderpool").read_bytes() == SHIM + architecture.encode()
    assert (places.bin_dir / "spiderpool").stat().st_mode & 0o7777 == 0o755
    assert places.conf_dir is not None
    assert (places.conf_dir / CONFLIST).read_bytes() == places.conflist
    assert (places.conf_dir / CONFLIST).stat().st_mode & 0o7777 == 0o644
    assert done.changed == (str(places.bin_dir / "spiderpool"), str(places.conf_dir / CONFLIST))
    assert (names(places.bin_dir), names(places.conf_dir)) == (["spiderpool"], [CONFLIST])


def test_what_is_as_it_should_be_is_not_touched(places: Places) -> None:
    install.install(places)
    assert places.conf_dir is not None
    before = seen(places.bin_dir), seen(places.conf_dir)
    folder = places.conf_dir.stat().st_mtime_ns
    assert install.install(places).changed == ()
    assert (seen(places.bin_dir), seen(places.conf_dir)) == before
    assert places.conf_dir.stat().st_mtime_ns == folder, "the runtime, which watches the folder, was woken"


@pytest.mark.parametrize("damage", ["removed", "changed", "mode", "link"])
def test_what_somebody_did_is_put_right(places: Places, damage: str) -> None:
    install.install(places)
    assert places.conf_dir is not None
    path = places.conf_dir / CONFLIST
    match damage:
        case "removed":
            path.unlink()
        case "changed":
            path.write_text(BRIDGE)
        case "mode":
            path.chmod(0o600)
        case _:
            (places.bin_dir / "elsewhere").write_bytes(places.conflist)
            path.unlink()
            path.symlink_to(places.bin_dir / "elsewhere")
    assert install.install(places).changed == (str(path),)
    assert path.read_bytes() == places.conflist
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o7777 == 0o644


def test_a_newer_shim_replaces_an_older_one_by_a_rename(places: Places) -> None:
    install.install(places)
    shim = places.bin_dir / "spiderpool"
    with shim.open("rb") as running:
        places.shim.write_bytes(SHIM + b"newer")
        assert install.install(places).changed == (str(shim),)
        assert running.read() != shim.read_bytes(), "what runs was written over"
    assert names(places.bin_dir) == ["spiderpool"]


def test_the_configuration_is_never_there_without_the_shim(places: Places) -> None:
    places.shim.unlink()
    with pytest.raises(InstallFailed, match=r"cannot read .*/spiderpool: No such file or directory, errno 2"):
        install.install(places)
    assert names(places.conf_dir) == []


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("folder", ["bin_dir", "conf_dir"])
def test_a_folder_that_cannot_be_written_is_named(places: Places, folder: str) -> None:
    hopeless = msgspec.structs.replace(places, **{folder: Path("/proc/self")})
    with pytest.raises(InstallFailed, match=r"cannot (set aside|write) /proc/self/.*errno \d+"):
        install.install(hopeless)


def test_a_missing_folder_is_named(places: Places, tmp_path: Path) -> None:
    with pytest.raises(InstallFailed, match=r"cannot write .*/nowhere/spiderpool: No such file or directory, errno 2"):
        install.install(msgspec.structs.replace(places, bin_dir=tmp_path / "nowhere"))
    assert names(places.conf_dir) == []


def test_others_configurations_stay_as_they_are(places: Places) -> None:
    assert places.conf_dir is not None
    (places.conf_dir / "00-aaa.conf").write_text("not even JSON")
    (places.conf_dir / "10-bridge.conflist").write_text(BRIDGE)
    before = seen(places.conf_dir)
    assert install.install(places).shadow == str(places.conf_dir / "00-aaa.conf")
    assert {name: found for name, found in seen(places.conf_dir).items() if name != CONFLIST} == before
    (places.conf_dir / "00-aaa.conf").unlink()
    assert install.install(places).shadow == ""


def test_a_folder_with_a_telling_name_is_no_configuration(places: Places) -> None:
    assert places.conf_dir is not None
    (places.conf_dir / "00-aaa.conf").mkdir()
    assert install.install(places).shadow == ""


def test_only_the_shim(places: Places) -> None:
    install.install(msgspec.structs.replace(places, conf_dir=None))
    assert (names(places.bin_dir), names(places.conf_dir)) == (["spiderpool"], [])


def test_a_program_whose_name_the_shim_takes_comes_back(places: Places) -> None:
    two = msgspec.structs.replace(places, plugins=("spiderpool", "macvlan"))
    (places.bin_dir / "macvlan").write_bytes(b"the reference plugin")
    install.install(two)
    install.install(two)
    assert names(places.bin_dir) == ["macvlan", "macvlan.before-spiderpool", "spiderpool"]
    assert places.conf_dir is not None
    (places.conf_dir / "10-bridge.conflist").write_text(BRIDGE)
    done = install.withdraw(two)
    assert (places.bin_dir / "macvlan").read_bytes() == b"the reference plugin"
    assert names(places.bin_dir) == ["macvlan"]
    assert done.left == ()


def test_withdrawal_with_a_successor(places: Places) -> None:
    install.install(places)
    assert places.conf_dir is not None
    (places.conf_dir / "10-bridge.conflist").write_text(BRIDGE)
    done = install.withdraw(places)
    assert (names(places.bin_dir), names(places.conf_dir)) == ([], ["10-bridge.conflist"])
    assert done.removed == (str(places.conf_dir / CONFLIST), str(places.bin_dir / "spiderpool"))
    assert (done.left, done.why) == ((), "10-bridge.conflist takes over")
    assert install.withdraw(places).removed == ()


def test_withdrawal_without_a_successor(places: Places) -> None:
    install.install(places)
    done = install.withdraw(places)
    assert (names(places.bin_dir), names(places.conf_dir)) == (["spiderpool", MARK], [CONFLIST])
    assert done.removed == ()
    assert str(places.bin_dir / MARK) in done.left
    assert str(done).startswith("removed nothing; left ")


def test_withdrawal_beside_multus(places: Places) -> None:
    install.install(places)
    assert places.conf_dir is not None
    (places.conf_dir / "00-multus.conf").write_text('{"type": "multus"}')
    done = install.withdraw(places)
    assert (names(places.bin_dir), names(places.conf_dir)) == (["spiderpool", MARK], ["00-multus.conf"])
    assert "multus" in done.why


def test_a_new_installation_takes_the_mark_away(places: Places) -> None:
    install.install(places)
    install.withdraw(places)
    assert install.install(places).changed == ()
    assert (names(places.bin_dir), names(places.conf_dir)) == (["spiderpool"], [CONFLIST])


def test_a_shim_of_somebody_else_is_not_removed(places: Places) -> None:
    assert places.conf_dir is not None
    (places.bin_dir / "spiderpool").write_bytes(b"the original's IPAM plugin")
    (places.conf_dir / "10-bridge.conflist").write_text(BRIDGE)
    assert install.withdraw(places).removed == ()
    assert names(places.bin_dir) == ["spiderpool"]


def test_paths_are_named_as_on_the_node() -> None:
    assert install.on_node(Path("/host/opt/cni/bin/spiderpool")) == "/opt/cni/bin/spiderpool"
    assert install.on_node(Path("/opt/cni/bin")) == "/opt/cni/bin"


def test_the_shim_that_is_built_is_known_as_ours() -> None:
    source = Path(install.__file__).with_name("shim") / "main.c"
    text = source.read_text()
    assert f'"{MARK}"' in text
    assert '"POST /v1/cni HTTP/1.1\\r\\nHost: spiderpool\\r\\n"' in text
