"""Whole conversations on the simulated kernel: those that once went wrong, random ones, and the fuzzers' corpus."""

from __future__ import annotations

import errno
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fleets import backends_script, fleet_script
from scripts import TABLE, Run, Script, judge, random_script
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


def test_a_full_epoll_set_behind_a_full_backlog_is_not_the_backends_fault(world):
    # The connect is tried again later, and the socket is watched only when it has begun.
    script = Script(world, table=("unix",)).backend_answer(0, 1).connect().client_say(0, 0).time(0, 100)
    full = ("connect", 1, errno.EAGAIN)
    watches = check(world, script, faults=[full])["calls"]["epoll_ctl"]
    for error in world.ERRORS["epoll_ctl"]:
        run = check(world, script, faults=[full, ("epoll_ctl", watches, error)])
        assert (run["injected"], run["outcomes"]) == (2, {"overload": 1})
        assert run["stats"]["backends"][0]["failures"] == 0


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


def test_a_client_ends_a_tunnel_whose_backend_took_no_more(any_world):
    # Behind the backend's FIN and RST stands more than a turn's share, so the send is the first that is told. What the client sends
    # after that is thrown away, and its FIN does not make it a good end.
    script = tunnel(any_world).client_room(0, 0).upstream_fill(0, 255).upstream_fill(0, 255)
    script.upstream_fin(0).upstream_reset(0).time(0, 1)
    script.client_room(0, 255).together().client_fill(0, 1).together().client_fin(0).time(0, 1)
    run = check(any_world, script)
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["stats"]["discarded"][any_world.DISCARDS.index("tunnel")] >= 256


def test_the_time_of_a_tunnel_ends_while_bytes_are_held_for_the_backend(any_world):
    # A FIN would tell it that all has come.
    script = tunnel(any_world).upstream_room(0, 0).client_fill(0, 4)
    script.set(send_timeout=30.0, idle_timeout=30.0, total_timeout=6.0).time(0, 110)
    run = check(any_world, script)
    assert run["outcomes"] == {"timeout_total": 1}
    assert run["upstreams"][0].ended == "reset"


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


def test_an_rst_comes_behind_what_lies_with_the_clients_kernel(any_world):
    # All was sent, and an RST would destroy it.
    script = tunnel(any_world).client_lazy(0, 1).upstream_fill(0, 40).upstream_reset(0).time(0, 10)
    run = check(any_world, script.client_lazy(0, 0).time(0, 20))
    client, trace = run["clients"][0], run["client_traces"][0]
    assert run["outcomes"] == {"upstream_abort": 1}
    assert client.got.endswith(run["upstreams"][0].sent[-10240:])
    assert client.ended == "reset"
    assert (trace.lost, trace.destroyed) == (0, 0)


def test_an_rst_does_not_wait_for_ever_for_a_client_that_reads_nothing(any_world):
    script = tunnel(any_world).client_lazy(0, 1).upstream_fill(0, 40).upstream_reset(0).time(0, 110)
    run = check(any_world, script)
    assert run["clients"][0].ended == "reset"
    assert run["client_traces"][0].destroyed >= 10240
    assert run["client_traces"][0].closed - run["client_traces"][0].told >= run["settings"].send_timeout * 1e6


def test_a_backend_resets_a_tunnel_while_the_client_does_not_read(any_world):
    # What we hold for the client goes first.
    script = tunnel(any_world, 1).upstream_fill(0, 40).upstream_reset(0).time(0, 50).client_room(0, 255).time(0, 1)
    run = check(any_world, script)
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["clients"][0].ended == "reset"
    assert run["upstream_traces"][0].closed - run["upstream_traces"][0].left < 1000


def test_a_backend_resets_a_tunnel_in_which_bytes_are_held_both_ways(any_world):
    script = (
        tunnel(any_world, 1).upstream_fill(0, 40).upstream_room(0, 0).client_fill(0, 40).time(0, 1).upstream_reset(0)
    )
    run = check(any_world, script.time(0, 50).client_room(0, 255).time(0, 1))
    assert run["outcomes"] == {"upstream_abort": 1}
    assert run["clients"][0].ended == "reset"


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


