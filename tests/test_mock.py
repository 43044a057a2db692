"""The bundled mock inference server, met directly: the API's shapes, its pace, its capacity, the faults that a request can ask
for, and that it stops when its client leaves.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import openai
import pytest
from harness import Mock, Proxy

from llmpipe.mock_capacity import Capacity

MESSAGES: list[Any] = [{"role": "user", "content": "Say something long"}]
FAST = {"x-mock-ttft": "0", "x-mock-tokens-per-second": "0"}


@pytest.fixture(scope="module")
def mock() -> Iterator[Mock]:
    with Mock() as mock:
        yield mock
        assert mock.stop() == 0
        assert "Traceback" not in "".join(mock.stderr)
        assert "ASGI" not in "".join(mock.stderr)


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
    """The first token waits for the TTFT, and the others come at their rate."""
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
    assert times[-1] >= 0.3 + 10 / 20 - 0.01


def test_a_token_does_not_wait_for_the_next_one(mock: Mock) -> None:
    with open_request(mock, True, "0", "X-Mock-Tokens-Per-Second: 0.01") as sock:
        read_until(sock, b'"content"')
        assert_silent(sock)
    mock.wait_log("generation stopped")


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


def connect(mock: Mock) -> socket.socket:
    host, _, port = mock.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def write_request(body: bytes, *fields: str) -> bytes:
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "\r\n"]).encode() + body


def open_request(
    mock: Mock, stream: bool, ttft: str, *fields: str, tokens: int = 1_000_000, prompt: str = "Say something long"
) -> socket.socket:
    """A connection on which a request has been sent that would take hours if it were not for `tokens` and `fields`."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": stream}
    sock = connect(mock)
    own = f"X-Mock-Tokens: {tokens}", f"X-Mock-TTFT: {ttft}"
    sock.sendall(write_request(json.dumps(body).encode(), *own, *fields))
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
    mock.wait_load(0, 0)
    with closing(open_request(mock, stream, ttft)) as sock:
        if phase == "tokens":
            read_until(sock, b'"content"')
        elif phase == "silence":
            read_until(sock, b"\r\n\r\n")
        else:
            mock.wait_load(1, 0)  # no byte tells when an answer that comes whole has begun
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    line = mock.wait_log("generation stopped")
    assert line["of"] == 1_000_000
    least, most = {"tokens": (1, 100_000), "silence": (0, 0), "whole": (0, 100_000)}[phase]
    assert least <= line["tokens"] <= most


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["at once", "idle", "with a stream"])
def test_a_signal_ends_it_with_exit_code_0(number: signal.Signals, when: str) -> None:
    with Mock() as mock:
        if when == "at once":
            assert mock.stop(number) == 0
        elif when == "idle":
            assert httpx.get(f"{mock.url}/health", timeout=30).status_code == 200
            assert mock.stop(number) == 0
        else:
            with closing(open_request(mock, stream=True, ttft="0")) as sock:
                read_until(sock, b'"content"')
                assert mock.stop(number) == 0
            mock.wait_log("generation stopped")
        mock.wait_log("stopped")
        assert "Traceback" not in "".join(mock.stderr)
        assert "Warning" not in "".join(mock.stderr)


@pytest.mark.parametrize(
    ("path", "prompt", "tokens"),
    [
        ("/v1/chat/completions", [{"role": "user", "content": "x" * 41}], 11),
        ("/v1/chat/completions", [{"role": "user", "content": "x" * 40}], 10),
        ("/v1/chat/completions", [{"role": "user", "content": "é" * 20}], 10),
        ("/v1/chat/completions", [{"role": "system", "content": "x" * 20}, {"role": "user", "content": "x" * 20}], 10),
        (
            "/v1/chat/completions",
            [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {}}]}],
            10,
        ),
        ("/v1/completions", "x" * 40, 10),
        ("/v1/completions", ["x" * 20, "x" * 20], 10),
        ("/v1/completions", [1, 2, 3], 3),
    ],
)
def test_usage_counts_a_token_for_four_bytes_of_prompt(
    http: httpx.Client, path: str, prompt: object, tokens: int
) -> None:
    body = {"messages" if "chat" in path else "prompt": prompt, "max_tokens": 5}
    usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5}
    assert http.post(path, json=body).json()["usage"] == usage
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    assert events(http.post(path, json=body).text)[-1]["usage"] == usage


# Several models.


