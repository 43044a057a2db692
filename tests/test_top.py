"""`llmpipe top`, as a person has it: in a real terminal, in front of a real proxy, and of an endpoint that answers what it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_admin import FakeAdmin, backend, busy_exchanges, busy_status, exchange, failure
from harness import LAST_CHUNK, Backend, Client, Connection, Proxy, chunk, free_port, sse_head, wait_until
from terminal import Terminal

from llmpipe.admin_address import AdminAddress, parse_admin
from llmpipe.errors import UsageError
from llmpipe.top import figures, plain, summary, tables, timeline
from llmpipe.top.app import Page, Top
from llmpipe.top.source import MOST_EXCHANGES, Missing, Snapshot, Source, UnreachableError

TOP = [sys.executable, "-m", "llmpipe", "top"]
ENTER, ESCAPE, DOWN = "\r", "\x1b", "\x1b[B"


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    with FakeAdmin() as admin:
        yield admin


def opened(admin: FakeAdmin, *options: str, **more: Any) -> Terminal:
    return Terminal([*TOP, "--admin", admin.url, "--interval", "200ms", *options], **more)


def quit_(terminal: Terminal) -> None:
    """q, and what must be so then."""
    terminal.press("q")
    ended(terminal)


def ended(terminal: Terminal, code: int = 0) -> None:
    assert terminal.wait_exit() == code, terminal.text
    assert b"Traceback" not in terminal.raw
    # The terminal's other screen is left and the cursor is shown.
    assert terminal.raw.rfind(b"\x1b[?1049l") > terminal.raw.rfind(b"\x1b[?1049h") >= 0
    assert terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(b"\x1b[?25l") > 0


def panel(terminal: Terminal, title: str) -> list[str]:
    """The lines of a panel, its own title first."""
    rows = terminal.rows
    start = next(index for index, row in enumerate(rows) if re.match(f"[▶─] {title} ", row))
    end = next((index for index in range(start + 1, len(rows)) if re.match("[▶─] ", rows[index])), len(rows))
    return [row for row in rows[start:end] if row]


def in_order(rows: Sequence[str], *words: str) -> bool:
    """Whether these words begin lines in this order."""
    firsts = [row.split()[0] for row in rows if row.split()[0] in words]
    return firsts == list(words)


# The page at 80x24.


def test_nothing_important_is_cut_at_80x24(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu2", "req-bbbb2", "ECONNRESET", "Quit")
        rows = terminal.rows
        assert rows[0].startswith("llmpipe 0.1.0  up 2h03m  ready")
        assert rows[0].endswith(admin.url)
        assert rows[1] == "clients 14  streams 4  waiting 3  exchanges/s 6.1  tokens/s 512  errors/s 0.4"
        assert rows[2] == "TTFT p50 210ms  p90 1.2s  p99 1.2s   ITL p50 20ms  p90 45ms  p99 45ms"
        assert re.fullmatch(r"streams [▁-█]{16}  tokens/s [▁-█]{16}  TTFT p99 [▁-█ ]{16}", rows[3])
        backends = panel(terminal, "Backends")
        assert backends[0].startswith("▶ Backends 4 ─")
        titles = backends[1].split()
        assert titles == ["backend", "state", "flight", "why", "exch/s", "err/s", "TTFT50", "TTFT99", "ITL99"]
        assert backends[2] == "llama  queue 3/256 (1 late)  llama-3.3-70b, llama-*"
        assert backends[3].split() == ["gpu1", "up", "31", "4.2", "0", "210ms", "1.2s", "45ms"]
        assert backends[4].split()[:3] == ["gpu2", "down", "2"]
        assert backends[4].split()[-5:] == ["0.1", "0.4", "900ms", "45s", "45ms"]
        assert backends[5].split()[:2] == ["spare", "drained"]
        assert backends[7].split()[0] == "127.0.0.1:11434"
        streams = panel(terminal, "Streams")
        oldest = "req-bbbb2 llama-3.3-70b gpu2 blocked 2m05s 1203 pcs 303KB 210ms"
        assert streams[2].split() == oldest.split()
        assert "64" in terminal.row("req-dddd4").split()  # tokens, where the backend counted them
        failures = panel(terminal, "Last failures")
        assert failures[2].split() == ["07:48:51", "gpu2", "upstream_abort", "ECONNRESET", "200", "f-1"]
        assert "time to first content" in failures[3]
        footer = rows[23]
        assert all(word in footer for word in ("Open", "Panel", "Drain", "Resume", "Sort", "Filter", "Pause", "Help"))
        assert footer.endswith("Quit")
        quit_(terminal)


def test_a_wider_terminal_shows_more_columns(admin: FakeAdmin) -> None:
    with opened(admin, columns=160) as terminal:
        terminal.wait("req-bbbb2", "failures, health")
        titles = panel(terminal, "Backends")[1].split()
        assert {"ITL50", "content", "weight", "tier", "total", "failed", "idle"} <= set(titles)
        assert {"pool", "client"} <= set(panel(terminal, "Streams")[1].split())
        quit_(terminal)


def test_a_smaller_terminal_keeps_what_counts_most(admin: FakeAdmin) -> None:
    with opened(admin, columns=48, lines=16) as terminal:
        terminal.wait("gpu2")
        assert panel(terminal, "Backends")[1].split()[:4] == ["backend", "state", "flight", "why"]
        terminal.resize(100, 24)  # and it follows the terminal's size
        terminal.wait(lambda _: "exch/s" in panel(terminal, "Backends")[1])
        quit_(terminal)


def test_states_have_colours_and_words(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("drained")
        assert terminal.looks("gpu1 ")[0].reverse  # the selected row
        assert {char.fg for char in terminal.looks("drained")} == {"magenta"}
        assert {char.fg for char in terminal.looks("down  ")[:4]} == {"red"}
        terminal.press(DOWN)
        terminal.wait(lambda _: terminal.looks("gpu2 ")[0].reverse)
        assert {char.fg for char in terminal.looks("up      ")[:2]} == {"green"}
        assert {char.fg for char in terminal.looks("ready")} == {"green"}
        # Only the terminal's own background, and none of its colours that a light one swallows.
        assert terminal.colours() <= {"default", "green", "red", "magenta"}
        quit_(terminal)


def test_no_color(admin: FakeAdmin) -> None:
    with opened(admin, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait("drained", "down")
        terminal.press(DOWN)
        terminal.wait(lambda _: terminal.looks("gpu2 ")[0].reverse)
        assert terminal.colours() == {"default"}
        quit_(terminal)


# Keys.


def test_sorting(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("spare", "req-bbbb2")
        terminal.press("ss")  # backend, state
        terminal.wait("by state ▲", lambda _: in_order(panel(terminal, "Backends"), "gpu2", "spare", "gpu1"))
        terminal.press("s")
        terminal.wait("by flight ▲", lambda _: in_order(panel(terminal, "Backends"), "spare", "gpu2", "gpu1"))
        terminal.press("S")
        terminal.wait("by flight ▼", lambda _: in_order(panel(terminal, "Backends"), "gpu1", "gpu2", "spare"))
        # Each panel has an order of its own: that of streams begins with the oldest.
        ids = ("req-bbbb2", "req-aaaa1", "req-dddd4", "req-cccc3")
        assert in_order(panel(terminal, "Streams"), *ids)
        terminal.press("\tS")
        terminal.wait("by age ▲", lambda _: in_order(panel(terminal, "Streams"), *reversed(ids)))
        quit_(terminal)


def test_filtering(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("spare", "req-bbbb2")
        terminal.press("\t/GPU2")
        terminal.wait("Backends 1 of 4 ─ filter: GPU2", "Streams 1 of 4", "Last failures 2")
        assert "req-bbbb2" in terminal.text
        assert "gpu1" not in terminal.text
        terminal.press(ENTER)  # keeps it; keys are keys again, in the panel where they were
        terminal.wait("Quit", "▶ Streams")
        terminal.press("/" + ESCAPE)
        terminal.wait("Backends 4", "Streams 4")
        for typed, backends, streams in (
            ("qwen", 1, 1),  # a model, of a pool or of an exchange
            ("ollama", 1, 1),  # a pool
            ("drained", 1, 0),  # a state
            ("req-a", 0, 1),  # an id
            ("llama blocked", 0, 1),  # each word
        ):
            terminal.press("/" + typed + ENTER)
            terminal.wait(f"Backends {backends} of 4", f"Streams {streams} of 4")
            terminal.press(ESCAPE)
            terminal.wait("Backends 4", "Streams 4")
        quit_(terminal)


def test_the_selected_row_stays_selected_while_rows_come_and_go(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("req-bbbb2")
        terminal.press("\t" + DOWN)
        terminal.wait(lambda _: terminal.looks("req-aaaa1")[0].reverse)
        answered = busy_exchanges()
        answered["live"].insert(0, exchange("req-eeee5", duration=600.0))
        admin.exchanges = answered
        terminal.wait("req-eeee5", lambda _: terminal.looks("req-aaaa1")[0].reverse)
        quit_(terminal)


def test_more_rows_than_there_is_room_for(admin: FakeAdmin) -> None:
    status = busy_status()
    status["pools"][0]["backends"] = [backend(f"gpu{number:03}") for number in range(100)]
    admin.status = status
    with opened(admin) as terminal:
        terminal.wait("gpu000")
        assert "gpu050" not in terminal.text
        terminal.press("\x1b[6~" * 5)  # page down
        terminal.wait("gpu050", lambda _: terminal.looks("gpu050")[0].reverse)
        terminal.press("\x1b[F")  # end
        terminal.wait("11434", lambda _: terminal.looks("127.0.0.1:11434")[0].reverse)
        terminal.press("\x1b[H")  # home
        terminal.wait("gpu000", "llama  queue")
        quit_(terminal)


def test_it_is_told_that_only_the_newest_streams_are_shown(admin: FakeAdmin) -> None:
    admin.exchanges = {"live": [exchange(f"req-{number}") for number in range(MOST_EXCHANGES)], "ended": []}
    admin.status = {**busy_status(), "streams": 5000}
    with opened(admin) as terminal:
        terminal.wait(f"Streams {MOST_EXCHANGES} ─ by age ▼ ─ the newest of 5000")
        assert f"/exchanges?limit={MOST_EXCHANGES}" in admin.asked
        quit_(terminal)


def test_pause(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1")
        terminal.press("p")
        terminal.wait("PAUSED")
        wait_until(lambda: not quiet(admin, 0.0) or quiet(admin, 1.0), what="a second without a question")
        assert admin.status is not None
        admin.status = {**admin.status, "clients": 4321}
        assert quiet(admin, 1.0)
        assert "4321" not in terminal.text
        terminal.press("p")
        terminal.wait("clients 4321", lambda text: "PAUSED" not in text)
        quit_(terminal)


def quiet(admin: FakeAdmin, seconds: float) -> bool:
    """Whether nothing is asked for so long."""
    before = len(admin.asked)
    threading.Event().wait(seconds)
    return len(admin.asked) == before


def test_help(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1")
        terminal.press("?")
        terminal.wait("drain, resume", "time to first token", "unresolved")
        assert "more lines" not in terminal.text  # all of it fits
        terminal.press("q")  # of the page, not of the program
        terminal.wait("Backends 4")
        quit_(terminal)


# One exchange, one backend.


def test_all_about_a_stream(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("req-bbbb2")
        terminal.press("\t" + DOWN + ENTER)
        terminal.wait("exchange req-aaaa1", "POST /v1/chat/completions", "10.0.0.7", "now, phase stream")
        assert any("id=req-aaaa1" in path for path in admin.asked)
        rows = terminal.rows
        moments = [index for index, row in enumerate(rows) if "●" in row]
        texts = [rows[index].split("●")[1].strip() for index in moments]
        assert texts == [
            "first byte of the request",
            "the head of the request was here",
            "connected to gpu1",
            "the head of the answer came",
            "first content forwarded",
            "last content forwarded",
            "now, phase stream",
        ]
        assert rows[moments[4]].split()[:2] == ["210ms", "+30ms"]
        # It is kept up to date, to its end.
        answered = busy_exchanges()
        element = exchange("req-aaaa1", outcome="upstream_abort", reason="ECONNRESET", duration=13.0)
        element["times"]["end"] = 13.0
        answered["live"] = []
        answered["ended"] = [element, exchange("req-aaaa12")]  # whose id begins alike
        admin.exchanges = answered
        terminal.wait("ended: upstream_abort", "because of  reason ECONNRESET", lambda text: "now," not in text)
        assert "req-aaaa12" not in terminal.text
        answered["ended"] = []
        terminal.wait("knows no exchange req-aaaa1")
        terminal.press(ESCAPE)
        terminal.wait("Backends 4")
        quit_(terminal)


def test_all_about_a_failure(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("upstream_abort")
        terminal.press("\t\t" + ENTER)
        terminal.wait("exchange f-1", "gpu1 failed: FIN before the head", "ended: upstream_abort")
        assert "more lines" not in terminal.text  # all of it fits
        terminal.resize(80, 16)
        terminal.wait("more lines", lambda text: "ended:" not in text)
        terminal.press(DOWN * 30)
        terminal.wait("ended: upstream_abort", lambda text: "more lines" not in text)
        terminal.press("q")
        quit_(terminal)


def test_all_about_a_backend(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1")
        terminal.press(DOWN + ENTER)
        terminal.wait("backend gpu2", "failures, health", "http://gpu2:8000", "p50 900ms, p90 45s, p99 45s")
        terminal.press("q")
        quit_(terminal)


# The connection.


def test_a_connection_that_is_lost_and_comes_back(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1", "clients 14")
        before = terminal.raw
        admin.stop()
        terminal.wait(lambda text: re.search(r"CONNECTION LOST at \d\d:\d\d:\d\d: Connection refused, retrying", text))
        assert "req-bbbb2" in terminal.text  # the last figures stay, dimmed
        assert not re.search(rb"\x1b\[2(;[0-9;]*)?mgpu2", before)
        terminal.wait(lambda _: re.search(rb"\x1b\[2(;[0-9;]*)?mgpu2", terminal.raw))
        terminal.press("\t" + ENTER)  # and keys work
        terminal.wait("connection lost at")
        terminal.press("q")
        assert admin.status is not None
        admin.status = {**admin.status, "clients": 4321}
        admin.start()
        terminal.wait("clients 4321", lambda text: "LOST" not in text)
        quit_(terminal)


def test_a_page_that_is_opened_at_the_moment_of_an_answer() -> None:
    """It has nothing in it yet that could be filled."""

    class Lost(Source):
        async def snapshot(self) -> Snapshot:
            raise UnreachableError("gone")

    async def open_it() -> None:
        top = Top(Lost(AdminAddress("127.0.0.1", 1)), 60.0)
        async with top.run_test() as pilot:
            page = Page([])
            top.push_screen(page)
            await top._look()
            await pilot.pause()
            assert top.screen is page
            await top._look()
            assert page.query_one("#alarm").display

    asyncio.run(open_it())


def test_an_endpoint_that_does_not_answer_does_not_stop_the_keys() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        with Terminal([*TOP, "--admin", f"127.0.0.1:{listener.getsockname()[1]}"]) as terminal:
            terminal.wait("asking http://127.0.0.1:")
            terminal.press("?")
            terminal.wait("drain, resume")
            terminal.press("q")
            terminal.wait("Backends")
            quit_(terminal)


def test_an_endpoint_that_is_not_there_yet(admin: FakeAdmin) -> None:
    admin.stop()
    with opened(admin) as terminal:
        terminal.wait("NO CONNECTION since", "Connection refused")
        admin.start()
        terminal.wait("gpu1", lambda text: "NO CONNECTION" not in text)
        quit_(terminal)


def test_a_refusal_is_told(admin: FakeAdmin) -> None:
    admin.status = None
    with opened(admin) as terminal:
        terminal.wait("404: there is no such path")
        quit_(terminal)


def test_an_older_proxy_has_less_to_tell(admin: FakeAdmin) -> None:
    admin.history = admin.exchanges = None
    status = busy_status()
    for name in ("rates", "ttft", "itl", "failures", "started"):
        del status[name]
    for pool in status["pools"]:
        del pool["queue"]
        for row in pool["backends"]:
            for name in ("rates", "ttft", "itl", "seconds_since_content"):
                del row[name]
    admin.status = status
    with opened(admin) as terminal:
        terminal.wait("gpu1")
        rows = terminal.rows
        assert rows[0].startswith("llmpipe 0.1.0  up -  ready")
        assert rows[1] == "clients 14  streams 4  waiting -  exchanges/s -  tokens/s -  errors/s -"
        assert rows[2] == "TTFT p50 -  p90 -  p99 -   ITL p50 -  p90 -  p99 -"
        assert rows[3] == "no history: this proxy has no /history"
        assert "Streams - ─ by age ▼ ─ this proxy has no /exchanges" in terminal.text
        assert "Last failures - ─ this proxy does not list them" in terminal.text
        assert terminal.row("gpu1").split() == ["gpu1", "up", "31", *"-----"]
        quit_(terminal)


def test_what_clients_name_is_shown_and_not_obeyed(admin: FakeAdmin) -> None:
    hostile = "\x1b]0;pwned\x07\x1b[2J[bold]模型\u202e\n"
    admin.exchanges = {"live": [exchange(hostile, model=hostile)], "ended": []}
    status = busy_status()
    status["failures"] = [failure("f-9", reason=hostile)]
    admin.status = status
    with opened(admin, columns=200) as terminal:
        terminal.wait("?]0;pwned??[2J[bold]")
        assert b"]0;pwned\x07" not in terminal.raw
        terminal.press("\t" + ENTER)
        terminal.wait("exchange ?]0;pwned??[2J[bold]")
        terminal.press("q")
        quit_(terminal)
    done = subprocess.run([*TOP, "--once", "--admin", admin.url], capture_output=True, timeout=60, check=False)
    assert b"\x1b" not in done.stdout
    assert b"\x07" not in done.stdout


# What it writes, and how it ends.


def test_little_is_written_where_nothing_changes(admin: FakeAdmin) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1", "req-bbbb2", "Quit")

        def written_in(refreshes: int) -> int:
            asked = admin.asked.count("/status")
            before = terminal.written
            wait_until(lambda: admin.asked.count("/status") >= asked + refreshes, what="refreshes")
            return terminal.written - before

        wait_until(lambda: written_in(2) == 0, what="nothing is written")
        assert written_in(5) <= 400  # a minute may have passed meanwhile
        before = terminal.written
        assert admin.status is not None
        admin.status = {**admin.status, "clients": 15}
        terminal.wait("clients 15")
        assert terminal.written - before < 400
        quit_(terminal)


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_the_terminal_is_left_as_it_was(admin: FakeAdmin, how: str | signal.Signals) -> None:
    with opened(admin) as terminal:
        terminal.wait("gpu1")
        assert not termios.tcgetattr(terminal.child.child_fd)[3] & termios.ECHO
        if isinstance(how, str):
            terminal.press("?")
            terminal.wait("drain, resume")
            terminal.press(how)
            ended(terminal)
        else:
            terminal.child.kill(how)
            ended(terminal, 128 + how)
        assert termios.tcgetattr(terminal.child.child_fd)[3] & termios.ECHO


# A real proxy.


class Held:
    """A backend whose streams go on until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            connection.read_request()
            connection.send(sse_head() + chunk(b"data: x\n\n"))
            assert self.go.wait(120)
            connection.send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)


