"""The objects that a new cluster starts with: what the environment says, and what it cannot say."""

import asyncio
from typing import Any

import pytest

from actors.errands import init
from actors.errands.errand import CannotBeDone
from actors.errands.init import create, differing, readiness
from actors.errands.initial import load
from api.coordinator import CoordinatorSpec
from api.core import EndpointConditions, EndpointSlice, SliceEndpoint
from api.ippool import IPPoolSpec
from api.kinds import COORDINATOR, ENDPOINTSLICE, IPPOOL, SUBNET
from api.meta import ObjectMeta
from api.route import Route
from api.settings import SettingsError
from runtime.store.memory import MemoryStore
from runtime.testing.loop import run

NEEDED = {"SPIDERPOOL_NAMESPACE": "net"}
C = "SPIDERPOOL_INIT_DEFAULT_COORDINATOR_"
V4, V6 = "SPIDERPOOL_INIT_DEFAULT_IPV4_", "SPIDERPOOL_INIT_DEFAULT_IPV6_"
POOL4 = {f"{V4}IPPOOL_NAME": "lan", f"{V4}IPPOOL_SUBNET": "10.6.0.0/16"}


def wanted(**more: str) -> dict[tuple[str, str], Any]:
    return {(each.kind.kind, each.name): each.item.spec for each in load(NEEDED | more).objects}


def test_nothing_asked_for_is_nothing() -> None:
    assert wanted() == {}


def test_a_coordinator_with_everything() -> None:
    spec = wanted(
        **{
            f"{C}NAME": "default",
            f"{C}MODE": "overlay",
            f"{C}POD_CIDR_TYPE": "none",
            f"{C}TUNE_POD_ROUTES": "false",
            f"{C}HIJACK_CIDR": '["169.254.0.0/16","1.2.3.4"]',
            f"{C}POLICY_ROUTES": '[{"dst":"10.0.0.0/8","gw":"10.6.0.1"}]',
            f"{C}VETH_LINK_ADDRESS": "169.254.100.1",
            f"{C}VETH_MTU": "1400",
            f"{C}DETECT_GATEWAY": "false",
        }
    )["SpiderCoordinator", "default"]
    assert spec == CoordinatorSpec(
        mode="overlay",
        pod_cidr_type="none",
        tune_pod_routes=False,
        hijack_cidr=["169.254.0.0/16", "1.2.3.4"],
        policy_routes=[Route("10.0.0.0/8", "10.6.0.1")],
        veth_link_address="169.254.100.1",
        veth_mtu=1400,
    )


LISTS = ('["10.6.0.1-10.6.0.9","10.6.0.20"]', "[10.6.0.1-10.6.0.9 10.6.0.20]", "10.6.0.1-10.6.0.9, 10.6.0.20")


@pytest.mark.parametrize("text", LISTS)
def test_lists_as_charts_and_shells_write_them(text: str) -> None:
    spec = wanted(**POOL4, **{f"{V4}IPPOOL_IPRANGES": text})["SpiderIPPool", "lan"]
    assert spec == IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.9", "10.6.0.20"], default=True)


def test_subnets_come_before_their_pools_and_both_families_are_had() -> None:
    more = {f"{V4}SUBNET_NAME": "net4", f"{V6}IPPOOL_NAME": "lan6", f"{V6}IPPOOL_SUBNET": "fd00::/64"}
    made = wanted(**POOL4, **more, **{f"{V4}IPPOOL_GATEWAY": "10.6.0.1"})
    assert list(made) == [("SpiderSubnet", "net4"), ("SpiderIPPool", "lan"), ("SpiderIPPool", "lan6")]
    assert made["SpiderSubnet", "net4"].gateway == made["SpiderIPPool", "lan"].gateway == "10.6.0.1"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SPIDERPOOL_NAMESPACE": ""}, "SPIDERPOOL_NAMESPACE is missing"),
        ({"SPIDERPOOL_INIT_DEFAULT_IPV4_IPPOOL_NAM": "x"}, "is not a setting"),
        ({f"{C}NAME": "d", f"{C}MODE": "sideways"}, f"{C}MODE='sideways': expected one of auto"),
        ({f"{C}NAME": "d", f"{C}VETH_MTU": "-1"}, f"{C}VETH_MTU='-1': expected a whole number"),
        ({f"{C}NAME": "d", f"{C}TUNE_POD_ROUTES": "maybe"}, f"{C}TUNE_POD_ROUTES='maybe': expected true or false"),
        ({f"{C}NAME": "d", f"{C}HIJACK_CIDR": "10.0.0.0/33"}, "'10.0.0.0/33' is no address or CIDR"),
        ({f"{C}NAME": "d", f"{C}POLICY_ROUTES": "[{]"}, f"{C}POLICY_ROUTES='[{{]': expected JSON"),
        ({f"{C}NAME": "d", f"{C}POLICY_ROUTES": '[{"dst":"10.0.0.0/8","gw":"fd00::1"}]'}, "expected JSON as in"),
        ({f"{C}NAME": "d", f"{C}VETH_LINK_ADDRESS": "link"}, "'link' is no IP address"),
        ({f"{C}DETECT_GATEWAY": "true"}, "set enableGatewayDetection of conf.yml"),
        ({"SPIDERPOOL_INIT_ENABLE_MULTUS_CONFIG": "true"}, "there is no default SpiderMultusConfig yet"),
        ({f"{V4}IPPOOL_NAME": "lan"}, f"{V4}IPPOOL_SUBNET is missing: lan needs a CIDR such as 10.6.0.0/16"),
        (POOL4 | {f"{V4}IPPOOL_SUBNET": "10.6.0.0"}, f"{V4}IPPOOL_SUBNET='10.6.0.0'"),
        (
            POOL4 | {f"{V4}IPPOOL_SUBNET": "fd00::/64"},
            f"{V4}IPPOOL_SUBNET='fd00::/64': spec.ipVersion: Invalid value: 4",
        ),
        (
            POOL4 | {f"{V4}IPPOOL_IPRANGES": "10.6.0.9-10.6.0.1"},
            'spec.ips[0]: Invalid value: "10.6.0.9-10.6.0.1": the first',
        ),
        (
            POOL4 | {f"{V4}IPPOOL_IPRANGES": "10.7.0.1"},
            f"{V4}IPPOOL_IPRANGES='10.7.0.1': spec.ips[0]: Invalid value: \"10.7.0.1\": outside",
        ),
        (POOL4 | {f"{V4}IPPOOL_GATEWAY": "10.7.0.1"}, f"{V4}IPPOOL_GATEWAY='10.7.0.1': spec.gateway"),
    ],
)
def test_what_makes_no_sense_is_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(NEEDED | environ)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_program_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        init.main([], NEEDED | {f"{V4}IPPOOL_NAME": "lan"})
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"spiderpool-init: {V4}IPPOOL_SUBNET is missing")


