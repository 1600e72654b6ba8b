"""Pods on their way into the cluster: what `admission.injection` has to know for each, and the answer.

Which SpiderMultusConfigs a pod asks for is read from the API server, not from a watch: of two that were made a moment
before the pod a watch may have seen one, and the pod would lack a network for good. Only pods that ask cost that read.
Namespaces are watched, as by the API server's own admission: an annotation counts for pods that come a moment later. A
namespace, or a network, that the watches have not seen is read before anything is said of it.

It owns nothing and persists nothing. A read that fails or takes too long refuses the pod for now, and whoever makes it
tries again.
"""

from collections.abc import Callable, Iterable, Sequence

import anyio

from admission.exchange import MUTATE, Asked, Outcome, completed, malformed, read, unanswered
from admission.injection import Policy, attached, concerned, counted, named, wish
from admission.review import Judgement
from api.attachments import attachment_name
from api.core import Namespace
from api.kinds import MULTUSCONFIG, NAMESPACE, NEW_POD
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from api.networks import Network
from api.newpod import NewPod
from runtime.store.port import NotFound, Store, StoreError

_SECONDS = 5.0
"""For all that is read of one pod: half of what the API server waits for us."""


class PodWebhook:
    """See the module."""

    def __init__(
        self,
        store: Store,
        *,
        namespace: Callable[[str], Namespace | None],
        configs: Callable[[], Iterable[SpiderMultusConfig]],
        attachment: Callable[[str, str], NetworkAttachmentDefinition | None],
        policy: Policy,
    ) -> None:
        """What the watches have seen: a namespace by its name, all SpiderMultusConfigs, a definition by both names."""
        self._store = store
        self._namespace = namespace
        self._configs = configs
        self._attachment = attachment
        self._policy = policy

    def __repr__(self) -> str:
        return f"<PodWebhook {self._policy}>"

    async def answer(self, body: bytes) -> Outcome:
        """Answer one request. Raises `NoReview`."""
        asked = read(NEW_POD, body)
        if asked.review is None:
            return malformed(asked, MUTATE)
        pod = asked.review.new
        if asked.request.operation != "CREATE" or not concerned(pod, asked.request.namespace, self._policy):
            return completed(asked, pod)
        try:
            with anyio.fail_after(_SECONDS):
                after, judgement = await self._injected(asked, pod)
        except StoreError as error:
            return unanswered(asked, str(error))
        except TimeoutError:
            return unanswered(asked, f"the API server has not answered in {_SECONDS:g} s")
        return completed(asked, after, judgement)

    async def _injected(self, asked: Asked[NewPod], pod: NewPod) -> tuple[NewPod, Judgement]:
        namespace = asked.request.namespace
        wanted = wish(pod, namespace, await self._notes(namespace))
        judgement = Judgement()
        labelled: Sequence[SpiderMultusConfig] = ()
        if wanted is not None:
            if wanted.is_word and not pod.spec.host_network:
                labelled = (await self._store.list(MULTUSCONFIG, labels={wanted.key: wanted.value})).items
            pod, judgement = attached(pod, wanted, labelled, namespace=namespace, chosen=self._policy)
        if self._policy.counts and not judgement.errors:
            nics = named(pod, namespace=namespace, chosen=self._policy)
            pod = counted(pod, await self._makers(nics, labelled), self._policy)
        return pod, judgement

    async def _notes(self, name: str) -> dict[str, str]:
        """A namespace's annotations; none of one that is not there, in which no pod can be made either."""
        found = self._namespace(name)
        if found is None:
            try:
                found = await self._store.get(NAMESPACE, name)
            except NotFound:
                return {}
        return found.metadata.annotations

    async def _makers(
        self, nics: Iterable[Network], labelled: Iterable[SpiderMultusConfig]
    ) -> list[SpiderMultusConfig]:
        """The SpiderMultusConfig of each NIC; a definition that was written by hand has none."""
        known = _by_path([*self._configs(), *labelled])
        asked: set[str] = set()
        found: list[SpiderMultusConfig] = []
        for nic in nics:
            path = nic.namespace, nic.name
            if path not in known and nic.namespace not in asked and self._is_unseen(nic):
                asked.add(nic.namespace)
                known |= _by_path((await self._store.list(MULTUSCONFIG, namespace=nic.namespace)).items)
            if path in known:
                found.append(known[path])
        return found

    def _is_unseen(self, nic: Network) -> bool:
        """Whether the watches may have missed its maker: they have not seen the definition either, or see its owner."""
        definition = self._attachment(nic.namespace, nic.name)
        owner = definition.metadata.controller if definition is not None else None
        return definition is None or (owner is not None and owner.kind == MULTUSCONFIG.kind)


def _by_path(configs: Iterable[SpiderMultusConfig]) -> dict[tuple[str, str], SpiderMultusConfig]:
    """By namespace and name of the definition."""
    return {(config.metadata.namespace, attachment_name(config)): config for config in configs}
