"""A mock inference server: speaks the OpenAI API, writes tokens at a steady pace, and stops when its client leaves.

For trying the proxy, and for tests and demonstrations. Its text means nothing. It may not be used by the proxy itself.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from llmpipe import log
from llmpipe.background import App, Receive, Scope, Send, send_json
from llmpipe.config import parse_duration
from llmpipe.errors import UsageError

WORDS = (
    "The", "proxy", "forwards", "each", "token", "the", "moment", "it", "arrives,", "holds", "no", "answer", "in", "memory,",
    "and", "closes", "the", "backend", "as", "soon", "as", "the", "client", "has", "left.",
)  # fmt: skip

MAX_TOKENS = 1_000_000
MAX_BODY = 64 << 20


@dataclass(frozen=True)
class Pace:
    """How a mock answers."""

    tokens_per_second: float = 50.0
    """0 is as fast as it can."""
    ttft: float = 0.2
    """Seconds before the first token."""
    tokens: int = 64
    """In one answer, unless the request wants fewer."""
    model: str = "mock"


class RequestError(Exception):
    """A request that a real server would refuse with 400."""


@dataclass(frozen=True)
class Completion:
    """One request, understood."""

    chat: bool
    stream: bool
    include_usage: bool
    model: str
    prompt_tokens: int
    pace: Pace
    id: str
    created: int

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.pace.tokens,
            "total_tokens": self.prompt_tokens + self.pace.tokens,
        }

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def chunk(self, text: str | None, finish: str | None = None, first: bool = False) -> bytes:
        """One event of a stream; `text` None ends the answer."""
        if self.chat:
            delta = {} if text is None else {"content": text}
            if first:
                delta = {"role": "assistant", **delta}
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _event(self._object("chat.completion.chunk", [choice]))
        choice = {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}
        return _event(self._object("text_completion", [choice]))

    def usage_chunk(self) -> bytes:
        return _event(self._object("chat.completion.chunk" if self.chat else "text_completion", [], usage=self.usage))

    def whole(self, text: str) -> bytes:
        """The answer of a request without stream."""
        if self.chat:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
            answer = self._object("chat.completion", [choice], usage=self.usage)
        else:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
            answer = self._object("text_completion", [choice], usage=self.usage)
        return json.dumps(answer).encode()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RequestError(f"{name} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}")
    return value


def _read_pace(pace: Pace, headers: Mapping[str, str], body: Mapping[str, Any]) -> Pace:
    """The pace with what the request says of it: headers win over flags, and the request's own limit over both."""
    if "x-mock-tokens-per-second" in headers:
        rate = _number("x-mock-tokens-per-second", headers["x-mock-tokens-per-second"], 0, 1e6)
        pace = replace(pace, tokens_per_second=rate)
    if "x-mock-ttft" in headers:
        try:
            pace = replace(pace, ttft=parse_duration(headers["x-mock-ttft"]))
        except UsageError as error:
            raise RequestError(f"x-mock-ttft: {error}") from None
    if "x-mock-tokens" in headers:
        pace = replace(pace, tokens=int(_number("x-mock-tokens", headers["x-mock-tokens"], 0, MAX_TOKENS)))
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            pace = replace(pace, tokens=min(pace.tokens, int(_number(name, body[name], 0, 1e9))))
    return pace


def read_completion(chat: bool, raw: bytes, headers: Mapping[str, str], pace: Pace) -> Completion:
    """Understands a request body.

    Raises:
        RequestError: it is not what the API takes.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    prompt = body.get("messages") if chat else body.get("prompt")
    if not prompt or (chat and not isinstance(prompt, list)):
        raise RequestError("messages is missing" if chat else "prompt is missing")
    options = body.get("stream_options") or {}
    return Completion(
        chat=chat,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        model=str(body.get("model") or pace.model),
        prompt_tokens=len(json.dumps(prompt).split()),
        pace=_read_pace(pace, headers, body),
        id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
        created=int(time.time()),
    )


async def _tokens(pace: Pace) -> AsyncIterator[str]:
    """Writes tokens at their pace, which does not drift: each has its time from the start."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(pace.ttft)
    start = loop.time()
    for number, word in enumerate(islice(cycle(WORDS), pace.tokens)):
        if pace.tokens_per_second:
            delay = start + number / pace.tokens_per_second - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
        yield word if number == 0 else f" {word}"


class _Answer:
    """One answer as it is written; counts its tokens."""

    def __init__(self, completion: Completion, send: Send) -> None:
        self._completion = completion
        self._send = send
        self.made = 0

    async def write(self) -> None:
        await (self._write_stream() if self._completion.stream else self._write_whole())

    async def _write_whole(self) -> None:
        parts = []
        async for token in _tokens(self._completion.pace):
            parts.append(token)
            self.made += 1
        await send_json(self._send, 200, self._completion.whole("".join(parts)))

    async def _write_stream(self) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._body(b"")  # the head goes at once, as those of vLLM and SGLang do
        async for token in _tokens(self._completion.pace):
            await self._body(self._completion.chunk(token, first=self.made == 0))
            self.made += 1
        await self._body(self._completion.chunk(None, finish="length"))
        if self._completion.include_usage:
            await self._body(self._completion.usage_chunk())
        await self._body(b"data: [DONE]\n\n", more=False)

    async def _body(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


async def _read_body(receive: Receive) -> bytes | None:
    """The whole request body; None where the client left before its end."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise RequestError("the body is too long")
        if not message.get("more_body"):
            return b"".join(parts)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write_watched(answer: _Answer, completion: Completion, receive: Receive) -> None:
    """Writes the answer, and stops when the client leaves: what an inference server does to free its GPU."""
    writing = asyncio.ensure_future(answer.write())
    leaving = asyncio.ensure_future(_left(receive))
    # This task is cancelled when the server itself is ended, which stops the generation as well.
    with suppress(asyncio.CancelledError):
        await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if writing.cancel() or writing.cancelled():
        log.info("generation stopped", id=completion.id, tokens=answer.made, of=completion.pace.tokens)
    else:
        writing.result()  # raises what went wrong


async def _send_error(send: Send, status: int, message: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    await send_json(send, status, json.dumps({"error": error}).encode())


def make_app(pace: Pace) -> App:
    """The mock as an ASGI application."""

    async def complete(chat: bool, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            raw = await _read_body(receive)
            if raw is None:
                return
            completion = read_completion(chat, raw, headers, pace)
        except RequestError as error:
            await _send_error(send, 400, str(error))
            return
        await _write_watched(_Answer(completion, send), completion, receive)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope["method"], scope["path"])
        if route == ("POST", "/v1/chat/completions"):
            await complete(True, scope, receive, send)
        elif route == ("POST", "/v1/completions"):
            await complete(False, scope, receive, send)
        elif route == ("GET", "/v1/models"):
            model = {"id": pace.model, "object": "model", "created": 0, "owned_by": "llmpipe"}
            await send_json(send, 200, json.dumps({"object": "list", "data": [model]}).encode())
        elif route == ("GET", "/health"):
            await send_json(send, 200, b'{"status": "ok"}')
        else:
            await _send_error(send, 404, f"there is no {route[0]} {route[1]} here")

    return app
