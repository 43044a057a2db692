"""What the engines report, a tuple for each kind. The engine makes them (`Engine.take_records`), the control plane reads them.

Times are seconds. `age` is the time since it happened, and `backend` is a backend's number, as
`Engine.configure` returned it.
"""

from __future__ import annotations

from typing import NamedTuple


class Attempt(NamedTuple):
    """An attempt that failed.

    Attributes:
        backend: that was asked.
        at: when it failed, counted from the first byte of the request.
        reason: index into REASONS.
    """

    backend: int
    at: float
    reason: int


class ExchangeEnded(NamedTuple):
    """An exchange has ended. What is said to be "after" a time is counted from the first byte of the request.

    Attributes:
        age: since its end.
        backend: that was asked last, None where none was.
        client: address of the client; empty on a Unix socket.
        method: of the request, as `target` and `request_id`. What is longer than a record has room for is cut.
        target: of the request.
        request_id: that the backend got too.
        status: what the client was sent, 499 where it left first, 0 for none.
        outcome: index into OUTCOMES.
        phase: that it ended in, an index into PHASES.
        ttft: to the first byte of a response body, None where none was forwarded.
        duration: from the first byte of the request.
        bytes_up: heads and bodies received from the client.
        bytes_down: bytes sent to the client.
        attempts: upstream connections that were used.
        close_time: from the client's disconnect to the upstream's close, None where there was none.
        error: errno that ended it, 0 for none.
        reason: of the last failed attempt, or of the refusal: an index into REASONS.
        pool: that it was for, empty where none was found.
        model: that the client asked for, empty where that was not read. A longer name is cut.
        head: the head of the request was there after it, None where it never was.
        queued: waited for a place.
        connected: the upstream that was used last was there after it, None where none was.
        answered: the head of the answer was there after it, None where none came.
        last: content was forwarded last after it, None where none was.
        events: pieces of content that were forwarded.
        prompt_tokens: as the backend counted them, None where it did not say; the same of the other two.
        completion_tokens: of the answer.
        cached_tokens: those of the prompt that the backend had in a cache.
        traceparent: of the request (W3C Trace Context), empty where there was none.
        failed: the attempts that failed, the first ones where there were many.
    """

    age: float
    backend: int | None
    client: bytes
    method: bytes
    target: bytes
    request_id: bytes
    status: int
    outcome: int
    phase: int
    ttft: float | None
    duration: float
    bytes_up: int
    bytes_down: int
    attempts: int
    close_time: float | None
    error: int
    reason: int
    pool: bytes
    model: bytes
    head: float | None
    queued: float
    connected: float | None
    answered: float | None
    last: float | None
    events: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    traceparent: bytes
    failed: tuple[Attempt, ...]


class Tape(NamedTuple):
    """The answer of an exchange that was recorded (`Engine.take_tapes`).

    Attributes:
        exchange: its record, as of its end.
        asked: whether it is one that `Engine.record_next` asked for, and not one of the share of `Engine.record_share`.
        status: of the backend's answer; that of the record is 499 where the client left before its end.
        content_type: of the answer; what is longer than there is room for is cut. Empty where it had none.
        cut: whether there was more of the answer than there is room for.
        request_body: what the client sent, without its framing; None where that was not asked for.
        request_cut: whether there was more of that, or may have been: the answer came before its end.
        pieces: (microseconds from the first byte of the request, bytes) of each read of the answer's body, without its framing.
    """

    exchange: ExchangeEnded
    asked: bool
    status: int
    content_type: bytes
    cut: bool
    request_body: bytes | None
    request_cut: bool
    pieces: tuple[tuple[int, bytes], ...]


class ExchangeLive(NamedTuple):
    """An exchange that goes on, as `Engine.list_live` asked for it: what it has gone through so far.

    Attributes:
        exchange: its outcome says nothing yet; its phase is the present one.
        number: of the list that it is of.
    """

    exchange: ExchangeEnded
    number: int


class LiveEnd(NamedTuple):
    """All that `Engine.list_live` asked for were told.

    Attributes:
        age: since then.
        number: of the list.
    """

    age: float
    number: int


class BackendDown(NamedTuple):
    """A backend failed and is left out.

    Attributes:
        age: since it failed.
        backend: that failed.
        seconds: that it is left out.
        reason: index into REASONS.
        error: errno, 0 for none.
    """

    age: float
    backend: int
    seconds: float
    reason: int
    error: int


class BackendUp(NamedTuple):
    """A backend that was left out has answered again."""

    age: float
    backend: int


class AcceptPaused(NamedTuple):
    """No client is accepted now.

    Attributes:
        age: since the pause began.
        clients: of all engines.
        error: why: 0 for as many clients as may be, EAGAIN for engines that have thousands to take first, else what
            accept(2) said.
    """

    age: float
    clients: int
    error: int


class AcceptResumed(NamedTuple):
    """Clients are accepted again.

    Attributes:
        age: since the pause ended.
        clients: of all engines.
    """

    age: float
    clients: int


class AcceptEnded(NamedTuple):
    """A listening socket is of no use any more.

    Attributes:
        age: since that was seen.
        error: errno that says why.
    """

    age: float
    error: int


Record = ExchangeEnded | ExchangeLive | LiveEnd | BackendDown | BackendUp | AcceptPaused | AcceptResumed | AcceptEnded
