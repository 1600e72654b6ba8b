"""Pools, claims and readings of answers for the tests of the ledger."""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st
from msgspec import structs

from api.ippool import IPPoolSpec, IPPoolStatus, SpiderIPPool
from api.meta import ObjectMeta
from ipam.ledger import Ledger
from ipam.operations import Answer, Claim, Disown, Granted, Operation, Refused, Surrender, Surrendered
from ipam.ranges import Ranges

NAME = "lan"


def make_pool(
    ips: Iterable[str] = ("10.0.0.1-10.0.0.12",),
    *,
    exclude: Iterable[str] = (),
    subnet: str = "10.0.0.0/16",
    disable: bool = False,
    deleted: str | None = None,
    allocated: str | None = None,
    status: IPPoolStatus | None = None,
) -> SpiderIPPool:
    return SpiderIPPool(
        metadata=ObjectMeta(name=NAME, deletion_timestamp=deleted),
        spec=IPPoolSpec(subnet=subnet, ips=list(ips), exclude_ips=list(exclude), disable=disable),
        status=status or IPPoolStatus(allocated_ips=allocated),
    )


def load(
    pool: SpiderIPPool | None = None, *, reserved: Ranges | None = None, max_records: int = 5000, cooldown: float = 0.0
) -> Ledger:
    return Ledger(pool or make_pool(), reserved or Ranges(4), max_records, cooldown=cooldown)


def claim(
    uid: str = "u1",
    nic: str = "eth0",
    cid: str = "c1",
    node: str = "n1",
    pod: str = "",
    *,
    fixed: bool = False,
    moving: bool = False,
    address: str = "",
) -> Claim:
    return Claim(
        pod=pod or f"ns/{uid}", uid=uid, nic=nic, node=node, cid=cid, fixed=fixed, moving=moving, address=address
    )


def surrender(
    uid: str = "u1",
    nic: str = "eth0",
    cid: str = "c1",
    node: str = "",
    *,
    keep: tuple[str, ...] | None = None,
    retain: bool = False,
    successor: str = "",
) -> Surrender:
    return Surrender(uid=uid, nic=nic, cid=cid, node=node, keep=keep, retain=retain, successor=successor)


def disown(
    *addresses: str, uid: str = "u1", nic: str = "eth0", cid: str = "c1", node: str = "", seconds: float = 600.0
) -> Disown:
    return Disown(uid=uid, nic=nic, cid=cid, node=node, addresses=addresses, seen="02:00:00:00:00:99", seconds=seconds)


def address(answer: Answer) -> str:
    assert isinstance(answer, Granted), answer
    return answer.address


def reason(answer: Answer) -> tuple[str, str, str, str]:
    assert isinstance(answer, Refused), answer
    it = answer.reason
    return it.pool, it.predicate, it.wanted, it.seen


def one(ledger: Ledger, operation: Operation, *, now: float = 0.0) -> Answer:
    return ledger.apply([operation], now=now).answers[0]


def stored(ledger: Ledger) -> dict[str, dict[str, Any]]:
    text = ledger.status().allocated_ips
    assert text != "{}", "absent when empty"
    return json.loads(text) if text else {}


def withheld(ledger: Ledger) -> dict[str, dict[str, str]]:
    text = ledger.status().withheld_ips
    assert text != "{}", "absent when empty"
    return json.loads(text) if text else {}


def reloaded(
    ledger: Ledger, *, reserved: Ranges | None = None, max_records: int = 5000, cooldown: float = 0.0
) -> Ledger:
    pool = structs.replace(ledger.pool, status=ledger.status())
    return load(pool, reserved=reserved, max_records=max_records, cooldown=cooldown)


def foreign(**addresses: str) -> str:
    """Records as the original's agents write them: `ip_10_0_0_1="u1"`."""
    return json.dumps(
        {
            name.removeprefix("ip_").replace("_", "."): {"pod": f"ns/{uid}", "podUid": uid}
            for name, uid in addresses.items()
        }
    )


def plain(answer: Answer) -> str | tuple[str, ...]:
    """An answer in short: an address, the freed ones, or the predicate that refuses."""
    match answer:
        case Granted():
            return answer.address.partition("/")[0]
        case Surrendered():
            return answer.ips
        case Refused():
            return answer.reason.predicate


uids = st.sampled_from(["u1", "u2", "u3", "u4"])
nics = st.sampled_from(["eth0", "net1"])
cids = st.sampled_from(["c1", "c2"])
nodes = st.sampled_from(["n1", "n2"])
any_nodes = st.sampled_from(["", "", "n1", "n2"])
claims = st.builds(claim, uids, nics, cids, nodes)
surrenders = st.builds(surrender, uids, nics, cids | st.just(""), any_nodes)
batches: st.SearchStrategy[list[Operation]] = st.lists(claims | surrenders, max_size=6)
