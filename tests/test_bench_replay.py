"""`llmpipe bench replay`: recordings come back piece by piece, byte by byte, when they are due, and what a proxy does to them is seen.

How exact the times are is measured, and nothing that is tested: docs/performance.md has the figures. What is tested is that none is
early, that each is counted once, and that what is counted is what was late.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from bench_runs import Bench, Pump, bench, relay, send_on
from harness import TIMEOUT, chunk, free_port, open_descriptors, wait_until

from llmpipe._load import (
    REPLAY_PIECE_SIZE_MOST,
    REPLAY_PIECES_MOST,
    REPLAY_SIZE_MOST,
    REPLAY_STAMPS_MOST,
    Load,
)
from llmpipe.bench import histogram, measure, replay, report
from llmpipe.bench.generator import begin, finish, running
from llmpipe.bench.workload import LoadPlan, Workload, make_plan
from llmpipe.errors import UsageError
from llmpipe.recording import Piece, Recording, write

HOUR = 3_600_000_000
HOST = "127.0.0.1"


def recorded(
    *pieces: tuple[int, bytes], end: int | None = None, status: int = 200, content_type: str = "text/event-stream"
) -> Recording:
    last = pieces[-1][0] if pieces else 0
    return Recording(
        request_id="r",
        started="2026-11-26T00:00:00.000Z",
        method="POST",
        path="/v1/chat/completions",
        model="m",
        pool="",
        backend="b",
        status=status,
        content_type=content_type,
        outcome="ok",
        reason="",
        cut=False,
        end=last if end is None else end,
        request_body=None,
        pieces=tuple(Piece(at, data) for at, data in pieces),
    )


def event(text: str) -> bytes:
    return f'data: {{"choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'.encode()


# An answer of three lumps, whose second ends within a character; one in one piece; one that is empty.
LUMPS = recorded(
    (5_000, event("a")), (9_000, event("b") + "data: é".encode()[:-1]), (12_000, b"\xa9\n\n" + event("c")), end=15_000
)
WHOLE = recorded((3_000, b'{"object":"chat.completion"}'), end=3_000, content_type="application/json")
EMPTY = recorded(end=2_000, content_type="")
THREE = [LUMPS, WHOLE, EMPTY]


def body(one: Recording) -> bytes:
    return b"".join(piece.data for piece in one.pieces)


def saved(folder: Path, recordings: Sequence[Recording], name: str = "answers.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(line for one in recordings for line in write(one)))
    return file


def workload(recordings: list[Recording], streams: int = 4, speed: float = 1.0) -> Workload:
    return Workload("replay", streams=streams, replay=replay.make(recordings, "answers.jsonl", speed))


def plan_of(recordings: list[Recording], port: int, streams: int = 4, speed: float = 1.0) -> LoadPlan:
    return make_plan(workload(recordings, streams, speed), (HOST, port), marked=True)


def errors(load: Load) -> dict[str, int]:
    return {name: count for name, count in load.stats()["errors"].items() if count}


def seen(load: Load, name: str) -> int:
    """How many times were counted."""
    return histogram.total(load.times(name)[0])


@contextmanager
def asked_once(
    recordings: list[Recording],
    streams: int,
    down: Pump = send_on,
    speed: float = 1.0,
    tell: Callable[[Load], None] | None = None,
) -> Iterator[tuple[Load, dict[str, int]]]:
    """Each client has asked once, and has its answer; all of it was counted. The recordings were played in turn."""
    port = free_port()
    gate = threading.Event()

    def up(sink: socket.socket, data: bytes) -> bool:
        return gate.wait(TIMEOUT) and send_on(sink, data)

    with running((HOST, port)) as load, relay(port, down, up=up) as address:
        if tell:
            tell(load)
        plan = replace(plan_of(recordings, port, streams, speed), again=0, spread=0)
        begin(load, replace(plan, target=(HOST, int(address.rpartition(":")[2]))))
        load.measure()
        gate.set()
        wait_until(
            lambda: load.stats()["counts"]["answers"] + sum(errors(load).values()) == streams, what="all have answers"
        )
        load.halt()
        yield load, load.stats()["counts"]
        assert finish(load) == 0


# What is sent.


class Raw:
    """A client that is none of the generator's own: it gets the first recording."""

    def __init__(self, port: int, room: int = 0) -> None:
        self.sock = socket.socket()
        if room:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect((HOST, port))

    def ask(self, *fields: str) -> None:
        head = "".join(f"{line}\r\n" for line in ("POST /v1/chat/completions HTTP/1.1", "Host: a", *fields))
        self.sock.sendall(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())

    def answer(self) -> tuple[bytes, list[bytes]]:
        """The head, and the chunks before the last one."""
        found = b""
        while not found.endswith(b"\r\n0\r\n\r\n"):
            data = self.sock.recv(1 << 20)
            assert data, found[-100:]
            found += data
        head, _, rest = found.partition(b"\r\n\r\n")
        chunks = []
        while not rest.startswith(b"0\r\n"):
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return head, chunks

    def close(self) -> None:
        self.sock.close()


