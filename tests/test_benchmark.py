"""The project's own benchmark: that it runs what is there, says what is not, and judges the goals. Not how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import __main__ as benchmark  # noqa: E402
from bench import fleet, peers, readme, rounds, workloads  # noqa: E402
from bench.attacks import Attack, AttackError, Mounted  # noqa: E402
from bench.peers import fleet as fleet_peers  # noqa: E402
from llmpipe import config_file  # noqa: E402
from llmpipe.bench import page, report  # noqa: E402
from llmpipe.bench.workload import Workload  # noqa: E402


@pytest.mark.parametrize("path", [readme.README, readme.COMPARISON], ids=lambda path: path.name)
def test_the_pages_quote_the_last_full_run(path):
    results = json.loads(readme.RESULTS.read_text())
    assert results["complete"]
    assert readme.split(path.read_text())[1] == readme.table(results, path)


def test_the_tables_are_those_of_the_last_full_run():
    results = json.loads(readme.RESULTS.read_text())
    assert readme.RESULTS.with_name("bench.md").read_text() == "# Results\n\n" + report.markdown(results)


def test_the_tree_holds_no_samples():
    results = json.loads(readme.RESULTS.read_text())
    assert results == report.without_samples(results)
    assert readme.RESULTS.stat().st_size < 1_000_000
    assert "llmpipe" in page.render(results)


@pytest.mark.slow
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the benchmark needs two CPUs: one for the load, one for the proxy"
)
def test_it_runs_and_writes_what_it_found(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--rounds", "1", "--work", "requests-1", "--workload", "disconnect-idle"),
            *("--work", "beside-idle", "--work", "beside-aborts"),
            *("--peer", "llmpipe", "--peer", "floor", "--peer", "caddy", "--output", tmp_path / "out"),
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed, and this machine may be slow
    made = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert made["complete"]
    assert made["workloads"][0]["targets"][0]["histograms"]["ttft"]["buckets"]
    assert made["workloads"][0]["targets"][0]["rounds"][0]["figures"]
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == report.without_samples(made) != made
    assert [workload["name"] for workload in made["workloads"]] == [
        "requests-1",
        "disconnect-idle",
        "beside-idle",
        "beside-aborts",
    ]
    for workload in made["workloads"][:2]:
        assert [target["name"] for target in workload["targets"]] == ["direct", "llmpipe", "floor"]
        for target in workload["targets"]:
            assert not target["rounds"][0]["errors"]
            assert target["kind"] == "direct" or (target["version"] and target["about"])
    for workload, figure, least in zip(
        made["workloads"][2:], ("attackers_open", "attacks_per_second"), (2000, 1), strict=True
    ):
        (target,) = workload["targets"]
        assert target["name"] == "llmpipe"
        assert not target["rounds"][0]["errors"]
        assert target["figures"][figure]["median"] >= least  # the attackers were there
        assert target["figures"]["latency_p99"]["median"] > 0
        assert "cpu_per_event" not in target["figures"]
    said = {goal["text"] for goal in made["goals"]}
    assert "every event intact" in said
    assert "TTFT p50: at most floor + 15 µs" in said
    assert "close to EOF p99: at most 5 ms" in said
    assert not any("haproxy" in text for text in said)  # it did not run
    assert "caddy is not installed" in done.stderr
    table = (tmp_path / "out" / "bench.md").read_text()
    for goal in made["goals"]:
        assert f"| {goal['text']} | {goal['measured']} |" in table
        assert goal["measured"] in done.stdout
    assert "| attackers open |" in table
    assert "| attack rate |" in table
    assert "llmpipe" in (tmp_path / "out" / "bench.html").read_text()


def test_peers_end_with_everything_they_started(tmp_path):
    floor = peers.ALL["floor"]
    floor.install(tmp_path)
    source = subprocess.Popen(
        [sys.executable, "-m", "llmpipe", "mock", "--listen", "127.0.0.1:17390", "--log-level", "error", "--ttft", "0"]
    )
    try:
        process = peers.start(floor, tmp_path, 17391, 17390, tmp_path / "scratch", min(os.sched_getaffinity(0)))
        assert peers.processes(process) == [process.pid]
        peers.stop(process)
        assert peers.processes(process) == []
    finally:
        source.send_signal(signal.SIGTERM)
        source.wait(30)


def test_a_peer_that_cannot_start_says_why(tmp_path):
    with pytest.raises(peers.PeerError, match="ended with code"):
        peers.start(Broken(), tmp_path, 17392, 17393, tmp_path, min(os.sched_getaffinity(0)))


class Broken(type(peers.ALL["floor"])):
    """A peer whose program ends at once."""

    name = "broken"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> peers.Command:
        return peers.Command([sys.executable, "-c", "print('no'); raise SystemExit(3)"])


@pytest.fixture
def other_ports(monkeypatch):
    """Ports of this test's own, and the CPUs as they were when it ends."""
    cpus = os.sched_getaffinity(0)
    monkeypatch.setattr(benchmark, "SOURCE_PORT", 17400)
    monkeypatch.setattr(benchmark, "FIRST_PORT", 17401)
    monkeypatch.setattr(rounds, "WAITING_PORT", 17409)
    yield
    os.sched_setaffinity(0, cpus)


