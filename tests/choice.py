"""Counts the instructions of choosing a backend: those of a request with many backends, less those with one.

The same requests, with the same file but for the number of its pools and backends, run under callgrind as in instructions.py.

    python tests/choice.py [--python PYTHON] [--pools 100] [--backends 20]
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import tempfile
from pathlib import Path

from instructions import ANSWER, ANSWER_BODY, BODY, REQUEST, Cost, Peer, Proxy, build_of, lacking

MODEL = json.loads(BODY)["model"]
WARM = 12
"""Requests for each backend before anything is counted."""

MOST_WARM = 400
"""The same, until each backend has a connection: one that is chosen at random may be late."""
CHOICE = (
    *("pool_reserve", "pool_look", "pool_turn", "pool_full", "choose_least", "choose_of_two", "choose_in_order"),
    *("member_cost", "member_share", "turn_hash", "backend_out", "backend_unproven", "backend_try", "route_full"),
)
"""The functions that choose, of the engine's choice.pxi and shared.pxi; most are a part of another one where the compiler wants it."""


def file_of(pools: int, backends: int, policy: str, port: int) -> str:
    """A configuration file. The pool that is asked for is the last one."""
    lines = []
    for i in range(pools):
        model = MODEL if i == pools - 1 else f"model-{i}"
        lines.append(f"[pools.pool{i}]\nmodels = [{json.dumps(model)}]\npolicy = {json.dumps(policy)}")
        for j in range(i * backends, (i + 1) * backends):
            address = f"127.1.{j // 250}.{j % 250 + 1}:{port}"
            lines.append(f"[[pools.pool{i}.backends]]\nurl = {json.dumps(f'http://{address}')}")
    return "\n".join(lines) + "\n"


class Asker:
    """A client that asks again and again, and all backends."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._backends: list[Peer] = []
        self._client = proxy.dial()

    def _asked(self, timeout: float) -> Peer | None:
        found, _, _ = select.select([self._proxy.backend, *(each.socket for each in self._backends)], [], [], timeout)
        if self._proxy.backend in found:
            self._backends.append(self._proxy.accept())
        return next((each for each in self._backends if each.socket in found), None)

    @property
    def backends(self) -> int:
        """Those that have a connection."""
        return len(self._backends)

    def warm(self) -> None:
        """One request, in as many turns as it needs: its backend may not have been connected yet."""
        self._client.say(REQUEST)
        asked: list[Peer] = []

        def arrived() -> bool:
            if (found := self._asked(0)) is not None:
                asked.append(found)
            return bool(asked)

        self._proxy.turn_until(arrived)
        self._answer(asked[0])

    def ask(self) -> None:
        """One request, in two turns."""
        self._client.say(REQUEST)
        self._proxy.turn()
        found = self._asked(10.0)
        if found is None:
            raise RuntimeError("a request went to a backend that had no connection")
        self._answer(found)

    def _answer(self, backend: Peer) -> None:
        backend.hear_request()
        backend.say(ANSWER)
        self._proxy.turn()
        self._client.hear(ANSWER_BODY)


def count(python: str, pools: int, backends: int, policy: str) -> Cost:
    """What a request costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def options(port: int) -> list[str]:
            path = folder / "llmpipe.toml"
            path.write_text(file_of(pools, backends, policy, port))
            return ["--config", str(path)]

        proxy = Proxy(python, folder, options, "0.0.0.0")
        try:
            asker = Asker(proxy)
            for number in range(MOST_WARM * backends):
                if number >= WARM * backends and asker.backends == backends:
                    break
                asker.warm()
            return proxy.cost(asker.ask, 200)
        finally:
            proxy.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of choosing a backend.")
    parser.add_argument("--python", default=sys.executable, help="one that has llmpipe installed")
    parser.add_argument("--pools", type=int, default=100)
    parser.add_argument("--backends", type=int, default=20, help="of each pool")
    options = parser.parse_args()
    if reason := lacking():
        print(f"choice: {reason}", file=sys.stderr)
        return 1
    print(f"{'policy':18}{'pools':>7}{'backends':>10}{'a request':>11}{'more':>7}{'choosing':>10}")
    for policy in ("least_in_flight", "p2c"):
        one = count(options.python, 1, 1, policy)
        for pools, backends, cost in (
            (1, 1, one),
            (options.pools, options.backends, count(options.python, options.pools, options.backends, policy)),
        ):
            choosing = sum(cost.functions[name] for name in CHOICE)
            more = cost.total - one.total
            print(f"{policy:18}{pools:7}{backends:10}{cost.total:11.0f}{more:7.0f}{choosing:10.0f}", flush=True)
    print(", ".join(f"{name} {value}" for name, value in build_of(options.python).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
