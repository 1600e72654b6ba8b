"""The CNI verb STATUS: whether an ADD would fail on this node whatever the pod.

A runtime that is told so takes no pods but those on the node's own network; the node is NotReady, and after five
minutes of that its pods are evicted. So it is said only of what is this node's and makes every plain pod's ADD fail: a
disk that takes no journal, a kernel without links of the kind. A controller that does not answer, a pool that is
missing or a coordinator that is not synced are no reason: pods that need none of it still come, ADDs of the others are
tried again, and events, metrics and `spiderpoolctl status` tell of it.

An overlay that makes the first interface (`clusterNetwork`) is a reason, though the cluster mends it: until the file of
that name is in the node's folder, and while a plugin in it says that it is not available, every pod fails that names no
other default network, as with the file that Multus takes for the sign of its default network's readiness. That the node
is NotReady does not keep the overlay from it. Every node of an overlay begins like this, for want of any configuration:
the pods of the overlay's DaemonSet are on the node's network, which the kubelet starts whatever the runtime says of its
own, and tolerate the taints of a node that is not ready, as our agent does. What of an overlay needs a network of pods
to come up would not come up without our word either.

With an overlay the kind of our own configuration is not looked at: nothing is made of it. Where a Multus calls us the
overlay is that one's business, and ours is what it calls us for.
"""

from functools import partial

from actors.node import cluster
from actors.node.disk import Journal
from actors.node.meta import Meta
from cni.errors import CniError, InvalidConfig, LimitedConnectivity, NotReady
from cni.kernel import Kernel
from cni.plan import MADE_KINDS
from cni.protocol import Invocation, Role


async def check_node(kernel: Kernel, journal: Journal, meta: Meta, invocation: Invocation) -> None:
    """Return when nothing is in the way of an ADD of this configuration.

    Raises:
        NotReady: something is; the message says what.
        LimitedConnectivity: the same, and a plugin of the overlay's says that it is bad for the pods that are there.
    """
    try:
        await journal.check()
        overlay = await cluster.find(meta, invocation)
        if overlay is None:
            await _check_kind(kernel, invocation)
        else:
            await cluster.check(meta, overlay, invocation, ours=partial(_check_kind, kernel))
    except CniError as error:
        kind = LimitedConnectivity if error.code == LimitedConnectivity.CODE else NotReady
        raise kind(error.msg, error.details) from error


async def _check_kind(kernel: Kernel, invocation: Invocation) -> None:
    kind = invocation.link_kind
    if invocation.role is Role.MAIN and kind in MADE_KINDS and not await kernel.knows(kind):
        msg = f"type: this node's kernel has no links of kind {kind}"
        raise InvalidConfig(msg)
