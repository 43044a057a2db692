"""The official openai package through the proxy, sync and async, in front of uvicorn and aiohttp: nothing tells it from a direct call."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import openai
import pytest
import servers
from harness import Proxy, free_port, wait_until
from servers import Server, unique

PROMPT = [{"role": "user", "content": "say \u20ac"}]
BROKEN = (openai.APIConnectionError, httpx.RemoteProtocolError)
"""What a truncated stream raises, in newer and older versions of the package."""


def options(url: str) -> dict:
    return {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30}


@contextmanager
def sync_client(url: str) -> Iterator[openai.OpenAI]:
    # A client of its own keeps the machine's proxy settings out of it.
    with openai.DefaultHttpxClient(trust_env=False) as http:
        with openai.OpenAI(**options(url), http_client=http) as client:
            yield client


@asynccontextmanager
async def async_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    limits = openai.DEFAULT_CONNECTION_LIMITS
    async with openai.DefaultAsyncHttpxClient(trust_env=False, limits=limits) as http:
        async with openai.AsyncOpenAI(**options(url), http_client=http) as client:
            yield client


def create(client, *, name: str, **more):
    """A chat completion; arguments that begin with X are fields for the backend. `name` is found in its output and in our log."""
    fields = {"X-Name": name, "X-Request-ID": name} | {
        key.replace("_", "-"): str(more.pop(key)) for key in list(more) if key[0] == "X"
    }
    return client.chat.completions.create(**{"model": "tiny", "messages": PROMPT, **more}, extra_headers=fields)


def collect_sync(url: str, **more) -> list[dict]:
    with sync_client(url) as client:
        return [chunk.model_dump() for chunk in create(client, stream=True, **more)]


def collect_async(url: str, **more) -> list[dict]:
    async def collect() -> list[dict]:
        async with async_client(url) as client:
            return [chunk.model_dump() async for chunk in await create(client, stream=True, **more)]

    return asyncio.run(collect())


def complete_sync(url: str, **more) -> dict:
    with sync_client(url) as client:
        return create(client, **more).model_dump()


def complete_async(url: str, **more) -> dict:
    async def complete() -> dict:
        async with async_client(url) as client:
            return (await create(client, **more)).model_dump()

    return asyncio.run(complete())


def text_of(chunks: list[dict]) -> str:
    return "".join(choice["delta"]["content"] or "" for chunk in chunks for choice in chunk["choices"])


collects = pytest.mark.parametrize("collect", [collect_sync, collect_async], ids=["sync", "async"])
completes = pytest.mark.parametrize("complete", [complete_sync, complete_async], ids=["sync", "async"])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(servers.uvicorn, id="uvicorn"),
        pytest.param(servers.aiohttp, id="aiohttp", marks=pytest.mark.slow),
    ],
)
def server(request) -> Iterator[Server]:
    with request.param() as server:
        yield server


# The same as without a proxy


@collects
def test_a_stream_is_that_of_a_direct_call(server, url, collect):
    direct = collect(server.url, name="same", max_tokens=200)
    assert len(direct) == 200
    assert collect(url, name="same", max_tokens=200) == direct
    assert text_of(direct).startswith(" say \u20ac:0 say \u20ac:1\u00e9")


@collects
def test_the_usage_chunk_arrives(url, collect):
    chunks = collect(url, name="usage", max_tokens=5, stream_options={"include_usage": True})
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * 5 + [False]
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


@completes
def test_a_completion_is_that_of_a_direct_call(server, url, complete):
    direct = complete(server.url, name="same", max_tokens=2000)
    assert direct["usage"]["completion_tokens"] == 2000
    assert complete(url, name="same", max_tokens=2000) == direct


def test_models_are_listed(url):
    with sync_client(url) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_prompt_of_a_megabyte_arrives(url):
    messages = [{"role": "user", "content": "long " * 200_000}]
    with sync_client(url) as client:
        completion = create(client, name="long", messages=messages, max_tokens=1)
        assert completion.choices[0].message.content == " " + "long " * 200_000 + ":0"


def test_each_token_is_there_before_the_next_is_made(server, url):
    """The backend waits with each token until the one before was read: a proxy that holds one back would stop this."""
    name = unique()
    with sync_client(url) as client:
        stream = create(client, name=name, stream=True, max_tokens=20, X_Gated=1)
        for index in range(20):
            server.open(name)
            assert f":{index}" in next(stream).choices[0].delta.content
        server.open(name)
        assert list(stream) == []


def test_the_request_id_is_one_for_client_and_backend(url):
    with sync_client(url) as client:
        assert create(client, name="mine-0")._request_id == "mine-0"
        made = client.chat.completions.create(model="tiny", messages=PROMPT)._request_id
        assert re.fullmatch("[0-9a-f]{32}", made)  # the backend sent back what it got
        kept = client.models.with_raw_response.list(extra_headers={"X-Request-ID": "mine-1"})
        assert kept.headers["x-request-id"] == "mine-1"
        own = client.models.with_raw_response.list().headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", own)
        assert own != made


def test_50_streams_at_once_do_not_mix(server, url, real_proxy):
    def ended() -> float:
        # The package closes at [DONE]; whether the last chunk is there by then is the backend's luck.
        return real_proxy.outcome("ok") + real_proxy.outcome("client_abort")

    real_proxy.settled()
    before = ended()

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        messages = [{"role": "user", "content": f"stream {number}"}]
        stream = await create(client, name=f"s{number}", messages=messages, stream=True, max_tokens=40)
        return text_of([chunk.model_dump() async for chunk in stream])

    async def all_of(address: str) -> list[str]:
        async with async_client(address) as client:
            return await asyncio.gather(*(one(client, number) for number in range(50)))

    through = asyncio.run(all_of(url))
    assert through == asyncio.run(all_of(server.url))
    assert len(set(through)) == 50
    assert all(f"stream {number}:39" in text for number, text in enumerate(through))
    real_proxy.settled()
    assert ended() == before + 50


def test_a_stream_that_was_read_to_its_end_is_no_failure(url, real_proxy):
    """The package closes at [DONE], be the last chunk there or not."""
    name = unique()
    with sync_client(url) as client:
        assert len(list(create(client, name=name, stream=True, max_tokens=3))) == 3
    assert access_line(real_proxy, name)["outcome"] in ("ok", "client_abort")


# Errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_of_the_backend_is_passed_on(url, status, kind, stream):
    with sync_client(url) as client:
        with pytest.raises(kind) as caught:
            create(client, name="bad", stream=stream, X_Status=status)
    assert caught.value.status_code == status
    assert caught.value.body == {"message": "made to fail: bad", "type": "tests", "param": "x-status", "code": "made"}
    assert caught.value.response.headers.get("retry-after") == ("7" if status == 429 else None)
    assert caught.value.request_id


@completes
def test_a_backend_that_is_down_is_a_502(complete):
    with Proxy(f"http://127.0.0.1:{free_port()}") as proxy:
        with pytest.raises(openai.InternalServerError) as caught:
            complete(proxy.url, name="down")
        assert caught.value.status_code == 502
        assert isinstance(caught.value.body, dict)
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        assert (caught.value.code, caught.value.type) == ("connect_error", "server_error")
        assert caught.value.body["message"] in str(caught.value)
        (line,) = proxy.access()
        assert (line["outcome"], line["request_id"]) == ("connect_error", caught.value.request_id)


def test_errors_of_the_proxy_are_status_errors(server):
    with Proxy(server.url, options=["--max-body", "10KB", "--ttft-timeout", "3s"]) as proxy:
        with sync_client(proxy.url) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                create(client, name="large", messages=[{"role": "user", "content": "x" * 20_000}])
            assert (caught.value.status_code, caught.value.type) == (413, "invalid_request_error")
            name = unique()
            with pytest.raises(openai.InternalServerError) as caught:
                create(client, name=name, X_Gated=1)
            assert caught.value.status_code == 504
            assert caught.value.body["message"] in str(caught.value)
            server.wait_line(f"stopped {name}")
            assert create(client, name="fine").choices  # and the client goes on


def test_a_retry_of_the_package_meets_a_backend_that_came_up():
    """The 502 tells openai's own retry to try again, and what it does with no help is enough."""
    port = free_port()
    with Proxy(f"http://127.0.0.1:{port}") as proxy, openai.DefaultHttpxClient(trust_env=False) as http:
        with openai.OpenAI(**{**options(proxy.url), "max_retries": 12}, http_client=http) as client:
            answers: list[object] = []
            asking = threading.Thread(target=lambda: answers.append(client.models.list().data[0].id), daemon=True)
            asking.start()
            assert proxy.access()[0]["status"] == 502
            with servers.uvicorn(port=port):
                asking.join(90)
            assert answers == ["tiny"]


