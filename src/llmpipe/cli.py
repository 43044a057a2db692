"""The command line: options, their units and defaults, and one clear line for what cannot work.

Every option has an environment variable. Nothing is decided here but how text becomes a `ServeConfig`.
"""

import asyncio
import difflib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import get_completion_class
from msgspec import Struct

from llmpipe import (
    __version__,
    config_file,
    explain,
    handover,
    log,
    mock,
    reference,
    resolve,
    secret,
    server,
    sockets,
    upgrade,
)
from llmpipe.admin_address import AdminAddress, parse_admin
from llmpipe.background import make_server
from llmpipe.bench import command as bench_command
from llmpipe.bench.workload import DEFAULT_PROMPT, SHAPES
from llmpipe.config import (
    PoolSettings,
    ProcessSettings,
    Secret,
    ServeConfig,
    parse_address,
    parse_duration,
    parse_size,
)
from llmpipe.effective import Effective
from llmpipe.errors import UsageError
from llmpipe.importer import KINDS
from llmpipe.mock_replay import read_replay
from llmpipe.pid_file import read as read_pid_file
from llmpipe.runner import try_out
from llmpipe.settings import UNITS, Setting, describe

F = TypeVar("F", bound=Callable[..., Any])


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


DURATION = _Parsed("duration", parse_duration)
SIZE = _Parsed("size", parse_size)
ADDRESS = _Parsed("host:port", parse_address)


class _FloatRange(click.FloatRange):
    """A range that NaN is not in: it compares with neither end, and click takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is no number", param, ctx)
        return found


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


class SettingOption(_Option):
    """An option that a setting's description makes."""

    def __init__(self, setting: Setting, title: str = "") -> None:
        """Args:
        setting: the described one.
        title: of the options that it stands among in the help.
        """
        self.title = title
        self._setting = setting
        default: Any = setting.default_texts if setting.is_list else next(iter(setting.default_texts), None)
        if setting.computed_default:
            default = setting.field.default_factory
        attributes: dict[str, Any] = {"is_flag": True}
        if not setting.is_switch:
            attributes = {
                "type": click.Choice(setting.choices, case_sensitive=False)
                if setting.choices
                else _Parsed(setting.notation.kind, setting.parse),
                "default": default,
                "show_default": setting.computed_default or bool(default) or "none",
                "multiple": setting.is_list,
            }
        several = " Repeat it for several; in the environment, separated by spaces." if setting.is_list else ""
        super().__init__(
            [setting.name, setting.flag],
            envvar=setting.variable,
            show_envvar=True,
            help=setting.description + several,
            **attributes,
        )

    def resolve_envvar_value(self, ctx: click.Context) -> Any:
        value = super().resolve_envvar_value(ctx)
        return None if value is None else self._setting.parse_variable(value)

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets behind the help (click calls this from 8.2 on)."""
        extra = super().get_help_extra(ctx)
        if self._setting.is_narrow:
            extra["range"] = f"range: {self._setting.range}"
        return extra


def setting_options(struct: type[Struct], title: str = "", only: Collection[str] = ()) -> list[click.Parameter]:
    """An option for each setting of a struct, or for those named."""
    return [SettingOption(setting, title) for setting in describe(struct) if not only or setting.name in only]


def log_options() -> list[click.Parameter]:
    """The options of every command that logs."""
    return setting_options(ProcessSettings, only=("log_level", "log_format"))


def serve_options() -> list[click.Parameter]:
    """An option for each setting."""
    return [
        *setting_options(PoolSettings, "Options of the pool of backends"),
        *setting_options(ProcessSettings, "Options of the process"),
    ]


class _Titled(click.Command):
    """A command whose help has a list of options for each title."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                listed.setdefault(getattr(param, "title", "Other options"), []).append(record)
        for title, records in listed.items():
            with formatter.section(title):
                formatter.write_dl(records)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="llmpipe %(version)s")
def cli() -> None:
    """llmpipe: a streaming reverse proxy in front of LLM inference servers."""


