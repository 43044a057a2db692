"""The boundary between threads: several engines at work while the control plane hands over tables and takes counters and records.

Under `make tsan` the engines are instrumented, and a race that no test could see ends the run.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from engines import Engines
from harness import Backend, Connection, Stream, answer_all, chunk, sse_head, wait_until

from llmpipe._pipe import MAX_BACKENDS, OUTCOMES, Engine
from llmpipe.config import Settings
from llmpipe.record_kinds import ExchangeEnded

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ENGINES = 3
CLIENTS = 6
SECONDS = 3.0
MOST = 40.0
"""Seconds, on a machine that has no time for them."""


class Three(Engines):
    """Engines at work; this thread is their control plane."""

    def __init__(self, **limits: int) -> None:
        super().__init__(ENGINES, **limits)

    def name(self, *ports: int) -> None:
        self.configure([(b"%d" % port, b"backend", b"", [("127.0.0.1", port)], False, 0, b"") for port in ports])

    def outcomes(self) -> dict[str, int]:
        counts = [engine.stats()["outcomes"] for engine in self.engines]
        return {
            name: sum(count[index] for count in counts)
            for index, name in enumerate(OUTCOMES)
            if any(c[index] for c in counts)
        }

    def were_busy(self) -> bool:
        """Whether each has had a client, and all together a few."""
        return len(self.records) > 50 and all(engine.stats()["accepted"] > 0 for engine in self.engines)

    def end(self, how: str) -> None:
        self.engines[0].end_listening()
        wait_until(lambda: not self.engines[0].listens)
        for engine in self.engines:
            getattr(engine, how)()
        self.join()


@pytest.fixture
def engines() -> Iterator[Three]:
    made = Three()
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
def test_engines_at_work_are_configured_read_and_ended(engines: Three, how: str) -> None:
    """Nothing is lost on the way: every exchange of every engine has a record, and every client is closed."""
    ending = threading.Event()
    with ExitStack() as stack:
        ports = [int(stack.enter_context(Backend(stream_or_answer)).url.rpartition(":")[2]) for _ in range(2)]
        engines.name(*ports)
        clients = [threading.Thread(target=ask_for_ever, args=(engines.address, ending, n)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        begun = time.monotonic()
        while (past := time.monotonic() - begun) < SECONDS or (past < MOST and not engines.were_busy()):
            engines.name(*random.sample(ports, random.randrange(1, 3)))
            engines.take()
            assert sum(engine.clients for engine in engines.engines) >= 0
            assert engines.outcomes().keys() <= set(OUTCOMES)
        ending.set()
        for client in clients:
            client.join(60)
            assert not client.is_alive()
        engines.end(how)
        engines.take()
        assert all(engine.clients == 0 for engine in engines.engines)
        assert all(engine.stats()["accepted"] > 0 for engine in engines.engines)
        exchanges = [record for record in engines.records if isinstance(record, ExchangeEnded)]
        assert sum(engines.outcomes().values()) == len(exchanges) > 20
        assert sum(engine.stats()["records_dropped"] for engine in engines.engines) == 0


def test_counters_are_read_while_tables_are_replaced(engines: Three) -> None:
    """As /metrics reads them, from a thread of its own: what a table named a moment ago is not freed under the reader."""
    ending = threading.Event()
    read: list[set[int]] = []
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            while not ending.is_set():
                for engine in engines.engines:
                    backends = engine.stats()["backends"]
                    read.append(set(backends))
                    for backend in backends.values():
                        assert (backend["in_flight"], backend["out"]) == (0, False)
        except BaseException as error:
            failures.append(error)

    engines.name()
    readers = [threading.Thread(target=scrape) for _ in range(2)]
    for reader in readers:
        reader.start()
    begun = time.monotonic()
    number = 0
    while (past := time.monotonic() - begun) < 1 or (past < MOST and len(read) <= 10):
        # Names that no table had before: each table frees the backends of the one before the last.
        number += 1
        engines.name(*range(number % 50_000 + 1, number % 50_000 + 1 + number % 4))
    ending.set()
    for reader in readers:
        reader.join(30)
    assert not failures
    assert {len(numbers) for numbers in read} <= {0, 1, 2, 3}
    assert len(read) > 10


def test_counters_name_the_backends_that_are_configured(engines: Three) -> None:
    first = engines.engines[0]
    assert first.stats()["backends"] == {}
    one, two, three = [(name, b"b", b"", [("127.0.0.1", 9)], False, 0, b"") for name in (b"one", b"two", b"three")]
    assert first.configure([one, two]) == [0, 1]
    assert set(first.stats()["backends"]) == {0, 1}
    assert first.configure([two]) == [1]
    assert set(first.stats()["backends"]) == {1}
    assert engines.engines[1].configure([three, two]) == [2, 1]
    with pytest.raises(ValueError, match="named twice"):
        first.configure([one, one])
    with pytest.raises(ValueError, match="backends"):
        first.configure([one] * (MAX_BACKENDS + 1))
    assert set(first.stats()["backends"]) == {1}


def test_engines_that_reach_into_each_other_are_kept(engines: Three) -> None:
    """One that listens for others writes into their mailboxes: none of them is closed or freed while one runs."""
    first, second, third = engines.engines
    for engine in (second, third):
        engine.stop()
    for thread in engines.threads[1:]:
        thread.join(30)
    with pytest.raises(RuntimeError):
        second.close()  # the one that listens for it runs
    assert second.clients == 0
    first.stop()
    engines.threads[0].join(30)
    second.close()
    second.close()
    with pytest.raises(ValueError, match="closed"):
        _ = second.clients
    engines.engines.remove(second)


def test_only_engines_that_belong_together_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first, second, stranger = (Engine(Settings()) for _ in range(3))
        listeners = [listener.fileno()]
        with pytest.raises(ValueError, match="not among"):
            first.listen(listeners, [second], most=10, resume_at=9)
        with pytest.raises(TypeError):
            first.listen(listeners, [first, None], most=10, resume_at=9)  # type: ignore[list-item]
        first.listen(listeners, [first, second], most=10, resume_at=9)
        with pytest.raises(RuntimeError):
            stranger.listen(listeners, [stranger, second], most=10, resume_at=9)
        second.close()
        with pytest.raises(ValueError, match="closed"):
            first.run()
        with pytest.raises(ValueError, match="closed"):
            stranger.listen(listeners, [stranger, second], most=10, resume_at=9)
        stranger.listen(listeners, [stranger], most=10, resume_at=9)
        descriptor = stranger.records_fd
        del stranger  # it refers to itself, and is freed all the same
        gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_counts_of_an_address_are_taken_back_by_every_engine() -> None:
    engines = Three(max_per_address=ENGINES)
    try:
        with Backend(answer_all) as backend:
            engines.name(int(backend.url.rpartition(":")[2]))
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
