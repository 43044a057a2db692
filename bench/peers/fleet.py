"""Peers as the workloads of a fleet run them: several pools, and a request says which one it is for.

Ours reads the model in the body. nginx and HAProxy cannot, so their requests say it in a field, X-Model, too. The routers are told of
their workers when they listen, each with its model.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .base import Command
from .haproxy import Haproxy
from .llmpipe import Llmpipe
from .nginx import Nginx
from .smg import Smg
from .vllm_router import VllmRouter

FIRST = "bench"
"""The model of the first pool: what `start` asks for, to see whether a peer answers."""
ASKED = "bench-2"
"""The model of the second one, which the load asks for."""
MODELS = (FIRST, ASKED, "bench-3")
PLACES = 1000
"""Requests that a backend works on at a time, where queues are on: more than there are, so nobody waits."""
READY_TIME = 30.0
"""Seconds in which a router must know its workers."""


def address(number: int) -> str:
    """One of the addresses at which the source is, on each its port."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


def quoted(value: object) -> str:
    """A TOML value: a text, a number, a switch, or a table of them."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {quoted(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@dataclass(frozen=True)
class Pool:
    """A pool of a configuration file."""

    backends: Sequence[str]
    """HOST:PORT, or HOST alone for the port of the source."""
    models: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    def toml(self, name: str, port: int) -> str:
        """Its tables."""
        lines = [f"[pools.{name}]"]
        if self.models:
            lines.append(f"models = {json.dumps(list(self.models))}")
        lines += [f"{key} = {quoted(value)}" for key, value in self.settings.items()]
        for backend in self.backends:
            url = f"http://{backend}" if ":" in backend else f"http://{backend}:{port}"
            lines += [f"[[pools.{name}.backends]]", f"url = {json.dumps(url)}"]
        return "\n".join(lines) + "\n"


class PooledLlmpipe(Llmpipe):
    """Ours, with a configuration file."""

    kin = "llmpipe"

    def __init__(self, name: str, about: str, pools: Sequence[Pool]) -> None:
        self.name = name
        self.about = f"{about}; --workers 1 --admin off --log-level warning, otherwise its defaults"
        self._pools = pools

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        path = scratch / "llmpipe.toml"
        path.write_text("\n".join(pool.toml(f"pool{i}", backend_port) for i, pool in enumerate(self._pools)))
        return Command([*self.options(), "--listen", f"127.0.0.1:{port}", "--config", str(path)])


class OnePool(Llmpipe):
    """Ours, with one backend and nothing to choose: what the others are measured beside."""

    name = "one-pool"
    kin = "llmpipe"
    about = "llmpipe serve --backend, one pool without routing; --workers 1 --admin off --log-level warning"


class FleetNginx(Nginx):
    """nginx with `map` on a field."""

    about = f"{Nginx.about}; three upstreams, chosen by a map on X-Model; no checks and no queue, as it has none"

    def configuration(self, backend_port: int) -> tuple[str, str]:
        upstreams = "".join(self.upstream(f"pool{i}", f"{address(i)}:{backend_port}") for i, _ in enumerate(MODELS))
        lines = "".join(f"        {model} pool{i};\n" for i, model in enumerate(MODELS))
        return f"{upstreams}\n    map $http_x_model $pool {{\n        default pool0;\n{lines}    }}\n", "$pool"


class FleetHaproxy(Haproxy):
    """HAProxy with `use_backend` on a field."""

    about = (
        "one thread, http-reuse always, time-outs of an hour, no logs; three backends, chosen by use_backend on X-Model, each "
        f"checked by GET /health, at most {PLACES} requests at a server and a queue behind it"
    )

    def routing(self, backend_port: int) -> str:
        uses = "".join(f"    use_backend pool{i} if {{ hdr(x-model) -m str {m} }}\n" for i, m in enumerate(MODELS))
        backends = "".join(
            f"\nbackend pool{i}\n    timeout queue 30s\n    option httpchk GET /health\n"
            f"    server backend {address(i)}:{backend_port} check inter 5s maxconn {PLACES}\n"
            for i, _ in enumerate(MODELS)
        )
        return f"{uses}    default_backend pool0\n{backends}"


def register(port: int, backend_port: int) -> None:
    """Tells a router of one worker for each model, and waits until it has them.

    Raises:
        OSError: it does not take them.
    """
    for i, model in enumerate(MODELS):
        worker = {"url": f"http://{address(i)}:{backend_port}", "model_id": model, "models": [{"id": model}]}
        status, _ = _ask("POST", port, json.dumps(worker))
        if status not in (200, 201, 202):
            raise OSError(f"POST /workers was answered {status}")
    end = time.monotonic() + READY_TIME
    while time.monotonic() < end:
        _, found = _ask("GET", port)
        if sum(bool(worker.get("is_healthy")) for worker in json.loads(found)["workers"]) == len(MODELS):
            return
        time.sleep(0.1)
    raise OSError(f"it does not know its workers after {READY_TIME:g} s")


def _ask(method: str, port: int, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIME)
    try:
        connection.request(method, "/workers", body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class FleetVllmRouter(VllmRouter):
    """vLLM's router with three workers, each with a model."""

    about = (
        f"--enable-igw, three workers, each with a model_id, policy round_robin, health checks and circuit breaker as by default, "
        f"at most {PLACES} requests at a time and a queue of 256; it answers for a model that no worker has, too"
    )

    def arguments(self, backend_port: int) -> list[str]:
        return ["--enable-igw", "--max-concurrent-requests", str(PLACES), "--queue-size", "256"]

    def listening(self, port: int, backend_port: int) -> None:
        register(port, backend_port)


class FleetSmg(Smg):
    """Shepherd with three workers, each with a model."""

    about = (
        "--enable-igw, three workers, each with a model, policy round_robin, health checks and circuit breaker as by default, "
        f"at most {PLACES} requests at a time and a queue of 256"
    )

    def arguments(self, backend_port: int) -> list[str]:
        return ["--enable-igw", "--max-concurrent-requests", str(PLACES), "--queue-size", "256"]

    def listening(self, port: int, backend_port: int) -> None:
        register(port, backend_port)
