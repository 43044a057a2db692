"""Scripts of the simulated world (tests/probe/world.pxi): how one is written, and what must be true of every run."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import h11

TOKEN = re.compile(rb"q-([0-9a-f]{4})-")
SETTINGS = {"event": 1, "small_failover": 2, "total": 4, "small_body": 8, "retry": 16, "small_head": 32, "no_idle": 64}
TABLE = {"two": 1, "finish": 2, "none": 4, "addresses": 8}


class Script:
    """Writes a script: Script(world, table=("two",)).connect().client_say(0, 1)...; `bytes(script)` is what runs.

    A method for each name in OPERATIONS, with `who` and `n`, or with `who` and bytes.
    """

    def __init__(self, world: ModuleType, settings: tuple[str, ...] = (), table: tuple[str, ...] = ()) -> None:
        self._world = world
        self._ops = [bytes([sum(SETTINGS[name] for name in settings), sum(TABLE[name] for name in table)])]

    def __getattr__(self, name: str) -> Any:
        what = self._world.OPERATIONS.index(name)

        def add(who: int = 0, n: int | bytes = 0) -> Script:
            data = n if isinstance(n, bytes) else b""
            if not isinstance(n, bytes):
                self._ops.append(bytes([what, who, n]))
            for at in range(0, len(data), 255):
                piece = data[at : at + 255]
                self._ops.append(bytes([what, who, len(piece)]) + piece)
            return self

        return add

    def __bytes__(self) -> bytes:
        return b"".join(self._ops)


def requests_in(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(method, target, body) of the whole requests in some bytes, by h11; ends where they are no longer HTTP."""
    found = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((bytes(request.method), bytes(request.target), body))
                # Answered, so that the next one is read.
                if connection.our_state is h11.SEND_RESPONSE:
                    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return found
    except (h11.LocalProtocolError, h11.RemoteProtocolError):
        return found


def read_answers(data: bytes, ended: str, methods: list[bytes]) -> list[tuple[int, bytes, bool]]:
    """(status, body, whole) of the answers that a client got to its requests, read strictly by h11.

    A last answer that was cut is not whole. Bytes that are no answer raise h11.RemoteProtocolError.
    """
    answers: list[tuple[int, bytes, bool]] = []
    for method in methods:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        request = h11.Request(method=method, target="/", headers=[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")])
        connection.send(request)
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        if ended == "fin":
            connection.receive_data(b"")
        status, body, whole = 0, b"", False
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                # "closed in the middle" is an honest cut; all else is no HTTP.
                if "closed" not in str(error) and "connection" not in str(error):
                    raise
                break
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    answers.append((101, bytes(connection.trailing_data[0]), False))
                    return answers
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                whole = True
                break
            else:
                break
        if not status:
            break
        answers.append((status, body, whole))
        data = connection.trailing_data[0] if whole else b""
    else:
        if data:
            answers.append((0, bytes(data), False))
    return answers
