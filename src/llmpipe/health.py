"""Active health checks: a GET to each server of a backend now and then (rule L).

What fails them is asked no more while others can be. One that is busy is not dead: while content comes from it, it is well whatever
its health path says. One check of a server runs at a time, in the control plane's event loop; nothing here is on the path of a
request.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import h11

from llmpipe import log
from llmpipe.http_client import Question, ask_first, fault
from llmpipe.hung import HangWatch

if TYPE_CHECKING:
    from llmpipe.config import Backend, PoolSettings, Settings
    from llmpipe.fleet import Server
    from llmpipe.runner import Runner


CAUSE = "health checks"
"""What a server is marked with that fails them."""


class Results:
    """How many checks of a server passed, and how many failed, by what they came to (rule L2)."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0


class _Check:
    """The checks of one server, which may move to other addresses."""

    def __init__(self, runner: Runner, server: Server, settings: PoolSettings, results: Results) -> None:
        self.server = server
        self.settings = settings
        self._results = results
        self._runner = runner
        self._passed = self._failed = 0
        self._down = False
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Ends it."""
        self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(random.uniform(0, min(self.settings.health_interval, 1.0)))  # noqa: S311 - not all at once
        while True:
            begun = loop.time()
            try:
                self._count(await self._fault())
            except Exception as error:  # else the backend would stay as it was for ever
                log.error("health check failed", backend=self.server.name, error=repr(error))
            await asyncio.sleep(max(0.0, begun + self.settings.health_interval - loop.time()))

    def _count(self, fault: str) -> None:
        """Takes the result of a check."""
        if fault and self._runner.content_age(self.server.name) < self.settings.health_interval:
            fault = ""
        if fault:
            self._results.failed += 1
        else:
            self._results.passed += 1
        self._passed, self._failed = (0, self._failed + 1) if fault else (self._passed + 1, 0)
        if self._failed == self.settings.health_fall and not self._down:
            self._down = True
            self._runner.mark(self.server.name, CAUSE, True)
            log.warning("backend unhealthy", backend=self.server.name, reason=fault)
        elif self._passed == self.settings.health_rise and self._down:
            self._down = False
            self._runner.mark(self.server.name, CAUSE, False)
            log.info("backend healthy", backend=self.server.name)

    async def _fault(self) -> str:
        """What is wrong with the backend; empty for nothing."""
        backend = self.server.backend
        question = Question(backend.host_text, backend.prefix + self.settings.health_path, "health check")
        asked = ask_first(self.server.addresses, question)
        try:
            status = (await asyncio.wait_for(asked, self.settings.health_timeout)).status
        except (asyncio.TimeoutError, OSError, h11.ProtocolError) as error:
            return fault(error, self.settings.health_timeout)
        return "" if 200 <= status < 400 else f"status {status}"


class HealthChecks:
    """The checks of all servers. It belongs to one event loop; `results` may be read by other threads.

    Attributes:
        hang_watch: looks for servers that hang.
        results: by the server's name, of those of the table that are or were checked.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._checks: dict[str, _Check] = {}
        self.hang_watch = HangWatch(runner)
        self.results: dict[str, Results] = {}

    def configure(self, settings: Settings) -> None:
        """Checks the servers of the table whose backends have a path for it from now on. One in several pools is checked as the first
        of them says; one whose checks stay as they are keeps what is known of it."""
        self.hang_watch.configure(settings)
        asked: dict[Backend, PoolSettings] = {}
        for pool in settings.all_pools:
            for backend in pool.settings.backends if pool.settings.health_path else ():
                asked.setdefault(backend, pool.settings)
        servers = self._runner.fleet.servers
        wanted = {server.name: (server, asked[server.backend]) for server in servers if server.backend in asked}
        for name, check in list(self._checks.items()):
            if name not in wanted or _shape(wanted[name][1]) != _shape(check.settings):
                check.stop()
                del self._checks[name]
        # A server without checks is well, and so is one whose checks begin, whatever those of before had found under its name.
        for server in servers:
            if server.name not in self._checks:
                self._runner.mark(server.name, CAUSE, False)
        names = {server.name for server in servers}
        results = {name: found for name, found in self.results.items() if name in names}
        for name in wanted:
            results.setdefault(name, Results())
        self.results = results
        for name, (server, pool_settings) in wanted.items():
            if name in self._checks:
                self._checks[name].server = server
            else:
                self._checks[name] = _Check(self._runner, server, pool_settings, results[name])

    def close(self) -> None:
        """Ends all of them."""
        for check in self._checks.values():
            check.stop()
        self._checks.clear()
        self.hang_watch.close()


def _shape(settings: PoolSettings) -> tuple[object, ...]:
    """What a check goes by."""
    return (
        settings.health_path,
        settings.health_interval,
        settings.health_timeout,
        settings.health_rise,
        settings.health_fall,
    )
