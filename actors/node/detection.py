"""What an ADD does before its addresses go onto their interfaces: it looks whether somebody else has them.

All interfaces of the call are probed at the same time. An address that somebody else uses is given up for good
(`api.wire.Disown`: its pool grants it to nobody for a while and says who was seen), and others are asked for in the
same ADD, a few times. Addresses that belong to a name stay with it: then the ADD fails, and goes on failing for as long
as the stranger is there. An ADD also fails where a gateway does not answer.

No actor: the sandbox's ADD calls it. It writes nothing. While it works the journal says "adding" of every interface,
which is what a crash needs: whatever was granted, disowned or granted in its place is found by the pod's records, and
given back.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import anyio
from msgspec import Struct

from actors.node.addressing import NotAgain
from actors.node.conflict import KeepsAddresses, quarantine
from actors.node.controllers import Controllers
from actors.node.nic import Nic
from api.settings import AgentSettings
from api.wire import Allocated, Disown
from cni.detection import DEFAULT_BUDGET, DEFAULT_PROBES, Conflict, Findings, ProbePlan
from cni.errors import AddressInUse, GatewaySilent, TryAgainLater
from cni.kernel import Kernel
from cni.protocol import Role
from runtime.clock import Clock
from runtime.errors import ActorError, first
from runtime.transport.port import TransportError
from telemetry import attributes, metrics, traces

_log = logging.getLogger(__name__)

ROUNDS = 3
"""So many grants of one ADD may be in conflict before it fails. Each takes an address out of its pool for a while."""
_DISOWN_SECONDS = 10.0

_addresses = metrics.DETECTION_PROBED.labels(what="address")
_gateways = metrics.DETECTION_PROBED.labels(what="gateway")


class Terms(Struct, frozen=True, kw_only=True):
    """The settings that decide."""

    conflicts: bool = False
    """Whether an address is looked for before a pod gets it."""
    gateways: bool = False
    """Whether a pod's gateways must be there."""
    probes: int = DEFAULT_PROBES
    budget: float = DEFAULT_BUDGET
    """Seconds; with the former as in `ProbePlan`."""


def terms_of(settings: AgentSettings) -> Terms:
    """What the agent's settings say."""
    return Terms(
        conflicts=settings.config.enable_ip_conflict_detection,
        gateways=settings.config.enable_gateway_detection,
        probes=settings.detection_probes,
        budget=settings.detection_timeout,
    )


