"""Rule H, and the admin endpoint: metrics that Prometheus reads, health, readiness, and its being off."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
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
    respond,
    sse_head,
    threads_of,
    wait_asleep,
    wait_until,
)
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

import llmpipe
import llmpipe.cli
from llmpipe import metrics
from llmpipe.background import MOST_CONNECTIONS

COUNTERS = {
    "llmpipe_queue_refused": ("pool", "reason"),
    "llmpipe_streaming_bytes_forwarded": (),
    "llmpipe_streaming_errors": ("reason",),
    "llmpipe_exchanges": ("outcome",),
    "llmpipe_upstream_connects": ("backend",),
    "llmpipe_upstream_reuses": ("backend",),
    "llmpipe_backend_exchanges": ("backend",),
    "llmpipe_backend_failures": ("backend",),
    "llmpipe_accepted": (),
    "llmpipe_connections_refused": ("reason",),
    "llmpipe_access_lines_dropped": (),
    "llmpipe_retries": ("cause",),
    "llmpipe_stale_replays": (),
    "llmpipe_ejections": ("backend",),
    "llmpipe_reloads": ("result",),
    "llmpipe_events_forwarded": (),
}

GAUGES = {
    "llmpipe_queue_length": ("pool",),
    "llmpipe_streaming_active": (),
    "llmpipe_in_flight": ("backend",),
    "llmpipe_backend_up": ("backend",),
    "llmpipe_backend_drained": ("backend",),
    "llmpipe_pool_backends": ("pool", "state"),
    "llmpipe_config_last_reload_successful": (),
    "llmpipe_config_last_reload_success_timestamp_seconds": (),
    "llmpipe_upstream_idle": ("backend",),
    "llmpipe_clients": (),
    "llmpipe_buffers_held": (),
    "llmpipe_buffers": (),
    "llmpipe_draining": (),
    "llmpipe_build_info": ("version",),
}

HISTOGRAMS = {"llmpipe_ttft_seconds", "llmpipe_itl_seconds", "llmpipe_duration_seconds", "llmpipe_disconnect_seconds"}
HISTOGRAMS |= {"llmpipe_queue_wait_seconds", "llmpipe_connect_seconds"}

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_names_types_and_labels_as_prometheus_reads_them(proxy: Proxy) -> None:
    families = {family.name: family for family in text_string_to_metric_families(proxy.admin("/metrics")[1])}
    for kind, expected in (("counter", COUNTERS), ("gauge", GAUGES)):
        for name, labels in expected.items():
            assert families[name].type == kind
            assert families[name].documentation
            assert families[name].samples
            for sample in families[name].samples:
                assert sample.name == (f"{name}_total" if kind == "counter" else name)
                assert tuple(sample.labels) == labels
    assert {name for name, family in families.items() if family.type == "histogram"} == HISTOGRAMS
    assert "process_resident_memory_bytes" in families
    assert families["llmpipe_build_info"].samples[0].labels["version"] == llmpipe.__version__


def test_the_values_of_one_stream(proxy_to) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.wait_eof(30)  # until the client leaves, one stream is open

    with Backend(script) as backend:
        proxy = proxy_to(backend)
        with Client(proxy) as client:
            client.send(GET)
            client.read_head()
            proxy.wait_metric("llmpipe_streaming_active", 1)
            assert proxy.metric("llmpipe_in_flight", backend=backend.url) == 1
            assert proxy.metric("llmpipe_clients") == 1
            assert proxy.metric("llmpipe_build_info", version=llmpipe.__version__) == 1
        proxy.settled()
        assert proxy.outcome("client_abort") == 1
        assert proxy.metric("llmpipe_streaming_bytes_forwarded_total") > 0
        assert proxy.metric("llmpipe_upstream_connects_total", backend=backend.url) == 1
        assert proxy.metric("llmpipe_disconnect_seconds_count") == 1
        # A client that leaves is no error of forwarding.
        assert not any(n for name, n in proxy.metrics().items() if name.startswith("llmpipe_streaming_errors_total"))


def test_histograms_add_up(proxy_to) -> None:
    def script(connection: Connection) -> None:
        for _ in range(5):
            connection.read_request()
            respond(connection)

    proxy = proxy_to(script, options=["--workers", "2"])
    with Client(proxy) as client:
        for _ in range(5):
            assert client.request(GET).status == 200
    wait_until(lambda: proxy.metric("llmpipe_duration_seconds_count") == 5)
    metrics = proxy.metrics()
    for name in ("llmpipe_ttft_seconds", "llmpipe_duration_seconds"):
        buckets = [value for key, value in metrics.items() if key.startswith(f"{name}_bucket")]
        assert 10 < len(buckets) <= 30
        assert buckets == sorted(buckets)
        assert buckets[-1] == proxy.metric(f"{name}_count") == 5
        assert 0 < proxy.metric(f"{name}_sum") < 60


def test_every_failure_is_counted_by_its_reason(proxy_to) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}")
    assert httpx.get(proxy.url, timeout=TIMEOUT).status_code == 502
    proxy.wait_metric("llmpipe_streaming_errors_total", 1, reason="connect_error")
    assert proxy.outcome("connect_error") == 1
    assert proxy.outcome("ok") == 0


def test_healthz_and_readyz(proxy: Proxy) -> None:
    assert proxy.admin("/healthz") == (200, '{"status": "ok"}')
    assert proxy.admin("/readyz") == (200, '{"status": "ready"}')


def test_not_ready_while_no_backend_is_usable_and_healthy_all_the_same(proxy_to) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}")
    assert proxy.admin("/readyz")[0] == 200, "nobody has tried it yet"

    def unready() -> bool:
        # Each failure leaves it out for longer, so that sooner or later the question comes in time.
        assert httpx.get(proxy.url, timeout=TIMEOUT).status_code == 502
        status, body = proxy.admin("/readyz")
        return status == 503 and json.loads(body) == {"status": "not ready", "reason": "no backend is usable"}

    wait_until(unready, timeout=30)
    assert proxy.admin("/healthz")[0] == 200


def test_what_is_not_there_is_404_and_json(proxy: Proxy) -> None:
    for path in ("//", "/metricsx", "/v1/models"):
        status, body = proxy.admin(path)
        assert status == 404
        assert "/metrics" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_it_only_answers_questions(proxy: Proxy, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, body=b"x")
        response = connection.getresponse()
        assert response.status == 405
        assert response.getheader("allow") == "GET, HEAD"
        json.loads(response.read())
        connection.request("HEAD", path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
    finally:
        connection.close()


def test_garbage_does_not_hurt_it(proxy: Proxy) -> None:
    for garbage in (
        b"\x00\xff not http",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET /\xff HTTP/1.1\r\nHost: a",
    ):
        assert ask_odd(proxy, garbage + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert proxy.admin("/healthz")[0] == 200


ODD_PATHS = (
    *(b"/", b"/status.js", b"/metrics", b"/status", b"/history", b"/events", b"/exchanges", b"/healthz", b"/readyz"),
    *(b"/reload", b"/record", b"/backends/x/drain", b"/backends/%ff%fe/resume", b"/backends//drain"),
    *(b"/nothing", b"/%", b"/%zz", b"/%ff", b"/%00", b"//[", b"/[", b"*", b"http://[/x", b"/" + 9000 * b"%ff"),
)
ODD_FIELDS = (
    *(b"Accept: \xff", b"Accept:", b"Accept: ;;;=;=", b"Accept: " + 3000 * b",", b"Accept: a\r\nAccept: \xff"),
    *(
        b"Accept: text/plain;version=abc",
        b"Accept: text/plain;version=1.x",
        b"Accept: text/plain;version=" + 5000 * b"9",
    ),
    *(b"Accept: application/openmetrics-text;version=x", b"Accept: application/openmetrics-text;version=2.\xe9"),
    *(b"Accept: application/openmetrics-text;escaping=\xff", b'Accept: application/openmetrics-text;version="1.0.0"'),
    *(
        b"Accept-Encoding: \xff",
        b"Accept-Encoding: gzip\r\nAccept-Encoding: \xff",
        b"Accept-Charset: \xff",
        b"Range: \xff",
    ),
    *(
        b"Last-Event-ID: \xff",
        b"Last-Event-ID: " + 5000 * b"9",
        b"If-None-Match: \xff",
        b"Cookie: \xff",
        b"Expect: \xff",
    ),
    *(
        b"Content-Length: " + 19 * b"9",
        b"Content-Length: " + 5000 * b"9",
        b"Content-Length: -1",
        b"Content-Length: \xff",
    ),
    *(
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Transfer-Encoding: \xff",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    ),
    *(b"Connection: \xff", b"Connection: upgrade\r\nUpgrade: \xff", b"Connection: upgrade\r\nUpgrade: websocket"),
    *(b"Authorization: \xff", b"Authorization: Bearer \xff", b"Authorization: a\r\nAuthorization: b", b"X-\xff: 1"),
    *(
        b"Origin: \xff",
        b"Origin: http://[",
        b"Origin: http://a:\xff",
        b"Origin: http://\xe2\x84\x80",
        b"Sec-Fetch-Site: \xff",
    ),
    *(b"Host: \xff", b"Host: [", b"Host: [::1%\xff]", b"Host: \xb2.1.1.1", b"Host: 127.0.0.1%\xff", b"Host:"),
)
ODD_QUERIES = (
    *(b"%", b"%zz=%zz", b"%ff", b"a=%ff%fe", b"&&&=&=", b";;", b"a=b#%ff", 5000 * b"a=1&", b"%E2%80%A8", b"\xff"),
    *(b"name[]=%ff", b"name[]=", b"name[]=llmpipe_clients", b"limit=" + 5000 * b"9", b"limit=%C2%B2", b"limit=%D9%A3"),
    *(b"limit=-1", b"id=%00", b"id=%ff%fe%fd%fc%fb%fa%f9%f8", b"id=%ed%a0%80aaaaaaaa", b"outcome=%ff", b"model=%ff%00"),
    *(b"wait=" + 5000 * b"9", b"wait=nan", b"wait=inf", b"wait=1e999", b"wait=%C2%B2", b"wait=%D9%A3", b"wait=-1"),
    *(b"count=%C2%B2", b"count=" + 5000 * b"9", b"request_body=%ff"),
)
ODD_METHODS = (b"GET", b"HEAD", b"OPTIONS", b"POST", b"CONNECT", b"TRACE", b"X-ODD")


def ask_odd(proxy: Proxy, request: bytes) -> bytes:
    """The head of the answer to some bytes, and what comes with it."""
    with admin_connection(proxy) as sock:
        sock.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (more := sock.recv(65536)):
            answer += more
    return answer


@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:30].decode())
def test_no_path_fails_on_what_it_does_not_understand(odd: Proxy, path: bytes) -> None:
    """Whatever bytes a request has, what is asked for it answers, at once, and says that it is wrong where it is."""
    host, end = b"Host: localhost\r\n", b"Connection: close\r\n\r\n"
    requests = [b"%b %b HTTP/1.1\r\n%b%b" % (method, path, host, end) for method in ODD_METHODS]
    for method in (b"GET", b"HEAD", b"POST"):
        # A POST to /record that is right waits for an answer to record.
        query = b"?wait=0.001" if (method, path) == (b"POST", b"/record") else b""
        for fields in ODD_FIELDS:
            others = (b"" if fields.startswith(b"Host:") else host) + fields
            last = b"\r\n\r\n" if b"Connection:" in fields else b"\r\n" + end
            requests.append(b"%b %b%b HTTP/1.1\r\n%b%b" % (method, path, query, others, last))
        requests += [b"%b %b?%b HTTP/1.1\r\n%b%b" % (method, path, query, host, end) for query in ODD_QUERIES]
    for request in requests:
        answers: list[bytes] = []

        def answered(request: bytes = request, answers: list[bytes] = answers) -> bool:
            answers.append(ask_odd(odd, request))
            return (
                b"event streams already" not in answers[-1]
            )  # where it has not seen yet that those of before have left

        wait_until(answered)
        answer = answers[-1]
        assert b"HTTP/1.1 200" <= answer < b"HTTP/1.1 500", (request[:200], answer[:200])
    assert not [line for line in odd.log if line["level"] == "error"]


@pytest.mark.parametrize("tail", [b"zz\r\n", 40 * b"f" + b"\r\n", b"1\r\naXX"])
@pytest.mark.parametrize("path", ODD_PATHS[:13], ids=lambda path: path[:30].decode())
def test_a_body_that_is_no_http_ends_the_connection(odd: Proxy, path: bytes, tail: bytes) -> None:
    """With a 400 where nothing is answered yet, and in the middle of an answer or behind it without a word."""
    for method in (b"GET", b"POST"):
        query = b"?wait=1" if path == b"/record" else b""
        head = b"%b %b%b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % (method, path, query)
        assert b"HTTP/1.1 200" <= ask_odd(odd, head + tail) < b"HTTP/1.1 500"
        with admin_connection(odd) as sock:
            sock.sendall(head)
            assert b"HTTP/1.1 200" <= sock.recv(65536) < b"HTTP/1.1 500"
            with suppress(ConnectionError):  # it may have closed by itself
                sock.sendall(tail)
                while sock.recv(65536):
                    pass
    assert not [line for line in odd.log if line["level"] == "error"]


@pytest.fixture(scope="module")
def odd() -> Iterator[Proxy]:
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy:
        yield proxy


def test_off() -> None:
    command = [sys.executable, "-m", "llmpipe", "serve", "--backend", f"http://127.0.0.1:{free_port()}"]
    command += ["--listen", "127.0.0.1:0", "--admin", "off", "--workers", "1", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = json.loads(process.stderr.readline())
            assert line["event"] == "listening"
            assert listening_ports(process.pid) == {int(line["address"].rpartition(":")[2])}
        finally:
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "admin listening" not in rest


def admin_sockets(proxy: Proxy) -> int:
    """Connections that the admin endpoint has open at one moment: those that it had before a look and behind it."""
    before = socket_inodes(proxy.pid)
    rows = [line.split() for line in Path(f"/proc/{proxy.pid}/net/tcp").read_text().splitlines()[1:]]
    # A table that changes while it is read may show a row twice.
    shown = {
        row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == proxy.admin_port and row[3] in ("01", "08")
    }
    return len(shown & before & socket_inodes(proxy.pid))


def socket_inodes(pid: int) -> set[str]:
    """The sockets of a process, as /proc/net names them."""
    return {target[8:-1] for target in open_descriptors(pid).values() if target.startswith("socket:[")}


def admin_connection(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.admin_port), timeout=30)


def test_silent_connections_take_no_descriptors_from_the_proxy(proxy_to) -> None:
    """The longest silent one gives way to the next, so that who asks is answered, and clients find their descriptors."""
    proxy = proxy_to(answer_all, nofile=256)
    with ExitStack() as stack:
        most = 0
        for number in range(300):
            stack.enter_context(admin_connection(proxy))
            if number % 10 == 0:
                most = max(most, admin_sockets(proxy))
        assert most <= MOST_CONNECTIONS
        clients = [stack.enter_context(Client(proxy)) for _ in range((256 - 64) // 2 - 1)]
        for client in clients:
            assert client.request(GET).status == 200
        assert proxy.admin("/readyz") == (200, '{"status": "ready"}')
        assert not [line for line in proxy.log if line["event"] == "accept paused"]
        assert admin_sockets(proxy) <= MOST_CONNECTIONS


def test_the_longest_silent_connection_gives_way(proxy_to) -> None:
    proxy = proxy_to(answer_all)
    with ExitStack() as stack:
        connections = [stack.enter_context(admin_connection(proxy)) for _ in range(MOST_CONNECTIONS)]
        wait_until(lambda: admin_sockets(proxy) == MOST_CONNECTIONS)
        connections[0].sendall(b"GET /hea")  # it has said something since the second one did
        wait_asleep(threads_of(proxy.pid))  # it has taken that
        stack.enter_context(admin_connection(proxy))
        assert ended(connections[1])
        connections[0].sendall(b"lthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connections[0].recv(100).startswith(b"HTTP/1.1 200 ")
        assert select.select(connections[2:], [], [], 0)[0] == []  # nobody else was told to go


def ended(sock: socket.socket) -> bool:
    """Waits until the peer closes."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-A: ", b"drip"])
