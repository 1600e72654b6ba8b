"""What the control plane costs: an application's pool after a scale, many applications at once, admission, idleness.

    python -m bench.control            # make bench BENCH=control

Real API server with webhooks and RBAC on, one controller as a process. Deployments are objects only: no pod is made, so
what is measured is the way from `kubectl scale` to the pool. Figures that have a goal stand beside it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

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
            plane.idle(options.pools)
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
        row("without webhooks, p99", f"{quantile(unjudged, 0.99):.1f} ms", "the two reviews of one: <= 10 ms each")

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

    def idle(self, count: int) -> None:
        """Nothing happens for a while."""
        title(f"an idle controller that watches {count} pools")
        # As the API server would admit them at leisure: it is not what is measured.
        with self._lab.admission.unseen(), ThreadPoolExecutor(8) as threads:
            list(threads.map(self._make_pool, range(count)))
        pid = self._lab.processes["controller"].pid
        time.sleep(20)
        before, seconds = cpu_seconds(pid), 20.0
        time.sleep(seconds)
        row("CPU, share of a core", f"{(cpu_seconds(pid) - before) / seconds * 100:.1f} %", "<= 1 %")
        row("resident", f"{resident(pid):.0f} MiB", "<= 250 MiB")

    # -- parts ---------------------------------------------------------------------------------------------------------

    @contextmanager
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

    def _make_pool(self, number: int) -> None:
        subnet = f"10.{100 + number // 256}.{number % 256}.0/24"
        spec = {"ipVersion": 4, "subnet": subnet, "ips": [subnet.replace(".0/24", ".10")]}
        body = {**POOL_TYPE, "metadata": {"name": f"idle-{number}"}, "spec": spec}
        self._control_plane.request("POST", IPPOOLS, body)

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


if __name__ == "__main__":
    sys.exit(main())
