"""A reverse proxy as one writes it in an afternoon: it sends each request on, and each piece of the answer as it comes.

    aiohttp_server.py LISTEN_PORT BACKEND_PORT

A script, not a part of the package: it runs where aiohttp is installed. It is what the aiohttp peer is measured by.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

# They belong to one connection; aiohttp writes its own.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
BACKEND = web.AppKey("backend", str)
SESSION = web.AppKey("session", ClientSession)


async def session(app: web.Application) -> AsyncIterator[None]:
    app[SESSION] = ClientSession(
        connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
    )
    yield
    await app[SESSION].close()


async def forward(request: web.Request) -> web.StreamResponse:
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
    body = await request.read()
    url = request.app[BACKEND] + request.raw_path
    async with request.app[SESSION].request(request.method, url, headers=headers, data=body) as answer:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        with suppress(ConnectionResetError):  # the client has left; the other `with` closes the backend's connection
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
        return response


def main() -> None:
    port, backend_port = int(sys.argv[1]), int(sys.argv[2])
    app = web.Application(client_max_size=1 << 30)
    app[BACKEND] = f"http://127.0.0.1:{backend_port}"
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    main()
