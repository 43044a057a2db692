"""Ours, as it is installed beside the Python that runs the benchmark."""

import importlib.util
import sys
from pathlib import Path

from .base import Command, Peer, output


class Llmpipe(Peer):
    name = "llmpipe"
    about = "llmpipe serve --workers 1 --admin off --log-level warning, otherwise its defaults"

    def missing(self, folder: Path) -> str | None:
        if importlib.util.find_spec("llmpipe") is None:
            return f"llmpipe is not installed for {sys.executable}; {sys.executable} -m pip install ."
        return None

    def version(self, folder: Path) -> str:
        # Not from the present folder: a source tree has no engine.
        return output([sys.executable, "-I", "-m", "llmpipe", "version"]).splitlines()[0]

    def options(self) -> list[str]:
        """The command, without addresses."""
        return [
            sys.executable,
            "-I",
            "-m",
            "llmpipe",
            "serve",
            "--workers",
            "1",
            "--admin",
            "off",
            "--log-level",
            "warning",
        ]

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        return Command(
            [*self.options(), "--listen", f"127.0.0.1:{port}", "--backend", f"http://127.0.0.1:{backend_port}"]
        )
