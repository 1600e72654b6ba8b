"""Multus' annotations: both forms, what is added to them, and what people are told when they are wrong."""

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.annotations import MULTUS_DEFAULT_NETWORK, MULTUS_NETWORKS, AnnotationError, AnnotationSyntaxError
from api.networks import (
    CLUSTER_NETWORK,
    Bandwidth,
    Network,
    PortMapping,
    cluster_network,
    default_network,
    joined,
    networks,
)


def read(text: str) -> tuple[Network, ...]:
    return networks({MULTUS_NETWORKS: text}, namespace="ns")


def one(text: str) -> Network | None:
    return default_network({MULTUS_DEFAULT_NETWORK: text}, namespace="kube-system")


def configured(text: str) -> Network | None:
    return cluster_network(text, namespace="kube-system")


def test_a_comma_list() -> None:
    assert read("lan, kube-system/wan@up0 ,/dmz @in,old@") == (
        Network(name="lan", namespace="ns", interface="net1"),
        Network(name="wan", namespace="kube-system", interface="up0"),
        Network(name="dmz", namespace="ns", interface="in"),
        Network(name="old", namespace="ns", interface="net4"),
    )


def test_the_number_in_a_name_counts_the_networks_before_it_too() -> None:
    assert [network.interface for network in read("a@up0,b,c@net9,d")] == ["up0", "net2", "net9", "net4"]


def test_a_json_list() -> None:
    text = """
    [
      {"name": "lan"},
      {"name": "wan.east", "namespace": "kube-system", "interface": "up0", "ips": ["10.6.0.9/16", "fd00::9"],
       "mac": "02:00:00:00:00:01", "default-route": ["10.6.0.1"], "bandwidth": {"egressRate": 1}}
    ]
    """
    assert read(text) == (
        Network(name="lan", namespace="ns", interface="net1"),
        Network(
            name="wan.east",
            namespace="kube-system",
            interface="up0",
            ips=("10.6.0.9/16", "fd00::9"),
            mac="02:00:00:00:00:01",
            default_route=("10.6.0.1",),
            bandwidth=Bandwidth(egress_rate=1),
        ),
    )
    assert str(read(text)[1]) == "kube-system/wan.east"


def test_what_other_plugins_are_told() -> None:
    text = """
    [{"name": "ib", "cni-args": {"Foo": [1, null]}, "infiniband-guid": "c2:11:22:33:44:55:66:77",
      "deviceID": "0000:03:02.1", "bandwidth": {"IngressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
      "PortMappings": [{"hostport": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "10.6.0.2"}],
      "ipam-claim-reference": "vm"}]
    """
    assert read(text) == (
        Network(
            name="ib",
            namespace="ns",
            interface="net1",
            cni_args='{"Foo":[1,null]}',
            infiniband_guid="c2:11:22:33:44:55:66:77",
            device_id="0000:03:02.1",
            bandwidth=Bandwidth(ingress_rate=1, ingress_burst=2, egress_rate=3, egress_burst=4),
            port_mappings=(PortMapping(host_port=8080, container_port=80, protocol="tcp", host_ip="10.6.0.2"),),
        ),
    )
    assert json.loads(msgspec.json.encode(read(text)[0].bandwidth)) == {
        "ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4,
    }  # fmt: skip
    assert b'"hostIP":"10.6.0.2"' in msgspec.json.encode(read(text)[0].port_mappings)


def test_how_an_interface_was_asked_for_once() -> None:
    assert read('[{"name":"lan","interfaceRequest":"up0"}]')[0].interface == "up0"
    assert read('[{"name":"lan","interface":"up1","interfaceRequest":"up0"}]')[0].interface == "up1"


def test_one_default_route_a_family() -> None:
    both = '[{"name":"a","default-route":["10.6.0.1"]},{"name":"b","default-route":["fd00::1"]}]'
    assert [network.default_route for network in read(both)] == [("10.6.0.1",), ("fd00::1",)]
    with pytest.raises(AnnotationError, match=r"default-route 10.6.0.1 and 10.7.0.1: a pod has one IPv4 default route"):
        read('[{"name":"a","default-route":["10.6.0.1"]},{"name":"b","default-route":["10.7.0.1"]}]')


