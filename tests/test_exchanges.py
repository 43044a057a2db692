"""Rule S2: what a proxy tells of single exchanges, those that ended and those that are alive, and `llmpipe explain`."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import explain_page
import pytest
from harness import (
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Mock,
    Proxy,
    answer_all,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)
from made_up import TRACEPARENT, record

from llmpipe import explanations, timeline
from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.config import ProcessSettings, parse_backend
from llmpipe.errors import UsageError
from llmpipe.exchanges import Exchanges, Query, parse_query
from llmpipe.fleet import Fleet, Server
from llmpipe.log import mask_secrets
from llmpipe.record_kinds import Attempt, ExchangeEnded

KEYS = {
    *(
        "request_id",
        "at",
        "client",
        "method",
        "path",
        "pool",
        "model",
        "backend",
        "status",
        "outcome",
        "phase",
        "reason",
    ),
    *(
        "error",
        "attempts",
        "bytes_up",
        "bytes_down",
        "events",
        "tokens",
        "traceparent",
        "duration",
        "times",
        "close_ms",
        "failed",
    ),
}

TIMES = {"head", "queued", "connected", "answered", "first", "last", "end"}

RECORD = record()
"""One that went through everything."""


def make_fleet() -> Fleet:
    fleet = Fleet()
    servers = []
    for name in ("gpu1", "gpu2"):
        backend = parse_backend(f"http://127.0.0.1:1?name={name}")
        servers.append(Server(f"{name}@127.0.0.1", backend, (("127.0.0.1", 1),)))
    fleet.number([1, 2], servers, {})
    return fleet


def ring(*records: ExchangeEnded, kept: int = 1000) -> Exchanges:
    exchanges = Exchanges(make_fleet(), kept, mask_secrets)
    for one in records:
        exchanges.note(one)
    return exchanges


def element(**changes: Any) -> dict[str, Any]:
    """What is shown of RECORD with changes."""
    (shown,) = ring(RECORD._replace(**changes)).show(Query(), ())["ended"]
    return shown


def live_element(**changes: Any) -> dict[str, Any]:
    (shown,) = ring().show(Query(), [RECORD._replace(age=0.0, **changes)])["live"]
    return shown


# What is shown of a record


def test_every_part_of_a_record_is_shown() -> None:
    began = time.time() - 10.5
    shown = element()
    assert set(shown) == KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", shown["at"])
    seconds = time.mktime(time.strptime(shown.pop("at")[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert began - 1 <= seconds <= time.time() - 10.5
    assert shown == {
        "request_id": "0123456789abcdef",
        "client": "192.0.2.7",
        "method": "POST",
        "path": "/v1/chat/completions?api_key=***",
        "pool": "chat",
        "model": "llama-é",
        "backend": "gpu2@127.0.0.1",
        "status": 200,
        "outcome": "ok",
        "phase": "stream",
        "reason": "ECONNREFUSED",
        "error": None,
        "attempts": 2,
        "bytes_up": 100,
        "bytes_down": 2000,
        "events": 66,
        "tokens": {"prompt": 7, "completion": 65, "cached": 0},
        "traceparent": TRACEPARENT.decode(),
        "duration": 10.0,
        "times": {
            "head": 0.5,
            "queued": 1.5,
            "connected": 1.6,
            "answered": 1.75,
            "first": 2.5,
            "last": 9.0,
            "end": 10.0,
        },
        "close_ms": None,
        "failed": [{"backend": "gpu1@127.0.0.1", "at": 1.55, "reason": "ECONNREFUSED"}],
    }


def test_what_is_not_known_or_did_not_happen_is_null() -> None:
    nothing = element(
        backend=None, client=b"", method=b"", target=b"", status=0, phase=PHASES.index("head"), ttft=None, pool=b"", model=b"",
        head=None, queued=0.0, connected=None, answered=None, last=None, prompt_tokens=None, completion_tokens=None,
        cached_tokens=None, traceparent=b"", failed=(), reason=0,
    )  # fmt: skip
    empty = {
        "client",
        "method",
        "path",
        "pool",
        "model",
        "backend",
        "status",
        "reason",
        "error",
        "traceparent",
        "close_ms",
    }
    assert {key for key, value in nothing.items() if value is None} == empty
    assert nothing["tokens"] == {"prompt": None, "completion": None, "cached": None}
    assert nothing["times"] == {**dict.fromkeys(TIMES), "end": 10.0}
    assert element(head=0.0)["times"]["head"] == 0.0, "a head that came in one piece was there at once"


def test_errors_and_the_time_of_a_close_are_shown() -> None:
    failed = element(error=104, reason=REASONS.index("ECONNRESET"), close_time=0.0000321)
    assert (failed["error"], failed["reason"], failed["close_ms"]) == ("ECONNRESET", "ECONNRESET", 0.032)
    assert element(error=4000)["error"] == "errno 4000"


def test_what_is_no_traceparent_is_not_shown() -> None:
    assert element(traceparent=b"Bearer sk-secret")["traceparent"] is None


def test_what_is_no_request_is_not_shown() -> None:
    shown = element(outcome=OUTCOMES.index("bad_request"), method=b"sk-secret", target=b"sk-secret")
    assert (shown["method"], shown["path"]) == (None, None)
    assert "sk-secret" not in json.dumps(shown)


def test_a_live_one_has_neither_an_outcome_nor_an_end() -> None:
    shown = live_element(outcome=OUTCOMES.index("shutdown"), last=None, ttft=None)
    assert set(shown) == KEYS
    assert (shown["outcome"], shown["times"]["end"], shown["phase"], shown["duration"]) == (None, None, "stream", 10.0)


def test_a_server_of_a_table_that_is_just_made_has_no_name_yet() -> None:
    assert live_element(backend=77)["backend"] is None


def test_live_ones_are_told_by_the_engines(proxy_to: Any) -> None:
    """Of all workers, each with what it has gone through so far."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n"))
        connection.wait_eof(30)

    proxy = proxy_to(script, options=["--workers", "2"])
    with ExitStack() as stack:
        for number in range(6):
            client = stack.enter_context(Client(proxy))
            client.send(
                b"POST /v1/chat HTTP/1.1\r\nHost: x\r\nX-Request-ID: live-one-%d\r\nContent-Length: 0\r\n\r\n" % number
            )
            client.read_head()
        waiting = stack.enter_context(Client(proxy))
        waiting.send(b"GET /half HTTP/1.1\r\nHost:")
        wait_until(lambda: len(exchanges_of(proxy)["live"]) == 7)
        shown = exchanges_of(proxy)
        assert not shown["ended"]
        assert [found["phase"] for found in shown["live"]] == ["head"] + ["stream"] * 6
        assert {found["request_id"] for found in shown["live"][1:]} == {f"live-one-{number}" for number in range(6)}
        (one,) = exchanges_of(proxy, "id=live-one-3")["live"]
        assert one["outcome"] is one["times"]["end"] is None
        assert 1 <= one["events"] <= 2
        assert (
            0
            <= one["times"]["connected"]
            <= one["times"]["answered"]
            <= one["times"]["first"]
            <= one["times"]["last"] + 1e-5
        )
        assert exchanges_of(proxy, "outcome=ok") == {"live": [], "ended": [], "kept": 1000}
    wait_until(lambda: len(exchanges_of(proxy)["ended"]) == 7)
    assert not exchanges_of(proxy)["live"]


