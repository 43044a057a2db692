"""Sockets that a service manager hands over, as sd_listen_fds(3) says: real processes, real descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tools
from harness import (
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    Request,
    answer_all,
    chunk,
    free_port,
    sse_head,
    wait_until,
)

from llmpipe import activation
from llmpipe.config import format_address
from llmpipe.errors import UsageError

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

# What a service manager does between fork and exec: descriptors from 3, and the variables. A pid of 0 is its own.
HAND_OVER = """
import os, sys
given, names, count, pid = sys.argv[1:5]
for at, fd in enumerate(map(int, given.split())):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_FDS"] = count
os.environ["LISTEN_PID"] = pid if pid != "0" else str(os.getpid())
if names != "-":
    os.environ["LISTEN_FDNAMES"] = names
os.execv(sys.argv[5], sys.argv[5:])
"""


def listen(host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    """What a service manager opens: it waits in accept, and has no option set."""
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(100)
    return listener


class HandedOver:
    """Arguments of a `Proxy`, or words before a command, that hand sockets over."""

    def __init__(
        self, *given: socket.socket | int, names: str = "-", count: str | None = None, pid: str = "0", path: bool = True
    ) -> None:
        # High, so that no dup2 meets one that is still to be copied.
        self.fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in given]
        count = str(len(given)) if count is None else count
        self.words = [sys.executable, "-c", HAND_OVER, " ".join(map(str, self.fds)), names, count, pid]

    def __enter__(self) -> HandedOver:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)


@contextlib.contextmanager
def proxy_with(
    backend: str, *given: socket.socket, names: str = "-", options: Sequence[str] = (), pid: str = "0"
) -> Iterator[Proxy]:
    """A proxy that these sockets were handed to."""
    with HandedOver(*given, names=names, pid=pid) as over:
        with Proxy(backend, options=options, prefix=over.words, pass_fds=over.fds) as proxy:
            yield proxy


def address(sock: socket.socket) -> str:
    return format_address(*sock.getsockname()[:2])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listen() as listener:
        yield listener


@pytest.mark.parametrize("names", ["-", "http", "", "unknown", "llmpipe.socket"])
def test_it_serves_on_the_socket_that_it_was_given(listener: socket.socket, names: str) -> None:
    port = free_port()
    with Backend(answer_all) as backend:
        with proxy_with(backend.url, listener, names=names, options=["--listen", f"127.0.0.1:{port}"]) as proxy:
            assert proxy.address == address(listener)
            assert proxy.wait_log("socket taken over")["instead_of"] == "--listen"
            with Client(proxy) as client:
                assert client.request(GET).status == 200
            with pytest.raises(ConnectionRefusedError):  # --listen is not bound as well
                socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


@pytest.mark.parametrize("names", ["-", "http:http:http", "http:unknown:llmpipe.socket"])
def test_several_for_clients(names: str) -> None:
    with listen() as one, listen() as two, listen("::1", socket.AF_INET6) as three, Backend(answer_all) as backend:
        with proxy_with(backend.url, one, two, three, names=names) as proxy:
            told = [line["address"] for line in proxy.log if line["event"] == "listening"]
            assert told == [address(one), address(two), address(three)]
            for sock in (one, two, three):
                with socket.create_connection(sock.getsockname()[:2], timeout=TIMEOUT) as client:
                    client.sendall(GET)
                    assert client.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("order", [["http", "admin"], ["admin", "http"]])
def test_one_for_clients_and_one_named_admin(order: list[str]) -> None:
    with listen() as one, listen() as two, Backend(answer_all) as backend:
        with proxy_with(backend.url, one, two, names=":".join(order)) as proxy:
            by_name = dict(zip(order, (one, two), strict=True))
            assert proxy.address == address(by_name["http"])
            assert proxy.admin_port == by_name["admin"].getsockname()[1]
            with Client(proxy) as client:
                assert client.request(GET).status == 200
            assert proxy.admin("/readyz")[0] == 200


def test_an_admin_socket_alone(listener: socket.socket) -> None:
    with Backend(answer_all) as backend, proxy_with(backend.url, listener, names="admin") as proxy:
        assert proxy.admin_port == listener.getsockname()[1]
        assert proxy.address != address(listener)
        with Client(proxy) as client:
            assert client.request(GET).status == 200


def test_sockets_for_another_process_are_left_alone(listener: socket.socket) -> None:
    with Backend(answer_all) as backend, proxy_with(backend.url, listener, pid="1") as proxy:
        assert proxy.address != address(listener)
        with Client(proxy) as client:
            assert client.request(GET).status == 200


def test_nothing_is_sent_late_on_a_socket_that_was_given(listener: socket.socket) -> None:
    """Accepted connections inherit TCP_NODELAY from the listener, which the test shares with the proxy."""
    assert not listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with Backend(answer_all) as backend, proxy_with(backend.url, listener):
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert fcntl.fcntl(listener, fcntl.F_GETFL) & os.O_NONBLOCK


def test_an_ipv4_client_of_a_socket_for_both_has_an_ipv4_address() -> None:
    """systemd's ListenStream=8080 is one socket for IPv4 and IPv6."""
    requests: list[Request] = []

    def script(connection: Connection) -> None:
        requests.append(connection.read_request())
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        with Backend(script) as backend, proxy_with(backend.url, listener) as proxy:
            for host in ("127.0.0.1", "::1"):
                with socket.create_connection((host, proxy.port), timeout=TIMEOUT) as sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            assert [request.values(b"x-forwarded-for") for request in requests] == [[b"127.0.0.1"], [b"::1"]]
            assert [line["client"] for line in proxy.access(2)] == ["127.0.0.1", "::1"]


