"""Rules A2, A4 and C2 in the engine's own readers, opened by the probe, against two other readers: h11 and llhttp.

Each input is read at once, byte by byte and cut in two at every place, always with the same result. What we accept, at least
one of the others accepts with the same method, target, fields, body and end. Where one of them judges otherwise, DIFFERENCES
says why; a difference that is not listed fails, and so does a listed one that is gone.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cases
import h11
import httptools
import pytest

MUTATION_SECONDS = 3.0


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
LIMITS = ["chunks: extension of 257 bytes", "chunks: endless trailers", "long line", "long head", "many fields"]
FRAMED_BODILESS = ["204 with a length", "chunked 204", "100 with a length", "chunked 103"]
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
            ],
            "compares codings without case; a backend might not": ["Transfer-Encoding in capitals"],
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
            "knows other codings": ["Transfer-Encoding as a list"],
            "compares codings without case; a backend might not": ["Transfer-Encoding in capitals"],
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
            "reads no body where a 1xx or 204 announces one; a client may wait for it": FRAMED_BODILESS,
            "merges lengths that say the same": ["Content-Length twice", "Content-Length as a list"],
            "prefers chunked to a length beside it": [
                "both framings",
                "both framings, other order",
                "both framings to a 304",
            ],
            "takes longer numbers, being Python": ["Content-Length of 19 digits", "chunks: 17 digits"],
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "takes white space behind a chunk size": ["chunks: space"],
            "takes every field as a trailer": ["chunks: forbidden trailer"],
            "knows versions to come": ["HTTP/1.2"],
            "has no such limit": [
                "longer than 32 KB",
                "more than 128 fields",
                "endless head",
                "chunks: extension too long",
            ],
        },
        "llhttp": {
            "lets control characters through": ["control character in the reason"],
            "skips any number of empty lines": ["empty line first"],
            "leaves Connection to its user": ["Connection names the framing"],
            "reads no body where a 1xx or 204 announces one; a client may wait for it": FRAMED_BODILESS,
            "takes leading zeros of a number without end": [
                "Content-Length of 19 digits",
                "chunks: 17 digits",
                "status 099",
            ],
            "knows other codings, and reads until close for them": [
                "Transfer-Encoding gzip",
                "Transfer-Encoding identity",
                "Transfer-Encoding twice",
            ],
            "takes chunked in 1.0, where many do not know it": ["Transfer-Encoding in 1.0"],
            "judges the first bytes of a status line; we wait for the whole head": ["no head at all"],
            "has no such limit": [
                "longer than 32 KB",
                "more than 128 fields",
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


# Mutations

NASTY = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b"\t", b" ", b":", b";", b",", b"\x0b", b"\x7f", b"\xff", b"0", b"00", b"0x", b"+",
    b"-", b"/", b"*", b"#", b"http://", b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length:",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"chunked", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: x\r\n", b" HTTP/1.1", b" HTTP/1.0", b"HTTP/1.1 100 \r\n\r\n", b"204", b"304", b"GET / HTTP/1.1\r\n", b"\r\n ",
]  # fmt: skip


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


def mutations(seed: int, table: dict[str, tuple[bytes, object]]) -> Iterable[bytes]:
    corpus = [data for data, _ in table.values() if len(data) < 2000]
    random_ = random.Random(seed)
    end = time.monotonic() + MUTATION_SECONDS
    while time.monotonic() < end:
        yield mutate(random_, corpus)


def random_cut(data: bytes) -> list[bytes]:
    random_ = random.Random(data)
    places = sorted(random_.randrange(len(data) + 1) for _ in range(3))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.parametrize("seed", [1])
def test_mutated_requests(probe, seed):
    seen = taken = 0
    for mutated in mutations(seed, REQUESTS):
        # h11 takes no empty line first, llhttp few methods: one of them must be able to judge.
        data = re.sub(rb"^(\r\n)+", b"", mutated)
        ours = our_request(probe, [data])
        assert same_in_pieces(lambda pieces: our_request(probe, pieces), ours, random_cut(data)), data
        seen += 1
        if isinstance(ours, Message):
            taken += 1
            assert any(agrees(reader, ours, data) for reader in request_readers().values()), (data, ours)
    assert seen > 200
    assert taken > seen // 50


@pytest.mark.parametrize("seed", [2])
def test_mutated_responses(probe, seed):
    seen = taken = 0
    for data in mutations(seed, RESPONSES):
        ours = our_response(probe, [data])
        assert same_in_pieces(lambda pieces: our_response(probe, pieces), ours, random_cut(data)), data
        seen += 1
        if isinstance(ours, Message):
            taken += 1
            assert disagreeing_response(probe, ours, data) != set(READERS), (data, ours)
    assert seen > 200
    assert taken > seen // 50


@pytest.mark.parametrize("seed", [3])
def test_mutated_chunks_are_read_alike_in_any_pieces(probe, seed):
    corpus = {name: (data, 0) for name, (data, _) in cases.GOOD_CHUNKS.items()}
    corpus.update({name: (data, 0) for name, data in cases.BAD_CHUNKS.items()})
    for count, data in enumerate(mutations(seed, corpus)):
        whole = read_body(probe, {"framing": "chunked"}, data, [])
        assert read_body(probe, {"framing": "chunked"}, b"", random_cut(data)) == whole, data
        assert read_body(probe, {"framing": "chunked"}, b"", [bytes([byte]) for byte in data]) == whole, data
        if count > 20_000:
            break
