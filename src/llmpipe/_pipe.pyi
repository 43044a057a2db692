"""The boundary between the control plane (Python) and the data plane (Cython).

Everything that crosses it is here: one class and a few tuples of names. Times are seconds (float) and sizes bytes
(int) unless a name says otherwise.
"""

from collections.abc import Sequence
from typing import Protocol, TypedDict

OUTCOMES: tuple[str, ...]
"""Printable names of the ways an exchange can end; an index into it is the `outcome` of an event record."""

PHASES: tuple[str, ...]
"""Printable names of the phases of an exchange; an index into it is the `phase` of an event record."""

REASONS: tuple[str, ...]
"""Why an attempt failed or a request was refused; an index into it is the `reason` of an event record. The first is none."""

DISCARDS: tuple[str, ...]
"""Why received bytes went nowhere; an index into it is one into the `discarded` of the statistics."""

BUCKETS: tuple[float, ...]
"""Upper bounds, in seconds, of the histogram buckets; one more bucket, without bound, follows the last."""

MAX_BACKENDS: int
"""Slots that `Engine.configure` accepts: 0 to MAX_BACKENDS - 1."""

MAX_ADDRESSES: int
"""Addresses that one backend may have; `Engine.configure` refuses more."""

MAX_LISTENERS: int
"""Listening sockets that `Engine.listen` accepts at; it refuses more."""

EVENT_EXCHANGE: int
"""Kind of an event record: an exchange ended."""

EVENT_BACKEND_DOWN: int
"""Kind of an event record: a backend failed and is left out for `duration` seconds."""

EVENT_BACKEND_UP: int
"""Kind of an event record: a backend that was left out answered again."""

EVENT_ACCEPT_PAUSED: int
"""Kind of an event record: no client is accepted now. `bytes_up` is the number of clients, `error` why: 0 for as many as
may be, EAGAIN for engines that have thousands to take first, else what accept(2) said."""

EVENT_ACCEPT_RESUMED: int
"""Kind of an event record: clients are accepted again."""

EVENT_ACCEPT_ENDED: int
"""Kind of an event record: a listening socket is of no use any more, `error` says why."""

class Settings(Protocol):
    """What an engine is told once, when it is made; `llmpipe.config.Settings` satisfies it. A timeout, or a
    `max_body`, of 0 is off."""

    @property
    def max_request_line(self) -> int: ...
    @property
    def max_head(self) -> int: ...
    @property
    def max_fields(self) -> int: ...
    @property
    def max_response_head(self) -> int: ...
    @property
    def max_response_fields(self) -> int: ...
    @property
    def max_body(self) -> int: ...
    @property
    def failover_body(self) -> int: ...
    @property
    def kept_memory(self) -> int: ...
    @property
    def head_timeout(self) -> float: ...
    @property
    def keepalive_timeout(self) -> float: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def ttft_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def total_timeout(self) -> float: ...
    @property
    def send_timeout(self) -> float: ...
    @property
    def upstream_idle_timeout(self) -> float: ...
    @property
    def dead_peer_timeout(self) -> float: ...
    @property
    def retry_statuses(self) -> frozenset[int]: ...
    @property
    def midstream_error_event(self) -> bool: ...
    @property
    def comments_count_as_content(self) -> bool: ...
    @property
    def access_records(self) -> bool: ...
    @property
    def trusted_proxies(self) -> Sequence[tuple[bytes, int]]:
        """Networks whose peers are believed when they tell of the hops before them: (packed address, its bits that count)."""
    @property
    def trust_unix(self) -> bool:
        """Whether peers on a Unix socket are."""

Backend = tuple[int, bytes, bytes, bytes, Sequence[tuple[str, int]], bool]
"""(slot, name, authority, host, addresses, finish_on_abort).

The name is the backend's identity among all engines that share. The host is what the backend gets in the Host field, empty for
what the client sent; the authority goes there where the client sent none. An address is (numeric host, port), or ("unix:/path", 0).
"""

EventRecord = tuple[
    int,  # kind: one of the EVENT_* constants
    float,  # age: seconds since it happened
    int,  # slot of the backend, -1 for none
    bytes,  # client address
    bytes,  # method
    bytes,  # request target, cut at the room the record has
    bytes,  # request id
    int,  # status for the log: what was sent to the client, 499 for a client abort, 0 for none
    int,  # outcome: index into OUTCOMES
    int,  # phase that it ended in: index into PHASES
    float,  # TTFT, -1 where no body byte was forwarded
    float,  # duration of the exchange, or time that a backend is left out
    int,  # body and head bytes received from the client
    int,  # bytes sent to the client
    int,  # attempts: upstream connections used
    float,  # time from the client's disconnect to the upstream's close, -1 where there was none
    int,  # errno that ended it, 0 for none
    int,  # reason of the last failed attempt, or of the refusal: index into REASONS
]

