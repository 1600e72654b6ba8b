"""Objects of every kind that somebody might write: by the kind's schema with strange values, and beside the schema.

Documents are JSON as the API server gets it. What it stores of them has to be of use to all who read it: `digest`.
"""

import copy
from collections.abc import Callable
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from actors.replica.coordinator import coordination
from api import crd
from api.annotations import (
    APP_NAME,
    CNI_CONFIG_NAME,
    MULTUS_CNI_VERSION,
    MULTUS_CR_NAME,
    NETWORK_RESOURCE_INJECT,
    OWNER_APPLICATION_NAME,
    POOL_CIDR,
    RDMA_RESOURCE_INJECT,
    SUBNET_SEEN,
)
from api.attachments import attachment, pools_of
from api.coordinator import SpiderCoordinator
from api.endpoint import SpiderEndpoint
from api.ippool import SpiderIPPool
from api.kinds import COORDINATOR, ENDPOINT, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET, Kind
from api.multusconfig import BLOCKS, SpiderMultusConfig
from api.reservedip import SpiderReservedIP
from api.subnet import SpiderSubnet
from api.wire import Coordination
from cni.config import CoordinatorConfig, decode_config
from cni.conflist import read_conflist
from cni.coordination.settings import settle
from ipam import subnetbook, wildcards
from ipam.ledger import Ledger
from ipam.ranges import Ranges, parse_ranges
from tests.rules.test_examples import MANIFESTS

type Json = Any
type Document = dict[str, Json]

KINDS: Final[dict[str, Kind[Any]]] = {
    kind.kind: kind for kind in (IPPOOL, SUBNET, ENDPOINT, RESERVEDIP, COORDINATOR, MULTUSCONFIG)
}
OURS: Final = frozenset({"macvlan", "ipvlan", "vlan", "sriov", "spiderpool", "coordinator", "ifacer"})
"""Plugins whose configuration the agent reads."""

# fmt: off
NETWORKS: Final = (
    "10.60.0.0/24", "10.60.0.0/16", "10.60.0.9/24", "10.60.1.0/24", "10.60.0.1/32", "fd60::/64", "FD60::/64",
    "fd60::/128", "0.0.0.0/0", "::/0", "10.60.0.0/33", "10.60.0.0/+8", "fd60::/064", "::ffff:10.60.0.0/112",
)
ADDRESSES: Final = (
    "10.60.0.1", "10.60.0.9", "10.60.0.5-10.60.0.9", "10.60.0.9-10.60.0.5", "10.60.1.1", "fd60::1", "FD60::A",
    "fd60::1-fd60::ffff:ffff", "0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "10.60.0.1-fd60::1", "::ffff:10.60.0.1", "fe80::1%eth0", "10.060.0.1", " 10.60.0.1", "1.2.3", "٣.1.1.1", "-",
)
NAMES: Final = (
    "eth0", "eth1", "bond0", "eth0.100", "br-lan", "a/b", "lo", "..", "x" * 15, "x" * 16, "naïve", "eth0\n", "worker-1",
    "example.com/nic", "example.com/", "lan", "lan*", "la[", "[^]", "\\", "kube-system/lan", "auto", "a", "1.0.0",
    "0a:1b", "0x8001", "0000:03:02.1", "miimon=100", "miimon=x;;=", "mode=4",
)
TEXTS: Final = (
    '{"type":"tuning"}', '{"type":"macvlan","mtu":"x"}', '{"type":"macvlan","master":"eth0"}', '{"type":"a/b"}',
    '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"macvlan"}]}', '{"type":"coordinator","hijackCIDR":["x"]}',
    '{"plugins":[]}', '{"name":7,"type":"x"}', '{"type":1e999}', '{"type":"\\ud800"}', "{", "[]", "null", "[" * 2000,
)
ODD: Final = (
    "", " ", "\N{SNOWMAN}", "\x00", "\x7f", "\u202e", "e\u0301", "x" * 300, "%s{}$(id)`", "null", "true", "NaN",
    "~1", "a/~0",
)
# fmt: on
WORDS: Final = st.sampled_from([*NETWORKS, *ADDRESSES, *NAMES, *TEXTS, *ODD]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
_BY_FIELD: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("subnet", "dst", "hijackCIDR"), NETWORKS),
    **dict.fromkeys(("ips", "excludeIPs", "gateway", "gw", "vethLinkAddress"), ADDRESSES),
    **dict.fromkeys(("master", "bridge", "name", "resourceName", "rdmaResourceName", "ipv4", "ipv6", "options"), NAMES),
    **dict.fromkeys(("chainCNIJsonData", "customCNI"), TEXTS),
    "operator": ("In", "NotIn", "Exists", "DoesNotExist", "in"),
}
"""Where a value is likely to mean something, so that objects are admitted, too."""
# fmt: off
NUMBERS: Final = (
    -(1 << 63), -(1 << 31), -1, 0, 1, 2, 100, 253, 254, 1500, 4094, 4095, 65535, 65536, (1 << 31) - 1, 1 << 32,
)
_WRONG: Final[tuple[Json, ...]] = (
    None, True, 0, -1, 1.5, 1500.0, 1e300, 1 << 63, 10**30, "", "x", [], {}, [None], [[]], {"a": {}}, {"": None},
)
# fmt: on
_NOTES: Final = (
    MULTUS_CR_NAME,
    MULTUS_CNI_VERSION,
    CNI_CONFIG_NAME,
    RDMA_RESOURCE_INJECT,
    NETWORK_RESOURCE_INJECT,
    SUBNET_SEEN,
)
_SELDOM: Final = st.integers(0, 4).map(lambda number: number == 4)
_LABELS: Final = (OWNER_APPLICATION_NAME, POOL_CIDR, APP_NAME, RDMA_RESOURCE_INJECT)
_SCHEMAS: Final[dict[str, Document]] = {
    each.kind.kind: crd.document(each)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for each in crd.DEFINITIONS
}


