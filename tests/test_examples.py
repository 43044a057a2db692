"""What somebody gets who copies a file of docs/examples: real servers, official clients, and servers that are killed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from harness import Proxy, free_port, wait_until
from servers import Server

EXAMPLE = Path(__file__).parents[1] / "docs/examples/two-replicas-and-a-spare.toml"
LONG = 120.0
CLIENTS = 20
"""That ask, and as many that stream."""
TOKENS = 20
BROKEN = (openai.APIConnectionError, httpx.RemoteProtocolError)
"""What a truncated stream raises, in newer and older versions of the package."""
MESSAGES = [{"role": "user", "content": "say something"}]


class Replicas:
    """The three servers of the example, at ports of their own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._ports = {name: free_port() for name in ("gpu1", "gpu2", "spare")}
        text = EXAMPLE.read_text()
        for port, own in zip(("8001", "8002", "8003"), self._ports.values(), strict=True):
            assert f"127.0.0.1:{port}" in text
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        self.path = folder / "llmpipe.toml"
        self.path.write_text(text)
        self._servers: dict[str, Server] = {}
        for name in self._ports:
            self.start(name)

    def start(self, name: str) -> None:
        server = Server("replica.py", "--name", name, port=self._ports[name])
        self._servers[name] = self._stack.enter_context(server)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._servers[name].kill()


class Traffic:
    """Clients that ask and stream in a loop, in a thread of their own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.faults: list[str] = []
        self.answers: Counter[str] = Counter()
        """Whole ones, by the replica that gave them."""
        self.truncated: Counter[str] = Counter()
        """Of those that had begun."""
        self.endless: Counter[str] = Counter()
        """Streams without an end of each replica, which are there now."""
        self.given_up = 0
        """Answered with 502."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()

    def wait_more(self, n: int, name: str | None = None) -> None:
        """Waits for so many further whole answers, of one replica if one is named."""

        def seen() -> int:
            return self.answers.total() if name is None else self.answers[name]

        wanted = seen() + n
        wait_until(lambda: seen() >= wanted or self.faults, LONG, f"{n} more answers of {name or 'any'}")
        assert not self.faults, self.faults[:5]

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=LONG, limits=limits, base_url=self._url) as plain,
            openai.DefaultAsyncHttpxClient(trust_env=False, limits=limits) as http,
            openai.AsyncOpenAI(
                base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=LONG, http_client=http
            ) as client,
        ):
            works = [self._ask(plain) for _ in range(CLIENTS)] + [self._stream(client) for _ in range(CLIENTS)]
            endless = [asyncio.create_task(self._watched(self._stream_on(client))) for _ in range(6)]
            try:
                await asyncio.gather(*map(self._watched, works))
            finally:
                for task in endless:
                    task.cancel()
                await asyncio.gather(*endless, return_exceptions=True)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.faults.append(repr(error))

    async def _ask(self, client: httpx.AsyncClient) -> None:
        """Answers in one piece. One whose head has come has begun, and may be cut."""
        while not self._stop.is_set():
            begun = False
            try:
                asked = {"model": "llama", "messages": MESSAGES}
                async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                    begun = True
                    await response.aread()
                    if response.status_code == 502:
                        self.given_up += 1
                        continue
                    assert response.status_code == 200, response.text
                    self.answers[response.json()["system_fingerprint"]] += 1
            except httpx.RemoteProtocolError:
                if not begun:
                    raise
            await asyncio.sleep(0.01)

    @contextmanager
    def _502s(self) -> Iterator[None]:
        try:
            yield
        except openai.InternalServerError as error:
            if error.status_code != 502:
                raise
            self.given_up += 1

    async def _stream(self, client: openai.AsyncOpenAI) -> None:
        while not self._stop.is_set():
            with self._502s():
                await self._one(client, TOKENS)

    async def _stream_on(self, client: openai.AsyncOpenAI) -> None:
        """Streams that live until their server dies."""
        while not self._stop.is_set():
            with self._502s():
                await self._one(client, 1_000_000)

    async def _one(self, client: openai.AsyncOpenAI, tokens: int) -> None:
        stream = await client.chat.completions.create(
            model="llama",
            messages=MESSAGES,
            max_tokens=tokens,
            stream=True,
        )
        text, name, finish = [], "", None
        try:
            async for chunk in stream:
                if tokens > TOKENS and not name:
                    self.endless[str(chunk.system_fingerprint)] += 1
                name = str(chunk.system_fingerprint)
                text.append(chunk.choices[0].delta.content or "")
                finish = chunk.choices[0].finish_reason
        except BROKEN:
            assert finish is None
            self.truncated[name] += 1
            if tokens > TOKENS:
                self.endless[name] -= 1
        else:
            assert (finish, "".join(text)) == ("stop", "".join(f"{number} " for number in range(tokens)))
            self.answers[name] += 1
        finally:
            await stream.close()


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(stack, tmp_path)


@pytest.mark.slow
def test_two_replicas_and_a_spare_of_which_two_are_killed(replicas: Replicas) -> None:
    """No request fails that had not begun, none that had begun ends well, and who comes back is used (rules B3, E, K, L)."""
    with Proxy(options=("--config", str(replicas.path), "--workers", "2")) as proxy, Traffic(proxy.url) as traffic:
        # Each request that a killed server had not answered is a retry, and those are earned: one for five exchanges.
        traffic.wait_more(500)
        wait_until(lambda: traffic.endless["gpu1"] and traffic.endless["gpu2"], LONG, "streams that have begun")
        assert traffic.answers["gpu2"] > traffic.answers["gpu1"]  # its weight
        assert not traffic.answers["spare"]
        assert not traffic.truncated

        begun = traffic.endless["gpu2"]
        replicas.kill("gpu2")
        wait_until(lambda: traffic.truncated["gpu2"] >= begun or traffic.faults, LONG, "truncated streams")
        traffic.wait_more(500)
        assert set(traffic.truncated) == {"gpu2"}
        proxy.wait_metric("llmpipe_backend_up", 0, LONG, backend="gpu2")

        begun = traffic.endless["gpu1"]
        replicas.kill("gpu1")
        wait_until(lambda: traffic.truncated["gpu1"] >= begun or traffic.faults, LONG, "truncated streams")
        traffic.wait_more(300, "spare")
        assert set(traffic.truncated) == {"gpu1", "gpu2"}

        for name in ("gpu2", "gpu1"):
            replicas.start(name)
            traffic.wait_more(100, name)
            proxy.wait_metric("llmpipe_backend_up", 1, LONG, backend=name)
        proxy.wait_metric("llmpipe_in_flight", traffic.endless["spare"], LONG, backend="spare")  # nothing new
        spare = traffic.answers["spare"]
        traffic.wait_more(300)
        assert traffic.answers["spare"] == spare
        assert proxy.admin("/readyz")[0] == 200
    assert not traffic.faults, traffic.faults[:5]
    assert not traffic.given_up
    outcomes = Counter(line["outcome"] for line in proxy.log if line["event"] == "access")
    assert set(outcomes) <= {"ok", "upstream_abort", "client_abort"}, outcomes
