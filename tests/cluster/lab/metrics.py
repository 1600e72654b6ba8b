"""Counting what the API server was asked to do, from its own metrics."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one metric in Prometheus' text format."""
    found = []
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is not None and match[1] == name:
            found.append((dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def requests(text: str, *, group: str | None = None) -> Counter[tuple[str, str]]:
    """Requests by (verb, resource) so far; `group` counts those of one API group only."""
    counted: Counter[tuple[str, str]] = Counter()
    for labels, value in samples(text, "apiserver_request_total"):
        if group is None or labels.get("group") == group:
            resource, subresource = labels.get("resource", ""), labels.get("subresource", "")
            counted[labels.get("verb", ""), f"{resource}/{subresource}" if subresource else resource] += int(value)
    return counted


def writes(text: str, *, group: str | None = None) -> Counter[tuple[str, str]]:
    """`requests` that change something."""
    return Counter({key: count for key, count in requests(text, group=group).items() if key[0] in WRITES})
