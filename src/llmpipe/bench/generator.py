"""The generator's thread and the socket of its token source, alive from the first round to the last.

The source answers between rounds too: routers that check the health of their backends would leave it out otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from llmpipe._load import Load
from llmpipe.bench.workload import LoadPlan
from llmpipe.errors import UsageError
from llmpipe.sockets import bind_now

FINISH_TIME = 5.0
"""Seconds that answers have to end well when a round is over."""

READY_TIME = 30.0
"""Seconds in which every stream must have begun."""


@contextmanager
def running(source: tuple[str, int] | None) -> Iterator[Load]:
    """A generator in a thread of its own; `source` is where its token source listens, None for none.

    Raises:
        UsageError: the source cannot listen there.
    """
    listener = bind_now(source, "--source") if source else None
    load = Load(listener.fileno() if listener else -1)
    thread = threading.Thread(target=load.run, name="load", daemon=True)
    try:
        thread.start()
        while not load.runs:
            time.sleep(0.001)
        yield load
    finally:
        load.stop()
        thread.join()
        load.close()
        if listener is not None:
            listener.close()


def begin(load: Load, plan: LoadPlan) -> None:
    """Starts the plan.

    Raises:
        UsageError: it cannot work.
    """
    try:
        load.begin(plan)
    except ValueError as error:
        raise UsageError(str(error)) from None


def wait_flowing(load: Load, wanted: int) -> bool:
    """Waits until that many streams have begun; False where they did not within READY_TIME."""
    end = time.monotonic() + READY_TIME
    while load.stats()["flowing"] < wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def finish(load: Load) -> int:
    """Ends every answer well, and whatever did not end by force; how many those were."""
    load.finish()
    end = time.monotonic() + FINISH_TIME
    while load.stats()["open"] and time.monotonic() < end:
        time.sleep(0.01)
    unfinished = load.stats()["open"]
    load.abandon()
    return unfinished
