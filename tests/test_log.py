"""Log lines: their two formats, what must not stand in them, and that nobody waits for them."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator

import pytest
from harness import wait_until

from llmpipe import log

NASTY = 'a "b"\\ \r\n\x00\x1b[31m\x7f\x85\u2028=\ud800'


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


class StuckStream(io.StringIO):
    """Writes nothing until it is let go, like a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.stuck = threading.Event()

    def write(self, text: str) -> int:
        self.stuck.set()
        assert self.go.wait(30)
        return super().write(text)


@pytest.fixture
def stuck() -> Iterator[StuckStream]:
    stream = StuckStream()
    yield stream
    stream.go.set()


def test_text_lines(stream: io.StringIO) -> None:
    lines = log.Log("text", "info", stream)
    log.info("listening", address="127.0.0.1:8080", workers=2, backend=None)
    lines.close()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info +listening address=127\.0\.0\.1:8080 workers=2 backend=-\n",
        stream.getvalue(),
    )


def test_json_lines(stream: io.StringIO) -> None:
    lines = log.Log("json", "info", stream)
    log.warning("backend left out", backend="http://[::1]:80", seconds=0.1, errno=None)
    lines.close()
    line = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "event": "backend left out",
        "backend": "http://[::1]:80",
        "seconds": 0.1,
        "errno": None,
    }


def test_the_time_is_utc_and_that_of_the_event(stream: io.StringIO) -> None:
    lines = log.Log("json", "info", stream)
    log.event(logging.INFO, "access", {}, at=0.0625)
    lines.close()
    assert json.loads(stream.getvalue())["time"] == "1970-01-01T00:00:00.062Z"


@pytest.mark.parametrize("style", ["text", "json"])
def test_values_cannot_break_or_forge_a_line(stream: io.StringIO, style: str) -> None:
    lines = log.Log(style, "info", stream)
    log.info("access", path=NASTY, status=200)
    lines.close()
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text.isascii()
    assert text[:-1].isprintable()
    if style == "json":
        assert json.loads(text)["path"] == NASTY
    else:
        assert json.loads(text.partition("path=")[2].rpartition(" status=")[0]) == NASTY


def test_lines_of_libraries_stay_one_line(stream: io.StringIO) -> None:
    lines = log.Log("text", "info", stream)
    logging.getLogger("uvicorn.error").error("Exception in\nASGI application %d\n", 7)
    logging.getLogger("uvicorn.error").info("not of interest")
    lines.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("Exception in ASGI application 7\n")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(stream: io.StringIO, level: str, written: list[str]) -> None:
    lines = log.Log("json", level, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("x")
    assert log.enabled(logging.INFO) == ("info" in written)
    lines.close()
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == written


KEYS = [
    *(
        "key",
        "api_key",
        "api-key",
        "token",
        "access_token",
        "API_KEY",
        "apikey",
        "apiKey",
        "X-Api-Key",
        "api%5Fkey",
        "k%65y",
    ),
    *(
        "x-goog-signature",
        "X-Amz-Security-Token",
        "X-Amz-Credential",
        "sig",
        "client_secret",
        "clientSecret",
        "password",
        "pwd",
    ),
    *("authToken", "Authorization", "jwt", "session", "a.key", "key[]"),
]


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "place", ["/v1?{}", "/v1?a=1&{}", "/v1?{}&b=2", "/v1?a=1&{}&b=2", "/v1?a=1;{}", "/v1?a=1?{}&b=2"]
)
def test_values_of_keys_are_masked(name: str, place: str) -> None:
    masked = log.mask_secrets(place.format(f"{name}=sk-very/secret%20=x;y?z"))
    assert masked == place.format(f"{name}=***")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("http://user:pass@host/v1", "http://***@host/v1"),
        ("HTTP://user:p@ss@host:80?a=1", "HTTP://***@host:80?a=1"),
        ("http://user:p?ss@host/v1", "http://***@host/v1"),
        ("user:pass@host:443", "***@host:443"),
        ("http://user:" + "p" * 80, "http://***@"),
    ],
)
def test_users_are_masked(target: str, shown: str) -> None:
    assert log.mask_secrets(target) == shown


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/v1/key=x",
            "/v1?keyboard=x",
            "/v1?monkey=x",
            "/v1?max_tokens=3",
            "/",
            "*",
            "/?",
            "/?key",
            "/?top_k=1&a=&=&b=c;d=e",
        ),
        *("/@me?to=a@b", "http://host/@me", "host:443", "/v1?author=x&bypass=1&tokens=3"),
    ],
)
def test_nothing_else_is_masked(target: str) -> None:
    assert log.mask_secrets(target) == target


def test_a_full_queue_drops_and_counts_and_nobody_waits(stuck: StuckStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 10)
    lines = log.Log("json", "info", stuck)
    log.info("first")
    assert stuck.stuck.wait(30)
    for number in range(15):
        log.info("more", number=number)  # would never return if it waited
    assert lines.dropped == 5
    stuck.go.set()
    lines.close()
    written = [json.loads(line) for line in stuck.getvalue().splitlines()]
    assert [line.get("number") for line in written] == [None, *range(10)]


def test_closing_with_a_full_queue_writes_all_of_it(stuck: StuckStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 3)
    lines = log.Log("json", "info", stuck)
    log.info("first")
    assert stuck.stuck.wait(30)
    for _ in range(3):
        log.info("more")
    closing = threading.Thread(target=lines.close, daemon=True)
    closing.start()
    # It has nothing to say before it waits: that its handler is gone shows that it has begun.
    wait_until(lambda: not logging.getLogger("llmpipe").handlers)
    assert closing.is_alive()
    stuck.go.set()
    closing.join(30)
    assert not closing.is_alive()
    assert stuck.getvalue().count("\n") == 4


def test_close_twice(stream: io.StringIO) -> None:
    lines = log.Log("text", "info", stream)
    log.info("x")
    lines.close()
    lines.close()
    log.info("y")
    assert stream.getvalue().count("\n") == 1
