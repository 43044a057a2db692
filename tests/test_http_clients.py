"""httpx, aiohttp and curl through the proxy, in front of uvicorn, aiohttp and http.server: what is sent arrives, and the other way."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import aiohttp
import httpx
import pytest
import servers
import yarl
from harness import Proxy
from servers import Server, plain_environment, unique
from tools import needs

MEGABYTE = 1 << 20

needs_curl = needs("curl", "curl")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(servers.uvicorn, id="uvicorn"),
        pytest.param(servers.aiohttp, id="aiohttp", marks=pytest.mark.slow),
        pytest.param(servers.http_server, id="http.server", marks=pytest.mark.slow),
    ],
)
def server(request) -> Iterator[Server]:
    with request.param() as server:
        yield server


# Each client as one function: what the tests need of it, and nothing hidden


@dataclass
class Answer:
    status: int
    fields: list[tuple[str, str]]
    body: bytes
    """As it came over the line, once the framing is off: no content coding undone."""

    def value(self, name: str) -> str | None:
        found = [value for key, value in self.fields if key.lower() == name]
        assert len(found) < 2, self.fields
        return found[0] if found else None


@dataclass
class Ask:
    url: str
    method: str = "GET"
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | None = None
    chunked: bool = False

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces of different sizes."""
        body, sizes = self.body or b"", random.Random(1)
        at = 0
        while at < len(body):
            size = sizes.choice([1, 100, 5_000, 70_000])
            yield body[at : at + size]
            at += size

    async def async_pieces(self) -> AsyncIterator[bytes]:
        for piece in self.pieces():
            yield piece
            await asyncio.sleep(0)


def by_httpx(ask: Ask) -> Answer:
    content = ask.pieces() if ask.chunked else ask.body
    with httpx.Client(trust_env=False, timeout=30) as client:
        with client.stream(ask.method, ask.url, headers=ask.fields, content=content) as response:
            return Answer(response.status_code, response.headers.multi_items(), b"".join(response.iter_raw()))


def by_async_httpx(ask: Ask) -> Answer:
    async def run() -> Answer:
        content = ask.async_pieces() if ask.chunked else ask.body
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            async with client.stream(ask.method, ask.url, headers=ask.fields, content=content) as response:
                body = b"".join([piece async for piece in response.aiter_raw()])
                return Answer(response.status_code, response.headers.multi_items(), body)

    return asyncio.run(run())


def by_aiohttp(ask: Ask) -> Answer:
    async def run() -> Answer:
        data = ask.async_pieces() if ask.chunked else ask.body
        timeout = aiohttp.ClientTimeout(30)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:
            target = yarl.URL(ask.url, encoded=True)  # as it is, not normalised
            asked = session.request(ask.method, target, headers=ask.fields, data=data, allow_redirects=False)
            async with asked as response:
                fields = [(name.decode(), value.decode()) for name, value in response.raw_headers]
                return Answer(response.status, fields, await response.read())

    return asyncio.run(run())


def curl(*words: str, stdin: bytes = b"", timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(timeout), *words]
    return subprocess.run(command, input=stdin, capture_output=True, env=plain_environment(), check=False)


def by_curl(ask: Ask, *words: str) -> Answer:
    options = ["--dump-header", "-", "--request", ask.method] if ask.method != "HEAD" else ["--head"]
    for name, value in ask.fields:
        options += ["--header", f"{name}: {value}"]
    if ask.chunked:
        options += ["--header", "Transfer-Encoding: chunked"]
    if ask.body is not None:
        options += ["--data-binary", "@-"]
    done = curl(*options, *words, ask.url, stdin=ask.body or b"")
    assert done.returncode == 0, done.stderr.decode()
    rest = done.stdout
    while True:  # an interim answer is shown like any other
        head, _, rest = rest.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        if not line.split()[1].startswith("1"):
            break
    fields = [(name, value.strip()) for name, _, value in (text.partition(":") for text in lines)]
    return Answer(int(line.split()[1]), fields, rest)


Via = Callable[[Ask], Answer]
CLIENTS = [
    pytest.param(by_httpx, id="httpx"),
    pytest.param(by_async_httpx, id="async httpx"),
    pytest.param(by_aiohttp, id="aiohttp"),
    pytest.param(by_curl, id="curl", marks=needs_curl),
]
clients = pytest.mark.parametrize("via", CLIENTS)


# What every client does


