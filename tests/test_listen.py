"""Rule G5: where clients connect: several addresses, both families, and one set of limits for all of them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress

import pytest
from harness import (
    TIMEOUT,
    Backend,
    Connection,
    Proxy,
    Stream,
    answer_all,
    chunk,
    free_port,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def ask(host: str, port: int) -> bytes:
    """The status line of an answer."""
    with socket.create_connection((host, port), timeout=TIMEOUT) as sock:
        sock.sendall(GET)
        return sock.recv(100).partition(b"\r\n")[0]


def addresses(proxy: Proxy) -> list[tuple[str, int]]:
    """Where it says that it listens."""
    told = [str(line["address"]) for line in proxy.log if line["event"] == "listening"]
    return [(host.strip("[]"), int(port)) for host, _, port in (address.rpartition(":") for address in told)]


def test_every_address_of_both_families(proxy_to: Callable[..., Proxy]) -> None:
    proxy = proxy_to(answer_all, options=["--listen", "[::]:0"])
    for host in ("127.0.0.1", "::1"):
        assert ask(host, proxy.port) == b"HTTP/1.1 200 OK"
    assert [line["client"] for line in proxy.access(2)] == ["127.0.0.1", "::1"]


def test_the_admin_endpoint_too(proxy_to: Callable[..., Proxy]) -> None:
    proxy = proxy_to(answer_all, options=["--admin", "[::]:0"])
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, proxy.admin_port), timeout=TIMEOUT) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("order", [("0.0.0.0", "[::]"), ("[::]", "0.0.0.0"), ("[::]", "127.0.0.1")])
def test_both_wildcards_of_a_port(proxy_to: Callable[..., Proxy], order: tuple[str, str]) -> None:
    port = free_port()
    proxy = proxy_to(answer_all, options=[word for host in order for word in ("--listen", f"{host}:{port}")])
    assert addresses(proxy) == [(host.strip("[]"), port) for host in order]
    for host in ("127.0.0.1", "::1"):
        assert ask(host, port) == b"HTTP/1.1 200 OK"


def test_beside_somebody_else_with_the_port_for_ipv4(proxy_to: Callable[..., Proxy]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        proxy = proxy_to(answer_all, options=["--listen", f"[::]:{port}"])
        assert proxy.wait_log("IPv6 only")["address"] == f"[::]:{port}"
        assert ask("::1", port) == b"HTTP/1.1 200 OK"


@pytest.fixture
def two(proxy_to: Callable[..., Proxy]) -> Callable[..., Proxy]:
    """Makes a proxy with two listening sockets."""

    def make(backend: object, *options: str, **arguments: object) -> Proxy:
        words = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0", *options]
        return proxy_to(backend, options=words, **arguments)

    return make


def connect(proxy: Proxy, at: int) -> Stream:
    wait_until(lambda: len(addresses(proxy)) == 2)
    return Stream(socket.create_connection(addresses(proxy)[at], timeout=TIMEOUT))


@pytest.mark.parametrize("workers", ["1", "3"])
def test_one_engine_accepts_at_all_of_them(two: Callable[..., Proxy], workers: str) -> None:
    proxy = two(answer_all, "--workers", workers)
    wait_until(lambda: len(addresses(proxy)) == 2)
    for _ in range(50):
        for host, port in addresses(proxy):
            assert ask(host, port) == b"HTTP/1.1 200 OK"
    assert proxy.metric("llmpipe_accepted_total") == 100


def test_from_the_environment() -> None:
    port = free_port()
    with Backend(answer_all) as backend:
        env = {**os.environ, "LLMPIPE_LISTEN": f"127.0.0.1:{port} 127.0.0.2:{port}\n", "LLMPIPE_ADMIN": "off"}
        command = [sys.executable, "-m", "llmpipe", "serve", "--workers", "1", "--backend", backend.url]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                for host in ("127.0.0.1", "127.0.0.2"):
                    assert f"address={host}:{port}" in process.stderr.readline()
                for host in ("127.0.0.1", "127.0.0.2"):
                    assert ask(host, port) == b"HTTP/1.1 200 OK"
            finally:
                process.terminate()
                process.communicate(timeout=30)
        assert process.returncode == 0


def test_limits_are_those_of_all_sockets(two: Callable[..., Proxy]) -> None:
    proxy = two(answer_all, "--max-connections", "1")
    with closing(connect(proxy, 0)) as first, closing(connect(proxy, 1)) as second:
        first.send(GET)
        assert first.read_head().startswith(b"HTTP/1.1 200 ")
        second.send(GET)
        assert second.read_head().startswith(b"HTTP/1.1 503 ")
    proxy.settled()
    assert ask(*addresses(proxy)[1]) == b"HTTP/1.1 200 OK"


def test_the_limit_of_an_address_is_that_of_all_sockets(two: Callable[..., Proxy]) -> None:
    proxy = two(answer_all, "--max-connections-per-ip", "1", "--trusted-proxies", "none")
    with closing(connect(proxy, 0)) as first, closing(connect(proxy, 1)) as second:
        first.send(GET)
        assert first.read_head().startswith(b"HTTP/1.1 200 ")
        second.send(GET)
        assert second.read_head().startswith(b"HTTP/1.1 429 ")


def test_a_pause_is_one_for_all_and_so_is_its_end(two: Callable[..., Proxy]) -> None:
    go = threading.Event()

    def held(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(sse_head() + chunk(b"data: 1\n\n"))
            go.wait(60)
            conn.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    with Backend(held) as backend:
        proxy = two(backend, nofile=101)
        most = (101 - 65) // 2
        streams = [connect(proxy, number % 2) for number in range(most + 10)]
        try:
            for stream in streams:
                stream.send(GET)
            proxy.wait_log("accept paused")
            proxy.wait_metric("llmpipe_streaming_active", most)
            go.set()
            left = {stream.sock: stream for stream in streams}
            while left:  # who waits is not the last that connected, but the last in the backlog of its socket
                readable, _, _ = select.select(list(left), [], [], TIMEOUT)
                assert readable
                for sock in readable:
                    stream = left.pop(sock)
                    stream.read_head()
                    assert stream.read_chunked() == b"data: 1\n\ndata: 2\n\n"
                    stream.close()
            proxy.wait_log("accept resumed")
        finally:
            go.set()
            for stream in streams:
                stream.close()
        proxy.settled()
        assert proxy.outcome("ok") == most + 10


def test_a_drain_ends_all_of_them_and_takes_what_waits(two: Callable[..., Proxy]) -> None:
    held = threading.Event()

    def wait(conn: Connection) -> None:
        conn.read_request()
        held.wait(60)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Backend(wait) as backend:
        proxy = two(backend)
        streams = [connect(proxy, number % 2) for number in range(40)]
        for stream in streams:
            stream.send(GET)
        proxy.signal(signal.SIGTERM)

        def all_refuse() -> bool:
            for address in addresses(proxy):
                with suppress(ConnectionError):
                    socket.create_connection(address, timeout=TIMEOUT).close()
                    return False
            return True

        wait_until(all_refuse)
        held.set()
        for stream in streams:
            assert stream.read_head().startswith(b"HTTP/1.1 200 ")
            stream.close()
        assert proxy.wait_exit() == 0
