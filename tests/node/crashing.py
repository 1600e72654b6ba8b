"""A program that runs whole lives of an agent, each in a process of its own that may die at a given step.

A life is controller and agent on a state folder and the real kernel: it recovers what is there, carries out the calls
that it is given, waits until nothing is owed, and ends; or it dies before its N-th step, as by kill -9. A step is a
datagram to the kernel or a change of the journal. Lives are forked from a process that has read all the code: 30 ms
instead of a second.

It reads one JSON object a line, `Life`, and answers each with one, `Outcome`.
"""

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from actors.agent import Agent
from actors.controller import Controller
from actors.node.detection import Terms
from actors.node.disk import open_journal
from actors.poolfiles import DiskFolder, PoolFiles
from api.kinds import ENDPOINT, IPPOOL
from api.settings import load_standalone
from api.wire import Allocate, Networked, decode_request, encode
from cni import journal
from cni.errors import CniError
from cni.kernel import LinuxKernel
from cni.netlink.socket import NetlinkSocket
from cni.pods import named_somehow
from cni.protocol import parse_invocation
from cni.vfs import LinuxVfs
from runtime.actor import System
from runtime.store.sqlite import FILE_NAME, SQLiteStore
from runtime.supervision import Supervisor
from runtime.transport.local import LocalChannel
from runtime.transport.port import Call, Peer
from tests.node.played import PlayedNic

DIED = 42
_RTM_END, _GET, _NOTHING = 256, 2, 255
"""Types of rtnetlink are NEW, DEL, GET, SET, and again; those of others have a subsystem in their upper byte."""
_SETTLE_SECONDS = 20.0


class Life(Struct, frozen=True):
    """What is to be done in one."""

    state: str
    """Folder."""
    pools: str
    """Folder with the pools as YAML files."""
    calls: list[tuple[dict[str, str], dict[str, Any]]] = []
    """Headers, as the shim sends them, and configurations; one after the other."""
    die_at: int = 0
    """The step that is not taken any more, counted from `count_from`; 0: none."""
    refuse_at: int = 0
    """The step that the kernel refuses, counted as well; 0: none. A change of the journal is not its to refuse."""
    changes_only: bool = False
    """Whether a datagram that only asks is no step: to die before it leaves what to die before the next one leaves."""
    played: str = ""
    """Folder of a `tests.node.played` NIC; a setting that its PF is told is a step, too."""
    count_from: int = 0
    """The call, counted from 0, from which on steps are counted."""
    networks: Networked | None = None
    """What the pod names, which a controller without pods does not know."""
    terms: Terms = Terms()
    """What is looked for on the network."""


class Outcome(Struct, frozen=True):
    """What became of it."""

    died: bool = False
    steps: int = 0
    error: str = ""
    records: list[str] = []
    """Addresses that the pools have given, at the end."""
    endpoints: int = 0
    entries: list[str] = []
    """Of the journal, but for what is being released."""


class _Steps:
    def __init__(self, life: Life) -> None:
        self._die_at = life.die_at
        self._refuse_at = life.refuse_at
        self.changes_only = life.changes_only
        self.counting = False
        self.taken = 0

    def take(self) -> bool:
        """Whether it is not to be refused."""
        if self.counting:
            self.taken += 1
            if self.taken == self._die_at:
                os._exit(DIED)
        return not self.counting or self.taken != self._refuse_at

    def before(self, owner: type, name: str) -> None:
        """Each call of a method is a step."""
        method: Callable[..., Any] = getattr(owner, name)

        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.take()
            return method(*args, **kwargs)

        setattr(owner, name, stepping)


