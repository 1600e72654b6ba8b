"""What a pool asks of a NIC: each predicate, its words, and the cases in which the original is wrong."""

import pytest
from msgspec import structs

from api import annotations as a
from api.annotations import MULTUS_DEFAULT_NETWORK, MULTUS_NETWORKS
from api.ippool import SpiderIPPool
from api.meta import LabelSelector, LabelSelectorRequirement
from ipam.identity import Workload
from ipam.selection import SelectionRequest, select
from tests.rules.selection_world import DEPLOYMENT, OTHER, by_name, pool, refused, request

EXPRESSION = LabelSelector(match_expressions=[LabelSelectorRequirement(key="tier", operator="NotIn", values=["web"])])
BROKEN = LabelSelector(match_expressions=[LabelSelectorRequirement(key="tier", operator="Near", values=["web"])])
CONTROLLER = Workload(api_version="v1", kind="ReplicationController", namespace="ns", name="web")
JOB = Workload(api_version="batch/v1", kind="Job", namespace="ns", name="web")


@pytest.mark.parametrize(
    ("candidate", "predicate", "wanted", "seen"),
    [
        (pool("p", deleted=True), "terminating", "a pool that stays", "deleted at 2026-01-01T00:00:00Z"),
        (pool("p", disable=True), "disable", "false", "true"),
        (pool("p", 6), "ipVersion", "4", "6"),
        (pool("p", node_name=["n2", "n3"]), "nodeName", "one of n2, n3", "n1"),
        (pool("p", node_affinity=OTHER), "nodeAffinity", "tier=db", "tier=web"),
        (pool("p", namespace_name=["x"]), "namespaceName", "one of x", "ns"),
        (pool("p", namespace_affinity=OTHER), "namespaceAffinity", "tier=db", "tier=web"),
        (pool("p", pod_affinity=EXPRESSION), "podAffinity", "tier NotIn (web)", "tier=web"),
        (pool("p", owner=JOB), "podAffinity", "Job ns/web (batch/v1)", "Deployment ns/web (apps/v1)"),
        (pool("p", multus_name=["wan", "x/lan"]), "multusName", "one of kube-system/wan, x/lan", "kube-system/lan"),
        (pool("p", disable=True, node_name=["n2"]), "disable", "false", "true"),
    ],
)
def test_a_rejection_says_predicate_wanted_and_seen(
    candidate: SpiderIPPool, predicate: str, wanted: str, seen: str
) -> None:
    error = refused(request({"ipv4": ["p"]}), by_name(candidate))
    assert error.cause == "no_available_pool"
    (verdict,) = error.explanation.considered
    assert verdict.reason is not None
    assert (verdict.reason.predicate, verdict.reason.wanted, verdict.reason.seen) == (predicate, wanted, seen)
    assert str(error) == (
        "no IPv4 pool of annotation ipam.spidernet.io/ippool may serve it: "
        f"p: rejected by {predicate}: wanted {wanted}, found {seen}"
    )


def test_a_selector_that_kubernetes_would_refuse_rejects_its_pool_only() -> None:
    pools = by_name(pool("p1", pod_affinity=BROKEN), pool("p2"))
    selection = select(request({"ipv4": ["p1", "p2"]}), pools)
    assert selection.asked.ipv4 == ("p2",)
    assert selection.asked.named_ipv4 == ("p1", "p2")
    rejected = selection.explanation.considered[0].reason
    assert rejected is not None
    assert "unknown operator 'Near'" in rejected.seen


def test_names_override_affinities() -> None:
    for candidate in (
        pool("p", node_name=["n1"], node_affinity=OTHER),
        pool("p", namespace_name=["ns"], namespace_affinity=OTHER),
    ):
        assert select(request({"ipv4": ["p"]}), by_name(candidate)).asked.ipv4


ABSENT = LabelSelector(match_expressions=[LabelSelectorRequirement(key="gpu", operator="DoesNotExist")])


