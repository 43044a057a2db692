"""Rule S1: /history, /events, and what /status says of the last minutes, of a proxy that runs."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from generations import Generations
from harness import TIMEOUT, Backend, Client, Mock, Proxy, Stream, answer_all, split_head, values, wait_until
from test_admin import admin_connection, admin_sockets, ended

from llmpipe.background import MOST_CONNECTIONS, REQUEST_TIME
from llmpipe.events import MOST_STREAMS

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ASK = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"

Event = tuple[str, Any]


class Follower(Stream):
    """Reads /events."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(admin_connection(proxy))
        self.send(ASK)
        head = self.read_head()
        line, self.fields = split_head(head)
        self.status = int(line.split()[1])
        self._text = b""

    def event(self) -> Event:
        """The next one."""
        while True:
            event, mark, rest = self._text.partition(b"\n\n")
            if mark:
                self._text = rest
                found = dict(line.split(": ", 1) for line in event.decode().split("\n"))
                if "event" in found:
                    return found["event"], json.loads(found["data"])
                assert found == {"retry": "2000"}
                continue
            size = int(self.recv_until(b"\r\n"), 16)
            if not size:
                raise EOFError
            self._text += self.read(size + 2)[:-2]

    def wait_event(self, name: str) -> Any:
        """The next one of this name."""
        while (event := self.event())[0] != name:
            pass
        return event[1]

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def status_of(proxy: Proxy) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(proxy.admin("/status")[1])
    return made


def history_of(proxy: Proxy) -> list[dict[str, Any]]:
    made = json.loads(proxy.admin("/history")[1])
    assert made["interval"] == 5
    samples: list[dict[str, Any]] = made["samples"]
    return samples


@pytest.mark.slow
def test_status_and_history_tell_what_went_through(proxy_to) -> None:
    with Mock() as mock:
        proxy = proxy_to(mock.url)
        body = {"model": "m", "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "a"}]}
        for _ in range(3):
            httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=TIMEOUT)
        fields = {"x-mock-fault": "die;after=2", "x-request-id": "broken-1"}
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=fields, timeout=TIMEOUT)
        # The one that fails is the last.
        wait_until(lambda: any(sample["errors"] for sample in history_of(proxy)), what="a sample with all")
        status = status_of(proxy)
        assert status["rates"]["exchanges"] >= status["rates"]["errors"] > 0
        assert status["rates"]["pieces"] > 0
        (backend,) = status["pools"][0]["backends"]
        assert backend["rates"]["exchanges"] > 0
        samples = history_of(proxy)
        assert 0 < sum(sample["errors"] for sample in samples) < 0.21
        # The mock waits 200 ms for the first token, and 20 ms for each further one.
        for found in (status, backend):
            assert 0.15 < found["ttft"]["p50"] <= found["ttft"]["p90"] <= found["ttft"]["p99"] < TIMEOUT
            assert 0.005 < found["itl"]["p50"] <= found["itl"]["p90"] <= found["itl"]["p99"] < TIMEOUT
        assert any(0.15 < (sample["ttft_p50"] or 0) <= sample["ttft_p99"] for sample in samples)
        (failure,) = status["failures"]
        assert (failure["request_id"], failure["outcome"], failure["backend"]) == (
            "broken-1",
            "upstream_abort",
            mock.url,
        )
        assert (failure["phase"], failure["status"]) == ("stream", 200)
        assert failure["reason"]


@pytest.mark.slow
def test_the_events_are_the_status_and_the_samples(proxy_to) -> None:
    proxy = proxy_to(answer_all)
    with Follower(proxy) as follower:
        assert follower.status == 200
        assert values(follower.fields, b"content-type") == [b"text/event-stream"]
        assert values(follower.fields, b"cache-control") == [b"no-store"]
        kind, first = follower.event()
        assert kind == "status"
        assert first.keys() == status_of(proxy).keys()
        sample = follower.wait_event("sample")
        assert sample in history_of(proxy)
        with Client(proxy) as client:
            assert client.request(GET).status == 200
            while follower.wait_event("status")["clients"] != 1:
                pass
        second = follower.wait_event("sample")
        assert second["at"] > sample["at"]
        assert history_of(proxy)[-2:] == [sample, second]


def test_a_head_is_asked_for_without_the_stream(proxy: Proxy) -> None:
    answer = httpx.head(f"http://127.0.0.1:{proxy.admin_port}/events", timeout=TIMEOUT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")


def test_a_ninth_stream_is_refused_until_one_ends(proxy_to) -> None:
    proxy = proxy_to(answer_all)
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(proxy)) for _ in range(MOST_STREAMS)]
        assert [follower.event()[0] for follower in followers] == ["status"] * MOST_STREAMS
        refused = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/events", timeout=TIMEOUT)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert "8 event streams" in refused.json()["error"]
        assert proxy.admin("/healthz")[0] == 200
        followers[0].close()

        def has_room() -> bool:
            with Follower(proxy) as follower:
                return follower.status == 200

        wait_until(has_room)
        assert followers[1].event()[0] == "status"


