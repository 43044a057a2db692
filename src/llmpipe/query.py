"""The query of a URL of the admin endpoint."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl

from llmpipe.errors import UsageError


def parse_parameters(text: str, names: Collection[str]) -> dict[str, str]:
    """The parameters of a query, by name.

    Args:
        text: the query, without its question mark.
        names: of the parameters that there are.

    Raises:
        UsageError: a parameter is unknown, or there twice.
    """
    pairs = parse_qsl(text, keep_blank_values=True)
    given = dict(pairs)
    if unknown := [name for name in given if name not in names]:
        raise UsageError(f"the parameter {unknown[0]!r} is unknown; there are {', '.join(names)}")
    if len(given) < len(pairs):
        raise UsageError("each parameter may be there once only")
    return given
