"""`llmpipe explain`: asks the admin endpoint of a running proxy for one request, and says where its time went."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import h11

from llmpipe import timeline
from llmpipe.admin_address import AdminAddress
from llmpipe.errors import UsageError
from llmpipe.exchanges import LEAST_PREFIX, MOST_SHOWN
from llmpipe.http_client import Question, ask, fault

LIMIT = 10.0
"""Seconds for the answer."""

MOST_ANSWER = 16 << 20
"""Bytes of an answer."""


def fetch(address: AdminAddress, request_id: str) -> dict[str, Any]:
    """What /exchanges answers for an id.

    Raises:
        UsageError: the endpoint cannot be asked.
    """
    shown = f"the admin endpoint {address}"
    target = f"{address.prefix}/exchanges?" + urlencode({"id": request_id, "limit": MOST_SHOWN})
    question = Question(address.authority, target, "(explain)", most=MOST_ANSWER)

    async def bounded() -> tuple[int, bytes]:
        return await asyncio.wait_for(ask(address[:2], question), LIMIT)

    try:
        status, body = asyncio.run(bounded())
    except (OSError, asyncio.TimeoutError, h11.ProtocolError) as error:
        hint = "name the one of the process with --admin (its --admin or LLMPIPE_ADMIN)"
        raise UsageError(f"{shown} cannot be asked ({fault(error, LIMIT)}); {hint}") from None
    try:
        answer: dict[str, Any] = json.loads(body)
    except ValueError:
        raise UsageError(f"{shown} answered {status} and no JSON; is it that of llmpipe serve?") from None
    if status != 200:
        raise UsageError(f"{shown} answered {status}: {answer.get('error', '')}")
    return answer


def run(request_id: str, address: AdminAddress, show: Callable[[str], None], *, as_json: bool) -> str:
    """Shows the exchanges of a request, the newest first.

    Args:
        request_id: all of it, or a beginning that no other one has.
        address: of the admin endpoint.
        show: gets each line.
        as_json: whether that is JSON, a line for each exchange.

    Returns:
        Why there is nothing to show; empty where there was.

    Raises:
        UsageError: the endpoint cannot be asked, or the beginning is that of several requests.
    """
    answer = fetch(address, request_id)
    found = sorted((*answer["live"], *answer["ended"]), key=lambda element: str(element["at"]), reverse=True)
    ids = dict.fromkeys(element["request_id"] for element in found)
    if len(ids) > 1:
        shown = ", ".join(list(ids)[:5]) + (", ..." if len(ids) > 5 else "")
        raise UsageError(f"{len(ids)} requests have an id that begins with {request_id}; write more of it: {shown}")
    if not found:
        return _why_not(request_id, answer["kept"])
    for number, element in enumerate(found):
        if as_json:
            show(json.dumps(element))
            continue
        if len(found) > 1:
            show(("\n" if number else "") + f"{number + 1} of {len(found)} exchanges with this id")
        for line in timeline.lines(element):
            show(line)
    return ""


def _why_not(request_id: str, kept: int) -> str:
    text = f"no exchange with the id {request_id} is known to this process. "
    if not kept:
        return text + "It keeps none of those that have ended: start it with --exchanges-kept 1000"
    if len(request_id) < LEAST_PREFIX:
        return text + f"If this is the beginning of an id, write {LEAST_PREFIX} characters of it or more"
    return text + (
        f"It keeps the last {kept} (--exchanges-kept): this one is older, or another process had it, one before a restart or an upgrade "
        "too; its access line, if there is one, has the same id"
    )
