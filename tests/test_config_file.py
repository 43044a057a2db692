"""Rules I1 to I4: the configuration file, its faults, what counts more, and its reload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from harness import Backend, Client, Proxy, answer_all, chunk, respond, sse_head, threads_of, wait_asleep, wait_until

from llmpipe import config_file
from llmpipe.config import PoolSettings, ProcessSettings
from llmpipe.config_file import FileError
from llmpipe.settings import describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.toml"))


def llmpipe(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLMPIPE_")}
    return subprocess.run(
        [sys.executable, "-m", "llmpipe", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={**inherited, **env},
    )


@pytest.fixture
def write(tmp_path: Path) -> Any:
    path = tmp_path / "llmpipe.toml"

    def put(text: str) -> str:
        # As an editor or a deployment tool does it: never half a file.
        beside = tmp_path / "beside"
        beside.write_text(text)
        beside.replace(path)
        return str(path)

    return put


GOOD = """
listen = ["127.0.0.1:0"]
workers = 2
head_timeout = "5s"
kept_memory = 1000000
trusted_proxies = ["10.0.0.0/8", "unix"]
log_query = true
default_pool = "small"

[pools.large]
models = ["llama-3.3-70b", "llama-*"]
aliases = { "gpt-4o" = "llama-3.3-70b" }
max_body = "1MB"
retry = { statuses = [429, 503] }
ttft_timeout = 1.5

[[pools.large.backends]]
url = "http://127.0.0.1:8001"
name = "gpu1"
weight = 2

[[pools.large.backends]]
url = "unix:/run/spare.sock"
tier = 1
on_abort = "finish"
host = "spare"
addresses = "first"

[pools.small]
[[pools.small.backends]]
url = "http://127.0.0.1:8001"
name = "gpu1"

