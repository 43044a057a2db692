"""The units of docs/deploy under systemd itself, which runs as the first process of namespaces of its own where that is allowed.

It shares the machine's network and programs. /etc, /run, /tmp, /var/lib and /dev are its own and end with it, /opt/llmpipe is what is installed
here, and it knows no unit of the machine. The units are those of the documentation, with other ports.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tools
from harness import Backend, Connection, Stream, chunk, free_port, respond, sse_head, wait_until

import llmpipe

DEPLOY = Path(__file__).parents[1] / "docs/deploy"
LONG = 100.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"
TARGETS = ("sysinit", "basic", "sockets", "network-online", "nss-lookup", "shutdown", "umount", "multi-user")

# In namespaces of its own, before systemd. Arguments: a folder, the Python that runs here, its packages, and llmpipe's own folder.
PREPARE = r"""
set -e
folder=$1
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/etc/upper /run/etc/work /run/dev /run/units
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mkdir -p /etc/llmpipe
cp "$folder/llmpipe.env" /etc/llmpipe/
cp -r "$folder/units/." /run/units/
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/llmpipe/bin /opt/llmpipe/python /opt/llmpipe/packages /opt/llmpipe/own/llmpipe
mount --bind "$2" /opt/llmpipe/python
mount --bind "$3" /opt/llmpipe/packages
mount --bind "$4" /opt/llmpipe/own/llmpipe
cp "$folder/llmpipe" /opt/llmpipe/bin/
chmod 755 /opt/llmpipe/bin/llmpipe
mount -t tmpfs -o mode=755 tmpfs /run/dev
for name in null zero full random urandom tty; do
    touch /run/dev/$name
    mount --bind /dev/$name /run/dev/$name
done
for name in console kmsg; do
    touch /run/dev/$name
    mount --bind "$folder/log" /run/dev/$name
done
mkdir /run/dev/shm /run/dev/pts /run/dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount -t mqueue mqueue /run/dev/mqueue
mount --rbind /run/dev /dev
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/llmpipe-log
mount --bind "$folder/out" /run/llmpipe-log
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd /
exec env -i container=podman PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/units \
    SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=kmsg --show-status=no
"""

# The console script of an installation, in a folder that the service may see.
SCRIPT = """#!/opt/llmpipe/python/bin/{python}
import sys
sys.path[:0] = ["/opt/llmpipe/own", "/opt/llmpipe/packages"]
from llmpipe.cli import main
sys.exit(main())
"""

# Where the lines go, since there is no journal, and where Python's own library lies here.
DROP_IN = """[Service]
StandardError=append:/run/llmpipe-log/lines
Environment=LD_LIBRARY_PATH=/opt/llmpipe/python/lib
"""


def cgroup() -> Path | None:
    """Where the second version of control groups is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    return None


