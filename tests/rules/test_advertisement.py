"""What a node advertises, against plain rules over every interface; which names are taken, and where sockets are."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.devices.advertisement import Interface, Offer, advertised, socket_name
from api import networkresources
from api.configfile import (
    DevicePluginAffinity,
    MasterNic,
    MasterNicRule,
    NetworkResourcePlugin,
    NodeSelector,
    NodeSelectorRequirement,
    ResourceAdvertisement,
    SettingsError,
    SubEni,
    SubEniRule,
    parse,
)
from api.networkresources import is_candidate

NAMES = ("eth0", "eth1", "ens10", "bond0", "br-lan", "br0", "veth1", "lo", "tap0", "cni0", "docker0", "dummy0")
GLOBS = ("eth*", "eth0", "ens[0-9]*", "bond?", "*", "br*", "dummy0", "lo")
LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"))
requirements = st.builds(
    lambda key, operator, values: NodeSelectorRequirement(
        key=key, operator=operator, values=values if operator in {"In", "NotIn"} else ()
    ),
    st.sampled_from("ab"),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(st.sampled_from("xy"), min_size=1, max_size=2).map(tuple),
)
selectors = st.builds(
    NodeSelector, match_labels=LABELS, match_expressions=st.lists(requirements, max_size=2).map(tuple)
) | st.just(NodeSelector())
globs = st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple)
nic_rules = st.builds(
    MasterNicRule,
    node_selector=selectors,
    default_max_count=st.integers(0, 5),
    include_interfaces=globs,
    exclude_interfaces=globs,
)
eni_rules = st.builds(
    SubEniRule,
    resource_name=st.sampled_from(["spidernet.io/sub-eni", "example.org/pool"]),
    default_max_count=st.integers(0, 5),
    node_selector=selectors,
)
plugins = st.builds(
    lambda affinity, nics, enis: NetworkResourcePlugin(
        device_plugin_affinity=DevicePluginAffinity(node_selector=affinity),
        resource_advertisement=ResourceAdvertisement(
            sub_eni=SubEni(rules=tuple(enis)), master_nic=MasterNic(rules=tuple(nics))
        ),
    ),
    selectors,
    st.lists(nic_rules, max_size=3),
    st.lists(eni_rules, max_size=3),
)
interfaces = st.lists(
    st.builds(Interface, name=st.sampled_from(NAMES), physical=st.booleans()), unique_by=lambda it: it.name
)


def selects(selector: NodeSelector, labels: dict[str, str]) -> bool:
    for key, value in selector.match_labels.items():
        if labels.get(key) != value:
            return False
    for want in selector.match_expressions:
        has = want.key in labels
        fits = {
            "In": has and labels[want.key] in want.values,
            "NotIn": not has or labels[want.key] not in want.values,
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not fits[want.operator]:
            return False
    return True


def naive(
    plugin: NetworkResourcePlugin, *, provider: bool, labels: dict[str, str], found: list[Interface]
) -> dict[str, int]:
    wanted: dict[str, int] = {}
    if not selects(plugin.device_plugin_affinity.node_selector, labels):
        return wanted
    for nic in found:
        own = ("cni", "flannel", "veth", "docker", "br-", "virbr", "tun", "tap")
        if nic.name == "lo" or any(nic.name.startswith(prefix) for prefix in own):
            continue
        for rule in plugin.resource_advertisement.master_nic.rules:
            named = any(fnmatchcase(nic.name, glob) for glob in rule.include_interfaces)
            excluded = any(fnmatchcase(nic.name, glob) for glob in rule.exclude_interfaces)
            taken = named or (nic.physical and not rule.include_interfaces)
            if selects(rule.node_selector, labels) and taken and not excluded:
                key = f"spidernet.io/{nic.name}-nic"
                wanted[key] = max(wanted.get(key, 0), rule.default_max_count)
    if provider:
        for eni in reversed(plugin.resource_advertisement.sub_eni.rules):
            if selects(eni.node_selector, labels):
                wanted[eni.resource_name] = eni.default_max_count
    return wanted


@given(plugins, st.booleans(), LABELS, interfaces)
def test_what_is_advertised(
    plugin: NetworkResourcePlugin, provider: bool, labels: dict[str, str], found: list[Interface]
) -> None:
    got = advertised(plugin, provider=provider, labels=labels, interfaces=found)
    expected = naive(plugin, provider=provider, labels=labels, found=found)
    assert {name: offer.count for name, offer in got.offers.items()} == expected
    assert got.problems == ()
    for name, offer in got.offers.items():
        ids = offer.ids()
        assert len(set(ids)) == offer.count
        assert all(device == f"{name.partition('/')[2]}-{number}" for number, device in enumerate(ids))


def nic_plugin(*rules: MasterNicRule) -> NetworkResourcePlugin:
    return NetworkResourcePlugin(resource_advertisement=ResourceAdvertisement(master_nic=MasterNic(rules=rules)))


def test_a_virtual_interface_is_let_in_by_the_rule_that_names_it_and_by_no_other() -> None:
    """In the original one rule with includeInterfaces lets every virtual interface into every rule."""
    found = [Interface("bond0", physical=False), Interface("br0", physical=False), Interface("eth0", physical=True)]
    plugin = nic_plugin(MasterNicRule(include_interfaces=("bond0",), default_max_count=1), MasterNicRule())
    got = advertised(plugin, provider=False, labels={}, interfaces=found)
    assert {name: offer.count for name, offer in got.offers.items()} == {
        "spidernet.io/bond0-nic": 1,
        "spidernet.io/eth0-nic": 10000,
    }


@pytest.mark.parametrize(("name", "word"), [("lan@2", "lan@2-nic"), ("_x", "_x-nic"), ("wl n", "wl n-nic")])
def test_an_interface_that_cannot_be_a_resource_is_named_and_the_others_are_advertised(name: str, word: str) -> None:
    found = [Interface(name, physical=True), Interface("eth0.100", physical=True)]
    got = advertised(nic_plugin(MasterNicRule()), provider=False, labels={}, interfaces=found)
    assert list(got.offers) == ["spidernet.io/eth0.100-nic"]
    (problem,) = got.problems
    assert problem.startswith(f"interface {name!r} is not advertised: 'spidernet.io/{word}': '{word}' is no name")


@given(st.integers(0, 200), st.text(alphabet="ab-0129٣", max_size=8), st.integers(0, 300))
@example(3, "a-01", 0)
@example(3, "a--1", 0)
def test_which_devices_there_are(count: int, text: str, number: int) -> None:
    offer = Offer(stem="a", count=count)
    assert offer.has(text) is (text in offer.ids())
    assert offer.has(f"a-{number}") is (number < count)
    assert not Offer(stem="b", count=count).has(f"a-{number}")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("spidernet.io/eth0-nic", ""),
        ("example.org/A_b.c", ""),
        ("a/b", ""),
        (f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 52}/x", ""),
        ("sub-eni", "expected <domain>/<name>"),
        ("/x", "is no domain"),
        ("UPPER/x", "is no domain"),
        ("a..b/x", "is no domain"),
        (f"{'a' * 245}/x", "is no domain of at most 244"),
        ("a/", "is no name"),
        ("a/b/c", "is no name"),
        ("a/-b", "is no name"),
        (f"a/{'b' * 64}", "is no name of at most 63"),
        ("kubernetes.io/x", "Kubernetes' own"),
        ("my.kubernetes.io/x", "Kubernetes' own"),
        ("requests.a/x", "which quotas begin with"),
        ("spidernet.io/b\n", "is no name"),
    ],
)
def test_names_of_resources(name: str, word: str) -> None:
    problem = networkresources.problem(name)
    assert word in problem and bool(problem) is bool(word)


@given(
    st.lists(
        st.from_regex(r"(spidernet\.io|[a-c](\.[a-c]){0,2})/[a-c]([._-]?[a-c]){0,30}", fullmatch=True), unique=True
    ),
    st.integers(32, 80),
)
def test_no_two_resources_share_a_socket_and_every_name_fits(names: list[str], limit: int) -> None:
    made = [socket_name(name, limit=limit) for name in names]
    assert len(set(made)) == len(names)
    assert all(len(one) <= limit and "/" not in one and one.endswith(".sock") for one in made)


def test_the_documented_names_of_sockets() -> None:
    assert socket_name("spidernet.io/sub-eni", limit=60) == "spiderpool-spidernet-io-sub-eni.sock"
    assert socket_name("spidernet.io/eth0-nic", limit=60) == "spiderpool-spidernet-io-eth0-nic.sock"
    vlan, twin = (socket_name(f"spidernet.io/{name}-nic", limit=60) for name in ("eth0.100", "eth0_100"))
    assert vlan.startswith("spiderpool-spidernet-io-eth0-100-nic-") and vlan != twin


@pytest.mark.parametrize("name", ["eth0", "bond0", "br0", "b-r", "ens1f0", "lo0"])
def test_candidates(name: str) -> None:
    assert is_candidate(name)
    assert not is_candidate("lo") and not is_candidate(f"veth{name}") and not is_candidate(f"br-{name}")


def plugin_file(**more: Any) -> str:
    import json

    return json.dumps({"agent": {"networkResourcePlugin": more}})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kubeletRootDir": "var"}, "kubeletRootDir: 'var': expected an absolute path"),
        ({"kubeletRootDir": f"/{'x' * 59}"}, "expected an absolute path of at most 59 bytes"),
        (
            {"resourceAdvertisement": {"subENI": {"rules": [{}, {"resourceName": "eni"}]}}},
            "resourceAdvertisement.subENI.rules[1].resourceName: 'eni': expected <domain>/<name>",
        ),
        (
            {"resourceAdvertisement": {"subENI": {"rules": [{"resourceName": "spidernet.io/eth0-nic"}]}}},
            "'spidernet.io/eth0-nic': names of this form are those of master NICs",
        ),
        (
            {"resourceAdvertisement": {"masterNIC": {"rules": [{"defaultMaxCount": 100_001}]}}},
            "masterNIC.rules[0].defaultMaxCount: 100001: expected int <= 100000",
        ),
        (
            {"devicePluginAffinity": {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}},
            "devicePluginAffinity.nodeSelector.matchExpressions[0]",
        ),
        (
            {"devicePluginAffinity": {"nodeSelector": {"matchlabels": {"a": "b"}}}},
            "unknown key agent.networkResourcePlugin.devicePluginAffinity.nodeSelector.matchlabels",
        ),
        (
            {
                "resourceAdvertisement": {
                    "masterNIC": {
                        "rules": [
                            {
                                "nodeSelector": {
                                    "matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]
                                }
                            }
                        ]
                    }
                }
            },
            "operator Exists takes no values",
        ),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_with_key_and_value(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse(plugin_file(**more))
    assert words in str(refused.value) and "agent.networkResourcePlugin." in str(refused.value)
