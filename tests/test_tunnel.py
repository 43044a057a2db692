"""Rule C2, tunnels: a 101 turns the exchange into bytes both ways, which the proxy does not look at."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import random
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import websockets.exceptions
import websockets.sync.client
import websockets.sync.server
from harness import TIMEOUT, Backend, Client, Connection, Proxy, leave, wait_until

ASK = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: x-echo\r\nX-Request-ID: id\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x-echo\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\n"
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x-echo\r\nX-Own: 1\r\nConnection: Upgrade\r\nX-Request-ID: id\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MEGABYTE = 1 << 20


class Switching:
    """A backend's script that switches and leaves the connection to the test."""

    def __init__(self, behind: bytes = b"") -> None:
        self.behind = behind
        self.head = b""
        self.connection: Connection | None = None
        self._switched = threading.Event()

    def __call__(self, connection: Connection) -> None:
        self.head = connection.read_head()
        connection.send(SWITCH + self.behind)
        self.connection = connection
        self._switched.set()

    def wait(self) -> Connection:
        assert self._switched.wait(TIMEOUT)
        assert self.connection
        return self.connection


@contextmanager
def tunnel(proxy: Proxy, serve) -> Iterator[tuple[Client, Connection]]:
    """An open tunnel: the client's end and the backend's."""
    script = Switching()
    serve(script)
    with Client(proxy) as client:
        client.send(ASK)
        assert client.read_head() == SWITCHED + b"\r\n"
        yield client, script.wait()


def test_c2_the_upgrade_is_forwarded_and_so_is_the_101(serve, proxy):
    script = Switching()
    serve(script)
    with Client(proxy) as client:
        client.send(ASK)
        head = client.read_head()
        assert head == SWITCHED + b"\r\n"
        assert script.wait()
        lines = script.head.split(b"\r\n")
        assert lines[0] == b"GET /ws HTTP/1.1"
        assert b"Upgrade: x-echo" in lines
        assert [line for line in lines if line.lower().startswith(b"connection:")] == [b"Connection: Upgrade"]
        assert b"X-Forwarded-For: 127.0.0.1" in lines


def test_c2_bytes_go_both_ways_as_they_come(serve, proxy):
    pieces = [
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"0\r\n\r\n",
        bytes(range(256)),
        b"\n",
    ]
    with tunnel(proxy, serve) as (client, connection):
        for piece in pieces:
            client.send(piece)
            assert connection.recv() == piece
            connection.send(piece[::-1])
            assert client.recv() == piece[::-1]
        connection.send(b"unasked")
        assert client.recv() == b"unasked"


def test_c2_bytes_that_came_with_either_head_are_not_lost(serve, proxy):
    script = Switching(behind=b"hello from the backend")
    serve(script)
    with Client(proxy) as client:
        client.send(ASK + b"hello from the client")
        client.read_head()
        assert client.read(22) == b"hello from the backend"
        assert script.wait().read(21) == b"hello from the client"


def test_c2_a_client_that_does_not_wait_for_the_101(serve, proxy):
    early = random.Random(1).randbytes(30_000)

    def late(connection: Connection) -> None:
        connection.read_head()
        assert connection.silent(0.1)  # they are held until it is known that they are not requests
        connection.send(SWITCH)
        connection.send(connection.read(len(early)))

    serve(late)
    with Client(proxy) as client:
        client.send(ASK + early[:100])
        client.send(early[100:])
        client.read_head()
        assert client.read(len(early)) == early


def pump(end: Client | Connection, data: bytes) -> threading.Thread:
    """Sends in the background."""
    thread = threading.Thread(target=end.send, args=(data,), daemon=True)
    thread.start()
    return thread


