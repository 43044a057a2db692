"""docs/deploy for Prometheus and Grafana: rules and dashboard fit what /metrics shows, each alert fires when what it is for happens, and each
query of the dashboard finds something. A real Prometheus scrapes real proxies that have trouble.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tools
import yaml
from harness import TIMEOUT, Backend, Client, Mock, Proxy, answer_all, free_port, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

from llmpipe._pipe import OUTCOMES, REASONS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs/deploy"
RUNBOOK = ROOT / "docs/operations/alerts.md"
SERIES = ROOT / "tests/alerts.yml"

RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
TESTS = yaml.safe_load(SERIES.read_text())["tests"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text())

LACKING = ()
"""What rules and dashboard may name although the engine does not count it yet: a metric, or a metric and the beginning of its labels."""

NEVER_HERE = {"LlmpipeDisconnectSlow"}
"""Alerts about what a healthy engine does not do, whatever happens around it: only tests/alerts.yml has them fire."""

MISSING_PROMETHEUS = tools.needs("prometheus", "prometheus")

# A sanitizer that is preloaded into every process does Prometheus no good.
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def promtool(*words: str | Path, stdin: str = "") -> str:
    """What it says; it must have nothing against anything."""
    command = [tools.tool("promtool", "prometheus"), *map(str, words)]
    done = subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, env=PLAIN, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expanded(query: str) -> str:
    """A query with what recorded series are made of in their place."""
    while found := [name for name in RECORDS if name in query]:
        for name in found:
            query = query.replace(name, f"({RECORDS[name]})")
    return query


def is_lacking(query: str) -> bool:
    """Whether it needs what is not counted yet."""
    return any(name in expanded(query) for name in LACKING)


def metrics_in(text: str) -> set[str]:
    """The metrics of a proxy that a text names, recorded series apart."""
    return set(re.findall(r"(?<![:\w/.-])(?:llmpipe|process)_[a-z_]+[a-z](?![\w:]*[:/.-]\w)", text))


def queries() -> list[tuple[str, str]]:
    """Title of a panel and query, one for each query of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def variables() -> list[dict[str, Any]]:
    return [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]


def filled(query: str) -> str:
    """A query of the dashboard as Grafana sends it, with all variables at their first choice, All."""
    for name, value in {"__rate_interval": "1m", "__range": "5m"}.items():
        query = query.replace(f"${name}", value)
    for variable in variables():
        query = query.replace(f"${variable['name']}", variable["allValue"])
    assert "$" not in query, query
    return query


# What is written down.


@MISSING_PROMETHEUS
def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in promtool("check", "rules", DEPLOY / "alerts.yml")
    promtool("check", "config", DEPLOY / "prometheus.yml")


@MISSING_PROMETHEUS
def test_thresholds_and_times_of_the_rules(tmp_path: Path) -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(SERIES, tmp_path)
    promtool("test", "rules", tmp_path / SERIES.name)


