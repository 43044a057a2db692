"""Takes the pictures of the status page again: a proxy in front of mocks, under a load with failures, seen by Chromium.

    .venv/bin/python docs/images/make.py [--minutes 15] [--to FOLDER] [--phone]

It needs the group test (playwright) and Debian's chromium. What the plots show is what went through in those minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"

CONFIG = """
default_pool = "llama"

[pools.llama]
models = ["llama-3.3-70b", "llama-*"]
aliases = {{ "gpt-4o" = "llama-3.3-70b" }}
health = {{ path = "/health", interval = "5s" }}
queue = {{ size = 256, timeout = "30s" }}
[[pools.llama.backends]]
name = "gpu1"
url = "http://{0}"
max_in_flight = 4
[[pools.llama.backends]]
name = "gpu2"
url = "http://{1}"
max_in_flight = 8
weight = 2
[[pools.llama.backends]]
name = "spare"
url = "http://{2}"
max_in_flight = 3
tier = 1

[pools.qwen]
models = ["qwen3-32b"]
health = {{ path = "/health", interval = "5s" }}
[[pools.qwen.backends]]
name = "gpu3"
url = "http://{3}"
[[pools.qwen.backends]]
name = "gpu4"
url = "http://127.0.0.1:9"

[pools.embed]
models = ["bge-m3"]
[[pools.embed.backends]]
name = "gpu5"
url = "http://gpu5.invalid:8000"
"""

MOCKS = (
    ("--ttft", "180ms", "--tokens-per-second", "45"),
    ("--ttft", "120ms", "--tokens-per-second", "60", "--decode-slowdown", "0.02"),
    ("--ttft", "400ms", "--tokens-per-second", "25"),
    ("--ttft", "350ms", "--tokens-per-second", "30"),
)


@contextlib.contextmanager
def running(*words: str, listening: int = 1) -> Iterator[list[str]]:
    """A command of ours, and the addresses that its log names."""
    command = [sys.executable, "-m", "llmpipe", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found: list[str] = []
            while len(found) < listening:
                line = process.stderr.readline()
                assert line, f"{words[0]} has ended"
                found += re.findall(r"listening address=(\S+)", line)
            _read_on(process.stderr)
            yield found
        finally:
            process.kill()


def _read_on(lines: IO[str]) -> None:
    """Takes the rest of a log, so that its pipe never fills."""

    def run() -> None:
        for _ in lines:
            pass

    threading.Thread(target=run, daemon=True).start()


async def ask(client: httpx.AsyncClient, rng: random.Random) -> None:
    """One exchange; a few of them break, are for a model that nobody has, or are left by their client."""
    model = rng.choices(("llama-3.3-70b", "gpt-4o", "qwen3-32b", "bge-m3"), (60, 20, 20, 0.4))[0]
    faults = ("", "die;after=6", "die", "hang;after=3")
    fault = rng.choices(faults, (97, 1.2, 0.5, 0.3))[0]
    fields = {"x-mock-fault": fault} if fault else {}
    tokens = int(min(400, rng.expovariate(1 / 90)) + 8)
    body = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    patience = rng.choices((60.0, 0.6), (97, 3))[0] if not fault.startswith("hang") else 4.0
    with contextlib.suppress(httpx.HTTPError, asyncio.TimeoutError):
        request = client.post("/v1/chat/completions", json=body, headers=fields)
        await asyncio.wait_for(request, patience)


async def load(url: str, seconds: float) -> None:
    """Exchanges at random, more and fewer of them in turn, with a rush now and then."""
    rng = random.Random(4)
    tasks: set[asyncio.Task[None]] = set()
    start = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        while (now := time.monotonic() - start) < seconds:
            rush = 9.0 if 0.35 < (now % 230) / 230 < 0.43 else 0.0
            rate = 5 + 2.2 * math.sin(now / 47) + 1.2 * math.sin(now / 13) + rush
            await asyncio.sleep(rng.expovariate(rate))
            task = asyncio.create_task(ask(client, rng))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()


def photograph(browser: Browser, url: str, to: Path, *, phone: bool) -> None:
    """The page in light, in dark, and on a phone if that is asked for."""
    pictures = [("status-light", "light", 1280, 1180), ("status-dark", "dark", 1280, 1180)]
    if phone:
        pictures.append(("status-phone", "light", 360, 2400))
    for name, scheme, width, height in pictures:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(url)
        page.get_by_text("Live", exact=True).wait_for()
        page.wait_for_function("document.querySelectorAll('.plot path.one[d]').length > 3")
        page.wait_for_timeout(1500)
        page.screenshot(path=to / f"{name}.png")
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.2)
    parser.add_argument("--to", type=Path, default=HERE)
    parser.add_argument("--phone", action="store_true", help="take one of a narrow screen too")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        mocks = [stack.enter_context(running("mock", "--listen", "127.0.0.1:0", *words))[0] for words in MOCKS]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder, "llmpipe.toml")
        path.write_text(CONFIG.format(*mocks))
        words = ("serve", "--config", str(path), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        listening, admin = stack.enter_context(running(*words, listening=2))
        url = f"http://{admin}/"
        print(f"{url}, for {arguments.minutes:g} minutes", flush=True)
        playwright = stack.enter_context(sync_playwright())
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        seconds = arguments.minutes * 60
        loader = subprocess.Popen([sys.executable, __file__, "--load", f"http://{listening}", str(seconds + 30)])
        stack.callback(loader.kill)
        time.sleep(seconds)
        photograph(browser, url, arguments.to, phone=arguments.phone)
        browser.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        asyncio.run(load(sys.argv[2], float(sys.argv[3])))
    else:
        main()
