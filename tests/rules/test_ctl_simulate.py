"""`spiderpoolctl simulate`: flags, formats, exit codes and the progress bar."""

import io
import json
from collections.abc import Callable

import pytest
import yaml

from ctl import simulate as verb
from ctl.main import main
from simulation.audit import Finding

Ctl = Callable[..., tuple[int, str, str]]

SMALL = ("--nodes", "4", "--pods-per-node", "5", "--over", "1s")


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["simulate", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_for_people(ctl: Ctl) -> None:
    code, out, err = ctl(*SMALL, "--dual-stack", "--api-latency", "5ms")
    assert (code, err) == (0, "")
    assert out.startswith(
        "4 nodes x 5 pods in 1 s, 1 pool of 22 addresses (IPv4 and IPv6), 1 controller, API server 5 ms"
    )
    assert "20 of 20 have their addresses" in out
    assert "audit: 0 duplicates, 0 leaks" in out


def test_the_same_for_programs(ctl: Ctl) -> None:
    _, as_json, _ = ctl(*SMALL, "-o", "json")
    _, as_yaml, _ = ctl(*SMALL, "-o", "yaml")
    one, other = json.loads(as_json), yaml.safe_load(as_yaml)
    assert one.pop("real") > 0 and other.pop("real") > 0
    assert one == other
    assert (one["served"], one["findings"], one["plan"]["nodes"]) == (20, [], 4)


def test_what_the_audit_finds_is_shown_and_makes_the_exit_code(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Finding("duplicate", f"10.0.0.{at}", "two pods have it") for at in range(30))
    monkeypatch.setattr("simulation.world.audit", lambda *_: found)
    code, out, _ = ctl(*SMALL)
    assert code == 1
    assert "WRONG: 30 duplicate" in out and out.count("two pods have it") == 20
    code, out, _ = ctl(*SMALL, "-o", "wide")
    assert code == 1 and out.count("two pods have it") == 30


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--nodes", "0"), "--nodes: 0: expected a number, 1 or more"),
        (("--pods-per-node", "-3"), "--pods-per-node: -3: expected"),
        (("--pools", "9999"), "--pools: 9999: expected at most one for each of the 5000 nodes"),
        (("--pool-size", "9000000"), "--pool-size: 9000000: 100 pools of that size do not fit"),
        (("--api-latency", "3"), "--api-latency: '3': expected a time"),
        (("--api-latency", "-3ms"), "--api-latency: '-3ms': expected a time"),
        (("--over", "soon"), "--over: 'soon': expected a time"),
        (("--over", "infs"), "--over: 'infs': expected a time"),
        (("--write-budget", "lots"), "--write-budget: 'lots': expected bytes"),
        (("--churn", "2"), "--churn: 2.0: expected a share"),
        (("--kill-owner-at", "3s"), "--kill-owner-at: 3.0: there has to be another controller"),
    ],
)
def test_flags_that_make_no_sense_are_named_with_their_value(ctl: Ctl, arguments: tuple[str, ...], told: str) -> None:
    flag, value = arguments
    code, out, err = ctl(f"{flag}={value}")
    assert (code, out) == (2, "")
    assert err.startswith(f"spiderpoolctl simulate: {told}")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with verb.Bar(1000, stream) as bar:
            bar.show(500)
    assert "[###############...............] 500 of 1,000 pods" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert file.getvalue() == ""
