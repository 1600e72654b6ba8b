"""What may be written of a SpiderMultusConfig, and what is said of the rest. Ids are those of area spidermultus."""

from typing import Any

import msgspec
import pytest
from msgspec import structs

from admission.multusconfig import MultusConfigRules, Others
from admission.review import Review
from api.annotations import (
    CNI_CONFIG_NAME,
    MULTUS_CNI_VERSION,
    MULTUS_CR_NAME,
    NETWORK_RESOURCE_INJECT,
    RDMA_RESOURCE_INJECT,
)
from api.attachments import attachment
from api.coordinator import CoordinatorSpec
from api.meta import ObjectMeta
from api.multusconfig import MultusConfigSpec, SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition

MACVLAN = {"master": ["eth0"]}
POOLS = {"ippools": {"ipv4": ["p"]}}
LONG = "x" * 254


def config(spec: dict[str, Any], notes: dict[str, str] | None = None, *, name: str = "lan") -> SpiderMultusConfig:
    meta = ObjectMeta(name=name, namespace="ns", uid=f"uid-{name}", annotations=notes or {})
    return SpiderMultusConfig(metadata=meta, spec=msgspec.convert(spec, MultusConfigSpec))


def said(item: SpiderMultusConfig, old: SpiderMultusConfig | None = None, others: Others | None = None) -> list[str]:
    """As the webhook asks: completed, then judged."""
    rules = MultusConfigRules(others) if others is not None else MultusConfigRules()
    operation = "CREATE" if old is None else "UPDATE"
    done = rules.complete(Review(operation, item, old))  # type: ignore[arg-type]
    return [str(error) for error in rules.judge(Review(operation, done, old)).errors]  # type: ignore[arg-type]


def macvlan(**more: Any) -> dict[str, Any]:
    return {"cniType": "macvlan", "macvlan": {**MACVLAN, **more}}


