"""What a service manager is told, as sd_notify(3) says: a real datagram socket, a real proxy."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from harness import TIMEOUT, Backend, Client, Connection, Proxy, answer_all, chunk, free_port, sse_head

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The manager's socket, and its name as NOTIFY_SOCKET has it."""
    name = f"@llmpipe-{uuid.uuid4().hex}" if request.param == "abstract" else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if request.param == "abstract" else name)
        sock.settimeout(30)
        yield sock, name


def test_ready_reloading_ready_stopping(manager: tuple[socket.socket, str]) -> None:
    told, name = manager
    with Backend(answer_all) as backend, Proxy(backend.url, env={"NOTIFY_SOCKET": name}) as proxy:
        assert told.recv(1000) == b"READY=1"
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        proxy.signal(signal.SIGHUP)
        reloading = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", told.recv(1000))
        assert reloading
        assert before <= int(reloading[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert told.recv(1000) == b"READY=1"
        proxy.signal(signal.SIGTERM)
        assert told.recv(1000) == b"STOPPING=1"
        assert proxy.wait_exit() == 0
        told.setblocking(False)
        with pytest.raises(BlockingIOError):
            told.recv(1000)


def test_it_is_ready_when_it_answers(manager: tuple[socket.socket, str]) -> None:
    """Who was told may send a request at once, and looks at no log."""
    told, name = manager
    port = free_port()
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off"]
        command += ["--workers", "1", "--log-level", "error", "--backend", backend.url]
        with subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": name}) as process:
            try:
                assert told.recv(1000) == b"READY=1"
                with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            finally:
                process.terminate()
    assert process.returncode == 0


def test_stopping_comes_when_the_drain_begins_not_when_it_ends(manager: tuple[socket.socket, str]) -> None:
    told, name = manager

    def held(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.wait_eof(30)

    with Backend(held) as backend, Proxy(backend.url, env={"NOTIFY_SOCKET": name}) as proxy:
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            assert told.recv(1000) == b"READY=1"
            proxy.signal(signal.SIGTERM)
            assert told.recv(1000) == b"STOPPING=1"
            assert proxy.process.poll() is None
        assert proxy.wait_exit() == 0


def test_a_manager_that_is_gone_is_a_line_in_the_log(tmp_path: Path) -> None:
    with Backend(answer_all) as backend, Proxy(backend.url, env={"NOTIFY_SOCKET": f"{tmp_path}/nobody"}) as proxy:
        line = proxy.wait_log("service manager not told")
        assert (line["level"], line["state"]) == ("warning", "READY")
        with Client(proxy) as client:
            assert client.request(GET).status == 200


def test_a_manager_that_does_not_read_holds_nothing(tmp_path: Path) -> None:
    path = f"{tmp_path}/notify"
    with ExitStack() as stack:
        told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        told.bind(path)
        sent = -1
        while sent != 0:  # until a new sender cannot send anything: each has a buffer of its own that may be full first
            filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            filler.setblocking(False)
            sent = 0
            with suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", path)
                    sent += 1
        with Backend(answer_all) as backend, Proxy(backend.url, env={"NOTIFY_SOCKET": path}) as proxy:
            proxy.wait_log("service manager not told")
            with Client(proxy) as client:
                assert client.request(GET).status == 200


def test_without_a_manager_nothing_is_said() -> None:
    with Backend(answer_all) as backend, Proxy(backend.url, env={"NOTIFY_SOCKET": ""}) as proxy:
        proxy.signal(signal.SIGHUP)
        proxy.wait_log("reloaded")
    assert not [line for line in proxy.log if line["event"] == "service manager not told"]
