"""What is kept of all pools gives the same records as reading all of them, and finds those of a pod or a node."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import ObjectMeta
from ipam.garbage import Held, held_in
from ipam.holdings import Holdings
from ipam.index import Index

RECORD = AllocationRecord(pod="default/web-0", pod_uid="u1", nic="eth0", node="n1", cid="c" * 12)
HELD = Held("v4", "10.6.0.5", RECORD)

names = st.text(alphabet='ab"\\é', max_size=2)
records = st.dictionaries(
    st.sampled_from(["10.6.0.5", "10.6.0.6", "fd00::1", 'no "address"', "é"]),
    st.fixed_dictionaries(
        {"pod": names, "podUid": names}, optional={"node": names, "kept": st.booleans(), "theirs": names}
    ),
)


def pool(name: str, version: str, text: str | None) -> SpiderIPPool:
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, resource_version=version), status=IPPoolStatus(allocated_ips=text)
    )


@given(st.lists(st.tuples(records, st.sampled_from([None, 2]), st.booleans()), max_size=3))
def test_whoever_wrote_the_text_its_records_are_found(texts: list[tuple[dict[str, Any], int | None, bool]]) -> None:
    pools = [
        pool(f"p{number}", "1", json.dumps(content, indent=indent, ensure_ascii=escaped))
        for number, (content, indent, escaped) in enumerate(texts)
    ]
    holdings = Holdings()
    for one in pools:
        holdings.take(one)
    found = [held for one in pools for held in held_in(one)]
    assert [held for name in holdings.pools() for held in holdings.of(name)] == found
    assert holdings.kept() == [held for held in found if held.kept]
    assert holdings.nodes() == {held.record.node for held in found} - {""}
    for node in {held.record.node for held in found} | {"nobody"}:
        assert holdings.on_nodes([node]) == [held for held in found if held.record.node == node]
    for key in {held.record.pod for held in found} | {"nobody"}:
        assert holdings.of_pods({key}) == [held for held in found if held.record.pod == key]
    assert all(map(holdings.has, found))
    assert not any(holdings.has(Held(held.pool, held.address, RECORD)) for held in found)


def test_what_changed_is_read_and_nothing_else() -> None:
    holdings = Holdings()
    records = {"10.6.0.5": RECORD, "10.6.0.6": AllocationRecord(pod="nonsense", pod_uid="")}
    first = {"v4": pool("v4", "1", encode_records(records)), "bad": pool("bad", "1", "{nonsense")}
    for one in holdings.outdated(first):
        holdings.take(one)
    assert holdings.outdated(first) == []
    assert [(h.address, h.namespace, h.name) for h in holdings.of("v4")] == [
        ("10.6.0.5", "default", "web-0"),
        ("10.6.0.6", "", "nonsense"),
    ]
    assert holdings.of("bad") == [] and holdings.nodes() == {"n1"}
    assert holdings.has(HELD)
    then = {"v4": pool("v4", "2", None)}
    assert holdings.outdated(then) == [then["v4"]]
    holdings.take(then["v4"])
    assert not holdings.has(HELD) and holdings.pools() == ["v4"]


class Same(str):
    """Texts that have one hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 4)), max_size=20), st.booleans())
def test_an_index_finds_what_was_added_and_not_dropped(steps: list[tuple[bool, str, int]], alike: bool) -> None:
    index, model = Index(), set[tuple[str, int]]()
    for adds, letter, number in steps:
        text = Same(letter) if alike else letter
        ours = number + 5 * "abc".index(letter)
        if adds and (letter, ours) not in model:
            index.add(text, ours)
            model.add((letter, ours))
        elif not adds:
            index.drop(text, ours)
            model.discard((letter, ours))
    for letter in "abc":
        mine = {number for name, number in model if name == letter or alike}
        assert set(index.of(Same(letter) if alike else letter)) == mine
