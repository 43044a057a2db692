"""The handover of a process's sockets to a new process with the same command line, whatever version that is (rule G4).

The old process starts the new one. They talk over a pair of sockets, a line at a time:

    new: ready       everything is there but the first client; else a line for each fault, and the end
    old: take over   from now on the new one may serve
    new: serving     it accepts, and the old one drains

Up to "take over" the new process serves nobody and can be killed at any time. The listening sockets go by LISTEN_FDS, as those of
a service manager do (`activation`), so the new process needs to know nothing of the old one's version.
"""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress

from llmpipe.activation import FIRST_DESCRIPTOR
from llmpipe.errors import UsageError

VARIABLE = "LLMPIPE_HANDOVER"
"""The new process's end of the pair: a descriptor."""

READY, TAKE_OVER, SERVING = "ready", "take over", "serving"

LOOK_INTERVAL = 0.05
"""Seconds between two looks whether the new process has ended."""

END_TIME = 5.0
"""Seconds for the new process to end once it has closed its end of the pair."""

# Runs in the new process and executes the command in its place: LISTEN_PID must be the number of the process itself, and only
# that knows it. The descriptors come with the old process's numbers. What everybody may be sent must not kill it while it starts:
# it comes with these signals blocked.
_EXECUTE = f"""
import fcntl, os, signal, sys
given, command = [int(word) for word in sys.argv[1].split()], sys.argv[2:]
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGUSR2))
moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, {FIRST_DESCRIPTOR} + len(given)) for descriptor in given]
for descriptor in given:
    os.close(descriptor)
for at, descriptor in enumerate(moved, {FIRST_DESCRIPTOR}):
    os.dup2(descriptor, at)
    os.close(descriptor)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


class HandoverError(Exception):
    """The new process does not take over; the text says why."""


class Successor:
    """The new process, as the old one sees it. It has the old one's environment, folder and descriptors 0 to 2, and nothing else."""

    def __init__(
        self, listeners: Sequence[socket.socket], admin: socket.socket | None, environment: Mapping[str, str]
    ) -> None:
        """Starts it; an event loop must run.

        Args:
            listeners: where clients connect; they stay the caller's.
            admin: the same for the admin endpoint.
            environment: of the new process.

        Raises:
            HandoverError: it cannot be started.
        """
        given = [*listeners, *([] if admin is None else [admin])]
        names = ["http"] * len(listeners) + ["admin"] * (len(given) - len(listeners))
        own = {
            "LISTEN_FDS": str(len(given)),
            "LISTEN_FDNAMES": ":".join(names),
            VARIABLE: str(FIRST_DESCRIPTOR + len(given)),
        }
        try:
            self._pair, theirs = socket.socketpair()
            with theirs:
                descriptors = [sock.fileno() for sock in (*given, theirs)]
                environment = {**environment, **own}
                command = [sys.executable, "-I", "-S", "-c", _EXECUTE, " ".join(map(str, descriptors))]
                command += [sys.executable, *sys.orig_argv[1:]]
                before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
                try:
                    self._process = subprocess.Popen(command, env=environment, pass_fds=descriptors)  # noqa: S603 - ours
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError as error:
            raise HandoverError(f"it cannot be started ({error.strerror or error})") from None
        self._pair.setblocking(False)
        self._received = b""
        self.pid = self._process.pid
        self.told = False
        """Whether it was told to take over, and may have clients."""
        self.ended = asyncio.create_task(self._wait())
        """Done when it has ended and was waited for, so that it is no zombie."""

    async def _wait(self) -> None:
        while self._process.poll() is None:  # noqa: ASYNC110 - one that does not depend on the kernel's version
            await asyncio.sleep(LOOK_INTERVAL)

    async def ready(self) -> None:
        """Waits until it is ready.

        Raises:
            HandoverError: it will not be.
        """
        faults: list[str] = []
        while (line := await self._line()) != READY:
            if not line:
                raise HandoverError("; ".join(faults) or await self._end())
            faults.append(line)

    async def take_over(self) -> None:
        """Has it serve, and waits until it does.

        Raises:
            HandoverError: it does not.
        """
        self.told = True
        with suppress(OSError):  # then there is no answer either
            await asyncio.get_running_loop().sock_sendall(self._pair, f"{TAKE_OVER}\n".encode())
        if await self._line() != SERVING:
            raise HandoverError(await self._end())
        self._pair.close()

    async def _line(self) -> str:
        """The next line; empty where there is none."""
        while b"\n" not in self._received:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._pair, 4096)
            except ConnectionError:
                return ""
            if not data:
                return ""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    async def _end(self) -> str:
        """How it ended."""
        await asyncio.wait((self.ended,), timeout=END_TIME)
        code = self._process.returncode
        when = "after it had been told to take over" if self.told else "before it was ready"
        if code is None:
            return f"it broke off {when}"
        if code < 0:
            return f"it was ended by {_signal_name(-code)} {when}"
        return f"it ended with exit code {code} {when}"

    def end(self, number: signal.Signals) -> None:
        """Sends it a signal that ends it, and hears no more of it."""
        self._pair.close()
        self._process.send_signal(number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


class Predecessor:
    """The old process, as the new one sees it."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._environment = environment
        self._descriptor = _descriptor(environment)
        if self._descriptor is not None:
            os.set_inheritable(self._descriptor, False)

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self._descriptor is not None

    async def ready(self) -> None:
        """Says that everything is there, and waits until this process may serve.

        Raises:
            UsageError: the old process has ended first, or has given up.
        """
        if self._descriptor is None:
            return
        # A socket of its own: the descriptor stays for `serving`, and for faults that are found until then.
        with socket.socket(fileno=os.dup(self._descriptor)) as pair:
            pair.setblocking(False)
            loop = asyncio.get_running_loop()
            received = b""
            try:
                await loop.sock_sendall(pair, f"{READY}\n".encode())
                while b"\n" not in received:
                    data = await loop.sock_recv(pair, 4096)
                    if not data:
                        break
                    received += data
            except ConnectionError:
                received = b""
        if received.decode(errors="replace") != f"{TAKE_OVER}\n":
            raise UsageError("the process that this one was to take over from is gone; start it anew")

    def serving(self) -> None:
        """Says that this process serves; the old one is nothing to it from now on."""
        if self._descriptor is not None:
            with suppress(OSError):  # it has ended a moment ago
                os.write(self._descriptor, f"{SERVING}\n".encode())
            os.close(self._descriptor)
            self._descriptor = None
            del self._environment[VARIABLE]


def tell_fault(environment: Mapping[str, str], text: str) -> None:
    """Tells the old process, if there is one that waits, why this one ends."""
    descriptor = _descriptor(environment)
    if descriptor is not None:
        with suppress(OSError):
            os.write(descriptor, f"{text}\n".encode(errors="backslashreplace"))


def _descriptor(environment: Mapping[str, str]) -> int | None:
    """The end of the pair that this process was started with, if it was."""
    text = environment.get(VARIABLE, "")
    with suppress(ValueError, OverflowError, OSError):
        if stat.S_ISSOCK(os.fstat(int(text)).st_mode):
            return int(text)
    return None
