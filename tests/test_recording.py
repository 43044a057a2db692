"""Rules U1 to U3 with the engine: what a proxy records of its answers, into files and for who asks."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LAST_CHUNK,
    TIMEOUT,
    Backend,
    Client,
    Connection,
    Mock,
    Proxy,
    chunk,
    free_port,
    respond,
    sse_head,
    wait_until,
)

from llmpipe import recording
from llmpipe.recording import Recording

SECRET = "s3cr3t-5up3r"
TOKEN = "t0k3n-0f-the-admin"
POST = b"POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
PACE = 0.06


def small(connection: Connection) -> None:
    """A backend that answers each request with 200 and two bytes."""
    while True:
        connection.read_request()
        respond(connection)


def paced(connection: Connection) -> None:
    """A backend that sends an event each PACE seconds, counted from the request."""
    while True:
        connection.read_request()
        connection.send(sse_head())
        for n in range(4):
            time.sleep(PACE)
            connection.send(chunk(b"data: %d\n\n" % n))
        time.sleep(PACE)
        connection.send(LAST_CHUNK)


class Held:
    """A backend that sends one event and the rest when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(sse_head() + chunk(b"data: 1\n\n"))
            assert self.go.wait(TIMEOUT)
            connection.send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)


def options(folder: Path, *more: str) -> list[str]:
    """Every answer is recorded there, unless `more` says otherwise."""
    return ["--record", str(folder), "--record-share", "1", *more]


def files(folder: Path) -> list[Path]:
    """The recordings there are, the oldest first."""
    return sorted(folder.glob("*.jsonl"))


def recorded(folder: Path, n: int = 1) -> list[Recording]:
    """What the files have, once there are `n` of them and each is whole."""
    found: list[Recording] = []

    def whole() -> bool:
        found.clear()
        texts = [path.read_bytes() for path in files(folder)]
        if len(texts) < n or not all(b'"end_us"' in text and text.endswith(b"\n") for text in texts):
            return False
        found.extend(one for path in files(folder) for one in recording.read(path))
        return True

    wait_until(whole, what=f"{n} recordings")
    return found


def body_of(found: Recording) -> bytes:
    return b"".join(piece.data for piece in found.pieces)


def counted(proxy: Proxy, result: str) -> float:
    return proxy.metric("llmpipe_recordings_total", result=result)


