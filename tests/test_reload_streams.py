"""Rule I4 at size: a thousand streams live through reloads that change everything a file can change, while new requests come.

The servers and the clients are asyncio programs in a thread of the test's own process. What a stream looks like on the wire follows
from its number alone, so a byte that is lost, doubled, or of another stream is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import names
import pytest
from harness import LAST_CHUNK, Proxy, chunk, free_port, open_descriptors, sse_head, wait_until

STREAMS = 1000
LONG = 120.0
"""Seconds for what takes a moment where nothing else runs."""
TICK = 1.0
"""Seconds between two events of a stream, at least."""
REPLACED = 20
"""Streams that end at each step, and begin anew on the connection that they had."""
MODELS = ("small", "medium", "large")
SERVERS = ("s0", "s1", "s2", "s3", "s4", "s5")
MANY = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""What the name many.test can mean."""


def event(stream: int, number: int) -> bytes:
    return chunk(b"data: %d of %d\n\n" % (number, stream))


def end(stream: int, number: int) -> bytes:
    return chunk(b"data: end of %d behind %d\n\n" % (stream, number)) + LAST_CHUNK


def post(model: str, *fields: bytes) -> bytes:
    body = json.dumps({"messages": [], "model": model}).encode()
    lines = (b"POST /v1/chat/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", *fields)
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


