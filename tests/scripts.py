"""Scripts of the simulated world (tests/probe/world.pxi): how one is written, and what must be true of every run."""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from types import ModuleType
from typing import Any

import h11
from liveness import check_liveness

TOKEN = re.compile(rb"q-([0-9a-f]{4})-")
UNFRAMED = re.compile(rb"(?i)HTTP/1\.1 200 [^\r]*\r\n(?:(?!content-length|transfer-encoding)[^\r]+\r\n)*\r\n")
"""A head whose body only the end of the connection ends."""
FINAL_HEAD = re.compile(rb"HTTP/1\.1 (?:101|[2-5])")

SETTINGS = {
    "event": 1,
    "small_failover": 2,
    "total": 4,
    "small_body": 8,
    "retry": 16,
    "small_head": 32,
    "no_idle": 64,
    "quota": 128,
}
TABLE = {"two": 1, "finish": 2, "none": 4, "addresses": 8, "four": 17, "ipv6": 32, "unix": 64, "moved": 128}


Run = dict[str, Any]
Answer = tuple[int, bytes, bool]
"""Status, body, and whether it is whole."""


class Script:
    """Writes a script: Script(world, table=("two",)).connect().client_say(0, 1)...; `bytes(script)` is what runs.

    A method for each name in OPERATIONS, with `who` and `n`, or with `who` and bytes. `together()`: what was written last and what
    comes next happen before the engine looks.
    """

    def __init__(self, world: ModuleType, settings: tuple[str, ...] = (), table: tuple[str, ...] = ()) -> None:
        self._world = world
        self._ops = [bytes([sum(SETTINGS[name] for name in settings), sum(TABLE[name] for name in table)])]

    def __getattr__(self, name: str) -> Any:
        what = self._world.OPERATIONS.index(name)

        def add(who: int = 0, n: int | bytes = 0) -> Script:
            data = n if isinstance(n, bytes) else b""
            if not isinstance(n, bytes):
                self._ops.append(bytes([what, who, n]))
            for at in range(0, len(data), 255):
                piece = data[at : at + 255]
                self._ops.append(bytes([what, who, len(piece)]) + piece)
            return self

        return add

    def together(self) -> Script:
        self._ops[-1] = bytes([self._ops[-1][0] | 128]) + self._ops[-1][1:]
        return self

    def __bytes__(self) -> bytes:
        return b"".join(self._ops)


