"""The cluster's settings for the way between a pod and its own node, as each answer to an agent carries them.

From the SpiderCoordinator, and from the ServiceCIDRs that the API server knows. Pure: `actors.replica.cluster` has the
objects. No actor yet: nothing is written, so nothing needs an owner.
"""

from collections.abc import Iterable

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


def coordination(
    coordinators: Iterable[SpiderCoordinator],
    service_cidrs: Iterable[ServiceCIDR],
    *,
    name: str,
    configured: tuple[str, ...] = (),
) -> Coordination:
    """What agents are told.

    Args:
        coordinators: all there are; see `chosen`. Without any, the defaults hold.
        service_cidrs: those of the API server. Older ones have no such objects.
        name: of the SpiderCoordinator that counts.
        configured: service CIDRs that hold where the API server has none.
    """
    found = chosen(coordinators, name=name)
    spec, status = (found or SpiderCoordinator()).spec, (found or SpiderCoordinator()).status
    services = tuple(
        cidr
        for one in sorted(service_cidrs, key=lambda one: (one.metadata.creation_timestamp or "", one.metadata.name))
        for cidr in one.spec.cidrs
    )
    return Coordination(
        mode=spec.mode or _DEFAULT.mode,
        service_cidr=services or configured or tuple(status.service_cidr),
        overlay_pod_cidr=tuple(status.overlay_pod_cidr),
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
