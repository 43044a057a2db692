"""Rule L3: a server all of whose streams fall silent at once hangs; it is asked for nothing new, and its streams go on."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from engines import Engines
from harness import Backend, Client, Connection, Mock, Proxy, Stream, chunk, sse_head, wait_until

from llmpipe.hung import LEAST_SILENCE, USUAL_TIMES, Silence

POST = b'{"model": "mock", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Mock-Tokens: 2000\r\nX-Mock-Tokens-Per-Second: 20\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(POST), POST)
)
SHORT = ASK.replace(
    b"X-Mock-Tokens: 2000\r\nX-Mock-Tokens-Per-Second: 20", b"X-Mock-Tokens: 1\r\nX-Mock-Tokens-Per-Second: 0"
)
ENOUGH = 45.0
"""Seconds to wait for what comes within 15 s on a machine that is not slow."""


class Look:
    """Looks each second."""

    def __init__(self) -> None:
        self.now = 100.0
        self.last = -math.inf
        self.silence = Silence(self.now)

    def pass_by(self, seconds: int, streams: int = 1, content: bool = False) -> bool:
        """So many seconds with so many streams, with content all the time or none."""
        for _ in range(seconds):
            self.now += 1.0
            age = 0.1 if content else self.now - self.last
            self.silence.look(self.now, streams, age)
            if content:
                self.last = self.now - age
        return self.silence.hung


@pytest.fixture
def look() -> Look:
    made = Look()
    assert not made.pass_by(5, content=True)
    return made


def test_l3_silent_for_ten_seconds(look: Look) -> None:
    assert not look.pass_by(int(LEAST_SILENCE) - 1)
    assert look.pass_by(2)
    assert not look.pass_by(1, content=True)


def test_l3_a_pause_that_is_usual_is_none(look: Look) -> None:
    """Three times its longest pause of late: one that pauses for 8 s now and then has 24 s."""
    look.pass_by(8)
    look.pass_by(5, content=True)
    assert not look.pass_by(8 * USUAL_TIMES - 3)
    assert look.pass_by(5)
    look.pass_by(600, content=True)
    assert look.pass_by(int(LEAST_SILENCE) + 2)  # it was long ago


def test_l3_without_streams_nothing_hangs(look: Look) -> None:
    assert not look.pass_by(60, streams=0)
    assert not look.pass_by(int(LEAST_SILENCE) - 1)
    assert look.pass_by(2)
    assert look.pass_by(60, streams=0)  # they left: it hangs as long as nothing shows that it does not


def test_l3_an_answer_makes_it_well_and_more_patient(look: Look) -> None:
    assert look.pass_by(12)
    look.silence.answered(look.now)
    assert not look.pass_by(2 * int(LEAST_SILENCE) - 2)
    assert look.pass_by(4)
    look.pass_by(600, content=True)
    assert look.pass_by(12)


class Pair:
    """A proxy in front of two mocks, and streams of each."""

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self.mocks = [Mock(), Mock()]
        self.proxy = Proxy(*(mock.url for mock in self.mocks), options=list(options))
        self.clients: list[Client] = []
        self._begin(4)

    def _begin(self, streams: int) -> None:
        for _ in range(streams):
            client = Client(self.proxy)
            client.send(ASK)
            client.recv_until(b'"content"')
            self.clients.append(client)
        for mock in self.mocks:
            mock.wait_load(streams // 2, 0)

    def row(self, number: int) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.proxy.admin("/status")[1])["pools"][0]["backends"][number]
        return found

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for mock in self.mocks:
            mock.process.send_signal(signal.SIGCONT)
        self.proxy.close()
        for mock in self.mocks:
            mock.process.kill()
            mock.__exit__()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.close()


def ask_both(proxy: Proxy, n: int) -> None:
    with Client(proxy) as client:
        for _ in range(n):
            assert client.request(SHORT, "POST").status == 200


def exchanges(proxy: Proxy, mock: Mock) -> float:
    return proxy.metric("llmpipe_backend_exchanges_total", backend=mock.url)


def test_l3_a_stopped_server_is_found_by_its_streams(pair: Pair) -> None:
    """Within 15 s, while streams of others go on; when it goes on, so do its streams, and it is used again."""
    proxy = pair.proxy
    stopped, well = pair.mocks
    pair.mocks[0].process.send_signal(signal.SIGSTOP)
    line = proxy.wait_log("backend hangs", timeout=ENOUGH)
    assert (line["backend"], line["streams"]) == (stopped.url, 2)
    assert line["silent_seconds"] >= LEAST_SILENCE
    assert pair.row(0)["state"] == "down"
    assert pair.row(0)["why"] == ["hung"]
    assert pair.row(1)["state"] == "up"
    assert proxy.metric("llmpipe_backend_hangs_total", backend=stopped.url) == 1
    before = exchanges(proxy, stopped)
    ask_both(proxy, 10)
    assert exchanges(proxy, stopped) == before
    assert proxy.admin("/readyz")[0] == 200
    stopped.process.send_signal(signal.SIGCONT)
    # Its streams have content at once, or it answers the question first.
    wait_until(lambda: pair.row(0)["state"] == "up", ENOUGH)
    ask_both(proxy, 4)
    assert exchanges(proxy, stopped) >= before + 2
    for client in pair.clients:
        client.recv_until(b'"content"')
    assert proxy.outcome("upstream_abort") == 0
    assert well.load[0] == 2


def test_l3_who_leaves_a_server_that_hangs_does_not_make_it_well(pair: Pair) -> None:
    stopped = pair.mocks[0]
    stopped.process.send_signal(signal.SIGSTOP)
    pair.proxy.wait_log("backend hangs", timeout=ENOUGH)
    for client in pair.clients:
        client.close()
    pair.proxy.wait_metric("llmpipe_exchanges_total", 4, outcome="client_abort")
    time.sleep(2.5)
    assert pair.row(0)["why"] == ["hung"]
    stopped.process.send_signal(signal.SIGCONT)
    pair.proxy.wait_log("backend answers again", timeout=ENOUGH)
    wait_until(lambda: pair.row(0)["state"] == "up")


def test_l3_the_only_server_stays_in_use_and_the_proxy_ready() -> None:
    """A pause of the only server is no reason to send nobody to the proxy."""

    def pauses(conn: Connection) -> None:
        request = conn.read_request()
        if request.line.startswith(b"GET"):
            conn.wait_eof()  # it hangs for questions too
            return
        conn.send(sse_head() + chunk(b"data: 1\n\n"))
        conn.wait_eof(120)

    with Backend(pauses) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client:
            client.send(ASK)
            client.recv_until(b"data: 1")
            proxy.wait_log("backend hangs", timeout=ENOUGH)
            assert proxy.admin("/readyz")[0] == 200
            with Client(proxy) as other:
                other.send(ASK)
                other.recv_until(b"data: 1")
        proxy.wait_log("backend flows again", timeout=ENOUGH)
        backend.forget()


def test_l3_a_client_that_does_not_read_is_none_of_its_streams() -> None:
    """Its backend is not silent: the proxy does not read it."""
    go = threading.Event()

    def floods(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b"data: begin\n\n"))
        go.wait(60)
        try:
            while True:
                conn.send(chunk(b"data: " + b"x" * 8000 + b"\n\n"))
        except OSError:
            return

    engines = Engines(2)
    with Backend(floods) as backend:
        host, _, port = backend.url.removeprefix("http://").rpartition(":")
        (number,) = engines.configure([(b"b", b"b", b"", [(host, int(port))], False, 0, b"")])
        clients = [Stream(socket.create_connection(engines.address)) for _ in range(3)]
        try:

            def flowing() -> int:
                return sum(engine.flows().get(number, (0, 0.0))[0] for engine in engines.engines)

            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                client.recv_until(b"begin")
            wait_until(lambda: flowing() == 3)
            assert min(engine.flows()[number][1] for engine in engines.engines if number in engine.flows()) < 60
            go.set()  # nobody reads
            wait_until(lambda: flowing() == 0)
            clients[0].recv_until(b"x" * 8000)
            stop = time.monotonic() + 60
            while flowing() == 0 and time.monotonic() < stop:
                clients[0].sock.recv(1 << 20)
            assert time.monotonic() < stop
        finally:
            for client in clients:
                client.close()
            wait_until(lambda: flowing() == 0)
            engines.close()
        backend.forget()