@pytest.mark.parametrize(
    ("candidate", "unknown"),
    [(pool("p", node_affinity=ABSENT), "node"), (pool("p", namespace_affinity=ABSENT), "namespace")],
)
def test_an_object_of_which_nothing_is_known_fulfils_no_affinity(candidate: SpiderIPPool, unknown: str) -> None:
    """Not even "has no such label", which an empty set of labels would fulfil."""
    pools = by_name(candidate)
    asked = request({"ipv4": ["p"]})
    assert select(asked, pools).asked.ipv4 == ("p",)
    error = refused(structs.replace(asked, **{unknown: None}), pools)
    assert "wanted gpu DoesNotExist, found an unknown object" in str(error)


# ---------------------------------------------------------------- automatic pools


@pytest.mark.parametrize("owner", [DEPLOYMENT, CONTROLLER, JOB])
def test_an_automatic_pool_serves_its_workload_and_no_other(owner: Workload) -> None:
    """The original writes version v1 for the core group and looks for group v1: it never serves such a workload."""
    pools = by_name(pool("p", owner=owner))
    asked = request({"ipv4": ["p"]}, workload=owner)
    assert select(asked, pools).asked.ipv4 == ("p",)
    others = [
        structs.replace(owner, name="other"),
        structs.replace(owner, namespace="other"),
        structs.replace(owner, kind="Other"),
        structs.replace(owner, api_version="other/v1"),
        structs.replace(owner, api_version=f"{owner.api_version}beta1"),
    ]
    for other in others:
        error = refused(structs.replace(asked, workload=other), pools)
        assert f"found {other} ({other.api_version})" in str(error)
    assert "an unknown workload" in str(refused(structs.replace(asked, workload=None), pools))


def test_an_automatic_pool_that_lost_its_affinity_serves_nobody() -> None:
    assert "podAffinity" in str(
        refused(request({"ipv4": ["p"]}), by_name(pool("p", owner=DEPLOYMENT, pod_affinity=None)))
    )


def test_the_five_keys_are_labels_like_any_other_on_a_pool_that_somebody_wrote() -> None:
    keys = LabelSelector(match_labels={a.APP_NAME: "web"})
    pools = by_name(pool("p", pod_affinity=keys))
    asked = request({"ipv4": ["p"]})
    assert "found tier=web" in str(refused(asked, pools))
    metadata = structs.replace(asked.pod.metadata, labels={a.APP_NAME: "web"})
    labelled = structs.replace(asked, pod=structs.replace(asked.pod, metadata=metadata))
    assert select(labelled, pools).asked.ipv4 == ("p",)


def test_an_automatic_pool_is_for_any_network() -> None:
    pools = by_name(pool("p", owner=DEPLOYMENT, multus_name=["x/nowhere"]))
    assert select(request({"ipv4": ["p"]}, cluster_network=""), pools).asked.ipv4 == ("p",)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("asked", "network"),
    [
        (request(), "kube-system/lan"),
        (request(cluster_network="lan"), "kube-system/lan"),
        (request(cluster_network="x/lan"), "x/lan"),
        (request(others={MULTUS_DEFAULT_NETWORK: "wan"}), "kube-system/wan"),
        (request(others={MULTUS_DEFAULT_NETWORK: "x/wan"}), "x/wan"),
        (request(networks="wan", nic="net1"), "ns/wan"),
        (request(networks="dmz,x/wan", nic="net2"), "x/wan"),
        (request(networks='[{"name":"wan","namespace":"x","interface":"up0"}]', nic="up0"), "x/wan"),
    ],
)
def test_a_pool_may_be_for_the_nics_of_a_network(asked: SelectionRequest, network: str) -> None:
    pools = by_name(pool("p", multus_name=["z/other", network], default=True))
    assert select(asked, pools).asked.ipv4 == ("p",)
    without = by_name(pool("p", multus_name=["z/other"], default=True))
    assert f"multusName: wanted one of z/other, found {network}" in str(refused(asked, without))


