"""What the chart renders, without a cluster."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.controller import Controller
from actors.errands import initial
from actors.webhooks.registration import pod_webhook, rules
from actors.webhooks.server import path, routes
from admission.exchange import MUTATE, VALIDATE
from admission.rulebook import Rulebook
from api.configfile import IaasNetworkProvider
from api.settings import AgentSettings, ControllerSettings, Flags, load_agent, load_controller
from runtime.actor import System
from runtime.store.memory import MemoryStore
from tests.chart.conftest import CHART, HOOK, Objects, Render
from tests.servers import CommandFailed
from tests.servers.process import run_command

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
AGENT, CONTROLLER = "spiderpool-agent", "spiderpool-controller"


def pod_spec(workload: dict[str, Any]) -> dict[str, Any]:
    """Of a Pod, or of the pods that a workload makes."""
    found: dict[str, Any] = workload["spec"] if workload["kind"] == "Pod" else workload["spec"]["template"]["spec"]
    return found


def hook_pods(objects: Objects) -> list[dict[str, Any]]:
    """Those of an installation's life; of a rendering with hooks."""
    return [pod for (kind, _), pod in objects.items() if kind == "Pod" and annotations(pod)[HOOK] != "test"]


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod_spec(workload)["containers"]
    assert isinstance(only, dict)
    return only


def environment(workload: dict[str, Any]) -> dict[str, str]:
    """As kubelet would make it."""
    fields = {
        "metadata.name": "pod-1",
        "metadata.namespace": "net",
        "metadata.uid": "uid-1",
        "spec.nodeName": "node-1",
        "status.podIPs": "10.6.0.1,fd00::1",
    }
    return {
        variable["name"]: fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        if "valueFrom" in variable
        else variable["value"]
        for variable in container(workload)["env"]
    }


def volumes(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {volume["name"]: volume for volume in pod_spec(workload)["volumes"]}


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


def test_the_network_provider_of_the_values_is_the_programs(render: Render) -> None:
    for told in settings(render):
        assert told.config.iaas_network_provider == IaasNetworkProvider()
    values = ("serverUrl=https://cloud.example:8443", "httpRequestTimeout=20s", "caBundle=first\nsecond")
    for told in settings(
        render, *(f"iaasNetworkProvider.{value}" for value in values), "iaasNetworkProvider.insecureSkipVerify=true"
    ):
        assert told.config.iaas_network_provider == IaasNetworkProvider(
            server_url="https://cloud.example:8443",
            http_request_timeout="20s",
            ca_bundle="first\nsecond",
            insecure_skip_verify=True,
        )


def test_lint_finds_nothing(helm: Path, tmp_path: Path) -> None:
    run_command([str(helm), "lint", "--strict", str(CHART)], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})


