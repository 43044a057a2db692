"""The command line as an operator meets it: help, environment variables, and one clear line for what cannot work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from harness import Backend, Proxy, answer_all, free_port, wait_until

import llmpipe

SERVE_DEFAULTS = {
    "--listen": "127.0.0.1:8080",
    "--backend": None,
    "--workers": "(the CPUs it may use)",
    "--admin": "127.0.0.1:9090",
    "--admin-host": None,
    "--policy": "least_in_flight",
    "--slow-start": "0",
    "--retry-on-error-event": None,
    "--include-usage": "asked",
    "--connect-timeout": "5s",
    "--ttft-timeout": "600s",
    "--idle-timeout": "300s",
    "--total-timeout": "0",
    "--send-timeout": "60s",
    "--head-timeout": "10s",
    "--keepalive-timeout": "75s",
    "--upstream-idle-timeout": "4s",
    "--dead-peer-timeout": "45s",
    "--max-connections": "0",
    "--max-connections-per-ip": "0",
    "--admin-token-file": "(none)",
    "--trusted-proxies": "127.0.0.0/8, ::1, unix",
    "--drain-timeout": "600s",
    "--upgrade-timeout": "60s",
    "--pid-file": "(none)",
    "--max-request-line": "8KB",
    "--max-head": "32KB",
    "--max-fields": "128",
    "--max-response-head": "64KB",
    "--max-response-fields": "512",
    "--max-body": "64MB",
    "--failover-body": "1MB",
    "--kept-memory": "256MB",
    "--retry-status": "(none)",
    "--on-midstream-error": "close",
    "--comments-count-as-content": None,
    "--max-in-flight": "0",
    "--queue-size": "256",
    "--queue-timeout": "30s",
    "--queue-cold-timeout": "0",
    "--eject-errors": "5",
    "--tenant": "(none)",
    "--priority": "(none)",
    "--health-path": "(none)",
    "--health-interval": "5s",
    "--health-timeout": "2s",
    "--health-rise": "1",
    "--health-fall": "3",
    "--exchanges-kept": "1000",
    "--record": "(none)",
    "--record-share": "0.01",
    "--record-size": "1MB",
    "--record-files": "1000",
    "--record-request-bodies": None,
    "--watch": None,
    "--config": None,
    "--log-query": None,
    "--access-log": "(none)",
    "--access-sample": "1",
    "--otel": None,
    "--demo": None,
    "--log-format": "text",
    "--log-level": "info",
}

MOCK_DEFAULTS = {
    "--listen": "127.0.0.1:8000",
    "--tokens-per-second": "50.0",
    "--ttft": "200ms",
    "--tokens": "64",
    "--model": "mock",
    "--slots": "0",
    "--queue": "unlimited",
    "--prefill-rate": "0.0",
    "--decode-slowdown": "0.0",
    "--faults": "faults",
    "--replay": "(made answers)",
    "--replay-speed": "1.0",
    "--log-format": "text",
    "--log-level": "info",
}

HERE = ["--listen", "127.0.0.1:0", "--admin", "off"]


def llmpipe_command(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `llmpipe` to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    return subprocess.run(
        [sys.executable, "-m", "llmpipe", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**inherited, **(env or {})},
    )


def refused(*words: str, env: Mapping[str, str] | None = None) -> str:
    """The one line that `llmpipe` prints before it exits with 2."""
    done = llmpipe_command(*words, env=env)
    assert done.returncode == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert done.stdout == ""
    return lines[0]


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that something listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("command", "defaults"), [("serve", SERVE_DEFAULTS), ("mock", MOCK_DEFAULTS)])
def test_help_shows_variable_default_and_units_of_every_option(command: str, defaults: dict[str, str | None]) -> None:
    done = llmpipe_command(command, "--help")
    assert done.returncode == 0
    assert "seconds, or a number with ms, s, m or h" in " ".join(done.stdout.split())
    assert "bytes, or a number with KB, MB or GB" in " ".join(done.stdout.split())
    # Each option with its help, which may be folded over several lines.
    texts = re.split(r"^  (?=-)", done.stdout, flags=re.MULTILINE)[1:]
    options = {text.split()[0]: " ".join(text.split()) for text in texts}
    assert set(options) == {*defaults, "-h,"}
    for name, default in defaults.items():
        own = command == "mock" and not name.startswith("--log")  # it may run in the environment of a proxy
        variable = ("LLMPIPE_MOCK_" if own else "LLMPIPE_") + name.lstrip("-").replace("-", "_").upper()
        if name == "--admin-token-file":
            variable = "LLMPIPE_ADMIN_TOKEN"  # the token itself, where the flag names a file
        assert f"env var: {variable};" in options[name] or f"env var: {variable}]" in options[name]
        if default is not None:
            assert f"default: {default}" in options[name]


def test_every_duration_and_size_is_marked_as_one() -> None:
    text = llmpipe_command("serve", "--help").stdout
    assert all(f"{name} DURATION" in text for name in SERVE_DEFAULTS if name.endswith("-timeout"))
    sizes = ("--max-request-line", "--max-head", "--max-response-head", "--max-body", "--failover-body")
    assert all(f"{name} SIZE" in text for name in sizes)


def test_without_a_command_there_is_help() -> None:
    done = llmpipe_command()
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("serve", "mock", "version"))


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_version(words: list[str]) -> None:
    done = llmpipe_command(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"llmpipe {llmpipe.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = llmpipe_command("completion", shell)
    assert done.returncode == 0
    assert "_LLMPIPE_COMPLETE" in done.stdout


def test_completion_completes() -> None:
    asked = {"_LLMPIPE_COMPLETE": "bash_complete", "COMP_WORDS": "llmpipe serve --ttft", "COMP_CWORD": "2"}
    assert llmpipe_command(env=asked).stdout == "plain,--ttft-timeout\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--backend http://HOST:PORT or a file with --config, or try --demo"),
        (["--demo", "--backend", "http://127.0.0.1:1"], "--demo brings its own backend"),
        (["--backend", "https://127.0.0.1:1"], "TLS to backends is not supported"),
        (["--backend", "127.0.0.1:8000"], "has no scheme"),
        (["--backend", "htp://127.0.0.1:8000"], "the scheme 'htp' is unknown"),
        (["--backend", "http://127.0.0.1:8000/v1"], "has a path"),
        (["--backend", "http://127.0.0.1:99999"], "Port out of range"),
        (["--backend", "http://127.0.0.1:abc"], "is not a URL"),
        (["--backend", "http://127.0.0.1:0"], "port 0"),
        (["--backend", "http://u:secret@127.0.0.1:1"], "'http://***@127.0.0.1:1' has a user name"),
        (["--backend", "http://127.0.0.1:1\nx"], "white space or a control character"),
        (["--backend", "http://127.0.0.1:1?on-abort=maybe"], "on-abort is close or finish"),
        (["--backend", "http://127.0.0.1:1?onabort=finish"], "'onabort' is unknown"),
        (["--backend", "unix:relative.sock"], "an absolute path"),
        (["--backend", "unix:/" + "x" * 200], "longer than 107 bytes"),
        (["--backend", "http://127.0.0.1:1?addresses=both"], "addresses is all or first, not 'both'"),
        (["--backend", "http://127.0.0.1:1", "--backend", "http://127.0.0.1:1/"], "named twice"),
        (["--demo", "--connect-timeout", "5x"], "'5x' is not a duration"),
        (["--demo", "--ttft-timeout", "-1"], "is not a duration"),
        (["--demo", "--idle-timeout", "1e12"], "is not a duration"),
        (["--demo", "--max-body", "64 apples"], "is not a size"),
        (["--demo", "--max-response-head", "1"], "1 is not in the range 256B to 1MB"),
        (["--demo", "--max-response-fields", "0"], "not in the range"),
        (
            ["--demo", "--trusted-proxies", "10.0.0.1/8"],
            "trusted proxy '10.0.0.1/8' is neither an address nor a network",
        ),
        (["--demo", "--trusted-proxies", "none", "--trusted-proxies", "::1"], "'none' stands alone"),
        (
            ["--demo", "--trusted-proxies", " ".join(f"10.0.0.{i}" for i in range(65))],
            "65 trusted networks are more than the 64",
        ),
        (["--demo", "--max-head", "1"], "1 is not in the range 256B to 1MB"),
        (["--demo", "--max-fields", "0"], "not in the range"),
        (["--demo", "--workers", "0"], "not in the range"),
        (["--demo", "--retry-status", "500"], "'500' is not one of"),
        (["--demo", "--on-midstream-error", "explode"], "'explode' is not one of"),
        (["--demo", "--log-level", "loud"], "'loud' is not one of"),
        (["--demo", "--listen", "127.0.0.1"], "is not an address"),
        (["--demo", "--listen", "::1:8080"], "brackets"),
        (["--demo", "--listen", "a..b:0"], "not a host name"),
        (["--demo", "--listen", "no-such-host.invalid:0"], "cannot be resolved"),
        (["--demo", "--admin", "on"], "is not an address"),
        (["--demo", "--no-such-option"], "--no-such-option"),
        (["--demo", "stray"], "stray"),
        (["--demo", "--listen"], "requires an argument"),
        (["--demo", "--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"], "--listen 127.0.0.1:1 is named twice"),
        (["--demo", *(["--listen", "127.0.0.1:0"] * 65)], "more than the 64"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    options = [word for name in ("--listen", "--admin") if name not in words for word in (name, "127.0.0.1:0")]
    assert says in refused("serve", *options, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["mock", "--ttft", "soon"],
        ["mock", "--tokens", "-1"],
        ["mock", "--slots", "-1"],
        ["mock", "--queue", "-1"],
        ["mock", "--queue", "long"],
        ["mock", "--prefill-rate", "-1"],
        ["mock", "--decode-slowdown", "-1"],
        ["mock", "--replay", "/no/such/file.jsonl"],
        ["mock", "--replay", "/"],
        ["mock", "--replay", "/dev/null"],
        ["mock", "--replay-speed", "-1"],
        ["mock", "--replay-speed", "nan"],
        ["mock", "--tokens-per-second", "NaN"],
        ["bench", "requests", "--rate", "nan"],
        ["completion"],
        ["explain"],
        ["explain", "some-id", "--admin", "off"],
        ["explain", "some-id", "--admin", "https://127.0.0.1:9090"],
    ],
)
def test_the_other_commands_refuse_alike(words: list[str]) -> None:
    refused(*words)


def test_a_bad_variable_is_refused_by_its_name() -> None:
    assert "LLMPIPE_TTFT_TIMEOUT" in refused("serve", *HERE, "--demo", env={"LLMPIPE_TTFT_TIMEOUT": "soon"})


def test_a_port_in_use(taken: str) -> None:
    assert f"--listen {taken}: the port is in use" in refused("serve", "--demo", "--listen", taken, "--admin", "off")
    assert f"--admin {taken}: the port is in use" in refused(
        "serve", "--demo", "--listen", "127.0.0.1:0", "--admin", taken
    )
    assert f"--listen {taken}: the port is in use" in refused("mock", "--listen", taken)


def test_environment_variables_and_options_which_win_over_them() -> None:
    with Backend(answer_all) as one, Backend(answer_all) as two:
        variables = {
            "LLMPIPE_BACKEND": f"{one.url} {two.url}",
            "LLMPIPE_MAX_BODY": "3",
            "LLMPIPE_MAX_FIELDS": "not read, since the option is given",
            "LLMPIPE_RETRY_STATUS": "502 503",
            "LLMPIPE_TRUSTED_PROXIES": "10.0.0.0/8,::1 unix",
        }
        with Proxy(options=["--max-fields", "50"], env=variables) as proxy:
            assert proxy.wait_log("listening")["backends"] == f"{one.url},{two.url}"
            with httpx.Client(base_url=proxy.url, timeout=30) as client:
                assert client.post("/", content=b"123").status_code == 200
                assert client.post("/", content=b"1234").status_code == 413
                many = {f"x-{number}": "1" for number in range(60)}
                assert client.get("/", headers=many).status_code == 431


def test_variables_lose_white_space_at_their_ends() -> None:
    """A line end of a file, of a YAML block, or of what was pasted (rule G5)."""
    with Backend(answer_all) as backend:
        variables = {
            "LLMPIPE_BACKEND": f"\n {backend.url} \r\n",
            "LLMPIPE_MAX_FIELDS": "50\n",
            "LLMPIPE_TTFT_TIMEOUT": " 5m\t",
            "LLMPIPE_ON_MIDSTREAM_ERROR": "event\n",
            "LLMPIPE_LOG_QUERY": "true\n",
            "LLMPIPE_ADMIN_HOST": " \n",
            "LLMPIPE_DRAIN_TIMEOUT": "\n",
        }
        with Proxy(env=variables) as proxy:
            assert proxy.wait_log("listening")["backends"] == backend.url
        listen = free_port()
        variables = {
            "LLMPIPE_LISTEN": f"127.0.0.1:{listen}\n",
            "LLMPIPE_ADMIN": "off\n",
            "LLMPIPE_BACKEND": backend.url,
        }
        command = [sys.executable, "-m", "llmpipe", "serve", "--workers", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
            try:
                assert process.stderr is not None
                assert f"address=127.0.0.1:{listen}" in process.stderr.readline()
            finally:
                process.terminate()
                process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.parametrize(("level", "shown"), [("INFO", True), ("Info", True), ("ERROR", False)])
def test_levels_have_no_case(level: str, shown: bool) -> None:
    """Rule G5."""
    with Backend(answer_all) as backend:
        command = [sys.executable, "-m", "llmpipe", "serve", "--workers", "1", "--backend", backend.url, *HERE]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LLMPIPE_LOG_LEVEL": level}
        )
        with process:
            try:
                if shown:
                    assert process.stderr is not None
                    assert "listening" in process.stderr.readline()
                else:
                    wait_until(lambda: not default_action(process.pid, signal.SIGTERM), 30)
            finally:
                process.terminate()
                _, errors = process.communicate(timeout=30)
        assert (process.returncode, bool(errors)) == (0, shown)


def default_action(pid: int, number: int) -> bool:
    """Whether a signal would have its default action in a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(found[1], 16) for found in re.finditer(r"Sig(?:Ign|Cgt):\s+([0-9a-f]+)", status)]
    return not any(mask >> (number - 1) & 1 for mask in masks)


