"""The bundled mock inference server, met directly: the API's shapes, its pace, and that it stops when its client leaves."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import openai
import pytest

MESSAGES: list[Any] = [{"role": "user", "content": "Say something long"}]
FAST = {"x-mock-ttft": "0", "x-mock-tokens-per-second": "0"}


class Mock:
    """`llmpipe mock` as a process of its own."""

    def __init__(self, *options: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmpipe", "mock", "--listen", "127.0.0.1:0", "--log-format", "json", *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited,
        )
        self.stderr: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = str(self.wait_log("listening")["address"])
        self.url = f"http://{self.address}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line)
            self._lines.put(line)

    def wait_log(self, event: str) -> dict[str, Any]:
        """The next line of this event."""
        while True:
            line: dict[str, Any] = json.loads(self._lines.get(timeout=30))
            if line["event"] == event:
                return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(30)
        return code

    def __enter__(self) -> Mock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(30)
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.fixture(scope="module")
def mock() -> Iterator[Mock]:
    with Mock() as mock:
        yield mock
        assert mock.stop() == 0
        assert "Traceback" not in "".join(mock.stderr)


@pytest.fixture
def http(mock: Mock) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mock.url, timeout=30, headers=FAST) as client:
        yield client


@pytest.fixture
def api(mock: Mock) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0, default_headers=FAST) as client:
        yield client


def events(text: str) -> list[Any]:
    """The data of each event; the last must be [DONE]."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def post(http: httpx.Client, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    """A request with a prompt of the right kind."""
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "Say something long"}
    return http.post(path, json={**prompt, **more})


def test_a_chat_stream_event_by_event(http: httpx.Client) -> None:
    answer = post(http, stream=True, model="m", max_tokens=5, stream_options={"include_usage": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    chunks = events(answer.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "m"
        assert abs(chunk["created"] - time.time()) < 100
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    assert [bool(delta.get("content")) for delta in deltas] == [True] * 5 + [False]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["length"]


def test_usage_comes_only_when_asked_for(http: httpx.Client) -> None:
    assert not any(chunk.get("usage") for chunk in events(post(http, stream=True, max_tokens=2).text))


def test_the_openai_client_streams_chat(api: openai.OpenAI) -> None:
    stream = api.chat.completions.create(
        model="mock", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) == 64
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 64
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 64


def test_the_openai_client_gets_the_same_text_whole(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model="mock", messages=MESSAGES, max_completion_tokens=7)
    parts = api.chat.completions.create(model="mock", messages=MESSAGES, max_completion_tokens=7, stream=True)
    text = whole.choices[0].message.content
    assert text
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert len(text.split()) == 7
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage
    assert whole.usage.completion_tokens == 7


def test_the_openai_client_completes_text(api: openai.OpenAI) -> None:
    whole = api.completions.create(model="mock", prompt="Once", max_tokens=4)
    parts = list(api.completions.create(model="mock", prompt="Once", max_tokens=4, stream=True))
    assert whole.object == "text_completion"
    assert len(whole.choices[0].text.split()) == 4
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == "length"


def test_models_and_health(api: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in api.models.list()] == ["mock"]
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("fields", "headers", "tokens"),
    [
        ({}, {}, 64),
        ({"max_tokens": 3}, {}, 3),
        ({"max_completion_tokens": 3}, {}, 3),
        ({"max_tokens": 1000}, {}, 64),
        ({}, {"x-mock-tokens": "100"}, 100),
        ({"max_tokens": 3}, {"x-mock-tokens": "100"}, 3),
        ({"max_tokens": 0}, {}, 0),
        ({"max_tokens": None}, {"x-mock-tokens": "1"}, 1),
    ],
)
def test_the_number_of_tokens(http: httpx.Client, fields: dict[str, Any], headers: dict[str, str], tokens: int) -> None:
    http.headers.update(headers)
    assert post(http, **fields).json()["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b"{nope"),
        ("/v1/chat/completions", b"\xff\xfe"),
        ("/v1/chat/completions", b"[]"),
        ("/v1/chat/completions", b"{}"),
        ("/v1/chat/completions", b'{"messages": "text"}'),
        ("/v1/chat/completions", b'{"messages": [1], "max_tokens": "many"}'),
        ("/v1/chat/completions", b'{"messages": [1], "max_tokens": -1}'),
        ("/v1/chat/completions", b'{"messages": [1], "max_tokens": NaN}'),
        ("/v1/completions", b'{"messages": [1]}'),
    ],
)
def test_bad_requests_are_answered_as_the_api_does(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "headers", [{"x-mock-ttft": "soon"}, {"x-mock-tokens": "x"}, {"x-mock-tokens-per-second": "nan"}]
)
def test_bad_headers_are_bad_requests(http: httpx.Client, headers: dict[str, str]) -> None:
    http.headers.update(headers)
    assert post(http).status_code == 400


def test_the_openai_client_raises(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="messages is missing"):
        api.chat.completions.create(model="mock", messages=[])
    with pytest.raises(openai.NotFoundError):
        api.embeddings.create(model="mock", input="x")


def test_pace(http: httpx.Client) -> None:
    """The first token waits for the TTFT; the others come at their rate, not all at once."""
    http.headers.update({"x-mock-ttft": "300ms", "x-mock-tokens-per-second": "20", "x-mock-tokens": "11"})
    start = time.monotonic()
    body = {"messages": MESSAGES, "stream": True}
    times = []
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        head = time.monotonic() - start
        for line in answer.iter_lines():
            if '"content"' in line:
                times.append(time.monotonic() - start)
    assert len(times) == 11
    assert times[0] >= 0.29
    assert head < times[0]
    assert times[-1] - times[0] >= 0.4  # 10 gaps of 50 ms, one late first token allowed for
    assert times[-1] >= 0.3 + 10 / 20 - 0.01


def test_flags() -> None:
    with (
        Mock("--tokens", "3", "--ttft", "0", "--tokens-per-second", "0", "--model", "tiny") as mock,
        openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0) as api,
    ):
        assert [model.id for model in api.models.list()] == ["tiny"]
        answer = api.chat.completions.create(model="x", messages=MESSAGES)
        assert answer.usage
        assert answer.usage.completion_tokens == 3
        assert mock.stop() == 0


def open_request(mock: Mock, stream: bool, ttft: str) -> socket.socket:
    """A connection on which a request that would take hours has been sent."""
    body = json.dumps({"messages": MESSAGES, "stream": stream}).encode()
    host, _, port = mock.address.partition(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    sock.sendall(f"{head}X-Mock-Tokens: 1000000\r\nX-Mock-TTFT: {ttft}\r\n\r\n".encode() + body)
    return sock


def read_until(sock: socket.socket, text: bytes) -> None:
    got = b""
    while text not in got:
        piece = sock.recv(65536)
        assert piece, got
        got += piece


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    ("stream", "ttft", "phase"), [(True, "0", "tokens"), (True, "1h", "silence"), (False, "0", "whole")]
)
def test_generation_stops_when_the_client_leaves(mock: Mock, how: str, stream: bool, ttft: str, phase: str) -> None:
    with closing(open_request(mock, stream, ttft)) as sock:
        if phase == "tokens":
            read_until(sock, b'"content"')
        elif phase == "silence":
            read_until(sock, b"\r\n\r\n")
        else:
            time.sleep(0.5)  # nothing tells when an answer that comes whole has begun
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    line = mock.wait_log("generation stopped")
    assert line["of"] == 1_000_000
    assert line["tokens"] == 0 if phase == "silence" else 0 < line["tokens"] < 100_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at once", "idle", "with a stream"])
def test_a_signal_ends_it_with_exit_code_0(number: signal.Signals, when: str) -> None:
    with Mock() as mock:
        if when == "at once":
            assert mock.stop(number) == 0
        elif when == "idle":
            assert httpx.get(f"{mock.url}/health").status_code == 200
            assert mock.stop(number) == 0
        else:
            with closing(open_request(mock, stream=True, ttft="0")) as sock:
                read_until(sock, b'"content"')
                assert mock.stop(number) == 0
            mock.wait_log("generation stopped")
        mock.wait_log("stopped")
        assert "Traceback" not in "".join(mock.stderr)
        assert "Warning" not in "".join(mock.stderr)
