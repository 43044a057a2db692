"""Rule J1 in the engine's own reader of a request's JSON, opened by the probe, against three other readers: json, orjson and jiter.

Where one of them takes a body and finds a model in it, ours finds the same one or refuses the body. What all three take, ours takes
too, but for what two readers could read in two ways. Each body is read whole, byte by byte, and cut in two at every place.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import jiter
import orjson
import pytest
from seeds import seeds

BODIES = 4000
"""Generated ones for each seed."""

REFUSED = object()


def read(probe: Any, body: bytes, *pieces: bytes, guessed: bool = False) -> tuple[bytes | None, Any, str]:
    """(the model, where it stands, why it was refused) as our reader says."""
    reader = probe.JsonReader(guessed)
    taken = all(reader.feed(piece) for piece in (pieces or (body,)))
    if taken:
        taken = reader.whole
    return reader.model, reader.place, "" if taken else reader.why


def read_everyhow(probe: Any, body: bytes, cuts: int | None = None) -> tuple[bytes | None, Any, str]:
    """The same however it comes; `cuts` of the places to cut it at."""
    found = read(probe, body)
    assert read(probe, body, *(body[i : i + 1] for i in range(len(body)))) == found
    places = range(1, len(body))
    for at in places if cuts is None else random.Random(len(body)).sample(places, min(cuts, len(places))):
        assert read(probe, body, body[:at], body[at:]) == found, at
    return found


def others(body: bytes) -> list[Any]:
    """The model that each of the others finds: text, None for none, REFUSED."""
    found = []
    for loads in (json.loads, orjson.loads, jiter.from_json):
        try:
            value = loads(body)
        except (ValueError, RecursionError):
            found.append(REFUSED)
            continue
        model = value.get("model") if isinstance(value, dict) else REFUSED
        found.append(model)
    return found


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a"}', b"a"),
        (b' {\n"stream" : true , "model"\t:\r\n"llama-3.3-70b" } \n', b"llama-3.3-70b"),
        (b'{"messages":[{"role":"user","content":"\\"model\\":\\"b\\""}],"model":"a"}', b"a"),
        (b'{"a":{"model":"b"},"model":"a","c":[{"model":"c"}]}', b"a"),
        (b'{"model":"a","stop":["\\\\","\\\\\\"",""],"n":-1.5e+3}', b"a"),
        (b'{"mod\\u0065l":"\\u0061\\/\\b\\n\\t\\"\\\\"}', b'a/\b\n\t"\\'),
        (b'{"model":"\\ud83d\\ude00"}', "\N{GRINNING FACE}".encode()),
        ('{"model":"\N{GRINNING FACE}é"}'.encode(), "\N{GRINNING FACE}é".encode()),
        (b'{"model":""}', b""),
        (b'{"x":"' + b"y" * 100_000 + b'","model":"a"}', b"a"),
        (b'{"model":"' + b"m" * 256 + b'"}', b"m" * 256),
        (b'{"models":"b","mode":"c","model":"a","model ":"d"}', b"a"),
        (b"{" + b'"x":[' * 1 + b"[" * 1000 + b"]" * 1000 + b"]" + b',"model":"a"}', b"a"),
    ],
)
def test_j1_the_model_is_found_wherever_it_stands(probe, body: bytes, model: bytes) -> None:
    found, place, why = read_everyhow(probe, body, cuts=200)
    assert (found, why) == (model, "")
    assert json.loads(body[place[0] - 1 : place[1] + 1]).encode("utf-8", "surrogatepass") == model


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"model":"a","model":"b"}', "two models"),
        (b'{"model":"a","mod\\u0065l":"a"}', "two models"),
        (b'{"model":"a","MODEL":"b"}', "two models"),
        (b'{"Model":"a"}', "model in another case"),
        (b'{"model":1}', "model is no string"),
        (b'{"model":null}', "model is no string"),
        (b'{"model":{"model":"a"}}', "model is no string"),
        (b'{"model":["a"]}', "model is no string"),
        *((body, "bad JSON") for body in (
            b" ", b"[]", b'["model","a"]', b'"model"', b"1", b"null", b"{", b'{"model"', b'{"model":', b'{"model":"a',
            b'{"model":"a"', b'{"model":"a"}}', b'{"model":"a"} {}', b'{"model":"a"}\0', b'\xef\xbb\xbf{"model":"a"}',
            '{"model":"a"}'.encode("utf-16"), '{"model":"a"}'.encode("utf-16-le"), b"{'model':'a'}", b'{"model":"a",}',
            b'{,"model":"a"}', b'{"model" "a"}', b'{"n"::1,"model":"a"}', b'{"a":[},"model":"a"}', b'{"a":{],"model":"a"}',
            b'{"a":[1,],"model":"a"}', b'{"a":[,1],"model":"a"}', b'{"a" 1,"model":"a"}', b'{"a":1 2,"model":"a"}',
            b'/*{"model":"b"}*/{"model":"a"}', b'{"model":"a"}//', b'{"model":"\\x"}', b'{"model":"\\u12g4"}', b'{model:"a"}',
            b'{"model":"a\nb"}', b'{"a":NaN,"model":"a"}', b"model=a&stream=true", b"\0\0\0\0",
            b'{"x":' + b"[" * 5000 + b"]" * 5000 + b',"model":"a"}', b'{"x":' * 2000 + b"1" + b"}" * 2000,
        )),
    ],
)  # fmt: skip
def test_j1_what_two_readers_could_read_in_two_ways_is_refused(probe, body: bytes, why: str) -> None:
    assert read_everyhow(probe, body, cuts=50)[2] == why


def test_j1_a_name_that_is_too_long_is_no_models(probe) -> None:
    for length in (257, 1 << 20):
        body = b'{"model":"' + b"m" * length + b'","n":1}'
        found, place, why = read(probe, body)
        assert (found, place, why) == (None, (10, 10 + length), "")


@pytest.mark.parametrize("body", [b"model=a", b"--x\r\n", b"\x1f\x8b\x08", b" text", b"[]", b""])
def test_j2_what_need_not_be_json_may_be_something_else(probe, body: bytes) -> None:
    reader = probe.JsonReader(True)
    assert reader.feed(body)
    assert reader.whole
    assert reader.other is bool(body.strip())
    assert reader.model is None


def test_j2_what_begins_like_json_must_be_json(probe) -> None:
    assert read(probe, b'{"model":"a"}', guessed=True) == (b"a", (10, 11), "")
    assert read(probe, b'{"model":"a"', guessed=True)[2] == "bad JSON"


class Maker:
    """Makes bodies: JSON mostly, with what readers differ in."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def text(self) -> str:
        kinds = [
            lambda: "".join(self.dice.choices('abcmodel-"\\/{}[]:, \t', k=self.dice.randrange(12))),
            lambda: "model",
            lambda: "Model",
            lambda: "\\u" + "".join(self.dice.choices("0123456789abcdefD8", k=4)),
            lambda: chr(self.dice.choice([0x7F, 0xE9, 0x20AC, 0x1F600])),
            lambda: self.dice.choice(["\\n", '\\"', "\\\\", "\\ud83d\\ude00", "\\ud83d", "\\x", "\x01"]),
        ]
        parts = [self.dice.choice(kinds)() for _ in range(self.dice.randrange(3))]
        text = "".join(parts)
        if self.dice.random() < 0.9:  # mostly as it should be
            return json.dumps(text, ensure_ascii=self.dice.random() < 0.5)
        return f'"{text}"'

    def value(self, depth: int) -> str:
        which = self.dice.randrange(8 if depth else 5)
        if which < 2:
            return self.text()
        if which < 5:
            return self.dice.choice(["0", "-1", "1.5e+3", "true", "false", "null", "NaN", "01", "-", "1e999", "tru"])
        if which < 6:
            return "[" + self.space(",").join(self.value(depth - 1) for _ in range(self.dice.randrange(4))) + "]"
        return self.thing(depth - 1, self.dice.randrange(4))

    def space(self, mark: str) -> str:
        return self.dice.choice(["", " ", "\n\t"]) + mark + self.dice.choice(["", "", " "])

    def thing(self, depth: int, members: int) -> str:
        names = [
            self.dice.choice(['"model"', '"model"', '"mod\\u0065l"', '"MODEL"', self.text()]) for _ in range(members)
        ]
        return "{" + self.space(",").join(name + self.space(":") + self.value(depth) for name in names) + "}"

    def body(self) -> bytes:
        body = self.thing(3, self.dice.randrange(1, 5)).encode("utf-8", "surrogatepass")
        if self.dice.random() < 0.2:
            at = self.dice.randrange(len(body) + 1)
            body = body[:at] + self.dice.randbytes(self.dice.randrange(2)) + body[at + self.dice.randrange(2) :]
        return body


@pytest.mark.parametrize("seed", seeds(5))
def test_j1_generated_bodies_are_read_as_by_others_or_refused(probe, seed: int) -> None:
    dice = random.Random(seed)
    make = Maker(dice)
    seen: Counter[str] = Counter()
    for _ in range(BODIES):
        body = make.body()
        model, _, why = read_everyhow(probe, body, cuts=3)
        read_by = others(body)
        if why:
            seen[why] += 1
            # What everybody reads alike is not refused for its grammar; the standard's own reader takes NaN, too.
            assert why != "bad JSON" or REFUSED in read_by, body
            continue
        for found in read_by:
            if found is REFUSED:
                continue
            assert model == (None if found is None else found.encode("utf-8", "surrogatepass")), body
        seen["model" if model is not None else "none"] += 1
    assert all(seen[kind] > 20 for kind in ("model", "none", "two models", "bad JSON", "model is no string")), seen
