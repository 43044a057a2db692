"""Rule G2: when descriptors run out accept pauses; who is connected stays untouched."""

import resource
import threading
import time

from harness import Backend, Client, Connection, Proxy, answer_all, chunk, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_accept_pauses_and_resumes(proxy_to):
    go = threading.Event()

    def held(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(sse_head() + chunk(b"data: 1\n\n"))
            go.wait(60)
            conn.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    with Backend(held) as backend:
        proxy = proxy_to(backend, nofile=200)
        most = (200 - 64) // 2
        clients = [Client(proxy) for _ in range(most + 20)]
        try:
            for client in clients:
                client.send(GET)
            line = proxy.wait_log("accept paused")
            assert line["reason"] == "clients"
            wait_until(lambda: proxy.metric("llmpipe_streaming_active") == most)
            assert proxy.metric("llmpipe_clients") == most
            assert proxy.descriptors() <= 200
            go.set()
            # Those that waited in the backlog are served when others have left.
            for client in clients[:most]:
                client.read_head()
                assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
                client.close()
            proxy.wait_log("accept resumed")
            for client in clients[most:]:
                client.read_head()
                assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
        finally:
            go.set()
            for client in clients:
                client.close()
        proxy.settled()
        assert proxy.metric("llmpipe_exchanges_total", outcome="ok") == len(clients)


def test_descriptors_come_back(proxy_to):
    def serve(conn: Connection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        conn.wait_eof()

    proxy = proxy_to(serve)
    proxy.metrics()
    before = proxy.descriptors()
    for _ in range(200):
        with Client(proxy) as client:
            assert client.request(GET).status == 200
    proxy.settled()
    wait_until(lambda: proxy.descriptors() <= before)


def test_live_streams_flow_while_accept_pauses(proxy_to):
    """Nothing live is hurt, and one pause is one log line."""
    connections: list[Connection] = []

    def held(conn: Connection) -> None:
        conn.read_request()
        connections.append(conn)
        conn.send(sse_head())

    with Backend(held) as backend:
        proxy = proxy_to(backend, nofile=100)
        most = (100 - 64) // 2
        clients = [Client(proxy) for _ in range(most)]
        late: list[Client] = []
        try:
            for client in clients:
                client.send(GET)
                client.read_head()
            late += [Client(proxy) for _ in range(20)]
            proxy.wait_log("accept paused")
            for n in range(20):
                for conn in connections:
                    conn.send(chunk(b"data: %d\n\n" % n))
                for client in clients:
                    assert client.recv_until(b"data: %d\n\n\r\n" % n)
                time.sleep(0.02)
            assert proxy.metric("llmpipe_clients") == most
            assert len([line for line in proxy.log if line["event"] == "accept paused"]) == 1
            assert proxy.admin("/healthz")[0] == 200
        finally:
            for client in (*clients, *late):
                client.close()
        proxy.wait_log("accept resumed")
        proxy.wait_metric("llmpipe_accepted_total", most + len(late))
        proxy.settled()


def limit(proxy: Proxy, descriptors: int) -> None:
    """Sets how many descriptors the running process may have."""
    hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (descriptors, hard))


def test_accept_pauses_when_the_kernel_has_no_descriptor_either(proxy_to):
    """The reserve may be used up by what the proxy does not count; then accept() itself fails."""
    proxy = proxy_to(answer_all, options=["--upstream-idle-timeout", "5m"])  # the live one needs no new upstream
    proxy.metrics()  # Python opens files until it has all modules
    with Client(proxy) as live:
        assert live.request(GET).status == 200
        before = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[0]
        limit(proxy, 3)
        with Client(proxy) as late:
            late.send(GET)
            assert proxy.wait_log("accept paused")["reason"] == "descriptors"
            assert live.request(GET).status == 200
            cpu = proxy.cpu()
            assert late.silent(0.5)
            assert proxy.cpu() - cpu < 0.2  # it waits, it does not spin
            limit(proxy, before)
            assert late.read_response().status == 200
        proxy.wait_log("accept resumed")
    proxy.settled()


def test_no_descriptor_for_an_upstream_is_an_overload_and_no_fault_of_the_backend(proxy_to):
    with Backend(answer_all) as backend:
        proxy = proxy_to(backend, options=["--upstream-idle-timeout", "0"])
        proxy.metrics()
        with Client(proxy) as client:
            assert client.request(GET).status == 200
            before = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)[0]
            limit(proxy, 3)
            response = client.request(GET)
            assert (response.status, response.error()["code"]) == (503, "overload")
            assert response.values(b"retry-after") == [b"1"]
            limit(proxy, before)
            assert client.request(GET).status == 200
        assert [line["outcome"] for line in proxy.access(3)] == ["ok", "overload", "ok"]
        assert proxy.metric("llmpipe_backend_failures_total", backend=backend.url) == 0
        proxy.settled()
