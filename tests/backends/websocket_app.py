"""A WebSocket server on the websockets package: echo, pings of its own, and ends of every kind."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Sequence

import common
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def handler(connection: ServerConnection) -> None:
    assert connection.request
    path = connection.request.path
    common.say("opened", path)
    try:
        if path.startswith("/close/"):
            await connection.close(int(path.split("/")[2]), "the server's wish")
        elif path == "/fail":
            raise RuntimeError("made to fail")
        elif path == "/ping":
            await (await connection.ping(b"are you there"))
            await connection.send("you are")
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass
    finally:
        if path != "/fail":
            await connection.wait_closed()
            common.say("closed", path, connection.close_code, connection.close_reason)


def refuse(connection: ServerConnection, request: object):
    if getattr(request, "path", "") == "/forbidden":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
    return None


def choose(connection: ServerConnection, offered: Sequence[str]) -> str | None:
    return "v2.tests" if "v2.tests" in offered else None


async def main() -> None:
    sock, _ = common.start()
    # Its own pings are off: the only ones are those that a test asks for.
    async with serve(
        handler,
        sock=sock,
        process_request=refuse,
        subprotocols=["v2.tests"],
        select_subprotocol=choose,
        ping_interval=None,
        max_size=None,
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
