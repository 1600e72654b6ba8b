"""Kinds as wide as the wire: they show the fields that the rooms' Structs leave out."""

from typing import Any

from msgspec import Struct, field

from api.kinds import IPPOOL, POD, Kind


class Wide(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Any object, whole."""

    api_version: str = ""
    kind: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)


def widened(kind: Kind[Any]) -> Kind[Wide]:
    """The same objects, whole."""
    return Kind(
        group=kind.group,
        version=kind.version,
        plural=kind.plural,
        kind=kind.kind,
        namespaced=kind.namespaced,
        status=kind.status,
        type=Wide,
    )


WIDE_POD = widened(POD)
WIDE_POOL = widened(IPPOOL)


def wide_pod(
    namespace: str,
    name: str,
    *,
    node: str = "",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Wide:
    """A pod that a real API server takes."""
    spec = {"containers": [{"name": "main", "image": "none"}], **({"nodeName": node} if node else {})}
    meta = {"name": name, "namespace": namespace, "labels": labels or {}, "annotations": annotations or {}}
    return Wide(metadata=meta, spec=spec)
