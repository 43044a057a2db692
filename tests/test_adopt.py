"""Connections that were accepted elsewhere and are handed over (`Engine.adopt`): served, counted and refused like the engine's own."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from engines import Engines
from harness import Backend, Stream, answer_all, wait_until

from llmpipe._pipe import OUTCOMES, Engine
from llmpipe.config import Settings
from llmpipe.record_kinds import AcceptPaused, AcceptResumed, ExchangeEnded

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Adopting(Engines):
    """Engines with a backend that answers; nobody connects to their listening socket."""

    def __init__(self, stack: ExitStack, count: int, most: int, **limits: int) -> None:
        super().__init__(count, most=most, **limits)
        self.first = self.engines[0]
        port = stack.enter_context(Backend(answer_all)).port
        stack.callback(self.close)
        self.configure([(b"b", b"b", b"", [("127.0.0.1", port)], False, 0, b"")])

    def adopt(self, address: str = "192.0.2.1") -> Stream:
        """A client whose connection was handed over with that address."""
        ours, theirs = socket.socketpair()
        self.first.adopt(ours.detach(), address)
        return Stream(theirs)


@pytest.fixture
def engines() -> Iterator[object]:
    with ExitStack() as stack:

        def make(count: int = 1, most: int = 1000, **limits: int) -> Adopting:
            return Adopting(stack, count, most, **limits)

        yield make


def ask(stream: Stream) -> int:
    """The status of the answer to a request."""
    stream.send(GET)
    head = stream.read_head()
    stream.read(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return int(head.split()[1])


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", ""])
def test_a_socket_of_a_pair_is_served(engines, address):
    made = engines()
    with closing(made.adopt(address)) as client:
        assert ask(client) == ask(client) == 200
        assert made.total("accepted") == made.first.clients == 1
    wait_until(lambda: made.first.clients == 0)
    exchanges = [record for record in made.take() if isinstance(record, ExchangeEnded)]
    assert [(record.client, OUTCOMES[record.outcome]) for record in exchanges] == [
        (address.removeprefix("::ffff:").encode(), "ok")
    ] * 2


def test_a_tcp_connection_is_served_with_the_options_of_our_own(engines):
    made = engines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Stream(socket.create_connection(listener.getsockname()))
        accepted, peer = listener.accept()
    same = accepted.dup()
    made.first.adopt(accepted.detach(), peer[0])
    assert ask(client) == 200
    with same:
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    client.close()


def test_each_goes_to_the_engine_with_the_fewest_clients(engines):
    made = engines(3)
    clients = [made.adopt() for _ in range(60)]
    assert [ask(client) for client in clients] == [200] * 60
    assert [engine.clients for engine in made.engines] == [20] * 3
    for client in clients:
        client.close()
    wait_until(lambda: not any(engine.clients for engine in made.engines))


def test_limits_count_them(engines):
    made = engines(2, max_connections=5, max_per_address=2)
    with ExitStack() as stack:
        served = [stack.enter_context(closing(made.adopt("192.0.2.1"))) for _ in range(2)]
        assert [ask(client) for client in served] == [200, 200]
        refused = [stack.enter_context(closing(made.adopt("192.0.2.1"))) for _ in range(2)]
        assert [ask(client) for client in refused] == [429, 429]
        assert stack.enter_context(closing(made.adopt("192.0.2.1"))).recv() == b""  # as many refused as served: closed
        own = stack.enter_context(closing(Stream(socket.create_connection(made.listener.getsockname()))))
        assert ask(own) == 200
        others = [stack.enter_context(closing(made.adopt(address))) for address in ("192.0.2.2", "2001:db8::1")]
        assert [ask(client) for client in others] == [200, 200]
        assert ask(stack.enter_context(closing(made.adopt("192.0.2.3")))) == 503
        assert made.total("over_address") == 3
        assert made.total("over_total") == 1
    wait_until(lambda: not any(engine.clients for engine in made.engines))


def test_without_a_place_they_wait(engines):
    made = engines(1, most=2)
    first, second = (made.adopt() for _ in range(2))
    for client in (first, second):
        client.send(b"GET")  # who waits for nothing would give way after a second
    wait_until(lambda: made.first.clients == 2)
    made.rest()
    third = made.adopt()
    third.send(GET)
    wait_until(lambda: any(isinstance(record, AcceptPaused) for record in made.take()))
    assert third.silent(0.2)
    first.close()
    assert third.read_head().startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: any(isinstance(record, AcceptResumed) for record in made.take()))
    assert made.total("accepted") == 3
    second.close()
    third.close()


def test_many_at_once_are_all_served(engines):
    """More than a turn's share."""
    made = engines(2)
    clients = [made.adopt() for _ in range(200)]
    for client in clients:
        client.send(GET)
    for client in clients:
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        client.close()


def test_a_descriptor_that_cannot_be_taken_stays_the_callers():
    engine = Engine(Settings())
    with ExitStack() as stack:
        stack.callback(engine.close)
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        with pytest.raises(RuntimeError):
            engine.adopt(ours.fileno(), "")
        engine.listen([listener.fileno()], [engine], most=10, resume_at=9)
        for address in ("localhost", "1.2.3", "unix:/x", "192.0.2.1:80"):
            with pytest.raises(ValueError, match="address"):
                engine.adopt(ours.fileno(), address)
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match="Invalid"):
            engine.adopt(datagrams.fileno(), "")
        with open(os.devnull) as file, pytest.raises(OSError, match="non-socket"):
            engine.adopt(file.fileno(), "")
        with pytest.raises(OSError, match="Bad file"):
            engine.adopt(-1, "")
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


def test_a_mailbox_that_is_full_says_so_and_close_closes_what_is_in_it():
    room = 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < room + 200:
        pytest.skip(f"NOT TESTED: {hard} descriptors are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room + 200), hard))
    ours, theirs = socket.socketpair()
    engine = Engine(Settings())
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            engine.listen([listener.fileno()], [engine], most=10, resume_at=9)
            for _ in range(room):
                engine.adopt(ours.dup().detach(), "")
            with pytest.raises(BlockingIOError) as raised:
                engine.adopt(ours.fileno(), "")
            assert raised.value.errno == errno.EAGAIN
            ours.close()
            theirs.settimeout(0.1)
            with pytest.raises(TimeoutError):
                theirs.recv(1)
            engine.close()
            assert theirs.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        engine.close()
        theirs.close()


def test_after_the_end_of_listening_none_is_taken(engines):
    made = engines()
    with closing(made.adopt()) as client:
        made.first.end_listening()
        wait_until(lambda: not made.first.listens)
        assert ask(client) == 200  # it was there before
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(RuntimeError):
            made.first.adopt(ours.fileno(), "")
