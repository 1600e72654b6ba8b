"""The plugin's JSON as it comes on stdin.

Keys that we don't know are let through, since libcni and Multus add some; a known key of the wrong type is refused
with its name and its value.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from api.networks import Bandwidth
from api.route import Route
from cni.errors import DecodeFailure, InvalidConfig

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_SHOWN = 80
_EVERY_PLUGINS = frozenset({"cniVersion", "name", "type", "args", "runtimeConfig", "prevResult", "ipam", "dns"})
"""Keys that say nothing about what the plugin does."""

Count = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
"""The kernel has no larger ones."""
VlanId = Annotated[int, Meta(ge=0, le=4094)]
BondMode = Annotated[int, Meta(ge=0, le=6)]
Priority = Annotated[int, Meta(ge=0, le=7)]
Rate = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]


class IpamConfig(Struct, frozen=True, kw_only=True):
    """The `ipam` block. The log keys are known so that their types are not questioned; the agent has its own log."""

    type: str = ""
    default_ipv4_ippool: tuple[str, ...] = ()
    default_ipv6_ippool: tuple[str, ...] = ()
    clean_gateway: bool = False
    match_master_subnet: bool = False
    ipam_unix_socket_path: str = ""
    log_level: str = ""
    log_file_path: str = ""
    log_file_max_size: int | str = 0
    log_file_max_age: int | str = 0
    log_file_max_count: int | str = 0


class Attachment(Struct, frozen=True, kw_only=True):
    """One attachment that the runtime still knows (GC)."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class RuntimeConfig(Struct, frozen=True, kw_only=True):
    """What the runtime adds for the capabilities that the plugin declared."""

    mac: str = ""
    ips: tuple[str, ...] = ()
    device_id: str = msgspec.field(name="deviceID", default="")
    bandwidth: Bandwidth | None = None
    port_mappings: tuple[dict[str, Any], ...] = msgspec.field(name="portMappings", default=())
    """Ports of the node that lead to the pod: for plugins of somebody else's that make its first interface."""


class CniArgs(Struct, frozen=True, kw_only=True):
    """`args.cni`, the older way to hand a value to a plugin."""

    mac: str = ""
    ips: tuple[str, ...] = ()


class Args(Struct, frozen=True, kw_only=True):
    """`args`."""

    cni: CniArgs = CniArgs()


class CoordinatorConfig(Struct, frozen=True, kw_only=True, rename="camel"):
    """The `coordinator` block: the keys of the original's chained plugin of that name.

    An absent or empty one means the cluster's setting. The keys without effect are known so that their types are not
    questioned.
    """

    mode: str = ""
    """auto, underlay, overlay, or disabled (also spelt disable)."""
    pod_default_cni_nic: str = ""
    """Name of the pod's first interface; empty means eth0."""
    overlay_pod_cidr: tuple[str, ...] = msgspec.field(name="overlayPodCIDR", default=())
    service_cidr: tuple[str, ...] = msgspec.field(name="serviceCIDR", default=())
    hijack_cidr: tuple[str, ...] = msgspec.field(name="hijackCIDR", default=())
    policy_routes: tuple[Route, ...] = ()
    tune_pod_routes: bool | None = None
    """Of pods with several interfaces: whether packets from an interface's address leave by it."""
    pod_default_route_nic: str = ""
    """Of pods with several interfaces: the one that the default route goes by; empty means the first."""
    hijack_in_policy_tables: bool | None = None
    """Whether the tables of further interfaces have the routes to Services and overlay pods, too; None means yes."""
    host_rule_table: int | None = None
    pod_rp_filter: int | None = msgspec.field(name="podRPFilter", default=None)
    host_rp_filter: int | None = msgspec.field(name="hostRPFilter", default=None)
    """No effect, as with the original: the agent sets the node's."""
    tx_queue_len: Count | None = None
    pod_mac_prefix: str = msgspec.field(name="podMACPrefix", default="")
    veth_link_address: str = ""
    veth_mtu: int | None = msgspec.field(name="vethMTU", default=None)
    """Bytes."""


class BondConfig(Struct, frozen=True, kw_only=True):
    """The `bond` block of the plugin `ifacer`."""

    name: str = ""
    mode: BondMode = 0
    options: str = ""
    """"miimon=100;primary=eth1"."""


