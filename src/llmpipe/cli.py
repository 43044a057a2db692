"""The command line: options, their units and defaults, and one clear line for what cannot work.

Every option has an environment variable. Nothing is decided here but how text becomes a `Serve`.
"""

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import get_completion_class

from llmpipe import __version__, log, mock, server
from llmpipe._pipe import MAX_BACKENDS, MAX_LISTENERS, Engine
from llmpipe.background import make_server
from llmpipe.bench import command as bench_command
from llmpipe.bench.work import DEFAULT_PROMPT, SHAPES
from llmpipe.config import (
    TRUSTED_BY_DEFAULT,
    Serve,
    Settings,
    format_address,
    parse_address,
    parse_backends,
    parse_duration,
    parse_size,
    parse_trusted,
)
from llmpipe.cpus import usable_cpus
from llmpipe.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

UNITS = (
    "Durations are seconds, or a number with ms, s, m or h behind it; sizes are bytes, or a number with KB, MB or GB "
    "(of 1024) behind it."
)


class _Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3 only
    """A parameter that a function of `config` reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def _address_or_off(text: str) -> tuple[str, int] | None:
    return None if text == "off" else parse_address(text)


DURATION = _Parsed("duration", parse_duration)
SIZE = _Parsed("size", parse_size)
ADDRESS = _Parsed("host:port", parse_address)
ADDRESS_OR_OFF = _Parsed("host:port|off", _address_or_off)


class _Option(click.Option):
    """An option whose variable may have white space at its ends: a line end of a file, of a YAML block, of a shell's paste."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return value.strip() or None if value else None


def option(name: str, help: str, prefix: str = "LLMPIPE_", **attributes: Any) -> Callable[[F], F]:
    """An option with its environment variable and its default in the help."""
    attributes.setdefault("show_default", True)
    variable = prefix + name.partition("/")[0].lstrip("-").replace("-", "_").upper()
    return click.option(name, cls=_Option, envvar=variable, show_envvar=True, help=help, **attributes)


def mock_option(name: str, help: str, **attributes: Any) -> Callable[[F], F]:
    """An option of the mock: it shares no variable with the proxy, which may run in the same environment."""
    return option(name, help, prefix="LLMPIPE_MOCK_", **attributes)


def bench_option(name: str, help: str, **attributes: Any) -> Callable[[F], F]:
    """An option of the benchmark, with variables of its own too."""
    return option(name, help, prefix="LLMPIPE_BENCH_", **attributes)


