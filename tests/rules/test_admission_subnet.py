"""What may be written of subnets, and of pools because there are subnets."""

from typing import Any

import pytest
from msgspec import structs

from admission.review import Review
from admission.subnet import PoolInSubnetRules, SubnetRules
from api.annotations import OWNER_APPLICATION_NAME, OWNER_SUBNET, POOL_CIDR, SUBNET_CIDR, SUBNET_SEEN
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.route import Route
from api.subnet import SpiderSubnet, SubnetSpec, SubnetStatus

CIDR = "10.6.0.0/16"
BOOK = '{"auto":{"ips":["10.6.0.10-10.6.0.19"],"application":"apps_v1_Deployment_ns_n"},"manual":{"ips":["10.6.0.30"]}}'
ROUTES = [Route("10.0.0.0/8", "10.6.0.2")]


def subnet(name: str = "lan", *, status: SubnetStatus | None = None, gone: bool = False, **spec: Any) -> SpiderSubnet:
    said = {"subnet": CIDR, "ips": ["10.6.0.10-10.6.0.99"], "ip_version": 4, **spec}
    meta = ObjectMeta(name=name, uid=f"uid-{name}", deletion_timestamp="2026-01-01T00:00:00Z" if gone else None)
    return SpiderSubnet(metadata=meta, spec=SubnetSpec(**said), status=status or SubnetStatus())


def pool(name: str = "p", *, auto: bool = False, seen: str = "", **spec: Any) -> SpiderIPPool:
    labels = {OWNER_APPLICATION_NAME: "n"} if auto else {}
    notes = {SUBNET_SEEN: seen} if seen else {}
    said = {"subnet": CIDR, "ips": ["10.6.0.40-10.6.0.49"], **spec}
    return SpiderIPPool(metadata=ObjectMeta(name=name, labels=labels, annotations=notes), spec=IPPoolSpec(**said))


def refusals(rules: Any, new: Any, old: Any = None, *, operation: str = "") -> list[str]:
    asked = operation or ("CREATE" if old is None else "UPDATE")
    return [str(error) for error in rules.judge(Review(asked, new, old)).errors]  # type: ignore[arg-type]


def booked(**spec: Any) -> SpiderSubnet:
    return subnet(status=SubnetStatus(controlled_ippools=BOOK, allocated_ip_count=11), **spec)


# ---------------------------------------------------------------- subnets


def test_a_subnet_is_completed() -> None:
    new = subnet(subnet="fd00::/64", ip_version=None, ips=["fd00::2", "fd00::1"], exclude_ips=["fd00::1", "fd00::2"])
    made = SubnetRules().complete(Review("CREATE", new))
    assert (made.spec.ip_version, made.spec.ips, made.spec.exclude_ips) == (6, ["fd00::1-fd00::2"], ["fd00::1-fd00::2"])
    assert made.metadata.finalizers == [FINALIZER]
    assert made.metadata.labels == {SUBNET_CIDR: "fd00---64"}
    assert SubnetRules().complete(Review("UPDATE", made, made)) == made
    assert SubnetRules(finalizer=False).complete(Review("CREATE", new)).metadata.finalizers == []
    assert SubnetRules().judge(Review("CREATE", made)).errors == ()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subnet": ""}, "spec.subnet: Required value: a CIDR such as 10.6.0.0/16"),
    ({"subnet": "10.6.0.1/16"}, 'spec.subnet: Invalid value: "10.6.0.1/16": write the network as 10.6.0.0/16'),
    ({"ip_version": 6}, "spec.ipVersion: Invalid value: 6: spec.subnet 10.6.0.0/16 is IPv4"),
    ({"ips": ["10.7.0.1"]}, 'spec.ips[0]: Invalid value: "10.7.0.1": outside of spec.subnet 10.6.0.0/16'),
    (
        {"exclude_ips": ["10.6.0.9-10.6.0.1"]},
        'spec.excludeIPs[0]: Invalid value: "10.6.0.9-10.6.0.1": the first address is above the last',
    ),
    (
        {"gateway": "10.6.0.10"},
        (
            'spec.gateway: Invalid value: "10.6.0.10": '
            "a pod would get it: take it out of spec.ips or put it into spec.excludeIPs"
        ),
    ),
    (
        {"routes": [Route("0.0.0.0/0", "10.6.0.2")]},
        "spec.routes[0].dst: Forbidden: 0.0.0.0/0 is the default route, which spec.gateway makes",
    ),
]
"""As of pools."""


