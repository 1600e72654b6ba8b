"""The CRDs in the chart are what the Structs say, and what the API server demands of a structural schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from api import crd
from api.crd import DEFINITIONS, Definition
from api.kinds import IPPOOL

CRDS = Path(__file__).parents[2] / "helm" / "spiderpool" / "crds"

every_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.kind.kind)


def schema_of(document: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def at(document: dict[str, Any], path: str) -> dict[str, Any]:
    return dict(nodes(schema_of(document)))[path]


def by_kind(kind: str) -> dict[str, Any]:
    return next(crd.document(definition) for definition in DEFINITIONS if definition.kind.kind == kind)


@every_definition
def test_file_in_chart_is_what_generate_writes(definition: Definition) -> None:
    written = (CRDS / definition.file_name).read_text(encoding="utf-8")
    assert written == crd.render(definition), "run: make generate"


def test_chart_has_no_other_crds() -> None:
    assert {path.name for path in CRDS.iterdir()} == {definition.file_name for definition in DEFINITIONS}


def test_command_writes_every_file(tmp_path: Path) -> None:
    assert crd.main(["--output", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {d.file_name for d in DEFINITIONS}


@every_definition
def test_yaml_reads_back_as_the_document(definition: Definition) -> None:
    assert yaml.safe_load(crd.render(definition)) == crd.document(definition)


@every_definition
def test_schema_is_structural_and_described(definition: Definition) -> None:
    for path, schema in nodes(schema_of(crd.document(definition))):
        assert "type" in schema, path
        assert not {"$ref", "$defs", "anyOf", "oneOf", "title", "nullable"} & schema.keys(), path
        assert schema.get("additionalProperties") is not False, f"{path} would refuse what a newer version adds"
        assert schema.get("default") not in (None, "", [], {}) or "default" not in schema, path
        assert set(schema.get("required", [])) <= schema.get("properties", {}).keys(), path


def unexplained(schema: dict[str, Any]) -> list[str]:
    """Fields of which `kubectl explain` would print nothing, or not what they are where they are absent."""
    found = []
    for path, field in nodes(schema):
        text = field.get("description", "")
        if path == "$.metadata" or path.endswith(("[]", "{}")):
            continue  # the API server's own words, and what has the words of the field that it is in
        if not text or not text.endswith("."):
            found.append(f"{path}: {text!r}")
        elif "default" in field and not text.endswith(f"Default: {str(field['default']).lower()}."):
            found.append(f"{path}: the default is not said")
    return found


@every_definition
def test_every_field_at_any_depth_is_explained(definition: Definition) -> None:
    written = yaml.safe_load((CRDS / definition.file_name).read_text(encoding="utf-8"))
    assert unexplained(schema_of(written)) == []


def test_negative_control_a_field_without_words_is_found() -> None:
    written = by_kind("SpiderMultusConfig")
    bond = at(written, "$.spec.macvlan.bond.options")
    del bond["description"]
    at(written, "$.spec.vlan.vlanMode")["description"] = "Where the VLAN id is from."
    assert unexplained(schema_of(written)) == [
        "$.spec.macvlan.bond.options: ''",
        "$.spec.vlan.vlanMode: the default is not said",
    ]


@pytest.mark.parametrize(
    ("kind", "scope", "short", "status"),
    [
        ("SpiderIPPool", "Cluster", "sp", True),
        ("SpiderSubnet", "Cluster", "ss", True),
        ("SpiderEndpoint", "Namespaced", "se", False),
        ("SpiderReservedIP", "Cluster", "sr", False),
        ("SpiderCoordinator", "Cluster", "scc", True),
        ("SpiderMultusConfig", "Namespaced", "smc", False),
    ],
)
def test_names(kind: str, scope: str, short: str, status: bool) -> None:
    document = by_kind(kind)
    spec = document["spec"]
    (version,) = spec["versions"]
    assert spec["group"] == "spiderpool.spidernet.io"
    assert version["name"] == "v2beta1"
    assert version["served"]
    assert version["storage"]
    assert spec["scope"] == scope
    assert spec["names"]["shortNames"] == [short]
    assert spec["names"]["categories"] == ["spiderpool"]
    assert spec["names"]["plural"] == f"{kind.lower()}s"
    assert spec["names"]["listKind"] == f"{kind}List"
    assert version["subresources"] == ({"status": {}} if status else {})


COLUMNS = {
    "SpiderIPPool": [
        ("VERSION", ".spec.ipVersion", 0),
        ("SUBNET", ".spec.subnet", 0),
        ("ALLOCATED-IP-COUNT", ".status.allocatedIPCount", 0),
        ("TOTAL-IP-COUNT", ".status.totalIPCount", 0),
        ("DEFAULT", ".spec.default", 0),
        ("DISABLE", ".spec.disable", 10),
        ("NodeName", ".spec.nodeName", 10),
        ("MultusName", ".spec.multusName", 10),
        ("APP-NAMESPACE", r".spec.podAffinity.matchLabels['ipam\.spidernet\.io/app\-namespace']", 10),
    ],
    "SpiderSubnet": [
        ("VERSION", ".spec.ipVersion", 0),
        ("SUBNET", ".spec.subnet", 0),
        ("ALLOCATED-IP-COUNT", ".status.allocatedIPCount", 0),
        ("TOTAL-IP-COUNT", ".status.totalIPCount", 0),
    ],
    "SpiderEndpoint": [
        ("INTERFACE", ".status.current.ips[0].interface", 0),
        ("IPV4POOL", ".status.current.ips[0].ipv4Pool", 0),
        ("IPV4", ".status.current.ips[0].ipv4", 0),
        ("IPV6POOL", ".status.current.ips[0].ipv6Pool", 0),
        ("IPV6", ".status.current.ips[0].ipv6", 0),
        ("NODE", ".status.current.node", 0),
    ],
    "SpiderReservedIP": [("VERSION", ".spec.ipVersion", 0)],
    "SpiderCoordinator": [],
    "SpiderMultusConfig": [],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns(kind: str) -> None:
    (version,) = by_kind(kind)["spec"]["versions"]
    columns = version.get("additionalPrinterColumns", [])
    assert [(c["name"], c["jsonPath"], c.get("priority", 0)) for c in columns] == COLUMNS[kind]


FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "SpiderIPPool": {
        "$.spec": {"required": ["subnet"]},
        "$.spec.ipVersion": {"type": "integer", "format": "int64", "enum": [4, 6]},
        "$.spec.subnet": {"type": "string"},
        "$.spec.ips[]": {"type": "string"},
        "$.spec.excludeIPs[]": {"type": "string"},
        "$.spec.gateway": {"type": "string"},
        "$.spec.routes[]": {"type": "object", "required": ["dst", "gw"]},
        "$.spec.podAffinity": {"type": "object", "x-kubernetes-map-type": "atomic"},
        "$.spec.podAffinity.matchLabels{}": {"type": "string"},
        "$.spec.podAffinity.matchExpressions[]": {"required": ["key", "operator"]},
        "$.spec.namespaceAffinity": {"x-kubernetes-map-type": "atomic"},
        "$.spec.namespaceName[]": {"type": "string"},
        "$.spec.nodeAffinity": {"x-kubernetes-map-type": "atomic"},
        "$.spec.nodeName[]": {"type": "string"},
        "$.spec.multusName[]": {"type": "string"},
        "$.spec.default": {"type": "boolean", "default": False},
        "$.spec.disable": {"type": "boolean", "default": False},
        "$.status.allocatedIPs": {"type": "string"},
        "$.status.totalIPCount": {"type": "integer", "format": "int64", "minimum": 0},
        "$.status.allocatedIPCount": {"type": "integer", "format": "int64", "minimum": 0},
        "$.status.withheldIPs": {"type": "string"},
    },
    "SpiderSubnet": {
        "$.spec": {"required": ["subnet"]},
        "$.spec.excludeIPs[]": {"type": "string"},
        "$.status.controlledIPPools": {"type": "string"},
        "$.status.totalIPCount": {"format": "int64", "minimum": 0},
        "$.status.allocatedIPCount": {"format": "int64", "minimum": 0},
    },
    "SpiderEndpoint": {
        "$.status": {"required": ["current", "ownerControllerName", "ownerControllerType"]},
        "$.status.current": {"required": ["ips", "node", "uid"]},
        "$.status.current.ips[]": {"required": ["interface"]},
        "$.status.current.ips[].vlan": {"format": "int64", "minimum": 0, "maximum": 4094, "default": 0},
        "$.status.current.ips[].cleanGateway": {"type": "boolean"},
        "$.status.current.ips[].mac": {"type": "string"},
        "$.status.current.ips[].ipv4Gateway": {"type": "string"},
        "$.status.current.ips[].ipv6Pool": {"type": "string"},
    },
    "SpiderReservedIP": {"$.spec.ipVersion": {"enum": [4, 6]}, "$.spec.ips[]": {"type": "string"}},
    "SpiderCoordinator": {
        "$.spec.mode": {"enum": ["auto", "disabled", "overlay", "underlay"], "default": "auto"},
        "$.spec.podCIDRType": {"enum": ["auto", "calico", "cilium", "cluster", "none"]},
        "$.spec.hijackCIDR[]": {"type": "string"},
        "$.spec.podMACPrefix": {"type": "string"},
        "$.spec.tunePodRoutes": {"default": True},
        "$.spec.podDefaultRouteNIC": {"type": "string"},
        "$.spec.hostRuleTable": {"type": "integer", "default": 500},
        "$.spec.podRPFilter": {"type": "integer", "default": 0},
        "$.spec.txQueueLen": {"type": "integer", "default": 0},
        "$.spec.vethLinkAddress": {"type": "string"},
        "$.spec.vethMTU": {"type": "integer", "minimum": 1},
        "$.status": {"required": ["phase"]},
        "$.status.phase": {"enum": ["Synced", "NotReady"]},
        "$.status.overlayPodCIDR[]": {"type": "string"},
        "$.status.serviceCIDR[]": {"type": "string"},
    },
    "SpiderMultusConfig": {
        "$.spec.cniType": {
            "enum": ["custom", "ib-sriov", "ipoib", "ipvlan", "macvlan", "ovs", "sriov", "vlan"],
            "default": "custom",
        },
        "$.spec.macvlan": {"required": ["master"]},
        "$.spec.ipvlan.mtu": {"format": "int32", "minimum": 0, "default": 0},
        "$.spec.macvlan.vlanID": {"format": "int32", "minimum": 0, "maximum": 4094},
        "$.spec.macvlan.bond": {"required": ["mode", "name"]},
        "$.spec.macvlan.bond.mode": {"format": "int32", "minimum": 0, "maximum": 6},
        "$.spec.macvlan.rdmaResourceName": {"type": "string"},
        "$.spec.macvlan.ippools.matchMasterSubnet": {"default": False},
        "$.spec.vlan.vlanMode": {"enum": ["auto", "manual"], "default": "manual"},
        "$.spec.sriov": {"required": ["resourceName"]},
        "$.spec.sriov.minTxRateMbps": {"minimum": 0},
        "$.spec.sriov.rdmaIsolation": {"default": False},
        "$.spec.ibsriov.linkState": {"enum": ["auto", "disable", "enable"], "default": "enable"},
        "$.spec.ibsriov.rdmaIsolation": {"default": True},
        "$.spec.ibsriov.enableIbKubernetes": {"default": False},
        "$.spec.ipoib": {"required": ["master"]},
        "$.spec.ovs": {"required": ["bridge"]},
        "$.spec.ovs.trunk[].minID": {"minimum": 0, "maximum": 4094},
        "$.spec.enableCoordinator": {"default": True},
        "$.spec.disableIPAM": {"default": False},
        "$.spec.coordinator.hostRuleTable": {"default": 500},
        "$.spec.chainCNIJsonData[]": {"type": "string"},
        "$.spec.customCNI": {"type": "string"},
    },
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in FIELDS.items() for path in paths])
def test_field(kind: str, path: str) -> None:
    found = at(by_kind(kind), path)
    wanted = FIELDS[kind][path]
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("kind", ["SpiderIPPool", "SpiderSubnet", "SpiderCoordinator"])
def test_conditions_are_those_that_kubectl_knows(kind: str) -> None:
    document = by_kind(kind)
    listed = at(document, "$.status.conditions")
    assert (listed["x-kubernetes-list-type"], listed["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    condition = at(document, "$.status.conditions[]")
    assert condition["required"] == ["lastTransitionTime", "message", "reason", "status", "type"]
    asked = {name: {key for key in field if key != "description"} for name, field in condition["properties"].items()}
    assert asked == {
        "type": {"type", "maxLength", "pattern"},
        "status": {"type", "enum"},
        "reason": {"type", "minLength", "maxLength", "pattern"},
        "message": {"type", "maxLength"},
        "lastTransitionTime": {"type", "format"},
        "observedGeneration": {"type", "format", "minimum"},
    }


WITHOUT_DEFAULT = ["$.spec.podCIDRType", "$.spec.vethMTU", "$.spec.vethLinkAddress", "$.spec.podMACPrefix"]


@pytest.mark.parametrize("path", WITHOUT_DEFAULT)
def test_field_without_default(path: str) -> None:
    assert "default" not in at(by_kind("SpiderCoordinator"), path)


def test_shape_that_no_schema_can_express_is_refused() -> None:
    class Odd(msgspec.Struct, frozen=True):
        """Either."""

        either: int | str

    definition = Definition(kind=msgspec.structs.replace(IPPOOL, type=Odd), short_name="x")
    with pytest.raises(TypeError, match="no place in a CRD"):
        crd.document(definition)
