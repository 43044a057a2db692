"""Workloads: shapes of load with their numbers, and the plans that the generator gets for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from llmpipe._load import (
    ANSWER_SIZE_MOST,
    CHUNK_SIZE_MOST,
    EVENT_SIZE_LEAST,
    EVENT_SIZE_MOST,
    REPLAY_STAMPS_MOST,
)
from llmpipe.bench.replay import Replay, Tape
from llmpipe.config import format_address
from llmpipe.errors import UsageError

NEVER, ASK, CONNECT, ARRIVAL = range(4)
EVENTS, FLOOD, SILENT, _, REPLAY = range(5)

SHAPES = {
    "paced": "streams that send events at a steady pace",
    "requests": "clients that ask again as soon as they are answered, on the same connection",
    "arrivals": "requests at a given rate, whether or not those before were answered",
    "flood": "streams without a pace, as fast as they are taken",
    "hold": "streams that stay silent after their first event",
    "churn": "clients that open a new connection for each request",
    "disconnect": "clients that leave in random phases, beside paced streams that stay",
    "replay": "clients that ask again and again, and get recorded answers in turn, each piece when it came then",
}

ENDLESS = frozenset({"paced", "flood", "hold", "disconnect"})
"""Shapes whose answers end only when the measurement does."""

NEEDS_SOURCE = ENDLESS | {"replay"}
"""Shapes that mean something only where the answers' pace is the generator's own."""

DEFAULT_PROMPT = "Explain in detail how a reverse proxy forwards a stream of tokens."


@dataclass(frozen=True)
class Request:
    """What clients ask for."""

    path: str = "/v1/chat/completions"
    host: str = ""
    model: str = "bench"
    prompt: str = DEFAULT_PROMPT
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    """Instead of the JSON made of the model, the prompt and the tokens."""


@dataclass(frozen=True)
class Workload:
    """One shape of load; rates in events or requests a second, sizes in bytes, times in seconds."""

    shape: str
    name: str = ""
    streams: int = 100
    """Streams or clients."""
    rate: float = 25.0
    """Events a second of each stream; 0 sends an answer in one piece."""
    event_size: int = 200
    tokens: int = 1
    """Events of an answer that ends by itself."""
    arrivals: float = 100.0
    """Requests a second, of `arrivals`."""
    disconnecting: int = 8
    """Clients that leave, of `disconnect`."""
    timeout: float = 60.0
    """For one request of a shape whose answers end."""
    sourced: bool = True
    """Whether the bundled source answers; pace and size of events are the server's own otherwise."""
    beside: str = ""
    """What else is done to the target meanwhile, for the title."""
    about: str = ""
    """What it is, for the title, where the numbers do not tell it."""
    request: Request = field(default_factory=Request)
    replay: Replay | None = None
    """What is played, of `replay`."""

    def __post_init__(self) -> None:
        if not EVENT_SIZE_LEAST <= self.event_size <= EVENT_SIZE_MOST:
            raise UsageError(f"--event-size: an event is {EVENT_SIZE_LEAST} to {EVENT_SIZE_MOST} bytes long")
        if self.endless and self.shape in ("paced", "disconnect") and self.streams and not self.rate:
            raise UsageError("--rate: paced streams need a rate; use the shape flood for no pace")

        most = ANSWER_SIZE_MOST // (self.event_size + CHUNK_SIZE_MOST)
        if self.replay is not None:
            kept = self.streams * self.replay.most_pieces
            if kept > REPLAY_STAMPS_MOST:
                raise UsageError(
                    f"--streams {self.streams}: with {self.replay.most_pieces:,} pieces each that are {kept:,} times to keep, and "
                    f"at most {REPLAY_STAMPS_MOST:,} are kept; start at most {REPLAY_STAMPS_MOST // self.replay.most_pieces:,}"
                )
        elif not self.endless and not self.rate and self.tokens > most:
            raise UsageError(
                f"--tokens: an answer in one piece has at most {most} events of this size; give it a --rate"
            )

    @property
    def endless(self) -> bool:
        """Whether an answer ends only when the measurement does."""
        return self.shape in ENDLESS

    @property
    def by_events(self) -> bool:
        """Whether it is about events, and not about whole answers."""
        return self.endless or self.shape == "replay"

    @property
    def spread(self) -> float:
        """Seconds over which clients begin."""
        return self.replay.spread / 1e9 if self.replay else 0.0

    @property
    def asked_tokens(self) -> int:
        """What a request says. An endless answer has no number of tokens; routers want to see one."""
        return 1_000_000 if self.by_events else self.tokens

    @property
    def body_size(self) -> int:
        """Bytes of a request's body."""
        return len(_body(self.request, self.asked_tokens))

    @property
    def title(self) -> str:
        """What the workload is, for people."""
        streams = f"{self.streams:,} stream{'s' * (self.streams != 1)}"
        clients = f"{self.streams:,} client{'s' * (self.streams != 1)}"
        unit = "event" if self.sourced else "token"
        answer = f"answers of {'' if self.sourced else 'at most '}{self.tokens:,} {unit}{'s' * (self.tokens != 1)}"
        pace = f" at {self.rate:g} events/s" if self.sourced and self.rate and self.tokens > 1 else ""
        titles = {
            "paced": f"{streams} x {self.rate:g} events/s, events of {self.event_size} B",
            "requests": f"{'short ' if self.sourced else ''}keep-alive requests, {clients}, {answer}{pace}",
            "arrivals": f"{self.arrivals:g} requests/s, open loop, at most {clients}, {answer}{pace}",
            "flood": f"{streams} without a pace, events of {self.event_size} B",
            "hold": f"{streams}, open and silent",
            "churn": f"a new connection for each request, {clients}, {answer}{pace}",
            "disconnect": f"clients that leave, beside {streams} x {self.rate:g} events/s",
        }
        if self.replay:
            count, speed = len(self.replay.tapes), self.replay.speed
            titles["replay"] = f"replay of {self.replay.name}, {count:,} recording{'s' * (count != 1)}"
            titles["replay"] += f", {streams}" + (f", {speed:g} times as fast" if speed != 1 else "")
        return (self.about or titles.get(self.shape, self.shape)) + (f", beside {self.beside}" if self.beside else "")

    @property
    def described(self) -> dict[str, object]:
        """The numbers that matter for this shape."""
        names = {
            "paced": ("streams", "rate", "event_size"),
            "flood": ("streams", "event_size"),
            "hold": ("streams", "event_size"),
            "disconnect": ("streams", "rate", "event_size", "disconnecting"),
        }.get(self.shape, ("streams", "tokens", "rate", "event_size", "timeout"))
        if not self.sourced:
            names = ("streams", "tokens", "timeout")
        if self.shape in ("uploads", "queue"):
            names = ("streams", "body_size")
        if self.shape == "arrivals":
            names = ("arrivals", *names)
        if self.replay:
            return {
                "streams": self.streams,
                "file": self.replay.name,
                "recordings": len(self.replay.tapes),
                "left_out": self.replay.left_out,
                "speed": self.replay.speed,
                "spread": round(self.spread, 3),
            }
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LoadPlan:
    """A workload for one target, in the generator's units; see `_load.pyi`."""

    target: tuple[str, int]
    clients: int
    disconnecting: int
    again: int
    mode: int
    events: int
    event_size: int
    interval: int
    arrival: int
    timeout: int
    spread: int
    recordings: tuple[Tape, ...]
    marked: bool
    prefix: bytes
    suffix: bytes
    body: bytes


