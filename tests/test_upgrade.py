"""Rule G4: SIGUSR2 and `llmpipe upgrade` hand the sockets to a new process; nobody is refused, and no stream is cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from generations import LONG, Generations, gone
from harness import (
    Backend,
    Client,
    Connection,
    Proxy,
    answer_all,
    chunk,
    free_port,
    open_descriptors,
    respond,
    sse_head,
    wait_until,
)

from llmpipe import upgrade
from llmpipe.config import parse_address
from llmpipe.sockets import are_at

pytestmark = pytest.mark.timeout(600)  # several starts, on a machine that may be busy

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ONCE = b"GET /once HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"


class Held:
    """Streams on /held that stop half-way until they are told to go on, a small answer on any other path."""

    def __init__(self) -> None:
        self.go = threading.Event()
        events = [b"data: %d\n\n" % number for number in range(200)]
        self.halves = b"".join(map(chunk, events[:100])), b"".join(map(chunk, events[100:])) + b"0\r\n\r\n"

    def __call__(self, connection: Connection) -> None:
        connection.sock.settimeout(LONG)
        while connection.read_request().line != b"GET /held HTTP/1.1":
            respond(connection)
        connection.send(sse_head() + self.halves[0])
        assert self.go.wait(4 * LONG)
        with suppress(OSError):  # of a stream that was cut
            connection.send(self.halves[1])


def begin(proxy: Proxy, held: Held) -> Client:
    """A stream whose first half has arrived."""
    client = Client(proxy)
    client.sock.settimeout(LONG)
    client.send(HELD)
    client.read_head()
    assert client.read(len(held.halves[0])) == held.halves[0]
    return client


class Asking(threading.Thread):
    """Does something over and over until it is stopped; what is raised is kept."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.error: BaseException | None = None
        self._ask = ask
        self._stop_asking = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_asking.is_set():
                self._ask()
                self.done += 1
                time.sleep(0.002)  # the machine's other work is the new process
        except BaseException as error:
            self.error = error

    def wait_more(self, n: int) -> None:
        """Waits until it was done so many more times."""
        wanted = self.done + n
        wait_until(lambda: self.done >= wanted or self.error, LONG, f"{n} more answers")
        assert self.error is None, self.error

    def __enter__(self) -> Asking:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asking.set()
        self.join(LONG)
        assert not self.is_alive()


def ask_once(port: int) -> None:
    """A request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as sock:
        connected = time.monotonic()
        try:
            sock.sendall(ONCE)
            late = time.monotonic() - connected
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        except ConnectionError:
            late, answer = time.monotonic() - connected, b""
    # A drain gives a connection one second for its first request: this process may have been asleep for longer.
    assert (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nok")) or (not answer and late > 0.5), (
        answer
    )


def test_three_in_a_row_refuse_nobody_and_cut_nothing() -> None:
    held = Held()
    with Backend(held) as backend, Generations(backend.url) as generations, ExitStack() as stack:
        proxy = generations.proxy

        def ask_admin() -> None:
            generations.admin("/readyz")
            generations.admin("/status")

        stack.callback(held.go.set)
        streams = [stack.enter_context(begin(proxy, held)) for _ in range(20)]
        with Asking(lambda: ask_once(proxy.port)) as asking, Asking(ask_admin) as admin:
            for _ in range(3):
                asking.wait_more(50)
                generations.upgrade()
                asking.wait_more(50)
                admin.wait_more(3)
        assert asking.error is None, asking.error
        assert admin.error is None, admin.error
        assert len(set(generations.pids)) == 4
        wait_until(lambda: generations.status()["pid"] == generations.pid, LONG)
        for pid in generations.pids[1:3]:  # they had no stream
            generations.wait_gone(pid)
        assert proxy.process.poll() is None
        held.go.set()
        for client in streams:
            assert client.read(len(held.halves[1])) == held.halves[1]
        generations.wait_gone(proxy.pid)
        assert len(proxy.access(20, LONG, path="/held")) == 20
        assert not [line for line in generations.lines("access") if line["outcome"] != "ok"]


def test_the_old_one_goes_on_accepting_until_the_new_one_serves(slowed: Slowed) -> None:
    """Neither a signal nor a new process that takes its time changes anything for clients."""
    with Backend(answer_all) as backend, Generations(backend.url, env=slowed.env, options=()) as generations:
        slowed.hang()
        generations.signal(signal.SIGUSR2)
        new = int(generations.wait_line("upgrading")["pid"])
        slowed.wait_hangs()
        for _ in range(20):
            ask_once(generations.proxy.port)
        assert generations.status()["pid"] == generations.proxy.pid
        assert not generations.lines("upgraded")
        slowed.go_on()
        generations.taken_over(1)
        assert generations.pid == new
        generations.wait_gone(generations.proxy.pid)
        assert generations.status()["pid"] == new


class Slowed:
    """An environment in which the next process stops before it runs a line of llmpipe: Python imports sitecustomize first."""

    SCRIPT = """