Histogram = tuple[list[int], float]
"""(count of each bucket, not cumulative and one longer than BUCKETS; sum of all values in seconds)."""

class BackendStats(TypedDict):
    in_flight: int  # of all engines that share, as `left_out`
    idle: int
    exchanges: int
    connects: int
    reuses: int
    failures: int
    left_out: bool

class Stats(TypedDict):
    clients: int
    accepted: int
    streaming_active: int
    finishing: int
    streaming_bytes: int
    bytes_up: int
    events: int
    outcomes: list[int]
    reasons: list[int]
    discarded: list[int]  # bytes
    over_total: int
    over_address: int
    gave_way: int
    silent: int
    over_memory: int
    connects: int
    connect_errors: int
    reuses: int
    stale: int
    retries: int
    records_dropped: int
    kept: int  # bytes of requests that all engines that share keep to send them again
    buffers_held: int
    buffers_made: int
    upstreams: int
    ttft: Histogram
    itl: Histogram
    duration: Histogram
    disconnect: Histogram
    backends: list[BackendStats]

class Engine:
    """One worker of the data plane: its own epoll set, connections, upstream pools and counters.

    One thread calls `run`. Every other method may be called from one other thread, the control plane's, at the same
    time; none of them blocks.
    """

    def __init__(self, settings: Settings, sharing: Engine | None = None) -> None:
        """Takes the memory and the descriptors that the engine starts with.

        Args:
            settings: what it is told.
            sharing: another engine of the process. What is decided is then decided together: exchanges in flight by backend,
                backends that are left out, the retry budget, whose turn it is, how much is kept of requests.

        Raises:
            OSError: a descriptor could not be made.
            MemoryError: memory could not be had.
            ValueError: a setting is out of its range.
        """

    def run(self) -> None:
        """Forwards until `stop`, or after `drain` until the last connection is gone. Holds no GIL while it runs.

        Raises:
            OSError: the epoll set failed; every connection was closed.
            RuntimeError: it is running already, or has run.
        """

    def listen(
        self,
        listeners: list[int],
        engines: list[Engine],
        most: int,
        resume_at: int,
        max_connections: int,
        max_per_address: int,
    ) -> None:
        """Accepts connections from now on, each for the engine with the fewest clients.

        Accepting pauses while there are `most` clients or no descriptor is left, which EVENT_ACCEPT_PAUSED tells, and goes
        on when there are `resume_at` or fewer, which EVENT_ACCEPT_RESUMED tells.

        Args:
            listeners: 1 to MAX_LISTENERS listening sockets that do not wait; the limits are those of all together. They get
                TCP_NODELAY and keepalive, which their connections inherit. They stay the caller's, and open while the engine
                listens.
            engines: all engines, this one among them; none may be closed while this one runs.
            most, resume_at: clients of all engines.
            max_connections: clients that are served; what comes above is accepted and answered 503. 0 is no limit.
            max_per_address: clients of one address (of one /64 of IPv6) that are served; those above are answered 429, and
                those above twice as many closed. Trusted proxies are not counted. 0 is no limit.

        Raises:
            RuntimeError: the engine listens already.
            ValueError: there are too many sockets or engines, or none.
        """

    def end_listening(self) -> None:
        """Accepts what waits now, as far as there is room, and no more; `listens` tells when that is done."""

    @property
    def listens(self) -> bool:
        """Whether it was told to listen, and has not ended that."""

    def configure(self, backends: Sequence[Backend]) -> None:
        """Replaces the routing table between two turns of the loop; live exchanges keep what they have.

        Raises:
            ValueError: a slot, an address or an authority is out of range.
        """

    def drain(self) -> None:
        """Lets live exchanges finish, closes idle connections; `run` returns after the last one."""

    def stop(self) -> None:
        """Ends everything at once; `run` returns."""

    def drain_events(self) -> list[EventRecord]:
        """Takes the event records that were written since the last call."""

    def stats(self) -> Stats:
        """A snapshot of the counters; nothing is computed until it is called."""

    @property
    def events_fd(self) -> int:
        """An eventfd, readable when records should be taken soon: a client left, or the ring is half full.

        Records of exchanges that ended well wait for the next call of `drain_events`, whenever that is.
        """

    @property
    def clients(self) -> int:
        """Client connections that the engine owns, those still in its mailbox included, and places of clients that left while
        their backend finishes."""

    def close(self) -> None:
        """Releases memory and descriptors; `run` must have returned. Idempotent."""
