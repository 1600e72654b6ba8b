"""How a pod and its own node reach each other, and which NIC a pod's packets leave by, as values.

A macvlan link cannot talk to its parent, so a pod on the LAN would be cut off from exactly one machine: its own node,
with kubelet's probes and with everything that the node does for it (Services, the API server's address). Hence a veth
pair beside the LAN link (underlay), or the pair that the cluster's own network made (overlay): node and pod route each
other's addresses over it, the pod sends Services' addresses to the node over it, and replies to what came in by it
leave by it. A pod with several NICs gets a routing table for each further one, so that packets from a NIC's address
leave by that NIC.

Pure: `coordination_plan` decides from the call, the cluster's settings and what the kernel says of pod and node;
`cni.netlink.coordinator` acts.
"""

from cni.coordination.decision import check, coordination_plan, needs_cluster, pair_of, wanted
from cni.coordination.plan import (
    BOOT,
    KERNEL,
    MAIN_TABLE,
    MARK,
    POD_VETH,
    REPLY_TABLE,
    RULE_PRIORITY,
    RULE_PROTOCOL,
    CoordinationPlan,
    Pair,
    RoutePlan,
    RulePlan,
    gone_from_main,
    host_veth,
    single,
    unchanged,
)
from cni.coordination.views import NodeLink, NodeView, PodLink, PodView, Survey

__all__ = [
    "BOOT",
    "KERNEL",
    "MAIN_TABLE",
    "MARK",
    "POD_VETH",
    "REPLY_TABLE",
    "RULE_PRIORITY",
    "RULE_PROTOCOL",
    "CoordinationPlan",
    "NodeLink",
    "NodeView",
    "Pair",
    "PodLink",
    "PodView",
    "RoutePlan",
    "RulePlan",
    "Survey",
    "check",
    "coordination_plan",
    "gone_from_main",
    "host_veth",
    "needs_cluster",
    "pair_of",
    "single",
    "unchanged",
    "wanted",
]