[[routes]]
path = "/v1/audio/"
header = "X-Tier: gold"
pool = "small"
"""


def test_i1_what_a_file_says(write: Any) -> None:
    file = config_file.read(write(GOOD))
    assert file.values["listen"] == (("127.0.0.1", 0),)
    assert (file.values["workers"], file.values["head_timeout"], file.values["kept_memory"]) == (2, 5.0, 1000000)
    assert file.values["log_query"] is True
    large, small = file.pools
    assert (large.name, large.models, large.aliases) == (
        "large",
        ("llama-3.3-70b", "llama-*"),
        {"gpt-4o": "llama-3.3-70b"},
    )
    assert large.values == {"max_body": 1 << 20, "retry_statuses": frozenset((429, 503)), "ttft_timeout": 1.5}
    first, second = large.backends
    assert (first.name, first.url, first.weight, first.tier) == ("gpu1", "http://127.0.0.1:8001", 2, 0)
    assert (second.name, second.tier, second.finish_on_abort, second.host_field) == (
        "unix:/run/spare.sock",
        1,
        True,
        "spare",
    )
    assert small.backends[0] == first  # whatever its weight is there
    assert (file.routes[0].path, file.routes[0].header, file.routes[0].pool) == ("/v1/audio/", "X-Tier: gold", "small")
    assert file.default_pool == "small"


POOL = '[[pools.p.backends]]\nurl = "http://127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("x = ", ["it is not TOML"]),
        ("\xff", ["it is not TOML"]),
        ("lisen = 1\n" + POOL, ["lisen: unknown key; did you mean listen?"]),
        ("workers = true\n" + POOL, ["workers: write a whole number, not true or false"]),
        ("workers = 1.5\n" + POOL, ["workers: write a whole number"]),
        ("workers = 0\n" + POOL, ["workers: 0 is not in the range 1 to 256"]),
        ("log_query = 1\n" + POOL, ["log_query: write true or false, not a whole number"]),
        ('head_timeout = "soon"\n' + POOL, ["head_timeout: 'soon' is not a duration"]),
        ("head_timeout = [1]\n" + POOL, ["head_timeout: write a number of seconds"]),
        ('log_level = "loud"\n' + POOL, ["log_level: 'loud' is not debug, info, warning or error"]),
        ('listen = ["8080"]\n' + POOL, ["listen: '8080' is not an address"]),
        ('trusted_proxies = ["none", "unix"]\n' + POOL, ["trusted_proxies: trusted proxies: 'none' stands alone"]),
        ("pools = 1", ["pools: write a table for each pool"]),
        ("[pools.p]", ["pools.p.backends: a pool needs one or more"]),
        ("[pools]\np = 1", ["pools.p: write a table"]),
        ("[pools.p]\nmodel = 1\n" + POOL, ["pools.p.model: unknown key; did you mean models?"]),
        ("[pools.p]\nmodels = 1\n" + POOL, ["pools.p.models: write an array of names"]),
        ('[pools.p]\nmodels = ["a*b"]\n' + POOL, ["pools.p.models: 'a*b': a * stands only at the end"]),
        ('[pools.p]\nmodels = ["a", "a"]\n' + POOL, ["pools.p.models: 'a' is there twice"]),
        ('[pools.p]\nmodels = [""]\n' + POOL, ["pools.p.models: '' is no name of a model"]),
        (
            '[pools.p]\nmodels = ["a"]\naliases = { b = "c" }\n' + POOL,
            ["pools.p.aliases: 'b' stands for 'c', which the pool has not"],
        ),
        (
            '[pools.p]\nmodels = ["a*"]\naliases = { b = "a*" }\n' + POOL,
            ["pools.p.aliases: 'b' stands for 'a*', which is no model"],
        ),
        ("[pools.p]\nmax_body = -1\n" + POOL, ["pools.p.max_body: '-1' is not a size"]),
        ("[pools.p]\nretry = { statuses = [500] }\n" + POOL, ["pools.p.retry.statuses: '500' is not 429, 502 or 503"]),
        ("[[pools.p.backends]]\n", ["pools.p.backends[0]: it needs a url"]),
        ('[[pools.p.backends]]\nurl = "gpu1"\n', ["pools.p.backends[0]: backend 'gpu1' has no scheme"]),
        ('[[pools.p.backends]]\nurl = "http://u:secret@a"\n', ["pools.p.backends[0]: backend '***' has a user name"]),
        ('[[pools.p.backends]]\nurl = "http://a?weight=2"\n', ["pools.p.backends[0]: url: options stand in keys"]),
        (POOL + "weight = 0\n", ["pools.p.backends[0]: backend 'http://127.0.0.1:1': weight is from 1 to 1000, not 0"]),
        (
            POOL + 'addresses = "one"\n',
            ["pools.p.backends[0]: backend 'http://127.0.0.1:1': addresses is all or first"],
        ),
        (POOL + "addresses = 1\n", ["pools.p.backends[0]: addresses: write text, not a whole number"]),
        (POOL + 'weight = "2"\n', ["pools.p.backends[0]: weight: write a whole number, not text"]),
        (POOL + "tier = 1\n", ["pools.p.backends: none has tier 0"]),
        (
            POOL + 'on-abort = "finish"\n',
            ["pools.p.backends[0]: unknown key on-abort; there are url, name, host, on_abort"],
        ),
        (POOL + POOL, ["pools.p.backends: backend http://127.0.0.1:1 is named twice"]),
        (POOL + POOL.replace(".p.", ".q."), ["pools.p: nothing leads to it", "pools.q: nothing leads to it"]),
        (
            '[pools.p]\nmodels = ["a"]\n' + POOL + '[pools.q]\nmodels = ["a"]\n' + POOL.replace(".p.", ".q."),
            ["pools.q: it has the model 'a', and so does pools.p"],
        ),
        (
            '[pools.p]\nmodels = ["a"]\n'
            + POOL
            + '[pools.q]\nmodels = ["b"]\n'
            + POOL.replace(".p.", ".q.")
            + 'host = "b"\n',
            ["pools.q.backends: http://127.0.0.1:1 is another server, or has other options, than in pools.p"],
        ),
        ('default_pool = "q"\n' + POOL, ["default_pool: there is no pool 'q'"]),
        ("default_pool = 1\n" + POOL, ["default_pool: there is no pool 1"]),
        (POOL + '[[routes]]\npath = "/"\n', ["routes[0]: it needs a pool"]),
        (POOL + '[[routes]]\npool = "q"\npath = "/"\n', ["routes[0]: there is no pool 'q'"]),
        (POOL + '[[routes]]\npool = "p"\n', ["routes[0]: it needs a path, a header, or both"]),
        (POOL + '[[routes]]\npool = "p"\npath = "v1"\n', ["routes[0]: path: 'v1' does not begin with /"]),
        (POOL + '[[routes]]\npool = "p"\nheader = "a b"\n', ["routes[0]: header: 'a b' is neither"]),
        (POOL + '[[routes]]\npool = "p"\npaths = "/"\n', ["routes[0]: unknown key paths"]),
        (
            "wokers = 1\nhead_timeout = true\n[pools.p]\nx = 1\n" + POOL + "tier = -1\n",
            ["wokers", "head_timeout", "pools.p.x", "backends[0]"],
        ),
    ],
    ids=lambda value: value[:40].replace("\n", " ") if isinstance(value, str) else None,
)
def test_i1_each_fault_is_a_line_with_its_place_and_all_are_shown(write: Any, text: str, faults: list[str]) -> None:
    path = write(text) if text.isascii() else write("")
    if not text.isascii():
        Path(path).write_bytes(b"\xff")
    with pytest.raises(FileError) as raised:
        config_file.read(path)
    found = raised.value.faults
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in found)
    assert len(found) == len(faults), found
    assert all(any(fault in line for line in found) for fault in faults), found
    done = llmpipe("serve", "--config", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"Error: {' '.join(line.split())}" for line in found]


def test_i1_off_counts_though_it_is_no_value(write: Any) -> None:
    path = write('admin = "off"\n[pools.a]\n[[pools.a.backends]]\nurl = "http://127.0.0.1:1"\n')
    done = llmpipe("check", path)
    assert done.returncode == 0, done.stderr
    assert [line.split("#")[0].strip() for line in done.stdout.splitlines() if line.startswith("admin =")] == [
        "admin = off"
    ]


def test_i1_a_file_that_is_not_there() -> None:
    done = llmpipe("serve", "--config", "/nowhere/llmpipe.toml")
    assert (done.returncode, done.stderr) == (2, "Error: /nowhere/llmpipe.toml: No such file or directory\n")


def test_i1_flags_count_more_than_variables_and_those_more_than_the_file(write: Any) -> None:
    path = write(GOOD)
    done = llmpipe(
        "check", path, "--head-timeout", "7s", LLMPIPE_HEAD_TIMEOUT="6s", LLMPIPE_WORKERS="3", LLMPIPE_MAX_BODY="2MB"
    )
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == f"# {path} can be served: 2 pools, 2 backends"
    for line in (
        "head_timeout = 7s # --head-timeout",
        "workers = 3 # LLMPIPE_WORKERS",
        f"log_query = on # {path}",
        "keepalive_timeout = 75s # default",
        f"ttft_timeout = 1500ms # {path}",
        "alias gpt-4o -> llama-3.3-70b",
        "backend gpu1 (http://127.0.0.1:8001, weight 2, tier 0)",
        "backend unix:/run/spare.sock (weight 1, tier 1, host spare, addresses first, on_abort finish)",
        "route /v1/audio/ and X-Tier: gold -> small",
    ):
        assert line in lines, line
    assert lines.count("max_body = 2MB # LLMPIPE_MAX_BODY") == 2  # in each pool


def test_i2_check_resolves_names(write: Any) -> None:
    done = llmpipe("check", write('[[pools.p.backends]]\nurl = "http://no-such-host.invalid:1"\n'))
    assert (done.returncode, done.stdout) == (2, "")
    assert "backend http://no-such-host.invalid:1: the host name cannot be resolved" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backend", "http://127.0.0.1:1"], "has pools of its own; leave out --backend"),
        (["--demo"], "--demo brings its own backend; leave out --config"),
    ],
)
def test_i1_what_contradicts_the_file(write: Any, words: list[str], says: str) -> None:
    done = llmpipe("serve", "--config", write(GOOD), *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_i1_a_file_of_the_process_alone_goes_with_a_backend(write: Any) -> None:
    path = write("workers = 1\n")
    done = llmpipe("serve", "--config", path)
    text = "has no pool; add [[pools.NAME.backends]] with a url, or name a backend with --backend http://HOST:PORT"
    assert (done.returncode, done.stderr) == (2, f"Error: {path} {text}\n")
    with (
        Backend(answer_all) as backend,
        Proxy(backend.url, options=("--config", path)) as proxy,
        Client(proxy) as client,
    ):
        assert client.request(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").status == 200


def test_i1_a_file_of_the_process_alone_goes_with_the_demo(write: Any) -> None:
    path = write('drain_timeout = "7s"\n')
    with Proxy(options=("--config", path, "--demo")) as proxy, Client(proxy) as client:
        proxy.signal(signal.SIGHUP)
        proxy.wait_log("reloaded")
        assert client.request(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_log("draining")["seconds"] == 7.0


def test_j3_the_openai_client_lists_the_models_of_the_file(write: Any) -> None:
    with (
        Proxy(options=("--config", write(GOOD))) as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k") as client,
    ):
        assert [model.id for model in client.models.list()] == ["gpt-4o", "llama-3.3-70b"]


def test_i1_watch_needs_a_file() -> None:
    done = llmpipe("serve", "--watch", "--backend", "http://127.0.0.1:1")
    assert (done.returncode, done.stderr) == (2, "Error: --watch needs a file to watch: --config FILE\n")


def test_i2_the_schema_takes_what_we_take_and_knows_every_key() -> None:
    made = llmpipe("config", "schema")
    assert made.returncode == 0
    schema = json.loads(made.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(GOOD))
    for text in (
        "lisen = 1",
        "workers = true",
        "[pools.p]\nbackends = []",
        POOL + "weight = 0",
        'log_level = "loud"',
        POOL + 'addresses = "one"',
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(tomllib.loads(text))
    keys = schema["properties"].keys()
    assert {setting.key for setting in describe(ProcessSettings)} <= keys
    pool = schema["properties"]["pools"]["additionalProperties"]["properties"]
    assert {setting.key.partition(".")[0] for setting in describe(PoolSettings)} <= pool.keys()


def test_i2_the_reference_is_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    assert llmpipe("config", "reference").stdout == page, "run: llmpipe config reference > docs/configuration.md"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_be_read(path: Path) -> None:
    file = config_file.read(str(path))
    assert file.pools
    jsonschema.Draft202012Validator(config_file.schema()).validate(tomllib.loads(path.read_text()))
    assert path.read_text().startswith("# ")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


# ------------------------------------------------------------------------------------------------------------------ reload


def pool(name: str, backend: Backend, *more: str, model: str = "") -> str:
    models = f'models = ["{model or name}"]'
    return "\n".join([f"[pools.{name}]", models, *more, f"[[pools.{name}.backends]]", f'url = "{backend.url}"', ""])


def post(client: Client, model: str) -> Any:
    sent = json.dumps({"model": model}).encode()
    return client.request(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(sent)
        + sent
    )


def says(name: bytes) -> Any:
    def script(connection: Any) -> None:
        while True:
            connection.read_request()
            respond(connection, name)

    return script


def test_i4_sighup_takes_the_whole_file_or_nothing(write: Any) -> None:
    with Backend(says(b"a")) as a, Backend(says(b"b")) as b:
        path = write(pool("a", a))
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:
            assert post(client, "a").body == b"a"
            assert post(client, "b").status == 404
            write(pool("a", a) + pool("b", b))
            proxy.signal(signal.SIGHUP)
            proxy.wait_log("reloaded")
            wait_until(lambda: post(client, "b").body == b"b")
            write(pool("a", b) + "nonsense = 1\n[pools.x]\n")
            proxy.signal(signal.SIGHUP)
            assert proxy.wait_log("reload failed")["hint"] == "the configuration of before stays"
            wait_until(lambda: len(json.loads(proxy.admin("/status")[1])["reload_faults"]) == 2)
            wait_until(lambda: len([line for line in proxy.log if line["event"] == "reload failed"]) == 2)
            assert (post(client, "a").body, post(client, "b").body) == (b"a", b"b")
            Path(path).unlink()
            proxy.signal(signal.SIGHUP)
            wait_until(lambda: len([line for line in proxy.log if line["event"] == "reload failed"]) == 3)
            assert (post(client, "a").body, post(client, "b").body) == (b"a", b"b")


def test_i4_a_live_stream_outlives_its_pool(write: Any) -> None:
    go = threading.Event()

    def stream(connection: Any) -> None:
        connection.read_request()
        connection.send(sse_head() + chunk(b"data: 1\n\n"))
        assert go.wait(60)
        connection.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    with Backend(stream) as a, Backend(says(b"b")) as b:
        path = write(pool("a", a, "idle_timeout = 20"))
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client, Client(proxy) as other:
            sent = b'{"model":"a"}'
            client.send(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % len(sent)
                + sent
            )
            client.read_head()
            before = proxy.metric("llmpipe_exchanges_total", outcome="ok")
            for n in range(20):
                write(pool("b", b, f"ttft_timeout = {n + 1}", model="b"))
                proxy.signal(signal.SIGHUP)
                wait_until(lambda n=n: len([line for line in proxy.log if line["event"] == "reloaded"]) > n)
            wait_until(lambda: post(other, "b").body == b"b")
            assert post(other, "a").status == 404
            go.set()
            assert client.read_chunked() == b"data: 1\n\ndata: 2\n\n"
            proxy.wait_metric("llmpipe_exchanges_total", before + 2, outcome="ok")


def test_i4_a_file_that_is_watched_is_loaded_when_it_changes(write: Any) -> None:
    with Backend(says(b"a")) as a, Backend(says(b"b")) as b:
        path = write("watch = true\n" + pool("a", a))
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:
            assert post(client, "b").status == 404
            write("watch = true\n" + pool("a", a) + pool("b", b))
            proxy.wait_log("reloaded")
            wait_until(lambda: post(client, "b").body == b"b")


def test_i4_what_only_a_restart_changes_is_said(write: Any) -> None:
    with Backend(answer_all) as a:
        path = write("workers = 1\n" + pool("a", a))
        with Proxy(options=("--config", path)) as proxy:
            write("max_head = 1000\nkeepalive_timeout = 1\n" + pool("a", a))
            proxy.signal(signal.SIGHUP)
            line = proxy.wait_log("settings that a restart changes")
            assert line["settings"] == "keepalive_timeout,max_head"


def test_s1_status_shows_pools_and_backends(write: Any) -> None:
    with Backend(says(b"a")) as a, Backend(says(b"b")) as b:
        path = write(pool("a", a) + 'name = "gpu-1"\nweight = 3\n' + pool("b", b, 'aliases = { "c" = "b" }'))
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:
            assert post(client, "a").status == post(client, "c").status == 200
            wait_asleep(threads_of(proxy.pid))  # the last exchange ends behind the bytes of its answer
            status, text = proxy.admin("/status")
            said = json.loads(text)
            assert (status, said["ready"], said["reason"], said["reload_faults"], said["clients"]) == (
                200,
                True,
                None,
                [],
                1,
            )
            first, second = said["pools"]
            assert (first["name"], first["models"], second["aliases"]) == ("a", ["a"], {"c": "b"})
            (shown,) = first["backends"]
            assert (shown["name"], shown["url"], shown["weight"], shown["tier"]) == ("gpu-1", a.url, 3, 0)
            assert (shown["usable"], shown["in_flight"], shown["exchanges"], shown["failures"]) == (True, 0, 1, 0)
            assert shown["seconds_since_content"] >= 0


def test_i3_a_backend_goes_by_its_name(write: Any) -> None:
    with Backend(answer_all) as a:
        path = write(pool("a", a) + 'name = "gpu-1"\n')
        with Proxy(options=("--config", path)) as proxy, Client(proxy) as client:
            assert post(client, "a").status == 200
            assert proxy.access()[0]["backend"] == "gpu-1"
            proxy.wait_metric("llmpipe_backend_exchanges_total", 1, backend="gpu-1")
            # Another address under the same name is the same backend, with its counters.
            with Backend(answer_all) as moved:
                write(pool("a", moved) + 'name = "gpu-1"\n')
                proxy.signal(signal.SIGHUP)
                proxy.wait_log("reloaded")
                wait_until(lambda: post(client, "a").status == 200 and len(moved.connections) > 0)
                wait_until(lambda: proxy.metric("llmpipe_backend_exchanges_total", backend="gpu-1") >= 2)


def test_l2_a_pool_of_several_backends_asks_the_next_one_when_one_is_busy(tmp_path: Path) -> None:
    """By default, and only in the file."""
    row = '[[pools.{0}.backends]]\nurl = "http://b{1}:1"\n'
    text = "[pools.one]\nmodels = ['a']\n" + row.format("one", 1)
    text += "[pools.two]\nmodels = ['b']\n" + row.format("two", 2) + row.format("two", 3)
    text += "[pools.off]\nmodels = ['c']\nretry = { statuses = [] }\n" + row.format("off", 4) + row.format("off", 5)
    path = tmp_path / "llmpipe.toml"
    path.write_text(text)
    file = config_file.read(str(path))
    settings = file.settings(lambda values: ProcessSettings(), lambda values: PoolSettings(**values))
    assert [sorted(pool.settings.retry_statuses) for pool in settings.all_pools] == [[], [429, 503], []]
