"""The same essentials on aiohttp. `python aiohttp_app.py PORT`."""

import asyncio
import hashlib
import json
import sys

from aiohttp import web
from starlette_app import WORDS, chunk


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}
        return web.json_response(
            {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    made = 0
    try:
        await asyncio.sleep(body.get("silent", 0))
        while made < body.get("max_tokens", len(WORDS)):
            await response.write(chunk(WORDS[made % len(WORDS)]))
            made += 1
            await asyncio.sleep(body.get("pause", 0.005))
    except (asyncio.CancelledError, ConnectionError):
        print(f"stopped {body.get('user')} {made}", flush=True)
        raise
    await response.write(chunk(None, "stop") + b"data: [DONE]\n\n")
    return response


async def models(request: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]}
    )


async def upload(request: web.Request) -> web.Response:
    digest = hashlib.sha256()
    n = 0
    async for part in request.content.iter_any():
        digest.update(part)
        n += len(part)
    return web.Response(text=json.dumps({"sha256": digest.hexdigest(), "length": n}), content_type="application/json")


if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models), web.post("/upload", upload)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, handler_cancellation=True)
