"""The mock plays recordings back: the bytes, pieces and times of the recorded answers, and ends that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import MutableMapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import made_up
import openai
import pytest
from harness import Mock, Proxy, Stream, split_head, values

from llmpipe.mock_capacity import Capacity
from llmpipe.mock_faults import Fault
from llmpipe.mock_replay import PlayedAnswer, Replay
from llmpipe.recording import Piece, Recording, write

HOUR = 3600 * 1_000_000

CUT = "data: \N{GRINNING FACE}\n\n".encode()
"""An event with a character of four bytes, to be cut within it."""


def recorded(name: str, *pieces: tuple[int, bytes], end: int = 0, **changes: Any) -> Recording:
    last = pieces[-1][0] if pieces else 0
    own = {
        "request_id": name,
        "content_type": "text/event-stream; charset=utf-8",
        "end": max(end, last),
        "pieces": tuple(Piece(*piece) for piece in pieces),
    }
    return made_up.recording(**own | changes)


STREAM = recorded(
    "stream", (1000, CUT[:8]), (1000, CUT[8:]), (2000, b"\0\xff\xfe\r\n0\r\n\r\n"), (3000, b"data: [DONE]\n\n")
)
BUSY = recorded("busy", (10, b'{"error": {}}'), status=429, content_type="application/json")
NONE = recorded("none", end=20, content_type="")
EMPTY = recorded("empty", status=204, content_type="")
STATUS = recorded("status", (0, b"x"), status=529, content_type="text/plain;x=\udcff")
FOREVER = recorded("forever", (0, b"data: 1\n\n"), (HOUR, b"data: 2\n\n"), end=HOUR)


class Played(Mock):
    """A mock that plays these recordings back."""

    def __init__(self, folder: Path, *recordings: Recording, options: tuple[str, ...] = ()) -> None:
        file = folder / "recordings.jsonl"
        with file.open("w") as lines:
            for found in recordings:
                lines.writelines(write(found))
        super().__init__("--replay", str(file), *options)

    def ask(self, *fields: str, version: str = "1.1", path: str = "/v1/chat/completions") -> Stream:
        host, _, port = self.address.partition(":")
        stream = Stream(socket.create_connection((host, int(port)), timeout=30))
        lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Length: 2", *fields, "\r\n"]
        stream.send("\r\n".join(lines).encode() + b"{}")
        return stream

    def __exit__(self, kind: Any, *rest: object) -> None:
        try:
            if kind is None and self.process.poll() is None:
                assert self.stop() == 0
                assert "Traceback" not in "".join(self.stderr)
                assert "ASGI" not in "".join(self.stderr)
        finally:
            super().__exit__(kind, *rest)


def read_head(stream: Stream) -> tuple[int, list[bytes]]:
    """Status and values of Content-Type."""
    line, fields = split_head(stream.read_head())
    return int(line.split(b" ", 2)[1]), values(fields, b"content-type")


def read_chunk(stream: Stream) -> bytes:
    """The next one; empty is the last."""
    size = int(stream.recv_until(b"\r\n"), 16)
    return stream.read(size + 2)[:-2]


def read_chunks(stream: Stream) -> list[bytes]:
    chunks = []
    while chunk := read_chunk(stream):
        chunks.append(chunk)
    return chunks


# Bytes and turns.


def test_each_piece_is_a_piece_again(tmp_path: Path) -> None:
    """The mock writes each as one chunk; pieces are not joined, cut, or read as text."""
    with Played(tmp_path, STREAM) as mock, closing(mock.ask()) as stream:
        assert read_head(stream) == (200, [b"text/event-stream; charset=utf-8"])
        assert read_chunks(stream) == [piece.data for piece in STREAM.pieces]


def test_all_are_played_in_turn_whatever_the_path(tmp_path: Path) -> None:
    """Also those that have no pieces, no content type, or a status that few know."""
    found = [STREAM, BUSY, NONE, EMPTY, STATUS]
    with Played(tmp_path, *found) as mock, httpx.Client(base_url=mock.url, timeout=30) as http:
        for path in ("/v1/chat/completions", "/", "/any/path?x=y"):
            for expected in found:
                answer = http.post(path, content=b"not JSON")
                assert answer.status_code == expected.status
                assert answer.content == b"".join(piece.data for piece in expected.pieces)
                kind = {value for name, value in answer.headers.raw if name.lower() == b"content-type"}
                assert kind == {expected.content_type.encode("utf-8", "surrogateescape")} - {b""}


def test_what_is_no_post_is_answered_as_ever(tmp_path: Path) -> None:
    options = ("--model", "one", "--model", "two")
    with Played(tmp_path, STREAM, options=options) as mock, httpx.Client(base_url=mock.url, timeout=30) as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["one", "two"]
        assert http.get("/health").status_code == 200
        assert http.get("/metrics").status_code == 200
        assert http.get("/v1/chat/completions").status_code == 404
        assert http.put("/v1/chat/completions").status_code == 404


def test_a_client_library_reads_a_recording_of_a_mock(tmp_path: Path) -> None:
    """Made of the mock's own stream, as a proxy would record it."""
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "stream": True, "max_tokens": 5}
    fast = {"x-mock-ttft": "0", "x-mock-tokens-per-second": "0"}
    with Mock() as source:
        raw = httpx.post(f"{source.url}/v1/chat/completions", json=body, headers=fast, timeout=30).content
    pieces = [(1000 * i, raw[j : j + 7]) for i, j in enumerate(range(0, len(raw), 7))]
    with (
        Played(tmp_path, recorded("of the mock", *pieces)) as mock,
        openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0) as api,
    ):
        parts = list(api.chat.completions.create(model="any", messages=messages, stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "The proxy forwards each token"


# Times.


def test_pieces_wait_for_their_times(tmp_path: Path) -> None:
    times = [100_000, 100_000, 350_000, 400_000]
    found = recorded("timed", *((at, b"x") for at in times), end=500_000, answered=50_000)
    with Played(tmp_path, found) as mock:
        begun = time.monotonic()
        with closing(mock.ask()) as stream:
            seen = [read_head(stream) and time.monotonic() - begun]
            seen += [read_chunk(stream) and time.monotonic() - begun for _ in times]
            assert read_chunk(stream) == b""
            seen.append(time.monotonic() - begun)
    assert [at >= due / 1e6 - 0.002 for at, due in zip(seen, [50_000, *times, 500_000], strict=True)] == [True] * 6


def test_a_piece_does_not_wait_for_the_next_one(tmp_path: Path) -> None:
    with Played(tmp_path, FOREVER) as mock, closing(mock.ask()) as stream:
        read_head(stream)
        assert read_chunk(stream) == b"data: 1\n\n"


def test_a_head_may_come_long_before_the_first_piece(tmp_path: Path) -> None:
    late = recorded("late", (HOUR, b"x"), answered=1000)
    with Played(tmp_path, late) as mock, closing(mock.ask()) as stream:
        assert read_head(stream)[0] == 200


@pytest.mark.parametrize("speed", ["0", "100000"])
def test_speed(speed: str, tmp_path: Path) -> None:
    """Hours are over at once, or in less than a second."""
    with Played(tmp_path, FOREVER, options=("--replay-speed", speed)) as mock, closing(mock.ask()) as stream:
        begun = time.monotonic()
        read_head(stream)
        assert read_chunks(stream) == [b"data: 1\n\n", b"data: 2\n\n"]
        assert speed == "0" or time.monotonic() - begun >= 0.03


class Clock(Capacity):
    """A capacity with a clock of the test's own, which stands still but for waits and for what takes time."""

    def __init__(self, slots: int = 0) -> None:
        self.time = 50.0
        super().__init__(slots)

    def now(self) -> float:
        return self.time

    async def work_until(self, due: float) -> None:
        await asyncio.sleep(0)
        self.time = max(self.time, due)


class Taker:
    """Takes an answer; each message takes it some time."""

    def __init__(self, clock: Clock, takes: float) -> None:
        self.clock = clock
        self.takes = takes
        self.seen: list[tuple[float, str | bytes]] = []

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        what = message["body"] if message["type"] == "http.response.body" else "head"
        self.seen.append((round(self.clock.time, 6), what))
        self.clock.time += self.takes


def play(
    found: Recording, speed: float = 1.0, takes: float = 0.0, come: float = 50.0, fault: Fault | None = None
) -> Any:
    """What is sent, with its times."""
    clock = Clock()
    taker = Taker(clock, takes)
    scope = {"http_version": "1.1", "state": {"transport": None}}
    answer = PlayedAnswer(Replay([found], speed), fault or Fault(), clock, taker, scope, come=come)
    asyncio.run(answer.write())
    return taker.seen


TIMED = recorded("timed", (1_000_000, b"1"), (2_000_000, b"2"), (4_000_000, b"3"), end=5_000_000)


def test_each_time_counts_from_the_arrival_of_the_request() -> None:
    """So that none is late because sending another one took its time, nor because of the request's body."""
    assert play(TIMED) == [(51, "head"), (51, b"1"), (52, b"2"), (54, b"3"), (55, b"")]
    assert play(TIMED, takes=0.4) == [(51, "head"), (51.4, b"1"), (52, b"2"), (54, b"3"), (55, b"")]
    assert play(TIMED, takes=1.5) == [(51, "head"), (52.5, b"1"), (54, b"2"), (55.5, b"3"), (57, b"")]
    assert play(TIMED, come=48.5) == [(50, "head"), (50, b"1"), (50.5, b"2"), (52.5, b"3"), (53.5, b"")]


def test_times_by_the_speed() -> None:
    assert play(TIMED, speed=2) == [(50.5, "head"), (50.5, b"1"), (51, b"2"), (52, b"3"), (52.5, b"")]
    assert play(TIMED, speed=0.5) == [(52, "head"), (52, b"1"), (54, b"2"), (58, b"3"), (60, b"")]
    assert play(TIMED, speed=0, takes=1) == [(50, "head"), (51, b"1"), (52, b"2"), (53, b"3"), (54, b"")]


def test_when_the_head_comes() -> None:
    assert play(TIMED._replace(answered=10_000))[0] == (50.01, "head")
    assert play(TIMED._replace(answered=3_000_000))[0] == (51, "head"), "not behind the first piece"
    assert play(TIMED._replace(pieces=())) == [(55, "head"), (55, b"")], "with the end, where there is nothing else"


def test_a_head_that_is_held_back_holds_the_rest_back() -> None:
    clock = Clock()

    class Slow(Fault):
        async def before_head(self, transport: object) -> None:
            clock.time += 10

    taker = Taker(clock, 0)
    scope = {"http_version": "1.1", "state": {"transport": None}}
    asyncio.run(PlayedAnswer(Replay([TIMED]), Slow(), clock, taker, scope, come=50.0).write())
    assert [at for at, _ in taker.seen] == [61, 61, 62, 64, 65]


def test_the_wait_for_a_slot_is_no_part_of_it() -> None:
    async def run() -> list[tuple[float, str | bytes]]:
        clock = Clock(slots=1)
        taker = Taker(clock, 0)
        scope = {"http_version": "1.1", "state": {"transport": None}}
        with ExitStack() as running:
            running.enter_context(clock.place())
            answer = PlayedAnswer(Replay([TIMED]), Fault(), clock, taker, scope, come=50.0)
            writing = asyncio.ensure_future(answer.write())
            await asyncio.sleep(0)
            clock.time = 70
        await writing
        return taker.seen

    assert [at for at, _ in asyncio.run(run())] == [71, 71, 72, 74, 75]


# Ends that are none.

ENDED = [(0, b"data: 1\n\n")]


@pytest.mark.parametrize(
    "found",
    [
        recorded("failed", *ENDED, outcome="upstream_abort", reason="FIN before the end"),
        recorded("failed at once", outcome="upstream_abort"),
        recorded("cut", *ENDED, cut=True),
        recorded("left", *ENDED, outcome="client_abort"),
        recorded("hung", *ENDED, outcome="timeout_idle"),
    ],
    ids=lambda found: found.request_id,
)
def test_what_broke_off_breaks_off_again(found: Recording, tmp_path: Path) -> None:
    """By a FIN, without the last chunk, behind all that was recorded; then the mock goes on."""
    with Played(tmp_path, found, options=("--slots", "1")) as mock:
        for _ in range(2):
            with closing(mock.ask()) as stream:
                assert read_head(stream)[0] == 200
                assert [read_chunk(stream) for _ in found.pieces] == [piece.data for piece in found.pieces]
                assert stream.read_eof() == b""
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(mock.url, timeout=30)
        mock.wait_load(0, 0)
        assert "replay stopped" not in "".join(mock.stderr), "it was not the client that left"


@pytest.mark.parametrize("how", ["reset", "1.0"])
def test_what_was_reset_is_reset_again(how: str, tmp_path: Path) -> None:
    """So is an answer without chunks, whose body would be whole at a FIN."""
    reason = "ECONNRESET" if how == "reset" else "FIN before the end"
    found = recorded("failed", *ENDED, end=200_000, outcome="upstream_abort", reason=reason)
    with Played(tmp_path, found) as mock:
        with closing(mock.ask(version="1.0" if how == "1.0" else "1.1")) as stream:
            read_head(stream)
            stream.recv_until(b"data: 1\n\n")
            with pytest.raises(ConnectionResetError):
                stream.read_eof()
        mock.wait_load(0, 0)


def test_http_1_0_gets_a_whole_one_up_to_the_close(tmp_path: Path) -> None:
    with Played(tmp_path, STREAM) as mock, closing(mock.ask(version="1.0")) as stream:
        read_head(stream)
        assert stream.read_eof() == b"".join(piece.data for piece in STREAM.pieces)


def test_what_the_proxy_had_answered_itself_is_whole(tmp_path: Path) -> None:
    found = recorded("none", status=504, content_type="", outcome="timeout_ttft")
    with Played(tmp_path, found) as mock:
        answer = httpx.post(mock.url, timeout=30)
        assert answer.status_code == 504
        assert answer.content == b""


# Clients that leave, capacity, faults.


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_it_stops_when_the_client_leaves(how: str, tmp_path: Path) -> None:
    with Played(tmp_path, FOREVER) as mock:
        with closing(mock.ask()) as stream:
            read_head(stream)
            read_chunk(stream)
            mock.wait_load(1, 0)
            if how == "rst":
                stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line = mock.wait_log("replay stopped")
        assert (line["id"], line["pieces"], line["of"]) == ("forever", 1, 2)
        mock.wait_load(0, 0)


def test_it_ends_by_a_signal_in_the_middle(tmp_path: Path) -> None:
    with Played(tmp_path, FOREVER) as mock, closing(mock.ask()) as stream:
        read_head(stream)
        read_chunk(stream)
        assert mock.stop() == 0
        mock.wait_log("replay stopped")
        assert "Traceback" not in "".join(mock.stderr)


def test_slots_and_queue(tmp_path: Path) -> None:
    """Who waits has his place in the order of the recordings, and who is refused has none."""
    second = STREAM._replace(request_id="second")
    with (
        Played(tmp_path, FOREVER, second, BUSY, options=("--slots", "1", "--queue", "1")) as mock,
        ExitStack() as stack,
    ):
        first = stack.enter_context(closing(mock.ask()))
        read_head(first)
        waiting = stack.enter_context(closing(mock.ask()))
        mock.wait_load(1, 1)
        refused = httpx.post(mock.url, timeout=30)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        first.close()
        assert read_head(waiting)[0] == 200
        assert read_chunks(waiting) == [piece.data for piece in STREAM.pieces]
        mock.wait_load(0, 0)
        assert httpx.post(mock.url, timeout=30).status_code == 429


def test_who_leaves_the_queue(tmp_path: Path) -> None:
    with Played(tmp_path, FOREVER, STREAM, options=("--slots", "1")) as mock, closing(mock.ask()) as first:
        read_head(first)
        with closing(mock.ask()):
            mock.wait_load(1, 1)
        assert mock.wait_log("request left the queue")["id"] == "stream"
        mock.wait_load(1, 0)


def test_faults(tmp_path: Path) -> None:
    """Those that need no tokens are as ever; N counts pieces."""
    with Played(tmp_path, STREAM) as mock:
        busy = httpx.post(mock.url, headers={"x-mock-fault": "503;retry-after=7"}, timeout=30)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "7")
        early = httpx.post(mock.url, headers={"x-mock-fault": "answer-before-body"}, timeout=30)
        assert early.status_code == 413
        assert httpx.post(mock.url, headers={"x-mock-fault": "nonsense"}, timeout=30).status_code == 400
        with closing(mock.ask("X-Mock-Fault: die;after=2")) as stream, contextlib.suppress(ConnectionResetError):
            read_head(stream)
            assert read_chunks(stream) == [], "it never ends well"
        fault = mock.wait_log("fault")
        assert (fault["fault"], fault["after"]) == ("die", 2)
        with closing(mock.ask("X-Mock-Fault: hang;after=4")) as stream:
            read_head(stream)
            assert [read_chunk(stream) for _ in range(4)] == [piece.data for piece in STREAM.pieces]
            mock.wait_log("fault")
            mock.wait_load(1, 0)
        assert mock.wait_log("replay stopped")["pieces"] == 4
        with closing(mock.ask("X-Mock-Fault: hang")) as stream:
            mock.wait_log("fault")
        assert mock.wait_log("replay stopped")["pieces"] == 0
        begun = time.monotonic()
        assert httpx.post(mock.url, headers={"x-mock-fault": "slow-head;seconds=0.3"}, timeout=30).status_code == 200
        assert time.monotonic() - begun >= 0.3
    with Played(tmp_path, STREAM, options=("--no-faults",)) as mock:
        assert httpx.post(mock.url, headers={"x-mock-fault": "503"}, timeout=30).status_code == 200


# Behind the proxy.


def test_behind_the_proxy(tmp_path: Path) -> None:
    """It forwards what was recorded byte by byte, counts what broke off as such, and tells of a client that left."""
    failed = recorded("failed", *ENDED, outcome="upstream_abort")
    with Played(tmp_path, STREAM, BUSY, failed, FOREVER) as mock, Proxy(mock.url) as proxy:
        with httpx.Client(base_url=proxy.url, timeout=30) as http:
            for expected in (STREAM, BUSY):
                answer = http.post("/v1/chat/completions", json={})
                assert answer.status_code == expected.status
                assert answer.headers["content-type"] == expected.content_type
                assert answer.content == b"".join(piece.data for piece in expected.pieces)
            with pytest.raises(httpx.RemoteProtocolError):
                http.post("/v1/chat/completions", json={})
            proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="upstream_abort")
            with http.stream("POST", "/v1/chat/completions", json={}) as stream:
                assert next(stream.iter_raw()) == b"data: 1\n\n"
        assert mock.wait_log("replay stopped")["pieces"] == 1
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="client_abort")
        assert proxy.outcome("ok") == 2


# Files.


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """And it is said before anybody can connect."""
    file = tmp_path / "broken.jsonl"
    file.write_text("".join(write(STREAM)) + "{}\n")
    command = [sys.executable, "-m", "llmpipe", "mock", "--listen", "127.0.0.1:0", "--replay", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stderr == f"Error: {file} is no recording: line 7: it is not the head of a recording\n"


def test_it_says_what_it_plays(tmp_path: Path) -> None:
    with Played(tmp_path, STREAM, BUSY, options=("--replay-speed", "2")) as mock:
        line = next(line for line in map(json.loads, mock.stderr) if line["event"] == "replaying")
        assert (line["recordings"], line["speed"]) == (2, 2)
        assert line["file"].endswith("recordings.jsonl")