import os, sys, time
folder = os.path.dirname(__file__)
def there(name):
    return os.path.exists(os.path.join(folder, name))
if there("die"):
    with open(os.path.join(folder, "die")) as file:
        word = file.read()
    os.kill(os.getpid(), 9) if word == "SIGKILL" else os._exit(int(word))
if there("hang"):
    open(os.path.join(folder, "hangs"), "w").close()
    while there("hang"):
        time.sleep(0.01)
"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "sitecustomize.py").write_text(self.SCRIPT)
        path = os.environ.get("PYTHONPATH")
        self.env = {"PYTHONPATH": f"{folder}:{path}" if path else str(folder)}

    def hang(self) -> None:
        (self._folder / "hangs").unlink(missing_ok=True)
        (self._folder / "hang").touch()

    def wait_hangs(self) -> None:
        wait_until((self._folder / "hangs").exists, LONG, "the new process to start")

    def go_on(self) -> None:
        (self._folder / "hang").unlink()

    def die(self, how: str) -> None:
        (self._folder / "die").write_text(how)

    def live(self) -> None:
        (self._folder / "die").unlink()


@pytest.fixture
def slowed(tmp_path: Path) -> Slowed:
    folder = tmp_path / "site"
    folder.mkdir()
    return Slowed(folder)


def write_file(path: Path, backend: str, first: str = "") -> None:
    path.write_text(f'{first}\n[pools.one]\n[[pools.one.backends]]\nurl = "{backend}"\n')


def ask(proxy: Proxy) -> bytes:
    with Client(proxy) as client:
        client.sock.settimeout(LONG)
        return client.request(GET).body


def test_a_file_with_faults_stops_it_and_a_good_one_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "llmpipe.toml"

    def other(connection: Connection) -> None:
        while True:
            connection.read_request()
            respond(connection, b"other")

    with Backend(answer_all) as one, Backend(other) as two:
        write_file(file, one.url)
        with Generations(options=["--config", str(file), "--upgrade-timeout", "0"]) as generations:
            file.write_text("[pools.one]\nmodel = 1\n[[pools.one.backends]]\nurl = 'x'\n")
            generations.signal(signal.SIGUSR2)
            new = int(generations.wait_line("upgrading")["pid"])
            line = generations.wait_line("upgrade failed")
            assert "pools.one.backends[0]" in line["error"]
            assert "pools.one.model: unknown key" in line["error"]
            assert "\n" not in line["error"]
            wait_until(lambda: not Path(f"/proc/{new}").exists(), LONG, "it to be waited for")
            assert ask(generations.proxy) == b"ok"
            assert generations.status()["pid"] == generations.proxy.pid
            write_file(file, two.url)
            assert ask(generations.proxy) == b"ok"
            generations.upgrade()
            generations.wait_gone(generations.proxy.pid)
            assert ask(generations.proxy) == b"other"


