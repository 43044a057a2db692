"""The official client, unmodified, through the proxy, from uvicorn and aiohttp backends."""

import asyncio

import openai
import pytest
from harness import Proxy, free_port, wait_until
from servers import Server, server

WORDS = ["One", " two", " thr\u00e9\u00e9", " four \u2028", " five"]
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module", params=["starlette_app", "aiohttp_app"])
def backend(request):
    with server(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def uvicorn():
    with server("starlette_app") as running:
        yield running


@pytest.fixture
def proxy(backend):
    with Proxy(backend.url) as proxy:
        yield proxy


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=30)


def stream_text(url: str, **extra: object) -> tuple[list[str], object]:
    with client(url) as api:
        stream = api.chat.completions.create(model="m", messages=MESSAGES, stream=True, extra_body=extra)
        texts, usage = [], None
        for chunk in stream:
            usage = chunk.usage or usage
            if chunk.choices and chunk.choices[0].delta.content:
                texts.append(chunk.choices[0].delta.content)
    return texts, usage


def test_streaming(backend, proxy):
    texts, usage = stream_text(proxy.url)
    assert texts == WORDS
    assert (texts, usage) == stream_text(backend.url)
    assert proxy.access()[0]["outcome"] == "ok"


def test_the_usage_behind_the_last_token(uvicorn):
    with Proxy(uvicorn.url) as proxy:
        assert stream_text(proxy.url)[1].completion_tokens == 5


def test_not_streaming(backend, proxy):
    with client(proxy.url) as api:
        answer = api.chat.completions.create(model="m", messages=MESSAGES)
    assert answer.choices[0].message.content == "".join(WORDS)


def test_models(backend, proxy):
    with client(proxy.url) as api:
        assert [model.id for model in api.models.list()] == ["m"]


def test_async(backend, proxy):
    async def one(api: openai.AsyncOpenAI, stream: bool) -> str:
        answer = await api.chat.completions.create(model="m", messages=MESSAGES, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30) as api:
            return await asyncio.gather(*(one(api, stream=i % 5 != 0) for i in range(50)))

    assert asyncio.run(main()) == ["".join(WORDS)] * 50
    assert proxy.metric("llmpipe_exchanges_total", outcome="ok") == 50


def stopped(backend: Server, user: str) -> list[str]:
    return [line for line in backend.lines if line.startswith(f"stopped {user} ")]


@pytest.mark.parametrize("silent", [0, 60])
def test_leaving_fires_the_servers_own_detection(backend, proxy, silent):
    """Mid-stream, and silent before the first token."""
    user = f"stream-{silent}"
    with client(proxy.url) as api:
        extra = {"max_tokens": 100_000, "silent": silent, "user": user}
        stream = api.chat.completions.create(model="m", messages=MESSAGES, stream=True, extra_body=extra)
        if not silent:
            next(iter(stream))
        assert not stopped(backend, user)
        stream.close()
        wait_until(lambda: stopped(backend, user), what="the server's own detection")
    line = proxy.access()[0]
    assert (line["outcome"], line["status"]) == ("client_abort", 499)
    assert line["phase"] == ("silent" if silent else "stream")
    proxy.settled()


def test_leaving_a_request_without_stream(uvicorn):
    with Proxy(uvicorn.url) as proxy:
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=0.5) as api:
            with pytest.raises(openai.APITimeoutError):
                api.chat.completions.create(model="m", messages=MESSAGES, extra_body={"silent": 60, "user": "plain"})
        wait_until(lambda: stopped(uvicorn, "plain"))
        assert proxy.access()[0]["phase"] == "wait"


def test_a_server_that_dies_in_mid_stream_raises(uvicorn):
    with (
        Proxy(uvicorn.url) as proxy,
        pytest.raises(Exception, match=r"(?i)incomplete|closed|reset|disconnected|connection error"),
    ):
        stream_text(proxy.url, fail_after=2)


def test_the_servers_errors_are_its_own(uvicorn):
    with Proxy(uvicorn.url) as proxy, client(proxy.url) as api:
        with pytest.raises(openai.RateLimitError) as caught:
            api.chat.completions.create(model="m", messages=MESSAGES, extra_body={"status": 429})
        assert caught.value.body["message"] == "no"


def test_our_errors_are_openai_errors():
    with Proxy(f"http://127.0.0.1:{free_port()}") as proxy, client(proxy.url) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            api.models.list()
        assert caught.value.status_code == 502
        assert caught.value.code == "connect_error"
        assert caught.value.type == "server_error"
        assert caught.value.body["message"] == "No inference server could be connected."
        assert len(caught.value.request_id) == 32
    with Proxy(f"http://127.0.0.1:{free_port()}", options=["--max-body", "10"]) as proxy, client(proxy.url) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            api.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.status_code == 413
        assert caught.value.type == "invalid_request_error"
