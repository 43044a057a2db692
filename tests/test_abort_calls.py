"""Rule N2: who is told of clients that left, with real processes: servers that do not notice a closed connection, and hooks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import (
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    free_port,
    leave,
    sse_head,
    unanswering_address,
    wait_until,
)
from servers import Server

from llmpipe import config
from llmpipe.errors import UsageError

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n%sContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def engine() -> Iterator[Server]:
    with Server("sglang_app.py") as server:
        yield server


def write(folder: Path, *rows: str, more: str = "") -> str:
    path = folder / "llmpipe.toml"
    beside = folder / "beside"
    beside.write_text(f"[pools.p]\n{more}\n" + "".join(f"[[pools.p.backends]]\n{row}\n" for row in rows))
    beside.replace(path)
    return str(path)


def row(url: str, call: str, name: str = "b", more: str = "") -> str:
    return f'url = "{url}"\nname = "{name}"\non_abort = {{ call = "{call}"{more} }}'


class Quiet(Proxy):
    """One that logs no exchanges, and so gets records of clients that left only where it wants to be woken for them."""

    def __init__(self, path: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        words = [
            "--listen",
            f"127.0.0.1:{self.port}",
            "--admin",
            f"127.0.0.1:{self.admin_port}",
            "--log-level",
            "error",
        ]
        env = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmpipe", "serve", "--workers", "2", "--config", path, *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.pid = self.process.pid
        self.log: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self._told_to_stop = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        wait_until(self.ready)

    def ready(self) -> bool:
        try:
            return self.admin("/readyz")[0] == 200
        except OSError:
            assert self.process.poll() is None, self.stderr
            return False


def begin(proxy: Proxy, request_id: str = "") -> tuple[Client, str]:
    """A client in the middle of its stream, and the id of its request."""
    client = Client(proxy)
    client.send(POST % (b"X-Request-ID: %s\r\n" % request_id.encode() if request_id else b""))
    head = client.read_head().decode()
    client.recv_until(b"data: 1\n\n")
    return client, next(line.partition(": ")[2] for line in head.split("\r\n") if line.lower().startswith("x-request"))


def running(engine: Server) -> list[str]:
    return list(json.loads(engine.request("GET", "/count")[1])["running"])


def results(proxy: Proxy, backend: str = "b") -> dict[str, float]:
    names = ("ok", "error", "dropped")
    return {name: proxy.metric("llmpipe_abort_calls_total", backend=backend, result=name) for name in names}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("given", ["", "mine-17"])
def test_n2_a_server_that_ignores_a_closed_connection_is_told_once(
    engine: Server, tmp_path: Path, how: str, given: str
) -> None:
    path = write(tmp_path, row(engine.url, f"{engine.url}/abort_request"))
    with Proxy(options=("--config", path)) as proxy:
        leaving, left = begin(proxy, given)
        staying, stays = begin(proxy)
        assert sorted(running(engine)) == sorted([left, stays])
        assert 'llmpipe_abort_calls_total{backend="b",result="error"}' in proxy.metrics()  # from the start on
        if given:
            assert left == given
        leave(leaving, how)
        engine.wait_line(f"stopped {left}")
        proxy.wait_metric("llmpipe_abort_calls_total", 1, backend="b", result="ok")
        staying.recv()
        assert running(engine) == [stays]
        engine.request("POST", "/end")
        staying.recv_until(b"0\r\n\r\n")  # and its client is there to the end
        staying.close()
        proxy.settled()
        assert results(proxy) == {"ok": 1, "error": 0, "dropped": 0}
        (told,) = engine.said("aborted")
        about, host, *fields = told.removeprefix("aborted ").rsplit(" ", 3)
        assert json.loads(about) == {"rid": left}
        assert (host, fields) == (engine.address, ["content-type=application/json", "authorization=-"])


def test_n2_without_a_call_it_goes_on(engine: Server, tmp_path: Path) -> None:
    """What the calls are for: this server does not stop by itself."""
    with Proxy(engine.url) as proxy:
        client, left = begin(proxy)
        client.close()
        assert proxy.access()[0]["outcome"] == "client_abort"
        proxy.settled()
        assert running(engine) == [left]
        assert engine.said("aborted") == []


def test_n2_a_path_is_one_at_the_backend_itself(tmp_path: Path) -> None:
    with Server("sglang_app.py", "--field", "request_id") as engine:
        path = write(tmp_path, row(engine.url, "/abort_request", more=', field = "request_id"'))
        with Quiet(path) as proxy:
            client, left = begin(proxy)
            client.close()
            engine.wait_line(f"stopped {left}")
            (told,) = engine.said("aborted")
            assert told.startswith(f'aborted {{"request_id": "{left}"}} {engine.address} ')


def test_n2_a_unix_socket_is_called_too(tmp_path: Path) -> None:
    told: list[bytes] = []

    def script(connection: Connection) -> None:
        request = connection.read_request()
        if request.line.startswith(b"POST /abort "):
            told.append(request.body)
            connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.wait_eof()

    with Backend(script, "unix") as backend:
        path = write(tmp_path, row(backend.url, "/abort"))
        with Proxy(options=("--config", path)) as proxy:
            client, left = begin(proxy)
            client.close()
            wait_until(lambda: told)
            assert json.loads(told[0]) == {"rid": left}
            proxy.wait_metric("llmpipe_abort_calls_total", 1, backend="b", result="ok")


def test_n2_a_name_is_looked_up(engine: Server, tmp_path: Path) -> None:
    path = write(tmp_path, row(engine.url, f"http://localhost:{engine.port}/abort_request"))
    with Proxy(options=("--config", path)) as proxy:
        for _ in range(2):
            client, left = begin(proxy)
            client.close()
            engine.wait_line(f"stopped {left}")


@pytest.mark.parametrize("phase", ["head", "connect", "queue"])
def test_n2_no_call_where_no_backend_had_the_request(tmp_path: Path, phase: str) -> None:
    with Backend(answer_all) as target, unanswering_address() as nobody, Backend(lambda c: c.wait_eof()) as busy:
        url = nobody if phase == "connect" else busy.url
        rows = row(url, f"{target.url}/abort")
        more = "max_in_flight = 1\nconnect_timeout = 60"
        with Proxy(options=("--config", write(tmp_path, rows, more=more))) as proxy:
            first = Client(proxy)
            if phase == "queue":
                first.send(POST % b"")
                busy.wait_connections(1)
                client = Client(proxy)
                client.send(POST % b"")
                proxy.wait_metric("llmpipe_queue_length", 1, pool="p")
                client.close()
            else:
                first.send(POST % b"" if phase == "connect" else b"POST / HTTP/1.1\r\nHost:")
                wait_until(lambda: proxy.metric("llmpipe_upstreams" if phase == "connect" else "llmpipe_clients") == 1)
                if phase == "head":
                    wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 1)
                first.close()
            assert proxy.access()[0]["outcome"] == "client_abort"
            assert proxy.access()[0]["phase"] == phase
            if phase == "queue":  # and then one that had it
                first.close()
                proxy.wait_metric("llmpipe_abort_calls_total", 1, backend="b", result="ok")
            proxy.settled()
        assert len(target.connections) == (phase == "queue")


def test_n2_an_error_of_the_backend_is_no_abort(tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        connection.reset()

    with Backend(answer_all) as target, Backend(script) as backend:
        with Proxy(options=("--config", write(tmp_path, row(backend.url, f"{target.url}/abort")))) as proxy:
            client = Client(proxy)
            client.send(POST % b"")
            client.read_eof()
            client.close()
            assert proxy.access()[0]["outcome"] == "upstream_abort"
            assert results(proxy) == {"ok": 0, "error": 0, "dropped": 0}
        assert target.connections == []


def silent(connection: Connection) -> None:
    """A stream that never ends."""
    connection.read_request()
    connection.send(sse_head() + chunk(b"data: 1\n\n"))
    connection.wait_eof(120)


@pytest.mark.parametrize("target", ["refuses", "answers 503", "no HTTP", "no such name"])
def test_n2_a_call_that_fails_is_counted_and_logged_once_in_a_row(tmp_path: Path, target: str) -> None:
    well = False

    def script(connection: Connection) -> None:
        connection.read_request()
        if well:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            connection.send(
                b"SSH-2.0\r\n\r\n" if target == "no HTTP" else b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"
            )
        connection.close()

    with Backend(silent) as backend, Backend(script) as other:
        place = {"refuses": f"http://127.0.0.1:{free_port()}", "no such name": "http://nobody.invalid"}
        path = write(tmp_path, row(backend.url, f"{place.get(target, other.url)}/abort"))
        with Proxy(options=("--config", path)) as proxy:

            def go(count: int, result: str) -> None:
                for n in range(1, 4):
                    client, _ = begin(proxy)
                    client.close()
                    proxy.wait_metric("llmpipe_abort_calls_total", count + n, backend="b", result=result)

            go(0, "error")
            proxy.wait_log("abort call failed")
            (line,) = [line for line in proxy.log.copy() if line["event"] == "abort call failed"]
            assert (line["level"], line["backend"]) == ("warning", "b")
            assert line["error"]
            well = True
            if target in place:
                return
            go(0, "ok")
            well = False
            go(3, "error")
            wait_until(lambda: len([line for line in proxy.log.copy() if line["event"] == "abort call failed"]) == 2)


@pytest.mark.slow
def test_n2_a_target_that_hangs_harms_nobody_and_delays_a_drain_by_the_limit_only(tmp_path: Path) -> None:
    told: list[Connection] = []

    def hang(connection: Connection) -> None:
        connection.read_request()
        told.append(connection)
        connection.wait_eof(120)

    with Backend(silent) as backend, Backend(hang) as target, Server("sglang_app.py") as engine:
        rows = [row(backend.url, f"{target.url}/abort", "hangs"), row(engine.url, "/abort_request", "well")]
        rows[0] += "\nweight = 9"
        with Proxy(options=("--config", write(tmp_path, *rows))) as proxy:
            clients = [begin(proxy)[0] for _ in range(100)]
            for client in clients:
                client.close()
            lines = proxy.access(100)
            assert {line["outcome"] for line in lines} == {"client_abort"}
            well = sum(line["backend"] == "well" for line in lines)
            assert 0 < well < 40
            # Calls to the other server do not wait behind those that hang, of which there are no more than 16 at a time.
            wait_until(lambda: len(engine.said("stopped")) == well)
            wait_until(lambda: len(told) >= 16)
            proxy.signal(signal.SIGTERM)
            assert proxy.wait_exit() == 0
            # All of them would take half a minute.
            assert proxy.wait_log("abort calls dropped")["calls"] > 0
            failed = [line for line in proxy.log if line["event"] == "abort call failed"]
            assert [line["error"] for line in failed] == ["no answer within 5 s"]
            assert proxy.wait_log("stopped")["clean"] is True


def test_n2_a_call_on_its_way_outlives_the_drain(tmp_path: Path) -> None:
    """The last client leaves while the proxy drains: its server is told all the same."""
    answered: list[bytes] = []

    def slow(connection: Connection) -> None:
        request = connection.read_request()
        time.sleep(1)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        answered.append(request.body)

    with Backend(silent) as backend, Backend(slow) as target:
        with Proxy(options=("--config", write(tmp_path, row(backend.url, f"{target.url}/abort")))) as proxy:
            client, left = begin(proxy)
            proxy.signal(signal.SIGTERM)
            proxy.wait_log("draining")
            client.close()
            assert proxy.wait_exit() == 0
            assert [line for line in proxy.log if line["event"].startswith("abort call")] == []
        assert [json.loads(body) for body in answered] == [{"rid": left}]


def test_n2_a_reload_brings_the_first_call_and_takes_it_away(engine: Server, tmp_path: Path) -> None:
    path = write(tmp_path, f'url = "{engine.url}"\nname = "b"')
    with Quiet(path) as proxy:

        def reload(count: int) -> None:
            proxy.signal(signal.SIGHUP)
            proxy.wait_metric("llmpipe_reloads_total", count, result="success")

        client, first = begin(proxy)
        client.close()
        proxy.settled()
        client, second = begin(proxy)
        write(tmp_path, row(engine.url, "/abort_request"))
        reload(1)
        client.close()  # its exchange began before
        engine.wait_line(f"stopped {second}")
        client, _ = begin(proxy)
        write(tmp_path, f'url = "{engine.url}"\nname = "b"')
        reload(2)
        client.close()
        proxy.settled()
        client, gone = begin(proxy)
        write(tmp_path, row(engine.url, "/abort_request"))
        reload(3)
        write(tmp_path, f'url = "http://127.0.0.1:{free_port()}"\nname = "other"')
        reload(4)
        client.close()  # its backend is in the file no more
        engine.wait_line(f"stopped {gone}")
        assert len(engine.said("aborted")) == 2
        assert first in running(engine)


def fake(folder: Path, **hooks: str) -> dict[str, str]:
    """An environment in which a package is installed that offers these hooks: name and value of each."""
    info = folder / "site" / "their_hooks-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-hooks\nVersion: 1.0\n")
    (info / "RECORD").write_text("")
    (info / "entry_points.txt").write_text(
        "[llmpipe.hooks]\n" + "".join(f"{name} = {value}\n" for name, value in hooks.items())
    )
    (folder / "site" / "their_hooks.py").write_text(MODULE)
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder / 'site'}{':' + path if path else ''}", "TOLD": str(folder / "told")}


MODULE = """
import json, os, sys, threading, time