def test_objects_have_the_original_names(render: Render) -> None:
    assert set(render()) == {
        ("ConfigMap", "spiderpool-conf"),
        ("DaemonSet", AGENT),
        ("Deployment", CONTROLLER),
        ("Service", CONTROLLER),
        ("PodDisruptionBudget", CONTROLLER),
        ("Secret", "spiderpool-controller-server-certs"),
        ("ServiceAccount", AGENT),
        ("ServiceAccount", CONTROLLER),
        *((kind, "spiderpool-init") for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")),
        *((kind, "spiderpool-init") for kind in ("Role", "RoleBinding")),
        ("ClusterRole", "spiderpool-admin"),
        ("ClusterRoleBinding", "spiderpool-admin"),
        ("ClusterRole", AGENT),
        ("ClusterRoleBinding", AGENT),
        ("Role", AGENT),
        ("RoleBinding", AGENT),
        ("Role", CONTROLLER),
        ("RoleBinding", CONTROLLER),
        ("MutatingWebhookConfiguration", CONTROLLER),
        ("ValidatingWebhookConfiguration", CONTROLLER),
    }


def test_switches_add_objects(render: Render) -> None:
    assert set(render("spiderpoolAgent.prometheus.enabled=true")) - set(render()) == {("Service", AGENT)}
    for less in "spiderpoolController.podDisruptionBudget.enabled=false", "spiderpoolController.replicas=1":
        assert set(render()) - set(render(less)) == {("PodDisruptionBudget", CONTROLLER)}


def test_hooks_and_when_they_run(render: Render) -> None:
    pods = {pod["metadata"]["name"]: annotations(pod)[HOOK] for pod in hook_pods(render(hooks=True))}
    assert pods == {
        "spiderpool-controller-crds": "pre-install,pre-upgrade",
        "spiderpool-controller-hook-post-delete": "post-delete",
        "spiderpool-controller-hook-pre-delete": "pre-delete",
        "spiderpool-init": "post-install,post-upgrade",
    }
    assert ("Pod", "spiderpool-init") not in render("coordinator.enabled=false", hooks=True)
    assert ("ServiceAccount", "spiderpool-init") not in render("coordinator.enabled=false")


def annotations(document: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = document["metadata"]["annotations"]
    return found


def test_a_hook_brings_its_account_before_it_runs(render: Render) -> None:
    release, hooks = render(), render(hooks=True)
    for pod in hook_pods(hooks):
        account = pod["spec"]["serviceAccountName"]
        for needed in "ServiceAccount", "ClusterRole", "ClusterRoleBinding":
            if (needed, account) in release:
                assert annotations(pod)[HOOK].startswith("post-install"), "the release is not there before"
                continue
            there = annotations(hooks[needed, account])
            assert there[HOOK] == annotations(pod)[HOOK]
            assert int(there["helm.sh/hook-weight"]) < int(annotations(pod)["helm.sh/hook-weight"])


def test_a_hook_is_tried_once_and_not_for_ever(render: Render) -> None:
    for pod in hook_pods(render(hooks=True)):
        assert pod["spec"]["restartPolicy"] == "Never"
        assert 60 < pod["spec"]["activeDeadlineSeconds"] <= 300


def test_rights_to_change_kinds_do_not_stay_in_the_cluster(render: Render) -> None:
    value = "spiderpoolController.cleanup.enable=true"
    assert "customresourcedefinitions" in json.dumps([*render(value, hooks=True).values()]), "the control"
    stay = [rule for (kind, _), role in render(value).items() if kind == "ClusterRole" for rule in role["rules"]]
    about = [rule for rule in stay if "customresourcedefinitions" in rule["resources"]]
    assert {verb for rule in about for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert all("spiderpool" not in name for rule in about for name in rule["resourceNames"])
    rules = [rule for kind in ("ClusterRole", "Role") for rule in render(value)[kind, "spiderpool-init"]["rules"]]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"create", "get", "list"}


def test_what_runs_before_there_is_a_pod_network_needs_none(render: Render) -> None:
    for workload in (*hook_pods(render(hooks=True)), render()["Deployment", CONTROLLER], render()["DaemonSet", AGENT]):
        pod = pod_spec(workload)
        assert pod["hostNetwork"]
        assert {"operator": "Exists"} in pod["tolerations"]


def test_only_the_agent_is_root_and_nobody_is_privileged(render: Render) -> None:
    for workload in (*hook_pods(render(hooks=True)), render()["Deployment", CONTROLLER]):
        pod = pod_spec(workload)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        inner = container(workload)["securityContext"]
        assert inner["capabilities"] == {"drop": ["ALL"]}
        assert inner["readOnlyRootFilesystem"]
        assert not inner["allowPrivilegeEscalation"]
    agent = render()["DaemonSet", AGENT]
    inner = container(agent)["securityContext"]
    assert inner["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "DAC_OVERRIDE"]}
    assert inner["readOnlyRootFilesystem"]
    assert "privileged" not in inner
    assert "hostPID" not in agent["spec"]["template"]["spec"]
    with_pids = render("spiderpoolAgent.hostPID=true")["DaemonSet", AGENT]
    assert with_pids["spec"]["template"]["spec"]["hostPID"]
    added = container(with_pids)["securityContext"]["capabilities"]["add"]
    assert set(added) - set(inner["capabilities"]["add"]) == {"SYS_PTRACE", "SYS_CHROOT"}
    mounts = {"name": "SPIDERPOOL_NODE_MOUNTS", "value": "/proc/1/ns/mnt"}
    assert mounts in container(with_pids)["env"]
    assert mounts not in container(agent)["env"]


@pytest.mark.parametrize(
    ("value", "version", "strategy"),
    [
        ("maxUnavailable=0", "1.36.0", {"maxUnavailable": 0, "maxSurge": 1}),
        ("maxUnavailable=2", "1.36.0", {"maxUnavailable": 2, "maxSurge": 0}),
        ("maxUnavailable=10%", "1.36.0", {"maxUnavailable": "10%", "maxSurge": 0}),
        ("maxSurge=3", "1.36.0", {"maxUnavailable": 0, "maxSurge": 3}),
        ("maxUnavailable=0", "1.21.0", {"maxUnavailable": 1}),
    ],
)
def test_roll_out_of_agents(render: Render, value: str, version: str, strategy: dict[str, Any]) -> None:
    objects = render(f"spiderpoolAgent.updateStrategy.rollingUpdate.{value}", version=version)
    assert objects["DaemonSet", AGENT]["spec"]["updateStrategy"]["rollingUpdate"] == strategy
    left = render("spiderpoolAgent.updateStrategy.type=OnDelete")["DaemonSet", AGENT]["spec"]["updateStrategy"]
    assert left == {"type": "OnDelete"}


def test_two_agents_can_share_a_node(render: Render) -> None:
    agent = render("spiderpoolAgent.prometheus.enabled=true")["DaemonSet", AGENT]
    assert "ports" not in container(agent), "on the node's network they would be the node's"
    for name in "startupProbe", "livenessProbe", "readinessProbe":
        probe, path, socket, what = container(agent)[name]["exec"]["command"]
        assert (probe, path) == ("/usr/lib/spiderpool/shim", "probe")
        assert socket == environment(agent)["SPIDERPOOL_PROBE_SOCKET"]
        assert what == f"/v1/runtime/{name.removesuffix('Probe')}"
    assert volumes(agent)["run"] == {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}


def test_namespaces_made_later_show_in_the_agent(render: Render) -> None:
    mounts = {mount["name"]: mount for mount in container(render()["DaemonSet", AGENT])["volumeMounts"]}
    for name in "netns", "docker-netns":
        assert mounts[name]["mountPropagation"] == "HostToContainer"


def test_two_controllers_are_on_two_nodes(render: Render) -> None:
    controller = render()["Deployment", CONTROLLER]["spec"]
    assert controller["replicas"] == 2
    assert controller["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (term,) = controller["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == controller["selector"]["matchLabels"]
    apart = render("spiderpoolController.hostnetwork=false")["Deployment", CONTROLLER]["spec"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in json.dumps(apart)


def test_plugin_is_installed_where_the_runtime_looks(render: Render) -> None:
    values = (
        "global.cniBinHostPath=/usr/libexec/cni",
        "global.cniConfHostPath=/etc/kube/cni",
        "spiderpoolAgent.cni.mtu=9000",
    )
    agent = render(*values, "spiderpoolAgent.cni.master=bond0")["DaemonSet", AGENT]
    given = environment(agent)
    assert (given["SPIDERPOOL_CNI_MASTER"], given["SPIDERPOOL_CNI_MTU"]) == ("bond0", "9000")
    mounts = {mount["mountPath"]: mount["name"] for mount in container(agent)["volumeMounts"]}
    folders = {name: volumes(agent)[mounts[given[f"SPIDERPOOL_CNI_{name}_DIR"]]] for name in ("BIN", "CONF")}
    assert folders["BIN"]["hostPath"]["path"] == "/usr/libexec/cni"
    assert folders["CONF"]["hostPath"]["path"] == "/etc/kube/cni"
    assert mounts["/etc/kube/cni"] == mounts[given["SPIDERPOOL_CNI_CONF_DIR"]], "other plugins know no other path"
    assert "SPIDERPOOL_CNI_PLUGINS" not in given
    assert not settings(render)[0].cni_status
    more, _ = settings(render, "plugins.installCNI=true", "spiderpoolAgent.cni.status=true")
    assert more.cni_status
    assert more.cni_plugins == "spiderpool,macvlan,ipvlan,vlan,sriov,coordinator,ifacer"
    without = render("spiderpoolAgent.cni.install=false")["DaemonSet", AGENT]
    assert not [name for name in environment(without) if name.startswith("SPIDERPOOL_CNI")]
    assert {"cni-bin", "cni-conf"} & set(volumes(without)) == set()


def test_init_hook_is_told_what_the_values_say(render: Render) -> None:
    init = render(
        "coordinator.mode=overlay",
        "coordinator.policyRoutes[0].dst=10.0.0.0/8",
        "coordinator.policyRoutes[0].gw=10.6.0.1",
        "clusterDefaultPool.installIPv4IPPool=true",
        "clusterDefaultPool.ipv4Subnet=10.6.0.0/16",
        "clusterDefaultPool.ipv4IPRanges={10.6.1.1-10.6.1.9,10.6.2.2}",
        "clusterDefaultPool.ipv4Gateway=10.6.0.1",
        hooks=True,
    )["Pod", "spiderpool-init"]
    objects = {each.kind.kind: each.item for each in initial.load(environment(init)).objects}
    assert list(objects) == ["SpiderCoordinator", "SpiderSubnet", "SpiderIPPool"]
    assert objects["SpiderCoordinator"].spec.mode == "overlay"
    assert objects["SpiderCoordinator"].spec.hijack_cidr == ["169.254.0.0/16"]
    assert objects["SpiderCoordinator"].spec.policy_routes[0].gw == "10.6.0.1"
    assert objects["SpiderIPPool"].metadata.name == "default-v4-ippool"
    assert objects["SpiderIPPool"].spec.ips == ["10.6.1.1-10.6.1.9", "10.6.2.2"]
    assert objects["SpiderIPPool"].spec.default
    plain = render(
        "ipam.spiderSubnet.enable=false",
        "clusterDefaultPool.installIPv6IPPool=true",
        "clusterDefaultPool.ipv6Subnet=fd00::/64",
        hooks=True,
    )["Pod", "spiderpool-init"]
    assert [each.kind.kind for each in initial.load(environment(plain)).objects] == [
        "SpiderCoordinator",
        "SpiderIPPool",
    ]


def test_objects_are_removed_only_by_value(render: Render) -> None:
    hook = "Pod", "spiderpool-controller-hook-pre-delete"
    assert container(render(hooks=True)[hook])["args"] == ["clean"]
    assert container(render("spiderpoolController.cleanup.enable=true", hooks=True)[hook])["args"] == [
        "clean",
        "--remove-objects",
    ]
    role = "ClusterRole", "spiderpool-controller-hook-pre-delete"
    assert "customresourcedefinitions" not in json.dumps(render(hooks=True)[role])


def test_objects_that_stay_are_let_go_when_the_programs_are_gone(render: Render) -> None:
    name = "spiderpool-controller-hook-post-delete"
    assert container(render(hooks=True)["Pod", name])["args"] == ["clean", "--finalizers"]
    (rule,) = render(hooks=True)["ClusterRole", name]["rules"]
    assert rule["verbs"] == ["get", "list", "patch"]
    assert ("Pod", name) not in render("spiderpoolController.cleanup.enable=true", hooks=True)


def test_init_and_test_pods_take_the_controller_s_image_until_they_have_one(render: Render) -> None:
    def images(*values: str) -> set[str]:
        objects = render(*values, hooks=True)
        return {container(objects["Pod", name])["image"] for name in ("spiderpool-test-client", "spiderpool-init")}

    assert images("spiderpoolController.image.tag=v9") == {"ghcr.io/spidernet-io/spiderpool/spiderpool:v9"}
    own = [
        f"{part}.image.{key}"
        for part in ("spiderpoolInit", "helmTest")
        for key in ("registry=x", "repository=y", "tag=z")
    ]
    assert images(*own) == {"x/y:z"}


def test_namespace_is_the_release_s(render: Render) -> None:
    for (kind, name), document in render().items():
        wanted = None if kind.startswith("Cluster") or kind.endswith("WebhookConfiguration") else "net"
        assert document["metadata"].get("namespace") == wanted, f"{kind} {name}"


@pytest.mark.parametrize("version", ["1.16.0", "1.20.0", "1.21.0", "1.36.0"])
def test_old_and_new_kubernetes(render: Render, version: str) -> None:
    objects = render(version=version)
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
    files = render("spiderpoolController.tls.method=auto")["Deployment", CONTROLLER]
    assert volumes(files)["tls"]["secret"]["secretName"] == secret


def test_the_controller_makes_its_certificate_where_it_is_told(render: Render) -> None:
    objects = render("spiderpoolController.tls.controller.extraDnsNames={pools.example}")
    deployment, secret = objects["Deployment", CONTROLLER], objects["Secret", "spiderpool-controller-server-certs"]
    assert (secret["type"], secret.get("data")) == ("Opaque", None), "no key in the release's manifest"
    assert "secret" not in json.dumps(volumes(deployment)), "it asks the API server for it"
    told = settings(render)[1]
    mounts = {mount["mountPath"]: mount["name"] for mount in container(deployment)["volumeMounts"]}
    for file in told.tls_server_cert, told.tls_server_key, told.controller_ca_file:
        assert volumes(deployment)[mounts[str(Path(file).parent)]]["emptyDir"]["medium"] == "Memory"
    days = (told.certificate_authority_lifetime / 86400, told.certificate_lifetime / 86400)
    assert (*days, told.certificate_renewal, told.certificate_overlap) == (3650, 365, 66, 3600)
    assert environment(deployment)["SPIDERPOOL_CERTIFICATE_HOSTS"].split(",") == [
        "spiderpool-controller.net.svc",
        "spiderpool-controller.net.svc.cluster.local",
        "spiderpool-controller.net",
        "pools.example",
    ]
    about = [rule for rule in objects["Role", CONTROLLER]["rules"] if rule["resources"] == ["secrets"]]
    assert about == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [told.certificate_secret], "verbs": OWN_SECRET}
    ]
    others = [rule for (kind, _), role in objects.items() if kind.endswith("Role") for rule in role["rules"]]
    assert [rule for rule in others if "secrets" in rule["resources"]] == about
    for method in "auto", "certmanager":
        given = render(f"spiderpoolController.tls.method={method}")
        assert "SPIDERPOOL_CERTIFICATE_SECRET" not in environment(given["Deployment", CONTROLLER])
        assert "secrets" not in json.dumps(given["Role", CONTROLLER]["rules"])


OWN_SECRET = ["get", "patch"]


@pytest.mark.parametrize("seconds", [0, 25])
def test_a_controller_has_the_time_to_serve_on_and_to_end(render: Render, seconds: int) -> None:
    deployment = render(f"spiderpoolController.shutdownDelaySeconds={seconds}")["Deployment", CONTROLLER]
    assert environment(deployment)["SPIDERPOOL_SHUTDOWN_DELAY"] == str(seconds)
    assert pod_spec(deployment)["terminationGracePeriodSeconds"] == 30 + seconds


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


def test_controller_s_probes_ask_the_node_only_where_the_pod_is_on_its_network(render: Render) -> None:
    def host(*values: str) -> str | None:
        probe = container(render(*values)["Deployment", CONTROLLER])["livenessProbe"]["httpGet"]
        return probe.get("host")  # type: ignore[no-any-return]

    assert host() == "127.0.0.1"
    assert host("ipam.enableIPv4=false") == "::1"
    assert host("spiderpoolController.hostnetwork=false") is None


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ("tag=v9", "ghcr.io/spidernet-io/spiderpool/spiderpool:v9"),
        (f"digest={DIGEST}", f"ghcr.io/spidernet-io/spiderpool/spiderpool@{DIGEST}"),
        ("registry=example.org", "example.org/spidernet-io/spiderpool/spiderpool:v0.1.0"),
    ],
)
def test_image(render: Render, value: str, image: str) -> None:
    assert container(render(f"spiderpoolAgent.image.{value}")["DaemonSet", AGENT])["image"] == image


def test_one_registry_for_all_images(render: Render) -> None:
    objects = render("global.imageRegistryOverride=local:5000")
    hooks = render("global.imageRegistryOverride=local:5000", hooks=True)
    workloads = [one for (kind, _), one in (objects | hooks).items() if kind in WORKLOADS]
    assert len(workloads) == 8
    for workload in workloads:
        assert pod_spec(workload)["containers"][0]["image"].startswith("local:5000/")


WORKLOADS = {"DaemonSet", "Deployment", "Pod"}


OWN_TLS = "spiderpoolController.tls.controller"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("clusterDefaultPool.installIPv4IPPool=true", "clusterDefaultPool.ipv4Subnet has to be given"),
        ("spiderpoolController.tls.method=provided", "spiderpoolController.tls.provided.tlsCert has to be given"),
        (f"{OWN_TLS}.certValidityDuration=1300", f"{OWN_TLS}.certValidityDuration=1300: more days than are left"),
        (f"{OWN_TLS}.certValidityDuration=0.05", f"{OWN_TLS}.overlapSeconds=3600: more than half"),
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


def test_cert_manager_makes_the_secret_that_is_mounted(render: Render) -> None:
    method = "spiderpoolController.tls.method=certmanager"
    objects = render(method, "spiderpoolController.tls.certmanager.extraDnsNames={more.example}")
    assert not [name for kind, name in objects if kind == "Secret"]
    made = objects["Certificate", f"{CONTROLLER}-server-certs"]["spec"]
    mounted = volumes(objects["Deployment", CONTROLLER])["tls"]["secret"]["secretName"]
    assert made["secretName"] == mounted
    assert f"{CONTROLLER}.net.svc" in made["dnsNames"]
    assert "more.example" in made["dnsNames"]
    assert objects["Issuer", made["issuerRef"]["name"]]["spec"] == {"selfSigned": {}}
    theirs = render(method, "spiderpoolController.tls.certmanager.issuerName=lan-ca")
    assert not [name for kind, name in theirs if kind == "Issuer"]
    assert theirs["Certificate", f"{CONTROLLER}-server-certs"]["spec"]["issuerRef"]["name"] == "lan-ca"


async def test_what_the_api_server_asks_is_what_the_controller_answers(render: Render) -> None:
    objects = render("spiderpoolController.webhookPort=6722")
    told = settings(render)[1]
    controller = Controller(System.real(), MemoryStore(), settings=told, path="controller")
    book = rules(controller.cluster, controller.pools, told)
    for way, kind in ((MUTATE, "MutatingWebhookConfiguration"), (VALIDATE, "ValidatingWebhookConfiguration")):
        found = objects[kind, CONTROLLER]["webhooks"]
        assert {hook["clientConfig"]["service"]["path"]: hook["rules"][0]["resources"] for hook in found} == {
            path(way, each): [each.plural] for each in book.kinds.values()
        }
        for hook in found:
            assert hook["clientConfig"]["service"]["port"] == 6722
            assert (hook["failurePolicy"], hook["sideEffects"]) == ("Fail", "None")
            assert hook["rules"][0]["operations"][:2] == ["CREATE", "UPDATE"]
            deleted = kind.startswith("Valid") and hook["name"].partition(".")[0] in {"spiderippool", "spidersubnet"}
            assert ("DELETE" in hook["rules"][0]["operations"]) is deleted
    service = {port["name"]: port for port in objects["Service", CONTROLLER]["spec"]["ports"]}
    assert service["webhook"]["port"] == 6722
    ports = {port["name"]: port["containerPort"] for port in container(objects["Deployment", CONTROLLER])["ports"]}
    assert ports[service["webhook"]["targetPort"]] == 6722


INJECT = "spiderpoolController.podResourceInject"


def pod_hook(objects: Objects) -> dict[str, Any] | None:
    """The webhook of pods, where there is one."""
    kinds = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    found = [
        hook for kind in kinds for hook in objects[kind, CONTROLLER]["webhooks"] if hook["name"].startswith("pods.")
    ]
    assert not [hook for hook in objects[kinds[1], CONTROLLER]["webhooks"] if hook in found], "it judges nothing"
    return found[0] if found else None


def selected(hook: dict[str, Any]) -> dict[str, list[str]]:
    terms = hook["namespaceSelector"]["matchExpressions"]
    assert {term["key"] for term in terms} == {"kubernetes.io/metadata.name"}
    return {term["operator"]: term["values"] for term in terms}


async def test_pods_are_shown_to_the_controller_only_where_that_is_asked_for(render: Render) -> None:
    assert pod_hook(render()) is None
    assert not settings(render)[1].config.pod_resource_inject.enabled
    on = f"{INJECT}.enabled=true"
    hook = pod_hook(render(on))
    assert hook is not None
    told = settings(render, on)[1]
    controller = Controller(System.real(), MemoryStore(), settings=told, path="controller")
    answers = pod_webhook(controller.cluster, controller.store, told, controller.isolation)
    assert hook["clientConfig"]["service"]["path"] in routes(Rulebook(), System.real().clock, answers)
    assert hook["rules"] == [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    assert (hook["failurePolicy"], hook["sideEffects"], hook["reinvocationPolicy"]) == ("Fail", "None", "IfNeeded")
    usual = ["kube-system", "spiderpool", "metallb-system", "istio-system"]
    assert selected(hook) == {"NotIn": [*usual, "net"]}
    assert told.config.pod_resource_inject.namespaces_exclude == tuple(usual)


def test_the_release_s_own_pods_are_never_shown(render: Render) -> None:
    lists = (f"{INJECT}.namespacesExclude=null", f"{INJECT}.namespacesInclude={{a,net}}")
    for values, wanted in (
        ((f"{INJECT}.namespacesExclude={{a,net}}",), {"NotIn": ["a", "net"]}),
        (lists[:1], {"NotIn": ["net"]}),
        (lists, {"NotIn": ["net"], "In": ["a", "net"]}),
    ):
        hook = pod_hook(render(f"{INJECT}.enabled=true", *values))
        assert hook is not None
        assert selected(hook) == wanted
    config = settings(render, f"{INJECT}.enabled=true", *lists)[1].config.pod_resource_inject
    assert (config.enabled, config.namespaces_exclude, config.namespaces_include) == (True, (), ("a", "net"))


def test_pods_are_given_networks_only_where_these_are_made(render: Render) -> None:
    with pytest.raises(CommandFailed, match=r"podResourceInject\.enabled: true: needs multus\.enable"):
        render(f"{INJECT}.enabled=true", "multus.enableMultusConfig=false")
    with pytest.raises(CommandFailed, match=r"podResourceInject\.enabled: true: needs Kubernetes 1\.21"):
        render(f"{INJECT}.enabled=true", version="1.20.0")
    render("multus.enableMultusConfig=false")


HIDDEN = (
    "global.imageRegistryOverride",  # would hide the registries
    ".image.digest",  # would hide the tags
    ".tls.method",
    "updateStrategy.type",
    ".tls.provided.",
    ".tls.certmanager.",
    *(f".tls.controller.{name}" for name in ("ca", "cert", "renew", "overlap")),  # compared, and days there
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
    # The marks are no ports, words and numbers that the schema would take.
    argv = [str(helm), "template", "sp", str(CHART), "--skip-schema-validation"]
    argv += ["--values", str(tmp_path / "values.yaml")]
    text = run_command(argv, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert len(marks) > 60
    assert [path for path, mark in marks.items() if mark not in text] == []


def rights(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_agents_that_allocate_without_a_controller_have_the_rights_for_it_and_others_do_not(render: Render) -> None:
    value = "spiderpoolAgent.fallback.enabled=true"
    usual, more = (rights(render(*values)["ClusterRole", AGENT]) for values in ((), (value,)))
    assert usual == {("", "pods", verb) for verb in ("get", "list", "watch")} | {
        ("", "events", verb) for verb in ("create", "patch")
    }
    assert ("spiderpool.spidernet.io", "spiderippools/status", "update") in more
    assert more <= rights(render()["ClusterRole", "spiderpool-admin"]), "never more than a controller"
    assert ("spiderpool.spidernet.io", "spiderippools", "delete") not in more
    assert not settings(render)[0].fallback_enabled
    agent, controller = settings(render, value, "coordinator.serviceCIDR={10.96.0.0/12}")
    assert agent.fallback_enabled
    objects = render(value, "coordinator.serviceCIDR={10.96.0.0/12}")
    alone = load_controller(environment(objects["DaemonSet", AGENT]))
    assert alone.service_cidr == controller.service_cidr == ("10.96.0.0/12",)
    assert alone.coordinator_name == controller.coordinator_name


def test_the_network_of_first_nics_is_the_original_s_value(render: Render) -> None:
    _, controller = settings(render, "multus.multusCNI.defaultCniCRName=lan", "multus.multusCNI.install=false")
    assert controller.multus_cluster_network == "net/lan"
    assert settings(render)[1].multus_cluster_network == ""


def test_networks_are_made_of_multusconfigs_unless_switched_off(render: Render) -> None:
    def verbs(*values: str) -> list[str]:
        rules = render(*values)["ClusterRole", "spiderpool-admin"]["rules"]
        return next(rule["verbs"] for rule in rules if "network-attachment-definitions" in rule["resources"])

    off = "multus.enableMultusConfig=false"
    assert settings(render)[1].multus_config_enabled
    assert not settings(render, off)[1].multus_config_enabled
    assert set(verbs()) - set(verbs(off)) == {"create", "delete", "patch"}


def test_the_network_of_first_nics_is_made_by_value(render: Render) -> None:
    def made(*values: str) -> list[str]:
        pod = render(*values, hooks=True)["Pod", "spiderpool-init"]
        return [str(each) for each in initial.load(environment(pod)).objects]

    named = "multus.multusCNI.defaultCniCRName=lan"
    assert made(named)[-1] == "SpiderMultusConfig net/lan"
    assert made(named, "multus.enableMultusConfig=false") == made() == ["SpiderCoordinator default"]


def test_the_kind_of_networks_is_brought_by_value(render: Render) -> None:
    def hook(*values: str) -> tuple[list[str], str]:
        rendered = render(*values, hooks=True)
        name = f"{CONTROLLER}-crds"
        args: list[str] = rendered["Pod", name]["spec"]["containers"][0]["args"]
        return args, json.dumps(rendered["ClusterRole", name]["rules"])

    args, rules = hook()
    assert args == ["crds", "--networks"]
    assert "network-attachment-definitions" in rules
    args, rules = hook("multus.installNetworkAttachmentDefinition=false")
    assert args == ["crds"]
    assert "network-attachment-definitions" not in rules


def test_the_controller_reads_what_says_which_addresses_are_the_clusters(render: Render) -> None:
    values = ("global.ciliumConfigMap=cilium/config", "global.cniConfHostPath=/etc/kube/cni")
    objects = render(*values)
    controller = settings(render, *values)[1]
    assert controller.coordinator_enabled
    assert controller.cilium_configmap == "cilium/config"
    assert controller.cni_config_dir == "/etc/kube/cni"
    assert volumes(objects["Deployment", CONTROLLER])["cni-conf"]["hostPath"]["path"] == "/etc/kube/cni"
    mounts = {one["name"]: one for one in container(objects["Deployment", CONTROLLER])["volumeMounts"]}
    assert mounts["cni-conf"] == {"name": "cni-conf", "mountPath": "/etc/kube/cni", "readOnly": True}
    rules = objects["ClusterRole", "spiderpool-admin"]["rules"]
    named = [rule["resourceNames"] for rule in rules if rule["resources"] == ["configmaps"]]
    assert named == [["kubeadm-config", "config"]], "and no other ConfigMap of the cluster"
    off = "coordinator.enabled=false"
    assert not settings(render, off)[1].coordinator_enabled
    assert "cni-conf" not in volumes(render(off)["Deployment", CONTROLLER])
    less = rights(objects["ClusterRole", "spiderpool-admin"]) - rights(render(off)["ClusterRole", "spiderpool-admin"])
    assert {resource for _, resource, _ in less} == {
        "configmaps",
        "ippools",
        "ciliumpodippools",
        "customresourcedefinitions",
    }
    # An agent that allocates by itself reads the status, and keeps none.
    alone = load_controller(environment(render("spiderpoolAgent.fallback.enabled=true")["DaemonSet", AGENT]))
    assert alone.coordinator_enabled


def test_agents_that_are_device_plugins_may_read_nodes_and_reach_the_kubelet_s_folder(render: Render) -> None:
    on = "spiderpoolAgent.networkResourcePlugin.enabled=true"
    rules = "spiderpoolAgent.networkResourcePlugin.resourceAdvertisement.masterNIC.rules[0]"
    values = (
        *(on, "spiderpoolAgent.networkResourcePlugin.kubeletRootDir=/var/lib/k0s/kubelet"),
        *(f"{rules}.includeInterfaces={{eth1}}", f"{rules}.nodeSelector.matchLabels.rack=a"),
    )
    usual, objects = render(), render(*values)
    nodes = {("", "nodes", verb) for verb in ("get", "list", "watch")}
    assert rights(objects["ClusterRole", AGENT]) == rights(usual["ClusterRole", AGENT]) | nodes
    spec = objects["DaemonSet", AGENT]["spec"]["template"]["spec"]
    (volume,) = [it["hostPath"]["path"] for it in spec["volumes"] if it["name"] == "kubelet-plugins"]
    (mount,) = [it for it in spec["containers"][0]["volumeMounts"] if it["name"] == "kubelet-plugins"]
    plugin = settings(render, *values)[0].config.agent.network_resource_plugin
    assert volume == "/var/lib/k0s/kubelet/device-plugins"
    assert mount["mountPath"] == f"{plugin.kubelet_root_dir}/device-plugins" and not mount.get("readOnly")
    (rule,) = plugin.resource_advertisement.master_nic.rules
    assert (rule.include_interfaces, rule.node_selector.match_labels) == (("eth1",), {"rack": "a"})
    assert rule.default_max_count == 10000
    assert not settings(render)[0].config.agent.network_resource_plugin.enabled
    assert "kubelet-plugins" not in str(usual["DaemonSet", AGENT])
