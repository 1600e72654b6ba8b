"""What agents are told about the way between pod and node."""

import pytest
from msgspec import structs

from actors.replica.coordinator import coordination, discovered
from api.coordinator import CoordinatorSpec, CoordinatorStatus, SpiderCoordinator
from api.core import ServiceCIDR, ServiceCIDRSpec
from api.meta import ObjectMeta
from api.reasons import Explanation
from api.route import Route
from api.settings import SettingsError, load_controller
from api.wire import Allocated, Coordination, FoundCoordinator, decode_response, encode

ENVIRON = {"SPIDERPOOL_POD_NAMESPACE": "s", "SPIDERPOOL_POD_NAME": "p"}


def coordinator(name: str, *, gone: bool = False, services: tuple[str, ...] = (), **spec: object) -> SpiderCoordinator:
    return SpiderCoordinator(
        metadata=ObjectMeta(name=name, deletion_timestamp="2026-01-01T00:00:00Z" if gone else None),
        spec=CoordinatorSpec(**spec),  # type: ignore[arg-type]
        status=CoordinatorStatus(service_cidr=list(services), overlay_pod_cidr=["10.244.0.0/16"]),
    )


def service_cidr(name: str, made: str, *cidrs: str) -> ServiceCIDR:
    return ServiceCIDR(metadata=ObjectMeta(name=name, creation_timestamp=made), spec=ServiceCIDRSpec(cidrs=list(cidrs)))


def test_a_cluster_without_any_object() -> None:
    seen = coordination([], [], name="default")
    assert seen == Coordination()
    assert (seen.mode, seen.hijack_cidr) == ("auto", ("169.254.0.0/16",))
    assert (seen.veth_mtu, seen.host_rule_table) == (1500, 500)


def test_everything_that_is_set() -> None:
    chosen = coordinator(
        "default",
        mode="underlay",
        hijack_cidr=["10.9.0.0/16", "10.8.0.1"],
        policy_routes=[Route(dst="10.7.0.0/16", gw="10.6.0.1")],
        pod_mac_prefix="0a:1b",
        host_rule_table=600,
        pod_rp_filter=2,
        tx_queue_len=7,
        veth_link_address="169.254.100.1",
        veth_mtu=1400,
        tune_pod_routes=False,
        pod_default_route_nic="net1",
    )
    assert coordination([chosen], [], name="default") == Coordination(
        mode="underlay",
        overlay_pod_cidr=("10.244.0.0/16",),
        hijack_cidr=("10.9.0.0/16", "10.8.0.1"),
        policy_routes=(Route(dst="10.7.0.0/16", gw="10.6.0.1"),),
        pod_mac_prefix="0a:1b",
        host_rule_table=600,
        pod_rp_filter=2,
        tx_queue_len=7,
        veth_link_address="169.254.100.1",
        veth_mtu=1400,
        tune_pod_routes=False,
        pod_default_route_nic="net1",
    )


def test_what_is_left_open_is_as_it_is_without_any_object() -> None:
    null = coordinator("default", tune_pod_routes=None, pod_default_route_nic=None, mode=None, veth_mtu=None)
    seen = coordination([null], [], name="default")
    assert (seen.tune_pod_routes, seen.pod_default_route_nic, seen.mode, seen.veth_mtu) == (True, "", "auto", 1500)


def test_v00008_one_that_is_not_ready_keeps_no_pod_waiting() -> None:
    """The original refuses every pod then; what is known holds, and an unknown list is an empty one."""
    unready = structs.replace(
        coordinator("default", mode="underlay"), status=CoordinatorStatus(phase="NotReady", reason="no CNI")
    )
    seen = coordination([unready], [], name="default")
    assert (seen.mode, seen.service_cidr, seen.overlay_pod_cidr) == ("underlay", (), ())


def test_which_one_counts() -> None:
    a, b, named = (coordinator(name, host_rule_table=table) for name, table in (("a", 1), ("b", 2), ("default", 3)))
    assert coordination([b, named, a], [], name="default").host_rule_table == 3
    assert coordination([b, a], [], name="default").host_rule_table == 1
    assert coordination([b, a, named], [], name="b").host_rule_table == 2
    leaving = coordinator("default", gone=True, host_rule_table=9)
    assert coordination([leaving, b], [], name="default").host_rule_table == 2


def test_where_service_cidrs_come_from() -> None:
    objects = [service_cidr("extra", "2026-02-01T00:00:00Z", "10.97.0.0/16")]
    objects.append(service_cidr("kubernetes", "2026-01-01T00:00:00Z", "10.96.0.0/16", "fd96::/112"))
    written = [coordinator("default", services=("10.95.0.0/16",))]
    configured = ("10.94.0.0/16",)
    assert coordination(written, objects, name="default", configured=configured).service_cidr == (
        "10.96.0.0/16",
        "fd96::/112",
        "10.97.0.0/16",
    )
    assert coordination(written, [], name="default", configured=configured).service_cidr == configured
    assert coordination(written, [], name="default").service_cidr == ("10.95.0.0/16",)


def test_an_older_controller_says_nothing_and_the_defaults_hold() -> None:
    answer = Allocated(addresses=(), routes=(), explanation=Explanation(), pod_uid="u")
    assert decode_response(encode(answer)) == answer
    told = Allocated(
        addresses=(), routes=(), explanation=Explanation(), pod_uid="u", coordinator=Coordination(mode="disabled")
    )
    assert decode_response(encode(told)) == told


def test_the_setting() -> None:
    given = load_controller({**ENVIRON, "SPIDERPOOL_SERVICE_CIDR": "10.96.0.0/16, fd00:10:96::/112"})
    assert given.service_cidr == ("10.96.0.0/16", "fd00:10:96::/112")
    assert load_controller(ENVIRON).service_cidr == ()


@pytest.mark.parametrize("text", ["10.96.0.1/16", "x", "10.96.0.0/16;fd00::/64", "10.96.0.0/33"])
def test_a_bad_setting_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"SPIDERPOOL_SERVICE_CIDR=.*: expected CIDRs, separated by commas"):
        load_controller({**ENVIRON, "SPIDERPOOL_SERVICE_CIDR": text})


def test_where_an_actor_keeps_the_status_nothing_else_counts() -> None:
    def with_status(phase: str, reason: str | None = None) -> SpiderCoordinator:
        one = coordinator("default", services=("10.1.0.0/16",), mode="underlay", veth_mtu=1400)
        return structs.replace(one, status=structs.replace(one.status, phase=phase, reason=reason))

    known = discovered([with_status("Synced")], name="default")
    assert (known.service_cidr, known.overlay_pod_cidr, known.unready) == (("10.1.0.0/16",), ("10.244.0.0/16",), "")
    assert (known.mode, known.veth_mtu) == ("underlay", 1400)
    lost = discovered([with_status("NotReady", "why")], name="default")
    assert (lost.service_cidr, lost.overlay_pod_cidr) == ((), ())
    assert lost.unready == "SpiderCoordinator default is NotReady: why"
    assert (lost.mode, lost.veth_mtu) == ("underlay", 1400), "what its author says holds all the same"
    assert "not been found out yet" in discovered([with_status("")], name="default").unready
    assert discovered([], name="default").unready == "there is no SpiderCoordinator"
    # What goes over the wire to an agent of today and of yesterday.
    assert decode_response(encode(FoundCoordinator(lost))) == FoundCoordinator(lost)
