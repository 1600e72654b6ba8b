"""The kinds as users of kubectl have them: what it explains, what can be waited for, the examples of the documents."""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api import crd
from api.crd import DEFINITIONS, Definition
from api.kinds import NETWORKATTACHMENT
from tests.cases.refusals import causes
from tests.processes.lab import Lab
from tests.rules.refusals import NAMESPACE, REFUSALS, Manifest, Refusal
from tests.rules.test_examples import EXAMPLES
from tests.servers import CommandFailed, ControlPlane
from tests.servers.control_plane import Answer

KINDS = {kind.kind: kind for kind in (*(definition.kind for definition in DEFINITIONS), NETWORKATTACHMENT)}
NOT_FOUND = 404
pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

BARE = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "bares.test.spidernet.io"},
    "spec": {
        "group": "test.spidernet.io",
        "names": {"kind": "Bare", "plural": "bares"},
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "description": "Said.", "properties": {"a": {"type": "string"}}}
                        },
                    }
                },
            }
        ],
    },
}
_FIELD = re.compile(r"^  (\w+)\t<", re.MULTILINE)


def objects(schema: dict[str, Any], path: str) -> Iterator[tuple[str, set[str]]]:
    """Every object of a schema, at any depth, as `kubectl explain` calls it, with its fields."""
    while "items" in schema:
        schema = schema["items"]
    fields: dict[str, Any] = schema.get("properties", {})
    if fields:
        yield path, set(fields)
    for name, field in fields.items():
        yield from objects(field, f"{path}.{name}")


def explained(control_plane: ControlPlane, path: str) -> tuple[set[str], bool]:
    """The fields that `kubectl explain` lists, and whether it has words for all of them and for what has them."""
    text = control_plane.kubectl("explain", path)
    listed = text.partition("\nFIELDS:\n")[2]
    return set(_FIELD.findall(listed)), "<no description>" not in text and "<empty>" not in text


