"""What tests of `llmpipe bench` share: runs of the command, and a proxy of bytes that does what it should not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmpipe.bench import report

SHORT = ("--rounds", "1", "--duration", "400ms", "--settle", "100ms")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("LLMPIPE_BENCH", "OPENAI"))}


def bench_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "llmpipe", "bench", *map(str, arguments)]


def bench(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        bench_command(*arguments), capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Bench:
    """One run against one proxy, and its report."""

    def __init__(self, folder: Path, shape: str, port: int, proxy: str, *arguments: object, code: int = 0) -> None:
        file = folder / "report.json"
        self.done = bench(
            shape, "--proxy", proxy, "--source", f"127.0.0.1:{port}", *SHORT, *arguments, "--json", file, code=code
        )
        self.report = json.loads(file.read_text())
        self.workload = self.report["workloads"][0]
        self.targets = {target["name"]: target for target in self.workload["targets"]}

    def fidelity(self, name: str) -> dict[str, int]:
        rounds = self.targets[name]["rounds"]
        return {key: sum(one["fidelity"][key] for one in rounds) for key in rounds[0]["fidelity"]}

    def errors(self, name: str) -> dict[str, int]:
        return report.errors(self.targets[name])

    def figure(self, name: str, figure: str) -> float:
        return self.targets[name]["figures"][figure]["median"]


Pump = Callable[[socket.socket, bytes], bool]


def send_on(sink: socket.socket, data: bytes) -> bool:
    sink.sendall(data)
    return True


@contextmanager
def relay(port: int, down: Pump, close_upstream: bool = True, up: Pump = send_on) -> Iterator[str]:
    """A proxy of bytes, its address; what came down is given to `down`, which sends it on, and says whether to go on."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    kept: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, send: Pump) -> None:
        try:
            while (data := source.recv(65536)) and send(sink, data):
                pass
        except OSError:
            pass
        finally:
            for one in (source, sink):
                if close_upstream or one is not upstreams.get(source):
                    try:
                        one.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass

    upstreams: dict[socket.socket, socket.socket] = {}

    def accept() -> None:
        while True:
            try:
                client = listener.accept()[0]
                upstream = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for one in (client, upstream):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kept.extend((client, upstream))
            upstreams[client] = upstream
            for source, sink, send in ((client, upstream, up), (upstream, client, down)):
                threads.append(threading.Thread(target=pump, args=(source, sink, send), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for one in kept:
            one.close()
        for thread in threads:
            thread.join(10)
