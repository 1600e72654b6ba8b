"""Pools, pods and requests for the tests of selection.

The pod is ns/web on node n1, of Deployment web; pod, namespace and node have the label tier=web.
"""

import json
from collections.abc import Mapping, Sequence

import pytest
from msgspec import structs

from api import annotations as a
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import LabelSelector, ObjectMeta
from ipam.identity import Workload
from ipam.selection import SelectionError, SelectionRequest, select

LABELS = {"tier": "web"}
OTHER = LabelSelector(match_labels={"tier": "db"})
SAME = LabelSelector(match_labels=LABELS)
SUBNETS = {4: "10.0.0.0/16", 6: "fd00::/64"}
DEPLOYMENT = Workload(api_version="apps/v1", kind="Deployment", namespace="ns", name="web")


def pool(
    name: str, version: int = 4, *, deleted: bool = False, owner: Workload | None = None, **spec: object
) -> SpiderIPPool:
    """A pool; with `owner` an automatic one of that workload, as the original makes them."""
    if owner is not None:
        keys = {
            a.APP_API_GROUP: owner.group,
            a.APP_API_VERSION: owner.version,
            a.APP_KIND: owner.kind,
            a.APP_NAMESPACE: owner.namespace,
            a.APP_NAME: owner.name,
        }
        spec = {"pod_affinity": LabelSelector(match_labels=keys), **spec}
    return SpiderIPPool(
        metadata=ObjectMeta(
            name=name,
            deletion_timestamp="2026-01-01T00:00:00Z" if deleted else None,
            labels={} if owner is None else {a.OWNER_APPLICATION_NAME: owner.name},
        ),
        spec=structs.replace(IPPoolSpec(subnet=SUBNETS[version], ip_version=4 if version == 4 else 6), **spec),
    )


def by_name(*pools: SpiderIPPool) -> dict[str, SpiderIPPool]:
    return {it.metadata.name: it for it in pools}


def request(
    annotation: object = None,
    *,
    ippools: object = None,
    networks: object = None,
    others: Mapping[str, str] | None = None,
    namespace_ipv4: object = None,
    namespace_ipv6: object = None,
    default_ipv4: Sequence[str] = (),
    default_ipv6: Sequence[str] = (),
    **fields: object,
) -> SelectionRequest:
    """Annotations as values, or as raw text; `annotation` is that of one NIC. `fields` are those of the request."""
    of_pod = _texts({a.POD_IPPOOL: annotation, a.POD_IPPOOLS: ippools, a.MULTUS_NETWORKS: networks})
    of_namespace = _texts({a.NAMESPACE_DEFAULT_IPV4: namespace_ipv4, a.NAMESPACE_DEFAULT_IPV6: namespace_ipv6})
    asked = SelectionRequest(
        pod=Pod(
            metadata=ObjectMeta(
                name="web", namespace="ns", uid="u1", labels=LABELS, annotations=of_pod | dict(others or {})
            ),
            spec=PodSpec(node_name="n1"),
        ),
        namespace=Namespace(metadata=ObjectMeta(name="ns", labels=LABELS, annotations=of_namespace)),
        node=Node(metadata=ObjectMeta(name="n1", labels=LABELS)),
        nic="eth0",
        default_ipv4=tuple(default_ipv4),
        default_ipv6=tuple(default_ipv6),
        agent_namespace="kube-system",
        cluster_network="kube-system/lan",
        workload=DEPLOYMENT,
    )
    return structs.replace(asked, **fields)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }


def refused(asked: SelectionRequest, pools: Mapping[str, SpiderIPPool]) -> SelectionError:
    with pytest.raises(SelectionError) as caught:
        select(asked, pools)
    return caught.value