@contextmanager
def post(proxy: Proxy, query: str = "", method: str = "POST", **fields: str) -> Iterator[http.client.HTTPResponse]:
    """The answer of the admin endpoint to /record, whose connection ends with it."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=TIMEOUT)
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        connection.request(method, f"/record?{query}" if query else "/record", headers=headers)
        yield connection.getresponse()
    finally:
        connection.close()


def read(text: bytes, folder: Path) -> list[Recording]:
    """The recordings in what the admin endpoint sent."""
    path = folder / "answer"
    path.write_bytes(text)
    return recording.read(path) if text else []


# ---------------------------------------------------------------------------------------------------------- what is recorded


def test_u1_the_pieces_are_the_body_and_their_times_are_those_of_the_backend(proxy_to, tmp_path: Path) -> None:
    begun = time.time()
    with Backend(paced) as backend:
        proxy = proxy_to(backend, options=options(tmp_path))
        with Client(proxy) as client:
            answer = client.request(POST.replace(b"Host: a", b"Host: a\r\nX-Request-ID: paced-1"))
            assert answer.body == b"".join(b"data: %d\n\n" % n for n in range(4))
        (found,) = recorded(tmp_path)
        assert body_of(found) == answer.body
        times = [piece.at for piece in found.pieces]
        assert times == sorted(times)
        seen = 0
        for piece in found.pieces:
            seen += piece.data.count(b"data: ")
            assert piece.at >= (seen * PACE - 0.005) * 1e6
        assert found.end >= max(times[-1], (5 * PACE - 0.005) * 1e6)
        assert (found.method, found.path, found.model, found.pool) == ("POST", "/v1/chat", "", "default")
        assert (found.request_id, found.backend, found.status) == ("paced-1", backend.url, 200)
        assert (found.content_type, found.outcome, found.reason) == ("text/event-stream", "ok", "")
        assert not found.cut
        assert found.request_body is None
        at = time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(begun))
        assert found.started[:14] == at[:14]
        assert found.started.endswith("+00:00")
        assert counted(proxy, "written") == 1
    (path,) = files(tmp_path)
    assert path.name.endswith("Z-paced-1.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def zipped(connection: Connection) -> None:
    connection.read_request()
    respond(
        connection, gzip.compress(b"text" * 100), [(b"Content-Type", b"text/plain"), (b"Content-Encoding", b"gzip")]
    )


def until_the_end(connection: Connection) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(range(256)) * 1000)
    connection.close()


def empty(connection: Connection) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")


def refused(connection: Connection) -> None:
    connection.read_request()
    connection.send(b"HTTP/1.1 429 Slow\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize("script", [zipped, until_the_end, empty, refused])
def test_u1_an_answer_of_any_framing_is_recorded_as_it_came(proxy_to, tmp_path: Path, script) -> None:
    proxy = proxy_to(script, options=options(tmp_path))
    with Client(proxy) as client:
        answer = client.request(POST)
    (found,) = recorded(tmp_path)
    assert body_of(found) == answer.body
    assert found.status == answer.status
    assert found.content_type.encode() == (answer.values(b"content-type") or [b""])[0]


def test_u1_only_answers_to_posts_and_none_of_the_proxy_are_recorded(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small, options=options(tmp_path))
    dead = proxy_to(f"http://127.0.0.1:{free_port()}", options=options(tmp_path))
    for one in (proxy, dead):
        with Client(one) as client:
            assert client.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status in (200, 502)
            client.request(POST)
    assert len(recorded(tmp_path)) == 1
    proxy.close()
    dead.close()
    assert len(files(tmp_path)) == 1


def test_u1_no_field_and_no_query_is_recorded(proxy_to, tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            respond(connection, b"fine", [(b"Set-Cookie", SECRET.encode()), (b"X-Secret", SECRET.encode())])

    fields = "".join(
        f"{name}: {SECRET}\r\n" for name in ("Authorization", "X-Api-Key", "Cookie", "Proxy-Authorization", "Referer")
    )
    proxy = proxy_to(script, options=options(tmp_path / "files", "--record-request-bodies", "--log-query"))
    targets = [
        f"/v1?key={SECRET}",
        f"/v1;key={SECRET}?a=1",
        f"/to/http://user:{SECRET}@a/v1?b={SECRET}",
        f"/v1%3Fk={SECRET}",
    ]
    with post(proxy, f"count={len(targets)}&request_body=1") as response, Client(proxy) as client:
        for _ in range(2):  # for who asked, and for the files
            for target in targets:
                head = f"POST {target} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 2\r\n\r\n".encode()
                assert client.request(head + b"{}").body == b"fine"
        sent = response.read()
    recorded(tmp_path / "files", len(targets))
    texts = [sent, *(path.read_bytes() for path in files(tmp_path / "files"))]
    assert all(b"fine" in text for text in texts)
    assert not any(SECRET.encode() in text for text in texts)
    assert not any(SECRET in path.name for path in files(tmp_path / "files"))
    assert {one.path for one in read(sent, tmp_path)} == {"/v1", "/v1%3F***", "/v1;***", "/to/http://***@a/v1"}


@pytest.mark.parametrize("asked", [True, False])
def test_u1_what_clients_send_is_recorded_only_where_it_is_asked_for(proxy_to, tmp_path: Path, asked: bool) -> None:
    more = ["--record-request-bodies"] if asked else []
    proxy = proxy_to(small, options=options(tmp_path / "files", *more))
    text = b'{"messages": "h\xc3\xa9 \xff"}'
    plain = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(text[:5]) + chunk(text[5:])
    with Client(proxy) as client:
        for request in (plain, chunked + LAST_CHUNK):
            assert client.request(request).status == 200
        # Each way is told by itself.
        with post(proxy, f"request_body={1 - asked}") as response:
            client.request(plain)
            (found,) = read(response.read(), tmp_path)
    assert found.request_body == (None if asked else text)
    assert [one.request_body for one in recorded(tmp_path / "files", 2)] == [text if asked else None] * 2


def test_u1_what_failed_in_the_middle_is_recorded_as_far_as_it_came(proxy_to, tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        if connection.index == 0:
            connection.close()
        else:
            connection.wait_eof()

    proxy = proxy_to(script, options=options(tmp_path))
    with Client(proxy) as client:
        client.send(POST)
        client.read_head()
        assert client.read_eof() == chunk(b"data: 1\n\n")
    (first,) = recorded(tmp_path)
    with Client(proxy) as client:
        client.send(POST)
        client.read_head()
        assert client.read(len(chunk(b"data: 1\n\n"))) == chunk(b"data: 1\n\n")
    second = next(one for one in recorded(tmp_path, 2) if one.request_id != first.request_id)
    assert (first.outcome, first.status) == ("upstream_abort", 200)
    assert second.outcome == "client_abort"
    assert body_of(first) == body_of(second) == b"data: 1\n\n"


def test_u1_of_several_attempts_the_answer_that_the_client_got_is_recorded(tmp_path: Path) -> None:
    def busy(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")

    with Backend(busy) as a, Backend(small) as b:
        config = tmp_path / "llmpipe.toml"
        rows = [f'[[pools.p.backends]]\nname = "{name}"\nurl = "{url}"\n' for name, url in (("a", a.url), ("b", b.url))]
        config.write_text(f'record = "{tmp_path}/files"\nrecord_share = 1\n[pools.p]\n{"".join(rows)}')
        with Proxy(options=["--config", str(config)]) as proxy, Client(proxy) as client:
            for _ in range(4):
                assert client.request(POST).body == b"ok"
            found = recorded(tmp_path / "files", 4)
    assert a.connections
    assert {(one.backend, one.pool, one.status, body_of(one)) for one in found} == {("b", "p", 200, b"ok")}


# ------------------------------------------------------------------------------------------------------------------- files


def ask(proxy: Proxy, n: int) -> None:
    with Client(proxy) as client:
        for _ in range(n):
            assert client.request(POST).body == b"ok"


def test_u2_nothing_is_recorded_where_nobody_asks_for_it(proxy_to, tmp_path: Path) -> None:
    plain = proxy_to(small)
    none = proxy_to(small, options=options(tmp_path, "--record-share", "0"))
    for proxy in (plain, none):
        ask(proxy, 20)
        proxy.close()
    assert files(tmp_path) == []


def test_u2_a_share_of_the_answers_is_recorded(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small, options=options(tmp_path, "--record-share", "0.5"))
    ask(proxy, 200)
    proxy.close()
    assert 50 < len(files(tmp_path)) < 150  # beyond that in one run of 10^12


@pytest.mark.parametrize("workers", ["1", "3"])
def test_u2_every_worker_records_and_the_folder_keeps_the_newest(proxy_to, tmp_path: Path, workers: str) -> None:
    proxy = proxy_to(small, options=options(tmp_path, "--record-files", "5", "--workers", workers))
    with ExitStack() as stack:
        for client in [stack.enter_context(Client(proxy)) for _ in range(6)]:
            for _ in range(4):
                client.request(POST)
    proxy.wait_metric("llmpipe_recordings_total", 24, result="written")
    proxy.close()
    assert len(files(tmp_path)) == 5


def test_u2_what_is_longer_is_cut_and_says_so(proxy_to, tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        while True:
            request = connection.read_request()
            respond(connection, b"x" * int(request.body))

    proxy = proxy_to(script, options=options(tmp_path, "--record-size", "64KB"))
    with Client(proxy) as client:
        for size in (b"1000000", b"1000  "):
            client.request(POST.replace(b"Content-Length: 2\r\n\r\n{}", b"Content-Length: 7\r\n\r\n%-7s" % size))
    # Names of the same millisecond are in the order of their ids.
    first, second = sorted(recorded(tmp_path, 2), key=lambda one: not one.cut)
    assert first.cut
    assert len(body_of(first)) <= 64 << 10
    assert (second.cut, body_of(second)) == (False, b"x" * 1000)
    assert (counted(proxy, "cut"), counted(proxy, "written")) == (1, 1)
    assert max(path.stat().st_size for path in files(tmp_path)) < 100_000


def test_u2_a_long_request_is_cut_and_its_answer_is_not(proxy_to, tmp_path: Path) -> None:
    """Of files that have request bodies; who asks for none gets none, and the whole answer."""

    def script(connection: Connection) -> None:
        while True:
            connection.read_request()
            respond(connection, b"x" * 1000)

    text = b"p" * 200_000
    more = ["--record-request-bodies", "--record-size", "64KB"]
    proxy = proxy_to(script, options=options(tmp_path / "files", *more))
    request = POST.replace(b"Content-Length: 2\r\n\r\n{}", b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
    with Client(proxy) as client:
        assert client.request(request).body == b"x" * 1000
        (found,) = recorded(tmp_path / "files")
        assert (found.cut, found.request_cut, body_of(found)) == (False, True, b"x" * 1000)
        assert found.request_body is not None
        assert text.startswith(found.request_body)
        assert 32 << 10 < len(found.request_body) <= 64 << 10
        with post(proxy) as response:
            client.request(request)
            sent = response.read()
        (found,) = read(sent, tmp_path)
        assert (found.cut, found.request_cut, body_of(found)) == (False, False, b"x" * 1000)
        assert b"ppp" not in sent
        assert b"request" not in sent.replace(b'"request_id"', b"")
    assert (counted(proxy, "cut"), counted(proxy, "written")) == (0, 1)


def test_u2_an_answer_before_the_end_of_its_request_is_whole(proxy_to, tmp_path: Path) -> None:
    """What is played back then is no answer that broke off."""

    def script(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 413 Long\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong")
        connection.wait_eof()

    proxy = proxy_to(script, options=options(tmp_path, "--record-request-bodies"))
    with Client(proxy) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
        assert client.read_response().body == b"long"
    (found,) = recorded(tmp_path)
    assert (found.status, body_of(found), found.cut, found.request_cut) == (413, b"long", False, True)
    assert found.is_whole
    with Mock("--replay", str(files(tmp_path)[0])) as mock:
        connection = http.client.HTTPConnection(mock.address, timeout=TIMEOUT)
        connection.request("POST", "/", b"{}")
        assert connection.getresponse().read() == b"long"
        connection.close()


@pytest.mark.parametrize("way", ["gone", "full"])
def test_u2_a_disk_that_fails_costs_recordings_and_one_line(proxy_to, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "files"
    # Files of more than 512 bytes cannot be written, but for their beginning: that is what a full disk looks like.
    limit = ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh"] if way == "full" else []
    proxy = proxy_to(small, options=options(folder, "--record-request-bodies"), prefix=limit)
    if way == "gone":
        shutil.rmtree(folder)
    text = b'{"a": "%s"}' % (b"b" * 4000)
    with Client(proxy) as client:
        for _ in range(10):
            length = b"Content-Length: %d" % len(text)
            assert client.request(POST.replace(b"Content-Length: 2", length)[:-2] + text).body == b"ok"
    proxy.wait_metric("llmpipe_recordings_total", 10, result="failed")
    proxy.wait_log("recording not written")
    assert sum(line["event"] == "recording not written" for line in proxy.log) == 1
    if way == "full":
        assert list(folder.iterdir()) == []
    else:
        folder.mkdir()
        ask(proxy, 1)
        assert len(recorded(folder)) == 1
        proxy.wait_log("recordings are written again")


def test_u2_a_reload_goes_on_with_it_and_says_what_a_restart_changes(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    held = Held()
    with Backend(held) as backend, Backend(small) as other:
        config = tmp_path / "llmpipe.toml"

        def write(url: str, share: str) -> None:
            text = f'record = "{folder}"\nrecord_share = {share}\n[pools.p]\n[[pools.p.backends]]\nurl = "{url}"\n'
            config.write_text(text)

        write(backend.url, "1")
        with Proxy(options=["--config", str(config)]) as proxy, Client(proxy) as client:
            client.send(POST)
            client.read_head()
            write(other.url, "0")
            proxy.signal(signal.SIGHUP)
            assert proxy.wait_log("settings that a restart changes")["settings"] == "record_share"
            proxy.wait_log("reloaded")
            ask(proxy, 3)
            held.go.set()
            assert client.read_chunked() == b"data: 1\n\ndata: [DONE]\n\n"
            found = recorded(folder, 4)
    assert sorted(one.backend for one in found) == sorted([backend.url, *[other.url] * 3])


def test_u2_at_the_end_what_has_ended_is_written(proxy_to, tmp_path: Path) -> None:
    held = Held()
    proxy = proxy_to(held, options=options(tmp_path))
    with Client(proxy) as client:
        client.send(POST)
        client.read_head()
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        held.go.set()
        assert client.read_chunked() == b"data: 1\n\ndata: [DONE]\n\n"
    assert proxy.wait_exit() == 0
    assert [body_of(one) for one in recorded(tmp_path)] == [b"data: 1\n\ndata: [DONE]\n\n"]


def serve(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0", "--admin", "off", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/null/x", "/proc/llmpipe"])
def test_u2_a_folder_that_cannot_be_written_to_is_one_line_and_exit_code_2(path: str) -> None:
    ended = serve("--backend", "http://127.0.0.1:1", "--record", path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"Error: --record {path} cannot be written to (")
    assert ended.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------------------------------- on demand


def test_u3_the_next_answers_are_streamed_each_when_it_has_ended(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(paced)
    with post(proxy, "count=2") as response, Client(proxy) as client:
        assert (response.status, response.headers["content-type"]) == (200, "application/jsonl")
        body = client.request(POST).body
        first = b""
        while b'"end_us"' not in first:  # comes before the second one is asked for
            first += response.readline()
        client.request(POST)
        rest = response.read()
        client.request(POST)
    found = read(first + rest, tmp_path)
    assert [body_of(one) for one in found] == [body, body]
    assert counted(proxy, "sent") == 2
    assert counted(proxy, "written") == 0


def test_u3_what_was_asked_for_is_not_in_the_folder(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small, options=options(tmp_path / "files"))
    with post(proxy, "count=3") as response:
        ask(proxy, 5)
        asked = read(response.read(), tmp_path)
    others = recorded(tmp_path / "files", 2)
    ids = [one.request_id for one in (*asked, *others)]
    assert (len(asked), len(others), len(set(ids))) == (3, 2, 5)


def test_u3_an_exchange_without_an_answer_is_none_of_them(tmp_path: Path) -> None:
    def leaving(connection: Connection) -> None:
        connection.read_request()
        if connection.index == 0:
            connection.wait_eof()
        else:
            respond(connection)

    with Backend(leaving) as backend, Proxy(backend.url) as proxy, post(proxy) as response:
        with Client(proxy) as client:
            client.send(POST)
            backend.wait_connections(1)
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="client_abort")
        with Client(proxy) as client:
            assert client.request(POST).body == b"ok"
        assert [body_of(one) for one in read(response.read(), tmp_path)] == [b"ok"]


def test_u3_it_ends_when_the_wait_is_over(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small)
    begun = time.monotonic()
    with post(proxy, "count=5&wait=400ms") as response:
        ask(proxy, 2)
        found = read(response.read(), tmp_path)
    assert time.monotonic() - begun >= 0.4
    assert len(found) <= 2  # a machine may stand still for as long
    ask(proxy, 2)
    with post(proxy, "wait=10ms") as response:
        assert (response.status, response.read()) == (200, b"")


def test_u3_who_leaves_makes_room_and_what_was_asked_for_is_nobody_elses(tmp_path: Path) -> None:
    held = Held()
    with Backend(held) as backend, Proxy(backend.url) as proxy, Client(proxy) as client:
        with post(proxy, "count=5&request_body=1"):
            client.send(POST)
            client.read_head()
        time.sleep(1)

        def has_room() -> bool:
            with post(proxy, "wait=1ms") as response:
                return response.status == 200

        wait_until(has_room)
        with post(proxy) as response:
            held.go.set()
            client.read_chunked()
            with Client(proxy) as other:
                answer = other.request(POST.replace(b"Host: a", b"Host: a\r\nX-Request-ID: second"))
                assert answer.status == 200
            (found,) = read(response.read(), tmp_path)
    assert (found.request_id, found.request_body) == ("second", None)


def test_u3_one_asks_at_a_time(proxy_to) -> None:
    proxy = proxy_to(small)
    with post(proxy, "count=1") as first:
        with post(proxy) as second:
            assert second.status == 409
            assert "somebody else" in json.loads(second.read())["error"]
        ask(proxy, 1)
        assert first.read().count(b'"end_us"') == 1
        with post(proxy, "wait=1ms") as third:
            assert third.status == 200


def test_u3_all_workers_count_together(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small, options=["--workers", "3"])
    with post(proxy, "count=7") as response, ExitStack() as stack:
        for client in [stack.enter_context(Client(proxy)) for _ in range(12)]:
            client.request(POST)
        assert len(read(response.read(), tmp_path)) == 7


@pytest.mark.parametrize(
    "query", ["count=0", "count=1001", "wait=0", "wait=3601", "request_body=yes", "n=1", "wait=1&wait=1"]
)
def test_u3_what_cannot_be_is_refused_and_nothing_recorded(proxy: Proxy, query: str) -> None:
    with post(proxy, query) as response:
        assert response.status == 400
        assert json.loads(response.read())["error"]
    assert proxy.metric("llmpipe_recordings_total", result="sent") == 0


def test_u3_only_a_post_records(proxy: Proxy) -> None:
    with post(proxy, method="GET") as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")
    assert "/record" in json.loads(proxy.admin("/nothing")[1])["error"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_u3_who_may(guarded: Proxy, fields: dict[str, str], status: int) -> None:
    """As for other POSTs (rule S1)."""
    with post(guarded, "wait=1ms", **fields) as response:
        assert response.status == status


@pytest.fixture(scope="module")
def guarded() -> Iterator[Proxy]:
    with Proxy(f"http://127.0.0.1:{free_port()}", env={"LLMPIPE_ADMIN_TOKEN": TOKEN}) as proxy:
        yield proxy


def test_u3_the_end_of_the_process_ends_it_with_what_there_is(proxy_to, tmp_path: Path) -> None:
    held = Held()
    proxy = proxy_to(held)
    with post(proxy, "count=5&wait=1h") as response, Client(proxy) as client:
        client.send(POST)
        client.read_head()
        proxy.signal(signal.SIGTERM)
        proxy.wait_log("draining")
        held.go.set()
        client.read_chunked()
        found = read(response.read(), tmp_path)
    assert [body_of(one) for one in found] == [b"data: 1\n\ndata: [DONE]\n\n"]
    assert proxy.wait_exit() == 0


def test_u3_what_is_asked_for_is_logged(proxy_to) -> None:
    proxy = proxy_to(small)
    with post(proxy, "count=4&wait=1ms&request_body=1") as response:
        response.read()
    line: dict[str, Any] = proxy.wait_log("recording answers")
    shown: Sequence[Any] = [line[name] for name in ("answers", "seconds", "request_bodies", "client")]
    assert shown == [4, 0.001, True, "127.0.0.1"]


def test_u2_the_start_says_where_recordings_go(proxy_to, tmp_path: Path) -> None:
    proxy = proxy_to(small, options=options(tmp_path, "--record-files", "7"))
    line = proxy.wait_log("recording")
    assert (line["folder"], line["share"], line["files"]) == (os.fspath(tmp_path), 1, 7)
