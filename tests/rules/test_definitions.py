"""Adopting a CustomResourceDefinition: ours holds, and nothing that the cluster has goes."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import crd
from api.definitions import Refusal, merge, properties
from api.kinds import ENDPOINT, IPPOOL

OURS = {definition.kind.plural: crd.document(definition) for definition in crd.DEFINITIONS}
POOL = OURS[IPPOOL.plural]
NAME = "spiderippools.spiderpool.spidernet.io"


def stored(document: dict[str, Any] = POOL) -> dict[str, Any]:
    """As an API server would have it."""
    copied = copy.deepcopy(document)
    copied["metadata"] |= {"resourceVersion": "7", "generation": 1}
    copied["spec"]["conversion"] = {"strategy": "None"}
    return copied


def schema(document: dict[str, Any], *path: str) -> dict[str, Any]:
    at: dict[str, Any] = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for key in path:
        at = at["items"] if key == "[]" else at["properties"][key]
    return at


def test_a_new_kind_is_ours() -> None:
    merged = merge(None, POOL)
    assert merged.document == POOL
    assert merged.added == merged.kept == ()


@pytest.mark.parametrize("plural", OURS)
def test_what_is_ours_already_stays_the_same(plural: str) -> None:
    merged = merge(stored(OURS[plural]), OURS[plural])
    assert merged.document["spec"] == OURS[plural]["spec"]
    assert merged.document["metadata"]["resourceVersion"] == "7"
    assert merged.added == merged.kept == ()


def test_fields_of_others_stay_and_ours_come() -> None:
    there = stored()
    schema(there, "spec")["properties"]["vlan"] = {"type": "integer", "minimum": 1}
    schema(there, "spec", "routes", "[]")["properties"]["metric"] = {"type": "integer"}
    del schema(there, "status")["properties"]["withheldIPs"]
    merged = merge(there, POOL)
    assert schema(merged.document, "spec", "vlan") == {"type": "integer", "minimum": 1}
    assert schema(merged.document, "spec", "routes", "[]", "metric") == {"type": "integer"}
    assert set(merged.kept) == {"v2beta1 spec.vlan", "v2beta1 spec.routes[].metric"}
    assert merged.added == ("v2beta1 status.withheldIPs",)


def test_our_limits_hold_and_no_enum_value_goes() -> None:
    there = stored()
    schema(there, "spec")["required"] = ["subnet", "gateway"]
    schema(there, "spec", "default")["default"] = True
    schema(there, "spec", "ipVersion")["enum"] = [4, 6, 46]
    schema(there, "spec", "subnet")["pattern"] = "^10"
    merged = merge(there, POOL).document
    assert schema(merged, "spec")["required"] == ["subnet"]
    assert schema(merged, "spec", "default")["default"] is False
    assert schema(merged, "spec", "ipVersion")["enum"] == [4, 6, 46]
    assert "pattern" not in schema(merged, "spec", "subnet")


def test_an_open_object_stays_open() -> None:
    there = stored()
    schema(there, "status")["x-kubernetes-preserve-unknown-fields"] = True
    merged = merge(there, POOL).document
    assert schema(merged, "status")["x-kubernetes-preserve-unknown-fields"] is True


def test_versions_and_names_of_others_stay() -> None:
    there = stored()
    newer = copy.deepcopy(there["spec"]["versions"][0])
    newer["name"] = "v2"
    there["spec"]["versions"][0]["storage"] = False
    there["spec"]["versions"].append(newer)
    there["spec"]["names"]["shortNames"] = ["pool"]
    merged = merge(there, POOL)
    versions = {version["name"]: version["storage"] for version in merged.document["spec"]["versions"]}
    assert versions == {"v2beta1": False, "v2": True}
    assert merged.document["spec"]["names"]["shortNames"] == ["sp", "pool"]
    assert merged.kept == ("version v2",)


def broken(change: Any) -> str:
    there = stored()
    change(there)
    with pytest.raises(Refusal) as refused:
        merge(there, POOL)
    text = str(refused.value)
    assert text.startswith(f"CustomResourceDefinition {NAME}: ")
    return text


def test_what_cannot_be_adopted_is_named() -> None:
    assert "spec.scope: found Namespaced, wanted Cluster" in broken(lambda d: d["spec"].update(scope="Namespaced"))
    assert "spec.names.kind: found Pool, wanted SpiderIPPool" in broken(
        lambda d: d["spec"]["names"].update(kind="Pool")
    )
    old = broken(lambda d: d["spec"]["versions"][0].update(name="v1"))
    assert "spec.versions: found v1, wanted v2beta1" in old
    typed = broken(lambda d: schema(d, "spec")["properties"].update(ips={"type": "string"}))
    assert "spec.versions[v2beta1] spec.ips: type: found string, wanted array" in typed
    dying = broken(lambda d: d["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))
    assert "it is being deleted" in dying
    mapped = {"type": "object", "additionalProperties": {"type": "string"}}
    both = broken(lambda d: schema(d)["properties"].update(status=mapped))
    assert "v2beta1] status: found a map of any keys, wanted fields by name" in both


def test_a_status_subresource_that_we_do_not_write_through_is_refused() -> None:
    there = stored(OURS[ENDPOINT.plural])
    there["spec"]["versions"][0]["subresources"] = {"status": {}}
    with pytest.raises(Refusal, match=r"subresources\.status: found there, wanted none"):
        merge(there, OURS[ENDPOINT.plural])


names = st.sampled_from(["a", "b", "c", "status", "ips"])
leaves = st.sampled_from([{"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "boolean", "default": False}])
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda found: {"type": "object", "properties": found}, st.dictionaries(names, inner, max_size=4)),
        st.builds(lambda found: {"type": "array", "items": found}, inner),
        st.builds(lambda found: {"type": "object", "additionalProperties": found}, inner),
    ),
    max_leaves=12,
)
objects = st.builds(lambda found: {"type": "object", "properties": found}, st.dictionaries(names, schemas, max_size=5))


def definition(found: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(POOL)
    made["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = found
    return made


@given(objects, objects)
def test_no_property_of_either_is_lost_and_a_second_time_changes_nothing(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    there, ours = stored(definition(one)), definition(other)
    try:
        merged = merge(there, ours)
    except Refusal:
        return
    both = set(properties(there)) | set(properties(ours))
    assert set(properties(merged.document)) == both
    again = merge(stored(merged.document), ours)
    assert again.document["spec"] == merged.document["spec"]
    assert again.added == ()
