"""Rules A2, A4 and C2 in the engine's own readers, opened by the probe, against two other readers: h11 and llhttp.

Each input is read at once, byte by byte and cut in two at every place, always with the same result. What we accept, at least
one of the others accepts with the same method, target, fields, body and end. Where one of them judges otherwise, DIFFERENCES
says why; a difference that is not listed fails, and so does a listed one that is gone. What a grammar and mutations come up with
is explained by KNOWN in the same way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cases
import h11
import httptools
import pytest
from seeds import seeds

INPUTS = 6000
"""Generated inputs for each source and seed: 20 seconds in all."""


@dataclass
class Message:
    """What a reader made of some bytes; `used` of them belong to the message."""

    first: tuple[object, ...]
    fields: list[tuple[bytes, bytes]]
    body: bytes
    used: int = 0

    def same(self, other: object) -> bool:
        return isinstance(other, Message) and (self.first, self.fields, self.body) == (
            other.first,
            other.fields,
            other.body,
        )


Reading = Message | str
"""A message, "again" where it is not whole, or "bad"."""


def no_case(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Names in lower case, values without the white space around them; h11 puts codings into lower case too."""
    lower = [(name.lower(), value.strip(b" \t")) for name, value in fields]
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in lower]


def origin_form(method: bytes, target: bytes) -> bytes:
    """A request target as it goes to a backend."""
    scheme, colon, rest = target.partition(b"://")
    if not colon or scheme.lower() not in (b"http", b"https"):
        return target
    at = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    path = rest[at:]
    if not path and method == b"OPTIONS":
        return b"*"
    return path if path.startswith(b"/") else b"/" + path


# Our readers


def read_body(probe, head: dict, rest: bytes, pieces: list[bytes]) -> tuple[str, bytes, int]:
    """The body behind a head: "ok", "again" or "bad", its data, and the bytes that it takes."""
    if head["framing"] == "none":
        return "ok", b"", 0
    if head["framing"] == "length":
        length = head["length"]
        data = rest + b"".join(pieces)
        return ("ok" if len(data) >= length else "again"), data[:length], length
    if head["framing"] == "close":
        data = rest + b"".join(pieces)
        return "ok", data, len(data)
    reader = probe.ChunkReader()
    body, used = b"", 0
    for piece in [rest, *pieces]:
        verdict, consumed, data = reader.feed(piece)
        body += data
        used += consumed
        if verdict != "again":
            return ("ok" if verdict == "done" else "bad"), body, used
        assert consumed == len(piece)
    return "again", body, used


def read_ours(probe, reader, pieces: list[bytes], first: Callable[[dict], tuple[object, ...]]) -> Reading | int:
    """What our readers make of the pieces; a refused head gives the status of the answer."""
    fed = b""
    for index, piece in enumerate(pieces):
        fed += piece
        verdict, number, head = reader.feed(piece)
        if verdict == "bad":
            return number
        if verdict == "ok":
            start = number + 2 * (fed.startswith(b"\r\n") and "method" in head)
            verdict, body, used = read_body(probe, head, fed[start:], pieces[index + 1 :])
            if verdict != "ok":
                return verdict if verdict == "again" else 400
            return Message(first(head), no_case(head["fields"]), body, start + used)
    return "again"


def our_request(probe, pieces: list[bytes]) -> Reading | int:
    return read_ours(
        probe, probe.RequestReader(), pieces, lambda head: (head["method"], head["target"], head["version"])
    )


def our_response(probe, pieces: list[bytes], method: bytes = b"GET") -> Reading:
    reading = read_ours(probe, probe.ResponseReader(method), pieces, lambda head: (head["status"], head["version"]))
    return "bad" if isinstance(reading, int) else reading  # every refusal is a 502


# h11


def h11_events(connection: h11.Connection, data: bytes, closes: bool) -> list[object] | str:
    events: list[object] = []
    try:
        connection.receive_data(data)
        if closes:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return events if events and isinstance(events[-1], h11.InformationalResponse) else "again"
            if event is h11.PAUSED:
                return events
            if isinstance(event, h11.ConnectionClosed):
                return "again"
            events.append(event)
            if isinstance(event, (h11.EndOfMessage, h11.InformationalResponse)):
                return events
    except h11.RemoteProtocolError:
        return "bad"


def h11_message(events: list[object] | str, first: Callable[[object], tuple[object, ...]]) -> Reading:
    if isinstance(events, str):
        return events
    head = events[0]
    body = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))
    return Message(
        (*first(head), tuple(map(int, head.http_version.split(b".")))), no_case(head.headers.raw_items()), body
    )


def h11_request(data: bytes) -> Reading:
    events = h11_events(h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), data, closes=False)
    return h11_message(events, lambda head: (head.method, origin_form(head.method, head.target)))


def h11_response(data: bytes, closes: bool) -> Reading:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    return h11_message(h11_events(connection, data, closes), lambda head: (head.status_code,))


# llhttp