@lru_cache(maxsize=64)
def requests_in(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(method, target, body) of the whole requests in some bytes, by h11; ends where they are no longer HTTP.

    One connection for each, so that what h11 does not do is done here: it reads nothing behind a request of HTTP/1.0 or one
    that says close, and no empty line before a request (RFC 9112 2.2).
    """
    found = []
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data.removeprefix(b"\r\n"))
        request, body = None, b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return found
        except h11.RemoteProtocolError:
            return found
        assert request
        found.append((bytes(request.method), bytes(request.target), body))
        data = bytes(connection.trailing_data[0])
    return found


def read_answers(data: bytes, ended: str, methods: list[bytes], strict: bool = True) -> list[Answer]:
    """The answers to a client's requests, by h11; the last may have been cut.

    Bytes that are no answer raise h11.RemoteProtocolError, or with `strict` off end the list: a script's backend may send
    anything.
    """
    answers: list[Answer] = []
    for method in methods:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        request = h11.Request(
            method=method, target="/", headers=[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")]
        )
        connection.send(request)
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        if ended == "fin":
            connection.receive_data(b"")
        status, body, whole = 0, b"", False
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                # "closed in the middle" is an honest cut; all else is no HTTP.
                if strict and "closed" not in str(error).lower():
                    raise
                break
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    answers.append((101, bytes(connection.trailing_data[0]), False))
                    return answers
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                whole = True
                break
            else:
                break
        if not status:
            break
        answers.append((status, body, whole))
        data = connection.trailing_data[0] if whole else b""
    else:
        if data:
            answers.append((0, bytes(data), False))
    return answers


def methods_of(data: bytes) -> list[bytes]:
    return [method for method, _, _ in requests_in(data)] + [b"GET"]


def is_honest(answer: Answer, given: list[Answer]) -> bool:
    """Whether a client may get this: what a backend gave, an error of ours, or less of either and plainly so."""
    status, body, whole = answer
    if whole:
        return answer in given or (
            status >= 400 and (not body or set(json.loads(body)["error"]) == {"message", "type", "param", "code"})
        )
    # Without the event that tells of a failure, which may be cut too.
    told = b'data: {"error": '
    body = body.split(told)[0]
    body = next((body[:-n] for n in range(len(told) - 1, 0, -1) if body.endswith(told[:n])), body)
    return status >= 400 or any(status == other and data.startswith(body) for other, data, _ in given)


def answers_its_requests(upstream: Any) -> bool:
    """Whether a backend sent at most one answer to each of its requests, in their order."""
    requests = requests_in(upstream.got)
    answers = read_answers(upstream.sent, upstream.left, methods_of(upstream.got) * 9, False)
    # Heads are counted as well: an answer without a length hides those behind it.
    return max(len(answers), len(FINAL_HEAD.findall(upstream.sent))) <= len(requests) and all(
        set(TOKEN.findall(body)) <= {b"none", *TOKEN.findall(target)}
        for (_, body, _), (_, target, _) in zip(answers, requests, strict=False)
    )


def check_honest(run: Run, leaves: bool = False) -> None:
    """Whether a run served its clients and backends honestly. `leaves`: clients may stay without any answer or end."""
    given = [
        answer
        for peer in run["upstreams"]
        for answer in read_answers(peer.sent, peer.left, methods_of(peer.got), False)
    ]
    # A backend that sends what nobody asked for may be taken for one that answers; nobody can tell.
    answers_only = all(map(answers_its_requests, run["upstreams"]))
    asked = {request for peer in run["clients"] for request in requests_in(peer.sent)}
    for peer in run["clients"]:
        assert peer.got or peer.ended or peer.left == "reset" or leaves, "neither an answer nor an end"
        methods = methods_of(peer.sent)
        answers = read_answers(peer.got, peer.ended, methods)
        for answer, method in zip(answers, methods, strict=False):
            if method == b"HEAD" and not answer[1]:
                continue
            # Who leaves first may get a FIN in the middle.
            cut = (*answer[:2], False) if peer.left and answer is answers[-1] else answer
            assert is_honest(answer, given) or is_honest(cut, given), (
                f"not honest: {str(answer)[:200]} {str(given)[:200]}"
            )
        assert all(whole for _, _, whole in answers[:-1])
        # What a client got belongs to its own requests, in their order.
        if not answers_only:
            continue
        mine = TOKEN.findall(peer.sent)
        places = [mine.index(token) for token in TOKEN.findall(peer.got) if token != b"none"]
        assert places == sorted(places), "another's answer"
    for peer in run["upstreams"]:
        for request in requests_in(peer.got):
            assert request in asked, "a request that nobody sent"


def check_outcomes(run: Run) -> None:
    """Whether the counters agree with what the clients saw: `ok` is an answer that its client had whole, and the other way round."""
    good = unclear = left = 0
    for peer in run["clients"]:
        methods = methods_of(peer.sent)
        answers = read_answers(peer.got, peer.ended, methods, False)
        unframed = UNFRAMED.search(peer.got) is not None
        unclear += b"HTTP/1.1 101 " in peer.got
        for i, ((status, body, whole), method) in enumerate(zip(answers, methods, strict=False)):
            if (method == b"HEAD" and status >= 400) or (i == len(answers) - 1 and unframed):
                # It is not seen how an answer without a length ended, as a tunnel, nor whose an error without a body is.
                unclear += 1
            else:
                good += whole and not (status >= 400 and b'"error"' in body)
        left += not peer.stayed  # with bytes on their way, perhaps the last ones
    ok = run["outcomes"].get("ok", 0)
    assert good - left <= ok <= good + unclear + left, f"{ok} ok, but clients had {good} whole answers of backends"


def judge(world: ModuleType, run: Run, script: bytes) -> None:
    """All that must be true of a run of any script."""
    if run["failed"] is None:
        check_liveness(world, run)
        check_honest(run, leaves=ends_accepting(world, script))
        check_outcomes(run)


def random_script(world: ModuleType, dice: random.Random, faults: bool) -> bytes:
    """A conversation of up to three clients with backends that mostly answer, and whatever else comes to mind."""
    settings = dice.randrange(256) if dice.random() < 0.5 else 0
    table = dice.randrange(256) if dice.random() < 0.6 else dice.choice([0, 1])
    script = Script(world)
    if dice.random() < 0.7:
        for address in range(4):
            script.backend_answer(address, dice.randrange(len(world.RESPONSES) + 1) | dice.choice([0, 0, 64, 128, 192]))
    if dice.random() < 0.3:
        script.backend_connect(dice.randrange(4), dice.randrange(5))
    for _ in range(dice.randrange(1, 4)):
        script.connect(0, 0 if dice.random() < 0.6 else dice.randrange(20))
    for _ in range(dice.randrange(1, 25)):
        which = dice.random()
        who = dice.randrange(4)
        piece = dice.choice([0, 0, 0, 16, 32, 112])
        if which < 0.3:
            script.client_say(who | piece, dice.randrange(len(world.REQUESTS)))
        elif which < 0.55:
            script.upstream_say(who | piece, dice.randrange(len(world.RESPONSES)))
        elif which < 0.6 and faults:
            script.fault(dice.randrange(len(world.CALLS)), dice.randrange(256))
        elif which < 0.65:
            script.time(0, dice.choice([0, 1, 5, 50, 99, 100, 101, 102, 110, 250]))
        else:
            name = dice.choice([name for name in world.OPERATIONS if faults or name != "fault"])
            if name.endswith("_send"):
                getattr(script, name)(who, dice.randbytes(dice.randrange(8)))
            else:
                getattr(script, name)(who, dice.choice([0, 1, 2, 3, 255, dice.randrange(256)]))
    return bytes([settings, table]) + bytes(script)[2:]


def ends_accepting(world: ModuleType, script: bytes) -> bool:
    """Whether a script has an operation after which clients may stay without an answer."""
    return bool({"drain", "stop", "end_listening"} & {name for name, _ in operations_of(world, script)})


def operations_of(world: ModuleType, script: bytes) -> list[tuple[str, bytes]]:
    """A script's operations by name, each with its bytes."""
    at, found = 2, []
    while at + 3 <= len(script):
        name = world.OPERATIONS[(script[at] & 127) % len(world.OPERATIONS)]
        end = at + 3 + (script[at + 2] if name.endswith("_send") else 0)
        found.append((name, script[at:end]))
        at = end
    return found
