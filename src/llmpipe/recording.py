"""Recordings: answers with the time of each of their pieces, as lines of JSON (docs/recording.md).

A file holds one recording or several, each of them a head, its pieces, and an end:

    {"llmpipe": "recording", "version": 1, "request_id": ..., "status": 200, ...}
    {"us": 203114, "data": "data: {...}\\n\\n"}
    {"end_us": 1203381}

A piece is what one read from the backend brought of the body, without the framing of its chunks; `us` is the time since the first
byte of the request. Text is UTF-8; a byte that is none, since a piece may end within a character, is U+DC80 to U+DCFF (PEP 383).

Files are edited by hand and come from strangers: what is read is checked, and what is wrong is told with the number of its line.
Fields that are not known are passed over, so that later versions may have more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from llmpipe.errors import UsageError

VERSION = 1

MOST_BYTES = 256 << 20
"""Of a file that is read: all of it is kept in memory, and takes more there the smaller its pieces are."""

LATEST = (1 << 53) - 1
"""Microseconds: the last whole number that every reader of JSON knows exactly, which is 285 years."""

_DIGITS = 19
"""Of a number, at most: to read a longer one may take long, and nothing here is as large."""

_KINDS = {dict: "JSON object", int: "whole number", str: "text"}

_TEXTS = ("request_id", "started", "method", "path", "model", "pool", "backend", "content_type", "outcome", "reason")


class Piece(NamedTuple):
    """What one read brought of a body.

    Attributes:
        at: microseconds from the first byte of the request.
        data: the bytes; at least one.
    """

    at: int
    data: bytes


class Recording(NamedTuple):
    """One answer.

    Attributes:
        request_id: of the exchange.
        started: when the first byte of the request came, as ISO 8601 has it.
        method: of the request, as the next ones.
        path: without its query.
        model: that the client asked for; empty where that was not read.
        pool: that answered, empty for none; and the same of `backend`.
        backend: that was asked last.
        status: of the answer.
        content_type: of the answer, empty where it had none.
        outcome: how the exchange ended.
        reason: why, where it failed; else empty.
        cut: whether there was more of the answer than was kept.
        end: microseconds from the first byte of the request to the end of the exchange.
        request_body: what the client sent, where it was asked for; else None.
        pieces: of the answer's body.
        answered: microseconds from the first byte of the request to the head of the answer; None where that is not known.
        request_cut: whether there was more of what the client sent than was kept, or may have been.
    """

    request_id: str
    started: str
    method: str
    path: str
    model: str
    pool: str
    backend: str
    status: int
    content_type: str
    outcome: str
    reason: str
    cut: bool
    end: int
    request_body: bytes | None
    pieces: tuple[Piece, ...]
    answered: int | None = None
    request_cut: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it has the answer to its end. One that a proxy gave itself, when it had none of a backend, has no pieces."""
        if self.cut or self.outcome == "upstream_abort":
            return False
        return self.outcome == "ok" or (not self.pieces and self.status >= 400)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _data(text: str, name: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has U+{ord(text[error.start]):04X} in it, which stands for no byte") from None


def write(recording: Recording) -> Iterator[str]:
    """Its lines, each with its end."""
    head: dict[str, Any] = {"llmpipe": "recording", "version": VERSION, **recording._asdict()}
    for name in ("pieces", "end", "request_body", "request_cut", "answered"):
        del head[name]
    if recording.answered is not None:
        head["answered_us"] = recording.answered
    if recording.request_body is not None:
        head["request_body"] = _text(recording.request_body)
        head["request_cut"] = recording.request_cut
    yield json.dumps(head) + "\n"
    for piece in recording.pieces:
        yield json.dumps({"us": piece.at, "data": _text(piece.data)}) + "\n"
    yield json.dumps({"end_us": recording.end}) + "\n"


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it is no JSON: {text} is no number")


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("it has a number that is too long")
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_constant=_no_number)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of it is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    line: dict[str, Any] = _expect(found, dict, "it")
    return line


