"""Names with several addresses, and addresses that move: engines in this process, which get their tables as the control plane hands them out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from engines import Engines
from harness import (
    Backend,
    Connection,
    Stream,
    answer_all,
    chunk,
    free_port,
    respond,
    sse_head,
    unanswering_address,
    wait_until,
)

from llmpipe._pipe import OUTCOMES
from llmpipe.config import PoolSettings, Settings

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Address = tuple[str, int]


class Named(Engines):
    """Engines whose tables are said in short."""

    def name(self, **backends: Address) -> list[int]:
        """A table of backends by name, and their numbers."""
        return self.configure(
            [(name.encode(), b"b", b"", [address], False, 0, b"") for name, address in backends.items()]
        )

    def backend(self, number: int, name: str) -> int:
        """A counter of a backend, of all engines."""
        return sum(engine.stats()["backends"][number][name] for engine in self.engines)

    def route(self, *backends: list[Address], finish_on_abort: bool = False) -> None:
        """A table of backends, each with its addresses."""
        self.configure(
            [(b"%d" % slot, b"b", b"", addresses, finish_on_abort, 0, b"") for slot, addresses in enumerate(backends)]
        )

    def connect(self) -> Stream:
        return Stream(socket.create_connection(self.address))

    def outcome(self, name: str) -> int:
        return sum(engine.stats()["outcomes"][OUTCOMES.index(name)] for engine in self.engines)

    def failed(self, slot: int) -> int:
        """How often a backend was left out: for how long is no test's business."""
        self.rest()
        return self.backend(slot, "failures")


@pytest.fixture
def engines() -> Iterator[object]:
    with ExitStack() as stack:

        def make(count: int = 1, **settings: object) -> Named:
            made = Named(count, Settings(pool=PoolSettings(**settings)))
            stack.callback(made.close)
            return made

        yield make


def port_of(backend: Backend) -> Address:
    return ("127.0.0.1", backend.port)


def status_of(stream: Stream) -> int:
    head = stream.read_head()
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    stream.read(length)
    return int(head.split()[1])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("first", ["refuses", "swallows"])
def test_each_exchange_tries_each_address_once(engines, first, workers):
    """Whatever other exchanges meet at the same moment: one that fails moves nobody else's choice."""
    with ExitStack() as stack:
        good = stack.enter_context(Backend(answer_all))
        if first == "refuses":
            bad = ("127.0.0.1", free_port())
        else:
            bad = ("127.0.0.1", int(stack.enter_context(unanswering_address()).rpartition(":")[2]))
        made = engines(workers, connect_timeout=0.5)
        made.route([bad, port_of(good)])
        clients = [stack.enter_context(OneClient(made)) for _ in range(8)]
        for client in clients:
            client.send(GET)
        assert [status_of(client) for client in clients] == [200] * 8
        assert made.failed(0) == 0
        assert not any(sum(engine.stats()["retries"]) for engine in made.engines)
        # From now on the address that answered comes first.
        errors = made.total("connect_errors")
        for _ in range(8):
            with OneClient(made) as client:
                client.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
                assert status_of(client) == 200
        assert made.total("connect_errors") == errors


class OneClient:
    """A client of the engines, closed at the end."""

    def __init__(self, made: Named) -> None:
        self.made = made

    def __enter__(self) -> Stream:
        self.stream = self.made.connect()
        return self.stream

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def test_every_address_of_a_backend_before_it_is_left_out(engines):
    made = engines()
    made.route([("127.0.0.1", free_port()), ("127.0.0.1", free_port()), ("127.0.0.1", free_port())])
    with OneClient(made) as client:
        client.send(GET)
        assert status_of(client) == 502
    assert made.total("connect_errors") == 3
    assert made.failed(0) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_after_a_new_table_no_request_goes_to_an_address_that_left_it(engines, workers):
    """The connection of an exchange that is under way at that moment is closed when it ends, not kept for the next ones."""
    go = threading.Event()

    def slow(conn: Connection) -> None:
        conn.read_request()
        assert go.wait(60)
        respond(conn, b"old")
        answer_all(conn)

    def other(conn: Connection) -> None:
        while True:
            conn.read_request()
            respond(conn, b"new")

    with ExitStack() as stack:
        old = stack.enter_context(Backend(slow))
        new = stack.enter_context(Backend(other))
        made = engines(workers)
        made.route([port_of(old)])
        waiting = [stack.enter_context(OneClient(made)) for _ in range(2 * workers)]  # in every engine
        for client in waiting:
            client.send(GET)
        old.wait_connections(2 * workers)
        made.route([port_of(new)])
        go.set()
        for client in waiting:
            assert status_of(client) == 200
        for client in waiting:
            # An engine takes a table in its own time; from the first answer by the new one on, it has it.
            wait_until(lambda client=client: body_of(client) == b"new")
            for _ in range(20):
                assert body_of(client) == b"new"
        old.catch_up()
        served = len(old.connections)
        for client in waiting:
            assert body_of(client) == b"new"
        old.catch_up()
        assert len(old.connections) == served
        for connection in old.connections:
            connection.wait_eof()


