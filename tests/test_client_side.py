"""Rules A: what comes in from a client. Each test sends raw bytes and looks at both ends of the proxy."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
from harness import LAST_CHUNK, Client, Connection, Request, Response, chunk, respond, wait_until


class Recorder:
    """A script that answers each whole request with its method, target and body, and counts those that broke off."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.broken_off = 0

    def __call__(self, connection: Connection) -> None:
        while True:
            head = b""
            try:
                head = connection.read_head()
                connection.buffer[:0] = head
                request = connection.read_request()
            except (EOFError, ConnectionError):
                self.broken_off += bool(head or connection.buffer)
                return
            self.requests.append(request)
            respond(connection, b" ".join([*request.line.split()[:2], request.body]))


@pytest.fixture
def seen(serve) -> Recorder:
    recorder = Recorder()
    serve(recorder)
    return recorder


def check_error(response: Response, status: int, *, closes: bool = True) -> dict:
    """The response is one of the proxy's own error answers (rule E3)."""
    assert response.status == status
    assert response.values(b"content-type") == [b"application/json"]
    assert response.values(b"content-length") == [b"%d" % len(response.body)]
    assert re.fullmatch(rb"[0-9a-f]{32}", *response.values(b"x-request-id"))
    assert response.values(b"connection") == ([b"close"] if closes else [])
    assert set(json.loads(response.body)) == {"error"}
    error = response.error()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == (
        "invalid_request_error" if status < 500 or error["code"] == "bad_request" else "server_error"
    )
    assert error["param"] is None
    return error


HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# A1: keep-alive, pipelining, methods


def test_a1_keep_alive_takes_further_requests_on_the_same_connection(proxy, seen, client):
    accepted = proxy.metric("llmpipe_accepted_total")
    for path in (b"/1", b"/2", b"/3"):
        assert client.request(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n").body == b"GET " + path + b" "
    assert [request.line for request in seen.requests] == [b"GET /%d HTTP/1.1" % i for i in (1, 2, 3)]
    assert proxy.metric("llmpipe_accepted_total") - accepted <= 1


def test_a1_connection_close_is_obeyed(seen, client):
    response = client.request(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert response.status == 200
    assert response.values(b"connection") == [b"close"]
    assert client.read_eof() == b""


def test_a1_pipelined_requests_are_answered_in_order_one_at_a_time(serve, backend, client):
    alone = []

    def slow(connection: Connection) -> None:
        while True:
            request = connection.read_request()
            alone.append(connection.silent(0.01))  # the next one is not sent before this one is answered
            respond(connection, request.line.split()[1])

    serve(slow)
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(10)))
    assert [client.read_response().body for _ in range(10)] == [b"/%d" % i for i in range(10)]
    assert alone == [True] * 10
    assert len(backend.connections) == 1


