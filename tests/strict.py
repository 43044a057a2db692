"""A backend that reads what it gets strictly, keeps every byte of it, and says aloud what it was asked.

It has a reader of its own, written from the grammar of RFC 9112 and sharing nothing with the proxy's, and asks h11 about the
same bytes. Whatever the two do not both read as whole requests is an error of the test that runs then.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import h11
from harness import Connection, Fields, PeerClosedError, split_head, values

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
HEAD = re.compile(
    rb"(?P<method>" + TOKEN + rb") (?P<target>[!-~]+) HTTP/1\.1\r\n(?:" + TOKEN + rb":" + VALUE + rb"\r\n)*\r\n"
)
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*\r\n")
TRAILER = re.compile(TOKEN + rb":" + VALUE + rb"\r\n")

ADDED = (
    b"X-Forwarded-For:",
    b"X-Forwarded-Proto:",
    b"X-Forwarded-Host:",
    b"Via:",
    b"X-Request-ID:",
    b"Connection: Upgrade",
)
"""What the proxy puts into a head; the rest has to be the client's."""


@dataclass
class Seen:
    """A whole request as the backend got it."""

    connection: int
    method: bytes
    target: bytes
    fields: Fields
    body: bytes
    head: bytes
    framed: bytes
    """The body as it was framed."""

    def values(self, name: bytes) -> list[bytes]:
        return values(self.fields, name)

    @property
    def short(self) -> tuple[bytes, bytes, bytes]:
        return self.method, self.target, self.body


class Recorded:
    """A connection whose bytes are kept, from the start of the message that is being read."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.raw = bytearray()

    def until(self, mark: bytes) -> bytes:
        try:
            data = self.connection.recv_until(mark)
        except (EOFError, ConnectionError):
            self.raw += self.connection.buffer
            raise
        self.raw += data
        return data

    def read(self, n: int) -> bytes:
        try:
            data = self.connection.read(n)
        except (EOFError, ConnectionError):
            self.raw += self.connection.buffer
            raise
        self.raw += data
        return data


def read_head(recorded: Recorded) -> tuple[bytes, bytes, Fields, bytes]:
    """Method, target, fields and the bytes of a head, or AssertionError."""
    head = recorded.until(b"\r\n\r\n")
    found = HEAD.fullmatch(head)
    assert found, f"not a request head: {head!r}"
    _, fields = split_head(head)
    assert len(values(fields, b"host")) == 1, f"not one Host: {head!r}"
    return found["method"], found["target"], fields, head


def read_body(recorded: Recorded, fields: Fields) -> bytes:
    """The body that the fields announce, or AssertionError."""
    lengths, codings = values(fields, b"content-length"), values(fields, b"transfer-encoding")
    assert len(lengths) + len(codings) <= 1, f"two framings: {fields}"
    if codings:
        assert codings == [b"chunked"], f"not a coding: {codings}"
        body = b""
        while True:
            line = recorded.until(b"\n")
            found = SIZE.fullmatch(line)
            assert found, f"not a chunk's size: {line!r}"
            if int(found[1], 16) == 0:
                break
            body += recorded.read(int(found[1], 16))
            assert recorded.read(2) == b"\r\n", f"no line end behind a chunk: {bytes(recorded.raw)!r}"
        while (line := recorded.until(b"\n")) != b"\r\n":
            assert TRAILER.fullmatch(line), f"not a trailer: {line!r}"
        return body
    if lengths:
        assert re.fullmatch(rb"[0-9]{1,18}", lengths[0]), f"not a length: {lengths}"
        return recorded.read(int(lengths[0]))
    return b""


def h11_reads(raw: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Method, target and body of the one request that h11 finds in these bytes, to the last of them; None for fewer bytes."""
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reader.receive_data(raw)
    method = target = body = b""
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Request):
            method, target = event.method, event.target
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert reader.trailing_data == (b"", False), f"h11 ends {raw!r} earlier"
            return method, target, body
        else:
            assert event is h11.NEED_DATA, f"h11 says {event} of {raw!r}"
            return None


Early = Callable[[Connection], bool]
"""What is done once a head is there and before its body is read; False where the connection is not to be read further."""


class Strict:
    """The script of the backend.

    It answers every request with what it was asked, unless `answers` has something else for the target, in pieces that are
    sent one by one. `early` is for what has to happen before the body is read.
    """

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.partial: list[bytes] = []
        self.answers: dict[bytes, list[bytes]] = {}
        self.early: dict[bytes, Early] = {}
        self.closing: set[bytes] = set()
        """Targets whose answer ends with a close."""
        self.ended: set[int] = set()
        """Connections that ended."""
        self.lock = threading.Lock()

    def clear(self) -> None:
        """Forgets what it saw and what it was told."""
        with self.lock:
            for kept in (self.requests, self.partial, self.answers, self.early, self.closing):
                kept.clear()

    def __call__(self, connection: Connection) -> None:
        try:
            while self.one(connection):
                pass
        finally:
            self.ended.add(connection.index)

    def one(self, connection: Connection) -> bool:
        """Reads and answers one request; False where the connection is done with."""
        recorded = Recorded(connection)
        try:
            method, target, fields, head = read_head(recorded)
            if target in self.early and not self.early[target](connection):
                return False
            body = read_body(recorded, fields)
        except (PeerClosedError, EOFError, ConnectionError):
            if recorded.raw:
                assert h11_reads(bytes(recorded.raw)) is None, f"h11 takes for whole: {bytes(recorded.raw)!r}"
                with self.lock:
                    self.partial.append(bytes(recorded.raw))
            return False
        raw = bytes(recorded.raw)
        assert h11_reads(raw) == (method, target, body), f"h11 reads {raw!r} otherwise"
        seen = Seen(connection.index, method, target, fields, body, head, raw[len(head) :])
        with self.lock:
            self.requests.append(seen)
        for piece in self.answers.get(target) or [echo(seen)]:
            connection.send(piece)
        if target in self.closing:
            connection.close()
            return False
        return True


def echo(seen: Seen) -> bytes:
    """A 200 that says what was asked, with the id of the request in it; to HEAD without its body."""
    body = b"%s %s %s [%s]" % (seen.method, seen.target, seen.body, b", ".join(seen.values(b"x-request-id")))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head if seen.method == b"HEAD" else head + body


def plainly_contained(seen: Seen, sent: bytes) -> None:
    """Fails unless the client's bytes hold this request: its line, its fields and its body, as they are."""
    line, *lines = seen.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = line.split(b" ")
    assert method + b" " in sent, line
    assert target in sent or target == b"/" or target == b"*" or target.startswith(b"/?"), line
    for text in lines:
        if text.lower().startswith(b"transfer-encoding:"):
            # In whatever case the client wrote it; the backend gets lower case.
            assert text.lower() + b"\r\n" in sent.lower(), f"the client did not send {text!r}"
        elif not text.startswith((*ADDED, b"Host:")):
            assert text + b"\r\n" in sent, f"the client did not send {text!r}"
    assert seen.framed in sent, f"the client did not send {seen.framed!r}"