# The backend breaks off


@collects
def test_a_truncated_stream_raises(server, url, collect):
    with pytest.raises(BROKEN):
        collect(url, name="cut", max_tokens=20, X_Cut=3)


def test_what_came_before_the_break_was_read(url, real_proxy):
    with sync_client(url) as client:
        stream = create(client, name="cut", stream=True, max_tokens=20, X_Cut=3)
        assert [next(stream).choices[0].delta.content.count(":") for _ in range(3)] == [1, 1, 1]
        with pytest.raises(BROKEN):
            next(stream)
        stream.close()
    real_proxy.settled()
    assert real_proxy.outcome("upstream_abort") >= 1


def test_an_error_event_raises_with_its_message(server):
    """With --on-midstream-error event the package sees an error of the API and not only a broken line."""
    with Proxy(server.url, options=["--on-midstream-error", "event"]) as proxy:
        with sync_client(proxy.url) as client:
            stream = create(client, name="cut", stream=True, max_tokens=20, X_Cut=3)
            for _ in range(3):
                assert next(stream).choices
            with pytest.raises(openai.APIError) as caught:
                next(stream)
            assert not isinstance(caught.value, openai.APIConnectionError)
            assert set(caught.value.body) == {"message", "type", "param", "code"}
            assert caught.value.message == caught.value.body["message"]
            stream.close()
        assert proxy.access()[0]["outcome"] == "upstream_abort"


