"""Sends the same bytes through llmpipe, nginx and HAProxy and writes down what each made of them, as the tables of docs/http.md.

    python tests/http_comparison.py                    # the tables, to stdout
    python tests/http_comparison.py docs/http.md       # into the page, between its marks

It is no test: the others' judgement is theirs (tests/test_http_page.py holds our own column). nginx and HAProxy come from the
system (apt-get install nginx haproxy) and are configured as for the benchmark (bench/peers). Behind each stands a raw server that
keeps the bytes it gets; it answers when the proxy pauses. What is written down is seen on the wire, at both ends.
"""

from __future__ import annotations

import datetime
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from harness import Proxy  # noqa: E402

from bench.peers import ALL, start, stop  # noqa: E402
from bench.peers.base import free_port  # noqa: E402

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
QUIET = 0.08
"""Seconds without a byte after which the server answers; a client waits three times as long."""

POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
ANSWER = OK + b"Content-Length: 2\r\n\r\nok"
HELLO = b"Content-Length: 5\r\n"


@dataclass(frozen=True)
class Probe:
    """One row: what is sent and where to look for it at the other end."""

    rule: str
    rfc: str
    request: bytes = GET + b"\r\n"
    mark: bytes = b""
    """What must arrive as it is for the verdict "forwarded"; none where it is enough that it arrives."""
    answer: bytes = b""
    """Of the backend, in a probe of responses."""
    close: bool = False
    """The backend closes behind its answer."""
    untrusted: bool = False
    """For ours: it comes from a peer that is no trusted proxy."""


def field_probe(rule: str, rfc: str, line: bytes) -> Probe:
    return Probe(rule, rfc, GET + line + b"\r\n\r\n", line)


def framing_probe(rule: str, rfc: str, lines: bytes, body: bytes = LAST) -> Probe:
    return Probe(rule, rfc, POST + lines + b"\r\n\r\n" + body, lines)


def line_probe(rule: str, rfc: str, line: bytes, host: bytes = b"Host: a\r\n") -> Probe:
    return Probe(rule, rfc, line + b"\r\n" + host + b"\r\n", line)


def chunk_probe(rule: str, rfc: str, body: bytes) -> Probe:
    return Probe(rule, rfc, CHUNKED + body)


def answer_probe(rule: str, rfc: str, answer: bytes, mark: bytes = b"", *, close: bool = False) -> Probe:
    return Probe(rule, rfc, answer=answer, mark=mark, close=close)


def many_options(n: int) -> bytes:
    return b"Connection: " + b", ".join(b"x%d" % i for i in range(n))


def forwarding_probes(*, untrusted: bool) -> list[Probe]:
    """What a peer says of the client that it speaks for."""
    lines = (
        ("X-Forwarded-For", "-", b"X-Forwarded-For: 203.0.113.9"),
        ("X-Forwarded-Proto", "-", b"X-Forwarded-Proto: https"),
        ("X-Forwarded-Proto that is none", "-", b"X-Forwarded-Proto: gopher"),
        ("X-Forwarded-Host", "-", b"X-Forwarded-Host: b"),
        ("Forwarded", "7239 4", b"Forwarded: for=203.0.113.9;proto=https"),
        ("X-Real-IP", "-", b"X-Real-IP: 203.0.113.9"),
        ("`X_Forwarded_Proto`", "-", b"X_Forwarded_Proto: https"),
    )
    who = "a peer that is not trusted" if untrusted else "a trusted peer"
    return [
        replace(field_probe(f"{rule}, of {who}", rfc, line), mark=line + b"\r\n", untrusted=untrusted)
        for rule, rfc, line in lines
    ]


