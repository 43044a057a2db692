"""Rules U1 to U3 as far as they are Python: what becomes of tapes, files of recordings, and who asks for the next ones."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from harness import TIMEOUT, wait_until
from made_up import FLEET, OUTCOME, record

from llmpipe import log, recorder, recording
from llmpipe.actions import Actions
from llmpipe.admin import MOST_WAIT, Control
from llmpipe.authority import Authority
from llmpipe.background import BackgroundServer, Receive, Scope, Send
from llmpipe.config import ProcessSettings
from llmpipe.errors import UsageError
from llmpipe.record_kinds import Tape
from llmpipe.record_stream import MOST_ANSWERS, Wish, parse_wish
from llmpipe.recorder import OWN_NAME, Asking, Folder, Recorder, make_recording
from llmpipe.recording import Piece, Recording
from llmpipe.reloads import Reloads

AT = 1_700_000_000.25
"""2023-11-14T22:13:20.250Z."""


def tape(**changes: Any) -> Tape:
    """Of a stream of two pieces; what belongs to its exchange may be changed too."""
    named = {"request_id": b"id-1", "model": b"llama-3.3-70b", "pool": b"llama"}
    times = {"age": 0.0, "duration": 0.1} if changes.get("asked") else {"age": 0.25, "duration": 1.0}
    whole = Tape(
        exchange=record(**named, **times),
        asked=False,
        status=200,
        content_type=b"text/event-stream",
        cut=False,
        request_body=None,
        request_cut=False,
        pieces=((200_000, b"data: 1\n\n"), (900_000, b"data: [DONE]\n\n")),
    )
    own = {name: value for name, value in changes.items() if name in whole._fields}
    others = {name: value for name, value in changes.items() if name not in own}
    return whole._replace(exchange=whole.exchange._replace(**others))._replace(**own)


def made(**changes: Any) -> Recording:
    return make_recording(tape(**changes), FLEET, AT)


# ------------------------------------------------------------------------------------------------------------- recordings


def test_u1_a_tape_becomes_a_recording() -> None:
    assert made() == Recording(
        request_id="id-1",
        started="2023-11-14T22:13:19.000+00:00",
        method="POST",
        path="/v1/chat/completions",
        model="llama-3.3-70b",
        pool="llama",
        backend="gpu2",
        status=200,
        content_type="text/event-stream",
        outcome="ok",
        reason="ECONNREFUSED",
        cut=False,
        end=1_000_000,
        request_body=None,
        pieces=(Piece(200_000, b"data: 1\n\n"), Piece(900_000, b"data: [DONE]\n\n")),
        answered=200_000,
    )


def test_u1_what_is_unknown_is_empty_and_the_end_is_behind_the_last_piece() -> None:
    found = made(backend=None, pool=b"", model=b"", reason=0, duration=0.8999, content_type=b"", cut=True)
    assert (found.backend, found.pool, found.model, found.reason, found.content_type) == ("", "", "", "", "")
    assert found.end == 900_000
    assert found.cut
    assert made(pieces=(), duration=0.5).end == 500_000


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/chat?api_key=s3cr3t", "/v1/chat"),
        (b"/v1/chat?model=a", "/v1/chat"),
        (b"/v1/chat;key=s3cr3t", "/v1/chat;***"),
        (b"/v1/chat%3Fkey=s3cr3t?a=b", "/v1/chat%3F***"),
        (b"http://user:s3cr3t@a/v1?key=s3cr3t", "http://***@a/v1"),
        (b"*", "*"),
    ],
)
def test_u1_no_query_and_no_credential_is_in_a_path(target: bytes, path: str) -> None:
    assert made(target=target).path == path


def test_u1_what_was_no_request_has_no_line() -> None:
    found = made(method=b"s3cr3t", target=b"s3cr3t", outcome=OUTCOME("bad_request"))
    assert (found.method, found.path) == ("", "")


# ------------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is logged."""
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(log, "event", lambda level, name, fields, at=None: found.append((name, dict(fields))))
    return found


