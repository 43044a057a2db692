"""Builds the test-only extensions from the engine's own parts. Run from the project's root:

python tests/probe/setup.py build_ext --build-lib build/probe

llmpipe_probe opens the readers (llmpipe_probe.pyx); llmpipe_world is the whole engine on a simulated kernel (kernel.h,
world.pxi), made from the product's own source: one include is replaced, and a few functions get another name, so that
the world stands in front of them (SEAMS). llmpipe_world_small is the same with small constants, so that a short script uses
up a turn's share, fills buffers and goes beyond what a linger takes; llmpipe_fleet has rings of a few places, for several
engines at once (fleet.pxi). The product knows nothing of any of them.
"""

import platform
import re
import runpy
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import setup

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/probe")
build = runpy.run_path(str(ROOT / "setup.py"), run_name="llmpipe_setup")


def libfuzzer() -> list[str]:
    """What links libFuzzer, without its main, into an extension. The sanitizer's runtime has functions of the same names that
    do nothing, and comes first: hence symbolic."""
    ask = ["clang", "--print-resource-dir"]
    folder = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    return [
        *map(str, folder.glob(f"lib/linux/libclang_rt.fuzzer_no_main-{platform.machine()}.a")),
        "-lstdc++",
        "-Wl,-Bsymbolic",
    ]


SEAMS = {
    "buf_get": "BufC *buf_get(BufSlabC *slab) noexcept nogil:\n"
    "    return NULL if sim_denied(SIM_BUF_GET) else engine_buf_get(slab)",
    "slab_get": "void *slab_get(SlabC *slab) noexcept nogil:\n"
    "    return NULL if sim_denied(SIM_SLAB_GET) else engine_slab_get(slab)",
    "exchange_set_state": "",
    "exchange_end": "",
    "probe_open": "",
}
"""Functions of the engine that the world stands in front of: the engine's own is then called engine_NAME. What is not said here is
in world.pxi."""

SMALL = {
    "BUF_SIZE": 256,
    "BUFS_A_BLOCK": 1,
    "TURN_READS": 2,
    "BULK_SIZE": 1024,
    "ACCEPTS_A_TURN": 2,
    "HOLD_MOST": 300,
    "SIEVE_ROOM": 300,
}
"""Constants of the small world."""

FLEET = {"MAIL_IN": 4, "MAIL_OUT": 8}
"""Constants of the world of several engines: rings that a burst fills."""


def once(pattern: str, replacement: str, parts: dict[str, str]) -> str:
    """Replaces what must stand once in all the parts; the name of the one where it stood."""
    found = [name for name, text in parts.items() for _ in re.findall(pattern, text, re.MULTILINE)]
    if len(found) != 1:
        raise SystemExit(f"{pattern} stands {len(found)} times in src/_pipe; tests/probe/setup.py expects it once")
    parts[found[0]] = re.sub(pattern, replacement, parts[found[0]], count=1, flags=re.MULTILINE)
    return found[0]


def write_world(folder: Path, name: str, constants: dict[str, int]) -> str:
    """The engine's source with the simulated kernel in the place of the real one, and the world behind it."""
    source = (ROOT / "src" / "_pipe.pyx").read_text()
    real = 'include "_pipe/sys.pxi"'
    if source.count(real) != 1:
        raise SystemExit(f"src/_pipe.pyx does not say {real} once")
    source = source.replace(real, 'include "fake_sys.pxi"')
    parts = {part: (ROOT / "src" / "_pipe" / part).read_text() for part in re.findall(r'include "_pipe/(\S+)"', source)}
    for function, front in SEAMS.items():
        part = once(rf"^(cdef [^(\n]*?){function}\(", rf"\g<1>engine_{function}(", parts)
        parts[part] += f"\ncdef {front}\n" if front else ""
    for constant, value in constants.items():
        once(rf"^    {constant} = \d+", f"    {constant} = {value}", parts)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part, text in parts.items():
        (folder / name / part).write_text(text)
        source = source.replace(f'include "_pipe/{part}"', f'include "{name}/{part}"')
    path = folder / f"{name}.pyx"
    behind = ("world.pxi", "trace.pxi", "fleet.pxi", "places.pxi", "admission.pxi", "balance.pxi", "targets.pxi")
    path.write_text(source + "\n\n" + "".join(f'include "{part}"\n' for part in behind))
    return str(path)


if __name__ == "__main__":  # Cython's processes import this file where they are not forked, as of Python 3.14
    flavour = build["chosen_flavour"]()
    options = build["cython_options"](flavour)
    options["include_path"] = [*options["include_path"], str(HERE)]
    options["force"] = True  # what is included is not looked at
    extensions = [
        build["extension"]("llmpipe_probe", str(HERE / "llmpipe_probe.pyx"), flavour),
        *(
            build["extension"](
                name, write_world(Path(build["build_base"](flavour)) / "world", name, constants), flavour
            )
            for name, constants in {"llmpipe_world": {}, "llmpipe_world_small": SMALL, "llmpipe_fleet": FLEET}.items()
        ),
    ]
    for extension in extensions:
        extension.include_dirs.append(str(HERE))
        extension.define_macros.append(("LLMPIPE_CHECKS", None))
    if flavour == "fuzz":
        extensions = extensions[1:]
        for extension in extensions:
            extension.extra_link_args += libfuzzer()
            extension.define_macros.append(("__SANITIZE_ADDRESS__", None))  # only gcc says so by itself
    setup(
        name="llmpipe-probe",
        ext_modules=cythonize(extensions, **options),
        options={"build_ext": {"parallel": True}},
    )
