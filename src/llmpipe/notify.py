"""Tells a service manager what state the proxy is in, as sd_notify(3) says. Without one, nothing happens.

It may not stop the proxy: a manager that does not read is tried again beside everything else, and who cannot be told is a
line in the log.
"""

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping

from llmpipe import log

RETRY_INTERVAL = 0.05
"""Seconds between two tries at a manager whose queue is full. No event tells: to poll(2) the socket is writable."""

PATIENCE = 5.0
"""Seconds that it is tried for."""


class Notifier:
    """Sends states, in order, to the socket that NOTIFY_SOCKET names; the variable is removed, for the socket is this process's.

    Its methods are called on the event loop, and never wait.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self.path = environment.pop("NOTIFY_SOCKET", "")
        """The value of NOTIFY_SOCKET, for a process that takes over; empty for no manager."""
        self._silent = False
        self._waiting: deque[tuple[str, float]] = deque()

    def ready(self) -> None:
        """It listens, for the first time or after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it. The time tells the manager's request from an older one."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """The drain has begun."""
        self._send("STOPPING=1")

    def main_pid(self, pid: int) -> None:
        """Which process the service is from now on. Where that is another one, its states are its own to tell: STOPPING=1 of this
        one would be taken for the service's."""
        self._silent = False
        self._send(f"MAINPID={pid}")
        self._silent = pid != os.getpid()

    def _send(self, state: str) -> None:
        if not self.path or self._silent:
            return
        self._waiting.append((state, time.monotonic() + PATIENCE))
        if len(self._waiting) == 1:
            self._try()

    def _try(self) -> None:
        while self._waiting:
            state, end = self._waiting[0]
            try:
                self._send_now(state)
            except BlockingIOError as error:
                if time.monotonic() < end:
                    asyncio.get_running_loop().call_later(RETRY_INTERVAL, self._try)
                    return
                self._tell(state, error)
            except OSError as error:
                self._tell(state, error)
            self._waiting.popleft()

    def _send_now(self, state: str) -> None:
        # "@" stands for the zero byte that an abstract name begins with.
        address = b"\0" + os.fsencode(self.path[1:]) if self.path.startswith("@") else os.fsencode(self.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)

    @staticmethod
    def _tell(state: str, error: OSError) -> None:
        log.warning("service manager not told", state=state.partition("=")[0], error=str(error.strerror or error))