def test_no_memory_for_a_long_head_of_an_answer_is_not_the_backends_fault(world):
    script = Script(world).connect().client_say(0, 0).upstream_send(0, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ")
    script.upstream_send(0, b"v" * 9000).upstream_send(0, b"\r\n\r\n").time(0, 1)
    maps = check(world, script)["calls"]["mmap"]
    run = check(world, script, faults=[("mmap", maps, errno.ENOMEM)])
    assert (run["injected"], run["outcomes"]) == (1, {"overload": 1})
    assert run["stats"]["backends"][0]["failures"] == 0


def test_no_memory_for_the_head_of_an_answer_whose_client_has_left(world):
    told = 0
    for nth in range(1, 9):
        script = Script(world, table=("finish",)).connect().client_say(0, 0).client_fin(0)
        script.upstream_send(0, b"HTTP/1.1 200 OK\r\nCont").upstream_send(0, b"ent-Length: 1\r\n\r\nz")
        run = check(world, script, faults=[("buf_get", nth, world.ERRORS["buf_get"][0])])
        told += run["injected"] and run["outcomes"] == {"client_abort": 1}
    assert told


MODELS, MODELS_TWICE = 27, 28  # of REQUESTS


def lists_models(world: ModuleType) -> Script:
    """A client that takes little of a list of models that is longer than a few buffers."""
    return Script(world).backend_answer(0, 1).configure(20, 0).connect(0, 5)


@pytest.mark.parametrize("pause", [0, 99], ids=["at once", "longer than for a first token"])
def test_the_list_of_models_goes_on_when_its_client_reads_on(any_world, pause):
    script = lists_models(any_world).client_say(0, MODELS)
    for _ in range(60):
        script.client_room(0, 9).time(0, pause)
    run = check(any_world, script.client_room(0, 255).time(0, 1))
    assert run["outcomes"] == {"ok": 1}
    assert run["clients"][0].got.endswith(b"\r\n\r\n" + run["listing"])


def test_requests_behind_one_for_the_list_of_models_wait_for_its_end(any_world):
    script = lists_models(any_world).client_say(0, MODELS).client_say(0, MODELS_TWICE).client_say(0, 0).time(0, 1)
    for _ in range(3):
        script.client_room(0, 128).time(0, 1)
    run = check(any_world, script.configure(0, 0).time(0, 1).client_room(0, 255).time(0, 1))
    assert run["outcomes"] == {"ok": 4}
    # The table that is there when a request is read counts, and the exchange keeps it.
    got = run["clients"][0].got
    assert (got.count(run["listing"]), got.count(b"HTTP/1.1 200 OK\r\n")) == (1, 4)


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ("client_fin", "client_abort"),
        ("client_reset", "client_abort"),
        ("time", "timeout_send"),
        ("drain", "ok"),
        ("stop", "shutdown"),
    ],
)
def test_the_list_of_models_ends_in_the_middle(any_world, ends, outcome):
    script = lists_models(any_world).client_say(0, MODELS).time(0, 1).client_room(0, 200).time(0, 1)
    getattr(script, ends)(0, 101 if ends == "time" else 0)
    run = check(any_world, script.time(0, 1).client_room(0, 255).time(0, 1))
    assert run["outcomes"] == {outcome: 1}
    assert (run["listing"] in run["clients"][0].got) == (outcome == "ok")


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


def judge_exchange(world: ModuleType, data: bytes) -> Run:
    """Runs an input of the fuzzers' target `exchange`, and judges it."""
    try:
        run, script = world.run_exchange(data)
        judge(world, run, script)
    except Exception as error:
        raise AssertionError(f"input {data.hex()}: {error}") from error
    return run


def test_the_corpus_of_exchanges(any_world):
    for path in corpus_of("exchange"):
        judge_exchange(any_world, path.read_bytes())


SETTINGS_AND_TABLES = [(0, 0), (255, 0), (0, 255), (255, 255)]  # of an input: as far as its place allows


def test_every_place_is_reached(any_world):
    # Wherever an exchange may stand, with whatever ends it there.
    for number, place in enumerate(any_world.PLACES):
        for settings, table in SETTINGS_AND_TABLES:
            for end in range(any_world.ENDS):
                run = judge_exchange(any_world, bytes([number, settings, table, end]))
                assert run["placed"], f"{place.name}: {settings} {table}"


def test_there_is_a_place_in_every_state(world):
    waits = {world.STATE_NAMES[place.state] for place in world.PLACES} - {"none"}
    assert waits == {
        "head",
        "queue",
        "connect",
        "wait",
        "stream",
        "flush",
        "tunnel",
        "detached",
    }  # a route is never waited for


