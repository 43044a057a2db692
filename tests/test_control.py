"""The control plane waits for nobody: name servers that do not answer, a log that nobody reads, a manager that is busy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import names
import pytest
from harness import (
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    free_port,
    open_descriptors,
    sse_head,
    unanswering_address,
    wait_until,
)

from llmpipe import notify, resolve

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return names.build(tmp_path_factory.mktemp("names"))


@pytest.fixture
def server(tmp_path: Path, library: str) -> names.NameServer:
    return names.NameServer(tmp_path, library)


def events(proxy: Proxy, event: str) -> int:
    return len([line for line in proxy.log.copy() if line["event"] == event])


@pytest.mark.parametrize(
    ("number", "hosts"),
    [
        (signal.SIGTERM, ["one.test"]),
        *((number, ["one.test", "two.test"]) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)),
    ],
)
def test_a_signal_is_taken_while_names_hang(server: names.NameServer, number: signal.Signals, hosts: list[str]) -> None:
    """Neither the drain nor the end of the process waits for a look-up, of which none ever ends here."""
    for host in hosts:
        server.say(host, "127.0.0.1")
    with Backend(answer_all) as backend:
        with Proxy(*[f"http://{host}:{backend.port}" for host in hosts], env=server.env) as proxy:
            server.hang(*hosts)
            for _ in range(5):
                proxy.signal(signal.SIGHUP)
            wait_until(lambda: all(server.asked(host) == 2 for host in hosts))
            with Client(proxy) as client:
                assert client.request(GET).status == 200
            proxy.signal(number)
            assert proxy.wait_log("draining")["signal"] == number.name
            assert proxy.wait_exit() == 0
        assert proxy.wait_log("stopped")["clean"] is True
        assert not events(proxy, "reloaded")


def test_hangups_that_nobody_looked_at_yet_are_one(server: names.NameServer) -> None:
    server.say("one.test", "127.0.0.1")
    with Backend(answer_all) as backend, Proxy(f"http://one.test:{backend.port}", env=server.env) as proxy:
        server.hang("one.test")
        proxy.signal(signal.SIGHUP)
        wait_until(lambda: server.asked("one.test") == 2)
        for _ in range(30):
            proxy.signal(signal.SIGHUP)
            time.sleep(0.005)
        server.say("one.test", "127.0.0.1")
        wait_until(lambda: events(proxy, "reloaded") == 2)
        time.sleep(0.3)
        assert events(proxy, "reloaded") == 2
        assert server.asked("one.test") == 3


def started(*words: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """`llmpipe serve`, of which nobody knows yet whether it will listen."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    command = [sys.executable, "-m", "llmpipe", "serve", "--admin", "off", "--workers", "1", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**inherited, **env})


