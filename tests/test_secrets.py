"""No credential reaches a log line, an error answer, a metric, the admin endpoint or the process's title."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TIMEOUT, Backend, Connection, free_port, respond, wait_until

SECRET = "s3cr3t-5up3r"
FIELDS = "".join(
    f"{name}: {value}\r\n"
    for name, value in [
        ("Authorization", f"Bearer {SECRET}"),
        ("api-key", SECRET),
        ("X-Api-Key", SECRET),
        ("Cookie", f"session={SECRET}"),
        ("Proxy-Authorization", f"Basic {SECRET}"),
        ("X-Goog-Api-Key", SECRET),
    ]
)
QUERY = f"?api_key={SECRET}&b=1;key={SECRET}&c=2&X%2DApi%5FKey={SECRET}&access_token={SECRET}&sig={SECRET}"
BODY = f'{{"api_key": "{SECRET}"}}'


def request(target: str = f"/v1{QUERY}", method: str = "GET", extra: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{FIELDS}{extra}{length}\r\n{body}".encode()


ASKED = {
    "answered": request(),
    "a body": request(method="POST", body=BODY),
    "absolute form": request(f"http://a/v1{QUERY}"),
    "a user in absolute form": request(f"http://user:{SECRET}@a/v1{QUERY}"),
    "a user that is cut": request(f"http://user:{SECRET * 20}@a/v1"),
    "CONNECT with a user that is cut": request(f"user:{SECRET * 20}@a:443", "CONNECT"),
    "a user in Host": request().replace(b"Host: a", f"Host: user:{SECRET}@a".encode()),
    "CONNECT": request(f"user:{SECRET}@a:443", "CONNECT"),
    "a bare line feed": request(extra=f"X-A: {SECRET}\n"),
    "white space before the colon": request(extra=f"Authorization : {SECRET}\r\n"),
    "a control character": request(extra=f"X-Api-Key: \x01{SECRET}\r\n"),
    "folded": request(extra=f"Authorization:\r\n {SECRET}\r\n"),
    "both framings": request(method="POST", extra="Transfer-Encoding: chunked\r\n", body=BODY),
    "a chunk size that is none": request(method="POST", extra="Transfer-Encoding: chunked\r\n")
    + SECRET.encode()
    + b"\r\n",
    "a line that is too long": request(f"/{'x' * 9000}{QUERY}"),
    "a key before what is too long": request(f"/v1{QUERY}&x={'x' * 9000}"),
    "a head that is too long": request(extra=f"Authorization: {SECRET * 4000}\r\n"),
    "too many fields": request(extra=f"X-Api-Key: {SECRET}\r\n" * 200),
    "a body that is too long": request(method="POST", extra="Content-Length: 1000000\r\n") + BODY.encode(),
    "no request at all": f"{SECRET}\r\n\r\n".encode(),
    "a version that is none": request().replace(b"HTTP/1.1", f"HTTP/{SECRET}".encode(), 1),
    "half a head": request()[:-20],
    "silent": request(f"/silent{QUERY}"),
    "reset": request(f"/reset{QUERY}"),
    "broken": request(f"/broken{QUERY}"),
    "cut": request(f"/cut{QUERY}"),
    "left": request(f"/left{QUERY}"),
}


def script(connection: Connection) -> None:
    """A backend that fails in each way, and repeats what it was told in ways that only the client may see."""
    asked = connection.read_request()
    if b"/silent" in asked.line or b"/left" in asked.line:
        connection.wait_eof(30)
    elif b"/reset" in asked.line:
        connection.reset()
    elif b"/broken" in asked.line:
        connection.send(f"HTTP/1.1 200 OK\r\nSet-Cookie : {SECRET}\r\n\r\n".encode())
        connection.close()
    elif b"/cut" in asked.line:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\n")
        connection.send(b"data: 1\n\n")
        connection.close()
    else:
        respond(connection, extra=[(b"Set-Cookie", f"session={SECRET}".encode())])


def ask(port: int, data: bytes, *, leave: bool = False) -> bytes:
    """Sends what may never be read to its end; all that came back."""
    got = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            while not leave and (piece := sock.recv(65536)):
                got += piece
    return bytes(got)


@contextlib.contextmanager
def running(*words: str, tmp_path: Path, env: dict[str, str] | None = None) -> Iterator[tuple[int, Path]]:
    """`llmpipe` with these words: its pid, and the file that its stdout and stderr go to. It must end cleanly."""
    output = tmp_path / "output"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmpipe", *words], stdout=file, stderr=file, env={**environment, **(env or {})}
        )
    try:
        yield process.pid, output
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    return True


def title(pid: int) -> str:
    """What ps shows of a process and its threads."""
    shown = [Path(f"/proc/{pid}/cmdline").read_text(), Path(f"/proc/{pid}/comm").read_text()]
    return "\n".join([*shown, *(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/comm"))])


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_nothing_that_a_client_sends_is_shown(tmp_path: Path, style: str, level: str) -> None:
    port, admin = free_port(), free_port()
    with Backend(script) as backend:
        words = ["serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--workers", "1"]
        words += [
            "--backend",
            backend.url,
            "--log-format",
            style,
            "--log-level",
            level,
            "--on-midstream-error",
            "event",
        ]
        words += ["--ttft-timeout", "1s", "--head-timeout", "2s", "--max-body", "1KB", "--retry-status", "503"]
        with running(*words, tmp_path=tmp_path) as (pid, output):
            wait_until(lambda: listens(port) and listens(admin), 30)
            for what, data in ASKED.items():
                answer = ask(port, data, leave=what == "left")
                # The backend's own answers are the client's; what we say ourselves repeats nothing.
                if b"Set-Cookie: " not in answer:
                    assert SECRET.encode() not in answer, what
            seen = [ask(admin, request(target)) for target in ("/metrics", "/readyz", "/healthz", f"/no{QUERY}", QUERY)]
            seen += [ask(admin, ASKED[what]) for what in ("a control character", "both framings", "no request at all")]
            assert b"llmpipe_exchanges_total" in seen[0]
            assert SECRET.encode() not in b"".join(seen)
            assert SECRET not in title(pid)
        text = output.read_text()
        backend.errors.clear()
    assert SECRET not in text
    if level in ("debug", "info"):  # there was something to be seen
        assert text.count("access") >= len(ASKED) - 1
        assert "api_key=***&b=***&c=***&***&access_token=***" in text
    if level == "debug":
        assert "client left" in text


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_mock_shows_nothing_either(tmp_path: Path, style: str) -> None:
    port = free_port()
    words = ["mock", "--listen", f"127.0.0.1:{port}", "--tokens", "2", "--ttft", "0", "--log-format", style]
    with running(*words, "--log-level", "debug", tmp_path=tmp_path) as (pid, output):
        wait_until(lambda: listens(port), 30)
        chat = f'{{"messages": [{{"role": "user", "content": "{SECRET}"}}], "stream": true}}'
        asked = [
            request(f"/v1/chat/completions{QUERY}", "POST", body=chat),
            request(f"/v1/chat/completions{QUERY}", "POST", body=chat[:-2]),
            request(f"/v1/chat/completions{QUERY}", "POST", extra="X-Mock-Tokens: many\r\n", body=chat),
            request(f"/v1/nothing{QUERY}"),
            request(f"/v1/models{QUERY}"),
            ASKED["a control character"],
            ASKED["no request at all"],
        ]
        for data in asked:
            assert SECRET.encode() not in ask(port, data)
        ask(port, asked[0].replace(b"\r\n\r\n", b"\r\nX-Mock-TTFT: 20s\r\n\r\n", 1), leave=True)
        wait_until(lambda: "generation stopped" in output.read_text())
        assert SECRET not in title(pid)
    assert SECRET not in output.read_text()


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:1",
        f"http://{SECRET}@127.0.0.1:1",
        f"http://user:{SECRET}@127.0.0.1:1/v1",
        f"http://user:x/{SECRET}@127.0.0.1:1",
        f"http://user:x?{SECRET}@127.0.0.1:1",
        f"http://user:x#{SECRET}@127.0.0.1:1",
        f"http://user:{SECRET}@host@127.0.0.1:1",
        f"https://user:{SECRET}@127.0.0.1:1",
        f"ftp://user:{SECRET}@127.0.0.1:1",
        f"user:{SECRET}@127.0.0.1:1",
        f"http://127.0.0.1:1?api_key={SECRET}",
        f"http://127.0.0.1:1/v1?key={SECRET}",
        f"https://127.0.0.1:1?on-abort=close&token={SECRET}",
        f"unix:relative?token={SECRET}",
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_a_backend_with_a_credential_is_refused_and_not_repeated(url: str, variable: bool) -> None:
    refuse(url, variable)


def test_a_space_in_a_password_hides_nothing() -> None:
    refuse(f"http://user:a {SECRET}@127.0.0.1:1", variable=False)  # in the variable a space ends the URL


def refuse(url: str, variable: bool) -> None:
    """`llmpipe serve` refuses this backend, given by an option or a variable, in a line without the secret."""
    words = [sys.executable, "-m", "llmpipe", "serve", "--listen", "127.0.0.1:0", "--admin", "off"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    if variable:
        environment["LLMPIPE_BACKEND"] = url
    else:
        words += ["--backend", url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, env=environment, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: backend ")
    assert SECRET not in done.stdout + done.stderr


def test_a_header_of_the_benchmark_is_not_repeated() -> None:
    words = [sys.executable, "-m", "llmpipe", "bench", "requests", "--url", "http://127.0.0.1:1", "--header"]
    done = subprocess.run(
        [*words, f"Authorization Bearer {SECRET}"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 2
    assert "write 'Name: value'" in done.stderr
    assert SECRET not in done.stdout + done.stderr
