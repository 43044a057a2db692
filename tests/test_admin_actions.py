"""Rule S1: what the admin endpoint changes: backends drained and resumed, reloads, and who may ask for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from harness import (
    LAST_CHUNK,
    Backend,
    Client,
    Connection,
    Mock,
    Proxy,
    answer_all,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
TOKEN = "t0k3n-0f-the-admin"
HELD = 30.0


class Answer:
    """Of a POST to the admin endpoint."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.fields = response.headers
        self.body: Any = json.loads(response.read())


def send(proxy: Proxy, path: str, method: str = "POST", body: bytes | None = None, **fields: str) -> Answer:
    """Asks the admin endpoint; in names of fields a _ stands for a -."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=50)
    try:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, body=body, headers=headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def drain(proxy: Proxy, name: str, query: str = "") -> tuple[str, int]:
    """State and exchanges in flight, as the answer has them."""
    proxy.rest()
    answer = send(proxy, f"/backends/{quote(name, safe='')}/drain{query}")
    assert answer.status == 200, answer.body
    assert answer.body["name"] == name
    return answer.body["state"], answer.body["in_flight"]


def resume(proxy: Proxy, name: str) -> str:
    answer = send(proxy, f"/backends/{quote(name, safe='')}/resume")
    assert answer.status == 200, answer.body
    return str(answer.body["state"])


def shown(proxy: Proxy, name: str) -> dict[str, Any]:
    """What /status has of a backend."""
    proxy.rest()
    pools = json.loads(proxy.admin("/status")[1])["pools"]
    return next(backend for pool in pools for backend in pool["backends"] if backend["name"] == name)


class Server:
    """A backend that says its name, and streams at /stream until it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.go = threading.Event()
        self._lock = threading.Lock()
        self.requests = 0

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            with self._lock:
                self.requests += 1
            if request.line.split()[1] != b"/stream":
                respond(connection, self.name)
                continue
            connection.send(sse_head() + chunk(b"data: %s\n\n" % self.name))
            assert self.go.wait(HELD)
            connection.send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)


