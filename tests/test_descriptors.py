"""Rule G2: when descriptors run out accept pauses; who is connected stays untouched."""

import threading

from harness import Backend, Client, Connection, chunk, sse_head, wait_until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_accept_pauses_and_resumes(proxy_to):
    go = threading.Event()

    def held(conn: Connection) -> None:
        while True:
            conn.read_request()
            conn.send(sse_head() + chunk(b"data: 1\n\n"))
            go.wait(30)
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
            served = 0
            for client in clients[:most]:
                client.read_head()
                assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
                client.close()
                served += 1
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
