"""The networks of a pod as lists of plugins to call: what a meta plugin makes of annotations and definitions.

Pure, except that a definition without a configuration of its own means a file of the node's.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address

import msgspec
from msgspec import Struct

from api.wire import NetworkDefinition, Networked
from cni.config import decode_config, shown
from cni.conflist import Asked, ConfList, for_plugin, read_conflist
from cni.errors import InvalidConfig
from cni.journal import Attached
from cni.protocol import IPAM_TYPE, LINK_KINDS, PLUGIN_TYPES, Invocation, Verb, role_of
from cni.result import Result

type Find = Callable[[str], ConfList | None]
"""The node's own configuration of that name."""


class Call(Struct, frozen=True):
    """One plugin of a list."""

    conf: dict[str, object]
    """Without prevResult."""

    @property
    def type(self) -> str:
        """The plugin's."""
        return str(self.conf.get("type"))

    @property
    def ours(self) -> bool:
        """Whether it is done in this process; everything else is executed."""
        if self.type not in PLUGIN_TYPES:
            return False
        ipam = self.conf.get("ipam")
        kind = ipam.get("type", "") if isinstance(ipam, dict) else ""
        return self.type not in LINK_KINDS or kind in {"", IPAM_TYPE}

    @property
    def checks(self) -> bool:
        """Whether its CNI version has the verb CHECK."""
        return str(self.conf.get("cniVersion")) not in {"0.1.0", "0.2.0", "0.3.0", "0.3.1"}


def chains(
    invocation: Invocation, networked: Networked, *, find: Find, device: Callable[[str], str]
) -> tuple[Attached, ...]:
    """What to attach, the first interface first.

    Args:
        invocation: the meta plugin's call.
        networked: what the pod names.
        find: for definitions without a configuration, and for `clusterNetwork`.
        device: takes the next device of a device plugin's resource that the kubelet gave the pod. Raises `CniError`.

    Raises:
        CniError: something of it cannot be.
    """
    version = invocation.version
    directed = any(one.default_route for one in networked.networks)
    first = _first(invocation, networked.default, find=find, device=device, gateways=() if directed else None)
    found = [first]
    taken = {invocation.ifname}
    for one in networked.networks:
        if one.interface in taken:
            msg = f"network {one.namespace}/{one.name}: interface {one.interface} is another network's"
            raise InvalidConfig(msg)
        taken.add(one.interface)
        gateways = one.default_route if directed else None
        found.append(_defined(one, one.interface, version, find=find, device=device, gateways=gateways))
    return tuple(found)


def _first(
    invocation: Invocation,
    default: NetworkDefinition | None,
    *,
    find: Find,
    device: Callable[[str], str],
    gateways: tuple[str, ...] | None,
) -> Attached:
    if default is not None:
        return _defined(default, invocation.ifname, invocation.version, find=find, device=device, gateways=gateways)
    name = invocation.conf.cluster_network
    if not name:
        alone = msgspec.structs.replace(invocation.conf, networks=False)
        return Attached(
            ifname=invocation.ifname,
            name=alone.name,
            plugins=(msgspec.json.encode(alone).decode(),),
            gateways=gateways,
        )
    found = find(name)
    if found is None:
        raise InvalidConfig(f"clusterNetwork: this node has no CNI configuration of the name {shown(name)}")
    plugins = _plugins(found, Asked(), invocation.version)
    return Attached(ifname=invocation.ifname, name=found.name, plugins=plugins, gateways=gateways)


