"""Where the pools of a NIC come from: precedence, patterns, several NICs, families that are off, and what is wrong."""

import pytest
from msgspec import structs

from api.annotations import MULTUS_NETWORKS, NAMESPACE_DEFAULT_IPV6, POD_IPPOOLS, POD_SUBNET, POD_SUBNETS
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from ipam import autopool
from ipam.selection import SelectionRequest, select
from tests.rules.selection_world import DEPLOYMENT, by_name, pool, refused, request

FOUR = by_name(*(pool(name) for name in ("p1", "p2", "p3")), pool("p4", default=True))
MANY = by_name(*(pool(f"p{n}") for n in (3, 1, 2)), *(pool(f"q{n}", 6) for n in (2, 1)), pool("r1", disable=True))


@pytest.mark.parametrize(
    ("asked", "ipv4", "source"),
    [
        (
            request({"ipv4": ["p2"]}, ippools=[{"interface": "eth0", "ipv4": ["p1"]}], namespace_ipv4=["p3"]),
            "p1",
            "annotation ipam.spidernet.io/ippools",
        ),
        (
            request({"ipv4": ["p1"]}, namespace_ipv4=["p2"], default_ipv4=["p3"]),
            "p1",
            "annotation ipam.spidernet.io/ippool",
        ),
        (request(namespace_ipv4=["p2"], default_ipv4=["p3"]), "p2", "namespace ns's default pools"),
        (request(namespace_ipv4=[], default_ipv4=["p3"]), "p3", "the plugin configuration's ipam"),
        (request(), "p4", "the cluster's default pools (spec.default)"),
    ],
)
def test_the_first_source_wins(asked: SelectionRequest, ipv4: str, source: str) -> None:
    selection = select(asked, FOUR)
    assert (selection.asked.ipv4, selection.asked.ipv6, selection.source) == ((ipv4,), (), source)


@pytest.mark.parametrize(
    ("key", "value"), [(POD_SUBNET, '{"ipv4":["lan"]}'), (POD_SUBNETS, '[{"interface":"eth0","ipv4":["lan"]}]')]
)
def test_automatic_pools_go_before_all_others_where_they_are_switched_on(key: str, value: str) -> None:
    asked = structs.replace(request({"ipv4": ["p1"]}, others={key: value}), workload=DEPLOYMENT)
    assert select(asked, FOUR).asked.ipv4 == ("p1",)
    on = structs.replace(asked, enable_subnets=True)
    plan = autopool.plan(autopool.Application(DEPLOYMENT, {key: value}, 1), redundant=0)
    labels = autopool.labels(DEPLOYMENT, plan.pools[0], reclaim=True)
    mine = structs.replace(pool("auto", owner=DEPLOYMENT), metadata=ObjectMeta(name="auto", labels=labels))
    selection = select(on, {**FOUR, "auto": mine})
    assert (selection.asked.ipv4, selection.source) == (("auto",), f"annotation {key}")
    error = refused(structs.replace(on, nic="net1"), {**FOUR, "auto": mine})
    assert (error.cause, "is for eth0 and says nothing of net1" in str(error)) == ("wrong_input", True)


# ---------------------------------------------------------------- families


def test_a_source_that_names_one_family_gives_that_family_only() -> None:
    pools = by_name(pool("p4", default=True), pool("p6", 6, default=True))
    assert select(request({"ipv4": ["p4"]}), pools).asked.ipv6 == ()
    both = select(request(), pools).asked
    assert (both.ipv4, both.ipv6) == (("p4",), ("p6",))


def test_a_family_that_is_off_is_left_out_as_long_as_something_remains() -> None:
    pools = by_name(pool("p4"), pool("p6", 6))
    asked = {"ipv4": ["p4"], "ipv6": ["p6"]}
    assert select(request(asked, enable_ipv6=False), pools).asked.ipv6 == ()
    error = refused(request({"ipv6": ["p6"]}, enable_ipv6=False), pools)
    assert str(error) == "annotation ipam.spidernet.io/ippool names no pool of an enabled family (IPv6 is switched off)"
    assert error.cause == "wrong_input"


