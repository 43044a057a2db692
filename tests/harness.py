"""The parts that wire tests are put together from: a proxy process, scripted backends and raw clients.

Everything works on real sockets and raw bytes, so that a test decides what is sent, when and in which pieces. Every socket
has a time-out, every thread is a daemon, and every class is a context manager that leaves nothing open. Nothing here knows
what the proxy should do; that is for the tests to say.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT = 30.0
"""Seconds that a socket or a wait is given: enough for a machine that stands still for a while, short enough for a broken one."""

REPORTS = (
    "Traceback (most recent call last)",
    "AddressSanitizer",
    "LeakSanitizer",
    "ThreadSanitizer",
    "runtime error:",
    "Fatal Python error",
)
"""Texts that must not stand in a proxy's stderr."""

Fields = list[tuple[bytes, bytes]]
LIBC = ctypes.CDLL(None)


class PeerClosedError(EOFError):
    """The peer closed between two messages: the usual end of a keep-alive connection."""


def wait_until(predicate: Callable[[], object], timeout: float = TIMEOUT, what: str = "") -> None:
    """Polls until `predicate` is true; fails with `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or predicate}")
        time.sleep(0.005)


@contextlib.contextmanager
def unanswering_address(address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """The URL of a listener whose backlog is full: it neither accepts nor refuses."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(address)
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        host, port = listener.getsockname()
        yield f"http://{host}:{port}"


def ports() -> Iterator[int]:
    """Ports that the kernel gives nobody: below those of outgoing connections and of `bind` to port 0. Each process of a
    parallel run has its own, so that no other test takes one between its choice and its use.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    size = (lowest - 10_000) // 16
    first = 10_000 + size * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16)
    return itertools.cycle(range(first, first + size))


PORTS = ports()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that nothing takes by chance. Each call gives another one."""
    for port in PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def wait_asleep(threads: Iterable[str]) -> None:
    """Waits until each of these threads, given by their folders in /proc, has slept once, or until a second has passed.

    A client has the last byte of an answer a moment before the engine counts the exchange, and on a busy machine that moment
    can be long. An engine never sleeps within a turn of its loop: once it is seen asleep, all that belongs to what it has sent is
    done. One that has work all the time is looked at while it works.
    """
    first: dict[str, str] = {}

    def slept(thread: str) -> bool:
        try:
            status = Path(thread, "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert switches
        return "State:\tS" in status or first.setdefault(thread, switches[1]) != switches[1]

    end = time.monotonic() + 1
    left = list(threads)
    while (left := [thread for thread in left if not slept(thread)]) and time.monotonic() < end:
        time.sleep(0.001)


def threads_of(pid: int) -> list[str]:
    """The folders of a process's threads in /proc."""
    return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]


def open_descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process is, as /proc says; without those that are closed while it is looked at."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def shut(sock: socket.socket, *, reset: bool) -> None:
    """Sends a FIN or an RST now, whoever waits in the socket; they are woken. The descriptor stays open."""
    with contextlib.suppress(OSError):
        if reset and sock.family != socket.AF_UNIX:
            # connect() to AF_UNSPEC; close() alone would send nothing before the last waiting thread is gone.
            LIBC.connect(sock.fileno(), bytes(16), 16)
        else:
            sock.shutdown(socket.SHUT_RDWR)


def split_head(head: bytes) -> tuple[bytes, Fields]:
    """The first line of a head and its fields, values without the white space around them."""
    line, _, rest = head.partition(b"\r\n")
    fields = []
    for text in rest.split(b"\r\n"):
        if text:
            name, colon, value = text.partition(b":")
            assert colon, f"a line without a colon in {head!r}"
            fields.append((name, value.strip(b" \t")))
    return line, fields


