"""Area spidermultus, the definitions: what the controllers make of SpiderMultusConfigs in the real API server.

What is refused is what `tests/rules/test_admission_multusconfig.py` has, by the API server's schema or by a webhook.
An object that came past any webhook is said to be wrong, and makes nothing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.cases.kubelet import Kubelets
from tests.cases.refusals import causes
from tests.processes.lab import Lab
from tests.rules.test_admission_multusconfig import REFUSED
from tests.servers.control_plane import ApiRefused

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]

SECONDS = 20.0
POOLS = {"ippools": {"ipv4": ["p4"], "ipv6": ["p6"]}}
IPAM = {"type": "spiderpool", "default_ipv4_ippool": ["p4"], "default_ipv6_ippool": ["p6"]}
COORDINATOR = {"txQueueLen": 0, "tunePodRoutes": True, "mode": "auto", "type": "coordinator"}
BOND = {"name": "bond0", "mode": 1, "options": "miimon=100"}
CR_NAME = "multus.spidernet.io/cr-name"
RESOURCE = "k8s.v1.cni.cncf.io/resourceName"


class Definitions:
    """A namespace of its own for a case."""

    def __init__(self, lab: Lab) -> None:
        self.admission = lab.admission
        self.control_plane = lab.control_plane
        self.namespace = lab.control_plane.create_namespace()
        self.configs = f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{self.namespace}/spidermultusconfigs"
        self.path = f"/apis/k8s.cni.cncf.io/v1/namespaces/{self.namespace}/network-attachment-definitions"

    def create(self, spec: dict[str, Any] | None, name: str = "lan", **notes: str) -> dict[str, Any]:
        """A SpiderMultusConfig. Raises `ApiRefused`."""
        made: dict[str, Any] = self.control_plane.request("POST", self.configs, _config(spec, name, notes)).body
        return made

    def refused(self, spec: dict[str, Any], name: str = "lan", **notes: str) -> list[str]:
        """Why there cannot be one."""
        body = _config(spec, name, notes)
        return causes(self.control_plane.request("POST", f"{self.configs}?dryRun=All", body, check=False))

    def change(self, change: dict[str, Any], name: str = "lan") -> None:
        self.control_plane.request("PATCH", f"{self.configs}/{name}", change)

    def found(self) -> dict[str, dict[str, Any]]:
        """All definitions of the namespace by name."""
        items = self.control_plane.request("GET", self.path).body["items"]
        return {item["metadata"]["name"]: item for item in items}

    def until[T](self, look: Callable[[], T], what: str) -> T:
        deadline = time.monotonic() + SECONDS
        while not (seen := look()):
            assert time.monotonic() < deadline, f"{what}; there is {json.dumps(self.found())[:2000]}"
            time.sleep(0.03)
        return seen

    def made(self, name: str = "lan") -> dict[str, Any]:
        """The definition of this name, as soon as it is there."""
        return self.until(lambda: self.found().get(name, {}), f"{name} is made")

    def config(self, name: str = "lan") -> dict[str, Any]:
        """What it says."""
        config: dict[str, Any] = json.loads(self.made(name)["spec"]["config"])
        return config

    def plugins(self, name: str = "lan") -> list[dict[str, Any]]:
        plugins: list[dict[str, Any]] = self.config(name)["plugins"]
        return plugins

    def events(self, reason: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.namespace}/events"
        return [item for item in self.control_plane.request("GET", path).body["items"] if item["reason"] == reason]


def _config(spec: dict[str, Any] | None, name: str, notes: Mapping[str, str]) -> dict[str, Any]:
    keys = {"cr_name": CR_NAME, "cni_version": "multus.spidernet.io/cni-version"}
    return {
        "apiVersion": "spiderpool.spidernet.io/v2beta1",
        "kind": "SpiderMultusConfig",
        "metadata": {"name": name, "annotations": {keys.get(key, key): value for key, value in notes.items()}},
        **({"spec": spec} if spec is not None else {}),
    }


@pytest.fixture
def definitions(lab: Lab, kubelets: Kubelets) -> Iterator[Definitions]:
    """With the garbage collector of the real controller manager."""
    del kubelets
    case = Definitions(lab)
    yield case
    lab.control_plane.request("DELETE", f"/api/v1/namespaces/{case.namespace}", check=False)


def macvlan(**block: Any) -> dict[str, Any]:
    return {"cniType": "macvlan", "macvlan": {"master": ["eth0"], **POOLS, **block}}


def test_M00001_macvlan(definitions: Definitions) -> None:
    config = definitions.create(macvlan())
    made = definitions.made()
    assert made["spec"]["config"] == json.dumps(
        {
            "cniVersion": "0.3.1",
            "name": "lan",
            "plugins": [
                {"type": "macvlan", "master": "eth0", "mode": "bridge", "mtu": 0, "ipam": IPAM},
                COORDINATOR,
            ],
        },
        separators=(",", ":"),
    )
    assert made["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderMultusConfig",
            "name": "lan",
            "uid": config["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def test_M00002_ipvlan(definitions: Definitions) -> None:
    definitions.create({"cniType": "ipvlan", "ipvlan": {"master": ["eth0"], **POOLS}})
    assert definitions.plugins() == [{"type": "ipvlan", "master": "eth0", "mtu": 0, "ipam": IPAM}, COORDINATOR]


def test_M00003_sriov(definitions: Definitions) -> None:
    definitions.create({"cniType": "sriov", "sriov": {"resourceName": "example.com/vf", "vlanID": 5, **POOLS}})
    first = {"vlan": 5, "min_tx_rate": 0, "max_tx_rate": 0, "type": "sriov", "ipam": IPAM}
    assert definitions.plugins() == [first, COORDINATOR]
    assert definitions.made()["metadata"]["annotations"] == {RESOURCE: "example.com/vf"}


def test_M00004_custom(definitions: Definitions) -> None:
    text = '{ "cniVersion": "1.0.0", "name": "x",  "type": "macvlan", "master": "eth0" }'
    definitions.create({"cniType": "custom", "customCNI": text})
    assert definitions.made()["spec"]["config"] == text


def test_M00005_custom_that_is_not_json(definitions: Definitions) -> None:
    spec = {"cniType": "custom", "customCNI": "{ invalid"}
    (cause,) = definitions.refused(spec)
    assert cause.startswith('spec.customCNI: Invalid value: "{ invalid": it is not JSON')
    with definitions.admission.unseen():  # as in a cluster whose webhooks were away
        definitions.create(spec)
    (event,) = definitions.until(lambda: definitions.events("InvalidNetwork"), "it is said")
    assert 'spec.customCNI: Invalid value: "{ invalid": it is not JSON' in event["message"]
    assert event["involvedObject"]["kind"] == "SpiderMultusConfig"
    assert definitions.found() == {}


def test_M00006_vlan_on_a_bond(definitions: Definitions) -> None:
    definitions.create(macvlan(master=["eth0", "eth1"], bond=BOND, vlanID=100))
    first, second, last = definitions.plugins()
    assert first == {"vlanID": 100, "type": "ifacer", "interfaces": ["eth0", "eth1"], "bond": BOND}
    assert (second["master"], last) == ("bond0.100", COORDINATOR)


def test_M00007_deleted_or_edited_by_hand(definitions: Definitions) -> None:
    definitions.create(macvlan())
    before = definitions.made()
    definitions.control_plane.request("DELETE", f"{definitions.path}/lan")

    def again() -> bool:
        return bool(definitions.found().get("lan", before)["metadata"]["uid"] != before["metadata"]["uid"])

    definitions.until(again, "it is made again")
    assert definitions.made()["spec"] == before["spec"]
    notes = {"annotations": {"theirs": "x"}, "ownerReferences": None}
    definitions.control_plane.request("PATCH", f"{definitions.path}/lan", {"spec": {"config": "{}"}, "metadata": notes})
    definitions.until(lambda: definitions.made()["spec"] == before["spec"], "it is repaired")
    assert definitions.made()["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
    assert "annotations" not in definitions.made()["metadata"]


def test_M00008_deleted_with_its_object(definitions: Definitions) -> None:
    definitions.create(macvlan())
    definitions.create(macvlan(), "stays")
    definitions.made()
    definitions.control_plane.request("DELETE", f"{definitions.configs}/lan")
    definitions.until(lambda: list(definitions.found()) == ["stays"], "it is gone")


def test_M00009_a_bond_is_added(definitions: Definitions) -> None:
    definitions.create(macvlan())
    definitions.made()
    definitions.change({"spec": {"macvlan": {"master": ["eth0", "eth1"], "bond": BOND}}})
    definitions.until(lambda: len(definitions.plugins()) == 3, "ifacer is there")
    first, second, _ = definitions.plugins()
    assert first == {"type": "ifacer", "interfaces": ["eth0", "eth1"], "bond": BOND}
    assert second["master"] == "bond0"


def test_M00010_another_name(definitions: Definitions) -> None:
    definitions.create(macvlan(), cr_name="other")
    assert definitions.config("other")["name"] == "other"
    definitions.change({"metadata": {"annotations": {CR_NAME: None}}})
    definitions.until(lambda: list(definitions.found()) == ["lan"], "it is there under the object's name only")


def test_M00011_a_name_that_another_one_has(definitions: Definitions) -> None:
    definitions.create(macvlan())
    before = definitions.made()
    (cause,) = definitions.until(
        lambda: definitions.refused(macvlan(mtu=1400), "second", cr_name="lan"), "every replica has seen the first"
    )
    assert "SpiderMultusConfig lan makes the definition of this name" in cause
    with definitions.admission.unseen():  # as two replicas would admit them at the same moment
        definitions.create(macvlan(mtu=1400), "second", cr_name="lan")
    (event,) = definitions.until(lambda: definitions.events("NetworkTaken"), "it is said")
    assert event["involvedObject"]["name"] == "second"
    assert f"{definitions.namespace}/lan is SpiderMultusConfig lan's" in event["message"]
    assert definitions.found() == {"lan": before}


def test_M00012_cni_version(definitions: Definitions) -> None:
    definitions.create(macvlan(), cni_version="1.0.0")
    assert definitions.config()["cniVersion"] == "1.0.0"


def test_M00014_adopted(definitions: Definitions) -> None:
    theirs = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "lan", "labels": {"mine": "x"}},
        "spec": {"config": "{}"},
    }
    uid = definitions.control_plane.request("POST", definitions.path, theirs).body["metadata"]["uid"]
    config = definitions.create(macvlan())
    definitions.until(lambda: definitions.made()["spec"] != theirs["spec"], "it is taken over")
    meta = definitions.made()["metadata"]
    assert (meta["uid"], meta["labels"]) == (uid, {"mine": "x"})
    assert [owner["uid"] for owner in meta["ownerReferences"]] == [config["metadata"]["uid"]]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"cniType": "token-ring"}, r"spec\.cniType: Unsupported value"),
        ({"cniType": "ipvlan", "macvlan": {"master": ["eth0"]}}, "ipvlan goes with cniType ipvlan, and with no other"),
        (
            {"cniType": "ipvlan", "macvlan": {"master": ["eth0"]}},
            "macvlan goes with cniType macvlan, and",
        ),
        ({"cniType": "ib-sriov"}, "ibsriov goes with cniType ib-sriov, and with no other"),
        ({"macvlan": {"master": ["eth0"]}}, "macvlan goes with cniType macvlan"),
        ({**macvlan(), "customCNI": "{}"}, "customCNI goes with cniType custom"),
        (macvlan(master=[]), "master names at least one interface"),
        (macvlan(master=["eth0", "eth1"]), "several masters need a bond"),
        ({"cniType": "sriov", "sriov": {"resourceName": ""}}, "resourceName is what the device plugin calls them"),
        (
            {"cniType": "sriov", "sriov": {"resourceName": "a/b", "minTxRateMbps": 9, "maxTxRateMbps": 8}},
            "minTxRateMbps is larger",
        ),
    ],
)
def test_M00015_type_and_block_that_do_not_fit(definitions: Definitions, spec: dict[str, Any], said: str) -> None:
    """The API server says so by itself, with or without a webhook."""
    with pytest.raises(ApiRefused, match=said):
        definitions.create(spec)


BY_WEBHOOK = [(*one[1:],) for one in REFUSED if one[0].startswith("M") and one[0][:6] not in {"M00015", "M00040"}]


@pytest.mark.parametrize(("spec", "notes", "said"), BY_WEBHOOK, ids=[said.partition(":")[0] for *_, said in BY_WEBHOOK])
def test_M00013_M00020_M00023_M00032_what_the_webhook_refuses(
    definitions: Definitions, spec: dict[str, Any], notes: dict[str, str], said: str
) -> None:
    """M00025 and M00028 to M00030 among them. The same texts as in the rules' own test."""
    (cause,) = definitions.refused(spec, **notes)
    assert cause.startswith(said)


