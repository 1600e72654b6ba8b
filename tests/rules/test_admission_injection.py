"""What a pod is given before it is stored, and what is said of one that cannot be stored."""

import base64
import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from admission.exchange import completed, read
from admission.injection import Policy, Wish, attached, concerned, counted, named, policy, wish
from admission.review import Judgement
from api.annotations import (
    MULTUS_CR_NAME,
    MULTUS_DEFAULT_NETWORK,
    MULTUS_NETWORKS,
    NETWORK_RESOURCE_INJECT,
    RDMA_RESOURCE_INJECT,
)
from api.configfile import MasterNicRule, parse
from api.kinds import NEW_POD
from api.meta import ObjectMeta
from api.multusconfig import MultusConfigSpec, SpiderMultusConfig
from api.networks import networks
from api.newpod import MIRROR, NewPod
from tests.rules.test_admission_exchange import applied

NS = "team"
POOLS = {"ippools": {"ipv4": ["p4"]}}
RDMA = {RDMA_RESOURCE_INJECT: "gpu"}
ANYWHERE = Policy(namespace="kube-system")


def config(
    name: str, spec: dict[str, Any], *, namespace: str = "nets", notes: dict[str, str] | None = None
) -> SpiderMultusConfig:
    meta = ObjectMeta(name=name, namespace=namespace, annotations=RDMA | (notes or {}))
    return SpiderMultusConfig(metadata=meta, spec=msgspec.convert(spec, MultusConfigSpec))


def macvlan(name: str, master: str, resource: str = "example.com/shared", **more: Any) -> SpiderMultusConfig:
    block = {"master": [master], "rdmaResourceName": resource, **POOLS}
    return config(name, {"cniType": "macvlan", "macvlan": block}, **more)


def sriov(name: str, resource: str = "example.com/vf", **more: Any) -> SpiderMultusConfig:
    return config(name, {"cniType": "sriov", "sriov": {"resourceName": resource, **POOLS}}, **more)


def pod(notes: dict[str, str] | None = None, **spec: Any) -> NewPod:
    body = {"metadata": {"name": "web", "annotations": notes or {}}, "spec": {"containers": [{}, {}], **spec}}
    return msgspec.convert(body, NewPod)


def given_to(item: NewPod, *configs: SpiderMultusConfig, notes: dict[str, str] | None = None, **more: Any) -> Any:
    """As the webhook asks: what the pod is, and what is wrong."""
    chosen = Policy(namespace="kube-system", **more)
    asks = wish(item, NS, notes or {})
    if asks is None:
        return item, Judgement()
    return attached(item, asks, configs, namespace=NS, chosen=chosen)


def attachments(item: NewPod) -> list[str]:
    return [f"{nic}@{nic.interface}" for nic in networks(item.metadata.annotations, namespace=NS)]


