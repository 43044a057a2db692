"""Fixtures of all tests. Nothing is built here: the Makefile builds the engine and the probe."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness import Backend, Client, Proxy, Script, answer_all, wait_until

# A shell's background jobs start with SIGINT ignored, and what they start inherits that; Python then knows no Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
PROBE = ROOT / os.environ.get("LLMPIPE_PROBE", "build/probe")
sys.path.insert(0, str(PROBE))


def import_probe(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(
            f"{error}; build the probe first: {sys.executable} tests/probe/setup.py build_ext --build-lib {PROBE}",
            pytrace=False,
        )


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """A log that a test has made in its own process says nothing of what the next test sees."""
    found = [logging.getLogger(name) for name in ("llmpipe", "asyncio", "opentelemetry", "uvicorn")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers), list(logger.filters)) for logger in found]
    yield
    for logger, level, propagate, handlers, filters in before:
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


@pytest.fixture(scope="session")
def probe() -> ModuleType:
    """The engine's readers, opened to tests."""
    return import_probe("llmpipe_probe")


@pytest.fixture(scope="session")
def world() -> ModuleType:
    """The engine on a simulated kernel."""
    return import_probe("llmpipe_world")


@pytest.fixture(scope="session", params=["llmpipe_world", "llmpipe_world_small"])
def any_world(request: pytest.FixtureRequest) -> ModuleType:
    """The same, and with small constants."""
    return import_probe(request.param)


@pytest.fixture(scope="session")
def fleet_world() -> ModuleType:
    """The same with rings of a few places, for several engines at once."""
    return import_probe("llmpipe_fleet")


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """Makes proxies: proxy_to(script_or_backend, ..., options=()). A script gets a backend of its own."""
    with ExitStack() as stack:

        def make(*backends: object, **arguments: object) -> Proxy:
            return stack.enter_context(Proxy(*map(url_of, backends), **arguments))

        def url_of(backend: object) -> str:
            if isinstance(backend, str):
                return backend
            return backend.url if isinstance(backend, Backend) else stack.enter_context(Backend(backend)).url

        yield make


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """A backend that the tests of a module share; `serve` gives it another script."""
    with Backend(answer_all) as backend:
        yield backend


@pytest.fixture(scope="module")
def proxy(backend: Backend) -> Iterator[Proxy]:
    """A proxy with default options, shared by the tests of a module, in front of their `backend`."""
    with Proxy(backend.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    """A connection to the shared proxy."""
    with Client(proxy) as client:
        yield client


@pytest.fixture
def serve(backend: Backend, proxy: Proxy) -> Iterator[Callable[[Script], None]]:
    """serve(script): what the shared backend does with new connections. Every test starts with none open."""

    def use(script: Script) -> None:
        backend.script = script

    yield use
    backend.forget()
    wait_until(lambda: not proxy.metric("llmpipe_upstreams"), what="upstreams closed")
    backend.forget()
    backend.script = answer_all
    backend.check()


@pytest.fixture(scope="module")
def real_proxy(server: Any) -> Iterator[Proxy]:
    """A proxy in front of the real server that the test module starts in its fixture `server`."""
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url(real_proxy: Proxy) -> str:
    """Where `real_proxy` listens."""
    return real_proxy.url
