"""Whether three accounts of the same addresses agree: what pods were told, what pools record, what endpoints show.

Pure: it is given what was read, and returns what is wrong, a line each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from tests.processes.fleet import Sandbox

FAMILIES = (4, 6)


class Accounts(Struct, frozen=True):
    """What is compared."""

    pods: Sequence[Sandbox]
    """With the addresses of the ADD that was acknowledged last."""
    pools: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Pool to address to record."""
    counts: Mapping[str, int]
    """Pool to `allocatedIPCount`."""
    endpoints: Mapping[str, Mapping[str, Any]]
    """SpiderEndpoints by name."""
    namespace: str


def findings(accounts: Accounts) -> list[str]:
    """Everything that is wrong; empty when all agree."""
    return [*_told(accounts), *_recorded(accounts), *_shown(accounts)]


def _told(accounts: Accounts) -> Iterator[str]:
    """Every pod has one address of each family, and nobody else has it."""
    for pod in accounts.pods:
        versions = sorted(6 if ":" in address else 4 for address in pod.addresses)
        if versions != list(FAMILIES):
            yield f"{pod.name}: was told {pod.addresses}, not one address of each family"
    for address, holders in Counter(address for pod in accounts.pods for address in pod.addresses).items():
        if holders > 1:
            yield f"duplicate: {address} was given to {holders} pods"


def _recorded(accounts: Accounts) -> Iterator[str]:
    """Records are exactly what pods were told, and say of whom."""
    holders = {address: pod for pod in accounts.pods for address in pod.addresses}
    seen: dict[str, str] = {}
    for pool, records in accounts.pools.items():
        if accounts.counts.get(pool, 0) != len(records):
            yield f"pool {pool}: allocatedIPCount is {accounts.counts.get(pool, 0)}, it has {len(records)} records"
        for address, record in records.items():
            if address in seen:
                yield f"duplicate: {address} is recorded in {seen[address]} and {pool}"
            seen[address] = pool
            holder = holders.get(address)
            if holder is None:
                yield f"leak: {pool} records {address} for {record.get('pod')}, which was not told"
                continue
            expected = {
                "pod": f"{accounts.namespace}/{holder.name}",
                "podUid": holder.uid,
                "nic": "eth0",
                "node": holder.node,
                "cid": holder.cid[:12],
            }
            if {key: value for key, value in record.items() if key != "begun"} != expected:
                yield f"{pool}: {address} is recorded as {dict(record)}, expected {expected}"
    for address in holders.keys() - seen.keys():
        yield f"lost: {address} of {holders[address].name} is in no pool"


def _shown(accounts: Accounts) -> Iterator[str]:
    """SpiderEndpoints show the same, one for each pod that has addresses."""
    holding = {pod.name: pod for pod in accounts.pods if pod.addresses}
    for name in accounts.endpoints.keys() - holding.keys():
        yield f"leak: SpiderEndpoint {name} belongs to no pod with addresses"
    for name, pod in holding.items():
        current = accounts.endpoints.get(name, {}).get("status", {}).get("current")
        if current is None:
            yield f"lost: {name} has no SpiderEndpoint"
            continue
        ips = [ip.get(key, "").partition("/")[0] for ip in current.get("ips", ()) for key in ("ipv4", "ipv6")]
        shown = (current.get("uid"), current.get("node"), sorted(ips))
        if shown != (pod.uid, pod.node, sorted(pod.addresses)):
            yield f"SpiderEndpoint {name} shows {shown}, expected {(pod.uid, pod.node, sorted(pod.addresses))}"
