"""The real API server does what the tests of the rooms rely on."""

from __future__ import annotations

import json

import pytest

from tests.servers import CommandFailed, ControlPlane

AUDIENCE = "spiderpool-controller"


def make_pod(control_plane: ControlPlane, namespace: str, name: str, *, account: str, node: str) -> str:
    spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "main", "image": "none"}]}
    body = {"metadata": {"name": name}, "spec": spec}
    return str(control_plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", body).body["metadata"]["uid"])


def test_what_is_written_is_read_back(control_plane: ControlPlane, namespace: str) -> None:
    listed = json.loads(control_plane.kubectl("get", "namespace", namespace, "-o", "json"))
    assert listed["metadata"]["name"] == namespace
    assert (
        control_plane.request("GET", f"/api/v1/namespaces/{namespace}").body["metadata"]["uid"]
        == listed["metadata"]["uid"]
    )


def test_the_version_is_a_release_that_helm_accepts(control_plane: ControlPlane) -> None:
    version = control_plane.request("GET", "/version").body
    assert version["gitVersion"].startswith("v1.")
    assert version["minor"].isdigit()


def test_a_token_bound_to_a_pod_says_which_node_speaks(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.create_service_account(namespace, "agent")
    uid = make_pod(control_plane, namespace, "agent-0", account="agent", node="node-a")
    token = control_plane.service_account_token(namespace, "agent", audience=AUDIENCE, pod="agent-0")

    review = {"spec": {"token": token, "audiences": [AUDIENCE]}}
    status = control_plane.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).body["status"]

    assert status["authenticated"] is True
    assert status["audiences"] == [AUDIENCE]
    assert status["user"]["username"] == f"system:serviceaccount:{namespace}:agent"
    extra = status["user"]["extra"]
    assert extra["authentication.kubernetes.io/node-name"] == ["node-a"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [uid]


def test_rbac_refuses_whom_nothing_was_granted(control_plane: ControlPlane, namespace: str) -> None:
    nobody = control_plane.kubeconfig_for(user="nobody", groups=["strangers"])
    with pytest.raises(CommandFailed, match="Forbidden"):
        control_plane.kubectl("get", "pods", "-n", namespace, kubeconfig=nobody)


def test_helm_reaches_the_api_server(control_plane: ControlPlane) -> None:
    assert "NAME" in control_plane.helm("list", "--all-namespaces")


def test_what_was_stored_survives_a_stop_of_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.stop_apiserver()
    with pytest.raises(OSError, match=r".+"):
        control_plane.request("GET", "/version")
    control_plane.start_apiserver()
    assert control_plane.request("GET", f"/api/v1/namespaces/{namespace}").status == 200
