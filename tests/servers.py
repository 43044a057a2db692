"""Starts the server programs of tests/backends, each a process of its own, and listens to what they print.

They are real servers on real frameworks. What they should do is the business of the programs and of the tests, not of this file.
"""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

from harness import TIMEOUT, wait_until

PROGRAMS = Path(__file__).parent / "backends"
START = 30.0
"""Seconds that a server may take to start."""

_numbers = itertools.count()


def unique(word: str = "name") -> str:
    """A name that no other exchange of this process has: what a server prints about it can be found."""
    return f"{word}-{next(_numbers)}"


def plain_environment() -> dict[str, str]:
    """The environment without what makes the proxy's own run special (sanitizers, proxies): for the other side's programs."""
    special = ("LD_PRELOAD", "PYTHONMALLOC", "ASAN_OPTIONS", "UBSAN_OPTIONS")
    return {k: v for k, v in os.environ.items() if k not in special and not k.lower().endswith("_proxy")}


class Server:
    """One server program; it serves from the end of __init__ on, and is killed at the end of the context."""

    def __init__(self, program: str, *options: str, port: int = 0) -> None:
        self.program = program
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / program), str(port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=plain_environment(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.wait_line("listening", START).split()[1])
        except BaseException:
            self.kill()
            raise
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, text: str) -> list[str]:
        """The lines that are `text` or go on behind it and a space."""
        return [line for line in self.lines.copy() if line == text or line.startswith(text + " ")]

    def wait_line(self, text: str, timeout: float = TIMEOUT) -> str:
        """The first such line, waited for."""
        wait_until(lambda: self.said(text) or self.process.poll() is not None, timeout, f"the server says {text!r}")
        if not self.said(text):
            self._reader.join(TIMEOUT)
        assert self.said(text), f"the server ended without {text!r}"
        return self.said(text)[0]

    def open(self, name: str, n: int = 1) -> None:
        """Opens a gate `n` times, directly."""
        status, _ = self.request("POST", f"/gate/{name}?n={n}")
        assert status == 200

    def request(self, method: str, target: str) -> tuple[int, bytes]:
        """Status and body of a direct request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def kill(self) -> None:
        """Ends it with no chance to say goodbye: the kernel closes its connections."""
        self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def uvicorn(*options: str, port: int = 0) -> Server:
    """The Starlette application under uvicorn."""
    return Server("starlette_app.py", *options, port=port)


def aiohttp(*options: str, port: int = 0) -> Server:
    """The aiohttp application."""
    return Server("aiohttp_app.py", *options, port=port)


def fastapi(*options: str, port: int = 0) -> Server:
    """The FastAPI application under uvicorn."""
    return Server("fastapi_app.py", *options, port=port)


def http_server(*options: str, port: int = 0) -> Server:
    """http.server, HTTP/1.0."""
    return Server("http10_app.py", *options, port=port)


def http_server_11(*options: str, port: int = 0) -> Server:
    """http.server, HTTP/1.1."""
    return Server("http10_app.py", "--protocol", "HTTP/1.1", *options, port=port)


def websockets(*options: str, port: int = 0) -> Server:
    """The WebSocket server."""
    return Server("websocket_app.py", *options, port=port)
