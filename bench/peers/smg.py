"""Shepherd Model Gateway, from PyPI."""

from pathlib import Path

from .base import Command, PipPeer, free_port


class Smg(PipPeer):
    name = "smg"
    about = (
        "policy round_robin, its own health checks and circuit breaker as by default, no limit of concurrent requests"
    )
    requirements = ("smg",)
    program = "smg"

    def arguments(self, backend_port: int) -> list[str]:
        """Its workers and its limit."""
        return ["--worker-urls", f"http://127.0.0.1:{backend_port}", "--max-concurrent-requests", "0"]

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        return Command([
            str(self.bin(folder, self.program)),
            "launch",
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
            *("--prometheus-host", "127.0.0.1"),
            *("--prometheus-port", str(free_port())),
            *self.arguments(backend_port),
            *("--policy", "round_robin"),
            *("--worker-startup-check-interval", "1"),
            *("--request-timeout-secs", "3600"),
            *("--history-backend", "none"),
            "--disable-tokenizer-autoload",
            *("--log-level", "error"),
        ])  # fmt: skip