def test_a_head_has_ten_seconds(proxy: Proxy, said: bytes) -> None:
    """Even one that grows by a byte now and then."""
    start = time.monotonic()
    with admin_connection(proxy) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX-A: " if said == b"drip" else said)
        sock.settimeout(0.5 if said == b"drip" else 40)
        while True:
            try:
                assert ended(sock)
                break
            except TimeoutError:
                assert said == b"drip"
                assert time.monotonic() - start < 40
                with suppress(ConnectionError):
                    sock.sendall(b"x")
        assert time.monotonic() - start > 9.9


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            ("localhost", 404),
            ("LOCALHOST.:9090", 404),
            ("127.0.0.1", 404),
            ("127.0.0.1:9090", 404),
            ("[::1]:9090", 404),
        ),
        *(
            ("10.1.2.3", 404),
            ("metrics.example.com", 404),
            ("Metrics.Example.com:9090", 404),
            ("other.example.com", 404),
        ),
        *(
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.nip.io", 403),
            ("example.com", 403),
            ("a", 403),
        ),
    ],
)
def test_a_strangers_host_is_refused(named: Proxy, host: str, status: int) -> None:
    """A browser that was led here by a name of somebody else may read nothing but what monitoring reads (rule S1)."""
    shown = 200 if status == 404 else status
    for path, expected in (
        ("/nothing", status),
        ("/", shown),
        ("/status", shown),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
    ):
        answer = httpx.get(f"http://127.0.0.1:{named.admin_port}{path}", headers={"host": host}, timeout=TIMEOUT)
        assert answer.status_code == expected, path


