"""Pods with several NICs at a controller: one request for all of them, and how it all comes back."""

import json
from typing import Any

import anyio
import pytest
from msgspec import structs

from api import annotations
from api.coordinator import CoordinatorSpec, SpiderCoordinator
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import COORDINATOR, ENDPOINT, IPPOOL, NETWORKATTACHMENT
from api.meta import ObjectMeta
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from api.wire import (
    Allocate,
    Allocated,
    FindCoordinator,
    FoundCoordinator,
    Networked,
    NicRequest,
    PodRef,
    Rejected,
    Release,
    Released,
    Response,
)
from tests.simulation.stage import CID, Stage, act

NETWORKS = {annotations.MULTUS_NETWORKS: "wan,dmz@up0"}
SANDBOX = CID.ljust(64, "0")
NICS = ("eth0", "net1", "up0")


def wanted(pod: str = "web", uid: str = "", *, pools: tuple[str, ...] = ("v4", "v4", "v4"), **fields: Any) -> Allocate:
    """Of a pod with three NICs."""
    first, *more = (
        NicRequest(nic=nic, default_ipv4=(pool,), default_ipv6=("v6",)) for nic, pool in zip(NICS, pools, strict=True)
    )
    request = Allocate(
        pod=PodRef("default", pod, uid),
        nic=first.nic,
        container_id=SANDBOX,
        default_ipv4=first.default_ipv4,
        default_ipv6=first.default_ipv6,
        more=tuple(more),
    )
    return structs.replace(request, **fields)


def release(nic: str = "eth0", *keep: str, uid: str, pools: tuple[str, ...] = ("v4", "v6")) -> Release:
    return Release(pod=PodRef("default", "web", uid), nic=nic, container_id=SANDBOX, pools=pools, keep=keep)


def granted(answer: Response) -> Allocated:
    assert isinstance(answer, Allocated), answer
    return answer


def writes(stage: Stage) -> dict[str, int]:
    """Of pools and SpiderEndpoints, since the last call."""
    found = {
        what: count
        for what, count in stage.store.requests.items()
        if what.split()[0] not in {"get", "list", "watch"} and "spider" in what
    }
    stage.store.requests.clear()
    return found


def test_all_nics_of_a_pod_for_one_write_of_each_pool_and_one_endpoint() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", annotations=NETWORKS)
        writes(stage)
        answer = granted(await stage.ask(wanted()))
        assert writes(stage) == {"update spiderippools/status": 2, "create spiderendpoints": 1}
        assert (answer.pod_uid, answer.nics) == (uid, NICS)
        told = {"eth0": answer.addresses} | {grant.nic: grant.addresses for grant in answer.others}
        assert list(told) == list(NICS)
        records = await stage.records() | await stage.records("v6")
        assert {(it.nic, ip) for ip, it in records.items()} == {
            (nic, one.address.partition("/")[0]) for nic, addresses in told.items() for one in addresses
        }
        assert {(it.pod_uid, it.cid, it.node) for it in records.values()} == {(uid, CID, "n1")}
        assert await stage.shown() == {
            "web": [f"{nic} {one.address}" for nic, addresses in told.items() for one in addresses]
        }
        again = granted(await stage.ask(wanted()))
        assert (again.addresses, again.others) == (answer.addresses, answer.others)
        assert writes(stage) == {}

    act(scene)


def test_one_nic_that_gets_nothing_and_all_go_without() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", annotations=NETWORKS)
        spec = IPPoolSpec(ip_version=4, subnet="10.7.0.0/16", ips=["10.7.0.1"])
        await stage.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="small"), spec=spec))
        await anyio.sleep(0.1)
        refused = await stage.ask(wanted(pools=("v4", "small", "small")))
        assert isinstance(refused, Rejected)
        assert refused.held and "no IPv4 (" in refused.message and "small" in refused.message
        assert await stage.shown() == {}
        assert isinstance(await stage.ask(release(uid=uid, pools=())), Released)
        assert [await stage.records(pool) for pool in ("v4", "v6", "small")] == [{}, {}, {}]
        refused = await stage.ask(wanted(pools=("v4", "v4", "gone")))
        assert isinstance(refused, Rejected) and not refused.held
        assert "names pool 'gone', which does not exist" in refused.message

    act(scene)


