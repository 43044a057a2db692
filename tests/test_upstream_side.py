"""Rules B: what goes out to a backend. The heads are compared byte by byte."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import ExitStack

import pytest
from harness import (
    LAST_CHUNK,
    TIMEOUT,
    Backend,
    Client,
    Connection,
    PeerClosedError,
    Proxy,
    Request,
    answer_all,
    chunk,
    respond,
    wait_until,
)

from llmpipe.config import PoolSettings

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
MEGABYTE = 1 << 20


@pytest.fixture
def seen(serve) -> list[Request]:
    """Every request that the shared backend gets, each answered."""
    requests: list[Request] = []

    def record(connection: Connection) -> None:
        while True:
            requests.append(connection.read_request())
            respond(connection)

    serve(record)
    return requests


def sent_up(client: Client, seen: list[Request], *lines: bytes, first: bytes = b"GET /p HTTP/1.1") -> Request:
    """What the backend gets for a request with these field lines."""
    response = client.request(b"\r\n".join([first, *lines, b"", b""]))
    assert response.status == 200, response
    return seen[-1]


# B1: fields


def test_b1_the_whole_head_byte_by_byte(proxy, seen, client):
    kept = [
        b"hOsT: a.example:1",
        b"User-Agent:none",
        b"X-Spaces:   two  inside  \t",
        b"accept: */*",
        b"X-Empty:",
        b"x-empty: ",
        b"ACCEPT: text/event-stream",
        b"X-Obs-Text: \xe9\xff",
        b"Authorization: Bearer sk-1",
        b"Cookie: a=b; c=d",
        b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"!#$%&'*+-.^_`|~: odd name",
        b"Content-Type: application/json",
        b"Content-LENGTH: 2",
    ]
    client.send(b"\r\n".join([b"POST /p?q=%41 HTTP/1.1", *kept, b"", b"{}"]))
    response = client.read_response()
    request_id = response.values(b"x-request-id")[0]
    added = [
        b"X-Forwarded-For: 127.0.0.1",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: a.example:1",
        b"Via: 1.1 llmpipe",
        b"X-Request-ID: " + request_id,
    ]
    assert seen[0].raw_head == b"\r\n".join([b"POST /p?q=%41 HTTP/1.1", *kept, *added, b"", b""])
    assert seen[0].body == b"{}"
    assert re.fullmatch(rb"[0-9a-f]{32}", request_id)


HOP_BY_HOP = [
    b"Connection: keep-alive",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"TE: trailers",
    b"Upgrade: websocket",
    b"Proxy-Authorization: Basic eDp5",
]


@pytest.mark.parametrize("line", HOP_BY_HOP)
def test_b1_hop_by_hop_fields_are_removed(seen, client, line):
    request = sent_up(client, seen, b"Host: a", line, b"X-After: 1")
    assert request.values(line.partition(b":")[0]) == []
    assert request.values(b"x-after") == [b"1"]


def test_b1_fields_that_connection_names_are_removed(seen, client):
    request = sent_up(
        client,
        seen,
        b"X-One: 1",
        b"Connection: x-one,  X-TWO ,, close-not",
        b"Host: a",
        b"x-two: 2",
        b"X-Two: 2",
        b"X-Three: 3",
        b"Connection: X-four",
        b"X-Four: 4",
        b"X-One-More: 5",
    )
    names = [name.lower() for name, _ in request.fields]
    assert names[:3] == [b"host", b"x-three", b"x-one-more"]
    assert not {b"x-one", b"x-two", b"x-four", b"connection"} & set(names)


def test_b1_connection_cannot_remove_what_the_proxy_adds(seen, client):
    added = [b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Via", b"X-Request-ID"]
    request = sent_up(client, seen, b"Host: a", b"X-Forwarded-For: 6.6.6.6", b"Connection: " + b", ".join(added))
    assert [len(request.values(name)) for name in added] == [1] * 5
    assert request.values(b"x-forwarded-for") == [b"127.0.0.1"]


def test_b1_x_forwarded_for_is_appended_to(seen, client):
    request = sent_up(client, seen, b"Host: a", b"X-Forwarded-For: 1.1.1.1", b"x-forwarded-for: 2.2.2.2, 3.3.3.3")
    assert request.values(b"x-forwarded-for") == [b"1.1.1.1", b"2.2.2.2, 3.3.3.3, 127.0.0.1"]


def test_b1_x_forwarded_for_that_is_empty(seen, client):
    request = sent_up(client, seen, b"Host: a", b"X-Forwarded-For:")
    assert b", ".join(request.values(b"x-forwarded-for")).strip(b", ") == b"127.0.0.1"


def test_b1_a_second_x_forwarded_proto_or_host_is_believed_of_nobody(seen, client):
    lines = [
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: evil",
        b"x-forwarded-host: evil",
    ]
    request = sent_up(client, seen, b"Host: a:8", *lines)
    assert request.values(b"x-forwarded-proto") == [b"http"]
    assert request.values(b"x-forwarded-host") == [b"a:8"]


@pytest.mark.parametrize("coding", [b"Chunked", b"CHUNKED", b"chunkeD"])
def test_b1_chunked_is_written_in_lower_case(seen, client, coding):
    request = [
        b"POST / HTTP/1.1",
        b"Host: a",
        b"X-One: 1",
        b"transfer-ENCODING: \t" + coding + b" ",
        b"X-Two: 2",
        b"",
        b"",
    ]
    client.send(b"\r\n".join(request) + b"5\r\nhello\r\n0\r\n\r\n")
    assert client.read_response().status == 200
    kept = b"\r\nX-One: 1\r\ntransfer-ENCODING: \tchunked \r\nX-Two: 2\r\n"
    assert kept in seen[0].raw_head
    assert seen[0].body == b"hello"


def test_b1_via_is_appended_to(seen, client):
    request = sent_up(client, seen, b"Host: a", b"Via: 1.0 fred", b"Via: 1.1 p.example.net (x)")
    assert request.values(b"via") == [b"1.0 fred", b"1.1 p.example.net (x), 1.1 llmpipe"]


def test_b1_via_tells_the_clients_version(seen, client):
    assert sent_up(client, seen, b"Host: a", first=b"GET /p HTTP/1.0").values(b"via") == [b"1.0 llmpipe"]


@pytest.mark.parametrize("value", [b"a", b"x" * 64, b"req_01/2:3.4-5", b"!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"])
def test_b1_a_good_request_id_is_kept(proxy, seen, client, value):
    response = client.request(b"GET /kept HTTP/1.1\r\nHost: a\r\nx-ReQuest-id: " + value + b"\r\n\r\n")
    assert seen[-1].values(b"x-request-id") == [value]
    assert response.values(b"x-request-id") == [value]
    wait_until(lambda: proxy.access(path="/kept")[-1]["request_id"] == value.decode(), what="access line")


@pytest.mark.parametrize(
    "lines",
    [[], [b""], [b"x" * 65], [b"a b"], [b"a\tb"], [b"\xe9"], [b"one", b"two"], [b"one", b"one"]],
    ids=["none", "empty", "65 bytes", "space", "tab", "non-ASCII", "two", "two alike"],
)
def test_b1_another_request_id_is_made(seen, client, lines):
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-Request-ID: %s\r\n" % v for v in lines) + b"\r\n")
    made = client.read_response().values(b"x-request-id")
    assert re.fullmatch(rb"[0-9a-f]{32}", *made)
    assert seen[-1].values(b"x-request-id") == made
    assert client.request(GET).values(b"x-request-id") != made


def test_b1_a_1_0_request_without_host_gets_the_backends(backend, seen, client):
    request = sent_up(client, seen, first=b"GET /p HTTP/1.0")
    assert request.values(b"host") == [backend.address.encode()]
    assert request.line == b"GET /p HTTP/1.1"


def test_b1_a_field_named_like_another_with_more_behind_it_is_kept(seen, client):
    lines = [b"Connection-X: 1", b"X-Connection: 2", b"TEX: 3", b"Via2: 4", b"Keep-Alive-X: 5", b"Hosts: 6"]
    request = sent_up(client, seen, b"Host: a", *lines)
    assert b"\r\n".join(lines) in request.raw_head


def test_b1_an_upgrade_is_forwarded_only_where_connection_asks_for_it(seen, client):
    plain = sent_up(client, seen, b"Host: a", b"Connection: keep-alive", b"Upgrade: websocket")
    assert (plain.values(b"connection"), plain.values(b"upgrade")) == ([], [])
    upgrade = sent_up(client, seen, b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket")
    assert (upgrade.values(b"connection"), upgrade.values(b"upgrade")) == ([b"Upgrade"], [b"websocket"])


@pytest.mark.parametrize("value", [b"h2c", b"H2C/2.0", b"websocket, h2c"])
def test_b1_h2c_is_never_forwarded(seen, client, value):
    lines = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + value, b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    request = sent_up(client, seen, b"Host: a", *lines)
    assert [request.values(name) for name in (b"connection", b"upgrade", b"http2-settings")] == [[], [], []]


@pytest.mark.parametrize("family", ["tcp", "tcp6", "unix"])
def test_b1_every_kind_of_backend(family):
    with Backend(answer_all, family) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(POST).body == b"ok"
        assert client.request(GET).body == b"ok"
        assert len(backend.connections) == 1


# B2: the body


def test_b2_the_body_is_streamed_as_it_arrives(serve, backend, client):
    pieces = [b"first ", b"second ", b"third"]
    got = [threading.Event() for _ in pieces]

    def step(connection: Connection) -> None:
        connection.read_head()
        for piece, event in zip(pieces, got, strict=True):
            assert connection.read(len(piece)) == piece
            event.set()
        respond(connection)

    serve(step)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n")
    for piece, event in zip(pieces, got, strict=True):
        client.send(piece)
        assert event.wait(TIMEOUT)  # each is there before the next one is sent
    assert client.read_response().status == 200


def test_b2_chunks_extensions_and_trailers_are_forwarded_as_they_are(serve, client):
    framed = b'1;a="b c"\r\nx\r\n00f\r\n123456789012345\r\n0;z\r\nX-Sum: 1\r\nY:\r\n\r\n'
    got = []

    def keep(connection: Connection) -> None:
        connection.read_head()
        got.append(connection.read(len(framed)))
        respond(connection)

    serve(keep)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
    for byte in framed:
        client.send(bytes([byte]))
    assert client.read_response().status == 200
    assert got == [framed]


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("backends", [0, 1], ids=["one backend", "kept for failover"])
def test_b2_a_large_upload_meets_backpressure_and_arrives_intact(framing, backends):
    piece = bytes(range(256)) * 256  # 64 KB
    count = 50 * MEGABYTE // len(piece)
    may_read = threading.Event()
    digests = []

    def slow(connection: Connection) -> None:
        head = connection.read_head()
        assert may_read.wait(60)
        digest = hashlib.sha256()
        if b"chunked" in head:
            while size := int(connection.recv_until(b"\r\n"), 16):
                digest.update(connection.read(size))
                assert connection.read(2) == b"\r\n"
            assert connection.read(2) == b"\r\n"
        else:
            for _ in range(count):
                digest.update(connection.read(len(piece)))
        digests.append(digest.hexdigest())
        respond(connection)

    sent = [0]
    # With a second backend the proxy keeps a request for it, up to a bound; nothing has to listen there.
    spare = ["http://127.0.0.1:1"]

    def upload(client: Client) -> None:
        if framing == "chunked":
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (count * len(piece)))
        for _ in range(count):
            client.send(chunk(piece) if framing == "chunked" else piece)
            sent[0] += len(piece)
        if framing == "chunked":
            client.send(LAST_CHUNK)

    with Backend(slow) as backend, Proxy(backend.url, *spare[:backends]) as proxy, Client(proxy) as client:
        client.sock.settimeout(60)
        before = proxy.rss()
        uploader = threading.Thread(target=upload, args=(client,), daemon=True)
        uploader.start()
        backend.wait_connections(1)
        stuck = [-1]

        def stands_still() -> bool:
            before, stuck[0] = stuck[0], sent[0]
            time.sleep(0.1)
            return 0 < before == sent[0]

        wait_until(stands_still, what="the client is held back")
        assert sent[0] < 30 * MEGABYTE  # socket buffers only
        assert proxy.rss() - before < 8 * MEGABYTE
        may_read.set()
        assert client.read_response().status == 200
        uploader.join(TIMEOUT)
        assert digests == [hashlib.sha256(piece * count).hexdigest()]
        assert proxy.rss() - before < 12 * MEGABYTE
        assert proxy.access()[0]["bytes_up"] > count * len(piece)


# B3: upstream connections


def reuses(proxy: Proxy, backend: Backend) -> tuple[float, float]:
    metrics = proxy.metrics()
    return (
        metrics[f'llmpipe_upstream_connects_total{{backend="{backend.url}"}}'],
        metrics[f'llmpipe_upstream_reuses_total{{backend="{backend.url}"}}'],
    )


def test_b3_upstream_connections_are_reused_across_clients():
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy:
        for _ in range(3):
            with Client(proxy) as client:
                assert [client.request(GET).status for _ in range(3)] == [200] * 3
        assert len(backend.connections) == 1
        assert reuses(proxy, backend) == (1, 8)
        assert proxy.metric("llmpipe_upstream_idle", backend=backend.url) == 1


def test_b3_requests_at_the_same_time_take_connections_of_their_own():
    both = threading.Barrier(2, timeout=TIMEOUT)

    def together(connection: Connection) -> None:
        while True:
            connection.read_request()
            both.wait()
            respond(connection, b"%d" % connection.index)

    with Backend(together) as backend, Proxy(backend.url) as proxy, Client(proxy) as one, Client(proxy) as two:
        for _ in range(3):
            one.send(GET)
            two.send(GET)
            assert {one.read_response().body, two.read_response().body} == {b"0", b"1"}
        assert len(backend.connections) == 2


def test_b3_a_response_that_came_in_small_pieces_leaves_its_connection_usable(serve, backend, client):
    def slowly(connection: Connection) -> None:
        while True:
            connection.read_request()
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok":
                connection.send(bytes([byte]))

    serve(slowly)
    for _ in range(50):
        assert client.request(GET).body == b"ok"
    assert len(backend.connections) == 1


ENDS = {
    "Connection: close": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("name", ENDS)
def test_b3_a_backend_that_will_close_is_not_used_again(serve, backend, client, name):
    def once(connection: Connection) -> None:
        connection.read_request()
        connection.send(ENDS[name])
        connection.wait_eof()

    serve(once)
    for _ in range(2):
        response = client.request(GET)
        assert (response.status, response.body) == (200, b"ok")
        assert response.values(b"connection") == []  # it says nothing about the client's connection
    assert len(backend.connections) == 2


def test_b3_http_1_0_with_keep_alive_is_used_again(serve, backend, client):
    def old(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok")

    serve(old)
    assert [client.request(GET).body for _ in range(2)] == [b"ok", b"ok"]
    assert len(backend.connections) == 1


LONG = ["--upstream-idle-timeout", "10m"]
"""Its end is none by time."""


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_b3_an_idle_connection_that_the_backend_closes_is_noticed_at_once(how):
    with Backend(answer_all) as backend, Proxy(backend.url, options=LONG) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        connection = backend.connections[0]
        connection.forgotten = True
        proxy.wait_metric("llmpipe_upstream_idle", 1, backend=backend.url)
        if how == "fin":
            connection.half_close()
            assert connection.wait_eof() > 0  # the proxy closes its side too
        else:
            connection.reset()
        proxy.wait_metric("llmpipe_upstream_idle", 0, backend=backend.url)
        assert client.request(POST).status == 200
        assert proxy.metric("llmpipe_stale_replays_total") == 0
        assert len(backend.connections) == 2


@pytest.mark.slow
def test_b3_the_default_idle_time_is_under_uvicorns_five_seconds():
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        begun = time.monotonic()
        assert client.request(GET).status == 200
        assert backend.connections[0].wait_eof() - begun > 3.9
        assert client.request(GET).status == 200
    assert PoolSettings().upstream_idle_timeout < 5


def test_b3_idle_connections_can_be_kept_longer_or_not_at_all():
    with Backend(answer_all) as backend:
        with Proxy(backend.url, options=["--upstream-idle-timeout", "200ms"]) as proxy, Client(proxy) as client:
            assert client.request(GET).status == 200
            backend.connections[0].wait_eof(3.5)  # before the four seconds of the default
        with Proxy(backend.url, options=["--upstream-idle-timeout", "0"]) as proxy, Client(proxy) as client:
            assert [client.request(GET).status for _ in range(2)] == [200, 200]
            assert reuses(proxy, backend) == (2, 0)


class Stale:
    """Answers the first request of each connection, and breaks off at the second one, in the way that it is told.

    Nobody can make a close cross a request on the wire on purpose; a close in place of the answer looks the same.
    """

    def __init__(self, how: str, first: int = 1) -> None:
        self.how = how
        self.first = first
        self.requests: list[Request] = []

    def __call__(self, connection: Connection) -> None:
        for _ in range(self.first if connection.index == 0 else 0 if self.how == "always" else 1000):
            self.requests.append(connection.read_request())
            respond(connection)
        if self.how == "unread":
            connection.sock.recv(1)
            connection.reset()
            return
        self.requests.append(connection.read_request())
        if self.how == "half":
            connection.send(b"HTTP/1.1 2")
        if self.how == "interim":
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        (connection.reset if self.how == "rst" else connection.close)()


@pytest.mark.parametrize("how", ["fin", "rst", "unread"])
@pytest.mark.parametrize("request_", [GET, POST], ids=["no body", "body"])
def test_b3_a_request_that_met_a_stale_connection_is_sent_again_on_a_fresh_one(how, request_):
    script = Stale(how)
    with Backend(script) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        assert client.request(request_).status == 200
        assert client.request(GET).status == 200
        assert len(backend.connections) == 2
        assert script.requests[-2].body == request_.partition(b"\r\n\r\n")[2]
        if how != "unread":
            assert script.requests[-2].raw_head == script.requests[-3].raw_head
        assert proxy.metric("llmpipe_stale_replays_total") == 1
        assert proxy.metric("llmpipe_backend_failures_total", backend=backend.url) == 0
        assert proxy.access(3)[1]["attempts"] == 2
        assert proxy.outcome("ok") == 3


def test_b3_a_chunked_body_that_is_all_there_is_sent_again_too():
    script = Stale("fin")
    body = chunk(b"x" * 1000) + b"0\r\nX-Sum: 1\r\n\r\n"
    with Backend(script) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        assert client.request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body).status == 200
        assert script.requests[-1].body == b"x" * 1000
        assert proxy.metric("llmpipe_stale_replays_total") == 1


def test_b3_a_chunked_body_without_end_in_sight_goes_up_on_a_fresh_connection():
    script = Stale("fin")
    with Backend(script) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"x" * 10_000, b"y" * 20_000):
            client.send(chunk(piece))
            time.sleep(0.01)
        client.send(b"0\r\nX-Sum: 1\r\n\r\n")
        assert client.read_response().status == 200
        assert script.requests[-1].body == b"x" * 10_000 + b"y" * 20_000
        assert proxy.metric("llmpipe_stale_replays_total") == 0
        assert len(backend.connections) == 2


def test_b3_it_is_sent_again_once_only():
    with Backend(Stale("always")) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        response = client.request(POST)
        assert response.status == 502
        assert response.error()["code"] == "upstream_error"
        assert len(backend.connections) == 2
        assert proxy.metric("llmpipe_stale_replays_total") == 1


@pytest.mark.parametrize("how", ["half", "interim"])
def test_b3_it_is_not_sent_again_after_a_byte_of_the_answer(how):
    with Backend(Stale(how)) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        assert client.request(GET).status == 200
        if how == "interim":
            assert client.request(POST).status == 102
            assert client.read_response().status == 502
        else:
            assert client.request(POST).status == 502
        assert len(backend.connections) == 1
        assert proxy.metric("llmpipe_stale_replays_total") == 0


def test_b3_a_body_longer_than_the_bound_goes_up_on_a_fresh_connection(proxy_to):
    """It is not kept, so it could not be sent again if its connection proved stale."""
    body = b"x" * 300_000
    with Backend(Stale("fin")) as backend:
        proxy = proxy_to(backend, options=["--failover-body", "100KB"])
        with Client(proxy) as client:
            assert client.request(GET).status == 200
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert client.read_response().status == 200
        assert len(backend.connections) == 2
        assert proxy.metric("llmpipe_stale_replays_total") == 0


def test_b3_fresh_connections_do_not_pile_up(proxy_to):
    # Each of these goes on a connection of its own, and leaves it behind.
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    with Backend(answer_all) as backend:
        proxy = proxy_to(backend, options=["--failover-body", "0", "--upstream-idle-timeout", "60s"])
        with Client(proxy) as client:
            assert [client.request(post).status for _ in range(10)] == [200] * 10
            proxy.wait_metric("llmpipe_upstream_idle", 1, backend=backend.url)
            assert len(backend.connections) == 10


def test_b3_long_posts_to_a_backend_that_closes_after_each_answer(proxy_to):
    """As uvicorn does behind its limit of requests: a moment after the answer, without a word before."""

    def closes(conn: Connection) -> None:
        conn.read_request()
        respond(conn)
        time.sleep(0.003)
        conn.close()

    body = b"x" * 1_200_000
    proxy = proxy_to(closes)
    with Client(proxy) as client:
        for _ in range(40):
            assert (
                client.request(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body).status
                == 200
            )
    assert proxy.outcome("ok") == 40


def test_b3_a_fresh_connection_that_closes_is_an_error_not_a_stale_one(serve, proxy, backend, client):
    before = proxy.metric("llmpipe_stale_replays_total")

    def never(connection: Connection) -> None:
        connection.read_request()
        connection.close()

    serve(never)
    assert client.request(GET).status == 502
    assert len(backend.connections) == 1
    assert proxy.metric("llmpipe_stale_replays_total") == before


# A backend that speaks before it is asked


def test_b3_bytes_on_an_idle_connection_close_it_and_reach_nobody():
    intruder = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    with Backend(answer_all) as backend, Proxy(backend.url, options=LONG) as proxy, Client(proxy) as client:
        assert client.request(GET).body == b"ok"
        connection = backend.connections[0]
        connection.forgotten = True
        connection.send(intruder)
        connection.wait_eof()
        assert client.request(GET).body == b"ok"
        assert len(backend.connections) == 2


def test_b3_a_banner_on_connect_is_a_broken_response(serve, proxy, backend, client):
    def banner(connection: Connection) -> None:
        connection.send(b"220 mail.example ESMTP\r\n\r\n")
        connection.wait_eof()

    serve(banner)
    response = client.request(GET)
    assert response.status == 502
    assert response.error()["code"] == "upstream_error"
    backend.connections[0].wait_eof()


def test_b3_an_answer_before_the_request_never_reaches_another_exchange(serve, backend, proxy):
    def hasty(connection: Connection) -> None:
        respond(connection, b"early %d" % connection.index)
        try:
            connection.read_request()
            respond(connection, b"late %d" % connection.index)
        except (EOFError, ConnectionError):
            raise PeerClosedError from None

    serve(hasty)
    bodies = []
    for _ in range(6):
        with Client(proxy) as client:
            response = client.request(GET)
            assert response.status in (200, 502)
            if response.status == 200:
                bodies.append(response.body)
        time.sleep(0.02)
    # Whichever it was given, no two exchanges were fed by one connection.
    indexes = [body.split()[1] for body in bodies]
    assert len(indexes) == len(set(indexes))


# The Host that each backend gets (rule B1)


def ollama(connection: Connection) -> None:
    """Knows its own names only, as Ollama does."""
    while True:
        request = connection.read_request()
        host = request.values(b"host")[0].rpartition(b":")[0]
        if host in (b"localhost", b"127.0.0.1"):
            respond(connection, b"|".join(request.values(b"host")))
        else:
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")


NAMED = b"POST / HTTP/1.1\r\nhost:  llm.example.com\t\r\nX-First: 1\r\nContent-Length: 5\r\n\r\nhello"


def test_b1_a_backend_that_knows_only_its_own_names(proxy_to):
    with Backend(ollama) as backend:
        with Client(proxy_to(backend)) as client:
            assert client.request(NAMED).status == 403
        with Client(proxy_to(f"{backend.url}?host=backend")) as client:
            for _ in range(3):
                assert client.request(NAMED).body == backend.address.encode()
        with Client(proxy_to(f"{backend.url}?host=localhost:1")) as client:
            assert client.request(NAMED).body == b"localhost:1"


def test_b1_a_host_that_cannot_be_kept_for_another_try_is_refused(proxy_to):
    """And what stands behind the request is counted."""
    with Backend(ollama) as backend, Client(proxy := proxy_to(f"{backend.url}?host=backend")) as client:
        assert client.request(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % (b"a" * 9000) + NAMED).status == 431
        assert client.read_eof() == b""
    proxy.settled()
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="behind_request") == len(NAMED)


@pytest.mark.parametrize("size", [0, 5, 8000, 30_000, 400_000])
def test_b1_each_backend_gets_its_own_host(proxy_to, size):
    """The head is written anew for each attempt: the first one's Host never goes to the second, nor does a byte change."""
    body = bytes(i % 251 for i in range(size))
    head = b"POST /x HTTP/1.1\r\nX-First: 1\r\nHost:llm.example.com\r\nX-Long: %s\r\nContent-Length: %d\r\n\r\n"
    got: list[tuple[str, Request]] = []

    def refuses(connection: Connection) -> None:
        while True:
            got.append(("bad", connection.read_request()))
            connection.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    def serves(connection: Connection) -> None:
        while True:
            got.append(("good", connection.read_request()))
            respond(connection)

    for own in ("backend", "client", "other.example"):
        got.clear()
        with Backend(refuses) as bad, Backend(serves) as good:
            urls = (f"{bad.url}?host=backend", f"{good.url}?host={own}")
            proxy = proxy_to(*urls, options=["--retry-status", "503"])
            with Client(proxy) as client:
                for _ in range(2):
                    assert client.request(head % (b"v" * 9000, size) + body).status == 200
            wanted = {
                "bad": bad.address.encode(),
                "good": {"backend": good.address.encode(), "client": b"llm.example.com"}.get(own, own.encode()),
            }
            assert {name for name, _ in got} == {"bad", "good"}
            for name, request in got:
                assert request.values(b"host") == [wanted[name]]
                assert request.body == body
                assert request.values(b"x-forwarded-host") == [b"llm.example.com"]
                names = [field.lower() for field, _ in request.fields]
                assert names[:4] == [b"x-first", b"host", b"x-long", b"content-length"]
            proxy.settled()
            assert proxy.metric("llmpipe_buffers_held") == 0


