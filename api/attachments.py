"""From a SpiderMultusConfig to the NetworkAttachmentDefinition that pods name. Pure.

The text is byte for byte what the original's controller writes, key by key in its order, so that a cluster that moves
over keeps its definitions as they are. The order of the plugins matters, too: those that are chained see the NIC before
the coordinator reads what it is like.

Of the coordinator's settings `hostRuleTable`, and `podRPFilter` without `podCIDRType`, go into the text only where they
differ from the CRD's defaults: the API server fills those in, so a default says nothing, and what the SpiderCoordinator
has is to hold then.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from api.annotations import CNI_CONFIG_NAME, MULTUS_CNI_VERSION, MULTUS_CR_NAME, NETWORK_RESOURCE
from api.coordinator import CoordinatorSpec
from api.kinds import MULTUSCONFIG
from api.meta import ObjectMeta, OwnerReference
from api.multusconfig import (
    BondConfig,
    IBSriovConfig,
    IPvlanConfig,
    MacvlanConfig,
    MultusConfigSpec,
    OvsConfig,
    SpiderMultusConfig,
    SpiderpoolPools,
    SriovConfig,
    Trunk,
    VlanConfig,
)
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec

CNI_VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
"""That a definition may be of."""
DEFAULT_CNI_VERSION: Final = "0.3.1"
OVS_RESOURCES: Final = "ovs-cni.network.kubevirt.io"
"""Under which OVS's device plugin knows a bridge with hardware offload."""
CLIENTS_NOTES: Final = "kubectl.kubernetes.io/"
"""Annotations that clients keep for themselves: they are about the object that they are on, and are not copied."""

_DEFAULT = CoordinatorSpec()

type _Json = dict[str, Any]
type Parts = list[_Json]


def attachment_name(config: SpiderMultusConfig) -> str:
    """The name of its definition, in its own namespace."""
    return config.metadata.annotations.get(MULTUS_CR_NAME) or config.metadata.name


def provided_master(config: SpiderMultusConfig) -> str:
    """The node's interface below NICs whose VLAN id comes with their address; empty where theirs does not."""
    block = config.spec.vlan
    if config.spec.cni_type != "vlan" or block is None or block.vlan_mode != "auto":
        return ""
    if block.bond is not None and len(block.master) > 1:
        return block.bond.name
    return block.master[0] if block.master else ""  # one that nobody has judged


def attachment(config: SpiderMultusConfig) -> NetworkAttachmentDefinition:
    """The definition of a valid SpiderMultusConfig, with or without its defaults filled in."""
    meta = config.metadata
    name = attachment_name(config)
    owner = OwnerReference(
        api_version=MULTUSCONFIG.api_version,
        kind=MULTUSCONFIG.kind,
        name=meta.name,
        uid=meta.uid,
        controller=True,
        block_owner_deletion=True,
    )
    resource = _resource(config.spec)
    return NetworkAttachmentDefinition(
        metadata=ObjectMeta(
            name=name,
            namespace=meta.namespace,
            annotations=copied(meta.annotations) | ({NETWORK_RESOURCE: resource} if resource else {}),
            owner_references=[owner],
        ),
        spec=NetworkAttachmentSpec(config=_config(config, name)),
    )


def copied(annotations: Mapping[str, str]) -> dict[str, str]:
    """Those that go from one object to the other."""
    return {key: value for key, value in annotations.items() if not key.startswith(CLIENTS_NOTES)}


def _config(config: SpiderMultusConfig, name: str) -> str:
    spec, notes = config.spec, config.metadata.annotations
    if spec.cni_type in {None, "custom"}:
        return spec.custom_cni or ""
    plugins = [*_main(spec), *map(_chained, spec.chain_cni_json_data)]
    if spec.enable_coordinator is not False:
        plugins.append(_coordinator(spec.coordinator or _DEFAULT))
    if spec.sriov is not None and spec.sriov.mtu:
        plugins.append({"type": "tuning", "mtu": spec.sriov.mtu})
    return _text(
        {
            "cniVersion": notes.get(MULTUS_CNI_VERSION) or DEFAULT_CNI_VERSION,
            "name": notes.get(CNI_CONFIG_NAME) or name,
            "plugins": plugins,
        }
    )