# Which are shown


def test_the_newest_first_and_no_more_than_are_kept() -> None:
    records = [RECORD._replace(request_id=b"request-%d" % number) for number in range(10)]
    shown = ring(*records, kept=4).show(Query(), records[:3])
    assert [found["request_id"] for found in shown["ended"]] == [f"request-{number}" for number in (9, 8, 7, 6)]
    assert [found["request_id"] for found in shown["live"]] == ["request-0", "request-1", "request-2"]
    assert shown["kept"] == 4
    shown = ring(*records).show(Query(limit=2), records)
    assert [found["request_id"] for found in shown["ended"]] == ["request-9", "request-8"]
    assert len(shown["live"]) == 2


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("outcome=timeout_ttft", [1]),
        ("pool=small", [2]),
        ("model=qwen", [3]),
        ("backend=gpu1", [4, 3, 2, 1, 0]),  # it was tried in vain
        ("backend=gpu2@127.0.0.1", [3, 2, 1, 0]),
        ("backend=gpu3", []),
        ("id=other-id-1", [4]),
        ("id=other-id", [4]),
        ("id=other-", []),  # too short for a beginning
        ("id=0123456789abcdef&model=llama-%C3%A9", [2, 1, 0]),
        ("model=llama", []),
        ("pool=chat&outcome=ok&limit=1", [4]),
    ],
)
def test_filters(query: str, numbers: list[int]) -> None:
    changed: list[dict[str, Any]] = [
        {},
        {"outcome": OUTCOMES.index("timeout_ttft")},
        {"pool": b"small"},
        {"model": b"qwen"},
        {"request_id": b"other-id-1", "backend": 0},
    ]
    records = [RECORD._replace(bytes_up=number, **changes) for number, changes in enumerate(changed)]
    parsed = parse_query(query)
    shown = ring(*records).show(parsed, records[::-1])
    assert [found["bytes_up"] for found in shown["ended"]] == numbers
    assert [found["bytes_up"] for found in shown["live"]] == ([] if parsed.outcome else numbers[: parsed.limit])


