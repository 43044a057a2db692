"""The page that shows a running proxy in a browser: an HTML file, its script and its style sheets, as they are. What it shows the script
reads from /events and /history.

`base.css` is the style of the page of a benchmark too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from llmpipe.background import Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser lets the page do: nothing but to ask where it came from, whatever is in it."""

HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
}

_PATHS = {"/": "status.html", "/base.css": "base.css", "/status.css": "status.css", "/status.js": "status.js"}


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    content: bytes
    kind: bytes
    """Its media type."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Sends it, whatever was asked."""
        headers = [(b"content-type", self.kind), (b"content-length", b"%d" % len(self.content)), *HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.content})


def load() -> Mapping[str, File]:
    """The files by their paths. They are read now: an upgrade may change what is installed while this process runs."""
    here = files(__name__)
    return {
        path: File(here.joinpath(name).read_bytes(), _TYPES[name.rpartition(".")[2]]) for path, name in _PATHS.items()
    }