# ---------------------------------------------------------------- creating


def controller(*, ready: bool | None) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name="c-1", namespace="net", labels={"kubernetes.io/service-name": "spiderpool-controller"}
        ),
        address_type="IPv4",
        endpoints=[SliceEndpoint(addresses=["10.0.0.1"], conditions=EndpointConditions(ready=ready))],
    )


def test_readiness_in_words() -> None:
    assert readiness([]) == "its Service has no EndpointSlice"
    assert readiness([EndpointSlice()]) == "its Service has no endpoints"
    assert readiness([controller(ready=False)]) == "its Service has 1 endpoint(s), none of them ready"
    assert not readiness([controller(ready=True)])
    assert not readiness([controller(ready=None)])


def test_created_once_and_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    environ = NEEDED | POOL4 | {f"{C}NAME": "default", f"{C}MODE": "overlay", f"{V4}SUBNET_NAME": "net4"}

    async def main() -> None:
        store = MemoryStore()
        await store.create(ENDPOINTSLICE, controller(ready=True))
        await create(store, load(environ), seconds=5)
        await store.patch(COORDINATOR, "default", {"spec": {"mode": "underlay"}})
        await create(store, load(environ | {f"{V4}IPPOOL_GATEWAY": "10.6.0.1"}), seconds=5)
        assert (await store.get(COORDINATOR, "default")).spec.mode == "underlay"
        assert (await store.get(IPPOOL, "lan")).spec.gateway is None
        assert (await store.get(IPPOOL, "lan")).spec.default
        assert (await store.get(SUBNET, "net4")).spec.subnet == "10.6.0.0/16"

    run(main, seed=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "SpiderCoordinator default: created",
        "SpiderSubnet net4: created",
        "SpiderIPPool lan: created",
    ]
    assert lines[3] == (
        'SpiderCoordinator default: already there, left as it is; not as the values say: spec.mode ("underlay", '
        'values "overlay")'
    )
    assert 'spec.gateway (absent, values "10.6.0.1")' in lines[5]


def test_waits_for_the_controller_and_says_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.create(ENDPOINTSLICE, controller(ready=False))
        job = asyncio.get_running_loop().create_task(create(store, load(NEEDED | POOL4), seconds=100))
        await asyncio.sleep(20)
        assert not job.done()
        await store.patch(
            ENDPOINTSLICE,
            "c-1",
            {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]},
            namespace="net",
        )
        await job

    run(main, seed=1)
    waiting, created = capsys.readouterr().out.splitlines()
    assert waiting.startswith(
        "waiting: no replica of spiderpool-controller in namespace net is ready: its Service has 1 "
    )
    assert created == "SpiderIPPool lan: created"


def test_gives_up_in_time() -> None:
    async def main() -> None:
        with pytest.raises(CannotBeDone, match="its Service has no EndpointSlice"):
            await create(MemoryStore(), load(NEEDED | POOL4), seconds=10)

    run(main, seed=1)


def test_what_differs() -> None:
    assert differing(IPPoolSpec(subnet="a"), IPPoolSpec(subnet="a")) == []
    assert differing(IPPoolSpec(subnet="a", gateway="g"), IPPoolSpec(subnet="b")) == ['spec.subnet ("a", values "b")']
