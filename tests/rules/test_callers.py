"""Whose agent may ask for a pod's addresses: what is stored now decides, however old the snapshot is."""

import pytest

from actors.allocation.callers import Callers, Refusal, View
from api.core import Pod, PodSpec
from api.kinds import POD
from api.meta import ObjectMeta
from api.wire import PodRef
from runtime.store.memory import MemoryStore
from runtime.testing import run
from runtime.transport.port import Peer

HERE = Peer(account="agent", node="n1", role="agent")
UID = "00000000-0000-4000-8000-000000000001"
"""That the store gives to its first object."""


def pod(node: str, uid: str = UID) -> Pod:
    return Pod(metadata=ObjectMeta(name="web-0", namespace="default", uid=uid), spec=PodSpec(node_name=node))


def asked(*, seen: Pod | None, stored: Pod | None, uid: str = UID) -> Pod | str:
    """The pod as it is found for n1's agent, or why the agent is refused."""

    async def main() -> Pod | str:
        store = MemoryStore()
        if stored is not None:
            await store.create(POD, stored)
        view = View(pools=dict, pod=lambda *_: seen, namespace=lambda _: None, node=lambda _: None)
        try:
            return await Callers(store, view, pods_exist=True).live_pod(PodRef("default", "web-0", uid), HERE)
        except Refusal as refusal:
            return refusal.rejected.message

    return run(main, seed=1)


@pytest.mark.parametrize("seen", [None, pod(""), pod("n2"), pod("n1", uid="before"), pod("n1")])
def test_a_pod_is_served_where_it_is_though_a_snapshot_lags(seen: Pod | None) -> None:
    """Not yet bound as far as the replica has seen, or one of the same name was elsewhere."""
    found = asked(seen=seen, stored=pod("n1"))
    assert isinstance(found, Pod) and (found.spec.node_name, found.metadata.uid) == ("n1", UID)


def test_a_snapshot_that_agrees_is_enough() -> None:
    assert asked(seen=pod("n1"), stored=None) == pod("n1")


@pytest.mark.parametrize(
    ("stored", "uid", "why"),
    [
        (pod("n2"), UID, "runs on node n2, not on n1"),
        (pod(""), UID, "runs on node (none yet), not on n1"),
        (pod("n1"), "before", f"K8S_POD_UID before has been replaced by {UID}"),
        (None, UID, "no such pod"),
    ],
)
def test_what_is_stored_otherwise_is_refused(stored: Pod | None, uid: str, why: str) -> None:
    refused = asked(seen=pod("n2"), stored=stored, uid=uid)
    assert isinstance(refused, str) and why in refused
