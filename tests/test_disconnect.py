"""Rule D: the client goes away, in every phase, by FIN and by RST. The backend must see its connection closed.

The time from the client's close to the backend's EOF is reported with `pytest -rP` and bounded loosely; a tight bound is the
benchmark's business.
"""

import contextlib
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import (
    Backend,
    Client,
    Connection,
    Proxy,
    Stream,
    answer_all,
    chunk,
    leave,
    respond,
    sse_head,
    unanswering_address,
    wait_until,
)

from llmpipe._pipe import OUTCOMES, Engine
from llmpipe.config import ProcessSettings, Settings

BOUND = 10.0
"""Seconds, on a machine that is busy with other things; idle machines take less than a millisecond, and a backend that is not told waits
for minutes."""

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"


class Scene:
    """A backend that goes through a phase and then tells when its connection was closed."""

    def __init__(self, answer: bytes = b"", request: bytes = WHOLE, flood: bool = False) -> None:
        self.answer = answer
        self.request = request
        self.flood = flood
        self.reached = threading.Event()
        self.closed_at = 0.0

    def __call__(self, conn: Connection) -> None:
        conn.read_head()
        if self.answer:
            conn.send(self.answer)
        if self.flood:
            self._flood(conn)
        self.reached.set()
        self.closed_at = conn.wait_eof()

    def _flood(self, conn: Connection) -> None:
        """Sends until nothing is taken any more."""
        conn.sock.settimeout(1.5)
        try:
            while True:
                conn.sock.send(chunk(b"x" * 60_000))
        except TimeoutError:
            pass