def asked(item: NewPod, container: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    resources = item.spec.containers[container].resources
    return resources.limits, resources.requests


def said(judgement: Judgement) -> list[str]:
    return [str(error) for error in judgement.errors]


# -- networks


def test_a_pod_gets_the_networks_of_its_word_and_their_resources() -> None:
    after, judgement = given_to(
        pod(RDMA), macvlan("m2", "eth2", "example.com/b"), macvlan("m1", "eth1", "example.com/a")
    )
    assert judgement == Judgement()
    assert after.metadata.annotations[MULTUS_NETWORKS] == "nets/m1,nets/m2"
    assert attachments(after) == ["nets/m1@net1", "nets/m2@net2"]
    both = {"example.com/a": "1", "example.com/b": "1"}
    assert (asked(after), asked(after, 1)) == ((both, both), ({}, {}))


def test_they_are_in_order_of_what_they_stand_on() -> None:
    bond = {"master": ["eth8", "eth9"], "bond": {"name": "bond0", "mode": 1}, "rdmaResourceName": "x/y", **POOLS}
    found = [
        sriov("s", "example.com/vf"),
        macvlan("b", "eth1"),
        macvlan("a", "eth1", namespace="other"),
        config("bonded", {"cniType": "ipvlan", "ipvlan": bond}),
        macvlan("z", "eth0"),
    ]
    wanted = ["nets/bonded@net1", "nets/z@net2", "nets/b@net3", "other/a@net4", "nets/s@net5"]
    for order in (found, found[::-1]):
        assert attachments(given_to(pod(RDMA), *order)[0]) == wanted


def test_the_definition_is_named_and_not_what_it_is_made_of() -> None:
    after, _ = given_to(pod(RDMA), macvlan("m1", "eth1", notes={MULTUS_CR_NAME: "renamed"}))
    assert attachments(after) == ["nets/renamed@net1"]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ("storage", ["team/storage@net1", "nets/m1@net2"]),
        (" storage@up0 , nets/m1@gpu0", ["team/storage@up0", "nets/m1@gpu0"]),
        ("storage@net2", ["team/storage@net2", "nets/m1@net3"]),
        ('[{"name":"storage","mac":"02:00:00:00:00:01"}]', ["team/storage@net1", "nets/m1@net2"]),
        ('[{"Name":"m1","namespace":"nets"}]', ["nets/m1@net1"]),
        ("[]", ["nets/m1@net1"]),
        ("", ["nets/m1@net1"]),
    ],
)
def test_what_the_pod_names_itself_stays_in_front(own: str, wanted: list[str]) -> None:
    after, judgement = given_to(pod(RDMA | {MULTUS_NETWORKS: own}), macvlan("m1", "eth1"))
    assert (attachments(after), judgement) == (wanted, Judgement())
    if "mac" in own:
        assert "02:00:00:00:00:01" in after.metadata.annotations[MULTUS_NETWORKS]


# -- who asks


@pytest.mark.parametrize(
    ("own", "namespace", "wanted"),
    [
        ({}, {}, None),
        ({"a": "b"}, {RDMA_RESOURCE_INJECT: "n"}, Wish(RDMA_RESOURCE_INJECT, "n", NS)),
        ({RDMA_RESOURCE_INJECT: "p"}, {RDMA_RESOURCE_INJECT: "n"}, Wish(RDMA_RESOURCE_INJECT, "p")),
        ({NETWORK_RESOURCE_INJECT: "p"}, {RDMA_RESOURCE_INJECT: "n"}, Wish(NETWORK_RESOURCE_INJECT, "p")),
        ({NETWORK_RESOURCE_INJECT: "p", RDMA_RESOURCE_INJECT: "q"}, {}, Wish(RDMA_RESOURCE_INJECT, "q")),
        ({NETWORK_RESOURCE_INJECT: ""}, {RDMA_RESOURCE_INJECT: "n"}, None),
        ({NETWORK_RESOURCE_INJECT: "p", RDMA_RESOURCE_INJECT: ""}, {}, Wish(NETWORK_RESOURCE_INJECT, "p")),
    ],
)
def test_the_pod_asks_or_else_its_namespace(
    own: dict[str, str], namespace: dict[str, str], wanted: Wish | None
) -> None:
    assert wish(pod(own), NS, namespace) == wanted


@pytest.mark.parametrize(
    ("namespace", "notes", "chosen", "expected"),
    [
        ("a", {}, {}, True),
        ("kube-system", {}, {}, False),
        ("kube-system", {}, {"include": ("kube-system",)}, False),
        ("a", {}, {"exclude": ("a",)}, False),
        ("a", {}, {"include": ("b",)}, False),
        ("a", {}, {"include": ("a",)}, True),
        ("a", {}, {"include": ("a",), "exclude": ("a",)}, False),
        ("a", {MIRROR: "1"}, {}, False),
    ],
)
def test_whose_pods_are_looked_at(namespace: str, notes: dict[str, str], chosen: Any, expected: bool) -> None:
    assert concerned(pod(notes), namespace, Policy(namespace="kube-system", **chosen)) is expected


