"""Engines in the test's own process, which is their control plane: it hands them their tables and takes their records."""

from __future__ import annotations

import socket
import threading
from typing import Any

from harness import wait_asleep

from llmpipe._pipe import Engine
from llmpipe.config import Settings
from llmpipe.record_kinds import Record


class Engines:
    """Engines that share, each in its thread, behind one listening socket."""

    def __init__(self, count: int, settings: Settings | None = None, most: int = 1000, **limits: int) -> None:
        settings = settings or Settings()
        self.engines = [Engine(settings)]
        self.engines += [Engine(settings, self.engines[0]) for _ in range(count - 1)]
        self.threads = [threading.Thread(target=engine.run) for engine in self.engines]
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.records: list[Record] = []
        """Those that were taken."""
        for thread in self.threads:
            thread.start()
        self.engines[0].listen([self.listener.fileno()], self.engines, most=most, resume_at=most - 1, **limits)

    def configure(self, table: list[tuple[Any, ...]]) -> list[int]:
        """Hands out a table; the numbers of its backends, which all engines give alike."""
        (numbers,) = {tuple(engine.configure(table)) for engine in self.engines}
        return list(numbers)

    def rest(self) -> None:
        """Waits until the engines have done what belongs to all that they have sent."""
        wait_asleep(f"/proc/self/task/{thread.native_id}" for thread in self.threads)

    def total(self, name: str) -> int:
        """A counter of all engines, in which all that they have sent by now is counted."""
        self.rest()
        return sum(engine.stats()[name] for engine in self.engines)

    def take(self) -> list[Record]:
        """Takes the records that are there; all that were taken."""
        for engine in self.engines:
            self.records += engine.take_records()
        return self.records

    def join(self) -> None:
        """Waits for the threads, which were told to end."""
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()
        self.join()
        self.take()
        for engine in self.engines:
            engine.close()
        self.listener.close()