@pytest.mark.parametrize(("spec", "error"), REFUSED)
def test_every_rule_of_a_subnet(spec: dict[str, Any], error: str) -> None:
    assert refusals(SubnetRules(), subnet(**spec)) == [error]
    assert not refusals(SubnetRules(), subnet())


def test_all_that_is_wrong_is_said_at_once() -> None:
    errors = refusals(SubnetRules(), subnet(ips=["x"], exclude_ips=["10.7.0.1"], gateway="y", ip_version=6))
    assert [error.partition(":")[0] for error in errors] == [
        "spec.ipVersion",
        "spec.ips[0]",
        "spec.excludeIPs[0]",
        "spec.gateway",
    ]


def test_a_family_that_is_off() -> None:
    error = "spec.ipVersion: Invalid value: 4: IPv4 is switched off: enableIPv4 in conf.yml"
    assert refusals(SubnetRules(families=(6,)), subnet()) == [error]


@pytest.mark.parametrize("cidr", ["10.6.0.0/16", "10.6.4.0/24", "10.0.0.0/8"])
def test_no_two_subnets_overlap(cidr: str) -> None:
    rules = SubnetRules(lambda: [subnet("other", subnet=cidr), subnet("far", subnet="10.7.0.0/16")])
    error = f'spec.subnet: Invalid value: "10.6.0.0/16": overlaps {cidr} of SpiderSubnet other'
    assert refusals(rules, subnet()) == [error]


def test_pools_that_are_there_fit_into_a_new_subnet() -> None:
    there = [pool("in"), pool("far", subnet="10.7.0.0/16", ips=["10.7.0.1"]), pool("none", ips=[])]
    assert not refusals(SubnetRules(pools=lambda: there), subnet())
    there = [pool("out", ips=["10.6.0.98-10.6.0.101"]), pool("half", subnet="10.6.4.0/24", ips=[])]
    assert refusals(SubnetRules(pools=lambda: there), subnet()) == [
        'spec.ips: Invalid value: ["10.6.0.10-10.6.0.99"]: lacks 10.6.0.100-10.6.0.101, which SpiderIPPool out has',
        'spec.subnet: Invalid value: "10.6.0.0/16": overlaps 10.6.4.0/24 of SpiderIPPool half',
    ]


@pytest.mark.parametrize(
    ("spec", "errors"),
    [
        ({"ips": ["10.6.0.10-10.6.0.30"]}, []),
        ({"gateway": "10.6.0.1", "routes": ROUTES}, []),
        ({"ips": ["10.6.0.12-10.6.0.30"]}, ["would leave out 10.6.0.10-10.6.0.11, which SpiderIPPool auto has"]),
        (
            {"exclude_ips": ["10.6.0.19-10.6.0.30"]},
            [
                "would leave out 10.6.0.19, which SpiderIPPool auto has",
                "would leave out 10.6.0.30, which SpiderIPPool manual has",
            ],
        ),
    ],
)
def test_what_pools_have_stays_in_the_subnet(spec: dict[str, Any], errors: list[str]) -> None:
    assert refusals(SubnetRules(), booked(**spec), booked()) == [f"spec.ips: Forbidden: {error}" for error in errors]


def test_what_never_changes_and_what_may_in_a_deletion() -> None:
    (error,) = refusals(SubnetRules(), booked(subnet="10.6.0.0/24"), booked())
    assert error == 'spec.subnet: Invalid value: "10.6.0.0/24": it is 10.6.0.0/16 and never changes'
    gone = subnet(gone=True)
    assert refusals(SubnetRules(), subnet(gone=True, ips=[]), gone) == ["spec: Forbidden: the subnet is being deleted"]
    assert not refusals(SubnetRules(), structs.replace(gone, metadata=ObjectMeta(name="lan")), gone)


def test_a_guarded_deletion() -> None:
    assert not refusals(SubnetRules(), booked(), operation="DELETE")
    error = "status.allocatedIPCount: Forbidden: 11 addresses are pools'"
    assert refusals(SubnetRules(guard_deletion=True), booked(), operation="DELETE") == [error]
    assert not refusals(SubnetRules(guard_deletion=True), subnet(), operation="DELETE")


