"""The load generator: every shape through a real proxy, and whether it sees what a bad proxy does.

Each claim of a report is held against something that happened: a proxy that merges, alters, delays, cuts or never closes
must be found out.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from bench_runs import ENVIRONMENT, SHORT, Bench, bench, bench_command, relay, send_on
from harness import LAST_CHUNK, Backend, Connection, chunk, free_port, sse_head, wait_until

from llmpipe.bench import histogram, process, report
from llmpipe.bench.command import parse_url, split_name
from llmpipe.bench.generator import begin, finish, running
from llmpipe.bench.measure import MEANINGS
from llmpipe.bench.workload import SHAPES, Workload, make_plan
from llmpipe.errors import UsageError

LONGER = ("--duration", "2s")
"""Where a moment in which the machine does nothing would be too large a part."""

# Every shape, through the real proxy.

SHAPE_OPTIONS = {
    "paced": ("--streams", 20, "--rate", 50),
    "requests": ("--streams", 4),
    "arrivals": ("--streams", 20, "--arrivals-per-second", 200),
    "flood": ("--streams", 3),
    "hold": ("--streams", 20),
    "churn": ("--streams", 4),
    "disconnect": ("--streams", 5, "--rate", 20, "--disconnecting", 4),
    "replay": ("--streams", 10, "--replay", Path(__file__).parent / "recording.jsonl"),
}


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.slow) if shape != "requests" else shape for shape in SHAPES]
)
def test_every_shape_runs(shape, proxy_to, tmp_path):
    port = free_port()
    proxy = proxy_to(f"http://127.0.0.1:{port}")
    run = Bench(
        tmp_path,
        shape,
        port,
        f"llmpipe={proxy.address}",
        *("--rounds", 2, "--duration", "1s", *SHAPE_OPTIONS[shape]),
        *("--pid", proxy.process.pid, "--html", tmp_path / "page.html"),
    )
    assert run.report["complete"]
    assert list(run.targets) == ["direct", "llmpipe"]
    assert run.errors("direct") == run.errors("llmpipe") == {}
    for name, target in run.targets.items():
        assert len(target["rounds"]) == 2
        for figure in report.COLUMNS[shape]:
            if not figure.startswith(("cpu", "memory")) or name == "llmpipe":
                found = target["figures"][figure]
                assert found["min"] <= found["median"] <= found["max"], figure
                assert found["median"] > 0 or figure in ("memory_per_stream", "cpu_used", "jitter_p99"), figure
    if shape not in ("flood", "hold"):
        fidelity = run.fidelity("llmpipe")
        assert fidelity["events"] > 0
        assert fidelity["altered"] == fidelity["out_of_order"] == 0
    for heading in report.rows(run.workload)[0]:
        assert heading in run.done.stdout
    page = (tmp_path / "page.html").read_text()
    assert report.Workload(shape).shape in page
    assert "llmpipe" in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    # What it says it did, the proxy saw; and nothing is left open.
    assert proxy.outcome("ok") > 0
    proxy.settled()


@pytest.mark.slow
def test_paced_streams_keep_their_pace(proxy_to, tmp_path):
    port = free_port()
    run = Bench(
        tmp_path, "paced", port, proxy_to(f"http://127.0.0.1:{port}").address, "--streams", 10, "--rate", 40, *LONGER
    )
    for name in run.targets:
        pairs = run.targets[name]["histograms"]["itl"]["buckets"]
        assert histogram.percentile([tuple(pair) for pair in pairs], 50) == pytest.approx(1 / 40, rel=0.4)
        assert run.figure(name, "events_per_second") == pytest.approx(400, rel=0.3)


# What a bad proxy does is seen.


def test_a_delay_is_added_latency(tmp_path):
    port = free_port()

    def slow(sink: socket.socket, data: bytes) -> bool:
        time.sleep(0.1)
        return send_on(sink, data)

    with relay(port, slow) as address:
        run = Bench(tmp_path, "paced", port, f"slow={address}", "--streams", 4, "--rate", 4, *LONGER)
    assert run.targets["slow"]["added"]["latency_p50"] > 0.05
    assert run.figure("slow", "latency_p50") > 0.099


def test_merged_events_are_seen(tmp_path):
    port = free_port()

    def lumps() -> Callable[[socket.socket, bytes], bool]:
        held: dict[socket.socket, bytes] = {}

        def merge(sink: socket.socket, data: bytes) -> bool:
            held[sink] = held.get(sink, b"") + data
            if held[sink].count(b"data: ") >= 3 or b"[DONE]" in data:
                sink.sendall(held.pop(sink))
            return True

        return merge

    with relay(port, lumps()) as address:
        run = Bench(tmp_path, "paced", port, f"lumps={address}", "--streams", 4, "--rate", 10, *LONGER)
    fidelity = run.fidelity("lumps")
    assert fidelity["merged"] > 0.5 * fidelity["events"] > 0
    assert fidelity["altered"] == fidelity["out_of_order"] == 0
    assert run.fidelity("direct")["merged"] <= 0.3 * run.fidelity("direct")["events"]


@pytest.mark.slow
def test_split_events_are_seen(tmp_path):
    port = free_port()

    def split(sink: socket.socket, data: bytes) -> bool:
        sink.sendall(data[:-20])
        time.sleep(0.005)
        sink.sendall(data[-20:])
        return True

    with relay(port, split) as address:
        run = Bench(tmp_path, "paced", port, f"split={address}", "--streams", 4, "--rate", 20)
    fidelity = run.fidelity("split")
    assert fidelity["split"] > 0.5 * fidelity["events"] > 0
    assert fidelity["altered"] == 0
    assert "split" in run.done.stdout


@pytest.mark.slow
def test_altered_and_lost_events_are_seen(tmp_path):
    port = free_port()
    count = iter(range(1_000_000))

    def tamper(sink: socket.socket, data: bytes) -> bool:
        number = next(count)
        if number % 5 == 4 and data.startswith(b"c8\r\ndata: "):
            data = data.replace(b"bench", b"hcneb")
        elif number % 5 == 3 and data.startswith(b"c8\r\ndata: "):
            return True
        return send_on(sink, data)

    with relay(port, tamper) as address:
        run = Bench(tmp_path, "paced", port, f"tamper={address}", "--streams", 4, "--rate", 50)
    fidelity = run.fidelity("tamper")
    assert fidelity["altered"] > 0
    assert fidelity["out_of_order"] > 0


def test_a_cut_stream_is_an_error(tmp_path):
    port = free_port()
    seen: dict[socket.socket, int] = {}

    def cut(sink: socket.socket, data: bytes) -> bool:
        sink.sendall(data)
        seen[sink] = seen.get(sink, 0) + 1
        return seen[sink] < 10

    with relay(port, cut) as address:
        run = Bench(tmp_path, "paced", port, f"cut={address}", "--streams", 4, "--rate", 50, code=1)
    assert run.errors("cut")["truncated"] > 0
    assert run.errors("direct") == {}
    assert "truncated" in run.done.stdout


@pytest.mark.slow
def test_an_answer_that_only_looks_complete_is_an_error(tmp_path):
    port = free_port()
    event = re.compile(rb"[0-9a-f]+\r\ndata: \{.*?\n\n\r\n", re.DOTALL)

    def drop_last_event(sink: socket.socket, data: bytes) -> bool:
        events = list(event.finditer(data))
        if len(events) == 3:
            data = data[: events[-1].start()] + data[events[-1].end() :]
        return send_on(sink, data)

    with relay(port, drop_last_event) as address:
        run = Bench(tmp_path, "requests", port, f"short={address}", "--streams", 1, "--tokens", 3, "--rate", 0, code=1)
    assert run.errors("short")["truncated"] > 0
    assert run.errors("direct") == {}


@pytest.mark.slow
def test_a_backend_that_is_never_told_is_an_error(tmp_path):
    port = free_port()
    with relay(port, send_on, close_upstream=False) as address:
        run = Bench(
            tmp_path,
            *(
                "disconnect",
                port,
                f"deaf={address}",
                "--streams",
                0,
                "--disconnecting",
                2,
                "--duration",
                "6s",
                "--rounds",
                1,
            ),
            code=1,
        )
    assert run.errors("deaf")["never_closed"] > 0
    assert run.errors("direct") == {}


@pytest.mark.slow
def test_arrivals_count_from_when_they_were_due(tmp_path):
    """A target that stands still for half a second makes every request that was due meanwhile late."""
    port = free_port()
    stall = threading.Event()
    last = [0.0]

    def stall_once(sink: socket.socket, data: bytes) -> bool:
        # Each round's first answer begins a stall in its settling time, which ends within the measurement.
        if time.monotonic() - last[0] > 1.0 and not stall.is_set():
            stall.set()
            last[0] = time.monotonic() + 0.5
        time.sleep(max(0.0, last[0] - time.monotonic()))
        stall.clear()
        return send_on(sink, data)

    with relay(port, stall_once) as address:
        run = Bench(
            tmp_path,
            *("arrivals", port, f"stall={address}", "--streams", 1, "--arrivals-per-second", 50),
            *("--rounds", 1, "--duration", "1500ms"),
        )
    # A closed loop would have met one slow answer; here all that queued behind it are slow.
    slow = sum(count for value, count in run.targets["stall"]["histograms"]["ttft"]["buckets"] if value > 100e6)
    assert slow >= 5
    assert run.figure("direct", "ttft_p50") < 0.1


def test_statuses_are_counted(proxy_to, tmp_path):
    proxy = proxy_to(_answer_503)
    run_ = bench(
        "requests", "--url", f"http://{proxy.address}", *SHORT, "--streams", 2, "--json", tmp_path / "r", code=1
    )
    target = json.loads((tmp_path / "r").read_text())["workloads"][0]["targets"][0]
    assert target["rounds"][0]["errors"]["status 503"] > 0
    assert target["figures"]["requests_per_second"]["median"] == 0
    assert "status 503" in run_.stdout


def _answer_503(connection) -> None:
    while connection.read_request():
        connection.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno")


# What has status 200 and a clean end is not yet an answer.


def whole(body: str, content_type: str = "application/json") -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def stream(*events: str, end: bytes = LAST_CHUNK) -> bytes:
    return sse_head() + b"".join(chunk(event.encode() + b"\n\n") for event in events) + end


TOKENS = [f'data: {{"choices": [{{"delta": {{"content": "{word}"}}, "finish_reason": null}}]}}' for word in ("a", "b")]
FINISH = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'
DONE = "data: [DONE]"


def usage(number: str) -> str:
    return f'data: {{"choices": [], "usage": {{"prompt_tokens": 1, "completion_tokens": {number}}}}}'


def completion(text: str, **more: object) -> str:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], **more})


ANSWERS: dict[str, tuple[bytes, str | None]] = {
    "stream": (stream(*TOKENS, FINISH, usage("2"), DONE), None),
    "stream-without-done": (stream(*TOKENS, FINISH), None),
    "stream-without-finish": (stream(*TOKENS, DONE), None),
    "stream-without-last-blank-line": (
        stream(*TOKENS).removesuffix(LAST_CHUNK) + chunk(b"data: [DONE]\n") + LAST_CHUNK,
        None,
    ),
    "stream-of-nothing": (stream(FINISH, DONE), None),
    "usage-null": (stream(*TOKENS, usage("null"), DONE), None),
    "object": (whole(completion("a", usage={"completion_tokens": 1})), None),
    "object-with-spaces": (whole("\n  " + json.dumps(json.loads(completion("a")), indent=4)), None),
    "object-with-error-null": (whole(completion("a", error=None)), None),
    "object-that-speaks-of-errors": (whole(completion('{"error": "no"}')), None),
    "object-of-nothing": (whole(completion("")), None),
    "embeddings": (whole('{"data": [{"embedding": [0.1, 0.2]}]}'), None),
    "page": (whole('<!doctype html><meta name="a" content="b"><p>"content": "c"</p>', "text/html"), "no_answer"),
    "page-as-stream": (stream("<!doctype html>", "<p>Sign in</p>"), "no_answer"),
    "long-page": (whole("<p>" * 1_000_000, "text/html"), "no_answer"),
    "nothing": (whole(""), "no_answer"),
    "stream-without-anything": (stream(), "no_answer"),
    "stream-of-comments": (stream(": ping", ": ping"), "no_answer"),
    "done-alone": (stream(DONE), "no_answer"),
    "models": (whole('{"object": "list", "data": [{"id": "model"}]}'), "no_answer"),
    "error": (whole('{"error": {"message": "overloaded", "type": "server_error"}}'), "error_answer"),
    "error-text": (whole('{"error": "model not found"}'), "error_answer"),
    "error-event": (stream('data: {"error": {"message": "out of memory"}}', DONE), "error_answer"),
    "error-in-mid-stream": (stream(*TOKENS, 'data: {"error": {"message": "out of memory"}}', DONE), "error_answer"),
    "stream-without-end": (stream(*TOKENS), "unended"),
    "usage-1e18": (stream(*TOKENS, usage("1000000000000000000"), DONE), "usage"),
    "usage-17-digits": (stream(*TOKENS, usage("10000000000000000"), DONE), "usage"),
    "usage-of-millions": (stream(*TOKENS, usage("50000000"), DONE), "usage"),
    "usage-exponent": (stream(*TOKENS, usage("1e18"), DONE), "usage"),
    "usage-negative": (stream(*TOKENS, usage("-1"), DONE), "usage"),
    "usage-text": (stream(*TOKENS, usage('"2"'), DONE), "usage"),
    "usage-of-an-object": (whole(completion("a", usage={"completion_tokens": 10**18})), "usage"),
}


def answer_with(data: bytes) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        with suppress(OSError, EOFError):  # it leaves with a reset
            while connection.read_request():
                connection.send(data)

    return script


@pytest.mark.slow
def test_what_only_looks_like_an_answer_is_an_error(tmp_path):
    """All in one run, one round each; what is an answer is none's error."""
    with ExitStack() as stack:
        urls = {name: stack.enter_context(Backend(answer_with(data))).url for name, (data, _) in ANSWERS.items()}
        done = subprocess.run(
            bench_command(
                *("requests", "--streams", 1, "--rounds", 1, "--settle", 0, "--duration", "1s"),
                *(word for name, url in urls.items() for word in ("--url", f"{name}={url}")),
                *("--json", tmp_path / "report.json"),
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=550,
            env=ENVIRONMENT,
        )
    assert done.returncode == 1, done.stdout + done.stderr
    workload = json.loads((tmp_path / "report.json").read_text())["workloads"][0]
    targets = {target["name"]: target for target in workload["targets"]}
    found = {name: list(report.errors(target)) for name, target in targets.items()}
    assert found == {name: [error] if error else [] for name, (_, error) in ANSWERS.items()}
    rates = []
    for name, target in targets.items():
        figures = {figure: value["median"] for figure, value in target["figures"].items()}
        if ANSWERS[name][1] in (None, "usage"):
            # As many tokens as it said, or, where that cannot be, as many as came.
            each = 0 if "of-nothing" in name else 2 if "stream" in name or "event" in name else 1
            each = 2 if name.startswith("usage-") and name != "usage-of-an-object" else each
            rates.append(figures["requests_per_second"])
            assert figures["tokens_per_second"] == pytest.approx(each * figures["requests_per_second"]), name
        else:
            assert figures["requests_per_second"] == figures["tokens_per_second"] == 0, name
            assert "ttft_p50" not in figures or name in ("stream-without-end", "error-in-mid-stream"), name
            line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
            assert line.endswith(f" {ANSWERS[name][1]}")
    assert statistics.median(rates) > 0
    for error, meaning in MEANINGS.items():
        assert f"{error}: {meaning}" in done.stdout


def test_a_stream_that_goes_on_for_ever_is_an_error(tmp_path):
    def endless(connection: Connection) -> None:
        with suppress(OSError, EOFError):
            connection.read_request()
            connection.send(sse_head())
            while True:
                connection.send(chunk(f"{TOKENS[0]}\n\n".encode()))
                time.sleep(0.02)

    with Backend(endless) as backend:
        bench(
            *("requests", "--url", f"endless={backend.url}", "--streams", 1, "--timeout", "1s", *SHORT),
            *("--json", tmp_path / "report.json"),
            code=1,
        )
    target = json.loads((tmp_path / "report.json").read_text())["workloads"][0]["targets"][0]
    assert list(report.errors(target)) == ["timeout"]
    assert target["figures"]["requests_per_second"]["median"] == 0
    assert "no answer was complete within the time that was measured" in target["rounds"][0]["warnings"]


# An inference server.


@pytest.mark.slow
def test_an_inference_server_is_measured(tmp_path):
    port = free_port()
    mock = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmpipe", "mock", "--listen", f"127.0.0.1:{port}", "--log-level", "error"),
            *("--ttft", "50ms", "--tokens-per-second", "20"),
        ]
    )
    try:
        wait_until(lambda: _listens(port), what="the mock listens")
        bench(
            *(
                "requests",
                "--url",
                f"mock=http://127.0.0.1:{port}/v1",
                "--model",
                "mock",
                "--tokens",
                10,
                "--streams",
                3,
            ),
            *("--duration", "4s", "--settle", "0", "--rounds", 2, "--json", tmp_path / "report.json"),
        )
    finally:
        mock.terminate()
        mock.wait(30)
    target = json.loads((tmp_path / "report.json").read_text())["workloads"][0]["targets"][0]
    figures = {name: figure["median"] for name, figure in target["figures"].items()}
    assert figures["ttft_p50"] >= 0.05
    assert figures["itl_p50"] == pytest.approx(0.05, rel=0.5)
    assert figures["duration_p50"] >= 0.05 + 9 * 0.05 * 0.9
    answers = figures["requests_per_second"]
    assert answers > 0
    assert figures["tokens_per_second"] == pytest.approx(10 * answers, rel=0.35)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# The command.