def value(schema: Document, name: str = "") -> st.SearchStrategy[Json]:
    """What a field of this schema may hold; `name` is the field's."""
    match schema["type"]:
        case "string" if "enum" in schema:
            return st.sampled_from(schema["enum"])
        case "string":
            likely = _BY_FIELD.get(name)
            return WORDS if likely is None else st.sampled_from(likely) | st.sampled_from(likely) | WORDS
        case "boolean":
            return st.booleans()
        case "integer" if "enum" in schema:
            return st.sampled_from(schema["enum"])
        case "integer":
            bits = 31 if schema.get("format") == "int32" else 63
            low, high = schema.get("minimum", -(1 << bits)), schema.get("maximum", (1 << bits) - 1)
            fitting = [number for number in NUMBERS if low <= number <= high]
            return st.sampled_from(fitting) | st.integers(low, high)
        case "array":
            return st.lists(value(schema["items"], name), max_size=4)
        case "object" if "properties" in schema:
            required = {key: value(field, key) for key, field in schema["properties"].items() if key in _asked(schema)}
            others = {key: value(field, key) for key, field in schema["properties"].items() if key not in required}
            return st.fixed_dictionaries(required, optional=others)
        case _:
            return st.dictionaries(WORDS, WORDS, max_size=2)


def _asked(schema: Document) -> set[str]:
    return set(schema.get("required", ()))


def _spec(kind: str) -> st.SearchStrategy[Json]:
    """The part that users write. Of SpiderMultusConfigs mostly with the block that belongs to the type."""
    schema = _SCHEMAS[kind]["properties"]
    if kind != MULTUSCONFIG.kind:
        return value(schema["status" if kind == ENDPOINT.kind else "spec"])
    fields = schema["spec"]["properties"]
    common = {name: value(field, name) for name, field in fields.items() if name not in {*BLOCKS.values(), "cniType"}}
    fitting = [
        st.fixed_dictionaries({"cniType": st.just(word), field: value(fields[field])}, optional=common)
        for word, field in BLOCKS.items()
    ]
    custom = st.fixed_dictionaries({"cniType": st.just("custom"), "customCNI": value(fields["customCNI"], "customCNI")})
    return st.one_of(*fitting, custom, value(schema["spec"]))


