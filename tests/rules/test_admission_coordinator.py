"""What may be written as a SpiderCoordinator."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.coordinator import CoordinatorRules
from admission.review import Review
from api.coordinator import CoordinatorSpec, SpiderCoordinator
from api.meta import ObjectMeta
from api.route import Route

RULES = CoordinatorRules()


def coordinator(spec: dict[str, Any], **meta: Any) -> SpiderCoordinator:
    given = msgspec.convert(spec, CoordinatorSpec)
    return SpiderCoordinator(metadata=ObjectMeta(name="default", **meta), spec=given)


def errors(spec: dict[str, Any], old: dict[str, Any] | None = None, **meta: Any) -> list[str]:
    before = coordinator(old) if old is not None else None
    review = Review("CREATE" if before is None else "UPDATE", coordinator(spec, **meta), before)
    review = msgspec.structs.replace(review, new=RULES.complete(review))
    return [str(one) for one in RULES.judge(review).errors]


def test_what_may_be_left_out_is_filled_in() -> None:
    spec: dict[str, Any] = {"podCIDRType": "auto", "hijackCIDR": ["10.0.0.1", "fd00::1", "10.1.2.3/8"], "mode": None}
    spec["policyRoutes"] = [{"dst": "10.9.0.1/16", "gw": "10.0.0.1"}]
    done = RULES.complete(Review("CREATE", coordinator(spec))).spec
    assert done == CoordinatorSpec(
        mode="auto",
        pod_cidr_type="auto",
        hijack_cidr=["10.0.0.1/32", "fd00::1/128", "10.0.0.0/8"],
        policy_routes=[Route(dst="10.9.0.0/16", gw="10.0.0.1")],
        tune_pod_routes=True,
        host_rule_table=500,
        pod_rp_filter=0,
        tx_queue_len=0,
        veth_mtu=1500,
    )
    assert RULES.complete(Review("CREATE", coordinator(spec))).metadata.finalizers == []
    assert RULES.complete(Review("CREATE", coordinator({"vethMTU": 1400}))).spec.veth_mtu == 1400


def test_where_the_cidrs_come_from_has_to_be_said() -> None:
    assert errors({"podCIDRType": "none"}) == []
    (text,) = errors({})
    assert text.startswith("spec.podCIDRType: Required value")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"podMACPrefix": "0b:1a"}, 'spec.podMACPrefix: Invalid value: "0b:1a"'),
        ({"podMACPrefix": "0a:1b:2c"}, 'spec.podMACPrefix: Invalid value: "0a:1b:2c"'),
        ({"podRPFilter": 3}, "spec.podRPFilter: Invalid value: 3"),
        ({"hijackCIDR": ["10.0.0.0/8", "x"]}, 'spec.hijackCIDR[1]: Invalid value: "x"'),
        ({"policyRoutes": [{"dst": "10.0.0.0/8", "gw": "x"}]}, 'spec.policyRoutes[0].gw: Invalid value: "x"'),
        ({"hostRuleTable": 254}, "spec.hostRuleTable: Invalid value: 254"),
        ({"txQueueLen": -1}, "spec.txQueueLen: Invalid value: -1"),
        ({"vethLinkAddress": "fd00::1"}, 'spec.vethLinkAddress: Invalid value: "fd00::1"'),
    ],
)  # fmt: skip
def test_what_is_refused(spec: dict[str, Any], text: str) -> None:
    (said,) = errors({"podCIDRType": "auto", **spec})
    assert said.startswith(text)
    assert len(errors(spec)) == 2, "all that is wrong at once"
    # What was there before anybody judged it keeps nobody from changing a label; a change of it is judged.
    assert errors(spec, old=spec) == []
    assert len(errors(spec, old={"podCIDRType": "auto"})) == 2
    assert errors(spec, deletion_timestamp="2026-01-01T00:00:00Z") == []


TEXTS = st.text(max_size=12) | st.sampled_from(["10.0.0.1", "10.0.0.0/8", "fd00::/64", "0a:1b", "eth0"])
SPECS = st.builds(
    CoordinatorSpec,
    hijack_cidr=st.lists(TEXTS, max_size=3),
    policy_routes=st.lists(st.builds(Route, dst=TEXTS, gw=TEXTS), max_size=3),
    pod_mac_prefix=st.none() | TEXTS,
    veth_link_address=st.none() | TEXTS,
    pod_default_route_nic=st.none() | TEXTS,
    host_rule_table=st.none() | st.integers(),
    veth_mtu=st.none() | st.integers(min_value=1),
)


@given(SPECS)
def test_the_rules_never_raise_and_completing_twice_changes_nothing(spec: CoordinatorSpec) -> None:
    once = RULES.complete(Review("CREATE", SpiderCoordinator(spec=spec)))
    assert RULES.complete(Review("CREATE", once)) == once
    RULES.judge(Review("CREATE", once))
