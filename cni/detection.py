"""Whether an address is free on the segment and its gateway there, as values: what to ask, and what the answers mean.

`cni.netlink.probe` asks. An address is in use when a link-layer address that is not the interface's own answers for it.
Interfaces may share one (ipvlan: all of a parent, and the parent): an answer with the own one proves nothing.

Who does not answer is taken to be absent, so the budget is a choice between time and certainty: 15 ms are many round
trips of a LAN, and too little for a host that sleeps.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

DEFAULT_PROBES = 1
DEFAULT_BUDGET = 0.015
"""Seconds."""


class ProbePlan(Struct, frozen=True, kw_only=True):
    """What to find out about one interface before it gets its addresses. Addresses are without prefix length."""

    netns: str
    ifname: str
    addresses: tuple[str, ...] = ()
    """That nobody may have."""
    gateways: tuple[str, ...] = ()
    """That somebody has to have."""
    probes: int = DEFAULT_PROBES
    """How often who has not answered is asked, at even distances within the budget."""
    budget: float = DEFAULT_BUDGET
    """Seconds for all of it, both families at the same time."""
    restore: bool = False
    """Whether the interface goes down again if it was: its plugin sets it up itself, and announces the addresses then.
    """


class Conflict(Struct, frozen=True):
    """Somebody has an address."""

    address: str
    mac: str


class Findings(Struct, frozen=True, kw_only=True):
    """What came of a `ProbePlan`."""

    ifname: str = ""
    conflicts: tuple[Conflict, ...] = ()
    silent: tuple[str, ...] = ()
    """Gateways that did not answer."""
    carrier: bool = True
    """Whether the interface had a carrier; without one nobody can answer."""
    skipped: str = ""
    """Why nothing was asked, in words."""


def open_questions(plan: ProbePlan, answers: Mapping[str, str]) -> Sequence[str]:
    """The addresses of the plan that nobody has answered for. `answers` are link-layer addresses by address."""
    return [address for address in dict.fromkeys((*plan.addresses, *plan.gateways)) if address not in answers]


def findings(plan: ProbePlan, answers: Mapping[str, str], *, mac: str, carrier: bool = True) -> Findings:
    """What the answers mean. `mac` is the interface's own link-layer address."""
    others = ((address, answers[address]) for address in plan.addresses if address in answers)
    return Findings(
        ifname=plan.ifname,
        conflicts=tuple(Conflict(address, seen) for address, seen in others if seen != mac),
        silent=tuple(gateway for gateway in plan.gateways if gateway not in answers),
        carrier=carrier,
    )
