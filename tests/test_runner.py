"""What the runner makes of the engines' records: it takes them for ever, knows what they name, and lists the exchanges that go on."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from engines import Engines
from harness import wait_until

from llmpipe import runner
from llmpipe.config import PoolSettings, Settings, parse_backend
from llmpipe.fleet import Fleet
from llmpipe.record_kinds import BackendDown, ExchangeEnded, ExchangeLive, LiveEnd, Record, Tape
from llmpipe.resolve import Names, Resolver
from llmpipe.runner import Runner

LONG = 30.0
SHORT = 0.1


def exchange(number: int) -> ExchangeEnded:
    plain = dict.fromkeys(ExchangeEnded._fields, 0) | {"duration": float(number), "request_id": b"%d" % number}
    return ExchangeEnded(**plain)


class Told:
    """An engine that tells what a test wants."""

    def __init__(self, *_: object) -> None:
        self.records_fd, self._other_end = socket.socketpair()
        self.lists: list[int] = []
        """Numbers of the lists that were asked for."""
        self.records: list[Record] = []
        self.tapes: list[Tape] = []
        self.failure: Exception | None = None
        """What the next look at its records, or the next table, ends with."""
        self._stopped = threading.Event()

    def run(self) -> None:
        self._stopped.wait(LONG)

    def stop(self) -> None:
        self._stopped.set()

    def _fail(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def configure(self, table: list[tuple[Any, ...]], routing: object) -> list[int]:
        self._fail()
        return [int(authority.rpartition(b":")[2]) for _, authority, *_ in table]

    def mark_drained(self, number: int, drained: bool) -> None:
        pass

    def list_live(self, number: int) -> None:
        self.lists.append(number)

    def tell(self, which: int, *numbers: int) -> None:
        """Tells the whole of a list: the first, or a later one."""
        number = self.lists[which]
        self.records += [ExchangeLive(exchange(found), number) for found in numbers]
        self.records.append(LiveEnd(0.0, number))

    def take_records(self) -> list[Record]:
        self._fail()
        found, self.records = self.records, []
        return found

    def take_tapes(self) -> list[Tape]:
        found, self.tapes = self.tapes, []
        return found

    def close(self) -> None:
        self.stop()
        self.records_fd.close()
        self._other_end.close()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Runner, list[Told]]]]:
    """Makes a runner of two engines that tell what a test wants, in the loop that runs."""
    monkeypatch.setattr(runner, "Engine", Told)
    made: list[Told] = []

    def make(on_record: Callable[[Record], None] = print, on_tape: Callable[[Tape], None] = print) -> Any:
        found = Runner(2, Settings(), Fleet(), on_record, on_tape)
        engines: Any = found.engines
        made.extend(engines)
        return found, engines

    yield make
    for engine in made:
        engine.close()


def numbers(found: list[ExchangeEnded]) -> list[int]:
    return [int(record.request_id) for record in found]


async def asked(engines: list[Told], times: int) -> None:
    """Waits until each engine was asked for so many lists."""
    while any(len(engine.lists) < times for engine in engines):
        await asyncio.sleep(0)


def test_what_an_engine_tells_late_is_of_no_later_list(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its exchanges, which would be there twice, nor its end, with which the list would be whole too early."""

    async def run() -> None:
        made, engines = make()
        first, second = engines
        monkeypatch.setattr(runner, "LIVE_TIME", SHORT)
        cut = asyncio.create_task(made.live())
        await asked(engines, 1)
        first.tell(0, 1)
        made.take_records()
        assert numbers(await cut) == [1]
        monkeypatch.setattr(runner, "LIVE_TIME", LONG)
        whole = asyncio.create_task(made.live())
        await asked(engines, 2)
        second.tell(0, 2, 3)
        first.tell(1, 1)
        made.take_records()
        await asyncio.sleep(SHORT)
        assert not whole.done()
        second.tell(1, 2, 3)
        made.take_records()
        assert numbers(await whole) == [1, 2, 3]

    asyncio.run(asyncio.wait_for(run(), LONG))


