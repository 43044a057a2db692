"""Log lines: their two formats, what must not stand in them, and that nobody waits for them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until

from llmpipe import log

NASTY = 'a "b"\\ \r\n\x00\x1b[31m\x7f\x85\u2028=\ud800'


class Written:
    """A file that lines are written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.descriptor = self._file.fileno()

    def getvalue(self) -> str:
        return self._path.read_text()

    def close(self) -> None:
        self._file.close()


class StuckPipe:
    """A pipe that is full, until it is read."""

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        os.set_blocking(self.descriptor, False)
        self._filler = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._filler += os.write(self.descriptor, b"x" * 4096)
        os.set_blocking(self.descriptor, True)
        self._got = bytearray()
        self._reader = threading.Thread(target=self._read_all, daemon=True)

    def _read_all(self) -> None:
        while data := os.read(self._read, 65536):
            self._got += data

    def go(self) -> None:
        """Reads from now on."""
        self._reader.start()

    def getvalue(self) -> str:
        """What was written since the pipe was full."""
        return self._got[self._filler :].decode()

    def lines(self, n: int) -> list[dict[str, Any]]:
        """The lines, once there are `n`."""
        wait_until(lambda: self.getvalue().count("\n") >= n)
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def close(self) -> None:
        os.close(self.descriptor)
        if self._reader.ident is not None:
            self._reader.join(30)
        os.close(self._read)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Written]:
    with contextlib.closing(Written(tmp_path / "log")) as stream:
        yield stream


@pytest.fixture
def stuck() -> Iterator[StuckPipe]:
    with contextlib.closing(StuckPipe()) as stuck:
        yield stuck


def test_text_lines(stream: Written) -> None:
    lines = log.Log("text", "info", stream.descriptor)
    log.info("listening", address="127.0.0.1:8080", workers=2, backend=None)
    lines.close()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info +listening address=127\.0\.0\.1:8080 workers=2 backend=-\n",
        stream.getvalue(),
    )


def test_json_lines(stream: Written) -> None:
    lines = log.Log("json", "info", stream.descriptor)
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


def test_the_time_is_utc_and_that_of_the_event(stream: Written) -> None:
    lines = log.Log("json", "info", stream.descriptor)
    log.event(logging.INFO, "access", {}, at=0.0625)
    lines.close()
    assert json.loads(stream.getvalue())["time"] == "1970-01-01T00:00:00.062Z"


@pytest.mark.parametrize("style", ["text", "json"])
def test_values_cannot_break_or_forge_a_line(stream: Written, style: str) -> None:
    lines = log.Log(style, "info", stream.descriptor)
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


def test_lines_of_libraries_stay_one_line(stream: Written) -> None:
    lines = log.Log("text", "info", stream.descriptor)
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
def test_levels(stream: Written, level: str, written: list[str]) -> None:
    lines = log.Log("json", level, stream.descriptor)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("x")
    assert log.enabled(logging.INFO) == ("info" in written)
    lines.close()
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == written


SECRET = "sk-very/secret%20x"

