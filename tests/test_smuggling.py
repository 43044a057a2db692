"""Request smuggling, response splitting and desync: the known families, as raw bytes through a real proxy.

Behind the proxy is a strict backend (strict.py) that fails a test where it gets a request that the client's bytes do not plainly
hold. In front of it are two connections: the attacker's, and one of an innocent client that shares the pool of upstreams and
asks right after each attack; it must get its own answer and nothing else. After each case the proxy has to be at rest, with
every descriptor accounted for. What a hidden request would ask for is /smuggled; nobody may ever see it asked.

Faults that broken heads and chunks have by themselves are in cases.py; here they stand before something hidden.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from harness import Backend, Client, Connection, Proxy, wait_until
from strict import Strict, plainly_contained

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: abc\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
X = (b"POST", b"/x", b"")
NEXT_SEEN = (b"GET", b"/next", b"")


class Scene:
    """The proxy, the strict backend behind it, and what has to be the same after each case."""

    def __init__(self, proxy: Proxy, backend: Backend, strict: Strict) -> None:
        self.proxy = proxy
        self.backend = backend
        self.strict = strict
        self.ids = itertools.count()
        self.at_rest = self.descriptors()

    def descriptors(self) -> float:
        """Descriptors of the proxy that are not idle upstreams; they are counted at rest."""
        self.proxy.settled()
        upstreams = self.proxy.metric("llmpipe_upstreams")
        return self.proxy.descriptors() - upstreams

    def innocent(self, client: Client) -> None:
        """One request of somebody else: the answer is to this one, and nothing comes behind it."""
        name = b"innocent-%d" % next(self.ids)
        client.send(b"GET /innocent HTTP/1.1\r\nHost: b\r\nX-Request-ID: " + name + b"\r\n\r\n")
        response = client.read_response()
        assert (response.status, response.body) == (200, b"GET /innocent  [" + name + b"]"), response.raw
        assert response.values(b"x-request-id") == [name]
        assert client.silent(0.001)

    def check(self, sent: bytes, forwarded: list[tuple[bytes, bytes, bytes]], *, partial: bool = False) -> None:
        """Compares what reached the backend with what should have, and waits until the proxy is at rest."""
        self.proxy.settled()
        wait_until(
            lambda: (
                not self.proxy.metrics()["llmpipe_buffers_held"]
                and self.proxy.descriptors() - self.proxy.metrics()["llmpipe_upstreams"] == self.at_rest
            ),
            what="descriptors and buffers at rest",
        )
        # What the backend has of a request that broke off is written down when its connection has ended there too.
        self.backend.catch_up()
        wait_until(
            lambda: len(self.backend.connections) - len(self.strict.ended) == self.proxy.metrics()["llmpipe_upstreams"],
            what="the backend has seen its connections end",
        )
        self.backend.check()
        seen = [request for request in self.strict.requests if request.target != b"/innocent"]
        assert [request.short for request in seen] == forwarded
        assert [request.target for request in self.strict.requests].count(b"/smuggled") == 0
        for request in seen:
            plainly_contained(request, sent)
        assert partial or not self.strict.partial
        for raw in self.strict.partial:
            assert raw.startswith(b"POST "), raw
            assert b"/smuggled HTTP/1.1\r\nHost: abc\r\nX-F" not in raw, raw


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    strict = Strict()
    with Backend(strict) as backend, Proxy(backend.url, options=["--max-body", "1MB"]) as proxy:
        yield Scene(proxy, backend, strict)


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.strict.clear()
    shared.backend.errors.clear()


@pytest.fixture
def attacker(scene: Scene) -> Iterator[Client]:
    with Client(scene.proxy) as client:
        yield client


@pytest.fixture
def other(scene: Scene) -> Iterator[Client]:
    """The innocent client, whose connection is older than the attack."""
    with Client(scene.proxy) as client:
        scene.innocent(client)
        yield client


def check_refused(client: Client, status: int) -> None:
    """The proxy's own answer, and the end of the connection."""
    response = client.read_response()
    assert response.status == status, response.raw
    assert response.values(b"connection") == [b"close"]
    assert set(json.loads(response.body)) == {"error"}
    assert client.read_eof() == b""


def check_answers(client: Client, forwarded: list[tuple[bytes, bytes, bytes]]) -> None:
    """One answer for each request, to that request."""
    for method, target, body in forwarded:
        response = client.read_response(method.decode())
        expected = b"" if method == b"HEAD" else b"%s %s %s [%s]" % (
            method, target, body, response.values(b"x-request-id")[0]
        )  # fmt: skip
        assert (response.status, response.body) == (200, expected), response.raw


# What a client sends


@dataclass
class Attack:
    """Bytes of a client, and all that may come of them."""

    sent: bytes
    forwarded: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    status: int | None = 400  # of the refusal behind the forwarded ones; None for none: the connection is free
    closes: bool = False  # without a refusal


def framed(line: bytes, behind: bytes = LAST + HIDDEN, *, start: bytes = POST) -> bytes:
    """A request with this framing line and this behind its head."""
    return start + line + b"\r\n\r\n" + behind


BODY = LAST + HIDDEN
LENGTH = b"Content-Length: %d\r\n" % len(BODY)

# Lines that some readers take for chunked and others do not. With a length beside it the one sees the end at the last chunk
# and a request behind it, the other a longer body.
OBSCURED = [
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\t: chunked",
    b"Transfer-Encoding\x0b: chunked",
    b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding\xa0: chunked",
    b"Transfer-Encoding\r\n : chunked",
    b"Transfer-Encoding\n: chunked",
    b"Transfer-Encoding\r: chunked",
    b" Transfer-Encoding: chunked",
    b"\tTransfer-Encoding: chunked",
    b"\x0bTransfer-Encoding: chunked",
    b"\x00Transfer-Encoding: chunked",
    b"\xef\xbb\xbfTransfer-Encoding: chunked",
    b"Transfer Encoding: chunked",
    b"Transfer\xadEncoding: chunked",
    b"Transfer-Encoding chunked",
    b"Transfer-Encoding; chunked",
    b"Transfer-Encoding= chunked",
    b"Transfer-Encoding:: chunked",
    b"Transfer-Encoding(x): chunked",
    b'"Transfer-Encoding": chunked',
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding:\x0cchunked",
    b"Transfer-Encoding: \x00chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: chunked\x0b",
    b"Transfer-Encoding: chunked\x0c",
    b"Transfer-Encoding: chunked\x1f",
    b"Transfer-Encoding: chunked\x7f",
    b"Transfer-Encoding: \xa0chunked",
    b"Transfer-Encoding: chunked\xa0",
    b"Transfer-Encoding: chunked\x85",
    b"Transfer-Encoding: \xef\xbb\xbfchunked",
    b"Transfer-Encoding: c\xc2\xadhunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunkedx",
    b"Transfer-Encoding: x chunked",
    b"Transfer-Encoding: chunked x",
    b"Transfer-Encoding: chunked\tchunked",
    b"Transfer-Encoding: chunked;",
    b"Transfer-Encoding: chunked; q=0",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: chunked,chunked",
    b"Transfer-Encoding: 'chunked'",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: chunk",
    b"Transfer-Encoding: chunked-false",
    b"Transfer-Encoding: %63hunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: none",
    b"Transfer-Encoding:",
    b"Transfer-Encoding: \r\n chunked",
    b"Transfer-Encoding:\r\n\tchunked",
    b"Transfer-Encoding: chunked\r\n ",
    b"Transfer-Encoding: chunked\r\n , identity",
    b"Transfer-Encoding: x\r\n chunked",
    b"Transfer-Encoding: \nchunked",
    b"Transfer-Encoding: chunked\n",
    b"Transfer-Encoding: chunked\r",
    b"Transfer-Encoding: \rchunked",
    b"Transfer-Encoding: chun\rked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\r\rTransfer-Encoding: chunked",
    b"X: y\r\r\nTransfer-Encoding: chunked",
    b"X: y\n\rTransfer-Encoding: chunked",
    b"X: y\x00Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: identity\r\ntransfer-encoding: chunked",
    b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding:",
    b"Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
]
# Other names: no framing, whatever they look like.
NOT_FRAMING = [
    b"Transfer_Encoding: chunked",
    b"TransferEncoding: chunked",
    b"Transfer-Encoding-: chunked",
    b"Transfer--Encoding: chunked",
    b"X-Transfer-Encoding: chunked",
    b"Content-Transfer-Encoding: chunked",
    b"Content-Encoding: chunked",
    b"Transfer.Encoding: chunked",
    b"X: Transfer-Encoding: chunked",
    b"TE: chunked",
    b"Trailer: Transfer-Encoding",
]
# The one coding, in any case (RFC 9112 section 7), with optional white space as RFC 9110 section 5.6.3 has it.
PLAIN = [
    b"Transfer-Encoding: chunked",
    b"transfer-ENCODING:chunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: \t chunked \t",
    b"Transfer-Encoding: chunKed",
    b"transfer-encoding:CHUNKED\t",
]

