"""Names of environment variables that are no settings of ours and yet may be there.

Three kinds: those that Spiderpool documents and that have no effect here or belong to another program, those that
kubelet injects for Services, and OpenTelemetry's. Everything else that begins with SPIDERPOOL_ is a mistake.
"""

import re
from collections.abc import Callable, Container, Mapping

from api.configfile import SettingsError, shown

WITHOUT_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(
        ("SPIDERPOOL_WAIT_SUBNET_POOL_TIME_IN_SECOND", "SPIDERPOOL_WAIT_SUBNET_POOL_MAX_RETRIES"),
        "an allocation waits for its automatic pool until its own deadline",
    ),
    "SPIDERPOOL_GOPS_LISTEN_PORT": "gops looks into Go programs",
    "SPIDERPOOL_PYROSCOPE_PUSH_SERVER_ADDRESS": "profiles are not pushed",
    "SPIDERPOOL_UPDATE_CR_MAX_RETRIES": "a write is repeated until the request's deadline",
    "SPIDERPOOL_WORKLOADENDPOINT_MAX_HISTORY_RECORDS": "a SpiderEndpoint holds no history",
    "SPIDERPOOL_METRIC_RENEW_PERIOD": "gauges are read when they are asked for",
    "SPIDERPOOL_LEADER_RETRY_GAP": "a lost lease is tried for again at once, jittered",
    **dict.fromkeys(
        (
            "SPIDERPOOL_GC_IP_WORKER_NUM",
            "SPIDERPOOL_GC_CHANNEL_BUFFER",
            "SPIDERPOOL_GC_MAX_PODENTRY_DB_CAP",
            "SPIDERPOOL_GC_TRACE_POD_GAP_DURATION",
            "SPIDERPOOL_GC_SIGNAL_TIMEOUT_DURATION",
            "SPIDERPOOL_GC_PODENTRY_MAX_RETRIES",
        ),
        "addresses are reclaimed by messages to their pool's actor, not by workers on a queue",
    ),
    **dict.fromkeys(
        (
            "SPIDERPOOL_SUBNET_INFORMER_RESYNC_PERIOD",
            "SPIDERPOOL_SUBNET_INFORMER_WORKERS",
            "SPIDERPOOL_SUBNET_INFORMER_MAX_WORKQUEUE_LENGTH",
            "SPIDERPOOL_SUBNET_APPLICATION_CONTROLLER_WORKERS",
            "SPIDERPOOL_COORDINATOR_INFORMER_RESYNC_PERIOD",
            "SPIDERPOOL_MULTUS_CONFIG_INFORMER_RESYNC_PERIOD",
            "SPIDERPOOL_IPPOOL_INFORMER_RESYNC_PERIOD",
            "SPIDERPOOL_IPPOOL_INFORMER_WORKERS",
            "SPIDERPOOL_AUTO_IPPOOL_HANDLER_MAX_WORKQUEUE_LENGTH",
            "SPIDERPOOL_WORKQUEUE_MAX_RETRIES",
            "SPIDERPOOL_WORKQUEUE_RETRY_DELAY_DURATION",
        ),
        "every object has an actor with a mailbox, there are no informer queues",
    ),
}
"""Names that Spiderpool documents for its programs and that have no effect here, with the reason."""

_FAMILIES = ("IPV4", "IPV6")
OTHER_PROGRAMS = frozenset(
    {
        "SPIDERPOOL_NAMESPACE",
        "SPIDERPOOL_INIT_NAME",
        "SPIDERPOOL_CACHE",
        "SPIDERPOOL_PYTHON",
        *(
            f"SPIDERPOOL_INIT_DEFAULT_COORDINATOR_{name}"
            for name in (
                "NAME",
                "MODE",
                "POD_CIDR_TYPE",
                "DETECT_GATEWAY",
                "DETECT_IP_CONFLICT",
                "TUNE_POD_ROUTES",
                "HIJACK_CIDR",
                "POLICY_ROUTES",
                "VETH_LINK_ADDRESS",
                "VETH_MTU",
            )
        ),
        *(
            f"SPIDERPOOL_INIT_DEFAULT_{family}_{name}"
            for family in _FAMILIES
            for name in ("SUBNET_NAME", "IPPOOL_NAME", "IPPOOL_SUBNET", "IPPOOL_IPRANGES", "IPPOOL_GATEWAY")
        ),
        *(
            f"SPIDERPOOL_INIT_{name}"
            for name in (
                "ENABLE_MULTUS_CONFIG",
                "INSTALL_MULTUS",
                "DEFAULT_CNI_DIR",
                "DEFAULT_CNI_NAME",
                "DEFAULT_CNI_NAMESPACE",
                "MULTUS_CONFIGMAP",
                "READINESS_FILE",
            )
        ),
    }
)
"""Names of the init hook and of the project's own tools: accepted in silence, since a shell may carry them."""

_INJECTED = re.compile(
    r"SPIDERPOOL(_[A-Z0-9_]+)?_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""What kubelet puts into every container for each Service of its namespace: {SERVICE}_SERVICE_HOST and so on. None of
our names may look like this."""

_INJECTED_PORT = re.compile(r"(tcp|udp|sctp)://\S+", re.IGNORECASE)
"""And {SERVICE}_PORT: only its value tells it from a setting, for a Service may be called spiderpool-health."""


def is_injected(name: str, environ: Mapping[str, str], *, known: Container[str]) -> bool:
    """Whether kubelet put this name there for a Service. `known` are the names of settings.

    A name of ours whose value is a ``tcp://`` is kubelet's when the Service's other variables are there too: then the
    setting was not given. Without them it is a mistake, and refused by its value.
    """
    if _INJECTED.fullmatch(name):
        return True
    if not name.endswith("_PORT") or not _INJECTED_PORT.fullmatch(environ[name]):
        return False
    return name not in known or f"{name.removesuffix('_PORT')}_SERVICE_HOST" in environ


def check_opentelemetry(environ: Mapping[str, str]) -> None:
    """Refuse values of the standard OTEL_* names that the SDK would otherwise pass over, with a warning nobody reads.

    Raises `SettingsError`.
    """
    for name, (fits, expected) in _OPENTELEMETRY.items():
        value = environ.get(name, "").strip()
        if value and not fits(value):
            message = f"{name}={shown(value)}: expected {expected}"
            raise SettingsError(message)


def _is_url(value: str) -> bool:
    return re.fullmatch(r"https?://[^\s/]+(/\S*)?", value) is not None


def _is_ratio(value: str) -> bool:
    try:
        return 0.0 <= float(value) <= 1.0
    except ValueError:
        return False


_SAMPLERS = frozenset(
    {"always_on", "always_off", "traceidratio"}
    | {"parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"}
)

_OPENTELEMETRY: Mapping[str, tuple[Callable[[str], bool], str]] = {
    **dict.fromkeys(
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        (_is_url, "a URL that begins with http:// or https://"),
    ),
    **dict.fromkeys(
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        (lambda value: value == "http/protobuf", "http/protobuf, the only protocol that is spoken"),
    ),
    "OTEL_TRACES_EXPORTER": (lambda value: value.lower() in {"otlp", "none"}, "otlp or none"),
    "OTEL_TRACES_SAMPLER": (lambda value: value.lower() in _SAMPLERS, f"one of {', '.join(sorted(_SAMPLERS))}"),
    "OTEL_TRACES_SAMPLER_ARG": (_is_ratio, "a number from 0 to 1"),
    "OTEL_SDK_DISABLED": (lambda value: value.lower() in {"true", "false"}, "true or false"),
}
