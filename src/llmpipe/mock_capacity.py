"""How much a mock works on at once: slots, a queue in front of them, and a pace that falls with the load."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmpipe.config import parse_count
from llmpipe.errors import UsageError
from llmpipe.mock_completion import RefusedError

UNLIMITED = "unlimited"

RETRY_AFTER = 1
"""Seconds, for who finds the queue full."""

LOOK_INTERVAL = 0.05
"""Seconds between two looks at the load while a token is made."""

GRAIN = 0.001
"""Seconds by which a token may be early: the event loop's timers are no finer."""


def parse_queue(text: str) -> int | None:
    """How many may wait; None for any number.

    Raises:
        UsageError: it is neither a whole number nor `unlimited`.
    """
    if text == UNLIMITED:
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{text!r} is neither a whole number nor {UNLIMITED}")
    return parse_count(text)


class Capacity:
    """The requests that are worked on and those that wait, as futures that are done when work begins.

    All of them share one GPU, so to say: it has a clock that runs slower the more it works on, and by which tokens are due.
    """

    def __init__(
        self, slots: int = 0, queue: int | None = None, prefill_rate: float = 0.0, decode_slowdown: float = 0.0
    ) -> None:
        """Args:
        slots: how many requests are worked on at once; 0 is any number.
        queue: how many may wait for a slot; None is any number.
        prefill_rate: tokens of a prompt that are read per second; 0 reads any prompt in no time.
        decode_slowdown: by how much of itself each further request lengthens the time for a token.
        """
        self._slots = slots
        self._queue = queue
        self._prefill_rate = prefill_rate
        self._decode_slowdown = decode_slowdown
        self._running: set[asyncio.Future[None]] = set()
        self._waiting: dict[asyncio.Future[None], None] = {}  # in the order in which they came
        self._worked = 0.0
        self._looked = time.monotonic()

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @contextmanager
    def place(self) -> Iterator[asyncio.Future[None]]:
        """A place in the queue, and then in a slot, until the end of the block. The future is done when the slot is there.

        Raises:
            RefusedError: the queue is full.
        """
        if not self._has_slot() and self._queue is not None and self.waiting >= self._queue:
            raise RefusedError(503, "no slot is free and the queue is full", retry_after=RETRY_AFTER)
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        self._admit()
        try:
            yield turn
        finally:
            self.now()  # until here at the old load
            self._running.discard(turn)
            self._waiting.pop(turn, None)
            self._admit()

    def _has_slot(self) -> bool:
        return not self._slots or len(self._running) < self._slots

    def _admit(self) -> None:
        """Gives slots to those that have waited for longest."""
        self.now()
        while self._waiting and self._has_slot():
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():  # else it was cancelled: its client has left in this turn of the loop
                self._running.add(turn)
                turn.set_result(None)

    def prefill_time(self, tokens: int) -> float:
        """Seconds that reading a prompt of so many tokens takes."""
        return tokens / self._prefill_rate if self._prefill_rate else 0.0

    @property
    def slowdown(self) -> float:
        """How many times longer a token takes than it does alone."""
        return 1 + self._decode_slowdown * max(0, self.running - 1)

    def now(self) -> float:
        """Seconds by the clock that the load slows down."""
        real = time.monotonic()
        self._worked += (real - self._looked) / self.slowdown
        self._looked = real
        return self._worked

    async def work_until(self, due: float) -> None:
        """Waits until the clock is at `due`, however the load changes meanwhile."""
        while (left := (due - self.now()) * self.slowdown) > GRAIN:  # noqa: ASYNC110 - it is the time that passes
            await asyncio.sleep(min(left, LOOK_INTERVAL) if self._decode_slowdown else left)