def test_names_are_asked_for_together_at_the_start(server: names.NameServer) -> None:
    names = [f"n{number}.test" for number in range(8)]
    server.hang(*names)
    port = free_port()
    with Backend(answer_all) as backend:
        words = [word for name in names for word in ("--backend", f"http://{name}:{backend.port}")]
        with started("--listen", f"127.0.0.1:{port}", *words, env=server.env) as process:
            try:
                wait_until(lambda: all(server.asked(name) == 1 for name in names), 30)
                for name in names:
                    server.say(name, "127.0.0.1")
                assert process.stderr is not None
                assert b"listening" in process.stderr.readline()
                with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            finally:
                process.terminate()
                process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.parametrize("where", ["--backend", "--listen", "--admin"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_whose_names_hang(server: names.NameServer, where: str, number: signal.Signals) -> None:
    """Nobody was served, so nothing was cut. As the first process of a container it would be deaf without handlers."""
    server.hang("one.test")
    words = {"--backend": "http://127.0.0.1:1", "--listen": "127.0.0.1:0", "--admin": "off"}
    words[where] = "http://one.test:1" if where == "--backend" else "one.test:0"
    with started(*(word for pair in words.items() for word in pair), env=server.env) as process:
        wait_until(lambda: server.asked("one.test") == 1, 30)
        process.send_signal(signal.SIGHUP)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, b"stopped" in errors) == (0, True)


def test_a_name_that_hangs_holds_up_no_other(server: names.NameServer) -> None:
    """The other's new address is used at once, and it costs one thread, however often it is asked for."""
    server.say("one.test", "127.0.0.1")
    server.say("two.test", "127.0.0.1")
    with Backend(answer_all, host="127.0.0.2") as backend:
        with Proxy(f"http://one.test:{free_port()}", f"http://two.test:{backend.port}", env=server.env) as proxy:
            server.hang("one.test")
            server.say("two.test", "127.0.0.2")
            proxy.signal(signal.SIGHUP)
            line = proxy.wait_log("name resolved anew")
            assert (line["backend"], line["addresses"]) == (f"http://two.test:{backend.port}", "127.0.0.2")
            assert not events(proxy, "reloaded")

            def reached() -> bool:
                with Client(proxy) as client:
                    return client.request(GET).status == 200

            wait_until(reached)


def test_a_look_up_has_a_limit_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    go = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        go.wait(30)
        return ["found"]

    async def look_up() -> None:
        names = resolve.Names()
        results = await asyncio.gather(*(names.look_up("a.test") for _ in range(5)), return_exceptions=True)
        assert {str(result) for result in results} == {"no answer within 0.2 s"}
        with pytest.raises(OSError, match="no answer"):
            await names.look_up("a.test")
        assert asked == ["a.test"]
        go.set()
        monkeypatch.setattr(resolve, "LIMIT", 30.0)
        await names.look_up("b.test")
        assert await names.look_up("a.test") == ["found"]

    monkeypatch.setattr(resolve, "LIMIT", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(look_up())


def test_where_no_thread_can_be_started_a_name_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def look_up() -> None:
        with pytest.raises(OSError, match="can't start new thread"):
            await resolve.Names().look_up("a.test")

    monkeypatch.setattr(threading.Thread, "start", start)
    asyncio.run(look_up())


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no further byte: (read end, write end)."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    yield read, write
    os.close(read)
    os.close(write)


def answers(port: int) -> bool:
    """Whether a request to this port is answered 200, or the port does not listen yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
            sock.sendall(GET)
            assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    except ConnectionRefusedError:
        return False
    return True


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_end_does_not_wait_for_a_log_that_nobody_reads(full_pipe: tuple[int, int], number: signal.Signals) -> None:
    port = free_port()
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", f"127.0.0.1:{port}", "--admin", "off"]
        command += ["--workers", "1", "--backend", backend.url]
        with subprocess.Popen(command, stderr=full_pipe[1]) as process:
            try:
                wait_until(lambda: answers(port), 30)
                process.send_signal(number)
                assert process.wait(30) == 0
            finally:
                process.kill()


SLOW_TO_CLOSE = """
import sys
from llmpipe import cli, log
log.CLOSE_SILENCE = log.CLOSE_LIMIT = 1000.0
sys.argv = ["llmpipe", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_the_writing_of_the_log(full_pipe: tuple[int, int], number: signal.Signals) -> None:
    port, admin = free_port(), free_port()
    with Backend(answer_all) as backend:
        command = [sys.executable, "-c", SLOW_TO_CLOSE, "serve", "--listen", f"127.0.0.1:{port}", "--workers", "1"]
        command += ["--admin", f"127.0.0.1:{admin}", "--backend", backend.url]
        with subprocess.Popen(command, stderr=full_pipe[1]) as process:
            try:
                wait_until(lambda: answers(port) and not refuses(admin), 30)
                process.send_signal(signal.SIGTERM)
                wait_until(
                    lambda: ignores(process.pid, signal.SIGHUP), 30
                )  # the loop has ended: what is left is the log
                assert refuses(admin)
                process.send_signal(signal.SIGHUP)
                process.send_signal(signal.SIGUSR1)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.5)
                process.send_signal(number)
                assert process.wait(30) == 1
            finally:
                process.kill()


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal."""
    ignored = re.search(r"SigIgn:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    assert ignored
    return bool(int(ignored[1], 16) >> (number - 1) & 1)


def test_a_manager_that_is_busy_is_told_later_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PATIENCE", 30.0)
    path = f"{tmp_path}/notify"

    async def tell(told: socket.socket, filler: socket.socket) -> None:
        notifier = notify.Notifier({"NOTIFY_SOCKET": path})
        notifier.ready()
        notifier.reloading()
        notifier.ready()
        notifier.stopping()
        await asyncio.sleep(0.2)
        got = []
        while len(got) < 4:
            with contextlib.suppress(BlockingIOError):
                got += [state for state in [told.recv(1000)] if state != b"x"]
            await asyncio.sleep(0.001)
        assert [re.split(rb"[=\n]", state)[0] for state in got] == [b"READY", b"RELOADING", b"READY", b"STOPPING"]

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, contextlib.ExitStack() as stack:
        told.bind(path)
        told.setblocking(False)
        sent = -1
        while sent != 0:  # until a new sender cannot send anything
            filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            filler.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", path)
                    sent += 1
        asyncio.run(tell(told, filler))


class Held:
    """A stream that goes on when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, conn: Connection) -> None:
        conn.read_request()
        conn.send(sse_head() + chunk(b"data: 1\n\n"))
        self.go.wait(60)
        conn.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1", "0 1 2"])
def test_standard_descriptors_may_be_closed(closed: str) -> None:
    """No socket gets one of their numbers, and the end is clean (rule G5)."""
    port, admin = free_port(), free_port()
    held = Held()
    with Backend(held) as backend:
        closing = " ".join(f"{number}>&-" for number in closed.split())
        command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "llmpipe", "serve", "--workers", "2"]
        command += ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--backend", backend.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                wait_until(lambda: process.poll() is not None or not (refuses(port) or refuses(admin)), 30)
                assert process.poll() is None
                with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as client:
                    client.sendall(GET)
                    assert client.recv(100).startswith(b"HTTP/1.1 200 ")
                    shown = open_descriptors(process.pid)
                    assert {shown[int(number)] for number in closed.split()} == {"/dev/null"}
                    assert not [number for number in (0, 1, 2) if shown[number].startswith("socket:")]
                    process.send_signal(signal.SIGTERM)
                    wait_until(lambda: refuses(port), 30)
                    held.go.set()
                    got = b""
                    while data := client.recv(65536):
                        got += data
                    assert got.endswith(b"0\r\n\r\n")
                output, errors = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 0, errors
        assert output == b""
        assert (b"stopped" in errors) == ("2" not in closed)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_signals_that_never_end_it(proxy_to: Callable[..., Proxy], number: signal.Signals) -> None:
    """Rule G4."""
    held = Held()
    with Backend(held) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            for _ in range(3):
                proxy.signal(number)
                time.sleep(0.05)
            assert proxy.admin("/readyz")[0] == 200
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("draining")
            proxy.signal(number)
            time.sleep(0.1)
            held.go.set()
            assert client.read_eof().endswith(b"0\r\n\r\n")
        assert proxy.wait_exit() == 0


