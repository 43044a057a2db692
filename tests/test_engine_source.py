"""Rules of the engine that its source and the generated C must keep."""

import inspect
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from llmpipe import _pipe

ROOT = Path(__file__).parents[1]
PARTS = sorted((ROOT / "src" / "_pipe").glob("*.pxi"))
LOAD_PARTS = sorted((ROOT / "src" / "_load").glob("*.pxi"))
MODULE = ROOT / "src" / "_pipe.pyx"
LOAD_MODULE = ROOT / "src" / "_load.pyx"
SOCKET_CALLS = [
    *("accept", "accept4", "close", "connect", "epoll_ctl", "getsockopt", "recv", "recvfrom", "recvmsg", "send"),
    *("sendmsg", "sendto", "setsockopt", "shutdown", "socket", "splice"),
]


def code(path: Path) -> str:
    """A part without its comments and strings."""
    text = re.sub(r'"""(?s:.*?)"""', '""', path.read_text())
    text = re.sub(r'b?"(?:[^"\\\n]|\\.)*"', '""', text)
    return re.sub(r"#.*", "", text)


def generate(module: Path, folder: Path) -> Path:
    """The C that Cython makes of a module."""
    out = folder / f"{module.stem}.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--module-name", f"llmpipe.{module.stem}", module, "-o", out],
        check=True,
        cwd=ROOT / "src",
    )
    return out


