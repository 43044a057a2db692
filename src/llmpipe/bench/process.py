"""CPU time and resident memory of a process and of all its descendants, from /proc.

Read here and not by a library: `schedstat` gives nanoseconds where `stat`, which libraries read, has ticks of 10 ms.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def exists(pid: int) -> bool:
    """Whether there is such a process."""
    return (PROC / str(pid)).exists()


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for parent in found:
        for task in _tasks(parent):
            with contextlib.suppress(*_ENDED):
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


# Only that a process or a thread has ended is passed over. Any other error would turn a figure into a lie.
_ENDED = (FileNotFoundError, ProcessLookupError)


def _tasks(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except _ENDED:
        return []


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the processes' living threads have used."""
    used = 0
    for pid in pids:
        for task in _tasks(pid):
            with contextlib.suppress(*_ENDED):
                used += int((task / "schedstat").read_text().split()[0])
    return used / 1e9


def user_seconds(pids: list[int]) -> float:
    """The part of their CPU time that was not the kernel's. It is counted in ticks, so only of seconds of work is it exact."""
    used = 0
    for pid in pids:
        with contextlib.suppress(*_ENDED):
            used += int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11])
    return used / _TICKS


def resident_bytes(pids: list[int]) -> int:
    """Resident memory. Pages that several of them share count once for each; the growth under load is not shared."""
    used = 0
    for pid in pids:
        with contextlib.suppress(*_ENDED):
            used += int((PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    return used
