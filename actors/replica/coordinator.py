"""The cluster's settings for the way between a pod and its own node, as each answer to an agent carries them.

Pure: `actors.replica.cluster` has the objects. In a cluster whose addresses are found out (`actors.coordination`) the
status of the SpiderCoordinator says them, and while it does not, agents are told why. Elsewhere, as in a standalone
program, they are the ServiceCIDRs that the store knows.
"""

from collections.abc import Iterable

from msgspec import structs

from actors.coordination.status import SYNCED
from api.coordinator import SpiderCoordinator
from api.core import ServiceCIDR
from api.wire import Coordination, FoundCoordinator

_DEFAULT = Coordination()


def chosen(coordinators: Iterable[SpiderCoordinator], *, name: str) -> SpiderCoordinator | None:
    """The one that counts: `name` is preferred, else the first by name. None where there is none."""
    alive = sorted(
        (one for one in coordinators if one.metadata.deletion_timestamp is None),
        key=lambda one: (one.metadata.name != name, one.metadata.name),
    )
    return alive[0] if alive else None


def looked_up(coordination: Coordination) -> FoundCoordinator:
    """What a program gets that asks the agent for the settings."""
    return FoundCoordinator(
        coordination=coordination,
        tune_pod_routes=coordination.tune_pod_routes,
        default_route_nic=coordination.pod_default_route_nic,
    )


def discovered(coordinators: Iterable[SpiderCoordinator], *, name: str) -> Coordination:
    """What agents are told where an actor keeps the status. `name` is of the SpiderCoordinator that counts."""
    found = chosen(coordinators, name=name)
    if found is None:
        return Coordination(unready="there is no SpiderCoordinator")
    status = found.status
    told = _told(found)
    if status.phase != SYNCED:
        why = status.reason or "the cluster's CIDRs have not been found out yet"
        state = status.phase or "not ready"
        return structs.replace(told, unready=f"SpiderCoordinator {found.metadata.name} is {state}: {why}")
    return structs.replace(
        told, service_cidr=tuple(status.service_cidr), overlay_pod_cidr=tuple(status.overlay_pod_cidr)
    )


def coordination(
    coordinators: Iterable[SpiderCoordinator],
    service_cidrs: Iterable[ServiceCIDR],
    *,
    name: str,
    configured: tuple[str, ...] = (),
) -> Coordination:
    """What agents are told where nobody keeps the status.

    Args:
        coordinators: all there are; see `chosen`. Without any, the defaults hold.
        service_cidrs: those of the store. Older API servers have no such objects.
        name: of the SpiderCoordinator that counts.
        configured: service CIDRs that hold where the store has none.
    """
    found = chosen(coordinators, name=name)
    services = tuple(
        cidr
        for one in sorted(service_cidrs, key=lambda one: (one.metadata.creation_timestamp or "", one.metadata.name))
        for cidr in one.spec.cidrs
    )
    status = (found or SpiderCoordinator()).status
    return structs.replace(
        _told(found),
        service_cidr=services or configured or tuple(status.service_cidr),
        overlay_pod_cidr=tuple(status.overlay_pod_cidr),
    )


def _told(found: SpiderCoordinator | None) -> Coordination:
    """What its author says, without the cluster's addresses."""
    spec = (found or SpiderCoordinator()).spec
    return Coordination(
        mode=spec.mode or _DEFAULT.mode,
        hijack_cidr=tuple(spec.hijack_cidr) if found else _DEFAULT.hijack_cidr,
        policy_routes=tuple(spec.policy_routes),
        pod_mac_prefix=spec.pod_mac_prefix or "",
        veth_mtu=spec.veth_mtu or _DEFAULT.veth_mtu,
        veth_link_address=spec.veth_link_address or "",
        host_rule_table=spec.host_rule_table or _DEFAULT.host_rule_table,
        pod_rp_filter=_DEFAULT.pod_rp_filter if spec.pod_rp_filter is None else spec.pod_rp_filter,
        tx_queue_len=spec.tx_queue_len or 0,
        tune_pod_routes=spec.tune_pod_routes is not False,
        pod_default_route_nic=spec.pod_default_route_nic or "",
    )