def test_who_asks_while_a_list_is_made_gets_that_one(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what is told by then of the next one, nor less where the other one waits no more."""

    async def run() -> None:
        made, engines = make()
        monkeypatch.setattr(runner, "LIVE_TIME", SHORT)
        one, gone = (asyncio.create_task(made.live()) for _ in range(2))
        await asyncio.sleep(SHORT / 2)
        another = asyncio.create_task(made.live())
        gone.cancel()
        engines[0].tell(0, 1)
        made.take_records()
        assert numbers(await one) == [1]
        assert gone.cancelled()
        following = asyncio.create_task(made.live())
        await asked(engines, 2)
        engines[0].tell(1, 2)
        engines[1].tell(1, 3)
        made.take_records()
        assert (numbers(await another), numbers(await following)) == ([1], [2, 3])
        assert engines[0].lists == engines[1].lists
        assert len(set(engines[0].lists)) == 2

    asyncio.run(asyncio.wait_for(run(), LONG))


def test_what_an_engine_tells_has_the_number_of_its_list() -> None:
    """Of the last one where several are asked for at once; and one that is told is not told again."""
    engines = Engines(2)

    def told() -> list[tuple[int, int]]:
        engines.rest()
        ends = [record.number for record in engines.take() if isinstance(record, LiveEnd)]
        live = [record.number for record in engines.records if isinstance(record, ExchangeLive)]
        engines.records.clear()
        return [(number, live.count(number)) for number in ends]

    try:
        with ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(socket.create_connection(engines.address, timeout=10))
                client.sendall(b"GET / HTTP/1.1\r\nHost:")
            wait_until(lambda: sum(engine.clients for engine in engines.engines) == 4)
            engines.rest()
            for number in (7, 8):
                for engine in engines.engines:
                    engine.list_live(number)
                assert told() == [(number, 4)] * 2
            for engine in engines.engines:
                engine.configure([])  # which wakes it
            assert told() == []
    finally:
        engines.close()


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.01)


def down(number: int) -> BackendDown:
    return BackendDown(0.0, number, 1.0, 0, 0)


def tape(number: int) -> Tape:
    return Tape(exchange(number), False, 200, b"", False, None, False, ())


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Event and fields of each line about what went wrong."""
    return [(line.getMessage(), vars(line)["fields"]) for line in caplog.records if line.levelno >= logging.ERROR]


def test_one_that_cannot_be_taken_keeps_no_other_from_being_taken(make, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a record nor a tape: not those behind it, nor those of the other engine, nor those that come later."""
    records: list[int] = []
    tapes: list[int] = []

    def on_record(record: Any) -> None:
        records.append(record.backend)
        if record.backend == 1:
            raise KeyError("no name")

    def on_tape(tape: Tape) -> None:
        tapes.append(int(tape.exchange.request_id))
        if tapes[-1] == 1:
            raise ValueError("no folder")

    async def run() -> None:
        made, engines = make(on_record, on_tape)
        made.start()
        engines[0].records = [down(1), down(2)]
        engines[1].records = [down(3)]
        engines[0].tapes = [tape(1), tape(2)]
        engines[1].tapes = [tape(3)]
        await until(lambda: len(records) + len(tapes) == 6)
        assert (records, tapes) == ([1, 2, 3], [1, 2, 3])
        engines[0].records, engines[0].tapes = [down(4)], [tape(4)]
        await until(lambda: len(records) + len(tapes) == 8)
        made.stop()
        made.close()

    asyncio.run(asyncio.wait_for(run(), LONG))
    assert lines(caplog) == [
        ("record not taken", {"record": "BackendDown", "error": "KeyError('no name')"}),
        ("recording not taken", {"error": "ValueError('no folder')"}),
    ]


def test_a_look_that_fails_is_not_the_last_one(make) -> None:
    taken: list[Record] = []

    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
        made, engines = make(taken.append)
        made.start()
        engines[0].failure = failure = MemoryError()
        await until(lambda: bool(failures))
        assert failures == [failure]
        engines[0].records = [down(1)]
        await until(lambda: bool(taken))
        made.stop()
        made.close()

    asyncio.run(asyncio.wait_for(run(), LONG))


def test_a_server_is_known_as_soon_as_one_engine_may_speak_of_it(make) -> None:
    """Even where another one has no memory for the table."""
    names: list[str] = []
    backends = tuple(parse_backend(f"http://127.0.0.1:{number}") for number in (1, 2))

    async def run() -> None:
        made, engines = make(lambda record: names.append(made.fleet.name(record.backend)))
        resolver = Resolver(Names())
        await resolver.take(backends)
        made.configure(resolver, Settings(pool=PoolSettings(backends=backends[:1])))
        engines[1].failure = MemoryError()
        with pytest.raises(MemoryError):
            made.configure(resolver, Settings(pool=PoolSettings(backends=backends[:2])))
        engines[0].records = [down(2)]
        made.take_records()
        assert names == [backends[1].name]
        assert made.fleet.names == [backends[0].name], "it is not taken for one of the table"

    asyncio.run(asyncio.wait_for(run(), LONG))
