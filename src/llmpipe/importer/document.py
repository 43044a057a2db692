"""Reads a file that nobody vouches for: bounded in every way, and one line for whatever is wrong with it."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmpipe.errors import UsageError
from llmpipe.importer import credentials

MOST_BYTES = 512 << 10
"""Of a file. One with 1,000 models has some 300 KB, and PyYAML reads no faster than 20 to 100 KB a second."""

MOST_NODES = 100_000
"""Of a YAML document with its aliases written out, so that ten lines of them cannot stand for a billion."""


def load_library(name: str) -> Any:
    """A module of the extra `import`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UsageError(
            "llmpipe import needs libraries that are not installed; install them with: pip install 'llmpipe[import]'"
        ) from None


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        UsageError: it cannot be read, is too long, or is not UTF-8 text.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path}: it is longer than {MOST_BYTES >> 10} KB; is it a configuration file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is not UTF-8 (byte {error.start + 1}); is it a configuration file?") from None
    if "\0" in text:
        raise UsageError(f"{path}: there is a NUL byte in it; is it a configuration file?")
    return text


def read_yaml(path: str) -> "Table":
    """The map that a YAML file is.

    Raises:
        UsageError: it cannot be read, is no YAML, has a key twice, or is no map.
    """
    yaml = load_library("yaml")
    text = read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_nodes(yaml, path, node)
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the line, in which a key may stand.
        mark = error.problem_mark or error.context_mark
        raise UsageError(f"{path}{_line(mark)}: it is not YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UsageError(f"{path}: it is nested too deep") from None
    except UsageError:
        raise
    except (
        Exception
    ) as error:  # what a tag raises that does not fit its text: ValueError, LookupError, AttributeError, ...
        raise UsageError(f"{path}: it is not YAML ({type(error).__name__})") from None
    return Table(value, "", path)


def _line(mark: Any) -> str:
    return f":{mark.line + 1}" if mark else ""


def _check_nodes(yaml: Any, path: str, root: Any) -> None:
    """Refuses a key that is twice in a map, of which PyYAML would take the last, and aliases that multiply.

    Raises:
        UsageError: there is one.
    """
    sizes: dict[int, int] = {}

    def measure(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # while it is measured: an alias for what it stands in has no end
            children = []
            if isinstance(node, yaml.MappingNode):
                seen: set[tuple[str, str]] = set()
                for key, value in node.value:
                    children += [key, value]
                    if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                        continue
                    if (key.tag, key.value) in seen:
                        raise UsageError(f"{path}{_line(key.start_mark)}: a key is twice in the same map")
                    seen.add((key.tag, key.value))
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            size = 1 + sum(map(measure, children))
            if size > MOST_NODES:
                raise UsageError(f"{path}{_line(node.start_mark)}: it has more than {MOST_NODES} values")
            sizes[id(node)] = size
        return sizes[id(node)]

    if root is not None:
        measure(root)


_KINDS = {dict: "a map", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def kind(value: Any) -> str:
    """What a value is, in a word: an error may not repeat it, since a secret may stand in the wrong place."""
    return "nothing" if value is None else _KINDS.get(type(value), "a value of another kind")


class Table:
    """A map of a document, which is read key by key; what nobody has asked for is `left`.

    Every method that reads raises UsageError where the value is of another kind, with its place. Nothing is as good as no key.
    """

    def __init__(self, value: Any, where: str, path: str) -> None:
        """Args:
        value: the map.
        where: its place in the file; empty at the top.
        path: of the file.
        """
        self._path = path
        self._where = where
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self._refuse(where, "a map", value)
        for key in value:
            if not isinstance(key, str):
                self._refuse(where, "text as a key (in quotes)", key)
        self._value: dict[str, Any] = value
        self._taken: set[str] = set()

    def fault(self, where: str, text: str) -> UsageError:
        """What to raise for a fault at a place."""
        return UsageError(credentials.mask(f"{self._path}: {where}: {text}" if where else f"{self._path}: {text}"))

    def _refuse(self, where: str, wanted: str, value: Any) -> None:
        raise self.fault(where, f"{wanted} is expected here, not {kind(value)}")

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def where(self, key: str) -> str:
        """The place of a key."""
        return f"{self._where}.{key}" if self._where else key

    def _take(self, key: str) -> Any:
        self._taken.add(key)
        return self._value.get(key)

    def text(self, key: str, default: str = "") -> str:
        value = self._take(key)
        if value is not None and not isinstance(value, str):
            self._refuse(self.where(key), "text (in quotes)", value)
        return default if value is None else str(value)

    def number(self, key: str) -> float | None:
        """A number that is finite."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(self.where(key), "a number", value)
        if abs(value) > 1e15 or not math.isfinite(value):
            raise self.fault(self.where(key), "it is too large a number")
        return value  # type: ignore[no-any-return]

    def whole(self, key: str, default: int) -> int:
        value = self.number(key)
        if value is not None and value != int(value):
            raise self.fault(self.where(key), "a whole number is expected here")
        return default if value is None else int(value)

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if value is not None and not isinstance(value, bool):
            self._refuse(self.where(key), "true or false", value)
        return bool(value)

    def table(self, key: str) -> "Table":
        return Table(self._take(key), self.where(key), self._path)

    def values(self, key: str) -> list[Any]:
        """A list, whatever its members are."""
        value = self._take(key)
        if value is not None and not isinstance(value, list):
            self._refuse(self.where(key), "a list", value)
        return list(value or [])

    def tables(self, key: str) -> list["Table"]:
        """The maps of a list."""
        return [
            Table(value, f"{self.where(key)}[{number}]", self._path) for number, value in enumerate(self.values(key))
        ]

    def texts(self, key: str) -> list[str]:
        """The texts of a list."""
        found = self.values(key)
        for number, value in enumerate(found):
            if not isinstance(value, str):
                self._refuse(f"{self.where(key)}[{number}]", "text (in quotes)", value)
        return found

    def members(self) -> Iterator[tuple[str, "Table"]]:
        """The maps of a map, by their keys."""
        for key in self._value:
            yield key, self.table(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def raw(self, key: str) -> Any:
        """A value of any kind."""
        return self._take(key)

    def left(self) -> list[str]:
        """The keys that nothing has read, in the order of the file; without those that say nothing."""
        return [key for key, value in self._value.items() if key not in self._taken and value is not None]

    @property
    def secrets(self) -> set[str]:
        """What the names of its keys say to be secret."""
        return credentials.find(self._value)