@contextmanager
def folder_at(path: Path, most: int = 1000) -> Iterator[Folder]:
    """A folder, closed at the end."""
    folder = Folder(str(path), most)
    try:
        yield folder
    finally:
        folder.close()


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def settled(folder: Folder) -> int:
    """How many recordings were written or not."""
    return folder.written + folder.cut + folder.failed


def test_u2_each_recording_is_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "recordings"
    whole, part = made(), made(cut=True, request_body=b'{"a": 1}', request_id=b"id-2")
    with folder_at(path) as folder:
        folder.add(whole, AT)
        folder.add(part, AT + 0.001)
    assert names(path) == ["20231114T221320.250Z-id-1.jsonl", "20231114T221320.251Z-id-2.jsonl"]
    assert [recording.read(path / name) for name in names(path)] == [[whole], [part]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE((path / name).stat().st_mode) for name in names(path)} == {0o600}
    assert (folder.written, folder.cut, folder.failed, folder.dropped) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("request_id", "part"),
    [
        (b"../../etc/passwd", "______etc_passwd"),
        (b"a b\x00\xe9", "a_b__"),
        (b"x" * 200, "x" * 64),
        (b"", "_"),
        (b"..", "__"),
    ],
)
def test_u2_an_id_is_made_safe_for_a_name(tmp_path: Path, request_id: bytes, part: str) -> None:
    with folder_at(tmp_path) as folder:
        folder.add(made(request_id=request_id), AT)
    (name,) = names(tmp_path)
    assert name == f"20231114T221320.250Z-{part}.jsonl"
    assert OWN_NAME.fullmatch(name)


def test_u2_an_id_that_comes_twice_in_a_millisecond_has_two_files(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        for _ in range(3):
            folder.add(made(), AT)
        (tmp_path / "20231114T221320.250Z-linked.jsonl").symlink_to(tmp_path / "elsewhere")
        folder.add(made(request_id=b"linked"), AT)
    assert folder.written == 4
    assert [name.partition("Z-")[2] for name in names(tmp_path)] == [
        "id-1.2.jsonl",
        "id-1.3.jsonl",
        "id-1.jsonl",
        "linked.2.jsonl",
        "linked.jsonl",
    ]
    assert not (tmp_path / "elsewhere").exists()


FOREIGN = ["notes.txt", "20231114T221320.250Z-id.json", "a-20231114T221320.250Z-id.jsonl", "20231114T221320Z-id.jsonl"]


def test_u2_the_oldest_files_go_and_no_file_of_somebody_else(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).write_text("mine")
    (tmp_path / "20200101T000000.000Z-folder.jsonl").mkdir()
    old = [f"20200101T00000{n}.000Z-old.jsonl" for n in range(5)]
    for name in old:
        (tmp_path / name).write_text("old")
    with folder_at(tmp_path, 3) as folder:
        wait_until(lambda: not (tmp_path / old[1]).exists())
        assert [name for name in old if (tmp_path / name).exists()] == old[2:]
        for n in range(5):
            folder.add(made(request_id=b"new-%d" % n), AT + n)
    kept = [name for name in names(tmp_path) if OWN_NAME.fullmatch(name) and "folder" not in name]
    assert [name.partition("Z-")[2] for name in kept] == ["new-2.jsonl", "new-3.jsonl", "new-4.jsonl"]
    assert set(FOREIGN) <= set(names(tmp_path))


def test_u2_what_another_process_writes_there_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LIST_INTERVAL", -1.0)
    with folder_at(tmp_path, 4) as one, folder_at(tmp_path, 4) as other:
        for n in range(12):
            folder = (one, other)[n % 2]
            folder.add(made(request_id=b"%d" % n), AT + n)
            wait_until(lambda: settled(one) + settled(other) == n + 1)  # noqa: B023 - it is called here
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("what", ["a file", "below a file", "a NUL"])
def test_u2_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    path = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "a NUL": Path("a\0b")}[what]
    with pytest.raises(UsageError, match=r"--record .* cannot be written to \(.+\)"):
        Folder(str(path), 10)


