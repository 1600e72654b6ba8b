"""A process that writes pools as the original's agents do: ``python -m tests.contract.original KUBECONFIG POOL N``.

For each of N pods: a GET that no cache answers, the status decoded into the fields that the original's types have
(records of pod and podUid), one record added, and a PUT of the status with the resourceVersion that was read. After a
conflict it begins anew, five times; then the pod's sandbox fails, and kubelet tries again. Every third pod goes again,
in the same way. Every eighth pod's first write is so slow that somebody else's comes between: whether both write at the
same time would be chance. What is held in the end is printed, as JSON: address by pod uid, and how many writes met a
conflict.
"""

import asyncio
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime.store.credentials import from_kubeconfig

TRIES = 5
FIRST = 100
SLOW_EVERY = 8
SLOW_SECONDS = 20.0
"""At most: if nobody else writes there is nothing to wait for."""


class Agent:
    """One connection to the API server, and nothing remembered between two calls."""

    def __init__(self, kubeconfig: Path, pool: str) -> None:
        credentials = from_kubeconfig(kubeconfig)
        url = urlsplit(credentials.url)
        self._connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=credentials.tls)
        self._headers = {"Content-Type": "application/json"}
        if credentials.tokens is not None:
            self._headers["Authorization"] = f"Bearer {asyncio.run(credentials.tokens.token())}"
        self._path = f"/apis/spiderpool.spidernet.io/v2beta1/spiderippools/{pool}"
        self.conflicts = 0

    def add(self, ip: str, uid: str, *, slow: bool) -> None:
        def come(records: dict[str, dict[str, str]]) -> None:
            records[ip] = {"pod": f"ns/{uid}", "podUid": uid}

        if not (slow and self._once(come, slow=True)):
            self._until_done(come)

    def remove(self, uid: str) -> None:
        def go(records: dict[str, dict[str, str]]) -> None:
            for ip in [ip for ip, record in records.items() if record["podUid"] == uid]:
                del records[ip]

        self._until_done(go)

    def _until_done(self, change: Any) -> None:
        while not any(self._once(change) for _ in range(TRIES)):
            time.sleep(0.05)

    def _once(self, change: Any, *, slow: bool = False) -> bool:
        pool = self._request("GET", self._path)
        if slow:
            self._await_another_writer(pool["metadata"]["resourceVersion"])
        status = pool.get("status", {})
        known = json.loads(status.get("allocatedIPs") or "{}")
        records = {ip: {"pod": record["pod"], "podUid": record["podUid"]} for ip, record in known.items()}
        change(records)
        pool["status"] = {"allocatedIPCount": len(records), "totalIPCount": status.get("totalIPCount", 0)}
        if records:
            pool["status"]["allocatedIPs"] = json.dumps(records, sort_keys=True, separators=(",", ":"))
        return self._request("PUT", f"{self._path}/status", json.dumps(pool)) is not None

    def _await_another_writer(self, seen: str) -> None:
        deadline = time.monotonic() + SLOW_SECONDS
        while self._request("GET", self._path)["metadata"]["resourceVersion"] == seen and time.monotonic() < deadline:
            time.sleep(0.01)

    def _request(self, method: str, path: str, body: str | None = None) -> Any:
        self._connection.request(method, path, body, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status == http.HTTPStatus.CONFLICT:
            self.conflicts += 1
            return None
        if response.status != http.HTTPStatus.OK:
            message = f"{method} {path}: {response.status} {text.decode()}"
            raise RuntimeError(message)
        return json.loads(text)


def main() -> int:
    """The program."""
    kubeconfig, pool, count = sys.argv[1:]
    agent = Agent(Path(kubeconfig), pool)
    held: dict[str, str] = {}
    for at in range(int(count)):
        uid, ip = f"theirs-{at}", f"10.1.0.{FIRST + at}"
        agent.add(ip, uid, slow=at % SLOW_EVERY == 0)
        held[uid] = ip
        if at % 3 == 0:
            agent.remove(uid)
            del held[uid]
    print(json.dumps({"held": held, "conflicts": agent.conflicts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
