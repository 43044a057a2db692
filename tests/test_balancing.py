"""Several backends: least in-flight first, every kind of address, and nobody leaks a count."""

import socket
import threading
import time

import pytest
from harness import (
    Backend,
    Client,
    Connection,
    answer_all,
    free_port,
    respond,
    threads_of,
    unanswering_address,
    wait_asleep,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Gate:
    """A backend that answers when it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = 0

    def __call__(self, conn: Connection) -> None:
        while True:
            conn.read_request()
            self.waiting += 1
            self.open.wait(60)
            self.waiting -= 1
            try:
                respond(conn)
            except ConnectionError:
                return  # its client left


def test_least_in_flight_first(proxy_to):
    gates = [Gate() for _ in range(3)]
    proxy = proxy_to(*gates)
    clients = [Client(proxy) for _ in range(12)]
    try:
        for i, client in enumerate(clients):
            client.send(GET)
            wait_until(lambda i=i: sum(gate.waiting for gate in gates) == i + 1)
            counts = [gate.waiting for gate in gates]
            assert max(counts) - min(counts) <= 1
        # One backend becomes free: the next four go to it.
        gates[1].open.set()
        wait_until(lambda: gates[1].waiting == 0)
        wait_until(lambda: sum(not client.silent(0.01) for client in clients) >= 4)
        answered = [client for client in clients if client.buffer]
        assert len(answered) == 4
        gates[1].open.clear()
        for client in answered:
            assert client.read_response().status == 200
            client.send(GET)
        wait_until(lambda: gates[1].waiting == 4)
        for gate in gates:
            gate.open.set()
        for client in clients:
            assert client.read_response().status == 200
    finally:
        for gate in gates:
            gate.open.set()
        for client in clients:
            client.close()
    proxy.settled()


def test_equals_take_turns(proxy_to):
    proxy = proxy_to(answer_all, answer_all, answer_all)
    with Client(proxy) as client:
        for _ in range(30):
            assert client.request(GET).status == 200
    metrics = proxy.metrics()
    counts = [n for name, n in metrics.items() if name.startswith("llmpipe_backend_exchanges_total")]
    assert counts == [10, 10, 10]


@pytest.mark.parametrize("leaving", ["fin", "rst"])
def test_a_count_is_released_when_clients_leave(proxy_to, leaving):
    gates = [Gate(), Gate()]
    proxy = proxy_to(*gates)
    for number in range(1, 21):
        client = Client(proxy)
        client.send(GET)
        # Not only accepted: an RST may overtake a request that was not read yet.
        wait_until(lambda: sum(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_in_flight")) == 1)
        client.close() if leaving == "fin" else client.reset()
        proxy.wait_metric("llmpipe_exchanges_total", number, outcome="client_abort")
    proxy.settled()
    for gate in gates:
        gate.open.set()
    assert sum(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_in_flight")) == 0
    assert proxy.metric("llmpipe_exchanges_total", outcome="client_abort") == 20


@pytest.mark.parametrize("family", ["tcp", "tcp6", "unix"])
def test_every_kind_of_address(proxy_to, family):
    with Backend(answer_all, family) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            for _ in range(2):
                assert client.request(GET).status == 200
        assert proxy.access()[0]["backend"] == backend.url
        assert proxy.metric("llmpipe_upstream_reuses_total", backend=backend.url) == 1


def test_a_host_name(proxy_to):
    """localhost may be ::1 first; where nothing listens there, 127.0.0.1 is tried at once."""
    with Backend(answer_all) as backend:
        proxy = proxy_to(f"http://localhost:{backend.port}")
        for _ in range(3):
            with Client(proxy) as client:
                assert client.request(GET).status == 200
        proxy.wait_metric("llmpipe_exchanges_total", 3, outcome="ok")
        assert proxy.metric("llmpipe_retries_total") == 0


def test_a_backend_that_comes_back(proxy_to):
    port = free_port()
    proxy = proxy_to(f"http://127.0.0.1:{port}")
    with Client(proxy) as client:
        assert client.request(GET).status == 502
    assert proxy.wait_log("backend left out")["backend"] == f"http://127.0.0.1:{port}"
    assert proxy.admin("/readyz")[0] == 503 or proxy.metric("llmpipe_backend_up", backend=f"http://127.0.0.1:{port}")
    listener = socket.create_server(("127.0.0.1", port))
    try:
        with Client(proxy) as client:
            client.send(GET)
            sock, _ = listener.accept()
            connection = Connection(sock, 0)
            connection.read_request()
            respond(connection)
            assert client.read_response().status == 200
        assert proxy.wait_log("backend back")["backend"] == f"http://127.0.0.1:{port}"
        assert proxy.admin("/readyz")[0] == 200
        sock.close()
    finally:
        listener.close()


def test_a_missing_unix_socket(proxy_to, tmp_path):
    proxy = proxy_to(f"unix:{tmp_path}/none")
    with Client(proxy) as client:
        assert client.request(GET).status == 502
    assert proxy.wait_log("backend left out")["errno"] == 2


@pytest.mark.parametrize(("backends", "streams"), [(2, 16), (4, 24), (3, 30)])
def test_many_workers_share_the_counts(proxy_to, backends, streams):
    """Every worker has one or two of the clients; what is in flight is counted by the process."""
    gates = [Gate() for _ in range(backends)]
    proxy = proxy_to(*gates, options=["--workers", "16"])
    clients = [Client(proxy) for _ in range(streams)]
    try:
        for client in clients:
            client.send(GET)  # at once
        wait_until(lambda: sum(gate.waiting for gate in gates) == streams)
        assert [gate.waiting for gate in gates] == [streams // backends] * backends
        in_flight = [n for name, n in proxy.metrics().items() if name.startswith("llmpipe_in_flight")]
        assert in_flight == [streams // backends] * backends
        for gate in gates:
            gate.open.set()
        for client in clients:
            assert client.read_response().status == 200
    finally:
        for gate in gates:
            gate.open.set()
        for client in clients:
            client.close()
    proxy.settled()


def test_many_workers_take_turns(proxy_to):
    """Each request on a connection of its own, and so in another worker."""
    proxy = proxy_to(answer_all, answer_all, answer_all, options=["--workers", "8"])
    for _ in range(30):
        with Client(proxy) as client:
            assert client.request(GET).status == 200
        wait_asleep(threads_of(proxy.pid))  # what is counted as in flight moves the turn
    counts = [n for name, n in proxy.metrics().items() if name.startswith("llmpipe_backend_exchanges_total")]
    assert counts == [10, 10, 10]


def test_a_dead_backend_is_met_once_by_all_workers(proxy_to):
    port = free_port()
    dead = f"http://127.0.0.1:{port}"
    proxy = proxy_to(dead, answer_all, options=["--workers", "8", "--log-level", "debug"])  # which tells of each time
    clients = [Client(proxy) for _ in range(16)]  # two in each worker
    try:
        failures = 0.0
        while not failures:
            assert clients[0].request(GET).status == 200
            failures = proxy.metric("llmpipe_backend_failures_total", backend=dead)
        tries = proxy.metric("llmpipe_backend_exchanges_total", backend=dead)
        for client in clients[1:]:
            assert client.request(GET).status == 200
        # Left out for 100 ms: a slow machine may have tried it again after that, but not once for each worker.
        tries = proxy.metric("llmpipe_backend_exchanges_total", backend=dead) - tries
        wait_until(lambda: len([line for line in proxy.log if line["event"] == "backend left out"]) >= tries)
    finally:
        for client in clients:
            client.close()


class Answers:
    """A backend that answers every request with one status, and counts them."""

    def __init__(self, status: bytes) -> None:
        self.status = status
        self.count = 0

    def __call__(self, conn: Connection) -> None:
        while True:
            conn.read_request()
            self.count += 1
            conn.send(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nno" % self.status)


@pytest.mark.parametrize("status", [b"500 X", b"502 X", b"504 X"])
def test_l1_errors_in_a_row_leave_a_backend_out(proxy_to, status):
    broken, well = Answers(status), Answers(b"200 OK")
    proxy = proxy_to(broken, well, options=("--retry-status", "502"))
    with Client(proxy) as client:
        for _ in range(100):
            client.request(GET)
        assert broken.count < 40 < 60 < well.count
        line = proxy.wait_log("backend left out")
        assert line["reason"] == "5xx in a row"
        # One good answer, of the request that tries whether it works again, and it has its share once more.
        broken.status = b"200 OK"
        before = well.count
        wait_until(lambda: client.request(GET).status == 200 and broken.count > well.count - before, 60)
    proxy.settled()


@pytest.mark.parametrize(("status", "options"), [(b"503 X", ()), (b"404 X", ()), (b"500 X", ("--eject-errors", "0"))])
def test_l1_what_does_not_leave_a_backend_out(proxy_to, status, options):
    one, well = Answers(status), Answers(b"200 OK")
    proxy = proxy_to(one, well, options=options)
    with Client(proxy) as client:
        for _ in range(40):
            client.request(GET)
    assert (one.count, well.count) == (20, 20)
    assert not [line for line in proxy.log if line.get("event") == "backend left out"]


def test_l1_the_only_backend_is_not_left_out_for_its_answers(proxy_to):
    one = Answers(b"500 X")
    proxy = proxy_to(one)
    with Client(proxy) as client:
        assert [client.request(GET).status for _ in range(20)] == [500] * 20
    assert proxy.admin("/readyz")[0] == 200


def test_l1_nobody_waits_on_a_black_hole(proxy_to):
    """A backend that failed is connected before a request is sent there: while that does not end, all go elsewhere."""
    port = free_port()
    with Backend(answer_all) as well:
        proxy = proxy_to(f"http://127.0.0.1:{port}", well, options=("--connect-timeout", "10m"))
        with Client(proxy) as client:
            for _ in range(2):
                assert client.request(GET).status == 200
            proxy.wait_log("backend left out")
            with unanswering_address(("127.0.0.1", port)):
                end = time.monotonic() + 3
                while time.monotonic() < end:
                    assert client.request(GET).status == 200
                proxy.wait_metric("llmpipe_upstream_connects_total", 2, backend=f"http://127.0.0.1:{port}")
                assert proxy.metric("llmpipe_retries_total", cause="connect") == 1


def test_l1_a_backend_is_back_after_a_connect_and_one_request(proxy_to):
    port = free_port()
    requests = []

    def count(conn: Connection) -> None:
        while True:
            conn.read_request()
            requests.append(conn.index)
            respond(conn)

    with Backend(answer_all) as well:
        proxy = proxy_to(f"http://127.0.0.1:{port}", well)
        with Client(proxy) as client:
            for _ in range(2):
                assert client.request(GET).status == 200
            proxy.wait_log("backend left out")
            with Backend(count, port=port) as again:

                def used() -> bool:
                    assert client.request(GET).status == 200
                    return len(requests) >= 3

                wait_until(used)
                assert proxy.wait_log("backend back")["backend"] == again.url
                # The connection that showed that it is there has carried the request.
                assert len(again.connections) == 1
