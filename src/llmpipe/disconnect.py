"""What happens besides closing when a client has left.

The engine has closed the upstream before anything here runs: closing is the signal that stops an inference server. Here the
control plane tells who listens: the debug log, servers that do not notice a closed connection (`abort_calls`), and the callables
of the user's own (`hooks`). Then the engines wake it for each client that leaves, and it does not wait for the access log's
timer. Where nobody listens, nobody is woken, and a client that leaves costs Python nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from llmpipe import log

if TYPE_CHECKING:
    from llmpipe.abort_calls import AbortCalls
    from llmpipe.config import Settings
    from llmpipe.fleet import Server
    from llmpipe.hooks import Hooks


class Abort(NamedTuple):
    """A client that left. Public: it is what a hook is called with. Attributes may be added at its end.

    Attributes:
        client: its address; empty on a Unix socket.
        phase: of the exchange when it left: head, body, queue, connect, wait, silent, stream, blocked, tunnel; finish where its
            backend was let finish, which it has by now.
        backend: the name of the one that worked on it, None where none did yet.
        close_ms: milliseconds from its disconnect to the upstream's close, None where the backend may finish.
        request_id: of the exchange, the X-Request-ID that the backend got.
    """

    client: str
    phase: str
    backend: str | None
    close_ms: float | None
    request_id: str


UNSENT_PHASES = ("head", "queue", "connect")
"""In these no backend has the request: one that is named is being connected, or failed before."""


class Results:
    """How often somebody was told, by what came of it. Other threads may read it."""

    def __init__(self) -> None:
        self.ok = 0
        self.error = 0
        self.dropped = 0


class Disconnects:
    """Tells all who listen. It belongs to one event loop.

    Attributes:
        calls: those to servers.
        hooks: those of the user.
    """

    def __init__(self, calls: AbortCalls, hooks: Hooks) -> None:
        self.calls = calls
        self.hooks = hooks

    def configure(self, settings: Settings) -> bool:
        """Takes note of the backends there are. Whether anybody wants to know at once."""
        called = [backend for backend in settings.backends if backend.abort_call is not None]
        for backend in called:
            self.calls.expect(backend)
        return bool(called) or self.hooks.any or log.enabled(logging.DEBUG)

    def tell(self, abort: Abort, server: Server | None) -> None:
        """A client has left; `server` is the one that `abort` names."""
        if log.enabled(logging.DEBUG):
            log.debug("client left", **abort._asdict())
        if server is not None and server.backend.abort_call is not None and abort.phase not in UNSENT_PHASES:
            self.calls.add(abort.request_id, server, server.backend.abort_call)
        self.hooks.tell(abort)

    async def finish(self) -> None:
        """Waits until all are told."""
        await asyncio.gather(self.calls.finish(), self.hooks.finish())

    def close(self) -> None:
        """Tells nobody any more."""
        self.calls.close()
