"""Requests to a real HTTP server: what a failure says of whether it was carried out, and whom a client trusts."""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.provider.assembly import web_of
from api.configfile import IaasNetworkProvider
from api.settings import SettingsError
from runtime.web import AiohttpWeb, Unanswered, Unsent
from tests.provider import ALLOCATE, Fault, ProviderServer
from tests.servers.certificates import CertificateAuthority

BODY = json.dumps(
    {
        "podUID": "u1",
        "nodeName": "n1",
        "iaasIPsAllocationRequest": [
            {"ipAddress": "10.0.0.5", "subnet": "10.0.0.0/16", "parentNicMac": "02:00:00:00:00:01"}
        ],
    }
).encode()


@pytest.fixture
async def web() -> AsyncIterator[AiohttpWeb]:
    made = AiohttpWeb()
    yield made
    await made.aclose()


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with ProviderServer() as running:
        yield running


async def test_an_answer(web: AiohttpWeb, server: ProviderServer) -> None:
    answer = await web.post(server.url + ALLOCATE, BODY, headers={"X-Request-Timeout-Ms": "5000"}, seconds=5)
    assert answer.status == 200
    assert json.loads(answer.body)["iaasIPsAllocationResponse"][0]["ipAddress"] == "10.0.0.5"
    (request,) = server.requests
    assert request.headers["X-Request-Timeout-Ms"] == "5000"
    assert request.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("fault", ["500", "404"])
async def test_a_refusal_is_an_answer(web: AiohttpWeb, server: ProviderServer, fault: Fault) -> None:
    server.faults["allocate"].append(fault)
    assert (await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=5)).status == int(fault)


@pytest.mark.parametrize("fault", ["hang", "reset", "reset after"])
async def test_nobody_knows(web: AiohttpWeb, server: ProviderServer, fault: Fault) -> None:
    server.faults["allocate"].append(fault)
    with pytest.raises(Unanswered):
        await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=0.5)
    assert len(server.requests) == 1, "it is not sent a second time"
    assert bool(server.cloud.assigned) == (fault == "reset after")


async def test_a_kept_connection_that_has_gone_is_not_tried_twice(web: AiohttpWeb, server: ProviderServer) -> None:
    for fault in ("slow", "reset after"):
        server.faults["allocate"].append(fault)
    await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=5)
    with pytest.raises(Unanswered):
        await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=5)
    assert len(server.requests) == 2


async def test_nobody_there(web: AiohttpWeb) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unsent):
        await web.post(f"http://127.0.0.1:{port}{ALLOCATE}", BODY, headers={}, seconds=5)
    with pytest.raises(Unsent):
        await web.post(f"http://name.invalid:1{ALLOCATE}", BODY, headers={}, seconds=5)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


def settings(url: str, **more: Any) -> IaasNetworkProvider:
    return IaasNetworkProvider(server_url=url, **more)


async def test_certificates_are_checked_unless_that_is_switched_off(authority: CertificateAuthority) -> None:
    pair = authority.issue("provider", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    pem = authority.ca_file.read_text()
    with ProviderServer(context) as server:
        for more, trusts in (({}, False), ({"ca_bundle": pem}, True), ({"insecure_skip_verify": True}, True)):
            web = web_of(settings(server.url, **more))
            assert web is not None
            try:
                if trusts:
                    assert (await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=5)).status == 200
                else:
                    with pytest.raises(Unsent, match="certificate"):
                        await web.post(server.url + ALLOCATE, BODY, headers={}, seconds=5)
            finally:
                await web.aclose()


def test_a_bundle_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"iaasNetworkProvider\.caBundle: expected certificates in PEM"):
        web_of(settings("https://cloud:443", ca_bundle="nonsense"))
    assert web_of(settings("")) is None
