"""The networks of a pod as lists of plugins to call: what a meta plugin makes of annotations and definitions.

Pure, except that a definition without a configuration of its own means a file of the node's.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface

import msgspec
from msgspec import Struct

from actors.node.nic import subject
from api.wire import NetworkDefinition, Networked
from cni.config import RuntimeConfig, decode_config, shown
from cni.conflist import Asked, ConfList, for_plugin, read_conflist
from cni.delegate import DelegateFailed
from cni.errors import CniError, InvalidConfig
from cni.journal import Attached, JournalEntry
from cni.protocol import IPAM_TYPE, LINK_KINDS, PLUGIN_TYPES, Invocation, PodArgs, Role, Verb, check_version, role_of
from cni.result import DEFAULT_ROUTES, Result, RouteConfig

type Made = tuple[str, str]
"""A plugin: the interface that it is called for, and its configuration."""

type Find = Callable[[str], ConfList | None]
"""The node's own configuration of that name."""

_NOTHING = Asked()


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
        """Whether its CNI version has the verb CHECK, and a DEL that is told what ADD answered."""
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
    everything = networked.networks if networked.default is None else (networked.default, *networked.networks)
    _refuse_rivals(everything)
    directed = any(one.default_route for one in everything)
    its_own = () if networked.default is None else networked.default.default_route
    first = _first(invocation, networked.default, find=find, device=device, gateways=its_own if directed else None)
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


def _refuse_rivals(networks: Sequence[NetworkDefinition]) -> None:
    for version in DEFAULT_ROUTES:
        rivals = [
            f"{gateway} ({one.namespace}/{one.name})"
            for one in networks
            for gateway in one.default_route
            if ip_address(gateway).version == version
        ]
        if len(rivals) > 1:
            raise InvalidConfig(f"default-route {' and '.join(rivals)}: a pod has one IPv{version} default route")


def _first(
    invocation: Invocation,
    default: NetworkDefinition | None,
    *,
    find: Find,
    device: Callable[[str], str],
    gateways: tuple[str, ...] | None,
) -> Attached:
    given = _given(invocation.conf.runtime_config)
    if default is not None:
        return _defined(
            default, invocation.ifname, invocation.version, find=find, device=device, gateways=gateways, given=given
        )
    name = invocation.conf.cluster_network
    if not name:
        alone = msgspec.structs.replace(invocation.conf, networks=False)
        return Attached(
            ifname=invocation.ifname,
            name=alone.name,
            plugins=(msgspec.json.encode(alone).decode(),),
            gateways=gateways,
        )
    found = cluster_network(name, find)
    plugins = _plugins(found, given, invocation.version, where=f"clusterNetwork {shown(name)}")
    return Attached(
        ifname=invocation.ifname,
        name=found.name,
        plugins=plugins,
        gateways=gateways,
        unchecked=found.disable_check,
    )


def cluster_network(name: str, find: Find) -> ConfList:
    """The list of a `clusterNetwork`. Raises `InvalidConfig`: this node has none of the name."""
    found = find(name)
    if found is None:
        raise InvalidConfig(f"clusterNetwork: this node has no CNI configuration of the name {shown(name)}")
    return found


def _given(runtime: RuntimeConfig) -> Asked:
    """What the runtime wants of the first interface, whoever makes that."""
    return Asked(
        ips=runtime.ips,
        mac=runtime.mac,
        device_id=runtime.device_id,
        bandwidth={} if runtime.bandwidth is None else msgspec.to_builtins(runtime.bandwidth),
        port_mappings=list(runtime.port_mappings),
    )


def _defined(
    network: NetworkDefinition,
    ifname: str,
    version: str,
    *,
    find: Find,
    device: Callable[[str], str],
    gateways: tuple[str, ...] | None,
    given: Asked = _NOTHING,
) -> Attached:
    """`given` counts where the pod's annotation does not say."""
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
        ips=network.ips or given.ips,
        mac=network.mac or given.mac,
        device_id=network.device_id or (device(network.resource) if network.resource else "") or given.device_id,
        cni_args=msgspec.json.decode(network.cni_args) if network.cni_args else {},
        bandwidth=msgspec.json.decode(network.bandwidth) if network.bandwidth else given.bandwidth,
        port_mappings=msgspec.json.decode(network.port_mappings) if network.port_mappings else given.port_mappings,
        infiniband_guid=network.infiniband_guid,
    )
    plugins = _plugins(conflist, asked, version, where=where)
    return Attached(
        ifname=ifname,
        network=ref,
        name=conflist.name,
        plugins=plugins,
        gateways=gateways,
        unchecked=conflist.disable_check,
    )


def _plugins(conflist: ConfList, asked: Asked, version: str, *, where: str) -> tuple[str, ...]:
    """Their configurations. What is wrong with those that are ours is said before anything is done."""
    found = []
    for at, plugin in enumerate(conflist.plugins):
        call = Call(for_plugin(conflist, at, asked, version=version, ours=Call(plugin).ours))
        call.conf.pop("networks", None)
        if call.ours:
            try:
                check_version(Verb.ADD, call.conf["cniVersion"])
                role_of(call.type, decode_config(call.conf))
            except CniError as error:
                error.about(where)
                raise
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


def directed(result: Result, gateways: Sequence[str]) -> tuple[Result, tuple[str, ...]]:
    """What a plugin of somebody else's has made with default routes by these next hops, and those it can have.

    It can have those of the IP versions that it has addresses of.
    """
    versions = {ip_interface(ip.address).version for ip in result.ips}
    able = tuple(one for one in gateways if ip_address(one).version in versions)
    routes = [one for one in result.routes if one.dst not in DEFAULT_ROUTES.values()]
    routes += [RouteConfig(dst=DEFAULT_ROUTES[ip_address(one).version], gw=one) for one in able]
    return msgspec.structs.replace(result, routes=tuple(routes)), able


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
    found = [route.gw for route in result.routes if route.dst in DEFAULT_ROUTES.values() and route.gw]
    return sorted(dict.fromkeys(found), key=lambda text: (ip_address(text).version, text))


def head_of(record: JournalEntry) -> Invocation:
    """The DEL of the first interface as a runtime would call it."""
    pod = record.pod
    return Invocation(
        verb=Verb.DEL,
        type="",
        container_id=record.container_id,
        netns=record.netns,
        ifname=record.ifname,
        args=PodArgs(namespace=pod.namespace, name=pod.name, uid=pod.uid),
        path=record.path,
        arguments=record.arguments,
    )


def of_entry(head: Invocation, entry: JournalEntry) -> Invocation:
    """The DEL of an interface that came with the first one."""
    return msgspec.structs.replace(head, ifname=entry.ifname, role=Role.MAIN, head=head.ifname)


def was_not_made(error: Exception, plugin: Made, made: Collection[Made] | None) -> bool:
    """Whether the DEL of a plugin need not succeed, behind an ADD of the pod that did not.

    `made` are those that have done their part; None: that is not known. What another one says is of no interest, as
    with Multus: it may refuse its configuration for ever, in a code that does not say so.
    """
    if isinstance(error, InvalidConfig):
        return True  # what cannot be called now could not be called then
    if not isinstance(error, DelegateFailed):
        return False
    return error.refused if made is None else plugin not in made


@contextmanager
def naming_network(one: Attached) -> Iterator[None]:
    """Have an error say which network it is about."""
    try:
        yield
    except CniError as error:
        error.about(subject_of(one))
        raise


def subject_of(one: Attached) -> str:
    """How errors name it."""
    return subject(one.network or one.name, one.ifname)
