"""A process that attacks a proxy at a bounded rate, and counts what it achieved.

    attacker.py KIND NUMBER HOST PORT PATH [yielding]

NUMBER is connections that stand, or for `aborts` and `churn` new ones a second. It prints "ready" when it has begun in full,
and for each line on its standard input one line of JSON: what it has counted. It ends, with an RST on every connection, when
its standard input does. Once ready, a yielding one runs under SCHED_IDLE: it attacks only while nobody else wants the CPU. Only
the standard library is used: it must start at once, wherever there is a Python.

It looks at its connections in turns and never waits for one of them, so a target that is slow does not slow the attack of the
others. The one exception is connect(), which waits where the target's backlog is full.
"""

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable

TICK = 0.002
"""Seconds of a turn: short, so that a rate is not a train of bursts."""

CATCH_UP = 0.02
"""Seconds that a turn makes up for at most. More would be a burst, and the rate is a bound."""

PERIOD = 1.0
"""Seconds in which each standing connection has its turn once."""

CONNECT_TIME = 5.0
SMALLEST_WINDOW = 4096
RESET = struct.pack("ii", 1, 0)


class Attacker:
    """What all kinds have in common: connections to one target, and counters."""

    def __init__(self, number: int, address: tuple[str, int], path: str) -> None:
        self.number = number
        self.counts = {"opened": 0, "open": 0, "failed": 0, "ended": 0, "pokes": 0, "answers": 0, "resets": 0}
        self._address = address
        host = f"{address[0]}:{address[1]}"
        self._get = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self._post = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()

    def open(self, first: bytes, window: int = 0) -> socket.socket | None:
        """Connects and sends the first bytes; None where that failed."""
        sock = socket.socket()
        sock.settimeout(CONNECT_TIME)
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            sock.connect(self._address)
            sock.setblocking(False)
            if first:
                sock.send(first)
        except OSError:
            sock.close()
            self.counts["failed"] += 1
            return None
        self.counts["opened"] += 1
        self.counts["open"] += 1
        return sock

    def reset(self, sock: socket.socket) -> None:
        """Closes with an RST."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        self.counts["open"] -= 1
        self.counts["resets"] += 1

    def ended(self, sock: socket.socket) -> None:
        """The target has closed it."""
        sock.close()
        self.counts["open"] -= 1
        self.counts["ended"] += 1

    def begin(self) -> None:
        """What has to stand before the attack is whole."""

    def turn(self, share: float) -> None:
        """One turn; `share` is the part of a second that it stands for."""
        raise NotImplementedError

    def end(self) -> None:
        """Leaves nothing open."""


class Standing(Attacker):
    """Connections that stay, and are poked once in a PERIOD; one that the target ends is opened anew at its next turn."""

    window = 0

    def __init__(self, number: int, address: tuple[str, int], path: str) -> None:
        super().__init__(number, address, path)
        self._connections: deque[socket.socket | None] = deque()
        self._due = 0.0

    def first(self) -> bytes:
        """What is sent at once."""
        raise NotImplementedError

    def poke(self, sock: socket.socket) -> None:
        """What is done at its turn."""

    def begin(self) -> None:
        for _ in range(self.number):
            self._connections.append(self.open(self.first(), self.window))

    def look(self, sock: socket.socket) -> bool:
        """Takes what the target has sent; whether the connection lives."""
        try:
            while data := sock.recv(65536):
                self.counts["answers"] += data.startswith(b"HTTP/1.1 ")
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def turn(self, share: float) -> None:
        self._due += self.number * share / PERIOD
        while self._due >= 1:
            self._due -= 1
            sock = self._connections.popleft()
            if sock is not None and not self.look(sock):
                self.ended(sock)
                sock = None
            if sock is None:
                sock = self.open(self.first(), self.window)
            else:
                with contextlib.suppress(OSError):  # its end is seen at the next look
                    self.poke(sock)
            self._connections.append(sock)

    def end(self) -> None:
        for sock in self._connections:
            if sock is not None:
                self.reset(sock)


class SlowHeads(Standing):
    """Heads that never end, a byte a second each."""

    def first(self) -> bytes:
        return self._post + b"X-Slow: "

    def poke(self, sock: socket.socket) -> None:
        self.counts["pokes"] += sock.send(b"x")


class SlowBodies(SlowHeads):
    """Bodies that never end."""

    def first(self) -> bytes:
        return self._post + b"Content-Length: 1000000\r\n\r\n{"


class SlowReaders(Standing):
    """Clients that ask for more than anybody holds for them and read a byte a second."""

    window = SMALLEST_WINDOW

    def first(self) -> bytes:
        return self._get

    def look(self, sock: socket.socket) -> bool:
        try:
            taken = len(sock.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.counts["pokes"] += taken
        return taken > 0


class FloodReaders(SlowReaders):
    """The same with a POST, as the load generator's source wants it."""

    def first(self) -> bytes:
        return self._post + b"Content-Length: 2\r\n\r\n{}"


class Idle(Standing):
    """Connections on which nothing is ever sent."""

    def first(self) -> bytes:
        return b""


class Aborts(Attacker):
    """Clients that connect, send a whole request and reset: every second one at once, the others a turn later."""

    def __init__(self, number: int, address: tuple[str, int], path: str) -> None:
        super().__init__(number, address, path)
        self._waiting: deque[socket.socket] = deque()
        self._due = 0.0

    def turn(self, share: float) -> None:
        while self._waiting:
            self.reset(self._waiting.popleft())
        self._due += self.number * share
        while self._due >= 1:
            self._due -= 1
            sock = self.open(self._post + b"Content-Length: 2\r\n\r\n{}")
            if sock is None:
                continue
            if self.counts["opened"] % 2:
                self.reset(sock)
            else:
                self._waiting.append(sock)

    def end(self) -> None:
        while self._waiting:
            self.reset(self._waiting.popleft())


class Churn(Aborts):
    """Clients that connect, ask, read the answer and close."""

    def turn(self, share: float) -> None:
        for _ in range(len(self._waiting)):
            sock = self._waiting.popleft()
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                self._waiting.append(sock)
                continue
            except OSError:
                data = b""
            self.counts["answers"] += data.startswith(b"HTTP/1.1 200 ")
            self.ended(sock)
        self._due += self.number * share
        while self._due >= 1:
            self._due -= 1
            opened = self.open(self._get)
            if opened is not None:
                self._waiting.append(opened)


KINDS: dict[str, type[Attacker]] = {
    "slow-heads": SlowHeads,
    "slow-bodies": SlowBodies,
    "slow-readers": SlowReaders,
    "flood-readers": FloodReaders,
    "idle": Idle,
    "aborts": Aborts,
    "churn": Churn,
}


def run(attacker: Attacker, say: Callable[[str], None], *, yielding: bool) -> None:
    """Attacks until standard input ends."""
    attacker.begin()
    if yielding:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    say("ready")
    last = time.monotonic()
    while True:
        wait = max(0.0, last + TICK - time.monotonic())
        if select.select([0], [], [], wait)[0]:
            asked = os.read(0, 1024)
            if not asked:
                break
            for _ in range(asked.count(b"\n")):
                say(json.dumps({"at": time.monotonic(), **attacker.counts}))
        now = time.monotonic()
        if now - last >= TICK:
            attacker.turn(min(now - last, CATCH_UP))
            last = now
    attacker.end()


def main() -> None:
    kind, number, host, port, path, *yielding = sys.argv[1:]

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    run(KINDS[kind](int(number), (host, int(port)), path), say, yielding=yielding == ["yielding"])


if __name__ == "__main__":
    main()