@clients
def test_a_get_arrives_as_it_was_sent(url, real_proxy, server, via):
    fields = [("X-One", "1"), ("x-Two", "2"), ("X-Colon", "a: b"), ("Authorization", "Bearer none")]
    echo = json.loads(via(Ask(f"{url}/echo?a=%20b&c=%2f", fields=fields)).body)
    assert (echo["method"], echo["target"], echo["version"]) == ("GET", "/echo?a=%20b&c=%2f", "1.1")
    got = [(name.lower(), value) for name, value in echo["fields"]]
    assert [pair for pair in got if pair[0] in ("x-one", "x-two", "x-colon", "authorization")] == [
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-colon", "a: b"),
        ("authorization", "Bearer none"),
    ]
    if server.program != "starlette_app.py":  # uvicorn shows its applications lower case only
        assert ("x-Two", "2") in map(tuple, echo["fields"])
    seen = dict(got)
    assert seen["host"] == real_proxy.address
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert (seen["x-forwarded-host"], seen["via"]) == (real_proxy.address, "1.1 llmpipe")
    assert seen["x-request-id"]


@clients
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_arrives_whole(url, via, method):
    body = random.Random(2).randbytes(300_000)
    answer = via(Ask(f"{url}/upload", method, [("Content-Type", "application/octet-stream")], body))
    assert json.loads(answer.body) == {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}
    assert answer.value("x-request-id")


@clients
def test_an_empty_body_arrives(url, via):
    assert json.loads(via(Ask(f"{url}/upload", "POST", body=b"")).body)["length"] == 0


@clients
def test_a_body_without_a_length_arrives_whole(url, via):
    body = random.Random(3).randbytes(2 * MEGABYTE)
    answer = via(Ask(f"{url}/upload", "POST", body=body, chunked=True))
    assert json.loads(answer.body) == {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}


@clients
@pytest.mark.parametrize("framing", ["&length", ""], ids=["with a length", "without one"])
def test_a_large_answer_arrives_whole(url, server, via, framing):
    target = f"/big?n={6 * MEGABYTE}{framing}"
    status, expected = server.request("GET", target)
    answer = via(Ask(url + target))
    assert answer.status == status == 200
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(expected).digest()
    assert answer.value("content-length") == (str(len(expected)) if framing else None)


@clients
def test_a_coded_answer_is_not_touched(url, server, via):
    answer = via(Ask(f"{url}/gzip", fields=[("Accept-Encoding", "gzip")]))
    assert answer.body == server.request("GET", "/gzip")[1]
    assert answer.value("content-encoding") == "gzip"
    assert gzip.decompress(answer.body).startswith(b"the same words")


def test_a_client_decodes_what_is_coded(url):
    with httpx.Client(trust_env=False, timeout=30) as client:
        assert client.get(f"{url}/gzip").text == "the same words again and again, " * 1000


@clients
def test_events_arrive_byte_for_byte(url, server, via):
    """Comments, carriage returns, events cut in two, half a character, something behind [DONE], no last empty line."""
    answer = via(Ask(f"{url}/events"))
    assert answer.body == server.request("GET", "/events")[1]
    assert answer.body.count(b"\r\n\r\n") == 2
    assert answer.body.endswith(b"data: without a last empty line")
    assert answer.value("content-type").startswith("text/event-stream")


@clients
def test_a_head_has_the_fields_and_no_body(url, via):
    answer = via(Ask(f"{url}/gzip", "HEAD"))
    get = via(Ask(f"{url}/gzip"))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.value("content-length") == str(len(get.body))
    assert answer.value("content-encoding") == "gzip"


@clients
@pytest.mark.parametrize("status", [201, 204, 301, 304, 404, 418, 500, 503])
def test_a_status_is_passed_on(url, via, status):
    answer = via(Ask(f"{url}/status/{status}"))
    assert (answer.status, answer.body) == (status, b"")
    assert (answer.value("location"), answer.value("x-own")) == ("/elsewhere", "1")


# Streaming: the backend sends a piece only after the one before was read, so a proxy that holds one back would stop this


def test_httpx_gets_each_event_before_the_next_is_made(url, server):
    name = unique()
    with httpx.Client(trust_env=False, timeout=30) as client:
        with client.stream("GET", f"{url}/gated/{name}?n=10") as response:
            pieces = response.iter_raw()
            for index in range(10):
                server.open(name)
                assert next(pieces) == f"data: {name} {index}\n\n".encode()
            assert list(pieces) == []


