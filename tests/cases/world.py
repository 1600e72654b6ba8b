"""What one case works with: namespaces and pools of its own on the session's lab, and questions about them."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import count
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cni.journal import Journal, State
from tests.cases.audit import findings
from tests.cases.kubelet import Held, Kubelets
from tests.cases.workloads import RESOURCES, path_of
from tests.processes.lab import Lab
from tests.processes.webhooks import IPPOOLS, POOL_TYPE
from tests.servers import ControlPlane

SETTLE_SECONDS: Final = 75.0
"""What was asked for twice while programs died is given back again after forty."""
_GROUP: Final = "/apis/spiderpool.spidernet.io/v2beta1"
_LANS: Final = 4
"""Subnets of a case, of each family."""
_numbers = count(1)


class World:
    """See the module. `close` ends the case: everything goes, and nothing may be left.

    Attributes:
        namespace: the first one.
        pools: by name, the addresses that they may give.
        kept: ``namespace/name`` of pods whose addresses are to outlive them, for the audits.
        holders: see `tests.cases.audit.findings`.
    """

    def __init__(self, lab: Lab, kubelets: Kubelets, name: str) -> None:
        """`name`, with a number, becomes part of the names of the case's objects."""
        self.lab = lab
        self.kubelets = kubelets
        self.control_plane: ControlPlane = lab.control_plane
        self.pools: dict[str, tuple[str, ...]] = {}
        self.namespaces: list[str] = []
        self.kept: set[str] = set()
        self.holders: dict[str, str] = {}
        self.reserved: list[str] = []
        self._number = next(_numbers)
        self.name = f"{name}-{self._number}"
        self._names = count()
        self._given: dict[tuple[int, int], int] = {}
        lab.admission.wait()  # the case before may have killed a controller
        self.namespace = self.create_namespace()

    def __repr__(self) -> str:
        return f"<World {self.name}: {', '.join(self.namespaces)}; {', '.join(self.pools)}>"

    # -- objects -------------------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One call as the administrator; the body of the answer. Raises `ApiRefused`."""
        return self.control_plane.request(method, path, body).body

    def create_namespace(
        self,
        suffix: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        pools: Mapping[int, Sequence[str]] | None = None,
    ) -> str:
        """A namespace; `pools` are its default ones by family."""
        name = f"{self.name}-{suffix}" if suffix else self.name
        notes = {f"ipam.spidernet.io/default-ipv{v}-ippool": json.dumps(list(p)) for v, p in (pools or {}).items()}
        meta = {"name": name, "labels": dict(labels or {}), "annotations": notes}
        self.request("POST", "/api/v1/namespaces", {"metadata": meta})
        self.namespaces.append(name)
        return name

    def annotate_namespace(self, name: str, **notes: str | None) -> None:
        """Set or, with None, remove annotations ``ipam.spidernet.io/...``; underscores become dashes."""
        keys = {f"ipam.spidernet.io/{key.replace('_', '-')}": value for key, value in notes.items()}
        self.request("PATCH", f"/api/v1/namespaces/{name}", {"metadata": {"annotations": keys}})

    def pool(self, size: int = 5, *, version: int = 4, lan: int = 0, suffix: str = "", **spec: Any) -> str:
        """A SpiderIPPool of so many addresses that no other pool has; returns its name. Each `lan` has its subnet."""
        name = f"{self.name}-{suffix or f'p{len(self.pools)}'}"
        network = self.subnet(version, lan)
        first = network.network_address + 0x10 + self._given.get((version, lan), 0)
        self._given[version, lan] = self._given.get((version, lan), 0) + size
        assert first + size - 1 in network
        body = {
            "ipVersion": version,
            "subnet": str(network),
            "gateway": self.gateway(version, lan),
            "ips": [f"{first}-{first + size - 1}" if size > 1 else str(first)],
            **spec,
        }
        self.request("POST", IPPOOLS, {**POOL_TYPE, "metadata": {"name": name}, "spec": body})
        self.pools[name] = tuple(str(first + offset) for offset in range(size))
        return name

    def subnet(self, version: int = 4, lan: int = 0) -> IPv4Network | IPv6Network:
        """The network of the case's pools of a family."""
        assert lan < _LANS
        if version == 4:
            block, rest = divmod(self._number * _LANS + lan, 256)
            return ip_network(f"100.{64 + block}.{rest}.0/24")
        return ip_network(f"fd64:{self._number:x}:0:{lan}::/64")

    def gateway(self, version: int = 4, lan: int = 0) -> str:
        """The gateway in the subnet."""
        return str(self.subnet(version, lan).network_address + 1)

    def pair(self, size: int = 5, *, lan: int = 0, suffix: str = "", **spec: Any) -> dict[str, list[str]]:
        """A pool of each family, as the annotation `ippool` wants it."""
        stem = suffix or f"d{len(self.pools)}"
        return {
            "ipv4": [self.pool(size, version=4, lan=lan, suffix=f"{stem}-v4", **spec)],
            "ipv6": [self.pool(size, version=6, lan=lan, suffix=f"{stem}-v6", **spec)],
        }

    def change_pool(self, name: str, **spec: Any) -> None:
        """Merge into its spec."""
        self.request("PATCH", f"{IPPOOLS}/{name}", {"spec": spec})

    def reserve(self, *ips: str, suffix: str = "r") -> str:
        """A SpiderReservedIP; returns its name."""
        name = f"{self.name}-{suffix}"
        version = ip_address(ips[0].partition("-")[0]).version
        body = {
            "apiVersion": POOL_TYPE["apiVersion"],
            "kind": "SpiderReservedIP",
            "metadata": {"name": name},
            "spec": {"ipVersion": version, "ips": list(ips)},
        }
        self.request("POST", f"{_GROUP}/spiderreservedips", body)
        self.reserved.append(name)
        return name

    def unreserve(self, name: str) -> None:
        """Delete a SpiderReservedIP."""
        self.request("DELETE", f"{_GROUP}/spiderreservedips/{name}")
        self.reserved.remove(name)

    def network(
        self,
        name: str,
        *,
        ipv4: Sequence[str] = (),
        ipv6: Sequence[str] = (),
        ours: bool = True,
        wired: bool = False,
        **ipam: Any,
    ) -> str:
        """A network that pods may name, as a SpiderMultusConfig makes it; returns its ``namespace/name``.

        Links of one that is `wired` are on the lab's segment, with `ours` for their main plugin.
        """
        full = f"{self.namespace}/{name}"
        said = {**ipam}
        if ipv4:
            said["default_ipv4_ippool"] = list(ipv4)
        if ipv6:
            said["default_ipv6_ippool"] = list(ipv6)
        self.kubelets.networks[full] = said if ours else None
        if wired:
            self.kubelets.wired.add(full)
        return full

    def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create an object in its namespace, by default the case's first."""
        manifest["metadata"].setdefault("namespace", self.namespace)
        made: dict[str, Any] = self.request("POST", path_of(manifest), manifest)
        return made

    def change(self, kind: str, name: str, body: Any, *, namespace: str = "") -> None:
        """Merge into an object."""
        self.request("PATCH", f"{path_of(kind, namespace or self.namespace)}/{name}", body)

    def scale(self, kind: str, name: str, replicas: int, *, namespace: str = "") -> None:
        """Set the number of replicas."""
        self.change(kind, name, {"spec": {"replicas": replicas}}, namespace=namespace)

    def delete(self, kind: str, name: str, *, namespace: str = "", grace: int | None = None) -> None:
        """Delete an object; what it owns goes with it, by the garbage collector."""
        body: dict[str, Any] = {"propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        self.request("DELETE", f"{path_of(kind, namespace or self.namespace)}/{name}", body)

    def inject(self, pool: str, pod: str, uid: str) -> str:
        """A record as somebody else would leave it, of the pool's last free address; returns the address."""
        while True:
            found = self.request("GET", f"{IPPOOLS}/{pool}")
            status = found.get("status", {})
            table = json.loads(status.get("allocatedIPs") or "{}")
            address = next(ip for ip in reversed(self.pools[pool]) if ip not in table)
            table[address] = {"pod": pod, "podUid": uid}
            found["status"] = {**status, "allocatedIPs": json.dumps(table), "allocatedIPCount": len(table)}
            answer = self.control_plane.request("PUT", f"{IPPOOLS}/{pool}/status", found, check=False)
            if answer.status != HTTPStatus.CONFLICT:
                assert answer.status == HTTPStatus.OK, answer
                return address

    def collect(self) -> None:
        """Ask the controllers to look at everything now, as an operator would; the first that is there hears it."""

        def heard() -> bool:
            for name in self.lab.controllers:
                url = f"http://127.0.0.1:{self.lab.health_ports[name]}/v1/ipam/gc_ips"
                try:
                    with urlopen(Request(url, method="POST", data=b""), timeout=10):
                        return True
                except HTTPError:
                    raise
                except OSError:  # it restarts
                    continue
            return False

        self.wait(heard, "a controller is there")

    def restart(self, program: str) -> None:
        """kill -9 of a controller or a node's agent, and a new one."""
        self.lab.kill(program)
        if program in self.lab.controllers:
            self.lab.start_controller(program)
        else:
            self.lab.start_agent(program)

    # -- questions -----------------------------------------------------------------------------------------------------

    def wait[T](self, what: Callable[[], T], why: str, *, seconds: float = SETTLE_SECONDS) -> T:
        """What `what` returns as soon as it is true; it is asked less often the longer that takes."""
        deadline, pause = time.monotonic() + seconds, 0.03
        while not (found := what()):
            assert not self.kubelets.errors, self.kubelets.errors
            if time.monotonic() > deadline:
                msg = f"still not after {seconds:g} s: {why}\n{self.report()}"
                raise AssertionError(msg)
            time.sleep(pause)
            pause = min(pause * 1.2, 0.3)
        return found

    def report(self) -> str:
        """Where the case stands, for whoever reads a failure."""
        lines = [f"{name}: {held.node} {held.addresses}" for name, held in self.held().items()]
        for name in self.pools:
            status = self.status(name)
            lines.append(f"pool {name}: {status.get('allocatedIPs')} withheld {status.get('withheldIPs')}")
        for namespace in self.namespaces:
            for name, failures in self.kubelets.failures.items():
                if name.startswith(f"{namespace}/"):
                    lines.append(f"{name} failed {len(failures)} times: {failures[-1]}")
        return "\n".join(lines)

    def held(self) -> dict[str, Held]:
        """The case's pods that have addresses, by ``namespace/name``."""
        mine = set(self.namespaces)
        return {name: held for name, held in self.kubelets.held().items() if name.partition("/")[0] in mine}

    def running(
        self, number: int | None = None, *, namespace: str = "", prefix: str = "", seconds: float = SETTLE_SECONDS
    ) -> dict[str, Held]:
        """The pods of a namespace by name, as soon as there are so many that say so themselves, and no others."""
        where = namespace or self.namespace

        def found() -> dict[str, Held] | None:
            items = self.request("GET", path_of("Pod", where))["items"]
            pods = {item["metadata"]["name"]: item for item in items if item["metadata"]["name"].startswith(prefix)}
            held = self.kubelets.held()
            here = {
                name: held[f"{where}/{name}"]
                for name, item in pods.items()
                if item["status"]["phase"] == "Running"
                and "deletionTimestamp" not in item["metadata"]
                and f"{where}/{name}" in held
                and held[f"{where}/{name}"].uid == item["metadata"]["uid"]
            }
            complete = len(here) == len(pods) and (len(here) == number if number is not None else bool(here))
            return here if complete else None

        return self.wait(found, f"{number} pods {prefix} of {where} run", seconds=seconds) or {}

    def pod(self, name: str, *, namespace: str = "") -> Held:
        """A pod, as soon as it has its addresses."""
        full = f"{namespace or self.namespace}/{name}"
        held = self.wait(lambda: self.kubelets.held().get(full), f"{full} runs")
        assert held is not None
        return held

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind in the first namespace."""
        items: list[dict[str, Any]] = self.request("GET", path_of(kind, self.namespace))["items"]
        return items

    def pods(self, prefix: str = "") -> list[str]:
        """The names of the first namespace's pods that stay."""
        items = self.request("GET", path_of("Pod", self.namespace))["items"]
        here = [item["metadata"] for item in items if "deletionTimestamp" not in item["metadata"]]
        return [meta["name"] for meta in here if meta["name"].startswith(prefix)]

    def held_names(self) -> list[str]:
        """The names of the first namespace's pods that have addresses."""
        return [name.partition("/")[2] for name in self.held() if name.startswith(f"{self.namespace}/")]

    def replaced(self, before: Mapping[str, Held], *, namespace: str = "") -> None:
        """Wait until none of these pods, by uid, has a sandbox, and each name has one again or is gone for good."""
        uids = {held.uid for held in before.values()}
        self.wait(lambda: not uids & {held.uid for held in self.held().values()}, "the old pods are gone")

    def later(self, manifest: Callable[[str], dict[str, Any]], *pools: str) -> Held:
        """Pod after pod until one has an address of each of these pools: what the product sees by a watch is late."""

        def attempt() -> Held | None:
            name = f"later-{next(self._names)}"
            self.apply(manifest(name))
            held = self.pod(name)
            addresses = held.addresses["eth0"]
            if len(addresses) == len(pools) and all(set(addresses) & set(self.pools[pool]) for pool in pools):
                return held
            self.delete("Pod", name)
            return None

        found = self.wait(attempt, f"a new pod has addresses of {pools}")
        assert found is not None
        return found

    def later_refused(self, manifest: Callable[[str], dict[str, Any]], *, match: str) -> bool:
        """Whether a pod that is made now is refused with `match`; it is deleted."""
        name = f"later-{next(self._names)}"
        full = f"{self.namespace}/{name}"
        self.apply(manifest(name))
        self.wait(lambda: full in self.kubelets.failures or full in self.kubelets.held(), f"{full} was tried")
        self.delete("Pod", name)
        self.gone(name)
        return any(match in said for said in self.kubelets.failures.get(full, ()))

    def refusal(self, name: str, *, namespace: str = "", match: str = "") -> str:
        """What the latest failed ADD of a pod said, as soon as there is one that says `match`."""
        full = f"{namespace or self.namespace}/{name}"

        def found() -> str:
            said = self.kubelets.failures.get(full, [""])[-1]
            return said if match in said else ""

        return self.wait(found, f"an ADD of {full} fails with {match!r}")

    def gone(self, *names: str, namespace: str = "") -> None:
        """Wait until neither object nor sandbox is left of these pods."""
        where = namespace or self.namespace
        full = {f"{where}/{name}" for name in names}
        self.wait(lambda: not full & set(self.kubelets.known(frozenset({where}))), f"{sorted(full)} are gone")

    def status(self, pool: str) -> dict[str, Any]:
        """A pool's status."""
        return dict(self.request("GET", f"{IPPOOLS}/{pool}").get("status", {}))

    def automatic_pools(self, application: str = "") -> list[dict[str, Any]]:
        """The SpiderIPPools of the applications of the case's namespaces, or of one name."""
        found = []
        for item in self.request("GET", IPPOOLS)["items"]:
            labels = item["metadata"].get("labels", {})
            of, name = (labels.get(f"ipam.spidernet.io/owner-application-{key}") for key in ("namespace", "name"))
            if of in self.namespaces and application in ("", name):
                found.append(item)
        return found

    def records(self, pool: str) -> dict[str, dict[str, Any]]:
        """A pool's records by address."""
        return dict(json.loads(self.status(pool).get("allocatedIPs") or "{}"))

    def endpoints(self, namespace: str = "") -> dict[str, dict[str, Any]]:
        """The SpiderEndpoints of a namespace by name."""
        path = f"{_GROUP}/namespaces/{namespace or self.namespace}/spiderendpoints"
        return {item["metadata"]["name"]: item for item in self.request("GET", path)["items"]}

    def assert_from(self, held: Held, *pools: str, nic: str = "eth0") -> None:
        """A NIC has exactly one address of each of these pools."""
        addresses = held.addresses[nic]
        assert len(addresses) == len(pools), f"{nic} has {addresses}, expected one of each of {pools}"
        for pool in pools:
            assert any(address in self.pools[pool] for address in addresses), f"{addresses} has none of {pool}"

    # -- the end -------------------------------------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """What is wrong now."""
        pools = [self.request("GET", f"{IPPOOLS}/{name}") for name in self.pools]
        pools += self.automatic_pools()
        endpoints = [item for namespace in self.namespaces for item in self.endpoints(namespace).values()]
        return findings(self.held(), pools, endpoints, kept=self.kept, holders=self.holders)

    def settled(self, *, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until an audit finds nothing."""
        last: list[str] = []

        def clean() -> bool:
            last[:] = self.audit()
            return not last

        try:
            self.wait(clean, "a clean audit", seconds=seconds)
        except AssertionError as problem:
            raise AssertionError("\n".join(["audit:", *last, str(problem)])) from None

    def close(self) -> None:
        """Everything that the case made goes, and no pool holds anything in the end."""
        for namespace in self.namespaces:
            for kind in RESOURCES:
                self.control_plane.request(
                    "DELETE", path_of(kind, namespace), {"propagationPolicy": "Background"}, check=False
                )
        mine = frozenset(self.namespaces)
        try:
            self.wait(lambda: self._empty(mine), "no pod is left")
            self.kept.clear()
            self.settled()
            self.wait(lambda: not self._journalled(mine), "no agent's journal has an interface left")
        finally:
            for name in self.reserved:
                self.control_plane.request("DELETE", f"{_GROUP}/spiderreservedips/{name}", check=False)
            for name in self.pools:
                self.control_plane.request("DELETE", f"{IPPOOLS}/{name}", check=False)
            for namespace in self.namespaces:
                self.control_plane.request("DELETE", f"/api/v1/namespaces/{namespace}", check=False)

    def _journalled(self, namespaces: frozenset[str]) -> list[str]:
        """Interfaces of the case that an agent believes to be there. What it still owes a release is not one."""
        entries = (entry for node in self.lab.nodes for entry in Journal(self.lab.folder / node / "journal").load_all())
        return [
            f"{entry.container_id} {entry.ifname}"
            for entry in entries
            if entry.pod.namespace in namespaces and entry.state is not State.RELEASING
        ]

    def _empty(self, namespaces: frozenset[str]) -> bool:
        if self.kubelets.known(namespaces):
            return False
        for namespace in namespaces:
            items = self.control_plane.request("GET", path_of("Pod", namespace), check=False).body.get("items", ())
            if items:
                # A controller made it after the others went.
                self.control_plane.request("DELETE", path_of("Pod", namespace), check=False)
                return False
        return True
