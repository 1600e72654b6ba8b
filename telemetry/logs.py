"""Logs: one JSON object per line on stderr, with the ids of the trace that the code ran in.

Standard `logging` with a formatter: libraries log through it anyway. Fields are given by ``extra={"pool": name}``. A
record costs one write to stderr; if whoever reads stderr stops reading, so does the program, as with every program.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO, override

import msgspec
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "dpanic": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
"""The names that SPIDERPOOL_LOG_LEVEL may have, all of the original's; above error we have one level only."""

_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest came by `extra`."""

_OURS = frozenset({"ts", "level", "logger", "msg", "trace_id", "span_id", "error", "stack"})

_encoder = msgspec.json.Encoder(enc_hook=str)


class JsonFormatter(logging.Formatter):
    """Turns a record into one line of JSON.

    Fields: `ts` (ISO 8601, UTC, milliseconds), `level`, `logger`, `msg`, then `trace_id` and `span_id` if there is a
    current span, the record's extra fields, and `error` and `stack` for an exception. An extra field that has the name
    of one of these gets an underscore behind it. A value that JSON does not know is written as its `str`.
    """

    @override
    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "ts": stamp.replace("+00:00", "Z"),
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        context = get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = format_trace_id(context.trace_id)
            line["span_id"] = format_span_id(context.span_id)
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[f"{key}_" if key in _OURS else key] = value
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = f"{type(error).__name__}: {error}"
            line["stack"] = self.formatException(record.exc_info)
        return _encode(line)


def setup(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Log JSON lines to `stream` (stderr) from `level` on, in place of whatever was set up before.

    Raises ValueError, with the names there are, for a level that is not in `LEVELS`.
    """
    wanted = LEVELS.get(level.lower())
    if wanted is None:
        message = f"log level {level!r} is none of {', '.join(LEVELS)}"
        raise ValueError(message)
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(wanted)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(wanted, logging.INFO))
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False


_CHATTY = ("asyncio", "urllib3", "pyroute2", "kubernetes_asyncio")
"""Libraries whose debug output describes themselves."""


def _encode(line: dict[str, Any]) -> str:
    try:
        return _encoder.encode(line).decode()
    except Exception:  # noqa: BLE001 - a field that cannot be encoded must not cost the line, nor the caller
        return _encoder.encode({key: _text(value) for key, value in line.items()}).decode()


def _text(value: object) -> str:
    try:
        return str(value).encode(errors="replace").decode()
    except Exception as error:  # noqa: BLE001 - somebody's __str__
        return f"<{type(value).__name__}: {type(error).__name__} in __str__>"
