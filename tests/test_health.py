"""Rule L: active checks of backends, with real processes: asked now and then, left out where they fail, and back again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Backend, Client, Connection, Proxy, chunk, free_port, respond, sse_head, wait_until

from llmpipe.http_client import Question, ask

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
FAST = 'health = { path = "/health", interval = 0.1, timeout = 30, fall = 2, rise = 2 }'
SHORT = FAST.replace("30", "2")
"""Where a check has to run into its time. A server that is only slow may run into it too, now and then."""


class Server:
    """A backend whose health can be told."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.health = 200
        self.checks: list[Any] = []
        self.fails = 0
        """So many checks more are answered with 503."""
        self.hang = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            if request.line.split()[1] != b"/health":
                respond(connection, self.name)
                continue
            self.checks.append(request)
            if self.fails:
                self.fails -= 1  # before the answer, with which the next check may come
                connection.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
                continue
            if self.health == 0:
                self.hang.wait(60)
                connection.close()
                return
            connection.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self.health)


def write(folder: Path, *backends: Backend, more: str = FAST) -> str:
    path = folder / "llmpipe.toml"
    rows = "".join(
        f'[[pools.p.backends]]\nurl = "{backend.url}"\nname = "{number}"\n' for number, backend in enumerate(backends)
    )
    path.write_text(f"[pools.p]\n{more}\n{rows}")
    return str(path)


def names(client: Client, n: int = 6) -> set[bytes]:
    return {client.request(GET).body for _ in range(n)}


@pytest.mark.parametrize("status", [503, 404, 500])
def test_l1_one_that_fails_is_left_out_and_comes_back(tmp_path: Path, status: int) -> None:
    one, two = Server("one"), Server("two")
    with (
        Backend(one) as a,
        Backend(two) as b,
        Proxy(options=("--config", write(tmp_path, a, b))) as proxy,
        Client(proxy) as client,
    ):
        assert names(client) == {b"one", b"two"}
        one.health = status
        line = proxy.wait_log("backend unhealthy")
        assert (line["backend"], line["reason"]) == ("0", f"status {status}")
        assert names(client) == {b"two"}
        proxy.wait_metric("llmpipe_backend_up", 0, backend="0")
        one.health = 200
        assert proxy.wait_log("backend healthy")["backend"] == "0"
        assert names(client) == {b"one", b"two"}
        request = one.checks[0]
        assert request.line == b"GET /health HTTP/1.1"
        assert request.values(b"host") == [a.url.removeprefix("http://").encode()]
        assert request.values(b"connection") == [b"close"]


def test_l1_the_last_one_is_asked_all_the_same(tmp_path: Path) -> None:
    one = Server("one")
    one.health = 503
    with Backend(one) as a, Proxy(options=("--config", write(tmp_path, a))) as proxy, Client(proxy) as client:
        proxy.wait_log("backend unhealthy")
        assert names(client) == {b"one"}
        assert proxy.admin("/readyz")[0] == 503


def test_l1_fewer_failures_than_that_are_none(tmp_path: Path) -> None:
    one = Server("one")
    more = 'health = { path = "/health", interval = 0.1, timeout = 30, fall = 3 }'
    with Backend(one) as a, Proxy(options=("--config", write(tmp_path, a, more=more))) as proxy:
        for _ in range(3):
            one.fails = 2
            wait_until(lambda: one.fails == 0)
            seen = len(one.checks)
            wait_until(lambda seen=seen: len(one.checks) > seen + 1)
        assert [line for line in proxy.log if line["event"] == "backend unhealthy"] == []
        one.fails = 3
        proxy.wait_log("backend unhealthy")


def test_l1_one_that_does_not_answer_and_one_that_is_not_there(tmp_path: Path) -> None:
    one, two = Server("one"), Server("two")
    one.health = 0
    with Backend(one) as a, Backend(two) as b:
        path = write(tmp_path, a, b, more=SHORT)
        gone = f'[[pools.p.backends]]\nurl = "http://127.0.0.1:{free_port()}"\nname = "2"\n'
        Path(path).write_text(Path(path).read_text() + gone)
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:

            def reasons() -> dict[str, str]:
                return {line["backend"]: line["reason"] for line in proxy.log if line["event"] == "backend unhealthy"}

            wait_until(lambda: reasons().keys() >= {"0", "2"})
            assert (reasons()["0"], reasons()["2"]) == ("no answer within 2 s", "Connection refused")
            wait_until(lambda: names(client) == {b"two"})
            one.hang.set()


