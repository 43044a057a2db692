"""The same on an aiohttp server: other framing habits, another way to notice that the client left."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import AsyncIterator

import common
from aiohttp import hdrs, web

routes = web.RouteTableDef()


async def stream(request: web.Request, pieces: AsyncIterator[bytes], kind: str, length: int | None = None):
    """Sends the head at once and each piece as it comes."""
    response = web.StreamResponse(headers={"content-type": kind})
    response.content_length = length
    await response.prepare(request)
    async for data in pieces:
        await response.write(data)
    await response.write_eof()
    return response


@routes.get("/v1/models")
async def models(request: web.Request) -> web.StreamResponse:
    return web.json_response(common.MODELS)


@routes.post("/v1/chat/completions")
async def chat(request: web.Request) -> web.StreamResponse:
    asked = common.Chat.parse(await request.read(), {name.lower(): value for name, value in request.headers.items()})
    if asked.status != 200:
        extra = {"retry-after": "7"} if asked.status == 429 else None
        return web.json_response(asked.error(), status=asked.status, headers=extra)
    if asked.stream:
        return await stream(request, asked.generate(), "text/event-stream")
    extra = {"x-request-id": request.headers.get("x-request-id", "")}
    return web.json_response(await asked.compute(), headers=extra)


@routes.route("*", "/upload")
async def upload(request: web.Request) -> web.StreamResponse:
    digest, length = hashlib.sha256(), 0
    async for data in request.content.iter_any():
        digest.update(data)
        length += len(data)
    return web.json_response({"sha256": digest.hexdigest(), "length": length})


@routes.route("*", "/echo")
async def echo(request: web.Request) -> web.StreamResponse:
    version, length = f"{request.version.major}.{request.version.minor}", len(await request.read())
    fields = list(request.raw_headers)
    return web.json_response(common.echo_answer(request.method, request.raw_path, version, fields, length))


@routes.get("/gzip")
async def zipped(request: web.Request) -> web.StreamResponse:
    return web.Response(body=common.zipped(), content_type="text/plain", headers={hdrs.CONTENT_ENCODING: "gzip"})


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    return await stream(request, common.sse(), "text/event-stream")


@routes.get("/big")
async def big(request: web.Request) -> web.StreamResponse:
    data = common.content(int(request.query["n"]))
    length = len(data) if "length" in request.query else None
    return await stream(request, common.blocks(data), "application/octet-stream", length)


@routes.get("/gated/{name}")
async def gated(request: web.Request) -> web.StreamResponse:
    pieces = common.gated(request.match_info["name"], int(request.query["n"]))
    return await stream(request, pieces, "text/event-stream")


@routes.post("/gate/{name}")
async def gate(request: web.Request) -> web.StreamResponse:
    common.gates.open(request.match_info["name"], int(request.query["n"]))
    return web.Response()


@routes.get("/status/{code}")
async def status(request: web.Request) -> web.StreamResponse:
    return web.Response(status=int(request.match_info["code"]), headers={"location": "/elsewhere", "x-own": "1"})


@routes.route("*", "/early/{code}")
async def early(request: web.Request) -> web.StreamResponse:
    """Does not look at the body."""
    return web.json_response({"error": {"message": "not you"}}, status=int(request.match_info["code"]))


@routes.get("/broken/{how}")
async def broken(request: web.Request) -> web.StreamResponse:
    length = 1000 if request.match_info["how"] == "length" else None
    try:
        return await stream(request, common.broken(500), "text/plain", length)
    except ConnectionError:
        assert request.transport
        request.transport.close()
        raise


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-alive", type=float, default=75)


if __name__ == "__main__":
    sock, options = common.start(configure)
    app = web.Application(client_max_size=1 << 30)
    app.add_routes(routes)
    # Without handler_cancellation aiohttp lets a handler go on until it writes.
    web.run_app(
        app, sock=sock, handler_cancellation=True, print=None, access_log=None, keepalive_timeout=options.keep_alive
    )
