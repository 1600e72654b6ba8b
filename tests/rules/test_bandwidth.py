"""What a NIC may carry, from the runtime's word and the pod's annotations; the messages that say so to the kernel."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from api.networks import Bandwidth
from api.wire import Coordination
from cni import bandwidth
from cni.bandwidth import NO_BURST, Bucket, LimitPlan, buckets, ifb_name, limit_plan
from cni.coordination import CoordinationPlan
from cni.errors import InvalidConfig, UnsupportedField
from cni.netlink import link, message, traffic
from cni.plan import LinkState
from cni.protocol import Invocation
from tests.rules.test_cni_netlink import INDEX, NAMES, encoded, plain
from tests.rules.test_cni_protocol import CONF, invoke
from tests.rules.test_coordination import plan as coordinated

MBIT = 10**6
RATES = st.integers(1000, 10**15)
AT, BETWEEN = LinkState(ifname="eth0", index=7), LinkState(ifname="ifb-eth0", index=9, kind="ifb")


def call(runtime: dict[str, int] | None = None, **conf: Any) -> Invocation:
    given = {} if runtime is None else {"runtimeConfig": {"bandwidth": runtime}}
    return invoke({**CONF, **conf, **given}, type=conf.get("type", "macvlan"))


def planned(
    pod: Bandwidth | None = None,
    runtime: dict[str, int] | None = None,
    coordination: CoordinationPlan | None = None,
    mtu: int = 1500,
    **conf: Any,
) -> LimitPlan:
    made = limit_plan(call(runtime, **conf), pod, mtu=mtu, coordination=coordination)
    assert made is not None
    return made


def test_nothing_asked_for_is_no_limit() -> None:
    assert limit_plan(call(), None, mtu=1500) is None
    assert limit_plan(call({}), Bandwidth(), mtu=1500) is None
    assert limit_plan(call({"ingressRate": 0, "ingressBurst": 0}), None, mtu=1500, coordination=coordinated()) is None


def test_the_annotations_are_for_every_nic() -> None:
    pod = Bandwidth(ingress_rate=40 * MBIT, egress_rate=20 * MBIT)
    made = planned(pod)
    assert made == LimitPlan(
        netns="/run/netns/pod",
        ifname="eth0",
        ingress=Bucket(rate=5_000_000, burst=125_000, limit=250_000),
        egress=Bucket(rate=2_500_000, burst=62_500, limit=125_000),
    )
    assert list(buckets(made)) == [("ifb-eth0", made.ingress), ("eth0", made.egress)]
    assert planned(replace(pod, egress_rate=0)).egress is None
    assert planned(replace(pod, ingress_rate=0)).ingress is None


def test_the_runtimes_word_wins_in_its_direction() -> None:
    pod = Bandwidth(ingress_rate=40 * MBIT, egress_rate=20 * MBIT)
    made = planned(pod, {"ingressRate": 8 * MBIT, "ingressBurst": 8 * 50_000})
    assert made.ingress == Bucket(rate=1_000_000, burst=50_000, limit=75_000)
    assert made.egress == planned(pod).egress


@pytest.mark.parametrize("burst", [2**31 - 1, 2**32 - 1, 2**35 - 9, 2**64 - 1])
def test_a_burst_that_a_runtime_fills_in_is_none(burst: int) -> None:
    assert planned(runtime={"egressRate": MBIT, "egressBurst": burst}) == planned(Bandwidth(egress_rate=MBIT))


@given(rate=RATES, burst=st.integers(0, 2**40), mtu=st.integers(68, 65535))
def test_every_frame_fits_and_a_queue_is_short(rate: int, burst: int, mtu: int) -> None:
    bucket = planned(runtime={"egressRate": rate, "egressBurst": burst}, mtu=mtu).egress
    assert bucket is not None
    assert bucket.rate == rate // 8
    assert bucket.burst >= mtu + 14 + 8
    assert bucket.burst <= bucket.limit < 2**32
    waiting = bucket.limit - bucket.burst
    assert waiting <= max(bucket.rate * 0.025, 2 * (mtu + 22))
    if burst >= NO_BURST:
        assert bucket == planned(Bandwidth(egress_rate=rate), mtu=mtu).egress


def test_the_pair_to_the_node_is_limited_as_its_nic_is() -> None:
    pod = Bandwidth(ingress_rate=40 * MBIT, egress_rate=20 * MBIT)
    pair = coordinated()
    made = planned(pod, coordination=pair)
    assert (made.pod_end, made.host_veth) == ("veth0", pair.host_veth)
    assert dict(buckets(made)) == {"ifb-eth0": made.ingress, "eth0": made.egress, "veth0": made.egress}
    # The largest frame of either must pass.
    wide = planned(Bandwidth(egress_rate=1000), coordination=coordinated(cluster=Coordination(veth_mtu=9000)))
    assert wide.egress is not None
    assert wide.egress.burst >= 9022


def test_a_pair_that_others_made_is_theirs() -> None:
    for pair in (replace(coordinated(), host_index=3, mtu=0), replace(coordinated(), overlay=True)):
        made = planned(Bandwidth(egress_rate=MBIT), coordination=pair)
        assert (made.pod_end, made.host_veth) == ("", "")


@pytest.mark.parametrize(("rate", "mbits"), [(1000, 1), (MBIT, 1), (MBIT + 8, 2), (200 * MBIT, 200)])
def test_what_a_virtual_function_sends_is_limited_by_its_rate(rate: int, mbits: int) -> None:
    made = planned(Bandwidth(ingress_rate=rate, egress_rate=rate), type="sriov", coordination=coordinated())
    assert made.vf_rate == mbits
    # Nothing limits what comes to it but the pod's side; nor its pair, which is none of the physical NIC's.
    assert dict(buckets(made)) == {"ifb-eth0": made.ingress, "veth0": made.egress}
    assert planned(Bandwidth(ingress_rate=rate), type="sriov").vf_rate == 0
    assert planned(Bandwidth(egress_rate=rate)).vf_rate == 0


def test_what_cannot_be_limited_is_refused() -> None:
    both = Bandwidth(ingress_rate=MBIT, egress_rate=MBIT)
    for mode in ("l2", "l3"):
        assert planned(both, type="ipvlan", mode=mode).ingress is not None
    assert planned(replace(both, ingress_rate=0), type="ipvlan", mode="l3s").egress is not None
    with pytest.raises(UnsupportedField, match="eth0, an ipvlan link of mode l3s"):
        planned(both, type="ipvlan", mode="l3s")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ingressRate": 999}, "runtimeConfig.bandwidth.ingressRate: 999 is not between"),
        ({"egressRate": 10**15 + 1}, "runtimeConfig.bandwidth.egressRate: 1000000000000001 is not between"),
        ({"egressBurst": 5}, "runtimeConfig.bandwidth.egressBurst: 5 has no egressRate"),
        ({"ingressBurst": 5, "egressRate": 1000}, "runtimeConfig.bandwidth.ingressBurst: 5 has no ingressRate"),
    ],
)
def test_what_a_runtime_cannot_mean(given: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        bandwidth.check(call(given).conf)


@pytest.mark.parametrize("given", [None, {}, {"ingressRate": 1000, "ingressBurst": 1}, {"egressRate": 10**15}])
def test_what_it_can(given: dict[str, int] | None) -> None:
    bandwidth.check(call(given).conf)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"ingressRate": -1}, r"runtimeConfig.bandwidth.ingressRate: -1"), ({"egressRate": "1M"}, '"1M"'), (7, "7")],
)
def test_a_value_of_another_type_is_named(given: Any, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        call(given)


@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_each_nic_has_its_own_ifb(names: list[str]) -> None:
    ours = [ifb_name(name) for name in names]
    assert ours[0] != ours[1]
    assert all(len(one) <= 15 for one in ours)


# -- messages


def decoded(kind: int, body: bytes) -> tcmsg:
    made = tcmsg(message.message(kind, 0, 1, body=body))
    made.decode()
    return made


@given(rate=st.integers(125, 10**15 // 8), burst=st.integers(1, 2**32 - 1), limit=st.integers(1, 2**32 - 1))
def test_a_bucket_as_it_is_read(rate: int, burst: int, limit: int) -> None:
    bucket = Bucket(rate=rate, burst=burst, limit=limit)
    request = traffic.set_bucket(AT, bucket)
    seen = decoded(request.kind, request.body)
    assert (request.flags, seen["index"], seen["parent"], seen["handle"]) == (0x500, 7, 0xFFFFFFFF, 0)
    assert seen.get_attr("TCA_KIND") == "tbf"
    options = seen.get_attr("TCA_OPTIONS")
    parameters = options.get_attr("TCA_TBF_PARMS")
    assert (parameters["rate"], parameters["limit"]) == (min(rate, 2**32 - 1), limit)
    assert (parameters["buffer"], parameters["peak"], parameters["rate___reserved"]) == (0, 0, 1)
    # pyroute2 has no names for the 64-bit rate and the burst in bytes.
    assert request.body.endswith(struct.pack("=HHI", 8, 6, burst))
    assert (struct.pack("=HHQ", 12, 4, rate) in request.body) == (rate >= 2**32)
    assert traffic.decode_queue(memoryview(request.body)).holds(bucket)
    assert not traffic.decode_queue(memoryview(request.body)).holds(replace(bucket, rate=rate + 1))


@given(index=INDEX)
def test_everything_is_led_elsewhere_as_it_is_read(index: int) -> None:
    request = traffic.redirect(AT, replace(BETWEEN, index=index))
    seen = decoded(request.kind, request.body)
    assert (seen["index"], seen["parent"], seen["info"]) == (7, 0xFFFFFFF2, 1 << 16 | 0x0300)
    assert seen.get_attr("TCA_KIND") == "u32"
    options = seen.get_attr("TCA_OPTIONS")
    selector = options.get_attr("TCA_U32_SEL")
    assert (selector["flags"], selector["nkeys"]) == (1, 1)
    assert [(key["key_mask"], key["key_val"]) for key in selector["keys"]] == [(0, 0)]
    action = options.get_attr("TCA_U32_ACT").get_attr("TCA_ACT_PRIO_1")
    assert action.get_attr("TCA_ACT_KIND") == "mirred"
    parameters = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    assert (parameters["action"], parameters["eaction"], parameters["ifindex"]) == (4, 1, index)
    assert traffic.decode_redirect(memoryview(request.body)) == index


def test_other_filters_lead_nowhere() -> None:
    body = traffic.redirect(AT, BETWEEN).body
    assert traffic.decode_redirect(memoryview(body)) == 9
    some = body.replace(traffic.redirect_attributes(9)[24:40], b"\xff" * 16, 1)
    for other in (body[:40], body.replace(b"mirred", b"police"), some, body.replace(b"\4\0\0\0", b"\3\0\0\0")):
        assert traffic.decode_redirect(memoryview(other)) == 0


def test_hooks() -> None:
    request = traffic.add_hooks(AT)
    fields = {"index": 7, "handle": 0xFFFF0000, "parent": 0xFFFFFFF1}
    assert request.body == encoded(tcmsg, fields, [("TCA_KIND", "clsact")])


@given(name=NAMES, mtu=st.integers(68, 65535), index=INDEX)
def test_an_ifb(name: str, mtu: int, index: int) -> None:
    attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]})]
    assert plain(traffic.ifb_body(name, mtu=mtu), 16) == plain(encoded(ifinfmsg, {}, attributes), 16)
    silent = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
    theirs = encoded(ifinfmsg, {"index": index}, [("IFLA_AF_SPEC", silent)])
    assert plain(traffic.silent_body(index), 16) == plain(theirs, 16)
    assert link.set_up_body(index) == encoded(ifinfmsg, {"index": index, "flags": 1, "change": 1}, [])