@contextmanager
def source_of(*recordings: Recording, room: int = 0) -> Iterator[tuple[Load, Raw]]:
    """A source that plays to whoever comes, and a client of it."""
    port = free_port()
    with running((HOST, port)) as load:
        begin(load, plan_of(list(recordings), port, streams=0))
        client = Raw(port, room)
        try:
            yield load, client
        finally:
            client.close()
            load.abandon()


def test_a_piece_is_a_chunk_and_the_head_is_that_of_the_recording():
    with source_of(LUMPS, WHOLE) as (_, client):
        for _ in range(2):  # on one connection
            client.ask()
            head, chunks = client.answer()
            assert head.decode().split("\r\n") == [
                *("HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Cache-Control: no-cache"),
                "Transfer-Encoding: chunked",
            ]
            assert chunks == [piece.data for piece in LUMPS.pieces]


@pytest.mark.parametrize("content_type", ["", "application/json; charset=utf-8"])
def test_an_answer_without_pieces_ends_well(content_type):
    with source_of(recorded(end=1000, content_type=content_type)) as (_, client):
        client.ask()
        head, chunks = client.answer()
        assert chunks == []
        assert (
            f"Content-Type: {content_type}" if content_type else "Content-Type"
        ) in head.decode() or not content_type
        assert ("Content-Type" in head.decode()) == bool(content_type)


def test_what_a_socket_does_not_take_waits_and_is_no_error_of_the_replay():
    size, count = 500_000, 30
    pieces = [(1000 * number, bytes([97 + number % 26]) * size) for number in range(count)]
    with source_of(recorded(*pieces), room=65536) as (load, client):
        load.measure()
        client.ask()
        wait_until(lambda: load.stats()["counts"]["sent"] > 1, what="it sends")
        last: list[int] = []

        def stands() -> bool:
            threading.Event().wait(0.1)
            last.append(load.stats()["counts"]["sent"])
            return last[-10:] == [last[-1]] * 10

        wait_until(stands, what="the socket is full")
        assert load.stats()["counts"]["sent"] < count
        _, chunks = client.answer()
        assert chunks == [data for _, data in pieces]
        wait_until(lambda: load.stats()["counts"]["sent"] == count, what="all is counted")
        assert 0 < seen(load, "late") < count


@pytest.mark.parametrize("full", [False, True], ids=["idle", "full"])
def test_an_end_within_an_answer_is_a_good_one(full):
    pieces = [(1000 * number, b"x" * 500_000) for number in range(30)] if full else [(0, b"one"), (HOUR, b"two")]
    with source_of(recorded(*pieces), room=65536) as (load, client):
        load.measure()
        client.ask()
        wait_until(lambda: load.stats()["counts"]["sent"] >= 1, what="it sends")
        if full:
            threading.Event().wait(0.5)
        load.finish()
        _, chunks = client.answer()
        assert chunks == [data for _, data in pieces[: len(chunks)]]
        assert 1 <= len(chunks) < len(pieces)


