"""Rules A: what comes in from a client. Each test sends raw bytes and looks at both ends of the proxy."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time

import cases
import pytest
from harness import ERROR_TYPES, LAST_CHUNK, Client, Connection, Request, Response, chunk, respond, wait_until


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
        "invalid_request_error" if status < 500 or error["code"] == "bad_request" else ERROR_TYPES[status]
    )
    assert error["param"] is None
    return error


HEAD = cases.POST
CHUNKED = cases.POST_CHUNKED

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


@pytest.mark.parametrize("name", cases.BAD_REQUESTS)
def test_a2_a4_a_broken_head_is_answered_400_and_reaches_no_backend(proxy, backend, seen, client, name):
    before = proxy.outcome("bad_request"), proxy.metric("llmpipe_backend_exchanges_total", backend=backend.url)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" if cases.BAD_REQUESTS[name].endswith(b"\r\n\r\n") else b""
    error = check_error(client.request(cases.BAD_REQUESTS[name] + smuggled), 400)
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
    proxy.wait_metric("llmpipe_exchanges_total", 5, outcome="bad_request")


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


@pytest.mark.parametrize(
    ("fields", "begin"),
    [
        (b"Content-Length: 999999999999999999\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n", b"7fffffffffffffff\r\nhello"),
        (b"Content-Length: 5\r\n", b"hello"),
    ],
    ids=["the longest length", "the longest chunk", "a short one"],
)
def test_a3_a_body_limit_of_0_is_none(proxy_to, fields, begin):
    got = []

    def script(connection: Connection) -> None:
        head = connection.read_head()
        got.append((head, connection.read(len(begin))))
        respond(connection)
        connection.wait_eof()

    proxy = proxy_to(script, options=["--max-body", "0"])
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + begin)
        assert client.read_response().status == 200
    assert fields in got[0][0]
    assert got[0][1] == begin


def test_a4_a_chunk_size_is_judged_alike_in_any_pieces(proxy_to):
    proxy = proxy_to(Recorder(), options=["--max-body", "1KB"])
    for size, status in ((b"8000000000000005", 400), (b"7fffffffffffffff", 413), (b"fffffffffg", 400), (b"401", 413)):
        for pieces in ([size + b"\r\nhello"], [bytes([byte]) for byte in size + b"\r\n"]):
            with Client(proxy) as client:
                client.send(CHUNKED)
                for piece in pieces:
                    with contextlib.suppress(ConnectionError):  # it may be answered before it is whole
                        client.send(piece)
                assert client.read_response().status == status, (size, len(pieces))


def test_a3_half_a_head_is_answered_408(proxy_to):
    proxy = proxy_to(Recorder(), options=["--head-timeout", "1.5s"])
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
        assert time.monotonic() - start > 1.49
        assert client.read_eof() == b""
        # Who has not sent a byte is late too, but there is no request to answer.
        assert idle.read_eof() == b""
    assert proxy.outcome("timeout_head") == 1


def test_a3_a_pipelined_request_behind_a_long_head(seen, client):
    client.send(head_of(20_000) + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_response().body == b"GET / "
    assert client.read_response().body == b"GET /2 "


# A4: framing of the body (the heads are above)


@pytest.mark.parametrize("name", cases.GOOD_CHUNKS)
def test_a4_good_chunks_are_forwarded(seen, client, name):
    framed, body = cases.GOOD_CHUNKS[name]
    assert client.request(CHUNKED + framed).body == b"POST /x " + body
    client.send(CHUNKED)
    for byte in framed:
        client.send(bytes([byte]))
    assert client.read_response().body == b"POST /x " + body


@pytest.mark.parametrize("name", cases.BAD_CHUNKS)
@pytest.mark.parametrize("when", ["with the head", "later"])
def test_a4_bad_chunks_are_answered_400_and_no_backend_sees_a_whole_request(proxy, backend, seen, client, name, when):
    client.send(CHUNKED)
    if when == "later":
        wait_until(lambda: backend.connections, what="the head at the backend")
    error = check_error(client.request(cases.BAD_CHUNKS[name]), 400)
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