class Fleet:
    """Two backends, named a and b, and their file."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.servers = {name: Server(name) for name in "ab"}
        self.backends = {name: stack.enter_context(Backend(server)) for name, server in self.servers.items()}
        self.path = folder / "llmpipe.toml"
        self.write()

    def write(self, *names: str, more: str = "", **urls: str) -> None:
        """A file with these backends; both where none is named."""
        rows = [
            f'[[pools.p.backends]]\nname = "{name}"\nurl = "{urls.get(name, self.backends[name].url)}"\n'
            for name in names or "ab"
        ]
        beside = self.path.with_suffix(".new")
        beside.write_text(f"{more}\n[pools.p]\n{''.join(rows)}")
        beside.replace(self.path)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--config", str(self.path))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path)


def names(client: Client, n: int = 6) -> set[bytes]:
    return {client.request(GET).body for _ in range(n)}


def reload(proxy: Proxy) -> None:
    """By SIGHUP."""
    before = sum(line["event"] == "reloaded" for line in proxy.log.copy())
    proxy.signal(signal.SIGHUP)
    wait_until(lambda: sum(line["event"] == "reloaded" for line in proxy.log.copy()) > before, 30)


# ------------------------------------------------------------------------------------------------------------------ drain


def test_s1_what_a_drained_backend_works_on_goes_on_and_nothing_new_goes_there(fleet: Fleet) -> None:
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client, Client(proxy) as other:
        assert drain(proxy, "b") == ("drained", 0)
        client.send(STREAM)
        client.read_head()
        assert client.read(len(chunk(b"data: a\n\n"))) == chunk(b"data: a\n\n")
        assert resume(proxy, "b") == "up"
        assert drain(proxy, "a") == ("draining", 1)
        assert drain(proxy, "a") == ("draining", 1)  # once more changes nothing
        assert names(other) == {b"b"}
        assert (shown(proxy, "a")["state"], shown(proxy, "a")["usable"], shown(proxy, "b")["state"]) == (
            "draining",
            False,
            "up",
        )
        for name, value in (("llmpipe_backend_drained", 1), ("llmpipe_backend_up", 0), ("llmpipe_in_flight", 1)):
            assert proxy.metric(name, backend="a") == value, name
        for state, value in (("up", 1), ("down", 0), ("draining", 1), ("drained", 0)):
            assert proxy.metric("llmpipe_pool_backends", pool="p", state=state) == value, state
        assert proxy.admin("/readyz")[0] == 200
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(drain, proxy, "a", "?wait=50")
            assert names(other) == {b"b"}
            assert not waiting.done()
            fleet.servers["a"].go.set()
            assert client.read_chunked() == b"data: [DONE]\n\n"
            assert waiting.result(50) == ("drained", 0)
        assert names(other) == {b"b"}
        proxy.wait_metric("llmpipe_backend_exchanges_total", 1, 30, backend="a")
        proxy.wait_metric("llmpipe_exchanges_total", 19, 30, outcome="ok")
        assert shown(proxy, "a")["state"] == "drained"
        proxy.wait_metric("llmpipe_pool_backends", 1, 30, pool="p", state="drained")
        assert resume(proxy, "a") == "up"
        assert names(other) == {b"a", b"b"}
        proxy.wait_metric("llmpipe_backend_drained", 0, 30, backend="a")
        told = [
            (line["event"], line["backend"], line.get("in_flight")) for line in proxy.log if "backend " in line["event"]
        ]
        assert told == [
            ("backend draining", "b", 0),
            ("backend resumed", "b", None),
            ("backend draining", "a", 1),
            ("backend resumed", "a", None),
        ]


def test_s1_the_only_backend_can_be_drained_too(fleet: Fleet) -> None:
    fleet.write("a")
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        assert names(client) == {b"a"}
        assert drain(proxy, "a", "?wait=50") == ("drained", 0)
        answer = client.request(GET)
        assert (answer.status, answer.error()["code"]) == (503, "no_backend")
        assert answer.values(b"retry-after")
        assert json.loads(proxy.admin("/readyz")[1])["reason"] == "no backend is usable"
        assert proxy.admin("/readyz")[0] == 503
        assert resume(proxy, "a") == "up"
        assert names(client) == {b"a"}
        assert proxy.admin("/readyz")[0] == 200
    assert len(fleet.backends["a"].connections) <= 2


def test_s1_a_retry_does_not_go_to_a_drained_backend(fleet: Fleet) -> None:
    """Nor to one that is drained where all others are left out."""
    fleet.write(a=f"http://127.0.0.1:{free_port()}")
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        assert drain(proxy, "b") == ("drained", 0)
        for _ in range(3):
            answer = client.request(GET)
            assert (answer.status, answer.error()["code"]) == (502, "connect_error")
        proxy.wait_metric("llmpipe_retries_total", 0, 30)
        wait_until(lambda: proxy.metric("llmpipe_ejections_total", backend="a") >= 1, 30)
        assert proxy.metric("llmpipe_ejections_total", backend="b") == 0
        assert not fleet.backends["b"].connections
        assert resume(proxy, "b") == "up"
        assert names(client) == {b"b"}


@pytest.mark.parametrize("workers", ["1", "3"])
def test_s1_all_workers_know_of_it(fleet: Fleet, workers: str) -> None:
    with Proxy(options=[*fleet.options, "--workers", workers]) as proxy, ExitStack() as stack:
        clients = [stack.enter_context(Client(proxy)) for _ in range(9)]
        for one, other in (("a", "b"), ("b", "a")):
            assert drain(proxy, one) == ("drained", 0)
            for client in clients:
                assert names(client, 2) == {other.encode()}
            assert resume(proxy, one) == "up"


def test_s1_behind_a_drain_that_has_ended_nothing_comes_whoever_is_choosing(fleet: Fleet) -> None:
    """Workers that choose a backend while it is drained: either the drain sees the exchange, or there is none."""
    stop = threading.Event()

    def ask(proxy: Proxy) -> None:
        with Client(proxy) as client:
            while not stop.is_set():
                assert client.request(GET).status == 200
                time.sleep(0.002)  # else there would be more lines to log than a busy machine can

    with (
        Proxy(options=[*fleet.options, "--workers", "3"]) as proxy,
        ThreadPoolExecutor(6) as pool,
    ):
        asking = [pool.submit(ask, proxy) for _ in range(6)]
        try:
            for _ in range(20):
                seen = fleet.servers["a"].requests
                wait_until(lambda seen=seen: fleet.servers["a"].requests > seen, 30)
                assert drain(proxy, "a", "?wait=50") == ("drained", 0)
                seen, others = fleet.servers["a"].requests, fleet.servers["b"].requests
                wait_until(lambda others=others: fleet.servers["b"].requests > others + 20, 30)
                assert fleet.servers["a"].requests == seen
                assert resume(proxy, "a") == "up"
        finally:
            stop.set()
        for found in asking:
            found.result(50)


def test_s1_a_drain_outlives_reloads_and_not_its_backend(fleet: Fleet) -> None:
    with Backend(Server("moved")) as moved, Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        assert drain(proxy, "a") == ("drained", 0)
        reload(proxy)
        assert shown(proxy, "a")["state"] == "drained"
        fleet.write(a=moved.url)  # another address under the same name is the same backend (rule I3)
        reload(proxy)
        assert shown(proxy, "a")["state"] == "drained"
        assert names(client) == {b"b"}
        fleet.write("b")
        reload(proxy)
        assert send(proxy, "/backends/a/resume").status == 404
        fleet.write()
        reload(proxy)
        assert shown(proxy, "a")["state"] == "up"
        wait_until(lambda: names(client) == {b"a", b"b"}, 30)


def test_s1_one_that_comes_back_before_its_last_exchange_has_ended_is_not_drained(fleet: Fleet) -> None:
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client, Client(proxy) as other:
        assert drain(proxy, "b") == ("drained", 0)
        client.send(STREAM)
        client.read_head()
        assert resume(proxy, "b") == "up"
        assert drain(proxy, "a") == ("draining", 1)
        fleet.write("b")
        reload(proxy)
        fleet.write()
        reload(proxy)
        assert shown(proxy, "a")["state"] == "up"
        assert shown(proxy, "a")["in_flight"] == 1
        assert drain(proxy, "b") == ("drained", 0)
        wait_until(lambda: names(other) == {b"a"}, 30)
        fleet.servers["a"].go.set()
        assert client.read_chunked().endswith(b"data: [DONE]\n\n")


def test_s1_a_drain_counts_more_than_failed_checks(tmp_path: Path) -> None:
    """And both are counted by what they are (rules L1 and H)."""

    def sick(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()

    with Backend(sick) as a, Backend(answer_all) as b:
        path = tmp_path / "llmpipe.toml"
        rows = "".join(
            f'[[pools.p.backends]]\nname = "{name}"\nurl = "{url}"\n' for name, url in (("a", a.url), ("b", b.url))
        )
        path.write_text(f'[pools.p]\nhealth = {{ path = "/health", interval = 0.1, timeout = 30, fall = 1 }}\n{rows}')
        with Proxy(options=("--config", str(path))) as proxy:
            proxy.wait_log("backend unhealthy", 30)
            assert shown(proxy, "a")["state"] == "down"
            assert drain(proxy, "a")[0] == "drained"
            assert shown(proxy, "a")["usable"] is False
            assert resume(proxy, "a") == "down"

            def counted(name: str, result: str) -> float:
                return proxy.metric("llmpipe_health_checks_total", backend=name, result=result)

            wait_until(lambda: counted("a", "failed") >= 2 and counted("b", "passed") >= 2, 30)
            assert counted("a", "passed") == counted("b", "failed") == 0
            seen = counted("a", "failed")
            reload(proxy)
            wait_until(lambda: counted("a", "failed") > seen, 30)


def test_s1_wait_ends_when_the_time_is_over_or_the_drain_is_taken_back(fleet: Fleet) -> None:
    fleet.write("a")
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        client.send(STREAM)
        client.read_head()
        begun = time.monotonic()
        assert drain(proxy, "a", "?wait=300ms") == ("draining", 1)
        assert time.monotonic() - begun >= 0.3
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(drain, proxy, "a", "?wait=1h")
            wait_until(lambda: admin_requests(proxy) >= 1, 30)
            assert resume(proxy, "a") == "up"
            assert waiting.result(50) == ("up", 1)
        fleet.servers["a"].go.set()
        client.read_chunked()


def admin_requests(proxy: Proxy) -> int:
    """Connections to the admin endpoint that are open, without the one that finds out."""
    rows = [line.split() for line in Path(f"/proc/{proxy.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].rpartition(":")[2], 16) == proxy.admin_port and row[3] == "01" for row in rows)


@pytest.mark.slow
def test_s1_wait_may_take_longer_than_other_requests(fleet: Fleet) -> None:
    fleet.write("a")
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        client.send(STREAM)
        client.read_head()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(drain, proxy, "a", "?wait=45")
            time.sleep(12)  # any other request has 10 s
            assert not waiting.done()
            fleet.servers["a"].go.set()
            client.read_chunked()
            assert waiting.result(50) == ("drained", 0)


@pytest.mark.parametrize(
    "query", ["?wait=", "?wait=soon", "?wait=-1", "?wait=3601", "?wiat=30", "?wait=1&wait=2", "?x"]
)
def test_s1_a_wait_that_cannot_be_is_refused_and_nothing_done(shared: Proxy, query: str) -> None:
    """A script that goes on behind it would restart a server that still works."""
    answer = send(shared, f"/backends/a/drain{query}")
    assert answer.status == 400
    assert "wait" in answer.body["error"] or "duration" in answer.body["error"]
    assert shown(shared, "a")["state"] == "up"


def test_s1_the_end_of_the_process_does_not_wait_for_those_who_wait(fleet: Fleet) -> None:
    fleet.write("a")
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        client.send(STREAM)
        client.read_head()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(send, proxy, "/backends/a/drain?wait=1h")
            proxy.wait_log("backend draining", 30)
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("draining", 30)
            proxy.signal(signal.SIGTERM)
            assert proxy.wait_exit(50) == 1
            try:
                assert waiting.result(50).body["in_flight"] == 0
            except (OSError, http.client.HTTPException):
                pass  # a busy machine: the end of the process was quicker
        fleet.servers["a"].go.set()
        fleet.backends["a"].forget()


def test_s1_with_real_servers_and_a_client_of_the_api(tmp_path: Path) -> None:
    pace = ("--tokens", "40", "--tokens-per-second", "20", "--ttft", "0")
    with Mock("--model", "one", *pace) as one, Mock("--model", "two", *pace) as two:
        path = tmp_path / "llmpipe.toml"
        path.write_text(
            f'[pools.p]\n[[pools.p.backends]]\nurl = "{one.url}"\n[[pools.p.backends]]\nurl = "{two.url}"\n'
        )
        with Proxy(options=("--config", str(path))) as proxy, httpx.Client(timeout=50) as client:

            def models() -> set[str]:
                answers = [client.get(f"{proxy.url}/v1/models") for _ in range(4)]
                return {answer.json()["data"][0]["id"] for answer in answers}

            assert drain(proxy, two.url) == ("drained", 0)
            asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
            with client.stream("POST", f"{proxy.url}/v1/chat/completions", json=asked) as stream:
                events = stream.iter_lines()
                first = next(events)
                assert first.startswith("data: ")
                assert resume(proxy, two.url) == "up"
                with ThreadPoolExecutor(1) as pool:
                    waiting = pool.submit(drain, proxy, one.url, "?wait=50")
                    wait_until(lambda: shown(proxy, one.url)["state"] in ("draining", "drained"), 30)
                    assert models() == {"two"}
                    rest = [line for line in events if line]
                    assert waiting.result(50) == ("drained", 0)
            assert rest[-1] == "data: [DONE]"
            assert len(rest) >= 40
            assert models() == {"two"}
            assert resume(proxy, one.url) == "up"
            assert models() == {"one", "two"}


# ------------------------------------------------------------------------------------------------------------------ names


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that nobody changes."""
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path_factory.mktemp("shared"))
        yield stack.enter_context(Proxy(options=fleet.options))