SECRETS = [
    *(
        f"{name}={SECRET}"
        for name in ("key", "api_key", "API_KEY", "X-Api-Key", "sig", "code", "subscriptionKey", "k", "a.key")
    ),
    *(
        f"{name}={SECRET}"
        for name in ("key[]", "key[0]", "auth[token]", "$key", "api%5Fkey", "api%255Fkey", "%61pi_key")
    ),
    *(
        f"url=http://u:{SECRET}@h",
        f"redirect_uri=https%3A%2F%2Fh%3Fcode%3D{SECRET}",
        f"a=1;key={SECRET}",
        f"a=1?key={SECRET}",
    ),
    *(
        f"limit=1;key={SECRET}",
        f"limit=1?key={SECRET}",
        f"limit=1#key={SECRET}",
        f"limit=1%26key%3D{SECRET}",
        f"Limit={SECRET}",
    ),
    *(
        f"limit={SECRET * 9}",
        f"model=u:{SECRET}@h",
        f"stream%3D{SECRET}",
        f"li%6Dit={SECRET}",
        f" limit={SECRET}",
        f"a=b={SECRET}",
    ),
    *(
        SECRET,
        f"{SECRET}=1",
        f"key:{SECRET}=1",
        f"={SECRET}",
        f"==&={SECRET}",
        f"#key={SECRET}",
        f"?{SECRET}",
        f";{SECRET}",
    ),
]
"""Parameters, of which none may show its value."""


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize(
    "place",
    ["/v1?{}", "/v1?limit=1&{}", "/v1?{}&limit=2", "/v1?a=1;{}", "/v1?a=1?{}", "/v1?a=1#{}", "http://h/v1?{}&b=2"],
)
def test_values_of_parameters_are_masked(text: str, place: str) -> None:
    masked = log.mask_secrets(place.format(text))
    assert "secret" not in masked
    assert masked.startswith(place.partition("?")[0] + "?")
    assert "***" in masked


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/v1?api_key=x&limit=20&b=2", "/v1?api_key=***&limit=20&b=***"),
        ("/v1?api-version=2024-10-21&key[0]=x&alt=sse", "/v1?api-version=2024-10-21&key[0]=***&alt=sse"),
        ("/v1?model=Qwen/Qwen2.5-7B:latest", "/v1?model=Qwen/Qwen2.5-7B:latest"),
        ("/v1?a=&limit=&b", "/v1?a=&limit=&***"),
        ("/v1?api%255Fkey=x", "/v1?***"),
        ("/v1?a=1;key=x", "/v1?a=***"),
        ("/v1;key=x?limit=1", "/v1;***?limit=1"),
        ("/v1#access_token=x", "/v1#***"),
        ("/v1&key=x", "/v1&***"),
        ("/v1/key=x", "/v1/key=***"),
        ("/v1%3Fkey%3Dx", "/v1%3F***"),
        ("/v1%25253fkey=x", "/v1%25253f***"),
        ("/proxy/http://u:x@h/v1", "/proxy/http://***@h/v1"),
        ("/proxy/u%3Ax%2540h/v1", "/proxy/***@h/v1"),
        ("http://h:80/v1?key=x", "http://h:80/v1?key=***"),
    ],
)
def test_what_is_shown_of_a_target(target: str, shown: str) -> None:
    assert log.mask_secrets(target) == shown


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("http://user:pass@host/v1", "http://***@host/v1"),
        ("HTTP://user:p@ss@host:80?limit=1", "HTTP://***@host:80?limit=1"),
        ("http://user:p?ss@host/v1", "http://***@host/v1"),
        ("user:pass@host:443", "***@host:443"),
        ("http://user:" + "p" * 80, "http://***@"),
    ],
)
def test_users_are_masked(target: str, shown: str) -> None:
    assert log.mask_secrets(target) == shown
    assert log.mask_user(target) == shown


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/",
            "*",
            "/?",
            "/v1/chat/completions",
            "/v1?limit=3&order=desc",
            "/v1/models/a:b",
            "/@me?limit=1",
            "http://host/@me",
        ),
        *(
            "host:443",
            "/v1?stream=true&n=2&alt=sse",
            "/v1beta/models/x:streamGenerateContent?alt=sse",
            "/?limit=1&&n=2",
            "/%20a",
        ),
    ],
)
def test_nothing_else_is_masked(target: str) -> None:
    assert log.mask_secrets(target) == target


def wait_begun(stuck: StuckPipe, lines: log.Log) -> None:
    """Waits until the first line is out of the queue."""
    wait_until(lines._handler.queue.empty)