def _defined(
    network: NetworkDefinition,
    ifname: str,
    version: str,
    *,
    find: Find,
    device: Callable[[str], str],
    gateways: tuple[str, ...] | None,
) -> Attached:
    ref = f"{network.namespace}/{network.name}"
    where = f"NetworkAttachmentDefinition {ref}"
    if network.config:
        conflist = read_conflist(network.config, where=f"{where}: spec.config", name=network.name)
    else:
        here = find(network.name)
        if here is None:
            msg = f"{where}: it has no spec.config, and this node has no CNI configuration of its name"
            raise InvalidConfig(msg)
        conflist = here
    asked = Asked(
        ips=network.ips,
        mac=network.mac,
        device_id=network.device_id or (device(network.resource) if network.resource else ""),
        cni_args=msgspec.json.decode(network.cni_args) if network.cni_args else {},
        bandwidth=msgspec.json.decode(network.bandwidth) if network.bandwidth else {},
        port_mappings=msgspec.json.decode(network.port_mappings) if network.port_mappings else [],
        infiniband_guid=network.infiniband_guid,
    )
    plugins = _plugins(conflist, asked, version)
    return Attached(ifname=ifname, network=ref, name=conflist.name, plugins=plugins, gateways=gateways)


def _plugins(conflist: ConfList, asked: Asked, version: str) -> tuple[str, ...]:
    found = []
    for at, plugin in enumerate(conflist.plugins):
        call = Call(for_plugin(conflist, at, asked, version=version, ours=Call(plugin).ours))
        call.conf.pop("networks", None)
        if call.ours:
            role_of(call.type, decode_config(call.conf))  # before anything is done
        found.append(msgspec.json.encode(call.conf).decode())
    return tuple(found)


def calls(attached: Attached) -> list[Call]:
    """The plugins of an attachment."""
    return [Call(msgspec.json.decode(text)) for text in attached.plugins]


def invocation_of(
    head: Invocation, verb: Verb, attached: Attached, call: Call, *, previous: Result | None = None
) -> Invocation:
    """A plugin of ours as if the runtime had called it. `head` has the interfaces of all networks as its `nics`.

    Raises:
        CniError: its configuration cannot be.
    """
    goes = verb is Verb.DEL
    conf = decode_config(call.conf, lenient=goes)
    return Invocation(
        verb=verb,
        type=call.type,
        role=role_of(call.type, conf, goes=goes),
        container_id=head.container_id,
        netns=head.netns,
        ifname=attached.ifname,
        args=head.args,
        conf=conf,
        prev_result=previous,
        path=head.path,
        arguments=head.arguments,
        gateways=attached.gateways,
        nics=head.nics,
        head="" if attached.ifname == head.ifname else head.ifname,
        multus=attached.network,
        traceparent=head.traceparent,
    )


def main_of(attached: Attached) -> Call | None:
    """The plugin that makes the interface, if it is one of ours."""
    for call in calls(attached):
        if not call.ours:
            return None
        if call.type in LINK_KINDS:
            return call
    return None


def network_status(networks: Sequence[Attached]) -> str:
    """The annotation `k8s.v1.cni.cncf.io/network-status` as Multus writes it: a JSON list, in their order."""
    status = []
    for at, one in enumerate(networks):
        result = one.result or Result()
        mine = next((face for face in result.interfaces if face.sandbox and face.name == one.ifname), None)
        said: dict[str, object] = {"name": one.network or one.name, "interface": one.ifname}
        said["ips"] = [ip.address.partition("/")[0] for ip in result.ips]
        if mine is not None:
            said |= {"mac": mine.mac} if mine.mac else {}
            said |= {"mtu": mine.mtu} if mine.mtu else {}
            said |= {"device-info": {"type": "pci", "pci": {"pci-address": mine.pci_id}}} if mine.pci_id else {}
        if at == 0:
            said["default"] = True
        said["dns"] = msgspec.to_builtins(result.dns)
        gateways = _gateways(result)
        if gateways:
            said["gateway"] = gateways
        status.append(said)
    return msgspec.json.format(msgspec.json.encode(status), indent=4).decode()


def _gateways(result: Result) -> list[str]:
    found = [route.gw for route in result.routes if route.dst in {"0.0.0.0/0", "::/0"} and route.gw]
    return sorted(dict.fromkeys(found), key=lambda text: (ip_address(text).version, text))
