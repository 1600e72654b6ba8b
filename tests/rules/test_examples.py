"""The examples of the documents show every field and every word of every kind, and the rules admit them."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from admission.coordinator import CoordinatorRules
from admission.ippool import IPPoolRules
from admission.multusconfig import MultusConfigRules
from admission.reservedip import ReservedIPRules
from admission.review import Review
from admission.rulebook import Rulebook
from admission.subnet import SubnetRules
from api import crd
from api.crd import DEFINITIONS, Definition
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MANIFESTS = [document for path in sorted(EXAMPLES.iterdir()) for document in yaml.safe_load_all(path.read_text())]

every_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.kind.kind)


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that users write, or that there is to read of a kind without a spec."""
    while "items" in schema:
        schema = schema["items"]
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")


def said(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a manifest with its value."""
    if isinstance(value, list):
        for item in value:
            yield from said(item, path)
    elif isinstance(value, dict):
        for name, field in value.items():
            yield f"{path}.{name}", field
            yield from said(field, f"{path}.{name}")


def schema_of(definition: Definition) -> dict[str, Any]:
    schema: dict[str, Any] = crd.document(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = schema["properties"]
    name = "spec" if "spec" in parts else "status"
    return {"properties": {name: parts[name]}}


def unshown(definition: Definition, manifests: list[dict[str, Any]]) -> set[str]:
    """Fields that no manifest has."""
    shown = {path for manifest in manifests for path, _ in said(manifest)}
    return {path for path, _ in fields(schema_of(definition))} - shown


def of(definition: Definition) -> list[dict[str, Any]]:
    return [manifest for manifest in MANIFESTS if manifest["kind"] == definition.kind.kind]


@every_definition
def test_every_field_is_shown_and_none_that_is_not_there(definition: Definition) -> None:
    assert unshown(definition, of(definition)) == set()
    known = {path for path, _ in fields(schema_of(definition))}
    maps = tuple(path for path, field in fields(schema_of(definition)) if "additionalProperties" in field)
    for manifest in of(definition):
        shown = {path for path, _ in said({part: manifest[part] for part in ("spec", "status") if part in manifest})}
        assert {path for path in shown - known if not path.startswith(maps)} == set()


def test_negative_control_a_field_that_no_example_has_is_found() -> None:
    (definition,) = (each for each in DEFINITIONS if each.kind is MULTUSCONFIG)
    fewer = [manifest for manifest in of(definition) if manifest["spec"]["cniType"] != "ipoib"]
    assert ".spec.ipoib.master" in unshown(definition, fewer)


def test_every_word_is_shown() -> None:
    """Of a field that stands in several places, somewhere."""
    words: dict[str, set[object]] = defaultdict(set)
    shown: dict[str, set[object]] = defaultdict(set)
    for definition in DEFINITIONS:
        for path, field in fields(schema_of(definition)):
            words[path.rpartition(".")[2]] |= set(field.get("enum", ()))
        for manifest in of(definition):
            for path, value in said(manifest):
                if isinstance(value, int | str):
                    shown[path.rpartition(".")[2]].add(value)
    assert {name: rest for name in words if (rest := words[name] - shown[name])} == {}


def test_every_example_is_admitted_as_it_is_and_completed() -> None:
    book = Rulebook()
    book.add(IPPOOL, IPPoolRules())
    book.add(SUBNET, SubnetRules())
    book.add(RESERVEDIP, ReservedIPRules())
    book.add(COORDINATOR, CoordinatorRules())
    book.add(MULTUSCONFIG, MultusConfigRules())
    for manifest in MANIFESTS:
        if manifest["kind"] not in book.kinds:
            continue
        kind = book.kinds[manifest["kind"]]
        item = msgspec.convert(manifest, kind.type)
        judgement = book.judge(kind, Review("CREATE", item))
        assert judgement.errors == (), manifest["metadata"]["name"]
        assert book.judge(kind, Review("CREATE", book.complete(kind, Review("CREATE", item)))).errors == ()
