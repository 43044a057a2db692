"""The configuration file: TOML, read as strictly as the command line, all of its faults at once.

Its keys are the names of the settings (`config`), those of the process at the top and those of a pool in its table, and a few
that only a file has: a pool's models and aliases, and the routes. How a value is written is what its flag takes; a number may be
written as one.
"""

import difflib
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import Struct

from llmpipe.config import (
    ABORT_FIELD,
    BACKEND_NUMBERS,
    BACKEND_OPTIONS,
    MOST_IN_FLIGHT,
    AbortCall,
    Backend,
    Pool,
    PoolSettings,
    ProcessSettings,
    Route,
    Secret,
    Settings,
    check_backends,
    make_backend,
    parse_abort_call,
)
from llmpipe.errors import UsageError
from llmpipe.settings import Setting, describe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_MODELS = 1000
"""Models and aliases of one file."""

MODEL_ROOM = 256
"""Bytes of a model's name; no request can name a longer one."""

PROCESS = {setting.key: setting for setting in describe(ProcessSettings)}
POOL = {setting.key: setting for setting in describe(PoolSettings) if setting.name != "backends"}
"""Settings by their key; a point stands where a key is in a table of its own."""

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "s": ((str, int, float), 'a number of seconds, or text such as "30s"'),
    "bytes": ((str, int), 'a number of bytes, or text such as "64MB"'),
    "threads": ((int,), "a whole number"),
    "connections": ((int,), "a whole number"),
    "fields": ((int,), "a whole number"),
    "checks": ((int,), "a whole number"),
    "exchanges": ((int,), "a whole number"),
    "files": ((int,), "a whole number"),
    "requests": ((int,), "a whole number"),
    "answers": ((int,), "a whole number"),
    "status": ((int,), "a whole number"),
    "share": ((int, float), "a number from 0 to 1"),
    "switch": ((bool,), "true or false"),
    "secret": ((dict,), 'the place of the secret, { env = "NAME" } or { file = "PATH" }'),
}
"""What a value of a unit may be; anything else is text."""


class FileError(UsageError):
    """A configuration file cannot work.

    Attributes:
        faults: a line for each.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class _Faults:
    """Collects what is wrong, so that one run shows all of it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.lines: list[str] = []

    def add(self, where: str, text: str) -> None:
        self.lines.append(f"{self._path}: {where}: {text}" if where else f"{self._path}: {text}")

    def read(self, where: str, read: Callable[..., Any], *args: Any) -> Any:
        """What `read` returns; None where it finds a fault, which is noted."""
        try:
            return read(*args)
        except UsageError as error:
            self.add(where, str(error))
            return None


_OF_SEVERAL = {"retry_statuses": frozenset((429, 503))}
"""Defaults of a pool with several backends: one that is busy says so, and the next one is asked (rule L2)."""


class FilePool(Struct, frozen=True, kw_only=True):
    """A pool's table."""

    name: str
    values: dict[str, Any]
    """Of its settings, those that are there."""
    backends: tuple[Backend, ...]
    models: tuple[str, ...]
    aliases: dict[str, str]


class File(Struct, frozen=True, kw_only=True):
    """What a file says."""

    path: str
    values: dict[str, Any]
    """Of the process's settings, those that are there."""
    pools: tuple[FilePool, ...]
    routes: tuple[Route, ...]
    default_pool: str

    def settings(
        self, process: Callable[[dict[str, Any]], ProcessSettings], pool: Callable[[dict[str, Any]], PoolSettings]
    ) -> Settings:
        """All settings.

        Args:
            process: makes those of the process of what the file says, and of what counts more.
            pool: the same of a pool.
        """
        pools = tuple(
            Pool(
                name=found.name,
                settings=pool(
                    {**(_OF_SEVERAL if len(found.backends) > 1 else {}), **found.values, "backends": found.backends}
                ),
                models=found.models,
                aliases=found.aliases,
            )
            for found in self.pools
        )
        base = pool({})
        if pools:
            # Room is made once, for the longest head that any of them takes.
            longest = max(found.settings.max_response_head for found in pools)
            base = pool({"max_response_head": longest})
        return Settings(
            process=process(self.values), pool=base, pools=pools, routes=self.routes, default_pool=self.default_pool
        )


