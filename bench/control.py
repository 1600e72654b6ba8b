"""What the control plane costs: an application's pool after a scale, many applications at once, admission, idleness.

    python -m bench.control            # make bench BENCH=control

Real API server with webhooks and RBAC on, one controller as a process. Deployments are objects only: no pod is made, so
what is measured is the way from `kubectl scale` to the pool. Figures that have a goal stand beside it.
"""

import argparse
import contextlib
import http.client
import json
import ssl
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from api.meta import FINALIZER
from bench.figures import ApiRequests, cpu_seconds, latencies, list_requests, quantile, resident, row, title, writes
from ipam.ranges import parse_ranges
from tests.isolation import isolate
from tests.processes.lab import Lab
from tests.processes.networks import install_kind
from tests.processes.webhooks import DRY, IPPOOLS, POOL_TYPE
from tests.servers import ControlPlane

SUBNETS: Final = "/apis/spiderpool.spidernet.io/v2beta1/spidersubnets"
_SECONDS: Final = 120.0
_LEFT_OUT: Final = "pods-left-out"
"""Its pods are not shown to the controller."""
_NETWORKS: Final = 80
_INJECT: Final = "cni.spidernet.io/rdma-resource-inject"


def main(arguments: list[str] | None = None) -> int:
    """Run all measurements."""
    parser = argparse.ArgumentParser(
        prog="bench control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", type=int, default=60, help="of one Deployment (default 60)")
    parser.add_argument("--applications", type=int, default=100, help="made at once (default 100)")
    parser.add_argument("--reviews", type=int, default=2000, help="pools, and pods, that are admitted (default 2000)")
    parser.add_argument("--pools", type=int, default=1000, help="that an idle controller watches (default 1000)")
    parser.add_argument("--subnets", type=int, default=200, help="of those pools (default 200)")
    parser.add_argument("--pods", type=int, default=20000, help="with addresses of those pools (default 20000)")
    options = parser.parse_args(arguments)
    if not isolate():
        sys.stderr.write("bench control needs root: its lab makes network namespaces\n")
        return 2
    with ControlPlane(progress=print) as control_plane:
        control_plane.install_crds()
        install_kind(control_plane)
        control_plane.create_namespace(_LEFT_OUT)
        inject = "spiderpoolController.podResourceInject"
        with Lab(
            control_plane,
            nodes=("n1",),
            environment={"SPIDERPOOL_MULTUS_CONFIG_ENABLED": "true"},
            webhooks=True,
            values=(f"{inject}.enabled=true", f"{inject}.namespacesExclude={{{_LEFT_OUT}}}"),
        ) as lab:
            plane = Plane(lab)
            plane.scaled(options.scales)
            plane.at_once(options.applications)
            plane.admitted(options.reviews)
            plane.pods(options.reviews)
            plane.idle(options.pools, subnets=options.subnets, pods=options.pods)
    return 0


