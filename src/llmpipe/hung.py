"""Servers that hang: all their streams fall silent at once, though the server is there (rule L3).

A server that has stopped still accepts connections, since the kernel does that for it, so that no connect tells. What tells is the flow:
of streams that have had content, and whose clients take it, none gets any. The engines count those streams, and this looks at the
counts in the control plane's event loop; nothing here is on the path of a byte.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h11

from llmpipe import log
from llmpipe.http_client import Question, ask_first

if TYPE_CHECKING:
    from llmpipe.config import Settings
    from llmpipe.fleet import Server
    from llmpipe.runner import Runner

INTERVAL = 1.0
"""Seconds between two looks."""

LEAST_SILENCE = 10.0
"""Seconds without content before a server hangs, at least."""

USUAL_TIMES = 3
"""So many times its longest pause of late a server must be silent."""

PAUSE_KEPT = 0.995
"""How much of the longest pause is left at the next look."""

QUESTION_INTERVAL = 5.0
"""Seconds from an answer of a server that hangs, or its time-out, to the next question."""

QUESTION_LIMIT = 5.0
"""Seconds that it has for an answer."""

CAUSE = "hung"
"""What the server is marked with."""


class Silence:
    """How long a server's streams have been silent, and whether that means that it hangs. It reads no clock: each look says the time.

    Attributes:
        hung: what the looks came to.
    """

    def __init__(self, now: float) -> None:
        self.hung = False
        self._since = now
        self._pause = 0.0
        self._patience = 1

    def look(self, now: float, streams: int, age: float) -> None:
        """Args:
        now: seconds.
        streams: that have had content and wait for more.
        age: seconds since content came from the server; infinite for never.
        """
        content = now - age
        if content > self._since:
            self._pause = max(self._pause, min(content, now) - self._since)
            self._since = content
            self._patience = 1
            self.hung = False
        elif not streams and not self.hung:
            self._since = now
        elif now - self._since >= max(LEAST_SILENCE, USUAL_TIMES * self._pause) * self._patience:
            self.hung = True
        self._pause *= PAUSE_KEPT

    def answered(self, now: float) -> None:
        """It has answered a question: it is there. As long as its streams stay silent, the next time takes twice as long."""
        self.hung = False
        self._since = now
        self._patience = min(2 * self._patience, 64)

    @property
    def since(self) -> float:
        """When content came last, or there was none to wait for."""
        return self._since


class HangWatch:
    """Looks at all servers, and marks those that hang. It belongs to one event loop; `hangs` may be read by other threads.

    Attributes:
        hangs: by the server's name, how often it hung, of those of the table that did.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._silences: dict[str, Silence] = {}
        self._questions: dict[str, asyncio.Task[None]] = {}
        self._paths: dict[str, str] = {}
        self.hangs: dict[str, int] = {}
        self._task = asyncio.create_task(self._run())

    def configure(self, settings: Settings) -> None:
        """Takes note of where servers are asked whether they are there: at the path of their health checks, if they have one."""
        self._paths = {}
        for pool in settings.all_pools:
            for backend in pool.settings.backends if pool.settings.health_path else ():
                self._paths.setdefault(backend.name, pool.settings.health_path)

    def close(self) -> None:
        """Ends it."""
        self._task.cancel()
        for question in self._questions.values():
            question.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                self._look()
            except Exception as error:  # else nobody would look again
                log.error("streams not looked at", error=repr(error))

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        flows = self._runner.flows()
        servers = {server.name: server for server in self._runner.fleet.servers}
        for name in self._silences.keys() - servers.keys():
            self._end(name)
            del self._silences[name]
        self.hangs = {name: times for name, times in self.hangs.items() if name in servers}
        for name, server in servers.items():
            streams, age = flows.get(name, (0, float("inf")))
            silence = self._silences.get(name)
            if silence is None:
                silence = self._silences[name] = Silence(now)
            before = silence.hung
            silence.look(now, streams, age)
            if silence.hung and not before:
                self._begin(server, streams, now - silence.since)
            elif before and not silence.hung:
                self._end(name)
                log.info("backend flows again", backend=name)

    def _begin(self, server: Server, streams: int, seconds: float) -> None:
        self.hangs = {**self.hangs, server.name: self.hangs.get(server.name, 0) + 1}
        log.warning("backend hangs", backend=server.name, streams=streams, silent_seconds=round(seconds, 1))
        self._runner.mark(server.name, CAUSE, True)
        self._questions[server.name] = asyncio.create_task(self._ask(server))

    def _end(self, name: str) -> None:
        question = self._questions.pop(name, None)
        if question is not None:
            question.cancel()
            self._runner.mark(name, CAUSE, False)

    async def _ask(self, server: Server) -> None:
        """Asks a server that hangs, until it answers."""
        backend = server.backend
        path = backend.prefix + self._paths.get(backend.name, "/v1/models")
        question = Question(backend.host_text, path, "hang check")
        while True:
            try:
                answer = await asyncio.wait_for(ask_first(server.addresses, question), QUESTION_LIMIT)
                if answer.status < 500:
                    break
            except (asyncio.TimeoutError, OSError, h11.ProtocolError):
                pass
            except Exception as error:  # else it would be marked for ever
                log.error("backend not asked", backend=server.name, error=repr(error))
            await asyncio.sleep(QUESTION_INTERVAL)
        del self._questions[server.name]
        self._silences[server.name].answered(asyncio.get_running_loop().time())
        self._runner.mark(server.name, CAUSE, False)
        log.info("backend answers again", backend=server.name)
