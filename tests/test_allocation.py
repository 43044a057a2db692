"""No heap allocation in steady state, by the count of a preloaded library (malloc_count.c) and not by the engine's word.

The engine's thread is known by the id that it logs. Python's own threads in the process allocate as they like.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Backend, Client, Connection, Proxy, answer_all, chunk, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
EVENT = chunk(b'data: {"choices": [{"delta": {"content": " token"}}]}\n\n')
ROW = struct.Struct("=QQQ")

STREAMS = 20
EVENTS = 1_000_000

Counts = Callable[[], tuple[int, int]]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    """The counting library, compiled."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("ALLOCATIONS NOT COUNTED: AddressSanitizer has replaced malloc; the release flavour shows it")
    path = tmp_path_factory.mktemp("malloc_count") / "malloc_count.so"
    source = Path(__file__).with_name("malloc_count.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, source], check=True)
    return str(path)


@pytest.fixture
def counted(proxy_to, library, tmp_path) -> Callable[..., tuple[Proxy, Counts]]:
    """Makes a proxy, and a function that tells the calls of its engine's thread that took and gave memory so far."""

    def make(*backends: object) -> tuple[Proxy, Counts]:
        path = tmp_path / "counts"
        env = {"LD_PRELOAD": library, "LLMPIPE_MALLOC_COUNT": str(path)}
        proxy = proxy_to(*backends, options=["--log-level", "debug"], env=env)
        thread = proxy.wait_log("worker started")["thread"]

        def counts() -> tuple[int, int]:
            rows = ROW.iter_unpack(path.read_bytes())
            return next((taken, given) for tid, taken, given in rows if tid == thread)

        # A count that cannot rise proves nothing: the thread took memory when it was started.
        assert min(counts()) > 0
        return proxy, counts

    return make


def test_the_count_sees_what_the_engine_takes(counted):
    """The check of the checks: the engine takes a block when more clients come than ever before."""
    proxy, counts = counted(answer_all)
    with Client(proxy) as client:
        assert client.request(GET).status == 200
        before = counts()
        clients = [Client(proxy) for _ in range(600)]
        try:
            wait_until(lambda: proxy.metric("llmpipe_clients") == 601)
            assert counts()[0] > before[0]
        finally:
            for other in clients:
                other.close()


@pytest.mark.slow
def test_a_million_events_allocate_nothing(counted, record_property):
    stop = threading.Event()
    connections: list[Connection] = []

    def open_stream(conn: Connection) -> None:
        conn.read_request()
        connections.append(conn)
        conn.send(sse_head() + EVENT)

    def send_events() -> None:
        # One thread and one event a turn and stream: two events that lie together would be forwarded as one.
        turns = 0
        while not stop.is_set():
            for conn in connections:
                conn.sock.sendall(EVENT)
            turns += 1
            if turns % 50 == 0:
                stop.wait(0.0005)  # lets the proxy catch up, whoever is faster

    with Backend(open_stream) as backend:
        proxy, counts = counted(backend)
        clients = [Client(proxy) for _ in range(STREAMS)]
        readers = []
        sender = threading.Thread(target=send_events)
        try:
            for client in clients:
                client.send(GET)
                client.read_head()
                readers.append(threading.Thread(target=discard, args=(client.sock, stop)))
            wait_until(lambda: len(connections) == STREAMS)
            for thread in (*readers, sender):
                thread.start()
            wait_until(lambda: forwarded(proxy) > 20_000, timeout=60)
            first, before = forwarded(proxy), counts()
            start = time.monotonic()
            wait_for_events(proxy, first + EVENTS)
            after, seconds = counts(), time.monotonic() - start
            assert proxy.metric("llmpipe_streaming_active") == STREAMS
        finally:
            stop.set()
            for thread in (sender, *readers):
                if thread.ident:
                    thread.join(20)
            for client in clients:
                client.close()
        record_property("seconds_for_a_million_events", seconds)
        print(f"{EVENTS} events in {seconds:.1f} s; calls that took or gave memory: {before} before, {after} after")
        assert after == before
        proxy.settled()


def forwarded(proxy: Proxy) -> float:
    return proxy.metric("llmpipe_events_forwarded_total")


def wait_for_events(proxy: Proxy, n: float) -> None:
    """A scrape now and then: the load needs the processors."""
    end = time.monotonic() + 240
    while (count := forwarded(proxy)) < n:
        assert time.monotonic() < end, f"{count} events of {n}"
        time.sleep(0.5)


def discard(sock: socket.socket, stop: threading.Event) -> None:
    """Reads and throws away, a lot at a time."""
    buffer = bytearray(1 << 16)
    while not stop.wait(0.02) and sock.recv_into(buffer):
        pass


def test_requests_on_warm_connections_allocate_nothing(counted):
    """Not only the flow of a stream: the whole way of an exchange, its upstream's return to the pool included."""
    proxy, counts = counted(answer_all)
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000
    with Client(proxy) as client:
        for _ in range(50):
            assert client.request(GET).status == client.request(post).status == 200
        before = counts()
        for _ in range(1000):
            assert client.request(GET).status == client.request(post).status == 200
        assert counts() == before


def test_backpressure_allocates_nothing(counted):
    """Buffers that blocked streams hold come from the slab that is there from the start."""
    piece = b"x" * (1 << 20)

    def flood(conn: Connection) -> None:
        conn.read_request()
        conn.sock.settimeout(60)
        conn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (40 << 20))
        for _ in range(40):
            conn.send(piece)

    with Backend(flood) as backend:
        proxy, counts = counted(backend)
        with Client(proxy) as first:  # the first time of each kind takes memory
            first.send(GET)
            first.read_head()
            first.read(40 << 20)
            wait_until(lambda: proxy.outcome("ok") == 1)
        clients = [Client(proxy) for _ in range(5)]
        try:
            for client in clients:
                client.send(GET)
                client.read_head()
            before = counts()
            wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 5)
            for client in clients:
                client.read(40 << 20)
            wait_until(lambda: proxy.outcome("ok") == 6)
            assert counts() == before
        finally:
            for client in clients:
                client.close()
