"""Limits on client connections: in all, and for each address. Those above get an answer that says so, and nobody else notices."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import ModuleType

import openai
import pytest
from harness import (
    ERROR_TYPES,
    LAST_CHUNK,
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    Response,
    chunk,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


def stream_until_told(connection: Connection) -> None:
    """Answers with the head of a stream and one event; the test ends it."""
    connection.read_request()
    connection.send(sse_head() + chunk(b"data: 1\n\n"))


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(stream_until_told) as backend:
        yield backend


class From(Client):
    """A client with an address of its own."""

    def __init__(self, proxy: Proxy, address: str) -> None:
        super(Client, self).__init__(
            socket.create_connection(("127.0.0.1", proxy.port), timeout=TIMEOUT, source_address=(address, 0))
        )


def begin(client: Client) -> None:
    """Asks, and has the first event."""
    client.send(GET)
    assert b" 200 " in client.read_head()
    client.recv_until(b"data: 1\n\n")


def finish(backend: Backend, client: Client, index: int) -> None:
    """The backend ends the stream that its connection `index` carries."""
    backend.connections[index].send(LAST_CHUNK)
    assert client.recv_until(LAST_CHUNK).endswith(LAST_CHUNK)


def expect_refused(response: Response, status: int) -> None:
    assert response.status == status
    assert response.values(b"retry-after") == [b"1"]
    assert response.values(b"connection") == [b"close"]
    assert response.values(b"x-request-id")
    error = response.error()
    assert error["code"] == "overload"
    assert error["type"] == ("rate_limit_error" if status == 429 else ERROR_TYPES[status])
    assert "connections open as it may" in error["message"]


def test_max_connections_are_served_and_the_next_is_answered_503(backend: Backend) -> None:
    with Proxy(backend.url, options=("--max-connections", "3", "--workers", "2")) as proxy:
        served = [Client(proxy) for _ in range(3)]
        for client in served:
            begin(client)
        for attempt in range(3):
            with Client(proxy) as refused:
                expect_refused(refused.request(GET), 503)
                assert refused.read_eof() == b""
            proxy.wait_metric("llmpipe_connections_refused_total", attempt + 1, reason="max_connections")
        assert len(backend.connections) == 3
        proxy.wait_metric("llmpipe_clients", 3)
        served[0].reset()
        proxy.wait_metric("llmpipe_clients", 2)
        with Client(proxy) as client:
            begin(client)
        for client in served[1:]:
            index = served.index(client)
            finish(backend, client, index)
            client.close()
        proxy.settled()
        assert proxy.outcome("overload") == 3
        assert [line["status"] for line in proxy.access(7) if line["outcome"] == "overload"] == [503] * 3


def test_max_connections_per_ip_answers_429_to_that_address_only(backend: Backend) -> None:
    with (
        Proxy(
            backend.url, options=("--max-connections-per-ip", "2", "--trusted-proxies", "none", "--workers", "2")
        ) as proxy,
        contextlib.ExitStack() as stack,
    ):
        here = [stack.enter_context(From(proxy, "127.0.0.1")) for _ in range(2)]
        for client in here:
            begin(client)
        with From(proxy, "127.0.0.1") as refused:
            expect_refused(refused.request(POST), 429)  # before its body
        there = stack.enter_context(From(proxy, "127.0.0.2"))
        begin(there)
        proxy.wait_metric("llmpipe_clients", 3)
        here.pop().close()
        proxy.wait_metric("llmpipe_clients", 2)
        again = stack.enter_context(From(proxy, "127.0.0.1"))
        begin(again)
        assert proxy.metric("llmpipe_connections_refused_total", reason="max_connections_per_ip") == 1
        wait_until(lambda: any(line["status"] == 429 for line in proxy.access()), what="its access line")
        line = next(line for line in proxy.access() if line["status"] == 429)
        assert (line["outcome"], line["client"], line["method"], line["phase"]) == (
            "overload",
            "127.0.0.1",
            "POST",
            "head",
        )


def test_an_address_gets_no_more_refusals_than_connections(backend: Backend) -> None:
    """One that opens connections without end holds few of our descriptors: those above twice its share are closed unanswered."""
    with (
        Proxy(
            backend.url, options=("--max-connections-per-ip", "4", "--trusted-proxies", "none", "--head-timeout", "1h")
        ) as proxy,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(proxy)) for _ in range(50)]
        proxy.wait_metric("llmpipe_connections_refused_total", 46, reason="max_connections_per_ip")
        proxy.wait_metric("llmpipe_clients", 8)
        for client in clients[8:]:
            assert client.read_eof() == b""
        begin(clients[0])
        expect_refused(clients[4].request(GET), 429)


def test_a_refused_connection_that_asks_nothing_is_closed_after_the_head_timeout(backend: Backend) -> None:
    with (
        Proxy(backend.url, options=("--max-connections", "1", "--head-timeout", "1s")) as proxy,
        Client(proxy) as served,
    ):
        begin(served)
        with Client(proxy) as silent:
            assert silent.read_eof() == b""
        with Client(proxy) as slow:
            slow.send(GET[:10])
            assert slow.read_response().status == 408
        finish(backend, served, 0)


def test_a_broken_request_of_a_refused_connection_is_a_bad_request(backend: Backend) -> None:
    with (
        Proxy(backend.url, options=("--max-connections", "1")) as proxy,
        Client(proxy) as served,
        Client(proxy) as refused,
    ):
        begin(served)
        assert refused.request(b"GET\r\n\r\n").status == 400
        finish(backend, served, 0)


def test_openai_clients_see_a_rate_limit_and_come_through_when_there_is_room(backend: Backend) -> None:
    with Proxy(backend.url, options=("--max-connections-per-ip", "1", "--trusted-proxies", "none")) as proxy:
        with Client(proxy) as served:
            begin(served)
            with (
                openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
                pytest.raises(openai.RateLimitError) as caught,
            ):
                client.models.list()
            assert caught.value.code == "overload"
            assert caught.value.type == "rate_limit_error"
            assert caught.value.response.headers["retry-after"] == "1"
        proxy.settled()
        with Client(proxy) as client:
            begin(client)


def test_a_crowd_leaves_nothing_behind(backend: Backend) -> None:
    """Hundreds at once, most of them refused: every one is answered or served, and the counts go back to nothing."""
    options = (
        "--max-connections",
        "20",
        "--max-connections-per-ip",
        "15",
        "--trusted-proxies",
        "none",
        "--workers",
        "2",
    )
    with Proxy(backend.url, options=options) as proxy:
        proxy.settled()  # the first look at the admin endpoint opens one for good
        before = proxy.descriptors()
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(From(proxy, f"127.0.0.{1 + n % 3}")) for n in range(150)]
                for client in clients:
                    with contextlib.suppress(OSError):  # those that are not even answered
                        client.send(GET)
                answers = [_first_line(client) for client in clients]
                assert answers.count(b"HTTP/1.1 200 OK") == 20
                assert answers.count(b"HTTP/1.1 503 Service Unavailable") > 0
                assert set(answers) <= {
                    b"HTTP/1.1 200 OK",
                    b"HTTP/1.1 503 Service Unavailable",
                    b"HTTP/1.1 429 Too Many Requests",
                    b"",
                }
            proxy.settled()
        wait_until(lambda: proxy.descriptors() <= before, what="descriptors are back")


def _first_line(client: Client) -> bytes:
    try:
        return client.recv_until(b"\r\n")[:-2]
    except (OSError, EOFError):
        return b""


def test_limits_above_the_descriptors_are_said_to_be_out_of_reach(backend: Backend) -> None:
    with Proxy(backend.url, options=("--max-connections", "100000"), nofile=500) as proxy:
        line = proxy.wait_log("max-connections is out of reach")
        assert line["max_connections"] == 100000
        assert line["descriptors"] == 500


def test_quotas_of_many_addresses_are_freed(probe: ModuleType) -> None:
    """A hundred thousand addresses that come and go leave a few thousand entries."""
    quotas = probe.Quotas()
    for n in range(100_000):
        address = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
        assert quotas.take(address) == 1
        quotas.give(address)
    assert quotas.entries <= 8192
    assert quotas.take("10.0.0.1") == 1
    assert quotas.take("10.0.0.1") == 2
    for n in range(10_000):
        quotas.take(f"172.16.{n >> 8}.{n & 255}")
    assert quotas.take("10.0.0.1") == 3  # counts that are in use are never freed


def test_quotas_take_a_site_for_one_address(probe: ModuleType) -> None:
    quotas = probe.Quotas()
    assert quotas.take("2001:db8:1:2::1") == 1
    assert quotas.take("2001:db8:1:2:ffff::9") == 2
    assert quotas.take("2001:db8:1:3::1") == 1
    assert quotas.take("192.0.2.1") == 1
    assert quotas.take("::ffff:192.0.2.1") == 2  # the same host, taken by an IPv6 socket
    assert quotas.take("::1") == 1
    assert quotas.take("0.0.0.0") == 1
    assert quotas.take("::") == 2  # the same /64 as ::1


def test_time_until_refusals_is_not_spent_by_those_who_are_served(backend: Backend) -> None:
    """A stream goes on, event by event, while connections are refused beside it."""
    with Proxy(backend.url, options=("--max-connections", "1")) as proxy, Client(proxy) as served:
        begin(served)
        for n in range(200):
            with Client(proxy) as refused:
                refused.send(GET)
                event = b"data: %d\n\n" % n
                backend.connections[0].send(chunk(event))
                served.recv_until(event)
                assert refused.read_response().status == 503
        finish(backend, served, 0)
        proxy.wait_metric("llmpipe_connections_refused_total", 200, reason="max_connections")