def values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of every field called `name`, in order."""
    return [value for key, value in fields if key.lower() == name.lower()]


def chunk(data: bytes) -> bytes:
    """`data` as one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def sse_head() -> bytes:
    """The head of a chunked event stream."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Stream:
    """A socket with a buffer in front of it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(TIMEOUT)
        if sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self.sock.sendall(data)

    def recv(self) -> bytes:
        """What is there, or else the next piece as one recv returns it; b"" at EOF."""
        if self.buffer:
            data, self.buffer = bytes(self.buffer), bytearray()
            return data
        return self.sock.recv(65536)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            if self.buffer:
                raise EOFError(f"the peer closed after {bytes(self.buffer[-200:])!r}")
            raise PeerClosedError
        self.buffer += data

    def recv_until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`."""
        searched = 0
        while (at := self.buffer.find(mark, searched)) < 0:
            searched = max(0, len(self.buffer) - len(mark))
            self._more()
        return self._take(at + len(mark))

    def read(self, n: int) -> bytes:
        """Exactly `n` bytes."""
        while len(self.buffer) < n:
            self._more()
        return self._take(n)

    def _take(self, n: int) -> bytes:
        data = bytes(self.buffer[:n])
        del self.buffer[:n]
        return data

    def read_head(self) -> bytes:
        """A head with the empty line behind it."""
        return self.recv_until(b"\r\n\r\n")

    def read_chunked_raw(self) -> tuple[bytes, bytes]:
        """A chunked body: as it is framed, and its data. Trailers are part of the framing only."""
        raw, body = bytearray(), bytearray()
        while True:
            line = self.recv_until(b"\r\n")
            raw += line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            data = self.read(size + 2)
            assert data.endswith(b"\r\n"), f"no line end behind a chunk: {data[-20:]!r}"
            raw += data
            body += data[:-2]
        while True:
            line = self.recv_until(b"\r\n")
            raw += line
            if line == b"\r\n":
                return bytes(raw), bytes(body)

    def read_chunked(self) -> bytes:
        """The data of a chunked body."""
        return self.read_chunked_raw()[1]

    def read_eof(self, timeout: float = TIMEOUT) -> bytes:
        """Everything until EOF; ConnectionResetError is raised."""
        end = time.monotonic() + timeout
        data, self.buffer = bytearray(self.buffer), bytearray()
        try:
            while True:
                self.sock.settimeout(max(0.001, end - time.monotonic()))
                piece = self.sock.recv(1 << 20)
                if not piece:
                    return bytes(data)
                data += piece
        except TimeoutError:
            raise TimeoutError(f"no EOF within {timeout} s, after {bytes(data[-200:])!r}") from None
        finally:
            self.sock.settimeout(TIMEOUT)

    def silent(self, seconds: float) -> bool:
        """Whether nothing, EOF included, arrives for this long."""
        if self.buffer:
            return False
        self.sock.settimeout(seconds)
        try:
            self.buffer += self.sock.recv(65536)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)
        return False

    def close(self) -> None:
        """Closes with a FIN; with an RST where bytes were left unread."""
        shut(self.sock, reset=False)
        self._close()

    def half_close(self) -> None:
        """Sends a FIN and stays able to read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Closes with an RST."""
        shut(self.sock, reset=True)
        self._close()

    def _close(self) -> None:
        self.sock.close()


@dataclass
class Request:
    """A request as the backend got it."""

    line: bytes
    fields: Fields
    body: bytes
    raw_head: bytes

    def values(self, name: bytes) -> list[bytes]:
        return values(self.fields, name)


Script = Callable[["Connection"], None]


class Connection(Stream):
    """One connection as the backend sees it. It stays open when its script returns, until the backend's end."""

    def __init__(self, sock: socket.socket, index: int) -> None:
        super().__init__(sock)
        self.index = index
        self.forgotten = False
        self._released = False
        self.script_ended = False
        self.thread: threading.Thread | None = None

    def _close(self) -> None:
        # A descriptor that is closed while the script's thread waits in it may be another socket when that thread wakes.
        self._released = True
        if self.script_ended or threading.current_thread() is self.thread:
            self.sock.close()

    def run(self, script: Script) -> None:
        """Runs the script, in this thread."""
        self.thread = threading.current_thread()
        try:
            script(self)
        finally:
            self.script_ended = True
            if self._released:
                self.sock.close()

    def read_request(self) -> Request:
        """A whole request, body included; PeerClosedError only where none had begun."""
        head = self.read_head()
        line, fields = split_head(head)
        try:
            if values(fields, b"transfer-encoding"):
                body = self.read_chunked()
            else:
                body = self.read(int((values(fields, b"content-length") or [b"0"])[0]))
        except PeerClosedError:
            raise EOFError(f"the peer closed inside the body of {line!r}") from None
        return Request(line, fields, body, head)

    def wait_eof(self, timeout: float = TIMEOUT) -> float:
        """Waits for the peer's FIN or RST, throwing away what comes before it; the time.monotonic() when it came."""
        end = time.monotonic() + timeout
        try:
            while True:
                self.sock.settimeout(max(0.001, end - time.monotonic()))
                if not self.sock.recv(1 << 20):
                    return time.monotonic()
        except ConnectionResetError:
            return time.monotonic()
        except TimeoutError:
            raise AssertionError(f"the proxy did not close its connection within {timeout} s") from None
        finally:
            with contextlib.suppress(OSError):
                self.sock.settimeout(TIMEOUT)


class Backend:
    """A raw server. Each connection runs `script` in a thread; `script` may be replaced at any time.

    An exception of a script is kept in `errors` and raised at the end; PeerClosedError is not one, nor is what comes of closing.
    """

    def __init__(self, script: Script, family: str = "tcp", host: str = "", port: int = 0) -> None:
        self.script = script
        self.connections: list[Connection] = []
        self.errors: list[BaseException] = []
        self._closing = False
        self._marker: object = None
        self._marked = threading.Event()
        self._threads: list[threading.Thread] = []
        self._directory: str | None = None
        if family == "unix":
            self._directory = tempfile.mkdtemp(prefix="llmpipe-")
            path = f"{self._directory}/backend.sock"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.url = f"unix:{path}"
        else:
            v6 = family == "tcp6"
            self._listener = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET)
            host = host or ("::1" if v6 else "127.0.0.1")
            self._listener.bind((host, port))
            self.port = int(self._listener.getsockname()[1])
            self.url = f"http://[{host}]:{self.port}" if v6 else f"http://{host}:{self.port}"
        self._listener.listen(4096)
        self._start(self._accept)

    @property
    def address(self) -> str:
        """host:port of a TCP backend."""
        return self.url.removeprefix("http://")

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            if peer == self._marker and peer:
                sock.close()
                self._marked.set()
                continue
            connection = Connection(sock, len(self.connections))
            self.connections.append(connection)
            self._start(self._run, self.script, connection)

    def _run(self, script: Script, connection: Connection) -> None:
        try:
            connection.run(script)
        except PeerClosedError:
            pass
        except BaseException as error:
            if not self._closing and not connection.forgotten:
                self.errors.append(error)

    def wait_connections(self, n: int, timeout: float = TIMEOUT) -> None:
        """Waits until `n` connections were accepted since the start."""
        wait_until(lambda: len(self.connections) >= n, timeout, f"{n} connections to the backend")

    def catch_up(self) -> None:
        """Waits until every connection made so far is accepted (TCP only)."""
        with socket.socket(self._listener.family) as marker:
            marker.bind((self._listener.getsockname()[0], 0))
            marker.settimeout(TIMEOUT)
            self._marker = marker.getsockname()
            self._marked.clear()
            marker.connect(self._listener.getsockname())
            assert self._marked.wait(TIMEOUT)

    def check(self) -> None:
        """Raises what a script raised."""
        if self.errors:
            raise self.errors.pop(0)

    def forget(self) -> None:
        """Closes every connection; what their scripts raise from now on is not an error. New ones count from 0."""
        self.catch_up()
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.forgotten = True
            connection.close()

    def close(self) -> None:
        """Closes everything and waits for the threads."""
        self._closing = True
        shut(self._listener, reset=False)
        self._threads[0].join(TIMEOUT)
        self._listener.close()
        for connection in self.connections:
            connection.close()
        for thread in self._threads:
            thread.join(TIMEOUT)
        for connection in self.connections:
            connection.sock.close()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if kind is None:
            self.check()


def respond(stream: Stream, body: bytes = b"ok", extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Sends a 200 with Content-Length, in one piece."""
    fields = b"".join(b"%s: %s\r\n" % pair for pair in extra)
    stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), fields, body))


def answer_all(connection: Connection) -> None:
    """A script: answers each request of the connection with a small 200."""
    while True:
        connection.read_request()
        respond(connection)


@dataclass
class Response:
    """A response as the client got it; `raw` is every byte of it."""

    status: int
    reason: bytes
    fields: Fields
    body: bytes
    raw_head: bytes
    raw: bytes = field(repr=False)

    def values(self, name: bytes) -> list[bytes]:
        return values(self.fields, name)

    def error(self) -> dict[str, Any]:
        """The error of a JSON answer in the shape that OpenAI clients parse."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


ERROR_TYPES = {502: "server_error", 503: "service_unavailable_error", 504: "timeout_error"}
"""The `type` of the proxy's own errors of 5xx (rule R)."""


class Client(Stream):
    """A raw client of a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy.connect())

    def read_response(self, method: str = "GET") -> Response:
        """The next response to a request with this method; a 1xx is a response of its own."""
        head = self.read_head()
        line, fields = split_head(head)
        _, status_text, reason = line.split(b" ", 2)
        status = int(status_text)
        length = values(fields, b"content-length")
        if method == "HEAD" or status < 200 or status in (204, 304):
            raw, body = b"", b""
        elif values(fields, b"transfer-encoding"):
            raw, body = self.read_chunked_raw()
        else:
            raw = body = self.read(int(length[0])) if length else self.read_eof()
        return Response(status, reason, fields, body, head, head + raw)

    def request(self, data: bytes, method: str = "GET") -> Response:
        """Sends `data` and reads one response."""
        self.send(data)
        return self.read_response(method)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leave(client: Client, how: str) -> None:
    """The client goes away: "fin" or "rst"."""
    {"fin": client.close, "rst": client.reset}[how]()


class Proxy:
    """`llmpipe serve` as a process of its own, with one worker unless the options say otherwise.

    At the end it gets a SIGTERM and must end cleanly: an exchange that a test left open makes that fail.
    """

    def __init__(
        self,
        *backends: str,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        nofile: int | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
    ) -> None:
        """`prefix` are the words of a command that executes the one behind it, in the same process."""
        command = [sys.executable, "-m", "llmpipe", "serve", "--admin", "127.0.0.1:0", "--workers", "1"]
        command += ["--log-format", "json"]
        if "--listen" not in options:  # each one is a further socket
            command += ["--listen", "127.0.0.1:0"]
        command += [word for url in backends for word in ("--backend", url)] + list(options)
        if nofile is not None:
            command = ["sh", "-c", f'ulimit -n {nofile} && exec "$@"', "sh", *command]
        command = [*prefix, *command]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **(env or {})},
            pass_fds=pass_fds,
            cwd=cwd,
        )
        self.pid = self.process.pid
        self.log: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self._told_to_stop = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self.address = str(self.wait_log("listening")["address"])
            self.admin_port = int(str(self.wait_log("admin listening")["address"]).rpartition(":")[2])
        except BaseException:
            self.kill()
            raise
        self.port = int(self.address.rpartition(":")[2])
        self.url = f"http://{self.address}"

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line)
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    self.log.append(parsed)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()
            print("".join(["stderr of the proxy:\n", *self.stderr[-100:]]), file=sys.stderr)

    def close(self) -> None:
        """SIGTERM, unless a test has sent one, and the checks of a clean end."""
        try:
            if not self._told_to_stop:
                if self.process.poll() is None:
                    self.signal(signal.SIGTERM)
                assert self.wait_exit() == 0, f"exit code {self.process.returncode}\n{''.join(self.stderr[-50:])}"
        finally:
            self.kill()
        text = "".join(self.stderr)
        assert not any(report in text for report in REPORTS), text[-20000:]

    def kill(self) -> None:
        """Ends it at once, if it runs, and closes what is open here."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def signal(self, number: int) -> None:
        """Sends a signal; after one that ends it the exit code is the test's business."""
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self._told_to_stop = True
        self.process.send_signal(number)

    def wait_exit(self, timeout: float = TIMEOUT) -> int:
        """Waits for the process; its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the proxy did not end within {timeout} s; an exchange left open?") from None

    def connect(self) -> socket.socket:
        """A new connection to it."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def rest(self) -> None:
        """Waits until the engines have done what belongs to all that they have sent: a count comes a moment behind its answer."""
        wait_asleep(threads_of(self.pid))

    def admin(self, path: str) -> tuple[int, str]:
        """Status and body of a GET from the admin endpoint."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=TIMEOUT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, keyed as it is printed: 'llmpipe_exchanges_total{outcome="ok"}'. What the engines have sent by now
        is counted in them.
        """
        self.rest()
        return self._scrape()

    def _scrape(self) -> dict[str, float]:
        status, text = self.admin("/metrics")
        assert status == 200, text
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str, **labels: str) -> float:
        """One sample, or without labels all of its name together, 0.0 where there is none, once the engines have done what belongs to all that they have sent.

        What a backend or a client did is another matter: it may still be on its way. This looks until two samples in a row are the
        same, three times at most, but who needs it waits for it (wait_metric).
        """
        self.rest()
        sample = self._sample(name, **labels)
        for _ in range(3):
            time.sleep(0.02)
            before, sample = sample, self._sample(name, **labels)
            if before == sample:
                break
        return sample

    def _sample(self, name: str, **labels: str) -> float:
        text = ",".join(f'{label}="{value}"' for label, value in labels.items())
        samples = self._scrape()
        if text or name in samples:
            return samples.get(f"{name}{{{text}}}" if text else name, 0.0)
        return sum(value for sample, value in samples.items() if sample.startswith(f"{name}{{"))

    def outcome(self, name: str) -> float:
        """How many exchanges ended so."""
        return self.metric("llmpipe_exchanges_total", outcome=name)

    def wait_metric(self, name: str, value: float, timeout: float = TIMEOUT, **labels: str) -> None:
        """Waits until a sample has this value."""
        seen = [0.0]

        def reached() -> bool:
            seen[0] = self._sample(name, **labels)
            return seen[0] == value

        try:
            wait_until(reached, timeout)
        except AssertionError:
            raise AssertionError(f"{name} {labels} is {seen[0]}, not {value}, after {timeout} s") from None

    def wait_log(self, event: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The first line of this event, waited for."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log.copy() if line["event"] == event]

        wait_until(lambda: found() or self.process.poll() is not None, timeout, f"log line {event!r}")
        if not found():
            self._reader.join(TIMEOUT)
        assert found(), f"the proxy ended without {event!r}:\n{''.join(self.stderr[-50:])}"
        return found()[0]

    def access(self, n: int = 1, timeout: float = TIMEOUT, path: str | None = None) -> list[dict[str, Any]]:
        """The access lines, of this path only if one is given, once there are `n`."""

        def lines() -> list[dict[str, Any]]:
            return [line for line in self.log.copy() if line["event"] == "access" and path in (None, line["path"])]

        wait_until(lambda: len(lines()) >= n, timeout, f"{n} access lines")
        return lines()

    def descriptors(self) -> int:
        """Open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss(self) -> int:
        """Resident bytes of the process."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def settled(self, timeout: float = TIMEOUT) -> None:
        """Waits until no client, no stream and nothing in flight is left."""
        left: dict[str, float] = {}

        def nothing_left() -> bool:
            names = ("llmpipe_clients", "llmpipe_streaming_active", "llmpipe_in_flight{")
            left.clear()
            left.update((name, n) for name, n in self._scrape().items() if name.startswith(names) and n)
            return not left

        try:
            wait_until(nothing_left, timeout)
        except AssertionError:
            raise AssertionError(f"not settled after {timeout} s: {left}") from None


class Mock:
    """`llmpipe mock` as a process of its own."""

    def __init__(self, *options: str, command: Sequence[str] = ("mock",), env: Mapping[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmpipe", *command, "--listen", "127.0.0.1:0", "--log-format", "json", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **(env or {})},
        )
        self.stderr: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = str(self.wait_log("listening")["address"])
        self.url = f"http://{self.address}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line)
            self._lines.put(line)

    def wait_log(self, event: str) -> dict[str, Any]:
        """The next line of this event."""
        while True:
            line: dict[str, Any] = json.loads(self._lines.get(timeout=30))
            if line["event"] == event:
                return line

    @property
    def load(self) -> tuple[int, int]:
        """Requests that it works on, and requests that wait, as it says itself."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
        return int(values["vllm:num_requests_running"]), int(values["vllm:num_requests_waiting"])

    def wait_load(self, running: int, waiting: int) -> None:
        wait_until(lambda: self.load == (running, waiting), 30, f"{running} running and {waiting} waiting")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(30)
        return code

    def __enter__(self) -> Mock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(30)
        if self.process.stderr is not None:
            self.process.stderr.close()
