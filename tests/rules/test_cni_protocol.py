"""Every rule of the CNI protocol that a call can break, and what the runtime is told then."""

import contextlib
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni.errors import CniError, DecodeFailure, IncompatibleVersion, InvalidConfig, InvalidEnvironment
from cni.pods import named_by_runtime
from cni.protocol import Invocation, Role, Verb, parse_invocation, peek_version
from cni.result import SUPPORTED_VERSIONS

HEADERS = {
    "cni-type": "macvlan",
    "cni-command": "ADD",
    "cni-containerid": "0a1b2c3d",
    "cni-netns": "/run/netns/pod",
    "cni-ifname": "eth0",
    "cni-args": quote(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;TRACEPARENT=00-t-s-01"
    ),
    "cni-path": "/opt/cni/bin",
    "cni-start": "1700000000000000001",
}
CONF: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "lan",
    "type": "macvlan",
    "master": "eth1",
    "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["v4"]},
}


def invoke(body: object = CONF, **headers: str) -> Invocation:
    """A call with some headers changed (`_` for `-`); an empty one is left out."""
    changed = {f"cni-{name.replace('_', '-')}": value for name, value in headers.items()}
    merged = {key: value for key, value in {**HEADERS, **changed}.items() if value}
    seen = parse_invocation(merged, body if isinstance(body, bytes) else json.dumps(body).encode())
    return named_by_runtime(seen)


def test_add() -> None:
    seen = invoke()
    assert (seen.verb, seen.type, seen.role, seen.version) == (Verb.ADD, "macvlan", Role.MAIN, "1.1.0")
    assert (seen.container_id, seen.netns, seen.ifname) == ("0a1b2c3d", "/run/netns/pod", "eth0")
    assert (seen.args.namespace, seen.args.name, seen.args.uid) == ("default", "web-0", "u-1")
    assert seen.traceparent == "00-t-s-01"
    assert seen.shim_start_ns == 1700000000000000001
    assert seen.conf.ipam.default_ipv4_ippool == ("v4",)


def test_role_comes_from_the_name_that_the_shim_was_called_by() -> None:
    assert invoke({**CONF, "type": "bridge"}, type="/opt/cni/bin/spiderpool").role is Role.IPAM
    assert invoke(CONF, type="spiderpool").role is Role.IPAM
    assert invoke(CONF, type="/opt/cni/bin/macvlan").role is Role.MAIN


def test_one_name_for_link_and_addresses() -> None:
    seen = invoke({**CONF, "type": "spiderpool"}, type="spiderpool")
    assert (seen.role, seen.link_kind) == (Role.MAIN, "macvlan")
    assert invoke(CONF, type="spiderpool").link_kind == ""


def test_what_runtimes_add_is_let_through() -> None:
    body = {
        **CONF,
        "capabilities": {"mac": True},
        "runtimeConfig": {"mac": "02:00:00:00:00:01", "portMappings": []},
        "dns": {},
        "pciBusID": "0000:01:00.0",
        "mtu": None,
        "ipam": {**CONF["ipam"], "log_level": "DEBUG", "log_file_max_size": 10, "routes": [], "clean_gateway": None},
    }
    assert invoke(body).conf.runtime_config.mac == "02:00:00:00:00:01"


def test_del_needs_neither_namespace_nor_pod_nor_a_readable_previous_result() -> None:
    unreadable: list[object] = [[], "text", 5]
    for kept in unreadable:
        assert invoke({**CONF, "prevResult": kept}, command="DEL").prev_result is None
    seen = invoke({**CONF, "prevResult": {"ips": "none"}}, command="DEL", netns="", args="")
    assert (seen.netns, seen.prev_result, seen.args.name) == ("", None, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"mtu": "9000"},
        {"mtu": -1, "master": 5, "vlanId": 4095, "bond": {"mode": 7}},
        {"prevResult": []},
        {"ipam": {**CONF["ipam"], "default_ipv4_ippool": "v4"}},
        {"coordinator": {"mode": 5}},
    ],
)
def test_del_is_there_for_what_add_was_refused_for(wrong: dict[str, Any]) -> None:
    """A pod whose network cannot be has to be able to go."""
    with pytest.raises(InvalidConfig):
        invoke({**CONF, **wrong})
    seen = invoke({**CONF, **wrong}, command="DEL")
    assert (seen.role, seen.conf.name, seen.conf.ipam.type) == (Role.MAIN, CONF["name"], "spiderpool")
    assert invoke({**CONF, **wrong}, command="DEL", type="spiderpool").role is Role.IPAM


def test_del_of_what_another_ipam_would_have_served_and_of_an_impossible_name() -> None:
    body = {**CONF, "ipam": {"type": "host-local"}}
    assert invoke(body, command="DEL").role is Role.MAIN
    with pytest.raises(InvalidEnvironment, match=r'CNI_IFNAME: "net%d".*number'):
        invoke(CONF, ifname="net%25d")
    assert invoke(CONF, command="DEL", ifname="net%25d").ifname == "net%d"
    with pytest.raises(InvalidEnvironment, match="CNI_IFNAME"):
        invoke(CONF, command="DEL", ifname="a/b")