class Systemd:
    """One that runs, with the units and their ports."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.port, self.second_port, self.admin_port = free_port(), free_port(), free_port()
        self._folder = folder
        self._write(backend)
        base = cgroup()
        assert base is not None, "there is no cgroup2"
        self._group = base / f"llmpipe-test-{os.getpid()}"
        self._group.mkdir()
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc"]
        words += ["--fork", "--mount-proc", "--kill-child"]
        inside = [sys.base_prefix, sysconfig.get_path("purelib"), str(Path(llmpipe.__file__).resolve().parent)]
        words += ["sh", "-c", PREPARE, "sh", str(folder), *inside]
        self._process = subprocess.Popen(
            ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._group), *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _write(self, backend: str) -> None:
        units = self._folder / "units"
        (units / "llmpipe.service.d").mkdir(parents=True)
        (units / "llmpipe.socket.d").mkdir()
        (self._folder / "out").mkdir()
        for name in ("llmpipe.service", "llmpipe.socket", "llmpipe-admin.socket"):
            text = (DEPLOY / name).read_text().replace("8080", str(self.port)).replace("9090", str(self.admin_port))
            (units / name).write_text(text)
        for name in TARGETS:
            (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n")
        (units / "llmpipe.service.d/lines.conf").write_text(DROP_IN)
        (units / "llmpipe.socket.d/second.conf").write_text(f"[Socket]\nListenStream=127.0.0.1:{self.second_port}\n")
        (self._folder / "log").touch()
        (self._folder / "llmpipe").write_text(SCRIPT.format(python=Path(sys.executable).resolve().name))
        text = (
            (DEPLOY / "llmpipe.env").read_text().replace("8080", str(self.port)).replace("9090", str(self.admin_port))
        )
        (self._folder / "llmpipe.env").write_text(text.replace("http://127.0.0.1:8000", backend))

    def why_not(self) -> str | None:
        """Waits until it runs; why it does not."""
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                return self._process.stderr.read()[-500:]
            if self.inside("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                return None
            time.sleep(0.05)
        return self.log()[-2000:]

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command beside it."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return subprocess.CompletedProcess(words, 1, "", "")
        entered = ["nsenter", "--target", children[0], "--mount", "--pid", "--cgroup", *words]
        return subprocess.run(entered, capture_output=True, text=True, timeout=LONG, check=False)

    def ctl(self, *words: str) -> None:
        """A systemctl that must succeed."""
        done = self.inside("systemctl", *words)
        assert done.returncode == 0, (
            words,
            done.stderr,
            self.log()[-6000:],
            self.inside("systemctl", "status", "llmpipe").stdout,
            self.lines()[-2000:],
        )

    def show(self, name: str, unit: str = "llmpipe.service") -> str:
        """A property of a unit."""
        return self.inside("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def log(self) -> str:
        """What systemd says itself."""
        return (self._folder / "log").read_text(errors="replace")

    def lines(self) -> str:
        """The lines of llmpipe."""
        path = self._folder / "out/lines"
        return path.read_text() if path.exists() else ""

    def ask(self, request: bytes = GET, port: int | None = None) -> bytes:
        """An answer on a connection of its own."""
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=LONG) as sock:
            sock.sendall(request)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer

    def refuses(self) -> bool:
        """Whether nobody listens."""
        try:
            self.ask()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            pass
        return False

    def stream(self) -> Stream:
        """A stream of which the first event has come."""
        stream = Stream(socket.create_connection(("127.0.0.1", self.port), timeout=LONG))
        stream.sock.settimeout(LONG)
        stream.send(HELD)
        stream.read_head()
        assert stream.read(len(FIRST)) == FIRST
        return stream

    def reset(self) -> None:
        """Nothing of it runs."""
        self.ctl("stop", "llmpipe.socket", "llmpipe-admin.socket")
        self.ctl("stop", "llmpipe.service")
        self.inside("systemctl", "reset-failed")
        (self._folder / "out/lines").unlink(missing_ok=True)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        wait_until(
            lambda: "populated 0" in (self._group / "cgroup.events").read_text(), LONG, "the end of all processes"
        )
        for group in sorted(self._group.rglob("*"), reverse=True):
            if group.is_dir():
                group.rmdir()
        self._group.rmdir()


FIRST = chunk(b"data: 1\n\n")
SECOND = chunk(b"data: 2\n\n") + b"0\r\n\r\n"


class Server:
    """A small answer, and on /held a stream that stops until it is told to go on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while True:
            if connection.read_request().line.split()[1] != b"/held":
                respond(connection)
                continue
            connection.send(sse_head() + FIRST)
            assert self.go.wait(LONG)
            connection.send(SECOND)


def may_not() -> str | None:
    """Why it is not even tried."""
    if "LD_PRELOAD" in os.environ:
        return "a sanitizer is loaded, which the service would lack"
    if os.geteuid() != 0:
        return "only root can make namespaces with mounts and control groups"
    if cgroup() is None:
        return "there is no cgroup2"
    return None


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend(Server()) as backend:
        yield backend


