"""The admin endpoint: /metrics, /status, /healthz and /readyz. It reads; it changes nothing and shows no credential."""

import ipaddress
import json
from collections.abc import Callable, Collection
from typing import Any

from prometheus_client import CollectorRegistry, make_asgi_app

from llmpipe.background import App, Receive, Scope, Send, send_json


def host_of(field: str) -> str:
    """The host in a Host field, without its port, in lower case."""
    host = field.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether a Host is one that a page of somebody else cannot have: an address, localhost, or a name of ours. Any other may
    be a stranger's name that was made to point here, so that a browser takes this endpoint for the stranger's (rule S1).
    """
    if host == "localhost" or host in names:
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def make_app(
    registry: CollectorRegistry,
    why_not_ready: Callable[[], str | None],
    status: Callable[[], dict[str, Any]],
    names: Collection[str] = (),
) -> App:
    """Args:
    registry: what /metrics shows.
    why_not_ready: the reason why no new request should come here, or None.
    status: what /status shows.
    names: hosts under which it may be asked, beside addresses and localhost.
    """
    metrics: App = make_asgi_app(registry)
    names = {name.lower().rstrip(".") for name in names}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        hosts = [host_of(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"]
        # What monitoring asks for is asked under any name that a Service or a target list has.
        if path not in ("/metrics", "/healthz", "/readyz") and not all(is_own(host, names) for host in hosts):
            await send_json(send, 403, b'{"error": "this Host is not known; name it with --admin-host"}')
        elif scope["method"] not in ("GET", "HEAD"):
            await send_json(send, 405, b'{"error": "only GET and HEAD"}', ((b"allow", b"GET, HEAD"),))
        elif path == "/metrics":
            await metrics(scope, receive, send)
        elif path == "/status":
            await send_json(send, 200, json.dumps(status(), indent=2).encode())
        elif path == "/healthz":
            await send_json(send, 200, b'{"status": "ok"}')
        elif path == "/readyz":
            reason = why_not_ready()
            body = {"status": "ready"} if reason is None else {"status": "not ready", "reason": reason}
            await send_json(send, 200 if reason is None else 503, json.dumps(body).encode())
        else:
            await send_json(send, 404, b'{"error": "there are /metrics, /status, /healthz and /readyz"}')

    return app
