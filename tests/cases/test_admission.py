"""What may be written, asked of the real API server with the webhooks registered as the chart does it, over TLS."""

import base64
import json
from typing import Any

import pytest

from tests.cases.refusals import causes
from tests.cases.world import World
from tests.processes.lab import DRY, POOL_TYPE, Lab
from tests.rules.test_admission_ippool import REFUSED
from tests.servers import CommandFailed
from tests.servers.control_plane import Answer

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

RESERVED = "/apis/spiderpool.spidernet.io/v2beta1/spiderreservedips"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/spiderpool-controller"


def tried(lab: Lab, spec: dict[str, Any]) -> Answer:
    """What the API server answers to a pool that it is not to store."""
    return lab.control_plane.request(
        "POST", DRY, {**POOL_TYPE, "metadata": {"name": "tried"}, "spec": spec}, check=False
    )


def test_a_pool_is_completed(lab: Lab) -> None:
    made = tried(lab, {"subnet": "10.6.0.0/16", "ips": ["10.6.0.12-10.6.0.13", "10.6.0.11", "10.6.0.10"]}).body
    assert made["metadata"]["labels"] == {"ipam.spidernet.io/ippool-cidr": "10-6-0-0-16"}
    assert (made["spec"]["ipVersion"], made["spec"]["ips"]) == (4, ["10.6.0.10-10.6.0.13"])


def test_every_rule_has_its_words(lab: Lab) -> None:
    for spec, error in REFUSED:
        answer = tried(lab, {"subnet": "10.6.0.0/16", "ips": ["10.6.0.10-10.6.0.20"], **spec})
        # The schema decides that alone, before anybody is asked.
        expected = "spec: Invalid value: ipVersion is not that of subnet" if "ipVersion" in spec else error
        assert causes(answer) == [expected]
        assert 'SpiderIPPool.spiderpool.spidernet.io "tried" is invalid: ' in answer.body["message"]


def test_all_that_is_wrong_is_said_at_once(lab: Lab) -> None:
    spec = {"subnet": "10.6.0.0/16", "gateway": "10.7.0.1", "ips": ["x"], "routes": [{"dst": "0.0.0.0/0", "gw": "y"}]}
    answer = tried(lab, spec)
    fields = ["spec.ips[0]", "spec.gateway", "spec.routes[0].dst", "spec.routes[0].gw"]
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == fields
    assert all(field in answer.body["message"] for field in fields)


def test_kubectl_shows_it(lab: Lab) -> None:
    manifest = {**POOL_TYPE, "metadata": {"name": "shown"}, "spec": {"subnet": "10.6.0.0/16", "ips": ["10.7.0.1"]}}
    with pytest.raises(CommandFailed, match=r"outside of spec\.subnet 10\.6\.0\.0/16"):
        lab.control_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))


def test_reserved_addresses(lab: Lab) -> None:
    def reserved(**spec: Any) -> Answer:
        body = {**POOL_TYPE, "kind": "SpiderReservedIP", "metadata": {"name": "tried"}, "spec": spec}
        return lab.control_plane.request("POST", f"{RESERVED}?dryRun=All", body, check=False)

    assert reserved(ips=["fd00::9", "FD00::8"]).body["spec"] == {"ips": ["fd00::8-fd00::9"], "ipVersion": 6}
    assert causes(reserved()) == ["spec.ipVersion: Required value: 4 or 6, where spec.ips is empty"]
    assert causes(reserved(ips=["10.6.0.0/24"])) == [
        'spec.ips[0]: Invalid value: "10.6.0.0/24": a CIDR is not allowed, write it as first-last'
    ]


def test_trust_that_is_taken_away_comes_back(world: World) -> None:
    """As after an upgrade of the chart, or by a tool that keeps a cluster to a repository."""
    lab = world.lab
    found = lab.control_plane.request("GET", CONFIGURATION).body["webhooks"]
    bundle = base64.b64encode(lab.control_plane.ca_file.read_bytes()).decode()
    assert {hook["clientConfig"]["caBundle"] for hook in found} == {bundle}
    for hook in found:
        del hook["clientConfig"]["caBundle"]
    lab.control_plane.request("PATCH", CONFIGURATION, {"webhooks": found})
    world.wait(lambda: causes_or_none(tried(lab, {"subnet": "x"})), "the API server trusts the controllers again")


def causes_or_none(answer: Answer) -> list[str]:
    """Empty also while the webhook cannot be called."""
    return [] if answer.status >= 500 else causes(answer)