def _read_text(setting: Setting, value: Any) -> Any:
    """One value, or a member of a list, as `Setting.parse` reads it."""
    types, shown = _TYPES.get(setting.unit, ((str,), "text"))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UsageError(f"write {shown}, not {_shown(value)}")
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return _read_secret(value)
    text = format(value, "f").rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    if setting.choices and text not in setting.choices:
        raise UsageError(f"{text!r} is not {setting.range}")
    return setting.parse(text)


def _read_secret(table: dict[str, Any]) -> Secret:
    """Where a secret is. No word of the table is repeated: somebody may have written the secret itself."""
    places = [(key, place) for key, place in table.items() if key in ("env", "file")]
    if len(table) != 1 or not places or not isinstance(places[0][1], str) or not places[0][1].isprintable():
        raise UsageError('write { env = "NAME" } or { file = "PATH" }')
    key, place = places[0]
    if not place:
        raise UsageError(f"{key} is empty")
    return Secret(**{key: place})


def read_value(setting: Setting, value: Any) -> Any:
    """The value of a setting, as a file has it under the setting's key.

    Raises:
        UsageError: it is of another kind, or out of range.
    """
    if not setting.is_list:
        return _read_text(setting, value)
    members = value if isinstance(value, list) else [value]
    return setting.gather([_read_text(setting, member) for member in members])


def _shown(value: Any) -> str:
    """A value as an error may repeat it: a secret may stand in the wrong place, so no more than its kind."""
    kinds = {dict: "a table", list: "an array", str: "text", bool: "true or false", int: "a whole number"}
    return next((name for kind, name in kinds.items() if type(value) is kind), "a value of another kind")


def _unknown(faults: _Faults, where: str, key: str, known: Collection[str]) -> None:
    near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
    faults.add(f"{where}{key}", f"unknown key{hint}")


def _flatten(faults: _Faults, where: str, table: dict[str, Any], settings: Collection[str]) -> dict[str, Any]:
    """A table in which what stands in a table of its own has a key with a point."""
    groups = {key.partition(".")[0] for key in settings if "." in key}
    flat = {}
    for key, value in table.items():
        if key not in groups:
            flat[key] = value
        elif isinstance(value, dict):
            flat.update({f"{key}.{inner}": more for inner, more in value.items()})
        else:
            known = ", ".join(name.partition(".")[2] for name in settings if name.startswith(f"{key}."))
            faults.add(f"{where}{key}", f"write a table with some of {known}")
    return flat


def _read_values(faults: _Faults, where: str, table: dict[str, Any], settings: dict[str, Setting]) -> dict[str, Any]:
    found = {}
    for key in table.keys() & settings.keys():
        faulty = len(faults.lines)
        value = faults.read(f"{where}{key}", read_value, settings[key], table[key])
        if len(faults.lines) == faulty:  # None may be a value: admin = "off"
            found[settings[key].name] = value
    return found


def _read_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(member, str) for member in value):
        raise UsageError('write an array of names, such as ["llama-3.3-70b", "llama-*"]')
    seen: set[str] = set()
    for name in value:
        check_model(name)
        if name in seen:
            raise UsageError(f"{name!r} is there twice")
        seen.add(name)
    return tuple(value)


def check_model(name: str) -> None:
    """Looks whether a model can have this name.

    Raises:
        UsageError: it cannot.
    """
    if not name or not name.isprintable() or '"' in name or "\\" in name or len(name.encode()) > MODEL_ROOM:
        raise UsageError(
            f"{name[:40]!r} is no name of a model: 1 to {MODEL_ROOM} bytes without quotes, backslashes or control characters"
        )
    if "*" in name[:-1]:
        raise UsageError(f"{name!r}: a * stands only at the end of a name")


def _read_aliases(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(target, str) for target in value.values()):
        raise UsageError('write a table of names, such as { "gpt-4o" = "llama-3.3-70b" }')
    for alias, target in value.items():
        check_model(alias)
        check_model(target)
        if target.endswith("*"):
            raise UsageError(f"{alias!r} stands for {target!r}, which is no model but many")
    return value


