"""The proxy left running: random clients, random aborts in every phase, backends that are killed, stopped, restarted and moved, reloads.

python tests/soak.py --seconds 3600

Backends: one at an address; one that finishes what clients leave; one server whose name has two addresses; one whose name moves between
two. Every byte that a client gets is compared with what its request asked for, every request body with its digest, and what goes
through a tunnel in both directions. Each request has a name, which the proxy keeps as its X-Request-ID: every request that a
backend received or a client had an answer to must have one access line, with an outcome that agrees with what its client saw; no
request goes to an address that its backend has left; and at the end descriptors, buffers, counters and memory must be where they
began. Exit code 0, 1 with what was wrong, 130 after Ctrl-C (the checks are made then too). A seed repeats what is asked, not when
it arrives. It needs a C compiler, for the names (names.c).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import names
from harness import ERROR_TYPES, Proxy, wait_until

CLIENTS = 80
PATIENCE = 30.0  # seconds that an answer may take
WARM_UP = 65.0  # seconds before memory is looked at for the first time: figures of the last minute are kept
GROWTH = (24 if "asan" in os.environ.get("LD_PRELOAD", "") else 4) << 20
"""Bytes that resident memory may grow by after that: the allocator's and Python's own doing; a leak grows with the time."""

OPTIONS = (
    "--workers",
    "4",
    "--log-level",
    "info",
    "--ttft-timeout",
    "8s",
    "--idle-timeout",
    "8s",
    "--send-timeout",
    "8s",
)
KINDS = ("length", "chunked", "events", "close", "empty", "silent", "mute", "break", "early", "paced")
CHUNKED = ("chunked", "events", "paced", "silent")
BULK = 8 << 20
"""Bytes of what is long."""

PLAIN, FINISHING, PAIR, MOVING = range(4)
"""The backends."""
HOSTS = (("127.0.0.1",), ("127.0.0.1",), ("127.0.0.2", "127.0.0.3"), ("127.0.0.4", "127.0.0.5"))
"""Their addresses, each a process of its own."""
NAMES = ("127.0.0.1", "127.0.0.1", "pair.soak", "moving.soak")
MOVES = 10.0
"""Seconds that a name stays where it is."""
MOVED = 1.0
"""Seconds after a reload in which requests may still go where the name was: every worker must have met it."""
KEPT = 120.0
"""Seconds after which nothing more is heard of a request: every time-out, a backend that was stopped, and a busy machine."""


def content(name: str, size: int) -> bytes:
    """What the answer to the request `name` holds."""
    return hashlib.shake_128(name.encode()).digest(size)


def up(name: str) -> str:
    """The name of what its client sends up the tunnel `name`."""
    return f"{name}-up"


WHOLE_TUNNEL = b"all of it is here"
"""What the backend says in a tunnel once it has all that is sent up."""


# ------------------------------------------------------------------------------------------------------------ the backend


class Server:
    """One process of a backend. What the driver must know goes down a pipe, a line each, at once."""

    def __init__(self, host: str, port: int, pipe: int, faulty: bool) -> None:
        self.host = host
        self.port = port
        self.pipe = pipe
        self.faulty = faulty

    def tell(self, *words: object) -> None:
        os.write(self.pipe, (" ".join(map(str, words)) + "\n").encode())

    async def run(self) -> None:
        server = await asyncio.start_server(self.serve, self.host, self.port, backlog=1024, reuse_address=True)
        async with server:
            await server.serve_forever()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection: the path says what is asked, /KIND/NAME/SIZE/PIECES."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self.answer_one(reader, writer):
                await writer.drain()
        writer.close()

    async def answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether another may follow. Its name is told first."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r$", head, re.MULTILINE)}
        kind, name, size, pieces = head.split(" ", 2)[1].strip("/").split("/")
        self.tell("received", name, self.host)
        if kind == "tunnel":
            await self.tunnel(reader, writer, name, int(size), int(pieces), fields["x-ends"])
            return False
        if kind == "early":
            writer.write(
                f"HTTP/1.1 200 OK\r\nX-Name: {name}\r\nContent-Length: {size}\r\n\r\n".encode()
                + content(name, int(size))
            )
            return False
        if fields.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if await read_digest(reader, fields) != fields.get("x-digest"):
            writer.write(f"HTTP/1.1 409 Conflict\r\nX-Name: {name}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        self.tell("whole", name, self.port)
        if kind == "mute":
            await reader.read(1)  # until the proxy closes
            return False
        try:
            return await self.answer_body(reader, writer, kind, name, int(size), int(pieces))
        except OSError:
            self.tell("cut", name, self.port)
            raise

    async def answer_body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, name: str, size: int, pieces: int
    ) -> bool:
        """Head and body; raises OSError where the proxy does not take them all."""
        body = content(name, size)
        if self.faulty and random.random() < 0.02 and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        start = f"HTTP/1.1 200 OK\r\nX-Name: {name}\r\n"
        if kind in ("length", "break", "empty"):
            writer.write(f"{start}Content-Length: {size}\r\n\r\n".encode())
        elif kind == "close":
            writer.write(f"{start}\r\n".encode())
        else:
            sort = "text/event-stream" if kind in ("events", "paced") else "application/octet-stream"
            writer.write(f"{start}Content-Type: {sort}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        step = max(1, len(body) // pieces)
        for at in range(0, len(body), step):
            piece = body[at : at + step]
            if kind == "break" and at * 2 > len(body):
                writer.transport.abort()
                return False
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if kind in CHUNKED else piece)
            await writer.drain()
            if pieces > 1:
                await asyncio.sleep(0.05 if kind == "paced" else 0.002)
            if kind == "silent":
                await reader.read(1)
                return False
        if kind in CHUNKED:
            writer.write(b"0\r\n\r\n")
        return kind != "close"

    async def tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, size: int, awaited: int, ends: str
    ) -> None:
        """Sends what it has behind the 101 at once, compares what comes meanwhile, says WHOLE_TUNNEL and then repeats what it hears."""
        head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: soak\r\nX-Name: {name}\r\n\r\n"
        writer.write(head.encode() + content(name, size))
        expected, got = content(up(name), awaited), 0
        try:
            while got < awaited and (data := await reader.read(1 << 16)):
                if data != expected[got : got + len(data)]:
                    self.tell("wrong", name, f"a tunnel changed what went up, after {got} of {awaited} bytes")
                    return
                got += len(data)
            if got == awaited:
                writer.write(WHOLE_TUNNEL)
                await writer.drain()
                while ends != "backend" and (data := await reader.read(1 << 16)):
                    writer.write(data)
                    await writer.drain()
        finally:
            self.tell("got", name, got)


async def read_digest(reader: asyncio.StreamReader, fields: dict[str, str]) -> str | None:
    """The digest of a request's body; None where it has none."""
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    elif "transfer-encoding" in fields:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        return None
    return hashlib.sha256(body).hexdigest()