def test_c2_a_lot_of_data_both_ways_at_once(serve, proxy):
    up, down = (random.Random(seed).randbytes(20 * MEGABYTE) for seed in (2, 3))
    with tunnel(proxy, serve) as (client, connection):
        got: list[bytes] = []
        threads = [pump(client, up), pump(connection, down)]
        reader = threading.Thread(target=lambda: got.append(connection.read(len(up))), daemon=True)
        reader.start()
        assert hashlib.sha256(client.read(len(down))).digest() == hashlib.sha256(down).digest()
        for thread in (*threads, reader):
            thread.join(TIMEOUT)
        assert hashlib.sha256(got[0]).digest() == hashlib.sha256(up).digest()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_c2_a_side_that_does_not_read_holds_the_other_back(serve, proxy, direction):
    data = random.Random(4).randbytes(40 * MEGABYTE)
    with tunnel(proxy, serve) as (client, connection):
        sender, receiver = (client, connection) if direction == "up" else (connection, client)
        back, forth = b"still", b"flows"
        before = proxy.rss()
        sent = [0]

        def send() -> None:
            for start in range(0, len(data), 65536):
                sender.send(data[start : start + 65536])
                sent[0] = start

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        last = [-1]

        def stuck() -> bool:
            same = 0 < last[0] == sent[0]
            last[0] = sent[0]
            threading.Event().wait(0.1)
            return same

        wait_until(stuck, what="the sender is held back")
        assert sent[0] < 30 * MEGABYTE
        assert proxy.rss() - before < 8 * MEGABYTE
        receiver.send(back + forth)  # the other direction is free
        assert sender.read(10) == back + forth
        assert hashlib.sha256(receiver.read(len(data))).digest() == hashlib.sha256(data).digest()
        thread.join(20)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_c2_the_client_leaves(serve, proxy, how):
    with tunnel(proxy, serve) as (client, connection):
        leave(client, how)
        connection.wait_eof()
        proxy.settled()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_c2_the_backend_leaves(serve, proxy, how):
    with tunnel(proxy, serve) as (client, connection):
        (connection.close if how == "fin" else connection.reset)()
        try:
            assert client.read_eof() == b""
        except ConnectionResetError:
            assert how == "rst"
    proxy.settled()


@pytest.mark.parametrize("who", ["client", "backend"])
def test_c2_what_was_sent_before_an_end_still_arrives(serve, proxy, who):
    data = random.Random(5).randbytes(8 * MEGABYTE)
    with tunnel(proxy, serve) as (client, connection):
        sender, receiver = (client, connection) if who == "client" else (connection, client)

        def send() -> None:
            sender.send(data)
            sender.half_close()

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        threading.Event().wait(0.2)  # the receiver is blocked meanwhile: the end stands behind bytes that are held
        assert hashlib.sha256(receiver.read_eof()).digest() == hashlib.sha256(data).digest()
        thread.join(10)
        assert sender.read_eof() == b""
    proxy.settled()


def test_c2_a_tunnel_is_counted_and_logged(proxy_to):
    script = Switching()
    with Backend(script) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.send(ASK)
            client.read_head()
            assert proxy.metric("llmpipe_streaming_active") == 1
            assert proxy.metric("llmpipe_in_flight", backend=backend.url) == 1
            client.send(b"12345")
            connection = script.wait()
            assert connection.read(5) == b"12345"
            connection.send(b"1234567")
            assert client.read(7) == b"1234567"
            connection.close()
            assert client.read_eof() == b""
        (line,) = proxy.access()
        assert (line["status"], line["outcome"], line["phase"], line["path"]) == (101, "ok", "tunnel", "/ws")
        assert line["bytes_up"] == len(ASK) + 5
        assert line["bytes_down"] == len(SWITCHED) + 2 + 7
        assert proxy.metric("llmpipe_streaming_bytes_forwarded_total") == 7
        assert proxy.outcome("ok") == 1
        proxy.settled()
        assert proxy.metric("llmpipe_upstreams") == 0  # it is of no use to anybody else


@pytest.mark.parametrize("status", [200, 426, 502])
def test_c2_a_refused_upgrade_is_an_answer_that_ends_the_connection(serve, backend, proxy, status):
    # What stands behind it may be bytes of a client that took the switch for granted: none of them becomes a request.
    lines = []

    def refuse(connection: Connection) -> None:
        while True:
            lines.append(connection.read_request().line)
            if status == 502:
                connection.close()
                return
            connection.send(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)

    serve(refuse)
    with Client(proxy) as client:
        client.send(ASK + GET)
        response = client.read_response()
        assert (response.status, response.values(b"connection")) == (status, [b"close"])
        assert client.read_eof() == b""
    with Client(proxy) as client:
        assert client.request(GET).status == status
    assert lines == [b"GET /ws HTTP/1.1", b"GET / HTTP/1.1"]
    assert len(backend.connections) == 1 + (status == 502)


@pytest.mark.parametrize(
    "request_",
    [
        ASK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ASK.replace(b"keep-alive, Upgrade", b"keep-alive"),
        ASK.replace(b"Upgrade: x-echo\r\n", b""),
        ASK.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"),
    ],
    ids=["1.0", "Connection does not say so", "no Upgrade", "with a body"],
)
def test_c2_a_101_that_was_not_asked_for_opens_nothing(serve, proxy, request_):
    def push(connection: Connection) -> None:
        connection.read_request()
        connection.send(SWITCH + b"secret")
        connection.wait_eof()

    serve(push)
    with Client(proxy) as client:
        response = client.request(request_)
        assert response.status == 502
        assert b"secret" not in response.raw


