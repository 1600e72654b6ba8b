"""`spiderpoolctl explain`: that it says what allocation decides, of every NIC and pool, and changes nothing."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api import annotations as a
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.kinds import IPPOOL, NAMESPACE, NETWORKATTACHMENT, NODE, POD, RESERVEDIP, Kind
from api.meta import LabelSelector, ObjectMeta, OwnerReference
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from api.reservedip import ReservedIPSpec, SpiderReservedIP
from ctl.errors import Failure
from ctl.explain import pod, pool, scene
from ctl.explain.pod import NicExplained, PodExplained
from ctl.main import main
from ipam import autopool
from ipam.identity import Workload
from runtime.store.memory import MemoryStore
from runtime.store.port import Store
from runtime.store.sqlite import FILE_NAME, SQLiteStore

NOW = 1_800_000_000.0
CID = "0123456789ab"
LATER = "2030-01-01T00:00:00Z"
EARLIER = "2020-01-01T00:00:00Z"
SPIDERPOOL = "spiderpool/spiderpool-controller"


def lan(
    name: str = "lan", records: dict[str, AllocationRecord] | None = None, *, withheld: object = None, **spec: Any
) -> SpiderIPPool:
    wanted = {"subnet": "10.6.0.0/16", "ips": ["10.6.0.10-10.6.0.14"], **spec}
    return SpiderIPPool(
        metadata=ObjectMeta(name=name),
        spec=IPPoolSpec(**wanted),
        status=IPPoolStatus(
            allocated_ips=encode_records(records or {}), withheld_ips=None if withheld is None else json.dumps(withheld)
        ),
    )


def record(uid: str = "u1", name: str = "web", nic: str = "eth0", *, kept: bool = False) -> AllocationRecord:
    return AllocationRecord(pod=f"default/{name}", pod_uid=uid, nic=nic, node="n1", cid=CID, kept=kept)


def web(annotations: dict[str, str] | None = None, *, owner: OwnerReference | None = None) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name="web",
            namespace="default",
            labels={"tier": "web"},
            annotations=annotations or {},
            owner_references=[] if owner is None else [owner],
        ),
        spec=PodSpec(node_name="n1"),
    )


async def put(store: Store, *items: object) -> None:
    kinds: dict[type, Kind[Any]] = {
        SpiderIPPool: IPPOOL,
        Pod: POD,
        Node: NODE,
        Namespace: NAMESPACE,
        SpiderReservedIP: RESERVEDIP,
        scene.Deployment: scene.DEPLOYMENT,
        scene.ConfigMap: scene.CONFIGMAP,
        NetworkAttachmentDefinition: NETWORKATTACHMENT,
    }
    for item in items:
        kind = kinds[type(item)]
        await store.create(kind, item)
        if isinstance(item, SpiderIPPool):
            status: dict[str, Any] = msgspec.to_builtins(item.status)
            await store.patch(IPPOOL, item.metadata.name, {"status": status}, subresource="status")


def installed(config: str = "", cluster_network: str = "") -> list[object]:
    """A release's Deployment and ConfigMap."""
    template = scene.Template(
        containers=[
            scene.Container(
                env=[
                    scene.Variable("MULTUS_CLUSTER_NETWORK", cluster_network),
                    scene.Variable("SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS", "3"),
                ]
            )
        ],
        volumes=[scene.Volume(), scene.Volume(config_map=scene.ConfigMapVolume("spiderpool-conf"))],
    )
    spec = scene.DeploymentSpec(template=scene.PodTemplate(spec=template))
    meta = ObjectMeta(name="spiderpool-controller", namespace="spiderpool")
    return [
        scene.Deployment(metadata=meta, spec=spec),
        scene.ConfigMap(metadata=ObjectMeta(name="spiderpool-conf", namespace="spiderpool"), data={"conf.yml": config}),
    ]


