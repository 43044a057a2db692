"""Starts a peer on one CPU, waits until it answers, and stops it.

Nothing here knows what a peer is made of: it is a process group, and whatever is in the group belongs to it.
"""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from .base import Peer

START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
LOG_TAIL = 3000


class PeerError(Exception):
    """A peer that did not start, or did not answer."""


def start(
    peer: Peer,
    folder: Path,
    port: int,
    backend_port: int,
    scratch: Path,
    cpu: int,
    headers: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a peer, pinned to a CPU, and return when a completion went through it.

    Args:
        peer: Who.
        folder: Where `install` put it.
        port: Where it listens, on 127.0.0.1.
        backend_port: Where a backend listens already, on 127.0.0.1.
        scratch: A folder for its configuration and its log, NAME.log.
        cpu: The only CPU that it and its children may use.
        headers: Added to the request that tells whether it answers. That answer is read to its end: let it be short.

    Raises:
        PeerError: It ended, or did not answer 200 within a minute. The log's tail is in the message.
    """
    scratch = scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    if accepts(port):
        raise PeerError(f"{peer.name}: something else listens on port {port}")
    command = peer.command(folder, port, backend_port, scratch)
    # Two programs that exec each other rather than a preexec_fn, which must not be used beside threads.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    prefix = ["prlimit", f"--nofile={hard}:{hard}", "taskset", "--cpu-list", str(cpu)]
    path = scratch / f"{peer.name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [*prefix, *command.argv],
            env={**os.environ, **command.env},
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, port, headers or {}, lambda: peer.listening(port, backend_port))
    except BaseException as error:
        stop(process)
        if isinstance(error, PeerError):
            tail = path.read_text(errors="replace")[-LOG_TAIL:].strip() or "(nothing)"
            raise PeerError(f"{peer.name}: {error}; it wrote:\n{tail}") from None
        raise
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a peer and its children. Not gently: a graceful end waits for streams, and nobody wants them any more."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_TIMEOUT)
    deadline = time.monotonic() + STOP_TIMEOUT
    while processes(process):  # its ports are free when the last one is gone
        if time.monotonic() > deadline:
            raise PeerError(f"processes {processes(process)} outlive their kill")
        time.sleep(0.01)


def processes(process: subprocess.Popen[bytes]) -> list[int]:
    """The ids of the processes that a peer consists of, in the order of their start. A zombie is none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == process.pid and state not in "ZX":
                    found.append(int(entry.name))
    return sorted(found)


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(
    process: subprocess.Popen[bytes], port: int, headers: Mapping[str, str], listening: Callable[[], None]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    problem = "nothing listens"
    told = False
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"it ended with code {process.returncode}")
        if accepts(port):
            try:
                if not told:
                    listening()
                    told = True
                status = _ask(port, headers, deadline)
            except (OSError, http.client.HTTPException) as error:
                problem = f"a request failed: {error!r}"
            else:
                if status == 200:
                    return
                problem = f"a request was answered {status}"
        time.sleep(0.05)
    raise PeerError(f"not ready after {START_TIMEOUT:g} s: {problem}")


def _ask(port: int, headers: Mapping[str, str], deadline: float) -> int:
    """Ask for a short completion. Its body is read, so that no stream of the trial is left behind at the backend."""
    body = {
        "model": "bench",
        "stream": True,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "Are you there?"}],
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=max(1.0, deadline - time.monotonic()))
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", **headers}
        )
        response = connection.getresponse()
        while response.read1() and time.monotonic() < deadline:
            pass
        return response.status
    finally:
        connection.close()
