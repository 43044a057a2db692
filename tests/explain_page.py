"""The parts of docs/explain.md that are made: the example and the tables of outcomes and reasons.

.venv/bin/python tests/explain_page.py --write
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmpipe import explanations, timeline

PAGE = Path(__file__).parents[1] / "docs" / "explain.md"

EXAMPLE: dict[str, Any] = {
    "request_id": "9f2c61d07be84ac5b3a1e2d4f6078c19",
    "at": "2026-11-27T08:14:51.204+00:00",
    "client": "10.0.3.17",
    "method": "POST",
    "path": "/v1/chat/completions",
    "pool": "llama",
    "model": "llama-3.3-70b",
    "backend": "gpu2",
    "status": 200,
    "outcome": "ok",
    "phase": "stream",
    "reason": "ECONNREFUSED",
    "error": None,
    "attempts": 1,
    "bytes_up": 48213,
    "bytes_down": 96388,
    "events": 413,
    "tokens": {"prompt": 11806, "completion": 412, "cached": 0},
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "duration": 17.925311,
    "times": {
        "head": 0.000114,
        "queued": 1.210348,
        "connected": 1.211207,
        "answered": 1.214093,
        "first": 8.620411,
        "last": 17.923006,
        "end": 17.925311,
    },
    "close_ms": None,
    "failed": [{"backend": "gpu1", "at": 1.210702, "reason": "ECONNREFUSED"}],
}
"""An element of /exchanges."""


def parts() -> dict[str, str]:
    """What stands between the marks of each name."""
    shown = "\n".join(timeline.lines(EXAMPLE))
    return {"example": f"```\n$ llmpipe explain 9f2c61d0\n{shown}\n```\n", "tables": explanations.tables()}


def filled(page: str) -> str:
    """The page with these parts as they are now."""
    for name, text in parts().items():
        before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert begin, name
        assert end, name
        page = before + begin + text + end + after
    return page


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(filled(PAGE.read_text()))
    else:
        sys.exit(__doc__)
