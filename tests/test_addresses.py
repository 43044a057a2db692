"""Names with several addresses, and addresses that move: engines in this process, which get their tables as the control plane hands them out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness import Backend, Connection, Stream, answer_all, free_port, respond, unanswering_address, wait_until

from llmpipe._pipe import OUTCOMES, Engine
from llmpipe.config import Settings

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Address = tuple[str, int]


class Engines:
    """Engines that share, each in its thread, behind one listening socket."""

    def __init__(self, count: int, settings: Settings) -> None:
        self.engines = [Engine(settings)]
        self.engines += [Engine(settings, self.engines[0]) for _ in range(count - 1)]
        self.threads = [threading.Thread(target=engine.run) for engine in self.engines]
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        for thread in self.threads:
            thread.start()
        self.engines[0].listen([self.listener.fileno()], self.engines, 1000, 900, 0, 0)

    def configure(self, *backends: list[Address]) -> None:
        """A table of backends, each with its addresses."""
        table = [(slot, b"%d" % slot, b"b", b"", addresses, False) for slot, addresses in enumerate(backends)]
        for engine in self.engines:
            engine.configure(table)

    def connect(self) -> Stream:
        return Stream(socket.create_connection(self.listener.getsockname()))

    def total(self, name: str) -> int:
        return sum(engine.stats()[name] for engine in self.engines)

    def outcome(self, name: str) -> int:
        return sum(engine.stats()["outcomes"][OUTCOMES.index(name)] for engine in self.engines)

    def left_out(self, slot: int) -> bool:
        return self.engines[0].stats()["backends"][slot]["left_out"]

    def close(self) -> None:
        for engine in self.engines:
            engine.stop()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        for engine in self.engines:
            engine.close()
        self.listener.close()


@pytest.fixture
def engines() -> Iterator[object]:
    with ExitStack() as stack:

        def make(count: int = 1, **settings: object) -> Engines:
            made = Engines(count, Settings(**settings))
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
        made.configure([bad, port_of(good)])
        clients = [stack.enter_context(OneClient(made)) for _ in range(8)]
        for client in clients:
            client.send(GET)
        assert [status_of(client) for client in clients] == [200] * 8
        assert not made.left_out(0)
        assert made.total("retries") == 0
        # From now on the address that answered comes first.
        errors = made.total("connect_errors")
        for _ in range(8):
            with OneClient(made) as client:
                client.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
                assert status_of(client) == 200
        assert made.total("connect_errors") == errors


class OneClient:
    """A client of the engines, closed at the end."""

    def __init__(self, made: Engines) -> None:
        self.made = made

    def __enter__(self) -> Stream:
        self.stream = self.made.connect()
        return self.stream

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def test_every_address_of_a_backend_before_it_is_left_out(engines):
    made = engines()
    made.configure([("127.0.0.1", free_port()), ("127.0.0.1", free_port()), ("127.0.0.1", free_port())])
    with OneClient(made) as client:
        client.send(GET)
        assert status_of(client) == 502
    assert made.total("connect_errors") == 3
    assert made.left_out(0)


@pytest.mark.parametrize("workers", [1, 3])
def test_after_a_new_table_no_request_goes_to_an_address_that_left_it(engines, workers):
    """The connection of an exchange that is under way at that moment is closed when it ends, not kept for the next ones."""
    go = threading.Event()

    def slow(conn: Connection) -> None:
        conn.read_request()
        assert go.wait(20)
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
        made.configure([port_of(old)])
        waiting = [stack.enter_context(OneClient(made)) for _ in range(2 * workers)]  # in every engine
        for client in waiting:
            client.send(GET)
        old.wait_connections(2 * workers)
        made.configure([port_of(new)])
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
        made = engines()
        made.configure([port_of(kept), port_of(other)])
        with OneClient(made) as client:
            client.send(GET)
            assert status_of(client) == 200
            made.configure([port_of(other), port_of(kept)])
            for _ in range(5):
                client.send(GET)
                assert status_of(client) == 200
        assert len(kept.connections) == 1
        assert not other.connections
        assert made.total("reuses") == 5
