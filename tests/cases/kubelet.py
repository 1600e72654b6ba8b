"""The scheduler and the kubelets of all nodes, played: pods that real controllers made come to run and go again.

One task a pod brings what is towards what its object wants, again and again: bind it, sandbox after sandbox until one
ADD succeeds, say that it runs, DEL until it succeeds, drop the namespace, remove the object. What a test may have
happen is in `Node`. Everything runs on one event loop in a thread of its own; the public methods are for other threads.
"""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Any, Self

import aiohttp
from msgspec import Struct

from tests.cases.sandbox import FOREIGN_ADDRESS, Nic, PodName, Sandbox
from tests.processes.lab import CniError, Lab

DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
EXIT = "cases/exit"
"""Annotation of a pod whose container ends by itself once it runs, with the exit code that it says."""
RETRY_SECONDS = 0.15
"""Between two sandboxes of a pod. kubelet's own pause only makes tests slow."""
_THREADS = 16
_CLOSE_SECONDS = 0.25
"""For TLS to take leave, which aiohttp does not wait for."""


class Node(Struct):
    """What is the matter with a node."""

    alive: bool = True
    """Whether its kubelet does anything."""
    plugin: bool = True
    """Whether the CNI executable is there."""
    sends_del: bool = True
    """Whether sandboxes are taken down by DEL; else they just vanish."""
    schedulable: bool = True


class Held(Struct, frozen=True):
    """A pod that has a sandbox with all its interfaces."""

    uid: str
    node: str
    cid: str
    addresses: Mapping[str, tuple[str, ...]]
    """Without prefix length, by interface."""
    results: Mapping[str, dict[str, Any]]
    """Of ADD, by interface."""