@cli.command(
    "serve",
    cls=_Titled,
    epilog=UNITS,
    params=serve_options(),
)
@option(
    "--config",
    "A TOML file with these settings and with pools; flags and variables count more than what it says.",
    type=click.Path(),
    metavar="FILE",
    show_default=False,
)
@option("--demo", "Run a mock inference server as the backend and print a command to try.", is_flag=True)
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Forward requests to inference servers, each token the moment it arrives.

    SIGTERM, SIGINT or SIGQUIT drains: /readyz fails, listening stops, streams finish; a second one ends at once. SIGHUP
    loads the file again, pools and routes, and resolves the backends' names anew. SIGUSR1 opens the --access-log anew. SIGUSR2 starts
    the same command anew, hands the sockets to it, and drains once it serves. Exit code 0 after a clean drain, 1 if streams were cut, 2 if
    the options cannot work.

    Sockets that a service manager hands over (LISTEN_FDS) are used instead of --listen and, if one is named admin, --admin.
    """
    path = options["config"] or ""
    if options["demo"] and options["backends"]:
        _refuse("--demo brings its own backend; leave out --backend, or leave out --demo")
    if not options["demo"] and not options["backends"] and not path:
        _refuse("no backend; name one with --backend http://HOST:PORT or a file with --config, or try --demo")
    if options["watch"] and not path:
        _refuse("--watch needs a file to watch: --config FILE")
    seen = config_file.look(path)  # before it is read: what changes behind that is seen as a change
    effective = Effective(context, path)
    try:
        settings = effective.load()
    except UsageError as error:
        _refuse_all(error)
    demo = options["demo"]
    # The file of a demo has no pools: there is nothing in it that a reload could change.
    reload = effective.load if path and not demo else None
    config = ServeConfig(settings=settings, demo=demo, path=path, seen=seen, reload=reload)
    shown = {"log_format": settings.process.log_format, "log_level": settings.process.log_level}
    sys.exit(_run_logged(shown, lambda lines: server.run(config, lines)))


@cli.command("check", cls=_Titled, epilog=UNITS, params=serve_options())
@click.argument("file", type=click.Path(), metavar="FILE")
@click.pass_context
def check(context: click.Context, /, file: str, **_: Any) -> None:
    """Check a configuration file, and print what it comes to.

    Takes the flags and variables that `serve` takes, which count more than the file. Every name is resolved. Each setting is
    printed with where it is from. Exit code 0, or 2 with a line for each fault.
    """
    effective = Effective(context, file)
    try:
        settings = effective.load()
        if settings.process.admin_token is not None:
            secret.read(settings.process.admin_token, "admin_token")
        resolver = resolve.Resolver(resolve.Names())
        if faults := asyncio.run(resolver.take(settings.backends)):
            raise config_file.FileError(fault.text for fault in faults)
        try_out(settings, file, resolver)
        lines = list(effective.lines(settings))
    except UsageError as error:
        _refuse_all(error)
    pools, backends = len(settings.all_pools), len(settings.backends)
    click.echo(f"# {file} can be served: {_counted(pools, 'pool')}, {_counted(backends, 'backend')}")
    click.echo("\n".join(lines))


@cli.command("import")
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("file", type=click.Path(), metavar="FILE")
@click.option("--output", type=click.Path(), metavar="FILE", help="Write to this file, which must not exist.")
@click.option("--force", is_flag=True, help="Write over --output if it exists.")
def import_(kind: str, file: str, output: str | None, force: bool) -> None:
    """Make a configuration file of another proxy's.

    KIND is litellm, llama-swap or nginx. What is printed can be served; a comment names each thing that was not carried over, and
    what to do instead where that is known. Keys and passwords are left out. A last line on standard error counts all of it.

    \b
      pip install 'llmpipe[import]'
      llmpipe import litellm config.yaml --output llmpipe.toml

    Exit code 0, or 2 with a line where nothing could be made of the file.
    """
    from llmpipe.importer import command  # noqa: PLC0415 - no other command should wait for it

    try:
        made = command.convert(kind, file)
        if output is None:
            click.echo(made.text.encode(), nl=False)  # UTF-8 whatever the locale is, as TOML wants it
        else:
            command.write(made.text, output, force=force)
    except UsageError as error:
        _refuse_all(error)
    lost = f"{_counted(made.lost, 'thing')} {'was' if made.lost == 1 else 'were'} not carried over"
    click.echo(f"{_counted(made.pools, 'pool')}, {_counted(made.backends, 'backend')}; {lost}", err=True)


@cli.command("upgrade")
@option("--pid-file", "The pid file of the process.", type=click.Path(), metavar="FILE", show_default="none")
@click.option("--pid", type=click.IntRange(2), help="The number of the process, instead of its pid file.")
@click.option(
    "--timeout",
    type=DURATION,
    default="70s",
    show_default=True,
    help="How long to wait, longer than the --upgrade-timeout of the process; 0 is no limit.",
)
@click.pass_context
def upgrade_(context: click.Context, /, pid_file: str | None, pid: int | None, timeout: float) -> None:
    """Replace a running `llmpipe serve` by a new process, of the version that is installed now.

    It sends SIGUSR2. The new process has the same command line and environment, reads the configuration file anew, and takes over
    the listening sockets: no connection is refused, and no stream is cut. If it cannot serve, the old one goes on.

    Exit code 0 once the new process serves, 1 if the old one goes on, with the reason, 2 if there is none to upgrade.
    """
    named = context.get_parameter_source("pid_file") == ParameterSource.COMMANDLINE
    if pid is not None and named:
        _refuse("--pid and --pid-file are two ways to name a process; leave one out")
    if pid is None and not pid_file:
        _refuse("name the process with --pid-file FILE or --pid NUMBER")
    try:
        number = pid if pid is not None else read_pid_file(str(pid_file))
        sys.exit(upgrade.run(number, timeout, click.echo))
    except UsageError as error:
        _refuse(str(error))


@cli.command("explain")
@click.argument("request_id", metavar="ID")
@option(
    "--admin",
    "The admin endpoint of the process: http://HOST:PORT, or HOST:PORT as its own --admin says.",
    type=_Parsed("url", parse_admin),
    default="http://127.0.0.1:9090",
    metavar="URL",
)
@click.option("--json", "as_json", is_flag=True, help="Print what /exchanges says, a line of JSON for each exchange.")
def explain_(request_id: str, admin: AdminAddress, as_json: bool) -> None:
    """Say where the time of one request went, and why it ended as it did.

    ID is its X-Request-ID, which the client got with the answer and which stands in the access line; of a long one, 8 characters or
    more from its beginning. A running `llmpipe serve` is asked, which keeps the last --exchanges-kept exchanges.

    Exit code 0, 1 if the process does not know the request, 2 if it cannot be asked.
    """
    try:
        missing = explain.run(request_id, admin, click.echo, as_json=as_json)
    except UsageError as error:
        _refuse(str(error))
    if missing:
        click.echo(f"Error: {missing}", err=True)
        sys.exit(1)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@cli.group("config")
def config_() -> None:
    """Print what a configuration file may say."""


@config_.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(json.dumps(config_file.schema(), indent=2))


@config_.command("reference")
def config_reference() -> None:
    """Print the page docs/configuration.md, of every setting, in Markdown."""
    click.echo(reference.page(), nl=False)


@cli.command("mock", epilog=UNITS, params=log_options())
@mock_option(
    "--listen",
    "Where it listens; port 0 takes a free one.",
    type=ADDRESS,
    default="127.0.0.1:8000",
    metavar="HOST:PORT",
)
@mock_option(
    "--tokens-per-second", "Pace of each answer; 0 is as fast as it can.", type=_FloatRange(0, 1e6), default=50.0
)
@mock_option("--ttft", "Time before the first token.", type=DURATION, default="200ms")
@mock_option(
    "--tokens",
    "Tokens in an answer; a request's max_tokens may ask for fewer.",
    type=click.IntRange(0, mock.MAX_TOKENS),
    default=64,
)
@mock_option(
    "--model",
    "Name of a model. Repeat it for several; in the environment, separated by spaces. A single model answers to any name; "
    "if there are several, a request for another one is answered with 404.",
    multiple=True,
    default=(mock.DEFAULT_MODEL,),
)
@mock_option(
    "--slots",
    "Requests that are worked on at once; the others wait in a queue, first come, first served. 0 is any number.",
    type=click.IntRange(0),
    default=0,
)
@mock_option(
    "--queue",
    "Requests that may wait for a slot: a number, or unlimited. One more is answered with 503 at once. It has no effect "
    "without --slots.",
    type=_Parsed("integer", mock.parse_queue),
    default=mock.UNLIMITED,
    metavar="INTEGER|unlimited",
)
@mock_option(
    "--prefill-rate",
    "Prompt tokens that are read per second; a token is 4 bytes of text. The first token comes --ttft + prompt tokens / "
    "prefill-rate seconds after the request has its slot. 0 reads a prompt in no time.",
    type=_FloatRange(0, 1e9),
    default=0.0,
)
@mock_option(
    "--decode-slowdown",
    "Makes tokens slower under load: each takes (1 + slowdown x other requests that are worked on) / tokens-per-second "
    "seconds, so that the total throughput levels off at tokens-per-second / slowdown. 0 is no slowdown.",
    type=_FloatRange(0, 1e3),
    default=0.0,
)
@mock_option(
    "--faults/--no-faults",
    "Whether X-Mock-Fault has an effect. A proxy that tries a request again sends the header again, so failover needs a "
    "backend that ignores it.",
    default=True,
)
@mock_option(
    "--replay",
    "A file of recorded answers. Each POST, whatever its path, is answered with the next of them, over and over: its status, "
    "its content type, and its body in the same pieces at the same times. The options of made answers have no effect.",
    type=click.Path(),
    metavar="FILE",
    show_default="made answers",
)
@mock_option(
    "--replay-speed",
    "How many times faster than recorded --replay plays back; 0 waits for nothing.",
    type=_FloatRange(0, 1e6),
    default=1.0,
)
def mock_(**options: Any) -> None:
    """Run a mock inference server: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    The request headers X-Mock-Tokens-Per-Second, X-Mock-TTFT and X-Mock-Tokens change one answer; X-Mock-Fault breaks it:

    \b
      die[;after=N]                  reset the connection (RST) before the head, or after N tokens of a stream
      die-process[;after=N]          the same, but end the whole server, with exit code 1
      hang[;after=N]                 the same, but send nothing more and keep the connection and the slot
      slow-head[;seconds=N]          send the head N seconds late (default: 1)
      answer-before-body[;status=N]  send an error (default: 413) without reading the request's body
      STATUS[;retry-after=N]         send an error with this status, 400 to 599

    Of what --replay plays back, N counts pieces.
    """
    pace = mock.Pace(options["tokens_per_second"], options["ttft"], options["tokens"])
    capacity = mock.Capacity(options["slots"], options["queue"], options["prefill_rate"], options["decode_slowdown"])

    def run(_: log.Log) -> int:
        replay = read_replay(Path(options["replay"]), options["replay_speed"]) if options["replay"] else None
        with sockets.bind_now(options["listen"], "--listen") as listener:
            app = mock.MockApp(pace, capacity, options["model"], faults=options["faults"], may_exit=True, replay=replay)
            mocked = make_server(app)

            def end(*_: object) -> None:
                mocked.should_exit = True

            # uvicorn has handlers of its own while it runs, but raises each signal again at its end: this one gets those,
            # and those that come before it runs.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, end)
            log.info("listening", address=sockets.bound_address(listener), model=",".join(options["model"]))
            mocked.run(sockets=[listener])
        log.info("stopped")
        return 0

    sys.exit(_run_logged(options, run))


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
    type=_FloatRange(0, 1e6),
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
    "--arrivals-per-second", "Requests a second of the shape arrivals.", type=_FloatRange(0.01, 1e6), default=100.0
)
@bench_option(
    "--disconnecting",
    "Clients of the shape disconnect that leave, over and over.",
    type=click.IntRange(1, 10000),
    default=8,
)
@bench_option(
    "--replay", "A file of recordings, of the shape replay.", type=click.Path(), metavar="FILE", show_default="none"
)
@bench_option(
    "--replay-speed", "How many times as fast they are played.", type=click.FloatRange(0.01, 1000), default=1.0
)
@bench_option(
    "--timeout", "How long a request may take, beside what a recording takes; 0 is off.", type=DURATION, default="60s"
)
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
def bench(**options: Any) -> None:
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
      replay      recorded answers, played back to many clients at once

    \b
    A proxy: start it with the token source as its only backend, then measure.
      llmpipe serve --backend http://127.0.0.1:9000 &
      llmpipe bench paced --proxy 127.0.0.1:8080 --pid $!

    \b
    An inference server, through anything or nothing:
      llmpipe bench requests --url http://127.0.0.1:8000 --model NAME --tokens 128 --streams 8

    \b
    What was recorded, with the time of each piece; without --proxy it measures how exact the replay is.
      llmpipe bench replay --replay answers.jsonl --streams 1000 --proxy 127.0.0.1:8080

    Exit code 0, 1 where a request failed, 2 if the options cannot work, 130 after Ctrl-C, which prints what there is.
    """
    try:
        sys.exit(bench_command.run(options))
    except UsageError as error:
        _refuse(str(error))


