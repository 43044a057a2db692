"""What docs/deploy tells an operator to install: units that systemd accepts, and an image whose every step is checked."""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tools
import yaml
from generations import Generations
from harness import Backend, Client, Proxy, answer_all, free_port

from llmpipe.cli import cli
from llmpipe.config import parse_duration

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs/deploy"
EXAMPLES = ROOT / "docs/examples"
INSTALLED = "/opt/llmpipe/bin/llmpipe"
UNITS = ("llmpipe.service", "llmpipe.socket", "llmpipe-admin.socket")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

needs_systemd = tools.needs("systemd-analyze", "systemd")
needs_libseccomp = pytest.mark.skipif(
    (not ctypes.util.find_library("seccomp") and not tools.ALL) or "LD_PRELOAD" in os.environ,
    reason="there is no libseccomp (apt: libseccomp2), or a sanitizer is loaded, which has system calls of its own",
)


# A sanitizer that is preloaded into every process does systemd's tools no good.
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def read_unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, whatever the section; an empty value clears what stood before, as in systemd."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, equals, value = line.partition("=")
            assert equals, line
            settings.setdefault(key, []).append(value)
    return settings


def environment_file() -> dict[str, str]:
    """The variables of llmpipe.env."""
    lines = [line for line in (DEPLOY / "llmpipe.env").read_text().splitlines() if line and not line.startswith("#")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def serve_variables() -> set[str]:
    """The environment variables of `llmpipe serve`."""
    return {str(option.envvar) for option in cli.commands["serve"].params}  # type: ignore[attr-defined]


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units, with the path of what is installed here: systemd looks whether it is there."""
    found = shutil.which("llmpipe", path=str(Path(sys.executable).parent))
    assert found
    for name in UNITS:
        (tmp_path / name).write_text((DEPLOY / name).read_text().replace(INSTALLED, found))
    return [str(tmp_path / name) for name in UNITS]


@needs_systemd
def test_systemd_has_nothing_to_say_against_the_units(units: list[str]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_rates_the_sandbox(units: list[str]) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=12", "--no-pager", units[0]]
    done = subprocess.run(command, env=PLAIN, capture_output=True, text=True, timeout=50, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot rate a unit that is not loaded; 250 or later can")
    assert done.returncode == 0, done.stdout + done.stderr
    rating = re.search(r"Overall exposure level for llmpipe\.service: (\d+\.\d)", done.stdout)
    assert rating, done.stdout
    assert float(rating[1]) <= 1.2


def test_the_service_starts_what_the_command_line_takes() -> None:
    """Every option of ExecStart= and every variable of the example; a real process tells systemd that it is ready."""
    words = shlex.split(read_unit("llmpipe.service")["ExecStart"][0])
    assert words[:2] == [INSTALLED, "serve"]
    assert environment_file().keys() <= serve_variables()
    port, admin = free_port(), free_port()
    variables = {**environment_file(), "LLMPIPE_LISTEN": f"0.0.0.0:{port}", "LLMPIPE_ADMIN": f"127.0.0.1:{admin}"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"\0llmpipe-{os.getpid()}-{port}")
        told.settimeout(30)
        environment = {**inherited, **variables, "NOTIFY_SOCKET": f"@llmpipe-{os.getpid()}-{port}"}
        command = [sys.executable, "-m", "llmpipe", *words[1:]]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert told.recv(100) == b"READY=1"
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            finally:
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert json.loads(errors.splitlines()[0])["address"] == f"0.0.0.0:{port}"


def test_the_service_waits_longer_than_the_drain_and_does_not_repeat_what_cannot_work() -> None:
    unit = read_unit("llmpipe.service")
    drain = next(option.default for option in cli.commands["serve"].params if option.name == "drain_timeout")
    assert "LLMPIPE_DRAIN_TIMEOUT" not in environment_file()
    assert parse_duration(unit["TimeoutStopSec"][0].replace("min", "m")) > parse_duration(str(drain))
    assert unit["Type"] == ["notify"]
    assert unit["KillSignal"] == ["SIGTERM"]
    assert unit["Restart"] == ["on-failure"]
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "serve"], capture_output=True, text=True, timeout=50, check=False
    )
    assert [str(done.returncode)] == unit["RestartPreventExitStatus"]


def test_the_sockets_have_names_that_are_taken() -> None:
    assert read_unit("llmpipe.socket")["FileDescriptorName"] == ["http"]
    assert read_unit("llmpipe-admin.socket")["FileDescriptorName"] == ["admin"]
    assert read_unit("llmpipe-admin.socket")["ListenStream"] == ["127.0.0.1:9090"]


@cache
def calls_of(group: str) -> frozenset[str]:
    """The system calls of one of systemd's groups, those of groups inside of it too."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], env=PLAIN, capture_output=True, text=True, check=True
    )
    words = [line.split("#")[0].strip() for line in done.stdout.splitlines()[1:]]
    names = [word for word in words if word]
    return frozenset().union(*(calls_of(name) if name.startswith("@") else {name} for name in names))


