"""A proxy and the processes that take over from it (rule G4): real ones, one after the other, with the same stderr."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from harness import LIBC, Proxy, wait_until

PR_SET_CHILD_SUBREAPER = 36

LONG = 120.0
"""Seconds for a process to start, take over, or end, on a machine that is busy with other things."""


def gone(pid: int) -> bool:
    """Whether a process has ended; if it is a child by now, it is waited for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Generations:
    """`proxy` is the first process, `pid` the one that serves now. All of them end with this object, and must end cleanly."""

    def __init__(
        self,
        *backends: str,
        options: Sequence[str] = ("--upgrade-timeout", "0"),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
    ) -> None:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whose parent ends becomes a child of this process
        self.proxy = Proxy(*backends, options=options, env=env, prefix=prefix, pass_fds=pass_fds, cwd=cwd)
        self.pids = [self.proxy.pid]

    @property
    def pid(self) -> int:
        return self.pids[-1]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log lines of this event so far, of all processes."""
        return [line for line in self.proxy.log.copy() if line["event"] == event]

    def wait_line(self, event: str, number: int = 1) -> dict[str, Any]:
        """The line of this event with this number, counted from 1, waited for."""
        wait_until(lambda: len(self.lines(event)) >= number, LONG, f"{number} lines {event!r}")
        return self.lines(event)[number - 1]

    def signal(self, number: int) -> None:
        """Sends a signal to the process that serves."""
        os.kill(self.pid, number)

    def upgrade(self) -> int:
        """Has the next process take over; its number."""
        before = len(self.lines("upgraded"))
        self.signal(signal.SIGUSR2)
        self.taken_over(before + 1)
        return self.pid

    def taken_over(self, number: int) -> None:
        """Notes the process that has taken over with the handover of this number."""
        self.pids.append(int(self.wait_line("upgraded", number)["pid"]))

    def status(self) -> dict[str, Any]:
        """What /status says."""
        made: dict[str, Any] = json.loads(self.admin("/status"))
        return made

    def admin(self, path: str) -> str:
        """The body of a 200 from the admin endpoint, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.admin_port, timeout=LONG)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
            return text
        finally:
            connection.close()

    def wait_gone(self, pid: int) -> None:
        if pid == self.proxy.pid:
            assert self.proxy.wait_exit(LONG) == 0
        wait_until(lambda: gone(pid), LONG, f"process {pid} to end")

    def close(self) -> None:
        """SIGTERM for the last one, and the checks of a clean end of all."""
        if not gone(self.pid):
            self.signal(signal.SIGTERM)
        for pid in self.pids:
            self.wait_gone(pid)
        self.proxy.close()
        assert [line["clean"] for line in self.lines("stopped")] == [True] * len(self.pids)

    def kill(self) -> None:
        """Ends all at once; those too that never took over."""
        for pid in {*self.pids, *(int(line["pid"]) for line in self.lines("upgrading"))}:
            if pid != self.proxy.pid and not gone(pid):
                os.kill(pid, signal.SIGKILL)
        self.proxy.kill()
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def __enter__(self) -> Generations:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
            else:
                print("".join(["stderr of all:\n", *self.proxy.stderr[-100:]]), file=sys.stderr)
        finally:
            self.kill()
