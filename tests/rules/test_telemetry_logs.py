"""Logs: one line of JSON each, whatever is put into it."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from telemetry import logs, traces

logger = logging.getLogger("spiderpool.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    out = io.StringIO()
    logs.setup("info", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises
    logging.captureWarnings(capture=False)


def only(stream: io.StringIO) -> dict[str, Any]:
    [line] = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line(stream: io.StringIO) -> None:
    logger.info("pool %s is full", "v4", extra={"pool": "v4", "free": 0, "path": Path("/x")})
    line = only(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "logger": "spiderpool.test",
        "msg": "pool v4 is full",
        "pool": "v4",
        "free": 0,
        "path": "/x",
    }


def test_the_ids_of_the_current_span(stream: io.StringIO) -> None:
    with traces.recording() as recorder, traces.span("x"):
        logger.info("hello")
    line = only(stream)
    assert (line["trace_id"], line["span_id"]) == (recorder.span("x").trace_id, recorder.span("x").span_id)


def test_an_exception_and_fields_that_collide(stream: io.StringIO) -> None:
    try:
        int("a\nb")
    except ValueError:
        logger.exception("failed", extra={"error": "mine", "level": 3})
    line = only(stream)
    assert line["level"] == "error"
    assert line["error"] == "ValueError: invalid literal for int() with base 10: 'a\\nb'"
    assert (line["error_"], line["level_"]) == ("mine", 3)
    assert line["stack"].startswith("Traceback")


def test_structs_are_objects_and_what_cannot_be_encoded_is_text(stream: io.StringIO) -> None:
    class Verdict(msgspec.Struct):
        pool: str

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    logger.info("x", extra={"verdict": Verdict("p"), "half": "\ud800", "broken": Broken()})
    line = only(stream)
    assert line["verdict"] in ({"pool": "p"}, "Verdict(pool='p')", str(Verdict("p")))
    assert line["half"] == "?"
    assert "RuntimeError" in line["broken"]


def test_a_record_that_does_not_format_costs_nobody_a_traceback(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.info("%d", "x")
    assert capsys.readouterr().err == ""
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("level", "lines"), [("debug", 5), ("info", 4), ("warn", 3), ("error", 2), ("panic", 1)])
def test_levels(stream: io.StringIO, level: str, lines: int) -> None:
    logs.setup(level, stream=stream)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(number, "x")
    found = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert found == ["debug", "info", "warn", "error", "fatal"][-lines:]


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="log level 'loud' is none of debug, info, warn"):
        logs.setup("loud")
