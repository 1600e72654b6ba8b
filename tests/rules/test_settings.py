"""Settings: every documented name is accepted, and whatever is wrong is one line that names it."""

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import configfile, environment, settings
from api.settings import (
    Address,
    AgentSettings,
    ControllerSettings,
    Flags,
    SettingsError,
    load_agent,
    load_controller,
    load_standalone,
    parse_addresses,
)
from telemetry.logs import LEVELS

NEEDED = {
    "SPIDERPOOL_POD_NAMESPACE": "kube-system",
    "SPIDERPOOL_POD_NAME": "spiderpool-x",
    "SPIDERPOOL_NODE_NAME": "node-1",
}


def agent(environ: Mapping[str, str] | None = None, text: str | None = None) -> AgentSettings:
    return load_agent({**NEEDED, **(environ or {})}, text)


def controller(environ: Mapping[str, str] | None = None, text: str | None = None) -> ControllerSettings:
    return load_controller({**NEEDED, **(environ or {})}, text)


def refusal(environ: Mapping[str, str] | None = None, text: str | None = None) -> str:
    """The refusal's text, the same from both programs."""
    with pytest.raises(SettingsError) as one:
        agent(environ, text)
    with pytest.raises(SettingsError) as other:
        controller(environ, text)
    assert str(one.value) == str(other.value)
    assert "\n" not in str(one.value)
    return str(one.value)


