"""Recordings as the load generator plays them back: read from a file, held against what it can carry, in its units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llmpipe import recording
from llmpipe._load import REPLAY_PIECE_SIZE_MOST, REPLAY_PIECES_MOST, REPLAY_SIZE_MOST
from llmpipe.errors import UsageError
from llmpipe.recording import Recording

SPREAD_MOST = 30.0
"""Seconds over which clients begin, at most."""


class Tape(NamedTuple):
    """One recording, as the generator takes it.

    Attributes:
        head: of the answer, as it is sent.
        pieces: each with its nanoseconds from the request.
        end: nanoseconds from the request.
    """

    head: bytes
    pieces: tuple[tuple[int, bytes], ...]
    end: int


@dataclass(frozen=True)
class Replay:
    """The recordings of a file that can be played."""

    name: str
    """Of the file."""
    tapes: tuple[Tape, ...]
    left_out: int
    """Recordings of the file that are not played: their status is not 200."""
    speed: float

    @property
    def spread(self) -> int:
        """Nanoseconds over which clients begin: as long as an answer takes on average, so that each is somewhere else."""
        return 1 + int(min(sum(tape.end for tape in self.tapes) / len(self.tapes), SPREAD_MOST * 1e9))

    @property
    def longest(self) -> int:
        """Nanoseconds that the longest takes."""
        return max(tape.end for tape in self.tapes)

    @property
    def most_pieces(self) -> int:
        """Of one recording."""
        return max(len(tape.pieces) for tape in self.tapes)


def _head(one: Recording) -> bytes:
    content_type = f"Content-Type: {one.content_type}\r\n" if one.content_type else ""
    return f"HTTP/1.1 200 OK\r\n{content_type}Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n".encode(
        "latin-1"
    )


def _sendable(content_type: str) -> bool:
    return all(c == "\t" or (" " <= c <= "\xff" and not "\x7f" <= c <= "\x9f") for c in content_type)


def make(recordings: list[Recording], name: str, speed: float) -> Replay:
    """What of the recordings is played, `speed` times as fast as they came.

    Raises:
        UsageError: nothing of it can be, or it is too much.
    """
    played = [one for one in recordings if one.status == 200]
    if not played:
        raise UsageError(f"--replay {name}: no recording in it has status 200, so there is nothing to play")
    size = sum(len(piece.data) for one in played for piece in one.pieces)
    if size > REPLAY_SIZE_MOST:
        raise UsageError(
            f"--replay {name}: {size:,} bytes of answers are too many; at most {REPLAY_SIZE_MOST:,} are played"
        )
    for one in played:
        which = f"--replay {name}: recording {recordings.index(one) + 1}"
        if len(one.pieces) > REPLAY_PIECES_MOST:
            raise UsageError(f"{which} has {len(one.pieces):,} pieces; at most {REPLAY_PIECES_MOST:,} are played")
        longest = max((len(piece.data) for piece in one.pieces), default=0)
        if longest > REPLAY_PIECE_SIZE_MOST:
            raise UsageError(f"{which} has a piece of {longest:,} bytes; at most {REPLAY_PIECE_SIZE_MOST:,} are played")
        if not _sendable(one.content_type):
            raise UsageError(f"{which} has a content type that cannot be sent: {one.content_type!r}")
    tapes = tuple(
        Tape(
            _head(one),
            tuple((round(piece.at * 1000 / speed), piece.data) for piece in one.pieces),
            round(one.end * 1000 / speed),
        )
        for one in played
    )
    return Replay(name, tapes, len(recordings) - len(played), speed)


def read(file: Path, speed: float) -> Replay:
    """The recordings in a file, to be played `speed` times as fast as they came.

    Raises:
        UsageError: it cannot be read, is no such file, or there is nothing in it that can be played.
    """
    try:
        recordings = recording.read(file)
    except UsageError as error:
        raise UsageError(f"--replay {error}") from None
    return make(recordings, file.name, speed)
