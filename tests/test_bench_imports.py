"""What the modules of `llmpipe bench` import: no web server, and never each other in a circle."""

from __future__ import annotations

import ast
import graphlib
import importlib.resources
import subprocess
import sys

FOLDER = importlib.resources.files("llmpipe.bench")
SOURCES = {
    f"llmpipe.bench.{file.name[:-3]}": file.read_text() for file in FOLDER.iterdir() if file.name.endswith(".py")
}


def imports(source: str) -> set[str]:
    """The modules of `llmpipe.bench` that a source imports, those inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & SOURCES.keys()


def test_the_load_generator_needs_no_web_server():
    script = f"import sys, {', '.join(SOURCES)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert SOURCES.keys() <= loaded
    assert not loaded & {"uvicorn", "llmpipe.server", "llmpipe.background"}


def test_no_modules_import_each_other():
    graph = {name: imports(source) for name, source in SOURCES.items()}
    assert "llmpipe.bench.live" in graph["llmpipe.bench.display"]
    graphlib.TopologicalSorter(graph).prepare()  # CycleError where there is a circle