@pytest.mark.parametrize("seed", seeds(12))
def test_random_exchanges(any_world, seed):
    dice = random.Random(f"exchanges {seed}")
    outcomes: Counter[str] = Counter()
    for _ in range(RUNS):
        how = [dice.choice([0, dice.randrange(256)]) for _ in range(2)]
        data = bytes([dice.randrange(len(any_world.PLACES)), *how, dice.randrange(any_world.ENDS)])
        for _ in range(dice.randrange(1, 12)):
            together = 128 if dice.random() < 0.2 else 0
            data += bytes([dice.randrange(any_world.EVENTS) | together, dice.randrange(256)])
        outcomes.update(judge_exchange(any_world, data)["outcomes"])
    print(dict(outcomes))
    assert len(outcomes) > 8


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


# ------------------------------------------------------------------------------------------------ several backends

FIN, RST, HALF = 16, 32, 48  # of "backend_answer": how the server dies of the request
WELL = 1  # it answers with a length, by number of RESPONSES + 1
SLOWLY = 65  # the same a byte at a time


def everybody_says(script, clients, request):
    for client in range(clients):
        script.client_say(client, request).together()
    return script.time(0, 1)


def judged(world, script):
    script.time(0, 1)  # or the clients leave with the last operation
    run = world.run(bytes(script))
    judge(world, run, bytes(script))
    return run


@pytest.mark.parametrize("death", [FIN, RST], ids=["fin", "rst"])
def test_a_request_that_kills_its_server_meets_no_third(world, death):
    script = Script(world, table=("four",))
    for server in (0, 1, 4, 5):
        script.backend_answer(server | death, WELL)
    run = judged(world, script.connect().client_say(0, 1))
    assert [peer.port for peer in run["upstreams"] if peer.got] == [8000, 8001]
    assert run["outcomes"] == {"upstream_error": 1}


@pytest.mark.parametrize(
    ("table", "servers", "outcomes"),
    [((), [8000, 8000], {"ok": 2, "upstream_error": 1}), (("two",), [8000, 8001], {"ok": 3})],
    ids=["the same server", "another server"],
)
def test_a_request_that_died_with_a_stale_connection_has_one_more_try(world, table, servers, outcomes):
    # The third request kills its server on an idle upstream, and once more on a fresh one.
    script = Script(world, table=table).backend_answer(0, WELL).backend_answer(1, WELL).connect()
    script.client_say(0, 0).time(0, 1).client_say(0, 0).time(0, 1).backend_answer(0 | RST, WELL).client_say(0, 0)
    run = judged(world, script)
    assert [peer.port for peer in run["upstreams"] if b"q-0003-" in peer.got] == servers
    assert run["outcomes"] == outcomes


def test_an_answer_that_broke_off_is_not_asked_for_again(world):
    script = Script(world, table=("two",)).backend_answer(0 | HALF, WELL).backend_answer(1, WELL)
    run = judged(world, script.connect().client_say(0, 1))
    assert [peer.port for peer in run["upstreams"] if peer.got] == [8000]
    assert run["outcomes"] == {"upstream_error": 1}


def test_an_answer_that_is_no_http_is_not_asked_for_again(world):
    script = Script(world, table=("two",)).backend_answer(0, 14).backend_answer(1, WELL)
    run = judged(world, script.connect().client_say(0, 1))
    assert [peer.port for peer in run["upstreams"] if peer.got] == [8000]
    assert run["outcomes"] == {"upstream_error": 1}


def test_the_time_for_a_first_token_is_one_for_all_backends(world):
    # Nobody answers: 5 s, and one backend that worked on it.
    script = Script(world, table=("four",)).connect().client_say(0, 1).time(0, 110)
    run = judged(world, script)
    assert [peer.port for peer in run["upstreams"] if peer.got] == [8000]
    assert run["outcomes"] == {"timeout_ttft": 1}


@pytest.mark.parametrize("how", ["refused_soon", "hangs"])
def test_an_address_that_fails_all_at_once_hides_no_other(world, how):
    # Eight requests meet the first address together; each must go on to the second, which is well.
    script = Script(world, table=("addresses",)).backend_connect(0, world.CONNECTS.index(how)).backend_answer(2, WELL)
    for _ in range(8):
        script.connect()
    run = judged(world, everybody_says(script, 8, 0).time(0, 101))
    assert run["outcomes"] == {"ok": 8}
    assert run["stats"]["backends"][0]["failures"] == 0


