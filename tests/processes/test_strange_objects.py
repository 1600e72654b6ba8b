"""Whatever is written to a cluster: the API server stores it or says why not, and what it stores nobody stumbles over.

By a real API server that asks a real controller, which has all kinds, and whose actors live by what is stored.
"""

import contextlib
import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from actors.webhooks.server import path
from admission.exchange import MUTATE, VALIDATE
from api.kinds import ENDPOINT, IPPOOL, MULTUSCONFIG, SUBNET
from tests.processes.lab import Lab
from tests.processes.webhooks import POOL_TYPE
from tests.rules.strange import KINDS, Document, documents, reader
from tests.rules.test_strange_objects import body
from tests.servers.control_plane import Answer

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

NAMES: Final = st.sampled_from(["strange", "stranger"])
REFUSED: Final = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    # Who is being deleted may have changed, or have gone, before it is written.
    HTTPStatus.CONFLICT,
    HTTPStatus.NOT_FOUND,
}
EXAMPLES: Final = 150
"""Of the stories; each writes up to eight objects, by two or three requests."""


@pytest.fixture(scope="module")
def lab(all_kinds: Lab) -> Lab:
    all_kinds.control_plane.create_namespace("strange")
    return all_kinds


steps = st.lists(
    st.sampled_from(sorted(KINDS)).flatmap(lambda kind: documents(kind, NAMES, namespace="strange"))
    | st.tuples(st.sampled_from(sorted(KINDS)), NAMES),
    min_size=4,
    max_size=8,
)
"""Objects to write; kind and name of one that is to be deleted."""


class Author:
    """Writes what it is told to, and looks at what is stored of it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.stored = self.refused = 0

    def write(self, document: Document) -> None:
        """Create the object, or put it in the place of the one that is there."""
        kind = KINDS[document["kind"]]
        place = kind.path("strange" if kind.namespaced else "")
        answer = self._request("POST", place, document)
        if answer.status == HTTPStatus.CONFLICT:
            own = f"{place}/{document['metadata']['name']}"
            there = self._request("GET", own)
            if there.status == HTTPStatus.OK:
                version = there.body["metadata"]["resourceVersion"]
                meta = {**document["metadata"], "resourceVersion": version}
                answer = self._request("PUT", own, {**document, "metadata": meta})
        if answer.status in {HTTPStatus.OK, HTTPStatus.CREATED}:
            self.stored += 1
            if "deletionTimestamp" not in answer.body["metadata"]:
                reader(document["kind"])(json.dumps(answer.body).encode())
        else:
            self.refused += 1
            assert answer.status in REFUSED, answer

    def delete(self, kind: str, name: str) -> None:
        """Delete an object that may be there."""
        of = KINDS[kind]
        self._request("DELETE", of.path("strange" if of.namespaced else "", name))

    def gone(self) -> bool:
        """Delete all there is; whether nothing is left."""
        left = False
        for kind in KINDS.values():
            place = kind.path("strange" if kind.namespaced else "")
            for item in self._request("GET", place).body["items"]:
                left = True
                self._request("DELETE", f"{place}/{item['metadata']['name']}")
        return not left

    def _request(self, method: str, where: str, what: Any = None) -> Answer:
        answer = self._lab.control_plane.request(method, where, what, check=False)
        assert answer.status < HTTPStatus.INTERNAL_SERVER_ERROR, (method, where, what, answer)
        assert "failed calling webhook" not in str(answer.body), answer
        return answer


def restarts(lab: Lab) -> dict[str, float]:
    """Actors of the controller that have failed, and kinds whose objects could not be followed."""
    url = f"http://127.0.0.1:{lab.metric_ports['controller']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        f"{sample.name} {sample.labels}": sample.value
        for family in families
        for sample in family.samples
        if (sample.name == "spiderpool_actor_restarts_total")
        or (
            sample.name == "spiderpool_store_watch_restarts_total"
            and sample.labels["reason"] == "error"
            and sample.labels["resource"] in {kind.plural for kind in KINDS.values()}
        )
    }


def complaints(lab: Lab) -> list[str]:
    """Lines of the programs' logs that no object may cause."""
    found = []
    for process in lab.processes.values():
        # A line ends where a JSON text cannot: values in it may have other characters that end lines for Python.
        for line in filter(None, process.log.read_text(errors="replace").split("\n")):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record["level"] not in {"error", "fatal"} and "stack" not in record:
                    continue
            found.append(f"{process.name}: {line}")
    return found


def test_whatever_is_written_nobody_stumbles(lab: Lab) -> None:
    author = Author(lab)
    pids = {process.name: process.pid for process in lab.processes.values()}
    before = restarts(lab)

    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(steps)
    def story(steps: list[Document | tuple[str, str]]) -> None:
        for step in steps:
            if isinstance(step, tuple):
                author.delete(*step)
            else:
                author.write(step)

    story()
    lab.wait_for(author.gone)
    assert author.stored > EXAMPLES, "too little was admitted to prove anything"
    assert author.refused > EXAMPLES
    assert complaints(lab) == []
    assert restarts(lab) == before
    assert {process.name: process.pid for process in lab.processes.values() if process.alive} == pids
    _still_work(lab)


