"""Rule Q1: the tokens of an answer, read by the engine's own reader, opened by the probe, and out of `llmpipe serve` on real sockets.

The answers are written as the servers write them: their names, their order, their spaces, the events around.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Backend, Client, Connection, Proxy, chunk, sse_head, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from seeds import seeds

set_hypothesis_home_dir("build/hypothesis")  # not the folder that tests are looked for in
anything = settings(
    database=None, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Tokens = tuple[int | None, int | None, int | None]
NOTHING: Tokens = (None, None, None)


def events(*data: Any, names: bool = False, end: bytes = b"data: [DONE]\n\n") -> bytes:
    """An event stream of these objects, as servers write it: JSON without line ends, a blank line behind each."""
    made = b""
    for item in data:
        if names:
            made += b"event: %b\n" % item["type"].encode()
        made += b"data: %b\n\n" % json.dumps(item, separators=(",", ":")).encode()
    return made + end


def delta(text: str | None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of chat.completion."""
    said = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "llama"}
    return {**head, "choices": [choice], **more}


VLLM = {
    "prompt_tokens": 1042,
    "total_tokens": 1054,
    "completion_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 1024},
}
OPENAI = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 7,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 3,
        "rejected_prediction_tokens": 0,
    },
}
RESPONSE = {
    "input_tokens": 328,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 380,
}
TIMINGS = {
    "cache_n": 236,
    "prompt_n": 1,
    "prompt_ms": 30.958,
    "prompt_per_token_ms": 30.958,
    "prompt_per_second": 32.301828283480845,
    "predicted_n": 35,
    "predicted_ms": 661.064,
    "predicted_per_token_ms": 18.887542857142858,
    "predicted_per_second": 52.94494935437416,
}
TEXT = 'say "usage": {"prompt_tokens": 999} and "timings":{"prompt_n":888} like this: \\"usage\\": {\n'

