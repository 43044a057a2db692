"""Attacks on a target while well-behaved streams run beside them: mounted, counted and ended.

What attacks is `attacker.py`, a process of its own; it inherits the CPU of whoever mounts it. In the benchmark that is the load's,
and the attacker runs only while the load does not want it.
"""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from llmpipe.bench.measure import Round, Target, Watcher
from llmpipe.bench.workload import Workload

ATTACKER = Path(__file__).resolve().parent / "attacker.py"
START_TIME = 30.0
"""Seconds in which an attack must stand."""
ANSWER_TIME = 30.0
"""Seconds in which it must say what it has counted: long, because one that yields waits for a busy machine."""
END_TIME = 10.0

RATED = ("aborts", "churn")
"""Kinds whose number is connections a second; the others' connections stand."""


class AttackError(Exception):
    """An attack that could not be mounted, or ended by itself: what was measured beside it means nothing."""


@dataclass(frozen=True)
class Attack:
    """What is done to a target."""

    kind: str
    """One of attacker.KINDS."""
    number: int
    """Connections that stand, or new ones a second."""
    path: str = "/v1/chat/completions"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.number:,} {self.kind.replace('-', ' ')}" + ("/s" if self.kind in RATED else "")


class Mounted:
    """An attack under way. A context manager: at its end every connection of the attack is reset."""

    def __init__(self, attack: Attack, address: tuple[str, int], *, yielding: bool = False) -> None:
        """Returns when the attack stands in full.

        Args:
            attack: what is done.
            address: to whom; numeric.
            yielding: once it stands, run only while nobody else wants the CPU.

        Raises:
            AttackError: it does not, within START_TIME.
        """
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        words = [attack.kind, str(attack.number), address[0], str(address[1]), attack.path]
        if yielding:
            words.append("yielding")
        prefix = ["prlimit", f"--nofile={hard}:{hard}"]
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-I", str(ATTACKER), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._line(START_TIME)
        except BaseException:
            self.end()
            raise

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise AttackError(f"the attacker did not answer within {timeout:g} s")
        line: bytes = self._process.stdout.readline()
        if not line:
            raise AttackError("the attacker ended")
        return line

    def counts(self) -> dict[str, float]:
        """What the attacker has counted so far, and `at`, its time in seconds.

        Raises:
            AttackError: it does not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AttackError("the attacker ended") from None
        found: dict[str, float] = json.loads(self._line(ANSWER_TIME))
        return found

    def end(self) -> None:
        """Resets its connections and waits for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Mounted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()


class Beside:
    """A watcher that attacks each target while it is measured, and adds to the figures what the attack achieved.

    The well-behaved streams flow when it begins, and it has ended when they do: what is measured is their time beside it.
    """

    def __init__(self, attack: Attack, shown: Watcher) -> None:
        self._attack = attack
        self._shown = shown
        self._mounted: Mounted | None = None
        self._before: dict[str, float] = {}
        self._achieved: dict[str, float] = {}

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        self._shown.workload(workload, targets, rounds)

    def phase(self, target: Target, number: int, phase: str) -> None:
        self._shown.phase(target, number, phase)
        if phase == "settling":
            self._mounted = Mounted(self._attack, target.address, yielding=True)
        elif phase == "measuring":
            assert self._mounted is not None
            self._before = self._mounted.counts()
        elif phase == "finishing":
            assert self._mounted is not None
            after = self._mounted.counts()
            self.end()
            self._achieved = {"attackers_open": after["open"]}
            if self._attack.kind in RATED:
                elapsed = after["at"] - self._before["at"]
                self._achieved = {"attacks_per_second": (after["opened"] - self._before["opened"]) / elapsed}

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        self._shown.tick(target, done, latest)

    def round(self, target: Target, number: int, result: Round) -> None:
        # Both would charge the well-behaved streams with what the attackers cost.
        for name in ("cpu_per_event", "memory_per_stream"):
            result.figures.pop(name, None)
        result.figures.update(self._achieved)
        self._shown.round(target, number, result)

    def end(self) -> None:
        """Ends the attack, wherever the round was."""
        if self._mounted is not None:
            self._mounted.end()
            self._mounted = None
