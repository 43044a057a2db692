"""The engines: one thread each, their routing table, and the records that they send back.

Everything that crosses to the data plane passes here, but for the accepted descriptors, which `server` hands over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmpipe import log
from llmpipe._pipe import Engine

if TYPE_CHECKING:
    from llmpipe._pipe import EventRecord, Stats
    from llmpipe.config import Backend, Settings
    from llmpipe.resolve import Resolver

RECORD_INTERVAL = 0.1
"""Seconds between two looks at records that nobody was woken for."""


class Runner:
    """Starts, feeds and ends the engines. All methods are called by the control plane's thread."""

    def __init__(
        self, workers: int, settings: Settings, backends: tuple[Backend, ...], on_record: Callable[[EventRecord], None]
    ) -> None:
        """Args:
        workers: engine threads.
        settings: what every engine is told.
        backends: their order gives each its slot.
        on_record: called with each event record.

        Raises:
            OSError: a descriptor could not be made.
        """
        self.backends = backends
        self.engines = [Engine(settings)]
        self.engines += [Engine(settings, self.engines[0]) for _ in range(workers - 1)]
        self._threads = [
            threading.Thread(target=self._run, args=(number, engine), name=f"worker-{number}", daemon=True)
            for number, engine in enumerate(self.engines)
        ]
        self._on_record = on_record
        self._loop = asyncio.get_running_loop()
        self._records_timer: asyncio.TimerHandle | None = None
        self._running = 0
        self.ended = asyncio.Event()
        """Set when no engine runs any more."""
        self.failure: BaseException | None = None
        """What ended an engine that should have gone on."""

    def start(self) -> None:
        """Starts the threads; `configure` may be called before or after."""
        for engine in self.engines:
            self._loop.add_reader(engine.events_fd, self._take_records, engine)
        self._running = len(self._threads)
        for thread in self._threads:
            thread.start()
        self._take_records_for_ever()

    def _run(self, number: int, engine: Engine) -> None:
        log.debug("worker started", worker=number, thread=threading.get_native_id())
        failure: BaseException | None = None
        try:
            engine.run()
        except BaseException as error:  # nobody else would ever hear of it
            failure = error
        self._loop.call_soon_threadsafe(self._worker_ended, failure)

    def _worker_ended(self, failure: BaseException | None) -> None:
        self._running -= 1
        if failure is not None:
            log.error("worker failed", error=repr(failure))
            self.failure = failure
            self.stop()
        if self._running == 0:
            self.ended.set()

    def configure(self, resolver: Resolver) -> None:
        """Hands the routing table to every engine."""
        table = [
            (
                slot,
                backend.url.encode(),
                backend.authority.encode(),
                backend.host_field.encode(),
                resolver.addresses(backend),
                backend.finish_on_abort,
            )
            for slot, backend in enumerate(self.backends)
        ]
        for engine in self.engines:
            engine.configure(table)

    def drain(self) -> None:
        """Lets live exchanges finish; `ended` is set after the last one."""
        for engine in self.engines:
            engine.drain()

    def stop(self) -> None:
        """Ends every exchange now."""
        for engine in self.engines:
            engine.stop()

    def stats(self) -> list[Stats]:
        """A snapshot of each engine's counters."""
        return [engine.stats() for engine in self.engines]

    def clients(self) -> int:
        """Open client connections."""
        return sum(engine.clients for engine in self.engines)

    def usable_backends(self) -> int:
        """Backends that are not left out."""
        backends = self.engines[0].stats()["backends"]
        return sum(not backends[slot]["left_out"] for slot in range(len(self.backends)))

    def _take_records(self, engine: Engine) -> None:
        for record in engine.drain_events():
            self._on_record(record)

    def take_records(self) -> None:
        """Takes the records that nobody was woken for."""
        for engine in self.engines:
            self._take_records(engine)

    def _take_records_for_ever(self) -> None:
        self.take_records()
        self._records_timer = self._loop.call_later(RECORD_INTERVAL, self._take_records_for_ever)

    def close(self) -> None:
        """Takes the last records and frees the engines, which must have ended."""
        if self._records_timer is not None:
            self._records_timer.cancel()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()
        for engine in self.engines:
            self._loop.remove_reader(engine.events_fd)
            self._take_records(engine)
            engine.close()