def test_an_interrupt_prints_what_there_is(proxy_to, tmp_path):
    port = free_port()
    proxy = proxy_to(f"http://127.0.0.1:{port}")
    running_ = subprocess.Popen(
        bench_command(
            *(
                "paced",
                "--proxy",
                f"ours={proxy.address}",
                "--source",
                f"127.0.0.1:{port}",
                "--streams",
                5,
                "--rounds",
                50,
            ),
            *("--duration", "500ms", "--settle", "0", "--json", tmp_path / "report.json"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert running_.stderr is not None
    while "round 2/50" not in running_.stderr.readline():
        assert running_.poll() is None
    running_.send_signal(signal.SIGINT)
    output, error = running_.communicate(timeout=60)
    assert running_.returncode == 130
    assert "ours" in output
    assert "direct" in output
    assert "interrupted" in error
    made = json.loads((tmp_path / "report.json").read_text())
    assert not made["complete"]
    assert len(made["workloads"][0]["targets"][0]["rounds"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paced"], "nothing to measure"),
        (["paced", "--url", "http://127.0.0.1:1"], "needs the bundled token source"),
        (["requests", "--url", "https://127.0.0.1:1"], "TLS is not supported"),
        (["requests", "--url", "ftp://127.0.0.1:1"], "is not a URL"),
        (["paced", "--proxy", "127.0.0.1"], "is not an address"),
        (["paced", "--proxy", "a=127.0.0.1:1", "--proxy", "a=127.0.0.1:2"], "two targets are called a"),
        (["paced", "--proxy", "127.0.0.1:1", "--pid", "4194999"], "there is no such process"),
        (["paced", "--proxy", "a=127.0.0.1:1", "--pid", "b=1"], "say whose process it is"),
        (["paced", "--proxy", "127.0.0.1:1", "--event-size", "10"], "an event is"),
        (["paced", "--proxy", "127.0.0.1:1", "--rate", "0"], "need a rate"),
        (["paced", "--proxy", "127.0.0.1:1", "--streams", "900000"], "descriptors"),
        (["paced", "--proxy", "127.0.0.1:1", "--cpu", "4000"], "--cpu 4000"),
        (["requests", "--proxy", "127.0.0.1:1", "--tokens", "100000", "--rate", "0"], "in one piece"),
        (["requests", "--url", "http://127.0.0.1:1", "--body", "/nowhere"], "--body /nowhere"),
        (["requests", "--url", "http://127.0.0.1:1", "--header", "nothing"], "write 'Name: value'"),
        (["wrong"], "wrong"),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_work_is_one_line(arguments, said):
    done = bench(*arguments, code=2)
    assert said in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = bench("paced", "--proxy", "127.0.0.1:1", "--source", f"127.0.0.1:{port}", code=2)
    assert "--source" in done.stderr
    assert "in use" in done.stderr


def test_a_proxy_that_is_not_there_is_an_error(tmp_path):
    run = Bench(tmp_path, "requests", free_port(), f"none=127.0.0.1:{free_port()}", "--streams", 1, code=1)
    assert run.errors("none")["connect"] > 0
    assert run.errors("direct") == {}


def test_the_source_answers_health_checks_between_rounds():
    port = free_port()
    with running(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as client:
        for request in (
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            client.sendall(request)
            data = client.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 OK\r\n")
            head, _, body = data.partition(b"\r\n\r\n")
            assert int(re.search(rb"Content-Length: (\d+)", head)[1]) == len(body)
            assert json.loads(body)["data"][0]["id"] == "bench"


# The parts.


def test_the_source_floods_who_asks_for_it_beside_paced_streams():
    """For clients that are not the generator's own: those that read slowly need more than anybody holds for them."""
    port = free_port()
    with running(("127.0.0.1", port)) as load:
        begin(load, make_plan(Workload("paced", streams=1, rate=1), ("127.0.0.1", port), marked=True))
        try:
            got = {}
            for path, most in (("/flood", 4_000_000), ("/v1/chat/completions", 4_000_000)):
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.settimeout(30)
                    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}".encode())
                    got[path] = len(sock.recv(65536))
                    sock.settimeout(30 if path == "/flood" else 0.3)
                    with suppress(TimeoutError):
                        while got[path] < most:
                            got[path] += len(sock.recv(65536))
            assert got["/flood"] >= 4_000_000
            assert 0 < got["/v1/chat/completions"] < 100_000
            wait_until(lambda: load.stats()["flowing"] == 1)
            assert not any(load.stats()["errors"].values())
        finally:
            assert finish(load) == 0


def test_a_round_that_ends_cuts_paced_answers_and_that_is_no_error():
    port = free_port()
    with running(("127.0.0.1", port)) as load:
        begin(load, make_plan(Workload("requests", streams=5, rate=20, tokens=100_000), ("127.0.0.1", port), True))
        wait_until(lambda: load.stats()["flowing"] == 5, what="all have begun")
        assert finish(load) == 0
        assert not any(load.stats()["errors"].values())


def test_histograms_are_exact_to_a_percent():
    port = free_port()
    with running(("127.0.0.1", port)) as load:
        begin(load, make_plan(Workload("paced", streams=5, rate=100), ("127.0.0.1", port), True))
        wait_until(lambda: load.stats()["flowing"] == 5)
        load.measure()
        time.sleep(1)
        load.halt()
        for name in ("latency", "itl"):
            pairs, most = load.times(name)
            assert pairs == sorted(pairs)
            assert pairs[-1][0] == pytest.approx(most, rel=0.01)
        assert histogram.total(load.times("latency")[0]) == load.stats()["counts"]["events"]
        finish(load)


def test_percentiles_of_counts():
    pairs = [(10, 50), (20, 49), (1000, 1)]
    assert histogram.percentile(pairs, 50) == 10e-9
    assert histogram.percentile(pairs, 99) == 20e-9
    assert histogram.percentile(pairs, 99.9) == 1000e-9
    assert histogram.percentile([], 50) is None
    assert histogram.merge([pairs, [(20, 1), (5, 2)]]) == [(5, 2), (10, 50), (20, 50), (1000, 1)]
    assert histogram.since([(1, 5), (2, 7)], [(1, 5), (2, 4)]) == [(2, 3)]


def test_cpu_time_and_memory_of_a_process_and_its_children():
    code = "import subprocess,sys;x=b'x'*30000000;subprocess.run([sys.executable,'-c','x=b\"x\"*40000000\\nwhile 1: pass'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: len(process.tree(parent.pid)) == 2)
        pids = process.tree(parent.pid)
        wait_until(lambda: process.resident_bytes(pids) > 70_000_000)
        before = process.cpu_seconds(pids)
        wait_until(lambda: process.cpu_seconds(pids) > before + 0.05)
        assert process.cpu_seconds([parent.pid]) < process.cpu_seconds(pids)
    finally:
        for pid in reversed(process.tree(parent.pid)):
            os.kill(pid, signal.SIGKILL)
        parent.wait(10)
    assert process.cpu_seconds([parent.pid]) == 0


def test_names_and_urls():
    assert split_name("ours=127.0.0.1:1") == ("ours", "127.0.0.1:1")
    assert split_name("http://127.0.0.1:1/?a=b") == ("", "http://127.0.0.1:1/?a=b")
    assert parse_url("x=http://127.0.0.1:81")[1] == "/v1/chat/completions"
    assert parse_url("http://127.0.0.1:81/v1")[1] == "/v1/chat/completions"
    assert parse_url("http://127.0.0.1:81/v1/completions")[1] == "/v1/completions"
    with pytest.raises(UsageError):
        parse_url("127.0.0.1:81")


def test_a_terminal_gets_a_live_view() -> None:
    """Progress is drawn and drawn again while it runs, on a terminal of its own; the tables come behind it, through stdout."""
    port = free_port()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    command = bench_command(
        "paced", "--proxy", f"127.0.0.1:{port}", "--source", f"127.0.0.1:{port}", *SHORT, "--rounds", 4, "--streams", 5
    )
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    with subprocess.Popen([*command, "--no-direct"], stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
        tables = process.communicate(timeout=60)[0].decode()
        os.close(ours)
    assert process.returncode == 0, shown.decode()
    assert b"Traceback" not in shown
    assert b"\x1b[" in shown
    assert b"round 4/4" in shown
    assert shown.count(b"last round") > 3
    assert "event latency p50" in tables
    assert "\x1b[" not in tables
