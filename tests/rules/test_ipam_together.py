"""Pools for several NICs of a pod that ask at the same time: each is judged by what it says of itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from api import annotations as a
from ipam.selection import SelectionError, SelectionRequest, select, select_together
from tests.rules.selection_world import by_name, pool, request

NETWORKS = "wan,dmz"
"""What makes net1 and net2."""


def asking(nic: str, base: SelectionRequest | None = None, **fields: object) -> SelectionRequest:
    return structs.replace(base or request(networks=NETWORKS), nic=nic, **fields)


def together(*requests: SelectionRequest, pools: object = None) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found = select_together(requests, pools or POOLS)  # type: ignore[arg-type]
    return {nic.nic: (nic.ipv4, nic.ipv6) for nic in found.nics}


POOLS = by_name(pool("a4", default=True), pool("b4"), pool("c4"), pool("d6", 6), pool("w4", multus_name=["ns/wan"]))


def test_each_has_the_plugin_configuration_of_its_own() -> None:
    assert together(
        asking("eth0"),
        asking("net1", default_ipv4=("b4", "w4")),
        asking("net2", default_ipv4=("c4",), default_ipv6=("d6",), clean_gateway=True),
    ) == {"eth0": (("a4",), ()), "net1": (("w4", "b4"), ()), "net2": (("c4",), ("d6",))}
    found = select_together([asking("eth0"), asking("net2", clean_gateway=True)], POOLS)
    assert [nic.clean_gateway for nic in found.nics] == [False, True]


def test_the_annotation_for_whichever_nic_asks_is_for_all_of_them() -> None:
    base = request({"ipv4": ["b4"]}, networks=NETWORKS)
    assert together(asking("eth0", base), asking("net1", base)) == {"eth0": (("b4",), ()), "net1": (("b4",), ())}


def test_the_annotation_for_all_nics_is_granted_for_those_that_do_not_ask_too() -> None:
    items = [{"interface": nic, "ipv4": [name]} for nic, name in (("net2", "c4"), ("eth0", "a4"), ("net1", "b4"))]
    base = request(ippools=items, networks=NETWORKS)
    found = select_together([asking("eth0", base), asking("net1", base)], POOLS)
    assert [(nic.nic, nic.ipv4) for nic in found.nics] == [("eth0", ("a4",)), ("net1", ("b4",)), ("net2", ("c4",))]
    assert found.whole
    assert {verdict.nic for verdict in found.explanation.considered} == {"eth0", "net1", "net2"}


def test_a_nic_that_the_annotation_for_all_nics_leaves_out_is_named() -> None:
    base = request(ippools=[{"interface": "eth0", "ipv4": ["a4"]}], networks=NETWORKS)
    with pytest.raises(SelectionError, match="is for eth0 and says nothing of net1") as caught:
        select_together([asking("eth0", base), asking("net1", base)], POOLS)
    assert caught.value.cause == "wrong_input"


def test_a_network_that_the_agent_names_counts_and_that_of_another_nic_does_not() -> None:
    """The interface's name is the plugin's business: the annotation need not know it."""
    one = asking("up0", default_ipv4=("w4",), multus="ns/wan")
    assert together(asking("eth0"), one) == {"eth0": (("a4",), ()), "up0": (("w4",), ())}
    with pytest.raises(SelectionError, match="multusName: wanted one of ns/wan, found ns/dmz"):
        select_together([one, asking("net1", default_ipv4=("w4",), multus="ns/dmz")], POOLS)


def test_the_master_of_each_nic_is_looked_at() -> None:
    pools = by_name(pool("x4", subnet="10.1.0.0/16"), pool("y4", subnet="10.2.0.0/16"))
    base = request({"ipv4": ["x4", "y4"]}, networks=NETWORKS)
    masters = {"eth0": ("10.1.0.2/16",), "net1": ("10.2.0.2/16",), "net2": None}
    found = together(*(asking(nic, base, master_subnets=it) for nic, it in masters.items()), pools=pools)
    assert found == {"eth0": (("x4",), ()), "net1": (("y4",), ()), "net2": (("x4", "y4"), ())}


def test_the_address_that_each_nic_asks_for() -> None:
    pools = by_name(pool("x4", ips=["10.0.0.1-10.0.0.9"]), pool("y4", ips=["10.0.1.1-10.0.1.9"]))
    base = request({"ipv4": ["x4", "y4"]}, networks=NETWORKS)
    found = select_together([asking("eth0", base), asking("net1", base, ips=("10.0.1.5",))], pools)
    assert [(nic.nic, nic.ipv4, nic.wished_ipv4) for nic in found.nics] == [
        ("eth0", ("x4", "y4"), ""),
        ("net1", ("y4",), "10.0.1.5"),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"default_ipv4": ("gone",)}, "the plugin configuration's ipam names pool 'gone', which does not exist"),
        ({"default_ipv4": ("b4", "b4")}, "the plugin configuration's ipam for net1 names IPv4 pool 'b4' twice"),
        ({"default_ipv4": ("w4",), "nic": "net2"}, "no IPv4 pool of the plugin configuration's ipam for net2"),
        ({"ips": ("fd00::1",)}, "for net1: ips: fd00::1: the cluster's default pools"),
    ],
)
def test_what_goes_wrong_says_which_nic(fields: dict[str, object], words: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select_together([asking("eth0"), structs.replace(asking("net1"), **fields)], POOLS)
    assert words in str(caught.value)


names = st.sampled_from(["a4", "b4", "c4", "w4", "d6"])


@given(
    plugins=st.lists(st.lists(names, max_size=3, unique=True), min_size=1, max_size=4),
    annotation=st.none() | st.lists(names, max_size=2, unique=True),
)
def test_without_an_annotation_for_all_nics_each_gets_what_it_gets_alone(
    plugins: list[list[str]], annotation: list[str] | None
) -> None:
    base = request(others=None if annotation is None else {a.POD_IPPOOL: json.dumps({"ipv4": annotation})})
    requests = [asking(f"net{at}" if at else "eth0", base, default_ipv4=tuple(each)) for at, each in enumerate(plugins)]
    alone = []
    for each in requests:
        try:
            alone.append(select(each, POOLS).asked)
        except SelectionError:
            with pytest.raises(SelectionError):
                select_together(requests, POOLS)
            return
    assert list(select_together(requests, POOLS).nics) == alone
