"""Rule M over real sockets: places at backends, the queue for them, and what a client is told that gets none."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from harness import (
    LAST_CHUNK,
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    free_port,
    leave,
    respond,
    sse_head,
    wait_until,
)

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
LONG = 60.0


class Gate:
    """A backend that answers one request for each time that it is told to."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.working = self.most = 0
        self.lines: list[bytes] = []

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            with self.lock:
                self.working += 1
                self.most = max(self.most, self.working)
                self.lines.append(request.line)
            self.passes.acquire(timeout=LONG)
            with self.lock:
                self.working -= 1
            try:
                respond(connection, request.line.split()[1])
            except ConnectionError:
                return  # its client left

    def open(self, n: int = 1) -> None:
        for _ in range(n):
            self.passes.release()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open(10_000)


def limited(backend: Backend, places: int) -> str:
    return f"{backend.url}?max-in-flight={places}"


def waiting(proxy: Proxy) -> float:
    return sum(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_queue_length"))


def wait_waiting(proxy: Proxy, n: int) -> None:
    wait_until(lambda: waiting(proxy) == n, LONG, f"{n} wait")


def ask(proxy: Proxy, number: int) -> Client:
    client = Client(proxy)
    client.send(GET % number)
    return client


def test_m1_a_backend_has_no_more_than_it_may_and_the_rest_wait(gate: Gate, proxy_to: Callable[..., Proxy]) -> None:
    with Backend(gate) as backend:
        proxy = proxy_to(limited(backend, 2))
        clients = [ask(proxy, 0), ask(proxy, 1)]
        wait_until(lambda: gate.working == 2, LONG)
        for number in range(2, 6):
            clients.append(ask(proxy, number))
            wait_waiting(proxy, number - 1)  # so that the order is known
        assert len(gate.lines) == 2
        for answered in range(4):
            gate.open()
            wait_until(lambda n=3 + answered: len(gate.lines) == n, LONG)
            wait_waiting(proxy, 3 - answered)
        gate.open(2)
        for number, client in enumerate(clients):
            assert client.read_response().body == b"/%d" % number
            client.close()
        assert gate.most == 2
        assert [line.split()[1] for line in gate.lines[2:]] == [b"/2", b"/3", b"/4", b"/5"], "first come, first served"
        proxy.settled()
        assert proxy.metric("llmpipe_queue_wait_seconds_count", pool="default") == 4


@pytest.mark.parametrize("workers", [1, 4])
def test_m1_the_limit_is_the_process_s(proxy_to: Callable[..., Proxy], workers: int) -> None:
    lock = threading.Lock()
    counts = [0, 0]
    most = [0, 0]

    def works(which: int) -> Callable[[Connection], None]:
        def run(connection: Connection) -> None:
            while True:
                connection.read_request()
                with lock:
                    counts[which] += 1
                    most[which] = max(most[which], counts[which])
                time.sleep(0.002)
                with lock:
                    counts[which] -= 1
                respond(connection)

        return run

    with Backend(works(0)) as one, Backend(works(1)) as two:
        proxy = proxy_to(limited(one, 3), limited(two, 2), options=("--workers", str(workers)))
        statuses = []

        def client() -> None:
            with Client(proxy) as mine:
                for number in range(20):
                    statuses.append(mine.request(GET % number).status)

        threads = [threading.Thread(target=client) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert statuses == [200] * 480
        assert most == [3, 2]
        proxy.settled()
        assert waiting(proxy) == 0


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_m1_who_leaves_while_waiting_is_never_sent(gate: Gate, proxy_to: Callable[..., Proxy], how: str) -> None:
    with Backend(gate) as backend:
        proxy = proxy_to(limited(backend, 1))
        first = ask(proxy, 0)
        wait_until(lambda: gate.working == 1, LONG)
        second = ask(proxy, 1)
        wait_waiting(proxy, 1)
        third = ask(proxy, 2)
        wait_waiting(proxy, 2)
        leave(second, how)
        wait_waiting(proxy, 1)
        gate.open(2)
        assert first.read_response().body == b"/0"
        assert third.read_response().body == b"/2"
        assert [line.split()[1] for line in gate.lines] == [b"/0", b"/2"]
        (line,) = proxy.access(1, path="/1")
        assert (line["outcome"], line["phase"]) == ("client_abort", "queue")
        first.close()
        third.close()
        proxy.settled()


def test_m4_a_full_queue_is_429_and_says_when_to_come_again(gate: Gate, proxy_to: Callable[..., Proxy]) -> None:
    with Backend(gate) as backend:
        proxy = proxy_to(limited(backend, 1), options=("--queue-size", "1"))
        clients = [ask(proxy, 0)]
        wait_until(lambda: gate.working == 1, LONG)
        clients.append(ask(proxy, 1))
        wait_waiting(proxy, 1)
        with Client(proxy) as client:
            answer = client.request(GET % 2)
            assert answer.status == 429
            error = answer.error()
            assert (error["type"], error["code"]) == ("server_overloaded", "queue_full")
            assert "Waiting before a new request: 1;" in error["message"]
            assert 1 <= int(answer.values(b"Retry-After")[0]) <= 120
            assert 1000 <= int(answer.values(b"retry-after-ms")[0]) <= 120_000
            # The connection lives on, and so does the API of Anthropic, with its own shape.
            answer = client.request(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            assert answer.status == 429
            assert b'"type": "overloaded_error"' in answer.body
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as api:
            with pytest.raises(openai.RateLimitError) as caught:
                api.models.list()
            assert caught.value.code == "queue_full"
        gate.open(2)
        for client in clients:
            assert client.read_response().status == 200
            client.close()
        proxy.settled()
        assert proxy.outcome("queue_full") == 3
        assert proxy.metric("llmpipe_failures_total", reason="queue full") == 3


def test_m4_a_deadline_in_the_queue(gate: Gate, proxy_to: Callable[..., Proxy]) -> None:
    with Backend(gate) as backend:
        proxy = proxy_to(limited(backend, 1), options=("--queue-timeout", "200ms"))
        first = ask(proxy, 0)
        wait_until(lambda: gate.working == 1, LONG)
        with Client(proxy) as client:
            answer = client.request(GET % 1)
            assert (answer.status, answer.error()["code"]) == (429, "queue_timeout")
            # A client that says that it waits a tenth of a second only.
            answer = client.request(b"GET /2 HTTP/1.1\r\nHost: a\r\nx-request-timeout: 0.1\r\n\r\n")
            assert (answer.status, answer.error()["code"]) == (429, "queue_timeout")
        gate.open()
        assert first.read_response().status == 200
        first.close()
        assert len(gate.lines) == 1
        (line,) = proxy.access(1, path="/1")
        assert (line["outcome"], line["reason"], line["status"]) == ("queue_timeout", "deadline", 429)
        proxy.settled()


@pytest.mark.slow
def test_m3_comments_do_not_make_a_backend_look_faster(proxy_to: Callable[..., Proxy]) -> None:
    """What it has needed until its first content counts from the whole request, whatever kept its client patient meanwhile."""
    go = threading.Event()

    def prefills(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        for _ in range(8):
            connection.send(chunk(b": prefill\n\n"))
            time.sleep(0.15)
        connection.send(chunk(b"data: x\n\n") + LAST_CHUNK)
        connection.read_request()
        assert go.wait(LONG)
        respond(connection)

    with Backend(prefills) as backend:
        proxy = proxy_to(limited(backend, 1), options=("--queue-timeout", "6s", "--comments-count-as-content"))
        with Client(proxy) as client:
            client.send(GET % 0)
            client.read_head()
            client.read_chunked()
        first = ask(proxy, 1)
        wait_until(lambda: proxy.metric("llmpipe_in_flight", backend=backend.url) == 1, LONG)
        # Of its 8 s, nearly half are needed for the answer: so it gives up before one that has no time of its own, and waits for 6 s.
        with Client(proxy) as hurried, Client(proxy) as other:
            hurried.send(b"GET /2 HTTP/1.1\r\nHost: a\r\nx-request-timeout: 8\r\n\r\n")
            wait_waiting(proxy, 1)
            other.send(GET % 3)
            assert hurried.read_response().status == 429
            assert other.read_response().status == 429
        lines = [line["path"] for line in proxy.access(3) if line["status"] == 429]
        assert lines == ["/2", "/3"]
        go.set()
        assert first.read_response().status == 200
        first.close()


def test_m1_a_long_body_waits_in_its_socket(proxy_to: Callable[..., Proxy], gate: Gate) -> None:
    body = bytes(range(256)) * 4096 * 4
    got = []

    def take(connection: Connection) -> None:
        got.append(connection.read_request().body)
        respond(connection)

    def script(connection: Connection) -> None:
        if not got and not gate.lines:
            gate(connection)
        take(connection)

    with Backend(script) as backend:
        proxy = proxy_to(limited(backend, 1))
        first = ask(proxy, 0)
        wait_until(lambda: gate.working == 1, LONG)
        client = Client(proxy)
        sender = threading.Thread(
            target=client.send,
            args=(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body,),
        )
        sender.start()
        wait_waiting(proxy, 1)
        assert proxy.metric("llmpipe_request_bytes_kept") < 1 << 16
        first.close()  # which frees the place
        assert client.read_response().status == 200
        sender.join(LONG)
        assert got == [body]
        client.close()
        gate.open()
        proxy.settled()


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_m1_waits_for_a_backend_that_is_not_up_yet(proxy_to: Callable[..., Proxy], dead: int) -> None:
    # For longer than the budget of retries lasts: to ask whether one is up is no retry.
    port = free_port()
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(dead)]
    proxy = proxy_to(f"http://127.0.0.1:{port}", *urls, options=("--queue-cold-timeout", "5m"))
    clients = [ask(proxy, number) for number in range(5)]
    wait_until(lambda: proxy.metric("llmpipe_connect_errors_total") >= 6 + 10 * dead, LONG)
    wait_waiting(proxy, 5)
    assert all(client.silent(0.1) for client in clients)
    with Backend(answer_all, port=port) as backend:
        for client in clients:
            assert client.read_response().status == 200
            client.close()
        backend.catch_up()
        proxy.settled()
    assert proxy.outcome("ok") == 5


def test_m1_a_backend_that_does_not_come_up_in_time_is_503(proxy_to: Callable[..., Proxy]) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}", options=("--queue-cold-timeout", "300ms"))
    with Client(proxy) as client:
        answer = client.request(GET % 0)
        assert answer.status == 503
        error = answer.error()
        assert (error["type"], error["code"]) == ("service_unavailable_error", "no_backend")
        assert answer.values(b"Retry-After")
    proxy.settled()
    assert proxy.outcome("no_backend") == 1


def write(folder: Path, *pools: str) -> str:
    path = folder / "llmpipe.toml"
    path.write_text("\n".join(pools))
    return str(path)


def pool(name: str, backend: Backend, places: int, more: str = "") -> str:
    return f'[pools.{name}]\n{more}\n[[pools.{name}.backends]]\nurl = "{backend.url}"\nmax_in_flight = {places}\n'


def test_m1_a_reload_that_raises_the_limit_lets_them_go(gate: Gate, tmp_path: Path) -> None:
    with Backend(gate) as backend:
        path = write(tmp_path, pool("p", backend, 1))
        with Proxy(options=("--config", path)) as proxy:
            clients = [ask(proxy, number) for number in range(4)]
            wait_waiting(proxy, 3)
            write(tmp_path, pool("p", backend, 3))
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: gate.working == 3, LONG)
            wait_waiting(proxy, 1)
            gate.open(4)
            for client in clients:
                assert client.read_response().status == 200
                client.close()
            proxy.settled()


def test_m1_a_reload_that_takes_the_pool_away(gate: Gate, tmp_path: Path) -> None:
    with Backend(gate) as backend, Backend(answer_all) as other:
        path = write(tmp_path, pool("p", backend, 1))
        with Proxy(options=("--config", path)) as proxy:
            first = ask(proxy, 0)
            wait_until(lambda: gate.working == 1, LONG)
            second = ask(proxy, 1)
            wait_waiting(proxy, 1)
            write(tmp_path, pool("q", other, 1))
            proxy.signal(signal.SIGHUP)
            answer = second.read_response()
            assert answer.status in (200, 503)  # the only pool there is now, or none
            gate.open()
            assert first.read_response().status == 200
            first.close()
            second.close()
            proxy.settled()


def test_m1_the_pool_s_own_limit(gate: Gate, tmp_path: Path) -> None:
    # Two backends, three places for both together.
    with Backend(gate) as one, Backend(gate) as two:
        rows = "".join(f'[[pools.p.backends]]\nurl = "{backend.url}"\n' for backend in (one, two))
        path = write(tmp_path, f"[pools.p]\nmax_in_flight = 3\n{rows}")
        with Proxy(options=("--config", path, "--workers", "2")) as proxy:
            clients = [ask(proxy, number) for number in range(8)]
            wait_waiting(proxy, 5)
            wait_until(lambda: gate.working == 3, LONG)
            gate.open(8)
            for client in clients:
                assert client.read_response().status == 200
                client.close()
            assert gate.most == 3
            proxy.settled()


def test_m1_a_drain_serves_those_who_wait(gate: Gate, proxy_to: Callable[..., Proxy]) -> None:
    with Backend(gate) as backend:
        proxy = proxy_to(limited(backend, 1))
        clients = [ask(proxy, 0)]
        wait_until(lambda: gate.working == 1, LONG)
        clients.append(ask(proxy, 1))
        wait_waiting(proxy, 1)
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining", LONG)
        gate.open(2)
        for number, client in enumerate(clients):
            assert client.read_response().body == b"/%d" % number
            client.close()
        assert proxy.wait_exit(LONG) == 0


def test_m1_one_that_must_wait_twice(gate: Gate, proxy_to: Callable[..., Proxy]) -> None:
    # The first backend refuses the connection; the other one is full: it waits there.
    with Backend(gate) as backend:
        proxy = proxy_to(f"http://127.0.0.1:{free_port()}?tier=0", limited(backend, 1))
        first = ask(proxy, 0)
        wait_until(lambda: gate.working == 1, LONG)
        second = ask(proxy, 1)
        third = ask(proxy, 2)
        gate.open(3)
        for client in (first, second, third):
            assert client.read_response().status == 200
            client.close()
        assert gate.most == 1
        proxy.settled()
