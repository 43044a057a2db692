"""Builds the engine and the load generator. Everything else about the package is in pyproject.toml.

LLMPIPE_BUILD chooses the flavour: release (default), debug, asan, tsan, gcov, or fuzz (by clang, for tests/fuzz only). Install a
flavour other than release into a virtual environment of its own, never in place: a sanitized extension in the source tree
breaks plain imports.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

WARNINGS = ["-Wall", "-Wextra"]

FLAVOURS = {
    "release": (["-O3", "-g1", "-fvisibility=hidden", "-fno-semantic-interposition"], []),
    "debug": (["-O0", "-g3"], []),
    "asan": (
        [
            *("-O1", "-g", "-fno-omit-frame-pointer", "-DLLMPIPE_CHECKS"),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ],
        ["-fsanitize=address,undefined"],
    ),
    "tsan": (["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread"], ["-fsanitize=thread"]),
    "gcov": (["-O0", "-g", "--coverage"], ["--coverage"]),
    # By clang, for tests/fuzz.
    "fuzz": (
        [
            *("-O1", "-g", "-fno-omit-frame-pointer", "-DLLMPIPE_FUZZ", "-shared-libasan"),
            *("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"),
        ],
        ["-fsanitize=fuzzer-no-link,address,undefined", "-shared-libasan"],
    ),
}


def build_base(flavour: str) -> str:
    """Each flavour has a folder of its own: setuptools would take an extension of another flavour for up to date."""
    return f"build/{flavour}"


def extension(name: str, source: str, flavour: str) -> Extension:
    """A Cython extension of this project, with the flavour's flags."""
    compile_args, link_args = FLAVOURS[flavour]
    return Extension(name, [source], extra_compile_args=WARNINGS + compile_args, extra_link_args=link_args)


def cython_options(flavour: str) -> dict[str, object]:
    """Flag changes do not re-run Cython by themselves, so every flavour but release forces it."""
    return {
        "include_path": ["src"],
        "emit_linenums": flavour in ("debug", "gcov"),
        "nthreads": os.cpu_count() or 1,
        "force": flavour != "release",
        "build_dir": f"{build_base(flavour)}/cython",
    }


def chosen_flavour() -> str:
    flavour = os.environ.get("LLMPIPE_BUILD", "release")
    if flavour not in FLAVOURS:
        sys.exit(f"LLMPIPE_BUILD is {flavour!r}; it must be one of {', '.join(FLAVOURS)}")
    if not sys.platform.startswith("linux"):
        sys.exit("llmpipe runs on Linux only: its engine is built on epoll")
    return flavour


if __name__ == "__main__":
    chosen = chosen_flavour()
    setup(
        ext_modules=cythonize(
            [
                extension("llmpipe._pipe", "src/_pipe.pyx", chosen),
                extension("llmpipe._load", "src/_load.pyx", chosen),
            ],
            **cython_options(chosen),
        ),
        options={"build": {"build_base": build_base(chosen)}, "build_ext": {"parallel": True}},
    )