def _expect(found: object, kind: type, name: str) -> Any:
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ValueError(f"{name} is no {_KINDS[kind]}")
    return found


def _read_text(line: dict[str, Any], name: str) -> str:
    text: str = _expect(line.get(name), str, name)
    _data(text, name)
    return text


def _read_time(line: dict[str, Any], name: str) -> int:
    time: int = _expect(line.get(name), int, name)
    if not 0 <= time <= LATEST:
        raise ValueError(f"{name} is negative" if time < 0 else f"{name} is more than {LATEST}")
    return time


def _read_head(line: dict[str, Any]) -> dict[str, Any]:
    if line.get("llmpipe") != "recording":
        raise ValueError("it is not the head of a recording")
    version = _expect(line.get("version"), int, "version")
    if version != VERSION:
        raise ValueError(f"it is of version {version}, and this llmpipe reads version {VERSION}")
    head: dict[str, Any] = {name: _read_text(line, name) for name in _TEXTS}
    # It becomes a field of an answer again.
    if any(ord(char) < 32 or ord(char) == 127 for char in head["content_type"]):
        raise ValueError("content_type has a control character in it")
    head["status"] = _expect(line.get("status"), int, "status")
    if not 200 <= head["status"] <= 599:
        raise ValueError("status is not from 200 to 599")
    head["cut"] = line.get("cut")
    head["request_cut"] = line.get("request_cut", False)
    for name in ("cut", "request_cut"):
        if not isinstance(head[name], bool):
            raise ValueError(f"{name} is neither true nor false")
    head["answered"] = None if line.get("answered_us") is None else _read_time(line, "answered_us")
    body = line.get("request_body")
    head["request_body"] = None if body is None else _data(_expect(body, str, "request_body"), "request_body")
    return head


def _read_piece(line: dict[str, Any], status: int) -> Piece:
    at = _read_time(line, "us")
    data = _data(_expect(line.get("data"), str, "data"), "data")
    if not data:
        raise ValueError("data is empty")
    if status in (204, 304):
        raise ValueError(f"an answer with the status {status} has no body")
    return Piece(at, data)


def _read_lines(lines: Iterable[bytes], name: Path) -> Iterator[Recording]:
    head: dict[str, Any] | None = None
    begun = last = 0
    pieces: list[Piece] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _parse(text)
            if head is None:
                head, begun, last, pieces = _read_head(line), number, 0, []
                continue
            if "llmpipe" in line:
                raise ValueError(f"a recording begins, and the one of line {begun} has no end")
            if "end_us" in line and ("us" in line or "data" in line):
                raise ValueError("it is a piece and an end at once")
            piece = None if "end_us" in line else _read_piece(line, head["status"])
            at = _read_time(line, "end_us") if piece is None else piece.at
            if at < last:
                raise ValueError("its time is before that of the line above")
            last = at
        except ValueError as error:
            raise UsageError(f"{name} is no recording: line {number}: {error}") from None
        if piece is None:
            yield Recording(**head, end=at, pieces=tuple(pieces))
            head = None
        else:
            pieces.append(piece)
    if head is not None:
        raise UsageError(f"{name} is no recording: line {begun}: what begins here has no end")


def _bounded(file: BinaryIO, name: Path) -> Iterator[bytes]:
    """Its lines. Counted, since a pipe has no length to look up."""
    left = MOST_BYTES
    while line := file.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise UsageError(f"{name} is longer than {MOST_BYTES >> 20} MiB: take fewer of its recordings at a time")
        yield line


def read(file: Path) -> list[Recording]:
    """The recordings in a file, at least one.

    Raises:
        UsageError: it cannot be read, is no such file, or is longer than MOST_BYTES.
    """
    try:
        with file.open("rb") as opened:
            found = list(_read_lines(_bounded(opened, file), file))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if not found:
        raise UsageError(f"{file} is no recording: it is empty")
    return found
