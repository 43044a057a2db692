"""Host names: those of backends, resolved at the start and again every 30 s, and those of addresses to listen at.

Numeric addresses and Unix sockets are never looked up. A name that cannot be resolved later keeps the addresses that it
had: name servers fail more often than backends move.

A look-up cannot be interrupted, and may take as long as the system's resolver likes. So each has a thread of its own, which
nobody waits for longer than LIMIT, and the end of the process not at all. The event loop's own getaddrinfo() has a few
threads for all, so that one name holds up the others, and joins them at its end.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmpipe import log
from llmpipe._pipe import MAX_ADDRESSES
from llmpipe.config import Backend
from llmpipe.errors import UsageError

INTERVAL = 30.0
"""Seconds between two look-ups."""

LIMIT = 20.0
"""Seconds that a look-up may take: a resolver whose first two name servers are dead needs ten or more."""

Addresses = tuple[tuple[str, int], ...]
Answers = list[tuple[Any, ...]]
"""As socket.getaddrinfo() returns them, for port 0."""


class Names:
    """Looks names up. It belongs to one event loop."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[Answers]] = {}

    async def look_up(self, host: str) -> Answers:
        """The addresses of a host, for stream sockets, within LIMIT.

        Raises:
            OSError: it cannot be resolved, or not in time.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self._ask(host)), LIMIT)
        except asyncio.TimeoutError:
            raise OSError(f"no answer within {LIMIT:g} s") from None

    def _ask(self, host: str) -> "asyncio.Future[Answers]":
        """Begins a look-up, or finds the one that is on its way: a name that hangs has one thread, however often it is asked for."""
        if host in self._asked:
            return self._asked[host]
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answers] = loop.create_future()

        def finish(found: Answers, error: OSError | None) -> None:
            del self._asked[host]
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)
                answer.exception()  # where nobody waits any more, it is no news

        def look_up() -> None:
            found: Answers = []
            failure: OSError | None = None
            try:
                found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
            except UnicodeError:  # a label that is empty or longer than 63 letters
                failure = OSError("it is not a host name")
            except OSError as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish, found, failure)

        try:
            threading.Thread(target=look_up, name="look-up", daemon=True).start()
        except RuntimeError as error:  # a limit on threads
            raise OSError(str(error)) from None
        self._asked[host] = answer
        return answer


def _fixed(backend: Backend) -> Addresses | None:
    """The addresses of a backend that needs no look-up."""
    if backend.path:
        return ((f"unix:{backend.path}", 0),)
    try:
        return ((str(ipaddress.ip_address(backend.host)), backend.port),)
    except ValueError:
        return None


def names(backends: Iterable[Backend]) -> int:
    """How many names there are to look up, at most at the same time."""
    return len({backend.host for backend in backends if not _fixed(backend)})


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


class Unresolved:
    """Stands for a resolver where no name server is to be asked: each name has this machine's address."""

    def addresses(self, backend: Backend) -> Addresses:
        return _fixed(backend) or (("127.0.0.1", backend.port),)


class Resolver:
    """Knows the addresses of every backend."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._addresses: dict[Backend, Addresses] = {}

    def addresses(self, backend: Backend) -> Addresses:
        """Those of the last look-up that succeeded, in the order to try them."""
        return self._addresses[backend]

    async def take(self, backends: Sequence[Backend]) -> None:
        """Resolves the names of these backends from now on, all at once those that are new, and looks up the routes. Nothing is sent:
        a backend that is not up yet is no error.

        Raises:
            UsageError: a name cannot be resolved, or there is no way to a backend; then those of before stay.
        """
        new = [backend for backend in backends if backend not in self._addresses]
        found = dict(zip(new, await asyncio.gather(*map(self._first, new)), strict=True))
        self._addresses = {**{backend: self._addresses.get(backend, ()) for backend in backends}, **found}

    async def _look_up(self, backend: Backend) -> Addresses:
        answers = await self._names.look_up(backend.host)
        # Addresses with a scope (fe80::1%eth0) cannot be handed on as text.
        found = dict.fromkeys((str(answer[4][0]), backend.port) for answer in answers if "%" not in str(answer[4][0]))
        return tuple(found)[:MAX_ADDRESSES]

    async def _first(self, backend: Backend) -> Addresses:
        fixed = _fixed(backend)
        try:
            addresses = fixed or await self._look_up(backend)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"backend {backend.name}: the host name cannot be resolved ({reason}); check its spelling"
            ) from None
        if not addresses:
            raise UsageError(f"backend {backend.name}: the host name has no usable address")
        errors = [_route_error(host, port) for host, port in addresses]
        if all(errors):
            raise UsageError(f"backend {backend.name} cannot be reached from here ({errors[0]}); check its address")
        return addresses

    async def refresh(self, on_change: Callable[[], None]) -> None:
        """Resolves every name again, all at once.

        Args:
            on_change: called where addresses changed, as soon as they are known: a name that hangs holds up no other.
        """
        await asyncio.gather(
            *(self._again(backend, on_change) for backend in tuple(self._addresses) if not _fixed(backend))
        )

    async def _again(self, backend: Backend, on_change: Callable[[], None]) -> None:
        try:
            addresses = await self._look_up(backend)
        except OSError as error:
            log.warning("name not resolved", backend=backend.name, error=str(error.strerror or error))
            return
        if addresses and set(addresses) != set(self._addresses.get(backend, addresses)):  # gone meanwhile: as they were
            log.info("name resolved anew", backend=backend.name, addresses=",".join(host for host, _ in addresses))
            self._addresses[backend] = addresses
            on_change()
