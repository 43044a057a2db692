"""Rule I5: names that do not resolve, and names with several addresses, with real processes whose names are answered here (names.c)."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import names
import pytest
from harness import (
    LAST_CHUNK,
    Backend,
    Client,
    Connection,
    Proxy,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)

from llmpipe import config, resolve
from llmpipe.config import Pool, PoolSettings, Settings, parse_backend

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
ONE, TWO, THREE = "127.0.0.2", "127.0.0.3", "127.0.0.4"
HEALTH = 'health = { path = "/health", interval = 0.1, timeout = 30, fall = 2 }'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return names.build(tmp_path_factory.mktemp("names"))


def port_of_all_addresses() -> int:
    """A port that is free on every address: what was closed a while ago may still have it on one."""
    while True:
        port = free_port()
        with socket.socket(socket.AF_INET6) as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", port))
            return port


class Servers:
    """Servers at several addresses and one port, each of which says its address, and streams at /stream until it is let go."""

    def __init__(self, stack: ExitStack) -> None:
        self.port = port_of_all_addresses()
        self.go = threading.Event()
        self.backends: dict[str, Backend] = {}
        self.checks: list[str] = []
        self._stack = stack

    def start(self, *hosts: str) -> None:
        for host in hosts:
            family = "tcp6" if ":" in host else "tcp"

            def script(connection: Connection, host: str = host) -> None:
                self._serve(connection, host)

            self.backends[host] = self._stack.enter_context(Backend(script, family, host=host, port=self.port))

    def _serve(self, connection: Connection, host: str) -> None:
        while True:
            target = connection.read_request().line.split()[1]
            if target == b"/health":
                self.checks.append(host)
            if target != b"/stream":
                respond(connection, host.encode())
                continue
            connection.send(sse_head() + chunk(b"data: %s\n\n" % host.encode()))
            assert self.go.wait(60)
            connection.send(chunk(b"data: end\n\n") + LAST_CHUNK)


class World:
    """A file with a backend gpu at the name gpu.test, what the name means, and who listens there."""

    def __init__(self, stack: ExitStack, folder: Path, library: str) -> None:
        self.names = names.NameServer(folder, library)
        self.servers = Servers(stack)
        self.path = folder / "llmpipe.toml"
        self.url = f"http://gpu.test:{self.servers.port}"
        self.write(self.row())

    def row(self, name: str = "gpu", host: str = "gpu.test", more: str = "") -> str:
        return f'[[pools.p.backends]]\nname = "{name}"\nurl = "http://{host}:{self.servers.port}"\n{more}\n'

    def write(self, *rows: str, pool: str = "") -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(f"[pools.p]\n{pool}\n{''.join(rows)}")
        beside.replace(self.path)

    def proxy(self, *options: str) -> Proxy:
        return Proxy(options=("--config", str(self.path), *options), env=self.names.env)


@pytest.fixture
def world(tmp_path: Path, library: str) -> Iterator[World]:
    with ExitStack() as stack:
        made = World(stack, tmp_path, library)
        stack.callback(made.servers.go.set)
        yield made


def events(proxy: Proxy, event: str) -> list[dict[str, Any]]:
    return [line for line in proxy.log.copy() if line["event"] == event]


def post(proxy: Proxy, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=50)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def tell(proxy: Proxy, name: str, verb: str, query: str = "") -> tuple[str, int]:
    """Drains or resumes: state and exchanges in flight, as the answer has them."""
    proxy.rest()
    status, body = post(proxy, f"/backends/{quote(name, safe='')}/{verb}{query}")
    assert (status, body["name"]) == (200, name), body
    return body["state"], body["in_flight"]


def rows(proxy: Proxy) -> dict[str, dict[str, Any]]:
    """What /status has, by name."""
    proxy.rest()
    pools = json.loads(proxy.admin("/status")[1])["pools"]
    return {row["name"]: row for pool in pools for row in pool["backends"]}


def states(proxy: Proxy) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(proxy).items()}


def reload(proxy: Proxy) -> None:
    """By SIGHUP; names are looked up before it has ended."""
    before = len(events(proxy, "reloaded"))
    proxy.signal(signal.SIGHUP)
    wait_until(lambda: len(events(proxy, "reloaded")) > before, 30)


def asked(proxy: Proxy, n: int) -> list[str]:
    """Who answers n requests one after the other."""
    with Client(proxy) as client:
        return [client.request(GET).body.decode() for _ in range(n)]


def open_stream(proxy: Proxy, stack: ExitStack) -> tuple[Client, str]:
    """A stream that goes on, and whose it is."""
    client = stack.enter_context(Client(proxy))
    client.send(STREAM)
    client.read_head()
    return client, client.recv_until(b"\n\n\r\n").split(b"data: ")[1].strip().decode()


# ------------------------------------------------------------------------------------------------------- what is not resolved


def test_i5_a_name_that_does_not_resolve_at_the_start_is_a_warning_and_asked_again(world: World) -> None:
    world.names.say("gpu.test")
    world.servers.start(ONE)
    world.write(world.row(), pool=HEALTH)
    with world.proxy() as proxy:
        line = proxy.wait_log("backend unresolved")
        assert (line["level"], line["backend"]) == ("warning", "gpu")
        assert line["error"]
        with Client(proxy) as client:
            answer = client.request(GET)
        assert (answer.status, answer.error()["code"]) == (503, "no_backend")
        row = rows(proxy)["gpu"]
        assert (row["state"], row["usable"], row["in_flight"], row["error"]) == ("unresolved", False, 0, line["error"])
        assert proxy.metric("llmpipe_backend_up", backend="gpu") == 0
        assert 'llmpipe_backend_up{backend="gpu"}' in proxy.metrics()
        assert proxy.metric("llmpipe_pool_backends", pool="p", state="unresolved") == 1
        assert proxy.admin("/readyz")[0] == 503
        world.names.say("gpu.test", ONE)
        line = proxy.wait_log("backend resolved")
        assert (line["level"], line["backend"], line["addresses"]) == ("info", "gpu", ONE)
        wait_until(lambda: asked(proxy, 1) == [ONE])
        assert states(proxy) == {"gpu": "up"}
        wait_until(lambda: world.servers.checks)
        assert proxy.admin("/readyz")[0] == 200
        assert proxy.metric("llmpipe_pool_backends", pool="p", state="unresolved") == 0
        assert len(events(proxy, "backend unresolved")) == 1
        # From now on it is as any other: what cannot be resolved keeps its address.
        world.names.say("gpu.test")
        reload(proxy)
        wait_until(lambda: events(proxy, "name not resolved"))
        assert asked(proxy, 2) == [ONE, ONE]


def of_backend(proxy: Proxy, name: str) -> dict[str, float]:
    """What metrics say of the state of a backend, of which an alert goes."""
    samples = proxy.metrics()
    return {what: samples[f'llmpipe_backend_{what}{{backend="{name}"}}'] for what in ("up", "drained")}


def test_i5_an_unresolved_backend_can_be_drained(world: World) -> None:
    """And is drained when its name has an address."""
    world.names.say("gpu.test")
    world.servers.start(ONE, TWO)
    with world.proxy() as proxy:
        assert of_backend(proxy, "gpu") == {"up": 0, "drained": 0}
        assert tell(proxy, "gpu", "drain", "?wait=30") == ("drained", 0)
        assert states(proxy) == {"gpu": "drained"}
        assert of_backend(proxy, "gpu") == {"up": 0, "drained": 1}
        assert tell(proxy, "gpu", "resume") == ("unresolved", 0)
        assert of_backend(proxy, "gpu") == {"up": 0, "drained": 0}
        assert tell(proxy, "gpu", "drain") == ("drained", 0)
        wait_until(lambda: len(events(proxy, "backend draining")) == 2)
        status, body = post(proxy, "/backends/other/drain")
        assert (status, body["backends"]) == (404, ["gpu"])
        world.names.say("gpu.test", ONE, TWO)
        proxy.wait_log("backend resolved")
        wait_until(lambda: states(proxy) == {f"gpu@{ONE}": "drained", f"gpu@{TWO}": "drained"})
        assert tell(proxy, "gpu", "resume") == ("up", 0)
        assert sorted(asked(proxy, 2)) == [ONE, TWO]


def test_i5_a_reload_with_a_name_that_does_not_resolve_is_taken(world: World) -> None:
    world.names.say("gpu.test", ONE)
    world.names.say("new.test")
    world.servers.start(ONE, TWO)
    with world.proxy() as proxy:
        assert asked(proxy, 1) == [ONE]
        # Other options of a backend are no reason to forget what its name means.
        world.names.say("gpu.test")
        world.write(world.row(more="max_in_flight = 9"), world.row("new", "new.test"))
        assert post(proxy, "/reload") == (200, {"reloaded": True, "backends": ["gpu", "new"]})
        assert proxy.wait_log("backend unresolved")["backend"] == "new"
        assert states(proxy) == {"gpu": "up", "new": "unresolved"}
        assert asked(proxy, 4) == [ONE] * 4
        world.names.say("new.test", TWO)
        proxy.wait_log("backend resolved")
        wait_until(lambda: set(asked(proxy, 2)) == {ONE, TWO})
        assert [line["backend"] for line in events(proxy, "backend unresolved")] == ["new"]


def test_i5_a_backend_that_leaves_the_file_is_asked_for_no_more(world: World) -> None:
    world.names.say("gpu.test", ONE)
    world.names.say("new.test")
    world.servers.start(ONE)
    world.write(world.row(), world.row("new", "new.test"))
    with world.proxy() as proxy:
        wait_until(lambda: world.names.asked("new.test") >= 2)  # at the start, and once more
        world.write(world.row())
        reload(proxy)
        assert states(proxy) == {"gpu": "up"}
        world.names.say("new.test", ONE)
        reload(proxy)
        assert not events(proxy, "backend resolved")


def test_i5_check_takes_it_for_a_fault(world: World) -> None:
    world.names.say("gpu.test")
    world.names.say("new.test")
    world.write(world.row(), world.row("new", "new.test"))
    command = [sys.executable, "-m", "llmpipe", "check", str(world.path)]
    done = subprocess.run(
        command, env={**os.environ, **world.names.env}, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
        f"Error: backend {name}: the host name cannot be resolved" for name in ("gpu", "new")
    ]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", f"{'a' * 64}.invalid"])
def test_i5_whatever_is_wrong_with_a_name_the_others_are_served(world: World, host: str) -> None:
    world.servers.start(ONE)
    world.write(world.row(host=host), world.row("one", ONE))
    with world.proxy() as proxy:
        assert proxy.wait_log("backend unresolved")["backend"] == "gpu"
        assert asked(proxy, 2) == [ONE, ONE]
        assert states(proxy) == {"gpu": "unresolved", "one": "up"}
        assert proxy.admin("/readyz")[0] == 200


def test_i5_a_new_process_that_resolves_nothing_takes_nothing_over(world: World) -> None:
    """The old one has addresses, and goes on (rule G4)."""
    world.names.say("gpu.test", ONE)
    world.servers.start(ONE)
    with world.proxy() as proxy:
        world.names.say("gpu.test")
        proxy.signal(signal.SIGUSR2)
        assert "backend gpu: the host name cannot be resolved" in proxy.wait_log("upgrade failed")["error"]
        assert asked(proxy, 2) == [ONE, ONE]


def test_i5_a_name_is_asked_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(resolve, "INTERVAL", 0.1)
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)

    class Nobody(resolve.Names):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        async def look_up(self, host: str) -> Any:
            self.asked += 1
            if self.asked < 8:
                raise OSError("no name server")
            return [(2, 1, 6, "", ("127.0.0.1", 0))]

    async def run() -> None:
        resolver = resolve.Resolver(Nobody())
        backend = parse_backend("http://a.test:1")
        (fault,) = await resolver.take([backend])
        assert (fault.resolved, fault.error, resolver.servers(backend)) == (False, "no name server", ())
        done = asyncio.Event()
        resolver.follow(done.set)
        await asyncio.wait_for(done.wait(), 30)
        assert [server.name for server in resolver.servers(backend)] == ["http://a.test:1"]

    asyncio.run(run())
    assert len(slept) == 7
    for seconds, about in zip(slept, (0.02, 0.04, 0.08, 0.1, 0.1, 0.1, 0.1), strict=True):
        assert 0.8 * about <= seconds <= 1.2 * about
    assert len(set(slept)) == 7  # not by the clock


def test_i5_an_address_without_a_route_is_a_warning_and_a_fault_of_check(world: World) -> None:
    """All ones is the one address to which there is no way on any machine."""
    world.write('[[pools.p.backends]]\nname = "gpu"\nurl = "http://255.255.255.255:1"\n')
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "check", str(world.path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 2
    assert "backend gpu cannot be reached from here" in done.stderr
    with world.proxy() as proxy:
        assert proxy.wait_log("backend unreachable")["backend"] == "gpu"
        assert list(rows(proxy)) == ["gpu"]


# ---------------------------------------------------------------------------------------------------------- several addresses


def test_i5_each_address_is_a_server(world: World) -> None:
    """With its share of the load, and its own limit, health checks, and rows in /status and metrics."""
    world.names.say("gpu.test", TWO, ONE)
    world.servers.start(ONE, TWO)
    world.write(world.row(more="max_in_flight = 1"), pool=HEALTH)
    names = [f"gpu@{ONE}", f"gpu@{TWO}"]
    with world.proxy() as proxy, ExitStack() as stack:
        found = asked(proxy, 10)
        assert (found.count(ONE), found.count(TWO)) == (5, 5)
        assert list(rows(proxy)) == names
        assert {row["url"] for row in rows(proxy).values()} == {world.url}
        for name in names:
            assert proxy.metric("llmpipe_backend_exchanges_total", backend=name) == 5
        assert 'llmpipe_backend_up{backend="gpu"}' not in proxy.metrics()
        streams = [open_stream(proxy, stack) for _ in range(2)]
        assert sorted(host for _, host in streams) == [ONE, TWO]
        assert [row["in_flight"] for row in rows(proxy).values()] == [1, 1]
        waiting = stack.enter_context(Client(proxy))
        waiting.send(GET)
        proxy.wait_metric("llmpipe_queue_length", 1, pool="p")
        world.servers.go.set()
        for client, _ in streams:
            client.recv_until(LAST_CHUNK)
        assert waiting.read_response().status == 200
        wait_until(lambda: {ONE, TWO} <= set(world.servers.checks))
        world.servers.backends[TWO].close()
        assert proxy.wait_log("backend unhealthy")["backend"] == f"gpu@{TWO}"
        wait_until(lambda: proxy.metric("llmpipe_health_checks_total", backend=f"gpu@{TWO}", result="failed") >= 2)
        wait_until(lambda: states(proxy) == {f"gpu@{ONE}": "up", f"gpu@{TWO}": "down"})
        assert proxy.metric("llmpipe_pool_backends", pool="p", state="down") == 1
        assert {line["backend"] for line in proxy.access(13) if line["backend"]} == set(names)


@pytest.mark.parametrize("how", ["file", "flag"])
def test_i5_with_first_they_are_one_server(world: World, how: str) -> None:
    world.names.say("gpu.test", TWO, ONE)
    world.servers.start(ONE, TWO)
    name = "gpu" if how == "file" else world.url
    world.write(world.row(more='addresses = "first"'))
    with world.proxy() if how == "file" else Proxy(f"{world.url}?addresses=first", env=world.names.env) as proxy:
        assert set(asked(proxy, 6)) == {TWO}
        assert list(rows(proxy)) == [name]
        world.servers.backends[TWO].close()
        wait_until(lambda: asked(proxy, 1) == [ONE])
        assert states(proxy) == {name: "up"}


def test_i5_an_ipv4_and_an_ipv6_address_are_one_server(world: World) -> None:
    world.names.say("gpu.test", "::1", "127.0.0.1")
    world.servers.start("::1", "127.0.0.1")
    with world.proxy() as proxy:
        assert set(asked(proxy, 4)) == {"::1"}
        assert states(proxy) == {"gpu": "up"}
        world.servers.backends["::1"].close()
        wait_until(lambda: asked(proxy, 1) == ["127.0.0.1"])
        assert states(proxy) == {"gpu": "up"}


@pytest.mark.parametrize("host", ["localhost", "gpu.localhost"])
def test_i5_localhost_is_one_server(world: World, host: str) -> None:
    world.names.say(host, ONE, TWO)
    world.servers.start(ONE, TWO)
    world.write(world.row(host=host))
    with world.proxy() as proxy:
        assert set(asked(proxy, 4)) == {ONE}
        assert states(proxy) == {"gpu": "up"}


@pytest.mark.parametrize(
    ("hosts", "unroutable", "servers"),
    [
        (["10.0.0.1"], "", {"gpu": ["10.0.0.1"]}),
        ([], "", {}),
        (["fd00::1", "10.0.0.1"], "", {"gpu": ["fd00::1", "10.0.0.1"]}),
        (["10.0.0.10", "10.0.0.9"], "", {"gpu@10.0.0.9": ["10.0.0.9"], "gpu@10.0.0.10": ["10.0.0.10"]}),
        (["fd00::2", "fd00::1"], "", {"gpu@[fd00::1]": ["fd00::1"], "gpu@[fd00::2]": ["fd00::2"]}),
        (
            ["fd00::2", "10.0.0.1", "fd00::1", "10.0.0.2"],
            "",
            {"gpu@[fd00::1]": ["fd00::1"], "gpu@[fd00::2]": ["fd00::2"]},
        ),
        (
            ["fd00::2", "fd00::1", "10.0.0.1", "10.0.0.2"],
            "fd",
            {"gpu@10.0.0.1": ["10.0.0.1"], "gpu@10.0.0.2": ["10.0.0.2"]},
        ),
        (["fd00::1", "10.0.0.1"], "fd", {"gpu": ["10.0.0.1"]}),
        (["fd00::1"], "fd", {"gpu": ["fd00::1"]}),
        (["fd00::1", "10.0.0.1", "10.0.0.2"], "", {"gpu@10.0.0.1": ["10.0.0.1"], "gpu@10.0.0.2": ["10.0.0.2"]}),
        (["10.0.0.1", "fd00::2", "fd00::1"], "fd", {"gpu": ["10.0.0.1"]}),
    ],
)
def test_i5_which_addresses_are_servers(
    monkeypatch: pytest.MonkeyPatch, hosts: list[str], unroutable: str, servers: dict[str, list[str]]
) -> None:
    def route_error(host: str, port: int) -> OSError | None:
        return OSError("no route") if unroutable and host.startswith(unroutable) else None

    monkeypatch.setattr(resolve, "_route_error", route_error)
    found = resolve.make_servers(parse_backend("http://a.test:1?name=gpu"), resolve.reachable(tuple(hosts)))
    assert [(server.name, server.addresses) for server in found] == [
        (name, tuple((host, 1) for host in of_it)) for name, of_it in servers.items()
    ]


# ------------------------------------------------------------------------------------------------------------- come and go


def test_i5_a_server_that_leaves_cuts_no_stream_and_one_that_stays_is_the_same(world: World) -> None:
    world.names.say("gpu.test", ONE, TWO, THREE)
    world.servers.start(ONE, TWO, THREE)
    with world.proxy() as proxy, ExitStack() as stack:
        assert sorted(asked(proxy, 3)) == [ONE, TWO, THREE]
        streams = dict(reversed(open_stream(proxy, stack)) for _ in range(3))
        assert set(streams) == {ONE, TWO, THREE}
        world.names.say("gpu.test", TWO, ONE)
        reload(proxy)
        assert list(rows(proxy)) == [f"gpu@{ONE}", f"gpu@{TWO}"]
        assert [(row["exchanges"], row["in_flight"]) for row in rows(proxy).values()] == [(2, 1), (2, 1)]
        assert set(asked(proxy, 6)) == {ONE, TWO}
        world.names.say("gpu.test", TWO)
        reload(proxy)
        assert list(rows(proxy)) == ["gpu"]
        assert set(asked(proxy, 3)) == {TWO}
        world.servers.go.set()
        for client in streams.values():
            assert client.recv_until(LAST_CHUNK).endswith(b"data: end\n\n\r\n" + LAST_CHUNK)
        lines = [line for line in proxy.access(15) if line["path"] == "/stream"]
        assert sorted((line["backend"], line["outcome"]) for line in lines) == [
            (f"gpu@{host}", "ok") for host in (ONE, TWO, THREE)
        ]
        world.names.say("gpu.test", TWO, THREE)
        reload(proxy)
        assert sorted(asked(proxy, 2)) == [TWO, THREE]
        # Those without a change of the name are the same ones.
        before = rows(proxy)
        world.names.say("gpu.test", THREE, TWO)
        reload(proxy)
        assert rows(proxy).keys() == before.keys()
        assert [row["exchanges"] for row in rows(proxy).values()] == [row["exchanges"] for row in before.values()]


def test_i5_health_checks_go_where_the_name_leads(world: World) -> None:
    world.names.say("gpu.test", ONE)
    world.servers.start(ONE, TWO, THREE)
    world.write(world.row(), pool=HEALTH)
    with world.proxy() as proxy:
        wait_until(lambda: ONE in world.servers.checks)
        world.names.say("gpu.test", TWO)  # one server that moves
        reload(proxy)
        wait_until(lambda: TWO in world.servers.checks)
        world.names.say("gpu.test", TWO, THREE)  # and two
        reload(proxy)
        wait_until(lambda: THREE in world.servers.checks)
        world.servers.backends[ONE].close()
        world.servers.checks.clear()
        wait_until(lambda: {TWO, THREE} <= set(world.servers.checks))
        samples = proxy.metrics()
        checked = {name for name in samples if name.startswith("llmpipe_health_checks_total")}
        assert checked == {
            f'llmpipe_health_checks_total{{backend="gpu@{host}",result="{result}"}}'
            for host in (TWO, THREE)
            for result in ("passed", "failed")
        }
        assert not events(proxy, "backend unhealthy")


def test_i5_a_drain_by_name_is_of_all_servers_and_by_address_of_one(world: World) -> None:
    world.names.say("gpu.test", ONE, TWO)
    world.servers.start(ONE, TWO, THREE)
    with world.proxy() as proxy, ExitStack() as stack:
        streams = dict(reversed(open_stream(proxy, stack)) for _ in range(2))
        assert tell(proxy, f"gpu@{ONE}", "drain") == ("draining", 1)
        assert states(proxy) == {f"gpu@{ONE}": "draining", f"gpu@{TWO}": "up"}
        assert set(asked(proxy, 4)) == {TWO}
        assert tell(proxy, "gpu", "drain") == ("draining", 2)
        assert set(states(proxy).values()) == {"draining"}
        world.servers.go.set()
        assert tell(proxy, "gpu", "drain", "?wait=60") == ("drained", 0)
        for client in streams.values():
            client.recv_until(LAST_CHUNK)
        # It holds for a server that comes.
        world.names.say("gpu.test", ONE, TWO, THREE)
        reload(proxy)
        assert set(states(proxy).values()) == {"drained"}
        assert len(states(proxy)) == 3
        with Client(proxy) as client:
            assert client.request(GET).status == 503
        assert tell(proxy, f"gpu@{THREE}", "resume") == ("up", 0)
        assert set(asked(proxy, 4)) == {THREE}
        assert tell(proxy, "gpu", "resume") == ("up", 0)
        assert set(states(proxy).values()) == {"up"}
        assert post(proxy, "/backends/gpu@127.0.0.9/drain")[0] == 404


def test_i5_a_drain_of_one_server_lasts_as_long_as_its_address(world: World) -> None:
    """Under whatever name: of a single server it is the backend's."""
    world.names.say("gpu.test", ONE, TWO)
    world.servers.start(ONE, TWO)
    with world.proxy() as proxy:
        assert tell(proxy, f"gpu@{ONE}", "drain") == ("drained", 0)
        world.names.say("gpu.test", ONE)
        reload(proxy)
        assert states(proxy) == {"gpu": "drained"}
        world.names.say("gpu.test", ONE, TWO)
        reload(proxy)
        assert states(proxy) == {f"gpu@{ONE}": "drained", f"gpu@{TWO}": "up"}
        world.names.say("gpu.test", TWO)
        reload(proxy)
        assert states(proxy) == {"gpu": "up"}
        world.names.say("gpu.test", ONE, TWO)
        reload(proxy)
        assert set(states(proxy).values()) == {"up"}


