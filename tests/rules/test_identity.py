"""Whose addresses are fixed, and for how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import Pod, StatefulSet, StatefulSetOrdinals, StatefulSetSpec
from api.kubevirt import VirtualMachine, VirtualMachineInstance
from api.meta import ObjectMeta, OwnerReference
from api.wire import Fixed
from ipam import identity


def pod(name: str, api_version: str = "", kind: str = "", owner: str = "") -> Pod:
    owners = [OwnerReference(api_version=api_version, kind=kind, name=owner, uid="o", controller=True)] if kind else []
    return Pod(metadata=ObjectMeta(name=name, namespace="default", owner_references=owners))


WEB = pod("web-0", "apps/v1", "StatefulSet", "web")
VM = pod("virt-launcher-db-x7", "kubevirt.io/v1", "VirtualMachineInstance", "db")


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        (WEB, Fixed(kind="StatefulSet", name="web", holder="web-0")),
        (VM, Fixed(kind="VirtualMachineInstance", name="db", holder="db")),
        (pod("web-0", "apps.kruise.io/v1", "StatefulSet", "web"), None),
        (pod("web-abc", "apps/v1", "ReplicaSet", "web"), None),
        (pod("alone"), None),
    ],
)
def test_only_a_statefulsets_pods_and_kubevirts_machines_have_fixed_addresses(who: Pod, wanted: Fixed | None) -> None:
    assert identity.fixed(who, statefulset=True, kubevirt=True) == wanted
    assert identity.fixed(who, statefulset=False, kubevirt=False) is None


@given(replicas=st.none() | st.integers(0, 5), start=st.none() | st.integers(0, 5), number=st.integers(0, 12))
def test_a_statefulset_wants_its_ordinals(replicas: int | None, start: int | None, number: int) -> None:
    ordinals = None if start is None else StatefulSetOrdinals(start=start)
    one = StatefulSet(metadata=ObjectMeta(name="web"), spec=StatefulSetSpec(replicas=replicas, ordinals=ordinals))
    names = {f"web-{each + (start or 0)}" for each in range(1 if replicas is None else replicas)}
    assert identity.wants_pod(one, f"web-{number}") is (f"web-{number}" in names)


@pytest.mark.parametrize("name", ["web", "web-", "web-x", "web-01", "web--1", "other-0", "web-0-0"])
def test_it_wants_no_other_name(name: str) -> None:
    one = StatefulSet(metadata=ObjectMeta(name="web"), spec=StatefulSetSpec(replicas=3))
    assert not identity.wants_pod(one, name)
    assert not identity.wants_pod(None, name)


def test_the_set_in_a_pods_name() -> None:
    assert identity.statefulset_of("my-web-12") == "my-web"
    assert [identity.statefulset_of(name) for name in ("web", "web-x", "-0", "0")] == [""] * 4


def test_a_statefulset_that_is_being_deleted_still_wants_its_pods() -> None:
    meta = ObjectMeta(name="web", deletion_timestamp="2026-01-01T00:00:00Z")
    assert identity.wants_pod(StatefulSet(metadata=meta), "web-0")


GOING = ObjectMeta(name="db", deletion_timestamp="2026-01-01T00:00:00Z")
STAYS = ObjectMeta(name="db")


@pytest.mark.parametrize(
    ("instance", "machine", "wanted"),
    [
        (STAYS, None, True),
        (STAYS, STAYS, True),
        (STAYS, GOING, True),
        (GOING, STAYS, True),
        (GOING, GOING, False),
        (GOING, None, False),
        (None, STAYS, True),
        (None, GOING, False),
        (None, None, False),
    ],
)
def test_a_virtual_machine_is_wanted_while_it_or_what_makes_it_stays(
    instance: ObjectMeta | None, machine: ObjectMeta | None, wanted: bool
) -> None:
    seen = VirtualMachineInstance(metadata=instance) if instance else None
    above = VirtualMachine(metadata=machine) if machine else None
    assert identity.wants_instance(seen, above) is wanted


def test_groups_and_versions() -> None:
    core = identity.own(pod("alone"))
    assert (core.group, core.version, str(core)) == ("", "v1", "Pod default/alone")
    above = WEB.metadata.controller
    assert above is not None
    owned = identity.owned("default", above)
    assert (owned.group, owned.version) == ("apps", "v1")
    assert not identity.may_be_owned(owned)
