"""The soak, for long enough to meet every kind of trouble; `make soak` goes on for an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soak

SOAK = Path(__file__).with_name("soak.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOAK.parent)}
    return subprocess.run(
        [sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=280
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_is_as_it_was_after_two_minutes() -> None:
    done = run("--seconds", "110", "--seed", "20261123")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    for seen in (
        "'whole'",
        "'client left'",
        "'tunnel'",
        "'upstream_abort'",
        "'client_abort'",
        "backends killed",
        "reloads",
    ):
        assert seen in last


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_backends_that_answer_wrongly_are_found_out() -> None:
    done = run("--seconds", "60", "--seed", "1", "--faulty")
    assert done.returncode == 1
    assert "WRONG: wrong bytes" in done.stderr


FINE = {"a": "ok", "b": "client_abort", "d": "upstream_error"}
SEEN = {"a": soak.WHOLE, "b": soak.SENT, "c": soak.SENT, "d": "502"}


def test_accounts_that_agree() -> None:
    """A request that nobody received may be without an outcome: its client left before the proxy had it."""
    assert list(soak.accounts(SEEN, {"a", "b"}, FINE)) == []


@pytest.mark.parametrize(
    ("saw", "received", "ended", "says"),
    [
        (SEEN, {"a", "c"}, FINE, "c has no outcome"),
        (SEEN, set(), {**FINE, "a": "client_abort"}, "a has the outcome client_abort; its client saw: whole"),
        (SEEN, set(), {"b": "ok", "d": "connect_error"}, "a has no outcome"),
        (SEEN, set(), {**FINE, "d": "ok"}, "d has the outcome ok; its client saw: 502"),
        (SEEN, set(), {**FINE, "e": "ok"}, "e has the outcome ok, and nobody sent it"),
        (SEEN, {"f"}, FINE, "f was received by a backend"),
    ],
)
def test_accounts_that_do_not(saw: dict[str, str], received: set[str], ended: dict[str, str], says: str) -> None:
    (found,) = soak.accounts(saw, received, ended)
    assert says in found
