"""Which pool a request goes to, as `Engine.configure` takes it.

Names are bytes here, as they stand in requests. A pool, and a backend in it, is named by its index.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llmpipe.config import Backend, PoolSettings, Settings
    from llmpipe.fleet import Server


class Member(NamedTuple):
    """A backend in a pool.

    Attributes:
        backend: index among those of the table.
        weight: from 1; how much it takes beside the others.
        tier: from 0; a backend is asked only while none of a lower tier is usable.
    """

    backend: int
    weight: int = 1
    tier: int = 0


class Pool(NamedTuple):
    """Backends that are equally good for a request.

    Attributes:
        name: its identity among tables: under it the turns go on.
        members: none of them twice.
        settings: what holds for exchanges with it; None for what the engine was made with.
    """

    name: bytes
    members: Sequence[Member]
    settings: PoolSettings | None = None


class Model(NamedTuple):
    """A model's name and the pool that has it.

    Attributes:
        name: as requests say it; with a * at its end, whatever stands in its place. The longest of those that fit counts, and none
            where there is an entry of the whole name.
        pool: index.
        target: the name that the pool's backends know; empty where they know the same.
    """

    name: bytes
    pool: int
    target: bytes = b""


class Rule(NamedTuple):
    """What leads to a pool whatever the model is; of several rules the first that fits counts.

    Attributes:
        pool: index.
        path: what the request's target begins with.
        field: name of a field of the head, in any case; empty for none.
        value: what that field says; empty for anything.
    """

    pool: int
    path: bytes = b""
    field: bytes = b""
    value: bytes = b""


class Routing(NamedTuple):
    """All of it. One pool without models and rules has every request.

    Attributes:
        default_pool: index of the pool of requests that nothing else leads anywhere; -1 for none.
        listing: what GET /v1/models is answered with, unless a rule leads it to a pool; empty where a backend answers it.
    """

    pools: Sequence[Pool]
    models: Sequence[Model] = ()
    rules: Sequence[Rule] = ()
    default_pool: int = -1
    listing: bytes = b""


def make_routing(
    settings: Settings, servers: Sequence[Server], listing: bytes = b"", apart: Collection[Server] = ()
) -> Routing:
    """What the settings say of pools and routes.

    Args:
        settings: has the pools.
        servers: of their backends, in the order of the table.
        listing: what GET /v1/models is answered with; empty where a backend answers it.
        apart: those of them that are in no pool.
    """
    places: dict[Backend, list[int]] = {}
    for number, server in enumerate(servers):
        if server not in apart:
            places.setdefault(server.backend, []).append(number)
    numbers = {pool.name: number for number, pool in enumerate(settings.all_pools)}
    models = []
    for number, pool in enumerate(settings.all_pools):
        models += [Model(model.encode(), number) for model in pool.models]
        models += [Model(alias.encode(), number, model.encode()) for alias, model in pool.aliases.items()]
    rules = []
    for route in settings.routes:
        name, _, value = route.header.partition(":")
        rules.append(Rule(numbers[route.pool], route.path.encode(), name.strip().encode(), value.strip().encode()))
    return Routing(
        [
            Pool(
                pool.name.encode(),
                [
                    Member(place, backend.weight, backend.tier)
                    for backend in pool.settings.backends
                    for place in places.get(backend, ())
                ],
                pool.settings,
            )
            for pool in settings.all_pools
        ],
        models,
        rules,
        numbers.get(settings.default_pool, -1),
        listing,
    )
