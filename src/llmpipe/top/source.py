"""What `llmpipe top` asks a proxy's admin endpoint. An answer that lacks something is no error: older proxies know less."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import h11
import msgspec

from llmpipe import http_client
from llmpipe.admin_address import AdminAddress
from llmpipe.http_client import Question

MOST_ANSWER = 256 << 20
"""Bytes of an answer."""

MOST_EXCHANGES = 300
"""Live exchanges that are asked for, the newest ones: each question costs the proxy the time to write them down."""

PATIENCE = 10.0
"""Seconds that an answer may take."""

ACTION_PATIENCE = 20.0
"""Seconds that a drain or a resume may take: the proxy itself gives up earlier, and says so."""

Json = dict[str, Any]


class UnreachableError(Exception):
    """The endpoint gave no answer that can be used; the text says why."""


class Missing(NamedTuple):
    """What an endpoint did not give, and why."""

    reason: str


@dataclass(frozen=True)
class Snapshot:
    """What was answered at about the same time.

    Attributes:
        status: of /status.
        history: of /history, or why there is none.
        exchanges: of /exchanges, or why there are none.
    """

    status: Json
    history: Json | Missing = field(default_factory=lambda: Missing("not asked for"))
    exchanges: Json | Missing = field(default_factory=lambda: Missing("not asked for"))


class Source:
    """Asks one admin endpoint. Each question has a connection of its own; nothing here blocks the event loop."""

    def __init__(self, address: AdminAddress, token: str = "") -> None:
        """Args:
        address: where to ask.
        token: that POSTs bring; empty for none.
        """
        self.address = address
        self._token = token

    async def snapshot(self) -> Snapshot:
        """All that a page shows.

        Raises:
            UnreachableError: /status was not answered with a status. What else is missing the snapshot says.
        """
        status, history, exchanges = await asyncio.gather(
            self._get("/status"), self._optional("/history"), self._optional(f"/exchanges?limit={MOST_EXCHANGES}")
        )
        return Snapshot(status, history, exchanges)

    async def exchange(self, request_id: str) -> Json | Missing:
        """What /exchanges has of one request id."""
        return await self._optional(f"/exchanges?id={quote(request_id, safe='')}")

    async def act(self, verb: str, backend: str) -> str:
        """Drains or resumes a backend; what came of it, in words.

        Raises:
            UnreachableError: nothing came of it; the text says what was answered.
        """
        target = f"/backends/{quote(backend, safe='')}/{verb}"
        status, body = await self._ask(target, post=True)
        if status != 200:
            raise UnreachableError(f"{status}: {body.get('error', 'no reason given')}")
        in_flight = body.get("in_flight")
        return str(body.get("state", "done")) + (f", {in_flight} in flight" if in_flight else "")

    async def _get(self, path: str) -> Json:
        status, body = await self._ask(path)
        if status != 200:
            raise UnreachableError(f"{status}: {body.get('error', 'no reason given')}")
        return body

    async def _optional(self, path: str) -> Json | Missing:
        try:
            status, body = await self._ask(path)
        except UnreachableError as error:
            return Missing(str(error))
        if status == 404:
            return Missing(f"this proxy has no {path.partition('?')[0]}")
        if status != 200:
            return Missing(f"{status}: {body.get('error', 'no reason given')}")
        return body

    async def _ask(self, path: str, *, post: bool = False) -> tuple[int, Json]:
        fields = (("Authorization", f"Bearer {self._token}"),) if self._token and post else ()
        question = Question(
            host=self.address.authority,
            target=self.address.prefix + path,
            purpose="(top)",
            body=b"" if post else None,
            most=MOST_ANSWER,
            fields=fields,
        )
        patience = ACTION_PATIENCE if post else PATIENCE
        try:
            answer = await asyncio.wait_for(http_client.ask(self.address[:2], question), patience)
        except (OSError, asyncio.TimeoutError, h11.ProtocolError, UnicodeError) as error:
            raise UnreachableError(_fault(error, patience)) from None
        try:
            body = msgspec.json.decode(answer.body, type=Json)
        except msgspec.DecodeError:
            if answer.status == 200:
                raise UnreachableError(f"{path}: what was answered is not the JSON of a proxy") from None
            body = {}
        return answer.status, body


def _fault(error: BaseException, patience: float) -> str:
    """What went wrong, in the system's words where it has some: asyncio has others for a refused connection."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return http_client.fault(error, patience)
