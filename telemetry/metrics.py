"""Metrics: one table, from which the Prometheus objects, documentation, alert rules and dashboards are made.

The documented Spiderpool names are exported exactly as documented; our own follow Prometheus' conventions. Use the
constants: ``IPAM_ALLOCATION_COUNTS.inc()``. A labelled metric that is hot is bound once, ``X.labels("get")`` costs a
microsecond and what it returns a third of one per `inc`.

An `_total` is part of a name only where the table says so: `prometheus_client` appends it to every counter, the
documented names do not have it, so `render` writes the exposition itself.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What `render` returns, as an HTTP header value."""

type Label = str


class Program(StrEnum):
    """Which program exports a metric."""

    AGENT = "agent"
    CONTROLLER = "controller"
    BOTH = "both"


class Kind(StrEnum):
    """The Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(Struct, frozen=True, kw_only=True):
    """One row of the table."""

    name: str
    kind: Kind
    help: str
    """One sentence, without the full stop; units are in the name."""
    program: Program
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, without +Inf."""
    documented: bool = False
    """Whether the name is one that Spiderpool's users know from its reference."""


REGISTRY = CollectorRegistry(auto_describe=False)
"""Holds every metric below and the `process_*` ones of `prometheus_client`."""

TABLE: list[Metric] = []
"""Every metric below, in the order of declaration."""

ADD_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 0.5, 1.0, 3.0, 5.0, 7.0, 10.0, 15.0)
"""Spiderpool's own bounds, 0.1 to 15 s, so that its dashboards hold, and below them those in which our ADDs happen."""

IO_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""For one step: a request to a server, a netlink request, an fsync."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
"""For counts of things in a batch."""


def counter(
    name: str, text: str, *, program: Program, labels: tuple[Label, ...] = (), documented: bool = False
) -> Counter:
    """Add a counter to the table and make it."""
    _declare(Metric(name=name, kind=Kind.COUNTER, help=text, program=program, labels=labels, documented=documented))
    return Counter(name, text, labels, registry=REGISTRY)


def gauge(name: str, text: str, *, program: Program, labels: tuple[Label, ...] = (), documented: bool = False) -> Gauge:
    """Add a gauge to the table and make it."""
    _declare(Metric(name=name, kind=Kind.GAUGE, help=text, program=program, labels=labels, documented=documented))
    return Gauge(name, text, labels, registry=REGISTRY)


def histogram(
    name: str,
    text: str,
    *,
    program: Program,
    buckets: tuple[float, ...],
    labels: tuple[Label, ...] = (),
    documented: bool = False,
) -> Histogram:
    """Add a histogram to the table and make it."""
    row = Metric(
        name=name,
        kind=Kind.HISTOGRAM,
        help=text,
        program=program,
        labels=labels,
        buckets=buckets,
        documented=documented,
    )
    _declare(row)
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


class Durations:
    """A documented family: a histogram and the average, maximum, minimum and latest value since the process started."""

    __slots__ = ("_count", "_histogram", "_latest", "_maximum", "_minimum", "_sum")

    def __init__(self, stem: str, unit: str, what: str, *, program: Program) -> None:
        """`stem` and `unit` are the parts of the names, as in ``{stem}_average_{unit}``; `what` completes the helps."""

        def part(word: str, read: Callable[[], float]) -> None:
            text = f"{word.capitalize()} {what}, since the process started, in seconds"
            # Read when somebody scrapes: this is counted several times for each pod.
            gauge(f"{stem}_{word}_{unit}", text, program=program, documented=True).set_function(read)

        part("average", lambda: self._sum / self._count if self._count else 0.0)
        part("max", lambda: self._maximum)
        part("min", lambda: self._minimum if self._count else 0.0)
        part("latest", lambda: self._latest)
        self._histogram = histogram(
            f"{stem}_{unit}", f"Distribution of the {what}", program=program, buckets=ADD_SECONDS, documented=True
        )
        self._count = 0
        self._sum = self._maximum = self._latest = 0.0
        self._minimum = float("inf")

    def observe(self, seconds: float) -> None:
        """Count one operation that took `seconds`. For the event loop's thread only."""
        self._count += 1
        self._sum += seconds
        self._maximum = max(self._maximum, seconds)
        self._minimum = min(self._minimum, seconds)
        self._latest = seconds
        self._histogram.observe(seconds)