@contextmanager
def real(*options: str, **more: Any) -> Iterator[tuple[Proxy, Held]]:
    """A proxy with a backend of its own and one that is down, and a stream that is held."""
    held = Held()
    with (
        Backend(held) as server,
        Proxy(server.url, f"http://127.0.0.1:{free_port()}", options=options, **more) as proxy,
    ):
        with Client(proxy) as client:
            client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\nX-Request-ID: real-1\r\n\r\n")
            client.recv_until(b"data: x\n\n\r\n")
            try:
                yield proxy, held
            finally:
                held.go.set()
            client.read_chunked()


def state(proxy: Proxy) -> str:
    """Of the first backend, as /status has it."""
    found = json.loads(proxy.admin("/status")[1])["pools"][0]["backends"][0]
    return str(found["state"])


def test_draining_and_resuming_a_backend() -> None:
    with real() as (proxy, held):
        port = str(proxy.admin_port)
        with Terminal([*TOP, "--interval", "200ms"], env={"LLMPIPE_ADMIN": f"127.0.0.1:{port}"}) as terminal:
            terminal.wait(lambda text: re.search(r"127\.0\.0\.1:\d+ up +1 ", text), "streams 1")
            terminal.press("d")
            terminal.wait(lambda text: re.search(r"drain http://127\.0\.0\.1:\d+\? y/n", text))
            terminal.press("n")
            terminal.wait("Quit")
            assert state(proxy) == "up"
            terminal.press("dy")
            terminal.wait(lambda text: re.search(r"drain http://127\.0\.0\.1:\d+: draining, 1 in flight", text))
            assert state(proxy) == "draining"
            terminal.wait(lambda text: re.search(r"127\.0\.0\.1:\d+ draining +1 ", text))
            held.go.set()
            terminal.wait(lambda text: re.search(r"127\.0\.0\.1:\d+ drained +0 ", text))
            terminal.press("ry")
            terminal.wait(lambda text: re.search(r"resume http://127\.0\.0\.1:\d+: up", text))
            assert state(proxy) == "up"
            quit_(terminal)


