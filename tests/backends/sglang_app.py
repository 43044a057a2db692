"""A server that goes on when its client leaves, and stops a request when it is told to, as SGLang does: uvicorn, Starlette.

A request runs in a task of its own under its X-Request-ID; what the connection does makes no difference to it. It counts tokens until it
is stopped by POST /abort_request with {"rid": "..."} (or the key that --field names), or until POST /end, which ends it as done.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from common import say, start
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


def configure(parser: Any) -> None:
    parser.add_argument("--field", default="rid")


class Generation:
    """A request that works."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.tokens: asyncio.Queue[bytes] = asyncio.Queue()
        self.end = asyncio.Event()
        self.word = "finished"
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        number = 0
        while not self.end.is_set():
            self.tokens.put_nowait(b"data: %d\n\n" % number)
            number += 1
            try:
                await asyncio.wait_for(self.end.wait(), 0.02)
            except asyncio.TimeoutError:
                pass
        self.tokens.put_nowait(b"")
        say(self.word, self.rid)


running: dict[str, Generation] = {}
sock, options = start(configure)


async def chat(request: Request) -> StreamingResponse:
    await request.body()
    generation = running[request.headers["x-request-id"]] = Generation(request.headers["x-request-id"])

    async def events() -> Any:
        while token := await generation.tokens.get():
            yield token

    return StreamingResponse(events(), media_type="text/event-stream")


async def abort(request: Request) -> JSONResponse:
    asked = json.loads(await request.body())
    fields = " ".join(f"{name}={request.headers.get(name, '-')}" for name in ("content-type", "authorization"))
    say("aborted", json.dumps(asked), request.headers["host"], fields)
    generation = running.get(asked[options.field])
    if generation is not None:
        generation.word = "stopped"
        generation.end.set()
    return JSONResponse({"success": True})


async def end(request: Request) -> JSONResponse:
    for generation in running.values():
        generation.end.set()
    return JSONResponse({})


async def count(request: Request) -> JSONResponse:
    return JSONResponse({"running": [rid for rid, found in running.items() if not found.task.done()]})


routes = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/abort_request", abort, methods=["POST"]),
    Route("/end", end, methods=["POST"]),
    Route("/count", count),
]
server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
asyncio.run(server.serve([sock]))
