"""A real inference server behind the proxy: `transformers serve` on a tiny model, and the official client before it."""

import json
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


Told = tuple[int, int, "int | None"]
"""Tokens of the prompt, of the answer, and of the prompt that were cached, as the answer itself has them; None where it has not."""


def chat_whole(api: openai.OpenAI, model: str, head: dict[str, str]) -> Told:
    answer = api.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=17, temperature=0, extra_headers=head
    )
    return told_in_chat(answer.usage)


def chat_stream(api: openai.OpenAI, model: str, head: dict[str, str]) -> Told:
    stream = api.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=19,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=head,
    )
    (usage,) = [chunk.usage for chunk in stream if chunk.usage]
    return told_in_chat(usage)


def completion_whole(api: openai.OpenAI, model: str, head: dict[str, str]) -> Told:
    answer = api.completions.create(model=model, prompt="Tokens are", max_tokens=11, temperature=0, extra_headers=head)
    return told_in_chat(answer.usage)


def response_whole(api: openai.OpenAI, model: str, head: dict[str, str]) -> Told:
    answer = api.responses.create(
        model=model,
        input="Tell me about tokens.",
        max_output_tokens=13,
        temperature=0,
        stream=False,  # the server streams unless it is told not to
        extra_headers=head,
    )
    return told_in_response(answer.usage)


def response_stream(api: openai.OpenAI, model: str, head: dict[str, str]) -> Told:
    stream = api.responses.create(
        model=model,
        input="Tell me about tokens.",
        max_output_tokens=15,
        temperature=0,
        stream=True,
        extra_headers=head,
    )
    (usage,) = [event.response.usage for event in stream if event.type == "response.completed"]
    return told_in_response(usage)


def told_in_chat(usage) -> Told:
    details = usage.prompt_tokens_details
    return usage.prompt_tokens, usage.completion_tokens, None if details is None else details.cached_tokens


def told_in_response(usage) -> Told:
    return usage.input_tokens, usage.output_tokens, usage.input_tokens_details.cached_tokens


def counted(proxy: Proxy) -> dict[str, float]:
    kinds = ("prompt", "completion", "cached")
    return {kind: proxy.metric("llmpipe_tokens_total", kind=kind, model="") for kind in kinds}


def read_by_the_proxy(proxy: Proxy, request_id: str) -> list[tuple[int | None, int | None, int | None]]:
    """What its access line says of the tokens, and what /exchanges says."""

    def lines() -> list[dict]:
        return [line for line in proxy.log.copy() if line.get("request_id") == request_id]

    wait_until(lines, what="an access line")
    (line,) = lines()
    (exchange,) = json.loads(proxy.admin(f"/exchanges?id={request_id}")[1])["ended"]
    kinds = ("prompt", "completion", "cached")
    return [tuple(line[f"tokens_{kind}"] for kind in kinds), tuple(exchange["tokens"][kind] for kind in kinds)]


@pytest.mark.parametrize("ask", [chat_whole, chat_stream, completion_whole, response_whole, response_stream])
def test_the_tokens_that_are_counted_are_those_that_the_answer_tells(proxy, model, ask):
    before = counted(proxy)
    request_id = f"usage-{ask.__name__}"
    with client(proxy.url) as api:
        told = ask(api, model, {"X-Request-ID": request_id})
    assert told[0] > 0
    assert told[1] > 10  # as many as were asked for, which differ from test to test
    assert read_by_the_proxy(proxy, request_id) == [told, told]
    grown = {kind: count - before[kind] for kind, count in counted(proxy).items()}
    assert grown == {"prompt": told[0], "completion": told[1], "cached": told[2] or 0}


def test_tokens_of_an_answer_that_tells_none_are_unknown(proxy, model):
    """Whether it is well, an answer to a wrong request, and a stream that its client leaves before the figures at its end."""
    before = counted(proxy)
    head = {"X-Request-ID": "usage-health"}
    assert httpx.get(f"{proxy.url}/health", headers=head, timeout=60).status_code == 200
    head = {"X-Request-ID": "usage-wrong"}
    asked = {"model": model, "messages": MESSAGES, "max_tokens": "many"}
    assert httpx.post(f"{proxy.url}/v1/chat/completions", json=asked, headers=head, timeout=60).status_code >= 400
    with client(proxy.url) as api:
        stream = api.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=LONG,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"X-Request-ID": "usage-left"},
        )
        next(iter(stream))
        stream.close()
    for request_id in ("usage-health", "usage-wrong", "usage-left"):
        assert read_by_the_proxy(proxy, request_id) == [(None, None, None)] * 2
    assert counted(proxy) == before
