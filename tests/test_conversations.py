"""Whole conversations on the simulated kernel: those that once went wrong, random ones, and the fuzzers' corpus."""

from __future__ import annotations

import errno
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import Run, Script, judge, random_script
from seeds import seeds

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
RUNS = 500  # a seed


def test_a_client_that_sent_its_fin_behind_a_bad_request_is_not_waited_for(world):
    # Its window is too small for the answer, the FIN comes with the last byte, and no event will tell of it again.
    script = Script(world).connect(0, 2).client_say(16, 19).client_fin()
    run = world.run(bytes(script))
    assert run["outcomes"] == {"client_abort": 1}


def test_a_stop_resets_what_only_the_end_of_the_connection_ends(world):
    # The answer is whole, the client has not taken all of it: with a FIN it would take what it has for the whole.
    script = Script(world).connect(0, 4).client_say(0, 0).upstream_say(0, 5).upstream_fill(0, 20).upstream_fin(0).stop()
    run = world.run(bytes(script))
    assert run["clients"][0].ended == "reset"
    assert run["outcomes"] == {"shutdown": 1}


def test_an_rst_that_the_send_met_is_no_end_of_an_answer(world):
    # The kernel tells of it once: after a send that failed with ECONNRESET, recv gives what came before, then 0.
    script = Script(world).connect().client_say(0, 3).upstream_say(0, 5).client_say(16, 4).upstream_reset().time(0, 1)
    run = world.run(bytes(script))
    assert run["clients"][0].ended == "reset"
    assert run["outcomes"] == {"upstream_abort": 1}


def test_a_client_that_leaves_a_tunnel_before_it_took_all_has_left(world):
    script = Script(world).connect(0, 1).client_say(0, 5).upstream_say(0, 8).client_fin(0)
    assert world.run(bytes(script))["outcomes"] == {"client_abort": 1}
    script = Script(world).connect(0, 0).client_say(0, 5).upstream_say(0, 8).client_fin(0)
    assert world.run(bytes(script))["outcomes"] == {"ok": 1}


def test_a_backend_that_leaves_a_tunnel_before_it_took_all_has_left(world):
    script = (
        Script(world)
        .connect()
        .client_say(0, 5)
        .upstream_say(0, 8)
        .upstream_room(0, 0)
        .client_fill(0, 4)
        .upstream_fin(0)
    )
    run = world.run(bytes(script))
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["stats"]["discarded"][world.DISCARDS.index("tunnel")] == 4 * 256


def test_a_reset_passes_held_bytes_in_a_tunnel(world):
    script = Script(world).connect().client_say(0, 5).upstream_say(0, 8).upstream_room(0, 0).client_fill(0, 4)
    run = world.run(bytes(script.client_reset(0)))
    assert run["outcomes"] == {"client_abort": 1}
    assert run["upstreams"][0].ended == "reset"
    script = Script(world).connect(0, 1).client_say(0, 5).upstream_say(0, 8).upstream_reset(0).client_room(0, 255)
    run = world.run(bytes(script))
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["clients"][0].ended == "reset"


def test_accepting_begins_when_epoll_has_memory_again(world):
    script = Script(world).backend_answer(0, 1).connect().client_say(0, 0).time(0, 99).time(0, 99)
    for error in world.ERRORS["epoll_ctl"]:
        run = world.run(bytes(script), faults=[("epoll_ctl", 2, error)])
        assert run["injected"] == 1
        assert run["outcomes"] == {"ok": 1}


def test_a_full_epoll_set_is_not_the_backends_fault(world):
    script = Script(world).backend_answer(0, 1).connect().client_say(0, 0)
    for error in world.ERRORS["epoll_ctl"]:
        run = world.run(bytes(script), faults=[("epoll_ctl", 4, error)])
        assert run["outcomes"] == {"overload": 1}
        assert run["stats"]["backends"][0]["failures"] == 0


def check(world: ModuleType, script: Script, **how: Any) -> Run:
    """A run that keeps all the rules of random ones."""
    run = world.run(bytes(script), **how)
    judge(world, run, bytes(script))
    return run


def tunnel(world: ModuleType, room: int = 0) -> Script:
    return Script(world).connect(0, room).client_say(0, 5).upstream_say(0, 8)


def behind_the_101(data: bytes) -> bytes:
    return data[data.index(b"HTTP/1.1 101") :].partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("fills", [1, 4])
