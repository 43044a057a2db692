"""What /events of the admin endpoint sends: the state once a second, and samples as they come, as an event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmpipe.background import Receive, Scope, Send, send_json

if TYPE_CHECKING:
    from llmpipe.background import BoundedProtocol
    from llmpipe.history import History, Row

MOST_STREAMS = 8
"""Event streams at a time. Each has one of the connections of the bounded server, most of which are for others."""

TICK = 1.0
"""Seconds between two events of the state ..."""

LEAST_REST = 9.0
"""... and the least, of the time that it takes to make one: thousands of backends must not keep the server from others."""

RETRY = 2000
"""Milliseconds after which a browser that was cut asks again."""

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)


def _event(name: str, value: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def _new(samples: Sequence[Row], known: Sequence[Row]) -> Sequence[Row]:
    """Those that came behind the known ones. Clocks may go back, so it is not their times that tell."""
    last = known[-1] if known else None
    return samples[next((place + 1 for place, sample in enumerate(samples) if sample is last), 0) :]


class EventStreams:
    """Serves event streams. All methods are called by the thread of the server."""

    def __init__(self, status: Callable[[], dict[str, Any]], history: History) -> None:
        """Args:
        status: what /status shows.
        history: has the samples.
        """
        self._status = status
        self._history = history
        self._streams = 0
        self._made = b""
        """The last event of the state, for all streams."""
        self._due = 0.0
        """When the next one is to be made, of the loop's time."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends events until the client leaves or the server ends."""
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": b""})
            return
        if self._streams >= MOST_STREAMS:
            body = json.dumps({"error": f"there are {MOST_STREAMS} event streams already; close one of them"}).encode()
            await send_json(send, 503, body, ((b"retry-after", b"5"),))
            return
        connection: BoundedProtocol = scope["state"]["connection"]
        self._streams += 1
        connection.follows = True
        try:
            await self._follow(connection, send)
            if connection.blocked:  # the end would wait for it too
                connection.transport.abort()
                while (await receive())["type"] != "http.disconnect":
                    pass
            else:
                await send({"type": "http.response.body", "body": b""})
        finally:
            connection.follows = False
            self._streams -= 1

    async def _follow(self, connection: BoundedProtocol, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        samples = self._history.samples
        events = b"retry: %d\n\n" % RETRY + self._state()
        while True:
            # A client that does not take what there is gets nothing more, and its connection ends as that of one who is too slow. What
            # it misses of the state comes with the next event; samples it finds in /history.
            if not connection.blocked:
                connection.allow(self._due - loop.time())
                await send({"type": "http.response.body", "body": events, "more_body": True})
            try:
                await asyncio.wait_for(connection.over.wait(), max(0.001, self._due - loop.time()))
            except asyncio.TimeoutError:
                known, samples = samples, self._history.samples
                events = self._state() + b"".join(_event("sample", sample) for sample in _new(samples, known))
            else:
                return

    def _state(self) -> bytes:
        """The event of the state, made anew if that is due."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        if begin >= self._due:
            self._made = _event("status", self._status())
            end = loop.time()
            self._due = max(begin + TICK, end + LEAST_REST * (end - begin))
        return self._made
