"""Records of the engines, turned into log lines: access lines, disconnects, backends that went and came back, pauses."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmpipe import log
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.disconnect import Abort
from llmpipe.record_kinds import AcceptEnded, AcceptPaused, AcceptResumed, BackendDown, BackendUp, ExchangeEnded

if TYPE_CHECKING:
    from llmpipe.fleet import Fleet, Server
    from llmpipe.record_kinds import Record

CLIENT_ABORT = OUTCOMES.index("client_abort")
BAD_REQUEST = OUTCOMES.index("bad_request")

_METHOD = re.compile(rb"[A-Z][A-Z_-]*")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def request_line(record: ExchangeEnded) -> tuple[str, str]:
    """Method and target of the request, both empty where it had none. Secrets are in the target still."""
    if record.outcome == BAD_REQUEST and not _METHOD.fullmatch(record.method):
        return "", ""  # not a request line: it may be anything, the middle of a body for one
    return record.method.decode("latin-1"), record.target.decode("latin-1")


class RecordLog:
    """Writes what the engines report.

    Attributes:
        accept_ended: whether another process has shut a listening socket down.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        log_query: bool = False,
        on_abort: Callable[[Abort, Server | None], None] | None = None,
    ) -> None:
        """Args:
        fleet: knows the servers that records name.
        log_query: whether access lines show queries as they came.
        on_abort: called for each client that left, with the backend that worked on its exchange.
        """
        self._on_abort = on_abort
        self._shown = log.mask_user if log_query else log.mask_secrets
        self._fleet = fleet
        self._out: set[str] = set()
        self.accept_ended = False

    def write(self, record: Record) -> None:
        """Writes one record."""
        match record:
            case ExchangeEnded():
                self._exchange(record)
            case BackendDown():
                self._backend_down(record)
            case BackendUp():
                self._backend_up(record)
            case AcceptPaused():
                self._accept_paused(record)
            case AcceptResumed():
                log.info("accept resumed", clients=record.clients)
            case AcceptEnded():
                self.accept_ended = True
                error = os.strerror(record.error)
                log.error(
                    "accept ended", error=error, hint="another process has shut the listening socket down; restart"
                )

    def _exchange(self, record: ExchangeEnded) -> None:
        worked = None if record.backend is None else self._fleet.server(record.backend)
        backend = None if worked is None else worked.name
        client = record.client.decode("latin-1")
        request_id = record.request_id.decode("latin-1")
        phase = PHASES[record.phase]
        close_ms = _milliseconds(record.close_time)
        if record.outcome == CLIENT_ABORT and self._on_abort is not None:
            self._on_abort(Abort(client, phase, backend, close_ms, request_id), worked)
        if not log.enabled(logging.INFO):
            return
        method, target = request_line(record)
        fields = {
            "client": client,
            "method": method,
            "path": self._shown(target),
            "status": record.status or None,
            "outcome": OUTCOMES[record.outcome],
            "phase": phase,
            "backend": backend,
            "ttft_ms": _milliseconds(record.ttft),
            "duration_ms": _milliseconds(record.duration),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "attempts": record.attempts,
            "reason": REASONS[record.reason] or None,
            "request_id": request_id,
            "close_ms": close_ms,
        }
        log.event(logging.INFO, "access", fields, at=time.time() - record.age)

    @staticmethod
    def _accept_paused(record: AcceptPaused) -> None:
        error = record.error
        reason = {0: "clients", errno.EAGAIN: "mailbox"}.get(error, "error")
        if error in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
            reason = "descriptors"
        log.warning("accept paused", reason=reason, clients=record.clients, error=os.strerror(error) if error else None)

    def _backend_down(self, record: BackendDown) -> None:
        # It is left out again each time that a try fails; one line says that it went.
        name = self._fleet.name(record.backend)
        level = logging.DEBUG if name in self._out else logging.WARNING
        self._out.add(name)
        fields = {
            "backend": name,
            "seconds": record.seconds,
            "reason": REASONS[record.reason],
            "errno": record.error or None,
        }
        log.event(level, "backend left out", fields, at=time.time() - record.age)

    def _backend_up(self, record: BackendUp) -> None:
        name = self._fleet.name(record.backend)
        level = logging.INFO if name in self._out else logging.DEBUG
        self._out.discard(name)
        log.event(level, "backend back", {"backend": name}, at=time.time() - record.age)