def test_keys_are_read_as_go_reads_them() -> None:
    assert read('[{"Name":"lan","Interface":"up0","ips":null}]') == (
        Network(name="lan", namespace="ns", interface="up0"),
    )


@pytest.mark.parametrize("text", ["", None])
def test_absent_and_empty(text: str | None) -> None:
    annotations = {} if text is None else {MULTUS_NETWORKS: text, MULTUS_DEFAULT_NETWORK: text}
    assert networks(annotations, namespace="ns") == ()
    assert default_network(annotations, namespace="ns") is None
    assert configured("") is None
    assert read("[]") == ()


@pytest.mark.parametrize("parse", [one, configured])
def test_the_first_nic_is_of_the_agents_namespace(parse: Callable[[str], Network | None]) -> None:
    assert parse("lan") == Network(name="lan", namespace="kube-system", interface="eth0")
    assert parse('[{"name":"lan","namespace":"x"}]') == Network(name="lan", namespace="x", interface="eth0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" ", "name '': want"),
        ("lan,", "name '': want"),
        ("a/b/c", "'a/b/c' has more than one /"),
        ("lan@a@b", "'lan@a@b' has more than one / or @"),
        ("Lan", "name 'Lan': want the name of a NetworkAttachmentDefinition"),
        ("-lan", "name '-lan'"),
        ("a b", "name 'a b'"),
        ("n.s/lan", "namespace 'n.s': want the name of a namespace"),
        ("lan@sixteen-letters-", "interface 'sixteen-letters-': want 1 to 15 bytes"),
        ("lan@" + 8 * "ä", "interface 'ääääääää': want 1 to 15 bytes"),
        ('[{"name":"lan","interface":"a\\u0000b"}]', "interface 'a"),
        ('[{"name":"lan","deviceID":"a\\u0000b"}]', "deviceID 'a"),
        ("lan@a b", "interface 'a b'"),
        ("lan@..", "interface '..'"),
        ("lan@net%d", "interface 'net%d': want 1 to 15 bytes"),
        ("a,b@net1", "interface net1 is that of another network"),
        ("a@eth0", "interface eth0 is that of another network"),
        ('[{"namespace":"x"}]', "name '': want"),
        ('[{"name":"lan","mac":"02:00:00:00:00"}]', "mac '02:00:00:00:00': want a MAC address"),
        ('[{"name":"lan","mac":"02-00:00-00:00-01"}]', "mac '02-00:00-00:00-01'"),
        ('[{"name":"lan","mac":"02:00:00:00:00:00:01"}]', "mac '02:00:00:00:00:00:01'"),
        ('[{"name":"lan","ips":["10.6.0.300"]}]', "ips '10.6.0.300': want an address"),
        ('[{"name":"lan","ips":["10.6.0.3/33"]}]', "ips '10.6.0.3/33'"),
        ('[{"name":"lan","ips":["10.6.0.3/255.255.0.0"]}]', "ips '10.6.0.3/255.255.0.0'"),
        ('[{"name":"lan","ips":["fe80::1%up0"]}]', "ips 'fe80::1%up0'"),
        ('[{"name":"lan","default-route":["10.6.0.1/16"]}]', "default-route '10.6.0.1/16': want an address"),
        ('[{"name":"lan","ips":[""]}]', "ips '': want an address"),
        ('[{"name":"lan","infiniband-guid":"c2:11"}]', "infiniband-guid 'c2:11': want a GUID"),
        ('[{"name":"lan","deviceID":"../0"}]', "deviceID '../0': want the name of a device"),
        ('[{"name":"lan","deviceID":".."}]', "deviceID '..'"),
        ('[{"name":"lan","bandwidth":{"egressRate":-1}}]', "bandwidth: Expected `int` >= 0 - at `$.egressRate`"),
        (
            '[{"name":"lan","bandwidth":{"egressRate":"1M"}}]',
            "bandwidth: Expected `int`, got `str`",
        ),
        ('[{"name":"lan","portMappings":[{"hostPort":80}]}]', "portMappings: Object missing required field"),
        ('[{"name":"lan","portMappings":[{"hostPort":0,"containerPort":80}]}]', "portMappings: Expected `int` >= 1"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(text)
    assert (caught.value.key, caught.value.value) == (MULTUS_NETWORKS, text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"lan"}',
        '"lan"',
        "[null]",
        "[1]",
        '[{"name":1}]',
        '[{"name":"a","ips":"x"}]',
        "[",
        "[" * 100_000,
        '[{"name":"a","cni-args":[]}]',
        '[{"name":"a","bandwidth":1}]',
        '[{"name":"a","portMappings":{}}]',
    ],
)
def test_json_of_another_shape(text: str) -> None:
    with pytest.raises(AnnotationSyntaxError, match=MULTUS_NETWORKS):
        read(text)


