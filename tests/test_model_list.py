"""Rule J3: GET /v1/models is the union of what the file says and what backends list, with real processes; and what is taken of an answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from harness import TIMEOUT, Backend, Client, Connection, Mock, Proxy, Stream, free_port, wait_until

from llmpipe.config import Pool, PoolSettings, Settings, parse_backend
from llmpipe.model_list import MOST_ANSWER, MOST_MODEL, MOST_MODELS, Catalogue, open_pools, parse

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def lines(*names: str, **more: object) -> bytes:
    rows = [{"id": name, "object": "model", "created": 7, "owned_by": "them", **more} for name in names]
    return json.dumps({"object": "list", "data": rows}).encode()


class Lister:
    """A backend that lists models, and says its name to everything else."""

    def __init__(self, *names: str) -> None:
        self.body = lines(*names)
        self.asked: list[Any] = []
        self.answer: Callable[[Connection], None] | None = None
        """Instead of the list."""

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            if (
                request.line.split()[1] == b"/v1/models"
                and b"model list" in (request.values(b"user-agent") or [b""])[0]
            ):
                self.asked.append(request)
                if self.answer is not None:
                    self.answer(connection)
                    return
                body = self.body
            else:
                body = b'{"from": "the backend"}'
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def put(folder: Path, text: str) -> str:
    path = folder / "llmpipe.toml"
    beside = folder / "beside"
    beside.write_text(text)
    beside.replace(path)
    return str(path)


def pool(name: str, models: str, *urls: str, more: str = "") -> str:
    rows = "".join(f'[[pools.{name}.backends]]\nurl = "{url}"\n' for url in urls)
    return f"[pools.{name}]\n{f'models = {models}' if models else ''}\n{more}\n{rows}\n"


def listed(proxy: Proxy) -> dict[str, Any]:
    with Client(proxy) as client:
        response = client.request(MODELS)
    assert response.status == 200
    rows = json.loads(response.body)["data"]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def wait_listed(proxy: Proxy, *names: str) -> None:
    wait_until(lambda: set(listed(proxy)) == set(names), what=f"{names} are listed, and not {set(listed(proxy))}")


def test_j3_what_a_wildcard_stands_for_is_listed_and_survives_its_backend(tmp_path: Path) -> None:
    """With real servers: `llmpipe mock`, and OpenAI's client."""
    with (
        Mock("--model", "llama-3-8b", "--model", "llama-3-70b", "--model", "exact", "--model", "other") as one,
        Mock("--model", "exact", "--model", "llama-of-two") as two,
    ):
        text = pool("one", '["llama-*"]', one.url) + pool(
            "two", '["exact"]', two.url, more='aliases = { "gpt" = "exact" }'
        )
        with Proxy(options=("--config", put(tmp_path, text))) as proxy:
            # The other pool has "exact", and is not asked: the file says what it has. Nothing leads "other" anywhere.
            wait_listed(proxy, "exact", "gpt", "llama-3-70b", "llama-3-8b")
            before = listed(proxy)
            one.stop(signal.SIGKILL)
            with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client:
                assert [model.id for model in client.models.list()] == sorted(before)
            proxy.signal(signal.SIGHUP)
            proxy.wait_log("reloaded")
            wait_until(lambda: [line for line in proxy.log.copy() if line["event"] == "models not listed"])
            assert listed(proxy) == before
            put(
                tmp_path,
                pool("two", '["exact"]', two.url) + pool("one", '["llama-*"]', f"http://127.0.0.1:{free_port()}"),
            )
            proxy.signal(signal.SIGHUP)
            wait_listed(proxy, "exact")  # that backend is in the file no more
            assert listed(proxy)["exact"] == before["exact"]