def test_aiohttp_gets_each_event_before_the_next_is_made(url, server):
    name = unique()

    async def run() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/gated/{name}?n=10") as response:
            for index in range(10):
                await asyncio.to_thread(server.open, name)
                assert await response.content.readany() == f"data: {name} {index}\n\n".encode()
            assert await response.content.read() == b""

    asyncio.run(run())


@needs_curl
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_shows_each_event_before_the_next_is_made(url, server, version):
    name = unique()
    command = ["curl", "-sS", "-N", "--noproxy", "*", "--max-time", "30", version, f"{url}/gated/{name}?n=10"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=plain_environment())
    assert process.stdout
    with process.stdout:
        for index in range(10):
            server.open(name)
            expected = f"data: {name} {index}\n\n".encode()
            assert process.stdout.read(len(expected)) == expected
        assert process.stdout.read() == b""
    assert process.wait(30) == 0


# Connections


def test_a_client_keeps_its_connection_and_so_does_the_proxy(server):
    with Proxy(server.url) as proxy:
        with httpx.Client(trust_env=False, timeout=30) as client:
            for index in range(20):
                method = ("GET", "HEAD", "POST")[index % 3]
                target, body = ("/upload", b"x" * index) if method == "POST" else ("/gzip", None)
                assert client.request(method, proxy.url + target, content=body).status_code == 200
            assert proxy.metric("llmpipe_accepted_total") == 1
            connects, reuses = (
                proxy.metric(f"llmpipe_upstream_{w}_total", backend=server.url) for w in ("connects", "reuses")
            )
            assert (connects, reuses) == ((20, 0) if server.program == "http10_app.py" else (1, 19))


def test_60_requests_at_once_by_aiohttp(server, url, real_proxy):
    async def one(session: aiohttp.ClientSession, index: int) -> None:
        body = random.Random(index).randbytes(index * 3000)
        async with session.post(f"{url}/upload", data=body) as response:
            answer = await response.json()
            assert answer == {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, index) for index in range(60)))

    asyncio.run(run())
    real_proxy.settled()


def test_threads_share_a_client(server, url):
    failures: list[object] = []
    with httpx.Client(trust_env=False, timeout=30) as client:

        def ask(number: int) -> None:
            for index in range(10):
                echo = client.post(f"{url}/echo?{number}-{index}", content=b"x" * index).json()
                if (echo["target"], echo["length"]) != (f"/echo?{number}-{index}", index):
                    failures.append(echo)

        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert failures == []


# Answers that break off are never whole ones


@pytest.mark.parametrize("how", ["chunked", "length"])
def test_httpx_raises_where_an_answer_breaks_off(url, how):
    with httpx.Client(trust_env=False, timeout=30) as client:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.get(f"{url}/broken/{how}")


@pytest.mark.parametrize("how", ["chunked", "length"])
def test_aiohttp_raises_where_an_answer_breaks_off(url, server, how):
    if server.program == "http10_app.py":
        pytest.skip("aiohttp takes a reset for the end of an answer without a length, without a proxy too")

    async def run() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/broken/{how}") as response:
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                await response.read()

    asyncio.run(run())


@needs_curl
@pytest.mark.parametrize("how", ["chunked", "length"])
def test_curl_fails_where_an_answer_breaks_off(url, how):
    done = curl(f"{url}/broken/{how}")
    assert done.returncode in (18, 56), done  # partial file, failure in receiving


@needs_curl
def test_curl_with_http10_fails_where_an_answer_breaks_off(url):
    """Only a reset can tell it there."""
    assert curl("--http1.0", f"{url}/broken/chunked").returncode == 56


# curl only


@pytest.fixture(scope="module")
def upload(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("upload") / "8MB"
    path.write_bytes(random.Random(4).randbytes(8 * MEGABYTE))
    return str(path)


def expected_of(path: str) -> dict[str, object]:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "length": os.path.getsize(path)}


@needs_curl
def test_curl_uploads_8_mb_after_100_continue(url, upload, server):
    """--expect100-timeout is longer than the test: with no 100 there would be no body."""
    words = ["--verbose", "--header", "Expect: 100-continue", "--upload-file", upload]
    if server.program != "http10_app.py":  # an HTTP/1.0 server sends none, and curl goes on by itself
        words += ["--expect100-timeout", "60"]
    done = curl(*words, f"{url}/upload")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected_of(upload)
    assert b"> Expect: 100-continue" in done.stderr
    if server.program != "http10_app.py":
        assert done.stderr.count(b"< HTTP/1.1 100 ") == 1


