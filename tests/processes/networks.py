"""The Plumbing Working Group's NetworkAttachmentDefinition, and definitions of the tests' own."""

import json
from collections.abc import Mapping
from typing import Any, Final

from tests.servers import ControlPlane

GROUP: Final = "k8s.cni.cncf.io"
_PLURAL: Final = "network-attachment-definitions"
_CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def install_kind(control_plane: ControlPlane) -> None:
    """The kind, for as long as the API server runs; it may be there already."""
    config = {"type": "object", "properties": {"config": {"type": "string"}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": config}}}
    control_plane.request(
        "POST",
        _CRDS,
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{_PLURAL}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {
                    "kind": "NetworkAttachmentDefinition",
                    "plural": _PLURAL,
                    "singular": "network-attachment-definition",
                    "shortNames": ["net-attach-def"],
                },
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
            },
        },
        check=False,
    )
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{_PLURAL}.{GROUP}")


def define(control_plane: ControlPlane, namespace: str, name: str, config: Mapping[str, Any] | str) -> None:
    """A definition; a mapping is written as JSON."""
    control_plane.request(
        "POST",
        f"/apis/{GROUP}/v1/namespaces/{namespace}/{_PLURAL}",
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name},
            "spec": {"config": config if isinstance(config, str) else json.dumps(config)},
        },
    )


def remove(control_plane: ControlPlane, namespace: str, name: str) -> None:
    """Take a definition away."""
    control_plane.request("DELETE", f"/apis/{GROUP}/v1/namespaces/{namespace}/{_PLURAL}/{name}")
