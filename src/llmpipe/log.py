"""Log lines on stderr or in a file, as text or JSON, that never make the proxy wait.

Lines are formatted and written by a thread of their own behind a bounded queue. When it is full, lines are dropped and
counted, as are those that stderr or the file does not take. No credential reaches a line: of a request's fields only X-Request-ID
and the ids in traceparent are logged, and of a query the values of a few parameters that are known to carry none.
"""

import contextlib
import json
import logging
import os
import queue
import re
import select
import stat
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from logging.handlers import QueueHandler

QUEUE_LINES = 10_000

CLOSE_SILENCE = 2.0
"""Seconds without a byte taken after which the end of the log gives up ..."""

CLOSE_LIMIT = 10.0
"""... and seconds that it may take in all: a reader may be slow."""

LOOK_INTERVAL = 0.1
"""Seconds between two looks, while stderr takes nothing, whether the log is to end."""

SHOWN_PARAMETERS = frozenset(
    (
        "after", "alt", "api-version", "api_version", "before", "beta", "echo", "format", "include_usage", "limit", "logprobs",
        "max_tokens", "model", "n", "offset", "order", "page", "page_size", "per_page", "pretty", "purpose", "seed", "sort",
        "status", "stream", "temperature", "timeout", "top_k", "top_p", "verbose", "version",
    )
)  # fmt: skip
"""Names of query parameters whose values are logged."""

# Where no path follows what should be a host, the record may have been cut before the @.
_USER = re.compile(r"(?i)^([a-z][a-z0-9+.-]*://|(?!/))(?:[^/]*@|[^/?]{64,}$)")
# A user in a URL inside of the path, written plainly or in any number of percent-encodings.
_INNER_USER = re.compile(r"(?i)[^/]*(?::|%(?:25)*3a)[^/]*(?:@|%(?:25)*40)")
# What begins parameters for one reader or another: ; ? # & and =, in any number of percent-encodings.
_MARK = re.compile(r"(?i)[;?#&=]|%(?:25)*(?:3b|3f|23|26|3d)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9_.:,/+-]{0,64}")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+\[\]()?&~!*$;#-]+")

_logger = logging.getLogger("llmpipe")
_libraries = [logging.getLogger(name) for name in ("asyncio", "opentelemetry", "uvicorn")]


def mask_user(target: str) -> str:
    """A request target or a URL without a user before its host."""
    return _USER.sub(r"\1***@", target)


def mask_secrets(target: str) -> str:
    """A request target or a URL without what may be a credential, which becomes `***`.

    That is a user before a host, everything in the path from the first sign that some reader takes for the beginning of
    parameters, and all values of the query but those of SHOWN_PARAMETERS. A list of the names that carry keys would never be
    whole: every provider has names of its own, and encodings and brackets write each in a dozen ways.
    """
    path, mark, query = mask_user(target).partition("?")
    head, separator, rest = path.partition("://")
    head, path = (head + separator, rest) if separator and "/" not in head else ("", path)
    path = _INNER_USER.sub("***@", path)
    if cut := _MARK.search(path):
        path = path[: cut.end()] + "***"
    return head + path + mark + "&".join(map(_mask_parameter, query.split("&")))


def _mask_parameter(text: str) -> str:
    name, mark, value = text.partition("=")
    if not text or (name in SHOWN_PARAMETERS and _VALUE.fullmatch(value)):
        return text
    if not mark or not _NAME.fullmatch(name):  # it may be the secret itself
        return "***"
    return f"{name}=***" if value else text


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
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        text = "-" if value is None or value == "" else text
        return text if _PLAIN.fullmatch(text) else json.dumps(text)


class DroppingQueueHandler(QueueHandler):
    """Puts records into the queue unformatted; counts those that found it full."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # formatting is the other thread's work

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def open_to_append(path: str) -> int:
    """A descriptor of the file, which is made where it is missing (mode 0640).

    Links are followed: /dev/stdout is one, and so is a log that an operator keeps on another disk. Nothing waits here: a FIFO that
    nobody reads is an error.

    Raises:
        OSError: it cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(path, flags, 0o640)


