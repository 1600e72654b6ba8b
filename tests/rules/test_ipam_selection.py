"""Selection against a brute-force reading of the specification, and what its errors say."""

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from api.annotations import NAMESPACE_DEFAULT_IPV4, NAMESPACE_DEFAULT_IPV6, POD_IPPOOL, POD_IPPOOLS
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import LabelSelector, LabelSelectorRequirement, ObjectMeta
from ipam.selection import SelectionError, SelectionRequest, select

LABELS = {"tier": "web"}
OTHER = LabelSelector(match_labels={"tier": "db"})
SAME = LabelSelector(match_labels=LABELS)
SUBNETS = {4: "10.0.0.0/16", 6: "fd00::/64"}


def pool(name: str, version: int = 4, *, deleted: bool = False, **spec: object) -> SpiderIPPool:
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, deletion_timestamp="2026-01-01T00:00:00Z" if deleted else None),
        spec=structs.replace(IPPoolSpec(subnet=SUBNETS[version], ip_version=4 if version == 4 else 6), **spec),
    )


def by_name(*pools: SpiderIPPool) -> dict[str, SpiderIPPool]:
    return {it.metadata.name: it for it in pools}


def request(
    annotation: object = None,
    *,
    namespace_ipv4: object = None,
    namespace_ipv6: object = None,
    default_ipv4: Sequence[str] = (),
    default_ipv6: Sequence[str] = (),
    enable_ipv4: bool = True,
    enable_ipv6: bool = True,
) -> SelectionRequest:
    """Pod ns/web on n1; pod, namespace and node have the label tier=web. Annotations as values, or as raw text."""

    def text(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    namespace = {NAMESPACE_DEFAULT_IPV4: namespace_ipv4, NAMESPACE_DEFAULT_IPV6: namespace_ipv6}
    return SelectionRequest(
        pod=Pod(
            metadata=ObjectMeta(
                name="web",
                namespace="ns",
                uid="u1",
                labels=LABELS,
                annotations={} if annotation is None else {POD_IPPOOL: text(annotation)},
            ),
            spec=PodSpec(node_name="n1"),
        ),
        namespace=Namespace(
            metadata=ObjectMeta(
                name="ns",
                labels=LABELS,
                annotations={key: text(value) for key, value in namespace.items() if value is not None},
            )
        ),
        node=Node(metadata=ObjectMeta(name="n1", labels=LABELS)),
        nic="eth0",
        default_ipv4=tuple(default_ipv4),
        default_ipv6=tuple(default_ipv6),
        enable_ipv4=enable_ipv4,
        enable_ipv6=enable_ipv6,
    )


def refused(asked: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> SelectionError:
    with pytest.raises(SelectionError) as caught:
        select(asked, pools)
    return caught.value


# ---------------------------------------------------------------- brute force

NAMES = ["a4", "b4", "c4", "d6", "e6"]
selectors = st.sampled_from([None, None, None, SAME, OTHER])
names_lists = st.none() | st.lists(st.sampled_from([*NAMES, "gone"]), max_size=3)


@st.composite
def drawn_pools(draw: st.DrawFn) -> dict[str, SpiderIPPool]:
    """Any subset of the names, each pool mostly willing."""
    rarely = st.sampled_from([False, False, False, False, True])
    return by_name(
        *(
            pool(
                name,
                int(name[1]),
                deleted=draw(rarely),
                disable=draw(rarely),
                default=draw(st.booleans()),
                node_name=draw(st.sampled_from([[], [], ["n1"], ["n2"], ["n2", "n1"]])),
                node_affinity=draw(selectors),
                namespace_name=draw(st.sampled_from([[], [], ["ns"], ["other"]])),
                namespace_affinity=draw(selectors),
                pod_affinity=draw(selectors),
                multus_name=draw(st.sampled_from([[], ["kube-system/lan"]])),
            )
            for name in NAMES
            if draw(st.integers(0, 9))
        )
    )


def willing(it: SpiderIPPool, version: int) -> bool:
    """Whether the pool may serve the pod of `request`, by the specification's own words."""
    spec = it.spec
    return (
        it.metadata.deletion_timestamp is None
        and not spec.disable
        and spec.ip_version == version
        and ("n1" in spec.node_name if spec.node_name else spec.node_affinity in (None, SAME))
        and ("ns" in spec.namespace_name if spec.namespace_name else spec.namespace_affinity in (None, SAME))
        and spec.pod_affinity in (None, SAME)
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


def check_order(order: Sequence[str], written: Sequence[str], pools: Mapping[str, SpiderIPPool]) -> None:
    for at, first in enumerate(order):
        for second in order[at + 1 :]:
            one, other = presence(pools[first]), presence(pools[second])
            differing = next((at for at in range(6) if one[at] != other[at]), None)
            if differing is None:
                assert written.index(first) < written.index(second), "ties keep the written order"
            else:
                assert one[differing], "set comes before unset"


@settings(max_examples=500, deadline=None)
@given(
    pools=drawn_pools(),
    annotated=st.none() | st.tuples(names_lists, names_lists),
    namespace=st.tuples(names_lists, names_lists),
    netconf=st.tuples(st.lists(st.sampled_from(NAMES), max_size=2), st.lists(st.sampled_from(NAMES), max_size=2)),
    enabled=st.tuples(st.booleans(), st.booleans()),
)
def test_selection_is_what_the_specification_says(
    pools: dict[str, SpiderIPPool],
    annotated: tuple[list[str] | None, list[str] | None] | None,
    namespace: tuple[list[str] | None, list[str] | None],
    netconf: tuple[list[str], list[str]],
    enabled: tuple[bool, bool],
) -> None:
    annotation = None
    if annotated is not None:
        annotation = {key: names for key, names in zip(("ipv4", "ipv6"), annotated, strict=True) if names is not None}
    asked = request(
        annotation,
        namespace_ipv4=namespace[0],
        namespace_ipv6=namespace[1],
        default_ipv4=netconf[0],
        default_ipv6=netconf[1],
        enable_ipv4=enabled[0],
        enable_ipv6=enabled[1],
    )
    if annotated is not None:
        source = [annotated[0] or [], annotated[1] or []]
    elif namespace[0] or namespace[1]:
        source = [namespace[0] or [], namespace[1] or []]
    elif netconf[0] or netconf[1]:
        source = [netconf[0], netconf[1]]
    else:
        source = [
            sorted(name for name, it in pools.items() if it.spec.default and it.spec.ip_version == version)
            for version in (4, 6)
        ]
    wanted = [names if on else [] for names, on in zip(source, enabled, strict=True)]
    expected = [
        [name for name in names if name in pools and willing(pools[name], version)]
        for names, version in zip(wanted, (4, 6), strict=True)
    ]
    impossible = (
        wanted == [[], []]
        or any(len(set(names)) < len(names) for names in wanted)
        or any(name not in pools for names in wanted for name in names)
        or any(names and not left for names, left in zip(wanted, expected, strict=True))
    )
    if impossible:
        error = refused(asked, pools)
        assert error.cause in ("wrong_input", "no_available_pool")
        assert str(error)
        return
    selection = select(asked, pools)
    for order, names, left in zip((selection.ipv4, selection.ipv6), wanted, expected, strict=True):
        assert sorted(order) == sorted(left)
        check_order(order, names, pools)
    verdicts = selection.explanation.considered
    assert [verdict.pool for verdict in verdicts] == [name for names in wanted for name in names]
    assert [verdict.pool for verdict in verdicts if verdict.accepted] == [name for names in expected for name in names]
    assert all((verdict.reason is None) == verdict.accepted for verdict in verdicts)


# ---------------------------------------------------------------- sources


FOUR = by_name(*(pool(name) for name in ("p1", "p2", "p3")), pool("p4", default=True))


@pytest.mark.parametrize(
    ("asked", "ipv4", "source"),
    [
        (
            request({"ipv4": ["p1"]}, namespace_ipv4=["p2"], default_ipv4=["p3"]),
            "p1",
            "annotation ipam.spidernet.io/ippool",
        ),
        (request(namespace_ipv4=["p2"], default_ipv4=["p3"]), "p2", "namespace ns's default pools"),
        (request(namespace_ipv4=[], default_ipv4=["p3"]), "p3", "the plugin configuration's ipam"),
        (request(), "p4", "the cluster's default pools (spec.default)"),
    ],
)
def test_the_first_source_wins(asked: SelectionRequest, ipv4: str, source: str) -> None:
    selection = select(asked, FOUR)
    assert (selection.ipv4, selection.ipv6, selection.source) == ((ipv4,), (), source)


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
    written = [
        *(SpiderIPPool(metadata=ObjectMeta(name=f"all-below-{at}"), spec=spec) for at, spec in enumerate(below)),
        *(SpiderIPPool(metadata=ObjectMeta(name=f"only-{at}"), spec=spec) for at, spec in enumerate(alone)),
    ]
    chosen = select(request({"ipv4": [it.metadata.name for it in written]}), by_name(*written)).ipv4
    for at in range(6):
        assert chosen.index(f"only-{at}") < chosen.index(f"all-below-{at}")
    assert [name for name in chosen if "only" in name] == [f"only-{at}" for at in range(6)]


def test_default_pools_are_tried_by_name_whatever_the_order_of_the_snapshot() -> None:
    pools = by_name(*(pool(name, default=True) for name in ("c", "a", "b")))
    assert select(request(), pools).ipv4 == ("a", "b", "c")


def test_a_source_that_names_one_family_gives_that_family_only() -> None:
    pools = by_name(pool("p4", default=True), pool("p6", 6, default=True))
    assert select(request({"ipv4": ["p4"]}), pools).ipv6 == ()
    both = select(request(), pools)
    assert (both.ipv4, both.ipv6) == (("p4",), ("p6",))


def test_a_family_that_is_off_is_left_out_as_long_as_something_remains() -> None:
    pools = by_name(pool("p4"), pool("p6", 6))
    asked = {"ipv4": ["p4"], "ipv6": ["p6"]}
    assert select(request(asked, enable_ipv6=False), pools).ipv6 == ()
    error = refused(request({"ipv6": ["p6"]}, enable_ipv6=False), pools)
    assert str(error) == "annotation ipam.spidernet.io/ippool names no pool of an enabled family (IPv6 is switched off)"
    assert error.cause == "wrong_input"


def test_the_version_of_a_pool_that_no_webhook_completed_comes_from_its_subnet() -> None:
    bare = SpiderIPPool(metadata=ObjectMeta(name="p6"), spec=IPPoolSpec(subnet="fd00::/64", default=True))
    assert select(request(), by_name(bare)).ipv6 == ("p6",)


# ---------------------------------------------------------------- errors


def test_an_empty_annotation_asks_for_nothing_and_gets_that() -> None:
    error = refused(request({}), FOUR)
    assert str(error) == "annotation ipam.spidernet.io/ippool names no pool of an enabled family"
    assert error.cause == "wrong_input"


def test_no_default_pool() -> None:
    error = refused(request(), {})
    assert error.cause == "no_available_pool"
    assert "spec.default" in str(error)


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [("{", "'{'"), ('["p1"]', """'["p1"]'"""), ('{"ipv4":"p1"}', """'{"ipv4":"p1"}'""")],
)
def test_an_annotation_that_cannot_be_read_is_shown(annotation: str, shown: str) -> None:
    error = refused(request(annotation), FOUR)
    assert error.cause == "wrong_input"
    assert "annotation ipam.spidernet.io/ippool" in str(error)
    assert shown in str(error)


def test_a_namespace_annotation_that_cannot_be_read_is_shown() -> None:
    error = refused(request(namespace_ipv6="p1,p2"), FOUR)
    assert error.cause == "wrong_input"
    assert NAMESPACE_DEFAULT_IPV6 in str(error)
    assert "'p1,p2'" in str(error)


def test_the_annotation_for_several_nics_is_refused_and_not_passed_over() -> None:
    asked = request()
    metadata = structs.replace(asked.pod.metadata, annotations={POD_IPPOOLS: '[{"interface":"eth0","ipv4":["p1"]}]'})
    error = refused(structs.replace(asked, pod=structs.replace(asked.pod, metadata=metadata)), FOUR)
    assert error.cause == "wrong_input"
    assert POD_IPPOOLS in str(error)
    assert '"interface":"eth0"' in str(error)


def test_a_pool_that_does_not_exist_is_an_error_though_others_would_do() -> None:
    error = refused(request({"ipv4": ["p1", "nowhere"]}), FOUR)
    assert str(error) == "annotation ipam.spidernet.io/ippool names pool 'nowhere', which does not exist"
    assert error.cause == "wrong_input"
    assert [verdict.accepted for verdict in error.explanation.considered] == [True, False]


def test_a_pool_that_is_named_twice() -> None:
    error = refused(request(default_ipv4=["p1", "p2", "p1"]), FOUR)
    assert str(error) == "the plugin configuration's ipam names IPv4 pool 'p1' twice"
    assert error.cause == "wrong_input"


EXPRESSION = LabelSelector(match_expressions=[LabelSelectorRequirement(key="tier", operator="NotIn", values=["web"])])
BROKEN = LabelSelector(match_expressions=[LabelSelectorRequirement(key="tier", operator="Near", values=["web"])])


@pytest.mark.parametrize(
    ("candidate", "predicate", "wanted", "seen"),
    [
        (pool("p", deleted=True), "terminating", "a pool that stays", "deleted at 2026-01-01T00:00:00Z"),
        (pool("p", disable=True), "disable", "false", "true"),
        (pool("p", 6), "ipVersion", "4", "6"),
        (pool("p", node_name=["n2", "n3"]), "nodeName", "one of n2, n3", "n1"),
        (pool("p", node_affinity=OTHER), "nodeAffinity", "tier=db", "tier=web"),
        (pool("p", namespace_name=["x"]), "namespaceName", "one of x", "ns"),
        (pool("p", namespace_affinity=OTHER), "namespaceAffinity", "tier=db", "tier=web"),
        (pool("p", pod_affinity=EXPRESSION), "podAffinity", "tier NotIn (web)", "tier=web"),
        (pool("p", disable=True, node_name=["n2"]), "disable", "false", "true"),
    ],
)
def test_a_rejection_says_predicate_wanted_and_seen(
    candidate: SpiderIPPool, predicate: str, wanted: str, seen: str
) -> None:
    error = refused(request({"ipv4": ["p"]}), by_name(candidate))
    assert error.cause == "no_available_pool"
    (verdict,) = error.explanation.considered
    assert verdict.reason is not None
    assert (verdict.reason.predicate, verdict.reason.wanted, verdict.reason.seen) == (predicate, wanted, seen)
    assert str(error) == (
        "no IPv4 pool of annotation ipam.spidernet.io/ippool may serve it: "
        f"p: rejected by {predicate}: wanted {wanted}, found {seen}"
    )


def test_a_selector_that_kubernetes_would_refuse_rejects_its_pool_only() -> None:
    pools = by_name(pool("p1", pod_affinity=BROKEN), pool("p2"))
    selection = select(request({"ipv4": ["p1", "p2"]}), pools)
    assert selection.ipv4 == ("p2",)
    rejected = selection.explanation.considered[0].reason
    assert rejected is not None
    assert "unknown operator 'Near'" in rejected.seen


def test_names_override_affinities() -> None:
    assert select(request({"ipv4": ["p"]}), by_name(pool("p", node_name=["n1"], node_affinity=OTHER))).ipv4
    assert select(request({"ipv4": ["p"]}), by_name(pool("p", namespace_name=["ns"], namespace_affinity=OTHER))).ipv4


ABSENT = LabelSelector(match_expressions=[LabelSelectorRequirement(key="gpu", operator="DoesNotExist")])


@pytest.mark.parametrize(
    ("candidate", "unknown"),
    [(pool("p", node_affinity=ABSENT), "node"), (pool("p", namespace_affinity=ABSENT), "namespace")],
)
def test_an_object_of_which_nothing_is_known_fulfils_no_affinity(candidate: SpiderIPPool, unknown: str) -> None:
    """Not even "has no such label", which an empty set of labels would fulfil."""
    pools = by_name(candidate)
    asked = request({"ipv4": ["p"]})
    assert select(asked, pools).ipv4 == ("p",)
    error = refused(structs.replace(asked, **{unknown: None}), pools)
    assert "wanted gpu DoesNotExist, found an unknown object" in str(error)


def test_one_family_without_pool_fails_both() -> None:
    pools = by_name(pool("p4"), pool("p6", 6, disable=True))
    error = refused(request({"ipv4": ["p4"], "ipv6": ["p6"]}), pools)
    assert "no IPv6 pool" in str(error)
    assert [verdict.accepted for verdict in error.explanation.considered] == [True, False]