@cli.command("top", epilog=UNITS)
@option(
    "--admin",
    "The proxy's admin endpoint: a URL, HOST:PORT or unix:/PATH.",
    default="127.0.0.1:9090",
    metavar="URL",
)
@option(
    "--interval",
    "How long between two looks, from 100ms to 60s.",
    prefix="LLMPIPE_TOP_",
    type=DURATION,
    default="1s",
)
@click.option("--token-file", type=click.Path(), metavar="FILE", help="A file with the admin token, for drains.")
@click.option(
    "--token",
    envvar="LLMPIPE_ADMIN_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="The token itself. Other users of the machine can see it on a command line: better use a file or the variable.",
)
@click.option("--once", is_flag=True, help="Print one snapshot as plain text.")
def top(admin: str, interval: float, token_file: str | None, token: str | None, once: bool) -> None:
    """Watch a running proxy: its backends, its streams, what failed.

    d drains the selected backend, r resumes it, Enter shows one exchange, / filters, s sorts, ? lists all keys.

    \b
      pip install 'llmpipe[top]'
      llmpipe top --admin http://127.0.0.1:9090

    Exit code 0, or 2 if the options cannot work, or with --once if the endpoint gives no answer.
    """
    from llmpipe.top import command  # noqa: PLC0415 - no other command should wait for it

    try:
        if token_file:
            token = secret.read(Secret(file=token_file), "--token-file").decode()
        elif token:
            token = secret.check(token.encode(errors="surrogateescape"), "--token").decode()
        sys.exit(command.run(admin, interval, token or "", once=once))
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


