"""The vLLM project's router, from PyPI."""

from pathlib import Path

from .base import Command, PipPeer, free_port


class VllmRouter(PipPeer):
    name = "vllm-router"
    about = "policy round_robin, its own health checks and circuit breaker as by default, request time-out of an hour"
    requirements = ("vllm-router",)
    program = "vllm-router"

    def arguments(self, backend_port: int) -> list[str]:
        """Its workers."""
        return ["--worker-urls", f"http://127.0.0.1:{backend_port}"]

    def command(self, folder: Path, port: int, backend_port: int, scratch: Path) -> Command:
        return Command([
            str(self.bin(folder, self.program)),
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
            *("--prometheus-host", "127.0.0.1"),
            *("--prometheus-port", str(free_port())),
            *self.arguments(backend_port),
            *("--policy", "round_robin"),
            *("--worker-startup-check-interval", "1"),
            *("--request-timeout-secs", "3600"),
            *("--log-level", "error"),
        ])  # fmt: skip
