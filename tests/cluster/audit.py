"""Whether nothing is too much and nothing is missing: pods, pools, endpoints, journals and kernels against each other.

Every check names what it found, so that a failed audit says which promise was broken. What is on its way (a release
that an agent still owes, a namespace that dies) is waited for by `settled`; what does not settle is a leak.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from api.ippool import SpiderIPPool
from ipam.addresses import format_address
from ipam.book import Book
from ipam.ranges import Ranges
from tests.cluster.carriers import carried, doubles
from tests.cluster.lab import Cluster, LabFailed, plan
from tests.cluster.lab.cluster import CORE, PRODUCT
from tests.cluster.lab.node import Node

SETTLE_SECONDS: Final = 90.0
JOURNAL: Final = "/var/lib/spiderpool/journal"
STATUS: Final = "k8s.v1.cni.cncf.io/network-status"
_HOST_TABLE: Final = "500"
_OURS: Final = re.compile(r"veth[0-9a-f]{11}")
"""The node's end of a pod's pair, by the container's id; other plugins' pairs have other names."""


class Record(msgspec.Struct, frozen=True, order=True):
    """An address in use, by whichever source says so."""

    pod: str
    address: str


def settled(
    cluster: Cluster,
    *,
    expect: int | None = None,
    timeout: float = SETTLE_SECONDS,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Return when an audit finds nothing. Raises LabFailed with the last findings.

    Args:
        cluster: with the product on it.
        expect: how many pods have addresses of ours; None for however many there are.
        timeout: seconds.
        progress: told what is on its way, whenever that has changed.
    """
    last: list[str] = []

    def clean() -> bool:
        found = audit(cluster, expect=expect)
        if progress is not None and found and found != last:
            progress(f"not settled: {found[0]}{f', and {len(found) - 1} more' if len(found) > 1 else ''}")
        last[:] = found
        return not last

    try:
        cluster.wait(clean, timeout, "a clean audit", interval=0.5)
    except LabFailed as problem:
        raise LabFailed("audit: " + "\n  ".join(["", *last])) from problem


def audit(cluster: Cluster, *, expect: int | None = None) -> list[str]:
    """What is wrong now, a line each."""
    networked = networked_pods(cluster)
    pods = {name: pod for name, pod in networked.items() if held(pod)}
    records = set(pool_records(cluster))
    wanted = {Record(name, ip) for name, pod in pods.items() for ip in held(pod)}
    found = [f"pool holds {r.address} for {r.pod}, which has it not" for r in sorted(records - wanted)]
    found += [f"pod {r.pod} has {r.address}, which no pool holds for it" for r in sorted(wanted - records)]
    endpoints = set(endpoint_records(cluster))
    found += [f"SpiderEndpoint {r.pod} says {r.address}, the pod does not" for r in sorted(endpoints - wanted)]
    found += [f"SpiderEndpoint {r.pod} lacks {r.address}" for r in sorted(wanted - endpoints)]
    shared = [r.address for r in wanted]
    found += [f"{ip} is in the status of two pods" for ip in sorted({ip for ip in shared if shared.count(ip) > 1})]
    found += link_findings(cluster, pods)
    found += pool_counts(cluster)
    for node in cluster.nodes.values():
        if node.is_on:
            here = [pod for pod in networked.values() if pod["spec"]["nodeName"] == node.name]
            found += node_findings(node, here)
    if expect is not None and len(pods) != expect:
        found.append(f"{len(pods)} pods have addresses, expected {expect}")
    return found


