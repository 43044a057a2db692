"""Calls that tell a server to stop, after a client has left (rule N2): a POST with the id of the request.

They are for servers that go on with a request whose connection was closed. Each is tried once, in the control plane's event loop: a
server that does not answer delays nothing but calls, and those to itself more than others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import h11

from llmpipe import log, resolve
from llmpipe.disconnect import Results
from llmpipe.http_client import Answer, Question, ask_first, fault

if TYPE_CHECKING:
    from llmpipe.config import AbortCall, Backend
    from llmpipe.fleet import Server

LIMIT = 5.0
"""Seconds that a call may take, the look-up of a name included."""

MOST_CALLS = 64
"""Calls at a time; each has a descriptor."""

MOST_OF_ONE = 16
"""Calls at a time about one backend."""

MOST_WAITING = 1024
"""Calls about one backend that wait for their turn; further ones are dropped."""


class _Line:
    """The calls about one backend."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.running = 0
        self.waiting: deque[tuple[str, Server, AbortCall]] = deque()
        self.fails = False


class AbortCalls:
    """Makes the calls. It belongs to one event loop.

    Attributes:
        results: by the backend's name, of those about which a call was wanted. It may be read by other threads.
    """

    def __init__(self, names: resolve.Names) -> None:
        """Args:
        names: looks up servers that are no backends.
        """
        self._names = names
        self._lines: dict[str, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_up: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._closed = False
        self.results: dict[str, Results] = {}

    def add(self, request_id: str, server: Server, call: AbortCall) -> None:
        """Has a request stopped that this server got, as soon as it is its turn; does not wait."""
        line = self._line(server.backend.name)
        if self._closed or len(line.waiting) >= MOST_WAITING:
            line.results.dropped += 1
            return
        line.waiting.append((request_id, server, call))
        self._start(line)

    def expect(self, backend: Backend) -> None:
        """Counts calls about this backend from now on, of which there are none yet."""
        self._line(backend.name)

    def _line(self, name: str) -> _Line:
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(Results())
            self.results = {**self.results, name: line.results}  # a new one: a scrape may be going through the old
        return line

    def _start(self, line: _Line) -> None:
        while line.waiting and line.running < MOST_OF_ONE and len(self._tasks) < MOST_CALLS:
            line.running += 1
            task = asyncio.create_task(self._run(line, *line.waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # The one whose turn it was comes last next time.
            for name, line in list(self._lines.items()):
                if line.waiting and line.running < MOST_OF_ONE and len(self._tasks) < MOST_CALLS:
                    self._lines[name] = self._lines.pop(name)
                    self._start(line)

    async def _run(self, line: _Line, request_id: str, server: Server, call: AbortCall) -> None:
        try:
            failure = await self._fault(request_id, server, call)
        except Exception as error:  # else the line would stand still
            failure = repr(error)
        finally:
            line.running -= 1
        fields = {"backend": server.name, "request_id": request_id}
        if failure:
            line.results.error += 1
            (log.debug if line.fails else log.warning)("abort call failed", **fields, error=failure)
        else:
            line.results.ok += 1
            (log.info if line.fails else log.debug)("abort call answered", **fields)
        line.fails = bool(failure)

    async def _fault(self, request_id: str, server: Server, call: AbortCall) -> str:
        """What went wrong with a call; empty for nothing."""
        backend = server.backend
        host, target = (call.authority, call.target) if call.host else (backend.host_text, backend.prefix + call.target)
        question = Question(host, target, "abort call", json.dumps({call.field: request_id}).encode())
        try:
            status = (await asyncio.wait_for(self._ask(server, call, question), LIMIT)).status
        except (asyncio.TimeoutError, OSError, h11.ProtocolError) as error:
            return fault(error, LIMIT)
        return "" if 200 <= status < 300 else f"status {status}"

    async def _ask(self, server: Server, call: AbortCall, question: Question) -> Answer:
        return await ask_first(await self._addresses(server, call), question)

    async def _addresses(self, server: Server, call: AbortCall) -> Sequence[tuple[str, int]]:
        if not call.host or (call.host, call.port) == (server.backend.host, server.backend.port):
            return server.addresses  # of several servers of one name, the one that has the request
        with suppress(ValueError):
            return ((str(ipaddress.ip_address(call.host)), call.port),)
        return tuple((address, call.port) for address in await self._look_up(call.host))

    async def _look_up(self, host: str) -> tuple[str, ...]:
        now = asyncio.get_running_loop().time()
        at, known = self._looked_up.get(host, (0.0, ()))
        if known and now - at < resolve.INTERVAL:
            return known
        try:
            answers = await self._names.look_up(host)
        except OSError:
            if not known:
                raise
            return known  # name servers fail more often than servers move
        found = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers if "%" not in str(answer[4][0])))
        self._looked_up[host] = (now, found)
        return found

    async def finish(self) -> None:
        """Waits until no call is on its way or waits."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Ends them all; those that are left count as dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for line in self._lines.values():
            line.results.dropped += len(line.waiting) + line.running
            line.waiting.clear()
        left = sum(line.results.dropped for line in self._lines.values())
        if left:
            log.warning("abort calls dropped", calls=left)
        for task in self._tasks:
            task.cancel()