def test_a1_pipelined_requests_with_bodies_keep_apart(seen, client):
    client.send(
        b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert [client.read_response().body for _ in range(3)] == [b"POST /1 abc", b"POST /2 def", b"GET /3 "]


def test_a1_pipelined_requests_longer_than_a_buffer(seen, client):
    requests = [
        b"POST /%d HTTP/1.1\r\nHost: a\r\nX: %s\r\nContent-Length: 9000\r\n\r\n" % (i, b"x" * 9000) for i in range(5)
    ]
    bodies = [bytes([65 + i]) * 9000 for i in range(5)]
    client.send(b"".join(request + body for request, body in zip(requests, bodies, strict=True)))
    for i, body in enumerate(bodies):
        assert client.read_response().body == b"POST /%d " % i + body


def test_a1_http_1_0_closes_unless_told_otherwise(seen, client):
    response = client.request(b"GET /old HTTP/1.0\r\n\r\n")
    assert response.raw_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.values(b"connection") == [b"close"]
    assert client.read_eof() == b""
    assert seen.requests[0].line == b"GET /old HTTP/1.1"


def test_a1_http_1_0_with_keep_alive_stays_open(seen, client):
    for _ in range(2):
        response = client.request(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert response.values(b"connection") == [b"keep-alive"]
    assert len(seen.requests) == 2


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "M-SEARCH", "get", "!#$%&'*+.^_`|~"]
)
@pytest.mark.parametrize("body", [b"", b"with a body"], ids=["no-body", "body"])
def test_a1_any_method_is_forwarded(seen, client, method, body):
    client.send(b"%s /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (method.encode(), len(body), body))
    assert client.read_response().body == method.encode() + b" /x " + body


def test_a1_connect_is_refused(seen, client):
    check_error(client.request(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), 501)
    assert client.read_eof() == b""
    assert seen.requests == []


# A2: heads

BROKEN = {
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a field": HEAD + b"X: 1\nY: 2\r\n\r\n",
    "bare LF as the empty line": HEAD + b"X: 1\r\n\n",
    "bare CR in a value": HEAD + b"X: 1\rY: 2\r\n\r\n",
    "bare CR in the request line": b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
    "CR CR LF": HEAD + b"X: 1\r\r\n\r\n",
    "NUL in a value": HEAD + b"X: 1\x002\r\n\r\n",
    "NUL in a name": HEAD + b"X\x00: 1\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "control character in a value": HEAD + b"X: \x01\r\n\r\n",
    "escape in a value": HEAD + b"X: \x1b[0m\r\n\r\n",
    "DEL in a value": HEAD + b"X: \x7f\r\n\r\n",
    "vertical tab before a value": HEAD + b"X:\x0b1\r\n\r\n",
    "space before the colon": HEAD + b"X : 1\r\n\r\n",
    "tab before the colon": HEAD + b"X\t: 1\r\n\r\n",
    "obs-fold with a space": HEAD + b"X: 1\r\n 2\r\n\r\n",
    "obs-fold with a tab": HEAD + b"X: 1\r\n\t2\r\n\r\n",
    "obs-fold without a value": HEAD + b"X: 1\r\n \r\n\r\n",
    "white space before the first field": b"GET / HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n",
    "empty name": HEAD + b": 1\r\n\r\n",
    "no colon": HEAD + b"X\r\n\r\n",
    "parentheses in a name": HEAD + b"X(y): 1\r\n\r\n",
    "non-ASCII name": HEAD + b"X\xe9: 1\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\nX: 1\r\n\r\n",
    "two Hosts": HEAD + b"Host: a\r\n\r\n",
    "Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with user information": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "Host as a list": b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "two spaces before the target": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces before the version": b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab in the request line": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "space before the method": b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "space at the end of the request line": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\nHost: a\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "version with a third digit": b"GET / HTTP/1.11\r\nHost: a\r\n\r\n",
    "version of one digit": b"GET / HTTP/1\r\nHost: a\r\n\r\n",
    "version of another protocol": b"GET / RTSP/1.0\r\nHost: a\r\n\r\n",
    "non-ASCII target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment in the target": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "relative target": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority as the target": b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk with GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form without authority": b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form with user information": b"GET http://u@b/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form of another scheme": b"GET ftp://b/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "bad method": b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines first": b"\r\n\r\n" + HEAD + b"\r\n",
    "bare LF first": b"\n" + HEAD + b"\r\n",
    "Connection names Host": HEAD + b"Connection: host\r\n\r\n",
    "Connection names Content-Length": HEAD + b"Connection: Content-Length\r\nContent-Length: 1\r\n\r\nx",
    "Connection names Transfer-Encoding": HEAD + b"Connection: close, transfer-encoding\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

BROKEN_FRAMING = {
    "Content-Length twice": b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "Content-Length twice, different": b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "Content-Length as a list": b"Content-Length: 1, 1\r\n\r\nx",
    "Content-Length with plus": b"Content-Length: +1\r\n\r\nx",
    "Content-Length with minus": b"Content-Length: -1\r\n\r\n",
    "hexadecimal Content-Length": b"Content-Length: 0x1\r\n\r\nx",
    "Content-Length with an underscore": b"Content-Length: 1_0\r\n\r\n0123456789",
    "Content-Length with a point": b"Content-Length: 1.0\r\n\r\nx",
    "empty Content-Length": b"Content-Length:\r\n\r\n",
    "Content-Length of 19 digits": b"Content-Length: 0000000000000000001\r\n\r\nx",
    "Content-Length beyond 64 bits": b"Content-Length: 18446744073709551617\r\n\r\nx",
    "Content-Length with a space inside": b"Content-Length: 1 1\r\n\r\nx",
    "Content-Length with other digits": b"Content-Length: \xd9\xa1\r\n\r\nx",
    "CL.TE": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "TE.CL with zero": b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.TE with an unknown one": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding as a list": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding chunked twice in a list": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding identity": b"Transfer-Encoding: identity\r\n\r\n",
    "Transfer-Encoding empty": b"Transfer-Encoding:\r\n\r\n",
    "Transfer-Encoding in capitals": b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding with a comma": b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding with a parameter": b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding quoted": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "Transfer-Encoding with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding behind a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding hidden by a bare CR": b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
BROKEN_HEADS = {
    **BROKEN,
    **{name: HEAD + rest for name, rest in BROKEN_FRAMING.items()},
    "Transfer-Encoding in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
def test_a2_a4_a_broken_head_is_answered_400_and_reaches_no_backend(proxy, backend, seen, client, name):
    before = proxy.outcome("bad_request"), proxy.metric("llmpipe_backend_exchanges_total", backend=backend.url)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" if BROKEN_HEADS[name].endswith(b"\r\n\r\n") else b""
    error = check_error(client.request(BROKEN_HEADS[name] + smuggled), 400)
    assert error["code"] == "bad_request"
    assert client.read_eof() == b""
    proxy.wait_metric("llmpipe_exchanges_total", before[0] + 1, outcome="bad_request")
    assert proxy.metric("llmpipe_backend_exchanges_total", backend=backend.url) == before[1]
    assert seen.requests == []
    assert backend.connections == []


def test_a2_a_broken_head_behind_a_good_request_does_not_touch_its_answer(seen, client):
    client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost : a\r\n\r\n")
    assert client.read_response().body == b"GET /1 "
    check_error(client.read_response(), 400)
    assert client.read_eof() == b""
    assert len(seen.requests) == 1


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a2_a_request_may_come_in_pieces(seen, client, step):
    request = b"\r\nPOST /x?y=z HTTP/1.1\r\nHost: a\r\nX-A: \tb c \r\nContent-Length: 5\r\n\r\nhello"
    for start in range(0, len(request), step):
        client.send(request[start : start + step])
        time.sleep(0.001)
    assert client.read_response().body == b"POST /x?y=z hello"
    assert seen.requests[0].values(b"x-a") == [b"b c"]


@pytest.mark.parametrize(
    "target", [b"/", b"/a/b?c=d&e=%20", b"//double", b"/a/../b", b"/?", b"/!$&'()*+,;=:@-._~[]{}|\\^`\"<>"]
)
def test_a2_origin_form_is_forwarded_as_it_is(seen, client, target):
    assert client.request(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n").body == b"GET " + target + b" "


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://other:81/a?b", b"/a?b", b"other:81"),
        (b"HTTP://other", b"/", b"other"),
        (b"http://other?q", b"/?q", b"other"),
        (b"https://other/x", b"/x", b"other"),
        (b"http://[::1]:80/x", b"/x", b"[::1]:80"),
    ],
)
def test_a2_absolute_form_wins_over_host(seen, client, target, path, host):
    response = client.request(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert response.body == b"GET " + path + b" "
    assert seen.requests[0].values(b"host") == [host]
    assert seen.requests[0].values(b"x-forwarded-host") == [host]


def test_a2_absolute_form_does_not_excuse_a_missing_host(seen, client):
    check_error(client.request(b"GET http://other/ HTTP/1.1\r\n\r\n"), 400)


@pytest.mark.parametrize("target", [b"*", b"http://a"])
def test_a2_options_asterisk(seen, client, target):
    assert client.request(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n").body == b"OPTIONS * "


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/1.2", b"HTTP/0.9", b"HTTP/3.0"])
def test_a2_other_versions_are_answered_505(seen, client, version):
    check_error(client.request(b"GET / " + version + b"\r\nHost: a\r\n\r\n"), 505)
    assert seen.requests == []


# A3: limits


def head_of(length: int) -> bytes:
    """A request head of this many bytes."""
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    return start + b"x" * (length - len(start) - 4) + b"\r\n\r\n"


def line_of(length: int) -> bytes:
    """A request whose first line has this many bytes, line end not counted."""
    return b"GET /" + b"x" * (length - 14) + b" HTTP/1.1\r\nHost: a\r\n\r\n"


def fields_of(count: int) -> bytes:
    """A request with this many fields."""
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * (count - 1) + b"\r\n"


@pytest.mark.parametrize(
    ("allowed", "refused", "status"),
    [
        (line_of(8192), line_of(8193), 414),
        (line_of(8192), b"GET /" + b"x" * 8300, 414),
        (head_of(32768), head_of(32769), 431),
        (head_of(32768), head_of(40000)[:33000], 431),
        (fields_of(128), fields_of(129), 431),
    ],
    ids=["line", "line without an end", "head", "head without an end", "fields"],
)
def test_a3_default_limits_of_a_head(proxy, seen, allowed, refused, status):
    with Client(proxy) as client:
        assert client.request(allowed).status == 200
        check_error(client.request(refused), status)
        assert client.read_eof() == b""
    assert len(seen.requests) == 1


def test_a3_default_limit_of_a_body(seen, client):
    check_error(client.request(HEAD + b"Content-Length: %d\r\n\r\n" % (64 * 1024 * 1024 + 1)), 413)
    assert client.read_eof() == b""


def test_a3_limits_can_be_set(proxy_to):
    seen = Recorder()
    options = ["--max-request-line", "100", "--max-head", "1000", "--max-fields", "10", "--max-body", "50"]
    proxy = proxy_to(seen, options=options)

    def status(request: bytes) -> int:
        with Client(proxy) as client:
            return client.request(request).status

    body = HEAD + b"Content-Length: %d\r\n\r\n"
    assert (status(line_of(100)), status(line_of(101))) == (200, 414)
    assert (status(head_of(1000)), status(head_of(1001))) == (200, 431)
    assert (status(fields_of(10)), status(fields_of(11))) == (200, 431)
    assert (status(body % 50 + b"x" * 50), status(body % 51 + b"x" * 51)) == (200, 413)
    assert status(CHUNKED + chunk(b"x" * 25) * 2 + LAST_CHUNK) == 200
    assert status(CHUNKED + chunk(b"x" * 25) * 2 + chunk(b"x") + LAST_CHUNK) == 413
    assert len(seen.requests) == 5
    assert proxy.outcome("bad_request") == 5


def test_a3_a_chunked_body_is_cut_off_at_its_limit_while_it_is_forwarded(proxy_to):
    seen = Recorder()
    proxy = proxy_to(seen, options=["--max-body", "50"])
    with Client(proxy) as client:
        client.send(CHUNKED + chunk(b"x" * 40))
        proxy.wait_metric("llmpipe_upstreams", 1)
        check_error(client.request(chunk(b"x" * 11) + LAST_CHUNK), 413)
        assert client.read_eof() == b""
    wait_until(lambda: seen.broken_off == 1, what="the backend's connection closed")
    assert seen.requests == []


def test_a3_half_a_head_is_answered_408(proxy_to):
    proxy = proxy_to(Recorder(), options=["--head-timeout", "0.3s"])
    with Client(proxy) as idle, Client(proxy) as client:
        start = time.monotonic()
        done = threading.Event()

        def dribble() -> None:  # further bytes do not put it off
            while not done.wait(0.05):
                client.send(b"x")

        client.send(b"GET /")
        dribbler = threading.Thread(target=dribble, daemon=True)
        dribbler.start()
        response = client.read_response()
        done.set()
        dribbler.join()
        assert check_error(response, 408)["code"] == "timeout_head"
        assert 0.28 < time.monotonic() - start < 5
        assert client.read_eof() == b""
        # Who has not begun is not late.
        assert idle.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    assert proxy.outcome("timeout_head") == 1


def test_a3_a_pipelined_request_behind_a_long_head(seen, client):
    client.send(head_of(20_000) + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_response().body == b"GET / "
    assert client.read_response().body == b"GET /2 "


# A4: framing of the body (the heads are above)

GOOD_CHUNKS = {
    "one": (chunk(b"hello") + LAST_CHUNK, b"hello"),
    "capital digits": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "16 digits": (b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    "several zeros last": (b"5\r\nhello\r\n0000\r\n\r\n", b"hello"),
    "extension": (b'5;name="v a l";x\r\nhello\r\n0;last\r\n\r\n', b"hello"),
    "longest extension": (b"5;" + b"x" * 256 + b"\r\nhello\r\n0\r\n\r\n", b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nX-Checksum: abc\r\nY: 1\r\n\r\n", b"hello"),
    "line ends as data": (b"8\r\n\r\n0\r\n\r\n\r\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r"),
    "nothing": (LAST_CHUNK, b""),
}
BAD_CHUNKS = {
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "extension without a size": b";x\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "tab behind": b"5\t\r\nhello\r\n0\r\n\r\n",
    "space before the extension": b"5 ;x\r\nhello\r\n0\r\n\r\n",
    "17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "17 digits that overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "not a digit": b"5g\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "bare LF behind the last size": b"5\r\nhello\r\n0\n\r\n",
    "bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "longer than said": b"4\r\nhello\r\n0\r\n\r\n",
    "shorter than said": b"6\r\nhello\r\n0\r\n\r\n",
    "control character in an extension": b"5;a\x01\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "extension of 257 bytes": b"5;" + b"x" * 257 + b"\r\nhello\r\n0\r\n\r\n",
    "trailer Content-Length": b"0\r\nContent-Length: 5\r\n\r\n",
    "trailer Transfer-Encoding": b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    "trailer Host": b"0\r\nHost: b\r\n\r\n",
    "trailer Connection": b"0\r\nConnection: close\r\n\r\n",
    "trailer Trailer": b"0\r\nTrailer: x\r\n\r\n",
    "trailer Upgrade": b"0\r\nUpgrade: h2c\r\n\r\n",
    "trailer Expect": b"0\r\nExpect: 100-continue\r\n\r\n",
    "trailer with a space before the colon": b"0\r\nX : 1\r\n\r\n",
    "trailer without a colon": b"0\r\nX\r\n\r\n",
    "folded trailer": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "trailer with a control character": b"0\r\nX: \x02\r\n\r\n",
    "trailer with a bare LF": b"0\r\nX: 1\nY: 2\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * 2000 + b"\r\n",
}


@pytest.mark.parametrize("name", GOOD_CHUNKS)
def test_a4_good_chunks_are_forwarded(seen, client, name):
    framed, body = GOOD_CHUNKS[name]
    assert client.request(CHUNKED + framed).body == b"POST /x " + body
    client.send(CHUNKED)
    for byte in framed:
        client.send(bytes([byte]))
    assert client.read_response().body == b"POST /x " + body


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("when", ["with the head", "later"])
def test_a4_bad_chunks_are_answered_400_and_no_backend_sees_a_whole_request(proxy, backend, seen, client, name, when):
    client.send(CHUNKED)
    if when == "later":
        wait_until(lambda: backend.connections, what="the head at the backend")
    error = check_error(client.request(BAD_CHUNKS[name]), 400)
    assert error["code"] == "bad_request"
    assert client.read_eof() == b""
    backend.catch_up()
    wait_until(lambda: all(connection.script_ended for connection in backend.connections), what="the upstream closed")
    assert seen.requests == []


def test_a4_what_stands_behind_a_content_length_is_the_next_request(seen, client):
    client.send(HEAD + b"Content-Length: 5\r\n\r\nhelloGET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_response().body == b"POST /x hello"
    assert client.read_response().body == b"GET /next "


@pytest.mark.parametrize("length", [b"0", b"00", b"000000000000000005"])
def test_a4_content_length_of_up_to_18_digits(seen, client, length):
    body = b"hello"[: int(length)]
    assert client.request(HEAD + b"Content-Length: " + length + b"\r\n\r\n" + body).body == b"POST /x " + body


# A5: Expect

EXPECT = b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("backends", [1, 2], ids=["streamed", "held for failover"])
def test_a5_expect_100_continue_reaches_the_backend_and_its_100_the_client(proxy_to, backends):
    def patient(connection: Connection) -> None:
        head = connection.read_head()
        assert b"\r\nExpect: 100-continue\r\n" in head
        assert connection.silent(0.05)
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        respond(connection, connection.read(5))

    proxy = proxy_to(*[patient] * backends)
    with Client(proxy) as client:
        assert client.request(EXPECT).raw == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.request(b"hello").body == b"hello"
    assert proxy.access()[0]["status"] == 200


def test_a5_a_client_that_does_not_wait_for_the_100(serve, client):
    def patient(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        respond(connection, connection.read(5))

    serve(patient)
    client.send(EXPECT + b"hello")
    assert [client.read_response().status, client.read_response().status] == [100, 200]


def test_a5_a_final_answer_instead_of_the_100_closes_the_connection(serve, backend, client):
    def refuse(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")

    serve(refuse)
    response = client.request(EXPECT)
    assert (response.status, response.body) == (401, b"no")
    assert response.values(b"connection") == [b"close"]  # nobody knows whether the body will come
    client.send(b"hello")
    assert client.read_eof() == b""
    backend.connections[0].wait_eof()


def test_a5_other_expectations_are_answered_417(seen, client):
    check_error(client.request(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n"), 417)
    assert seen.requests == []


def test_a5_a_1_0_client_cannot_expect(seen, client):
    response = client.request(b"POST /x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx")
    assert response.body == b"POST /x x"
    assert seen.requests[0].values(b"expect") == []


# The proxy's own answers


def test_an_error_answer_to_head_has_no_body_and_keeps_the_connection(client, serve):
    serve(lambda connection: connection.close())
    response = client.request(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")
    assert response.status == 502
    assert int(response.values(b"content-length")[0]) > 0
    check_error(client.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 502, closes=False)


def test_an_error_answer_survives_what_the_client_still_sends(client):
    # A close with unread bytes would be an RST, which destroys the answer before it is read.
    client.send(HEAD + b"Content-Length: 99999999\r\n\r\n")
    for _ in range(30):
        client.send(b"x" * 8192)
        time.sleep(0.002)
    check_error(client.read_response(), 413)


def test_an_error_answer_carries_the_request_id_of_a_good_head(proxy, client, serve):
    serve(lambda connection: connection.close())
    response = client.request(b"GET /id HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine-1\r\n\r\n")
    assert response.status == 502
    assert response.values(b"x-request-id") == [b"mine-1"]
    assert proxy.access(path="/id")[0]["request_id"] == "mine-1"


def test_half_sent_requests_leave_nothing_behind(proxy_to):
    proxy = proxy_to(Recorder(), options=["--upstream-idle-timeout", "0"])
    with Client(proxy) as client:
        assert client.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    proxy.settled()
    before = proxy.descriptors()
    for request in (
        b"GET /",
        HEAD,
        CHUNKED + b"5\r\nhel",
        HEAD + b"Content-Length: 9\r\n\r\nx",
        head_of(20_000)[:15_000],
    ):
        with Client(proxy) as client:
            client.send(request)
            time.sleep(0.02)
    proxy.settled()
    wait_until(lambda: proxy.descriptors() <= before, what="descriptors closed")
    assert proxy.outcome("client_abort") == 5
