"""Names that no name server knows, for a process under test: names.c in front of the C library's look-up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def build(directory: Path) -> str:
    """names.c, as what LD_PRELOAD wants."""
    path = directory / "names.so"
    source = Path(__file__).with_name("names.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", path, source], check=True)
    return str(path)


class NameServer:
    """What names mean to a process."""

    def __init__(self, directory: Path, library: str) -> None:
        self._directory = directory
        preloaded = os.environ.get("LD_PRELOAD", "")  # a sanitizer comes first
        self.env = {"LD_PRELOAD": f"{preloaded} {library}".strip(), "TEST_NAMES": str(directory)}

    def say(self, name: str, *addresses: str) -> None:
        """The answer for a name from now on; those who ask already get it too."""
        part = self._directory / f"{name}.part"
        part.write_text("".join(f"{address}\n" for address in addresses))
        part.rename(self._directory / name)

    def hang(self, *names: str) -> None:
        """No answer for these names from now on."""
        for name in names:
            self.say(name, "hang")

    def asked(self, name: str) -> int:
        """How often it was asked for."""
        try:
            return (self._directory / f"{name}.asked").stat().st_size
        except FileNotFoundError:
            return 0