@pytest.mark.parametrize("asked_before", [True, False])
def test_an_end_before_the_first_piece_is_a_good_one(asked_before):
    """Whether the request came before the round's end, or was on its way."""
    with source_of(recorded((HOUR, b"late"))) as (load, client):
        if asked_before:
            client.ask()
            client.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.sock.settimeout(TIMEOUT)
        load.finish()
        if not asked_before:
            client.ask()
        head, chunks = client.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        assert chunks == []


def test_a_mark_that_asks_for_a_replay_of_other_shapes_gets_events():
    port = free_port()
    with running((HOST, port)) as load:
        begin(load, make_plan(Workload("paced", streams=1, rate=1), (HOST, port), marked=True))
        wait_until(lambda: load.stats()["flowing"] == 1, what="it flows")
        for mode in "4z":
            client = Raw(port)
            client.ask(f"X-Request-ID-Bench: 00000000.00000001.{mode}")
            assert b"chat.completion.chunk" in client.sock.recv(65536)
            client.close()
        assert finish(load) == 0


# What is counted.


def test_every_piece_is_counted_once_and_recordings_come_in_turn():
    with asked_once(THREE, 30) as (load, counts):
        assert counts["answers"] == 30
        pieces = 10 * sum(len(one.pieces) for one in THREE)
        assert counts["events"] == counts["sent"] == pieces == 40
        assert counts["alone"] + counts["merged"] == pieces
        assert counts["altered"] == counts["out_of_order"] == counts["split"] == 0
        assert seen(load, "latency") == seen(load, "late") == pieces
        assert seen(load, "ttft") == 20
        assert seen(load, "itl") == seen(load, "jitter") == pieces - 20
        assert seen(load, "duration") == 30
        assert errors(load) == {}


def test_recordings_are_played_in_turn_on_each_connection():
    port = free_port()
    came: list[bytes] = []

    def note(sink: socket.socket, data: bytes) -> bool:
        came.append(data)
        return send_on(sink, data)

    with running((HOST, port)) as load, relay(port, note) as address:
        plan = plan_of(THREE, port, streams=1)
        begin(load, replace(plan, target=(HOST, int(address.rpartition(":")[2]))))
        wait_until(lambda: b"".join(came).count(b"\r\n0\r\n\r\n") >= 7, what="seven answers")
        finish(load)
        assert errors(load) == {}
    answers = b"".join(came).split(b"HTTP/1.1 200 OK\r\n")[1:8]
    wanted = {tape.head + b"".join(chunk(data) for _, data in tape.pieces) for tape in replay.make(THREE, "", 1).tapes}
    found = [b"HTTP/1.1 200 OK\r\n" + answer.removesuffix(b"0\r\n\r\n") for answer in answers]
    assert set(found[:3]) == wanted
    assert found[3:6] == found[:3]
    assert found[6] == found[0]


def test_no_piece_is_early_and_the_times_add_up():
    """From the request to the piece at the client: its recorded time, what the source was late, and what it was on its way."""
    with asked_once([recorded((40_000, b"one"), end=90_000)], 1) as (load, _):
        late, latency, ttft, duration = (load.times(name)[1] for name in ("late", "latency", "ttft", "duration"))
    assert ttft >= 40_000_000 + late + latency
    assert duration >= 90_000_000


def test_a_gap_is_the_recorded_one_but_for_what_was_late():
    with asked_once([recorded((0, b"one"), (30_000, b"two"), end=30_000)], 1) as (load, _):
        late = load.times("late")[0]
        gap, jitter = load.times("itl")[1], load.times("jitter")[1]
    # The source's own gap is 30 ms and the difference of two lates; at the client it is that and the jitter.
    assert abs(gap - 30_000_000) <= 1.01 * (sum(value * count for value, count in late) + jitter)


