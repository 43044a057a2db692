"""The engine on a simulated kernel that fails: every system call of a conversation, in every way that its man page names.

Each conversation is played once without a fault, and its calls are counted. Then it is played again for each of these calls
and each of the errors in `ERRORS` (tests/probe/world.pxi), with this one fault. Whatever fails, the engine must keep its
rules (world_check_idle, world_check_end: nothing forgotten, nothing left, everything counted once), no descriptor and no
memory may be left, and what the clients got is the right answer, a well-formed error, or plainly cut short.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from scripts import Run, Script, check_honest, check_outcomes

LATER = 105  # of "time": 15 s, longer than every time-out


def keep_alive(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 1).connect()
    return script.client_say(0, 0).time(0, 1).client_say(0, 7).time(0, 1).client_say(0, 8).time(0, 1).client_say(0, 0)


def post_under_backpressure(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 1).backend_connect(0, 2).connect().client_say(0, 11)
    script.upstream_settle(0, 0).upstream_room(0, 60).client_fill(0, 200)
    return script.time(0, 5).upstream_room(0, 20).client_fill(0, 55).time(0, 5).upstream_room(0, 255)


def post_kept_for_failover(world: ModuleType) -> Script:
    script = Script(world, table=("two",)).backend_answer(0, 1).backend_answer(1, 1).connect().client_say(0, 12)
    for _ in range(11):
        script.client_send(0, b"ff00\r\n").client_fill(0, 255).client_send(0, b"\r\n").time(0, 1)
    return script.client_say(0, 14)


def events_to_a_blocked_client(world: ModuleType) -> Script:
    script = Script(world).connect(0, 5).client_say(0, 2).upstream_say(0, 2).upstream_say(0, 3).upstream_say(0, 3)
    for _ in range(4):
        script.upstream_chunk(0, 200).time(0, 20).client_room(0, 7)
    return script.client_room(0, 255).upstream_say(0, 4)


def failover(world: ModuleType) -> Script:
    script = Script(world, settings=("retry",), table=("two", "addresses"))
    script.backend_connect(0, 3).backend_connect(2, 4).backend_answer(1, 11).backend_answer(3, 1).connect()
    return script.client_say(0, 1).time(0, 20).backend_answer(1, 2).client_say(0, 1).time(0, 20).client_say(0, 0)


def tunnel(world: ModuleType) -> Script:
    script = Script(world).connect(0, 8).client_say(0, 5).upstream_say(0, 8).client_send(0, b"ping")
    script.upstream_send(0, b"pong").upstream_fill(0, 40).upstream_room(0, 10).client_fill(0, 40)
    return (
        script.time(0, 5).client_room(0, 255).upstream_room(0, 255).upstream_send(0, b"end").time(0, 5).upstream_fin(0)
    )


def abort_that_finishes(world: ModuleType) -> Script:
    script = Script(world, table=("finish",)).connect().client_say(0, 1).upstream_say(0, 2).upstream_say(0, 3)
    return script.client_reset(0).upstream_say(0, 3).upstream_say(0, 4).connect().backend_answer(0, 1).client_say(1, 0)


def abort(world: ModuleType) -> Script:
    script = Script(world).connect().client_say(0, 2).upstream_say(0, 2).upstream_say(0, 3).client_fin(0)
    return script.connect().client_say(1, 1).client_reset(1).backend_answer(0, 1).connect().client_say(2, 0)


def pipelined(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 16).connect().client_say(0, 10).client_say(0, 16)
    return script.time(0, 10).client_say(112, 15).client_say(0, 9)


def stale_upstream(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 1).connect().client_say(0, 0).time(0, 10)
    return script.upstream_reset(0).client_say(0, 1).time(0, 10).upstream_fin(0).time(0, 10).client_say(0, 0)


def until_close(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 6).connect().client_say(0, 0).time(0, 5)
    return script.connect().client_say(1, 6).time(0, 5).backend_answer(0, 8).connect().client_say(2, 3).client_say(2, 4)


def drain(world: ModuleType) -> Script:
    script = Script(world).connect().connect().client_say(0, 0).client_say(1, 0).upstream_say(0, 2).drain()
    return script.configure(0, 1).upstream_say(0, 3).upstream_say(0, 4).upstream_say(0, 0).end_listening()


def new_table(world: ModuleType) -> Script:
    script = Script(world).backend_answer(0, 1).backend_answer(1, 2).connect().time(0, 99).client_say(0, 0).time(0, 1)
    script.configure(0, 4).client_say(0, 0).time(0, 1).configure(0, 9).client_say(0, 1).time(0, 1)
    return script.client_say(0, 1).time(0, 1).configure(0, 2).client_say(0, 1)


def too_many_of_an_address(world: ModuleType) -> Script:
    script = Script(world, settings=("quota",)).backend_answer(0, 1).connect().connect().connect()
    for who in range(3):
        script.client_say(who, 0).time(0, 1)
    return script.client_fin(0).time(0, 1).connect().client_say(3, 1).time(0, 1)


def list_of_models(world: ModuleType) -> Script:
    script = Script(world).configure(20, 0).connect(0, 5).client_say(0, 27).time(0, 5)
    for _ in range(4):
        script.client_room(0, 100).time(0, 20)
    return script.client_say(0, 28).configure(0, 1).client_room(0, 255)


CONVERSATIONS: list[Callable[[ModuleType], Script]] = [
    *(keep_alive, post_under_backpressure, post_kept_for_failover, events_to_a_blocked_client, failover, tunnel),
    *(abort_that_finishes, abort, pipelined, stale_upstream, until_close, drain, new_table),
    *(too_many_of_an_address, list_of_models),
]
Fault = tuple[str, int, int] | tuple[str, int, int, int]


MEMORY = ("malloc", "calloc", "realloc", "mmap")


def check_counted(run: Run) -> None:
    """Whether every client that was closed without a byte is counted: with an outcome, or as refused."""
    silent = sum(bool(peer.sent and peer.stayed and not peer.got) for peer in run["clients"])
    counted = sum(run["outcomes"].values()) + run["stats"]["over_memory"] + run["stats"]["over_address"]
    assert silent <= counted, f"{silent} clients were closed in silence, {counted} counted"


def play(world: ModuleType, conversation: Callable[[ModuleType], Script], **how: Any) -> Run:
    return world.run(bytes(conversation(world).time(0, LATER)), **how)


def clean_run(world: ModuleType, conversation: Callable[[ModuleType], Script]) -> Run:
    run = play(world, conversation)
    assert run["failed"] is None
    assert run["outcomes"]
    check_honest(run)
    check_outcomes(run)
    return run


def play_with(world: ModuleType, conversation: Callable[[ModuleType], Script], faults: list[Fault]) -> Run:
    try:
        run = play(world, conversation, faults=faults)
        if run["failed"] is None:
            # Where accepting ends, or never begins, clients stay in the backlog, and the kernel resets them.
            check_honest(
                run,
                leaves=conversation is drain
                or any(fault[0] in ("accept4", "epoll_ctl") for fault in faults if fault[3:]),
            )
            check_outcomes(run)
    except AssertionError as error:
        raise AssertionError(f"{faults}: {error}") from error
    return run


@pytest.mark.parametrize(
    "conversation",
    [
        # The longest by far.
        pytest.param(each, marks=pytest.mark.slow) if each is post_kept_for_failover else each
        for each in CONVERSATIONS
    ],
    ids=lambda conversation: conversation.__name__,
)
def test_every_call_fails_in_every_way(world, conversation):
    clean = clean_run(world, conversation)
    injected: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for call, times in clean["calls"].items():
        errors = [*world.ERRORS[call], *((-1,) if call in ("recv", "send") else ())]
        for nth in range(1, times + 1):
            for error in errors:
                run = play_with(world, conversation, [(call, nth, error)])
                assert run["injected"] or error < 0
                if call in MEMORY and run["failed"] is None:
                    check_counted(run)
                injected[call] += 1
                outcomes.update(run["outcomes"])
    print(f"{injected.total()} faults: {dict(injected)}; outcomes: {dict(outcomes)}")
    assert set(injected) >= {"recv", "send", "accept4", "epoll_ctl", "socket", "connect", "calloc", "malloc", "mmap"}


@pytest.mark.slow
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.__name__)
def test_two_faults_at_once(world, conversation):
    clean = clean_run(world, conversation)
    dice = random.Random(conversation.__name__)
    calls = [call for call, times in clean["calls"].items() if times and world.ERRORS[call]]

    def any_fault() -> Fault:
        call = dice.choice(calls)
        return call, dice.randint(1, clean["calls"][call] + 2), dice.choice(world.ERRORS[call])

    injected = sum(play_with(world, conversation, [any_fault(), any_fault()])["injected"] for _ in range(1500))
    print(f"{injected} faults")
    assert injected > 1000


def rows_of(world: ModuleType, clean: Run) -> list[Fault]:
    """Each call that fails from its first, middle or last time on, 16 times or for ever. An interrupted one is no failure."""
    return [
        (call, nth, error, row)
        for call, times in clean["calls"].items()
        for nth in sorted({1, (times + 1) // 2, times} if times else {})
        for error in world.ERRORS[call]
        for row in (16, world.FOR_EVER)
        if row == 16 or error != errno.EINTR
    ]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.__name__)
@pytest.mark.parametrize("share", [0.1, pytest.param(1, marks=pytest.mark.slow)])
def test_a_call_fails_from_then_on(any_world, conversation, share):
    clean = clean_run(any_world, conversation)
    rows = rows_of(any_world, clean)
    for row in random.Random(conversation.__name__).sample(rows, int(len(rows) * share)):
        assert play_with(any_world, conversation, [row])["injected"]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.__name__)
@pytest.mark.parametrize(
    "how", [{"interrupts": True}, {"most_recv": 1}, {"most_send": 1}, {"most_recv": 7, "most_send": 3}]
)
def test_interrupts_and_short_calls_change_no_byte(any_world, conversation, how):
    clean = clean_run(any_world, conversation)
    run = play(any_world, conversation, **how)
    assert run["injected"] > 3 or run["short"] > 3
    assert run["clients"] == clean["clients"]
    assert run["outcomes"] == clean["outcomes"]


def test_the_tables_name_every_call(world):
    assert list(world.ERRORS) == list(world.CALLS)
    assert all(error > 0 for errors in world.ERRORS.values() for error in errors)
