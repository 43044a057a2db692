"""Recordings: answers with the time of each of their pieces, as lines of JSON (docs/recording.md).

A file holds one recording or several, each of them a head, its pieces, and an end:

    {"llmpipe": "recording", "version": 1, "request_id": ..., "status": 200, ...}
    {"us": 203114, "data": "data: {...}\\n\\n"}
    {"end_us": 1203381}

A piece is what one read from the backend brought of the body, without the framing of its chunks; `us` is the time since the first
byte of the request. Text is UTF-8; a byte that is none, since a piece may end within a character, is U+DC80 to U+DCFF (PEP 383).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmpipe.errors import UsageError

VERSION = 1


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
        cut: whether there was more than was kept.
        end: microseconds from the first byte of the request to the end of the exchange.
        request_body: what the client sent, where it was asked for; else None.
        pieces: of the answer's body.
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


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _data(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def write(recording: Recording) -> Iterator[str]:
    """Its lines, each with its end."""
    head: dict[str, Any] = {"llmpipe": "recording", "version": VERSION, **recording._asdict()}
    del head["pieces"], head["end"], head["request_body"]
    if recording.request_body is not None:
        head["request_body"] = _text(recording.request_body)
    yield json.dumps(head) + "\n"
    for piece in recording.pieces:
        yield json.dumps({"us": piece.at, "data": _text(piece.data)}) + "\n"
    yield json.dumps({"end_us": recording.end}) + "\n"


def _expect(found: object, kind: type, name: str) -> Any:
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise TypeError(f"{name} is no {kind.__name__}")
    return found


def _read_head(line: dict[str, Any]) -> dict[str, Any]:
    if line.get("llmpipe") != "recording":
        raise TypeError("it does not begin with the head of a recording")
    if line.get("version") != VERSION:
        raise TypeError(f"it is of version {line.get('version')!r}, and this llmpipe reads version {VERSION}")
    body = line.get("request_body")
    kinds: dict[str, type] = {"status": int, "cut": bool}
    text = ("request_id", "started", "method", "path", "model", "pool", "backend", "content_type", "outcome", "reason")
    head = {name: _expect(line.get(name), kinds.get(name, str), name) for name in (*text, *kinds)}
    if not 200 <= head["status"] <= 599:
        raise TypeError("status is none of an answer")
    head["request_body"] = None if body is None else _data(_expect(body, str, "request_body"))
    return head


def _read_lines(lines: Iterable[bytes]) -> Iterator[Recording]:
    head: dict[str, Any] | None = None
    pieces: list[Piece] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = _expect(json.loads(text), dict, "it")
            if head is None:
                head, pieces = _read_head(line), []
                continue
            last = pieces[-1].at if pieces else 0
            at = _expect(line.get("us", line.get("end_us")), int, "the time")
            if at < last:
                raise TypeError("it is earlier than the line before")
            if "end_us" in line:
                yield Recording(**head, end=at, pieces=tuple(pieces))
                head = None
                continue
            pieces.append(Piece(at, _data(_expect(line.get("data"), str, "data"))))
            if not pieces[-1].data:
                raise TypeError("there is nothing in it")
        except (ValueError, TypeError) as error:
            raise UsageError(f"line {number}: {error}") from None
    if head is not None:
        raise UsageError("the last recording has no end")


def read(file: Path) -> list[Recording]:
    """The recordings in a file, at least one.

    Raises:
        UsageError: it cannot be read, or is no such file.
    """
    try:
        with file.open("rb") as lines:
            found = list(_read_lines(lines))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"{file} is no recording: {error}") from None
    if not found:
        raise UsageError(f"{file} is no recording: it is empty")
    return found