@pytest.mark.parametrize("twice", ["eth0", "net1"])
def test_a_nic_that_is_asked_for_twice_is_refused(twice: str) -> None:
    async def scene(stage: Stage) -> None:
        await stage.pod("web")
        request = wanted()
        refused = await stage.ask(structs.replace(request, more=(*request.more, NicRequest(nic=twice))))
        assert isinstance(refused, Rejected)
        assert refused.message == f"pod default/web: addresses for {twice} are asked for more than once"
        assert (await stage.records(), refused.cause) == ({}, "wrong_input")

    act(scene)


def test_a_meta_plugin_is_told_of_the_networks_and_nothing_is_granted() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", annotations=NETWORKS)
        await stage.pod("plain")
        await stage.pod("other", annotations={annotations.MULTUS_DEFAULT_NETWORK: "lan"})
        await stage.pod("wrong", annotations={annotations.MULTUS_NETWORKS: "wan,,"})
        for name, namespace in (("wan", "default"), ("lan", "spiderpool")):
            definition = NetworkAttachmentDefinition(
                metadata=ObjectMeta(name=name, namespace=namespace), spec=NetworkAttachmentSpec(config=f"<{name}>")
            )
            await stage.store.create(NETWORKATTACHMENT, definition)
        missing = await stage.ask(wanted(meta=True))
        assert isinstance(missing, Rejected) and missing.retry and not missing.held
        assert "there is no NetworkAttachmentDefinition default/dmz" in missing.message
        definition = NetworkAttachmentDefinition(metadata=ObjectMeta(name="dmz", namespace="default"))
        await stage.store.create(NETWORKATTACHMENT, definition)
        found = await stage.ask(wanted(meta=True))
        assert isinstance(found, Networked)
        assert (found.pod_uid, found.default) == (uid, None)
        assert [(one.interface, one.config) for one in found.networks] == [("net1", "<wan>"), ("up0", "")]
        found = await stage.ask(wanted("other", meta=True))
        assert isinstance(found, Networked) and found.default is not None
        assert (found.default.interface, found.default.config, found.networks) == ("eth0", "<lan>", ())
        wrong = await stage.ask(wanted("wrong", meta=True))
        assert isinstance(wrong, Rejected) and not wrong.retry
        assert annotations.MULTUS_NETWORKS in wrong.message and "'wan,,'" in wrong.message
        assert (await stage.records(), await stage.shown()) == ({}, {})
        assert granted(await stage.ask(wanted("plain", meta=True, more=()))).nics == ("eth0",)

    act(scene)


@pytest.mark.parametrize("together", [True, False])
def test_three_releases_leave_nothing(*, together: bool) -> None:
    """At once, as an agent sends them that knows of the others, each says that none of the others stays."""

    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", annotations=NETWORKS)
        granted(await stage.ask(wanted()))
        writes(stage)
        if together:
            async with anyio.create_task_group() as group:
                for nic in NICS:
                    group.start_soon(stage.ask, release(nic, uid=uid))
        else:
            for at, nic in enumerate(NICS):
                assert isinstance(await stage.ask(release(nic, *NICS[at + 1 :], uid=uid)), Released)
        assert (await stage.records(), await stage.records("v6"), await stage.shown()) == ({}, {}, {})
        counted = writes(stage)
        if not together:
            assert counted == {
                "update spiderippools/status": 6,
                "patch spiderendpoints": 3,
                "delete spiderendpoints": 1,
            }  # fmt: skip
        assert counted["delete spiderendpoints"] >= 1

    act(scene)


