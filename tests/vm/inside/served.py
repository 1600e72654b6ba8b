"""A LAN with Services on it: two nodes, pods whose first NIC is an ipvlan link or a virtual function, a router.

n1 has the rules that the real kube-proxy made outside. Who serves says who it is, and whom it sees.
"""

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec.structs import replace
from pyroute2 import IPRoute

from cni.netlink import sriov
from cni.netlink.pci import PciBus
from cni.sriov import VfPlan, mark
from tests.cluster.talk import Teller, ask
from tests.netns import Netns
from tests.node.conftest import Segment
from tests.node.lan import WORLD, Lan, Pod, lan_on
from tests.vm.inside.nics import PhysicalNic, wait_until
from tests.vm.services import BACKENDS, NODES, NUMBERS, PORT

SECONDS = 20.0
"""An emulated machine may take its time to answer."""

BUS = PciBus()
FAR_NODE = "n2"

type Attach = Callable[[Pod, str, str], None]
"""Gives a pod a NIC of this name in this network, as a main plugin leaves it."""


class Machine:
    """A namespace with a name, in which commands can be run."""

    def __init__(self, name: str, namespace: Netns) -> None:
        self.name = name
        self._namespace = namespace

    def netns(self) -> Netns:
        """The namespace."""
        return self._namespace

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as subprocess names it
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        inside = ["nsenter", f"--net={self._namespace.path}", "--", *argv]
        done = subprocess.run(inside, input=input or "", capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(argv)} exited {done.returncode}: {done.stderr}")
        return done


class World:
    """All of it.

    Attributes:
        pods: by name.
        machines: pods, "n1", and the client beyond the router, "outside".
    """

    def __init__(self, lan: Lan, pods: dict[str, Pod], rules: Path) -> None:
        self.pods = pods
        namespaces = {name: pod.netns for name, pod in pods.items()} | {"n1": lan.node, "outside": lan.router}
        self.machines = {name: Machine(name, namespace) for name, namespace in namespaces.items()}
        self._rules = rules

    def load(self, name: str) -> None:
        """Gives n1 the rules of one of `tests.vm.services.RULES`; empty: none."""
        text = (self._rules / f"{name}.nft").read_text() if name else ""
        self.machines["n1"].run(["nft", "-f", "-"], input=f"flush ruleset\n{text}")

    def ask(
        self, client: str, address: str, port: int, *, udp: bool = False, seconds: float = SECONDS
    ) -> tuple[str, str]:
        """Who serves there, and who the client is to it. Raises OSError where nobody does."""
        source = WORLD[6 if ":" in address else 4] if client == "outside" else ""
        return ask(self.machines[client], address, port=port, udp=udp, source=source, seconds=seconds)

    def silent(self, client: str, addresses: Iterable[str], port: int) -> bool:
        """Whether nobody answers at any of them within a second; all are asked at the same time."""

        def answers(address: str) -> bool:
            try:
                self.ask(client, address, port, seconds=1.0)
            except OSError:
                return False
            return True

        with ThreadPoolExecutor() as threads:
            return not any(threads.map(answers, addresses))


@contextmanager
def world(folder: Path, kind: str, *, nic: PhysicalNic | None, rules: Path) -> Iterator[World]:
    """Links are of this kind; virtual functions are of this NIC."""
    with ExitStack() as namespaces, lan_on(Segment(folder, namespaces)) as lan, ExitStack() as stack:
        attach = _functions(stack, nic) if nic is not None else _links(kind)
        nodes = {"n1": lan.node, FAR_NODE: lan.further_node(NODES[FAR_NODE])}
        pods = {}
        for name, number in NUMBERS.items():
            node = BACKENDS[name].node if name in BACKENDS else "n1"
            pod = pods[name] = lan.pod(versions=(4, 6), node=nodes[node])
            assert pod.number == number
            if name == "overlay":
                pod.overlay()
                attach(pod, "net1", "b")
            else:
                attach(pod, "eth0", "a")
        for name, pod in pods.items():
            ifname = "net1" if name == "overlay" else "eth0"
            wait_until(lambda pod=pod, ifname=ifname: _has_carrier(pod.netns, ifname), SECONDS)
            pod.coordinate(ifname)
        made = World(lan, pods, rules)
        made.load("usual")
        for name in BACKENDS:
            machine = made.machines["n1" if name == "host" else name]
            stack.enter_context(Teller(machine, name, port=PORT))
        yield made


def _links(kind: str) -> Attach:
    mode = {"ipvlan": "l2", "macvlan": "bridge"}[kind]
    return lambda pod, ifname, network: pod.attach(ifname, network, kind=kind, mode=mode)


def _functions(stack: ExitStack, nic: PhysicalNic) -> Attach:
    """Lent by the product. What leaves the NIC comes to the bridge by its neighbour on the wire."""
    with IPRoute() as route:
        index = route.link_lookup(ifname="eth1")[0]
        route.link("set", index=index, master=route.link_lookup(ifname="lan")[0], state="up")
    stack.callback(_leave_bridge, index)
    free = iter(nic.functions)

    def attach(pod: Pod, ifname: str, network: str) -> None:
        function = next(free)
        plan = VfPlan(netns=pod.path, ifname=ifname, pci=function.address)
        held = replace(sriov.survey_vf(function.address, bus=BUS), mark=mark(pod.container_id, ifname), order=1)
        stack.callback(sriov.give_vf, pod.path, held, settle=False, sure=False, bus=BUS)
        sriov.take_vf(plan, held, bus=BUS)
        pod.configure(ifname, network)

    return attach


def _leave_bridge(index: int) -> None:
    with IPRoute() as route:
        route.link("set", index=index, master=0, state="down")


def _has_carrier(netns: Netns, ifname: str) -> bool:
    def inside() -> bool:
        with IPRoute() as route:
            (link,) = route.get_links(route.link_lookup(ifname=ifname)[0])
            return bool(link.get_attr("IFLA_CARRIER"))

    return netns.run(inside)
