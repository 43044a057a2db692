"""What users of real clients see, each in front of each real server: early answers, 204 with a body, connections that end at any moment.

urllib, http.client, requests, httpx, aiohttp, openai, curl, Node's fetch and the JDK's HttpClient. A client asks many times in a row,
since what they lose, they lose now and then.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import select
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import openai
import pytest
import requests
import servers
from harness import LAST_CHUNK, Backend, Client, Connection, Proxy, chunk, free_port, respond
from servers import Server, plain_environment
from tools import tool

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20
TIMES = 20
PROGRAMS = Path(__file__).parent / "clients"


@pytest.fixture(
    scope="module",
    params=[servers.uvicorn, servers.aiohttp, servers.http_server],
    ids=["uvicorn", "aiohttp", "http.server"],
)
def server(request) -> Iterator[Server]:
    with request.param() as server:
        yield server


# Each client as one function: asks these URLs in turn, on the connections that it keeps, and says the status of each, or why there
# is none. A body of `size` zeros makes it a POST.


def pieces(size: int) -> Iterator[bytes]:
    for at in range(0, size, 65536):
        yield bytes(min(65536, size - at))


def body_of(size: int, chunked: bool) -> bytes | Iterator[bytes] | None:
    return (pieces(size) if chunked else bytes(size)) if size else None


def each(urls: Sequence[str], ask: Callable[[str], int]) -> list[str]:
    """What `ask` returns or raises."""

    def one(url: str) -> str:
        try:
            return str(ask(url))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return [one(url) for url in urls]


def by_urllib(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(url: str) -> int:
        try:
            with opener.open(urllib.request.Request(url, body_of(size, chunked)), timeout=60) as response:
                response.read()
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                error.read()
            return error.code

    return each(urls, ask)


def by_http_client(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    connection = http.client.HTTPConnection(httpx.URL(urls[0]).netloc.decode(), timeout=60)

    def ask(url: str) -> int:
        try:
            target = httpx.URL(url).raw_path.decode()
            connection.request("POST" if size else "GET", target, body_of(size, chunked))
            response = connection.getresponse()
            response.read()
        except BaseException:
            connection.close()
            raise
        return response.status

    try:
        return each(urls, ask)
    finally:
        connection.close()


def by_requests(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    with requests.Session() as session:
        session.trust_env = False

        def ask(url: str) -> int:
            return session.request("POST" if size else "GET", url, data=body_of(size, chunked), timeout=60).status_code

        return each(urls, ask)


def by_httpx(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        return each(
            urls,
            lambda url: client.request("POST" if size else "GET", url, content=body_of(size, chunked)).status_code,
        )


def by_openai(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http_client,
        openai.OpenAI(base_url=urls[0], api_key="-", max_retries=0, timeout=60, http_client=http_client) as client,
    ):

        def ask(url: str) -> int:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * size}]}
            try:
                if size:
                    return client.post(url, body=body, cast_to=httpx.Response).status_code
                return client.get(url, cast_to=httpx.Response).status_code
            except openai.APIStatusError as error:
                return error.status_code

        return each(urls, ask)


def by_curl(
    urls: Sequence[str], size: int = 0, chunked: bool = False, *, words: Sequence[str] = ("-H", "Expect:")
) -> list[str]:
    command = [tool("curl", "curl"), "-sS", "--noproxy", "*", "--max-time", "60", *words]
    if size:
        command += ["--data-binary", "@-", *(["-H", "Transfer-Encoding: chunked"] if chunked else [])]
    answers = []
    for url in urls:
        one = [*command, "-o", "/dev/null", "-w", "%{http_code}", url]
        done = subprocess.run(one, input=bytes(size), capture_output=True, env=plain_environment(), check=False)
        # Its exit code is not looked at: that a body was not wanted is none of its errors in some versions, and one in others.
        answers.append(done.stdout.decode() if done.stdout != b"000" else done.stderr.decode())
    return answers


def by_curl_that_expects(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    """As it is by default, with Expect: 100-continue."""
    return by_curl(urls, size, chunked, words=())


def lines_of(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, env=plain_environment(), check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def by_aiohttp(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    framing = "chunked" if chunked else "length"
    return lines_of(sys.executable, str(PROGRAMS / "aiohttp_ask.py"), str(size), framing, *urls)


def by_node(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    framing = "chunked" if chunked else "length"
    return lines_of(tool("node", "nodejs"), str(PROGRAMS / "fetch.mjs"), str(size), framing, *urls)


def by_java(urls: Sequence[str], size: int = 0, chunked: bool = False, *, version: str = "HTTP_1_1") -> list[str]:
    framing = "chunked" if chunked else "length"
    java = tool("java", "default-jdk-headless")
    return lines_of(java, str(PROGRAMS / "Ask.java"), version, str(size), framing, *urls)


def by_java_by_default(urls: Sequence[str], size: int = 0, chunked: bool = False) -> list[str]:
    """Asks for h2c, which nobody gives it."""
    return by_java(urls, size, chunked, version="HTTP_2")


Via = Callable[..., list[str]]
CLIENTS: list[Via] = [
    by_urllib,
    by_http_client,
    by_requests,
    by_httpx,
    by_aiohttp,
    by_openai,
    by_curl,
    by_curl_that_expects,
    by_node,
    by_java,
    by_java_by_default,
]


def name_of(client: Via) -> str:
    return client.__name__.removeprefix("by_").replace("_", " ")


clients = pytest.mark.parametrize("via", CLIENTS, ids=name_of)
framings = pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])


def skip_unless_it_can(via: Via, chunked: bool) -> None:
    if via is by_openai and chunked:
        pytest.skip("the openai package knows the length of what it sends")


# Early answers (rule A6)

BODIES = [(401, 4 * MEGABYTE, TIMES), (413, 2 * MEGABYTE, 5), (503, 16 * MEGABYTE, 2)]
"""The status, the size of the body that it does not wait for, and how often."""


@clients
@framings
def test_a6_an_answer_before_the_body_is_seen(url, via, chunked):
    skip_unless_it_can(via, chunked)
    for status, size, times in BODIES:
        assert Counter(via([f"{url}/early/{status}"] * times, size, chunked)) == {str(status): times}


@clients
@framings
def test_a6_an_answer_of_a_backend_that_reads_no_further_is_seen(via, chunked):
    """It leaves the connection open: there is no end to wait for, and nowhere for the body to go."""
    skip_unless_it_can(via, chunked)
    answer = b'{"error": {"message": "not you"}}'
    head = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)

    def deaf(connection: Connection) -> None:
        connection.read_head()
        connection.send(head + answer)

    with Backend(deaf) as backend, Proxy(backend.url) as proxy:
        assert Counter(via([f"{proxy.url}/x"] * TIMES, 4 * MEGABYTE, chunked)) == {"401": TIMES}


@clients
@framings
def test_a6_a_body_over_the_limit_is_answered(server, via, chunked):
    skip_unless_it_can(via, chunked)
    with Proxy(server.url, options=["--max-body", "1MB"]) as proxy:
        assert Counter(via([f"{proxy.url}/upload"] * TIMES, 4 * MEGABYTE, chunked)) == {"413": TIMES}


@clients
@framings
def test_a6_a_backend_that_is_not_there_is_answered_for(via, chunked):
    skip_unless_it_can(via, chunked)
    with Proxy(f"http://127.0.0.1:{free_port()}") as proxy:
        assert Counter(via([f"{proxy.url}/x"] * TIMES, 4 * MEGABYTE, chunked)) == {"502": TIMES}


@clients
@framings
def test_a6_a_client_too_many_is_answered(server, via, chunked):
    skip_unless_it_can(via, chunked)
    with Proxy(server.url, options=["--max-connections", "1"]) as proxy, Client(proxy) as first:
        assert first.request(b"GET /gzip HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        assert Counter(via([f"{proxy.url}/upload"] * 5, 4 * MEGABYTE, chunked)) == {"503": 5}


REFUSED = {
    "130 fields": ({f"X-{n}": "1" for n in range(130)}, 431),
    "a coding": ({"Transfer-Encoding": "gzip"}, 400),
    "a host": ({"Host": "a b"}, 400),
    "two framings": ({"Transfer-Encoding": "chunked", "Content-Length": "100000"}, 400),
    "an expectation": ({"Expect": "a miracle"}, 417),
    "a close too": ({"Connection": "close", "Transfer-Encoding": "gzip"}, 400),
    "a long field": ({"X-Long": "x" * 40_000}, 431),
}


def begin(proxy: Proxy, fields: dict[str, str]) -> http.client.HTTPConnection:
    """Sends a head with these fields, without the body."""
    connection = http.client.HTTPConnection(proxy.address, timeout=30)
    connection.putrequest("POST", "/upload", skip_host="Host" in fields, skip_accept_encoding=True)
    for name, value in fields.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("size", [100, 100_000, 4 * MEGABYTE])
def test_a6_a_head_that_is_refused_is_answered_whatever_comes_behind(real_proxy, reason, size):
    """http.client sends the body by itself, behind the head. What comes behind a broken head has no end that anybody knows."""
    fields, status = REFUSED[reason]
    for _ in range(TIMES):
        connection = begin(real_proxy, fields)
        connection.send(bytes(size))
        response = connection.getresponse()
        assert response.status == status
        assert json.loads(response.read())["error"]["code"] == "bad_request"
        connection.close()


@pytest.mark.parametrize("reason", REFUSED)
def test_a6_a_head_that_is_refused_is_answered_to_one_who_goes_on_after_the_answer(real_proxy, reason):
    """The answer is here, unread, when the body is sent: an RST would take it away again."""
    fields, status = REFUSED[reason]
    for _ in range(TIMES):
        connection = begin(real_proxy, fields)
        assert select.select([connection.sock], [], [], 30)[0]
        for _ in range(3):
            connection.send(bytes(1000))
            time.sleep(0.002)
        response = connection.getresponse()
        assert (response.status, len(response.read()) > 0) == (status, True)
        connection.close()


# Answers that have no body and send one (rule C2)


@clients
def test_c2_a_204_with_a_body_is_a_204(via):
    """And the next answer on the connection is what it should be."""
    with servers.fastapi() as server, Proxy(server.url) as proxy:
        words = [f"{proxy.url}/gone/1", f"{proxy.url}/health", f"{proxy.url}/gone/2", f"{proxy.url}/items/"]
        assert via(words * 5) == ["204", "200"] * 10


def test_c2_nothing_follows_a_204_with_a_body():
    with servers.fastapi() as server, Proxy(server.url) as proxy:
        for number in range(10):
            with Client(proxy) as client:
                client.send(b"DELETE /items/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
                head = client.read_head()
                assert head.startswith(b"HTTP/1.1 204 ")
                assert b"content-length" not in head.lower()
                assert b"transfer-encoding" not in head.lower()
                assert client.silent(0.05) or b"connection: close" in head.lower()
                if b"connection: close" not in head.lower():
                    answer = client.request(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert (answer.status, answer.body) == (200, b'"well"')
        proxy.settled()
        assert proxy.outcome("upstream_error") == 0


# Connections that the backend closes at any moment (rule B3)

POSTS = 40


@framings
@pytest.mark.parametrize("size", [1_200_000, 1000], ids=["1.2 MB", "1 KB"])
@pytest.mark.parametrize("keep_alive", ["0", "0.003"])
@pytest.mark.parametrize("start", [servers.uvicorn, servers.aiohttp], ids=["uvicorn", "aiohttp"])
def test_b3_a_backend_that_closes_soon_loses_no_post(start, keep_alive, size, chunked):
    with start("--keep-alive", keep_alive) as server, Proxy(server.url) as proxy:
        assert post_on(proxy, size, chunked, seed=1) == {200: POSTS}
        assert proxy.outcome("ok") == POSTS


@framings
@pytest.mark.parametrize("size", [1_200_000, 1000], ids=["1.2 MB", "1 KB"])
def test_b3_a_backend_that_closes_3_ms_after_each_answer_gets_each_post_once(size, chunked):
    whole = itertools.count()

    def short_lived(connection: Connection) -> None:
        request = connection.read_request()
        assert len(request.body) == size
        next(whole)
        respond(connection)
        time.sleep(0.003)
        connection.close()

    with Backend(short_lived) as backend, Proxy(backend.url) as proxy:
        assert post_on(proxy, size, chunked, seed=2) == {200: POSTS}
        assert next(whole) == POSTS


def post_on(proxy: Proxy, size: int, chunked: bool, seed: int) -> Counter[int]:
    """Posts again and again on one connection, at moments around that at which the backend closes."""
    dice = random.Random(seed)
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection(proxy.address, timeout=30)
    for _ in range(POSTS):
        connection.request("POST", "/upload", body_of(size, chunked))
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
        time.sleep(dice.uniform(0, 0.006))
    connection.close()
    return statuses


# The names that backends know themselves by (rule B1)


class Particular:
    """A backend with Ollama's rule: who asks for another name than localhost, or for no address, is answered 403."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    def __call__(self, connection: Connection) -> None:
        while True:
            (host,) = connection.read_request().values(b"host")
            self.hosts.append(host.decode())
            name = self.hosts[-1].rpartition(":")[0] or self.hosts[-1]
            if name == "localhost" or name.replace(".", "").isdigit() or name.startswith("["):
                respond(connection)
            else:
                connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def ask_for(proxy: Proxy, host: str, times: int = 1) -> list[int]:
    """Statuses of POSTs over one connection."""
    with httpx.Client(trust_env=False, timeout=30) as client:
        return [client.post(proxy.url, content=b"x", headers={"Host": host}).status_code for _ in range(times)]


