"""Networks that hurt: loss, reordering, tiny segments, delay, and peers that vanish without a FIN or an RST.

The far side is a network namespace at the other end of a cable (veth) that a test can cut: then every packet is thrown away in
silence. That needs root, `ip` and `nft`; where they are missing the tests are skipped and say so. A wire that reorders is made of two
TUN devices with this process between them, because not every kernel has sch_netem.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import random
import select
import shutil
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from harness import (
    LAST_CHUNK,
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Proxy,
    Stream,
    answer_all,
    chunk,
    open_descriptors,
    respond,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
DEAD = 3.0
"""Seconds after which a silent peer counts as dead in these tests."""

MARGIN = 20.0
"""Seconds that a busy machine may add to it."""

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
PIDFD_OPEN, PIDFD_GETFD = 434, 438
TCP_USER_TIMEOUT = 18

T = TypeVar("T")
NUMBERS = itertools.count()

missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or bool(missing),
    reason="NETWORKS NOT TESTED: "
    + ("they need root" if os.geteuid() else f"there is no {' and no '.join(missing)} (apt: iproute2, nftables)"),
)


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done


class FarSide:
    """A host at the other end of a cable."""

    def __init__(self) -> None:
        number = next(NUMBERS)
        self.name = f"llmpipe-{os.getpid()}-{number}"
        self.device = f"f{os.getpid()}x{number}"
        net = f"10.{os.getpid() % 200 + 20}.{number % 250}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        self.clients: list[Client] = []
        run("ip", "netns", "add", self.name)
        try:
            self.lay()
            run("ip", "addr", "add", f"{self.here}/24", "dev", self.device)
            run("ip", "link", "set", self.device, "up")
            self.run("ip", "addr", "add", f"{self.there}/24", "dev", "far")
            self.run("ip", "link", "set", "far", "up")
            self.run("ip", "link", "set", "lo", "up")
            self.run("nft", "add table inet cable")
            for hook in ("input", "output"):
                self.run("nft", f"add chain inet cable {hook} {{ type filter hook {hook} priority 0; }}")
        except BaseException:
            self.close()
            raise

    def lay(self) -> None:
        """Makes the cable: a device here, and one called `far` there."""
        run("ip", "link", "add", self.device, "type", "veth", "peer", "name", "far", "netns", self.name)

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command there."""
        return run("ip", "netns", "exec", self.name, *words, check=check)

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` makes there; sockets keep the namespace that they were made in, threads that of their maker."""
        made: list[T] = []

        def enter() -> None:
            with open(f"/var/run/netns/{self.name}") as namespace:
                assert LIBC.setns(namespace.fileno(), CLONE_NEWNET) == 0
            made.append(make())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert made
        return made[0]

    def connect(self, proxy: Proxy, window: int = 0) -> Client:
        """A client there; with a receive buffer of so many bytes, where it is not 0."""

        def make() -> socket.socket:
            sock = socket.socket()
            if window:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            sock.settimeout(TIMEOUT)
            sock.connect((self.here, proxy.port))
            return sock

        sock = self.inside(make)
        client = Client.__new__(Client)
        Stream.__init__(client, sock)
        self.clients.append(client)
        return client

    def cut(self) -> None:
        """Every packet is thrown away from now on, in both directions."""
        for hook in ("input", "output"):
            self.run("nft", f"add rule inet cable {hook} drop")

    def lose(self, percent: int) -> None:
        """So many packets of a hundred are thrown away, in each direction."""
        for hook in ("input", "output"):
            self.run("nft", f"add rule inet cable {hook} numgen random mod 100 < {percent} drop")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        run("ip", "link", "del", self.device, check=False)
        run("ip", "netns", "del", self.name, check=False)


class Shuffle:
    """What comes in on one descriptor, packet by packet, goes out on another: not in its order, and some of it twice."""

    HELD_TIME = 0.02
    """Seconds that a packet waits for later ones at most: the last ones of all must arrive too."""

    def __init__(self, source: int, sink: int, seed: int) -> None:
        self.source, self.sink = source, sink
        self.reordered = self.doubled = 0
        self._dice = random.Random(seed)
        self._held: list[list[float]] = []
        """Until when, until how many later packets, how many there were; its packet stands at the same place in `_packets`."""
        self._packets: list[bytes] = []

    def take(self, packet: bytes) -> None:
        """A packet has come."""
        if self._dice.random() < 0.2:
            self._held.append([time.monotonic() + self.HELD_TIME, self._dice.randint(1, 5), 0])
            self._packets.append(packet)
            return
        self._send(packet)
        if self._dice.random() < 0.05:
            self._send(packet)
            self.doubled += 1
        for held in self._held:
            held[2] += 1
        self.release()

    def release(self) -> None:
        """Sends what has waited for long enough."""
        now = time.monotonic()
        for i in reversed(range(len(self._held))):
            until, later, passed = self._held[i]
            if passed >= later or now >= until:
                self.reordered += passed > 0
                del self._held[i]
                self._send(self._packets.pop(i))

    def _send(self, packet: bytes) -> None:
        # A full queue loses the packet, as any wire would.
        with contextlib.suppress(OSError):
            os.write(self.sink, packet)


def open_tun(name: str) -> int:
    """A new TUN device in the namespace of this thread; its packets are read and written one by one."""
    set_interface, tun, no_header = 0x400454CA, 0x0001, 0x1000
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, set_interface, struct.pack("16sH22x", name.encode(), tun | no_header))
    except OSError:
        os.close(fd)
        raise
    return fd


class ShuffledFarSide(FarSide):
    """A host behind a wire that reorders and doubles packets, in both directions."""

    def lay(self) -> None:
        self._ends = [open_tun(self.device)]
        self._ends.append(self.inside(lambda: open_tun("far")))
        here, there = self._ends
        self.ways = [Shuffle(here, there, 1), Shuffle(there, here, 2)]
        self._ended = False
        self._relay = threading.Thread(target=self._shuffle)
        self._relay.start()

    def _shuffle(self) -> None:
        while not self._ended:
            for fd in select.select(self._ends, [], [], Shuffle.HELD_TIME / 4)[0]:
                # A device that is not up yet has nothing to read.
                with contextlib.suppress(OSError):
                    next(way for way in self.ways if way.source == fd).take(os.read(fd, 65536))
            for way in self.ways:
                way.release()

    def close(self) -> None:
        super().close()
        self._ended = True
        self._relay.join()
        for fd in self._ends:
            os.close(fd)


@pytest.fixture
def far() -> Iterator[FarSide]:
    side = FarSide()
    yield side
    side.close()


def proxy_on(far: FarSide, *backends: str, options: tuple[str, ...] = ()) -> Proxy:
    return Proxy(*backends, options=("--listen", f"{far.here}:0", "--dead-peer-timeout", f"{DEAD:.0f}s", *options))


def wait_for_death(proxy: Proxy, begun: float) -> None:
    """The client counts as one that left, not before its time and within the margin; nothing of it stays."""
    proxy.wait_metric("llmpipe_exchanges_total", 1, timeout=DEAD + MARGIN, outcome="client_abort")
    assert time.monotonic() - begun > DEAD / 2
    proxy.settled()
    proxy.wait_metric("llmpipe_upstreams", 0)


@needs_namespaces
def test_a_client_that_vanishes_before_the_first_token_frees_its_backend(far: FarSide) -> None:
    with Backend(lambda connection: connection.read_request()) as backend, proxy_on(far, backend.url) as proxy:
        client = far.connect(proxy)
        client.send(GET)
        backend.wait_connections(1)
        proxy.wait_metric("llmpipe_in_flight", 1, backend=backend.url)
        begun = time.monotonic()
        far.cut()
        backend.connections[0].wait_eof(DEAD + MARGIN)
        wait_for_death(proxy, begun)


@needs_namespaces
def test_a_client_that_vanishes_in_mid_stream_frees_its_backend(far: FarSide) -> None:
    """Events are on their way: keepalive does not ask then, what they wait for is their acknowledgement."""

    def stream(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        with contextlib.suppress(OSError):
            for n in range(10_000):
                connection.send(chunk(b"data: %d\n\n" % n))
                time.sleep(0.1)

    with Backend(stream) as backend, proxy_on(far, backend.url) as proxy:
        client = far.connect(proxy)
        client.send(GET)
        client.recv_until(b"data: 5\n\n")
        begun = time.monotonic()
        far.cut()
        wait_for_death(proxy, begun)


@needs_namespaces
def test_a_client_that_vanishes_while_it_is_blocked_frees_its_backend(far: FarSide) -> None:
    """Nobody asks whether it is still there while its window is shut; the send time-out ends it."""

    def flood(connection: Connection) -> None:
        connection.read_request()
        with contextlib.suppress(OSError):
            respond(connection, bytes(30_000_000))

    options = ("--send-timeout", f"{DEAD:.0f}s", "--dead-peer-timeout", "45s")
    with Backend(flood) as backend, proxy_on(far, backend.url, options=options) as proxy:
        client = far.connect(proxy, window=4096)
        client.send(GET)
        proxy.wait_metric("llmpipe_buffers_held", 1)
        far.cut()
        proxy.wait_metric("llmpipe_exchanges_total", 1, timeout=DEAD + MARGIN, outcome="timeout_send")
        proxy.settled()
        proxy.wait_metric("llmpipe_upstreams", 0)
        assert proxy.metric("llmpipe_buffers_held") == 0


@needs_namespaces
def test_an_idle_connection_whose_client_vanished_is_closed(far: FarSide) -> None:
    with Backend(answer_all) as backend, proxy_on(far, backend.url, options=("--keepalive-timeout", "0")) as proxy:
        client = far.connect(proxy)
        assert client.request(GET).body == b"ok"
        far.cut()
        proxy.wait_metric("llmpipe_clients", 0, timeout=DEAD + MARGIN)
        assert proxy.outcome("ok") == 1
        assert proxy.outcome("client_abort") == 0


@needs_namespaces
def test_a_backend_that_vanishes_is_given_up(far: FarSide) -> None:
    """Long before its time to the first token is over; the client is told."""
    asked = []
    backend = far.inside(lambda: Backend(lambda connection: asked.append(connection.read_request()), host=far.there))
    with (
        backend,
        proxy_on(far, backend.url) as proxy,
        contextlib.closing(socket.create_connection((far.here, proxy.port))) as sock,
    ):
        stream = Stream(sock)
        stream.send(GET)
        backend.wait_connections(1)
        wait_until(lambda: len(asked) == 1)
        time.sleep(0.2)  # until its kernel has acknowledged it: from here on there is silence
        far.cut()
        stream.sock.settimeout(DEAD + MARGIN)
        assert b" 502 " in stream.read_head().split(b"\r\n")[0]
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="upstream_error")
        far.run("nft", "flush ruleset")  # so that the backend can be told to end


@needs_namespaces
def test_an_answer_whose_backend_vanished_is_cut(far: FarSide) -> None:
    """In the middle of a stream, which must not look whole; long before its time between two tokens is over."""

    def stream(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.wait_eof(60)

    backend = far.inside(lambda: Backend(stream, host=far.there))
    with (
        backend,
        proxy_on(far, backend.url) as proxy,
        contextlib.closing(socket.create_connection((far.here, proxy.port))) as sock,
    ):
        client = Stream(sock)
        client.send(GET)
        client.recv_until(b"data: 1\n\n\r\n")
        time.sleep(0.2)  # until all of it is acknowledged: from here on there is silence
        begun = time.monotonic()
        far.cut()
        client.sock.settimeout(DEAD + MARGIN)
        rest = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.sock.recv(1000):
                rest += piece
        assert rest == b""  # no last chunk
        assert time.monotonic() - begun > DEAD / 2
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="upstream_abort")
        proxy.wait_metric("llmpipe_upstreams", 0)
        far.run("nft", "flush ruleset")  # so that the backend can be told to end


@needs_namespaces
def test_a_backend_in_a_black_hole_is_passed_over(far: FarSide) -> None:
    far.cut()
    with (
        Backend(answer_all) as backend,
        proxy_on(far, f"http://{far.there}:8000", backend.url, options=("--connect-timeout", "1s")) as proxy,
        contextlib.closing(socket.create_connection((far.here, proxy.port))) as sock,
    ):
        for _ in range(3):
            stream = Stream(sock)
            stream.sock.settimeout(MARGIN)
            stream.send(GET)
            assert b" 200 " in stream.read_head().split(b"\r\n")[0]
            assert stream.read(2) == b"ok"
        assert proxy.metric("llmpipe_backend_failures_total", backend=f"http://{far.there}:8000") >= 1
        proxy.wait_metric("llmpipe_exchanges_total", 3, outcome="ok")


def digest_of_both_ways(connect: Callable[[], Client], size: int) -> None:
    """A body up and the same body down, whatever the network does to it."""
    body = random.Random(size).randbytes(size)
    client = connect()
    client.sock.settimeout(60)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    sender = threading.Thread(target=lambda: client.sock.sendall(body))
    sender.start()
    head = client.read_head()
    assert b" 200 " in head.split(b"\r\n")[0]
    assert client.read(size) == body
    sender.join(60)
    client.close()


def echo(connection: Connection) -> None:
    connection.sock.settimeout(60)
    while True:
        respond(connection, connection.read_request().body)


@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize("hurt", ["loss", "tiny segments", "loss and tiny segments"])
def test_bodies_come_through_byte_for_byte(far: FarSide, hurt: str) -> None:
    if "loss" in hurt:
        far.lose(3)
    if "tiny" in hurt:
        run("ip", "link", "set", far.device, "mtu", "200")
        far.run("ip", "link", "set", "far", "mtu", "200")
    with Backend(echo) as backend, proxy_on(far, backend.url, options=("--dead-peer-timeout", "45s")) as proxy:
        digest_of_both_ways(lambda: far.connect(proxy), 300_000)
        proxy.settled()
        assert proxy.outcome("ok") == 1


@pytest.mark.slow
@needs_namespaces
@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="REORDERING NOT TESTED: there is no /dev/net/tun")
@pytest.mark.parametrize("side", ["client", "backend"])
def test_bodies_come_through_reordered_delayed_and_doubled(side: str) -> None:
    with contextlib.ExitStack() as stack:
        far = ShuffledFarSide()
        stack.callback(far.close)
        backend = Backend(echo) if side == "client" else far.inside(lambda: Backend(echo, host=far.there))
        stack.enter_context(backend)
        options = ("--dead-peer-timeout", "45s")
        if side == "client":
            proxy = stack.enter_context(proxy_on(far, backend.url, options=options))
            digest_of_both_ways(lambda: far.connect(proxy), 1_000_000)
        else:
            proxy = stack.enter_context(Proxy(backend.url, options=options))
            digest_of_both_ways(lambda: Client(proxy), 1_000_000)
        proxy.settled()
        assert proxy.outcome("ok") == 1
        for way in far.ways:
            assert way.reordered > 50
            assert way.doubled > 5


@contextlib.contextmanager
def slow_cable(port: int, delay: float) -> Iterator[int]:
    """A relay that holds each piece for so many seconds, both ways; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        pieces: list[tuple[float, bytes]] = []
        ready = threading.Condition()

        def deliver() -> None:
            while True:
                with ready:
                    ready.wait_for(lambda: pieces)
                    due, piece = pieces.pop(0)
                time.sleep(max(0.0, due - time.monotonic()))
                if not piece:
                    return
                with contextlib.suppress(OSError):
                    sink.sendall(piece)

        threading.Thread(target=deliver, daemon=True).start()
        with contextlib.suppress(OSError):
            while True:
                piece = source.recv(65536)
                with ready:
                    pieces.append((time.monotonic() + delay, piece))
                    ready.notify()
                if not piece:
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                upstream = socket.create_connection(("127.0.0.1", port))
                for sock in (client, upstream):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    open_sockets.append(sock)
                threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
                threading.Thread(target=pump, args=(upstream, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for sock in (listener, *open_sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def test_events_keep_their_gaps_on_a_slow_cable() -> None:
    """100 ms of delay on either side: each event is forwarded when it comes, and acknowledgements are not waited for."""
    gap, events = 0.1, 30

    def stream(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head())
        for n in range(events):
            connection.send(chunk(b"data: %02d\n\n" % n))
            time.sleep(gap)
        connection.send(LAST_CHUNK)

    with Backend(stream) as backend, slow_cable(int(backend.url.rpartition(":")[2]), 0.1) as near_backend:
        with Proxy(f"http://127.0.0.1:{near_backend}") as proxy, slow_cable(proxy.port, 0.1) as near_client:
            client = Stream(socket.create_connection(("127.0.0.1", near_client)))
            client.send(GET)
            times = []
            for n in range(events):
                client.recv_until(b"data: %02d\n\n" % n)
                times.append(time.monotonic())
            client.recv_until(LAST_CHUNK)
            client.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.median(gaps) > gap / 2, gaps


@pytest.mark.slow
def test_a_client_that_keeps_its_window_shut_is_not_taken_for_dead() -> None:
    """The send time-out says how long a client may take nothing; the kernel must not say it first."""
    body = random.Random(1).randbytes(30_000_000)

    def flood(connection: Connection) -> None:
        connection.read_request()
        connection.sock.settimeout(60)
        respond(connection, body)

    with Backend(flood) as backend, Proxy(backend.url, options=("--dead-peer-timeout", "2s")) as proxy:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", proxy.port))
        stream = Stream(sock)
        stream.send(GET)
        proxy.wait_metric("llmpipe_buffers_held", 1)
        time.sleep(6)
        assert proxy.outcome("client_abort") == 0
        stream.read_head()
        assert stream.read(len(body)) == body
        stream.close()
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")


def options_of(pid: int, port: int) -> Iterator[tuple[bool, dict[str, int]]]:
    """For each established TCP socket of a process: whether it is a client's, and what was set on it."""
    pidfd = LIBC.syscall(PIDFD_OPEN, pid, 0)
    for fd, target in open_descriptors(pid).items():
        if not target.startswith("socket:"):
            continue
        copy = LIBC.syscall(PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0 and ctypes.get_errno() == errno.EBADF:
            continue  # closed since
        if copy < 0:
            pytest.skip(f"SOCKET OPTIONS NOT TESTED: pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        with socket.socket(fileno=copy) as sock:
            if sock.family != socket.AF_INET or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            yield (
                sock.getsockname()[1] == port,
                {
                    "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                    "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    "idle": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    "between": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                    "probes": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                    "unanswered": sock.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT),
                },
            )
    os.close(pidfd)


def test_a_dead_peer_is_found_within_a_minute_by_default() -> None:
    """What is set on clients and upstreams; the tests above show what it does, in shorter times."""
    with (
        Backend(lambda connection: connection.read_request()) as backend,
        Proxy(backend.url) as proxy,
        Client(proxy) as client,
    ):
        client.send(GET)
        backend.wait_connections(1)
        # Behind it the engine sleeps: the kernel connects before options are set.
        proxy.wait_metric("llmpipe_upstreams", 1)
        found = [(ours, given) for ours, given in options_of(proxy.pid, proxy.port)]
        common = {"nodelay": 1, "keepalive": 1, "idle": 15, "between": 10, "probes": 3}
        assert (True, {**common, "unanswered": 45_000}) in found
        assert (False, {**common, "unanswered": 0}) in found
        backend.forget()