def _still_work(lab: Lab) -> None:
    """Those who keep the kinds do it."""
    subnet = {**POOL_TYPE, "kind": SUBNET.kind, "metadata": {"name": "sound"}, "spec": {"subnet": "10.61.0.0/24"}}
    network = {
        **POOL_TYPE,
        "kind": MULTUSCONFIG.kind,
        "metadata": {"name": "sound"},
        "spec": {"cniType": "macvlan", "macvlan": {"master": ["eth0"]}},
    }
    made = "/apis/k8s.cni.cncf.io/v1/namespaces/strange/network-attachment-definitions/sound"
    plane = lab.control_plane
    plane.request("POST", SUBNET.path(), subnet)
    plane.request("POST", MULTUSCONFIG.path("strange"), network)
    lab.wait_for(lambda: plane.request("GET", SUBNET.path(name="sound")).body.get("status", {}).get("conditions"))
    lab.wait_for(lambda: plane.request("GET", made, check=False).status == HTTPStatus.OK)
    plane.request("DELETE", SUBNET.path(name="sound"))
    plane.request("DELETE", MULTUSCONFIG.path("strange", "sound"))


def test_negative_control_what_an_actor_would_stumble_over_is_noticed(lab: Lab) -> None:
    """As it would be stored without the webhooks."""
    document = {**POOL_TYPE, "metadata": {"name": "unseen"}, "spec": {"subnet": "10.60.0.0/24", "ips": ["x"]}}
    with lab.admission.unseen():
        answer = lab.control_plane.request("POST", f"{IPPOOL.path()}?dryRun=All", document)
    with pytest.raises(Exception, match=r"spec\.ips"):
        reader(IPPOOL.kind)(json.dumps(answer.body).encode())


# -- bodies that no API server sends


@pytest.fixture(scope="module")
def connection(lab: Lab) -> Iterator[http.client.HTTPSConnection]:
    """To the controller's webhooks, as the API server has it."""
    context = ssl.create_default_context(cafile=str(lab.control_plane.ca_file))
    context.check_hostname = False
    port = lab.webhook_ports["controller"]
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)) as made:
        yield made


ASKED: Final = sorted(kind.kind for kind in KINDS.values() if kind is not ENDPOINT)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def bodies(draw: st.DrawFn, kind: str) -> bytes:
    """Bytes, JSON, a review, of another kind or with something else in some place of it."""
    kind = draw(st.just(kind) | st.just(kind) | st.sampled_from(sorted(KINDS)))
    whole = body(kind, draw(documents(kind, NAMES)), None, "CREATE")
    match draw(st.sampled_from(["bytes", "json", "deep", "cut", "whole", "part"])):
        case "bytes":
            return draw(st.binary(max_size=200))
        case "json":
            return json.dumps(draw(JSON)).encode()
        case "deep":
            return b'{"request":' * draw(st.sampled_from([10, 5000])) + b"1"
        case "cut":
            at = draw(st.integers(0, len(whole)))
            return whole[:at] + draw(st.binary(max_size=4)) + whole[at + draw(st.integers(0, 4)) :]
        case "part":
            review = json.loads(whole)
            at = draw(st.sampled_from([review, review["request"], review["request"]["kind"]]))
            at[draw(st.sampled_from(sorted(at)))] = draw(JSON)
            return json.dumps(review).encode()
        case _:
            return whole


def test_whatever_is_sent_to_the_webhooks_is_answered(lab: Lab, connection: http.client.HTTPSConnection) -> None:
    seen: set[int] = set()

    def send(where: str, sent: bytes) -> tuple[int, bytes]:
        connection.request("POST", where, sent)
        response = connection.getresponse()
        return response.status, response.read()

    @settings(max_examples=150, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(ASKED), st.sampled_from([MUTATE, VALIDATE]), st.data())
    def story(kind: str, way: str, data: st.DataObject) -> None:
        where, sent = path(way, KINDS[kind]), data.draw(bodies(kind))
        status, answer = send(where, sent)
        seen.add(status)
        assert status in {HTTPStatus.OK, HTTPStatus.BAD_REQUEST}, (where, sent, answer)
        assert status != HTTPStatus.OK or "allowed" in json.loads(answer)["response"]

    story()
    assert seen == {HTTPStatus.OK, HTTPStatus.BAD_REQUEST}
    where = path(MUTATE, IPPOOL)
    assert send(where, b" " * (8 << 20))[0] == HTTPStatus.BAD_REQUEST
    assert send("/mutate-nothing", b"{}")[0] == HTTPStatus.NOT_FOUND
    connection.close()  # what is too long is not read
    with contextlib.suppress(ConnectionError):
        assert send(where, b" " * (9 << 20))[0] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    connection.close()
    assert complaints(lab) == []