def test_each_rule_is_tested_with_series() -> None:
    checks = [check for test in TESTS for check in test.get("alert_rule_test", ())]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(ALERTS)
    values = " ".join(check["expr"] for test in TESTS for check in test.get("promql_expr_test", ()))
    assert [name for name in RECORDS if name not in values] == []


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_about(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    labels = {
        label
        for test in TESTS
        for check in test.get("alert_rule_test", ())
        for fired in check["exp_alerts"]
        for label in fired["exp_labels"]
        if check["alertname"] == name
    }
    assert [label for label in labels - {"severity"} if f"$labels.{label}" not in notes["description"]] == []


def test_each_alert_has_its_paragraph_and_each_paragraph_its_alert() -> None:
    parts = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    paragraphs = {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}
    assert sorted(paragraphs) == sorted(ALERTS)
    for name, text in paragraphs.items():
        assert ALERTS[name]["annotations"]["runbook_url"] == f"docs/operations/alerts.md#{name.lower()}"
        assert [word for word in ("What it means.", "How to see more.", "What to do.") if word not in text] == [], name


def test_the_paragraphs_name_what_there_is() -> None:
    """Log lines, reasons, outcomes, options and files."""
    text = RUNBOOK.read_text()
    words = re.findall(r"`([^`]+)`", text)
    source = "".join(path.read_text() for path in (ROOT / "src/llmpipe").glob("*.py"))
    phrases = [word for word in words if re.fullmatch(r"(?!systemctl|llmpipe)[A-Za-z]+( [a-z]+)+", word)]
    assert len(phrases) > 10
    assert [word for word in phrases if f'"{word}"' not in source and word not in REASONS] == []
    settings = (ROOT / "docs/configuration.md").read_text()
    assert [word for word in words if word.startswith("--") and word.split()[0] not in settings] == []
    begins = tuple(name.partition("_")[0] + "_" for name in OUTCOMES if "_" in name)
    outcomes = [word for word in words if word.startswith(begins) and re.fullmatch(r"[a-z_]+", word)]
    assert len(set(outcomes)) > 5
    assert [word for word in outcomes if word not in OUTCOMES] == []
    links = re.findall(r"\]\(([^)#]*)(#[a-z-]+)?\)", text)
    assert [link for link, _ in links if link and not (RUNBOOK.parent / link).exists()] == []
    assert [anchor for link, anchor in links if not link and anchor[1:] not in {name.lower() for name in ALERTS}] == []


# What /metrics shows.


@pytest.fixture(scope="module")
def asked() -> Iterator[Proxy]:
    """A proxy that has served one request."""
    with Backend(answer_all) as backend, Proxy(backend.url) as proxy:
        with Client(proxy) as client:
            assert client.request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        proxy.wait_metric("llmpipe_exchanges_total", 1, outcome="ok")
        yield proxy


@MISSING_PROMETHEUS
def test_promtool_has_nothing_against_the_metrics(asked: Proxy) -> None:
    assert promtool("check", "metrics", stdin=asked.admin("/metrics")[1]) == ""


def test_metrics_are_openmetrics_for_those_who_ask_for_them(asked: Proxy) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{asked.admin_port}/metrics")
    request.add_header("Accept", "application/openmetrics-text; version=1.0.0; charset=utf-8")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0;")
        text = answer.read().decode()
    assert text.endswith("\n# EOF\n")
    plain = {family.name for family in text_metrics(asked.admin("/metrics")[1])}
    assert {family.name for family in open_metrics(text)} == plain


def shown(proxy: Proxy) -> set[str]:
    """The names of what /metrics has, without samples too."""
    names = set()
    for family in text_metrics(proxy.admin("/metrics")[1]):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count", "")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


@pytest.mark.parametrize(
    "path", ["docs/deploy/alerts.yml", "docs/deploy/grafana.json", "docs/operations/alerts.md", "tests/alerts.yml"]
)
def test_what_is_named_is_there(asked: Proxy, path: str) -> None:
    text = (ROOT / path).read_text()
    used = metrics_in(text)
    assert len(used) > 15
    assert sorted(name for name in used - shown(asked) if not name.startswith(LACKING)) == []


def test_what_is_said_to_lack_does(asked: Proxy) -> None:
    text = asked.admin("/metrics")[1]
    for lacking in LACKING:
        name, _, label = lacking.partition("{")
        sign = rf"^{name}{{[^}}]*\b{label}=" if label else rf"^# TYPE {name}\b"
        assert not re.search(sign, text, re.MULTILINE), lacking


# The dashboard.


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Grafana's package needs Python 3.11")
def test_the_dashboard_is_one_to_grafana() -> None:
    """Its own types take all of it: what they do not know they would drop."""
    from grafana_foundation_sdk.cog import encoder, plugins  # noqa: PLC0415
    from grafana_foundation_sdk.models import dashboard, units  # noqa: PLC0415

    plugins.register_default_plugins()
    read = dashboard.Dashboard.from_json(DASHBOARD)
    written = json.loads(json.dumps(read, cls=encoder.JSONEncoder))

    def lost(before: Any, after: Any, where: str) -> Iterator[str]:
        if isinstance(before, dict) and isinstance(after, dict):
            for key, value in before.items():
                yield from lost(value, after[key], f"{where}.{key}") if key in after else [f"{where}.{key}"]
        elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            for number, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from lost(one, other, f"{where}[{number}]")
        elif before != after:
            yield f"{where}: {before!r} is {after!r}"

    assert list(lost(DASHBOARD, written, "")) == []
    known = {value for value in vars(units).values() if isinstance(value, str)}
    used = {
        panel["fieldConfig"]["defaults"]["unit"]
        for panel in DASHBOARD["panels"]
        if panel["type"] not in ("row", "heatmap")
    }
    assert used <= known


def test_the_dashboard_uses_the_data_source_that_is_chosen_and_panels_do_not_overlap() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert DASHBOARD["templating"]["list"][0]["name"] == "datasource"
    places: dict[tuple[int, int], str] = {}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Backends", "Queue", "Failures", "Tokens", "The proxy itself"]
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == chosen
            assert panel["targets"]
        for target in panel.get("targets", ()):
            assert target["datasource"] == chosen
        grid = panel["gridPos"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert x < 24
                assert places.setdefault((x, y), panel["title"]) == panel["title"]
    assert [query for _, query in queries() if 'job=~"$job", instance=~"$instance"' not in query] == []


# A real Prometheus.

ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
)


def ask(model: str, fields: str = "", **more: object) -> bytes:
    """A request for a stream of a model."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
    text = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    return ASK % (fields.encode(), len(text), text)


class Prometheus:
    """A server of its own that scrapes each second, with rules that need not hold for longer than that."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        """`targets` are addresses of admin endpoints, by what each is called."""
        self._folder = folder
        self._config = folder / "prometheus.yml"
        rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
        self.configure(targets)
        self.url = f"http://127.0.0.1:{free_port()}"
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    tools.tool("prometheus", "prometheus"),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=PLAIN,
            )
        wait_until(self._ready, TIMEOUT, "Prometheus is ready")
        self.fired: dict[str, list[dict[str, Any]]] = {}
        """Alerts that have fired so far, by name."""

    def configure(self, targets: Mapping[str, str]) -> None:
        """Writes the example's configuration with these targets."""
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [at], "labels": {"instance": name}} for name, at in targets.items()]
        self._config.write_text(yaml.safe_dump(config))

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self._folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=TIMEOUT) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query that have a number now."""
        result: list[dict[str, Any]] = self._get("query", query=query)["result"]
        return [series for series in result if math.isfinite(float(series["value"][1]))]

    def value(self, query: str) -> float | None:
        """That of the one series of a query."""
        found = self.query(query)
        return float(found[0]["value"][1]) if found else None

    def look(self) -> None:
        """Adds the alerts that fire now to those that have."""
        for alert in self._get("alerts")["alerts"]:
            if alert["state"] == "firing":
                known = self.fired.setdefault(alert["labels"]["alertname"], [])
                if alert["labels"] not in [other["labels"] for other in known]:
                    known.append(alert)

    def has_fired(self, name: str, labels: Mapping[str, str]) -> bool:
        self.look()
        return any(labels.items() <= alert["labels"].items() for alert in self.fired.get(name, ()))

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def main_config(urls: Mapping[str, str]) -> str:
    """Of the proxy that most things happen to."""
    return f"""