TE: dict[str, Attack] = {}
for _line in OBSCURED:
    TE[f"alone {_line!r}"] = Attack(framed(_line))
    TE[f"CL.TE {_line!r}"] = Attack(framed(LENGTH + _line, BODY))
    TE[f"TE.CL {_line!r}"] = Attack(framed(_line + b"\r\n" + LENGTH[:-2], BODY))
for _line in PLAIN:
    TE[f"CL.TE {_line!r}"] = Attack(framed(LENGTH + _line, BODY))
    TE[f"TE.CL {_line!r}"] = Attack(framed(_line + b"\r\nContent-Length: 4", b"5c\r\n" + HIDDEN + LAST))
    TE[f"alone {_line!r}"] = Attack(framed(_line, LAST + NEXT), [X, NEXT_SEEN], None)
for _line in NOT_FRAMING:
    TE[f"CL.TE {_line!r}"] = Attack(framed(LENGTH + _line, BODY + NEXT), [(b"POST", b"/x", BODY), NEXT_SEEN], None)
    TE[f"alone {_line!r}"] = Attack(framed(_line), [X])
TE |= {
    "chunked in 1.0": Attack(framed(CHUNKED[:-2], start=b"POST /x HTTP/1.0\r\nHost: a\r\n")),
    "chunked in 1.0 with a length": Attack(framed(LENGTH + CHUNKED[:-2], start=b"POST /x HTTP/1.0\r\nHost: a\r\n")),
    "chunked in 1.0 that stays open": Attack(
        framed(b"Connection: keep-alive\r\n" + CHUNKED[:-2], start=b"POST /x HTTP/1.0\r\n")
    ),
    "chunked in 2.0": Attack(framed(CHUNKED[:-2], start=b"POST /x HTTP/2.0\r\nHost: a\r\n"), status=505),
    "chunked in 0.9": Attack(framed(CHUNKED[:-2], start=b"POST /x HTTP/0.9\r\nHost: a\r\n"), status=505),
    "chunked in 1.10": Attack(framed(CHUNKED[:-2], start=b"POST /x HTTP/1.10\r\nHost: a\r\n")),
    "Transfer-Encoding as a trailer": Attack(framed(CHUNKED[:-2], b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + HIDDEN)),
    "Content-Length as a trailer": Attack(framed(CHUNKED[:-2], b"0\r\nContent-Length: 37\r\n\r\n" + HIDDEN)),
    "Host as a trailer": Attack(framed(CHUNKED[:-2], b"0\r\nHost: b\r\n\r\n" + HIDDEN)),
    "the framing behind the head": Attack(framed(b"X: y", CHUNKED + b"\r\n" + HIDDEN), [X]),
}

LENGTHS = [
    b"+37", b"-37", b"-0", b"- 37", b"3 7", b"37 37", b"37,37", b"37, 36", b"37;", b"37;x", b"0x25", b"37.0", b"3.7e1", b"3_7",
    b"\xd9\xa3\xd9\xa7", b"\xb3\xb7", b"", b",", b"\x0b37", b"37\x0b", b"37\x00", b"\x0037", b"37\x7f", b"\xa037", b'"37"', b"x37", b"37x",
    b"0000000000000000037", b"18446744073709551653", b"340282366920938463463374607431768211493", b"9223372036854775845",
    b"\r\n 37", b"37\r\n ", b"3\r\n 7", b"3\n7", b"3\r7", b"37\r", b"37\n", b"NaN", b"Infinity", b"chunked",
]  # fmt: skip
CL: dict[str, Attack] = {
    **{f"Content-Length {value!r}": Attack(framed(b"Content-Length: " + value, HIDDEN)) for value in LENGTHS},
    "twice, alike": Attack(framed(b"Content-Length: 37\r\nContent-Length: 37", HIDDEN)),
    "twice, zero first": Attack(framed(b"Content-Length: 0\r\nContent-Length: 37", HIDDEN)),
    "twice, zero last": Attack(framed(b"Content-Length: 37\r\ncontent-length: 0", HIDDEN)),
    "twice, one of them empty": Attack(framed(b"Content-Length: 37\r\nContent-Length:", HIDDEN)),
    "twice, one of them folded": Attack(framed(b"Content-Length: 37\r\nX: y\r\n Content-Length: 0", HIDDEN)),
    "space before the colon": Attack(framed(b"Content-Length : 37", HIDDEN)),
    "two, one with a space before the colon": Attack(framed(b"Content-Length: 0\r\nContent-Length : 37", HIDDEN)),
    "NUL in the name": Attack(framed(b"Content-\x00Length: 37", HIDDEN)),
    "named by Connection": Attack(framed(b"Content-Length: 37\r\nConnection: Content-Length", HIDDEN)),
    "named by Connection among others": Attack(
        framed(b"Connection: keep-alive,x , CONTENT-LENGTH\r\nContent-Length: 37", HIDDEN)
    ),
    "beyond 32 bits": Attack(framed(b"Content-Length: 4294967333", HIDDEN), status=413),
    "beyond the limit": Attack(framed(b"Content-Length: 1048577", HIDDEN), status=413),
    "leading zeros": Attack(
        framed(b"Content-Length: 000000000000000037", HIDDEN + NEXT), [(b"POST", b"/x", HIDDEN), NEXT_SEEN], None
    ),
    "an underscore is another name": Attack(framed(b"Content_Length: 36", NEXT), [X, NEXT_SEEN], None),
    "another name beside it": Attack(
        framed(b"Content-Length: 37\r\nContent_Length: 0\r\nX-Content-Length: 0", HIDDEN),
        [(b"POST", b"/x", HIDDEN)],
        None,
    ),
    "0.CL: a length of nothing": Attack(framed(b"Content-Length: 0", NEXT), [X, NEXT_SEEN], None),
    "no length at all": Attack(framed(b"X: y", NEXT), [X, NEXT_SEEN], None),
    **{
        f"CL.0: {method.decode()} with a request as its body": Attack(
            framed(LENGTH[:-2], BODY + NEXT, start=method + b" /x HTTP/1.1\r\nHost: a\r\n"),
            [(method, b"/x", BODY), NEXT_SEEN],
            None,
        )
        for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"PUT", b"get", b"POST")
    },
    **{
        f"{method.decode()} with a request in a chunk": Attack(
            framed(
                CHUNKED[:-2], b"25\r\n" + HIDDEN + b"\r\n" + LAST + NEXT, start=method + b" /x HTTP/1.1\r\nHost: a\r\n"
            ),
            [(method, b"/x", HIDDEN), NEXT_SEEN],
            None,
        )
        for method in (b"GET", b"HEAD", b"DELETE", b"POST")
    },
    "HEAD in another case is another method": Attack(
        b"Head /x HTTP/1.1\r\nHost: a\r\n\r\n" + NEXT, [(b"Head", b"/x", b""), NEXT_SEEN], None
    ),
}
assert len(HIDDEN) == 0x25 == 37

