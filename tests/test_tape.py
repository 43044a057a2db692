"""What the engine records of an answer: the bytes of its body with their times, where that is asked for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import Engines
from harness import Backend, Client, Connection, chunk, free_port, respond, sse_head, wait_until

from llmpipe._pipe import OUTCOMES
from llmpipe.record_kinds import Tape

EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(5)]
BODY = b'{"model": "m", "secret": "text"}'
POST = (
    b"POST /v1/chat/completions?key=s3cret HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\nX-Request-ID: one\r\n"
)
POST += b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
PAUSE = 0.02


def stream(connection: Connection) -> None:
    while True:
        connection.read_request()
        connection.send(sse_head())
        for event in EVENTS:
            time.sleep(PAUSE)
            connection.send(chunk(event))
        connection.send(b"0\r\n\r\n")


def plain(connection: Connection) -> None:
    while True:
        connection.read_request()
        respond(connection, b"body")


class Recorded:
    """Two engines before a backend, and what they have recorded."""

    def __init__(self, script: Callable[[Connection], None]) -> None:
        self.backend = Backend(script)
        self.engines = Engines(2)
        self.first = self.engines.engines[0]
        self.engines.configure([(b"a", b"a", b"", [("127.0.0.1", self.backend.port)], False, 0, b"")])
        self.tapes: list[Tape] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(self.engines.address)

    def ask(self, request: bytes = POST) -> bytes:
        with Client(self) as client:  # type: ignore[arg-type]  # which connects to whatever connects
            return client.request(request).body

    def take(self) -> list[Tape]:
        self.engines.rest()
        for engine in self.engines.engines:
            self.tapes += engine.take_tapes()
        return self.tapes

    def wait(self, n: int) -> list[Tape]:
        wait_until(lambda: len(self.take()) >= n)
        return self.tapes


@pytest.fixture
def recorded() -> Iterator[Callable[..., Recorded]]:
    made: list[Recorded] = []

    def make(script: Callable[[Connection], None] = stream) -> Recorded:
        made.append(Recorded(script))
        return made[-1]

    yield make
    for one in made:
        one.engines.close()
        one.backend.close()


def joined(tape: Tape) -> bytes:
    return b"".join(data for _, data in tape.pieces)


def test_nothing_is_recorded_unless_it_is_asked_for(recorded: Any) -> None:
    found = recorded()
    assert found.ask() == b"".join(EVENTS)
    assert found.take() == []


def test_the_bytes_have_the_times_of_their_reads(recorded: Any) -> None:
    found = recorded()
    found.first.record_next(1)
    body = found.ask()
    (tape,) = found.wait(1)
    assert body == b"".join(EVENTS) == joined(tape)
    assert tape.asked
    assert not tape.cut
    assert tape.content_type == b"text/event-stream"
    assert tape.request_body is None
    times = [at for at, _ in tape.pieces]
    assert times == sorted(times)
    assert times[0] >= PAUSE * 1e6
    assert times[-1] - times[0] >= (len(tape.pieces) - 1) * PAUSE * 1e6 * 0.5
    assert times[-1] <= tape.exchange.duration * 1e6 + 1
    assert tape.exchange.request_id == b"one"
    assert tape.exchange.status == 200
    assert OUTCOMES[tape.exchange.outcome] == "ok"
    assert tape.exchange.backend is not None


def test_the_next_ones_and_no_more(recorded: Any) -> None:
    found = recorded()
    found.first.record_next(2)
    for _ in range(4):
        found.ask()
    assert len(found.take()) == 2
    found.first.record_next(5)
    found.first.record_next(0)
    found.ask()
    assert len(found.take()) == 2


def test_the_request_s_body_only_where_that_is_asked_for(recorded: Any) -> None:
    found = recorded()
    found.first.record_next(1, request_bodies=True)
    found.ask()
    chunked = POST.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked").replace(
        BODY, chunk(BODY[:7]) + chunk(BODY[7:]) + b"0\r\n\r\n"
    )
    found.first.record_next(1, request_bodies=True)
    found.ask(chunked)
    found.first.record_next(1)
    found.ask()
    assert [tape.request_body for tape in found.wait(3)] == [BODY, BODY, None]
    assert not any(tape.request_cut for tape in found.tapes)


def test_a_share_of_all(recorded: Any) -> None:
    found = recorded(plain)
    found.first.record_share(0.5, 1 << 20)
    for _ in range(200):
        assert found.ask() == b"body"
    some = len(found.take())
    assert 50 < some < 150  # 100, and seven deviations
    assert not any(tape.asked for tape in found.tapes)
    found.first.record_share(1, 1 << 20)
    for _ in range(10):
        found.ask()
    assert len(found.take()) == some + 10
    found.first.record_share(0, 1 << 20)
    found.ask()
    assert len(found.take()) == some + 10


def test_answers_to_other_methods_are_not_recorded(recorded: Any) -> None:
    found = recorded(plain)
    found.first.record_next(1)
    assert found.ask(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n") == b"body"
    assert found.take() == []
    found.ask()
    assert len(found.wait(1)) == 1


def test_a_long_answer_is_cut(recorded: Any) -> None:
    piece = b"x" * 1000

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        for _ in range(1000):
            connection.send(chunk(piece))
        connection.send(b"0\r\n\r\n")
        connection.wait_eof(30)

    found = recorded(script)
    found.first.record_share(1, 50_000)
    assert found.ask() == piece * 1000
    (tape,) = found.wait(1)
    assert tape.cut
    assert 0 < len(joined(tape)) <= 50_000
    assert (piece * 1000).startswith(joined(tape))


def test_a_flood_is_recorded_whole(recorded: Any) -> None:
    """An unpaced answer is not forwarded in bulk while it is recorded."""
    data = bytes(range(256)) * 4096

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + b"".join(chunk(data[at : at + 60_000]) for at in range(0, len(data), 60_000)))
        connection.send(b"0\r\n\r\n")
        connection.wait_eof(30)

    found = recorded(script)
    found.first.record_share(1, 1 << 24)
    assert found.ask() == data
    (tape,) = found.wait(1)
    assert joined(tape) == data


def test_what_no_backend_answered_is_no_recording(recorded: Any) -> None:
    """The answer is ours; the next one takes its place."""
    found = recorded(plain)
    found.first.record_next(1)
    found.engines.configure([(b"b", b"b", b"", [("127.0.0.1", free_port())], False, 0, b"")])
    with Client(found) as client:
        assert client.request(POST).status == 502
    assert found.take() == []
    found.engines.configure([(b"a", b"a", b"", [("127.0.0.1", found.backend.port)], False, 0, b"")])
    assert found.ask() == b"body"
    assert len(found.wait(1)) == 1


def test_a_client_that_leaves(recorded: Any) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(EVENTS[0]))
        connection.wait_eof(30)

    found = recorded(script)
    found.first.record_next(1)
    with Client(found) as client:
        client.send(POST)
        client.recv_until(EVENTS[0])
    (tape,) = found.wait(1)
    assert OUTCOMES[tape.exchange.outcome] == "client_abort"
    assert (tape.status, tape.exchange.status) == (200, 499)
    assert joined(tape) == EVENTS[0]


def test_an_answer_that_is_dechunked_for_an_old_client(recorded: Any) -> None:
    found = recorded()
    found.first.record_next(1)
    assert found.ask(POST.replace(b"HTTP/1.1", b"HTTP/1.0")) == b"".join(EVENTS)
    assert joined(found.wait(1)[0]) == b"".join(EVENTS)


def test_tapes_that_nobody_takes_are_freed_with_the_engine(recorded: Any) -> None:
    found = recorded()
    found.first.record_next(3)
    for _ in range(3):
        found.ask()
    found.engines.rest()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none(recorded: Any, share: float) -> None:
    found = recorded()
    with pytest.raises(ValueError, match="share"):
        found.first.record_share(share, 1000)
    with pytest.raises(ValueError, match="size"):
        found.first.record_share(1, 1 << 40)
    with pytest.raises(ValueError, match="count"):
        found.first.record_next(-1)


def test_a_question_that_is_taken_back_leaves_the_share(recorded: Any) -> None:
    found = recorded(plain)
    found.first.record_share(1, 1 << 20)
    found.first.record_next(5)
    found.first.record_next(0)
    found.ask()
    (tape,) = found.wait(1)
    assert not tape.asked


def test_a_question_that_is_taken_back_does_not_come_back(recorded: Any) -> None:
    """Nor where the answer that it was for never comes."""
    begun, go = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        if not begun.is_set():
            begun.set()
            assert go.wait(30)
            connection.send(b"no answer\r\n\r\n")
            connection.wait_eof(30)
            return
        respond(connection, b"body")

    found = recorded(script)
    found.first.record_share(1, 1 << 20)
    found.first.record_next(1)
    with Client(found) as client:
        client.send(POST)
        assert begun.wait(30)
        found.first.record_next(0)
        go.set()
        assert client.read_response().status == 502
    assert found.take() == []
    assert found.ask() == b"body"
    (tape,) = found.wait(1)
    assert not tape.asked


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_a_request_takes_no_room_of_its_answer(recorded: Any) -> None:
    """Each of both has as much as one recording may have."""
    sizes = iter((1000, 40_000, 60_000))

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            respond(connection, b"a" * next(sizes))

    found = recorded(script)
    found.first.record_share(1, 50_000, request_bodies=True)
    for size in (60_000, 40_000, 1000):
        found.ask(post(b"r" * size))
        found.wait(1)
        tape = found.tapes.pop()
        assert tape.request_body is not None
        assert (tape.cut, tape.request_cut) == (size == 1000, size == 60_000)
        for kept, sent, cut in (
            (tape.request_body, b"r" * size, tape.request_cut),
            (joined(tape), b"a" * {60_000: 1000, 40_000: 40_000, 1000: 60_000}[size], tape.cut),
        ):
            assert sent.startswith(kept)
            assert 40_000 < len(kept) <= 50_000 if cut else kept == sent


def test_all_requests_take_no_room_of_any_answer(recorded: Any) -> None:
    """They have 64 MB together, until they are taken; then there is room again."""
    body = b"r" * 1_000_000
    found = recorded(plain)
    found.first.record_share(1, 1 << 20, request_bodies=True)
    for _ in range(70):
        assert found.ask(post(body)) == b"body"
    found.engines.rest()
    assert found.first.tapes_dropped == 0
    assert len(found.take()) == 70
    assert all(joined(tape) == b"body" and not tape.cut for tape in found.tapes)
    assert all((tape.request_body == body) != tape.request_cut for tape in found.tapes)
    assert 60 <= sum(not tape.request_cut for tape in found.tapes) <= 64
    found.tapes.clear()
    found.ask(post(body))
    (tape,) = found.wait(1)
    assert tape.request_body == body
    assert not tape.request_cut


def test_a_request_of_which_a_part_only_was_taken_is_cut(recorded: Any) -> None:
    def script(connection: Connection) -> None:
        connection.read_head()
        connection.read(1000)
        respond(connection, b"body", [(b"Connection", b"close")])
        connection.wait_eof(30)

    found = recorded(script)
    found.first.record_next(1, request_bodies=True)
    with Client(found) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"x" * 1000)
        assert client.read_response().body == b"body"
        client.send(b"y" * 4000)
    (tape,) = found.wait(1)
    assert tape.request_body is not None
    assert set(tape.request_body) == set(b"x")
    assert tape.request_cut
    assert joined(tape) == b"body"
    assert not tape.cut


def test_what_the_answer_was_not_forwarded_of_is_no_recording(recorded: Any) -> None:
    """An answer whose head the client cannot get: it gets one of ours."""
    lines = b"".join(b"X-%d: %b\r\n" % (n, b"v" * 1000) for n in range(60))

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 999 Odd\r\n" + lines + b"Content-Length: 4\r\n\r\nbody")
        connection.wait_eof(30)

    found = recorded(script)
    found.first.record_next(1)
    with Client(found) as client:
        client.send(POST)
        client.read_response()
    assert found.take() == []


def test_what_there_is_no_room_for_is_counted(recorded: Any) -> None:
    """All tapes together have 64 MB until they are taken; then there is room again."""
    data = b"x" * 1_000_000

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            respond(connection, data)

    found = recorded(script)
    found.first.record_share(1, 1 << 20)
    answers = 0
    while not found.first.tapes_dropped:
        assert found.ask() == data
        answers += 1
        assert answers < 300
    found.engines.rest()
    dropped = found.first.tapes_dropped
    tapes = found.take()
    assert len(tapes) + dropped == answers
    assert 60 <= sum(not tape.cut for tape in tapes) <= 64
    assert {engine.tapes_dropped for engine in found.engines.engines} == {dropped}
    found.tapes.clear()
    assert found.ask() == data
    (tape,) = found.wait(1)
    assert joined(tape) == data
    assert not tape.cut
