"""Files of recordings: any bytes come back as they were, however they are cut into pieces, and what is broken is told in one line that
says where.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import made_up
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from llmpipe import recording
from llmpipe.errors import UsageError
from llmpipe.recording import LATEST, Piece, Recording, read, write

set_hypothesis_home_dir("build/hypothesis")  # not the folder that tests are looked for in

PLAIN = made_up.recording()


def write_file(file: Path, *recordings: Recording) -> Path:
    with file.open("w", encoding="ascii") as lines:
        for written in recordings:
            lines.writelines(write(written))
    return file


# Bytes.

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.binary(max_size=20).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """One with a body of any bytes, with text in many scripts among them, cut anywhere."""
    some = st.binary(min_size=1, max_size=8) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(
        str.encode
    )
    body = b"".join(draw(st.lists(some, max_size=12)))
    cuts = sorted(draw(st.sets(st.integers(0, len(body)), max_size=10)) | {0, len(body)})
    times = sorted(draw(st.lists(st.integers(0, LATEST), min_size=len(cuts), max_size=len(cuts))))
    pieces = [Piece(at, body[i:j]) for at, i, j in zip(times, cuts, cuts[1:], strict=False)]
    words = {name: draw(TEXTS) for name in ("request_id", "path", "model", "pool", "backend", "outcome", "reason")}
    request_body = draw(st.none() | st.binary(max_size=40))
    return PLAIN._replace(
        **words,
        content_type=draw(st.sampled_from(["", "text/event-stream; charset=utf-8", "text/x; name=\xe9", "x/\udcff"])),
        status=draw(st.integers(200, 599).filter(lambda status: status not in (204, 304))),
        cut=draw(st.booleans()),
        request_body=request_body,
        request_cut=request_body is not None and draw(st.booleans()),
        answered=draw(st.none() | st.integers(0, LATEST)),
        pieces=tuple(pieces),
        end=times[-1],
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(recordings(), min_size=1, max_size=3))
def test_any_bytes_come_back(found: list[Recording], tmp_path: Path) -> None:
    assert read(write_file(tmp_path / "any.jsonl", *found)) == found


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_piece_may_end_within_a_character(cut: int, tmp_path: Path) -> None:
    """Surrogates that stand for bytes stand next to pairs of them that are characters."""
    body = "é€😀".encode()
    halves = PLAIN._replace(
        pieces=(Piece(1, body[:cut]), Piece(2, body[cut:])) if cut < len(body) else (Piece(1, body),)
    )
    file = write_file(tmp_path / "halves.jsonl", halves)
    assert read(file) == [halves]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert b"".join(line["data"].encode("utf-8", "surrogateescape") for line in lines if "data" in line) == body


def test_every_byte_of_a_lone_one(tmp_path: Path) -> None:
    all_bytes = PLAIN._replace(pieces=tuple(Piece(0, bytes([byte])) for byte in range(256)))
    assert read(write_file(tmp_path / "bytes.jsonl", all_bytes)) == [all_bytes]


def test_what_is_written() -> None:
    """The fields that docs/recording.md lists, and no others."""
    lines = [json.loads(line) for line in write(PLAIN._replace(request_body=b"{}", answered=500))]
    assert list(lines[0]) == [
        *("llmpipe", "version", "request_id", "started", "method", "path", "model", "pool", "backend", "status"),
        *("content_type", "outcome", "reason", "cut", "answered_us", "request_body", "request_cut"),
    ]
    assert lines[1:] == [{"us": 1000, "data": "data: 1\n\n"}, {"us": 2000, "data": "data: 2\n\n"}, {"end_us": 3000}]
    head = json.loads(next(write(PLAIN)))
    assert not {"answered_us", "request_body", "request_cut"} & set(head), "what is not known is left out"
    rows = (Path(__file__).parents[1] / "docs" / "recording.md").read_text()
    assert [name for line in lines for name in line if f"| `{name}` |" not in rows] == []


def test_what_does_not_matter(tmp_path: Path) -> None:
    """Fields of later versions, empty lines, ends of lines as of Windows, no line end at the end."""
    head, *others = map(json.loads, write(PLAIN))
    lines = [{**head, "later": [1.5, None]}, *({**line, "later": {}} for line in others)]
    text = "\n\r\n" + "\r\n\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file = tmp_path / "other.jsonl"
    file.write_bytes(text.encode())
    assert read(file) == [PLAIN]


@pytest.mark.parametrize("cut", [False, True])
def test_a_request_without_a_word_of_its_end_was_not_cut(cut: bool, tmp_path: Path) -> None:
    """As in files of versions before there was one."""
    asked = PLAIN._replace(request_body=b"{}", request_cut=True, cut=cut)
    head, *others = map(json.loads, write(asked))
    del head["request_cut"]
    file = tmp_path / "older.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (head, *others)))
    assert read(file) == [asked._replace(request_cut=False)]


def test_a_pipe_is_read_too(tmp_path: Path) -> None:
    """As a shell's <(...) is one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_file, args=(pipe, PLAIN, PLAIN))
    writer.start()
    assert read(pipe) == [PLAIN, PLAIN]
    writer.join()


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"pieces": ()}, True),
        ({"cut": True}, False),
        ({"request_body": b"", "request_cut": True}, True),
        ({"outcome": "upstream_abort"}, False),
        ({"outcome": "upstream_abort", "pieces": ()}, False),
        ({"outcome": "client_abort"}, False),
        ({"outcome": "timeout_idle"}, False),
        ({"outcome": "timeout_idle", "pieces": ()}, False),
        ({"outcome": "timeout_ttft", "pieces": (), "status": 504}, True),
        ({"status": 500}, True),
    ],
)
def test_which_answers_are_whole(changes: dict[str, Any], whole: bool) -> None:
    assert PLAIN._replace(**changes).is_whole == whole


