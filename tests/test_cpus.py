"""Rule G5: how many engines there are by default: no more than there is CPU time for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Backend, answer_all

from llmpipe import cpus

V2 = "0::{}\n"
V1 = "5:memory:/else\n4:cpu,cpuacct:{}\n3:cpuset:/\n1:name=systemd:/x\n0::/\n"


class Groups:
    """A process's view of its control groups, in files."""

    def __init__(self, top: Path) -> None:
        self.process = top / "process"
        self.process.mkdir()
        self.top = top / "mounted"
        self.top.mkdir()

    def mounted(self, version: int, group: str, root: str = "/") -> None:
        kind = "cgroup2 cgroup2 rw,nsdelegate" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
        lines = [
            "21 20 0:5 / /proc rw - proc proc rw",
            "22 20 0:7 /else /elsewhere rw shared:9 - cgroup cgroup rw,memory",
            f"23 20 0:6 {root} {self.top} rw,nosuid shared:4 - {kind}",
        ]
        (self.process / "mountinfo").write_text("\n".join(lines) + "\n")
        (self.process / "cgroup").write_text((V2 if version == 2 else V1).format(group))

    def says(self, directory: str, **files: str) -> None:
        path = self.top / directory
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [("max 100000", []), ("200000 100000", [2]), ("150000 100000", [2]), ("1000 100000", [1]), ("50000 10000", [5])],
)
def test_a_quota_is_rounded_up(groups: Groups, text: str, found: list[int]) -> None:
    groups.mounted(2, "/a")
    groups.says("a", cpu__max=text)
    assert cpus.quotas(groups.process) == found


def test_every_group_around_it_counts(groups: Groups) -> None:
    groups.mounted(2, "/a/b/c")
    groups.says("a", cpu__max="300000 100000")
    groups.says("a/b", cpu__max="max 100000")
    groups.says("a/b/c", cpu__max="700000 100000")
    assert cpus.quotas(groups.process) == [7, 3]


@pytest.mark.parametrize("group", ["/", "/../..", "/elsewhere"])
def test_a_container_sees_its_own_group_as_the_root(groups: Groups, group: str) -> None:
    groups.mounted(2, group)
    groups.says(".", cpu__max="200000 100000")
    assert cpus.quotas(groups.process) == [2]


def test_version_1(groups: Groups) -> None:
    groups.mounted(1, "/a/b")
    groups.says("a", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    groups.says("a/b", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cpus.quotas(groups.process) == [3]


def test_version_1_mounted_at_the_containers_group(groups: Groups) -> None:
    groups.mounted(1, "/docker/x/y", root="/docker/x")
    groups.says("y", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    groups.says(".", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert cpus.quotas(groups.process) == [4, 1]


@pytest.mark.parametrize("text", ["", "nonsense", "x y", "100000 0", "1 2 3"])
def test_what_is_not_understood_is_no_quota(groups: Groups, text: str) -> None:
    groups.mounted(2, "/a")
    groups.says("a", cpu__max=text)
    assert cpus.quotas(groups.process) == []


def test_without_proc_there_is_none(tmp_path: Path) -> None:
    assert cpus.quotas(tmp_path) == []


def test_no_more_than_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for quotas, usable in (([], 3), ([2], 2), ([7, 1], 1), ([9], 3)):
        monkeypatch.setattr(cpus, "quotas", lambda _, quotas=quotas: quotas)
        assert cpus.usable_cpus() == usable


V1_TOP = Path("/sys/fs/cgroup/cpu")
V2_TOP = Path("/sys/fs/cgroup")


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A real control group with time for half a CPU."""
    v1 = (V1_TOP / "cpu.cfs_quota_us").exists()
    group = (V1_TOP if v1 else V2_TOP) / f"llmpipe-{os.getpid()}"
    try:
        group.mkdir()
        if v1:
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def test_a_real_quota_is_the_number_of_engines(half_a_cpu: Path) -> None:
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    command = ["sh", "-c", script, str(half_a_cpu), sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0"]
    with Backend(answer_all) as backend:
        command += ["--admin", "off", "--backend", backend.url]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stderr is not None
                assert " workers=1 " in process.stderr.readline()
            finally:
                process.terminate()
                process.communicate(timeout=40)
        assert process.returncode == 0
