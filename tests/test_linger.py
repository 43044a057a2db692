"""Rule A6: an early answer reaches the client. The rest of its request is read and thrown away, in either framing, to the end."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
import time

import pytest
from harness import Backend, Client, Connection, Proxy, chunk, wait_until

MEGABYTE = 1 << 20
EARLY = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 4\r\nX-Early: 1\r\n\r\nstop"


def early(connection: Connection) -> None:
    """Answers the head, reads nothing more, and closes when the proxy does."""
    connection.read_head()
    connection.send(EARLY)
    connection.wait_eof(60)


def trickle(client: Client, pieces: int, size: int) -> threading.Event:
    """Sends a body in pieces, for some seconds; the event is set when all of it was taken."""
    done = threading.Event()

    def send() -> None:
        try:
            for _ in range(pieces):
                client.send(b"x" * size)
                time.sleep(0.02)
        except OSError:
            return
        done.set()

    threading.Thread(target=send, daemon=True).start()
    return done


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a6_the_rest_of_a_body_is_taken_to_its_end(proxy_to, framing):
    # Longer than 2 s and than 1 MB: both were once where the proxy lost its patience.
    proxy = proxy_to(early)
    pieces, size = 150, 65536
    with Client(proxy) as client:
        if framing == "length":
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (pieces * size))
        else:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (pieces * size))
        done = trickle(client, pieces, size)
        wait_until(done.is_set, 30, "the whole body is taken")
        if framing == "chunked":
            client.send(b"\r\n0\r\n\r\n")
        response = client.read_response()
        assert (response.status, response.values(b"connection")) == (401, [b"close"])
        assert client.read_eof() == b""
    proxy.settled()
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="request") > pieces * size // 2


def test_a6_http_client_sees_every_early_answer(proxy_to):
    proxy = proxy_to(early, options=["--max-body", "1MB"])
    for length in (4 * MEGABYTE, 12 * MEGABYTE, 900_000):  # refused by the proxy; the same; answered by the backend
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
            connection.request("POST", "/", body=bytes(length))
            assert connection.getresponse().status == (401 if length < MEGABYTE else 413)
            connection.close()
    proxy.settled()


@pytest.mark.parametrize(
    "fields",
    [b"X: y\r\n" * 130, b"Transfer-Encoding: gzip\r\n", b"Host: b\r\n", b"Content-Length: 5x\r\n", b"X : y\r\n"],
    ids=["fields", "coding", "hosts", "length", "space"],
)
def test_a6_a_broken_head_is_not_believed_when_it_says_close(serve, proxy, fields):
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + fields + b"\r\n")
        for _ in range(30):  # the body comes later, when the answer is on its way already
            time.sleep(0.02)
            client.send(bytes(8192))
        assert client.read_response().status in (400, 431)
        assert client.read_eof() == b""


def test_a6_a_client_that_said_close_and_is_done_is_not_waited_for(serve, proxy):
    # Behind a broken chunk nobody knows where the body ends, whatever comes.
    serve(lambda connection: connection.wait_eof(30))
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbad")
        client.send(b"\x00zz")  # breaks the framing: from here there is no end
        for _ in range(10):
            time.sleep(0.02)
            client.send(b"\r\n0\r\n\r\n")
        assert client.read_response().status == 400
        assert client.read_eof() == b""
    proxy.settled()
    refused = (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
    )
    client = Client(proxy)
    assert client.request(refused).status == 413
    assert client.read_eof() == b""
    assert proxy.metric("llmpipe_clients") == 1  # it may send its body yet, and counts meanwhile
    client.close()
    proxy.settled(4)  # and not five seconds


def test_a6_five_seconds_of_silence_end_it(serve, proxy):
    with Client(proxy) as client:
        begun = time.monotonic()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + bytes(1000))
        assert client.read_response().status == 413
        assert client.read_eof() == b""
        proxy.wait_metric("llmpipe_clients", 0)
        assert time.monotonic() - begun > 4


def test_a6_a_drain_waits_two_seconds_at_most():
    with Backend(early) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n")
        assert client.read_response().status == 401
        done = trickle(client, 2000, 1000)
        time.sleep(0.2)
        begun = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_exit() == 0
        assert time.monotonic() - begun > 1.5
        assert not done.is_set()


def test_a6_a_client_that_sends_all_before_it_reads_gets_a_long_early_answer(proxy_to):
    # The answer fills every buffer and the backend takes no more of the body: only a proxy that reads on resolves that.
    body = bytes(range(256)) * (6 * MEGABYTE // 256)

    def whole(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.wait_eof(60)

    proxy = proxy_to(whole, options=["--send-timeout", "50s"])
    with Client(proxy) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        total = 16 * MEGABYTE
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % total)
        client.sock.settimeout(60)
        sent = threading.Event()

        def send() -> None:
            client.sock.sendall(bytes(total))
            sent.set()

        threading.Thread(target=send, daemon=True).start()
        response = client.read_response()
        assert (response.status, response.body) == (403, body)
        assert sent.wait(60)
        assert client.read_eof() == b""
    proxy.settled()


def test_a6_what_is_thrown_away_is_counted(serve, backend, proxy_to):
    proxy = proxy_to(backend)
    body = chunk(b"hello") + b"zz\r\n"
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n" + body)
        assert client.read_response().status == 400
    proxy.settled()
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="request") == len(body)
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + bytes(1000))
        assert client.read_response().status == 413
        client.send(bytes(500))
    proxy.settled()
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="request") == len(body) + 1500
