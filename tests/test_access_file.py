"""The access log in a file of its own: opened at the start, opened anew by SIGUSR1, and never in the way."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generations import Generations
from harness import Backend, Client, Proxy, answer_all, wait_until

from llmpipe import log

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    """The lines of files, each of which must be whole JSON."""
    found = []
    for path in paths:
        data = path.read_bytes()
        assert data == b"" or data.endswith(b"\n"), f"{path} ends inside of a line"
        found += [json.loads(line) for line in data.splitlines()]
    return found


def ask(client: Client, *ids: str) -> None:
    """A request with each of these ids, pipelined."""
    client.send(b"".join(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\n\r\n" % name.encode() for name in ids))
    for _ in ids:
        assert client.read_response().status == 200


def test_lines_are_in_the_file_and_no_more_on_stderr(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("{}\n")
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    with Client(proxy) as client:
        ask(client, "a", "b")
    wait_until(lambda: path.read_bytes().count(b"\n") == 3)
    found = lines_of(path)
    assert [line.get("request_id") for line in found] == [None, "a", "b"]
    assert [line["event"] for line in found[1:]] == ["access", "access"]
    assert not [line for line in proxy.log if line["event"] == "access"]


def test_a_new_file_is_for_its_owner_and_group_and_has_text_where_lines_are_text(
    proxy_to: Callable[..., Proxy], tmp_path: Path
) -> None:
    path = tmp_path / "access.log"
    before = os.umask(0)
    try:
        proxy = proxy_to(answer_all, options=["--access-log", str(path)])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert " info " not in path.read_text()
    with Client(proxy) as client:
        client.request(GET)
    proxy.close()
    assert lines_of(path)[0]["status"] == 200


def test_text_lines(tmp_path: Path) -> None:
    file = log.LineFile(str(tmp_path / "log"), "text")
    file.write("access", {"path": "/a b", "failed": ("x:y",), "status": None}, 0.0)
    file.close()
    file.close()
    assert (tmp_path / "log").read_text() == '1970-01-01T00:00:00.000Z info    access path="/a b" failed=x:y status=-\n'


@pytest.mark.parametrize("level", ["warning", "error"])
def test_the_level_of_the_log_is_not_that_of_the_file(
    proxy_to: Callable[..., Proxy], tmp_path: Path, level: str
) -> None:
    path = tmp_path / "access.log"
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0", "--admin", "off"]
        command += ["--log-format", "json", "--backend", backend.url, "--access-log", str(path)]
        # Nobody hears where it listens: its only request is one that it gets from the socket that it is handed.
        from harness import free_port  # noqa: PLC0415

        port = free_port()
        command[command.index("127.0.0.1:0")] = f"127.0.0.1:{port}"
        with subprocess.Popen([*command, "--log-level", level], stderr=subprocess.PIPE) as process:
            try:
                ask_when_it_listens(port)
                wait_until(lambda: path.read_bytes().count(b"\n") == 1)
            finally:
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")


def ask_when_it_listens(port: int) -> None:
    import socket  # noqa: PLC0415

    def answered() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                sock.sendall(GET)
                return sock.recv(100).startswith(b"HTTP/1.1 200")
        except ConnectionRefusedError:
            return False

    wait_until(answered)
