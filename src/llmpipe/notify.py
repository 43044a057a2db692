"""Tells a service manager what state the proxy is in, as sd_notify(3) says. Without one, nothing happens.

It may not stop the proxy: who cannot be told is a line in the log.
"""

import os
import socket
import struct
import time
from collections.abc import MutableMapping

from llmpipe import log

TIMEOUT = 1
"""Seconds that a message may take: a manager that does not read must not hold the control plane for longer."""


class Notifier:
    """Sends states to the socket that NOTIFY_SOCKET names; the variable is removed, for the socket is this process's."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._path = environment.pop("NOTIFY_SOCKET", "")

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

    def _send(self, state: str) -> None:
        if not self._path:
            return
        # "@" stands for the zero byte that an abstract name begins with.
        address = b"\0" + os.fsencode(self._path[1:]) if self._path.startswith("@") else os.fsencode(self._path)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # Not settimeout(): to poll(2) this kind of socket is writable though the manager's queue is full.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", TIMEOUT, 0))
                sock.sendto(state.encode(), address)
        except OSError as error:
            log.warning("service manager not told", state=state.partition("=")[0], error=str(error.strerror or error))