def test_sigquit_drains_and_a_second_one_ends() -> None:
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        client.send(GET)
        client.read_head()
        proxy.signal(signal.SIGQUIT)
        assert proxy.wait_log("draining")["signal"] == "SIGQUIT"
        assert proxy.process.poll() is None
        proxy.signal(signal.SIGQUIT)
        assert not client.read_eof().endswith(b"0\r\n\r\n")
        assert proxy.wait_exit() == 1
        held.go.set()
        backend.errors.clear()


def at_once(proxy: Proxy, requests: int) -> list[int]:
    """The statuses of requests that are sent at the same time."""
    clients = [Client(proxy) for _ in range(requests)]
    try:
        for client in clients:
            client.send(GET)
        return [client.read_response().status for client in clients]
    finally:
        for client in clients:
            client.close()


def test_a_name_whose_first_address_is_dead(server: names.NameServer) -> None:
    """Each of several requests at once tries both, and the backend is not left out."""
    server.say("one.test", "127.0.0.2", "127.0.0.1")
    with (
        Backend(answer_all) as backend,
        Proxy(f"http://one.test:{backend.port}?addresses=first", env=server.env) as proxy,
    ):
        for _ in range(3):
            assert at_once(proxy, 8) == [200] * 8
        assert proxy.metric("llmpipe_backend_up", backend=f"http://one.test:{backend.port}") == 1


def test_a_name_whose_first_address_swallows_connections(server: names.NameServer) -> None:
    """The second is tried when the time of a connect is over, by each of several requests at once."""
    server.say("one.test", "127.0.0.2", "127.0.0.1")
    with Backend(answer_all) as backend, unanswering_address(("127.0.0.2", backend.port)):
        url = f"http://one.test:{backend.port}?addresses=first"
        with Proxy(url, env=server.env, options=["--connect-timeout", "300ms"]) as proxy:
            for _ in range(2):
                assert at_once(proxy, 8) == [200] * 8
            assert proxy.metric("llmpipe_backend_up", backend=f"http://one.test:{backend.port}") == 1


def test_a_name_that_moves_while_a_request_is_in_flight(server: names.NameServer) -> None:
    """After the reload no later request goes to the old address, that of the kept connection included."""
    server.say("one.test", "127.0.0.1")
    go = threading.Event()

    def held(conn: Connection) -> None:
        conn.read_request()
        go.wait(60)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        answer_all(conn)

    with Backend(held) as old, contextlib.ExitStack() as stack:
        new = socket.create_server(("127.0.0.2", old.port))
        new.settimeout(TIMEOUT)
        stack.enter_context(new)
        proxy = stack.enter_context(Proxy(f"http://one.test:{old.port}", env=server.env))
        with Client(proxy) as client:
            client.send(GET)
            old.wait_connections(1)
            server.say("one.test", "127.0.0.2")
            proxy.signal(signal.SIGHUP)
            proxy.wait_log("reloaded")
            go.set()
            assert client.read_response().status == 200
            client.send(GET)
            upstream, _ = new.accept()
            with upstream:
                upstream.settimeout(TIMEOUT)
                assert upstream.recv(1000).startswith(b"GET / ")
                upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                assert client.read_response().status == 200
        assert len(old.connections) == 1