def test_M00040_automatic_vlan_with_an_id(definitions: Definitions) -> None:
    with pytest.raises(ApiRefused, match="vlanID comes with the address where vlanMode is auto"):
        definitions.create({"cniType": "vlan", "vlan": {"master": ["eth0"], "vlanMode": "auto", "vlanID": 5}})


@pytest.mark.parametrize("vlan", [-1, 4095])
def test_M00016_vlan_that_is_none(definitions: Definitions, vlan: int) -> None:
    with pytest.raises(ApiRefused, match=r"spec\.macvlan\.vlanID: Invalid value"):
        definitions.create(macvlan(vlanID=vlan))
    definitions.create(macvlan(vlanID=4094))
    assert definitions.plugins()[1]["master"] == "eth0.4094"


def test_M00017_without_ipam(definitions: Definitions) -> None:
    definitions.create({**macvlan(), "disableIPAM": True})
    assert "ipam" not in definitions.plugins()[0]


def test_M00019_empty_spec(definitions: Definitions) -> None:
    definitions.create({})
    definitions.create(None, "bare")
    for name in ("lan", "bare"):
        assert not definitions.made(name).get("spec", {}).get("config")


def test_M00021_chained_plugins_as_they_are_written(definitions: Definitions) -> None:
    definitions.create({**macvlan(), "chainCNIJsonData": ['{"type": "tuning", "mtu": 1380}', '{"type":"cilium-cni"}']})
    assert definitions.plugins()[1:] == [{"mtu": 1380, "type": "tuning"}, {"type": "cilium-cni"}, COORDINATOR]


