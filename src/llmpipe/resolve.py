"""Host names of backends: resolved at start, and again every 30 s.

Numeric addresses and Unix sockets are never looked up. A name that cannot be resolved later keeps the addresses that it
had: name servers fail more often than backends move.
"""

import asyncio
import ipaddress
import socket

from llmpipe import log
from llmpipe._pipe import MAX_ADDRESSES
from llmpipe.config import Backend
from llmpipe.errors import UsageError

INTERVAL = 30.0
"""Seconds between two look-ups."""

Addresses = tuple[tuple[str, int], ...]


def _fixed(backend: Backend) -> Addresses | None:
    """The addresses of a backend that needs no look-up."""
    if backend.path:
        return ((f"unix:{backend.path}", 0),)
    try:
        return ((str(ipaddress.ip_address(backend.host)), backend.port),)
    except ValueError:
        return None


async def _look_up(backend: Backend) -> Addresses:
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(backend.host, backend.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label that is empty or longer than 63 letters
        raise OSError("it is not a host name") from None
    # Addresses with a scope (fe80::1%eth0) cannot be handed on as text.
    found = dict.fromkeys((str(answer[4][0]), backend.port) for answer in answers if "%" not in str(answer[4][0]))
    return tuple(found)[:MAX_ADDRESSES]


def _route_error(host: str, port: int) -> OSError | None:
    """Why no packet could be sent there. Connecting a datagram socket looks the route up and sends nothing."""
    if not port:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
    except OSError as error:
        return error
    return None


class Resolver:
    """Knows the addresses of every backend."""

    def __init__(self, backends: tuple[Backend, ...]) -> None:
        self._backends = backends
        self._addresses: dict[Backend, Addresses] = {}

    def addresses(self, backend: Backend) -> Addresses:
        """Those of the last look-up that succeeded, in the order to try them."""
        return self._addresses[backend]

    async def start(self) -> None:
        """Resolves every name and looks up the routes. Nothing is sent: a backend that is not up yet is no error.

        Raises:
            UsageError: a name cannot be resolved, or there is no way to a backend.
        """
        for backend in self._backends:
            fixed = _fixed(backend)
            try:
                self._addresses[backend] = fixed or await _look_up(backend)
            except OSError as error:
                reason = error.strerror or error
                raise UsageError(
                    f"backend {backend.url}: the host name cannot be resolved ({reason}); check its spelling"
                ) from None
            if not self._addresses[backend]:
                raise UsageError(f"backend {backend.url}: the host name has no usable address")
            errors = [_route_error(host, port) for host, port in self._addresses[backend]]
            if all(errors):
                raise UsageError(f"backend {backend.url} cannot be reached from here ({errors[0]}); check its address")

    async def refresh(self) -> bool:
        """Resolves every name again; whether an address changed."""
        changed = False
        for backend in self._backends:
            if _fixed(backend):
                continue
            try:
                addresses = await _look_up(backend)
            except OSError as error:
                log.warning("name not resolved", backend=backend.url, error=str(error.strerror or error))
                continue
            if addresses and set(addresses) != set(self._addresses[backend]):
                log.info("name resolved anew", backend=backend.url, addresses=",".join(host for host, _ in addresses))
                self._addresses[backend] = addresses
                changed = True
        return changed
