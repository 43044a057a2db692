"""The parts of docs/explain.md that are made: the example and the tables of outcomes and reasons.

.venv/bin/python tests/explain_page.py --write   puts them into the page
.venv/bin/python tests/explain_page.py --real    takes the example anew, from a proxy in front of two mock servers, and writes too

The example is kept in tests/explained: what `llmpipe explain ID --json` said of a request, and what `llmpipe explain ID` printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Client, Mock, Proxy, wait_until

from llmpipe import explanations

PAGE = Path(__file__).parents[1] / "docs" / "explain.md"
KEPT = Path(__file__).parent / "explained"

EXCHANGE: dict[str, Any] = json.loads((KEPT / "exchange.json").read_text())
"""An element of /exchanges."""

PRINTED = (KEPT / "printed.txt").read_text()
"""What was printed of it."""

MODEL = "llama-3.3-70b"

CONFIG = """
[pools.llama]
models = ["{model}"]
max_in_flight = 1
queue = {{ size = 8, timeout = "30s" }}

[[pools.llama.backends]]
name = "gpu1"
url = "{gpu1}"

[[pools.llama.backends]]
name = "gpu2"
url = "{gpu2}"
tier = 1
"""


def parts() -> dict[str, str]:
    """What stands between the marks of each name."""
    command = f"$ llmpipe explain {EXCHANGE['request_id'][:8]}"
    return {"example": f"```\n{command}\n{PRINTED}```\n", "tables": explanations.tables()}


def filled(page: str) -> str:
    """The page with these parts as they are now."""
    for name, text in parts().items():
        before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert begin, name
        assert end, name
        page = before + begin + text + end + after
    return page


def question(prompt_tokens: int, *fields: str) -> bytes:
    """A request for a stream; a token of the mock's is 4 bytes."""
    asked = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "word" * prompt_tokens}],
    }
    body = json.dumps(asked)
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: a", "Content-Type: application/json", *fields]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode()


def explain(proxy: Proxy, *words: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "llmpipe", "explain", *words, "--admin", f"http://127.0.0.1:{proxy.admin_port}"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def take() -> tuple[str, str]:
    """What the command says of a request that waits in a queue until the server whose turn it is has been killed: as JSON, and as it is
    printed.
    """
    with (
        Mock("--tokens", "1000") as gpu1,
        Mock("--tokens-per-second", "45", "--tokens", "180", "--ttft", "50ms", "--prefill-rate", "1600") as gpu2,
        tempfile.TemporaryDirectory() as folder,
    ):
        path = Path(folder, "llmpipe.toml")
        path.write_text(CONFIG.format(model=MODEL, gpu1=gpu1.url, gpu2=gpu2.url))
        with Proxy(options=("--config", str(path))) as proxy, Client(proxy) as first, Client(proxy) as second:
            first.send(question(10))
            first.read_head()
            time.sleep(0.4)
            second.send(question(5000, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
            time.sleep(1.2)
            gpu1.process.kill()  # in the middle of its answer
            answer = second.read_response()
            request_id = answer.values(b"x-request-id")[0].decode()
            wait_until(lambda: '"outcome": "ok"' in proxy.admin(f"/exchanges?id={request_id}")[1])
            said = explain(proxy, request_id, "--json")
            printed = explain(proxy, request_id[:8])
    exchange = json.loads(said)
    assert [failed["backend"] for failed in exchange["failed"]] == ["gpu1"], exchange
    assert exchange["times"]["queued"]
    return json.dumps(exchange, indent=2) + "\n", printed


if __name__ == "__main__":
    if sys.argv[1:] == ["--real"]:
        exchange, PRINTED = take()
        EXCHANGE = json.loads(exchange)
        (KEPT / "exchange.json").write_text(exchange)
        (KEPT / "printed.txt").write_text(PRINTED)
    elif sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    PAGE.write_text(filled(PAGE.read_text()))
