"""Every rule of admission by a manifest that it refuses, with what is said: asked of the rules, and of a cluster.

Of many the one thing that is wrong is in the manifest itself: those are the lists beside each kind's own tests. The
others are refused for what else there is: an older version of the object, other objects, a switch.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from api.annotations import MULTUS_CR_NAME, OWNER_APPLICATION_NAME, SUBNET_SEEN
from api.coordinator import CoordinatorSpec
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, NETWORKATTACHMENT, RESERVEDIP, SUBNET, Kind
from tests.rules import (
    test_admission_coordination,
    test_admission_ippool,
    test_admission_multusconfig,
    test_admission_subnet,
)

type Manifest = dict[str, Any]

LAN: Final = "10.6.0.0/16"
NAMESPACE: Final = "refusals"
"""Of those that have one, where a cluster is asked."""
HOLD: Final = "test.spidernet.io/hold"
"""A finalizer that nobody takes off."""


class Refusal(Struct, frozen=True, kw_only=True):
    """One manifest, and why it is refused.

    Attributes:
        name: for people.
        new: the manifest.
        said: how each error begins.
        by_schema: how what the API server says by itself begins, where it decides before it asks.
        before: the object as it was.
        there: other objects.
        delete: what is asked for is to delete the object.
        off: families that are switched off.
        guarded: whether deletions of what is in use are refused.
    """

    name: str
    new: Manifest
    said: tuple[str, ...]
    by_schema: tuple[str, ...] = ()
    before: Manifest | None = None
    there: tuple[Manifest, ...] = ()
    delete: bool = False
    off: tuple[int, ...] = ()
    guarded: bool = False


def manifest(kind: Kind[Any], name: str, spec: Manifest, **meta: Any) -> Manifest:
    """An object as its author writes it."""
    place = {"namespace": NAMESPACE} if kind.namespaced else {}
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name, **place, **meta},
        "spec": spec,
    }


def going(made: Manifest) -> Manifest:
    """The same while it is being deleted, and somebody holds it."""
    meta = {**made["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [HOLD]}
    return {**made, "metadata": meta}


def pool(name: str = "refused", *, used: str = "", **spec: Any) -> Manifest:
    """A pool, with the record of one address in use."""
    made = manifest(IPPOOL, name, {"subnet": LAN, "ips": ["10.6.0.10-10.6.0.20"], **spec})
    if used:
        record = {used: {"pod": "ns/p", "podUid": "u"}}
        made["status"] = {"allocatedIPs": msgspec.json.encode(record).decode(), "allocatedIPCount": 1}
    return made


def automatic(name: str = "refused", *, seen: str = "", **spec: Any) -> Manifest:
    """A pool that was made for an application."""
    made = pool(name, **spec)
    made["metadata"]["labels"] = {OWNER_APPLICATION_NAME: "web"}
    made["metadata"]["annotations"] = {SUBNET_SEEN: seen} if seen else {}
    return made


def subnet(name: str = "refused", **spec: Any) -> Manifest:
    return manifest(SUBNET, name, {"subnet": LAN, "ips": ["10.6.0.10-10.6.0.99"], **spec})


def reserved(**spec: Any) -> Manifest:
    return manifest(RESERVEDIP, "refused", spec)


def coordinator(**spec: Any) -> Manifest:
    return manifest(COORDINATOR, "refused", spec)


def network(name: str = "refused", spec: Manifest | None = None, *, notes: Mapping[str, str] = {}) -> Manifest:
    """A SpiderMultusConfig; without a spec, one that is right."""
    return manifest(MULTUSCONFIG, name, MACVLAN if spec is None else spec, annotations=dict(notes))


MACVLAN: Final[Manifest] = {"cniType": "macvlan", "macvlan": {"master": ["eth0"]}}
_IN_BOOK: Final = '{"auto":{"ips":["10.6.0.10-10.6.0.19"],"application":"apps_v1_Deployment_ns_web"}}'
_BOOKED: Final = {**subnet("lan"), "status": {"controlledIPPools": _IN_BOOK, "allocatedIPCount": 10}}
"""A subnet of which an application has ten addresses."""
_AUTO: Final = automatic("auto", seen="1", ips=["10.6.0.10-10.6.0.19"])
_THEIRS: Final = {
    "apiVersion": NETWORKATTACHMENT.api_version,
    "kind": NETWORKATTACHMENT.kind,
    "metadata": {
        "name": "refused",
        "namespace": NAMESPACE,
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "somebody", "uid": "u", "controller": True}
        ],
    },
    "spec": {"config": "{}"},
}
_FAMILY = "spec: Invalid value: ipVersion is not that of subnet"
_NETWORKS_BY_SCHEMA: Final = {
    "M00015 missing": "spec: Invalid value: macvlan goes with cniType macvlan, and with no other",
    "M00015 another": "spec: Invalid value: ipvlan goes with cniType ipvlan, and with no other",
    "M00015 custom": "spec: Invalid value: customCNI goes with cniType custom",
    "M00015 default": "spec: Invalid value: macvlan goes with cniType macvlan, and with no other",
    "M00040": "spec.vlan: Invalid value: vlanID comes with the address where vlanMode is auto",
    "no label": 'metadata.labels: Invalid value: "a b": a valid label must be',
    "no master": "spec.macvlan: Invalid value: master names at least one interface of the node",
    "two masters": "spec.macvlan: Invalid value: several masters need a bond",
    "sriov resource": "spec.sriov: Invalid value: resourceName is what the device plugin calls them",
    "rates": "spec.sriov: Invalid value: minTxRateMbps is larger than maxTxRateMbps",
    "rate": '<nil>: Invalid value: "": Checked value must be of type integer with format int32',
}

_BY_THEMSELVES = [
    *(
        Refusal(
            name=f"pool: {said}", new=pool(**spec), said=(said,), by_schema=(_FAMILY,) if "ipVersion" in spec else ()
        )
        for spec, said in test_admission_ippool.REFUSED
    ),
    *(
        Refusal(
            name=f"subnet: {said}",
            new=subnet(**{"subnet": "", **msgspec.to_builtins(test_admission_subnet.subnet(**spec).spec)}),
            said=(said,),
            by_schema=(_FAMILY,) if "ip_version" in spec else (),
        )
        for spec, said in test_admission_subnet.REFUSED
    ),
    *(
        Refusal(
            name=f"coordinator: {said}",
            new=coordinator(podCIDRType="none", **msgspec.to_builtins(CoordinatorSpec(**spec))),
            said=(said,),
        )
        for spec, said in test_admission_coordination.REFUSED
    ),
    *(
        Refusal(
            name=f"network: {name}",
            new=network(spec=spec, notes=notes),
            said=(said,),
            by_schema=tuple(_NETWORKS_BY_SCHEMA[key] for key in (name,) if key in _NETWORKS_BY_SCHEMA),
        )
        for name, spec, notes, said in test_admission_multusconfig.REFUSED
    ),
]

_FOR_WHAT_THERE_IS = [
    Refusal(
        name="pool of a family that is off",
        new=pool(subnet="fd00:6::/64", ips=[]),
        said=("spec.ipVersion: Invalid value: 6: IPv6 is switched off: enableIPv6 in conf.yml",),
        off=(6,),
    ),
    Refusal(
        name="pool across another's subnet",
        new=pool(),
        said=('spec.subnet: Invalid value: "10.6.0.0/16": overlaps 10.0.0.0/8, the subnet of SpiderIPPool wide',),
        there=(pool("wide", subnet="10.0.0.0/8", ips=[]),),
    ),
    Refusal(
        name="pool with an address of another",
        new=pool(),
        said=('spec.ips: Invalid value: "10.6.0.20": SpiderIPPool other has these addresses',),
        there=(pool("other", ips=["10.6.0.20-10.6.0.22"]),),
    ),
    Refusal(
        name="pool that leaves out what is in use",
        new=pool(ips=["10.6.0.12-10.6.0.20"]),
        before=pool(used="10.6.0.10"),
        said=("spec.ips: Forbidden: would leave out what is in use: 10.6.0.10 of ns/p",),
    ),
    Refusal(
        name="pool that excludes what is in use",
        new=pool(excludeIPs=["10.6.0.10"]),
        before=pool(used="10.6.0.10"),
        said=("spec.excludeIPs: Forbidden: would leave out what is in use: 10.6.0.10 of ns/p",),
    ),
    Refusal(
        name="pool whose records cannot be read",
        new=pool(ips=["10.6.0.12-10.6.0.20"]),
        before={**pool(), "status": {"allocatedIPs": "{"}},
        said=("spec.ips: Forbidden: nothing can be taken out, status.allocatedIPs: ",),
    ),
    Refusal(
        name="pool that moves to another subnet",
        new=pool(subnet="10.6.0.0/17"),
        before=pool(),
        said=('spec.subnet: Invalid value: "10.6.0.0/17": it is 10.6.0.0/16 and never changes',),
        by_schema=('spec.subnet: Invalid value: "10.6.0.0/17": it never changes',),
    ),
    Refusal(
        name="pool that was written otherwise",
        new=pool(subnet="10.6.0.1/16"),
        before=pool(),
        said=('spec.subnet: Invalid value: "10.6.0.1/16": write the network as 10.6.0.0/16',),
        by_schema=('spec.subnet: Invalid value: "10.6.0.1/16": it never changes',),
    ),
    Refusal(
        name="pool that changes its family",
        new=pool(ipVersion=6),
        before=pool(ipVersion=4),
        said=(
            "spec.ipVersion: Invalid value: 6: spec.subnet 10.6.0.0/16 is IPv4",
            "spec.ipVersion: Invalid value: 6: it is 4 and never changes",
        ),
        by_schema=(_FAMILY, "spec.ipVersion: Invalid value: 6: it never changes"),
    ),
    Refusal(
        name="pool that is being deleted",
        new=pool(disable=True),
        before=going(pool()),
        said=("spec: Forbidden: the pool is being deleted",),
    ),
    Refusal(
        name="pool in use that is deleted",
        new=pool(used="10.6.0.10"),
        delete=True,
        guarded=True,
        said=("status.allocatedIPCount: Forbidden: 1 addresses are in use",),
    ),
    Refusal(
        name="automatic pool for other pods",
        new=automatic(ips=[], podAffinity={"matchLabels": {"app": "x"}}),
        said=("spec.podAffinity.matchLabels: Forbidden: app: the pool is an application's",),
    ),
    Refusal(
        name="automatic pool with expressions",
        new=automatic(ips=[], podAffinity={"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
        said=("spec.podAffinity.matchExpressions: Forbidden: the pool is an application's",),
    ),
    Refusal(
        name="automatic pool that is made bigger by hand",
        new=automatic(),
        said=("spec.ips: Forbidden: the pool was made for an application, whose annotation",),
        there=(subnet("lan"),),
    ),
    Refusal(
        name="pool across a SpiderSubnet",
        new=pool(subnet="10.6.4.0/24", ips=[]),
        said=('spec.subnet: Invalid value: "10.6.4.0/24": overlaps 10.6.0.0/16 of SpiderSubnet lan',),
        there=(subnet("lan"),),
    ),
    Refusal(
        name="pool of a SpiderSubnet that is being deleted",
        new=pool(),
        said=("spec.subnet: Forbidden: SpiderSubnet lan is being deleted",),
        there=(going(subnet("lan")),),
    ),
    Refusal(
        name="pool of more than its SpiderSubnet has",
        new=pool(ips=["10.6.0.98-10.6.0.100"]),
        said=('spec.ips: Invalid value: ["10.6.0.98-10.6.0.100"]: SpiderSubnet lan does not have 10.6.0.100',),
        there=(subnet("lan"),),
    ),
    Refusal(
        name="pool of what an application has of its SpiderSubnet",
        new=pool(ips=["10.6.0.19-10.6.0.21"]),
        said=(
            'spec.ips: Invalid value: "10.6.0.19": SpiderIPPool auto has these addresses',
            'spec.ips: Invalid value: ["10.6.0.19-10.6.0.21"]: SpiderSubnet lan has given 10.6.0.19 to SpiderIPPool',
        ),
        there=(_BOOKED, _AUTO),
    ),
    Refusal(
        name="subnet of a family that is off",
        new=subnet(subnet="fd00:6::/64", ips=[]),
        said=("spec.ipVersion: Invalid value: 6: IPv6 is switched off: enableIPv6 in conf.yml",),
        off=(6,),
    ),
    Refusal(
        name="subnet that overlaps another",
        new=subnet(),
        said=('spec.subnet: Invalid value: "10.6.0.0/16": overlaps 10.6.4.0/24 of SpiderSubnet other',),
        there=(subnet("other", subnet="10.6.4.0/24", ips=[]),),
    ),
    Refusal(
        name="subnet that overlaps a pool's",
        new=subnet(),
        said=('spec.subnet: Invalid value: "10.6.0.0/16": overlaps 10.6.4.0/24 of SpiderIPPool other',),
        there=(pool("other", subnet="10.6.4.0/24", ips=[]),),
    ),
    Refusal(
        name="subnet without what a pool has",
        new=subnet(),
        said=('spec.ips: Invalid value: ["10.6.0.10-10.6.0.99"]: lacks 10.6.0.100, which SpiderIPPool other has',),
        there=(pool("other", ips=["10.6.0.100"]),),
    ),
    Refusal(
        name="subnet that leaves out what a pool has",
        new=subnet("lan", ips=["10.6.0.12-10.6.0.99"]),
        before=_BOOKED,
        there=(_AUTO,),
        said=("spec.ips: Forbidden: would leave out 10.6.0.10-10.6.0.11, which SpiderIPPool auto has",),
    ),
    Refusal(
        name="subnet that is being deleted",
        new=subnet(gateway="10.6.0.1"),
        before=going(subnet()),
        said=("spec: Forbidden: the subnet is being deleted",),
    ),
    Refusal(
        name="subnet with pools that is deleted",
        new=_BOOKED,
        there=(_AUTO,),
        delete=True,
        guarded=True,
        said=("status.allocatedIPCount: Forbidden: 10 addresses are pools'",),
    ),
    Refusal(
        name="reservation of nothing",
        new=reserved(),
        said=("spec.ipVersion: Required value: 4 or 6, where spec.ips is empty",),
    ),
    Refusal(
        name="reservation of two families",
        new=reserved(ips=["10.6.0.1", "fd00:6::1"]),
        said=('spec.ips[1]: Invalid value: "fd00:6::1": an IPv6 address where IPv4 is expected',),
    ),
    Refusal(
        name="reservation of a family that is off",
        new=reserved(ips=["fd00:6::1"]),
        said=("spec.ipVersion: Invalid value: 6: IPv6 is switched off: enableIPv6 in conf.yml",),
        off=(6,),
    ),
    Refusal(
        name="reservation that changes its family",
        new=reserved(ipVersion=6),
        before=reserved(ipVersion=4),
        said=("spec.ipVersion: Invalid value: 6: it is 4 and never changes",),
        by_schema=("spec.ipVersion: Invalid value: 6: it never changes",),
    ),
    Refusal(
        name="reservation that is being deleted",
        new=reserved(ips=["10.6.0.2"]),
        before=going(reserved(ips=["10.6.0.1"])),
        said=("spec: Forbidden: the object is being deleted",),
    ),
    Refusal(
        name="coordinator that does not say where pods' addresses come from",
        new=coordinator(),
        said=("spec.podCIDRType: Required value: where the CIDRs of pods are read from",),
    ),
    Refusal(
        name="network of another's name",
        new=network(),
        said=('metadata.name: Duplicate value: "refused": SpiderMultusConfig other makes the definition',),
        there=(network("other", notes={MULTUS_CR_NAME: "refused"}),),
    ),
    Refusal(
        name="network of a definition that is somebody's",
        new=network(),
        said=('metadata.name: Duplicate value: "refused": the definition of this name is ConfigMap somebody',),
        there=(_THEIRS,),
    ),
    Refusal(
        name="network that is renamed",
        new=network(notes={MULTUS_CR_NAME: "two"}),
        before=network(),
        said=(
            'metadata.annotations[multus.spidernet.io/cr-name]: Invalid value: "two": it is absent, and can be removed',
        ),
    ),
    Refusal(
        name="network that is being deleted",
        new=network(spec={"cniType": "macvlan", "macvlan": {"master": ["eth1"]}}),
        before=going(network()),
        said=("spec: Forbidden: the object is being deleted",),
    ),
]

REFUSALS: Final = (*_BY_THEMSELVES, *_FOR_WHAT_THERE_IS)