@pytest.mark.parametrize(("how", "said"), [("7", "exit code 7"), ("0", "exit code 0"), ("SIGKILL", "SIGKILL")])
def test_a_new_process_that_dies_is_no_harm_and_another_may_come(slowed: Slowed, how: str, said: str) -> None:
    held = Held()
    with Backend(held) as backend, Generations(backend.url, env=slowed.env) as generations:
        with begin(generations.proxy, held) as client:
            slowed.die(how)
            generations.signal(signal.SIGUSR2)
            line = generations.wait_line("upgrade failed")
            assert said in line["error"]
            assert (line["level"], line["hint"]) == ("error", "this process goes on")
            new = int(generations.wait_line("upgrading")["pid"])
            wait_until(lambda: not Path(f"/proc/{new}").exists(), LONG, "it to be waited for")
            ask_once(generations.proxy.port)
            slowed.live()
            generations.upgrade()
            held.go.set()
            assert client.read(len(held.halves[1])) == held.halves[1]


def test_a_new_process_that_is_never_ready_is_killed(slowed: Slowed) -> None:
    options = ["--upgrade-timeout", "500ms"]
    with Backend(answer_all) as backend, Generations(backend.url, env=slowed.env, options=options) as generations:
        slowed.hang()
        generations.signal(signal.SIGUSR2)
        new = int(generations.wait_line("upgrading")["pid"])
        line = generations.wait_line("upgrade failed")
        assert line["error"] == "it was not ready within 500ms (--upgrade-timeout)"
        wait_until(lambda: not Path(f"/proc/{new}").exists(), LONG, "it to be killed and waited for")
        ask_once(generations.proxy.port)
        assert generations.status()["ready"] is True