class Plane:
    """A lab whose controller has one subnet at a time to cut pools from."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._control_plane = lab.control_plane
        self._deployments = f"/apis/apps/v1/namespaces/{lab.namespace}/deployments"

    def scaled(self, count: int) -> None:
        """One Deployment with a flexible pool, up and down."""
        title("a Deployment is scaled: until its pool has grown")
        with self._subnet("scaled", "10.70.0.0/16"):
            self._deploy("scaled", "web", replicas=1)
            (name,) = self._until(lambda: [*self._pools("10.70.0.0/16")], "the pool is there")
            took = []
            for number in range(count):
                replicas = 2 + number % 20
                begun = time.perf_counter()
                self._control_plane.request("PATCH", f"{self._deployments}/web", {"spec": {"replicas": replicas}})
                self._until(lambda wanted=replicas + 1: self._size(name) == wanted, "it has grown")  # type: ignore[misc]
                took.append(time.perf_counter() - begun)
            latencies("from the write of the Deployment, seen by a reader", took[3:], p99="p50 0.050 s, p99 0.300 s")
            self._control_plane.request("DELETE", f"{self._deployments}/web")
            self._until(lambda: not self._pools("10.70.0.0/16"), "the pool is gone")

    def at_once(self, count: int) -> None:
        """Many applications, created and deleted at the same time."""
        title(f"{count} applications with automatic pools at once")
        cidr = "10.71.0.0/16"
        with self._subnet("many", cidr), ThreadPoolExecutor(16) as threads:
            names = [f"app-{number}" for number in range(count)]
            before = ApiRequests(self._control_plane)
            begun = time.perf_counter()
            list(threads.map(lambda name: self._deploy("many", name, replicas=2), names))
            self._until(lambda: list(self._pools(cidr).values()) == [3] * count, "every application has its pool")
            row("all pools are there", f"{time.perf_counter() - begun:.2f} s", "<= 5 s")
            spent = before.since()
            row("API writes a pool", f"{writes(spent) / count:.2f}", "<= 3")
            list_requests(spent, least=count // 4)
            begun = time.perf_counter()
            list(threads.map(lambda name: self._control_plane.request("DELETE", f"{self._deployments}/{name}"), names))
            self._until(lambda: not self._given("many"), "everything is back")
            row("deleted: the subnet has everything back", f"{time.perf_counter() - begun:.2f} s", "<= 5 s")

    def admitted(self, count: int) -> None:
        """Pools that are judged and not stored, by the webhook and without it."""
        title(f"{count} pools are admitted (dry run)")

        def create(number: int) -> float:
            subnet = f"10.{80 + number // 256 % 16}.{number % 256}.0/24"
            spec = {"subnet": subnet, "ips": [subnet.replace(".0/24", ".10-") + subnet.replace(".0/24", ".99")]}
            begun = time.perf_counter()
            body = {**POOL_TYPE, "metadata": {"name": f"asked-{number}"}, "spec": spec}
            self._control_plane.request("POST", DRY, body)
            return (time.perf_counter() - begun) * 1e3

        for clients in (1, 4):
            with ThreadPoolExecutor(clients) as threads:
                begun = time.perf_counter()
                judged = sorted(threads.map(create, range(count // 2)))
                rate = count // 2 / (time.perf_counter() - begun)
            row(f"{clients} clients: pools a second", f"{rate:.0f}", "200" if clients > 1 else "")
            row(f"{clients} clients: a create, p50", f"{statistics.median(judged):.1f} ms")
            row(f"{clients} clients: a create, p99", f"{quantile(judged, 0.99):.1f} ms")
        with self._lab.admission.unseen():
            unjudged = sorted(map(create, range(count // 4)))
        row("without webhooks, p50", f"{statistics.median(unjudged):.1f} ms")
        row("without webhooks, p99", f"{quantile(unjudged, 0.99):.1f} ms")
        self._reviewed(count)

    def _reviewed(self, count: int) -> None:
        """What the API server waits for: reviews over one connection, as it keeps one."""
        context = ssl.create_default_context(cafile=str(self._control_plane.ca_file))
        context.check_hostname = False  # it is a Service's
        port = self._lab.webhook_ports["controller"]
        for way in "mutate", "validate":
            took = []
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
            with contextlib.closing(connection):
                for number in range(count // 2):
                    body = json.dumps(self._review(number))
                    begun = time.perf_counter()
                    path = f"/{way}-spiderpool-spidernet-io-v2beta1-spiderippool"
                    connection.request("POST", path, body, {"Content-Type": "application/json"})
                    answer = json.loads(connection.getresponse().read())
                    took.append((time.perf_counter() - begun) * 1e3)
                    assert answer["response"]["allowed"], answer
            row(f"a review, {way}, p50", f"{statistics.median(took):.2f} ms")
            row(f"a review, {way}, p99", f"{quantile(sorted(took), 0.99):.2f} ms", "<= 10 ms")

    def _review(self, number: int) -> dict[str, Any]:
        subnet = f"10.{90 + number // 256 % 8}.{number % 256}.0/24"
        ips = [subnet.replace(".0/24", ".10-") + subnet.replace(".0/24", ".99")]
        meta = {"name": f"reviewed-{number}", "uid": f"u{number}"}
        pool = {**POOL_TYPE, "metadata": meta, "spec": {"ipVersion": 4, "subnet": subnet, "ips": ips}}
        group, _, version = POOL_TYPE["apiVersion"].partition("/")
        request = {
            "uid": f"r{number}",
            "kind": {"group": group, "version": version, "kind": POOL_TYPE["kind"]},
            "name": meta["name"],
            "operation": "CREATE",
            "object": pool,
        }
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}

    def pods(self, count: int) -> None:
        """Pods that are judged and not stored: not shown to the controller, asking for nothing, asking for networks."""
        title(f"{count} pods are made (dry run), with {_NETWORKS} SpiderMultusConfigs in the cluster")
        namespace = self._control_plane.create_namespace()
        path = f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{namespace}/spidermultusconfigs"
        for number in range(_NETWORKS):
            block = {"master": [f"eth{number}"], "rdmaResourceName": f"example.com/nic{number}"}
            body = {
                **POOL_TYPE,
                "kind": "SpiderMultusConfig",
                "metadata": {"name": f"lan-{number}", "annotations": {_INJECT: f"word-{number // 8}"}},
                "spec": {"cniType": "macvlan", "macvlan": {**block, "ippools": {"ipv4": ["p4"]}}},
            }
            self._control_plane.request("POST", path, body)

        def create(where: str, notes: dict[str, str]) -> float:
            body = {
                "metadata": {"generateName": "web-", "annotations": notes},
                "spec": {"containers": [{"name": "main", "image": "none"}]},
            }
            begun = time.perf_counter()
            self._control_plane.request("POST", f"/api/v1/namespaces/{where}/pods?dryRun=All", body)
            return (time.perf_counter() - begun) * 1e3

        kinds: tuple[tuple[str, str, dict[str, str]], ...] = (
            ("not shown", _LEFT_OUT, {}),
            ("asks for nothing", namespace, {}),
            ("is given eight networks", namespace, {_INJECT: "word-1"}),
        )
        for said, where, notes in kinds:
            for clients in (1, 4):
                with ThreadPoolExecutor(clients) as threads:
                    begun = time.perf_counter()
                    took = sorted(threads.map(lambda _: create(where, notes), range(count // 6)))  # noqa: B023 - now
                    rate = count // 6 / (time.perf_counter() - begun)
                text = f"p50 {statistics.median(took):.1f} ms, p99 {quantile(took, 0.99):.1f} ms, {rate:.0f} a second"
                row(f"{said}, {clients} client{'s' if clients > 1 else ''}", text)

    def idle(self, count: int, *, subnets: int, pods: int) -> None:
        """Nothing happens for a while in a cluster of that size, whose nodes are well and whose pods all run."""
        title(f"an idle controller: {count} pools of {subnets} subnets, {pods} pods with addresses and SpiderEndpoints")
        begun = time.perf_counter()
        idle = Idle(self._control_plane, self._lab.namespace, pools=count, subnets=subnets, pods=pods)
        # As the API server would admit them at leisure: it is not what is measured.
        with self._lab.admission.unseen(), ThreadPoolExecutor(8) as threads:
            for make, number in ((idle.node, idle.nodes), (idle.subnet, subnets), (idle.pool, count), (idle.pod, pods)):
                list(threads.map(make, range(number)))
        row("made in", f"{time.perf_counter() - begun:.0f} s")
        pid = self._lab.processes["controller"].pid
        time.sleep(60)
        before, cpu, seconds = ApiRequests(self._control_plane), cpu_seconds(pid), 60.0
        time.sleep(seconds)
        row("CPU, share of a core", f"{(cpu_seconds(pid) - cpu) / seconds * 100:.1f} %", "<= 1 %")
        row("resident", f"{resident(pid):.0f} MiB", "<= 250 MiB")
        row("API writes meanwhile", f"{writes(before.since())}", "0")

    # -- parts ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _subnet(self, name: str, cidr: str) -> Iterator[None]:
        first = cidr.removesuffix(".0.0/16")
        spec = {"subnet": cidr, "ips": [f"{first}.1.0-{first}.9.255"], "gateway": f"{first}.0.1"}
        body = {**POOL_TYPE, "kind": "SpiderSubnet", "metadata": {"name": name}, "spec": spec}
        self._control_plane.request("POST", SUBNETS, body)
        yield
        self._control_plane.request("DELETE", f"{SUBNETS}/{name}")

    def _deploy(self, subnet: str, name: str, *, replicas: int) -> None:
        notes = {
            "ipam.spidernet.io/subnet": json.dumps({"ipv4": [subnet]}),
            "ipam.spidernet.io/ippool-ip-number": "+1",
        }
        template = {
            "metadata": {"labels": {"app": name}, "annotations": notes},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        self._control_plane.request("POST", self._deployments, {"metadata": {"name": name}, "spec": spec})

    def _size(self, name: str) -> int:
        spec = self._control_plane.request("GET", f"{IPPOOLS}/{name}").body["spec"]
        return parse_ranges(spec.get("ips", []), 4).size

    def _pools(self, cidr: str) -> dict[str, int]:
        """Sizes of the pools of a subnet by name."""
        items = self._control_plane.request("GET", IPPOOLS).body["items"]
        return {
            one["metadata"]["name"]: parse_ranges(one["spec"].get("ips", []), 4).size
            for one in items
            if one["spec"]["subnet"] == cidr
        }

    def _given(self, subnet: str) -> int:
        found = self._control_plane.request("GET", f"{SUBNETS}/{subnet}").body
        return int(found.get("status", {}).get("allocatedIPCount") or 0)

    def _until[T](self, look: Callable[[], T], what: str) -> T:
        deadline = time.monotonic() + _SECONDS
        while not (seen := look()):
            if time.monotonic() > deadline:
                msg = f"not within {_SECONDS:g} s: {what}"
                raise TimeoutError(msg)
            time.sleep(0.005)
        return seen


class Idle:
    """Objects of a cluster where all is well: each pool is full of records of pods that there are."""

    def __init__(self, control_plane: ControlPlane, namespace: str, *, pools: int, subnets: int, pods: int) -> None:
        self._control_plane = control_plane
        self._namespace = namespace
        self._pools = pools
        self._subnets = subnets
        self._each = pods // pools
        self._uids: dict[int, str] = {}
        self.nodes = max(pods // 100, 1)

    def node(self, number: int) -> None:
        """Ready, and without an agent."""
        self._post("/api/v1/nodes", {"metadata": {"name": f"idle-{number}"}})
        ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "Played"}]}
        self._control_plane.request("PATCH", f"/api/v1/nodes/idle-{number}/status", {"status": ready})

    def subnet(self, number: int) -> None:
        """With as many addresses as its pools have."""
        spec = {"ipVersion": 4, "subnet": self._cidr(number), "ips": [self._range(number, 0, self._in_subnet - 1)]}
        self._post(SUBNETS, {**POOL_TYPE, "kind": "SpiderSubnet", "metadata": {"name": f"idle-{number}"}, "spec": spec})

    def pool(self, number: int) -> None:
        """Its records come with its pods."""
        subnet, place = number % self._subnets, number // self._subnets
        first = place * self._each
        spec = {
            "ipVersion": 4,
            "subnet": self._cidr(subnet),
            "ips": [self._range(subnet, first, first + self._each - 1)],
        }
        self._post(IPPOOLS, {**POOL_TYPE, "metadata": {"name": f"idle-{number}"}, "spec": spec})

    def pod(self, number: int) -> None:
        """Runs on a node, with a SpiderEndpoint; the last one of a pool writes the pool's records."""
        pool, place = number // self._each, number % self._each
        node, name = f"idle-{number % self.nodes}", f"idle-{number}"
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
        made = self._post(f"/api/v1/namespaces/{self._namespace}/pods", {"metadata": {"name": name}, "spec": spec})
        uid = self._uids[number] = made["metadata"]["uid"]
        address = self._address(pool % self._subnets, pool // self._subnets * self._each + place)
        shown = {"interface": "eth0", "ipv4": f"{address}/16", "ipv4Pool": f"idle-{pool}"}
        status = {
            "current": {"uid": uid, "node": node, "ips": [shown]},
            "ownerControllerType": "Pod",
            "ownerControllerName": name,
        }
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
        meta = {"name": name, "finalizers": [FINALIZER], "ownerReferences": [owner]}
        path = f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{self._namespace}/spiderendpoints"
        self._post(path, {**POOL_TYPE, "kind": "SpiderEndpoint", "metadata": meta, "status": status})
        if place == self._each - 1:
            self._fill(pool)

    def _fill(self, pool: int) -> None:
        records = {}
        for place in range(self._each):
            number = pool * self._each + place
            while number not in self._uids:
                time.sleep(0.01)
            records[self._address(pool % self._subnets, pool // self._subnets * self._each + place)] = {
                "pod": f"{self._namespace}/idle-{number}",
                "podUid": self._uids[number],
                "nic": "eth0",
                "node": f"idle-{number % self.nodes}",
                "cid": f"{number:012x}",
            }
        status = {
            "allocatedIPs": json.dumps(records),
            "allocatedIPCount": len(records),
            "totalIPCount": self._each,
        }
        self._control_plane.request("PATCH", f"{IPPOOLS}/idle-{pool}/status", {"status": status})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = self._control_plane.request("POST", path, body).body
        return made

    @property
    def _in_subnet(self) -> int:
        return -(-self._pools // self._subnets) * self._each

    def _cidr(self, subnet: int) -> str:
        return f"10.{subnet}.0.0/16" if subnet < 256 else f"11.{subnet - 256}.0.0/16"

    def _address(self, subnet: int, number: int) -> str:
        return self._cidr(subnet).replace(".0.0/16", f".{1 + number // 250}.{1 + number % 250}")

    def _range(self, subnet: int, first: int, last: int) -> str:
        return f"{self._address(subnet, first)}-{self._address(subnet, last)}"


if __name__ == "__main__":
    sys.exit(main())