# WebSocket, with the websockets package at both ends


@pytest.fixture(scope="module")
def echo() -> Iterator[websockets.sync.server.Server]:
    """A WebSocket server that sends back what it gets."""

    def handler(connection: websockets.sync.server.ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/leave":
            connection.close(4001, "bye")
            return
        for message in connection:
            connection.send(message)

    with websockets.sync.server.serve(handler, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def echo_proxy(echo: websockets.sync.server.Server) -> Iterator[Proxy]:
    with Proxy(f"http://127.0.0.1:{echo.socket.getsockname()[1]}") as proxy:
        yield proxy


def connect(proxy: Proxy, path: str = "/") -> websockets.sync.client.ClientConnection:
    # A socket of our own keeps the machine's proxy settings out of it.
    sock: socket.socket = proxy.connect()
    return websockets.sync.client.connect(f"ws://{proxy.address}{path}", sock=sock, max_size=None)


def test_c2_websocket_echo(echo_proxy):
    messages = [
        "hello",
        "",
        "\u00e9\u4e2d\U0001f600" * 1000,
        b"",
        bytes(range(256)),
        random.Random(6).randbytes(3 * MEGABYTE),
    ]
    with connect(echo_proxy) as websocket:
        for message in messages:
            websocket.send(message)
            assert websocket.recv(timeout=TIMEOUT) == message
        assert websocket.ping().wait(TIMEOUT)


def test_c2_websocket_close_handshake_from_either_side(echo_proxy):
    with connect(echo_proxy) as websocket:
        websocket.send("x")
        assert websocket.recv(timeout=TIMEOUT) == "x"
        websocket.close(4000, "enough")
        assert websocket.close_code == 4000
    with connect(echo_proxy, "/leave") as websocket:
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            websocket.recv(timeout=TIMEOUT)
        assert (websocket.close_code, websocket.close_reason) == (4001, "bye")
    echo_proxy.settled()


def test_c2_many_websockets_at_once(echo_proxy):
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(echo_proxy)) for _ in range(30)]
        for index, websocket in enumerate(opened):
            websocket.send(f"message {index}")
        for index, websocket in enumerate(opened):
            assert websocket.recv(timeout=TIMEOUT) == f"message {index}"
        assert echo_proxy.metric("llmpipe_streaming_active") == 30
    echo_proxy.settled()


# The edges of a tunnel


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_c1_no_byte_behind_the_101_is_lost(serve, proxy, rounds):
    # Much stands behind the 101 at once, so that a turn's share of reads is used up before the tunnel has taken over.
    up, down = (random.Random(seed).randbytes(2 * MEGABYTE) for seed in (7, 8))
    got: dict[int, bytes] = {}

    def both(connection: Connection) -> None:
        connection.read_head()
        sender = threading.Thread(target=connection.send, args=(SWITCH + down,), daemon=True)
        sender.start()
        got[connection.index] = connection.read(len(up))
        sender.join(30)

    serve(both)
    for _ in range(rounds):
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(proxy)) for _ in range(10)]
            senders = [pump(client, ASK + up) for client in clients]
            wrong = []

            def read(client: Client, wrong: list[str] = wrong) -> None:
                client.read_head()
                data = client.read(len(down))
                if data != down:
                    wrong.append(f"differs at {next(i for i in range(len(down)) if data[i] != down[i])}")

            readers = [threading.Thread(target=read, args=(client,), daemon=True) for client in clients]
            for thread in readers:
                thread.start()
            for thread in (*readers, *senders):
                thread.join(60)
                assert not thread.is_alive()
            assert not wrong
            wait_until(lambda: len(got) == 10, what="all backends have all bytes")
        assert all(data == up for data in got.values())
        got.clear()
        proxy.settled()