@pytest.fixture(scope="module")
def named() -> Iterator[Proxy]:
    variables = {"LLMPIPE_ADMIN_HOST": "metrics.example.com other.example.com."}
    with Backend(answer_all) as backend, Proxy(backend.url, env=variables) as proxy:
        yield proxy


OPEN = "admin is open to other machines"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_one_line_warns_where_other_machines_can_reach_it(proxy_to, address: str) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}", options=["--admin", address])
    line = proxy.wait_log(OPEN)
    assert line["level"] == "warning"
    assert line["address"] == f"{address[:-2]}:{proxy.admin_port}"
    proxy.signal(signal.SIGHUP)
    proxy.wait_log("reloaded")
    assert len([line for line in proxy.log if line["event"] == OPEN]) == 1


@pytest.mark.parametrize("options", [[], ["--admin", "127.0.0.2:0"], ["--admin", "[::1]:0"], ["--listen", "0.0.0.0:0"]])
def test_nothing_warns_where_none_can(proxy_to, options: list[str]) -> None:
    proxy = proxy_to(f"http://127.0.0.1:{free_port()}", options=options)
    proxy.signal(signal.SIGHUP)
    proxy.wait_log("reloaded")
    assert not [line for line in proxy.log if line["event"] == OPEN]


def test_by_default_only_this_machine_can_reach_it() -> None:
    """The default's port may be taken here, so the default is asked for its host only."""
    command = next(command for name, command in llmpipe.cli.cli.commands.items() if name == "serve")
    host, port = next(option.default for option in command.params if option.name == "admin").rsplit(":", 1)
    with Proxy(f"http://127.0.0.1:{free_port()}", options=["--admin", f"{host}:0"]) as proxy:
        assert port == "9090"
        assert listening_addresses(proxy.pid)[proxy.admin_port] == "127.0.0.1"


