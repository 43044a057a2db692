"""A mock inference server: speaks the OpenAI API, writes tokens at a steady pace, and stops when its client leaves.

For trying the proxy, and for tests and demonstrations. Its text means nothing. It may not be used by the proxy itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from itertools import cycle, islice

from prometheus_client import CollectorRegistry, Gauge, make_asgi_app

from llmpipe import log
from llmpipe.background import App, Receive, Scope, Send, send_json
from llmpipe.mock_capacity import UNLIMITED, Capacity, parse_queue
from llmpipe.mock_completion import MAX_TOKENS, Completion, Pace, RefusedError, read_completion
from llmpipe.mock_faults import Fault, read_fault
from llmpipe.mock_replay import PlayedAnswer, Replay

__all__ = ["DEFAULT_MODEL", "MAX_TOKENS", "UNLIMITED", "Capacity", "MockApp", "Pace", "parse_queue"]

WORDS = (
    "The", "proxy", "forwards", "each", "token", "the", "moment", "it", "arrives,", "holds", "no", "answer", "in", "memory,",
    "and", "closes", "the", "backend", "as", "soon", "as", "the", "client", "has", "left.",
)  # fmt: skip

MAX_BODY = 64 << 20

DEFAULT_MODEL = "mock"


class _Answer:
    """One answer as it is written; counts its tokens."""

    def __init__(
        self, completion: Completion, fault: Fault, capacity: Capacity, send: Send, transport: asyncio.Transport
    ) -> None:
        """Args:
        completion: what is answered.
        fault: what goes wrong.
        capacity: where it waits for its turn, and what gives it its pace.
        send: takes the answer.
        transport: the client's connection, for the fault.
        """
        self.completion = completion
        self.made = 0
        self._fault = fault
        self._capacity = capacity
        self._send = send
        self._transport = transport
        self._turn: asyncio.Future[None] | None = None

    def log_left(self) -> None:
        """Its client has left."""
        completion = self.completion
        if self._turn is not None and self._turn.done() and not self._turn.cancelled():
            log.info("generation stopped", id=completion.id, tokens=self.made, of=completion.pace.tokens)
        else:
            log.info("request left the queue", id=completion.id)

    async def write(self) -> None:
        """Raises:
        RefusedError: there is no room for its request.
        """
        with self._capacity.place() as self._turn:
            await self._fault.before_head(self._transport)
            await (self._write_stream() if self.completion.stream else self._write_whole())

    async def _write_whole(self) -> None:
        parts = []
        async for token in self._tokens():
            parts.append(token)
            self.made += 1
        await send_json(self._send, 200, self.completion.whole("".join(parts)))

    async def _write_stream(self) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._body(b"")  # the head goes at once, as those of vLLM and SGLang do, even if the request has to wait
        async for token in self._tokens():
            await self._body(self.completion.chunk(token, first=self.made == 0))
            self.made += 1
        await self._body(self.completion.chunk(None, finish="length"))
        if self.completion.include_usage:
            await self._body(self.completion.usage_chunk())
        await self._body(b"data: [DONE]\n\n", more=False)

    async def _tokens(self) -> AsyncIterator[str]:
        """Waits for its turn, reads the prompt, and writes tokens at a pace that does not drift: each has its time from the
        start.
        """
        assert self._turn is not None
        await self._turn
        pace = self.completion.pace
        await asyncio.sleep(pace.ttft + self._capacity.prefill_time(self.completion.prompt_tokens))
        start = self._capacity.now()
        for number, word in enumerate(islice(cycle(WORDS), pace.tokens)):
            await self._fault.after_tokens(number, self._transport)
            if pace.tokens_per_second:
                await self._capacity.work_until(start + number / pace.tokens_per_second)
            yield word if number == 0 else f" {word}"
        await self._fault.after_tokens(pace.tokens, self._transport)

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
            raise RefusedError(400, "the body is too long")
        if not message.get("more_body"):
            return b"".join(parts)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write_watched(answer: _Answer | PlayedAnswer, receive: Receive) -> None:
    """Writes the answer, and stops when the client leaves: what an inference server does to free its GPU."""
    writing = asyncio.ensure_future(answer.write())
    leaving = asyncio.ensure_future(_left(receive))
    # This task is cancelled when the server itself is ended, which stops the generation as well.
    with suppress(asyncio.CancelledError):
        await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not writing.cancel() and not writing.cancelled():
        writing.result()  # raises what went wrong
    else:
        answer.log_left()


async def _send_error(send: Send, error: RefusedError) -> None:
    extra = () if error.retry_after is None else ((b"retry-after", b"%d" % error.retry_after),)
    await send_json(send, error.status, error.body, extra)


def _make_metrics(capacity: Capacity) -> App:
    """Serves two gauges under the names that vLLM gives them."""
    registry = CollectorRegistry()
    running = Gauge("vllm:num_requests_running", "Requests that are worked on.", registry=registry)
    running.set_function(lambda: capacity.running)
    waiting = Gauge("vllm:num_requests_waiting", "Requests that wait for a slot.", registry=registry)
    waiting.set_function(lambda: capacity.waiting)
    app: App = make_asgi_app(registry)
    return app


class MockApp:
    """The mock as an ASGI application. Its server puts a connection's transport into the state of the scope."""

    def __init__(
        self,
        pace: Pace,
        capacity: Capacity,
        models: Sequence[str] = (DEFAULT_MODEL,),
        *,
        faults: bool = True,
        may_exit: bool = False,
        replay: Replay | None = None,
    ) -> None:
        """Args:
        pace: of an answer that does not ask for another one.
        capacity: what it works on at once.
        models: their names, at least one. A single one answers to any name.
        faults: whether a request may ask for a fault; else what it asks for is ignored.
        may_exit: whether a fault may end the process.
        replay: what every POST is answered with, instead of a made answer.
        """
        self._pace = pace
        self._capacity = capacity
        self._models = tuple(dict.fromkeys(models))
        self._faults = faults
        self._may_exit = may_exit
        self._replay = replay
        self._metrics = _make_metrics(capacity)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope["method"], scope["path"])
        if self._replay is not None and scope["method"] == "POST":
            await self._play(self._replay, scope, receive, send)
        elif route == ("POST", "/v1/chat/completions"):
            await self._complete(True, scope, receive, send)
        elif route == ("POST", "/v1/completions"):
            await self._complete(False, scope, receive, send)
        elif route == ("GET", "/v1/models"):
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "llmpipe"} for name in self._models]
            await send_json(send, 200, json.dumps({"object": "list", "data": models}).encode())
        elif route == ("GET", "/health"):
            await send_json(send, 200, b'{"status": "ok"}')
        elif route == ("GET", "/metrics"):
            await self._metrics(scope, receive, send)
        else:
            await _send_error(send, RefusedError(404, f"there is no {route[0]} {route[1]} here"))

    async def _complete(self, chat: bool, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)

        def make(raw: bytes, fault: Fault) -> _Answer:
            completion = read_completion(chat, raw, headers, self._pace, self._models)
            return _Answer(completion, fault, self._capacity, send, scope["state"]["transport"])

        await self._answer(make, scope, receive, send)

    async def _play(self, replay: Replay, scope: Scope, receive: Receive, send: Send) -> None:
        come = self._capacity.now()

        def make(_: bytes, fault: Fault) -> PlayedAnswer:
            return PlayedAnswer(replay, fault, self._capacity, send, scope, come=come)

        await self._answer(make, scope, receive, send)

    async def _answer(
        self, make: Callable[[bytes, Fault], _Answer | PlayedAnswer], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers with what `make` makes of the request's body."""
        try:
            fault = self._read_fault(_headers(scope).get("x-mock-fault"))
            fault.before_body()
            raw = await _read_body(receive)
            if raw is None:
                return
            fault.after_body()
            await _write_watched(make(raw, fault), receive)
        except RefusedError as error:
            await _send_error(send, error)

    def _read_fault(self, text: str | None) -> Fault:
        if text is None or not self._faults:
            return Fault()
        fault = read_fault(text)
        if fault.name == "die-process" and not self._may_exit:
            raise RefusedError(400, "x-mock-fault: die-process works with `llmpipe mock` only")
        return fault
