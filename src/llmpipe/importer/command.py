"""`llmpipe import`: another proxy's file is read, and what was made of it is checked before anybody sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmpipe import config_file, runner
from llmpipe.config import PoolSettings, ProcessSettings
from llmpipe.errors import UsageError
from llmpipe.importer import KINDS, litellm, llama_swap, nginx
from llmpipe.importer.draft import Draft
from llmpipe.resolve import Unresolved

READERS: dict[str, Callable[[str], Draft]] = dict(zip(KINDS, (litellm.read, llama_swap.read, nginx.read), strict=True))
"""What makes a draft of a file of each kind."""


@dataclass(frozen=True)
class Import:
    """What was made of a file."""

    text: str
    """A file for `llmpipe serve --config`."""
    pools: int
    backends: int
    """Each once, however many pools it is in."""
    lost: int
    """Things that were not carried over."""


def convert(kind: str, path: str) -> Import:
    """Makes a configuration of another proxy's.

    Args:
        kind: one of KINDS.
        path: of its file.

    Raises:
        UsageError: the file cannot be read, or no configuration comes of it.
    """
    draft = READERS[kind](path)
    draft.finish()
    if not draft.pools:
        raise UsageError(f"{path}: nothing in it gives a backend{f' ({draft.refused})' if draft.refused else ''}")
    text = draft.render()
    file = config_file.parse("the result", text.encode())
    settings = file.settings(
        lambda values: ProcessSettings(**values),
        lambda values: PoolSettings(**values),
    )
    runner.try_out(settings, "the result", Unresolved())
    return Import(text, len(settings.pools), len(settings.backends), draft.lost_count)


def write(text: str, path: str, *, force: bool) -> None:
    """Writes a file.

    Args:
        text: of it.
        path: of it.
        force: whether it may exist.

    Raises:
        UsageError: it exists, or cannot be written.
    """
    try:
        with Path(path).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path}: it exists; write to another file, or over it with --force") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