def test_an_unknown_variable_is_named_and_one_of_kubernetes_is_not() -> None:
    """Rule G5."""
    mistaken = {
        "LLMPIPE_TTFT_TIMOUT": "s3cr3t",
        "LLMPIPE_PORT": "8080",  # that of a Service is a URL
        "LLMPIPE_HOST": "0.0.0.0",
    }
    service = {
        "LLMPIPE_SERVICE_HOST": "10.0.0.1",
        "LLMPIPE_SERVICE_PORT": "8080",
        "LLMPIPE_SERVICE_PORT_HTTP": "8080",
        "LLMPIPE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "LLMPIPE_PORT_8080_TCP_PROTO": "tcp",
        "LLMPIPE_PORT_8080_TCP_PORT": "8080",
        "LLMPIPE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "LLMPIPE_ADMIN_SERVICE_HOST": "10.0.0.2",
        "LLMPIPE_ADMIN_PORT": "tcp://10.0.0.2:9090",
        "LLMPIPE_ADMIN_PORT_9090_TCP_ADDR": "10.0.0.2",
    }
    others = {"LLMPIPE_MOCK_TTFT": "0", "LLMPIPE_BENCH_STREAMS": "1", "LLMPIPES": "1", "llmpipe_x": "1"}
    with Backend(answer_all) as backend, Proxy(backend.url, env={**mistaken, **service, **others}) as proxy:
        said = {line["variable"]: line["near"] for line in proxy.log if line["event"] == "unknown environment variable"}
        assert said.keys() == mistaken.keys()
        assert said["LLMPIPE_TTFT_TIMOUT"] == "LLMPIPE_TTFT_TIMEOUT"
        assert "s3cr3t" not in "".join(proxy.stderr)
    with Backend(answer_all) as backend:
        variables = {**service, "LLMPIPE_PORT": "tcp://10.0.0.1:8080"}
        with Proxy(backend.url, env=variables) as proxy:
            assert not [line for line in proxy.log if line["event"] == "unknown environment variable"]