def test_s1_a_name_stands_percent_encoded_in_the_path() -> None:
    with Backend(answer_all) as tcp, Backend(answer_all, "unix") as local, Proxy(tcp.url, local.url) as proxy:
        for url in (tcp.url, local.url):
            assert drain(proxy, url) == ("drained", 0)
            assert shown(proxy, url)["state"] == "drained"
            assert send(proxy, f"/backends/{url}/resume").body["state"] == "up"  # plain as well


@pytest.mark.parametrize(
    "path", ["/backends/c/drain", "/backends/%61%2F/resume", "/backends/A/drain", "/backends/%ff/drain"]
)
def test_s1_an_unknown_name_is_404_with_those_there_are(shared: Proxy, path: str) -> None:
    answer = send(shared, path)
    assert (answer.status, answer.body["backends"]) == (404, ["a", "b"])


def test_s1_nothing_else_can_be_changed(shared: Proxy) -> None:
    for path in ("/reload", "/backends/a/drain", "/backends/nobody/resume"):
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            connection = http.client.HTTPConnection("127.0.0.1", shared.admin_port, timeout=50)
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, response.getheader("allow")) == (405, "POST"), (method, path)
            connection.close()
    for path in ("/backends", "/backends/a", "/backends//drain", "/reload/", "//"):
        status, body = shared.admin(path)
        assert (status, "/backends/NAME/drain" in json.loads(body)["error"]) == (404, True), path
        assert send(shared, path).status == 405, path
    for path in ("/", "/status", "/history", "/events", "/status.js"):
        assert send(shared, path).status == 405, path
    assert shown(shared, "a")["state"] == "up"


