"""Access lines: what stands in them, which exchanges have one, and where they go (docs/access-log.md)."""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmpipe import log, trace_context
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.config import ACCESS_LOG_OFF
from llmpipe.errors import UsageError

if TYPE_CHECKING:
    from llmpipe.config import ProcessSettings
    from llmpipe.fleet import Fleet
    from llmpipe.record_kinds import ExchangeEnded

OK = OUTCOMES.index("ok")
BAD_REQUEST = OUTCOMES.index("bad_request")

_METHOD = re.compile(rb"[A-Z][A-Z_-]*")


def milliseconds(seconds: float | None) -> float | None:
    """To the microsecond; None of None."""
    return None if seconds is None else round(seconds * 1000, 3)


def request_line(record: ExchangeEnded) -> tuple[str, str]:
    """Method and target of the request, both empty where it had none. Secrets are in the target still."""
    if record.outcome == BAD_REQUEST and not _METHOD.fullmatch(record.method):
        return "", ""  # not a request line: it may be anything, the middle of a body for one
    return record.method.decode("latin-1"), record.target.decode("latin-1")


def connect_time(record: ExchangeEnded) -> float | None:
    """Seconds from the request's head to the connection of the backend that was used last, without the wait in the queue."""
    return None if record.connected is None else max(0.0, record.connected - (record.head or 0.0) - record.queued)


def is_kept(request_id: bytes, rate: float) -> bool:
    """Whether an exchange is in a sample: the same for every proxy that sees the request, since all of them have its id.

    Args:
        request_id: of the exchange.
        rate: the size of the sample, from 0 for none to 1 for all.
    """
    return zlib.crc32(request_id) < rate * (1 << 32)


def is_always_kept(record: ExchangeEnded) -> bool:
    """Whether an exchange has a line whatever the sample is: its client left, it failed, its answer was a 5xx, or an attempt failed."""
    return record.outcome != OK or record.status >= 500 or bool(record.reason)


def fields(record: ExchangeEnded, fleet: Fleet, shown: Callable[[str], str]) -> dict[str, object]:
    """The fields of a line, in its order.

    Args:
        record: of the exchange.
        fleet: knows the servers that it names.
        shown: makes a target fit to be seen.
    """
    method, target = request_line(record)
    parent = trace_context.parse(record.traceparent)
    failed = tuple(f"{fleet.name(attempt.backend)}:{REASONS[attempt.reason]}" for attempt in record.failed)
    return {
        "client": record.client.decode("latin-1"),
        "method": method,
        "path": shown(target),
        "status": record.status or None,
        "outcome": OUTCOMES[record.outcome],
        "phase": PHASES[record.phase],
        "backend": None if record.backend is None else fleet.name(record.backend),
        "ttft_ms": milliseconds(record.ttft),
        "duration_ms": milliseconds(record.duration),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "attempts": record.attempts,
        "reason": REASONS[record.reason] or None,
        "request_id": record.request_id.decode("latin-1"),
        "close_ms": milliseconds(record.close_time),
        "pool": record.pool.decode(errors="replace") or None,
        "model": record.model.decode(errors="replace") or None,
        "queued_ms": milliseconds(record.queued),
        "connect_ms": milliseconds(connect_time(record)),
        "answered_ms": milliseconds(record.answered),
        "tokens_prompt": record.prompt_tokens,
        "tokens_completion": record.completion_tokens,
        "tokens_cached": record.cached_tokens,
        "events": record.events,
        "failed": failed or None,
        "trace_id": None if parent is None else parent.trace_id,
        "parent_id": None if parent is None else parent.parent_id,
    }


class AccessLog:
    """Writes access lines, to a file of their own or where all lines go; `close` writes what is left."""

    def __init__(self, process: ProcessSettings) -> None:
        """Opens the file, if there is to be one.

        Raises:
            UsageError: it cannot be opened.
        """
        self._enabled = process.access_lines
        self._rate = process.access_sample
        self._shown = log.mask_user if process.log_query else log.mask_secrets
        self._file: log.LineFile | None = None
        path = process.access_log
        if path not in ("", ACCESS_LOG_OFF):
            try:
                self._file = log.LineFile(path, process.log_format)
            except (OSError, ValueError) as error:  # a name with a NUL in it
                reason = getattr(error, "strerror", None) or error
                raise UsageError(f"--access-log {path} cannot be opened ({reason})") from None

    def write(self, record: ExchangeEnded, fleet: Fleet) -> None:
        """Writes the line of an exchange, where it is to have one.

        Args:
            record: of the exchange.
            fleet: knows the servers that it names.
        """
        if not self._enabled or not (is_always_kept(record) or is_kept(record.request_id, self._rate)):
            return
        at = time.time() - record.age
        line = fields(record, fleet, self._shown)
        if self._file is None:
            log.event(logging.INFO, "access", line, at=at)
        else:
            self._file.write("access", line, at)

    def reopen(self) -> None:
        """Has the file opened anew, if there is one; returns at once."""
        if self._file is not None:
            self._file.reopen()

    @property
    def dropped(self) -> int:
        """Lines that were lost on the way to the file."""
        return 0 if self._file is None else self._file.dropped

    def close(self) -> None:
        """Writes what is queued, as long as the file takes it."""
        if self._file is not None:
            self._file.close()
            if self._file.dropped:
                log.warning("access lines dropped", lines=self._file.dropped)
