"""A request to the mock, understood, and its answer in the shapes of the OpenAI API."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmpipe.config import parse_duration
from llmpipe.errors import UsageError

MAX_TOKENS = 1_000_000

BYTES_PER_TOKEN = 4
"""Bytes of a prompt's text in UTF-8 that are taken for one token."""


@dataclass(frozen=True)
class Pace:
    """How a mock answers one request that it works on alone."""

    tokens_per_second: float = 50.0
    """0 is as fast as it can."""
    ttft: float = 0.2
    """Seconds before the first token, without those that reading the prompt takes."""
    tokens: int = 64
    """In one answer, unless the request wants fewer."""


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None) -> None:
        """Args:
        status: of HTTP.
        message: one line for the client.
        code: that of the OpenAI API.
        retry_after: seconds in the field Retry-After, if there is one.
        """
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self._error = {
            "message": message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": None,
            "code": code,
        }

    @property
    def body(self) -> bytes:
        return json.dumps({"error": self._error}).encode()


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


def read_number(name: str, value: object, low: float, high: float) -> float:
    """A number that a request gives, as JSON or as text.

    Raises:
        RefusedError: it is none, or out of range; the text says `name`.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RefusedError(400, f"{name} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RefusedError(400, f"{name} must be a number from {low:g} to {high:g}")
    return value


def _read_pace(pace: Pace, headers: Mapping[str, str], body: Mapping[str, Any]) -> Pace:
    """The pace with what the request says of it: headers win over flags, and the request's own limit over both."""
    if "x-mock-tokens-per-second" in headers:
        rate = read_number("x-mock-tokens-per-second", headers["x-mock-tokens-per-second"], 0, 1e6)
        pace = replace(pace, tokens_per_second=rate)
    if "x-mock-ttft" in headers:
        try:
            pace = replace(pace, ttft=parse_duration(headers["x-mock-ttft"]))
        except UsageError as error:
            raise RefusedError(400, f"x-mock-ttft: {error}") from None
    if "x-mock-tokens" in headers:
        pace = replace(pace, tokens=int(read_number("x-mock-tokens", headers["x-mock-tokens"], 0, MAX_TOKENS)))
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            pace = replace(pace, tokens=min(pace.tokens, int(read_number(name, body[name], 0, 1e9))))
    return pace


def _read_model(named: object, models: Sequence[str]) -> str:
    """The model that a request names, or the first. Where there is only one, it answers to any name."""
    model = str(named or models[0])
    if len(models) > 1 and model not in models:
        raise RefusedError(404, f"there is no model {model!r}, only {', '.join(models)}", code="model_not_found")
    return model


def count_tokens(prompt: object) -> int:
    """An estimate of the tokens in messages or in a prompt: all text by its bytes, and each number of a prompt that is given
    as tokens for one.
    """
    size = 0
    left = [prompt]
    while left:
        item = left.pop()
        if isinstance(item, str):
            size += len(item.encode(errors="surrogatepass"))
        elif isinstance(item, int):
            size += BYTES_PER_TOKEN
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, dict):
            left += item.get("content"), item.get("text")
    return -(-size // BYTES_PER_TOKEN)


def read_completion(
    chat: bool, raw: bytes, headers: Mapping[str, str], pace: Pace, models: Sequence[str]
) -> Completion:
    """Understands a request body.

    Raises:
        RefusedError: it is not what the API takes, or there is no such model.
    """
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not a JSON object")
    prompt = body.get("messages") if chat else body.get("prompt")
    if not prompt or (chat and not isinstance(prompt, list)):
        raise RefusedError(400, "messages is missing" if chat else "prompt is missing")
    options = body.get("stream_options") or {}
    return Completion(
        chat=chat,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        model=_read_model(body.get("model"), models),
        prompt_tokens=count_tokens(prompt),
        pace=_read_pace(pace, headers, body),
        id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
        created=int(time.time()),
    )
