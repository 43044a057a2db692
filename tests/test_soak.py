"""The soak, for long enough to meet every kind of trouble; `make soak` goes on for an hour."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak

SOAK = Path(__file__).with_name("soak.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOAK.parent)}
    return subprocess.run(
        [sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=550
    )


@pytest.mark.slow
def test_everything_is_as_it_was_after_two_minutes() -> None:
    done = run("--seconds", "110", "--seed", "20261123")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    for seen in (
        "'whole'",
        "'client left'",
        *(f"'tunnel ended by {side}'" for side in ("backend", "client", "half")),
        "'upstream_abort'",
        "'client_abort'",
        "'moved'",
        "backends killed",
    ):
        assert seen in last


@pytest.mark.slow
def test_backends_that_answer_wrongly_are_found_out() -> None:
    done = run("--seconds", "60", "--seed", "1", "--faulty")
    assert done.returncode == 1
    assert "WRONG: wrong bytes" in done.stderr


REQUESTS = {"a": soak.WHOLE, "b": soak.SENT, "c": soak.SENT, "d": "502"}
"""What their clients saw."""
LINES = ["received a 127.0.0.1", "received b 127.0.0.1"]
OUTCOMES = [("a", "ok"), ("b", "client_abort"), ("d", "upstream_error")]


def account_of(lines: list[str], outcomes: list[tuple[str, str]]) -> soak.Account:
    """An account of REQUESTS that is told all this, in this order, and then judged."""
    account = soak.Account()
    account.finishing = "8000"
    account.begin(*REQUESTS)
    for line in lines:
        account.told(line)
    for name, seen in REQUESTS.items():
        account.saw(name, seen)
    account.over(*REQUESTS)
    for name, outcome in outcomes:
        account.ended(name, outcome)
    account.sweep(-soak.PATIENCE)
    return account


def test_accounts_that_agree() -> None:
    """A request that nobody received may be without an outcome: its client left before the proxy had it."""
    account = account_of(LINES, OUTCOMES)
    assert account.wrong == []
    assert (account.sent, account.unseen) == (4, 1)


@pytest.mark.parametrize(
    ("lines", "outcomes", "says"),
    [
        (["received c 127.0.0.1"], OUTCOMES, "c has no outcome; its client saw: sent; a backend received it"),
        ([], [("a", "client_abort"), *OUTCOMES[1:]], "a has the outcome client_abort; its client saw: whole"),
        ([], OUTCOMES[1:], "a has no outcome; its client saw: whole; no backend received it"),
        ([], [*OUTCOMES[:2], ("d", "ok")], "d has the outcome ok; its client saw: 502"),
        ([], [*OUTCOMES, ("e", "ok")], "e has the outcome ok, and it was sent by nobody"),
        ([], [*OUTCOMES, ("a", "ok")], "a has the outcome ok, and it had the outcome ok"),
        (["received f 127.0.0.1"], OUTCOMES, "a backend says 'received f 127.0.0.1', and nobody sent it"),
        (["wrong a it is upside down"], OUTCOMES, "a: it is upside down"),
        (["whole b 1", "whole b 2", "whole b 1"], OUTCOMES, "b was sent whole 3 times"),
        (["cut b 8000"], OUTCOMES, "the answer to b was cut off"),
    ],
)
def test_accounts_that_do_not(lines: list[str], outcomes: list[tuple[str, str]], says: str) -> None:
    (found,) = account_of(lines, outcomes).wrong
    assert says in found


def test_accounts_of_tunnels_and_addresses() -> None:
    account = soak.Account()
    account.begin("early", "tunnel")
    account.owe("tunnel", 1000)
    account.left = ("127.0.0.4", time.monotonic())
    account.begin("late")
    for line in (
        "received early 127.0.0.4",  # sent before
        "received late 127.0.0.5",
        "got tunnel 1000",
        "cut early 8001",  # by another backend, which is told that its client left
    ):
        account.told(line)
    assert account.wrong == []
    account.told("received late 127.0.0.4")
    account.told("got tunnel 999")
    assert len(account.wrong) == 2
    assert account.wrong[0].startswith("late went to 127.0.0.4")
    assert account.wrong[1].startswith("the tunnel tunnel ended with 999 of the 1000 bytes")


def test_an_account_forgets() -> None:
    account = soak.Account()
    for number in range(1000):
        name = str(number)
        account.begin(name)
        account.saw(name, soak.WHOLE)
        account.ended(name, "ok")
        account.over(name)
    assert (len(account.open), len(account.closed)) == (0, 1000)
    account.sweep()
    assert len(account.closed) == 1000
    account.sweep(0)
    assert (account.sent, len(account.closed), account.wrong) == (1000, 0, [])
