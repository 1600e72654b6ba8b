"""Where SpiderEndpoints and pools disagree: every way, and the agreement next to it."""

import pytest

from api.ippool import AllocationRecord
from ipam.drift import Drift, Shown, compare
from ipam.garbage import Held


def held(address: str, *, uid: str = "u1", nic: str = "eth0", pool: str = "v4", kept: bool = False) -> Held:
    record = AllocationRecord(pod="d/web", pod_uid=uid, nic=nic, node="n1" if nic else "", cid="c" * 12, kept=kept)
    return Held(pool, address, record)


A, B = Shown("eth0", "10.6.0.5", "v4"), Shown("net1", "10.7.0.5", "v7")
HELD_A, HELD_B = held("10.6.0.5"), held("10.7.0.5", nic="net1", pool="v7")


@pytest.mark.parametrize(
    ("uid", "shown", "records", "expected"),
    [
        (None, (), (), None),
        ("u1", (A,), (HELD_A,), None),
        ("u1", (A, B), (HELD_A, HELD_B), None),
        (None, (), (HELD_A,), Drift.MISSING),
        (None, (), (held("10.6.0.5", kept=True),), None),
        (None, (), (held("10.6.0.5", nic=""),), None),
        ("u1", (A,), (HELD_A, HELD_B), Drift.INCOMPLETE),
        ("u1", (A,), (held("10.6.0.6"),), Drift.INCOMPLETE),
        ("u1", (Shown("eth0", "10.6.0.5", "other"),), (HELD_A,), Drift.INCOMPLETE),
        ("u1", (A, B), (HELD_A,), Drift.UNRECORDED),
        ("u1", (A,), (), Drift.OUTDATED),
        ("u1", (), (), Drift.OUTDATED),
        ("u1", (A,), (held("10.6.0.6", nic=""),), Drift.OUTDATED),
        ("u1", (A,), (held("10.6.0.5", uid="u2"),), Drift.OTHER_POD),
        ("u1", (A,), (held("10.6.0.5", kept=True),), None),
        ("u1", (A,), (held("10.6.0.5", nic=""),), None),
        ("u1", (A,), (held("10.6.0.9", uid="u2"),), Drift.OTHER_POD),
    ],
)
def test_how_an_endpoint_differs_from_the_pools(
    uid: str | None, shown: tuple[Shown, ...], records: tuple[Held, ...], expected: Drift | None
) -> None:
    assert compare(uid, shown, records) == expected
