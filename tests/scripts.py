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

from llmpipe.record_kinds import ExchangeEnded

TOKEN = re.compile(rb"q-([0-9a-f]{4})-")
UNFRAMED = re.compile(rb"(?i)HTTP/1\.1 200 [^\r]*\r\n(?:(?!content-length|transfer-encoding)[^\r]+\r\n)*\r\n")
"""A head whose body only the end of the connection ends."""
ADDED = re.compile(rb',"stream_options":\{"include_usage":true\}|"include_usage":true,')
"""What a request that asks for a stream has more where its usage is forced; no client of a script says so itself."""
USAGE = b'data: {"choices":[],"usage":{"a":1}}\n\n'
"""The event that is taken out of its answer then."""
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
FAULTS = {"fault", "fault_row", "listener_shut"}
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

    def set(self, **values: float) -> Script:
        """The operations "setting" that give settings these values, which must be among EDGES."""
        for name, value in values.items():
            self.setting(self._world.SETTINGS.index(name), self._world.EDGES[name].index(value))
        return self

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


def requests_in(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(method, target, body) of the whole requests in some bytes, by h11; ends where they are no longer HTTP."""
    return [request[:3] for request in read_requests(data)]


@lru_cache(maxsize=64)
def read_requests(data: bytes) -> list[tuple[bytes, bytes, bytes, bool, int]]:
    """As requests_in, with whether the client said that it is its last, and where each ends.

    One connection for each, so that what h11 does not do is done here: it reads nothing behind a request of HTTP/1.0 or one
    that says close, and no empty line before a request (RFC 9112 2.2).
    """
    found = []
    size = len(data)
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
        data = bytes(connection.trailing_data[0])
        found.append((bytes(request.method), bytes(request.target), body, says_close(request), size - len(data)))
    return found


def says_close(request: h11.Request) -> bool:
    options = {
        option.strip()
        for name, value in request.headers
        if name == b"connection"
        for option in value.lower().split(b",")
    }
    return b"close" in options or (request.http_version == b"1.0" and b"keep-alive" not in options)


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


def sift(answer: Answer) -> Answer:
    """An answer without its events with a usage. A comment between events stands for itself."""
    kept, event = b"", b""
    for line in re.findall(rb"[^\n]*\n|[^\n]+$", answer[1]):
        event += line
        if line == b"\n" or (event == line and line[:1] == b":" and line[-1:] == b"\n"):
            kept += b"" if event == USAGE else event
            event = b""
    return answer[0], kept + event, answer[2]


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
    given = [(200, run["listing"], True)]
    given += [
        answer
        for peer in run["upstreams"]
        for answer in read_answers(peer.sent, peer.left, methods_of(peer.got), False)
    ]
    forced = run["settings"].include_usage == "force"
    if forced:
        given += [sift(answer) for answer in given if USAGE in answer[1]]
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
        for method, target, body in requests_in(peer.got):
            sent = ADDED.sub(b"", body) if forced else body
            assert (method, target, sent) in asked, "a request that nobody sent"


def check_outcomes(run: Run) -> None:
    """Whether the counters agree with what the clients saw: `ok` is an answer that its client had whole, and the other way round."""
    good = unclear = left = 0
    for peer, trace in zip(run["clients"], run["client_traces"], strict=True):
        methods = methods_of(peer.sent)
        answers = read_answers(peer.got, peer.ended, methods, False)
        left += len(methods) if trace.lost else 0  # an RST may have destroyed as many
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
        names = {name for name, _ in operations_of(world, script)}
        check_honest(run, leaves=ends_accepting(world, script))
        check_outcomes(run)
        check_counts(run, names)
        check_tunnels(world, run, names)
        check_ends(run, names)
        check_resets(run, names)


# ------------------------------------------------------------------------------------- counts, tunnels, ends of connections

LINGER_MOST, LINGER_QUIET, LINGER_DRAINED = 30e6, 5e6, 2e6  # us (rule A6)
HEAD = re.compile(rb"HTTP/1\.1 \d{3} [^\r]*\r\n(?:[^\r]+\r\n)*\r\n")


def check_counts(run: Run, names: set[str]) -> None:
    """Whether no client got more final answers than it sent requests, and none whose connection we ended well got fewer."""
    for peer, trace in zip(run["clients"], run["client_traces"], strict=True):
        sent = peer.sent[: trace.in_time]
        requests = read_requests(sent)
        behind = sent[requests[-1][4] if requests else 0 :]
        answers = read_answers(peer.got, peer.ended, [request[0] for request in requests] + [b"GET"] * 3, False)
        # The line that may stand before a request begins one too: 408 where no more comes, or 504 by the total time-out.
        begun = bool(behind.removeprefix(b"\r\n")) or (
            behind != b"" and [answer[0] for answer in answers[-1:]] in ([408], [504])
        )
        assert len(answers) <= len(requests) + begun, f"{len(answers)} answers to {len(requests)} requests"
        last = next((i for i, request in enumerate(requests) if request[3]), len(requests) - 1)
        announced = any(b"connection: close" in head.lower() for head in HEAD.findall(peer.got))
        ours = trace.closed and not (trace.left and trace.left <= trace.closed) and peer.ended == "fin"
        if ours and not run["injected"] and not names & {"stop", "drain", "end_listening"} and not announced:
            assert not answers or not answers[-1][2] or len(answers) > last, "a request without an answer"
            assert answers or not requests, "a request without an answer"


def check_resets(run: Run, names: set[str]) -> None:
    """Whether a client that was to see a broken end got all bytes in front of it, unless it took none for the send time-out."""
    if (
        run["injected"]
        or names & {"stop", "drain", "setting"}
        or {"timeout_send", "timeout_total"} & run["outcomes"].keys()
    ):
        return
    for trace in run["client_traces"]:
        if trace.destroyed:
            assert trace.closed - trace.told >= run["settings"].send_timeout * 1e6, (
                f"an RST destroyed {trace.destroyed} bytes that a client had time to read"
            )


def check_tunnels(world: ModuleType, run: Run, names: set[str]) -> None:
    """Whether after a 101 each side got what the other sent, from its start, and all of it where nobody reset."""
    for peer, trace in zip(run["clients"], run["client_traces"], strict=True):
        requests = read_requests(peer.sent)
        answers = read_answers(peer.got, peer.ended, methods_of(peer.sent), False)
        if not answers or answers[-1][0] != 101 or len(answers) > len(requests):
            continue
        _, target, _, _, start = requests[len(answers) - 1]
        # The last of those that got the request: what came before was tried in vain.
        for other, other_trace in list(zip(run["upstreams"], run["upstream_traces"], strict=True))[::-1]:
            given = read_answers(other.sent, other.left, methods_of(other.got), False)
            place = other.got.find(b" " + target + b" ")
            end = other.got.find(b"\r\n\r\n", place) if place >= 0 else -1
            if end < 0:
                continue
            if not given or given[-1][0] != 101:
                break
            up = other.got[end + 4 :]
            down = answers[-1][1]
            assert peer.sent[start:].startswith(up), f"tunnel, up: {len(up)} bytes that were not sent so"
            assert given[-1][1].startswith(down), f"tunnel, down: {len(down)} bytes that were not sent so"
            ends = [
                record
                for record in run["records"]
                if isinstance(record, ExchangeEnded) and record.target.startswith(target[:96])
            ]
            if run["injected"] or "stop" in names or not ends or ends[-1].reason == world.REASONS.index("deadline"):
                break
            if world.OUTCOMES[ends[-1].outcome] not in ("ok", "client_abort"):
                break
            if "reset" in (peer.left, other.left):
                break
            hidden = len(other.sent) - other_trace.in_time
            came = given[-1][1][: len(given[-1][1]) - hidden] if hidden else given[-1][1]
            if trace.left and (not other_trace.left or trace.left < other_trace.left):
                assert up == peer.sent[start : trace.in_time] or not other_trace.room, (
                    f"tunnel, up: {trace.in_time - start - len(up)} bytes are missing at the end"
                )
                assert other.ended != "reset" or lingered(other_trace, "drain" in names), "tunnel, up: an RST"
            # What came in the same moment as the client's FIN may come after it; and in small pieces it takes many turns.
            earlier = (peer.stayed and other_trace.fed < trace.left) or 0 < other_trace.left < trace.left
            if earlier and "short" not in names:
                # Who takes nothing while it sends its FIN has left; whether what it takes later still comes is a matter of turns.
                held = not trace.room or trace.freed >= trace.left
                assert down == came or held, f"tunnel, down: {len(came) - len(down)} bytes are missing"
            if other_trace.left and other_trace.left < (trace.left or 1 << 62):
                assert peer.ended != "reset" or lingered(trace, "drain" in names), "tunnel, down: an RST"
            break


def lingered(trace: Any, drained: bool = False) -> bool:
    """Whether we waited long enough behind our FIN for what still came (rule A6)."""
    if not trace.shut:
        return False
    slack = 1e5
    waited = trace.closed - trace.shut + slack
    return (
        waited >= LINGER_MOST
        or trace.closed - max(trace.shut, trace.fed) + slack >= LINGER_QUIET
        or (drained and waited >= LINGER_DRAINED)
    )


def check_ends(run: Run, names: set[str]) -> None:
    """Whether no RST could destroy the last answer of a connection that we ended."""
    if run["injected"] or "stop" in names:
        return
    for peer, trace in zip(run["clients"], run["client_traces"], strict=True):
        if peer.ended != "reset" or (trace.left and trace.left <= trace.closed):
            continue
        requests = read_requests(peer.sent[: trace.in_time])
        answers = read_answers(peer.got, "", [request[0] for request in requests] + [b"GET"], False)
        heads = [head for head in HEAD.findall(peer.got) if b"connection: close" in head.lower()]
        if not answers or not answers[-1][2] or not heads:
            continue
        if len(requests) >= len(answers) and requests[len(answers) - 1][3]:
            continue  # it said that it sends no more
        assert lingered(trace, "drain" in names), f"an RST behind the answer {heads[-1][:16]!r}"


def random_script(world: ModuleType, dice: random.Random, faults: bool) -> bytes:
    """A conversation of up to three clients with backends that mostly answer, and whatever else comes to mind."""
    settings = dice.randrange(256) if dice.random() < 0.5 else 0
    table = dice.randrange(256) if dice.random() < 0.6 else dice.choice([0, 1])
    script = Script(world)
    if dice.random() < 0.4:
        for _ in range(dice.randrange(1, 6)):
            script.setting(dice.randrange(len(world.SETTINGS)), dice.choice([0, dice.randrange(64)]))
    if dice.random() < 0.3:
        script.configure(dice.choice([4, 20]) | dice.randrange(4), table)  # by model, some with a list of models
    if dice.random() < 0.15:
        script.configure(8 | dice.randrange(2), table)  # one exchange at a time for each backend
    if dice.random() < 0.7:
        for address in range(4):
            script.backend_answer(address, dice.randrange(len(world.RESPONSES) + 1) | dice.choice([0, 0, 64, 128, 192]))
    if dice.random() < 0.3:
        script.backend_connect(dice.randrange(4), dice.randrange(5))
    for _ in range(dice.randrange(1, 4)):
        script.connect(0, 0 if dice.random() < 0.6 else dice.randrange(20))
    if dice.random() < 0.1:
        script.client_say(0, 5).upstream_say(0, 8)
    if dice.random() < 0.2:
        # An answer that comes at once, however long it is.
        script.client_say(0, dice.choice([0, 1, 5, 5])).upstream_cork(0, 1)
        script.upstream_say(0, dice.choice([8, 8, dice.randrange(len(world.RESPONSES))]))
        for _ in range(dice.randrange(4)):
            getattr(script, dice.choice(["upstream_fill", "upstream_fill", "upstream_chunk"]))(0, dice.randrange(256))
        script.upstream_cork(0, 0)
    if dice.random() < 0.1:
        script.client_say(0, dice.choice([0, 1, 12, 12])).upstream_say(0, 2).upstream_say(0, 3)
    if dice.random() < 0.1:
        # The list of models, to a client that takes some of it at a time.
        script.configure(20, table).client_room(0, 0).client_say(0, dice.choice([27, 28]))
        for _ in range(dice.randrange(4)):
            script.client_room(0, dice.choice([1, 40, 128, 200])).time(0, dice.choice([1, 100]))
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
        elif which < 0.67:
            # One side goes on, slowly.
            drip, message = dice.choice(
                [("client_say", 13), ("upstream_say", 3), ("client_fill", 1), ("upstream_fill", 1)]
            )
            for _ in range(dice.randrange(2, 5)):
                getattr(script, drip)(0, message).time(0, 100)
        elif which < 0.69:
            # One side takes nothing, then everything.
            side = dice.choice(["client", "upstream"])
            other = "upstream" if side == "client" else "client"
            getattr(script, f"{side}_room")(0, dice.randrange(4))
            getattr(script, f"{other}_fill")(0, dice.randrange(256)).time(0, dice.choice([1, 100]))
            getattr(script, f"{side}_room")(0, 255).time(0, dice.choice([1, 102]))
        else:
            name = dice.choice([name for name in world.OPERATIONS if faults or name not in FAULTS])
            if name.endswith("_send"):
                getattr(script, name)(who, dice.randbytes(dice.randrange(8)))
            else:
                getattr(script, name)(who, dice.choice([0, 1, 2, 3, 255, dice.randrange(256)]))
    return bytes([settings, table]) + bytes(script)[2:]


def ends_accepting(world: ModuleType, script: bytes) -> bool:
    """Whether a script has an operation after which clients may stay without an answer."""
    return bool(
        {"drain", "stop", "end_listening", "listener_shut", "fault_row"}
        & {name for name, _ in operations_of(world, script)}
    )


def operations_of(world: ModuleType, script: bytes) -> list[tuple[str, bytes]]:
    """A script's operations by name, each with its bytes."""
    at, found = 2, []
    while at + 3 <= len(script):
        name = world.OPERATIONS[(script[at] & 127) % len(world.OPERATIONS)]
        end = at + 3 + (script[at + 2] if name.endswith("_send") else 0)
        found.append((name, script[at:end]))
        at = end
    return found