def test_a_restart_refuses_nobody(listener: socket.socket) -> None:
    """Who comes while no process runs waits in the backlog, and the next one answers."""
    stop = threading.Event()
    answered: list[int] = []
    failed: list[BaseException] = []

    def ask_on() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(listener.getsockname(), timeout=30) as sock:
                    sock.sendall(GET)
                    answer = sock.recv(100)
                    assert answer.startswith(b"HTTP/1.1 200 "), answer
                answered.append(1)
            except BaseException as error:
                failed.append(error)
                return

    with Backend(answer_all) as backend:
        threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(4)]
        try:
            for generation in range(3):
                with proxy_with(backend.url, listener):
                    if generation == 0:
                        for thread in threads:
                            thread.start()
                    seen = len(answered)
                    wait_until(lambda: len(answered) > seen + 20 or failed, 30)  # noqa: B023 - used at once
                assert not failed, failed
            with listen_backlog(listener) as waiting, proxy_with(backend.url, listener):
                # These connected while no process ran.
                for sock in waiting:
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
                stop.set()
                for thread in threads:
                    thread.join(30)
                    assert not thread.is_alive()
        finally:
            stop.set()
    assert not failed, failed


@contextlib.contextmanager
def listen_backlog(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Ten connections with a request each, before anybody accepts."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(10):
            sock = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=30))
            sock.sendall(GET)
            made.append(sock)
        yield made


def watched_inodes(pid: int) -> set[int]:
    """Inodes of what is in the epoll sets of a process."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for line in info.read_text().splitlines():
                if line.startswith("tfd:"):
                    found.add(int(line.partition(" ino:")[2].split()[0], 16))
    return found


def test_a_drain_leaves_the_socket_to_who_comes_next(listener: socket.socket) -> None:
    """A stream goes on to its end in the old process while the new one takes every new client."""
    go = threading.Event()

    def held(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        go.wait(60)
        connection.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    inode = os.fstat(listener.fileno()).st_ino
    with Backend(held) as slow, Backend(answer_all) as backend, proxy_with(slow.url, listener) as old:
        with Client(old) as streaming:
            streaming.send(GET)
            streaming.read_head()
            assert inode in watched_inodes(old.pid)
            old.signal(signal.SIGTERM)
            # The test holds the socket too, so closing it would not have taken it out of the epoll set.
            wait_until(lambda: inode not in watched_inodes(old.pid))
            with socket.create_connection(listener.getsockname(), timeout=TIMEOUT) as waiting:
                waiting.sendall(GET)
                waiting.settimeout(0.2)
                with pytest.raises(TimeoutError):  # in the backlog: the old one takes nobody any more
                    waiting.recv(1)
                waiting.settimeout(TIMEOUT)
                with proxy_with(backend.url, listener) as new:
                    assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
                    with Client(new) as client:
                        assert client.request(GET).status == 200
                    assert old.process.poll() is None
                    go.set()
                    assert streaming.read_chunked() == b"data: 1\n\ndata: 2\n\n"
                    assert old.wait_exit() == 0
                    assert len(old.access()) == 1


def test_nothing_of_it_is_left_for_children(listener: socket.socket) -> None:
    """A child would take variables and descriptors for its own."""
    script = """
