"""The actor that keeps the agent's files on its node: the shim and the CNI configuration (`cni.install`).

Messages: `Begun` when an ADD would be served, `Looked` and `Failed` from its own work, `Look` and `Late` from its
timers, `Retire` from whoever follows the agent's pod, `Withdrew` when that is done. State: whether the files were in
place once, whether it has retired. Persists: those files. Answers: nothing; it tells by events and by the health of
`.../files`.

Nothing is installed before an ADD would be served: with the configuration in place kubelet calls the node Ready. From
then on it looks every half minute whether everything is as it should be and puts back what is not, until another agent
has taken its socket over: the files are that one's then. After `Retire` it takes away what can go and installs no more;
calls are served as before until the process is told to end.

What a crash leaves: files that are whole, and that the next agent completes, or takes away if its pod still asks.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, assert_never

import anyio.to_thread
import msgspec
from msgspec import Struct

from actors.events.recorder import Message as EventsMessage
from actors.events.recorder import Say
from api.retirement import LEFT, WITHDRAWN
from api.settings import AgentSettings
from cni import install
from cni.install import Installed, Withdrawn
from cni.netlink import coordinator
from cni.netlink.support import knows_link_kind
from runtime.actor import Actor, Ref
from runtime.envelope import Envelope
from runtime.errors import ActorError
from telemetry.health import State

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0
_PATIENCE_SECONDS = 20.0
"""Kubelet asks every second whether a pod has started, and from then on every ten whether it is ready. So it is told of
the start when the files are there, or after this time without them: no restart would bring a controller back."""

_PAUSES_SECONDS = (1.0, 30.0)
"""After a failure: the first pause, and the longest."""

_ATTEMPTS = 5
"""To withdraw, about 20 seconds: then whoever waits for an answer gets one, and it goes on all the same."""

SHADOWED, FAILED, LACKS, RESTORED, BACK = (
    "CNIShadowed",
    "CNIInstallFailed",
    "KernelLacksMacvlan",
    "CNIRestored",
    "CNIInstalled",
)
"""Reasons of its events, beside those of `api.retirement`."""


class Begun(Struct, frozen=True, tag=True):
    """An ADD would be served."""


class Look(Struct, frozen=True, tag=True):
    """Time to look."""


class Late(Struct, frozen=True, tag=True):
    """It takes longer than a start does."""


class Report(Struct, frozen=True, kw_only=True):
    """What a look found and did."""

    installed: Installed = Installed()
    kernel: bool = True
    """Whether the kernel can make the links; else only the shims are installed."""
    current: bool = True
    """Whether the files are this agent's business; another one may have taken over."""


class Looked(Struct, frozen=True, tag=True):
    """A look is over."""

    report: Report


class Failed(Struct, frozen=True, tag=True):
    """A file could not be read, written or removed."""

    why: str


class Retire(Struct, frozen=True, tag=True):
    """The agent's pod asks it to leave the node. A second time does nothing."""


class Withdrew(Struct, frozen=True, tag=True):
    """What could go is gone."""

    withdrawn: Withdrawn


_NOT_BEFORE = "nothing is installed before an ADD would be served"

Message = Begun | Look | Late | Looked | Failed | Retire | Withdrew


class Files(Protocol):
    """The files of a node."""

    async def install(self) -> Report:
        """Have them all in place. Raises `cni.install.InstallFailed`."""
        ...

    async def withdraw(self) -> Withdrawn:
        """Take away what can go. Raises `cni.install.InstallFailed`, and `cni.errors.CniError` of the kernel."""
        ...


class NodeFiles:
    """Those of this machine, and its routing rules on the way out; the work happens on worker threads."""

    def __init__(self, settings: AgentSettings, *, current: Callable[[], bool]) -> None:
        """`current` tells whether this agent serves the node's socket still; it may block."""
        self._places = install.Places(
            bin_dir=Path(settings.cni_bin_dir),
            conf_dir=Path(settings.cni_conf_dir) if settings.cni_conf_dir else None,
            shim_dir=Path(settings.cni_shim_dir),
            plugins=tuple(settings.cni_plugins.split(",")),
            conflist=install.conflist(
                master=settings.cni_master,
                mtu=settings.cni_mtu,
                networks=settings.cni_networks,
                cluster_network=settings.cni_cluster_network,
                status=settings.cni_status,
            ),
        )
        self._current = current

    async def install(self) -> Report:
        """See `Files`."""
        return await anyio.to_thread.run_sync(self._install)

    async def withdraw(self) -> Withdrawn:
        """See `Files`."""
        return await anyio.to_thread.run_sync(self._withdraw)

    def _withdraw(self) -> Withdrawn:
        withdrawn = install.withdraw(self._places)
        removed, needed = coordinator.remove_rules()
        why = withdrawn.why
        if needed:
            why += f"; pods that run need {', '.join(needed)}"
        return msgspec.structs.replace(withdrawn, removed=(*withdrawn.removed, *removed), why=why)

    def _install(self) -> Report:
        if not self._current():
            return Report(current=False)
        if self._places.conf_dir is not None and not knows_link_kind(install.LINK_KIND):
            return Report(installed=install.install_shims(self._places), kernel=False)
        return Report(installed=install.install(self._places))


class NoFiles:
    """Of an agent whose settings name no folder."""

    async def install(self) -> Report:
        """See `Files`."""
        return Report()

    async def withdraw(self) -> Withdrawn:
        """See `Files`."""
        return Withdrawn(removed=(), left=(), why="nothing was installed")