@pytest.mark.parametrize("how", ["close", "half close"])
def test_c2_what_the_client_sent_before_it_left_reaches_a_backend_that_had_sent_something(serve, proxy, how):
    # Something stands unread in the proxy's socket when it closes: a plain close would be an RST, and destroy what it sent.
    data = random.Random(9).randbytes(200_000)
    for _ in range(20):
        with tunnel(proxy, serve) as (client, connection):
            client.send(data)
            client.half_close()
            with contextlib.suppress(OSError):  # the proxy may be done with it
                for _ in range(50):
                    connection.send(b"unread" * 100)
            if how == "close":
                wait_until(lambda: unacknowledged(client) == 0, what="all that it sent has arrived")
                client.close()
            assert hashlib.sha256(connection.read_eof()).digest() == hashlib.sha256(data).digest()
            connection.close()
    proxy.settled()
    assert proxy.metric("llmpipe_discarded_bytes_total", reason="tunnel") > 0
    wait_until(lambda: proxy.metric("llmpipe_upstreams") == 0, what="the lingering upstreams are closed")


def test_a6_what_lingers_on_the_backends_side_counts_as_a_client(proxy_to):
    # Else whoever opens tunnels and leaves them could use up all descriptors.
    done = threading.Event()

    def stays(connection: Connection) -> None:
        connection.read_head()
        connection.send(SWITCH)
        assert connection.read_eof() == b""
        while not done.wait(1):  # five seconds of silence would end it
            connection.send(b"x")
        connection.close()

    with Backend(stays) as backend:
        proxy = proxy_to(backend, options=["--max-connections-per-ip", "3", "--trusted-proxies", "none"])
        for n in range(3):
            with Client(proxy) as client:
                client.send(ASK)
                assert client.read_head().startswith(b"HTTP/1.1 101 ")
            proxy.wait_metric("llmpipe_in_flight", 0, backend=backend.url)
            proxy.wait_metric("llmpipe_clients", n + 1)
        assert proxy.metric("llmpipe_upstreams") == 3
        with Client(proxy) as client:
            assert client.request(ASK).status == 429
        done.set()
    proxy.settled()
    with Client(proxy) as client:
        assert client.request(ASK).status != 429


def unacknowledged(stream: Client) -> int:
    """Bytes that its kernel has sent or will send, and that the proxy's has not."""
    return int(struct.unpack("i", fcntl.ioctl(stream.sock, termios.TIOCOUTQ, bytes(4)))[0])


def fill(sender: Client | Connection, proxy: Proxy) -> None:
    """Sends until nothing more is taken, for a while, and the proxy holds what its other side does not take."""
    sender.sock.setblocking(False)
    quiet = 0
    while quiet < 20 or not proxy.metric("llmpipe_buffers_held"):
        try:
            sender.sock.send(bytes(65536))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            threading.Event().wait(0.02)


def test_d_a_reset_passes_a_backend_that_does_not_read(serve, proxy_to):
    script = Switching()
    with Backend(script) as backend:
        proxy = proxy_to(backend, options=["--send-timeout", "0"])
        with Client(proxy) as client:
            client.send(ASK)
            client.read_head()
            connection = script.wait()
            fill(client, proxy)
            assert proxy.metric("llmpipe_buffers_held") > 0
            client.reset()
            proxy.wait_metric("llmpipe_upstreams", 0)
            with pytest.raises(ConnectionResetError):  # a FIN would say that all has come
                connection.read_eof()
        assert proxy.outcome("client_abort") == 1
        proxy.settled()


def test_d_a_reset_of_the_backend_passes_a_client_that_does_not_read(serve, proxy_to):
    script = Switching()
    with Backend(script) as backend:
        proxy = proxy_to(backend, options=["--send-timeout", "0"])
        with Client(proxy) as client:
            client.send(ASK)
            client.read_head()
            connection = script.wait()
            fill(connection, proxy)
            connection.reset()
            proxy.wait_metric("llmpipe_upstreams", 0)
            with pytest.raises(ConnectionResetError):
                client.read_eof()
        assert proxy.outcome("upstream_abort") == 1
        proxy.settled()


@pytest.mark.parametrize("who", ["client", "backend"])
def test_f_a_tunnel_that_was_blocked_and_is_silent_is_idle(serve, proxy_to, who):
    # Without a send time-out nothing was armed while it was blocked.
    script = Switching()
    with Backend(script) as backend:
        proxy = proxy_to(backend, options=["--send-timeout", "0", "--idle-timeout", "1500ms"])
        with Client(proxy) as client:
            client.send(ASK)
            client.read_head()
            connection = script.wait()
            sender, receiver = (connection, client) if who == "client" else (client, connection)
            fill(sender, proxy)
            threading.Event().wait(2.5)
            assert proxy.metric("llmpipe_upstreams") == 1  # whoever is blocked is not idle
            with contextlib.suppress(OSError):
                receiver.read_eof()
            proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="timeout_idle")
        proxy.settled()