def _main(spec: MultusConfigSpec) -> Parts:
    """What makes the NIC, with what has to be done before and directly after it."""
    match spec.cni_type:
        case "macvlan" if spec.macvlan is not None:
            return _on_master(spec.macvlan, {"type": "macvlan"}, {"mode": "bridge"}, spec)
        case "ipvlan" if spec.ipvlan is not None:
            return _on_master(spec.ipvlan, {"type": "ipvlan"}, {}, spec)
        case "vlan" if spec.vlan is not None:
            return _vlan(spec.vlan, spec)
        case "sriov" if spec.sriov is not None:
            return _sriov(spec.sriov, spec)
        case "ib-sriov" if spec.ibsriov is not None:
            return [_ib_sriov(spec.ibsriov, spec)]
        case "ipoib" if spec.ipoib is not None:
            return [{"type": "ipoib", "master": spec.ipoib.master, **_ipam(spec.ipoib.ippools, spec)}]
        case "ovs" if spec.ovs is not None:
            return [_ovs(spec.ovs, spec)]
        case _:
            msg = f"cniType {spec.cni_type} has no block of its own"
            raise ValueError(msg)


def _on_master(block: MacvlanConfig | IPvlanConfig, kind: _Json, mode: _Json, spec: MultusConfigSpec) -> Parts:
    vlan = block.vlan_id or 0
    base, before = _base(block.master, block.bond, vlan)
    master = f"{base}.{vlan}" if vlan else base
    return [*before, {**kind, "master": master, **mode, "mtu": block.mtu or 0, **_ipam(block.ippools, spec)}]


def _vlan(block: VlanConfig, spec: MultusConfigSpec) -> Parts:
    base, before = _base(block.master, block.bond, 0)
    plugin: _Json = {"type": "vlan", "master": base, "vlanMode": block.vlan_mode or "manual"}
    if plugin["vlanMode"] == "manual":
        plugin["vlanId"] = block.vlan_id or 0
    return [*before, {**plugin, "mtu": block.mtu or 0, **_ipam(block.ippools, spec)}]


def _base(masters: list[str], bond: BondConfig | None, vlan: int) -> tuple[str, Parts]:
    """What of the node the NIC stands on, but for a VLAN, and what sees to it that it is there."""
    several = len(masters) > 1
    if not several and not vlan:
        return masters[0], []
    plugin: _Json = {"vlanID": vlan} if vlan else {}
    plugin |= {"type": "ifacer", "interfaces": masters}
    if bond is None or not several:
        return masters[0], [plugin]
    options = {"options": bond.options} if bond.options else {}
    return bond.name, [plugin | {"bond": {"name": bond.name, "mode": bond.mode, **options}}]


def _sriov(block: SriovConfig, spec: MultusConfigSpec) -> Parts:
    more = {
        "spoofchk": block.spoofchk,
        "trust": block.trust,
        "link_state": block.link_state,
        "vlanQoS": block.vlan_qos,
        "vlanProto": block.vlan_proto,
    }
    plugin = {
        "vlan": block.vlan_id or 0,
        "min_tx_rate": block.min_tx_rate_mbps or 0,
        "max_tx_rate": block.max_tx_rate_mbps or 0,
        "type": "sriov",
        **{key: value for key, value in more.items() if value is not None},
        **_ipam(block.ippools, spec),
    }
    return [plugin, *([{"type": "rdma"}] if block.rdma_isolation else [])]


def _ib_sriov(block: IBSriovConfig, spec: MultusConfigSpec) -> _Json:
    return {
        "type": "ib-sriov",
        "pkey": block.pkey or "",
        "link_state": block.link_state or "enable",
        "rdmaIsolation": block.rdma_isolation is not False,
        "ibKubernetesEnabled": bool(block.enable_ib_kubernetes),
        **_ipam(block.ippools, spec),
    }


