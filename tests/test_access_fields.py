"""What stands in an access line, of records that are made up; which exchanges have one; and the page that tells of it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Backend, Client, Connection, Proxy, respond
from made_up import FLEET, OUTCOME, REASON, record
from made_up import TRACEPARENT as PARENT

from llmpipe import access_log, log, trace_context
from llmpipe.record_kinds import Attempt

PAGE = (Path(__file__).parents[1] / "docs" / "access-log.md").read_text()


def line(**changes: Any) -> dict[str, object]:
    return access_log.fields(record(**changes), FLEET, log.mask_secrets)


def test_each_field_of_a_whole_exchange() -> None:
    assert line() == {
        "client": "192.0.2.7",
        "method": "POST",
        "path": "/v1/chat/completions?api_key=***",
        "status": 200,
        "outcome": "ok",
        "phase": "stream",
        "backend": "gpu2",
        "ttft_ms": 2000.0,
        "duration_ms": 10_000.0,
        "bytes_up": 100,
        "bytes_down": 2000,
        "attempts": 2,
        "reason": "ECONNREFUSED",
        "request_id": "0123456789abcdef",
        "close_ms": None,
        "pool": "chat",
        "model": "llama-é",
        "queued_ms": 1000.0,
        "connect_ms": 100.0,
        "answered_ms": 1750.0,
        "tokens_prompt": 7,
        "tokens_completion": 65,
        "tokens_cached": 0,
        "events": 66,
        "failed": ("gpu1:ECONNREFUSED",),
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "parent_id": "b7ad6b7169203331",
    }


def test_what_is_not_known_is_null_and_a_zero_is_not() -> None:
    nothing = line(
        status=0, ttft=None, reason=0, pool=b"", model=b"", queued=0.0, connected=None, answered=None, last=None, events=0,
        prompt_tokens=None, completion_tokens=0, cached_tokens=None, traceparent=b"", failed=(), backend=None,
    )  # fmt: skip
    nulls = {name for name, value in nothing.items() if value is None}
    assert nulls == {
        *("status", "ttft_ms", "reason", "close_ms", "pool", "model", "connect_ms", "answered_ms", "tokens_prompt"),
        *("tokens_cached", "failed", "trace_id", "parent_id", "backend"),
    }
    assert (nothing["queued_ms"], nothing["events"], nothing["tokens_completion"]) == (0.0, 0, 0)


def test_a_connection_that_was_there_before_the_head_took_no_time() -> None:
    assert line(connected=0.05)["connect_ms"] == 0.0


def test_a_model_whose_name_was_cut_inside_of_a_letter_is_text() -> None:
    assert line(model="ü".encode()[:1])["model"] == "\ufffd"


def test_failed_attempts_of_a_text_line_stand_behind_each_other() -> None:
    failed = line(failed=(Attempt(1, 0.1, REASON("ECONNREFUSED")), Attempt(2, 0.2, REASON("FIN before the head"))))[
        "failed"
    ]
    assert failed == ("gpu1:ECONNREFUSED", "gpu2:FIN before the head")
    assert log.TextFormatter._value(failed) == '"gpu1:ECONNREFUSED,gpu2:FIN before the head"'
    assert log.TextFormatter._value(None) == "-"


def test_what_was_no_request_line_is_not_shown() -> None:
    shown = line(outcome=OUTCOME("bad_request"), method=b"secret", target=b"/secret")
    assert (shown["method"], shown["path"]) == ("", "")


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (PARENT, ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)),
        (PARENT[:-2] + b"00", ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 0)),
        (b"cc" + PARENT[2:], ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)),
        (
            b"cc" + PARENT[2:] + b"-what-a-later-version-adds",
            ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1),
        ),
        (b"cc" + PARENT[2:] + b".more", None),
        (b"", None),
        (b"ff" + PARENT[2:], None),
        (PARENT + b"-more", None),
        (PARENT + b"-", None),
        (PARENT + b"\n", None),
        (b" " + PARENT, None),
        (PARENT[:-1], None),
        (PARENT.upper(), None),
        (PARENT.replace(b"-", b"_"), None),
        (b"00-" + b"0" * 32 + PARENT[35:], None),
        (PARENT[:36] + b"0" * 16 + b"-01", None),
        (PARENT[:-1] + b"g", None),
        (PARENT[:-2] + b"+1", None),
    ],
)
def test_traceparent_is_read_to_the_letter_or_not_at_all(field: bytes, found: tuple[str, str, int] | None) -> None:
    assert trace_context.parse(field) == found
    shown = line(traceparent=field)
    assert (shown["trace_id"], shown["parent_id"]) == (found[:2] if found else (None, None))


@pytest.mark.parametrize("field", [PARENT, b"01-whatever a client writes", b"00-" + b"0" * 32 + b"-0-0"])
def test_the_backend_gets_the_trace_as_the_client_sent_it(
    serve: Callable[..., None], proxy: Proxy, client: Client, field: bytes
) -> None:
    got: list[list[bytes]] = []

    def note(connection: Connection) -> None:
        request = connection.read_request()
        got.append(request.values(b"traceparent") + request.values(b"tracestate"))
        respond(connection)

    serve(note)
    client.request(b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: %s\r\ntracestate: a=1,b=2\r\n\r\n" % field)
    assert got == [[field, b"a=1,b=2"]]


def test_a_sample_is_the_same_everywhere_and_as_large_as_was_asked_for() -> None:
    ids = [b"%032x" % number for number in range(20_000)]
    for rate in (0.01, 0.25, 0.9):
        kept = {request_id for request_id in ids if access_log.is_kept(request_id, rate)}
        # Other programs find the same ones: the rule is in the docs.
        assert kept == {request_id for request_id in ids if zlib.crc32(request_id) / 2**32 < rate}
        assert rate * 0.9 < len(kept) / len(ids) < rate * 1.1
    assert all(access_log.is_kept(request_id, 1.0) for request_id in ids)
    assert not any(access_log.is_kept(request_id, 0.0) for request_id in ids)
    assert access_log.is_kept(b"id-1", 0.9) == access_log.is_kept(b"id-1", 0.9)


@pytest.mark.parametrize(
    ("changes", "always"),
    [
        ({"reason": 0}, False),
        ({"reason": 0, "status": 404}, False),
        ({"reason": 0, "status": 500}, True),
        ({"status": 200}, True),  # an attempt failed
        ({"reason": 0, "outcome": OUTCOME("client_abort")}, True),
        ({"reason": 0, "outcome": OUTCOME("upstream_abort")}, True),
        ({"reason": 0, "outcome": OUTCOME("queue_full")}, True),
    ],
)
def test_what_is_written_whatever_the_sample_is(changes: dict[str, Any], always: bool) -> None:
    assert access_log.is_always_kept(record(**changes)) == always


def test_a_proxy_writes_the_sample_and_all_that_went_wrong(proxy_to: Callable[..., Proxy]) -> None:
    def script(connection: Connection) -> None:
        while True:
            request = connection.read_request()
            if b"/broken" in request.line:
                connection.reset()
                return
            respond(connection)

    ids = [b"request-%d" % number for number in range(100)]
    kept = {request_id.decode() for request_id in ids if access_log.is_kept(request_id, 0.2)}
    assert 5 < len(kept) < 50
    with Backend(script) as backend:
        proxy = proxy_to(backend, options=["--access-sample", "0.2"])
        with Client(proxy) as client:
            for request_id in ids:
                assert (
                    client.request(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\n\r\n" % request_id).status == 200
                )
        with Client(proxy) as client:
            dropped = next(request_id for request_id in ids if request_id.decode() not in kept)
            ask = b"GET /broken HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\n\r\n" % dropped
            assert client.request(ask).status == 502
        # Lines are in the order of their exchanges: behind the last one nothing more can come.
        lines = proxy.access(1, path="/broken")
        assert lines[0]["request_id"] == dropped.decode()
        assert {found["request_id"] for found in proxy.access() if found["path"] == "/"} == kept


def test_the_page_has_every_field_with_its_type() -> None:
    table = PAGE.partition("| field | type |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in found.split("|")[1:-1]] for found in table.splitlines()[2:]]
    names = [found[0].strip("`") for found in rows]
    assert names == ["time", "level", "event", *line()]
    kinds = {"string": str, "integer": int, "number": float, "array of strings": tuple}
    whole = {"time": "", "level": "", "event": "", **line(close_time=0.001)}
    empty = line(
        status=0, ttft=None, reason=0, pool=b"", model=b"", connected=None, answered=None, prompt_tokens=None,
        completion_tokens=None, cached_tokens=None, traceparent=b"", failed=(), backend=None,
    )  # fmt: skip
    for name, kind, unit, null, meaning in rows:
        assert type(whole[name.strip("`")]) is kinds[kind], name
        assert (unit == "ms") == name.strip("`").endswith("_ms"), name
        assert (null == "never") == (empty.get(name.strip("`"), "") is not None), name
        assert meaning


def test_the_page_says_what_the_sample_is() -> None:
    assert "crc32" in PAGE
    assert re.search(r"zlib\.crc32\(request_id\) < rate \* 2\*\*32", PAGE)
