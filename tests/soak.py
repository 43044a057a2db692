"""The proxy left running: random clients, random aborts in every phase, backends that are killed, stopped and restarted, reloads.

python tests/soak.py --seconds 3600

Every byte that a client gets is compared with what its request asked for, every request body with its digest. Each request has a
name, which the proxy keeps as its X-Request-ID: at the end every request that a backend received or a client had an answer to must
have one access line, with an outcome that agrees with what its client saw; and descriptors, buffers, counters and memory must be
where they began. Exit code 0, 1 with what was wrong, 130 after Ctrl-C (the checks are made then too). A seed repeats what is asked,
not when it arrives. The names take some 0.5 GB an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from harness import Proxy, wait_until

CLIENTS = 80
PATIENCE = 30.0  # seconds that an answer may take
WARM_UP = 15.0  # seconds before memory is looked at for the first time
GROWTH = (24 if "asan" in os.environ.get("LD_PRELOAD", "") else 4) << 20
"""Bytes that resident memory may grow by after that: the allocator's and Python's own doing; a leak grows with the time."""

OPTIONS = (
    "--workers",
    "2",
    "--log-level",
    "info",
    "--ttft-timeout",
    "8s",
    "--idle-timeout",
    "8s",
    "--send-timeout",
    "8s",
)
KINDS = ("length", "chunked", "events", "close", "empty", "silent", "mute", "break", "early")


def content(name: str, size: int) -> bytes:
    """What the answer to the request `name` holds."""
    return hashlib.shake_128(name.encode()).digest(size)


# ------------------------------------------------------------------------------------------------------------ the backend


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faulty: bool, names: int) -> None:
    """Serves one connection: the path says what is asked, /KIND/NAME/SIZE/PIECES."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while await answer_one(reader, writer, faulty, names):
            await writer.drain()
    writer.close()


