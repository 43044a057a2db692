"""What clients may expect while a backend is well: the rules that are read from a run's trace (tests/probe/trace.pxi).

A backend is well while its addresses connect and answer, or some of them only do not connect; whoever has nothing else against
it must be served by it (rule E1). What a server did before its answer was whole, or what a script told an upstream by hand,
takes it out: nothing is asked of a backend that is not well.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from llmpipe.record_kinds import BackendDown, ExchangeEnded

FIRST_RETRIES = 10  # of the retry budget, before any exchange has ended
SHORTEST = 0.1  # s: of a time-out that a backend which answers at once always keeps
CLOCK = 100  # us: a turn of the engine reads the clock once, and a record's age is told in seconds

OURS = {"upstream_error", "connect_error", "no_backend", "timeout_connect", "timeout_ttft", "timeout_idle"}
"""Outcomes of exchanges that got a 502, 503 or 504 of ours because no backend served them."""
NUMBER = re.compile(rb"/q-([0-9a-f]{4})-")

Note = tuple[int, str, int, int, bool]
"""When, what, who, n, and whether bytes came back to the request (tests/probe/trace.pxi)."""


class Fleet:
    """What a run's trace says of the backends over time."""

    def __init__(self, world: ModuleType, trace: list[Note]) -> None:
        self._connects = world.CONNECTS
        self._trace = trace

    def routes(self, begun: int, ended: int) -> dict[int, set[int]]:
        """The servers of each backend that was the same in every table between two times, by slot.

        One whose addresses changed meanwhile, or only their order, is not asked for: an exchange counts those that it has tried.
        """
        tables: list[list[int]] = []
        for at, what, _, n, _ in self._trace:
            if at > ended:
                break
            if what == "table":
                if at + CLOCK <= begun:
                    tables.clear()
                tables.append([])
            elif what == "route":
                tables[-1].append(n)
        return {
            slot: {server for server in range(16) if n >> server & 1}
            for slot, n in enumerate(tables[0])
            if all(slot < len(table) and table[slot] == n for table in tables)
        }

    def tables(self, begun: int, ended: int) -> list[int]:
        """The tables between two times, each the mask of its servers."""
        masks: list[int] = []
        for at, what, _, n, _ in self._trace:
            if at > ended:
                break
            if what == "table":
                if at + CLOCK <= begun:
                    masks.clear()
                masks.append(n)
        return masks

    def servers(self, begun: int, ended: int) -> set[int]:
        """All servers of the tables between two times."""
        return {server for mask in self.tables(begun, ended) for server in range(16) if mask >> server & 1}

    def states(self, server: int, begun: int, ended: int) -> set[str]:
        """What a server was between two times: "well", "slow" (its connects hang), "away" (they are refused), "spoilt"."""
        connects, answers, spoilt = "well", False, False
        seen: set[str] = set()
        for at, what, who, n, _ in [*self._trace, (1 << 62, "", server, 0, False)]:
            if who != server:
                continue
            if at + CLOCK > begun:
                seen.add("spoilt" if spoilt else connects if connects != "well" or answers else "spoilt")
            if at > ended:
                break
            if what == "connects":
                connects = {"hangs": "slow", "refused_soon": "away", "refused_now": "away"}.get(
                    self._connects[n], "well"
                )
            elif what == "answers":
                answers = bool(n)
            elif what == "spoilt":
                spoilt = True
        return seen

    def is_well(self, servers: set[int], begun: int, ended: int) -> bool:
        """Whether one of a backend's servers was well all the time, and the others did nothing worse than not to connect."""
        states = [self.states(server, begun, ended) for server in servers]
        return {"well"} in states and not any("spoilt" in state for state in states)

    def tries(self, number: int) -> list[Note]:
        """The notes of a request that began to reach a server, or reached it whole."""
        return [note for note in self._trace if note[1] in ("begun", "sent") and note[3] == number]


def microseconds(seconds: float) -> int:
    """A time of the settings; one that is off is longer than any run."""
    return round(seconds * 1e6) or 1 << 60


def check_liveness(world: ModuleType, run: dict[str, Any]) -> None:
    """Whether everybody was served that could be, and nobody was left out who answers."""
    if run["injected"]:
        return  # a call that failed is no backend's doing, but the engine cannot know that
    if any(
        0 < getattr(run["settings"], name) < SHORTEST for name in ("connect_timeout", "ttft_timeout", "idle_timeout")
    ):
        return  # nobody is well in so short a time
    fleet = Fleet(world, run["trace"])
    records = list(zip(run["records"], run["ended"], strict=True))
    exchanges = [(record, ended) for record, ended in records if isinstance(record, ExchangeEnded)]
    for record, ended in exchanges:
        number = NUMBER.search(record.target)
        outcome = world.OUTCOMES[record.outcome]
        if outcome in OURS and record.status in (502, 503, 504) and number:
            check_served(fleet, run, record, int(number[1], 16), ended)
            if outcome == "connect_error":
                check_refused(fleet, run, record, ended)
    asked = min((ended - round(record.duration * 1e6) for record, ended in exchanges), default=0)
    for record, ended in records:
        if isinstance(record, BackendDown):
            servers = fleet.routes(asked, ended).get(record.backend)
            assert not servers or not fleet.is_well(servers, asked, ended), (
                f"backend {record.backend} answers, and is left out"
            )


def check_served(fleet: Fleet, run: dict[str, Any], record: ExchangeEnded, number: int, ended: int) -> None:
    """Whether an exchange that ended with an error of ours had to."""
    duration, bytes_up = round(record.duration * 1e6), record.bytes_up
    begun = ended - duration
    tries = fleet.tries(number)
    if sum(what == "sent" for _, what, *_ in tries) >= 2 or any(answered for *_, answered in tries):
        return  # it may not be sent again
    if duration >= microseconds(run["settings"].ttft_timeout) - CLOCK:
        return  # its time was over
    if bytes_up > run["settings"].failover_body:
        return  # it could not be sent again
    if sum(run["stats"]["retries"]) >= FIRST_RETRIES - 1:
        return  # the budget may have been empty
    for servers in fleet.routes(begun, ended).values():
        assert not fleet.is_well(servers, begun, ended), (
            f"request {number:04x} got {record.status}, and the backend at {sorted(servers)} is well"
        )


def check_refused(fleet: Fleet, run: dict[str, Any], record: ExchangeEnded, ended: int) -> None:
    """Whether a client that was told that no backend could be connected was told so because one refused, or in due time."""
    begun = ended - round(record.duration * 1e6)
    if len(fleet.tables(begun, ended)) > 1:
        return  # what it waited for may be in the table no more
    servers = fleet.servers(begun, ended)
    if servers and all(fleet.states(server, begun, ended) <= {"well", "slow"} for server in servers):
        limit = microseconds(run["settings"].connect_timeout)
        assert ended - begun >= limit - CLOCK, "nobody refused a connect, and it was given up before its time"
