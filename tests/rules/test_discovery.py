"""Which addresses are the cluster's own, by what it says of itself."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.coordination.configurations import ConfigurationFile, Folder, pod_network
from actors.coordination.coordinators import notices
from actors.coordination.discovery import Finding, Flags, Seen, discover, flags_of
from actors.coordination.status import change_of, network_of, status_of
from api.coordinator import CoordinatorStatus, SpiderCoordinator
from api.core import ConfigMap, ServiceCIDR, ServiceCIDRSpec
from api.meta import Condition, ObjectMeta
from api.overlays import (
    CalicoIPPool,
    CalicoIPPoolSpec,
    CiliumCIDRs,
    CiliumPodIPPool,
    CiliumPodIPPoolSpec,
    ControlPlaneContainer,
    ControlPlanePod,
    ControlPlanePodSpec,
)

FLAGS = Flags("kube-system/kcm", cluster_cidr="10.1.0.0/16,fd01::/48", service_cidr="10.2.0.0/16")


def kubeadm(**networking: str) -> ConfigMap:
    lines = "".join(f"  {key}: {value}\n" for key, value in networking.items())
    return ConfigMap(data={"ClusterConfiguration": f"kind: ClusterConfiguration\nnetworking:\n{lines or '  {}'}"})


KUBEADM = kubeadm(podSubnet="10.3.0.0/16, fd03::/48", serviceSubnet="10.4.0.0/16")


def files(**texts: str | None) -> Folder:
    """By name with _ for - and __ for a dot; None is a file that may not be read."""

    def file(key: str, text: str | None) -> ConfigurationFile:
        name = key.removeprefix("f").replace("__", ".").replace("_", "-")
        return ConfigurationFile(name, (text or "").encode(), error="Permission denied" if text is None else "")

    return Folder("/cni", tuple(file(key, text) for key, text in texts.items()))


def service(name: str, *cidrs: str, at: str = "2026-01-01T00:00:00Z") -> ServiceCIDR:
    return ServiceCIDR(metadata=ObjectMeta(name=name, creation_timestamp=at), spec=ServiceCIDRSpec(cidrs=list(cidrs)))


def calico(name: str, cidr: str, *, at: int = 0, disabled: bool = False, going: bool = False) -> CalicoIPPool:
    meta = ObjectMeta(
        name=name,
        creation_timestamp=f"2026-01-01T00:00:0{at}Z",
        deletion_timestamp="2026-01-01T00:01:00Z" if going else None,
    )
    return CalicoIPPool(metadata=meta, spec=CalicoIPPoolSpec(cidr=cidr, disabled=disabled))


def cilium(**data: str) -> ConfigMap:
    return ConfigMap(data={key.replace("_", "-"): value for key, value in data.items()})


def podpool(name: str, ipv4: list[str], ipv6: list[str] | None = None) -> CiliumPodIPPool:
    spec = CiliumPodIPPoolSpec(ipv4=CiliumCIDRs(ipv4), ipv6=CiliumCIDRs(ipv6) if ipv6 is not None else None)
    return CiliumPodIPPool(metadata=ObjectMeta(name=name), spec=spec)


@pytest.mark.parametrize(
    ("folder", "network"),
    [
        (files(), "none"),
        (files(f10_calico__conflist='{"name": "k8s-pod-network", "plugins": [{"type": "calico"}]}'), "calico"),
        (files(f10_calico__conf='{"name": "calico", "type": "calico"}'), "calico"),
        (files(f05_cilium__conflist='{"name": "cilium", "plugins": [{"type": "cilium-cni"}]}'), "cilium"),
        (files(f10_x__conflist='{"name": "flannel", "plugins": [{"type": "flannel"}]}'), "cluster"),
        # What flannel's own installer writes; the original knows the name "flannel" only.
        (files(f10_flannel__conflist='{"name": "cbr0", "plugins": [{"type": "flannel"}]}'), "cluster"),
        (files(f10_bridge__conf='{"name": "lan", "type": "bridge"}'), "none"),
        (files(f10_broken__conf="{"), "none"),
        # The first one by name counts, but neither ours nor a Multus's.
        (files(f20_a__conf='{"name": "cilium"}', f10_b__conf='{"name": "calico"}'), "calico"),
        (files(f00_multus__conf='{"name": "cilium"}', f10_b__conf='{"name": "calico"}'), "calico"),
        (files(f01_m__conf='{"name": "cilium", "type": "multus-shim"}', f10_b__conf='{"name": "calico"}'), "calico"),
        (files(f00_spiderpool__conflist='{"name": "x"}', f10_b__conf='{"name": "calico"}'), "calico"),
        (files(f10_b__json='{"name": "calico"}'), "none"),
        # Root's alone: its name says enough, or nothing.
        (files(f10_calico__conflist=None), "calico"),
        (files(f10_weave__conflist=None), None),
        (Folder("/cni", error="No such file or directory"), None),
    ],
)  # fmt: skip
def test_network_by_the_configurations_of_a_node(folder: Folder, network: str | None) -> None:
    found, why = pod_network(folder)
    assert found == network
    assert "/cni" in why


def test_flags_in_every_form() -> None:
    def flags(*words: str) -> tuple[str, str]:
        half = len(words) // 2
        spec = ControlPlanePodSpec(containers=[ControlPlaneContainer(list(words[:half]), list(words[half:]))])
        found = flags_of(ControlPlanePod(metadata=ObjectMeta(name="kcm", namespace="kube-system"), spec=spec))
        assert found.pod == "kube-system/kcm"
        return found.cluster_cidr, found.service_cidr

    assert flags("kcm", "--cluster-cidr=a,b", "--service-cluster-ip-range=c") == ("a,b", "c")
    assert flags("kcm", "-cluster-cidr", "a", "x") == ("a", "")
    assert flags("kcm", "--cluster-cidr=a", "--cluster-cidr=b") == ("b", "")
    assert flags("kcm", "--allocate-node-cidrs=true", "--cluster-cidr-x=a", "cluster-cidr=b") == ("", "")
    assert flags("--cluster-cidr") == ("", "")


def found(kind: str | None, **seen: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    finding = discover(kind, Seen(**seen))
    assert finding.problem == ""
    return finding.pods, finding.services


def problem(kind: str | None, **seen: Any) -> str:
    finding = discover(kind, Seen(**seen))
    assert (finding.pods, finding.services) == ((), ())
    return f"{finding.word}: {finding.problem}"


def test_cluster_by_kubeadm_or_by_the_controller_manager() -> None:
    kubeadms = ("10.3.0.0/16", "fd03::/48"), ("10.4.0.0/16",)
    assert found("cluster", kubeadm=KUBEADM) == kubeadms
    assert found("cluster", kubeadm=KUBEADM, flags=FLAGS) == kubeadms
    assert found("cluster", flags=FLAGS) == (("10.1.0.0/16", "fd01::/48"), ("10.2.0.0/16",))
    # A part that kubeadm does not say is the controller manager's to say.
    half = kubeadm(serviceSubnet="10.4.0.0/16")
    assert found("cluster", kubeadm=half, flags=FLAGS) == (("10.1.0.0/16", "fd01::/48"), ("10.4.0.0/16",))
    text = problem("cluster")
    assert "ClusterNotReady: the CIDRs of pods are not known" in text
    assert "kube-system/kubeadm-config" in text
    assert "component=kube-controller-manager" in text
    assert "may not" in problem("cluster", unreadable={"kubeadm": "it may not be read: no"})
    broken = [ConfigMap(data={"ClusterConfiguration": text}) for text in ("{", "[]", "networking: []", "")]
    for each in (*broken, ConfigMap(), kubeadm()):
        assert "does not say" in problem("cluster", kubeadm=each)
    assert "podSubnet: '10.3.0.0/99' is no CIDR" in problem("cluster", kubeadm=kubeadm(podSubnet="10.3.0.0/99"))


def test_services_by_objects_then_by_the_operator_then_by_the_cluster() -> None:
    objects = (service("b", "10.7.0.0/16", at="2026-01-02T00:00:00Z"), service("a", "10.6.0.0/16", "fd06::/112"))
    every: dict[str, Any] = {"kubeadm": KUBEADM, "flags": FLAGS, "configured": ("10.5.0.0/16",)}
    assert found("none", service_cidrs=objects, **every) == ((), ("10.6.0.0/16", "fd06::/112", "10.7.0.0/16"))
    assert found("none", **every) == ((), ("10.5.0.0/16",))
    assert found("none", kubeadm=KUBEADM, flags=FLAGS) == ((), ("10.4.0.0/16",))
    assert found("none", flags=FLAGS) == ((), ("10.2.0.0/16",))
    assert "the CIDRs of Services are not known" in problem("none", service_cidrs=(service("empty"),))


SERVICES: dict[str, Any] = {"service_cidrs": (service("a", "10.6.0.0/16"),)}


def test_calico() -> None:
    pools = (
        calico("young", "10.9.0.0/16", at=5),
        calico("old", "10.8.0.1/16"),
        calico("off", "10.7.0.0/16", disabled=True),
        calico("going", "10.6.0.0/16", going=True),
    )
    assert found("calico", calico=pools, **SERVICES)[0] == ("10.8.0.0/16", "10.9.0.0/16")
    assert "CalicoNotReady: none of Calico's 2 IPPools" in problem("calico", calico=pools[2:], **SERVICES)
    assert "there is no kind ippools.crd.projectcalico.org" in problem("calico", **SERVICES)
    assert "IPPool bad spec.cidr: 'x' is no CIDR" in problem("calico", calico=(calico("bad", "x"),), **SERVICES)


@pytest.mark.parametrize("mode", ["cluster-pool", "cluster-pool-v2beta", ""])
def test_cilium_that_has_one_pool(mode: str) -> None:
    config = cilium(ipam=mode, cluster_pool_ipv4_cidr="10.0.0.0/8 11.0.0.0/8", cluster_pool_ipv6_cidr="fd00::/104")
    assert found("cilium", cilium=config, **SERVICES)[0] == ("10.0.0.0/8", "11.0.0.0/8", "fd00::/104")
    assert "neither cluster-pool-ipv4-cidr" in problem("cilium", cilium=cilium(ipam=mode), **SERVICES)


def test_cilium_in_its_other_modes() -> None:
    pools = (podpool("a", ["10.20.0.0/16"], ["fd20::/64"]), podpool("b", ["10.21.0.0/16"]))
    many = cilium(ipam="multi-pool")
    assert found("cilium", cilium=many, cilium_pools=pools, **SERVICES)[0] == (
        "10.20.0.0/16",
        "fd20::/64",
        "10.21.0.0/16",
    )
    assert "no CiliumPodIPPool has a CIDR" in problem("cilium", cilium=many, cilium_pools=(), **SERVICES)
    assert "there is no kind ciliumpodippools.cilium.io" in problem("cilium", cilium=many, **SERVICES)
    nodes = cilium(ipam="kubernetes")
    assert found("cilium", cilium=nodes, kubeadm=KUBEADM) == (("10.3.0.0/16", "fd03::/48"), ("10.4.0.0/16",))
    assert "the CIDRs of pods are not known" in problem("cilium", cilium=nodes, **SERVICES)
    for mode in ("eni", "azure", "alibabacloud", "crd", "delegated-plugin", "tomorrow's"):
        text = problem("cilium", cilium=cilium(ipam=mode), **SERVICES)
        assert f"CiliumNotReady: ConfigMap kube-system/cilium-config: ipam is {mode}" in text
        assert "hijackCIDR" in text
    assert "there is no ConfigMap a/b" in problem("cilium", cilium_name="a/b", **SERVICES)


def test_a_folder_that_cannot_be_read_hides_nothing_that_objects_show() -> None:
    hidden = Folder("/cni", error="Permission denied")
    pools, config = (calico("a", "10.8.0.0/16"),), cilium(cluster_pool_ipv4_cidr="10.9.0.0/16")
    assert found("auto", folder=hidden, calico=pools, **SERVICES)[0] == ("10.8.0.0/16",)
    assert found(None, folder=hidden, cilium=config, **SERVICES)[0] == ("10.9.0.0/16",)
    for both in ({}, {"calico": pools, "cilium": config}):
        text = problem("auto", folder=hidden, **both, **SERVICES)
        assert "CNIConfigurationNotReady" in text
        assert "/cni: Permission denied" in text
        assert "podCIDRType" in text
    # One that can be read and is empty says: none. Objects that are there may be what somebody left.
    assert found("auto", folder=Folder("/cni"), calico=pools, **SERVICES)[0] == ()


KINDS = st.sampled_from([None, "auto", "cluster", "calico", "cilium", "none"])
CIDRS = st.sampled_from(["10.0.0.0/8", "10.0.0.1/8", "fd00::/64", "", "x", "10.0.0.0/8,fd00::/64", "10.0.0.0/8 x"])
MODES = st.sampled_from(["", "kubernetes", "multi-pool", "eni"])
FOLDERS = st.sampled_from([files(), files(f1__conf='{"name": "calico"}'), files(f1__conf="3"), Folder("/", error="e")])
WORLDS = st.builds(
    Seen,
    folder=FOLDERS,
    kubeadm=st.none() | st.builds(lambda pod, svc: kubeadm(podSubnet=pod, serviceSubnet=svc), CIDRS, CIDRS),
    flags=st.none() | st.builds(Flags, st.just("p"), CIDRS, CIDRS),
    service_cidrs=st.lists(st.builds(lambda text: service("s", text), CIDRS), max_size=2).map(tuple),
    calico=st.none()
    | st.lists(st.builds(lambda text, off: calico("c", text, disabled=off), CIDRS, st.booleans())).map(tuple),
    cilium=st.none() | st.builds(lambda mode, text: cilium(ipam=mode, cluster_pool_ipv4_cidr=text), MODES, CIDRS),
    cilium_pools=st.none() | st.lists(st.builds(lambda text: podpool("p", [text]), CIDRS), max_size=2).map(tuple),
)


@given(KINDS, WORLDS)
def test_all_is_known_or_nothing_and_the_status_settles(kind: str | None, seen: Seen) -> None:
    finding = discover(kind, seen)
    assert bool(finding.problem) != bool(finding.services)
    assert finding.problem == "" or finding.pods == ()
    before = SpiderCoordinator(metadata=ObjectMeta(name="default", generation=3))
    status = status_of(before, finding, now=100.0)
    after = SpiderCoordinator(metadata=before.metadata, status=status)
    assert status != before.status
    assert status_of(after, finding, now=200.0) == status, "nothing has changed: nothing is written"
    assert status.phase == ("NotReady" if finding.problem else "Synced")
    assert (status.reason is None) == (status.phase == "Synced")
    (condition,) = status.conditions
    assert re.fullmatch(r"[A-Z][A-Za-z]+", condition.reason), "the API server takes no other one"
    assert condition.observed_generation == 3, "or kubectl waits on"


def test_a_status_keeps_others_conditions_and_when_it_became_so() -> None:
    other = Condition(type="Other", status="True", reason="R", message="m", last_transition_time="2026-01-01T00:00:00Z")
    item = SpiderCoordinator(status=CoordinatorStatus(conditions=[other]))
    first = status_of(item, Finding(network="calico", services=("10.0.0.0/8",), source="s"), now=0.0)
    item = SpiderCoordinator(status=first)
    second = status_of(item, Finding(network="none", services=("10.0.0.0/8",), source="t"), now=50.0)
    third = status_of(SpiderCoordinator(status=second), Finding(network=None, problem="p"), now=50.0)
    assert [one.conditions[0] for one in (first, second, third)] == [other] * 3
    times = [one.conditions[1].last_transition_time for one in (first, second, third)]
    assert times == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:50Z"]
    assert [network_of(one) for one in (first, second, third)] == ["calico", "none", ""]
    assert change_of(third)["status"]["serviceCIDR"] == [], "what is empty is said, or a patch would leave it"


def test_a_long_reason_fits_into_a_condition() -> None:
    status = status_of(SpiderCoordinator(), Finding(network=None, problem="\N{SNOWMAN}" * 40000), now=0.0)
    assert len(status.conditions[0].message) == 32768


def test_what_is_said_of_a_change() -> None:
    known, other = (Finding(network=one, services=("10.0.0.0/8",), source="s") for one in ("calico", "none"))
    lost = Finding(network=None, problem="gone", word="CalicoNotReady")

    def after(*findings: Finding) -> SpiderCoordinator:
        item = SpiderCoordinator()
        for one in findings:
            item = SpiderCoordinator(status=status_of(item, one, now=0.0))
        return item

    def reasons(*findings: Finding) -> list[str]:
        *before, last = findings
        return [one.reason for one in notices(after(*before), last)]

    assert reasons(known) == []
    assert reasons(known, other) == ["PodCIDRTypeChanged"]
    assert reasons(known, lost) == reasons(lost) == ["CalicoNotReady"]
    assert reasons(lost, lost) == []
    assert reasons(lost, known) == ["CoordinatorSynced"]