def allowed_calls() -> frozenset[str]:
    allowed: frozenset[str] = frozenset()
    for value in read_unit("llmpipe.service")["SystemCallFilter"]:
        groups = value.removeprefix("~").split()
        calls = frozenset().union(*(calls_of(group) for group in groups))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    # systemd adds what starting a program takes.
    return allowed | calls_of("@default")


# What systemd does between fork and exec, with libseccomp as it does: calls and socket families that are not allowed fail with
# EPERM, and no memory becomes executable that was writable. Arguments: the calls, the families, the command.
CONFINE = """
import ctypes, os, socket, sys
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
class Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
ALLOW, REFUSE, EQUAL = 0x7fff0000, 0x00050001, 4
seccomp.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE)))
for name in sys.argv[1].split():
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 0, None) == 0, name
number = seccomp.seccomp_syscall_resolve_name(b"socket")
for family in sys.argv[2].split():
    argument = Argument(0, EQUAL, getattr(socket, family), 0)
    assert seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 1, ctypes.byref(argument)) == 0
assert seccomp.seccomp_load(context) == 0
PR_SET_MDWE = 65  # Linux 6.3; before, systemd filters mmap and mprotect instead
if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
    print("no PR_SET_MDWE: memory is not held against MemoryDenyWriteExecute", file=sys.stderr)
os.execv(sys.argv[3], sys.argv[3:])
"""

REFUSED = """
import ctypes, os, resource, socket
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == 1, error
    else:
        raise AssertionError(call)
refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
refused(os.setuid, os.getuid())
refused(os.chown, "/", -1, -1)
refused(os.nice, 1)
print("confined")
"""


