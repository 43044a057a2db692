"""An ASGI application served by uvicorn in a thread of its own, on a socket that was bound before.

For what is not on the forwarding path: the admin endpoint, and the mock of `serve --demo`.
"""

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_CONNECTIONS = 32
"""Connections of a bounded server. One more takes the place of the one that has been silent for longest."""

REQUEST_TIME = 10.0
"""Seconds for a whole request on a bounded server, from the connection or the last answer to the end of the answer, but for what an
application allows (`BoundedProtocol.allow`)."""

BACKLOG = 128
"""Connections that may wait for a bounded server."""

STOP_TIME = 2.0
"""Seconds for a server to end."""

LEAVE_TICKS = 5
"""Tenths of a second that a server goes on at least, once it has left its listening socket to another process."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a limit on connections and a time for each request, of which uvicorn has neither. The application finds it in
    the scope: `scope["state"]["connection"]`.
    """

    gives_way = False
    """Whether it was told to go, and has not gone yet."""

    follows = False
    """Whether its answer has no end of its own. An application sets that for one who asks again where it is cut."""

    _heard = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        self.over = asyncio.Event()
        """Set when an answer without an end has to end: nobody waits for it any more, or the server ends."""
        self._heard = self.loop.time()
        self._restart(REQUEST_TIME)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._restart(REQUEST_TIME)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP. uvicorn takes it for a head; in a body it may come while there is an answer, or behind it."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application sends goes nowhere from now on
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.over.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self.over.set()
        super().shutdown()

    def allow(self, seconds: float) -> None:
        """Gives the request that is being answered so many seconds, and then as long as any other has."""
        self._restart(seconds + REQUEST_TIME)

    def gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self.transport.is_closing()

    @property
    def blocked(self) -> bool:
        """Whether the client does not take what it was sent, so that more would have to be kept for it."""
        return self.flow.write_paused

    def _restart(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Not close(): that waits until the client has taken all.
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The lowest gives way first: who waits for an answer is above those that have asked nothing, and above those that follow."""
        return (self.cycle is not None and not self.cycle.response_complete, not self.follows, self._heard)

    def give_way(self) -> None:
        """Closes the connection in this turn of the loop."""
        self.gives_way = True
        self.transport.abort()


class ReachableProtocol(H11Protocol):
    """HTTP/1.1 without limits, whose application finds its connection in the scope: `scope["state"]["transport"]`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class BoundedListener(socket.socket):
    """A listening socket that has at most MOST_CONNECTIONS accepted ones open, so that nobody can use up the process's
    descriptors here. It is for asyncio's own event loop, which asks it for each connection; uvloop accepts by itself.
    """

    def __init__(self, listener: socket.socket, protocols: Collection[Any]) -> None:
        """Args:
        listener: stays the caller's.
        protocols: those of the open connections.
        """
        super().__init__(fileno=os.dup(listener.fileno()))
        self._protocols = protocols
        self._accepted: list[socket.socket] = []
        self._waiting = select.poll()
        self._waiting.register(self, select.POLLIN)

    def accept(self) -> tuple[socket.socket, Any]:
        """As socket.accept(); BlockingIOError where a connection has to go first, and is told so."""
        self._accepted = [sock for sock in self._accepted if sock.fileno() >= 0]
        if len(self._accepted) >= MOST_CONNECTIONS:
            leaving = any(protocol.gives_way for protocol in self._protocols)
            if self._waiting.poll(0) and self._protocols and not leaving:
                min(self._protocols, key=lambda protocol: protocol.rank).give_way()
            raise BlockingIOError
        sock, address = super().accept()
        self._accepted.append(sock)
        return sock, address


class Server(uvicorn.Server):
    """One that can leave its listening socket to another process that has it too."""

    leaves = False
    _left_ticks = 0

    async def on_tick(self, counter: int) -> bool:
        """Is called ten times a second; whether it is to end. One that leaves ends when every connection has asked something: who
        was accepted here must be answered here.
        """
        if self.leaves:
            self._left_ticks += 1
            for server in self.servers:
                server.close()  # the listening socket, not the connections; the next times it does nothing
            asked = all(getattr(protocol, "cycle", None) is not None for protocol in self.server_state.connections)
            # What was accepted last is among the connections a few turns of the loop later.
            self.should_exit = self.should_exit or (asked and self._left_ticks > LEAVE_TICKS)
        return await super().on_tick(counter)


def make_server(app: App, *, bounded: bool = False) -> Server:
    """A quiet uvicorn server for `app`; the caller gives it a bound socket, a BoundedListener where it is bounded."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol if bounded else ReachableProtocol,
        loop="asyncio" if bounded else "auto",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=BACKLOG if bounded else 2048,
        timeout_graceful_shutdown=1,
    )
    return Server(config)


class BackgroundServer:
    """Serves from `start` to `stop`."""

    def __init__(self, app: App, listener: socket.socket, *, bounded: bool = False) -> None:
        """Args:
        app: what is served.
        listener: bound and listening; owned by this object from now on.
        bounded: whether connections have limits in number and time.
        """
        self._listener = listener
        self._server = make_server(app, bounded=bounded)
        sockets = [BoundedListener(listener, self._server.server_state.connections) if bounded else listener]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": sockets}, name="background-server", daemon=True
        )

    def start(self) -> None:
        """Starts the thread; connections that come before it serves wait in the backlog."""
        self._thread.start()

    async def leave(self) -> None:
        """Leaves the listening socket to another process that has it too. Who is connected here is still answered, within
        REQUEST_TIME where the server is bounded.
        """
        self._server.leaves = True
        await self._wait(REQUEST_TIME + STOP_TIME)

    async def stop(self) -> None:
        """Ends it within about a second; where that is not enough, the end of the process does it."""
        self._server.should_exit = True
        await self._wait(STOP_TIME)
        self._listener.close()

    async def _wait(self, seconds: float) -> None:
        """Waits for the end of the thread."""
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end:  # noqa: ASYNC110 - a thread has no event
            await asyncio.sleep(0.01)


async def send_json(send: Send, status: int, body: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Sends a whole JSON response."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