def test_the_address_that_worked_last_is_the_first_to_be_tried(world):
    script = Script(world, table=("addresses",)).backend_connect(0, 3).backend_answer(2, WELL).connect().connect()
    # Two at once, then three: one more than there are idle upstreams.
    run = judged(world, everybody_says(everybody_says(script, 2, 0).connect(), 3, 0))
    assert run["outcomes"] == {"ok": 5}
    assert [who for _, what, who, *_ in run["trace"] if what == "connect"] == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("family", [(), ("ipv6",), ("unix",)], ids=["ipv4", "ipv6", "unix"])
def test_no_later_request_goes_to_an_address_that_left_the_table(world, family):
    # It leaves while an exchange is in flight there.
    table = sum(map(TABLE.get, (*family, "moved")))
    script = Script(world, table=family).backend_answer(0, SLOWLY).backend_answer(8, WELL).connect()
    script.client_say(0, 0).configure(0, table).time(0, 1).client_say(0, 0).time(0, 1).client_say(0, 0)
    run = judged(world, script)
    assert [(peer.port, peer.got.count(b"GET ")) for peer in run["upstreams"] if peer.got] == [(8000, 1), (8008, 2)]
    assert run["outcomes"] == {"ok": 3}


def test_no_later_request_goes_to_a_backend_that_left_the_table(world):
    script = Script(world, table=("two",)).backend_answer(0, WELL).backend_answer(1, SLOWLY).connect()
    script.client_say(0, 0).time(0, 1).client_say(0, 0).configure(0, 0).time(0, 1).configure(0, TABLE["two"])
    run = judged(world, script.client_say(0, 0).time(0, 1).client_say(0, 0))
    assert run["outcomes"] == {"ok": 4}


def test_a_full_backlog_of_a_unix_socket_is_waited_for(world):
    script = Script(world, table=("unix",)).backend_answer(0, WELL).backend_connect(0, 2).connect().client_say(0, 1)
    run = judged(world, script.time(0, 50).backend_connect(0, 0).time(0, 101))
    assert run["outcomes"] == {"ok": 1}
    assert run["stats"]["backends"][0]["failures"] == 0


def test_a_full_backlog_of_a_unix_socket_has_the_time_of_a_connect(world):
    script = Script(world, table=("unix",)).backend_connect(0, 2).connect().client_say(0, 1).time(0, 101)
    assert judged(world, script)["outcomes"] == {"timeout_connect": 1}


@pytest.mark.parametrize("family", [("ipv6",), ("unix",)], ids=["ipv6", "unix"])
def test_the_second_address_is_of_another_family(world, family):
    script = Script(world, table=("addresses", *family)).backend_answer(2, WELL).backend_connect(0, 4)
    run = judged(world, script.connect(1).client_say(0, 1).time(0, 1).client_say(0, 1))
    assert run["outcomes"] == {"ok": 2}


@pytest.mark.parametrize("seed", seeds(20))
def test_random_backends(world, seed):
    dice = random.Random(f"backends {seed}")
    outcomes: Counter[str] = Counter()
    for _ in range(RUNS):
        script = backends_script(world, dice)
        try:
            run = world.run(script)
            judge(world, run, script)
        except Exception as error:
            raise AssertionError(f"script {script.hex()}") from error
        outcomes.update(run["outcomes"])
    print(dict(outcomes))
    assert outcomes["ok"] > RUNS
    assert outcomes["connect_error"] > 10
    assert outcomes["upstream_error"] > 10


# ----------------------------------------------------------------------------------------------------- several engines

PAUSES = [0, 3, 10, 40]  # one step in so many gives way


def fleet_runs(world, script, workers, orders=range(20)):
    """The script with several engines, in many orders of their steps."""
    for seed in orders:
        for pause in PAUSES:
            run = world.run_fleet(bytes(script), workers, seed, pause)
            try:
                judge(world, run, bytes(script))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, pause {pause}") from error
            yield pause, run


def burst_of(world, clients, **arguments):
    script = Script(world, **arguments)
    for _ in range(clients):
        script.connect().together()
    return script.time(0, 0)