@pytest.mark.slow
def test_a_stream_outlives_the_time_of_a_request(proxy_to) -> None:
    proxy = proxy_to(answer_all)
    with Follower(proxy) as follower:
        end = time.monotonic() + REQUEST_TIME + 3
        while time.monotonic() < end:
            follower.wait_event("status")


def slow_reader(proxy: Proxy) -> socket.socket:
    """A client that has asked for events and takes as little as a socket can."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.settimeout(TIMEOUT)
    sock.connect(("127.0.0.1", proxy.admin_port))
    sock.sendall(ASK)
    return sock


@pytest.fixture
def large(tmp_path) -> Iterator[Proxy]:
    """A proxy whose status is of a few hundred KB, so that sockets are full soon. Nobody asks its backends."""
    text = "".join(f'[pools.p{pool}]\nmodels = ["m{pool}"]\n' for pool in range(20))
    text += "".join(
        f'[[pools.p{number // 60}.backends]]\nname = "{"b" * 240}-{number}"\nurl = "http://127.0.0.1:{number + 1}"\n'
        for number in range(1200)
    )
    path = tmp_path / "llmpipe.toml"
    path.write_text(text)
    with Proxy(options=["--config", str(path)]) as proxy:
        yield proxy


@pytest.mark.slow
def test_who_does_not_read_is_dropped_and_nothing_is_kept_for_it(large: Proxy) -> None:
    size = len(large.admin("/status")[1])
    assert size > 500_000
    before = large.rss()
    with ExitStack() as stack:
        socks = [stack.enter_context(slow_reader(large)) for _ in range(MOST_STREAMS)]
        wait_until(lambda: admin_sockets(large) == MOST_STREAMS)
        assert large.admin("/healthz")[0] == 200
        wait_until(lambda: admin_sockets(large) == 0, timeout=60, what="those that read nothing are closed")
        assert large.rss() - before < 4 * MOST_STREAMS * size
        for sock in socks:
            assert _reads_to_its_end(sock)
    with Follower(large) as follower:
        assert follower.event()[0] == "status"


def _reads_to_its_end(sock: socket.socket) -> bool:
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return True


@pytest.mark.parametrize("reads", [True, False])
def test_a_stream_ends_with_the_process(large: Proxy, reads: bool) -> None:
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(large)) for _ in range(2 if reads else 0)]
        socks = [stack.enter_context(slow_reader(large)) for _ in range(0 if reads else 2)]
        if reads:
            assert [follower.event()[0] for follower in followers] == ["status"] * 2
        wait_until(lambda: admin_sockets(large) == 2)
        time.sleep(0.1)  # until the slow ones have been sent their first event
        large.close()
        for follower in followers:
            with pytest.raises(EOFError):
                while True:
                    follower.event()
        for sock in socks:
            assert _reads_to_its_end(sock)
    assert not any("graceful" in line or '"level": "error"' in line for line in large.stderr)


@pytest.mark.slow
def test_a_stream_ends_where_another_process_takes_over() -> None:
    """Who asks again finds the other one."""
    with Backend(answer_all) as backend, Generations(backend.url) as generations:
        with Follower(generations.proxy) as follower:
            assert follower.wait_event("status")["pid"] == generations.pid
            pid = generations.upgrade()
            with pytest.raises(EOFError):
                while True:
                    follower.event()
        with Follower(generations.proxy) as follower:
            assert follower.wait_event("status")["pid"] == pid


def test_followers_give_way_before_those_who_wait_for_an_answer(proxy_to) -> None:
    """And behind those who have asked nothing."""
    proxy = proxy_to(answer_all)
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(proxy)) for _ in range(2)]
        assert [follower.event()[0] for follower in followers] == ["status"] * 2
        silent = [stack.enter_context(admin_connection(proxy)) for _ in range(MOST_CONNECTIONS - 2)]
        wait_until(lambda: admin_sockets(proxy) == MOST_CONNECTIONS)
        stack.enter_context(admin_connection(proxy))
        assert ended(silent[0])
        for follower in followers:
            assert follower.event()[0] == "status"


@pytest.mark.parametrize("path", ["/", "/history", "/events", "/status.js"])
def test_a_strangers_host_may_not_read_it(proxy: Proxy, path: str) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxy.admin_port}{path}", headers={"host": "evil.example"}, timeout=TIMEOUT)
    assert answer.status_code == 403


def test_what_a_failure_says_can_be_anything(proxy_to) -> None:
    """A request id is a stranger's text."""

    def script(connection: Any) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.close()

    proxy = proxy_to(script)
    with Client(proxy) as client:
        client.send(b'GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: "><b>&\r\n\r\n')
        client.read_head()
        client.read_eof()
    wait_until(lambda: status_of(proxy)["failures"])
    assert status_of(proxy)["failures"][0]["request_id"] == '"><b>&'
    with Follower(proxy) as follower:
        assert follower.wait_event("status")["failures"][0]["request_id"] == '"><b>&'
