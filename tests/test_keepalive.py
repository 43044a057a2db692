"""Rule B3 against uvicorn, which closes idle connections: a request that comes just then is answered, and executed once.

The rounds aim at the moment when uvicorn closes. Nothing depends on hitting it: a request is answered and executed once
whether it came before, after or in that moment.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Sequence

import httpx
import pytest
import servers
from harness import Proxy, wait_until
from servers import Server

CLIENTS = 30


def ask_in_rounds(proxy: Proxy, gaps: Sequence[tuple[float, float]]) -> list[str]:
    """Many clients ask at about the same time, once a round; between two rounds each waits so long (from, to). All names asked."""
    names: list[str] = []
    failures: list[str] = []
    together = threading.Barrier(CLIENTS)

    def run(number: int) -> None:
        chance = random.Random(number)
        try:
            with httpx.Client(trust_env=False, timeout=30) as client:
                for turn in range(len(gaps) + 1):
                    name = f"{number}-{turn}"
                    names.append(name)
                    method, body = ("POST", name.encode()) if chance.random() < 0.5 else ("GET", b"")
                    response = client.request(method, f"{proxy.url}/count/{name}", content=body)
                    if (response.status_code, response.content) != (200, body):
                        failures.append(f"{name}: {response.status_code} {response.text}")
                    together.wait(60)
                    if turn < len(gaps):
                        time.sleep(chance.uniform(*gaps[turn]))
        except Exception as error:
            failures.append(f"{number}: {error!r}")
            together.abort()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert failures == []
    return names


def expect_each_once(server: Server, names: Sequence[str]) -> None:
    counted = json.loads(server.request("GET", "/counts")[1])
    assert counted == dict.fromkeys(names, 1)


def report(server: Server, proxy: Proxy) -> tuple[float, float]:
    """Connects and reuses; shown by `pytest -rP`."""
    connects = proxy.metric("llmpipe_upstream_connects_total", backend=server.url)
    reuses = proxy.metric("llmpipe_upstream_reuses_total", backend=server.url)
    print(f"connects {connects:.0f}, reuses {reuses:.0f}, replays {proxy.metric('llmpipe_stale_replays_total'):.0f}")
    return connects, reuses


@pytest.mark.slow
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_b3_no_request_is_lost_where_the_backend_closes_first(http):
    """The proxy would keep connections for 30 s; uvicorn does for 1 s. 210 requests."""
    gaps = [(0.3, 0.4)] + [(0.95, 1.05), (0.99, 1.01)] * 2 + [(1.4, 1.5)]
    with servers.uvicorn("--keep-alive", "1", "--http", http) as server:
        with Proxy(server.url, options=["--upstream-idle-timeout", "30s"]) as proxy:
            names = ask_in_rounds(proxy, gaps)
            assert len(names) == 210
            expect_each_once(server, names)
            connects, reuses = report(server, proxy)
            assert connects + reuses - proxy.metric("llmpipe_stale_replays_total") == 210
            assert connects > CLIENTS  # some were closed between two rounds
            assert reuses > 0
            assert proxy.outcome("ok") == 210
            assert proxy.metric("llmpipe_backend_failures_total", backend=server.url) == 0


@pytest.mark.slow
def test_b3_no_request_is_lost_with_the_defaults_of_both():
    """uvicorn keeps for 5 s, the proxy for 4 s: one round at each of the two moments."""
    with servers.uvicorn() as server, Proxy(server.url) as proxy:
        names = ask_in_rounds(proxy, [(3.95, 4.05), (4.95, 5.05)])
        expect_each_once(server, names)
        connects, reuses = report(server, proxy)
        assert connects + reuses - proxy.metric("llmpipe_stale_replays_total") == len(names)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_b3_the_end_of_a_connection_and_a_request_seen_at_once(method):
    """A proxy that slept meets both in one turn: the idle connection ended and the next request is there."""
    with servers.uvicorn("--keep-alive", "1") as server:
        with Proxy(server.url, options=["--upstream-idle-timeout", "30s"]) as proxy:
            with httpx.Client(trust_env=False, timeout=30) as client:
                assert client.get(f"{proxy.url}/count/warm").status_code == 200
                answers: list[int] = []

                def ask() -> None:
                    body = b"x" * 100_000 if method == "POST" else b""
                    answers.append(client.request(method, f"{proxy.url}/count/asleep", content=body).status_code)

                thread = threading.Thread(target=ask, daemon=True)
                proxy.signal(signal.SIGSTOP)
                try:
                    wait_until(lambda: idle_connections(server) == 0, what="uvicorn closes the idle connection")
                    thread.start()
                    time.sleep(0.1)
                finally:
                    proxy.signal(signal.SIGCONT)
                thread.join(60)
                assert answers == [200]
            expect_each_once(server, ["warm", "asleep"])
            assert proxy.outcome("ok") == 2


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_b3_a_request_to_a_backend_that_sleeps_past_its_own_timeout(loop):
    """It wakes with the request there and the timer over; which of the two it looks at first is its own affair."""
    with servers.uvicorn("--keep-alive", "1", "--loop", loop) as server:
        with Proxy(server.url, options=["--upstream-idle-timeout", "30s"]) as proxy:
            with httpx.Client(trust_env=False, timeout=30) as client:
                assert client.get(f"{proxy.url}/count/warm").status_code == 200
                answers: list[int] = []

                def ask() -> None:
                    answers.append(client.post(f"{proxy.url}/count/asleep", content=b"x").status_code)

                thread = threading.Thread(target=ask, daemon=True)
                server.process.send_signal(signal.SIGSTOP)
                try:
                    thread.start()
                    time.sleep(1.5)
                finally:
                    server.process.send_signal(signal.SIGCONT)
                thread.join(60)
                assert answers == [200]
            expect_each_once(server, ["warm", "asleep"])
            report(server, proxy)


def idle_connections(server: Server) -> int:
    """Connections that are open at the server's end, as the kernel knows them."""
    port = f":{server.port:04X}"
    established = 0
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            words = line.split()
            established += words[1].endswith(port) and words[3] == "01"
    return established
