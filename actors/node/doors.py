"""The doors beside the shim's: the original's socket API, so that its plugins work with this agent.

No actor: addresses are asked for and given back by the same messages to the node actor that our own IPAM plugin causes,
and so with the same journal. A request that comes twice finds what the first one did; what is left when its caller dies
is what a runtime's DEL takes away. Nothing is remembered here.

Wrong input is 400 and changes nothing. Everything else that fails is 500, as with the original, or one of its own two
codes.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from msgspec import Struct

from actors.node.conflict import KeepsAddresses
from actors.node.controllers import Controllers
from actors.node.disk import Journal
from api.wire import FindCoordinator, FindEndpoint, FoundCoordinator, FoundEndpoint, Rejected, Request, Response
from cni import openapi
from cni.config import shown
from cni.errors import CniError
from cni.journal import State
from cni.kernel import Kernel
from cni.openapi import BadRequest
from cni.protocol import Invocation, Role
from cni.server import Answer, Door, Knock
from runtime.clock import Clock
from runtime.errors import ActorError
from runtime.transport.port import TransportError
from telemetry.health import HealthTree
from telemetry.http import Answer as Probe
from telemetry.http import probes

_LOOKUP_SECONDS = 10.0
_SEEN = "reported by the plugin of the pod's interface"
_UNKNOWN_INTERFACE = "eth0"
"""Where the journal knows nothing of a container, everything of it is given back under any name."""


class Switches(Struct, frozen=True):
    """The settings that decide."""

    conflict_detection: bool = False
    """Whether a plugin is to look for somebody else on the address."""
    gateway_detection: bool = False
    """Whether a plugin is to look for the gateway."""
    release_conflicts: bool = True
    """Whether a plugin may give up an address on which it found somebody else."""


class Doors:
    """The doors of one agent."""

    def __init__(
        self,
        *,
        invoke: Callable[[Invocation], Awaitable[bytes]],
        renounce: Callable[[str, str], Awaitable[None]],
        journal: Journal,
        kernel: Kernel,
        controllers: Controllers,
        clock: Clock,
        health: HealthTree | None,
        switches: Switches,
    ) -> None:
        """Say who does the work.

        Args:
            invoke: carries a call of the IPAM plugin out. Raises `CniError`.
            renounce: gives up what a container (its id) has by the IPAM plugin, because of what was seen. Raises
                `KeepsAddresses`, `TransportError`, `CniError` or `ActorError`.
            journal: what the node knows of its containers.
            kernel: whether a namespace is there.
            controllers: whom lookups are asked of.
            clock: theirs.
            health: answers the probes; None: there are none.
            switches: see there.
        """
        self._invoke = invoke
        self._renounce = renounce
        self._journal = journal
        self._kernel = kernel
        self._controllers = controllers
        self._clock = clock
        self._health = health
        self._switches = switches

    def __repr__(self) -> str:
        return f"<Doors {self._switches}>"

    def routes(self) -> Mapping[str, Mapping[str, Door]]:
        """For the server: by path, then by method."""
        runtime = {} if self._health is None else probes(self._health)
        return {
            openapi.IP: {"POST": _door(self._add), "DELETE": _door(self._delete)},
            openapi.IPS: {"POST": _nothing, "DELETE": _door(self._delete_all)},
            openapi.ENDPOINT: {"GET": _door(self._endpoint)},
            openapi.COORDINATOR: {"GET": _door(self._coordinator)},
            **{path: {"GET": _probe(route)} for path, route in runtime.items()},
        }

    async def _add(self, knock: Knock) -> Answer:
        asked = openapi.read_add(knock.body)
        if not await self._kernel.netns_exists(asked.netns):
            # Nobody could say later whether a link in there still has the address.
            raise BadRequest(f"netNamespace: {shown(asked.netns)} is no network namespace that the agent can see")
        await self._invoke(asked.invocation())
        known = await self._journal.of(asked.container_id)
        entries = [one for one in known if one.state is State.ADDED and not one.part]
        if asked.ifname not in {one.ifname for one in entries}:
            raise _Failed(f"container {asked.container_id[:12]}: {asked.ifname} was deleted while it was added")
        # A link that a network provider decides on is made when this has been answered.
        there = not any(one.assigned for one in entries)
        return Answer(
            body=openapi.add_body(
                openapi.grants_of(asked.ifname, entries),
                gateway_detection=self._switches.gateway_detection and there,
                conflict_detection=self._switches.conflict_detection
                and there
                and not any(one.moving for one in entries),
            )
        )

    async def _delete(self, knock: Knock) -> Answer:
        await self._invoke(openapi.read_del(knock.body).invocation())
        return Answer()

    async def _delete_all(self, knock: Knock) -> Answer:
        """Interfaces that other plugins made go by their own DEL; here it is about what they were given."""
        asked = openapi.read_batch_del(knock.body)
        known = await self._journal.of(asked.container_id)
        if asked.conflict:
            if not self._switches.release_conflicts:
                text = f"pod {asked.namespace}/{asked.name}: SPIDERPOOL_ENABLED_RELEASE_CONFLICT_IPS is false"
                return _error(openapi.STATELESS_FORBIDDEN, text)
            try:
                await self._renounce(asked.container_id, _SEEN)
            except KeepsAddresses as error:
                return _error(openapi.STATEFUL_FORBIDDEN, str(error))
        names = [one.ifname for one in known if one.role is Role.IPAM]
        for ifname in names or ([] if known else [_UNKNOWN_INTERFACE]):
            await self._invoke(asked.of_interface(ifname).invocation())
        return Answer()

    async def _endpoint(self, knock: Knock) -> Answer:
        pod = openapi.read_pod_query(knock.query)
        match await self._ask(FindEndpoint(pod)):
            case FoundEndpoint() as found:
                return Answer(body=openapi.endpoint_body(pod, found))
            case Rejected(message, cause="not_found"):
                return _error(HTTPStatus.NOT_FOUND, message)
            case other:
                raise _Failed(_why(other))

    async def _coordinator(self, knock: Knock) -> Answer:
        pod = openapi.read_pod(knock.body)
        match await self._ask(FindCoordinator(pod)):
            case FoundCoordinator(coordination) if coordination.unready:
                raise _Failed(coordination.unready)
            case FoundCoordinator() as found:
                return Answer(body=openapi.coordinator_body(found))
            case other:
                raise _Failed(_why(other))

    async def _ask(self, request: Request) -> Response:
        answered = await self._controllers.ask(request, deadline=self._clock.now() + _LOOKUP_SECONDS)
        return answered.response


class _Failed(Exception):
    """The request could not be carried out; the text says why."""


def _door(work: Door) -> Door:
    """The same with what it raises as an answer."""

    async def door(knock: Knock) -> Answer:
        try:
            return await work(knock)
        except BadRequest as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        except (CniError, _Failed) as error:
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except (TransportError, ActorError) as error:
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"not now, try again: {error}")

    return door


def _probe(route: Probe) -> Door:
    async def door(knock: Knock) -> Answer:
        answer = route(knock.query)
        return Answer(answer.status, openapi.error_body(answer.body.decode()) if answer.body else b"")

    return door


async def _nothing(_: Knock) -> Answer:
    """POST /ipam/ips does nothing with the original either."""
    return Answer()


def _error(status: int, text: str) -> Answer:
    return Answer(status, openapi.error_body(text))


def _why(response: Response) -> str:
    return response.message if isinstance(response, Rejected) else f"a controller answered {type(response).__name__}"