@pytest.mark.parametrize("how", ["options", "variable"])
def test_several_models(how: str) -> None:
    options = ("--model", "one", "--model", "two") if how == "options" else ()
    variables = {"LLMPIPE_MOCK_MODEL": "one two"} if how == "variable" else {}
    with (
        Mock(*options, env=variables) as mock,
        openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0, default_headers=FAST) as api,
    ):
        assert [model.id for model in api.models.list()] == ["one", "two"]
        for name in ("one", "two"):
            assert api.chat.completions.create(model=name, messages=MESSAGES).model == name
        with pytest.raises(openai.NotFoundError) as caught:
            api.chat.completions.create(model="three", messages=MESSAGES)
        assert caught.value.code == "model_not_found"
        assert caught.value.type == "invalid_request_error"
        assert "'three'" in caught.value.message
        answer = httpx.post(f"{mock.url}/v1/chat/completions", json={"messages": MESSAGES}, headers=FAST, timeout=30)
        assert answer.json()["model"] == "one"


# Capacity. The requests are streams that never end by themselves, so that nothing happens unless a test does it.


def enter(mock: Mock, running: int, waiting: int) -> socket.socket:
    """A connection with a request after which this is the load."""
    sock = open_request(mock, True, "0")
    mock.wait_load(running, waiting)
    return sock


def assert_silent(sock: socket.socket) -> None:
    """Nothing comes; what had come before must have been read."""
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(65536)
    sock.settimeout(30)


def ask(mock: Mock) -> httpx.Response:
    """A short request."""
    return httpx.post(f"{mock.url}/v1/chat/completions", json={"messages": MESSAGES}, headers=FAST, timeout=30)


def test_by_default_any_number_is_worked_on_at_once(mock: Mock) -> None:
    mock.wait_load(0, 0)
    with ExitStack() as stack:
        socks = [stack.enter_context(open_request(mock, True, "0")) for _ in range(20)]
        for sock in socks:
            read_until(sock, b'"content"')
        assert mock.load == (20, 0)
    mock.wait_load(0, 0)


def test_load_is_shown_as_vllm_shows_it(mock: Mock) -> None:
    answer = httpx.get(f"{mock.url}/metrics", timeout=30)
    assert answer.headers["content-type"].startswith("text/plain")
    for name in ("running", "waiting"):
        assert f"# TYPE vllm:num_requests_{name} gauge\n" in answer.text


def test_no_more_requests_are_worked_on_than_there_are_slots() -> None:
    with (
        Mock("--slots", "2") as mock,
        enter(mock, 1, 0) as first,
        enter(mock, 2, 0) as second,
        enter(mock, 2, 1) as third,
    ):
        for sock in (first, second):
            read_until(sock, b'"content"')
        read_until(third, b"\r\n\r\n")  # the head does not wait
        assert_silent(third)
        assert httpx.get(f"{mock.url}/health", timeout=30).status_code == 200
        first.close()
        read_until(third, b'"content"')
        assert mock.load == (2, 0)


def test_who_came_first_is_served_first() -> None:
    with Mock("--slots", "1") as mock, ExitStack() as stack:
        socks = [stack.enter_context(enter(mock, 1, waiting)) for waiting in range(5)]
        for waiting, sock in zip((4, 3, 2, 1, 0), socks, strict=True):
            read_until(sock, b'"content"')
            assert mock.load == (1, waiting)
            sock.close()


def test_a_slot_is_given_on_when_an_answer_is_complete() -> None:
    with Mock("--slots", "1", "--tokens", "3") as mock:
        with ExitStack() as stack:
            socks = [stack.enter_context(open_request(mock, True, "0", tokens=3)) for _ in range(4)]
            for sock in socks:
                read_until(sock, b"[DONE]")
        mock.wait_load(0, 0)


def test_who_leaves_the_queue_makes_room_and_is_never_worked_on() -> None:
    with (
        Mock("--slots", "1", "--queue", "1") as mock,
        enter(mock, 1, 0) as running,
        enter(mock, 1, 1) as leaver,
    ):
        assert ask(mock).status_code == 503
        leaver.close()
        left = mock.wait_log("request left the queue")
        mock.wait_load(1, 0)
        with enter(mock, 1, 1) as waiting:
            running.close()
            assert mock.wait_log("generation stopped")["id"] != left["id"]
            read_until(waiting, b'"content"')
            assert mock.load == (1, 0)
        assert mock.wait_log("generation stopped")["id"] != left["id"]
        assert mock.stop() == 0
        assert sum(left["id"] in line for line in mock.stderr) == 1


def test_who_leaves_in_the_moment_in_which_a_slot_is_free_does_not_take_it() -> None:
    async def race() -> None:
        capacity = Capacity(slots=1)
        running = ExitStack()
        running.enter_context(capacity.place())
        with capacity.place() as leaver, capacity.place() as waiting:
            leaver.cancel()
            running.close()
            assert waiting.done()
            assert capacity.running == 1
        assert (capacity.running, capacity.waiting) == (0, 0)

    asyncio.run(race())


