"""Tapes of the engines become recordings: files of `--record`, and what `POST /record` of the admin endpoint streams (rule U).

The engines keep what is to be recorded, the control plane takes it in the rhythm of the records. Files are written by a thread of
their own, behind a queue of bounded size: a disk that is slow, full or gone costs recordings and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import re
import tempfile
import threading
import time
from bisect import insort
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llmpipe import log
from llmpipe._pipe import OUTCOMES, REASONS
from llmpipe.access_log import request_line
from llmpipe.errors import UsageError
from llmpipe.recording import Piece, Recording, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmpipe.config import ProcessSettings
    from llmpipe.fleet import Fleet
    from llmpipe.record_kinds import ExchangeEnded, Tape

MOST_WAITING = 64 << 20
"""Bytes of recordings that wait for the disk at most, and as many for who asked for them; one may always wait."""

LIST_INTERVAL = 10.0
"""Seconds between two looks at which files there are: another process, of before an upgrade for one, may write to the same folder."""

COMPLAINT_INTERVAL = 60.0
"""Seconds between two lines that say that recordings cannot be written."""

BEFORE = 0.5
"""Seconds that the head of a request may seem to have come before its answer was asked for: clocks of engines stand still in a turn."""

CLOSE_LIMIT = 5.0
"""Seconds for the last recordings to be written at the end."""

OWN_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[A-Za-z0-9_.-]{1,80}\.jsonl")
"""Names of the files that are made here. No other file is ever removed."""

MOST_ID = 64
"""Letters of a request's id in the name of a file."""

MOST_NAMESAKES = 100
"""Recordings of the same id that may end in the same millisecond: clients choose ids."""


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, timezone.utc)


def make_recording(tape: Tape, fleet: Fleet, now: float) -> Recording:
    """The recording of a tape. No field of a head is in it but the type of the content, and of a target its path only.

    Args:
        tape: as the engine made it.
        fleet: knows the servers that it names.
        now: when the tape was taken, in seconds of time.time().
    """
    record = tape.exchange
    method, target = request_line(record)
    pieces = tuple(Piece(at, data) for at, data in tape.pieces)
    end = round(record.duration * 1e6)
    return Recording(
        request_id=record.request_id.decode("latin-1"),
        started=_utc(now - record.age - record.duration).isoformat(timespec="milliseconds"),
        method=method,
        path=log.mask_secrets(target).partition("?")[0],  # what may be a user or a parameter within the path goes too
        model=record.model.decode(errors="replace"),
        pool=record.pool.decode(errors="replace"),
        backend="" if record.backend is None else fleet.name(record.backend),
        status=tape.status,
        content_type=tape.content_type.decode("latin-1"),
        outcome=OUTCOMES[record.outcome],
        reason=REASONS[record.reason],
        cut=tape.cut,
        end=max(end, pieces[-1].at) if pieces else end,
        request_body=tape.request_body,
        request_cut=tape.request_cut,
        pieces=pieces,
        answered=None
        if record.answered is None
        else min(round(record.answered * 1e6), pieces[0].at if pieces else end),
    )


def without_request(recording: Recording) -> Recording:
    """The same for who did not ask for what the client sent."""
    return recording._replace(request_body=None, request_cut=False)


def size_of(recording: Recording) -> int:
    """Bytes that it takes, about."""
    return 1024 + len(recording.request_body or b"") + sum(len(piece.data) + 64 for piece in recording.pieces)


def as_bytes(recording: Recording) -> bytes:
    """Its lines, as they stand in a file."""
    return "".join(write(recording)).encode()


class _Waiting(NamedTuple):
    """A recording on its way to the disk.

    Attributes:
        recording: to be written.
        at: when the exchange ended, in seconds of time.time().
        size: that it was counted with.
    """

    recording: Recording
    at: float
    size: int