def test_a_replay_may_be_faster():
    # At its own pace, it would last a quarter of an hour.
    with asked_once([recorded((400_000_000, b"one"), (900_000_000, b"two"), end=900_000_000)], 2, speed=10_000) as (
        load,
        counts,
    ):
        assert counts["events"] == 4
        assert load.times("duration")[0][0][0] >= 0.99 * 90_000_000
    one = replay.make([LUMPS], "", 2).tapes[0]
    assert [at for at, _ in one.pieces] == [2_500_000, 4_500_000, 6_000_000]
    assert one.end == 7_500_000
    assert [at for at, _ in replay.make([LUMPS], "", 3).tapes[0].pieces] == [1_666_667, 3_000_000, 4_000_000]


def test_a_round_that_ends_cuts_answers_and_that_is_no_error():
    for pieces in ([(0, b"one"), (HOUR, b"two")], [(HOUR, b"one")]):
        port = free_port()
        with running((HOST, port)) as load:
            begin(load, replace(plan_of([recorded(*pieces)], port, streams=20), spread=1000))
            wait_until(lambda: load.stats()["open"] == 20, what="all have asked")
            if len(pieces) == 2:
                wait_until(lambda: load.stats()["flowing"] == 20, what="all have begun")
            assert finish(load) == 0
            assert errors(load) == {}


# What a bad proxy does is seen.


def test_one_altered_byte_is_one_altered_piece():
    def alter(sink: socket.socket, data: bytes) -> bool:
        return send_on(sink, data.replace(b'"content":"b"', b'"content":"B"'))

    with asked_once([LUMPS], 5, alter) as (load, counts):
        assert counts["altered"] == 5
        assert counts["events"] == 15
        assert counts["answers"] == 5
        assert errors(load) == {}


def test_a_split_piece_is_seen_and_is_not_altered():
    loads: list[Load] = []
    sent = [0]

    def split(sink: socket.socket, data: bytes) -> bool:
        at = data.find(b'"b"')
        if at >= 0:
            send_on(sink, data[:at])
            sent[0] += at
            wait_until(lambda: loads[0].stats()["counts"]["bytes"] == sent[0], what="the first part is there")
            data = data[at:]
        sent[0] += len(data)
        return send_on(sink, data)

    with asked_once([LUMPS], 1, split, tell=loads.append) as (_, counts):
        assert counts["split"] >= 1
        assert counts["altered"] == 0
        assert counts["events"] == 3


def test_a_piece_that_comes_in_other_chunks_is_what_it_was():
    def chunks_anew(sink: socket.socket, data: bytes) -> bool:
        return send_on(sink, data.replace(chunk(event("a")), chunk(event("a")[:9]) + chunk(event("a")[9:])))

    with asked_once([LUMPS], 5, chunks_anew) as (load, counts):
        assert counts["altered"] == counts["split"] == 0
        assert counts["events"] == 15
        assert errors(load) == {}


@pytest.mark.parametrize(
    ("one", "old", "new", "altered", "failed"),
    [
        (WHOLE, chunk(body(WHOLE)), b"", 0, {"truncated": 3}),
        (WHOLE, chunk(body(WHOLE)), chunk(body(WHOLE)[:-1]), 0, {"truncated": 3}),
        (WHOLE, chunk(body(WHOLE)), chunk(body(WHOLE) + b"!!"), 3, {}),
        (WHOLE, chunk(body(WHOLE)), chunk(body(WHOLE)) + chunk(b"!") + chunk(b"!"), 3, {}),
        (EMPTY, b"\r\n0\r\n", b"\r\n" + chunk(b"!") + b"0\r\n", 3, {}),
        (WHOLE, b"HTTP/1.1 200 OK", b"HTTP/1.1 503 No", 0, {"status": 3}),
    ],
    ids=["nothing", "shorter", "longer", "more", "something", "status"],
)
def test_what_lacks_something_or_has_more_is_found_out(one, old, new, altered, failed):
    held: dict[socket.socket, bytes] = {}

    def change(sink: socket.socket, data: bytes) -> bool:
        # The whole answer in one piece, so that nothing of it can be missed.
        held[sink] = held.get(sink, b"") + data
        return not held[sink].endswith(b"0\r\n\r\n") or send_on(sink, held.pop(sink).replace(old, new))

    with asked_once([one], 3, change) as (load, counts):
        assert counts["altered"] == altered
        assert errors(load) == failed
        assert counts["answers"] == 3 - sum(failed.values())