TOKEN = "t0k3n-0f-the-admin"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Proxy, Path]]:
    """A proxy that wants a token, and the file that has it."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with real("--admin-token-file", str(file)) as (proxy, _):
        yield proxy, file


def test_a_drain_without_the_token_is_refused(guarded: tuple[Proxy, Path]) -> None:
    proxy, _ = guarded
    with Terminal([*TOP, "--admin", f"http://127.0.0.1:{proxy.admin_port}"]) as terminal:
        terminal.wait("streams 1")
        terminal.press("dy")
        terminal.wait("failed: 401: a token is needed")
        assert state(proxy) == "up"
        quit_(terminal)


@pytest.mark.parametrize(
    "how", ["file", pytest.param("variable", marks=pytest.mark.slow), pytest.param("option", marks=pytest.mark.slow)]
)
def test_a_drain_with_the_token_is_done(guarded: tuple[Proxy, Path], how: str) -> None:
    proxy, file = guarded
    words = {"file": ["--token-file", str(file)], "option": ["--token", TOKEN]}.get(how, [])
    env = {"LLMPIPE_ADMIN_TOKEN": TOKEN} if how == "variable" else {}
    with Terminal([*TOP, "--admin", f"http://127.0.0.1:{proxy.admin_port}", *words], env=env) as terminal:
        terminal.wait("streams 1")
        terminal.press("dy")
        terminal.wait("draining, 1 in flight")
        assert state(proxy) == "draining"
        terminal.press("ry")
        wait_until(lambda: state(proxy) == "up", what="resumed")
        quit_(terminal)


@pytest.mark.slow
def test_a_real_proxy_that_is_idle_costs_next_to_nothing_to_watch() -> None:
    with real() as (proxy, _), Terminal([*TOP, "--admin", f"127.0.0.1:{proxy.admin_port}"]) as terminal:
        terminal.wait("streams 1", "Quit")
        before = terminal.written
        uptime = re.compile(r"up (\d+)s")

        def seconds() -> int:
            found = uptime.search(terminal.text)
            assert found
            return int(found[1])

        first = seconds()
        wait_until(lambda: seconds() >= first + 3, what="3 s")
        assert terminal.written - before < 3 * 4096
        quit_(terminal)


# Once.


def once(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    return subprocess.run(
        [*TOP, "--once", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, **(env or {})},
    )


def test_once_prints_all_of_it_as_text(admin: FakeAdmin) -> None:
    done = once("--admin", admin.url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"llmpipe 0.1.0  up 2h03m  ready  {admin.url}"
    assert any(line.split()[:4] == ["gpu2", "down", "2", "failures,"] for line in lines)
    assert any(line.startswith("req-bbbb2") and "10.0.0.7" in line for line in lines)
    assert any(line.split()[2:4] == ["upstream_abort", "ECONNRESET"] for line in lines)
    assert done.stdout.isascii()


def test_once_of_a_real_proxy() -> None:
    with real() as (proxy, _):
        done = once(env={"LLMPIPE_ADMIN": f"0.0.0.0:{proxy.admin_port}"})  # as serve in the same container has it
        assert done.returncode == 0, done.stderr
        assert re.search(r"^clients 1  streams 1  waiting 0 ", done.stdout, re.MULTILINE)


def test_once_needs_no_textual(admin: FakeAdmin) -> None:
    script = (
        "import sys; sys.modules['textual'] = sys.modules['rich'] = None; from llmpipe.cli import main; "
        f"sys.argv = ['llmpipe', 'top', '--once', '--admin', {admin.url!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "gpu2" in done.stdout


# What cannot work.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--once", "--admin", "127.0.0.1:1"], "http://127.0.0.1:1: Connection refused"),
        (["--once", "--admin", "off"], "the admin endpoint is off"),
        (["--once", "--admin", "https://127.0.0.1:1"], "the admin endpoint has no TLS"),
        (["--once", "--admin", "9090"], "write http://HOST:PORT"),
        (["--once", "--admin", "http://u:p@127.0.0.1:1"], "write http://HOST:PORT"),
        (["--once", "--token-file", "/nonexistent"], "--token-file: /nonexistent: No such file or directory"),
        (["--once", "--token", "a b"], "--token has white space"),
        (["--interval", "61s"], "--interval is from 100ms to 60s"),
        (["--interval", "10ms"], "--interval is from 100ms to 60s"),
        ([], "needs a terminal; --once prints a snapshot"),
    ],
)
def test_what_cannot_work_is_one_line(words: list[str], says: str) -> None:
    done = subprocess.run(
        [*TOP, *words], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_once_of_something_else(admin: FakeAdmin) -> None:
    def greet(connection: Connection) -> None:
        connection.read_request()
        connection.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    with Backend(greet) as other:
        done = once("--admin", other.url)
    assert done.returncode == 2
    assert "no HTTP answer" in done.stderr


@pytest.mark.parametrize("library", ["textual", "rich"])
def test_a_missing_library_is_named_with_the_extra(library: str) -> None:
    script = f"import sys; sys.modules[{library!r}] = None; from llmpipe.cli import main; sys.argv = ['llmpipe', 'top']; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'llmpipe[top]'" in done.stderr


def test_other_commands_import_none_of_it() -> None:
    script = "import sys, llmpipe.cli; print({'textual', 'rich', 'llmpipe.top'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Details.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:9090", AdminAddress("127.0.0.1", 9090)),
        ("http://gpu-box/llmpipe/", AdminAddress("gpu-box", 80, "/llmpipe")),
        ("http://[::1]:9090/", AdminAddress("::1", 9090)),
        ("0.0.0.0:9091", AdminAddress("0.0.0.0", 9091)),
        ("[::1]:9090", AdminAddress("::1", 9090)),
        ("unix:/run/llmpipe/admin.sock", AdminAddress("unix:/run/llmpipe/admin.sock", 0)),
    ],
)
def test_addresses(text: str, address: AdminAddress) -> None:
    assert parse_admin(text) == address
    assert parse_admin(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "http://",
            "http://x:y",
            "ftp://x",
            "x",
            "http://x:1?a",
            "http://x:1#a",
            "http://[::1",
            "http://u:p@x:1",
            "::1:9090",
        ),
        *("http://x:0", "x:0", "https://x:1", "off", ""),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        parse_admin(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        ("1", "-"),
        (True, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (0, "0s"),
        (-1, "0s"),
        (3e-6, "3us"),
        (0.0042, "4.2ms"),
        (0.21, "210ms"),
        (0.9996, "1.0s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (125, "2m05s"),
        (10920, "3h02m"),
        (1e6, "11d13h"),
    ],
)
def test_durations(seconds: Any, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "0"), (0.05, "0.05"), (0.3, "0.3"), (99.96, "100"), (999.7, "1.0k"), (310000, "310k")],
)
def test_rates(value: float, text: str) -> None:
    assert figures.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0B"), (812, "812B"), (1023.7, "1.0KB"), (310_000, "303KB"), (2 << 30, "2.0GB")]
)
def test_sizes(value: float, text: str) -> None:
    assert figures.size(value) == text


def test_texts_are_cut_by_the_columns_that_they_take() -> None:
    assert figures.cut("http://gpu-one.example:8000", 12, middle=True) == "http:…e:8000"
    assert figures.cut("模型模型", 5) == "模型…"
    assert figures.cells(figures.pad("模型模型", 5)) == 5
    assert figures.cut("ab", 0) == ""
    assert figures.clean("a\x1b[2J\u202eb") == "a?[2J?b"


def test_sparklines() -> None:
    assert figures.sparkline([0, None, 5, 10], 5) == " ▁ ▅█"
    assert figures.sparkline([], 3) == "   "
    assert figures.sparkline([0, 0], 2) == "▁▁"
    assert figures.sparkline([1, "x", 2], 2) == " █"


def test_what_is_unknown_comes_last_in_either_order() -> None:
    groups = tables.backends(busy_status())
    for reverse in (False, True):
        rows = tables.ordered(groups, "itl50", reverse=reverse)[0].rows
        assert rows[-1].backend == "spare"


@pytest.mark.parametrize("width", range(1, 200, 7))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for columns, groups in (
        (tables.BACKENDS, tables.backends(busy_status())),
        (tables.EXCHANGES, tables.exchanges(busy_exchanges())),
        (tables.FAILURES, tables.failures(busy_status()) or []),
    ):
        placed = tables.layout(columns, groups, width)
        for line in (tables.title_spans(placed), *(tables.row_spans(row, placed) for row in groups[0].rows)):
            assert figures.cells("".join(span.text for span in line)) <= width


JUNK: list[Any] = [None, 1, "x", [], {}, [1], [None], {"p50": "x"}, [{}], True]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_any_json_is_shown_without_an_error(junk: Any) -> None:
    """An endpoint of another version, or of something else, may have anything at these places."""
    for make in (busy_status, busy_exchanges):
        answered = make()
        for name in list(answered):
            changed = {**answered, name: junk}
            snapshot = Snapshot(changed, {"samples": junk}, changed)
            assert list(plain.lines("x", snapshot))
            summary.sparklines({"samples": junk}, 80)
    row = backend("x")
    for name in row:
        status = busy_status()
        status["pools"] = [{"name": junk, "models": junk, "queue": junk, "backends": [{**row, name: junk}]}]
        assert list(plain.lines("x", Snapshot(status)))
        timeline.backend({**row, name: junk})
    element = exchange("x")
    for name in element:
        changed = {**element, name: junk}
        assert timeline.exchange(changed)
        assert list(plain.lines("x", Snapshot(busy_status(), exchanges={"live": [changed]})))
    for name in failure("x"):
        status = {**busy_status(), "failures": [{**failure("x"), name: junk}]}
        assert list(plain.lines("x", Snapshot(status)))
    assert timeline.found("x", Missing("gone"))


def test_what_a_newer_proxy_says_of_an_exchange_is_shown_too() -> None:
    element = exchange("x", retries_left=3)
    element["times"]["tls"] = 0.1
    texts = ["".join(span.text for span in line) for line in timeline.exchange(element)]
    assert any(text.split() == ["retries_left", "3"] for text in texts)
    assert any(re.search("● +tls$", text) for text in texts)


def test_not_ready_and_a_failed_reload_are_told() -> None:
    status = {**busy_status(), "ready": False, "reason": "draining", "reload_faults": ["pools.x: unknown"]}
    text = "".join(span.text for span in summary.identity(status))
    assert "not ready: draining" in text
    assert "reload failed: pools.x: unknown" in text


def test_the_fake_says_all_that_a_real_endpoint_does(admin: FakeAdmin) -> None:
    """The tests of the view would prove little otherwise."""
    with real() as (proxy, _):
        mine = httpx.get(f"{admin.url}/status").json()
        theirs = httpx.get(f"http://127.0.0.1:{proxy.admin_port}/status").json()
    assert theirs.keys() <= mine.keys()
    assert theirs["pools"][0].keys() <= mine["pools"][0].keys()
    known = set(mine["pools"][0]["backends"][0]) | set(mine["pools"][0]["backends"][1])
    assert all(row.keys() <= known for row in theirs["pools"][0]["backends"])