# Broken files.


def broken(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(file)
    text = str(caught.value)
    assert str(file) in text
    assert len(text.splitlines()) == 1
    assert len(text) < 400
    return text


HEAD, FIRST, SECOND, END = (line.encode() for line in write(PLAIN))


def head_with(**fields: object) -> bytes:
    return json.dumps({**json.loads(HEAD), **fields}).encode() + b"\n"


def head_without(name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(HEAD).items() if key != name}).encode() + b"\n"


CASES: list[tuple[str, list[bytes], int, str]] = [
    # What it is, the lines, which of them is wrong, what is said of it.
    ("no JSON", [b"hello\n"], 1, "no JSON"),
    ("a key without quotes", [HEAD, b'{us: 1, "data": "x"}\n', END], 2, "no JSON"),
    ("cut in the middle", [HEAD, FIRST, SECOND[:20]], 3, "no JSON"),
    ("a whole number only", [b"1\n"], 1, "no JSON object"),
    ("a list", [HEAD, b"[]\n", END], 2, "no JSON object"),
    ("null", [HEAD, b"null\n", END], 2, "no JSON object"),
    ("two values in a line", [HEAD, FIRST.strip() + SECOND, END], 2, "no JSON"),
    ("UTF-16", [HEAD.decode().encode("utf-16")], 1, "no UTF-8"),
    ("a mark of the order of bytes", [b"\xef\xbb\xbf" + HEAD], 1, "no JSON"),
    ("a byte that is no UTF-8", [HEAD, b'{"us": 1, "data": "\xff"}\n', END], 2, "byte 20 of it is no UTF-8"),
    ("a surrogate as bytes", [HEAD, b'{"us": 1, "data": "\xed\xb2\x80"}\n', END], 2, "no UTF-8"),
    ("a surrogate that stands for no byte", [HEAD, b'{"us": 1, "data": "x\\ud800"}\n', END], 2, "data has U+D800"),
    ("one that stands for ASCII", [HEAD, b'{"us": 1, "data": "\\udc41"}\n', END], 2, "data has U+DC41"),
    ("the same in the head", [head_with(model="\udfff"), END], 1, "model has U+DFFF"),
    ("the same in the request", [head_with(request_body="\udfff"), END], 1, "request_body has U+DFFF"),
    ("nested deeply", [HEAD, b'{"us": 1, "data": "x", "y": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"], 2, "deep"),
    ("a huge number", [HEAD, b'{"us": ' + b"1" * 100_000 + b', "data": "x"}\n'], 2, "number that is too long"),
    ("a large number", [HEAD, b'{"us": 9007199254740992, "data": "x"}\n'], 2, "us is more than"),
    ("a large end", [HEAD, b'{"end_us": 9007199254740992}\n'], 2, "end_us is more than"),
    ("a negative time", [HEAD, b'{"us": -1, "data": "x"}\n'], 2, "us is negative"),
    ("a negative end", [HEAD, b'{"end_us": -1}\n'], 2, "end_us is negative"),
    ("a negative head", [head_with(answered_us=-1), END], 1, "answered_us is negative"),
    ("NaN", [HEAD, b'{"us": NaN, "data": "x"}\n'], 2, "NaN is no number"),
    ("infinity", [HEAD, b'{"us": -Infinity, "data": "x"}\n'], 2, "-Infinity is no number"),
    ("a float", [HEAD, b'{"us": 1.5, "data": "x"}\n'], 2, "us is no whole number"),
    ("an exponent", [HEAD, b'{"us": 1e999, "data": "x"}\n'], 2, "us is no whole number"),
    ("true as a time", [HEAD, b'{"us": true, "data": "x"}\n'], 2, "us is no whole number"),
    ("text as a time", [HEAD, b'{"us": "1", "data": "x"}\n'], 2, "us is no whole number"),
    ("no time", [HEAD, b'{"data": "x"}\n'], 2, "us is no whole number"),
    ("no data", [HEAD, b'{"us": 1}\n'], 2, "data is no text"),
    ("data as a list", [HEAD, b'{"us": 1, "data": [1]}\n'], 2, "data is no text"),
    ("empty data", [HEAD, b'{"us": 1, "data": ""}\n'], 2, "data is empty"),
    ("a piece that is an end", [HEAD, b'{"us": 1, "data": "x", "end_us": 2}\n'], 2, "a piece and an end"),
    ("an end with data", [HEAD, b'{"data": "x", "end_us": 2}\n'], 2, "a piece and an end"),
    ("back in time", [HEAD, SECOND, FIRST, END], 3, "before that of the line above"),
    ("an end before the last piece", [HEAD, FIRST, b'{"end_us": 999}\n'], 3, "before that of the line above"),
    ("no head", [FIRST, END], 1, "not the head of a recording"),
    ("no second head", [HEAD, END, FIRST, END], 3, "not the head of a recording"),
    ("an end twice", [HEAD, END, END], 3, "not the head of a recording"),
    ("no end", [HEAD, FIRST], 1, "no end"),
    ("no second end", [HEAD, END, HEAD, FIRST], 3, "no end"),
    ("a head before the end", [HEAD, FIRST, HEAD, END], 3, "the one of line 1 has no end"),
    ("a body of a 204", [head_with(status=204), FIRST, END], 2, "204 has no body"),
    ("a body of a 304", [head_with(status=304), FIRST, END], 2, "304 has no body"),
    ("another kind", [head_with(llmpipe="tape"), END], 1, "not the head of a recording"),
    ("a later version", [head_with(version=2), END], 1, "version 2, and this llmpipe reads version 1"),
    ("a version that is true", [head_with(version=True), END], 1, "version is no whole number"),
    ("a version as text", [head_with(version="x" * 10_000), END], 1, "version is no whole number"),
    ("a status of 0", [head_with(status=0), END], 1, "status is not from 200 to 599"),
    ("a status of 101", [head_with(status=101), END], 1, "status is not from 200 to 599"),
    ("a status of 600", [head_with(status=600), END], 1, "status is not from 200 to 599"),
    ("a status as text", [head_with(status="200"), END], 1, "status is no whole number"),
    ("cut as a number", [head_with(cut=0), END], 1, "cut is neither true nor false"),
    ("the same of the request", [head_with(request_cut=None), END], 1, "request_cut is neither true nor false"),
    (
        "a field in the content type",
        [head_with(content_type="x\r\nSet-Cookie: y"), END],
        1,
        "content_type has a control",
    ),
    ("a null in the content type", [head_with(content_type="x\0"), END], 1, "content_type has a control"),
    ("a request as an object", [head_with(request_body={}), END], 1, "request_body is no text"),
    *(
        (f"no {name}", [b"\n\n", head_without(name), END], 3, f"{name} is n")
        for name in ("version", "status", "cut", "path")
    ),
    *((f"{name} is null", [head_with(**{name: None}), END], 1, f"{name} is no text") for name in ("model", "outcome")),
]


@pytest.mark.parametrize(("lines", "number", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_broken_is_told_by_its_line(lines: list[bytes], number: int, says: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_bytes(b"".join(lines))
    text = broken(file)
    assert f" is no recording: line {number}: " in text
    assert says in text


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(data: st.DataObject, tmp_path: Path) -> None:
    text = bytearray(HEAD + FIRST + SECOND + END)
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(text)))
        text[i : i + data.draw(st.integers(0, 30))] = data.draw(
            st.binary(max_size=5) | st.sampled_from([b'"', b"}", b"\n", b"9"])
        )
    file = tmp_path / "damaged.jsonl"
    file.write_bytes(text)
    try:
        found = read(file)
    except UsageError:
        broken(file)
    else:
        again = write_file(tmp_path / "again.jsonl", *found)
        assert read(again) == found


@pytest.mark.parametrize("text", [b"", b"\n\n \n"])
def test_an_empty_file(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_bytes(text)
    assert "it is empty" in broken(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    assert "No such file" in broken(tmp_path / "none.jsonl")
    assert "Is a directory" in broken(tmp_path)


@pytest.mark.parametrize("line", [FIRST, b""], ids=["lines", "one line"])
def test_a_file_that_is_too_long(line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_BYTES", 2 << 20)
    file = tmp_path / "long.jsonl"
    many = (2 << 20) // len(FIRST)
    file.write_bytes(HEAD + (line * many or b" " * (2 << 20)) + END)
    assert "is longer than 2 MiB" in broken(file)
    assert "fewer of its recordings" in broken(file)


def test_a_file_of_the_greatest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_file(tmp_path / "just.jsonl", PLAIN)
    monkeypatch.setattr(recording, "MOST_BYTES", file.stat().st_size)
    assert read(file) == [PLAIN]
    monkeypatch.setattr(recording, "MOST_BYTES", file.stat().st_size - 1)
    assert "is longer than" in broken(file)


def test_a_file_without_an_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_BYTES", 1 << 20)
    assert "is longer than 1 MiB" in broken(Path("/dev/zero"))
