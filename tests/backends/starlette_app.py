"""A Starlette application under uvicorn, which is what vLLM and SGLang run on: chunked answers, 5 s keep-alive."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from contextlib import suppress

import common
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def models(request: Request) -> Response:
    return JSONResponse(common.MODELS)


async def chat(request: Request) -> Response:
    asked = common.Chat.parse(await request.body(), request.headers)
    if asked.status != 200:
        return JSONResponse(asked.error(), asked.status, {"retry-after": "7"} if asked.status == 429 else None)
    if asked.stream:  # Starlette cancels this one when uvicorn tells that the client left
        return StreamingResponse(asked.generate(), media_type="text/event-stream")
    work = asyncio.ensure_future(asked.compute())
    while not work.done():
        if await request.is_disconnected():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            return Response(status_code=499)
        await asyncio.wait([work], timeout=0.02)
    return JSONResponse(work.result(), headers={"x-request-id": request.headers.get("x-request-id", "")})


async def upload(request: Request) -> Response:
    digest, length = hashlib.sha256(), 0
    async for data in request.stream():
        digest.update(data)
        length += len(data)
    return JSONResponse({"sha256": digest.hexdigest(), "length": length})


async def echo(request: Request) -> Response:
    target = request.scope["raw_path"].decode() + "?" + request.scope["query_string"].decode()
    fields = request.scope["headers"]
    version, length = request.scope["http_version"], len(await request.body())
    return JSONResponse(common.echo_answer(request.method, target, version, fields, length))


async def zipped(request: Request) -> Response:
    return Response(common.zipped(), media_type="text/plain", headers={"content-encoding": "gzip"})


async def events(request: Request) -> Response:
    return StreamingResponse(common.sse(), media_type="text/event-stream")


async def big(request: Request) -> Response:
    data = common.content(int(request.query_params["n"]))
    length = {"content-length": str(len(data))} if "length" in request.query_params else None
    return StreamingResponse(common.blocks(data), media_type="application/octet-stream", headers=length)


async def gated(request: Request) -> Response:
    pieces = common.gated(request.path_params["name"], int(request.query_params["n"]))
    return StreamingResponse(pieces, media_type="text/event-stream")


async def gate(request: Request) -> Response:
    common.gates.open(request.path_params["name"], int(request.query_params["n"]))
    return Response()


async def count(request: Request) -> Response:
    common.counts[request.path_params["name"]] += 1
    await asyncio.sleep(0.05)  # so that those who ask together need a connection each
    return Response(await request.body())


async def counts(request: Request) -> Response:
    return JSONResponse(common.counts)


async def status(request: Request) -> Response:
    return Response(status_code=request.path_params["code"], headers={"location": "/elsewhere", "x-own": "1"})


async def early(request: Request) -> Response:
    """Does not look at the body."""
    return JSONResponse({"error": {"message": "not you"}}, request.path_params["code"])


async def broken(request: Request) -> Response:
    length = {"content-length": "1000"} if request.path_params["how"] == "length" else None
    return StreamingResponse(common.broken(500), headers=length)


async def websocket(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            await websocket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect as error:
        common.say("closed", error.code)


app = Starlette(
    routes=[
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/upload", upload, methods=["POST", "PUT"]),
        Route("/echo", echo, methods=METHODS),
        Route("/gzip", zipped),
        Route("/events", events),
        Route("/big", big),
        Route("/gated/{name}", gated),
        Route("/gate/{name}", gate, methods=["POST"]),
        Route("/count/{name}", count, methods=METHODS),
        Route("/counts", counts),
        Route("/status/{code:int}", status),
        Route("/early/{code:int}", early, methods=METHODS),
        Route("/broken/{how}", broken),
        WebSocketRoute("/ws", websocket),
    ]
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-alive", type=float, default=5)
    parser.add_argument("--http", default="auto")
    parser.add_argument("--loop", default="auto")


if __name__ == "__main__":
    sock, options = common.start(configure)
    config = uvicorn.Config(
        app, timeout_keep_alive=options.keep_alive, http=options.http, loop=options.loop, log_level="critical"
    )
    uvicorn.Server(config).run(sockets=[sock])
