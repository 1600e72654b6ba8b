"""What the programs are told by their environment, their flags and the ConfigMap file. Pure parsing and validation.

The environment names are Spiderpool's, so that a chart's values and a manifest's `env` carry over. A name that begins
with SPIDERPOOL_ and is none of them, a value that does not fit, or a required name that is missing raises
`SettingsError`, whose text is one line; the programs print it on stderr and exit with code 2.

A setting is a field with an `Env` in its annotation: the tables of known names are read from the Structs. Names that
are documented but have no effect in a program are accepted and listed in `notes`, each with its reason.
"""

import math
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from api.configfile import DEFAULT_PATH, ConfigFile, SettingsError, did_you_mean, parse, shown
from api.environment import OTHER_PROGRAMS, WITHOUT_EFFECT, check_opentelemetry, is_injected

__all__ = [
    "Address",
    "AgentSettings",
    "ControllerSettings",
    "Flags",
    "SettingsError",
    "StandaloneSettings",
    "load_agent",
    "load_controller",
    "load_standalone",
    "parse_addresses",
]

LogLevel = Literal["debug", "info", "warn", "warning", "error", "dpanic", "panic", "fatal"]


class Env(Struct, frozen=True):
    """Marks a field: the environment name it comes from, other spellings of it, and what an error says is expected."""

    name: str
    aliases: tuple[str, ...] = ()
    expected: str = ""


class Address(Struct, frozen=True):
    """Where to dial: a host name or an address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_PORT = "a port number, 0 to 65535"  # 0: any free one
_COUNT = "a whole number above 0"
_SECONDS = "a number of seconds"
_LIFETIME = "a number of seconds, 1 or more"
_DELAY = "a number of seconds, 0 to 600"
_PATH = "an absolute path"
_SECRETS = "/var/run/secrets/spiderpool"


class Flags(Struct, frozen=True, kw_only=True):
    """The flags of the command line that are settings. Empty: not given."""

    config_path: str = ""
    tls_server_cert: str = ""
    tls_server_key: str = ""


class _Common(Struct, frozen=True, kw_only=True):
    """What both programs read."""

    pod_namespace: Annotated[str, Env("SPIDERPOOL_POD_NAMESPACE", expected="the namespace of this pod")]
    pod_name: Annotated[str, Env("SPIDERPOOL_POD_NAME", expected="the name of this pod")]
    log_level: Annotated[LogLevel, Env("SPIDERPOOL_LOG_LEVEL", expected="one of debug, info, warn, error")] = "info"
    enabled_metric: Annotated[bool, Env("SPIDERPOOL_ENABLED_METRIC")] = False
    enabled_debug_metric: Annotated[bool, Env("SPIDERPOOL_ENABLED_DEBUG_METRIC")] = False
    enabled_release_conflict_ips: Annotated[bool, Env("SPIDERPOOL_ENABLED_RELEASE_CONFLICT_IPS")] = True
    """Whether an address that another machine uses is put aside, and the pod given another one."""
    multus_cluster_network: Annotated[str, Env("MULTUS_CLUSTER_NETWORK")] = ""
    """``namespace/name`` of the network of every pod's first interface; empty: not configured."""
    ippool_max_allocated_ips: Annotated[int, Meta(ge=1), Env("SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS", (), _COUNT)] = 5000
    """Records that one pool may hold."""
    kubeconfig: Annotated[str, Env("KUBECONFIG")] = ""
    """Path; empty: the credentials of the pod."""
    state_dir: Annotated[str, Meta(pattern="^/"), Env("SPIDERPOOL_STATE_DIR", (), "an absolute path")] = (
        "/var/lib/spiderpool"
    )
    """Path of a folder that survives a restart: the agent's journal, the embedded store."""
    controller_addresses: Annotated[
        tuple[Address, ...], Env("SPIDERPOOL_CONTROLLER_ADDRESSES", expected="host:port,... with IPv6 in brackets")
    ] = ()
    """The controller's replicas; empty: found by the EndpointSlices of the controller's Service."""
    controller_token_file: Annotated[str, Env("SPIDERPOOL_CONTROLLER_TOKEN_FILE")] = f"{_SECRETS}/token"
    """Path of the token that a client shows to a controller, with the audience `spiderpool-controller`."""
    controller_ca_file: Annotated[str, Env("SPIDERPOOL_CONTROLLER_CA_FILE")] = f"{_SECRETS}/ca.crt"
    """Path of the certificates that a client trusts a controller by."""
    controller_name: Annotated[str, Env("SPIDERPOOL_CONTROLLER_NAME")] = "spiderpool-controller"
    """Of the controller's Service and ServiceAccount, in `pod_namespace`."""
    trace_buffer: Annotated[
        int, Meta(ge=0, le=1_000_000), Env("SPIDERPOOL_TRACE_BUFFER", (), "a number of spans, 0 to 1000000")
    ] = 0
    """Finished spans that are kept in memory and shown at `/debug/traces` of the health port; 0: none."""
    config: ConfigFile = ConfigFile()
    """The ConfigMap file."""
    notes: tuple[str, ...] = ()
    """A line for every setting that was given and has no effect, for the log."""