def test_another_signal_meanwhile_is_a_line(slowed: Slowed) -> None:
    with Backend(answer_all) as backend, Generations(backend.url, env=slowed.env, options=()) as generations:
        slowed.hang()
        generations.signal(signal.SIGUSR2)
        slowed.wait_hangs()
        new = int(generations.wait_line("upgrading")["pid"])
        generations.signal(signal.SIGUSR2)
        assert generations.wait_line("upgrade ignored")["reason"] == "another upgrade is under way"
        os.kill(new, signal.SIGUSR2)  # it ignores it, from before its first line
        slowed.go_on()
        generations.taken_over(1)
        assert generations.pid == new
        assert len(generations.lines("upgrading")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_ends_it_meanwhile_ends_both(slowed: Slowed, number: signal.Signals) -> None:
    held = Held()
    with Backend(held) as backend, Generations(backend.url, env=slowed.env, options=()) as generations:
        with begin(generations.proxy, held) as client:
            slowed.hang()
            generations.signal(signal.SIGUSR2)
            slowed.wait_hangs()
            new = int(generations.wait_line("upgrading")["pid"])
            generations.signal(number)
            assert generations.wait_line("draining")["signal"] == number.name
            wait_until(lambda: not Path(f"/proc/{new}").exists(), LONG, "the new process to be killed and waited for")
            generations.signal(signal.SIGUSR2)
            assert generations.wait_line("upgrade ignored")["reason"] == "it is draining"
            held.go.set()
            assert client.read(len(held.halves[1])) == held.halves[1]
        generations.wait_gone(generations.proxy.pid)


def test_without_its_old_process_a_new_one_does_not_serve(slowed: Slowed) -> None:
    with Backend(answer_all) as backend:
        generations = Generations(backend.url, env=slowed.env, options=())
        try:
            slowed.hang()
            generations.signal(signal.SIGUSR2)
            slowed.wait_hangs()
            new = int(generations.wait_line("upgrading")["pid"])
            generations.signal(signal.SIGKILL)
            generations.proxy.process.wait(LONG)
            slowed.go_on()
            wait_until(lambda: gone(new), LONG)
            wait_until(lambda: "take over from is gone" in "".join(generations.proxy.stderr), LONG)
            with pytest.raises(ConnectionRefusedError):
                generations.proxy.connect()
        finally:
            generations.kill()


def test_a_second_signal_ends_the_old_one_that_drains() -> None:
    held = Held()
    with Backend(held) as backend:
        generations = Generations(backend.url)
        try:
            with begin(generations.proxy, held) as client:
                generations.upgrade()
                generations.wait_line("draining")
                generations.proxy.signal(signal.SIGTERM)
                assert not client.read_eof(LONG).endswith(b"0\r\n\r\n")
                assert generations.proxy.wait_exit(LONG) == 1
            ask_once(generations.proxy.port)
            generations.signal(signal.SIGTERM)
            wait_until(lambda: gone(generations.pid), LONG)
        finally:
            held.go.set()
            generations.kill()


def initial_environment(pid: int) -> dict[str, str]:
    """What a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return {name: value for name, _, value in (word.partition("=") for word in words if word)}


def sockets_of(pid: int) -> set[str]:
    return {what for what in open_descriptors(pid).values() if what.startswith("socket:")}


def test_what_the_new_process_gets(tmp_path: Path) -> None:
    """The command line, the environment, the folder, descriptors 0 to 2 and the listening sockets; nothing else."""
    held = Held()
    with Backend(held) as backend:
        variables = {"LLMPIPE_DRAIN_TIMEOUT": "9m", "SOMETHING": "else"}
        with Generations(backend.url, env=variables, cwd=str(tmp_path)) as generations:
            old = generations.proxy.pid
            with begin(generations.proxy, held) as client:
                new = generations.upgrade()
                assert not gone(old)
                for name in ("cmdline", "cwd"):
                    read = os.readlink if name == "cwd" else lambda path: Path(path).read_bytes()
                    assert read(f"/proc/{new}/{name}") == read(f"/proc/{old}/{name}")  # type: ignore[operator]
                own = {
                    "LISTEN_FDS": "2",
                    "LISTEN_FDNAMES": "http:admin",
                    "LISTEN_PID": str(new),
                    "LLMPIPE_HANDOVER": "5",
                }
                assert initial_environment(new) == {**initial_environment(old), **own}
                old_ones, new_ones = open_descriptors(old), open_descriptors(new)
                assert [new_ones[number] for number in range(3)] == [old_ones[number] for number in range(3)]
                assert os.getpgid(new) == os.getpgid(old)
                # The old one has its client and its backend besides; its admin endpoint has left the socket, and may have closed it.
                assert len(sockets_of(old) & sockets_of(new)) <= 2
                assert {new_ones[3], new_ones[4]} >= sockets_of(old) & sockets_of(new)
                status = Path(f"/proc/{new}/status").read_text()
                assert re.search(r"^SigBlk:\s*0+$", status, re.MULTILINE)
                held.go.set()
                assert client.read(len(held.halves[1])) == held.halves[1]


def test_the_new_process_answers_after_a_second_handover_too(tmp_path: Path) -> None:
    """What it was handed it hands on; and SIGHUP, to whoever serves, loads the file."""
    file = tmp_path / "llmpipe.toml"
    with Backend(answer_all) as backend:
        write_file(file, backend.url)
        options = [
            "--config",
            str(file),
            "--upgrade-timeout",
            "0",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.2:0",
        ]
        with Generations(options=options) as generations:
            addresses = [line["address"] for line in generations.lines("listening")]
            assert len(addresses) == 2
            for _ in range(2):
                generations.upgrade()
            wait_until(lambda: len(generations.lines("listening")) == 6, LONG)
            assert [line["address"] for line in generations.lines("listening")] == addresses * 3
            generations.signal(signal.SIGHUP)
            generations.wait_line("reloaded")
            for address in addresses:
                host, port = parse_address(address)
                with socket.create_connection((host, port), timeout=LONG) as sock:
                    sock.sendall(GET)
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            assert not generations.lines("other sockets were handed over")


def test_closed_standard_descriptors_stay_closed_to_everybody() -> None:
    """Those of the new process are /dev/null, as the old one's are (rule G5)."""
    prefix = ["sh", "-c", 'exec "$@" 0>&- 1>&-', "sh"]
    with Backend(answer_all) as backend, Generations(backend.url, prefix=prefix) as generations:
        new = generations.upgrade()
        shown = open_descriptors(new)
        assert (shown[0], shown[1]) == ("/dev/null", "/dev/null")
        ask_once(generations.proxy.port)


def test_other_addresses_are_not_taken_and_a_line_says_so(tmp_path: Path) -> None:
    file = tmp_path / "llmpipe.toml"
    port, admin = free_port(), free_port()
    # Variables and flags stay the same; so the addresses stand in the file, and the harness must not give others.
    with Backend(answer_all) as backend:
        write_file(file, backend.url, f'listen = ["127.0.0.1:{port}"]\nadmin = "127.0.0.1:{admin}"\nworkers = 1')
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        command = [sys.executable, "-m", "llmpipe", "serve", "--config", str(file), "--log-format", "json"]
        command += ["--pid-file", str(tmp_path / "pid"), "--upgrade-timeout", "0"]
        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log, env=environment) as old:
            new = 0

            def lines(event: str) -> list[dict[str, object]]:
                found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line[:1] == "{"]
                return [line for line in found if line["event"] == event]

            try:
                wait_until((tmp_path / "pid").exists, LONG)
                other = free_port()
                write_file(file, backend.url, f'listen = ["127.0.0.1:{other}"]\nadmin = "off"\nworkers = 1')
                old.send_signal(signal.SIGUSR2)
                wait_until(lambda: lines("upgraded"), LONG)
                new = int(str(lines("upgraded")[0]["pid"]))
                line = lines("other sockets were handed over")[0]
                assert (line["option"], line["asked"], line["used"]) == (
                    "--listen",
                    f"127.0.0.1:{other}",
                    f"127.0.0.1:{port}",
                )
                ask_once(port)
                with pytest.raises(ConnectionRefusedError):
                    ask_once(other)
                assert old.wait(LONG) == 0
                with pytest.raises(ConnectionRefusedError):  # it was turned off
                    socket.create_connection(("127.0.0.1", admin), timeout=LONG)
            finally:
                old.kill()
                if new:
                    os.kill(new, signal.SIGTERM)
                    wait_until(lambda: gone(new), LONG)


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (["127.0.0.1:0"], True),
        (["localhost:{port}"], True),
        (["127.0.0.1:{port}"], True),
        (["0.0.0.0:{port}"], False),
        (["[::1]:{port}"], False),
        (["127.0.0.1:1"], False),
        (["127.0.0.1:{port}", "127.0.0.1:{port}"], False),
    ],
)
def test_which_sockets_are_those_that_were_asked_for(asked: list[str], same: bool) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert are_at([listener], [parse_address(text.format(port=port)) for text in asked]) is same


