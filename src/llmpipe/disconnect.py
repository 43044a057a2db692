"""What happens besides closing when a client has left.

The engine has closed the upstream before this is called: closing is the signal that stops an inference server. Here the
control plane says so. It runs within a moment of the disconnect, not with the access log's timer.
"""

from llmpipe import log


def signal(*, request_id: str, backend: str | None, phase: str, close_ms: float | None, client: str) -> None:
    """Reports a client that left.

    Args:
        request_id: of the exchange; the backend got the same.
        backend: that worked on it, None where none did yet.
        phase: of the exchange when it left.
        close_ms: milliseconds from its disconnect to the upstream's close, None where the backend may finish.
        client: its address.
    """
    log.debug("client left", client=client, phase=phase, backend=backend, close_ms=close_ms, request_id=request_id)
