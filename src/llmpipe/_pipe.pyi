"""The boundary between the control plane (Python) and the data plane (Cython).

Everything that crosses it is here, one class and a few tuples of names, and in `record_kinds`. Times are seconds (float) and sizes bytes
(int) unless a name says otherwise.
"""

from collections.abc import Sequence
from typing import TypedDict

from llmpipe.config import Settings
from llmpipe.record_kinds import Record, Tape
from llmpipe.routing import Routing

OUTCOMES: tuple[str, ...]
"""Printable names of the ways an exchange can end; an index into it is the `outcome` of a record."""

PHASES: tuple[str, ...]
"""Printable names of the phases of an exchange; an index into it is the `phase` of a record."""

REASONS: tuple[str, ...]
"""Why an attempt failed or a request was refused; an index into it is the `reason` of a record. The first is none."""

RETRIES: tuple[str, ...]
"""Why a further backend was asked, in the order of the engine's counters."""

DISCARDS: tuple[str, ...]
"""Why received bytes went nowhere; an index into it is one into the `discarded` of the statistics."""

BUCKETS: tuple[float, ...]
"""Upper bounds, in seconds, of the histogram buckets; one more bucket, without bound, follows the last."""

EDGES: tuple[float, ...]
"""The lower bound, in seconds, of each of the finer buckets in which latencies are counted, and one more: the upper bound of the last."""

MAX_BACKENDS: int
"""Backends that `Engine.configure` accepts; those of before that still have exchanges count too."""

MAX_MEMBERS: int
"""Backends that a pool may have; `Engine.configure` refuses more."""

POLICIES: tuple[str, ...]
"""How a pool may choose among its backends."""

MAX_ADDRESSES: int
"""Addresses that one backend may have; `Engine.configure` refuses more."""

MAX_LISTENERS: int
"""Listening sockets that `Engine.listen` accepts at; it refuses more."""

MAX_WORKERS: int
"""Engines that `Engine.listen` gives clients to; it refuses more."""

MAX_WEIGHT: int
"""The greatest weight of a backend in its pool, and the highest tier."""

MAX_NETWORKS: int
"""Trusted networks that an engine has room for."""

MAX_HEAD: int
"""The longest head, or request line, that an engine can be told to take."""

MAX_FIELDS: int
"""The same of a head's fields."""

MAX_FAILOVER_BODY: int
"""The most of a request that an engine can be told to keep."""

MAX_SECONDS: int
"""The longest time-out that its clock can hold."""

Backend = tuple[bytes, bytes, bytes, Sequence[tuple[str, int]], bool, int, bytes]
"""(name, authority, host, addresses, finish_on_abort, max_in_flight, prefix).

The name is the backend's identity among all engines that share: under it it keeps its counters, its failures and its idle
connections, whatever tables come. The host is what the backend gets in the Host field, empty for
what the client sent; the authority goes there where the client sent none. An address is (numeric host, port), or ("unix:/path", 0).
It has at most max_in_flight exchanges at a time, of all engines that share; 0 is no limit. The prefix stands before the path that it gets;
it is empty, or begins with / and does not end with one.
"""

Histogram = tuple[list[int], float]
"""(count of each bucket, not cumulative and one longer than BUCKETS; sum of all values in seconds)."""

Tokens = tuple[int, int, int]
"""(prompt, completion, those of the prompt that were cached)."""

class Series(TypedDict):
    """Times of exchanges of one pool with one backend, None where there was none yet, and their tokens."""

    ttft: Histogram | None
    itl: Histogram | None
    connect: Histogram | None
    disconnect: Histogram | None  # from a client's disconnect to its upstream's close
    duration: dict[int, Histogram]  # by outcome
    tokens: Tokens

class BackendStats(TypedDict):
    in_flight: int  # of all engines that share
    idle: int
    exchanges: int
    connects: int
    reuses: int
    failures: int
    ejections: int  # failures that had it left out
    out: bool  # others are asked in its place, because it failed or its health checks do; of all engines that share
    drained: bool  # it gets no new exchange; of all engines that share
    content_age: float | None  # seconds since a byte of content came from it, None for never