def test_u2_a_folder_that_is_gone_is_one_line_and_recording_goes_on_when_it_is_back(tmp_path: Path, lines) -> None:
    path = tmp_path / "recordings"
    with folder_at(path) as folder:
        path.rmdir()
        for n in range(5):
            folder.add(made(), AT + n)
        wait_until(lambda: folder.failed == 5)
        assert [name for name, _ in lines] == ["recording not written"]
        assert lines[0][1]["folder"] == str(path)
        assert lines[0][1]["error"] == os.strerror(errno.ENOENT)
        path.mkdir()
        folder.add(made(), AT)
        wait_until(lambda: folder.written == 1)
        assert [name for name, _ in lines] == ["recording not written", "recordings are written again"]
        path.rename(tmp_path / "moved")
        folder.add(made(), AT)
        wait_until(lambda: folder.failed == 6)
        assert len(lines) == 2  # the next line is not due yet
    assert len(names(tmp_path / "moved")) == 1


def test_u2_of_a_full_disk_no_part_of_a_file_stays(tmp_path: Path, lines, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.write, []

    def write(descriptor: int, data: Any) -> int:
        if threading.current_thread().name != "recorder":
            return real(descriptor, data)
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(real(descriptor, data[:10]))
        return written[0]

    monkeypatch.setattr(os, "write", write)
    with folder_at(tmp_path) as folder:
        folder.add(made(), AT)
        folder.add(made(), AT)
        wait_until(lambda: folder.failed == 2)
        assert names(tmp_path) == []
        assert lines[0][1]["error"] == os.strerror(errno.ENOSPC)
        monkeypatch.setattr(os, "write", real)
        folder.add(made(), AT)
    assert recording.read(tmp_path / names(tmp_path)[0]) == [made()]


def test_u2_a_disk_that_hangs_costs_recordings_and_nothing_else(tmp_path: Path, lines, monkeypatch) -> None:
    monkeypatch.setattr(recorder, "MOST_WAITING", 100_000)
    monkeypatch.setattr(recorder, "CLOSE_LIMIT", 0.1)
    go, entered = threading.Event(), threading.Event()
    real = Folder._write_new

    def write_new(path: Path, data: bytes) -> None:
        entered.set()
        assert go.wait(TIMEOUT)
        real(path, data)

    monkeypatch.setattr(Folder, "_write_new", staticmethod(write_new))
    folder = Folder(str(tmp_path), 10)
    large = made(pieces=((1, b"x" * 60_000),))
    for _ in range(4):
        folder.add(large, AT)
    folder.add(made(), AT)
    assert folder.dropped == 3
    assert entered.wait(TIMEOUT)
    folder.close()  # returns all the same
    assert lines == [("recordings dropped", {"recordings": 5, "folder": str(tmp_path)})]
    go.set()
    folder._thread.join(TIMEOUT)
    assert not folder._thread.is_alive()


def test_u2_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        for n in range(200):
            folder.add(made(request_id=b"%d" % n), AT)
    assert folder.written == len(names(tmp_path)) == 200


# ----------------------------------------------------------------------------------------------------------- who wants them


class FakeEngine:
    """What a `Runner` does with tapes, of an engine that is told which have ended."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.share: tuple[float, int, bool] | None = None
        self.ended: list[Tape] = []
        self.dropped = 0
        self.recorder: Recorder | None = None

    def record_next(self, count: int, *, request_bodies: bool = False) -> None:
        self.asked.append((count, request_bodies))

    def record_share(self, share: float, size: int, *, request_bodies: bool = False) -> None:
        self.share = (share, size, request_bodies)

    def tapes_dropped(self) -> int:
        return self.dropped

    def take_tapes(self) -> None:
        assert self.recorder is not None
        while self.ended:
            self.recorder.take(self.ended.pop(0))


def started(folder: Folder | None = None, **settings: Any) -> tuple[Recorder, FakeEngine]:
    engine = FakeEngine()
    engine.recorder = Recorder(ProcessSettings(**settings), FLEET, folder)
    engine.recorder.start(engine)
    return engine.recorder, engine


def taken(asking: Asking) -> list[Recording]:
    found = []
    while (recording := asking.take()) is not None:
        found.append(recording)
    return found


def test_u2_the_share_is_asked_for_only_where_there_is_a_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"record_share": 0.5, "record_size": 4096, "record_request_bodies": True}
    assert started(**settings)[1].share == (0.0, 4096, True)
    with folder_at(tmp_path) as folder:
        assert started(folder, **settings)[1].share == (0.5, 4096, True)
        assert started(folder)[1].share == (0.01, 1 << 20, False)


def test_u2_files_are_of_the_share_and_not_of_what_was_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        with folder_at(tmp_path) as folder:
            found, _ = started(folder, record_share=1.0)
            assert found.ask(Asking(1, request_bodies=False))
            found.take(tape())
            found.take(tape(asked=True, request_id=b"asked"))
        assert dict(found.results()) == {"written": 1, "cut": 0, "failed": 0, "dropped": 0, "sent": 1}

    asyncio.run(run())
    (name,) = names(tmp_path)
    assert name.endswith("-id-1.jsonl")


@pytest.mark.parametrize("bodies", [False, True])
def test_u2_what_was_asked_for_by_who_has_left_is_an_answer_like_any_other(tmp_path: Path, bodies: bool) -> None:
    async def run() -> None:
        with folder_at(tmp_path) as folder:
            found, engine = started(folder, record_share=1.0, record_request_bodies=bodies)
            for wanted in (False, True):
                asking = Asking(2, request_bodies=wanted)
                assert found.ask(asking)
                assert engine.asked[-1] == (2, wanted or bodies)
                found.end(asking)
            found.take(tape(asked=True, request_body=b"{}", request_cut=True))
            assert found.ask(Asking(2, request_bodies=True))
            found.take(tape(asked=True, request_body=b"{}", request_cut=True, duration=60.0))

    asyncio.run(run())
    written = [recording.read(tmp_path / name)[0] for name in names(tmp_path)]
    assert [(one.request_body, one.request_cut) for one in written] == [(b"{}", True) if bodies else (None, False)] * 2


def test_u2_a_share_of_what_was_asked_for_by_who_has_left_is_written(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        found, _ = started(folder, record_share=0.0)
        for _ in range(100):
            found.take(tape(asked=True))
    assert names(tmp_path) == []


def test_u3_one_asks_at_a_time_and_gets_as_many_as_it_asked_for() -> None:
    async def run() -> None:
        found, engine = started()
        first, second = Asking(2, request_bodies=True), Asking(1, request_bodies=False)
        assert found.ask(first)
        assert not found.ask(second)
        assert engine.asked == [(2, True)]
        found.take(tape(asked=True, request_body=b"{}", request_cut=True))
        assert not first.over
        found.take(tape(asked=True, request_id=b"id-2"))
        assert first.over
        assert [(one.request_id, one.request_body, one.request_cut) for one in taken(first)] == [
            ("id-1", b"{}", True),
            ("id-2", None, False),
        ]
        await asyncio.wait_for(first.news.wait(), TIMEOUT)
        found.end(first)  # changes nothing any more
        assert found.ask(second)
        assert engine.asked == [(2, True), (0, False), (1, False)]
        assert dict(found.results())["sent"] == 2

    asyncio.run(run())


def test_u3_who_ends_gets_what_has_come_and_nothing_that_comes_later() -> None:
    async def run() -> None:
        found, engine = started()
        first, second = Asking(3, request_bodies=True), Asking(1, request_bodies=False)
        assert found.ask(first)
        engine.ended = [tape(asked=True)]
        found.end(first)
        assert first.over
        assert len(taken(first)) == 1
        assert engine.asked == [(3, True), (0, False)]
        found.take(tape(asked=True))
        assert not taken(first)
        assert not found.ask(first)
        assert found.ask(second)
        found.take(tape(asked=True, duration=60.0))  # asked for by the one before
        assert not taken(second)
        found.take(tape(asked=True, request_body=b"{}", request_cut=True))  # so was this, perhaps
        assert [(one.request_body, one.request_cut) for one in taken(second)] == [(None, False)]
        assert engine.asked[2:] == [(1, False), (0, False)]  # the engines look for no other one in its place
        third = Asking(1, request_bodies=False)
        assert found.ask(third)
        engine.ended = [tape(asked=True)]
        found.end(third)  # the last one was among those that had ended
        assert third.over
        assert engine.asked[4:] == [(1, False), (0, False)]

    asyncio.run(run())


def test_u3_of_what_is_not_taken_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_WAITING", 100_000)

    async def run() -> None:
        found, _ = started()
        asking = Asking(4, request_bodies=False)
        assert found.ask(asking)
        for _ in range(3):
            found.take(tape(asked=True, pieces=((1, b"x" * 60_000),)))
        assert len(taken(asking)) == 1
        found.take(tape(asked=True, pieces=((1, b"x" * 60_000),)))
        assert len(taken(asking)) == 1
        assert asking.over
        assert dict(found.results()) == {"written": 0, "cut": 0, "failed": 0, "dropped": 2, "sent": 2}

    asyncio.run(run())


# -------------------------------------------------------------------------------------------------------------- POST /record


@pytest.mark.parametrize(
    ("query", "wish"),
    [
        ("", Wish(count=1, wait=60.0, request_body=False)),
        ("count=3", Wish(count=3)),
        (f"count={MOST_ANSWERS}&wait=1h&request_body=1", Wish(count=MOST_ANSWERS, wait=3600.0, request_body=True)),
        ("wait=250ms&request_body=0", Wish(wait=0.25)),
    ],
)
def test_u3_a_query_is_read(query: str, wish: Wish) -> None:
    assert parse_wish(query, MOST_WAIT) == wish


@pytest.mark.parametrize(
    "query",
    [
        *("count=0", f"count={MOST_ANSWERS + 1}", "count=-1", "count=x", "count=", "count=1&count=1"),
        *("wait=0", "wait=3601", "wait=soon", "wait=", "request_body=yes", "request_body=", "request_bodies=1", "x"),
    ],
)
def test_u3_a_query_that_cannot_be_is_refused(query: str) -> None:
    with pytest.raises(UsageError):
        parse_wish(query, MOST_WAIT)


class Endpoint:
    """POST /record on a real bounded server, whose control plane is a thread of the test's."""

    def __init__(self) -> None:
        self.recorder, self.engine = started()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        actions = Actions(self.engine, Reloads(), self.recorder)  # type: ignore[arg-type]
        control = Control(actions, Authority(None, local=True))
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await control.answer(scope, receive, send, "record", "")

        self.server = BackgroundServer(app, listener, bounded=True)
        self.server.start()
        self._closing = asyncio.Event()
        self._ready.set()
        await self._closing.wait()
        await self.server.stop()

    def take(self, tape: Tape) -> None:
        """An answer that was recorded has ended."""
        self.loop.call_soon_threadsafe(self.recorder.take, tape)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def post(self, query: str = "") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.request("POST", f"/record?{query}", headers={"Connection": "close"})
        return connection.getresponse()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def end_of(response: http.client.HTTPResponse) -> int:
    """How many more recordings came until its end."""
    assert response.status == 200
    return response.read().count(b'"end_us"')


def test_u3_each_answer_is_sent_when_it_has_ended(endpoint: Endpoint, tmp_path: Path) -> None:
    response = endpoint.post("count=2")
    assert (response.status, response.headers["content-type"]) == (200, "application/jsonl")
    endpoint.take(tape(asked=True))
    first = [response.readline() for _ in range(4)]
    assert [next(iter(json.loads(line))) for line in first] == ["llmpipe", "us", "us", "end_us"]
    endpoint.take(tape(asked=True, request_id=b"id-2"))
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"".join(first) + response.read())
    assert [one.request_id for one in recording.read(file)] == ["id-1", "id-2"]
    assert end_of(endpoint.post("wait=10ms")) == 0  # the first is over: no 409


