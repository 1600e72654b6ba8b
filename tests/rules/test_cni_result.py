"""Results in every version, and what comes back from a runtime that kept one."""

import json
import re
from typing import Any

import pytest

from cni.config import Dns
from cni.errors import InvalidConfig, KernelRefused
from cni.result import (
    SUPPORTED_VERSIONS,
    Interface,
    IpConfig,
    Result,
    RouteConfig,
    decode_result,
    encode_error,
    encode_result,
    encode_versions,
)

RESULT = Result(
    interfaces=(Interface(name="eth0", mac="02:00:00:00:00:01", mtu=1500, sandbox="/run/netns/pod"),),
    ips=(
        IpConfig(address="10.0.0.5/16", gateway="10.0.0.1", interface=0),
        IpConfig(address="fd00::5/64", gateway="fd00::1", interface=0),
    ),
    routes=(RouteConfig(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1400), RouteConfig(dst="::/0")),
    dns=Dns(nameservers=("10.0.0.53",)),
)


def tree(result: Result, version: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode_result(result, version))
    return decoded


def test_latest() -> None:
    assert tree(RESULT, "1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/pod"}],
        "ips": [
            {"address": "10.0.0.5/16", "gateway": "10.0.0.1", "interface": 0},
            {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.0.0.53"]},
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_before_1_0_an_ip_names_its_family(version: str) -> None:
    assert [ip["version"] for ip in tree(RESULT, version)["ips"]] == ["4", "6"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_before_1_1_there_is_no_mtu(version: str) -> None:
    seen = tree(RESULT, version)
    assert set(seen["interfaces"][0]) == {"name", "mac", "sandbox"}
    assert seen["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0"}]


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_ipam_results_have_no_interfaces(version: str) -> None:
    seen = tree(RESULT.for_ipam(), version)
    assert "interfaces" not in seen
    assert not any("interface" in ip for ip in seen["ips"])


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_read_back(version: str) -> None:
    seen = decode_result(tree(RESULT, version))
    assert seen.ips == RESULT.ips
    assert seen.interfaces[0].mac == RESULT.interfaces[0].mac
    assert [(route.dst, route.gw) for route in seen.routes] == [("0.0.0.0/0", "10.0.0.1"), ("::/0", "")]
    assert seen.dns == RESULT.dns


def test_read_back_from_go() -> None:
    seen = decode_result(
        {"cniVersion": "1.0.0", "interfaces": None, "ips": [{"address": "10.0.0.5/16", "x": 1}], "dns": {}}
    )
    assert seen == Result(ips=(IpConfig(address="10.0.0.5/16"),))


def test_read_back_from_before_0_3() -> None:
    four = {"ip": "10.0.0.5/16", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]}
    seen = decode_result({"cniVersion": "0.2.0", "ip4": four, "ip6": {"ip": "fd00::5/64"}, "dns": {"domain": "d"}})
    assert seen.ips == (IpConfig(address="10.0.0.5/16", gateway="10.0.0.1"), IpConfig(address="fd00::5/64"))
    assert [(route.dst, route.gw) for route in seen.routes] == [("0.0.0.0/0", "")]
    assert seen.dns.domain == "d"


def nested(depth: int) -> object:
    tree: object = []
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ([], ""),
        ("text", ""),
        ({"ips": [{}]}, "address"),
        ({"ips": [{"address": 5}]}, "address"),
        ({"routes": [[]]}, "routes"),
        ({"ips": [{"address": "10.0.0.5/33"}]}, r"ips\[0\]\.address: '10\.0\.0\.5/33'"),
        ({"ips": [{"address": "10.0.0.5/16", "gateway": "x"}]}, r"ips\[0\]\.gateway: 'x'"),
        ({"routes": [{"dst": "::/0"}, {"dst": "x"}]}, r"routes\[1\]\.dst: 'x'"),
        ({"routes": [{"dst": "::/0", "gw": "::1/64"}]}, r"routes\[0\]\.gw: '::1/64'"),
        ({"ip4": {"gateway": "10.0.0.1"}}, "address"),
        ({"ip6": {"ip": "fd00::5/64", "routes": "all"}}, "routes"),
        ({"more": nested(3000)}, "nested too deeply"),
    ],
)
def test_what_is_no_result(kept: object, named: str) -> None:
    with pytest.raises(InvalidConfig, match="prevResult") as caught:
        decode_result(kept)
    assert re.search(named, str(caught.value))


def test_errors() -> None:
    seen = json.loads(encode_error(KernelRefused("no", "it's full", errno=28), "0.4.0"))
    assert seen == {"cniVersion": "0.4.0", "code": 100, "msg": "no", "details": "it's full"}
    assert json.loads(encode_error(KernelRefused("no"), "7")) == {"cniVersion": "1.1.0", "code": 100, "msg": "no"}


def test_versions() -> None:
    seen = json.loads(encode_versions())
    assert seen == {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED_VERSIONS)}