def test_the_defaults_are_the_documented_ones() -> None:
    ours, theirs = agent(), controller()
    assert (ours.health_port, ours.metric_http_port) == (5710, 5711)
    assert (theirs.health_port, theirs.metric_http_port, theirs.webhook_port, theirs.rpc_port) == (
        5720,
        5721,
        5722,
        5723,
    )
    assert ours.log_level == theirs.log_level == "info"
    assert ours.ippool_max_allocated_ips == theirs.ippool_max_allocated_ips == 5000
    assert not ours.enabled_metric
    assert ours.enabled_release_conflict_ips
    assert (theirs.gc_interval, theirs.gc_additional_grace) == (600.0, 0.0)
    assert (theirs.leader_duration, theirs.leader_renew_deadline, theirs.leader_retry_period) == (15.0, 10.0, 2.0)
    assert theirs.coordinator_name == "default"
    assert ours.config == theirs.config == configfile.ConfigFile()
    assert ours.config.ipam_unix_socket_path == "/var/run/spidernet/spiderpool.sock"
    assert ours.notes == ()


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("SPIDERPOOL_POD_NAMESPACE", "the namespace of this pod"),
        ("SPIDERPOOL_POD_NAME", "the name of this pod"),
        ("SPIDERPOOL_NODE_NAME", "the name of this node"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_a_required_name_that_is_missing_or_empty(name: str, needs: str, empty: bool) -> None:
    environ = {**NEEDED, name: ""} if empty else {key: value for key, value in NEEDED.items() if key != name}
    with pytest.raises(SettingsError, match=f"^{name} is missing: spiderpool-agent needs {needs}$"):
        load_agent(environ)


def test_every_name_of_the_table_is_accepted_by_both_programs() -> None:
    example: dict[type, str] = {bool: "true", int: "7", float: "7", str: "/x"}
    values = {
        name: example.get(get_args(setting.type)[0], "[fd00::1]:5723")
        for setting in (*settings.AGENT, *settings.CONTROLLER)
        for name in setting.names
    }
    values["SPIDERPOOL_LOG_LEVEL"] = "warn"
    values["SPIDERPOOL_CNI_MASTER"] = "bond0"
    values["SPIDERPOOL_DETECTION_TIMEOUT"] = "0.1"
    values["SPIDERPOOL_CNI_PLUGINS"] = "spiderpool,macvlan"
    values["SPIDERPOOL_CNI_CLUSTER_NETWORK"] = "k8s-pod-network"
    values["SPIDERPOOL_CERTIFICATE_SECRET"] = ""
    values["SPIDERPOOL_CERTIFICATE_HOSTS"] = "pools.example,10.6.0.1"
    values["SPIDERPOOL_SERVICE_CIDR"] = "fd00::/112"
    values["SPIDERPOOL_MULTUS_GLOBAL_NAMESPACES"] = "default,kube-system"
    rest = dict.fromkeys(settings.KNOWN - set(values), "anything at all")
    assert agent({**rest, **values}).log_level == "warn"
    assert controller({**rest, **values}).controller_addresses == (Address("fd00::1", 5723),)


def test_a_name_without_effect_is_noted_with_its_reason() -> None:
    assert agent({"SPIDERPOOL_GOPS_LISTEN_PORT": "5712"}).notes == (
        "SPIDERPOOL_GOPS_LISTEN_PORT has no effect: gops looks into Go programs",
    )
    assert agent({"SPIDERPOOL_WEBHOOK_PORT": "5722"}).notes == (
        "SPIDERPOOL_WEBHOOK_PORT has no effect on spiderpool-agent",
    )
    assert controller({"SPIDERPOOL_WEBHOOK_PORT": "5722", "SPIDERPOOL_NODE_NAME": ""}).notes == ()
    assert agent({"SPIDERPOOL_CACHE": "/x", "SPIDERPOOL_INIT_NAME": "y"}).notes == ()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    text = refusal({"SPIDERPOOL_HEALT_PORT": "1"})
    assert text == "SPIDERPOOL_HEALT_PORT='1' is not a setting (did you mean SPIDERPOOL_HEALTH_PORT?)"
    assert refusal({"SPIDERPOOL_XYZZY": "1"}) == "SPIDERPOOL_XYZZY='1' is not a setting"
    assert agent({"SPIDERMAN": "1", "PATH": "/bin"}) == agent()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SPIDERPOOL_HEALTH_PORT", "65536", "a port number, 0 to 65535"),
        ("SPIDERPOOL_HEALTH_PORT", "-1", "a port number, 0 to 65535"),
        ("SPIDERPOOL_METRIC_HTTP_PORT", "http", "a port number, 0 to 65535"),
        ("SPIDERPOOL_LOG_LEVEL", "loud", "one of debug, info, warn, error"),
        ("SPIDERPOOL_ENABLED_METRIC", "yes", "true or false"),
        ("SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS", "0", "a whole number above 0"),
        ("SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS", "many\nmore", "a whole number above 0"),
        ("SPIDERPOOL_STATE_DIR", "state", "an absolute path"),
        ("SPIDERPOOL_CONTROLLER_ADDRESSES", "10.0.0.1", "host:port,... with IPv6 in brackets"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "jaeger:4318", "a URL that begins with http:// or https://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf, the only protocol that is spoken"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "a number from 0 to 1"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("OTEL_SDK_DISABLED", "maybe", "true or false"),
    ],
)
def test_a_malformed_value_is_named(name: str, value: str, expected: str) -> None:
    assert refusal({name: value}) == f"{name}={value!r}: expected {expected}"


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", "0"])
def test_seconds_are_finite_and_not_negative(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^SPIDERPOOL_LEADER_DURATION='.*': expected a number of seconds"):
        controller({"SPIDERPOOL_LEADER_DURATION": value})


@pytest.mark.parametrize(("value", "meant"), [("true", True), ("1", True), ("T", True), ("FALSE", False), ("0", False)])
def test_booleans_as_go_reads_them(value: str, meant: bool) -> None:
    assert agent({"SPIDERPOOL_ENABLED_METRIC": value}).enabled_metric is meant


def test_both_spellings_of_the_coordinators_name() -> None:
    right, wrong = "SPIDERPOOL_COORDINATOR_DEFAULT_NAME", "SPIDERPOOL_COORDINATOR_DEAFULT_NAME"
    assert controller({right: "c"}).coordinator_name == "c"
    assert controller({wrong: "c"}).coordinator_name == "c"
    assert controller({right: "c", wrong: "c"}).coordinator_name == "c"
    with pytest.raises(SettingsError, match=f"^{wrong}='b' contradicts {right}='a'$"):
        controller({right: "a", wrong: "b"})


def service(name: str, *, port: int = 5722, protocol: str = "tcp") -> dict[str, str]:
    """What kubelet injects for a Service."""
    stem = name.upper().replace("-", "_")
    url = f"{protocol}://10.96.0.7:{port}"
    at = f"{stem}_PORT_{port}_{protocol.upper()}"
    return {
        f"{stem}_SERVICE_HOST": "10.96.0.7",
        f"{stem}_SERVICE_PORT": str(port),
        f"{stem}_SERVICE_PORT_WEBHOOK": str(port),
        f"{stem}_PORT": url,
        at: url,
        f"{at}_PROTO": protocol,
        f"{at}_PORT": str(port),
        f"{at}_ADDR": "10.96.0.7",
    }


@pytest.mark.parametrize(
    "name",
    [
        "spiderpool",
        "spiderpool-controller",
        "spiderpool-agent",
        "spiderpool-rpc",
        "spiderpool-health",
        "spiderpool-a-1",
    ],
)
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_kubelet_injects_for_services_is_no_setting(name: str, protocol: str) -> None:
    assert controller(service(name, protocol=protocol)) == controller()
    assert agent(service(name, protocol=protocol)) == agent()


def test_a_setting_is_read_beside_an_injected_one() -> None:
    found = controller({**service("spiderpool-controller"), "SPIDERPOOL_RPC_PORT": "6000"})
    assert found.rpc_port == 6000


def test_no_name_of_ours_looks_injected() -> None:
    values = dict.fromkeys(settings.KNOWN, "1")
    assert not [name for name in settings.KNOWN if environment.is_injected(name, values, known=settings.KNOWN)]


def test_a_setting_with_a_url_for_a_port_is_a_mistake_without_its_service() -> None:
    text = refusal({"SPIDERPOOL_HEALTH_PORT": "tcp://10.96.0.7:1"})
    assert text.startswith("SPIDERPOOL_HEALTH_PORT='tcp://10.96.0.7:1': expected a port")


def test_addresses() -> None:
    assert parse_addresses("a.b.svc:5723, 10.0.0.1:1,[fd00::1]:65535,") == (
        Address("a.b.svc", 5723),
        Address("10.0.0.1", 1),
        Address("fd00::1", 65535),
    )
    assert ",".join(map(str, parse_addresses("h:1,[::1]:2"))) == "h:1,[::1]:2"
    assert parse_addresses("") == ()


@pytest.mark.parametrize(
    "text", ["a", "a:", ":1", "a:0", "a:65536", "::1:1", "[a]:1", "[::1]", "a b:1", "http://a:1", "a:1:2"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_addresses(text)


@given(st.text(max_size=30))
def test_addresses_from_any_text(text: str) -> None:
    try:
        found = parse_addresses(text)
    except ValueError:
        return
    assert parse_addresses(",".join(map(str, found))) == found


def test_a_certificate_needs_its_key() -> None:
    full = load_controller(NEEDED, None, Flags(tls_server_cert="/c", tls_server_key="/k"))
    assert (full.tls_server_cert, full.tls_server_key) == ("/c", "/k")
    with pytest.raises(SettingsError, match=r"^--tls-server-key is missing"):
        load_controller(NEEDED, None, Flags(tls_server_cert="/c"))
    with pytest.raises(SettingsError, match=r"^--tls-server-cert is missing"):
        load_controller(NEEDED, None, Flags(tls_server_key="/k"))


OWN = {"SPIDERPOOL_CERTIFICATE_SECRET": "certs"}


def test_certificates_of_our_own_can_be_replaced_before_they_expire() -> None:
    flags = Flags(tls_server_cert="/c", tls_server_key="/c")
    assert load_controller({**NEEDED, **OWN}, None, flags).certificate_secret == "certs"
    short = {"SPIDERPOOL_CERTIFICATE_LIFETIME": "9", "SPIDERPOOL_CERTIFICATE_OVERLAP": "1"}
    short |= {"SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME": "30"}
    assert load_controller({**NEEDED, **OWN, **short}, None, flags).certificate_lifetime == 9
    for change, words in (
        ({"SPIDERPOOL_CERTIFICATE_LIFETIME": "11"}, "SPIDERPOOL_CERTIFICATE_LIFETIME='11': more than the 10.2 s"),
        ({"SPIDERPOOL_CERTIFICATE_OVERLAP": "2"}, "SPIDERPOOL_CERTIFICATE_OVERLAP='2': more than half of the 3.06 s"),
        ({"SPIDERPOOL_CERTIFICATE_RENEWAL_PERCENT": "100"}, "SPIDERPOOL_CERTIFICATE_RENEWAL_PERCENT='100': expected"),
        ({"SPIDERPOOL_CERTIFICATE_HOSTS": "a b"}, "SPIDERPOOL_CERTIFICATE_HOSTS='a b': expected DNS names"),
    ):
        with pytest.raises(SettingsError, match=f"^{re.escape(words)}"):
            load_controller({**NEEDED, **OWN, **short, **change}, None, flags)
    with pytest.raises(SettingsError, match=r"^--tls-server-key='/k': with SPIDERPOOL_CERTIFICATE_SECRET"):
        load_controller({**NEEDED, **OWN}, None, Flags(tls_server_cert="/c", tls_server_key="/k"))
    without = {name: value for name, value in short.items() if "AUTHORITY" not in name}
    assert load_controller({**NEEDED, **without, "SPIDERPOOL_CERTIFICATE_OVERLAP": "7"}).certificate_secret == ""


def test_standalone_has_settings_of_its_own() -> None:
    assert load_standalone({}).pool_dir == ""
    found = load_standalone({"SPIDERPOOL_STANDALONE_POOL_DIR": "/etc/spiderpool/pools"})
    assert (found.pool_dir, found.notes) == ("/etc/spiderpool/pools", ())
    with pytest.raises(SettingsError, match=r"^SPIDERPOOL_STANDALONE_POOL_DIR='pools': expected an absolute path$"):
        load_standalone({"SPIDERPOOL_STANDALONE_POOL_DIR": "pools"})
    noted = agent({"SPIDERPOOL_STANDALONE_POOL_DIR": "/x"}).notes
    assert noted == ("SPIDERPOOL_STANDALONE_POOL_DIR has no effect on spiderpool-agent",)


def test_standalone_needs_no_pod() -> None:
    found = load_standalone({"SPIDERPOOL_WEBHOOK_PORT": "0", "SPIDERPOOL_GOPS_LISTEN_PORT": "1"})
    assert found.agent.node_name == "localhost"
    assert found.controller.webhook_port == 0
    assert found.notes == ("SPIDERPOOL_GOPS_LISTEN_PORT has no effect: gops looks into Go programs",)
    assert load_standalone({"SPIDERPOOL_NODE_NAME": "n"}).agent.node_name == "n"


def test_the_log_levels_are_those_of_telemetry() -> None:
    assert set(get_args(settings.LogLevel)) == set(LEVELS)


# ---------------------------------------------------------------- conf.yml

CHART = """\
ipamUnixSocketPath: /var/run/spidernet/spiderpool.sock
enableIPv4: true
enableIPv6: false
tuneSysctlConfig: true
enableStatefulSet: true
enableKubevirtStaticIP: true
enableSpiderSubnet: true
enableAutoPoolForApplication: true
clusterSubnetDefaultFlexibleIPNumber: 3
enableIPConflictDetection: false
enableGatewayDetection: true
enableCleanOutdatedEndpoint: false
enableValidatingResourcesDeletedWebhook: false
podResourceInject:
  enabled: false
  namespacesExclude: [kube-system, istio-system]
  namespacesInclude:
iaasNetworkProvider: {serverUrl: "", httpRequestTimeout: "1m30s"}
agent:
  networkResourcePlugin:
    enabled: false
    kubeletRootDir: /var/lib/kubelet
    devicePluginAffinity: {nodeSelector: {matchLabels: {a: b}}}
    resourceAdvertisement:
      subENI: {rules: [{resourceName: x/y, defaultMaxCount: 3, nodeSelector: {}}]}
      masterNIC: {rules: [{includeInterfaces: ["eth*"]}]}
"""


def test_a_file_as_the_chart_writes_it() -> None:
    config = agent(text=CHART).config
    assert not config.enable_ipv6
    assert config.enable_gateway_detection
    assert config.redundant_ip_number == 3
    assert config.pod_resource_inject.namespaces_exclude == ("kube-system", "istio-system")
    assert config.pod_resource_inject.namespaces_include == ()
    assert config.iaas_network_provider.timeout == 90.0
    plugin = config.agent.network_resource_plugin
    assert plugin.device_plugin_affinity.node_selector.match_labels == {"a": "b"}
    assert plugin.resource_advertisement.sub_eni.rules[0].default_max_count == 3
    assert plugin.resource_advertisement.master_nic.rules[0].default_max_count == 10000


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "---\n"])
def test_no_file_and_an_empty_one(text: str | None) -> None:
    assert agent(text=text).config == configfile.ConfigFile()


def test_the_documented_name_of_the_redundant_number_wins() -> None:
    both = "clusterSubnetDefaultFlexibleIPNumber: 3\nclusterSubnetAutoPoolDefaultRedundantIPNumber: 4\n"
    assert agent(text=both).config.redundant_ip_number == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("enableIPV4: false", "unknown key enableIPV4: False (did you mean enableIPv4?)"),
        ("wholly: [1]", "unknown key wholly: [1]"),
        ("podResourceInject: {enable: true}", "unknown key podResourceInject.enable: True (did you mean enabled?)"),
        (
            "agent: {networkResourcePlugin: {resourceAdvertisement: {subENI: {rules: [{}, {resource: 1}]}}}}",
            "unknown key agent.networkResourcePlugin.resourceAdvertisement.subENI.rules[1].resource: 1",
        ),
        ("enableIPv4: 'true'", "enableIPv4: 'true': expected bool, got str"),
        (
            "podResourceInject: {namespacesInclude: x}",
            "podResourceInject.namespacesInclude: 'x': expected array, got str",
        ),
        ("clusterSubnetDefaultFlexibleIPNumber: -1", "clusterSubnetDefaultFlexibleIPNumber: -1: expected int >= 0"),
        ("[]", "the file: []: expected object, got array"),
        ("enableIPv4: true\nenableIPv4: false", "line 2, column 1: key 'enableIPv4' stands twice"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("enableIPv4: false\nenableIPv6: false", "at least one family must be on"),
        ("iaasNetworkProvider: {httpRequestTimeout: 100s}", "httpRequestTimeout: '100s': expected"),
        ("iaasNetworkProvider: {serverUrl: cloud}", "serverUrl: 'cloud': expected https://host:port"),
        ("iaasNetworkProvider: {serverUrl: 'ftp://cloud'}", "serverUrl: 'ftp://cloud'"),
        ("iaasNetworkProvider: {serverUrl: 'https://cloud:443/v1'}", "without a path"),
        ("iaasNetworkProvider: {serverUrl: 'https://cloud:99999'}", "serverUrl: 'https://cloud:99999'"),
        ("iaasNetworkProvider: {serverUrl: 'https://[::1'}", "serverUrl:"),
        ("iaasNetworkProvider: {httpRequestTimeout: 5}", "httpRequestTimeout: 5: expected str, got int"),
        ("ipamUnixSocketPath: run/x.sock", "ipamUnixSocketPath: 'run/x.sock': expected an absolute path"),
        (f"ipamUnixSocketPath: /{'x' * 107}", "expected an absolute path of at most 107 bytes"),
        ("x: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("\x00", "not YAML"),
    ],
)
def test_a_file_that_is_wrong(text: str, words: str) -> None:
    found = refusal(text=text)
    assert found.startswith(f"{configfile.DEFAULT_PATH}: ")
    assert words in found


def test_the_file_is_called_what_the_flag_calls_it() -> None:
    with pytest.raises(SettingsError, match=r"^/etc/my\.yml: unknown key x: 1$"):
        load_agent(NEEDED, "x: 1", Flags(config_path="/etc/my.yml"))


def is_settings_or_one_line(text: str) -> bool:
    try:
        configfile.parse(text)
    except SettingsError as error:
        return len(str(error).splitlines()) == 1
    return True


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["agent", "enabled", "networkResourcePlugin", "enableIPv4", "rules"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
def test_whatever_the_file_says_the_answer_is_settings_or_one_line(data: Any) -> None:
    assert is_settings_or_one_line(json.dumps(data))


@given(st.text(max_size=40))
def test_whatever_text_the_file_holds(text: str) -> None:
    assert is_settings_or_one_line(text)


@pytest.mark.parametrize(("text", "seconds"), [("50s", 50.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("300ms", 0.3)])
def test_durations(text: str, seconds: float) -> None:
    assert configfile.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5d", "1e3s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        configfile.duration(text)