@pytest.mark.parametrize("places", [0, 1])
def test_a_full_queue_is_503(places: int) -> None:
    with Mock("--slots", "1", "--queue", str(places)) as mock, ExitStack() as stack:
        socks = [stack.enter_context(enter(mock, 1, waiting)) for waiting in range(places + 1)]
        answer = ask(mock)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "server_error"
        assert "queue is full" in error["message"]
        assert mock.load == (1, places)
        for sock in socks:
            sock.close()
        mock.wait_load(0, 0)
        assert ask(mock).status_code == 200


def test_the_queue_is_unlimited_by_default() -> None:
    with Mock("--slots", "1") as mock, ExitStack() as stack:
        for _ in range(50):
            read_until(stack.enter_context(open_request(mock, True, "0")), b"\r\n\r\n")
        mock.wait_load(1, 49)


@pytest.mark.parametrize("letters", [800, 2000])
def test_a_longer_prompt_takes_longer_to_its_first_token(letters: int) -> None:
    with Mock("--prefill-rate", "1000") as mock:
        start = time.monotonic()
        with open_request(mock, True, "100ms", prompt="x" * letters) as sock:
            read_until(sock, b'"content"')
        assert time.monotonic() - start >= 0.1 + letters / 4 / 1000 - 0.01


def test_a_prompt_is_read_in_the_slot() -> None:
    """One of a million tokens takes a quarter of an hour here, in which a short one is answered, and then none is."""
    with (
        Mock("--prefill-rate", "1000", "--slots", "2") as mock,
        open_request(mock, True, "0", prompt="x" * 4_000_000) as first,
    ):
        read_until(first, b"\r\n\r\n")
        mock.wait_load(1, 0)
        assert ask(mock).status_code == 200
        assert_silent(first)
        with open_request(mock, True, "0", prompt="x" * 4_000_000) as second:
            read_until(second, b"\r\n\r\n")
            mock.wait_load(2, 0)
            with enter(mock, 2, 1) as third:
                first.close()
                read_until(third, b'"content"')


@pytest.mark.parametrize("others", [1, 2])
def test_each_other_request_makes_tokens_slower(others: int) -> None:
    with Mock("--decode-slowdown", "4", "--tokens-per-second", "100") as mock, ExitStack() as stack:
        for number in range(others):
            stack.enter_context(enter(mock, number + 1, 0))
        start = time.monotonic()
        with open_request(mock, True, "0", tokens=6) as sock:
            read_until(sock, b"[DONE]")
        assert time.monotonic() - start >= 5 * (1 + 4 * others) / 100 - 0.01


def test_tokens_are_fast_again_when_the_others_have_left() -> None:
    """Alone a token takes a tenth of a second; with another request it takes 100 s, also the one that had begun before."""
    with Mock("--decode-slowdown", "1000", "--tokens-per-second", "10") as mock, enter(mock, 1, 0) as sock:
        read_until(sock, b'"content"')
        with enter(mock, 2, 0):
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                for _ in range(50):
                    assert sock.recv(65536)
            sock.settimeout(30)
        read_until(sock, b'"content"')


# Faults.


FULL_SPEED = "X-Mock-Tokens-Per-Second: 0"


def read_end(sock: socket.socket) -> tuple[bytes, str]:
    """All that comes, and whether a FIN or an RST ends it."""
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except ConnectionResetError:
        return got, "rst"
    return got, "fin"


def break_stream(mock: Mock, fault: str) -> tuple[bytes, str]:
    """What a raw client has of a stream of five tokens, and how it ends."""
    with open_request(mock, True, "0", FULL_SPEED, f"X-Mock-Fault: {fault}", tokens=5) as sock:
        return read_end(sock)


@pytest.mark.parametrize("after", [0, 3, 5])
def test_die_resets_the_connection_after_so_many_tokens(mock: Mock, after: int) -> None:
    got, end = break_stream(mock, f"die;after={after}")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.count(b'"content"') == after
    assert b'"finish_reason":"length"' not in got
    assert b"[DONE]" not in got
    assert end == "rst"
    assert httpx.get(f"{mock.url}/health", timeout=30).status_code == 200


def test_die_resets_the_connection_before_the_head(mock: Mock) -> None:
    assert break_stream(mock, "die") == (b"", "rst")


def test_die_resets_the_connection_of_an_answer_that_comes_whole(mock: Mock) -> None:
    with open_request(mock, False, "0", FULL_SPEED, "X-Mock-Fault: die;after=3", tokens=5) as sock:
        assert read_end(sock) == (b"", "rst")


