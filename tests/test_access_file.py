"""The access log in a file of its own: opened at the start, opened anew by SIGUSR1, and never in the way."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tools
from generations import LONG, Generations
from harness import (
    Backend,
    Client,
    Connection,
    Proxy,
    Stream,
    answer_all,
    chunk,
    open_descriptors,
    sse_head,
    wait_until,
)

from llmpipe import log

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    """The lines of files, each of which must be whole JSON."""
    found = []
    for path in paths:
        data = path.read_bytes()
        assert data == b"" or data.endswith(b"\n"), f"{path} ends inside of a line"
        found += [json.loads(line) for line in data.splitlines()]
    return found


def ids_of(*paths: Path) -> list[str]:
    return [line["request_id"] for line in lines_of(*paths)]


def wait_lines(path: Path, number: int) -> None:
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= number, what=f"{number} lines in {path}")


def ask(stream: Stream, *ids: str) -> None:
    """A request with each of these ids, pipelined."""
    stream.send(b"".join(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\n\r\n" % name.encode() for name in ids))
    for _ in ids:
        assert stream.read_head().startswith(b"HTTP/1.1 200 ")
        assert stream.read(2) == b"ok"


def test_lines_are_in_the_file_and_no_more_on_stderr(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text('{"request_id": "before"}\n')
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    with Client(proxy) as client:
        ask(client, "a", "b")
    wait_lines(path, 3)
    assert ids_of(path) == ["before", "a", "b"]
    found = lines_of(path)[1]
    assert (found["event"], found["level"], found["status"], found["outcome"]) == ("access", "info", 200, "ok")
    proxy.close()
    assert not [line for line in proxy.log if line["event"] == "access"]


def test_a_new_file_is_for_its_owner_and_its_group(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        proxy_to(answer_all, options=["--access-log", str(tmp_path / "access.log")])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "access.log").stat().st_mode) == 0o640


def test_text_lines(tmp_path: Path) -> None:
    file = log.LineFile(str(tmp_path / "log"), "text")
    file.write("access", {"path": "/a b", "failed": ("x:y",), "status": None}, 0.0)
    file.close()
    file.close()
    assert (tmp_path / "log").read_text() == '1970-01-01T00:00:00.000Z info    access path="/a b" failed=x:y status=-\n'


def test_lines_of_two_writers_do_not_mingle_however_long_they_are(tmp_path: Path) -> None:
    """As those of the old and the new process during an upgrade."""
    path = tmp_path / "log"
    files = [log.LineFile(str(path), "json") for _ in range(2)]
    for number in range(400):
        for writer, file in enumerate(files):
            file.write("access", {"request_id": f"{writer}-{number}", "text": "x" * 40_000}, 0.0)
    for file in files:
        file.close()
        assert file.dropped == 0
    assert sorted(ids_of(path)) == sorted(f"{writer}-{number}" for writer in range(2) for number in range(400))


def port_of(process: subprocess.Popen[bytes]) -> int:
    """Where a proxy without an admin endpoint listens, once it does; its log need not say so."""

    def found() -> list[int]:
        connections = psutil.Process(process.pid).net_connections("tcp")
        return [found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN]

    wait_until(lambda: found() or process.poll() is not None)
    return found()[0]


def ask_once(port: int, name: str) -> None:
    with contextlib.closing(Stream(socket.create_connection(("127.0.0.1", port), timeout=30))) as stream:
        ask(stream, name)


def test_the_level_of_the_log_is_not_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0", "--admin", "off"]
        command += ["--log-format", "json", "--log-level", "error", "--backend", backend.url, "--access-log", str(path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            try:
                ask_once(port_of(process), "a")
                wait_lines(path, 1)
            finally:
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    assert ids_of(path) == ["a"]


def test_off_is_no_line_anywhere(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    proxy = proxy_to(answer_all, options=["--access-log", "off"], cwd=str(tmp_path))
    with Client(proxy) as client:
        client.request(GET)
    proxy.close()
    assert proxy.wait_log("stopped")
    assert not [line for line in proxy.log if line["event"] == "access"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("none/access.log", "No such file or directory"), ("", "Is a directory"), ("fifo", "No such device or address")]
)  # fmt: skip
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")  # which nobody reads
    path = tmp_path / name
    command = [sys.executable, "-m", "llmpipe", "serve", "--demo", "--access-log", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: --access-log {path} cannot be opened ({reason})\n"


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(
        'access_log = "a\\u0000b"\n[pools.a]\nbackends = [{ url = "http://127.0.0.1:1" }]\n'
    )
    command = [sys.executable, "-m", "llmpipe", "serve", "--config", str(tmp_path / "f.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "embedded null byte" in done.stderr


def test_a_link_is_followed(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "access.log")
    proxy = proxy_to(answer_all, options=["--access-log", str(tmp_path / "link")])
    with Client(proxy) as client:
        ask(client, "a")
    wait_lines(tmp_path / "access.log", 1)
    assert (tmp_path / "link").is_symlink()


def test_standard_output_is_a_file_too(tmp_path: Path) -> None:
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0", "--admin", "off"]
        command += ["--log-format", "json", "--backend", backend.url, "--access-log", "/dev/stdout"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                ask_once(port_of(process), "a")
            finally:
                process.send_signal(signal.SIGTERM)
                output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    assert [json.loads(line)["request_id"] for line in output.splitlines()] == ["a"]


class Rotated:
    """An access log and the files that it was before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path]
        self._lock = threading.Lock()

    def written(self) -> int:
        """Lines in all of them."""
        with self._lock:
            return sum(file.read_bytes().count(b"\n") for file in self.files if file.exists())

    def rotate(self) -> None:
        """Gives the file another name, as logrotate does before it sends the signal."""
        with self._lock:
            self.files.insert(0, self.path.with_suffix(f".{len(self.files)}"))
            self.path.rename(self.files[0])


