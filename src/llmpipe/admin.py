"""The admin endpoint: a page, /metrics, /status, /history, /events, /exchanges, /healthz and /readyz to read, and POSTs that drain a
backend, resume it, reload, or record answers. It shows no credential (rule S1)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from llmpipe import log, page, record_stream
from llmpipe.actions import CONTROL_TIME, Actions
from llmpipe.background import App, BoundedProtocol, Receive, Scope, Send, send_json
from llmpipe.config import parse_duration
from llmpipe.errors import UsageError
from llmpipe.events import EventStreams
from llmpipe.exchanges import Query, parse_query
from llmpipe.recorder import Asking

if TYPE_CHECKING:
    from llmpipe.authority import Authority
    from llmpipe.history import History

MOST_WAIT = 3600.0
"""Seconds that a POST may wait for the end of a drain, or for answers to record."""

PATHS = (
    "there are / (a page), /metrics, /status, /history, /events, /exchanges, /healthz and /readyz, "
    "and to POST to /backends/NAME/drain, /backends/NAME/resume, /reload and /record"
)

Fields = tuple[tuple[bytes, bytes], ...]
"""Of a head, as ASGI has them."""

Answer = tuple[int, dict[str, Any]]
"""A status, and what becomes the JSON behind it."""


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


def parse_action(path: str) -> tuple[str, str] | None:
    """What a POST to a path does, and the backend to which; None where it does nothing.

    Percent-encodings are resolved already. The name stands between the first and the last part of the path, so that it may have
    slashes, as a URL has.
    """
    if path in ("/reload", "/record"):
        return path[1:], ""
    name, _, verb = path.removeprefix("/backends/").rpartition("/")
    if path.startswith("/backends/") and name and verb in ("drain", "resume"):
        return verb, name
    return None


def parse_wait(query: str, action: str) -> float:
    """The seconds that a request wants to wait.

    Raises:
        UsageError: it wants something else: a script that misspells it must not take it for done.
    """
    pairs = parse_qsl(query, keep_blank_values=True)
    if not pairs:
        return 0.0
    if action != "drain" or len(pairs) > 1 or pairs[0][0] != "wait":
        raise UsageError("the only parameter there is is wait, of a drain, once: /backends/NAME/drain?wait=30")
    seconds = parse_duration(pairs[0][1])
    if seconds > MOST_WAIT:
        raise UsageError(f"wait is at most {MOST_WAIT:.0f} seconds; then ask again")
    return seconds


def exchanges_app(exchanges: Callable[[Query], Awaitable[dict[str, Any]]]) -> App:
    """Answers questions for exchanges, or says what is wrong with them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        try:
            found = await exchanges(parse_query(scope["query_string"].decode("latin-1")))
        except UsageError as error:
            await send_json(send, 400, json.dumps({"error": str(error)}).encode())
        except asyncio.TimeoutError:
            await send_json(send, 504, b'{"error": "the control plane is busy; ask again"}')
        else:
            await send_json(send, 200, json.dumps(found, indent=2).encode())

    return answer


def closing_fields(scope: Scope) -> Fields:
    """Fields of an answer to a request whose body is not read: what is left of it is not the next request."""
    has_body = any(
        key == b"transfer-encoding" or (key == b"content-length" and value != b"0") for key, value in scope["headers"]
    )
    return ((b"connection", b"close"),) if has_body else ()


