"""What the kernel and the network do rarely: urgent bytes, full backlogs, a listening socket that was shut down, silent clients."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

import pytest
from harness import Backend, Client, Connection, Proxy, answer_all, chunk, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HANDS_OVER = """
import fcntl, os, sys
count = int(os.environ["LISTEN_FDS"])
out_of_the_way = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 3 + count) for fd in sys.argv[1:1 + count]]
for i, fd in enumerate(out_of_the_way):
    os.dup2(fd, 3 + i)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[1 + count], sys.argv[1 + count:])
"""


@pytest.mark.parametrize("at", [1, 20, len(GET) - 1])
def test_c1_an_urgent_byte_of_a_client_stays_in_its_place(serve, backend, proxy, at):
    # A recv stops before it: one that comes back short leaves more behind.
    for _ in range(5):
        with Client(proxy) as client:
            client.send(GET[:at])
            client.sock.send(GET[at : at + 1], socket.MSG_OOB)
            client.send(GET[at + 1 :])
            assert client.read_response().status == 200


@pytest.mark.parametrize("at", [3, 40, 60])
def test_c1_an_urgent_byte_of_a_backend_stays_in_its_place(serve, proxy, at):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + bytes(range(65, 95))

    def urgent(connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(answer[:at])
            connection.sock.send(answer[at : at + 1], socket.MSG_OOB)
            connection.send(answer[at + 1 :])

    serve(urgent)
    with Client(proxy) as client:
        for _ in range(5):
            assert client.request(GET).body == bytes(range(65, 95))


@pytest.mark.parametrize(("limit", "more", "status"), [(64, 0, 200), (64, 1, 414), (8191, 0, 200), (8191, 1, 414)])
def test_a3_the_longest_request_line_in_two_pieces(serve, backend, proxy_to, limit, more, status):
    # 8191 and a line end: one byte more than a buffer has.
    length = limit + more
    proxy = proxy_to(backend, options=["--max-request-line", str(limit)])
    line = b"GET /" + b"x" * (length - 14) + b" HTTP/1.1"
    for cut in (length - 1, length, length + 1):
        with Client(proxy) as client:
            client.send((line + b"\r\n")[:cut])
            time.sleep(0.05)
            client.send((line + b"\r\nHost: a\r\n\r\n")[cut:])
            assert client.read_response().status == status


def test_f_a_body_that_drips_does_not_hide_that_no_answer_comes_any_more(proxy_to):
    def stalls(connection: Connection) -> None:
        connection.read_head()
        connection.send(sse_head() + chunk(b"data: x\n\n"))
        connection.wait_eof(60)

    proxy = proxy_to(stalls, options=["--idle-timeout", "1s"])
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"first"))
        client.read_head()
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while (
                time.monotonic() - begun < 20 and not proxy.metrics()['llmpipe_exchanges_total{outcome="timeout_idle"}']
            ):
                client.send(chunk(b"drip"))
                time.sleep(0.1)
    assert proxy.outcome("timeout_idle") == 1


def test_g2_a_listening_socket_that_was_shut_down_keeps_nobody_busy():
    with ExitStack() as stack:
        ended, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        ports = [listener.getsockname()[1] for listener in (ended, other)]
        fds = [listener.fileno() for listener in (ended, other)]
        backend = stack.enter_context(Backend(answer_all))
        hands_over = [sys.executable, "-c", HANDS_OVER, *map(str, fds)]
        proxy = stack.enter_context(
            Proxy(backend.url, prefix=hands_over, pass_fds=fds, env={"LISTEN_FDS": "2"}, options=["--workers", "2"])
        )
        clients = []
        for proxy.port in ports:
            clients.append(stack.enter_context(Client(proxy)))
        assert [client.request(GET).status for client in clients] == [200, 200]
        assert proxy.admin("/readyz")[0] == 200
        ended.shutdown(socket.SHUT_RDWR)
        assert proxy.wait_log("accept ended")["error"] == "Invalid argument"
        before = proxy.cpu()
        time.sleep(1)
        assert proxy.cpu() - before < 0.5
        assert [client.request(GET).status for client in clients] == [200, 200]  # who is connected stays
        with Client(proxy) as late:
            assert late.request(GET).status == 200  # the other socket still listens
        status, body = proxy.admin("/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "a listening socket was shut down")


def test_b3_a_full_backlog_of_a_unix_socket_is_waited_for(proxy_to):
    with tempfile.TemporaryDirectory(prefix="llmpipe-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/s")
        listener.listen(5)
        proxy = proxy_to(f"unix:{directory}/s")
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(proxy)) for _ in range(30)]
            for client in clients:
                client.send(GET)
            time.sleep(0.5)  # nobody accepts meanwhile

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection = Connection(listener.accept()[0], 0)
                        threading.Thread(target=serve_quietly, args=(connection,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            assert [client.read_response().status for client in clients] == [200] * 30
        assert proxy.metric("llmpipe_connect_errors_total") == 0
        listener.shutdown(socket.SHUT_RDWR)


def serve_quietly(connection: Connection) -> None:
    with connection.sock, contextlib.suppress(OSError, EOFError):
        answer_all(connection)


def test_f_a_full_backlog_of_a_unix_socket_has_the_connect_time_out(proxy_to):
    with tempfile.TemporaryDirectory(prefix="llmpipe-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/s")
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as filler:
            filler.connect(f"{directory}/s")
            proxy = proxy_to(f"unix:{directory}/s", options=["--connect-timeout", "500ms"])
            with Client(proxy) as client:
                assert client.request(GET).status == 504
            assert proxy.outcome("timeout_connect") == 1


def test_f_who_never_sends_a_byte_has_the_head_time_out(proxy_to):
    proxy = proxy_to(answer_all, options=["--head-timeout", "2s"])
    with Client(proxy) as silent, Client(proxy) as kept:
        assert kept.request(GET).status == 200
        assert silent.read_eof() == b""
        assert proxy.metric("llmpipe_idle_connections_closed_total", reason="silent") == 1
        assert kept.request(GET).status == 200  # between requests the keep-alive time-out counts


@pytest.mark.parametrize("workers", [1, 3])
def test_g2_the_longest_idle_gives_way_when_there_are_too_many(workers):
    with (
        Backend(answer_all) as backend,
        Proxy(backend.url, nofile=160, options=["--workers", str(workers), "--head-timeout", "60s"]) as proxy,
        ExitStack() as stack,
    ):
        first = stack.enter_context(Client(proxy))
        for _ in range(150):  # more than it can have
            stack.enter_context(contextlib.closing(proxy.connect()))
        time.sleep(1.2)
        for _ in range(5):
            with Client(proxy) as client:
                assert client.request(GET).status == 200
        assert first.read_eof() == b""
        assert proxy.metric("llmpipe_idle_connections_closed_total", reason="room") > 0


def test_g1_the_memory_of_long_heads_is_given_back(proxy_to):
    proxy = proxy_to(answer_all, options=["--head-timeout", "2m"])
    head = GET[:-2] + b"".join(b"X-%d: %s\r\n" % (i, b"v" * 7900) for i in range(3)) + b"X: " + b"w" * 7000
    with Client(proxy) as client:
        assert client.request(GET).status == 200
    before = proxy.rss()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy)) for _ in range(600)]
        for client in clients:
            client.send(head)
        wait_until(lambda: proxy.rss() - before > 12 << 20, what="all heads are there")
        for client in clients:
            client.send(b"\r\n\r\n")
        assert all(client.read_response().status == 200 for client in clients)
        # AddressSanitizer keeps the shadow of what was given back.
        left = (12 if "asan" in os.environ.get("LD_PRELOAD", "") else 6) << 20
        wait_until(lambda: proxy.rss() - before < left, what="the memory is given back")


@pytest.mark.parametrize("counts", [False, True])
def test_f_comments_count_where_that_is_configured(proxy_to, counts):
    def prefills(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        with contextlib.suppress(OSError):
            for _ in range(30):
                connection.send(chunk(b": prefill\n\n"))
                time.sleep(0.1)
            connection.send(chunk(b"data: x\n\n") + chunk(b": wait\n\n") + b"0\r\n\r\n")

    options = ["--ttft-timeout", "2s", *(["--comments-count-as-content"] if counts else [])]
    proxy = proxy_to(prefills, options=options)
    with Client(proxy) as client:
        client.send(GET)
        client.read_head()
        if counts:
            assert client.read_chunked().endswith(b"data: x\n\n: wait\n\n")
        else:
            assert b"data" not in client.read_eof()
    assert proxy.outcome("ok" if counts else "timeout_ttft") == 1


@pytest.mark.parametrize("coding", [b"gzip", b"identity"])
def test_e2_no_error_event_goes_into_an_encoded_body(proxy_to, coding):
    body = gzip.compress(b"data: x\n\n")
    body = body if coding == b"gzip" else b"data: x\n\n"
    head = sse_head()[:-2] + b"Content-Encoding: " + coding + b"\r\n\r\n"

    go = threading.Event()

    def breaks(connection: Connection) -> None:
        connection.read_request()
        # What an event stream of gzip looks like between two events nobody can say: it may end in empty lines.
        connection.send(head + chunk(body) + (chunk(b"\n\n") if coding == b"gzip" else b""))
        assert go.wait(60)  # an RST would overtake what was not read yet
        connection.reset()

    proxy = proxy_to(breaks, options=["--on-midstream-error", "event"])
    with Client(proxy) as client:
        client.send(GET)
        client.read_head()
        client.recv_until(chunk(body))
        go.set()
        assert (b"upstream_abort" in client.read_eof()) == (coding == b"identity")
