"""The chart in a real API server: installed, looked at, upgraded, uninstalled; and the CRDs that it brings."""

import base64
import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.chart.conftest import CHART, ready_controller
from tests.chart.hooks import Hooks
from tests.servers import CommandFailed, ControlPlane
from tests.servers.control_plane import ApiRefused

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

RELEASE, NAMESPACE = "sp", "net"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/spiderpool-controller-server-certs"
API = "/apis/spiderpool.spidernet.io/v2beta1"
KINDS = {
    "spidercoordinators": "SpiderCoordinator",
    "spiderendpoints": "SpiderEndpoint",
    "spiderippools": "SpiderIPPool",
    "spidermultusconfigs": "SpiderMultusConfig",
    "spiderreservedips": "SpiderReservedIP",
    "spidersubnets": "SpiderSubnet",
}


def left_of_release(cluster: ControlPlane) -> set[str]:
    """Everything of every listable resource that carries the release's label."""
    resources = cluster.kubectl("api-resources", "--verbs=list", "--output=name").split()
    label = f"--selector=app.kubernetes.io/instance={RELEASE}"
    return set(
        cluster.kubectl(
            "get", ",".join(resources), "-A", label, "-o=jsonpath={range .items[*]}{.kind}/{.metadata.name} {end}"
        ).split()
    )


@pytest.fixture(scope="module")
def hooks(empty_cluster: ControlPlane) -> Iterator[Hooks]:
    """Whatever hook is due is run."""
    empty_cluster.create_namespace(NAMESPACE)
    with Hooks(empty_cluster, NAMESPACE) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(empty_cluster: ControlPlane, hooks: Hooks) -> Iterator[ControlPlane]:
    """With the release installed."""
    ready_controller(empty_cluster, NAMESPACE)
    empty_cluster.helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE)
    yield empty_cluster
    if RELEASE in empty_cluster.helm("list", "--namespace", NAMESPACE, "--short").split():
        empty_cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)


def test_api_server_takes_every_object_to_the_letter(cluster: ControlPlane) -> None:
    """Hooks included: an unknown or doubled field is an error here."""
    everything = (
        "spiderpoolAgent.prometheus.enabled=true",
        "spiderpoolAgent.hostPID=true",
        "spiderpoolController.prometheus.enabled=true",
        "spiderpoolController.cleanup.enable=true",
        "clusterDefaultPool.installIPv4IPPool=true",
        "clusterDefaultPool.ipv4Subnet=10.6.0.0/16",
        "coordinator.serviceCIDR={10.96.0.0/16,fd00:10:96::/112}",
    )
    sets = [word for value in everything for word in ("--set", value)]
    text = cluster.helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *sets)
    assert "helm.sh/hook" in text
    cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    wrong = text.replace("hostNetwork: true", "hostNetwrk: true")
    with pytest.raises(CommandFailed, match="unknown field"):
        cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=wrong)


def test_a_second_installation_is_refused_by_name(cluster: ControlPlane) -> None:
    cluster.create_namespace("elsewhere")
    with pytest.raises(CommandFailed, match="in this cluster already: release sp in namespace net"):
        cluster.helm("install", "other", str(CHART), "--namespace", "elsewhere", "--no-hooks")
    assert "DaemonSet/spiderpool-agent" in left_of_release(cluster)


def test_every_object_is_there(cluster: ControlPlane) -> None:
    manifest = cluster.helm("get", "manifest", RELEASE, "--namespace", NAMESPACE)
    cluster.kubectl("--namespace", NAMESPACE, "get", "-f", "-", stdin=manifest)
    assert {"DaemonSet/spiderpool-agent", "Deployment/spiderpool-controller"} <= left_of_release(cluster)


def test_objects_are_read_back_as_they_were_meant(cluster: ControlPlane) -> None:
    agent = cluster.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/spiderpool-agent").body
    volumes = {volume["name"]: volume for volume in agent["spec"]["template"]["spec"]["volumes"]}
    token, _ = volumes["controller"]["projected"]["sources"]
    assert token["serviceAccountToken"] == {
        "audience": "spiderpool-controller",
        "expirationSeconds": 3600,
        "path": "token",
    }
    assert volumes["config"]["configMap"]["defaultMode"] == 0o400
    service = cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/services/spiderpool-controller").body
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        "rpc": 5723,
        "http": 5720,
        "webhook": 5722,
    }
    assert service["spec"]["ipFamilies"] == ["IPv4", "IPv6"]


