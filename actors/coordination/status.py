"""What a SpiderCoordinator's status has to say of a finding. Pure."""

from typing import Any, Final

from actors.coordination.discovery import Finding
from api.coordinator import CoordinatorStatus, SpiderCoordinator
from api.meta import MESSAGE_LENGTH, Condition, with_condition
from ipam.withheld import rfc3339

SYNCED: Final = "Synced"
NOT_READY: Final = "NotReady"
"""Of `status.phase`; the first is a condition's type as well."""


def status_of(coordinator: SpiderCoordinator, finding: Finding, *, now: float) -> CoordinatorStatus:
    """The status as it has to be, equal to what is there when nothing is to be written. Others' conditions stay."""
    before = coordinator.status
    known = not finding.problem
    return CoordinatorStatus(
        phase=SYNCED if known else NOT_READY,
        reason=finding.problem or None,
        overlay_pod_cidr=list(finding.pods),
        service_cidr=list(finding.services),
        conditions=_conditions(before, finding, generation=coordinator.metadata.generation, now=now),
    )


def change_of(status: CoordinatorStatus) -> dict[str, Any]:
    """The same as a patch: what is empty has to be named, or what was there before would stay."""
    return {
        "status": {
            "phase": status.phase,
            "reason": status.reason,
            "overlayPodCIDR": status.overlay_pod_cidr,
            "serviceCIDR": status.service_cidr,
            "conditions": status.conditions,
        }
    }


def network_of(status: CoordinatorStatus) -> str:
    """Whose network pods have, as it was found out and is remembered; empty where it is not known."""
    found = next((one for one in status.conditions if one.type == SYNCED), None)
    return found.reason.lower() if found is not None and found.status == "True" else ""


def _conditions(before: CoordinatorStatus, finding: Finding, *, generation: int, now: float) -> list[Condition]:
    known = not finding.problem
    mine = Condition(
        type=SYNCED,
        status="True" if known else "False",
        reason=(finding.network or "").capitalize() if known else finding.word,
        message=(finding.source if known else finding.problem)[:MESSAGE_LENGTH],
        last_transition_time=rfc3339(now),
        observed_generation=generation,
    )
    return with_condition(before.conditions, mine)