def test_the_pid_file_names_who_serves(tmp_path: Path, slowed: Slowed) -> None:
    path = tmp_path / "llmpipe.pid"
    held = Held()
    with Backend(held) as backend:
        options = ["--pid-file", str(path), "--upgrade-timeout", "0"]
        with Generations(backend.url, options=options, env=slowed.env) as generations:
            old = generations.proxy.pid
            wait_until(path.exists, LONG)
            assert path.read_text() == f"{old}\n"
            with begin(generations.proxy, held) as client:
                slowed.hang()
                generations.signal(signal.SIGUSR2)
                slowed.wait_hangs()
                assert path.read_text() == f"{old}\n"
                slowed.go_on()
                generations.taken_over(1)
                assert path.read_text() == f"{generations.pid}\n"
                held.go.set()
                assert client.read(len(held.halves[1])) == held.halves[1]
            generations.wait_gone(old)
            assert path.read_text() == f"{generations.pid}\n"
            slowed.die("1")
            generations.signal(signal.SIGUSR2)
            generations.wait_line("upgrade failed")
            assert path.read_text() == f"{generations.pid}\n"
        assert sorted(found.name for found in tmp_path.iterdir()) == ["site"]


def test_the_pid_file_of_another_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "llmpipe.pid"
    with Backend(answer_all) as backend, Proxy(backend.url, options=["--pid-file", str(path)]):
        wait_until(path.exists, LONG)
        path.write_text("1\n")
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("place", ["missing/llmpipe.pid", "."])
def test_a_pid_file_that_cannot_be_written_is_a_fault(tmp_path: Path, place: str) -> None:
    command = [sys.executable, "-m", "llmpipe", "serve", "--backend", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"]
    command += ["--admin", "off", "--workers", "1", "--log-level", "error", "--pid-file", str(tmp_path / place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "--pid-file" in done.stderr


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket, which tells who sent what."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.settimeout(LONG)
        yield sock


def told(manager: socket.socket) -> tuple[int, bytes]:
    data, ancillary, _, _ = manager.recvmsg(1000, 200)
    return struct.unpack("3i", ancillary[0][2])[0], data


def test_the_service_manager_is_told_of_the_new_main_process(manager: socket.socket, slowed: Slowed) -> None:
    env = {"NOTIFY_SOCKET": manager.getsockname(), **slowed.env}
    held = Held()
    with Backend(held) as backend, Generations(backend.url, env=env) as generations:
        old = generations.proxy.pid
        assert told(manager) == (old, b"READY=1")
        slowed.die("1")
        generations.signal(signal.SIGUSR2)  # of one that fails nothing is said
        generations.wait_line("upgrade failed")
        slowed.live()
        with begin(generations.proxy, held) as client:
            new = generations.upgrade()
            assert told(manager) == (old, f"MAINPID={new}".encode())
            assert told(manager) == (new, b"READY=1")
            os.kill(old, signal.SIGHUP)  # neither this nor its end is the service's
            generations.wait_line("reloaded")
            held.go.set()
            assert client.read(len(held.halves[1])) == held.halves[1]
        generations.wait_gone(old)
        generations.signal(signal.SIGTERM)
        assert told(manager) == (new, b"STOPPING=1")
        generations.wait_gone(new)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)


def upgraded(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`llmpipe upgrade`, run to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    command = [sys.executable, "-m", "llmpipe", "upgrade", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=2 * LONG, check=False, env={**inherited, **(env or {})}
    )


@pytest.mark.parametrize("way", ["pid", "file", "variable"])
def test_the_command_waits_until_another_process_serves(tmp_path: Path, way: str) -> None:
    path = tmp_path / "llmpipe.pid"
    with Backend(answer_all) as backend:
        with Generations(backend.url, options=["--pid-file", str(path), "--upgrade-timeout", "0"]) as generations:
            wait_until(path.exists, LONG)
            old = generations.proxy.pid
            words = {"pid": ["--pid", str(old)], "file": ["--pid-file", str(path)], "variable": []}[way]
            env = {"LLMPIPE_PID_FILE": str(path)} if way == "variable" else {}
            done = upgraded(*words, "--timeout", "0", env=env)
            generations.taken_over(1)
            assert (done.returncode, done.stderr) == (0, "")
            last = f"upgraded: process {generations.pid} serves; process {old} ends with its last stream"
            assert done.stdout.splitlines()[-1] == last
            assert path.read_text() == f"{generations.pid}\n"


def test_the_command_says_why_it_failed(tmp_path: Path) -> None:
    file = tmp_path / "llmpipe.toml"
    with Backend(answer_all) as backend:
        write_file(file, backend.url)
        with Generations(options=["--config", str(file), "--upgrade-timeout", "0"]) as generations:
            file.write_text("nonsense = 1\n")
            done = upgraded("--pid", str(generations.pid), "--timeout", "0")
            assert done.returncode == 1
            assert f"not upgraded, process {generations.pid} goes on: " in done.stdout.splitlines()[-1]
            assert "nonsense" in done.stdout.splitlines()[-1]
            assert generations.status()["pid"] == generations.proxy.pid


def test_the_command_and_an_upgrade_that_is_under_way(slowed: Slowed) -> None:
    with Backend(answer_all) as backend, Generations(backend.url, env=slowed.env, options=()) as generations:
        slowed.hang()
        generations.signal(signal.SIGUSR2)
        slowed.wait_hangs()
        done = upgraded("--pid", str(generations.pid), "--timeout", "0")
        assert (done.returncode, "another upgrade is under way" in done.stdout) == (1, True)
        slowed.go_on()
        generations.taken_over(1)


def test_nobody_else_can_say_that_it_succeeded(slowed: Slowed) -> None:
    """Without a word of the process itself the command ends at its time-out."""
    with Backend(answer_all) as backend, Generations(backend.url, env=slowed.env, options=()) as generations:
        slowed.hang()
        pid = generations.pid
        told_lines: list[str] = []

        def show(line: str) -> None:
            told_lines.append(line)
            if len(told_lines) == 1:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"taken over\n1", f"\0llmpipe-upgrade-{pid}")

        assert upgrade.run(pid, 2.0, show) == 1
        assert "not upgraded within 2 s" in told_lines[-1]
        slowed.wait_hangs()
        slowed.go_on()
        generations.taken_over(1)


def test_the_command_ends_with_the_process(slowed: Slowed) -> None:
    with Backend(answer_all) as backend:
        generations = Generations(backend.url, env=slowed.env, options=())
        try:
            slowed.hang()
            pid = generations.pid
            told_lines: list[str] = []

            def show(line: str) -> None:
                told_lines.append(line)
                if line.endswith("starts"):
                    generations.signal(signal.SIGKILL)
                    generations.proxy.process.wait(LONG)

            assert upgrade.run(pid, 0, show) == 1
            assert told_lines[-1] == f"not upgraded: process {pid} has ended"
            slowed.wait_hangs()
            slowed.go_on()
            new = int(told_lines[1].split()[1])
            wait_until(lambda: gone(new), LONG)
        finally:
            generations.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the process with --pid-file FILE or --pid NUMBER"),
        (["--pid", "5", "--pid-file", "x"], "leave one out"),
        (["--pid-file", "/nowhere/at.all"], "--pid-file /nowhere/at.all cannot be read"),
        (["--pid-file", __file__], "has no process number in it"),
        (["--pid", "1"], "--pid"),
        (["--pid", "{free}"], "there is no process"),
        (["--pid", "{sleep}"], "takes no SIGUSR2"),
        (["--pid", "5", "--timeout", "soon"], "is not a duration"),
    ],
)
def test_what_cannot_be_upgraded_is_refused_in_one_line(words: list[str], said: str) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other, subprocess.Popen(["true"]) as ended:
        ended.wait()
        try:
            done = upgraded(*(word.format(free=ended.pid, sleep=other.pid) for word in words))
            assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
            assert said in done.stderr
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rpf", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="there is no unshare, or it may not make a PID namespace",
)
def test_process_1_does_not_leave() -> None:
    """Its end would be the end of every process of its container, the new one too."""
    with Backend(answer_all) as backend:
        with Proxy(backend.url, prefix=["unshare", "-rpf", "--kill-child"]) as proxy:
            inner = int(Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()[0])
            os.kill(inner, signal.SIGUSR2)
            assert "process 1" in str(proxy.wait_log("upgrade ignored", LONG)["reason"])
            with Client(proxy) as client:
                assert client.request(GET).status == 200
            os.kill(inner, signal.SIGTERM)
            assert proxy.wait_exit(LONG) == 0
