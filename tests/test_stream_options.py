"""Rule Q2: a stream whose client has not asked for its usage tells it to the proxy, and the client gets what it would have got."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Backend, Client, Connection, Proxy, Request, chunk, respond, sse_head
from seeds import seeds

FORCE = ("--include-usage", "force")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ASK = '{"include_usage":true}'


def event(data: object, end: str = "\n\n") -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data, separators=(',', ':'))}{end}".encode()


def stream_of(texts: list[str], end: str = "\n\n", **more: object) -> list[bytes]:
    """The events of a stream, the last one [DONE]."""
    return [event({"choices": [{"delta": {"content": text}}], **more}, end) for text in texts] + [event("[DONE]", end)]


EVENTS = stream_of(["one", " two", " three"])
EXTRA = event({"id": "x", "choices": [], "usage": USAGE})


class Server:
    """Answers as inference servers do: the usage stands before [DONE] where it is asked for. Keeps the requests."""

    def __init__(
        self,
        events: list[bytes] = EVENTS,
        extra: bytes = EXTRA,
        *,
        cut: Callable[[bytes], Iterator[bytes]] | None = None,
        head: bytes = sse_head(),
    ) -> None:
        self.requests: list[Request] = []
        self._events = events
        self._extra = extra
        self._cut = cut or (lambda data: iter([data]))
        self._head = head

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            self.requests.append(request)
            events = list(self._events)
            if b'"include_usage":true' in request.body.replace(b" ", b""):
                events.insert(len(events) - 1, self._extra)
            self.answer(connection, b"".join(events))

    def answer(self, connection: Connection, body: bytes) -> None:
        connection.send(self._head)
        for piece in self._cut(body):
            connection.send(chunk(piece))
        connection.send(b"0\r\n\r\n")


def post(body: bytes, path: bytes = b"/v1/chat/completions", version: bytes = b"1.1", framing: str = "length") -> bytes:
    head = b"POST %b HTTP/%b\r\nHost: x\r\nContent-Type: application/json\r\n" % (path, version)
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    pieces = b"".join(chunk(body[at : at + 9]) for at in range(0, len(body), 9))
    return head + b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % pieces


def ask(proxy: Proxy, request: bytes) -> bytes:
    with Client(proxy) as client:
        answer = client.request(request)
    assert answer.status == 200
    return answer.body


def tokens(proxy: Proxy) -> list[Any]:
    line = proxy.access()[-1]
    return [line["tokens_prompt"], line["tokens_completion"]]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ('{"stream":true}', f'{{"stream":true,"stream_options":{ASK}}}'),
        (' { "stream" : true , "n": 1 } \n', f' {{ "stream" : true , "n": 1 ,"stream_options":{ASK}}} \n'),
        ('{"stream_options":null,"stream":true}', f'{{"stream_options":{ASK},"stream":true}}'),
        ('{"stream_options": null ,"stream":true}', f'{{"stream_options": {ASK} ,"stream":true}}'),
        ('{"stream":true,"stream_options":{}}', f'{{"stream":true,"stream_options":{ASK}}}'),
        (
            '{"stream":true,"stream_options":{ "x": {"include_usage": false} }}',
            '{"stream":true,"stream_options":{"include_usage":true, "x": {"include_usage": false} }}',
        ),
        (
            '{"stream_options":{"include_usage": false},"stream":true}',
            '{"stream_options":{"include_usage": true},"stream":true}',
        ),
        (
            '{"stream":true,"stream_options":{"x":[1],"include_usage":null}}',
            '{"stream":true,"stream_options":{"x":[1],"include_usage":true}}',
        ),
        ('{"str\\u0065am":true,"m":"é"}', f'{{"str\\u0065am":true,"m":"é","stream_options":{ASK}}}'),
        (
            '{"messages":[{"stream_options":{"include_usage":true},"stream":false}],"stream":true}',
            f'{{"messages":[{{"stream_options":{{"include_usage":true}},"stream":false}}],"stream":true,"stream_options":{ASK}}}',
        ),
    ],
)
def test_q2_a_stream_is_made_to_tell_its_usage(proxy_to: Any, sent: str, got: str, framing: str) -> None:
    server = Server(cut=lambda body: iter(body.splitlines(keepends=True)))
    proxy = proxy_to(server, options=FORCE)
    assert ask(proxy, post(sent.encode(), framing=framing)) == b"".join(EVENTS)
    assert [request.body.decode() for request in server.requests] == [got]
    assert tokens(proxy) == [7, 3]
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="usage_event") == len(EXTRA)
    counted = {key: n for key, n in proxy.metrics().items() if key.startswith("llmpipe_backend_tokens_total{") and n}
    assert sorted(counted.values()) == [3, 7]
    assert not any('backend=""' in key for key in counted)


@pytest.mark.parametrize(
    "sent",
    [
        '{"stream":false}',
        "{}",
        '{"stream":"true"}',
        '{"stream":true,"stream":true}',
        '{"stream":true,"Stream":true}',
        '{"stream":true,"stream_options":{},"stream_options":null}',
        '{"stream":true,"Stream_Options":{}}',
        '{"stream":true,"stream_options":{"include_usage":false,"include_usage":null}}',
        '{"stream":true,"stream_options":{"Include_Usage":false}}',
        '{"stream":true,"stream_options":{"include_usage":0}}',
        '{"stream":true,"stream_options":[]}',
        '{"stream":true,"stream_options":"x"}',
        '{"stream":true,"stream_options":nope}',
        '{"stream":trux}',
        '{"stream":true,"stream_options":{"include_usage":nulls}}',
        '[{"stream":true}]',
        '"stream"',
        '{"stream":true',
        '{"stream":true]',
        '{"stream":true}}',
        '{"model":"a","model":"b","stream":true}',
        "",
    ],
)
def test_q2_what_is_no_stream_or_says_it_twice_goes_as_it_is(proxy_to: Any, sent: str) -> None:
    """The backend judges it, as if the proxy were not there."""
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    assert ask(proxy, post(sent.encode())) == b"".join(EVENTS)
    assert server.requests[0].body.decode() == sent


@pytest.mark.parametrize("options", [FORCE, ()])
def test_q2_who_asks_for_the_usage_gets_it(proxy_to: Any, options: tuple[str, ...]) -> None:
    server = Server()
    proxy = proxy_to(server, options=options)
    sent = b'{"stream":true,"stream_options":{"include_usage":true}}'
    assert ask(proxy, post(sent)) == b"".join([*EVENTS[:-1], EXTRA, EVENTS[-1]])
    assert server.requests[0].body == sent
    assert tokens(proxy) == [7, 3]


@pytest.mark.parametrize("path", [b"/v1/responses", b"/v1/messages", b"/v1/completionsx", b"/"])
def test_q2_other_paths_have_no_such_option(proxy_to: Any, path: bytes) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    assert ask(proxy, post(b'{"stream":true}', path)) == b"".join(EVENTS)
    assert server.requests[0].body == b'{"stream":true}'


@pytest.mark.parametrize(
    "path", [b"/v1/completions", b"/v1/chat/completions?api-version=2", b"/openai/deployments/x/chat/completions"]
)
def test_q2_the_paths_that_have_it(proxy_to: Any, path: bytes) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    assert ask(proxy, post(b'{"stream":true}', path)) == b"".join(EVENTS)
    assert b"include_usage" in server.requests[0].body


def random_cuts(seed: int) -> Callable[[bytes], Iterator[bytes]]:
    def cut(body: bytes) -> Iterator[bytes]:
        dice = random.Random(seed)
        most = dice.choice([1, 3, 20, 200, 4000])
        at = 0
        while at < len(body):
            n = dice.randint(1, most)
            yield body[at : at + n]
            at += n

    return cut


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_q2_however_the_answer_is_cut(proxy_to: Any, seed: int, end: str) -> None:
    long = json.dumps({"choices": [{"delta": {"content": 'x "choices":[] "usage":{'}}], "pad": "y" * 9000})
    events = [b": ping" + end.encode(), *stream_of(["one", "é" * 700], end), event(long, end), event("[DONE]", end)]
    server = Server(events, event({"usage": USAGE, "choices": []}, end), cut=random_cuts(seed))
    proxy = proxy_to(server, options=FORCE)
    assert ask(proxy, post(b'{"stream":true}')) == b"".join(events)
    assert tokens(proxy) == [7, 3]


def sifted(pieces: list[bytes], probe: Any) -> bytes:
    found, _, held = probe.sift(pieces)
    return b"".join(found) + held


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_q2_a_stream_cut_at_every_byte(probe: Any, end: str) -> None:
    events = [b": ping" + end.encode(), *stream_of(["one", " two"], end)]
    body = b"".join([*events[:-1], event({"choices": [], "usage": USAGE}, end), events[-1]])
    for at in range(len(body) + 1):
        assert sifted([body[:at], body[at:]], probe) == b"".join(events)
    assert sifted([bytes([byte]) for byte in body], probe) == b"".join(events)


@pytest.mark.parametrize("seed", seeds(200))
def test_q2_events_that_are_not_it_stay(probe: Any, seed: int) -> None:
    dice = random.Random(seed)
    kinds = [
        b"\n",
        b"\r\n",
        b": ping\n\n",
        b"event: x\ndata: 1\ndata: 2\n\n",
        event({"choices": [], "usage": None}),
        event({"choices": [{"usage": {}}], "usage": USAGE}),
        event({"usage": USAGE}),
        event({"choices": [], "prompt_filter_results": [{}]}),
        event({"choices": [{"delta": {"content": '"choices":[],"usage":{'}}]}),
        event('{"choices":[],"usage":'),
        event("x" * dice.randint(3900, 4300)),
        event({"x": {"choices": []}, "usage": USAGE, "choices": [{"delta": {"content": "text"}}]}),
        event({"x": [{"usage": USAGE}], "choices": []}),
        event({"choices": [], "usage": USAGE, "error": {"message": "no"}}),
        b"event: error\n" + event({"choices": [], "usage": USAGE}),
        b"id: 1\n" + event({"choices": [], "usage": USAGE}),
        event({"choices": [], "usage": USAGE}, "\n") + event("[DONE]"),
        event({"choices": [], "usage": USAGE}, "\nretry: 1\n\n"),
        event('{"choices":[],"usage":{"a":1}'),
        event('[{"choices":[],"usage":{"a":1}}]'),
        event({"choices": [], "usage": USAGE, "choices ": [], "x": '"choices":[{}]'} | {"choices": "none"}),
    ]
    events: list[tuple[bytes, bool]] = []
    for _ in range(dice.randint(1, 12)):
        gone = dice.random() < 0.3
        spaces = " " * dice.randrange(3)
        extra = f'data: {{"choices":{spaces}[{spaces}],{spaces}"usage"{spaces}:{spaces}{{"prompt_tokens":1}}}}\n\n'
        events.append((extra.encode(), True) if gone else (dice.choice(kinds), False))
    body = b"".join(data for data, _ in events)
    cuts = sorted(dice.randint(0, len(body)) for _ in range(dice.randrange(30)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    found, dropped, held = probe.sift([piece for piece in pieces if piece])
    assert b"".join(found) + held == b"".join(data for data, gone in events if not gone)
    assert dropped == sum(len(data) for data, gone in events if gone)


def test_q2_no_event_waits_for_the_next_one(proxy_to: Any) -> None:
    """Each is forwarded before the backend sends another."""
    seen: list[bytes] = []
    gate = threading.Condition()

    def in_step(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        for item in EVENTS[:-1]:
            connection.send(chunk(item))
            with gate:
                while item not in seen:
                    assert gate.wait(30)
        connection.send(chunk(EXTRA + EVENTS[-1]) + b"0\r\n\r\n")
        connection.wait_eof(30)

    proxy = proxy_to(in_step, options=FORCE)
    with Client(proxy) as client:
        client.send(post(b'{"stream":true}'))
        client.read_head()
        for item in EVENTS[:-1]:
            client.recv_until(item)
            with gate:
                seen.append(item)
                gate.notify()
        assert client.recv_until(b"0\r\n\r\n").endswith(EVENTS[-1] + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
def test_q2_whatever_the_framing(proxy_to: Any, framing: str, version: bytes) -> None:
    """A length that was announced leaves no room to take something out: then the client gets the event."""
    whole = b"".join([*EVENTS[:-1], EXTRA, EVENTS[-1]])

    class Framed(Server):
        def answer(self, connection: Connection, body: bytes) -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            if framing == "chunked":
                super().answer(connection, body)
            elif framing == "length":
                connection.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            else:
                connection.send(head + b"\r\n" + body[:100])
                connection.send(body[100:])
                connection.half_close()

    proxy = proxy_to(Framed(), options=FORCE)
    expected = whole if framing == "length" else b"".join(EVENTS)
    assert ask(proxy, post(b'{"stream":true}', version=version)) == expected
    assert tokens(proxy) == [7, 3]


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("first", [EVENTS[0], b""], ids=["behind another", "alone"])
def test_q2_an_event_that_never_becomes_whole_is_forwarded_at_the_end(
    proxy_to: Any, framing: str, first: bytes
) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if framing == "chunked":
            connection.send(sse_head() + (chunk(first) if first else b"") + chunk(b"data: half") + b"0\r\n\r\n")
            connection.wait_eof(30)
        else:
            connection.send(head + b"\r\n" + first + b"data: half")
            connection.half_close()

    proxy = proxy_to(script, options=FORCE)
    assert ask(proxy, post(b'{"stream":true}')) == first + b"data: half"
    (line,) = proxy.access()
    assert line["ttft_ms"] is not None
    if not first:
        assert line["events"] == 1


@pytest.mark.parametrize("rest", [b"", b"data: hal", b"data: " + b"x" * 5000])
def test_q2_a_stream_that_breaks_ends_with_an_event_of_its_own(proxy_to: Any, rest: bytes) -> None:
    """The error stands between two events, also where the backend broke off within one; one that was forwarded in part ends so."""

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(EVENTS[0]) + (chunk(rest) if rest else b""))
        connection.half_close()

    proxy = proxy_to(script, options=(*FORCE, "--on-midstream-error", "event"))
    with Client(proxy) as client:
        client.send(post(b'{"stream":true}'))
        client.read_head()
        raw = client.read_eof()
    assert EVENTS[0] in raw
    told = b'data: {"error"' in raw
    assert told == (len(rest) < 4096)
    assert not raw.endswith(b"0\r\n\r\n")
    assert (b"data: hal" in raw) is False
    proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="upstream_abort")


def test_q2_the_request_is_sent_to_the_next_backend_as_it_was_changed(proxy_to: Any) -> None:
    def dead(connection: Connection) -> None:
        connection.read_request()
        connection.reset()

    server = Server()
    with Backend(dead) as first, Backend(server) as second:
        proxy = proxy_to(first, second, options=(*FORCE, "--policy", "round_robin"))
        for _ in range(4):
            assert ask(proxy, post(b'{"stream":true}')) == b"".join(EVENTS)
    assert all(request.body == f'{{"stream":true,"stream_options":{ASK}}}'.encode() for request in server.requests)
    assert len(server.requests) == 4


def test_q2_with_an_alias(proxy_to: Any, tmp_path: Any) -> None:
    server = Server()
    with Backend(server) as backend:
        (tmp_path / "llmpipe.toml").write_text(f"""
            [pools.a]
            include_usage = "force"
            models = ["a-much-longer-name"]
            aliases = {{ "m" = "a-much-longer-name" }}
            [[pools.a.backends]]
            url = "{backend.url}"

            [pools.b]
            models = ["plain"]
            [[pools.b.backends]]
            url = "{backend.url}"
        """)
        proxy = proxy_to(options=["--config", str(tmp_path / "llmpipe.toml")])
        for sent in (
            '{"model":"m","stream":true}',
            '{"stream":true,"stream_options":{},"model":"m"}',
            '{"stream":true,"model":"plain"}',
        ):
            for framing in ("length", "chunked"):
                assert ask(proxy, post(sent.encode(), framing=framing)) == b"".join(EVENTS)
    name = '"model":"a-much-longer-name"'
    bodies = [request.body.decode() for request in server.requests]
    assert bodies[0] == bodies[1] == f'{{{name},"stream":true,"stream_options":{ASK}}}'
    assert bodies[2] == bodies[3] == f'{{"stream":true,"stream_options":{ASK},{name}}}'
    assert bodies[4] == bodies[5] == '{"stream":true,"model":"plain"}'


def test_q2_a_long_body_that_comes_in_many_pieces(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    sent = json.dumps({"messages": "x" * 300_000, "stream": True}).encode()
    for framing in ("length", "chunked"):
        assert ask(proxy, post(sent, framing=framing)) == b"".join(EVENTS)
    want = sent[:-1] + b',"stream_options":' + ASK.encode() + b"}"
    assert [request.body for request in server.requests] == [want, want]


def test_q2_a_body_that_there_is_no_room_for_goes_as_it_is(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=(*FORCE, "--kept-memory", "100KB"))
    sent = json.dumps({"messages": "x" * 300_000, "stream": True}).encode()
    assert ask(proxy, post(sent)) == b"".join(EVENTS)
    assert server.requests[0].body == sent
    assert tokens(proxy) == [None, None]


def test_q2_a_client_that_waits_for_100_continue(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    body = b'{"stream":true}'
    with Client(proxy) as client:
        head, _, _ = post(body).partition(b"\r\n\r\n")
        assert client.request(head + b"\r\nExpect: 100-continue\r\n\r\n").status == 100
        assert client.request(body).body == b"".join(EVENTS)
    assert b"include_usage" in server.requests[0].body
    assert not server.requests[0].values(b"expect")


def test_q2_a_request_behind_it_is_the_next_one(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    with Client(proxy) as client:
        client.send(post(b'{"stream":true}') + post(b'{"stream":true,"n":1}'))
        assert client.read_response().body == b"".join(EVENTS)
        assert client.read_response().body == b"".join(EVENTS)
    assert [b"include_usage" in request.body for request in server.requests] == [True, True]


def test_q2_an_error_of_the_backend_is_its_client_s(proxy_to: Any) -> None:
    """A server that does not know the option says so, and its answer is forwarded."""

    def script(connection: Connection) -> None:
        connection.read_request()
        body = b'{"error":"stream_options?"}'
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.wait_eof(30)

    proxy = proxy_to(script, options=FORCE)
    with Client(proxy) as client:
        answer = client.request(post(b'{"stream":true}'))
    assert (answer.status, answer.body) == (400, b'{"error":"stream_options?"}')


def in_two(connection: Connection) -> None:
    """Events whose blank lines come in writes of their own, slower all together than the first content may take."""
    connection.read_request()
    connection.send(sse_head())
    for item in [*EVENTS[:-1], EXTRA, EVENTS[-1]]:
        connection.send(chunk(item[:-1]))
        time.sleep(0.25)
        connection.send(chunk(item[-1:]))
        time.sleep(0.25)
    connection.send(b"0\r\n\r\n")
    connection.wait_eof(30)


def test_q2_an_event_that_comes_in_two_pieces_is_content(proxy_to: Any) -> None:
    """It stops the time for the first one, and each counts once; the one that is taken out does not."""
    proxy = proxy_to(in_two, options=(*FORCE, "--ttft-timeout", "1s"))
    assert ask(proxy, post(b'{"stream":true}')) == b"".join(EVENTS)
    (line,) = proxy.access()
    assert (line["outcome"], line["events"]) == ("ok", len(EVENTS))
    assert line["ttft_ms"] is not None


def test_q2_a_comment_between_events_goes_on_at_once(proxy_to: Any) -> None:
    """Also one without a blank line, as those are that keep a connection."""
    gate = threading.Event()

    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b": ping\n"))
        assert gate.wait(30)
        connection.send(chunk(b"".join(EVENTS)) + b"0\r\n\r\n")
        connection.wait_eof(30)

    proxy = proxy_to(script, options=FORCE)
    with Client(proxy) as client:
        client.send(post(b'{"stream":true}'))
        client.read_head()
        assert client.recv_until(b": ping\n").endswith(b": ping\n")
        gate.set()
        client.recv_until(EVENTS[-1])


def test_q2_a_second_model_is_refused_in_a_body_that_goes_as_it_is(proxy_to: Any, tmp_path: Any) -> None:
    def script(connection: Connection) -> None:
        connection.read_head()
        connection.wait_eof(30)

    with Backend(script) as backend:
        (tmp_path / "llmpipe.toml").write_text(f"""
            [pools.a]
            include_usage = "force"
            models = ["a", "b"]
            [[pools.a.backends]]
            url = "{backend.url}"
        """)
        proxy = proxy_to(options=["--config", str(tmp_path / "llmpipe.toml"), "--kept-memory", "100KB"])
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        body = b'{"model":"a","stream":true,"pad":"%b","model":"b"}' % (b"x" * 400_000)
        with Client(proxy) as client:
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = client.read_response()
    assert answer.status == 400
    assert answer.error()["param"] == "model"


def test_q2_a_body_that_stops_has_the_time_of_its_pool(proxy_to: Any, tmp_path: Any) -> None:
    server = Server()
    with Backend(server) as backend:
        (tmp_path / "llmpipe.toml").write_text(f"""
            [pools.a]
            include_usage = "force"
            idle_timeout = "0.3s"
            models = ["a"]
            [[pools.a.backends]]
            url = "{backend.url}"

            [pools.b]
            idle_timeout = "0s"
            models = ["b"]
            [[pools.b.backends]]
            url = "{backend.url}"
        """)
        proxy = proxy_to(options=["--config", str(tmp_path / "llmpipe.toml")])
        with Client(proxy) as client:
            client.send(post(b'{"model":"a","stream":true}')[:-3])
            assert client.read_response().status == 408


def test_q2_a_body_that_comes_slowly_and_goes_on_is_waited_for(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=(*FORCE, "--idle-timeout", "2s"))
    request = post(b'{"stream":true,"n":1}')
    with Client(proxy) as client:
        client.send(request[:-10])
        for byte in request[-10:]:
            time.sleep(0.25)
            client.send(bytes([byte]))
        assert client.read_response().body == b"".join(EVENTS)
    assert b"include_usage" in server.requests[0].body


@pytest.mark.slow
def test_q2_a_body_that_stops_for_thirty_seconds_goes_as_it_is(proxy_to: Any) -> None:
    request = post(b'{"stream":true,"n":1}')
    came = threading.Event()

    def script(connection: Connection) -> None:
        got = connection.read_head()
        got += connection.read(11)
        came.set()
        got += connection.read(10)
        assert got.endswith(b'\r\n\r\n{"stream":true,"n":1}')
        respond(connection)

    proxy = proxy_to(script, options=FORCE)
    with Client(proxy) as client:
        started = time.monotonic()
        client.send(request[:-10])
        assert came.wait(120)
        assert time.monotonic() - started > 29
        client.send(request[-10:])
        assert client.read_response().status == 200


def test_q2_a_body_in_another_charset_goes_as_it_is(proxy_to: Any) -> None:
    server = Server()
    proxy = proxy_to(server, options=FORCE)
    request = post(b'{"stream":true}').replace(b"application/json", b"application/json; charset=utf-16")
    assert ask(proxy, request) == b"".join(EVENTS)
    assert server.requests[0].body == b'{"stream":true}'
