"""Rule E4: whatever is refused or broken says why, in the access line and in a metric, and to a client in a sentence.

A head is refused for the first thing that is wrong with it; each case here has one.
"""

from __future__ import annotations

import contextlib
import json
import time

import cases
import pytest
from harness import Client, Connection, Proxy, answer_all, split_head

from llmpipe._pipe import REASONS

SECRET = b"sk-very-secret"

# The cases of cases.py, by what their reason is.
OF_REQUESTS = {
    "bare LF": [
        "bare LF everywhere",
        "bare LF after the request line",
        "bare LF after a field",
        "bare LF as the empty line",
        "bare LF first",
    ],
    "bare CR": [
        "bare CR in a value",
        "bare CR in the request line",
        "CR CR LF",
        "Transfer-Encoding hidden by a bare CR",
    ],
    "control character": [
        "NUL in a value",
        "NUL in a name",
        "NUL in the target",
        "control character in a value",
        "escape in a value",
        "DEL in a value",
        "vertical tab before a value",
        "Transfer-Encoding with a vertical tab",
    ],
    "bad field name": ["empty name", "no colon", "parentheses in a name", "non-ASCII name"],
    "space before the colon": ["space before the colon", "tab before the colon", "Transfer-Encoding behind a space"],
    "folded line": [
        "obs-fold with a space",
        "obs-fold with a tab",
        "obs-fold without a value",
        "white space before the first field",
    ],
    "no Host": ["no Host"],
    "two Hosts": ["two Hosts"],
    "bad Host": [
        "Host with a space",
        "Host with a path",
        "Host with user information",
        "Host as a list",
        "Host with two ports",
        "Host with a port that is none",
        "Host of a port only",
        "Host with an open bracket",
        "Host with a broken escape",
    ],
    "broken first line": [
        "two spaces before the target",
        "two spaces before the version",
        "tab in the request line",
        "space before the method",
        "space at the end of the request line",
        "space in the target",
        "no target",
        "no version",
        "lower-case version",
        "version with a third digit",
        "version of one digit",
        "version of another protocol",
        "bad method",
        "two empty lines first",
    ],
    "bad target": [
        "non-ASCII target",
        "fragment in the target",
        "relative target",
        "authority as the target",
        "asterisk with GET",
        "absolute-form without authority",
        "absolute-form of a port only",
        "absolute-form with user information",
        "absolute-form of another scheme",
    ],
    "bad Connection": [
        "Connection names Host",
        "Connection names Content-Length",
        "Connection names Transfer-Encoding",
    ],
    "TLS": ["TLS hello"],
    "two Content-Lengths": ["Content-Length twice", "Content-Length twice, different"],
    "bad Content-Length": [
        "Content-Length as a list",
        "Content-Length with plus",
        "Content-Length with minus",
        "hexadecimal Content-Length",
        "Content-Length with an underscore",
        "Content-Length with a point",
        "empty Content-Length",
        "Content-Length of 19 digits",
        "Content-Length beyond 64 bits",
        "Content-Length with a space inside",
        "Content-Length with other digits",
    ],
    "Content-Length and Transfer-Encoding": ["CL.TE", "TE.CL", "TE.CL with zero"],
    "two Transfer-Encodings": ["TE.TE", "TE.TE with an unknown one"],
    "bad Transfer-Encoding": [
        "Transfer-Encoding as a list",
        "Transfer-Encoding chunked twice in a list",
        "Transfer-Encoding identity",
        "Transfer-Encoding empty",
        "Transfer-Encoding with a comma",
        "Transfer-Encoding with a parameter",
        "Transfer-Encoding quoted",
        "Transfer-Encoding folded",
    ],
    "Transfer-Encoding in HTTP/1.0": ["Transfer-Encoding in 1.0"],
}
OTHER_REQUESTS = {
    "other version": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    "other expectation": (417, cases.POST + b"Expect: x\r\n\r\n"),
    "request line over the limit": (414, b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "head over the limit": (431, cases.GET + b"X: " + b"x" * 32768 + b"\r\n\r\n"),
    "more fields than the limit": (431, cases.GET + b"X: 1\r\n" * 128 + b"\r\n"),
    "body over the limit": (413, cases.POST + b"Content-Length: 999999999999\r\n\r\n"),
    "bad chunk size": (400, cases.POST_CHUNKED + b"8000000000000005\r\n"),
    "bad chunk extension": (400, cases.POST_CHUNKED + b'5;a="\r\n'),
    "no line end behind a chunk": (400, cases.POST_CHUNKED + b"5\r\nhelloX"),
    "bad trailer": (400, cases.POST_CHUNKED + b"0\r\nHost: a\r\n\r\n"),
}
REFUSALS = {
    **{
        f"{reason}: {name}": (400, cases.BAD_REQUESTS[name], reason)
        for reason, names in OF_REQUESTS.items()
        for name in names
    },
    **{reason: (status, data, reason) for reason, (status, data) in OTHER_REQUESTS.items()},
}

OF_RESPONSES = {
    "Content-Length and Transfer-Encoding": [
        "both framings",
        "both framings, other order",
        "both framings to a 304",
        "both framings to a 204",
    ],
    "two Content-Lengths": ["Content-Length twice", "Content-Length twice, different"],
    "bad Content-Length": [
        "Content-Length as a list",
        "Content-Length with a sign",
        "negative Content-Length",
        "Content-Length of 19 digits",
    ],
    "bad Transfer-Encoding": ["Transfer-Encoding gzip", "Transfer-Encoding identity"],
    "two Transfer-Encodings": ["Transfer-Encoding twice"],
    "Transfer-Encoding in HTTP/1.0": ["Transfer-Encoding in 1.0"],
    "1xx with a body": ["100 with a length", "chunked 103"],
    "bare LF": ["bare LF", "bare LF in a field"],
    "bare CR": ["bare CR in a field"],
    "control character": ["NUL in a field", "control character in the reason"],
    "folded line": ["obs-fold"],
    "space before the colon": ["space before the colon", "broken 103"],
    "bad field name": ["no colon", "empty name"],
    "broken first line": [
        "HTTP/2",
        "HTTP/1.2",
        "two digits",
        "four digits",
        "status 099",
        "no version",
        "empty line first",
        "a request",
    ],
    "bad Connection": ["Connection names the framing"],
    "head over the limit": ["longer than 64 KB", "endless head"],
    "more fields than the limit": ["more than 512 fields"],
    "101 without a request to upgrade": ["101 that nobody asked for"],
    "FIN in the head": ["no head at all", "closed inside the head"],
    "FIN before the head": ["closed at once"],
}
OF_BODIES = {
    "bad chunk size": ["not a size", "0x", "sign", "space", "17 digits", "bare LF", "2^63"],
    "bad chunk extension": [
        "control character in an extension",
        "extension too long",
        "empty extension",
        "extension with an open quote",
    ],
    "no line end behind a chunk": ["longer than said"],
    "bad trailer": ["forbidden trailer", "broken trailer"],
}


def check_complete(reasons: dict[str, list[str]], table: dict[str, bytes]) -> None:
    assert sorted(name for names in reasons.values() for name in names) == sorted(table)
    assert set(reasons) <= set(REASONS)


def test_every_case_has_a_reason():
    check_complete(OF_REQUESTS, cases.BAD_REQUESTS)
    check_complete(OF_RESPONSES, cases.BAD_RESPONSES)
    check_complete(OF_BODIES, cases.BAD_RESPONSE_BODIES)
    assert len(REASONS) == len(set(REASONS))


def last_line(proxy: Proxy, before: int) -> dict:
    return proxy.access(before + 1)[before]


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("cut", ["whole", pytest.param("bytes", marks=pytest.mark.slow)])
def test_a_refused_request_says_why(proxy, client, serve, name, cut):
    def script(connection: Connection) -> None:
        with contextlib.suppress(EOFError, ConnectionError):  # some requests are refused after their head went up
            answer_all(connection)

    serve(script)
    status, data, reason = REFUSALS[name]
    before, count = len(proxy.access(0)), proxy.metric("llmpipe_failures_total", reason=reason)
    if cut == "bytes" and len(data) < 1000:
        with contextlib.suppress(ConnectionError):  # it may be refused before it is whole
            for byte in data:
                client.send(bytes([byte]))
    else:
        client.send(data)
    response = client.read_response()
    assert response.status == status
    line = last_line(proxy, before)
    assert (line["outcome"], line["status"], line["reason"]) == ("bad_request", status, reason)
    proxy.wait_metric("llmpipe_failures_total", count + 1, reason=reason)
    message = response.error()["message"]
    assert message.endswith(".")
    assert message != "The request is not well-formed HTTP/1."


def test_each_reason_has_a_message_of_its_own(proxy, serve):
    messages = {}
    for status, data, reason in REFUSALS.values():
        with Client(proxy) as client:
            response = client.request(data)
            assert response.status == status
            messages.setdefault(reason, set()).add(response.error()["message"])
    assert all(len(texts) == 1 for texts in messages.values()), messages
    assert len(set.union(*messages.values())) == len(messages)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /?key=%s HTTP/1.1\r\nHost : a\r\n\r\n",
        b"%s / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nX : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: %s@a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %s\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: %s\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: (%s)\r\n\r\n",
        b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a="%s\r\n',
        b"GET http://u:%s@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\nX-Forwarded-For: %s\r\nX : 1\r\n\r\n",
    ],
)
def test_nothing_of_a_refused_head_is_told(proxy_to, head):
    proxy = proxy_to(answer_all, options=["--log-level", "debug"])
    with Client(proxy) as client:
        data = head.replace(b"%s", SECRET)
        response = client.request(data)
        assert response.status in (400, 417)
        assert SECRET not in response.raw
        assert client.read_eof() == b""
    proxy.access()
    assert SECRET.decode() not in "".join(proxy.stderr)
    assert SECRET.decode() not in json.dumps(proxy.admin("/metrics"))


