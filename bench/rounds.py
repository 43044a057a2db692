"""Rounds that the generator does not make: long bodies, and requests that wait for a place at a backend.

Their clients are Python's. What is measured is the target's CPU time and memory, or a time from one system call to another; how fast
the clients are does not matter to them.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from llmpipe._load import Load
from llmpipe.bench import generator, histogram, process
from llmpipe.bench.histogram import PERCENTILES
from llmpipe.bench.measure import Round, Schedule, Target, Watcher, run_round
from llmpipe.bench.workload import Workload, make_plan
from llmpipe.sockets import bind_now

WAITING_PORT = 7899
"""Where the backend of those that wait is, on 127.0.0.1."""
BUFFER = 8192
"""Bytes of the buffers that keep what was received of a request."""
TIMEOUT = 30.0
"""Seconds for any step; a round that needs longer is over."""
LEAVERS = 100
"""Times that one leaves in a round, of each kind."""
QUIET = 0.2
"""Seconds without work after which a target is done with what it was sent."""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL_TIME = 0.005
"""Seconds in which a request that finds a queue full is refused; it takes a tenth of a millisecond."""
NUMBER = b"X-Number: "


class RoundError(Exception):
    """What a round waited for did not come."""


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _reset(connection: socket.socket) -> None:
    """Closes without a TIME_WAIT: thousands of them would leave the next round no ports."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def request_of(workload: Workload, address: tuple[str, int]) -> bytes:
    """A request of the workload, as its clients send it."""
    plan = make_plan(workload, address, False)
    return plan.prefix + plan.suffix


def _begin(target: Target, number: int, watcher: Watcher) -> None:
    if target.resident_before is None:
        target.resident_before = process.resident_bytes(target.tree())
    watcher.phase(target, number, "starting")


def _grown(target: Target) -> int:
    assert target.resident_before is not None
    return max(0, process.resident_bytes(target.tree()) - target.resident_before)


def _made(measured: dict[str, float], errors: Counter[str], times: dict[str, list[int]] | None = None) -> Round:
    histograms = {
        name: (sorted(Counter(values).items()), max(values)) for name, values in (times or {}).items() if values
    }
    for name, (pairs, most) in histograms.items():
        for label, percent in PERCENTILES.items():
            value = histogram.percentile(pairs, percent)
            assert value is not None, "there are counts"
            measured[f"{name}_{label}"] = value
        measured[f"{name}_max"] = most / 1e9
    return Round(measured, dict(errors), {}, {}, [], histograms, [])


@contextmanager
def _flow(load: Load, address: tuple[str, int]) -> Iterator[None]:
    """Lets the source answer, though no client of the generator asks."""
    generator.begin(load, make_plan(Workload("requests", streams=0, tokens=1), address, True))
    try:
        yield
    finally:
        generator.finish(load)


# --- What a request costs in the target itself ---


class UserTime:
    """A watcher that adds to a round's figures the CPU time of a request that was not the kernel's."""

    def __init__(self, shown: Watcher) -> None:
        self._shown = shown
        self._begun = self._took = 0.0
        self._used = 0.0

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        self._shown.workload(workload, targets, rounds)

    def phase(self, target: Target, number: int, phase: str) -> None:
        if phase == "measuring":
            self._begun, self._used = time.monotonic(), process.user_seconds(target.tree())
        elif phase == "finishing":
            self._took = time.monotonic() - self._begun
            self._used = process.user_seconds(target.tree()) - self._used
        self._shown.phase(target, number, phase)

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        self._shown.tick(target, done, latest)

    def round(self, target: Target, number: int, result: Round) -> None:
        if target.pids and result.figures.get("requests_per_second"):
            answers = result.figures["requests_per_second"] * self._took
            result.figures["user_cpu_per_request"] = self._used / answers
        self._shown.round(target, number, result)


def run_with_user_time(
    load: Load, workload: Workload, target: Target, *, number: int, schedule: Schedule, watcher: Watcher
) -> Round:
    """A round of the generator's, and what a request costs outside of the kernel."""
    return run_round(load, workload, target, number=number, schedule=schedule, watcher=UserTime(watcher))


# --- Long bodies ---