@needs_systemd
@needs_libseccomp
def test_a_whole_life_inside_the_filter() -> None:
    """The unit's own filter, in the kernel: start, name look-up, requests, a backend that is away, metrics, reload, drain."""
    families = read_unit("llmpipe.service")["RestrictAddressFamilies"][0]
    assert read_unit("llmpipe.service")["MemoryDenyWriteExecute"] == ["yes"]
    assert read_unit("llmpipe.service")["SystemCallErrorNumber"] == ["EPERM"]
    confined = [sys.executable, "-c", CONFINE, " ".join(sorted(allowed_calls() - {"socket"})), families]
    tried = subprocess.run(
        [*confined, sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=50, check=False
    )
    assert tried.stdout == "confined\n", tried.stderr
    with Backend(answer_all) as backend, Backend(answer_all, "unix") as local:
        urls = [backend.url.replace("127.0.0.1", "localhost"), local.url, f"http://127.0.0.1:{free_port()}"]
        with Proxy(*urls, prefix=confined, options=["--workers", "2"]) as proxy:
            clients = [Client(proxy) for _ in range(12)]
            for client in clients:
                assert client.request(GET).status == 200
            for client in clients:
                client.close()
            assert proxy.metric("process_resident_memory_bytes") > 0
            assert all(proxy.metric("llmpipe_upstream_connects_total", backend=url) > 0 for url in urls[:2])
            proxy.signal(signal.SIGHUP)
            proxy.wait_log("reloaded")
            status = Path(f"/proc/{proxy.pid}/status").read_text()
            assert "Seccomp:\t2\n" in status


@needs_systemd
@needs_libseccomp
@pytest.mark.timeout(600)
def test_an_upgrade_inside_the_filter() -> None:
    """The unit's filter lets a process start the next one, which has the same filter."""
    families = read_unit("llmpipe.service")["RestrictAddressFamilies"][0]
    confined = [sys.executable, "-c", CONFINE, " ".join(sorted(allowed_calls() - {"socket"})), families]
    with Backend(answer_all) as backend, Generations(backend.url, prefix=confined) as generations:
        new = generations.upgrade()
        assert "Seccomp:\t2\n" in Path(f"/proc/{new}/status").read_text()
        with Client(generations.proxy) as client:
            assert client.request(GET).status == 200
        generations.wait_gone(generations.proxy.pid)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Containerfile and their arguments."""
    found = []
    for line in (DEPLOY / "Containerfile").read_text().splitlines():
        if line and not line.startswith("#"):
            assert not line.endswith("\\"), "one line an instruction"
            name, _, argument = line.partition(" ")
            found.append((name, argument))
    return found


def arguments(name: str) -> list[str]:
    return [argument for instruction, argument in instructions() if instruction == name]


def copied() -> list[str]:
    """What the build takes out of the project."""
    return [word for argument in arguments("COPY") if not argument.startswith("--") for word in argument.split()[:-1]]


def test_the_image_is_built_in_stages_and_runs_as_nobody_special() -> None:
    names = {name for name, _ in instructions()}
    assert names == {
        *(
            "ARG",
            "FROM",
            "RUN",
            "WORKDIR",
            "COPY",
            "LABEL",
            "ENV",
            "USER",
            "EXPOSE",
            "STOPSIGNAL",
            "HEALTHCHECK",
            "ENTRYPOINT",
        )
    }
    build, final = arguments("FROM")
    assert build == f"{final} AS build"
    last_stage = instructions()[[argument for _, argument in instructions()].index(final) :]
    assert not [argument for name, argument in last_stage if name == "RUN"]
    assert [argument for name, argument in last_stage if name == "COPY"] == [
        "--from=build /opt/llmpipe /opt/llmpipe",
        f"docs/deploy/container.toml {image_variables()['LLMPIPE_CONFIG']}",
    ]
    user = [argument for name, argument in last_stage if name == "USER"]
    assert user
    assert all(part.isdigit() and int(part) > 0 for part in user[-1].split(":"))
    assert [name for name, _ in last_stage].index("USER") < [name for name, _ in last_stage].index("ENTRYPOINT")
    assert arguments("STOPSIGNAL") == ["SIGTERM"]


def test_what_the_image_copies_is_there() -> None:
    assert copied()
    for path in copied():
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_image_builds_from_what_it_copies(tmp_path: Path) -> None:
    """The step that CI can take without a registry: pip, in a folder that holds what is copied and nothing else."""
    assert "/opt/llmpipe/bin/pip install --no-cache-dir ." in arguments("RUN")
    source = tmp_path / "src"
    source.mkdir()
    for path in copied():
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("*.so", "*.c", "*.egg-info"))
        else:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "LLMPIPE_BUILD")}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run(
        [*command, str(tmp_path), str(source)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = [path.name for path in tmp_path.glob("*.whl")]
    assert len(names) == 1
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(tmp_path / names[0])], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"llmpipe/_pipe\.\S+\.so", listing)
    assert "llmpipe/cli.py" in listing


def image_variables() -> dict[str, str]:
    """What the image sets."""
    words = [word.partition("=") for argument in arguments("ENV") for word in shlex.split(argument)]
    return {name: value for name, _, value in words}


@pytest.fixture
def image_environment(tmp_path: Path) -> dict[str, str]:
    """The same with its file at a path of this machine."""
    variables = image_variables()
    found = tmp_path / Path(variables["LLMPIPE_CONFIG"]).name
    shutil.copy(DEPLOY / "container.toml", found)
    return {**variables, "LLMPIPE_CONFIG": str(found)}


def checked(environment: dict[str, str], *words: str, **more: str) -> dict[str, tuple[str, str]]:
    """What `llmpipe check` says of the file that is named there: each setting's value, and where it is from."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    done = subprocess.run(
        [sys.executable, "-m", "llmpipe", "check", environment["LLMPIPE_CONFIG"], *words],
        env={**inherited, **environment, **more},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(?m)^(\w+) = (.*?) +# (.*)$", done.stdout)
    return {name: (value, source) for name, value, source in lines}


def test_the_image_has_defaults_of_its_own_and_whatever_is_said_counts_more(image_environment: dict[str, str]) -> None:
    assert {name for name in image_environment if name.startswith("LLMPIPE_")} == {"LLMPIPE_CONFIG"}
    assert serve_variables() >= {"LLMPIPE_CONFIG"}
    path = image_environment["LLMPIPE_CONFIG"]
    found = checked(image_environment, LLMPIPE_BACKEND="http://127.0.0.1:8000")
    assert {name: value for name, (value, source) in found.items() if source == path} == {
        "listen": "0.0.0.0:8080",
        "admin": "127.0.0.1:9090",
        "log_format": "json",
    }
    assert arguments("EXPOSE") == ["8080"]
    more = {"LLMPIPE_BACKEND": "http://127.0.0.1:8000", "LLMPIPE_ADMIN": "0.0.0.0:9091"}
    found = checked(image_environment, "--log-format", "text", **more)
    assert found["admin"] == ("0.0.0.0:9091", "LLMPIPE_ADMIN")
    assert found["log_format"] == ("text", "--log-format")
    assert found["listen"] == ("0.0.0.0:8080", path)


def sketch(example: str) -> dict[str, Any]:
    """The YAML in the comments at the top of an example."""
    comments = [line[1:] for line in (EXAMPLES / example).read_text().partition("\n\n")[0].splitlines()]
    found: dict[str, Any] = {}
    # Text stands at the left, YAML further in, and something else than that may be there too.
    for block in re.findall(r"(?m)(?:^   .*\n?)+", "\n".join(comments)):
        with contextlib.suppress(yaml.YAMLError):
            parsed = yaml.safe_load(block)
            found |= parsed if isinstance(parsed, dict) else {}
    return found


def test_examples_put_their_file_where_the_image_looks_for_it() -> None:
    place = Path(image_variables()["LLMPIPE_CONFIG"])
    service = sketch("compose.toml")["services"]["llmpipe"]
    assert service["volumes"] == [f"./compose.toml:{place}:ro"]
    assert not {"command", "entrypoint", "environment"} & set(service), "the file says all"
    (container,) = sketch("kubernetes.toml")["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [str(place.parent)]
    assert place.name in (EXAMPLES / "kubernetes.toml").read_text()
    assert not {"command", "args", "env"} & set(container)


@pytest.mark.parametrize("example", ["compose.toml", "kubernetes.toml"])
def test_a_file_in_the_place_of_the_image_s_own_is_what_counts(image_environment: dict[str, str], example: str) -> None:
    text = (EXAMPLES / example).read_text()
    path = Path(image_environment["LLMPIPE_CONFIG"])
    path.write_text(re.sub(r'(?m)^(url = )".*"', r'\1"http://127.0.0.1:8000"', text))
    said = tomllib.loads(text)
    found = checked(image_environment)
    for name in ("listen", "admin", "log_format"):
        value = said[name][0] if isinstance(said[name], list) else said[name]
        assert found[name] == (value, str(path)), name
    other = path.with_name("other.toml")
    other.write_text('log_format = "text"\n[[pools.p.backends]]\nurl = "http://127.0.0.1:8000"\n')
    found = checked({**image_environment, "LLMPIPE_CONFIG": str(other)})
    assert [found[name][1] for name in ("listen", "admin", "log_format")] == ["default", "default", str(other)]


def test_a_file_that_is_mounted_is_served(image_environment: dict[str, str]) -> None:
    """As the entry point starts it, with nothing said beside the file."""
    port, admin = free_port(), free_port()
    with Backend(answer_all) as backend:
        Path(image_environment["LLMPIPE_CONFIG"]).write_text(
            f'listen = ["127.0.0.1:{port}"]\nadmin = "127.0.0.1:{admin}"\nlog_format = "text"\n'
            f'[[pools.p.backends]]\nurl = "{backend.url}"\n'
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
        command = [sys.executable, "-m", "llmpipe", *json.loads(arguments("ENTRYPOINT")[0])[1:]]
        environment = {**inherited, **image_environment}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                lines = [process.stderr.readline() for _ in range(2)]
                assert f" listening address=127.0.0.1:{port} " in lines[0]
                assert f" admin listening address=127.0.0.1:{admin}\n" in lines[1]
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_image_starts_what_the_command_line_takes_and_finds_it_healthy(image_environment: dict[str, str]) -> None:
    entry = json.loads(arguments("ENTRYPOINT")[0])
    assert entry[:2] == [INSTALLED, "serve"]
    check = json.loads(arguments("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert check[0] == str(Path(INSTALLED).with_name("python"))
    with Backend(answer_all) as backend:
        # Proxy gives the two addresses as options, which count more than the image's file.
        with Proxy(backend.url, env=image_environment, options=entry[2:]) as proxy:
            words = [sys.executable, *(word.replace(":9090/", f":{proxy.admin_port}/") for word in check[1:])]
            assert subprocess.run(words, timeout=30, check=False).returncode == 0
            with Client(proxy) as client:
                assert client.request(GET).status == 200
        gone = subprocess.run(words, capture_output=True, timeout=30, check=False)
        assert gone.returncode != 0


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not run from a checkout: there are no workflows")
def test_workflows_have_no_more_rights_than_they_use() -> None:
    """Nothing by default, reading for each job that checks out, and an identity where a release is published."""
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert workflows
    granted = []
    for workflow in workflows:
        text = workflow.read_text()
        assert "\npermissions: {}\n" in text, workflow
        assert text.count("uses: actions/checkout@") == text.count("persist-credentials: false"), workflow
        assert "pull_request_target" not in text, workflow
        granted += [(workflow.name, found) for found in re.findall(r"permissions: \{ (.+) \}", text)]
        assert len(re.findall(r"permissions:", text)) == 1 + len(re.findall(r"permissions: \{ .+ \}", text)), workflow
    assert {found for _, found in granted} == {"contents: read", "id-token: write"}
    assert [name for name, found in granted if "write" in found] == ["wheels.yml"]