class Heard:
    """The callbacks of httptools, for the first message."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.in_body = False
        self.done = False

    def on_url(self, url: bytes) -> None:
        if not self.done:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.done:
            (self.trailers if self.in_body else self.fields).append((name, value or b""))

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, body: bytes) -> None:
        if not self.done:
            self.body += body

    def on_message_complete(self) -> None:
        self.done = True


def llhttp_feed(parser: object, data: bytes) -> bool:
    """False where it refuses."""
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return True
    except httptools.HttpParserError:
        return False
    return True


def version_of(parser: object) -> tuple[int, ...]:
    return tuple(map(int, parser.get_http_version().split(".")))


def llhttp_request(data: bytes) -> Reading:
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    good = llhttp_feed(parser, data)
    if not heard.done:
        return "again" if good else "bad"
    method = parser.get_method()
    return Message((method, origin_form(method, heard.url), version_of(parser)), no_case(heard.fields), heard.body)


def llhttp_response(data: bytes, closes: bool) -> Reading:
    heard = Heard()
    parser = httptools.HttpResponseParser(heard)
    good = llhttp_feed(parser, data)
    if not heard.done and not (closes and heard.in_body):
        return "again" if good else "bad"
    return Message((parser.get_status_code(), version_of(parser)), no_case(heard.fields), heard.body)


# What they say of each other

READERS = {"h11": (h11_request, h11_response), "llhttp": (llhttp_request, llhttp_response)}


def agrees(reader: Callable[[bytes], Reading], ours: Message, data: bytes) -> bool:
    """Whether another reader reads the same message from the same bytes, and from none fewer."""
    return ours.same(reader(data[: ours.used])) and reader(data[: ours.used - 1]) == "again"


def disagreeing(ours: Reading | int, data: bytes, readers: dict[str, Callable[[bytes], Reading]]) -> set[str]:
    """The readers that judge otherwise: they refuse or read differently what we take, or take what we refuse."""
    if isinstance(ours, Message):
        return {name for name, reader in readers.items() if not agrees(reader, ours, data)}
    if ours == "again":  # fewer bytes than they need
        return {name for name, reader in readers.items() if reader(data) != "again"}
    return {name for name, reader in readers.items() if reader(data) != "bad"}


def request_readers() -> dict[str, Callable[[bytes], Reading]]:
    return {name: request for name, (request, _) in READERS.items()}


def response_readers(*, closes: bool) -> dict[str, Callable[[bytes], Reading]]:
    def bound(read: Callable[[bytes, bool], Reading]) -> Callable[[bytes], Reading]:
        return lambda data: read(data, closes)

    return {name: bound(response) for name, (_, response) in READERS.items()}


REQUESTS: dict[str, tuple[bytes, object]] = {
    **{name: (data, "ok") for name, data in cases.GOOD_REQUESTS.items()},
    **{name: (data, 400) for name, data in cases.BAD_REQUESTS.items()},
    **{f"chunks: {name}": (cases.POST_CHUNKED + data, "ok") for name, (data, _) in cases.GOOD_CHUNKS.items()},
    **{f"chunks: {name}": (cases.POST_CHUNKED + data, 400) for name, data in cases.BAD_CHUNKS.items()},
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
    "other expectation": (cases.GET + b"Expect: 200-ok\r\n\r\n", 417),
    "long line": (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "long head": (cases.GET + b"X: " + b"x" * 32768 + b"\r\n\r\n", 431),
    "many fields": (cases.GET + b"X: 1\r\n" * 128 + b"\r\n", 431),
    "half a head": (cases.GET, "again"),
    "half a body": (cases.POST + b"Content-Length: 5\r\n\r\nhel", "again"),
    "half a chunk": (cases.POST_CHUNKED + b"5\r\nhel", "again"),
}

NOT_OF_A_READER = (
    "closed inside the head",
    "closed at once",
    "101 that nobody asked for",
    "broken 103",
    "endless head",
)
RESPONSES: dict[str, tuple[bytes, object]] = {
    **{name: (data, "ok") for name, data in cases.GOOD_RESPONSES.items()},
    **{name: (data, "bad") for name, data in cases.BAD_RESPONSES.items() if name not in NOT_OF_A_READER},
    **{
        f"chunks: {name}": (cases.OK + cases.CHUNKED + b"\r\n4\r\ngood\r\n" + data, "bad")
        for name, data in cases.BAD_RESPONSE_BODIES.items()
    },
    "half a head": (cases.OK, "again"),
    "endless head": (cases.BAD_RESPONSES["endless head"], "bad"),
}
RESPONSES["no head at all"] = (b"hello", "again")

ROUTING = [
    "Host with a space",
    "Host with a path",
    "Host with user information",
    "Host as a list",
    "Host with two ports",
    "Host with a port that is none",
    "Host of a port only",
    "Host with an open bracket",
    "Host with a broken escape",
    "absolute-form of a port only",
    "fragment in the target",
    "asterisk with GET",
    "absolute-form without authority",
    "absolute-form with user information",
    "absolute-form of another scheme",
]
CONNECTION = ["Connection names Host", "Connection names Content-Length", "Connection names Transfer-Encoding"]
TRAILERS = [f"chunks: trailer {name}" for name in ("Host", "Connection", "Trailer", "Upgrade", "Expect")]
LIMITS = [
    "chunks: extension of 257 bytes",
    "chunks: quoted extension of 257 bytes",
    "chunks: extensions of 257 bytes",
    "chunks: endless trailers",
    "long line",
    "long head",
    "many fields",
]
LOOSE_EXTENSIONS = [
    *(
        f"chunks: {name}"
        for name in cases.BAD_CHUNKS
        if name.startswith("extension b") and "' ;" not in name and "b'\\t" not in name
    ),
    "chunks: last size with an empty extension",
]
LOOSE_TO_LLHTTP = [f"chunks: extension {text!r}" for text in (b";;a", b";=", b";=b", b";a=", b";a=;b", b';a=b"c"')]
HUGE_CHUNKS = ["chunks: 2^63", "chunks: 2^63 + 5", "chunks: 2^64 - 1"]
FRAMED_BODILESS = ["100 with a length", "chunked 103"]
NOT_FOR_A_FORWARDER = ["HTTP/2.0", "CONNECT", "other expectation"]

DIFFERENCES: dict[str, dict[str, dict[str, list[str]]]] = {
    "request": {
        "h11": {
            "skips no empty line before a request, as RFC 9112 section 2.2 asks": ["empty line first"],
            "takes a bare LF as a line end": [
                "bare LF everywhere",
                "bare LF after the request line",
                "bare LF after a field",
                "bare LF as the empty line",
                "chunks: bare LF at the end",
                "chunks: trailer with a bare LF",
            ],
            "lets control characters through": [
                "control character in a value",
                "escape in a value",
                "DEL in a value",
                "chunks: control character in an extension",
                "chunks: NUL in an extension",
                "chunks: bare CR in an extension",
                "chunks: trailer with a control character",
            ],
            "unfolds": [
                "obs-fold with a space",
                "obs-fold with a tab",
                "obs-fold without a value",
                "Transfer-Encoding folded",
                "chunks: folded trailer",
            ],
            "leaves targets and Host to its user": [*ROUTING, "relative target", "authority as the target"],
            "leaves Connection to its user": CONNECTION,
            "merges lengths that say the same": ["Content-Length twice", "Content-Length as a list"],
            "prefers chunked to a length beside it": ["CL.TE", "TE.CL", "TE.CL with zero"],
            "takes longer numbers, being Python": [
                "Content-Length of 19 digits",
                "Content-Length beyond 64 bits",
                "chunks: 17 digits",
                "chunks: 17 digits that overflow",
                *HUGE_CHUNKS,
            ],
            "takes any text as an extension": LOOSE_EXTENSIONS,
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "takes white space behind a chunk size": ["chunks: space behind", "chunks: tab behind"],
            "takes every field as a trailer": [
                *TRAILERS,
                "chunks: trailer Content-Length",
                "chunks: trailer Transfer-Encoding",
            ],
            "has no such limit": LIMITS,
            "is no forwarder": [*NOT_FOR_A_FORWARDER, "HTTP/1.2"],
        },
        "llhttp": {
            "leaves targets and Host to its user": [*ROUTING, "no Host", "two Hosts"],
            "takes several spaces in a request line": ["two spaces before the target", "two spaces before the version"],
            "knows HTTP/0.9 and RTSP": ["no version", "version of another protocol"],
            "skips any number of empty lines, LF alone too": ["two empty lines first", "bare LF first"],
            "leaves Connection to its user": CONNECTION,
            "takes leading zeros of a number without end": ["Content-Length of 19 digits", "chunks: 17 digits"],
            "counts chunks in unsigned numbers": HUGE_CHUNKS,
            "takes extensions without a name, or with nothing or with a quote in its value": LOOSE_TO_LLHTTP,
            "knows other codings": ["Transfer-Encoding as a list"],
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "takes every field as a trailer, but those of the framing": TRAILERS,
            "has no such limit": LIMITS,
            "is no forwarder": NOT_FOR_A_FORWARDER,
        },
    },
    "response": {
        "h11": {
            "takes a bare LF as a line end": ["bare LF", "bare LF in a field"],
            "lets control characters through": [
                "control character in the reason",
                "chunks: control character in an extension",
            ],
            "unfolds": ["obs-fold"],
            "leaves Connection to its user": ["Connection names the framing"],
            "reads no body where a 1xx announces one; a client may wait for it": FRAMED_BODILESS,
            "merges lengths that say the same": ["Content-Length twice", "Content-Length as a list"],
            "prefers chunked to a length beside it": [
                "both framings",
                "both framings, other order",
                "both framings to a 304",
                "both framings to a 204",
            ],
            "takes longer numbers, being Python": ["Content-Length of 19 digits", "chunks: 17 digits", "chunks: 2^63"],
            "takes any text as an extension": ["chunks: empty extension", "chunks: extension with an open quote"],
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "takes white space behind a chunk size": ["chunks: space"],
            "takes every field as a trailer": ["chunks: forbidden trailer"],
            "knows versions to come": ["HTTP/1.2"],
            "has no such limit": [
                "longer than 64 KB",
                "more than 512 fields",
                "endless head",
                "chunks: extension too long",
            ],
        },
        "llhttp": {
            "lets control characters through": ["control character in the reason"],
            "skips any number of empty lines": ["empty line first"],
            "leaves Connection to its user": ["Connection names the framing"],
            "reads no body where a 1xx announces one; a client may wait for it": FRAMED_BODILESS,
            "takes leading zeros of a number without end": [
                "Content-Length of 19 digits",
                "chunks: 17 digits",
                "status 099",
            ],
            "counts chunks in unsigned numbers": ["chunks: 2^63"],
            "knows other codings, and reads until close for them": [
                "Transfer-Encoding gzip",
                "Transfer-Encoding identity",
                "Transfer-Encoding twice",
            ],
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "judges the first bytes of a status line; we wait for the whole head": ["no head at all"],
            "has no such limit": [
                "longer than 64 KB",
                "more than 512 fields",
                "endless head",
                "chunks: extension too long",
            ],
        },
    },
}


def listed(kind: str, name: str) -> set[str]:
    return {reader for reader, reasons in DIFFERENCES[kind].items() for names in reasons.values() if name in names}


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """Byte by byte, and in two at every place; of a long input, where it begins and ends."""
    places = range(1, len(data)) if len(data) < 700 else [*range(1, 200), *range(len(data) - 200, len(data))]
    yield [data[i : i + 1] for i in range(len(data))]
    for place in places:
        yield [data[:place], data[place:]]


def refused(reading: Reading | int) -> bool:
    return isinstance(reading, int) or reading == "bad"


def same_in_pieces(read: Callable[[list[bytes]], Reading | int], whole: Reading | int, pieces: list[bytes]) -> bool:
    """Whether the pieces read like the whole. Which of two faults is seen first, and whether before the head is whole,
    may depend on the pieces; that it is refused may not."""
    in_pieces = read(pieces)
    if whole == "again" and refused(in_pieces):
        return refused(read([b"".join(pieces) + b"\r\n\r\n"]))
    return in_pieces == whole or (refused(in_pieces) and refused(whole))


def test_differences_name_cases_that_exist():
    for kind, table in (("request", REQUESTS), ("response", RESPONSES)):
        for reasons in DIFFERENCES[kind].values():
            for names in reasons.values():
                assert not [name for name in names if name not in table]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request(probe, name):
    data, expected = REQUESTS[name]
    ours = our_request(probe, [data])
    if expected == "ok":
        assert isinstance(ours, Message), ours
    else:
        assert ours == expected
    assert disagreeing(ours, data, request_readers()) == listed("request", name)
    assert not isinstance(ours, Message) or listed("request", name) != set(READERS)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_in_pieces(probe, name):
    data, _ = REQUESTS[name]
    whole = our_request(probe, [data])
    for pieces in cuts(data):
        assert our_request(probe, pieces) == whole, pieces[:2]


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response(probe, name):
    data, expected = RESPONSES[name]
    ours = our_response(probe, [data])
    if expected == "ok":
        assert isinstance(ours, Message), ours
    else:
        assert ours == expected
    assert disagreeing_response(probe, ours, data) == listed("response", name)
    assert not isinstance(ours, Message) or listed("response", name) != set(READERS)


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_in_pieces(probe, name):
    data, _ = RESPONSES[name]
    whole = our_response(probe, [data])
    for pieces in cuts(data):
        assert our_response(probe, pieces) == whole, pieces[:2]


def until_close(probe, data: bytes) -> bool:
    verdict, _, head = probe.parse_response(data)
    return verdict == "ok" and head["framing"] == "close"


def disagreeing_response(probe, ours: Reading | int, data: bytes) -> set[str]:
    if isinstance(ours, Message) and until_close(probe, data):
        # It has no end but the connection's.
        return {name for name, reader in response_readers(closes=True).items() if not ours.same(reader(data))}
    return disagreeing(ours, data, response_readers(closes=False))


def test_a_response_to_head_has_no_body(probe):
    for name, data in cases.GOOD_RESPONSES.items():
        message = our_response(probe, [data], b"HEAD")
        assert isinstance(message, Message), name
        assert (message.body, message.used) == (b"", data.index(b"\r\n\r\n") + 4)


def test_limits_are_exact(probe):
    def verdict(data: bytes, **limits: int) -> object:
        return probe.parse_request(data, **limits)[:2]

    data = b"GET /12345 HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n"
    assert verdict(data, max_request_line=19, max_head=len(data), max_fields=2) == ("ok", len(data))
    assert verdict(data, max_request_line=18) == ("bad", 414)
    assert verdict(data, max_head=len(data) - 1) == ("bad", 431)
    assert verdict(data, max_fields=1) == ("bad", 431)


def test_every_byte_of_a_value_is_looked_at(probe):
    """Values of all lengths, with every byte at every place: they are read eight bytes at a time."""
    for length in range(1, 27):
        for place in range(length):
            for byte in {*range(256)} - {10, 13}:  # which end a line
                value = b"v" * place + bytes([byte]) + b"v" * (length - place - 1)
                verdict = probe.parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + value + b"\r\n\r\n")
                assert verdict[0] == ("ok" if byte == 9 or (byte >= 32 and byte != 127) else "bad"), value


# Differential fuzzing: inputs from a grammar and from mutations, with a fixed seed

NASTY = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b"\t", b" ", b":", b";", b",", b"\x0b", b"\x7f", b"\xff", b"0", b"00", b"0x", b"+",
    b"-", b"/", b"*", b"#", b"http://", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length:",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"chunked", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: x\r\n", b" HTTP/1.1", b" HTTP/1.0", b"HTTP/1.1 100 \r\n\r\n", b"204", b"304", b"GET / HTTP/1.1\r\n", b"\r\n ",
]  # fmt: skip
METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"HEAD", b"TRACE", b"M-SEARCH", b"get", b"CONNECT"]
TARGETS = [
    b"/", b"/a/b?c=d&e=%20", b"//b", b"/a b", b"/%", b"/a#b", b"*", b"http://b", b"http://b:80/x?y", b"http://b?y", b"HTTPS://b/", b"http://u@b/",
    b"http:///", b"http://:80/", b"ftp://b/", b"a", b"a:80", b'/"<>\\^`{|}', b"/\xe9", b"/\x7f", b"?x",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 9 + [
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.10",
    b"HTTP/0.9",
]
HOSTS = [b"a"] * 9 + [
    b"",
    b"a:80",
    b"[::1]:80",
    b"a/b",
    b"a,b",
    b"u@a",
    b"a b",
    b"a:x",
    b":80",
    b"[::1",
    b"a%2",
    b"a\xe9",
]
SPACES = [b" "] * 6 + [b"", b"\t", b" \t ", b"\x0b", b"\xa0"]
ENDS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b" \r\n", b"\t\r\n"]
OTHER_FIELDS = [
    b"Accept:*/*", b"X:", b"X: \xe9\xff", b"X: 1\t2", b"X: \x01", b"X: \x7f", b"X: \x00", b"X : 1", b"X\t: 1", b": 1", b"X", b"X(: 1", b"X_Y: 1",
    b"Connection: close", b"Connection: keep-alive", b"Connection: x, y", b"Connection: host", b"Connection: Content-Length", b"Connection: x y",
    b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: x", b"TE: trailers", b"Trailer: X-Sum",
    b"X-Request-ID: 1", b"Via: 1.1 x", b"Content-Type: text/event-stream", b"Content_Length: 5", b"Transfer_Encoding: chunked", b"Date: x",
]  # fmt: skip
FRAMES = [
    b"", b"", b"Content-Length: %d", b"Content-Length: %d", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked", b"content-length:%d", b"Content-Length: 0%d", b"Content-Length: 0000000000000000000%d", b"Content-Length: +%d",
    b"Content-Length: %d, %d", b"Content-Length: %d\r\nContent-Length: %d", b"Content-Length: %d\r\nTransfer-Encoding: chunked", b"Content-Length: 0x%d",
    b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked\t",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Content-Length: %d ", b"Content-Length: ",
]  # fmt: skip
STATUSES = [b"200 OK", b"200 ", b"200", b"204 No", b"304 Not", b"100 Continue", b"103 Hints", b"404 No", b"500 \xe9", b"299 O\x07", b"099 X", b"20 X",
            b"2000 X", b"101 Switching", b"205 Reset"]  # fmt: skip
SIZE_ENDS = [b"\r\n"] * 20 + [b"\n", b"\r", b" \r\n", b"\t\r\n", b";a=b\r\n", b';a="b c"\r\n', b";\r\n", b" ;a\r\n", b";a\x01\r\n", b";\n\r\n", b";a\nb\r\n",
                              b";" + b"x" * 300 + b"\r\n"]  # fmt: skip
LAST_SIZES = [b"0"] * 12 + [b"000", b"00000000000000000", b"0x0", b"-0", b"+0", b""]
TRAILER_LINES = [
    b"X-Sum: 1\r\n", b"X-Sum:1\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"Connection: close\r\n",
    b"X\r\n", b"X : 1\r\n", b" X: 1\r\n", b"X: 1\n", b"X: \x01\r\n", b"Content-Type: x\r\n",
]  # fmt: skip


def some_chunks(random_: random.Random) -> bytes:
    """A chunked body; now and then something in it is wrong."""
    out = b""
    for _ in range(random_.choice([0, 1, 1, 2])):
        data = random_.choice([b"x", b"hello", b"\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
        size = random_.choice([b"%x", b"%X", b"%x", b"0%x", b"%x", b"%016x", b"%017x", b"1%016x"]) % len(data)
        out += size + random_.choice(SIZE_ENDS) + data + random_.choice(ENDS)
    out += random_.choice(LAST_SIZES) + random_.choice(SIZE_ENDS)
    if random_.random() < 0.25:
        out += random_.choice(TRAILER_LINES)
    return out + random_.choice(ENDS)


def some_message(random_: random.Random, first: bytes, fields: list[bytes]) -> bytes:
    """A head that begins so, with a framing and what may stand behind it."""
    frame = random_.choice(FRAMES)
    lengths = [5] * frame.count(b"%d")
    if b"\r\nContent-Length" in frame and random_.random() < 0.5:
        lengths[-1] = 6
    lines = [*fields, *random_.sample(OTHER_FIELDS, random_.choice([0, 0, 1, 2]))]
    if frame:
        lines.insert(random_.randrange(len(lines) + 1), frame % tuple(lengths))
    head = first + random_.choice(ENDS)
    for line in lines:
        head += line + random_.choice(ENDS)
    body = some_chunks(random_) if b"hunked" in frame else b"hello" if frame else b""
    return head + b"\r\n" + body + random_.choice([b"", b"", b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"])


def some_request(random_: random.Random) -> bytes:
    plain = random_.random() < 0.5
    first = b"%s%s%s%s%s" % (
        random_.choice(METHODS[: 7 if plain else None]),
        b" " if plain else random_.choice(SPACES),
        random_.choice(TARGETS[: 3 if plain else None]),
        b" " if plain else random_.choice(SPACES),
        b"HTTP/1.1" if plain else random_.choice(VERSIONS),
    )
    host = (
        []
        if random_.random() < 0.05
        else [b"Host:" + (b" a" if plain else random_.choice(SPACES) + random_.choice(HOSTS))]
    )
    return some_message(random_, first, host)


def some_response(random_: random.Random) -> bytes:
    plain = random_.random() < 0.5
    version = b"HTTP/1.1" if plain else random_.choice(VERSIONS)
    first = version + (b" " if plain else random_.choice(SPACES)) + random_.choice(STATUSES[: 8 if plain else None])
    return some_message(random_, first, [])


def some_chunked_request(random_: random.Random) -> bytes:
    return cases.POST_CHUNKED + some_chunks(random_)


def mutate(random_: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with one to four changes: bytes replaced, removed, doubled, moved or put in."""
    data = bytearray(random_.choice(corpus))
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(data) + 1)
        end = min(len(data), at + random_.choice([1, 1, 1, 2, 5, 20]))
        change = random_.randrange(6)
        if change == 0:
            data[at:end] = b""
        elif change == 1:
            data[at:at] = data[at:end]
        elif change == 2 and at < len(data):
            data[at] = random_.randrange(256)
        elif change == 3:
            other = random_.choice(corpus)
            start = random_.randrange(len(other) + 1)
            data[at:end] = other[start : start + 30]
        else:
            data[at : random_.choice([at, end])] = random_.choice(NASTY)
    return bytes(data)


