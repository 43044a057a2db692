"""A small HTTP client, for what the control plane asks servers: whether they are well, which models they have, to stop a request; and
for what `llmpipe top` asks a proxy.

One request on a connection of its own, in the event loop, to an address that is known. Names are looked up elsewhere (`resolve`), and
how long it may take the caller says. No credentials are sent but those that a caller names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

import h11

from llmpipe import __version__

MOST_HEAD = 65536
"""Bytes of an answer's head."""


class Question(NamedTuple):
    """A request.

    Attributes:
        host: for its Host field.
        target: path, with a query or without.
        purpose: what the server's log shows behind the name of the proxy.
        body: JSON that is posted; None for a GET.
        most: bytes of the answer's body that are read; 0 where its status is enough.
        fields: further fields of the request.
    """

    host: str
    target: str
    purpose: str
    body: bytes | None = None
    most: int = 0
    fields: tuple[tuple[str, str], ...] = ()


class Answer(NamedTuple):
    """What came back: a final status, and the body where one was wanted."""

    status: int
    body: bytes


async def ask(address: tuple[str, int], question: Question) -> Answer:
    """Asks one address: a numeric one with its port, or ("unix:/path", 0).

    Raises:
        OSError: it could not be connected, or broke off.
        h11.ProtocolError: what came is no HTTP answer, or a longer one than is read.
    """
    return await _exchange(*await _connect(address), question)


async def ask_first(addresses: Iterable[tuple[str, int]], question: Question) -> Answer:
    """Asks these addresses, of one server, until one answers. What is posted is sent to no more than one of them: to the first that
    can be connected.

    Raises:
        OSError: none could be, or each broke off.
        h11.ProtocolError: as `ask`.
    """
    failure = OSError("it has no address")
    for address in addresses:
        try:
            connected = await _connect(address)
        except OSError as error:
            failure = error
            continue
        try:
            return await _exchange(*connected, question)
        except OSError as error:
            if question.body is not None:
                raise
            failure = error
    raise failure


async def _connect(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address
    if host.startswith("unix:"):
        return await asyncio.open_unix_connection(host[5:])
    return await asyncio.open_connection(host, port)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Question) -> Answer:
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
        for data in _request(connection, question):
            writer.write(data)
        status = 0
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                if not question.most:
                    return Answer(status, b"")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > question.most:
                    raise h11.RemoteProtocolError(f"the answer has more than {question.most} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("it ended before the answer")
    finally:
        writer.transport.abort()  # close() would wait for a peer that does not read


def _request(connection: h11.Connection, question: Question) -> Iterable[bytes]:
    fields = [
        ("Host", question.host),
        ("User-Agent", f"llmpipe/{__version__} {question.purpose}"),
        ("Accept", "*/*"),
        ("Connection", "close"),
        *question.fields,
    ]
    method = "GET"
    if question.body is not None:
        method = "POST"
        fields += [("Content-Type", "application/json"), ("Content-Length", str(len(question.body)))]
    yield connection.send(h11.Request(method=method, target=question.target, headers=fields)) or b""
    if question.body is not None:
        yield connection.send(h11.Data(data=question.body)) or b""
    yield connection.send(h11.EndOfMessage()) or b""


def fault(error: BaseException, seconds: float) -> str:
    """What went wrong, for a log line.

    Args:
        error: that `ask` raised, or `asyncio.wait_for` around it.
        seconds: that it was given.
    """
    if isinstance(error, asyncio.TimeoutError):  # before OSError, of which it is one since Python 3.11
        return f"no answer within {seconds:g} s"
    if isinstance(error, OSError):
        return error.strerror or str(error) or repr(error)
    return f"no HTTP answer: {error}"