[pools.chat]
models = ["chat"]
health = {{ path = "/health", interval = "500ms" }}
retry = {{ statuses = [503] }}

[[pools.chat.backends]]
url = "{urls["faulty"]}"
name = "faulty"
on_abort = {{ call = "/no-such-path" }}

[[pools.chat.backends]]
url = "{urls["firm"]}"
name = "firm"
tier = 1
on_abort = {{ call = "/no-such-path" }}

[pools.dead]
models = ["dead"]

[[pools.dead.backends]]
url = "{urls["dead"]}"
name = "dead"

[pools.stuck]
models = ["stuck"]

[[pools.stuck.backends]]
url = "{urls["stuck"]}"
name = "stuck"
"""


def slow_config(url: str, drip: str, more: str = "") -> str:
    """Of a proxy with a queue for a backend that takes its time."""
    return f"""
[pools.slow]
models = ["slow"]
max_in_flight = 1
queue = {{ size = 14, timeout = "10m" }}

[[pools.slow.backends]]
url = "{url}"
name = "slow"

[pools.drip]
models = ["drip"]

[[pools.drip.backends]]
url = "{drip}"
name = "drip"
{more}
"""


class World:
    """Proxies with trouble of all kinds, and one without, as a Prometheus sees them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.stopping = threading.Event()
        self.is_crowded = threading.Event()
        """Set when the clients of the crowded proxy have had their answers, which it gives none while its backend is drained."""
        self.errors: list[BaseException] = []
        enter = stack.enter_context
        mocks = {
            name: enter(Mock("--ttft", "5ms", "--tokens-per-second", "200", "--tokens", "4"))
            for name in ("faulty", "dead", "stuck")
        }
        mocks["firm"] = enter(Mock("--ttft", "5ms", "--tokens-per-second", "200", "--tokens", "4", "--no-faults"))
        mocks["slow"] = enter(Mock("--ttft", "10s", "--tokens", "1"))
        self.mocks = mocks
        urls = {name: mock.url for name, mock in mocks.items()}
        (folder / "main.toml").write_text(main_config(urls))
        (folder / "slow.toml").write_text(slow_config(urls["slow"], urls["firm"]))
        self.fine = enter(Proxy(urls["firm"]))
        self.main = enter(Proxy(options=["--config", str(folder / "main.toml"), "--drain-timeout", "1"]))
        self.slow = enter(Proxy(options=["--config", str(folder / "slow.toml"), "--drain-timeout", "1"]))
        # 200 descriptors are enough for (200 - 64) / 2 = 68 clients.
        options = ["--max-connections", "65", "--head-timeout", "0"]
        self.crowded = enter(Proxy(urls["firm"], options=options, nofile=200))
        self.deaf_port, deaf_admin = free_port(), free_port()
        enter(self._deaf(self.deaf_port, deaf_admin, urls["firm"]))
        self.again_admin, nowhere = free_port(), free_port()
        proxies = {"fine": self.fine, "main": self.main, "slow": self.slow, "crowded": self.crowded}
        ports = {name: proxy.admin_port for name, proxy in proxies.items()}
        ports |= {"deaf": deaf_admin, "again": self.again_admin, "down": nowhere}
        self.prometheus = enter(Prometheus(folder, {name: f"127.0.0.1:{port}" for name, port in ports.items()}))
        for name in (*proxies, "deaf"):  # an increase is one of what was seen before
            self.wait_value(f'llmpipe_build_info{{instance="{name}"}}', lambda value: value == 1)
        stack.callback(self.stop)
        self.threads = [
            threading.Thread(target=self._guard, args=(part,), daemon=True)
            for part in (self.load, self.wait_in_line, self.leave_nobody_to_read, self.start_again, self.flap)
        ]

    def wait_value(self, query: str, right: Callable[[float], bool]) -> None:
        """Waits until a query has one value, and it is right."""

        def reached() -> bool:
            value = self.prometheus.value(query)
            return value is not None and right(value)

        wait_until(lambda: self.stopping.is_set() or reached(), 2 * TIMEOUT, query)

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            if not self.stopping.is_set():
                self.errors.append(error)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(TIMEOUT)

    @contextlib.contextmanager
    def _deaf(self, port: int, admin: int, url: str) -> Iterator[None]:
        """A proxy whose log nobody reads."""
        read, write = os.pipe()
        command = [sys.executable, "-m", "llmpipe", "serve", "--workers", "1", "--backend", url]
        process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"], stderr=write, env=PLAIN
        )
        os.close(write)
        try:
            yield
        finally:
            process.kill()
            process.wait()
            os.close(read)

    def leave(self, request: bytes, until: bytes) -> None:
        """A client of the main proxy that leaves in the middle of an answer."""
        with Client(self.main) as client:
            client.send(request)
            client.recv_until(until)

    def load(self) -> None:
        """Of each 15 requests 7 leave, 3 fail, and 3 need a retry."""
        long = "X-Mock-Tokens: 10000\r\nX-Mock-Tokens-Per-Second: 50\r\n"
        self.mocks["dead"].process.kill()
        while not self.stopping.is_set():
            for proxy, model, fields, times in (
                (self.fine, "mock", "", 2),
                (self.main, "chat", "", 2),
                (self.main, "chat", "X-Mock-Fault: 503\r\n", 3),
                (self.main, "dead", "", 3),
            ):
                for _ in range(times):
                    with Client(proxy) as client:
                        client.request(ask(model, fields))
            for _ in range(7):
                self.leave(ask("chat", long), b'"content"')
            self.stopping.wait(0.2)

    def stick(self) -> None:
        """A server that falls silent with all its streams."""
        clients = [self.stack.enter_context(Client(self.main)) for _ in range(2)]
        for client in clients:
            client.send(ask("stuck", "X-Mock-Tokens: 100000\r\nX-Mock-Tokens-Per-Second: 20\r\n"))
            client.recv_until(b'"content"')
        time.sleep(1)
        self.mocks["stuck"].process.send_signal(signal.SIGSTOP)

    def wait_in_line(self) -> None:
        """One at a time, for 10 s: 14 wait, more and more of them, and who comes then is refused. Meanwhile tokens drip."""
        drip = self.stack.enter_context(Client(self.slow))
        drip.send(ask("drip", "X-Mock-TTFT: 0\r\nX-Mock-Tokens: 10000\r\nX-Mock-Tokens-Per-Second: 0.5\r\n"))
        for waiting in (0, 5, 14):
            while self.slow.metric("llmpipe_queue_length", pool="slow") < waiting:
                client = self.stack.enter_context(Client(self.slow))
                client.send(ask("slow"))
                time.sleep(0.05)
            self.wait_value('llmpipe_queue_length{pool="slow"}', lambda value, least=waiting: value >= least)
            if not waiting:
                self.stack.enter_context(Client(self.slow)).send(ask("slow"))
                self.slow.wait_metric("llmpipe_in_flight", 1, backend="slow")
        while not self.slow.metric("llmpipe_queue_refused_total", pool="slow", reason="full"):
            self.stack.enter_context(Client(self.slow)).send(ask("slow"))
            time.sleep(0.05)

    def crowd(self) -> None:
        """65 clients, as many as may be, and three more."""
        for _ in range(65):
            client = self.stack.enter_context(Client(self.crowded))
            assert client.request(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        for _ in range(3):
            with Client(self.crowded) as client:
                assert client.request(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").status == 503
        self.is_crowded.set()

    def leave_nobody_to_read(self) -> None:
        """So many exchanges that their lines do not fit into a pipe and a queue."""
        request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 100
        with socket.create_connection(("127.0.0.1", self.deaf_port), timeout=TIMEOUT) as sock:
            while not self.stopping.is_set() and not self.prometheus.value(
                'llmpipe_access_lines_dropped_total{instance="deaf"}'
            ):
                sock.sendall(request)
                left = 100
                while left:
                    data = sock.recv(1 << 20)
                    assert data
                    left -= data.count(b"HTTP/1.1 200")

    def start_again(self) -> None:
        """A process that ends and is started again, three times; the last one goes on."""
        for left in (3, 2, 1, 0):
            with Proxy("http://127.0.0.1:1", options=["--admin", f"127.0.0.1:{self.again_admin}"]) as proxy:
                started = proxy.metric("process_start_time_seconds")
                query = 'process_start_time_seconds{instance="again"}'
                self.wait_value(query, lambda value, at=started: value == at)
                if not left:
                    self.stopping.wait()

    def flap(self) -> None:
        """A backend that comes and goes, for the crowded proxy: drained and resumed, three times."""
        backend = self.mocks["firm"].url
        path = f"/backends/{urllib.parse.quote(backend, safe='')}"
        while not self.is_crowded.wait(0.1):
            if self.stopping.is_set():
                return
        for _ in range(3):
            for verb, up in (("drain", 0), ("resume", 1)):
                connection = http.client.HTTPConnection("127.0.0.1", self.crowded.admin_port, timeout=TIMEOUT)
                connection.request("POST", f"{path}/{verb}")
                assert connection.getresponse().status == 200
                connection.close()
                self.wait_value('llmpipe_backend_up{instance="crowded"}', lambda value, now=up: value == now)

    def spoil_the_file(self) -> None:
        """A file that cannot be loaded, and SIGHUP."""
        (self.folder / "slow.toml").write_text(
            slow_config(self.mocks["slow"].url, self.mocks["firm"].url, "no_such_key = 1")
        )
        self.slow.signal(signal.SIGHUP)
        self.slow.wait_log("reload failed")


PROVOKED = {
    "LlmpipeDown": {"instance": "down"},
    "LlmpipeRestarts": {"instance": "again"},
    "LlmpipeReloadFailed": {"instance": "slow"},
    "LlmpipeLogLinesDropped": {"instance": "deaf"},
    "LlmpipeConnectionsRefused": {"instance": "crowded", "reason": "max_connections"},
    "LlmpipeClientsNearLimit": {"instance": "crowded"},
    "LlmpipeBackendDown": {"instance": "main", "backend": "dead"},
    "LlmpipePoolDown": {"instance": "main", "pool": "dead"},
    "LlmpipeBackendFlapping": {"instance": "crowded"},
    "LlmpipeBackendFailing": {"instance": "main", "backend": "dead"},
    "LlmpipeBackendHung": {"instance": "main", "backend": "stuck"},
    "LlmpipeAbortCallsFail": {"instance": "main", "backend": "faulty"},
    "LlmpipeErrorsHigh": {"instance": "main"},
    "LlmpipePoolErrorsHigh": {"instance": "main", "pool": "dead"},
    "LlmpipeTtftHigh": {"instance": "slow"},
    "LlmpipeItlHigh": {"instance": "slow"},
    "LlmpipeQueueGrows": {"instance": "slow", "pool": "slow"},
    "LlmpipeQueueWaitHigh": {"instance": "slow", "pool": "slow"},
    "LlmpipeRequestsRefused": {"instance": "slow", "pool": "slow", "reason": "full"},
    "LlmpipeClientsLeave": {"instance": "main"},
    "LlmpipeRetriesHigh": {"instance": "main"},
    "LlmpipeNotScraped": {},
}


@pytest.mark.slow
@MISSING_PROMETHEUS
def test_alerts_fire_and_the_dashboard_has_something_to_show(tmp_path: Path) -> None:
    assert PROVOKED.keys() | NEVER_HERE == ALERTS.keys()
    with contextlib.ExitStack() as stack:
        world = World(tmp_path, stack)
        prometheus = world.prometheus
        for thread in world.threads:
            thread.start()
        for part in (world.stick, world.crowd, world.spoil_the_file):
            part()

        def waited_for(left: dict[str, Any], is_there: Callable[[Any], bool], what: str) -> None:
            """Waits until all of it is there; what is there once may go."""

            def done() -> bool:
                assert world.errors == []
                for name in [name for name, value in left.items() if is_there(value)]:
                    del left[name]
                if left:
                    time.sleep(0.3)
                return not left

            try:
                wait_until(done, 2 * TIMEOUT, what)
            except AssertionError:
                raise AssertionError(
                    f"{what}: {sorted(left)}, of alerts there are {sorted(prometheus.fired)}"
                ) from None

        now = {name for name in PROVOKED if not is_lacking(ALERTS[name]["expr"])} - {"LlmpipeNotScraped"}
        alerts = {name: (name, PROVOKED[name]) for name in now}
        waited_for(alerts, lambda alert: prometheus.has_fired(*alert), "alerts that did not fire")

        shown = {f"{title}: {query}": filled(query) for title, query in queries() if not is_lacking(query)}
        shown |= {name: name for name in RECORDS if not is_lacking(name)}
        for variable in variables():
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found
            query = f'count by ({found[2]}) ({{{found[2]}!=""}} and {filled(found[1])})'
            if not is_lacking(query):
                shown[variable["name"]] = query
        waited_for(shown, prometheus.query, "queries that find nothing")

        # Nothing that is well makes an alert fire, and each one can say what it is about.
        told = [alert for alerts in prometheus.fired.values() for alert in alerts]
        assert [alert["labels"] for alert in told if alert["labels"].get("instance") == "fine"] == []
        for alert in told:
            for text in alert["annotations"].values():
                assert not re.search("<|{{", text), alert  # "<no value>", or an error of the template
            assert alert["labels"]["instance"] in alert["annotations"]["description"]

        prometheus.configure({})
        prometheus.reload()
        waited_for(
            {"it": ("LlmpipeNotScraped", {})}, lambda alert: prometheus.has_fired(*alert), "alerts that did not fire"
        )