def _read_abort_call(table: dict[str, Any]) -> AbortCall:
    if unknown := table.keys() - {"call", "field"}:
        raise UsageError(f"on_abort: unknown key {min(unknown)}; there are call, field")
    if not all(isinstance(value, str) for value in table.values()) or "call" not in table:
        raise UsageError('on_abort: write "close", "finish", or { call = "http://HOST:PORT/abort_request" }')
    try:
        return parse_abort_call(table["call"], table.get("field", ABORT_FIELD))
    except UsageError as error:
        raise UsageError(f"on_abort: {error}") from None


def _read_backend(table: Any) -> Backend:
    if not isinstance(table, dict):
        raise UsageError("write a table with a url")
    if not isinstance(table.get("url"), str):
        raise UsageError('it needs a url, such as "http://gpu1:8000"')
    pairs = []
    abort_call = None
    for key, value in table.items():
        if key == "url":
            continue
        if key == "on_abort" and isinstance(value, dict):
            abort_call = _read_abort_call(value)
            continue
        option = key.replace("_", "-")
        if option not in BACKEND_OPTIONS or "-" in key:
            known = [name.replace("-", "_") for name in ("url", *BACKEND_OPTIONS)]
            raise UsageError(f"unknown key {key}; there are {', '.join(known)}")
        wanted = int if option in BACKEND_NUMBERS else str
        if type(value) is not wanted:
            raise UsageError(f"{key}: write {'a whole number' if wanted is int else 'text'}, not {_shown(value)}")
        pairs.append((option, str(value)))
    if "?" in table["url"]:
        raise UsageError("url: options stand in keys of their own here, not behind a ?")
    backend = make_backend(repr(table["url"]) if "@" not in table["url"] else "'***'", table["url"], pairs)
    return replace(backend, abort_call=abort_call)


_POOL_KEYS = {*POOL, "backends", "models", "aliases"}


def _read_pool(faults: _Faults, name: str, table: Any) -> FilePool:
    where = f"pools.{name}."
    if not isinstance(table, dict):
        faults.add(where[:-1], "write a table")
        table = {"backends": [{"url": "http://127.0.0.1"}]}
    table = _flatten(faults, where, table, POOL)
    for key in table.keys() - _POOL_KEYS:
        _unknown(faults, where, key, _POOL_KEYS)
    backends = []
    rows = table.get("backends", [])
    if not isinstance(rows, list) or not rows:
        faults.add(f"{where}backends", f"a pool needs one or more [[pools.{name}.backends]] with a url")
        rows = []
    for number, row in enumerate(rows):
        backend = faults.read(f"{where}backends[{number}]", _read_backend, row)
        if backend is not None:
            backends.append(backend)
    faults.read(f"{where}backends", check_backends, backends)
    if backends and not any(backend.tier == 0 for backend in backends):
        faults.add(f"{where}backends", "none has tier 0, which is asked first")
    return FilePool(
        name=name,
        values=_read_values(faults, where, table, POOL),
        backends=tuple(backends),
        models=faults.read(f"{where}models", _read_names, table.get("models", [])) or (),
        aliases=faults.read(f"{where}aliases", _read_aliases, table.get("aliases", {})) or {},
    )


_ROUTE_KEYS = ("pool", "path", "header")


def _read_route(table: Any, pools: Collection[str]) -> Route:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UsageError('write a table such as { path = "/v1/audio/", pool = "whisper" }')
    if unknown := table.keys() - set(_ROUTE_KEYS):
        raise UsageError(f"unknown key {min(unknown)}; there are {', '.join(_ROUTE_KEYS)}")
    route = Route(pool=table.get("pool", ""), path=table.get("path", ""), header=table.get("header", ""))
    if route.pool not in pools:
        raise UsageError(f"there is no pool {route.pool!r}" if route.pool else "it needs a pool")
    if not route.path and not route.header:
        raise UsageError("it needs a path, a header, or both")
    if route.path and not (route.path.startswith("/") and route.path.isascii() and route.path.isprintable()):
        raise UsageError(f"path: {route.path!r} does not begin with /, or is not plain ASCII")
    name, _, value = route.header.partition(":")
    if route.header and not (name.strip().isascii() and name.strip().replace("-", "").replace("_", "").isalnum()):
        raise UsageError(f"header: {route.header!r} is neither a field's name nor 'name: value'")
    if not value.isprintable():
        raise UsageError("header: there is a control character in it")
    return route