def test_u3_a_second_one_is_refused(endpoint: Endpoint) -> None:
    response = endpoint.post("count=2")
    second = endpoint.post()
    assert second.status == 409
    assert "somebody else" in json.loads(second.read())["error"]
    assert endpoint.engine.asked == [(2, False)]
    endpoint.take(tape(asked=True))
    endpoint.take(tape(asked=True))
    assert end_of(response) == 2


def test_u3_it_ends_when_the_time_is_over_and_what_has_come_by_then_is_sent(endpoint: Endpoint) -> None:
    response = endpoint.post("count=5&wait=200ms")
    endpoint.engine.ended = [tape(asked=True)]  # which nobody takes before the end
    assert end_of(response) == 1
    assert endpoint.engine.asked == [(5, False), (0, False)]


def test_u3_a_body_is_not_read_and_not_taken_for_the_next_request(endpoint: Endpoint) -> None:
    for length, closes in ((0, False), (3, True)):
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=TIMEOUT) as sock:
            head = f"POST /record?wait=1ms HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            sock.sendall(head.encode() + b"a" * length)
            got = b""
            while not got.endswith(b"\r\n0\r\n\r\n"):
                piece = sock.recv(1 << 16)
                assert piece, got
                got += piece
            assert got.startswith(b"HTTP/1.1 200 ")
            assert (b"\r\nconnection: close\r\n" in got.lower()) == closes