def test_an_id_counts_more_than_one_that_begins_with_it() -> None:
    exchanges = ring(RECORD._replace(request_id=b"job-number-1"), RECORD._replace(request_id=b"job-number-12"))
    assert len(exchanges.show(parse_query("id=job-number-1"), ())["ended"]) == 1
    assert len(exchanges.show(parse_query("id=job-number-"), ())["ended"]) == 2


BAD = {
    "limit=0": "limit is from 1 to 1000",
    "limit=1001": "limit is from 1 to 1000",
    "limit=many": "'many' is not a whole number",
    "limit=": "the parameter limit is empty",
    "outcome=fine": "there is no outcome 'fine'; there are ok, client_abort",
    "ids=1": "the parameter 'ids' is unknown; there are limit, id",
    "id=1&id=2": "each parameter may be there once only",
    "verbose": "'verbose' is unknown",
}


@pytest.mark.parametrize("query", BAD)
def test_what_cannot_be_asked(query: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_query(query)
    assert BAD[query] in str(caught.value)


def test_a_thousand_are_less_than_a_megabyte_whatever_they_are() -> None:
    exchanges = ring()
    long = {
        "target": b"/" + b"x" * 95,
        "request_id": b"r" * 64,
        "model": b"m" * 256,
        "pool": b"p" * 64,
        "method": b"M" * 16,
    }
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(3000):
            exchanges.note(
                RECORD._replace(**long, duration=number / 7, bytes_down=number << 20, failed=RECORD.failed * 4)
            )
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(exchanges.show(Query(limit=1000), ())["ended"]) == 1000
    assert used < 1_000_000


def test_records_are_made_for_those_who_can_ask() -> None:
    assert not ProcessSettings(log_level="warning", exchanges_kept=0).access_records
    assert not ProcessSettings(log_level="warning", admin=None).access_records
    assert ProcessSettings(log_level="warning").access_records
    assert ProcessSettings(log_level="info", exchanges_kept=0, admin=None).access_records


# The time line


def kinds(shown: dict[str, Any]) -> list[str]:
    return [step.kind for step in timeline.make(shown)]


def test_the_steps_of_one_that_went_through_everything() -> None:
    steps = timeline.make(element())
    assert [(step.kind, round(step.begin, 6), round(step.seconds, 6)) for step in steps] == [
        ("head", 0.0, 0.5),
        ("queued", 0.5, 1.0),
        ("failed", 1.5, 0.05),
        ("connected", 1.55, 0.05),
        ("answered", 1.6, 0.15),
        ("first", 1.75, 0.75),
        ("last", 2.5, 6.5),
        ("end", 9.0, 1.0),
    ]
    assert [step.text for step in steps][2:4] == [
        "gpu1@127.0.0.1 tried in vain: ECONNREFUSED",
        "connected to gpu2@127.0.0.1",
    ]
    assert steps[6].text == "tokens: 65 in 6.5 s (10/s)"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("outcome", [*OUTCOMES, None])
def test_steps_have_no_gap_whatever_happened_and_whatever_did_not(phase: str, outcome: str | None) -> None:
    names = ["connected", "answered", "ttft", "last"]
    for count in range(len(names) + 1):
        changes = {**dict.fromkeys(names[count:]), "phase": PHASES.index(phase)}
        shown = live_element(**changes) if outcome is None else element(**changes, outcome=OUTCOMES.index(outcome))
        now = 0.0
        for step in timeline.make(shown):
            assert step.begin == pytest.approx(now)
            assert step.seconds >= 0
            now = step.begin + step.seconds
        assert now == pytest.approx(10.0)
        assert list(timeline.lines(shown))


def test_times_that_contradict_each_other_are_no_steps_back() -> None:
    steps = timeline.make(element(connected=0.1, answered=50.0))
    assert all(step.seconds >= 0 for step in steps)
    assert sum(step.seconds for step in steps) == pytest.approx(10.0)


def test_an_attempt_that_failed_behind_its_connect_is_no_step() -> None:
    failed = (Attempt(1, 8.0, REASONS.index("FIN in the body")),)
    assert "failed" not in kinds(element(failed=failed, outcome=OUTCOMES.index("upstream_abort")))
    assert kinds(element(failed=failed, connected=None, answered=None, ttft=None, last=None))[-2] == "failed"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "receiving the answer (65 %)"),
        ({"ttft": 8.0, "last": 9.0}, "waiting for the backend's first token (68 %)"),
        (
            {"queued": 6.0, "connected": 6.5, "answered": 6.5, "ttft": 6.1},
            "waiting in the queue for a free place (60 %)",
        ),
        (
            {"answered": 6.0, "ttft": 6.0},
            "waiting for the backend's answer to begin (44 %), receiving the answer (25 %)",
        ),
        ({"connected": 8.0, "answered": 8.0, "ttft": 7.5, "failed": ()}, "connecting to the backend (65 %)"),
        ({"head": 7.5}, "receiving the head of the request (75 %)"),
        ({"duration": 0.0}, "it took no time at all"),
    ],
)
def test_the_verdict_names_where_the_time_went(changes: dict[str, Any], says: str) -> None:
    assert timeline.verdict(element(**changes))[0] == f"where the time went: {says}"


