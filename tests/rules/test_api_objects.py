"""Objects are read as other programs write them, and written as other programs read them."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import kinds
from api.core import EndpointSlice, Pod, PodSpec, PodStatus
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, decode_records, encode_records
from api.kinds import Kind
from api.meta import LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference, SelectorError
from api.reasons import Explanation, Reason, Verdict

KINDS = [value for value in vars(kinds).values() if isinstance(value, Kind)]


def encoded(item: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(msgspec.json.encode(item))
    return document


# -- kinds


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not kinds.NEW_POD], ids=repr)
def test_kind_says_what_its_type_says(kind: Kind[Any]) -> None:
    item = msgspec.json.decode(b"{}", type=kind.type)
    assert (item.api_version, item.kind) == (kind.api_version, kind.kind)
    assert item.metadata == ObjectMeta()


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_unknown_fields_are_read_over_at_every_depth(kind: Kind[Any]) -> None:
    new = {"from": ["the", {"future": None}]}
    document = {"new": new, "metadata": {"name": "a", "new": new}, "spec": {"new": new}, "status": {"new": new}}
    assert msgspec.convert(document, kind.type).metadata.name == "a"


def test_paths() -> None:
    own = "/apis/spiderpool.spidernet.io/v2beta1"
    assert kinds.IPPOOL.path() == f"{own}/spiderippools"
    assert kinds.IPPOOL.path("", "lan", "status") == f"{own}/spiderippools/lan/status"
    assert kinds.ENDPOINT.path("web", "a") == f"{own}/namespaces/web/spiderendpoints/a"
    assert kinds.POD.path("web", "a") == "/api/v1/namespaces/web/pods/a"
    assert kinds.POD.path() == "/api/v1/pods"
    assert kinds.REPLICASET.path("web") == "/apis/apps/v1/namespaces/web/replicasets"
    assert kinds.ENDPOINTSLICE.api_version == "discovery.k8s.io/v1"


# -- wire names


def test_pool_has_the_documented_names() -> None:
    document = {
        "metadata": {"name": "lan", "resourceVersion": "7", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "ipVersion": 4,
            "subnet": "10.6.0.0/16",
            "ips": ["10.6.0.5"],
            "excludeIPs": ["10.6.0.6"],
            "gateway": "10.6.0.1",
            "routes": [{"dst": "10.7.0.0/16", "gw": "10.6.0.2"}],
            "podAffinity": {"matchLabels": {"a": "b"}},
            "namespaceAffinity": {"matchExpressions": [{"key": "k", "operator": "Exists"}]},
            "namespaceName": ["web"],
            "nodeAffinity": {"matchLabels": {"c": "d"}},
            "nodeName": ["n1"],
            "multusName": ["kube-system/macvlan"],
            "default": True,
            "disable": True,
        },
        "status": {
            "allocatedIPs": '{"10.6.0.5":{"pod":"a/b","podUid":"u"}}',
            "totalIPCount": 9,
            "allocatedIPCount": 1,
            "withheldIPs": "{}",
        },
    }
    assert encoded(msgspec.convert(document, SpiderIPPool)) == document


def test_endpoint_writes_what_the_schema_requires_even_when_empty() -> None:
    assert encoded(SpiderEndpoint())["status"] == {
        "current": {"uid": "", "node": "", "ips": []},
        "ownerControllerType": "",
        "ownerControllerName": "",
    }


def test_endpoint_leaves_out_what_is_not_there() -> None:
    detail = IPAllocationDetail(interface="eth0", ipv4="10.6.0.5/16", ipv4_pool="lan", ipv4_gateway="10.6.0.1")
    status = EndpointStatus(current=EndpointCurrent(uid="u", node="n", ips=[detail]), owner_controller_type="Pod")
    assert encoded(SpiderEndpoint(status=status))["status"]["current"]["ips"] == [
        {"interface": "eth0", "ipv4": "10.6.0.5/16", "ipv4Pool": "lan", "ipv4Gateway": "10.6.0.1"}
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"spec": {"ipVersion": 5}},
        {"spec": {"ips": "10.6.0.5"}},
        {"spec": {"default": "yes"}},
        {"spec": {"routes": [{"dst": "10.0.0.0/8"}]}},
        {"status": {"allocatedIPCount": -1}},
    ],
)
def test_what_the_schema_refuses_the_struct_refuses(document: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.(spec|status)\."):
        msgspec.convert(document, SpiderIPPool)


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (kinds.COORDINATOR, {"spec": {"mode": "sideways"}}),
        (kinds.COORDINATOR, {"spec": {"vethMTU": 0}}),
        (kinds.MULTUSCONFIG, {"spec": {"cniType": "token-ring"}}),
        (kinds.MULTUSCONFIG, {"spec": {"macvlan": {"mtu": 1500}}}),
        (kinds.MULTUSCONFIG, {"spec": {"macvlan": {"master": ["eth0"], "vlanID": 4095}}}),
        (kinds.MULTUSCONFIG, {"spec": {"vlan": {"master": ["eth0"], "bond": {"name": "b", "mode": 7}}}}),
        (kinds.ENDPOINT, {"status": {"current": {"ips": [{"interface": "eth0", "vlan": 4095}]}}}),
        (kinds.RESERVEDIP, {"spec": {"ipVersion": 0}}),
    ],
)
def test_limits_of_the_other_kinds(kind: Kind[Any], document: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, kind.type)


def test_slice_with_null_lists_is_readable() -> None:
    found = msgspec.json.decode(b'{"addressType":"IPv4","endpoints":null,"ports":null}', type=EndpointSlice)
    assert found.endpoints is None


def test_controller_is_the_managing_owner() -> None:
    one = OwnerReference(api_version="v1", kind="Pod", name="a", uid="1")
    two = OwnerReference(api_version="apps/v1", kind="ReplicaSet", name="b", uid="2", controller=True)
    assert ObjectMeta(owner_references=[one, two]).controller is two
    assert ObjectMeta(owner_references=[one]).controller is None


# -- allocation records


def test_records_are_sorted_and_absent_when_there_is_none() -> None:
    one, two = AllocationRecord(pod="a/b", pod_uid="u"), AllocationRecord(pod="a/c", pod_uid="v", nic="eth0", cid="1")
    text = encode_records({"10.6.0.9": two, "10.6.0.10": one})
    assert text == (
        '{"10.6.0.10":{"pod":"a/b","podUid":"u"},"10.6.0.9":{"pod":"a/c","podUid":"v","nic":"eth0","cid":"1"}}'
    )
    assert encode_records({}) is None
    assert decode_records(None) == decode_records("") == decode_records("{}") == {}


names = st.text(max_size=12)
records = st.builds(AllocationRecord, pod=names, pod_uid=names, nic=names, node=names, cid=names)


@given(st.dictionaries(st.ip_addresses().map(str), records, min_size=1))
def test_records_come_back_as_they_were(given_records: dict[str, AllocationRecord]) -> None:
    assert decode_records(encode_records(given_records)) == given_records


@pytest.mark.parametrize("text", ["[]", "{", '{"10.6.0.5":{"pod":"a/b"}}', '{"10.6.0.5":"a/b"}'])
def test_damaged_records_are_an_error(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_records(text)


# -- pods


@pytest.mark.parametrize(
    ("phase", "restart", "reason", "deleted", "alive", "text"),
    [
        ("", "Always", "", False, True, "Pending"),
        ("Running", "Never", "", False, True, "Running"),
        ("Running", "Always", "", True, False, "being deleted"),
        ("Succeeded", "Always", "", False, True, "Succeeded"),
        ("Succeeded", "OnFailure", "", False, False, "Succeeded"),
        ("Succeeded", "Never", "", False, False, "Succeeded"),
        ("Failed", "Always", "", False, True, "Failed"),
        ("Failed", "OnFailure", "", False, True, "Failed"),
        ("Failed", "Never", "", False, False, "Failed"),
        ("Failed", "Always", "Evicted", False, False, "Failed (Evicted)"),
    ],
)
def test_which_pods_are_alive(*, phase: str, restart: str, reason: str, deleted: bool, alive: bool, text: str) -> None:
    pod = Pod(
        metadata=ObjectMeta(deletion_timestamp="2026-01-01T00:00:00Z" if deleted else None),
        spec=PodSpec(restart_policy=restart),
        status=PodStatus(phase=phase, reason=reason),
    )
    assert pod.alive is alive
    assert pod.phase_text == text


# -- label selectors


def test_empty_selector_matches_everything() -> None:
    assert LabelSelector().matches({})
    assert str(LabelSelector()) == "everything"


labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))
requirements = st.one_of(
    st.builds(
        LabelSelectorRequirement,
        key=st.sampled_from("abc"),
        operator=st.sampled_from(["In", "NotIn"]),
        values=st.lists(st.sampled_from("xyz"), min_size=1),
    ),
    st.builds(
        LabelSelectorRequirement, key=st.sampled_from("abc"), operator=st.sampled_from(["Exists", "DoesNotExist"])
    ),
)


def naive(requirement: LabelSelectorRequirement, given_labels: dict[str, str]) -> bool:
    value = given_labels.get(requirement.key)
    return {
        "In": value in requirement.values,
        "NotIn": value not in requirement.values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[requirement.operator]


@given(labels, labels, st.lists(requirements, max_size=3))
def test_selector_against_a_naive_one(
    wanted: dict[str, str], seen: dict[str, str], expressions: list[LabelSelectorRequirement]
) -> None:
    selector = LabelSelector(match_labels=wanted, match_expressions=expressions)
    expected = wanted.items() <= seen.items() and all(naive(e, seen) for e in expressions)
    assert selector.matches(seen) is expected


@pytest.mark.parametrize(
    ("operator", "values", "words"),
    [
        ("Near", ["x"], "unknown operator 'Near'"),
        ("In", [], "needs at least one value"),
        ("NotIn", [], "needs at least one value"),
        ("Exists", ["x"], "takes no values"),
        ("DoesNotExist", ["x"], "takes no values"),
    ],
)
def test_selector_that_kubernetes_refuses(operator: str, values: list[str], words: str) -> None:
    requirement = LabelSelectorRequirement(key="zone", operator=operator, values=values)
    with pytest.raises(SelectorError, match=words) as caught:
        requirement.matches({})
    assert "'zone'" in str(caught.value)


def test_selector_in_words() -> None:
    selector = LabelSelector(
        match_labels={"app": "web"},
        match_expressions=[
            LabelSelectorRequirement(key="zone", operator="In", values=["a", "b"]),
            LabelSelectorRequirement(key="gpu", operator="Exists"),
        ],
    )
    assert str(selector) == "app=web, zone In (a,b), gpu Exists"


# -- reasons


def rejected(pool: str, predicate: str = "full", nic: str = "") -> Verdict:
    reason = Reason(predicate=predicate, pool=pool, wanted="a free address", seen="10 of 10 in use")
    return Verdict(pool=pool, accepted=False, reason=reason, nic=nic)


def test_explanation_prints_a_line_per_pool() -> None:
    explanation = Explanation(considered=(Verdict(pool="a", accepted=True), rejected("b")))
    assert explanation.summary() == ("a: accepted\nb: rejected by full: wanted a free address, found 10 of 10 in use")
    assert str(explanation) == "a: accepted; b: rejected by full: wanted a free address, found 10 of 10 in use"
    assert str(Explanation()) == Explanation().summary() == "no pool was considered"


def test_long_explanation_is_cut_in_one_line_and_whole_in_many() -> None:
    explanation = Explanation(considered=tuple(Verdict(pool=f"p{n}", accepted=True) for n in range(12)))
    assert str(explanation).endswith("p9: accepted; and 2 more")
    assert len(explanation.summary().splitlines()) == 12


def test_later_verdict_on_a_pool_wins_in_its_place() -> None:
    first = Explanation(considered=(Verdict(pool="a", accepted=True), Verdict(pool="b", accepted=True)))
    merged = first.merged(Explanation(considered=(rejected("a"), rejected("c"))))
    assert [(v.pool, v.accepted) for v in merged.considered] == [("a", False), ("b", True), ("c", False)]


def test_what_is_said_of_a_pool_is_said_for_one_nic() -> None:
    accepted = tuple(Verdict(pool="a", accepted=True, nic=nic) for nic in ("eth0", "net1"))
    merged = Explanation(considered=accepted).merged(Explanation(considered=(rejected("a", nic="net1"),)))
    assert [(v.nic, v.pool, v.accepted) for v in merged.considered] == [("eth0", "a", True), ("net1", "a", False)]
    assert str(merged).startswith("eth0 a: accepted; net1 a: rejected by full")
    assert merged.summary().splitlines()[0] == "eth0 a: accepted"
    assert str(Explanation(considered=accepted[1:])) == "a: accepted", "one NIC needs no name"


def test_explanation_survives_json_and_msgpack() -> None:
    explanation = Explanation(considered=(Verdict(pool="a", accepted=True), rejected("b")))
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(explanation), type=Explanation) == explanation


def test_defaults_are_not_written() -> None:
    assert encoded(SpiderIPPool(metadata=ObjectMeta(name="lan"), spec=IPPoolSpec(subnet="10.6.0.0/16"))) == {
        "metadata": {"name": "lan"},
        "spec": {"subnet": "10.6.0.0/16"},
        "status": {},
    }
