"""The CNI verb STATUS: whether an ADD would fail on this node whatever the pod.

A runtime that is told so takes no pods at all, and the node is NotReady. So it is said of what nothing in the cluster
can make right: a disk that takes no journal, a kernel without links of the kind. A controller that does not answer, a
pool that is missing or a coordinator that is not synced are no reason: pods that need none of it still come, ADDs of
the others are tried again, and events, metrics and `spiderpoolctl status` tell of it.
"""

from actors.node.disk import Journal
from cni.errors import CniError, InvalidConfig, NotReady
from cni.kernel import Kernel
from cni.plan import MADE_KINDS
from cni.protocol import Invocation, Role


async def check_node(kernel: Kernel, journal: Journal, invocation: Invocation) -> None:
    """Return when nothing is in the way of an ADD of this configuration.

    Raises:
        NotReady: something is; the message says what.
    """
    kind = invocation.link_kind
    try:
        await journal.check()
        if invocation.role is Role.MAIN and kind in MADE_KINDS and not await kernel.knows(kind):
            msg = f"type: this node's kernel has no links of kind {kind}"
            raise InvalidConfig(msg)
    except CniError as error:
        raise NotReady(error.msg, error.details) from error
