"""A FastAPI application under uvicorn, as it is by default: redirects to the path with a slash, trust in 127.0.0.1."""

from __future__ import annotations

import common
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()


@app.get("/items/")
def items(request: Request) -> dict[str, str]:
    """What the application takes for the client's address and scheme."""
    assert request.client
    return {"client": request.client.host, "scheme": request.url.scheme, "host": request.url.netloc}


@app.delete("/items/{number}")
@app.get("/gone/{number}")
def remove(number: int) -> JSONResponse:
    """A 204 with a framing and a body, `null`. Older versions of Starlette add the length themselves."""
    return JSONResponse(None, 204, {"Content-Length": "4"} if number % 2 else {"Transfer-Encoding": "chunked"})


@app.get("/health")
def health() -> str:
    return "well"


if __name__ == "__main__":
    sock, _ = common.start()
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[sock])