class Writer:
    """Takes records out of the queue, in a thread of its own, and writes them to a descriptor.

    It writes past Python's own stream: that one may not be interrupted, and a thread that waits in it holds a lock which
    Python asks for at its end. The descriptor stays as it is, for other processes may have it too; so a write may wait all
    the same, and the end of the process does not wait for it.
    """

    def __init__(
        self,
        lines: "queue.Queue[logging.LogRecord | None]",
        formatter: logging.Formatter,
        descriptor: int,
        path: str = "",
    ) -> None:
        """Args:
        lines: the queue.
        formatter: of the lines.
        descriptor: where they go.
        path: of the file that it is, for `reopen`.
        """
        self.lost = 0
        self._lines = lines
        self._formatter = formatter
        self._path = path
        self._use(descriptor)
        self._reopening = threading.Event()
        self._closing = threading.Event()
        self._moved = 0.0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _use(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        # Of a file each line is one write, which no other process that appends to the file can get into. A pipe that has any room
        # has room for PIPE_BUF.
        self._most = None if stat.S_ISREG(os.fstat(descriptor).st_mode) else select.PIPE_BUF
        self._torn = False
        """Whether what was written last is a part of a line."""

    def reopen(self) -> None:
        """Has the file at the path opened before the next line is written: the old one was given another name."""
        self._reopening.set()
        with contextlib.suppress(queue.Full):  # then it is awake
            self._lines.put_nowait(None)

    def _open_anew(self) -> None:
        """In this thread, for a file system may let it wait."""
        self._reopening.clear()  # before it: a rotation that comes meanwhile is another one
        try:
            descriptor = open_to_append(self._path)
        except OSError as error:
            event(
                logging.ERROR,
                "log file not reopened",
                {"path": self._path, "error": error.strerror, "hint": "lines go on to the file of before"},
            )
            return
        before = self._descriptor
        self._use(descriptor)
        os.close(before)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._lines.empty()):
            record = self._lines.get()
            if self._reopening.is_set():
                self._open_anew()
            if record is None:
                continue
            if not self._write(self._format(record)):
                self.lost += 1
            if self._gives_up():
                return  # close() counts the rest

    def _format(self, record: logging.LogRecord) -> bytes:
        try:
            return f"{self._formatter.format(record)}\n".encode(errors="backslashreplace")
        except Exception as error:  # of a library's own line, whose arguments may not fit; the thread must go on
            return f"{record.msg!r} could not be formatted: {error!r}\n".encode(errors="backslashreplace")

    def _gives_up(self) -> bool:
        return self._closing.is_set() and time.monotonic() - self._moved > CLOSE_SILENCE

    def _write(self, line: bytes) -> bool:
        """Whether the whole line was taken."""
        if self._torn:  # the disk was full; what is there of the other line becomes one of its own
            line = b"\n" + line
        while line:
            if not self._room.poll(LOOK_INTERVAL * 1000):
                if self._gives_up():
                    return False
                continue
            try:
                taken = os.write(self._descriptor, line[: self._most])
            except BlockingIOError:  # another process made it so that it does not wait, and was quicker
                time.sleep(LOOK_INTERVAL)
            except OSError:  # nobody reads any more, or the disk is full
                return False
            else:
                self._moved = time.monotonic()
                if taken:
                    self._torn = line[taken - 1] != ord("\n")
                line = line[taken:]
        return True

    def close(self) -> None:
        """Writes what is queued, as long as it is taken; counts what is not."""
        end = time.monotonic() + CLOSE_LIMIT
        self._moved = time.monotonic()
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then it is awake
            self._lines.put_nowait(None)
        while self._thread.is_alive() and not self._gives_up() and time.monotonic() < end:
            self._thread.join(LOOK_INTERVAL)
        self._thread.join(2 * LOOK_INTERVAL)
        with contextlib.suppress(queue.Empty):
            while True:
                self.lost += self._lines.get_nowait() is not None
        self.lost += self._thread.is_alive()  # the line that it waits with
        if self._path and not self._thread.is_alive():
            os.close(self._descriptor)


def _formatter(style: str) -> logging.Formatter:
    return JsonFormatter() if style == "json" else TextFormatter()


class Log:
    """The log of this process; `close` writes what is left."""

    def __init__(self, style: str, level: str, descriptor: int = 2) -> None:
        """Args:
        style: "text" or "json".
        level: the least important level that is written: "debug", "info", "warning" or "error".
        descriptor: where lines go; stderr by default.
        """
        lines: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_LINES)
        self._handler = DroppingQueueHandler(lines)
        self._writer = Writer(lines, _formatter(style), descriptor)
        for logger in (_logger, *_libraries):
            logger.handlers = [self._handler]
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        _logger.setLevel(level.upper())

    @property
    def dropped(self) -> int:
        """Lines that were lost: the queue was full, or stderr did not take them."""
        return self._handler.dropped + self._writer.lost

    def close(self) -> None:
        """Writes what is queued and stops the thread, within CLOSE_LIMIT. Idempotent."""
        if self._handler in _logger.handlers:
            if self.dropped:
                warning("log lines dropped", lines=self.dropped)
            for logger in (_logger, *_libraries):
                logger.handlers = []
            self._writer.close()


class LineFile:
    """A file of lines beside the log, in the same formats, with a queue and a thread of its own."""

    def __init__(self, path: str, style: str) -> None:
        """Args:
        path: where it is; lines are appended.
        style: "text" or "json".

        Raises:
            OSError: it cannot be opened.
        """
        lines: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_LINES)
        self._handler = DroppingQueueHandler(lines)
        self._writer = Writer(lines, _formatter(style), open_to_append(path), path)
        self._closed = False

    def write(self, name: str, fields: Mapping[str, object], at: float) -> None:
        """Queues a line, which is lost where there is no room for it.

        Args:
            name: what happened.
            fields: what belongs to it.
            at: when it happened, in seconds of time.time().
        """
        self._handler.enqueue(_make_record(logging.INFO, name, fields, at))

    def reopen(self) -> None:
        """All lines that are written from now on go to the file that has the path now. Returns at once."""
        self._writer.reopen()

    @property
    def dropped(self) -> int:
        """Lines that were lost: the queue was full, or the file did not take them."""
        return self._handler.dropped + self._writer.lost

    def close(self) -> None:
        """Writes what is queued and stops the thread, within CLOSE_LIMIT. Idempotent."""
        if not self._closed:
            self._closed = True
            self._writer.close()


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
    if _logger.isEnabledFor(level):
        _logger.handle(_make_record(level, name, fields, at))


def _make_record(level: int, name: str, fields: Mapping[str, object], at: float | None) -> logging.LogRecord:
    record = _logger.makeRecord(_logger.name, level, "", 0, name, (), None, extra={"fields": fields})
    if at is not None:
        record.created = at
    return record


def debug(name: str, **fields: object) -> None:
    event(logging.DEBUG, name, fields)


def info(name: str, **fields: object) -> None:
    event(logging.INFO, name, fields)


def warning(name: str, **fields: object) -> None:
    event(logging.WARNING, name, fields)


def error(name: str, **fields: object) -> None:
    event(logging.ERROR, name, fields)
