"""What the runner makes of the engines' records: lists of the exchanges that go on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from engines import Engines
from harness import wait_until

from llmpipe import runner
from llmpipe.config import Settings
from llmpipe.fleet import Fleet
from llmpipe.record_kinds import ExchangeEnded, ExchangeLive, LiveEnd, Record, Tape
from llmpipe.runner import Runner

LONG = 30.0
SHORT = 0.1


def exchange(number: int) -> ExchangeEnded:
    plain = dict.fromkeys(ExchangeEnded._fields, 0) | {"duration": float(number), "request_id": b"%d" % number}
    return ExchangeEnded(**plain)


class Told:
    """An engine that tells what a test wants."""

    def __init__(self, *_: object) -> None:
        self.records_fd = socket.socket()
        self.lists: list[int] = []
        """Numbers of the lists that were asked for."""
        self.records: list[Record] = []
        self.tapes: list[Tape] = []

    def list_live(self, number: int) -> None:
        self.lists.append(number)

    def tell(self, which: int, *numbers: int) -> None:
        """Tells the whole of a list: the first, or a later one."""
        number = self.lists[which]
        self.records += [ExchangeLive(exchange(found), number) for found in numbers]
        self.records.append(LiveEnd(0.0, number))

    def take_records(self) -> list[Record]:
        found, self.records = self.records, []
        return found

    def take_tapes(self) -> list[Tape]:
        found, self.tapes = self.tapes, []
        return found

    def close(self) -> None:
        self.records_fd.close()


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