class AgentSettings(_Common, frozen=True, kw_only=True):
    """Everything that `spiderpool-agent` is told."""

    node_name: Annotated[str, Env("SPIDERPOOL_NODE_NAME", expected="the name of this node")]
    enabled_rdma_metric: Annotated[bool, Env("SPIDERPOOL_ENABLED_RDMA_METRIC")] = False
    health_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_HEALTH_PORT", (), _PORT)] = 5710
    metric_http_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_METRIC_HTTP_PORT", (), _PORT)] = 5711
    detection_probes: Annotated[
        int, Meta(ge=1, le=10), Env("SPIDERPOOL_DETECTION_PROBES", (), "a whole number from 1 to 10")
    ] = 1
    """How often an address or a gateway that does not answer is asked for, where the file says that they are."""
    detection_timeout: Annotated[
        float, Meta(gt=0, le=1), Env("SPIDERPOOL_DETECTION_TIMEOUT", (), "a number of seconds above 0, at most 1")
    ] = 0.015
    """Seconds for all of that together, over the addresses and the gateways of both families."""
    fallback_enabled: Annotated[bool, Env("SPIDERPOOL_AGENT_FALLBACK_ENABLED")] = False
    """Whether this node allocates by itself while no controller answers. Needs a controller's rights for that."""
    fallback_after: Annotated[float, Meta(gt=0), Env("SPIDERPOOL_AGENT_FALLBACK_AFTER", (), _SECONDS)] = 5.0
    """Seconds without a controller until it does."""
    pod_uid: Annotated[str, Env("SPIDERPOOL_POD_UID")] = ""
    """Of this pod, for events about it; empty: read from the API server."""
    probe_socket: Annotated[str, Meta(pattern="^(/|$)"), Env("SPIDERPOOL_PROBE_SOCKET", (), _PATH)] = ""
    """Path of a unix socket that answers the probes for this process alone; empty: only the health port does."""
    cni_bin_dir: Annotated[str, Meta(pattern="^(/|$)"), Env("SPIDERPOOL_CNI_BIN_DIR", (), _PATH)] = ""
    """Path, in this container, of the node's folder of CNI programs; empty: nothing is installed."""
    node_mounts: Annotated[str, Meta(pattern="^(/|$)"), Env("SPIDERPOOL_NODE_MOUNTS", (), _PATH)] = ""
    """Path of the node's mount namespace, among whose files others' plugins are executed; empty: its own."""
    cni_conf_dir: Annotated[str, Meta(pattern="^(/|$)"), Env("SPIDERPOOL_CNI_CONF_DIR", (), _PATH)] = ""
    """Path, in this container, of the node's folder of CNI configurations; empty: only the shim is installed."""
    cni_shim_dir: Annotated[str, Meta(pattern="^/"), Env("SPIDERPOOL_CNI_SHIM_DIR", (), _PATH)] = (
        "/usr/lib/spiderpool/cni"
    )
    """Path of the shims, one folder an architecture."""
    cni_plugins: Annotated[
        str,
        Meta(pattern="^spiderpool(,[a-z][a-z0-9-]*)*$"),
        Env("SPIDERPOOL_CNI_PLUGINS", (), "spiderpool, and more plugin names separated by commas"),
    ] = "spiderpool,coordinator,ifacer"
    """Names that the shim gets on the node; a program of such a name is set aside and comes back on the way out."""
    cni_master: Annotated[
        str, Meta(pattern=r"^[^\s/:]{0,15}$"), Env("SPIDERPOOL_CNI_MASTER", (), "the name of an interface")
    ] = ""
    """Parent of pods' interfaces in the configuration that is installed; empty: the device of the default route."""
    cni_mtu: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_CNI_MTU", (), "a number of bytes, 0 to 65535")] = 0
    """MTU of pods' interfaces in that configuration; 0: the parent's."""
    vlan_id_per_parent: Annotated[bool, Env("SPIDERPOOL_VLAN_ID_PER_PARENT")] = False
    """Whether parents of this node may have VLANs of the same id, where the plugin `ifacer` makes them."""
    cni_networks: Annotated[bool, Env("SPIDERPOOL_CNI_NETWORKS")] = True
    """Whether that configuration attaches pods to the further networks that their annotations name, as Multus does.
    Below a Multus it does not."""
    cni_cluster_network: Annotated[
        str,
        Meta(pattern=r"^[a-zA-Z0-9._-]*$"),
        Env("SPIDERPOOL_CNI_CLUSTER_NETWORK", (), "the name of a configuration"),
    ] = ""
    """Name of the CNI configuration on the node that makes pods' first interface, for an overlay network as the default
    one; empty: that configuration itself does."""
    cni_status: Annotated[bool, Env("SPIDERPOOL_CNI_STATUS")] = False
    """Whether a container runtime is to ask whether pods can be attached; the node is NotReady while they cannot."""