def test_gc_and_status_name_no_container() -> None:
    body = {**CONF, "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    seen = invoke(body, command="GC", containerid="", netns="", ifname="", args="")
    assert seen.conf.valid_attachments is not None
    assert [(one.container_id, one.ifname) for one in seen.conf.valid_attachments] == [("c1", "eth0")]
    assert invoke(CONF, command="STATUS", containerid="", netns="", ifname="", args="").conf.valid_attachments is None


def test_version_needs_nothing() -> None:
    assert parse_invocation({"cni-command": "VERSION"}, b"").verb is Verb.VERSION


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_verbs_of_a_version(version: str) -> None:
    body = {**CONF, "cniVersion": version, "prevResult": {}}
    for verb, since in {"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}.items():
        if SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(since):
            assert invoke(body, command=verb).verb == verb
        else:
            with pytest.raises(CniError) as caught:
                invoke(body, command=verb)
            assert caught.value.code == 1
            assert version in caught.value.msg
            assert verb in caught.value.msg


BAD_ENVIRONMENT: list[tuple[dict[str, str], list[str]]] = [
    ({"command": ""}, ["CNI_COMMAND"]),
    ({"command": "ATTACH"}, ["CNI_COMMAND", '"ATTACH"']),
    ({"containerid": ""}, ["CNI_CONTAINERID"]),
    ({"netns": ""}, ["CNI_NETNS"]),
    ({"ifname": ""}, ["CNI_IFNAME"]),
    ({"path": ""}, ["CNI_PATH"]),
    ({"netns": "", "path": "", "ifname": ""}, ["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
    ({"containerid": ".."}, ["CNI_CONTAINERID", '".."']),
    ({"containerid": quote("../../etc/passwd", safe="")}, ["CNI_CONTAINERID", "passwd"]),
    ({"containerid": "a" * 256}, ["CNI_CONTAINERID", "aaa"]),
    ({"containerid": "a%0Ab"}, ["CNI_CONTAINERID"]),
    ({"ifname": "a" * 16}, ["CNI_IFNAME", "a" * 16]),
    ({"ifname": quote("ü" * 8)}, ["CNI_IFNAME"]),
    ({"ifname": ".."}, ["CNI_IFNAME", '".."']),
    ({"ifname": quote("eth/0", safe="")}, ["CNI_IFNAME", '"eth/0"']),
    ({"ifname": quote("eth:0")}, ["CNI_IFNAME", '"eth:0"']),
    ({"ifname": "eth%200"}, ["CNI_IFNAME", '"eth 0"']),
    ({"netns": "/run/%ff"}, ["CNI_NETNS", "UTF-8"]),
    ({"netns": "/run/%00x"}, ["CNI_NETNS", "zero"]),
    ({"args": quote("K8S_POD_NAMESPACE=default")}, ["K8S_POD_NAME", "CNI_ARGS"]),
    ({"args": quote("K8S_POD_NAME=web-0")}, ["K8S_POD_NAMESPACE", "CNI_ARGS"]),
    ({"args": ""}, ["K8S_POD_NAMESPACE", "K8S_POD_NAME"]),
    ({"args": quote("K8S_POD_NAME=a;garbage")}, ["CNI_ARGS", '"garbage"']),
]


@pytest.mark.parametrize(("headers", "named"), BAD_ENVIRONMENT)
def test_bad_environment(headers: dict[str, str], named: list[str]) -> None:
    with pytest.raises(CniError) as caught:
        invoke(**headers)
    assert caught.value.code == 4
    for word in named:
        assert word in caught.value.msg


WHOLE = json.dumps(CONF).encode()
BAD_INPUT: list[tuple[object, int, list[str]]] = [
    (b"", 6, ["stdin", "empty"]),
    (WHOLE[:-1], 6, ["stdin", f"byte {len(WHOLE) - 1}"]),
    (WHOLE[:20], 6, ["stdin", "byte 20"]),
    (WHOLE + b"x", 6, ["stdin", "trailing"]),
    (b'{"cniVersion": "1.0.0", "name": \xff}', 6, ["stdin", "byte 32"]),
    (b'{"name": "\xff"}', 6, ["stdin", "utf-8"]),
    (b"[" * 100_000, 6, ["stdin"]),
    (WHOLE[:-1] + b', "more": ' + b"[" * 3000 + b"]" * 3000 + b"}", 7, ["nested too deeply"]),
    ({**CONF, "prevResult": {"ips": [{"address": "10.0.0"}]}}, 7, ["prevResult", "ips[0].address", "10.0.0"]),
    (b"[1, 2]", 6, ["array", "[1,2]"]),
    (b'"text"', 6, ["string", "text"]),
    (b"null", 6, ["null"]),
    ({**CONF, "cniVersion": "9.9.9"}, 1, ["cniVersion", '"9.9.9"', "1.1.0", "0.3.0"]),
    ({**CONF, "cniVersion": "0.2.0"}, 1, ["cniVersion", '"0.2.0"']),
    ({key: value for key, value in CONF.items() if key != "cniVersion"}, 1, ["cniVersion", "0.1.0"]),
    ({**CONF, "cniVersion": 1}, 7, ["cniVersion", "1"]),
    ({key: value for key, value in CONF.items() if key != "name"}, 7, ["name", "missing"]),
    ({**CONF, "name": "../x"}, 7, ["name", '"../x"']),
    ({**CONF, "mtu": "9000"}, 7, ["mtu", '"9000"', "int"]),
    ({**CONF, "mtu": -1}, 7, ["mtu", "-1"]),
    ({**CONF, "master": ["eth1"]}, 7, ["master", '["eth1"]']),
    ({**CONF, "ipam": "spiderpool"}, 7, ["ipam", '"spiderpool"']),
    ({**CONF, "ipam": {"type": "spiderpool", "default_ipv4_ippool": "v4"}}, 7, ["ipam.default_ipv4_ippool", '"v4"']),
    (
        {**CONF, "ipam": {"type": "spiderpool", "default_ipv6_ippool": ["a", 7]}},
        7,
        ["ipam.default_ipv6_ippool[1]", "7"],
    ),
    ({**CONF, "ipam": {"type": "spiderpool", "clean_gateway": "yes"}}, 7, ["ipam.clean_gateway", '"yes"']),
    ({**CONF, "runtimeConfig": {"mac": 1}}, 7, ["runtimeConfig.mac", "1"]),
    ({**CONF, "cni.dev/valid-attachments": [{"ifname": "a"}]}, 7, ["cni.dev/valid-attachments[0]", "containerID"]),
    ({**CONF, "ipam": {"type": "host-local"}}, 7, ["ipam.type", '"host-local"', "spiderpool"]),
    ({**CONF, "ipam": {}}, 0, []),
    ({**CONF, "ipam": None}, 0, []),
    ({**CONF, "prevResult": {"ips": 1}}, 7, ["prevResult"]),
    ({**CONF, "type": "bridge"}, 7, ["type", '"bridge"', '"macvlan"']),
    ({**CONF, "prevResult": []}, 7, ["prevResult", "[]"]),
    ({**CONF, "master": "x" * 5000}, 0, []),
    ({**CONF, "mtu": ["x" * 5000]}, 7, ["mtu", "xxx..."]),
]


@pytest.mark.parametrize(("body", "code", "named"), BAD_INPUT)
def test_bad_input(body: object, code: int, named: list[str]) -> None:
    if not code:
        invoke(body)
        return
    with pytest.raises(CniError) as caught:
        invoke(body)
    assert caught.value.code == code
    for word in named:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_types_that_are_not_ours() -> None:
    for headers, body in [
        ({"type": "ptp"}, {**CONF, "type": "ptp"}),
        ({"type": "dhcp"}, {**CONF, "ipam": {"type": "dhcp"}}),
    ]:
        with pytest.raises(CniError) as caught:
            invoke(body, **headers)
        assert caught.value.code == 7
        assert headers["type"] in caught.value.msg


def test_check_needs_a_previous_result() -> None:
    with pytest.raises(CniError, match="prevResult"):
        invoke(command="CHECK")
    with pytest.raises(CniError, match="prevResult"):
        invoke({**CONF, "prevResult": {"ips": "none"}}, command="CHECK")
    seen = invoke({**CONF, "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/16"}]}}, command="CHECK")
    assert seen.prev_result is not None
    assert seen.prev_result.ips[0].address == "10.0.0.5/16"


@given(
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CONF, "mtu", "prevResult"]), inner)
        ),
        max_leaves=8,
    ).map(lambda tree: json.dumps(tree).encode())
)
@example(body=b'{"cniVersion":"1.0.0","name":"n","type":"macvlan","ipam":{"type":"spiderpool"},"mtu":1e400}')
def test_no_input_whatever_ends_in_anything_but_a_call_or_a_cni_error(body: bytes) -> None:
    for verb in ("ADD", "CHECK", "DEL", "GC"):
        with contextlib.suppress(IncompatibleVersion, DecodeFailure, InvalidConfig):
            invoke(body, command=verb)
    assert peek_version(body) in SUPPORTED_VERSIONS


@given(headers=st.dictionaries(st.sampled_from(sorted(HEADERS)), st.text(st.characters(codec="latin-1"), max_size=30)))
def test_no_header_whatever_ends_in_anything_but_a_call_or_a_cni_error(headers: dict[str, str]) -> None:
    try:
        seen = parse_invocation({**HEADERS, **headers}, WHOLE)
    except (InvalidEnvironment, IncompatibleVersion, InvalidConfig):
        pass
    else:
        assert len(seen.ifname.encode()) <= 15
        assert "/" not in seen.ifname + seen.container_id
