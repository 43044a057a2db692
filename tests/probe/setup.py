"""Builds the test-only extensions from the engine's own parts. Run from the project's root:

python tests/probe/setup.py build_ext --build-lib build/probe

llmpipe_probe opens the readers (llmpipe_probe.pyx); llmpipe_world is the whole engine on a simulated kernel (kernel.h,
world.pxi), made from the product's own source, in which one include is replaced. The product knows nothing of either.
"""

import platform
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


def write_world(folder: Path) -> str:
    """The engine's source with the simulated kernel in the place of the real one, and the world behind it."""
    source = (ROOT / "src" / "_pipe.pyx").read_text()
    real = 'include "_pipe/sys.pxi"'
    if source.count(real) != 1:
        raise SystemExit(f"src/_pipe.pyx does not say {real} once")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llmpipe_world.pyx"
    path.write_text(source.replace(real, 'include "fake_sys.pxi"') + '\n\ninclude "world.pxi"\ninclude "targets.pxi"\n')
    return str(path)


flavour = build["chosen_flavour"]()
options = build["cython_options"](flavour)
options["include_path"] = [*options["include_path"], str(HERE)]
options["force"] = True  # what is included is not looked at
extensions = [
    build["extension"]("llmpipe_probe", str(HERE / "llmpipe_probe.pyx"), flavour),
    build["extension"]("llmpipe_world", write_world(Path(build["build_base"](flavour)) / "world"), flavour),
]
for extension in extensions:
    extension.include_dirs.append(str(HERE))
if flavour == "fuzz":
    extensions = extensions[1:]
    extensions[0].extra_link_args += libfuzzer()
setup(name="llmpipe-probe", ext_modules=cythonize(extensions, **options))