# ------------------------------------------------------------------------------------------------------------------ reload


def test_i4_a_reload_that_is_asked_for_tells_what_came_of_it(fleet: Fleet) -> None:
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client:
        started = proxy.metric("llmpipe_config_last_reload_success_timestamp_seconds")
        assert abs(time.time() - started) < 600
        fleet.write("b")
        answer = send(proxy, "/reload")
        assert (answer.status, answer.body) == (200, {"reloaded": True, "backends": ["b"]})
        wait_until(lambda: names(client) == {b"b"}, 30)
        later = proxy.metric("llmpipe_config_last_reload_success_timestamp_seconds")
        assert later > started
        fleet.write("a", more="nonsense = 1\nworkers = true")
        answer = send(proxy, "/reload")
        assert (answer.status, answer.body["reloaded"], len(answer.body["faults"])) == (422, False, 2)
        assert any("nonsense: unknown key" in fault for fault in answer.body["faults"])
        assert json.loads(proxy.admin("/status")[1])["reload_faults"] == answer.body["faults"]
        assert names(client) == {b"b"}
        assert proxy.metric("llmpipe_config_last_reload_successful") == 0
        assert proxy.metric("llmpipe_config_last_reload_success_timestamp_seconds") == later
        fleet.path.unlink()
        assert send(proxy, "/reload").status == 422
        fleet.write()
        assert send(proxy, "/reload").body == {"reloaded": True, "backends": ["a", "b"]}
        assert proxy.metric("llmpipe_config_last_reload_successful") == 1
        assert proxy.metric("llmpipe_reloads_total", result="success") == 2
        assert proxy.metric("llmpipe_reloads_total", result="failure") == 2
        assert json.loads(proxy.admin("/status")[1])["reload_faults"] == []
        reload(proxy)
        assert proxy.metric("llmpipe_reloads_total", result="success") == 3