def test_what_has_no_effect_is_said() -> None:
    both = {NETWORK_RESOURCE_INJECT: "x", RDMA_RESOURCE_INJECT: "gpu"}
    _, judgement = given_to(pod(both), macvlan("m1", "eth1"))
    assert judgement.warnings == (
        f"metadata.annotations[{NETWORK_RESOURCE_INJECT}]: without effect beside {RDMA_RESOURCE_INJECT}",
    )
    host = pod(RDMA, hostNetwork=True)
    after, judgement = given_to(host, macvlan("m1", "eth1"))
    assert after is host
    text = "without effect with spec.hostNetwork, the pod has the node's interfaces"
    assert judgement.warnings == (f"metadata.annotations[{RDMA_RESOURCE_INJECT}]: {text}",)
    assert given_to(pod(hostNetwork=True), macvlan("m1", "eth1"), notes=RDMA)[1] == Judgement()


# -- resources


def test_devices_are_needed_by_each_nic_and_shared_ones_once() -> None:
    found = [sriov("s1"), sriov("s2"), macvlan("m1", "eth1"), macvlan("m2", "eth2")]
    after, _ = given_to(pod(RDMA), *found)
    assert asked(after)[0] == {"example.com/vf": "2", "example.com/shared": "1"}
    twice = pod(RDMA | {MULTUS_NETWORKS: "nets/s1,nets/s1"})
    assert asked(given_to(twice, sriov("s1"))[0])[0] == {"example.com/vf": "2"}


@pytest.mark.parametrize("where", ["containers", "initContainers"])
@pytest.mark.parametrize("how", ["limits", "requests"])
def test_what_some_container_asks_for_is_not_asked_for_again(where: str, how: str) -> None:
    spec: dict[str, Any] = {"containers": [{}, {}], "initContainers": [{}]}
    spec[where][-1] = {"resources": {how: {"example.com/vf": "4"}}}
    after, _ = given_to(pod(RDMA, **spec), sriov("s1"), macvlan("m1", "eth1"))
    assert asked(after)[0] == {"example.com/shared": "1"}


def test_a_pod_without_containers_is_left_to_the_api_server() -> None:
    after, judgement = given_to(pod(RDMA, containers=[]), sriov("s1"))
    assert (after.spec.containers, judgement) == ([], Judgement())


PLUGIN = """
iaasNetworkProvider: {serverUrl: "http://cloud"}
agent:
  networkResourcePlugin:
    enabled: true
    resourceAdvertisement:
      subENI: {rules: [{defaultMaxCount: 8}, {resourceName: other.io/eni}]}
      masterNIC: {rules: [{excludeInterfaces: ["eth9"]}]}
"""
AUTO = config("auto", {"cniType": "vlan", "vlan": {"master": ["eth2"], "vlanMode": "auto"}})


def test_agents_that_are_device_plugins_are_asked_for_what_the_networks_stand_on() -> None:
    chosen = policy(parse(PLUGIN), namespace="kube-system", allows=lambda _pod, _network: True)
    bond = {"master": ["eth3", "eth9"], "bond": {"name": "bond0", "mode": 1}}
    nics = [macvlan("m", "eth1"), AUTO, AUTO, config("b", {"cniType": "ipvlan", "ipvlan": bond}), sriov("s")]
    nics.append(config("ib", {"cniType": "ipoib", "ipoib": {"master": "ib0"}}))
    after = counted(pod(), nics, chosen)
    wanted = {f"spidernet.io/{name}-nic": "1" for name in ("eth1", "eth2", "eth3", "ib0")} | {
        "spidernet.io/sub-eni": "2"
    }
    assert asked(after) == (wanted, wanted)
    assert counted(after, nics, chosen) is after


