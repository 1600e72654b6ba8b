"""What a network provider's answers say, and what is none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.provider import AllocateRequest, AnswerError, Assigned, Wanted, read_assigned, subnet_of

A, B = "10.0.0.5", "10.0.0.6"


def answer(*items: dict[str, Any]) -> bytes:
    return json.dumps({"podName": "p", "iaasIPsAllocationResponse": list(items)}).encode()


def item(address: str = A, mac: Any = "FA:16:3E:00:00:01", vlan: Any = 7, **more: Any) -> dict[str, Any]:
    return {"ipAddress": address, "macAddress": mac, "vlanId": vlan, "subnet": "10.0.0.0/16", **more}


def test_all_that_was_asked_for_in_any_order() -> None:
    said = read_assigned(answer(item(B, vlan=8), item(f"{A}/16", mac="fa-16-3e-00-00-02")), [A, B])
    assert said == {B: Assigned("fa:16:3e:00:00:01", 8), A: Assigned("fa:16:3e:00:00:02", 7)}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "cannot be read"),
        (b"<html>", "cannot be read.*<html>"),
        (b"[]", "cannot be read"),
        (b"{}", f"has nothing for {A}, {B}"),
        (answer(item(A)), f"has nothing for {B}$"),
        (answer(item(A), item(A), item(B)), f"ipAddress: {A} is there twice"),
        (answer(item(A), item(B), item("10.0.0.7")), "ipAddress: '10.0.0.7' was not asked for"),
        (answer(item(A), item("nonsense")), "ipAddress: 'nonsense' was not asked for"),
        (answer(item(A, mac=""), item(B)), f"for {A}: macAddress: '' is none"),
        (answer(item(A, mac="01:00:5e:00:00:01"), item(B)), "macAddress: '01:00:5e:00:00:01' is none"),
        (answer(item(A, mac="00:00:00:00:00:00"), item(B)), "macAddress"),
        (answer(item(A, vlan=0), item(B)), "vlanId: 0: expected 1 to 4094"),
        (answer(item(A, vlan=4095), item(B)), "vlanId: 4095"),
        (answer(item(A, vlan="7"), item(B)), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(body: bytes, text: str) -> None:
    with pytest.raises(AnswerError, match=text):
        read_assigned(body, [A, B])


values = st.none() | st.integers() | st.text(max_size=20) | st.sampled_from([A, B, "fa:16:3e:00:00:01"])
junk = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner))
items = st.lists(
    st.fixed_dictionaries({}, optional={"ipAddress": values, "macAddress": values, "vlanId": values}), max_size=4
)


@given(st.binary(max_size=80) | junk.map(lambda it: json.dumps(it).encode()) | items.map(lambda it: answer(*it)))
def test_nothing_else_is_ever_raised_and_nothing_is_half_said(body: bytes) -> None:
    try:
        said = read_assigned(body, [A, B])
    except AnswerError:
        pass
    else:
        assert said.keys() == {A, B}
        assert all(0 < one.vlan < 4095 for one in said.values())


def test_a_subnet_is_told_without_host_bits() -> None:
    assert [subnet_of(text) for text in ("10.0.0.5/16", "10.0.0.0/16", "junk")] == [
        "10.0.0.0/16",
        "10.0.0.0/16",
        "junk",
    ]


def test_what_is_sent() -> None:
    import msgspec

    request = AllocateRequest(node_name="n1", wanted=[Wanted(A, "10.0.0.0/16", "02:00:00:00:00:01")])
    assert msgspec.json.decode(msgspec.json.encode(request)) == {
        "nodeName": "n1",
        "iaasIPsAllocationRequest": [
            {"ipAddress": A, "subnet": "10.0.0.0/16", "parentNicMac": "02:00:00:00:00:01"},
        ],
    }
