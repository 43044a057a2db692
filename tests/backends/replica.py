"""A replica of a model under uvicorn: it says in each piece of an answer which one it is, and takes its time."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator

import common
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="replica")


sock, options = common.start(configure)


def made(kind: str, part: dict[str, object], finish: str | None) -> dict[str, object]:
    choice = {"index": 0, "finish_reason": finish, **part}
    return {
        "id": "1",
        "object": kind,
        "created": 1,
        "model": "llama",
        "system_fingerprint": options.name,
        "choices": [choice],
    }


async def health(request: Request) -> Response:
    return Response()


async def chat(request: Request) -> Response:
    asked = await request.json()
    if not asked.get("stream"):
        await asyncio.sleep(0.02)
        message = {"role": "assistant", "content": "all of it"}
        return JSONResponse(made("chat.completion", {"message": message}, "stop"))

    async def tokens() -> AsyncIterator[str]:
        for number in range(asked["max_tokens"]):
            delta = {"role": "assistant", "content": f"{number} "}
            yield f"data: {json.dumps(made('chat.completion.chunk', {'delta': delta}, None))}\n\n"
            await asyncio.sleep(0.02)
        yield f"data: {json.dumps(made('chat.completion.chunk', {'delta': {}}, 'stop'))}\n\ndata: [DONE]\n\n"

    return StreamingResponse(tokens(), media_type="text/event-stream")


app = Starlette(routes=[Route("/health", health), Route("/v1/chat/completions", chat, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[sock])