class _CountedSocket:
    def __init__(self, inner: Any, steps: _Steps) -> None:
        self._inner = inner
        self._steps = steps

    def sendto(self, datagram: bytes, *args: Any) -> int:
        is_step = not (self._steps.changes_only and _asks(datagram))
        if is_step and not self._steps.take():
            datagram = datagram[:4] + _NOTHING.to_bytes(2, sys.byteorder) + datagram[6:]
        return int(self._inner.sendto(datagram, *args))

    def dup(self) -> "_CountedSocket":
        return _CountedSocket(self._inner.dup(), self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _asks(datagram: bytes) -> bool:
    """Whether it begins with an RTM_GET of whatever kind, which then are all that it has."""
    kind = int.from_bytes(datagram[4:6], sys.byteorder)
    return kind < _RTM_END and kind % 4 == _GET


def _count(steps: _Steps) -> None:
    made = NetlinkSocket.__init__

    def counted(self: NetlinkSocket, protocol: int) -> None:
        made(self, protocol)
        self._socket = _CountedSocket(self._socket, steps)  # type: ignore[assignment]

    NetlinkSocket.__init__ = counted  # type: ignore[method-assign]
    steps.before(journal.Journal, "put_all")
    steps.before(journal.Journal, "remove")


async def live(life: Life) -> Outcome:
    """One life, to its end."""
    steps = _Steps(life)
    _count(steps)
    state = Path(life.state)
    settings = load_standalone({"SPIDERPOOL_STATE_DIR": life.state})
    system = System.real()
    store = SQLiteStore(state / FILE_NAME, wall=system.clock.wall)
    root = Supervisor("life", system)
    controller = Controller(system, store, settings=settings.controller, pods_exist=False, path="life/controller")
    root.add_supervisor(controller.supervisor)
    await PoolFiles(DiskFolder(Path(life.pools)), store).round()
    peer = Peer(account="spiderpool-agent", node=settings.agent.node_name, role="agent")

    async def serve(call: Call) -> bytes:
        await controller.cluster.synced()
        if life.networks is not None:
            asked = decode_request(call.payload)
            if isinstance(asked, Allocate) and asked.meta:
                return encode(life.networks)
        return await controller.serve(call)

    vfs = None
    if life.played:
        steps.before(PlayedNic, "tell")
        nic = PlayedNic(Path(life.played))
        nic.play(setattr)
        vfs = LinuxVfs(nic)
    agent = Agent(
        system,
        path="life/agent",
        kernel=LinuxKernel(),
        journal=open_journal(state),
        channels=[LocalChannel(serve, peer)],
        node=settings.agent.node_name,
        named=named_somehow,
        vfs=vfs,
        terms=life.terms,
    )
    root.add_supervisor(agent.supervisor)
    running = asyncio.create_task(root.run())
    error = ""
    try:
        await agent.recovered.wait()
        for at, (headers, conf) in enumerate(life.calls):
            steps.counting = at >= life.count_from
            await agent.invoke(parse_invocation(headers, msgspec.json.encode(conf)))
        steps.counting = False
    except CniError as problem:
        error = str(problem)
    outcome = Outcome()
    with anyio.move_on_after(_SETTLE_SECONDS):
        while True:
            outcome = await _looked(store, state, steps=steps.taken, error=error)
            adds = [headers for headers, _ in life.calls if headers["cni-command"] == "ADD"]
            stays = not life.calls or (len(adds) * 2 > len(life.calls) and not error)
            if stays or not (outcome.records or outcome.entries or outcome.endpoints):
                break
            await anyio.sleep(0.005)
    await root.stop()
    await running
    await store.aclose()
    return outcome


async def _looked(store: SQLiteStore, state: Path, *, steps: int, error: str) -> Outcome:
    pools = (await store.list(IPPOOL)).items
    records = [address for pool in pools for address in msgspec.json.decode(pool.status.allocated_ips or "{}")]
    entries = await anyio.to_thread.run_sync(journal.Journal(state / "journal").load_all)
    return Outcome(
        steps=steps,
        error=error,
        records=records,
        endpoints=len((await store.list(ENDPOINT)).items),
        entries=[f"{one.ifname} {one.part} {one.state}" for one in entries if one.state != "releasing"],
    )


def fork(life: Life) -> Outcome:
    """The same in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, msgspec.json.encode(asyncio.run(live(life))))
            code = 0
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == DIED:
        return Outcome(died=True)
    if code:
        return Outcome(error=f"exit {code}")
    return msgspec.json.decode(answer, type=Outcome)


def main() -> None:
    """See the module."""
    for line in sys.stdin.buffer:
        outcome = fork(msgspec.json.decode(line, type=Life))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