class Dns(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Resolver settings, passed through."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class NetConfig(Struct, frozen=True, kw_only=True):
    """One plugin's configuration."""

    cni_version: str = msgspec.field(name="cniVersion", default="")
    name: str = ""
    type: str = ""
    master: str = ""
    """The parent interface; empty means the device of the node's default route."""
    mode: str = ""
    mtu: Count = 0
    """Bytes; 0 means the parent's."""
    mac: str = ""
    link_in_container: bool = msgspec.field(name="linkInContainer", default=False)
    """Whether `master` is looked up in the container's namespace."""
    broadcast_queue_length: Count = msgspec.field(name="bcqueuelen", default=0)
    vlan_id: VlanId | None = msgspec.field(name="vlanId", default=None)
    """Spelt so for the plugin `vlan`."""
    vlan_id_of_parent: VlanId | None = msgspec.field(name="vlanID", default=None)
    """Spelt so for the plugin `ifacer`."""
    vlan_mode: str = msgspec.field(name="vlanMode", default="")
    """Of vlan: manual, or auto."""
    vlan_proto: str = msgspec.field(name="vlanProto", default="")
    """802.1q or 802.1ad."""
    device_id: str = msgspec.field(name="deviceID", default="")
    """Of sriov: the PCI address of the virtual function."""
    pci_bus_id: str = msgspec.field(name="pciBusID", default="")
    """The same, as Multus spells it for some plugins."""
    vlan: VlanId | None = None
    """Of sriov; 0 is none."""
    vlan_qos: Priority | None = msgspec.field(name="vlanQoS", default=None)
    min_tx_rate: Rate | None = None
    max_tx_rate: Rate | None = None
    """Mb/s; 0 is no limit."""
    spoofchk: str = ""
    trust: str = ""
    """on or off, both."""
    link_state: str = ""
    """auto, enable or disable."""
    interfaces: tuple[str, ...] = ()
    """Of ifacer: what the parent is made of."""
    bond: BondConfig | None = None
    """Of ifacer."""
    ipam: IpamConfig = IpamConfig()
    dns: Dns = Dns()
    coordinator: CoordinatorConfig | None = None
    """Whether a main plugin also connects the pod with its own node; None means no. Of the type `coordinator`: its own
    keys."""
    networks: bool = False
    """Whether this plugin also attaches the pod to the further networks that its annotations name."""
    cluster_network: str = msgspec.field(name="clusterNetwork", default="")
    """With `networks`: whose network makes the first interface of pods that name none. The name of a configuration in
    the node's folder; empty means this configuration."""
    args: Args = Args()
    runtime_config: RuntimeConfig = msgspec.field(name="runtimeConfig", default=RuntimeConfig())
    prev_result: dict[str, Any] | None = msgspec.field(name="prevResult", default=None)
    """As decoded; `cni.result.decode_result` reads it."""
    valid_attachments: tuple[Attachment, ...] | None = msgspec.field(name="cni.dev/valid-attachments", default=None)
    """GC only; None means that the key was absent, which must not be read as "none is valid"."""

    @property
    def vlan_tag(self) -> int | None:
        """The VLAN id of vlan and ifacer, in whichever spelling: plugins in Go take both."""
        return self.vlan_id if self.vlan_id is not None else self.vlan_id_of_parent


def decode_json(text: bytes) -> dict[str, Any]:
    """Read stdin as a JSON object, null values left out.

    Raises:
        DecodeFailure: it is none; the message says at which byte it stops making sense.
    """
    try:
        tree = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
        if "truncated" in problem:
            problem = f"it ends in the middle, at byte {len(text)}" if text else "it is empty"
        raise DecodeFailure("stdin is not the JSON of a network configuration", problem) from None
    if not isinstance(tree, Mapping):
        raise DecodeFailure("stdin is not a JSON object", f"it is a JSON {kind_of(tree)}: {shown(tree)}")
    return {key: value for key, value in tree.items() if value is not None}


def decode_config(tree: Mapping[str, Any], *, lenient: bool = False) -> NetConfig:
    """The typed configuration. `lenient` leaves out what cannot be, which has made nothing: a pod must be able to go.

    Raises:
        InvalidConfig: a value has the wrong type or is out of range, or `name` is missing or malformed.
    """
    tree = {key: value for key, value in tree.items() if value is not None}
    if tree.get("type") == "coordinator":
        tree["coordinator"] = {key: value for key, value in tree.items() if key not in _EVERY_PLUGINS}
    config = _converted(tree, lenient=lenient)
    if not config.name:
        raise InvalidConfig("name: missing from the network configuration")
    if not _NAME.fullmatch(config.name):
        raise InvalidConfig(f"name: {shown(config.name)} is not a network name", f"expected {_NAME.pattern}")
    return config


def _converted(tree: dict[str, Any], *, lenient: bool) -> NetConfig:
    try:
        return msgspec.convert(without_nulls(tree), NetConfig)
    except msgspec.ValidationError as error:
        name, value, problem = locate(error, tree)
        key = re.split(r"[.\[]", name)[0]
        if not lenient or key not in tree:
            raise InvalidConfig(f"{name}: {shown(value)} is not valid", problem) from None
    except RecursionError:
        raise InvalidConfig("the network configuration is nested too deeply") from None
    wrong = tree.pop(key)
    if key == "ipam" and isinstance(wrong, Mapping) and len(wrong) > 1:
        tree["ipam"] = {"type": wrong.get("type")}
    return _converted(tree, lenient=True)


def without_nulls(tree: object) -> object:
    """The same JSON without the keys whose value is null: Go writes and reads null as "not there"."""
    if isinstance(tree, Mapping):
        return {key: without_nulls(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list):
        return [without_nulls(value) for value in tree]
    return tree


def shown(value: object) -> str:
    """A value for a message: as JSON, cut when long."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def locate(error: msgspec.ValidationError, tree: object) -> tuple[str, object, str]:
    """What a validation error of msgspec is about: the field as a path, the value there, and the problem in words."""
    problem, _, path = str(error).partition(" - at `$")
    steps = re.findall(r"\[(\d+)\]|\.((?:cni\.dev/)?[^.\[`]+)", path.rstrip("`"))
    value = tree
    name = ""
    for index, key in steps:
        if index:
            name += f"[{index}]"
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
        else:
            name += f".{key}"
            value = value.get(key) if isinstance(value, Mapping) else None
    return name.lstrip("."), value, problem


def kind_of(value: object) -> str:
    """What a piece of JSON is, in JSON's own words."""
    if isinstance(value, list):
        return "array"
    if isinstance(value, str):
        return "string"
    return "null" if value is None else "number" if isinstance(value, int | float) else "boolean"