@pytest.fixture(scope="module")
def lab(all_kinds: Lab) -> Lab:
    return all_kinds


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.kind.kind)
def test_kubectl_explains_every_field(control_plane: ControlPlane, definition: Definition) -> None:
    schema = crd.document(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, fields in objects(schema, definition.kind.plural):
        assert explained(control_plane, path) == (fields, True), path


def test_negative_control_kubectl_says_that_a_field_has_no_words(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(BARE))
    found: tuple[set[str], bool] | None = None
    deadline = time.monotonic() + 30
    try:
        while found is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(CommandFailed):  # it is not published yet
                found = explained(control_plane, "bares.spec")
        assert found == ({"a"}, False)
    finally:
        control_plane.kubectl("delete", "crd", BARE["metadata"]["name"])  # type: ignore[index]


# -- with a controller


def wait(lab: Lab, name: str, condition: str, *, seconds: int = 30) -> None:
    """Raises `CommandFailed` when it has not become so."""
    lab.control_plane.kubectl("wait", f"--for=condition={condition}", f"--timeout={seconds}s", name)


def apply(lab: Lab, kind: str, name: str, **spec: Any) -> str:
    body = {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    lab.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    return f"{kind.lower()}/{name}"


def test_a_coordinator_can_be_waited_for(lab: Lab) -> None:
    name = apply(lab, "SpiderCoordinator", "waited", podCIDRType="none")
    wait(lab, name, "Synced")
    apply(lab, "SpiderCoordinator", "waited", podCIDRType="calico")
    wait(lab, name, "Synced=False")
    with pytest.raises(CommandFailed, match="timed out"):
        wait(lab, name, "Synced", seconds=1)
    apply(lab, "SpiderCoordinator", "waited", podCIDRType="none", txQueueLen=1000)
    wait(lab, name, "Synced")
    lab.control_plane.kubectl("delete", name)


def test_a_subnet_can_be_waited_for(lab: Lab) -> None:
    name = apply(lab, "SpiderSubnet", "waited", subnet="10.66.0.0/24", ips=["10.66.0.10-10.66.0.20"])
    wait(lab, name, "Ready")
    apply(lab, "SpiderSubnet", "waited", subnet="10.66.0.0/24", ips=["10.66.0.10-10.66.0.20"], gateway="10.66.0.1")
    wait(lab, name, "Ready")
    lab.control_plane.kubectl("delete", name)


def test_the_examples_of_the_documents_can_be_applied_as_they_are(lab: Lab) -> None:
    """And again, which changes nothing that they say; then they go."""

    def kubectl(*arguments: str) -> str:
        return lab.control_plane.kubectl(*arguments, "--namespace", lab.namespace, "-f", str(EXAMPLES))

    def stored() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(kubectl("get", "-o", "json"))["items"]
        return [{"name": item["metadata"]["name"], "spec": item.get("spec")} for item in items]

    said = kubectl("apply").splitlines()
    assert {line.rpartition(" ")[2] for line in said} == {"created"}
    before = stored()
    assert len(before) == len(said)
    kubectl("apply")
    assert stored() == before
    kubectl("delete", "--wait", "--timeout=30s")


# -- what is refused


def path_of(document: Manifest) -> str:
    """Of an object's kind, where it lives."""
    meta, kind = document["metadata"], KINDS[document["kind"]]
    return kind.path(meta.get("namespace", ""))


class Cluster:
    """The objects that are there while one manifest is tried."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._made: list[str] = []

    def make(self, document: Manifest) -> None:
        """Have it stored, with its status; one that is being deleted is held."""
        meta = {key: value for key, value in document["metadata"].items() if key != "deletionTimestamp"}
        path = f"{path_of(document)}/{meta['name']}"
        self._control_plane.request("POST", path_of(document), {**document, "metadata": meta})
        self._made.append(path)
        if "status" in document:
            self._control_plane.request("PATCH", f"{path}/status", {"status": document["status"]})
        if meta is not document["metadata"] and "deletionTimestamp" in document["metadata"]:
            self._control_plane.request("DELETE", path)

    def try_it(self, refusal: Refusal) -> Answer:
        """What the API server answers; it stores nothing."""
        path = path_of(refusal.new)
        own = f"{path}/{refusal.new['metadata']['name']}"
        if refusal.delete:
            return self._request("DELETE", f"{own}?dryRun=All")
        if refusal.before is None:
            return self._request("POST", f"{path}?dryRun=All", refusal.new)
        change = {"metadata": {"annotations": refusal.new["metadata"].get("annotations")}, "spec": refusal.new["spec"]}
        return self._request("PATCH", f"{own}?dryRun=All", change)

    def clear(self) -> None:
        """All goes, whatever it waits for."""
        empty = {"status": {"allocatedIPs": None, "allocatedIPCount": None}}
        deadline = time.monotonic() + 30
        while left := [path for path in self._made if self._request("GET", path).status != NOT_FOUND]:
            assert time.monotonic() < deadline, left
            for path in reversed(left):
                self._request("PATCH", f"{path}/status", empty)
                self._request("DELETE", path)
                self._request("PATCH", path, {"metadata": {"finalizers": None}})
        # Nobody collects here what an object has made.
        self._request("DELETE", NETWORKATTACHMENT.path(NAMESPACE))

    def _request(self, method: str, path: str, body: Any = None) -> Answer:
        return self._control_plane.request(method, path, body, check=False)


def mismatch(refusal: Refusal, answer: Answer) -> str:
    """Why an answer is not what the catalogue says; empty when it is."""
    found = causes(answer)
    wanted = refusal.by_schema or refusal.said
    good = len(found) == len(wanted) and all(a.startswith(b) for a, b in zip(found, wanted, strict=True))
    return "" if good else f"{refusal.name}: {answer.status} {found}"


def tried(lab: Lab, refusal: Refusal) -> str:
    """Try one; what the controller sees by a watch may be a moment late."""
    cluster = Cluster(lab.control_plane)
    try:
        for document in (*refusal.there, *([refusal.before] if refusal.before is not None else [])):
            cluster.make(document)
        if refusal.delete:
            cluster.make(refusal.new)
        deadline = time.monotonic() + (5 if refusal.there or refusal.before else 0)
        while (wrong := mismatch(refusal, cluster.try_it(refusal))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return wrong
    finally:
        cluster.clear()


def switches(refusal: Refusal) -> dict[str, Any]:
    """The controller's settings by which it is refused."""
    return {
        **{f"enableIPv{version}": False for version in refusal.off},
        **({"enableValidatingResourcesDeletedWebhook": True} if refusal.guarded else {}),
    }


def test_the_api_server_says_what_the_rules_say(lab: Lab) -> None:
    lab.control_plane.create_namespace(NAMESPACE)
    wrong: list[str] = []
    for config in ({}, {"enableIPv6": False}, {"enableValidatingResourcesDeletedWebhook": True}):
        if config != lab.controller_config:
            lab.controller_config = config
            lab.processes["controller"].stop()
            lab.start_controller()
            lab.admission.wait()
        wrong += [said for refusal in REFUSALS if switches(refusal) == config and (said := tried(lab, refusal))]
    assert not wrong, "\n".join(wrong)