@pytest.mark.parametrize(
    ("change", "master", "eni"),
    [
        (("enabled: true", "enabled: false"), False, False),
        (("http://cloud", ""), True, False),
        (("subENI: {rules: [{defaultMaxCount: 8}, {resourceName: other.io/eni}]}", "subENI: {}"), True, False),
        (('masterNIC: {rules: [{excludeInterfaces: ["eth9"]}]}', "masterNIC: {}"), False, True),
    ],
)
def test_only_what_is_switched_on_counts(change: tuple[str, str], master: bool, eni: bool) -> None:
    assert change[0] in PLUGIN
    chosen = policy(parse(PLUGIN.replace(*change)), namespace="kube-system", allows=lambda _pod, _network: True)
    assert chosen.counts is (master or eni)
    limits, _ = asked(counted(pod(), [AUTO], chosen))
    assert ("spidernet.io/eth2-nic" in limits, "spidernet.io/sub-eni" in limits) == (master, eni)


def test_an_interface_that_no_agent_may_offer_is_not_asked_for() -> None:
    rules = (
        MasterNicRule(include_interfaces=("ens*",)),
        MasterNicRule(include_interfaces=("eth*",), exclude_interfaces=("eth9",)),
    )
    nics = [macvlan(name, name) for name in ("ens1", "eth1", "eth9", "bond0", "br@1")]
    limits, _ = asked(counted(pod(), nics, Policy(master_nics=rules)))
    assert set(limits) == {"spidernet.io/ens1-nic", "spidernet.io/eth1-nic"}


def test_an_interface_that_no_node_advertises_is_not_asked_for_by_a_rule_for_all() -> None:
    nics = [macvlan(name, name) for name in ("eth1", "br-lan", "docker0", "lo")]
    limits, _ = asked(counted(pod(), nics, Policy(master_nics=(MasterNicRule(),))))
    assert set(limits) == {"spidernet.io/eth1-nic"}


def test_a_default_network_without_a_namespace_is_of_the_agents() -> None:
    notes = {MULTUS_DEFAULT_NETWORK: "first", MULTUS_NETWORKS: "second"}
    nics = named(pod(notes), namespace=NS, chosen=ANYWHERE)
    assert [str(nic) for nic in nics] == ["kube-system/first", "team/second"]
    assert named(pod(notes, hostNetwork=True), namespace=NS, chosen=ANYWHERE) == ()
    assert named(pod({MULTUS_NETWORKS: "no good"}), namespace=NS, chosen=ANYWHERE) == (), "its node says what is wrong"


# -- refusals

NOTE = f"metadata.annotations[{RDMA_RESOURCE_INJECT}]"


def test_a_word_that_nobody_answers_to_is_refused() -> None:
    assert said(given_to(pod(RDMA))[1]) == [
        f'{NOTE}: Invalid value: "gpu": no SpiderMultusConfig with the label {RDMA_RESOURCE_INJECT}: none has it'
    ]
    text = f"no SpiderMultusConfig with the label {RDMA_RESOURCE_INJECT}: none has it"
    assert said(given_to(pod(), notes=RDMA)[1]) == [
        f'metadata.namespace: Invalid value: "team": its annotation {RDMA_RESOURCE_INJECT} is "gpu": {text}'
    ]
    gone = structs.replace(macvlan("m", "e"), metadata=ObjectMeta(name="m", namespace="n", deletion_timestamp="now"))
    assert len(said(given_to(pod(RDMA), gone)[1])) == 1
    for value in ("a b", "a,b=c", "x" * 64):
        (error,) = said(given_to(pod({RDMA_RESOURCE_INJECT: value}))[1])
        assert error.startswith(f'{NOTE}: Invalid value: "{value}": it can be no label: 1 to 63')


