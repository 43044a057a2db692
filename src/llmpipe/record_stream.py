"""POST /record of the admin endpoint: the next answers, streamed as lines of JSON as each of them ends (rule U)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from llmpipe.config import parse_count, parse_duration
from llmpipe.errors import UsageError
from llmpipe.query import parse_parameters
from llmpipe.recorder import Asking, as_bytes

if TYPE_CHECKING:
    from llmpipe.background import BoundedProtocol, Receive, Send

MOST_ANSWERS = 1000
"""Answers that one request may ask for."""

DEFAULT_WAIT = 60.0
"""Seconds that it waits for them where it does not say how long."""

TAKE_TIME = 5.0
"""Seconds behind the end for a client to take what it was sent; the server itself gives it REQUEST_TIME."""

ROOM_INTERVAL = 0.05
"""Seconds between two looks whether a client that was sent much has taken it."""

PARAMETERS = ("count", "wait", "request_body")

HEADERS = (
    (b"content-type", b"application/jsonl"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold it back
)


class Wish(Struct, frozen=True, kw_only=True):
    """What a request asks for."""

    count: int = 1
    wait: float = DEFAULT_WAIT
    """Seconds, counted from when recording begins."""
    request_body: bool = False
    """Whether what the clients send is recorded too."""


def parse_wish(query: str, most_wait: float) -> Wish:
    """What the query of a URL asks for.

    Args:
        query: of the URL.
        most_wait: seconds that it may wait.

    Raises:
        UsageError: a parameter is unknown or there twice, or its value cannot be.
    """
    given = parse_parameters(query, PARAMETERS)
    count = parse_count(given.get("count", "1"))
    if not 1 <= count <= MOST_ANSWERS:
        raise UsageError(f"count is from 1 to {MOST_ANSWERS}, not {count}")
    wait = parse_duration(given["wait"]) if "wait" in given else DEFAULT_WAIT
    if not 0 < wait <= most_wait:
        raise UsageError(f"wait is more than 0 and at most {most_wait:.0f} seconds; then ask again")
    body = given.get("request_body", "0")
    if body not in ("0", "1"):
        raise UsageError("request_body is 1 for what clients send, or 0")
    return Wish(count=count, wait=wait, request_body=body == "1")


class Sending(NamedTuple):
    """Where an answer goes.

    Attributes:
        connection: to the client.
        receive: of the request, as `send`.
        send: see there.
        fields: of the answer, beside those of every one.
    """

    connection: BoundedProtocol
    receive: Receive
    send: Send
    fields: tuple[tuple[bytes, bytes], ...]


class _Line:
    """A client that is sent recordings. It gets nothing more while it does not take what there is: that would be kept for it."""

    def __init__(self, connection: BoundedProtocol, send: Send, end: float) -> None:
        """Args:
        connection: to the client.
        send: of its request.
        end: of the loop's time, from when on nothing is waited for.
        """
        self._connection = connection
        self._send = send
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.create_task(connection.over.wait())
        """Done when nobody waits for an answer any more, or the server ends."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is waited for."""
        return self._over.done() or self._loop.time() >= self._end

    async def wait(self, news: asyncio.Event) -> None:
        """Waits for news, or until it has ended."""
        got = asyncio.create_task(news.wait())
        left = max(0.0, self._end - self._loop.time())
        await asyncio.wait((got, self._over), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        got.cancel()
        news.clear()

    async def send_all(self, asking: Asking) -> None:
        """Sends what has come, as fast as the client takes it."""
        while await self.has_room() and (recording := asking.take()) is not None:
            await self._send({"type": "http.response.body", "body": as_bytes(recording), "more_body": True})

    async def has_room(self) -> bool:
        """Waits until the client has taken what it was sent, and no longer than TAKE_TIME behind the end. Whether it has."""
        connection = self._connection
        while connection.blocked and not self._over.done() and self._loop.time() < self._end + TAKE_TIME:
            await asyncio.wait((self._over,), timeout=ROOM_INTERVAL)
        return not connection.blocked and not connection.gone()

    def close(self) -> None:
        """Watches the connection no more."""
        self._over.cancel()


async def answer(
    asking: Asking,
    wait: float,
    stop: Callable[[Asking], Awaitable[None]],
    to: Sending,
) -> None:
    """Sends recordings until all have come, the time is over, the client leaves or the server ends.

    Args:
        asking: has them.
        wait: seconds.
        stop: has no more recorded.
        to: the client.
    """
    connection, send = to.connection, to.send
    connection.allow(wait)
    line = _Line(connection, send, asyncio.get_running_loop().time() + wait)
    try:
        await send({"type": "http.response.start", "status": 200, "headers": (*HEADERS, *to.fields)})
        while True:
            whole = asking.over  # before they are taken: nothing comes behind it
            await line.send_all(asking)
            if whole or line.has_ended:
                break
            await line.wait(asking.news)
        if not whole:
            # Before the last byte: who asks again behind it is not told that somebody else does.
            with suppress(asyncio.TimeoutError):
                await stop(asking)
            await line.send_all(asking)
        if await line.has_room() or not connection.blocked:
            await send({"type": "http.response.body", "body": b""})
        else:
            connection.transport.abort()  # the end would wait for it too
            while (await to.receive())["type"] != "http.disconnect":
                pass
    finally:
        line.close()