SCENES = {
    "body": lambda: Scene(request=HEAD + b"Content-Length: 100\r\n\r\n{"),
    "body chunked": lambda: Scene(request=HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
    "wait": Scene,
    "silent": lambda: Scene(sse_head()),
    "stream": lambda: Scene(sse_head() + chunk(b"data: 1\n\n")),
    "stream with length": lambda: Scene(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"),
    "stream until close": lambda: Scene(b"HTTP/1.1 200 OK\r\n\r\nhello"),
    "blocked": lambda: Scene(sse_head(), flood=True),
    "tunnel": lambda: Scene(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        request=b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ),
}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("phase", SCENES)
def test_the_upstream_is_closed(proxy_to, phase, how, record_property):
    scene = SCENES[phase]()
    proxy = proxy_to(scene)
    client = Client(proxy)
    client.send(scene.request)
    assert scene.reached.wait(60)
    if scene.answer and not scene.flood:
        client.read_head()
    if phase.startswith("stream"):
        client.recv()
    if phase == "blocked":
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 1)
    left_at = time.monotonic()
    leave(client, how)
    wait_until(lambda: scene.closed_at, what="the backend's EOF")
    took = scene.closed_at - left_at
    record_property("seconds_to_upstream_close", took)
    print(f"{phase}, {how}: {took * 1000:.2f} ms from the client's close to the backend's EOF")
    assert took < BOUND
    proxy.settled()
    line = proxy.access()[0]
    if phase == "tunnel" and how == "fin":
        # The end of a tunnel like any other.
        assert line["outcome"] == "ok"
        return
    assert (line["outcome"], line["status"], line["phase"]) == ("client_abort", 499, phase.split()[0])
    assert line["close_ms"] < BOUND * 1000
    assert proxy.metric("llmpipe_exchanges_total", outcome="client_abort") == 1
    assert proxy.metric("llmpipe_disconnect_seconds_count") == 1
    assert proxy.metric("llmpipe_backend_failures_total", backend=proxy.log[0]["backends"]) == 0
    assert proxy.metric("llmpipe_backend_up", backend=proxy.log[0]["backends"]) == 1
    assert sum(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_streaming_errors_total")) == 0
    assert proxy.metric("llmpipe_upstreams") == 0


def test_a_client_that_leaves_before_it_has_a_backend_stops_none(proxy_to):
    """There is no time from its disconnect to the close of an upstream: it would be one of microseconds, and hide the others."""
    proxy = proxy_to(answer_all)
    with Client(proxy) as client:
        client.send(WHOLE[:-10])
        proxy.wait_metric("llmpipe_clients", 1)
    (line,) = proxy.access()
    assert (line["outcome"], line["close_ms"]) == ("client_abort", None)
    proxy.settled()
    assert proxy.metric("llmpipe_disconnect_seconds_count") == 0


@pytest.mark.parametrize("phase", ["wait", "silent", "stream", "blocked"])
def test_a_half_closed_client_has_left(proxy_to, phase):
    """A FIN alone, with no RST behind it, as the kernel sends for a socket that is closed with bytes unread."""
    scene = SCENES[phase]()
    proxy = proxy_to(scene)
    with Client(proxy) as client:
        client.send(scene.request)
        assert scene.reached.wait(60)
        if phase == "blocked":
            proxy.wait_metric("llmpipe_buffers_held", 1)
        elif scene.answer:
            client.read_head()
        client.half_close()
        line = proxy.access()[0]
        assert (line["outcome"], line["status"]) == ("client_abort", 499)
        assert line["close_ms"] < BOUND * 1000
        wait_until(lambda: scene.closed_at, what="the backend's EOF")
    proxy.settled()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_while_connecting(proxy_to, how):
    with unanswering_address() as url:
        proxy = proxy_to(url, options=["--connect-timeout", "30"])
        client = Client(proxy)
        client.send(WHOLE)
        wait_until(lambda: proxy.metric("llmpipe_upstreams") == 1)
        leave(client, how)
        line = proxy.access()[0]
        assert (line["outcome"], line["phase"]) == ("client_abort", "connect")
        assert proxy.metric("llmpipe_upstreams") == 0
        proxy.settled()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_half_a_head(proxy_to, how):
    proxy = proxy_to(lambda conn: conn.read_head())
    client = Client(proxy)
    client.send(b"GET / HTTP/1.1\r\n")
    wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 1)
    leave(client, how)
    line = proxy.access()[0]
    assert (line["outcome"], line["phase"]) == ("client_abort", "head")
    proxy.settled()


def test_a_request_with_its_fin_reaches_no_backend(proxy_to):
    with Backend(lambda conn: conn.read_head()) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.send(WHOLE)
            client.half_close()
            line = proxy.access()[0]
        assert line["outcome"] == "client_abort"
        proxy.settled()


def test_an_idle_client_that_leaves_is_no_exchange(proxy_to):
    proxy = proxy_to(respond)
    Client(proxy).close()
    wait_until(lambda: proxy.metric("llmpipe_accepted_total") == 1)
    proxy.settled()
    assert sum(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_exchanges_total")) == 0


def test_client_signalled_to_python_at_once(proxy_to):
    proxy = proxy_to(Scene(sse_head()), options=["--log-level", "debug"])
    client = Client(proxy)
    client.send(WHOLE)
    client.read_head()
    client.close()
    line = proxy.wait_log("client left")
    assert line["phase"] == "silent"
    assert line["backend"] == proxy.wait_log("listening")["backends"]
    assert len(line["request_id"]) == 32


@pytest.mark.parametrize("level", ["info", "error"])
@pytest.mark.parametrize("wakes", [True, False])
def test_nobody_is_woken_for_a_client_that_left_unless_it_is_asked_for(wakes, level):
    """Without a listener its record waits with the others; without an access log there is none."""
    engine = Engine(Settings(process=ProcessSettings(log_level=level, exchanges_kept=0)))
    assert not engine.wake_on_abort
    engine.wake_on_abort = wakes
    thread = threading.Thread(target=engine.run)
    scene = Scene(sse_head())
    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        engine.listen([listener.fileno()], [engine], most=10, resume_at=9)
        backend = stack.enter_context(Backend(scene))
        engine.configure([(b"b", b"b", b"", [("127.0.0.1", backend.port)], False, 0, b"")])
        thread.start()
        stack.callback(thread.join)
        stack.callback(engine.stop)
        client = Stream(socket.create_connection(listener.getsockname()))
        client.send(WHOLE)
        client.read_head()
        client.close()
        wait_until(lambda: engine.clients == 0)
        assert bool(select.select([engine.records_fd], [], [], 10 if wakes else 0.2)[0]) == wakes
        records = engine.take_records()
        assert [OUTCOMES[record.outcome] for record in records] == ["client_abort"] * (wakes or level == "info")


def stopped(proxy: Proxy) -> bool:
    """Whether a SIGSTOP has reached every thread; kill() returns before."""
    states = [path.read_text().rpartition(") ")[2][0] for path in Path(f"/proc/{proxy.pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_a_client_that_left_when_only_the_last_chunk_was_missing(proxy_to):
    """It had all; OpenAI's clients leave when they have read [DONE], a moment before or after the last chunk comes."""
    go = threading.Event()
    done = chunk(b"data: [DONE]\n\n")

    def serve(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + done)
        assert go.wait(60)
        conn.send(b"0\r\n\r\n")
        go.clear()
        conn.read_request()
        respond(conn)

    with Backend(serve) as backend:
        proxy = proxy_to(backend)
        client = Client(proxy)
        client.send(WHOLE)
        client.read_head()
        client.recv_until(done)
        proxy.signal(signal.SIGSTOP)  # so that it meets both at once, the client's FIN first
        wait_until(lambda: stopped(proxy))
        client.close()
        time.sleep(0.05)
        go.set()
        wait_until(lambda: not go.is_set())
        proxy.signal(signal.SIGCONT)
        line = proxy.access()[0]
        assert (line["outcome"], line["status"]) == ("ok", 200)
        with Client(proxy) as other:
            assert other.request(WHOLE).status == 200
        assert len(backend.connections) == 1  # and the upstream is as good as new


class TestOnAbortFinish:
    """A backend that suffers from aborts finishes instead."""

    @pytest.mark.parametrize("phase", ["wait", "silent", "stream"])
    def test_it_may_finish_and_is_used_again(self, phase):
        go = threading.Event()
        asked = threading.Event()
        finished = threading.Event()

        def slow(conn: Connection) -> None:
            conn.read_request()
            asked.set()
            head = sse_head()
            if phase != "wait":
                conn.send(head + (chunk(b"data: 1\n\n") if phase == "stream" else b""))
            assert go.wait(60)
            conn.send((head if phase == "wait" else b"") + chunk(b"data: 2\n\n") * 1000 + b"0\r\n\r\n")
            finished.set()
            conn.read_request()
            respond(conn)
            conn.wait_eof()

        with Backend(slow) as backend, Proxy(f"{backend.url}?on-abort=finish") as proxy:
            client = Client(proxy)
            client.send(WHOLE)
            if phase != "wait":
                client.read_head()
            else:
                assert asked.wait(60)
            leave(client, "rst")
            wait_until(lambda: proxy.metric("llmpipe_finishing") == 1)
            # The backend still works on it: it counts, or the next request would come on top.
            assert proxy.metric("llmpipe_clients") == 1
            assert proxy.metric("llmpipe_in_flight", backend=backend.url) == 1
            go.set()
            assert finished.wait(60)
            line = proxy.access()[0]
            assert (line["outcome"], line["status"], line["phase"]) == ("client_abort", 499, "finish")
            proxy.settled()
            # What is thrown away was not forwarded, and nobody waited for it.
            streamed = phase == "stream"
            forwarded = len(chunk(b"data: 1\n\n")) if streamed else 0
            assert proxy.metric("llmpipe_streaming_bytes_forwarded_total") == forwarded
            assert proxy.metric("llmpipe_events_forwarded_total") == streamed
            assert proxy.metric("llmpipe_discarded_bytes_total", reason="response") >= len(chunk(b"data: 2\n\n")) * 1000
            assert proxy.metric("llmpipe_ttft_seconds_count") == streamed
            assert proxy.metric("llmpipe_itl_seconds_count") == 0
            assert (line["ttft_ms"] is not None, line["events"]) == (streamed, int(streamed))
            with Client(proxy) as other:
                assert other.request(WHOLE).status == 200
            assert len(backend.connections) == 1
            assert proxy.metric("llmpipe_upstream_reuses_total", backend=backend.url) == 1

    def test_finishing_exchanges_keep_their_clients_places(self):
        """Who asks and leaves, over and over, must not have more backends at work than who stays."""

        asked = []

        def slow(conn: Connection) -> None:
            asked.append(conn.read_request())
            conn.wait_eof(60)

        options = ["--max-connections-per-ip", "2", "--trusted-proxies", "none"]
        with Backend(slow) as backend, Proxy(f"{backend.url}?on-abort=finish", options=options) as proxy:
            for n in range(30):
                with Client(proxy) as client:
                    if n < 2:
                        client.send(WHOLE)
                        wait_until(lambda n=n: len(asked) == n + 1)
                        wait_until(lambda n=n: proxy.metric("llmpipe_in_flight", backend=backend.url) == n + 1)
                        client.reset()
                    else:  # refused, or closed where as many are being refused already
                        with contextlib.suppress(ConnectionError, EOFError):
                            client.send(WHOLE)
                            assert client.read_response().status == 429
            wait_until(lambda: proxy.metric("llmpipe_finishing") == 2)
            assert proxy.metric("llmpipe_upstreams") == 2
            backend.catch_up()
            assert len(backend.connections) == 2
            assert proxy.metric("llmpipe_clients") == 2
            backend.forget()
            wait_until(lambda: proxy.metric("llmpipe_clients") == 0)
            with Client(proxy) as client:  # their places are free again
                client.send(WHOLE)
                backend.wait_connections(1)
                backend.forget()
                assert client.read_response().status == 502

    @pytest.mark.parametrize("cut", [1, 5, 14])
    def test_what_comes_with_the_clients_fin_is_not_lost(self, cut):
        """Event and FIN are met at once; the framing of what is read on must still fit."""
        go = threading.Event()
        sent = threading.Event()
        event = chunk(b"data: 12\n\n")

        def slow(conn: Connection) -> None:
            conn.read_request()
            conn.send(sse_head() + event)
            assert go.wait(60)
            conn.send(event * 2 + event[:cut])
            sent.set()
            time.sleep(0.1)
            conn.send(event[cut:] + b"0\r\n\r\n")
            conn.read_request()
            respond(conn)

        with Backend(slow) as backend, Proxy(f"{backend.url}?on-abort=finish") as proxy:
            client = Client(proxy)
            client.send(WHOLE)
            client.read_head()
            client.recv_until(event)
            proxy.signal(signal.SIGSTOP)
            wait_until(lambda: stopped(proxy))
            client.close()
            time.sleep(0.05)
            go.set()
            assert sent.wait(60)
            proxy.signal(signal.SIGCONT)
            assert proxy.access()[0]["outcome"] == "client_abort"
            proxy.settled()
            with Client(proxy) as other:
                assert other.request(WHOLE).status == 200
            assert len(backend.connections) == 1

    def test_a_request_that_is_not_whole_is_closed_all_the_same(self):
        scene = Scene()
        with Backend(scene) as backend, Proxy(f"{backend.url}?on-abort=finish") as proxy:
            client = Client(proxy)
            client.send(HEAD + b"Content-Length: 100\r\n\r\n{")
            assert scene.reached.wait(60)
            client.close()
            wait_until(lambda: scene.closed_at)

    def test_a_backend_that_stalls_is_not_waited_for_for_ever(self):
        scene = Scene(sse_head() + chunk(b"data: 1\n\n"))
        with (
            Backend(scene) as backend,
            Proxy(f"{backend.url}?on-abort=finish", options=["--idle-timeout", "300ms"]) as proxy,
        ):
            client = Client(proxy)
            client.send(WHOLE)
            client.read_head()
            client.close()
            wait_until(lambda: scene.closed_at)
            assert proxy.access()[0]["outcome"] == "client_abort"
            proxy.settled()

    def test_what_a_blocked_client_did_not_read_is_read_for_it(self):
        finished = threading.Event()

        def flood(conn: Connection) -> None:
            conn.read_request()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (32 << 20))
            for _ in range(32):
                conn.send(bytes(1 << 20))
            finished.set()
            conn.read_request()
            respond(conn)

        with Backend(flood) as backend, Proxy(f"{backend.url}?on-abort=finish") as proxy:
            client = Client(proxy)
            client.send(WHOLE)
            proxy.wait_metric("llmpipe_buffers_held", 1)
            client.reset()
            assert finished.wait(60)
            proxy.settled()
            assert proxy.metric("llmpipe_buffers_held") == 0
            with Client(proxy) as other:
                assert other.request(WHOLE).body == b"ok"
            assert len(backend.connections) == 1

    def test_only_the_backend_that_asks_for_it(self):
        """The switch is one backend's, not the proxy's."""
        scenes = [Scene(), Scene()]
        with (
            Backend(scenes[0]) as gentle,
            Backend(scenes[1]) as other,
            Proxy(f"{gentle.url}?on-abort=finish", other.url) as proxy,
        ):
            clients = [Client(proxy), Client(proxy)]
            for client in clients:
                client.send(WHOLE)
            for scene in scenes:
                assert scene.reached.wait(60)
            for client in clients:
                client.close()
            wait_until(lambda: scenes[1].closed_at)
            assert not scenes[0].closed_at
            assert proxy.metric("llmpipe_in_flight", backend=gentle.url) == 1
            gentle.connections[0].close()
            proxy.settled()


def test_a_client_that_resets_while_its_backend_reads_nothing(proxy_to):
    """The upload is blocked, so the client's socket is not read; the RST is seen all the same."""
    proxy = proxy_to(lambda conn: conn.read_head())
    client = Client(proxy)
    client.send(HEAD + b"Content-Length: %d\r\n\r\n" % (60 << 20))
    client.sock.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            client.sock.send(bytes(65536))
    client.reset()
    line = proxy.access()[0]
    assert (line["outcome"], line["phase"]) == ("client_abort", "body")
    assert line["close_ms"] < BOUND * 1000
    proxy.settled()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_client_that_leaves_before_it_has_read_what_is_there(proxy_to, how):
    """The backend is done and its connection kept; nobody but the client is missing."""

    def answer(conn: Connection) -> None:
        for _ in range(2):
            conn.read_request()
            respond(conn, bytes(16 << 20))

    with Backend(answer) as backend:
        proxy = proxy_to(backend)
        client = Client(proxy)
        client.send(WHOLE)
        proxy.wait_metric("llmpipe_buffers_held", 1)
        client.read(1 << 20)
        leave(client, how)
        line = proxy.access()[0]
        assert (line["outcome"], line["status"]) == ("client_abort", 499)
        assert line["bytes_down"] < 16 << 20
        proxy.settled()
        assert proxy.metric("llmpipe_buffers_held") == 0
        backend.errors.clear()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_many_leave_at_once_on_several_workers(proxy_to, how):
    closed = []

    def silent(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head())
        closed.append(conn.wait_eof(60))

    proxy = proxy_to(silent, options=["--workers", "2"])
    clients = [Client(proxy) for _ in range(100)]
    for client in clients:
        client.send(WHOLE)
        client.read_head()
    for client in clients:
        leave(client, how)
    left_at = time.monotonic()
    wait_until(lambda: len(closed) == 100)
    assert max(closed) - left_at < BOUND
    proxy.settled()
    assert proxy.metric("llmpipe_exchanges_total", outcome="client_abort") == 100
    assert proxy.metric("llmpipe_disconnect_seconds_count") == 100
    assert proxy.metric("llmpipe_upstreams") == 0