def test_j3_a_new_model_is_listed_after_a_reload(tmp_path: Path) -> None:
    lister = Lister("a")
    with Backend(lister) as one:
        path = put(tmp_path, pool("rest", "", one.url) + pool("x", '["x"]', one.url))
        text = Path(path).read_text()
        put(tmp_path, 'default_pool = "rest"\n' + text)
        with Proxy(options=("--config", path, "--workers", "2")) as proxy:
            wait_listed(proxy, "a", "x")
            (request,) = lister.asked
            assert request.line == b"GET /v1/models HTTP/1.1"
            assert request.values(b"host") == [one.address.encode()]
            assert request.values(b"authorization") == []
            lister.body = lines("a", "b")
            proxy.signal(signal.SIGHUP)
            wait_listed(proxy, "a", "b", "x")
            lister.body = lines()
            proxy.signal(signal.SIGHUP)
            wait_listed(proxy, "x")


@pytest.mark.slow
def test_j3_a_new_model_is_listed_after_a_while(tmp_path: Path) -> None:
    lister = Lister("m-a")
    with Backend(lister) as one, Proxy(options=("--config", put(tmp_path, pool("p", '["m-*"]', one.url)))) as proxy:
        wait_listed(proxy, "m-a")
        lister.body = lines("m-a", "m-b")
        wait_until(lambda: set(listed(proxy)) == {"m-a", "m-b"}, timeout=120)
        assert len(lister.asked) >= 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("hangs", marks=pytest.mark.slow),
        "drips",
        "garbage",
        "huge",
        "too many",
        "500",
        "refuses",
        "no list",
        "deep",
    ],
)
def test_j3_a_backend_that_answers_badly_harms_no_other(tmp_path: Path, fault: str) -> None:
    stop = threading.Event()

    def answer(connection: Connection) -> None:
        def whole(body: bytes, status: bytes = b"200 OK") -> None:
            connection.send(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

        if fault == "hangs":
            stop.wait(120)
        elif fault == "drips":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            with suppress(OSError):
                while not stop.wait(0.05):
                    connection.send(b" ")
        elif fault == "huge":
            with suppress(OSError):
                whole(lines("m-1", pad=" " * MOST_ANSWER))
        elif fault == "too many":
            whole(lines(*(f"m-{n:04}" for n in range(MOST_MODELS + 5))))
        else:
            whole(
                {
                    "garbage": b"\x00\xff\x00<html>",
                    "no list": b'{"models": []}',
                    "deep": b"[" * 500_000,
                    "500": lines("m-500"),
                }[fault],
                b"500 X" if fault == "500" else b"200 OK",
            )
        connection.close()

    bad, good = Lister(), Lister("n-1")
    bad.answer = answer
    with Backend(bad) as one, Backend(good) as two:
        url = f"http://127.0.0.1:{free_port()}" if fault == "refuses" else one.url
        text = pool("bad", '["m-*"]', url) + pool("good", '["n-*"]', two.url) + pool("c", '["c"]', two.url)
        with Proxy(options=("--config", put(tmp_path, text))) as proxy:
            if fault == "too many":
                wait_listed(proxy, "c", "n-1", *(f"m-{n:04}" for n in range(MOST_MODELS)))
            else:
                wait_listed(proxy, "c", "n-1")
                if fault not in ("hangs", "drips"):  # which are waited for
                    line = proxy.wait_log("models not listed")
                    assert line["backend"] == url
            good.body = lines("n-1", "n-2")
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: "n-2" in listed(proxy))
            if fault == "hangs":  # one question at a time, and its time is bounded
                assert len(bad.asked) == 1
                assert proxy.wait_log("models not listed")["reason"] == "no answer within 5 s"
            stop.set()
        one.errors.clear()


def test_j3_one_pool_without_names_is_asked_itself(tmp_path: Path) -> None:
    lister = Lister("a")
    with Backend(lister) as one:
        for options in (("--backend", one.url), ("--config", put(tmp_path, pool("p", "", one.url)))):
            with Proxy(options=options) as proxy, Client(proxy) as client:
                assert json.loads(client.request(MODELS).body) == {"from": "the backend"}
    assert lister.asked == []