def test_l2_one_that_streams_is_well_whatever_its_health_says(tmp_path: Path) -> None:
    """Busy is not dead: an engine that works at its limit may not come to answer its health path."""
    stop = threading.Event()
    checks: list[str] = []

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if request.line.split()[1] == b"/health":
            checks.append("a")
            connection.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
            return
        connection.send(sse_head() + chunk(b"data: x\n\n"))
        assert stop.wait(60)
        connection.send(b"0\r\n\r\n")

    silent = Server("b")
    silent.health = 503
    with Backend(script) as a, Backend(silent) as b:
        path = write(tmp_path, a, b, more="")
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:
            client.send(GET)
            client.read_head()
            client.recv_until(b"data: x")
            # Both fail their checks; from the one content has come in the last minute.
            write(tmp_path, a, b, more='health = { path = "/health", interval = 60, fall = 1 }')
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: checks)
            assert proxy.wait_log("backend unhealthy")["backend"] == "1"
            time.sleep(0.2)
            assert [line["backend"] for line in proxy.log if line["event"] == "backend unhealthy"] == ["1"]
            stop.set()
            client.recv_until(b"0\r\n\r\n")


def test_l4_checks_do_not_pile_up(tmp_path: Path) -> None:
    one = Server("one")
    one.health = 0
    with Backend(one) as a, Proxy(options=("--config", write(tmp_path, a))) as proxy:
        wait_until(lambda: one.checks)
        time.sleep(1)
        assert len(one.checks) == 1  # and not 10
        one.hang.set()
        wait_until(lambda: len(one.checks) > 3)
        assert proxy.descriptors() < 64


def test_l1_a_backend_that_moves_is_not_what_it_was(tmp_path: Path) -> None:
    """Its name is the same, so the engine knows it by what it found at the old place."""
    one, two = Server("one"), Server("two")
    one.health = 503
    with (
        Backend(one) as a,
        Backend(two) as b,
        Proxy(options=("--config", write(tmp_path, a))) as proxy,
        Client(proxy) as client,
    ):
        proxy.wait_metric("llmpipe_backend_up", 0, backend="0")
        write(tmp_path, b)
        proxy.signal(signal.SIGHUP)
        proxy.wait_log("reloaded")
        proxy.wait_metric("llmpipe_backend_up", 1, backend="0")
        wait_until(lambda: client.request(GET).body == b"two")
        write(tmp_path, a, more="")
        proxy.signal(signal.SIGHUP)
        wait_until(lambda: client.request(GET).body == b"one")
        proxy.wait_metric("llmpipe_backend_up", 1, backend="0")


def test_l1_checks_follow_a_reload(tmp_path: Path) -> None:
    one, two = Server("one"), Server("two")
    with (
        Backend(one) as a,
        Backend(two) as b,
        Proxy(options=("--config", write(tmp_path, a, b))) as proxy,
        Client(proxy) as client,
    ):
        one.health = 503
        proxy.wait_log("backend unhealthy")
        write(tmp_path, a, b, more="")
        proxy.signal(signal.SIGHUP)
        proxy.wait_metric("llmpipe_backend_up", 1, backend="0")
        assert names(client) == {b"one", b"two"}
        seen = len(one.checks)
        time.sleep(0.3)
        assert len(one.checks) <= seen + 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_l1_a_server_that_is_killed_or_stopped_and_comes_back(tmp_path: Path, how: signal.Signals) -> None:
    """With a real server: uvicorn, as the mock runs on."""
    ports = [free_port(), free_port()]

    def start(port: int) -> subprocess.Popen[bytes]:
        words = ["mock", "--listen", f"127.0.0.1:{port}", "--tokens", "2", "--tokens-per-second", "0", "--ttft", "0"]
        return subprocess.Popen([sys.executable, "-m", "llmpipe", *words], stderr=subprocess.DEVNULL)

    path = tmp_path / "llmpipe.toml"
    rows = "".join(f'[[pools.p.backends]]\nurl = "http://127.0.0.1:{port}"\nname = "{port}"\n' for port in ports)
    path.write_text(f"[pools.p]\n{SHORT}\n{rows}")
    processes = [start(port) for port in ports]
    try:
        with Proxy(options=("--config", str(path))) as proxy, Client(proxy) as client:
            wait_until(lambda: all(proxy.metric("llmpipe_backend_up", backend=str(port)) == 1 for port in ports))
            wait_until(lambda: client.request(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").status == 200)
            processes[0].send_signal(how)
            proxy.wait_metric("llmpipe_backend_up", 0, backend=str(ports[0]))
            for _ in range(10):
                assert client.request(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
            if how == signal.SIGKILL:
                processes[0].wait()
                processes[0] = start(ports[0])
            else:
                processes[0].send_signal(signal.SIGCONT)
            proxy.wait_metric("llmpipe_backend_up", 1, backend=str(ports[0]))
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.0 503 Busy\r\n\r\n", 503),
        (b"", None),
        (b"HTTP/1.1 200 O", None),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, None),
    ],
)
def test_l1_what_a_check_is_answered_with(answer: bytes, status: int | None) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(answer)
        connection.close()

    with Backend(script) as backend:
        asked = ask(("127.0.0.1", backend.port), Question("b", "/health", "health check"))
        if status is None:
            with pytest.raises(Exception, match=r"."):
                asyncio.run(asked)
        else:
            assert asyncio.run(asked).status == status
