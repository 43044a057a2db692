"""Writes what docs/architecture.md says of the engine's parts, from their source: the table, the drawing, the sizes of structs.

    python tests/parts.py               # the table and the drawing, to stdout
    python tests/parts.py --write       # into the pages: both, between the marks; and sizes, wherever they are said

The table has the parts in the order of src/_pipe.pyx. The drawing is the path of a connection: the calls that lead from the loop
to a step, and what a step calls in other parts. Both come from the text alone, so nothing has to be built. The sizes are those of C:
ctypes lays a struct out as the compiler does. tests/test_parts.py holds the pages to all of it.
"""

from __future__ import annotations

import ctypes
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "_pipe"
PAGE = ROOT / "docs" / "architecture.md"
SIZED = [PAGE, ROOT / "docs" / "contract.md", ROOT / "README.md"]
"""Pages that say sizes."""
COMMAND = ".venv/bin/python tests/parts.py --write"
BEGIN, END = "<!-- parts: begin -->", "<!-- parts: end -->"

EVERYWHERE = ("sys", "text", "buf", "timer", "stats")
"""Parts that are used all over: not in the column "calls"."""
PATH = {"listener", "client", "request", "pool", "route", "upstream", "response", "stream", "tunnel", "steps", "loop"}
"""Parts of the drawing."""
STREAM = ("ClientC", "ExchangeC", "UpstreamC")
"""What a stream costs, one of each."""
LINES = 50
"""The table's lines are rounded up to a multiple of these, or each line more would change the page."""
WIDTH = 118

