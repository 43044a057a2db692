"""Scripts of the simulated world with many backends: some refuse, hang, die of a request, or move."""

from __future__ import annotations

import random
from types import ModuleType

from scripts import SETTINGS, TABLE, Script


def backends_script(world: ModuleType, dice: random.Random) -> bytes:
    """Clients of up to four backends, of which some refuse, hang, die of a request or move, and mostly one is well."""
    names = [name for name in ("two", "four", "addresses", "ipv6", "unix", "moved", "finish") if dice.random() < 0.4]
    table = 0
    for name in names:
        table |= TABLE[name]
    settings = 0
    for name in ("retry", "small_failover", "event", "total", "quota", "no_idle"):
        settings |= SETTINGS[name] if dice.random() < 0.15 else 0
    well = dice.choice(world.GOOD_RESPONSES) + 1
    script = Script(world)

    def change(server: int) -> None:
        which = dice.random()
        pieces = dice.choice([0, 0, 64, 128, 192])
        if which < 0.45:
            script.backend_answer(server, (dice.choice(world.GOOD_RESPONSES) + 1) | pieces)
        elif which < 0.7:
            script.backend_answer(server | dice.choice([16, 32, 48]), well)
        elif which < 0.8:
            script.backend_answer(server, dice.randrange(len(world.RESPONSES) + 1) | pieces)
        else:
            script.backend_connect(server, dice.randrange(5))

    for server in range(16):
        script.backend_answer(server, well)
        if dice.random() < 0.4:
            change(server)
        if dice.random() < 0.3:
            script.backend_connect(server, dice.randrange(5))
    clients = dice.randrange(1, 6)
    for _ in range(clients):
        script.connect(dice.randrange(3) if dice.random() < 0.2 else 0, 0)
    for _ in range(dice.randrange(1, 20)):
        which = dice.random()
        if which < 0.5:
            request = dice.choice([0, 0, 1, 1, 2, 7, 8, 9, 10, 16])
            for client in range(clients) if dice.random() < 0.3 else [dice.randrange(clients)]:
                script.client_say(client, request).together()
            script.time(0, 0)
        elif which < 0.6:
            script.configure(
                dice.randrange(4) if dice.random() < 0.3 else 0, table ^ dice.choice([0, 128, 128, 8, 1, 16])
            )
        elif which < 0.7:
            change(dice.randrange(16))
        elif which < 0.85:
            script.time(0, dice.choice([1, 5, 50, 99, 100, 101]))
        elif which < 0.9:
            script.upstream_settle(dice.randrange(4), dice.randrange(3))
        elif which < 0.95:
            script.client_fin(dice.randrange(clients))
        else:
            script.connect(0, 0)
    return bytes([settings, table]) + bytes(script)[2:]


def fleet_script(world: ModuleType, dice: random.Random) -> bytes:
    """Clients of several engines, in bursts: they come, ask and leave at once, and a drain or a new table comes between."""
    table = (
        TABLE["four"] * dice.randrange(2) | TABLE["two"] * dice.randrange(2) | TABLE["finish"] * (dice.random() < 0.2)
    )
    script = Script(world)
    silent = dice.random() < 0.5
    for server in range(16):
        script.backend_answer(server, 0 if silent else 1 + dice.choice(world.GOOD_RESPONSES))

    def burst(name: str, most: int, *what: int) -> None:
        for _ in range(dice.randrange(1, most)):
            getattr(script, name)(dice.randrange(16) if what else 0, *what).together()
        if dice.random() < 0.5:
            script.time(0, dice.choice([0, 0, 1, 20, 100, 102]))

    limit = 8 * (
        dice.random() < 0.4
    )  # one exchange at a time for each backend: who frees a place gives it to another worker's
    if limit:
        script.configure(limit, table)
    for _ in range(dice.randrange(1, 6)):
        burst("connect", 9)
        burst("client_say", 16, dice.choice([0, 1, 8, 9]))
        if dice.random() < 0.5:
            burst("client_fin", 9, 0)
        if dice.random() < 0.2:
            script.configure(limit, table ^ dice.choice([0, TABLE["two"], TABLE["moved"]]))
    if dice.random() < 0.5:
        script.drain().time(0, 1)
    return bytes([0, table]) + bytes(script)[2:]
