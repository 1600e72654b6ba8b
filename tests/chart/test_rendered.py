"""What the chart renders, without a cluster."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import AgentSettings, ControllerSettings, Flags, load_agent, load_controller
from tests.chart.conftest import CHART, Render
from tests.servers import CommandFailed
from tests.servers.process import run_command

AGENT, CONTROLLER = "spiderpool-agent", "spiderpool-controller"


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(workload: dict[str, Any]) -> dict[str, str]:
    """As kubelet would make it."""
    fields = {"metadata.name": "pod-1", "metadata.namespace": "net", "spec.nodeName": "node-1"}
    return {
        variable["name"]: variable.get("value") or fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container(workload)["env"]
    }


def volumes(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}


def settings(render: Render, *values: str) -> tuple[AgentSettings, ControllerSettings]:
    """What the programs make of the rendered environment and file."""
    objects = render(*values)
    agent, controller = objects["DaemonSet", AGENT], objects["Deployment", CONTROLLER]
    text = objects["ConfigMap", "spiderpool-conf"]["data"]["conf.yml"]
    flags = dict(word.removeprefix("--").split("=") for word in container(controller)["args"][1:])
    given = Flags(
        config_path=flags["config-path"],
        tls_server_cert=flags["tls-server-cert"],
        tls_server_key=flags["tls-server-key"],
    )
    return load_agent(environment(agent), text), load_controller(environment(controller), text, given)


def test_lint_finds_nothing(helm: Path, tmp_path: Path) -> None:
    run_command([str(helm), "lint", "--strict", str(CHART)], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})


def test_objects_have_the_original_names(render: Render) -> None:
    assert set(render()) == {
        ("ConfigMap", "spiderpool-conf"),
        ("DaemonSet", AGENT),
        ("Deployment", CONTROLLER),
        ("Service", CONTROLLER),
        ("Secret", "spiderpool-controller-server-certs"),
        ("ServiceAccount", AGENT),
        ("ServiceAccount", CONTROLLER),
        ("ClusterRole", "spiderpool-admin"),
        ("ClusterRoleBinding", "spiderpool-admin"),
        ("ClusterRole", AGENT),
        ("ClusterRoleBinding", AGENT),
        ("Role", AGENT),
        ("RoleBinding", AGENT),
        ("Role", CONTROLLER),
        ("RoleBinding", CONTROLLER),
    }


def test_switches_add_objects(render: Render) -> None:
    more = render("spiderpoolAgent.prometheus.enabled=true", "spiderpoolController.podDisruptionBudget.enabled=true")
    assert set(more) - set(render()) == {("Service", AGENT), ("PodDisruptionBudget", CONTROLLER)}


def test_namespace_is_the_release_s(render: Render) -> None:
    for (kind, name), document in render().items():
        wanted = None if kind.startswith("Cluster") else "net"
        assert document["metadata"].get("namespace") == wanted, f"{kind} {name}"


@pytest.mark.parametrize("version", ["1.16.0", "1.20.0", "1.21.0", "1.36.0"])
def test_old_and_new_kubernetes(render: Render, version: str) -> None:
    objects = render("spiderpoolController.podDisruptionBudget.enabled=true", version=version)
    minor = int(version.split(".")[1])
    assert ("startupProbe" in container(objects["DaemonSet", AGENT])) == (minor >= 20)
    assert ("ipFamilyPolicy" in objects["Service", CONTROLLER]["spec"]) == (minor >= 20)
    budget = objects["PodDisruptionBudget", CONTROLLER]["apiVersion"]
    assert budget == ("policy/v1" if minor >= 21 else "policy/v1beta1")


def test_programs_accept_every_setting(render: Render) -> None:
    agent, controller = settings(render)
    assert agent.notes == ()
    assert controller.notes == ()
    assert agent.node_name == "node-1"
    assert agent.pod_namespace == controller.pod_namespace == "net"
    assert controller.rpc_port == 5723
    assert controller.agent_name == AGENT
    assert agent.controller_name == CONTROLLER
    assert agent.config == controller.config == type(agent.config)()


def test_values_reach_the_programs(render: Render) -> None:
    agent, controller = settings(
        render,
        "ipam.enableIPv6=false",
        "ipam.spiderSubnet.autoPool.defaultRedundantIPNumber=3",
        "ipam.gc.gcAll.intervalInSecond=60",
        "global.ipamUNIXSocketHostPath=/run/other/sp.sock",
        "spiderpoolAgent.controllerAddresses=10.0.0.1:5723",
        "spiderpoolAgent.stateHostPath=/srv/state",
        "spiderpoolAgent.debug.logLevel=debug",
        "spiderpoolController.rpcPort=6000",
        "spiderpoolController.prometheus.enabled=true",
    )
    assert not agent.config.enable_ipv6
    assert controller.config.redundant_ip_number == 3
    assert controller.gc_interval == 60
    assert agent.config.ipam_unix_socket_path == "/run/other/sp.sock"
    assert [str(address) for address in agent.controller_addresses] == ["10.0.0.1:5723"]
    assert agent.state_dir == "/srv/state"
    assert agent.log_level == "debug"
    assert controller.rpc_port == 6000
    assert controller.enabled_metric


def test_other_names_are_known_to_both_sides(render: Render) -> None:
    objects = render("spiderpoolAgent.name=a", "spiderpoolController.name=c")
    assert environment(objects["Deployment", "c"])["SPIDERPOOL_AGENT_NAME"] == "a"
    assert environment(objects["DaemonSet", "a"])["SPIDERPOOL_CONTROLLER_NAME"] == "c"
    assert objects["DaemonSet", "a"]["spec"]["template"]["spec"]["serviceAccountName"] == "a"
    assert objects["ClusterRoleBinding", "spiderpool-admin"]["subjects"][0]["name"] == "c"


def test_traces_go_where_they_are_sent(render: Render) -> None:
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in environment(render()["DaemonSet", AGENT])
    objects = render("otlpEndpoint=http://jaeger:4318")
    for workload in objects["DaemonSet", AGENT], objects["Deployment", CONTROLLER]:
        assert environment(workload)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4318"


def test_private_key_stays_with_the_controller(render: Render) -> None:
    objects = render()
    agent = volumes(objects["DaemonSet", AGENT])
    secret = "spiderpool-controller-server-certs"
    token, certificates = agent["controller"]["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "spiderpool-controller"
    assert certificates["secret"] == {"name": secret, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert [name for name, volume in agent.items() if "secret" in volume] == []
    assert volumes(objects["Deployment", CONTROLLER])["tls"]["secret"]["secretName"] == secret


@pytest.mark.parametrize(("kind", "name"), [("DaemonSet", AGENT), ("Deployment", CONTROLLER)])
def test_every_mount_has_its_volume(render: Render, kind: str, name: str) -> None:
    workload = render()[kind, name]
    pod = workload["spec"]["template"]["spec"]
    mounted = {m["name"] for c in (*pod.get("initContainers", []), *pod["containers"]) for m in c["volumeMounts"]}
    assert mounted == set(volumes(workload))


def test_extras_land_where_they_belong(render: Render) -> None:
    objects = render(
        "spiderpoolAgent.extraVolumes[0].name=v",
        "spiderpoolAgent.extraVolumes[0].emptyDir.medium=Memory",
        "spiderpoolAgent.extraVolumeMounts[0].name=v",
        "spiderpoolAgent.extraVolumeMounts[0].mountPath=/v",
        "spiderpoolAgent.podAnnotations.note=x",
        "global.commonAnnotations.team=net",
        "global.commonLabels.site=here",
    )
    agent = objects["DaemonSet", AGENT]
    assert volumes(agent)["v"] == {"name": "v", "emptyDir": {"medium": "Memory"}}
    assert {"name": "v", "mountPath": "/v"} in container(agent)["volumeMounts"]
    assert agent["spec"]["template"]["metadata"]["annotations"].items() >= {"note": "x", "team": "net"}.items()
    for document in objects.values():
        assert document["metadata"]["annotations"]["team"] == "net"
        assert document["metadata"]["labels"]["site"] == "here"
    assert "site" not in agent["spec"]["selector"]["matchLabels"]


def test_probes_ask_the_node_only_where_the_pod_is_on_its_network(render: Render) -> None:
    def host(*values: str) -> str | None:
        probe = container(render(*values)["Deployment", CONTROLLER])["livenessProbe"]["httpGet"]
        return probe.get("host")  # type: ignore[no-any-return]

    assert host() == "127.0.0.1"
    assert host("ipam.enableIPv4=false") == "::1"
    assert host("spiderpoolController.hostnetwork=false") is None


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("tag=v9", "ghcr.io/spidernet-io/spiderpool/spiderpool-agent:v9"),
        ("digest=sha256:abc", "ghcr.io/spidernet-io/spiderpool/spiderpool-agent@sha256:abc"),
        ("registry=example.org", "example.org/spidernet-io/spiderpool/spiderpool-agent:v0.1.0"),
    ],
)
def test_image(render: Render, value: str, image: str) -> None:
    assert container(render(f"spiderpoolAgent.image.{value}")["DaemonSet", AGENT])["image"] == image


def test_one_registry_for_all_images(render: Render) -> None:
    objects = render("global.imageRegistryOverride=local:5000")
    for workload in objects["DaemonSet", AGENT], objects["Deployment", CONTROLLER]:
        pod = workload["spec"]["template"]["spec"]
        for each in (*pod.get("initContainers", []), *pod["containers"]):
            assert each["image"].startswith("local:5000/")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("spiderpoolController.tls.method=magic", "magic: expected auto or provided"),
        ("spiderpoolController.tls.method=provided", "spiderpoolController.tls.provided.tlsCert has to be given"),
    ],
)
def test_values_that_cannot_be_are_named(render: Render, value: str, words: str) -> None:
    with pytest.raises(CommandFailed, match=words):
        render(value)


def test_provided_certificate_is_taken(render: Render) -> None:
    given = [f"spiderpoolController.tls.provided.{name}=QQ==" for name in ("tlsCert", "tlsKey", "tlsCa")]
    objects = render("spiderpoolController.tls.method=provided", *given)
    assert objects["Secret", "spiderpool-controller-server-certs"]["data"] == {
        "tls.crt": "QQ==",
        "tls.key": "QQ==",
        "ca.crt": "QQ==",
    }


HIDDEN = (
    "global.imageRegistryOverride",  # would hide the registries
    ".image.digest",  # would hide the tags
    ".tls.method",
    ".tls.provided.",
    ".tls.auto.",  # inside the certificate, as the next
    "global.clusterDnsDomain",
)


def marked(value: object, path: str, marks: dict[str, str]) -> object:
    """The same tree with every leaf replaced by something that is found again; switches are on."""
    if isinstance(value, dict) and value:
        return {name: marked(child, f"{path}.{name}" if path else name, marks) for name, child in value.items()}
    if isinstance(value, bool) or any(part in path for part in HIDDEN):
        return True if isinstance(value, bool) else value
    mark = str(70000 + len(marks)) if isinstance(value, int) else f"mark{len(marks)}x"
    marks[path] = mark
    match value:
        case int():
            return int(mark)
        case list():
            return [{"name": mark}]
        case dict():
            return {"mark": mark}
        case _:
            return f"/{mark}/x" if path.endswith("Path") else mark


def test_no_value_is_without_use(helm: Path, tmp_path: Path) -> None:
    marks: dict[str, str] = {}
    values = marked(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), "", marks)
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    argv = [str(helm), "template", "sp", str(CHART), "--values", str(tmp_path / "values.yaml")]
    text = run_command(argv, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert len(marks) > 60
    assert [path for path, mark in marks.items() if mark not in text] == []
