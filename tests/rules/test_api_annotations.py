"""Annotations: what users may write, and what they are told when it is wrong."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import annotations as a
from api.annotations import AnnotationError, AnnotationMeaningError, AnnotationSyntaxError
from api.route import Route

PARSERS: list[tuple[str, Callable[[Mapping[str, str]], object], object]] = [
    (a.POD_IPPOOL, a.pod_ippool, None),
    (a.POD_IPPOOLS, a.pod_ippools, None),
    (a.POD_ROUTES, a.pod_routes, ()),
    (a.POD_SUBNET, a.pod_subnets, None),
    (a.POD_SUBNETS, a.pod_subnets, None),
    (a.IPPOOL_IP_NUMBER, a.ippool_ip_number, None),
    (a.IPPOOL_RECLAIM, a.ippool_reclaim, True),
    (a.NAMESPACE_DEFAULT_IPV4, a.namespace_default_pools, None),
    (a.NAMESPACE_DEFAULT_IPV6, a.namespace_default_pools, None),
]

every_parser = pytest.mark.parametrize(("key", "parse", "absent"), PARSERS, ids=[key for key, _, _ in PARSERS])


@every_parser
def test_absent(key: str, parse: Callable[[Mapping[str, str]], object], absent: object) -> None:
    assert parse({"other": "annotation"}) == absent


@every_parser
@given(value=st.text() | st.sampled_from(["null", "1", "[1]", '{"ipv4":1}', '[{"ipv4":["a"]}]', '["a"]']))
def test_whatever_is_written_is_read_or_refused_by_key_and_value(
    key: str, parse: Callable[[Mapping[str, str]], object], absent: object, value: str
) -> None:
    refused: AnnotationError | None = None
    try:
        parse({key: value})
    except AnnotationError as error:
        refused = error
    if refused is not None:
        assert (refused.key, refused.value) == (key, value)
        assert key in str(refused)
        assert repr(value) in str(refused)


def test_ippool() -> None:
    found = a.pod_ippool({a.POD_IPPOOL: '{"ipv4":["p1","p*"]}'})
    assert found == a.IPPoolAnnotation(ipv4=("p1", "p*"), ipv6=None)


def test_empty_ippool_is_not_absent() -> None:
    assert a.pod_ippool({a.POD_IPPOOL: "{}"}) == a.IPPoolAnnotation()


def test_what_is_wrong_is_said_with_the_place_and_an_example() -> None:
    with pytest.raises(AnnotationSyntaxError) as caught:
        a.pod_ippool({a.POD_IPPOOL: '{"ipv4":"p1"}'})
    assert str(caught.value) == (
        "annotation ipam.spidernet.io/ippool: Expected `array | null`, got `str` - at `$.ipv4`; "
        """want {"ipv4":["pool"],"ipv6":["pool"]}; the value is '{"ipv4":"p1"}'"""
    )
    with pytest.raises(AnnotationSyntaxError, match="not JSON"):
        a.pod_ippool({a.POD_IPPOOL: "p1"})


def test_ippools() -> None:
    text = '[{"interface":"eth0","ipv4":["p1"],"cleangateway":true},{"interface":"net1","ipv6":["p2"]}]'
    assert a.pod_ippools({a.POD_IPPOOLS: text}) == (
        a.NICPools(interface="eth0", ipv4=("p1",), cleangateway=True),
        a.NICPools(interface="net1", ipv6=("p2",)),
    )
    assert a.pod_ippools({a.POD_IPPOOLS: '[{"ipv4":["a"]},{"ipv4":["b"]}]'}) == (
        a.NICPools(ipv4=("a",)),
        a.NICPools(ipv4=("b",)),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "names no NIC"),
        ('[{"interface":"eth0"},{"ipv4":["a"]}]', "for all NICs or for none"),
        ('[{"interface":"eth0"},{"interface":"eth0"}]', "eth0 is named more than once"),
    ],
)
def test_ippools_that_cannot_be(value: str, words: str) -> None:
    with pytest.raises(AnnotationMeaningError, match=words):
        a.pod_ippools({a.POD_IPPOOLS: value})


def test_routes() -> None:
    text = '[{"dst":"10.0.0.0/16","gw":"192.168.1.1"},{"dst":"fd00::/64","gw":"fd01::1"}]'
    assert a.pod_routes({a.POD_ROUTES: text}) == (
        Route(dst="10.0.0.0/16", gw="192.168.1.1"),
        Route(dst="fd00::/64", gw="fd01::1"),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('[{"dst":"10.0.0.0/16","gw":"fd01::1"}]', "is IPv4 and gw fd01::1 is IPv6"),
        ('[{"dst":"10.0.0.0/40","gw":"10.0.0.1"}]', "10.0.0.0/40"),
        ('[{"dst":"10.0.0.0/16","gw":"router"}]', "router"),
        ('[{"dst":"10.0.0.9","gw":"10.0.0.1"}]', "no prefix length"),
    ],
)
def test_routes_that_cannot_be(value: str, words: str) -> None:
    with pytest.raises(AnnotationMeaningError, match=words):
        a.pod_routes({a.POD_ROUTES: value})


def test_subnet_of_one_nic_is_eth0_unless_it_says_so() -> None:
    assert a.pod_subnets({a.POD_SUBNET: '{"ipv4":["s4"]}'}) == (a.NICSubnets(interface="eth0", ipv4=("s4",)),)
    found = a.pod_subnets({a.POD_SUBNET: '{"interface":"net1","ipv6":["s6"]}'})
    assert found == (a.NICSubnets(interface="net1", ipv6=("s6",)),)


def test_subnets_win_over_subnet() -> None:
    both = {a.POD_SUBNET: '{"ipv4":["one"]}', a.POD_SUBNETS: '[{"interface":"eth0","ipv4":["many"]}]'}
    assert a.pod_subnets(both) == (a.NICSubnets(interface="eth0", ipv4=("many",)),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "names no NIC"),
        ('[{"ipv4":["s"]}]', "interface is missing"),
        ('[{"interface":"eth0"}]', "names no subnet"),
        ('[{"interface":"eth0","ipv4":[""]}]', "empty subnet name"),
        ('[{"interface":"eth0","ipv4":["s"]},{"interface":"eth0","ipv4":["t"]}]', "eth0 is named more than once"),
        ('[{"interface":"eth0","ipv4":["s"]},{"interface":"net1","ipv4":["s"]}]', "s is named more than once"),
    ],
)
def test_subnets_that_cannot_be(value: str, words: str) -> None:
    with pytest.raises(AnnotationMeaningError, match=words):
        a.pod_subnets({a.POD_SUBNETS: value})


@pytest.mark.parametrize(
    ("value", "number", "flexible"), [("5", 5, False), ("+2", 2, True), ("0", 0, False), ("+0", 0, True)]
)
def test_pool_size(value: str, number: int, flexible: bool) -> None:
    assert a.ippool_ip_number({a.IPPOOL_IP_NUMBER: value}) == a.PoolSize(number=number, flexible=flexible)


@pytest.mark.parametrize("value", ["", "+", "-1", "1.5", "++1", "five", "²", " 5"])
def test_pool_size_that_is_none(value: str) -> None:
    with pytest.raises(AnnotationSyntaxError):
        a.ippool_ip_number({a.IPPOOL_IP_NUMBER: value})


@pytest.mark.parametrize(("value", "meaning"), [("true", True), ("F", False), ("1", True), ("FALSE", False)])
def test_reclaim(value: str, meaning: bool) -> None:
    assert a.ippool_reclaim({a.IPPOOL_RECLAIM: value}) is meaning


def test_reclaim_that_is_no_truth_value() -> None:
    with pytest.raises(AnnotationSyntaxError, match='want "true" or "false"'):
        a.ippool_reclaim({a.IPPOOL_RECLAIM: "yes"})


def test_namespace_defaults() -> None:
    found = a.namespace_default_pools({a.NAMESPACE_DEFAULT_IPV4: '["p1","p2"]'})
    assert found == a.IPPoolAnnotation(ipv4=("p1", "p2"), ipv6=None)
    assert a.namespace_default_pools({a.NAMESPACE_DEFAULT_IPV4: "[]", a.NAMESPACE_DEFAULT_IPV6: "[]"}) is None
