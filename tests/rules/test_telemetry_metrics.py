"""Metrics: documented names as documented, an exposition that parses, and a page that says what the table says."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry import docs, metrics
from telemetry.metrics import Kind, Metric, Program

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

DOCUMENTED = [
    "ipam_allocation_counts",
    "ipam_allocation_failure_counts",
    "ipam_allocation_update_ippool_conflict_counts",
    "ipam_allocation_err_internal_counts",
    "ipam_allocation_err_no_available_pool_counts",
    "ipam_allocation_err_retries_exhausted_counts",
    "ipam_allocation_err_ip_used_out_counts",
    "ipam_release_counts",
    "ipam_release_failure_counts",
    "ipam_release_update_ippool_conflict_counts",
    "ipam_release_err_internal_counts",
    "ipam_release_err_retries_exhausted_counts",
    "total_ippool_counts",
    "total_subnet_counts",
    "debug_subnet_ippool_counts",
    "debug_subnet_total_ip_counts",
    "debug_subnet_available_ip_counts",
    "debug_ippool_total_ip_counts",
    "debug_ippool_available_ip_counts",
    "ip_gc_counts",
    "ip_gc_failure_counts",
    *(
        f"ipam_{verb}_{word}{limit}duration_seconds"
        for verb in ("allocation", "release")
        for word in ("average_", "max_", "min_", "latest_", "")
        for limit in ("", "limit_")
    ),
]


def value(name: str, program: Program = Program.BOTH) -> float:
    [found] = re.findall(rf"^{re.escape(name)} (\S+)$", metrics.render(program).decode(), re.MULTILINE)
    return float(found)


def test_the_documented_names_are_exported_exactly() -> None:
    documented = {row.name for row in metrics.TABLE if row.documented}
    assert documented == {f"spiderpool_{name}" for name in DOCUMENTED}
    metrics.IPAM_ALLOCATION_COUNTS.inc(0)
    lines = metrics.render().decode().splitlines()
    assert "# TYPE spiderpool_ipam_allocation_counts counter" in lines
    assert not [line for line in lines if "counts_total" in line or "_created" in line]


def test_our_names_follow_the_conventions() -> None:
    for row in metrics.TABLE:
        assert row.name.startswith("spiderpool_")
        assert not row.help.endswith(".")
        assert (row.kind is Kind.HISTOGRAM) == bool(row.buckets)
        assert list(row.buckets) == sorted(set(row.buckets))
        if not row.documented:
            assert (row.kind is Kind.COUNTER) == row.name.endswith("_total")
    assert len({row.name for row in metrics.TABLE}) == len(metrics.TABLE)


def test_the_bounds_hold_those_of_the_original() -> None:
    assert set(metrics.ADD_SECONDS) >= {0.1, 0.3, 0.5, 1, 3, 5, 7, 10, 15}


def test_the_exposition_parses_and_escapes() -> None:
    strange = 'a"b\\c\nd{},='
    metrics.STORE_REQUESTS.labels("get", strange, "200").inc()
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    samples = families["spiderpool_store_requests"].samples
    assert [sample.value for sample in samples if sample.labels["resource"] == strange] == [1.0]
    metrics.STORE_REQUESTS.remove("get", strange, "200")
    assert "process_resident_memory_bytes" in families
    assert families["spiderpool_pool_commit_seconds"].type == "histogram"


def test_a_program_exports_what_is_its_own() -> None:
    agent, controller = metrics.render(Program.AGENT), metrics.render(Program.CONTROLLER)
    assert b"spiderpool_sandboxes" in agent
    assert b"spiderpool_sandboxes" not in controller
    assert b"spiderpool_pool_commits" in controller
    assert b"spiderpool_pool_commits" not in agent
    assert b"spiderpool_rpc_connections" in agent
    assert b"spiderpool_rpc_connections" in controller


def test_a_family_of_durations() -> None:
    family = metrics.Durations("spiderpool_test", "duration_seconds", "time of a test", program=Program.BOTH)
    try:
        for seconds in (0.3, 0.1, 0.2):
            family.observe(seconds)
        assert value("spiderpool_test_average_duration_seconds") == pytest.approx(0.2)
        assert value("spiderpool_test_max_duration_seconds") == 0.3
        assert value("spiderpool_test_min_duration_seconds") == 0.1
        assert value("spiderpool_test_latest_duration_seconds") == 0.2
        assert value("spiderpool_test_duration_seconds_count") == 3
    finally:
        for row in [row for row in metrics.TABLE if row.name.startswith("spiderpool_test")]:
            metrics.TABLE.remove(row)
            metrics.REGISTRY.unregister(metrics.REGISTRY._names_to_collectors[row.name])


def test_readers_run_before_a_scrape_until_they_are_removed() -> None:
    depth = metrics.MAILBOX_DEPTH.labels("test")
    remove = metrics.on_scrape(lambda: depth.set(7))
    metrics.refresh()
    assert 'spiderpool_mailbox_depth{actor="test"} 7.0' in metrics.render().decode()
    remove()
    remove()
    depth.set(0)
    metrics.refresh()
    assert 'spiderpool_mailbox_depth{actor="test"} 0.0' in metrics.render().decode()
    metrics.MAILBOX_DEPTH.remove("test")


async def test_a_scrape_in_a_thread_meets_changes_in_the_loop() -> None:
    scrape = asyncio.create_task(asyncio.to_thread(metrics.render))
    number = 0
    while not scrape.done():
        number += 1
        metrics.RPC_CONNECTION_FAILURES.labels(str(number)).inc()
        await asyncio.sleep(0)
    assert await scrape
    metrics.RPC_CONNECTION_FAILURES.clear()


def test_the_page_is_what_the_table_says() -> None:
    assert docs.main(["--check", "--output", str(PAGE)]) == 0


def test_the_page_names_every_metric() -> None:
    page = docs.markdown()
    assert [row.name for row in metrics.TABLE if f"| `{row.name}` |" not in page] == []


def test_a_page_that_drifted_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "docs" / "metrics.md"
    assert docs.main(["--output", str(page)]) == 0
    assert docs.main(["--check", "--output", str(page)]) == 0
    page.write_text(docs.markdown([Metric(name="x", kind=Kind.GAUGE, help="y", program=Program.BOTH)]))
    assert docs.main(["--check", "--output", str(page)]) == 1
    assert "make generate" in capsys.readouterr().err


def test_every_metric_is_set_by_some_room() -> None:
    """A metric in the table that nobody sets would be a promise in the documentation that nothing keeps."""
    rooms = ("actors", "cni", "runtime", "ctl")
    checkout = Path(__file__).resolve().parents[2]
    used = "\n".join(path.read_text() for room in rooms for path in (checkout / room).rglob("*.py"))
    table = (checkout / "telemetry" / "metrics.py").read_text()
    declared = re.findall(r"^([A-Z_]+) = (?:counter|gauge|histogram|Durations)\(", table, re.MULTILINE)
    assert len(declared) > 40
    assert [name for name in declared if f"metrics.{name}" not in used] == []