import os, subprocess, sys
from llmpipe import activation
from llmpipe.config import format_address
inherited = activation.take(os.environ)
assert [listener.fileno() for listener in inherited.http] == [3]
environment, *descriptors = subprocess.run([sys.executable, "-c",
    "import os; print([n for n in os.environ if n.startswith('LISTEN')]); print(os.path.exists('/proc/self/fd/3') and "
    "os.readlink('/proc/self/fd/3').startswith('socket:'))"], stdout=subprocess.PIPE, text=True, check=True,
    close_fds=False).stdout.splitlines()
print(environment, *descriptors)
"""
    with HandedOver(listener) as over:
        done = subprocess.run(
            [*over.words, sys.executable, "-c", script],
            pass_fds=over.fds,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def refused(over: HandedOver, *options: str) -> str:
    """The one line that `llmpipe serve` prints before it exits with 2."""
    command = [
        *over.words,
        sys.executable,
        "-m",
        "llmpipe",
        "serve",
        "--backend",
        "http://127.0.0.1:1",
        "--workers",
        "1",
    ]
    with over:
        done = subprocess.run(
            [*command, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *options],
            pass_fds=over.fds,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    return done.stderr


def test_what_is_no_listening_tcp_socket_is_refused(listener: socket.socket) -> None:
    read, write = os.pipe()
    with (
        socket.socket() as idle,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        socket.create_connection(listener.getsockname()) as connected,
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX) as local,
        open(__file__) as file,
    ):
        local.bind(f"{directory}/s")
        local.listen()
        assert "does not listen" in refused(HandedOver(idle))
        assert "does not listen" in refused(HandedOver(connected))
        assert "only TCP" in refused(HandedOver(datagram))
        assert "only TCP" in refused(HandedOver(local))
        assert "no socket" in refused(HandedOver(read))
        assert "no socket" in refused(HandedOver(file.fileno()))
        assert "descriptor 4: what was handed over is no socket" in refused(
            HandedOver(listener, count="2", names="http:admin")
        )
    os.close(read)
    os.close(write)


def test_what_does_not_add_up_is_refused(listener: socket.socket) -> None:
    with listen() as other:
        assert "1000000 sockets were handed over" in refused(HandedOver(listener, count="1000000"))
        assert "two sockets for admin" in refused(HandedOver(listener, other, names="admin:admin"))
        assert "must name 2 sockets" in refused(HandedOver(listener, other, names="http"))
        assert "must name 1 sockets" in refused(HandedOver(listener, names="http:admin"))
        assert "the name 'htpp' is unknown" in refused(HandedOver(listener, names="htpp"))
        assert "LISTEN_FDS='one' is not a number" in refused(HandedOver(listener, count="one"))
        assert "LISTEN_PID='me' is not a number" in refused(HandedOver(listener, pid="me"))
        assert "--admin is off" in refused(HandedOver(listener, names="admin"), "--admin", "off")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""},
    ],
)
def test_nothing_is_taken_where_nothing_is_given(environment: dict[str, str]) -> None:
    environment = {"PATH": "/", **environment}
    if environment.get("LISTEN_PID") == str(os.getpid()):
        environment["LISTEN_PID"] = str(os.getpid())
    assert activation.take(environment) == activation.InheritedSockets()
    assert environment == {"PATH": "/"}


def test_what_is_refused_leaves_no_variable_either() -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9", "LISTEN_FDNAMES": "x"}
    with pytest.raises(UsageError):
        activation.take(environment)
    assert environment == {}


@tools.needs("systemd-socket-activate", "systemd")
def test_systemds_own_tool_hands_over() -> None:
    """It opens the sockets, waits for the first connection, and executes the proxy in its place."""
    one, two = free_port(), free_port()
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{one}", "-l", f"127.0.0.1:{two}", "--fdname=http:admin"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    with Backend(answer_all) as backend:
        command += [sys.executable, "-m", "llmpipe", "serve", "--workers", "1", "--backend", backend.url]
        # It passes on only the variables that it is told of. A sanitizer that is preloaded is for the proxy alone.
        command[1:1] = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
        environment.pop("LD_PRELOAD", None)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
            try:
                sock = None
                end = time.monotonic() + 30
                while sock is None:
                    try:
                        sock = socket.create_connection(("127.0.0.1", one), timeout=30)
                    except ConnectionRefusedError:
                        assert time.monotonic() < end
                        time.sleep(0.02)
                with sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
                with socket.create_connection(("127.0.0.1", two), timeout=30) as sock:
                    sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            finally:
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert f"address=127.0.0.1:{one}" in errors