def test_the_version_of_a_pool_that_no_webhook_completed_comes_from_its_subnet() -> None:
    bare = SpiderIPPool(metadata=ObjectMeta(name="p6"), spec=IPPoolSpec(subnet="fd00::/64", default=True))
    assert select(request(), by_name(bare)).asked.ipv6 == ("p6",)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["p*"], ("p1", "p2", "p3")),
        (["p2", "p*"], ("p2", "p1", "p3")),
        (["p*", "p2"], ("p1", "p2", "p3")),
        (["p[13]", "p?"], ("p1", "p3", "p2")),
        (["?[^1-2]", "p2"], ("p3", "p2")),
    ],
)
def test_a_pattern_stands_for_pools_by_name_and_repeats_none(names: list[str], found: tuple[str, ...]) -> None:
    """The original calls it a duplicate where two patterns, or a pattern and a name, fit one pool."""
    chosen = select(request({"ipv4": names}), MANY).asked
    assert (chosen.ipv4, chosen.named_ipv4) == (found, found)


@pytest.mark.parametrize(
    "asked",
    [
        request({"ipv4": ["p?"], "ipv6": ["*"]}),
        request(ippools=[{"ipv4": ["p?"], "ipv6": ["*"]}]),
        request(namespace_ipv4=["p?"], namespace_ipv6=["*"]),
        request(default_ipv4=["p?"], default_ipv6=["*"]),
    ],
)
def test_every_source_takes_patterns_and_each_is_for_its_own_family(asked: SelectionRequest) -> None:
    chosen = select(asked, MANY).asked
    assert (chosen.ipv4, chosen.ipv6) == (("p1", "p2", "p3"), ("q1", "q2"))


def test_a_pattern_that_fits_nothing_is_said_and_leaves_its_family_out() -> None:
    selection = select(request({"ipv4": ["p1"], "ipv6": ["x*"]}), MANY)
    assert (selection.asked.ipv4, selection.asked.ipv6) == (("p1",), ())
    verdict = selection.explanation.considered[0]
    assert str(verdict) == "x*: rejected by exists: wanted an IPv6 pool whose name fits x*, found none"
    error = refused(request({"ipv4": ["x*"]}), MANY)
    assert (error.cause, error.explanation.considered[0].pool) == ("wrong_input", "x*")
    assert str(error) == "annotation ipam.spidernet.io/ippool names no pool of an enabled family (nothing fits 'x*')"


def test_a_pool_that_a_pattern_found_is_judged_like_any_other() -> None:
    error = refused(request({"ipv4": ["r*"]}), MANY)
    assert "r1: rejected by disable" in str(error)
    assert error.cause == "no_available_pool"


@pytest.mark.parametrize("where", [{"annotation": {"ipv4": ["p1", "p[1"]}}, {"default_ipv4": ["p[1"]}])
def test_a_pattern_that_cannot_be_read(where: dict[str, object]) -> None:
    error = refused(request(**where), MANY)  # type: ignore[arg-type]
    assert error.cause == "wrong_input"
    assert str(error).endswith("IPv4 pool pattern 'p[1': [ without ]")


# ---------------------------------------------------------------- several NICs


def test_a_pod_that_names_pools_for_all_of_its_nics_gets_them_at_once() -> None:
    ippools = [
        {"interface": "eth0", "ipv4": ["p1"], "ipv6": ["q1"]},
        {"interface": "net1", "ipv4": ["p2", "p3"], "cleangateway": True},
    ]
    for nic in ("eth0", "net1"):
        selection = select(request(ippools=ippools, nic=nic, clean_gateway=True), MANY)
        assert [(it.nic, it.ipv4, it.ipv6, it.clean_gateway) for it in selection.nics] == [
            ("eth0", ("p1",), ("q1",), False),
            ("net1", ("p2", "p3"), (), True),
        ]
        assert selection.asked.nic == nic
        assert [(it.nic, it.pool) for it in selection.explanation.considered] == [
            ("eth0", "p1"),
            ("eth0", "q1"),
            ("net1", "p2"),
            ("net1", "p3"),
        ]


