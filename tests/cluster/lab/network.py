"""The wires: one bridge per segment in the control plane's network namespace, a router, and a client beyond it.

Nodes are plugged in with veth pairs; their upper ends die with the node's namespace. Nothing is made in the network
namespace of this process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.cluster.lab import plan
from tests.netns import Netns
from tests.servers.process import CommandFailed

ROUTER: Final = "router"
OUTSIDE: Final = "outside"


def inside[T](pid: int, work: Callable[[], T]) -> T:
    """What `work` returns, called on a thread in the network namespace of a process."""
    return Netns(Path(f"/proc/{pid}/ns"), "net").run(work)


def ip(pid: int, *lines: str, family: str = "") -> None:
    """Runs lines of `ip -batch` in the network namespace of a process. Raises CommandFailed."""
    argv = ["nsenter", f"--target={pid}", "--net", "--", "ip", *([family] if family else []), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed([*argv, *lines], code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def sysctl(pid: int, values: Mapping[str, str]) -> None:
    """Sets kernel settings of a network namespace; one that this kernel lacks is left out."""

    def write() -> None:
        for name, value in values.items():
            path = Path("/proc/sys/net") / name
            if path.exists():
                path.write_text(value)

    inside(pid, write)


FORWARDING: Final = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/forwarding": "1"}


def addresses(device: str, pair: Sequence[str], prefix: tuple[int, int] = plan.LAN_PREFIX) -> list[str]:
    """Lines that give a device an IPv4 and an IPv6 address; nobody else has the latter, so nobody is asked."""
    return [
        f"address add {pair[0]}/{prefix[0]} dev {device}",
        f"address add {pair[1]}/{prefix[1]} dev {device} nodad",
    ]


def default_routes(gateways: Sequence[str]) -> list[str]:
    return [f"route add default via {gateway}" for gateway in gateways]


def make_lan(plane: int, router: int, outside: int) -> None:
    """The LAN with the API server's addresses on its bridge, the router, and the client's network behind it."""
    add_segment(plane, plan.LAN_SEGMENT)
    ip(
        plane,
        "link set lo up",
        f"link set {plan.LAN_SEGMENT} address 02:89:00:00:00:02",
        *addresses(plan.LAN_SEGMENT, plan.API),
        f"link add router type veth peer name lan0 address 02:89:00:00:00:01 netns {router}",
        f"link set router master {plan.LAN_SEGMENT} up",
        *default_routes(plan.GATEWAY),
    )
    ip(
        router,
        "link set lo up",
        "link set lan0 up",
        *addresses("lan0", plan.GATEWAY),
        f"link add wan0 type veth peer name eth0 netns {outside}",
        "link set wan0 up",
        *addresses("wan0", plan.WAN_GATEWAY, plan.WAN_PREFIX),
    )
    sysctl(router, FORWARDING)
    ip(
        outside,
        "link set lo up",
        "link set eth0 up",
        *addresses("eth0", plan.OUTSIDE, plan.WAN_PREFIX),
        *default_routes(plan.WAN_GATEWAY),
    )


def add_segment(plane: int, segment: str) -> None:
    """A further Layer 2 network; tagged frames pass, as on a trunk."""
    ip(plane, f"link add {segment} type bridge mcast_snooping 0", f"link set {segment} up")


def connect_router(plane: int, router: int, segment: str, gateways: Sequence[str]) -> None:
    """Gives the router a leg with addresses (address/prefix) in a segment."""
    ip(
        plane,
        f"link add r-{segment} type veth peer name {segment} netns {router}",
        f"link set r-{segment} master {segment} up",
    )
    lines = [f"address add {gateway} dev {segment}{' nodad' if ':' in gateway else ''}" for gateway in gateways]
    ip(router, f"link set {segment} up", *lines)


def plug(plane: int, node: int, *, name: str, nic: str, segment: str) -> None:
    """Gives a node a NIC that is wired to a segment; the NIC is up."""
    ip(
        plane,
        f"link add {name}-{nic} type veth peer name {nic} address {plan.mac_address(name, nic)} netns {node}",
        f"link set {name}-{nic} master {segment} up",
    )
    ip(node, f"link set {nic} up")


def forget(plane: int, *, name: str, nic: str) -> None:
    """Takes away what is left of a dead node's NIC: the kernel takes namespaces apart in its own time."""
    with suppress(CommandFailed):  # it is gone already, as a rule
        ip(plane, f"link delete {name}-{nic}")


def configure_node(node: int, name: str, cni: plan.Cni) -> None:
    """The node's addresses and routes, and what the reference CNI's pods need to be reached from it."""
    ip(node, "link set lo up", *addresses("eth0", plan.node_addresses(name)), *default_routes(plan.GATEWAY))
    sysctl(node, {**FORWARDING, "bridge/bridge-nf-call-iptables": "1", "bridge/bridge-nf-call-ip6tables": "1"})
    if cni == "ref":
        # A macvlan link and its parent do not hear each other: the node needs a sibling of its pods' links.
        ip(
            node,
            "link add probe0 link eth0 type macvlan mode bridge",
            "link set probe0 up",
            *addresses("probe0", plan.probe_addresses(name), (32, 128)),
            *(f"route add {cidr} dev probe0" for cidr in plan.reference_ranges(name)),
        )
