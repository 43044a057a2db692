"""Log lines on stderr, as text or JSON, that never make the proxy wait.

Lines are formatted and written by a thread of their own behind a bounded queue. When it is full, lines are dropped and
counted. No credential reaches a line: of a request's fields only X-Request-ID is logged, and query parameters that carry keys are masked.
"""

import json
import logging
import queue
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO
from urllib.parse import unquote_plus

QUEUE_LINES = 10_000

# Where no path follows what should be a host, the record may have been cut before the @.
_USER = re.compile(r"(?i)^([a-z][a-z0-9+.-]*://|(?!/))(?:[^/]*@|[^/?]{64,}$)")
_PARAMETER = re.compile(r"(?:^|[;?])([^=;?]*)=")
_SECRET = re.compile(
    r"(?i)(?:.*[^a-z0-9])?(?:(?:api|access|auth|secret|private)?key|(?:access|api|auth|bearer|id|refresh)?token|(?:client)?secret"
    r"|pass(?:word|wd|phrase)?|pwd|sig(?:nature)?|auth(?:orization)?|bearer|jwt|cookie|session(?:id)?|credentials?)(?:\[\])?"
)
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+\[\]()?&~!*$;-]+")

_logger = logging.getLogger("llmpipe")
_libraries = [logging.getLogger(name) for name in ("asyncio", "uvicorn")]


def mask_secrets(target: str) -> str:
    """A request target or a URL without its credentials, which become `***`: a user before the host, and the values of query
    parameters that carry keys, whatever the case or encoding of their names: `key`, `api_key`, `X-Api-Key`, `access_token`,
    `client_secret`, `password`, `signature` and their like."""
    path, mark, query = _USER.sub(r"\1***@", target).partition("?")
    return path + mark + "&".join(map(_mask_parameter, query.split("&")))


def _mask_parameter(text: str) -> str:
    # A semicolon, or another question mark, may begin a parameter or belong to a value: what is behind a key goes with it.
    for name in _PARAMETER.finditer(text):
        if _SECRET.fullmatch(unquote_plus(name[1])):
            return text[: name.end()] + "***"
    return text


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def _event(record: logging.LogRecord) -> str:
    return " ".join(record.getMessage().split())  # those of libraries may have line ends in them


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": _event(record),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """`time level event name=value ...`; a value with anything unusual in it is quoted as JSON would."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), f"{record.levelname.lower():<7}", _event(record)]
        parts += [f"{name}={self._value(value)}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    @staticmethod
    def _value(value: object) -> str:
        text = "-" if value is None or value == "" else str(value)
        return text if _PLAIN.fullmatch(text) else json.dumps(text)


class DroppingQueueHandler(QueueHandler):
    """Puts records into the queue unformatted; counts those that found it full."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # formatting is the other thread's work

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class PatientQueueListener(QueueListener):
    """Ends even if the queue is full at that moment: the end waits for its place behind the last line."""

    def __init__(self, lines: "queue.Queue[Any]", handler: logging.Handler) -> None:
        super().__init__(lines, handler)
        self._lines = lines

    def enqueue_sentinel(self) -> None:
        self._lines.put(None)


class Log:
    """The log of this process; `close` writes what is left."""

    def __init__(self, style: str, level: str, stream: TextIO | None = None) -> None:
        """Args:
        style: "text" or "json".
        level: the least important level that is written: "debug", "info", "warning" or "error".
        stream: where lines go; stderr by default.
        """
        lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LINES)
        self._out = logging.StreamHandler(stream or sys.stderr)
        self._out.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
        self._handler = DroppingQueueHandler(lines)
        self._listener = PatientQueueListener(lines, self._out)
        for logger in (_logger, *_libraries):
            logger.handlers = [self._handler]
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        _logger.setLevel(level.upper())
        self._listener.start()

    @property
    def dropped(self) -> int:
        """Lines that were lost because the queue was full."""
        return self._handler.dropped

    def close(self) -> None:
        """Writes what is queued and stops the thread. Idempotent."""
        if self._handler in _logger.handlers:
            for logger in (_logger, *_libraries):
                logger.handlers = []
            self._listener.stop()


def enabled(level: int) -> bool:
    """Whether lines of this level are written at all."""
    return _logger.isEnabledFor(level)


def event(level: int, name: str, fields: Mapping[str, object], at: float | None = None) -> None:
    """Logs an event.

    Args:
        level: of the standard library's logging.
        name: what happened, in a word or three.
        fields: what belongs to it.
        at: when it happened, in seconds of time.time(); now by default.
    """
    if not _logger.isEnabledFor(level):
        return
    record = _logger.makeRecord(_logger.name, level, "", 0, name, (), None, extra={"fields": fields})
    if at is not None:
        record.created = at
    _logger.handle(record)


def debug(name: str, **fields: object) -> None:
    event(logging.DEBUG, name, fields)


def info(name: str, **fields: object) -> None:
    event(logging.INFO, name, fields)


def warning(name: str, **fields: object) -> None:
    event(logging.WARNING, name, fields)


def error(name: str, **fields: object) -> None:
    event(logging.ERROR, name, fields)
