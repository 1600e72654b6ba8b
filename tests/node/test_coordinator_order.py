"""NICs of one pod come and go in any order: each packet leaves by the NIC that has its source, nothing is left."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute

from cni.coordination import CoordinationPlan
from tests.node.conftest import Segment
from tests.node.lan import NODE, WORLD, Lan, Pod, address, assign, lan_on, served
from tests.node.picture import picture

pytestmark = pytest.mark.node

NETWORKS = {"net1": "b", "net2": "c", "net3": "a"}
NODES_OWN = {4: ("172.200.0.2", "192.0.2.77"), 6: ("fd00:200::2", "2001:db8:77::1")}
"""Further addresses of the node: of a network that pods are in as well, and of none."""

type Versions = tuple[int, ...]

orders = st.lists(st.sampled_from(sorted(NETWORKS)), min_size=3, max_size=8)
families = st.fixed_dictionaries(dict.fromkeys(("eth0", *NETWORKS), st.sampled_from([(4,), (6,), (4, 6)])))
each_order = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def lan(segment: Segment) -> Iterator[Lan]:
    with lan_on(segment) as made:
        assign(made.node, "ens0", "172.200.0.2/16", "fd00:200::2/64", "192.0.2.77/32", "2001:db8:77::1/128")
        yield made


def add(pod: Pod, nic: str, network: str, versions: Versions, *, default: str, in_tables: bool) -> CoordinationPlan:
    pod.versions = versions
    names = ("eth0", *NETWORKS)
    return pod.add(nic, network, names=names, pod_default_route_nic=default, hijack_in_policy_tables=in_tables)


def check(pod: Pod, versions: Mapping[str, Versions], networks: Mapping[str, str]) -> None:
    """Of each NIC's addresses, and each of the node's."""
    assert pod.differences() == []
    for nic, plan in pod.plans.items():
        for version in versions[nic]:
            own = address(networks[nic], pod.number, version)
            assert pod.way_to(WORLD[version], source=own) == (nic, own)
            for one in (NODE[version], *NODES_OWN[version]):
                assert pod.way_to(one, source=own)[0] == plan.pod_end


def talk(lan: Lan, pod: Pod, versions: Mapping[str, Versions], networks: Mapping[str, str]) -> None:
    for nic in pod.plans:
        for version in versions[nic]:
            own = address(networks[nic], pod.number, version)
            for one in (NODE[version], *NODES_OWN[version]):
                assert served(lan.node, pod.netns, one, source=own) == own
                assert served(pod.netns, lan.node, own, source=one) == one


def without_rules(lan: Lan) -> set[str]:
    return {one for one in picture(lan.node) if not one.startswith("rule")}


@each_order
@given(steps=orders, default=st.sampled_from(["", *NETWORKS]), versions=families, in_tables=st.booleans())
def test_beside_an_overlay(
    lan: Lan, steps: list[str], default: str, versions: dict[str, Versions], in_tables: bool
) -> None:
    pod = lan.pod(versions=(4, 6))
    try:
        pod.overlay()
        before = picture(pod.netns), without_rules(lan)
        for nic in steps:
            if nic in pod.plans:
                pod.delete(nic)
            else:
                add(pod, nic, NETWORKS[nic], versions[nic], default=default, in_tables=in_tables)
            check(pod, versions, NETWORKS)
        talk(lan, pod, versions, NETWORKS)
        for nic in [*pod.plans]:  # the first one first: what it brought for all is the others' by now
            pod.delete(nic)
        assert (picture(pod.netns), without_rules(lan)) == before
    finally:
        leave(lan, pod)


@each_order
@given(steps=orders, default=st.sampled_from(["", *NETWORKS]), versions=families, in_tables=st.booleans())
def test_behind_a_pair(
    lan: Lan, steps: list[str], default: str, versions: dict[str, Versions], in_tables: bool
) -> None:
    networks = {**NETWORKS, "eth0": "a"}
    pod = lan.pod()
    try:
        before = picture(pod.netns), without_rules(lan)
        add(pod, "eth0", "a", versions["eth0"], default=default, in_tables=in_tables)
        alone = picture(pod.netns), without_rules(lan)
        for nic in (one for one in steps if one != "net3"):
            if nic in pod.plans:
                pod.delete(nic)
            else:
                add(pod, nic, NETWORKS[nic], versions[nic], default=default, in_tables=in_tables)
            check(pod, versions, networks)
        talk(lan, pod, versions, networks)
        for nic in [one for one in pod.plans if one != "eth0"]:
            pod.delete(nic)
        assert (picture(pod.netns), without_rules(lan)) == alone
        pod.delete("eth0")
        # The firewall's table does nothing without the pair, and goes with the namespace.
        left = {one for one in picture(pod.netns) if not one.startswith("nft")}
        assert (left, without_rules(lan)) == before
    finally:
        leave(lan, pod)


def test_pods_that_come_and_go_at_the_same_time(lan: Lan) -> None:
    """Each as if it were alone on the node; half of them are beside an overlay."""
    pods = [lan.pod(versions=(4, 6)) for _ in range(6)]
    over = pods[::2]
    for pod in over:
        pod.overlay()
    before = without_rules(lan), [picture(pod.netns) for pod in over]

    def come_and_go(pod: Pod) -> None:
        nics = {"net1": "b", "net2": "c"} | ({} if pod in over else {"eth0": "a"})
        for _ in range(4):
            for nic, network in sorted(nics.items()):
                pod.add(nic, network)  # sees that all is there
            for version in (4, 6):
                peer = served(pod.netns, lan.node, address("b", pod.number, version))
                assert peer in (NODE[version], *NODES_OWN[version])
            for nic in nics:
                pod.delete(nic)

    with ThreadPoolExecutor(len(pods)) as threads:
        for done in [threads.submit(come_and_go, pod) for pod in pods]:
            done.result(60)
    assert (without_rules(lan), [picture(pod.netns) for pod in over]) == before


def leave(lan: Lan, pod: Pod) -> None:
    """The next example has the same addresses. The kernel takes a namespace's links down when it has the time."""

    def remove() -> None:
        with IPRoute() as route:
            for name in (pod.cali, pod.host_veth):
                for index in route.link_lookup(ifname=name):
                    route.link("del", index=index)

    for nic in [*pod.plans][::-1]:
        pod.delete(nic)
    lan.node.run(remove)
    pod.netns.__exit__(None, None, None)
    lan.reuse(pod)
