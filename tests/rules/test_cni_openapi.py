"""The original's socket API: what is read, what is refused and how that is said, and the shape of every answer."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.node.controllers import Answer as Asked
from actors.node.doors import Doors, Switches
from api.endpoint import IPAllocationDetail
from api.route import Route
from api.wire import (
    Address,
    Coordination,
    FoundCoordinator,
    FoundEndpoint,
    Inquire,
    NicGrant,
    PodRef,
    Ready,
    Rejected,
    Request,
    Response,
)
from cni import openapi
from cni.config import shown
from cni.journal import JournalEntry, State
from cni.openapi import BadRequest
from cni.protocol import Invocation, Role, Verb
from cni.result import IpConfig, Result, RouteConfig
from cni.server import Knock
from runtime.testing import VirtualClock
from telemetry.health import HealthTree
from telemetry.health import State as Health

POD = {"podNamespace": "default", "podName": "web-0"}
ADD = {
    **POD,
    "containerID": "0123456789abcdef",
    "ifName": "eth0",
    "netNamespace": "/run/netns/pod",
    "podUID": "5b3c",
}
DEL = {**POD, "containerID": "0123456789abcdef", "ifName": "eth0", "podUID": "5b3c"}
BATCH = {**POD, "containerID": "0123456789abcdef", "podUID": "5b3c"}


def body(tree: object) -> bytes:
    return json.dumps(tree).encode()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_an_add_is_a_call_of_our_ipam_plugin() -> None:
    more = {
        "defaultIPv4IPPool": ["a", "b*"],
        "defaultIPv6IPPool": None,
        "cleanGateway": True,
        "matchMasterSubnet": True,
        "unknown": {"to": "us"},
    }
    call = openapi.read_add(body({**ADD, **more})).invocation()
    assert (call.verb, call.role, call.type) == (Verb.ADD, Role.IPAM, "spiderpool")
    assert (call.container_id, call.netns, call.ifname) == ("0123456789abcdef", "/run/netns/pod", "eth0")
    assert (call.args.namespace, call.args.name, call.args.uid) == ("default", "web-0", "5b3c")
    ipam = call.conf.ipam
    assert (ipam.default_ipv4_ippool, ipam.default_ipv6_ippool) == (("a", "b*"), ())
    assert ipam.clean_gateway and ipam.match_master_subnet


def test_a_del_is_one_too_and_knows_no_namespace() -> None:
    call = openapi.read_del(body(DEL)).invocation()
    assert (call.verb, call.role, call.netns) == (Verb.DEL, Role.IPAM, "")
    one = openapi.read_batch_del(body({**BATCH, "isReleaseConflictIPs": True}))
    assert one.conflict
    assert one.of_interface("net1").invocation().ifname == "net1"


def test_a_runtime_may_give_no_uid() -> None:
    assert openapi.read_add(body({**ADD, "podUID": ""})).uid == ""


VALUES: dict[str, list[object]] = {
    "containerID": ["", "-x", "a/b", "x" * 256, 7, ["a"]],
    "ifName": ["", "a" * 16, "a b", "a/b", "..", None, True],
    "podNamespace": ["", "Default", "a.b", "x" * 64, "../x", "a\n"],
    "podName": ["", "Web", "a/b", "x" * 254, "a b", {}],
    "podUID": ["a b", "ü", "x" * 254, 3],
    "netNamespace": ["run/netns/x", "/a\0b", "/" + "x" * 4096, 1],
}
WRONG: list[tuple[Callable[[bytes], object], dict[str, Any], str]] = [
    *((openapi.read_add, {**ADD, name: value}, name) for name, values in VALUES.items() for value in values),
    *((openapi.read_del, {**DEL, name: value}, name) for name, values in VALUES.items() for value in values),
    (openapi.read_add, {**ADD, "defaultIPv4IPPool": ["a", 3]}, "defaultIPv4IPPool[1]"),
    (openapi.read_add, {**ADD, "defaultIPv6IPPool": "a"}, "defaultIPv6IPPool"),
    (openapi.read_add, {**ADD, "cleanGateway": "true"}, "cleanGateway"),
    (openapi.read_add, {**ADD, "netNamespace": ""}, "netNamespace"),
    (openapi.read_batch_del, {**BATCH, "isReleaseConflictIPs": 1}, "isReleaseConflictIPs"),
    (openapi.read_pod, {**POD, "podName": ""}, "podName"),
]


@pytest.mark.parametrize(("read", "tree", "named"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_named(read: Callable[[bytes], object], tree: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body(tree))
    text = str(caught.value)
    assert text.startswith(f"{named}: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("read", "good"),
    [
        (openapi.read_add, ADD),
        (openapi.read_del, DEL),
        (openapi.read_batch_del, BATCH),
        (openapi.read_pod, POD),
    ],
)
def test_what_is_missing_is_named(read: Callable[[bytes], object], good: dict[str, Any]) -> None:
    read(body(good))
    for name in good:
        with pytest.raises(BadRequest, match=f"^{name}: missing"):
            read(body({key: value for key, value in good.items() if key != name}))
        with pytest.raises(BadRequest, match=f"^{name}: "):
            read(body({**good, name: None}))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b"[]", b'"x"', b"7", b"null", b"true", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900],
)
def test_a_body_that_is_no_object(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        openapi.read_add(raw)


def test_the_query_of_a_pod() -> None:
    assert openapi.read_pod_query("podNamespace=a&podName=b.c&x=") == PodRef("a", "b.c")
    for query, named in {
        "": "podNamespace",
        "podName=b": "podNamespace",
        "podNamespace=a": "podName",
        "podNamespace=a&podName=": "podName",
        "podNamespace=a&podName=%2e%2e%2f": "podName",
        "podNamespace=%ff&podName=b": "podNamespace",
        "podNamespace=a&podName=b&podName=c": "podName",
    }.items():
        with pytest.raises(BadRequest, match=f"^{named}: "):
            openapi.read_pod_query(query)


# -- nothing happens for what is wrong ---------------------------------------------------------------------------------


class Spy:
    """The doors, and what they had done behind them."""

    def __init__(self, *, entries: tuple[JournalEntry, ...] = (), answer: Response | None = None) -> None:
        self.done: list[object] = []
        self.entries = entries
        self.answer = answer or Ready()
        self.health = HealthTree("spiderpool-agent")
        self.doors = Doors(
            invoke=self._invoke,
            renounce=self._renounce,
            journal=self,  # type: ignore[arg-type]
            kernel=self,  # type: ignore[arg-type]
            controllers=self,  # type: ignore[arg-type]
            clock=VirtualClock(),
            health=self.health,
            switches=Switches(conflict_detection=True),
        ).routes()

    async def _invoke(self, invocation: Invocation) -> bytes:
        self.done.append((invocation.verb, invocation.ifname))
        return b""

    async def _renounce(self, container_id: str, seen: str) -> None:
        self.done.append(("renounce", container_id))

    async def netns_exists(self, netns: str) -> bool:
        return netns == ADD["netNamespace"]

    async def of(self, container_id: str) -> list[JournalEntry]:
        return [entry for entry in self.entries if entry.container_id == container_id]

    async def ask(self, request: Request, *, deadline: float) -> Asked:
        self.done.append(request)
        return Asked(self.answer, doubtful=False)

    def knock(self, method: str, path: str, raw: bytes = b"", query: str = "") -> tuple[int, Any]:
        """Status and decoded body."""

        async def main() -> tuple[int, Any]:
            answer = await self.doors[path][method](Knock(query, raw))
            return answer.status, json.loads(answer.body) if answer.body else None

        return asyncio.run(main())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = sorted(set(ADD) | {"defaultIPv4IPPool", "defaultIPv6IPPool", "cleanGateway", "isReleaseConflictIPs"})
REQUESTS = [("POST", openapi.IP), ("DELETE", openapi.IP), ("DELETE", openapi.IPS), ("GET", openapi.COORDINATOR)]


@given(st.sampled_from(REQUESTS), st.dictionaries(st.sampled_from(fields), json_values, max_size=8) | json_values)
def test_a_malformed_body_is_refused_by_name_and_nothing_is_done(request: tuple[str, str], tree: object) -> None:
    spy = Spy()
    status, text = spy.knock(*request, raw=body(tree))
    if status == 400:
        assert not spy.done
        assert isinstance(text, str)
        name, colon, _ = text.partition(": ")
        assert colon and name.split("[")[0] in [*fields, "matchMasterSubnet", "body"]
        assert "Traceback" not in text and "\n" not in text
    else:
        assert isinstance(tree, dict)


GOOD = [ADD, DEL, BATCH, POD]


@given(st.sampled_from(range(4)), st.data())
def test_one_wrong_field_among_good_ones_is_named_with_its_value(which: int, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD[which])))
    value = data.draw(json_values.filter(lambda value: value != ADD["netNamespace"]))
    spy = Spy(entries=(entry("eth0", "10.6.0.5/16"),), answer=FoundCoordinator())
    status, text = spy.knock(*REQUESTS[which], raw=body({**GOOD[which], name: value}))
    if status == 400:
        assert not spy.done
        assert text.startswith(f"{name}: ")
        assert value is None or shown(value)[:20] in text or isinstance(value, list | dict)
    else:
        assert isinstance(value, str)


@given(st.sampled_from(REQUESTS), st.binary(max_size=40))
def test_what_is_no_json_is_refused_and_nothing_is_done(request: tuple[str, str], raw: bytes) -> None:
    spy = Spy()
    status, text = spy.knock(*request, raw=raw)
    assert (status, spy.done) == (400, [])
    assert text.startswith("body: ") or ": missing" in text


@given(st.text(max_size=60))
def test_a_malformed_query_is_refused_and_nothing_is_asked(query: str) -> None:
    spy = Spy(answer=FoundEndpoint(uid="u", node="n"))
    status, text = spy.knock("GET", openapi.ENDPOINT, query=query)
    assert (status == 200) == bool(spy.done)
    if status != 200:
        assert (status == 400 and text.split(": ")[0] in {"podNamespace", "podName"}) or "given twice" in text


def test_a_namespace_that_nobody_can_see_is_refused_before_anything_is_done() -> None:
    spy = Spy()
    status, text = spy.knock("POST", openapi.IP, body({**ADD, "netNamespace": "/run/netns/other"}))
    assert (status, spy.done) == (400, [])
    assert text == 'netNamespace: "/run/netns/other" is no network namespace that the agent can see'


# -- answers -----------------------------------------------------------------------------------------------------------


def entry(ifname: str, address: str, *, role: Role = Role.IPAM, **more: Any) -> JournalEntry:
    route = RouteConfig(dst="0.0.0.0/0", gw="10.6.0.1")
    return JournalEntry(
        container_id=ADD["containerID"],
        ifname=ifname,
        role=role,
        pod=PodRef("default", "web-0", "5b3c"),
        state=more.pop("state", State.ADDED),
        addresses=(address,),
        pools=("blue",),
        result=Result(ips=(IpConfig(address=address, gateway="10.6.0.1"),), routes=(route,)),
        **more,
    )


NET1 = NicGrant(
    nic="net1",
    addresses=(
        Address(version=4, address="10.7.0.5/24", pool="green", gateway="10.7.0.1", vlan=7),
        Address(version=6, address="fd07::5/64", pool="green6"),
    ),
    routes=(Route(dst="10.8.0.0/16", gw="10.7.0.2"),),
)


def test_an_add_is_answered_with_all_nics_of_the_pod() -> None:
    spy = Spy(entries=(entry("eth0", "10.6.0.5/16", others=(NET1,)),))
    status, answer = spy.knock("POST", openapi.IP, body(ADD))
    assert (status, spy.done) == (200, [(Verb.ADD, "eth0")])
    flags = {"enableGatewayDetection": False, "enableIPConflictDetection": True}
    assert answer == {
        "ips": [
            {"version": 4, "address": "10.6.0.5/16", "nic": "eth0", "ipPool": "blue", "gateway": "10.6.0.1", **flags},
            {
                "version": 4,
                "address": "10.7.0.5/24",
                "nic": "net1",
                "ipPool": "green",
                "gateway": "10.7.0.1",
                "vlan": 7,
                **flags,
            },
            {"version": 6, "address": "fd07::5/64", "nic": "net1", "ipPool": "green6", **flags},
        ],
        "routes": [
            {"ifName": "eth0", "dst": "0.0.0.0/0", "gw": "10.6.0.1"},
            {"ifName": "net1", "dst": "10.8.0.0/16", "gw": "10.7.0.2"},
        ],
    }


def test_what_stands_wins_over_what_was_granted_along() -> None:
    first = entry("eth0", "10.6.0.5/16", others=(NET1,))
    second = entry("net1", "10.7.0.9/24", others=(NicGrant(nic="eth0", addresses=()),))
    grants = openapi.grants_of("net1", [first, second])
    assert [(grant.nic, [a.address for a in grant.addresses]) for grant in grants] == [
        ("net1", ["10.7.0.9/24"]),
        ("eth0", ["10.6.0.5/16"]),
    ]


def test_an_interface_that_went_meanwhile_is_no_success() -> None:
    along = entry("net9", "10.6.0.5/16", others=(NicGrant(nic="eth0", addresses=()),))
    for entries in ((), (entry("eth0", "10.6.0.5/16", state=State.RELEASING),), (along,)):
        status, text = Spy(entries=entries).knock("POST", openapi.IP, body(ADD))
        assert status == 500 and "eth0 was deleted" in text


def test_a_batch_is_what_other_plugins_got() -> None:
    entries = (
        entry("eth0", "10.6.0.5/16"),
        entry("net1", "10.6.0.6/16", state=State.RELEASING),
        entry("net2", "10.6.0.7/16", role=Role.MAIN),
    )
    spy = Spy(entries=entries)
    assert spy.knock("DELETE", openapi.IPS, body(BATCH)) == (200, None)
    assert spy.done == [(Verb.DEL, "eth0"), (Verb.DEL, "net1")]
    spy = Spy(entries=entries[2:])
    assert spy.knock("DELETE", openapi.IPS, body(BATCH)) == (200, None)
    assert spy.done == []
    spy = Spy()
    assert spy.knock("DELETE", openapi.IPS, body(BATCH)) == (200, None)
    assert spy.done == [(Verb.DEL, "eth0")]
    assert spy.knock("POST", openapi.IPS, b"whatever") == (200, None)


def test_an_endpoint() -> None:
    nics = (
        IPAllocationDetail(
            interface="eth0",
            ipv4="10.6.0.5/16",
            ipv4_pool="blue",
            ipv4_gateway="10.6.0.1",
            vlan=0,
            routes=[Route(dst="10.8.0.0/16", gw="10.6.0.2")],
        ),
        IPAllocationDetail(interface="net1", ipv6="fd00::5/64", ipv6_pool="six", vlan=5, mac="aa:bb:cc:dd:ee:ff"),
    )
    spy = Spy(answer=FoundEndpoint(uid="5b3c", node="n1", nics=nics))
    assert spy.knock("GET", openapi.ENDPOINT, query="podNamespace=default&podName=web-0") == (
        200,
        {
            "podNamespace": "default",
            "podName": "web-0",
            "podUID": "5b3c",
            "node": "n1",
            "interfaces": [
                {
                    "interface": "eth0",
                    "ipv4": "10.6.0.5/16",
                    "ipv4Pool": "blue",
                    "ipv4Gateway": "10.6.0.1",
                    "routes": [{"ifName": "eth0", "dst": "10.8.0.0/16", "gw": "10.6.0.2"}],
                },
                {
                    "interface": "net1",
                    "ipv6": "fd00::5/64",
                    "ipv6Pool": "six",
                    "vlan": 5,
                    "mac": "aa:bb:cc:dd:ee:ff",
                },
            ],
        },
    )
    spy.answer = Rejected(message="pod default/web-0: no such pod", cause="not_found")
    assert spy.knock("GET", openapi.ENDPOINT, query="podNamespace=default&podName=web-0") == (
        404,
        "pod default/web-0: no such pod",
    )
    spy.answer = Rejected(message="the store is away", cause="internal")
    assert spy.knock("GET", openapi.ENDPOINT, query="podNamespace=default&podName=web-0")[0] == 500


def test_the_coordinators_settings() -> None:
    values = Coordination(
        mode="disabled", service_cidr=("10.96.0.0/12",), policy_routes=(Route("10.0.0.0/8", "10.6.0.1"),)
    )
    spy = Spy(answer=FoundCoordinator(values, tune_pod_routes=False, default_route_nic="net1"))
    status, answer = spy.knock("GET", openapi.COORDINATOR, body(POD))
    assert status == 200
    assert answer == {
        "overlayPodCIDR": [],
        "serviceCIDR": ["10.96.0.0/12"],
        "mode": "disable",
        "tunePodRoutes": False,
        "hijackCIDR": ["169.254.0.0/16"],
        "policyRoutes": [{"dst": "10.0.0.0/8", "gw": "10.6.0.1"}],
        "podDefaultRouteNIC": "net1",
        "hostRuleTable": 500,
        "podRPFilter": 0,
        "txQueueLen": 0,
        "vethMTU": 1500,
    }


def test_the_coordinators_settings_where_services_are_not_known() -> None:
    """The original's plugin wants both lists, and what is known of the one does not go with the other."""
    spy = Spy(answer=FoundCoordinator(Coordination(overlay_pod_cidr=("10.244.0.0/16",), hijack_cidr=())))
    status, answer = spy.knock("GET", openapi.COORDINATOR, body(POD))
    assert status == 200
    assert (answer["overlayPodCIDR"], answer["serviceCIDR"]) == (["10.244.0.0/16"], [])
    assert (answer["mode"], answer["tunePodRoutes"]) == ("auto", True)
    assert "podDefaultRouteNIC" not in answer and "hijackCIDR" not in answer


def test_probes_are_answered_as_on_the_health_port() -> None:
    spy = Spy()
    assert spy.knock("GET", "/v1/runtime/liveness") == (200, None)
    spy.health.report("agent/cni", Health.FAILED, "no socket")
    status, text = spy.knock("GET", "/v1/runtime/liveness")
    assert status == 500 and "no socket" in text


def test_old_and_new_replicas_understand_lookups_apart() -> None:
    """An answer that is none for the question is an error, no crash."""
    assert Spy().knock("GET", openapi.COORDINATOR, body(POD)) == (500, "a controller answered Ready")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Inquire()))["type"] == "Inquire"