@pytest.mark.parametrize("after", [None, 0, 2])
def test_hang_falls_silent_and_keeps_connection_and_slot(mock: Mock, after: int | None) -> None:
    fault = "X-Mock-Fault: hang" + ("" if after is None else f";after={after}")
    mock.wait_load(0, 0)
    with open_request(mock, True, "0", FULL_SPEED, fault, tokens=5) as sock:
        mock.wait_load(1, 0)
        if after is not None:
            read_until(sock, b'"content":" proxy"' if after else b"\r\n\r\n")  # the second token
        assert_silent(sock)
        assert mock.load == (1, 0)
    mock.wait_load(0, 0)


def test_a_fault_that_would_come_after_the_end_does_not(mock: Mock) -> None:
    with open_request(mock, True, "0", FULL_SPEED, "X-Mock-Fault: die;after=6", tokens=5) as sock:
        read_until(sock, b"[DONE]")


def test_slow_head(mock: Mock) -> None:
    start = time.monotonic()
    with open_request(mock, True, "0", FULL_SPEED, "X-Mock-Fault: slow-head;seconds=0.5", tokens=5) as sock:
        assert sock.recv(1)
        assert time.monotonic() - start >= 0.49
        read_until(sock, b"[DONE]")


@pytest.mark.parametrize(
    ("fault", "status", "retry_after", "kind"),
    [
        ("503;retry-after=3", 503, "3", "server_error"),
        ("503", 503, None, "server_error"),
        ("429; retry-after=0", 429, "0", "invalid_request_error"),
        ("599", 599, None, "server_error"),
    ],
)
def test_an_error_in_the_place_of_an_answer(
    http: httpx.Client, fault: str, status: int, retry_after: str | None, kind: str
) -> None:
    http.headers["x-mock-fault"] = fault
    answer = post(http)
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == retry_after
    assert answer.json()["error"]["type"] == kind


@pytest.mark.parametrize(("fault", "status"), [("answer-before-body", 413), ("answer-before-body;status=401", 401)])
def test_answer_before_body(mock: Mock, fault: str, status: int) -> None:
    request = write_request(b"x" * 1000, f"X-Mock-Fault: {fault}")
    with connect(mock) as sock:
        sock.sendall(request[:-990])
        read_until(sock, b"X-Mock-Fault asks for")
        # What is sent later is no part of the next request.
        sock.sendall(request[-990:] + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(sock, b'"ok"')
        sock.sendall(request)
        read_until(sock, f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("after", [None, 0, 2])
def test_die_process_ends_the_server(after: int | None) -> None:
    with Mock() as mock:
        got, end = break_stream(mock, "die-process" + ("" if after is None else f";after={after}"))
        assert got.count(b'"content"') == (after or 0)
        assert bool(got) == (after is not None)
        assert end in ("fin", "rst")
        assert mock.process.wait(30) == 1
        assert "Traceback" not in "".join(mock.stderr)


def test_the_mock_of_a_demo_cannot_be_ended() -> None:
    with (
        Mock("--admin", "off", command=("serve", "--demo")) as proxy,
        httpx.Client(base_url=proxy.url, timeout=30, headers=FAST) as http,
    ):
        http.headers["x-mock-fault"] = "die-process"
        answer = post(http)
        assert answer.status_code == 400
        assert "die-process" in answer.json()["error"]["message"]
        http.headers["x-mock-fault"] = "429"
        assert post(http).status_code == 429
        assert proxy.stop() == 0


def test_a_mock_that_ignores_faults_takes_over_from_one_that_has_them() -> None:
    """The proxy sends the header with each attempt."""
    with (
        Mock() as faulty,
        Mock("--no-faults") as sound,
        Proxy(faulty.url, sound.url) as proxy,
        httpx.Client(base_url=proxy.url, timeout=30, headers=FAST) as http,
    ):
        http.headers["x-mock-fault"] = "die"
        assert [post(http).status_code for _ in range(2)] == [200, 200]  # either of them is first once
        assert faulty.wait_log("fault")["fault"] == "die"


@pytest.mark.parametrize("fault", ["explode", "", "STATUS", "200", "600", "explode;after=1"])
def test_an_unknown_fault_is_answered_with_those_that_exist(http: httpx.Client, fault: str) -> None:
    http.headers["x-mock-fault"] = fault
    answer = post(http)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    for name in ("die", "die-process", "hang", "slow-head", "answer-before-body", "STATUS"):
        assert f" {name}[;" in message


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("die;seconds=2", "after"),
        ("die;after=1;after=2", "only the parameter after"),
        ("die;after", "not a number"),
        ("die;after=soon", "not a number"),
        ("hang;after=-1", "from 0"),
        ("slow-head;after=1", "seconds"),
        ("slow-head;seconds=nan", "from 0"),
        ("503;after=1", "retry-after"),
        ("answer-before-body;status=200", "from 400 to 599"),
    ],
)
def test_a_wrong_parameter_is_a_bad_request(http: httpx.Client, fault: str, says: str) -> None:
    http.headers["x-mock-fault"] = fault
    answer = post(http)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