class Kubelets:
    """See the module. A context manager.

    Attributes:
        nodes: by name; change their fields through `change`.
        networks: what the networks that pods name by ``namespace/name`` say on IPAM; None is somebody else's network.
        wired: those of them whose links are on the segment.
        mains: what the main plugins of some say, by ``namespace/name``; {node} stands for the node's name.
        failures: what failed ADDs printed, by ``namespace/name``, in order.
        errors: of the players themselves; there are none in a run that means anything.
    """

    def __init__(self, lab: Lab) -> None:
        """The pods of the lab's own namespace are the programs; they are left alone."""
        self.lab = lab
        self.nodes = {name: Node() for name in lab.nodes}
        self.networks: dict[str, Mapping[str, Any] | None] = {}
        self.wired: set[str] = set()
        self.mains: dict[str, Mapping[str, Any]] = {}
        self.failures: dict[str, list[str]] = {}
        self.errors: list[str] = []
        self._pods: dict[str, _Pod] = {}
        self._turn = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kubelets", daemon=True)
        self._ended: asyncio.Event | None = None
        self._listed = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="runtime")

    def __repr__(self) -> str:
        return f"<Kubelets {len(self._pods)} pods on {', '.join(self.nodes)}>"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listed.wait(30), "the pods could not be listed"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)
        self._threads.shutdown()
        for pod in self._pods.values():
            if pod.sandbox is not None:
                pod.sandbox.vanish()

    # -- for tests -----------------------------------------------------------------------------------------------------

    def held(self) -> dict[str, Held]:
        """What pods have, by ``namespace/name``; of two with one name, the one that came later."""
        found = {}
        for pod in tuple(self._pods.values()):
            sandbox = pod.sandbox
            if sandbox is not None and pod.up and sandbox.stands:
                found[str(pod.name)] = Held(
                    uid=pod.name.uid,
                    node=pod.node,
                    cid=sandbox.cid[:12],
                    addresses={nic: tuple(ips) for nic, ips in sandbox.addresses.items()},
                    results=dict(sandbox.results),
                )
        return found

    def known(self, namespaces: frozenset[str]) -> list[str]:
        """The pods of some namespaces that are not wholly gone yet, by ``namespace/name``."""
        return [str(pod.name) for pod in tuple(self._pods.values()) if pod.name.namespace in namespaces]

    def change(self, node: str, **fields: bool) -> None:
        """Set fields of a `Node`; what waited for them goes on."""
        self._do(lambda: self._change(node, fields))

    def exit(self, pod: str, code: int = 0) -> None:
        """The pod's (``namespace/name``) container ends."""
        self._do(lambda: self._each(self._named(pod), lambda one: one.end(code)))

    def restart(self, pod: str) -> None:
        """The runtime gives the pod a new sandbox, after a DEL of the one that it has."""
        self._do(lambda: self._each(self._named(pod), _Pod.renew))

    def crash(self, node: str) -> None:
        """All namespaces of a node are gone at once, as after a power cut; a DEL of them may follow."""
        self._do(lambda: self._each((pod for pod in self._pods.values() if pod.node == node), _Pod.crash))

    @staticmethod
    def _each(pods: "Iterable[_Pod]", work: "Callable[[_Pod], None]") -> None:
        for pod in tuple(pods):
            work(pod)

    def _do(self, work: Callable[[], object]) -> None:
        done = threading.Event()

        def step() -> None:
            try:
                work()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(step)
        assert done.wait(30)

    def _change(self, node: str, fields: Mapping[str, bool]) -> None:
        for name, value in fields.items():
            setattr(self.nodes[node], name, value)
        for pod in self._pods.values():
            pod.changed.set()

    def _named(self, name: str) -> Iterator["_Pod"]:
        return (pod for pod in tuple(self._pods.values()) if str(pod.name) == name)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        trust = ssl.create_default_context(cafile=str(self.lab.control_plane.ca_file))
        bearer = {"Authorization": f"Bearer {self.lab.control_plane.admin_token}"}
        async with aiohttp.ClientSession(
            self.lab.control_plane.url, headers=bearer, connector=aiohttp.TCPConnector(ssl=trust, limit=32)
        ) as self._session:
            watch = asyncio.create_task(self._watch())
            await self._ended.wait()
            tasks = [watch, *(pod.task for pod in self._pods.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(_CLOSE_SECONDS)

    async def request(self, method: str, path: str, body: Any = None, *, merge: bool = False) -> int:
        """One call, repeated while the API server is away or busy; the status that it ended with."""
        kind = "application/merge-patch+json" if merge else "application/json"
        data = None if body is None else json.dumps(body)
        while True:
            try:
                async with self._session.request(method, path, data=data, headers={"Content-Type": kind}) as answer:
                    await answer.read()
                    if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR and answer.status != 429:
                        return answer.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def runtime[T](self, work: Callable[[], T]) -> T:
        """Something that blocks."""
        return await self._loop.run_in_executor(self._threads, work)

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow()
            except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """List, then watch until the stream ends."""
        async with self._session.get("/api/v1/pods") as answer:
            answer.raise_for_status()
            listed = await answer.json()
        present = {item["metadata"]["uid"] for item in listed["items"]}
        for item in listed["items"]:
            self._seen(item)
        for uid in [uid for uid in self._pods if uid not in present]:
            self._pods[uid].lose()
        self._listed.set()
        version = listed["metadata"]["resourceVersion"]
        wait = aiohttp.ClientTimeout(total=None)
        async with self._session.get(
            "/api/v1/pods", params={"watch": "1", "resourceVersion": version}, timeout=wait, read_bufsize=2**22
        ) as stream:
            stream.raise_for_status()
            async for line in stream.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] != "DELETED":
                    self._seen(event["object"])
                elif event["object"]["metadata"]["uid"] in self._pods:
                    self._pods[event["object"]["metadata"]["uid"]].lose()

    def _seen(self, item: dict[str, Any]) -> None:
        meta = item["metadata"]
        node = item["spec"].get("nodeName", "")
        if meta["namespace"] == self.lab.namespace or (node and node not in self.nodes):
            return
        known = self._pods.get(meta["uid"])
        if known is None:
            known = self._pods[meta["uid"]] = _Pod(self, item)
        else:
            known.update(item)

    def forget(self, pod: "_Pod") -> None:
        """Nothing is left of it."""
        self._pods.pop(pod.name.uid, None)

    def choose(self, item: Mapping[str, Any]) -> str:
        """A node for a pod; empty while there is none."""
        wanted = set(_wanted_nodes(item["spec"]))
        free = [name for name, node in self.nodes.items() if node.schedulable and (not wanted or name in wanted)]
        return free[next(self._turn) % len(free)] if free else ""

    def nics(self, item: Mapping[str, Any]) -> tuple[Nic, ...]:
        """The interfaces that multus would make: the default network's, then those that the pod names."""
        notes = item["metadata"].get("annotations", {})
        namespace = item["metadata"]["namespace"]
        default = notes.get(DEFAULT_NETWORK, "")
        if default and "/" not in default:
            default = f"{self.lab.namespace}/{default}"
        found = [Nic("eth0", default or "default", self.networks[default] if default else {})]
        for number, (network, interface) in enumerate(_selected(notes.get(NETWORKS, ""), namespace), start=1):
            found.append(Nic(interface or f"net{number}", network, self.networks[network]))
        node = item["spec"].get("nodeName", "")
        found = [nic._replace(parent=f"{node}-up") if nic.network in self.wired else nic for nic in found]
        return tuple(nic._replace(main=_on_node(self.mains.get(nic.network, {}), node)) for nic in found)


class _Pod:
    """One pod, from its object's appearance until neither object nor sandbox is left."""

    def __init__(self, kubelets: Kubelets, item: dict[str, Any]) -> None:
        self._kubelets = kubelets
        self.item = item
        self.name = PodName(item["metadata"]["namespace"], item["metadata"]["name"], item["metadata"]["uid"])
        self.sandbox: Sandbox | None = None
        self.up = False
        """All interfaces are there."""
        self.changed = asyncio.Event()
        self._gone = False
        self._told = False
        """The object says that it runs."""
        self._stale = False
        """The sandbox is to be replaced."""
        self._exit: int | None = None
        self.task = asyncio.create_task(self._live())
        self.task.add_done_callback(self._over)

    # -- what happens to it

    def update(self, item: dict[str, Any]) -> None:
        self.item = item
        self.changed.set()

    def lose(self) -> None:
        self._gone = True
        self.changed.set()

    def end(self, code: int) -> None:
        self._exit = code
        self.changed.set()

    def renew(self) -> None:
        self._stale = True
        self.changed.set()

    def crash(self) -> None:
        if self.sandbox is not None:
            self.sandbox.vanish()
            self.renew()

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._kubelets.errors.append(f"{self.name}: {task.exception()!r}")

    # -- what it is

    @property
    def node(self) -> str:
        return str(self.item["spec"].get("nodeName", ""))

    @property
    def _terminating(self) -> bool:
        return self._gone or "deletionTimestamp" in self.item["metadata"]

    @property
    def _ended(self) -> bool:
        return self.item["status"].get("phase") in {"Succeeded", "Failed"}

    @property
    def _wanted(self) -> bool:
        return not self._terminating and not self._ended

    @property
    def _state(self) -> Node | None:
        return self._kubelets.nodes.get(self.node)

    def _due(self) -> bool:
        """Whether there is something to do, and somebody to do it."""
        if not self.node:
            return self._gone or (self._wanted and bool(self._kubelets.choose(self.item)))
        if self._state is None or not self._state.alive:
            return False
        if not self._wanted:
            return self.sandbox is not None or self._terminating
        if self.sandbox is None or self._stale or self._exit is not None:
            return True
        return self.up and not self._told

    # -- what is done about it

    async def _live(self) -> None:
        while True:
            await self._until(self._due)
            if not self.node:
                if self._gone:
                    break
                await self._bind()
            elif not self._wanted or self._stale:
                await self._take_down()
                if self._terminating:
                    await self._remove()
                    break
            elif self.sandbox is None:
                await self._bring_up()
            elif self._exit is not None:
                await self._finish(self._exit)
            else:
                await self._say_running()
        self._kubelets.forget(self)

    async def _until(self, condition: Callable[[], bool], *, seconds: float | None = None) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            pass

    async def _bind(self) -> None:
        target = self._kubelets.choose(self.item)
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": self.name.name},
            "target": {"kind": "Node", "name": target},
        }
        path = f"/api/v1/namespaces/{self.name.namespace}/pods/{self.name.name}/binding"
        await self._kubelets.request("POST", path, body)
        await self._until(lambda: bool(self.node) or self._terminating, seconds=5)

    async def _bring_up(self) -> None:
        lab = self._kubelets.lab
        nics = self._kubelets.nics(self.item)
        self._stale, self._told = False, False
        self.sandbox = sandbox = await self._kubelets.runtime(
            lambda: Sandbox(
                self.name,
                nics,
                plugin=lab.plugins / "spiderpool",
                socket=lab.socket(self.node),
                folder=lab.folder / "netns",
            )
        )
        try:
            await self._kubelets.runtime(sandbox.add)
        except CniError as error:
            said = f"{error.document.get('msg', '')}: {error.document.get('details', '')}"
            self._kubelets.failures.setdefault(str(self.name), []).append(said)
            await self._take_down()
            await self._until(lambda: not self._wanted, seconds=RETRY_SECONDS)
        else:
            self.up = True

    async def _take_down(self) -> None:
        sandbox = self.sandbox
        if sandbox is None:
            return
        while True:
            await self._until(self._can_delete)
            if self._state is None or not self._state.sends_del:
                break
            try:
                await self._kubelets.runtime(sandbox.delete)
            except CniError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        self.up = False
        await self._kubelets.runtime(sandbox.vanish)
        self.sandbox = None
        self._stale = False

    def _can_delete(self) -> bool:
        node = self._state
        return node is None or (node.alive and (node.plugin or not node.sends_del))

    async def _say_running(self) -> None:
        assert self.sandbox is not None
        first = self.sandbox.addresses.get("eth0") or [FOREIGN_ADDRESS]
        now = _now()
        status = {
            "phase": "Running",
            "startTime": now,
            "podIP": first[0],
            "podIPs": [{"ip": ip} for ip in first],
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [self._container(name, {"running": {"startedAt": now}}) for name in self._containers],
        }
        await self._put_status(status)
        self._told = True
        code = self.item["metadata"].get("annotations", {}).get(EXIT)
        if code is not None:
            self._exit = int(code)

    async def _finish(self, code: int) -> None:
        """The container has ended; as kubelet does it, the sandbox goes before the object says so."""
        await self._take_down()
        state = {"terminated": {"exitCode": code, "startedAt": _now(), "finishedAt": _now(), "reason": "Completed"}}
        phase = "Failed" if code else "Succeeded"
        await self._put_status(
            {
                "phase": phase,
                "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": _now()}],
                "containerStatuses": [self._container(name, state) for name in self._containers],
            }
        )
        self._exit = None
        await self._until(lambda: not self._wanted, seconds=5)

    async def _remove(self) -> None:
        """The last that kubelet does for a pod."""
        if self.item["metadata"].get("finalizers") and not self._ended and not self._gone:
            await self._put_status({"phase": "Failed"})
        path = f"/api/v1/namespaces/{self.name.namespace}/pods/{self.name.name}"
        await self._kubelets.request("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.name.uid}})
        await self._until(lambda: self._gone, seconds=10)

    async def _put_status(self, status: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{self.name.namespace}/pods/{self.name.name}/status"
        await self._kubelets.request("PATCH", path, {"metadata": {"uid": self.name.uid}, "status": status}, merge=True)

    @property
    def _containers(self) -> list[str]:
        return [container["name"] for container in self.item["spec"]["containers"]]

    def _container(self, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "image": "none",
            "imageID": "none",
            "ready": "running" in state,
            "started": "running" in state,
            "restartCount": 0,
            "state": state,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wanted_nodes(spec: Mapping[str, Any]) -> Iterator[str]:
    """The nodes that a pod is for; nothing where it may go anywhere. What DaemonSets write, and a node selector."""
    hostname = spec.get("nodeSelector", {}).get("kubernetes.io/hostname")
    if hostname:
        yield hostname
    required = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    for term in required.get("nodeSelectorTerms", ()):
        for field in term.get("matchFields", ()):
            if field["key"] == "metadata.name":
                yield from field["values"]


def _selected(text: str, namespace: str) -> Iterator[tuple[str, str]]:
    """The ``namespace/name`` and the interface of each network that a pod selects, as multus reads the annotation."""
    if not text:
        return
    if text.lstrip().startswith("["):
        for entry in json.loads(text):
            yield f"{entry.get('namespace', namespace)}/{entry['name']}", entry.get("interface", "")
        return
    for part in text.split(","):
        network, _, interface = part.strip().partition("@")
        yield network if "/" in network else f"{namespace}/{network}", interface


def _on_node(main: Mapping[str, Any], node: str) -> dict[str, Any]:
    return {key: value.format(node=node) if isinstance(value, str) else value for key, value in main.items()}
