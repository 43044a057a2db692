"""What happens besides closing when a client has left.

The engine has closed the upstream before anything here runs: closing is the signal that stops an inference server. Here the
control plane tells who listens. Then the engines wake it for each client that leaves, and it does not wait for the access log's
timer. Where nobody listens, nobody is woken, and a client that leaves costs Python nothing.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from llmpipe import log


class Abort(NamedTuple):
    """A client that left.

    Attributes:
        client: its address.
        phase: of the exchange when it left.
        backend: that worked on it, None where none did yet.
        close_ms: milliseconds from its disconnect to the upstream's close, None where the backend may finish.
        request_id: of the exchange; the backend got the same.
    """

    client: str
    phase: str
    backend: str | None
    close_ms: float | None
    request_id: str


Listener = Callable[[Abort], None]


def listener() -> Listener | None:
    """Who is to be told of clients that leave: the log, where it writes that much. None where nobody is."""
    return _write if log.enabled(logging.DEBUG) else None


def _write(abort: Abort) -> None:
    log.debug("client left", **abort._asdict())