@pytest.mark.parametrize("backends", [1, 2, 4])
def test_engines_share_what_is_in_flight(world, backends):
    # Nobody answers. Whatever the order of their steps, no backend has more than one exchange more than another.
    script = everybody_says(burst_of(world, 16, table={1: (), 2: ("two",), 4: ("four",)}[backends]), 16, 0)
    for _, run in fleet_runs(world, script, 3):
        sent = Counter(who for _, what, who, *_ in run["trace"] if what == "sent")
        assert len(sent) == backends
        assert max(sent.values()) - min(sent.values()) <= 1, sent


def test_engines_take_turns_on_idle_backends(world):
    # One request at a time, each of another engine's client: equals take turns.
    script = burst_of(world, 4, table=("four",))
    for server in (0, 1, 4, 5):
        script.backend_answer(server, 12)
    for client in range(4):
        script.client_say(client, 0).time(0, 1)
    for _, run in fleet_runs(world, script, 4, range(10)):
        assert [who for _, what, who, *_ in run["trace"] if what == "sent"] == [0, 1, 4, 5]


def test_each_client_goes_to_the_engine_with_the_fewest(world):
    for _, run in fleet_runs(world, burst_of(world, 16).time(0, 1), 3):
        accepted = [stats["accepted"] for stats in run["fleet"]]
        assert sum(accepted) == 16
        assert max(accepted) - min(accepted) <= 1


def test_a_retry_budget_is_for_all_engines(world):
    # Ten retries at first, and a fifth of one for each exchange: of 16 that meet a refusal at once, ten can go on.
    script = burst_of(world, 16, table=("two",)).backend_connect(0, 3).backend_answer(1, WELL)
    for _, run in fleet_runs(world, everybody_says(script, 16, 9), 3, range(20)):
        assert sum(run["stats"]["retries"]) <= 10 + 16 // 5


def test_the_control_plane_is_woken_for_each_client_that_left(world):
    script = everybody_says(burst_of(world, 6), 6, 0)
    for client in range(6):
        script.client_fin(client).together()
    for _, run in fleet_runs(world, script.time(0, 1), 2, range(120)):
        assert run["outcomes"] == {"client_abort": 6}


def test_a_drain_serves_who_is_in_the_backlog_and_in_the_mailboxes(world):
    script = Script(world).backend_answer(0, WELL)
    for client in range(6):
        script.connect().together().client_say(client, 0).together()
    for _, run in fleet_runs(world, script.drain().time(0, 1), 3, range(40)):
        assert run["outcomes"] == {"ok": 6}


def test_a_full_mailbox_is_left_out(fleet_world):
    # Mailboxes of four: the first engine keeps what does not fit, or accepts it later.
    script = everybody_says(burst_of(fleet_world, 16).backend_answer(0, WELL), 16, 0).time(0, 99)
    full = 0
    for pause, run in fleet_runs(fleet_world, script, 3, range(40)):
        assert run["outcomes"] == {"ok": 16}
        accepted = [stats["accepted"] for stats in run["fleet"]]
        full += pause > 0 and max(accepted) - min(accepted) > 1
    assert full, "no mailbox was ever full"


def test_a_full_ring_of_records_is_counted(fleet_world):
    # Rings of eight: what the control plane does not take in time is dropped, and counted.
    script = everybody_says(burst_of(fleet_world, 16).backend_answer(0, WELL), 16, 10)
    dropped = 0
    for _, run in fleet_runs(fleet_world, script, 2, range(6)):
        assert run["outcomes"] == {"ok": 32}
        dropped += sum(stats["records_dropped"] for stats in run["fleet"])
    assert dropped, "no ring was ever full"


@pytest.mark.parametrize("seed", seeds(20))
@pytest.mark.parametrize("script_of", [fleet_script, backends_script])
def test_random_fleets(fleet_world, seed, script_of):
    dice = random.Random(f"fleets {seed}")
    outcomes: Counter[str] = Counter()
    for _ in range(RUNS // 4):
        script = script_of(fleet_world, dice)
        order = dice.randrange(2, 5), dice.randrange(1 << 30), dice.choice(PAUSES)
        try:
            run = fleet_world.run_fleet(script, *order)
            judge(fleet_world, run, script)
        except Exception as error:
            raise AssertionError(f"script {script.hex()} {order}") from error
        outcomes.update(run["outcomes"])
    print(dict(outcomes))
    assert outcomes["ok"] > RUNS // 4
    assert outcomes["client_abort"] > 10