def test_M00022_M00024_settings_of_the_coordinator(definitions: Definitions) -> None:
    """M00026 as well; what a pod has of them is in `test_spidermultus`."""
    settings = {"podRPFilter": 2, "podMACPrefix": "0a:1b", "vethLinkAddress": "169.254.100.1", "hostRuleTable": 600}
    definitions.create({**macvlan(), "coordinator": settings})
    assert definitions.plugins()[1] == {**COORDINATOR, **settings}


def test_M00027_M00031_resources_that_pods_ask_for(definitions: Definitions) -> None:
    notes = {"cni.spidernet.io/rdma-resource-inject": "rdma", "cni.spidernet.io/network-resource-inject": "net"}
    definitions.create(macvlan(rdmaResourceName="example.com/rdma"), **notes)
    assert any("ippools" in cause for cause in definitions.refused(macvlan(ippools=None), "bad", **notes))
    with definitions.admission.unseen():
        definitions.create(macvlan(ippools=None), "bad", **notes)
    assert definitions.made()["metadata"]["annotations"] == notes
    (event,) = definitions.until(lambda: definitions.events("InvalidNetwork"), "it is said")
    assert event["involvedObject"]["name"] == "bad"
    assert list(definitions.found()) == ["lan"]


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_M00033_M00034_mtu(definitions: Definitions, kind: str) -> None:
    definitions.create({"cniType": kind, kind: {"master": ["eth0"], "mtu": 1400}})
    assert definitions.plugins()[0]["mtu"] == 1400