# -- what each program may do

OWN = ("spiderippools.spiderpool.spidernet.io", "spiderendpoints.spiderpool.spidernet.io")
SLICES = "endpointslices.discovery.k8s.io"
NETWORKS = "network-attachment-definitions.k8s.cni.cncf.io"
MAY = [
    ("spiderpool-agent", "watch", "pods", "web", True),
    ("spiderpool-agent", "create", "events", "web", True),
    ("spiderpool-agent", "watch", SLICES, NAMESPACE, True),
    ("spiderpool-agent", "watch", SLICES, "web", False),
    ("spiderpool-agent", "patch", "pods", "web", False),
    ("spiderpool-agent", "get", NETWORKS, "web", False),
    ("spiderpool-agent", "get", "secrets", NAMESPACE, False),
    ("spiderpool-agent", "list", "nodes", "", False),
    ("spiderpool-agent", "list", OWN[0], "", False),
    ("spiderpool-agent", "patch", f"{OWN[0]}/status", "", False),
    ("spiderpool-agent", "create", OWN[1], "web", False),
    ("spiderpool-agent", "create", "tokenreviews.authentication.k8s.io", "", False),
    ("spiderpool-controller", "watch", "pods", "web", True),
    ("spiderpool-controller", "watch", "nodes", "", True),
    ("spiderpool-controller", "watch", "namespaces", "", True),
    ("spiderpool-controller", "get", "replicasets.apps", "web", True),
    ("spiderpool-controller", "get", "cronjobs.batch", "web", True),
    ("spiderpool-controller", "watch", OWN[0], "", True),
    ("spiderpool-controller", "patch", f"{OWN[0]}/status", "", True),
    ("spiderpool-controller", "create", OWN[1], "web", True),
    ("spiderpool-controller", "delete", OWN[1], "web", True),
    ("spiderpool-controller", "create", "tokenreviews.authentication.k8s.io", "", True),
    ("spiderpool-controller", "watch", SLICES, NAMESPACE, True),
    ("spiderpool-controller", "list", "servicecidrs.networking.k8s.io", "", True),
    ("spiderpool-controller", "patch", "events", "web", True),
    ("spiderpool-controller", "watch", NETWORKS, "", True),
    ("spiderpool-controller", "create", NETWORKS, "web", True),
    ("spiderpool-controller", "deletecollection", NETWORKS, "web", False),
    ("spiderpool-agent", "create", NETWORKS, "web", False),
    ("spiderpool-controller", "patch", "pods", "web", True),
    ("spiderpool-controller", "patch", "pods/status", "web", False),
    ("spiderpool-controller", "update", "pods", "web", False),
    ("spiderpool-controller", "patch", "configmaps", NAMESPACE, True),
    ("spiderpool-controller", "patch", "configmaps", "web", False),
    ("spiderpool-controller", "delete", "configmaps", NAMESPACE, False),
    ("spiderpool-controller", "get", "secrets", NAMESPACE, False),
    ("spiderpool-controller", "delete", "pods", "web", False),
    ("spiderpool-controller", "delete", "namespaces", "", False),
    ("spiderpool-controller", "patch", "validatingwebhookconfigurations.admissionregistration.k8s.io", "", False),
]


@pytest.mark.parametrize(("account", "verb", "resource", "namespace", "allowed"), MAY)
def test_rights(
    *, cluster: ControlPlane, account: str, verb: str, resource: str, namespace: str, allowed: bool
) -> None:
    name, _, subresource = resource.partition("/")
    plural, _, group = name.partition(".")
    attributes = {"verb": verb, "resource": plural, "group": group, "subresource": subresource, "namespace": namespace}
    review = cluster.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": f"system:serviceaccount:{NAMESPACE}:{account}", "resourceAttributes": attributes}},
    )
    assert review.body["status"]["allowed"] is allowed


@pytest.mark.parametrize("verb", ["get", "patch", "update", "delete", "list", "watch", "create"])
def test_one_secret_can_be_read_and_changed_by_the_controller_and_no_other(cluster: ControlPlane, verb: str) -> None:
    def may(account: str, name: str, namespace: str) -> bool:
        attributes = {"verb": verb, "resource": "secrets", "name": name, "namespace": namespace}
        user = f"system:serviceaccount:{NAMESPACE}:{account}"
        spec = {"user": user, "resourceAttributes": attributes}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(cluster.request("POST", path, {"spec": spec}).body["status"]["allowed"])

    own = SECRET.rpartition("/")[2]
    assert may("spiderpool-controller", own, NAMESPACE) is (verb in {"get", "patch"})
    assert not may("spiderpool-controller", "other", NAMESPACE)
    assert not may("spiderpool-controller", own, "kube-system")
    assert not may("spiderpool-agent", own, NAMESPACE)