FUNCTION = re.compile(r"^cdef (?!enum|struct|extern)[^(\n=]*?(\w+)(\(.*\n(?:(?:[ \t].*)?\n)*)", re.MULTILINE)
STRUCT = re.compile(r"^cdef struct (\w+):\n((?:(?: +.*)?\n)+)", re.MULTILINE)
FIELD = re.compile(r"([\w ]+?) (\**)(\w+)(?:\[(\w+)\])?")
CONSTANT = re.compile(r"^ +([A-Z]\w+) = (\d+)\b", re.MULTILINE)
STEP = re.compile(r"^    STEPS\[(\w+)\] = (\w+)$", re.MULTILINE)
SIZE_OF_A_STRUCT = re.compile(r"\(`(\w+C)`\) \| \d+ bytes")
SIZE_OF_A_STREAM = re.compile(r"\d+ bytes of structs")
MOVES = re.compile(r"^    STATE_MOVES\[(\w+)\] = ((?:.*\n)(?: {5,}.*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A file of the engine."""

    name: str
    purpose: str
    lines: int
    code: str
    """Without comments and strings."""

    @property
    def bodies(self) -> dict[str, str]:
        """Each function's text."""
        return {found[1]: found[2] for found in FUNCTION.finditer(self.code)}


def read_part(name: str) -> Part:
    text = (SOURCE / f"{name}.pxi").read_text()
    comment = re.match(rf"# {name}: ((?:.*\n)(?:# .*\n)*)", text)
    assert comment, f'the first line of {name}.pxi is not "# {name}: what it is"'
    purpose = re.split(r"\.(?: |$)", comment[1].replace("\n# ", " ").strip())[0]
    code = re.sub(r'"""(?s:.*?)"""', '""', text)
    code = re.sub(r'b?"(?:[^"\\\n]|\\.)*"', '""', code)
    return Part(name, purpose, text.count("\n"), re.sub(r" *#.*", "", code))


class Engine:
    """The parts in the order of their includes, and who calls what."""

    def __init__(self) -> None:
        module = SOURCE.with_suffix(".pyx").read_text()
        self.parts = [read_part(name) for name in re.findall(r'^include "_pipe/(\w+)\.pxi"$', module, re.MULTILINE)]
        self.code = "".join(part.code for part in self.parts)
        self.home = {function: part.name for part in self.parts for function in part.bodies}
        self.calls = {
            function: [called for called in dict.fromkeys(re.findall(r"\b(\w+)\(", body)) if called in self.home]
            for part in self.parts
            for function, body in part.bodies.items()
        }

    def called_parts(self, part: str) -> set[str]:
        return {
            self.home[called]
            for function in self.calls
            if self.home[function] == part
            for called in self.calls[function]
        }

    def leaves(self, function: str) -> dict[str, list[str]]:
        """What a function calls in other parts of the drawing, itself or through others of its own part; by part."""
        seen, waiting = {function}, [function]
        out: dict[str, list[str]] = {}
        while waiting:
            for called in self.calls[waiting.pop(0)]:
                if called not in seen:
                    seen.add(called)
                    if self.home[called] == self.home[function]:
                        waiting.append(called)
                    elif self.home[called] in PATH:
                        out.setdefault(self.home[called], []).append(called)
        return {part.name: out[part.name] for part in self.parts if part.name in out}

    def steps(self) -> Iterator[tuple[str, str, list[str]]]:
        """Each state, its step, and the states that may follow it."""
        moves = {found[1]: re.findall(r"1 << (\w+)", found[2]) for found in MOVES.finditer(self.code)}
        for state, step in STEP.findall(self.code):
            yield state, step, moves[state]


def table(engine: Engine) -> str:
    rows = ["| part | what it is for | lines | calls |", "|---|---|---|---|"]
    for part in engine.parts:
        called = engine.called_parts(part.name) - {*EVERYWHERE, part.name}
        names = ", ".join(f"`{other.name}`" for other in engine.parts if other.name in called)
        rows.append(f"| `{part.name}` | {part.purpose} | {-(-part.lines // LINES) * LINES} | {names or '-'} |")
    return "\n".join(rows)


def node(engine: Engine, title: str, function: str, hidden: str = " ") -> Iterator[str]:
    """A function, and beneath it what it calls in other parts."""
    yield title
    for part, functions in engine.leaves(function).items():
        names = [name for name in functions if not name.startswith(hidden)]
        if names:
            yield from textwrap.wrap(
                f"{part:<9} {', '.join(names)}", WIDTH - 8, initial_indent=" " * 4, subsequent_indent=" " * 14
            )


def tree(nodes: list[list[str]]) -> Iterator[str]:
    for place, lines in enumerate(nodes):
        first, rest = ("└─ ", "   ") if place == len(nodes) - 1 else ("├─ ", "│  ")
        yield first + lines[0]
        yield from (rest + line for line in lines[1:])


def drawing(engine: Engine) -> str:
    """From the loop to the steps, and from the driver to the step of each state."""
    entries = [name for names in engine.leaves("loop_run").values() for name in names if name.startswith("step_")]
    lines = list(node(engine, "loop_run (loop)", "loop_run", "step_"))
    lines += tree([list(node(engine, f"{entry} ({engine.home[entry]})", entry)) for entry in entries])
    callers = [function for function, called in engine.calls.items() if "exchange_run" in called]
    lines += ["", f"exchange_run (steps), called by {', '.join(callers)}"]
    lines += tree(
        [
            list(node(engine, f"{state}: {step} ({engine.home[step]}) ──> {', '.join(after)}", step))
            for state, step, after in engine.steps()
        ]
    )
    return "\n".join(line.rstrip() for line in lines)


def sizes() -> dict[str, int]:
    """Bytes of each struct."""
    code = Engine().code
    constants = dict(CONSTANT.findall(code))
    types: dict[str, Any] = {
        "int": ctypes.c_int,
        "bint": ctypes.c_int,
        "char": ctypes.c_char,
        "unsigned int": ctypes.c_uint,
        "size_t": ctypes.c_size_t,
        **{
            f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}")
            for sign in ("", "u")
            for bits in (8, 16, 32, 64)
        },
    }
    for name, body in STRUCT.findall(code):
        fields = []
        for line in body.split("\n"):
            if not line.strip():
                continue
            field = FIELD.fullmatch(line.strip())
            kind = field and (ctypes.c_void_p if field[2] else types.get(field[1].removeprefix("const ")))
            if not field or not kind:
                break  # a type of the system's, or a length that is computed: no page tells of such a struct
            fields.append((field[3], kind * int(constants.get(field[4], field[4])) if field[4] else kind))
        else:
            types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return {name: ctypes.sizeof(kind) for name, kind in types.items() if name.endswith("C")}


def between_marks(page: str, made: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


def with_sizes(page: str) -> str:
    """A page with the sizes that it says made right."""
    of = sizes()
    page = SIZE_OF_A_STRUCT.sub(lambda said: f"(`{said[1]}`) | {of[said[1]]} bytes", page)
    return SIZE_OF_A_STREAM.sub(f"{sum(of[name] for name in STREAM)} bytes of structs", page)


def made() -> str:
    """The table and the drawing, in Markdown."""
    engine = Engine()
    left_out = ", ".join(f"`{name}`" for name in EVERYWHERE)
    said = f'"Calls" leaves out {left_out}, which are used all over. Lines are rounded up to a multiple of {LINES}.'
    return f"{said}\n\n{table(engine)}\n\n```\n{drawing(engine)}\n```"


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        print(made())
        return
    PAGE.write_text(between_marks(PAGE.read_text(), made()))
    for page in SIZED:
        page.write_text(with_sizes(page.read_text()))


if __name__ == "__main__":
    main()
