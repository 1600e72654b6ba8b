"""How a network provider is asked: one HTTP request, and what its failure leaves behind.

No actor. Allocation asks it while a pod is granted its addresses (`actors.allocation.provided`); releases are the
business of `actors.provider.releases`. Every request ends by the time that its caller wrote down before
(`ipam.withheld.Owed.by`), as far as this side can tell; the provider is told that time too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from api.provider import (
    ALLOCATE,
    RELEASE,
    TIMEOUT_HEADER,
    AllocateRequest,
    AnswerError,
    Assigned,
    ReleaseRequest,
    Wanted,
    read_assigned,
    subnet_of,
)
from api.wire import PodRef
from ipam.withheld import Owed
from runtime.clock import Clock
from runtime.web import Unanswered, Unsent, Web
from telemetry import attributes, metrics, traces

SKEW_SECONDS: Final = 5.0
"""A request counts as under way for so much longer than it was given: clocks of replicas differ, and what has just been
sent is on its way."""
_SHOWN: Final = 200


class ProviderError(Exception):
    """The provider did not do it. The text is for whoever runs the cluster.

    Attributes:
        over: it has said so, or was never reached; else the request may still be under way there.
        lasting: the same request will not succeed later either, as far as the provider knows.
    """

    def __init__(self, text: str, *, over: bool, lasting: bool = False) -> None:
        super().__init__(text)
        self.over = over
        self.lasting = lasting


class Provider:
    """See the module."""

    def __init__(self, web: Web, *, url: str, timeout: float, clock: Clock) -> None:
        """`url` is the server's, without a path; `timeout` the most seconds that a request gets."""
        self._web = web
        self._url = url.rstrip("/")
        self.timeout = timeout
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Provider {self._url}>"

    def until(self, seconds: float) -> int:
        """Until when a request that is sent within `seconds`, and ends by then, counts as under way: for `Owed.by`."""
        return int((self._clock.wall() + seconds + SKEW_SECONDS) * 1000)

    async def allocate(
        self, pod: PodRef, *, node: str, wanted: Sequence[Wanted], seconds: float
    ) -> Mapping[str, Assigned]:
        """How the addresses are reached, by address. Raises `ProviderError`."""
        request = AllocateRequest(
            node_name=node, wanted=wanted, pod_name=pod.name, pod_namespace=pod.namespace, pod_uid=pod.uid
        )
        addresses = frozenset(one.ip_address for one in wanted)
        body = msgspec.json.encode(request)
        return await self._post("allocate", ALLOCATE, body, seconds, lambda said: read_assigned(said, addresses))

    async def release(self, owed: Owed, *, subnet: str, address: str, seconds: float) -> None:
        """Tell that an address is released. Raises `ProviderError`."""
        namespace, _, name = owed.pod.partition("/")
        request = ReleaseRequest(
            node_name=owed.node,
            subnet=subnet_of(subnet),
            ip_address=address,
            parent_nic_mac=owed.parent_nic_mac,
            pod_name=name,
            pod_namespace=namespace,
            pod_uid=owed.pod_uid,
        )
        await self._post("release", RELEASE, msgspec.json.encode(request), seconds, lambda _: None)

    async def _post[R](self, method: str, path: str, body: bytes, seconds: float, read: Callable[[bytes], R]) -> R:
        seconds = min(seconds, self.timeout)
        outcome, begun = "failed", self._clock.now()
        try:
            with traces.span(f"provider {method}", attributes={attributes.URL_PATH: path}):
                if seconds <= 0:
                    raise ProviderError("there is no time left to ask the network provider", over=True)
                headers = {TIMEOUT_HEADER: str(math.ceil(seconds * 1000)), **_trace()}
                answer = await self._web.post(self._url + path, body, headers=headers, seconds=seconds)
            if not 200 <= answer.status < 300:
                outcome = "refused"
                said = " ".join(answer.body[:_SHOWN].decode(errors="replace").split())
                text = f"the network provider says {answer.status} to {method}{f': {said}' if said else ''}"
                raise ProviderError(text, over=True, lasting=400 <= answer.status < 500 and answer.status != 429)
            outcome = "unusable"
            result = read(answer.body)
            outcome = "ok"
        except AnswerError as error:
            raise ProviderError(str(error), over=True) from error
        except Unsent as error:
            outcome = "unreachable"
            raise ProviderError(f"the network provider {self._url} cannot be reached: {error}", over=True) from error
        except Unanswered as error:
            outcome = "unanswered"
            raise ProviderError(f"the network provider {self._url} does not answer: {error}", over=False) from error
        else:
            return result
        finally:
            metrics.PROVIDER_REQUESTS.labels(method=method, outcome=outcome).inc()
            metrics.PROVIDER_REQUEST_SECONDS.labels(method=method).observe(self._clock.now() - begun)


def _trace() -> Mapping[str, str]:
    traceparent = traces.inject()
    return {"traceparent": traceparent} if traceparent else {}