PROBES: dict[str, list[Probe]] = {
    "Request line": [
        line_probe("any method of token characters", "9110 9.1", b"M-SEARCH /x HTTP/1.1"),
        line_probe("a method in lower case is another method", "9110 9.1", b"get /x HTTP/1.1"),
        line_probe("CONNECT", "9110 9.3.6", b"CONNECT a:1 HTTP/1.1", b"Host: a:1\r\n"),
        line_probe("HTTP/1.0", "9112 2.3", b"GET /x HTTP/1.0"),
        line_probe("HTTP/1.2", "9112 2.3", b"GET /x HTTP/1.2"),
        line_probe("HTTP/2.0", "9112 2.3", b"GET /x HTTP/2.0"),
        line_probe("HTTP/0.9", "9112 2.3", b"GET /x", b""),
        line_probe("`http/1.1`", "9112 2.3", b"GET /x http/1.1"),
        line_probe("two spaces", "9112 3", b"GET  /x HTTP/1.1"),
        line_probe("tab for a space", "9112 3", b"GET\t/x HTTP/1.1"),
        line_probe("space at the end", "9112 3", b"GET /x HTTP/1.1 "),
        line_probe("control character in the target", "9112 3.2", b"GET /\x01 HTTP/1.1"),
        line_probe("non-ASCII target", "9112 3.2", b"GET /\xc3\xa9 HTTP/1.1"),
        line_probe("fragment in the target", "9112 3.2", b"GET /x#y HTTP/1.1"),
        line_probe("`/a/../b`, `//x`, `%2e` as they are", "9112 3.2.1", b"GET //a/../b/%2e HTTP/1.1"),
        line_probe('`"<>\\^{}|` in the target', "9112 3.2", b'GET /"<>\\^`{}| HTTP/1.1'),
        line_probe("absolute-form, the same authority", "9112 3.2.2", b"GET http://a/x HTTP/1.1"),
        line_probe("absolute-form, another authority than Host", "9112 3.2.2", b"GET http://b/x HTTP/1.1"),
        line_probe("absolute-form with user information", "9110 4.2.4", b"GET http://u@a/x HTTP/1.1"),
        line_probe("absolute-form without a host: `http://:80/`", "9110 4.2.1", b"GET http://:80/x HTTP/1.1"),
        line_probe("absolute-form of another scheme", "9112 3.2.2", b"GET ftp://a/x HTTP/1.1"),
        line_probe("`OPTIONS *`", "9112 3.2.4", b"OPTIONS * HTTP/1.1"),
        line_probe("`GET *`", "9112 3.2.4", b"GET * HTTP/1.1"),
        Probe("one empty line first", "9112 2.2", b"\r\n" + GET + b"\r\n"),
        Probe("two empty lines first", "9112 2.2", b"\r\n\r\n" + GET + b"\r\n"),
    ],
    "Fields": [
        Probe("bare LF ends a line", "9112 2.2", GET + b"X-A: 1\nX-B: 2\r\n\r\n", b"X-B: 2\r\n"),
        Probe("bare LF ends all lines", "9112 2.2", b"GET /x HTTP/1.1\nHost: a\n\n"),
        field_probe("bare CR in a value", "9112 2.2", b"X-A: 1\rX-B: 2"),
        field_probe("CR CR LF", "9112 2.2", b"X-A: 1\r"),
        field_probe("NUL in a value", "9110 5.5", b"X-A: 1\x002"),
        field_probe("control character in a value", "9110 5.5", b"X-A: 1\x012"),
        field_probe("DEL in a value", "9110 5.5", b"X-A: 1\x7f2"),
        field_probe("obs-text in a value", "9110 5.5", b"X-A: \xe9\xff"),
        field_probe("folded line", "9112 5.2", b"X-A: 1\r\n 2"),
        field_probe("space before the colon", "9112 5.1", b"X-A : 1"),
        field_probe("empty name", "9110 5.1", b": 1"),
        field_probe("name that is no token", "9110 5.1", b"X(A): 1"),
        field_probe("underscore in a name", "9110 5.1", b"X_A: 1"),
        field_probe("`Content_Length`, another name", "9110 5.1", b"Content_Length: 5"),
        field_probe("no colon", "9112 5", b"X-A"),
        field_probe("white space around a value, kept as it is", "9110 5.5", b"X-A:  1\t"),
        Probe("no Host in 1.1", "9112 3.2", b"GET /x HTTP/1.1\r\n\r\n"),
        Probe("no Host in 1.0", "9112 3.2", b"GET /x HTTP/1.0\r\n\r\n"),
        Probe("two Hosts", "9112 3.2", GET + b"Host: b\r\n\r\n"),
        Probe("empty Host", "9112 3.2", b"GET /x HTTP/1.1\r\nHost:\r\n\r\n", b"Host:"),
        Probe("Host with a path", "9110 7.2", b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n", b"Host: a/b"),
        Probe("Host with user information", "9110 7.2", b"GET /x HTTP/1.1\r\nHost: u@a\r\n\r\n", b"Host: u@a"),
        Probe("Host as a list", "9110 7.2", b"GET /x HTTP/1.1\r\nHost: a,b\r\n\r\n", b"Host: a,b"),
        Probe("Host with two ports", "9110 7.2", b"GET /x HTTP/1.1\r\nHost: a:1:2\r\n\r\n", b"Host: a:1:2"),
    ],
    "Framing of a request": [
        framing_probe("both framings", "9112 6.3", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        framing_probe("Content-Length twice, alike", "9110 8.6", b"Content-Length: 5\r\nContent-Length: 5"),
        framing_probe("Content-Length twice, different", "9112 6.3", b"Content-Length: 5\r\nContent-Length: 6"),
        framing_probe("Content-Length as a list of one value", "9110 8.6", b"Content-Length: 5, 5"),
        framing_probe("Content-Length with a sign", "9110 8.6", b"Content-Length: +5"),
        framing_probe("Content-Length in hexadecimal", "9110 8.6", b"Content-Length: 0x5"),
        framing_probe("empty Content-Length", "9110 8.6", b"Content-Length:"),
        framing_probe("18 digits with leading zeros", "9110 8.6", b"Content-Length: 000000000000000005"),
        framing_probe("19 digits with leading zeros", "9110 8.6", b"Content-Length: 0000000000000000005"),
        framing_probe("2^64 + 5", "9112 6.3", b"Content-Length: 18446744073709551621"),
        framing_probe("GET with a body", "9110 9.3.1", b"Content-Length: 5"),
        framing_probe("`Chunked`", "9112 7", b"Transfer-Encoding: Chunked"),
        framing_probe("`xchunked`", "9112 6.1", b"Transfer-Encoding: xchunked"),
        framing_probe("`identity`", "9112 7", b"Transfer-Encoding: identity", b""),
        framing_probe("`gzip, chunked`", "9112 6.1", b"Transfer-Encoding: gzip, chunked"),
        framing_probe("`chunked, chunked`", "9112 6.1", b"Transfer-Encoding: chunked, chunked"),
        framing_probe("`chunked,`", "9112 6.1", b"Transfer-Encoding: chunked,"),
        framing_probe("`chunked;q=1`", "9112 7", b"Transfer-Encoding: chunked;q=1"),
        framing_probe("vertical tab before `chunked`", "9112 6.1", b"Transfer-Encoding: \x0bchunked"),
        framing_probe("Transfer-Encoding twice", "9112 6.1", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        Probe(
            "chunked in 1.0",
            "9112 6.1",
            b"POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST,
            b"Transfer-Encoding: chunked",
        ),
    ],
    "Chunks of a request": [
        chunk_probe("size with leading zeros, 16 digits", "9112 7.1", b"0000000000000005\r\nhello\r\n" + LAST),
        chunk_probe("17 digits", "9112 7.1", b"00000000000000005\r\nhello\r\n" + LAST),
        chunk_probe("size that overflows 64 bits", "9112 7.1", b"10000000000000005\r\nhello\r\n" + LAST),
        chunk_probe("`0x5`", "9112 7.1", b"0x5\r\nhello\r\n" + LAST),
        chunk_probe("`+5`", "9112 7.1", b"+5\r\nhello\r\n" + LAST),
        chunk_probe("space before the size", "9112 7.1", b" 5\r\nhello\r\n" + LAST),
        chunk_probe("space behind the size", "9112 7.1", b"5 \r\nhello\r\n" + LAST),
        chunk_probe("extension", "9112 7.1.1", b'5;a="b c"\r\nhello\r\n' + LAST),
        chunk_probe("size of 2^63 + 5", "9112 7.1", b"8000000000000005\r\nhello\r\n" + LAST),
        chunk_probe("empty extension: `5;`", "9112 7.1.1", b"5;\r\nhello\r\n" + LAST),
        chunk_probe("extension with an open quote", "9112 7.1.1", b'5;a="\r\nhello\r\n' + LAST),
        chunk_probe("white space in an extension", "9112 7.1.1", b"5; a = b\r\nhello\r\n" + LAST),
        chunk_probe("bare LF behind the size", "9112 7.1", b"5\nhello\r\n" + LAST),
        chunk_probe("bare LF in an extension", "9112 7.1.1", b"5;a\nb\r\nhello\r\n" + LAST),
        chunk_probe("bare CR in an extension", "9112 7.1.1", b"5;a\rb\r\nhello\r\n" + LAST),
        chunk_probe("control character in an extension", "9112 7.1.1", b"5;a\x01\r\nhello\r\n" + LAST),
        chunk_probe("extension of 300 bytes", "9112 7.1.1", b"5;" + b"x" * 300 + b"\r\nhello\r\n" + LAST),
        chunk_probe("bare LF behind the data", "9112 7.1", b"5\r\nhello\n" + LAST),
        chunk_probe("two other bytes behind the data", "9112 7.1", b"5\r\nhelloXX" + LAST),
        chunk_probe("longer than its size", "9112 7.1", b"4\r\nhello\r\n" + LAST),
        chunk_probe("bare LF at the end", "9112 7.1", b"5\r\nhello\r\n0\r\n\n"),
        chunk_probe("trailer", "9112 7.1.2", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
        chunk_probe("trailer Content-Length", "9110 6.5.1", b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
        chunk_probe("trailer that is no field", "9112 7.1.2", b"5\r\nhello\r\n0\r\nX-Sum\r\n\r\n"),
    ],
    "Connection, Expect, Upgrade": [
        field_probe("hop-by-hop: Keep-Alive", "9110 7.6.1", b"Keep-Alive: timeout=5"),
        field_probe("hop-by-hop: TE", "9110 10.1.4", b"TE: trailers"),
        field_probe("hop-by-hop: Proxy-Connection", "9112 C.2.2", b"Proxy-Connection: close"),
        field_probe("hop-by-hop: Proxy-Authorization", "9110 11.7.2", b"Proxy-Authorization: x"),
        Probe("field named by Connection", "9110 7.6.1", GET + b"X-A: 1\r\nConnection: x-a\r\n\r\n", b"X-A: 1"),
        Probe("Connection names Content-Length", "9110 7.6.1", POST + HELLO + b"Connection: content-length\r\n\r\nhello", HELLO),
        Probe("Connection names Host", "9110 7.6.1", GET + b"Connection: host\r\n\r\n", b"Host: a"),
        field_probe("17 members of Connection", "9110 7.6.1", many_options(17)),
        Probe("`Expect: 100-continue`", "9110 10.1.1", POST + b"Expect: 100-continue\r\n" + HELLO + b"\r\nhello", b"Expect: 100-continue"),
        Probe("empty `Expect`", "9110 10.1.1", POST + b"Expect:\r\n" + HELLO + b"\r\nhello", b"Expect:"),
        Probe("another expectation", "9110 10.1.1", POST + b"Expect: x\r\n" + HELLO + b"\r\nhello", b"Expect: x"),
        field_probe("Upgrade that Connection asks for", "9110 7.8", b"Connection: Upgrade\r\nUpgrade: x-echo"),
        field_probe("Upgrade that it does not ask for", "9110 7.8", b"Upgrade: x-echo"),
        field_probe("`Upgrade: h2c`", "9113 3.1", b"Connection: Upgrade\r\nUpgrade: h2c"),
        Probe(
            "request behind an upgrade that is refused",
            "9110 7.8",
            GET + b"Connection: Upgrade\r\nUpgrade: x-echo\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /2 HTTP/1.1",
        ),
        Probe("request behind `Connection: close`", "9112 9.6", GET + b"Connection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /2 HTTP/1.1"),
        Probe("pipelined request", "9112 9.3.2", GET + b"\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /2 HTTP/1.1"),
    ],
    "Forwarding fields": [*forwarding_probes(untrusted=False), *forwarding_probes(untrusted=True)],
    "Responses": [
        answer_probe("both framings", "9112 6.3", OK + HELLO + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + LAST),
        answer_probe("Content-Length twice, different", "9112 6.3", OK + HELLO + b"Content-Length: 6\r\n\r\nhello!"),
        answer_probe("Content-Length twice, alike", "9110 8.6", OK + HELLO + HELLO + b"\r\nhello"),
        answer_probe("Content-Length with a sign", "9110 8.6", OK + b"Content-Length: +5\r\n\r\nhello"),
        answer_probe("`gzip, chunked`", "9112 6.1", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n" + LAST),
        answer_probe("chunked in 1.0", "9112 6.1", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + LAST),
        answer_probe("bare LF", "9112 2.2", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
        answer_probe("bare CR in a value", "9112 2.2", OK + b"X-A: 1\rX-B: 2\r\n" + HELLO + b"\r\nhello", b"X-A: 1\rX-B: 2"),
        answer_probe("NUL in a value", "9110 5.5", OK + b"X-A: \x00\r\n" + HELLO + b"\r\nhello", b"X-A: \x00"),
        answer_probe("folded line", "9112 5.2", OK + b"X-A: 1\r\n 2\r\n" + HELLO + b"\r\nhello", b"X-A: 1\r\n 2"),
        answer_probe("space before the colon", "9112 5.1", OK + b"X-A : 1\r\n" + HELLO + b"\r\nhello", b"X-A : 1"),
        answer_probe("status of two digits", "9112 4", b"HTTP/1.1 20 OK\r\n" + HELLO + b"\r\nhello"),
        answer_probe("HTTP/2", "9112 2.3", b"HTTP/2 200 OK\r\n" + HELLO + b"\r\nhello"),
        answer_probe("204 that announces a body", "9110 8.6", b"HTTP/1.1 204 No\r\n" + HELLO + b"\r\n", HELLO.strip()),
        answer_probe("204 that is chunked", "9112 6.1", b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST, b"Transfer-Encoding: chunked"),
        answer_probe("130 fields", "9112 2.5", OK + b"X-A: 1\r\n" * 129 + HELLO + b"\r\nhello"),
        answer_probe("513 fields", "9112 2.5", OK + b"X-A: 1\r\n" * 512 + HELLO + b"\r\nhello"),
        answer_probe("chunk size of 2^63", "9112 7.1", OK + b"Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\nhello"),
        answer_probe("chunk extension with an open quote", "9112 7.1.1", OK + b'Transfer-Encoding: chunked\r\n\r\n5;a="\r\nhello\r\n' + LAST),
        answer_probe("100 that announces a body", "9110 8.6", b"HTTP/1.1 100 Continue\r\n" + HELLO + b"\r\n" + ANSWER, HELLO.strip()),
        answer_probe("103", "8297", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ANSWER, b"HTTP/1.1 103"),
        answer_probe("101 that nobody asked for", "9110 15.2.2", b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
        answer_probe("bytes behind the end", "9112 6.3", OK + HELLO + b"\r\nhelloEVIL", b"EVIL"),
        answer_probe("chunk size with a bare LF", "9112 7.1", OK + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n" + LAST),
        answer_probe("chunk size `0x5`", "9112 7.1", OK + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n" + LAST),
        answer_probe("chunk longer than its size", "9112 7.1", OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n" + LAST),
        answer_probe("chunked that breaks off", "9112 8", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=True),
        answer_probe("Content-Length that breaks off", "9112 8", OK + b"Content-Length: 9\r\n\r\nhello", close=True),
    ],
}  # fmt: skip
_get = next(probe for probe in PROBES["Framing of a request"] if probe.rule == "GET with a body")
PROBES["Framing of a request"][PROBES["Framing of a request"].index(_get)] = replace(
    _get, request=GET + HELLO + b"\r\nhello", mark=HELLO.strip()
)


class Server:
    """Keeps what each connection brings. Answers when the other side pauses behind a head."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.answer = ANSWER
        self.close = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(QUIET)
        asked = False
        with sock:
            while True:
                try:
                    data = sock.recv(65536)
                except TimeoutError:
                    if asked:
                        sock.sendall(self.answer)
                        asked = False
                        if self.close:
                            return
                    continue
                except OSError:
                    return
                if not data:
                    return
                self.got += data
                asked = True


def exchange(port: int, data: bytes) -> tuple[bytes, bool]:
    """What a client gets for its bytes until nothing comes for a while, and whether the connection ended."""
    got = b""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(QUIET * 5)
        sock.sendall(data)
        try:
            while piece := sock.recv(65536):
                got += piece
        except TimeoutError:
            return got, False
        except OSError:
            pass
    return got, True


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", data)]


def no_case(data: bytes) -> bytes:
    """Names of fields in lower case."""
    return re.sub(rb"(?m)^[!-9;-~]+:", lambda found: found[0].lower(), data)


def seen_as(mark: bytes, got: bytes) -> str:
    """How the line that `mark` begins arrived: as it was, changed or not at all. Names of fields have no case."""
    if not mark or no_case(mark) in no_case(got):
        return "forwarded"
    name = re.escape(mark.partition(b":")[0])
    if b" HTTP/" in mark:
        pattern = rb"\A[^\r\n]*"
    elif name.lower() in (rb"content\-length", rb"transfer\-encoding"):
        pattern = rb"(?im)^(?:content-length|transfer-encoding):[^\r\n]*"
    else:
        pattern = rb"(?im)^" + name + rb":[^\r\n]*"
    found = re.findall(pattern, got)
    return f"changed: `{printable(b', '.join(found))}`" if found else "removed"


def printable(data: bytes) -> str:
    return data.decode("latin-1").encode("unicode_escape").decode().replace("|", "\\|").replace("`", "'")


def request_verdict(probe: Probe, sent_up: bytes, answered: bytes, ended: bool) -> str:
    status = next((status for status in statuses(answered) if status >= 200), 0)
    arrived = re.search(rb"(?m)^\S+ \S+ HTTP/1", sent_up) is not None
    if not arrived:
        return str(status) if status else "closed without an answer" if ended else "waits for more"
    if status >= 400:
        return f"{status}, its head forwarded"
    if not status:
        return "cut, its head forwarded" if ended else "forwarded, no end seen"
    if b"GET /2 " in probe.mark:
        return "forwarded" if probe.mark in sent_up else "not read"
    return seen_as(probe.mark, sent_up)


def response_verdict(probe: Probe, answered: bytes, ended: bool) -> str:
    seen = statuses(answered)
    final = next((status for status in seen if status >= 200 or status == 101), 0)
    if final in (500, 502):
        return str(final)
    if not final:
        return "closed without an answer" if ended else "still waits"
    if probe.rule == "bytes behind the end":
        return "forwarded" if b"EVIL" in answered else "thrown away"
    head, _, body = answered.partition(b"\r\n\r\n")
    if probe.answer.startswith((b"HTTP/1.1 100", b"HTTP/1.1 103")):
        if seen[0] >= 200:
            return f"thrown away, {final} forwarded"
        return f"{seen_as(probe.mark, head)}, {final}"
    if probe.mark:
        return seen_as(probe.mark, head)
    if b"chunked" in head.lower():
        return f"{final}, forwarded" if body.endswith(LAST) else f"{final}, cut short"
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if length and len(body) < int(length[1]):
        return f"{final}, cut short"
    return f"{final}, forwarded"


def judge(probe: Probe, port: int, server: Server) -> str:
    server.got.clear()
    server.answer, server.close = probe.answer or ANSWER, probe.close
    answered, ended = exchange(port, probe.request)
    time.sleep(QUIET)
    if probe.answer:
        return response_verdict(probe, answered, ended)
    return request_verdict(probe, bytes(server.got), answered, ended)


@contextmanager
def running(name: str, server: Server) -> Iterator[tuple[str, Callable[[Probe], int]]]:
    """A proxy in front of the server: its version, and the port for a probe."""
    if name == "llmpipe":
        url = f"http://127.0.0.1:{server.port}"
        with Proxy(url) as proxy, Proxy(url, options=["--trusted-proxies", "none"]) as wary:
            yield "llmpipe", lambda probe: wary.port if probe.untrusted else proxy.port
        return
    peer, port = ALL[name], free_port()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)
        process = start(peer, scratch, port, server.port, scratch, 0)
        try:
            version = re.search(r"\d+\.\d+\.\d+", peer.version(scratch))
            assert version
            yield f"{name} {version[0]}", lambda _: port
        finally:
            stop(process)


def column(name: str) -> tuple[str, dict[Probe, str]]:
    """A proxy's version, and its verdict on each probe."""
    server = Server()
    with running(name, server) as (title, port_of):
        return title, {probe: judge(probe, port_of(probe), server) for probes in PROBES.values() for probe in probes}


def cell(text: str) -> str:
    """As it stands in a table."""
    return text.replace("|", "\\|")


def tables() -> str:
    """Every table, in Markdown."""
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(column, ("llmpipe", "nginx", "haproxy")))
    names = [title for title, _ in results]
    columns = [verdicts for _, verdicts in results]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    out = [f"Seen on {today}, with {names[1]} and {names[2]}."]
    for section, probes in PROBES.items():
        out += ["", f"### {section}", "", f"| what | RFC | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
        for probe in probes:
            out.append(f"| {cell(probe.rule)} | {probe.rfc} | {' | '.join(column[probe] for column in columns)} |")
    return "\n".join(out)


def main() -> None:
    made = tables()
    if len(sys.argv) < 2:
        print(made)
        return
    page = Path(sys.argv[1])
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