# -------------------------------------------------------------------------------------------------------------- the clients


class WrongError(AssertionError):
    """Bytes that should not have come."""


class Left(Exception):  # noqa: N818 - no error: the client chose to
    """The client leaves in the middle."""


class Asking:
    """One request, and what its answer must be."""

    def __init__(self, dice: random.Random, number: int) -> None:
        self.name = f"{number:x}-{dice.getrandbits(64):x}"
        self.kind = dice.choices(KINDS, (6, 6, 6, 2, 2, 1, 1, 1, 1, 2))[0]
        self.size = 0 if self.kind == "empty" else dice.choice([1, 100, 5000, 60_000, 60_000, 400_000])
        self.pieces = dice.choice([1, 1, 5, 50])
        self.body = dice.randbytes(dice.choice([0, 0, 300, 9000, 200_000])) if dice.random() < 0.5 else None
        bulk = dice.random()
        if bulk < 0.01 and self.size:
            self.size = BULK
        elif bulk < 0.02:
            self.body = dice.randbytes(BULK)
        self.chunked = dice.random() < 0.5
        self.version = "1.0" if dice.random() < 0.1 and not (self.body is not None and self.chunked) else "1.1"
        self.expects = self.body is not None and self.version == "1.1" and dice.random() < 0.2
        self.leaves = dice.choices(["", "body", "wait", "stream", "blocked"], (8, 1, 1, 2, 1))[0]
        if self.kind == "paced":
            self.pieces = 50
        if self.kind in ("silent", "mute") and not self.leaves:
            self.leaves = "wait"
        self.expected = content(self.name, self.size)

    def head(self) -> bytes:
        method = "GET" if self.body is None else "POST"
        lines = [f"{method} /{self.kind}/{self.name}/{self.size}/{self.pieces} HTTP/{self.version}", "Host: soak"]
        lines += [f"X-Request-ID: {self.name}"]
        if self.body is not None:
            lines += [f"X-Digest: {hashlib.sha256(self.body).hexdigest()}"]
            lines += ["Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {len(self.body)}"]
        if self.expects:
            lines += ["Expect: 100-continue"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def framed(self) -> bytes:
        """The body as it is sent."""
        if not self.body or not self.chunked:
            return b"0\r\n\r\n" if self.body is not None and self.chunked else self.body or b""
        half = len(self.body) // 2 or 1
        parts = [part for part in (self.body[:half], self.body[half:]) if part]
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


SENT = "sent"
"""Nothing of the answer came, or no whole head."""
HEAD = "head"
"""The head came, and not all of the rest."""
CUT = "cut"
"""A part that only a FIN ended."""
WHOLE = "whole"
TUNNEL = "tunnel"
TUNNEL_CUT = "tunnel cut"
"""A tunnel that ended with a FIN before all had come: its backend was killed, maybe with bytes on their way to it."""

BREAKS = frozenset({"upstream_abort", "timeout_idle", "client_abort"})
OUTCOMES = {
    # The proxy may be done, with all bytes on their way, when the client leaves or the connection breaks.
    SENT: BREAKS | {"ok", "upstream_error", "timeout_ttft"},
    HEAD: BREAKS | {"ok"},
    CUT: frozenset({"ok"}),
    WHOLE: frozenset({"ok"}),
    TUNNEL: frozenset({"ok", "client_abort"}),  # it leaves with a FIN or an RST
    TUNNEL_CUT: frozenset({"ok", "client_abort", "upstream_abort"}),
    "502": frozenset({"upstream_error"}),
    "504": frozenset({"timeout_ttft"}),
}
"""The outcomes that agree with what a client saw."""

NEVER = frozenset(
    {
        "bad_request",
        "overload",
        "shutdown",
        "timeout_head",
        "timeout_total",
        "connect_error",
        "timeout_connect",
        "no_backend",
    }
)
"""Outcomes that nothing gives a reason for."""


@dataclass
class Entry:
    """What is known of a request."""

    sent: float
    """When, by time.monotonic()."""
    seen: str = SENT
    """How it ended for its client: SENT, HEAD, WHOLE, TUNNEL, TUNNEL_CUT, CUT, or the status of an error."""
    over: bool = False
    """Whether its client has seen all that it will see."""
    received: bool = False
    """By a backend."""
    whole: int = 0
    """How often one had all of it."""
    outcome: str = ""
    """Of its access line."""
    owed: int = 0
    """Bytes that a backend must have had when its tunnel ends."""


class Account:
    """Every request by its name, from when it is sent until its client's, the backends' and the proxy's word on it are compared.

    After that its name is kept for a while, for those that are named again, and then forgotten.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open: dict[str, Entry] = {}
        self.closed: dict[str, tuple[float, Entry]] = {}
        """When each was closed, oldest first."""
        self.sent = self.unseen = 0
        """How many requests there were; and those that left before the proxy had them."""
        self.left = ("", 0.0)
        """The address that no request goes to which is sent after that time."""
        self.finishing = ""
        """The port of the backend that may finish all its answers."""
        self.ends: Counter[str] = Counter()
        """What clients met, in words."""
        self.wrong: list[str] = []

    def _find(self, name: str) -> Entry | None:
        kept = self.open.get(name)
        return kept or self.closed.get(name, (0.0, None))[1]

    def begin(self, *names: str) -> None:
        """These requests are sent."""
        now = time.monotonic()
        with self.lock:
            self.sent += len(names)
            self.open.update((name, Entry(now)) for name in names)

    def saw(self, name: str, seen: str) -> None:
        """Its client saw this."""
        with self.lock:
            self.open[name].seen = seen

    def owe(self, name: str, owed: int) -> None:
        """Its client sends a FIN behind so many bytes."""
        with self.lock:
            self.open[name].owed = owed

    def over(self, *names: str) -> None:
        """Their clients have seen all that they will."""
        with self.lock:
            for name in names:
                self.open[name].over = True
                self._compare(name)

    def ended(self, name: str, outcome: str) -> None:
        """The proxy says so in an access line."""
        with self.lock:
            entry = self.open.get(name)
            if entry is None or entry.outcome:
                again = entry or self._find(name)
                before = f"had the outcome {again.outcome or 'of those that left'}" if again else "was sent by nobody"
                self.wrong.append(f"{name} has the outcome {outcome}, and it {before}")
            else:
                entry.outcome = outcome
                self._compare(name)

    def told(self, line: str) -> None:
        """A line of a backend."""
        word, name, rest = line.split(" ", 2)
        with self.lock:
            entry = self._find(name)
            if entry is None:
                self.wrong.append(f"a backend says {line!r}, and nobody sent it in the last {KEPT:.0f} s")
            elif word == "received":
                entry.received = True
                host, since = self.left
                if rest == host and entry.sent > since:
                    self.wrong.append(f"{name} went to {host}, {entry.sent - since:.1f} s after its backend had moved")
            elif word == "whole":
                entry.whole += 1
                if entry.whole > 2:
                    self.wrong.append(f"{name} was sent whole {entry.whole} times")
            elif word == "got" and int(rest) < entry.owed:
                self.wrong.append(
                    f"the tunnel {name} ended with {rest} of the {entry.owed} bytes that came before a FIN"
                )
            elif word == "cut" and rest == self.finishing:
                self.wrong.append(f"the answer to {name} was cut off, by a proxy that was told to let it finish")
            elif word == "wrong":
                self.wrong.append(f"{name}: {rest}")

    def _compare(self, name: str) -> None:
        entry = self.open[name]
        if not entry.over or not entry.outcome:
            return
        if entry.outcome not in OUTCOMES.get(entry.seen, frozenset()):
            self.wrong.append(f"{name} has the outcome {entry.outcome}; its client saw: {entry.seen}")
        self._close(name)

    def _close(self, name: str) -> None:
        self.closed[name] = (time.monotonic(), self.open.pop(name))

    def sweep(self, kept: float = KEPT) -> None:
        """Judges those that are over for so long and have no outcome, and forgets those that were compared so long ago.

        One that no backend received and no answer came to may have none: its client left before the proxy had it.
        """
        before = time.monotonic() - kept
        with self.lock:
            while self.closed and (oldest := next(iter(self.closed.items())))[1][0] < before:
                del self.closed[oldest[0]]
            for name in [name for name, entry in self.open.items() if entry.over and entry.sent < before - PATIENCE]:
                entry = self.open[name]
                if entry.received or entry.seen != SENT:
                    received = "a backend received it" if entry.received else "no backend received it"
                    self.wrong.append(f"{name} has no outcome; its client saw: {entry.seen}; {received}")
                self.unseen += 1
                self._close(name)


class SoakClient:
    """A client that asks again and again, each time on the connection it has or on a new one."""

    def __init__(self, port: int, seed: str, account: Account) -> None:
        self.port = port
        self.dice = random.Random(seed)
        self.account = account
        self.names: list[str] = []
        """Of what it asks for now."""
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def run(self, going: Callable[[], bool]) -> None:
        number = 0
        while going():
            number += 1
            try:
                await asyncio.wait_for(self.once(number), PATIENCE)
            except Left:
                self.close(self.dice.random() < 0.5)
                self.account.ends["client left"] += 1
            except WrongError as error:
                self.account.wrong.append(str(error))
                self.close(True)
            except (OSError, asyncio.IncompleteReadError):
                self.account.ends["connection ended"] += 1
                self.close(False)
            except asyncio.TimeoutError:
                self.account.wrong.append(f"no end within {PATIENCE} s")
                self.close(True)
            self.account.over(*self.names)
            self.names.clear()
            if self.dice.random() < 0.2:
                self.close(False)
            await asyncio.sleep(self.dice.random() * 0.1)
        self.close(False)

    def close(self, reset: bool) -> None:
        if self.writer is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                sock = self.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()
        self.reader = self.writer = None

    async def once(self, number: int) -> None:
        """One exchange, a tunnel, or three pipelined requests."""
        if self.writer is None:
            small = {"limit": 1 << 16}
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, **small)
        choice = self.dice.random()
        if choice < 0.05:
            await self.tunnel(f"tunnel-{number:x}-{self.dice.getrandbits(64):x}")
        elif choice < 0.12:
            await self.pipeline(number)
        else:
            await self.exchange(Asking(self.dice, number))

    def send(self, data: bytes, *names: str) -> None:
        """Sends bytes in which the requests of these names begin."""
        assert self.writer is not None
        self.names += names
        self.account.begin(*names)
        self.writer.write(data)

    async def exchange(self, asking: Asking) -> None:
        assert self.writer is not None
        assert self.reader is not None
        self.send(asking.head(), asking.name)
        body = asking.framed()
        if asking.expects:
            line = await self.reader.readuntil(b"\r\n\r\n")
            if not line.startswith(b"HTTP/1.1 100"):
                await self.read_answer(asking, line)
                self.close(False)
                return
        if asking.leaves == "body" and body:
            self.send(body[: len(body) // 2])
            await asyncio.sleep(self.dice.random() * 0.02)
            raise Left
        self.send(body)
        if asking.leaves in ("wait", "body"):
            await asyncio.sleep(self.dice.random() * 0.05)
            raise Left
        if asking.leaves == "blocked":
            await asyncio.sleep(self.dice.random())
            if self.dice.random() < 0.5:
                raise Left
        await self.read_answer(asking, await self.reader.readuntil(b"\r\n\r\n"))

    async def read_answer(self, asking: Asking, head: bytes) -> None:
        """Reads one answer to its end and compares it."""
        assert self.reader is not None
        while head.startswith(b"HTTP/1.1 100"):
            head = await self.reader.readuntil(b"\r\n\r\n")
        self.account.saw(asking.name, HEAD)
        text = head.decode("latin-1").lower()
        status = int(text.split(" ", 2)[1])
        fields = dict(re.findall(r"^([\w-]+): (.*?)\r$", text, re.MULTILINE))
        closes = fields.get("connection") == "close" or asking.version == "1.0"
        if status != 200:
            error = await self.reader.readexactly(int(fields["content-length"]))
            if status not in (502, 504) or json.loads(error)["error"]["type"] != ERROR_TYPES[status]:
                raise WrongError(f"{asking.kind} was answered {status}: {error[:200]!r}")
            self.account.ends[f"answered {status}"] += 1
            self.account.saw(asking.name, str(status))
        else:
            if fields.get("x-name") != asking.name:
                raise WrongError(f"the answer to {asking.name} is that to {fields.get('x-name')}")
            await self.read_body(asking, fields)
        if closes:
            self.close(False)

    async def read_body(self, asking: Asking, fields: dict[str, str]) -> None:
        assert self.reader is not None
        got = 0

        def compare(data: bytes) -> None:
            nonlocal got
            if data != asking.expected[got : got + len(data)]:
                raise WrongError(f"wrong bytes after {got} of {asking.size} in an answer of kind {asking.kind}")
            got += len(data)
            if asking.leaves == "stream" and got > asking.size // 2:
                raise Left

        if "transfer-encoding" in fields:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                compare((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readexactly(2)
        elif "content-length" in fields:
            while got < int(fields["content-length"]):
                data = await self.reader.read(min(65536, int(fields["content-length"]) - got))
                if not data:
                    raise asyncio.IncompleteReadError(b"", None)
                compare(data)
        else:
            while data := await self.reader.read(65536):
                compare(data)
            self.close(False)
            if got != asking.size:
                # A backend that is killed sends a FIN, which is all that ends such an answer: nobody can tell.
                self.account.ends["cut, until close"] += 1
                self.account.saw(asking.name, CUT)
                return
        if got != asking.size:
            raise WrongError(f"an answer of kind {asking.kind} looks whole with {got} of {asking.size} bytes")
        self.account.ends["whole"] += 1
        self.account.saw(asking.name, WHOLE)

    async def pipeline(self, number: int) -> None:
        """Three requests in one piece, answered in order."""
        asked = [Asking(self.dice, number) for _ in range(3)]
        for asking in asked:
            asking.kind, asking.version, asking.expects, asking.leaves = "length", "1.1", False, ""
        self.send(b"".join(asking.head() + asking.framed() for asking in asked), *(asking.name for asking in asked))
        for asking in asked:
            if self.reader is None:
                return  # an error answer closed the connection
            await self.read_answer(asking, await self.reader.readuntil(b"\r\n\r\n"))

    async def tunnel(self, name: str) -> None:
        """A 101, then bytes both ways at once; one of the two sides ends it, when all is said or before."""
        assert self.reader is not None
        assert self.writer is not None
        down, sent = (self.dice.choice([0, 1, 5000, 70_000, 300_000, 2_000_000]) for _ in range(2))
        ends = self.dice.choice(["backend", "client", "half", "middle"])
        lines = [f"GET /tunnel/{name}/{down}/{sent} HTTP/1.1", "Host: soak", f"X-Request-ID: {name}", f"X-Ends: {ends}"]
        self.send("\r\n".join([*lines, "Connection: Upgrade", "Upgrade: soak", "\r\n"]).encode(), name)
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.account.saw(name, HEAD)
        status = head.split(b" ", 2)[1].decode()
        if status != "101":
            self.account.saw(name, status)
            raise Left
        expected = content(name, down) + WHOLE_TUNNEL
        self.send(content(up(name), sent))
        if ends == "half":
            # All of it and a FIN, before anything was read: the tunnel ends behind what was sent.
            self.account.owe(name, sent)
            self.writer.write_eof()
        got = 0
        while got < len(expected) and (ends != "middle" or got < down // 2):
            data = await self.reader.read(1 << 16)
            if not data:
                # A backend that is killed sends a FIN, which is all that ends a tunnel. To one that had the client's FIN it need
                # not have said all.
                self.account.ends["tunnel ended by half" if ends == "half" else "tunnel cut"] += 1
                self.account.saw(name, TUNNEL_CUT)
                raise Left
            if data != expected[got : got + len(data)]:
                raise WrongError(f"a tunnel changed what came down, after {got} of {down} bytes ({name})")
            got += len(data)
        if ends == "middle":
            raise Left
        if ends == "client":
            for _ in range(self.dice.randrange(5)):
                data = self.dice.randbytes(self.dice.choice([1, 5000, 50_000]))
                self.send(data)
                if await self.reader.readexactly(len(data)) != data:
                    raise WrongError(f"a tunnel changed bytes ({name})")
        elif ends == "backend" and await self.reader.read(1):
            raise WrongError(f"more came down a tunnel than was sent ({name})")
        self.account.ends[f"tunnel ended by {ends}"] += 1
        self.account.saw(name, TUNNEL)
        raise Left


# ---------------------------------------------------------------------------------------------------------------- the run


class Soaked(Proxy):
    """The proxy; of its access lines the outcome is told to an account."""

    def __init__(self, account: Account, *backends: str, **arguments: Any) -> None:
        self.account = account
        self.lines: Counter[str] = Counter()
        self.partial = 0
        """Requests whose client left before the proxy had their heads, and so their names."""
        super().__init__(*backends, **arguments)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if '"event": "access"' in line or '"event":"access"' in line:
                self.take(json.loads(line))
            else:
                self.stderr.append(line)
                del self.stderr[:-1000]
                with contextlib.suppress(ValueError):
                    self.log.append(json.loads(line))
                    del self.log[200:-200]

    def take(self, line: dict[str, Any]) -> None:
        """An access line."""
        self.lines[line["outcome"]] += 1
        if not line["method"] and line["outcome"] == "client_abort" and not line["attempts"]:
            self.partial += 1
        else:
            self.account.ended(line["request_id"], line["outcome"])

    def reloads(self) -> int:
        """How often it has said that it has reloaded, of late."""
        return sum(line["event"] == "reloaded" for line in self.log.copy())


class Names:
    """What the proxy's name look-ups find."""

    def __init__(self, folder: str) -> None:
        directory = Path(folder) / "names"
        directory.mkdir()
        self._server = names.NameServer(directory, names.build(Path(folder)))
        self.environment = self._server.env
        self.moving = 0
        self._server.say(NAMES[PAIR], *HOSTS[PAIR])
        self.write()

    def write(self) -> None:
        self._server.say(NAMES[MOVING], HOSTS[MOVING][self.moving])


class Backends:
    """Processes that are killed, stopped and started again, each on an address of its own."""

    def __init__(self, account: Account, faulty: bool) -> None:
        self.account = account
        self.faulty = faulty
        self._reads, self._pipe = os.pipe()
        self._reader = threading.Thread(target=self._read_pipe)
        self._reader.start()
        with contextlib.ExitStack() as stack:
            # The same port on every address.
            listeners = [stack.enter_context(socket.create_server(("0.0.0.0", 0))) for _ in HOSTS]
            self.ports = [listener.getsockname()[1] for listener in listeners]
        account.finishing = str(self.ports[FINISHING])
        self.places = [(host, port) for hosts, port in zip(HOSTS, self.ports, strict=True) for host in hosts]
        self.processes = [self.start(*place) for place in self.places]
        self.urls = [f"http://{name}:{port}" for name, port in zip(NAMES, self.ports, strict=True)]
        self.urls[FINISHING] += "?on-abort=finish"
        self.urls[PAIR] += "?addresses=first"
        self.killed = self.stopped = 0
        for place in self.places:
            wait_until(lambda place=place: self._answers(place))

    def _read_pipe(self) -> None:
        with open(self._reads) as pipe:
            for line in pipe:
                self.account.told(line.rstrip("\n"))

    @staticmethod
    def _answers(place: tuple[str, int]) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(place) == 0

    def start(self, host: str, port: int) -> subprocess.Popen[bytes]:
        words = ["--backend", host, str(port), "--pipe", str(self._pipe), *(["--faulty"] if self.faulty else [])]
        return subprocess.Popen([sys.executable, __file__, *words], pass_fds=[self._pipe])

    async def trouble(self, dice: random.Random, going: Callable[[], bool]) -> None:
        """Kills or stops one of them every few seconds; the others go on."""
        while going():
            await asyncio.sleep(dice.uniform(1, 4))
            index = dice.randrange(len(self.processes))
            if dice.random() < 0.5:
                self.processes[index].kill()
                self.processes[index].wait()
                self.killed += 1
                await asyncio.sleep(dice.random())
                self.processes[index] = self.start(*self.places[index])
                while not self._answers(self.places[index]):  # never are two away
                    await asyncio.sleep(0.05)
            else:
                self.stopped += 1
                self.processes[index].send_signal(signal.SIGSTOP)
                await asyncio.sleep(dice.random())
                self.processes[index].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends them. May be called twice."""
        for process in self.processes:
            process.kill()
            process.wait()
        if self._reader.is_alive():
            os.close(self._pipe)
            self._reader.join()


async def reload(proxy: Soaked, going: Callable[[], bool]) -> bool:
    """Has the proxy read the names again; whether it has, before the run is over."""
    before = proxy.reloads()
    proxy.signal(signal.SIGHUP)
    while proxy.reloads() == before and going():
        await asyncio.sleep(0.05)
    return going()


async def move(proxy: Soaked, found: Names, account: Account, going: Callable[[], bool]) -> None:
    """Moves a backend to its other address and back, with a reload each time. What was there goes on, and must be asked no more."""
    while going():
        left = HOSTS[MOVING][found.moving]
        found.moving = 1 - found.moving
        with account.lock:
            account.left = ("", 0.0)
        found.write()
        if not await reload(proxy, going):
            return
        account.ends["moved"] += 1
        await asyncio.sleep(MOVED)
        with account.lock:
            account.left = (left, time.monotonic())
        await asyncio.sleep(MOVES)


async def load(
    proxy: Soaked, backends: Backends, found: Names, seconds: float, seed: int, report: Callable[[str], None]
) -> int:
    """The whole load; the resident memory after the warm-up."""
    begun = time.monotonic()
    account = proxy.account
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)

    def going() -> bool:
        return time.monotonic() - begun < seconds and not interrupted.is_set() and not account.wrong

    first_rss = 0
    tasks = [asyncio.create_task(SoakClient(proxy.port, f"{seed}-{n}", account).run(going)) for n in range(CLIENTS)]
    tasks.append(asyncio.create_task(backends.trouble(random.Random(seed), going)))
    tasks.append(asyncio.create_task(move(proxy, found, account, going)))
    while going():
        await asyncio.sleep(min(5.0, max(0.1, seconds / 10)))
        elapsed = time.monotonic() - begun
        if not first_rss and elapsed > min(WARM_UP, seconds * 0.6):
            first_rss = proxy.rss()
        account.sweep()
        report(
            f"{elapsed:6.0f} s  {account.sent:,} requests, {len(account.open) + len(account.closed):,} kept  "
            f"{account.ends['client left']:,} left  {backends.killed} killed, {backends.stopped} stopped, "
            f"{account.ends['moved']} moved  {proxy.rss() / 1e6:.1f} MB  {proxy.descriptors()} descriptors"
        )
    await asyncio.gather(*tasks)
    if interrupted.is_set():
        account.ends["interrupted"] = 1
    return first_rss or proxy.rss()


def check(proxy: Soaked, backends: Backends, descriptors: int, first_rss: int) -> Iterator[str]:
    """What is wrong after the load, beside what the account says. Ends the backends."""
    try:
        proxy.settled(30)
        wait_until(lambda: not proxy.metric("llmpipe_upstreams"), 30, "no upstream is left")
        wait_until(
            lambda: proxy.descriptors() <= descriptors, 10, f"{proxy.descriptors()} descriptors, {descriptors} before"
        )
    except AssertionError as error:
        yield str(error)
    metrics = proxy.metrics()
    if metrics["llmpipe_buffers_held"]:
        yield f"{metrics['llmpipe_buffers_held']:.0f} buffers are held"
    prefix = "llmpipe_exchanges_total{"
    outcomes = {name[len(prefix) + 9 : -2]: int(n) for name, n in metrics.items() if name.startswith(prefix) and n}
    with contextlib.suppress(AssertionError):
        wait_until(lambda: sum(proxy.lines.values()) >= sum(outcomes.values()))
    if dict(proxy.lines) != outcomes or metrics["llmpipe_access_lines_dropped_total"]:
        yield f"outcomes {outcomes} but access lines {dict(proxy.lines)}"
    backends.close()
    proxy.account.sweep(-PATIENCE)  # all of them
    # Nobody asked for these; and all backends but one could be connected at any time.
    if unexpected := outcomes.keys() & NEVER:
        yield f"outcomes that nothing gave a reason for: {unexpected}"
    grown = proxy.rss() - first_rss
    if grown > GROWTH:
        yield f"resident memory grew by {grown / 1e6:.1f} MB"


def soak(
    seconds: float, seed: int, report: Callable[[str], None] = print, faulty: bool = False
) -> tuple[list[str], Account]:
    """Runs all of it; what was wrong, and the account."""
    account = Account()
    backends = Backends(account, faulty)
    try:
        with tempfile.TemporaryDirectory(prefix="llmpipe-") as folder:
            found = Names(folder)
            with Soaked(account, *backends.urls, options=OPTIONS, env=found.environment) as proxy:
                proxy.settled()
                descriptors = proxy.descriptors()
                first_rss = asyncio.run(load(proxy, backends, found, seconds, seed, report))
                found = list(check(proxy, backends, descriptors, first_rss))
                report(
                    f"{account.sent:,} requests, {account.unseen:,} of them left before the proxy had them, {proxy.partial:,} before "
                    f"it had their heads; {dict(account.ends)}; outcomes {dict(proxy.lines)}; "
                    f"{backends.killed} backends killed, {backends.stopped} stopped; "
                    f"{first_rss / 1e6:.1f} MB after the warm-up, {proxy.rss() / 1e6:.1f} MB at the end"
                )
    finally:
        backends.close()
    return [*account.wrong[:10], *found], account


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the proxy; see the head of this file.")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long the load lasts (default: 3600)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of what is asked (default: random)"
    )
    parser.add_argument(
        "--faulty", action="store_true", help="backends answer wrongly now and then: the soak must fail"
    )
    parser.add_argument("--backend", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.backend is not None:
        with contextlib.suppress(KeyboardInterrupt):
            host, port = given.backend
            asyncio.run(Server(host, int(port), given.pipe, given.faulty).run())
        return 0
    print(f"seed {given.seed}, {given.seconds:.0f} s, {CLIENTS} clients", flush=True)
    wrong, account = soak(given.seconds, given.seed, lambda line: print(line, flush=True), given.faulty)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 130 if account.ends["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