def test_a_network_without_namespace_in_a_pool_is_one_of_the_agents_namespace() -> None:
    pools = by_name(pool("p", multus_name=["wan"], default=True))
    assert select(request(others={MULTUS_DEFAULT_NETWORK: "kube-system/wan"}), pools).asked.ipv4
    assert "one of kube-system/wan, found ns/wan" in str(refused(request(networks="wan", nic="net1"), pools))


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (request(cluster_network=""), f"no annotation {MULTUS_DEFAULT_NETWORK} and no MULTUS_CLUSTER_NETWORK"),
        (
            request(cluster_network="/etc/cni/net.d/10-lan.conflist"),
            "MULTUS_CLUSTER_NETWORK '/etc/cni/net.d/10-lan.conflist', no name of a network attachment",
        ),
        (request(nic="net1"), f"nothing about net1 in annotation {MULTUS_NETWORKS}"),
        (request(networks="wan@up0", nic="net1"), f"nothing about net1 in annotation {MULTUS_NETWORKS}"),
    ],
)
def test_a_nic_of_which_nobody_knows_the_network(asked: SelectionRequest, seen: str) -> None:
    """It is served by pools for any network: the original refuses the first NIC even those."""
    error = refused(asked, by_name(pool("p", multus_name=["ns/wan"], default=True)))
    assert error.cause == "no_available_pool"
    assert f"multusName: wanted one of ns/wan, found {seen}" in str(error)
    assert select(asked, by_name(pool("p", default=True))).asked.ipv4 == ("p",)


def test_each_nic_is_compared_with_its_own_network() -> None:
    pools = by_name(pool("p1", multus_name=["lan"]), pool("p2", multus_name=["ns/wan"]))
    both = {"ipv4": ["p1", "p2"]}
    asked = request(ippools=[{"interface": "eth0", **both}, {"interface": "net1", **both}], networks="wan")
    assert [it.ipv4 for it in select(asked, pools).nics] == [("p1",), ("p2",)]


# ---------------------------------------------------------------- physical NICs

ONE = by_name(pool("p", default=True))


@pytest.mark.parametrize("addresses", [None, ("10.0.3.1/24",), ("192.168.0.1/24", "10.0.3.1/16"), ("10.0.0.0/8",)])
def test_a_pool_fits_the_physical_nic(addresses: tuple[str, ...] | None) -> None:
    assert select(request(master_subnets=addresses), ONE).asked.ipv4 == ("p",)


@pytest.mark.parametrize(
    ("addresses", "seen"),
    [
        ((), "no address"),
        (("10.1.0.1/8",), "10.1.0.1/8"),
        (("fd00::1/64", "192.168.0.1/24"), "fd00::1/64, 192.168.0.1/24"),
    ],
)
def test_a_pool_that_does_not_fit_the_physical_nic(addresses: tuple[str, ...], seen: str) -> None:
    error = refused(request(master_subnets=addresses), ONE)
    assert error.cause == "no_available_pool"
    assert f"match_master_subnet: wanted a master NIC in 10.0.0.0/16, found {seen}" in str(error)


@pytest.mark.parametrize(
    "candidate", [pool("p", multus_name=["lan"], default=True), pool("p", owner=DEPLOYMENT, default=True)]
)
def test_the_physical_nic_counts_whatever_else_the_pool_says(candidate: SpiderIPPool) -> None:
    """The original looks no further once the workload or the network has matched."""
    assert select(request(), by_name(candidate)).asked.ipv4 == ("p",)
    assert "match_master_subnet" in str(refused(request(master_subnets=()), by_name(candidate)))


def test_the_physical_nic_is_that_of_the_nic_that_asks() -> None:
    asked = request(
        ippools=[{"interface": "eth0", "ipv4": ["p"]}, {"interface": "net1", "ipv4": ["q"]}],
        master_subnets=("10.0.3.1/24",),
    )
    pools = by_name(pool("p"), pool("q", subnet="10.9.0.0/16"))
    assert select(asked, pools).asked.ipv4 == ("p",)
    assert "net1 q: rejected by match_master_subnet" in str(refused(structs.replace(asked, nic="net1"), pools))


@pytest.mark.parametrize(("subnet", "address"), [("lan", "10.0.3.1/24"), ("10.0.0.0/16", "lan")])
def test_what_is_no_network_matches_none(subnet: str, address: str) -> None:
    error = refused(request(master_subnets=(address,)), by_name(pool("p", subnet=subnet, default=True)))
    assert "'lan' does not appear to be an IPv4 or IPv6" in str(error)
