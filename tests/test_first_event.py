"""Rule N1: an event stream whose first event is an error, or that ends without one, is asked for at the next backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import openai
import pytest
from harness import Backend, Client, Connection, Proxy, chunk, sse_head

GET = b"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n"
OPTIONS = ("--retry-on-error-event",)
WELL = b'data: {"choices": []}\n\n'
ERROR = b'data: {"error": {"message": "out of memory"}}\n\n'
Script = Callable[[Connection], None]


def stream(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> Script:
    """Answers each request with an event stream of these chunks."""

    def answer(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(sse_head() + b"".join(map(chunk, pieces)) + end)
            if not end:
                conn.close()
                return

    return answer


class Two:
    """A proxy in front of a backend that is asked first, and of one that is well and asked where that one fails."""

    def __init__(self, first: Script, options: tuple[str, ...] = OPTIONS) -> None:
        with ExitStack() as stack:
            self.first = stack.enter_context(Backend(first))
            self.second = stack.enter_context(Backend(stream(WELL)))
            self.proxy = stack.enter_context(Proxy(self.first.url, f"{self.second.url}?tier=1", options=list(options)))
            self._stack = stack.pop_all()

    def body(self) -> bytes:
        """What one request is answered with."""
        with Client(self.proxy) as client:
            response = client.request(GET)
            assert response.status == 200
            return response.body

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def two() -> Iterator[Callable[..., Two]]:
    with ExitStack() as stack:

        def make(first: Script, options: tuple[str, ...] = OPTIONS) -> Two:
            made = Two(first, options)
            stack.callback(made.close)
            return made

        yield make


ERRORS = {
    "data": ERROR,
    "spaces": b'data:  { "error" : "no"}\n\n',
    "no space": b'data:{"error":"no"}\n\n',
    "event": b'event: error\ndata: {"type": "error"}\n\n',
    "event without a space": b"event:error\n\n",
    "CRLF": b'event: message\r\ndata: {"error": 1}\r\n\r\n',
    "id first": b'id: 1\nretry: 5\ndata: {"error": 1}\n\n',
    "behind comments": b': ping\n\n: ping\n\ndata: {"error": 1}\n\n',
    "responses": b'event: response.failed\ndata: {"type": "response.failed"}\n\n',
}


@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS)
def test_n1_an_error_is_asked_for_elsewhere(two, event):
    fleet = two(stream(event))
    assert fleet.body() == WELL
    fleet.proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")
    assert fleet.proxy.metric("llmpipe_retries_total", cause="first_event") == 1
    assert fleet.proxy.metric("llmpipe_failures_total", reason="error event first") == 1
    assert fleet.proxy.metric("llmpipe_discarded_bytes_total", reason="retried_response") > len(event)
    assert fleet.proxy.access()[0]["attempts"] == 2
    # It has answered: it is not left out.
    assert fleet.proxy.metric("llmpipe_backend_failures_total", backend=fleet.first.url) == 0
    fleet.proxy.settled()


def test_n1_the_error_in_pieces(two):
    """Wherever the stream is cut: each byte in a chunk and a segment of its own."""

    def slowly(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head())
        with suppress(OSError):  # it is told enough before the end, and closes
            for i in range(len(ERROR)):
                conn.send(chunk(ERROR[i : i + 1]))
        conn.wait_eof()

    assert two(slowly).body() == WELL


@pytest.mark.parametrize("comment", [b"", b": ping\n\n"])
@pytest.mark.parametrize("end", [b"0\r\n\r\n", b""], ids=["whole", "FIN"])
def test_n1_an_end_without_an_event(two, comment, end):
    fleet = two(stream(*([comment] if comment else []), end=end))
    assert fleet.body() == WELL
    assert fleet.proxy.metric("llmpipe_failures_total", reason="end without an event") == 1


def test_n1_a_reset_without_an_event(two):
    def reset(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b": ping\n\n"))
        threading.Event().wait(0.2)
        conn.reset()

    assert two(reset).body() == WELL


EVENTS = {
    "data": WELL,
    "named": b"event: message_start\ndata: {}\n\n",
    "error inside": b'data: {"choices": [], "error": null}\n\n',
    "another name": b'data: {"errors": 1}\n\n',
    "behind comments": b": ping\n\n" + WELL,
    "done": b"data: [DONE]\n\n",
    "a long line": b"data: " + b"x" * 5000 + b"\n\n",
    "many comments": b": ping\n\n" * 3000 + WELL,
    "long comment": b": " + b"x" * 40_000,
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_n1_what_is_no_error_is_forwarded(two, event):
    """With nothing lost, and never more held than 16 KB."""
    fleet = two(stream(event, ERROR))
    assert fleet.body() == event + ERROR
    assert fleet.proxy.metric("llmpipe_retries_total") == 0
    assert not fleet.second.connections


def test_n1_the_head_comes_with_the_first_event_and_nothing_waits_behind_it(two):
    go = threading.Event()

    def slowly(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b": ping\n\n"))
        go.wait(60)
        conn.send(chunk(WELL[:9]))
        conn.wait_eof()

    fleet = two(slowly)
    with Client(fleet.proxy) as client:
        client.send(GET)
        assert client.silent(0.3)
        go.set()
        client.recv_until(WELL[:9])  # the letter behind the quote tells that it is no error
    fleet.proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="client_abort")


def test_n1_without_another_backend_the_error_reaches_the_client():
    with Backend(stream(ERROR)) as backend, Proxy(backend.url, options=list(OPTIONS)) as proxy, Client(proxy) as client:
        assert client.request(GET).body == ERROR


def test_n1_within_the_retry_budget(two):
    """Ten at the start, and one for every five exchanges."""
    fleet = two(stream(ERROR))
    bodies = [fleet.body() for _ in range(30)]
    assert bodies[:10] == [WELL] * 10
    assert ERROR in bodies
    assert 10 <= fleet.proxy.metric("llmpipe_retries_total") <= 17


def test_n1_all_fail():
    """The client gets what the last one said."""
    with Backend(stream(ERROR)) as one, Backend(stream(b": ping\n\n", ERROR)) as other:
        with Proxy(one.url, f"{other.url}?tier=1", options=list(OPTIONS)) as proxy:
            with Client(proxy) as client:
                assert client.request(GET).body == b": ping\n\n" + ERROR
            proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")
            assert proxy.metric("llmpipe_retries_total") == 1


def test_n1_off_by_default(two):
    fleet = two(stream(ERROR), options=())
    assert fleet.body() == ERROR
    assert not fleet.second.connections


def test_n1_a_client_that_leaves_while_the_head_is_held(two):
    closed = threading.Event()

    def silent(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b": ping\n\n"))
        conn.wait_eof()
        closed.set()

    fleet = two(silent)
    with Client(fleet.proxy) as client:
        client.send(GET)
        assert client.silent(0.2)
    assert closed.wait(30)
    fleet.proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="client_abort")
    fleet.proxy.settled()


def test_n1_the_time_for_a_first_token_goes_on(two):
    def silent(conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b": ping\n\n"))
        conn.wait_eof()

    fleet = two(silent, options=(*OPTIONS, "--ttft-timeout", "500ms"))
    with Client(fleet.proxy) as client:
        response = client.request(GET)
    assert response.status == 504
    assert response.error()["code"] == "timeout_ttft"
    assert not fleet.second.connections


def test_n1_with_the_openai_client(two):
    def good(conn: Connection) -> None:
        while True:
            conn.read_request()
            event = b'data: {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "hi"}}]}\n\n'
            conn.send(sse_head() + chunk(event) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with Backend(stream(ERROR)) as bad, Backend(good) as well:
        with Proxy(bad.url, f"{well.url}?tier=1", options=list(OPTIONS)) as proxy:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="none", max_retries=0)
            messages = [{"role": "user", "content": "hello"}]
            chunks = client.chat.completions.create(model="m", messages=messages, stream=True)
            assert "".join(part.choices[0].delta.content for part in chunks) == "hi"


def test_r_a_failed_response_has_its_own_event():
    """The API of responses has an event for it, and its client ends."""

    def breaks(conn: Connection) -> None:
        conn.read_request()
        conn.send(
            sse_head() + chunk(b'event: response.created\ndata: {"type": "response.created", "sequence_number": 0}\n\n')
        )
        conn.close()

    options = ["--on-midstream-error", "event"]
    with Backend(breaks) as backend, Proxy(backend.url, options=options) as proxy:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="none", max_retries=0)
        events = []
        with pytest.raises(openai.APIConnectionError):
            for event in client.responses.create(model="m", input="hello", stream=True):
                events.append(event)
        assert [event.type for event in events] == ["response.created", "response.failed"]
        assert events[1].response.error.code == "server_error"
        assert events[1].response.status == "failed"
