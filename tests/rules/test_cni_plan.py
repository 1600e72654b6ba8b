"""From a call and a result to what is done in the kernel."""

import pytest

from cni.errors import CniError, InvalidConfig, InvalidEnvironment
from cni.plan import AddressPlan, LinkPlan, address_plan, link_plan
from cni.result import IpConfig, Result, RouteConfig
from tests.rules.test_cni_protocol import CONF, HEADERS, invoke

POD = HEADERS["cni-args"]


def test_defaults() -> None:
    assert link_plan(invoke()) == LinkPlan(
        netns="/run/netns/pod", ifname="eth0", master="eth1", container_id="0a1b2c3d"
    )


def test_everything() -> None:
    body = {**CONF, "mode": "vepa", "mtu": 1400, "mac": "02:00:00:00:00:0A", "bcqueuelen": 5, "linkInContainer": True}
    plan = link_plan(invoke(body))
    assert (plan.mode, plan.mtu, plan.mac) == ("vepa", 1400, "02:00:00:00:00:0a")
    assert (plan.broadcast_queue_length, plan.link_in_container) == (5, True)


def test_the_runtime_has_the_last_word_on_the_mac_address() -> None:
    body = {**CONF, "mac": "02:00:00:00:00:04"}
    assert link_plan(invoke(body)).mac == "02:00:00:00:00:04"
    body["args"] = {"cni": {"mac": "02:00:00:00:00:03"}}
    assert link_plan(invoke(body)).mac == "02:00:00:00:00:03"
    named = f"{POD}%3BMAC%3D02:00:00:00:00:02"
    assert link_plan(invoke(body, args=named)).mac == "02:00:00:00:00:02"
    body["runtimeConfig"] = {"mac": "02:00:00:00:00:01"}
    assert link_plan(invoke(body, args=named)).mac == "02:00:00:00:00:01"


@pytest.mark.parametrize(
    "mac",
    [
        "x",
        "02:00:00:00:00",
        "02-00-00-00-00-01",
        "0200.0000.0001",
        "020000000001",
        "2:0:0:0:0:1",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
    ],
)
def test_bad_mac(mac: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        link_plan(invoke({**CONF, "mac": mac}))
    assert mac in caught.value.msg
    with pytest.raises(InvalidEnvironment, match="CNI_ARGS MAC"):
        link_plan(invoke(args=f"{POD}%3BMAC%3D{mac}"))


def test_bad_mode() -> None:
    with pytest.raises(CniError) as caught:
        link_plan(invoke({**CONF, "mode": "source"}))
    assert caught.value.code == 7
    assert 'mode: "source"' in caught.value.msg


def test_addresses() -> None:
    result = Result(
        ips=(
            IpConfig(address="10.0.0.5/16", gateway="10.0.0.1"),
            IpConfig(address="10.0.0.6/16", gateway="10.0.0.2"),
            IpConfig(address="fd00::5/64"),
        ),
        routes=(RouteConfig(dst="0.0.0.0/0", gw="10.0.0.1"), RouteConfig(dst="fd01::/64")),
    )
    assert address_plan(result) == AddressPlan(
        addresses=("10.0.0.5/16", "10.0.0.6/16", "fd00::5/64"),
        gateways=("10.0.0.1",),
        routes=(("0.0.0.0/0", "10.0.0.1"), ("fd01::/64", "")),
    )
