"""A request that goes through all that a proxy has: it waits in a queue, meets a backend that refuses it, and is answered by the
next one. What the proxy must say of it in its access line, its span and /exchanges is known from outside, by the tests' own clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import LAST_CHUNK, Backend, Client, Connection, Proxy, chunk, shut, sse_head
from servers import Server, uvicorn

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

TOKENS = 6
PROMPT_TOKENS = 3
"""Those that the server of tests/backends tells of every prompt."""

PAUSE = 0.05
"""Seconds of each wait that a test is to find again, and more where the machine is slow."""

TURN = 0.01
"""Seconds that a wait may seem shorter: an engine's clock stands still within a turn of its loop."""

CONFIG = """
default_pool = "other"

[pools.large]
models = ["tiny", "tiny-1"]
max_in_flight = 1
queue = {{ size = 8, timeout = "60s" }}

[[pools.large.backends]]
name = "gpu1"
url = "{gpu1}"

[[pools.large.backends]]
name = "gpu2"
url = "{gpu2}"
tier = 1

[pools.other]
models = ["other"]
max_in_flight = 4

[[pools.other.backends]]
name = "cpu1"
url = "{gpu2}"
"""


@dataclass
class Journey:
    """What is known of the request from outside.

    Attributes:
        request_id: that the client gave it.
        request: its bytes.
        answer: all that the client got.
        server_port: where the backend that answered listens.
        queued: seconds that it waited in the queue at least.
        before_first: seconds from the head of the answer to its first token at least.
        first: seconds from its first byte to its first token at most.
        streamed: seconds from its first token to its last one at least.
        began: seconds since 1970, no later than its first byte.
    """

    request_id: str
    request: bytes
    answer: bytes
    server_port: int
    queued: float
    before_first: float
    first: float
    streamed: float
    began: float


def chat(model: str, request_id: str, *fields: str, **more: object) -> bytes:
    """A request for a chat completion."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS, **more}
    body = json.dumps(asked)
    head = [
        "POST /v1/chat/completions?api_key=sk-secret HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        f"X-Request-ID: {request_id}",
        f"Content-Length: {len(body)}",
        *fields,
    ]
    return "\r\n".join([*head, "", body]).encode()


def travel(proxy: Proxy, gpu1: Backend, busy: threading.Event, gpu2: Server) -> Journey:
    """Sends two requests. The first has the only place of the pool, at `gpu1`, until `busy` is set; the second makes the journey."""
    request_id = "the-whole-way"
    traced = (f"traceparent: 00-{TRACE}-{PARENT}-01", f"X-Name: {request_id}", "X-Gated: 1")
    request = chat("tiny-1", request_id, *traced, stream=True, stream_options={"include_usage": True})
    with Client(proxy) as first, Client(proxy) as second:
        first.send(chat("tiny", "the-one-before", stream=True))
        first.read_head()
        began, begun = time.time(), time.monotonic()
        second.send(request)
        proxy.wait_metric("llmpipe_queue_length", 1, pool="large")
        waits = time.monotonic()
        shut(gpu1._listener, reset=False)  # who has been accepted stays; who comes is refused
        time.sleep(PAUSE)
        queued = time.monotonic() - waits - TURN
        busy.set()
        first.recv_until(LAST_CHUNK)
        answer = second.read_head()
        answered = time.monotonic()
        time.sleep(PAUSE)
        before_first = time.monotonic() - answered - TURN
        gpu2.open(request_id)
        answer += second.recv_until(b"\n\n\r\n")
        streams = time.monotonic()
        time.sleep(PAUSE)
        streamed = time.monotonic() - streams - TURN
        gpu2.open(request_id, TOKENS + 2)  # the figures and the end have a gate too
        answer += second.recv_until(LAST_CHUNK)
    return Journey(request_id, request, answer, gpu2.port, queued, before_first, streams - begun, streamed, began)


@contextmanager
def travelled(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[tuple[Proxy, Journey]]:
    """A proxy of two pools, when a request has made the journey."""
    busy = threading.Event()

    def hold(connection: Connection) -> None:
        connection.read_request()
        head = sse_head().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.send(head + chunk(b"data: 1\n\n"))
        busy.wait()
        connection.send(LAST_CHUNK)
        connection.close()

    with uvicorn() as gpu2, Backend(hold) as gpu1:
        path = folder / "llmpipe.toml"
        path.write_text(CONFIG.format(gpu1=gpu1.url, gpu2=gpu2.url))
        try:
            with Proxy(options=("--config", str(path), *options), env=env) as proxy:
                yield proxy, travel(proxy, gpu1, busy, gpu2)
        finally:
            busy.set()
