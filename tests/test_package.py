"""What is published: a wheel that holds only what runs, an sdist from which the same wheel can be built."""

import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ("method.md", "page.css", "page.html.j2", "page.js")
"""What the page of a benchmark is made of."""
STATUS = ("base.css", "status.css", "status.html", "status.js")
"""What the page of a running proxy is made of."""

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not run from a source tree"),
]


def python(*words: object, cwd: Path) -> None:
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=550, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Built by the build back end, from a copy: a build leaves files behind."""
    copy = tmp_path_factory.mktemp("tree") / "llmpipe"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
    (copy / "src" / "llmpipe" / "_pipe.stale.so").touch()
    (copy / "src" / "_pipe.c").touch()
    (copy / "bench" / "results" / "samples.json").touch()
    (copy / "bench" / "results" / "bench.html").touch()
    script = "import setuptools.build_meta as b; b.build_sdist('dist')"
    python("-c", script, cwd=copy)
    (path,) = (copy / "dist").glob("llmpipe-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the sdist."""
    out = tmp_path_factory.mktemp("wheel")
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sdist, cwd=out)
    (path,) = out.glob("llmpipe-*.whl")
    return path


@pytest.mark.slow
def test_the_sdist_has_what_a_build_and_the_tests_need(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in ["src/_pipe.pyx", "src/_pipe/steps.pxi", "src/llmpipe/py.typed", "tests/harness.py", "LICENSE"]:
        assert path in names, path
    assert "tests/probe/llmpipe_probe.pyx" in names
    assert {f"src/llmpipe/bench/{name}" for name in PAGE} <= names
    assert {f"src/llmpipe/page/{name}" for name in STATUS} <= names
    assert {name for name in names if name.startswith("bench/results/")} == {
        "bench/results/bench.json",
        "bench/results/bench.md",
    }
    assert {name for name in names if name.endswith((".c", ".so", ".pyc"))} == {"tests/malloc_count.c", "tests/names.c"}


@pytest.mark.slow
def test_the_wheel_holds_only_what_runs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert {name.split("/")[0] for name in names} == {"llmpipe"}
    kinds = {Path(name).suffix for name in names}
    assert kinds == {".py", ".pyi", ".so", ".typed", *(Path(name).suffix for name in PAGE + STATUS)}
    assert {f"llmpipe/bench/{name}" for name in PAGE} <= set(names)
    assert {f"llmpipe/page/{name}" for name in STATUS} <= set(names)
    assert sorted(name.split(".")[0] for name in names if name.endswith(".so")) == ["llmpipe/_load", "llmpipe/_pipe"]
    assert "llmpipe = llmpipe.cli:main" in entry_points


@pytest.mark.slow
def test_the_wheel_runs(wheel, tmp_path):
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel, cwd=tmp_path)
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from llmpipe import _pipe; print(_pipe.__file__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.startswith(str(tmp_path))


def test_other_flavours_are_named_and_unknown_ones_refused(tmp_path):
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"LLMPIPE_BUILD": "fast", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "it must be one of release, debug, asan, tsan, gcov, fuzz" in result.stderr


def test_flavours_do_not_share_a_folder():
    """Pip builds in the tree: a sanitized extension left by another build must not get into a release wheel."""
    build = runpy.run_path(str(ROOT / "setup.py"), run_name="llmpipe_setup")
    folders = {build["build_base"](flavour) for flavour in build["FLAVOURS"]}
    assert len(folders) == len(build["FLAVOURS"]) == 6


def test_another_system_is_refused_with_a_reason():
    script = "import runpy, sys, Cython.Build, setuptools; sys.platform = 'darwin'; runpy.run_path('setup.py', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "llmpipe runs on Linux only: its engine is built on epoll\n"