def random_cut(data: bytes) -> list[bytes]:
    random_ = random.Random(data)
    places = sorted(random_.randrange(len(data) + 1) for _ in range(3))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


class Input:
    """Some bytes, taken apart as loosely as anybody might, for the predicates that explain a disagreement."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        found = re.search(rb"\n\r?\n", data.lstrip(b"\r\n"))
        skipped = len(data) - len(data.lstrip(b"\r\n"))
        end = skipped + found.end() if found else len(data)
        self.skipped = data[:skipped]
        self.head = data[skipped:end]
        self.behind = data[end:]
        self.first, *self.lines = [line.rstrip(b"\r") for line in self.head.rstrip(b"\r\n").split(b"\n")]
        self.words = self.first.split(b" ")
        self.target = self.words[1] if len(self.words) > 1 else b""
        codings = b"".join(self.values(b"transfer-encoding"))
        self.framing = self.behind if b"hunked" in codings.lower() or b"HUNKED" in codings else b""
        """What stands behind the head, where it may be chunks."""

    def values(self, name: bytes) -> list[bytes]:
        pairs = [line.partition(b":") for line in self.lines]
        return [value.strip(b" \t") for key, colon, value in pairs if colon and key.strip().lower() == name]

    def has(self, pattern: bytes, where: bytes | None = None) -> bool:
        return re.search(pattern, self.head if where is None else where) is not None


def judged(probe, kind: str, data: bytes) -> tuple[Reading | int, dict[str, Reading]]:
    """What we make of it, and what the others do."""
    if kind == "request":
        return our_request(probe, [data]), {name: read(data) for name, read in request_readers().items()}
    ours = our_response(probe, [data])
    closes = isinstance(ours, Message) and until_close(probe, data)
    return ours, {name: read(data) for name, read in response_readers(closes=closes).items()}


def disagreements(probe, kind: str, data: bytes) -> list[tuple[str, str]]:
    """Which readers judge otherwise, and how: they take what we refuse or still wait for the end of, refuse what we take, or
    read it otherwise."""
    ours, others = judged(probe, kind, data)
    if not isinstance(ours, Message):
        return [(name, "takes") for name, other in others.items() if isinstance(other, Message)]
    wrong = disagreeing(ours, data, request_readers()) if kind == "request" else disagreeing_response(probe, ours, data)
    return [(name, "reads otherwise" if isinstance(others[name], Message) else "refuses") for name in sorted(wrong)]


@dataclass(frozen=True)
class Known:
    """A disagreement that is meant to be: who, how, why, which inputs it is about, and one that nothing else explains."""

    kind: str
    reader: str
    how: str
    why: str
    about: Callable[[Input], bool]
    example: bytes

    def explains(self, kind: str, reader: str, how: str, data: bytes) -> bool:
        return (self.kind, self.reader, self.how) == (kind, reader, how) and self.about(Input(data))


CONTROL = rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
HOST = re.compile(rb"(?:\[[-._~!$&'()*+;=%:0-9A-Za-z]+\]|(?:[-._~!$&'()*+;=0-9A-Za-z]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?")
SOURCES = ["request grammar", "request mutation", "request chunks", "response grammar", "response mutation"]


def good_target(given: Input) -> bool:
    method, target = given.words[0], given.target
    found = re.fullmatch(rb"(?i:https?)://([^/?]*)(?:[/?].*)?", target)
    return b"#" not in target and (
        target.startswith(b"/")
        or (target == b"*" and method == b"OPTIONS")
        or (found is not None and HOST.fullmatch(found[1]) is not None)
    )


def inputs(source: str, seed: int, count: int = 0) -> Iterable[bytes]:
    """What a source gives for a seed."""
    kind, _, way = source.partition(" ")
    random_ = random.Random(f"{source} {seed}")
    corpus = [data for data, _ in (REQUESTS if kind == "request" else RESPONSES).values() if len(data) < 2000]
    for _ in range(count or INPUTS):
        if way == "mutation":
            data = mutate(random_, corpus)
        elif way == "chunks":
            data = some_chunked_request(random_)
        else:
            data = some_request(random_) if kind == "request" else some_response(random_)
        yield data


TOKENS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
NOT_IN_TRAILERS = re.compile(
    rb"(?im)^(?:host|connection|content-(?:length|type)|transfer-encoding|te|trailer|upgrade|expect|keep-alive|http2-settings"
    rb"|forwarded|x-real-ip|x-forwarded-(?:for|host|proto)|proxy-(?:connection|authenticate|authorization)):"
)
CHUNK_LINE = rb"(?im)^[0-9a-f]+"
EXTENSION = TOKENS.pattern + rb"(?:=(?:" + TOKENS.pattern + rb'|"(?:[^"\\\r\n]|\\[^\r\n])*"))?'


def connection_members(given: Input) -> list[bytes]:
    members = b",".join(given.values(b"connection")).split(b",")
    return [member.strip(b" \t").lower() for member in members if member.strip(b" \t")]


def framing_is_hop_by_hop(given: Input) -> bool:
    return not {b"host", b"content-length", b"transfer-encoding"}.isdisjoint(connection_members(given))


def connection_is_no_list(given: Input) -> bool:
    return not all(TOKENS.fullmatch(member) for member in connection_members(given))


def bare_lf(given: Input) -> bool:
    return any(given.has(rb"(?<!\r)\n", part) for part in (given.skipped, given.head, given.framing))


def folded(given: Input) -> bool:
    return given.has(rb"\n[ \t]") or given.has(rb"\n[ \t]", given.framing)


def control(given: Input) -> bool:
    return given.has(CONTROL) or given.has(CONTROL, given.framing)


def lengths(given: Input) -> list[bytes]:
    return [value.strip(b" \t") for value in b",".join(given.values(b"content-length")).split(b",")]


def same_lengths(given: Input) -> bool:
    return len(lengths(given)) > 1 and len(set(lengths(given))) == 1


def both_framings(given: Input) -> bool:
    return bool(given.values(b"content-length") and given.values(b"transfer-encoding"))


def long_number(given: Input) -> bool:
    return any(len(value) > 18 for value in lengths(given)) or given.has(
        rb"(?im)^(?:[0-9a-f]{17}|[89a-f][0-9a-f]{15})", given.framing
    )


def old_chunked(given: Input) -> bool:
    return b"HTTP/1.0" in given.first and bool(given.values(b"transfer-encoding"))


def other_coding(given: Input) -> bool:
    return any(value.lower() != b"chunked" for value in given.values(b"transfer-encoding"))


def two_codings(given: Input) -> bool:
    return len(given.values(b"transfer-encoding")) > 1


def space_behind_size(given: Input) -> bool:
    return given.has(CHUNK_LINE + rb"[ \t]+[;\r\n]", given.framing)


def forbidden_trailer(given: Input) -> bool:
    return NOT_IN_TRAILERS.search(given.framing) is not None


def long_extension(given: Input) -> bool:
    return given.has(CHUNK_LINE + rb";[^\r\n]{257,}", given.framing)


def many_fields(given: Input) -> bool:
    return len(given.lines) > 128


def many_response_fields(given: Input) -> bool:
    return len(given.lines) > 512


def no_target(given: Input) -> bool:
    return not good_target(given)


def no_host(given: Input) -> bool:
    return any(value and not HOST.fullmatch(value) for value in given.values(b"host"))


def not_one_host(given: Input) -> bool:
    count = len(given.values(b"host"))
    return count > 1 or (count == 0 and not given.first.endswith(b"HTTP/1.0"))


def other_version(given: Input) -> bool:
    return not given.has(rb" HTTP/1\.[01]$", given.first)


def other_response_version(given: Input) -> bool:
    return not given.has(rb"^HTTP/1\.[01]", given.first)


def connect(given: Input) -> bool:
    return given.first.startswith(b"CONNECT")


def other_expectation(given: Input) -> bool:
    return any(value.lower() != b"100-continue" for value in given.values(b"expect"))


def blank_lines(given: Input) -> bool:
    return given.skipped not in (b"", b"\r\n")


def one_blank_line(given: Input) -> bool:
    return given.skipped == b"\r\n"


def empty_line_first(given: Input) -> bool:
    return given.skipped != b""


def spaces(given: Input) -> bool:
    return b"  " in given.first


def upgrade(given: Input) -> bool:
    return b"upgrade" in connection_members(given) and bool(given.values(b"upgrade"))


def odd_method(given: Input) -> bool:
    return given.words[0] not in METHODS or given.words[0].islower()


def loose_extension(given: Input) -> bool:
    return given.has(CHUNK_LINE + rb";(?!" + EXTENSION + rb"(?:;" + EXTENSION + rb")*\r)", given.framing)


def cr_in_extension(given: Input) -> bool:
    return given.has(CHUNK_LINE + rb";[^\n]*\r(?!\n)", given.framing)


def coding_before_tab(given: Input) -> bool:
    return given.has(rb"(?i)transfer-encoding:[ \t]*chunked[ ]*\t")


def bodiless_with_framing(given: Input) -> bool:
    return given.has(rb"^HTTP/1\.[01] 1\d\d", given.first) and bool(
        given.values(b"transfer-encoding") or given.values(b"content-length")
    )


def switching(given: Input) -> bool:
    return given.has(rb"^HTTP/1\.[01] 101", given.first)


def status_099(given: Input) -> bool:
    return given.has(rb"^HTTP/1\.[01] 0\d\d", given.first)


KNOWN = [
    Known(
        "request",
        "h11",
        "refuses",
        "one empty line may stand before a request (9112 2.2); it takes none",
        one_blank_line,
        b"\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "Connection may not name Host or a framing field; they leave Connection to their user",
        framing_is_hop_by_hop,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "a member of Connection is a token; they leave Connection to their user",
        connection_is_no_list,
        b"GET / HTTP/1.0\r\nConnection:Ckeep-al ve\r\n\r\n",
    ),
    Known("request", "h11", "takes", "a line ends with CRLF; it takes a bare LF", bare_lf, b"GET / HTTP/1.0\n\r\n"),
    Known(
        "request", "h11", "takes", "no line is folded; it unfolds", folded, b"GET / HTTP/1.1\r\nHost:\r\n u@a\r\n\r\n"
    ),
    Known(
        "request",
        "h11",
        "takes",
        "no control characters in fields, reasons and extensions; it lets them through",
        control,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "no bare CR in an extension; it takes one",
        cr_in_extension,
        b"POST /x HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "Content-Length once; it merges lengths that say the same",
        same_lengths,
        b"PT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "one framing; it prefers chunked",
        both_framings,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "18 digits of a length, 16 of a chunk size below 2^63; it takes more, leading zeros or being Python",
        long_number,
        b"POT /x HTTP/1.1\r\nHost:a\r\nContent-Length: 0000000000000000001\r\n\r\nx",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "no chunked in 1.0, where many do not know it",
        old_chunked,
        b"PST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "no white space behind a chunk size",
        space_behind_size,
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\t\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "no framing, routing or connection fields in trailers; it takes them",
        forbidden_trailer,
        b"POST /x HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "an extension has at most 256 bytes; it has no such limit",
        long_extension,
        b"OST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "a request head has at most 128 fields; it has no such limit",
        many_fields,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 128 + b"\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "a target is in origin-form, absolute-form of http, or `*` of OPTIONS; it leaves that to its user",
        no_target,
        b"T ,/ HTTP/1.0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "Host is a host and perhaps a port; it leaves that to its user",
        no_host,
        b"GET / HTTP/1.1\r\nHost:%4\r\n\r\n",
    ),
    Known("request", "h11", "takes", "no CONNECT; it is no forwarder", connect, b"CONNECT / HTTP/1.0\r\n\r\n"),
    Known(
        "request",
        "h11",
        "takes",
        "no expectation but 100-continue; it is no forwarder",
        other_expectation,
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "HTTP/1.0 and 1.1 only; it knows 0.9, 2.0 and others",
        other_version,
        b"GET / HTTP/1.2\r\nHost:a\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "reads otherwise",
        "an upgrade with a body is an ordinary request; it stops behind the head, for its user to decide",
        upgrade,
        b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 05\r\n\r\nhello",
    ),
    Known(
        "request",
        "llhttp",
        "refuses",
        "a tab behind a value is white space (9110 5.6.3); it knows the space only",
        coding_before_tab,
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "request", "llhttp", "refuses", "any token is a method; it knows a list", odd_method, b"GE / HTTP/1.0\r\n\r\n"
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "Connection may not name Host or a framing field; they leave Connection to their user",
        framing_is_hop_by_hop,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "a member of Connection is a token; they leave Connection to their user",
        connection_is_no_list,
        b"GET / HTTP/1.0\r\nConnection:Ckeep-al ve\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "18 digits of a length, 16 of a chunk size below 2^63; it takes more, leading zeros or being Python",
        long_number,
        b"POST /x HTTP/1.1\r\nHost:\r\nContent-Length: 0000000000000000001\r\n\r\nx",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "no chunked in 1.0, where many do not know it",
        old_chunked,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "`chunked` is the only coding; it knows others",
        other_coding,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:zip, chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "no framing, routing or connection fields in trailers; it takes them",
        forbidden_trailer,
        b"POST /x HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "an extension has at most 256 bytes; it has no such limit",
        long_extension,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "a request head has at most 128 fields; it has no such limit",
        many_fields,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 128 + b"\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "a target is in origin-form, absolute-form of http, or `*` of OPTIONS; it leaves that to its user",
        no_target,
        b"PUT http:/// HTTP/1.0\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "Host is a host and perhaps a port; it leaves that to its user",
        no_host,
        b"GET / HTTP/1.1\r\nHost:%4\r\n\r\n",
    ),
    Known("request", "llhttp", "takes", "no CONNECT; it is no forwarder", connect, b"CONNECT / HTTP/1.0\r\n\r\n"),
    Known(
        "request",
        "llhttp",
        "takes",
        "no expectation but 100-continue; it is no forwarder",
        other_expectation,
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "HTTP/1.0 and 1.1 only; it knows 0.9, 2.0 and others",
        other_version,
        b"GET /\r\nHost:a\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "one Host in 1.1; it leaves that to its user",
        not_one_host,
        b"PUT / HTTP/1.1\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "one empty line at most before a request; it skips any number",
        blank_lines,
        b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "one space between the parts of a request line; it takes several",
        spaces,
        b"GET /  HTTP/1.1\r\nHost: \r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "an upgrade with a body is an ordinary request; it stops behind the head, for its user to decide",
        upgrade,
        b"DELETE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n0x0\r\n\r\n",
    ),
    Known(
        "request",
        "h11",
        "takes",
        "an extension is a name, and a token or a quoted string as its value, without white space; it takes any text",
        loose_extension,
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "request",
        "llhttp",
        "takes",
        "an extension has a name, and a token or a quoted string as its value; it takes an empty name or value, and a quote behind a token",
        loose_extension,
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "an extension is a name, and a token or a quoted string as its value, without white space; it takes any text",
        loose_extension,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "an extension has a name, and a token or a quoted string as its value; it takes an empty name or value, and a quote behind a token",
        loose_extension,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\r\nhello\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "refuses",
        "the reader of heads takes any 101; it takes one only where it asked, and so does the engine",
        switching,
        b"HTTP/1.1 101 Switching\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "Connection may not name Host or a framing field; they leave Connection to their user",
        framing_is_hop_by_hop,
        b"HTTP/1.1 204 No\r\nConnection: host\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "a member of Connection is a token; they leave Connection to their user",
        connection_is_no_list,
        b"HTTP/1.1 204 No\r\nConnection: x y\r\n\r\n",
    ),
    Known("response", "h11", "takes", "a line ends with CRLF; it takes a bare LF", bare_lf, b"HTTP/1.1 204 No\n\r\n"),
    Known(
        "response",
        "h11",
        "takes",
        "no line is folded; it unfolds",
        folded,
        b"HTTP/1.1 204 No\r\nX:\r\n Upgrade: h2c\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no control characters in fields, reasons and extensions; it lets them through",
        control,
        b"HTTP/1.1 100 Contin\x7f\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no bare CR in an extension; it takes one",
        cr_in_extension,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0;z\rm: 1\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "Content-Length once; it merges lengths that say the same",
        same_lengths,
        b"HTTP/1.1 200\r\nContent-Length: 5, 5\r\n\r\nhello",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "one framing; it prefers chunked",
        both_framings,
        b"HTTP/1.1 200\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "18 digits of a length, 16 of a chunk size below 2^63; it takes more, leading zeros or being Python",
        long_number,
        b"HTTP/1.1 200\r\nContent-Length: 00000000000000000005\r\n\r\nhello",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no chunked in 1.0, where many do not know it",
        old_chunked,
        b"HTTP/1.0 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no white space behind a chunk size",
        space_behind_size,
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\t\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no framing, routing or connection fields in trailers; it takes them",
        forbidden_trailer,
        b"HTTP/1.1 200 \t\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "an extension has at most 256 bytes; it has no such limit",
        long_extension,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding:chunked\r\n\r\n4\r\ngood\r\n4;" + b"x" * 300 + b"\r\nevil\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "a response head has at most 512 fields; it has no such limit",
        many_response_fields,
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 512 + b"Content-Length: 5\r\n\r\nhello",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "HTTP/1.0 and 1.1 only; it knows others",
        other_response_version,
        b"HTTP/0.9 204 No\r\n\r\n",
    ),
    Known(
        "response",
        "h11",
        "takes",
        "no framing in a 1xx; it leaves it out, where others wait for a body",
        bodiless_with_framing,
        b"HTTP/1.1 103 Hints\r\ncontent-length:5\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "refuses",
        "a tab behind a value is white space (9110 5.6.3); it knows the space only",
        coding_before_tab,
        b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "Connection may not name Host or a framing field; they leave Connection to their user",
        framing_is_hop_by_hop,
        b"HTTP/1.1 204 No\r\nConnection: host\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "a member of Connection is a token; they leave Connection to their user",
        connection_is_no_list,
        b"HTTP/1.1 204 No\r\nConnection: x y\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "no control characters in fields, reasons and extensions; it lets them through",
        control,
        b"HTTP/1.1 103 E\x00a>\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "18 digits of a length, 16 of a chunk size below 2^63; it takes more, leading zeros or being Python",
        long_number,
        b"HTTP/1.1 200\r\nContent-Length: 00000000000000000005\r\n\r\nhello",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "no chunked in 1.0, where many do not know it",
        old_chunked,
        b"HTTP/1.0 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "`chunked` is the only coding; it knows others",
        other_coding,
        b"HTTP/1.1 304 Not\r\nTransfer-Encoding: identity\r\n\r\nhello",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "one Transfer-Encoding; it joins several",
        two_codings,
        b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "no framing, routing or connection fields in trailers; it takes them",
        forbidden_trailer,
        b"HTTP/1.1 200 \t\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "an extension has at most 256 bytes; it has no such limit",
        long_extension,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n4;" + b"x" * 300 + b"\r\nevil\r\n0\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "a response head has at most 512 fields; it has no such limit",
        many_response_fields,
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 512 + b"Content-Length: 5\r\n\r\nhello",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "HTTP/1.0 and 1.1 only; it knows others",
        other_response_version,
        b"HTTP/0.9 204 No\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "no empty line before a response; it skips them",
        empty_line_first,
        b"\rHTTP/1.1 100 Continue\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "no framing in a 1xx; it leaves it out, where others wait for a body",
        bodiless_with_framing,
        b"HTTP/1.1 103 Hints\r\ncontent-length:5\r\n\r\n",
    ),
    Known(
        "response",
        "llhttp",
        "takes",
        "a status is 100 to 999; it takes 099",
        status_099,
        b"HTTP/1.1 099 X\r\ncontent-length:5\r\n\r\nhello",
    ),
]


def test_known_disagreements_are_needed(probe):
    for known in KNOWN:
        assert (known.reader, known.how) in disagreements(probe, known.kind, known.example), known
        explained = [other for other in KNOWN if other.explains(known.kind, known.reader, known.how, known.example)]
        assert explained == [known]


def test_known_disagreements_are_in_the_documentation():
    page = (Path(__file__).parents[1] / "docs" / "http.md").read_text()
    assert [known.why for known in KNOWN if known.why not in page] == []


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("source", SOURCES)
def test_generated_inputs(probe, source, seed):
    kind = source.partition(" ")[0]
    read = our_request if kind == "request" else our_response
    taken = 0
    for data in inputs(source, seed):
        ours, _ = judged(probe, kind, data)
        assert same_in_pieces(lambda pieces: read(probe, pieces), ours, random_cut(data)), data
        found = disagreements(probe, kind, data)
        for reader, how in found:
            assert any(known.explains(kind, reader, how, data) for known in KNOWN), (reader, how, data, ours)
        if isinstance(ours, Message):
            taken += 1
            if data.startswith(b"\r\n"):
                found = disagreements(probe, kind, data.removeprefix(b"\r\n"))  # which h11 cannot judge
            assert len({reader for reader, _ in found}) < len(READERS), (data, ours)
    assert taken > INPUTS // 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3])
def test_mutated_chunks_are_read_alike_in_any_pieces(probe, seed):
    random_ = random.Random(seed)
    corpus = [data for data, _ in cases.GOOD_CHUNKS.values()] + list(cases.BAD_CHUNKS.values())
    for _ in range(INPUTS):
        data = mutate(random_, corpus)
        whole = read_body(probe, {"framing": "chunked"}, data, [])
        assert read_body(probe, {"framing": "chunked"}, b"", random_cut(data)) == whole, data
        assert read_body(probe, {"framing": "chunked"}, b"", [bytes([byte]) for byte in data]) == whole, data
