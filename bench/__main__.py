"""Runs the benchmark: every workload against every target, in alternating rounds, and holds the figures against the goals.

python -m bench                     us, the floor, straight at the source, nginx and HAProxy: about eight minutes
python -m bench --all               every peer
python -m bench --work hold-5000    some workloads only
python -m bench --work fleet        several pools: routing, the choice of a backend, queues, backends that are down
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from bench import peers
from bench.attacks import AttackError, Beside
from bench.fleet import FLEET
from bench.workloads import TASKS, Task
from llmpipe.bench import command, display, generator, measure, report
from llmpipe.bench.measure import Outcome, Round, Schedule, Target, Watcher
from llmpipe.bench.workload import Workload
from llmpipe.errors import UsageError
from llmpipe.sockets import raise_descriptor_limit

USUAL = ("llmpipe", "floor", "haproxy", "nginx")
SOURCE_PORT = 7800
FIRST_PORT = 7801
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmpipe-bench"
FILES = ("bench.json", "samples.json", "bench.md", "bench.html")
"""Medians and spreads; all that was measured; the tables; the page."""
EVERY = (*TASKS, *FLEET)
GROUPS = tuple(dict.fromkeys(task.group for task in EVERY if task.group))
MOST_STREAMS = {"litellm": 100, "aiohttp": 1000}
"""Peers that need so long for a request or an event that more streams would only queue before them."""


class Alone:
    """A watcher that lets only the target of the present round run.

    A peer that was given more than it can do goes on when its round is over, on the CPU that the next one has for itself.
    """

    def __init__(self, shown: Watcher) -> None:
        self._shown = shown
        self._targets: Sequence[Target] = ()

    def workload(self, workload: Workload, targets: Sequence[Target], rounds: int) -> None:
        self._targets = targets
        self._shown.workload(workload, targets, rounds)

    def phase(self, target: Target, number: int, phase: str) -> None:
        if phase == "starting":
            for other in self._targets:
                for pid in other.tree():
                    os.kill(pid, signal.SIGCONT if other is target else signal.SIGSTOP)
        self._shown.phase(target, number, phase)

    def tick(self, target: Target, done: float, latest: dict[str, float]) -> None:
        self._shown.tick(target, done, latest)

    def round(self, target: Target, number: int, result: Round) -> None:
        self._shown.round(target, number, result)


class Group:
    """The targets of one task: peers that run while it does, and go when it is over."""

    def __init__(
        self, stack: ExitStack, task: Task, chosen: Sequence[peers.Peer], names: Sequence[str], cpu: int
    ) -> None:
        self.targets: list[Target] = []
        self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmpipe-bench-")))
        if task.direct:
            self.targets.append(Target("direct", "direct", ("127.0.0.1", SOURCE_PORT)))
        for number, peer in enumerate(usable(task.peers, names) if task.peers else chosen):
            if task.only and peer.name not in task.only:
                continue
            if task.workload.streams > MOST_STREAMS.get(peer.name, task.workload.streams):
                continue
            port = FIRST_PORT + number
            try:
                process = peers.start(peer, FOLDER, port, SOURCE_PORT, self._scratch / peer.name, cpu)
            except peers.PeerError as error:
                click.echo(f"left out: {error}", err=True)
                continue
            stack.callback(peers.stop, process)
            self.targets.append(
                Target(
                    peer.name,
                    "proxy",
                    ("127.0.0.1", port),
                    pids=peers.processes(process),
                    version=peer.version(FOLDER),
                    about=peer.about,
                )
            )


def usable(given: Sequence[peers.Peer], names: Sequence[str]) -> list[peers.Peer]:
    """Those of the peers with these names, or of their kin, that can run here; of the others it is said why they cannot."""
    found = []
    for peer in given:
        if (peer.kin or peer.name) not in names:
            continue
        missing = peer.missing(FOLDER)
        if missing is None:
            found.append(peer)
        else:
            click.echo(f"left out: {missing}", err=True)
    return found


def judge(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every goal of the workloads that ran, where what it compares did run."""
    found = []
    for task, outcome in zip(tasks, outcomes, strict=True):

        def rounds(target: str, figure: str, outcome: Outcome = outcome) -> list[float]:
            results = outcome.results.get(target, [])
            if figure == "errors":
                return [float(sum(one.errors.values())) for one in results]
            if figure == "broken_events":
                return [float(one.fidelity["altered"] + one.fidelity["out_of_order"]) for one in results]
            return [one.figures[figure] for one in results if figure in one.figures]

        for goal in task.goals:
            measured = goal.judge(rounds)
            if measured is not None:
                found.append(
                    {
                        "workload": task.workload.name,
                        "title": task.workload.title,
                        "text": goal.text,
                        "measured": measured.text,
                        "met": measured.met,
                    }
                )
    return found


