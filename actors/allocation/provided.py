"""Addresses that a network provider has to know of: asked for when the pools have committed them, before anybody hears.

A pool's record says beforehand that the provider is going to be asked, and until when (`api.ippool.AllocationRecord`).
So whatever becomes of the request, and of the replica that sends it, the address is told to the provider as released
before anybody else gets it (`actors.provider.releases`): a failure here needs no undoing but that of every ADD.

What a crash leaves while the provider is asked: records of an ADD that has no answer. Its agent repeats it, and the
provider is asked again for the same, or it releases.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from actors.allocation.callers import Refusal
from actors.provider.provider import Provider, ProviderError
from api.annotations import AnnotationError
from api.ippool import IPPoolSpec
from api.provider import Wanted, subnet_of
from api.wire import Address, Allocate, NicGrant, NicRequest, PodRef, Rejected
from ipam.candidates import SelectionRequest
from ipam.predicates import attachment_of
from ipam.selection import Selection
from runtime.actor import working_until
from runtime.clock import Clock

_SETTING: Final = "iaasNetworkProvider.serverUrl"
RESERVE_SECONDS: Final = 3.0
"""Of an ADD's time what is left for the SpiderEndpoint and the way back."""
_SECONDS: Final = 20.0
"""For a request without a deadline."""


class Terms(Struct, frozen=True):
    """What of one request the provider is asked for."""

    macs: Mapping[str, str]
    """By NIC, the MAC address of the node's NIC below it."""
    by: int
    """As `ipam.operations.Claim.by`; 0 where there is nothing to ask for."""
    expires: float
    """When the provider's answer is of no use any more (clock port)."""

    def mac(self, nic: str, version: int) -> str:
        """Of the node's NIC; empty where the provider is not asked for this address."""
        return self.macs.get(nic, "") if version == 4 else ""


class Provided:
    """How `Grants` has a provider asked; without one, whoever needs it is refused."""

    def __init__(
        self,
        provider: Provider | None,
        *,
        clock: Clock,
        elsewhere: bool = False,
        master: Callable[[str], str] = lambda _network: "",
    ) -> None:
        """`elsewhere`: there is one, and other replicas ask it.

        `master` says of a network ``namespace/name`` on which of the node's interfaces its NICs are made, if their VLAN
        id comes with the address; else it is empty.
        """
        self._provider = provider
        self._clock = clock
        self._master = master
        self._elsewhere = elsewhere

    def __repr__(self) -> str:
        return f"<Provided by {self._provider}>"

    def terms(self, request: Allocate, asked: Sequence[NicRequest], every: SelectionRequest, *, moving: bool) -> Terms:
        """What has to be written down before; `every` is what is so of every NIC of the pod. Raises `Refusal`."""
        ref = request.pod
        macs = {one.nic: one.parent_mac for one in asked if one.parent_mac}
        if request.links:
            mac = self._below(request, every)
            macs |= {request.nic: mac} if mac else {}
        now = self._clock.now()
        if not macs:
            return Terms({}, 0, now)
        nics = ", ".join(macs)
        if self._provider is None:
            why = "an agent that allocates by itself does not ask it" if self._elsewhere else f"{_SETTING} is empty"
            text = f"{nics} has its VLAN id from a network provider, and {why}"
            raise Refusal(Rejected(message=f"pod {ref}: {text}", retry=self._elsewhere, cause="wrong_input"))
        if moving:
            text = f"{nics} has its address from a network provider, which a live migration cannot take along"
            raise Refusal(Rejected(message=f"pod {ref}: {text}", cause="wrong_input"))
        until = working_until()
        expires = (now + _SECONDS if until is None else until) - RESERVE_SECONDS
        expires = min(expires, now + self._provider.timeout)
        return Terms(macs, self._provider.until(max(0.0, expires - now)), expires)

    def _below(self, request: Allocate, every: SelectionRequest) -> str:
        """The MAC address of what another program's plugin makes the NIC on; empty where no provider has to know it."""
        if request.multus:
            network = request.multus
        else:
            try:
                network = attachment_of(every, request.nic).network
            except AnnotationError:
                return ""
        master = self._master(network)
        if not master:
            return ""
        mac = next((link.mac for link in request.links if link.name == master), "")
        if not mac:
            text = f"{request.nic}: network {network} is made on {master}, and the node has none"
            raise Refusal(Rejected(message=f"pod {request.pod}: {text}", cause="wrong_input"))
        return mac

    def check(self, terms: Terms, selection: Selection, ref: PodRef) -> None:
        """Raise `Refusal` where a NIC would have no address that the provider knows."""
        for nic in selection.nics:
            if nic.nic in terms.macs and not nic.ipv4:
                text = f"{nic.nic} has its VLAN id from a network provider, by its IPv4 address, and gets none"
                raise Refusal(Rejected(message=f"pod {ref}: {text}", cause="wrong_input"))

    async def ask(
        self, terms: Terms, grants: Sequence[NicGrant], specs: Mapping[str, IPPoolSpec], *, ref: PodRef, node: str
    ) -> list[NicGrant]:
        """The grants with what the provider says of them; `specs` are the pools' by name. Raises `Refusal`."""
        if not terms.macs or self._provider is None:
            return list(grants)
        wanted = [
            Wanted(_bare(address), subnet_of(specs[address.pool].subnet), terms.macs[grant.nic])
            for grant in grants
            if grant.nic in terms.macs
            for address in grant.addresses
            if address.version == 4
        ]
        try:
            said = await self._provider.allocate(
                ref, node=node, wanted=wanted, seconds=terms.expires - self._clock.now()
            )
        except ProviderError as error:
            raise Refusal(
                Rejected(message=f"pod {ref}: {error}", retry=not error.lasting, cause="provider", held=True)
            ) from error

        def told(nic: str, address: Address) -> Address:
            if nic not in terms.macs or address.version != 4:
                return address
            assigned = said[_bare(address)]
            return structs.replace(address, vlan=assigned.vlan, mac=assigned.mac)

        return [
            structs.replace(grant, addresses=tuple(told(grant.nic, address) for address in grant.addresses))
            for grant in grants
        ]


def _bare(address: Address) -> str:
    return address.address.partition("/")[0]
