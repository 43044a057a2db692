"""Rules C: what comes back. A backend sends raw bytes in pieces; what the client gets is compared byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import threading
import time
from dataclasses import dataclass

import cases
import pytest
from harness import (
    LAST_CHUNK,
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    respond,
    split_head,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: id\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
OLD = b"GET / HTTP/1.0\r\nX-Request-ID: id\r\n\r\n"
OLD_KEEP = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Request-ID: id\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
ID = b"X-Request-ID: id\r\n"
CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def sends(*pieces: bytes, close: bool = False, pause: float = 0.02):
    """A script: answers each request with these pieces, a moment apart, and may close the connection then."""

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            for index, piece in enumerate(pieces):
                time.sleep(pause if index else 0)
                connection.send(piece)
            if close:
                connection.close()
                return

    return script


class Steps:
    """A backend's script that the test drives: it reads one request, then the test sends what it wants."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self._asked = threading.Event()

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        self.connection = connection
        self._asked.set()

    def send(self, data: bytes) -> None:
        assert self._asked.wait(TIMEOUT)
        assert self.connection
        self.connection.send(data)

    def reset(self) -> None:
        """Ends the connection with an RST: all that was sent must have arrived."""
        assert self.connection
        self.connection.reset()


@pytest.fixture
def steps(serve) -> Steps:
    steps = Steps()
    serve(steps)
    return steps


# C1: forwarded at once


def test_c1_the_head_is_forwarded_before_there_is_a_body(steps, client):
    client.send(GET)
    for piece in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 2\r\n", b"\r"):
        steps.send(piece)
        assert client.silent(0.03)  # not before it is complete
    steps.send(b"\n")
    assert client.recv() == OK + b"Content-Length: 2\r\n" + ID + b"\r\n"
    steps.send(b"ok")
    assert client.recv() == b"ok"


FRAMES = {
    "chunked": (sse_head(), chunk, LAST_CHUNK),
    "length": (OK + b"Content-Length: 800\r\n\r\n", lambda data: data, b""),
    "until close": (OK + b"\r\n", lambda data: data, b""),
}


@pytest.mark.parametrize("framing", FRAMES)
def test_c1_each_piece_arrives_alone_before_the_next_one_is_sent(proxy, steps, client, framing):
    head, frame, end = FRAMES[framing]
    pieces = [frame(b"data: %012d\n\n" % i) for i in range(40)]  # 20 bytes of data each
    before = proxy.metrics()
    client.send(GET)
    steps.send(head)
    client.read_head()
    waits = []
    for piece in pieces:
        start = time.monotonic()
        steps.send(piece)
        assert client.recv() == piece
        waits.append(time.monotonic() - start)
    assert (
        min(waits[20:]) < 0.03
    )  # Nagle against a delayed ACK would be 40 ms for each, once the kernel has begun to delay them
    if end:
        steps.send(end)
        assert client.recv() == end
    after = proxy.metrics()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["llmpipe_events_forwarded_total"] == len(pieces) + bool(end)
    assert grown["llmpipe_streaming_bytes_forwarded_total"] == len(b"".join(pieces) + end)


def test_c1_events_paced_at_20_ms_arrive_as_they_were_sent(serve, client):
    events = [chunk(b'data: {"token": "%d"}\n\n' % i) for i in range(25)]
    serve(sends(sse_head(), *events, LAST_CHUNK))
    client.send(GET)
    client.read_head()
    ends = {len(b"".join(events[:number])) for number in range(1, len(events) + 1)}
    got = b""
    while len(got) < max(ends):
        got += client.recv()
        assert len(got) in {
            *ends,
            max(ends) + len(LAST_CHUNK),
        }  # whoever reads late has several at once, and no part of one
    got += client.read(max(ends) + len(LAST_CHUNK) - len(got))
    assert got == b"".join(events) + LAST_CHUNK


def test_c1_small_pieces_do_not_wait_for_the_clients_acknowledgement(serve, client):
    # A client that has just sent a request delays its ACK by 40 ms, and Nagle's algorithm would wait for it.
    serve(sends(OK + b"Content-Length: 6\r\n\r\n", b"aa", b"bb", b"cc", pause=0.003))
    for number in itertools.count():
        start = time.monotonic()
        assert client.request(GET).body == b"aabbcc"
        if number >= 3 and time.monotonic() - start < 0.03:
            break
        assert number < 300


