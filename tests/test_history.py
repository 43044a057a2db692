"""Rates, percentiles, samples and failures of the last minutes: what is made of the engines' counters."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from llmpipe._pipe import EDGES, OUTCOMES, PHASES, REASONS
from llmpipe.fleet import Fleet
from llmpipe.histogram import Counts, quantile, since, total
from llmpipe.history import INTERVAL, MOST_FAILURES, MOST_SAMPLES, History, Recent, make_sample, take_snapshot
from llmpipe.record_kinds import BackendUp, ExchangeEnded

set_hypothesis_home_dir("build/hypothesis")  # not the folder that tests are looked for in
anything = settings(database=None, deadline=None, derandomize=True)

# Log-linear buckets of microseconds: those below 64 one by one, then 32 an octave.
GRID = [n / 1e6 for n in range(64)] + [(32 + n) * 2**k / 1e6 for k in range(1, 27) for n in range(32)] + [2**33 / 1e6]

times = st.floats(1e-6, 3600, allow_nan=False)
counts = st.dictionaries(st.integers(0, 50), st.integers(0, 1000), max_size=20)


def bucket(value: float) -> int:
    return max(index for index, edge in enumerate(GRID[:-1]) if edge <= value)


@anything
@given(st.lists(times, min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_that_of_the_values_themselves_within_two_percent(values: list[float], q: float) -> None:
    found = quantile(Counter(map(bucket, values)), q, GRID)
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert found == pytest.approx(exact, rel=0.02, abs=0.51e-6)


def test_nothing_has_no_quantile() -> None:
    assert quantile({}, 0.5, GRID) is None
    assert quantile({3: 0}, 0.5, GRID) is None


def test_empty_buckets_are_no_values() -> None:
    assert quantile({1: 0, 4: 2, 9: 0}, 0.0, GRID) == quantile({4: 1}, 1.0, GRID) == pytest.approx(4.5e-6)


@anything
@given(st.lists(counts, max_size=5))
def test_sums_have_all_that_was_counted(parts: list[dict[int, int]]) -> None:
    made = total(parts)
    assert sum(made.values()) == sum(sum(part.values()) for part in parts)
    assert all(made[index] == sum(part.get(index, 0) for part in parts) for index in made)


@anything
@given(counts, counts)
def test_what_was_added_is_found_again(before: dict[int, int], more: dict[int, int]) -> None:
    assert since(total([before, more]), before) == {index: count for index, count in more.items() if count}


def test_what_has_gone_counts_as_nothing() -> None:
    assert since({1: 2, 2: 5}, {1: 3, 2: 1, 7: 9}) == {2: 4}


class Engines:
    """Two engines that share, and one backend of the number 7."""

    def __init__(self) -> None:
        self.outcomes = [[0] * len(OUTCOMES) for _ in range(2)]
        self.backend = [[0, 0], [0, 0]]
        self.tokens = [{b"a": (9, 0, 9)}, {b"a": (9, 0, 9), b"b": (9, 0, 9)}]
        self.pieces = [0, 0]
        self.streams = [0, 0]
        self.waiting = {b"p": 0, b"q": 0}
        self.times: dict[int, tuple[Counter[int], Counter[int]]] = {7: (Counter(), Counter())}

    def end(self, outcome: str, engine: int = 0, times: int = 1) -> None:
        self.outcomes[engine][OUTCOMES.index(outcome)] += times
        self.backend[engine][0] += times

    def stats(self) -> Any:
        return [
            {
                "outcomes": self.outcomes[engine],
                "reads_forwarded": self.pieces[engine],
                "streaming_active": self.streams[engine],
                "tokens": self.tokens[engine],
                "pools": {name: {"waiting": waiting} for name, waiting in self.waiting.items()},
                "backends": {7: {"exchanges": self.backend[engine][0], "failures": self.backend[engine][1]}},
            }
            for engine in range(2)
        ]

    def latencies(self) -> Mapping[int, tuple[Counts, Counts]]:
        return {number: (dict(ttft), dict(itl)) for number, (ttft, itl) in self.times.items()}


def middle(index: int) -> float:
    return (EDGES[index] + EDGES[index + 1]) / 2


NONE = {"p50": None, "p90": None, "p99": None}


def test_rates_are_of_two_intervals_and_percentiles_of_twelve() -> None:
    engines = Engines()
    snapshots = [take_snapshot(engines, 0.0)]
    for number in range(1, 20):
        engines.end("ok", engine=number % 2, times=3)
        engines.end("client_abort")
        engines.end("timeout_ttft")
        engines.backend[0][1] += 2
        engines.tokens[1][b"b"] = (0, 100 * number, 0)
        engines.pieces[0] += 50
        engines.times[7][0][number] += 1
        snapshots.append(take_snapshot(engines, 5.0 * number))
    recent = Recent(snapshots)
    made = recent.totals()
    assert made["rates"] == {"exchanges": 1.0, "errors": 0.2, "tokens": 20.0, "pieces": 10.0}
    # Of the buckets 8 to 19, one value each.
    assert made["ttft"] == {"p50": middle(13), "p90": middle(18), "p99": middle(19)}
    assert made["itl"] == NONE
    assert recent.backend(7) == {
        "rates": {"exchanges": 1.0, "errors": 0.4},
        "ttft": made["ttft"],
        "itl": NONE,
    }
    for unknown in (None, 8):
        assert recent.backend(unknown) == {"rates": {"exchanges": 0.0, "errors": 0.0}, "ttft": NONE, "itl": NONE}


def test_before_there_are_two_intervals_a_rate_is_of_the_time_since_the_start() -> None:
    engines = Engines()
    snapshots = [take_snapshot(engines, 100.0)]
    assert Recent(snapshots).totals()["rates"]["exchanges"] == 0.0
    engines.end("ok", times=10)
    assert Recent([*snapshots, take_snapshot(engines, 105.0)]).totals()["rates"]["exchanges"] == 2.0


def test_a_backend_that_is_gone_takes_nothing_from_what_the_others_did() -> None:
    engines = Engines()
    engines.times[8] = (Counter({5: 100}), Counter())
    before = take_snapshot(engines, 0.0)
    del engines.times[8]
    engines.times[7][0][40] += 1
    engines.times[9] = (Counter({40: 1}), Counter({3: 2}))
    now = take_snapshot(engines, 5.0)
    assert Recent([before, now]).totals()["ttft"]["p50"] == middle(40)
    assert Recent([before, now]).backend(9)["itl"]["p99"] == middle(3)
    assert Recent([before, now]).backend(8)["ttft"] == NONE


def test_a_sample_is_of_its_own_interval() -> None:
    engines = Engines()
    engines.end("ok", times=50)
    engines.times[7][0][10] += 50
    before = take_snapshot(engines, 0.0)
    engines.end("ok", times=8)
    engines.end("upstream_abort", engine=1, times=2)
    engines.tokens[0][b"a"] = (9, 15, 9)
    engines.streams, engines.waiting[b"q"] = [3, 4], 5
    engines.times[7][0].update({20: 9, 30: 1})
    engines.times[7][1].update({2: 1})
    assert make_sample(take_snapshot(engines, 5.0), before, 1e9 + 0.1234567) == {
        "at": 1e9 + 0.123,
        "streams": 7,
        "exchanges": 2.0,
        "errors": 0.4,
        "tokens": 3.0,
        "queued": 5,
        "ttft_p50": middle(20),
        "ttft_p99": middle(30),
        "itl_p50": middle(2),
        "itl_p99": middle(2),
    }


def test_a_quarter_of_an_hour_is_kept() -> None:
    engines, history = Engines(), History(Fleet())
    for streams in range(MOST_SAMPLES + 11):
        engines.streams = [streams, 0]
        history.take(engines)
    shown = history.shown()
    assert (shown["interval"], MOST_SAMPLES * INTERVAL) == (5, 900)
    assert [sample["streams"] for sample in shown["samples"]] == list(range(11, MOST_SAMPLES + 11))


def test_the_timer_takes_samples_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.history.INTERVAL", 0.01)

    async def run() -> None:
        history = History(Fleet())
        history.start(Engines())
        assert history.samples == ()
        assert history.recent.totals()["rates"]["exchanges"] == 0.0
        while len(history.samples) < 3:
            await asyncio.sleep(0.01)
        history.close()
        taken = history.samples
        await asyncio.sleep(0.05)
        assert history.samples is taken

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_sample_that_cannot_be_taken_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmpipe.history.INTERVAL", 0.01)
    engines = Engines()

    async def run() -> None:
        history = History(Fleet())
        history.start(engines)
        monkeypatch.delattr(engines, "streams")
        while not caplog.records:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        taken = len(history.samples)
        while len(history.samples) < taken + 2:
            await asyncio.sleep(0.01)
        history.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    line = caplog.records[0]
    assert line.getMessage() == "sample not taken"
    assert "has no attribute 'streams'" in vars(line)["fields"]["error"]


def ended(number: int, outcome: str, age: float = 0.0, **changed: object) -> ExchangeEnded:
    plain = dict.fromkeys(ExchangeEnded._fields, 0) | {
        "age": age,
        "backend": None,
        "request_id": b"id-%d" % number,
        "outcome": OUTCOMES.index(outcome),
        "pool": b"",
        "model": b"",
    }
    return ExchangeEnded(**(plain | changed))


def test_the_last_failures_are_kept_newest_first() -> None:
    history = History(Fleet())
    for number in range(MOST_FAILURES + 5):
        history.note(ended(number, "upstream_error", age=100 - number))
        history.note(ended(1000, "ok"))
        history.note(ended(1001, "client_abort"))
        history.note(BackendUp(0.0, 0))
    history.note(ended(2000, "overload", age=90.5))  # another engine's, told late
    found = [row["request_id"] for row in history.failures()]
    newest = [f"id-{number}" for number in range(MOST_FAILURES + 4, 5, -1)]
    assert found == [*newest[:15], "id-2000", *newest[15:]]


def test_what_is_said_of_a_failure() -> None:
    history = History(Fleet())
    history.note(
        ended(
            1,
            "upstream_error",
            pool="große".encode(),
            model=b"m\xff",
            phase=PHASES.index("wait"),
            reason=REASONS.index("ECONNRESET"),
            status=502,
        )
    )
    (row,) = history.failures()
    assert datetime.fromisoformat(row.pop("at")).utcoffset() is not None
    assert row == {
        "request_id": "id-1",
        "pool": "große",
        "model": "m\ufffd",
        "backend": None,
        "outcome": "upstream_error",
        "phase": "wait",
        "reason": "ECONNRESET",
        "status": 502,
    }
    history.note(ended(2, "no_backend"))
    row = history.failures()[0]
    assert [row[name] for name in ("pool", "model", "backend", "reason", "status")] == [None] * 5
