"""The floor: a relay that only does epoll, recv and send. It is compiled on the spot, so it is always this tree's."""

import shutil
import subprocess
from pathlib import Path

from .base import Command, Peer, output

SOURCE = Path(__file__).resolve().parent.parent / "floor" / "relay.c"
FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror"]


class Floor(Peer):
    name = "floor"
    about = f"bench/floor/relay.c, cc {FLAGS[1]}; copies bytes, one backend connection for each client, no HTTP"

    def install(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", *FLAGS, "-o", str(folder / "relay"), str(SOURCE)], check=True)

    def missing(self, folder: Path) -> str | None:
        if shutil.which("cc") is None:
            return "there is no C compiler; apt-get install gcc libc6-dev"
        return None

    def version(self, folder: Path) -> str:
        return output(["cc", "--version"]).splitlines()[0]

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        self.install(folder)
        return Command([str(folder.resolve() / "relay"), str(port), str(backend_port)])