def test_c1_what_came_with_the_head_goes_with_it(serve, client):
    serve(sends(OK + b"Content-Length: 2\r\n\r\nok"))
    client.send(GET)
    assert client.recv() == OK + b"Content-Length: 2\r\n" + ID + b"\r\nok"


@pytest.mark.parametrize("framing", ["chunked", "length", "until close"])
@pytest.mark.parametrize("request_", [GET, OLD], ids=["1.1", "1.0"])
def test_c1_a_large_body_arrives_byte_for_byte(serve, client, framing, request_):
    random_ = random.Random(7)
    body = random_.randbytes(8 << 20)
    pieces = []
    start = 0
    while start < len(body):
        end = start + random_.choice([1, 2, 700, 8191, 8192, 8193, 30_000, 200_000])
        pieces.append(body[start:end])
        start = end

    def script(connection: Connection) -> None:
        connection.read_request()
        if framing == "chunked":
            connection.send(OK + CHUNKED + b"\r\n" + b"".join(map(chunk, pieces)) + LAST_CHUNK)
        else:
            length = b"Content-Length: %d\r\n" % len(body) if framing == "length" else b""
            connection.send(OK + length + b"\r\n")
            for piece in pieces:
                connection.send(piece)
        connection.close()

    serve(script)
    response = client.request(request_)
    assert hashlib.sha256(response.body).digest() == hashlib.sha256(body).digest()
    if framing == "chunked" and request_ is GET:
        assert response.raw == response.raw_head + b"".join(map(chunk, pieces)) + LAST_CHUNK


# C2: framings


@dataclass
class Case:
    """What a backend sends for a request, and everything that the client gets for it."""

    name: str
    sent: bytes
    got: bytes
    request: bytes = GET
    close: bool = False  # the backend closes behind it
    ends: bool = False  # the client's connection ends with it
    reused: bool = True  # the upstream serves the next request


TRAILERS = b"5;x=y\r\nhello\r\n0;z\r\nX-Sum: 1\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LENGTH = b"Content-Length: 5\r\n"

