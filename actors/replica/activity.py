"""What a controller replica remembers of the requests that it served, for `spiderpoolctl status`.

Memory only, and bounded: it answers "does it work, and what went wrong lately", not an audit.
"""

from collections import OrderedDict

import msgspec

from api.status import NodeActivity, Problem
from api.wire import Allocate, Allocated, Networked, Rejected, Release, Request, Response
from runtime.transport.port import Peer

HOUR = 3600.0
_PROBLEMS = 500
"""Different ones that are kept. kubelet repeats a failing ADD every few seconds: repetitions are counted, not kept."""
_NODES = 10_000
"""That are kept: a cluster that makes and drops nodes all day has more names than nodes."""


class Activity:
    """Of one replica. Plain values in, plain values out: the caller has the clock."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self._nodes: OrderedDict[str, NodeActivity] = OrderedDict()
        self._problems: OrderedDict[tuple[str, str, str], Problem] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Activity {len(self._nodes)} nodes, {len(self._problems)} problems>"

    def record(self, request: Request, answer: Response, peer: Peer, *, at: float) -> None:
        """A request was answered at `at`, Unix seconds."""
        rejected = answer if isinstance(answer, Rejected) else None
        if isinstance(request, Allocate) and not isinstance(answer, Networked):  # who is told that asks again
            self._count(request, answer, peer, at=at)
        if rejected is not None and isinstance(request, Allocate | Release):
            self._remember(str(request.pod), rejected, peer, at=at)

    def nodes(self) -> tuple[NodeActivity, ...]:
        """By name."""
        return tuple(activity for _, activity in sorted(self._nodes.items()))

    def problems(self, *, now: float) -> tuple[Problem, ...]:
        """Those of the hour before `now`, the latest first."""
        return tuple(problem for problem in reversed(self._problems.values()) if now - problem.at <= HOUR)

    def _count(self, request: Allocate, answer: Response, peer: Peer, *, at: float) -> None:
        before = self._nodes.pop(peer.node, None) or NodeActivity(node=peer.node)
        if isinstance(answer, Allocated):
            after = msgspec.structs.replace(
                before, agent=peer.pod, last_add=at, last_pod=str(request.pod), adds=before.adds + 1
            )
        else:
            after = msgspec.structs.replace(before, agent=peer.pod, failures=before.failures + 1)
        self._nodes[peer.node] = after
        while len(self._nodes) > _NODES:
            self._nodes.popitem(last=False)

    def _remember(self, pod: str, rejected: Rejected, peer: Peer, *, at: float) -> None:
        key = (peer.node, pod, rejected.cause)
        before = self._problems.pop(key, None)
        count = before.count + 1 if before is not None and at - before.at <= HOUR else 1
        self._problems[key] = Problem(
            at=at, count=count, node=peer.node, pod=pod, cause=rejected.cause, message=rejected.message
        )
        while len(self._problems) > _PROBLEMS:
            self._problems.popitem(last=False)
