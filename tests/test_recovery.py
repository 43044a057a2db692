"""Rules L1 and N1 on the simulated kernel: the way back of a backend that failed, and answers that wait for their first event."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from scripts import Script, judge

LONG, WAIT = 101, 50  # of the operation "time": 5 s, 50 ms
POST_LONG, HEAD = 11, 8  # of REQUESTS
WELL = 1  # of "backend_answer"
EVENTS, HALF_AN_EVENT = 2, 20  # of RESPONSES
REFUSED, SOON, HANGS = 3, 0, 2  # of "backend_connect"
RESETS = 0x20  # in `who` of "backend_answer"


def run(world: ModuleType, script: Script) -> dict[str, Any]:
    result: dict[str, Any] = world.run(bytes(script))
    judge(world, result, bytes(script))
    return result


def sent_to(result: dict[str, Any]) -> Counter[int]:
    """Requests by server."""
    return Counter(who for _, what, who, *_ in result["trace"] if what == "sent")


@pytest.mark.parametrize("drain", [False, True])
def test_l1_who_waits_for_a_backend_is_told_when_it_is_back(world: ModuleType, drain: bool) -> None:
    """In a drain too."""
    script = Script(world).set(cold_timeout=30.0)
    script.backend_connect(0, REFUSED).connect().client_say(0, 0).time(0, WAIT)
    if drain:
        script.drain()
    script.backend_connect(0, SOON).backend_answer(0, WELL).time(0, LONG).time(0, LONG)
    assert run(world, script)["outcomes"] == {"ok": 1}


@pytest.mark.parametrize("cold", [0.0, 30.0])
def test_l1_a_backend_is_back_on_any_of_its_addresses(world: ModuleType, cold: float) -> None:
    """The one that was connected last is refused, the other is well."""
    script = Script(world, table=("addresses", "two")).set(cold_timeout=cold, keepalive_timeout=0.0)
    script.backend_answer(1, WELL).backend_connect(0, REFUSED).backend_connect(2, REFUSED).connect().client_say(0, 0)
    script.time(0, WAIT).backend_connect(2, SOON).backend_answer(2, WELL)
    for _ in range(8):
        script.time(0, LONG).client_say(0, 0).client_say(0, 0)
    result = run(world, script)
    assert result["outcomes"] == {"ok": 17}
    assert sent_to(result)[2] >= 6


def test_l1_a_connect_that_hangs_holds_up_nobody(world: ModuleType) -> None:
    script = Script(world, table=("two",)).set(keepalive_timeout=0.0, connect_timeout=30.0)
    script.backend_answer(1, WELL).backend_connect(0, REFUSED).connect().client_say(0, 0).time(0, WAIT)
    script.backend_connect(0, HANGS)
    for _ in range(20):
        script.time(0, LONG).client_say(0, 0)
    result = run(world, script)
    assert result["outcomes"] == {"ok": 21}
    assert set(sent_to(result)) == {1}


def test_l1_a_server_that_accepts_and_resets_costs_no_request(world: ModuleType) -> None:
    """The connection that showed that it is there was never used: what comes of the first request on it is no stale connection's."""
    script = Script(world, table=("two",)).set(keepalive_timeout=0.0)
    script.backend_connect(0, REFUSED).backend_answer(1, WELL).connect().client_say(0, 0).time(0, LONG)
    script.backend_connect(0, SOON).backend_answer(RESETS, WELL)
    for _ in range(12):
        script.client_say(0, 0).time(0, LONG)
    result = run(world, script)
    assert result["outcomes"] == {"ok": 13}
    assert sum(result["stats"]["retries"]) >= 2


def test_n1_a_request_that_lost_its_beginning_is_not_sent_again(world: ModuleType) -> None:
    """Its body goes on while the answer is held, and becomes longer than what is kept."""
    script = Script(world, table=("two",)).set(on_error_event=True, failover_body=256)
    script.connect().client_say(0, POST_LONG).client_fill(0, 4).upstream_say(0, HALF_AN_EVENT)
    script.client_fill(0, 100).client_fill(0, 40).upstream_fin(0).time(0, 10)
    result = run(world, script)
    assert len(result["upstreams"]) == 1
    assert sum(result["stats"]["retries"]) == 0


def test_n1_an_answer_without_a_body_has_no_event_to_wait_for(world: ModuleType) -> None:
    script = Script(world, table=("two",)).set(on_error_event=True)
    script.connect().client_say(0, HEAD).upstream_say(0, EVENTS).time(0, 10)
    result = run(world, script)
    assert result["outcomes"] == {"ok": 1}
    assert len(result["upstreams"]) == 1