class Served(asyncio.Protocol):
    """A connection of the proxy to a server: small answers, and streams that go on until they are told to end."""

    def __init__(self, world: World, server: str) -> None:
        self._world = world
        self._server = server
        self._buffer = b""
        self._stream: int | None = None
        self._leaves = False
        self._sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields.get(b"content-length", b"0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(fields, rest[:length])

    def _answer(self, fields: Mapping[bytes, bytes], body: bytes) -> None:
        if self._stream is not None:
            self._world.faults.append(f"a request inside of stream {self._stream}")
        if body:
            self._world.asked[self._server] += 1
            assert json.loads(body)["model"] in MODELS
        if b"x-stream" not in fields:
            answer = fields.get(b"x-ask", b"well")
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            return
        self._stream = int(fields[b"x-stream"])
        self._leaves = b"x-leaves" in fields
        self._world.serving[self._stream] = self
        self._world.live[self._server] += 1
        self._sent = 0
        self._transport.write(sse_head())
        self.send_event()

    def send_event(self) -> None:
        assert self._stream is not None
        self._transport.write(event(self._stream, self._sent))
        self._sent += 1

    def send_end(self) -> None:
        assert self._stream is not None
        self._transport.write(end(self._stream, self._sent))
        self._world.sent[self._stream] = self._sent
        self._forget()

    def connection_lost(self, error: Exception | None) -> None:
        if self._stream is not None:
            if not self._leaves:
                self._world.faults.append(f"the proxy left stream {self._stream} of {self._server}: {error!r}")
            self._forget()

    def _forget(self) -> None:
        assert self._stream is not None
        del self._world.serving[self._stream]
        self._world.live[self._server] -= 1
        self._stream = None


class Streaming(asyncio.Protocol):
    """A client with one stream after the other."""

    def __init__(self, world: World) -> None:
        self._world = world

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.begin()

    def begin(self) -> None:
        self._number, model = self._world.next_stream()
        self._buffer = bytearray()
        self._ended = self._has_begun = False
        self._transport.write(post(model, b"X-Stream: %d" % self._number))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._has_begun and b"\n\n" in self._buffer:
            self._has_begun = True
            self._world.begun.add(self._number)
        if not self._buffer.endswith(b"\r\n" + LAST_CHUNK):
            return
        head, _, body = bytes(self._buffer).partition(b"\r\n\r\n")
        sent = self._world.sent.pop(self._number, 0)
        expected = b"".join(event(self._number, at) for at in range(sent)) + end(self._number, sent)
        if not head.startswith(b"HTTP/1.1 200 ") or body != expected:
            self._world.faults.append(f"stream {self._number}: {head!r} {body[-300:]!r}")
        self._ended = True
        self._world.begun.discard(self._number)
        self._world.whole += 1
        if self._world.ending:
            self._transport.close()
        else:
            self.begin()

    def connection_lost(self, error: Exception | None) -> None:
        self._world.left += 1
        if not self._ended:
            self._world.faults.append(f"stream {self._number} was cut: {error!r} {bytes(self._buffer[-300:])!r}")


class World:
    """All servers and clients, and what they have seen. But for what is only read, it belongs to the loop of its thread."""

    def __init__(self, many_port: int) -> None:
        self.many_port = many_port
        self.url: dict[str, str] = {"many": f"http://many.test:{many_port}"}
        self.faults: list[str] = []
        """What nobody wants to see."""
        self.serving: dict[int, Served] = {}
        self.live: Counter[str] = Counter()
        """Streams of each server."""
        self.asked: Counter[str] = Counter()
        """Requests that each server got."""
        self.sent: dict[int, int] = {}
        """Events of streams that have ended."""
        self.begun: set[int] = set()
        """Streams of which an event has arrived, and no end."""
        self.whole = self.answers = self.leaves = self.left = 0
        self.ending = self.stopping = False
        self._numbers = 0
        self._random = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    def next_stream(self) -> tuple[int, str]:
        self._numbers += 1
        return self._numbers, self._random.choice(MODELS)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(LONG)

    def __enter__(self) -> World:
        self._thread.start()
        self.run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG)
        self._loop.close()

    async def _listen(self) -> None:
        places = [(name, "127.0.0.1", 0) for name in SERVERS] + [(host, host, self.many_port) for host in MANY]
        self._servers = []
        for name, host, port in places:

            def make(name: str = name) -> Served:
                return Served(self, name)

            server = await self._loop.create_server(make, host, port, backlog=4096)
            self._servers.append(server)
            self.url.setdefault(name, "http://{}:{}".format(*server.sockets[0].getsockname()))
        self._tasks.append(self._loop.create_task(self._tick()))

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()

    async def _tick(self) -> None:
        """An event for each stream, some at a time."""
        while True:
            numbers = list(self.serving)
            for at in range(20):
                for number in numbers[at::20]:
                    if number in self.serving:
                        self.serving[number].send_event()
                await asyncio.sleep(TICK / 20)

    async def connect(self, port: int, count: int) -> None:
        """Starts so many streams."""
        for _ in range(count):
            await self._loop.create_connection(lambda: Streaming(self), "127.0.0.1", port)

    async def work(self, port: int) -> None:
        """Starts those who ask for small answers, and those who leave."""
        works = [self._ask(port, number) for number in range(8)] + [self._leave(port, number) for number in range(2)]
        self._tasks += [self._loop.create_task(self._watched(work)) for work in works]

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.faults.append(repr(error))

    async def _ask(self, port: int, who: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = 0
        while not self.stopping:
            asked += 1
            mark = b"%d-%d" % (who, asked)
            writer.write(post(self._random.choice(MODELS), b"X-Ask: " + mark))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            assert b"\r\nContent-Length: %d\r\n" % len(mark) in head
            assert await reader.readexactly(len(mark)) == mark
            self.answers += 1
            await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()

    async def _leave(self, port: int, who: int) -> None:
        while not self.stopping:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            number, model = self.next_stream()
            writer.write(post(model, b"X-Stream: %d" % number, b"X-Leaves: 1"))
            await reader.readuntil(b"data: 0 of %d\n\n" % number)
            if who == 0:
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.leaves += 1
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Lets those who ask and those who leave come to an end."""
        self.stopping = True
        await asyncio.gather(*self._tasks[1:])

    async def end_some(self, count: int) -> None:
        """Ends the oldest streams; their clients begin new ones."""
        for number in sorted(self.begun & self.serving.keys())[:count]:
            self.serving[number].send_end()

    async def end_all(self) -> None:
        self.ending = True
        for number in list(self.serving):
            self.serving[number].send_end()


def row(name: str, url: str, *more: str) -> str:
    """A backend."""
    return "\n".join(["[[backends]]", f'name = "{name}"', f'url = "{url}"', *more])


def pool(name: str, models: str, settings: str, *rows: str) -> str:
    """A pool that answers for these models."""
    listed = ", ".join(f'"{model}"' for model in models.split())
    made = "\n".join(rows).replace("[[backends]]", f"[[pools.{name}.backends]]")
    return f"[pools.{name}]\nmodels = [{listed}]\nupstream_idle_timeout = 1\n{settings}\n{made}\n"


CHECKED = 'policy = "least_in_flight"\nhealth = { path = "/health", interval = 0.5, timeout = 30 }'
TORN = "[pools.chat\n"
UNLIMITED = "queue = { size = 100000, timeout = 0 }"


def tables(url: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The first file and those of the reloads: how each is loaded, what changes, and the text."""
    a, b, c, d, e = (row(name, url[server]) for name, server in zip("abcde", SERVERS, strict=False))
    alpha, many = row("alpha", url["s0"]), row("many", url["many"])
    big = pool("big", "large", "", c, row("d", url["s3"], "tier = 1"))
    turned = row("c", url["s2"], "tier = 1"), d
    p2c = pool("big", "large", 'policy = "p2c"', *turned)
    weighted = row("a", url["s0"], "weight = 5"), row("e", url["s4"], "weight = 2"), many
    alike = alpha, e, many
    robin = 'policy = "round_robin"'
    limited = row("alpha", url["s0"], "max_in_flight = 1"), e, many
    short = pool("chat", "small", UNLIMITED, *limited)
    extra = pool("extra", "medium", "slow_start = 2\n" + UNLIMITED, limited[0], row("b2", url["s1"]))
    aliased = pool("extra", "medium", 'aliases = { large = "medium" }', alpha, row("b2", url["s1"]))
    first = row("first", url["many"], 'addresses = "first"')
    last = [pool("chat", "small", "", a, b, e, many), pool("extra", "medium", "", alpha, row("b2", url["s1"]), first)]
    last.append(pool("big", "large", "", c, d, row("s5", url["s5"])))
    route = '[[routes]]\nheader = "x-ask"\npool = "big"\n'
    retry = 'retry = { statuses = [429, 503] }\nfailover_body = "1KB"\nmax_body = "2MB"\neject = { errors = 9 }'
    return [
        ("start", "", pool("chat", "small medium", "", a, b, many) + big),
        ("hup", "a backend comes", pool("chat", "small medium", "", a, b, many, e) + big),
        ("post", "a backend goes", pool("chat", "small medium", "", a, many, e) + big),
        ("watch", "weights, round robin", pool("chat", "small medium", robin, *weighted) + big),
        ("hup", "a new name", pool("chat", "small medium", robin, *alike) + big),
        ("post", "tiers, two choices", pool("chat", "small medium", robin, *alike) + p2c),
        ("hup", "other addresses", pool("chat", "small medium", robin, *alike) + p2c),
        ("watch", "broken", TORN),
        ("post", "full", pool("chat", "small medium", "max_in_flight = 1\n" + UNLIMITED, *alike) + p2c),
        ("hup", "a limit of a backend", pool("chat", "small medium", UNLIMITED, *limited) + p2c),
        ("watch", "a pool comes", short + extra + p2c),
        ("post", "a pool has a new name", short + extra + p2c.replace("pools.big", "pools.huge")),
        ("hup", "a pool goes, an alias comes", pool("chat", "small", "", *alike) + aliased),
        ("post", "health checks", pool("chat", "small", CHECKED, *alike) + aliased),
        ("hup", "broken", pool("chat", "small", "ttft_timeout = -1\n", alpha) + pool("x", "x", "lisen = 1", alpha)),
        ("watch", "all go", pool("s5", "small medium large", "", row("s5", url["s5"]))),
        ("post", "all come back", pool("chat", "small medium", "", a, b, many, e) + big),
        ("hup", "the first address", pool("chat", "small medium", "", a, b, first, e) + big),
        ("post", "a route", pool("chat", "small medium", "", a, b, first, e) + big + route),
        ("watch", "retries and limits", pool("chat", "small medium", retry, a, b, first, e) + big),
        ("hup", "all that ever were", "\n".join(last)),
    ]


class Scraping(threading.Thread):
    """Reads /metrics over and over: no counter of a series that stays may fall."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(daemon=True)
        self._proxy = proxy
        self._before: dict[str, float] = {}
        self._told_to_stop = threading.Event()
        self.done = 0
        self.error: BaseException | None = None

    def look(self) -> None:
        status, text = self._proxy.admin("/metrics")
        assert status == 200, text
        now = {}
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if not line.startswith("#") and series.partition("{")[0].endswith(("_total", "_count", "_bucket", "_sum")):
                now[series] = float(value)
        fell = {series: (n, now[series]) for series, n in self._before.items() if now.get(series, n) < n}
        assert not fell, fell
        assert len(now) > 100
        self._before = now

    def run(self) -> None:
        try:
            while not self._told_to_stop.wait(0.2):
                self.look()
                self.done += 1
        except BaseException as error:
            self.error = error

    def wait_more(self) -> None:
        """Waits for a look that began later than this."""
        wanted = self.done + 2
        wait_until(lambda: self.done >= wanted or self.error, LONG, "metrics")
        assert self.error is None, self.error

    def __enter__(self) -> Scraping:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._told_to_stop.set()
        self.join(LONG)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Two sockets of each stream are in the test's process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * STREAMS + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"NOT TESTED: {STREAMS} streams need {needed} open files, and this machine allows {hard}")
    if soft == resource.RLIM_INFINITY or soft >= needed:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def port_of_many() -> int:
    """A port that is free at each address of many.test."""
    while True:
        port = free_port()
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for host in MANY:
                stack.enter_context(socket.socket()).bind((host, port))
            return port


def ask_reload(proxy: Proxy) -> tuple[int, Any]:
    """POST /reload: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=LONG)
    try:
        connection.request("POST", "/reload")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def said(proxy: Proxy) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(proxy.admin("/status")[1])
    return status


