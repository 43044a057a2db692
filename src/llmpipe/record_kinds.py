"""What the engines report, a tuple for each kind. The engine makes them (`Engine.take_records`), the control plane reads them.

Times are seconds. `age` is the time since it happened, and `backend` is a backend's number, as
`Engine.configure` returned it.
"""

from __future__ import annotations

from typing import NamedTuple


class ExchangeEnded(NamedTuple):
    """An exchange has ended.

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


Record = ExchangeEnded | BackendDown | BackendUp | AcceptPaused | AcceptResumed | AcceptEnded
