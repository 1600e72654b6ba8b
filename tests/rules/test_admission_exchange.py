"""AdmissionReview from bytes to bytes: every body has an answer, and a patch touches what it is about."""

import base64
import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.exchange import MUTATE, VALIDATE, NoReview, answer
from admission.ippool import IPPoolRules
from admission.patch import patch
from admission.reservedip import ReservedIPRules
from admission.review import Review
from admission.rulebook import Rulebook
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL, RESERVEDIP

BOOK = Rulebook()
BOOK.add(IPPOOL, IPPoolRules())
BOOK.add(RESERVEDIP, ReservedIPRules())

POOL = {
    "apiVersion": "spiderpool.spidernet.io/v2beta1",
    "kind": "SpiderIPPool",
    "metadata": {"name": "lan", "managedFields": [{"manager": "kubectl"}]},
    "spec": {"subnet": "10.6.0.0/16", "ips": ["10.6.0.2", "10.6.0.1"], "newField": {"a": [1]}},
}


def review(item: Any, *, operation: str = "CREATE", old: Any = None, **changed: Any) -> bytes:
    kind = {"group": "spiderpool.spidernet.io", "version": "v2beta1", "kind": "SpiderIPPool"}
    request = {"uid": "u1", "kind": kind, "operation": operation, "name": "lan", "object": item, "oldObject": old}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**request, **changed}}
    return json.dumps(body).encode()


def applied(document: Any, steps: list[dict[str, Any]]) -> Any:
    """RFC 6902, as far as it is used, word for word: a parent has to be there, and so has what is removed."""
    result = copy.deepcopy(document)
    for step in steps:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        place = result
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        assert isinstance(place, dict)
        if step["op"] == "remove":
            del place[last]
        else:
            assert step["op"] == "add"
            place[last] = step["value"]
    return result


def test_an_object_is_completed_and_keeps_what_is_unknown() -> None:
    response = json.loads(answer(BOOK, MUTATE, IPPOOL, review(POOL)).body)["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("u1", True, "JSONPatch")
    whole = applied(POOL, json.loads(base64.b64decode(response["patch"])))
    assert whole["spec"] == {
        "subnet": "10.6.0.0/16", "ips": ["10.6.0.1-10.6.0.2"], "ipVersion": 4, "newField": {"a": [1]},
    }  # fmt: skip
    assert whole["metadata"]["managedFields"] == [{"manager": "kubectl"}]
    again = json.loads(answer(BOOK, MUTATE, IPPOOL, review(whole)).body)["response"]
    assert again == {"uid": "u1", "allowed": True}


def test_a_refusal_says_fields_for_people_and_for_programs() -> None:
    wrong = {**POOL, "spec": {"subnet": "10.6.0.0/16", "ips": ["x"], "gateway": "y"}}
    outcome = answer(BOOK, VALIDATE, IPPOOL, review(wrong))
    status = json.loads(outcome.body)["response"]["status"]
    assert (outcome.word, status["code"], status["reason"], status["status"]) == ("refused", 422, "Invalid", "Failure")
    assert status["message"].startswith('SpiderIPPool.spiderpool.spidernet.io "lan" is invalid: [spec.ips[0]: Invalid')
    assert status["details"] == {
        "name": "lan",
        "group": "spiderpool.spidernet.io",
        "kind": "SpiderIPPool",
        "causes": [
            {"reason": "FieldValueInvalid", "message": "Invalid value: \"x\": 'x' is not an IP address",
             "field": "spec.ips[0]"},
            {"reason": "FieldValueInvalid", "message": 'Invalid value: "y": is not an IP address',
             "field": "spec.gateway"},
        ],
    }  # fmt: skip


def test_what_has_not_the_kind_s_shape_is_left_to_the_schema_and_refused_behind_it() -> None:
    shapeless = {**POOL, "spec": {"subnet": 7}}
    assert json.loads(answer(BOOK, MUTATE, IPPOOL, review(shapeless)).body)["response"] == {
        "uid": "u1",
        "allowed": True,
    }
    outcome = answer(BOOK, VALIDATE, IPPOOL, review(shapeless))
    assert (outcome.word, [error.field for error in outcome.errors]) == ("malformed", ["spec.subnet"])


def test_a_deletion_is_about_the_object_as_it_is() -> None:
    book = Rulebook()
    book.add(IPPOOL, IPPoolRules(guard_deletion=True))
    used = {**POOL, "status": {"allocatedIPCount": 1, "allocatedIPs": "{}"}}
    assert answer(book, VALIDATE, IPPOOL, review(None, operation="DELETE", old=used)).word == "refused"
    assert answer(book, VALIDATE, IPPOOL, review(None, operation="DELETE", old=POOL)).word == "admitted"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        review(POOL).replace(b"admission.k8s.io/v1", b"admission.k8s.io/v1beta1"),
        review(POOL).replace(b"AdmissionReview", b"SubjectAccessReview"),
        review(POOL, operation="EXPLODE"),
        review(POOL, uid=None),
        review(POOL).replace(b"[1]", b"[" * 50_000 + b"]" * 50_000),
        review(POOL, kind={"group": "", "version": "v1", "kind": "Pod"}),
    ],
)
def test_what_is_no_review_of_the_kind_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(NoReview):
        answer(BOOK, VALIDATE, IPPOOL, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["spec", "metadata", "labels", "ips", "subnet", "name", "finalizers", "status", "routes"]),
        inner,
        max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    json_values,
    json_values,
    st.sampled_from(["CREATE", "UPDATE", "DELETE"]),
    st.sampled_from([MUTATE, VALIDATE]),
    st.integers(0, 400),
)
def test_any_body_has_an_answer(item: Any, old: Any, operation: str, way: str, cut: int) -> None:
    whole = review(item, operation=operation, old=old)
    for body in (whole, whole[:cut], whole[cut:], json.dumps(item).encode()):
        try:
            outcome = answer(BOOK, way, IPPOOL, body)
        except NoReview:
            continue
        response = json.loads(outcome.body)["response"]
        assert response["uid"] == "u1"
        assert response["allowed"] == (not outcome.errors)


