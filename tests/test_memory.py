"""Rule G1 and G3: memory does not grow with a response, and a slow client costs its own stream only."""

import contextlib
import hashlib
import os
import signal
import socket
import threading
import time

import pytest
from harness import Backend, Client, Connection, answer_all, chunk, respond, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MB = 1 << 20
SLACK = (24 if "asan" in os.environ.get("LD_PRELOAD", "") else 4) * MB
"""What resident memory may move by itself: a sanitizer has shadows and a quarantine of its own."""

PIECE = bytes(range(256)) * 4096  # 1 MB


class Flood:
    """Sends a given number of MB as fast as it is taken, and tells how much that was."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        self.sent = 0

    def __call__(self, conn: Connection) -> None:
        conn.read_request()
        conn.sock.settimeout(60)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (self.megabytes * MB))
        for _ in range(self.megabytes):
            view = memoryview(PIECE)
            while view:
                n = conn.sock.send(view)
                self.sent += n
                view = view[n:]
        conn.wait_eof()


def receive(sock: socket.socket, n: int, start: bytes) -> bytes:
    """The SHA-256 of the next n bytes, of which `start` is there already."""
    digest = hashlib.sha256(start)
    n -= len(start)
    buffer = bytearray(MB)
    while n:
        got = sock.recv_into(buffer, min(n, MB))
        assert got
        digest.update(memoryview(buffer)[:got])
        n -= got
    return digest.digest()


def expected(megabytes: int) -> bytes:
    digest = hashlib.sha256()
    for _ in range(megabytes):
        digest.update(PIECE)
    return digest.digest()


@pytest.mark.slow
def test_g1_a_client_that_never_reads(proxy_to):
    flood = Flood(256)
    with Backend(flood) as backend:
        proxy = proxy_to(backend)
        before = proxy.rss()
        with Client(proxy) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send(GET)
            sent = -1
            while sent != flood.sent:  # until nothing more is taken
                sent = flood.sent
                time.sleep(0.5)
            # What was taken lies in the buffers of four sockets; the proxy itself holds one of 8 KB.
            assert flood.sent < 32 * MB
            assert proxy.metric("llmpipe_buffers_held") == 1
            assert proxy.rss() - before < SLACK
            cpu = proxy.cpu()
            time.sleep(1)
            assert proxy.cpu() - cpu < 0.2  # it waits, it does not spin
            head = client.read_head()
            assert b"Content-Length: %d" % (256 * MB) in head
            start = bytes(client.buffer)
            client.buffer.clear()
            assert receive(client.sock, 256 * MB, start) == expected(256)
        proxy.settled()
        assert proxy.metric("llmpipe_buffers_held") == 0
        assert proxy.rss() - before < SLACK


def test_g1_memory_does_not_grow_with_a_response(proxy_to):
    flood = Flood(512)
    with Backend(flood) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            before = proxy.rss()
            most = before
            left = 512 * MB - len(client.recv())
            buffer = bytearray(MB)
            checked = 0
            while left:
                got = client.sock.recv_into(buffer)
                assert got
                left -= got
                if 2 * MB < left < 512 * MB - checked * 64 * MB:
                    checked += 1
                    most = max(most, proxy.rss())
            assert most - before < SLACK


def test_g1_a_request_body_that_the_backend_does_not_read(proxy_to):
    """The same upwards: the client is throttled, nothing piles up."""
    go = threading.Event()
    digests = []

    def late(conn: Connection) -> None:
        conn.read_head()
        go.wait(60)
        conn.sock.settimeout(60)
        digests.append(hashlib.sha256(conn.read(60 * MB)).digest())
        respond(conn)

    with Backend(late) as backend:
        proxy = proxy_to(backend)
        before = proxy.rss()
        with Client(proxy) as client:
            client.sock.settimeout(60)
            sent = []

            def upload() -> None:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (60 * MB))
                for _ in range(60):
                    client.send(PIECE)
                    sent.append(1)

            thread = threading.Thread(target=upload)
            thread.start()
            count = -1
            while count != len(sent):
                count = len(sent)
                time.sleep(0.5)
            assert len(sent) < 40
            assert proxy.rss() - before < SLACK
            go.set()
            thread.join(60)
            assert client.read_response("POST").status == 200
            assert digests == [expected(60)]
        proxy.settled()
        assert proxy.metric("llmpipe_buffers_held") == 0


def test_uploads_that_end_with_a_turns_share_of_reads(proxy_to):
    """A worker reads 16 buffers of a connection and goes on to others; what it holds then must not be forgotten."""

    def late(conn: Connection) -> None:
        while True:
            conn.read_request()
            respond(conn)

    proxy = proxy_to(late)
    with Client(proxy) as client:
        for size in [n * 8192 + more for n in (14, 15, 16, 17, 32, 48) for more in (-300, -1, 0, 1, 300)]:
            proxy.signal(signal.SIGSTOP)  # so that all is there when it looks
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            proxy.signal(signal.SIGCONT)
            assert client.read_response("POST").status == 200


def paced(conn: Connection) -> None:
    """An event every 10 ms."""
    conn.read_request()
    conn.send(sse_head())
    for i in range(100):
        conn.send(chunk(b"data: %d\n\n" % i))
        time.sleep(0.01)
    conn.send(b"0\r\n\r\n")


def longest_gap(client: Client) -> float:
    """Reads a stream to its end; the longest time between two reads."""
    client.send(GET)
    client.read_head()
    gap = 0.0
    last = time.monotonic()
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += client.recv()
        now = time.monotonic()
        gap, last = max(gap, now - last), now
    assert data.count(b"data: ") == 100
    return gap


@pytest.mark.slow
def test_g3_half_sent_heads_slow_nobody(proxy_to):
    proxy = proxy_to(paced, options=["--head-timeout", "2m"])
    half = [Client(proxy) for _ in range(200)]
    try:
        for client in half:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 200)
        cpu = proxy.cpu()
        with Client(proxy) as client:
            assert longest_gap(client) < 10  # and not the time that the heads have
        for client in half:  # a byte more costs a byte
            client.send(b"x")
        assert proxy.cpu() - cpu < 1
    finally:
        for client in half:
            client.close()
    proxy.settled()
    assert proxy.metric("llmpipe_buffers_held") == 0


@pytest.mark.slow
def test_g3_a_client_that_reads_a_byte_at_a_time_costs_its_own_stream_only(proxy_to):
    def serve(conn: Connection) -> None:
        request = conn.read_head()
        if b"/flood" in request:
            conn.send(b"HTTP/1.1 200 OK\r\n\r\n")
            conn.sock.settimeout(60)
            with contextlib.suppress(ConnectionError):  # it is cut in the end
                while True:
                    conn.sock.send(PIECE)
            return
        conn.send(sse_head())
        for i in range(100):
            conn.send(chunk(b"data: %d\n\n" % i))
            time.sleep(0.01)
        conn.send(b"0\r\n\r\n")

    with Backend(serve) as backend:
        proxy = proxy_to(backend)
        slow = [Client(proxy) for _ in range(20)]
        stop = threading.Event()

        def sip() -> None:
            while not stop.wait(0.05):
                for client in slow:
                    client.sock.recv(1)

        thread = threading.Thread(target=sip)
        try:
            for client in slow:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.send(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 20)
            thread.start()
            with Client(proxy) as client:
                assert longest_gap(client) < 10
            assert proxy.metric("llmpipe_buffers_held") <= 20
        finally:
            stop.set()
            thread.join(10)
            for client in slow:
                client.reset()
        proxy.settled()


def test_slow_and_fast_share_a_worker_fairly(proxy_to):
    """One unpaced stream does not starve the others."""

    def serve(conn: Connection) -> None:
        while b"/flood" not in conn.read_head():
            respond(conn)
        conn.send(b"HTTP/1.1 200 OK\r\n\r\n")
        conn.sock.settimeout(60)
        with contextlib.suppress(ConnectionError):  # it is cut in the end
            while True:
                conn.sock.send(PIECE)

    with Backend(serve) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as fast:
            fast.send(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
            stop = threading.Event()

            def drain() -> None:
                buffer = bytearray(MB)
                while not stop.is_set():
                    fast.sock.recv_into(buffer)

            thread = threading.Thread(target=drain)
            thread.start()
            try:
                for _ in range(20):
                    with Client(proxy) as client:
                        assert client.request(GET).status == 200
            finally:
                stop.set()
                thread.join(10)
        proxy.settled()


def test_buffers_are_reused(proxy_to):
    proxy = proxy_to(answer_all)
    with Client(proxy) as client:
        for _ in range(200):
            assert (
                client.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000).status
                == 200
            )
        assert proxy.metric("llmpipe_buffers") == 32  # one block
