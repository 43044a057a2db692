"""A file with the number of the process that serves: `--pid-file`."""

import os
from contextlib import suppress
from pathlib import Path

from llmpipe import log
from llmpipe.errors import UsageError


class PidFile:
    """Written beside its place first, and then moved there, so that nobody reads half of it; an empty path is no file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._beside = Path(f"{path}.new")

    def prepare(self) -> None:
        """Writes it beside its place.

        Raises:
            UsageError: it cannot be written.
        """
        if self._path is None:
            return
        try:
            if self._path.is_dir():
                raise IsADirectoryError(0, "Is a directory")
            with suppress(FileNotFoundError):
                self._beside.unlink()
            # A link that somebody plants there meanwhile is not followed.
            with os.fdopen(
                os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w"
            ) as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            raise UsageError(f"--pid-file {self._path} cannot be written ({error.strerror or error})") from None

    def publish(self) -> None:
        """Moves it to its place. Where that fails, the process serves all the same."""
        if self._path is not None:
            try:
                self._beside.replace(self._path)
            except OSError as error:
                log.error("pid file not written", path=str(self._path), error=str(error.strerror or error))

    def remove(self) -> None:
        """Removes it, unless another process has put its own there."""
        if self._path is not None:
            with suppress(OSError, UsageError):
                if read(str(self._path)) == os.getpid():
                    self._path.unlink()


def read(path: str) -> int:
    """The number in a pid file.

    Raises:
        UsageError: there is none.
    """
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--pid-file {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"--pid-file {path} has no process number in it")
    return int(text)