def test_other_sources_are_for_the_nic_that_asks_and_for_no_other() -> None:
    selection = select(request({"ipv4": ["p1"]}, networks="wan", nic="net1", clean_gateway=True), MANY)
    assert [(it.nic, it.clean_gateway) for it in selection.nics] == [("net1", True)]


@pytest.mark.parametrize(
    ("networks", "nics"),
    [
        ("wan,dmz", ["eth0", "net1", "net2"]),
        ("wan@up0,dmz", ["eth0", "up0", "net2"]),
        ('[{"name":"wan"},{"name":"dmz","interface":"up0"}]', ["eth0", "net1", "up0"]),
    ],
)
def test_unnamed_items_are_for_the_nics_in_the_order_in_which_multus_makes_them(networks: str, nics: list[str]) -> None:
    ippools = [{"ipv4": [f"p{n}"]} for n in (3, 1, 2)]
    for nic in nics:
        selection = select(request(ippools=ippools, networks=networks, nic=nic), MANY)
        assert [(it.nic, it.ipv4) for it in selection.nics] == list(zip(nics, (("p3",), ("p1",), ("p2",)), strict=True))
        assert selection.asked.nic == nic


def test_an_unnamed_item_that_is_for_no_nic_is_left_out_and_said() -> None:
    """The original takes addresses for it, which no ADD ever fetches."""
    asked = request(ippools=[{"ipv4": ["p1"]}, {"ipv4": ["p2"]}, {"ipv4": ["gone"]}], networks="wan@up0")
    selection = select(asked, MANY)
    assert [it.nic for it in selection.nics] == ["eth0", "up0"]
    (left_out,) = (it for it in selection.explanation.considered if not it.accepted)
    assert left_out.reason is not None
    assert (left_out.pool, left_out.reason.predicate) == ("gone", "interface")
    assert left_out.reason.wanted == "a NIC for item 2 of annotation ipam.spidernet.io/ippools"
    assert left_out.reason.seen == "eth0, up0, by annotation k8s.v1.cni.cncf.io/networks"


def test_an_item_without_pools_is_for_a_nic_whose_addresses_are_the_business_of_others() -> None:
    asked = request(ippools=[{"ipv4": ["p1"]}, {}, {"ipv4": ["p2"]}], networks="wan,dmz")
    assert [it.nic for it in select(asked, MANY).nics] == ["eth0", "net2"]
    error = refused(structs.replace(asked, nic="net1"), MANY)
    assert error.cause == "wrong_input"
    assert str(error) == "annotation ipam.spidernet.io/ippools for net1 names no pool of an enabled family"


@pytest.mark.parametrize(
    ("ippools", "networks", "nic", "meant"),
    [
        ([{"interface": "net1", "ipv4": ["p1"]}, {"interface": "net2", "ipv4": ["p2"]}], None, "eth0", "net1, net2"),
        ([{"ipv4": ["p1"]}, {"ipv4": ["p2"]}], "wan@up0", "net1", "eth0, up0"),
        ([{"ipv4": ["p1"]}], "wan", "net1", "eth0"),
    ],
)
def test_a_nic_that_the_annotation_leaves_out(
    ippools: list[dict[str, object]], networks: str | None, nic: str, meant: str
) -> None:
    asked = request(ippools=ippools, networks=networks, nic=nic)
    error = refused(asked, MANY)
    assert error.cause == "wrong_input"
    value = asked.pod.metadata.annotations[POD_IPPOOLS]
    assert str(error) == f"annotation {POD_IPPOOLS} is for {meant} and says nothing of {nic}; the value is {value!r}"