ANSWERS: dict[str, tuple[bytes, Tokens]] = {
    "vLLM, chat, the client asked": (
        events(
            delta(""),
            delta("Hi"),
            delta(None, finish="stop"),
            {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "llama", "choices": [], "usage": VLLM},
        ),
        (1042, 12, 1024),
    ),
    "vLLM, in every event": (
        events(
            *[
                delta("a", usage={"prompt_tokens": 7, "total_tokens": 7 + n, "completion_tokens": n})
                for n in range(1, 4)
            ]
        ),
        (7, 3, None),
    ),
    "vLLM, nobody asked": (events(delta("Hi"), delta(None, finish="stop")), NOTHING),
    "SGLang, chat": (
        events(
            delta("Hi", usage=None),
            delta("", finish="stop", usage=None),
            {
                "id": "1",
                "choices": [],
                "usage": {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": None},
            },
        ),
        (5, 3, None),
    ),
    "OpenAI, chat, a name behind it": (
        events(delta("Hi", usage=None), {"id": "1", "choices": [], "usage": OPENAI, "obfuscation": "J2mMmA"}),
        (19, 10, 0),
    ),
    "OpenAI, responses": (
        events(
            {"type": "response.created", "response": {"id": "resp_1", "usage": None}},
            {"type": "response.output_text.delta", "delta": TEXT},
            {"type": "response.completed", "response": {"id": "resp_1", "output": [{"text": TEXT}], "usage": RESPONSE}},
            names=True,
            end=b"",
        ),
        (328, 52, 64),
    ),
    "Anthropic, messages": (
        events(
            {
                "type": "message_start",
                "message": {
                    "id": "msg_1",
                    "type": "message",
                    "content": [],
                    "usage": {
                        "input_tokens": 25,
                        "cache_creation_input_tokens": 100,
                        "cache_read_input_tokens": 2000,
                        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
                        "output_tokens": 1,
                        "service_tier": "standard",
                    },
                },
            },
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
            {"type": "message_stop"},
            names=True,
            end=b"",
        ),
        (2125, 15, 2000),
    ),
    "llama.cpp, chat, the client asked": (
        events(
            delta("Hi"),
            {"choices": [], "usage": {"completion_tokens": 35, "prompt_tokens": 237}, "timings": TIMINGS},
        ),
        (237, 35, 236),
    ),
    "llama.cpp, chat, nobody asked": (events(delta("Hi"), delta(None, finish="stop", timings=TIMINGS)), (237, 35, 236)),
    "llama.cpp, completion": (
        events(
            {"index": 0, "content": "Hi", "stop": False}, {"content": "", "stop": True, "timings": TIMINGS}, end=b""
        ),
        (237, 35, 236),
    ),
    "Ollama, chat": (
        events(
            delta("Hi"),
            {"choices": [], "usage": {"prompt_tokens": 26, "completion_tokens": 298, "total_tokens": 324}},
        ),
        (26, 298, None),
    ),
    "in one piece, with spaces and line ends": (
        json.dumps(
            {"id": "1", "choices": [{"message": {"role": "assistant", "content": TEXT}}], "usage": OPENAI}, indent=2
        ).encode(),
        (19, 10, 0),
    ),
    "names of both kinds": (
        b'{"usage": {"prompt_tokens": 100, "completion_tokens": 5, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 8}}',
        (100, 5, 64),
    ),
    "embeddings": (
        json.dumps(
            {"data": [{"embedding": [0.1, -2e-5] * 50}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        ).encode(),
        (8, None, None),
    ),
    "a text about it": (events(delta(TEXT), delta(TEXT)), NOTHING),
    "a value of that name": (
        b'{"type": "usage", "usage": "none", "usage": [1, 2], "usage":null, "timings" : false}',
        NOTHING,
    ),
    "numbers that are none": (
        b'{"usage": {"prompt_tokens": 1.5, "completion_tokens": -3, "total_tokens": 1e3, "cached_tokens": "4"}}',
        NOTHING,
    ),
    "more than there can be": (
        b'{"usage": {"prompt_tokens": 99999999999999999999999999, "completion_tokens": 4}}',
        (None, 4, None),
    ),
    "names that are deeper, or escaped, or longer": (
        (
            rb'{"usage": {"a": {"prompt_tokens": 1}, "b": [{"completion_tokens": 2}, 3], "prompt\u005ftokens": 4, "a\"b": 1, '
            rb'"prompt_tokens_and_a_name_that_is_longer_than_any": 5, "completion_tokens": 6}}'
        ),
        (None, 6, None),
    ),
    "zero is known": (b'{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}', (0, 0, None)),
    "what is broken": (
        b'{"usage": {"prompt_tokens": 3, "completion_tokens" 4}, "usage": {"completion_tokens": 5}}',
        (3, 5, None),
    ),
    "deeper than anybody goes": (b'{"usage": {"a": [[[[[[[1]]]]]]], "prompt_tokens": 3}}', NOTHING),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_q1_what_servers_tell_however_it_is_cut(probe: Any, name: str) -> None:
    answer, expected = ANSWERS[name]
    assert probe.read_usage([answer]) == expected
    assert probe.read_usage([answer[i : i + 1] for i in range(len(answer))]) == expected
    for at in range(1, len(answer)):
        assert probe.read_usage([answer[:at], answer[at:]]) == expected, at


@pytest.mark.parametrize("seed", seeds(20))
def test_q1_what_no_server_tells_however_it_is_cut(probe: Any, seed: int) -> None:
    """Pieces of all of it in any order: what is read does not go by the cuts."""
    dice = random.Random(seed)
    parts = [part for answer, _ in ANSWERS.values() for part in re.split(rb'(?<=[,"{}:])', answer)]
    for _ in range(200):
        answer = b"".join(dice.choices(parts, k=40)) + dice.choice(
            [b"", b'"usage":{"prompt_tokens":5,"a":', b'"timings"']
        )
        expected = probe.read_usage([answer])
        assert probe.read_usage([answer[i : i + 1] for i in range(len(answer))]) == expected
        for at in dice.sample(range(1, len(answer)), 10):
            assert probe.read_usage([answer[:at], answer[at:]]) == expected, (at, answer)


@anything
@given(
    st.binary(max_size=400),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from([b"g", b'"', b'ge"', b'gs"'])), max_size=6),
)
def test_the_search_in_vectors_finds_what_a_search_by_bytes_does(
    probe: Any, data: bytes, put: list[tuple[int, bytes]]
) -> None:
    for at, what in put:
        data = data[:at] + what + data[at + len(what) :]
    found = re.search(rb'g[\x00-\xff]"', data)
    assert probe.find(data) == (found.start() if found else -1)


@anything
@given(st.integers(0, 2**40), st.sampled_from([5, 7]))
def test_a_count_is_of_its_value_and_within_its_error(probe: Any, value: int, bits: int) -> None:
    at, low, following = probe.histogram_place(value, bits)
    assert low <= value < following
    assert following - low <= max(1, low >> bits)
    assert probe.histogram_place(following, bits)[0] == at + 1


def tell(answer: bytes, head: bytes, pieces: Callable[[bytes], Iterator[bytes]]) -> Callable[[Connection], None]:
    """A backend that gives this answer in these pieces, each in a send of its own."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(head)
        for piece in pieces(answer):
            connection.send(chunk(piece))
        connection.send(b"0\r\n\r\n")
        connection.wait_eof(30)

    return script


def by(size: int) -> Callable[[bytes], Iterator[bytes]]:
    return lambda data: (data[at : at + size] for at in range(0, len(data), size))


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
POST += b'{"model": "llama" }\n'


def tokens(proxy: Proxy, model: str = "") -> tuple[float, float, float]:
    prompt, completion, cached = (
        proxy.metric("llmpipe_tokens_total", kind=kind, model=model) for kind in ("prompt", "completion", "cached")
    )
    return prompt, completion, cached


@pytest.mark.parametrize("size", [7, 100, 70000])
@pytest.mark.parametrize(
    "name", ["vLLM, chat, the client asked", "Anthropic, messages", "in one piece, with spaces and line ends"]
)
def test_q1_the_bytes_are_the_backend_s_and_the_tokens_are_counted(proxy_to: Any, name: str, size: int) -> None:
    answer, expected = ANSWERS[name]
    head = sse_head() if b"data: " in answer else JSON_HEAD
    proxy = proxy_to(tell(answer, head, by(size)))
    with Client(proxy) as client:
        client.send(POST)
        assert client.read_response().body == answer
    proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")
    assert tokens(proxy) == tuple(n or 0 for n in expected)
    line = proxy.wait_log("access")
    assert [line[name] for name in ("tokens_prompt", "tokens_completion", "tokens_cached")] == list(expected)


def test_q1_a_long_answer_that_is_looked_at_in_bulk(proxy_to: Any) -> None:
    """Bytes that are looked at twice, since the client takes some of them only, are not read twice."""
    filler = json.dumps({"text": "x" * 3000}).encode()
    usage = b'"usage": {"prompt_tokens": 11, "completion_tokens": 22, "prompt_tokens_details": {"cached_tokens": 3}}'
    answer = b"[" + b", ".join([filler] * 2000) + b", {" + usage + b"}, " + b", ".join([filler] * 500) + b"]"
    proxy = proxy_to(tell(answer, JSON_HEAD, by(65536)))
    with Client(proxy) as client:
        client.send(POST)
        assert client.read_response().body == answer
    proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")
    assert tokens(proxy) == (11, 22, 3)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (JSON_HEAD.replace(b"200 OK", b"404 Not Found"), ()),
        (JSON_HEAD.replace(b"application/json", b"text/plain"), ()),
        (JSON_HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer"), ()),
        (JSON_HEAD, ("--include-usage", "off")),
    ],
    ids=["an error", "no JSON", "encoded", "off"],
)
def test_q1_where_nothing_is_read_nothing_is_known(proxy_to: Any, head: bytes, options: tuple[str, ...]) -> None:
    answer, _ = ANSWERS["in one piece, with spaces and line ends"]
    proxy = proxy_to(tell(answer, head, by(100)), options=options)
    with Client(proxy) as client:
        client.send(POST)
        assert client.read_response().body == answer
    proxy.settled()
    assert tokens(proxy) == (0, 0, 0)
    assert proxy.wait_log("access")["tokens_completion"] is None


def test_q2_by_the_name_of_the_model_that_serves(proxy_to: Any, tmp_path: Any) -> None:
    answer, _ = ANSWERS["Ollama, chat"]
    head = sse_head().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with Backend(tell(answer, head, by(50))) as backend:
        config = f"""
            [pools.a]
            models = ["llama", "qwen-*"]
            aliases = {{ "gpt-4o" = "llama" }}
            [[pools.a.backends]]
            url = "{backend.url}"
        """
        (tmp_path / "llmpipe.toml").write_text(config)
        proxy = proxy_to(options=["--config", str(tmp_path / "llmpipe.toml")])
        for model, times in (("llama", 1), ("gpt-4o", 2), ("qwen-3", 3)):
            body = json.dumps({"model": model}).encode()
            for _ in range(times):
                with Client(proxy) as client:
                    client.send(
                        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                    )
                    assert client.read_response().body == answer
        proxy.wait_metric("llmpipe_exchanges_total", 6, outcome="ok")
        assert tokens(proxy, "llama") == (3 * 26, 3 * 298, 0)
        assert tokens(proxy, "qwen-*") == (3 * 26, 3 * 298, 0)
        wait_until(lambda: len([line for line in proxy.log if line["event"] == "access"]) == 6)
        assert {line["model"] for line in proxy.log if line["event"] == "access"} == {"llama", "gpt-4o", "qwen-3"}
