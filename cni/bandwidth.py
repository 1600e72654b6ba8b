"""How much one NIC of a pod may carry, as values; `cni.netlink.traffic` acts.

What a pod sends waits at its NIC (a token bucket, tbf). What comes to it cannot wait on a link that has no peer of its
own, as macvlan, ipvlan, VLAN links and virtual functions are: it is led through an ifb, a link that does nothing else,
and waits there. All of that is in the pod's namespace, sees what pods on one parent send each other, which never comes
by the parent's own queues, costs nothing where there is no limit, and goes with the namespace. Of the pair between pod
and node each end holds back what it sends; the node's is out of the pod's reach.

The physical NIC limits what a virtual function sends, by itself.
"""

import hashlib
from collections.abc import Iterator

from msgspec import Struct

from api.bandwidth import LEAST_RATE, MOST_RATE
from api.networks import Bandwidth
from cni.config import NetConfig
from cni.coordination import CoordinationPlan
from cni.errors import InvalidConfig, UnsupportedField
from cni.protocol import Invocation

WAIT_S = 0.025
"""What a bucket lets wait is sent within so many seconds, as with the reference plugin (`latencyInMillis` in
containernetworking/plugins, plugins/meta/bandwidth/ifb_creator.go); a pod that was silent may send as much at once. The
reference plugin has no burst of its own and refuses a rate without one."""
NO_BURST = 2**31 - 1
"""Bits. Runtimes, which have to name a burst, say "none" by one that is never used up: the kubelet did by this one,
containerd does by 2^32 - 1, CRI-O by 2^35 - 9. A bucket of that size would not limit anything for minutes."""

_FRAME_BYTES = 14 + 2 * 4
"""Of Ethernet around a packet, with two VLAN tags."""
_BYTES = 2**32 - 1
"""What the kernel counts a bucket in."""
_NAME_BYTES = 11
"""Of a link's name there are 15."""
_LOCAL_IN = ("ipvlan", "l3s")
"""Packets to such a link are handed to IP directly, past everything that could hold them back."""


class Bucket(Struct, frozen=True):
    """A token bucket."""

    rate: int
    """Bytes a second."""
    burst: int
    """Bytes that may pass at once; at least the largest frame, or that would never pass."""
    limit: int
    """Bytes that may wait; what comes on top is dropped."""


class LimitPlan(Struct, frozen=True, kw_only=True):
    """The limits of one NIC.

    It is kept in journals: a field that is added needs a default that is right for plans without it.
    """

    netns: str
    ifname: str
    ingress: Bucket | None = None
    """Of what comes to the pod."""
    egress: Bucket | None = None
    """Of what the pod sends."""
    vf_rate: int = 0
    """Mbit/s that the physical NIC is to let the virtual function send, instead of `egress`; 0: no such limit."""
    pod_end: str = ""
    """The pod's end of the pair to its node, limited as the NIC is; empty: none, or not this NIC's."""
    host_veth: str = ""
    """The node's end."""

    @property
    def ifb(self) -> str:
        """The link through which goes what comes to the NIC."""
        return ifb_name(self.ifname)


def ifb_name(ifname: str) -> str:
    """The name of a NIC's ifb. It depends on nothing else: a DEL that has lost all memory finds it."""
    short = ifname if len(ifname) <= _NAME_BYTES else hashlib.sha256(ifname.encode()).hexdigest()[:_NAME_BYTES]
    return f"ifb-{short}"


def check(conf: NetConfig) -> None:
    """Refuse a limit that the runtime cannot mean, before anything is asked for.

    Raises:
        InvalidConfig: a rate is out of bounds, or a burst has no rate.
    """
    given = conf.runtime_config.bandwidth
    if given is None:
        return
    for direction, rate, burst in (
        ("ingress", given.ingress_rate, given.ingress_burst),
        ("egress", given.egress_rate, given.egress_burst),
    ):
        field = f"runtimeConfig.bandwidth.{direction}"
        if rate and not LEAST_RATE <= rate <= MOST_RATE:
            raise InvalidConfig(f"{field}Rate: {rate} is not between {LEAST_RATE} and {MOST_RATE} bits a second")
        if burst and not rate:
            raise InvalidConfig(f"{field}Burst: {burst} has no {direction}Rate that it belongs to")


def limit_plan(
    invocation: Invocation, pod: Bandwidth | None, *, mtu: int, coordination: CoordinationPlan | None = None
) -> LimitPlan | None:
    """The limits of the NIC that a call makes; None for none.

    In each direction a rate that the runtime gives, which is for this very NIC, wins over the pod's annotation, which
    is for each NIC. `mtu` is the NIC's; `coordination` says whether it has a pair to the node.

    Raises:
        UnsupportedField: the kernel has no way to limit what comes to such a NIC.
    """
    given = invocation.conf.runtime_config.bandwidth or Bandwidth()
    pod = pod or Bandwidth()
    pair = None if coordination is None or coordination.overlay or coordination.host_index else coordination
    largest = mtu if pair is None else max(mtu, pair.mtu)
    ingress = _bucket(given.ingress_rate or pod.ingress_rate, given.ingress_burst, mtu=largest)
    egress = _bucket(given.egress_rate or pod.egress_rate, given.egress_burst, mtu=largest)
    if ingress is None and egress is None:
        return None
    kind = invocation.link_kind
    if ingress is not None and (kind, invocation.conf.mode) == _LOCAL_IN:
        raise UnsupportedField(
            f"ingress bandwidth: what comes to {invocation.ifname}, an ipvlan link of mode l3s, cannot be limited",
            "modes l2 and l3 can",
        )
    return LimitPlan(
        netns=invocation.netns,
        ifname=invocation.ifname,
        ingress=ingress,
        egress=egress,
        vf_rate=-(-egress.rate * 8 // 10**6) if egress is not None and kind == "sriov" else 0,
        pod_end="" if pair is None else pair.pod_end,
        host_veth="" if pair is None else pair.host_veth,
    )


def buckets(plan: LimitPlan) -> Iterator[tuple[str, Bucket]]:
    """The pod's links that hold something back, and how much."""
    if plan.ingress is not None:
        yield plan.ifb, plan.ingress
    if plan.egress is not None:
        if not plan.vf_rate:
            yield plan.ifname, plan.egress
        if plan.pod_end:
            yield plan.pod_end, plan.egress


def _bucket(bits: int, given_burst: int, *, mtu: int) -> Bucket | None:
    if not bits:
        return None
    rate, frame = bits // 8, mtu + _FRAME_BYTES
    waiting = max(int(rate * WAIT_S), 2 * frame)
    burst = max(given_burst // 8, frame) if 0 < given_burst < NO_BURST else waiting
    return Bucket(rate=rate, burst=min(burst, _BYTES), limit=min(burst + waiting, _BYTES))