class ControllerSettings(_Common, frozen=True, kw_only=True):
    """Everything that `spiderpool-controller` is told."""

    health_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_HEALTH_PORT", (), _PORT)] = 5720
    metric_http_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_METRIC_HTTP_PORT", (), _PORT)] = 5721
    webhook_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_WEBHOOK_PORT", (), _PORT)] = 5722
    rpc_port: Annotated[int, Meta(ge=0, le=65535), Env("SPIDERPOOL_RPC_PORT", (), _PORT)] = 5723
    """Where agents and other replicas connect."""
    agent_name: Annotated[str, Env("SPIDERPOOL_AGENT_NAME")] = "spiderpool-agent"
    """Of the agent's ServiceAccount, in `pod_namespace`: the only one that may ask for addresses."""
    tls_server_cert: str = ""
    """Path; by `--tls-server-cert`."""
    tls_server_key: str = ""
    """Path; by `--tls-server-key`."""
    shutdown_delay: Annotated[float, Meta(ge=0, le=600), Env("SPIDERPOOL_SHUTDOWN_DELAY", (), _DELAY)] = 0.0
    """Seconds for which a replica that is to end says that it is not ready and goes on serving."""
    certificate_secret: Annotated[
        str, Meta(pattern=r"^[a-z0-9.-]*$"), Env("SPIDERPOOL_CERTIFICATE_SECRET", (), "the name of a Secret")
    ] = ""
    """Where this program keeps the certificate that it makes itself; empty: somebody else makes it."""
    certificate_hosts: Annotated[
        str,
        Meta(pattern=r"^([A-Za-z0-9*.:-]+(,[A-Za-z0-9*.:-]+)*)?$"),
        Env("SPIDERPOOL_CERTIFICATE_HOSTS", (), "DNS names and addresses, separated by commas"),
    ] = ""
    """Further ones that the certificate is valid for."""
    certificate_lifetime: Annotated[float, Meta(ge=1), Env("SPIDERPOOL_CERTIFICATE_LIFETIME", (), _LIFETIME)] = (
        365 * 86400.0
    )
    """Seconds, of the certificate that is served."""
    certificate_authority_lifetime: Annotated[
        float, Meta(ge=1), Env("SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME", (), _LIFETIME)
    ] = 3650 * 86400.0
    """Seconds, of the authority that signs it."""
    certificate_renewal: Annotated[
        float, Meta(ge=1, le=99), Env("SPIDERPOOL_CERTIFICATE_RENEWAL_PERCENT", (), "a number from 1 to 99")
    ] = 66.0
    """Percent of its lifetime after which either is replaced."""
    certificate_overlap: Annotated[
        float, Meta(ge=0), Env("SPIDERPOOL_CERTIFICATE_OVERLAP", (), "a number of seconds, 0 or more")
    ] = 3600.0
    """Seconds for which a new authority is trusted before it signs what is served."""
    gc_ip_enabled: Annotated[bool, Env("SPIDERPOOL_GC_IP_ENABLED")] = True
    gc_terminating_pod_on_ready_node: Annotated[
        bool, Env("SPIDERPOOL_GC_STATELESS_TERMINATING_POD_ON_READY_NODE_ENABLED")
    ] = True
    gc_terminating_pod_on_not_ready_node: Annotated[
        bool, Env("SPIDERPOOL_GC_STATELESS_TERMINATING_POD_ON_NOT_READY_NODE_ENABLED")
    ] = True
    gc_running_pod_without_addresses: Annotated[
        bool, Env("SPIDERPOOL_GC_ENABLE_STATELESS_RUNNING_POD_ON_EMPTY_POD_STATUS_IPS")
    ] = False
    gc_interval: Annotated[float, Meta(gt=0), Env("SPIDERPOOL_GC_DEFAULT_INTERVAL_DURATION", (), _SECONDS)] = 600.0
    """Seconds between two audits."""
    gc_additional_grace: Annotated[float, Meta(ge=0), Env("SPIDERPOOL_GC_ADDITIONAL_GRACE_DELAY", (), _SECONDS)] = 0.0
    """Seconds that are added to a pod's own grace period."""
    gc_request_gap: Annotated[float, Meta(ge=0), Env("SPIDERPOOL_GC_HTTP_REQUEST_TIME_GAP", (), _SECONDS)] = 1.0
    """Seconds between two audits that are asked for over HTTP, at least."""
    gc_node_grace: Annotated[float, Meta(ge=0), Env("SPIDERPOOL_GC_NODE_GRACE", (), _SECONDS)] = 120.0
    """Seconds for which a node must be NotReady, and its agent silent, before its pods' addresses are given up."""
    ip_cooldown: Annotated[float, Meta(ge=0), Env("SPIDERPOOL_IP_COOLDOWN_DURATION", (), _SECONDS)] = 30.0
    """Seconds for which an address that was freed goes to nobody else, unless nothing else is free; 0: at once."""
    ip_quarantine: Annotated[float, Meta(ge=0), Env("SPIDERPOOL_IP_QUARANTINE_DURATION", (), _SECONDS)] = 600.0
    """Seconds for which nobody gets an address that was found in use by a stranger."""
    pool_write_rate: Annotated[
        float, Meta(ge=0), Env("SPIDERPOOL_POOL_WRITE_BYTES_PER_SECOND", (), "a number of bytes a second")
    ] = 2_500_000.0
    """Bytes a second that all replicas together write of pools, so that etcd never fills up; 0: no limit."""
    leader_duration: Annotated[float, Meta(gt=0), Env("SPIDERPOOL_LEADER_DURATION", (), _SECONDS)] = 15.0
    leader_renew_deadline: Annotated[float, Meta(gt=0), Env("SPIDERPOOL_LEADER_RENEW_DEADLINE", (), _SECONDS)] = 10.0
    leader_retry_period: Annotated[float, Meta(gt=0), Env("SPIDERPOOL_LEADER_RETRY_PERIOD", (), _SECONDS)] = 2.0
    coordinator_enabled: Annotated[bool, Env("SPIDERPOOL_COORDINATOR_ENABLED")] = False
    coordinator_name: Annotated[
        str, Env("SPIDERPOOL_COORDINATOR_DEFAULT_NAME", ("SPIDERPOOL_COORDINATOR_DEAFULT_NAME",))
    ] = "default"
    service_cidr: Annotated[tuple[str, ...], Env("SPIDERPOOL_SERVICE_CIDR", expected="CIDRs, separated by commas")] = ()
    """Of the cluster's Services, where the API server has no ServiceCIDR objects."""
    multus_namespace_isolation: Annotated[bool, Env("SPIDERPOOL_MULTUS_NAMESPACE_ISOLATION")] = False
    """Whether pods may be attached to networks of their own namespace only."""
    multus_global_namespaces: Annotated[
        str,
        Meta(pattern=r"^([a-z0-9-]+(,[a-z0-9-]+)*)?$"),
        Env("SPIDERPOOL_MULTUS_GLOBAL_NAMESPACES", (), "names of namespaces, separated by commas"),
    ] = "default"
    """Namespaces whose networks are for every pod all the same."""
    cni_config_dir: Annotated[str, Env("SPIDERPOOL_CNI_CONFIG_DIR")] = "/etc/cni/net.d"
    multus_config_enabled: Annotated[bool, Env("SPIDERPOOL_MULTUS_CONFIG_ENABLED")] = False
    cilium_configmap: Annotated[str, Env("SPIDERPOOL_CILIUM_CONFIGMAP_NAMESPACE_NAME")] = "kube-system/cilium-config"
    """``namespace/name``."""
    controller_deployment_name: Annotated[str, Env("SPIDERPOOL_CONTROLLER_DEPLOYMENT_NAME")] = "spiderpool-controller"


