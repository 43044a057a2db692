"""An admin endpoint that answers what a test wants it to, and answers made up for a busy proxy."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web

Json = dict[str, Any]


def latency(p50: float | None, p99: float | None) -> Json:
    return {"p50": p50, "p90": p99, "p99": p99}


def backend(name: str, state: str = "up", **more: Any) -> Json:
    """A row of /status."""
    return {
        "name": name,
        "url": f"http://{name}:8000",
        "weight": 1,
        "tier": 0,
        "usable": state == "up",
        "state": state,
        "in_flight": 0,
        "idle_connections": 2,
        "exchanges": 1000,
        "failures": 0,
        "seconds_since_content": 0.012,
        "ttft": latency(0.21, 1.23),
        "itl": latency(0.02, 0.045),
        "rates": {"exchanges": 4.2, "errors": 0.0},
        **more,
    }


def exchange(identity: str, **more: Any) -> Json:
    """An element of /exchanges."""
    return {
        "request_id": identity,
        "at": "2026-11-23T07:49:02.356+00:00",
        "client": "10.0.0.7",
        "method": "POST",
        "path": "/v1/chat/completions",
        "pool": "llama",
        "model": "llama-3.3-70b",
        "backend": "gpu1",
        "status": 200,
        "outcome": None,
        "phase": "stream",
        "reason": None,
        "error": None,
        "attempts": 1,
        "bytes_up": 812,
        "bytes_down": 20480,
        "events": 87,
        "tokens": {"prompt": None, "completion": None, "cached": None},
        "traceparent": None,
        "duration": 12.5,
        "times": {
            "head": 0.000031,
            "queued": None,
            "connected": 0.0004,
            "answered": 0.18,
            "first": 0.21,
            "last": 12.48,
            "end": None,
        },
        "close_ms": None,
        "failed": [],
        **more,
    }


def failure(identity: str, **more: Any) -> Json:
    """One of the last failures of /status."""
    return {
        "at": "2026-11-23T07:48:51.120+00:00",
        "request_id": identity,
        "pool": "llama",
        "model": "llama-3.3-70b",
        "backend": "gpu2",
        "outcome": "upstream_abort",
        "phase": "stream",
        "reason": "ECONNRESET",
        "status": 200,
        **more,
    }


def busy_status() -> Json:
    """Of a proxy with two pools, one of whose backends is down and one is drained."""
    started = datetime.now(timezone.utc) - timedelta(hours=2, minutes=3)
    return {
        "version": "0.1.0",
        "pid": 4711,
        "started": started.isoformat(timespec="milliseconds"),
        "ready": True,
        "reason": None,
        "clients": 14,
        "streams": 4,
        "default_pool": "llama",
        "rates": {"exchanges": 6.1, "errors": 0.4, "tokens": 512.0, "pieces": 498.0},
        "ttft": latency(0.21, 1.23),
        "itl": latency(0.02, 0.045),
        "failures": [
            failure("f-1"),
            failure("f-2", outcome="timeout_ttft", reason="time to first content", status=504, phase="silent"),
        ],
        "pools": [
            {
                "name": "llama",
                "models": ["llama-3.3-70b", "llama-*"],
                "aliases": {},
                "queue": {"size": 256, "waiting": 3, "full": 0, "late": 1},
                "backends": [
                    backend("gpu1", in_flight=31),
                    backend(
                        "gpu2",
                        "down",
                        in_flight=2,
                        why=["failures", "health"],
                        failures=12,
                        rates={"exchanges": 0.1, "errors": 0.4},
                        ttft=latency(0.9, 45.2),
                    ),
                    backend("spare", "drained", tier=1, seconds_since_content=None, itl=latency(None, None)),
                ],
            },
            {
                "name": "ollama",
                "models": ["qwen3:8b"],
                "aliases": {},
                "queue": {"size": 0, "waiting": 0, "full": 0, "late": 0},
                "backends": [backend("http://127.0.0.1:11434", in_flight=1, rates={"exchanges": 1.5, "errors": 0.0})],
            },
        ],
        "reload_faults": [],
    }


def busy_history() -> Json:
    samples = [
        {
            "at": 1764000000 + 5 * index,
            "streams": 20 + index % 17,
            "exchanges": 6.0,
            "errors": 0.4,
            "tokens": 400.0 + 13 * (index % 11),
            "queued": 3,
            "ttft_p50": 0.2,
            "ttft_p99": None if index % 7 == 0 else 1.0 + (index % 5) / 4,
            "itl_p50": 0.02,
            "itl_p99": 0.045,
        }
        for index in range(60)
    ]
    return {"interval": 5, "samples": samples}


def busy_exchanges() -> Json:
    return {
        "live": [
            exchange("req-aaaa1", duration=12.5),
            exchange("req-bbbb2", duration=125.0, events=1203, bytes_down=310_000, backend="gpu2", phase="blocked"),
            exchange("req-cccc3", duration=0.4, events=0, bytes_down=0, phase="silent", client="10.0.0.9"),
            exchange(
                "req-dddd4",
                duration=3.0,
                pool="ollama",
                model="qwen3:8b",
                backend="http://127.0.0.1:11434",
                tokens={"prompt": 12, "completion": 64, "cached": None},
            ),
        ],
        "ended": [
            exchange(
                "f-1",
                outcome="upstream_abort",
                backend="gpu2",
                reason="ECONNRESET",
                attempts=2,
                duration=4.0,
                times={
                    "head": 0.00003,
                    "queued": 0.5,
                    "connected": 0.9,
                    "answered": 1.0,
                    "first": 1.2,
                    "last": 3.9,
                    "end": 4.0,
                },
                failed=[{"backend": "gpu1", "at": 0.8, "reason": "FIN before the head"}],
            )
        ],
        "kept": 1000,
    }


class FakeAdmin:
    """The endpoint, in a thread. What it answers may be changed at any time; None is 404.

    `asked` are the paths with queries, `posts` the POSTs with what stood behind Authorization.
    """

    def __init__(self, token: str = "") -> None:
        self.status: Json | None = busy_status()
        self.history: Json | None = busy_history()
        self.exchanges: Json | None = busy_exchanges()
        self.asked: list[str] = []
        self.posts: list[tuple[str, str]] = []
        self.port = 0
        self._token = token
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, at the same port as before."""

        async def begin() -> None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._answer)
            self._runner = web.AppRunner(app)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
            await site.start()
            self.port = self._runner.addresses[0][1]

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(30)

    def stop(self) -> None:
        """Refuses connections."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if request.method == "POST":
            return self._act(request)
        answered = {"/status": self.status, "/history": self.history, "/exchanges": self.exchanges}.get(request.path)
        if answered is None:
            return web.json_response({"error": "there is no such path"}, status=404)
        if identity := request.query.get("id"):
            found = {
                name: [element for element in answered[name] if element["request_id"] == identity]
                for name in ("live", "ended")
            }
            return web.json_response({**answered, **found})
        return web.json_response(answered)

    def _act(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        self.posts.append((request.raw_path, given))
        if self._token and given != f"Bearer {self._token}":
            return web.json_response({"error": "a token is needed"}, status=401)
        return web.json_response({"name": "?", "state": "draining", "in_flight": 3})

    def __enter__(self) -> FakeAdmin:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


if __name__ == "__main__":
    with FakeAdmin() as admin:
        print(json.dumps(admin.url), flush=True)
        threading.Event().wait()
