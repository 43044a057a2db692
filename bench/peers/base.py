"""What a peer is: how to install it, whether it can run here, and the command that runs it.

A peer only describes. Starting, pinning and stopping are the same for all of them, and are in run.py.
"""

import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """What runs a peer in the foreground."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the benchmark."""


class Peer(ABC):
    """A proxy that the benchmark runs beside ours: one process or one worker, pinned to one CPU, logs off."""

    name: str
    about: str
    """How it is configured, in one line, for the report."""
    kin: str = ""
    """The peer that this is a variant of, where its name is another one."""

    @abstractmethod
    def missing(self, folder: Path) -> str | None:
        """Say why it cannot run here and what to do about it; None if it can."""

    @abstractmethod
    def version(self, folder: Path) -> str:
        """Give the version that would run."""

    @abstractmethod
    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        """Write its configuration into `scratch`, and give what runs it.

        It listens on 127.0.0.1:port and forwards every request to 127.0.0.1:backend_port.
        """

    def listening(self, port: int, backend_port: int) -> None:  # noqa: B027 - few need it
        """Do what remains once it listens.

        Raises:
            OSError: It cannot be done.
        """

    def install(self, folder: Path) -> None:  # noqa: B027 - not all have to be
        """Install it under `folder`, outside the tree."""


class DebianPeer(Peer):
    """A peer that the system's package manager installs. It is only looked for."""

    package: str
    version_option: str

    def missing(self, folder: Path) -> str | None:
        if self.program() is None:
            return f"{self.package} is not installed; apt-get install {self.package}"
        return None

    def program(self) -> str | None:
        """Where it is. Debian keeps servers where the PATH of an ordinary user does not look."""
        return shutil.which(self.package) or shutil.which(self.package, path="/usr/sbin:/usr/local/sbin")

    def version(self, folder: Path) -> str:
        return output([str(self.program()), self.version_option]).splitlines()[0]


class PipPeer(Peer):
    """A peer from PyPI, in a virtual environment of its own: folder/NAME."""

    requirements: tuple[str, ...]
    """What pip installs. The first one's version is the peer's."""
    program: str
    """In the environment's bin."""

    def bin(self, folder: Path, program: str) -> Path:
        return folder.resolve() / self.name / "bin" / program

    def install(self, folder: Path) -> None:
        python = self.bin(folder, "python")
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / self.name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        subprocess.run([*pip, *self.requirements], check=True)

    def missing(self, folder: Path) -> str | None:
        if not self.bin(folder, self.program).exists():
            return f"{self.name} is not installed in {folder}; python -m bench.peers install {folder} {self.name}"
        return None

    def version(self, folder: Path) -> str:
        package = self.requirements[0].partition("[")[0]
        ask = "import sys; from importlib.metadata import version; print(sys.argv[1], version(sys.argv[1]))"
        return output([str(self.bin(folder, "python")), "-c", ask, package])


def free_port() -> int:
    """For what a peer insists on listening to besides, such as its metrics."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def output(argv: list[str]) -> str:
    """Run a command and give what it printed; nginx prints its version to stderr."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout.strip()