def small(task: workloads.Task) -> workloads.Task:
    """The same with a few clients, for a moment."""
    if task.workload.shape == "queue":
        task = fleet.queue_task(20)
    streams = min(task.workload.streams, 20)
    return replace(task, workload=replace(task.workload, streams=streams), seconds=0.3, settle=0.1)


@pytest.mark.slow
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="the benchmark needs two CPUs: one for the load, one for the proxy"
)
def test_every_workload_of_a_fleet_runs(other_ports):
    tasks = [small(task) for task in fleet.FLEET]
    made, _ = benchmark.run(tasks, ["llmpipe", "haproxy", "nginx"], 1)
    assert made["complete"]
    assert [workload["name"] for workload in made["workloads"]] == [task.workload.name for task in tasks]
    for task, workload in zip(tasks, made["workloads"], strict=True):
        names = {target["name"] for target in workload["targets"]}
        assert names >= {peer.name for peer in task.peers if "llmpipe" in (peer.name, peer.kin)}
        for target in workload["targets"]:
            assert target["about"]
            assert not report.errors(target), target["name"]
            wanted = "memory_per_waiting" if task.workload.shape == "queue" else "cpu_per_request"
            assert target["figures"][wanted]["median"] >= 0
    judged = [(goal["workload"], goal["text"]) for goal in made["goals"]]
    beside = ("haproxy", "nginx", "vllm-router", "smg")  # who may not be here
    for task in tasks:
        for goal in task.goals:
            assert (task.workload.name, goal.text) in judged or goal.text.endswith(beside), goal.text
    assert "Place in a full queue" in page.render(made)


def test_a_full_queue_refuses_and_the_place_of_one_that_left_is_taken(other_ports, tmp_path):
    """What the figures of a queue rest on: it is full, and only then are others refused."""
    (ours,) = fleet.queue_task(3).peers
    request = rounds.request_of(fleet.queue_task(3).workload, ("127.0.0.1", 17401))
    source = subprocess.Popen(
        [sys.executable, "-m", "llmpipe", "mock", "--listen", "127.0.0.1:17400", "--log-level", "error", "--ttft", "0"]
    )
    try:
        process = peers.start(ours, tmp_path, 17401, 17400, tmp_path / "scratch", min(os.sched_getaffinity(0)))
        backend = rounds.Backend()
        clients = rounds.Clients(("127.0.0.1", 17401), request)
        try:
            served = clients.ask()
            assert backend.next()[1] == served
            waiting = [clients.ask() for _ in range(3)]
            rounds.wait_for_rest(peers.processes(process))
            assert clients.refused(clients.ask(), 30)
            clients.leave(waiting[0])
            rounds.wait_for_rest(peers.processes(process))
            came = clients.ask()
            assert not clients.refused(came, 0.5)
            order = []
            for _ in range(3):
                backend.answer()
                order.append(backend.next()[1])
            assert order == [*waiting[1:], came]
        finally:
            clients.close()
            backend.close()
            peers.stop(process)
    finally:
        source.send_signal(signal.SIGTERM)
        source.wait(30)


