"""What may be written of a pool: each rule by a manifest that it refuses, and no object that makes any rule raise."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from admission.ippool import IPPoolRules
from admission.network import network
from admission.review import Operation, Review
from api.annotations import APP_NAME, OWNER_APPLICATION_NAME, POOL_CIDR, cidr_label
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import FINALIZER, LabelSelector, LabelSelectorRequirement, ObjectMeta
from api.route import Route
from ipam.overlap import Atlas
from ipam.territory import territory
from ipam.withheld import COOL_DOWN, PROVIDER, Owed, owing, withhold, write_withheld

LAN = "10.6.0.0/16"


def pool(name: str = "lan", *, used: tuple[str, ...] = (), labels: dict[str, str] | None = None, **spec: Any) -> Any:
    """A pool of a few addresses, as its manifest says it; `used` by the pods ns/p0, ns/p1, ..."""
    given = {"subnet": LAN, "ips": ["10.6.0.10-10.6.0.20"], **spec}
    records = {ip: AllocationRecord(pod=f"ns/p{number}", pod_uid="u") for number, ip in enumerate(used)}
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, uid=name, generation=1, labels=labels or {}),
        spec=msgspec.convert(given, IPPoolSpec),
        status=IPPoolStatus(allocated_ips=encode_records(records), allocated_ip_count=len(records) or None),
    )


def atlas(*pools: SpiderIPPool) -> Atlas:
    made = Atlas()
    made.learn(pools)
    return made


def said(new: SpiderIPPool, old: SpiderIPPool | None = None, *others: SpiderIPPool, **rules: Any) -> list[str]:
    known = atlas(*others, *([old] if old else []))
    judgement = IPPoolRules(lambda: known, **rules).judge(Review("UPDATE" if old else "CREATE", new, old))
    return [str(error) for error in judgement.errors]


def test_a_pool_that_is_right_is_admitted() -> None:
    right = pool(
        gateway="10.6.0.1",
        excludeIPs=["10.6.0.15"],
        routes=[{"dst": "192.168.0.0/16", "gw": "10.6.0.2"}],
        podAffinity={"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]},
        nodeAffinity={},
    )
    assert said(right) == []
    assert said(pool(subnet="fd00::/64", ips=["fd00::1-fd00::ffff"], ipVersion=6)) == []
    assert said(pool(ips=[])) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subnet": ""}, "spec.subnet: Required value: a CIDR such as 10.6.0.0/16"),
    ({"subnet": "10.6.0.0"}, 'spec.subnet: Invalid value: "10.6.0.0": expected a CIDR such as 10.6.0.0/16'),
    ({"subnet": "10.6.0.1/16"}, 'spec.subnet: Invalid value: "10.6.0.1/16": write the network as 10.6.0.0/16'),
    ({"subnet": "FD00::/64", "ips": []}, 'spec.subnet: Invalid value: "FD00::/64": write the network as fd00::/64'),
    ({"ipVersion": 6}, "spec.ipVersion: Invalid value: 6: spec.subnet 10.6.0.0/16 is IPv4"),
    ({"ips": ["10.6.0.9-10.6.0.1"]},
     'spec.ips[0]: Invalid value: "10.6.0.9-10.6.0.1": the first address is above the last'),
    ({"ips": ["10.6.0.1", "10.6.0.0/24"]},
     'spec.ips[1]: Invalid value: "10.6.0.0/24": a CIDR is not allowed, write it as first-last'),
    ({"ips": ["10.7.0.1"]}, 'spec.ips[0]: Invalid value: "10.7.0.1": outside of spec.subnet 10.6.0.0/16'),
    ({"ips": ["10.6.255.9-10.7.0.1"]},
     'spec.ips[0]: Invalid value: "10.6.255.9-10.7.0.1": 10.7.0.0-10.7.0.1 is outside of spec.subnet 10.6.0.0/16'),
    ({"ips": ["fd00::1"]}, 'spec.ips[0]: Invalid value: "fd00::1": an IPv6 address where IPv4 is expected'),
    ({"excludeIPs": ["10.7.0.1"]},
     'spec.excludeIPs[0]: Invalid value: "10.7.0.1": outside of spec.subnet 10.6.0.0/16'),
    ({"excludeIPs": ["x"]}, "spec.excludeIPs[0]: Invalid value: \"x\": 'x' is not an IP address"),
    ({"gateway": "x"}, 'spec.gateway: Invalid value: "x": is not an IP address'),
    ({"gateway": "10.7.0.1"}, 'spec.gateway: Invalid value: "10.7.0.1": outside of spec.subnet 10.6.0.0/16'),
    ({"gateway": "fd00::1"}, 'spec.gateway: Invalid value: "fd00::1": outside of spec.subnet 10.6.0.0/16'),
    ({"gateway": "10.6.0.10"},
     ('spec.gateway: Invalid value: "10.6.0.10": a pod would get it: take it out of spec.ips or put it into '
     "spec.excludeIPs")),
    ({"routes": [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}]},
     "spec.routes[0].dst: Forbidden: 0.0.0.0/0 is the default route, which spec.gateway makes"),
    ({"routes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.1"}, {"dst": "10.1.0.9/16", "gw": "10.6.0.1"}]},
     'spec.routes[1].dst: Duplicate value: "10.1.0.9/16"'),
    ({"routes": [{"dst": "10.1.0.0", "gw": "10.6.0.1"}]},
     'spec.routes[0].dst: Invalid value: "10.1.0.0": expected a CIDR such as 10.0.0.0/8'),
    ({"routes": [{"dst": "fd00::/8", "gw": "10.6.0.1"}]},
     'spec.routes[0].dst: Invalid value: "fd00::/8": expected IPv4 as spec.subnet 10.6.0.0/16'),
    ({"routes": [{"dst": "10.1.0.0/16", "gw": "10.7.0.1"}]},
     'spec.routes[0].gw: Invalid value: "10.7.0.1": outside of spec.subnet 10.6.0.0/16'),
    ({"routes": [{"dst": "10.1.0.0/16", "gw": ""}]},
     'spec.routes[0].gw: Invalid value: "": is not an IP address'),
    ({"podAffinity": {}}, "spec.podAffinity: Required value: at least one label; leave it out for all pods"),
    ({"podAffinity": {"matchLabels": {"a b": "c"}}},
     'spec.podAffinity.matchLabels: Invalid value: "a b": is no key of a label'),
    ({"nodeAffinity": {"matchLabels": {"a": "-"}}},
     'spec.nodeAffinity.matchLabels[a]: Invalid value: "-": is no value of a label'),
    ({"namespaceAffinity": {"matchExpressions": [{"key": "a", "operator": "in"}]}},
     ('spec.namespaceAffinity.matchExpressions[0].operator: Unsupported value: "in": supported values: "In", '
     '"NotIn", "Exists", "DoesNotExist"')),
    ({"nodeAffinity": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
     "spec.nodeAffinity.matchExpressions[0].values: Required value: operator In needs at least one"),
    ({"nodeAffinity": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
     'spec.nodeAffinity.matchExpressions[0].values: Invalid value: ["b"]: operator Exists takes none'),
]  # fmt: skip
"""Specs, each with the one thing that is wrong about it; `tests/cases` shows them to the API server."""


@pytest.mark.parametrize(("spec", "error"), REFUSED)
def test_refused(spec: dict[str, Any], error: str) -> None:
    assert said(pool(**spec)) == [error]


def test_a_gateway_that_is_taken_out_may_lie_in_the_range() -> None:
    assert said(pool(gateway="10.6.0.10", excludeIPs=["10.6.0.10"])) == []


def test_everything_is_said_at_once() -> None:
    wrong = pool(ips=["x", "10.7.0.1"], gateway="10.7.0.1", podAffinity={}, routes=[{"dst": "::/0", "gw": "y"}])
    assert [line.partition(":")[0] for line in said(wrong)] == [
        "spec.ips[0]", "spec.ips[1]", "spec.gateway", "spec.routes[0].dst", "spec.routes[0].gw", "spec.podAffinity",
    ]  # fmt: skip


def test_a_family_that_is_off_gets_no_new_pool_and_keeps_the_old_ones() -> None:
    six = pool(subnet="fd00::/64", ips=["fd00::9"])
    assert said(six, families=(4,)) == [
        "spec.ipVersion: Invalid value: 6: IPv6 is switched off: enableIPv6 in conf.yml"
    ]
    assert said(structs.replace(six, spec=structs.replace(six.spec, disable=True)), six, families=(4,)) == []


# -- other pools


def test_two_subnets_are_the_same_or_have_nothing_in_common() -> None:
    wide = pool("wide", subnet="10.0.0.0/8", ips=["10.200.0.1"])
    assert said(pool(), None, wide) == [
        'spec.subnet: Invalid value: "10.6.0.0/16": overlaps 10.0.0.0/8, the subnet of SpiderIPPool wide'
    ]
    assert said(pool(ips=[]), None, pool("other", ips=["10.6.9.9"])) == []


def test_no_address_is_in_two_pools() -> None:
    others = pool("a", ips=["10.6.0.18-10.6.0.30"]), pool("b", ips=["10.6.0.1-10.6.0.11"], excludeIPs=["10.6.0.10"])
    assert said(pool(), None, *others) == [
        'spec.ips: Invalid value: "10.6.0.18-10.6.0.20": SpiderIPPool a has these addresses',
        'spec.ips: Invalid value: "10.6.0.11": SpiderIPPool b has these addresses',
    ]
    assert said(pool(excludeIPs=["10.6.0.11", "10.6.0.18-10.6.0.20"]), None, *others) == []


def test_of_what_two_pools_share_already_nothing_is_said() -> None:
    old, other = pool(), pool("other", ips=["10.6.0.20-10.6.0.22"])
    assert said(pool(disable=True), old, other) == []
    more = pool(ips=["10.6.0.10-10.6.0.22"])
    assert said(more, old, other) == [
        'spec.ips: Invalid value: "10.6.0.21-10.6.0.22": SpiderIPPool other has these addresses'
    ]


# -- a pool that is there


def test_what_is_in_use_stays() -> None:
    old = pool(used=("10.6.0.10", "10.6.0.11", "10.6.0.15", "10.6.0.16", "10.6.0.17"))
    assert said(pool(ips=["10.6.0.12-10.6.0.20"]), old) == [
        "spec.ips: Forbidden: would leave out what is in use: 10.6.0.10 of ns/p0, 10.6.0.11 of ns/p1"
    ]
    both = pool(ips=["10.6.0.11-10.6.0.20"], excludeIPs=["10.6.0.11", "10.6.0.15-10.6.0.17"])
    assert said(both, old) == [
        "spec.ips: Forbidden: would leave out what is in use: 10.6.0.10 of ns/p0",
        (
            "spec.excludeIPs: Forbidden: would leave out what is in use: 10.6.0.11 of ns/p1, 10.6.0.15 of ns/p2, "
            "10.6.0.16 of ns/p3 and 1 more"
        ),
    ]
    assert said(pool(ips=["10.6.0.10-10.6.0.17"]), old) == []


def test_what_the_network_provider_has_to_release_stays() -> None:
    debt = Owed(pod="ns/gone", pod_uid="u", node="n1", parent_nic_mac="02:00:00:00:00:01", by=1)
    withheld = write_withheld({0x0A06000A: owing(debt, PROVIDER), 0x0A06000B: withhold(9e9, COOL_DOWN)}, 4)
    old = structs.replace(pool(), status=IPPoolStatus(withheld_ips=withheld))
    assert said(pool(ips=["10.6.0.12-10.6.0.20"]), old) == [
        (
            "spec.ips: Forbidden: would leave out what is in use: 10.6.0.10 of ns/gone, which the network provider has "
            "to release"
        )
    ]
    assert said(pool(ips=["10.6.0.10"]), old) == []
    unreadable = structs.replace(pool(), status=IPPoolStatus(withheld_ips='{"10.6.0.10": {"owed": 1}}'))
    assert "nothing can be taken out" in said(pool(ips=["10.6.0.12"]), unreadable)[0]


def test_of_records_that_cannot_be_read_nothing_is_taken_out() -> None:
    old = structs.replace(pool(), status=IPPoolStatus(allocated_ips="{"))
    assert said(pool(ips=["10.6.0.10-10.6.0.30"]), old) == []
    assert said(pool(ips=["10.6.0.10"]), old)[0].startswith("spec.ips: Forbidden: nothing can be taken out, status.")


def test_network_and_family_never_change() -> None:
    old = structs.replace(pool(), spec=structs.replace(pool().spec, ip_version=4))
    assert said(pool(subnet="10.6.0.0/17"), old) == [
        'spec.subnet: Invalid value: "10.6.0.0/17": it is 10.6.0.0/16 and never changes'
    ]
    assert "spec.ipVersion: Invalid value: 6: it is 4 and never changes" in said(pool(ipVersion=6), old)


def test_labels_and_finalizers_of_a_pool_can_always_be_written() -> None:
    wrong = pool(subnet="10.6.0.1/16", gateway="x")
    assert said(structs.replace(wrong, metadata=ObjectMeta(name="lan", labels={"a": "b"})), wrong) == []


def test_a_pool_that_is_being_deleted_loses_finalizers_and_changes_no_more() -> None:
    going = structs.replace(pool(), metadata=ObjectMeta(name="lan", deletion_timestamp="x", finalizers=[FINALIZER]))
    bare = structs.replace(going, metadata=ObjectMeta(name="lan", deletion_timestamp="x"))
    assert said(bare, going) == []
    assert IPPoolRules().complete(Review("UPDATE", bare, going)) == bare
    assert said(pool(disable=True), going) == ["spec: Forbidden: the pool is being deleted"]


def test_deletion_is_held_by_the_finalizer_unless_it_is_to_be_refused() -> None:
    used = pool(used=("10.6.0.10",))
    assert IPPoolRules().judge(Review("DELETE", used)).errors == ()
    guarded = IPPoolRules(guard_deletion=True)
    assert [str(error) for error in guarded.judge(Review("DELETE", used)).errors] == [
        "status.allocatedIPCount: Forbidden: 1 addresses are in use"
    ]
    assert guarded.judge(Review("DELETE", pool())).errors == ()


def test_an_automatic_pool_is_found_by_its_application_only() -> None:
    labels = {OWNER_APPLICATION_NAME: "web"}
    assert said(pool(labels=labels, podAffinity={"matchLabels": {APP_NAME: "web"}})) == []
    strange = {"matchLabels": {APP_NAME: "web", "app": "x"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}
    assert said(pool(labels=labels, podAffinity=strange)) == [
        "spec.podAffinity.matchLabels: Forbidden: app: the pool is an application's",
        "spec.podAffinity.matchExpressions: Forbidden: the pool is an application's",
    ]


# -- what is filled in


def test_completed() -> None:
    short = pool(subnet="fd00::/64", ips=["FD00::2", "fd00::1", "fd00::3-fd00::4"], excludeIPs=["fd00:0::2"])
    whole = IPPoolRules().complete(Review("CREATE", short))
    assert whole.metadata.finalizers == [FINALIZER]
    assert whole.metadata.labels == {POOL_CIDR: "fd00---64"}
    assert (whole.spec.ip_version, whole.spec.ips, whole.spec.exclude_ips) == (6, ["fd00::1-fd00::4"], ["fd00::2"])


def test_what_cannot_be_read_stays_for_its_author_to_see() -> None:
    wrong = pool(subnet="nonsense", ips=["10.6.0.2", "10.6.0.9-10.6.0.1"])
    whole = IPPoolRules().complete(Review("CREATE", wrong))
    assert whole.spec == wrong.spec
    assert POOL_CIDR not in whole.metadata.labels


@pytest.mark.parametrize(
    ("subnet", "label"),
    [(LAN, "10-6-0-0-16"), ("fd00::/64", "fd00---64"), ("fd00:1:2:3:4:5:6:7/128", "fd00-1-2-3-4-5-6-7-128")],
)
def test_the_label_is_that_of_the_original(subnet: str, label: str) -> None:
    assert cidr_label(subnet) == label


# -- anything that the schema lets through

words = st.sampled_from(
    ["", "x", "10.6.0.1", "10.6.0.9-10.6.0.20", "10.6.0.9-10.6.0.1", "10.7.0.3", "fd00::1", "fd00::1-fd00::9", LAN,
     "10.6.0.0/33", "10.6.0.1/16", "fd00::/64", "0.0.0.0/0", "::/0", "::ffff:10.6.0.1", "1-2-3", "::-ffff::",
     "10.6.0.0/", "fd00::/999999999999", "%", "1.2.3.4%eth0", "fe80::1%eth0", "٣.1.1.1/٣"]
) | st.text("01f:./-%٣ ", max_size=6)  # fmt: skip
lists = st.lists(words, max_size=4)
terms = st.builds(LabelSelectorRequirement, key=words, operator=st.sampled_from(["In", "Exists", "x"]), values=lists)
selectors = st.builds(
    LabelSelector,
    match_labels=st.dictionaries(words, words, max_size=2),
    match_expressions=st.lists(terms, max_size=2),
)
specs = st.builds(
    IPPoolSpec,
    ip_version=st.sampled_from([None, 4, 6]),
    subnet=words,
    ips=lists,
    exclude_ips=lists,
    gateway=st.none() | words,
    routes=st.lists(st.builds(Route, dst=words, gw=words), max_size=3),
    pod_affinity=st.none() | selectors,
    namespace_affinity=st.none() | selectors,
    node_affinity=st.none() | selectors,
    namespace_name=lists,
    multus_name=lists,
    disable=st.booleans(),
)
metas = st.builds(
    ObjectMeta,
    name=st.just("p"),
    uid=st.just("u"),
    labels=st.dictionaries(st.sampled_from([OWNER_APPLICATION_NAME, POOL_CIDR, "a"]), words, max_size=2),
    finalizers=st.lists(st.sampled_from([FINALIZER, "x"]), max_size=2),
    deletion_timestamp=st.sampled_from([None, "2026-01-01T00:00:00Z"]),
)
records = st.none() | words | st.just('{"10.6.0.9":{"pod":"a/b","podUid":"u"}}')
pools = st.builds(
    SpiderIPPool,
    metadata=metas,
    spec=specs,
    status=st.builds(IPPoolStatus, allocated_ips=records, allocated_ip_count=st.sampled_from([None, 0, 1])),
)
WORLD = atlas(
    pool("a", ips=["10.6.0.15"]), pool("b", subnet="fd00::/60", ips=["fd00::2"]), pool("c", subnet="nonsense")
)


@settings(max_examples=100, deadline=None)
@given(pools, pools, st.sampled_from(["CREATE", "UPDATE", "DELETE"]))
def test_no_object_makes_a_rule_raise(new: SpiderIPPool, before: SpiderIPPool, operation: Operation) -> None:
    old = before if operation == "UPDATE" else None
    rules = IPPoolRules(lambda: WORLD, families=(4,), guard_deletion=True)
    completed = rules.complete(Review(operation, new, old))
    assert rules.complete(Review(operation, completed, old)) == completed
    errors = rules.judge(Review(operation, completed, old)).errors
    assert all(error.field and str(error) for error in errors)
    if not errors and operation == "CREATE":
        known = territory(completed)  # which the owner of the pool reads, and would raise
        assert network(completed.spec.subnet) is not None
        assert WORLD.shared(known.addresses, but="p") is None