async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faulty: bool, names: int) -> bool:
    """One request; whether another may follow. Its name goes to the descriptor `names` first."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r$", head, re.MULTILINE)}
    kind, name, size, pieces = head.split(" ", 2)[1].strip("/").split("/")
    os.write(names, f"{name}\n".encode())
    if "upgrade" in fields:
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: soak\r\nX-Name: {name}\r\n\r\n".encode()
        )
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        return False
    if kind == "early":
        writer.write(
            f"HTTP/1.1 200 OK\r\nX-Name: {name}\r\nContent-Length: {size}\r\n\r\n".encode() + content(name, int(size))
        )
        return False
    if fields.get("expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if await read_digest(reader, fields) != fields.get("x-digest"):
        writer.write(f"HTTP/1.1 409 Conflict\r\nX-Name: {name}\r\nContent-Length: 0\r\n\r\n".encode())
        return True
    if kind == "mute":
        await reader.read(1)  # until the proxy closes
        return False
    body = content(name, int(size))
    if faulty and random.random() < 0.02 and body:
        body = body[:-1] + bytes([body[-1] ^ 1])
    start = f"HTTP/1.1 200 OK\r\nX-Name: {name}\r\n"
    if kind in ("length", "break", "empty"):
        writer.write(f"{start}Content-Length: {size}\r\n\r\n".encode())
    elif kind == "close":
        writer.write(f"{start}\r\n".encode())
    else:
        sort = "text/event-stream" if kind == "events" else "application/octet-stream"
        writer.write(f"{start}Content-Type: {sort}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    step = max(1, len(body) // int(pieces))
    for at in range(0, len(body), step):
        piece = body[at : at + step]
        if kind == "break" and at * 2 > len(body):
            writer.transport.abort()
            return False
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if kind in ("chunked", "events", "silent") else piece)
        await writer.drain()
        if int(pieces) > 1:
            await asyncio.sleep(0.002)
        if kind == "silent":
            await reader.read(1)
            return False
    if kind in ("chunked", "events", "silent"):
        writer.write(b"0\r\n\r\n")
    return kind != "close"


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


async def serve_backend(port: int, faulty: bool, names: int) -> None:
    server = await asyncio.start_server(
        lambda r, w: answer(r, w, faulty, names), "127.0.0.1", port, backlog=1024, reuse_address=True
    )
    async with server:
        await server.serve_forever()


# -------------------------------------------------------------------------------------------------------------- the clients


class WrongError(AssertionError):
    """Bytes that should not have come."""


class Left(Exception):  # noqa: N818 - no error: the client chose to
    """The client leaves in the middle."""


class Asking:
    """One request, and what its answer must be."""

    def __init__(self, dice: random.Random, number: int) -> None:
        self.name = f"{number:x}-{dice.getrandbits(64):x}"
        self.kind = dice.choices(KINDS, (6, 6, 6, 2, 2, 1, 1, 1, 1))[0]
        self.size = 0 if self.kind == "empty" else dice.choice([1, 100, 5000, 60_000, 60_000, 400_000])
        self.pieces = dice.choice([1, 1, 5, 50])
        self.body = dice.randbytes(dice.choice([0, 0, 300, 9000, 200_000])) if dice.random() < 0.5 else None
        self.chunked = dice.random() < 0.5
        self.version = "1.0" if dice.random() < 0.1 and not (self.body is not None and self.chunked) else "1.1"
        self.expects = self.body is not None and self.version == "1.1" and dice.random() < 0.2
        self.leaves = dice.choices(["", "body", "wait", "stream", "blocked"], (8, 1, 1, 2, 1))[0]
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


class Tally:
    """What the clients saw."""

    def __init__(self) -> None:
        self.saw: dict[str, str] = {}
        """How each request ended for its client, by its name: SENT, HEAD, WHOLE, TUNNEL, CUT, or the status of an error."""
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []


SENT = "sent"
"""Nothing of the answer came, or no whole head."""
HEAD = "head"
"""The head came, and not all of the rest."""
CUT = "cut"
"""A part that only a FIN ended."""
WHOLE = "whole"
TUNNEL = "tunnel"

BREAKS = frozenset({"upstream_abort", "timeout_idle", "client_abort"})
OUTCOMES = {
    # The proxy may be done, with all bytes on their way, when the client leaves or the connection breaks.
    SENT: BREAKS | {"ok", "connect_error", "upstream_error", "timeout_ttft", "timeout_connect", "no_backend"},
    HEAD: BREAKS | {"ok"},
    CUT: frozenset({"ok"}),
    WHOLE: frozenset({"ok"}),
    TUNNEL: frozenset({"ok", "client_abort"}),  # it leaves with a FIN or an RST
    "502": frozenset({"connect_error", "upstream_error"}),
    "503": frozenset({"no_backend"}),
    "504": frozenset({"timeout_ttft", "timeout_connect"}),
}
"""The outcomes that agree with what a client saw."""


class SoakClient:
    """A client that asks again and again, each time on the connection it has or on a new one."""

    def __init__(self, port: int, seed: str, tally: Tally) -> None:
        self.port = port
        self.dice = random.Random(seed)
        self.tally = tally
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
                self.tally.ends["client left"] += 1
            except WrongError as error:
                self.tally.wrong.append(str(error))
                self.close(True)
            except (OSError, asyncio.IncompleteReadError):
                self.tally.ends["connection ended"] += 1
                self.close(False)
            except asyncio.TimeoutError:
                self.tally.wrong.append(f"no end within {PATIENCE} s")
                self.close(True)
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
            await self.tunnel(number)
        elif choice < 0.12:
            await self.pipeline(number)
        else:
            await self.exchange(Asking(self.dice, number))

    def send(self, data: bytes, *names: str) -> None:
        """Sends bytes in which the requests of these names begin."""
        assert self.writer is not None
        self.tally.saw.update(dict.fromkeys(names, SENT))
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
        self.tally.saw[asking.name] = HEAD
        text = head.decode("latin-1").lower()
        status = int(text.split(" ", 2)[1])
        fields = dict(re.findall(r"^([\w-]+): (.*?)\r$", text, re.MULTILINE))
        closes = fields.get("connection") == "close" or asking.version == "1.0"
        if status != 200:
            error = await self.reader.readexactly(int(fields["content-length"]))
            if status not in (502, 503, 504) or json.loads(error)["error"]["type"] != "server_error":
                raise WrongError(f"{asking.kind} was answered {status}: {error[:200]!r}")
            self.tally.ends[f"answered {status}"] += 1
            self.tally.saw[asking.name] = str(status)
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
                self.tally.ends["cut, until close"] += 1
                self.tally.saw[asking.name] = CUT
                return
        if got != asking.size:
            raise WrongError(f"an answer of kind {asking.kind} looks whole with {got} of {asking.size} bytes")
        self.tally.ends["whole"] += 1
        self.tally.saw[asking.name] = WHOLE

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

    async def tunnel(self, number: int) -> None:
        """A 101, then an echo both ways."""
        assert self.reader is not None
        name = f"tunnel-{number:x}-{self.dice.getrandbits(64):x}"
        upgrade = f"X-Request-ID: {name}\r\nConnection: Upgrade\r\nUpgrade: soak"
        self.send(f"GET /length/{name}/0/1 HTTP/1.1\r\nHost: soak\r\n{upgrade}\r\n\r\n".encode(), name)
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.tally.saw[name] = HEAD
        status = head.split(b" ", 2)[1].decode()
        if status != "101":
            self.tally.saw[name] = status
        else:
            for _ in range(self.dice.randrange(5)):
                data = self.dice.randbytes(self.dice.choice([1, 5000, 50_000]))
                self.send(data)
                if await self.reader.readexactly(len(data)) != data:
                    raise WrongError("a tunnel changed bytes")
            self.tally.ends["tunnel"] += 1
            self.tally.saw[name] = TUNNEL
        raise Left


# ---------------------------------------------------------------------------------------------------------------- the run


class Soaked(Proxy):
    """The proxy; of its access lines the outcome is kept."""

    def _read_log(self) -> None:
        self.lines: Counter[str] = Counter()
        self.ended: dict[str, str] = {}
        """The outcome of each request by its name."""
        self.twice: list[str] = []
        """Names that had a second line."""
        self.partial = 0
        """Requests whose client left before the proxy had their heads, and so their names."""
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
        name = line["request_id"]
        if not line["method"] and line["outcome"] == "client_abort" and not line["attempts"]:
            self.partial += 1
        elif name in self.ended:
            self.twice.append(name)
        else:
            self.ended[name] = line["outcome"]


class Backends:
    """Processes on ports of their own that are killed, stopped and started again."""

    def __init__(self, count: int, faulty: bool) -> None:
        self.faulty = faulty
        self.received: set[str] = set()
        """The names of the requests that they received; complete when they are closed."""
        self._reads, self._names = os.pipe()
        self._reader = threading.Thread(target=self._read_names)
        self._reader.start()
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
            self.ports = [listener.getsockname()[1] for listener in listeners]
        self.processes: list[subprocess.Popen[bytes]] = [self.start(port) for port in self.ports]
        self.killed = self.stopped = 0
        for port in self.ports:
            wait_until(lambda port=port: self._answers(port))

    def _read_names(self) -> None:
        with open(self._reads) as pipe:
            for line in pipe:
                self.received.add(line.rstrip("\n"))

    @staticmethod
    def _answers(port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    def start(self, port: int) -> subprocess.Popen[bytes]:
        words = ["--backend", str(port), "--names", str(self._names), *(["--faulty"] if self.faulty else [])]
        return subprocess.Popen([sys.executable, __file__, *words], pass_fds=[self._names])

    async def trouble(self, dice: random.Random, going: Callable[[], bool]) -> None:
        """Kills or stops one of them every few seconds; the others go on."""
        while going():
            await asyncio.sleep(dice.uniform(1, 4))
            index = dice.randrange(len(self.ports))
            if dice.random() < 0.5:
                self.processes[index].kill()
                self.processes[index].wait()
                self.killed += 1
                await asyncio.sleep(dice.random())
                self.processes[index] = self.start(self.ports[index])
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
            os.close(self._names)
            self._reader.join()


async def load(
    proxy: Soaked, backends: Backends, seconds: float, seed: int, report: Callable[[str], None]
) -> tuple[Tally, int, int]:
    """The whole load; what clients saw, reloads, and the resident memory after the warm-up."""
    begun = time.monotonic()
    tally = Tally()
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)

    def going() -> bool:
        return time.monotonic() - begun < seconds and not interrupted.is_set() and not tally.wrong

    reloads = first_rss = 0
    tasks = [asyncio.create_task(SoakClient(proxy.port, f"{seed}-{n}", tally).run(going)) for n in range(CLIENTS)]
    tasks.append(asyncio.create_task(backends.trouble(random.Random(seed), going)))
    while going():
        await asyncio.sleep(min(5.0, max(0.1, seconds / 10)))
        proxy.signal(signal.SIGHUP)
        reloads += 1
        elapsed = time.monotonic() - begun
        if not first_rss and elapsed > min(WARM_UP, seconds / 3):
            first_rss = proxy.rss()
        report(
            f"{elapsed:6.0f} s  {len(tally.saw):,} requests  {tally.ends['client left']:,} left  "
            f"{backends.killed} killed, {backends.stopped} stopped, {reloads} reloads  "
            f"{proxy.rss() / 1e6:.1f} MB  {proxy.descriptors()} descriptors"
        )
    await asyncio.gather(*tasks)
    if interrupted.is_set():
        tally.ends["interrupted"] = 1
    return tally, reloads, first_rss or proxy.rss()


def accounts(saw: dict[str, str], received: set[str], ended: dict[str, str]) -> Iterator[str]:
    """Requests whose outcome is missing, not theirs, or not what their client saw."""
    for name, seen in saw.items():
        outcome = ended.get(name)
        if outcome is None and (seen != SENT or name in received):
            yield f"{name} has no outcome; its client saw: {seen}; a backend received it: {name in received}"
        if outcome is not None and outcome not in OUTCOMES[seen]:
            yield f"{name} has the outcome {outcome}; its client saw: {seen}"
    for name in ended.keys() - saw.keys():
        yield f"{name} has the outcome {ended[name]}, and nobody sent it"
    for name in received - saw.keys():
        yield f"{name} was received by a backend, and nobody sent it"


def check(proxy: Soaked, backends: Backends, tally: Tally, descriptors: int, first_rss: int) -> Iterator[str]:
    """What is wrong after the load. Ends the backends."""
    yield from tally.wrong[:10]
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
    if proxy.twice:
        yield f"{len(proxy.twice)} requests have two access lines, {proxy.twice[0]} for one"
    yield from itertools.islice(accounts(tally.saw, backends.received, proxy.ended), 10)
    # Not as bad_request, overload or shutdown: nobody asked for that.
    if unexpected := outcomes.keys() & {"bad_request", "overload", "shutdown", "timeout_head", "timeout_total"}:
        yield f"outcomes that nothing gave a reason for: {unexpected}"
    grown = proxy.rss() - first_rss
    if grown > GROWTH:
        yield f"resident memory grew by {grown / 1e6:.1f} MB"


def soak(
    seconds: float, seed: int, report: Callable[[str], None] = print, faulty: bool = False
) -> tuple[list[str], Tally]:
    """Runs all of it; what was wrong, and what the clients saw."""
    backends = Backends(3, faulty)
    try:
        with Soaked(*(f"http://127.0.0.1:{port}" for port in backends.ports), options=OPTIONS) as proxy:
            proxy.settled()
            descriptors = proxy.descriptors()
            tally, reloads, first_rss = asyncio.run(load(proxy, backends, seconds, seed, report))
            wrong = list(check(proxy, backends, tally, descriptors, first_rss))
            unseen = len(tally.saw) - len(proxy.ended)
            report(
                f"{len(tally.saw):,} requests, {unseen:,} of them left before the proxy had them, {proxy.partial:,} before it had "
                f"their heads; {dict(tally.ends)}; outcomes {dict(proxy.lines)}; "
                f"{backends.killed} backends killed, {backends.stopped} stopped, {reloads} reloads; "
                f"{first_rss / 1e6:.1f} MB after the warm-up, {proxy.rss() / 1e6:.1f} MB at the end"
            )
    finally:
        backends.close()
    return wrong, tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the proxy; see the head of this file.")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long the load lasts (default: 3600)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of what is asked (default: random)"
    )
    parser.add_argument(
        "--faulty", action="store_true", help="backends answer wrongly now and then: the soak must fail"
    )
    parser.add_argument("--backend", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--names", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.backend is not None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_backend(given.backend, given.faulty, given.names))
        return 0
    print(f"seed {given.seed}, {given.seconds:.0f} s, {CLIENTS} clients", flush=True)
    wrong, tally = soak(given.seconds, given.seed, lambda line: print(line, flush=True), given.faulty)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 130 if tally.ends["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
