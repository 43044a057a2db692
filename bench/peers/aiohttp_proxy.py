"""A plain aiohttp reverse proxy, as a user would write it: aiohttp_server.py, in a virtual environment of its own."""

from pathlib import Path

from .base import Command, PipPeer

SERVER = Path(__file__).resolve().parent / "aiohttp_server.py"


class AiohttpProxy(PipPeer):
    name = "aiohttp"
    about = (
        "bench/peers/aiohttp_server.py: iter_any to StreamResponse.write, one session, no limit of connections, "
        "handler_cancellation off, as it is unless asked for"
    )
    requirements = ("aiohttp",)
    program = "python"

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        # -I: its folder is full of modules that are named as their peers.
        return Command([str(self.bin(folder, self.program)), "-I", str(SERVER), str(port), str(backend_port)])
