"""The definition of the kind NetworkAttachmentDefinition, for clusters where nobody else has brought it.

The kind is the Kubernetes Network Plumbing Working Group's (its specification, version 1.3, section 3). Multus and
others bring it too, so one that is there is left alone, whatever it looks like, and uninstalling leaves ours.
"""

from typing import Final

from api.definitions import Document
from api.kinds import NETWORKATTACHMENT

_TEXT: Final = {"type": "string"}


def document() -> Document:
    """The CustomResourceDefinition."""
    kind = NETWORKATTACHMENT
    config = {"description": "A CNI configuration or a list of them, as JSON.", **_TEXT}
    schema = {
        "description": "A network that pods name in their annotation k8s.v1.cni.cncf.io/networks.",
        "type": "object",
        "properties": {
            "apiVersion": _TEXT,
            "kind": _TEXT,
            "metadata": {"type": "object"},
            "spec": {
                "description": "What pods are attached to.",
                "type": "object",
                "properties": {"config": config},
            },
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": "network-attachment-definition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [
                {"name": kind.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }
