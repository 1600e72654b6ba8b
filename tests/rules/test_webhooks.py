"""The webhook server over TLS, whatever is sent to it; and the API server's trust, which follows the certificate."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from actors.webhooks.bundle import LOOK_SECONDS, BundleActor, trusting
from actors.webhooks.server import HEALTH, path, serve
from admission.exchange import MUTATE, VALIDATE
from admission.ippool import IPPoolRules
from admission.rulebook import Rulebook
from api.extensions import MutatingWebhookConfiguration, ValidatingWebhookConfiguration
from api.kinds import IPPOOL, MUTATINGWEBHOOK, VALIDATINGWEBHOOK
from api.meta import ObjectMeta
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from telemetry import traces
from telemetry.health import HealthTree, State
from tests.rules.test_admission_exchange import POOL, review
from tests.servers.certificates import CertificateAuthority
from tests.servers.process import free_port

NAME = "spiderpool-controller"
HOST = f"{NAME}.kube-system.svc"


class Served:
    """A running server, asked as the API server does: one connection, the Service's name."""

    def __init__(self, port: int, authority: CertificateAuthority) -> None:
        self.port = port
        self.tls = ssl.create_default_context(cafile=str(authority.ca_file))
        self.health = HealthTree("x")

    async def ask(self, target: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=HOST)
        head = f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        head_of, _, rest = answer.partition(b"\r\n\r\n")
        return int(head_of.split()[1]), rest


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    authority = CertificateAuthority(folder / "pki")
    pair = authority.issue(NAME, hosts=[HOST])
    served = Served(free_port(), authority)
    seen = anyio.Event()
    book = Rulebook()
    book.add(IPPOOL, IPPoolRules())
    system = System(clock=VirtualClock(), random=Random(1), health=served.health)
    async with anyio.create_task_group() as group:
        group.start_soon(
            lambda: serve(
                book,
                ready=seen.wait,
                port=served.port,
                cert_file=pair.certificate,
                key_file=pair.key,
                system=system,
            )
        )
        await anyio.wait_all_tasks_blocked()
        assert served.health.status() is State.BLOCKED, "not before the cluster has been seen"
        seen.set()
        while served.health.status() is not State.OK:  # noqa: ASYNC110 - what is under test
            await anyio.sleep(0.01)
        yield served
        group.cancel_scope.cancel()


async def test_what_is_asked_is_answered_and_shows_in_trace_and_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert path(MUTATE, IPPOOL) == "/mutate-spiderpool-spidernet-io-v2beta1-spiderippool"
    with traces.recording() as recorder, caplog.at_level(logging.INFO):
        async with serving(tmp_path) as served:
            assert await served.ask(HEALTH, method="GET") == (200, b"")
            status, body = await served.ask(path(MUTATE, IPPOOL), review(POOL))
            assert (status, json.loads(body)["response"]["patchType"]) == (200, "JSONPatch")
            wrong = {**POOL, "spec": {"subnet": "10.6.0.0/16", "gateway": "x"}}
            status, body = await served.ask(path(VALIDATE, IPPOOL), review(wrong))
            assert (status, json.loads(body)["response"]["allowed"]) == (200, False)
    assert {span.name for span in recorder.spans()} == {"mutate SpiderIPPool", "validate SpiderIPPool"}
    assert 'refused: CREATE of SpiderIPPool lan: spec.gateway: Invalid value: "x": is not an IP address' in caplog.text


async def test_whatever_is_sent_is_answered_and_nothing_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random, whole = Random(7), review(POOL)
    bodies = [b"", b"{}", b"null", b"\xff" * 40, b"[" * 70_000, random.randbytes(3000)]
    for _ in range(40):
        at = random.randrange(len(whole))
        bodies.append(whole[:at] + random.randbytes(random.randrange(4)) + whole[at + random.randrange(4) :])
    async with serving(tmp_path) as served:
        for body in bodies:
            status, answer = await served.ask(path(random.choice([MUTATE, VALIDATE]), IPPOOL), body)
            assert status in {200, 400}
            assert status == 400 or json.loads(answer)["response"]["uid"] == "u1"
        assert (await served.ask(path(MUTATE, IPPOOL), method="GET"))[0] == 405
        assert (await served.ask("/mutate-nothing", whole))[0] == 404
        assert (await served.ask(path(VALIDATE, IPPOOL), whole))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- trust


def configured(name: str = NAME) -> list[dict[str, Any]]:
    service = {"name": name, "namespace": "kube-system", "path": "/x", "port": 5722}
    return [{"name": f"{one}.spiderpool.spidernet.io", "clientConfig": {"service": service}} for one in "ab"]


def test_nothing_else_of_a_configuration_changes() -> None:
    after = trusting(configured(), "Y2E=")
    assert after == [{**it, "clientConfig": {**it["clientConfig"], "caBundle": "Y2E="}} for it in configured()]
    assert trusting(after, "Y2E=") is None


def test_the_configurations_follow_the_file() -> None:
    file = [b""]
    store, health, mine = MemoryStore(), HealthTree("x"), [True]

    async def read() -> bytes:
        if not file[0]:
            raise FileNotFoundError(2, "No such file or directory", "ca.crt")
        return file[0]

    async def trusted() -> set[str]:
        mutating, validating = await store.get(MUTATINGWEBHOOK, NAME), await store.get(VALIDATINGWEBHOOK, NAME)
        hooks = [*mutating.webhooks, *validating.webhooks]
        bundles = [hook["clientConfig"].get("caBundle", "") for hook in hooks]
        return {base64.b64decode(bundle).decode() for bundle in bundles}

    async def story() -> None:
        system = System(clock=VirtualClock(), random=Random(1), health=health)
        supervisor = Supervisor("controller", system)
        supervisor.add_actor("bundle", lambda: BundleActor(store, name=NAME, authority=read, mine=lambda: mine[0]))
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            await anyio.sleep(1)
            assert "no authority of a certificate" in health.render(), "no file yet"
            file[0] = b"one"
            await anyio.sleep(LOOK_SECONDS)
            assert "there is none" in health.render(), "not installed yet"
            meta = ObjectMeta(name=NAME)
            await store.create(MUTATINGWEBHOOK, MutatingWebhookConfiguration(metadata=meta, webhooks=configured()))
            await store.create(VALIDATINGWEBHOOK, ValidatingWebhookConfiguration(metadata=meta, webhooks=configured()))
            await anyio.sleep(LOOK_SECONDS)
            assert (await trusted(), health.status()) == ({"one"}, State.OK)
            file[0] = b"two"
            await anyio.sleep(LOOK_SECONDS)
            assert await trusted() == {"two"}, "a certificate of another authority"
            await store.patch(MUTATINGWEBHOOK, NAME, {"webhooks": configured()})
            await anyio.sleep(LOOK_SECONDS)
            assert await trusted() == {"two"}, "somebody applied the chart's"
            mine[0] = False
            await store.patch(MUTATINGWEBHOOK, NAME, {"webhooks": configured()})
            await anyio.sleep(3 * LOOK_SECONDS)
            assert await trusted() == {"two", ""}, "another replica's business"
            await supervisor.stop()

    run(story, seed=1)