@pytest.mark.parametrize(
    ("outcome", "phase", "says"),
    [
        ("timeout_ttft", "wait", "waiting for the backend's answer to begin (84 %)"),
        ("queue_timeout", "queue", "waiting in the queue for a free place (85 %)"),
        ("timeout_send", "blocked", "waiting for the client to take its answer (84 %)"),
        ("timeout_body", "body", "waiting for the request's body (84 %)"),
    ],
)
def test_the_verdict_on_one_that_waited_in_vain(outcome: str, phase: str, says: str) -> None:
    nothing = {"answered": None, "ttft": None, "last": None, "failed": ()}
    if phase == "queue":
        nothing |= {"connected": None}
    shown = element(outcome=OUTCOMES.index(outcome), phase=PHASES.index(phase), **nothing)
    assert timeline.verdict(shown)[0] == f"where the time went: {says}"


def test_the_text_has_what_a_stranger_needs() -> None:
    text = "\n".join(timeline.lines(element(reason=REASONS.index("ECONNREFUSED"), error=111)))
    assert "request  0123456789abcdef (POST /v1/chat/completions?api_key=***, model llama-é, from 192.0.2.7)\n" in text
    assert "way      pool chat, backend gpu2@127.0.0.1, 2 connections used\n" in text
    assert "The whole answer was forwarded.\n" in text
    assert "Nothing listens at the backend's address.\n" in text
    assert "in vain  gpu1@127.0.0.1 after 1.6 s: ECONNREFUSED\n" in text
    assert "bytes    100 from the client, 2000 to it\n" in text
    assert "tokens   7 prompt, 0 cached, 65 completion\n" in text
    assert re.search(r"^ +2\.5 s +6\.5 s +65 %  \|      #{16}  \|  tokens: 65 in 6\.5 s \(10/s\)$", text, re.MULTILINE)
    assert re.search(r"^ +10\.0 s  end$", text, re.MULTILINE)
    assert "so far" in "\n".join(timeline.lines(live_element()))
    unknown = "\n".join(timeline.lines(element(prompt_tokens=None, completion_tokens=None, cached_tokens=None)))
    assert "tokens   the backend did not say\n" in unknown
    assert "pieces of content: 66 in 6.5 s (10.2/s)" in unknown