# The command.


@pytest.mark.parametrize("speed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_through_the_proxy_every_byte_comes_as_it_was_recorded(speed, proxy_to, tmp_path):
    port = free_port()
    proxy = proxy_to(f"http://{HOST}:{port}")
    run = Bench(
        *(tmp_path, "replay", port, f"llmpipe={proxy.address}"),
        *("--replay", saved(tmp_path, [*THREE, recorded(status=503)]), "--replay-speed", speed, "--streams", 10),
        *("--rounds", 2, "--pid", proxy.process.pid, "--html", tmp_path / "page.html"),
    )
    assert "answers.jsonl: 1 of 4 recordings are left out; their status is not 200\n" in run.done.stderr
    plan = run.workload["plan"]
    assert run.workload["shape"] == "replay"
    assert (plan["file"], plan["recordings"], plan["left_out"], plan["speed"]) == ("answers.jsonl", 3, 1, speed)
    title = "replay of answers.jsonl, 3 recordings, 10 streams" + (", 2 times as fast" if speed == 2 else "")
    assert run.workload["title"] == title
    page = (tmp_path / "page.html").read_text()
    for name in ("direct", "llmpipe"):
        assert run.errors(name) == {}
        fidelity = run.fidelity(name)
        assert fidelity["events"] > 0
        assert fidelity["altered"] == fidelity["out_of_order"] == 0
        for figure in ("late_p50", "late_p99", "latency_p50", "events_per_second"):
            found = run.targets[name]["figures"][figure]
            assert found["min"] <= found["median"] <= found["max"], figure
        line = next(line for line in run.done.stdout.splitlines() if line.startswith(f"replay error, {name}: p50 "))
        assert re.search(r", p99 .+; pieces [\d,.]+/s", line)
        assert f"replay error, {name}: p50" in page.replace("Replay", "replay")
        assert re.search(rf"round 2/2 {name}: .*replay error p50", run.done.stderr)
    assert not any(name.startswith("late_") for name in run.targets["llmpipe"]["added"])
    assert title in page
    assert proxy.outcome("ok") > 0
    proxy.settled()


def test_an_altered_byte_is_reported(tmp_path):
    def alter(sink: socket.socket, data: bytes) -> bool:
        return send_on(sink, data.replace(b'"content":"b"', b'"content":"B"'))

    port = free_port()
    with relay(port, alter) as address:
        run = Bench(
            tmp_path, "replay", port, f"evil={address}", "--replay", saved(tmp_path, [LUMPS]), "--duration", "1s"
        )
    assert run.fidelity("evil")["altered"] > 0
    assert run.fidelity("direct")["altered"] == 0
    assert re.search(r"^evil .*altered", run.done.stdout, re.MULTILINE)


def test_without_a_proxy_it_measures_itself(tmp_path):
    done = bench(
        *("replay", "--replay", saved(tmp_path, THREE), "--source", f"{HOST}:{free_port()}", "--streams", 50),
        *("--rounds", 1, "--settle", 0, "--duration", "1s", "--json", tmp_path / "report.json"),
    )
    made = json.loads((tmp_path / "report.json").read_text())
    (target,) = made["workloads"][0]["targets"]
    assert target["name"] == "direct"
    assert target["figures"]["late_p50"]["median"] > 0
    assert "replay error, direct: p50" in done.stdout


def test_a_file_that_is_saved_is_what_is_played(tmp_path):
    found = replay.read(saved(tmp_path, THREE, "a.jsonl"), 1.0)
    assert found == replay.make(THREE, "a.jsonl", 1.0)
    assert [b"".join(data for _, data in tape.pieces) for tape in found.tapes] == [body(one) for one in THREE]
    assert found.most_pieces == 3
    assert found.longest == 15_000_000


def too_many() -> Recording:
    return recorded(*((0, b"x") for _ in range(REPLAY_PIECES_MOST + 1)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [recorded(status=500)], "no recording in it has status 200"),
        (lambda: [WHOLE, too_many()], "recording 2 has 100,001 pieces; at most 100,000 are played"),
        (lambda: [recorded((0, b"x" * (REPLAY_PIECE_SIZE_MOST + 1)))], "recording 1 has a piece of 524,289 bytes"),
        (
            lambda: [recorded(*((0, b"x" * REPLAY_PIECE_SIZE_MOST) for _ in range(17)))] * 2,
            "17,825,792 bytes of answers are too many; at most 16,777,216",
        ),
        (lambda: [recorded(content_type="a\r\nSet-Cookie: b")], "a content type that cannot be sent"),
        (lambda: [recorded(content_type="a\u20ac")], "a content type that cannot be sent"),
    ],
    ids=["status", "pieces", "piece", "size", "type", "characters"],
)
def test_what_cannot_be_played_is_refused(make: Callable[[], list[Recording]], said):
    with pytest.raises(UsageError, match=re.escape(said)):
        replay.make(make(), "answers.jsonl", 1.0)


