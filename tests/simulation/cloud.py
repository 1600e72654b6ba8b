"""A cloud's network provider on a virtual clock, which loses answers and does late what was given up."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import anyio
from anyio.abc import TaskGroup

from actors.provider.provider import SKEW_SECONDS
from api.configfile import IaasNetworkProvider
from runtime.web import Answer, Unanswered, Unsent
from tests.provider import Cloud, spoiled

CONFIG = IaasNetworkProvider(server_url="http://cloud:80", http_request_timeout="10s")
FAULTS = {"500": 0.1, "lost": 0.15, "late": 0.15, "missing": 0.05, "garbage": 0.03}
"""Shares of requests."""


class PlayedWeb:
    """The provider as `runtime.web.Web`. A request that is given up may be carried out all the same, in its time."""

    def __init__(self, seed: int, *, faults: Mapping[str, float], delay: float = 0.05) -> None:
        """`faults` are shares of requests."""
        self.cloud = Cloud()
        self.requests: list[tuple[str, dict[str, Any], float, float]] = []
        """Method, body, seconds by the header, when."""
        self.down = False
        self.faults = faults
        self._delay = delay
        self._random = Random(seed)
        self.group: TaskGroup

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str], seconds: float) -> Answer:
        method = "allocate" if url.endswith("allocate-ips") else "release"
        asked, limit = json.loads(body), int(headers["X-Request-Timeout-Ms"]) / 1000
        self.requests.append((method, asked, limit, anyio.current_time()))
        if self.down:
            raise Unsent("connection refused")
        fault = next((name for name, share in self.faults.items() if self._random.random() < share), "")
        if fault == "500":
            await anyio.sleep(self._delay)
            return Answer(500, b"no")
        if fault == "late":
            # It waits for its own limits; nobody hears what becomes of it.
            self.group.start_soon(self._later, method, asked, limit)
            await anyio.sleep(seconds)
            raise Unanswered("no answer")
        await anyio.sleep(self._delay * self._random.uniform(0.5, 2.0))
        status, answer = self.cloud.do(method, asked)
        if fault == "lost":
            raise Unanswered("connection reset")
        return Answer(status, spoiled(fault, answer) if method == "allocate" else b"")

    async def _later(self, method: str, asked: dict[str, Any], limit: float) -> None:
        # Clocks differ, and what was sent last is on its way.
        await anyio.sleep(self._random.uniform(0.0, limit + SKEW_SECONDS - 1.0))
        self.cloud.do(method, asked)
