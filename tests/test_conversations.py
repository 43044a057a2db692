"""Whole conversations on the simulated kernel: those that once went wrong, random ones, and the fuzzers' corpus."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from scripts import Script, judge, random_script

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
RUNS = 1500  # a seed


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


@pytest.mark.parametrize("faults", [False, True], ids=["sound", "faults"])
@pytest.mark.parametrize("seed", range(8))
def test_random_conversations(world, seed, faults):
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
    print(dict(outcomes))
    assert outcomes["ok"] > RUNS // 10
    assert len(outcomes) > 10


def corpus_of(target: str) -> list[Path]:
    files = sorted((CORPUS / target).iterdir())
    assert files, f"no corpus of {target}"
    return files


def test_the_corpus_of_conversations(world):
    for path in corpus_of("conversation"):
        script = path.read_bytes()
        try:
            judge(world, world.run(script), script)
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