def _check_names(faults: _Faults, pools: Iterable[FilePool]) -> None:
    """No two pools claim a name, an alias leads to a model of its own pool, and a server is the same one everywhere."""
    owners: dict[str, str] = {}
    known: dict[str, tuple[str, Backend]] = {}
    for pool in pools:
        for name in (*pool.models, *pool.aliases):
            if name in owners:
                same = " twice" if owners[name] == pool.name else f", and so does pools.{owners[name]}"
                faults.add(f"pools.{pool.name}", f"it has the model {name!r}{same}")
            owners[name] = pool.name
        for alias, target in pool.aliases.items():
            fits = any(target == name or (name.endswith("*") and target.startswith(name[:-1])) for name in pool.models)
            if pool.models and not fits:
                faults.add(f"pools.{pool.name}.aliases", f"{alias!r} stands for {target!r}, which the pool has not")
        for backend in pool.backends:
            other, first = known.setdefault(backend.name, (pool.name, backend))
            if first != backend:
                faults.add(
                    f"pools.{pool.name}.backends",
                    f"{backend.name} is another server, or has other options, than in pools.{other}; give it another name",
                )


def _read_document(path: str, data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also of TOML, of UTF-8, and of a number with too many digits
        raise FileError([f"{path}: it is not TOML: {error}"]) from None


def _read_pools(faults: _Faults, tables: Any) -> tuple[FilePool, ...]:
    if not isinstance(tables, dict):
        faults.add("pools", "write a table for each pool: [pools.NAME]")
        return ()
    for name in tables:
        if not name.isprintable() or not 0 < len(name.encode()) <= MODEL_ROOM:
            faults.add("pools", f"{name[:40]!r} is no name of a pool")
    pools = tuple(_read_pool(faults, name, table) for name, table in tables.items())
    _check_names(faults, pools)
    if sum(len(pool.models) + len(pool.aliases) for pool in pools) > MOST_MODELS:
        faults.add("pools", f"there are more than {MOST_MODELS} models and aliases")
    return pools


def _read_routes(faults: _Faults, tables: Any, pools: Collection[str]) -> tuple[Route, ...]:
    if not isinstance(tables, list):
        faults.add("routes", "write a [[routes]] table for each")
        return ()
    found = [faults.read(f"routes[{number}]", _read_route, table, pools) for number, table in enumerate(tables)]
    return tuple(route for route in found if route is not None)


def _check_reached(faults: _Faults, file: File) -> None:
    """Every pool is led to."""
    ways = {route.pool for route in file.routes} | {file.default_pool}
    for pool in file.pools if len(file.pools) > 1 else ():
        if not pool.models and not pool.aliases and pool.name not in ways:
            faults.add(f"pools.{pool.name}", "nothing leads to it: give it models, a route, or make it default_pool")


def look(path: str) -> tuple[int, ...] | None:
    """What tells one state of a file from another; None where it is not there, since it is being replaced."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size


def read(path: str) -> File:
    """Reads and checks a file.

    Raises:
        FileError: it cannot be read, or there are faults in it: a line for each.
    """
    try:
        return parse(path, Path(path).read_bytes())
    except OSError as error:
        raise FileError([f"{path}: {error.strerror}"]) from None


def parse(path: str, data: bytes) -> File:
    """Checks what stands in a file.

    Args:
        path: what faults call it.
        data: all of it.

    Raises:
        FileError: there are faults in it: a line for each.
    """
    document = _read_document(path, data)
    faults = _Faults(path)
    known = {*PROCESS, "pools", "routes", "default_pool"}
    for key in document.keys() - known:
        _unknown(faults, "", key, known)
    pools = _read_pools(faults, document.get("pools", {}))
    names = {pool.name for pool in pools}
    routes = _read_routes(faults, document.get("routes", []), names)
    default_pool = document.get("default_pool", "")
    if not isinstance(default_pool, str) or default_pool not in {"", *names}:
        faults.add("default_pool", f"there is no pool {default_pool!r}")
        default_pool = ""
    values = _read_values(faults, "", document, PROCESS)
    file = File(path=path, values=values, pools=pools, routes=routes, default_pool=default_pool)
    if not faults.lines:
        _check_reached(faults, file)  # a fault in a route would count as one of its pool too
    if faults.lines:
        raise FileError(faults.lines)
    return file


def schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors: https://json-schema.org/draft/2020-12."""

    def one(setting: Setting) -> dict[str, Any]:
        types, _ = _TYPES.get(setting.unit, ((str,), ""))
        names = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
        made: dict[str, Any] = {"type": [names[kind] for kind in types]}
        if setting.is_secret:
            made |= {"additionalProperties": False, "minProperties": 1, "maxProperties": 1}
            made["properties"] = {name: {"type": "string", "minLength": 1} for name in ("env", "file")}
        if setting.choices:
            made = {"enum": [int(text) if int in types else text for text in setting.choices]}
        elif setting.bounds is not None and str not in types:
            made["minimum"], made["maximum"] = setting.bounds
        if setting.is_list:
            made = {"type": "array", "items": made}
        return {**made, "description": f"{setting.description} Default: {setting.shown_default}."}

    def nested(settings: dict[str, Setting]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, setting in settings.items():
            group, _, inner = key.rpartition(".")
            if group:
                table = made.setdefault(group, {"type": "object", "additionalProperties": False, "properties": {}})
                table["properties"][inner] = one(setting)
            else:
                made[key] = one(setting)
        return made

    names = {"type": "array", "items": {"type": "string"}}
    backend = {
        "type": "object",
        "additionalProperties": False,
        "required": ["url"],
        "properties": {
            "url": {"type": "string", "description": "http://HOST:PORT, http://[V6]:PORT or unix:/PATH."},
            "name": {"type": "string", "description": "What logs and metrics call it. Default: its URL."},
            "host": {"type": "string", "description": "What it gets in the Host field: client, backend, or a name."},
            "on_abort": {
                "anyOf": [
                    {"enum": ["close", "finish"]},
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["call"],
                        "properties": {
                            "call": {
                                "type": "string",
                                "description": "http://HOST:PORT/PATH, or /PATH at the backend.",
                            },
                            "field": {
                                "type": "string",
                                "description": f"Key of the request id in the JSON that is posted. Default: {ABORT_FIELD}.",
                            },
                        },
                    },
                ],
                "description": "What becomes of an answer whose client has left: it is closed, finished, or closed and a call posted.",
            },
            "max_in_flight": {
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_IN_FLIGHT,
                "description": "Exchanges that it works on at a time at most, of all pools; 0 is no limit.",
            },
            "addresses": {
                "enum": ["all", "first"],
                "description": "What several addresses of its name are: a server each, or one server, the first that answers.",
            },
            "weight": {"type": "integer", "minimum": 1, "description": "How much it takes beside the others."},
            "tier": {
                "type": "integer",
                "minimum": 0,
                "description": "It is asked while none of a lower tier is usable.",
            },
        },
    }
    pool = {
        "type": "object",
        "additionalProperties": False,
        "required": ["backends"],
        "properties": {
            "backends": {"type": "array", "minItems": 1, "items": backend},
            "models": {**names, "description": "Names that requests say; a * at the end stands for anything."},
            "aliases": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "Further names, and the name that the backends get in their place.",
            },
            **nested(POOL),
        },
    }
    route = {
        "type": "object",
        "additionalProperties": False,
        "required": ["pool"],
        "properties": {name: {"type": "string"} for name in _ROUTE_KEYS},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmpipe.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **nested(PROCESS),
            "pools": {"type": "object", "additionalProperties": pool},
            "routes": {"type": "array", "items": route},
            "default_pool": {"type": "string"},
        },
    }