def note(abort):
    with open(os.environ["TOLD"], "a") as file:
        line = {**abort._asdict(), "type": type(abort).__qualname__, "thread": threading.current_thread().name}
        file.write(json.dumps(line) + "\\n")

class Note:
    def method(self, abort):
        note(abort)

bound = Note().method

def fail(abort):
    raise ValueError("it does not work")

class Odd(Exception):
    def __repr__(self):
        raise ValueError("not even that")

def odd(abort):
    raise Odd

def end(abort):
    sys.exit(3)

def hang(abort):
    note(abort)
    time.sleep(1000)

def two(one, another):
    pass

async def later(abort):
    pass

number = 7
"""


def told(folder: Path) -> list[dict[str, Any]]:
    path = folder / "told"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("value", ["their_hooks:note", "their_hooks:bound"])
def test_n2_a_hook_is_called_with_the_facts(tmp_path: Path, value: str) -> None:
    env = fake(tmp_path, mine=value)
    with Backend(silent) as backend, Proxy(backend.url, options=("--log-level", "info"), env=env) as proxy:
        assert proxy.wait_log("hooks loaded")["hooks"] == "mine"
        client, left = begin(proxy)
        client.close()
        wait_until(lambda: told(tmp_path))
        (fact,) = told(tmp_path)
        assert isinstance(fact.pop("close_ms"), float)
        assert fact == {
            "client": "127.0.0.1",
            "phase": "stream",
            "backend": backend.url,
            "request_id": left,
            "type": "Abort",
            "thread": "hooks",
        }
        client = Client(proxy)
        client.send(b"GET / HTTP/1.1\r\nHo")
        wait_until(lambda: proxy.metric("llmpipe_buffers_held") == 1)
        client.close()
        wait_until(lambda: len(told(tmp_path)) == 2)
        assert (told(tmp_path)[1]["phase"], told(tmp_path)[1]["backend"]) == ("head", None)
        proxy.wait_metric("llmpipe_hook_calls_total", 2, hook="mine", result="ok")


def test_n2_a_hook_that_fails_is_logged_and_the_others_are_called(tmp_path: Path) -> None:
    bad = {"a_bad": "their_hooks:fail", "b_ends": "their_hooks:end", "b_odd": "their_hooks:odd"}
    env = fake(tmp_path, **bad, c_good="their_hooks:note")
    with Backend(silent) as backend, Proxy(backend.url, env=env) as proxy:
        for n in range(3):
            client, _ = begin(proxy)
            client.close()
            wait_until(lambda n=n: len(told(tmp_path)) == n + 1)
        proxy.wait_metric("llmpipe_hook_calls_total", 3, hook="c_good", result="ok")
        assert proxy.metric("llmpipe_hook_calls_total", hook="a_bad", result="error") == 3
        assert proxy.metric("llmpipe_hook_calls_total", hook="b_ends", result="error") == 3

        def failures() -> list[dict[str, Any]]:
            return [line for line in proxy.log.copy() if line["event"] == "hook failed"]

        wait_until(lambda: len(failures()) == len(bad))  # the first of each
        lines = {line["hook"]: line for line in failures()}
        assert lines.keys() == bad.keys()
        assert lines["b_odd"]["error"] == "Odd"
        assert lines["a_bad"]["error"] == "ValueError('it does not work')"
        assert "their_hooks.py:" in lines["a_bad"]["at"]


@pytest.mark.slow
def test_n2_a_hook_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    env = fake(tmp_path, slow="their_hooks:hang")
    left = 1100
    with Backend(silent) as backend, Proxy(backend.url, env=env) as proxy:
        client, _ = begin(proxy)
        client.close()
        wait_until(lambda: told(tmp_path))
        for _ in range(left):
            with Client(proxy) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                client.half_close()
                client.read_eof()
        proxy.wait_metric("llmpipe_exchanges_total", left + 1, outcome="client_abort")
        proxy.wait_metric("llmpipe_hook_calls_total", left - 1024, hook="slow", result="dropped")
        client, _ = begin(proxy)
        client.close()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_exit() == 0
        assert len(told(tmp_path)) == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nowhere.to.be_found:x", "cannot be loaded: ModuleNotFoundError"),
        ("their_hooks:nothing", "cannot be loaded: AttributeError"),
        ("their_hooks:number", "is not callable, but a int"),
        ("their_hooks:two", "cannot be called with one argument"),
        ("their_hooks:later", "is a coroutine function"),
    ],
)
def test_n2_a_hook_that_cannot_work_is_one_line_and_exit_code_2(tmp_path: Path, value: str, says: str) -> None:
    env = {name: text for name, text in os.environ.items() if not name.startswith("LLMPIPE_")}
    words = ["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--backend", "http://127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", *words],
        env={**env, **fake(tmp_path, mine=value)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"hook mine ({value}) {says}" in line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("http://h:1/a?x=1", ("h", 1, "/a?x=1")),
        ("http://h/a", ("h", 80, "/a")),
        ("HTTP://[::1]:3/", ("::1", 3, "/")),
        ("/abort_request", ("", 0, "/abort_request")),
    ],
)
def test_n2_what_a_call_may_be(text: str, place: tuple[str, int, str]) -> None:
    call = config.parse_abort_call(text)
    assert (call.host, call.port, call.target, call.field) == (*place, "rid")


@pytest.mark.parametrize(
    "text",
    ["", "abort", "//h/a", "http://h", "https://h/a", "http://u:p@h/a", "http://h:0/a", "http://h:99999/a", "/a b", "/a#b",
     "http:///a", "http://h_/a", "http://h:1\r\n/a", "/a\r\nX: y", "/\xe4"],
)  # fmt: skip
def test_n2_what_no_call_may_be(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        config.parse_abort_call(text)
    assert "u:p" not in str(raised.value)
    with pytest.raises(UsageError, match="field"):
        config.parse_abort_call("/a", 'a"b')


@pytest.mark.parametrize(
    ("on_abort", "says"),
    [
        ("{}", 'on_abort: write "close", "finish", or { call = '),
        ('{ call = "x" }', "on_abort: call: 'x' is neither http://HOST:PORT/PATH nor /PATH"),
        ('{ call = "/x", id = "y" }', "on_abort: unknown key id; there are call, field"),
        ("{ call = 1 }", 'on_abort: write "close"'),
        ('{ call = "/x", field = "" }', "on_abort: field: write a key"),
        ('"call"', "on-abort is close or finish, not 'call'"),
    ],
)
def test_n2_a_call_that_cannot_work_is_refused(tmp_path: Path, on_abort: str, says: str) -> None:
    path = write(tmp_path, f'url = "http://127.0.0.1:1"\non_abort = {on_abort}')
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "check", path], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "pools.p.backends[0]: " in line
    assert says in line


def test_n2_check_shows_the_call(tmp_path: Path) -> None:
    path = write(tmp_path, row("http://127.0.0.1:1", "/abort_request?token=abc"))
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "check", path], capture_output=True, text=True, timeout=120, check=True
    )
    assert "on_abort call /abort_request?token=*** rid" in done.stdout