class StandaloneSettings(Struct, frozen=True, kw_only=True):
    """What `spiderpool-standalone` is told: both programs' settings from one environment, and its own."""

    agent: AgentSettings
    controller: ControllerSettings
    pool_dir: Annotated[str, Meta(pattern="^/"), Env("SPIDERPOOL_STANDALONE_POOL_DIR", (), _PATH)] = ""
    """Path of a folder with YAML files of pools and reserved addresses; empty: they come from `spiderpoolctl apply`."""
    notes: tuple[str, ...] = ()
    """Of the settings that have no effect on either half."""


def load_agent(environ: Mapping[str, str], file_text: str | None = None, flags: Flags | None = None) -> AgentSettings:
    """The agent's settings. `file_text` is what `flags.config_path` holds, None if there is no such file.

    Raises `SettingsError`.
    """
    return _load(AgentSettings, environ, file_text, flags or Flags())


def load_controller(
    environ: Mapping[str, str], file_text: str | None = None, flags: Flags | None = None
) -> ControllerSettings:
    """The controller's settings, as `load_agent`. Raises `SettingsError`."""
    given = flags or Flags()
    if bool(given.tls_server_cert) != bool(given.tls_server_key):
        missing = "--tls-server-key" if given.tls_server_cert else "--tls-server-cert"
        message = f"{missing} is missing: a certificate and its key go together"
        raise SettingsError(message)
    settings = _load(
        ControllerSettings,
        environ,
        file_text,
        given,
        tls_server_cert=given.tls_server_cert,
        tls_server_key=given.tls_server_key,
    )
    if settings.certificate_secret:
        _check_certificates(settings)
    return settings


