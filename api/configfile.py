"""The ConfigMap file `conf.yml`: its keys, and reading it strictly.

The keys are Spiderpool's. The original ignores a key that it does not know, so a misspelt switch silently keeps its
default; here it is refused by name. Pure: the caller reads the file.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, override
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import UNSET, Meta, Struct, UnsetType, field

from api import networkresources
from api.meta import LabelSelector, LabelSelectorRequirement, SelectorError

DEFAULT_PATH = "/tmp/spiderpool/config-map/conf.yml"  # noqa: S108 - where Spiderpool's chart mounts it
"""Of the file in both programs' containers, when `--config-path` is not given."""

_PROVIDER_LIMIT_SECONDS = 100.0
"""An infrastructure provider must answer within the time that the CNI client waits for us."""

_DEVICES_LIMIT = 100_000
"""Of one resource: kubelet takes 16 MB in a message, and all devices of a resource come in one."""

_SOCKET_PATH_LIMIT = 107
"""Bytes of a unix socket's path; the kernel's limit is 108 with the final zero."""

_KUBELET_ROOT_LIMIT = 59
"""Bytes: below it come /device-plugins/ and the name of a socket, 32 bytes for the shortest that there is."""


class SettingsError(ValueError):
    """A setting that is unknown, malformed or missing. Its text is one line that names the setting and its value."""


