"""Other clients in use, through the proxy, from three kinds of servers."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess

import aiohttp
import httpx
import pytest
from harness import Proxy
from servers import server

BODY = bytes(range(256)) * (8 << 12)  # 8 MB
DIGEST = {"sha256": hashlib.sha256(BODY).hexdigest(), "length": len(BODY)}

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="THERE IS NO curl: `make test` installs it where it may; tests are missing"
)


@pytest.fixture(scope="module", params=["starlette_app", "aiohttp_app", "http10_app"])
def proxy(request):
    with server(request.param) as running, Proxy(running.url) as proxy:
        proxy.program = request.param
        yield proxy


@pytest.fixture(scope="module")
def uvicorn():
    with server("starlette_app") as running, Proxy(running.url) as proxy:
        yield proxy


def curl(*words: str, data: bytes = b"") -> bytes:
    # A sanitizer that is preloaded into every process makes curl hang.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *words]
    result = subprocess.run(command, input=data, capture_output=True, timeout=40, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_httpx(proxy):
    with httpx.Client(base_url=proxy.url, timeout=30) as client:
        for _ in range(3):
            assert client.get("/v1/models").json()["object"] == "list"
        assert client.post("/upload", content=BODY).json() == DIGEST
        answer = client.post("/v1/chat/completions", json={"stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.count("data: ") >= 5


def test_httpx_chunked_upload(proxy):
    if proxy.program == "http10_app":
        pytest.skip("http.server knows no chunked request")
    parts = (BODY[i : i + 100_000] for i in range(0, len(BODY), 100_000))
    assert httpx.post(f"{proxy.url}/upload", content=parts, timeout=30).json() == DIGEST


def test_httpx_async(proxy):
    async def main() -> list[int]:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/v1/models") for _ in range(20)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(main()) == [200] * 20


def test_aiohttp(proxy):
    async def main() -> None:
        async with aiohttp.ClientSession(proxy.url, timeout=aiohttp.ClientTimeout(30)) as session:
            async with session.get("/v1/models") as answer:
                assert json.loads(await answer.read())["object"] == "list"
            async with session.post("/upload", data=io.BytesIO(BODY)) as answer:
                assert json.loads(await answer.read()) == DIGEST
            async with session.post("/v1/chat/completions", json={"stream": True}) as answer:
                lines = [line async for line in answer.content if line.startswith(b"data: ")]
                assert len(lines) >= 5

    asyncio.run(main())


def test_keep_alive_is_used(uvicorn):
    before = uvicorn.metric("llmpipe_accepted_total")
    with httpx.Client(base_url=uvicorn.url) as client:
        for _ in range(5):
            client.get("/v1/models")
    assert uvicorn.metric("llmpipe_accepted_total") == before + 1


def test_gzip_passes_untouched(uvicorn):
    with httpx.Client() as client, client.stream("GET", f"{uvicorn.url}/gzip") as answer:
        raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == b"hello " * 1000


@needs_curl
class TestCurl:
    def test_get(self, proxy):
        assert json.loads(curl(f"{proxy.url}/v1/models"))["object"] == "list"

    def test_http_10(self, proxy):
        assert json.loads(curl("--http1.0", f"{proxy.url}/v1/models"))["object"] == "list"

    def test_stream(self, proxy):
        for words in ((), ("--http1.0",)):
            url = f"{proxy.url}/v1/chat/completions"
            text = curl("-N", *words, "-d", '{"stream": true}', "-H", "Content-Type: application/json", url)
            assert text.count(b"data: ") >= 5
            assert b"\r\n" not in text  # no chunk framing for HTTP/1.0

    def test_head(self, uvicorn):
        assert curl("--head", f"{uvicorn.url}/v1/models").startswith(b"HTTP/1.1 ")

    def test_a_large_upload_with_expect(self, proxy):
        expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "20"]
        if proxy.program == "http10_app":
            expect = ["-H", "Expect: 100-continue"]  # a 1.0 server sends no 100; curl goes on after a second
        got = curl("-v", *expect, "-H", "Content-Type: x/y", "--data-binary", "@-", f"{proxy.url}/upload", data=BODY)
        assert json.loads(got) == DIGEST

    def test_curl_sends_expect_by_itself(self, uvicorn):
        """Above 1 MB it does."""
        assert json.loads(curl("-T", "-", f"{uvicorn.url}/upload", data=BODY)) == DIGEST
        assert json.loads(curl("--data-binary", "@-", f"{uvicorn.url}/upload", data=BODY)) == DIGEST
