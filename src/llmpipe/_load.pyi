"""The load generator's contract; see src/_load.pyx."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, final

EVENT_SIZE_LEAST: int
"""Bytes of the smallest event that can carry its mark."""
EVENT_SIZE_MOST: int
ANSWER_SIZE_MOST: int
"""Bytes of the longest answer that is sent in one piece."""
CHUNK_SIZE_MOST: int
"""Bytes that a chunk adds to its event, at most."""
REPLAY_SIZE_MOST: int
"""Bytes of all recordings of a plan together, at most."""
REPLAY_PIECES_MOST: int
"""Pieces of one of them."""
REPLAY_PIECE_SIZE_MOST: int
"""Bytes of a piece."""
REPLAY_STAMPS_MOST: int
"""Clients, times the pieces of the longest recording."""
TIMES: tuple[str, ...]
"""Names of the histograms."""
COUNTS: tuple[str, ...]
ERRORS: tuple[str, ...]
LEAVE_PHASES: tuple[str, ...]
"""Phases of an exchange in which a client disconnects."""

class Plan(Protocol):
    """What one run does; times in nanoseconds."""

    @property
    def target(self) -> tuple[str, int]:
        """Numeric address and port that clients connect to."""
    @property
    def clients(self) -> int:
        """Clients that stay."""
    @property
    def disconnecting(self) -> int:
        """Clients that leave in a random phase, again and again."""
    @property
    def again(self) -> int:
        """After an answer: 0 nothing, 1 ask again, 2 connect again, 3 wait for the next arrival."""
    @property
    def mode(self) -> int:
        """What the source does: 0 events, 1 a flood, 2 one event and silence, 3 nothing, 4 the recordings in turn."""
    @property
    def events(self) -> int:
        """In an answer; 0 is endless."""
    @property
    def event_size(self) -> int:
        """Bytes of an event, its blank line included."""
    @property
    def interval(self) -> int:
        """Between two events of an answer; 0 is all at once."""
    @property
    def arrival(self) -> int:
        """Mean time between two arrivals."""
    @property
    def timeout(self) -> int:
        """For one request; 0 is off."""
    @property
    def spread(self) -> int:
        """Clients begin at random within it; 0 is all at once."""
    @property
    def recordings(self) -> Sequence[tuple[bytes, Sequence[tuple[int, bytes]], int]]:
        """Of a replay, each the head as it is sent, the pieces with their times from the request, and the time of the end."""
    @property
    def marked(self) -> bool:
        """Whether the source is the generator's own: requests and events carry marks then."""
    @property
    def prefix(self) -> bytes:
        """The request up to its mark."""
    @property
    def suffix(self) -> bytes:
        """The request behind its mark, with the body."""
    @property
    def body(self) -> bytes: ...

class LoadStats(TypedDict):
    """Counters; `counts` are of the time that was measured, the others of the whole run."""

    open: int
    flowing: int
    queued: int
    counts: dict[str, int]
    errors: dict[str, int]
    status: dict[int, int]

@final
class Load:
    """Clients and a token source. `run` is one thread's; every other method is called by one other thread."""

    def __init__(self, listener: int) -> None:
        """Args:
        listener: a listening, non-blocking socket for the source, which stays the caller's; -1 for no source.

        Raises:
            OSError: a descriptor could not be made.
        """

    def run(self) -> None:
        """Works, without the GIL, until `stop`.

        Raises:
            OSError: epoll failed.
        """

    @property
    def runs(self) -> bool:
        """Whether `run` was entered and has not returned."""
    def begin(self, plan: Plan) -> None:
        """Starts the plan's clients.

        Raises:
            ValueError: the plan cannot work; the text says why.
            RuntimeError: the plan before was not abandoned.
        """
    def measure(self) -> None:
        """Forgets what was counted and counts from now on."""
    def halt(self) -> None:
        """Counts no more."""
    def finish(self) -> None:
        """Ends every answer well; afterwards `open` falls to 0."""
    def abandon(self) -> None:
        """Closes every client."""
    def stop(self) -> None:
        """Has `run` return."""
    def stats(self) -> LoadStats: ...
    def times(self, name: str) -> tuple[list[tuple[int, int]], int]:
        """A histogram as (nanoseconds, count) pairs in order, and its greatest value, exact."""
    def close(self) -> None:
        """Closes what is open; `run` must have returned."""
