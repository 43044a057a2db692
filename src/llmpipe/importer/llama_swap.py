"""Files of llama-swap: each of its `models` and `peers` becomes a pool.

llmpipe starts no processes, so that the command of a model becomes a comment. The format:
https://github.com/mostlygeek/llama-swap/blob/main/config.example.yaml.
"""

import os
import re
from collections.abc import Iterable

from llmpipe.errors import UsageError
from llmpipe.importer import credentials
from llmpipe.importer.document import Table, kind, read_yaml
from llmpipe.importer.draft import Draft, PoolDraft, printable, split_url

MOST_LETTERS = 64 << 10
"""Of a command with its macros written out: they can hold each other, and double each time."""

FIRST_PORT = 5800
"""Of ${PORT}, where startPort says nothing."""

_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
_ENVIRONMENT = re.compile(r"\$\{env\.([A-Za-z_]\w*)\}")
_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}

# What is shown of the environment of a command; of other variables only the name.
_SHOWN_VARIABLE = re.compile(r"(CUDA|HIP|ROCR|HSA|GGML|OMP|NCCL)_\w+")

_STARTS_NOTHING = "llmpipe starts and stops no processes; every server runs all the time"

_REASONS = {
    "apiKeys": "keys are not carried over. llmpipe passes on the Authorization field of the client, and asks for no key itself",
    "globalTTL": _STARTS_NOTHING,
    "globalConcurrencyLimit": "no limit is one for all pools together; write max_in_flight into each",
    "groups": _STARTS_NOTHING,
    "healthCheckTimeout": 'requests for a server that still loads wait where its pool has queue = { cold_timeout = "2m" }',
    "hooks": _STARTS_NOTHING,
    "matrix": _STARTS_NOTHING,
    "profiles": "a name always leads to the same pool",
    "routing": _STARTS_NOTHING,
    "selectors": "a name always leads to the same pool",
    "unloadTimeout": _STARTS_NOTHING,
}

_MODEL_REASONS = {
    "cmdStop": _STARTS_NOTHING,
    "filters": "requests go on unchanged",
    "ttl": _STARTS_NOTHING,
    "unloadTimeout": _STARTS_NOTHING,
    "unlisted": "GET /v1/models lists every name",
    "apiKey": "keys are not carried over. llmpipe passes on the Authorization field of the client",
}

_TIMEOUTS = {"connect": "connect_timeout", "responseHeader": "ttft_timeout"}

_NO_SETTING = "llmpipe has no such setting"


def read(path: str) -> Draft:
    """What a llama-swap configuration comes to.

    Raises:
        UsageError: it is none.
    """
    document = read_yaml(path)
    secrets = document.secrets
    draft = Draft("Made by llmpipe import llama-swap.")
    draft.top.note("To listen where llama-swap does unless told otherwise:")
    draft.top.note('listen = ["0.0.0.0:8080"]')
    level = document.text("logLevel")
    if level:
        draft.top.set("logLevel", "log_level", _LEVELS.get(level, level))
    port = document.whole("startPort", FIRST_PORT)
    macros = _read_macros(document)
    models = dict(document.table("models").members())
    commands = {}
    for name, model in sorted(models.items()):  # in this order llama-swap gives ports out
        command = _Command(name, model, macros)
        if command.wants_port:
            command.expand("PORT", str(port))
            port += 1
        commands[name] = command
    for name, model in models.items():
        _read_model(draft, name, model, commands[name], secrets)
    for name, peer in document.table("peers").members():
        _read_peer(draft, name, peer)
    for key in document.left():
        draft.end.lost(key, _REASONS.get(key, _NO_SETTING))
    return draft


def _read_macros(table: Table) -> dict[str, str]:
    macros = table.table("macros")
    found = {}
    for name in macros:
        value = macros.raw(name)
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, (dict, list)):
            continue  # stands only where a whole value does, in what is not carried over
        elif not isinstance(value, (str, int, float)):
            raise macros.fault(macros.where(name), f"text or a number is expected here, not {kind(value)}")
        found[name] = "***" if credentials.is_secret(name) else str(value)
    return found


class _Command:
    """The texts of a model that macros stand in."""

    def __init__(self, name: str, model: Table, macros: dict[str, str]) -> None:
        self._model = model
        lines = model.text("cmd").splitlines()
        self.start = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        self.proxy = model.text("proxy", "http://localhost:${PORT}")
        self.check = model.text("checkEndpoint", "/health")
        own = _read_macros(model)
        macros = {**macros, **own}
        for macro in reversed(macros):  # one may use those before it
            self.expand(macro, macros[macro])
        self.expand("MODEL_ID", name)
        self.wants_port = "${PORT}" in self.start

    def expand(self, macro: str, value: str) -> None:
        """Puts the value of a macro into its places.

        Raises:
            UsageError: that makes a text too long.
        """
        mark = f"${{{macro}}}"
        for text in (self.start, self.proxy, self.check):
            if len(text) + text.count(mark) * len(value) > MOST_LETTERS:
                raise self._model.fault(
                    self._model.where("cmd"), f"with its macros it is longer than {MOST_LETTERS >> 10} KB"
                )
        self.start = self.start.replace(mark, value)
        self.proxy = self.proxy.replace(mark, value)
        self.check = self.check.replace(mark, value)


