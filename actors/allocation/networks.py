"""The networks that a pod is attached to, for the agent that is its meta plugin.

The pod's annotations name them (`api.networks`), NetworkAttachmentDefinitions say what they are. A definition that the
snapshot lacks is read before anything is refused: pods are made the moment after their networks.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from actors.allocation.callers import Refusal
from api.annotations import MULTUS_DEFAULT_NETWORK, MULTUS_NETWORKS, NETWORK_RESOURCE, AnnotationError
from api.core import Pod
from api.kinds import NETWORKATTACHMENT
from api.networkattachment import NetworkAttachmentDefinition
from api.networks import Network, default_network, networks
from api.wire import NetworkDefinition, Networked, Rejected
from runtime.store.port import NotFound, Store


class Isolation(Struct, frozen=True):
    """Whether pods may be attached to networks of other namespaces."""

    enabled: bool = False
    shared: tuple[str, ...] = ("default",)
    """Namespaces whose networks are for everybody all the same."""

    def allows(self, *, pod: str, network: str) -> bool:
        """Both are namespaces."""
        return not self.enabled or network == pod or network in self.shared


class Networks:
    """The networks of pods, as one replica looks them up."""

    def __init__(
        self,
        store: Store,
        *,
        seen: Callable[[str, str], NetworkAttachmentDefinition | None],
        namespace: str,
        isolation: Isolation,
    ) -> None:
        """`seen` is the snapshot, by namespace and name; `namespace` is that of the agents."""
        self._store = store
        self._seen = seen
        self._namespace = namespace
        self._isolation = isolation

    def __repr__(self) -> str:
        return f"<Networks {self._isolation}>"

    async def of(self, pod: Pod) -> Networked:
        """All that a pod's annotations name. Raises `Refusal` and `StoreError`."""
        annotations, namespace = pod.metadata.annotations, pod.metadata.namespace
        try:
            first = default_network(annotations, namespace=self._namespace)
            others = networks(annotations, namespace=namespace)
        except AnnotationError as error:
            raise _refused(pod, str(error)) from error
        for network in others:
            if not self._isolation.allows(pod=namespace, network=network.namespace):
                raise _refused(
                    pod,
                    f"annotation {MULTUS_NETWORKS}: network {network} is of another namespace, and "
                    f"SPIDERPOOL_MULTUS_NAMESPACE_ISOLATION is true; the value is {annotations[MULTUS_NETWORKS]!r}",
                )
        return Networked(
            pod_uid=pod.metadata.uid,
            default=None if first is None else await self._defined(pod, MULTUS_DEFAULT_NETWORK, first),
            networks=tuple([await self._defined(pod, MULTUS_NETWORKS, network) for network in others]),
        )

    async def _defined(self, pod: Pod, key: str, network: Network) -> NetworkDefinition:
        found = self._seen(network.namespace, network.name)
        if found is None:
            try:
                found = await self._store.get(NETWORKATTACHMENT, network.name, namespace=network.namespace)
            except NotFound as error:
                text = f"annotation {key}: there is no NetworkAttachmentDefinition {network}"
                value = pod.metadata.annotations[key]
                raise _refused(pod, f"{text} ({error}); the value is {value!r}", retry=True) from error
        return NetworkDefinition(
            namespace=network.namespace,
            name=network.name,
            interface=network.interface,
            config=found.spec.config,
            resource=found.metadata.annotations.get(NETWORK_RESOURCE, ""),
            ips=network.ips,
            mac=network.mac,
            default_route=network.default_route,
            cni_args=network.cni_args,
            infiniband_guid=network.infiniband_guid,
            bandwidth=_text(network.bandwidth),
            port_mappings=_text(network.port_mappings),
            device_id=network.device_id,
        )


def _text(value: object) -> str:
    """As JSON; empty for nothing."""
    return msgspec.json.encode(value).decode() if value else ""


def _refused(pod: Pod, text: str, *, retry: bool = False) -> Refusal:
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    return Refusal(Rejected(message=f"pod {name}: {text}", retry=retry, cause="wrong_input"))