def test_i5_nothing_begins_with_a_server_that_comes_under_a_drained_name(world: World) -> None:
    """Not even in the moment in which it comes."""
    world.names.say("gpu.test", ONE)
    world.names.say("other.test", THREE)
    world.servers.start(ONE, TWO, THREE)
    world.write(world.row(), world.row("other", "other.test"))
    stop = threading.Event()

    def ask(proxy: Proxy) -> None:
        with Client(proxy) as client:
            while not stop.is_set():
                assert client.request(GET).body == THREE.encode()

    with world.proxy("--workers", "2", "--access-log", "off") as proxy:
        tell(proxy, "gpu", "drain")
        threads = [threading.Thread(target=ask, args=(proxy,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for count in range(10):
                world.names.say("gpu.test", *([ONE, TWO] if count % 2 == 0 else [ONE]))
                reload(proxy)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not world.servers.backends[ONE].connections
        assert not world.servers.backends[TWO].connections


def test_i5_as_many_servers_as_there_is_room_for(world: World) -> None:
    """And one of each backend before any second one."""
    world.servers.start("0.0.0.0")
    many = [f"127.0.1.{number}" for number in range(1, 151)]
    world.names.say("gpu.test", *many)
    world.names.say("other.test", ONE)
    world.write(world.row(), world.row("other", "other.test"))
    with world.proxy() as proxy:
        line = proxy.wait_log("servers left out")
        assert (line["used"], line["left_out"]) == (128, 23)
        found = list(rows(proxy))
        assert found == [*(f"gpu@{host}" for host in many[:127]), "other"]
        assert asked(proxy, 3) == ["0.0.0.0"] * 3
        world.names.say("gpu.test", *reversed(many[:100]))
        reload(proxy)
        assert len(rows(proxy)) == 101
        assert len(events(proxy, "servers left out")) == 1


def test_i5_a_server_is_not_taken_for_a_backend_of_the_same_name(world: World) -> None:
    world.names.say("gpu.test", ONE, TWO)
    world.servers.start(ONE, TWO, THREE)
    world.write(world.row(), world.row(f"gpu@{TWO}", THREE))
    with world.proxy() as proxy:
        assert sorted(asked(proxy, 2)) == [ONE, THREE]
        assert len(rows(proxy)) == 2


def test_servers_of_many_backends_are_found_without_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for again every 30 s, beside the engines."""
    backends = [parse_backend(f"http://127.1.{i // 250}.{i % 250 + 1}:8000") for i in range(2000)]
    pools = tuple(
        Pool(name=f"pool{i}", settings=PoolSettings(backends=tuple(backends[i * 20 : i * 20 + 20]))) for i in range(100)
    )
    settings = Settings(pools=pools)
    compared = 0
    equal = config.Backend.__eq__

    def counted(self: config.Backend, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(config.Backend, "__eq__", counted)
    assert len(resolve.choose(settings, resolve.Unresolved())) == len(backends)
    assert compared < 10 * len(backends)