def _read_model(draft: Draft, name: str, model: Table, command: _Command, secrets: set[str]) -> None:
    pool = draft.add_pool(name)
    where = f"models.{name}"
    url = _read_url(draft, pool, f"{where}.proxy", command.proxy)
    target = model.text("useModelName")
    names = [name, *_read_names(model)]
    if url and pool.add_backend(f"{where}.proxy", url):
        for asked in names:
            pool.claim(where, asked, target or asked)
    if command.check.startswith("/"):
        pool.set(f"{where}.checkEndpoint", "health.path", command.check)
    elif command.check and command.check != "none":
        pool.lost(f"{where}.checkEndpoint", 'it is not a path; write health = { path = "/health" }')
    _read_timeouts(pool, model.table("timeouts"))
    limit = model.whole("concurrencyLimit", 0)
    if limit > 0:  # further ones are answered 429 at once
        pool.set(f"{where}.concurrencyLimit", "max_in_flight", limit)
        pool.set(f"{where}.concurrencyLimit", "queue.size", 0)
    _show_command(pool, where, command.start, model.texts("env"), secrets)
    for key in model.left():
        if key not in ("name", "description", "metadata", "capabilities"):  # of its list of models
            pool.lost(model.where(key), _MODEL_REASONS.get(key, _NO_SETTING))


def _read_names(model: Table) -> Iterable[str]:
    """The aliases, each of which is a text or a map with an id."""
    for number, value in enumerate(model.values("aliases")):
        name = value.get("id") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise model.fault(f"{model.where('aliases')}[{number}]", f"a name is expected here, not {kind(name)}")
        yield name


def _read_timeouts(pool: PoolDraft, timeouts: Table) -> None:
    for key, setting in _TIMEOUTS.items():
        seconds = timeouts.number(key)
        if seconds is not None:
            pool.set(timeouts.where(key), setting, seconds)
    for key in timeouts.left():
        pool.lost(timeouts.where(key), _NO_SETTING)


def _read_url(draft: Draft, pool: PoolDraft, where: str, text: str) -> str:
    """The URL of a backend; empty, with a comment, where it is none."""
    for variable in dict.fromkeys(_ENVIRONMENT.findall(text)):
        if variable not in os.environ:
            draft.refuse(pool, where, f"the variable {variable} is not set here; set it and import again")
            return ""
    text = _ENVIRONMENT.sub(lambda found: os.environ[found[1]], text)
    if "${PORT}" in text:
        draft.refuse(pool, where, "it has ${PORT}, which is a number only where the cmd uses it too")
        return ""
    if unknown := _MACRO.search(text):
        draft.refuse(pool, where, f"there is no macro {unknown[1]}")
        return ""
    try:
        url, rest = split_url(text)
    except UsageError as error:
        draft.refuse(pool, where, str(error))
        return ""
    return url + rest


def _show_command(pool: PoolDraft, where: str, command: str, environment: list[str], secrets: set[str]) -> None:
    """A comment with what starts the server, without what is secret in it."""
    lines = [line.strip().removesuffix("\\").strip() for line in command.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return
    pool.lost(f"{where}.cmd", "llmpipe starts no processes; start the server yourself, such as with")
    variables = []
    for text in environment:
        name, _, value = text.partition("=")
        shown = value if _SHOWN_VARIABLE.fullmatch(name) and not credentials.is_secret(name) else "***"
        variables.append(f"{name}={shown}")
    # As one text: an option and its value may stand in two lines.
    masked = credentials.mask("\n".join([*([" ".join(variables)] if variables else []), *lines]), secrets)
    shown_lines = [printable(_ENVIRONMENT.sub(r"${\1}", line)) for line in masked.splitlines()]
    pool.quote([*(f"{line} \\" for line in shown_lines[:-1]), *shown_lines[-1:]])


def _read_peer(draft: Draft, name: str, peer: Table) -> None:
    pool = draft.add_pool(name)
    where = f"peers.{name}"
    url = _read_url(draft, pool, f"{where}.proxy", peer.text("proxy"))
    models = peer.texts("models")
    if url and pool.add_backend(f"{where}.proxy", url):
        for model in models:
            pool.claim(f"{where}.models", model, model)
    _read_timeouts(pool, peer.table("timeouts"))
    for key in peer.left():
        pool.lost(peer.where(key), _MODEL_REASONS.get(key, _NO_SETTING))