def test_i4_without_a_file_names_are_resolved_anew(proxy_to) -> None:
    proxy = proxy_to(answer_all)
    answer = send(proxy, "/reload")
    assert (answer.status, answer.body["reloaded"], len(answer.body["backends"])) == (200, True, 1)
    proxy.wait_log("reloaded", 30)


def test_i4_what_a_reload_finds_is_the_file_behind_the_request(fleet: Fleet) -> None:
    """One that is asked for while another one goes on is not told what that one found."""
    with Proxy(options=fleet.options) as proxy:
        for number in range(10):
            with ThreadPoolExecutor(4) as pool:
                before = [pool.submit(send, proxy, "/reload") for _ in range(3)]
                fleet.write("ab"[number % 2])
                assert send(proxy, "/reload").body["backends"] == ["ab"[number % 2]]
                assert {answer.result(50).status for answer in before} == {200}


# ------------------------------------------------------------------------------------------------------------------ bounds


def insist(proxy: Proxy, path: str) -> Answer:
    """Asks until there is an answer: a connection may have to give way to another one."""
    while True:
        try:
            return send(proxy, path)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)


def test_s1_fifty_at_once_are_all_answered(fleet: Fleet) -> None:
    with Proxy(options=fleet.options) as proxy, Client(proxy) as client, ThreadPoolExecutor(50) as pool:
        paths = [
            "/reload",
            "/backends/a/drain?wait=1",
            "/backends/b/resume",
            "/backends/nobody/drain",
            "/backends/a/drain",
        ]
        answers = [(path, pool.submit(insist, proxy, path)) for path in paths * 10]
        for path, answer in answers:
            assert answer.result(50).status == (404 if "nobody" in path else 200)
        assert names(client) == {b"b"}
        assert shown(proxy, "a")["state"] == "drained"
        assert proxy.metric("llmpipe_reloads_total", result="failure") == 0
        assert proxy.metric("llmpipe_reloads_total", result="success") >= 1