CASES = [
    Case("length", OK + LENGTH + b"\r\nhello", OK + LENGTH + ID + b"\r\nhello"),
    Case("length 0", OK + b"Content-Length: 0\r\n\r\n", OK + b"Content-Length: 0\r\n" + ID + b"\r\n"),
    Case("chunked", OK + CHUNKED + b"\r\n" + TRAILERS, OK + CHUNKED + ID + b"\r\n" + TRAILERS),
    Case("chunked, empty", OK + CHUNKED + b"\r\n" + LAST_CHUNK, OK + CHUNKED + ID + b"\r\n" + LAST_CHUNK),
    Case(
        "chunked in capitals",
        OK + b"transfer-encoding: CHUNKED\r\n\r\n" + TRAILERS,
        OK + b"transfer-encoding: CHUNKED\r\n" + ID + b"\r\n" + TRAILERS,
    ),
    Case("until close", OK + b"\r\nhello", OK + CLOSE + ID + b"\r\nhello", close=True, ends=True, reused=False),
    Case(
        "until close, HTTP/1.0",
        b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhello",
        OK + b"Server: x\r\n" + CLOSE + ID + b"\r\nhello",
        close=True,
        ends=True,
        reused=False,
    ),
    Case("until close, empty", OK + b"\r\n", OK + CLOSE + ID + b"\r\n", close=True, ends=True, reused=False),
    Case(
        "length from HTTP/1.0",
        b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\nhello",
        OK + LENGTH + ID + b"\r\nhello",
        close=True,
        reused=False,
    ),
    Case("204", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n" + ID + b"\r\n"),
    Case(
        "130 fields",
        OK + b"X: 1\r\n" * 129 + LENGTH + b"\r\nhello",
        OK + b"X: 1\r\n" * 129 + LENGTH + ID + b"\r\nhello",
    ),
    Case(
        "512 fields",
        OK + b"X: 1\r\n" * 511 + LENGTH + b"\r\nhello",
        OK + b"X: 1\r\n" * 511 + LENGTH + ID + b"\r\nhello",
    ),
    Case(
        "304",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n" + ID + b"\r\n",
    ),
    Case(
        "304 with a length",
        b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n",
        b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + ID + b"\r\n",
    ),
    Case("HEAD with a length", OK + LENGTH + b"\r\n", OK + LENGTH + ID + b"\r\n", request=HEAD),
    Case("HEAD with chunked", OK + CHUNKED + b"\r\n", OK + CHUNKED + ID + b"\r\n", request=HEAD),
    Case("HEAD without framing", OK + b"\r\n", OK + ID + b"\r\n", request=HEAD),
    Case("100", CONTINUE + OK + LENGTH + b"\r\nhello", CONTINUE + OK + LENGTH + ID + b"\r\nhello"),
    Case("103", HINTS + OK + LENGTH + b"\r\nhello", HINTS + OK + LENGTH + ID + b"\r\nhello"),
    Case(
        "100 and two 103",
        CONTINUE + HINTS * 2 + OK + LENGTH + b"\r\nhello",
        CONTINUE + HINTS * 2 + OK + LENGTH + ID + b"\r\nhello",
    ),
    Case(
        "1xx to a 1.0 client",
        HINTS + OK + LENGTH + b"\r\nhello",
        OK + LENGTH + CLOSE + ID + b"\r\nhello",
        request=OLD,
        ends=True,
    ),
    Case(
        "chunked to a 1.0 client",
        OK + CHUNKED + b"\r\n" + TRAILERS,
        OK + CLOSE + ID + b"\r\nhello",
        request=OLD,
        ends=True,
    ),
    Case(
        "chunked to a 1.0 client with keep-alive",
        OK + CHUNKED + b"X: y\r\n\r\n" + chunk(b"he") + chunk(b"llo") + LAST_CHUNK,
        OK + b"X: y\r\n" + CLOSE + ID + b"\r\nhello",
        request=OLD_KEEP,
        ends=True,
    ),
    Case(
        "length to a 1.0 client with keep-alive",
        OK + LENGTH + b"\r\nhello",
        OK + LENGTH + b"Connection: keep-alive\r\n" + ID + b"\r\nhello",
        request=OLD_KEEP,
    ),
    Case("no reason", b"HTTP/1.1 200 \r\n" + LENGTH + b"\r\nhello", b"HTTP/1.1 200 \r\n" + LENGTH + ID + b"\r\nhello"),
    Case(
        "odd reason",
        b"HTTP/1.1 299 \xe9 :-)\r\n" + LENGTH + b"\r\nhello",
        b"HTTP/1.1 299 \xe9 :-)\r\n" + LENGTH + ID + b"\r\nhello",
    ),
    Case(
        "error status",
        b"HTTP/1.1 500 Oh\r\n" + LENGTH + b"\r\nhello",
        b"HTTP/1.1 500 Oh\r\n" + LENGTH + ID + b"\r\nhello",
    ),
    Case(
        "429 is not retried",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\n" + LENGTH + b"\r\nhello",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\n" + LENGTH + ID + b"\r\nhello",
    ),
]


@pytest.mark.parametrize("cut", ["whole", "bytes"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_c2_every_framing(proxy, backend, serve, case, cut):
    before = proxy.outcome("ok")

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            for piece in [case.sent] if cut == "whole" else [bytes([byte]) for byte in case.sent]:
                connection.send(piece)
            if case.close:
                connection.close()
                return

    serve(script)
    for turn in (1, 2):
        with Client(proxy) as client:
            client.send(case.request)
            assert client.read(len(case.got)) == case.got
            if case.ends:
                assert client.read_eof() == b""
            else:
                assert client.silent(0.01)
        assert len(backend.connections) == (1 if case.reused else turn)
    proxy.wait_metric("llmpipe_exchanges_total", before + 2, outcome="ok")


@pytest.mark.parametrize("request_", [GET, HEAD], ids=["GET", "HEAD"])
@pytest.mark.parametrize("when", ["with the head", "behind it", "never"])
@pytest.mark.parametrize(
    ("framing", "body"),
    [(b"Content-Length: 4\r\n", b"null"), (CHUNKED, b"4\r\nnull\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
def test_c2_a_204_that_announces_a_body_is_one_without(proxy, backend, serve, framing, body, when, request_):
    failures = proxy.metric("llmpipe_failures_total", reason="204 with a body")

    def script(connection: Connection) -> None:
        connection.read_request()
        head = b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n" + framing + b"X-B: 2\r\n\r\n"
        connection.send(head + (body if when == "with the head" else b""))
        if when == "behind it":
            with contextlib.suppress(ConnectionError):
                connection.send(body)
        connection.wait_eof()

    serve(script)
    path = b"/%d" % time.monotonic_ns()
    with Client(proxy) as client:
        for turn in (1, 2):
            client.send(request_.replace(b"/ ", path + b" ", 1))
            assert client.read_head() == b"HTTP/1.1 204 No Content\r\nX-A: 1\r\nX-B: 2\r\n" + ID + b"\r\n"
            assert client.silent(0.01)
            backend.wait_connections(turn)
            wait_until(lambda: backend.connections[-1].script_ended, what="the upstream closed")
        assert len(backend.connections) == 2
    proxy.wait_metric("llmpipe_failures_total", failures + 2, reason="204 with a body")
    lines = proxy.access(2, path=path.decode())
    assert [(line["outcome"], line["reason"]) for line in lines] == [("ok", "204 with a body")] * 2


def head_of(length: int) -> bytes:
    """The head of a response with a body of five bytes, of this length."""
    rest = OK + b"X: \r\n" + LENGTH + b"\r\n"
    return OK + b"X: " + b"x" * (length - len(rest)) + b"\r\n" + LENGTH + b"\r\n"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (head_of(65536), None),
        (head_of(65537), "head over the limit"),
        (OK + b"X: " + b"x" * 70_000, "head over the limit"),
        (OK + b"X: 1\r\n" * 511 + LENGTH + b"\r\n", None),
        (OK + b"X: 1\r\n" * 512 + LENGTH + b"\r\n", "more fields than the limit"),
    ],
    ids=["64 KB", "over 64 KB", "without an end", "512 fields", "513 fields"],
)
@pytest.mark.parametrize("cut", ["whole", "pieces"])
def test_a3_limits_of_a_response_head(proxy, serve, client, head, reason, cut):
    def script(connection: Connection) -> None:
        connection.read_request()
        step = 1000 if cut == "pieces" else 1 << 20
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(head), step):
                connection.send(head[start : start + step])
            connection.send(b"hello")
            connection.wait_eof()

    serve(script)
    path = b"/%d" % time.monotonic_ns()
    response = client.request(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (response.status, response.body == b"hello") == ((200, True) if reason is None else (502, False))
    assert reason is not None or response.fields[:-1] == split_head(head)[1]
    assert proxy.access(path=path.decode())[0]["reason"] == reason


def test_a3_limits_of_a_response_head_can_be_set(proxy_to):
    head = [b""]

    def script(connection: Connection) -> None:
        with contextlib.suppress(ConnectionError):  # what is refused is reset
            while True:
                connection.read_request()
                connection.send(head[0] + b"hello")

    proxy = proxy_to(
        script, options=["--max-response-head", "40000", "--max-response-fields", "600", "--max-head", "1000"]
    )
    for sent, status in (
        (head_of(40000), 200),
        (head_of(40001), 502),
        (OK + b"X: 1\r\n" * 599 + LENGTH + b"\r\n", 200),
        (OK + b"X: 1\r\n" * 600 + LENGTH + b"\r\n", 502),
    ):
        head[0] = sent
        with Client(proxy) as client:
            assert client.request(GET).status == status


def test_c2_a_1xx_is_forwarded_when_it_comes(steps, client):
    client.send(GET)
    for interim in (CONTINUE, HINTS):
        steps.send(interim)
        assert client.recv() == interim
    steps.send(OK + LENGTH + b"\r\nhello")
    assert client.read_response().body == b"hello"


def test_c2_the_end_of_chunked_is_the_empty_line_behind_the_trailers(steps, client):
    client.send(GET)
    steps.send(OK + CHUNKED + b"\r\n")
    client.read_head()
    for piece in (b"2\r\nok\r\n0\r\n", b"X: 1\r\n", b"\r\n"):
        steps.send(piece)
        assert client.recv() == piece
    assert client.silent(0.02)


@pytest.mark.parametrize("name", cases.BAD_RESPONSES)
def test_c2_a_broken_head_is_a_backend_error(proxy, backend, serve, client, name):
    before = proxy.outcome("upstream_error")

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(cases.BAD_RESPONSES[name])
        if name.startswith("closed") or name == "no head at all":
            connection.half_close()
        connection.wait_eof()

    serve(script)
    response = client.request(GET)
    assert response.status == 502
    assert response.error()["code"] == "upstream_error"
    assert response.error()["type"] == "server_error"
    assert response.values(b"content-length") == [b"%d" % len(response.body)]
    assert response.values(b"connection") == []  # the client did nothing wrong
    assert b"hello" not in response.raw
    proxy.wait_metric("llmpipe_exchanges_total", before + 1, outcome="upstream_error")
    wait_until(lambda: backend.connections[0].script_ended, what="the upstream closed")
    serve(answer_all)
    assert client.request(GET).body == b"ok"


@pytest.mark.parametrize("name", cases.BAD_RESPONSE_BODIES)
@pytest.mark.parametrize("cut", ["whole", "later", "bytes"])
def test_c2_a_bad_chunk_truncates_the_answer_without_a_last_chunk(proxy, backend, serve, client, name, cut):
    before = proxy.outcome("upstream_abort")
    good = chunk(b"good")
    sent = good + cases.BAD_RESPONSE_BODIES[name]

    def script(connection: Connection) -> None:
        connection.read_request()
        if cut == "whole":
            connection.send(OK + CHUNKED + b"\r\n" + sent)
        else:
            connection.send(OK + CHUNKED + b"\r\n")
            with contextlib.suppress(ConnectionError):
                for piece in [sent] if cut == "later" else [bytes([byte]) for byte in sent]:
                    connection.send(piece)
        connection.wait_eof()

    serve(script)
    client.send(GET)
    assert client.read_head().startswith(OK)
    got = client.read_eof()
    assert got.startswith(good)
    assert sent.startswith(got)  # nothing is made up
    assert not got.endswith(b"\r\n\r\n")
    assert got.count(b"evil") == 0 or name == "longer than said"
    proxy.wait_metric("llmpipe_exchanges_total", before + 1, outcome="upstream_abort")
    wait_until(lambda: backend.connections[0].script_ended, what="the upstream closed")


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ("chunked", OK + CHUNKED + b"\r\n" + chunk(b"good")),
        ("chunked, inside a chunk", OK + CHUNKED + b"\r\n4\r\ngo"),
        ("chunked, before the end", OK + CHUNKED + b"\r\n" + chunk(b"good") + b"0\r\n"),
        ("length", OK + b"Content-Length: 10\r\n\r\ngood"),
    ],
)
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_c2_an_answer_that_breaks_off_is_never_ended_cleanly(proxy, serve, client, framing, sent, how):
    before = proxy.outcome("upstream_abort")
    body = sent.partition(b"\r\n\r\n")[2]
    steps = Steps()
    serve(sends(sent, close=True) if how == "fin" else steps)
    client.send(GET)
    if how == "rst":
        steps.send(sent)
    client.read_head()
    assert client.read(len(body)) == body
    if how == "rst":
        steps.reset()
    assert client.read_eof() == b""
    proxy.wait_metric("llmpipe_exchanges_total", before + 1, outcome="upstream_abort")


@pytest.mark.parametrize(
    ("request_", "sent"),
    [(GET, OK + b"\r\ngood"), (OLD, OK + CHUNKED + b"\r\n" + chunk(b"good"))],
    ids=["until close", "de-chunked"],
)
def test_c2_an_answer_until_close_that_breaks_off_is_reset(proxy, steps, client, request_, sent):
    before = proxy.outcome("upstream_abort")
    client.send(request_)
    steps.send(sent)
    client.read_head()
    assert client.read(4) == b"good"
    steps.reset()
    with pytest.raises(ConnectionResetError):
        client.read_eof()
    proxy.wait_metric("llmpipe_exchanges_total", before + 1, outcome="upstream_abort")


# C3: fields


def test_c3_the_whole_head_byte_by_byte(serve, client):
    kept = [
        b"sErVeR:uvicorn",
        b"X-Spaces:   two  inside  \t",
        b"x-empty:",
        b"Set-Cookie: a=b",
        b"Content-Type: text/event-stream; charset=utf-8",
        b"set-cookie: c=d",
        b"X-Obs-Text: \xe9\xff",
        b"content-LENGTH: 2",
        b"Via: 1.1 other",
        b"Date: Mon, 23 Nov 2026 07:00:00 GMT",
        b"Cache-Control: no-cache",
        b"X-Accel-Buffering: no",
    ]
    serve(sends(b"\r\n".join([b"HTTP/1.1 200 All  right", *kept, b"", b"ok"])))
    client.send(GET)
    expected = b"\r\n".join([b"HTTP/1.1 200 All  right", *kept, b"X-Request-ID: id", b"", b"ok"])
    assert client.read(len(expected)) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: keep-alive",
        b"Connection: close",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: close",
        b"Proxy-Authenticate: Basic",
        b"TE: trailers",
        b"Upgrade: h2c",
    ],
)
def test_c3_hop_by_hop_fields_are_removed(serve, client, line):
    serve(sends(OK + line + b"\r\nX-After: 1\r\n" + LENGTH + b"\r\nhello"))
    response = client.request(GET)
    assert response.raw_head == OK + b"X-After: 1\r\n" + LENGTH + ID + b"\r\n"


