"""Workloads of a fleet: several pools, of which a request says which one it is for; and their goals.

python -m bench --work fleet                                    beside nginx and HAProxy
python -m bench --all --install --work fleet --rounds 5         beside the routers, too
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from bench import rounds
from bench.peers import Command
from bench.peers.fleet import (
    ASKED,
    FIRST,
    MODELS,
    PLACES,
    FleetHaproxy,
    FleetNginx,
    FleetSmg,
    FleetVllmRouter,
    OnePool,
    Pool,
    PooledLlmpipe,
    address,
)
from bench.rounds import long_body
from bench.workloads import Task, at_most, near, within, without_errors
from llmpipe.bench.workload import Request, Workload

NAME = "fleet"
HEADERS = (("X-Model", ASKED),)
KILOBYTE, MEGABYTE = 1024, 1024 * 1024
WAITING = 5000
POOLS, BACKENDS = 100, 20
DOWN = 32
NOBODY = 1
"""A port at which nothing listens."""
SILENT_PORT = 7898
"""Where those listen that accept nothing."""
CHECKED_AFTER = 1.5
"""Seconds after which health checks have found who is down."""

CHECKED = {"health": {"path": "/health"}, "max_in_flight": PLACES, "queue": {"size": 256}}


def _asked(prompt: int) -> Request:
    """A request with a body of so many bytes for the second pool."""
    bare = Workload("requests", request=Request(model=ASKED, prompt="")).body_size
    return Request(model=ASKED, prompt="x" * (prompt - bare), headers=HEADERS)


def _short(clients: int, name: str, about: str, size: int = 300) -> Workload:
    return Workload("requests", name, streams=clients, about=about, request=_asked(size))


def _three(settings: dict[str, object] | None = None) -> list[Pool]:
    return [Pool([address(i)], [model], settings or {}) for i, model in enumerate(MODELS)]


ROUTED = PooledLlmpipe("llmpipe", "a file with three pools, each with a model", _three())
FULL = PooledLlmpipe(
    "llmpipe", "a file with three pools, each with a model, health checks and a queue", _three(CHECKED)
)


def _many(policy: str) -> list[Pool]:
    """POOLS of BACKENDS each. Only those of the one that is asked for, and of the first, are anybody's."""
    names = [*MODELS, *(f"bench-{i + 1}" for i in range(len(MODELS), POOLS))]
    return [
        Pool([address(i * BACKENDS + j) for j in range(BACKENDS)], [model], {"policy": policy})
        for i, model in enumerate(names)
    ]


ONE_BACKEND = PooledLlmpipe(
    "one-backend", "a file with one pool of one backend, and its models", [Pool([address(0)], [FIRST, ASKED])]
)
CHOOSING = tuple(
    PooledLlmpipe(name, f"a file with {POOLS} pools of {BACKENDS} backends, policy {policy}", _many(policy))
    for name, policy in (("least-in-flight", "least_in_flight"), ("p2c", "p2c"))
)


def queue_task(waiting: int) -> Task:
    """So many requests that wait for one place, and fill the queue."""
    places = {"max_in_flight": 1, "queue": {"size": waiting, "timeout": "10m"}}
    backend = f"127.0.0.1:{rounds.WAITING_PORT}"
    ours = PooledLlmpipe(
        "llmpipe",
        f"a file with two pools, one of them with one place and a queue of {waiting:,}",
        [Pool(["127.0.0.1"], [FIRST]), Pool([backend], [ASKED], places)],
    )
    return Task(
        Workload(
            "queue",
            f"fleet-queue-{waiting}",
            streams=waiting,
            about=f"{waiting:,} requests of 7 KB that wait for one place, in a full queue",
            request=_asked(7 * KILOBYTE),
        ),
        (
            within("memory_per_waiting", 1.5 * KILOBYTE),
            *(
                within(figure, 1e-3)
                for figure in ("grant_p50", "grant_p99", "leave_p50", "leave_p90", "place_p50", "place_p90")
            ),
            without_errors(),
        ),
        direct=False,
        peers=(ours,),
        group=NAME,
        runs=rounds.run_queue,
    )


CHECKS = {"path": "/health", "timeout": "500ms", "fall": 1}
"""The first check tells who is down; the interval is the default."""


