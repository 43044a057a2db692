"""Reloads: who asks for one, who waits for its end, and what came of them (rule I4)."""

import asyncio
import time
from contextlib import suppress


class Reloads:
    """Several that ask before a reload begins get the same one; whoever asks while one is going on gets the next, since the file may
    have changed behind it.

    It belongs to the control plane's event loop. The attributes may be read by other threads.

    Attributes:
        faults: of the last one, a line each; none where it succeeded.
        succeeded: how many did.
        failed: how many did not.
        succeeded_at: when the last one succeeded, in seconds of time.time(); the start of the process counts as one.
    """

    def __init__(self) -> None:
        self.faults: tuple[str, ...] = ()
        self.succeeded = 0
        self.failed = 0
        self.succeeded_at = time.time()
        self._asked = asyncio.Event()
        self._closed = False
        self._waiting: list[asyncio.Future[tuple[str, ...] | None]] = []
        self._served: list[asyncio.Future[tuple[str, ...] | None]] = []

    def ask(self) -> None:
        """Asks for one, and does not wait."""
        self._asked.set()

    async def ask_and_wait(self) -> tuple[str, ...] | None:
        """Asks for one: its faults, once it has ended; None where the process ends first."""
        if self._closed:
            return None
        answer: asyncio.Future[tuple[str, ...] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.ask()
        return await answer

    async def next(self, seconds: float) -> bool:
        """Waits until one is asked for, which begins here, or the time is over. Whether one was asked for."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._asked.wait(), seconds)
        asked = self._asked.is_set()
        self._asked.clear()
        self._served, self._waiting = self._waiting, []
        return asked

    def ended(self, faults: tuple[str, ...]) -> None:
        """Notes what came of the one that `next` began, and tells those who wait for it."""
        self.faults = faults
        if faults:
            self.failed += 1
        else:
            self.succeeded += 1
            self.succeeded_at = time.time()
        self._answer(self._served, faults)

    def close(self) -> None:
        """Tells those who wait, and who will, that there is no more."""
        self._closed = True
        self._answer(self._served, None)
        self._answer(self._waiting, None)

    @staticmethod
    def _answer(waiting: list[asyncio.Future[tuple[str, ...] | None]], faults: tuple[str, ...] | None) -> None:
        for answer in waiting:
            if not answer.done():  # who asked may have left
                answer.set_result(faults)
        waiting.clear()
