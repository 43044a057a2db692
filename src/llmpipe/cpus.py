"""How many CPUs this process may use: those that it may run on, and no more than its control group has time for.

A container's limit is a quota of CPU time. More threads than that are stopped together for the rest of each period, with all
their streams.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1."""
    return min([len(os.sched_getaffinity(0)), *quotas(Path("/proc/self"))])


def quotas(process: Path) -> list[int]:
    """CPUs' worth of time, rounded up, of each quota that a process is under: in its own group and in those around it.

    Args:
        process: its directory in /proc.
    """
    found = []
    try:
        for directory in _groups(process):
            for read in (_quota_v2, _quota_v1):
                cpus = read(directory)
                if cpus is not None:
                    found.append(max(1, math.ceil(cpus)))
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return found  # no /proc, or not as it was ever documented: then there is no further quota to find
    return found


def _groups(process: Path) -> Iterator[Path]:
    """Directories of the process's groups that can have a quota, from the innermost to the root of each hierarchy."""
    mounts = [_mount(line) for line in (process / "mountinfo").read_text().splitlines()]
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root, point, kind, options in mounts:
            unified = kind == "cgroup2" and not controllers
            if not unified and not (kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options):
                continue
            # In a container the mount may begin at the group itself, whose path is still written from the host's root.
            inside = os.path.relpath(path, root) if path == root or path.startswith(f"{root.rstrip('/')}/") else "."
            directory = Path(os.path.normpath(f"{point}/{inside}"))
            yield directory
            while directory != Path(point):
                directory = directory.parent
                yield directory


def _mount(line: str) -> tuple[str, str, str, list[str]]:
    """(root, mount point, type, options of the file system) of a line of mountinfo, proc(5)."""
    before, _, behind = line.partition(" - ")
    words = before.split(" ")
    kind, _, options = behind.split(" ", 2)
    return words[3], words[4], kind, options.split(",")


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _quota_v2(directory: Path) -> float | None:
    text = _read(directory / "cpu.max")
    if text is None or text.startswith("max"):
        return None
    quota, period = text.split()
    return int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)