def test_a_client_cannot_write_to_the_terminal() -> None:
    (line,) = [line for line in timeline.lines(element(model="a\x1b[2J\nb\u009bc".encode())) if "model" in line]
    assert "model a?[2J?b?c," in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00025, "0.25 ms"),
        (0.0042, "4.2 ms"),
        (0.0123, "12 ms"),
        (0.85, "850 ms"),
        (0.9996, "1.0 s"),
        (9.34, "9.3 s"),
        (100.4, "100 s"),
        (121, "2 min 1 s"),
        (3661, "61 min 1 s"),
    ],
)
def test_times_are_easy_to_read(seconds: float, text: str) -> None:
    assert timeline.format_seconds(seconds) == text


# What is said of outcomes and reasons


def test_every_outcome_and_every_reason_is_explained() -> None:
    assert tuple(explanations.OUTCOMES) == OUTCOMES
    assert sorted(explanations.REASONS) == sorted(REASONS[1:])
    assert {f"in {phase}" for phase in PHASES if phase != "tunnel"} < set(timeline.KINDS)
    for explained in (*explanations.OUTCOMES.values(), *explanations.REASONS.values()):
        assert all(text.endswith(".") and "|" not in text for text in explained)


def test_the_page_has_what_the_command_says() -> None:
    page = explain_page.PAGE.read_text()
    assert explain_page.filled(page) == page, "run .venv/bin/python tests/explain_page.py --write"


def test_the_example_of_the_page_is_what_is_printed_of_its_exchange() -> None:
    """Both were taken from a real proxy: what is printed of the same exchange now is the same."""
    assert set(explain_page.EXCHANGE) == KEYS
    assert set(explain_page.EXCHANGE["times"]) == TIMES
    drawn = "".join(f"{line}\n" for line in timeline.lines(explain_page.EXCHANGE))
    assert drawn == explain_page.PRINTED, "run .venv/bin/python tests/explain_page.py --real"


def test_the_list_of_reasons_for_operators_is_whole() -> None:
    listed = (explain_page.PAGE.parent / "http.md").read_text().partition("## Reasons")[2].partition("\n## ")[0]
    assert [reason for reason in REASONS[1:] if f"`{reason}`" not in listed] == []


# A real proxy


