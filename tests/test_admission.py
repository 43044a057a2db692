"""Rule M: what a queue does with more than can be served, on the simulated kernel's clock.

Hours of load pass in seconds, and nothing here depends on how fast the machine is: an engine of the product's own source serves
requests of a simulated world, in which each backend has some places and works on a request for as long as that says.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Work = Callable[[random.Random], float]
Arrival = tuple[float, float, bytes, float]


def a_second(dice: random.Random) -> float:
    return dice.uniform(0.5, 1.5)


def arrivals(
    rate: float, seconds: float, dice: random.Random, fields: bytes = b"", work: Work = a_second, leaves: float = 0
) -> list[Arrival]:
    """Requests of many clients that know nothing of each other (a Poisson process), so many a second."""
    found = []
    now = dice.expovariate(rate)
    while now < seconds:
        found.append((now, work(dice), fields, leaves))
        now += dice.expovariate(rate)
    return found


def run(world: ModuleType, *streams: list[Arrival], **options: Any) -> dict[str, Any]:
    jobs = sorted((job for stream in streams for job in stream), key=lambda job: job[0])
    result = world.run_admission(jobs, **options)
    assert result["in_flight"] == 0, "every place was given back"
    assert result["waiting"] == 0
    assert sum(result["outcomes"].values()) == len(jobs)
    for job, made in zip(jobs, result["jobs"], strict=True):
        assert made.status in (200, 429, 499)
        assert (made.status == 200) >= bool(made.status == 200 and made.sent), job
    result["arrivals"] = jobs
    return result


def served(result: dict[str, Any], fields: bytes | None = None) -> list[Any]:
    pairs = zip(result["arrivals"], result["jobs"], strict=True)
    return [made for job, made in pairs if made.status == 200 and fields in (None, job[2])]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overload", [1.2, 2.0, 5.0])
def test_m4_goodput_is_the_capacity(world: ModuleType, seed: int, overload: float) -> None:
    # Four places, a second each: four requests a second.
    dice = random.Random(seed)
    result = run(world, arrivals(4 * overload, 300, dice), places=4, queue_size=400)
    good = [job for job in served(result) if 30 < job.answered <= 300]
    assert all(job.sent - job.comes <= 30.0 for job in served(result)), "nobody is served late"
    assert len(good) / 270 >= 0.95 * 4
    assert result["outcomes"].keys() <= {"ok", "queue_timeout", "queue_full"}


@pytest.mark.parametrize("patience", [5.0, 12.5])
@pytest.mark.parametrize("field", [b"x-request-timeout: %g", b"X-Stainless-Read-Timeout: %g", b"grpc-timeout: %dm"])
def test_m3_a_client_that_is_less_patient_is_not_served_late(world: ModuleType, patience: float, field: bytes) -> None:
    fields = field % (patience * 1000 if b"grpc" in field else patience) + b"\r\n"
    dice = random.Random(5)
    result = run(world, arrivals(8, 120, dice, fields), places=4)
    good = [job for job in served(result) if 20 < job.answered <= 120]
    assert len(good) / 100 >= 0.95 * 4
    # What a backend needs until it answers is allowed for, once some have answered.
    late = [job for job in served(result) if job.answered > 20 and job.answered - job.comes > patience]
    assert len(late) <= 0.05 * len(good)
    # Who cannot be served in time is told at once, but for those whose turn came later than it looked.
    refused = [job for job in result["jobs"] if job.status == 429 and job.comes > 20]
    at_once = [job for job in refused if job.answered - job.comes < 0.1]
    assert len(at_once) > 0.5 * len(refused)


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


@pytest.mark.parametrize("size", [20, 250])
@pytest.mark.parametrize("seed", range(3))
def test_m2_one_that_asks_ten_times_as_much_gets_no_more(world: ModuleType, seed: int, size: int) -> None:
    # However many of its requests are there first: a full queue has room for those who have less in it.
    dice = random.Random(seed)
    one, ten = b"X-Tenant: one\r\n", b"X-Tenant: ten\r\n"
    result = run(world, arrivals(6, 300, dice, one), arrivals(60, 300, dice, ten), places=4, queue_size=size)
    shares = [len([job for job in served(result, who) if 30 < job.sent <= 300]) for who in (one, ten)]
    assert jain(shares) >= 0.99, shares
    assert sum(shares) / 270 >= 0.95 * 4


@pytest.mark.parametrize("size", [10, 200])
def test_m2_who_asks_little_waits_little(world: ModuleType, size: int) -> None:
    # One request every ten seconds, beside one that asks for all: it is served next, not behind hundreds.
    dice = random.Random(3)
    few, many = b"X-Tenant: few\r\n", b"X-Tenant: many\r\n"
    result = run(world, arrivals(0.1, 300, dice, few), arrivals(20, 300, dice, many), places=4, queue_size=size)
    waits = [job.sent - job.comes for job in served(result, few)]
    assert len(waits) == len([job for job in result["arrivals"] if job[2] == few]), "none was refused"
    assert max(waits) < 2.5


def test_m2_higher_classes_go_first_and_none_starves(world: ModuleType) -> None:
    dice = random.Random(4)
    streams = {name: b"X-Priority: %s\r\n" % name for name in (b"high", b"normal", b"low")}
    rate = {b"high": 2, b"normal": 4, b"low": 4}
    work = [arrivals(rate[name], 300, dice, field) for name, field in streams.items()]
    result = run(world, *work, places=4, queue_size=250)
    rates = {
        name: len([job for job in served(result, field) if job.sent > 30]) / 270 for name, field in streams.items()
    }
    high = [made for job, made in zip(result["arrivals"], result["jobs"], strict=True) if job[2] == streams[b"high"]]
    assert all(job.status == 200 for job in high), "a full queue has room for it"
    assert rates[b"low"] > 0.45, "one in eight"
    waits = [job.sent - job.comes for job in served(result, streams[b"high"])]
    assert statistics.median(waits) < 2


def test_m2_earlier_deadlines_go_first(world: ModuleType) -> None:
    # Ten that wait, in the wrong order; then the place is free.
    jobs = [(0.0, 1.0, b"", 0.0)]
    jobs += [(0.1 + i / 100, 0.01, b"x-request-timeout: %d\r\n" % (29 - i), 0.0) for i in range(10)]
    result = run(world, jobs, places=1)
    order = sorted(range(1, 11), key=lambda i: result["jobs"][i].sent)
    assert order == list(range(10, 0, -1))


@pytest.mark.parametrize("seed", range(3))
def test_m4_retry_after_is_the_wait(world: ModuleType, seed: int) -> None:
    # Beside the wait of the request that was taken last before the one that was refused.
    dice = random.Random(seed)
    result = run(world, arrivals(8, 600, dice), places=4, queue_size=60, queue_timeout=300.0)
    ratios, last = [], None
    for job in result["jobs"]:
        if job.status == 200 and job.sent - job.comes > 1:
            last = job
        elif job.status == 429 and last is not None and job.comes > 60:
            ratios.append(job.again / (last.sent - last.comes))
            assert 1 <= job.again <= 120
    assert len(ratios) > 500
    assert 0.5 <= statistics.median(ratios) <= 2
    assert statistics.pstdev([job.again for job in result["jobs"] if job.status == 429]) > 0.3, "not all at once"


def test_m4_a_full_queue_refuses(world: ModuleType) -> None:
    jobs = [(i / 1000, 1000.0, b"", 0.0) for i in range(10)]
    result = world.run_admission([*jobs], places=2, queue_size=5, queue_timeout=100.0)
    assert [job.status for job in result["jobs"]].count(429) == 8
    assert result["outcomes"] == {"ok": 2, "queue_full": 3, "queue_timeout": 5}
    assert result["most_waiting"] == 5
    for job in result["jobs"][2:7]:
        assert 100 <= job.answered - job.comes < 100.1


def test_m1_who_leaves_makes_room_at_once(world: ModuleType) -> None:
    # A full queue; one of those that wait leaves, and the next that comes gets its place in the queue.
    jobs = [
        (0.0, 10.0, b"", 0.0),
        (1.0, 1.0, b"", 2.0),
        (2.0, 1.0, b"", 0.0),
        (3.1, 1.0, b"", 0.0),
        (3.2, 1.0, b"", 0.0),
    ]
    result = run(world, jobs, places=1, queue_size=2, queue_timeout=60.0)
    assert [job.status for job in result["jobs"]] == [200, 499, 200, 200, 429]
    assert result["jobs"][2].sent == pytest.approx(10.0, abs=0.001), "the place goes to the next within a millisecond"
    assert result["jobs"][3].sent == pytest.approx(11.0, abs=0.001)


def test_m1_many_who_leave(world: ModuleType) -> None:
    dice = random.Random(8)
    result = run(world, arrivals(6, 60, dice, leaves=4.0), places=4, queue_size=400)
    assert result["outcomes"]["client_abort"] > 50
    assert len([job for job in served(result) if 10 < job.answered <= 60]) / 50 > 0.5 * 4


def test_the_wait_is_counted(world: ModuleType) -> None:
    result = run(world, arrivals(8, 60, random.Random(1)), places=4)
    (pool,) = result["pools"].values()
    counts, total = pool["wait"]
    waited = [job.sent - job.comes for job in served(result) if job.sent - job.comes > 0.001]
    assert sum(counts) == len(waited)
    assert total == pytest.approx(sum(waited), rel=0.01)


@pytest.mark.parametrize(("timeout", "work"), [(2.0, 5.0), (5.0, 8.0), (30.0, 40.0)])
def test_m1_a_place_that_is_rarely_free_goes_to_somebody(world: ModuleType, timeout: float, work: float) -> None:
    # Hardly anybody waits long enough, but some do: however few were served before, the next that can be is.
    dice = random.Random(2)
    jobs = arrivals(2 / work, 100 * work, dice, work=lambda _: work)
    result = run(world, jobs, places=1, queue_timeout=timeout)
    sent = [job.sent for job in served(result)]
    assert max(sent) > 95 * work
    assert len(sent) > 60


@pytest.mark.parametrize("rate", [0.6, 0.8, 0.95, 1.5])
@pytest.mark.parametrize("places", [1, 4])
def test_m2_who_comes_one_at_a_time_has_no_more_than_its_turn(world: ModuleType, rate: float, places: int) -> None:
    # One whose queue is empty again and again, beside one that always waits: half of it each.
    dice = random.Random(6)
    one, other = b"X-Tenant: one\r\n", b"X-Tenant: other\r\n"
    work = [arrivals(rate * places, 300, dice, one), arrivals(5 * places, 300, dice, other)]
    result = run(world, *work, places=places, queue_size=20)
    shares = [len([job for job in served(result, who) if 30 < job.sent <= 300]) for who in (one, other)]
    assert shares[1] >= 0.47 * sum(shares), shares


def test_m2_the_class_between_does_not_starve(world: ModuleType) -> None:
    dice = random.Random(9)
    fields = [b"X-Priority: high\r\n", b"", b"X-Priority: low\r\n"]
    result = run(world, *(arrivals(8, 200, dice, field) for field in fields), places=4, queue_size=300)
    counts = [len([job for job in served(result, field) if job.sent > 30]) for field in fields]
    assert min(counts[1:]) > 0.03 * sum(counts), counts
    assert counts[0] > 0.8 * sum(counts)