def counts(proxy: Proxy) -> tuple[float, float]:
    """Reloads that succeeded, and that failed."""
    scraped = proxy.metrics()
    return scraped['llmpipe_reloads_total{result="success"}'], scraped['llmpipe_reloads_total{result="failure"}']


class Reloading:
    """The file, and the proxy that loads it again and again."""

    def __init__(self, folder: Path, resolver: names.NameServer) -> None:
        self.path = folder / "llmpipe.toml"
        self.proxy: Proxy
        self._resolver = resolver
        self._resolver.say("many.test", *MANY[:2])
        self._written = 0

    def write(self, text: str, *, mark: bool = True) -> str:
        """Writes the next file. A model that nobody asks for tells it from the others, and is returned."""
        self._written += 1
        model = f"mark-{self._written}"
        more = pool("mark", model, "", row("mark", "http://127.0.0.1:1")) if mark else ""
        beside = self.path.with_suffix(".new")
        beside.write_text(f"watch = true\nhead_timeout = 120\nkeepalive_timeout = 600\n{text}{more}")
        beside.replace(self.path)
        return model

    def _ask(self, how: str, status: int) -> None:
        """Asks for a reload; a file that is watched needs nobody to ask."""
        if how == "hup":
            self.proxy.signal(signal.SIGHUP)
        elif how == "post":
            answered, body = ask_reload(self.proxy)
            assert answered == status, body

    def load(self, how: str, what: str, text: str) -> None:
        """One reload, waited for."""
        if what == "other addresses":
            self._resolver.say("many.test", *MANY[1:])
        if what == "all that ever were":
            self._resolver.say("many.test", *MANY)
        if what == "broken":
            self._load_broken(how, text)
            return
        before = counts(self.proxy)[0]
        model = self.write(text)
        self._ask(how, 200)

        def loaded() -> bool:
            status = said(self.proxy)
            return status["pools"][-1]["models"] == [model] and not status["reload_faults"]

        wait_until(loaded, LONG, what)
        wait_until(lambda: counts(self.proxy)[0] > before, LONG, what)
        wait_until(lambda: self.proxy.metrics()["llmpipe_config_last_reload_successful"] == 1, LONG, what)

    def _load_broken(self, how: str, text: str) -> None:
        """One that fails, and leaves all as it was."""
        was = served(self.proxy)
        failed = counts(self.proxy)[1]
        self.write(text, mark=False)
        self._ask(how, 422)
        wait_until(lambda: said(self.proxy)["reload_faults"], LONG, "faults")
        assert len(said(self.proxy)["reload_faults"]) == (1 if text == TORN else 2)
        succeeded = counts(self.proxy)[0]
        wait_until(lambda: counts(self.proxy)[1] > failed, LONG, "the count")
        assert self.proxy.metrics()["llmpipe_config_last_reload_successful"] == 0
        assert ask_reload(self.proxy)[0] == 422
        assert counts(self.proxy)[0] == succeeded
        assert served(self.proxy) == was


