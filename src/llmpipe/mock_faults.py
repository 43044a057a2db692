"""Faults that a request to the mock can ask for, in its header X-Mock-Fault."""

import asyncio
import os
import re
import socket
import struct
from dataclasses import dataclass, replace
from typing import Any

from llmpipe import log
from llmpipe.mock_completion import MAX_TOKENS, RefusedError, read_number

PARAMETERS = {
    "die": "after",
    "die-process": "after",
    "hang": "after",
    "slow-head": "seconds",
    "answer-before-body": "status",
    "STATUS": "retry-after",
}
"""The faults, each with its parameter, which may be left out. STATUS is a number from 400 to 599."""

WRITTEN = ", ".join(f"{name}[;{parameter}=N]" for name, parameter in PARAMETERS.items())
"""How they are written."""

RANGES = {"after": (0, MAX_TOKENS), "seconds": (0, 86400), "status": (400, 599), "retry-after": (0, 86400)}

_STATUS = re.compile("[45][0-9][0-9]")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer. Its methods are called at each point where something may."""

    name: str = ""
    """A key of PARAMETERS; empty if nothing goes wrong."""
    after: int | None = None
    """Tokens before it, or pieces of a recording; None: before the head."""
    seconds: float = 1.0
    """By which the head is late."""
    status: int = 413
    """Of an error in the place of the answer."""
    retry_after: int | None = None
    """Seconds that go with this error, if any."""

    def before_body(self) -> None:
        """Raises:
        RefusedError: the request is answered before its body was read.
        """
        if self.name == "answer-before-body":
            raise RefusedError(self.status, "answered before the body was read, as X-Mock-Fault asks for")

    def after_body(self) -> None:
        """Raises:
        RefusedError: the request is answered with an error.
        """
        if self.name == "STATUS":
            raise RefusedError(self.status, "refused, as X-Mock-Fault asks for", retry_after=self.retry_after)

    async def before_head(self, transport: asyncio.Transport) -> None:
        """Holds the head back, or breaks the answer in its place."""
        if self.name == "slow-head":
            await asyncio.sleep(self.seconds)
        elif self._breaks and self.after is None:
            await self._break(transport)

    async def after_tokens(self, tokens: int, transport: asyncio.Transport) -> None:
        """Breaks the answer, if it is time to do so."""
        if self._breaks and self.after == tokens:
            await self._break(transport)

    @property
    def _breaks(self) -> bool:
        return self.name in ("die", "die-process", "hang")

    async def _break(self, transport: asyncio.Transport) -> None:
        """Ends only by being cancelled, which is done when the connection is closed."""
        log.info("fault", fault=self.name, after=self.after)
        if self.name == "die-process":
            os._exit(1)  # works in the first process of a container too, where SIGKILL would not
        if self.name == "die":
            _reset(transport)
        await asyncio.Event().wait()


def _reset(transport: asyncio.Transport) -> None:
    """Closes a connection with an RST. What its client has not read yet may be lost, as in a crash."""
    set_reset(transport)
    transport.abort()


def set_reset(transport: asyncio.Transport) -> None:
    """Has a connection end with an RST when it is closed."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_fault(text: str) -> Fault:
    """The fault that a header asks for.

    Raises:
        RefusedError: there is none of this name, or its parameter is wrong.
    """
    written, *parameters = (part.strip() for part in text.split(";"))
    name = "STATUS" if _STATUS.fullmatch(written) else written
    if name not in PARAMETERS or (name == "STATUS" and written == name):
        raise RefusedError(400, f"x-mock-fault: there is no {written!r}; there are {WRITTEN}, STATUS being 400 to 599")
    fault = Fault(name, status=int(written)) if name == "STATUS" else Fault(name)
    if not parameters:
        return fault
    key, _, value = parameters[0].partition("=")
    if key != PARAMETERS[name] or len(parameters) > 1:
        raise RefusedError(400, f"x-mock-fault: {written} takes only the parameter {PARAMETERS[name]}")
    number = read_number(f"x-mock-fault: {key}", value, *RANGES[key])
    field: dict[str, Any] = {key.replace("-", "_"): number if key == "seconds" else int(number)}
    return replace(fault, **field)
