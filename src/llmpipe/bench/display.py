"""Progress: a live view where there is a terminal (live.py), plain lines where there is none. Both go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from llmpipe.bench.measure import Round, Target, Watcher
from llmpipe.bench.report import line
from llmpipe.bench.workload import Workload


class Display(Watcher, Protocol):
    """A watcher with a beginning and an end."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Lines:
    """One line a round."""

    def __init__(self) -> None:
        self._workload: Workload | None = None
        self._rounds = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        self._workload, self._rounds = workload, rounds
        print(f"{workload.title}: {', '.join(target.name for target in targets)}", file=sys.stderr, flush=True)

    def phase(self, target: Target, number: int, phase: str) -> None:
        pass

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        pass

    def round(self, target: Target, number: int, result: Round) -> None:
        assert self._workload is not None, "a workload began"
        print(
            f"  round {number + 1}/{self._rounds} {target.name}: {line(self._workload, result)}",
            file=sys.stderr,
            flush=True,
        )


class Silent(Lines):
    """Nothing at all."""

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        pass

    def round(self, target: Target, number: int, result: Round) -> None:
        pass


def choose(quiet: bool) -> Display:
    """A live view on a terminal, lines elsewhere."""
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        try:
            from llmpipe.bench.live import Live  # noqa: PLC0415 - rich is an extra

            return Live()
        except ModuleNotFoundError:
            print("for a live view: pip install 'llmpipe[bench]'", file=sys.stderr)
    return Lines()