def _run_logged(options: dict[str, Any], run: Callable[[log.Log], int]) -> int:
    """Runs with a log that is written to its end, whatever happens."""
    lines = log.Log(options["log_format"], options["log_level"])
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
    known.add(handover.VARIABLE)
    for name, value in sorted(environment.items()):
        if not name.startswith("LLMPIPE_") or name in known or _SERVICE.fullmatch(name):
            continue
        if not (_SERVICE_PORT.fullmatch(name) and _SERVICE_URL.fullmatch(value)):
            yield name


def _refuse(text: str) -> NoReturn:
    """Ends the process with one line, whatever stands in `text`."""
    _say_fault(text)
    sys.exit(2)


def _say_fault(text: str) -> None:
    line = " ".join(text.split())
    click.echo(f"Error: {line}", err=True)
    handover.tell_fault(os.environ, line)


def _refuse_all(error: UsageError) -> NoReturn:
    """The same, with a line for each fault of a file."""
    faults = error.faults if isinstance(error, config_file.FileError) else (str(error),)
    for text in faults[:-1]:
        _say_fault(text)
    _refuse(faults[-1])


def _open_standard_descriptors() -> None:
    """Opens /dev/null as what is closed of descriptors 0 to 2: a socket with such a number would be taken for stderr, by the
    log and by every library."""
    descriptor = 0
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, descriptor <= 2)  # a process that takes over has them too
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
