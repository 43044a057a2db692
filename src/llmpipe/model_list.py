"""What GET /v1/models is answered with: the names of the file, and what backends list where the file leaves that open (rule J3).

Backends are asked now and then, in the control plane's event loop. The engine answers from its table, which gets a new list when
there is one; a request never waits for a backend, and what a backend has listed once stays while it is down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h11
import msgspec

from llmpipe import log
from llmpipe.config_file import check_model
from llmpipe.errors import UsageError
from llmpipe.http_client import Question, ask_first, fault

if TYPE_CHECKING:
    from llmpipe.config import Backend, Pool, Settings
    from llmpipe.resolve import Resolver
    from llmpipe.runner import Runner

INTERVAL = 30.0
"""Seconds from an answer of a backend to the next question."""

LIMIT = 5.0
"""Seconds that an answer may take."""

MOST_ANSWER = 1 << 20
"""Bytes of an answer."""

MOST_MODELS = 1000
"""Models that are taken from one backend."""

MOST_MODEL = 2048
"""Bytes of what a backend says of one model; of more, only what OpenAI's API has is kept."""

MOST_LISTING = 4 << 20
"""Bytes of models that backends have listed; what comes behind them in the alphabet is left out."""

Model = dict[str, Any]
"""One as OpenAI's API has it: id, object, created, owned_by, and what else the backend says."""


def open_pools(settings: Settings) -> tuple[Pool, ...]:
    """The pools of which the file does not say which models they have. None where it names no model at all: a backend answers then."""
    if _nameless(settings):
        return ()
    return tuple(
        pool
        for pool in settings.all_pools
        if pool.name == settings.default_pool
        or any(name.endswith("*") for name in pool.models)
        or not (pool.models or pool.aliases)
    )


def _nameless(settings: Settings) -> bool:
    return not any(pool.models or pool.aliases for pool in settings.all_pools)


def parse(body: bytes) -> dict[str, Model]:
    """The models in a backend's answer, by id; without those that no request can name.

    Raises:
        ValueError: it is no list of models.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error) or repr(error)) from None
    # Ollama without a model says null.
    rows = document.get("data", ()) if isinstance(document, dict) and "data" in document else ()
    if not isinstance(document, dict) or "data" not in document or not isinstance(rows, list | None):
        raise ValueError("it has no list named data")
    models: dict[str, Model] = {}
    for row in rows or ():
        model = _read(row)
        if model is not None:
            models.setdefault(model["id"], model)
        if len(models) == MOST_MODELS:
            break
    return models


def _read(row: Any) -> Model | None:
    """A model; None where it is none that a request could name."""
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str) or "*" in name:
        return None
    try:
        check_model(name)
    except UsageError:
        return None
    created, owner = row.get("created"), row.get("owned_by")
    model: Model = {"id": name, "object": "model"}
    if type(created) is int and 0 <= created < 1 << 53:
        model["created"] = created
    if isinstance(owner, str) and len(owner) <= MOST_MODEL // 16:
        model["owned_by"] = owner
    more = {key: value for key, value in row.items() if key not in ("id", "object", "created", "owned_by")}
    return {**model, **more} if len(msgspec.json.encode(more)) <= MOST_MODEL else model


def _steady(value: Any) -> Any:
    """What a backend says of a model without what vLLM and llama.cpp make anew for each answer: times, and ids of permissions."""
    if isinstance(value, dict):
        return {key: _steady(more) for key, more in value.items() if key not in ("created", "permission")}
    return value


class Catalogue:
    """Knows all models. It belongs to one event loop."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Model]] = {}
        """What each backend listed last, by its name."""
        self._seen: dict[str, int] = {}
        """When a model was first listed of which nobody says when it was created."""

    def learn(self, backend: str, models: dict[str, Model]) -> bool:
        """Takes a backend's list in the place of the one before, and says whether it is another one. A model that is what it was stays
        as it was listed then."""
        before = self._found.get(backend)
        known = before or {}
        self._found[backend] = {
            name: known[name] if name in known and _steady(known[name]) == _steady(model) else model
            for name, model in models.items()
        }
        return self._found[backend] != before

    def forget(self, settings: Settings) -> None:
        """Forgets what these settings have no more."""
        names = {backend.name for pool in open_pools(settings) for backend in pool.settings.backends}
        self._found = {name: models for name, models in self._found.items() if name in names}
        listed = {model["id"] for model in self._models(settings)}
        self._seen = {name: at for name, at in self._seen.items() if name in listed}

    def listing(self, settings: Settings) -> bytes:
        """The answer to GET /v1/models; empty where a backend is to give it: the file names no model, or no model is known and there is
        a default pool."""
        models = self._models(settings)
        if not models and (_nameless(settings) or settings.default_pool):
            return b""
        return msgspec.json.encode({"object": "list", "data": models})

    def _models(self, settings: Settings) -> list[Model]:
        owners = {name: pool.name for pool in settings.all_pools for name in (*pool.models, *pool.aliases)}
        models: dict[str, Model] = {}
        for name in owners:
            if not name.endswith("*"):
                models[name] = self._finished({"id": name, "object": "model"})
        room = MOST_LISTING
        for name, model in sorted(self._listed(settings, owners).items()):
            if name not in models:
                finished = self._finished(model)
                room -= len(msgspec.json.encode(finished))
                if room < 0:
                    break
                models[name] = finished
        return [models[name] for name in sorted(models)]

    def _finished(self, model: Model) -> Model:
        created = model.get("created")
        if created is None:
            created = self._seen.setdefault(model["id"], int(time.time()))
        more = {key: value for key, value in model.items() if key not in ("id", "object", "created", "owned_by")}
        owner = model.get("owned_by", "llmpipe")
        return {"id": model["id"], "object": "model", "created": created, "owned_by": owner, **more}

    def _listed(self, settings: Settings, owners: dict[str, str]) -> dict[str, Model]:
        """What backends have listed of models that requests reach them by; of several, what the first says."""
        found: dict[str, Model] = {}
        wildcards = sorted((name[:-1] for name in owners if name.endswith("*")), key=len, reverse=True)
        for pool in open_pools(settings):
            takes_rest = pool.name == settings.default_pool or not (pool.models or pool.aliases)
            for backend in pool.settings.backends:
                for name, model in self._found.get(backend.name, {}).items():
                    fits = next((wildcard for wildcard in wildcards if name.startswith(wildcard)), None)
                    owner = owners.get(name) or (None if fits is None else owners[f"{fits}*"])
                    if owner == pool.name or (owner is None and takes_rest):
                        found.setdefault(name, model)
        return found