# -- the certificate


def upgraded(cluster: ControlPlane, *values: str, force: bool = False) -> str:
    """Upgrade; returns the mark that rolls the controller. `force`: write over what the controller has made."""
    sets = [word for value in values for word in ("--set", f"spiderpoolController.{value}")]
    forced = ["--force-conflicts"] if force else []
    cluster.helm("upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, *sets, *forced)
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/spiderpool-controller"
    template = cluster.request("GET", path).body["spec"]["template"]["metadata"]
    return str(template["annotations"]["spiderpool.spidernet.io/certificate"])


def as_controller(cluster: ControlPlane, mark: str) -> dict[str, bytes]:
    """What it would write, as far as a chart is concerned."""
    made = {name: f"{mark} {name}".encode() for name in ("tls.crt", "tls.key", "ca.crt", "ca.key")}
    data = {name: base64.b64encode(value).decode() for name, value in made.items()}
    cluster.request("PATCH", SECRET, {"data": data})
    return made


def test_what_the_controller_keeps_is_no_business_of_a_release(cluster: ControlPlane) -> None:
    secret = cluster.request("GET", SECRET).body
    assert (secret["type"], secret.get("data")) == ("Opaque", None)
    made = as_controller(cluster, "first")
    upgraded(cluster, "replicas=1")
    assert certificate(cluster) == made
    cluster.helm("rollback", RELEASE, "--namespace", NAMESPACE)
    assert certificate(cluster) == made
    assert "tls.key" not in cluster.helm("get", "manifest", RELEASE, "--namespace", NAMESPACE)
    # Nor of a tool that renders without a cluster.
    only = "--show-only=templates/controller-tls.yaml"
    text = cluster.helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, only)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    assert certificate(cluster) == made


def certificate(cluster: ControlPlane) -> dict[str, bytes]:
    data: dict[str, str] = cluster.request("GET", SECRET).body["data"]
    return {name: base64.b64decode(value) for name, value in data.items()}


def test_helms_certificate_is_valid_for_the_name_that_agents_ask_for(cluster: ControlPlane, tmp_path: Path) -> None:
    upgraded(cluster, "tls.method=auto", force=True)
    files = certificate(cluster)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    theirs = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    shake_hands(theirs, ours, name=f"spiderpool-controller.{NAMESPACE}.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(theirs, ours, name="spiderpool-controller.other.svc")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, *, name: str) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(down, up, server_hostname=name)
    answerer = server.wrap_bio(up, down, server_side=True)
    for side in (caller, answerer, caller, answerer):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert caller.getpeercert()


def test_upgrade_keeps_helms_certificate_until_its_names_change(cluster: ControlPlane) -> None:
    auto = "tls.method=auto"
    mark = upgraded(cluster, auto)
    first = certificate(cluster)
    upgraded(cluster, auto, "replicas=2")
    assert certificate(cluster) == first
    other_mark = upgraded(cluster, auto, "tls.auto.extraDnsNames[0]=pool.example")
    changed = certificate(cluster)
    assert changed != first
    assert other_mark != mark, "the controller has to start again to show the new one"
    leaf = x509.load_pem_x509_certificate(changed["tls.crt"])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "pool.example" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("secret_type", ["Opaque", "kubernetes.io/tls"])
def test_the_controller_takes_over_helms_certificate_and_helm_the_controllers(
    cluster: ControlPlane, secret_type: str
) -> None:
    """Of a Secret whose type this method has, and of one that an earlier release has made, with what it renders."""
    if secret_type != "Opaque":
        cluster.request("DELETE", SECRET)
    upgraded(cluster, "tls.method=auto", force=True)
    helms = certificate(cluster)
    assert cluster.request("GET", SECRET).body["type"] == secret_type
    theirs = {name: helms[name] for name in ("tls.crt", "tls.key", "ca.crt")}
    upgraded(cluster, "tls.method=controller")
    assert {name: value for name, value in certificate(cluster).items() if name in theirs} == theirs
    made = as_controller(cluster, secret_type)
    upgraded(cluster, "tls.method=controller", "replicas=1")
    assert certificate(cluster) == made
    with pytest.raises(CommandFailed, match="conflict"):
        upgraded(cluster, "tls.method=auto")
    upgraded(cluster, "tls.method=auto", force=True)
    assert certificate(cluster)["tls.crt"] not in {made["tls.crt"], theirs["tls.crt"]}
    upgraded(cluster)


# -- the CRDs


def test_all_kinds_are_served_under_their_short_names(cluster: ControlPlane) -> None:
    listed = cluster.kubectl("api-resources", "--api-group=spiderpool.spidernet.io", "--no-headers")
    rows = {row.split()[0]: row.split() for row in listed.splitlines()}
    assert {name: (row[1], row[3]) for name, row in rows.items()} == {
        "spidercoordinators": ("scc", "false"),
        "spiderendpoints": ("se", "true"),
        "spiderippools": ("sp", "false"),
        "spidermultusconfigs": ("smc", "true"),
        "spiderreservedips": ("sr", "false"),
        "spidersubnets": ("ss", "false"),
    }
    assert set(cluster.kubectl("api-resources", "--categories=spiderpool", "-o=name").split()) == {
        f"{name}.spiderpool.spidernet.io" for name in KINDS
    }


@pytest.mark.parametrize("plural", KINDS)
def test_api_server_finds_nothing_wrong_with_a_schema(cluster: ControlPlane, plural: str) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.spiderpool.spidernet.io"
    conditions = {c["type"]: c for c in cluster.request("GET", path).body["status"]["conditions"]}
    assert "NonStructuralSchema" not in conditions
    assert conditions["Established"]["status"] == "True"
    assert conditions["NamesAccepted"]["status"] == "True"


def made(cluster: ControlPlane, plural: str, spec: dict[str, Any], *, name: str, namespace: str = "") -> dict[str, Any]:
    path = f"{API}/namespaces/{namespace}/{plural}" if namespace else f"{API}/{plural}"
    body: dict[str, Any] = cluster.request(
        "POST",
        path,
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": KINDS[plural],
            "metadata": {"name": name},
            "spec": spec,
        },
    ).body
    return body