def test_s1_a_body_is_not_waited_for(shared: Proxy) -> None:
    """What is not there yet is not needed, and the connection ends."""
    for framing in (b"Content-Length: 100000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", shared.admin_port), timeout=30) as sock:
            sock.sendall(b"POST /backends/a/resume HTTP/1.1\r\nHost: localhost\r\n" + framing + b"\r\n\r\n")
            got = b""
            while piece := sock.recv(65536):
                got += piece
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b'"state": "up"' in got
    assert send(shared, "/backends/a/resume", body=b'{"a": 1}').status == 200


# ------------------------------------------------------------------------------------------------------------------ authority


def own(proxy: Proxy) -> str:
    return f"127.0.0.1:{proxy.admin_port}"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"origin": "http://OWN"}, 200),
        ({"origin": "https://OWN"}, 200),  # behind a front end that takes off TLS
        ({"origin": "http://OWN", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://localhost:PORT"}, 403),
        ({"origin": "http://OWN.evil.example"}, 403),
        ({"origin": "http://evil.example@OWN"}, 403),
        ({"origin": "ftp://OWN"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "http://OWN", "sec_fetch_site": "cross-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:PORT", "origin": "http://localhost:PORT"}, 200),
    ],
)
def test_s1_a_page_of_another_site_can_change_nothing(shared: Proxy, fields: Mapping[str, str], status: int) -> None:
    said = {
        name: value.replace("OWN", own(shared)).replace("PORT", str(shared.admin_port))
        for name, value in fields.items()
    }
    for path in ("/reload", "/backends/a/resume", "/backends/b/resume"):
        assert send(shared, path, **said).status == status, path


BEARER = f"Bearer {TOKEN}"