class Control:
    """Answers POSTs."""

    def __init__(self, actions: Actions, authority: Authority) -> None:
        self._actions = actions
        self._authority = authority

    async def answer(self, scope: Scope, receive: Receive, send: Send, action: str, name: str) -> None:
        """Does what is asked for, or says why not. The body of the request is not looked at."""
        client = scope["client"][0] if scope["client"] else ""
        fields = closing_fields(scope)
        body: dict[str, Any]
        if scope["method"] != "POST":
            status, body = 405, {"error": "only POST"}
            fields += ((b"allow", b"POST"),)
        elif refusal := self._authority.refusal(scope["headers"]):
            log.warning("admin request refused", action=action, client=client, status=refusal.status)
            status, body = refusal.status, {"error": refusal.text}
            fields += refusal.fields
        else:
            connection: BoundedProtocol = scope["state"]["connection"]
            query = scope["query_string"].decode("latin-1")
            try:
                if action == "record":
                    wish = record_stream.parse_wish(query, MOST_WAIT)
                    refused = await self._record(scope, receive, send, wish, client)
                    if refused is None:
                        return
                    status, body = refused
                else:
                    seconds = parse_wait(query, action)
                    connection.allow(seconds + CONTROL_TIME)
                    status, body = await self._act(connection, client, action, name, seconds)
            except UsageError as error:
                status, body = 400, {"error": str(error)}
            except KeyError:
                status, body = 404, {"error": "there is no backend of that name", "backends": self._actions.names()}
            except asyncio.TimeoutError:
                text = f"it was not done within {CONTROL_TIME:.0f} s, and may be done later; look at /status before you ask again"
                status, body = 504, {"error": text}
        await send_json(send, status, json.dumps(body).encode(), fields)

    async def _record(
        self, scope: Scope, receive: Receive, send: Send, wish: record_stream.Wish, client: str
    ) -> Answer | None:
        """Records and sends answers; why not, where that cannot be."""
        connection: BoundedProtocol = scope["state"]["connection"]
        connection.allow(CONTROL_TIME)
        asking = Asking(wish.count, request_bodies=wish.request_body)
        stop = self._actions.end_recording
        try:
            if not await self._actions.record(asking, wish.wait, client):
                return 409, {"error": "somebody else has answers recorded now; ask again when that has ended"}
            sending = record_stream.Sending(connection, receive, send, closing_fields(scope))
            await record_stream.answer(asking, wish.wait, stop, sending)
            return None
        finally:
            self._actions.forget_recording(asking)

    async def _act(self, connection: BoundedProtocol, client: str, action: str, name: str, seconds: float) -> Answer:
        if action == "drain":
            return 200, await self._actions.drain(name, client, seconds, connection.gone)
        if action == "resume":
            return 200, await self._actions.resume(name, client)
        faults = await self._actions.reload()
        if faults is None:
            return 503, {"error": "the process ends"}
        if faults:
            return 422, {"reloaded": False, "faults": list(faults)}
        return 200, {"reloaded": True, "backends": self._actions.names()}


def make_app(
    metrics: App,
    why_not_ready: Callable[[], str | None],
    status: Callable[[], dict[str, Any]],
    exchanges: Callable[[Query], Awaitable[dict[str, Any]]],
    history: History,
    *,
    actions: Actions,
    authority: Authority,
    names: Collection[str] = (),
) -> App:
    """For a bounded server (`BackgroundServer`).

    Args:
        metrics: answers at /metrics.
        why_not_ready: the reason why no new request should come here, or None.
        status: what /status shows.
        exchanges: what /exchanges shows.
        history: what /history shows.
        actions: what POSTs can do.
        authority: knows who may.
        names: hosts under which it may be asked, beside addresses and localhost.
    """
    names = {name.lower().rstrip(".") for name in names}
    control = Control(actions, authority)

    async def show_status(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send_json(send, 200, json.dumps(status(), indent=2).encode())

    async def show_history(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send_json(send, 200, json.dumps(history.shown()).encode())

    async def show_health(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send_json(send, 200, b'{"status": "ok"}')

    async def show_readiness(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        reason = why_not_ready()
        body = {"status": "ready"} if reason is None else {"status": "not ready", "reason": reason}
        await send_json(send, 200 if reason is None else 503, json.dumps(body).encode())

    shown: dict[str, App] = {
        "/metrics": metrics,
        "/status": show_status,
        "/history": show_history,
        "/events": EventStreams(status, history).answer,
        "/exchanges": exchanges_app(exchanges),
        "/healthz": show_health,
        "/readyz": show_readiness,
        **{path: file.answer for path, file in page.load().items()},
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        hosts = [host_of(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"]
        # What monitoring asks for is asked under any name that a Service or a target list has.
        if path not in ("/metrics", "/healthz", "/readyz") and not all(is_own(host, names) for host in hosts):
            await send_json(send, 403, b'{"error": "this Host is not known; name it with --admin-host"}')
        elif action := parse_action(path):
            await control.answer(scope, receive, send, *action)
        elif scope["method"] not in ("GET", "HEAD"):
            await send_json(send, 405, b'{"error": "only GET and HEAD"}', ((b"allow", b"GET, HEAD"),))
        elif path in shown:
            await shown[path](scope, receive, send)
        else:
            await send_json(send, 404, json.dumps({"error": PATHS}).encode())

    return app