def _check_certificates(settings: ControllerSettings) -> None:
    """Refuse what would let something expire before its replacement can be used."""
    if settings.tls_server_cert != settings.tls_server_key:
        message = (
            f"--tls-server-key={shown(settings.tls_server_key)}: with SPIDERPOOL_CERTIFICATE_SECRET it is the file "
            f"of --tls-server-cert, {shown(settings.tls_server_cert)}: both are written there together"
        )
        raise SettingsError(message)
    left = 1 - settings.certificate_renewal / 100
    authority, leaf = settings.certificate_authority_lifetime, settings.certificate_lifetime
    if leaf > authority * left:
        message = (
            f"SPIDERPOOL_CERTIFICATE_LIFETIME='{leaf:g}': more than the {authority * left:g} s that are left of an "
            f"authority when it is replaced (SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME='{authority:g}')"
        )
        raise SettingsError(message)
    if settings.certificate_overlap > leaf * left / 2:
        message = (
            f"SPIDERPOOL_CERTIFICATE_OVERLAP='{settings.certificate_overlap:g}': more than half of the "
            f"{leaf * left:g} s that are left of a certificate when it is replaced "
            f"(SPIDERPOOL_CERTIFICATE_LIFETIME='{leaf:g}')"
        )
        raise SettingsError(message)


def load_standalone(
    environ: Mapping[str, str], file_text: str | None = None, flags: Flags | None = None
) -> StandaloneSettings:
    """Both programs' settings for one process; the names of node and pod have defaults here. Raises `SettingsError`."""
    full = {**_STANDALONE_DEFAULTS, **{name: value for name, value in environ.items() if value}}
    own = {setting.env.name: setting for setting in STANDALONE if setting.env.name in full}
    others = {name: value for name, value in full.items() if name not in own}
    agent, controller = load_agent(others, file_text, flags), load_controller(others, file_text, flags)
    notes = tuple(note for note in agent.notes if note in controller.notes)
    values = {setting.field: _value(setting, name, full[name]) for name, setting in own.items()}
    return StandaloneSettings(agent=agent, controller=controller, notes=notes, **values)


_STANDALONE_DEFAULTS = {
    "SPIDERPOOL_POD_NAMESPACE": "spiderpool",
    "SPIDERPOOL_POD_NAME": "spiderpool-standalone",
    "SPIDERPOOL_NODE_NAME": "localhost",
}