def test_pool_columns(cluster: ControlPlane) -> None:
    spec = {
        "ipVersion": 4,
        "subnet": "10.6.0.0/16",
        "ips": ["10.6.0.10-10.6.0.19"],
        "nodeName": ["n1", "n2"],
        "multusName": ["kube-system/macvlan"],
        "podAffinity": {"matchLabels": {"ipam.spidernet.io/app-namespace": "web"}},
    }
    pool = made(cluster, "spiderippools", spec, name="lan")
    assert pool["spec"] == {**spec, "default": False, "disable": False}
    status = {"allocatedIPs": '{"10.6.0.10":{"pod":"a/b","podUid":"u"}}', "totalIPCount": 10, "allocatedIPCount": 1}
    cluster.request("PATCH", f"{API}/spiderippools/lan/status", {"status": {**status, "withheldIPs": "{}", "no": 1}})
    stored = cluster.request("GET", f"{API}/spiderippools/lan").body
    assert stored["status"] == {**status, "withheldIPs": "{}"}

    head, row = cluster.kubectl("get", "sp", "lan").splitlines()
    assert head.split() == ["NAME", "VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT", "DEFAULT"]
    assert row.split() == ["lan", "4", "10.6.0.0/16", "1", "10", "false"]
    head, row = cluster.kubectl("get", "spiderippools", "lan", "-o=wide").splitlines()
    assert head.split()[6:] == ["DISABLE", "NODENAME", "MULTUSNAME", "APP-NAMESPACE"]
    assert row.split()[6:] == ["false", '["n1","n2"]', '["kube-system/macvlan"]', "web"]


def test_status_is_written_through_its_subresource_only(cluster: ControlPlane) -> None:
    made(cluster, "spidersubnets", {"subnet": "10.7.0.0/16"}, name="lan")
    path = f"{API}/spidersubnets/lan"
    cluster.request("PATCH", path, {"status": {"totalIPCount": 5}})
    assert "status" not in cluster.request("GET", path).body
    cluster.request("PATCH", f"{path}/status", {"status": {"totalIPCount": 5}, "spec": {"gateway": "10.7.0.1"}})
    stored = cluster.request("GET", path).body
    assert stored["status"] == {"totalIPCount": 5}
    assert stored["spec"] == {"subnet": "10.7.0.0/16"}
    assert cluster.kubectl("get", "ss").split()[1:5] == ["VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT"]


