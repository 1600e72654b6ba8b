"""Whose sandbox a call is about, with and without Kubernetes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import InvalidEnvironment
from cni.pods import named_by_runtime, named_somehow
from cni.protocol import Invocation, PodArgs, Verb

ID = "4f5c1d0e9b8a7766554433221100ffeeddccbbaa99887766554433221100ffee"


def call(
    verb: Verb = Verb.ADD, *, container_id: str = ID, namespace: str = "", name: str = "", uid: str = ""
) -> Invocation:
    args = PodArgs(namespace=namespace, name=name, uid=uid)
    return Invocation(verb=verb, type="macvlan", container_id=container_id, ifname="eth0", args=args)


def named(*, container_id: str = ID, namespace: str = "", name: str = "", uid: str = "") -> tuple[str, str, str]:
    seen = named_somehow(call(container_id=container_id, namespace=namespace, name=name, uid=uid)).args
    return seen.namespace, seen.name, seen.uid


def test_what_kubelet_names_is_left_alone() -> None:
    assert named(namespace="shop", name="web-0", uid="u-1") == ("shop", "web-0", "u-1")


def test_a_container_without_a_name_is_called_by_its_id() -> None:
    assert named() == ("default", ID, ID)
    assert named(namespace="lab") == ("lab", ID, ID)


def test_who_comes_back_under_a_name_is_the_same() -> None:
    first = named_somehow(call(container_id="a" * 64, name="web")).args
    second = named_somehow(call(container_id="b" * 64, name="web")).args
    assert first == second
    assert (first.namespace, first.name, first.uid) == ("default", "web", "default/web")


def test_names_become_what_objects_may_be_called_and_stay_apart() -> None:
    assert named(name="My_App") == ("default", "my-app", "default/My_App")
    assert named(name="my-app") == ("default", "my-app", "default/my-app")


@pytest.mark.parametrize("verb", [Verb.CHECK, Verb.DEL])
def test_every_verb_of_a_container_means_the_same_pod(verb: Verb) -> None:
    assert named_somehow(call(verb)).args == named_somehow(call()).args


def test_calls_about_no_container_stay_as_they_are() -> None:
    for verb in (Verb.GC, Verb.STATUS):
        seen = call(verb, container_id="")
        assert named_somehow(seen) == seen


def test_under_kubernetes_an_add_has_to_name_its_pod() -> None:
    with pytest.raises(InvalidEnvironment, match="K8S_POD_NAME: missing from CNI_ARGS"):
        named_by_runtime(call(namespace="default"))
    assert named_by_runtime(call(Verb.DEL)) == call(Verb.DEL)


@given(st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,254}", fullmatch=True), st.text(max_size=300))
def test_every_name_can_be_an_objects(container_id: str, name: str) -> None:
    seen = named_somehow(call(container_id=container_id, name=name)).args
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", seen.name)
    assert seen.uid