def test_b1_without_a_host_each_backend_gets_its_own(proxy_to):
    def refuses(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        connection.wait_eof()

    hosts = []

    def serves(connection: Connection) -> None:
        while True:
            hosts.append(connection.read_request().values(b"host"))
            respond(connection)

    with Backend(refuses) as bad, Backend(serves) as good:
        proxy = proxy_to(bad, good, options=["--retry-status", "503"])
        for _ in range(2):
            with Client(proxy) as client:
                assert client.request(b"GET / HTTP/1.0\r\n\r\n").status == 200
        assert hosts == [[good.address.encode()]] * 2
        assert bad.connections


# What is kept of all requests together (rule B2)


def test_b2_one_budget_for_all_that_is_kept():
    """Beyond it requests go up without a copy that could be sent again, and all are served."""
    go = threading.Event()
    count, size = 40, 200_000
    body = bytes(i % 251 for i in range(size))

    def holds(connection: Connection) -> None:
        request = connection.read_request()
        assert go.wait(60)
        respond(connection, b"%d" % (request.body == body))

    with ExitStack() as stack:
        backends = [stack.enter_context(Backend(holds)) for _ in range(2)]
        options = ["--kept-memory", "1MB", "--workers", "2"]
        proxy = stack.enter_context(Proxy(*(backend.url for backend in backends), options=options))
        clients = [stack.enter_context(Client(proxy)) for _ in range(count)]
        for client in clients:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body)
        wait_until(lambda: sum(len(backend.connections) for backend in backends) == count)
        wait_until(lambda: proxy.metric("llmpipe_request_bytes_kept") > size)
        assert proxy.metric("llmpipe_request_bytes_kept") <= 1 << 20
        assert proxy.metric("llmpipe_buffers_held") < (1 << 20) / 8192 + 3 * count
        go.set()
        for client in clients:
            assert client.read_response().body == b"1"
            client.close()
        proxy.settled()
        assert proxy.metric("llmpipe_request_bytes_kept") == 0
        assert proxy.metric("llmpipe_buffers_held") == 0