def _ovs(block: OvsConfig, spec: MultusConfigSpec) -> _Json:
    return {
        "vlan": block.vlan or 0,
        "type": "ovs",
        "bridge": block.bridge,
        **({"deviceID": block.device_id} if block.device_id else {}),
        **_ipam(block.ippools, spec),
        **({"trunk": [_trunk(one) for one in block.trunk]} if block.trunk else {}),
    }


def _trunk(trunk: Trunk) -> _Json:
    given = {"minID": trunk.min_id, "maxID": trunk.max_id, "id": trunk.id}
    return {key: value for key, value in given.items() if value is not None}


def _ipam(pools: SpiderpoolPools | None, spec: MultusConfigSpec) -> _Json:
    if spec.disable_ipam:
        return {}
    block: _Json = {"type": "spiderpool"}
    if pools is not None:
        block |= _without_empty({"default_ipv4_ippool": pools.ipv4, "default_ipv6_ippool": pools.ipv6})
        block |= _without_empty({"match_master_subnet": pools.match_master_subnet})
    return {"ipam": block}


def _coordinator(spec: CoordinatorSpec) -> _Json:
    filtered = spec.pod_cidr_type is not None or spec.pod_rp_filter != _DEFAULT.pod_rp_filter
    table = spec.host_rule_table if spec.host_rule_table != _DEFAULT.host_rule_table else None
    return {
        "txQueueLen": spec.tx_queue_len or 0,
        **_without_empty({"vethLinkAddress": spec.veth_link_address, "vethMTU": spec.veth_mtu}),
        "tunePodRoutes": spec.tune_pod_routes is not False,
        **_without_empty({"podMACPrefix": spec.pod_mac_prefix}),
        "mode": spec.mode or "auto",
        "type": "coordinator",
        **_without_empty({"podDefaultRouteNic": spec.pod_default_route_nic}),
        **({"podRPFilter": spec.pod_rp_filter} if filtered and spec.pod_rp_filter is not None else {}),
        **_without_empty({"hijackCIDR": spec.hijack_cidr}),
        **_without_empty({"policyRoutes": [{"dst": route.dst, "gw": route.gw} for route in spec.policy_routes]}),
        **_without_empty({"hostRuleTable": table}),
    }


def _chained(text: str) -> _Json:
    """A plugin as its author wrote it; its keys in one order, so that the text is the same each time."""
    plugin: _Json = msgspec.json.decode(msgspec.json.encode(msgspec.json.decode(text), order="sorted"))
    return plugin


def _resource(spec: MultusConfigSpec) -> str:
    """What the kubelet gives out the NICs' devices as; empty where they have none."""
    match spec.cni_type:
        case "sriov" if spec.sriov is not None:
            return spec.sriov.resource_name
        case "ib-sriov" if spec.ibsriov is not None:
            return spec.ibsriov.resource_name
        case "ovs" if spec.ovs is not None and spec.ovs.device_id:
            return f"{OVS_RESOURCES}/{spec.ovs.bridge}"
        case _:
            return ""


def injected_resource(spec: MultusConfigSpec) -> str:
    """What a pod has to ask the kubelet for to get such a NIC, or RDMA over it; empty where there is no such thing."""
    match spec.cni_type:
        case "macvlan" | "ipvlan" | "vlan":
            block = {"macvlan": spec.macvlan, "ipvlan": spec.ipvlan, "vlan": spec.vlan}[spec.cni_type]
            return (block.rdma_resource_name or "") if block is not None else ""
        case "sriov" | "ib-sriov":
            return _resource(spec)
        case _:
            return ""


def pools_of(spec: MultusConfigSpec) -> SpiderpoolPools | None:
    """The pools that its block names."""
    blocks: Iterable[Any] = (spec.macvlan, spec.ipvlan, spec.vlan, spec.sriov, spec.ovs, spec.ibsriov, spec.ipoib)
    return next((block.ippools for block in blocks if block is not None), None)


def _without_empty(tree: _Json) -> _Json:
    return {key: value for key, value in tree.items() if value}


def _text(tree: _Json) -> str:
    return msgspec.json.encode(tree).decode()