# Behind a chunked head. Each is sent with its head, and once more behind it, when the backend has the head already.
BAD_CHUNKS = [
    # the end of the size line
    b"5\nhello\r\n" + LAST, b"5\r\r\nhello\r\n" + LAST, b"5\n\nhello\r\n" + LAST, b"5\n\rhello\r\n" + LAST, b"5\rhello\r\n" + LAST,
    b"5\r\rhello\r\n" + LAST, b"0\n\r\n", b"0\r\r\n\r\n", b"0\r\n\n", b"0\n\n", b"0\r\r", b"0\r\n\r\r\n", b"0\r\n\rX",
    # a line end in the extension that one reader sees and the other does not
    b"5;\nhello\r\n" + LAST, b"5;x\nhello\r\n" + LAST, b"2;\nxx\r\n25\r\n" + LAST, b'5;a="\n"\r\nhello\r\n' + LAST,
    b'5;a="\r\n"\r\nhello\r\n' + LAST, b"5;a\rb\r\nhello\r\n" + LAST, b"5;\r\r\nhello\r\n" + LAST, b"5\n;x\r\nhello\r\n" + LAST,
    b"0;\n\r\n", b"5;x\\\nhello\r\n" + LAST, b"5;\x00\r\nhello\r\n" + LAST, b"5;\x0b\r\nhello\r\n" + LAST, b"5;\x85\nhello\r\n" + LAST,
    # what stands behind the data
    b"5\r\nhelloXX0\r\n\r\n", b"5\r\nhelloX" + LAST, b"5\r\nhello" + LAST, b"5\r\nhello\n" + LAST, b"5\r\nhello\r" + LAST,
    b"5\r\nhello\r\r\n" + LAST, b"5\r\nhello\n\r" + LAST, b"5\r\nhello\r\n\r\n" + LAST, b"4\r\nhello\r\n" + LAST, b"5\r\nhello\x00\x00" + LAST,
    # sizes
    b"", b"\r\n", b"-1\r\n", b"-5\r\nhello\r\n" + LAST, b"+5\r\nhello\r\n" + LAST, b"0x5\r\nhello\r\n" + LAST, b"0X0\r\n\r\n",
    b"5h\r\nhello\r\n" + LAST, b" 5\r\nhello\r\n" + LAST, b"5 \r\nhello\r\n" + LAST, b"5\t;x\r\nhello\r\n" + LAST, b"5\x0b\r\nhello\r\n" + LAST,
    b"5\x00\r\nhello\r\n" + LAST, b"5,5\r\nhello\r\n" + LAST, b"5.0\r\nhello\r\n" + LAST, b"5_0\r\nhello\r\n" + LAST, b"#\r\n",
    b"5 5\r\nhello\r\n" + LAST, b'"5"\r\nhello\r\n' + LAST, b"\xb5\r\nhello\r\n" + LAST, b"00000000000000000\r\n\r\n",
    b"10000000000000005\r\nhello\r\n" + LAST, b"0000000000000000000000005\r\nhello\r\n" + LAST, b"5\r\n hello\r\n" + LAST,
    b"8000000000000005\r\nhello\r\n" + LAST, b"FFFFFFFFFFFFFFFB\r\nhello\r\n" + LAST, b"8000000000000000\r\n\r\n",
    # extensions that end elsewhere for whom they are more than bytes up to the line end
    b"5;\r\nhello\r\n" + LAST, b"5;;a=b\r\nhello\r\n" + LAST, b'5;a="\r\nhello\r\n' + LAST, b'5;a="b\\"\r\nhello\r\n' + LAST,
    b"5;GET /smuggled HTTP/1.1\r\nhello\r\n" + LAST, b"5; a\r\nhello\r\n" + LAST, b"0;\r\n\r\n",
    # no last chunk, and a request behind
    b"5\r\nhello\r\n", b"0\r\n", b"0\r\nX: y\r\n",
    # trailers that are heads
    b"0\r\nX\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nX: y\nZ: y\r\n\r\n", b"0\r\nX: y\n\r\n",
    b"0\r\nX: y\r\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\nConnection: close\r\n\r\n", b"0\r\nContent-Type: x\r\n\r\n",
    b"0\r\nTE: x\r\n\r\n", b"0\r\nUpgrade: x\r\n\r\n", b"0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", b"0\r\nProxy-Authorization: x\r\n\r\n",
]  # fmt: skip
TOO_LONG = [
    b"7fffffffffffffff",
    b"7FFFFFFFFFFFFFFB",
    b"100000000",
    b"0100001",
]
GOOD_CHUNKS = {
    b'5;a="\\"\\\\";b=c;d\r\nhello\r\n0;a=";5"\r\n\r\n': b"hello",
    b"25\r\n" + HIDDEN + b"\r\n" + LAST: HIDDEN,
    b"2;x\r\n\r\n\r\n2A\r\n" + LAST + HIDDEN + b"\r\n" + LAST: b"\r\n" + LAST + HIDDEN,
    b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n": b"hello",
    b"0\r\nX: GET /smuggled HTTP/1.1\r\nX-GET: /smuggled HTTP/1.1\r\n\r\n": b"",
    b'5;a="GET /smuggled HTTP/1.1"\r\nhello\r\n0;a="GET /smuggled HTTP/1.1"\r\n\r\n': b"hello",
}

