"""Asks with aiohttp, one URL after the other: python aiohttp_ask.py SIZE FRAMING URL...

SIZE is that of the body, 0 for a GET; FRAMING is length or chunked. Prints a line for each URL: its status, or why there is none. A
process of its own, since a session that is closed leaves connections that still have something to send.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator

import aiohttp


async def pieces(size: int) -> AsyncIterator[bytes]:
    for at in range(0, size, 65536):
        yield bytes(min(65536, size - at))


async def ask(session: aiohttp.ClientSession, url: str, size: int, chunked: bool) -> str:
    data = (pieces(size) if chunked else io.BytesIO(bytes(size))) if size else None
    try:
        async with session.request("POST" if size else "GET", url, data=data) as response:
            await response.read()
            return str(response.status)
    except (aiohttp.ClientError, OSError) as error:
        return f"{type(error).__name__}: {error}"


async def main(size: str, framing: str, *urls: str) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        for url in urls:
            print(await ask(session, url, int(size), framing == "chunked"), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