def test_c3_fields_that_connection_names_are_removed(serve, client):
    fields = b"X-One: 1\r\nConnection: x-one, X-TWO\r\nx-two: 2\r\nX-Three: 3\r\nX-One-More: 4\r\n"
    serve(sends(OK + fields + LENGTH + b"\r\nhello"))
    assert client.request(GET).raw_head == OK + b"X-Three: 3\r\nX-One-More: 4\r\n" + LENGTH + ID + b"\r\n"


def test_c3_connection_close_where_the_client_asked_for_it(serve, client):
    serve(sends(OK + LENGTH + b"\r\nhello"))
    client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert client.read_response().raw_head == OK + LENGTH + CLOSE + ID + b"\r\n"
    assert client.read_eof() == b""


def test_c3_connection_close_where_the_answer_came_before_the_body(serve, client):
    def hasty(connection: Connection) -> None:
        connection.read_head()
        respond(connection)

    serve(hasty)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
    assert client.read_response().values(b"connection") == [b"close"]
    assert client.read_eof() == b""


@pytest.mark.parametrize("name", [b"X-Request-ID", b"x-request-id"])
def test_c3_a_request_id_of_the_backend_is_left_alone(serve, client, name):
    serve(sends(OK + name + b": theirs\r\n" + LENGTH + b"\r\nhello"))
    assert client.request(GET).raw_head == OK + name + b": theirs\r\n" + LENGTH + b"\r\n"


