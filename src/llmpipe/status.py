"""What /status shows: pools, backends with their state, and whether the last reload failed (rule S1). No credential is among it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from llmpipe import __version__

if TYPE_CHECKING:
    from llmpipe._pipe import BackendStats
    from llmpipe.config import Backend, Pool, Settings
    from llmpipe.fleet import Server
    from llmpipe.history import History
    from llmpipe.runner import Runner

STATES = ("up", "down", "draining", "drained", "unresolved")
"""Of a server: others are asked in the place of one that is down, because it failed or its health checks do, if there are any. One
that drains gets no new exchange, and has some in flight; a drained one has none. A drain counts more than a failure. A backend
whose name has no address has no server: it is unresolved itself, or drained."""

STARTED = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
"""When this process was started, about."""


def backend_state(counters: BackendStats) -> str:
    """One of STATES."""
    if counters["drained"]:
        return "draining" if counters["in_flight"] else "drained"
    return "down" if counters["out"] else "up"


def common_state(counters: Sequence[BackendStats], *, drained: bool) -> str:
    """One of STATES for the servers of a backend together.

    Args:
        counters: of each; none for a backend that has no server.
        drained: whether the backend is drained with all servers that it will have.
    """
    if not counters:
        return "drained" if drained else "unresolved"
    states = {backend_state(found) for found in counters}
    return next(state for state in ("up", "down", "draining", "drained") if state in states)


def make(
    settings: Settings, runner: Runner, history: History, not_ready: str | None, faults: Sequence[str]
) -> dict[str, Any]:
    """Args:
    settings: of the table that was handed out last.
    runner: has the counters.
    history: knows what changed of late.
    not_ready: why no new request should come here, None for no reason.
    faults: of the last reload.
    """
    snapshots = runner.stats()
    recent = history.recent
    servers: dict[str, list[tuple[int, Server]]] = {}
    for number, server in runner.fleet.numbered():
        servers.setdefault(server.backend.name, []).append((number, server))

    def row(
        backend: Backend, name: str, state: str, number: int | None, known: Sequence[BackendStats]
    ) -> dict[str, Any]:
        ages = [counter["content_age"] for counter in known if counter["content_age"] is not None]
        return {
            "name": name,
            "url": backend.url,
            "weight": backend.weight,
            "tier": backend.tier,
            "usable": state == "up",
            "state": state,
            "in_flight": sum(counter["in_flight"] for counter in known[:1]),
            "idle_connections": sum(counter["idle"] for counter in known),
            "exchanges": sum(counter["exchanges"] for counter in known),
            "failures": sum(counter["failures"] for counter in known),
            "seconds_since_content": round(min(ages), 3) if ages else None,
            **recent.backend(number),
        }

    def rows(backend: Backend) -> Iterator[dict[str, Any]]:
        """One for each server, or one for a backend that has none."""
        error = runner.fleet.unresolved.get(backend.name)
        if error is not None:
            state = common_state((), drained=runner.is_drained(backend.name))
            yield {**row(backend, backend.name, state, None, ()), "error": error}
        for number, server in servers.get(backend.name, ()):
            why = sorted(runner.causes.get(server.name, ())) or ["failures"]
            known = [stats["backends"][number] for stats in snapshots if number in stats["backends"]]
            if server.backend == backend and known:
                state = backend_state(known[0])
                yield {**row(backend, server.name, state, number, known), **({"why": why} if known[0]["out"] else {})}

    def queue(pool: Pool) -> dict[str, Any]:
        known = snapshots[0]["pools"].get(pool.name.encode())
        made: dict[str, Any] = {"size": pool.settings.queue_size}
        if known:
            made |= {"waiting": known["waiting"], "full": known["full"], "late": known["late"]}
        return made

    return {
        "version": __version__,
        "pid": os.getpid(),
        "started": STARTED,
        "ready": not_ready is None,
        "reason": not_ready,
        "clients": runner.clients(),
        "streams": sum(stats["streaming_active"] for stats in snapshots),
        **recent.totals(),
        "default_pool": settings.default_pool or None,
        "pools": [
            {
                "name": pool.name,
                "models": list(pool.models),
                "aliases": pool.aliases,
                "queue": queue(pool),
                "backends": [row for backend in pool.settings.backends for row in rows(backend)],
            }
            for pool in settings.all_pools
        ],
        "failures": history.failures(),
        "reload_faults": list(faults),
    }
