"""Rule K: how a pool chooses, as properties of any pool and any sequence of what happens to it. The engine's own choice, on a clock that
is told; nothing sleeps."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

POLICIES = ("least_in_flight", "round_robin", "p2c")
Member = tuple[int, int, int]

set_hypothesis_home_dir("build/hypothesis")  # not the folder that tests are looked for in
everywhere = settings(
    database=None, deadline=None, derandomize=True, max_examples=200, suppress_health_check=list(HealthCheck)
)
pools = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 2), st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=8
)
policies = st.sampled_from(POLICIES)


@contextmanager
def balance(world: ModuleType, members: list[Member], **options: Any) -> Iterator[Any]:
    made = world.Balance(members, **options)
    try:
        yield made
    finally:
        made.close()


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=10), data=st.data())
@everywhere
def test_k_round_robin_honours_weights_within_one_request(world: ModuleType, weights: list[int], data: Any) -> None:
    """After any number of requests each has had its share, give or take less than one request."""
    total = sum(weights)
    with balance(world, [(weight, 0, 0) for weight in weights], policy="round_robin") as pool:
        had = [0] * len(weights)
        for n in range(1, 2 * total + data.draw(st.integers(1, total)) + 1):
            chosen = pool.begin()
            had[chosen] += 1
            pool.end(chosen)
            assert max(abs(had[i] * total - n * weight) for i, weight in enumerate(weights)) <= total


@given(members=pools, policy=policies, steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), max_size=60))
@everywhere
def test_k_who_may_be_chosen(
    world: ModuleType, members: list[Member], policy: str, steps: list[tuple[int, int]]
) -> None:
    """None that is drained; none of a higher tier, and none that failed, while a usable one is there; none over its limit. Counts
    are those of the exchanges that are there, and zero when all have ended."""
    n = len(members)
    down: set[int] = set()
    drained: set[int] = set()
    failed: set[int] = set()
    live: list[int] = []
    with balance(world, members, policy=policy) as pool:
        for what, which in steps:
            i = which % n
            if what == 0 and live:
                pool.end(live.pop(which % len(live)))
            elif what == 1:
                pool.mark(i, i not in down)
                down ^= {i}
            elif what == 2:
                pool.drain(i, i not in drained)
                drained ^= {i}
            elif what == 3:
                pool.fail(i)
                failed.add(i)
            elif what == 4:
                pool.answer(i)
                failed.discard(i)
            else:
                before = list(pool.in_flight)
                chosen = pool.begin()
                rest = [k for k in range(n) if k not in drained]
                well = [k for k in rest if k not in down and k not in failed]
                lowest = min((members[k][1] for k in well or rest), default=0)
                first = [k for k in well or rest if members[k][1] == lowest]
                free = [k for k in first if not members[k][2] or before[k] < members[k][2]]
                if chosen is None:
                    assert not rest
                elif chosen == "wait":
                    assert first
                    assert not free
                else:
                    assert chosen in free
                    live.append(chosen)
                    if policy == "least_in_flight":
                        assert all(before[chosen] * members[k][0] <= before[k] * members[chosen][0] for k in free)
            assert pool.counts() == [live.count(k) for k in range(n)]
        while live:
            pool.end(live.pop())
        assert not any(pool.counts())


@given(members=pools, policy=policies)
@everywhere
def test_k_every_backend_is_tried_once(world: ModuleType, members: list[Member], policy: str) -> None:
    members = [(weight, tier, 0) for weight, tier, _ in members]
    with balance(world, members, policy=policy) as pool:
        tried: list[int] = []
        while (chosen := pool.begin(tried)) is not None:
            assert chosen not in tried
            tried.append(chosen)
        assert len(tried) == len(members)
        assert [members[k][1] for k in tried] == sorted(tier for _, tier, _ in members)


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [2, 3, 5], [1] * 20, [7, 1, 1]])
def test_k_least_in_flight_is_within_one_request_of_the_weights(world: ModuleType, weights: list[int]) -> None:
    with balance(world, [(weight, 0, 0) for weight in weights]) as pool:
        for _ in range(5 * sum(weights)):
            pool.begin()
            for more, weight in zip(pool.in_flight, weights, strict=True):
                # Without its last one it would have no more for its weight than any other.
                assert all(
                    (more - 1) * other <= less * weight for less, other in zip(pool.in_flight, weights, strict=True)
                )
        assert pool.in_flight == [5 * weight for weight in weights]


def simulate(pool: Any, times: list[float], clients: int, requests: int, warm: int = 0) -> Counter[int]:
    """So many clients that ask again at once, of backends that take so many seconds each: how many each got behind the first ones."""
    got: Counter[int] = Counter()
    ends: list[tuple[float, int]] = []
    now = 0.0
    for n in range(requests):
        if len(ends) == clients:
            end, who = heapq.heappop(ends)
            pool.wait(end - now)
            now = end
            pool.end(who)
            pool.first_token(who, times[who])
        chosen = pool.begin()
        got[chosen] += n >= warm
        heapq.heappush(ends, (now + times[chosen], chosen))
    while ends:
        pool.end(heapq.heappop(ends)[1])
    return got


@pytest.mark.parametrize("policy", ["least_in_flight", "p2c"])
def test_k_a_slow_replica_gets_its_share_by_what_it_does(world: ModuleType, policy: str) -> None:
    """And not by turn: of two, one ten times as slow, with as many in flight at both it gets a tenth of the other's requests."""
    with balance(world, [(1, 0, 0), (1, 0, 0)], policy=policy) as pool:
        got = simulate(pool, [0.1, 1.0], clients=40, requests=4000, warm=400)
    assert got[1] / got[0] < 0.12
    assert got[1] > 0
    with balance(world, [(1, 0, 0), (1, 0, 0)], policy="round_robin") as pool:
        got = simulate(pool, [0.1, 1.0], clients=40, requests=400)
    assert got[0] == got[1]