def check_token(proxy: Proxy) -> None:
    """The token is needed for what changes something, and for nothing else."""
    for wrong in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"x_api_key": TOKEN},
    ):
        for path in ("/reload", "/backends/a/drain", "/backends/nobody/drain"):
            answer = send(proxy, path, **wrong)
            assert (answer.status, answer.fields["www-authenticate"]) == (401, "Bearer"), (wrong, path)
            assert "Authorization: Bearer" in answer.body["error"]
    assert shown(proxy, "a")["state"] == "up"
    assert send(proxy, "/backends/a/drain", authorization=BEARER).body["state"] == "drained"
    assert send(proxy, "/backends/a/resume", authorization=f"bearer  {TOKEN} ").body["state"] == "up"
    assert send(proxy, "/reload", authorization=BEARER).status == 200
    assert send(proxy, "/reload", authorization=BEARER, origin="http://evil.example").status == 403
    for path in ("/metrics", "/status", "/healthz", "/readyz"):
        status, text = proxy.admin(path)
        assert status == 200
        assert TOKEN not in text
    assert TOKEN not in Path(f"/proc/{proxy.pid}/cmdline").read_text()
    assert TOKEN not in "".join(proxy.stderr)


@pytest.mark.parametrize("how", ["flag", "variable", "file's variable", "file's file"])
@pytest.mark.parametrize("admin", ["127.0.0.1:0", "0.0.0.0:0"])
def test_s1_with_a_token_it_is_asked_for_everywhere(fleet: Fleet, tmp_path: Path, how: str, admin: str) -> None:
    secret = tmp_path / "token"
    secret.write_text(f" {TOKEN}\n\n")
    options = [*fleet.options, "--admin", admin, "--log-level", "debug"]
    env = {}
    if how == "flag":
        options += ["--admin-token-file", str(secret)]
    elif how == "variable":
        env["LLMPIPE_ADMIN_TOKEN"] = f"{TOKEN}\n"
    elif how == "file's variable":
        env["MY_TOKEN"] = f"{TOKEN} "
        fleet.write(more='admin_token = { env = "MY_TOKEN" }')
    else:
        fleet.write(more=f'admin_token = {{ file = "{secret}" }}')
    with Proxy(options=options, env=env) as proxy:
        check_token(proxy)


@pytest.mark.parametrize("admin", ["0.0.0.0:0", "[::]:0"])
def test_s1_without_a_token_nothing_is_changed_where_other_machines_can_ask(fleet: Fleet, admin: str) -> None:
    with Proxy(options=[*fleet.options, "--admin", admin]) as proxy:
        for fields in ({}, {"authorization": BEARER}):
            for path in ("/reload", "/backends/a/drain", "/backends/nobody/drain"):
                answer = send(proxy, path, **fields)
                assert answer.status == 403
                assert "--admin-token-file" in answer.body["error"]
        assert shown(proxy, "a")["state"] == "up"
        assert proxy.admin("/metrics")[0] == 200
        line = proxy.wait_log("admin request refused", 30)
        assert (line["level"], line["status"]) == ("warning", 403)
        assert line["client"].removeprefix("::ffff:") == "127.0.0.1"


def test_s1_a_token_of_the_flag_counts_more_than_one_of_the_variable_and_that_more_than_the_file(
    fleet: Fleet, tmp_path: Path
) -> None:
    for name in ("flag", "file"):
        (tmp_path / name).write_text(name)
    fleet.write(more=f'admin_token = {{ file = "{tmp_path / "file"}" }}')
    flag = ["--admin-token-file", str(tmp_path / "flag")]
    for options, env, token in (
        (flag, {"LLMPIPE_ADMIN_TOKEN": "variable"}, "flag"),
        ([], {"LLMPIPE_ADMIN_TOKEN": "variable"}, "variable"),
        ([], {"LLMPIPE_ADMIN_TOKEN": " "}, "file"),
    ):
        with Proxy(options=[*fleet.options, *options], env=env) as proxy:
            for other in ("flag", "variable", "file"):
                status = send(proxy, "/backends/a/resume", authorization=f"Bearer {other}").status
                assert status == (200 if other == token else 401)


