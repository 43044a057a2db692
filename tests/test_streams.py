"""Thousands of streams at once through one worker: every byte in its place, and nothing left behind (rules G2, E, D).

The backend and the clients are asyncio programs in the test's own process; each stream's bytes can be told from every
other's. What a stream looks like on the wire follows from its number alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from harness import LAST_CHUNK, Proxy, chunk, sse_head, wait_until

STREAMS = 2000
STREAM_BYTES = 1120
"""Resident bytes of a stream: the structs of a client, an exchange and an upstream (`tests/parts.py`), and what malloc adds."""

MADE_ONCE = (64 * 8192) + (1 << 20)
"""Resident bytes that may be added whatever the number of streams: the free buffers that a worker keeps, as many as were held at
once while streams began, and an arena of Python's."""

ASAN = "asan" in os.environ.get("LD_PRELOAD", "")
FRAMINGS = ("chunked", "length", "close")

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[bool]]
"""Answers one request, given its path; whether the connection goes on."""


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


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """A backend, and its URL. Its connections end when the proxy closes them."""

    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            more = True
            while more:
                head = await reader.readuntil(b"\r\n\r\n")
                more = await script(reader, writer, head.split(b" ", 2)[1].decode())
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=4096)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*tasks)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def connection(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the proxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with an RST, unless the other side has closed already."""
    if writer.transport.is_closing():
        return
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def idle_descriptors(proxy: Proxy) -> int:
    """How many it has while nothing happens; a scrape that has just ended may still hold one."""
    proxy.metrics()
    seen = []
    for _ in range(20):
        await asyncio.sleep(0.02)
        seen.append(proxy.descriptors())
    return min(seen)


async def idle(proxy: Proxy, descriptors: int) -> None:
    """Waits until the proxy holds nothing that it did not hold when it had `descriptors`."""
    await asyncio.to_thread(proxy.settled, 30)
    await asyncio.to_thread(proxy.wait_metric, "llmpipe_upstreams", 0, 30)
    await asyncio.to_thread(wait_until, lambda: proxy.descriptors() <= descriptors, 30, "descriptors are back")
    metrics = proxy.metrics()
    left = {
        name: n for name, n in metrics.items() if n and name.startswith(("llmpipe_in_flight", "llmpipe_upstream_idle"))
    }
    assert not left
    assert metrics["llmpipe_buffers_held"] == 0
    assert metrics["llmpipe_access_lines_dropped_total"] == 0


def content(number: int) -> tuple[bytes, list[bytes]]:
    """The head of a stream, and its body as it is framed, in the pieces that the backend sends."""
    rng = random.Random(number)
    framing = FRAMINGS[number % 3]
    events = []
    for index in range(rng.randint(5, 25)):
        filler = rng.randbytes(rng.choice((4, 20, 100) if number % 20 else (3000, 9000))).hex()
        events.append(f"data: stream {number} event {index} {filler}\n\n".encode())
    if framing == "chunked":
        return sse_head(), [*map(chunk, events), LAST_CHUNK]
    length = b"Content-Length: %d\r\n" % sum(map(len, events)) if framing == "length" else b""
    wire = b"".join(events)  # cut anywhere, also inside an event
    cuts = sorted(rng.sample(range(1, len(wire)), len(events)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n" % length, pieces


def outcomes(proxy: Proxy) -> dict[str, int]:
    """Exchanges by outcome."""
    start = 'llmpipe_exchanges_total{outcome="'
    return {name[len(start) : -2]: int(n) for name, n in proxy.metrics().items() if name.startswith(start) and n}


@pytest.mark.slow
def test_two_thousand_streams_at_once(many_descriptors, proxy_to, record_property):
    """All are open at the same time; each gets its own bytes, framing included, and a second answer on its connection."""
    arrived: set[str] = set()
    go = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bool:
        name, _, again = path[1:].partition("/")
        if again:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nagain %s" % (len(name) + 6, name.encode()))
            return True
        head, pieces = content(int(name))
        rng = random.Random(name)
        writer.write(head + pieces[0])
        arrived.add(name)
        await go.wait()
        for piece in pieces[1:]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(rng.random() / 20)
        return int(name) % 3 != FRAMINGS.index("close")

    async def ask(proxy: Proxy, number: int) -> None:
        async with connection(proxy) as (reader, writer):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\nX-Request-ID: first-%d\r\n\r\n" % (number, number))
            head = await reader.readuntil(b"\r\n\r\n")
            sent_head, pieces = content(number)
            assert head.startswith(sent_head[:-2])
            assert b"X-Request-ID: first-%d\r\n" % number in head
            expected = b"".join(pieces)
            if number % 3 == FRAMINGS.index("close"):
                assert await reader.read(-1) == expected, f"stream {number}"
                return
            assert await reader.readexactly(len(expected)) == expected, f"stream {number}"
            writer.write(
                b"GET /%d/again HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: again-%d\r\n\r\n"
                % (number, number)
            )
            assert (await reader.read(-1)).endswith(b"\r\n\r\nagain %d" % number)

    async def run() -> None:
        async with serving(answer) as url:
            # Long enough for what is idle to be used again, so that streams share upstreams.
            proxy = await asyncio.to_thread(
                proxy_to, url, options=["--upstream-idle-timeout", "1s", "--head-timeout", "2m"]
            )
            descriptors = await idle_descriptors(proxy)
            streams: list[asyncio.Future[None]] = []

            async def open_streams(n: int) -> int:
                """Starts streams until there are n; the memory that is resident then."""
                streams.extend(asyncio.ensure_future(ask(proxy, number)) for number in range(len(streams), n))
                while len(arrived) < n:
                    failed = [stream for stream in streams if stream.done()]
                    assert not failed, failed[0].exception()
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(proxy.wait_metric, "llmpipe_streaming_active", n, 30)
                return proxy.rss()

            try:
                # The first ones pay for most of what is made once.
                first = await open_streams(STREAMS // 4)
                grown = await open_streams(STREAMS) - first
                more = STREAMS - STREAMS // 4
                record_property("resident_bytes_a_stream", grown / more)
                print(f"{grown / more:.0f} resident bytes a stream")
                assert grown < more * STREAM_BYTES + MADE_ONCE or ASAN
                assert proxy.metric("llmpipe_clients") == STREAMS
                assert proxy.metric("llmpipe_in_flight", backend=url) == STREAMS
                assert proxy.metric("llmpipe_buffers_held") == 0
                assert proxy.descriptors() >= descriptors + 2 * STREAMS
                go.set()
                await asyncio.gather(*streams)
            finally:
                for stream in streams:
                    stream.cancel()
                await asyncio.gather(*streams, return_exceptions=True)
            await idle(proxy, descriptors)
            again = STREAMS - len(range(FRAMINGS.index("close"), STREAMS, 3))
            assert outcomes(proxy) == {"ok": STREAMS + again}
            assert proxy.metric("llmpipe_upstream_reuses_total", backend=url) > 0
            seen = Counter(line["request_id"] for line in await asyncio.to_thread(proxy.access, STREAMS + again))
            assert set(seen.values()) == {1}
            assert len(seen) == STREAMS + again

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_ends_leave_nothing_behind(proxy_to, seed):
    """300 streams, backends that fail and clients that leave at any moment: each exchange ends once, with one outcome."""
    backend_ways = ("well", "well", "well", "silent-reset", "silent-close", "truncated", "reset", "stalls")
    client_ways = ("reads", "reads", "reads", "fin", "rst", "half-close")
    asked: Counter[str] = Counter()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bool:
        asked[path] += 1
        name, way = path[1:].split("/")
        head, pieces = content(int(name))
        rng = random.Random(path)
        if way.startswith("silent"):
            await asyncio.sleep(rng.random() / 50)
            if way == "silent-reset":
                reset(writer)
            return False
        writer.write(head + pieces[0])
        for piece in pieces[1:] if way == "well" else pieces[1:3]:
            await asyncio.sleep(rng.random() / 50)
            writer.write(piece)
            await writer.drain()
        if way == "stalls":
            # The end of a client, or of the idle time, ends this.
            assert await reader.read(1) == b""
        if way == "reset":
            reset(writer)
        return way == "well" and int(name) % 3 != FRAMINGS.index("close")

    async def ask(proxy: Proxy, number: int, way: str, leaves: str) -> None:
        rng = random.Random(f"{seed} {number}")
        async with connection(proxy) as (reader, writer):
            writer.write(
                b"GET /%d/%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: %d\r\n\r\n"
                % (number, way.encode(), number)
            )
            if leaves == "reads":
                try:
                    answer = await reader.read(-1)
                except ConnectionResetError:
                    answer = b""
                check(answer, number, way)
                return
            await asyncio.sleep(rng.choice((0, 0.001, 0.05, 0.2)) * rng.random())
            if leaves == "rst":
                reset(writer)
            elif leaves == "half-close":
                # An RST may have ended its answer before: ENOTCONN, which is no ConnectionError.
                with contextlib.suppress(OSError):
                    writer.write_eof()
                    await reader.read(-1)

    def check(answer: bytes, number: int, way: str) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        expected = b"".join(content(number)[1])
        if way == "well":
            assert body == expected, f"stream {number}"
        elif way.startswith("silent"):
            assert head.startswith(b"HTTP/1.1 502 "), f"stream {number}"
        else:
            assert expected.startswith(body), f"stream {number}"
            assert body != expected, f"stream {number}"

    expected_outcomes = {
        "well": "ok",
        "silent-reset": "upstream_error",
        "silent-close": "upstream_error",
        "truncated": "upstream_abort",
        "reset": "upstream_abort",
        "stalls": "timeout_idle",
    }

    async def run() -> None:
        rng = random.Random(seed)
        async with serving(answer) as url:
            options = ["--upstream-idle-timeout", "500ms", "--idle-timeout", "8s", "--head-timeout", "2m"]
            proxy = await asyncio.to_thread(proxy_to, url, options=options)
            descriptors = await idle_descriptors(proxy)
            plan = []
            for number in range(300):
                way = rng.choice(backend_ways)
                if way == "truncated" and number % 3 == FRAMINGS.index("close"):
                    way = "reset"  # a close is how such an answer ends
                plan.append((number, way, rng.choice(client_ways)))
            await asyncio.gather(*(ask(proxy, *item) for item in plan))
            await idle(proxy, descriptors)
            ended = outcomes(proxy)
            lines = await asyncio.to_thread(proxy.access, sum(ended.values()))
            assert Counter(line["outcome"] for line in lines) == ended
            by_id = {line["request_id"]: line for line in lines}
            assert len(by_id) == len(lines)  # one line and one outcome each
            for number, way, leaves in plan:
                line = by_id.get(str(number))
                if leaves == "reads":
                    assert line, f"no line for stream {number}"
                    assert line["outcome"] == expected_outcomes[way], (way, line)
                elif line:  # an RST may come before the request was read
                    assert line["outcome"] in ("client_abort", expected_outcomes[way]), (way, leaves, line)
            assert {"ok", "client_abort", "upstream_error", "upstream_abort", "timeout_idle"} <= set(ended)
            # Sent again only where a stale connection may have been met, and only once.
            assert max(asked.values()) <= 2
            assert sum(asked.values()) <= 300 + proxy.metric("llmpipe_stale_replays_total")

    asyncio.run(run())
