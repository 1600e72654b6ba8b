"""Automatic pools by their rules: sizes, names, labels, and which pool is whose."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from api import annotations as keys
from api.annotations import AnnotationError
from api.core import (
    CronJob,
    CronJobSpec,
    DaemonSet,
    DaemonSetSpec,
    DaemonSetStatus,
    Deployment,
    Job,
    JobSpec,
    JobTemplate,
    PodTemplate,
    ReplicaSet,
    ReplicatedSpec,
    StatefulSet,
    StatefulSetSpec,
    TemplatePodSpec,
)
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import LabelSelector, ObjectMeta, OwnerReference
from ipam import autopool
from ipam.autopool import Application, BuiltIn, Plan, Wanted
from ipam.identity import Workload
from ipam.predicates import Judge
from ipam.ranges import Ranges
from tests.rules.selection_world import refused, request

WEB = Workload(api_version="apps/v1", kind="Deployment", namespace="ns", name="web", uid="aaaa-bbbb-1f2e3d4c5b6a")
NOTES = {keys.POD_SUBNET: '{"ipv4":["lan"]}'}
TEMPLATE = PodTemplate(metadata=ObjectMeta(annotations={**NOTES, "other": "x"}))
META = ObjectMeta(name="web", namespace="ns", uid=WEB.uid)
CONTROLLED = structs.replace(
    META, owner_references=[OwnerReference(api_version="x/v1", kind="X", name="x", uid="u", controller=True)]
)

_dns = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,4}", fullmatch=True)
_names = _dns.filter(lambda name: len(name) <= 253)
_nics = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,13}[A-Za-z0-9])?", fullmatch=True)
_uids = st.uuids().map(str)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


def made(workload: Workload, wanted: Wanted, plan: Plan, **meta: object) -> SpiderIPPool:
    """A pool as its application wants it."""
    return SpiderIPPool(
        metadata=structs.replace(
            ObjectMeta(
                name=autopool.pool_name(workload, wanted.nic, wanted.version, taken=lambda _: False),
                labels=autopool.labels(workload, wanted, reclaim=plan.reclaim),
                annotations=autopool.notes(workload, plan.number),
            ),
            **meta,
        ),
        spec=IPPoolSpec(
            subnet="10.0.0.0/24",
            ips=[f"10.0.0.1-10.0.0.{wanted.size}"],
            pod_affinity=LabelSelector(match_labels=autopool.affinity(workload)),
        ),
    )


def planned(number: str = "+1", replicas: int = 2, **notes: str) -> Plan:
    more = {f"ipam.spidernet.io/{key.replace('_', '-')}": value for key, value in notes.items()}
    said = {**NOTES, keys.IPPOOL_IP_NUMBER: number, **more}
    return autopool.plan(Application(WEB, said, replicas), redundant=1)


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("item", "replicas"),
    [
        (Deployment(metadata=META, spec=ReplicatedSpec(replicas=3, template=TEMPLATE)), 3),
        (Deployment(metadata=META, spec=ReplicatedSpec(template=TEMPLATE)), 1),
        (ReplicaSet(metadata=META, spec=ReplicatedSpec(replicas=0, template=TEMPLATE)), 0),
        (StatefulSet(metadata=META, spec=StatefulSetSpec(replicas=2, template=TEMPLATE)), 2),
        (
            DaemonSet(
                metadata=META,
                spec=DaemonSetSpec(template=TEMPLATE),
                status=DaemonSetStatus(desired_number_scheduled=4),
            ),
            4,
        ),
        (Job(metadata=META, spec=JobSpec(completions=5, parallelism=2, template=TEMPLATE)), 5),
        (Job(metadata=META, spec=JobSpec(parallelism=2, template=TEMPLATE)), 2),
        (Job(metadata=META, spec=JobSpec(parallelism=0, template=TEMPLATE)), 1),
        (Job(metadata=META, spec=JobSpec(template=TEMPLATE)), 1),
        (
            CronJob(
                metadata=META,
                spec=CronJobSpec(job_template=JobTemplate(spec=JobSpec(parallelism=3, template=TEMPLATE))),
            ),
            3,
        ),
    ],
)
def test_how_many_pods_a_workload_is_to_have(item: BuiltIn, replicas: int) -> None:
    found = autopool.application(item)
    assert found is not None
    assert (found.replicas, found.annotations, found.workload.kind) == (replicas, NOTES, item.kind)
    assert autopool.application(autopool.trimmed(item)) == found


@pytest.mark.parametrize(
    "item",
    [
        Deployment(metadata=META),
        Deployment(
            metadata=META,
            spec=ReplicatedSpec(template=structs.replace(TEMPLATE, spec=TemplatePodSpec(host_network=True))),
        ),
        ReplicaSet(metadata=CONTROLLED, spec=ReplicatedSpec(template=TEMPLATE)),
        Job(metadata=CONTROLLED, spec=JobSpec(template=TEMPLATE)),
    ],
)
def test_who_asks_for_nothing(item: BuiltIn) -> None:
    assert autopool.application(item) is None
    assert autopool.application(autopool.trimmed(item)) is None


def test_a_trimmed_workload_that_asks_for_nothing_keeps_no_template() -> None:
    template = PodTemplate(metadata=ObjectMeta(annotations={"other": "x" * 1000}))
    item = StatefulSet(metadata=META, spec=StatefulSetSpec(replicas=2, template=template))
    assert autopool.trimmed(item).spec == StatefulSetSpec(replicas=2)


@pytest.mark.parametrize(
    ("number", "replicas", "size", "written"),
    [("5", 9, 5, "5"), ("+2", 9, 11, "+2"), ("0", 9, 0, "0"), ("+0", 0, 0, "+0"), (None, 9, 12, "+3")],
)
def test_how_many_addresses_it_is_to_have(number: str | None, replicas: int, size: int, written: str) -> None:
    notes = NOTES if number is None else {**NOTES, keys.IPPOOL_IP_NUMBER: number}
    found = autopool.plan(Application(WEB, notes, replicas), redundant=3)
    assert (found.pools, found.number, found.reclaim) == ((Wanted("eth0", 4, "lan", size),), written, True)


def test_a_pool_for_each_nic_and_family_that_is_on() -> None:
    said = {
        keys.POD_SUBNETS: json.dumps(
            [{"interface": "eth0", "ipv4": ["a", "unread"], "ipv6": ["b"]}, {"interface": "net1", "ipv4": ["c"]}]
        ),
        keys.POD_SUBNET: "{",
    }
    places = [(one.nic, one.version, one.subnet) for one in autopool.plan(Application(WEB, said, 1), redundant=0).pools]
    assert places == [("eth0", 4, "a"), ("eth0", 6, "b"), ("net1", 4, "c")]
    off = autopool.plan(Application(WEB, said, 1), redundant=0, enable_ipv6=False)
    assert all(one.version == 4 for one in off.pools)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.POD_SUBNET, '{"interface":"eth 0","ipv4":["a"]}'),
        (keys.POD_SUBNET, '{"interface":"sixteencharacter","ipv4":["a"]}'),
        (keys.POD_SUBNET, "{}"),
        (keys.IPPOOL_IP_NUMBER, "++1"),
        (keys.IPPOOL_IP_NUMBER, "-1"),
        (keys.IPPOOL_RECLAIM, "maybe"),
    ],
)
def test_an_annotation_that_is_wrong_is_named_with_its_value(key: str, value: str) -> None:
    with pytest.raises(AnnotationError) as error:
        autopool.plan(Application(WEB, {**NOTES, key: value}, 1), redundant=0)
    assert (error.value.key, error.value.value) == (key, value)


# ---------------------------------------------------------------- names and labels


def test_names_are_the_originals() -> None:
    assert autopool.pool_name(WEB, "eth0", 4, taken=lambda _: False) == "auto4-web-eth0-1f2e3"
    assert autopool.pool_name(WEB, "eth0", 6, taken={"auto6-web-eth0-1f2e3"}.__contains__).endswith(
        "-aaaa-bbbb-1f2e3d4c5b6a"
    )


@given(_names, _nics, _uids)
def test_any_application_has_valid_names_and_labels(name: str, nic: str, uid: str) -> None:
    workload = structs.replace(WEB, name=name, uid=uid, api_version=f"{name[:230]}/v1")
    for others in ((), {autopool.pool_name(workload, nic, 4, taken=lambda _: False)}):
        made_name = autopool.pool_name(workload, nic, 4, taken=others.__contains__)
        assert len(made_name) <= 253
        assert SUBDOMAIN.fullmatch(made_name)
    wanted = Wanted(nic, 4, "lan", 1)
    for value in (*autopool.labels(workload, wanted, reclaim=True).values(), *autopool.affinity(workload).values()):
        assert len(value) <= 63
        assert LABEL.fullmatch(value), value
    assert autopool.owner_of(made(workload, wanted, planned())) == workload


@given(st.lists(_nics, min_size=2, max_size=2, unique=True), _names)
def test_two_nics_have_two_pools(nics: list[str], name: str) -> None:
    workload = structs.replace(WEB, name=name)
    first, second = (autopool.pieced(workload, nic, 4, "1f2e3") for nic in nics)
    assert first != second


@given(_names, _names)
def test_a_pool_is_for_the_application_of_that_name_alone(name: str, other: str) -> None:
    mine, others = structs.replace(WEB, name=name), structs.replace(WEB, name=other)
    pool = made(mine, Wanted("eth0", 4, "lan", 1), planned())
    judge = Judge(structs.replace(request(), workload=others))
    predicates = {reason.predicate for reason in judge.failures("eth0", pool, 4)}
    assert ("podAffinity" in predicates) == (name != other)


# ---------------------------------------------------------------- whose a pool is


def test_the_next_application_of_the_name_gets_what_was_to_be_kept_and_only_that() -> None:
    again = structs.replace(WEB, uid="cccc-dddd-000000000000")
    kept, goes = planned(ippool_reclaim="false"), planned()
    for plan, found in ((kept, True), (goes, False)):
        pool = made(WEB, plan.pools[0], plan)
        assert (autopool.find(again, "eth0", 4, [pool]) is pool) == found
        assert (autopool.surplus(again, [pool], goes) == []) == found
        assert autopool.find(WEB, "eth0", 4, [pool]) is pool
        for other in (("net1", 4), ("eth0", 6)):
            assert autopool.find(WEB, *other, [pool]) is None
    leaving = made(WEB, kept.pools[0], kept, deletion_timestamp="2026-01-01T00:00:00Z")
    assert autopool.find(WEB, "eth0", 4, [leaving]) is None


def test_its_own_pool_goes_before_an_earlier_ones() -> None:
    again = structs.replace(WEB, uid="cccc-dddd-000000000000")
    kept = planned(ippool_reclaim="false")
    old, new = made(WEB, kept.pools[0], kept, name="a"), made(again, kept.pools[0], kept, name="b")
    assert autopool.find(again, "eth0", 4, [old, new]) is new


def test_what_goes_with_an_application() -> None:
    plan = planned()
    pool = made(WEB, plan.pools[0], plan)
    beside = made(WEB, structs.replace(plan.pools[0], nic="net1"), plan)
    others = made(structs.replace(WEB, kind="StatefulSet"), plan.pools[0], plan)
    assert autopool.surplus(WEB, [pool, beside, others], plan) == [beside]
    assert autopool.surplus(WEB, [pool, beside, others], None) == [pool, beside]


def test_a_pool_is_as_it_is_to_be_or_it_is_not() -> None:
    plan, nothing = planned(), Ranges(4)
    (wanted,) = plan.pools
    pool = made(WEB, wanted, plan)
    assert autopool.settled(pool, WEB, wanted, plan, nothing)
    assert not autopool.settled(pool, WEB, structs.replace(wanted, size=9), plan, nothing)
    assert not autopool.settled(pool, WEB, wanted, planned(ippool_reclaim="false"), nothing)
    assert not autopool.settled(pool, structs.replace(WEB, uid="x"), wanted, plan, nothing)
    reserved = Ranges.of(4, [(0x0A000001, 0x0A000001)])
    assert not autopool.settled(pool, WEB, wanted, plan, reserved)


def test_what_a_foreign_application_asked_for_is_read_from_its_pools() -> None:
    said = {**NOTES, keys.IPPOOL_IP_NUMBER: "+2", keys.IPPOOL_RECLAIM: "false"}
    plan = autopool.plan(Application(WEB, said, 3), redundant=0)
    pools = [made(WEB, wanted, plan) for wanted in plan.pools]
    again = autopool.plan(Application(WEB, autopool.remembered(WEB, pools), 3), redundant=0)
    assert again == plan
    assert autopool.remembered(structs.replace(WEB, uid="x"), pools) == {}


# ---------------------------------------------------------------- the pods' side


def test_pods_of_nobody_and_automatic_pools_that_are_off_are_refused() -> None:
    asked = structs.replace(request(others=NOTES), enable_subnets=True)
    orphan = structs.replace(asked, workload=Workload(api_version="v1", kind="Pod", namespace="ns", name="web"))
    assert "no workload controls the pod" in str(refused(orphan, {}))
    off = structs.replace(asked, workload=WEB, automatic_pools=False)
    assert "enableAutoPoolForApplication" in str(refused(off, {}))
    none = structs.replace(asked, workload=WEB)
    assert "has no automatic IPv4 pool for eth0 of SpiderSubnet lan" in str(refused(none, {}))