# C4: bytes behind the end

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
WITH_MORE = {
    "length": (GET, OK + LENGTH + b"\r\nhello"),
    "length 0": (GET, OK + b"Content-Length: 0\r\n\r\n"),
    "chunked": (GET, OK + CHUNKED + b"\r\n" + chunk(b"hello") + LAST_CHUNK),
    "204": (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204 with a length of nothing": (GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    "304": (GET, b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "HEAD": (HEAD, OK + LENGTH + b"\r\n"),
}


@pytest.mark.parametrize("when", ["in one piece", "right behind", "a moment later"])
@pytest.mark.parametrize("name", WITH_MORE)
def test_c4_bytes_behind_a_response_never_reach_another_client(proxy, backend, serve, name, when):
    request, answer = WITH_MORE[name]

    def script(connection: Connection) -> None:
        if connection.index:
            answer_all(connection)
        connection.read_request()
        if when == "in one piece":
            connection.send(answer + EVIL)
        else:
            connection.send(answer)
            time.sleep(0.02 if when == "a moment later" else 0)
            connection.send(EVIL)
        connection.wait_eof()

    serve(script)
    expected = answer.replace(b"\r\n\r\n", b"\r\n" + ID + b"\r\n", 1)
    with Client(proxy) as first, Client(proxy) as second:
        first.send(request)
        assert first.read(len(expected)) == expected
        wait_until(lambda: backend.connections[0].script_ended, what="the upstream closed")
        assert second.request(GET).body == b"ok"
        assert first.silent(0.01)
        assert first.request(GET).body == b"ok"
    assert len(backend.connections) == 2


def test_c4_bytes_that_wait_in_the_socket_behind_a_response_that_filled_a_read(proxy, backend, serve, client):
    # The response ends exactly where a read of 8 KB ends, so that the proxy has not seen what stands behind it.
    head = OK + b"Content-Length: 8000\r\nX: "
    head += b"x" * (192 - len(head) - 4) + b"\r\n\r\n"
    answer = head + b"y" * 8000
    assert len(answer) == 8192

    def script(connection: Connection) -> None:
        if connection.index:
            answer_all(connection)
        connection.read_request()
        connection.send(answer + EVIL)
        connection.wait_eof()

    serve(script)
    client.send(GET + GET)
    assert client.read_response().body == b"y" * 8000
    assert client.read_response().body == b"ok"
    wait_until(lambda: backend.connections[0].script_ended, what="the upstream closed")


# C5: the end is the framing's end

DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"usage": {"total_tokens": 7}}\n\n'