def question(*fields: str, target: str = "/v1/chat/completions") -> bytes:
    body = json.dumps({"model": "mock", "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    head = [
        "POST " + target + " HTTP/1.1",
        "Host: a",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
        *fields,
    ]
    return "\r\n".join([*head, "", body]).encode()


def exchanges_of(proxy: Proxy, query: str = "") -> dict[str, Any]:
    status, body = proxy.admin(f"/exchanges?{query}" if query else "/exchanges")
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def ended(proxy: Proxy, query: str, number: int = 1) -> list[dict[str, Any]]:
    """The exchanges that a query finds, once there are so many."""
    wait_until(lambda: len(exchanges_of(proxy, query)["ended"]) >= number, TIMEOUT, f"{number} exchanges of {query}")
    found: list[dict[str, Any]] = exchanges_of(proxy, query)["ended"]
    return found


def run_explain(proxy: Proxy | str, *words: str) -> subprocess.CompletedProcess[str]:
    admin = proxy if isinstance(proxy, str) else f"http://127.0.0.1:{proxy.admin_port}"
    command = [sys.executable, "-m", "llmpipe", "explain", *words, "--admin", admin]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(scope="module")
def mock() -> Iterator[Mock]:
    with Mock("--ttft", "100ms", "--tokens", "5") as mock:
        yield mock


@pytest.fixture(scope="module")
def mocked(mock: Mock) -> Iterator[Proxy]:
    """A proxy in front of the mock."""
    with Proxy(mock.url) as proxy:
        yield proxy


def test_an_exchange_is_kept_as_its_access_line_has_it(mocked: Proxy, mock: Mock) -> None:
    with Client(mocked) as client:
        target = "/v1/chat/completions?api_key=sk-secret"
        fields = ("X-Request-ID: as-the-line", "Authorization: Bearer sk-secret", "traceparent: sk-secret")
        client.send(question(*fields, target=target))
        assert client.read_response().status == 200
    (found,) = ended(mocked, "id=as-the-line")
    wait_until(lambda: any(line["request_id"] == "as-the-line" for line in mocked.access()))
    (line,) = [line for line in mocked.access() if line["request_id"] == "as-the-line"]
    same = (
        "client",
        "method",
        "path",
        "status",
        "outcome",
        "phase",
        "backend",
        "bytes_up",
        "bytes_down",
        "attempts",
        "close_ms",
    )
    assert {key: found[key] for key in same} == {key: line[key] for key in same}
    assert found["path"] == "/v1/chat/completions?api_key=***"
    assert found["backend"] == mock.url
    assert found["duration"] == found["times"]["end"] == pytest.approx(line["duration_ms"] / 1000, abs=1e-5)
    assert 0.1 <= found["times"]["first"] <= found["times"]["end"]
    assert "sk-secret" not in json.dumps(exchanges_of(mocked))


def test_explain_tells_of_it(mocked: Proxy, mock: Mock) -> None:
    with Client(mocked) as client:
        client.send(question("X-Request-ID: tell-me-of-this-one"))
        client.read_response()
    (found,) = ended(mocked, "id=tell-me-of-this-one")
    for words in (["tell-me-of-this-one"], ["tell-me-"]):
        done = run_explain(mocked, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("request  tell-me-of-this-one (POST /v1/chat/completions")
        assert f"backend {mock.url}, 1 connection used" in done.stdout
        assert "outcome  ok, status 200" in done.stdout
        assert "\nwhere the time went: " in done.stdout
    done = run_explain(mocked, "tell-me-of-this-one", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [found]


def test_explain_lists_all_exchanges_of_an_id_the_newest_first(mocked: Proxy) -> None:
    with Client(mocked) as client:
        for target in ("/v1/models?limit=1", "/v1/models?limit=2"):
            client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nX-Request-ID: twice-the-same\r\n\r\n".encode())
            assert client.read_response().status == 200
            time.sleep(0.01)  # they began in other milliseconds
    ended(mocked, "id=twice-the-same", 2)
    done = run_explain(mocked, "twice-the-same")
    assert done.returncode == 0
    assert re.findall(r"^(\d of 2) exchanges|limit=(\d)", done.stdout, re.MULTILINE) == [
        ("1 of 2", ""),
        ("", "2"),
        ("2 of 2", ""),
        ("", "1"),
    ]


def test_explain_wants_more_of_an_id_that_is_not_the_only_one(mocked: Proxy) -> None:
    with Client(mocked) as client:
        for name in ("ambiguous-1", "ambiguous-2"):
            client.send(f"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Request-ID: {name}\r\n\r\n".encode())
            assert client.read_response().status == 200
    ended(mocked, "id=ambiguous", 2)
    done = run_explain(mocked, "ambiguous")
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 requests have an id that begins with ambiguous; write more of it: ambiguous-" in done.stderr
    assert run_explain(mocked, "ambiguous-2").returncode == 0


def test_explain_says_what_to_do_about_an_id_that_nobody_knows(mocked: Proxy) -> None:
    done = run_explain(mocked, "nobody-knows-this")
    assert (done.returncode, done.stdout) == (1, "")
    assert "It keeps the last 1000 (--exchanges-kept): this one is older, or another process had it" in done.stderr
    done = run_explain(mocked, "nobody")
    assert done.returncode == 1
    assert "write 8 characters of it or more" in done.stderr


def test_explain_cannot_ask_what_is_no_admin_endpoint(mocked: Proxy) -> None:
    done = run_explain(f"127.0.0.1:{free_port()}", "any")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be asked" in done.stderr
    assert "--admin" in done.stderr
    done = run_explain(mocked.url, "any")  # where clients go
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "answered 404" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:  # says nothing that is HTTP
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "llmpipe", "explain", "any", "--admin", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            listener.settimeout(TIMEOUT)
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-something\r\n\r\n")
            _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert "no HTTP answer" in said


def test_explain_asks_an_endpoint_behind_another_proxy() -> None:
    asked = []

    def script(connection: Connection) -> None:
        asked.append(connection.read_request().line)
        respond(connection, json.dumps({"live": [], "ended": [explain_page.EXCHANGE], "kept": 1000}).encode())

    with Backend(script) as edge:
        done = run_explain(f"{edge.url}/llmpipe/", explain_page.EXCHANGE["request_id"])
    assert (done.returncode, done.stdout, done.stderr) == (0, explain_page.PRINTED, "")
    assert asked == [b"GET /llmpipe/exchanges?id=%b&limit=1000 HTTP/1.1" % explain_page.EXCHANGE["request_id"].encode()]


@pytest.mark.parametrize("query", BAD)
def test_a_wrong_question_is_a_400_with_one_line(mocked: Proxy, query: str) -> None:
    status, body = mocked.admin(f"/exchanges?{query}")
    assert status == 400
    assert len(body.splitlines()) == 1
    assert BAD[query] in json.loads(body)["error"]


def admin_of_quiet(process: subprocess.Popen[str], port: int) -> Callable[[], list[str]]:
    """Asks a proxy that says nothing for the paths that it keeps, once it is there."""

    def paths() -> list[str]:
        assert process.poll() is None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/exchanges")
            return [found["path"] for found in json.loads(connection.getresponse().read())["ended"]]
        except ConnectionRefusedError:
            return []
        finally:
            connection.close()

    return paths


def test_they_are_kept_although_no_access_line_is_written_and_no_more_than_wanted() -> None:
    port, admin = free_port(), free_port()
    with Backend(answer_all) as backend:
        command = [
            sys.executable,
            "-m",
            "llmpipe",
            "serve",
            "--listen",
            f"127.0.0.1:{port}",
            "--admin",
            f"127.0.0.1:{admin}",
        ]
        command += ["--backend", backend.url, "--log-level", "warning", "--exchanges-kept", "3"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                paths = admin_of_quiet(process, admin)

                def ask(number: int) -> bool:
                    with (
                        suppress(ConnectionRefusedError),
                        socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock,
                    ):
                        sock.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % number)
                        return b" 200 " in sock.makefile("rb").read()
                    return False

                wait_until(lambda: ask(0), what="it serves")
                assert all(map(ask, range(1, 5)))
                wait_until(lambda: paths() == ["/4", "/3", "/2"], what="the last three")
            finally:
                process.terminate()
                _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (0, "")


def test_none_are_kept_where_none_are_wanted(proxy_to) -> None:
    proxy = proxy_to(answer_all, options=["--exchanges-kept", "0"])
    with Client(proxy) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: not-kept-at-all\r\n\r\n")
        assert client.read_response().status == 200
    proxy.access(1)
    assert exchanges_of(proxy) == {"live": [], "ended": [], "kept": 0}
    done = run_explain(proxy, "not-kept-at-all")
    assert done.returncode == 1
    assert "start it with --exchanges-kept" in done.stderr


def test_a_failure_is_explained(proxy_to) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}")
    with Client(proxy) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: nobody-was-there\r\n\r\n")
        assert client.read_response().status == 502
    (found,) = ended(proxy, "outcome=connect_error")
    assert (found["request_id"], found["reason"], found["status"]) == ("nobody-was-there", "ECONNREFUSED", 502)
    done = run_explain(proxy, "nobody-was-there")
    assert done.returncode == 0
    assert explanations.OUTCOMES["connect_error"].meaning in done.stdout
    assert explanations.REASONS["ECONNREFUSED"].advice in done.stdout


def test_a_client_that_left_is_explained(proxy_to) -> None:
    def begin(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.wait_eof()

    proxy = proxy_to(begin)
    with Client(proxy) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: it-left-early\r\n\r\n")
        client.recv_until(b"data: 1\n\n")
    (found,) = ended(proxy, "id=it-left-early")
    assert (found["outcome"], found["close_ms"] is None) == ("client_abort", False)
    assert "after the client had left" in run_explain(proxy, "it-left-early").stdout