BAD_HOSTS = [
    b"a/", b"a/x", b"a?x", b"a#x", b"a@b", b"a:80@b", b"a,b", b"a b", b"a\tb", b"a\\b", b"http://a", b"a\x00",
    b"a\xe9", b'"a"', b"<a>", b"a:80:81", b"a:x", b"a:-1", b"a:80x", b":80", b"[::1", b"::1", b"[::1]x", b"[]",
    b"x[::1]", b"[[::1]]", b"a]", b"%", b"a%4", b"a%zz",
]  # fmt: skip
GOOD_HOSTS = [
    b"", b"a:", b"a:80", b"a.b-c_d~e", b"1.2.3.4:5", b"[::1]", b"[2001:db8::1]:8080", b"a%2db", b"xn--a;b=c",
]  # fmt: skip
BAD_TARGETS = [
    b"http://", b"http:///x", b"http:/x", b"http:x", b"http://a@b/x", b"http://a:b@c/x", b"http://a,b/x",
    b"http://a\\b/x", b"http://a#x", b"http://:80/x", b"http://a:x/", b"http://a:80:81/", b"http://[::1/x",
    b"http://a%/x", b"ws://a/x", b"file:///x", b"a/x@http://b", b"gopher://a", b"urn:x", b"a:80", b"*", b"*x", b"?x",
    b"x", b"http://a\x00/", b"http://a\xe9/", b"h\x00ttp://a/",
]  # fmt: skip
OTHER_EXPECTATIONS = [
    b"100", b"100-continuex", b"x100-continue", b"100-continue, 100-continue", b"100-continue;x",
    b"y 100-continue", b"100_continue",
]  # fmt: skip
BROKEN_EXPECTATIONS = [
    b"100-continue\x00", b"\x0b100-continue", b"\r\n 100-continue", b"100-continue\r", b"\n100-continue",
]  # fmt: skip

HEADS: dict[str, Attack] = {
    # Fields that end early or late.
    "CR LF in a value is a line end": Attack(
        GET + b"X: y\r\nX-Injected: z\r\n\r\n" + NEXT, [(b"GET", b"/x", b""), NEXT_SEEN], None
    ),
    "LF LF in a value": Attack(GET + b"X: y\n\n" + HIDDEN + b"\r\n"),
    "CR CR in a value": Attack(GET + b"X: y\r\r" + HIDDEN + b"\r\n"),
    "LF CR LF": Attack(GET + b"X: y\n\r\n" + HIDDEN),
    "CR LF LF": Attack(GET + b"X: y\r\n\n" + HIDDEN),
    "NUL before a hidden request": Attack(GET + b"X: y\x00\r\n\r\n" + HIDDEN),
    "NUL for a line end": Attack(GET + b"X: y\x00X-Injected: z\r\n\r\n"),
    "form feed for a line end": Attack(GET + b"X: y\x0cX-Injected: z\r\n\r\n" + HIDDEN),
    "NEL and obs-text are bytes of a value": Attack(
        GET + b"X: y\x85X-Injected: z\xe2\x80\xa8\r\n\r\n" + NEXT, [(b"GET", b"/x", b""), NEXT_SEEN], None
    ),
    "a name with a space": Attack(GET + b"X Y: z\r\n\r\n" + HIDDEN),
    "a name with a comma": Attack(GET + b"X,Y: z\r\n\r\n" + HIDDEN),
    "a name with a slash": Attack(GET + b"X/Y: z\r\n\r\n" + HIDDEN),
    "a name with obs-text": Attack(GET + b"X\xe9: z\r\n\r\n" + HIDDEN),
    "an empty name": Attack(GET + b": z\r\n\r\n" + HIDDEN),
    "only a colon": Attack(GET + b":\r\n\r\n" + HIDDEN),
    "several colons are bytes of the value": Attack(
        GET + b"X::: y\r\n\r\n" + NEXT, [(b"GET", b"/x", b""), NEXT_SEEN], None
    ),
    "a request line for a field": Attack(GET + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    "a pseudo-header": Attack(GET + b":path: /smuggled\r\n\r\n" + HIDDEN),
    "encoded line ends in the target": Attack(
        b"GET /x%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/x%0d%0aX:%20y", b"")], None
    ),
    "a request in the target": Attack(b"GET /x HTTP/1.1 GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a line end in the target": Attack(b"GET /x\nHost:b HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    "a tab in the target": Attack(b"GET /x\tHTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    "form feed for a space": Attack(b"GET\x0c/x\x0cHTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    "a no-break space": Attack(b"GET\xa0/x HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN),
    "HTTP/0.9": Attack(b"GET /x\r\n\r\n" + HIDDEN),
    "the preface of HTTP/2": Attack(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, status=505),
    "three empty lines first": Attack(b"\r\n\r\n\r\n" + HIDDEN),
    "one empty line between two requests": Attack(
        GET + b"\r\n" + b"\r\n" + NEXT, [(b"GET", b"/x", b""), NEXT_SEEN], None
    ),
    "a bare LF between two requests": Attack(GET + b"\r\n" + b"\n" + HIDDEN, [(b"GET", b"/x", b"")]),
    "bytes between two requests": Attack(
        POST + b"Content-Length: 1\r\n\r\nxG=T /smuggled HTTP/1.1\r\nHost : a\r\n\r\n", [(b"POST", b"/x", b"x")]
    ),
    # The address.
    "two Hosts": Attack(b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN),
    "two Hosts alike": Attack(b"GET /x HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n" + HIDDEN),
    "two Hosts, the first empty": Attack(b"GET /x HTTP/1.1\r\nHost:\r\nHost: a\r\n\r\n" + HIDDEN),
    "two Hosts in 1.0": Attack(b"GET /x HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN),
    "two Hosts beside an absolute-form": Attack(b"GET http://a/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN),
    "a folded Host": Attack(b"GET /x HTTP/1.1\r\nHost: a\r\n Host: b\r\n\r\n" + HIDDEN),
    "Host behind a folded first line": Attack(b"GET /x HTTP/1.1\r\n Host: b\r\nHost: a\r\n\r\n" + HIDDEN),
    "Host with a space before the colon": Attack(b"GET /x HTTP/1.1\r\nHost : b\r\nHost: a\r\n\r\n" + HIDDEN),
    "Host named by Connection": Attack(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Host\r\n\r\n" + HIDDEN),
    **{f"Host {value!r}": Attack(b"GET /x HTTP/1.1\r\nHost: " + value + b"\r\n\r\n" + HIDDEN) for value in BAD_HOSTS},
    **{
        f"good Host {value!r}": Attack(b"GET /x HTTP/1.1\r\nHost: " + value + b"\r\n\r\n", [(b"GET", b"/x", b"")], None)
        for value in GOOD_HOSTS
    },
    **{
        f"absolute-form {value!r}": Attack(b"GET " + value + b" HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN)
        for value in BAD_TARGETS
    },
    "absolute-form of another authority": Attack(
        b"GET http://b:1/x HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/x", b"")], None
    ),
    "absolute-form in absolute-form": Attack(
        b"GET http://b/http://c/x HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/http://c/x", b"")], None
    ),
    "absolute-form without Host": Attack(b"GET http://a/x HTTP/1.1\r\n\r\n" + HIDDEN),
    "double slash is a path": Attack(b"GET //b/x HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"//b/x", b"")], None),
    "an at sign in the path": Attack(b"GET /@b/x HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/@b/x", b"")], None),
    "CONNECT": Attack(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + HIDDEN, status=501),
    # Expect.
    **{
        f"Expect {value!r}": Attack(framed(b"Expect: " + value + b"\r\n" + LENGTH[:-2], BODY), status=417)
        for value in OTHER_EXPECTATIONS
    },
    **{
        f"Expect {value!r}": Attack(framed(b"Expect: " + value + b"\r\n" + LENGTH[:-2], BODY))
        for value in BROKEN_EXPECTATIONS
    },
    "Expect with a space before the colon": Attack(framed(b"Expect : 100-continue\r\n" + LENGTH[:-2], BODY)),
    "one good and one bad Expect": Attack(
        framed(b"Expect: 100-continue\r\nExpect: x\r\n" + LENGTH[:-2], BODY), status=417
    ),
    "Expect without a body": Attack(framed(b"Expect: 100-continue", NEXT), [X, NEXT_SEEN], None),
    "Expect of nothing": Attack(
        framed(b"Expect:\r\nExpect: , \t,\r\n" + LENGTH[:-2], BODY + NEXT), [(b"POST", b"/x", BODY), NEXT_SEEN], None
    ),
    "Expect of nothing and of something else": Attack(
        framed(b"Expect:\r\nExpect: x\r\n" + LENGTH[:-2], BODY), status=417
    ),
    "Expect with a length of nothing": Attack(
        framed(b"Expect: 100-Continue\r\nContent-Length: 0", NEXT), [X, NEXT_SEEN], None
    ),
    "Expect, the body at once and a request behind": Attack(
        framed(b"Expect: 100-continue\r\n" + LENGTH[:-2], BODY + NEXT), [(b"POST", b"/x", BODY), NEXT_SEEN], None
    ),
    "Expect with GET and a body": Attack(
        framed(b"Expect: 100-continue\r\n" + LENGTH[:-2], BODY + NEXT, start=GET),
        [(b"GET", b"/x", BODY), NEXT_SEEN],
        None,
    ),
    "Expect in 1.0": Attack(
        framed(
            b"Connection: keep-alive\r\nExpect: 100-continue\r\n" + LENGTH[:-2], BODY, start=b"POST /x HTTP/1.0\r\n"
        ),
        [(b"POST", b"/x", BODY)],
        None,
    ),
    # What Connection names.
    "Connection names Content-Length of a GET": Attack(
        framed(b"Connection: content-length\r\n" + LENGTH[:-2], BODY, start=GET)
    ),
    "Connection names Transfer-Encoding": Attack(framed(b"Connection: transfer-encoding\r\n" + CHUNKED[:-2], BODY)),
    "Connection names what is not there": Attack(framed(b"Connection: Transfer-Encoding", HIDDEN)),
    "Connection with a broken member": Attack(framed(b"Connection: close, x y", HIDDEN)),
    "Connection with too many members": Attack(
        framed(b"Connection: " + b", ".join(b"x%d" % i for i in range(17)), HIDDEN)
    ),
    "Connection close and keep-alive": Attack(
        framed(b"Connection: close\r\nConnection: keep-alive", HIDDEN), [X], None, closes=True
    ),
    # What stands behind the last request of a connection.
    "bytes behind Connection: close": Attack(framed(b"Connection: close", HIDDEN), [X], None, closes=True),
    "bytes behind a body and Connection: close": Attack(
        framed(b"Connection: Close\r\nContent-Length: 2", b"hi" + HIDDEN), [(b"POST", b"/x", b"hi")], None, closes=True
    ),
    "bytes behind 1.0": Attack(b"GET /x HTTP/1.0\r\n\r\n" + HIDDEN, [(b"GET", b"/x", b"")], None, closes=True),
    "bytes behind a refused Upgrade": Attack(
        GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + HIDDEN, [(b"GET", b"/x", b"")], None, closes=True
    ),
    "bytes behind a refused Upgrade to h2c": Attack(
        GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n" + NEXT,
        [(b"GET", b"/x", b""), NEXT_SEEN],
        None,
    ),
    "an Upgrade with a body": Attack(
        framed(b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH[:-2], BODY + NEXT),
        [(b"POST", b"/x", BODY), NEXT_SEEN],
        None,
    ),
    "an Upgrade that Connection does not ask for": Attack(
        GET + b"Upgrade: websocket\r\n\r\n" + NEXT, [(b"GET", b"/x", b""), NEXT_SEEN], None
    ),
}