def run(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    command = [sys.executable, "-m", "llmpipe", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=50, env={**inherited, **(env or {})}, check=False
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{ file = "FOLDER/none" }', "FOLDER/none: No such file or directory"),
        ('{ file = "FOLDER" }', "FOLDER: Is a directory"),
        ('{ file = "FOLDER/empty" }', "FOLDER/empty is empty; write the secret into it"),
        ('{ file = "FOLDER/two" }', "has white space"),
        ('{ file = "FOLDER/long" }', "more than 4096 bytes"),
        ('{ env = "NOT_THERE" }', "the variable NOT_THERE is not set"),
        ('{ env = "EMPTY" }', "the variable EMPTY is empty"),
        (f'"{TOKEN}"', "write the place of the secret"),
        (f'{{ token = "{TOKEN}" }}', "write { env"),
        (f'{{ env = "A", {TOKEN} = "B" }}', "write { env"),
        ('{ env = "A", file = "B" }', "write { env"),
        ('{ env = "" }', "env is empty"),
        ("{ env = 1 }", "write { env"),
        ("{}", "write { env"),
        ('[{ env = "A" }]', "write the place of the secret"),
    ],
)
def test_i1_a_token_that_cannot_be_read_is_one_line(fleet: Fleet, tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "two").write_text(f"{TOKEN} {TOKEN}\n")
    (tmp_path / "long").write_text(TOKEN * 1000)
    fleet.write(more=f"admin_token = {row.replace('FOLDER', str(tmp_path))}")
    check_refused(run("check", str(fleet.path), env={"EMPTY": " "}), said.replace("FOLDER", str(tmp_path)))


def check_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("Error: ")
    assert "admin_token" in done.stderr
    assert said in done.stderr
    assert TOKEN not in done.stderr


def test_i1_without_its_token_the_proxy_does_not_start(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "two").write_text(f"{TOKEN} {TOKEN}\n")
    words = ["serve", *fleet.options, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--admin-token-file"]
    check_refused(run(*words, str(tmp_path / "none")), f"{tmp_path}/none: No such file or directory")
    check_refused(run(*words, str(tmp_path / "two")), "has white space")


def test_i1_a_flag_with_an_empty_path_is_refused(fleet: Fleet) -> None:
    """A script's variable may be empty; without a token everybody here may change things."""
    done = run("serve", *fleet.options, "--admin-token-file", "")
    assert done.returncode == 2
    assert "--admin-token-file" in done.stderr


def test_i2_check_shows_where_the_token_is_and_not_the_token(fleet: Fleet, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    for words, env, line, source in (
        (("--admin-token-file", str(secret)), {}, f"admin_token = file {secret}", "--admin-token-file"),
        ((), {"LLMPIPE_ADMIN_TOKEN": TOKEN}, "admin_token = variable LLMPIPE_ADMIN_TOKEN", "LLMPIPE_ADMIN_TOKEN"),
        ((), {}, "admin_token = none", "default"),
    ):
        done = run("check", str(fleet.path), *words, env=env)
        assert done.returncode == 0, done.stderr
        shown_line = next(found for found in done.stdout.splitlines() if found.startswith("admin_token"))
        assert shown_line.partition("#")[0].strip() == line
        assert shown_line.endswith(f"# {source}")
        assert TOKEN not in done.stdout + done.stderr


def test_i4_another_token_needs_a_restart(fleet: Fleet, tmp_path: Path) -> None:
    with Proxy(options=fleet.options) as proxy:
        (tmp_path / "token").write_text(TOKEN)
        fleet.write(more=f'admin_token = {{ file = "{tmp_path / "token"}" }}')
        assert send(proxy, "/reload").status == 200
        assert proxy.wait_log("settings that a restart changes", 30)["settings"] == "admin_token"
        assert send(proxy, "/reload").status == 200
