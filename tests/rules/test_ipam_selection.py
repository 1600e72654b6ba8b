"""Selection as a whole, against a brute-force reading of the specification."""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from api import annotations as a
from api.annotations import AnnotationError, pod_ippool, pod_ippools
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from api.networks import default_network, networks
from api.reasons import Verdict
from ipam.identity import Workload
from ipam.selection import Selection, SelectionError, SelectionRequest, select
from tests.rules.selection_world import DEPLOYMENT, OTHER, SAME, SUBNETS, by_name, pool, request

# ---------------------------------------------------------------- what is drawn

NAMES = ["a4", "b4", "c4", "d6", "e6"]
PATTERNS = ["*", "?4", "*6", "[ab]4", "[^a]4", "z*"]
JOB = Workload(api_version="batch/v1", kind="Job", namespace="ns", name="web")
NICS = ["eth0", "net1", "net2", "up0"]


def names_of(version: int) -> st.SearchStrategy[list[str] | None]:
    """Mostly names and patterns of the family; now and then one that is wrong, or is there twice."""
    right = [name for name in NAMES if name.endswith(str(version))]
    sound = st.lists(st.sampled_from([*right, *right, *PATTERNS]), max_size=3, unique=True)
    odd = st.lists(st.sampled_from([*NAMES, *PATTERNS, "gone"]), min_size=1, max_size=3)
    return st.integers(0, 9).flatmap(lambda at: st.none() if at == 0 else odd if at == 9 else sound)


