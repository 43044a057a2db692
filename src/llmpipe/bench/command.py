"""`llmpipe bench`: what was asked for becomes workloads and targets; what was found is printed and written."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmpipe.bench import display, generator, measure, process, replay, report
from llmpipe.bench.measure import Outcome, Schedule, Target
from llmpipe.bench.replay import Replay
from llmpipe.bench.workload import NEEDS_SOURCE, SHAPES, Request, Workload
from llmpipe.config import format_address, parse_address
from llmpipe.errors import UsageError
from llmpipe.sockets import raise_descriptor_limit

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


def split_name(text: str) -> tuple[str, str]:
    """(name, rest) of NAME=REST; the name is empty where there is none."""
    name, separator, rest = text.partition("=")
    if separator and name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return name, rest
    return "", text


def _numeric(host: str, port: int, option: str) -> tuple[str, int]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UsageError(f"{option} {format_address(host, port)}: the host cannot be resolved") from None
    address = found[0][4]
    return str(address[0]), int(address[1])


def parse_proxy(text: str) -> Target:
    """The target of [NAME=]HOST:PORT.

    Raises:
        UsageError: it is no such thing.
    """
    name, address = split_name(text)
    host, port = parse_address(address)
    return Target(name or address, "proxy", _numeric(host, port, "--proxy"), host=format_address(host, port))


def parse_url(text: str) -> tuple[Target, str]:
    """The target and the path of [NAME=]http://HOST[:PORT][/PATH].

    Raises:
        UsageError: it is no such thing.
    """
    name, url = split_name(text)
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise UsageError(f"--url {url!r} is not a URL: {error}") from None
    if parts.scheme == "https":
        raise UsageError(f"--url {url!r}: TLS is not supported; measure the server behind its TLS, with http://")
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"--url {url!r} is not a URL; write http://HOST:PORT/v1/chat/completions")
    path = parts.path if parts.path not in ("", "/") else "/v1/chat/completions"
    if path.rstrip("/").endswith("/v1"):
        path = path.rstrip("/") + "/chat/completions"
    if parts.query:
        path += f"?{parts.query}"
    target = Target(name or parts.netloc, "url", _numeric(parts.hostname, port, "--url"), host=parts.netloc)
    return target, path


def add_pids(targets: Sequence[Target], texts: Sequence[str]) -> None:
    """Gives [NAME=]PID to the targets they belong to.

    Raises:
        UsageError: there is no such process, or no such target.
    """
    proxies = [target for target in targets if target.kind != "direct"]
    for text in texts:
        name, number = split_name(text)
        if not number.isdigit() or not process.exists(int(number)):
            raise UsageError(f"--pid {text}: there is no such process")
        owners = [target for target in proxies if target.name == name] if name else proxies
        if len(owners) != 1:
            raise UsageError(
                f"--pid {text}: say whose process it is, as NAME=PID, with NAME one of "
                f"{', '.join(target.name for target in proxies)}"
            )
        owners[0].pids.append(int(number))


def parse_header(text: str) -> tuple[str, str]:
    """(name, value) of 'Name: value'.

    Raises:
        UsageError: it is no such thing.
    """
    name, separator, value = text.partition(":")
    if not separator or not name.strip() or not text.isprintable() or not text.isascii():
        shown = repr(name) if separator else "(without a colon)"  # which may be a key
        raise UsageError(f"--header {shown}: write 'Name: value'")
    return name.strip(), value.strip()


def _read_request(options: dict[str, Any], path: str) -> Request:
    headers = [parse_header(text) for text in options["header"]]
    if options["api_key"]:
        headers.append(("Authorization", f"Bearer {options['api_key']}"))
    body = None
    if options["body"]:
        try:
            body = Path(options["body"]).read_bytes()
        except OSError as error:
            raise UsageError(f"--body {options['body']}: {error.strerror}") from None
    return Request(path=path, model=options["model"], prompt=options["prompt"], headers=tuple(headers), body=body)


def _check_descriptors(workload: Workload, has_source: bool) -> None:
    limit = raise_descriptor_limit()
    needed = (workload.streams + workload.disconnecting) * (2 if has_source else 1) + 64
    if needed > limit:
        raise UsageError(
            f"--streams {workload.streams}: that takes {needed:,} descriptors, and the limit is {limit:,}; raise it with "
            f"'ulimit -n {needed}', or start fewer"
        )


def _pin(cpu: int | None) -> None:
    if cpu is None:
        return
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        raise UsageError(f"--cpu {cpu}: this process may run on {sorted(os.sched_getaffinity(0))} only") from None


def read_targets(options: dict[str, Any]) -> tuple[list[Target], str]:
    """The targets, the one straight at the source first, and the path of the requests.

    Raises:
        UsageError: they cannot work.
    """
    shape, path = options["shape"], "/v1/chat/completions"
    targets = [parse_proxy(text) for text in options["proxy"]]
    if options["target_only"]:
        targets = [Target(one.name, "url", one.address, host=one.host) for one in targets]
    for text in options["url"]:
        target, path = parse_url(text)
        targets.append(target)
    if not targets and not (shape == "replay" and options["direct"]):
        raise UsageError(
            "nothing to measure; name a proxy whose backend is the bundled source with --proxy HOST:PORT, or an OpenAI "
            "endpoint with --url http://HOST:PORT"
        )
    if shape in NEEDS_SOURCE and any(not target.marked for target in targets):
        usable = ", ".join(name for name in SHAPES if name not in NEEDS_SOURCE)
        raise UsageError(f"{shape} needs the bundled token source behind the target; for others there are {usable}")
    if options["direct"] and (not targets or any(target.marked for target in targets)):
        host, port = options["source"]
        targets.insert(0, Target("direct", "direct", _numeric(host, port, "--source"), host=format_address(host, port)))
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two targets are called {name}; name them, as NAME=HOST:PORT")
    add_pids(targets, options["pid"])
    return targets, path


def read_replay(options: dict[str, Any]) -> Replay | None:
    """What the shape replay plays; None of other shapes.

    Raises:
        UsageError: the options do not belong together, or the file cannot be played.
    """
    if options["shape"] != "replay":
        if options["replay"]:
            raise UsageError(f"--replay is of the shape replay, and this is {options['shape']}")
        return None
    if not options["replay"]:
        raise UsageError("replay needs recordings to play; name their file with --replay FILE")
    return replay.read(Path(options["replay"]), options["replay_speed"])


def run(options: dict[str, Any]) -> int:
    """Runs one shape against the targets; the process's exit code: 0, 1 where a request failed, 130 after Ctrl-C.

    Raises:
        UsageError: what was asked for cannot work.
    """
    targets, path = read_targets(options)
    played = read_replay(options)
    has_source = any(target.marked for target in targets)
    workload = Workload(
        shape=options["shape"],
        streams=options["streams"],
        rate=options["rate"],
        event_size=options["event_size"],
        tokens=options["tokens"],
        arrivals=options["arrivals_per_second"],
        disconnecting=options["disconnecting"],
        timeout=options["timeout"],
        sourced=has_source,
        request=_read_request(options, path),
        replay=played,
    )
    if options["html"]:
        load_page()
    _check_descriptors(workload, has_source)
    _pin(options["cpu"])
    if played and played.left_out:
        every = played.left_out + len(played.tapes)
        print(
            f"{played.name}: {played.left_out} of {every} recordings are left out; their status is not 200",
            file=sys.stderr,
        )
    schedule = Schedule(options["rounds"], options["settle"], options["duration"])
    outcome: Outcome | None = None
    complete = True
    with generator.running(options["source"] if has_source else None) as load:
        try:
            with display.choose(options["quiet"]) as shown:
                for found in measure.run_workload(load, workload, targets, schedule, shown):
                    outcome = found
        except KeyboardInterrupt:
            complete = False
    made = report.make([outcome] if outcome else [], complete, options["cpu"])
    write(made, options["json"], options["html"])
    print(report.text(made))
    if not complete:
        print("interrupted; these are the rounds that were complete", file=sys.stderr)
        return INTERRUPTED
    return 1 if any(report.errors(target) for one in made["workloads"] for target in one["targets"]) else 0


def load_page() -> Any:
    """The module that makes the page.

    Raises:
        UsageError: a library that it needs is not installed.
    """
    try:
        from llmpipe.bench import page  # noqa: PLC0415 - its libraries are an extra
    except ModuleNotFoundError:
        raise UsageError(
            "--html needs libraries that are not installed; install them with: pip install 'llmpipe[bench]'"
        ) from None
    return page


def write(made: report.Report, json_file: str | None, html_file: str | None) -> None:
    """Writes the report where it was asked for.

    Raises:
        UsageError: a file cannot be written.
    """
    for name, text in (
        (json_file, lambda: json.dumps(made, indent=1) + "\n"),
        (html_file, lambda: load_page().render(made)),
    ):
        if name:
            try:
                Path(name).write_text(text())
            except OSError as error:
                raise UsageError(f"{name}: {error.strerror}") from None