class InstallerActor(Actor[Message]):
    """See the module."""

    capacity = 100

    def __init__(
        self,
        *,
        files: Files,
        ready: Callable[[], Awaitable[None]],
        retiring: Callable[[], bool],
        events: Ref[EventsMessage] | None,
    ) -> None:
        """`ready` returns when an ADD would be served; `retiring` says whether the pod has asked for withdrawal.

        Without `events` what there is to say goes to the log alone.
        """
        self._files = files
        self._ready = ready
        self._asked = retiring
        self._events = events
        self._begun = False
        self._in_place = False
        self._busy = False
        self._retiring = False
        self._done = False
        self._shadow = ""
        self._said = ("", "")
        self._attempts = 0
        self._pause = _PAUSES_SECONDS[0]

    def __repr__(self) -> str:
        state = "retired" if self._done else "retiring" if self._retiring else "installed" if self._in_place else "new"
        return f"<InstallerActor {state}>"

    def started(self) -> None:
        """Wait until calls are served."""
        self._note(State.STARTING, _NOT_BEFORE)
        self.timers.start("late", _PATIENCE_SECONDS, Late())
        self.pipe(self._begin(), lambda _: Begun())

    def handle(self, message: Message, _: Envelope) -> object:
        """Install, look, withdraw: one at a time."""
        match message:
            case Begun():
                self._begun = True
                self._act()
            case Look():
                self._act()
            case Late():
                if not (self._begun or self._retiring):
                    self._note(State.BLOCKED, _NOT_BEFORE)
            case Looked(report):
                self._busy = False
                self._looked(report)
                self._act() if self._retiring else self.timers.start("look", _LOOK_SECONDS, Look())
            case Retire():
                if not self._retiring:
                    self._retiring = True
                    self._act()
            case Withdrew(withdrawn):
                self._busy, self._done = False, True
                self._note(State.DEGRADED, f"withdrawn from this node: {withdrawn}")
                self._say(LEFT if withdrawn.left else WITHDRAWN, str(withdrawn), warning=bool(withdrawn.left))
            case Failed(why):
                self._busy = False
                self._failed(why)
            case _:
                assert_never(message)
        return None

    async def _begin(self) -> None:
        await self._ready()

    def _act(self) -> None:
        if self._busy or self._done:
            return
        self._busy = True
        self._retiring = self._retiring or self._asked()
        if self._retiring:
            self.timers.cancel("look")
            self.pipe(self._files.withdraw(), Withdrew, failed=lambda error: Failed(str(error)))
        else:
            self.pipe(self._files.install(), Looked, failed=lambda error: Failed(str(error)))

    def _looked(self, report: Report) -> None:
        self._pause = _PAUSES_SECONDS[0]
        if not report.current:
            self._note(State.OK, "another agent has taken over")
            return
        changed = ", ".join(report.installed.changed)
        if changed and not self._in_place:
            self._say(BACK, f"installed {changed}", warning=False)
        elif changed:
            self._say(RESTORED, f"somebody changed or removed {changed}: put back. To uninstall, use helm uninstall")
        self._in_place = True
        shadow = report.installed.shadow
        if not report.kernel:
            why = (
                "this node's kernel has no macvlan (CONFIG_MACVLAN, or its module is missing): the node keeps the"
                " network that it has, Spiderpool's CNI configuration is not installed"
            )
            self._note(State.DEGRADED, why)
            self._say(
                LACKS, f"{why}. Install a kernel with macvlan, or keep the agent off this node by its nodeSelector"
            )
        elif shadow:
            self._note(State.DEGRADED, f"{shadow} comes before {install.CONFLIST}: pods get that network")
            self._say(
                SHADOWED,
                f"{shadow} comes before {install.CONFLIST} in lexical order, so the container runtime takes it and"
                " this node's pods do not get Spiderpool's network. It is not touched: remove or rename it if it is not"
                " wanted",
            )
        else:
            self._note(State.OK, "")
            if self._shadow:
                self._say(BACK, f"{self._shadow} is gone: pods get Spiderpool's network now", warning=False)
            self._said = ("", "")
        self._shadow = shadow

    def _failed(self, why: str) -> None:
        if self._retiring:
            self._note(State.DEGRADED, f"cannot withdraw yet: {why}")
            self._attempts += 1
            if self._attempts == _ATTEMPTS:
                self._say(LEFT, f"cannot withdraw, still trying: {why}")
        else:
            self._note(State.BLOCKED, why)
            self._say(
                FAILED,
                f"{why}. Pods of this node do not get Spiderpool's network until that works: make the folder writable,"
                " or name another one by global.cniBinHostPath and global.cniConfHostPath",
            )
        self.timers.start("look", self._pause, Look())
        self._pause = min(2 * self._pause, _PAUSES_SECONDS[1])

    def _note(self, state: State, detail: str) -> None:
        if self.system.health is not None:
            self.system.health.report(f"{self.ref.name}/files", state, detail)

    def _say(self, reason: str, message: str, *, warning: bool = True) -> None:
        if (reason, message) != self._said:  # what lasts is looked at again and again; its event counts that
            (_log.warning if warning else _log.info)("%s: %s", reason, message)
            self._said = reason, message
        if self._events is not None:
            try:
                self._events.tell(Say(reason, message, warning=warning))
            except ActorError as error:
                _log.warning("event %s is lost: %s", reason, error)