def test_u3_it_ends_when_the_client_leaves(endpoint: Endpoint) -> None:
    endpoint.post("count=5").close()
    wait_until(lambda: endpoint.engine.asked == [(5, False), (0, False)])
    assert end_of(endpoint.post("wait=10ms")) == 0


def test_u3_it_ends_cleanly_with_the_server(endpoint: Endpoint) -> None:
    response = endpoint.post("count=5&wait=1h")
    endpoint.take(tape(asked=True))
    endpoint.close()
    assert end_of(response) == 1


def test_u3_who_does_not_read_is_cut_in_the_end(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.record_stream.TAKE_TIME", 0.1)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", endpoint.port))
        sock.sendall(b"POST /record?count=5&wait=500ms HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: endpoint.engine.asked)
        for _ in range(3):
            endpoint.take(tape(asked=True, pieces=((1, b"x" * 8_000_000),)))
        wait_until(lambda: (0, False) in endpoint.engine.asked)
        wait_until(lambda: not endpoint.server._server.server_state.connections)
        got, last = 0, b""
        with suppress(ConnectionResetError):
            while piece := sock.recv(1 << 16):
                got, last = got + len(piece), piece
        assert not last.endswith(b"0\r\n\r\n")
        assert got < 24_000_000
    assert end_of(endpoint.post("wait=10ms")) == 0


def test_u3_a_slow_reader_gets_all_of_it(endpoint: Endpoint) -> None:
    response = endpoint.post("count=3&wait=30")
    for n in range(3):
        endpoint.take(tape(asked=True, request_id=b"%d" % n, pieces=((1, b"x" * 8_000_000),)))
    wait_until(lambda: endpoint.recorder.sent == 3)
    ids = [json.loads(line)["request_id"] for line in response.read().splitlines() if b'"recording"' in line]
    assert ids == ["0", "1", "2"]
