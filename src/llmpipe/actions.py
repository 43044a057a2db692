"""What the admin endpoint can have done: drain a backend, resume it, reload, record answers (rules S1 and U)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from llmpipe import log
from llmpipe.status import common_state

if TYPE_CHECKING:
    from llmpipe.record_kinds import ExchangeEnded
    from llmpipe.recorder import Asking, Recorder
    from llmpipe.reloads import Reloads
    from llmpipe.runner import Runner

T = TypeVar("T")

LOOK_INTERVAL = 0.1
"""Seconds between two looks at what a backend has in flight."""

CONTROL_TIME = 60.0
"""Seconds that a request waits for the control plane: it may have many records to write, and a reload takes as long as a name server
likes."""


class Actions:
    """Made in the control plane's event loop, used in the admin endpoint's: what changes something crosses to the first."""

    def __init__(self, runner: Runner, reloads: Reloads, recorder: Recorder) -> None:
        self._runner = runner
        self._reloads = reloads
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()

    async def _cross(self, work: Coroutine[Any, Any, T]) -> T:
        """Has the control plane's thread do it. The only way there.

        Raises:
            asyncio.TimeoutError: it takes longer than CONTROL_TIME. What has begun goes on.
        """
        done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        return await asyncio.wait_for(done, CONTROL_TIME)

    async def _mark(self, name: str, drained: bool, client: str) -> None:
        if not self._runner.mark_drained(name, drained):
            return
        if drained:
            log.info("backend draining", backend=name, in_flight=self._shown(name)["in_flight"], client=client)
        else:
            log.info("backend resumed", backend=name, client=client)

    async def live(self) -> list[ExchangeEnded]:
        """The exchanges that go on (`Runner.live`).

        Raises:
            asyncio.TimeoutError: the control plane is busy for longer than CONTROL_TIME.
        """
        return await self._cross(self._runner.live())

    def names(self) -> list[str]:
        """Of the servers there are, and of the backends that have none."""
        return self._runner.fleet.names

    def _shown(self, name: str) -> dict[str, Any]:
        counters = self._runner.backend_stats(name)
        state = common_state(counters, drained=self._runner.is_drained(name))
        return {"name": name, "state": state, "in_flight": sum(found["in_flight"] for found in counters)}

    async def drain(self, name: str, client: str, seconds: float, gone: Callable[[], bool]) -> dict[str, Any]:
        """Gives a backend, or one of its servers, no new exchange from now on, and waits until it has none.

        Args:
            name: of the backend, with all servers that it has and will have, or of a server.
            client: who asks, for the log.
            seconds: for which this waits at most; 0 for not at all.
            gone: whether nobody waits for the answer any more.

        Returns:
            What the answer shows of it.

        Raises:
            KeyError: there is no such backend.
            asyncio.TimeoutError: the control plane has no time.
        """
        await self._cross(self._mark(name, True, client))
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # Two looks must agree: an exchange that goes to its backend again after a stale connection is not counted in between.
        agreed = 0
        while True:
            shown = self._shown(name)
            agreed = 0 if shown["state"] == "draining" else agreed + 1
            left = end - loop.time()
            if agreed == 2 or left <= 0 or gone():
                return shown
            await asyncio.sleep(min(LOOK_INTERVAL, left))

    async def resume(self, name: str, client: str) -> dict[str, Any]:
        """Takes a drain back: what the answer shows of the backend.

        Raises:
            KeyError: there is no such backend.
            asyncio.TimeoutError: the control plane has no time.
        """
        await self._cross(self._mark(name, False, client))
        return self._shown(name)

    async def reload(self) -> tuple[str, ...] | None:
        """Loads the file again, as SIGHUP does: its faults, once that has ended; None where the process ends first.

        Raises:
            asyncio.TimeoutError: it takes longer than CONTROL_TIME, and goes on.
        """
        return await self._cross(self._reloads.ask_and_wait())

    async def _ask(self, asking: Asking, seconds: float, client: str) -> bool:
        if not self._recorder.ask(asking):
            return False
        fields = {"answers": asking.count, "seconds": seconds, "request_bodies": asking.request_bodies}
        log.info("recording answers", **fields, client=client)
        return True

    async def record(self, asking: Asking, seconds: float, client: str) -> bool:
        """Has the next answers recorded. Whether that can be: nobody else has asked for any.

        Args:
            asking: gets them.
            seconds: for which they are waited for, for the log.
            client: who asks, likewise.

        Raises:
            asyncio.TimeoutError: the control plane has no time.
        """
        return await self._cross(self._ask(asking, seconds, client))

    async def _end(self, asking: Asking) -> None:
        self._recorder.end(asking)

    async def end_recording(self, asking: Asking) -> None:
        """Has no more recorded, once what has come by now is there.

        Raises:
            asyncio.TimeoutError: the control plane has no time; it is done later.
        """
        await self._cross(self._end(asking))

    def forget_recording(self, asking: Asking) -> None:
        """The same, and does not wait. It can be done twice."""
        with suppress(RuntimeError):  # the process ends
            self._loop.call_soon_threadsafe(self._recorder.end, asking)