class OneUp(PooledLlmpipe):
    """Ours, with one backend that is up, behind some of which half refuse connections and half do not answer at all."""

    def __init__(self, name: str, about: str, down: int) -> None:
        refusing = [f"127.2.0.{i + 1}:{NOBODY}" for i in range(down // 2)]
        self._silent = [f"127.2.1.{i + 1}" for i in range(down - down // 2)]
        self._sockets: list[socket.socket] = []
        silent = [f"{host}:{SILENT_PORT}" for host in self._silent]
        super().__init__(name, about, [Pool([*refusing, *silent, address(0)], [], {"health": CHECKS})])

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        if not self._sockets:
            for host in self._silent:
                self._fill(host)
        return super().command(folder, port, backend_port, scratch)

    def _fill(self, host: str) -> None:
        """Listens, has as many connections wait as may, and accepts none: the kernel then drops what comes, as a dead host does."""
        listener = socket.create_server((host, SILENT_PORT), backlog=0)
        self._sockets.append(listener)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex((host, SILENT_PORT))
            self._sockets.append(waiting)

    def listening(self, port: int, backend_port: int) -> None:
        time.sleep(CHECKED_AFTER)


DOWN_PEERS = (
    OneUp(
        "llmpipe",
        f"a file with one pool of {DOWN + 1} backends: {DOWN // 2} refuse connections, {DOWN // 2} do not answer, one is up; "
        "health checks that need to fail once",
        DOWN,
    ),
    OneUp("one-up", "the same with nothing but the one that is up", 0),
)

CPU = "cpu_per_request"

FLEET = (
    Task(
        _short(32, "fleet-route", "requests of 2 KB for one of three models, 32 clients", 2 * KILOBYTE),
        (near(CPU, 3e-6, "one-pool"), without_errors()),
        direct=False,
        peers=(OnePool(), ROUTED),
        group=NAME,
        settle=0.3,
        everywhere=True,
    ),
    Task(
        Workload(
            "requests",
            "fleet-route-100k",
            streams=8,
            about="requests of 100 KB, the model their last key, 8 clients",
            request=Request(body=long_body(ASKED, 100 * KILOBYTE)),
        ),
        (at_most(CPU, 1.1, "one-pool"), without_errors()),
        direct=False,
        peers=(OnePool(), ROUTED),
        group=NAME,
        settle=0.3,
        everywhere=True,
    ),
    Task(
        Workload(
            "uploads",
            "fleet-route-1m",
            streams=4,
            about="requests of 1 MB, the model their last key, 4 clients",
            request=Request(body=long_body(ASKED, MEGABYTE)),
        ),
        (at_most(CPU, 1.1, "one-pool"), within("memory_per_stream", 1.25 * MEGABYTE), without_errors()),
        direct=False,
        peers=(OnePool(), ROUTED),
        group=NAME,
        settle=0.3,
        everywhere=True,
        runs=rounds.run_uploads,
    ),
    Task(
        _short(32, "fleet-choice", f"short requests, 32 clients, {POOLS * BACKENDS:,} backends in {POOLS} pools"),
        tuple(near("user_cpu_per_request", 1e-6, "one-backend", peer.name) for peer in CHOOSING),
        direct=False,
        peers=(ONE_BACKEND, *CHOOSING),
        runs=rounds.run_with_user_time,
        group=NAME,
        settle=0.3,
        everywhere=True,
    ),
    Task(
        _short(32, "fleet-requests-32", "short requests, 32 clients, three pools with health checks and queues"),
        (
            within(CPU, 20e-6),
            at_most(CPU, 1, "nginx"),
            at_most(CPU, 0.333, "vllm-router"),
            at_most(CPU, 0.2, "smg"),
            without_errors(),
        ),
        direct=False,
        peers=(FULL, FleetHaproxy(), FleetNginx(), FleetVllmRouter(), FleetSmg()),
        group=NAME,
        settle=0.3,
        everywhere=True,
    ),
    queue_task(WAITING),
    Task(
        Workload(
            "arrivals",
            "fleet-down-32",
            streams=64,
            arrivals=1000,
            about=f"1,000 short requests/s, open loop, {DOWN} backends down and 1 up",
            request=_asked(300),
        ),
        (at_most("ttft_p99", 1.2, "one-up"), without_errors()),
        seconds=3.0,
        direct=False,
        peers=DOWN_PEERS,
        group=NAME,
        settle=0.3,
        everywhere=True,
    ),
)
