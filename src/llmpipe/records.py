"""Records of the engines, turned into log lines: access lines, disconnects, backends that went and came back, pauses; and spans."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmpipe import log
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.access_log import milliseconds
from llmpipe.disconnect import Abort
from llmpipe.record_kinds import AcceptEnded, AcceptPaused, AcceptResumed, BackendDown, BackendUp, ExchangeEnded

if TYPE_CHECKING:
    from llmpipe.access_log import AccessLog
    from llmpipe.fleet import Fleet, Server
    from llmpipe.otel import Tracing
    from llmpipe.record_kinds import Record

CLIENT_ABORT = OUTCOMES.index("client_abort")


class RecordLog:
    """Writes what the engines report.

    Attributes:
        accept_ended: whether another process has shut a listening socket down.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        on_abort: Callable[[Abort, Server | None], None],
        access: AccessLog,
        tracing: Tracing | None,
    ) -> None:
        """Args:
        fleet: knows the servers that records name.
        on_abort: called for each client that left, with the backend that worked on its exchange.
        access: where exchanges have their lines.
        tracing: makes spans of them; None for no spans.
        """
        self._on_abort = on_abort
        self._access = access
        self._tracing = tracing
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
        if record.outcome == CLIENT_ABORT:
            worked = None if record.backend is None else self._fleet.server(record.backend)
            abort = Abort(
                record.client.decode("latin-1"),
                PHASES[record.phase],
                None if worked is None else worked.name,
                milliseconds(record.close_time),
                record.request_id.decode("latin-1"),
            )
            self._on_abort(abort, worked)
        self._access.write(record, self._fleet)
        if self._tracing is not None:
            self._tracing.write(record, self._fleet)

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
