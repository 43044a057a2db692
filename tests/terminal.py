"""A program in a terminal of its own: a pty whose output is drawn, so that a test reads the screen as a person does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pexpect
import pyte
from harness import TIMEOUT


class Terminal:
    """One run of a program. What it writes is read and counted all the time."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        dropped = ("LLMPIPE_", "TEXTUAL", "NO_COLOR", "COLORTERM", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.written = 0
        self.raw = b""
        self.child = pexpect.spawn(
            command[0],
            list(command[1:]),
            dimensions=(lines, columns),
            env={**inherited, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})},
            timeout=TIMEOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.child.child_fd, 65536)
            except OSError:  # the program has closed its end
                return
            if not data:
                return
            with self._lock:
                self.written += len(data)
                self.raw += data
                # pyte takes CSI > ... m and CSI ? ... $ p for what they are not.
                self._stream.feed(data)

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(self.rows)

    @property
    def rows(self) -> list[str]:
        """The lines of the screen."""
        with self._lock:
            return [row.rstrip() for row in self._screen.display]

    def row(self, text: str) -> str:
        """The first line in which a text stands."""
        return next(row for row in self.rows if text in row)

    def looks(self, text: str) -> list[pyte.screens.Char]:
        """The characters of a text on the screen, with their colours and whether they are bold or reversed."""
        with self._lock:
            for y, row in enumerate(self._screen.display):
                if (x := row.find(text)) >= 0:
                    return [self._screen.buffer[y][x + index] for index in range(len(text))]
        raise AssertionError(f"no {text!r} in\n{self.text}")

    def colours(self) -> set[str]:
        """All colours on the screen, of letters and of what is behind them."""
        with self._lock:
            chars = [char for line in self._screen.buffer.values() for char in line.values()]
        return {char.fg for char in chars} | {char.bg for char in chars}

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    def wait(self, *wanted: str | Callable[[str], object]) -> None:
        """Waits until each text is on the screen, or each function of the screen is true."""
        end = time.monotonic() + TIMEOUT
        while True:
            text = self.text
            if all(want in text if isinstance(want, str) else want(text) for want in wanted):
                return
            assert time.monotonic() < end, f"{wanted} not within {TIMEOUT} s:\n{text}"
            time.sleep(0.02)

    def wait_exit(self) -> int | None:
        """Its exit code, None where a signal ended it."""
        end = time.monotonic() + TIMEOUT
        while self.child.isalive():
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
            time.sleep(0.02)
        self._reader.join(TIMEOUT)
        code: int | None = self.child.exitstatus
        return code

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            print(f"the screen:\n{self.text}")
        self.child.close(force=True)
        self._reader.join(TIMEOUT)