def test_a_backend_that_is_not_up_yet_is_no_error() -> None:
    with Proxy(f"http://127.0.0.1:{free_port()}") as proxy:
        answer = httpx.get(proxy.url, timeout=30)
        assert answer.status_code == 502
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_prints_a_command_that_streams_and_ends_cleanly(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "llmpipe", "serve", "--demo", *HERE, "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not lines or not lines[-1].strip().startswith("-d "):
                lines.append(process.stdout.readline())
                assert lines[-1], "the demo ended early"
            pasted = "".join(lines).partition("curl ")[2].replace("\\\n", " ")
            words = ["curl", *shlex.split(pasted)]
            if shutil.which("curl"):
                # A sanitizer that is preloaded into every process makes curl hang.
                env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
                text = subprocess.run(
                    [*words, "--silent"], capture_output=True, text=True, timeout=40, check=True, env=env
                ).stdout
            else:
                url = next(word for word in words if word.startswith("http"))
                body = words[words.index("-d") + 1]
                text = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=40).text
            assert text.count("data: {") > 60
            assert text.endswith("data: [DONE]\n\n")
        finally:
            process.send_signal(number)
            _, errors = process.communicate(timeout=40)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert [word for word in ("listening", "draining", "stopped") if word not in errors] == []


def test_the_order_of_the_first_lines() -> None:
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy:
        proxy.wait_log("admin listening")
        assert [line["event"] for line in proxy.log[:2]] == ["listening", "admin listening"]
        assert proxy.log[0]["address"] == proxy.address
