"""Builds the test-only extension from the engine's own parts; see llmpipe_probe.pyx. Run from the project's root:

python tests/probe/setup.py build_ext --build-lib build/probe
"""

import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import setup

ROOT = Path(__file__).resolve().parents[2]
build = runpy.run_path(str(ROOT / "setup.py"), run_name="llmpipe_setup")
flavour = build["chosen_flavour"]()
extension = build["extension"]("llmpipe_probe", "tests/probe/llmpipe_probe.pyx", flavour)
setup(name="llmpipe-probe", ext_modules=cythonize([extension], **build["cython_options"](flavour)))
