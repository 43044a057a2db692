"""What follows from the description of a setting: its flag, its variable, how it is written, what it may be.

The descriptions are the structs of `config`; the command line and docs/configuration.md are made of what stands here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo, fields

from llmpipe._pipe import MAX_SECONDS
from llmpipe.config import (
    MOST_BYTES,
    MOST_COUNT,
    Backend,
    Secret,
    check_listen,
    format_address,
    format_address_or_off,
    format_duration,
    format_secret,
    format_share,
    format_size,
    format_trusted,
    parse_address,
    parse_address_or_off,
    parse_backends,
    parse_count,
    parse_duration,
    parse_field,
    parse_path,
    parse_secret_file,
    parse_share,
    parse_size,
    parse_trusted,
)
from llmpipe.errors import UsageError

S = TypeVar("S", bound=Struct)

UNITS = (
    "Durations are seconds, or a number with ms, s, m or h after it; sizes are bytes, or a number with KB, MB or GB "
    "(of 1024) after it."
)
"""How durations and sizes are written."""


class Notation(Struct, frozen=True):
    """How a value is written; where it is a list, how each of its members is."""

    kind: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    most: float | None = None
    """Of numbers: what bounds most of them, and none of which is of any use."""
    gather: Callable[[Sequence[Any]], Any] | None = None
    """Makes a list of parsed members, and looks whether they go together. None: it is no list."""
    members: Callable[[Any], Iterable[Any]] = iter
    """The way back: what `format` takes, for each member of a list."""


def _format_listener(address: tuple[str, int]) -> str:
    return format_address(*address)


def _backend_url(backend: Backend) -> str:
    return backend.url  # of a default, which has no options


def _statuses(texts: Iterable[str]) -> frozenset[int]:
    return frozenset(map(int, texts))


def _format_switch(on: bool) -> str:
    return "on" if on else "off"


_COUNT = Notation("integer", parse_count, str, MOST_COUNT)

NOTATIONS = {
    "s": Notation("duration", parse_duration, format_duration, MAX_SECONDS),
    "bytes": Notation("size", parse_size, format_size, MOST_BYTES),
    "threads": _COUNT,
    "connections": _COUNT,
    "fields": _COUNT,
    "checks": _COUNT,
    "exchanges": _COUNT,
    "files": _COUNT,
    "requests": _COUNT,
    "answers": _COUNT,
    "share": Notation("number", parse_share, format_share),
    "FIELD": Notation("FIELD", parse_field, str),
    "/PATH": Notation("/PATH", parse_path, str),
    "FILE": Notation("FILE", str, str),
    "DIR": Notation("DIR", str, str),
    "HOST:PORT": Notation("HOST:PORT", parse_address, _format_listener, gather=check_listen),
    "HOST:PORT or off": Notation("HOST:PORT", parse_address_or_off, format_address_or_off),
    "NAME": Notation("NAME", str, str, gather=tuple),
    "URL": Notation("URL", str, _backend_url, gather=parse_backends),
    "NETWORK": Notation("NETWORK", str, str, gather=parse_trusted, members=format_trusted),
    "status": Notation("choice", str, str, gather=_statuses, members=sorted),
    "secret": Notation("FILE", parse_secret_file, format_secret),
    "choice": Notation("choice", str, str),
    "switch": Notation("switch", "on".__eq__, _format_switch),
}
"""By the unit that a description names."""


class Setting(Struct, frozen=True, kw_only=True):
    """One setting, as its description says."""

    name: str
    flag: str
    variable: str
    """In the environment. Of a secret it has the secret itself, and the flag names a file: what stands behind a flag can be seen by
    others (ps)."""
    description: str
    unit: str
    choices: tuple[str, ...]
    """The only texts that it, or a member of it, may be; empty where there are others."""
    bounds: tuple[float, float] | None
    """The least and the most of a number; None for what is none."""
    most_members: int | None
    """Of a list; None where there is no limit."""
    key: str
    """In the configuration file; with a point where it stands in a table of its own."""
    computed_default: str
    """What its default is computed from, in words; empty for one that is always the same."""
    field: FieldInfo

    @property
    def notation(self) -> Notation:
        return NOTATIONS[self.unit]

    @property
    def is_list(self) -> bool:
        return self.notation.gather is not None

    @property
    def is_switch(self) -> bool:
        return self.unit == "switch"

    @property
    def is_secret(self) -> bool:
        return self.unit == "secret"

    @property
    def default(self) -> Any:
        """Its value where nobody says one."""
        return self.field.default if self.field.default is not NODEFAULT else self.field.default_factory()

    @property
    def default_texts(self) -> list[str]:
        """The default as `parse` reads it: one text, or one for each member of a list; none of None."""
        if self.default is None:
            return []
        members = self.notation.members(self.default) if self.is_list else [self.default]
        return [self.notation.format(member) for member in members]

    @property
    def shown_default(self) -> str:
        """The default as a person reads it."""
        return self.computed_default or ", ".join(self.default_texts) or "none"

    @property
    def range(self) -> str:
        """What it may be, as a person reads it."""
        if self.is_switch:
            return "on or off"
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if self.bounds is not None:
            return " to ".join(map(self.notation.format, self.bounds))
        return "any" if self.most_members is None else f"at most {self.most_members}"

    @property
    def is_narrow(self) -> bool:
        """Whether it is a number of which some that can be written are out of range."""
        return self.bounds is not None and self.bounds != (0, self.notation.most)

    def parse_variable(self, text: str) -> Any:
        """What the variable says, where that is not what the flag says too: a secret, of which only the place is kept."""
        return Secret(env=self.variable) if self.is_secret else text

    def parse(self, text: str) -> Any:
        """The value that `text` says; of a list, a member.

        Raises:
            UsageError: it is none, or out of range.
        """
        value = self.notation.parse(text)
        if self.bounds is not None and not self.bounds[0] <= value <= self.bounds[1]:
            raise UsageError(f"{text} is not in the range {self.range}")
        return value

    def gather(self, parsed: Any) -> Any:
        """The value of what was parsed, which are the members if it is a list.

        Raises:
            UsageError: the members of a list do not go together, or are too many.
        """
        return parsed if self.notation.gather is None else self.notation.gather(parsed)


def _describe(field: FieldInfo) -> Setting:
    kind, *notes = get_args(field.type)
    (meta,) = (note for note in notes if isinstance(note, Meta))
    extra = meta.extra_json_schema or {}
    literal = get_args(kind)[0] if get_origin(kind) is frozenset else kind
    flag = extra.get("flag", "--" + field.name.replace("_", "-"))
    return Setting(
        name=field.name,
        flag=flag,
        variable=extra.get("variable", "LLMPIPE_" + flag.lstrip("-").replace("-", "_").upper()),
        description=meta.description or "",
        unit=extra["unit"],
        choices=tuple(map(str, get_args(literal))) if get_origin(literal) is Literal else (),
        bounds=None if meta.ge is None or meta.le is None else (meta.ge, meta.le),
        most_members=extra.get("maxItems"),
        key=extra.get("key", field.name),
        computed_default=extra.get("computed_default", ""),
        field=field,
    )


def describe(struct: type[Struct]) -> tuple[Setting, ...]:
    """The settings of a struct, in its order."""
    return tuple(map(_describe, fields(struct)))


def read(struct: type[S], parsed: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> S:
    """A struct of what `Setting.parse` made of each of its settings.

    Args:
        struct: to be made.
        parsed: of each setting; of a list, its members.
        known: values of some that count more than what was parsed.

    Raises:
        UsageError: the members of a list do not go together, or are too many.
    """
    known = known or {}
    return struct(
        **{
            setting.name: known[setting.name] if setting.name in known else setting.gather(parsed[setting.name])
            for setting in describe(struct)
        }
    )
