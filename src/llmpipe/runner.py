"""The engines: one thread each, their routing table, and the records that they send back.

Everything that crosses to the data plane passes here, but for the accepted descriptors, which `server` hands over.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from llmpipe import hung, log
from llmpipe._pipe import Engine
from llmpipe.errors import UsageError
from llmpipe.histogram import Counts, total
from llmpipe.model_list import Catalogue
from llmpipe.record_kinds import ExchangeLive, LiveEnd
from llmpipe.resolve import choose
from llmpipe.routing import make_routing

if TYPE_CHECKING:
    from llmpipe._pipe import Backend as EngineBackend
    from llmpipe._pipe import BackendStats, Stats
    from llmpipe.config import Settings
    from llmpipe.fleet import Fleet, Server
    from llmpipe.record_kinds import ExchangeEnded, Record, Tape
    from llmpipe.resolve import Resolver, Servers
    from llmpipe.routing import Routing

RECORD_INTERVAL = 0.1
"""Seconds between two looks at records that nobody was woken for."""

LIVE_TIME = 1.0
"""Seconds for the engines to tell which exchanges go on: one that has ended, or whose ring of records is full, does not."""


def make_table(servers: Iterable[Server]) -> list[EngineBackend]:
    """The servers as `Engine.configure` takes them."""
    return [
        (
            server.name.encode(),
            server.backend.authority.encode(),
            server.backend.host_field.encode(),
            server.addresses,
            server.backend.finish_on_abort,
            server.backend.max_in_flight,
            server.backend.prefix.encode(),
        )
        for server in servers
    ]


def try_out(settings: Settings, file: str, known: Servers) -> None:
    """Makes an engine's table of it all, and throws it away.

    Args:
        settings: what the engine is told.
        file: where they are from.
        known: has the servers.

    Raises:
        UsageError: the engine has no room for something.
    """
    engine = Engine(settings)
    try:
        servers = choose(settings, known)
        engine.configure(make_table(servers), make_routing(settings, servers))
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from None
    finally:
        engine.close()


def _is_drained(server: Server, drains: frozenset[tuple[str, str]]) -> bool:
    return any((server.backend.name, host) in drains for host in ("", *server.hosts))


class Runner:
    """Starts, feeds and ends the engines.

    All methods are called by the control plane's thread, but for `stats`, `backend_stats`, `usable_backends` and `is_drained`, which are
    the admin endpoint's too.
    """

    def __init__(
        self,
        workers: int,
        settings: Settings,
        fleet: Fleet,
        on_record: Callable[[Record], None],
        on_tape: Callable[[Tape], None],
        *,
        wake_on_abort: bool = False,
    ) -> None:
        """Args:
        workers: engine threads.
        settings: what every engine is told.
        fleet: gets the servers of each table, and their numbers.
        on_record: called with each record.
        on_tape: called with each answer that was recorded.
        wake_on_abort: whether it is called at once for a client that left, and not with the next batch.

        Raises:
            OSError: a descriptor could not be made.
        """
        self.fleet = fleet
        self.catalogue = Catalogue()
        """The models that tables list."""
        self._listing = b""
        self.causes: Mapping[str, frozenset[str]] = {}
        """Why servers are down, by name, where it was not the engines that found it."""
        self._settings = settings
        self._drains: frozenset[tuple[str, str]] = frozenset()
        """What is drained: of backends by their names, the address of a server, or all of them where it is empty."""
        self._left_out = 0
        self.engines = [Engine(settings)]
        self.engines += [Engine(settings, self.engines[0]) for _ in range(workers - 1)]
        for engine in self.engines:
            engine.wake_on_abort = wake_on_abort
        self._threads = [
            threading.Thread(target=self._run, args=(number, engine), name=f"worker-{number}", daemon=True)
            for number, engine in enumerate(self.engines)
        ]
        self._on_record = on_record
        self._on_tape = on_tape
        self._loop = asyncio.get_running_loop()
        self._records_timer: asyncio.TimerHandle | None = None
        self._listing_live: asyncio.Task[list[ExchangeEnded]] | None = None
        self._live_number = 0
        """Of the list that was asked for last: what an engine tells late, of one before, belongs to no list any more."""
        self._live_told = self._loop.create_future()
        self._live: list[ExchangeEnded] = []
        self._live_ends = 0
        self._running = 0
        self.ended = asyncio.Event()
        """Set when no engine runs any more."""
        self.failure: BaseException | None = None
        """What ended an engine that should have gone on."""

    def start(self) -> None:
        """Starts the threads; `configure` may be called before or after."""
        for engine in self.engines:
            self._loop.add_reader(engine.records_fd, self._take_records, engine)
        self._running = len(self._threads)
        for thread in self._threads:
            thread.start()
        self._take_records_for_ever()

    def _run(self, number: int, engine: Engine) -> None:
        log.debug("worker started", worker=number, thread=threading.get_native_id())
        failure: BaseException | None = None
        try:
            engine.run()
        except BaseException as error:  # nobody else would ever hear of it
            failure = error
        self._loop.call_soon_threadsafe(self._worker_ended, failure)

    def _worker_ended(self, failure: BaseException | None) -> None:
        self._running -= 1
        if failure is not None:
            log.error("worker failed", error=repr(failure))
            self.failure = failure
            self.stop()
        if self._running == 0:
            self.ended.set()

    def configure(self, resolver: Resolver, settings: Settings | None = None) -> None:
        """Hands a routing table to every engine.

        Args:
            resolver: has the servers.
            settings: the pools from now on; None for those there are.

        Raises:
            ValueError: an engine has no room for something in it.
        """
        settings = settings or self._settings
        servers = choose(settings, resolver)
        table = make_table(servers)
        listing = self.catalogue.listing(settings)
        before = {server.name for server in self.fleet.servers}
        new = {server for server in servers if server.name not in before}
        present = {(server.backend.name, host) for server in servers for host in server.hosts}
        drains = self._drains & (present | {(backend.name, "") for backend in settings.backends})
        drained = {server for server in new if _is_drained(server, drains)}
        if drained:
            # They are in no pool before they are marked: nothing begins there, not even in between.
            numbers = self._hand_out(self.engines[0], table, make_routing(settings, servers, listing, drained), servers)
            self._mark_new(numbers, servers, drained, drained=True)
        routing = make_routing(settings, servers, listing)
        for engine in self.engines:
            numbers = self._hand_out(engine, table, routing, servers)  # which all engines give alike
        # One that comes back may do so before its last exchange of then has ended.
        self._mark_new(numbers, servers, new - drained, drained=False)
        backed = {server.backend for server in servers}
        unresolved = {found.name: resolver.error(found) for found in settings.backends if found not in backed}
        self.fleet.number(numbers, servers, unresolved)
        self._settings = settings
        self._listing = listing
        self._drains = drains
        left_out = sum(len(resolver.servers(backend)) for backend in settings.backends) - len(servers)
        if left_out and left_out != self._left_out:
            log.warning("servers left out", used=len(servers), left_out=left_out)
        self._left_out = left_out

    def _hand_out(
        self, engine: Engine, table: list[EngineBackend], routing: Routing, servers: list[Server]
    ) -> list[int]:
        numbers = engine.configure(table, routing)
        # Its records may name them from now on, even where another engine has no memory for the table.
        self.fleet.know(numbers, servers)
        return numbers

    def _mark_new(self, numbers: list[int], servers: list[Server], those: set[Server], *, drained: bool) -> None:
        for number, server in zip(numbers, servers, strict=True):
            if server in those:
                self.engines[0].mark_drained(number, drained)

    def listing_is_old(self) -> bool:
        """Whether the table that was handed out last has another list of models than it would have now."""
        return self.catalogue.listing(self._settings) != self._listing

    def wake_on_abort(self) -> None:
        """Calls at once for each client that leaves, from now on. It is not taken back: exchanges of an old table may last long."""
        for engine in self.engines:
            engine.wake_on_abort = True

    def drain(self) -> None:
        """Lets live exchanges finish; `ended` is set after the last one."""
        for engine in self.engines:
            engine.drain()

    def stop(self) -> None:
        """Ends every exchange now."""
        for engine in self.engines:
            engine.stop()

    def stats(self) -> list[Stats]:
        """A snapshot of each engine's counters."""
        return [engine.stats() for engine in self.engines]

    def clients(self) -> int:
        """Open client connections."""
        return sum(engine.clients for engine in self.engines)

    def usable_backends(self) -> int:
        """Servers that are neither left out nor drained. One that only seems to hang counts: it may go on at any moment."""
        stats = self.engines[0].stats()["backends"]
        seems_hung = {
            number
            for number, server in self.fleet.numbered()
            if self.causes.get(server.name) == frozenset((hung.CAUSE,))
        }
        return sum(
            not backend["drained"] and (not backend["out"] or number in seems_hung) for number, backend in stats.items()
        )

    def backend_stats(self, name: str) -> list[BackendStats]:
        """Counters of the servers of a backend, or of one server, of which those that all engines share are the process's.

        Raises:
            KeyError: there is nothing of that name.
        """
        numbered = self.fleet.named(name)
        known = self.engines[0].stats()["backends"]
        found = [known[number] for number, _ in numbered if number in known]
        if numbered and not found:  # they have just left the table
            raise KeyError(name)
        return found

    def mark_drained(self, name: str, drained: bool) -> bool:
        """Notes whether a backend is drained, for as long as tables name it: whatever servers it has and will have; or one of its
        servers. Whether that is new.

        Raises:
            KeyError: there is nothing of that name.
        """
        found = self.fleet.named(name)
        one = next((server for _, server in found if server.backend.name != name), None)
        if one is not None:
            those = {(one.backend.name, host) for host in one.hosts}
        elif drained:
            those = {(name, "")}
        else:
            those = {drain for drain in self._drains if drain[0] == name}
        before = self._drains
        self._drains = before | those if drained else before - those
        marked = [self.engines[0].mark_drained(number, drained) for number, _ in found]
        return any(marked) or (not found and self._drains != before)

    def is_drained(self, name: str) -> bool:
        """Whether a backend is drained with all servers that it will have."""
        return (name, "") in self._drains

    def mark(self, name: str, cause: str, down: bool) -> None:
        """Notes that a server is down for some cause, or is no more; it is down as long as there is one."""
        causes = self.causes.get(name, frozenset())
        causes = causes | {cause} if down else causes - {cause}
        self.causes = {
            **{other: found for other, found in self.causes.items() if other != name},
            **({name: causes} if causes else {}),
        }
        number = self.fleet.number_of(name)
        if number is not None:
            self.engines[0].mark(number, bool(causes))

    def flows(self) -> dict[str, tuple[int, float]]:
        """By the name of a server from which content came: (event streams that have had content and wait for it alone, seconds since
        content came from it)."""
        found: dict[int, tuple[int, float]] = {}
        for engine in self.engines:
            for number, (streams, age) in engine.flows().items():
                others, least = found.get(number, (0, math.inf))
                found[number] = (others + streams, min(least, age))
        return {server.name: found[number] for number, server in self.fleet.numbered() if number in found}

    def latencies(self) -> dict[int, tuple[Counts, Counts]]:
        """By the number of a backend: counts of the times to the first token, and of the gaps between events, of all engines since the
        start; the buckets are those of EDGES."""
        engines = [engine.latencies() for engine in self.engines]
        numbers = {number for found in engines for number in found}
        parts = {number: [found[number] for found in engines if number in found] for number in numbers}
        return {
            number: (total(ttft for ttft, _ in found), total(itl for _, itl in found))
            for number, found in parts.items()
        }

    async def live(self) -> list[ExchangeEnded]:
        """Exchanges that have not ended, the newest first: records as they would be if they ended now, without an outcome. Of each engine
        2,048 at most, and none of one that does not tell within LIVE_TIME. Who asks while a list is made gets that one.
        """
        if self._listing_live is None:
            self._listing_live = self._loop.create_task(self._list_live())
        return await asyncio.shield(self._listing_live)  # it goes on for the others where one waits no more

    async def _list_live(self) -> list[ExchangeEnded]:
        self._live_number += 1
        self._live_told = self._loop.create_future()
        self._live = []
        self._live_ends = 0
        try:
            for engine in self.engines:
                engine.list_live(self._live_number)
            await asyncio.wait((self._live_told,), timeout=LIVE_TIME)
            return sorted(self._live, key=lambda record: record.duration)
        finally:
            self._listing_live = None

    def _take_live(self, record: ExchangeLive | LiveEnd) -> None:
        if record.number != self._live_number:
            return
        if isinstance(record, ExchangeLive):
            self._live.append(record.exchange)
            return
        self._live_ends += 1
        if self._live_ends == len(self.engines) and not self._live_told.done():
            self._live_told.set_result(None)

    def content_age(self, name: str) -> float:
        """Seconds since a byte of content came from a server; infinite for never."""
        number = self.fleet.number_of(name)
        if number is None:
            return math.inf
        ages = [stats["backends"][number]["content_age"] for stats in self.stats()]
        return min((age for age in ages if age is not None), default=math.inf)

    def _take_records(self, engine: Engine) -> None:
        for record in engine.take_records():
            self._take_record(record)

    def _take_record(self, record: Record) -> None:
        try:
            if isinstance(record, ExchangeLive | LiveEnd):
                self._take_live(record)
            else:
                self._on_record(record)
        except Exception as error:  # else those behind it would be lost
            log.error("record not taken", record=type(record).__name__, error=repr(error))

    def take_records(self) -> None:
        """Takes the records that nobody was woken for, and what was recorded."""
        for engine in self.engines:
            self._take_records(engine)
        self.take_tapes()

    def take_tapes(self) -> None:
        """Takes what was recorded and has ended."""
        for engine in self.engines:
            for tape in engine.take_tapes():
                self._take_tape(tape)

    def _take_tape(self, tape: Tape) -> None:
        try:
            self._on_tape(tape)
        except Exception as error:  # likewise
            log.error("recording not taken", error=repr(error))

    def tapes_dropped(self) -> int:
        """Answers that were chosen and not recorded, because there was no room. May be called by any thread."""
        return self.engines[0].tapes_dropped

    def record_next(self, count: int, *, request_bodies: bool = False) -> None:
        """Has the next answers recorded, whichever engines they pass (`Engine.record_next`)."""
        self.engines[0].record_next(count, request_bodies=request_bodies)

    def record_share(self, share: float, size: int, *, request_bodies: bool = False) -> None:
        """Has a share of all answers recorded, likewise (`Engine.record_share`)."""
        self.engines[0].record_share(share, size, request_bodies=request_bodies)

    def _take_records_for_ever(self) -> None:
        try:
            self.take_records()
        finally:
            self._records_timer = self._loop.call_later(RECORD_INTERVAL, self._take_records_for_ever)

    def close(self) -> None:
        """Takes the last records and tapes, and frees the engines, which must have ended."""
        if self._records_timer is not None:
            self._records_timer.cancel()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()
        self.take_records()
        for engine in self.engines:
            self._loop.remove_reader(engine.records_fd)
            engine.close()
