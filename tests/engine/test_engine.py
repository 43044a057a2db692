"""A real inference server behind the proxy: `transformers serve` on a tiny model, and the official client before it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from harness import Proxy, free_port, wait_until

HERE = Path(__file__).parent
MESSAGES = [{"role": "user", "content": "Tell me about tokens."}]
LONG = 100_000
"""Tokens that keep even a fast machine busy for minutes."""
START = 300
"""Seconds that the server may take to load PyTorch on a slow machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("model")
    subprocess.run([sys.executable, str(HERE / "tiny_model.py"), str(directory)], check=True, timeout=START)
    return str(directory)


@pytest.fixture(scope="module")
def server(model):
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model, "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"], env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, "the inference server ended"
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, START, "the inference server")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def proxy(server):
    with Proxy(server[0]) as proxy:
        yield proxy


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def tokens(url: str, model: str, n: int) -> list[str]:
    with client(url) as api:
        stream = api.chat.completions.create(model=model, messages=MESSAGES, max_tokens=n, temperature=0, stream=True)
        return [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def test_the_tokens_are_those_of_a_direct_call(server, proxy, model):
    direct = tokens(server[0], model, 50)
    assert len(direct) > 10
    assert tokens(proxy.url, model, 50) == direct


def test_without_stream(server, proxy, model):
    with client(server[0]) as near, client(proxy.url) as far:
        texts = [
            api.chat.completions.create(model=model, messages=MESSAGES, max_tokens=20, temperature=0)
            .choices[0]
            .message.content
            for api in (near, far)
        ]
    assert texts[0]
    assert texts[0] == texts[1]


def generating(process: psutil.Process) -> bool:
    """Whether the server works: an idle one uses next to nothing, a busy one all that a loaded machine leaves it."""
    before = cpu(process)
    time.sleep(1)
    return cpu(process) - before > 0.1


def test_it_stops_when_the_client_leaves(server, proxy, model):
    process = server[1]
    wait_until(lambda: not generating(process), 60, "an idle server")
    with client(proxy.url) as api:
        stream = api.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=LONG, temperature=0, stream=True
        )
        iterator = iter(stream)
        for _ in range(5):
            next(iterator)
        # The control: while the client stays, the server goes on.
        for _ in range(2):
            wait_until(lambda: generating(process), 60, "a server that goes on")
        stream.close()
    left = time.monotonic()
    wait_until(lambda: proxy.metric("llmpipe_exchanges_total", outcome="client_abort") == 1)
    wait_until(lambda: not generating(process), 60, "a server that has stopped")
    print(f"the server was idle {time.monotonic() - left:.1f} s after the client had left")
    # It can answer the next one at once.
    assert len(tokens(proxy.url, model, 5)) >= 1


def test_the_server_would_not_have_stopped_by_itself(server, model):
    """What the test before shows would be nothing if that many tokens took a moment."""
    process = server[1]
    with client(server[0]) as api:
        stream = api.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=LONG, temperature=0, stream=True
        )
        next(iter(stream))
        before = cpu(process)
        # An idle one would take minutes for it.
        wait_until(lambda: cpu(process) > before + 2, 120, "a server that goes on")
        stream.close()
