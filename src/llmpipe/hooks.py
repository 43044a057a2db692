"""Hooks: callables of the user's own, that are told of each client that left (rule N2).

A package offers one under the entry-point group `llmpipe.hooks`. It is loaded when `llmpipe serve` starts, and called with one
argument, a `llmpipe.disconnect.Abort`. Loading and calling happen in one thread of their own, one after the other: a hook may wait for
a network, and needs no lock, and neither a stream nor the control plane waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import NamedTuple

from llmpipe import log
from llmpipe.disconnect import Abort, Results
from llmpipe.errors import UsageError

GROUP = "llmpipe.hooks"

MOST_WAITING = 1024
"""Clients that left of which the hooks have not been told yet; of further ones they are not told."""


class _Hook(NamedTuple):
    name: str
    call: Callable[[Abort], object]
    results: Results


def _load(point: metadata.EntryPoint) -> _Hook:
    """Loads one hook.

    Raises:
        UsageError: it cannot be loaded, or not be called.
    """
    where = f"hook {point.name} ({point.value})"
    try:
        found = point.load()
    except BaseException as error:  # SystemExit too: whatever a module does that is loaded
        raise UsageError(f"{where} cannot be loaded: {_shown(error)}") from None
    if not callable(found):
        raise UsageError(f"{where} is not callable, but a {type(found).__name__}")
    if inspect.iscoroutinefunction(found):
        raise UsageError(f"{where} is a coroutine function; write a plain one, which has a thread to itself")
    with suppress(ValueError):  # of one that is not written in Python nobody knows
        try:
            inspect.signature(found).bind(None)
        except TypeError as error:
            raise UsageError(f"{where} cannot be called with one argument: {error}") from None
    return _Hook(point.name, found, Results())


class Hooks:
    """The hooks of all packages. It belongs to one event loop, but for its thread.

    Attributes:
        results: by the hook's name. It may be read by other threads.
    """

    def __init__(self) -> None:
        self._hooks: tuple[_Hook, ...] = ()
        self._waiting: queue.SimpleQueue[Abort | Callable[[], None]] = queue.SimpleQueue()
        self.results: dict[str, Results] = {}

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._hooks)

    async def load(self) -> None:
        """Looks for hooks and loads them. It may take as long as their modules like.

        Raises:
            UsageError: one cannot work.
        """
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[tuple[_Hook, ...]] = loop.create_future()

        def finish(hooks: tuple[_Hook, ...], error: UsageError | None) -> None:
            if loaded.done():  # the process was told to end meanwhile
                return
            if error is None:
                loaded.set_result(hooks)
            else:
                loaded.set_exception(error)

        def run() -> None:
            hooks: tuple[_Hook, ...] = ()
            failure: UsageError | None = None
            try:
                hooks = tuple(map(_load, metadata.entry_points(group=GROUP)))
            except UsageError as error:
                failure = error
            except Exception as error:  # of the description of some package
                failure = UsageError(f"no hooks can be looked for: {error!r}")
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, hooks, failure)
            if hooks:
                self._run(hooks)

        try:
            # The exit waits for no hook.
            threading.Thread(target=run, name="hooks", daemon=True).start()
        except RuntimeError as error:  # a limit on threads
            raise UsageError(f"no hooks can be loaded: {error}") from None
        self._hooks = await loaded
        self.results = {hook.name: hook.results for hook in self._hooks}
        if self._hooks:
            log.info("hooks loaded", hooks=",".join(hook.name for hook in self._hooks))

    def _run(self, hooks: tuple[_Hook, ...]) -> None:
        failing: set[str] = set()
        while True:
            abort = self._waiting.get()
            if not isinstance(abort, Abort):
                abort()
                continue
            for hook in hooks:
                try:
                    hook.call(abort)
                except BaseException as error:  # noqa: PERF203 - sys.exit() too: the next one is called all the same
                    hook.results.error += 1
                    fields = {"hook": hook.name, "error": _shown(error), "at": _place(error)}
                    (log.debug if hook.name in failing else log.error)("hook failed", **fields)
                    failing.add(hook.name)
                else:
                    hook.results.ok += 1
                    failing.discard(hook.name)

    def tell(self, abort: Abort) -> None:
        """Has all hooks called; does not wait."""
        if not self._hooks:
            return
        if self._waiting.qsize() >= MOST_WAITING:
            for hook in self._hooks:
                hook.results.dropped += 1
        else:
            self._waiting.put(abort)

    async def finish(self) -> None:
        """Waits until they are called with all that they were told of."""
        if not self._hooks:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        self._waiting.put(tell)
        await done.wait()


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # its class is the user's own too
        return type(error).__name__


def _place(error: BaseException) -> str:
    """Where it was raised: a file and a line. The last of the hook's own code, as a rule."""
    place = "-"
    trace = error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