class _Asker:
    """Asks one backend, one question at a time."""

    def __init__(self, resolver: Resolver, backend: Backend, take: Callable[[str, dict[str, Model]], None]) -> None:
        self._resolver = resolver
        self._backend = backend
        self._take = take
        self._fails = False
        self._hurry = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def hurry(self) -> None:
        """Has the next question asked now."""
        self._hurry.set()

    def stop(self) -> None:
        """Ends it."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                failure = await self._ask()
            except Exception as error:  # else it would never be asked again
                log.error("models not taken", backend=self._backend.name, error=repr(error))
            else:
                if failure:
                    event = log.debug if self._fails else log.info
                    event("models not listed", backend=self._backend.name, reason=failure)
                self._fails = bool(failure)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), INTERVAL)
            self._hurry.clear()

    async def _ask(self) -> str:
        """Asks, and passes on what is good. What is wrong with the answer; empty for nothing."""
        backend = self._backend
        question = Question(backend.host_text, f"{backend.prefix}/v1/models", "model list", most=MOST_ANSWER)
        addresses = [address for server in self._resolver.servers(backend) for address in server.addresses]
        try:
            answer = await asyncio.wait_for(ask_first(addresses, question), LIMIT)
        except (asyncio.TimeoutError, OSError, h11.ProtocolError) as error:
            return fault(error, LIMIT)
        if answer.status != 200:
            return f"status {answer.status}"
        try:
            models = parse(answer.body)
        except ValueError as error:
            return f"no list of models: {error}"
        self._take(backend.name, models)
        return ""


class ModelLists:
    """Asks the backends of open pools, and hands the engines a new table when the list of models is another one. It belongs to one
    event loop."""

    def __init__(self, runner: Runner, resolver: Resolver) -> None:
        self._runner = runner
        self._resolver = resolver
        self._askers: dict[Backend, _Asker] = {}

    def configure(self, settings: Settings) -> None:
        """Asks the backends of these pools from now on. What one had listed that is in the settings no more is forgotten."""
        wanted = dict.fromkeys(backend for pool in open_pools(settings) for backend in pool.settings.backends)
        for backend in [backend for backend in self._askers if backend not in wanted]:
            self._askers.pop(backend).stop()
        self._runner.catalogue.forget(settings)
        for backend in wanted:
            if backend not in self._askers:
                self._askers[backend] = _Asker(self._resolver, backend, self._take)
        self._publish()

    def refresh(self) -> None:
        """Asks all of them now."""
        for asker in self._askers.values():
            asker.hurry()

    def _take(self, backend: str, models: dict[str, Model]) -> None:
        if self._runner.catalogue.learn(backend, models):
            self._publish()

    def _publish(self) -> None:
        if self._runner.listing_is_old():
            self._runner.configure(self._resolver)

    def close(self) -> None:
        """Ends it."""
        for asker in self._askers.values():
            asker.stop()
        self._askers.clear()