class PodResourceInject(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Whether the webhook adds resource requests to pods, and in which namespaces."""

    enabled: bool = False
    namespaces_exclude: tuple[str, ...] = ()
    namespaces_include: tuple[str, ...] = ()


class IaasNetworkProvider(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The service that assigns addresses on a cloud's side. An empty URL switches it off."""

    server_url: str = ""
    """``https://host:port`` or ``http://host:port``, without a path."""
    http_request_timeout: str = "50s"
    """A duration as Go writes them, above 0 and below 100 s."""
    ca_bundle: str = ""
    """PEM certificates of the authorities that the server's certificate is checked by. Empty: the system's."""
    insecure_skip_verify: bool = False
    """Whether its certificate is not checked at all."""

    @property
    def timeout(self) -> float:
        """`http_request_timeout` in seconds."""
        return duration(self.http_request_timeout)


class NodeSelectorRequirement(Struct, frozen=True, forbid_unknown_fields=True):
    """One expression of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def as_requirement(self) -> LabelSelectorRequirement:
        """The same for Kubernetes' objects, which knows what it means."""
        return LabelSelectorRequirement(key=self.key, operator=self.operator, values=list(self.values))


class NodeSelector(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A label selector for nodes; empty selects all."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: tuple[NodeSelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects a node with these labels."""
        expressions = [expression.as_requirement() for expression in self.match_expressions]
        return LabelSelector(match_labels=self.match_labels, match_expressions=expressions).matches(labels)


class DevicePluginAffinity(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """On which nodes the agent is a device plugin."""

    node_selector: NodeSelector = NodeSelector()


class SubEniRule(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """How many sub-interfaces of a cloud's NIC a node advertises."""

    resource_name: str = "spidernet.io/sub-eni"
    default_max_count: Annotated[int, Meta(ge=0, le=_DEVICES_LIMIT)] = 0
    node_selector: NodeSelector = NodeSelector()


class SubEni(Struct, frozen=True, forbid_unknown_fields=True):
    """The rules for sub-interfaces; the first that fits a node wins."""

    rules: tuple[SubEniRule, ...] = ()


class MasterNicRule(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which of a node's interfaces are advertised, by glob, and how often each."""

    node_selector: NodeSelector = NodeSelector()
    default_max_count: Annotated[int, Meta(ge=0, le=_DEVICES_LIMIT)] = 10000
    include_interfaces: tuple[str, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()

    def takes(self, ifname: str, *, physical: bool) -> bool:
        """Whether a node that it selects advertises this interface; `physical`: whether a device is behind it."""
        if not networkresources.is_candidate(ifname) or _fits(ifname, self.exclude_interfaces):
            return False
        # What is virtual has to be asked for, by this very rule: else one for a bond would bring all bridges in.
        return _fits(ifname, self.include_interfaces) if self.include_interfaces else physical


class MasterNic(Struct, frozen=True, forbid_unknown_fields=True):
    """The rules for a node's interfaces; all that fit a node count."""

    rules: tuple[MasterNicRule, ...] = ()


class ResourceAdvertisement(Struct, frozen=True, forbid_unknown_fields=True):
    """What the device plugin advertises."""

    sub_eni: SubEni = field(default=SubEni(), name="subENI")
    master_nic: MasterNic = field(default=MasterNic(), name="masterNIC")


class NetworkResourcePlugin(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The agent as a device plugin of kubelet's."""

    enabled: bool = False
    kubelet_root_dir: str = "/var/lib/kubelet"
    device_plugin_affinity: DevicePluginAffinity = DevicePluginAffinity()
    resource_advertisement: ResourceAdvertisement = ResourceAdvertisement()


class AgentSection(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What concerns the agent alone."""

    network_resource_plugin: NetworkResourcePlugin = NetworkResourcePlugin()


class ConfigFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `conf.yml`, with the values that hold where a key, or the file, is missing."""

    ipam_unix_socket_path: str = field(default="/var/run/spidernet/spiderpool.sock", name="ipamUnixSocketPath")
    enable_ipv4: bool = field(default=True, name="enableIPv4")
    enable_ipv6: bool = field(default=True, name="enableIPv6")
    enable_stateful_set: bool = field(default=True, name="enableStatefulSet")
    enable_kubevirt_static_ip: bool = field(default=True, name="enableKubevirtStaticIP")
    enable_spider_subnet: bool = field(default=True, name="enableSpiderSubnet")
    enable_auto_pool_for_application: bool = field(default=True, name="enableAutoPoolForApplication")
    redundant_ip_number: Annotated[int, Meta(ge=0)] = field(
        default=1, name="clusterSubnetAutoPoolDefaultRedundantIPNumber"
    )
    flexible_ip_number: Annotated[int, Meta(ge=0)] | UnsetType = field(
        default=UNSET, name="clusterSubnetDefaultFlexibleIPNumber"
    )
    """The name under which Spiderpool's chart writes the one above; the documented name wins where both are given."""
    enable_ip_conflict_detection: bool = field(default=False, name="enableIPConflictDetection")
    enable_gateway_detection: bool = field(default=False, name="enableGatewayDetection")
    enable_clean_outdated_endpoint: bool = field(default=False, name="enableCleanOutdatedEndpoint")
    enable_validating_resources_deleted_webhook: bool = field(
        default=False, name="enableValidatingResourcesDeletedWebhook"
    )
    tune_sysctl_config: bool = field(default=True, name="tuneSysctlConfig")
    pod_resource_inject: PodResourceInject = field(default=PodResourceInject(), name="podResourceInject")
    iaas_network_provider: IaasNetworkProvider = field(default=IaasNetworkProvider(), name="iaasNetworkProvider")
    agent: AgentSection = AgentSection()


def parse(text: str | None, *, path: str = "conf.yml") -> ConfigFile:
    """Read the file's text; None (there is no file) and an empty text give the defaults.

    `path` is what the file is called in errors. Raises `SettingsError`: not YAML, a key twice, an unknown key at any
    depth, a value of a wrong type or out of range, both families switched off.
    """
    data = _without_nulls(_load(text or "", path))
    _refuse_unknown(data, ConfigFile, at=(), path=path)
    if isinstance(data, dict) and "clusterSubnetAutoPoolDefaultRedundantIPNumber" not in data:
        flexible = data.get("clusterSubnetDefaultFlexibleIPNumber", UNSET)
        if flexible is not UNSET:
            data["clusterSubnetAutoPoolDefaultRedundantIPNumber"] = flexible
    try:
        config = msgspec.convert(data, ConfigFile)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(error, data, path)) from None
    except UnicodeEncodeError:
        message = f"{path}: {shown(text)}: half of a surrogate pair"
        raise SettingsError(message) from None
    _check(config, path)
    return config


def duration(text: str) -> float:
    """Seconds of a duration as Go writes them ("50s", "1m30s", "1.5h"). Raises ValueError for anything else."""
    if not _DURATION.fullmatch(text):
        message = f"{text!r} is no duration such as 50s or 1m30s"
        raise ValueError(message)
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|ms|s|m|h))+")


def did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """A hint to the nearest known name, with a blank in front of it; empty when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not near:
        lower = {candidate.lower(): candidate for candidate in known}
        near = [lower[name.lower()]] if name.lower() in lower else []
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: object) -> str:
    """A value as an error shows it: on one line and not longer than that."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice in a mapping, as the original's parser does."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _load(text: str, path: str) -> Any:
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - it is the safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        message = f"{path}:{where} {_one_line(error.problem or str(error))}"
        raise SettingsError(message) from None
    except (yaml.YAMLError, ValueError) as error:
        message = f"{path}: not YAML: {_one_line(str(error))}"
        raise SettingsError(message) from None
    return {} if data is None else data


def _without_nulls(data: Any) -> Any:
    """A key without a value counts as not given, as with the original's parser."""
    if not isinstance(data, dict):
        return data
    return {key: _without_nulls(value) for key, value in data.items() if value is not None}


def _refuse_unknown(data: object, kind: object, *, at: tuple[str, ...], path: str) -> None:
    """Walk data and Structs side by side; what has a wrong type is left for msgspec to refuse."""
    if isinstance(data, list):
        for index, item in enumerate(data):
            for inner in getattr(kind, "__args__", ())[:1]:
                _refuse_unknown(item, inner, at=(*at[:-1], f"{at[-1]}[{index}]") if at else (), path=path)
        return
    if not isinstance(data, dict) or not (isinstance(kind, type) and issubclass(kind, Struct)):
        return
    fields = {known.encode_name: known.type for known in msgspec.structs.fields(kind)}
    for key, value in data.items():
        name = ".".join((*at, str(key)))
        if key not in fields:
            hint = did_you_mean(str(key), tuple(fields))
            message = f"{path}: unknown key {_one_line(name)}: {shown(value)}{hint}"
            raise SettingsError(message)
        _refuse_unknown(value, fields[key], at=(*at, str(key)), path=path)


def _explain(error: msgspec.ValidationError, data: object, path: str) -> str:
    reason, _, where = str(error).partition(" - at ")
    keys = where.strip("`").removeprefix("$").lstrip(".")
    value = data
    for part in re.findall(r"[^.\[\]]+", keys):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            break
    wanted = _plain(reason)
    return f"{path}: {keys or 'the file'}: {shown(value)}: {wanted}"


def _plain(reason: str) -> str:
    """The words of msgspec without its quotes: "expected bool, got str"."""
    text = reason.replace("`", "")
    return text[:1].lower() + text[1:]


def _check(config: ConfigFile, path: str) -> None:
    if not (config.enable_ipv4 or config.enable_ipv6):
        message = f"{path}: enableIPv4: False, enableIPv6: False: at least one family must be on"
        raise SettingsError(message)
    timeout = config.iaas_network_provider.http_request_timeout
    try:
        fits = 0 < config.iaas_network_provider.timeout < _PROVIDER_LIMIT_SECONDS
    except ValueError:
        fits = False
    if not fits:
        message = f"{path}: iaasNetworkProvider.httpRequestTimeout: {shown(timeout)}: expected 1ns to 100s, as in 50s"
        raise SettingsError(message)
    url = config.iaas_network_provider.server_url
    if url and not _is_server(url):
        message = f"{path}: iaasNetworkProvider.serverUrl: {shown(url)}: expected https://host:port without a path"
        raise SettingsError(message)
    socket = config.ipam_unix_socket_path
    if not socket.startswith("/") or len(socket.encode()) > _SOCKET_PATH_LIMIT:
        message = f"{path}: ipamUnixSocketPath: {shown(socket)}: expected an absolute path of at most 107 bytes"
        raise SettingsError(message)
    for where, value, problem in _plugin_problems(config.agent.network_resource_plugin):
        message = f"{path}: agent.networkResourcePlugin.{where}: {shown(value)}: {problem}"
        raise SettingsError(message)


def _plugin_problems(plugin: NetworkResourcePlugin) -> Iterator[tuple[str, object, str]]:
    """Key, value and what is wrong with it."""
    root = plugin.kubelet_root_dir
    if not root.startswith("/") or len(root.encode()) > _KUBELET_ROOT_LIMIT:
        yield "kubeletRootDir", root, f"expected an absolute path of at most {_KUBELET_ROOT_LIMIT} bytes"
    eni, nics = plugin.resource_advertisement.sub_eni.rules, plugin.resource_advertisement.master_nic.rules
    for index, rule in enumerate(eni):
        name = rule.resource_name
        problem = networkresources.problem(name)
        if not problem and networkresources.is_master_nic(name):
            problem = "names of this form are those of master NICs"
        if problem:
            yield f"resourceAdvertisement.subENI.rules[{index}].resourceName", name, problem
    selectors = [("devicePluginAffinity", plugin.device_plugin_affinity.node_selector)]
    selectors += [(f"resourceAdvertisement.subENI.rules[{at}]", rule.node_selector) for at, rule in enumerate(eni)]
    selectors += [(f"resourceAdvertisement.masterNIC.rules[{at}]", rule.node_selector) for at, rule in enumerate(nics)]
    for where, selector in selectors:
        for number, expression in enumerate(selector.match_expressions):
            try:
                expression.as_requirement().matches({})
            except SelectorError as error:
                at = f"{where}.nodeSelector.matchExpressions[{number}]"
                yield at, msgspec.to_builtins(expression), str(error)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_server(url: str) -> bool:
    """Whether a URL names a server, and nothing of it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    nothing_more = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and nothing_more


def _one_line(text: str) -> str:
    return " ".join(text.split())
