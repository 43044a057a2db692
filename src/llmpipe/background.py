"""An ASGI application served by uvicorn in a thread of its own, on a socket that was bound before.

For what is not on the forwarding path: the admin endpoint, and the mock of `serve --demo`.
"""

import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def make_server(app: App) -> uvicorn.Server:
    """A quiet uvicorn server for `app`; the caller gives it a bound socket."""
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


class BackgroundServer:
    """Serves from `start` to `stop`."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        """Args:
        app: what is served.
        listener: bound and listening; owned by this object from now on.
        """
        self._listener = listener
        self._server = make_server(app)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="background-server", daemon=True
        )

    def start(self) -> None:
        """Starts the thread; connections that come before it serves wait in the backlog."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it within about a second."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._listener.close()


async def send_json(send: Send, status: int, body: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Sends a whole JSON response."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