@pytest.mark.parametrize("start", [servers.uvicorn, servers.aiohttp], ids=["uvicorn", "aiohttp"])
def test_a_killed_backend_is_seen_in_every_phase(start):
    """A kill is what running out of memory looks like. Before a byte it is an error of the API, after one a broken stream."""
    with start() as server, Proxy(server.url) as proxy, sync_client(proxy.url) as client:
        streams = []
        for _ in range(2):
            name = unique()
            stream = create(client, name=name, stream=True, max_tokens=5, X_Gated=1)
            server.open(name)
            assert next(stream).choices
            streams.append(stream)
        waiting = unique()
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                create(client, name=waiting, X_Gated=1)
            except openai.APIError as error:
                caught.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        server.wait_line(f"started {waiting}")
        server.kill()
        for stream in streams:
            with pytest.raises(BROKEN):
                next(stream)
            stream.close()
        thread.join(30)
        assert isinstance(caught[0], openai.InternalServerError)
        assert caught[0].status_code == 502


# The client leaves: the backend's own detection fires


def access_line(proxy: Proxy, name: str) -> dict:
    """What our log says of this exchange."""
    wait_until(lambda: any(line.get("request_id") == name for line in proxy.log.copy()), what="the access line")
    (line,) = (line for line in proxy.log.copy() if line.get("request_id") == name)
    return line


def expect_stopped(server: Server, proxy: Proxy, name: str, phase: str) -> None:
    server.wait_line(f"stopped {name}")
    assert not server.said(f"finished {name}")
    line = access_line(proxy, name)
    assert (line["outcome"], line["status"], line["phase"]) == ("client_abort", 499, phase)
    proxy.settled()


@pytest.mark.parametrize("read", [0, 4], ids=["silent before the first token", "mid-stream"])
def test_closing_a_stream_stops_generation(server, url, real_proxy, read):
    name = unique()
    with sync_client(url) as client:
        stream = create(client, name=name, stream=True, max_tokens=1000, X_Gated=1)
        server.wait_line(f"started {name}")
        server.open(name, read) if read else None
        for _ in range(read):
            assert next(stream).choices
        stream.close()
        expect_stopped(server, real_proxy, name, "stream" if read else "silent")


@pytest.mark.parametrize("read", [0, 4], ids=["silent before the first token", "mid-stream"])
def test_closing_an_async_stream_stops_generation(server, url, real_proxy, read):
    name = unique()

    async def run() -> None:
        async with async_client(url) as client:
            stream = await create(client, name=name, stream=True, max_tokens=1000, X_Gated=1)
            await asyncio.to_thread(server.wait_line, f"started {name}")
            if read:
                await asyncio.to_thread(server.open, name, read)
            for _ in range(read):
                assert (await anext(stream)).choices
            await stream.close()
            await asyncio.to_thread(expect_stopped, server, real_proxy, name, "stream" if read else "silent")

    asyncio.run(run())


def test_cancelling_a_task_stops_a_completion(server, url, real_proxy):
    """Nothing has been answered, not even a head."""
    name = unique()

    async def run() -> None:
        async with async_client(url) as client:
            task = asyncio.create_task(create(client, name=name, X_Gated=1))
            await asyncio.to_thread(server.wait_line, f"started {name}")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(expect_stopped, server, real_proxy, name, "wait")

    asyncio.run(run())


def test_a_timeout_of_the_client_stops_a_completion(server, url, real_proxy):
    name = unique()
    with sync_client(url) as client:
        with pytest.raises(openai.APITimeoutError):
            create(client, name=name, X_Gated=1, timeout=4)
        expect_stopped(server, real_proxy, name, "wait")


def test_many_leave_and_the_others_go_on(server, url, real_proxy):
    names = [unique() for _ in range(30)]

    async def one(client: openai.AsyncOpenAI, index: int) -> int:
        stream = await create(client, name=names[index], stream=True, max_tokens=10, X_Gated=1)
        await asyncio.to_thread(server.open, names[index], 3)
        for _ in range(3):
            await anext(stream)
        if index % 2:
            await stream.close()
            return 3
        await asyncio.to_thread(server.open, names[index], 8)
        return 3 + len([chunk async for chunk in stream])

    async def run() -> list[int]:
        async with async_client(url) as client:
            return await asyncio.gather(*(one(client, index) for index in range(30)))

    assert asyncio.run(run()) == [10, 3] * 15
    for index, name in enumerate(names):
        server.wait_line(f"stopped {name}" if index % 2 else f"finished {name}")
    real_proxy.settled()


def test_the_backend_can_be_let_finish(server):
    """?on-abort=finish is for backends that suffer from aborts."""
    name = unique()
    with Proxy(f"{server.url}?on-abort=finish") as proxy:
        with sync_client(proxy.url) as client:
            stream = create(client, name=name, stream=True, max_tokens=10, X_Gated=1)
            server.open(name, 3)
            for _ in range(3):
                assert next(stream).choices
            stream.close()
        assert not server.said(f"stopped {name}")
        server.open(name, 8)
        server.wait_line(f"finished {name}")
        proxy.settled()