def explained(*items: object, nic: str = "", ipv4: tuple[str, ...] = ()) -> PodExplained:
    """The pod default/web of a cluster that has these objects."""

    async def work() -> PodExplained:
        store = MemoryStore()
        await put(store, Namespace(metadata=ObjectMeta(name="default")), Node(metadata=ObjectMeta(name="n1")), *items)
        before = store.revision
        seen = await scene.read(store, scene.Release("spiderpool"), now=NOW)
        subject = await scene.pod(store, seen, "default", "web", cluster=True)
        plugins = await scene.plugins(store, seen, subject, nic=nic, ipv4=ipv4, ipv6=())
        assert store.revision == before, "nothing is written"
        found = pod.explain(seen, subject, plugins)
        await store.aclose()
        assert pod.render(found, wide=False) and pod.render(found, wide=True)
        return found

    return asyncio.run(work())


def first(found: PodExplained) -> NicExplained:
    (nic,) = found.nics
    return nic


def asked(nic: NicExplained) -> list[tuple[int, str, str]]:
    """In the order of the turns: pool and the address, or why there is none."""
    return [
        (it.order, it.pool, it.address or (it.reason.predicate if it.reason is not None else "free"))
        for it in nic.candidates
    ]


# ---------------------------------------------------------------- a pod


def test_the_pools_are_said_in_the_order_of_their_turns_with_the_address_that_would_come_out() -> None:
    found = explained(
        *installed(),
        lan("wide", ips=["10.6.1.1-10.6.1.9"], default=True),
        lan("full", {"10.6.0.10": record("u9", "other")}, ips=["10.6.0.10"], default=True, node_name=["n1"]),
        lan("other", ips=["10.6.2.1"], default=True, node_name=["n2"]),
        web(),
    )
    nic = first(found)
    assert nic.source == "the cluster's default pools (spec.default)"
    assert asked(nic) == [(1, "full", "full"), (2, "wide", "10.6.1.1/16"), (0, "other", "nodeName")]
    assert (nic.error, found.holds, found.node, found.workload) == ("", (), "n1", "Pod default/web")


def test_the_text_has_it_all() -> None:
    items = [*installed(), lan(default=True), lan("other", ips=["10.6.2.1"], default=True, node_name=["n2"]), web()]
    text = pod.render(explained(*items), wide=False)
    assert text.splitlines() == [
        "pod default/web: Pending, on n1, of Pod default/web",
        "",
        "eth0: the cluster's default pools (spec.default)",
        "FAMILY   ORDER   POOL    VERDICT        WHY",
        "IPv4     1       lan     10.6.0.10/16   -",
        "IPv4     -       other   rejected       nodeName: wanted one of n2, found n1",
        "",
        "it has no address",
    ]
    assert "nodeName    one of n2   n1" in pod.render(explained(*items), wide=True)


def test_a_refusal_is_the_one_that_the_pod_gets() -> None:
    empty = explained(
        *installed(), lan("full", {"10.6.0.10": record("u9", "other")}, ips=["10.6.0.10"], default=True), web()
    )
    assert (first(empty).error, first(empty).cause) == ("no IPv4 address", "ip_used_out")
    rejected = explained(*installed(), lan(default=True, disable=True), web())
    assert first(rejected).cause == "no_available_pool"
    assert asked(first(rejected)) == [(0, "lan", "disable")]
    wrong = explained(*installed(), lan(), web({a.POD_IPPOOL: '{"ipv4":["p["]}'}))
    assert (first(wrong).cause, first(wrong).candidates) == ("wrong_input", ())
    assert "pattern 'p['" in first(wrong).error


def test_what_it_has_and_why_there() -> None:
    def held(annotations: dict[str, str] | None = None) -> str:
        store_pod = web(annotations)
        pools = [lan("lan", {"10.6.0.12": record()}, default=True), lan("a", ips=["10.6.1.1"], default=True)]
        found = explained_with_uid(store_pod, *pools)
        (holding,) = found.holds
        assert (holding.address, holding.pool, holding.container) == ("10.6.0.12", "lan", CID)
        return holding.why

    assert held() == "the first of the cluster's default pools (spec.default)"
    assert held({a.POD_IPPOOL: '{"ipv4":["a"]}'}) == "annotation ipam.spidernet.io/ippool does not name it now"


