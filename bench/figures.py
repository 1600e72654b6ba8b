"""Figures beside their goals, and where they are read: processes' CPU seconds, the API server's and etcd's counters."""

import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

from tests.servers import ControlPlane

_TICKS = os.sysconf("SC_CLK_TCK")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE", "APPLY"})


def title(text: str) -> None:
    """The heading of one measurement, with what its figures depend on."""
    load = os.getloadavg()[0]
    print(f"\n{text}   [{os.cpu_count()} cores, load {load:.1f}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC]", flush=True)


def row(what: str, figure: str, goal: str = "") -> None:
    """One figure, and the goal where there is one."""
    beside = f"   goal {goal}" if goal else ""
    print(f"  {what:<52} {figure:>16}{beside}", flush=True)


def latencies(what: str, seconds: Sequence[float], *, p99: str = "") -> None:
    """Percentiles in seconds; `p99` is a goal."""
    ordered = sorted(seconds)
    row(f"{what}, p50", f"{statistics.median(ordered):.3f} s")
    row(f"{what}, p99", f"{quantile(ordered, 0.99):.3f} s", p99)
    row(f"{what}, longest", f"{ordered[-1]:.3f} s")


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values that are sorted."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def cpu_seconds(pid: int) -> float:
    """That a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """The samples of one metric in Prometheus' text: labels and value."""
    for line in text.splitlines():
        if not line.startswith(name) or line[len(name) : len(name) + 1] not in {"{", " "}:
            continue
        head, _, value = line.rpartition(" ")
        yield dict(_LABEL.findall(head)), float(value)


class ApiRequests:
    """What the API server counts: requests by (resource, verb, code), in the groups that matter here."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._before = self._read()

    def _read(self) -> Counter[tuple[str, str, str]]:
        text = self._control_plane.request("GET", "/metrics").body
        found: Counter[tuple[str, str, str]] = Counter()
        for labels, value in samples(text, "apiserver_request_total"):
            resource = labels.get("resource", "")
            if labels.get("subresource"):
                resource += f"/{labels['subresource']}"
            found[resource, labels.get("verb", ""), labels.get("code", "")] += int(value)
        return found

    def since(self) -> Counter[tuple[str, str, str]]:
        """Those since this object was made, watches left out."""
        spent = self._read() - self._before
        return Counter({key: count for key, count in spent.items() if key[1] != "WATCH" and key[0]})


def writes(requests: Mapping[tuple[str, str, str], int], resources: str = "spider") -> int:
    """How many writes succeeded."""
    return sum(
        count
        for (resource, verb, code), count in requests.items()
        if resource.startswith(resources) and verb in _WRITES and code.startswith("2")
    )


def conflicts(requests: Mapping[tuple[str, str, str], int]) -> int:
    """How many pool writes were refused, because somebody else had written."""
    return sum(count for (res, _, code), count in requests.items() if res.startswith("spiderippools") and code == "409")


def list_requests(requests: Mapping[tuple[str, str, str], int], *, least: int = 5) -> None:
    """One line that says what there was."""
    shown = sorted(requests.items(), key=lambda item: -item[1])
    print("  requests: " + ", ".join(f"{verb} {res} {code}: {n}" for (res, verb, code), n in shown if n >= least))


def etcd_bytes(control_plane: ControlPlane) -> int:
    """Bytes that etcd has written to its log, which is where every write goes first."""
    port = control_plane.etcd_port
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(sum(value for _, value in samples(text, "etcd_disk_wal_write_bytes_total")))


def total(seconds: Iterable[float]) -> str:
    """A sum of CPU seconds."""
    return f"{sum(seconds):.2f}"