def parse_addresses(text: str) -> tuple[Address, ...]:
    """The addresses of ``host:port,...``, IPv6 in brackets. Raises ValueError that quotes the part that is wrong."""
    return tuple(_address(part.strip()) for part in text.split(",") if part.strip())


def parse_networks(text: str) -> tuple[str, ...]:
    """The networks of a comma list of CIDRs. Raises ValueError that quotes the part that is wrong."""
    return tuple(str(ip_network(part.strip())) for part in text.split(",") if part.strip())


def _address(part: str) -> Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", part, re.ASCII)
    if match is None or not 0 < int(match[3]) <= 65535 or (match[1] and ":" not in match[1]):
        message = f"{part!r} is no host:port"
        raise ValueError(message)
    return Address(match[1] or match[2], int(match[3]))


# ---------------------------------------------------------------- loading


class _Setting(Struct, frozen=True):
    """A field that the environment fills."""

    field: str
    env: Env
    type: Any
    required: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (self.env.name, *self.env.aliases)


def _settings(kind: type[Struct]) -> tuple[_Setting, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        _Setting(field.name, env, hints[field.name], field.required)
        for field in msgspec.structs.fields(kind)
        if get_origin(hints[field.name]) is Annotated
        for env in get_args(hints[field.name])[1:]
        if isinstance(env, Env)
    )


AGENT = _settings(AgentSettings)
CONTROLLER = _settings(ControllerSettings)
STANDALONE = _settings(StandaloneSettings)
"""Those that only `spiderpool-standalone` has."""
_PROGRAM = {AgentSettings: ("spiderpool-agent", AGENT), ControllerSettings: ("spiderpool-controller", CONTROLLER)}

KNOWN = frozenset(
    {name for setting in (*AGENT, *CONTROLLER, *STANDALONE) for name in setting.names}
    | set(WITHOUT_EFFECT)
    | OTHER_PROGRAMS
)
"""Every name that is documented, for whichever program."""


def _load[T: (AgentSettings, ControllerSettings)](
    kind: type[T], environ: Mapping[str, str], file_text: str | None, flags: Flags, **more: Any
) -> T:
    program, settings = _PROGRAM[kind]
    given = {name: text for name, text in environ.items() if text and not is_injected(name, environ, known=KNOWN)}
    own = {name for setting in settings for name in setting.names}
    notes = []
    for name in sorted(given):
        if name.startswith("SPIDERPOOL_") and name not in KNOWN:
            hint = did_you_mean(name, tuple(sorted(KNOWN)))
            message = f"{name}={shown(given[name])} is not a setting{hint}"
            raise SettingsError(message)
        if name in WITHOUT_EFFECT:
            notes.append(f"{name} has no effect: {WITHOUT_EFFECT[name]}")
        elif name in KNOWN - own - OTHER_PROGRAMS:
            notes.append(f"{name} has no effect on {program}")
    check_opentelemetry(given)
    values: dict[str, Any] = {}
    for setting in settings:
        name = _spelling(setting, given)
        if name:
            values[setting.field] = _value(setting, name, given[name])
        elif setting.required:
            message = f"{setting.env.name} is missing: {program} needs {setting.env.expected}"
            raise SettingsError(message)
    return kind(**values, config=parse(file_text, path=flags.config_path or DEFAULT_PATH), notes=tuple(notes), **more)


def _spelling(setting: _Setting, given: Mapping[str, str]) -> str:
    """The name under which a setting was given; empty if it was not. Two spellings must agree."""
    found = [name for name in setting.names if name in given]
    for other in found[1:]:
        if given[other] != given[found[0]]:
            message = f"{other}={shown(given[other])} contradicts {found[0]}={shown(given[found[0]])}"
            raise SettingsError(message)
    return found[0] if found else ""


def _value(setting: _Setting, name: str, text: str) -> Any:
    try:
        return _convert(text.strip(), setting.type)
    except ValueError:
        message = f"{name}={shown(text)}: expected {setting.env.expected or 'true or false'}"
        raise SettingsError(message) from None


def _convert(text: str, annotated: Any) -> Any:
    kind = get_args(annotated)[0]
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if get_origin(kind) is tuple:
        return parse_addresses(text) if get_args(kind)[0] is Address else parse_networks(text)
    value = msgspec.convert(text, annotated, strict=False)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value


_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
