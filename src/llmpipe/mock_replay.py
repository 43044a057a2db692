"""Recorded answers that the mock plays back: the same bytes, in the same pieces, at the same times.

Only what a recording has is played back: an answer has the status, the content type and the body of the recorded one, not its other
fields. Its framing is the mock's own.
"""

import asyncio
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from llmpipe import log, recording
from llmpipe.background import Scope, Send
from llmpipe.mock_capacity import Capacity
from llmpipe.mock_faults import Fault, set_reset
from llmpipe.recording import Recording

SECOND = 1e6
"""Microseconds."""


class Replay:
    """Recordings that are taken in turn, over and over."""

    def __init__(self, recordings: Sequence[Recording], speed: float = 1.0) -> None:
        """Args:
        recordings: at least one.
        speed: how many times faster than recorded they are played back; 0 waits for nothing.
        """
        self.speed = speed
        self.recordings = tuple(recordings)
        self._turns = cycle(self.recordings)

    def take(self) -> Recording:
        """The next one."""
        return next(self._turns)

    def due(self, at: int) -> float:
        """Seconds from the beginning to a time of a recording."""
        return at / SECOND / self.speed if self.speed else 0.0


def read_replay(file: Path, speed: float = 1.0) -> Replay:
    """What a file has to be played back.

    Raises:
        UsageError: it has no recordings.
    """
    replay = Replay(recording.read(file), speed)
    log.info("replaying", file=str(file), recordings=len(replay.recordings), speed=speed)
    return replay


class PlayedAnswer:
    """One recording as it is played back; counts its pieces."""

    def __init__(
        self, replay: Replay, fault: Fault, capacity: Capacity, send: Send, scope: Scope, *, come: float
    ) -> None:
        """Args:
        replay: has the recordings.
        fault: what goes wrong besides.
        capacity: where it waits for its turn, and whose load slows it down.
        send: takes the answer.
        scope: of the request, with its connection, for an answer that breaks off.
        come: when the request came, by the clock of `capacity`. Times count from there.
        """
        self._replay = replay
        self._fault = fault
        self._capacity = capacity
        self._send = send
        self._transport: asyncio.Transport = scope["state"]["transport"]
        self._has_chunks = scope["http_version"] != "1.0"
        self._start = come
        self._turn: asyncio.Future[None] | None = None
        self._recording: Recording | None = None
        self._made = 0
        self._broken_off = False

    async def write(self) -> None:
        """Raises:
        RefusedError: there is no room for its request.
        """
        with self._capacity.place() as self._turn:
            self._recording = self._replay.take()
            read = self._capacity.now()
            await self._fault.before_head(self._transport)
            self._start += self._capacity.now() - read
            if not self._turn.done():
                await self._turn
                self._start = self._capacity.now()  # what it waited is no part of what was recorded
            await self._play(self._recording)

    async def _play(self, played: Recording) -> None:
        """Each time is counted from the start, so that none is late because another one was."""
        first = played.pieces[0].at if played.pieces else played.end
        # Where nobody knows when the head came, it goes just before what came next.
        await self._wait(first if played.answered is None else min(first, played.answered))
        kind = played.content_type.strip().encode("utf-8", "surrogateescape")
        fields = [(b"content-type", kind)] if kind else []
        await self._send({"type": "http.response.start", "status": played.status, "headers": fields})
        for piece in played.pieces:
            await self._fault.after_tokens(self._made, self._transport)
            await self._wait(piece.at)
            await self._send({"type": "http.response.body", "body": piece.data, "more_body": True})
            self._made += 1
        await self._fault.after_tokens(self._made, self._transport)
        await self._wait(played.end)
        if played.is_whole:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._break_off(played)

    async def _wait(self, at: int) -> None:
        await self._capacity.work_until(self._start + self._replay.due(at))

    async def _break_off(self, played: Recording) -> None:
        """Closes the connection before the end of the body, when all before it was sent. Ends only by being cancelled."""
        self._broken_off = True
        # Without chunks a FIN would be the end of the body.
        if played.reason == "ECONNRESET" or not self._has_chunks:
            set_reset(self._transport)
        self._transport.close()
        await asyncio.Event().wait()

    def log_left(self) -> None:
        """Its client has left, or was left."""
        if self._broken_off or self._recording is None:
            return
        if self._turn is not None and self._turn.done() and not self._turn.cancelled():
            of = len(self._recording.pieces)
            log.info("replay stopped", id=self._recording.request_id, pieces=self._made, of=of)
        else:
            log.info("request left the queue", id=self._recording.request_id)