def test_no_line_is_lost_or_cut_while_files_are_rotated(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    rotated = Rotated(tmp_path / "access.log")
    proxy = proxy_to(answer_all, options=["--access-log", str(rotated.path), "--workers", "2"])
    asked: list[list[str]] = [[] for _ in range(4)]

    def load(number: int) -> None:
        with Client(proxy) as client:
            for batch in range(40):
                # Fewer than there is room for on the way, however slow the disk is: none may be dropped.
                wait_until(lambda: sum(map(len, asked)) - rotated.written() < 400, LONG)
                names = [f"{number}-{batch}-{one}" for one in range(20)]
                ask(client, *names)
                asked[number] += names

    threads = [threading.Thread(target=load, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(8):
        enough = 350 * (number + 1)
        wait_until(lambda: rotated.written() >= enough and rotated.path.exists(), LONG)  # noqa: B023 - it is called here
        rotated.rotate()
        for _ in range(1 + number % 3):  # one is enough, and more do no harm
            proxy.signal(signal.SIGUSR1)
    for thread in threads:
        thread.join(LONG)
    wait_until(lambda: rotated.written() >= 3200, LONG)
    assert proxy.metric("llmpipe_access_lines_dropped_total") == 0
    assert sorted(ids_of(*rotated.files)) == sorted(name for names in asked for name in names)
    assert len(rotated.files) == 9


@tools.needs("logrotate", "logrotate")
def test_logrotate_does_it_as_the_docs_say(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    text = (Path(__file__).parents[1] / "docs/deploy/llmpipe.logrotate").read_text()
    for what, here in (
        ("/var/log/llmpipe/access.log", str(path)),
        ("systemctl kill --signal=SIGUSR1 llmpipe.service 2>/dev/null || true", f"kill -USR1 {proxy.pid}"),
    ):
        assert text.count(f"{what}\n") + text.count(f"{what} {{") == 1
        text = text.replace(f"{what}\n", f"{here}\n").replace(f"{what} {{", f"{here} {{")
    snippet = tmp_path / "llmpipe.logrotate"
    snippet.write_text(text)
    snippet.chmod(0o644)
    for day in range(3):
        with Client(proxy) as client:
            ask(client, *(f"{day}-{number}" for number in range(10)))
        wait_lines(path, 10)
        command = [tools.tool("logrotate", "logrotate"), "--force", "--state", str(tmp_path / "state"), str(snippet)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        wait_until(path.exists)
    with Client(proxy) as client:
        ask(client, "3-0")
    wait_lines(path, 1)
    wanted = {f"{day}-{number}" for day in range(3) for number in range(10)}
    zipped = [gzip.decompress((tmp_path / f"access.log.{number}.gz").read_bytes()) for number in (2, 3)]
    found = [json.loads(line)["request_id"] for data in zipped for line in data.splitlines()]
    found += ids_of(tmp_path / "access.log.1", path)
    assert sorted(found) == sorted({*wanted, "3-0"})
    assert proxy.metric("llmpipe_access_lines_dropped_total") == 0


def test_behind_the_signal_nothing_goes_to_the_old_file(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    path, old = tmp_path / "access.log", tmp_path / "old"
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    with Client(proxy) as client:
        ask(client, "before")
        wait_lines(path, 1)
        path.rename(old)
        ask(client, "between")
        wait_lines(old, 2)
        proxy.signal(signal.SIGUSR1)
        wait_until(path.exists)
        ask(client, "behind")
        wait_lines(path, 1)
    assert (ids_of(old), ids_of(path)) == (["before", "between"], ["behind"])
    opened = list(open_descriptors(proxy.pid).values())
    assert (opened.count(str(path)), opened.count(str(old))) == (1, 0)


def test_where_it_cannot_be_opened_anew_lines_go_on_to_the_old_one(
    proxy_to: Callable[..., Proxy], tmp_path: Path
) -> None:
    path, old = tmp_path / "access.log", tmp_path / "old"
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    with Client(proxy) as client:
        ask(client, "a")
        wait_lines(path, 1)
        path.rename(old)
        path.mkdir()
        proxy.signal(signal.SIGUSR1)
        said = proxy.wait_log("log file not reopened")
        assert (said["level"], said["path"], said["error"]) == ("error", str(path), "Is a directory")
        ask(client, "b")
        wait_lines(old, 2)
        path.rmdir()
        proxy.signal(signal.SIGUSR1)
        wait_until(path.exists)
        ask(client, "c")
        wait_lines(path, 1)
    assert (ids_of(old), ids_of(path)) == (["a", "b"], ["c"])


def test_a_full_disk_loses_lines_that_are_counted_and_nobody_waits(proxy_to: Callable[..., Proxy]) -> None:
    proxy = proxy_to(answer_all, options=["--access-log", "/dev/full"])
    with Client(proxy) as client:
        ask(client, *map(str, range(50)))
    proxy.wait_metric("llmpipe_access_lines_dropped_total", 50)
    proxy.close()
    assert proxy.wait_log("access lines dropped")["lines"] == 50


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(proxy_to: Callable[..., Proxy], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    proxy = proxy_to(answer_all, options=["--access-log", str(path)])
    with Client(proxy) as client:
        ask(client, "a")
        wait_lines(path, 1)
        # The file may not grow beyond the middle of the next line; a disk that is full in the middle of a write does the same.
        full = path.stat().st_size + 100
        _, most = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (full, most))
        ask(client, "b", "c")
        proxy.wait_metric("llmpipe_access_lines_dropped_total", 2)
        assert path.stat().st_size == full
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (most, most))
        ask(client, "d", "e")
        wait_lines(path, 4)
    whole, torn, *behind = path.read_bytes().splitlines()
    assert [json.loads(line)["request_id"] for line in (whole, *behind)] == ["a", "d", "e"]
    assert len(torn) == 100
    assert torn.startswith(b'{"time":')


def test_a_reader_that_stands_still_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 10)
    monkeypatch.setattr(log, "CLOSE_SILENCE", 0.3)
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        file = log.LineFile(str(tmp_path / "fifo"), "json")
        for number in range(1000):  # a hundred times what there is room for; it would never end if it waited
            file.write("access", {"number": number, "text": "x" * 4000}, 0.0)
        assert file.dropped > 900
        file.close()
        assert file.dropped > 900
        written = os.read(reader, 1 << 20).count(b"\n")
        assert 0 < written <= 1000 - file.dropped
    finally:
        os.close(reader)


class HeldStreams:
    """A backend script: /held streams until it may go on, all else is answered at once."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read_request()
            if b"/held" not in request.line:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            connection.send(sse_head() + chunk(b"data: 1\n\n"))
            assert self.go.wait(LONG)
            connection.send(b"0\r\n\r\n")


def test_two_processes_append_to_it_during_an_upgrade_and_both_open_it_anew(tmp_path: Path) -> None:
    """The new one is sent SIGUSR1 from its first moment on, as by a tool that sends it to everybody."""
    path, old = tmp_path / "access.log", tmp_path / "old"
    held = HeldStreams()
    options = ["--upgrade-timeout", "0", "--access-log", str(path)]
    with Backend(held) as backend, Generations(backend.url, options=options) as processes:
        first = processes.proxy
        with Client(first) as streaming:
            streaming.send(b"GET /held HTTP/1.1\r\nHost: a\r\nX-Request-ID: held\r\nConnection: close\r\n\r\n")
            streaming.read_head()
            with Client(first) as client:
                ask(client, *(f"first-{number}" for number in range(20)))
            processes.signal(signal.SIGUSR2)
            new = int(processes.wait_line("upgrading")["pid"])
            while not processes.lines("upgraded"):
                os.kill(new, signal.SIGUSR1)
                time.sleep(0.001)
            processes.taken_over(1)
            assert processes.pid == new
            with Client(first) as client:  # the same address
                ask(client, *(f"second-{number}" for number in range(20)))
            wait_lines(path, 40)
            path.rename(old)
            for pid in processes.pids:
                os.kill(pid, signal.SIGUSR1)
            wait_until(lambda: all(str(path) in open_descriptors(pid).values() for pid in processes.pids), LONG)
            with Client(first) as client:
                ask(client, "third")
            wait_lines(path, 1)
            held.go.set()
            assert streaming.read_eof().endswith(b"0\r\n\r\n")
        processes.wait_gone(first.pid)
    assert sorted(ids_of(old)) == sorted(f"{word}-{number}" for word in ("first", "second") for number in range(20))
    assert ids_of(path) == ["third", "held"]
