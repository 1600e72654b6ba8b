"""Who the replicas are in the eyes of the EndpointSlices, and by which address each is called."""

import msgspec

from actors.replica.replicas import one_way_each, replicas_of
from api.core import EndpointSlice


def _slice(family: str, *endpoints: tuple[str, str | None, bool | None]) -> EndpointSlice:
    document = {
        "addressType": family,
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {} if ready is None else {"ready": ready},
                **({"targetRef": {"kind": "Pod", "name": pod}} if pod else {}),
            }
            for address, pod, ready in endpoints
        ],
        "ports": [{"name": "http", "port": 5720}, {"name": "rpc", "port": 5723}],
    }
    return msgspec.convert(document, EndpointSlice)


def test_a_replica_of_two_families_is_called_by_one_address() -> None:
    six = _slice("IPv6", ("fd00::1", "a", True), ("fd00::2", "b", True))
    four = _slice("IPv4", ("10.0.0.2", "b", True), ("10.0.0.1", "a", True))
    found = one_way_each([*replicas_of(six), *replicas_of(four)])
    assert {replica.name: str(replica.address) for replica in found} == {"a": "10.0.0.1:5723", "b": "10.0.0.2:5723"}
    only_six = one_way_each(replicas_of(six))
    assert {replica.name: str(replica.address) for replica in only_six} == {
        "a": "[fd00::1]:5723",
        "b": "[fd00::2]:5723",
    }


def test_who_is_not_ready_is_no_replica_and_who_has_no_pod_goes_by_its_address() -> None:
    found = replicas_of(_slice("IPv4", ("10.0.0.1", "a", False), ("10.0.0.2", None, None)))
    assert [replica.name for replica in found] == ["10.0.0.2:5723"]
