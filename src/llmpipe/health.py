"""Active health checks: a GET to each backend now and then (rule L).

What fails them is asked no more while others can be. A backend that is busy is not dead: while content comes from it, it is well whatever
its health path says. One check of a backend runs at a time, in the control plane's event loop; nothing here is on the path of a
request.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import h11

from llmpipe import log
from llmpipe.http_client import Question, ask_first, fault

if TYPE_CHECKING:
    from llmpipe.config import Backend, PoolSettings, Settings
    from llmpipe.resolve import Resolver
    from llmpipe.runner import Runner


class Results:
    """How many checks of a backend passed, and how many failed, by what they came to (rule L2)."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0


class _Check:
    """The checks of one backend."""

    def __init__(
        self, runner: Runner, resolver: Resolver, backend: Backend, settings: PoolSettings, results: Results
    ) -> None:
        self.settings = settings
        self._results = results
        self._runner = runner
        self._resolver = resolver
        self._backend = backend
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
                log.error("health check failed", backend=self._backend.name, error=repr(error))
            await asyncio.sleep(max(0.0, begun + self.settings.health_interval - loop.time()))

    def _count(self, fault: str) -> None:
        """Takes the result of a check."""
        if fault and self._runner.content_age(self._backend) < self.settings.health_interval:
            fault = ""
        if fault:
            self._results.failed += 1
        else:
            self._results.passed += 1
        self._passed, self._failed = (0, self._failed + 1) if fault else (self._passed + 1, 0)
        if self._failed == self.settings.health_fall and not self._down:
            self._down = True
            self._runner.mark(self._backend, True)
            log.warning("backend unhealthy", backend=self._backend.name, reason=fault)
        elif self._passed == self.settings.health_rise and self._down:
            self._down = False
            self._runner.mark(self._backend, False)
            log.info("backend healthy", backend=self._backend.name)

    async def _fault(self) -> str:
        """What is wrong with the backend; empty for nothing."""
        backend = self._backend
        question = Question(backend.host_field or backend.authority, self.settings.health_path, "health check")
        asked = ask_first(self._resolver.addresses(backend), question)
        try:
            status = (await asyncio.wait_for(asked, self.settings.health_timeout)).status
        except (asyncio.TimeoutError, OSError, h11.ProtocolError) as error:
            return fault(error, self.settings.health_timeout)
        return "" if 200 <= status < 400 else f"status {status}"


class HealthChecks:
    """The checks of all backends. It belongs to one event loop; `results` may be read by other threads.

    Attributes:
        results: by the backend's name, of those of the file that are or were checked.
    """

    def __init__(self, runner: Runner, resolver: Resolver) -> None:
        self._runner = runner
        self._resolver = resolver
        self._checks: dict[Backend, _Check] = {}
        self.results: dict[str, Results] = {}

    def configure(self, settings: Settings) -> None:
        """Checks the backends that have a path for it from now on. One in several pools is checked as the first of them says; one
        whose checks stay as they are keeps what is known of it."""
        wanted: dict[Backend, PoolSettings] = {}
        for pool in settings.all_pools:
            for backend in pool.settings.backends if pool.settings.health_path else ():
                wanted.setdefault(backend, pool.settings)
        for backend, check in list(self._checks.items()):
            new = wanted.get(backend)
            if new is None or _shape(new) != _shape(check.settings):
                check.stop()
                del self._checks[backend]
        # A backend without checks is well, and so is one whose checks begin, whatever those of before had found under its name.
        for _, backend in self._runner.fleet.numbered():
            if backend not in self._checks:
                self._runner.mark(backend, False)
        names = {backend.name for backend in settings.backends}
        results = {name: found for name, found in self.results.items() if name in names}
        for backend in wanted:
            results.setdefault(backend.name, Results())
        self.results = results
        for backend, pool_settings in wanted.items():
            if backend not in self._checks:
                self._checks[backend] = _Check(
                    self._runner, self._resolver, backend, pool_settings, results[backend.name]
                )

    def close(self) -> None:
        """Ends all of them."""
        for check in self._checks.values():
            check.stop()
        self._checks.clear()


def _shape(settings: PoolSettings) -> tuple[object, ...]:
    """What a check goes by."""
    return (
        settings.health_path,
        settings.health_interval,
        settings.health_timeout,
        settings.health_rise,
        settings.health_fall,
    )