def test_endpoint_columns(cluster: ControlPlane) -> None:
    detail = {"interface": "eth0", "ipv4": "10.6.0.10/16", "ipv4Pool": "lan", "ipv6": "fd00::5/64", "ipv6Pool": "lan6"}
    body = {
        "apiVersion": "spiderpool.spidernet.io/v2beta1",
        "kind": "SpiderEndpoint",
        "metadata": {"name": "pod"},
        "status": {
            "current": {"uid": "u", "node": "n1", "ips": [detail]},
            "ownerControllerType": "Pod",
            "ownerControllerName": "pod",
        },
    }
    stored = cluster.request("POST", f"{API}/namespaces/{NAMESPACE}/spiderendpoints", body).body
    assert stored["status"]["current"]["ips"] == [{**detail, "vlan": 0}], "no status subresource: it is kept at once"
    head, row = cluster.kubectl("get", "se", "-n", NAMESPACE).splitlines()
    assert head.split() == ["NAME", "INTERFACE", "IPV4POOL", "IPV4", "IPV6POOL", "IPV6", "NODE"]
    assert row.split() == ["pod", "eth0", "lan", "10.6.0.10/16", "lan6", "fd00::5/64", "n1"]


def test_defaults_of_the_other_kinds(cluster: ControlPlane) -> None:
    coordinator = made(cluster, "spidercoordinators", {}, name="plain")
    defaults = {"mode": "auto", "tunePodRoutes": True, "hostRuleTable": 500, "podRPFilter": 0, "txQueueLen": 0}
    assert coordinator["spec"] == defaults
    spec = {"cniType": "vlan", "vlan": {"master": ["eth0"], "ippools": {"ipv4": ["lan"]}}, "coordinator": {}}
    config = made(cluster, "spidermultusconfigs", spec, name="vlan", namespace=NAMESPACE)
    assert config["spec"] == {
        "cniType": "vlan",
        "vlan": {
            "master": ["eth0"],
            "mtu": 0,
            "vlanMode": "manual",
            "ippools": {"ipv4": ["lan"], "matchMasterSubnet": False},
        },
        "coordinator": defaults,
        "disableIPAM": False,
        "enableCoordinator": True,
    }
    assert cluster.kubectl("get", "scc", "plain").split()[:3] == ["NAME", "AGE", "plain"]
    assert cluster.kubectl("get", "smc", "-n", NAMESPACE).split()[:3] == ["NAME", "AGE", "vlan"]


def test_null_is_the_same_as_absent(cluster: ControlPlane) -> None:
    pool = made(cluster, "spiderippools", {"subnet": "10.8.0.0/16", "gateway": None, "default": None}, name="nulls")
    assert pool["spec"] == {"subnet": "10.8.0.0/16", "default": False, "disable": False}


@pytest.mark.parametrize(
    ("plural", "spec", "field"),
    [
        ("spiderippools", {}, "spec.subnet"),
        ("spiderippools", {"subnet": "10.6.0.0/16", "ipVersion": 5}, "spec.ipVersion"),
        ("spiderippools", {"subnet": "10.6.0.0/16", "routes": [{"dst": "10.0.0.0/8"}]}, "spec.routes[0].gw"),
        ("spidersubnets", {}, "spec.subnet"),
        ("spiderreservedips", {"ipVersion": 1}, "spec.ipVersion"),
        ("spidercoordinators", {"mode": "sideways"}, "spec.mode"),
        ("spidercoordinators", {"vethMTU": 0}, "spec.vethMTU"),
    ],
)
def test_api_server_refuses(cluster: ControlPlane, plural: str, spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiRefused) as caught:
        made(cluster, plural, spec, name="wrong")
    assert caught.value.answer.status == 422
    assert field in json.dumps(caught.value.answer.body["details"]["causes"])


def test_uninstall_leaves_the_crds_and_nothing_else(cluster: ControlPlane, hooks: Hooks) -> None:
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)
    assert left_of_release(cluster) == set()
    with pytest.raises(CommandFailed):
        cluster.kubectl("get", "clusterrole", "spiderpool-admin")
    assert "lan" in cluster.kubectl("get", "sp")
    hook = hooks.last("spiderpool-controller-hook-pre-delete")
    assert hook.code == 0
    assert "left in the cluster: 1 spiderendpoints, 2 spiderippools" in hook.output
    cluster.helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE)
    assert "SpiderCoordinator default: already there" in hooks.last("spiderpool-init").output