@pytest.fixture(scope="module")
def running(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    if reason := may_not():
        pytest.skip(f"UNDER SYSTEMD NOTHING IS TESTED: {reason}")
    tools.tool("systemctl", "systemd")
    for name in ("unshare", "nsenter", "setpriv"):
        tools.tool(name, "util-linux")
    try:
        made = Systemd(tmp_path_factory.mktemp("systemd"), backend.url)
    except OSError as error:
        pytest.skip(f"UNDER SYSTEMD NOTHING IS TESTED: no control group of its own: {error}")
    try:
        if reason := made.why_not():
            pytest.skip(f"UNDER SYSTEMD NOTHING IS TESTED: it does not run here: {reason}")
        yield made
    finally:
        made.close()


@pytest.fixture
def systemd(running: Systemd, backend: Backend) -> Iterator[Systemd]:
    yield running
    assert isinstance(backend.script, Server)
    backend.script.go.set()
    running.reset()
    backend.script.go = threading.Event()


def test_the_service_starts_reloads_and_drains(systemd: Systemd, backend: Backend) -> None:
    assert isinstance(backend.script, Server)
    systemd.ctl("start", "llmpipe")
    assert systemd.show("ActiveState") == "active"
    assert systemd.ask().endswith(b"\r\n\r\nok")
    assert systemd.ask(port=systemd.admin_port, request=GET.replace(b"/", b"/readyz", 1)).startswith(b"HTTP/1.1 200 ")
    pid = systemd.show("MainPID")
    status = dict(line.split(":\t", 1) for line in systemd.inside("cat", f"/proc/{pid}/status").stdout.splitlines())
    assert 61184 <= int(status["Uid"].split()[0]) <= 65519  # a user for its life
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (0, "1", "2")
    stream = systemd.stream()
    with contextlib.closing(stream):
        systemd.ctl("reload", "llmpipe")
        wait_until(lambda: '"reloaded"' in systemd.lines(), LONG, "the reload")
        wait_until(lambda: systemd.show("ActiveState") == "active", LONG, "the end of the reload")
        assert systemd.show("MainPID") == pid
        systemd.ctl("stop", "--no-block", "llmpipe")
        wait_until(lambda: '"draining"' in systemd.lines(), LONG, "the drain")
        assert systemd.show("ActiveState") == "deactivating"
        wait_until(systemd.refuses, LONG, "the end of listening")
        backend.script.go.set()
        assert stream.read(len(SECOND)) == SECOND
    wait_until(lambda: systemd.show("ActiveState") == "inactive", LONG, "the end")
    assert (systemd.show("Result"), systemd.show("ExecMainStatus")) == ("success", "0")


@pytest.mark.slow
def test_its_sockets_start_it_and_a_restart_refuses_nobody(systemd: Systemd, backend: Backend) -> None:
    systemd.ctl("start", "llmpipe.socket", "llmpipe-admin.socket")
    assert systemd.show("ActiveState") == "inactive"
    assert systemd.ask(GET.replace(b"/", b"/readyz", 1), systemd.admin_port).startswith(b"HTTP/1.1 200 ")
    assert systemd.show("ActiveState") == "active"
    assert systemd.lines().count('"socket taken over"') == 3
    assert systemd.ask(port=systemd.second_port).endswith(b"\r\n\r\nok")
    with asking(systemd) as answers:
        for _ in range(2):
            pid = systemd.show("MainPID")
            systemd.ctl("restart", "llmpipe")
            assert systemd.show("MainPID") != pid
            wait_more(answers, 20)
    # After a crash too it is started again, and who comes meanwhile waits.
    systemd.ctl("kill", "--kill-who=main", "--signal=SIGKILL", "llmpipe")
    for _ in range(20):
        assert systemd.ask().endswith(b"\r\n\r\nok")
    assert systemd.show("NRestarts") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("sockets", [False, True], ids=["plain", "sockets"])
def test_an_upgrade_keeps_the_unit_and_cuts_nothing(systemd: Systemd, backend: Backend, sockets: bool) -> None:
    assert isinstance(backend.script, Server)
    if sockets:
        systemd.ctl("start", "llmpipe.socket", "llmpipe-admin.socket")
    systemd.ctl("start", "llmpipe")
    stream = systemd.stream()
    with contextlib.closing(stream), asking(systemd) as answers:
        pids = [systemd.show("MainPID")]
        systemd.ctl("kill", "--kill-who=main", "--signal=SIGUSR2", "llmpipe")
        wait_until(lambda: systemd.show("MainPID") not in pids, LONG, "the next process")
        pids.append(systemd.show("MainPID"))
        wait_until(lambda: systemd.lines().count('"upgraded"') == 1, LONG, "the upgrade")
        done = systemd.inside("/opt/llmpipe/bin/llmpipe", "upgrade", "--pid", pids[-1])
        assert done.returncode == 0, (done.stdout, done.stderr, systemd.lines()[-2000:])
        wait_until(lambda: systemd.show("MainPID") not in pids, LONG, "the next process")
        wait_more(answers, 20)
        assert systemd.inside("test", "-d", f"/proc/{pids[0]}").returncode == 0  # it has a stream
        backend.script.go.set()
        assert stream.read(len(SECOND)) == SECOND
        wait_until(
            lambda: systemd.inside("test", "-d", f"/proc/{pids[0]}").returncode != 0, LONG, "the end of the first"
        )
        assert (systemd.show("ActiveState"), systemd.show("NRestarts")) == ("active", "0")
        wait_more(answers, 20)


def test_what_cannot_work_is_not_tried_again(systemd: Systemd) -> None:
    variables = systemd.inside("cat", "/etc/llmpipe/llmpipe.env").stdout
    change = "sed -i 's/^LLMPIPE_BACKEND=.*/LLMPIPE_BACKEND=nonsense/' /etc/llmpipe/llmpipe.env"
    assert systemd.inside("sh", "-c", change).returncode == 0
    try:
        assert systemd.inside("systemctl", "start", "llmpipe").returncode != 0
        assert (systemd.show("ActiveState"), systemd.show("Result")) == ("failed", "exit-code")
        assert (systemd.show("ExecMainStatus"), systemd.show("NRestarts")) == ("2", "0")
        assert "LLMPIPE_BACKEND" in systemd.lines() or "nonsense" in systemd.lines()
    finally:
        systemd.inside("sh", "-c", f"cat > /etc/llmpipe/llmpipe.env <<'END'\n{variables}\nEND")


def blocks(heading: str) -> list[str]:
    """What stands between fences below a heading of the page."""
    behind = (DEPLOY / "README.md").read_text().partition(f"\n{heading}\n")[2]
    return re.findall(r"(?ms)^```\n(.*?)^```$", re.split(r"(?m)^##", behind)[0])


def test_a_file_and_a_folder_for_recordings_as_the_page_has_them(systemd: Systemd) -> None:
    variables = systemd.inside("cat", "/etc/llmpipe/llmpipe.env").stdout
    backend = re.search(r'(?m)^LLMPIPE_BACKEND="(.*)"$', variables)
    assert backend
    (said,) = re.findall(r"(?m)^echo .* > /etc/llmpipe/llmpipe\.env$", blocks("### With a file")[0])
    _, drop_in = blocks("### Folders to write to")
    text = f'listen = ["127.0.0.1:{systemd.port}"]\nlog_format = "json"\nadmin = "off"\nrecord_share = 1\n'
    text += f'[[pools.p.backends]]\nurl = "{backend[1]}"\n'
    place = "/run/units/llmpipe.service.d/folder.conf"
    try:
        for path, lines in (("/etc/llmpipe/llmpipe.toml", text), (place, drop_in)):
            made = systemd.inside("sh", "-c", f"cat > {path} <<'END'\n{lines}\nEND")
            assert made.returncode == 0, made.stderr
        assert systemd.inside("sh", "-c", said).returncode == 0
        systemd.ctl("daemon-reload")
        systemd.ctl("start", "llmpipe")
        assert systemd.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").endswith(
            b"ok"
        )
        recorded = ("sh", "-c", "cat /var/lib/llmpipe/answers/*.jsonl")
        wait_until(lambda: '"ok"' in systemd.inside(*recorded).stdout, LONG, "the recording")
    finally:
        systemd.inside("sh", "-c", f"cat > /etc/llmpipe/llmpipe.env <<'END'\n{variables}\nEND")
        systemd.inside("rm", "-f", place, "/etc/llmpipe/llmpipe.toml")
        systemd.ctl("stop", "llmpipe")
        systemd.ctl("daemon-reload")


@contextlib.contextmanager
def asking(systemd: Systemd) -> Iterator[list[bytes]]:
    """Asks on and on, each time on a connection of its own; every one must be answered."""
    stop = threading.Event()
    answers: list[bytes] = []
    failed: list[BaseException] = []

    def ask_on() -> None:
        try:
            while not stop.is_set():
                answer = systemd.ask()
                assert answer.endswith(b"\r\n\r\nok"), answer
                answers.append(answer)
                time.sleep(0.01)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=ask_on, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(LONG)
    assert not failed, failed


def wait_more(answers: list[bytes], n: int) -> None:
    wanted = len(answers) + n
    wait_until(lambda: len(answers) >= wanted, LONG, "more answers")