def listening_addresses(pid: int) -> dict[int, str]:
    """The IPv4 address of each port that a process listens on."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    own = listening_ports(pid)
    found = {}
    for words in rows:
        host, port = words[1].split(":")
        if words[3] == "0A" and int(port, 16) in own:
            found[int(port, 16)] = socket.inet_ntoa(bytes.fromhex(host)[::-1])
    return found


def listening_ports(pid: int) -> set[int]:
    """Ports that a process listens on."""
    inodes = socket_inodes(pid)
    ports = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as rows:
            for row in rows.readlines()[1:]:
                words = row.split()
                if words[3] == "0A" and words[9] in inodes:
                    ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def test_openmetrics_has_an_example_for_each_bucket(proxy_to) -> None:
    """The latest exchange in it, by its id: from a slow bucket in a plot straight to /exchanges."""

    def script(connection: Connection) -> None:
        for _ in range(3):
            connection.read_request()
            respond(connection)

    proxy = proxy_to(script)
    with Client(proxy) as client:
        for number in range(3):
            client.request(b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: example-%d\r\n\r\n" % number)
    proxy.wait_metric("llmpipe_duration_seconds_count", 3)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}

    def examples() -> list[tuple[str, str, float, float]]:
        answer = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/metrics", headers=accept, timeout=TIMEOUT)
        samples = [sample for family in openmetrics(answer.text) for sample in family.samples]
        return [
            (sample.name, found.labels["request_id"], found.value, float(sample.labels["le"]))
            for sample in samples
            if (found := sample.exemplar) is not None
        ]

    wait_until(lambda: "example-2" in {request_id for _, request_id, _, _ in examples()})
    found = examples()
    assert {name for name, *_ in found} == {"llmpipe_ttft_seconds_bucket", "llmpipe_duration_seconds_bucket"}
    assert {request_id for _, request_id, _, _ in found} <= {f"example-{number}" for number in range(3)}
    assert all(0 < value < bound for _, _, value, bound in found)
    for line in proxy.admin("/metrics")[1].splitlines():
        assert "example-" not in line


@pytest.mark.parametrize(
    ("accept", "examples"),
    [
        ((), 0),
        ((b"*/*",), 0),
        ((b"text/plain; version=0.0.4",), 0),
        ((b"application/openmetrics-text; version=1.0.0",), 1),
        ((b"application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",), 1),
        ((b"text/html", b"application/openmetrics-text"), 1),
        ((b"application/openmetrics-text; version=0.0.1", b"text/plain; version=1.0.0"), 0),
        ((b"application/openmetrics-text; version=x",), 0),
        ((b"application/openmetrics-text; version=1.x",), 0),
        ((b"text/plain; version=abc",), 0),
        ((b"text/plain; version=abc", b"application/openmetrics-text; version=1.0.0"), 1),
        ((b'Application/OpenMetrics-Text; Version="1.0.0"',), 1),
        ((b"\xff, application/openmetrics-text; version=10.0",), 1),
    ],
)
def test_examples_are_looked_for_only_where_they_are_shown(accept: tuple[bytes, ...], examples: int) -> None:
    looked = []

    class Kept(Collector):
        def collect(self):
            looked.append(1)
            return []

    open_metrics = CollectorRegistry()
    open_metrics.register(Kept())
    app = metrics.make_app(CollectorRegistry(), open_metrics)
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "query_string": b"", "headers": [(b"accept", value) for value in accept]}
    asyncio.run(app(scope, receive, send))
    assert len(looked) == examples
    (kind,) = [value for name, value in sent[0]["headers"] if name.lower() == b"content-type"]
    assert kind.startswith(b"application/openmetrics-text;" if examples else b"text/plain;")