class Folder:
    """Files of recordings, one each, of which the newest are kept. A thread writes them.

    A file is named by the time at which its exchange ended, as the access line is, so that the order of names is the order in which they were
    written, however long an answer took.
    """

    def __init__(self, path: str, most: int) -> None:
        """Args:
        path: of the folder, which is made where it is missing.
        most: files that are kept.

        Raises:
            UsageError: it cannot be written to.
        """
        self.path = Path(path).absolute()
        self._most = most
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, ValueError) as error:  # a name with a NUL in it
            reason = "it is no folder" if isinstance(error, FileExistsError) else getattr(error, "strerror", None)
            raise UsageError(
                f"--record {path} cannot be written to ({reason or error}); name a folder that this process may write to"
            ) from None
        self.written = 0
        """Recordings that were written whole; these four may be read by any thread."""
        self.cut = 0
        """Those that were written and are not whole: there was more of the answer than is kept of one."""
        self.failed = 0
        """Those that could not be written."""
        self.dropped = 0
        """Those for which there was no room in the queue."""
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._added = 0
        self._done = 0
        """Bytes that were queued, and bytes that are no more: each counted by one thread."""
        self._names: list[str] = []
        """Of the files there are, the oldest first."""
        self._listed = 0.0
        self._failing = False
        self._told = False
        """Whether a line said that it fails."""
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, recording: Recording, at: float) -> None:
        """Has a recording written; it is dropped where too many wait. Called by one thread.

        Args:
            recording: to be written.
            at: when its exchange ended, in seconds of time.time().
        """
        size = size_of(recording)
        waiting = self._added - self._done
        if waiting and waiting + size > MOST_WAITING:
            self.dropped += 1
            return
        self._added += size
        self._waiting.put(_Waiting(recording, at, size))

    def close(self) -> None:
        """Writes what waits, within CLOSE_LIMIT, and ends the thread."""
        self._waiting.put(None)
        self._thread.join(CLOSE_LIMIT)
        lost = self.dropped
        if self._thread.is_alive():
            lost += 1  # the one that it waits with
            with suppress(queue.Empty):
                while True:
                    lost += self._waiting.get_nowait() is not None
            self._waiting.put(None)
        if lost:
            log.warning("recordings dropped", recordings=lost, folder=str(self.path))

    def _run(self) -> None:
        self._list()
        self._remove_oldest()
        while (waiting := self._waiting.get()) is not None:
            try:
                name = self._write(waiting)
            except Exception as error:  # of whatever kind: the thread must go on
                self.failed += 1
                self._complain(error)
            else:
                self._note(name, cut=waiting.recording.cut)
            self._done += waiting.size
            self._remove_oldest()

    def _write(self, waiting: _Waiting) -> str:
        """Writes a file: its name."""
        at = _utc(waiting.at)
        time_text = f"{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}Z"
        stem = f"{time_text}-{re.sub('[^A-Za-z0-9_-]', '_', waiting.recording.request_id)[:MOST_ID] or '_'}"
        data = as_bytes(waiting.recording)
        for number in range(1, MOST_NAMESAKES + 1):
            name = f"{stem}.jsonl" if number == 1 else f"{stem}.{number}.jsonl"
            with suppress(FileExistsError):
                self._write_new(self.path / name, data)
                return name
        raise FileExistsError(0, "too many of the same name")

    @staticmethod
    def _write_new(path: Path, data: bytes) -> None:
        """A file is there whole or not at all, unless the process is killed meanwhile."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)

    def _note(self, name: str, *, cut: bool) -> None:
        if cut:
            self.cut += 1
        else:
            self.written += 1
        insort(self._names, name)
        self._failing = False
        if self._told:
            self._told = False
            log.info("recordings are written again", folder=str(self.path))

    def _complain(self, error: Exception) -> None:
        """One line for as long as it goes on, and not many where it comes and goes."""
        now = time.monotonic()
        if not self._failing and now >= self._quiet_until:
            self._told = True
            self._quiet_until = now + COMPLAINT_INTERVAL
            reason = getattr(error, "strerror", None) or repr(error)
            hint = "requests are served all the same; llmpipe_recordings_total counts those that are lost"
            log.error("recording not written", folder=str(self.path), error=reason, hint=hint)
        self._failing = True

    def _list(self) -> None:
        self._listed = time.monotonic()
        with (
            suppress(OSError),
            os.scandir(self.path) as entries,
        ):  # it was removed: that is told when a file is to be written
            self._names = sorted(
                entry.name
                for entry in entries
                if OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )

    def _remove_oldest(self) -> None:
        if time.monotonic() - self._listed > LIST_INTERVAL:
            self._list()
        excess = max(0, len(self._names) - self._most)
        gone, self._names = self._names[:excess], self._names[excess:]
        for name in gone:
            self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:  # the next look finds it again
            self._complain(error)


class Asking:
    """The next answers, which somebody at the admin endpoint asked for.

    It is made and read by the thread of that endpoint; the control plane's calls `put` and what follows it.
    """

    def __init__(self, count: int, *, request_bodies: bool) -> None:
        """Args:
        count: how many.
        request_bodies: whether what their clients sent is wanted too.
        """
        self.count = count
        self.request_bodies = request_bodies
        self.news = asyncio.Event()
        """Set when there is something to take; who takes clears it."""
        self.left = count
        """Answers that have not come yet."""
        self.over = False
        """Whether nothing comes any more."""
        self.begun = 0.0
        """When recording began, in seconds of time.monotonic()."""
        self._loop = asyncio.get_running_loop()
        self._found: deque[Recording] = deque()
        self._put = 0
        self._taken = 0

    def put(self, recording: Recording) -> bool:
        """One of them has come. Whether there was room for it: who asked may be slow to take them."""
        size = size_of(recording)
        waiting = self._put - self._taken
        has_room = not waiting or waiting + size <= MOST_WAITING
        if has_room:
            self._put += size
            self._found.append(recording)
        self.left -= 1
        return has_room

    def end(self) -> None:
        """Nothing comes any more."""
        self.over = True

    def tell(self) -> None:
        """Wakes who takes them."""
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self.news.set)

    def take(self) -> Recording | None:
        """The next one that has come; None where there is none."""
        if not self._found:
            return None
        recording = self._found.popleft()
        self._taken += size_of(recording)
        return recording


class Source(Protocol):
    """What tapes come from: the `Runner`."""

    def record_next(self, count: int, *, request_bodies: bool = False) -> None:
        """Has the next answers recorded."""

    def record_share(self, share: float, size: int, *, request_bodies: bool = False) -> None:
        """Has a share of all answers recorded."""

    def take_tapes(self) -> None:
        """Has those that have ended taken."""

    def tapes_dropped(self) -> int:
        """Those for which there was no room."""


class Recorder:
    """Hands each recording to who wants it. It belongs to the control plane's event loop; counters may be read by other threads."""

    def __init__(self, process: ProcessSettings, fleet: Fleet, folder: Folder | None) -> None:
        """Args:
        process: what is recorded, and how much of it.
        fleet: knows the servers that tapes name.
        folder: where the share of all answers goes; None for nowhere.
        """
        self._process = process
        self._fleet = fleet
        self._folder = folder
        self._asking: Asking | None = None
        self.sent = 0
        """Recordings that were handed to who asked for them."""
        self.dropped = 0
        """Those that who asked did not take in time."""

    def start(self, source: Source) -> None:
        """Begins with the share of all answers."""
        self._source = source
        process = self._process
        source.record_share(
            0.0 if self._folder is None else process.record_share,
            process.record_size,
            request_bodies=process.record_request_bodies,
        )

    def results(self) -> Sequence[tuple[str, int]]:
        """How many recordings there were, by what came of them."""
        folder = self._folder
        found = (folder.written, folder.cut, folder.failed, folder.dropped) if folder else (0, 0, 0, 0)
        written, cut, failed, dropped = found
        return (
            ("written", written),
            ("cut", cut),
            ("failed", failed),
            ("dropped", dropped + self.dropped + self._source.tapes_dropped()),
            ("sent", self.sent),
        )

    def take(self, tape: Tape) -> None:
        """A tape has come."""
        now = time.time()
        recording = make_recording(tape, self._fleet, now)
        if tape.asked:
            if self._answer(tape.exchange, recording):
                return
            # It was chosen for who has left, and is an answer like any other.
            if random.random() >= self._process.record_share:  # noqa: S311 - as the engines choose
                return
            if not self._process.record_request_bodies:
                recording = without_request(recording)
        if self._folder is not None:
            self._folder.add(recording, now - tape.exchange.age)

    def ask(self, asking: Asking) -> bool:
        """Has the next answers recorded for somebody. Whether that can be: nobody else has asked for any."""
        if self._asking is not None or asking.over:
            return False
        self._asking = asking
        asking.begun = time.monotonic()
        # What is not sent may become a file.
        for_files = self._folder is not None and self._process.record_request_bodies
        self._source.record_next(asking.count, request_bodies=asking.request_bodies or for_files)
        return True

    def end(self, asking: Asking) -> None:
        """Who asked wants no more than what has come by now. Does nothing where that has ended."""
        if self._asking is asking:
            self._source.take_tapes()
        if self._asking is asking:  # still: the last one was not among them
            self._source.record_next(0)
            self._asking = None
        asking.end()

    def _answer(self, record: ExchangeEnded, recording: Recording) -> bool:
        """Hands one that was asked for to who asks. Whether somebody does: else who asked for it has left."""
        asking = self._asking
        if asking is None:
            return False
        if time.monotonic() - record.age - record.duration + (record.head or 0.0) < asking.begun - BEFORE:
            return False
        if not asking.request_bodies:
            recording = without_request(recording)
        if asking.put(recording):
            self.sent += 1
        else:
            self.dropped += 1
        if asking.left == 0:
            # One of them may have been asked for by who was there before: then the engines still look for one, at every request.
            self._source.record_next(0)
            self._asking = None
            asking.end()
        asking.tell()
        return True
