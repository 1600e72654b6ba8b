"""Health: what every part of the program last said of itself, as a tree.

Whoever supervises a part reports for it; nobody is asked, so looking at health cannot hang. ``failed`` means that
nobody will put the part right any more and the process should be started anew; a part that somebody is busy
restarting or reconnecting is ``degraded``.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from msgspec import Struct


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    DEGRADED = "degraded"
    """It works less well, or will again soon."""
    STARTING = "starting"
    BLOCKED = "blocked"
    """It waits for something outside the program: it cannot be counted on, and a restart would not help."""
    FAILED = "failed"
    """It does not work and nobody is mending it."""
    STOPPED = "stopped"
    """It ended because it was told to."""


_WORST_FIRST = (State.FAILED, State.STARTING, State.BLOCKED, State.DEGRADED, State.OK, State.STOPPED)


class Report(Struct, frozen=True):
    """What was last said of one part."""

    state: State
    detail: str
    since: float
    """Unix seconds since when it has been in this state; a new detail alone does not change it."""


class Node(Struct, omit_defaults=True):
    """A part and those below it, as `/healthz` shows them."""

    name: str
    status: State
    """The worst of its own state and of all below it."""
    state: State | None = None
    """Its own; None if it is only a place in the tree."""
    detail: str = ""
    since: str = ""
    """ISO 8601, UTC."""
    children: list["Node"] = msgspec.field(default_factory=list)


class HealthTree:
    """The parts of one process. Paths are slash-separated, as in ``agent/store/pods``. For the event loop's thread."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.time) -> None:
        """`name` is the program's; `clock` gives Unix seconds."""
        self._name = name
        self._clock = clock
        self._reports: dict[str, Report] = {}

    def __repr__(self) -> str:
        return f"<HealthTree {self._name}: {self.status()}, {len(self._reports)} parts>"

    def report(self, path: str, state: State, detail: str = "") -> None:
        """Say how a part is. Cheap when nothing has changed."""
        last = self._reports.get(path)
        if last is None or last.state is not state:
            self._reports[path] = Report(state, detail, self._clock())
        elif last.detail != detail:
            self._reports[path] = Report(state, detail, last.since)

    def forget(self, path: str) -> None:
        """Take a part and all below it out of the tree; a path that is not there is no error."""
        below = f"{path}/"
        for held in [held for held in self._reports if held == path or held.startswith(below)]:
            del self._reports[held]

    def get(self, path: str) -> Report | None:
        """What was last said of exactly this part."""
        return self._reports.get(path)

    def status(self) -> State:
        """The worst of all parts, in the order failed, starting, blocked, degraded, ok, stopped.

        Starting when none reported.
        """
        states = {report.state for report in self._reports.values()}
        return next((state for state in _WORST_FIRST if state in states), State.STARTING)

    def reasons(self) -> list[str]:
        """A line for every part that is as bad as the whole."""
        worst = self.status()
        return [
            f"{path} is {report.state}{': ' if report.detail else ''}{report.detail}"
            for path, report in self._reports.items()
            if report.state is worst
        ]

    def snapshot(self) -> Node:
        """The whole tree, with the parts of each level in the order in which they first reported."""
        root = Node(name=self._name, status=self.status())
        for path, report in self._reports.items():
            node = root
            for part in path.split("/"):
                node = _child(node, part)
            node.state, node.detail = report.state, report.detail
            node.since = datetime.fromtimestamp(report.since, UTC).isoformat(timespec="milliseconds")
        for node in root.children:
            _roll_up(node)
        return root

    def to_json(self) -> bytes:
        """The tree as JSON (`Node`), for `/healthz`."""
        return msgspec.json.format(msgspec.json.encode(self.snapshot()), indent=2) + b"\n"

    def render(self) -> str:
        """The tree for people, one part a line."""
        return "".join(f"{line}\n" for line in _lines(self.snapshot(), depth=0))


def _child(node: Node, name: str) -> Node:
    for child in node.children:
        if child.name == name:
            return child
    made = Node(name=name, status=State.STOPPED)
    node.children.append(made)
    return made


def _roll_up(node: Node) -> State:
    states = {_roll_up(child) for child in node.children}
    if node.state is not None:
        states.add(node.state)
    node.status = next(state for state in _WORST_FIRST if state in states)
    return node.status


def _lines(node: Node, *, depth: int) -> Iterator[str]:
    detail = f"  {node.detail}" if node.detail else ""
    below = f"  (below: {node.status})" if node.state is not None and node.state is not node.status else ""
    yield f"{'  ' * depth}{node.name}  {node.state or node.status}{below}{detail}"
    for child in node.children:
        yield from _lines(child, depth=depth + 1)
