"""Records as an engine would make them, for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.config import parse_backend
from llmpipe.fleet import Fleet, Server
from llmpipe.record_kinds import Attempt, ExchangeEnded
from llmpipe.recording import Piece, Recording

OUTCOME, PHASE, REASON = OUTCOMES.index, PHASES.index, REASONS.index

SERVERS = [
    Server("gpu1", parse_backend("http://gpu1:8000?name=gpu1"), (("192.0.2.1", 8000),)),
    Server("gpu2", parse_backend("http://gpu2:8001?name=gpu2"), (("192.0.2.2", 8001),)),
    Server("local", parse_backend("unix:/run/vllm.sock?name=local"), (("unix:/run/vllm.sock", 0),)),
]

FLEET = Fleet()
FLEET.number([1, 2, 3], SERVERS, {})


TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(**changes: Any) -> ExchangeEnded:
    """Of an exchange that waited, met a backend that refused it, and was answered by the next one; with some changes."""
    whole = ExchangeEnded(
        age=0.5,
        backend=2,
        client=b"192.0.2.7",
        method=b"POST",
        target=b"/v1/chat/completions?api_key=secret",
        request_id=b"0123456789abcdef",
        status=200,
        outcome=OUTCOME("ok"),
        phase=PHASE("stream"),
        ttft=2.0,
        duration=10.0,
        bytes_up=100,
        bytes_down=2000,
        attempts=2,
        close_time=None,
        error=0,
        reason=REASON("ECONNREFUSED"),
        pool=b"chat",
        model="llama-é".encode(),
        head=0.5,
        queued=1.0,
        connected=1.6,
        answered=1.75,
        last=9.0,
        events=66,
        prompt_tokens=7,
        completion_tokens=65,
        cached_tokens=0,
        traceparent=TRACEPARENT,
        failed=(Attempt(1, 1.55, REASON("ECONNREFUSED")),),
    )
    return whole._replace(**changes)


def recording(**changes: Any) -> Recording:
    """Of a stream of two pieces; with some changes."""
    whole = Recording(
        request_id="f61d808d1577045480b0582d0cec9f02",
        started="2026-01-02T03:04:05.678Z",
        method="POST",
        path="/v1/chat/completions",
        model="m",
        pool="p",
        backend="gpu1",
        status=200,
        content_type="text/event-stream",
        outcome="ok",
        reason="",
        cut=False,
        end=3000,
        request_body=None,
        pieces=(Piece(1000, b"data: 1\n\n"), Piece(2000, b"data: 2\n\n")),
    )
    return whole._replace(**changes)
