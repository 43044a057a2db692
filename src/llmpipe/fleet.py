"""The servers behind the backends, and the numbers under which the engines speak of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpipe.config import Backend


@dataclass(frozen=True)
class Server:
    """What an engine takes for a backend. A backend whose name has several addresses is several of them (rule I5)."""

    name: str
    """Its identity in the engines, in logs and metrics: the backend's name, with @ and the address behind it where there are several."""
    backend: Backend
    """What the operator said of it."""
    addresses: tuple[tuple[str, int], ...]
    """In the order to try them: (numeric host, port) of each, or ("unix:/path", 0)."""

    @property
    def hosts(self) -> frozenset[str]:
        """Its numeric hosts."""
        return frozenset(host for host, _ in self.addresses)


class Fleet:
    """Which server has which number. A server keeps its number, and with it its counters and its idle connections, for as long
    as routing tables name it; a number is never given to another one, so that a record that comes late is not misread.

    The control plane's thread numbers; others may read.
    """

    def __init__(self) -> None:
        self._numbered: tuple[tuple[int, Server], ...] = ()
        self._known: dict[int, Server] = {}
        self.unresolved: Mapping[str, str] = {}
        """Backends that have no server, by name: why their names have no address."""

    def number(self, numbers: Sequence[int], servers: Sequence[Server], unresolved: Mapping[str, str]) -> None:
        """Notes the numbers of the servers of a table, as `Engine.configure` returned them, and the backends that have none."""
        self.know(numbers, servers)
        self._numbered = tuple(zip(numbers, servers, strict=True))
        self.unresolved = unresolved

    def know(self, numbers: Sequence[int], servers: Sequence[Server]) -> None:
        """Notes the numbers of the servers of a table that some engine has, and others perhaps not: so that its records can be read."""
        self._known.update(zip(numbers, servers, strict=True))

    def name(self, number: int) -> str:
        """What the server with that number is called."""
        return self._known[number].name

    def server(self, number: int) -> Server:
        """The server with that number, as the last table had it that named it."""
        return self._known[number]

    def find(self, number: int) -> Server | None:
        """The same; None where no table is known yet that named it."""
        return self._known.get(number)

    def number_of(self, name: str) -> int | None:
        """The number of the server of the table that is called so; None where it is not in it."""
        return next((number for number, server in self._numbered if server.name == name), None)

    def named(self, name: str) -> Sequence[tuple[int, Server]]:
        """The servers of the table, with their numbers, that somebody means who says this name: all of a backend, or one.

        Raises:
            KeyError: there is no backend and no server of that name.
        """
        found = [(number, server) for number, server in self._numbered if name in (server.name, server.backend.name)]
        if not found and name not in self.unresolved:
            raise KeyError(name)
        return found

    def numbered(self) -> Sequence[tuple[int, Server]]:
        """Each server of the table with its number; none before the first one."""
        return self._numbered

    @property
    def servers(self) -> list[Server]:
        """Those of the table."""
        return [server for _, server in self._numbered]

    @property
    def names(self) -> list[str]:
        """What can be named: servers, and backends that have none."""
        return [*(server.name for server in self.servers), *self.unresolved]
