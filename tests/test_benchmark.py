"""The project's own benchmark: that it runs what is there, says what is not, and judges the goals. Not how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import peers, readme, workloads  # noqa: E402
from bench.attacks import Attack, AttackError, Mounted  # noqa: E402
from llmpipe.bench import page, report  # noqa: E402


def test_the_readme_quotes_the_last_full_run():
    results = json.loads(readme.RESULTS.read_text())
    assert results["complete"]
    assert readme.split(readme.README.read_text())[1] == readme.table(results)


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


FIGURES = {
    ("llmpipe", "latency_p50"): [11.0, 10.0, 12.0],
    ("floor", "latency_p50"): [10.0, 10.0, 10.0],
    ("llmpipe", "errors"): [0.0, 1.0],
    ("llmpipe", "broken_events"): [0.0, 2.0],
}


def rounds(target: str, figure: str) -> list[float]:
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
        (workloads.within("latency_p50", 11.0), "11 s", True),
        (workloads.within("latency_p50", 10.0), "11 s", False),
        (workloads.without_errors(), "1 errors", False),
        (workloads.intact(), "2 broken events", False),
    ],
)
def test_goals_are_judged_by_medians_of_rounds(goal, measured, met):
    found = goal.judge(rounds)
    assert (found.text, found.met) == (measured, met)


def test_a_goal_without_its_peer_is_no_goal():
    assert workloads.at_most("latency_p50", 1.0, "nginx").judge(rounds) is None


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