def test_one_release_is_enough_for_all_nics() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("web", annotations=NETWORKS)
        answer = granted(await stage.ask(wanted()))
        writes(stage)
        released = await stage.ask(release("net1", uid=uid))
        assert isinstance(released, Released)
        given = [one for grant in answer.others for one in grant.addresses] + list(answer.addresses)
        assert sorted(released.addresses) == sorted(one.address.partition("/")[0] for one in given)
        assert writes(stage) == {
            "update spiderippools/status": 2,
            "patch spiderendpoints": 1,
            "delete spiderendpoints": 1,
        }  # fmt: skip
        assert (await stage.records(), await stage.shown()) == ({}, {})
        assert await stage.ask(release("eth0", uid=uid)) == Released()
        assert writes(stage) == {}

    act(scene)


def test_addresses_that_are_asked_for_by_name() -> None:
    async def scene(stage: Stage) -> None:
        await stage.pod("web", annotations=NETWORKS)
        await stage.pod("late", annotations=NETWORKS)
        named = (NicRequest(nic="net1", default_ipv4=("v4",), ips=("10.6.0.40/16",)),)
        answer = granted(await stage.ask(wanted(more=named, ips=("fd00:6::30",))))
        assert [one.address for one in answer.addresses] == ["10.6.0.1/16", "fd00:6::30/64"]
        assert [one.address for one in answer.others[0].addresses] == ["10.6.0.40/16"]
        refused = await stage.ask(wanted("late", more=named))
        assert isinstance(refused, Rejected) and refused.retry and refused.held
        assert "taken: wanted 10.6.0.40, found held by pod default/web" in refused.message
        outside = await stage.ask(wanted("late", more=(), ips=("10.9.0.1",)))
        assert isinstance(outside, Rejected) and not outside.retry and not outside.held
        assert "rejected by ips: wanted 10.9.0.1, found 10.6.0.1-10.6.0.50" in outside.message

    act(scene)


def test_what_the_coordinator_is_told() -> None:
    async def scene(stage: Stage) -> None:
        spec = CoordinatorSpec(tune_pod_routes=False, pod_default_route_nic="net1")
        await stage.store.create(COORDINATOR, SpiderCoordinator(metadata=ObjectMeta(name="default"), spec=spec))
        await anyio.sleep(0.1)
        await stage.pod("web", annotations=NETWORKS)
        await stage.pod("own", annotations={**NETWORKS, annotations.DEFAULT_ROUTE_NIC: "up0"})
        for pod, nic in (("web", "net1"), ("own", "up0")):
            told = granted(await stage.ask(wanted(pod))).coordinator
            assert (told.tune_pod_routes, told.pod_default_route_nic) == (False, nic)
            found = await stage.ask(FindCoordinator(PodRef("default", pod)))
            assert isinstance(found, FoundCoordinator)
            assert (found.tune_pod_routes, found.default_route_nic) == (False, nic)

    act(scene)


def test_the_routes_of_a_pod_go_to_the_nic_whose_subnet_has_the_gateway() -> None:
    async def scene(stage: Stage) -> None:
        spec = IPPoolSpec(ip_version=4, subnet="10.7.0.0/16", ips=["10.7.0.1-10.7.0.9"], gateway="10.7.255.1")
        await stage.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="wan"), spec=spec))
        await anyio.sleep(0.1)
        routes = json.dumps([{"dst": "10.99.0.0/16", "gw": "10.7.0.254"}])
        await stage.pod("web", annotations={**NETWORKS, annotations.POD_ROUTES: routes})
        answer = granted(await stage.ask(wanted(pools=("v4", "wan", "v4"))))
        by_nic = {"eth0": answer.routes} | {grant.nic: grant.routes for grant in answer.others}
        assert {nic: [(route.dst, route.gw) for route in its] for nic, its in by_nic.items()} == {
            "eth0": [],
            "net1": [("0.0.0.0/0", "10.7.255.1"), ("10.99.0.0/16", "10.7.0.254")],
            "up0": [],
        }
        assert len(stage.store.peek(ENDPOINT)) == 1

    act(scene)
