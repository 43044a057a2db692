"""Rule I5: a path in a backend's URL stands before the client's."""

from __future__ import annotations

import pytest
from harness import Backend, Client, Connection, Proxy, respond, wait_until

BODY = b'{"model": "m"}'


class Seen:
    """Answers all, and keeps the first lines and the Host fields."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.hosts: list[list[bytes]] = []

    def __call__(self, conn: Connection) -> None:
        while True:
            request = conn.read_request()
            self.lines.append(request.line)
            self.hosts.append(request.values(b"host"))
            respond(conn, request.body)


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (b"GET /v1/models HTTP/1.1", b"GET /llm/v1/models HTTP/1.1"),
        (b"GET / HTTP/1.1", b"GET /llm/ HTTP/1.1"),
        (b"GET /?a=/b HTTP/1.1", b"GET /llm/?a=/b HTTP/1.1"),
        (b"GET //twice HTTP/1.1", b"GET /llm//twice HTTP/1.1"),
        (b"GET http://other:1/x HTTP/1.1", b"GET /llm/x HTTP/1.1"),
        (b"GET http://other:1?q HTTP/1.1", b"GET /llm/?q HTTP/1.1"),
        (b"OPTIONS * HTTP/1.1", b"OPTIONS * HTTP/1.1"),
        (b"GET /" + b"x" * 8000 + b" HTTP/1.1", b"GET /llm/" + b"x" * 8000 + b" HTTP/1.1"),
    ],
)
@pytest.mark.parametrize("host", ["", "?host=backend"])
def test_i5_every_form_of_a_target(sent: bytes, got: bytes, host: str) -> None:
    seen = Seen()
    with Backend(seen) as backend, Proxy(f"{backend.url}/llm/{host}") as proxy, Client(proxy) as client:
        for _ in range(2):
            assert client.request(sent + b"\r\nHost: a\r\n\r\n").status == 200
        assert "/llm" not in proxy.access(2)[0]["path"]  # the client's own
    assert seen.lines == [got] * 2
    if host:
        assert seen.hosts == [[backend.url.removeprefix("http://").encode()]] * 2


def test_i5_each_backend_its_own_path() -> None:
    """The head is written anew for each attempt: with a longer path, a shorter one, none."""
    paths = ["/a-much-longer-path/of-two", "/b", ""]
    refuse: list[bytes] = []

    def busy(conn: Connection) -> None:
        request = conn.read_request()
        refuse.append(request.line)
        assert request.body == BODY
        conn.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        conn.close()

    well = Seen()
    with Backend(busy) as one, Backend(busy) as two, Backend(well) as three:
        urls = [f"{one.url}{paths[0]}", f"{two.url}{paths[1]}?tier=1&host=backend", f"{three.url}{paths[2]}?tier=2"]
        with Proxy(*urls, options=["--retry-status", "503"]) as proxy, Client(proxy) as client:
            request = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
            for _ in range(2):
                assert client.request(request, "POST").body == BODY
    assert refuse == [b"POST /a-much-longer-path/of-two/v1/x HTTP/1.1", b"POST /b/v1/x HTTP/1.1"] * 2
    assert well.lines == [b"POST /v1/x HTTP/1.1"] * 2
    assert well.hosts == [[b"a"]] * 2


def test_i5_checks_go_there_too() -> None:
    seen = Seen()
    with (
        Backend(seen) as backend,
        Proxy(f"{backend.url}/llm", options=["--health-path", "/health", "--health-interval", "100ms"]),
    ):
        wait_until(lambda: b"GET /llm/health HTTP/1.1" in seen.lines)
    assert set(seen.lines) == {b"GET /llm/health HTTP/1.1"}


def test_i5_two_paths_of_one_server_are_two_backends() -> None:
    seen = Seen()
    with Backend(seen) as backend, Proxy(f"{backend.url}/a", f"{backend.url}/b") as proxy, Client(proxy) as client:
        for _ in range(4):
            assert client.request(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
    assert sorted(seen.lines) == [b"GET /a/x HTTP/1.1"] * 2 + [b"GET /b/x HTTP/1.1"] * 2


def test_i5_the_longest_head_with_the_longest_path_and_host() -> None:
    """What routing adds to a head has its room: a path, and the backend's own Host, behind a head that is as long as it may be."""
    seen = Seen()
    path = "/" + "p" * 240
    options = ["--max-head", "65536", "--retry-status", "503"]

    def busy(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    with Backend(busy) as first, Backend(seen) as second:
        urls = [f"{first.url}{path}?name=first", f"{second.url}{path}?name=second&tier=1&host={'h' * 200}"]
        with Proxy(*urls, options=options) as proxy:
            statuses = set()
            for length in (1000, 20_000, 25_000, *range(25_500, 27_000, 300)):
                bare = b"GET /x HTTP/1.1\r\nX-A: %s\r\nHost: %s\r\nX-Request-ID: abc\r\n\r\n"
                host = b"h" * length
                head = bare % (b"a" * (65_536 - len(bare % (b"", host))), host)
                with Client(proxy) as client:
                    statuses.add(client.request(head).status)
            assert statuses == {200, 431}
            proxy.settled()
