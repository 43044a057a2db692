"""Counts the engine's instructions for an event, a request, a connection and a disconnect: `make instructions`.

Times are noise on a shared machine, instructions are not. `llmpipe serve`, as it is installed, runs under callgrind with
instructions.c preloaded: the engine waits in each turn until this script has done its part on real sockets and says how many
events the turn will find, and its clock is the number of its turns. So the same build gives the same count, beside any load; but
for a few instructions of the C library, which looks where in a page its arguments lie.
What is counted is what the engine's thread runs between two waits, in the engine and in the C library; each figure is the
difference of the counts of 2N and N, divided by N.

    python tests/instructions.py [--python PYTHON] [--functions]

PYTHON is one that has llmpipe installed: another checkout's .venv/bin/python, to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
BUDGET = HERE / "instructions.json"
TIMEOUT = 120.0
"""Seconds for any step; the start, under valgrind, is the longest."""
TOLERANCE = 0.03

BODY = json.dumps(
    {
        "model": "llama-3.1-8b-instruct",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
        "stream": True,
        "max_tokens": 128,
    }
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.40.0\r\n"
    b"Authorization: Bearer sk-0123456789abcdef\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"llama-3.1-8b-instruct",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
)
EVENT = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nServer: uvicorn\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ANSWER_BODY = json.dumps(
    {
        "id": "chatcmpl-0123456789",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"content": " token"}}],
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nServer: uvicorn\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json\r\n\r\n%b" % (len(ANSWER_BODY), ANSWER_BODY)
)

UNITS = {
    "event": "an event of a stream, alone in its turn",
    "batch": "an event of a stream, 16 in a turn",
    "request": "a short request on an open connection",
    "connection": "a new connection: accept, one request, close",
    "disconnect": "a client that leaves a stream",
}
BATCH = 16


class CountError(Exception):
    """The count could not be taken."""


@dataclass
class Cost:
    """Instructions for one unit."""

    engine: float = 0.0
    library: float = 0.0
    functions: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> float:
        return round(self.engine + self.library, 3)  # whatever order the functions were added in


def read_profile(path: Path) -> Counter[tuple[str, str]]:
    """Instructions by (object, function), without those of what a function calls, from a file in callgrind's format."""
    names: dict[tuple[str, str], str] = {}
    here = {"ob": "", "fn": ""}
    costs: Counter[tuple[str, str]] = Counter()
    called = False
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"(c?ob|c?fn)=\((\d+)\)(?: (.*))?", line):
            what, number, name = match.groups()
            kind = what[-2:]
            if name is not None:
                names[kind, number] = name
            if what == kind:
                here[kind] = names[kind, number]
        elif line.startswith("calls="):
            called = True
        elif match := re.fullmatch(r"[+*-]?\d* (\d+)", line):
            if not called:
                costs[here["ob"], here["fn"]] += int(match[1])
            called = False
    return costs