def cpus() -> tuple[int, int]:
    """One CPU for the load and one for the proxy.

    Raises:
        UsageError: there is only one.
    """
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        raise UsageError("the benchmark needs two CPUs: one for the load, one for the proxy")
    return found[0], found[1]


def run(tasks: Sequence[Task], names: Sequence[str], rounds: int) -> tuple[report.Report, bool]:
    """Runs the tasks; the report, and whether every goal was met.

    Raises:
        UsageError: it cannot run here.
    """
    load_cpu, proxy_cpu = cpus()
    raise_descriptor_limit()
    chosen = usable([peers.ALL[name] for name in names], names)
    outcomes: list[Outcome] = []
    ran: list[Task] = []
    complete = True
    os.sched_setaffinity(0, {load_cpu})
    source = "0.0.0.0" if any(task.everywhere for task in tasks) else "127.0.0.1"
    with generator.running((source, SOURCE_PORT)) as load, display.choose(False) as shown:
        try:
            for task in tasks:
                with ExitStack() as stack:
                    group = Group(stack, task, chosen, names, proxy_cpu)
                    schedule = Schedule(rounds, task.settle, task.seconds)
                    if not group.targets:
                        continue
                    watcher: Watcher = Alone(shown)
                    if task.attack is not None:
                        watcher = Beside(task.attack, watcher)
                        stack.callback(watcher.end)
                    for number, outcome in enumerate(
                        measure.run_workload(load, task.workload, group.targets, schedule, watcher, runs=task.runs)
                    ):
                        if number == 0:
                            outcomes.append(outcome)
                            ran.append(task)
        except KeyboardInterrupt:
            complete = False
    made = report.make(outcomes, complete, load_cpu)
    made["goals"] = judge(ran, outcomes)
    return made, complete and all(goal["met"] for goal in made["goals"])


def write(made: report.Report, output: Path) -> None:
    """Writes everything that a run makes. Samples are megabytes, anew with each run: they have a file of their own."""
    texts = (
        json.dumps(report.without_samples(made), separators=(",", ":")) + "\n",
        json.dumps(made, separators=(",", ":")) + "\n",
        "# Results\n\n" + report.markdown(made),
        command.load_page().render(made),
    )
    output.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, texts, strict=True):
        (output / name).write_text(text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--all", "every", is_flag=True, help="Every peer.")
@click.option("--peer", "names", multiple=True, type=click.Choice(list(peers.ALL)), help="These targets; repeat it.")
@click.option(
    "--workload",
    "--work",
    "workloads",
    multiple=True,
    type=click.Choice([*(task.workload.name for task in EVERY), *GROUPS]),
    help="These workloads, or those of a group; repeat it.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of each target.")
@click.option("--install", is_flag=True, help=f"First install the peers that are on PyPI, into {FOLDER}.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/bench"),
    show_default=True,
    help=f"Folder for {', '.join(FILES)}.",
)
def main(
    every: bool, names: tuple[str, ...], workloads: tuple[str, ...], rounds: int, install: bool, output: Path
) -> None:
    """Measure llmpipe beside the floor and its peers. Exit code 0, 1 where a goal was missed, 130 after Ctrl-C."""
    # Peers are process groups of their own; they must not outlive us when somebody ends us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = names or (tuple(peers.ALL) if every else USUAL)
    tasks = [task for task in EVERY if not workloads or {task.workload.name, task.group} & set(workloads)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name == "floor" or install:
            try:
                peers.ALL[name].install(FOLDER)
            except (OSError, subprocess.CalledProcessError) as error:
                click.echo(f"{name} could not be installed: {error}", err=True)
    try:
        made, met = run(tasks, names, rounds)
    except (UsageError, AttackError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    write(made, output)
    click.echo(report.text(made))
    click.echo()
    cells = [
        [goal["title"], goal["text"], goal["measured"], "met" if goal["met"] else "MISSED"] for goal in made["goals"]
    ]
    if cells:
        click.echo(report.text_table(["workload", "goal", "measured", ""], cells))
    click.echo(f"\nwritten: {', '.join(str(output / name) for name in FILES)}")
    sys.exit(0 if met else 1 if made["complete"] else command.INTERRUPTED)


if __name__ == "__main__":
    main()