@st.composite
def documents(draw: st.DrawFn, kind: str, names: st.SearchStrategy[str], *, namespace: str = "default") -> Document:
    """An object: an example of the documents with a few changes, or all strange; some break the kind's schema."""
    part = "status" if kind == ENDPOINT.kind else "spec"
    place = {"namespace": namespace} if KINDS[kind].namespaced else {}
    notes = draw(st.dictionaries(st.sampled_from(_NOTES), WORDS, max_size=2) if draw(_SELDOM) else st.just({}))
    labels = draw(st.dictionaries(st.sampled_from(_LABELS), st.sampled_from(NAMES), max_size=1))
    if draw(_SELDOM):
        told = draw(_spec(kind))
    else:
        told = copy.deepcopy(draw(st.sampled_from([each for each in MANIFESTS if each["kind"] == kind])))[part]
        for _ in range(draw(st.integers(0, 3))):
            _change(draw, told, _SCHEMAS[kind]["properties"][part])
    made: Document = {
        "apiVersion": KINDS[kind].api_version,
        "kind": kind,
        "metadata": {"name": draw(names), **place, "annotations": notes, "labels": labels},
        part: told,
    }
    if draw(_SELDOM):
        _spoil(draw, made, part)
    return made


def _change(draw: st.DrawFn, at: Document, schema: Document) -> None:
    """Have one field otherwise, at any depth, or have it no more."""
    name = draw(st.sampled_from(sorted(schema["properties"])))
    field = schema["properties"][name]
    if name in at and draw(_SELDOM):
        del at[name]
    elif "properties" in field and isinstance(at.get(name), dict):
        _change(draw, at[name], field)
    else:
        at[name] = draw(value(field, name))


def _spoil(draw: st.DrawFn, document: Document, key: Any) -> None:
    """Put what does not belong there into one place."""
    at: Json = document
    while isinstance(inner := at[key], dict | list) and inner and draw(st.integers(0, 3)):
        at, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    at[key] = draw(st.sampled_from(_WRONG) | WORDS)


def digest(item: Any) -> None:
    """Read what has been admitted as those do who live by it. Raises what they would raise."""
    match item:
        case SpiderIPPool():
            version = 6 if ":" in item.spec.subnet else 4
            assert Ledger(item, Ranges(version), 100).version == version
            for selector in (item.spec.pod_affinity, item.spec.namespace_affinity, item.spec.node_affinity):
                assert selector is None or str(selector)
                if selector is not None:
                    selector.matches({})
        case SpiderSubnet():
            subnetbook.ground(item.spec)
        case SpiderReservedIP():
            assert item.spec.ip_version is not None
            parse_ranges(item.spec.ips, item.spec.ip_version)
        case SpiderCoordinator():
            settle(CoordinatorConfig(), coordination((item,), (), name=item.metadata.name), prefix="")
        case SpiderMultusConfig():
            _digest_network(item)
        case SpiderEndpoint():
            pass  # read by people only
        case _:
            raise TypeError(item)


def _digest_network(item: SpiderMultusConfig) -> None:
    text = attachment(item).spec.config
    if text:
        for plugin in read_conflist(text, where="", name=item.metadata.name).plugins:
            if plugin["type"] in OURS and item.spec.cni_type != "custom":
                config = decode_config({**plugin, "name": "any"})
                settle(config.coordinator or CoordinatorConfig(), Coordination(), prefix="")
    pools = pools_of(item.spec)
    for name in (*pools.ipv4, *pools.ipv6) if pools is not None else ():
        if wildcards.is_pattern(name):
            wildcards.parse(name)


def reader(kind: str) -> Callable[[bytes], None]:
    """Decodes and digests what is stored of a kind."""
    decoder = msgspec.json.Decoder(KINDS[kind].type)
    return lambda stored: digest(decoder.decode(stored))
