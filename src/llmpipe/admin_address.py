"""Where the admin endpoint of a running proxy is, for the commands that ask one: `llmpipe explain` and `llmpipe top`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from llmpipe.config import format_address, parse_address
from llmpipe.errors import UsageError


class AdminAddress(NamedTuple):
    """Of an admin endpoint.

    Attributes:
        host: a name or a numeric address, or "unix:/path".
        port: 0 for a Unix socket.
        prefix: path before those of the endpoint, for one behind another proxy.
    """

    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """For the Host field."""
        return "localhost" if self.host.startswith("unix:") else format_address(self.host, self.port)

    def __str__(self) -> str:
        return self.host if self.host.startswith("unix:") else f"http://{self.authority}{self.prefix}"


def parse_admin(text: str) -> AdminAddress:
    """The address in `http://HOST[:PORT][/PREFIX]`, in `HOST:PORT` or `unix:/PATH` as `serve --admin` takes them.

    Raises:
        UsageError: it is no such thing, or `off`.
    """
    if text == "off":
        raise UsageError(
            "the admin endpoint is off (--admin off); name the one of a process that has one: http://HOST:PORT"
        )
    if text.startswith("unix:/"):
        return AdminAddress(text, 0)
    wrong = UsageError(f"{text!r} is not the address of an admin endpoint; write http://HOST:PORT")
    if "://" not in text:
        try:
            host, port = parse_address(text)
        except UsageError:
            raise wrong from None
        if not port:
            raise wrong
        return AdminAddress(host, port)
    try:
        parts = urlsplit(text)
        port = 80 if parts.port is None else parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme == "https":
        raise UsageError(
            f"{text!r}: the admin endpoint has no TLS; write http://HOST:PORT, its own or that of a tunnel to it"
        )
    if parts.scheme != "http" or not parts.hostname or not port or "@" in parts.netloc or parts.query or parts.fragment:
        raise wrong
    return AdminAddress(parts.hostname, port, parts.path.rstrip("/"))
