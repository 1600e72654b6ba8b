"""The webhook server over TLS, whatever is sent to it; and the API server's trust, which follows the certificate."""

import asyncio
import base64
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from actors.program import Farewell
from actors.webhooks import certificate
from actors.webhooks.bundle import LOOK_SECONDS, BundleActor, trusting
from actors.webhooks.certificate import watch
from actors.webhooks.server import HEALTH, path, serve
from admission.exchange import MUTATE, VALIDATE
from admission.ippool import IPPoolRules
from admission.rulebook import Rulebook
from api.extensions import MutatingWebhookConfiguration, ValidatingWebhookConfiguration
from api.kinds import IPPOOL, MUTATINGWEBHOOK, VALIDATINGWEBHOOK
from api.meta import ObjectMeta
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import Denied
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.transport.credentials import Trust, served_until
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
        self.leaving = False
        self.end: Callable[[], None] = lambda: None

    async def ask(self, target: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=HOST)
        head = f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        head_of, _, rest = answer.partition(b"\r\n\r\n")
        return int(head_of.split()[1]), rest

    async def announce(self, target: str, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Begin a request whose body does not come."""
        streams = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=HOST)
        streams[1].write(f"POST {target} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        await asyncio.sleep(0.02)
        return streams


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
                ca_file=authority.ca_file,
                name=HOST,
                system=system,
                leaving=lambda: served.leaving,
            )
        )
        served.end = group.cancel_scope.cancel
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
        # Nine that announce all that one may send: together they would be more than the program has room for.
        streams = [await served.announce(path(VALIDATE, IPPOOL), 8 << 20) for _ in range(9)]
        assert (await streams[-1][0].read()).split()[1] == b"503"
        streams.append(await served.announce(path(VALIDATE, IPPOOL), 9 << 20))
        assert (await streams[-1][0].read()).split()[1] == b"413"
        for _, writer in streams:
            writer.close()
        assert (await served.ask(path(VALIDATE, IPPOOL), whole))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# -- the end


async def test_who_leaves_ends_connections_with_their_answers_and_answers_what_has_begun(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        whole = review(POOL)
        kept = await served.announce(path(MUTATE, IPPOOL), len(whole))
        kept[1].write(whole)
        head = await kept[0].readuntil(b"\r\n\r\n")
        assert b"Connection: keep-alive" in head, "the control"
        await kept[0].readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
        idle, begun = await served.announce(HEALTH, 0), await served.announce(path(MUTATE, IPPOOL), len(whole))
        assert (await idle[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405")
        served.leaving = True
        kept[1].write(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (path(MUTATE, IPPOOL).encode(), len(whole)))
        kept[1].write(whole)
        answer = await kept[0].read()
        assert answer.startswith(b"HTTP/1.1 200"), "it is still served"
        assert b"Connection: close" in answer
        served.end()
        await asyncio.sleep(0.1)
        assert b"use POST" not in await idle[0].read(), "closed, with nothing that was not asked"
        begun[1].write(whole)
        assert (await begun[0].read()).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError, match="111"):
            await served.ask(HEALTH, method="GET")


def test_a_program_says_that_it_is_not_ready_before_it_ends_and_a_second_signal_ends_it() -> None:
    async def story(signals: int) -> tuple[State, float]:
        health = HealthTree("x")
        root = Supervisor("controller", System(clock=VirtualClock(), random=Random(1), health=health))
        root.add_service("one", anyio.sleep_forever)
        farewell = Farewell(10.0)
        async with anyio.create_task_group() as group:
            group.start_soon(root.run)
            await anyio.sleep(1)
            assert (health.status(), farewell.begun) == (State.OK, False)
            for _ in range(signals):
                group.start_soon(farewell.take, root)
                await anyio.sleep(0.5)
            status, began = health.status(), anyio.current_time()
            assert farewell.begun
            while root.status().state != "stopped":  # noqa: ASYNC110 - what is under test
                await anyio.sleep(0.1)
            took = anyio.current_time() - began
            group.cancel_scope.cancel()
        return status, took

    status, took = run(lambda: story(1), seed=1)
    assert status is State.BLOCKED
    assert 9 < took < 11
    assert run(lambda: story(2), seed=1)[1] < 1


# -- the certificate


async def test_what_a_client_would_say_of_the_certificate_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        ca, other = Trust(tmp_path / "pki" / "ca.crt"), CertificateAuthority(tmp_path / "other")
        until = await served_until("127.0.0.1", served.port, trust=ca, name=HOST)
        assert 29 < (until - time.time()) / 86400 < 31
        for trust, name in ((ca, "other.svc"), (Trust(other.ca_file), HOST)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await served_until("127.0.0.1", served.port, trust=trust, name=name)
        assert "certificate  ok" in served.health.render()


def test_a_certificate_that_expires_soon_or_is_refused_shows() -> None:
    health, found = HealthTree("x"), list[float | OSError]([0.0])

    async def expiry() -> float:
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    async def story() -> None:
        system = System(clock=VirtualClock(), random=Random(1), health=health)
        async with anyio.create_task_group() as group:
            group.start_soon(watch, expiry, system)
            await anyio.sleep(1)
            for days, words in (
                (15.0, "ok"),
                (3.0, "expires in 3 days"),
                (-1.0, "expires in -1 days"),
                (None, "refuses"),
            ):
                found[:] = [OSError("no") if days is None else system.clock.wall() + days * 86400 + 60]
                await anyio.sleep(certificate.LOOK_SECONDS)
                assert words in health.render()
                assert health.status() is (State.OK if words == "ok" else State.DEGRADED)
            group.cancel_scope.cancel()

    run(story, seed=1)


# -- trust


def configured(name: str = NAME) -> list[dict[str, Any]]:
    service = {"name": name, "namespace": "kube-system", "path": "/x", "port": 5722}
    return [{"name": f"{one}.spiderpool.spidernet.io", "clientConfig": {"service": service}} for one in "ab"]


def test_nothing_else_of_a_configuration_changes() -> None:
    after = trusting(configured(), "Y2E=")
    assert after == [{**it, "clientConfig": {**it["clientConfig"], "caBundle": "Y2E="}} for it in configured()]
    assert trusting(after, "Y2E=") is None


class Refusing(MemoryStore):
    """Lets nobody patch, until it does."""

    refuses = True

    async def patch(self, *given: Any, **named: Any) -> Any:
        if self.refuses:
            raise Denied("not yours")
        return await super().patch(*given, **named)


def test_a_replica_is_not_ready_before_it_is_trusted_nor_waits_for_ever() -> None:
    async def story(seconds: float, refuses: bool) -> State:
        store, health = Refusing(), HealthTree("x")
        meta = ObjectMeta(name=NAME)
        await store.create(MUTATINGWEBHOOK, MutatingWebhookConfiguration(metadata=meta, webhooks=configured()))
        await store.create(VALIDATINGWEBHOOK, ValidatingWebhookConfiguration(metadata=meta, webhooks=configured()))

        async def read() -> bytes:
            return b"one"

        supervisor = Supervisor("controller", System(clock=VirtualClock(), random=Random(1), health=health))
        supervisor.add_actor("bundle", lambda: BundleActor(store, name=NAME, authority=read, mine=lambda: True))
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            await anyio.sleep(3)
            assert health.status() is State.BLOCKED
            store.refuses = refuses
            await anyio.sleep(seconds)
            status = health.status()
            await supervisor.stop()
        return status

    assert run(lambda: story(1, False), seed=1) is State.OK
    assert run(lambda: story(10, True), seed=1) is State.BLOCKED
    assert run(lambda: story(60, True), seed=1) is State.DEGRADED


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
