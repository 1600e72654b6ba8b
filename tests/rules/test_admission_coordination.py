"""The settings of the coordinator, wherever an object has them: what is filled in and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from admission.coordination import completed, coordination_errors
from api.coordinator import CoordinatorSpec
from api.route import Route
from api.wire import Coordination
from cni.config import CoordinatorConfig
from cni.coordination.settings import settle
from cni.errors import InvalidConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hijack_cidr": ["10.0.0.0/8", "10.0.0.0/33"]},
     'spec.hijackCIDR[1]: Invalid value: "10.0.0.0/33": expected an address or a CIDR such as 169.254.0.0/16'),
    ({"hijack_cidr": ["fe80::1%eth0"]},
     'spec.hijackCIDR[0]: Invalid value: "fe80::1%eth0": expected an address or a CIDR such as 169.254.0.0/16'),
    ({"policy_routes": [Route(dst="x", gw="10.6.0.1")]},
     'spec.policyRoutes[0].dst: Invalid value: "x": expected an address or a CIDR such as 10.0.0.0/8'),
    ({"policy_routes": [Route(dst="10.0.0.0/8", gw="10.6.0.0/24")]},
     'spec.policyRoutes[0].gw: Invalid value: "10.6.0.0/24": expected the IP address of the next hop'),
    ({"policy_routes": [Route(dst="10.0.0.0/8", gw="")]},
     "spec.policyRoutes[0].gw: Required value: the IP address of the next hop"),
    ({"policy_routes": [Route(dst="10.0.0.0/8", gw="fd00::1")]},
     'spec.policyRoutes[0].gw: Invalid value: "fd00::1": IPv6, and dst 10.0.0.0/8 is IPv4'),
    ({"pod_mac_prefix": "0a"},
     'spec.podMACPrefix: Invalid value: "0a": expected the first two bytes of a MAC address, as 0a:1b'),
    ({"pod_mac_prefix": "01:1b"},
     ('spec.podMACPrefix: Invalid value: "01:1b": it begins a multicast address: '
     "the lowest bit of the first byte must be 0")),
    ({"pod_default_route_nic": "a name of a NIC"},
     ('spec.podDefaultRouteNIC: Invalid value: "a name of a NIC": '
     "expected the name of an interface: up to 15 bytes, no space, / or :")),
    ({"host_rule_table": 254},
     "spec.hostRuleTable: Invalid value: 254: the kernel's own table main; take another one, as 500"),
    ({"host_rule_table": -1},
     "spec.hostRuleTable: Invalid value: -1: expected the number of a routing table, 1 to 4294967295"),
    ({"pod_rp_filter": 3},
     "spec.podRPFilter: Invalid value: 3: expected 0, 1 or 2, or a negative number to leave it alone"),
    ({"tx_queue_len": -1},
     "spec.txQueueLen: Invalid value: -1: expected 0 to 4294967295; 0 leaves it alone"),
    ({"veth_mtu": 67}, "spec.vethMTU: Invalid value: 67: expected 68 to 65535 bytes"),
    ({"veth_link_address": "fe80::1"},
     'spec.vethLinkAddress: Invalid value: "fe80::1": expected one IPv4 address of an interface, as 169.254.100.1'),
]  # fmt: skip
"""As of pools."""


@pytest.mark.parametrize(("spec", "said"), REFUSED)
def test_what_is_refused(spec: dict[str, Any], said: str) -> None:
    assert [str(error) for error in coordination_errors("spec", CoordinatorSpec(**spec))] == [said]


def test_all_at_once() -> None:
    spec = CoordinatorSpec(hijack_cidr=["a", "b"], pod_rp_filter=7, pod_mac_prefix="x")
    assert [error.field for error in coordination_errors("spec.coordinator", spec)] == [
        "spec.coordinator.hijackCIDR[0]",
        "spec.coordinator.hijackCIDR[1]",
        "spec.coordinator.podMACPrefix",
        "spec.coordinator.podRPFilter",
    ]


def test_what_is_filled_in() -> None:
    bare = CoordinatorSpec(mode=None, tune_pod_routes=None, host_rule_table=None, pod_rp_filter=None, tx_queue_len=None)
    assert completed(bare) == CoordinatorSpec()
    given_ = CoordinatorSpec(
        mode="overlay",
        hijack_cidr=["10.1.2.3", "fd00::1", "10.1.2.3/8", "nonsense"],
        policy_routes=[Route(dst="10.1.2.3/8", gw="10.6.0.1")],
        tune_pod_routes=False,
        host_rule_table=600,
        pod_rp_filter=-1,
        tx_queue_len=7,
    )
    assert completed(given_) == structs.replace(
        given_,
        hijack_cidr=["10.1.2.3/32", "fd00::1/128", "10.0.0.0/8", "nonsense"],
        policy_routes=[Route(dst="10.0.0.0/8", gw="10.6.0.1")],
    )


_texts = st.sampled_from(["", "10.6.0.1", "10.6.0.0/24", "10.0.0.0/33", "fd00::1", "fd00::/64", "::ffff:1.2.3.4", "x"])
_routes = st.builds(Route, dst=_texts, gw=_texts)
_macs = st.sampled_from(["", "0a:1b", "0A:1B", "01:00", "ff:ff", "0a1b", "0a:1b:2c", "g0:00"])
_specs = st.builds(
    CoordinatorSpec,
    mode=st.sampled_from(["auto", "underlay", "overlay", "disabled"]),
    hijack_cidr=st.lists(_texts, max_size=3),
    policy_routes=st.lists(_routes, max_size=2),
    pod_mac_prefix=_macs,
    host_rule_table=st.integers(-2, 600) | st.just(1 << 32),
    pod_rp_filter=st.integers(-2, 4),
    tx_queue_len=st.integers(0, 3),
    veth_link_address=st.sampled_from(["", "169.254.1.1", "169.254.1.1/32", "169.254.1.1/24", "fe80::1", "x"]),
    veth_mtu=st.integers(68, 9000),
)


@given(_specs)
def test_what_is_admitted_is_what_a_node_can_use(spec: CoordinatorSpec) -> None:
    """The plugin has the same opinion: no admitted object fails a pod, and none that would work is refused."""
    config = CoordinatorConfig(
        mode=spec.mode or "",
        hijack_cidr=tuple(spec.hijack_cidr),
        policy_routes=tuple(spec.policy_routes),
        pod_mac_prefix=spec.pod_mac_prefix or "",
        host_rule_table=spec.host_rule_table,
        pod_rp_filter=spec.pod_rp_filter,
        tx_queue_len=spec.tx_queue_len,
        veth_link_address=spec.veth_link_address or "",
        veth_mtu=spec.veth_mtu,
    )
    try:
        settle(config, Coordination(), prefix="")
        usable = True
    except InvalidConfig:
        usable = False
    assert usable == (not coordination_errors("spec", spec))
    done = completed(spec)
    assert completed(done) == done
    assert bool(coordination_errors("spec", done)) == bool(coordination_errors("spec", spec))