def body_of(client: Stream) -> bytes:
    client.send(GET)
    head = client.read_head()
    return client.read(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))


def test_an_address_that_stays_keeps_its_idle_connection(engines):
    with Backend(answer_all) as kept, Backend(answer_all) as other:
        made = engines(upstream_idle_timeout=60.0)
        made.route([port_of(kept), port_of(other)])
        with OneClient(made) as client:
            client.send(GET)
            assert status_of(client) == 200
            made.route([port_of(other), port_of(kept)])
            for _ in range(5):
                client.send(GET)
                assert status_of(client) == 200
        assert len(kept.connections) == 1
        assert not other.connections
        assert made.total("reuses") == 5


@pytest.mark.parametrize("kept", [True, False])
def test_a_stream_keeps_the_table_that_it_began_with(engines, kept):
    """Through any number of new ones, in which its backend is another or none; what it does not hold any more is freed."""
    ended = threading.Event()
    released = threading.Event()
    whole = []

    def stream(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        assert released.wait(60)
        try:
            for _ in range(100):
                connection.send(chunk(b"data: 2\n\n") * 1000)
            connection.send(b"0\r\n\r\n")
            whole.append(True)
        except OSError:
            whole.append(False)
        ended.set()

    with Backend(stream) as backend, Backend(answer_all) as other:
        made = engines()
        made.route([port_of(backend)], finish_on_abort=kept)
        with OneClient(made) as client:
            client.send(GET)
            client.read_head()
            client.read(1)
            for _ in range(20):
                made.route([port_of(other)], finish_on_abort=not kept)
                made.route()
            made.route([port_of(other)], finish_on_abort=not kept)
            with OneClient(made) as later:
                later.send(GET)
                assert status_of(later) == 200
        wait_until(lambda: made.total("finishing") == kept and made.outcome("client_abort") == (not kept))
        released.set()
        assert ended.wait(30)
        assert whole == [kept]
        wait_until(lambda: made.outcome("client_abort") == 1 and made.total("finishing") == 0)


def test_a_backend_is_the_same_one_in_every_table(engines):
    """Its counters and its idle connections are its own, wherever it stands; another one that comes begins with none."""
    made = engines(2)
    with Backend(answer_all) as one, Backend(answer_all) as two:
        (first,) = made.name(one=port_of(one))
        with OneClient(made) as client:
            for _ in range(3):
                client.send(GET)
                assert status_of(client) == 200
            other, again = made.name(two=port_of(two), one=port_of(one))
            assert again == first != other
            assert (made.backend(first, "exchanges"), made.backend(other, "exchanges")) == (3, 0)
            wait_until(lambda: made.backend(first, "idle") == 1)  # which comes behind the answer
            assert made.backend(other, "idle") == 0
            made.name(two=port_of(two))
            wait_until(lambda: made.total("upstreams") == 0)
            client.send(GET)
            assert status_of(client) == 200
            assert made.backend(other, "exchanges") == 1
        numbers = {first, other}
        for count in range(200):  # more than there are slots
            numbers.update(made.name(**{f"n{count}": port_of(two)}))
            wait_until(lambda: made.total("upstreams") <= 1)
        assert len(numbers) == 202
        (last,) = made.name(last=port_of(two))
        with OneClient(made) as client:
            client.send(GET)
            assert status_of(client) == 200
        assert made.backend(last, "exchanges") == 1
