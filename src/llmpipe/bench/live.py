"""The live view of a terminal: a row for each target, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import rich.live
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmpipe.bench.figures import quantity
from llmpipe.bench.measure import Round, Target
from llmpipe.bench.report import line
from llmpipe.bench.workload import Workload


class Live:
    """A table with a row for each target, and how far it is."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=1.0)
        self._workload: Workload | None = None
        self._rounds = 0
        self._base = 0
        self._running = ""
        self._latest: dict[str, float] = {}
        self._results: dict[str, list[Round]] = {}
        # Last: it renders as soon as it is made.
        self._live = rich.live.Live(console=Console(stderr=True), refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        self._workload, self._rounds = workload, rounds
        self._results = {target.name: [] for target in targets}
        self._base = 0
        self._progress.reset(self._task, total=float(len(targets) * rounds))

    def phase(self, target: Target, number: int, phase: str) -> None:
        self._running = target.name
        self._latest = {}
        self._progress.update(
            self._task,
            completed=self._base,
            description=f"round {number + 1}/{self._rounds}  {target.name}  {phase}",
        )

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        self._latest = latest
        self._progress.update(self._task, completed=self._base + done)

    def round(self, target: Target, number: int, result: Round) -> None:
        self._results[target.name].append(result)
        self._base += 1
        self._running = ""
        self._progress.update(self._task, completed=self._base)

    def _render(self) -> RenderableType:
        table = Table(title=self._workload.title if self._workload else None, title_justify="left")
        for heading in ("target", "rounds", "now", "last round"):
            table.add_column(heading)
        for name, results in self._results.items():
            now = ""
            if name == self._running and self._latest:
                now = quantity(self._latest["events_per_second"], "1/s")
                now += "".join(
                    f"  {key} {quantity(self._latest[key], 's')}" for key in ("p50", "p99") if key in self._latest
                )
            last = line(self._workload, results[-1]) if results and self._workload else ""
            table.add_row(name, f"{len(results)}/{self._rounds}", now, last)
        return Group(table, self._progress)