def explained_with_uid(store_pod: Pod, *items: object) -> PodExplained:
    """The store gives the pod its uid; the records of the pools are made to have it."""

    async def work() -> PodExplained:
        store = MemoryStore()
        await put(store, *installed(), *items, store_pod)
        uid = (await store.get(POD, "web", namespace="default")).metadata.uid
        for item in (await store.list(IPPOOL)).items:
            text = (item.status.allocated_ips or "").replace('"u1"', f'"{uid}"')
            change = {"status": {"allocatedIPs": text or None}}
            await store.patch(IPPOOL, item.metadata.name, change, subresource="status")
        seen = await scene.read(store, scene.Release("spiderpool"), now=NOW)
        subject = await scene.pod(store, seen, "default", "web", cluster=True)
        found = pod.explain(seen, subject, await scene.plugins(store, seen, subject, nic="", ipv4=(), ipv6=()))
        await store.aclose()
        return found

    return asyncio.run(work())


def test_a_pool_that_serves_it_already_goes_first_and_gives_what_it_has() -> None:
    pools = [lan("z", {"10.6.0.12": record()}, default=True), lan("a", ips=["10.6.1.1"], default=True)]
    assert asked(first(explained_with_uid(web(), *pools))) == [(1, "z", "10.6.0.12/16"), (2, "a", "free")]


def test_a_fixed_address_that_is_not_free_yet_is_waited_for() -> None:
    owner = OwnerReference(api_version="apps/v1", kind="StatefulSet", name="we", uid="s", controller=True)
    for kept, seen in ((True, [(1, "lan", "10.6.0.12/16")]), (False, [(1, "lan", "held")])):
        found = explained(
            *installed(), lan(records={"10.6.0.12": record("old", kept=kept)}, default=True), web(owner=owner)
        )
        assert (found.fixed, found.workload) == (True, "StatefulSet default/we")
        assert asked(first(found)) == seen
        assert [(it.address, it.kept) for it in found.holds] == [("10.6.0.12", kept)]
    spare = lan("spare", ips=["10.6.1.1"], default=True)
    found = explained(*installed(), lan(records={"10.6.0.12": record("old")}, default=True), spare, web(owner=owner))
    assert asked(first(found)) == [(1, "lan", "held"), (2, "spare", "free")], "it is not to get a second address"
    assert first(found).error == "no IPv4 address"


def test_an_automatic_pool_is_compared_with_what_the_pod_belongs_to() -> None:
    owner = OwnerReference(api_version="apps/v1", kind="ReplicaSet", name="web-1", uid="", controller=True)
    automatic = msgspec.structs.replace(
        lan(
            default=True,
            pod_affinity=LabelSelector(
                match_labels={
                    a.APP_API_GROUP: "apps",
                    a.APP_API_VERSION: "v1",
                    a.APP_KIND: "ReplicaSet",
                    a.APP_NAMESPACE: "default",
                    a.APP_NAME: "web-1",
                }
            ),
        ),
        metadata=ObjectMeta(name="lan", labels={a.OWNER_APPLICATION_NAME: "web-1"}),
    )
    assert asked(first(explained(*installed(), automatic, web(owner=owner)))) == [(1, "lan", "10.6.0.10/16")]
    assert asked(first(explained(*installed(), automatic, web()))) == [(0, "lan", "podAffinity")]


def test_a_pod_that_names_a_subnet_is_told_of_its_application_s_pool_or_that_there_is_none() -> None:
    owner = OwnerReference(api_version="apps/v1", kind="StatefulSet", name="db", uid="u", controller=True)
    pod = web(owner=owner)
    notes = {a.POD_SUBNET: '{"ipv4":["lan"]}'}
    pod = msgspec.structs.replace(pod, metadata=msgspec.structs.replace(pod.metadata, annotations=notes))
    workload = Workload(api_version="apps/v1", kind="StatefulSet", namespace=pod.metadata.namespace, name="db", uid="u")
    labels = autopool.labels(workload, autopool.Wanted("eth0", 4, "lan", 1), reclaim=True)
    affinity = LabelSelector(match_labels=autopool.affinity(workload))
    automatic = msgspec.structs.replace(lan(pod_affinity=affinity), metadata=ObjectMeta(name="lan", labels=labels))
    assert asked(first(explained(*installed(), automatic, pod))) == [(1, "lan", "10.6.0.10/16")]
    assert "has no automatic IPv4 pool for eth0 of SpiderSubnet lan" in first(explained(*installed(), pod)).error
    alone = msgspec.structs.replace(web(), metadata=msgspec.structs.replace(web().metadata, annotations=notes))
    assert "no workload controls the pod" in first(explained(*installed(), automatic, alone)).error


