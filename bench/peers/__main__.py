"""Installs peers, or lists which ones can run: see the package's docstring."""

import sys
from pathlib import Path

from . import ALL

USAGE = "usage: python -m bench.peers install FOLDER [NAME ...] | list FOLDER"


def main() -> int:
    action, *arguments = sys.argv[1:] or [""]
    if action not in ("install", "list") or not arguments or (action == "list" and len(arguments) > 1):
        print(USAGE, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    names = arguments[1:] or list(ALL)
    if unknown := [name for name in names if name not in ALL]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    if action == "install":
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            ALL[name].install(folder)
    for name in names:
        print(f"{name:12} {ALL[name].missing(folder) or ALL[name].version(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