def test_one_nic_without_pool_fails_them_all() -> None:
    ippools = [{"interface": "eth0", "ipv4": ["p1"]}, {"interface": "net1", "ipv4": ["r1"]}]
    error = refused(request(ippools=ippools), MANY)
    assert error.cause == "no_available_pool"
    assert str(error) == (
        "no IPv4 pool of annotation ipam.spidernet.io/ippools for net1 may serve it: "
        "eth0 p1: accepted; net1 r1: rejected by disable: wanted false, found true"
    )
    assert [(it.nic, dict(it.by_version)) for it in error.named] == [("eth0", {4: ("p1",)}), ("net1", {4: ("r1",)})]


def test_the_networks_are_not_read_where_the_nics_have_names() -> None:
    asked = request(ippools=[{"interface": "eth0", "ipv4": ["p1"]}], networks="a/b/c")
    assert select(asked, MANY).asked.ipv4 == ("p1",)
    unnamed = refused(request(ippools=[{"ipv4": ["p1"]}], networks="a/b/c"), MANY)
    assert unnamed.cause == "wrong_input"
    assert f"annotation {MULTUS_NETWORKS}: 'a/b/c'" in str(unnamed)


# ---------------------------------------------------------------- errors


def test_an_empty_annotation_asks_for_nothing_and_gets_that() -> None:
    error = refused(request({}), FOUR)
    assert str(error) == "annotation ipam.spidernet.io/ippool names no pool of an enabled family"
    assert error.cause == "wrong_input"


def test_no_default_pool() -> None:
    error = refused(request(), {})
    assert error.cause == "no_available_pool"
    assert "spec.default" in str(error)


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [("{", "'{'"), ('["p1"]', """'["p1"]'"""), ('{"ipv4":"p1"}', """'{"ipv4":"p1"}'""")],
)
def test_an_annotation_that_cannot_be_read_is_shown(annotation: str, shown: str) -> None:
    error = refused(request(annotation), FOUR)
    assert error.cause == "wrong_input"
    assert "annotation ipam.spidernet.io/ippool" in str(error)
    assert shown in str(error)


def test_a_namespace_annotation_that_cannot_be_read_is_shown() -> None:
    error = refused(request(namespace_ipv6="p1,p2"), FOUR)
    assert error.cause == "wrong_input"
    assert NAMESPACE_DEFAULT_IPV6 in str(error)
    assert "'p1,p2'" in str(error)


def test_a_pool_that_does_not_exist_is_an_error_though_others_would_do() -> None:
    error = refused(request({"ipv4": ["p1", "nowhere"]}), FOUR)
    assert str(error) == "annotation ipam.spidernet.io/ippool names pool 'nowhere', which does not exist"
    assert error.cause == "wrong_input"
    assert [verdict.accepted for verdict in error.explanation.considered] == [True, False]


def test_a_pool_that_is_named_twice() -> None:
    error = refused(request(default_ipv4=["p1", "p2", "p1"]), FOUR)
    assert str(error) == "the plugin configuration's ipam names IPv4 pool 'p1' twice"
    assert error.cause == "wrong_input"
    twice = [{"interface": "eth0", "ipv4": ["p1"]}, {"interface": "net1", "ipv4": ["p2", "p*", "p2"]}]
    error = refused(request(ippools=twice), FOUR)
    assert str(error) == "annotation ipam.spidernet.io/ippools for net1 names IPv4 pool 'p2' twice"


def test_two_nics_may_name_one_pool() -> None:
    both = [{"interface": nic, "ipv4": ["p1"]} for nic in ("eth0", "net1")]
    assert [it.ipv4 for it in select(request(ippools=both), FOUR).nics] == [("p1",), ("p1",)]


def test_one_family_without_pool_fails_both() -> None:
    pools = by_name(pool("p4"), pool("p6", 6, disable=True))
    error = refused(request({"ipv4": ["p4"], "ipv6": ["p6"]}), pools)
    assert "no IPv6 pool" in str(error)
    assert [verdict.accepted for verdict in error.explanation.considered] == [True, False]