def test_clients_and_pieces_have_a_bound():
    pieces = recorded(*((0, b"x") for _ in range(REPLAY_PIECES_MOST)))
    most = REPLAY_STAMPS_MOST // REPLAY_PIECES_MOST
    assert workload([pieces], most).streams == most
    with pytest.raises(UsageError, match=f"start at most {most}"):
        workload([pieces], most + 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recordings": ()}, "a replay has recordings"),
        ({"marked": False}, "a replay has recordings"),
        ({"mode": 0, "interval": 1}, "nothing else has recordings"),
        ({"recordings": ((b"", ((0, b""),), 0),)}, "the length of a piece is 0"),
        ({"recordings": ((b"", ((0, b"x" * (REPLAY_PIECE_SIZE_MOST + 1)),), 0),)}, "the length of a piece is 524289"),
        ({"recordings": ((b"", ((5, b"a"), (4, b"b")), 9),)}, "the time of a piece is 4"),
        ({"recordings": ((b"", ((5, b"a"),), 4),)}, "the end of a recording is 4"),
        ({"recordings": ((b"", ((-1, b"a"),), 4),)}, "the time of a piece is -1"),
        ({"recordings": ((b"", ((0, b"x"),) * (REPLAY_PIECES_MOST + 1), 0),)}, "the pieces of a recording is 100001"),
        (
            {
                "recordings": (
                    (b"", ((0, b"x" * REPLAY_PIECE_SIZE_MOST),) * (REPLAY_SIZE_MOST // REPLAY_PIECE_SIZE_MOST + 1), 0),
                )
            },
            "the length of all recordings is",
        ),
        ({"recordings": ((b"", ((0, b"x"),) * REPLAY_PIECES_MOST, 0),), "clients": 336}, "clients times pieces is"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_the_generator_refuses_what_it_cannot_carry(changed, said):
    port = free_port()
    with running((HOST, port)) as load:
        with pytest.raises(UsageError, match=re.escape(said)):
            begin(load, replace(plan_of([WHOLE], port), **changed))
        begin(load, plan_of([WHOLE], port))  # nothing is left of it
        load.measure()
        wait_until(lambda: load.stats()["counts"]["answers"] > 0, what="it plays")
        assert finish(load) == 0


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ((), None, "replay needs recordings to play; name their file with --replay FILE"),
        (("--replay", "{}/none.jsonl"), None, "none.jsonl: No such file or directory"),
        (("--replay", "{}"), None, "Is a directory"),
        (("--replay", "{}/answers.jsonl"), "", "is no recording: it is empty"),
        (("--replay", "{}/answers.jsonl"), '{"us": 1}\n', "line 1: it is not the head of a recording"),
        (("--replay", "{}/answers.jsonl"), "\x00\xff", "is no recording: line 1"),
        (("--replay", "{}/answers.jsonl"), "".join(write(recorded(status=404))), "no recording in it has status 200"),
        (("--replay", "{}/answers.jsonl"), "".join([*write(LUMPS)][:-1]), "what begins here has no end"),
        (("--replay-speed", "0"), None, "--replay-speed"),
        (("--no-direct",), None, "nothing to measure"),
        (("--url", "http://127.0.0.1:1"), None, "needs the bundled token source"),
    ],
    ids=["no-file", "missing", "folder", "empty", "no-head", "binary", "status", "no-end", "speed", "nothing", "url"],
)
def test_what_cannot_work_is_one_line(arguments, text, said, tmp_path):
    if text is not None:
        (tmp_path / "answers.jsonl").write_text(text, "latin-1")
    done = bench("replay", *(argument.format(tmp_path) for argument in arguments), code=2)
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_recording_is_of_the_shape_replay_alone(tmp_path):
    done = bench("paced", "--proxy", "127.0.0.1:1", "--replay", saved(tmp_path, THREE), code=2)
    assert done.stderr == "Error: --replay is of the shape replay, and this is paced\n"


def test_nothing_is_left_open():
    with asked_once(THREE, 3):  # what the interpreter opens once is open
        pass
    before = open_descriptors(os.getpid())
    with asked_once(THREE, 50):
        pass
    port = free_port()
    with running((HOST, port)) as load:
        for _ in range(3):  # rounds, each with a plan of its own
            begin(load, plan_of(THREE, port, streams=50))
            load.measure()
            wait_until(lambda: load.stats()["counts"]["answers"] > 0, what="it plays")
            assert finish(load) == 0
    wait_until(lambda: open_descriptors(os.getpid()).keys() == before.keys(), what="all is closed")


# The report.


def test_the_error_of_a_replay_is_that_of_the_histogram():
    late = [(2_000, 98), (5_000_000, 2)]
    histograms = {"late": (late, 5_100_000), "latency": ([(10_000, 100)], 10_000)}
    found = measure._time_figures(workload(THREE), histograms)
    assert found["late_p50"] == 2e-6
    assert found["late_p99"] == 5e-3
    assert found["late_max"] == 5.1e-3
    assert not any(name.startswith("late_") for name in measure._time_figures(Workload("paced"), histograms))
    figures = {name: {"median": value, "min": value, "max": value, "unit": "s"} for name, value in found.items()} | {
        "events_per_second": {"median": 1234.0, "min": 1234.0, "max": 1300.0, "unit": "1/s"}
    }
    lines = report.replay_errors({"targets": [{"name": "direct", "figures": figures}, {"name": "none", "figures": {}}]})
    assert lines == ["replay error, direct: p50 2 µs, p99 5 ms; pieces 1,234/s (1,234/s to 1,300/s)"]


def test_clients_are_spread_over_an_answer():
    assert workload([recorded(end=2_000_000), recorded(end=4_000_000)]).spread == pytest.approx(3.0)
    assert workload([recorded(end=4_000_000)], speed=2).spread == pytest.approx(2.0)
    assert workload([recorded(end=HOUR)]).spread == pytest.approx(replay.SPREAD_MOST)
    assert workload([recorded()]).spread == pytest.approx(0.0, abs=1e-6)
    plan = plan_of([recorded(end=100_000_000), EMPTY], 1)
    assert plan.timeout == pytest.approx(60e9 + 100e9)
