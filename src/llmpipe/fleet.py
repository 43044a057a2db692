"""The backends, and the numbers under which the engines speak of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmpipe.config import Backend


class Fleet:
    """Which backend has which number. A backend keeps its number, and with it its counters and its idle connections, for as long
    as routing tables name it; a number is never given to another one, so that a record that comes late is not misread.

    The control plane's thread numbers; others may read.
    """

    def __init__(self) -> None:
        self._numbered: tuple[tuple[int, Backend], ...] = ()
        self._by_number: dict[int, Backend] = {}

    def number(self, numbers: Sequence[int], backends: Sequence[Backend]) -> None:
        """Notes the numbers of the backends of a table, as `Engine.configure` returned them."""
        self._numbered = tuple(zip(numbers, backends, strict=True))
        self._by_number.update(self._numbered)

    def name(self, number: int) -> str:
        """What the backend with that number is called."""
        return self._by_number[number].name

    def backend(self, number: int) -> Backend:
        """The backend with that number, as the last table had it that named it."""
        return self._by_number[number]

    def number_of(self, backend: Backend) -> int | None:
        """The number of a backend of the table; None where it is not in it."""
        return next((number for number, found in self._numbered if found == backend), None)

    def number_named(self, name: str) -> int:
        """The number of the backend of the table that is called so.

        Raises:
            KeyError: there is none.
        """
        for number, backend in self._numbered:
            if backend.name == name:
                return number
        raise KeyError(name)

    def numbered(self) -> Sequence[tuple[int, Backend]]:
        """Each backend of the table with its number; none before the first one."""
        return self._numbered