def _body(request: Request, tokens: int) -> bytes:
    if request.body is not None:
        return request.body
    return json.dumps(
        {
            "model": request.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": request.prompt}],
        }
    ).encode()


def make_plan(workload: Workload, target: tuple[str, int], marked: bool) -> LoadPlan:
    """The plan of a workload for one target; `marked` where the generator's own source is behind it."""
    request = workload.request
    body = _body(request, workload.asked_tokens)
    head = [
        f"POST {request.path} HTTP/1.1",
        f"Host: {request.host or format_address(*target)}",
        "User-Agent: llmpipe-bench",
        "Content-Type: application/json",
        *(f"{name}: {value}" for name, value in request.headers),
        f"Content-Length: {len(body)}",
    ]
    if workload.shape == "churn":
        head.append("Connection: close")
    text = "\r\n".join(head).encode("latin-1") + b"\r\n"
    again = {"requests": ASK, "churn": CONNECT, "arrivals": ARRIVAL, "replay": ASK}.get(workload.shape, NEVER)
    replay = workload.replay
    timeout = 0 if workload.endless else int(workload.timeout * 1e9)
    return LoadPlan(
        target=target,
        clients=workload.streams,
        disconnecting=workload.disconnecting if workload.shape == "disconnect" else 0,
        again=again,
        mode={"flood": FLOOD, "hold": SILENT, "replay": REPLAY}.get(workload.shape, EVENTS),
        events=0 if workload.by_events else workload.tokens,
        event_size=workload.event_size,
        interval=int(1e9 / workload.rate) if workload.rate and (workload.endless or workload.tokens > 1) else 0,
        arrival=int(1e9 / workload.arrivals),
        # What a recording takes by itself is no fault of the target.
        timeout=timeout + replay.longest if timeout and replay else timeout,
        spread=replay.spread if replay else 0,
        recordings=replay.tapes if replay else (),
        marked=marked,
        prefix=text + b"X-Request-ID-Bench: " if marked else text,
        suffix=(b"\r\n\r\n" if marked else b"\r\n") + body,
        body=body,
    )


def with_host(workload: Workload, host: str) -> Workload:
    """The same workload with another Host field."""
    return replace(workload, request=replace(workload.request, host=host))