def test_M00035_mtu_of_sriov(definitions: Definitions) -> None:
    definitions.create({"cniType": "sriov", "sriov": {"resourceName": "example.com/vf", "mtu": 8000}})
    assert definitions.plugins()[1:] == [COORDINATOR, {"type": "tuning", "mtu": 8000}]


def test_M00038_vlan(definitions: Definitions) -> None:
    definitions.create({"cniType": "vlan", "vlan": {"master": ["eth0"], "vlanID": 100, **POOLS}})
    first = {"type": "vlan", "master": "eth0", "vlanMode": "manual", "vlanId": 100, "mtu": 0, "ipam": IPAM}
    assert definitions.plugins()[0] == first


def test_M00039_automatic_vlan_has_no_id(definitions: Definitions) -> None:
    definitions.create({"cniType": "vlan", "vlan": {"master": ["eth0"], "vlanMode": "auto"}})
    first = definitions.plugins()[0]
    assert (first["vlanMode"], "vlanId" in first) == ("auto", False)


def test_our_extensions_of_sriov(definitions: Definitions) -> None:
    """Off by default: the case M00003 has none of them."""
    more = {"spoofchk": "off", "trust": "on", "linkState": "auto", "vlanID": 5, "vlanQoS": 3, "vlanProto": "802.1ad"}
    definitions.create({"cniType": "sriov", "sriov": {"resourceName": "example.com/vf", **more}})
    first = definitions.plugins()[0]
    assert [first[key] for key in ("spoofchk", "trust", "link_state", "vlanQoS", "vlanProto")] == [
        "off", "on", "auto", 3, "802.1ad",
    ]  # fmt: skip


def test_what_is_as_it_should_be_is_not_written(definitions: Definitions) -> None:
    """Both replicas see it, and one of them has made it."""
    definitions.create(macvlan())
    before = definitions.made()
    definitions.create(macvlan(), "second")
    definitions.made("second")
    time.sleep(1)
    assert definitions.found()["lan"] == before
