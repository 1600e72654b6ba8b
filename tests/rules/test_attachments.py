"""What a SpiderMultusConfig becomes: the text byte for byte, and that our own parsers take it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from admission.multusconfig import MultusConfigRules, problems
from admission.review import Review
from api.annotations import CNI_CONFIG_NAME, MULTUS_CNI_VERSION, MULTUS_CR_NAME, NETWORK_RESOURCE
from api.attachments import CNI_VERSIONS, attachment, attachment_name, injected_resource, provided_master
from api.meta import ObjectMeta
from api.multusconfig import MultusConfigSpec, SpiderMultusConfig
from api.wire import Coordination
from cni.config import decode_config
from cni.conflist import Asked, for_plugin, read_conflist
from cni.coordination.settings import settle
from cni.parents import parent_plan
from cni.plan import link_plan
from cni.protocol import Invocation, Verb

POOLS = {"ippools": {"ipv4": ["p4"], "ipv6": ["p6"]}}
IPAM = '"ipam":{"type":"spiderpool","default_ipv4_ippool":["p4"],"default_ipv6_ippool":["p6"]}'
COORD = '{"txQueueLen":0,"tunePodRoutes":true,"mode":"auto","type":"coordinator"}'
BOND = {"name": "bond0", "mode": 1, "options": "miimon=100;primary=eth1"}
BONDED = '"bond":{"name":"bond0","mode":1,"options":"miimon=100;primary=eth1"}'
BARE_IPAM = '"ipam":{"type":"spiderpool"}'


def config(spec: dict[str, Any], **notes: str) -> SpiderMultusConfig:
    keys = {"cr_name": MULTUS_CR_NAME, "cni_version": MULTUS_CNI_VERSION, "config_name": CNI_CONFIG_NAME}
    meta = ObjectMeta(
        name="N", namespace="ns", uid="u1", annotations={keys.get(key, key): value for key, value in notes.items()}
    )
    return SpiderMultusConfig(metadata=meta, spec=msgspec.convert(spec, MultusConfigSpec))


def completed(item: SpiderMultusConfig) -> SpiderMultusConfig:
    return MultusConfigRules().complete(Review("CREATE", item))


def on(kind: str, **block: Any) -> dict[str, Any]:
    field = kind.replace("-", "")
    return {"cniType": kind, field: block}


GOLDEN: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "macvlan",
        on("macvlan", master=["eth0"], **POOLS),
        ['{"type":"macvlan","master":"eth0","mode":"bridge","mtu":0,' + IPAM + "}", COORD],
    ),
    (
        "macvlan with a VLAN",
        on("macvlan", master=["eth0"], vlanID=100, mtu=1400),
        [
            '{"vlanID":100,"type":"ifacer","interfaces":["eth0"]}',
            '{"type":"macvlan","master":"eth0.100","mode":"bridge","mtu":1400,' + BARE_IPAM + "}",
            COORD,
        ],
    ),
    (
        "macvlan on a bond",
        on("macvlan", master=["eth0", "eth1"], bond=BOND, **POOLS),
        [
            '{"type":"ifacer","interfaces":["eth0","eth1"],' + BONDED + "}",
            '{"type":"macvlan","master":"bond0","mode":"bridge","mtu":0,' + IPAM + "}",
            COORD,
        ],
    ),
    (
        "macvlan with a VLAN on a bond without options",
        on("macvlan", master=["eth0", "eth1"], vlanID=100, bond={"name": "bond0", "mode": 0}, **POOLS),
        [
            '{"vlanID":100,"type":"ifacer","interfaces":["eth0","eth1"],"bond":{"name":"bond0","mode":0}}',
            '{"type":"macvlan","master":"bond0.100","mode":"bridge","mtu":0,' + IPAM + "}",
            COORD,
        ],
    ),
    (
        "ipvlan",
        on("ipvlan", master=["eth0"], mtu=1300, **POOLS),
        ['{"type":"ipvlan","master":"eth0","mtu":1300,' + IPAM + "}", COORD],
    ),
    (
        "ipvlan with a VLAN",
        on("ipvlan", master=["eth0"], vlanID=7, **POOLS),
        [
            '{"vlanID":7,"type":"ifacer","interfaces":["eth0"]}',
            '{"type":"ipvlan","master":"eth0.7","mtu":0,' + IPAM + "}",
            COORD,
        ],
    ),
    (
        "vlan",
        on("vlan", master=["eth0"], vlanID=100, **POOLS),
        ['{"type":"vlan","master":"eth0","vlanMode":"manual","vlanId":100,"mtu":0,' + IPAM + "}", COORD],
    ),
    (
        "vlan, automatic, on a bond",
        on("vlan", master=["eth0", "eth1"], vlanMode="auto", bond=BOND, **POOLS),
        [
            '{"type":"ifacer","interfaces":["eth0","eth1"],' + BONDED + "}",
            '{"type":"vlan","master":"bond0","vlanMode":"auto","mtu":0,' + IPAM + "}",
            COORD,
        ],
    ),
    (
        "sriov",
        on("sriov", resourceName="example.com/vf", ippools={**POOLS["ippools"], "matchMasterSubnet": True}),
        [
            '{"vlan":0,"min_tx_rate":0,"max_tx_rate":0,"type":"sriov",' + IPAM[:-1] + ',"match_master_subnet":true}}',
            COORD,
        ],
    ),
    (
        "sriov with everything",
        {
            **on(
                "sriov",
                resourceName="example.com/vf",
                vlanID=9,
                minTxRateMbps=10,
                maxTxRateMbps=20,
                mtu=8000,
                rdmaIsolation=True,
            ),
            "chainCNIJsonData": ['{"type":"tuning", "promisc": true}'],
        },
        [
            '{"vlan":9,"min_tx_rate":10,"max_tx_rate":20,"type":"sriov",' + BARE_IPAM + "}",
            '{"type":"rdma"}',
            '{"promisc":true,"type":"tuning"}',
            COORD,
            '{"type":"tuning","mtu":8000}',
        ],
    ),
    (
        "sriov with our extensions",
        on(
            "sriov",
            resourceName="example.com/vf",
            vlanID=9,
            spoofchk="off",
            trust="on",
            linkState="auto",
            vlanQoS=3,
            vlanProto="802.1ad",
        ),
        [
            '{"vlan":9,"min_tx_rate":0,"max_tx_rate":0,"type":"sriov","spoofchk":"off","trust":"on",'
            '"link_state":"auto","vlanQoS":3,"vlanProto":"802.1ad",' + BARE_IPAM + "}",
            COORD,
        ],
    ),
    (
        "ib-sriov",
        on("ib-sriov", resourceName="example.com/ib", **POOLS),
        [
            '{"type":"ib-sriov","pkey":"","link_state":"enable","rdmaIsolation":true,"ibKubernetesEnabled":false,'
            + IPAM
            + "}",
            COORD,
        ],
    ),
    ("ipoib", on("ipoib", master="ibs5f0", **POOLS), ['{"type":"ipoib","master":"ibs5f0",' + IPAM + "}", COORD]),
    (
        "ovs",
        on("ovs", bridge="br1", **POOLS),
        ['{"vlan":0,"type":"ovs","bridge":"br1",' + IPAM + "}", COORD],
    ),
    (
        "ovs with everything",
        on("ovs", bridge="br1", vlan=5, deviceID="0000:03:02.1", trunk=[{"minID": 1, "maxID": 9}, {"id": 12}]),
        [
            '{"vlan":5,"type":"ovs","bridge":"br1","deviceID":"0000:03:02.1",'
            + BARE_IPAM
            + ',"trunk":[{"minID":1,"maxID":9},{"id":12}]}',
            COORD,
        ],
    ),
    (
        "neither coordinator nor IPAM",
        {**on("macvlan", master=["eth0"]), "enableCoordinator": False, "disableIPAM": True},
        ['{"type":"macvlan","master":"eth0","mode":"bridge","mtu":0}'],
    ),
    (
        "a coordinator with everything",
        {
            **on("macvlan", master=["eth0"], **POOLS),
            "coordinator": {
                "mode": "overlay",
                "podCIDRType": "none",
                "hijackCIDR": ["10.0.0.0/8"],
                "policyRoutes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.1"}],
                "podMACPrefix": "0a:1b",
                "tunePodRoutes": False,
                "podDefaultRouteNIC": "net1",
                "hostRuleTable": 600,
                "podRPFilter": 0,
                "txQueueLen": 7,
                "vethLinkAddress": "169.254.100.1",
                "vethMTU": 1400,
            },
        },
        [
            '{"type":"macvlan","master":"eth0","mode":"bridge","mtu":0,' + IPAM + "}",
            (
                '{"txQueueLen":7,"vethLinkAddress":"169.254.100.1","vethMTU":1400,"tunePodRoutes":false,'
                '"podMACPrefix":"0a:1b","mode":"overlay","type":"coordinator","podDefaultRouteNic":"net1",'
                '"podRPFilter":0,"hijackCIDR":["10.0.0.0/8"],"policyRoutes":[{"dst":"10.1.0.0/16","gw":"10.6.0.1"}],'
                '"hostRuleTable":600}'
            ),
        ],
    ),
    (
        "a filter without a podCIDRType, which the original drops",
        {**on("macvlan", master=["eth0"], **POOLS), "coordinator": {"podRPFilter": 2}},
        [
            '{"type":"macvlan","master":"eth0","mode":"bridge","mtu":0,' + IPAM + "}",
            '{"txQueueLen":0,"tunePodRoutes":true,"mode":"auto","type":"coordinator","podRPFilter":2}',
        ],
    ),
]


@pytest.mark.parametrize(("spec", "plugins"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN])
def test_the_text(spec: dict[str, Any], plugins: list[str]) -> None:
    text = '{"cniVersion":"0.3.1","name":"N","plugins":[' + ",".join(plugins) + "]}"
    item = config(spec)
    assert problems(item) == []
    assert attachment(item).spec.config == text
    assert attachment(completed(item)).spec.config == text


def test_custom_is_taken_as_it_is() -> None:
    text = '{ "type": "macvlan",  "master":"eth0" }'
    spec = {"cniType": "custom", "customCNI": text, "chainCNIJsonData": ['{"type":"tuning"}']}
    assert attachment(config(spec)).spec.config == text
    assert attachment(config({})).spec.config == ""
    assert attachment(completed(config({}))).spec.config == ""


def test_names_and_notes() -> None:
    kubectl = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    item = config(
        on("macvlan", master=["eth0"]), cr_name="other", cni_version="1.0.0", config_name="net", **kubectl, mine="x"
    )
    made = attachment(item)
    assert (made.metadata.name, made.metadata.namespace) == ("other", "ns")
    assert json.loads(made.spec.config)["name"] == "net"
    assert json.loads(made.spec.config)["cniVersion"] == "1.0.0"
    assert made.metadata.annotations == {
        MULTUS_CR_NAME: "other",
        MULTUS_CNI_VERSION: "1.0.0",
        CNI_CONFIG_NAME: "net",
        "mine": "x",
    }
    (owner,) = made.metadata.owner_references
    assert (owner.kind, owner.name, owner.uid, owner.controller) == ("SpiderMultusConfig", "N", "u1", True)
    assert attachment_name(config({})) == "N"


@pytest.mark.parametrize(
    ("spec", "resource"),
    [
        (on("sriov", resourceName="a/b"), "a/b"),
        (on("ib-sriov", resourceName="a/c"), "a/c"),
        (on("ovs", bridge="br1", deviceID="0000:03:02.1"), "ovs-cni.network.kubevirt.io/br1"),
        (on("ovs", bridge="br1"), None),
        (on("macvlan", master=["eth0"], rdmaResourceName="a/d"), None),
    ],
)
def test_the_resource_of_a_definition(spec: dict[str, Any], resource: str | None) -> None:
    assert attachment(config(spec)).metadata.annotations.get(NETWORK_RESOURCE) == resource


def test_the_resource_that_pods_ask_for() -> None:
    assert injected_resource(config(on("macvlan", master=["eth0"], rdmaResourceName="a/d")).spec) == "a/d"
    assert injected_resource(config(on("sriov", resourceName="a/b")).spec) == "a/b"
    assert injected_resource(config(on("ipoib", master="ib0")).spec) == ""
    assert injected_resource(config({}).spec) == ""


# ---------------------------------------------------------------- any valid one is one that nodes can read

NAMES = st.sampled_from(["eth0", "eth1", "ens1f0np0", "bond0", "a.b", "x" * 15, "x" * 12, "", "eth0/1"])
MASTERS = st.lists(NAMES, max_size=3)
OPTIONS = st.sampled_from(
    [
        None,
        "",
        "miimon=100",
        "miimon=100;primary=eth1",
        "nonsense",
        "lacp_rate=fast;up_delay=0",
        "arp_interval=1;miimon=1",
    ]
)
BONDS = st.none() | st.fixed_dictionaries({"name": NAMES, "mode": st.integers(0, 6), "options": OPTIONS})
VLANS = st.none() | st.integers(0, 4094)
POOL_BLOCKS = st.none() | st.fixed_dictionaries(
    {
        "ipv4": st.lists(st.sampled_from(["a", "b*", ""]), max_size=2),
        "ipv6": st.lists(st.sampled_from(["c", "d"]), max_size=2),
        "matchMasterSubnet": st.booleans(),
    }
)
ON_MASTER: dict[str, st.SearchStrategy[Any]] = {
    "master": MASTERS,
    "mtu": st.none() | st.integers(0, 70000),
    "vlanID": VLANS,
    "bond": BONDS,
    "ippools": POOL_BLOCKS,
}
RESOURCES = st.sampled_from(["example.com/nic", "nic", "", "a b"])
SWITCHES = st.sampled_from([None, "on", "off"])
LINKS = st.sampled_from([None, "auto", "enable", "disable"])
BLOCKS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "macvlan": ON_MASTER,
    "ipvlan": ON_MASTER,
    "vlan": {**ON_MASTER, "vlanMode": st.sampled_from([None, "manual", "auto"])},
    "sriov": {
        "resourceName": RESOURCES,
        "vlanID": VLANS,
        "mtu": st.none() | st.integers(0, 70000),
        "minTxRateMbps": st.none() | st.integers(0, 1 << 33),
        "maxTxRateMbps": st.none() | st.integers(0, 1 << 33),
        "rdmaIsolation": st.booleans(),
        "spoofchk": SWITCHES,
        "trust": SWITCHES,
        "linkState": LINKS,
        "vlanQoS": st.none() | st.integers(0, 7),
        "vlanProto": st.sampled_from([None, "802.1q", "802.1ad"]),
        "ippools": POOL_BLOCKS,
    },
    "ib-sriov": {
        "resourceName": RESOURCES,
        "pkey": st.sampled_from([None, "", "0x8001", "x"]),
        "linkState": LINKS,
        "rdmaIsolation": st.none() | st.booleans(),
        "ippools": POOL_BLOCKS,
    },
    "ipoib": {"master": NAMES, "ippools": POOL_BLOCKS},
    "ovs": {
        "bridge": NAMES,
        "vlan": VLANS,
        "trunk": st.lists(
            st.fixed_dictionaries(
                {}, optional={"minID": st.integers(0, 20), "maxID": st.integers(0, 20), "id": st.integers(0, 20)}
            ),
            max_size=2,
        ),
        "deviceID": st.sampled_from([None, "", "0000:03:02.1", "x"]),
        "ippools": POOL_BLOCKS,
    },
}
COORDINATORS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["auto", "underlay", "overlay", "disabled"]),
        "podCIDRType": st.sampled_from(["auto", "none"]),
        "hijackCIDR": st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.1", "x"]), max_size=2),
        "podMACPrefix": st.sampled_from(["", "0a:1b", "01:1b"]),
        "podRPFilter": st.integers(-1, 3),
        "hostRuleTable": st.sampled_from([500, 600, 254, None]),
        "txQueueLen": st.integers(-1, 9),
        "vethMTU": st.integers(60, 1500),
        "vethLinkAddress": st.sampled_from(["", "169.254.1.1", "fe80::1"]),
        "podDefaultRouteNIC": st.sampled_from(["", "net1", "a b"]),
    },
)
CHAINED = st.lists(
    st.sampled_from(
        [
            '{"type":"tuning","mtu":1}',
            '{"type":"macvlan","mtu":"x"}',
            "{}",
            "x",
            '{"type":"cilium-cni"}',
            '{"type":"coordinator"}',
        ]
    ),
    max_size=2,
)
CUSTOM = st.sampled_from(
    [
        "",
        "{}",
        "x",
        "[]",
        '{"type":"macvlan"}',
        '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ovs"}]}',
        '{"plugins":[]}',
    ]
)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(BLOCKS)))
    spec: dict[str, Any] = {"cniType": kind, kind.replace("-", ""): draw(st.fixed_dictionaries(BLOCKS[kind]))}
    if draw(st.integers(0, 9)) == 0:
        return {"cniType": "custom", "customCNI": draw(CUSTOM)}
    return spec | {
        "coordinator": draw(COORDINATORS),
        "chainCNIJsonData": draw(CHAINED),
        "enableCoordinator": draw(st.sampled_from([True, True, False, None])),
        "disableIPAM": draw(st.booleans()),
    }


def usable(item: SpiderMultusConfig) -> None:
    """What an agent does with a definition before it touches the kernel. Raises `CniError`."""
    made = attachment(item)
    if not made.spec.config:
        return
    conflist = read_conflist(made.spec.config, where="definition", name=made.metadata.name)
    for at in range(len(conflist.plugins)):
        tree = for_plugin(conflist, at, Asked(), version="1.0.0", ours=True)
        kind = tree["type"]
        if kind not in {"macvlan", "ipvlan", "vlan", "sriov", "ifacer", "coordinator"}:
            continue
        conf = decode_config(tree)
        if kind == "ifacer":
            parent_plan(conf)
        elif kind == "coordinator" and conf.coordinator is not None:
            settle(conf.coordinator, Coordination(), prefix="")
        elif conf.vlan_mode != "auto":
            link_plan(Invocation(verb=Verb.ADD, type=kind, conf=conf))


@given(specs(), st.sampled_from([None, *CNI_VERSIONS]))
def test_every_valid_one_is_one_that_nodes_can_use(spec: dict[str, Any], version: str | None) -> None:
    item = config(spec, **({"cni_version": version} if version else {}))
    done = completed(item)
    assert completed(done) == done
    if item.spec.cni_type != "custom":
        assert {error.field for error in problems(done)} <= {error.field for error in problems(item)}
    assume(not problems(item))
    usable(item)
    usable(done)
    if "10.0.0.1" not in str(spec.get("coordinator")):  # which has another form, when it is completed
        assert attachment(item) == attachment(done)


def test_an_invalid_one_would_not_be_usable() -> None:
    """The control: what the rules keep away from `usable` it does not take."""
    bad = config(on("macvlan", master=["eth0", "eth1"], vlanID=3, bond={"name": "eth0", "mode": 1}))
    assert problems(bad)
    with pytest.raises(Exception, match=r"bond\.name"):
        usable(bad)


@pytest.mark.parametrize(
    ("block", "master"),
    [
        ({"master": ["eth1"], "vlanMode": "auto"}, "eth1"),
        ({"master": ["eth1", "eth2"], "vlanMode": "auto", "bond": {"name": "bond0", "mode": 1}}, "bond0"),
        ({"master": ["eth1"], "vlanID": 7}, ""),
        ({"master": [], "vlanMode": "auto"}, ""),
    ],
)
def test_what_nics_of_a_network_provider_are_made_on(block: dict[str, Any], master: str) -> None:
    """Also of one that came past admission: who asks is allocating an address to a pod."""
    assert provided_master(config({"cniType": "vlan", "vlan": block})) == master
