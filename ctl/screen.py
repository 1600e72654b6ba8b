"""What `spiderpoolctl status` has found, and how it looks on a terminal."""

from collections.abc import Sequence

from msgspec import Struct, field

from api.status import Budget, PoolWork, Problem
from ctl.output import table

_ROWS = 12
"""Of a table. One screen: what does not fit is counted, and the part with trouble comes first."""
_WIDE_ROWS = 1 << 30


class Component(Struct, frozen=True):
    """A workload of the installation."""

    name: str
    kind: str
    desired: int
    ready: int
    updated: int
    version: str


class Agent(Struct, frozen=True):
    """A node and its agent."""

    node: str
    pod: str = ""
    state: str = "missing"
    restarts: int = 0
    version: str = ""
    last_add: float = 0.0
    last_pod: str = ""
    adds: int = 0
    failures: int = 0


class Replica(Struct, frozen=True):
    """A replica of the controller."""

    pod: str
    node: str = ""
    state: str = ""
    version: str = ""
    owns: int = 0
    answer: str = "ok"
    """Or why it did not give one."""
    writes: int = 0
    granted: int = 0
    """Writes of pools since it started, and the addresses that they granted."""
    budget: Budget = Budget()
    """Of the bytes that it may write of pools."""


class Pool(Struct, frozen=True):
    """A pool and its owner."""

    name: str
    used: int
    total: int
    owner: str = ""
    withheld: int = 0
    """Addresses that nobody gets for a while."""
    work: PoolWork = PoolWork()
    """Of its owner's actor."""


class Status(Struct, frozen=True):
    """All of it. With `--output json` this is what is printed."""

    namespace: str
    """Of the release; empty for a spiderpool-standalone."""
    components: tuple[Component, ...]
    replicas: tuple[Replica, ...]
    agents: tuple[Agent, ...]
    pools: tuple[Pool, ...]
    problems: tuple[Problem, ...]
    wrong: tuple[str, ...] = field(default=())
    """What keeps it from being well, a line each."""
    state_dir: str = ""
    """Of a spiderpool-standalone."""


def render(status: Status, *, now: float, wide: bool = False) -> str:
    """The screen. `now` is in Unix seconds. With `wide` nothing is cut and there are more columns."""
    rows = _WIDE_ROWS if wide else _ROWS
    parts = [
        f"Spiderpool in namespace {status.namespace}"
        if status.namespace
        else f"spiderpool-standalone in {status.state_dir}",
        table(
            [
                ("COMPONENT", "KIND", "READY", "UPDATED", "VERSION"),
                *(
                    (c.name, c.kind, f"{c.ready}/{c.desired}", f"{c.updated}/{c.desired}", c.version)
                    for c in status.components
                ),
            ]
        ),
        _replicas(status, rows),
        _agents(status, rows, now=now, wide=wide),
        _pools(status, rows, wide=wide),
    ]
    if status.problems:
        parts.append("Refused in the last hour:")
        refusals = [
            (ago(p.at, now), str(p.count), p.node, p.pod, p.cause, p.message if wide else _shortened(p.message))
            for p in status.problems
        ]
        parts.append(_table(("AGO", "TIMES", "NODE", "POD", "CAUSE", "MESSAGE"), refusals, "refusals", rows))
    parts.append("\n".join(f"WRONG: {line}" for line in status.wrong) or "All is well.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _replicas(status: Status, rows: int) -> str:
    if not status.namespace:
        return ""
    return _table(
        ("REPLICA", "NODE", "STATE", "VERSION", "OWNS", "GRANTED", "WRITES/ADDRESS", "MAY-WRITE"),
        [
            (
                *(r.pod, r.node, r.state, r.version),
                *(_done(r) if r.answer == "ok" else ("?", "", "", "")),
            )
            for r in status.replicas
        ],
        "replicas",
        rows,
    )


def _done(replica: Replica) -> Sequence[str]:
    ratio = _ratio(replica.writes, replica.granted)
    return str(replica.owns), str(replica.granted), ratio, _budget(replica.budget)


def _ratio(one: int, other: int) -> str:
    return f"{one / other:.2f}" if other else ""


def _budget(budget: Budget) -> str:
    """What may be written now, and how much a second comes to it."""
    if not budget.rate:
        return "unlimited"
    return f"{budget.balance / 1e6:.1f} MB, {budget.rate / 1e6:.1f} MB/s{', pools pause' if budget.balance < 0 else ''}"


def _agents(status: Status, rows: int, *, now: float, wide: bool) -> str:
    return _table(
        ("NODE", "AGENT", "STATE", "RESTARTS", "LAST-ADD", "POD", "ADDS", "FAILED", *(("VERSION",) if wide else ())),
        [
            (
                *(a.node, a.pod, a.state, str(a.restarts)),
                *(ago(a.last_add, now), a.last_pod, str(a.adds), str(a.failures)),
                *((a.version,) if wide else ()),
            )
            for a in sorted(status.agents, key=lambda a: (a.state == "Ready", a.node))
        ],
        "nodes",
        rows,
    )


def _pools(status: Status, rows: int, *, wide: bool) -> str:
    more = ("WITHHELD", "BATCHES", "MEAN", "LARGEST", "WAITING", "OLDEST") if wide else ()
    return _table(
        ("POOL", "USED", "TOTAL", "OWNER", *more),
        [
            (
                *(p.name, str(p.used), str(p.total), p.owner),
                *((str(p.withheld), *_work(p.work)) if wide else ()),
            )
            for p in status.pools
        ],
        "pools",
        rows,
    )


def _work(work: PoolWork) -> Sequence[str]:
    """Batches and the requests in them, then what waits and for how long."""
    return (
        *(str(work.batches), _ratio(work.requests, work.batches), str(work.largest)),
        *(str(work.waiting), f"{work.oldest:.1f}s" if work.waiting else ""),
    )


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], what: str, most: int) -> str:
    if not cells:
        return f"no {what}"
    more = f"\nand {len(cells) - most} more {what}" if len(cells) > most else ""
    return table([heads, *cells[:most]]) + more


def ago(at: float, now: float) -> str:
    """How long before `now`, as kubectl writes it: 12s, 5m, 3h, 2d; empty for never."""
    if not at:
        return ""
    seconds = max(0, int(now - at))
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (seconds >= size and letter != "m"):
            return f"{seconds // size}{letter}"
    return f"{seconds}s"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"