class Uploader(threading.Thread):
    """A client that sends a long request, waits for the answer and sends it again, on one connection."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        super().__init__(name="uploader", daemon=True)
        self.answers = 0
        self.error = ""
        self.ends = False
        self._address = address
        self._request = request

    def run(self) -> None:
        try:
            with _connect(self._address) as connection:
                while not self.ends:
                    connection.sendall(self._request)
                    self._read(connection)
                    self.answers += 1
        except (OSError, RoundError) as error:
            self.error = type(error).__name__

    def _read(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\r\n0\r\n\r\n"):
            more = connection.recv(65536)
            if not more:
                raise RoundError
            data += more
        if not data.startswith(b"HTTP/1.1 200 "):
            raise RoundError


def run_uploads(
    load: Load, workload: Workload, target: Target, *, number: int, schedule: Schedule, watcher: Watcher
) -> Round:
    """Requests that are longer than the generator's may be; its source answers them."""
    _begin(target, number, watcher)
    request = request_of(workload, target.address)
    with _flow(load, target.address):
        clients = [Uploader(target.address, request) for _ in range(workload.streams)]
        for client in clients:
            client.start()
        watcher.phase(target, number, "settling")
        time.sleep(schedule.settle)
        watcher.phase(target, number, "measuring")
        pids = target.tree()
        begun, cpu, start = sum(client.answers for client in clients), process.cpu_seconds(pids), time.monotonic()
        time.sleep(schedule.duration)
        answers = sum(client.answers for client in clients) - begun
        cpu, elapsed = process.cpu_seconds(pids) - cpu, time.monotonic() - start
        grown = _grown(target)
        watcher.phase(target, number, "finishing")
        for client in clients:
            client.ends = True
        for client in clients:
            client.join(TIMEOUT)
    measured = {"requests_per_second": answers / elapsed}
    if answers and pids:
        measured |= {"cpu_per_request": cpu / answers, "memory_per_stream": grown / workload.streams}
    result = _made(measured, Counter(client.error for client in clients if client.error))
    watcher.round(target, number, result)
    return result


# --- A queue ---


class Backend:
    """A backend that answers when it is told to: it has one place, so it has one request at a time."""

    def __init__(self) -> None:
        self._listener = bind_now(("127.0.0.1", WAITING_PORT), "the backend of those that wait")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._now: socket.socket | None = None

    def next(self) -> tuple[int, int]:
        """Waits for a request: when its first bytes were there, in ns, and its number.

        Raises:
            RoundError: none comes.
        """
        end = time.monotonic() + TIMEOUT
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is self._listener:
                    made, _ = connection.accept()
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    made.settimeout(TIMEOUT)
                    self._selector.register(made, selectors.EVENT_READ)
                    continue
                data = connection.recv(65536)
                at = time.monotonic_ns()
                if data:
                    self._now = connection
                    return at, self._rest(connection, data)
                self._selector.unregister(connection)
                connection.close()
        raise RoundError("no request came to the backend")

    @staticmethod
    def _rest(connection: socket.socket, data: bytes) -> int:
        """The number of a request whose beginning has come, when all of it has."""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
            if found and len(body) >= int(fields[b"content-length"]):
                return int(fields[b"x-number"])
            more = connection.recv(65536)
            if not more:
                raise RoundError("a request was cut")
            data += more

    def answer(self) -> None:
        """Ends the answer: its place is free."""
        assert self._now is not None
        self._now.sendall(ANSWER)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