def served(proxy: Proxy) -> list[tuple[str, list[str], list[tuple[str, str, int, int]]]]:
    """Pools, models and backends as /status has them."""
    keys = ("name", "url", "weight", "tier")
    return [
        (found["name"], found["models"], [tuple(backend[key] for key in keys) for backend in found["backends"]])
        for found in said(proxy)["pools"]
    ]


@pytest.fixture
def world(many_descriptors: None) -> Iterator[World]:
    with World(port_of_many()) as world:
        yield world


SERVER_OF = {
    "a": "s0",
    "alpha": "s0",
    "b": "s1",
    "b2": "s1",
    "c": "s2",
    "d": "s3",
    "e": "s4",
    "s5": "s5",
    "mark": "none",
}
"""Which server each backend of the last file is; the others are addresses of many.test."""


def in_flight(proxy: Proxy) -> Counter[str]:
    """Of each server, as the proxy counts; those of many.test are one here, since `first` has had more than one address."""
    found: Counter[str] = Counter()
    for series, n in proxy.metrics().items():
        if series.startswith("llmpipe_in_flight{"):
            name = series.split('"')[1]
            found[SERVER_OF.get(name, "many")] += int(n)
    return +found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_i4_a_thousand_streams_through_twenty_reloads(world: World, tmp_path: Path) -> None:
    resolver = names.NameServer(tmp_path, names.build(tmp_path))
    reloading = Reloading(tmp_path, resolver)
    (_, _, text), *steps = tables(world.url)
    assert len(steps) == 20
    assert sum(what == "broken" for _, what, _ in steps) == 2
    reloading.write(text)
    options = ["--config", str(reloading.path), "--workers", "2"]
    with Proxy(options=options, env=resolver.env) as proxy:
        reloading.proxy = proxy
        # With the first connection of a health check libuv opens a descriptor that it keeps; the others come and go.
        reloading.load(
            "post", "health checks for a moment", pool("checked", "small", CHECKED, row("a", world.url["s0"]))
        )
        checks = {"backend": "a", "result": "passed"}
        wait_until(lambda: proxy.metric("llmpipe_health_checks_total", **checks), LONG, "a health check")
        reloading.load("post", "none any more", text)
        proxy.wait_metric("llmpipe_upstreams", 0, LONG)
        before = kinds(proxy)
        world.run(world.connect(proxy.port, STREAMS))
        wait_until(lambda: len(world.begun) == STREAMS or world.faults, LONG, "all streams")
        with Scraping(proxy) as one, Scraping(proxy) as other:
            world.run(world.work(proxy.port))
            for how, what, text in steps:
                answers, whole, faults = world.answers, world.whole, world.faults
                reloading.load(how, what, text)
                world.run(world.end_some(REPLACED))
                if what == "full":  # its requests wait for the next file, which lets them in
                    wait_until(lambda: proxy.metric("llmpipe_queue_length", pool="chat") >= 5, LONG, "a queue")
                else:
                    wait_until(lambda: world.answers > answers + 20 or faults, LONG, f"answers: {what}")  # noqa: B023
                    wait_until(lambda: len(world.begun) == STREAMS or faults, LONG, f"streams: {what}")  # noqa: B023
                    wait_until(lambda: world.whole >= whole + REPLACED or faults, LONG, what)  # noqa: B023
                one.wait_more()
                other.wait_more()
                assert not faults, (what, faults[:5])
            world.run(world.stop())
        assert not world.faults, world.faults[:5]
        assert (one.error, other.error) == (None, None)
        wait_until(lambda: world.live.total() == STREAMS, LONG, "those who left")
        # Backends that were gone for a while have their streams still.
        live = Counter({name: world.live[name] for name in SERVERS}) + Counter(
            many=sum(world.live[host] for host in MANY)
        )
        wait_until(lambda: in_flight(proxy) == live, LONG, f"{live}")
        assert proxy.metrics()["llmpipe_streaming_active"] == STREAMS
        world.run(world.end_all())
        wait_until(lambda: world.left == STREAMS or world.faults, LONG, "the end of all streams")
        assert not world.faults, world.faults[:5]
        proxy.settled(LONG)
        scraped = proxy.metrics()
        flying = {series: n for series, n in scraped.items() if series.startswith("llmpipe_in_flight{")}
        assert len(flying) == len(SERVER_OF) + len(MANY) + 1  # first
        assert not any(flying.values()), flying
        outcomes = {
            series.split('"')[1]: n for series, n in scraped.items() if series.startswith("llmpipe_exchanges_total{")
        }
        assert {name: n for name, n in outcomes.items() if n} == {
            "ok": world.whole + world.answers,
            "client_abort": world.leaves,
        }
        assert world.whole == STREAMS + REPLACED * len(steps)
        assert all(world.asked[name] for name in (*SERVERS, *MANY)), world.asked
        check_log(proxy, scraped)
        proxy.wait_metric("llmpipe_upstreams", 0, LONG)
        assert kinds(proxy) == before


def kinds(proxy: Proxy) -> Counter[str]:
    """How many descriptors of each kind are open, once those of the admin endpoint's last connection have gone."""
    seen = []
    for _ in range(20):
        seen.append(Counter(what.partition(":")[0] for what in open_descriptors(proxy.pid).values()))
        time.sleep(0.05)
    return min(seen, key=Counter.total)


def check_log(proxy: Proxy, scraped: Mapping[str, float]) -> None:
    """Each reload is a line and a count, and nothing else was worth a warning."""
    lines = Counter(line["event"] for line in proxy.log.copy())
    assert scraped['llmpipe_reloads_total{result="success"}'] == lines["reloaded"] >= 19
    assert scraped['llmpipe_reloads_total{result="failure"}'] >= 4