@needs_curl
def test_curl_asks_by_itself_for_100_continue(url, upload):
    """A POST of this size: nobody told it to."""
    done = curl("--verbose", "--data-binary", f"@{upload}", f"{url}/upload")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected_of(upload)
    assert b"> Expect: 100-continue" in done.stderr


@needs_curl
def test_curl_uploads_8_mb_chunked_after_100_continue(url, upload, server):
    words = ["--verbose", "--header", "Expect: 100-continue", "--upload-file", "-"]
    if server.program != "http10_app.py":
        words += ["--expect100-timeout", "60"]
    with open(upload, "rb") as file:
        done = curl(*words, f"{url}/upload", stdin=file.read())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected_of(upload)
    assert b"> Transfer-Encoding: chunked" in done.stderr
    assert done.stderr.count(b"< HTTP/1.1 100 ") == (server.program != "http10_app.py")


@needs_curl
def test_curl_uploads_to_an_http_server_that_keeps_connections(upload):
    with servers.http_server_11() as server, Proxy(server.url) as proxy:
        words = ["--header", "Expect: 100-continue", "--expect100-timeout", "60", "--upload-file", upload]
        done = curl(*words, f"{proxy.url}/upload", *words, f"{proxy.url}/upload")
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == json.dumps(expected_of(upload)) * 2
        # Longer than what is kept to be sent again, each goes up on a fresh connection.
        assert proxy.metric("llmpipe_upstream_connects_total", backend=server.url) == 2


@needs_curl
def test_curl_is_told_of_a_body_that_is_too_large(server, upload):
    with Proxy(server.url, options=["--max-body", "1MB"]) as proxy:
        done = curl("--write-out", "%{http_code} %{size_upload}", "--upload-file", upload, f"{proxy.url}/upload")
        assert done.returncode == 0, done.stderr
        body, _, written = done.stdout.decode().rpartition("}")
        status, sent = written.split()
        assert status == "413"
        assert set(json.loads(body + "}")["error"]) == {"message", "type", "param", "code"}
        assert int(sent) < 8 * MEGABYTE


@needs_curl
def test_curl_with_http10_gets_no_chunks(url, server):
    """The end of the answer is the end of the connection."""
    answer = by_curl(Ask(f"{url}/events"), "--http1.0")
    assert answer.body == server.request("GET", "/events")[1]
    assert answer.value("transfer-encoding") is None
    answer = by_curl(Ask(f"{url}/big?n={MEGABYTE}&length"), "--http1.0")
    assert answer.body == server.request("GET", f"/big?n={MEGABYTE}")[1]
    assert answer.value("content-length") == str(MEGABYTE)


@needs_curl
def test_curl_takes_several_answers_over_one_connection(url, server):
    done = curl(
        "--verbose",
        f"{url}/gzip",
        f"{url}/events",
        "--head",
        f"{url}/gzip",
        "--get",
        f"{url}/gzip",
        "--output",
        os.devnull,
    )
    assert done.returncode == 0, done.stderr
    done = curl("--verbose", *(f"{url}/status/{status}" for status in (204, 200, 304, 404, 200)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"< HTTP/1.1 ") == 5
    assert done.stderr.count(b"Re-using existing connection") == 4


@needs_curl
def test_curl_decodes_what_is_coded(url):
    assert curl("--compressed", f"{url}/gzip").stdout == b"the same words again and again, " * 1000


@needs_curl
def test_killing_curl_stops_the_backend():
    """Between the head and the first piece."""
    with servers.uvicorn() as server, Proxy(server.url) as proxy:
        body = '{"messages": [{"role": "user", "content": "x"}], "stream": true}'
        fields = ["-H", "X-Name: killed", "-H", "X-Gated: 1"]
        command = ["curl", "-sSN", "--noproxy", "*", *fields, "-d", body, f"{proxy.url}/v1/chat/completions"]
        process = subprocess.Popen(command, env=plain_environment())
        server.wait_line("started killed")
        process.kill()
        process.wait(30)
        server.wait_line("stopped killed")
        assert proxy.access()[0]["outcome"] == "client_abort"
