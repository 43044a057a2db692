"""A Starlette application under uvicorn: what vLLM and SGLang run on. `python starlette_app.py PORT [KEEP_ALIVE]`.

It writes a line to stdout when a stream is stopped by its own detection of a disconnect.
"""

import asyncio
import gzip
import hashlib
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["One", " two", " thr\u00e9\u00e9", " four \u2028", " five"]
counts: dict[str, int] = {}


def chunk(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"role": "assistant", "content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def write(body: dict) -> AsyncIterator[bytes]:
    """The words, again and again up to max_tokens; `silent` seconds before the first."""
    made = 0
    try:
        await asyncio.sleep(body.get("silent", 0))
        while made < body.get("max_tokens", len(WORDS)):
            yield chunk(WORDS[made % len(WORDS)])
            made += 1
            await asyncio.sleep(body.get("pause", 0.005))
            if body.get("fail_after") == made:
                raise RuntimeError("the engine died")
        yield chunk(None, "stop")
        usage = {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": 3 + made}
        last = {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
        }
        yield f"data: {json.dumps(last)}\n\n".encode()
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        print(f"stopped {body.get('user')} {made}", flush=True)
        raise


async def chat(request: Request) -> Response:
    body = await request.json()
    if body.get("status"):
        error = {"message": "no", "type": "x", "param": None, "code": None}
        return JSONResponse({"error": error}, body["status"])
    if body.get("stream"):
        return StreamingResponse(write(body), media_type="text/event-stream")
    if body.get("silent"):
        for _ in range(int(body["silent"] * 100)):
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                print(f"stopped {body.get('user')} 0", flush=True)
                return Response(status_code=499)
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    answer = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return JSONResponse(answer)


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "x"}]})


async def upload(request: Request) -> Response:
    digest = hashlib.sha256()
    n = 0
    async for part in request.stream():
        digest.update(part)
        n += len(part)
    return JSONResponse({"sha256": digest.hexdigest(), "length": n})


async def compressed(request: Request) -> Response:
    return Response(gzip.compress(b"hello " * 1000), headers={"Content-Encoding": "gzip"}, media_type="text/plain")


async def once(request: Request) -> Response:
    """Counts how often each key was executed."""
    key = (await request.body()).decode()
    counts[key] = counts.get(key, 0) + 1
    return JSONResponse(counts[key])


async def most(request: Request) -> Response:
    return JSONResponse({"keys": len(counts), "most": max(counts.values(), default=0)})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/upload", upload, methods=["POST", "PUT"]),
        Route("/gzip", compressed),
        Route("/once", once, methods=["POST"]),
        Route("/most", most),
    ]
)

if __name__ == "__main__":
    keep_alive = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=keep_alive)
