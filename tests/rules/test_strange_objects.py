"""No object makes a rule of admission raise, and what the rules admit is of use to all who read it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.exchange import MUTATE, VALIDATE, answer
from admission.review import Review
from tests.rules.refusals import Refusal, pool, subnet
from tests.rules.strange import KINDS, Document, digest, documents
from tests.rules.test_refusals import rulebook

BOOK = rulebook(Refusal(name="", new={}, said=(), there=(pool("other"), subnet("lan"))))
NAMES = st.just("strange")


def body(kind: str, new: Any, old: Any, operation: str) -> bytes:
    """As the API server asks."""
    of = KINDS[kind]
    request = {
        "uid": "u",
        "kind": {"group": of.group, "version": of.version, "kind": kind},
        "operation": operation,
        "name": "strange",
        "object": new,
        "oldObject": old,
    }
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return json.dumps(review).encode()


@pytest.mark.parametrize("kind", sorted(BOOK.kinds))
@settings(max_examples=150)
@given(st.data())
def test_whatever_is_asked_is_answered(kind: str, data: st.DataObject) -> None:
    new: Document = data.draw(documents(kind, NAMES))
    old: Document | None = data.draw(st.none() | documents(kind, NAMES))
    operation = "CREATE" if old is None else data.draw(st.sampled_from(["UPDATE", "DELETE"]))
    for way in (MUTATE, VALIDATE):
        outcome = answer(BOOK, way, BOOK.kinds[kind], body(kind, new, old, operation))
        assert msgspec.json.decode(outcome.body)["response"]["uid"] == "u"


@pytest.mark.parametrize("kind", sorted(BOOK.kinds))
@settings(max_examples=300)
@given(st.data())
def test_what_is_admitted_is_of_use(kind: str, data: st.DataObject) -> None:
    of = BOOK.kinds[kind]
    try:
        item = msgspec.convert(data.draw(documents(kind, NAMES)), of.type)
    except msgspec.ValidationError:
        return
    completed = BOOK.complete(of, Review("CREATE", item))
    assert BOOK.complete(of, Review("CREATE", completed)) == completed
    if not BOOK.judge(of, Review("CREATE", completed)).errors:
        digest(completed)
