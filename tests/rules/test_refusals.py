"""Every rule of admission has a manifest that it refuses, and says what the catalogue of them says."""

import ast
import base64
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
import pytest

import admission
from admission import errors
from admission.coordinator import CoordinatorRules
from admission.exchange import MUTATE, VALIDATE, answer
from admission.ippool import IPPoolRules
from admission.multusconfig import MultusConfigRules, Others
from admission.reservedip import ReservedIPRules
from admission.rulebook import Rulebook
from admission.subnet import PoolInSubnetRules, SubnetRules
from api.annotations import MULTUS_NETWORKS
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, NETWORKATTACHMENT, RESERVEDIP, SUBNET, Kind
from ipam.overlap import Atlas
from tests.rules import test_admission_injection as injection
from tests.rules.refusals import REFUSALS, Manifest, Refusal, pool

MAKERS: Final = ("required", "forbidden", "unsupported", "duplicate", "invalid", "FieldError")
MODULES: Final = [
    importlib.import_module(f"admission.{found.name}")
    for found in pkgutil.iter_modules(admission.__path__)
    if found.name != "errors"
]

type Place = tuple[str, int, int]
"""Module, first and last line of the call that makes an error: of a rule, or of the words that it says."""


def rulebook(refusal: Refusal) -> Rulebook:
    """The rules, where there is what there is."""
    there = (*refusal.there, *([refusal.before] if refusal.before is not None else []))

    def of[T](kind: Kind[T]) -> list[T]:
        return [msgspec.convert(one, kind.type) for one in there if one["kind"] == kind.kind]

    families = [version for version in (4, 6) if version not in refusal.off]
    atlas = Atlas()
    atlas.learn(of(IPPOOL))
    subnets, pools, configs, definitions = of(SUBNET), of(IPPOOL), of(MULTUSCONFIG), of(NETWORKATTACHMENT)
    known = {(one.metadata.namespace, one.metadata.name): one for one in definitions}
    others = Others(configs=lambda: configs, attachment=lambda namespace, name: known.get((namespace, name)))
    guard = refusal.guarded
    book = Rulebook()
    book.add(IPPOOL, IPPoolRules(lambda: atlas, families=families, guard_deletion=guard))
    book.add(IPPOOL, PoolInSubnetRules(lambda: subnets))
    book.add(SUBNET, SubnetRules(lambda: subnets, lambda: pools, families=families, guard_deletion=guard))
    book.add(RESERVEDIP, ReservedIPRules(families=families))
    book.add(COORDINATOR, CoordinatorRules())
    book.add(MULTUSCONFIG, MultusConfigRules(others))
    return book


def asked(refusal: Refusal) -> list[str]:
    """What is said to the API server: of the manifest as it has been completed."""
    book = rulebook(refusal)
    kind = book.kinds[refusal.new["kind"]]
    operation = "DELETE" if refusal.delete else "CREATE" if refusal.before is None else "UPDATE"
    old = refusal.new if refusal.delete else refusal.before

    def review(way: str, new: Manifest | None) -> dict[str, Any]:
        request = {
            "uid": "u",
            "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
            "operation": operation,
            "name": refusal.new["metadata"]["name"],
            "namespace": refusal.new["metadata"].get("namespace", ""),
            "object": new,
            "oldObject": old,
        }
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        response: dict[str, Any] = json.loads(answer(book, way, kind, json.dumps(body).encode()).body)["response"]
        return response

    if refusal.delete:
        response = review(VALIDATE, None)
    else:
        completed = review(MUTATE, refusal.new)
        steps = json.loads(base64.b64decode(completed.get("patch", base64.b64encode(b"[]"))))
        response = review(VALIDATE, patched(refusal.new, steps))
    if response["allowed"]:
        return []
    return [f"{cause['field']}: {cause['message']}" for cause in response["status"]["details"]["causes"]]


def patched(document: Manifest, steps: Iterable[dict[str, Any]]) -> Manifest:
    """As the API server applies it; the rules only add and remove members."""
    done: Manifest = json.loads(json.dumps(document))
    for step in steps:
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        at = done
        for part in way:
            at = at[part]
        if step["op"] == "remove":
            del at[last]
        else:
            at[last] = step["value"]
    return done


def places() -> set[Place]:
    """Every call that makes an error."""
    found = set()
    for module in MODULES:
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
                assert node.end_lineno is not None
                found.add((module.__name__, node.lineno, node.end_lineno))
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """Module and line of each call that has made an error."""
    lines: set[tuple[str, int]] = set()

    def recording(module: ModuleType, name: str) -> Any:
        maker = getattr(errors, name)

        def make(*arguments: Any, **named: Any) -> Any:
            lines.add((module.__name__, sys._getframe(1).f_lineno))
            return maker(*arguments, **named)

        return make

    for module in MODULES:
        for name in MAKERS:
            if hasattr(module, name) and name != "FieldError":
                monkeypatch.setattr(module, name, recording(module, name))
    return lines


def unasked(refusals: Iterable[Refusal], made: set[tuple[str, int]]) -> list[Place]:
    """Rules that refuse none of these."""
    made.clear()
    for refusal in refusals:
        asked(refusal)
    return sorted(place for place in places() if not hit(place, made))


def hit(place: Place, made: set[tuple[str, int]]) -> bool:
    module, first, last = place
    return any((module, line) in made for line in range(first, last + 1))


@pytest.mark.parametrize("refusal", REFUSALS, ids=[refusal.name[:80] for refusal in REFUSALS])
def test_what_is_said(refusal: Refusal) -> None:
    found = asked(refusal)
    assert len(found) == len(refusal.said), found
    for text, beginning in zip(found, refusal.said, strict=True):
        assert text.startswith(beginning), text


def test_every_rule_refuses_something(made: set[tuple[str, int]]) -> None:
    misshapen = Refusal(name="no list", new=pool(ips=5), said=("spec.ips: ",))
    left = unasked([*REFUSALS, misshapen], made)
    made.clear()  # pods are asked otherwise
    word = injection.RDMA
    for notes, of_namespace in ((word, {}), ({}, word), (word | {MULTUS_NETWORKS: "[{"}, {})):
        injection.given_to(injection.pod(notes), notes=of_namespace)
    assert [
        place for place in left if not any((place[0], line) in made for line in range(place[1], place[2] + 1))
    ] == []


def test_negative_control_a_rule_that_nothing_is_refused_by_is_found(made: set[tuple[str, int]]) -> None:
    of_networks = [refusal for refusal in REFUSALS if refusal.new["kind"] == MULTUSCONFIG.kind]
    assert {place[0] for place in unasked(of_networks, made)} >= {"admission.ippool", "admission.subnet"}
    bare = [refusal for refusal in REFUSALS if "is renamed" not in refusal.name]
    (place,) = (one for one in unasked(bare, made) if one[0] == "admission.multusconfig")
    text = Path(admission.__path__[0], "multusconfig.py").read_text().splitlines()[place[1] - 1]
    assert "can be removed but not changed" in text