class PoolStats(TypedDict):
    """Of all engines that share."""

    waiting: int  # exchanges in its queue
    wait: Histogram | None  # of those that got a place; None where none did
    full: int  # exchanges refused because the queue was full
    late: int  # exchanges that got no place in time

class Stats(TypedDict):
    clients: int
    accepted: int
    streaming_active: int
    finishing: int
    streaming_bytes: int
    bytes_up: int
    reads_forwarded: int
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
    retries: list[int]  # by cause
    records_dropped: int
    kept: int  # bytes of requests that all engines that share keep to send them again
    buffers_held: int
    buffers_made: int
    upstreams: int
    series: dict[
        tuple[bytes, int | None], Series
    ]  # by pool, and by the backend's number or None; an empty name is no pool
    tokens: dict[bytes, Tokens]  # by model; an empty name is all that is not looked for
    backends: dict[int, BackendStats]  # by number, of the table that was configured last
    pools: dict[bytes, PoolStats]  # by name, those that are in a table

class Engine:
    """One worker of the data plane: its own epoll set, connections, upstream pools and counters.

    One thread calls `run`. Every other method may be called from one other thread, the control plane's, at the same
    time; none of them waits for an engine. `stats` and `clients` may be called from any thread, but not beside `close`.
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
            ValueError: there is no room for what a setting says. Whether it is of any use is not looked at: that is for those
                who read the settings.
        """

    def run(self) -> None:
        """Forwards until `stop`, or after `drain` until the last connection is gone. Holds no GIL while it runs.

        Raises:
            OSError: the epoll set failed; every connection was closed.
            RuntimeError: it is running already, or has run.
            ValueError: an engine that it listens for, or that listens for it, is closed.
        """

    def listen(
        self,
        listeners: list[int],
        engines: list[Engine],
        *,
        most: int,
        resume_at: int,
        max_connections: int = 0,
        max_per_address: int = 0,
    ) -> None:
        """Accepts connections from now on, each for the engine with the fewest clients.

        Accepting pauses while there are `most` clients or no descriptor is left, which AcceptPaused tells, and goes on when
        there are `resume_at` or fewer, which AcceptResumed tells.

        Args:
            listeners: 1 to MAX_LISTENERS listening sockets that do not wait; the limits are those of all together. They get
                TCP_NODELAY and keepalive, which their connections inherit. They stay the caller's, and open while the engine
                listens.
            engines: all engines, this one among them. It keeps them; none can be closed while one of them runs.
            most: clients of all engines, as `resume_at`.
            resume_at: see above.
            max_connections: clients that are served; what comes above is accepted and answered 503. 0 is no limit.
            max_per_address: clients of one address (of one /64 of IPv6) that are served; those above are answered 429, and
                those above twice as many closed. Trusted proxies are not counted. 0 is no limit.

        Raises:
            RuntimeError: the engine listens already, or another one does for one of the engines.
            ValueError: there are too many sockets or engines, or none, or one is closed.
        """

    def adopt(self, fd: int, address: str) -> None:
        """Serves a connection that was accepted elsewhere, by Python or another process, as one of the engine's own.

        It counts in all limits, and goes to the engine with the fewest clients. Where accepting pauses, it waits until that
        goes on; where the engine ends first, it is closed.

        Args:
            fd: a connected stream socket. It is the engine's from here on, which closes it: `socket.detach()` gives one. It
                stays the caller's where this raises.
            address: the client's numeric address, as `socket.getpeername()[0]` has it; empty for one on a Unix socket. It
                decides about trust and the limits of an address, and stands in the records.

        Raises:
            BlockingIOError: thousands wait to be taken; try again later.
            OSError: the descriptor is no stream socket.
            RuntimeError: the engine does not listen (`listens`).
            ValueError: the address is none.
        """

    def end_listening(self) -> None:
        """Accepts what waits now, as far as there is room, and no more; `listens` tells when that is done."""

    @property
    def listens(self) -> bool:
        """Whether it was told to listen, and has not ended that."""

    def configure(self, backends: Sequence[Backend], routing: Routing | None = None) -> list[int]:
        """Replaces the routing table between two turns of the loop; live exchanges keep what they have.

        Args:
            backends: each once.
            routing: which pool has which of them, and which requests; None for one pool of all.

        Returns:
            The number of each backend, under which records and `stats` name it: all engines that share give the same. It is never
            given to another backend.

        Raises:
            MemoryError: there is none, or too many backends that are in no table any more still have exchanges.
            ValueError: a name, an address or an authority is out of range, a name is there twice, or there are too many; or a pool
                takes longer response heads than the engine was made for.
        """

    def mark(self, number: int, down: bool) -> None:
        """Notes for all engines that share whether a backend's health checks fail; another one is then asked, if there is any.

        Raises:
            KeyError: there is no backend with that number any more.
        """

    def mark_drained(self, number: int, drained: bool) -> bool:
        """Notes for all engines that share whether a backend is drained: no exchange begins with it then, not even where it is the
        only one. Those that it works on go on. Where `stats` tells behind it that nothing is in flight, nothing will be, but
        for an exchange that goes to its backend again after a stale connection.

        Returns:
            Whether that is new.

        Raises:
            KeyError: there is no backend with that number any more.
        """

    def drain(self) -> None:
        """Lets live exchanges finish, closes idle connections; `run` returns after the last one."""

    def stop(self) -> None:
        """Ends everything at once; `run` returns."""

    def take_records(self) -> list[Record]:
        """Takes the records that were written since the last call."""

    def stats(self) -> Stats:
        """A snapshot of the counters; nothing is computed until it is called."""

    def flows(self) -> dict[int, tuple[int, float]]:
        """By the number of a backend from which content came: (event streams that have had content and wait for the backend alone,
        seconds since a byte of content came from it), both of this engine."""

    def latencies(self) -> dict[int, tuple[dict[int, int], dict[int, int]]]:
        """By the number of a backend: (TTFT counts, ITL counts), each by the index into EDGES of the bucket's lower bound, since the
        series began."""

    def record_next(self, count: int, *, request_bodies: bool = False) -> None:
        """Has the next answers recorded, by all engines that share what is decided with this one. Replaces what was asked for before.

        Args:
            count: how many more; 0 for none.
            request_bodies: whether what their clients send is kept too.
        """

    def record_share(self, share: float, size: int, *, request_bodies: bool = False) -> None:
        """Has a share of all answers recorded, by all engines that share what is decided with this one.

        Args:
            share: 0 is none, 1 all, chosen by chance.
            size: bytes of one recording that are kept at most; for those of `record_next` too.
            request_bodies: whether what their clients send is kept too.

        Raises:
            ValueError: something is out of range.
        """

    @property
    def tapes_dropped(self) -> int:
        """Answers of the share that were not recorded because there was no room, of all engines that share what is decided."""

    def take_tapes(self) -> list[Tape]:
        """What was recorded by this engine and has ended since this was called last. May be called by one thread."""

    def list_live(self, number: int) -> None:
        """Asks for an `ExchangeLive` of each exchange that goes on, of 2,048 at most, and a `LiveEnd` behind them, among the next records.
        Where the ring of records is full, some do not come.

        Args:
            number: of the list, which these records have; another one than that of the list before, and not 0.
        """

    @property
    def records_fd(self) -> int:
        """An eventfd, readable when records should be taken soon: of a backend, of accepting, of a client that left where
        `wake_on_abort` is set, or because the ring is half full.

        Other records wait for the next call of `take_records`, whenever that is.
        """

    @property
    def wake_on_abort(self) -> bool:
        """Whether a client that left is told at once, for somebody who acts on it; off at first.

        Without it a record of such an exchange is made only where every exchange has one, and waits like those.
        """

    @wake_on_abort.setter
    def wake_on_abort(self, on: bool) -> None: ...
    @property
    def clients(self) -> int:
        """Client connections that the engine owns, those still in its mailbox included, and places of clients that left while
        their backend finishes."""

    def close(self) -> None:
        """Releases memory and descriptors. Idempotent.

        Raises:
            RuntimeError: the engine runs, or one that it listens for, or that listens for it: it reaches into this one.
        """
