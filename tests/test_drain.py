"""Rule G4: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP touches nothing that lives."""

import signal
import threading
import time
from contextlib import ExitStack

import pytest
from harness import Backend, Client, Connection, Proxy, answer_all, chunk, respond, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Held:
    """A stream that goes on when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b"data: 1\n\n"))
        self.go.wait(120)
        conn.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_finish(number):
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client, Client(proxy) as silent:
            client.send(GET)
            client.read_head()
            assert proxy.admin("/readyz")[0] == 200
            proxy.signal(number)
            proxy.wait_log("draining")
            status, body = proxy.admin("/readyz")
            assert (status, "draining" in body) == (503, True)
            assert proxy.admin("/healthz")[0] == 200
            assert proxy.metric("llmpipe_draining") == 1
            wait_until(lambda: refused(proxy))
            assert silent.read_eof() == b""
            time.sleep(0.2)
            assert proxy.process.poll() is None
            held.go.set()
            assert b"data: 2" in client.read_eof()
        assert proxy.wait_exit() == 0
        assert proxy.wait_log("stopped")["clean"] is True
        assert proxy.access()[0]["outcome"] == "ok"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_was_answered_is_closed_and_what_was_not_is_waited_for(workers):
    """A connection is opened to send a request, which may be on its way when the drain begins."""
    while not drained_in_time(workers):  # the machine stood still, and they had their second
        pass


def drained_in_time(workers: str) -> bool:
    with (
        Backend(answer_all) as backend,
        Proxy(backend.url, options=["--workers", workers]) as proxy,
        ExitStack() as stack,
    ):
        # In turns to each worker, so that each has one that was answered: its end says that the worker drains.
        first, second, one, other, silent = (stack.enter_context(Client(proxy)) for _ in range(5))
        for answered in (one, other):
            assert answered.request(GET).status == 200
            assert answered.request(GET).status == 200
        proxy.wait_metric("llmpipe_clients", 5)
        begun = time.monotonic()
        proxy.signal(signal.SIGTERM)
        for answered in (one, other):
            assert answered.read_eof() == b""
        for client in (first, second):
            client.send(GET)
        if time.monotonic() - begun > 0.8:
            return False
        for client in (first, second):
            response = client.read_response()
            assert (response.status, response.values(b"connection")) == (200, [b"close"])
            assert client.read_eof() == b""
        assert silent.read_eof() == b""
        assert proxy.wait_exit() == 0
        assert proxy.wait_log("stopped")["clean"] is True
        assert [line["outcome"] for line in proxy.access(6)] == ["ok"] * 6
    return True


def test_a_connection_that_sends_nothing_does_not_hold_the_drain():
    """Whatever its other time-outs say: it comes out of the backlog as the drain begins, or has waited for long."""
    with Backend(answer_all) as backend, Proxy(backend.url, options=["--keepalive-timeout", "0"]) as proxy:
        with Client(proxy) as silent, proxy.connect():
            start = time.monotonic()
            proxy.signal(signal.SIGTERM)
            assert silent.read_eof() == b""
            assert time.monotonic() - start > 0.5
            assert proxy.wait_exit() == 0


def refused(proxy: Proxy) -> bool:
    try:
        proxy.connect().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_a_response_during_the_drain_says_close():
    gate = threading.Event()

    def slow(conn: Connection) -> None:
        conn.read_request()
        gate.wait(60)
        respond(conn)

    with Backend(slow) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        backend.wait_connections(1)
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        time.sleep(0.1)
        gate.set()
        response = client.read_response()
        assert response.status == 200
        assert response.values(b"connection") == [b"close"]
        assert client.read_eof() == b""
        assert proxy.wait_exit() == 0


def cut(options: list[str], second: int | None) -> None:
    held = Held()
    with Backend(held) as backend, Proxy(backend.url, options=options) as proxy:
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("draining")
            if second:
                time.sleep(0.1)
                proxy.signal(second)
            body = client.read_eof()
            assert not body.endswith(b"0\r\n\r\n")  # it was not waited for
        assert proxy.wait_exit() == 1
        assert proxy.access()[0]["outcome"] == "shutdown"
        held.go.set()
        backend.errors.clear()


def test_the_drain_limit_cuts():
    cut(["--drain-timeout", "300ms"], None)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second):
    cut([], second)


@pytest.mark.slow
def test_a_thousand_streams_finish():
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy:
        clients = [Client(proxy) for _ in range(1000)]
        try:
            for client in clients:
                client.send(GET)
            proxy.wait_metric("llmpipe_streaming_active", 1000, timeout=100)
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("draining")
            held.go.set()
            for client in clients:
                client.read_head()
                assert client.read_eof() == chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n") + b"0\r\n\r\n"
            assert proxy.wait_exit() == 0
        finally:
            for client in clients:
                client.close()


def test_sighup_touches_no_live_stream():
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        client.read_head()
        proxy.signal(signal.SIGHUP)
        proxy.wait_log("reloaded")
        assert proxy.admin("/readyz")[0] == 200
        held.go.set()
        assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"


def test_sighup_keeps_idle_upstreams():
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.request(GET)
        proxy.signal(signal.SIGHUP)
        proxy.wait_log("reloaded")
        client.request(GET)
        assert len(backend.connections) == 1


def test_several_workers_drain():
    with Backend(answer_all) as backend, Proxy(backend.url, options=["--workers", "3"]) as proxy:
        clients = [Client(proxy) for _ in range(9)]
        for client in clients:
            assert client.request(GET).status == 200
        assert len(backend.connections) >= 3  # each worker has its own
        for client in clients:
            client.close()


def test_readiness_fails_before_listening_stops():
    """A load balancer must hear of it while connections are still taken."""
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        client.read_head()
        proxy.signal(signal.SIGTERM)
        wait_until(lambda: refused(proxy))
        assert proxy.admin("/readyz")[0] == 503
        held.go.set()
        assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
        assert proxy.wait_exit() == 0


def test_a_request_that_has_begun_is_answered():
    """Half a head is a request too; what is pipelined behind it is not answered."""
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET[:5])
        proxy.wait_metric("llmpipe_buffers_held", 1)
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        client.send(GET[5:] + GET)
        response = client.read_response()
        assert response.status == 200
        assert response.values(b"connection") == [b"close"]
        assert client.read_eof() == b""
        assert proxy.wait_exit() == 0


def test_a_head_that_stays_half_does_not_hold_the_drain():
    with Backend(answer_all) as backend, Proxy(backend.url, options=["--head-timeout", "1s"]) as proxy:
        with Client(proxy) as client:
            client.send(GET[:5])
            proxy.wait_metric("llmpipe_accepted_total", 1)  # what is held may be gone when it is looked at
            proxy.signal(signal.SIGTERM)
            assert client.read_response().status == 408
            assert proxy.wait_exit() == 0


def test_a_tunnel_is_waited_for():
    def echo(conn: Connection) -> None:
        conn.read_head()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        while data := conn.recv():
            conn.send(data)

    with Backend(echo) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
            client.read_head()
            proxy.signal(signal.SIGTERM)
            wait_until(lambda: refused(proxy))
            client.send(b"hello")
            assert client.read(5) == b"hello"
            assert proxy.process.poll() is None
        assert proxy.wait_exit() == 0


def test_a_backend_that_may_finish_is_waited_for():
    """It was not told to stop; so it gets its time."""
    held = Held()
    with Backend(held) as backend, Proxy(f"{backend.url}?on-abort=finish") as proxy:
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
        proxy.wait_metric("llmpipe_finishing", 1)
        proxy.signal(signal.SIGTERM)
        wait_until(lambda: refused(proxy))
        time.sleep(0.2)
        assert proxy.process.poll() is None
        held.go.set()
        assert proxy.wait_exit() == 0
        assert proxy.access()[0]["phase"] == "finish"


def test_sighup_is_not_a_second_signal():
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        client.read_head()
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        proxy.signal(signal.SIGHUP)
        time.sleep(0.2)
        assert proxy.process.poll() is None
        held.go.set()
        assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
        assert proxy.wait_exit() == 0


def test_what_is_cut_says_why_where_it_may():
    """A response that has not begun gets a 503; an event stream gets its one error event, if that is on."""

    def serve(conn: Connection) -> None:
        if b"/silent" not in conn.read_head():
            conn.send(sse_head() + chunk(b"data: 1\n\n"))
        conn.wait_eof()

    options = ["--on-midstream-error", "event", "--drain-timeout", "200ms"]
    with Backend(serve) as backend, Proxy(backend.url, options=options) as proxy:
        with Client(proxy) as silent, Client(proxy) as client:
            silent.send(b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n")
            backend.wait_connections(1)
            client.send(GET)
            client.read_head()
            proxy.signal(signal.SIGTERM)
            response = silent.read_response()
            assert (response.status, response.error()["code"]) == (503, "shutdown")
            body = client.read_eof()
            assert body.count(b'data: {"error"') == 1
            assert b'"code": "shutdown"' in body
            assert not body.endswith(b"0\r\n\r\n")
        assert proxy.wait_exit() == 1


def test_sighup_again_and_again_beside_a_flood(proxy_to):
    piece = bytes(range(256)) * 4096

    def flood(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (60 * len(piece)))
        for _ in range(60):
            conn.send(piece)

    proxy = proxy_to(flood)
    stop = threading.Event()

    def hang_up() -> None:
        while not stop.wait(0.01):
            proxy.signal(signal.SIGHUP)

    thread = threading.Thread(target=hang_up)
    thread.start()
    try:
        with Client(proxy) as client:
            assert client.request(GET).body == piece * 60
    finally:
        stop.set()
        thread.join(10)
    proxy.wait_log("reloaded")
