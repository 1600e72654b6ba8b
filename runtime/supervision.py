"""Supervision: who restarts what, how often, and in which order things start and end.

A supervisor runs its children (actors, services and other supervisors) and restarts those that fail. When failures
come faster than its intensity allows, it gives up and fails itself, which its own supervisor sees as one failure: a
fault that a restart does not cure climbs until something larger is rebuilt, and at the root the process ends and its
platform starts it afresh.
"""

import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from runtime.actor import Actor, Cell, Ref, System
from runtime.errors import Escalated
from runtime.mailbox import MailboxStatistics
from telemetry import metrics
from telemetry.health import State

_log = logging.getLogger(__name__)


_HEALTH = {
    "running": State.OK,
    "restarting": State.DEGRADED,
    "stopped": State.STOPPED,
    "failed": State.FAILED,
}


class Strategy(Enum):
    """Who is restarted when one child fails."""

    ONE_FOR_ONE = "one_for_one"
    """Only the child that failed."""
    REST_FOR_ONE = "rest_for_one"
    """It and all children that were added after it, because they build on it."""


class Restart(Enum):
    """When a child is started again."""

    PERMANENT = "permanent"
    """Whenever it ends."""
    TRANSIENT = "transient"
    """Only when it ends by an exception."""
    TEMPORARY = "temporary"
    """Never."""


class Intensity(Struct, frozen=True):
    """More than `failures` within `seconds` and the supervisor gives up."""

    failures: int = 5
    seconds: float = 10.0


class ChildStatus(Struct, frozen=True):
    """One line of the supervision tree."""

    name: str
    state: str
    """``starting``, ``running``, ``restarting``, ``stopped`` or ``failed``."""
    restarts: int = 0
    last_failure: str = ""
    mailbox: MailboxStatistics | None = None
    children: tuple["ChildStatus", ...] = ()
    kind: str = ""
    """What an actor is; empty for services and supervisors."""


class _Child:
    """A child and its current life."""

    def __init__(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        restart: Restart,
        shutdown: float,
        cell: "Cell[object] | None" = None,
        supervisor: "Supervisor | None" = None,
    ) -> None:
        self.name = name
        self.run = run
        self.restart = restart
        self.shutdown = shutdown
        self.cell = cell
        self.supervisor = supervisor
        self.scope: anyio.CancelScope | None = None
        self.ended: anyio.Event | None = None
        self.state = "starting"
        self.restarts = 0
        self.last_failure = ""
        self.stopping = False
        self.restarting = False

    def request_stop(self) -> None:
        self.stopping = True
        if self.cell is not None:
            self.cell.request_stop()
        elif self.scope is not None and self.supervisor is None:
            self.scope.cancel()

    def status(self) -> ChildStatus:
        return ChildStatus(
            name=self.name,
            state=self.state,
            restarts=self.restarts,
            last_failure=self.last_failure,
            mailbox=self.cell.mailbox.statistics() if self.cell is not None else None,
            children=self.supervisor.status().children if self.supervisor is not None else (),
            kind=self.cell.mailbox.kind if self.cell is not None else "",
        )