class Clients:
    """Clients by their number; each has sent a request that says it."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._address = address
        self._head, _, self._rest = request.partition(b"\r\n")
        self._count = 0
        self.open: dict[int, socket.socket] = {}

    def ask(self) -> int:
        """Another one; its number."""
        self._count += 1
        connection = _connect(self._address)
        self.open[self._count] = connection
        connection.sendall(b"%s\r\n%s%08d\r\n%s" % (self._head, NUMBER, self._count, self._rest))
        return self._count

    def leave(self, number: int) -> None:
        self.open.pop(number).close()

    def drop(self, number: int) -> None:
        _reset(self.open.pop(number))

    def refused(self, number: int, within: float = REFUSAL_TIME) -> bool:
        """Whether it is answered at once, which is no."""
        connection = self.open[number]
        connection.settimeout(within)
        try:
            return connection.recv(4096).startswith(b"HTTP/1.1 429")
        except TimeoutError:
            return False

    def close(self) -> None:
        for number in list(self.open):
            self.drop(number)


def wait_for_rest(pids: Sequence[int]) -> None:
    """Waits until the target has nothing left to do."""
    end = time.monotonic() + TIMEOUT
    before = process.cpu_seconds(list(pids))
    while time.monotonic() < end:
        time.sleep(QUIET)
        after = process.cpu_seconds(list(pids))
        if after - before < QUIET / 20:
            return
        before = after
    raise RoundError("the target does not come to rest")


def run_queue(
    load: Load, workload: Workload, target: Target, *, number: int, schedule: Schedule, watcher: Watcher
) -> Round:
    """Fills a queue to its end, lets some leave, and has the others served: one place, one at a time."""
    _begin(target, number, watcher)
    times: dict[str, list[int]] = {"grant": [], "leave": [], "place": []}
    measured: dict[str, float] = {}
    errors: Counter[str] = Counter()
    pids = target.tree()
    with ExitStack() as stack:
        stack.enter_context(_flow(load, target.address))
        backend = Backend()
        stack.callback(backend.close)
        clients = Clients(target.address, request_of(workload, target.address))
        stack.callback(clients.close)
        try:
            clients.ask()
            _, serving = backend.next()
            watcher.phase(target, number, "settling")
            waiting = [clients.ask() for _ in range(workload.streams)]
            wait_for_rest(pids)
            watcher.phase(target, number, "measuring")
            measured["memory_per_waiting"] = max(0.0, _grown(target) / workload.streams - BUFFER)
            times["place"] = [_place(clients, gone) for gone in waiting[:: max(1, len(waiting) // LEAVERS)]]
            begun = time.monotonic()
            while len(clients.open) > 1 and time.monotonic() - begun < schedule.duration:
                taken, serving = _grant(backend, clients, serving)
                times["grant"].append(taken)
            for left in [one for one in clients.open if one != serving]:
                clients.drop(left)
            wait_for_rest(pids)
            for _ in range(min(LEAVERS, workload.streams)):
                taken, serving = _leave(backend, clients, serving, pids)
                times["leave"].append(taken)
            backend.answer()
            watcher.phase(target, number, "finishing")
        except (RoundError, OSError) as error:
            errors[str(error) or type(error).__name__] += 1
    result = _made(measured, errors, times)
    watcher.round(target, number, result)
    return result


def _place(clients: Clients, gone: int) -> int:
    """One leaves a full queue, and another one comes: how long it was until that had its place."""
    start = time.monotonic_ns()
    clients.leave(gone)
    while True:
        sent = time.monotonic_ns()
        came = clients.ask()
        if not clients.refused(came):
            return sent - start
        clients.drop(came)


def _grant(backend: Backend, clients: Clients, serving: int) -> tuple[int, int]:
    """An answer ends: how long it was until the next one was at the backend, and which one that is."""
    start = time.monotonic_ns()
    backend.answer()
    at, following = backend.next()
    clients.drop(serving)
    return at - start, following


def _leave(backend: Backend, clients: Clients, serving: int, pids: Sequence[int]) -> tuple[int, int]:
    """The first of two that wait leaves, and an answer ends: how long it was until the second one was at the backend."""
    first = clients.ask()
    time.sleep(0.002)
    second = clients.ask()
    time.sleep(0.002)
    start = time.monotonic_ns()
    clients.leave(first)
    backend.answer()
    at, following = backend.next()
    if following != second:
        raise RoundError("a request whose client had left was sent")
    clients.drop(serving)
    return at - start, following


def long_body(model: str, size: int) -> bytes:
    """A request for tokens of so many bytes, with `model` as its last key."""

    def made(prompt: str) -> bytes:
        messages = [{"role": "user", "content": prompt}]
        return json.dumps({"stream": True, "max_tokens": 1, "messages": messages, "model": model}).encode()

    return made("x" * (size - len(made(""))))