# ---------------------------------------------------------------- pools of subnets


def test_a_pool_inherits_what_it_does_not_name() -> None:
    rules = PoolInSubnetRules(lambda: [subnet(gateway="10.6.0.1", routes=ROUTES)])
    made = rules.complete(Review("CREATE", pool()))
    assert (made.spec.gateway, made.spec.routes) == ("10.6.0.1", ROUTES)
    assert made.metadata.labels == {OWNER_SUBNET: "lan", POOL_CIDR: "10-6-0-0-16"}
    assert made.metadata.finalizers == [FINALIZER]
    assert [(one.kind, one.name, one.controller) for one in made.metadata.owner_references] == [
        ("SpiderSubnet", "lan", True)
    ]
    own = rules.complete(Review("CREATE", pool(gateway="10.6.0.3", routes=[])))
    assert (own.spec.gateway, own.spec.routes) == ("10.6.0.3", [])
    later = structs.replace(made, spec=structs.replace(made.spec, gateway=None))
    assert rules.complete(Review("UPDATE", later, made)).spec.gateway is None
    orphan = pool(subnet="10.7.0.0/16")
    assert rules.complete(Review("CREATE", orphan)) == orphan


def test_another_controller_of_a_pool_stays() -> None:
    theirs = OwnerReference("example.org/v1", "Thing", "t", "u", controller=True)
    new = structs.replace(pool(), metadata=ObjectMeta(name="p", owner_references=[theirs]))
    made = PoolInSubnetRules(lambda: [subnet()]).complete(Review("CREATE", new))
    assert [one.controller for one in made.metadata.owner_references] == [True, None]


@pytest.mark.parametrize(
    ("ips", "errors"),
    [
        (["10.6.0.40-10.6.0.49"], []),
        (["10.6.0.30"], []),
        (["10.6.0.98-10.6.0.100"], ["SpiderSubnet lan does not have 10.6.0.100"]),
        (["10.6.0.19-10.6.0.20"], ["SpiderSubnet lan has given 10.6.0.19 to SpiderIPPool auto"]),
    ],
)
def test_a_pool_made_by_hand_takes_what_the_subnet_has_and_no_application(ips: list[str], errors: list[str]) -> None:
    rules = PoolInSubnetRules(lambda: [booked()])
    told = refusals(rules, pool(ips=ips))
    assert [error.partition("]: ")[2] for error in told] == errors
    assert bool(refusals(rules, pool(ips=[*ips, "10.6.0.41"]), pool(ips=["10.6.0.41"]))) == bool(errors)


def test_addresses_of_an_automatic_pool_are_its_owners_business() -> None:
    rules = PoolInSubnetRules(lambda: [booked()])
    assert not refusals(rules, pool("auto", auto=True, ips=[]))
    text = "the pool was made for an application, whose annotation ipam.spidernet.io/ippool-ip-number sizes it"
    refused = [f"spec.ips: Forbidden: {text}"]
    assert refusals(rules, pool("auto", auto=True)) == refused
    before = pool("auto", auto=True, seen="7", ips=["10.6.0.10-10.6.0.12"])
    for ips in (["10.6.0.10"], ["10.6.0.10-10.6.0.13"], []):
        assert refusals(rules, pool("auto", auto=True, seen="7", ips=ips), before) == refused
        assert not refusals(rules, pool("auto", auto=True, seen="8", ips=ips), before)
    assert not refusals(rules, pool("auto", auto=True, seen="7", ips=["10.6.0.10-10.6.0.12"], disable=True), before)


def test_a_pool_across_a_subnet_and_one_of_a_subnet_that_goes() -> None:
    rules = PoolInSubnetRules(lambda: [subnet()])
    error = 'spec.subnet: Invalid value: "10.6.4.0/24": overlaps 10.6.0.0/16 of SpiderSubnet lan'
    assert refusals(rules, pool(subnet="10.6.4.0/24", ips=[])) == [error]
    assert not refusals(rules, pool(subnet="10.7.0.0/16", ips=[]))
    going = PoolInSubnetRules(lambda: [subnet(gone=True)])
    assert refusals(going, pool()) == ["spec.subnet: Forbidden: SpiderSubnet lan is being deleted"]
    assert going.complete(Review("CREATE", pool())) == pool()