def test_a_full_queue_drops_and_counts_and_nobody_waits(stuck: StuckPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 10)
    lines = log.Log("json", "info", stuck.descriptor)
    log.info("first")
    wait_begun(stuck, lines)
    for number in range(15):
        log.info("more", number=number)  # would never return if it waited
    assert lines.dropped == 5
    stuck.go()
    written = stuck.lines(11)
    assert [line.get("number") for line in written] == [None, *range(10)]
    lines.close()
    last = stuck.lines(12)[11]
    assert (last["event"], last["level"], last["lines"]) == ("log lines dropped", "warning", 5)


def test_closing_with_a_full_queue_writes_all_of_it(stuck: StuckPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 3)
    monkeypatch.setattr(log, "CLOSE_SILENCE", 30.0)
    monkeypatch.setattr(log, "CLOSE_LIMIT", 40.0)
    lines = log.Log("json", "info", stuck.descriptor)
    log.info("first")
    wait_begun(stuck, lines)
    for _ in range(3):
        log.info("more")
    closing = threading.Thread(target=lines.close, daemon=True)
    closing.start()
    # It has nothing to say before it waits: that its handler is gone shows that it has begun.
    wait_until(lambda: not logging.getLogger("llmpipe").handlers)
    assert closing.is_alive()
    stuck.go()
    closing.join(30)
    assert not closing.is_alive()
    assert len(stuck.lines(4)) == 4
    assert lines.dropped == 0


def test_closing_ends_where_nobody_reads_and_counts_what_is_lost(
    stuck: StuckPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "CLOSE_SILENCE", 0.3)
    lines = log.Log("json", "info", stuck.descriptor)
    for _ in range(100):
        log.info("more")
    start = time.monotonic()
    lines.close()
    assert 0.3 < time.monotonic() - start < 20
    assert lines.dropped == 100


def test_a_reader_that_goes_on_slowly_does_not_hold_the_end_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece that is taken is a sign of life; so there is a limit on all of them."""
    monkeypatch.setattr(log, "CLOSE_LIMIT", 1.0)
    with contextlib.closing(StuckPipe()) as stuck:
        lines = log.Log("json", "info", stuck.descriptor)
        for _ in range(5000):
            log.info("more", text="x" * 100)
        stop = threading.Event()

        def sip() -> None:
            while not stop.wait(0.05):
                os.read(stuck._read, 4096)

        sipping = threading.Thread(target=sip, daemon=True)
        sipping.start()
        start = time.monotonic()
        lines.close()
        assert time.monotonic() - start < 20
        assert 0 < lines.dropped < 5000
        stop.set()
        sipping.join(30)


def test_what_a_broken_pipe_does_not_take_is_counted() -> None:
    read, write = os.pipe()
    os.close(read)
    lines = log.Log("json", "info", write)
    for _ in range(3):
        log.info("x")
    wait_until(lambda: lines.dropped == 3)
    lines.close()
    os.close(write)
    assert lines.dropped == 4  # and the line that says so


def test_a_descriptor_that_does_not_wait_gets_whole_lines(stuck: StuckPipe) -> None:
    """Another process that has the same pipe may have set that."""
    os.set_blocking(stuck.descriptor, False)
    lines = log.Log("json", "info", stuck.descriptor)
    for number in range(100):
        log.info("x", number=number, text="x" * 9000)
    stuck.go()
    assert [line["number"] for line in stuck.lines(100)] == list(range(100))
    lines.close()
    assert lines.dropped == 0


def test_a_line_that_cannot_be_formatted_stops_nothing(stream: Written) -> None:
    lines = log.Log("json", "info", stream.descriptor)
    logging.getLogger("uvicorn.error").error("%d of %d", 1)  # noqa: PLE1206 - that is what is tried
    log.info("next")
    lines.close()
    assert "could not be formatted" in stream.getvalue().splitlines()[0]
    assert json.loads(stream.getvalue().splitlines()[1])["event"] == "next"


def test_close_twice(stream: Written) -> None:
    lines = log.Log("text", "info", stream.descriptor)
    log.info("x")
    lines.close()
    lines.close()
    log.info("y")
    assert stream.getvalue().count("\n") == 1