names_lists = {version: names_of(version) for version in (4, 6)}
items = st.tuples(names_lists[4], names_lists[6], st.booleans())
TRAITS: list[dict[str, Any]] = [
    {"node_name": ["n1"]},
    {"node_name": ["n2", "n1"]},
    {"node_name": ["n2"]},
    {"node_affinity": SAME},
    {"node_affinity": OTHER},
    {"namespace_name": ["ns"]},
    {"namespace_name": ["other"]},
    {"namespace_affinity": SAME},
    {"namespace_affinity": OTHER},
    {"pod_affinity": SAME},
    {"pod_affinity": OTHER},
    {"multus_name": ["lan"]},
    {"multus_name": ["ns/wan", "kube-system/lan"]},
    {"multus_name": ["ns/wan"]},
    {"owner": DEPLOYMENT},
    {"owner": JOB},
    {"disable": True},
    {"deleted": True},
]
willing_mostly = st.sampled_from([trait for trait in TRAITS if SAME in trait.values()] + TRAITS)
traits = st.tuples(st.booleans(), st.integers(0, 3).flatmap(lambda most: st.lists(willing_mostly, max_size=most // 2)))


@st.composite
def drawn_pools(draw: st.DrawFn) -> dict[str, SpiderIPPool]:
    """Any subset of the names; each pool says little or nothing about whom it is for."""
    drawn = draw(st.dictionaries(st.sampled_from(NAMES), traits, min_size=4))
    return by_name(
        *(
            pool(name, int(name[1]), default=default, **{key: value for one in said for key, value in one.items()})
            for name, (default, said) in drawn.items()
        )
    )


@st.composite
def drawn_requests(draw: st.DrawFn) -> SelectionRequest:
    """One or several of the sources, and a NIC of the pod that asks."""
    sources = draw(st.sets(st.sampled_from(["several", "one", "namespace", "plugin"])))
    one = draw(items) if "one" in sources else None
    several = draw(st.lists(items, min_size=1, max_size=3)) if "several" in sources else None
    named = draw(st.booleans())
    ippools = None
    if several is not None:
        ippools = [
            written(item) | ({"interface": nic} if named else {}) for item, nic in zip(several, NICS, strict=False)
        ]
    namespace = draw(st.tuples(names_lists[4], names_lists[6])) if "namespace" in sources else (None, None)
    plugin = draw(st.tuples(names_lists[4], names_lists[6])) if "plugin" in sources else (None, None)
    return request(
        None if one is None else written(one),
        ippools=ippools,
        networks=draw(st.sampled_from([None, "wan", "other/wan, wan@up0"])),
        others=draw(st.sampled_from([{}, {}, {a.MULTUS_DEFAULT_NETWORK: "ns/wan"}])),
        namespace_ipv4=namespace[0],
        namespace_ipv6=namespace[1],
        default_ipv4=plugin[0] or (),
        default_ipv6=plugin[1] or (),
        nic=draw(st.sampled_from(["eth0", "eth0", "eth0", "net1", "up0"])),
        enable_ipv4=draw(st.sampled_from([True] * 7 + [False])),
        enable_ipv6=draw(st.sampled_from([True] * 7 + [False])),
        cluster_network=draw(st.sampled_from(["", "lan", "other/lan", "/etc/cni/net.d/10-lan.conf"])),
        workload=draw(st.sampled_from([DEPLOYMENT, DEPLOYMENT, None])),
        master_subnets=draw(st.sampled_from([None] * 6 + [(), ("10.0.3.1/24", "fd00::1/64"), ("10.1.0.1/24",)])),
        clean_gateway=draw(st.booleans()),
    )


def written(item: tuple[list[str] | None, list[str] | None, bool]) -> dict[str, object]:
    ipv4, ipv6, clean = item
    found: dict[str, object] = {"cleanGateway": clean} if clean else {}
    return found | {key: names for key, names in (("ipv4", ipv4), ("ipv6", ipv6)) if names is not None}


# ---------------------------------------------------------------- what the specification says

Wanted = dict[str, tuple[dict[int, list[str]], bool]]
"""By NIC: pool names by family, and whether it gets no default route."""


class Wrong(Exception):
    """The user has to change something; or, where it says so, nothing is there to be given."""

    def __init__(self, cause: str = "wrong_input") -> None:
        super().__init__(cause)
        self.cause = cause


def network_of(asked: SelectionRequest, nic: str) -> str:
    """By Multus' rules: which attachment makes the NIC."""
    of_pod = asked.pod.metadata.annotations
    if nic == "eth0":
        if a.MULTUS_DEFAULT_NETWORK in of_pod:
            return of_pod[a.MULTUS_DEFAULT_NETWORK]
        return {"": "", "lan": "kube-system/lan", "other/lan": "other/lan"}.get(asked.cluster_network, "")
    table = {
        None: {},
        "wan": {"net1": "ns/wan"},
        "other/wan, wan@up0": {"net1": "other/wan", "up0": "ns/wan"},
    }[of_pod.get(a.MULTUS_NETWORKS)]
    return table.get(nic, "")


def asked_for(asked: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> Wanted:
    """The first source that says anything; patterns filled in, families that are off left out."""
    of_pod = asked.pod.metadata.annotations
    assert asked.namespace is not None
    of_namespace = {
        version: json.loads(asked.namespace.metadata.annotations.get(key, "[]"))
        for version, key in ((4, a.NAMESPACE_DEFAULT_IPV4), (6, a.NAMESPACE_DEFAULT_IPV6))
    }
    lists: dict[str, tuple[dict[int, list[str]], bool]]
    fallback = "wrong_input"
    if a.POD_IPPOOLS in of_pod:
        entries = json.loads(of_pod[a.POD_IPPOOLS])
        made = ["eth0", *(nic for nic in ("net1", "up0") if network_of(asked, nic))]
        lists = {
            entry.get("interface") or nic: (
                {4: entry.get("ipv4", []), 6: entry.get("ipv6", [])},
                entry.get("cleanGateway", False),
            )
            for entry, nic in zip(entries, [*made, *NICS] if "interface" in entries[0] else made, strict=False)
        }
        if asked.nic not in lists:
            raise Wrong
    elif a.POD_IPPOOL in of_pod:
        entry = json.loads(of_pod[a.POD_IPPOOL])
        lists = {asked.nic: ({4: entry.get("ipv4", []), 6: entry.get("ipv6", [])}, asked.clean_gateway)}
    elif of_namespace[4] or of_namespace[6]:
        lists = {asked.nic: (of_namespace, asked.clean_gateway)}
    elif asked.default_ipv4 or asked.default_ipv6:
        lists = {asked.nic: ({4: list(asked.default_ipv4), 6: list(asked.default_ipv6)}, asked.clean_gateway)}
    else:
        named = {v: sorted(n for n, it in pools.items() if it.spec.default and n[1] == str(v)) for v in (4, 6)}
        lists = {asked.nic: (named, asked.clean_gateway)}
        fallback = "no_available_pool"
    on = {4: asked.enable_ipv4, 6: asked.enable_ipv6}
    wanted: Wanted = {}
    for nic, (by_version, clean) in lists.items():
        filled = {v: filled_in(names, v, pools) for v, names in by_version.items() if on[v]}
        filled = {v: names for v, names in filled.items() if names}
        if filled:
            wanted[nic] = (filled, clean)
    if asked.nic not in wanted:
        off = any(names and not on[v] for v, names in lists[asked.nic][0].items())
        raise Wrong("wrong_input" if off else fallback)
    return wanted


def filled_in(names: Sequence[str], version: int, pools: Mapping[str, SpiderIPPool]) -> list[str]:
    found: list[str] = []
    for at, name in enumerate(names):
        if any(mark in name for mark in "*?["):
            glob = name.replace("[^", "[!")
            fitting = [each for each in sorted(pools) if each[1] == str(version) and fnmatchcase(each, glob)]
        else:
            if name in names[:at]:
                raise Wrong
            fitting = [name]
        found += [each for each in fitting if each not in found]
    return found


def willing(asked: SelectionRequest, nic: str, it: SpiderIPPool, version: int) -> bool:
    """Whether the pool may serve the NIC, by the specification's own words."""
    spec = it.spec
    if a.OWNER_APPLICATION_NAME in it.metadata.labels:
        keys = spec.pod_affinity.match_labels if spec.pod_affinity is not None else {}
        its = asked.workload == DEPLOYMENT and [keys.get(key) for key in (a.APP_API_GROUP, a.APP_KIND)] == [
            "apps",
            "Deployment",
        ]
    else:
        its = spec.pod_affinity in (None, SAME)
        full = [name if "/" in name else f"kube-system/{name}" for name in spec.multus_name]
        its = its and (not full or network_of(asked, nic) in full)
    master = True
    if asked.master_subnets is not None and nic == asked.nic:
        master = asked.master_subnets == ("10.0.3.1/24", "fd00::1/64")
    return (
        it.metadata.deletion_timestamp is None
        and not spec.disable
        and spec.ip_version == version
        and ("n1" in spec.node_name if spec.node_name else spec.node_affinity in (None, SAME))
        and ("ns" in spec.namespace_name if spec.namespace_name else spec.namespace_affinity in (None, SAME))
        and its
        and master
    )


def presence(it: SpiderIPPool) -> tuple[bool, ...]:
    """What the pool says about whom it is for, most specific first."""
    spec = it.spec
    return (
        spec.pod_affinity is not None,
        bool(spec.node_name),
        spec.node_affinity is not None,
        bool(spec.namespace_name),
        spec.namespace_affinity is not None,
        bool(spec.multus_name),
    )


def check_order(order: Sequence[str], wanted: Sequence[str], pools: Mapping[str, SpiderIPPool]) -> None:
    for at, first in enumerate(order):
        for second in order[at + 1 :]:
            one, other = presence(pools[first]), presence(pools[second])
            differing = next((at for at in range(6) if one[at] != other[at]), None)
            if differing is None:
                assert wanted.index(first) < wanted.index(second), "ties keep the written order"
            else:
                assert one[differing], "set comes before unset"


def expected(asked: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> tuple[Wanted, Wanted] | Wrong:
    """What is asked for, and what is left of it."""
    try:
        wanted = asked_for(asked, pools)
    except Wrong as wrong:
        return wrong
    if any(name not in pools for by_version, _ in wanted.values() for names in by_version.values() for name in names):
        return Wrong()
    left = {
        nic: (
            {v: [n for n in names if willing(asked, nic, pools[n], v)] for v, names in by_version.items()},
            clean,
        )
        for nic, (by_version, clean) in wanted.items()
    }
    if not all(names for by_version, _ in left.values() for names in by_version.values()):
        return Wrong("no_available_pool")
    return wanted, left


def outcome(asked: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> Selection | SelectionError:
    try:
        return select(asked, pools)
    except SelectionError as error:
        return error


def judged(verdicts: Sequence[Verdict], pools: Mapping[str, SpiderIPPool]) -> list[tuple[str, str, bool]]:
    """Without what was said of patterns and of items that are for nobody."""
    return [(it.nic, it.pool, it.accepted) for it in verdicts if it.pool in pools and it.nic in NICS]


@settings(max_examples=200, deadline=None)
@given(pools=drawn_pools(), asked=drawn_requests())
def test_selection_is_what_the_specification_says(pools: dict[str, SpiderIPPool], asked: SelectionRequest) -> None:
    got, read = outcome(asked, pools), expected(asked, pools)
    if isinstance(read, Wrong):
        assert isinstance(got, SelectionError), got
        assert got.cause == read.cause, got
        assert all((it.reason is None) == it.accepted for it in got.explanation.considered)
        return
    wanted, left = read
    assert isinstance(got, Selection), got
    assert [it.nic for it in got.nics] == list(wanted)
    assert got.asked.nic == asked.nic
    for it in got.nics:
        by_version, clean = wanted[it.nic]
        assert it.clean_gateway == clean
        assert {4: list(it.named_ipv4), 6: list(it.named_ipv6)} == {4: [], 6: []} | by_version
        for version, order in ((4, it.ipv4), (6, it.ipv6)):
            assert sorted(order) == sorted(left[it.nic][0].get(version, []))
            check_order(order, by_version.get(version, []), pools)
    verdicts = got.explanation.considered
    assert judged(verdicts, pools) == [
        (nic, name, name in left[nic][0][version])
        for nic, (by_version, _) in wanted.items()
        for version, names in sorted(by_version.items())
        for name in names
    ]
    assert all((it.reason is None) == it.accepted for it in verdicts)
    assert all(it.reason is None or (it.reason.wanted and it.reason.predicate) for it in verdicts)


# ---------------------------------------------------------------- malformed

KEYS = [a.POD_IPPOOLS, a.POD_IPPOOL, a.MULTUS_NETWORKS, a.MULTUS_DEFAULT_NETWORK, a.POD_SUBNET, a.POD_SUBNETS]
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["p4", "p6", "*", "[", "eth0", "net1", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ipv4", "ipv6", "interface", "cleangateway", "name", "namespace"]), inner)
    ),
    max_leaves=10,
).map(json.dumps)
texts = st.text(max_size=20) | json_like | st.sampled_from(["[" * 100_000, '{"ipv4":["\\ud800"]}', "1e999", "[{}]"])
BY_NETWORK = by_name(
    pool("p4", multus_name=["ns/wan"], default=True), pool("p6", 6, multus_name=["ns/wan"], default=True)
)


@settings(max_examples=200, deadline=None)
@given(
    of_pod=st.dictionaries(st.sampled_from(KEYS), texts, max_size=3),
    of_namespace=st.tuples(st.none() | texts, st.none() | texts),
    nic=st.sampled_from(["eth0", "net1"]),
    subnets=st.booleans(),
)
def test_whatever_annotations_say_is_served_or_refused_with_key_and_value(
    of_pod: dict[str, str], of_namespace: tuple[str | None, str | None], nic: str, subnets: bool
) -> None:
    asked = request(
        others=of_pod,
        namespace_ipv4=of_namespace[0],
        namespace_ipv6=of_namespace[1],
        nic=nic,
        enable_subnets=subnets,
    )
    got = outcome(asked, BY_NETWORK)
    unreadable = first_unreadable(asked)
    if unreadable is not None:
        assert isinstance(got, SelectionError)
        assert got.cause == "wrong_input"
        assert unreadable in str(got) and repr(of_pod[unreadable]) in str(got)


def first_unreadable(asked: SelectionRequest) -> str | None:
    """The annotation of the pod that selection cannot do without and cannot read."""
    of_pod = asked.pod.metadata.annotations
    if asked.enable_subnets:
        for key in (a.POD_SUBNETS, a.POD_SUBNET):
            if key in of_pod:
                return key
    try:
        several = pod_ippools(of_pod)
    except AnnotationError:
        return a.POD_IPPOOLS
    if several is None:
        try:
            pod_ippool(of_pod)
        except AnnotationError:
            return a.POD_IPPOOL
    elif not several[0].interface:
        try:
            networks(of_pod, namespace="ns")
        except AnnotationError:
            return a.MULTUS_NETWORKS
    return None


def test_networks_are_read_where_a_pool_asks_for_them_and_only_there() -> None:
    """So that no mistake in an annotation of others stops a pod that does not depend on it."""
    for nic, key in (("net1", a.MULTUS_NETWORKS), ("eth0", a.MULTUS_DEFAULT_NETWORK)):
        asked = request(others={key: "a/b/c"}, nic=nic)
        got = outcome(asked, BY_NETWORK)
        assert isinstance(got, SelectionError)
        assert f"annotation {key}: 'a/b/c' has more than one /" in str(got)
        assert isinstance(outcome(asked, by_name(pool("p4", default=True))), Selection)
    assert default_network({}, namespace="x") is None


# ---------------------------------------------------------------- order


def test_order_is_by_how_specifically_a_pool_is_meant() -> None:
    """Each pool has one mark, and a stronger one goes before all weaker ones together."""
    marks: list[tuple[str, object]] = [
        ("pod_affinity", SAME),
        ("node_name", ["n1"]),
        ("node_affinity", SAME),
        ("namespace_name", ["ns"]),
        ("namespace_affinity", SAME),
        ("multus_name", ["kube-system/lan"]),
    ]
    below = [structs.replace(IPPoolSpec(subnet=SUBNETS[4]), **dict(marks[at + 1 :])) for at in range(6)]
    alone = [structs.replace(IPPoolSpec(subnet=SUBNETS[4]), **{key: value}) for key, value in marks]
    written_order = [
        *(SpiderIPPool(metadata=ObjectMeta(name=f"all-below-{at}"), spec=spec) for at, spec in enumerate(below)),
        *(SpiderIPPool(metadata=ObjectMeta(name=f"only-{at}"), spec=spec) for at, spec in enumerate(alone)),
    ]
    chosen = select(request({"ipv4": [it.metadata.name for it in written_order]}), by_name(*written_order)).asked.ipv4
    for at in range(6):
        assert chosen.index(f"only-{at}") < chosen.index(f"all-below-{at}")
    assert [name for name in chosen if "only" in name] == [f"only-{at}" for at in range(6)]


def test_equal_pools_keep_the_order_in_which_they_were_written() -> None:
    """The original takes them from a map, in any order."""
    names = ["z", "m", "a", "q", "b"]
    pools = by_name(*(pool(name) for name in sorted(names)))
    assert select(request({"ipv4": names}), pools).asked.ipv4 == tuple(names)
    assert select(request(default_ipv4=names[::-1]), pools).asked.ipv4 == tuple(names[::-1])


def test_default_pools_are_tried_by_name_whatever_the_order_of_the_snapshot() -> None:
    pools = by_name(*(pool(name, default=True) for name in ("c", "a", "b")))
    assert select(request(), pools).asked.ipv4 == ("a", "b", "c")


def test_a_fixed_address_stays_in_a_pool_that_is_named_whatever_it_has_come_to_ask_for() -> None:
    pools = by_name(pool("p4", disable=True, node_name=["n2"]), pool("q4"), pool("p6", 6))
    held = frozenset({("eth0", "p4")})
    assert select(request({"ipv4": ["p4", "q4"]}, holds=held), pools).asked.ipv4 == ("p4", "q4")
    assert select(request({"ipv4": ["p4", "q4"]}), pools).asked.ipv4 == ("q4",)
    assert select(request({"ipv4": ["p4", "q4"]}, holds=held, nic="net1"), pools).asked.ipv4 == ("q4",)
    assert select(request({"ipv4": ["q4"]}, holds=held), pools).asked.ipv4 == ("q4",)
    wrong_family = outcome(request({"ipv4": ["p6"]}, holds=frozenset({("eth0", "p6")})), pools)
    assert isinstance(wrong_family, SelectionError)
    assert "ipVersion" in str(wrong_family)
