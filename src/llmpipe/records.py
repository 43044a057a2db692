"""Event records of the engine, turned into log lines: access lines, disconnects, backends that went and came back, pauses."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from typing import TYPE_CHECKING

from llmpipe import disconnect, log
from llmpipe._pipe import (
    EVENT_ACCEPT_ENDED,
    EVENT_ACCEPT_PAUSED,
    EVENT_ACCEPT_RESUMED,
    EVENT_BACKEND_DOWN,
    EVENT_BACKEND_UP,
    EVENT_EXCHANGE,
    OUTCOMES,
    PHASES,
    REASONS,
)

if TYPE_CHECKING:
    from llmpipe._pipe import EventRecord
    from llmpipe.config import Backend

CLIENT_ABORT = OUTCOMES.index("client_abort")
BAD_REQUEST = OUTCOMES.index("bad_request")

_METHOD = re.compile(rb"[A-Z][A-Z_-]*")


def _milliseconds(seconds: float) -> float | None:
    return round(seconds * 1000, 3) if seconds >= 0 else None


class RecordLog:
    """Writes what the engines report."""

    def __init__(self, backends: tuple[Backend, ...], *, log_query: bool = False) -> None:
        """Args:
        backends: in the order of their slots.
        log_query: whether access lines show queries as they came.
        """
        self._shown = log.mask_user if log_query else log.mask_secrets
        self._urls = [backend.url for backend in backends]
        self._out: set[str] = set()

    def write(self, record: EventRecord) -> None:
        """Writes one record."""
        kind = record[0]
        if kind == EVENT_EXCHANGE:
            self._exchange(record)
        elif kind == EVENT_BACKEND_DOWN:
            self._backend_down(record)
        elif kind == EVENT_BACKEND_UP:
            self._backend_up(record)
        elif kind == EVENT_ACCEPT_PAUSED:
            self._accept_paused(record)
        elif kind == EVENT_ACCEPT_RESUMED:
            log.info("accept resumed", clients=record[12])
        elif kind == EVENT_ACCEPT_ENDED:
            error = os.strerror(record[16])
            log.error("accept ended", error=error, hint="another process has shut the listening socket down; restart")

    def _exchange(self, record: EventRecord) -> None:
        (_, age, slot, client, method, target, request_id, status, outcome, phase, ttft, duration, bytes_up, bytes_down,
         attempts, close_time, _, reason) = record  # fmt: skip
        backend = self._urls[slot] if slot >= 0 else None
        if outcome == CLIENT_ABORT:
            disconnect.signal(
                request_id=request_id.decode("latin-1"),
                backend=backend,
                phase=PHASES[phase],
                close_ms=_milliseconds(close_time),
                client=client.decode("latin-1"),
            )
        if not log.enabled(logging.INFO):
            return
        if outcome == BAD_REQUEST and not _METHOD.fullmatch(method):
            method = target = b""  # not a request line: it may be anything, the middle of a body for one
        fields = {
            "client": client.decode("latin-1"),
            "method": method.decode("latin-1"),
            "path": self._shown(target.decode("latin-1")),
            "status": status or None,
            "outcome": OUTCOMES[outcome],
            "phase": PHASES[phase],
            "backend": backend,
            "ttft_ms": _milliseconds(ttft),
            "duration_ms": _milliseconds(duration),
            "bytes_up": bytes_up,
            "bytes_down": bytes_down,
            "attempts": attempts,
            "reason": REASONS[reason] or None,
            "request_id": request_id.decode("latin-1"),
            "close_ms": _milliseconds(close_time),
        }
        log.event(logging.INFO, "access", fields, at=time.time() - age)

    @staticmethod
    def _accept_paused(record: EventRecord) -> None:
        clients, error = record[12], record[16]
        reason = {0: "clients", errno.EAGAIN: "mailbox"}.get(error, "error")
        if error in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
            reason = "descriptors"
        log.warning("accept paused", reason=reason, clients=clients, error=os.strerror(error) if error else None)

    def _backend_down(self, record: EventRecord) -> None:
        # It is left out again each time that a try fails; one line says that it went.
        url = self._urls[record[2]]
        level = logging.DEBUG if url in self._out else logging.WARNING
        self._out.add(url)
        fields = {"backend": url, "seconds": record[11], "reason": REASONS[record[17]], "errno": record[16] or None}
        log.event(level, "backend left out", fields, at=time.time() - record[1])

    def _backend_up(self, record: EventRecord) -> None:
        url = self._urls[record[2]]
        level = logging.INFO if url in self._out else logging.DEBUG
        self._out.discard(url)
        log.event(level, "backend back", {"backend": url}, at=time.time() - record[1])
