"""What the backend programs share: how they start, what they print, and the contents that they serve.

Nothing here speaks HTTP: each program leaves that to its own framework, which is what the tests are about. A program listens
on the port that its command line names (0 takes a free one), prints "listening PORT" and then a line for each thing that a
test wants to know. It ends when its standard input does, so that it cannot outlive the test run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gzip
import json
import os
import random
import socket
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

MODEL = "tiny"
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "tests"}]}

EVENT_PIECES = [
    b": the first comment\n\n",
    b'data: {"token": "line feeds"}\n\n',
    b'data: {"token": "carriage returns too"}\r\n\r\n',
    b"event: cut\ndata: in t",
    b"wo\n\n: comment between\r\n\r\n",
    b"id: 7\nretry: 100\ndata: several\ndata: lines \xe2\x82\xac\n\n",
    b"data: \xe4\xb8",  # half a character
    b"\xad\n\n\n\n\r\n",
    b": ping\n\n" * 3,
    b"data: [DONE]\n\n",
    b'data: {"usage": "behind the end"}\n\n',
    b"data: without a last empty line",
]

counts: Counter[str] = Counter()
"""How often a name was asked for."""


def say(*words: object) -> None:
    """Prints a line for the test."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def start(
    configure: Callable[[argparse.ArgumentParser], object] | None = None,
) -> tuple[socket.socket, argparse.Namespace]:
    """Reads the command line and listens; connections wait in the backlog from here on, so nobody comes too early."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    if configure:
        configure(parser)
    options = parser.parse_args()
    sock = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    say("listening", sock.getsockname()[1])

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return sock, options


class Gates:
    """Where a handler stops until the test lets it go on. Silence lasts as long as the test wants, on any machine."""

    def __init__(self) -> None:
        self._gates: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(0))

    async def wait(self, name: str) -> None:
        await self._gates[name].acquire()

    def open(self, name: str, n: int) -> None:
        """Lets `n` waits pass, now or later."""
        for _ in range(n):
            self._gates[name].release()


gates = Gates()


def echo_answer(
    method: str, target: str, version: str, fields: list[tuple[bytes, bytes]], length: int
) -> dict[str, Any]:
    text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
    return {"method": method, "target": target, "version": version, "fields": text, "length": length}


def zipped() -> bytes:
    return gzip.compress(b"the same words again and again, " * 1000, mtime=0)


@functools.lru_cache(maxsize=4)
def content(n: int) -> bytes:
    """`n` bytes, the same every time, that no mix-up leaves intact. Kept, as many may ask for it at once."""
    return random.Random(n).randbytes(n)


def piece(name: str, index: int) -> bytes:
    """What a gated answer sends behind its gate."""
    return f"data: {name} {index}\n\n".encode()


@dataclass
class Chat:
    """A chat completion as a test asked for it: the usual body, and fields that say how it should go wrong."""

    name: str
    prompt: str
    n: int
    stream: bool
    usage: bool
    gated: bool
    cut: int
    status: int

    @classmethod
    def parse(cls, body: bytes, fields: Mapping[str, str]) -> Chat:
        asked = json.loads(body)
        return cls(
            name=fields.get("x-name", "-"),
            prompt=asked["messages"][-1]["content"],
            n=asked.get("max_tokens", 8),
            stream=asked.get("stream", False),
            usage=(asked.get("stream_options") or {}).get("include_usage", False),
            gated="x-gated" in fields,
            cut=int(fields.get("x-cut", -1)),
            status=int(fields.get("x-status", 200)),
        )

    def token(self, index: int) -> str:
        return f" {self.prompt}:{index}" + ("", "\u00e9", "\u4e2d\u6587", "\U0001f600", "\n\n\u2028", '"\\')[index % 6]

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.name}", "object": kind, "created": 1, "model": MODEL}

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": 3, "completion_tokens": self.n, "total_tokens": 3 + self.n}

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return (
            b"data: %s\n\n" % json.dumps({**self._about("chat.completion.chunk"), "choices": choices, **more}).encode()
        )

    def events(self) -> list[bytes]:
        """The whole stream. The first event is the first token: nothing comes before it."""

        def choice(index: int) -> dict[str, Any]:
            delta = {"role": "assistant"} if index == 0 else {}
            last = "length" if index == self.n - 1 else None
            return {"index": 0, "delta": {**delta, "content": self.token(index)}, "finish_reason": last}

        events = [self._event([choice(index)]) for index in range(self.n)]
        if self.usage:
            events.append(self._event([], usage=self._usage()))
        return [*events, b"data: [DONE]\n\n"]

    def completion(self) -> dict[str, Any]:
        text = "".join(map(self.token, range(self.n)))
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "length"}]
        return {**self._about("chat.completion"), "choices": choices, "usage": self._usage()}

    def error(self) -> dict[str, Any]:
        return {
            "error": {"message": f"made to fail: {self.name}", "type": "tests", "param": "x-status", "code": "made"}
        }

    async def pace(self, index: int) -> None:
        """Stands before each token."""
        if index == self.cut:
            raise ConnectionError("made to break off")
        if self.gated:
            await gates.wait(self.name)

    async def generate(self) -> AsyncIterator[bytes]:
        """The events one by one; says so when it is stopped."""
        say("started", self.name)
        for index, event in enumerate(self.events()):
            with saying_if_stopped(self.name):
                await self.pace(min(index, self.n))
                yield event
        say("finished", self.name)

    async def compute(self) -> dict[str, Any]:
        """The completion, once its gate is open."""
        say("started", self.name)
        with saying_if_stopped(self.name):
            await self.pace(0)
        say("finished", self.name)
        return self.completion()


@contextlib.contextmanager
def saying_if_stopped(name: str):
    """Where a framework stops a handler, the test hears of it."""
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        say("stopped", name)
        raise


async def gated(name: str, n: int) -> AsyncIterator[bytes]:
    """Pieces that come one by one as the test opens the gate."""
    for index in range(n):
        await gates.wait(name)
        yield piece(name, index)


async def sse() -> AsyncIterator[bytes]:
    """An event stream with everything that the format allows, cut in strange places."""
    for part in EVENT_PIECES:
        yield part
        await asyncio.sleep(0.002)


async def blocks(data: bytes, size: int = 60_000) -> AsyncIterator[bytes]:
    """Data in blocks."""
    for start_ in range(0, len(data), size):
        yield data[start_ : start_ + size]


async def broken(n: int) -> AsyncIterator[bytes]:
    """Sends `n` bytes and fails."""
    yield b"x" * n
    await asyncio.sleep(0.05)
    raise ConnectionError("made to break off")
