"""Whether nothing is too much and nothing is missing: what pools record, pods hold and endpoints say. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from tests.cases.kubelet import Held


class Use(Struct, frozen=True, order=True):
    """An address in use, by whichever source says so."""

    pod: str
    uid: str
    address: str

    def __str__(self) -> str:
        return f"{self.address} of {self.pod} ({self.uid})"


def findings(
    pods: Mapping[str, Held],
    pools: Iterable[Mapping[str, Any]],
    endpoints: Iterable[Mapping[str, Any]],
    *,
    kept: Iterable[str] = (),
    holders: Mapping[str, str] | None = None,
) -> list[str]:
    """What is wrong, a line each.

    Args:
        pods: that hold addresses, by ``namespace/name``.
        pools: SpiderIPPools.
        endpoints: SpiderEndpoints of the pods' namespaces.
        kept: names of pods that need not be there for their addresses to be kept.
        holders: under which ``namespace/name`` the addresses of a pod are kept, where it is not the pod's own.
    """
    holders = holders or {}
    wanted = {
        Use(holders.get(name, name), pod.uid, address)
        for name, pod in pods.items()
        for addresses in pod.addresses.values()
        for address in addresses
    }
    records: set[Use] = set()
    found = []
    for pool in pools:
        name, status = pool["metadata"]["name"], pool.get("status", {})
        table = json.loads(status.get("allocatedIPs") or "{}")
        for address, record in table.items():
            if any(use.address == address for use in records):
                found.append(f"{address} is recorded in two pools, one is {name}")
            records.add(Use(record["pod"], record["podUid"], address))
        if status.get("allocatedIPCount", 0) != len(table):
            found.append(f"pool {name} counts {status.get('allocatedIPCount')}, holds {len(table)}")
    said = {
        Use(
            f"{item['metadata']['namespace']}/{item['metadata']['name']}",
            item["status"]["current"]["uid"],
            detail[key].partition("/")[0],
        )
        for item in endpoints
        for detail in item["status"]["current"]["ips"]
        for key in ("ipv4", "ipv6")
        if detail.get(key)
    }
    spared = set(kept)
    found += [f"a pool holds {use}, the pod does not" for use in _beyond(records, wanted, spared)]
    found += [f"no pool holds {use}" for use in sorted(wanted - records)]
    found += [f"a SpiderEndpoint says {use}, the pod does not" for use in _beyond(said, wanted, spared)]
    found += [f"the SpiderEndpoint lacks {use}" for use in sorted(wanted - said)]
    carried = Counter(address for pod in pods.values() for ips in pod.addresses.values() for address in ips)
    if not holders:  # pods of one holder share its addresses while a virtual machine moves
        found += [f"{address} is carried twice" for address, times in sorted(carried.items()) if times > 1]
    return found


def _beyond(seen: set[Use], wanted: set[Use], kept: set[str]) -> list[Use]:
    return sorted(use for use in seen - wanted if use.pod not in kept)