REFUSED: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("M00005", {"cniType": "custom", "customCNI": "{ invalid }"}, {},
     'spec.customCNI: Invalid value: "{ invalid }": it is not JSON: '),
    ("M00005 no plugin", {"customCNI": '{"cniVersion":"0.3.1"}'}, {},
     'spec.customCNI: Invalid value: "{\\"cniVersion\\":\\"0.3.1\\"}": plugins: '),
    ("M00011", macvlan(), {MULTUS_CR_NAME: "Not.A.Name"},
     'metadata.annotations[multus.spidernet.io/cr-name]: Invalid value: "Not.A.Name": expected lower case letters'),
    ("M00020 long", macvlan(), {MULTUS_CR_NAME: LONG},
     f'metadata.annotations[multus.spidernet.io/cr-name]: Invalid value: "{"x" * 199}...: it has 254 characters, 253'),
    ("M00020 empty", macvlan(), {MULTUS_CR_NAME: ""},
     'metadata.annotations[multus.spidernet.io/cr-name]: Invalid value: "": it is empty'),
    ("M00025", macvlan(), {MULTUS_CR_NAME: "a_b"},
     'metadata.annotations[multus.spidernet.io/cr-name]: Invalid value: "a_b": expected lower case letters'),
    ("M00013", macvlan(), {MULTUS_CNI_VERSION: "0.9.9"},
     ('metadata.annotations[multus.spidernet.io/cni-version]: Unsupported value: "0.9.9": '
     'supported values: "0.3.0", "0.3.1", "0.4.0", "1.0.0"')),
    ("network name", macvlan(), {CNI_CONFIG_NAME: "-x"},
     'metadata.annotations[cni.spidernet.io/cniconfig-name]: Invalid value: "-x": expected the name of a CNI network'),
    ("M00015 missing", {"cniType": "macvlan"}, {}, "spec.macvlan: Required value: cniType is macvlan"),
    ("M00015 another", {**macvlan(), "ipvlan": MACVLAN}, {}, "spec.ipvlan: Forbidden: cniType is macvlan"),
    ("M00015 custom", {**macvlan(), "customCNI": '{"type":"x"}'}, {}, "spec.customCNI: Forbidden: cniType is macvlan"),
    ("M00015 default", {"macvlan": MACVLAN}, {}, "spec.macvlan: Forbidden: cniType is custom"),
    ("M00023", {**macvlan(), "coordinator": {"podRPFilter": 5}}, {},
     "spec.coordinator.podRPFilter: Invalid value: 5: expected 0, 1 or 2, or a negative number"),
    ("M00024", {**macvlan(), "coordinator": {"podMACPrefix": "01:0b"}}, {},
     'spec.coordinator.podMACPrefix: Invalid value: "01:0b": it begins a multicast address'),
    ("M00024 ipvlan", {"cniType": "ipvlan", "ipvlan": MACVLAN, "coordinator": {"podMACPrefix": "0a:0b"}}, {},
     "spec.coordinator.podMACPrefix: Forbidden: an ipvlan NIC has the MAC address of its master"),
    ("M00028", macvlan(**POOLS), {RDMA_RESOURCE_INJECT: "rdma"},
     "spec.macvlan.rdmaResourceName: Required value: the annotation cni.spidernet.io/rdma-resource-inject is there"),
    ("M00029", macvlan(rdmaResourceName="a/b"), {RDMA_RESOURCE_INJECT: "rdma"},
     "spec.macvlan.ippools: Required value: at least one pool, the annotation cni.spidernet.io/rdma-resource-inject"),
    ("M00030", {"cniType": "ovs", "ovs": {"bridge": "br1", **POOLS}}, {RDMA_RESOURCE_INJECT: "rdma"},
     "metadata.annotations[cni.spidernet.io/rdma-resource-inject]: Forbidden: not with cniType ovs"),
    ("M00030 custom", {}, {NETWORK_RESOURCE_INJECT: "net"},
     "metadata.annotations[cni.spidernet.io/network-resource-inject]: Forbidden: not with cniType custom"),
    ("M00032", {"cniType": "sriov", "sriov": {"resourceName": "a/b"}}, {NETWORK_RESOURCE_INJECT: "net"},
     "spec.sriov.ippools: Required value: at least one pool, the annotation cni.spidernet.io/network-resource-inject"),
    ("no label", macvlan(), {NETWORK_RESOURCE_INJECT: "a b"},
     'metadata.annotations[cni.spidernet.io/network-resource-inject]: Invalid value: "a b": it becomes a label'),
    ("M00040", {"cniType": "vlan", "vlan": {**MACVLAN, "vlanMode": "auto", "vlanID": 5}}, {},
     "spec.vlan.vlanID: Forbidden: vlanMode is auto: it comes with the address"),
    ("no master", macvlan(master=[]), {}, "spec.macvlan.master: Required value: at least one interface of the node"),
    ("bad master", macvlan(master=["eth0/1"]), {},
     'spec.macvlan.master[0]: Invalid value: "eth0/1": no interface can have this name: /, : and white space'),
    ("two of one master", macvlan(master=["a", "a"], bond={"name": "b", "mode": 1}), {},
     'spec.macvlan.master[1]: Duplicate value: "a"'),
    ("two masters", macvlan(master=["a", "b"]), {}, "spec.macvlan.bond: Required value: 2 masters need one"),
    ("bond without name", macvlan(master=["a", "b"], bond={"name": "", "mode": 1}), {},
     "spec.macvlan.bond.name: Required value: the name of an interface of the node"),
    ("bond of a master's name", macvlan(master=["a", "b"], bond={"name": "a", "mode": 1}), {},
     'spec.macvlan.bond.name: Invalid value: "a": one of the masters has this name'),
    ("bond option", macvlan(master=["a", "b"], bond={"name": "c", "mode": 1, "options": "miimon=x"}), {},
     'spec.macvlan.bond.options: Invalid value: "miimon=x": miimon: "x" is not possible: expected a number'),
    ("VLAN's name", macvlan(master=["x" * 14], vlanID=5), {},
     "spec.macvlan.vlanID: Invalid value: 5: the VLAN would be xxxxxxxxxxxxxx.5, no interface name: it is longer"),
    ("match", macvlan(ippools={"matchMasterSubnet": True}), {},
     "spec.macvlan.ippools.matchMasterSubnet: Forbidden: only with cniType sriov"),
    ("pool without name", macvlan(ippools={"ipv6": [""]}), {},
     'spec.macvlan.ippools.ipv6[0]: Invalid value: "": expected the name of a pool'),
    ("pool pattern", macvlan(ippools={"ipv4": ["lan-[", "lan-[0-9]*"]}), {},
     'spec.macvlan.ippools.ipv4[0]: Invalid value: "lan-[": [ without ]'),
    ("pool twice", macvlan(ippools={"ipv4": ["a", "a"]}), {},
     'spec.macvlan.ippools.ipv4[1]: Duplicate value: "a"'),
    ("mtu", macvlan(mtu=70000), {}, "spec.macvlan.mtu: Invalid value: 70000: at most 65535 bytes"),
    ("mtu of sriov, over which the original's webhook falls",
     {"cniType": "sriov", "sriov": {"resourceName": "a/b", "mtu": 70000}}, {},
     "spec.sriov.mtu: Invalid value: 70000: at most 65535 bytes"),
    ("sriov resource", {"cniType": "sriov", "sriov": {"resourceName": ""}}, {},
     "spec.sriov.resourceName: Required value: what the device plugin calls them"),
    ("rates", {"cniType": "sriov", "sriov": {"resourceName": "a/b", "minTxRateMbps": 9, "maxTxRateMbps": 8}}, {},
     "spec.sriov.minTxRateMbps: Invalid value: 9: larger than maxTxRateMbps, 8"),
    ("rate", {"cniType": "sriov", "sriov": {"resourceName": "a/b", "maxTxRateMbps": 1 << 32}}, {},
     "spec.sriov.maxTxRateMbps: Invalid value: 4294967296: at most 4294967295"),
    ("priority", {"cniType": "sriov", "sriov": {"resourceName": "a/b", "vlanQoS": 3}}, {},
     "spec.sriov.vlanQoS: Invalid value: 3: it is of a VLAN, and vlanID names none"),
    ("ib resource", {"cniType": "ib-sriov", "ibsriov": {"resourceName": "a b"}}, {},
     'spec.ibsriov.resourceName: Invalid value: "a b": expected the name of a resource, as example.com/nic'),
    ("pkey", {"cniType": "ib-sriov", "ibsriov": {"resourceName": "a/b", "pkey": "0xfffff"}}, {},
     'spec.ibsriov.pkey: Invalid value: "0xfffff": expected up to four hexadecimal digits, as 0x8001'),
    ("ipoib", {"cniType": "ipoib", "ipoib": {"master": ""}}, {},
     "spec.ipoib.master: Required value: the name of an interface of the node"),
    ("bridge", {"cniType": "ovs", "ovs": {"bridge": ""}}, {},
     "spec.ovs.bridge: Required value: the name of a bridge of the node"),
    ("trunk without minID, over which the original's webhook falls",
     {"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"maxID": 9}]}}, {},
     "spec.ovs.trunk[0].minID: Required value: maxID is 9"),
    ("trunk without maxID", {"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"minID": 9}]}}, {},
     "spec.ovs.trunk[0].maxID: Required value: minID is 9"),
    ("trunk backwards", {"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"minID": 9, "maxID": 3}]}}, {},
     "spec.ovs.trunk[0].minID: Invalid value: 9: larger than maxID, 3"),
    ("trunk of nothing", {"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{}]}}, {},
     "spec.ovs.trunk[0]: Required value: id, or minID and maxID"),
    ("device", {"cniType": "ovs", "ovs": {"bridge": "br1", "deviceID": "03:02.1"}}, {},
     'spec.ovs.deviceID: Invalid value: "03:02.1": expected a PCI address, as 0000:03:02.1'),
    ("chain", {**macvlan(), "chainCNIJsonData": ["{"]}, {},
     'spec.chainCNIJsonData[0]: Invalid value: "{": it is not JSON'),
    ("chain without type", {**macvlan(), "chainCNIJsonData": ['{"type":"tuning"}', "{}"]}, {},
     'spec.chainCNIJsonData[1]: Invalid value: "{}": expected the configuration of one plugin'),
    ("chain with a coordinator", {**macvlan(), "chainCNIJsonData": ['{"type":"coordinator","hijackCIDR":["x"]}']}, {},
     'spec.chainCNIJsonData[0]: Invalid value: "{\\"type\\":\\"coordinator\\",\\"hijackCIDR\\":[\\"x\\"]}": '),
    ("chain of ours", {**macvlan(), "chainCNIJsonData": ['{"type":"macvlan","mtu":"x"}']}, {},
     'spec.chainCNIJsonData[0]: Invalid value: "{\\"type\\":\\"macvlan\\",\\"mtu\\":\\"x\\"}": mtu: "x" is not valid'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "notes", "beginning"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused(spec: dict[str, Any], notes: dict[str, str], beginning: str) -> None:
    errors = said(config(spec, notes))
    assert len(errors) == 1, errors
    assert errors[0].startswith(beginning), errors[0]


@pytest.mark.parametrize(
    ("spec", "notes"),
    [
        (macvlan(), {}),
        ({}, {}),
        (macvlan(rdmaResourceName="a/b", **POOLS), {RDMA_RESOURCE_INJECT: "rdma"}),
        ({"cniType": "sriov", "sriov": {"resourceName": "a/b", **POOLS}}, {NETWORK_RESOURCE_INJECT: "net"}),
        (macvlan(), {NETWORK_RESOURCE_INJECT: "net"}),
        ({"cniType": "sriov", "sriov": {"resourceName": "a/b", "minTxRateMbps": 9}}, {}),
        ({"cniType": "vlan", "vlan": {**MACVLAN, "vlanMode": "auto"}}, {}),
        ({"cniType": "vlan", "vlan": MACVLAN}, {}),
        (macvlan(), {MULTUS_CR_NAME: "a.b-c", MULTUS_CNI_VERSION: "1.0.0", CNI_CONFIG_NAME: "net_1"}),
    ],
)
def test_what_is_admitted(spec: dict[str, Any], notes: dict[str, str]) -> None:
    """M00019, M00027 and M00031 among them; the control of those above."""
    assert said(config(spec, notes)) == []


def test_everything_that_is_wrong_is_said_at_once() -> None:
    spec = {**macvlan(master=["a", "b"], mtu=70000), "chainCNIJsonData": ["{}"], "coordinator": {"txQueueLen": -1}}
    errors = said(config(spec, {MULTUS_CNI_VERSION: "2"}))
    assert [error.partition(": ")[0] for error in errors] == [
        "spec.macvlan.mtu",
        "spec.macvlan.bond",
        "spec.chainCNIJsonData[0]",
        "spec.coordinator.txQueueLen",
        "metadata.annotations[multus.spidernet.io/cni-version]",
    ]


def test_defaults() -> None:
    rules = MultusConfigRules()

    def done(spec: dict[str, Any]) -> MultusConfigSpec:
        return rules.complete(Review("CREATE", config(spec))).spec

    made = done({"cniType": "macvlan", "macvlan": MACVLAN, "enableCoordinator": None, "disableIPAM": None})
    assert made.macvlan is not None
    assert (made.macvlan.mtu, made.macvlan.vlan_id) == (0, 0)
    assert (made.enable_coordinator, made.disable_ipam, made.coordinator) == (True, False, CoordinatorSpec())
    given = done({**macvlan(), "coordinator": {"tunePodRoutes": None, "hijackCIDR": ["10.0.0.1"]}})
    assert given.coordinator == CoordinatorSpec(hijack_cidr=["10.0.0.1/32"])
    vlan = done({"cniType": "vlan", "vlan": {**MACVLAN, "vlanMode": None}}).vlan
    assert vlan is not None
    assert (vlan.vlan_mode, vlan.vlan_id) == ("manual", 0)
    auto = done({"cniType": "vlan", "vlan": {**MACVLAN, "vlanMode": "auto"}}).vlan
    assert auto is not None
    assert auto.vlan_id is None
    custom = done({"cniType": None, "enableCoordinator": True, "coordinator": {}})
    assert (custom.cni_type, custom.custom_cni, custom.enable_coordinator, custom.coordinator) == (
        "custom", "", False, None,
    )  # fmt: skip
    assert done({**macvlan(), "enableCoordinator": False}).coordinator is None


def test_labels_follow_the_annotations() -> None:
    rules = MultusConfigRules()
    first = rules.complete(Review("CREATE", config(macvlan(), {RDMA_RESOURCE_INJECT: "rdma"})))
    assert first.metadata.labels == {RDMA_RESOURCE_INJECT: "rdma"}
    meta = structs.replace(first.metadata, annotations={}, labels={**first.metadata.labels, "mine": "x"})
    second = rules.complete(Review("UPDATE", structs.replace(first, metadata=meta), first))
    assert second.metadata.labels == {"mine": "x"}
    by_hand = structs.replace(config(macvlan()), metadata=ObjectMeta(labels={RDMA_RESOURCE_INJECT: "rdma"}))
    assert rules.complete(Review("UPDATE", by_hand, by_hand)).metadata.labels == {RDMA_RESOURCE_INJECT: "rdma"}


def test_a_name_stays() -> None:
    plain, named = config(macvlan()), config(macvlan(), {MULTUS_CR_NAME: "one"})
    field = "metadata.annotations[multus.spidernet.io/cr-name]"
    assert said(config(macvlan(), {MULTUS_CR_NAME: "two"}), named) == [
        f'{field}: Invalid value: "two": it is one, and can be removed but not changed'
    ]
    assert said(named, plain) == [f'{field}: Invalid value: "one": it is absent, and can be removed but not changed']
    assert said(plain, named) == []
    assert said(config(macvlan(mtu=1400), {MULTUS_CR_NAME: "one"}), named) == []


def test_a_name_is_nobody_elses() -> None:
    """M00011."""
    other = config(macvlan(), {MULTUS_CR_NAME: "lan"}, name="other")
    others = Others(configs=lambda: [other])
    assert said(config(macvlan()), others=others) == [
        'metadata.name: Duplicate value: "lan": SpiderMultusConfig other makes the definition of this name'
    ]
    named = config(macvlan(), {MULTUS_CR_NAME: "lan"}, name="third")
    assert said(named, others=others)[0].startswith(
        "metadata.annotations[multus.spidernet.io/cr-name]: Duplicate value"
    )
    assert said(other, others=others) == []
    elsewhere = structs.replace(other, metadata=structs.replace(other.metadata, namespace="b"))
    assert said(config(macvlan()), others=Others(configs=lambda: [elsewhere])) == []


def test_a_definition_of_another_owner_is_not_taken() -> None:
    theirs = attachment(config(macvlan(), {MULTUS_CR_NAME: "lan"}, name="other"))
    found = Others(attachment=lambda namespace, name: theirs if (namespace, name) == ("ns", "lan") else None)
    assert said(config(macvlan()), others=found) == [
        'metadata.name: Duplicate value: "lan": the definition of this name is SpiderMultusConfig other\'s'
    ]
    mine = attachment(config(macvlan()))
    nobodys = NetworkAttachmentDefinition(metadata=ObjectMeta(name="lan", namespace="ns"))
    assert said(config(macvlan()), others=Others(attachment=lambda _namespace, _name: mine)) == []
    assert said(config(macvlan()), others=Others(attachment=lambda _namespace, _name: nobodys)) == []


def test_what_was_there_can_be_labelled() -> None:
    """An object from before the rules, with something wrong in it, is not asked about it again."""
    bad = config({"cniType": "macvlan", "macvlan": {"master": []}})
    rules = MultusConfigRules()
    labelled = structs.replace(bad, metadata=structs.replace(bad.metadata, labels={"a": "b"}))
    done = rules.complete(Review("UPDATE", labelled, bad))
    assert done.spec != bad.spec
    assert rules.judge(Review("UPDATE", done, bad)).errors == ()
    assert rules.judge(Review("DELETE", bad)).errors == ()
    assert rules.judge(Review("CREATE", bad)).errors != ()
    going = structs.replace(bad, metadata=structs.replace(bad.metadata, deletion_timestamp="2026-01-01T00:00:00Z"))
    (error,) = rules.judge(Review("UPDATE", config(macvlan()), going)).errors
    assert str(error) == "spec: Forbidden: the object is being deleted"


def test_warnings() -> None:
    rules = MultusConfigRules()

    def warned(spec: dict[str, Any]) -> tuple[str, ...]:
        return rules.judge(Review("CREATE", config(spec))).warnings

    assert warned({"chainCNIJsonData": ['{"type":"x"}']})[0].startswith("spec.chainCNIJsonData: without effect")
    assert warned(macvlan(bond={"name": "b", "mode": 1})) == ("spec.macvlan.bond: without effect, there is one master",)
    assert warned(macvlan()) == ()
