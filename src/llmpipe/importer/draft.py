"""The file that an import makes: TOML with a comment at the place of each thing that was not carried over.

What is put into a draft is checked at once, by the functions that check a file: what cannot work becomes a comment, and the rest
loads.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmpipe import config_file
from llmpipe._pipe import MAX_BACKENDS, MAX_MEMBERS
from llmpipe.config import MOST_IN_FLIGHT, Backend, check_backends, make_backend
from llmpipe.errors import UsageError
from llmpipe.importer import credentials
from llmpipe.settings import Setting

WIDTH = 120

Value = str | int | float | bool | list[str] | list[int] | dict[str, str] | dict[str, "Value"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(text: str) -> str:
    """A basic string (TOML 1.0, "String"). JSON's escapes are TOML's too; TOML wants one for DEL besides."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    return key if _BARE.fullmatch(key) else toml_text(key)


def toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{toml_key(key)} = {toml_value(more)}' for key, more in value.items())} }}"
    return str(value)


def printable(text: str) -> str:
    """In one line, without what a TOML comment may not have in it (TOML 1.0, "Comment"), nor a lone surrogate."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def split_url(text: str) -> tuple[str, str]:
    """(URL of a backend, path behind it) of the URL of a server.

    Raises:
        UsageError: no backend can have it. The text repeats nothing of it, since a key may stand anywhere in it.
    """
    if not text.isprintable() or " " in text:
        raise UsageError("the URL has white space or a control character in it")
    try:
        parts = urlsplit(text)
        scheme, netloc, path = parts.scheme, parts.netloc, parts.path
    except ValueError:
        raise UsageError("it is not a URL; write http://HOST:PORT") from None
    if scheme == "https":
        raise UsageError(
            "TLS to backends (https://) is not supported; put a TLS client such as stunnel before it, and name that"
        )
    if scheme != "http" or not netloc:
        raise UsageError("it is not a URL that begins with http://; write http://HOST:PORT")
    if "@" in netloc:
        raise UsageError("the URL has a user in it, and credentials are not carried over; clients send their own")
    if parts.query or parts.fragment:
        raise UsageError("the URL has parameters, which no backend can have")
    return f"http://{netloc}", path.rstrip("/")


class Block:
    """Lines of one table: keys, and comments where they belong."""

    def __init__(self, settings: Mapping[str, Setting] | None = None) -> None:
        self._settings = settings or {}
        self._lines: list[str] = []
        self._values: dict[str, Value] = {}
        self._tables: dict[str, tuple[int, dict[str, Value]]] = {}
        """The line of each table of its own, and what is in it."""
        self.lost_count = 0

    def note(self, text: str) -> None:
        """Adds a comment."""
        text = printable(credentials.mask(text))
        self._lines += textwrap.wrap(
            text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
        )

    def quote(self, lines: Iterable[str]) -> None:
        """Adds lines to be copied, such as those of a command; what is secret in them is masked by the caller."""
        self._lines += [f"#     {printable(line)}" for line in lines]

    def lost(self, where: str, why: str) -> None:
        """Adds a comment for a thing that was not carried over."""
        self.note(f"not carried over: {where}: {why}")
        self.lost_count += 1

    def set(self, where: str, key: str, value: Value) -> None:
        """Adds a setting, or a comment where it is out of range.

        Args:
            where: it stood in the other file.
            key: its name here, with a point where it stands in a table of its own.
            value: as the file has it.
        """
        try:
            config_file.read_value(self._settings[key], value)
        except UsageError as error:
            self.lost(where, str(error))
            return
        if key in self._values:
            if self._values[key] != value:
                self.lost(where, f"{key} is set already, and there can be only one")
            return
        self._values[key] = value
        table, _, inner = key.rpartition(".")
        if not table:
            self._lines.append(f"{toml_key(key)} = {toml_value(value)}")
            return
        if table not in self._tables:
            self._tables[table] = (len(self._lines), {})
            self._lines.append("")
        at, values = self._tables[table]
        values[inner] = value
        self._lines[at] = f"{table} = {toml_value(values)}"

    def has(self, key: str) -> bool:
        """Whether a setting is in it."""
        return key in self._values

    def take(self, other: "Block") -> None:
        """Adds the comments of another one."""
        self._lines += [line for line in other.lines() if line.startswith("#")]
        self.lost_count += other.lost_count

    def lines(self) -> list[str]:
        return self._lines


@dataclass
class _Member:
    backend: Backend
    host: str
    tier: int


def _kind(backend: Backend, host: str) -> tuple[str, int, bool]:
    """What a backend is the same in in all pools: its Host field, its limit, and what it does when a client leaves."""
    return host, backend.max_in_flight, backend.finish_on_abort


class PoolDraft(Block):
    """A pool; its lines are its settings, and what was lost of it."""

    def __init__(self, draft: "Draft", name: str) -> None:
        super().__init__(config_file.POOL)
        self.name = name
        self.head = Block()
        """Comments before its table."""
        self.members: list[_Member] = []
        self.finishes = False
        """Whether backends that are added finish an answer whose client has left."""
        self._models: list[str] = []
        self._aliases: dict[str, str] = {}
        self._draft = draft

    def add_backend(
        self, where: str, url: str, host: str = "", *, weight: int = 1, tier: int = 0, max_in_flight: int = 0
    ) -> bool:
        """Adds a server, or a comment where it cannot be one.

        Args:
            where: it stood in the other file.
            url: without a path; nothing secret in it.
            host: what it gets in the Host field; empty for what the client sent.
            weight: 1 to 1000.
            tier: lower ones are asked first; made a row from 0 at the end.
            max_in_flight: requests that it works on at a time; 0 is no limit. What no backend can have becomes a comment.
        """
        if max_in_flight > MOST_IN_FLIGHT:
            self.lost(where, f"max_in_flight is at most {MOST_IN_FLIGHT}, and {max_in_flight} is no limit here")
            max_in_flight = 0
        pairs = [("weight", str(weight)), *([("host", host)] if host else [])]
        pairs += [("max-in-flight", str(max_in_flight))] if max_in_flight else []
        pairs += [("on-abort", "finish")] if self.finishes else []
        try:
            backend = make_backend(toml_text(url), url, pairs)
            check_backends([*(member.backend for member in self.members), backend])
        except UsageError as error:
            self._draft.refuse(self, where, str(error))
            return False
        if len(self.members) == MAX_MEMBERS:
            self._draft.refuse(self, where, f"one pool can have {MAX_MEMBERS} backends")
            return False
        if not self._draft.take_place(backend, host):
            self._draft.refuse(self, where, f"one proxy can have {MAX_BACKENDS} backends")
            return False
        self.members.append(_Member(backend, host, tier))
        return True

    def claim(self, where: str, name: str, target: str) -> None:
        """Adds a name that requests say, and the name that the backends get in its place, or a comment."""
        try:
            config_file.check_model(name)
            config_file.check_model(target)
            if name != target and "*" in name + target:
                raise UsageError("a name with a * cannot stand for another one")
        except UsageError as error:
            self.lost(where, str(error))
            return
        owner = self._draft.owners.setdefault(name, self.name)
        if owner != self.name:
            self.lost(where, f"{name!r} leads to the pool {owner!r} already")
        elif len(self._draft.owners) > config_file.MOST_MODELS:
            self.lost(where, f"one file can have {config_file.MOST_MODELS} models and aliases")
        elif name == target:
            self._models = list(dict.fromkeys([*self._models, name]))
        elif name not in self._models:
            self._aliases.setdefault(name, target)

    @property
    def is_named(self) -> bool:
        return bool(self._models or self._aliases)

    def render(self) -> Iterator[str]:
        yield from self.head.lines()
        table = f"pools.{toml_key(self.name)}"
        yield f"[{table}]"
        if self._models:
            yield f"models = {toml_value(self._models)}"
        if self._aliases:
            yield f"aliases = {toml_value(self._aliases)}"
        yield from self.lines()
        tiers = sorted({member.tier for member in self.members})
        for member in self.members:
            yield ""
            yield f"[[{table}.backends]]"
            yield f"url = {toml_text(member.backend.url)}"
            if name := self._draft.name_of(member.backend, member.host):
                yield f"name = {toml_text(name)}"
            if member.host:
                yield f"host = {toml_text(member.host)}"
            if member.backend.finish_on_abort:
                yield 'on_abort = "finish"'
            if member.backend.max_in_flight:
                yield f"max_in_flight = {member.backend.max_in_flight}"
            if member.backend.weight != 1:
                yield f"weight = {member.backend.weight}"
            if tier := tiers.index(member.tier):
                yield f"tier = {tier}"


class Draft:
    """A whole file."""

    def __init__(self, title: str) -> None:
        """Args:
        title: the first comment.
        """
        self.top = Block(config_file.PROCESS)
        self.top.note(title)
        self.end = Block()
        """Comments behind everything."""
        self.pools: list[PoolDraft] = []
        self.routes: list[tuple[str, str, PoolDraft, Block]] = []
        """(path, field, pool, comments) of each, the first that fits first."""
        self.owners: dict[str, str] = {}
        """The pool of each name that requests say."""
        self.refused = ""
        """Why the first backend that cannot be one is none."""
        self._places: dict[str, list[tuple[str, int, bool]]] = {}
        """What the backends of each URL differ by, those that are a backend of their own (`_kind`)."""

    def add_pool(self, name: str) -> PoolDraft:
        """A new pool, with this name or one like it.

        Raises:
            UsageError: there are too many.
        """
        if len(self.pools) == config_file.MOST_MODELS:
            raise UsageError(
                f"there are more than {config_file.MOST_MODELS} models or upstreams, which one file cannot have"
            )
        name = printable(name)[:64] or "pool"
        taken = {pool.name for pool in self.pools}
        number = 1
        free = name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        pool = PoolDraft(self, free)
        self.pools.append(pool)
        return pool

    def refuse(self, block: Block, where: str, why: str) -> None:
        """Notes in a block why there is no backend."""
        block.lost(where, why)
        self.refused = self.refused or printable(credentials.mask(f"{where}: {why}"))

    def take_place(self, backend: Backend, host: str) -> bool:
        """Whether there is room for a backend; the same one in another pool needs none."""
        kinds = self._places.get(backend.url, [])
        if (kind := _kind(backend, host)) not in kinds:
            if sum(map(len, self._places.values())) == MAX_BACKENDS:
                return False
            self._places[backend.url] = [*kinds, kind]
        return True

    def name_of(self, backend: Backend, host: str) -> str:
        """The name of a backend; empty where its URL is enough. A server with two Host fields or two limits is two backends."""
        number = self._places[backend.url].index(_kind(backend, host))
        return f"{backend.url}-{number + 1}" if number else ""

    def finish(self) -> None:
        """Leaves out the pools that nothing can come of."""
        for pool in [pool for pool in self.pools if not pool.members]:
            self._leave_out(pool)
        led = {route[2].name for route in self.routes}
        for pool in self.pools.copy() if len(self.pools) > 1 else ():
            if not pool.is_named and pool.name not in led:
                pool.lost(f"pool {pool.name}", "nothing leads to it")
                self._leave_out(pool)

    def _leave_out(self, pool: PoolDraft) -> None:
        self.pools.remove(pool)
        for block in (pool.head, pool):
            self.end.take(block)
        for route in [route for route in self.routes if route[2] is pool]:
            self.routes.remove(route)
            self.end.take(route[3])

    @property
    def lost_count(self) -> int:
        blocks = [self.top, self.end, *self.pools, *(pool.head for pool in self.pools)]
        return sum(block.lost_count for block in [*blocks, *(block for *_, block in self.routes)])

    def render(self) -> str:
        """The file."""
        parts = [self.top.lines()]
        parts += [list(pool.render()) for pool in self.pools]
        for path, header, pool, block in self.routes:
            lines = [*block.lines(), "[[routes]]"]
            lines += [f"path = {toml_text(path)}"] if path else []
            lines += [f"header = {toml_text(header)}"] if header else []
            parts.append([*lines, f"pool = {toml_text(pool.name)}"])
        parts.append(self.end.lines())
        return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"
