"""`llmpipe top`: what was asked for becomes a live view or a snapshot."""

from __future__ import annotations

import asyncio
import sys

import click

from llmpipe.admin_address import parse_admin
from llmpipe.errors import UsageError
from llmpipe.top import plain
from llmpipe.top.source import Source, UnreachableError

LEAST_INTERVAL, MOST_INTERVAL = 0.1, 60.0
"""Seconds."""


def run(admin: str, interval: float, token: str, *, once: bool) -> int:
    """Shows a proxy until it is left.

    Args:
        admin: address of the admin endpoint.
        interval: seconds between two questions.
        token: for what changes something; empty for none.
        once: print a snapshot instead.

    Returns:
        The exit code.

    Raises:
        UsageError: the options cannot work, Textual or a terminal is missing, or with `once` nothing was answered.
    """
    source = Source(parse_admin(admin), token)
    if once:
        try:
            snapshot = asyncio.run(source.snapshot())
        except UnreachableError as error:
            raise UsageError(f"{source.address}: {error}") from None
        for line in plain.lines(str(source.address), snapshot):
            click.echo(line.encode(sys.stdout.encoding or "utf-8", "replace"))
        return 0
    if not LEAST_INTERVAL <= interval <= MOST_INTERVAL:
        raise UsageError(f"--interval is from {LEAST_INTERVAL * 1000:.0f}ms to {MOST_INTERVAL:.0f}s")
    try:
        from llmpipe.top.app import Top  # noqa: PLC0415 - Textual is an extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        raise UsageError("the live view needs Textual: pip install 'llmpipe[top]'; --once works without it") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the live view needs a terminal; --once prints a snapshot")
    app = Top(source, interval)
    app.run(mouse=False)  # so that the terminal's own selection can copy an id
    return app.return_code or 0