def test_j3_where_no_model_is_known_the_default_pool_is_asked(tmp_path: Path) -> None:
    """Servers that want a key tell the proxy nothing, and the client with its key what they have."""

    def refuse(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    lister = Lister()
    lister.answer = refuse
    with Backend(lister) as one:
        text = 'default_pool = "p"\n' + pool("p", '["m-*"]', one.url)
        with Proxy(options=("--config", put(tmp_path, text))) as proxy, Client(proxy) as client:
            assert proxy.wait_log("models not listed")["reason"] == "status 401"
            assert json.loads(client.request(MODELS).body) == {"from": "the backend"}
            put(tmp_path, pool("p", '["m-*"]', one.url))
            proxy.signal(signal.SIGHUP)
            proxy.wait_log("reloaded")
            wait_listed(proxy)  # no backend may be asked now, and nothing is known


def test_j3_an_answer_never_waits_for_a_backend(tmp_path: Path) -> None:
    """The backend is asked, and does not answer; clients get theirs in the meantime."""
    stop = threading.Event()
    lister = Lister()
    lister.answer = lambda connection: stop.wait(120)
    with (
        Backend(lister) as one,
        Proxy(options=("--config", put(tmp_path, pool("p", '["c", "m-*"]', one.url)))) as proxy,
    ):
        wait_until(lambda: lister.asked)
        for _ in range(5):
            assert set(listed(proxy)) == {"c"}
        assert not stop.is_set()
        stop.set()


def test_j3_lists_that_say_the_same_are_the_same(tmp_path: Path) -> None:
    """vLLM makes times and ids of permissions anew for each answer; the list of models does not change with them."""
    number = 0

    def answer(connection: Connection) -> None:
        nonlocal number
        number += 1
        rows = {
            "created": number,
            "permission": [{"id": f"modelperm-{number}", "created": number}],
            "max_model_len": 4096,
        }
        body = lines("m", **rows)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.close()

    lister = Lister()
    lister.answer = answer
    with Backend(lister) as one, Proxy(options=("--config", put(tmp_path, pool("p", '["m*", "z"]', one.url)))) as proxy:
        wait_listed(proxy, "m", "z")
        before = listed(proxy)
        assert (before["m"]["created"], before["m"]["max_model_len"], before["m"]["owned_by"]) == (1, 4096, "them")
        assert before["z"]["owned_by"] == "llmpipe"
        time.sleep(1.1)  # a time that was made anew would be another second
        for count in (2, 3):
            proxy.signal(signal.SIGHUP)
            wait_until(lambda count=count: len(lister.asked) >= count)
        proxy.wait_metric("llmpipe_reloads_total", 2, result="success")
        assert listed(proxy) == before


READERS = 8
HEAD_MODELS = MODELS.replace(b"GET", b"HEAD")
SLACK = (24 if "asan" in os.environ.get("LD_PRELOAD", "") else 4) << 20
"""What resident memory may move by itself."""


class Slow(Client):
    """A client of which the kernel takes little that it has not read."""

    def __init__(self, proxy: Proxy) -> None:
        sock = socket.socket()
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        # Else loopback has segments of 64 KB, and the sender's kernel takes 2 MB before anything is read.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        sock.connect(("127.0.0.1", proxy.port))
        Stream.__init__(self, sock)


@contextmanager
def long_list(folder: Path, *options: str) -> Iterator[tuple[Proxy, bytes]]:
    """A proxy whose list of models has some MB, and the list."""
    with ExitStack() as stack:
        text = ""
        for name in "abc":
            lister = Lister()
            lister.body = lines(*(f"{name}-{n:03}" for n in range(900)), pad=name * 1000)
            text += pool(name, f'["{name}-*"]', stack.enter_context(Backend(lister)).url)
        proxy = stack.enter_context(Proxy(options=("--config", put(folder, text), "--workers", "1", *options)))
        wait_until(lambda: len(listed(proxy)) == 2700)
        with Client(proxy) as client:
            yield proxy, client.request(MODELS).body


def test_g1_a_list_of_models_that_is_not_read_is_not_copied(tmp_path: Path) -> None:
    """Each client that does not read holds a buffer, and gets the whole list that it was promised, though there is a new one since."""
    with long_list(tmp_path) as (proxy, whole), ExitStack() as stack:
        assert len(whole) > 2_500_000
        before = proxy.rss()
        clients = [stack.enter_context(Slow(proxy)) for _ in range(READERS)]
        for client in clients:
            client.send(MODELS)
        heads = [client.read_head() for client in clients]
        assert all(b"Content-Length: %d\r\n" % len(whole) in head for head in heads)
        proxy.wait_metric("llmpipe_buffers_held", READERS)
        assert proxy.rss() - before < SLACK
        got = [client.read(len(whole) // 2) for client in clients]
        proxy.wait_metric("llmpipe_buffers_held", READERS)
        assert proxy.rss() - before < SLACK
        with Backend(Lister()) as other:
            put(tmp_path, pool("z", '["z"]', other.url))
            proxy.signal(signal.SIGHUP)
            wait_listed(proxy, "z")
        ok = proxy.outcome("ok")
        for client, half in zip(clients, got, strict=True):
            assert half + client.read(len(whole) - len(half)) == whole
        proxy.wait_metric("llmpipe_exchanges_total", ok + READERS, outcome="ok")
        assert proxy.metric("llmpipe_buffers_held") == 0
        for client in clients:
            assert set(json.loads(client.request(MODELS).body)) == {"object", "data"}


def test_j3_requests_behind_one_for_the_list_wait_for_its_end(tmp_path: Path) -> None:
    with long_list(tmp_path) as (proxy, whole), Slow(proxy) as client:
        client.send(MODELS + HEAD_MODELS + MODELS)
        proxy.wait_metric("llmpipe_buffers_held", 2)  # one has the requests behind the first
        first = client.read_response()
        head = client.read_response("HEAD")
        second = client.read_response()
        assert first.body == second.body == whole
        assert (head.status, head.values(b"content-length"), head.body) == (200, [b"%d" % len(whole)], b"")
        client.send(MODELS.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        assert client.read_response().body == whole
        assert client.read_eof() == b""


@pytest.mark.parametrize("how", ["fin", "reset", "send time-out"])
def test_j3_a_client_that_leaves_in_the_middle_of_the_list(tmp_path: Path, how: str) -> None:
    waits = how == "send time-out"
    with long_list(tmp_path, *(("--send-timeout", "2s") if waits else ())) as (proxy, _), Slow(proxy) as client:
        client.send(MODELS)
        client.read_head()
        if not waits:
            client.read(100_000)
        if how == "reset":
            client.reset()
        elif how == "fin":
            client.half_close()
        outcome = "timeout_send" if waits else "client_abort"
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome=outcome)
        assert proxy.metric("llmpipe_buffers_held") == 0
        assert len(listed(proxy)) == 2700


def test_j3_a_drain_waits_for_who_reads_the_list(tmp_path: Path) -> None:
    with long_list(tmp_path) as (proxy, whole), Slow(proxy) as client:
        client.send(MODELS)
        client.read_head()
        proxy.wait_metric("llmpipe_buffers_held", 1)
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        assert client.read(len(whole)) == whole
        assert client.read_eof() == b""
        client.close()
        assert proxy.wait_exit() == 0


def settings(default: str = "", **pools: tuple[str, ...]) -> Settings:
    return Settings(
        default_pool=default,
        pools=tuple(
            Pool(
                name=name,
                settings=PoolSettings(backends=(parse_backend(f"http://b?name={name}"),)),
                models=tuple(model for model in models if "=" not in model),
                aliases=dict(model.split("=") for model in models if "=" in model),
            )
            for name, models in pools.items()
        ),
    )


ALL = ("llama-1", "llama-x-1", "exact", "alias", "free", "qwen-1")


@pytest.mark.parametrize(
    ("made", "asked", "names"),
    [
        (settings(a=("llama-*",)), {"a"}, {"llama-1", "llama-x-1"}),
        (settings(a=("*",)), {"a"}, set(ALL)),
        # The longest wildcard counts, and before it whole names and aliases.
        (settings(a=("llama-*",), b=("llama-x-*", "exact")), {"a", "b"}, {"exact", "a:llama-1", "b:llama-x-1"}),
        (settings(a=("*",), b=("exact", "alias=exact")), {"a"}, {"exact", "alias", *(f"a:{n}" for n in ALL if n[-1] != "s" and n[:2] not in ("ex", "al"))}),
        # What nothing else leads anywhere is the default pool's.
        (settings("a", a=("exact",), b=("llama-*",)), {"a", "b"}, {"exact", "b:llama-1", "b:llama-x-1", "a:alias", "a:free", "a:qwen-1"}),
        # A pool without names has what its routes lead there, but nothing that a name leads elsewhere.
        (settings("b", a=(), b=("*",)), {"a", "b"}, {f"b:{name}" for name in ALL}),
        (settings(a=(), b=("llama-*", "exact")), {"a", "b"}, {"exact", "b:llama-1", "b:llama-x-1", "a:alias", "a:free", "a:qwen-1"}),
        (settings(a=("exact",), b=("alias=exact", "x")), set(), {"exact", "alias", "x"}),
        (settings("a", a=()), set(), None),
        (settings("a", a=(), b=()), set(), None),
        (settings("a", a=("m-*",)), {"a"}, set(ALL)),
        (settings(a=("m-*",)), {"a"}, set()),
    ],
)  # fmt: skip
def test_j3_a_model_is_listed_where_requests_for_it_go(made: Settings, asked: set[str], names: set[str] | None) -> None:
    assert {pool.name for pool in open_pools(made)} == asked
    catalogue = Catalogue()
    for name in asked:
        catalogue.learn(name, {model: {"id": model, "owned_by": name} for model in ALL})
    listing = catalogue.listing(made)
    if names is None:
        assert listing == b""
        return
    rows = {row["id"]: row["owned_by"] for row in json.loads(listing)["data"]}
    assert set(rows) == {name.rpartition(":")[2] for name in names}
    for name in names:
        owner, colon, model = name.rpartition(":")
        assert not colon or rows[model] == owner
    catalogue.forget(settings(other=("exact",)))
    assert set(json.loads(catalogue.listing(settings(a=("*",), b=("c",))))["data"][0]["id"]) == {"c"}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"7", b'{"models": []}', b'{"data": 7}', b'{"data": {}}', b'{"data": [', b'{"data": [NaN]}', b"\xff",
     b"[" * 100_000, b'{"data": ["\\ud800"]}'],
)  # fmt: skip
def test_j3_what_is_no_list_of_models(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse(body)


def test_j3_what_is_taken_of_a_list() -> None:
    assert parse(b'{"object": "list", "data": null}') == {}
    rows = [
        {"id": "a", "object": "x", "created": 1, "owned_by": "library", "root": "r"},
        {"id": "a", "created": 2},
        {"id": "b", "created": "yesterday", "owned_by": 7, "meta": {"n": [1, 2.5, None]}},
        {"id": "c", "created": 3, "owned_by": "me", "pad": "x" * MOST_MODEL},
        {"id": "d", "created": -1},
        *({"id": name} for name in ("", "x" * 257, 'a"b', "a\\b", "a\nb", "llama-*", 7, None)),
        {"name": "e"},
        "f",
    ]
    assert parse(json.dumps({"data": rows}).encode()) == {
        "a": {"id": "a", "object": "model", "created": 1, "owned_by": "library", "root": "r"},
        "b": {"id": "b", "object": "model", "meta": {"n": [1, 2.5, None]}},
        "c": {"id": "c", "object": "model", "created": 3, "owned_by": "me"},
        "d": {"id": "d", "object": "model"},
    }


def test_j3_a_list_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.model_list.MOST_LISTING", 10_000)
    catalogue = Catalogue()
    catalogue.learn("a", {f"m-{n:03}": {"id": f"m-{n:03}"} for n in range(500)})
    rows = json.loads(catalogue.listing(settings(a=("m-*", "zz"))))["data"]
    assert 50 < len(rows) < 200
    assert rows[-1]["id"] == "zz"  # those of the file are there whatever backends say
    assert [row["id"] for row in rows[:-1]] == [f"m-{n:03}" for n in range(len(rows) - 1)]
