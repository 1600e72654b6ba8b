"""Writes docs/metrics.md from the table of metrics: ``python -m telemetry.docs --output docs/metrics.md``.

With ``--check`` it writes nothing and exits 1 when the file is not what it would write.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from telemetry.metrics import TABLE, Kind, Metric, Program

_PROGRAMS = {Program.AGENT: "agent", Program.CONTROLLER: "controller", Program.BOTH: "agent, controller"}

_HEAD = """\
# Metrics

<!-- Written by `python -m telemetry.docs --output docs/metrics.md`; edit telemetry/metrics.py instead. -->

Both programs serve their metrics at `/metrics` on `SPIDERPOOL_METRIC_HTTP_PORT` (agent 5711, controller 5721) when
`SPIDERPOOL_ENABLED_METRIC` is true, in Prometheus' text format. Beside those below there are `process_*`: memory,
processor time, open files and start time of the process.

## Names that Spiderpool's reference documents

Exported exactly as documented, counters without `_total` too.
"""

_OURS = """
## Others
"""


def markdown(table: Iterable[Metric] = TABLE) -> str:
    """The whole page."""
    rows = list(table)
    documented = [row for row in rows if row.documented]
    ours = [row for row in rows if not row.documented]
    return "\n".join([_HEAD, *_table(documented), _OURS, *_table(ours), "", *_buckets(rows)])


def _table(rows: Sequence[Metric]) -> list[str]:
    lines = ["| metric | type | labels | of | what it says |", "|---|---|---|---|---|"]
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {_PROGRAMS[row.program]} | {row.help} |")
    return lines


def _buckets(rows: Sequence[Metric]) -> list[str]:
    groups: dict[tuple[float, ...], list[str]] = {}
    for row in rows:
        if row.kind is Kind.HISTOGRAM:
            groups.setdefault(row.buckets, []).append(row.name)
    lines = ["## Buckets of the histograms", ""]
    for bounds, names in groups.items():
        lines.append(f"* {' '.join(f'{bound:g}' for bound in bounds)}: {', '.join(f'`{name}`' for name in names)}")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m telemetry.docs", description="Write the page of metrics.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file would change")
    options = parser.parse_args(arguments)
    output: Path = options.output
    text = markdown()
    if options.check:
        if output.exists() and output.read_text() == text:
            return 0
        sys.stderr.write(f"{output} is not what telemetry/metrics.py says; run make generate\n")
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
