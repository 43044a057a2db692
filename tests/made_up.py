"""Records as an engine would make them, for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

from llmpipe._pipe import OUTCOMES, PHASES, REASONS
from llmpipe.config import parse_backend
from llmpipe.fleet import Fleet, Server
from llmpipe.record_kinds import Attempt, ExchangeEnded

OUTCOME, PHASE, REASON = OUTCOMES.index, PHASES.index, REASONS.index

SERVERS = [
    Server("gpu1", parse_backend("http://gpu1:8000?name=gpu1"), (("192.0.2.1", 8000),)),
    Server("gpu2", parse_backend("http://gpu2:8001?name=gpu2"), (("192.0.2.2", 8001),)),
    Server("local", parse_backend("unix:/run/vllm.sock?name=local"), (("unix:/run/vllm.sock", 0),)),
]

FLEET = Fleet()
FLEET.number([1, 2, 3], SERVERS, {})


def record(**changes: Any) -> ExchangeEnded:
    """Of an exchange that waited, met a backend that refused it, and was answered by the next one; with some changes."""
    whole = ExchangeEnded(
        age=0.25,
        backend=2,
        client=b"192.0.2.7",
        method=b"POST",
        target=b"/v1/chat/completions?key=secret",
        request_id=b"id-1",
        status=200,
        outcome=OUTCOME("ok"),
        phase=PHASE("stream"),
        ttft=0.24,
        duration=1.0,
        bytes_up=300,
        bytes_down=4000,
        attempts=2,
        close_time=None,
        error=0,
        reason=REASON("ECONNREFUSED"),
        pool=b"llama",
        model=b"llama-3.3-70b",
        head=0.02,
        queued=0.1,
        connected=0.15,
        answered=0.2,
        last=0.99,
        events=36,
        prompt_tokens=12,
        completion_tokens=34,
        cached_tokens=8,
        traceparent=b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        failed=(Attempt(1, 0.13, REASON("ECONNREFUSED")),),
    )
    return whole._replace(**changes)