def test_what_is_said_is_one_line_of_some_length_whatever_came() -> None:
    nasty = "x\n" * 100_000
    for item, notes in (
        (pod({RDMA_RESOURCE_INJECT: nasty, MULTUS_NETWORKS: f"a/{nasty}/b"}), {}),
        (pod(), {RDMA_RESOURCE_INJECT: nasty}),
    ):
        for error in said(given_to(item, macvlan("m", "eth1"), notes=notes)[1]):
            assert "\n" not in error and len(error) < 1000
    name = {"generateName": nasty, "namespace": NS, "annotations": RDMA}
    _, status = reviewed({"metadata": name, "spec": {"containers": [{}]}}, [], {})
    assert "\n" not in status["message"] and len(status["message"]) < 1000


def test_networks_of_namespaces_that_it_may_not_use_are_none() -> None:
    def apart(mine: str, network: str) -> bool:
        return network in {mine, "default"}

    after, _ = given_to(pod(RDMA), macvlan("m", "e", namespace="default"), macvlan("x", "d"), allows=apart)
    assert attachments(after) == ["default/m@net1"]
    (error,) = said(given_to(pod(RDMA), macvlan("m", "e"), macvlan("o", "e", namespace="z"), allows=apart)[1])
    assert error.endswith("only in namespaces whose networks it may not use: nets, z")


def test_all_that_is_wrong_is_said_at_once_and_nothing_changes() -> None:
    bare = config("bare", {"cniType": "macvlan", "macvlan": {"master": ["eth1"]}})
    ovs = config("ovs", {"cniType": "ovs", "ovs": {"bridge": "br1"}})
    asks = pod(RDMA | {MULTUS_NETWORKS: "a/b/c"})
    after, judgement = given_to(asks, bare, ovs)
    assert after is asks
    errors = said(judgement)
    assert [error.partition(": ")[0] for error in errors] == [
        NOTE,
        NOTE,
        NOTE,
        f"metadata.annotations[{MULTUS_NETWORKS}]",
    ]
    assert f"SpiderMultusConfig nets/ovs: {NOTE}: Forbidden: not with cniType ovs" in errors[0]
    assert "SpiderMultusConfig nets/bare: spec.macvlan.rdmaResourceName: Required value" in errors[1]
    assert "SpiderMultusConfig nets/bare: spec.macvlan.ippools: Required value: at least one pool" in errors[2]
    assert '"a/b/c"' in errors[3]


def test_a_label_that_was_written_by_hand_is_judged_as_the_annotation() -> None:
    bare = config("bare", {"cniType": "macvlan", "macvlan": {"master": ["eth1"]}})
    by_hand = structs.replace(bare, metadata=ObjectMeta(name="bare", namespace="nets", labels=RDMA))
    assert said(given_to(pod(RDMA), by_hand)[1]) == said(given_to(pod(RDMA), bare)[1])
    network = pod({NETWORK_RESOURCE_INJECT: "gpu"})
    assert given_to(network, by_hand)[1] == Judgement(), "without a resource no pool has to be named"


# -- properties