class Supervisor:
    """Runs children until it is stopped. `run` itself can be a child of another supervisor."""

    def __init__(
        self,
        name: str,
        system: System,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity | None = None,
    ) -> None:
        """`name` is a path and prefixes the names of its actors."""
        self.name = name
        self.system = system
        self._strategy = strategy
        self._intensity = intensity or Intensity()
        self._children: dict[str, _Child] = {}
        self._failures: deque[float] = deque()
        self._group: TaskGroup | None = None
        self._stopping = False
        self._stop_requested: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.name} {[f'{c.name}: {c.state}' for c in self._children.values()]}>"

    def add_actor[M](
        self,
        name: str,
        factory: Callable[[], Actor[M]],
        *,
        restart: Restart = Restart.PERMANENT,
        shutdown: float = 1.0,
        capacity: int | None = None,
    ) -> Ref[M]:
        """Add an actor and return its ref, which is valid at once; started now if the supervisor runs.

        `shutdown` is how many seconds it gets for an orderly end. Raises `ValueError` when the name is taken.
        """
        cell: Cell[M] = Cell(f"{self.name}/{name}", factory, self.system, capacity=capacity or Actor.capacity)
        self._add(_Child(name, cell.run, restart=restart, shutdown=shutdown, cell=cell))  # type: ignore[arg-type]
        return cell.ref

    def add_service(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        restart: Restart = Restart.PERMANENT,
        shutdown: float = 1.0,
    ) -> None:
        """Add a long-running coroutine function. It is stopped by cancelling it."""
        self._add(_Child(name, run, restart=restart, shutdown=shutdown))

    def add_supervisor(
        self, child: "Supervisor", *, restart: Restart = Restart.PERMANENT, shutdown: float = 5.0
    ) -> None:
        """Add a subtree. `shutdown` is how many seconds all of it gets for an orderly end."""
        name = child.name.rpartition("/")[2]
        self._add(_Child(name, child.run, restart=restart, shutdown=shutdown, supervisor=child))

    async def remove(self, name: str) -> None:
        """Stop a child in order and forget it; unknown names are ignored."""
        child = self._children.get(name)
        if child is not None:
            await self._stop_child(child)
            self._children.pop(name, None)
            if self.system.health is not None:
                self.system.health.forget(f"{self.name}/{name}")

    def status(self) -> ChildStatus:
        """The supervision tree below and including this supervisor."""
        return ChildStatus(
            name=self.name,
            state="stopped" if self._group is None else "running",
            children=tuple(child.status() for child in self._children.values()),
        )

    async def run(self) -> None:
        """Run all children until `stop`.

        Raises `Escalated` when they fail too often; cancellation ends them at once.
        """
        self._stopping = False
        self._failures.clear()
        self._stop_requested = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                for child in list(self._children.values()):
                    self._start(child)
                await self._stop_requested.wait()
                for child in reversed(list(self._children.values())):
                    await self._stop_child(child)
                group.cancel_scope.cancel()
        except BaseExceptionGroup as error:
            escalated = error.subgroup(Escalated)
            if escalated is not None:
                raise escalated.exceptions[0] from error
            raise
        finally:
            self._group = None
            for child in self._children.values():
                child.scope = None
                if child.cell is not None and (self._stopping or child.stopping):
                    child.cell.close()

    async def stop(self) -> None:
        """End the children in reverse order, each with its own time for it, and let `run` return. Idempotent."""
        self._stopping = True
        if self._stop_requested is not None:
            self._stop_requested.set()

    def _add(self, child: _Child) -> None:
        if child.name in self._children:
            msg = f"supervisor {self.name} already has a child {child.name}"
            raise ValueError(msg)
        self._children[child.name] = child
        if self._group is not None:
            self._start(child)

    def _start(self, child: _Child) -> None:
        assert self._group is not None
        child.stopping = False
        child.ended = anyio.Event()
        _ = contextvars.Context().run(self._group.start_soon, self._keep, child)

    async def _keep(self, child: _Child) -> None:
        """Run one child, life after life."""
        assert child.ended is not None
        try:
            while True:
                failure: Exception | None = None
                self._report(child, "running")
                child.restarting = False
                with anyio.CancelScope() as child.scope:
                    try:
                        await child.run()
                    except Exception as error:  # noqa: BLE001 - whatever it was, the child has failed
                        failure = error
                child.scope = None
                if child.stopping or self._stopping:
                    self._report(child, "stopped")
                    return
                if child.restarting:
                    child.restarts += 1
                    continue
                if failure is None and child.restart is not Restart.PERMANENT:
                    self._report(child, "stopped")
                    return
                child.last_failure = _one_line(failure) if failure is not None else "ended by itself"
                _log.error("%s/%s failed: %s", self.name, child.name, child.last_failure, exc_info=failure)
                if child.restart is Restart.TEMPORARY:
                    self._report(child, "failed")
                    return
                self._count_failure(child, failure)
                self._report(child, "restarting")
                child.restarts += 1
                if child.cell is not None:
                    metrics.ACTOR_RESTARTS.labels(actor=child.cell.mailbox.kind).inc()
                if self._strategy is Strategy.REST_FOR_ONE:
                    self._restart_after(child)
        finally:
            child.scope = None
            if child.cell is not None and child.state in {"stopped", "failed"}:
                child.cell.close()
            child.ended.set()

    def _report(self, child: _Child, state: str) -> None:
        child.state = state
        health = self.system.health
        if health is not None and child.supervisor is None:
            detail = f"{child.restarts} restarts, last failure: {child.last_failure}" if child.last_failure else ""
            health.report(f"{self.name}/{child.name}", _HEALTH[state], detail)

    def _count_failure(self, child: _Child, failure: Exception | None) -> None:
        now = self.system.clock.now()
        self._failures.append(now)
        while self._failures and self._failures[0] < now - self._intensity.seconds:
            self._failures.popleft()
        if len(self._failures) > self._intensity.failures:
            self._report(child, "failed")
            raise Escalated(self.name, child.name, len(self._failures), self._intensity.seconds) from failure

    def _restart_after(self, failed: _Child) -> None:
        behind = False
        for child in self._children.values():
            if behind and child.scope is not None:
                child.restarting = True
                child.scope.cancel()
            behind = behind or child is failed

    async def _stop_child(self, child: _Child) -> None:
        if child.ended is None or child.ended.is_set():
            return
        with anyio.move_on_after(child.shutdown):
            child.request_stop()
            if child.supervisor is not None:
                await child.supervisor.stop()
            await child.ended.wait()
            return
        _log.warning("%s/%s did not end within %g s: cancelled", self.name, child.name, child.shutdown)
        if child.scope is not None:
            child.scope.cancel()
        await child.ended.wait()


def _one_line(error: Exception) -> str:
    """An exception as a single line: its type and text; of a group, the first cause."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