class Proxy:
    """An `llmpipe serve` whose engine takes its turns when it is told to."""

    def __init__(
        self,
        python: str,
        folder: Path,
        backends: Callable[[int], list[str]] | None = None,
        host: str = "127.0.0.1",
        options: Sequence[str] = (),
    ) -> None:
        """Starts it.

        Args:
            python: one that has llmpipe installed.
            folder: for its files.
            backends: the options that say who its backends are, by the port of the one that there is.
            host: where that listens.
            options: of `llmpipe serve`, beside those of the count.
        """
        self.folder = folder
        self.dumps = 0
        self.connections: list[socket.socket] = []
        library = folder / "instructions.so"
        compiler = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*compiler, "-o", library, HERE / "instructions.c"], check=True)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.backend = socket.create_server((host, 0), backlog=1024)
        self.backend.settimeout(TIMEOUT)
        self.pipe, theirs = socket.socketpair()
        self.pipe.settimeout(TIMEOUT)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no", "--dump-line=no"]
        serve = ["-m", "llmpipe", "serve", "--workers", "1", "--admin", "off", "--log-level", "warning"]
        # So long that none falls into a count: the clock is moved on between them.
        times = ["--upstream-idle-timeout", "10h", "--keepalive-timeout", "10h"]
        port = self.backend.getsockname()[1]
        pool = backends(port) if backends else ["--backend", f"http://127.0.0.1:{port}"]
        command = [*valgrind, f"--callgrind-out-file={folder}/out", python, *serve, *times, *options, *pool]
        # They become descriptors 3, as LISTEN_FDS wants it, and 4; taken from high numbers, neither is in the other's way.
        high = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in (self.listener, theirs)]
        take = 'exec 3<&{0} 4<&{1} {0}<&- {1}<&-; LISTEN_PID=$$ exec "$@"'.format(*high)
        with (folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                ["bash", "-c", take, "bash", *command],
                pass_fds=high,
                env={"PATH": os.environ["PATH"], "LD_PRELOAD": str(library), "LISTEN_FDS": "1", "PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        for each in high:
            os.close(each)
        theirs.close()
        try:
            self._found()
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Has one request answered: the control plane has then handed over all that it does at the start."""
        client = self._connect()
        client.say(REQUEST)
        self.turn_until(lambda: readable(self.backend))
        backend = self.accept()
        self.turn_until(lambda: readable(backend.socket))
        backend.hear_request()
        backend.say(ANSWER)
        self.turn_until(lambda: readable(client.socket))
        client.hear(ANSWER_BODY)
        for peer in (client, backend):
            peer.socket.close()
        self.settle()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for each in (self.pipe, self.listener, self.backend, *self.connections):
            each.close()

    def _found(self) -> int:
        try:
            answer = self.pipe.recv(1)
        except TimeoutError:
            answer = b""
        if not answer:
            raise CountError(f"the proxy has gone, or is stuck: {(self.folder / 'stderr').read_text()[-2000:]}")
        return answer[0]

    def tell(self, what: str, n: int = 0) -> int:
        """One command of instructions.c: how many events the turn found, where it was one."""
        self.pipe.sendall(bytes([ord(what), n]))
        return self._found()

    def turn(self, events: int = 1) -> None:
        """The engine takes exactly so many events."""
        if (found := self.tell("w", events)) != events:
            raise CountError(f"a turn found {found} events, not {events}: the count would not be the same again")

    def turn_until(self, ready: Callable[[], bool]) -> None:
        """Turns, uncounted, until something has come about."""
        for _ in range(3000):
            if ready():
                return
            self.tell("w", 0)
        raise CountError("what the engine was to do did not come about")

    def settle(self) -> None:
        """Turns until nothing is left to do."""
        while self.tell("w", 0):
            pass

    def count(self, unit: Callable[[], None], n: int) -> Counter[tuple[str, str]]:
        """What the engine ran while `unit` was done n times."""
        self.tell("c")
        for _ in range(n):
            unit()
        self.tell("d")
        self.dumps += 1
        return read_profile(self.folder / f"out.{self.dumps}")

    def cost(self, unit: Callable[[], None], n: int, units: int = 1) -> Cost:
        """What one of the `units` costs that `unit` does each time."""
        self.settle()
        self.tell("a")
        for _ in range(8):
            unit()
        once = self.count(unit, n)
        twice = self.count(unit, 2 * n)
        cost = Cost()
        for (place, name), instructions in twice.items():
            if place.endswith("/instructions.so"):
                continue
            each = (instructions - once[place, name]) / n / units
            cost.functions[re.sub(r"__pyx_[fp]w?_7llmpipe_5_pipe_", "", name).partition("'")[0]] += each
            if "/llmpipe/_pipe." in place:
                cost.engine += each
            else:
                cost.library += each
        return cost

    def _peer(self, connection: socket.socket) -> Peer:
        self.connections.append(connection)
        return Peer(connection)

    def _connect(self) -> Peer:
        return self._peer(socket.create_connection(self.listener.getsockname(), TIMEOUT))

    def dial(self) -> Peer:
        """A client's connection, which the engine has accepted."""
        client = self._connect()
        self.turn()
        return client

    def accept(self) -> Peer:
        """A connection of the engine's to the backend."""
        return self._peer(self.backend.accept()[0])


class Peer:
    """A client's or a backend's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self, last: bytes) -> bytes:
        """All that has come, which must end with `last`."""
        data = b""
        while not data.endswith(last):
            more = self.socket.recv(65536)
            if not more:
                raise CountError(f"the proxy closed a connection after {data!r}")
            data += more
        return data

    def hear_request(self) -> None:
        """A whole request, whatever its body has become on the way."""
        data = b""
        while True:
            more = self.socket.recv(65536)
            if not more:
                raise CountError(f"the proxy closed a connection after {data!r}")
            data += more
            head, end, body = data.partition(b"\r\n\r\n")
            if end and len(body) == int(re.findall(rb"(?i)\ncontent-length: (\d+)", head)[0]):
                return

    def hear_end(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            if data := self.socket.recv(65536):
                raise CountError(f"the proxy sent {data!r} instead of closing")
        self.socket.close()


def readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def open_stream(proxy: Proxy) -> tuple[Peer, Peer]:
    """A client and a backend with a stream between them that has begun."""
    client = proxy.dial()
    client.say(REQUEST)
    proxy.turn()
    backend = proxy.accept()
    proxy.turn()
    backend.hear_request()
    backend.say(STREAM_HEAD + EVENT)
    proxy.turn()
    client.hear(EVENT)
    return client, backend


def measure(proxy: Proxy) -> Iterator[tuple[str, Cost]]:
    """Each unit's cost, by its name in UNITS."""
    streams = [open_stream(proxy) for _ in range(BATCH)]

    def event() -> None:
        client, backend = streams[0]
        backend.say(EVENT)
        proxy.turn()
        if client.hear(EVENT) != EVENT:
            raise CountError("an event came as something else")

    def batch() -> None:
        for _, backend in streams:
            backend.say(EVENT)
        proxy.turn(BATCH)
        for client, _ in streams:
            client.hear(EVENT)

    yield "event", proxy.cost(event, 500)
    yield "batch", proxy.cost(batch, 50, BATCH)

    leavers = [open_stream(proxy) for _ in range(8 + 3 * 40)]

    def disconnect() -> None:
        client, backend = leavers.pop()
        client.socket.close()
        proxy.turn()
        backend.hear_end()

    yield "disconnect", proxy.cost(disconnect, 40)

    client = proxy.dial()
    client.say(REQUEST)
    proxy.turn()
    backend = proxy.accept()
    proxy.turn()

    def answer(client: Peer) -> None:
        backend.hear_request()
        backend.say(ANSWER)
        proxy.turn()
        client.hear(ANSWER_BODY)

    def request() -> None:
        client.say(REQUEST)
        proxy.turn()
        answer(client)

    def connection() -> None:
        other = proxy.dial()
        other.say(REQUEST)
        proxy.turn()
        answer(other)
        other.socket.close()
        proxy.turn()

    answer(client)
    yield "request", proxy.cost(request, 200)
    yield "connection", proxy.cost(connection, 100)


def count(python: str = sys.executable, options: Sequence[str] = ()) -> dict[str, Cost]:
    """All costs, of the llmpipe that `python` imports, with these options of `llmpipe serve`."""
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(python, Path(folder), options=options)
        try:
            costs = dict(measure(proxy))
        finally:
            proxy.close()
    return {name: costs[name] for name in UNITS}


def build_of(python: str = sys.executable) -> dict[str, str]:
    """What a count depends on besides the source."""
    ask = "import llmpipe._pipe; print(llmpipe._pipe.__file__)"
    engine = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    data = engine.read_bytes()
    flavour = next((name for name in ("__asan_", "__tsan_", "__gcov_") if name.encode() in data), "release")
    compilers = {found.decode() for found in re.findall(rb"GCC: \([^)]*\) [\w.]+", data)}
    return {
        "flavour": flavour.strip("_"),
        "compiler": ", ".join(sorted(compilers)) or "unknown",
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "vectors": "avx2"
        if re.search(r"\bavx2\b", Path("/proc/cpuinfo").read_text())
        else "",  # memchr and memcpy look
    }


def lacking() -> str:
    """Why nothing can be counted here; empty where it can."""
    if platform.system() != "Linux":
        return "the engine runs on Linux only"
    missing = [name for name in ("valgrind", "gcc", "bash") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)}" if missing else ""


def table(costs: dict[str, Cost], budget: dict[str, float]) -> str:
    """Costs beside their budgets."""
    lines = [f"{'instructions for':50}{'engine':>9}{'C library':>11}{'all':>9}{'budget':>9}"]
    for name, cost in costs.items():
        allowed = budget.get(name)
        against = f"{allowed:9.0f} {cost.total / allowed - 1:+7.1%}" if allowed else f"{'-':>9}"
        lines.append(f"{UNITS[name]:50}{cost.engine:9.0f}{cost.library:11.0f}{cost.total:9.0f}{against}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the engine's instructions.")
    parser.add_argument("--python", default=sys.executable, help="one that has llmpipe installed")
    parser.add_argument("--functions", action="store_true", help="show where they are spent")
    parser.add_argument(
        "--option", action="append", default=[], help="a word for llmpipe serve: --option=--include-usage --option=off"
    )
    parser.add_argument("--renew", action="store_true", help=f"write them into {BUDGET.name}")
    options = parser.parse_args()
    if reason := lacking():
        print(f"instructions: {reason}", file=sys.stderr)
        return 1
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {"build": {}, "instructions": {}}
    build = build_of(options.python)
    costs = count(options.python, options.option)
    print(table(costs, budget["instructions"]))
    print(", ".join(f"{name} {value}" for name, value in build.items()))
    if options.functions:
        for name, cost in costs.items():
            print(f"\n{UNITS[name]}")
            for function, each in sorted(cost.functions.items(), key=lambda item: (-item[1], item[0]))[:20]:
                print(f"{each:9.1f}  {function}")
    if options.renew:
        written = {"build": build, "instructions": {name: round(cost.total, 1) for name, cost in costs.items()}}
        BUDGET.write_text(json.dumps(written, indent=2) + "\n")
    elif build != budget["build"]:
        print(f"the budget was written for another build: {budget['build']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