def on_scrape(read: Callable[[], None]) -> Callable[[], None]:
    """Have `read` called before each scrape, to set gauges that are read and not counted. Returns what undoes it."""
    _READERS.append(read)

    def remove() -> None:
        if read in _READERS:
            _READERS.remove(read)

    return remove


def refresh() -> None:
    """Call what `on_scrape` registered. For the event loop's thread, because the readers look at actors."""
    for read in tuple(_READERS):
        read()


_READERS: list[Callable[[], None]] = []


def render(program: Program = Program.BOTH) -> bytes:
    """The exposition text (`CONTENT_TYPE`), 6 ms per 1000 series: for a thread when there are many.

    `program` leaves out what only the other program exports; `Program.BOTH` is all.
    """
    other = {Program.AGENT: Program.CONTROLLER, Program.CONTROLLER: Program.AGENT}.get(program)
    return "".join(line for family in REGISTRY.collect() for line in _exposition(family, other)).encode()


def _declare(row: Metric) -> None:
    TABLE.append(row)
    _ROWS[row.name.removesuffix("_total") if row.kind is Kind.COUNTER else row.name] = row


_ROWS: dict[str, Metric] = {}
"""The table by the name under which the registry knows a metric: a counter's without `_total`."""


def _exposition(family: "Family", other: Program | None) -> Iterator[str]:
    row = _ROWS.get(family.name)
    if row is not None and row.program is other:
        return
    name = f"{family.name}_total" if family.type == "counter" else family.name
    if row is not None:
        name = row.name
    help_text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {help_text}\n# TYPE {name} {family.type}\n"
    for sample in family.samples:
        suffix = sample.name.removeprefix(family.name)
        if suffix == "_created":
            continue
        shown = name if family.type == "counter" else sample.name
        labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels.items())
        yield f"{shown}{{{labels}}} {_number(sample.value)}\n" if labels else f"{shown} {_number(sample.value)}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return "-Inf" if value == float("-inf") else repr(float(value)).replace("nan", "NaN")


# ---------------------------------------------------------------- documented by Spiderpool