def log_options(command: F) -> F:
    """The options of every command that logs."""
    level = option(
        "--log-level",
        "Least important lines written. Access lines are info; above it they are not even made.",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        default="info",
    )
    style = option("--log-format", "How lines look.", type=click.Choice(["text", "json"]), default="text")
    return style(level(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="llmpipe %(version)s")
def cli() -> None:
    """llmpipe: a streaming reverse proxy in front of LLM inference servers."""


@cli.command("serve", epilog=UNITS)
@option(
    "--listen",
    "Where clients connect; repeat it for several. Port 0 takes a free one; [::] is every address, of IPv4 too. In the "
    "environment, separated by spaces.",
    type=ADDRESS,
    default=["127.0.0.1:8080"],
    multiple=True,
    metavar="HOST:PORT",
)
@option(
    "--backend",
    "An inference server: http://HOST:PORT, http://[V6]:PORT or unix:/PATH. Repeat it for several: the one with the fewest "
    "requests in flight is chosen. ?on-abort=finish behind it lets it finish an answer whose client has left; ?host=backend gives "
    "it its own name in the Host field (Ollama wants that), ?host=NAME another one. In the environment, separated by spaces.",
    multiple=True,
    metavar="URL",
    show_default=False,
)
@option(
    "--workers", "Engine threads.", type=click.IntRange(1, 256), default=usable_cpus, show_default="the CPUs it may use"
)
@option(
    "--admin",
    "Where /metrics, /healthz and /readyz are, or 'off'.",
    type=ADDRESS_OR_OFF,
    default="127.0.0.1:9090",
    metavar="HOST:PORT",
)
@option(
    "--admin-host",
    "A name under which the admin endpoint may be asked, beside addresses and localhost; repeat it. /metrics, /healthz and "
    "/readyz need none. In the environment, separated by spaces.",
    multiple=True,
    metavar="NAME",
    show_default=False,
)
@option("--connect-timeout", "Time for a backend to accept a connection; 0 is off.", type=DURATION, default="5s")
@option(
    "--ttft-timeout",
    "Time from the whole request received to the first byte of content, one for all backends that are tried; 0 is off.",
    type=DURATION,
    default="600s",
)
@option(
    "--idle-timeout",
    "Longest gap between two bytes of content, or of a request body; 0 is off.",
    type=DURATION,
    default="300s",
)
@option("--total-timeout", "Longest exchange; 0 is off.", type=DURATION, default="0")
@option(
    "--send-timeout",
    "How long a client may take no byte of its answer, or either side of a tunnel none; 0 is off.",
    type=DURATION,
    default="60s",
)
@option(
    "--head-timeout",
    "Time for a whole request head, and for the first byte of a new connection; 0 is off.",
    type=DURATION,
    default="10s",
)
@option(
    "--keepalive-timeout", "How long an idle client connection stays open; 0 is for ever.", type=DURATION, default="75s"
)
@option(
    "--upstream-idle-timeout",
    "How long an idle backend connection is kept, less than the backend keeps it (uvicorn: 5 s); 0 keeps none.",
    type=DURATION,
    default="4s",
)
@option(
    "--dead-peer-timeout",
    "How long a client or backend may be silent in the network (no answer to keepalive probes, or to bytes sent) before it "
    "counts as gone, at most a day; 0 is off.",
    type=DURATION,
    default="45s",
)
@option(
    "--max-connections",
    "Client connections that are served at the same time; further ones are answered 503. 0 is no limit but the "
    "descriptors': then accepting pauses.",
    type=click.IntRange(0),
    default=0,
)
@option(
    "--max-connections-per-ip",
    "The same for one client address (an IPv6 one: its /64), trusted proxies excepted; further ones are answered 429. 0 is no "
    "limit.",
    type=click.IntRange(0),
    default=0,
)
@option(
    "--trusted-proxies",
    "Who is believed when it tells of the client behind it (X-Forwarded-*): addresses and networks, 'unix' for Unix sockets, "
    "'*' for everybody or 'none'. Repeat it, or separate them by commas or spaces.",
    multiple=True,
    default=TRUSTED_BY_DEFAULT,
    metavar="NETWORK",
)
@option("--drain-timeout", "Time for streams to finish after SIGTERM; 0 is no limit.", type=DURATION, default="10m")
@option("--max-request-line", "Longest request line; longer is answered 414.", type=SIZE, default="8KB")
@option("--max-head", "Longest request head; longer is answered 431.", type=SIZE, default="32KB")
@option(
    "--max-fields", "Most fields in a request head; more is answered 431.", type=click.IntRange(1, 1024), default=128
)
@option("--max-response-head", "Longest head of a backend's answer; longer is a 502.", type=SIZE, default="64KB")
@option(
    "--max-response-fields",
    "Most fields in the head of a backend's answer; more is a 502.",
    type=click.IntRange(1, 1024),
    default=512,
)
@option("--max-body", "Longest request body; longer is answered 413. 0 is off.", type=SIZE, default="64MB")
@option(
    "--failover-body",
    "How much of a request is kept to send it again; longer ones are sent once, on a fresh connection.",
    type=SIZE,
    default="1MB",
)
@option(
    "--kept-memory",
    "How much is kept of all requests together, those of up to 8 KB not counted; beyond it a request is sent once only. 0 is no "
    "limit.",
    type=SIZE,
    default="256MB",
)
@option(
    "--retry-status",
    "Answer of a backend after which the next one is asked, within the retry budget; repeat it. In the environment, separated by "
    "spaces.",
    type=click.Choice(["429", "502", "503"]),
    multiple=True,
    show_default="none",
)
@option(
    "--on-midstream-error",
    "When a backend fails inside an event stream: just close, or write one error event first.",
    type=click.Choice(["close", "event"]),
    default="close",
)
@option(
    "--comments-count-as-content",
    "Comments in an event stream, which some engines send while they work on the prompt, count for the TTFT and idle time-outs.",
    is_flag=True,
)
@option(
    "--log-query",
    "Show queries of requests in access lines as they came; else only the values of a few parameters that carry no key.",
    is_flag=True,
)
@option("--demo", "Run a mock inference server as the backend and print a command to try.", is_flag=True)
@log_options
def serve(**given: Any) -> None:
    """Forward requests to inference servers, each token the moment it arrives.

    SIGTERM, SIGINT or SIGQUIT drains: /readyz fails, listening stops, streams finish; a second one ends at once. SIGHUP
    resolves the backends' names anew; SIGUSR1 and SIGUSR2 are ignored. Exit code 0 after a clean drain, 1 if streams were
    cut, 2 if the options cannot work.

    Sockets that a service manager hands over (LISTEN_FDS) are used instead of --listen and, if one is named admin, --admin.
    """
    if given["demo"] and given["backend"]:
        _refuse("--demo brings its own backend; leave out --backend, or leave out --demo")
    if not given["demo"] and not given["backend"]:
        _refuse("no backend; name one with --backend http://HOST:PORT, or try --demo")
    try:
        config = _read_serve(given)
    except UsageError as error:
        _refuse(str(error))
    sys.exit(_run_logged(given, lambda lines: server.run(config, lines)))


def _read_serve(given: dict[str, Any]) -> Serve:
    trust = parse_trusted(given.pop("trusted_proxies"))
    names = Settings.__dataclass_fields__.keys() & given.keys()
    settings = Settings(
        **{name: given[name] for name in names},
        trusted_proxies=trust.networks,
        trust_unix=trust.unix,
        retry_statuses=frozenset(map(int, given["retry_status"])),
        midstream_error_event=given["on_midstream_error"] == "event",
        access_records=given["log_level"] in ("debug", "info"),
    )
    try:
        Engine(settings).close()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Serve(
        listen=_once(given["listen"]),
        admin=given["admin"],
        admin_hosts=given["admin_host"],
        backends=parse_backends(given["backend"], MAX_BACKENDS),
        workers=given["workers"],
        max_connections=given["max_connections"],
        max_connections_per_ip=given["max_connections_per_ip"],
        drain_timeout=given["drain_timeout"],
        demo=given["demo"],
        log_query=given["log_query"],
        settings=settings,
    )


def _once(addresses: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The addresses to listen at, of which none may be named twice, but for free ports."""
    for address in addresses:
        if address[1] and addresses.count(address) > 1:
            raise UsageError(f"--listen {format_address(*address)} is named twice")
    if len(addresses) > MAX_LISTENERS:
        raise UsageError(
            f"{len(addresses)} addresses to listen at are more than the {MAX_LISTENERS} that one proxy can have"
        )
    return addresses


@cli.command("mock", epilog=UNITS)
@mock_option(
    "--listen",
    "Where it listens; port 0 takes a free one.",
    type=ADDRESS,
    default="127.0.0.1:8000",
    metavar="HOST:PORT",
)
@mock_option(
    "--tokens-per-second", "Pace of each answer; 0 is as fast as it can.", type=click.FloatRange(0, 1e6), default=50.0
)
@mock_option("--ttft", "Time before the first token.", type=DURATION, default="200ms")
@mock_option(
    "--tokens",
    "Tokens in an answer; a request's max_tokens may ask for fewer.",
    type=click.IntRange(0, mock.MAX_TOKENS),
    default=64,
)
@mock_option("--model", "Name of the model.", default="mock")
@log_options
def mock_(**given: Any) -> None:
    """Run a mock inference server: /v1/chat/completions, /v1/completions, /v1/models, /health.

    The request headers X-Mock-Tokens-Per-Second, X-Mock-TTFT and X-Mock-Tokens change one answer.
    """
    pace = mock.Pace(given["tokens_per_second"], given["ttft"], given["tokens"], given["model"])

    def run(_: log.Log) -> int:
        with server.bind_now(given["listen"], "--listen") as listener:
            mocked = make_server(mock.make_app(pace))

            def end(*_: object) -> None:
                mocked.should_exit = True

            # uvicorn has handlers of its own while it runs, but raises each signal again at its end: this one gets those,
            # and those that come before it runs.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, end)
            log.info("listening", address=server.bound_address(listener), model=pace.model)
            mocked.run(sockets=[listener])
        log.info("stopped")
        return 0

    sys.exit(_run_logged(given, run))


@cli.command("bench", epilog=UNITS)
@click.argument("shape", type=click.Choice(list(SHAPES)), metavar="SHAPE")
@bench_option(
    "--proxy",
    "A proxy whose backend is the bundled token source; repeat it for several.",
    multiple=True,
    metavar="[NAME=]HOST:PORT",
    show_default=False,
)
@bench_option(
    "--url",
    "An OpenAI-compatible endpoint with tokens of its own; repeat it for several.",
    multiple=True,
    metavar="[NAME=]URL",
    show_default=False,
)
@bench_option(
    "--source",
    "Where the bundled token source listens: the backend to give to the proxy.",
    type=ADDRESS,
    default="127.0.0.1:9000",
    metavar="HOST:PORT",
)
@bench_option("--target-only", "Start no token source: what is behind --proxy has backends of its own.", is_flag=True)
@bench_option(
    "--direct/--no-direct",
    "Measure the same load straight at the source in each round, for what a proxy adds.",
    default=True,
)
@bench_option(
    "--pid",
    "A process of a target; its CPU time and memory, and its descendants', are measured. Repeat it.",
    multiple=True,
    metavar="[NAME=]PID",
    show_default=False,
)
@bench_option("--streams", "Streams, or clients.", type=click.IntRange(0, 1000000), default=100)
@bench_option(
    "--rate",
    "Events a second of each stream; 0 sends short answers in one piece.",
    type=click.FloatRange(0, 1e6),
    default=25.0,
)
@bench_option("--event-size", "Length of an event.", type=SIZE, default="200")
@bench_option(
    "--tokens",
    "Events of an answer that ends by itself; with --url, max_tokens.",
    type=click.IntRange(1, 1000000),
    default=1,
)
@bench_option(
    "--arrivals-per-second", "Requests a second of the shape arrivals.", type=click.FloatRange(0.01, 1e6), default=100.0
)
@bench_option(
    "--leavers", "Clients of the shape disconnect that leave, over and over.", type=click.IntRange(1, 10000), default=8
)
@bench_option("--timeout", "How long a request may take; 0 is off.", type=DURATION, default="60s")
@bench_option("--duration", "How long each round measures.", type=DURATION, default="10s")
@bench_option("--settle", "How long each round runs before it measures.", type=DURATION, default="2s")
@bench_option("--rounds", "Rounds; targets take turns in each.", type=click.IntRange(1, 1000), default=3)
@bench_option("--cpu", "Run the generator on this CPU only.", type=click.IntRange(0), show_default="any")
@bench_option("--model", "Model that requests name.", default="bench")
@bench_option("--prompt", "What requests ask.", default=DEFAULT_PROMPT)
@bench_option("--body", "A file with the request's body, instead of model, prompt and tokens.", type=click.Path())
@bench_option(
    "--header", "A field of the request; repeat it.", multiple=True, metavar="'NAME: VALUE'", show_default=False
)
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Sent as a bearer token.", metavar="KEY")
@bench_option("--json", "Write all that was measured.", type=click.Path(dir_okay=False))
@bench_option("--html", "Write a page with tables and plots.", type=click.Path(dir_okay=False))
@bench_option("--quiet", "Show no progress.", is_flag=True)
def bench(**given: Any) -> None:
    """Measure proxies and inference servers with streams of tokens.

    \b
    SHAPE is one of
      paced       streams that send events at a steady pace
      requests    clients that ask again as soon as they are answered, on the same connection
      arrivals    requests at a given rate, whether or not those before were answered
      flood       streams without a pace, as fast as they are taken
      hold        streams that stay silent after their first event: memory
      churn       clients that open a new connection for each request
      disconnect  clients that leave in random phases: how soon the backend is told

    \b
    A proxy: start it with the token source as its only backend, then measure.
      llmpipe serve --backend http://127.0.0.1:9000 &
      llmpipe bench paced --proxy 127.0.0.1:8080 --pid $!

    \b
    An inference server, through anything or nothing:
      llmpipe bench requests --url http://127.0.0.1:8000 --model NAME --tokens 128 --streams 8

    Exit code 0, 1 where a request failed, 2 if the options cannot work, 130 after Ctrl-C, which prints what there is.
    """
    try:
        sys.exit(bench_command.run(given))
    except UsageError as error:
        _refuse(str(error))


@cli.command("version")
def version() -> None:
    """Print the version."""
    click.echo(f"llmpipe {__version__}")


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands and options in a shell.

    For bash: eval "$(llmpipe completion bash)".
    """
    complete = get_completion_class(shell)
    assert complete is not None, "click has all three"
    click.echo(complete(cli, {}, "llmpipe", "_LLMPIPE_COMPLETE").source())


def _run_logged(given: dict[str, Any], run: Callable[[log.Log], int]) -> int:
    """Runs with a log that is written to its end, whatever happens."""
    lines = log.Log(given["log_format"], given["log_level"])
    for name in _unknown_variables(os.environ):
        near = difflib.get_close_matches(name, _variables(), 1)
        log.warning("unknown environment variable", variable=name, near=near[0] if near else None)
    try:
        return run(lines)
    except UsageError as error:
        lines.close()
        _refuse(str(error))
    finally:
        lines.close()


# What Kubernetes puts into every container for a Service called llmpipe, or llmpipe-something. That of its port is a URL: where
# it is none, somebody has written it who expects it to be read.
_SERVICE = re.compile(r"LLMPIPE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_PORT = re.compile(r"LLMPIPE_(\w+_)?PORT")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")


def _variables() -> set[str]:
    """Environment variables that some option reads."""
    return {str(param.envvar) for command in cli.commands.values() for param in command.params if param.envvar}


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables that look like ours and that nothing reads: a misspelt option is silent otherwise."""
    known = {*_variables(), "LLMPIPE_BUILD", "LLMPIPE_PROBE"}  # the last two are read where it is built and tested
    for name, value in sorted(environment.items()):
        if not name.startswith("LLMPIPE_") or name in known or _SERVICE.fullmatch(name):
            continue
        if not (_SERVICE_PORT.fullmatch(name) and _SERVICE_URL.fullmatch(value)):
            yield name


def _refuse(text: str) -> NoReturn:
    """Ends the process with one line, whatever stands in `text`."""
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    sys.exit(2)


def _open_standard_descriptors() -> None:
    """Opens /dev/null as what is closed of descriptors 0 to 2: a socket with such a number would be taken for stderr, by the
    log and by every library."""
    descriptor = 0
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def main() -> None:
    """The command `llmpipe`."""
    _open_standard_descriptors()
    try:
        # By itself click would print its usage, and a hint, before each error.
        sys.exit(cli.main(sys.argv[1:] or ["--help"], prog_name="llmpipe", standalone_mode=False))
    except click.ClickException as error:
        _refuse(error.format_message())
    except click.Abort:  # an interrupt before there was anything to end well
        sys.exit(1)