def test_a_group_is_a_name_for_its_workloads():
    assert benchmark.GROUPS == ("fleet",)
    assert [task for task in benchmark.EVERY if task.group == "fleet"] == list(fleet.FLEET)
    assert len({task.workload.name for task in benchmark.EVERY}) == len(benchmark.EVERY)


def test_the_bodies_of_a_fleet_are_as_long_as_they_say():
    sizes = {task.workload.name: task.workload.body_size for task in fleet.FLEET}
    assert sizes["fleet-route"] == 2048
    assert sizes["fleet-route-100k"] == 100 * 1024
    assert sizes["fleet-route-1m"] == 1024 * 1024
    assert list(json.loads(rounds.long_body("m", 300))) == ["stream", "max_tokens", "messages", "model"]


def test_a_fleet_has_as_many_backends_as_it_says(tmp_path):
    for peer in fleet.CHOOSING:
        peer.command(tmp_path, 1, 7800, tmp_path)
        said = config_file.read(str(tmp_path / "llmpipe.toml"))
        assert len(said.pools) == 100
        assert len({backend.url for pool in said.pools for backend in pool.backends}) == 2000


@pytest.mark.parametrize("peer", [fleet_peers.FleetNginx(), fleet_peers.FleetHaproxy()], ids=lambda peer: peer.name)
def test_peers_choose_by_the_field(peer, tmp_path):
    if reason := peer.missing(tmp_path):
        pytest.skip(reason)
    peer.command(tmp_path, 17411, 17410, tmp_path)
    (written,) = tmp_path.iterdir()
    for number, model in enumerate(fleet_peers.MODELS):
        assert model in written.read_text()
        assert f"{fleet_peers.address(number)}:17410" in written.read_text()


def test_titles_of_workloads_that_say_what_they_are():
    assert Workload("queue", about="much", beside="noise").title == "much, beside noise"


FIGURES = {
    ("llmpipe", "latency_p50"): [11.0, 10.0, 12.0],
    ("floor", "latency_p50"): [10.0, 10.0, 10.0],
    ("llmpipe", "errors"): [0.0, 1.0],
    ("llmpipe", "broken_events"): [0.0, 2.0],
}


def in_rounds(target: str, figure: str) -> list[float]:
    return FIGURES.get((target, figure), [])


@pytest.mark.parametrize(
    ("goal", "measured", "met"),
    [
        (workloads.at_most("latency_p50", 1.15), "1.10 x floor", True),
        (workloads.at_most("latency_p50", 1.05), "1.10 x floor", False),
        (workloads.at_least("latency_p50", 1.1, "floor"), "1.10 x floor", True),
        (workloads.at_least("latency_p50", 1.2, "floor"), "1.10 x floor", False),
        (workloads.near("latency_p50", 1.0), "floor + 1 s", True),
        (workloads.near("latency_p50", 0.5), "floor + 1 s", False),
        (workloads.near("latency_p50", 0.5, "llmpipe", "floor"), "llmpipe - 1 s", True),
        (workloads.within("latency_p50", 11.0), "11 s", True),
        (workloads.within("latency_p50", 10.0), "11 s", False),
        (workloads.without_errors(), "1 errors", False),
        (workloads.intact(), "2 broken events", False),
    ],
)
def test_goals_are_judged_by_medians_of_rounds(goal, measured, met):
    found = goal.judge(in_rounds)
    assert (found.text, found.met) == (measured, met)


def test_a_goal_without_its_peer_is_no_goal():
    assert workloads.at_most("latency_p50", 1.0, "nginx").judge(in_rounds) is None


def test_an_attack_without_a_target_says_what_failed():
    number = 50
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with Mounted(Attack("idle", number), nobody.getsockname()) as mounted:
            counts = mounted.counts()
    assert counts["failed"] >= number
    assert counts["open"] == counts["opened"] == 0


def test_an_attack_that_cannot_begin_is_an_error():
    with pytest.raises(AttackError, match="ended"):
        Mounted(Attack("no such kind", 1), ("127.0.0.1", 1))