keys = st.sampled_from(["a", "b", "c/d", "e~f"])
plain = st.recursive(
    st.sampled_from([0, 1, "x"]) | st.lists(st.integers(0, 1), max_size=2),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3) | st.lists(st.dictionaries(keys, inner, max_size=2), max_size=2)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(["a", "b", "c/d", "e~f"]), plain, max_size=3)


@given(objects, objects, objects)
def test_a_patch_makes_one_object_of_the_other_and_keeps_the_rest(before: Any, after: Any, unknown: Any) -> None:
    document = {**before, "unknown": unknown, "empty": {}}
    result = applied(document, patch(document, before, after))
    assert result == {**after, "unknown": unknown, "empty": {}}


def test_objects_of_a_list_keep_what_is_unknown() -> None:
    document = {"list": [{"a": 1, "unknown": 1}, {"b": {}, "unknown": 2}]}
    before, after = {"list": [{"a": 1}, {}]}, {"list": [{"a": 2}, {"b": {"c": 1}}]}
    result = applied(document, patch(document, before, after))
    assert result == {"list": [{"a": 2, "unknown": 1}, {"b": {"c": 1}, "unknown": 2}]}
    assert patch(document, before, {"list": [{"a": 1}]}) == [{"op": "add", "path": "/list", "value": [{"a": 1}]}]


@pytest.mark.parametrize("meta", [{}, {"labels": {}}, {"labels": {"a": "b"}, "finalizers": ["x"]}])
def test_what_is_there_and_empty_is_filled_and_not_replaced(meta: dict[str, Any]) -> None:
    document = {**POOL, "metadata": {**meta, "generateName": "p-"}}
    before = msgspec.convert(document, SpiderIPPool)
    after = IPPoolRules().complete(Review("CREATE", before))
    result = applied(document, patch(document, msgspec.to_builtins(before), msgspec.to_builtins(after)))
    assert msgspec.convert(result, SpiderIPPool) == after
    assert result["metadata"]["generateName"] == "p-"