words = st.sampled_from(["gpu", "", "a b"])
notes_of = st.dictionaries(st.sampled_from([RDMA_RESOURCE_INJECT, NETWORK_RESOURCE_INJECT, "note"]), words, max_size=2)
interfaces = st.sampled_from(["", "@net1", "@net2", "@net3", "@up0"])
own_networks = st.lists(st.tuples(st.sampled_from(["a", "nets/c0", "nets/c1", "team/b"]), interfaces), max_size=3).map(
    lambda entries: ",".join(name + interface for name, interface in entries)
)
masters = st.sampled_from(["eth0", "eth1", "ens1"])
made = st.lists(st.tuples(masters, st.booleans(), st.sampled_from(["nets", "team"])), max_size=4).map(
    lambda all_: [
        (sriov if device else macvlan)(f"c{number}", *(() if device else (master,)), namespace=where)
        for number, (master, device, where) in enumerate(all_)
    ]
)
containers = st.lists(
    st.fixed_dictionaries(
        {"name": st.just("c"), "image": st.just("none")},
        optional={"resources": st.sampled_from([{}, {"limits": {"example.com/vf": "3"}}, {"requests": {"cpu": "1"}}])},
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def documents(draw: Any) -> dict[str, Any]:
    """Pods as the API server sends them, with much that our Structs do not know."""
    notes = draw(notes_of)
    if draw(st.booleans()):
        notes[MULTUS_NETWORKS] = draw(own_networks)
    meta = draw(st.sampled_from([{"name": "web"}, {"generateName": "web-"}]))
    document = {
        "kind": "Pod",
        "metadata": {**meta, "namespace": NS, "creationTimestamp": None, **({"annotations": notes} if notes else {})},
        "spec": {"containers": draw(containers), "nodeSelector": {"a": "b"}, "volumes": [{"name": "v"}]},
        "status": {},
    }
    read_again: dict[str, Any] = json.loads(json.dumps(document))  # no two parts of it are one
    return read_again


def reviewed(document: dict[str, Any], configs: list[SpiderMultusConfig], notes: dict[str, str]) -> tuple[Any, Any]:
    """As the webhook answers: the document as it is then, and why not."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    name = document["metadata"].get("name", "")
    request = {"uid": "u", "kind": kind, "operation": "CREATE", "name": name, "namespace": NS, "object": document}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    came = read(NEW_POD, json.dumps(body).encode())
    assert came.review is not None
    after, judgement = given_to(came.review.new, *configs, notes=notes)
    if not judgement.errors:
        chosen = Policy(namespace="kube-system", master_nics=(MasterNicRule(include_interfaces=("eth0",)),))
        paths = {(one.metadata.namespace, one.metadata.name): one for one in configs}
        nics = [paths.get((nic.namespace, nic.name)) for nic in named(after, namespace=NS, chosen=chosen)]
        after = counted(after, [one for one in nics if one is not None], chosen)
    response = json.loads(completed(came, after, judgement).body)["response"]
    assert response["allowed"] == (not judgement.errors)
    steps = json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
    return applied(document, steps), response.get("status")


@given(documents(), made, notes_of)
def test_what_comes_out_can_be_read_has_all_and_stays_as_it_is(
    document: dict[str, Any], configs: list[SpiderMultusConfig], notes: dict[str, str]
) -> None:
    before = copy.deepcopy(document)
    after, status = reviewed(document, configs, notes)
    if status is not None:
        assert after == before
        assert status["message"].startswith('Pod "web')
        assert all(cause["field"].startswith("metadata.") for cause in status["details"]["causes"])
        return
    annotations = after["metadata"].get("annotations", {})
    asks = wish(msgspec.convert(before, NewPod), NS, notes)
    if asks is not None:
        own = networks(before["metadata"].get("annotations", {}), namespace=NS)
        nics = networks(annotations, namespace=NS)
        assert nics[: len(own)] == own
        paths = [(nic.namespace, nic.name) for nic in nics]
        assert set(paths) == {(one.namespace, one.name) for one in own} | {
            (one.metadata.namespace, one.metadata.name) for one in configs
        }
        assert len(paths) - len(own) == len(set(paths) - {(one.namespace, one.name) for one in own})
        asked_for = {
            name for each in after["spec"]["containers"] for name in each.get("resources", {}).get("limits", {})
        }
        kinds = {"sriov": "example.com/vf", "macvlan": "example.com/shared"}
        assert {kinds[str(one.spec.cni_type)] for one in configs} <= asked_for
    assert reviewed(after, configs, notes) == (after, None), "once more"
    for each in (after, before):
        del each["metadata"]
        each["spec"]["containers"][0].pop("resources", None)
    assert after == before, "nothing else changes"


@given(documents())
def test_a_pod_that_asks_for_nothing_keeps_every_byte(document: dict[str, Any]) -> None:
    for key in (RDMA_RESOURCE_INJECT, NETWORK_RESOURCE_INJECT, MULTUS_NETWORKS):
        document["metadata"].get("annotations", {}).pop(key, None)
    assert reviewed(document, [macvlan("m", "eth0")], {}) == (document, None)