def test_c5_bytes_behind_done_are_forwarded(steps, client):
    client.send(GET)
    steps.send(sse_head())
    client.read_head()
    for part in (chunk(b"data: 1\n\n"), chunk(DONE), chunk(USAGE), LAST_CHUNK):
        steps.send(part)
        assert client.recv() == part


def test_c5_done_does_not_end_a_response(steps, client):
    client.send(GET)
    steps.send(sse_head() + chunk(DONE))
    client.read_head()
    assert client.recv() == chunk(DONE)
    assert client.silent(0.1)
    steps.send(chunk(USAGE) + LAST_CHUNK)
    assert client.recv() == chunk(USAGE) + LAST_CHUNK


@pytest.mark.parametrize("framing", ["chunked", "length", "until close"])
def test_c5_a_missing_done_does_not_hang_the_client(proxy, serve, client, framing):
    event = b"data: 1\n\n"
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    answers = {
        "chunked": start + CHUNKED + b"\r\n" + chunk(event) + LAST_CHUNK,
        "length": start + b"Content-Length: 9\r\n\r\n" + event,
        "until close": start + b"\r\n" + event,
    }
    serve(sends(answers[framing], close=framing == "until close"))
    assert client.request(GET).body == event
    proxy.wait_metric("llmpipe_streaming_active", 0)
    if framing != "until close":
        assert client.request(GET).body == event  # the connection is free at once


@pytest.mark.parametrize("cut", [1, 5, 9, 13])
def test_c5_a_done_that_is_split_is_only_bytes(serve, client, cut):
    framed = chunk(DONE)
    serve(sends(sse_head(), framed[:cut], framed[cut:], chunk(USAGE), LAST_CHUNK))
    response = client.request(GET)
    assert response.body == DONE + USAGE
    assert client.silent(0.01)


def test_streams_at_the_same_time_keep_their_bytes_apart():
    def script(connection: Connection) -> None:
        path = connection.read_request().line.split()[1]
        connection.send(sse_head())
        for index in range(20):
            connection.send(chunk(b"data: %s %d\n\n" % (path, index) * 20))
            time.sleep(0.005)
        connection.send(LAST_CHUNK)

    with Backend(script) as backend, Proxy(backend.url) as proxy:
        clients = [Client(proxy) for _ in range(50)]
        for index, client in enumerate(clients):
            client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % index)
        for index, client in enumerate(clients):
            body = client.read_response().body
            assert body == b"".join(b"data: /%d %d\n\n" % (index, n) * 20 for n in range(20))
            client.close()
        proxy.settled()
        assert proxy.outcome("ok") == 50
        assert proxy.metric("llmpipe_buffers_held") == 0