def test_several_nics_take_from_one_pool_after_one_another() -> None:
    ippools = '[{"interface":"eth0","ipv4":["lan"]},{"interface":"net1","ipv4":["lan"]}]'
    pools = [*installed(), lan(), web({a.POD_IPPOOLS: ippools, a.MULTUS_NETWORKS: "wan"})]
    found = explained(*pools)
    assert [(it.nic, asked(it)) for it in found.nics] == [
        ("eth0", [(1, "lan", "10.6.0.10/16")]),
        ("net1", [(1, "lan", "10.6.0.11/16")]),
    ]
    assert [it.nic for it in explained(*pools, nic="net1").nics] == ["net1"]
    pools[2] = lan(ips=["10.6.0.10"])
    short = explained(*pools)
    assert [it.error for it in short.nics] == ["", "no IPv4 address"]
    assert short.notes == ("its NICs get addresses together or not at all, and net1 gets none",)


def test_the_configuration_of_a_network_says_which_pools_its_nics_default_to() -> None:
    config = {"plugins": [{"type": "macvlan", "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["lan"]}}]}
    attachment = NetworkAttachmentDefinition(
        metadata=ObjectMeta(name="wan", namespace="spiderpool"), spec=NetworkAttachmentSpec(config=json.dumps(config))
    )
    items = [*installed(cluster_network="wan"), attachment, lan(), lan("mine", ips=["10.6.1.1"]), web()]
    found = first(explained(*items))
    assert (found.network, found.source) == ("spiderpool/wan", "the plugin configuration's ipam")
    assert asked(found) == [(1, "lan", "10.6.0.10/16")]
    assert asked(first(explained(*items, ipv4=("mine",)))) == [(1, "mine", "10.6.1.1/16")]


def test_an_address_that_the_pod_asks_for_is_the_one_or_none() -> None:
    def of(*ips: str) -> NicExplained:
        networks = json.dumps([{"name": "wan", "ips": ips}])
        items = [lan(default=True), lan("far", ips=["10.6.9.1-10.6.9.9"], default=True)]
        (nic,) = explained(*installed(), *items, web({a.MULTUS_NETWORKS: networks}), nic="net1").nics
        return nic

    assert asked(of("10.6.9.5")) == [(1, "far", "10.6.9.5/16"), (0, "lan", "ips")]
    assert asked(of()) == [(1, "far", "10.6.9.1/16"), (2, "lan", "free")], "negative control"
    nowhere = of("10.7.0.1")
    assert (nowhere.cause, [it.reason.predicate for it in nowhere.candidates if it.reason]) == (
        "no_available_pool",
        ["ips", "ips"],
    )


@pytest.mark.parametrize(
    ("config", "names"), [("", ()), ("{}", ()), ('{"plugins":3}', ()), ('{"ipam":{"type":"x"}}', ())]
)
def test_a_network_that_is_not_of_ours_says_nothing(config: str, names: tuple[str, ...]) -> None:
    assert scene.ipam_of(config).default_ipv4_ippool == names


def test_a_network_that_cannot_be_read_is_said_so() -> None:
    def of(config: str | None) -> NicExplained:
        wan = NetworkAttachmentDefinition(
            metadata=ObjectMeta(name="wan", namespace="default"), spec=NetworkAttachmentSpec(config=config or "")
        )
        made = [wan] if config else []
        return explained(*installed(), *made, lan(default=True), web({a.MULTUS_NETWORKS: "wan"}), nic="net1").nics[0]

    assert of(None).notes == ("network attachment default/wan cannot be read",)
    assert "network attachment default/wan: " in of("{").notes[0]
    wrong = of('{"ipam":{"type":"spiderpool","default_ipv4_ippool":"lan"}}')
    assert "Expected `array`" in wrong.notes[0]
    sriov = of('{"ipam":{"type":"spiderpool","match_master_subnet":true}}')
    assert sriov.notes == ("match_master_subnet is on: the node knows the physical NIC's networks",)


def test_the_settings_of_the_release_count() -> None:
    items = [lan(default=True), lan("six", subnet="fd00::/64", ips=["fd00::1"], default=True), web()]
    assert len(asked(first(explained(*installed(), *items)))) == 2
    assert asked(first(explained(*installed("enableIPv6: false"), *items))) == [(1, "lan", "10.6.0.10/16")]
    broken = explained(*installed("enableIPv7: false"), *items)
    assert "enableIPv7" in broken.notes[0]
    unknown = explained(*items)
    assert unknown.notes == (
        f"Deployment {SPIDERPOOL} cannot be read: settings are taken at their defaults (see -n and --controller)",
    )


def test_what_may_not_be_read_is_said() -> None:
    """The labels of a node decide, and not to know them is not the same as that there are none."""
    found = explained_with_uid(web(), lan(default=True, node_affinity=LabelSelector(match_labels={"zone": "a"})))
    assert "namespace default cannot be read" in found.notes[0] and "node n1 cannot be read" in found.notes[1]
    (rejected,) = first(found).candidates
    assert rejected.reason is not None and rejected.reason.seen == "an unknown object"


def test_a_broken_networks_annotation_is_said_and_stops_no_explanation() -> None:
    items = [*installed(), lan(default=True), web({a.MULTUS_NETWORKS: "a/b/c"})]
    assert asked(first(explained(*items))) == [(1, "lan", "10.6.0.10/16")]
    assert "'a/b/c'" in explained(*items, nic="net1").nics[0].notes[0]


def test_a_pod_that_is_gone_is_known_by_its_records() -> None:
    found = explained(*installed(), lan(records={"10.6.0.12": record()}, default=True))
    assert [it.address for it in found.holds] == ["10.6.0.12"]
    assert "no such Pod object" in found.notes[0]
    with pytest.raises(Failure, match="no pod default/web, and no pool has a record of one"):
        explained(*installed(), lan(default=True))


def test_a_pool_that_cannot_be_read_is_said_so() -> None:
    broken = msgspec.structs.replace(lan(default=True), status=IPPoolStatus(allocated_ips="{"))
    assert asked(first(explained(*installed(), broken, web()))) == [(1, "lan", "status")]


# ---------------------------------------------------------------- a pool


def of_pool(name: str, *items: object) -> pool.PoolExplained:
    async def work() -> pool.PoolExplained:
        store = MemoryStore()
        await put(store, *installed(), *items)
        seen = await scene.read(store, scene.Release("spiderpool"), now=NOW)
        await store.aclose()
        return pool.explain(seen, name)

    found = asyncio.run(work())
    assert pool.render(found, wide=False) and pool.render(found, wide=True)
    return found


def counts(found: pool.PoolExplained) -> dict[str, tuple[str, ...]]:
    return {part.state: part.ranges for part in found.parts if part.count}


def test_every_address_is_somewhere() -> None:
    found = of_pool(
        "lan",
        lan(
            records={"10.6.0.10": record(), "10.6.0.11": record("u2", kept=True), "10.6.9.9": record("u3")},
            ips=["10.6.0.10-10.6.0.19"],
            exclude_ips=["10.6.0.19"],
            withheld={
                "10.6.0.12": {"until": LATER, "reason": "cool-down"},
                "10.6.0.13": {"until": LATER, "reason": "conflict: 02:00:00:00:00:01"},
                "10.6.0.14": {"until": EARLIER, "reason": "conflict: over"},
            },
        ),
        lan("twin", ips=["10.6.0.16"]),
        SpiderReservedIP(metadata=ObjectMeta(name="r"), spec=ReservedIPSpec(ips=["10.6.0.15"])),
    )
    assert counts(found) == {
        "used": ("10.6.0.10",),
        "kept": ("10.6.0.11",),
        "quarantine": ("10.6.0.13",),
        "reserved": ("10.6.0.15",),
        "overlapping": ("10.6.0.16",),
        "cool-down": ("10.6.0.12",),
        "free": ("10.6.0.14", "10.6.0.17-10.6.0.18"),
        "outside": ("10.6.9.9",),
    }
    assert sum(part.count for part in found.parts if part.state != "outside") == found.total == 9
    assert found.overlaps == "10.6.0.16 with twin"
    assert (found.records, found.max_records) == (3, 3)
    assert found.refuses is not None and found.refuses.predicate == "max-records"


def test_why_it_would_refuse_now() -> None:
    assert of_pool("lan", lan()).next_address == "10.6.0.10/16"
    for spec, predicate in (
        ({"disable": True}, "disable"),
        ({"ips": ["10.6.0.10"], "exclude_ips": ["10.6.0.10"]}, "full"),
        ({"ips": ["10.6"]}, "status"),
    ):
        refuses = of_pool("lan", lan(**spec)).refuses
        assert refuses is not None and refuses.predicate == predicate
    shared = of_pool("lan", lan(ips=["10.6.0.10"]), lan("twin", ips=["10.6.0.10"])).refuses
    assert shared is not None and shared.predicate == "overlap"
    resting = lan(ips=["10.6.0.10"], withheld={"10.6.0.10": {"until": LATER, "reason": "cool-down"}})
    assert of_pool("lan", resting).next_address == "10.6.0.10/16", "what rests is used when nothing else is free"


def test_whom_it_serves() -> None:
    found = of_pool(
        "lan",
        lan(
            node_name=["n1", "n2"],
            node_affinity=LabelSelector(match_labels={"void": "yes"}),
            namespace_affinity=LabelSelector(match_labels={"team": "a"}),
            pod_affinity=LabelSelector(match_labels={"app": "web"}),
            multus_name=["wan", "x/dmz"],
        ),
    )
    assert [(rule.field, rule.wanted) for rule in found.serves] == [
        ("nodeName", "n1, n2"),
        ("namespaceAffinity", "team=a"),
        ("podAffinity", "app=web"),
        ("multusName", "spiderpool/wan, x/dmz"),
    ]
    assert of_pool("lan", lan()).serves == ()


def test_a_pool_that_there_is_not() -> None:
    with pytest.raises(Failure, match="no SpiderIPPool is named nil"):
        of_pool("nil", lan())


# ---------------------------------------------------------------- the program


@pytest.fixture
def ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The program on an embedded store with one pool, in which default/web has an address."""

    async def work() -> None:
        store = SQLiteStore(tmp_path / FILE_NAME)
        await put(store, lan(records={"10.6.0.12": record()}, default=True))
        await store.aclose()

    asyncio.run(work())

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["explain", *argv, "--state-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_on_an_embedded_store(ctl: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = ctl("pod", "default/web", "-o", "json")
    assert code == 0
    said = json.loads(out)
    assert said["nics"][0]["candidates"][0]["address"] == "10.6.0.12/16"
    assert said["holds"][0]["why"] == "the first of the cluster's default pools (spec.default)"
    assert "10.6.0.10/16" in ctl("pod", "default/nobody")[1]
    assert "pool: lan" in ctl("pod", "default/web", "-o", "yaml")[1]
    code, out, _ = ctl("pool", "lan")
    assert code == 0
    assert out.endswith("a new pod would get 10.6.0.10/16\n")
    assert json.loads(ctl("pool", "lan", "-o", "json")[1])["refuses"] is None


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["pod", "web"], 2, "spiderpoolctl explain: 'web': expected NAMESPACE/NAME"),
        (["pod", "a/b/c"], 2, "spiderpoolctl explain: 'a/b/c': expected NAMESPACE/NAME"),
        (["pool", "nil"], 1, "spiderpoolctl explain: no SpiderIPPool is named nil"),
    ],
)
def test_what_cannot_be_explained(
    ctl: Callable[..., tuple[int, str, str]], argv: list[str], code: int, error: str
) -> None:
    assert ctl(*argv) == (code, "", f"{error}\n")
