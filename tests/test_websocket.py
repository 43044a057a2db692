"""Rule C2, WebSocket between real processes: the websockets package at the client's end, that package or uvicorn at the other.

The tunnel's own rules, on raw bytes, are in test_tunnel.py. Here a real server must learn what happened at the other end.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
import servers
import websockets.asyncio.client
import websockets.exceptions
import websockets.frames
import websockets.sync.client
from harness import TIMEOUT, Proxy, shut, wait_until
from servers import Server, unique

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers.websockets() as server:
        yield server


@pytest.fixture(scope="module")
def asgi_server() -> Iterator[Server]:
    with servers.uvicorn() as server:
        yield server


@pytest.fixture(scope="module")
def asgi_proxy(asgi_server: Server) -> Iterator[Proxy]:
    with Proxy(asgi_server.url) as proxy:
        yield proxy


def connect(proxy: Proxy, path: str = "/", **more) -> websockets.sync.client.ClientConnection:
    # A socket of our own keeps the machine's proxy settings out of it.
    return websockets.sync.client.connect(f"ws://{proxy.address}{path}", sock=proxy.connect(), max_size=None, **more)


def exchange(websocket: websockets.sync.client.ClientConnection) -> None:
    """Messages of all kinds come back as they were."""
    messages: list[str | bytes] = ["text", "", "\u20ac\U0001f600" * 1000, b"", bytes(range(256))]
    messages += [random.Random(1).randbytes(MEGABYTE), "x" * MEGABYTE]
    for message in messages:
        websocket.send(message)
        assert websocket.recv(timeout=TIMEOUT) == message
    websocket.send(iter(["in ", "several ", "frames"]))
    assert websocket.recv(timeout=TIMEOUT) == "in several frames"


@pytest.mark.parametrize("compression", ["deflate", None])
def test_c2_messages_of_all_kinds(real_proxy, compression):
    with connect(real_proxy, compression=compression) as websocket:
        extensions = [extension.name for extension in websocket.protocol.extensions]
        assert extensions == (["permessage-deflate"] if compression else [])
        exchange(websocket)
    real_proxy.settled()


def test_c2_messages_of_all_kinds_to_uvicorn(asgi_server, asgi_proxy):
    with connect(asgi_proxy, "/ws") as websocket:
        exchange(websocket)
        websocket.close(4002, "enough")
    asgi_server.wait_line("closed 4002")
    asgi_proxy.settled()


def test_c2_a_subprotocol_is_agreed_on(real_proxy):
    with connect(real_proxy, subprotocols=["v1.tests", "v2.tests"]) as websocket:
        assert websocket.subprotocol == "v2.tests"


def test_c2_pings_from_both_ends(real_proxy):
    with connect(real_proxy, "/ping") as websocket:
        assert websocket.recv(timeout=TIMEOUT) == "you are"  # the server got a pong
        assert websocket.ping(b"and you").wait(TIMEOUT)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (1009, ""), (4000, "\u20ac")])
def test_c2_the_server_learns_why_the_client_closed(server, real_proxy, code, reason):
    path = f"/{unique()}"
    with connect(real_proxy, path) as websocket:
        websocket.close(code, reason)
        assert websocket.close_code == code
    assert server.wait_line(f"closed {path}") == f"closed {path} {code} {reason}"


@pytest.mark.parametrize("code", [1000, 1001, 1012, 4003])
def test_c2_the_client_learns_why_the_server_closed(real_proxy, code):
    with connect(real_proxy, f"/close/{code}") as websocket:
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            websocket.recv(timeout=TIMEOUT)
        assert caught.value.rcvd == websockets.frames.Close(code, "the server's wish")
    real_proxy.settled()


def test_c2_a_handler_that_fails(real_proxy):
    with connect(real_proxy, "/fail") as websocket:
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            websocket.recv(timeout=TIMEOUT)
        assert websocket.close_code == 1011


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_c2_a_client_that_drops_out_is_gone_for_the_server(server, real_proxy, reset):
    """No close frame: 1006 is what a server calls it."""
    path = f"/{unique()}"
    with connect(real_proxy, path) as websocket:
        websocket.send("here")
        assert websocket.recv(timeout=TIMEOUT) == "here"
        shut(websocket.socket, reset=reset)
        assert server.wait_line(f"closed {path}").startswith(f"closed {path} 1006")
    real_proxy.settled()


def test_c2_a_client_that_is_killed_is_gone_for_the_server(asgi_server, asgi_proxy):
    program = f"""
        import socket, websockets.sync.client
        sock = socket.create_connection(("127.0.0.1", {asgi_proxy.port}))
        with websockets.sync.client.connect("ws://{asgi_proxy.address}/ws", sock=sock) as websocket:
            websocket.send("here")
            print(websocket.recv(), flush=True)
            websocket.recv()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=servers.plain_environment(), text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "here\n"
        finally:
            process.send_signal(signal.SIGKILL)
    wait_until(lambda: asgi_server.said("closed 1006") or asgi_server.said("closed 1005"), what="the server is told")
    asgi_proxy.settled()


def test_c2_a_server_that_is_killed_is_gone_for_the_client():
    with servers.websockets() as server, Proxy(server.url) as proxy:
        with connect(proxy) as websocket:
            websocket.send("here")
            assert websocket.recv(timeout=TIMEOUT) == "here"
            server.kill()
            with pytest.raises(websockets.exceptions.ConnectionClosedError):
                websocket.recv(timeout=TIMEOUT)
            assert websocket.close_code == 1006
        proxy.settled()


def test_c2_a_refused_handshake_is_an_answer_like_any_other(real_proxy):
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        connect(real_proxy, "/forbidden")
    assert caught.value.response.status_code == 403
    assert caught.value.response.body == b"not you\n"
    real_proxy.settled()


def test_c2_a_server_that_is_down_is_a_502(proxy_to):
    server = servers.websockets()
    server.kill()
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        connect(proxy_to(server.url))
    assert caught.value.response.status_code == 502


def test_c2_a_conversation_stays_in_order(real_proxy):
    """A thousand small messages each way, sent without waiting."""

    async def run() -> None:
        sock = real_proxy.connect()
        sock.settimeout(0)
        uri = f"ws://{real_proxy.address}/"
        async with websockets.asyncio.client.connect(uri, sock=sock, compression=None) as websocket:

            async def send() -> None:
                for index in range(1000):
                    await websocket.send(f"message {index}")

            sending = asyncio.create_task(send())
            assert [await websocket.recv() for _ in range(1000)] == [f"message {index}" for index in range(1000)]
            await sending

    asyncio.run(run())
    real_proxy.settled()