IPAM_ALLOCATION_COUNTS = counter(
    "spiderpool_ipam_allocation_counts",
    "Allocations asked for by ADD, whatever became of them",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_FAILURE_COUNTS = counter(
    "spiderpool_ipam_allocation_failure_counts",
    "Allocations that failed, for any reason",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_UPDATE_IPPOOL_CONFLICT_COUNTS = counter(
    "spiderpool_ipam_allocation_update_ippool_conflict_counts",
    "Writes of a pool's status with claims in them that met another resourceVersion and were replayed",
    program=Program.CONTROLLER,
    documented=True,
)
IPAM_ALLOCATION_ERR_INTERNAL_COUNTS = counter(
    "spiderpool_ipam_allocation_err_internal_counts",
    "Allocations that failed for an internal reason",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_ERR_NO_AVAILABLE_POOL_COUNTS = counter(
    "spiderpool_ipam_allocation_err_no_available_pool_counts",
    "Allocations that failed because no pool fits the pod",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_ERR_RETRIES_EXHAUSTED_COUNTS = counter(
    "spiderpool_ipam_allocation_err_retries_exhausted_counts",
    "Allocations that failed because they were not done before their deadline",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_ERR_IP_USED_OUT_COUNTS = counter(
    "spiderpool_ipam_allocation_err_ip_used_out_counts",
    "Allocations that failed because every pool that fits the pod is full",
    program=Program.AGENT,
    documented=True,
)
IPAM_ALLOCATION_DURATION = Durations(
    "spiderpool_ipam_allocation", "duration_seconds", "time of an allocation", program=Program.AGENT
)
IPAM_ALLOCATION_LIMIT_DURATION = Durations(
    "spiderpool_ipam_allocation",
    "limit_duration_seconds",
    "time that an allocation waits in its pool's mailbox",
    program=Program.CONTROLLER,
)

IPAM_RELEASE_COUNTS = counter(
    "spiderpool_ipam_release_counts",
    "Releases asked for by DEL, whatever became of them",
    program=Program.AGENT,
    documented=True,
)
IPAM_RELEASE_FAILURE_COUNTS = counter(
    "spiderpool_ipam_release_failure_counts",
    "Releases that failed, for any reason",
    program=Program.AGENT,
    documented=True,
)
IPAM_RELEASE_UPDATE_IPPOOL_CONFLICT_COUNTS = counter(
    "spiderpool_ipam_release_update_ippool_conflict_counts",
    "Writes of a pool's status with releases only that met another resourceVersion and were replayed",
    program=Program.CONTROLLER,
    documented=True,
)
IPAM_RELEASE_ERR_INTERNAL_COUNTS = counter(
    "spiderpool_ipam_release_err_internal_counts",
    "Releases that failed for an internal reason",
    program=Program.AGENT,
    documented=True,
)
IPAM_RELEASE_ERR_RETRIES_EXHAUSTED_COUNTS = counter(
    "spiderpool_ipam_release_err_retries_exhausted_counts",
    "Releases that were not done before their deadline",
    program=Program.AGENT,
    documented=True,
)
IPAM_RELEASE_DURATION = Durations(
    "spiderpool_ipam_release", "duration_seconds", "time of a release", program=Program.AGENT
)
IPAM_RELEASE_LIMIT_DURATION = Durations(
    "spiderpool_ipam_release",
    "limit_duration_seconds",
    "time that a release waits in its pool's mailbox",
    program=Program.CONTROLLER,
)

IP_GC_COUNTS = counter(
    "spiderpool_ip_gc_counts",
    "Addresses that were given up because nobody needs them any more",
    program=Program.CONTROLLER,
    documented=True,
)
IP_GC_FAILURE_COUNTS = counter(
    "spiderpool_ip_gc_failure_counts",
    "Attempts to give up addresses that failed and are repeated",
    program=Program.CONTROLLER,
    documented=True,
)
IPAM_DRIFT = counter(
    "spiderpool_ipam_drift_total",
    "Differences between pools, SpiderEndpoints and what agents know, found at two looks in a row",
    program=Program.CONTROLLER,
    labels=("kind",),
)
TOTAL_IPPOOL_COUNTS = gauge(
    "spiderpool_total_ippool_counts", "SpiderIPPools that exist", program=Program.CONTROLLER, documented=True
)
TOTAL_SUBNET_COUNTS = gauge(
    "spiderpool_total_subnet_counts", "SpiderSubnets that exist", program=Program.CONTROLLER, documented=True
)
DEBUG_SUBNET_IPPOOL_COUNTS, DEBUG_SUBNET_TOTAL_IP_COUNTS, DEBUG_SUBNET_AVAILABLE_IP_COUNTS = (
    gauge(
        f"spiderpool_debug_subnet_{what}_counts",
        f"{text}; only with SPIDERPOOL_ENABLED_DEBUG_METRIC",
        program=Program.CONTROLLER,
        labels=("SpiderSubnet",),
        documented=True,
    )
    for what, text in (
        ("ippool", "Pools that have addresses of a subnet"),
        ("total_ip", "Addresses of a subnet"),
        ("available_ip", "Addresses of a subnet that no pool has"),
    )
)
DEBUG_IPPOOL_TOTAL_IP_COUNTS = gauge(
    "spiderpool_debug_ippool_total_ip_counts",
    "Addresses of a pool; only with SPIDERPOOL_ENABLED_DEBUG_METRIC",
    program=Program.CONTROLLER,
    labels=("SpiderIPPool",),
    documented=True,
)
DEBUG_IPPOOL_AVAILABLE_IP_COUNTS = gauge(
    "spiderpool_debug_ippool_available_ip_counts",
    "Addresses of a pool that nobody holds; only with SPIDERPOOL_ENABLED_DEBUG_METRIC",
    program=Program.CONTROLLER,
    labels=("SpiderIPPool",),
    documented=True,
)

# ---------------------------------------------------------------- ours: actors

ACTORS = gauge("spiderpool_actors", "Actors that run", program=Program.BOTH, labels=("actor",))
ACTOR_RESTARTS = counter(
    "spiderpool_actor_restarts_total", "Actors restarted by their supervisor", program=Program.BOTH, labels=("actor",)
)
MAILBOX_DEPTH = gauge(
    "spiderpool_mailbox_depth",
    "Messages that wait in the fullest mailbox of a kind of actor",
    program=Program.BOTH,
    labels=("actor",),
)
MAILBOX_OLDEST_AGE_SECONDS = gauge(
    "spiderpool_mailbox_oldest_age_seconds",
    "Age of the oldest message that waits at a kind of actor",
    program=Program.BOTH,
    labels=("actor",),
)
MAILBOX_WAIT_SECONDS = histogram(
    "spiderpool_mailbox_wait_seconds",
    "Time from a message's arrival to its turn",
    program=Program.BOTH,
    labels=("actor",),
    buckets=IO_SECONDS,
)
MAILBOX_BATCH_SIZE = histogram(
    "spiderpool_mailbox_batch_size",
    "Messages that an actor took at once",
    program=Program.BOTH,
    labels=("actor",),
    buckets=SIZES,
)
MAILBOX_REJECTIONS = counter(
    "spiderpool_mailbox_rejections_total",
    "Messages refused because the mailbox was full",
    program=Program.BOTH,
    labels=("actor",),
)

# ---------------------------------------------------------------- ours: pools

POOL_COMMITS = counter(
    "spiderpool_pool_commits_total",
    "Batches of a pool by what became of them: committed, unchanged, conflict, ambiguous, failed",
    program=Program.CONTROLLER,
    labels=("outcome",),
)
POOL_COMMIT_SECONDS = histogram(
    "spiderpool_pool_commit_seconds",
    "Time of one write of a pool's status, replays not included",
    program=Program.CONTROLLER,
    buckets=IO_SECONDS,
)
POOL_COMMIT_OPERATIONS = histogram(
    "spiderpool_pool_commit_operations",
    "Claims and releases in one batch of a pool",
    program=Program.CONTROLLER,
    buckets=SIZES,
)
POOL_COMMIT_BYTES = counter(
    "spiderpool_pool_commit_bytes_total",
    "Bytes of pool objects written; the budget is on their rate",
    program=Program.CONTROLLER,
)
POOL_WRITE_PAUSE_SECONDS = histogram(
    "spiderpool_pool_write_pause_seconds",
    "Pauses of a pool after a write that overdrew the replica's share of the byte budget",
    program=Program.CONTROLLER,
    buckets=IO_SECONDS,
)
POOL_WRITE_BALANCE_BYTES = gauge(
    "spiderpool_pool_write_balance_bytes",
    "What this replica may write of pools at once; negative while pools pause",
    program=Program.CONTROLLER,
)
POOL_WAITS = counter(
    "spiderpool_pool_waits_total",
    "Claims that waited for an address of a full pool, by how it ended: granted, full, other (refused for another"
    " reason), gone (the asker gave up)",
    program=Program.CONTROLLER,
    labels=("outcome",),
)
POOL_ADDRESSES_GRANTED = counter(
    "spiderpool_pool_addresses_granted_total", "Addresses granted and committed", program=Program.CONTROLLER
)
POOL_WRITES_PER_GRANT = gauge(
    "spiderpool_pool_writes_per_grant",
    "Writes of pools for each address granted, releases among them, since the process started; a pod has one address of"
    " each family",
    program=Program.CONTROLLER,
)
POOL_ADDRESSES_RELEASED = counter(
    "spiderpool_pool_addresses_released_total", "Addresses released and committed", program=Program.CONTROLLER
)
POOL_ADDRESSES_QUARANTINED = counter(
    "spiderpool_pool_addresses_quarantined_total",
    "Addresses put into quarantine because somebody else on the network has them",
    program=Program.CONTROLLER,
)
POOL_ADDRESSES_WITHHELD = gauge(
    "spiderpool_pool_addresses_withheld",
    "Addresses of all pools that nobody has and nobody gets yet, by kind: cool-down, quarantine, provider (it has not"
    " released them yet)",
    program=Program.CONTROLLER,
    labels=("kind",),
)

# ---------------------------------------------------------------- ours: network providers

PROVIDER_REQUESTS = counter(
    "spiderpool_provider_requests_total",
    "Requests to the network provider by method (allocate, release) and outcome: ok, refused (no 2xx), unusable (an"
    " answer that makes no sense), unanswered (it may have been carried out), unreachable, failed (not sent)",
    program=Program.CONTROLLER,
    labels=("method", "outcome"),
)
PROVIDER_REQUEST_SECONDS = histogram(
    "spiderpool_provider_request_seconds",
    "Time of a request to the network provider",
    program=Program.CONTROLLER,
    labels=("method",),
    buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
PROVIDER_RELEASES_FAILING = gauge(
    "spiderpool_provider_releases_failing",
    "Addresses that the network provider was asked to release and has not: they are withheld, and it is asked again",
    program=Program.CONTROLLER,
)

# ---------------------------------------------------------------- ours: events and history

EVENTS_DROPPED = counter(
    "spiderpool_events_dropped_total",
    "Events that are not written: more was said than can be (overload), or the API server does not take it (refused)",
    program=Program.BOTH,
    labels=("why",),
)

NETWORK_DEFINITION_WRITES = counter(
    "spiderpool_network_definition_writes_total",
    "Writes of NetworkAttachmentDefinitions for SpiderMultusConfigs: created, rewritten, removed",
    program=Program.CONTROLLER,
    labels=("change",),
)
HISTORY_WRITES = counter(
    "spiderpool_history_writes_total",
    "Writes of a pool's history by what became of them: written, conflict, failed",
    program=Program.CONTROLLER,
    labels=("outcome",),
)
HISTORY_BYTES = counter(
    "spiderpool_history_bytes_total", "Bytes of history written, in base64", program=Program.CONTROLLER
)
HISTORY_CHANGES_DROPPED = counter(
    "spiderpool_history_changes_dropped_total",
    "Changes that the history does not get when they happen; what they came to is found later",
    program=Program.CONTROLLER,
)

COORDINATOR_NOT_READY = gauge(
    "spiderpool_coordinator_not_ready",
    "1 for a SpiderCoordinator while the cluster's CIDRs are not known, and pods that need them are refused",
    program=Program.CONTROLLER,
    labels=("coordinator",),
)

# ---------------------------------------------------------------- ours: store

STORE_REQUESTS = counter(
    "spiderpool_store_requests_total",
    "Requests to the API server, or to the embedded store, by HTTP status code or by the name of the error",
    program=Program.BOTH,
    labels=("verb", "resource", "code"),
)
STORE_REQUEST_SECONDS = histogram(
    "spiderpool_store_request_seconds",
    "Time of a request to the API server or to the embedded store, watches not included",
    program=Program.BOTH,
    labels=("verb", "resource"),
    buckets=IO_SECONDS,
)
STORE_WATCH_RESTARTS = counter(
    "spiderpool_store_watch_restarts_total",
    "Watches begun again, by reason: closed, expired, silent, error",
    program=Program.BOTH,
    labels=("resource", "reason"),
)
STORE_CACHED_OBJECTS = gauge(
    "spiderpool_store_cached_objects", "Objects held from list and watch", program=Program.BOTH, labels=("resource",)
)

# ---------------------------------------------------------------- ours: agent and controller

RPC_REQUESTS = counter(
    "spiderpool_rpc_requests_total",
    "Requests between agent and controller, by side (client, server) and outcome (ok or the error's name)",
    program=Program.BOTH,
    labels=("side", "method", "outcome"),
)
RPC_REQUEST_SECONDS = histogram(
    "spiderpool_rpc_request_seconds",
    "Time of a request between agent and controller",
    program=Program.BOTH,
    labels=("side", "method"),
    buckets=IO_SECONDS,
)
ADMISSION_REVIEWS = counter(
    "spiderpool_admission_reviews_total",
    "Objects that the API server asked about, by way (mutate, validate), kind, operation, and outcome (admitted, "
    "completed, refused, malformed, unanswered; no_review is what was no AdmissionReview)",
    program=Program.CONTROLLER,
    labels=("way", "kind", "operation", "outcome"),
)
ADMISSION_REVIEW_SECONDS = histogram(
    "spiderpool_admission_review_seconds",
    "Time to answer whether an object may be written",
    program=Program.CONTROLLER,
    labels=("way", "kind"),
    buckets=IO_SECONDS,
)
CERTIFICATE_EXPIRY = gauge(
    "spiderpool_certificate_expiry_timestamp_seconds",
    "When the certificate expires that agents and the API server are shown, Unix time",
    program=Program.CONTROLLER,
)
CERTIFICATE_AUTHORITY_EXPIRY = gauge(
    "spiderpool_certificate_authority_expiry_timestamp_seconds",
    "When the newest authority expires that the controller has made, Unix time; said by the replica that keeps it",
    program=Program.CONTROLLER,
)
CERTIFICATES_MADE = counter(
    "spiderpool_certificates_made_total",
    "Certificates of our own that were made and stored, by what (authority, certificate)",
    program=Program.CONTROLLER,
    labels=("what",),
)
CERTIFICATE_FAILURES = counter(
    "spiderpool_certificate_failures_total",
    "Looks at the certificates of our own that could not be ended, or found something that is not as it should be",
    program=Program.CONTROLLER,
)
RPC_CONNECTIONS = gauge(
    "spiderpool_rpc_connections",
    "Open connections between agent and controller",
    program=Program.BOTH,
    labels=("side",),
)
RPC_CONNECTION_FAILURES = counter(
    "spiderpool_rpc_connection_failures_total",
    "Connections to a controller that failed or were lost, by reason",
    program=Program.BOTH,
    labels=("reason",),
)

# ---------------------------------------------------------------- ours: the node

CNI_DELEGATE_EXECS = counter(
    "spiderpool_cni_delegate_execs_total",
    "Executions of other people's CNI plugins, by verb and plugin type",
    program=Program.AGENT,
    labels=("verb", "type"),
)
CNI_REQUESTS = counter(
    "spiderpool_cni_requests_total",
    "CNI calls by verb, plugin type and CNI error code (0: success)",
    program=Program.AGENT,
    labels=("verb", "type", "code"),
)
CNI_REQUEST_SECONDS = histogram(
    "spiderpool_cni_request_seconds",
    "Time of a CNI call from the shim's exec to the answer",
    program=Program.AGENT,
    labels=("verb",),
    buckets=ADD_SECONDS,
)
SANDBOXES = gauge("spiderpool_sandboxes", "Pod sandboxes that the agent's journal holds", program=Program.AGENT)
LOOP_LAG_SECONDS = histogram(
    "spiderpool_loop_lag_seconds",
    "How late the agent's event loop came to a timer while CNI calls were under way",
    program=Program.AGENT,
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
)
NETLINK_STEP_SECONDS = histogram(
    "spiderpool_netlink_step_seconds",
    "Time of one step on the kernel, by step",
    program=Program.AGENT,
    labels=("step",),
    buckets=IO_SECONDS,
)
DETECTION_PROBED = counter(
    "spiderpool_detection_probed_total",
    "Addresses and gateways of pods that were asked for on the network before the pod got its addresses, by what it is",
    program=Program.AGENT,
    labels=("what",),
)
DETECTION_CONFLICTS = counter(
    "spiderpool_detection_conflicts_total",
    "Granted addresses that somebody else on the network was found to have",
    program=Program.AGENT,
)
DETECTION_SILENT_GATEWAYS = counter(
    "spiderpool_detection_silent_gateways_total",
    "Gateways that did not answer, whereupon the pod was refused",
    program=Program.AGENT,
)
DETECTION_SECONDS = histogram(
    "spiderpool_detection_seconds",
    "Time to ask for all addresses and gateways of the interfaces of one call at once",
    program=Program.AGENT,
    buckets=IO_SECONDS,
)
NETLINK_REQUESTS = counter(
    "spiderpool_netlink_requests_total",
    "Requests to the kernel, by step",
    program=Program.AGENT,
    labels=("step",),
)
NETLINK_ERRORS = counter(
    "spiderpool_netlink_errors_total",
    "Steps that the kernel refused, by step and errno name",
    program=Program.AGENT,
    labels=("step", "errno"),
)
DEVICES = gauge(
    "spiderpool_device_plugin_devices",
    "Devices that this node advertises to its kubelet, by resource",
    program=Program.AGENT,
    labels=("resource",),
)
DEVICE_REGISTRATIONS = counter(
    "spiderpool_device_plugin_registrations_total",
    "Registrations of resources at the kubelet, by outcome (registered, failed)",
    program=Program.AGENT,
    labels=("outcome",),
)
DEVICE_ALLOCATIONS = counter(
    "spiderpool_device_plugin_allocations_total",
    "Devices for a container that the kubelet asked for, by resource and outcome (allocated, refused)",
    program=Program.AGENT,
    labels=("resource", "outcome"),
)
JOURNAL_FSYNC_SECONDS = histogram(
    "spiderpool_journal_fsync_seconds",
    "Time to make journal entries that are written together durable",
    program=Program.AGENT,
    buckets=IO_SECONDS,
)

# ---------------------------------------------------------------- ours: the process

BUILD_INFO = gauge("spiderpool_build_info", "1, with the version as a label", program=Program.BOTH, labels=("version",))

ProcessCollector(registry=REGISTRY)