@pytest.mark.parametrize(("text", "count"), [("a,b", 2), ("[]", 0)])
def test_a_first_nic_has_one_network(text: str, count: int) -> None:
    with pytest.raises(AnnotationError, match=f"{MULTUS_DEFAULT_NETWORK}: names {count} networks, want one"):
        one(text)
    with pytest.raises(AnnotationError, match=CLUSTER_NETWORK):
        configured(text)


@pytest.mark.parametrize("mac", ["02:00:00:00:00:0a", "02-00-00-00-00-0A", "0200.0000.000a", "02:00:00:00:00:00:00:01"])
def test_macs_as_go_reads_them(mac: str) -> None:
    assert read(json.dumps([{"name": "lan", "mac": mac}]))[0].mac == mac


names = st.from_regex(r"[a-z]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)


@given(st.lists(st.tuples(st.just("") | names, names, st.just("") | names), max_size=4))
def test_both_forms_say_the_same(entries: list[tuple[str, str, str]]) -> None:
    comma = ",".join(f"{ns}/{name}" * bool(ns) + name * (not ns) + f"@{nic}" * bool(nic) for ns, name, nic in entries)
    listed = json.dumps([{"name": name, "namespace": ns, "interface": nic} for ns, name, nic in entries])
    results: list[object] = []
    for text in (comma, listed):
        try:
            results.append(read(text))
        except AnnotationError as error:
            results.append(error.problem)
    assert results[0] == results[1]


@given(
    st.lists(st.tuples(st.just("") | names, names, st.just("") | names | st.from_regex(r"net[1-5]", fullmatch=True))),
    st.lists(st.tuples(names, names), max_size=4),
    st.booleans(),
)
def test_networks_that_are_added_stand_behind_the_pod_s_own(
    own: list[tuple[str, str, str]], more: list[tuple[str, str]], listed: bool
) -> None:
    if listed:
        value = json.dumps([{"name": name, "namespace": ns, "interface": nic, "mac": ""} for ns, name, nic in own])
    else:
        value = ",".join(f"{ns}/{name}@{nic}" for ns, name, nic in own)
    notes = {MULTUS_NETWORKS: value}
    try:
        before = read(value)
    except AnnotationError:
        with pytest.raises(AnnotationError):
            joined(notes, more, namespace="ns")
        return
    whole = joined(notes, more, namespace="ns")
    after = read(whole)
    assert after[: len(before)] == before
    there = {(network.namespace, network.name) for network in before}
    wanted = [path for path in dict.fromkeys(more) if path not in there]
    assert [(network.namespace, network.name) for network in after[len(before) :]] == wanted
    assert joined({MULTUS_NETWORKS: whole}, more, namespace="ns") == whole
    if not wanted:
        assert whole == value


KEYS = [
    "name", "namespace", "interface", "ips", "mac", "default-route", "cni-args", "bandwidth", "egressRate",
    "portMappings", "hostPort", "containerPort", "deviceID", "infiniband-guid",
]  # fmt: skip
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
).map(json.dumps)


@given(value=st.text() | json_like | st.text("a/@,.-[]{}\"' :1", max_size=20))
def test_whatever_is_written_is_read_or_refused_by_key_and_value(value: str) -> None:
    for key, parse in ((MULTUS_NETWORKS, read), (MULTUS_DEFAULT_NETWORK, one), (CLUSTER_NETWORK, configured)):
        refused: AnnotationError | None = None
        try:
            parse(value)
        except AnnotationError as error:
            refused = error
        if refused is not None:
            assert (refused.key, refused.value) == (key, value)
            assert key in str(refused) and repr(value) in str(refused)
