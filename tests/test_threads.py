"""The boundary between threads: several engines at work while the control plane hands over tables and takes counters and records.

Under `make tsan` the engines are instrumented, and a race that no test could see ends the run.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from harness import Backend, Connection, Stream, answer_all, chunk, sse_head, wait_until

from llmpipe._pipe import OUTCOMES, Engine
from llmpipe.config import Settings

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ENGINES = 3
CLIENTS = 6
SECONDS = 3.0


class Engines:
    """Engines that run, each in its thread, behind one listening socket; this thread is their control plane."""

    def __init__(self, max_per_address: int = 0) -> None:
        self.engines = [Engine(Settings())]
        self.engines += [Engine(Settings(), self.engines[0]) for _ in range(ENGINES - 1)]
        self.threads = [threading.Thread(target=engine.run) for engine in self.engines]
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.records: list[tuple[object, ...]] = []
        for thread in self.threads:
            thread.start()
        self.engines[0].listen([self.listener.fileno()], self.engines, 1000, 900, 0, max_per_address)

    def configure(self, *ports: int) -> None:
        table = [(slot, b"%d" % port, b"backend", b"", [("127.0.0.1", port)], False) for slot, port in enumerate(ports)]
        for engine in self.engines:
            engine.configure(table)

    def take(self) -> None:
        for engine in self.engines:
            self.records += engine.drain_events()

    def outcomes(self) -> dict[str, int]:
        counts = [engine.stats()["outcomes"] for engine in self.engines]
        return {
            name: sum(count[index] for count in counts)
            for index, name in enumerate(OUTCOMES)
            if any(c[index] for c in counts)
        }

    def end(self, how: str) -> None:
        self.engines[0].end_listening()
        wait_until(lambda: not self.engines[0].listens)
        for engine in self.engines:
            getattr(engine, how)()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()
        for thread in self.threads:
            thread.join(30)
        self.take()
        for engine in self.engines:
            engine.close()
        self.listener.close()


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines()
    yield made
    made.close()


def stream_or_answer(connection: Connection) -> None:
    """Every other connection streams without an end, until it is closed."""
    if connection.index % 2:
        answer_all(connection)
    connection.read_request()
    connection.send(sse_head())
    with suppress(OSError):
        for n in range(100_000):
            connection.send(chunk(b"data: %d\n\n" % n))
            time.sleep(0.001)


def ask_for_ever(address: tuple[str, int], ending: threading.Event, number: int) -> None:
    """A client that comes, asks, reads a little and leaves, in one way or the other."""
    chance = random.Random(number)
    while not ending.is_set():
        with suppress(OSError, EOFError):
            stream = Stream(socket.create_connection(address, timeout=10))
            try:
                for _ in range(chance.randrange(4)):
                    stream.send(GET)
                    if b"event-stream" in stream.read_head():
                        stream.recv()
                        break
            finally:
                stream.reset() if chance.random() < 0.5 else stream.close()


@pytest.mark.parametrize("how", ["stop", "drain"])
def test_engines_at_work_are_configured_read_and_ended(engines: Engines, how: str) -> None:
    """Nothing is lost on the way: every exchange of every engine has a record, and every client is closed."""
    ending = threading.Event()
    with ExitStack() as stack:
        ports = [int(stack.enter_context(Backend(stream_or_answer)).url.rpartition(":")[2]) for _ in range(2)]
        engines.configure(*ports)
        clients = [threading.Thread(target=ask_for_ever, args=(engines.address, ending, n)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            engines.configure(*random.sample(ports, random.randrange(1, 3)))
            engines.take()
            assert sum(engine.clients for engine in engines.engines) >= 0
            assert engines.outcomes().keys() <= set(OUTCOMES)
        ending.set()
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        engines.end(how)
        engines.take()
        assert all(engine.clients == 0 for engine in engines.engines)
        assert all(engine.stats()["accepted"] > 0 for engine in engines.engines)
        exchanges = [record for record in engines.records if record[0] == 0]
        assert sum(engines.outcomes().values()) == len(exchanges) > 20
        assert sum(engine.stats()["records_dropped"] for engine in engines.engines) == 0


def test_counts_of_an_address_are_taken_back_by_every_engine() -> None:
    engines = Engines(max_per_address=ENGINES)
    try:
        with Backend(answer_all) as backend:
            engines.configure(int(backend.url.rpartition(":")[2]))
            for _ in range(200):
                streams = [Stream(socket.create_connection(engines.address, timeout=10)) for _ in range(ENGINES)]
                for stream in streams:
                    stream.send(GET)
                    assert stream.read_head().startswith(b"HTTP/1.1 200 ")
                for stream in streams:
                    stream.close()
                wait_until(lambda: not any(engine.clients for engine in engines.engines))
            assert engines.engines[0].stats()["over_address"] == 0
            assert all(engine.stats()["accepted"] > 0 for engine in engines.engines)
    finally:
        engines.close()