ATTACKS = {
    **{f"TE {name}": attack for name, attack in TE.items()},
    **{f"CL {name}": attack for name, attack in CL.items()},
    **{
        f"good chunks {name!r}": Attack(
            POST + CHUNKED + b"\r\n" + name + NEXT, [(b"POST", b"/x", body), NEXT_SEEN], None
        )
        for name, body in GOOD_CHUNKS.items()
    },
    **{f"head {name}": attack for name, attack in HEADS.items()},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_a_client(scene, attacker, other, name):
    attack = ATTACKS[name]
    attacker.send(attack.sent)
    check_answers(attacker, attack.forwarded)
    if attack.status is not None:
        check_refused(attacker, attack.status)
    elif attack.closes:
        assert attacker.read_eof() == b""
    else:
        scene.innocent(attacker)  # the connection is where it should be
    scene.innocent(other)
    attacker.close()
    other.close()
    scene.check(attack.sent, attack.forwarded)


@pytest.mark.parametrize("when", ["with the head", "behind it"])
@pytest.mark.parametrize("body", [*BAD_CHUNKS, *(size + b"\r\nhello" for size in TOO_LONG)], ids=repr)
def test_chunks_that_hide_a_request(scene, attacker, other, body, when):
    pieces = [POST + CHUNKED + b"\r\n", body + HIDDEN]
    if when == "with the head":
        pieces = [b"".join(pieces)]
    for piece in pieces:
        attacker.send(piece)
        if piece is not pieces[-1]:
            wait_until(lambda: scene.proxy.metrics()["llmpipe_upstreams"], what="the head on its way")
    check_refused(attacker, 413 if body.partition(b"\r\n")[0] in TOO_LONG else 400)
    scene.innocent(other)
    attacker.close()
    other.close()
    scene.check(b"".join(pieces), [], partial=when == "behind it")


# What happens between the head and the end of a body


def closes(client: Client) -> bytes:
    """What is left until the connection ends, in whichever way."""
    try:
        return client.read_eof()
    except ConnectionResetError:
        return b"reset"


def test_the_body_behind_a_final_answer_to_an_expectation(scene, attacker, other):
    def refuse(connection: Connection) -> bool:
        connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        connection.wait_eof()
        return False

    scene.strict.early[b"/x"] = refuse
    head = framed(b"Expect: 100-continue\r\nContent-Length: 37", b"")
    response = attacker.request(head)
    assert (response.status, response.body, response.values(b"connection")) == (401, b"no", [b"close"])
    scene.innocent(other)
    attacker.send(HIDDEN)
    scene.innocent(other)
    assert attacker.read_eof() == b""
    attacker.close()
    other.close()
    scene.check(head + HIDDEN, [])


def test_a_100_and_then_a_body_with_a_request_behind(scene, attacker, other):
    def go_on(connection: Connection) -> bool:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    scene.strict.early[b"/x"] = go_on
    head = framed(b"Expect: 100-continue\r\n" + LENGTH[:-2], b"")
    assert attacker.request(head).raw == b"HTTP/1.1 100 Continue\r\n\r\n"
    scene.innocent(other)
    attacker.send(BODY + NEXT)
    forwarded = [(b"POST", b"/x", BODY), NEXT_SEEN]
    check_answers(attacker, forwarded)
    scene.innocent(other)
    attacker.close()
    other.close()
    scene.check(head + BODY + NEXT, forwarded)


@pytest.mark.parametrize("backend_goes_on", [False, True])
def test_a_backend_that_answers_before_the_body(scene, attacker, other, backend_goes_on):
    # It may take the body for the next request; so its connection takes no other one.
    used: list[Connection] = []

    def hasty(connection: Connection) -> bool:
        used.append(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if not backend_goes_on:
            connection.wait_eof()
        return backend_goes_on

    scene.strict.early[b"/x"] = hasty
    head = framed(LENGTH[:-2], b"")
    response = attacker.request(head)
    assert (response.body, response.values(b"connection")) == (b"ok", [b"close"])
    scene.innocent(other)
    attacker.send(BODY)
    scene.innocent(other)
    assert attacker.read_eof() == b""
    wait_until(lambda: used[0].index in scene.strict.ended, what="the upstream closed")
    attacker.close()
    other.close()
    scene.check(head + BODY, [], partial=True)


def test_a_backend_whose_answer_began_before_the_body_ended_is_not_used_again(scene, attacker, other):
    used: list[Connection] = []

    def early(connection: Connection) -> bool:
        used.append(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        return True

    scene.strict.early[b"/x"] = early
    scene.strict.answers[b"/x"] = [b"2\r\nok\r\n0\r\n\r\n"]
    head = framed(LENGTH[:-2], b"")
    attacker.send(head)
    assert b"Connection: close\r\n" in attacker.read_head()
    attacker.send(BODY + HIDDEN)
    assert attacker.read_chunked() == b"ok"
    assert attacker.read_eof() == b""
    scene.innocent(other)
    assert scene.strict.requests[-1].connection != used[0].index
    wait_until(lambda: used[0].index in scene.strict.ended, what="the upstream closed")
    attacker.close()
    other.close()
    scene.check(head + BODY, [(b"POST", b"/x", BODY)])


def test_a_backend_that_hangs_up_before_the_body(scene, attacker, other):
    def hang_up(connection: Connection) -> bool:
        connection.close()
        return False

    scene.strict.early[b"/x"] = hang_up
    head = framed(LENGTH[:-2], b"")
    attacker.send(head)
    response = attacker.read_response()
    assert (response.status, response.values(b"connection")) == (502, [b"close"])
    attacker.send(BODY)
    scene.innocent(other)
    assert attacker.read_eof() == b""
    attacker.close()
    other.close()
    scene.check(head + BODY, [])


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_its_client_breaks_off(scene, attacker, other, framing, how):
    came = threading.Event()

    def note(_: Connection) -> bool:
        came.set()
        return True

    scene.strict.early[b"/x"] = note
    head = framed(LENGTH[:-2] if framing == "length" else CHUNKED[:-2], b"")
    attacker.send(head + (HIDDEN if framing == "length" else b"ff\r\n" + HIDDEN))
    assert came.wait(10)
    (attacker.close if how == "fin" else attacker.reset)()
    scene.innocent(other)
    other.close()
    scene.check(b"", [], partial=True)
    wait_until(lambda: scene.strict.partial, what="the broken request")
    assert len(scene.strict.partial) == 1


def test_a_request_behind_one_that_is_too_long(scene, attacker, other):
    # Its body would have to be read to know where the next request begins.
    sent = framed(b"Content-Length: 2097152", b"x" * 100 + HIDDEN)
    attacker.send(sent)
    check_refused(attacker, 413)
    scene.innocent(other)
    attacker.close()
    other.close()
    scene.check(sent, [])


def test_bytes_of_a_tunnel_are_no_requests(scene, attacker, other):
    def switch(connection: Connection) -> bool:
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        assert connection.read(len(HIDDEN) * 2) == HIDDEN * 2
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        connection.wait_eof()
        return False

    scene.strict.early[b"/x"] = switch
    attacker.send(GET + b"Connection: Upgrade\r\nUpgrade: x\r\n\r\n" + HIDDEN)
    attacker.read_head()
    attacker.send(HIDDEN)
    scene.innocent(other)
    assert attacker.read(42) == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    scene.innocent(other)
    attacker.close()
    scene.innocent(other)
    other.close()
    scene.check(b"", [])


@pytest.mark.parametrize(
    "name", [b"X-Request-ID", b"Cookie", b"Authorization", b"X-Forwarded-For", b"Via", b"Expect", b"Trailer"]
)
def test_connection_takes_a_field_away_and_nothing_else(scene, attacker, other, name):
    # The message stays the same for the framing and the address; X-Request-ID and those of the proxy are made anew.
    sent = GET + b"X-One: 1\r\n" + name + b": 100-continue\r\nConnection: " + name + b"\r\nX-Two: 2\r\n\r\n"
    response = attacker.request(sent)
    assert response.status == 200
    scene.innocent(other)
    request = scene.strict.requests[-2]
    assert request.target == b"/x"
    assert [value for key, value in request.fields if key.startswith(b"X-") and len(key) < 6] == [b"1", b"2"]
    expected = {b"X-Request-ID": 1, b"X-Forwarded-For": 1, b"Via": 1}
    assert len(request.values(name)) == expected.get(name, 0)
    assert name == b"X-Request-ID" or b"100-continue" not in b"".join(request.values(name))
    attacker.close()
    other.close()
    scene.check(sent + name + b": 100-continue\r\n", [(b"GET", b"/x", b"")])


# What a backend sends

OK = b"HTTP/1.1 200 OK\r\n"
FIVE = b"Content-Length: 5\r\n"
EVIL = OK + b"Content-Length: 4\r\n\r\nevil"
ID = b"X-Request-ID: id\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@dataclass
class Answer:
    """Bytes of a backend for one request, and everything that the client gets for them."""

    sent: bytes | list[bytes]
    got: bytes = b""
    status: int = 0  # of our own answer, behind `got`; 0 for none
    ends: str = "kept"  # the client's connection then: kept, eof or reset
    reused: bool = False  # the upstream serves somebody else
    method: bytes = b"GET"
    fields: bytes = b""
    old: bool = False  # the request is HTTP/1.0
    close: bool = False  # the backend closes behind it
    broken: bytes = b""  # of these bytes the client may have the first ones, up to what is wrong


def whole(line: bytes, fields: bytes, body: bytes = b"", **more: object) -> Answer:
    """An answer that is forwarded as it is, with our request id, and whatever else it says."""
    return Answer(line + fields + b"\r\n" + body, line + fields + ID + b"\r\n" + body, **more)


def spoiled(sent: bytes, **more: object) -> Answer:
    """An answer of which nothing is forwarded."""
    return Answer(sent, status=502, **more)


def cut(line: bytes, fields: bytes, good: bytes, bad: bytes, **more: object) -> Answer:
    """A chunked answer that breaks: the good part arrives, and no last chunk."""
    return Answer(
        [line + fields + b"\r\n" + good, bad + EVIL],
        line + fields + ID + b"\r\n" + good,
        ends="eof",
        broken=bad,
        **more,
    )


GOOD = b"4\r\ngood\r\n"
BREAKS = [
    b"4\nevil\r\n", b"4\r\r\nevil\r\n", b"4 \r\nevil\r\n", b"0x4\r\nevil\r\n", b"-4\r\nevil\r\n", b"+4\r\nevil\r\n",
    b"\r\n4\r\nevil\r\n", b"4;\nevil\r\n", b"4;\x00\r\nevil\r\n", b"10000000000000004\r\nevil\r\n", b"g\r\n",
    b"HTTP/1.1 ",
]  # fmt: skip

ANSWERS: dict[str, Answer] = {
    # Heads that split.
    "bare LF splits the head": spoiled(OK + b"X: y\nContent-Length: 0\n\n" + EVIL),
    "bare CR splits the head": spoiled(OK + b"X: y\rContent-Length: 0\r\r" + EVIL),
    "CR CR LF": spoiled(OK + b"X: y\r\r\n" + FIVE + b"\r\nhello"),
    "LF CR LF": spoiled(OK + b"X: y\n\r\n" + EVIL),
    "NUL in a field": spoiled(OK + b"Set-Cookie: a\x00\r\n" + FIVE + b"\r\nhello"),
    "a line end in the reason": spoiled(b"HTTP/1.1 200 OK\nX: y\r\n" + FIVE + b"\r\nhello"),
    "a bare CR in the reason": spoiled(b"HTTP/1.1 200 O\rK\r\n" + FIVE + b"\r\nhello"),
    "a tab before the status": spoiled(b"HTTP/1.1\t200 OK\r\n" + FIVE + b"\r\nhello"),
    "two spaces before the status": spoiled(b"HTTP/1.1  200 OK\r\n" + FIVE + b"\r\nhello"),
    "a folded field": spoiled(OK + b"X: y\r\n Content-Length: 0\r\n" + FIVE + b"\r\nhello"),
    "a folded first line": spoiled(OK + b" X: y\r\n" + FIVE + b"\r\nhello"),
    "a response for a field": spoiled(OK + EVIL),
    "a body first": spoiled(b"hello\r\n" + OK + FIVE + b"\r\nhello"),
    # Framing.
    **{
        f"framing {name!r}": spoiled(OK + name + b"\r\n\r\n" + body)
        for name, body in {
            b"Content-Length: 5\r\nTransfer-Encoding: chunked": b"5\r\nhello\r\n0\r\n\r\n" + EVIL,
            b"Transfer-Encoding: chunked\r\nContent-Length: 0": b"0\r\n\r\n" + EVIL,
            b"Content-Length: 5\r\nContent-Length: 42": b"hello" + EVIL,
            b"Content-Length: 5\r\nContent-Length: 5": b"hello",
            b"Content-Length: 5, 42": b"hello" + EVIL,
            b"Content-Length: +5": b"hello",
            b"Content-Length: -1": b"hello",
            b"Content-Length: 5 5": b"hello",
            b"Content-Length: 0x5": b"hello",
            b"Content-Length:": b"hello",
            b"Content-Length: 18446744073709551621": b"hello",
            b"Content-Length : 5": b"hello",
            b"Content-Length: 5\r\n 0": b"hello",
            b"Transfer-Encoding: xchunked": b"0\r\n\r\n",
            b"Transfer-Encoding: chunked, identity": b"0\r\n\r\n",
            b"Transfer-Encoding: gzip": b"hello",
            b"Transfer-Encoding:": b"hello",
            b"Transfer-Encoding: chunked\x0b": b"0\r\n\r\n",
            b"Transfer-Encoding : chunked": b"0\r\n\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked": b"0\r\n\r\n",
            b"Transfer-Encoding: identity\r\nContent-Length: 5": b"hello",
            b"Connection: Content-Length\r\nContent-Length: 5": b"hello",
            b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked": b"0\r\n\r\n",
        }.items()
    },
    "chunked in 1.0": spoiled(b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n" + LAST),
    # Behind the end.
    "two answers in one segment": Answer(OK + FIVE + b"\r\nhello" + EVIL, OK + FIVE + ID + b"\r\nhello"),
    "two answers, the first chunked": Answer(
        OK + CHUNKED + b"\r\n" + GOOD + LAST + EVIL, OK + CHUNKED + ID + b"\r\n" + GOOD + LAST
    ),
    "an empty line behind the end": Answer(OK + FIVE + b"\r\nhello\r\n", OK + FIVE + ID + b"\r\nhello"),
    "a body longer than its length": Answer(OK + FIVE + b"\r\nhello world", OK + FIVE + ID + b"\r\nhello"),
    "a 100 behind the end": Answer(OK + FIVE + b"\r\nhello" + CONTINUE, OK + FIVE + ID + b"\r\nhello"),
    "a 101 behind the end": Answer(
        OK + FIVE + b"\r\nhelloHTTP/1.1 101 \r\nUpgrade: x\r\n\r\n" + EVIL, OK + FIVE + ID + b"\r\nhello"
    ),
    "an answer to HEAD with a body": Answer(OK + FIVE + b"\r\nhello", OK + FIVE + ID + b"\r\n", method=b"HEAD"),
    "an answer to HEAD with a response for a body": Answer(
        OK + b"Content-Length: 42\r\n\r\n" + EVIL, OK + b"Content-Length: 42\r\n" + ID + b"\r\n", method=b"HEAD"
    ),
    "a chunked answer to HEAD with chunks": Answer(
        OK + CHUNKED + b"\r\n" + GOOD + LAST, OK + CHUNKED + ID + b"\r\n", method=b"HEAD"
    ),
    "a 204 with a body": Answer(b"HTTP/1.1 204 No\r\n\r\nhello", b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"),
    "a 204 with a response for a body": Answer(
        b"HTTP/1.1 204 No\r\n\r\n" + EVIL, b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"
    ),
    "a 304 with a length and a body": Answer(
        b"HTTP/1.1 304 Not\r\n" + FIVE + b"\r\nhello", b"HTTP/1.1 304 Not\r\n" + FIVE + ID + b"\r\n"
    ),
    "a 304 with chunks": Answer(
        b"HTTP/1.1 304 Not\r\n" + CHUNKED + b"\r\n" + GOOD + LAST, b"HTTP/1.1 304 Not\r\n" + CHUNKED + ID + b"\r\n"
    ),
    # RFC 9110 section 8.6, RFC 9112 section 6.1: no framing in 1xx and 204. A client that obeys it would wait for a body; so it
    # does not get it, and nobody gets what stands behind.
    "a 204 with a length": Answer(b"HTTP/1.1 204 No\r\n" + FIVE + b"\r\n", b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"),
    "a 204 with a length and a body": Answer(
        b"HTTP/1.1 204 No\r\n" + FIVE + b"X: y\r\n\r\nhello", b"HTTP/1.1 204 No\r\nX: y\r\n" + ID + b"\r\n"
    ),
    "a 204 with a length and another answer": Answer(
        b"HTTP/1.1 204 No\r\n" + FIVE + b"\r\nhello" + EVIL, b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"
    ),
    "a 204 that is chunked": Answer(
        b"HTTP/1.1 204 No\r\n" + CHUNKED + b"\r\n" + LAST, b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"
    ),
    "a 204 that is chunked, with another answer for its body": Answer(
        b"HTTP/1.1 204 No\r\n" + CHUNKED + b"\r\n2a\r\n" + EVIL + b"\r\n" + LAST, b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"
    ),
    "a 204 that is chunked in capitals": Answer(
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: Chunked\r\n\r\n" + LAST, b"HTTP/1.1 204 No\r\n" + ID + b"\r\n"
    ),
    "a 204 with both framings": spoiled(b"HTTP/1.1 204 No\r\n" + FIVE + CHUNKED + b"\r\n" + LAST),
    "a 204 with a length of nothing": whole(b"HTTP/1.1 204 No\r\n", b"Content-Length: 0\r\n", reused=True),
    "a 205 with a length of nothing": whole(b"HTTP/1.1 205 Reset\r\n", b"Content-Length: 0\r\n", reused=True),
    # Interim responses.
    "100 with a length": spoiled(b"HTTP/1.1 100 Continue\r\n" + FIVE + b"\r\n" + EVIL),
    "100 with a length and a body": spoiled(b"HTTP/1.1 100 Continue\r\n" + FIVE + b"\r\nhello" + EVIL),
    "103 that is chunked": spoiled(b"HTTP/1.1 103 Early Hints\r\n" + CHUNKED + b"\r\n" + LAST + EVIL),
    "100 with a body": Answer(CONTINUE + b"hello\r\n" + EVIL, CONTINUE, status=502),
    "several interim ones": Answer(
        CONTINUE + HINTS + CONTINUE + HINTS + OK + FIVE + b"\r\nhello",
        CONTINUE + HINTS + CONTINUE + HINTS + OK + FIVE + ID + b"\r\nhello",
        reused=True,
    ),
    "102": Answer(
        b"HTTP/1.1 102 Processing\r\n\r\n" + OK + FIVE + b"\r\nhello",
        b"HTTP/1.1 102 Processing\r\n\r\n" + OK + FIVE + ID + b"\r\nhello",
        reused=True,
    ),
    "interim ones to a 1.0 client": Answer(
        CONTINUE + HINTS + OK + FIVE + b"\r\nhello",
        OK + FIVE + b"Connection: close\r\n" + ID + b"\r\nhello",
        ends="eof",
        reused=True,
        old=True,
    ),
    "interim, and a broken head": Answer(CONTINUE + b"HTTP/1.1 200 OK\nX: y\r\n\r\n" + EVIL, CONTINUE, status=502),
    "interim, and a close": Answer(HINTS, HINTS, status=502, close=True),
    "101 that nobody asked for": spoiled(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + EVIL
    ),
    "101 behind a 100": Answer(
        CONTINUE + b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + EVIL,
        CONTINUE,
        status=502,
    ),
    "101 with a length": spoiled(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n" + FIVE + b"\r\nhello" + EVIL,
        fields=b"Connection: Upgrade\r\nUpgrade: x\r\n",
        ends="eof",
    ),
    "101 to an Upgrade to h2c": spoiled(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + EVIL,
        fields=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n",
    ),
    "101 to an Upgrade to h2c with a version": spoiled(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + EVIL,
        fields=b"Connection: Upgrade\r\nUpgrade: x, H2C/2.0\r\n",
    ),
    "status 099": spoiled(b"HTTP/1.1 099 X\r\n" + FIVE + b"\r\nhello"),
    "status 1": spoiled(b"HTTP/1.1 1 X\r\n" + FIVE + b"\r\nhello"),
    # Chunks that break in the middle.
    **{f"chunks break with {bad!r}": cut(OK, CHUNKED, GOOD, bad) for bad in BREAKS},
    "chunks, no last chunk, and another answer": cut(OK, CHUNKED, GOOD, b""),
    "chunks with a bad last one": Answer(
        [OK + CHUNKED + b"\r\n" + GOOD, b"0\n\r\n" + EVIL], OK + CHUNKED + ID + b"\r\n" + GOOD + b"0", ends="eof"
    ),
    "chunks to a 1.0 client that break": Answer(
        [OK + CHUNKED + b"\r\n" + GOOD, b"-4\r\nevil\r\n" + LAST],
        OK + b"Connection: close\r\n" + ID + b"\r\ngood",
        ends="reset",
        old=True,
    ),
    "an answer until close that holds another": Answer(
        OK + b"\r\nhello" + EVIL, OK + b"Connection: close\r\n" + ID + b"\r\nhello" + EVIL, ends="eof", close=True
    ),
    "chunks that hold another answer": Answer(
        OK + CHUNKED + b"\r\n2a\r\n" + EVIL + b"\r\n" + LAST,
        OK + CHUNKED + ID + b"\r\n2a\r\n" + EVIL + b"\r\n" + LAST,
        reused=True,
    ),
}
assert len(EVIL) == 0x2A == 42


@pytest.mark.parametrize("name", ANSWERS)
def test_an_attack_of_a_backend(scene, attacker, other, name):
    answer = ANSWERS[name]
    scene.strict.answers[b"/y"] = answer.sent if isinstance(answer.sent, list) else [answer.sent]
    if answer.close:
        scene.strict.closing.add(b"/y")
    version = b"HTTP/1.0" if answer.old else b"HTTP/1.1"
    sent = answer.method + b" /y " + version + b"\r\nHost: a\r\nX-Request-ID: id\r\n" + answer.fields + b"\r\n"
    attacker.send(sent)
    assert attacker.read(len(answer.got)) == answer.got
    if answer.status:
        response = attacker.read_response(answer.method.decode())
        assert response.status == answer.status, response.raw
        assert set(response.error()) == {"message", "type", "param", "code"}
        assert b"evil" not in response.raw
        assert b"hello" not in response.raw
    scene.innocent(other)
    if answer.ends == "kept":
        scene.innocent(attacker)
        assert attacker.silent(0.001)
    else:
        left = closes(attacker)
        assert left == b"reset" if answer.ends == "reset" else answer.broken.startswith(left) and b"evil" not in left
    seen = next(request for request in scene.strict.requests if request.target == b"/y")
    served = [request.connection for request in scene.strict.requests if request.target == b"/innocent"][1:]
    if answer.reused:
        assert seen.connection in served
    else:
        assert seen.connection not in served
        wait_until(lambda: seen.connection in scene.strict.ended, what="the upstream closed")
    attacker.close()
    other.close()
    scene.check(sent, [(answer.method, b"/y", b"")])


def test_every_name_is_of_one_case():
    # Two entries of one name would be one case.
    assert len(OBSCURED) == len(set(OBSCURED)) >= 30
    assert len(BAD_CHUNKS) == len(set(BAD_CHUNKS))
    assert len(LENGTHS) == len(set(LENGTHS))