@pytest.mark.parametrize("name", [f"{reason}: {name}" for reason, names in OF_RESPONSES.items() for name in names])
def test_a_broken_response_says_why(proxy, client, serve, name):
    reason, _, case = name.partition(": ")
    data = cases.BAD_RESPONSES[case]

    def script(connection: Connection) -> None:
        connection.read_request()
        with contextlib.suppress(ConnectionError):
            connection.send(data)
            if case in ("no head at all", "closed inside the head", "closed at once"):
                connection.close()
            else:
                connection.wait_eof()

    serve(script)
    path = b"/%d" % time.monotonic_ns()
    response = client.request(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    if response.status == 103:
        response = client.read_response()
    assert response.status == 502
    line = proxy.access(path=path.decode())[0]
    assert (line["outcome"], line["reason"]) == ("upstream_error", reason)


@pytest.mark.parametrize("name", [f"{reason}: {name}" for reason, names in OF_BODIES.items() for name in names])
def test_a_broken_response_body_says_why(proxy, client, serve, name):
    reason, _, case = name.partition(": ")

    def script(connection: Connection) -> None:
        connection.read_request()
        with contextlib.suppress(ConnectionError):
            connection.send(cases.OK + cases.CHUNKED + b"\r\n4\r\ngood\r\n" + cases.BAD_RESPONSE_BODIES[case])
            connection.wait_eof()

    serve(script)
    path = b"/%d" % time.monotonic_ns()
    client.send(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert split_head(client.read_head())[0] == b"HTTP/1.1 200 OK"
    assert not client.read_eof().endswith(cases.LAST_CHUNK)
    line = proxy.access(path=path.decode())[0]
    assert (line["outcome"], line["reason"]) == ("upstream_abort", reason)


def test_bytes_behind_an_answer_are_thrown_away_for_a_reason(proxy, client, serve):
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(cases.OK + cases.LENGTH + b"\r\nhelloEVIL")
        connection.wait_eof()

    serve(script)
    before = proxy.metric("llmpipe_failures_total", reason="bytes behind the end")
    assert client.request(b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n").body == b"hello"
    line = proxy.access(path="/behind")[0]
    assert (line["outcome"], line["reason"]) == ("ok", "bytes behind the end")
    assert proxy.metric("llmpipe_failures_total", reason="bytes behind the end") == before + 1


def test_too_many_connections_say_why(proxy_to):
    options = ["--max-connections", "3", "--max-connections-per-ip", "1", "--trusted-proxies", "none"]
    proxy = proxy_to(answer_all, options=options)
    with Client(proxy), Client(proxy) as second:
        assert second.request(cases.GET + b"\r\n").status == 429
        assert proxy.access()[0]["reason"] == "connections of one address"
    proxy = proxy_to(answer_all, options=["--max-connections", "1"])
    with Client(proxy), Client(proxy) as second:
        assert second.request(cases.GET + b"\r\n").status == 503
        assert proxy.access()[0]["reason"] == "connections of all"
