"""Bandwidth with the real programs: from the pod's annotations, and from the runtime, to the kernel, CHECK and DEL."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.processes.lab import CniError, Lab, Pod, call

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"


def make(lab: Lab, name: str, **annotations: str) -> Pod:
    pools = {"ipam.spidernet.io/ippool": json.dumps(lab.pools_of_pods)}
    keys = {"ingress": INGRESS, "egress": EGRESS}
    pod = Pod(lab, name, "n1", annotations={**pools, **{keys[key]: value for key, value in annotations.items()}})
    pod.new_sandbox()
    return pod


def rates(pod: Pod) -> dict[str, int]:
    """Bytes a second by link."""

    def look() -> dict[str, int]:
        with IPRoute() as route:
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
            return {
                names[one["index"]]: one.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"]
                for one in route.get_qdiscs()
                if one.get_attr("TCA_KIND") == "tbf"
            }

    assert pod.netns is not None
    return pod.netns.run(look)


def gone(lab: Lab, pod: Pod) -> None:
    def interfaces() -> list[str]:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        return sorted(line.split(":")[0].strip() for line in lines)

    lab.wait_for(lambda: pod.uid not in {record["podUid"] for record in lab.records().values()})
    assert pod.netns is not None
    assert pod.netns.run(interfaces) == ["lo"]


def check(lab: Lab, pod: Pod, result: Mapping[str, Any]) -> None:
    call(lab.plugins / "macvlan", "CHECK", {**lab.config(pod.node), "prevResult": result}, pod.environment())


def test_annotations(lab: Lab) -> None:
    pod, free = make(lab, "limited", ingress="40M", egress="20M"), make(lab, "unlimited")
    result = pod.add()
    free.add()
    assert rates(pod) == {"ifb-eth0": 5_000_000, "eth0": 2_500_000}
    assert rates(free) == {}
    # The ifb is no interface of the pod's.
    assert [one["name"] for one in result["interfaces"]] == ["eth0"]
    assert pod.add() == result
    check(lab, pod, result)
    assert pod.netns is not None
    pod.netns.run(_lift)
    with pytest.raises(CniError, match="eth0 is not limited as ADD left it") as caught:
        check(lab, pod, result)
    assert "eth0 is not limited to 20000000 bits a second" in json.dumps(caught.value.document)
    pod.delete()
    free.delete()
    gone(lab, pod)
    gone(lab, free)


def test_the_runtimes_word(lab: Lab) -> None:
    # As containerd has it: the pod's annotation, with a burst that means none.
    pod = make(lab, "by-the-runtime", ingress="40M", egress="20M")
    given = {"egressRate": 8_000_000, "egressBurst": 2**32 - 1}
    conf = {**lab.config(pod.node), "runtimeConfig": {"bandwidth": given}}
    pod.add(config=conf)
    assert rates(pod) == {"ifb-eth0": 5_000_000, "eth0": 1_000_000}
    pod.delete(config=conf)
    gone(lab, pod)


@pytest.mark.parametrize(("direction", "value"), [("ingress", "fast"), ("egress", "999"), ("egress", "2P")])
def test_a_value_that_is_no_good(lab: Lab, direction: str, value: str) -> None:
    pod = make(lab, f"wrong-{direction}-{value.lower()}", **{direction: value})
    with pytest.raises(CniError) as caught:
        pod.add()
    words = json.dumps(caught.value.document)
    assert f"kubernetes.io/{direction}-bandwidth" in words
    assert f"'{value}'" in words
    gone(lab, pod)


def test_a_runtime_that_cannot_mean_it(lab: Lab) -> None:
    pod = make(lab, "wrong-runtime")
    conf = {**lab.config(pod.node), "runtimeConfig": {"bandwidth": {"egressRate": 10}}}
    with pytest.raises(CniError, match=r"runtimeConfig\.bandwidth\.egressRate: 10 "):
        pod.add(config=conf)
    gone(lab, pod)


def _lift() -> None:
    with IPRoute() as route:
        route.tc("del", index=route.link_lookup(ifname="eth0")[0], parent=0xFFFFFFFF)