class Detection:
    """See the module."""

    def __init__(self, wanted: Terms, *, kernel: Kernel, controllers: Controllers, clock: Clock) -> None:
        """With nothing `wanted` every ADD passes at once."""
        self._terms = wanted
        self._kernel = kernel
        self._controllers = controllers
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Detection {self._terms}>"

    async def settle(
        self,
        nics: Sequence[Nic],
        allocated: Allocated,
        again: Callable[[], Awaitable[Allocated]],
        *,
        recorded: Callable[[], Awaitable[object]],
    ) -> Allocated:
        """The grant that stands: the given one, or one that was asked for in its place.

        Args:
            nics: those of one call, links made and addresses taken.
            allocated: what the controller answered.
            again: asks for the addresses of all of them once more and has each interface take its own.
            recorded: waits until the given grant is recorded everywhere; before that nothing of it can be given up.

        Raises:
            AddressInUse: somebody has an address that stays with the pod.
            GatewaySilent: a gateway did not answer.
            TryAgainLater: one grant after the other was in conflict, or no controller took an address back.
            NotAgain: `again` failed.
            CniError: the kernel did not ask.
        """
        free: dict[str, tuple[str, ...]] = {}
        """Addresses of an interface that were found free."""
        for left in reversed(range(ROUNDS)):
            plans = [
                plan
                for nic in nics
                if free.get(nic.ifname) != nic.entry.addresses
                for plan in self._plan(nic, allocated)
            ]
            if not plans:
                break
            found = await self._probe(plans)
            if any(one.conflicts for one in found.values()):
                await recorded()
            for nic in nics:
                strangers = found[nic.ifname].conflicts if nic.ifname in found else ()
                if strangers:
                    await self._give_up(nic, strangers)
                else:
                    free[nic.ifname] = nic.entry.addresses
            _check_gateways(nics[0], found.values(), self._terms)
            taken = [(one.ifname, stranger) for one in found.values() for stranger in one.conflicts]
            if not taken:
                break
            if not left:
                raise TryAgainLater(_words(nics[0], *taken[0]), f"{ROUNDS} addresses in a row were in use")
            for nic in nics:
                nic.forget_grant()
            try:
                allocated = await again()
            except Exception as error:
                raise NotAgain(error) from error
        return allocated

    def _plan(self, nic: Nic, allocated: Allocated) -> list[ProbePlan]:
        """What to find out about an interface; nothing where there is nothing to ask, or nowhere."""
        wished, grant = self._terms, nic.grant
        if grant is None or (nic.invocation.role is Role.MAIN and nic.link is None):
            return []
        # While a virtual machine moves, the machine that it was has the addresses rightly.
        look = wished.conflicts and not allocated.moving
        addresses = tuple(one.address.partition("/")[0] for one in grant.addresses) if look else ()
        gateways = (
            tuple(dict.fromkeys(one.gateway for one in grant.addresses if one.gateway)) if wished.gateways else ()
        )
        if not addresses and not gateways:
            return []
        return [
            ProbePlan(
                netns=nic.invocation.netns,
                ifname=nic.ifname,
                addresses=addresses,
                gateways=gateways,
                probes=wished.probes,
                budget=wished.budget,
                # Whoever made it sets it up and announces its addresses, or thinks so.
                restore=nic.invocation.role is Role.IPAM,
            )
        ]

    async def _probe(self, plans: Sequence[ProbePlan]) -> Mapping[str, Findings]:
        """The findings by interface. Raises `CniError`."""
        found: dict[str, Findings] = {}

        async def one(plan: ProbePlan) -> None:
            found[plan.ifname] = await self._kernel.probe(plan)

        begun = self._clock.now()
        with traces.span("detect") as span:
            try:
                async with anyio.create_task_group() as group:
                    for plan in plans:
                        group.start_soon(one, plan)
            except BaseExceptionGroup as failures:
                raise first(failures) from failures
            span.set_attribute(attributes.ADDRESSES, [address for plan in plans for address in plan.addresses])
            span.set_attribute(attributes.GATEWAYS, [gateway for plan in plans for gateway in plan.gateways])
            span.set_attribute(
                attributes.CONFLICTS,
                [f"{one.address} {one.mac}" for findings in found.values() for one in findings.conflicts],
            )
            span.set_attribute(attributes.SILENT, [gateway for one in found.values() for gateway in one.silent])
        metrics.DETECTION_SECONDS.observe(self._clock.now() - begun)
        for plan in plans:
            if found[plan.ifname].skipped:
                _log.debug("%s in %s: nothing was looked for: %s", plan.ifname, plan.netns, found[plan.ifname].skipped)
            elif not found[plan.ifname].carrier:
                words = "%s in %s has no carrier: nobody could say whether its addresses are free"
                _log.warning(words, plan.ifname, plan.netns)
            else:
                _addresses.inc(len(plan.addresses))
                _gateways.inc(len(plan.gateways))
            metrics.DETECTION_CONFLICTS.inc(len(found[plan.ifname].conflicts))
            metrics.DETECTION_SILENT_GATEWAYS.inc(len(found[plan.ifname].silent))
        return found

    async def _give_up(self, nic: Nic, strangers: Sequence[Conflict]) -> None:
        """Have nobody get these addresses for a while."""
        entry = nic.entry
        pools = {address.partition("/")[0]: pool for address, pool in zip(entry.addresses, entry.pools, strict=True)}
        for mac in dict.fromkeys(stranger.mac for stranger in strangers):
            addresses = tuple(stranger.address for stranger in strangers if stranger.mac == mac)
            disown = Disown(
                pod=entry.pod,
                nic=nic.ifname,
                container_id=entry.container_id,
                addresses=addresses,
                pools=tuple(pools[address] for address in addresses),
                seen=mac,
            )
            try:
                await quarantine(self._controllers, disown, deadline=self._clock.now() + _DISOWN_SECONDS)
            except KeepsAddresses as error:
                raise AddressInUse(_words(nic, nic.ifname, strangers[0]), str(error)) from error
            except (TransportError, ActorError) as error:
                details = f"it could not be given up: {error}"
                raise TryAgainLater(_words(nic, nic.ifname, strangers[0]), details) from error


def _check_gateways(nic: Nic, found: Iterable[Findings], wanted: Terms) -> None:
    """Raises `GatewaySilent`. `nic` is one of the pod's."""
    for one in found:
        for gateway in one.silent:
            asked = f"asked {wanted.probes} times within {wanted.budget * 1000:g} ms" if one.carrier else "no carrier"
            raise GatewaySilent(f"pod {nic.entry.pod}: {one.ifname}: gateway {gateway} does not answer", asked)


def _words(nic: Nic, ifname: str, stranger: Conflict) -> str:
    return f"pod {nic.entry.pod}: {ifname}: {stranger.address} is used by {stranger.mac} on the network"