def test_b1_a_backend_that_knows_no_other_name_is_asked_by_its_own():
    with Backend(Particular()) as backend:
        with Proxy(backend.url) as proxy:
            assert ask_for(proxy, "llm.example.com") == [403]
        with Proxy(f"{backend.url}?host=backend") as proxy:
            assert ask_for(proxy, "llm.example.com", 3) == [200] * 3
        assert backend.script.hosts == ["llm.example.com"] + [backend.address] * 3


def test_b1_curl_asks_for_a_name_that_the_backend_does_not_know():
    with Backend(Particular()) as backend, Proxy(f"{backend.url}?host=backend") as proxy:
        words = ("--connect-to", f"llm.example.com:80:{proxy.address}", "-H", "Expect:")
        assert by_curl(["http://llm.example.com/"], 100, words=words) == ["200"]
        assert backend.script.hosts == [backend.address]


@pytest.mark.parametrize("client_host", ["llm.example.com", "127.0.0.1:11434"])
def test_b1_no_backend_gets_the_name_of_the_one_that_was_tried_before(client_host):
    """The first takes the request and is gone; the second knows nothing of what the first is called."""
    asked: list[str] = []

    def fails(connection: Connection) -> None:
        asked.extend(value.decode() for value in connection.read_request().values(b"host"))
        connection.close()

    particular = Particular()
    with Backend(fails) as first, Backend(particular) as second:
        for option in ("?host=backend", "?host=first.internal"):
            with Proxy(f"{first.url}{option}", f"{second.url}?host=backend") as proxy:
                seen = len(asked)
                for _ in range(20):  # whichever has the turn
                    assert ask_for(proxy, client_host) == [200]
                    if len(asked) > seen:
                        break
        assert asked == [first.address, "first.internal"]
        assert set(particular.hosts) == {second.address}


def test_b1_a_backend_without_the_option_gets_the_name_that_the_client_sent():
    """Behind one that has it."""
    asked: list[str] = []

    def fails(connection: Connection) -> None:
        asked.extend(value.decode() for value in connection.read_request().values(b"host"))
        connection.close()

    particular = Particular()
    with Backend(fails) as first, Backend(particular) as second:
        with Proxy(f"{first.url}?host=backend", second.url) as proxy:
            while not asked:
                assert ask_for(proxy, "localhost:1") == [200]
        assert (asked, set(particular.hosts)) == ([first.address], {"localhost:1"})


# Codings in any case of letters (rule A4)


@pytest.mark.parametrize("coding", [b"Chunked", b"CHUNKED", b"chunked"])
def test_a4_a_coding_in_any_case_of_letters_is_understood(real_proxy, server, coding):
    """Servers that look for the word as it is written get it as it is written."""
    fields = b"Transfer-Encoding: %s\r\n" % coding
    with Client(real_proxy) as client:
        for size in (1, 100_000):
            body = chunk(bytes(size)) + LAST_CHUNK
            answer = client.request(b"POST /upload HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body)
            assert (answer.status, json.loads(answer.body)["length"]) == (200, size)
