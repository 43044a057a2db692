"""`llmpipe upgrade`: asks a running process for a handover, and waits for what becomes of it.

The process sends its progress as datagrams to a Unix socket in the abstract namespace, unix(7), whose name is made of its number. Who
asks opens that socket first; where nobody does, nothing is sent. The kernel tells who sent a datagram, so nobody else can claim success.
"""

import errno
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmpipe.errors import UsageError

STARTED, TAKEN_OVER, FAILED, IGNORED = "started", "taken over", "failed", "ignored"
"""The first words of a datagram: behind them is the new process's number, or the reason."""

LONGEST = 4000
"""Bytes of a datagram."""

LOOK_INTERVAL = 0.2
"""Seconds between two looks whether the process is still there."""

_CREDENTIALS = struct.Struct("3i")


def _address(pid: int) -> str:
    return f"\0llmpipe-upgrade-{pid}"


def tell(state: str, about: object) -> None:
    """Tells who has asked this process for an upgrade, if somebody has; never waits.

    Args:
        state: one of the words above.
        about: the new process's number, or a reason.
    """
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(f"{state}\n{about}".encode(errors="backslashreplace")[:LONGEST], _address(os.getpid()))


def run(pid: int, timeout: float, show: Callable[[str], None]) -> int:
    """Sends SIGUSR2 and waits until another process has taken over.

    Args:
        pid: of the process that is to be replaced.
        timeout: seconds; 0 is no limit.
        show: gets each line of progress.

    Returns:
        The exit code: 0 where another process serves, else 1.

    Raises:
        UsageError: there is no such process, or none that can be upgraded.
    """
    _check(pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.settimeout(LOOK_INTERVAL)
        try:
            sock.bind(_address(pid))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UsageError(f"another command waits for an upgrade of process {pid}") from None
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError as error:
            raise UsageError(f"process {pid} cannot be sent SIGUSR2 ({error.strerror})") from None
        show(f"asked process {pid} to start its successor")
        return _wait(sock, pid, timeout, show)


def _wait(sock: socket.socket, pid: int, timeout: float, show: Callable[[str], None]) -> int:
    end = time.monotonic() + timeout if timeout else None
    while True:
        gone = not Path(f"/proc/{pid}").exists()  # looked at first: what it said before it ended may be waiting
        try:
            data, ancillary, _, _ = sock.recvmsg(LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            if gone:
                show(f"not upgraded: process {pid} has ended")
                return 1
            if end is not None and time.monotonic() > end:
                show(f"not upgraded within {timeout:g} s as far as known here; the log of process {pid} has more")
                return 1
            continue
        if pid not in [_CREDENTIALS.unpack(credentials)[0] for _, _, credentials in ancillary]:
            continue
        state, _, about = data.decode(errors="replace").partition("\n")
        if state == STARTED:
            show(f"process {about} starts")
        elif state == TAKEN_OVER:
            show(f"upgraded: process {about} serves; process {pid} ends with its last stream")
            return 0
        elif state in (FAILED, IGNORED):
            show(f"not upgraded, process {pid} goes on: {about}")
            return 1


def _check(pid: int) -> None:
    """Looks whether a process takes SIGUSR2, which ends most programs.

    Raises:
        UsageError: it does not.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise UsageError(f"there is no process {pid}") from None
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    if caught is None or not int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1:
        raise UsageError(
            f"process {pid} takes no SIGUSR2: it is no `llmpipe serve`, an older version, or has not started or ended yet"
        )