def compile_warnings(source: Path) -> list[str]:
    """What the compiler has to say of generated C."""
    warnings = runpy.run_path(str(ROOT / "setup.py"), run_name="llmpipe_setup")["WARNINGS"]
    done = subprocess.run(
        [
            sysconfig.get_config_var("CC").split()[0],
            *warnings,
            *("-O1", "-fPIC", "-I", sysconfig.get_path("include"), "-c", source, "-o", source.with_suffix(".o")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "warning:" in line]


@pytest.fixture(scope="module")
def engine_source(tmp_path_factory) -> Path:
    return generate(MODULE, tmp_path_factory.mktemp("cython"))


@pytest.fixture(scope="module")
def load_source(tmp_path_factory) -> Path:
    return generate(LOAD_MODULE, tmp_path_factory.mktemp("cython"))


@pytest.fixture(scope="module")
def generated(engine_source) -> str:
    return engine_source.read_text()


def test_no_function_looks_for_an_exception_without_the_gil(generated):
    assert "__pyx_f_7llmpipe_5_pipe_exchange_run" in generated  # it is the engine's C
    assert generated.count("ErrOccurredWithGIL") == 0


@pytest.mark.parametrize(("function", "called"), [("loop_run", "loop_wait"), ("loop_wait", "epoll_wait")])
def test_the_loop_never_takes_the_gil(generated, function, called):
    pattern = rf"^static int __pyx_f_7llmpipe_5_pipe_{function}\([^;{{]*\) \{{\n(.*?)^\}}$"
    body = re.search(pattern, generated, re.MULTILINE | re.DOTALL)[1]
    assert called in body
    assert not re.search(r"\bPy[A-Z_]|GILState|BlockThreads", body)


@pytest.mark.parametrize("part", [*PARTS, *LOAD_PARTS], ids=lambda part: f"{part.parent.name}-{part.stem}")
def test_every_function_is_noexcept_nogil(part):
    functions = re.findall(
        r"^cdef (?!enum|struct|extern|class)[^\n=]*\w+\((?:[^()]|\n)*\)[^\n]*:$", code(part), re.MULTILINE
    )
    for function in functions:
        assert function.endswith("noexcept nogil:"), function
    assert "with gil" not in code(part)
    assert "except" not in re.sub(r"\bnoexcept\b", "", code(part))


def test_only_io_touches_descriptors():
    # `self.close()` and `def close(` are Python's; `sys` only declares.
    calls = rf"(?<![\w.])(?<!def )(?:{'|'.join(SOCKET_CALLS)})\("
    parts = {part.stem for part in [*PARTS, MODULE, *LOAD_PARTS, LOAD_MODULE] if re.search(calls, code(part))}
    assert parts == {"sys", "io"}


@pytest.mark.parametrize("part", [*PARTS, MODULE], ids=lambda part: part.stem)
def test_only_conn_reads_and_writes_a_connection(part):
    """What a recv or a send says of a socket is noted where it is called: a flag that is cleared too early loses bytes."""
    if part.stem in ("io", "conn"):
        return
    text = code(part)
    assert not re.search(r"\bio_(?:recv_into|peek|discard|send|error|shut|accept)\(", text)

    assert not re.search(r"\b(?:conn|client|upstream)\.(?:readable|writable|hung_up|failed|to_end) =", text)


def test_the_includes_are_the_parts():
    included = re.findall(r'^include "_pipe/(\w+)\.pxi"$', MODULE.read_text(), re.MULTILINE)
    assert sorted(included) == [part.stem for part in PARTS]


@pytest.mark.parametrize(
    "part", [*PARTS, MODULE, *LOAD_PARTS, LOAD_MODULE], ids=lambda part: f"{part.parent.name}-{part.stem}"
)
def test_every_part_says_what_it_is_for(part):
    assert part.read_text().startswith((f"# {part.stem}:", "# cython:"))


def test_states_are_set_in_one_place():
    setters = [part.stem for part in PARTS if re.search(r"\bx\.state = ", code(part))]
    assert setters == ["exchange"]
    assert len(re.findall(r"\bx\.state = ", code(ROOT / "src" / "_pipe" / "exchange.pxi"))) == 1
    setters = [part.stem for part in PARTS if re.search(r"\bclient\.state = ", code(part))]
    assert setters == ["client"]
    assert len(re.findall(r"\bclient\.state = ", code(ROOT / "src" / "_pipe" / "client.pxi"))) == 1


def test_no_part_calls_upwards():
    """A reader who goes through the parts in the order in which they are included knows every function that is called."""
    included = re.findall(r'^include "_pipe/(\w+)\.pxi"$', MODULE.read_text(), re.MULTILINE)
    texts = {name: code(ROOT / "src" / "_pipe" / f"{name}.pxi") for name in included}
    home = {
        function: place
        for place, text in enumerate(texts.values())
        for function in re.findall(r"^cdef (?!enum|struct|extern)[^(\n=]*?(\w+)\(", text, re.MULTILINE)
    }
    assert len(home) > 200
    upward = [
        f"{name}: {called}"
        for place, (name, text) in enumerate(texts.items())
        for called in set(re.findall(r"\b(\w+)\(", text))
        if home.get(called, 0) > place
    ]
    assert upward == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_a_part_is_short(part):
    """Of one idea each. Reading a head is one idea too."""
    assert len(part.read_text().splitlines()) <= (700 if part.stem == "head" else 300)


def test_the_stub_matches_the_extension():
    stub = (ROOT / "src" / "llmpipe" / "_pipe.pyi").read_text()
    engine = stub[stub.index("class Engine:") :]
    said = set(re.findall(r"    def (\w+)\(", engine))
    there = {name for name in vars(_pipe.Engine) if not name.startswith("__")} | {"__init__"}
    assert said == there
    for name in said - {"__init__"}:
        member = inspect.getattr_static(_pipe.Engine, name)
        is_property = f"@property\n    def {name}(" in engine
        assert is_property == (type(member).__name__ == "getset_descriptor"), name
    for name in re.findall(r"^([A-Z_]+): ", stub, re.MULTILINE):
        assert hasattr(_pipe, name), name
    names = {name for name in vars(_pipe) if not name.startswith("_") and name != "Engine"}
    assert names == set(re.findall(r"^([A-Z_]+): ", stub, re.MULTILINE))


def test_mypy_stubtest_agrees():
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "llmpipe._pipe",
            "llmpipe._load",
            "--allowlist",
            ROOT / "tests" / "stubtest.txt",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_engine_compiles_without_a_warning(engine_source):
    """With -Wall and -Wextra; functions that nobody calls among them."""
    assert compile_warnings(engine_source) == []


@pytest.mark.slow
def test_the_load_generator_compiles_without_a_warning(load_source):
    """But for functions of the parts that it shares with the engine: it does not call all of them."""
    shared = "".join(part.read_text() for part in PARTS)
    own = [
        line
        for line in compile_warnings(load_source)
        if not (
            (unused := re.search(r"__pyx_f_7llmpipe_5_load_(\w+)' defined but not used", line))
            and f" {unused[1]}(" in shared
        )
    ]
    assert own == []


def test_the_load_generator_runs_without_the_gil(load_source):
    generated = load_source.read_text()
    assert generated.count("ErrOccurredWithGIL") == 0
    body = re.search(r"^static int __pyx_f_7llmpipe_5_load_load_run\([^;{]*\) \{\n(.*?)^\}$", generated, re.M | re.S)[1]
    assert "epoll_wait" in body
    assert not re.search(r"\bPy[A-Z_]|GILState|BlockThreads", body)


def test_tables_of_names_are_as_long_as_their_enums():
    assert len(_pipe.OUTCOMES) == len(set(_pipe.OUTCOMES)) == 18
    assert len(_pipe.PHASES) == len(set(_pipe.PHASES)) == 10
    assert list(_pipe.BUCKETS) == sorted(_pipe.BUCKETS)
