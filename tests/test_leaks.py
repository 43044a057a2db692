"""What the engines took from the system, they give back: LeakSanitizer looks, after churn, while the process still lives.

Only the sanitized flavour can tell (`make asan`); the others are skipped with that reason.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmpipe import _pipe

SCRIPT = r"""
import ctypes, socket, sys, threading, time
sys.path.insert(0, "tests")
from contextlib import suppress
from harness import Backend, Connection, Stream, answer_all, wait_until
from llmpipe._pipe import Engine
from llmpipe.config import Settings

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 12000 + b"\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"z" * 50000

def churn():
    engines = [Engine(Settings()) for _ in range(2)]
    threads = [threading.Thread(target=engine.run) for engine in engines]
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    for thread in threads:
        thread.start()
    with Backend(answer_all) as backend:
        for _ in range(20):
            for engine in engines:
                engine.configure([(b"b", b"b", b"", [("127.0.0.1", int(backend.url.rpartition(":")[2]))], False, 0, b"")])
        engines[0].listen([listener.fileno()], engines, most=1000, resume_at=900, max_per_address=50)
        for n in range(600):
            stream = Stream(socket.create_connection(listener.getsockname()))
            stream.send((GET, LONG, POST, GET[:9])[n % 4])
            if n % 4 < 2:
                stream.read_head()
            stream.reset() if n % 3 else stream.close()
        for engine in engines:
            engine.stop()
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.take_records()
            engine.close()
        backend.forget()
        backend.errors.clear()  # requests that were cut
    listener.close()

libc = ctypes.CDLL(None)
churn()
if sys.argv[1] == "lose":
    libc.malloc.restype = ctypes.c_void_p
    for _ in range(100):
        libc.malloc(12345)
print("leaks" if libc.__lsan_do_recoverable_leak_check() else "none")
"""


def run(what: str) -> tuple[str, str]:
    """What the script printed, and the sanitizer's report, of the engine's own memory only."""
    options = os.environ.get("ASAN_OPTIONS", "").replace("detect_leaks=0", "detect_leaks=1")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what],
        env={**os.environ, "ASAN_OPTIONS": f"{options}:fast_unwind_on_malloc=0", "LSAN_OPTIONS": "exitcode=0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout, done.stderr[-5000:]
    return done.stdout.strip(), done.stderr


@pytest.mark.timeout(1200)
def test_engines_leave_no_memory_behind() -> None:
    with open(_pipe.__file__, "rb") as engine:
        if b"__asan_init" not in engine.read():
            pytest.skip("the engine is not built with AddressSanitizer: make asan")
    _, report = run("keep")
    assert "LeakSanitizer has encountered a fatal error" not in report, report[-3000:]
    assert "_pipe/" not in report, report[-20000:]
    assert "_pipe.c" not in report, report[-20000:]
    # It would have told.
    verdict, report = run("lose")
    assert verdict == "leaks"
    assert "12345" in report