def test_k_p2c_goes_by_the_time_to_the_first_content(world: ModuleType) -> None:
    """With few in flight at either, the one that answers later gets less, and still some: what was slow once is looked at again."""
    with balance(world, [(1, 0, 0)] * 4, policy="p2c") as pool:
        got = simulate(pool, [0.1, 0.1, 0.1, 1.0], clients=8, requests=4000, warm=400)
    assert got[3] < 0.05 * sum(got.values())
    assert got[3] > 0
    assert max(got[k] for k in range(3)) < 1.3 * min(got[k] for k in range(3))


def test_k_p2c_honours_weights(world: ModuleType) -> None:
    with balance(world, [(1, 0, 0), (3, 0, 0), (4, 0, 0)], policy="p2c") as pool:
        got = simulate(pool, [0.2, 0.2, 0.2], clients=80, requests=8000, warm=800)
    assert [round(got[k] / sum(got.values()), 1) for k in range(3)] == [
        pytest.approx(share, abs=0.11) for share in (0.1, 0.4, 0.5)
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_k_a_backend_that_comes_back_starts_slowly(world: ModuleType, policy: str) -> None:
    with balance(world, [(1, 0, 0), (1, 0, 0)], policy=policy, slow_start=100.0) as pool:
        pool.fail(1)
        pool.wait(20)
        pool.connect(1)
        pool.answer(1)
        early = simulate(pool, [0.5, 0.5], clients=40, requests=800)  # 10 s
        pool.wait(30)
        middle = simulate(pool, [0.5, 0.5], clients=40, requests=800)
        pool.wait(60)
        late = simulate(pool, [0.5, 0.5], clients=40, requests=800)
    shares = [got[1] / sum(got.values()) for got in (early, middle, late)]
    assert 0 < shares[0] < 0.15
    assert 0.2 < shares[1] < 0.4
    assert 0.45 < shares[2] < 0.55


@pytest.mark.parametrize("policy", POLICIES)
def test_l1_a_backend_that_failed_is_tried_by_one_request_once_it_was_connected(world: ModuleType, policy: str) -> None:
    with balance(world, [(1, 0, 0), (1, 0, 0)], policy=policy) as pool:
        pool.fail(0)
        pool.wait(60)
        assert {pool.begin() for _ in range(20)} == {1}  # its time is over, and nobody has connected it
        pool.connect(0)
        chosen = [pool.begin() for _ in range(20)]
        assert chosen.count(0) == 1
        pool.wait(1.1)
        chosen = [pool.begin() for _ in range(20)]
        assert chosen.count(0) == 1
        pool.answer(0)
        assert [pool.begin() for _ in range(20)].count(0) >= 8


@pytest.mark.parametrize("policy", POLICIES)
def test_k_engines_with_100_pools_of_20(world: ModuleType, policy: str) -> None:
    """As many as the most a pool may have: each in its turn, none left out."""
    with balance(world, [(1, 0, 0)] * 128, policy=policy) as pool:
        for _ in range(1280):
            pool.begin()
        assert min(pool.in_flight) >= (10 if policy != "p2c" else 5)


def test_k_p2c_after_a_weekend(world: ModuleType) -> None:
    """An average that is days old is worth nothing, and does no harm."""
    with balance(world, [(1, 0, 0), (1, 0, 0)], policy="p2c") as pool:
        for member in (0, 1):
            pool.first_token(member, 0.2)
        pool.wait(3 * 86400)
        pool.first_token(0, 60.0)
        pool.first_token(1, 1.0)
        got = Counter()
        for _ in range(1000):
            chosen = pool.begin()
            got[chosen] += 1
            pool.end(chosen)
        assert got[1] > 900
