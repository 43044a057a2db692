"""Real third-party servers, each in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from harness import free_port, wait_until

BACKENDS = Path(__file__).parent / "backends"


class Server:
    """A server program on a port; `lines` is what it wrote to stdout."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, str(BACKENDS / f"{program}.py"), str(self.port), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())

    def _listens(self) -> bool:
        assert self._process.poll() is None, "the server ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def wait_ready(self) -> None:
        wait_until(self._listens, 40, f"a server on port {self.port}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def server(program: str, *arguments: str) -> Iterator[Server]:
    """Starts a program of tests/backends and waits until it listens."""
    running = Server(program, *arguments)
    try:
        running.wait_ready()
        yield running
    finally:
        running.close()