def networked_pods(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The pods with a network of their own that have addresses, by namespace/name."""
    items = cluster.items(f"{CORE}/pods")
    return {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod
        for pod in items
        if not pod["spec"].get("hostNetwork")
        and addresses(pod)
        and pod["status"]["phase"] not in {"Succeeded", "Failed"}
    }


def underlay_pods(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Those of them that have addresses of ours."""
    return {name: pod for name, pod in networked_pods(cluster).items() if held(pod)}


def addresses(pod: Mapping[str, Any]) -> list[str]:
    """Those in a pod's status: of its first interface."""
    return [entry["ip"] for entry in pod["status"].get("podIPs", ())]


def interfaces(pod: Mapping[str, Any]) -> dict[str, list[str]]:
    """The addresses of every interface; of one that names no networks, those of eth0."""
    said = json.loads(pod["metadata"].get("annotations", {}).get(STATUS, "[]"))
    return {one["interface"]: list(one["ips"]) for one in said} or {"eth0": addresses(pod)}


def held(pod: Mapping[str, Any]) -> list[str]:
    """Those of all interfaces that are ours to give; an overlay's are not."""
    known = dict.fromkeys([*addresses(pod), *(ip for ips in interfaces(pod).values() for ip in ips)])
    return [ip for ip in known if plan.on_a_lan(ip)]


def pool_records(cluster: Cluster) -> Iterable[Record]:
    """What the pools hold."""
    for pool in _pools(cluster):
        book = Book(pool, Ranges(4 if "." in pool.spec.subnet else 6))
        for number, held in book.records.items():
            yield Record(held.pod, format_address(number, book.version))


def pool_counts(cluster: Cluster) -> list[str]:
    """Pools whose counters are not what their table says."""
    found = []
    for pool in _pools(cluster):
        book = Book(pool, Ranges(4 if "." in pool.spec.subnet else 6))
        if (pool.status.allocated_ip_count or 0) != len(book.records):
            found.append(
                f"pool {pool.metadata.name} counts {pool.status.allocated_ip_count}, holds {len(book.records)}"
            )
    return found


def _pools(cluster: Cluster) -> list[SpiderIPPool]:
    return msgspec.convert(cluster.items(f"{PRODUCT}/spiderippools"), list[SpiderIPPool])


def endpoint_records(cluster: Cluster) -> Iterable[Record]:
    """What the SpiderEndpoints say."""
    for item in cluster.items(f"{PRODUCT}/spiderendpoints"):
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        for detail in item.get("status", {}).get("current", {}).get("ips", ()):
            for key in ("ipv4", "ipv6"):
                if detail.get(key):
                    yield Record(name, detail[key].partition("/")[0])


def link_findings(cluster: Cluster, pods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where pods' links carry something else than their status says, or two carry the same; on nodes that are on."""
    names = {_sandbox_uid(pod): name for name, pod in pods.items()}
    seen = carried(cluster)
    found = [f"{ip} is carried by {' and '.join(map(str, sorted(by)))}" for ip, by in sorted(doubles(seen).items())]
    carriers = {Record(names.get(by.uid, str(by)), ip) for ip, holders in seen.items() for by in holders}
    wanted = {
        Record(name, ip)
        for name, pod in pods.items()
        if cluster.node(pod["spec"]["nodeName"]).is_on
        for ip in held(pod)
    }
    found += [f"a link of {r.pod} carries {r.address}, which it has not" for r in sorted(carriers - wanted)]
    found += [f"no link of {r.pod} carries {r.address}" for r in sorted(wanted - carriers)]
    return found


def _sandbox_uid(pod: Mapping[str, Any]) -> str:
    """The uid that kubelet uses: a mirror has one of its own."""
    metadata = pod["metadata"]
    return str(metadata.get("annotations", {}).get("kubernetes.io/config.hash") or metadata["uid"])


def node_findings(node: Node, pods: list[dict[str, Any]]) -> list[str]:
    """What a node's kernel and journal have too much or too little of, for the pods with networks that run there."""
    wanted = {ip for pod in pods for ip in held(pod)}
    found = []
    veths = {name for name, link in node.links().items() if _is_ours(name, link)}
    paired = [pod for pod in pods if any(map(plan.on_a_lan, addresses(pod)))]
    if len(veths) != len(paired):
        found.append(f"{node.name} has {len(veths)} veths to pods for {len(paired)} pods: {', '.join(sorted(veths))}")
    routed: set[str] = set()
    known: set[str] = set()
    for family in ("-4", "-6"):
        shown = node.run(["ip", family, "-json", "neighbour", "show", "nud", "permanent"])
        known |= {entry["dst"] for entry in json.loads(shown.stdout or "[]") if plan.on_a_lan(entry["dst"])}
        # A table that never had a route is no table: `ip` says so after half an answer.
        shown = node.run(["ip", family, "-json", "route", "show", "table", _HOST_TABLE], check=False)
        routed |= {route["dst"] for route in json.loads(shown.stdout or "[]")} if not shown.returncode else set()
    found += [f"{node.name} routes {ip} to a pod that has it not" for ip in sorted(routed - wanted)]
    found += [f"{node.name} has no route to {ip}" for ip in sorted(wanted - routed)]
    found += [f"{node.name} has a neighbour {ip} that no pod is" for ip in sorted(known - wanted)]
    found += [f"{node.name} has no neighbour {ip}" for ip in sorted(wanted - known)]
    entries = [entry for entry in journal(node) if not _is_echo(entry)]
    journalled = {address.partition("/")[0] for entry in entries for address in entry.get("addresses", ())}
    found += [f"{node.name}'s journal has {ip}, no pod does" for ip in sorted(journalled - wanted)]
    found += [f"{node.name}'s journal lacks {ip}" for ip in sorted(wanted - journalled)]
    found += [
        f"{node.name}'s journal: {e['ifname']} of {e['container_id'][:12]} is {e['state']}"
        for e in entries
        if e["state"] != "added"
    ]
    spaces = node.run(["sh", "-c", "ls /run/netns | wc -l"], check=False).stdout.strip()
    if spaces != str(len(pods)):
        found.append(f"{node.name} has {spaces} network namespaces for {len(pods)} pods")
    return found


def _is_echo(entry: Mapping[str, Any]) -> bool:
    """Released, and kept to be released once more when no copy of its ADD can be under way any more.

    Whether it was released the pools say. On a busy machine there are many: each is due after forty seconds.
    """
    return bool(entry["state"] == "releasing" and entry.get("doubtful", True))


def _is_ours(name: str, link: Mapping[str, Any]) -> bool:
    return _OURS.fullmatch(name) is not None and link.get("linkinfo", {}).get("info_kind") == "veth"


def journal(node: Node) -> list[dict[str, Any]]:
    """The entries of a node's journal: the last line of each file."""
    shown = node.run(["sh", "-c", f"tail -q -n 1 {JOURNAL}/*.json 2>/dev/null; true"]).stdout
    return [json.loads(line) for line in shown.splitlines() if line.strip()]
