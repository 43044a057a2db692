"""The admin endpoint: /metrics, /healthz and /readyz. It reads; it changes nothing and shows no credential."""

import json
from collections.abc import Callable

from prometheus_client import CollectorRegistry, make_asgi_app

from llmpipe.background import App, Receive, Scope, Send, send_json


def make_app(registry: CollectorRegistry, why_not_ready: Callable[[], str | None]) -> App:
    """Args:
    registry: what /metrics shows.
    why_not_ready: the reason why no new request should come here, or None.
    """
    metrics: App = make_asgi_app(registry)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await send_json(send, 405, b'{"error": "only GET and HEAD"}', ((b"allow", b"GET, HEAD"),))
        elif path == "/metrics":
            await metrics(scope, receive, send)
        elif path == "/healthz":
            await send_json(send, 200, b'{"status": "ok"}')
        elif path == "/readyz":
            reason = why_not_ready()
            body = {"status": "ready"} if reason is None else {"status": "not ready", "reason": reason}
            await send_json(send, 200 if reason is None else 503, json.dumps(body).encode())
        else:
            await send_json(send, 404, b'{"error": "there are /metrics, /healthz and /readyz"}')

    return app
