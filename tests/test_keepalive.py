"""Stale keep-alive connections: a backend that closes idle ones costs no client an error, and nothing is done twice."""

import random
import threading
import time

import httpx
from harness import Proxy
from servers import server


def test_requests_around_the_moment_when_uvicorn_closes():
    random.seed(20)
    with (
        server("starlette_app", "1") as backend,
        Proxy(backend.url, options=["--upstream-idle-timeout", "30s"]) as proxy,
    ):
        errors: list[str] = []

        def ask(number: int) -> None:
            with httpx.Client(base_url=proxy.url, timeout=30) as client:
                for turn in range(12):
                    time.sleep(random.choice([0, 0.9, 0.98, 1.0, 1.02, 1.1]))
                    answer = client.post("/once", content=f"{number}-{turn}")
                    if answer.status_code != 200:
                        errors.append(answer.text)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert httpx.get(f"{backend.url}/most").json() == {"keys": 240, "most": 1}
        assert proxy.metric("llmpipe_exchanges_total", outcome="ok") == 240
        # Some were reused, and some were closed by the backend in between.
        assert proxy.metric("llmpipe_upstream_reuses_total", backend=backend.url) > 0
        assert proxy.metric("llmpipe_upstream_connects_total", backend=backend.url) > 1
        assert proxy.metric("llmpipe_backend_failures_total", backend=backend.url) == 0