def test_a_101_with_more_than_a_turns_share_behind_it(any_world, fills):
    # The turn's share of reads is used up by the tunnel that begins in it, and the loop that read the 101 goes on.
    script = Script(any_world).connect().client_say(0, 5).upstream_cork(0, 1).upstream_say(0, 8)
    for _ in range(fills):
        script.upstream_fill(0, 255)
    run = check(any_world, script.upstream_cork(0, 0))
    client, upstream = run["clients"][0], run["upstreams"][0]
    assert len(behind_the_101(upstream.sent)) > fills * 65280
    assert behind_the_101(client.got) == behind_the_101(upstream.sent)


REFUSED_HEADS = {
    "two hosts": (b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 5\r\n\r\n", b"400"),
    "a coding that is not known": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", b"400"),
    "no host": (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"400"),
    "too many fields": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + b"A: b\r\n" * 130 + b"\r\n", b"431"),
    "a version that is not known": (b"POST / HTTP/2.0\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"505"),
    "an expectation": (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 5\r\n\r\n", b"417"),
    "a close that stands in a broken head": (
        b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        b"400",
    ),
}


@pytest.mark.parametrize("head", REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_a_refused_head_whose_body_comes_later(any_world, head):
    data, status = head
    script = Script(any_world).connect().client_lazy(0, 1).client_send(0, data).time(0, 50).client_send(0, b"hello")
    client = check(any_world, script)["clients"][0]
    assert client.got.startswith(b"HTTP/1.1 " + status)
    assert client.ended == "fin"


def test_a_client_that_is_answered_early_and_sends_on(any_world):
    # More than a linger of a megabyte, in 30 s, with pauses below 5 s.
    script = Script(any_world).set(max_body=1000).connect().client_say(0, 11).time(0, 50)
    for _ in range(10):
        script.client_fill(0, 255).client_fill(0, 255).time(0, 100)
    run = check(any_world, script.client_fin(0))
    assert run["clients"][0].got.startswith(b"HTTP/1.1 413")
    assert run["clients"][0].ended == "fin"
    assert run["client_traces"][0].lost == 0


def test_a_client_leaves_a_tunnel_while_the_backend_has_sent_something_unread(any_world):
    # Who closes a socket with bytes in it that were not read sends an RST, which takes what is on its way.
    script = tunnel(any_world, 2).upstream_lazy(0, 1).client_fill(0, 200).upstream_fill(0, 20).client_fin(0)
    run = check(any_world, script)
    upstream = run["upstreams"][0]
    assert upstream.got.endswith(run["clients"][0].sent[-51200:])
    assert upstream.ended == "fin"


def test_a_backend_goes_on_to_send_to_a_client_that_left_the_tunnel(any_world):
    script = tunnel(any_world).upstream_lazy(0, 1).client_fill(0, 200).client_fin(0).time(0, 1).upstream_fill(0, 20)
    run = check(any_world, script)
    upstream = run["upstreams"][0]
    assert upstream.got.endswith(run["clients"][0].sent[-51200:])
    assert upstream.ended == "fin"


def test_a_client_resets_a_tunnel_while_the_backend_does_not_read(any_world):
    script = tunnel(any_world).upstream_room(0, 0).client_fill(0, 40).client_reset(0).time(0, 1)
    run = check(any_world, script)
    assert run["outcomes"] == {"client_abort": 1}
    assert run["upstream_traces"][0].closed - run["client_traces"][0].left < 1000


def test_a_backend_resets_a_tunnel_while_the_client_does_not_read(any_world):
    # What we hold for the client goes first.
    script = tunnel(any_world, 1).upstream_fill(0, 40).upstream_reset(0).time(0, 50).client_room(0, 255).time(0, 1)
    run = check(any_world, script)
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["clients"][0].ended == "reset"
    assert run["upstream_traces"][0].closed - run["upstream_traces"][0].left < 1000


def test_a_send_is_told_of_a_backends_reset_while_the_client_does_not_read(any_world):
    # The kernel tells of it once, and here the send is told: no recv will be.
    script = tunnel(any_world, 1).client_say(16, 0).upstream_reset(0).time(0, 1).client_room(0, 255).time(0, 1)
    run = check(any_world, script)
    assert run["outcomes"] == {"upstream_abort": 1}


def test_a_backends_reset_comes_with_bytes_that_the_client_does_not_take(any_world):
    # One event tells of both, and the tunnel is blocked only after it has read them.
    script = tunnel(any_world, 3).upstream_cork(0, 1).upstream_say(0, 1).upstream_cork(0, 0).upstream_reset(0)
    run = check(any_world, script.time(0, 1).client_room(0, 255).time(0, 1))
    assert run["outcomes"] == {"upstream_abort": 1}


@pytest.mark.parametrize("error", ["EPIPE", "ECONNRESET"])
def test_a_backend_that_takes_no_more_of_a_request_has_the_ttft_time_out(any_world, error):
    which = any_world.ERRORS["send"].index(getattr(errno, error))
    # Without others, for which the wheel would look sooner.
    script = Script(any_world).set(connect_timeout=0.0, head_timeout=0.0, keepalive_timeout=0.0, send_timeout=0.0)
    script.set(ttft_timeout=1.0, idle_timeout=5.0).connect()
    script.fault(any_world.CALLS.index("send"), which << 4).client_say(0, 12).time(0, 100)
    run = check(any_world, script)
    assert run["outcomes"] == {"timeout_ttft": 1}


def test_a_backend_that_leaves_a_tunnel_with_bytes_on_their_way_has_left(any_world):
    script = tunnel(any_world).upstream_room(0, 0).client_fill(0, 4).upstream_fin(0).time(0, 1)
    assert "ok" not in check(any_world, script)["outcomes"]


SEND_TIMEOUTS = [0.0, 6.0]  # off, and above the idle time-out


@pytest.mark.parametrize("send_timeout", SEND_TIMEOUTS)
@pytest.mark.parametrize("upgraded", [False, True], ids=["answer", "tunnel"])
def test_a_backend_is_silent_after_a_client_was_blocked_and_took_all(any_world, send_timeout, upgraded):
    if upgraded:
        script = tunnel(any_world).client_room(0, 0).upstream_fill(0, 1)
    else:
        script = Script(any_world).connect(0, 4).client_say(0, 0).upstream_say(0, 12).upstream_fill(0, 4)
    script.set(send_timeout=send_timeout, idle_timeout=3.0, ttft_timeout=0.0).time(0, 101).client_room(0, 255).time(
        0, 103
    )
    run = check(any_world, script)
    assert run["outcomes"] == {"timeout_idle": 1}


@pytest.mark.parametrize("drip", [{"client_say": 13}, {"client_fill": 1}], ids=["chunks", "length"])
def test_a_backend_is_silent_in_its_answer_while_the_client_drips_its_body(any_world, drip):
    [(name, n)] = drip.items()
    script = Script(any_world).connect().client_say(0, 12 if n == 13 else 11).upstream_say(0, 2).upstream_say(0, 3)
    for _ in range(4):
        getattr(script.time(0, 100), name)(0, n)
    run = check(any_world, script.time(0, 99))
    assert run["outcomes"] == {"timeout_idle": 1}


@pytest.mark.parametrize(
    "where", ["in the head", "in the body", "in the answer", "in a tunnel, up", "in a tunnel, down"]
)
def test_urgent_data_is_data(any_world, where):
    # A recv ends before an urgent byte, though more stands behind it, and no event tells of that.
    script = Script(any_world).connect()
    if where == "in the head":
        script.client_send(0, b"GET /q-0001- HTTP/1.1\r\nHost: a\r\nX: ").client_urgent(0, 1).client_send(
            0, b"\r\n\r\n"
        )
    elif where == "in the body":
        script.client_send(0, b"POST /q-0001- HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n").client_urgent(0, 1)
        script.client_send(0, b"hello")
    elif where == "in the answer":
        script.client_say(0, 0).upstream_send(0, b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n")
        script.upstream_urgent(0, 1).upstream_send(0, b"q-0001-"[:5])
    else:
        script = tunnel(any_world)
        side = "client" if where.endswith("up") else "upstream"
        getattr(script, f"{side}_urgent")(0, 1)
        getattr(script, f"{side}_send")(0, b"more")
    if "tunnel" not in where and where != "in the answer":
        script.upstream_say(0, 0)
    run = check(any_world, script.time(0, 1).client_fin(0))
    client, upstream = run["clients"][0], run["upstreams"][0]
    assert run["outcomes"] == {"ok": 1}
    if where.endswith(("up", "head", "body")):
        assert b"uuuuuuuu" in upstream.got
    else:
        assert b"uuuuuuuu" in client.got


def test_bytes_behind_an_urgent_one_that_were_there_at_once(any_world):
    # All is there before the first recv, so that no later event can tell of the rest.
    script = Script(any_world).connect(0, 1).client_say(0, 0).upstream_say(0, 12).upstream_fill(0, 1)
    script.upstream_urgent(0, 4).upstream_fill(0, 3).client_room(0, 255).time(0, 1)
    run = check(any_world, script)
    assert behind_the_head(run["clients"][0].got) == behind_the_head(run["upstreams"][0].sent)


def behind_the_head(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("length", [254, 255, 256, 257, 258, 8190, 8191, 8192, 8193, 8194])
@pytest.mark.parametrize("more", [-1, 0, 1, 2])
def test_a_request_line_around_its_limit_and_the_end_of_a_buffer(any_world, length, more):
    limits = [n for n in any_world.EDGES["max_request_line"] if n + more in any_world.LENGTHS and n == length]
    for limit in limits:
        edge = any_world.LENGTHS.index(limit + more)
        script = Script(any_world).set(max_request_line=limit).backend_answer(0, 1).connect().client_edge(0, edge * 2)
        run = check(any_world, script)
        assert run["outcomes"] == ({"ok": 1} if more <= 0 else {"bad_request": 1})
        assert run["clients"][0].got.startswith(b"HTTP/1.1 200" if more <= 0 else b"HTTP/1.1 414")


@pytest.mark.parametrize("first", [True, False], ids=["idle", "with a client"])
def test_a_listening_socket_that_somebody_shut_down(any_world, first):
    script = Script(any_world).backend_answer(0, 1)
    if not first:
        script.connect().client_say(0, 0)
    script.listener_shut().time(0, 100)
    if not first:
        script.client_say(0, 0)
    run = check(any_world, script.end_listening().time(0, 1))
    assert run["outcomes"] == ({} if first else {"ok": 2})
    assert run["calls"]["accept4"] < 300


@pytest.mark.parametrize("error", ["EPERM", "ECONNABORTED", "EMFILE", "ENOMEM"])
def test_accepting_that_fails_for_ever(any_world, error):
    which = any_world.ERRORS["accept4"].index(getattr(errno, error))
    script = Script(any_world).backend_answer(0, 1).connect().client_say(0, 0)
    script.fault_row(any_world.CALLS.index("accept4"), which << 4).connect().time(0, 100).client_say(0, 0)
    run = check(any_world, script.end_listening().time(0, 1))
    assert run["outcomes"] == {"ok": 2}
    assert run["calls"]["accept4"] < 1000


@pytest.mark.parametrize("call", ["buf_get", "slab_get"])
def test_a_request_that_finds_no_memory_is_answered_once(any_world, call):
    for request in (0, 1, 2, 15, 16):
        script = Script(any_world).backend_answer(0, 1).connect().client_say(0x20, request).time(0, 1)
        clean = check(any_world, script)
        for nth in range(1, clean["calls"][call] + 1):
            run = check(any_world, script, faults=[(call, nth, errno.ENOMEM)])
            assert run["injected"] == 1


def test_no_memory_for_the_head_of_an_answer_whose_client_has_left(world):
    told = 0
    for nth in range(1, 9):
        script = Script(world, table=("finish",)).connect().client_say(0, 0).client_fin(0)
        script.upstream_send(0, b"HTTP/1.1 200 OK\r\nCont").upstream_send(0, b"ent-Length: 1\r\n\r\nz")
        run = check(world, script, faults=[("buf_get", nth, world.ERRORS["buf_get"][0])])
        told += run["injected"] and run["outcomes"] == {"client_abort": 1}
    assert told


def random_conversations(world: ModuleType, seed: int, faults: bool) -> Counter[str]:
    dice = random.Random(f"{seed} {faults}")
    outcomes: Counter[str] = Counter()
    for _ in range(RUNS):
        script = random_script(world, dice, faults)
        try:
            run = world.run(script)
            judge(world, run, script)
        except Exception as error:
            raise AssertionError(f"script {script.hex()}") from error
        outcomes.update(run["outcomes"])
        outcomes["accounts"] += run["accounted"]
    return outcomes


@pytest.mark.parametrize("faults", [False, True], ids=["sound", "faults"])
@pytest.mark.parametrize("seed", seeds(12))
def test_random_conversations(any_world, seed, faults):
    outcomes = random_conversations(any_world, seed, faults)
    print(dict(outcomes))
    assert outcomes["ok"] > RUNS // 10
    assert outcomes["accounts"] > RUNS // 10
    assert len(outcomes) > 10


def corpus_of(target: str) -> list[Path]:
    files = sorted((CORPUS / target).iterdir())
    assert files, f"no corpus of {target}"
    return files


def test_the_corpus_of_conversations(any_world):
    for path in corpus_of("conversation"):
        script = path.read_bytes()
        try:
            judge(any_world, any_world.run(script), script)
        except AssertionError as error:
            raise AssertionError(f"{path.name}: {error}") from error


@pytest.mark.parametrize("target", ["request_head", "response_head", "chunked"])
def test_the_corpus_of_a_reader(world, target):
    dice = random.Random(target)
    for path in corpus_of(target):
        data = path.read_bytes()
        world.check(target, data)
        for _ in range(20):
            mutated = bytearray(data)
            for _ in range(dice.randrange(1, 4)):
                at = dice.randrange(len(mutated) + 1)
                mutated[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            world.check(target, bytes(mutated))
