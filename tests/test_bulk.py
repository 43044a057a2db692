"""Unpaced answers, which are looked at before they are taken: byte for byte the same, however they come and are taken."""

from __future__ import annotations

import random
import time

import pytest
from harness import LAST_CHUNK, Backend, Client, Connection, Proxy, chunk, wait_until
from seeds import seeds

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
BUFFER = 8192


def make_chunked(chance: random.Random, size: int) -> tuple[bytes, bytes]:
    """A chunked body of about this size, as it is framed: chunks from one byte to more than a look, now and then odd ones."""
    raw, data = bytearray(), bytearray()
    while len(data) < size:
        piece = chance.randbytes(chance.choice([1, 40, 200, 5000, 8192, 70_000]))
        if chance.random() < 0.1:
            raw += b"%04X;name=value\r\n%s\r\n" % (len(piece), piece)
        else:
            raw += chunk(piece)
        data += piece
    return bytes(raw + chance.choice([LAST_CHUNK, b"0\r\nX-Sum: 1\r\n\r\n"])), bytes(data)


class Sender:
    """Sends one answer in pieces of random sizes, most of them as fast as they are taken."""

    def __init__(self, answer: bytes, chance: random.Random) -> None:
        self.answer = answer
        self.chance = chance

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        connection.sock.settimeout(60)
        at = 0
        while at < len(self.answer):
            n = self.chance.choice([100, 8191, 8192, 8193, 65_536, 65_537, 1_000_000])
            connection.send(self.answer[at : at + n])
            at += n
            if self.chance.random() < 0.02:
                time.sleep(0.005)
        connection.wait_eof(60)


def take(client: Client, n: int, chance: random.Random) -> bytes:
    """`n` bytes in pieces of random sizes, with pauses in which the proxy is blocked."""
    got = bytearray()
    while len(got) < n:
        if chance.random() < 0.05:
            time.sleep(0.005)
        piece = client.sock.recv(min(n - len(got), chance.choice([1, 3000, 65_536, 1_000_000])))
        assert piece, f"the answer ended after {len(got)} of {n} bytes"
        got += piece
    return bytes(got)


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("seed", seeds(6))
def test_every_byte_comes_once_and_in_order(framing: str, family: str, seed: int) -> None:
    chance = random.Random(f"{framing}{family}{seed}")
    size = 3_000_000
    if framing == "chunked":
        head, (body, _) = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", make_chunked(chance, size)
    else:
        body = chance.randbytes(size + seed)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        if framing == "close":
            head = b"HTTP/1.1 200 OK\r\n\r\n"
    options = ["--upstream-idle-timeout", "10m"]
    with (
        Backend(Sender(head + body, chance), family) as backend,
        Proxy(backend.url, options=options) as proxy,
        Client(proxy) as client,
    ):
        client.send(GET)
        client.read_head()
        got = bytes(client.buffer)
        client.buffer.clear()
        assert got + take(client, len(body) - len(got), random.Random(seed)) == body
        if framing == "close":
            backend.connections[0].half_close()
            assert client.read_eof() == b""
        else:
            # Nothing stood behind it: the connection can be used again, and so can the upstream.
            wait_until(lambda: proxy.metric("llmpipe_upstream_idle", backend=backend.url) == 1)
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 0)
        assert proxy.metric("llmpipe_streaming_bytes_forwarded_total") == len(body)
        assert proxy.outcome("ok") == 1


def test_an_answer_that_breaks_inside_a_look_is_cut_where_it_breaks() -> None:
    good = chunk(b"x" * 200) * 1000
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + good + b"zz\r\n" + good
    with Backend(Sender(answer, random.Random(1))) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        client.read_head()
        assert client.read_eof() == good
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="upstream_abort")


def test_bytes_behind_an_answer_that_ends_inside_a_look_go_nowhere() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x" * 200) * 1000 + LAST_CHUNK
    with (
        Backend(Sender(answer + b"HTTP/1.1 200 OK\r\n" * 1000, random.Random(2))) as backend,
        Proxy(backend.url) as proxy,
    ):
        with Client(proxy) as client:
            assert client.request(GET).body == b"x" * 200_000
            assert client.silent(0.2)
            proxy.wait_metric("llmpipe_upstreams", 0)


def test_a_blocked_client_of_an_unpaced_answer_holds_one_buffer() -> None:
    """What was looked at and not taken stays with the kernel (rule G1)."""
    body = b"y" * 50_000_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with Backend(Sender(answer, random.Random(3))) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client:
            client.send(GET)
            proxy.wait_metric("llmpipe_buffers_held", 1)
            time.sleep(0.3)
            assert proxy.metric("llmpipe_buffers_held") == 1
            assert proxy.metric("llmpipe_buffers") * BUFFER <= 64 * BUFFER
        proxy.settled()
        wait_until(lambda: backend.errors)
        backend.errors.clear()  # an answer that was cut


def test_a_client_that_leaves_an_unpaced_answer_frees_its_backend() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"z" * 100_000_000
    with Backend(Sender(answer, random.Random(4))) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client:
            client.send(GET)
            client.read(1_000_000)
            client.reset()
        proxy.wait_metric("llmpipe_upstreams", 0)
        assert proxy.outcome("client_abort") == 1
        wait_until(lambda: backend.errors)
        backend.errors.clear()  # an answer that was cut
